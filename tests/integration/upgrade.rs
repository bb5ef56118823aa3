//! A deployment rolls: VMs of two versions are one fleet, whichever of them comes, goes or dies. The other
//! version's program is named by `ALIEN_ALERT_BIN_BEFORE`, which `scripts/upgrade-from` builds; where it is not,
//! both are of this one.

use std::ffi::OsString;

use serde_json::json;

use crate::support::client::{Client, ids};
use crate::support::emulator::Emulator;
use crate::support::http::{API_KEY, ask};
use crate::support::until;
use crate::support::vm::{Vm, complete, program};

fn before() -> OsString {
    std::env::var_os("ALIEN_ALERT_BIN_BEFORE").unwrap_or_else(program)
}

async fn start(program: OsString, emulator: &Emulator, region: &str) -> Vm {
    let vm = Vm::spawn_on_by(program, &emulator.host(), region, &[("API_KEY", API_KEY)]).await;
    vm.ready().await;
    vm
}

/// Everything that VMs say to one another, from `here` to `there`; returns the id of what both keep.
async fn say_everything(here: &Vm, there: &Vm, vms: usize) -> String {
    for vm in [here, there] {
        vm.knows(vms).await;
    }
    let mut from = Client::connect(here.port, "/ws?channels=team").await;
    let mut to = Client::connect(there.port, "/ws?channels=team").await;
    for client in [&mut from, &mut to] {
        client.expect("refresh-store").await;
    }
    let alert = from.alert(json!({"place": "between versions"})).await;
    while to.expect("alert").await["id"] != alert.as_str() {}
    let receipt = until("a receipt of all", async || {
        let receipt = from.expect("receipt").await;
        (receipt["instances"] == vms).then_some(receipt)
    });
    assert_eq!(receipt.await["eventId"], alert.as_str());
    from.send(json!({"type": "broadcast", "channel": "team", "data": alert})).await;
    while to.expect("broadcast").await["data"] != alert.as_str() {}
    from.send(json!({"type": "direct", "targetId": to.id(), "data": alert, "id": "written"})).await;
    assert_eq!(to.expect("direct").await["data"], alert.as_str());
    while from.expect("ack").await["eventId"] != "written" {}

    let path = format!("/connections/{}", to.id());
    let described = ask(here.port, "GET", &path, &[], "").await;
    assert_eq!(
        (described.status, &described.json()["instance"]),
        (200, &json!(format!("vm-{}", there.name)))
    );
    let written = ask(here.port, "POST", &path, &[], r#""from the backend""#).await;
    assert!(matches!(written.status, 200 | 202), "{}", written.text());
    assert_eq!(to.expect("direct").await["data"], "from the backend");
    assert_eq!(ask(here.port, "DELETE", &path, &[], "").await.status, 204);
    assert_eq!(to.closed().await.unwrap().0, 1008);
    // With its place here one comes back there.
    let since = from.refresh["cursor"].as_str().unwrap();
    let back = complete(there, &format!("/ws?since={since}")).await;
    assert!(ids(back["events"].as_array().unwrap()).contains(&&*alert), "{back}");
    alert
}

#[tokio::test]
async fn two_versions_are_one_fleet() {
    let emulator = Emulator::start().await;
    let mut old = start(before(), &emulator, "ams").await;
    let mut new = start(program(), &emulator, "sin").await;
    let mut all = vec![say_everything(&old, &new, 2).await, say_everything(&new, &old, 2).await];

    // One of each version comes, and knows what was before it, though who said it goes.
    let young = start(before(), &emulator, "syd").await;
    all.push(say_everything(&new, &young, 3).await);
    assert_eq!(new.end("TERM").await.0, Some(0));
    let new = start(program(), &emulator, "fra").await;
    all.push(say_everything(&young, &new, 3).await);
    old.end("KILL").await;
    all.push(new.connect().await.alert(json!({"place": "the last"})).await);
    for vm in [&young, &new] {
        // The last may still be on its way.
        until("all of it", async || {
            let told = Box::pin(complete(vm, "/ws")).await;
            (ids(told["events"].as_array()?) == all).then_some(())
        })
        .await;
        assert_eq!(vm.figure("alien_alert_undecodable_total").await, 0, "{}", vm.name);
        assert_eq!(vm.figure("alien_alert_events_lost_total").await, 0, "{}", vm.name);
    }
}
