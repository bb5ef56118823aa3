//! The bounds: who goes beyond one is told so, and nobody else notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use alien_alert::vm::OTHER_FILES;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;

use crate::support::client::{Client, Raw, open, open_from};
use crate::support::http::{API_KEY, ask, get, knock};
use crate::support::vm::Vm;
use crate::support::{until, within};

#[tokio::test]
async fn with_few_open_files_it_takes_fewer_sockets_and_says_so() {
    // 100 files, of which half are for sockets.
    let vm = Vm::within_files(100).await;
    let told = vm.logged("the system allows too few open files").await;
    assert_eq!((&told["room"], &told["wanted"]), (&json!(50), &json!(20_000)));
    let mut sockets = Vec::new();
    for _ in 0..50 {
        sockets.push(vm.connect().await);
    }
    knock(&vm, "/ws", &[]).await.assert_refused(503, "unavailable");
    sockets.pop().unwrap().alert(json!({})).await;
}

#[tokio::test]
async fn a_socket_that_never_reads_delays_nobody_and_is_cut_off_alone() {
    let vm =
        Vm::alone(&[("OUTBOX_BYTES", "65536"), ("MESSAGE_RATE", "10000"), ("MESSAGE_BURST", "10000")]).await;
    let mut slow = Raw::connect(vm.port).await;
    let mut sender = vm.connect().await;
    let mut witness = vm.connect().await;
    let data = "x".repeat(15 << 10);
    let mut slowest = Duration::ZERO;
    let cut = r#"sockets_closed_total{reason="slow_consumer"} 1"#;
    // The kernel's buffers take some megabytes before this program's own limit is reached.
    let mut sent = 0;
    loop {
        for _ in 0..20 {
            let begun = Instant::now();
            sender.send(json!({"type": "broadcast", "data": data})).await;
            witness.expect("broadcast").await;
            slowest = slowest.max(begun.elapsed());
            sent += 1;
        }
        if get(vm.port, "/metrics").await.text().contains(cut) {
            break;
        }
        assert!(sent < 10_000, "never cut off");
    }
    println!("cut off after {sent} events of 15 KiB; the slowest delivery to a reader took {slowest:?}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert_eq!(slow.closed().await, Some(1013), "told when it reads at last");
    sender.alert(json!({})).await;
    witness.expect("alert").await;
}

#[tokio::test]
async fn what_waited_for_a_slow_consumer_comes_again_when_it_returns() {
    let vm = Vm::alone(&[
        ("OUTBOX_BYTES", "65536"),
        ("MESSAGE_RATE", "10000"),
        ("MESSAGE_BURST", "10000"),
        ("HISTORY_EVENTS", "10000"),
        ("HISTORY_BYTES", "268435456"),
    ])
    .await;
    let mut slow = vm.connect().await;
    let mut undisturbed = vm.connect().await;
    let mut sender = vm.connect().await;
    let cut = r#"sockets_closed_total{reason="slow_consumer"} 1"#;
    let mut all = Vec::new();
    let mut send = async || {
        sender.send(json!({"type": "broadcast", "data": "x".repeat(15 << 10)})).await;
        let event = undisturbed.expect("broadcast").await;
        all.push(event["id"].clone());
    };
    while !get(vm.port, "/metrics").await.text().contains(cut) {
        send().await;
    }
    for _ in 0..5 {
        send().await;
    }

    // What the system had taken, whole frames in their order, and then the close.
    let (mut heard, mut cursor) = (Vec::new(), slow.refresh["cursor"].clone());
    let hint = loop {
        match within("close", slow.socket.next()).await {
            Some(Ok(Message::Text(text))) => {
                let message: Value = serde_json::from_str(&text).unwrap();
                if message["type"] == "broadcast" {
                    heard.push(message["id"].clone());
                    cursor = message["cursor"].clone();
                }
            }
            Some(Ok(Message::Close(Some(close)))) if u16::from(close.code) == 1013 => break close.reason,
            Some(Ok(Message::Ping(_))) => {}
            other => panic!("expected a close, got {other:?}"),
        }
    };
    assert!(hint.starts_with("retry in "), "{hint}");
    assert_eq!(heard, all[..heard.len()]);
    let lacking = all.len() - heard.len();
    assert!(lacking > 5, "no more than what came after the close: {lacking}");

    let back = Client::connect(vm.port, &format!("/ws?since={}", cursor.as_str().unwrap())).await;
    assert_eq!(back.refresh["complete"], true, "{}", back.refresh["reason"]);
    let events = back.refresh["events"].as_array().unwrap();
    let again: Vec<_> = events.iter().map(|event| event["id"].clone()).collect();
    // The overlap brings more than it lacks, and it knows that by its ids.
    assert!(again.len() >= lacking, "{} of {lacking}", again.len());
    assert!(all.ends_with(&again), "what an undisturbed socket heard, each once and in its order");
    println!("of {} events {lacking} waited or came after the close, and came again", all.len());
}

#[tokio::test]
async fn a_socket_that_only_pings_and_never_reads_is_cut_off_too() {
    let rates = [("PING_INTERVAL", "1"), ("MESSAGE_RATE", "1000000"), ("MESSAGE_BURST", "1000000")];
    let vm = Vm::alone(&rates).await;
    let mut pinging = Raw::connect(vm.port).await;
    // Until the pongs fill all buffers and this VM stops reading.
    let ping = [&[0x89, 0x80 | 125, 0, 0, 0, 0][..], &[b'x'; 125]].concat().repeat(500);
    let stalled = Duration::from_millis(500);
    while tokio::time::timeout(stalled, pinging.0.write_all(&ping)).await.is_ok() {}
    until("end of the socket", async || {
        (get(vm.port, "/status").await.json()["connectedClients"] == 0).then_some(())
    })
    .await;
    let metrics = get(vm.port, "/metrics").await;
    assert!(metrics.text().contains(r#"sockets_closed_total{reason="idle"} 1"#), "{}", metrics.text());
}

#[tokio::test]
async fn who_is_being_answered_is_not_let_go_for_those_who_say_nothing() {
    const SILENT: usize = 3 * OTHER_FILES;
    let _ = rlimit::increase_nofile_limit(2 * SILENT as u64);
    let vm = Vm::alone(&[("API_KEY", API_KEY)]).await;
    let mut asking = TcpStream::connect(("127.0.0.1", vm.port)).await.unwrap();
    let head = format!(
        "POST /alerts HTTP/1.1\r\nHost: vm\r\nAuthorization: Bearer {API_KEY}\r\nContent-Length: 2\r\n\r\n{{"
    );
    asking.write_all(head.as_bytes()).await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..SILENT {
        silent.push(TcpStream::connect(("127.0.0.1", vm.port)).await.unwrap());
    }
    // These came later than who asks, and had to make room all the same.
    for stream in &mut silent[500..600] {
        assert_eq!(within("end of who says nothing", stream.read(&mut [0])).await.unwrap_or(0), 0);
    }
    asking.write_all(b"}").await.unwrap();
    let answer = within("answer", BufReader::new(asking).lines().next_line()).await.unwrap();
    assert_eq!(answer.as_deref(), Some("HTTP/1.1 202 Accepted"));
}

#[tokio::test]
async fn an_idle_connection_takes_little_memory() {
    const CONNECTIONS: u64 = 8_000;
    let rates =
        [("UPGRADE_RATE", "100000"), ("UPGRADE_BURST", "100000"), ("MAX_CONNECTIONS_PER_ADDRESS", "10000")];
    let vm = Vm::alone(&rates).await;
    // Once through everything that is allocated for good.
    vm.connect().await.alert(json!({})).await;
    let before = vm.pss();
    let mut sockets = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut socket = open(vm.port, "/ws").await.unwrap();
        within("greeting", socket.next()).await.unwrap().unwrap();
        sockets.push(socket);
    }
    until("all connections", async || {
        let status = get(vm.port, "/status").await.json();
        (status["connectedClients"] == CONNECTIONS).then_some(())
    })
    .await;
    let each = vm.pss().saturating_sub(before) / CONNECTIONS;
    println!("memory per idle connection: {each} bytes of PSS at {CONNECTIONS} connections");
    assert!(each <= 2_000, "{each} bytes");
}

/// The 99th percentile of the time from a press of the button to its sight.
async fn alerts_p99(client: &mut Client) -> Duration {
    const PRESSES: usize = 250;
    // As fast as the limit allows.
    let mut presses = tokio::time::interval(Duration::from_millis(20));
    let mut times = Vec::new();
    for _ in 0..PRESSES {
        presses.tick().await;
        let id = uuid::Uuid::new_v4().to_string();
        let begun = Instant::now();
        client.send(json!({"type": "alert", "id": id})).await;
        while client.expect("alert").await["id"] != id.as_str() {}
        times.push(begun.elapsed());
    }
    times.sort();
    times[PRESSES * 99 / 100]
}

/// What a flood has met with.
#[derive(Default)]
struct Met {
    refused: AtomicU32,
    cut: AtomicU32,
}

/// Opens sockets as fast as it can, and speaks on none.
async fn flood_of_upgrades(source: &str, port: u16, met: &Met) {
    loop {
        if let Err(Error::Http(answer)) = open_from(source, port).await {
            assert_eq!(answer.status(), 429);
            met.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Sends as fast as it can on one socket after the other.
async fn flood_of_messages(source: &str, port: u16, met: &Met) {
    let alert = Message::text(json!({"type": "alert", "data": {"note": "flood"}}).to_string());
    loop {
        let Ok(socket) = open_from(source, port).await else { continue };
        let (mut sender, mut receiver) = socket.split();
        let sending = async { while sender.send(alert.clone()).await.is_ok() {} };
        let cut_off = async {
            loop {
                match receiver.next().await {
                    Some(Ok(Message::Close(Some(close)))) => return u16::from(close.code) == 1008,
                    Some(Ok(_)) => {}
                    _ => return false,
                }
            }
        };
        tokio::select! {
            () = sending => {}
            cut = cut_off => {
                met.cut.fetch_add(cut.into(), Ordering::Relaxed);
            }
        }
    }
}

/// The same beside a flood. That has a thread of its own: it is not to slow the client by the runtime that they
/// share.
async fn alerts_p99_beside<F: Future>(
    client: &mut Client,
    flood: impl FnOnce() -> F + Send + 'static,
) -> Duration {
    let stop = CancellationToken::new();
    let flooding = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    _ = flood() => {}
                    () = stop.cancelled() => {}
                }
            });
        }
    });
    let loud = alerts_p99(client).await;
    stop.cancel();
    tokio::task::spawn_blocking(move || flooding.join().unwrap()).await.unwrap();
    loud
}

