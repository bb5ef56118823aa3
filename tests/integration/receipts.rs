//! Where an alert was heard, told to its sender alone, by real VMs with the emulator between them.

use std::collections::HashMap;
use std::time::Instant;

use serde_json::{Value, json};

use crate::support::client::{self, Client};
use crate::support::emulator::Emulator;
use crate::support::http::{self, API_KEY};
use crate::support::until;
use crate::support::vm::Vm;

/// Sockets of each VM, the sender's own the first of them.
const SOCKETS: [(&str, usize); 3] = [("ams", 2), ("sin", 3), ("syd", 0)];

/// Three VMs that know one another, and their clients.
async fn fleet(emulator: &Emulator) -> (Vec<Vm>, Vec<Client>) {
    let vms = Vm::fleet(emulator, &SOCKETS.map(|(region, _)| region), &[("API_KEY", API_KEY)]).await;
    let mut clients = Vec::new();
    for (vm, (_, sockets)) in vms.iter().zip(SOCKETS) {
        for _ in 0..sockets {
            clients.push(vm.connect().await);
        }
    }
    emulator.subscribe("watch", "ALIEN_NOTIFICATIONS").await;
    (vms, clients)
}

/// Reads until each of these alerts has been heard on three VMs; what was told of each on the way.
async fn heard_by_all(sender: &mut Client, ids: &[String]) -> HashMap<String, Vec<(u64, u64)>> {
    let mut told: HashMap<String, Vec<_>> = HashMap::new();
    let mut left = ids.len();
    while left > 0 {
        let receipt = sender.expect("receipt").await;
        let number = |name| receipt[name].as_u64().unwrap();
        let figures = (number("instances"), number("sockets"));
        left -= usize::from(figures.0 == 3);
        told.entry(receipt["eventId"].as_str().unwrap().into()).or_default().push(figures);
    }
    assert_eq!(told.len(), ids.len());
    for id in ids {
        let figures = &told[id];
        assert_eq!(figures.last(), Some(&(3, 5)), "{id}: {figures:?}");
        assert!(figures.is_sorted_by(|before, after| before.0 < after.0), "{id}: {figures:?}");
    }
    told
}

/// Fails where one has heard of a receipt before the answer to a ping sent now.
async fn assert_no_receipts(clients: &mut [Client]) {
    for client in clients {
        client.send(json!({"type": "ping", "id": "last"})).await;
        let mut alerts = 0;
        loop {
            let message = client::next(&mut client.socket).await;
            assert_ne!(message["type"], "receipt", "{message}");
            alerts += usize::from(message["type"] == "alert");
            if message["type"] == "pong" {
                break;
            }
        }
        assert!(alerts > 0, "it has not even heard an alert");
    }
}

/// The first so many receipts on the topic, and those with them: each message's VM, and the alerts that it
/// names.
async fn on_the_topic(emulator: &Emulator, receipts: usize) -> Vec<(String, Vec<Value>)> {
    let mut all = Vec::new();
    let mut found = 0;
    until("the receipts on the topic", async || {
        for (_, mut message) in emulator.pull("watch").await {
            if let Value::Object(mut told) = message["receipts"].take() {
                let Value::Array(receipts) = told["receipts"].take() else { panic!("{told:?}") };
                found += receipts.len();
                let ids = receipts.into_iter().map(|mut receipt| receipt["eventId"].take()).collect();
                all.push((told["instance"].as_str().unwrap().to_owned(), ids));
            }
        }
        (found >= receipts).then_some(())
    })
    .await;
    all
}

#[tokio::test]
async fn the_sender_hears_of_every_vm_and_socket_and_nobody_else_does() {
    let emulator = Emulator::start().await;
    let (vms, mut clients) = fleet(&emulator).await;
    // Made by a backend, for which no socket waits.
    let bearer = format!("Bearer {API_KEY}");
    let headers = [("authorization", bearer.as_str()), ("idempotency-key", "by-http")];
    let answer = http::request(vms[1].port, "POST", "/alerts", &headers, "{}").await.unwrap();
    assert_eq!(answer.status, 202, "{}", answer.text());
    while clients[0].expect("alert").await["id"] != "by-http" {}

    let id = clients[0].alert(json!({"place": "Roswell"})).await;
    heard_by_all(&mut clients[0], std::slice::from_ref(&id)).await;
    assert_no_receipts(&mut clients[1..]).await;
    // Sent again it is the same event, heard before; who sends another hears of that one alone.
    clients[2].send(json!({"type": "alert", "id": id})).await;
    clients[2].expect("ack").await;
    let other = clients[2].alert(json!({})).await;
    let told = heard_by_all(&mut clients[2], std::slice::from_ref(&other)).await;
    assert!(!told.contains_key(&id));

    let mut on_the_topic = on_the_topic(&emulator, 4).await;
    on_the_topic.sort_by_key(|(instance, ids)| (instance.clone(), ids[0] == other.as_str()));
    let expected = [("vm-ams", &other), ("vm-sin", &id), ("vm-syd", &id), ("vm-syd", &other)];
    assert_eq!(on_the_topic, expected.map(|(instance, id)| (instance.to_owned(), vec![json!(id)])));
}

#[tokio::test]
async fn a_hundred_alerts_at_once_are_answered_by_few_messages() {
    let emulator = Emulator::start().await;
    let (vms, mut clients) = fleet(&emulator).await;
    let ids: Vec<_> = (0..100).map(|number| format!("alert-{number}")).collect();
    let begun = Instant::now();
    for id in &ids {
        clients[0].send(json!({"type": "alert", "id": id})).await;
    }
    heard_by_all(&mut clients[0], &ids).await;
    // Ten a second, and as many ahead.
    let most = 11 + usize::try_from(begun.elapsed().as_millis() / 100).unwrap();
    let on_the_topic = on_the_topic(&emulator, 200).await;
    for (vm, answers) in vms.iter().zip([false, true, true]) {
        let sent = usize::try_from(vm.figure("alien_alert_receipts_sent_total").await).unwrap();
        let own = format!("vm-{}", vm.name);
        let seen = on_the_topic.iter().filter(|(instance, _)| *instance == own).count();
        assert_eq!(seen, sent, "{own}");
        println!("{sent} messages of {own}, at most {most}");
        assert!(if answers { (1..=most).contains(&sent) } else { sent == 0 });
    }
    let mut named: Vec<_> = on_the_topic
        .iter()
        .flat_map(|(instance, ids)| ids.iter().map(move |id| (instance, id.as_str())))
        .collect();
    named.sort();
    named.dedup();
    assert_eq!(named.len(), 200, "each alert by each of the others");
    assert_no_receipts(&mut clients[1..]).await;
}
