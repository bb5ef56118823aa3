//! The protocol of `/ws`: what is said, and what is refused, and how.

use serde_json::{Value, json};

use crate::support::client::{Client, Raw, next};
use crate::support::vm::Vm;
use crate::support::{until, within};

#[tokio::test]
async fn a_new_socket_is_greeted_in_order() {
    let vm = Vm::alone(&[("FLY_ALLOC_ID", "148ed123c79d89"), ("FLY_REGION", "ams")]).await;
    let client = vm.connect().await;
    let connected = &client.connected;
    assert!(client.id().ends_with("@148ed123c79d89"), "{connected}");
    let expected = json!({"type": "connected", "message": "CONNECTED", "instance": "148ed123c79d89", "region": "ams",
        "regionCode": "ams", "channels": [], "pingInterval": 30_000,
        "clientId": connected["clientId"], "cursor": connected["cursor"]});
    assert_eq!(*connected, expected);
    assert!(connected["cursor"].is_string());
    let expected =
        json!({"type": "refresh-store", "events": [], "complete": true, "cursor": connected["cursor"]});
    assert_eq!(client.refresh, expected);
}

#[tokio::test]
async fn an_alert_reaches_all_and_a_broadcast_all_but_the_sender() {
    let vm = Vm::alone(&[]).await;
    let (mut a, mut b) = (vm.connect().await, vm.connect().await);
    a.send(json!({"type": "alert", "id": "1", "data": {"place": "Roswell", "lat": 33.4, "lon": -104.5}}))
        .await;
    let mut own = [a.next().await, a.next().await];
    own.sort_by_key(|message| message["type"] == "alert");
    let [ack, alert] = own;
    assert_eq!(ack, json!({"type": "ack", "id": "1", "eventId": "1"}));
    assert_eq!(alert["type"], "alert");
    assert_eq!(alert["message"], "ALIEN_LANDING");
    assert_eq!(alert["data"], json!({"place": "Roswell", "lat": 33.4, "lon": -104.5}));
    assert_eq!(alert["regionCode"], "LOCAL_REGION");
    assert!(alert["timestamp"].is_i64() && alert["cursor"].is_string());
    assert_eq!(b.next().await, alert, "all hear the same");

    a.send(json!({"type": "broadcast", "data": [1, {"any": "JSON"}], "id": "2"})).await;
    assert_eq!(a.next().await["type"], "ack");
    let broadcast = b.next().await;
    assert_eq!(broadcast["type"], "broadcast");
    assert_eq!(broadcast["senderId"], a.id());
    assert_eq!(broadcast["data"], json!([1, {"any": "JSON"}]));
    assert_eq!(a.settle().await, Vec::<Value>::new(), "not back to the sender");

    // Both are in the history of who comes later, oldest first and as they were told.
    let late = vm.connect().await;
    assert_eq!(late.refresh["events"], json!([alert, broadcast]));
}

#[tokio::test]
async fn a_client_that_says_type_and_data_only_works() {
    let vm = Vm::alone(&[]).await;
    let (mut a, mut b) = (vm.connect().await, vm.connect().await);
    a.send_text(r#"{"type":"broadcast","data":{"text":"hello"}}"#).await;
    let heard = b.next().await;
    for field in ["type", "senderId", "data", "timestamp"] {
        assert!(!heard[field].is_null(), "{field} in {heard}");
    }
    let ack = a.next().await;
    assert_eq!(ack["eventId"], heard["id"]);
    assert!(ack.get("id").is_none(), "it gave none");
}

#[tokio::test]
async fn the_article_s_page_works() {
    let vm = Vm::alone(&[("FLY_REGION", "syd")]).await;
    let mut client = vm.connect().await;
    client.send_text(r#"{"message":"ALIEN_LANDING","timestamp":1700000000000}"#).await;
    let alert = client.expect("alert").await;
    assert_eq!((&alert["message"], &alert["regionCode"]), (&json!("ALIEN_LANDING"), &json!("syd")));
}

#[tokio::test]
async fn a_ping_is_answered() {
    let vm = Vm::alone(&[]).await;
    let mut client = vm.connect().await;
    client.send(json!({"type": "ping"})).await;
    let pong = client.next().await;
    assert_eq!(pong["type"], "pong");
    assert!(pong["time"].as_u64().is_some() && pong["cursor"].is_string(), "{pong}");
}

#[tokio::test]
async fn a_cursor_brings_what_was_missed() {
    let vm = Vm::alone(&[]).await;
    let mut client = vm.connect().await;
    let id = client.alert(json!({})).await;
    let cursor = vm.connect().await.refresh["cursor"].as_str().unwrap().to_owned();
    let back = Client::connect(vm.port, &format!("/ws?since={cursor}")).await;
    assert_eq!(back.refresh["complete"], true);
    // Catch-up overlaps, and the client drops what it has seen.
    assert_eq!(back.refresh["events"][0]["id"], id.as_str());
}

#[tokio::test]
async fn a_bad_cursor_is_an_error_and_a_full_refresh() {
    let vm = Vm::alone(&[]).await;
    let mut client = vm.connect().await;
    let id = client.alert(json!({})).await;
    let (topic, _) = client.connected["cursor"].as_str().unwrap().split_once('-').unwrap();
    let future = format!("{topic}-7fffffffffffffff");
    let long = "1".repeat(4_000);
    for (bad, why) in [
        ("nonsense", "not a cursor"),
        ("", "not a cursor"),
        ("%00", "not a cursor"),
        (&long, "not a cursor"),
        ("00000000-5", "another topic"),
        (&future, "from the future"),
    ] {
        let mut back = Client::connect(vm.port, &format!("/ws?since={bad}")).await;
        assert_eq!(back.refresh["events"][0]["id"], id.as_str(), "{bad}");
        assert_eq!(back.refresh["complete"], false, "nobody knows what it lacks");
        let error = back.next().await;
        assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("invalid_field")), "{bad}");
        assert!(error["message"].as_str().unwrap().contains(why), "{bad}: {error}");
        // It is a socket like any other.
        back.alert(json!({})).await;
    }
}

