//! Machines whose clock is wrong, or jumps: places in the stream are the topic's times, so cursors and
//! catch-up hold, and what is on the wire is nearly right.
//!
//! By libfaketime: a namespace of time can't shift the wall clock.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::emulator::Emulator;
use crate::support::http::{API_KEY, ask, knock};
use crate::support::token::{SECRET, at, claims, token};
use crate::support::until;
use crate::support::vm::Vm;

const HOUR: &str = "3600";

/// A machine's clock, for one process; gone with this value.
struct Clock {
    file: PathBuf,
    library: String,
}

impl Clock {
    /// One that is so many seconds ahead, or behind.
    fn ahead(seconds: &str) -> Self {
        let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH);
        assert!(std::fs::exists(&library).unwrap(), "libfaketime is needed: apt-get install faketime");
        let file = std::env::temp_dir().join(format!("alien-alert-clock-{}", uuid::Uuid::new_v4()));
        let clock = Self { file, library };
        clock.set(seconds);
        clock
    }

    fn set(&self, seconds: &str) {
        let sign = if seconds.starts_with('-') { "" } else { "+" };
        // Renamed: half a line would be another time.
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{sign}{seconds}\n")).unwrap();
        std::fs::rename(new, &self.file).unwrap();
    }

    fn vars(&self) -> [(&str, &str); 5] {
        [
            ("LD_PRELOAD", &self.library),
            ("FAKETIME_TIMESTAMP_FILE", self.file.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("FAKETIME_DISABLE_SHM", "1"),
        ]
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

fn now_millis() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

fn cursor(client: &Client) -> String {
    client.refresh["cursor"].as_str().unwrap().to_owned()
}

async fn pong_s_cursor(client: &mut Client) -> String {
    client.send(json!({"type": "ping", "id": "now"})).await;
    client.expect("pong").await["cursor"].as_str().unwrap().to_owned()
}

/// A client that comes back with this cursor is told the last `least` events of these, and it is proven that
/// nothing is missing.
async fn assert_caught_up(vm: &Vm, cursor: &str, all: &[String], least: usize) {
    let path = format!("/ws?since={cursor}");
    until("catch-up that is complete", async || {
        let refresh = Client::connect(vm.port, &path).await.refresh;
        let id = |event: &Value| event["id"].as_str().unwrap().to_owned();
        let events: Vec<_> = refresh["events"].as_array().unwrap().iter().map(id).collect();
        if refresh["complete"] != true {
            return None;
        }
        assert!(all.ends_with(&events) && events.len() >= least, "{events:?} of {all:?}");
        Some(())
    })
    .await;
}

/// The event when it is heard, which is not too old, nor of the future.
async fn heard(client: &mut Client, id: &str) {
    loop {
        let event = client.expect("alert").await;
        if event["id"] == id {
            let off = event["timestamp"].as_i64().unwrap() - now_millis();
            assert!(off.abs() < 10_000, "{off} ms");
            return;
        }
    }
}

/// A VM whose machine is wrong by so much beside one that is right.
async fn wrong_by(seconds: &str) {
    let emulator = Emulator::start().await;
    let key = [("API_KEY", API_KEY), ("BEACON_INTERVAL", "1")];
    let right = Vm::spawn_on(&emulator.host(), "ams", &key).await;
    right.ready().await;
    let (mut at_right, mut near_right) = (right.connect().await, right.connect().await);
    let first = cursor(&at_right);
    let mut all = vec![at_right.alert(json!({"note": "before the other came"})).await];
    heard(&mut near_right, &all[0]).await;

    let clock = Clock::ahead(seconds);
    let vars = [&clock.vars()[..], &key].concat();
    let wrong = Vm::spawn_on(&emulator.host(), "sin", &vars).await;
    wrong.ready().await;
    wrong.logged("this machine's clock is not the topic's").await;
    let (mut at_wrong, mut near_wrong) = (wrong.connect().await, wrong.connect().await);
    assert_caught_up(&wrong, &first, &all, 1).await;
    for vm in [&right, &wrong] {
        until("fleet of two", async || {
            (vm.status().await["fleet"].as_array().unwrap().len() == 2).then_some(())
        })
        .await;
    }

    // Both ways, at about the right time.
    for number in 0..2 {
        let sender = if number == 0 { &mut at_right } else { &mut at_wrong };
        all.push(sender.alert(json!({"note": "live"})).await);
        heard(&mut near_right, &all[number + 1]).await;
        heard(&mut near_wrong, &all[number + 1]).await;
    }
    // A place on one VM is the same place on the other, also for one that heard nothing for a while.
    let cursors = [pong_s_cursor(&mut at_right).await, pong_s_cursor(&mut at_wrong).await];
    for number in 3..5 {
        let sender = if number == 3 { &mut at_right } else { &mut at_wrong };
        all.push(sender.alert(json!({"note": "meanwhile"})).await);
        heard(&mut near_right, &all[number]).await;
        heard(&mut near_wrong, &all[number]).await;
    }
    for since in &cursors {
        assert_caught_up(&right, since, &all, 2).await;
        assert_caught_up(&wrong, since, &all, 2).await;
    }
    // What is asked is not too old.
    let path = format!("/connections/{}", at_wrong.id());
    assert_eq!(ask(right.port, "POST", &path, &[], "1").await.status, 200);
    assert_eq!(at_wrong.expect("direct").await["data"], 1);
}

#[tokio::test]
async fn an_hour_ahead() {
    Box::pin(wrong_by(HOUR)).await;
}

#[tokio::test]
async fn an_hour_behind() {
    Box::pin(wrong_by("-3600")).await;
}

/// Forth, back and far back while it runs; nothing of it is noticed.
async fn jumps(vm: &Vm, clock: &Clock) {
    let mut witness = vm.connect().await;
    let mut all = Vec::new();
    for seconds in [HOUR, "-3600", "-90000", "0"] {
        let mut client = vm.connect().await;
        let since = pong_s_cursor(&mut client).await;
        clock.set(seconds);
        all.push(client.alert(json!({"note": seconds})).await);
        heard(&mut witness, &all[all.len() - 1]).await;
        let later = pong_s_cursor(&mut client).await;
        all.push(client.alert(json!({"note": seconds})).await);
        heard(&mut witness, &all[all.len() - 1]).await;
        assert_caught_up(vm, &since, &all, 2).await;
        assert_caught_up(vm, &later, &all, 1).await;
    }
    let shown = vm.connect().await.refresh["events"].as_array().unwrap().len();
    assert_eq!(shown, all.len(), "none is too old");
}

#[tokio::test]
async fn a_clock_that_jumps_moves_no_cursor() {
    let emulator = Emulator::start().await;
    let clock = Clock::ahead("0");
    let vars = [&clock.vars()[..], &[("BEACON_INTERVAL", "1")]].concat();
    let vm = Vm::spawn_on(&emulator.host(), "ams", &vars).await;
    vm.ready().await;
    Box::pin(jumps(&vm, &clock)).await;
    assert_eq!(vm.lines("this machine's clock is not the topic's").len(), 0);
}

#[tokio::test]
async fn alone_it_follows_its_machine_s_clock_forth_and_never_back() {
    let clock = Clock::ahead("0");
    let vars = [&clock.vars()[..], &[("BEACON_INTERVAL", "1")]].concat();
    let vm = Vm::alone(&vars).await;
    let (mut client, mut witness) = (vm.connect().await, vm.connect().await);
    let mut off = async || {
        let id = client.alert(json!({})).await;
        while witness.expect("alert").await["id"] != id.as_str() {}
        let refresh = vm.connect().await.refresh;
        let event = refresh["events"].as_array().unwrap().last().unwrap().clone();
        assert_eq!(event["id"], id.as_str(), "the newest is the last");
        Duration::from_millis((event["timestamp"].as_i64().unwrap() - now_millis()).unsigned_abs())
    };
    assert!(off().await < Duration::from_secs(10));
    let since = cursor(&vm.connect().await);
    // As where it slept.
    clock.set("1800");
    until("time of the machine", async || (off().await > Duration::from_secs(1_700)).then_some(())).await;
    clock.set("0");
    assert!(off().await > Duration::from_secs(1_700), "it never goes back");
    let events = vm.connect().await.refresh["events"].as_array().unwrap().clone();
    let all: Vec<_> = events.iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect();
    assert_caught_up(&vm, &since, &all, all.len()).await;
}

#[tokio::test]
async fn a_token_s_time_is_by_the_machine_s_clock() {
    let clock = Clock::ahead(HOUR);
    let vars = [&clock.vars()[..], &[("AUTH_SECRET", SECRET)]].concat();
    let vm = Vm::alone(&vars).await;
    let path = |lifetime| format!("/ws?token={}", token(&claims(json!({"exp": at(lifetime)}))));
    knock(&vm, &path(1_800), &[]).await.assert_refused(401, "forbidden");
    Client::connect(vm.port, &path(5_400)).await;
}