#[tokio::test]
async fn a_flood_from_one_address_does_not_slow_another() {
    let vm = Vm::alone(&[]).await;
    let mut client = vm.connect().await;
    let quiet = alerts_p99(&mut client).await;

    let met = Arc::new(Met::default());
    let flood = {
        let (met, port) = (Arc::clone(&met), vm.port);
        async move || {
            let upgrades = || flood_of_upgrades("127.0.0.2", port, &met);
            let messages = || flood_of_messages("127.0.0.2", port, &met);
            tokio::join!(upgrades(), messages(), upgrades(), messages());
        }
    };
    let loud = alerts_p99_beside(&mut client, flood).await;
    let (refused, cut) = (met.refused.load(Ordering::Relaxed), met.cut.load(Ordering::Relaxed));
    println!(
        "p99 of a client's alert: {quiet:?} alone, {loud:?} beside a flood from another address \
         ({refused} upgrades refused, {cut} sockets cut off)"
    );
    assert!(refused > 0 && cut > 0, "no flood");
    // A busy machine slows both.
    assert!(loud < 4 * quiet + Duration::from_millis(250), "{loud:?}");
}

#[tokio::test]
async fn who_asks_for_figures_without_end_does_not_slow_others() {
    let vm = Vm::alone(&[]).await;
    let mut client = vm.connect().await;
    let quiet = alerts_p99(&mut client).await;

    let answered = Arc::new(AtomicU32::new(0));
    let flood = {
        let (answered, port) = (Arc::clone(&answered), vm.port);
        async move || {
            let asks = async |path| {
                loop {
                    assert_eq!(get(port, path).await.status, 200);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            };
            tokio::join!(asks("/metrics"), asks("/status"), asks("/metrics"), asks("/status"));
        }
    };
    let loud = alerts_p99_beside(&mut client, flood).await;
    let answered = answered.load(Ordering::Relaxed);
    println!("p99 of a client's alert: {quiet:?} alone, {loud:?} beside {answered} questions for figures");
    assert!(answered > 1_000, "no flood: {answered}");
    assert!(loud < 4 * quiet + Duration::from_millis(250), "{loud:?}");
}

#[tokio::test]
async fn who_connects_and_says_nothing_keeps_nobody_out() {
    // As many as there may be that are no sockets, and some more for whom there is no room.
    const SILENT: usize = 5_000;
    let _ = rlimit::increase_nofile_limit(2 * SILENT as u64);
    let vm = Vm::alone(&[]).await;
    let mut witness = vm.connect().await;
    let mut silent = Vec::new();
    for _ in 0..SILENT {
        silent.push(within("connection", TcpStream::connect(("127.0.0.1", vm.port))).await.unwrap());
    }
    let begun = Instant::now();
    vm.connect().await.alert(json!({})).await;
    let took = begun.elapsed();
    println!("beside {SILENT} silent connections, a page was let in after {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    witness.expect("alert").await;
    assert!(vm.files() <= OTHER_FILES, "{} files are open", vm.files());
    // No more than its share is kept: the oldest were ended.
    let mut end = [0];
    let ended = within("end of the oldest", silent[0].read(&mut end)).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

#[tokio::test]
async fn a_connection_that_is_no_socket_lives_for_a_minute() {
    let vm = Vm::alone(&[]).await;
    let few = vm.files();
    let begun = Instant::now();
    let page = b"GET /static/client.js HTTP/1.1\r\nHost: vm\r\n\r\n";
    // It asks for ever and reads nothing, until nothing more is taken.
    let mut deaf = TcpStream::connect(("127.0.0.1", vm.port)).await.unwrap();
    let (second, pages) = (Duration::from_secs(1), page.repeat(100));
    while let Ok(Ok(())) = tokio::time::timeout(second, deaf.write_all(&pages)).await {}
    // This one asks in time, again and again, and reads what it is told.
    let mut busy = TcpStream::connect(("127.0.0.1", vm.port)).await.unwrap();
    let opened = Instant::now();
    let mut answer = vec![0; 64 << 10];
    while busy.write_all(b"GET /health HTTP/1.1\r\nHost: vm\r\n\r\n").await.is_ok() {
        if !matches!(within("answer or end", busy.read(&mut answer)).await, Ok(1..)) {
            break;
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    let busy_s = opened.elapsed();
    let deaf_s = within("end of the other", async {
        while vm.files() > few {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        begun.elapsed()
    })
    .await;
    println!("a busy connection ended after {busy_s:.1?}, one that never reads after {deaf_s:.1?}");
    assert!((60..75).contains(&busy_s.as_secs()) && (68..85).contains(&deaf_s.as_secs()));
}

#[tokio::test]
async fn control_frames_count_as_messages() {
    let vm = Vm::alone(&[("MESSAGE_RATE", "1"), ("MESSAGE_BURST", "5")]).await;
    let mut witness = vm.connect().await;
    for first in [0x89, 0x8a] {
        // Of an address that did not flood just now.
        let source = format!("127.0.1.{first}");
        let socket = open_from(&source, vm.port).await.unwrap();
        let mut flooder = Client::greeted(socket).await;
        for _ in 0..100 {
            let message = if first == 0x89 { Message::Ping("x".into()) } else { Message::Pong("x".into()) };
            if flooder.socket.send(message).await.is_err() {
                break;
            }
        }
        assert_eq!(flooder.closed().await.map(|(code, _)| code), Some(1008), "{first:#x}");
    }
    witness.alert(json!({})).await;
}

#[tokio::test]
async fn fragments_beyond_a_few_count_as_messages() {
    let vm = Vm::alone(&[("MESSAGE_RATE", "1"), ("MESSAGE_BURST", "5")]).await;
    let mut witness = vm.connect().await;
    let mut raw = Raw::connect(vm.port).await;
    // As many as a long message sensibly has are one message.
    let ping = br#"{"type":"ping"}"#;
    for (number, byte) in ping.iter().enumerate() {
        raw.frame(u8::from(number == 0), &[*byte]).await;
    }
    raw.frame(0x80, b"").await;
    let pong = async {
        loop {
            let (_, told) = raw.next().await.unwrap();
            assert!(!told.starts_with(br#"{"type":"error""#), "{}", told.escape_ascii());
            if told.starts_with(br#"{"type":"pong""#) {
                return;
            }
        }
    };
    within("pong", pong).await;
    // Empty ones without an end.
    raw.frame(0x01, b"").await;
    let empty = [0, 0x80, 0, 0, 0, 0];
    raw.0.write_all(&empty.repeat(24)).await.unwrap();
    let told = within("word of it", async {
        loop {
            let (_, told) = raw.next().await.unwrap();
            if told.starts_with(br#"{"type":"error""#) {
                return String::from_utf8(told).unwrap();
            }
        }
    })
    .await;
    assert!(told.contains(r#""code":"rate_limited""#), "{told}");
    raw.0.write_all(&empty.repeat(1_000)).await.unwrap();
    assert_eq!(raw.closed().await, Some(1008));
    knock(&vm, "/ws", &[]).await.assert_refused(429, "rate_limited");
    witness.alert(json!({})).await;
}

#[tokio::test]
async fn a_request_s_head_is_bounded() {
    let vm = Vm::alone(&[]).await;
    let many: String = (0..101).map(|number| format!("X-{number}: 1\r\n")).collect();
    let long = format!("X-Long: {}\r\n", "x".repeat(17 << 10));
    for (path, lines, statuses) in [
        ("/health", many.as_str(), &["431"][..]),
        ("/health", long.as_str(), &["431"]),
        (&format!("/{}", "x".repeat(17 << 10)), "", &["414", "431"]),
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", vm.port)).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n");
        // The rest may meet a closed connection.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut head = [0; 12];
        within("answer", stream.read_exact(&mut head)).await.unwrap();
        let status = std::str::from_utf8(&head[9..]).unwrap();
        assert!(statuses.contains(&status), "{status}");
    }
    assert_eq!(get(vm.port, "/health").await.status, 200);
}

#[tokio::test]
async fn nobody_makes_new_figures_by_what_they_say() {
    let vm = Vm::alone(&[("API_KEY", API_KEY)]).await;
    let mut client = vm.connect().await;
    client.alert(json!({})).await;
    client.send(json!({"type": "no such type"})).await;
    client.settle().await;
    let post = async |number: u32| {
        let body = json!({"type": format!("app-{number}"), "data": 1}).to_string();
        let path = format!("/channels/channel-{number}");
        assert_eq!(ask(vm.port, "POST", &path, &[], &body).await.status, 202);
        get(vm.port, &format!("/no/such/page/{number}")).await;
        let _ = knock(&vm, &format!("/ws?since={number}"), &[("sec-websocket-version", "1")]).await;
    };
    let lines = async || get(vm.port, "/metrics").await.text().lines().count();
    post(0).await;
    let before = lines().await;
    for number in 1..100 {
        post(number).await;
        client.send(json!({"type": format!("unknown-{number}"), "channel": format!("c{number}")})).await;
    }
    client.settle().await;
    assert_eq!(lines().await, before);
}

#[tokio::test]
async fn closed_and_still_talking_is_ended() {
    let vm = Vm::alone(&[]).await;
    let mut raw = Raw::connect(vm.port).await;
    raw.frame(0x83, b"").await;
    assert_eq!(raw.closed().await, Some(1002));
    let mut sent = 0;
    let piece = vec![b'x'; 64 << 10];
    while raw.0.write_all(&piece).await.is_ok() {
        sent += piece.len();
        // What the system's buffers hold comes on top of what is read.
        assert!(sent < 64 << 20, "still listened to");
    }
    until("end of the socket", async || {
        (get(vm.port, "/status").await.json()["connectedClients"] == 0).then_some(())
    })
    .await;
}
