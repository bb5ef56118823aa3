//! Days in minutes: joins, leaves, slow readers, floods and rolling restarts, all at once and again and again.
//! Nothing is lost meanwhile, who does what is not done is cut off, and afterwards a VM is what it was: in
//! memory, in files, in tasks, in sockets.
//!
//! `SOAK_SECONDS=1800` for the long run; `scripts/long-tests` does it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::SinkExt as _;
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::Message;

use crate::support::client::{Client, Raw, closed, open_from};
use crate::support::crowd::{Crowd, ROOM};
use crate::support::emulator::Emulator;
use crate::support::vm::Vm;
use crate::support::{until, within};

/// One of them is never restarted: its memory is what is watched.
const REGIONS: [&str; 3] = ["ams", "sin", "lax"];
const PAGES: usize = 150;
const DEAF: usize = 3;
/// In kB, between being warm and the end, however long that is: it goes up and down by as much while pages come
/// back in crowds.
const MOST_GROWN: f64 = 3_000.0;
/// Into so many parts the time is divided, to see whether memory still grows.
const LEVELS: usize = 8;

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
    let (tasks, files) = (vms[0].figure("alien_alert_tasks").await, vms[0].files());
    let (crowd, mut pages) = Crowd::gather(&vms, PAGES).await;
    let senders = crowd.press();
    let steady = vms[0].port;
    let enough = Arc::new(AtomicBool::new(false));
    let mut trouble = JoinSet::new();
    trouble.spawn(again(Arc::clone(&enough), move || come_and_go(steady)));
    trouble.spawn(again(Arc::clone(&enough), move || say_much(steady)));
    trouble.spawn(again(Arc::clone(&enough), move || talk_nonsense(steady)));
    let floods = tokio::spawn(again(Arc::clone(&enough), move || flood(steady)));
    let deaf: JoinSet<_> =
        (0..DEAF).map(|_| again(Arc::clone(&enough), move || never_read(steady))).collect();

    let begun = Instant::now();
    // Once through everything that is allocated for good, and until the window is full.
    let warm = (time / 3).max(Duration::from_secs(45)).min(time / 2);
    let mut memory = Vec::new();
    let mut restarts = 0;
    while begun.elapsed() < time {
        // The others in turn, by both signals and by force.
        let number = 1 + restarts % (vms.len() - 1);
        let port = vms[number].port.to_string();
        assert_eq!(vms[number].lines("a defect"), Vec::<Value>::new());
        vms[number].end(["TERM", "INT", "KILL"][restarts % 3]).await;
        let more: Vec<_> = settings().into_iter().chain([("PORT", &*port)]).collect();
        vms[number] = Vm::spawn_on(&host, REGIONS[number], &more).await;
        vms[number].ready().await;
        restarts += 1;
        println!("{:.0?}: {} kB", begun.elapsed(), vms[0].pss() / 1024);
        let next = Instant::now() + time / 20;
        while Instant::now() < next {
            sleep(Duration::from_millis(500)).await;
            if begun.elapsed() > warm {
                memory.push(vms[0].pss() as f64 / 1024.0);
            }
        }
    }
    enough.store(true, Ordering::Relaxed);
    trouble.join_all().await;
    let (floods, deaf) = (floods.await.unwrap(), deaf.join_all().await.iter().sum::<usize>());
    crowd.enough.store(true, Ordering::Relaxed);
    let acknowledged: Vec<usize> = senders.join_all().await.concat();
    until("every alert on every page", async || {
        crowd.pages.iter().all(|page| page.lock().unwrap().has(&acknowledged)).then_some(())
    })
    .await;
    for page in &crowd.pages {
        assert_eq!(page.lock().unwrap().repeated, 0, "alerts that came twice on one connection");
    }

    // What is taken for a moment, when many come back at once, does not count.
    let levels: Vec<f64> = memory.chunks(memory.len().div_ceil(LEVELS)).map(least).collect();
    let (before, after) = (least(&levels[..2]), least(&levels[levels.len() - 2..]));
    let apart = (time - warm).mul_f64(1.0 - 2.0 / levels.len() as f64);
    let slope = (after - before) / apart.as_secs_f64();
    println!(
        "{:.0?} with {restarts} restarts: {} alerts, each on {PAGES} pages; memory, the least in each eighth of the \
         time after {warm:.0?}: {levels:.0?} kB, {slope:+.2} kB a second",
        begun.elapsed(),
        acknowledged.len()
    );
    assert!(after < before + MOST_GROWN, "{memory:.0?}");

    // Who did what is not done was cut off for it, and nobody else.
    let cut_off = async |reason: &str| {
        let name = format!("alien_alert_sockets_closed_total{{reason=\"{reason}\"}}");
        vms[0].figure(&name).await as usize
    };
    let slow = cut_off("slow_consumer").await;
    println!("{slow} of {deaf} that never read were cut off, and {floods} floods");
    assert!(deaf > 0 && 2 * slow >= deaf && slow <= deaf, "{slow} of {deaf}");
    assert!(floods > 0);
    assert_eq!(cut_off("flooding").await, floods);
    assert_eq!(cut_off("defect").await, 0);
    assert_eq!(vms[0].lines("a defect"), Vec::<Value>::new());

    pages.shutdown().await;
    until("end of all sockets", async || (vms[0].status().await["connectedClients"] == 0).then_some(()))
        .await;
    let fresh = Vm::spawn_on(&host, "syd", &settings()).await;
    fresh.ready().await;
    // Connections to the topic differ by a few, as they are made and given up.
    let few = files.min(fresh.files()) + 4;
    until("no more files than at first", async || (vms[0].files() <= few).then_some(())).await;
    let left = async || vms[0].figure("alien_alert_tasks").await;
    until("no more tasks than at first", async || (left().await <= tasks).then_some(())).await;
    println!(
        "at last: files {}, at first {files}, of a new VM {}; tasks {}, at first {tasks}, of a new VM {}",
        vms[0].files(),
        fresh.files(),
        left().await,
        fresh.figure("alien_alert_tasks").await
    );
}

