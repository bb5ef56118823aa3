//! Memory that others want: what they can make a VM keep is bounded for all of them together, below what the
//! smallest machine has; and where there is too little all the same, nothing is lost for good.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::time::Instant;

use alien_alert::vm::OTHER_FILES;
use futures_util::StreamExt as _;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::client::Client;
use crate::support::emulator::{Emulator, PROJECT};
use crate::support::group::Group;
use crate::support::vm::{Vm, complete, program};
use crate::support::{until, within};

/// The smallest machine has 256 MiB, of which the system and its network take their part.
const ROOM: u64 = 160 << 20;

/// Settings for clients that say much.
const UNHURRIED: [(&str, &str); 2] = [("MESSAGE_RATE", "100000"), ("MESSAGE_BURST", "100000")];

const MIB: f64 = (1 << 20) as f64;

/// A socket that takes little and is never read, after its handshake; and its id.
///
/// # Errors
/// The VM is gone.
async fn open_deaf(source: &str, port: u16, path: &str) -> io::Result<(TcpStream, String)> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4 << 10)?;
    socket.bind(format!("{source}:0").parse().unwrap())?;
    let mut stream = socket.connect(([127, 0, 0, 1], port).into()).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: vm\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut told = String::new();
    loop {
        let mut bytes = [0; 256];
        let count = within("greeting", stream.read(&mut bytes)).await?;
        if count == 0 {
            return Err(io::Error::other(told));
        }
        told += &String::from_utf8_lossy(&bytes[..count]);
        let id = told.split_once(r#""clientId":""#).and_then(|(_, rest)| rest.split_once('"'));
        if let Some((id, _)) = id {
            return Ok((stream, id.to_owned()));
        }
    }
}

/// A VM in a group whose memory is counted from the start.
async fn counted(group: &Group, vars: &[(&str, &str)]) -> Vm {
    let vm = Vm::spawn_by(&[&group.enter()[..], &[program()]].concat(), "counted", vars).await;
    vm.ready().await;
    vm
}

/// The same in a group of its own that may take [`ROOM`].
async fn cramped(vars: &[(&str, &str)]) -> (Group, Vm) {
    let group = Group::of_memory();
    group.limit_memory(ROOM);
    let vm = counted(&group, vars).await;
    (group, vm)
}

/// As many channels as a socket may name, with as long names as they may have.
fn channels(number: usize) -> String {
    let names: Vec<_> =
        (0..64).map(|channel| format!("{number:05}-{channel:02}-{}", "x".repeat(119))).collect();
    format!("/ws?channels={}", names.join(","))
}

#[tokio::test]
async fn many_who_join_all_that_they_can_do_not_get_it_killed() {
    const SOCKETS: usize = 8_000;
    let (group, vm) = cramped(&[]).await;
    let before = group.memory();
    let mut deaf = Vec::new();
    for number in 0..SOCKETS {
        let source = format!("127.0.1.{}", number / 199);
        deaf.push(open_deaf(&source, vm.port, &channels(number)).await.unwrap());
    }
    let grown = group.most_memory() - before;
    println!("{SOCKETS} sockets of 64 channels each took {:.0} MiB", grown as f64 / MIB);
    // Others speak and hear as ever, and may be told that there is no room for what they want.
    let mut page = vm.connect().await;
    page.send(json!({"type": "subscribe", "channel": "mine", "id": "1"})).await;
    let refused = page.next().await;
    assert_eq!((&refused["type"], &refused["code"]), (&json!("error"), &json!("unavailable")), "{refused}");
    page.alert(json!({})).await;
    drop(deaf);
    until("room again", async || {
        page.send(json!({"type": "subscribe", "channel": "mine", "id": "2"})).await;
        (page.next().await["type"] == "refresh-store").then_some(())
    })
    .await;
}

#[tokio::test]
async fn many_who_begin_and_never_end_do_not_get_it_killed() {
    const SOCKETS: usize = 8_000;
    let _ = rlimit::increase_nofile_limit(2 * SOCKETS as u64);
    let (group, vm) = cramped(&UNHURRIED).await;
    let mut speaker = Client::connect(vm.port, "/ws?channels=busy").await;
    let told = |what: &str| {
        let (now, most) = (group.memory() as f64 / MIB, group.most_memory() as f64 / MIB);
        println!("{what}: {now:.0} MiB, and {most:.0} at most");
    };
    told("at first");
    let mut sockets = Vec::new();
    // These fill the room for channels.
    for number in 0..1_200 {
        let source = format!("127.0.2.{}", number / 199);
        sockets.push(open_deaf(&source, vm.port, &channels(number)).await.unwrap().0);
    }
    told("1,200 sockets of 64 channels each");
    // As long as a message may be, but for its last byte.
    let length = 16_u16 << 10;
    let text = vec![b'x'; usize::from(length) - 1];
    let message = [&[0x81, 0x80 | 126][..], &length.to_be_bytes(), &[0; 4], &text].concat();
    for number in 0..SOCKETS {
        let source = format!("127.0.1.{}", number / 199);
        let (mut stream, _) = open_deaf(&source, vm.port, "/ws").await.unwrap();
        stream.write_all(&message).await.unwrap();
        sockets.push(stream);
    }
    told("8,000 more with an unfinished message each");
    let head = format!("GET / HTTP/1.1\r\nHost: vm\r\nX-Long: {}", "x".repeat(16_000));
    let mut heads = Vec::new();
    for _ in 0..2 * OTHER_FILES {
        let mut stream = TcpStream::connect(("127.0.0.1", vm.port)).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        heads.push(stream);
    }
    told("and as many half-sent requests as there is room for");
    let event = json!({"type": "broadcast", "channel": "busy", "data": "x".repeat(15 << 10)});
    for _ in 0..300 {
        speaker.send(event.clone()).await;
        speaker.expect("ack").await;
    }
    told("and a full history");
    vm.connect().await.alert(json!({})).await;
    speaker.expect("alert").await;
}

