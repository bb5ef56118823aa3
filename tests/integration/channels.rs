//! Channels: who joins one hears it on any VM, whoever was away gets what was there, and nobody else
//! hears a word.

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::emulator::Emulator;
use crate::support::vm::Vm;

async fn subscribe(client: &mut Client, channel: &str) -> Value {
    client.send(json!({"type": "subscribe", "channel": channel})).await;
    let refresh = client.expect("refresh-store").await;
    assert_eq!(refresh["channel"], channel);
    refresh
}

/// Broadcasts to a channel and returns the event's id when it is confirmed.
async fn broadcast(client: &mut Client, channel: &str, data: Value) -> String {
    let id = uuid::Uuid::new_v4().to_string();
    client.send(json!({"type": "broadcast", "channel": channel, "data": data, "id": id})).await;
    loop {
        let message = client.next().await;
        assert_ne!(message["type"], "error", "{message}");
        if message["type"] == "ack" && message["id"] == id.as_str() {
            return id;
        }
    }
}

#[tokio::test]
async fn a_channel_is_heard_by_its_members_on_every_vm_and_by_nobody_else() {
    let emulator = Emulator::start().await;
    let vms =
        [Vm::on(&emulator, "ams").await, Vm::on(&emulator, "sin").await, Vm::on(&emulator, "lax").await];
    let mut members = Vec::new();
    for vm in &vms {
        let mut member = vm.connect().await;
        assert_eq!(subscribe(&mut member, "news").await["events"], json!([]));
        members.push(member);
    }
    let mut outsider = vms[1].connect().await;
    subscribe(&mut outsider, "other").await;
    let first = broadcast(&mut members[0], "news", json!(1)).await;
    for member in &mut members[1..] {
        let heard = member.expect("broadcast").await;
        assert_eq!(
            (&heard["id"], &heard["channel"], &heard["data"]),
            (&json!(first), &json!("news"), &json!(1))
        );
    }

    // One that leaves hears no more; the others do.
    members[2].send(json!({"type": "unsubscribe", "channel": "news"})).await;
    members[2].settle().await;
    let second = broadcast(&mut members[0], "news", json!(2)).await;
    assert_eq!(members[1].expect("broadcast").await["id"], second.as_str());
    // An alert is for all, and comes after: whatever was to be heard before it was.
    let last = members[0].alert(json!({})).await;
    for silent in [&mut members[2], &mut outsider] {
        assert_eq!(silent.next().await["id"], last.as_str());
    }
    assert_eq!(vms[2].connect().await.refresh["events"].as_array().unwrap().len(), 1, "the alert alone");

    // Who joins later, on any VM, gets both.
    let mut late = Client::connect(vms[2].port, "/ws?channels=news,other").await;
    assert_eq!(late.connected["channels"], json!(["news", "other"]));
    let refresh = late.expect("refresh-store").await;
    let ids: Vec<_> = refresh["events"].as_array().unwrap().iter().map(|event| &event["id"]).collect();
    assert_eq!((&refresh["channel"], ids), (&json!("news"), vec![&json!(first), &json!(second)]));
    assert_eq!(refresh["complete"], true);
    assert_eq!(late.expect("refresh-store").await["channel"], "other");
}

#[tokio::test]
async fn what_a_member_missed_comes_with_its_cursor() {
    let vm = Vm::alone(&[]).await;
    let mut sender = vm.connect().await;
    let mut member = vm.connect().await;
    let cursor = subscribe(&mut member, "c").await["cursor"].as_str().unwrap().to_owned();
    let id = broadcast(&mut sender, "c", json!("missed")).await;
    let mut back = Client::connect(vm.port, &format!("/ws?channels=c&since={cursor}")).await;
    let refresh = back.expect("refresh-store").await;
    assert_eq!((&refresh["events"][0]["id"], &refresh["complete"]), (&json!(id), &json!(true)));

    let mut other = vm.connect().await;
    other.send(json!({"type": "subscribe", "channel": "c", "since": cursor})).await;
    assert_eq!(other.expect("refresh-store").await["events"][0]["id"], id.as_str());
    other.send(json!({"type": "subscribe", "channel": "c", "since": "nonsense", "id": "7"})).await;
    let refresh = other.expect("refresh-store").await;
    assert_eq!((&refresh["complete"], &refresh["reason"]), (&json!(false), &json!("too_old")));
    let error = other.next().await;
    assert_eq!((&error["code"], &error["id"]), (&json!("invalid_field"), &json!("7")));
}

#[tokio::test]
async fn what_may_not_be_joined_is_told() {
    let vm = Vm::alone(&[("MAX_CHANNELS", "2")]).await;
    let mut client = Client::connect(vm.port, "/ws?channels=a,b%20c,user:ann,a,b,c").await;
    assert_eq!(client.connected["channels"], json!(["a", "b"]), "two are the most");
    let errors = client.settle().await;
    let codes: Vec<_> = errors.iter().filter_map(|error| error["code"].as_str()).collect();
    assert_eq!(codes, ["invalid_field", "forbidden"], "and no more errors than channels");
    for (message, code) in [
        (json!({"type": "subscribe", "channel": "c", "id": "1"}), "forbidden"),
        (json!({"type": "subscribe", "channel": "user:ann", "id": "1"}), "forbidden"),
        (json!({"type": "subscribe", "channel": "x".repeat(129), "id": "1"}), "invalid_field"),
        (json!({"type": "subscribe", "id": "1"}), "invalid_field"),
        (json!({"type": "unsubscribe", "channel": "elsewhere", "id": "1"}), "not_found"),
        (json!({"type": "broadcast", "channel": "user:ann", "id": "1"}), "forbidden"),
        (json!({"type": "broadcast", "channel": "", "id": "1"}), "invalid_field"),
    ] {
        client.send(message.clone()).await;
        let error = client.next().await;
        assert_eq!((&error["code"], &error["id"]), (&json!(code), &json!("1")), "{message}: {error}");
    }
    // A place that is given back can be taken.
    client.send(json!({"type": "unsubscribe", "channel": "a"})).await;
    subscribe(&mut client, "c").await;
}
