//! The documents of the interface are held to the code: what a real VM answers and says is what they
//! tell, without a status, a field or a frame more.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::backend::{Backend, says};
use crate::support::client::{self, Client};
use crate::support::document::Document;
use crate::support::http::{Answer, HANDSHAKE, get, knock, request};
use crate::support::vm::Vm;

const KEY: &str = "a-key-for-the-tests-of-the-documents";

async fn ask(vm: &Vm, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    request(vm.port, method, path, headers, body).await.unwrap()
}

#[tokio::test]
async fn every_route_answers_as_documented() {
    let vm = Vm::alone(&[("API_KEY", KEY), ("MAX_CONNECTIONS_PER_ADDRESS", "1")]).await;
    let openapi = Document::of(&vm, "/openapi.json").await;
    for (route, operations) in openapi.0["paths"].as_object().unwrap() {
        let path = route.replace("{channel}", "a/b:c").replace("{file}", "client.d.ts");
        let path = path.replace("{clientId}", "nobody");
        for method in ["GET", "POST", "DELETE"] {
            if operations.get(method.to_lowercase()).is_some() {
                let answer = ask(&vm, method, &path, &[], "").await;
                openapi.check_answer(method, route, &answer);
            } else {
                assert_eq!(ask(&vm, method, &path, &[], "").await.status, 405, "{method} {route}");
            }
        }
        if path.ends_with(".json") || path == "/" {
            let etag = get(vm.port, &path).await.header("etag").to_owned();
            let same = ask(&vm, "GET", &path, &[("if-none-match", &etag)], "").await;
            assert_eq!(same.status, 304, "{route}");
            openapi.check_answer("GET", route, &same);
        }
    }
    openapi.check_answer("GET", "/static/{file}", &get(vm.port, "/static/none.js").await);
}

#[tokio::test]
async fn the_upgrade_and_a_vm_that_is_not_ready_answer_as_documented() {
    let vm = Vm::alone(&[("MAX_CONNECTIONS_PER_ADDRESS", "1")]).await;
    let openapi = Document::of(&vm, "/openapi.json").await;
    let elsewhere: Vec<_> = HANDSHAKE.into_iter().chain([("origin", "https://elsewhere.example")]).collect();
    let open = vm.connect().await;
    for (headers, status) in [(&HANDSHAKE[1..], 400), (&elsewhere, 403), (&HANDSHAKE, 429)] {
        let answer = ask(&vm, "GET", "/ws", headers, "").await;
        assert_eq!(answer.status, status);
        openapi.check_answer("GET", "/ws", &answer);
    }
    drop(open);
    let backend = Backend::start(|_: &Value| says(418, "")).await;
    let asking = Vm::alone(&[("CONNECT_URL", &backend.url())]).await;
    let answer = knock(&asking, "/ws", &[]).await;
    assert_eq!(answer.status, 418);
    openapi.check_answer("GET", "/ws", &answer);
    // Nobody listens there.
    let starting = Vm::spawn_on("127.0.0.1:1", "ams", &[]).await;
    for (path, headers) in [("/ws", &HANDSHAKE[..]), ("/health", &[]), ("/_ah/health", &[])] {
        let answer = ask(&starting, "GET", path, headers, "").await;
        assert_eq!(answer.status, 503);
        openapi.check_answer("GET", path, &answer);
    }
    openapi.check_answer("GET", "/status", &get(starting.port, "/status").await);
}

