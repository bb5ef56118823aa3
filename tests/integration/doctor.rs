//! `alien-alert doctor` on Google's emulator and beside real VMs: each thing that can be wrong is told by
//! name and with what to do, all else is skipped or goes on, and nothing is left behind or disturbed.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::emulator::{Emulator, PROJECT};
use crate::support::gate::{Gate, Refused};
use crate::support::http::get;
use crate::support::listener::Listener;
use crate::support::proxy::{Mode, Proxy};
use crate::support::token::at;
use crate::support::vm::{Vm, command};
use crate::support::{until, within};

const TOPIC: &str = "ALIEN_NOTIFICATIONS";

/// VMs speak so often here that a silence is soon one.
const OFTEN: (&str, &str) = ("BEACON_INTERVAL", "1");

/// An examination.
pub struct Seen {
    pub code: Option<i32>,
    pub report: Value,
    took: Duration,
}

impl Seen {
    pub fn check(&self, name: &str) -> &Value {
        let checks = self.report["checks"].as_array().unwrap();
        checks.iter().find(|check| check["check"] == name).unwrap_or_else(|| panic!("{name} in {checks:#?}"))
    }

    #[track_caller]
    pub fn assert(&self, name: &str, outcome: &str, says: &[&str]) {
        let check = self.check(name);
        assert_eq!(check["outcome"], outcome, "{check:#}");
        for part in says {
            assert!(check.to_string().contains(part), "{part:?} in {check:#}");
        }
    }

    /// The names of all checks that ended so.
    fn all(&self, outcome: &str) -> Vec<&str> {
        let checks = self.report["checks"].as_array().unwrap().iter();
        checks
            .filter(|check| check["outcome"] == outcome)
            .map(|check| check["check"].as_str().unwrap())
            .collect()
    }
}

pub async fn examine(vars: &[(&str, &str)], arguments: &[&str]) -> Seen {
    let begun = Instant::now();
    let output = command(vars).arg("doctor").arg("--json").args(arguments).stdout(Stdio::piped()).output();
    let output = within("end of the doctor", output).await.unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {told}"));
    Seen { code: output.status.code(), report, took: begun.elapsed() }
}

fn vars(host: &str) -> Vec<(&str, &str)> {
    vec![("PUBSUB_EMULATOR_HOST", host), ("GOOGLE_CLOUD_PROJECT", PROJECT), OFTEN]
}

async fn undecodable(vm: &Vm) -> String {
    let metrics = get(vm.port, "/metrics").await;
    let line = metrics.text().lines().find(|line| line.starts_with("alien_alert_undecodable_total "));
    line.unwrap().to_owned()
}

#[tokio::test]
async fn all_is_well_and_living_vms_take_no_notice() {
    let emulator = Emulator::start().await;
    let vms = Vm::fleet(&emulator, &["ams", "sin"], &[OFTEN]).await;
    let before = emulator.subscriptions().await;
    let listener = Listener::connect(vms[0].port).await;
    let seen = examine(&vars(&emulator.host()), &[]).await;
    assert_eq!((seen.code, &seen.report["result"]), (Some(0), &json!("ok")), "{:#}", seen.report);
    seen.assert("credentials", "ok", &["PUBSUB_EMULATOR_HOST"]);
    seen.assert("retention", "ok", &["3900 s"]);
    seen.assert("round trip", "ok", &["came back after"]);
    seen.assert("left-overs", "ok", &["2 VMs are alive"]);
    println!("all is well after {:.1?}", seen.took);
    assert_eq!(emulator.subscriptions().await, before);

    // What comes after the probe has come when the next alert has.
    vms[1].connect().await.alert(json!({})).await;
    until("the alert", async || (!listener.events().is_empty()).then_some(())).await;
    assert_eq!(listener.events().len(), 1);
    for vm in &vms {
        assert_eq!(undecodable(vm).await, "alien_alert_undecodable_total 0");
        assert_eq!(vm.status().await["fleet"].as_array().unwrap().len(), 2);
    }
}

