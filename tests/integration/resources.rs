//! A machine that has too little of something: a VM says so, sheds what it can't bear, keeps those whom it
//! has, and is well again when there is enough.

use std::fs::{OpenOptions, symlink_metadata};
use std::net::TcpListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::{Client, open};
use crate::support::group::Group;
use crate::support::http::{get, try_get};
use crate::support::until;
use crate::support::vm::{Vm, command};

/// A port that was free a moment ago, for a VM whose log can't be read.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Allows a process so many open files from now on.
fn allow_files(pid: u32, files: usize) {
    let limit = format!("--nofile={files}:");
    let set = std::process::Command::new("prlimit").args([&format!("--pid={pid}"), &limit]).status();
    assert!(set.unwrap().success());
}

#[tokio::test]
async fn a_log_on_a_full_disk_stops_nobody() {
    let port = free_port();
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let port_text = port.to_string();
    let vars = [("HOST", "127.0.0.1"), ("PORT", &*port_text), ("RUST_LOG", "debug")];
    let mut vm = command(&vars).stderr(Stdio::from(full)).spawn().unwrap();
    until("health", async || (try_get(port, "/health").await.ok()?.status == 200).then_some(())).await;
    Client::connect(port, "/ws").await.alert(json!({})).await;
    vm.kill().await.unwrap();
}

#[tokio::test]
async fn a_log_that_nobody_reads_stops_nobody() {
    let port = free_port();
    let port_text = port.to_string();
    let rates = [("UPGRADE_RATE", "1000"), ("UPGRADE_BURST", "1000")];
    let vars = [&rates[..], &[("HOST", "127.0.0.1"), ("PORT", &*port_text), ("RUST_LOG", "trace")]].concat();
    // The pipe has room for 64 KiB; then whoever writes waits.
    let mut vm = command(&vars).stderr(Stdio::piped()).spawn().unwrap();
    until("health", async || (try_get(port, "/health").await.ok()?.status == 200).then_some(())).await;
    let dropped = async || {
        let figures = get(port, "/metrics").await;
        let line =
            figures.text().lines().find_map(|line| line.strip_prefix("alien_alert_log_lines_dropped_total "));
        line.unwrap().parse::<u64>().unwrap()
    };
    // Until more lines wait than may, and as long again.
    for most in [1, 1_000] {
        until(&format!("{most} lines dropped"), async || {
            Box::pin(async { Client::connect(port, "/ws").await.alert(json!({})).await }).await;
            (dropped().await >= most).then_some(())
        })
        .await;
    }
    assert_eq!(get(port, "/health").await.status, 200);
    vm.kill().await.unwrap();
}

#[tokio::test]
async fn out_of_files_it_keeps_those_whom_it_has_and_takes_others_later() {
    let vm = Vm::alone(&[]).await;
    let (mut a, mut b) = (vm.connect().await, vm.connect().await);
    // The system gives the lowest number that is free, and none from the limit on.
    let is_used = |file: &usize| symlink_metadata(format!("/proc/{}/fd/{file}", vm.pid)).is_ok();
    let used = (0..).take_while(is_used).count();
    allow_files(vm.pid, used);
    let refused = get(vm.port, "/health").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, "5"));
    // Nobody waits: each is told so too, or has the file that the one before has left.
    for _ in 0..20 {
        assert!([200, 503].contains(&get(vm.port, "/health").await.status));
    }
    vm.logged("can't accept connections").await;
    let id = a.alert(json!({"note": "all files are used"})).await;
    assert_eq!(b.expect("alert").await["id"], id.as_str());
    allow_files(vm.pid, used + 100);
    vm.connect().await.alert(json!({})).await;
    // Six at once, and one in ten seconds, however many were refused.
    let complaints = vm.lines("can't accept connections").len();
    assert!(complaints <= 7, "{complaints} lines");
}

#[tokio::test]
async fn with_a_tenth_of_a_processor_it_is_slow_and_whole() {
    const PAGES: usize = 100;
    let vm = Vm::alone(&[("MESSAGE_RATE", "1000"), ("MESSAGE_BURST", "1000")]).await;
    let mut sender = vm.connect().await;
    let mut pages = Vec::new();
    for _ in 0..PAGES {
        pages.push(Client::greeted(open(vm.port, "/ws").await.unwrap()).await);
    }
    let group = Group::of_processor(0.1);
    group.take(vm.pid);
    let starved = Instant::now();
    let mut ids = Vec::new();
    for number in 0..50 {
        ids.push(sender.alert(json!({"note": format!("starved {number}")})).await);
    }
    for page in &mut pages {
        for id in &ids {
            assert_eq!(page.expect("alert").await["id"], id.as_str(), "each once and in order");
        }
    }
    println!("{} alerts on {PAGES} pages with a tenth of a processor: {:.1?}", ids.len(), starved.elapsed());
    assert_eq!(get(vm.port, "/health").await.status, 200);
    group.let_go(vm.pid);
    let well = Instant::now();
    let id = sender.alert(json!({})).await;
    assert_eq!(pages[0].expect("alert").await["id"], id.as_str());
    assert!(well.elapsed() < Duration::from_secs(5));
}
