//! Several VM processes and Google's protocol between them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::client::{Client, ids, open};
use crate::support::emulator::Emulator;
use crate::support::http::get;
use crate::support::until;
use crate::support::vm::{Vm, complete};

pub const REGIONS: [&str; 5] = ["ams", "sin", "lax", "syd", "dfw"];

pub async fn fleet(emulator: &Emulator) -> Vec<Vm> {
    let mut vms = Vec::new();
    for region in REGIONS {
        vms.push(Vm::spawn_on(&emulator.host(), region, &[]).await);
    }
    for vm in &vms {
        vm.ready().await;
    }
    vms
}

fn names(regions: &[&str]) -> Vec<String> {
    let mut names: Vec<_> = regions.iter().map(|region| format!("ID_vm-{region}")).collect();
    names.sort();
    names
}

#[tokio::test]
async fn an_alert_is_heard_everywhere_once_and_every_vm_leaves_in_order() {
    let emulator = Emulator::start().await;
    let mut vms = fleet(&emulator).await;
    assert_eq!(emulator.subscriptions().await, names(&REGIONS));

    let mut clients = Vec::new();
    for vm in &vms {
        clients.push(vm.connect().await);
    }
    for sender in 0..clients.len() {
        let data = json!({"place": format!("from {sender}")});
        let sender_id = clients[sender].id().to_owned();
        clients[sender].send(json!({"type": "alert", "id": format!("alert-{sender}"), "data": data})).await;
        for client in &mut clients {
            let alert = client.expect("alert").await;
            assert_eq!(alert["id"], format!("alert-{sender}"));
            assert_eq!(alert["data"], data);
            assert_eq!(alert["senderId"], sender_id.as_str());
            assert_eq!(alert["origin"]["region"], REGIONS[sender]);
            assert_eq!(alert["regionCode"], REGIONS[sender]);
        }
    }
    // All five are through: one that came twice would be among what comes before these.
    let last = clients[0].alert(json!({"place": "last"})).await;
    for client in &mut clients[1..] {
        let alert = client.next().await;
        assert!(alert["id"] == last.as_str() || alert["type"] == "ack", "{alert}");
    }

    // A broadcast goes to all but its sender, on whichever VM they are.
    clients[0].send(json!({"type": "broadcast", "data": {"n": 1}, "id": "b"})).await;
    let event_id = clients[0].expect("ack").await["eventId"].clone();
    for client in &mut clients[1..] {
        let broadcast = client.expect("broadcast").await;
        assert_eq!((&broadcast["id"], &broadcast["data"]), (&event_id, &json!({"n": 1})));
    }
    let after = clients[0].alert(json!({})).await;
    let seen = clients[0].settle().await;
    assert!(seen.iter().all(|message| message["type"] != "broadcast"), "{seen:?} after {after}");

    // The first leaves by SIGINT, with a socket open; the others by SIGTERM.
    let left = clients.remove(0);
    let (code, took) = vms[0].end("INT").await;
    println!("SIGINT with a socket open: exit {code:?} after {took:?}");
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(4), "{took:?}");
    let (code, reason) = left.closed().await.expect("a close");
    assert_eq!(code, 1012);
    assert!(reason.starts_with("retry in ") && reason.ends_with(" ms"), "{reason}");
    assert_eq!(emulator.subscriptions().await, names(&REGIONS[1..]));
    for vm in &mut vms[1..] {
        let (code, took) = vm.end("TERM").await;
        println!("SIGTERM with a socket open: exit {code:?} after {took:?}");
        assert_eq!(code, Some(0));
        assert!(took < Duration::from_secs(4), "{took:?}");
    }
    assert!(emulator.subscriptions().await.is_empty());
    for client in clients {
        assert_eq!(client.closed().await.expect("a close").0, 1012);
    }
}

#[tokio::test]
async fn a_killed_vm_takes_up_its_subscription_and_hears_what_it_missed() {
    let emulator = Emulator::start().await;
    let ams = Vm::on(&emulator, "ams").await;
    let mut sin = Vm::on(&emulator, "sin").await;
    let before = ams.connect().await.alert(json!({"note": "before"})).await;
    sin.end("KILL").await;
    assert_eq!(emulator.subscriptions().await, names(&["ams", "sin"]));
    let meanwhile = ams.connect().await.alert(json!({"note": "meanwhile"})).await;

    let sin = Vm::on(&emulator, "sin").await;
    sin.logged("own subscription of before taken up").await;
    assert_eq!(emulator.subscriptions().await, names(&["ams", "sin"]));
    // What went to the dead process's stream comes again a little later, and is heard then.
    let mut client = sin.connect().await;
    let mut heard: Vec<String> =
        ids(client.refresh["events"].as_array().unwrap()).into_iter().map(str::to_owned).collect();
    while heard.len() < 2 {
        heard.push(client.expect("alert").await["id"].as_str().unwrap().to_owned());
    }
    // Until then nobody is told that it is all.
    let late = complete(&sin, "/ws").await;
    assert_eq!(ids(late["events"].as_array().unwrap()), [before, meanwhile]);
}

