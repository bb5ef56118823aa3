//! A thousand landings on the list and fifty a second more, on a processor four times slower: by the trace
//! of the browser itself. The aim is 16.7 ms for a frame; what is reached is printed.

use std::time::Duration;

use serde_json::{Value, json};

use crate::browser::open;
use crate::support::browser::Driver;
use crate::support::devtools::Devtools;
use crate::support::until;
use crate::support::vm::Vm;

const KEPT: usize = 1_000;
const A_SECOND: u64 = 50;
const SECONDS: u64 = 3;
/// A frame at 60 a second.
const FRAME: f64 = 16.7;

/// What the page's thread worked for each of its frames, in ms: its own time, whatever else the machine does.
fn frames(trace: &[Value]) -> Vec<f64> {
    let own =
        trace.iter().find(|event| event["name"] == "FireAnimationFrame").expect("no frame in the trace");
    let on_page = |event: &&Value| event["pid"] == own["pid"] && event["tid"] == own["tid"];
    let named = |name: &'static str| trace.iter().filter(on_page).filter(move |event| event["name"] == name);
    let moments: Vec<f64> = named("FireAnimationFrame").filter_map(|event| event["ts"].as_f64()).collect();
    let mut frames: Vec<f64> = named("RunTask")
        .filter(|task| {
            let (from, length) = (task["ts"].as_f64().unwrap_or(0.0), task["dur"].as_f64().unwrap_or(0.0));
            moments.iter().any(|moment| (from..=from + length).contains(moment))
        })
        .filter_map(|task| task["tdur"].as_f64())
        .map(|us| us / 1_000.0)
        .collect();
    frames.sort_by(f64::total_cmp);
    frames
}

#[tokio::test]
async fn a_thousand_landings_and_fifty_a_second_leave_room_in_each_frame() {
    let vm = Vm::alone(&[("MESSAGE_RATE", "100000"), ("MESSAGE_BURST", "100000")]).await;
    let mut sender = vm.connect().await;
    for number in 0..KEPT {
        sender
            .alert(json!({"place": format!("Field {number}"), "lat": number % 90, "lon": number % 180}))
            .await;
    }
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    page.wait_for("#landings li").await;

    let mut devtools = Devtools::attach(&page).await;
    devtools.call("Emulation.setCPUThrottlingRate", json!({"rate": 4})).await;
    let mut last = String::new();
    let categories = ["devtools.timeline", "disabled-by-default-devtools.timeline"];
    let trace = devtools
        .trace(&categories, async {
            let mut beat = tokio::time::interval(Duration::from_millis(1_000 / A_SECOND));
            for number in 0..A_SECOND * SECONDS {
                beat.tick().await;
                last = sender
                    .alert(json!({"place": format!("New {number}"), "lat": number % 90, "lon": number}))
                    .await;
            }
            page.wait_for(&format!("#landings li[data-id=\"{last}\"]")).await;
        })
        .await;
    devtools.call("Emulation.setCPUThrottlingRate", json!({"rate": 1})).await;
    until("all thousand, scrolled to", async || {
        page.run(
            "const list = document.querySelector('.landings .scroll'); list.scrollTop = list.scrollHeight",
        )
        .await;
        (page.count("#landings li").await == KEPT).then_some(())
    })
    .await;

    let frames = frames(&trace);
    let at = |part: f64| frames[((frames.len() - 1) as f64 * part) as usize];
    let within = frames.iter().filter(|frame| **frame <= FRAME).count() as f64 / frames.len() as f64;
    println!(
        "at 50 landings a second on 1,000, 4 times slower: {} frames, half within {:.1} ms, 95 % within {:.1}, \
         the longest {:.1}; {:.0} % within {FRAME}",
        frames.len(),
        at(0.5),
        at(0.95),
        at(1.0),
        within * 100.0,
    );
    // How near it comes is the machine's to say, so the bound is looser than the aim.
    assert!(at(0.5) <= 2.0 * FRAME, "half of the frames within {:.1} ms", at(0.5));
    page.close().await;
}
