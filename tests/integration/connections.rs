//! One connection, reached from any VM: every status, and that nobody else hears of it.

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::emulator::Emulator;
use crate::support::http::{self, API_KEY, Answer};
use crate::support::until;
use crate::support::vm::Vm;

const REGIONS: [&str; 3] = ["ams", "sin", "syd"];

/// Three VMs that know one another, and a backend's key.
async fn fleet(emulator: &Emulator, more: &[(&str, &str)]) -> Vec<Vm> {
    Vm::fleet(emulator, &REGIONS, &[&[("API_KEY", API_KEY)], more].concat()).await
}

async fn ask(vm: &Vm, method: &str, id: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    http::ask(vm.port, method, &format!("/connections/{id}"), headers, body).await
}

/// How many of the backend's requests to that VM have ended so.
async fn outcomes(vm: &Vm, outcome: &str) -> u64 {
    let name = format!("alien_alert_connection_asks_total{{outcome=\"{outcome}\"}}");
    http::figure(vm.port, &name).await.unwrap_or(0)
}

/// What each hears that the test has not looked at, up to a broadcast of the first.
async fn heard(clients: &mut [Client]) -> Vec<Vec<Value>> {
    let (first, others) = clients.split_first_mut().unwrap();
    first.send(json!({"type": "broadcast", "data": "last"})).await;
    let mut all = vec![Vec::new()];
    for client in others {
        let mut seen = Vec::new();
        loop {
            let message = client.next().await;
            if message["type"] == "broadcast" {
                break;
            }
            seen.push(message);
        }
        all.push(seen);
    }
    all[0] = first.settle().await;
    all[0].retain(|message| message["type"] != "ack");
    all
}

#[tokio::test]
async fn any_vm_reaches_a_connection_on_any_vm_and_nobody_else_hears() {
    let emulator = Emulator::start().await;
    let vms = fleet(&emulator, &[]).await;
    let mut clients = Vec::new();
    for (vm, channels) in vms.iter().zip(["", "job:7,b", ""]) {
        clients.push(Client::connect(vm.port, &format!("/ws?channels={channels}")).await);
    }
    clients[1].expect("refresh-store").await;
    clients[1].expect("refresh-store").await;
    let target = clients[1].id().to_owned();

    // From each VM, the connection's own too; the receipt comes back to the one that was asked.
    for (number, vm) in vms.iter().enumerate() {
        let data = json!({"from": vm.name, "any": [1, null, "ä"]});
        let id = format!("message-{number}");
        let answer = ask(vm, "POST", &target, &[("idempotency-key", &id)], &data.to_string()).await;
        assert_eq!((answer.status, answer.json()), (200, json!({"id": id})), "{}", vm.name);
        let direct = clients[1].next().await;
        let timestamp = direct["timestamp"].as_i64().unwrap();
        assert_eq!(direct, json!({"type": "direct", "id": id, "data": data, "timestamp": timestamp}));

        let answer = ask(vm, "GET", &target, &[], "").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let told = answer.json();
        let connected_at = told["connectedAt"].as_i64().unwrap();
        assert!((0..600_000).contains(&(timestamp - connected_at)), "{told}");
        let expected = json!({"clientId": target, "instance": "vm-sin", "region": "sin",
            "connectedAt": connected_at, "channels": ["job:7", "b"]});
        assert_eq!(told, expected);
    }

    // The same message again, through other VMs, is written once and answered each time.
    for vm in &vms {
        let answer = ask(vm, "POST", &target, &[("idempotency-key", "message-0")], "\"again\"").await;
        assert_eq!((answer.status, answer.json()), (200, json!({"id": "message-0"})));
    }
    // Some clients encode the id's @.
    let encoded = target.replace('@', "%40");
    let answer = ask(&vms[0], "POST", &encoded, &[], "1").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let direct = clients[1].next().await;
    assert_eq!((&direct["data"], &direct["id"]), (&json!(1), &answer.json()["id"]));
    assert_eq!(heard(&mut clients).await, [vec![], vec![], vec![]] as [Vec<Value>; 3]);

    // Closed from another VM: known to be gone then, by every VM.
    let answer = ask(&vms[2], "DELETE", &target, &[], "").await;
    assert_eq!((answer.status, answer.text()), (204, ""));
    assert_eq!(clients.remove(1).closed().await, Some((1008, "closed by the app".into())));
    for vm in &vms {
        until("the socket's end", async || {
            let answer = ask(vm, "GET", &target, &[], "").await;
            (answer.status != 200).then(|| answer.assert_refused(410, "not_found"))
        })
        .await;
        for method in ["POST", "DELETE"] {
            ask(vm, method, &target, &[], "1").await.assert_refused(410, "not_found");
        }
    }
    // Two messages through the first, and one of them again.
    assert_eq!(outcomes(&vms[0], "written").await, 3);
    assert_eq!(outcomes(&vms[2], "closed").await, 1);
    for vm in &vms {
        assert!(outcomes(vm, "described").await >= 1);
        assert!(outcomes(vm, "gone").await >= 3);
    }
}

