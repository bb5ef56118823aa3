//! `CONNECT_URL`: an app's backend is asked about each visitor before the socket opens.

use std::sync::Arc;
use std::time::Instant;

use jsonwebtoken::{EncodingKey, Header, encode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::backend::{Backend, Reply, says};
use crate::support::certificate::Certificate;
use crate::support::client::Client;
use crate::support::emulator::Emulator;
use crate::support::http::{self, Answer, HANDSHAKE, figure, get, get_with, knock};
use crate::support::proxy::{Mode, Proxy};
use crate::support::until;
use crate::support::vm::Vm;

const SECRET: &str = "a secret of the tests, of more than 32 bytes";

/// Answers as the visitor's query tells it to.
fn as_asked(question: &Value) -> Reply {
    let query = &question["query"];
    let status = query["status"].as_str().map_or(200, |status| status.parse().unwrap());
    let mut reply = says(status, query["body"].as_str().unwrap_or_default())?;
    if let Some(wait) = query["wait"].as_str() {
        reply.headers_mut().insert("retry-after", wait.parse().unwrap());
    }
    if status == 302 {
        reply.headers_mut().insert("location", "/connect".parse().unwrap());
    }
    if let Some(length) = query["length"].as_str() {
        // JSON that would be understood.
        return says(200, format!("{{}}{}", " ".repeat(length.parse::<usize>().unwrap() - 2)));
    }
    (query["answer"] != "never").then_some(reply)
}

async fn counted(vm: &Vm, line: &str) -> u64 {
    figure(vm.port, &format!("alien_alert_{line}")).await.unwrap_or(0)
}

async fn outcomes(vm: &Vm) -> [u64; 3] {
    let mut counts = [0; 3];
    for (count, outcome) in counts.iter_mut().zip(["accepted", "refused", "failed"]) {
        *count = counted(vm, &format!("authorizer_requests_total{{outcome=\"{outcome}\"}}")).await;
    }
    counts
}

fn assert_unavailable(answer: &Answer, what: &str) {
    assert_eq!(answer.status, 503, "{what}: {}", answer.text());
    assert_eq!(answer.header("retry-after"), "2", "{what}");
    assert_eq!(answer.json()["error"]["code"], "unavailable", "{what}");
}

#[tokio::test]
async fn a_visitor_is_who_the_backend_says_on_every_vm() {
    let emulator = Emulator::start().await;
    let backend = Backend::start(|question: &Value| match question["query"]["as"].as_str() {
        Some(user) => says(200, json!({"user": user, "channels": ["room", "environment:*"]})),
        None => says(204, ""),
    })
    .await;
    let url = backend.url();
    let vars = [("CONNECT_URL", url.as_str()), ("API_KEY", "0123456789abcdef")];
    let vms = Vm::fleet(&emulator, &["ams", "sin", "lax"], &vars).await;
    let mut anns = Vec::new();
    for vm in &vms {
        anns.push(Client::connect(vm.port, "/ws?as=auth0|ann&channels=environment:7,elsewhere").await);
    }
    let mut bob = Client::connect(vms[1].port, "/ws?as=bob").await;
    // One of whom nothing is said may be where anybody may be.
    let mut anyone = Client::connect(vms[2].port, "/ws?channels=elsewhere").await;
    assert_eq!(anyone.connected["channels"], json!(["elsewhere"]));
    anyone.expect("refresh-store").await;
    for ann in &mut anns {
        assert_eq!(ann.connected["channels"], json!(["user:auth0|ann", "room", "environment:7"]));
        let refused = ann.expect("error").await;
        assert_eq!(refused["code"], "forbidden", "{refused}");
        assert!(refused["message"].as_str().unwrap().contains("elsewhere"), "{refused}");
    }
    let key = [("authorization", "Bearer 0123456789abcdef")];
    let described = get_with(vms[0].port, &format!("/connections/{}", anns[2].id()), &key).await;
    assert_eq!(described.json()["user"], "auth0|ann");

    let mut sent = Vec::new();
    for (vm, channel) in vms.iter().zip(["user:auth0%7Cann", "room", "environment:7"]) {
        let path = format!("/channels/{channel}");
        let answer = http::request(vm.port, "POST", &path, &key, r#"{"type":"done"}"#).await.unwrap();
        assert_eq!(answer.status, 202, "{}", answer.text());
        sent.push(answer.json()["id"].clone());
    }
    for ann in &mut anns {
        for id in &sent {
            assert_eq!(ann.expect("done").await["id"], *id);
        }
    }
    assert_eq!(bob.expect("done").await["id"], sent[1], "the room's, and neither of the others");
    anns[0].alert(json!({})).await;
    for other in [&mut bob, &mut anyone] {
        let next = other.next().await;
        assert_eq!(next["type"], "alert", "{next}");
    }
}

#[tokio::test]
async fn the_backend_is_told_what_the_visitor_says() {
    let backend = Backend::start(as_asked).await;
    let url = format!("http://vm:hunter2@127.0.0.1:{}/connect?key=hunter3", backend.port);
    let vars = [("CONNECT_URL", url.as_str()), ("FLY_ALLOC_ID", "vm-1"), ("RUST_LOG", "trace")];
    let vm = Vm::alone(&vars).await;
    let more = [("cookie", "session=hunter4"), ("authorization", "Bearer hunter5"), ("x-team", "red")];
    let path = "/ws?a=1&a=2&room=big+one&token=hunter6&since=&%ff";
    assert_eq!(knock(&vm, path, &more).await.status, 101);
    let asked = backend.asked().remove(0);
    assert_eq!(asked.uri, "/connect?key=hunter3");
    // As vm:hunter2, and nothing of the visitor's but in the question.
    assert_eq!(asked.headers["authorization"], "Basic dm06aHVudGVyMg==");
    assert_eq!(asked.headers["content-type"], "application/json");
    assert!(!asked.headers.contains_key("cookie"));
    let host = format!("127.0.0.1:{}", vm.port);
    let expected = json!({
        "headers": {
            "host": host, "cookie": "session=hunter4", "authorization": "Bearer hunter5", "x-team": "red",
            "sec-websocket-version": "13", "sec-websocket-key": HANDSHAKE[3].1,
        },
        "query": {"a": "2", "room": "big one", "token": "hunter6", "since": "", "\u{fffd}": ""},
        "ip": "127.0.0.1", "instance": "vm-1", "region": "LOCAL_REGION",
    });
    assert_eq!(asked.question, expected);

    // One connection is used again and again.
    for _ in 0..20 {
        assert_eq!(knock(&vm, "/ws?status=403&body=hunter7", &[]).await.status, 403);
        assert_eq!(knock(&vm, "/ws?body=hunter8", &[]).await.status, 503);
    }
    assert_eq!(backend.asked().len(), 41);
    assert!(backend.connections() < 10, "{} connections", backend.connections());
    // Nothing of all that is in the log, which says most that it can.
    for line in vm.log() {
        assert!(!line.to_string().contains("hunter"), "{line}");
    }
    let complaints = vm.lines("the backend at CONNECT_URL can't be asked").len();
    assert!((1..=7).contains(&complaints), "{complaints} complaints");
}

#[tokio::test]
async fn whom_the_backend_refuses_is_told_its_status_and_without_its_word_nobody_comes_in() {
    let backend = Backend::start(as_asked).await;
    let vm = Vm::alone(&[("CONNECT_URL", &backend.url())]).await;
    for (query, status, code, wait) in [
        ("status=400", 400, "invalid_field", ""),
        ("status=401", 401, "forbidden", ""),
        ("status=403&body=anything", 403, "forbidden", ""),
        ("status=404", 404, "forbidden", ""),
        ("status=402&wait=60", 402, "forbidden", "60"),
        ("status=429", 429, "rate_limited", "2"),
        ("status=429&wait=7", 429, "rate_limited", "7"),
    ] {
        let answer = knock(&vm, &format!("/ws?{query}"), &[]).await;
        assert_eq!((answer.status, answer.header("retry-after")), (status, wait), "{query}");
        assert_eq!(answer.json()["error"]["code"], code, "{query}");
        assert_eq!(answer.header("www-authenticate") == "Bearer", status == 401, "{query}");
    }
    assert_eq!(outcomes(&vm).await, [0, 7, 0]);
    for query in [
        "status=500",
        "status=503&wait=60",
        "status=302",
        "body=nonsense",
        "body=[]",
        "body={%22user%22:%22a+b%22}",
        "body={%22channels%22:[%22a+b%22]}",
        "length=65537",
        "answer=never",
    ] {
        let begun = Instant::now();
        assert_unavailable(&knock(&vm, &format!("/ws?{query}"), &[]).await, query);
        let took = begun.elapsed().as_secs_f64();
        assert!(query != "answer=never" || (2.9..6.0).contains(&took), "it has 3 s: {took}");
    }
    assert_eq!(outcomes(&vm).await, [0, 7, 9]);
    for query in ["", "status=204", "body={}", "length=65536"] {
        assert_eq!(knock(&vm, &format!("/ws?{query}"), &[]).await.status, 101, "{query}");
    }
    assert_eq!(outcomes(&vm).await, [4, 7, 9]);
    assert_eq!(counted(&vm, "authorizer_duration_seconds_count").await, 20);
    assert_eq!(counted(&vm, "upgrades_rejected_total{reason=\"authorizer_failed\"}").await, 9);
    assert_eq!(counted(&vm, "upgrades_rejected_total{reason=\"authorizer_refused\"}").await, 7);

    // Nobody listens there.
    let free = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
    let vm = Vm::alone(&[("CONNECT_URL", &format!("http://vm:hunter2@{free}/?key=hunter2"))]).await;
    assert_unavailable(&knock(&vm, "/ws", &[]).await, "refused");
    let complaint = vm.logged("the backend at CONNECT_URL can't be asked").await.to_string();
    assert!(complaint.contains("refused") && !complaint.contains("hunter2"), "{complaint}");
}

#[tokio::test]
async fn a_token_is_checked_first_and_the_backend_may_say_otherwise() {
    let backend = Backend::start(as_asked).await;
    let vars = [("CONNECT_URL", &*backend.url()), ("AUTH_SECRET", SECRET)];
    let vm = Vm::alone(&vars).await;
    let elsewhere = [("origin", "https://elsewhere.example")];
    assert_eq!(knock(&vm, "/ws", &elsewhere).await.status, 403);
    assert_eq!(knock(&vm, "/ws?token=nonsense", &[]).await.status, 401);
    assert_eq!(get(vm.port, "/ws").await.status, 400);
    let starting = Vm::spawn_on("127.0.0.1:1", "ams", &vars[..1]).await;
    assert_eq!(knock(&starting, "/ws", &[]).await.status, 503);
    // One that leaves, and takes its time since the topic does not answer.
    let emulator = Emulator::start().await;
    let proxy = Proxy::to(emulator.port).await;
    let leaving = Vm::spawn_on(&proxy.host(), "ams", &vars[..1]).await;
    leaving.ready().await;
    proxy.set(Mode::BlackHole);
    leaving.signal("TERM");
    leaving.logged("leaving").await;
    assert_eq!(knock(&leaving, "/ws", &[]).await.status, 503);
    assert_eq!(backend.asked().len(), 0, "cheap checks are made first");

    let claims = json!({"sub": "ann", "exp": 4_000_000_000_u64, "channels": ["a"]});
    let token = encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap();
    for (body, channels, refused) in [
        ("", vec!["user:ann", "a"], vec!["b"]),
        (r#"{"user":"bob"}"#, vec!["user:bob", "a"], vec!["b"]),
        (r#"{"channels":["c","b*"]}"#, vec!["user:ann", "c", "b"], vec!["a"]),
        (r#"{"user":"bob","channels":[]}"#, vec!["user:bob"], vec!["a", "b"]),
    ] {
        let encoded = utf8_percent_encode(body, NON_ALPHANUMERIC);
        let path = format!("/ws?channels=a,b&token={token}&body={encoded}");
        let mut client = Client::connect(vm.port, &path).await;
        assert_eq!(client.connected["channels"], json!(channels), "{body}");
        let heard = client.settle().await;
        let errors: Vec<_> = heard.iter().filter(|message| message["type"] == "error").collect();
        assert_eq!(errors.len(), refused.len(), "{body}: {errors:?}");
        for (error, channel) in errors.iter().zip(refused) {
            let named = format!("channel: {channel} is not yours");
            assert!(error["message"].as_str().unwrap().starts_with(&named), "{body}: {error}");
        }
    }
    assert!(backend.asked().iter().all(|asked| asked.question["user"] == "ann"));
}

#[tokio::test]
async fn so_many_are_asked_about_at_once_and_no_more() {
    let backend = Backend::start(as_asked).await;
    let url = backend.url();
    let more = ["MAX_CONNECTIONS_PER_ADDRESS", "UPGRADE_BURST"].map(|name| (name, "1000"));
    let vm = Arc::new(Vm::alone(&[&[("CONNECT_URL", url.as_str())][..], &more].concat()).await);
    let mut visitors = JoinSet::new();
    for _ in 0..400 {
        let vm = Arc::clone(&vm);
        visitors.spawn(async move { knock(&vm, "/ws?answer=never", &[]).await });
    }
    while let Some(answer) = visitors.join_next().await {
        assert_unavailable(&answer.unwrap(), "never");
    }
    let busy = counted(&vm, "upgrades_rejected_total{reason=\"authorizer_busy\"}").await;
    let [_, _, failed] = outcomes(&vm).await;
    assert!(busy > 0);
    assert_eq!(busy + failed, 400);
    let (_, most) = backend.under_way();
    assert!(most <= 256, "{most} at once");
    assert_eq!(knock(&vm, "/ws", &[]).await.status, 101, "their places are free again");
}

#[tokio::test]
async fn a_visitor_that_goes_is_asked_about_no_longer() {
    let backend = Backend::start(as_asked).await;
    let vm = Vm::alone(&[("CONNECT_URL", &*backend.url()), ("MAX_CONNECTIONS_PER_ADDRESS", "1")]).await;
    let visitor = TcpStream::connect(("127.0.0.1", vm.port)).await.unwrap();
    let lines = HANDSHAKE.map(|(name, value)| format!("{name}: {value}\r\n")).concat();
    let request = format!("GET /ws?answer=never HTTP/1.1\r\nhost: vm\r\n{lines}\r\n");
    visitor.writable().await.unwrap();
    assert_eq!(visitor.try_write(request.as_bytes()).unwrap(), request.len());
    until("the question", async || (backend.under_way().0 == 1).then_some(())).await;
    drop(visitor);
    until("the question taken back", async || (backend.under_way().0 == 0).then_some(())).await;
    // Its time was not over, or it would have been counted.
    assert_eq!(outcomes(&vm).await, [0, 0, 0]);
    until("its place", async || (knock(&vm, "/ws", &[]).await.status == 101).then_some(())).await;
}

#[tokio::test]
async fn a_backend_behind_https_is_asked_when_its_certificate_is_good() {
    let certificate = Certificate::for_this_machine(&[]);
    let backend = Backend::start_tls(certificate.tls.clone(), as_asked).await;
    let url = format!("https://127.0.0.1:{}/connect", backend.port);
    let trusting = Vm::alone(&[("CONNECT_URL", &url), ("SSL_CERT_FILE", &certificate.file)]).await;
    assert_eq!(knock(&trusting, "/ws", &[]).await.status, 101);
    let wary = Vm::alone(&[("CONNECT_URL", &url)]).await;
    assert_unavailable(&knock(&wary, "/ws", &[]).await, "a certificate that nobody knows");
    assert_eq!(backend.asked().len(), 1);
}