#[tokio::test]
async fn many_who_are_told_much_and_never_read_do_not_get_it_killed() {
    // Each of them might leave a MiB unread.
    const DEAF: usize = 128;
    let (group, vm) = cramped(&UNHURRIED).await;
    let mut deaf = Vec::new();
    for _ in 0..DEAF {
        deaf.push(open_deaf("127.0.1.1", vm.port, "/ws").await.unwrap());
    }
    let mut witness = vm.connect().await;
    let data = "x".repeat(15 << 10);
    let mut sender = vm.connect().await;
    let before = group.memory();
    let name = r#"alien_alert_sockets_closed_total{reason="slow_consumer"}"#;
    let cut_off = async || usize::try_from(vm.figure(name).await).unwrap();
    // The system takes some for each first.
    let mut told = 0;
    while cut_off().await < DEAF / 2 {
        for (_, id) in &deaf {
            sender.send(json!({"type": "direct", "targetId": id, "data": data})).await;
        }
        // Answers are read, or it would be one of them.
        sender.settle().await;
        told += data.len();
        assert!(told < 16 << 20, "never cut off");
    }
    let grown = (group.most_memory() - before) as f64 / MIB;
    let told = told as f64 / MIB;
    println!(
        "{grown:.0} MiB at most for {DEAF} sockets that were told {told:.1} MiB each and read none of it"
    );
    assert!(grown < 64.0, "{grown}");
    witness.alert(json!({})).await;
}

#[tokio::test]
async fn many_who_ask_for_the_history_and_never_read_do_not_get_it_killed() {
    const DEAF: usize = 150;
    let (group, vm) = cramped(&UNHURRIED).await;
    let mut sender = vm.connect().await;
    let event = json!({"type": "broadcast", "data": "x".repeat(15 << 10)});
    for _ in 0..300 {
        sender.send(event.clone()).await;
        sender.expect("ack").await;
    }
    let before = group.memory();
    let mut deaf = Vec::new();
    for _ in 0..DEAF {
        // With each event, pages at both ends of the history are other ones; some of them are kept for those
        // alone who asked before.
        sender.send(event.clone()).await;
        sender.expect("ack").await;
        deaf.push(open_deaf("127.0.1.1", vm.port, "/ws").await.unwrap());
    }
    let grown = (group.most_memory() - before) as f64 / MIB;
    println!("{grown:.0} MiB at most for {DEAF} sockets that asked for the history and read none of it");
    assert!(grown < 64.0, "{grown}");
    vm.connect().await.alert(json!({})).await;
}

#[tokio::test]
async fn killed_for_its_memory_it_comes_back_to_all_of_it() {
    let emulator = Emulator::start().await;
    let host = emulator.host();
    let sin = Vm::on(&emulator, "sin").await;
    let group = Group::of_memory();
    let vars = [
        ("PUBSUB_EMULATOR_HOST", &*host),
        ("GOOGLE_CLOUD_PROJECT", PROJECT),
        ("FLY_ALLOC_ID", "vm-ams"),
        ("FLY_REGION", "ams"),
    ];
    let mut ams = counted(&group, &vars).await;
    let mut page = ams.connect().await;
    let mut other = sin.connect().await;
    let heard = other.alert(json!({"note": "before"})).await;
    assert_eq!(page.expect("alert").await["id"], heard.as_str());
    let cursor = page.refresh["cursor"].as_str().unwrap().to_owned();

    group.limit_memory(group.memory() + (1 << 20));
    let port = ams.port;
    // Its end is the crowd's, too, at some place or other.
    let crowding = tokio::spawn(async move {
        let mut crowd = Vec::new();
        for number in 0.. {
            let (source, path) = (format!("127.0.1.{}", number / 199), channels(number));
            let Ok(one) = open_deaf(&source, port, &path).await else { return };
            crowd.push(one);
        }
    });
    let status = ams.exit().await;
    within("end of the crowd", crowding).await.unwrap();
    assert_eq!(status.signal(), Some(9), "{status}: by the system, as a supervisor sees");
    assert!(!matches!(within("end of the socket", page.socket.next()).await, Some(Ok(_))));

    let missed = other.alert(json!({"note": "meanwhile"})).await;
    let begun = Instant::now();
    group.limit_memory(ROOM);
    let ams = counted(&group, &vars).await;
    // The topic may take a while to see that who was killed does not read any more; until then it is said
    // that something is missing.
    let refresh = complete(&ams, &format!("/ws?since={cursor}")).await;
    println!("killed, started and caught up within {:.1?}", begun.elapsed());
    let ids: Vec<_> =
        refresh["events"].as_array().unwrap().iter().map(|event| event["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [heard, missed]);
}
