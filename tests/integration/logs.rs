//! What the log says: every turn of a VM's life, an event's way from VM to VM, and of visitors little.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::support::client::Client;
use crate::support::emulator::Emulator;
use crate::support::http::{API_KEY, ask, get, knock};
use crate::support::token::{self, SECRET};
use crate::support::vm::{Vm, command};
use crate::support::{until, within};

const LOST: &str = "no way through the topic; trying again until there is";

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A client that a proxy says it is asking for.
async fn from(address: &str, vm: &Vm) -> Client {
    let mut request = format!("ws://127.0.0.1:{}/ws", vm.port).into_client_request().unwrap();
    request.headers_mut().insert("x-forwarded-for", address.parse().unwrap());
    let stream = TcpStream::connect(("127.0.0.1", vm.port)).await.unwrap();
    let (socket, _) = within("answer to a handshake", client_async(request, stream)).await.unwrap();
    Client::greeted(socket).await
}

/// The lines that have `value` in `field`, once there are so many.
async fn lines_with(vm: &Vm, field: &str, value: &str, count: usize) -> Vec<Value> {
    until(&format!("{count} lines with {field} {value}"), async || {
        let lines: Vec<_> = vm.log().into_iter().filter(|line| line[field] == value).collect();
        (lines.len() >= count).then_some(lines)
    })
    .await
}

fn assert_said(lines: &[Value], expected: &[&str]) {
    let said: Vec<_> = lines.iter().map(|line| line["message"].as_str().unwrap()).collect();
    assert_eq!(said, expected, "{lines:#?}");
}

#[tokio::test]
async fn a_vm_s_life_is_told_turn_by_turn_in_lines_that_name_it() {
    let emulator = Emulator::start().await;
    // All that any part of the program says; room for so many is there anywhere.
    let vars = [("RUST_LOG", "trace"), ("MAX_CONNECTIONS", "100")];
    let mut vm = Vm::spawn_on(&emulator.host(), "ams", &vars).await;
    vm.ready().await;
    let before = vm.lines("ready").len();
    emulator.delete("subscriptions/ID_vm-ams").await;
    until("ready again", async || (vm.lines("ready").len() > before).then_some(())).await;
    vm.connect().await.alert(json!({})).await;
    assert_eq!(vm.end("TERM").await.0, Some(0));
    vm.logged("left").await;

    let log = vm.log();
    assert!(log.len() > 100, "{} lines", log.len());
    for line in &log {
        for (field, value) in [("instance", "vm-ams"), ("region", "ams"), ("version", VERSION)] {
            assert_eq!(line[field], value, "{line}");
        }
        for field in ["timestamp", "level", "target"] {
            assert!(line[field].is_string(), "{line}");
        }
    }
    let is_told = |line: &&Value| {
        let (target, level) = (line["target"].as_str().unwrap(), line["level"].as_str().unwrap());
        target.starts_with("alien_alert") && ["INFO", "WARN", "ERROR"].contains(&level)
    };
    let told = log.iter().filter(is_told).map(|line| line["message"].as_str().unwrap());
    // What becomes of the way through the topic: a slow emulator may make more of it than this test does.
    let (way, rest): (Vec<_>, Vec<_>) =
        told.partition(|told| told.starts_with("ready") || told.starts_with("no way"));
    for (turn, told) in way.iter().enumerate() {
        let was_lost = turn > 0 && way[turn - 1].starts_with("no way");
        let expected = match (turn, was_lost) {
            (_, true) => &["ready again"][..],
            (0, false) => &["ready", LOST],
            (_, false) => &[LOST],
        };
        assert!(expected.contains(told), "{told:?} is no turn after what was told: {way:?}");
    }
    assert!(way.len() >= 3 && way.ends_with(&["ready again"]), "{way:?}");
    let [listening, middle @ .., leaving, deleted, left] = rest.as_slice() else { panic!("{rest:?}") };
    assert!(listening.starts_with("listening on http://127.0.0.1:"), "{listening}");
    assert_eq!([*leaving, *deleted, *left], ["leaving", "subscription deleted", "left"]);
    let of_subscription = ["subscription created", "own subscription of before taken up"];
    let (made, others): (Vec<&str>, Vec<_>) = middle.iter().partition(|told| of_subscription.contains(told));
    assert_eq!(made.len(), 1, "{rest:?}");
    assert!(others.is_empty() || others == ["topic created"], "{rest:?}");
}

