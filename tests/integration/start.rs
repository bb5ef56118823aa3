//! From the start of the process to its being of use.

use std::time::Duration;

use serde_json::json;

use crate::support::emulator::Emulator;
use crate::support::proxy::{Mode, Proxy};
use crate::support::vm::Vm;

/// The best of several, since a busy machine says nothing about the program.
async fn best_of(spawn: impl AsyncFn(&str) -> Vm) -> Duration {
    let mut best = Duration::MAX;
    for region in ["ams", "sin", "lax", "syd", "dfw"] {
        let mut vm = spawn(region).await;
        vm.ready().await;
        best = best.min(vm.spawned.elapsed());
        vm.end("TERM").await;
    }
    best
}

#[tokio::test]
async fn a_vm_is_ready_at_once() {
    let alone = best_of(async |region| Vm::spawn(region, &[]).await).await;
    let emulator = Emulator::start().await;
    let host = emulator.host();
    let on_pubsub = best_of(async |region| Vm::spawn_on(&host, region, &[]).await).await;
    println!("from the process's start to ready: {alone:?} alone, {on_pubsub:?} on the emulator");
    assert!(alone <= Duration::from_millis(50), "{alone:?}");
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    // Nothing listens there, so leaving takes its time.
    let mut vm = Vm::spawn_on("127.0.0.1:9", "ams", &[]).await;
    vm.signal("INT");
    vm.logged("leaving").await;
    let (code, took) = vm.end("INT").await;
    println!("second signal: exit {code:?} after {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn leaving_is_bounded_when_the_topic_does_not_answer() {
    // Accepts connections and never says a word.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut vm = Vm::spawn_on(&mute.local_addr().unwrap().to_string(), "ams", &[]).await;
    let (code, took) = vm.end("TERM").await;
    println!("leaving a topic that does not answer: exit {code:?} after {took:?}");
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test]
async fn what_a_leaving_vm_can_not_publish_is_answered() {
    let emulator = Emulator::start().await;
    let proxy = Proxy::to(emulator.port).await;
    let mut vm = Vm::spawn_on(&proxy.host(), "ams", &[]).await;
    vm.ready().await;
    let mut client = vm.connect().await;
    proxy.set(Mode::BlackHole);
    client.send(json!({"type": "alert", "id": "late"})).await;
    client.settle().await;
    let (code, took) = vm.end("TERM").await;
    println!("leaving with an alert that can't be published: exit {code:?} after {took:?}");
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(4), "{took:?}");
    let error = client.expect("error").await;
    assert_eq!((&error["code"], &error["id"]), (&json!("unavailable"), &json!("late")));
    assert!(error["retryAfterMs"].is_u64());
    assert_eq!(client.closed().await.unwrap().0, 1012);
}
