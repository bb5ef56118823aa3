//! A machine that has too little of something: a VM says so, sheds what it can't bear, keeps those whom it
//! has, and is well again when there is enough.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::symlink_metadata;
use std::net::TcpListener;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::client::{Client, Raw, open};
use crate::support::crowd::ROOM;
use crate::support::emulator::Emulator;
use crate::support::group::Group;
use crate::support::http::{figure, get, try_get};
use crate::support::vm::{Vm, command, command_of, program};
use crate::support::{until, within};

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

/// Lines of the log that a VM has dropped.
async fn dropped(port: u16) -> u64 {
    figure(port, "alien_alert_log_lines_dropped_total").await.unwrap()
}

#[tokio::test]
async fn a_log_on_a_full_disk_stops_nobody_and_goes_on_when_there_is_room() {
    const DISK: &str = "mount -t tmpfs -o size=64k none /mnt && exec \"$0\" 2>>/mnt/log";
    let port = free_port();
    let port_text = port.to_string();
    let vars = [("HOST", "127.0.0.1"), ("PORT", &*port_text), ("RUST_LOG", "debug"), ("LOG_FORMAT", "json")];
    // A disk of its own, which nobody else sees.
    let words = ["unshare", "--mount", "sh", "-c", DISK].map(OsString::from);
    let mut vm = command_of(&[&words[..], &[program()]].concat(), &vars).spawn().unwrap();
    let log = format!("/proc/{}/root/mnt/log", vm.id().unwrap());
    until("health", async || (try_get(port, "/health").await.ok()?.status == 200).then_some(())).await;
    let filler = log.replace("log", "filler");
    assert!(std::fs::write(&filler, vec![b'x'; 64 << 10]).is_err(), "it is full");
    let alert = async || Box::pin(async { Client::connect(port, "/ws").await.alert(json!({})).await }).await;
    until("lines dropped", async || {
        alert().await;
        (dropped(port).await > 0).then_some(())
    })
    .await;
    std::fs::remove_file(&filler).unwrap();
    let id = alert().await;
    let line = until("a line again", async || {
        let log = std::fs::read_to_string(&log).unwrap();
        log.lines().find(|line| line.contains(&id)).map(str::to_owned)
    });
    let line: Value = serde_json::from_str(&line.await).expect("a line of its own");
    assert_eq!(line["eventId"], id.as_str());
    let before = dropped(port).await;
    alert().await;
    assert_eq!(dropped(port).await, before);
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
    // Until more lines wait than may, and as long again.
    for most in [1, 1_000] {
        until(&format!("{most} lines dropped"), async || {
            Box::pin(async { Client::connect(port, "/ws").await.alert(json!({})).await }).await;
            (dropped(port).await >= most).then_some(())
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

/// Of so many messages the ids of those that were taken, and how many were not.
async fn outcome(mut client: Raw, messages: usize) -> (Vec<String>, usize) {
    let (mut taken, mut refused) = (Vec::new(), 0);
    while taken.len() + refused < messages {
        let (_, answer) = within("answer", client.next()).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        match answer["type"].as_str() {
            Some("ack") => taken.push(answer["id"].as_str().unwrap().to_owned()),
            Some("error") => {
                assert_eq!(answer["code"], "unavailable", "{answer}");
                assert!(answer["retryAfterMs"].as_u64().unwrap() > 0);
                refused += 1;
            }
            // Its greeting, and who is in the fleet.
            _ => {}
        }
    }
    (taken, refused)
}

/// All that is said in the channel, as it comes.
async fn listen(mut client: Raw, heard: Arc<Mutex<HashSet<String>>>) {
    while let Ok((_, said)) = client.next().await {
        // Not read as JSON: it is to keep up with a VM that is suddenly well again.
        let said = String::from_utf8_lossy(&said);
        let id = said.split_once(r#""id":""#).and_then(|(_, rest)| rest.split_once('"'));
        if let Some((id, _)) = id.filter(|_| said.starts_with(r#"{"type":"broadcast""#)) {
            heard.lock().unwrap().insert(id.to_owned());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_burst_that_is_too_much_for_a_tenth_of_a_processor_a_part_is_refused_and_none_is_lost() {
    const SENDERS: usize = 200;
    const MESSAGES: usize = 20;
    let emulator = Emulator::start().await;
    let vm = Vm::spawn_on(&emulator.host(), "ams", &ROOM).await;
    vm.ready().await;
    let mut senders = Vec::new();
    for _ in 0..SENDERS {
        senders.push(Raw::connect(vm.port).await);
    }
    let heard = Arc::new(Mutex::new(HashSet::new()));
    let witness = Raw::open(vm.port, "/ws?channels=jobs").await.unwrap();
    let listening = tokio::spawn(listen(witness, Arc::clone(&heard)));
    let group = Group::of_processor(0.1);
    group.take(vm.pid);
    // All is there when it goes on, however fast it could be sent.
    vm.signal("STOP");
    let data = "x".repeat(15 << 10);
    for (number, sender) in senders.iter_mut().enumerate() {
        for count in 0..MESSAGES {
            let id = format!("{number}-{count}");
            let message = json!({"type": "broadcast", "channel": "jobs", "id": id, "data": data});
            sender.frame(0x81, message.to_string().as_bytes()).await;
        }
    }
    vm.signal("CONT");
    let starved = Instant::now();
    let outcomes: JoinSet<_> = senders.into_iter().map(|sender| outcome(sender, MESSAGES)).collect();
    let (taken, refused): (Vec<_>, Vec<_>) = outcomes.join_all().await.into_iter().unzip();
    let (taken, refused) = (taken.concat(), refused.iter().sum::<usize>());
    let answered = starved.elapsed();
    assert!(!taken.is_empty() && refused > 0, "{} taken, {refused} refused", taken.len());

    group.let_go(vm.pid);
    let well = Instant::now();
    until("all that was taken", async || {
        let heard = heard.lock().unwrap();
        taken.iter().all(|id| heard.contains(id)).then_some(())
    })
    .await;
    vm.connect().await.alert(json!({})).await;
    assert_eq!(get(vm.port, "/health").await.status, 200);
    println!(
        "of a burst with a tenth of a processor {} were taken and {refused} refused within {answered:.1?}; well \
         again {:.1?} after that",
        taken.len(),
        well.elapsed()
    );
    listening.abort();
}
