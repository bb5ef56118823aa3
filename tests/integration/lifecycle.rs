//! Connects and disconnects, as a backend hears of them on a topic of its own.

use serde_json::{Value, json};

use crate::support::emulator::Emulator;
use crate::support::http;
use crate::support::proxy::{Mode, Proxy};
use crate::support::until;
use crate::support::vm::Vm;

const TOPIC: &str = "LIFE";
const SUBSCRIPTION: &str = "backend";

/// An app's backend, and all that it has heard.
struct Backend<'a> {
    emulator: &'a Emulator,
    heard: Vec<Value>,
}

impl<'a> Backend<'a> {
    async fn subscribe(emulator: &'a Emulator) -> Self {
        // The VMs make it.
        until("topic", async || emulator.topic(TOPIC).await["name"].is_string().then_some(())).await;
        emulator.subscribe(SUBSCRIPTION, TOPIC).await;
        Self { emulator, heard: Vec::new() }
    }

    /// What is told of a connection, or of a VM as a whole.
    async fn hears(&mut self, event: &str, field: &str, id: &str) -> Value {
        until(&format!("{event} of {id}"), async || {
            for (attribute, message) in self.emulator.pull(SUBSCRIPTION).await {
                assert_eq!(attribute, message["event"], "a filter sees the same");
                self.heard.push(message);
            }
            self.heard.iter().find(|told| told["event"] == event && told[field] == id).cloned()
        })
        .await
    }
}

#[tokio::test]
async fn connects_and_disconnects_are_told_and_what_a_killed_vm_can_t_tell() {
    let emulator = Emulator::start().await;
    let vars = [("LIFECYCLE_TOPIC", TOPIC), ("BEACON_INTERVAL", "1"), ("API_KEY", "sixteen-or-longer")];
    let mut vms = Vm::fleet(&emulator, &["ams", "sin", "syd"], &vars).await;
    let mut backend = Backend::subscribe(&emulator).await;

    let client = vms[1].connect().await;
    let id = client.id().to_owned();
    let connect = backend.hears("connect", "clientId", &id).await;
    let (started, time) = (connect["started"].as_i64().unwrap(), connect["time"].as_i64().unwrap());
    let expected = json!({"event": "connect", "clientId": id, "instance": "vm-sin", "region": "sin",
        "started": started, "ip": "127.0.0.1", "time": time});
    assert_eq!(connect, expected);
    assert!(started <= time);
    client.closed_by_us().await;
    let disconnect = backend.hears("disconnect", "clientId", &id).await;
    let expected = json!({"event": "disconnect", "clientId": id, "instance": "vm-sin", "region": "sin",
        "started": started, "ip": "127.0.0.1", "reason": "closed", "time": disconnect["time"]});
    assert_eq!(disconnect, expected);
    assert!(disconnect["time"].as_i64().unwrap() >= time);

    let dismissed = vms[2].connect().await.id().to_owned();
    let path = format!("/connections/{dismissed}");
    let key = [("authorization", "Bearer k")];
    http::request(vms[0].port, "DELETE", &path, &key, "").await.unwrap();
    // The test's client dropped its end: either may be first.
    let reason = backend.hears("disconnect", "clientId", &dismissed).await["reason"].clone();
    assert!(reason == "dismissed" || reason == "lost", "{reason}");

    // One that leaves tells the rest before it ends.
    let left = vms[2].connect().await;
    assert_eq!(vms[2].end("TERM").await.0, Some(0));
    assert_eq!(backend.hears("disconnect", "clientId", left.id()).await["reason"], "restart");

    // One that is killed can't. It is the lowest, so the next tells for it.
    let lost = vms[0].connect().await;
    let connect = backend.hears("connect", "clientId", lost.id()).await;
    until("the count of its sockets", async || {
        let fleet = vms[1].status().await["fleet"].clone();
        fleet.as_array()?.iter().any(|vm| vm["instance"] == "vm-ams" && vm["clients"] == 1).then_some(())
    })
    .await;
    vms[0].end("KILL").await;
    let gone = backend.hears("instance-gone", "instance", "vm-ams").await;
    let expected = json!({"event": "instance-gone", "instance": "vm-ams", "region": "ams", "clients": 1,
        "started": connect["started"], "time": gone["time"]});
    assert_eq!(gone, expected);

    let times = |event: &str| backend.heard.iter().filter(|told| told["event"] == event).count();
    assert_eq!((times("connect"), times("disconnect"), times("instance-gone")), (4, 3, 1));
}

#[tokio::test]
async fn what_can_t_be_told_is_told_later() {
    let emulator = Emulator::start().await;
    let proxy = Proxy::to(emulator.port).await;
    let vm = Vm::spawn_on(&proxy.host(), "ams", &[("LIFECYCLE_TOPIC", TOPIC)]).await;
    vm.ready().await;
    let mut backend = Backend::subscribe(&emulator).await;
    proxy.set(Mode::Refuse);
    let client = vm.connect().await;
    let id = client.id().to_owned();
    vm.logged("connects and disconnects can't be told").await;
    client.closed_by_us().await;
    proxy.set(Mode::Pass);
    for event in ["connect", "disconnect"] {
        backend.hears(event, "clientId", &id).await;
    }
    assert!(http::get(vm.port, "/metrics").await.text().contains("alien_alert_lifecycle_lost_total 0"));
}
