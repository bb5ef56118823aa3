//! Days in minutes: joins, leaves, slow readers, floods and rolling restarts, all at once and again and again.
//! Nothing is lost meanwhile, and afterwards a VM is what it was: in memory, in files, in sockets.
//!
//! `SOAK_SECONDS=1800` for the long run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::SinkExt as _;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::Message;

use crate::support::client::{Client, Raw, open, open_from};
use crate::support::crowd::{Crowd, ROOM};
use crate::support::emulator::Emulator;
use crate::support::until;
use crate::support::vm::Vm;

/// One of them is never restarted: its memory is what the slope is of.
const REGIONS: [&str; 3] = ["ams", "sin", "lax"];
const PAGES: usize = 150;
/// A window that is full after some seconds, so that what grows later grows for another reason.
const SMALL_WINDOW: [(&str, &str); 4] = [
    ("HISTORY_SECONDS", "45"),
    ("HISTORY_EVENTS", "1000"),
    ("BEACON_INTERVAL", "2"),
    ("OUTBOX_BYTES", "65536"),
];

fn settings() -> Vec<(&'static str, &'static str)> {
    // The flood is one of messages, which the usual rates would end at once.
    ROOM.into_iter().filter(|(name, _)| !name.starts_with("MESSAGE")).chain(SMALL_WINDOW).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_is_after_all_that_what_it_was_before() {
    let time = std::env::var("SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(120);
    let time = Duration::from_secs(time);
    let emulator = Emulator::start().await;
    let host = emulator.host();
    let mut vms = Vec::new();
    for region in REGIONS {
        vms.push(Vm::spawn_on(&host, region, &settings()).await);
    }
    for vm in &vms {
        vm.ready().await;
    }
    let (crowd, mut pages) = Crowd::gather(&vms, PAGES).await;
    let senders = crowd.press();
    let steady = vms[0].port;
    let enough = Arc::new(AtomicBool::new(false));
    let mut trouble = JoinSet::new();
    trouble.spawn(again(Arc::clone(&enough), move || come_and_go(steady)));
    trouble.spawn(again(Arc::clone(&enough), move || never_read(steady)));
    trouble.spawn(again(Arc::clone(&enough), move || flood(steady)));
    trouble.spawn(again(Arc::clone(&enough), move || talk_nonsense(steady)));

    let begun = Instant::now();
    // Once through everything that is allocated for good.
    let warm = time / 3;
    let mut memory = Vec::new();
    let mut restarts = 0;
    while begun.elapsed() < time {
        // The others in turn, by both signals and by force.
        let number = 1 + restarts % (vms.len() - 1);
        let port = vms[number].port.to_string();
        vms[number].end(["TERM", "INT", "KILL"][restarts % 3]).await;
        let more: Vec<_> = settings().into_iter().chain([("PORT", &*port)]).collect();
        vms[number] = Vm::spawn_on(&host, REGIONS[number], &more).await;
        vms[number].ready().await;
        restarts += 1;
        let next = Instant::now() + time / 20;
        while Instant::now() < next {
            sleep(Duration::from_millis(500)).await;
            if begun.elapsed() > warm {
                memory.push((begun.elapsed().as_secs_f64(), vms[0].pss() as f64 / 1024.0));
            }
        }
    }
    enough.store(true, Ordering::Relaxed);
    trouble.join_all().await;
    crowd.enough.store(true, Ordering::Relaxed);
    let acknowledged: Vec<usize> = senders.join_all().await.concat();
    until("every alert on every page", async || {
        crowd.pages.iter().all(|page| page.lock().unwrap().has(&acknowledged)).then_some(())
    })
    .await;
    for page in &crowd.pages {
        assert_eq!(page.lock().unwrap().repeated, 0, "alerts that came twice on one connection");
    }

    let slope = slope(&memory);
    let (first, last) = (memory[0].1, memory[memory.len() - 1].1);
    println!(
        "{:.0?} with {restarts} restarts: {} alerts, each on {PAGES} pages; memory {first:.0} kB at first, {last:.0} kB at \
         last, {slope:.1} kB a second",
        begun.elapsed(),
        acknowledged.len()
    );
    let rest = (time - warm).as_secs_f64();
    assert!(slope * rest < 4_000.0, "{slope:.1} kB a second: {memory:?}");

    pages.shutdown().await;
    until("end of all sockets", async || (vms[0].status().await["connectedClients"] == 0).then_some(()))
        .await;
    let fresh = Vm::spawn_on(&host, "syd", &settings()).await;
    fresh.ready().await;
    // Connections to the topic differ by a few, as they are made and given up.
    until("no more files than a new VM's", async || (vms[0].files() <= fresh.files() + 8).then_some(()))
        .await;
    println!("files at last: {}, of a new VM {}", vms[0].files(), fresh.files());
}

/// Does something again and again until it is enough.
async fn again<F: Future<Output = ()> + Send>(enough: Arc<AtomicBool>, act: impl Fn() -> F) {
    while !enough.load(Ordering::Relaxed) {
        act().await;
    }
}

/// Sockets that open, join a channel of their own, speak and go, in order or not.
async fn come_and_go(port: u16) {
    for number in 0..20 {
        let Ok(socket) = open(port, &format!("/ws?channels=room-{number}")).await else { continue };
        let mut client = Client::greeted(socket).await;
        client.send(json!({"type": "broadcast", "channel": format!("room-{number}"), "data": number})).await;
        if number % 2 == 0 {
            client.closed_by_us().await;
        }
    }
    sleep(Duration::from_millis(200)).await;
}

/// One that takes nothing, until it is cut off or a while has passed.
async fn never_read(port: u16) {
    if let Ok(socket) = Raw::open(port, "/ws").await {
        sleep(Duration::from_secs(2)).await;
        drop(socket);
    }
}

/// One that says more than it may, until it is cut off.
async fn flood(port: u16) {
    // Its address waits after a flood; everybody else's must not.
    if let Ok(mut socket) = open_from("127.0.0.9", port).await {
        for _ in 0..2_000 {
            if socket.send(Message::text("{\"type\":\"ping\"}")).await.is_err() {
                break;
            }
        }
    }
    sleep(Duration::from_secs(12)).await;
}

/// What is no protocol: on the socket, and before it.
async fn talk_nonsense(port: u16) {
    use tokio::io::AsyncWriteExt as _;
    if let Ok(mut raw) = Raw::open(port, "/ws").await {
        let _ = raw.0.write_all(&[0xff; 64]).await;
    }
    if let Ok(mut stream) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await {
        let _ = stream.write_all(b"nonsense\r\n\r\n").await;
    }
    sleep(Duration::from_millis(100)).await;
}

/// In what is measured, for each second.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let over: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    over / points.iter().map(|point| (point.0 - x).powi(2)).sum::<f64>()
}