#[tokio::test]
async fn a_line_of_text_names_its_vm_in_short() {
    let vars = [
        ("HOST", "127.0.0.1"),
        ("PORT", "0"),
        ("LOG_FORMAT", "text"),
        ("MAX_CONNECTIONS", "100"),
        ("FLY_ALLOC_ID", "148ed123c79d89"),
        ("FLY_REGION", "ams"),
    ];
    let mut process = command(&vars).spawn().unwrap();
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
    for expected in ["listening on http://127.0.0.1:", "ready "] {
        let line = within("line", lines.next_line()).await.unwrap().unwrap();
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.starts_with("20") && time.ends_with('Z'), "{line}");
        let rest = rest.strip_prefix(&format!("ams 148ed123 {VERSION}  INFO ")).expect(&line);
        assert!(rest.starts_with(expected), "{line}");
    }
}

#[tokio::test]
async fn an_alert_s_id_leads_from_its_socket_to_each_vm() {
    let emulator = Emulator::start().await;
    let debug = [("RUST_LOG", "alien_alert=debug")];
    let vms = Vm::fleet(&emulator, &["ams", "sin"], &debug).await;
    let [ams, sin] = vms.as_slice() else { unreachable!() };
    let (mut here, mut there) = (ams.connect().await, sin.connect().await);
    let first = here.alert(json!({})).await;
    assert_eq!(there.expect("alert").await["id"], first.as_str());
    // One of the other VM after it, so that a second line of the first would be there.
    let second = there.alert(json!({})).await;
    for (event, sender, client, other) in [(first, ams, &here, sin), (second, sin, &there, ams)] {
        let lines = lines_with(sender, "eventId", &event, 2).await;
        let by_message: BTreeMap<_, _> =
            lines.iter().map(|line| (line["message"].as_str().unwrap(), line)).collect();
        assert_eq!(by_message.len(), 2, "{lines:#?}");
        let origin = format!("vm-{}", sender.name);
        assert_eq!(by_message["published"]["clientId"], client.id());
        assert_eq!(by_message["heard"]["origin"], origin.as_str());
        let lines = lines_with(other, "eventId", &event, 1).await;
        assert_said(&lines, &["heard"]);
        assert_eq!((&lines[0]["origin"], &lines[0]["sockets"]), (&origin.into(), &json!(1)));
    }
}

#[tokio::test]
async fn a_message_to_one_connection_leads_there_too() {
    let emulator = Emulator::start().await;
    let vars = [("RUST_LOG", "alien_alert=debug"), ("API_KEY", API_KEY)];
    let vms = Vm::fleet(&emulator, &["ams", "sin"], &vars).await;
    let [ams, sin] = vms.as_slice() else { unreachable!() };
    let (mut here, mut there) = (ams.connect().await, sin.connect().await);
    here.send(json!({"type": "direct", "targetId": there.id(), "data": {}, "id": "of-a-client"})).await;
    there.expect("direct").await;
    let sent = lines_with(ams, "eventId", "of-a-client", 1).await;
    assert_said(&sent, &["message to a connection published"]);
    assert_eq!(sent[0]["clientId"], here.id());

    let path = format!("/connections/{}", there.id());
    let answer = ask(ams.port, "POST", &path, &[], "{}").await;
    assert_eq!(answer.status, 200);
    let of_backend = there.expect("direct").await["id"].as_str().unwrap().to_owned();
    for id in ["of-a-client", &of_backend] {
        let heard = lines_with(sin, "eventId", id, 1).await;
        assert_said(&heard, &["message to this connection heard"]);
        assert_eq!(heard[0]["clientId"], there.id());
    }
}

#[tokio::test]
async fn a_delivery_is_not_told() {
    let vm = Vm::alone(&[("RUST_LOG", "alien_alert=trace")]).await;
    let mut sockets = Vec::new();
    for _ in 0..100 {
        sockets.push(vm.connect().await);
    }
    until("all of them", async || (vm.lines("socket opened").len() == 100).then_some(())).await;
    let before = vm.log().len();
    for _ in 0..10 {
        sockets[0].alert(json!({})).await;
    }
    for socket in &mut sockets[1..] {
        for _ in 0..10 {
            socket.expect("alert").await;
        }
    }
    // What is told last may come after what it tells of.
    for told in ["published", "heard"] {
        until(told, async || (vm.lines(told).len() == 10).then_some(())).await;
    }
    let log = vm.log().split_off(before);
    assert_eq!(log.len(), 20, "nothing else: {log:#?}");
}

