//! What a backend tells everybody, a channel or a user.

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::support::client::Client;
use crate::support::emulator::Emulator;
use crate::support::http::{API_KEY, ask};
use crate::support::vm::Vm;
use crate::support::within;

#[tokio::test]
async fn a_changed_configuration_reaches_each_application_of_its_environment_and_no_other() {
    let emulator = Emulator::start().await;
    let host = emulator.host();
    let mut vms = Vec::new();
    for region in ["ams", "sin", "lax"] {
        vms.push(Vm::spawn_on(&host, region, &[("API_KEY", API_KEY)]).await);
    }
    let mut applications = Vec::new();
    let mut others = Vec::new();
    for vm in &vms {
        vm.ready().await;
        let mut application = Client::connect(vm.port, "/ws?channels=environment:42").await;
        application.expect("refresh-store").await;
        applications.push(application);
        let mut other = Client::connect(vm.port, "/ws?channels=environment:43").await;
        other.expect("refresh-store").await;
        others.push(other);
    }
    let data = json!({"environmentId": "42", "name": "API_URL", "value": "…", "isSecret": false});
    let body = json!({"type": "change", "data": data}).to_string();
    // The name as it is, and as a URL's encoding has it.
    for (path, vm) in [("/channels/environment:42", &vms[0]), ("/channels/environment%3A42", &vms[1])] {
        let answer = ask(vm.port, "POST", path, &[], &body).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
        let id = answer.json()["id"].clone();
        for application in &mut applications {
            let change = application.next().await;
            let expected = json!({"type": "change", "id": id, "channel": "environment:42", "data": data,
                "timestamp": change["timestamp"], "cursor": change["cursor"]});
            assert_eq!(change, expected);
        }
    }
    let alert = ask(vms[2].port, "POST", "/alerts", &[], "").await;
    assert_eq!(alert.status, 202);
    for other in &mut others {
        let next = other.next().await;
        assert_eq!(
            (&next["type"], &next["id"]),
            (&json!("alert"), &alert.json()["id"]),
            "the first it hears"
        );
    }
    // An application that was away gets what changed.
    let mut away = Client::connect(vms[2].port, "/ws?channels=environment:42").await;
    assert_eq!(away.expect("refresh-store").await["events"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn the_same_key_of_idempotency_is_the_same_event() {
    let vm = Vm::alone(&[("API_KEY", API_KEY)]).await;
    let mut client = vm.connect().await;
    for _ in 0..2 {
        let headers = [("idempotency-key", "once")];
        let answer = ask(vm.port, "POST", "/alerts", &headers, r#"{"place":"Roswell"}"#).await;
        assert_eq!((answer.status, answer.json()), (202, json!({"id": "once"})));
    }
    let alert = client.next().await;
    assert_eq!((&alert["id"], &alert["data"]["place"]), (&json!("once"), &json!("Roswell")));
    assert_eq!(client.settle().await, Vec::<Value>::new(), "and not again");
}

#[tokio::test]
async fn a_body_may_come_in_pieces_but_not_too_slowly() {
    let vm = Vm::alone(&[("API_KEY", API_KEY)]).await;
    let client = vm.connect().await;
    let connection = format!("/connections/{}", client.id());
    let event = r#"{"type":"change","data":1}"#;
    let long = "x".repeat(20_000);
    let in_pieces = [("transfer-encoding", "chunked")];
    let mut stuck = Vec::new();
    for (path, body, status) in
        [("/alerts", "{}", 202), ("/channels/a", event, 202), (connection.as_str(), "1", 200)]
    {
        assert_eq!(ask(vm.port, "POST", path, &in_pieces, body).await.status, status, "{path}");
        assert_eq!(ask(vm.port, "POST", path, &in_pieces, &long).await.status, 413, "{path}");
        let mut stream = TcpStream::connect(("127.0.0.1", vm.port)).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: vm\r\nAuthorization: Bearer {API_KEY}\r\nContent-Length: 9\r\n\r\n{{"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stuck.push(stream);
    }
    for stream in stuck {
        let answer = within("answer", BufReader::new(stream).lines().next_line()).await.unwrap();
        assert_eq!(answer.as_deref(), Some("HTTP/1.1 408 Request Timeout"));
    }
}