#[tokio::test]
async fn the_largest_message_is_taken() {
    let vm = Vm::alone(&[]).await;
    let (mut a, mut b) = (vm.connect().await, vm.connect().await);
    let head = r#"{"type":"broadcast","data":""#;
    let text = format!("{head}{}\"}}", "x".repeat((16 << 10) - head.len() - 2));
    assert_eq!(text.len(), 16 << 10);
    a.send_text(&text).await;
    assert_eq!(b.next().await["data"].as_str().unwrap().len(), (16 << 10) - head.len() - 2);
}

#[tokio::test]
async fn a_message_in_fragments_is_one_message() {
    let vm = Vm::alone(&[]).await;
    let mut raw = Raw::connect(vm.port).await;
    let mut witness = vm.connect().await;
    raw.frame(0x01, br#"{"type":"#).await;
    // A ping between fragments is legal and answered.
    raw.frame(0x89, b"between").await;
    pong(&mut raw, b"between").await;
    raw.frame(0x80, br#""alert"}"#).await;
    witness.expect("alert").await;
    let longest = [b'x'; 125];
    raw.frame(0x89, &longest).await;
    pong(&mut raw, &longest).await;
}

/// Reads up to a pong, which has the ping's bytes.
async fn pong(raw: &mut Raw, payload: &[u8]) {
    loop {
        let (opcode, told) = within("pong", raw.next()).await.unwrap();
        if opcode == 0xa {
            return assert_eq!(told, payload);
        }
    }
}

#[tokio::test]
async fn who_asks_nothing_or_half_of_it_is_let_go_after_ten_seconds() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let vm = Vm::alone(&[]).await;
    let begun = std::time::Instant::now();
    let half = "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: web";
    // This one is answered, and asks nothing more.
    let idle = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut streams = Vec::new();
    for said in [half, idle, ""] {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", vm.port)).await.unwrap();
        stream.write_all(said.as_bytes()).await.unwrap();
        streams.push((said, stream));
    }
    // This one never stops, and never comes to an end.
    let mut dripping = tokio::net::TcpStream::connect(("127.0.0.1", vm.port)).await.unwrap();
    let dripping = tokio::spawn(async move {
        let (mut reading, mut writing) = dripping.split();
        let drops = async {
            for byte in half.bytes().chain(std::iter::repeat(b'x')) {
                let _ = writing.write_all(&[byte]).await;
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            }
        };
        let mut end = [0];
        tokio::select! {
            _ = reading.read(&mut end) => begun.elapsed().as_secs_f64(),
            () = drops => unreachable!("there is no end of them"),
        }
    });
    vm.connect().await.alert(json!({})).await;
    for (said, mut stream) in streams {
        let mut told = String::new();
        within("end of the connection", stream.read_to_string(&mut told)).await.unwrap();
        let took = begun.elapsed().as_secs_f64();
        assert!((9.0..15.0).contains(&took), "{said:?}: after {took} s");
        assert_eq!(told.starts_with("HTTP/1.1 200 "), said == idle, "{told}");
    }
    let took = within("end of the one that drips", dripping).await.unwrap();
    assert!((9.0..15.0).contains(&took), "after {took} s");
    vm.connect().await.alert(json!({})).await;
}

#[tokio::test]
async fn a_client_s_close_is_answered() {
    let vm = Vm::alone(&[]).await;
    let mut raw = Raw::connect(vm.port).await;
    raw.frame(0x88, &1000_u16.to_be_bytes()).await;
    assert_eq!(raw.closed().await, Some(1000));
    let mut own = Raw::connect(vm.port).await;
    own.frame(0x88, &[&4321_u16.to_be_bytes()[..], b"its own reason"].concat()).await;
    assert_eq!(own.closed().await, Some(4321));
    let mut without = Raw::connect(vm.port).await;
    without.frame(0x88, b"").await;
    assert_eq!(without.closed().await, Some(1005), "no code for none");
    until("end of the socket", async || {
        let status = crate::support::http::get(vm.port, "/status").await.json();
        (status["connectedClients"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_is_sent_with_the_handshake_is_heard() {
    use tokio::io::AsyncWriteExt as _;

    let vm = Vm::alone(&[]).await;
    let mut witness = vm.connect().await;
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", vm.port)).await.unwrap();
    let request = b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let frame = b"\x81\x90\0\0\0\0{\"type\":\"alert\"}";
    stream.write_all(&[&request[..], frame].concat()).await.unwrap();
    witness.expect("alert").await;
}

#[tokio::test]
async fn the_fleet_is_told_after_the_greeting() {
    let vm = Vm::alone(&[("FLY_REGION", "ams")]).await;
    let mut client = vm.connect().await;
    let fleet = next(&mut client.socket).await;
    assert_eq!(fleet["type"], "fleet");
    assert_eq!(fleet["instances"][0]["region"], "ams");
}