#[tokio::test]
async fn a_newborn_vm_knows_what_the_others_know() {
    let emulator = Emulator::start().await;
    let haste = [("MESSAGE_RATE", "10000"), ("MESSAGE_BURST", "10000")];
    let ams = Vm::spawn_on(&emulator.host(), "ams", &haste).await;
    ams.ready().await;
    // All that history holds, and so many deliveries.
    let mut sender = ams.connect().await;
    for _ in 0..1_000 {
        sender.send(json!({"type": "alert"})).await;
    }
    for _ in 0..1_000 {
        sender.expect("alert").await;
    }
    let known = ams.connect().await.refresh;
    assert_eq!(known["events"].as_array().unwrap().len(), 1_000);
    let sin = Vm::spawn_on(&emulator.host(), "sin", &[]).await;
    // As soon as it takes sockets.
    let client = until("a socket", async || open(sin.port, "/ws").await.ok()).await;
    let refresh = Client::greeted(client).await.refresh;
    // Those that the topic took in the same moment have no order among them.
    let sorted = |refresh: &Value| {
        let mut ids: Vec<_> =
            ids(refresh["events"].as_array().unwrap()).into_iter().map(str::to_owned).collect();
        ids.sort();
        ids
    };
    assert_eq!(sorted(&refresh), sorted(&known));
}

#[tokio::test]
async fn the_same_id_is_the_same_event_through_another_vm_too() {
    let emulator = Emulator::start().await;
    let (ams, sin) = (Vm::on(&emulator, "ams").await, Vm::on(&emulator, "sin").await);
    let (mut a, mut b) = (ams.connect().await, sin.connect().await);
    for client in [&mut a, &mut b] {
        client.send(json!({"type": "alert", "id": "the-same"})).await;
        assert_eq!(client.expect("ack").await["eventId"], "the-same");
    }
    let last = a.alert(json!({"note": "last"})).await;
    while b.expect("alert").await["id"] != last.as_str() {}
    let late = sin.connect().await;
    assert_eq!(ids(late.refresh["events"].as_array().unwrap()), ["the-same", &last]);
}

#[tokio::test]
async fn every_vm_and_page_knows_the_fleet() {
    let emulator = Emulator::start().await;
    let (ams, mut sin) = (Vm::on(&emulator, "ams").await, Vm::on(&emulator, "sin").await);
    let mut client = ams.connect().await;
    let told = wait_for_fleet(&mut client, 2).await;
    let names: Vec<_> = told.iter().map(|vm| vm["instance"].as_str().unwrap()).collect();
    assert_eq!(names, ["vm-ams", "vm-sin"]);
    assert!(told.iter().all(|vm| vm["region"].is_string() && vm["lastSeen"].is_u64()), "{told:?}");

    let status = get(ams.port, "/status").await.json();
    assert_eq!(status["fleet"].as_array().unwrap().len(), 2);
    assert_eq!(status["instanceId"], "vm-ams");
    assert_eq!(status["bus"], "pubsub");

    sin.end("TERM").await;
    wait_for_fleet(&mut client, 1).await;
}

async fn wait_for_fleet(client: &mut Client, count: usize) -> Vec<Value> {
    loop {
        let fleet = client.expect("fleet").await;
        let instances = fleet["instances"].as_array().unwrap();
        if instances.len() == count {
            return instances.clone();
        }
    }
}

#[tokio::test]
async fn a_vm_whose_subscription_is_deleted_makes_it_again() {
    let emulator = Emulator::start().await;
    let ams = Vm::on(&emulator, "ams").await;
    let mut client = ams.connect().await;
    emulator.delete("subscriptions/ID_vm-ams").await;
    ams.logged("no way through the topic").await;
    until("health", async || (get(ams.port, "/health").await.status == 200).then_some(())).await;
    client.alert(json!({"note": "still here"})).await;
    assert_eq!(emulator.subscriptions().await, names(&["ams"]));
}