#[tokio::test]
async fn for_eyes_each_check_is_a_line_and_the_end_says_how_it_is() {
    let emulator = Emulator::start().await;
    emulator.create_topic_that_keeps(TOPIC, 600).await;
    let host = emulator.host();
    let output = command(&vars(&host)).arg("doctor").stdout(Stdio::piped()).output();
    let output = within("end of the doctor", output).await.unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("ok       topic "), "{told}");
    let warning = told.lines().skip_while(|line| !line.starts_with("warning  retention ")).nth(1).unwrap();
    assert!(warning.contains("→ gcloud pubsub topics update"), "{told}");
    assert!(told.contains("\nfailed: 0, warnings: 1, skipped: "), "{told}");
}

#[tokio::test]
async fn a_topic_that_is_not_there_or_keeps_nothing_is_told() {
    let emulator = Emulator::start().await;
    let host = emulator.host();
    let seen = examine(&vars(&host), &[]).await;
    assert_eq!(seen.code, Some(2));
    let make = "gcloud pubsub topics create ALIEN_NOTIFICATIONS --project=alien-alert-test \
                --message-retention-duration=3900s";
    seen.assert("topic", "failed", &[TOPIC, make, "pubsub.topics.create"]);
    let rest = ["retention", "subscribe", "pull", "publish", "round trip", "left-overs", "delete"];
    assert_eq!(seen.all("skipped")[seen.all("skipped").len() - rest.len()..], rest);
    assert!(emulator.subscriptions().await.is_empty());

    emulator.create_topic(TOPIC).await;
    let seen = examine(&vars(&host), &[]).await;
    assert_eq!(seen.code, Some(1), "{:#}", seen.report);
    seen.assert("retention", "warning", &["0 s", "3900 s", "HISTORY_SECONDS=3600", "topics update"]);
    assert_eq!(seen.all("warning"), ["retention"]);
    assert!(emulator.subscriptions().await.is_empty());

    let missing = [vars(&host), vec![("LIFECYCLE_TOPIC", "LIFE")]].concat();
    examine(&missing, &[]).await.assert(
        "lifecycle",
        "warning",
        &["LIFECYCLE_TOPIC=LIFE", "topics create LIFE"],
    );
    emulator.create_topic("LIFE").await;
    examine(&missing, &[]).await.assert("lifecycle", "ok", &["LIFE is there"]);
}