#[tokio::test]
async fn a_socket_s_lines_share_its_id_and_shorten_its_address() {
    for (level, asked, address, told) in [
        // Whatever else is told by any part of the program.
        ("trace", "", "203.0.113.77", "203.0.113.0/24"),
        ("trace", "short", "2001:db8:1:2:3:4:5:6", "2001:db8:1::/48"),
        ("debug", "full", "203.0.113.77", "203.0.113.77"),
        ("debug", "full", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2:3:4:5:6"),
    ] {
        let vars = [("TRUSTED_PROXY", "127.0.0.1"), ("RUST_LOG", level), ("LOG_ADDRESSES", asked)];
        let vm = Vm::alone(&vars).await;
        let mut client = from(address, &vm).await;
        let id = client.id().to_owned();
        client.alert(json!({})).await;
        client.closed_by_us().await;
        let lines = lines_with(&vm, "clientId", &id, 3).await;
        assert_said(&lines, &["socket opened", "published", "socket ended"]);
        assert_eq!((&lines[0]["address"], &lines[2]["address"]), (&json!(told), &json!(told)));
        assert_eq!(lines[2]["reason"], "closed");

        let forwarded = [("x-forwarded-for", address), ("origin", "https://elsewhere.example")];
        assert_eq!(knock(&vm, "/ws", &forwarded).await.status, 403);
        let refused = vm.logged("socket refused").await;
        assert_eq!((&refused["address"], &refused["reason"]), (&json!(told), &json!("origin")));
        for line in vm.log() {
            assert!(asked == "full" || !line.to_string().contains(address), "{line}");
        }
    }
}

#[tokio::test]
async fn visitors_can_not_fill_the_log() {
    let vm = Vm::alone(&[("MESSAGE_RATE", "1"), ("MESSAGE_BURST", "5")]).await;
    let log = vm.log();
    // Refused, not understood, far too much, and gone without a word.
    let elsewhere = [("origin", "https://elsewhere.example")];
    for _ in 0..30 {
        knock(&vm, "/ws", &elsewhere).await.assert_refused(403, "forbidden");
        get(vm.port, "/ws").await.assert_refused(400, "invalid_field");
        ask(vm.port, "POST", "/alerts", &[], "").await.assert_refused(403, "forbidden");
        let mut client = vm.connect().await;
        for text in ["nonsense", "{}", r#"{"type":"alert","data":7}"#] {
            client.send_text(text).await;
        }
    }
    let mut flood = vm.connect().await;
    for _ in 0..20 {
        flood.send(json!({"type": "ping"})).await;
    }
    assert_eq!(flood.closed().await.unwrap().0, 1008);
    until("their end", async || (vm.status().await["connectedClients"] == 0).then_some(())).await;
    assert_eq!(vm.log(), log);
}

#[tokio::test]
async fn a_want_of_files_is_told_seldom() {
    let vm = Vm::within_files(100).await;
    let mut connections = Vec::new();
    for _ in 0..200 {
        connections.push(TcpStream::connect(("127.0.0.1", vm.port)).await.unwrap());
    }
    let told = "can't accept connections";
    vm.logged(told).await;
    // Each of its listening sockets tries ten times in this.
    sleep(Duration::from_secs(1)).await;
    assert!(vm.lines(told).len() <= 6, "{:#?}", vm.log());
    assert!(vm.lines(told)[0]["kept_back"].is_number());
    drop(connections);
    until("an answer again", async || (get(vm.port, "/health").await.status == 200).then_some(())).await;
}

#[tokio::test]
async fn no_secret_is_told() {
    let emulator = Emulator::start().await;
    let vars = [("RUST_LOG", "trace"), ("API_KEY", API_KEY), ("AUTH_SECRET", SECRET)];
    let vm = Vm::spawn_on(&emulator.host(), "ams", &vars).await;
    vm.ready().await;
    let token = token::token(&token::claims(json!({})));
    let mut client = Client::connect(vm.port, &format!("/ws?token={token}")).await;
    let told = r#"{"note":"between us alone"}"#;
    assert_eq!(ask(vm.port, "POST", "/alerts", &[], told).await.status, 202);
    assert_eq!(client.expect("alert").await["data"]["note"], "between us alone");
    let wrong = [("authorization", "Bearer almost-the-right-key")];
    assert_eq!(ask(vm.port, "POST", "/alerts", &wrong, told).await.status, 401);
    client.closed_by_us().await;
    vm.logged("socket ended").await;
    let secrets = token.split('.').chain([API_KEY, "almost-the-right-key", SECRET, "between us alone"]);
    for secret in secrets {
        for line in vm.log() {
            assert!(!line.to_string().contains(secret), "{secret}: {line}");
        }
    }
}

/// The usual build has no traces, and says so to who wants some.
#[tokio::test]
async fn that_there_are_no_traces_is_told() {
    if cfg!(feature = "otlp") && std::env::var_os("ALIEN_ALERT_BIN").is_none() {
        return; // It is not the usual build that is tested.
    }
    let vm = Vm::alone(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")]).await;
    let told = vm.logged("OTEL_EXPORTER_OTLP_ENDPOINT is set").await;
    assert_eq!(told["level"], "WARN");
    assert!(told["message"].as_str().unwrap().contains("--features otlp"), "{told}");
}