#[tokio::test]
async fn a_client_s_direct_reaches_one_client_alone() {
    let emulator = Emulator::start().await;
    let vms = fleet(&emulator, &[]).await;
    let mut clients = Vec::new();
    for vm in [&vms[0], &vms[1], &vms[2], &vms[1]] {
        clients.push(vm.connect().await);
    }
    let (sender, target) = (clients[0].id().to_owned(), clients[1].id().to_owned());
    // From another VM, and to oneself.
    for to in [1, 0] {
        let target = clients[to].id().to_owned();
        let id = format!("to-{to}");
        let message = json!({"type": "direct", "targetId": target, "data": {"n": to}, "id": id});
        for _ in 0..2 {
            clients[0].send(message.clone()).await;
            let ack = clients[0].expect("ack").await;
            assert_eq!(ack, json!({"type": "ack", "id": id, "eventId": id}));
        }
        if to == 1 {
            let direct = clients[1].next().await;
            let timestamp = &direct["timestamp"];
            let expected = json!({"type": "direct", "id": id, "senderId": sender, "data": {"n": to},
                "timestamp": timestamp});
            assert_eq!(direct, expected);
        }
    }
    // Written before the broadcast that this waits for; "to oneself" was passed over by `expect` or not.
    let mut rest = heard(&mut clients).await;
    rest[0].retain(|message| message["id"] != "to-0");
    assert_eq!(rest, vec![Vec::<Value>::new(); 4]);

    // To one that is gone, of a VM that is here, that is this one, that is none.
    let gone = vms[0].connect().await;
    let gone_id = gone.id().to_owned();
    gone.closed_by_us().await;
    until("the socket's end", async || {
        (ask(&vms[0], "GET", &gone_id, &[], "").await.status == 410).then_some(())
    })
    .await;
    let elsewhere = target.replace("vm-sin", "vm-nowhere");
    for (id, code) in [(gone_id.as_str(), "not_found"), (&elsewhere, "not_found"), ("me", "invalid_field")] {
        clients[0].send(json!({"type": "direct", "targetId": id, "id": "x"})).await;
        let error = clients[0].expect("error").await;
        assert_eq!((&error["code"], &error["id"]), (&json!(code), &json!("x")), "{id}");
    }
}

#[tokio::test]
async fn a_vm_that_does_not_answer_is_told_so_and_its_connections_are_gone_when_it_is() {
    let emulator = Emulator::start().await;
    let mut vms = fleet(&emulator, &[("BEACON_INTERVAL", "1")]).await;
    let client = vms[1].connect().await;
    let id = client.id().to_owned();
    vms[1].end("KILL").await;
    let begun = std::time::Instant::now();
    ask(&vms[0], "POST", &id, &[], "1").await.assert_refused(504, "unavailable");
    let took = begun.elapsed().as_secs_f64();
    assert!((1.9..4.0).contains(&took), "after {took} s");
    assert_eq!(outcomes(&vms[0], "timeout").await, 1);
    for vm in [&vms[0], &vms[2]] {
        until("the fleet to forget it", async || {
            let answer = ask(vm, "POST", &id, &[], "1").await;
            (answer.status != 504).then(|| answer.assert_refused(410, "not_found"))
        })
        .await;
    }
}

#[tokio::test]
async fn what_is_not_written_yet_is_not_said_to_be() {
    let emulator = Emulator::start().await;
    let vms = fleet(&emulator, &[("MAX_MESSAGE_BYTES", "1048576"), ("OUTBOX_BYTES", "67108864")]).await;
    let mut reader = vms[0].connect().await;
    let id = reader.id().to_owned();
    // More than the kernel takes from the VM of a client that does not read.
    let large = format!("\"{}\"", "x".repeat(1_000_000));
    let mut number = 0;
    let last = loop {
        number += 1;
        assert!(number < 60, "all of it was taken");
        ask(&vms[1], "POST", &id, &[], &large).await;
        let last = number.to_string();
        let answer = ask(&vms[1], "POST", &id, &[("idempotency-key", &last)], "\"small\"").await;
        if answer.status != 200 {
            answer.assert_refused(504, "unavailable");
            break last;
        }
    };
    // Read at last, it is written, once; asked again it is said to be.
    while reader.next().await["id"] != last.as_str() {}
    let answer = ask(&vms[2], "POST", &id, &[("idempotency-key", &last)], "\"small\"").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(reader.settle().await, Vec::<Value>::new());
}