/// Does something again and again until it is enough; how often.
async fn again<F: Future<Output = ()> + Send>(enough: Arc<AtomicBool>, act: impl Fn() -> F) -> usize {
    let mut times = 0;
    while !enough.load(Ordering::Relaxed) {
        act().await;
        times += 1;
    }
    times
}

/// Sockets that open, join a channel of their own, speak and go, in order or not.
async fn come_and_go(port: u16) {
    for number in 0..20 {
        let mut client = Client::connect(port, &format!("/ws?channels=room-{number}")).await;
        client.send(json!({"type": "broadcast", "channel": format!("room-{number}"), "data": number})).await;
        if number % 2 == 0 {
            client.closed_by_us().await;
        }
    }
    sleep(Duration::from_millis(200)).await;
}

/// One who says much to those who never read, so that they are soon behind.
async fn say_much(port: u16) {
    let mut client = Client::connect(port, "/ws").await;
    let data = "x".repeat(15 << 10);
    for _ in 0..20 {
        let id = uuid::Uuid::new_v4().to_string();
        client.send(json!({"type": "broadcast", "id": id, "channel": "deaf", "data": data})).await;
        client.expect("ack").await;
        sleep(Duration::from_millis(500)).await;
    }
    client.closed_by_us().await;
}

/// One that takes nothing, for longer than it takes to be cut off.
async fn never_read(port: u16) {
    let socket = TcpSocket::new_v4().unwrap();
    // Else the systems of both keep megabytes for it, and the VM notices nothing.
    socket.set_recv_buffer_size(4 << 10).unwrap();
    SockRef::from(&socket).set_tcp_mss(536).unwrap();
    let stream = socket.connect(([127, 0, 0, 1], port).into()).await.unwrap();
    let deaf = Raw::over(stream, "/ws?channels=deaf").await.unwrap();
    sleep(Duration::from_secs(5)).await;
    drop(deaf);
}

/// One that says more than it may, until it is cut off.
async fn flood(port: u16) {
    // Its address waits after a flood; everybody else's must not.
    let mut socket = open_from("127.0.0.9", port).await.unwrap();
    for _ in 0..2_000 {
        socket.send(Message::text("{\"type\":\"ping\"}")).await.unwrap();
    }
    assert_eq!(closed(&mut socket).await.map(|(code, _)| code), Some(1008));
    sleep(Duration::from_secs(12)).await;
}

/// What is no protocol: on the socket, and before it.
async fn talk_nonsense(port: u16) {
    let mut raw = Raw::connect(port).await;
    raw.0.write_all(&[0xff; 64]).await.unwrap();
    assert_eq!(raw.closed().await, Some(1002));
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(b"nonsense\r\n\r\n").await.unwrap();
    let mut told = String::new();
    within("answer", stream.read_to_string(&mut told)).await.unwrap();
    assert!(told.starts_with("HTTP/1.1 400 "), "{told}");
    sleep(Duration::from_millis(100)).await;
}

fn least(points: &[f64]) -> f64 {
    points.iter().copied().fold(f64::INFINITY, f64::min)
}