#[tokio::test]
async fn settings_and_keys_that_can_t_be_used_are_named() {
    let seen = examine(&[("GOOGLE_CLOUD_PROJECT", "My Project")], &[]).await;
    assert_eq!(seen.code, Some(2));
    seen.assert("configuration", "failed", &["GOOGLE_CLOUD_PROJECT", "project id"]);
    assert_eq!(seen.all("skipped").len(), 11, "{:#}", seen.report);

    let directory = std::env::temp_dir().join(format!("alien-alert-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&directory).unwrap();
    let file = directory.join("key.json");
    let key = json!({"type": "service_account", "project_id": "my-project", "private_key_id": "1",
        "private_key": "hunter2", "client_email": "vm@my-project.iam.gserviceaccount.com"});
    std::fs::write(&file, key.to_string()).unwrap();
    let path = file.to_str().unwrap();
    // A service that can't be reached: nothing leaves this machine.
    let vars = [("GOOGLE_APPLICATION_CREDENTIALS", path), ("HTTPS_PROXY", "http://127.0.0.1:1")];
    let seen = examine(&vars, &[]).await;
    assert_eq!(seen.code, Some(2));
    seen.assert("credentials", "failed", &["GOOGLE_APPLICATION_CREDENTIALS", path]);
    seen.assert("service", "failed", &["https://pubsub.googleapis.com", "HTTPS_PROXY"]);
    seen.assert("topic", "skipped", &["service"]);
    assert!(!seen.report.to_string().contains("hunter2"), "{:#}", seen.report);
    std::fs::remove_dir_all(&directory).unwrap();
}

#[tokio::test]
async fn in_process_it_says_what_that_means() {
    let seen = examine(&[], &[]).await;
    assert_eq!(seen.code, Some(0));
    seen.assert("configuration", "ok", &["one VM alone"]);
    assert_eq!(seen.all("skipped").len(), 11);
    for (arguments, code) in [(&["doctor", "--help"][..], 0), (&["doctor", "--cleen"], 64)] {
        let output =
            within("end", command(&[]).args(arguments).stdout(Stdio::piped()).output()).await.unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        let told = [output.stdout, output.stderr].concat();
        assert!(String::from_utf8(told).unwrap().contains("--clean") || code == 64);
    }
}

#[tokio::test]
async fn a_service_that_does_not_answer_takes_seconds() {
    // Nobody is there.
    let seen = examine(&vars("127.0.0.1:1"), &[]).await;
    assert_eq!(seen.code, Some(2));
    seen.assert("service", "failed", &["127.0.0.1:1", "refused", "PUBSUB_EMULATOR_HOST"]);
    seen.assert("topic", "skipped", &["service"]);
    // Somebody is, and says nothing.
    let proxy = Proxy::to(1).await;
    proxy.set(Mode::BlackHole);
    let seen = examine(&vars(&proxy.host()), &[]).await;
    assert_eq!(seen.code, Some(2));
    seen.assert("service", "failed", &["127.0.0.1"]);
    println!("a service that hangs is told of after {:.1?}", seen.took);
    assert!(seen.took < Duration::from_secs(15), "{:?}", seen.took);
}

#[tokio::test]
async fn each_right_that_is_missing_is_named_and_the_others_are_tried() {
    let emulator = Emulator::start().await;
    emulator.create_topic_that_keeps(TOPIC, 3900).await;
    let gate = Gate::to(emulator.port).await;
    let host = gate.host();
    for (refused, check, right, skipped) in [
        (
            Refused::Creating,
            "subscribe",
            "pubsub.subscriptions.create on the project and pubsub.topics.attachSubscription on the topic",
            &["pull", "round trip", "left-overs", "delete"][..],
        ),
        (Refused::Inspecting, "subscribe", "pubsub.subscriptions.get on the project", &[]),
        (Refused::Publishing, "publish", "pubsub.topics.publish on the topic", &["round trip", "left-overs"]),
        (
            Refused::Consuming,
            "pull",
            "pubsub.subscriptions.consume on the project",
            &["round trip", "left-overs"],
        ),
        (Refused::Deleting, "delete", "pubsub.subscriptions.delete on the project", &[]),
    ] {
        gate.refuse(refused);
        let seen = examine(&vars(&host), &[]).await;
        assert_eq!(seen.code, Some(2), "{refused:?}: {:#}", seen.report);
        seen.assert(check, "failed", &[right, "PERMISSION_DENIED"]);
        assert_eq!(seen.all("failed"), [check], "{refused:?}: {:#}", seen.report);
        assert_eq!(seen.all("skipped"), skipped, "{refused:?}: {:#}", seen.report);
        let left = emulator.subscriptions().await;
        assert_eq!(left.len(), usize::from(refused == Refused::Deleting), "{refused:?}: {left:?}");
        for name in left {
            assert!(seen.check("delete").to_string().contains(&name));
            emulator.delete(&format!("subscriptions/{name}")).await;
        }
    }
    // VMs get along without this one.
    gate.refuse(Refused::Looking);
    let seen = examine(&vars(&host), &[]).await;
    assert_eq!(seen.code, Some(1), "{:#}", seen.report);
    assert_eq!(seen.all("warning"), ["topic", "left-overs"]);
    seen.assert("topic", "warning", &["pubsub.topics.get on the topic"]);
    gate.refuse(Refused::Nothing);
    assert_eq!(examine(&vars(&host), &[]).await.code, Some(0));
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_told_by_how_much() {
    let emulator = Emulator::start().await;
    emulator.create_topic_that_keeps(TOPIC, 3900).await;
    let gate = Gate::to(emulator.port).await;
    for (ahead, outcome, says) in [
        (0, "ok", "within a second"),
        (10, "warning", "behind the service's"),
        (-10, "warning", "ahead of the service's"),
        (3600, "failed", "behind the service's"),
    ] {
        gate.set_clock_ahead(ahead);
        let seen = examine(&vars(&gate.host()), &[]).await;
        seen.assert("clock", outcome, &[says]);
        // The topic's clock is this machine's.
        seen.assert("round trip", "ok", &[]);
    }
}

#[tokio::test]
async fn what_dead_vms_left_is_found_and_only_what_is_old_is_deleted() {
    let emulator = Emulator::start().await;
    // Not so often that a busy machine's delay looks like a death.
    let often = ("BEACON_INTERVAL", "2");
    let mut vms = Vm::fleet(&emulator, &["ams", "sin"], &[often]).await;
    let listener = Listener::connect(vms[0].port).await;
    vms[1].end("KILL").await;
    until("the silence noticed", async || {
        (vms[0].status().await["fleet"].as_array().unwrap().len() == 1).then_some(())
    })
    .await;
    let old = json!({"app": "alien-alert", "created": at(-7200).to_string()});
    let young = json!({"app": "alien-alert", "created": at(-3000).to_string()});
    emulator.subscribe_as("ID_of-before", TOPIC, &old).await;
    emulator.subscribe_as("ID_undated", TOPIC, &json!({"app": "alien-alert"})).await;
    emulator.subscribe_as("ID_foreign", TOPIC, &json!({"created": at(-7200).to_string()})).await;
    emulator.subscribe_as("ID_young", TOPIC, &young).await;
    emulator.subscribe_as("backend", TOPIC, &old).await;
    emulator.create_topic("OTHER").await;
    emulator.subscribe_as("ID_elsewhere", "OTHER", &old).await;
    let all = emulator.subscriptions().await;

    let host = emulator.host();
    let vars = [("PUBSUB_EMULATOR_HOST", &*host), ("GOOGLE_CLOUD_PROJECT", PROJECT), often];
    let seen = examine(&vars, &[]).await;
    assert_eq!(seen.code, Some(1), "{:#}", seen.report);
    let says = ["1 VM is alive", "left behind: ID_of-before (2 h old)", "ID_vm-sin (0 min old)", "--clean"];
    seen.assert("left-overs", "warning", &says);
    seen.assert("left-overs", "warning", &["ID_young (50 min old)", "when: ID_foreign, ID_undated"]);
    let told = seen.check("left-overs").to_string();
    for other in ["ID_vm-ams", "backend", "ID_elsewhere", "ID_doctor"] {
        assert!(!told.contains(other), "{other} in {told}");
    }
    assert_eq!(emulator.subscriptions().await, all, "nothing is deleted unasked");
    println!("left-overs told after {:.1?}", seen.took);

    let seen = examine(&vars, &["--clean"]).await;
    seen.assert("left-overs", "warning", &["deleted ID_of-before"]);
    let kept: Vec<_> = all.into_iter().filter(|name| name != "ID_of-before").collect();
    assert_eq!(emulator.subscriptions().await, kept);
    // The living one was not disturbed.
    assert!(listener.is_open() && listener.events().is_empty());
    assert_eq!(undecodable(&vms[0]).await, "alien_alert_undecodable_total 0");
    assert_eq!(vms[0].lines("no way through the topic").len(), 0);
}

#[tokio::test]
async fn where_nobody_can_be_heard_nothing_is_deleted() {
    let emulator = Emulator::start().await;
    emulator.create_topic(TOPIC).await;
    let old = json!({"app": "alien-alert", "created": at(-7200).to_string()});
    emulator.subscribe_as("ID_of-before", TOPIC, &old).await;
    let host = emulator.host();
    let seen = examine(&vars(&host), &["--clean"]).await;
    seen.assert("left-overs", "warning", &["not deleted", "BEACON_INTERVAL"]);
    assert_eq!(emulator.subscriptions().await, ["ID_of-before"]);
}

#[tokio::test]
async fn interrupted_it_takes_away_what_it_made() {
    let emulator = Emulator::start().await;
    emulator.create_topic_that_keeps(TOPIC, 3900).await;
    // It will listen for half a minute for a beacon of this one's VM.
    emulator.subscribe("ID_silent", TOPIC).await;
    let host = emulator.host();
    let vars = [("PUBSUB_EMULATOR_HOST", &*host), ("GOOGLE_CLOUD_PROJECT", PROJECT)];
    for signal in ["INT", "TERM"] {
        let mut doctor = command(&vars).arg("doctor").stdout(Stdio::piped()).spawn().unwrap();
        until("the doctor's subscription", async || {
            emulator.subscriptions().await.iter().any(|name| name.starts_with("ID_doctor-")).then_some(())
        })
        .await;
        let pid = doctor.id().unwrap().to_string();
        let sent = std::process::Command::new("kill").args([&format!("-{signal}"), &pid]).status();
        assert!(sent.unwrap().success());
        let status = within("end of the doctor", doctor.wait()).await.unwrap();
        assert_eq!(status.code(), Some(130), "{signal}");
        assert_eq!(emulator.subscriptions().await, ["ID_silent"], "{signal}");
    }
}