#[tokio::test]
async fn the_backend_s_routes_answer_as_documented() {
    let vm = Vm::alone(&[("API_KEY", KEY)]).await;
    let without = Vm::alone(&[]).await;
    let openapi = Document::of(&vm, "/openapi.json").await;
    let bearer = format!("Bearer {KEY}");
    let good = [("authorization", bearer.as_str()), ("idempotency-key", "7")];
    let wrong = [("authorization", "Bearer of no key")];
    let client = vm.connect().await;
    let here = format!("/connections/{}", client.id());
    let gone = format!("/connections/{}{}", "0".repeat(32), &client.id()[32..]);
    let large = json!({"type": "change", "data": "x".repeat(20_000)}).to_string();
    let event = r#"{"type":"change","data":{"environmentId":"42"}}"#;
    let connection = "/connections/{clientId}";
    for (method, route, path, body, status) in [
        ("POST", "/alerts", "/alerts", r#"{"place":"Roswell"}"#, 202),
        ("POST", "/alerts", "/alerts", "", 202),
        ("POST", "/alerts", "/alerts", "{", 400),
        ("POST", "/alerts", "/alerts", r#"{"place":7}"#, 400),
        ("POST", "/alerts", "/alerts", &large, 413),
        ("POST", "/channels/{channel}", "/channels/environment:42", event, 202),
        ("POST", "/channels/{channel}", "/channels/a%20b", event, 400),
        ("POST", "/channels/{channel}", "/channels/a", "{}", 400),
        ("POST", "/channels/{channel}", "/channels/a", &large, 413),
        ("POST", connection, &here, "[1]", 200),
        ("POST", connection, &here, "[", 400),
        ("POST", connection, &here, &large, 413),
        ("POST", connection, &gone, "1", 410),
        ("GET", connection, &here, "", 200),
        ("GET", connection, &gone, "", 410),
        ("GET", connection, "/connections/nobody", "", 400),
        ("DELETE", connection, &gone, "", 410),
        ("DELETE", connection, &here, "", 204),
    ] {
        for (vm, headers, status) in
            [(&vm, &good[..], status), (&vm, &wrong, 401), (&vm, &[], 401), (&without, &good, 403)]
        {
            let answer = ask(vm, method, path, headers, body).await;
            openapi.check_answer(method, route, &answer);
            assert_eq!(answer.status, status, "{method} {path} {body:.40}: {}", answer.text());
        }
    }
}

#[tokio::test]
async fn every_frame_is_as_documented() {
    let vm = Vm::alone(&[("API_KEY", KEY)]).await;
    let asyncapi = Document::of(&vm, "/asyncapi.json").await;
    let mut seen = BTreeSet::new();
    let mut sender = Client::connect(vm.port, "/ws?since=nonsense&channels=a,b%20c").await;
    let mut other = Client::connect(vm.port, "/ws?channels=a").await;
    for frame in [&sender.connected, &sender.refresh, &other.refresh] {
        seen.insert(asyncapi.check_frame(frame));
    }
    assert_eq!(sender.refresh["complete"], false);
    let landing = json!({"place": "Roswell", "lat": 33.4, "lon": -104.5, "note": "again", "more": 7});
    sender.send(json!({"type": "ping"})).await;
    for message in [
        json!({"type": "ping", "id": "1"}),
        json!({"type": "dance", "id": "2"}),
        json!({"type": "subscribe", "channel": "b"}),
        json!({"type": "alert", "id": "3", "data": landing}),
        json!({"type": "alert"}),
        json!({"type": "broadcast", "id": "4", "data": [1]}),
        json!({"type": "broadcast", "channel": "a", "data": null}),
        json!({"type": "direct", "targetId": other.id(), "data": {"x": 1}}),
    ] {
        sender.send(message).await;
    }
    let bearer = format!("Bearer {KEY}");
    let event = r#"{"type":"change","data":{"name":"A"}}"#;
    ask(&vm, "POST", "/channels/a", &[("authorization", &bearer)], event).await;
    sender.send(json!({"type": "alert", "id": "last"})).await;
    // Its confirmation comes last to the one, the alert itself to the other.
    for (client, end) in [(&mut sender, "ack"), (&mut other, "alert")] {
        loop {
            let frame = client::next(&mut client.socket).await;
            seen.insert(asyncapi.check_frame(&frame));
            if frame["type"] == end && frame["id"] == "last" {
                break;
            }
        }
    }
    let mut later = Client::connect(vm.port, "/ws?channels=a").await;
    for frame in [later.refresh.clone(), later.expect("refresh-store").await] {
        assert!(!frame["events"].as_array().unwrap().is_empty());
        asyncapi.check_frame(&frame);
    }
    seen.insert(asyncapi.check_frame(&sender.expect("receipt").await));
    let documented = asyncapi.messages("tell").into_iter().map(|(name, _)| name);
    assert_eq!(seen, documented.collect());
}

#[tokio::test]
async fn what_is_documented_to_be_accepted_is_and_nothing_else() {
    let vm = Vm::alone(&[]).await;
    let asyncapi = Document(get(vm.port, "/asyncapi.json").await.json());
    let schemas: Vec<_> = asyncapi.messages("hear").into_iter().map(|(_, schema)| schema).collect();
    let accepted = asyncapi.validator(&json!({"anyOf": schemas}));
    let mut client = vm.connect().await;
    let long = |length: usize| "x".repeat(length);
    let mut refused = 0;
    for message in [
        json!({"message": "ALIEN_LANDING", "timestamp": 1}),
        json!({"message": "HELLO"}),
        json!({"type": "alert", "unknown": 1}),
        json!({"type": "alert", "data": null}),
        json!({"type": "alert", "data": []}),
        json!({"type": "alert", "data": {"place": long(120), "note": long(500), "lat": -90, "lon": 180}}),
        json!({"type": "alert", "data": {"place": null}}),
        json!({"type": "alert", "data": {"place": long(121)}}),
        json!({"type": "alert", "data": {"note": long(501)}}),
        json!({"type": "alert", "data": {"lat": 90.1, "lon": 0}}),
        json!({"type": "alert", "data": {"lat": 0, "lon": -180.1}}),
        json!({"type": "alert", "id": long(64)}),
        json!({"type": "alert", "id": long(65)}),
        json!({"type": "alert", "id": ""}),
        json!({"type": "alert", "id": 7}),
        json!({"type": "broadcast"}),
        json!({"type": "broadcast", "channel": null, "data": "any"}),
        json!({"type": "broadcast", "channel": "a b"}),
        json!({"type": "subscribe", "channel": long(128), "since": null}),
        json!({"type": "subscribe", "channel": "A.b_c:d-e/f"}),
        json!({"type": "subscribe", "channel": long(129)}),
        json!({"type": "subscribe", "channel": ""}),
        json!({"type": "subscribe"}),
        json!({"type": "unsubscribe"}),
        json!({"type": "direct", "data": 1}),
        json!({"type": "ping"}),
        json!({"type": "dance"}),
        json!({"type": 1}),
        json!([]),
    ] {
        client.send(message.clone()).await;
        let answer = loop {
            let frame = client.next().await;
            if frame["type"] != "alert" {
                break frame;
            }
        };
        assert_eq!(answer["type"] != "error", accepted.is_valid(&message), "{message}: {answer}");
        refused += usize::from(answer["type"] == "error");
    }
    assert_eq!(refused, 18);
}

#[tokio::test]
async fn every_error_code_is_documented() {
    let vm = Vm::alone(&[]).await;
    let source = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/wire/mod.rs")).unwrap();
    let (_, codes) = source.split_once("pub enum ErrorCode {").unwrap();
    let codes = codes.split_once('}').unwrap().0.split(',').map(str::trim).filter(|code| !code.is_empty());
    let codes: Vec<_> = codes.map(snake_case).collect();
    assert!(codes.len() >= 7 && codes.contains(&"invalid_json".into()), "{codes:?}");
    for path in ["/openapi.json", "/asyncapi.json"] {
        let document = get(vm.port, path).await.json();
        let documented = document["components"]["schemas"]["ErrorCode"]["enum"].as_array().unwrap();
        for code in &codes {
            assert!(documented.contains(&json!(code)), "{code} in {path}");
        }
    }
}

fn snake_case(name: &str) -> String {
    let words = name.chars().flat_map(|c| c.is_uppercase().then_some('_').into_iter().chain([c]));
    words.collect::<String>().trim_start_matches('_').to_lowercase()
}
