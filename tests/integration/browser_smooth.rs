//! A thousand landings on the list and fifty a second more, on a processor four times slower: a frame of the
//! page takes its thread at most 16 ms, by the trace of the browser itself.
//!
//! The browser's own slowness waits by the clock, so a busy machine makes it slower still: what that shows is
//! printed. What is held to is the thread's own time at full speed, four times.

use std::time::Duration;

use serde_json::{Value, json};

use crate::browser::open;
use crate::support::browser::{Driver, Page};
use crate::support::devtools::Devtools;
use crate::support::until;
use crate::support::vm::Vm;

const KEPT: usize = 1_000;
const A_SECOND: u64 = 50;
/// Whatever else the machine does only adds to the time: the best of these seconds tells what the page needs.
const SECONDS: u64 = 6;
const SLOWER: f64 = 4.0;
/// Milliseconds.
const FRAME: f64 = 16.0;

/// What the page's thread worked for each of its frames, in ms of its own time, second by second.
fn frames(trace: &[Value]) -> Vec<Vec<f64>> {
    let own =
        trace.iter().find(|event| event["name"] == "FireAnimationFrame").expect("no frame in the trace");
    let on_page = |event: &&Value| event["pid"] == own["pid"] && event["tid"] == own["tid"];
    let named = |name: &'static str| trace.iter().filter(on_page).filter(move |event| event["name"] == name);
    let moments: Vec<f64> = named("FireAnimationFrame").filter_map(|event| event["ts"].as_f64()).collect();
    let began = moments.iter().copied().fold(f64::INFINITY, f64::min);
    let mut seconds = vec![Vec::new(); SECONDS as usize];
    for task in named("ProxyMain::BeginMainFrame") {
        let (from, length) = (task["ts"].as_f64().unwrap_or(0.0), task["dur"].as_f64().unwrap_or(0.0));
        let Some(moment) = moments.iter().find(|moment| (from..=from + length).contains(moment)) else {
            continue;
        };
        let second = seconds.get_mut(((moment - began) / 1e6) as usize);
        if let (Some(second), Some(own_time)) = (second, task["tdur"].as_f64()) {
            second.push(own_time / 1_000.0);
        }
    }
    seconds
}

/// The time that this part of the frames kept to.
fn within(frames: &[f64], part: f64) -> f64 {
    let mut frames = frames.to_vec();
    frames.sort_by(f64::total_cmp);
    frames[((frames.len() - 1) as f64 * part) as usize]
}

async fn rows(page: &Page) -> usize {
    let count = page.run("return document.querySelectorAll('#landings li').length").await;
    count.as_u64().unwrap() as usize
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
    // The world and the list are both in sight.
    page.set_size(1280, 960).await;
    until("all thousand", async || (rows(&page).await == KEPT).then_some(())).await;

    let mut devtools = Devtools::attach(&page).await;
    // More of them would be work of their own.
    let categories = ["devtools.timeline", "cc"];
    let mut best = f64::INFINITY;
    for (slower, name) in [(1.0, "by its own time"), (SLOWER, "in a browser made slower")] {
        devtools.call("Emulation.setCPUThrottlingRate", json!({"rate": slower})).await;
        let mut last = String::new();
        let trace = devtools
            .trace(&categories, async {
                let mut beat = tokio::time::interval(Duration::from_millis(1_000 / A_SECOND));
                for number in 0..A_SECOND * SECONDS {
                    beat.tick().await;
                    let data =
                        json!({"place": format!("New {number}"), "lat": number % 90, "lon": number % 180});
                    last = sender.alert(data).await;
                }
                page.wait_for(&format!("#landings li[data-id=\"{last}\"]")).await;
            })
            .await;
        let mut seconds = frames(&trace);
        for frame in seconds.iter_mut().flatten() {
            *frame *= SLOWER / slower;
        }
        let all = seconds.concat();
        let smooth = all.iter().filter(|frame| **frame <= FRAME).count() as f64 / all.len() as f64;
        println!(
            "at 50 landings a second on 1,000, 4 times slower {name}: {} frames, half within {:.1} ms, 95 % \
             within {:.1}; {:.0} % within {FRAME}",
            all.len(),
            within(&all, 0.5),
            within(&all, 0.95),
            smooth * 100.0,
        );
        if slower == 1.0 {
            let full = seconds.iter().filter(|second| second.len() >= 10);
            best = full.map(|second| within(second, 0.95)).fold(best, f64::min);
        }
    }
    devtools.call("Emulation.setCPUThrottlingRate", json!({"rate": 1})).await;
    assert_eq!(rows(&page).await, KEPT);
    println!("95 % of the best second's frames within {best:.1} ms");
    assert!(best <= FRAME, "95 % of the best second's frames within {best:.1} ms");
    page.close().await;
}
