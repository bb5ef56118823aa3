//! Every status, close code and error code that the wire has, one test a row, each on a real VM. What
//! leads to some of them is a story of its own, told elsewhere; here it is only got. What HTTP answers is
//! held to the OpenAPI document as well.

use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::client::{Client, Raw, open};
use crate::support::document::Document;
use crate::support::emulator::Emulator;
use crate::support::http::{self, API_KEY, Answer, HANDSHAKE};
use crate::support::proxy::{Mode, Proxy};
use crate::support::token::{SECRET, at, claims, token};
use crate::support::until;
use crate::support::vm::Vm;

// GET /ws

#[tokio::test]
async fn ws_101_a_handshake() {
    let vm = Vm::alone(&[]).await;
    let answer = knock(&vm, "/ws", &[]).await;
    assert_eq!(answer.status, 101);
    assert_eq!(answer.header("sec-websocket-accept"), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "the RFC's own");
}

#[tokio::test]
async fn ws_400_no_handshake() {
    let vm = Vm::alone(&[]).await;
    let answer = get(&vm, "/ws").await;
    answer.assert_refused(400, "invalid_field");
    assert!(answer.text().contains("Upgrade"), "{}", answer.text());
}

#[tokio::test]
async fn ws_401_no_good_token() {
    let vm = Vm::alone(&[("AUTH_SECRET", SECRET)]).await;
    for path in ["/ws", "/ws?token=nonsense"] {
        let answer = knock(&vm, path, &[]).await;
        answer.assert_refused(401, "forbidden");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
}

#[tokio::test]
async fn ws_403_another_site_s_script() {
    let vm = Vm::alone(&[("ALLOWED_ORIGINS", "https://friend.example")]).await;
    let host = format!("http://127.0.0.1:{}", vm.port);
    for origin in ["https://friend.example", &host] {
        assert_eq!(knock(&vm, "/ws", &[("origin", origin)]).await.status, 101, "{origin}");
    }
    for origin in ["https://foe.example", "null"] {
        knock(&vm, "/ws", &[("origin", origin)]).await.assert_refused(403, "forbidden");
    }
}

#[tokio::test]
async fn ws_429_too_many_of_one_address() {
    let vm = Vm::alone(&[("MAX_CONNECTIONS_PER_ADDRESS", "1")]).await;
    let _open = vm.connect().await;
    assert_to_come_again(&knock(&vm, "/ws", &[]).await, 429, "rate_limited", "30");
}

#[tokio::test]
async fn ws_429_too_fast_an_address() {
    let vm = Vm::alone(&[("UPGRADE_RATE", "1"), ("UPGRADE_BURST", "2")]).await;
    let (_a, _b) = (vm.connect().await, vm.connect().await);
    assert_to_come_again(&knock(&vm, "/ws", &[]).await, 429, "rate_limited", "1");
    assert_counted(&vm, r#"upgrades_rejected_total{reason="address_rate"} 1"#).await;
}

#[tokio::test]
async fn ws_503_full() {
    let vm = Vm::alone(&[("MAX_CONNECTIONS", "2")]).await;
    let (_a, b) = (vm.connect().await, vm.connect().await);
    assert_to_come_again(&knock(&vm, "/ws", &[]).await, 503, "unavailable", "5");
    b.closed_by_us().await;
    until("a free place", async || open(vm.port, "/ws").await.ok()).await;
}

#[tokio::test]
async fn ws_503_starting() {
    let vm = starting().await;
    assert_to_come_again(&knock(&vm, "/ws", &[]).await, 503, "unavailable", "1");
}

#[tokio::test]
async fn ws_503_leaving() {
    let Leaving { vm, .. } = &Leaving::start().await;
    assert_to_come_again(&knock(vm, "/ws", &[]).await, 503, "unavailable", "1");
}

// GET /, /static/*, /health, /_ah/health, /status, /metrics, and what is none of them

#[tokio::test]
async fn page_200() {
    let vm = Vm::alone(&[]).await;
    for path in ["/", "/static/client.js"] {
        assert_eq!(get(&vm, path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn page_304_known_already() {
    let vm = Vm::alone(&[]).await;
    for path in ["/", "/static/client.js"] {
        let etag = get(&vm, path).await.header("etag").to_owned();
        let again = ask(&vm, "GET", path, &[("if-none-match", &etag)], "").await;
        assert_eq!((again.status, again.body.len(), again.header("etag")), (304, 0, &*etag), "{path}");
        let other = ask(&vm, "GET", path, &[("if-none-match", "\"other\"")], "").await;
        assert_eq!(other.status, 200, "{path}");
    }
}

#[tokio::test]
async fn page_404_not_there() {
    let vm = Vm::alone(&[]).await;
    for path in ["/nowhere", "/static/", "/static/../Cargo.toml", "/static/%2e%2e/Cargo.toml", "/index.html"]
    {
        http::get(vm.port, path).await.assert_refused(404, "not_found");
    }
}

#[tokio::test]
async fn health_200_ready() {
    let vm = Vm::alone(&[]).await;
    for path in ["/health", "/_ah/health"] {
        let health = get(&vm, path).await;
        assert_eq!((health.status, health.text()), (200, "OK"), "{path}");
    }
}

#[tokio::test]
async fn health_503_starting() {
    assert_unwell(&starting().await, "starting").await;
}

#[tokio::test]
async fn health_503_leaving() {
    assert_unwell(&Leaving::start().await.vm, "leaving").await;
}

#[tokio::test]
async fn status_200_at_any_time() {
    for vm in [Vm::alone(&[]).await, starting().await] {
        assert_eq!(get(&vm, "/status").await.status, 200);
    }
}

#[tokio::test]
async fn metrics_200_at_any_time() {
    for vm in [Vm::alone(&[]).await, starting().await] {
        assert_eq!(get(&vm, "/metrics").await.status, 200);
    }
}

// The backend's routes

#[tokio::test]
async fn backend_401_no_good_key() {
    let vm = Vm::alone(&[("API_KEY", API_KEY)]).await;
    for (method, path) in backend_s_routes(&nobody()) {
        for key in ["", "Bearer of-another-key-altogether", API_KEY] {
            let answer = ask(&vm, method, &path, &[("authorization", key)], "{}").await;
            answer.assert_refused(401, "forbidden");
            assert_eq!(answer.header("www-authenticate"), "Bearer");
        }
    }
}

#[tokio::test]
async fn backend_403_no_key_is_configured() {
    let vm = Vm::alone(&[]).await;
    for (method, path) in backend_s_routes(&nobody()) {
        let answer = ask(&vm, method, &path, &[], "{}").await;
        answer.assert_refused(403, "forbidden");
        assert!(answer.text().contains("API_KEY"), "{}", answer.text());
    }
}

#[tokio::test]
async fn backend_429_too_fast_a_key() {
    let vm = Vm::alone(&[("API_KEY", API_KEY), ("API_RATE", "1"), ("API_BURST", "2")]).await;
    for _ in 0..2 {
        assert_eq!(ask(&vm, "POST", "/alerts", &[], "{}").await.status, 202);
    }
    for (method, path) in backend_s_routes(&nobody()) {
        assert_to_come_again(&ask(&vm, method, &path, &[], "{}").await, 429, "rate_limited", "1");
    }
    assert_counted(&vm, r#"api_rejected_total{reason="key_rate"} 5"#).await;
}

#[tokio::test]
async fn backend_429_who_guesses_keys() {
    let vm = Vm::alone(&[("API_KEY", API_KEY)]).await;
    let guess = [("authorization", "Bearer of-another-key-altogether")];
    for _ in 0..21 {
        ask(&vm, "POST", "/alerts", &guess, "{}").await.assert_refused(401, "forbidden");
    }
    for (method, path) in backend_s_routes(&nobody()) {
        let refused = ask(&vm, method, &path, &[], "{}").await;
        refused.assert_refused(429, "rate_limited");
        assert!((1..=10).contains(&refused.header("retry-after").parse::<u8>().unwrap()));
    }
    assert_counted(&vm, r#"api_rejected_total{reason="address_guesses"} 5"#).await;
}

#[tokio::test]
async fn backend_503_leaving() {
    let Leaving { vm, .. } = &Leaving::start().await;
    for (method, path) in backend_s_routes(&nobody()) {
        let body = r#"{"type":"change"}"#;
        assert_to_come_again(&ask(vm, method, &path, &[], body).await, 503, "unavailable", "2");
    }
}

#[tokio::test]
async fn backend_400_not_json() {
    let vm = Vm::alone(&[("API_KEY", API_KEY)]).await;
    for (_, path) in posts() {
        ask(&vm, "POST", &path, &[], r#"{"a":"#).await.assert_refused(400, "invalid_json");
    }
    let path = format!("/connections/{}", nobody());
    ask(&vm, "POST", &path, &[], "").await.assert_refused(400, "invalid_json");
}

#[tokio::test]
async fn backend_400_no_id() {
    let vm = Vm::alone(&[("API_KEY", API_KEY)]).await;
    for (_, path) in posts() {
        for key in ["", &"x".repeat(65)] {
            let answer = ask(&vm, "POST", &path, &[("idempotency-key", key)], r#"{"type":"t"}"#).await;
            answer.assert_refused(400, "invalid_field");
        }
    }
}

#[tokio::test]
async fn backend_405_another_method() {
    let vm = Vm::alone(&[("API_KEY", API_KEY)]).await;
    for (_, path) in backend_s_routes(&nobody()) {
        http::ask(vm.port, "PUT", &path, &[], "{}").await.assert_refused(405, "not_found");
    }
    for path in ["/", "/health", "/status", "/metrics", "/ws"] {
        http::ask(vm.port, "DELETE", path, &[], "").await.assert_refused(405, "not_found");
    }
}

#[tokio::test]
async fn backend_413_too_large_a_body() {
    let vm = Vm::alone(&[("API_KEY", API_KEY), ("MAX_MESSAGE_BYTES", "1024")]).await;
    for (_, path) in posts() {
        ask(&vm, "POST", &path, &[], &"1".repeat(1025)).await.assert_refused(413, "too_large");
    }
    let path = format!("/connections/{}", nobody());
    ask(&vm, "POST", &path, &[], &"1".repeat(1024)).await.assert_refused(410, "not_found");
}

#[tokio::test]
async fn alerts_202_on_the_bus() {
    let vm = Vm::alone(&[("API_KEY", API_KEY)]).await;
    let answer = ask(&vm, "POST", "/alerts", &[("idempotency-key", "7")], "").await;
    assert_eq!((answer.status, answer.json()), (202, json!({"id": "7"})));
}

#[tokio::test]
async fn alerts_400_no_landing() {
    let vm = Vm::alone(&[("API_KEY", API_KEY)]).await;
    let answer = ask(&vm, "POST", "/alerts", &[], r#"{"lat":91,"lon":0}"#).await;
    answer.assert_refused(400, "invalid_field");
}

#[tokio::test]
async fn channels_202_on_the_bus() {
    let vm = Vm::alone(&[("API_KEY", API_KEY)]).await;
    let answer = ask(&vm, "POST", "/channels/environment:42", &[], r#"{"type":"change"}"#).await;
    assert_eq!(answer.status, 202);
    assert!(answer.json()["id"].is_string());
}

#[tokio::test]
async fn channels_400_no_channel_and_no_type() {
    let vm = Vm::alone(&[("API_KEY", API_KEY)]).await;
    for (path, body) in [
        ("/channels/a%20b", r#"{"type":"t"}"#),
        ("/channels/", r#"{"type":"t"}"#),
        ("/channels/c", "{}"),
        ("/channels/c", r#"{"type":"alert"}"#),
    ] {
        ask(&vm, "POST", path, &[], body).await.assert_refused(400, "invalid_field");
    }
}

#[tokio::test]
async fn connections_200_written_and_described() {
    let vm = Vm::alone(&[("API_KEY", API_KEY)]).await;
    let client = vm.connect().await;
    let path = format!("/connections/{}", client.id());
    for method in ["POST", "GET"] {
        assert_eq!(ask(&vm, method, &path, &[], "1").await.status, 200, "{method}");
    }
}

#[tokio::test]
async fn connections_204_closed() {
    let vm = Vm::alone(&[("API_KEY", API_KEY)]).await;
    let client = vm.connect().await;
    let answer = ask(&vm, "DELETE", &format!("/connections/{}", client.id()), &[], "").await;
    assert_eq!((answer.status, answer.text()), (204, ""));
}

#[tokio::test]
async fn connections_400_no_client_id() {
    let vm = Vm::alone(&[("API_KEY", API_KEY)]).await;
    for id in ["me", "%ff", "0@vm"] {
        let answer = ask(&vm, "GET", &format!("/connections/{id}"), &[], "").await;
        answer.assert_refused(400, "invalid_field");
    }
}

#[tokio::test]
async fn connections_410_gone() {
    let vm = Vm::alone(&[("API_KEY", API_KEY)]).await;
    let client = vm.connect().await;
    let gone = client.id().to_owned();
    client.closed_by_us().await;
    let elsewhere = nobody();
    for id in [&gone, &elsewhere] {
        until("the socket's end", async || {
            let answer = ask(&vm, "GET", &format!("/connections/{id}"), &[], "").await;
            (answer.status != 200).then_some(())
        })
        .await;
        for method in ["POST", "GET", "DELETE"] {
            let begun = Instant::now();
            let answer = ask(&vm, method, &format!("/connections/{id}"), &[], "1").await;
            answer.assert_refused(410, "not_found");
            assert!(begun.elapsed() < Duration::from_secs(1), "at once");
        }
    }
}

#[tokio::test]
async fn connections_504_its_vm_does_not_answer() {
    let emulator = Emulator::start().await;
    let mut vms = Vm::fleet(&emulator, &["ams", "sin", "syd"], &[("API_KEY", API_KEY)]).await;
    let client = vms[1].connect().await;
    vms[1].end("KILL").await;
    for method in ["POST", "GET", "DELETE"] {
        let answer = ask(&vms[0], method, &format!("/connections/{}", client.id()), &[], "1").await;
        answer.assert_refused(504, "unavailable");
    }
}

// Close codes

#[tokio::test]
async fn close_1001_idle() {
    let vm = Vm::alone(&[("PING_INTERVAL", "1")]).await;
    let mut silent = Raw::connect(vm.port).await;
    let begun = Instant::now();
    let (mut sender, mut receiver) = vm.connect().await.socket.split();
    // Reading is what answers pings.
    let reading = tokio::spawn(async move { while let Some(Ok(_)) = receiver.next().await {} });
    assert_eq!(silent.closed().await, Some(1001));
    let took = begun.elapsed().as_secs_f64();
    assert!((1.9..10.0).contains(&took), "after {took} s");
    // Twice as long, and still there.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!reading.is_finished());
    sender.send(Message::text(r#"{"type":"ping"}"#)).await.unwrap();
}

#[tokio::test]
async fn close_1002_against_the_protocol() {
    let vm = Vm::alone(&[]).await;
    assert_closed_with(&vm, 1002, 0xf1, b"reserved bits").await;
    assert_closed_with(&vm, 1002, 0x83, b"reserved opcode").await;

    let mut unmasked = Raw::connect(vm.port).await;
    tokio::io::AsyncWriteExt::write_all(&mut unmasked.0, b"\x81\x02{}").await.unwrap();
    assert_eq!(unmasked.closed().await, Some(1002));
}

#[tokio::test]
async fn close_1003_binary() {
    assert_closed_with(&Vm::alone(&[]).await, 1003, 0x82, b"binary").await;
}

#[tokio::test]
async fn close_1007_not_utf8() {
    assert_closed_with(&Vm::alone(&[]).await, 1007, 0x81, b"\xff\xfe").await;
}

#[tokio::test]
async fn close_1008_flooding() {
    let vm = Vm::alone(&[("MESSAGE_RATE", "1"), ("MESSAGE_BURST", "5")]).await;
    let mut flooder = vm.connect().await;
    let mut neighbour = vm.connect().await;
    for _ in 0..11 {
        // The last one may meet a closed socket.
        let _ = flooder.socket.send(Message::text("{}")).await;
    }
    assert_eq!(flooder.closed().await, Some((1008, "too many messages".into())));
    // A new socket would come with a new burst.
    assert_to_come_again(&knock(&vm, "/ws", &[]).await, 429, "rate_limited", "10");
    neighbour.alert(json!({})).await;
}

#[tokio::test]
async fn close_1008_the_token_expired() {
    let vm = Vm::alone(&[("AUTH_SECRET", SECRET)]).await;
    let path = format!("/ws?token={}", token(&claims(json!({"exp": at(1)}))));
    let client = Client::connect(vm.port, &path).await;
    assert_eq!(client.closed().await, Some((1008, "token expired".into())));
}

#[tokio::test]
async fn close_1008_closed_by_the_app() {
    let vm = Vm::alone(&[("API_KEY", API_KEY)]).await;
    let client = vm.connect().await;
    ask(&vm, "DELETE", &format!("/connections/{}", client.id()), &[], "").await;
    assert_eq!(client.closed().await, Some((1008, "closed by the app".into())));
}

#[tokio::test]
async fn close_1009_too_large() {
    let vm = Vm::alone(&[]).await;
    assert_closed_with(&vm, 1009, 0x81, &[b'x'; (16 << 10) + 1]).await;
    assert_closed_with(&vm, 1009, 0x81, &[b'x'; 17 << 10]).await;
}

#[tokio::test]
async fn close_1012_restart() {
    let mut vm = Vm::alone(&[]).await;
    let client = vm.connect().await;
    let (ended, closed) = tokio::join!(vm.end("TERM"), client.closed());
    assert_eq!(ended.0, Some(0));
    assert_come_back(closed, 1012);
}

#[tokio::test]
async fn close_1013_slow_consumer() {
    let vars = [("MAX_MESSAGE_BYTES", "1048576"), ("OUTBOX_BYTES", "4194304"), ("MESSAGE_RATE", "1000000")];
    let vm = Vm::alone(&vars).await;
    let slow = vm.connect().await;
    let mut sender = vm.connect().await;
    let large = "x".repeat(1_000_000);
    let cut_off = r#"sockets_closed_total{reason="slow_consumer"} 1"#;
    // The kernel's buffers take some megabytes before the VM's own do.
    while !get(&vm, "/metrics").await.text().contains(cut_off) {
        sender.send(json!({"type": "broadcast", "data": large})).await;
        sender.expect("ack").await;
    }
    assert_come_back(slow.closed().await, 1013);
}

// Error codes

#[tokio::test]
async fn error_invalid_json() {
    let vm = Vm::alone(&[]).await;
    let mut client = vm.connect().await;
    for text in ["not JSON", "", "{"] {
        assert_error(&mut client, text, "invalid_json", Value::Null).await;
    }
    client.alert(json!({})).await;
}

#[tokio::test]
async fn error_unknown_type() {
    let vm = Vm::alone(&[]).await;
    let mut client = vm.connect().await;
    assert_error(&mut client, r#"{"type":"dance","id":"7"}"#, "unknown_type", json!("7")).await;
    client.alert(json!({})).await;
}

#[tokio::test]
async fn error_invalid_field() {
    let vm = Vm::alone(&[]).await;
    let mut client = vm.connect().await;
    let long = |length| "x".repeat(length);
    for (text, id) in [
        ("[]", Value::Null),
        ("\"alert\"", Value::Null),
        ("{}", Value::Null),
        (r#"{"type":"alert","id":""}"#, Value::Null),
        (&format!(r#"{{"type":"alert","id":"{}"}}"#, long(65)), Value::Null),
        (r#"{"type":"alert","id":"8","data":{"lat":91,"lon":0}}"#, json!("8")),
        (r#"{"type":"alert","data":{"lat":0,"lon":181}}"#, Value::Null),
        (&format!(r#"{{"type":"alert","data":{{"place":"{}"}}}}"#, long(121)), Value::Null),
        (&format!(r#"{{"type":"alert","data":{{"note":"{}"}}}}"#, long(501)), Value::Null),
    ] {
        assert_error(&mut client, text, "invalid_field", id).await;
    }
    client.alert(json!({})).await;
}

#[tokio::test]
async fn error_rate_limited() {
    let vm = Vm::alone(&[("MESSAGE_RATE", "1"), ("MESSAGE_BURST", "5")]).await;
    let mut client = vm.connect().await;
    for _ in 0..5 {
        client.send(json!({"type": "ping"})).await;
        assert_eq!(client.next().await["type"], "pong");
    }
    let text = r#"{"type":"alert","id":"the sixth"}"#;
    let error = assert_error(&mut client, text, "rate_limited", json!("the sixth")).await;
    assert!(error["retryAfterMs"].is_u64(), "{error}");
    assert_counted(&vm, "messages_rate_limited_total 1").await;
}

#[tokio::test]
async fn error_forbidden() {
    let vm = Vm::alone(&[]).await;
    let text = r#"{"type":"subscribe","channel":"user:ann","id":"7"}"#;
    assert_error(&mut vm.connect().await, text, "forbidden", json!("7")).await;
}

#[tokio::test]
async fn error_not_found() {
    let vm = Vm::alone(&[]).await;
    let mut client = vm.connect().await;
    let direct = json!({"type": "direct", "targetId": nobody(), "id": "8"}).to_string();
    for (text, id) in [(r#"{"type":"unsubscribe","channel":"elsewhere","id":"7"}"#, "7"), (&direct, "8")] {
        assert_error(&mut client, text, "not_found", json!(id)).await;
    }
}

#[tokio::test]
async fn error_unavailable() {
    let Leaving { client, .. } = &mut Leaving::start().await;
    // Sent while the topic was silent, and answered before the VM ends.
    let error = client.expect("error").await;
    assert_eq!((&error["code"], &error["id"]), (&json!("unavailable"), &json!("late")));
    assert!(error["retryAfterMs"].is_u64(), "{error}");
}

/// Asks as the backend does, unless `headers` bring a key of their own; the answer is as documented.
async fn ask(vm: &Vm, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let answer = http::ask(vm.port, method, path, headers, body).await;
    let openapi = Document::of(vm, "/openapi.json").await;
    let place = path.split('?').next().unwrap();
    let route = match place.split('/').nth(1).unwrap() {
        "static" => "/static/{file}",
        "channels" => "/channels/{channel}",
        "connections" => "/connections/{clientId}",
        _ => place,
    };
    openapi.check_answer(method, route, &answer);
    answer
}

async fn get(vm: &Vm, path: &str) -> Answer {
    ask(vm, "GET", path, &[], "").await
}

async fn knock(vm: &Vm, path: &str, more: &[(&str, &str)]) -> Answer {
    ask(vm, "GET", path, &[&HANDSHAKE, more].concat(), "").await
}

/// A VM whose topic nobody serves.
async fn starting() -> Vm {
    Vm::spawn_on("127.0.0.1:9", "ams", &[("API_KEY", API_KEY)]).await
}

/// A VM that was told to end, and can't publish what it took before: for the moment it is leaving.
struct Leaving {
    vm: Vm,
    client: Client,
    _proxy: Proxy,
    _emulator: Emulator,
}

impl Leaving {
    async fn start() -> Self {
        let emulator = Emulator::start().await;
        let proxy = Proxy::to(emulator.port).await;
        let vm = Vm::spawn_on(&proxy.host(), "ams", &[("API_KEY", API_KEY)]).await;
        vm.ready().await;
        let mut client = vm.connect().await;
        proxy.set(Mode::BlackHole);
        client.send(json!({"type": "alert", "id": "late"})).await;
        client.settle().await;
        vm.signal("TERM");
        vm.logged("leaving").await;
        Self { vm, client, _proxy: proxy, _emulator: emulator }
    }
}

/// A connection of a VM that is none.
fn nobody() -> String {
    format!("{}@nowhere", "0".repeat(32))
}

fn backend_s_routes(client_id: &str) -> [(&'static str, String); 5] {
    let connection = format!("/connections/{client_id}");
    [
        ("POST", "/alerts".into()),
        ("POST", "/channels/environment:42".into()),
        ("POST", connection.clone()),
        ("GET", connection.clone()),
        ("DELETE", connection),
    ]
}

fn posts() -> impl Iterator<Item = (&'static str, String)> {
    backend_s_routes(&nobody()).into_iter().filter(|(method, _)| *method == "POST")
}

fn assert_to_come_again(answer: &Answer, status: u16, code: &str, seconds: &str) {
    answer.assert_refused(status, code);
    assert_eq!(answer.header("retry-after"), seconds);
}

async fn assert_counted(vm: &Vm, figure: &str) {
    let metrics = get(vm, "/metrics").await;
    assert!(metrics.text().contains(figure), "{figure} in {}", metrics.text());
}

async fn assert_unwell(vm: &Vm, why: &str) {
    for path in ["/health", "/_ah/health"] {
        let health = get(vm, path).await;
        assert_eq!(health.status, 503, "{path}");
        assert!(health.text().starts_with(why), "{}", health.text());
    }
}

/// Does something bad on a raw socket; checks the close code, and that others are unharmed.
async fn assert_closed_with(vm: &Vm, code: u16, first: u8, payload: &[u8]) {
    let mut raw = Raw::connect(vm.port).await;
    raw.frame(first, payload).await;
    assert_eq!(raw.closed().await, Some(code), "{first:#x} with {} bytes", payload.len());
    vm.connect().await.alert(json!({})).await;
}

fn assert_come_back(closed: Option<(u16, String)>, code: u16) {
    let (number, reason) = closed.expect("a close");
    assert_eq!(number, code);
    let wait = reason.strip_prefix("retry in ").and_then(|rest| rest.strip_suffix(" ms"));
    assert!(wait.is_some_and(|wait| wait.parse::<u64>().is_ok()), "{reason}");
}

/// What is said is answered by that error, which this returns.
async fn assert_error(client: &mut Client, text: &str, code: &str, id: Value) -> Value {
    client.send_text(text).await;
    let error = client.next().await;
    assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!(code)), "{text}: {error}");
    assert_eq!(error["id"], id, "{text}");
    assert!(!error["message"].as_str().unwrap().is_empty(), "{error}");
    error
}
