//! A shard with real sockets over loopback: what each hears, and in what order.

use bytes::Bytes;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;
use crate::admission::Admission;
use crate::auth::Visitor;
use crate::bus::Bus;
use crate::bus::memory::Topic;
use crate::config::Config;
use crate::metrics::Format;

/// So much may a socket leave unread here.
const OUTBOX: usize = 1 << 20;

struct World {
    relay: Arc<Relay>,
    listener: TcpListener,
    admission: Arc<Admission>,
    /// Each client has an address of its own.
    addresses: AtomicU32,
    stop: CancellationToken,
    shard: Option<JoinHandle<()>>,
}

/// One client; what it is told begins with a greeting that is left out here.
struct Client {
    stream: TcpStream,
    outbox: Outbox,
    client_id: Arc<str>,
}

impl World {
    async fn new() -> Self {
        let (mut world, shard) = Self::by_hand().await;
        world.shard = Some(tokio::spawn(shard.run(world.stop.clone())));
        world
    }

    /// One whose shard does a turn when the test says so.
    async fn by_hand() -> (Self, Shard) {
        let config = Config::from_vars([]).unwrap();
        let limits = config.limits;
        let bus = Bus::Memory(Topic::new(config.history).member());
        let relay = Arc::new(Relay::new(config, bus, 1));
        let shard = Shard::new(Arc::clone(&relay), relay.shards[0].clone(), TaskTracker::new());
        let world = Self {
            listener: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(),
            admission: Admission::new(limits),
            addresses: AtomicU32::new(0),
            stop: CancellationToken::new(),
            shard: None,
            relay,
        };
        (world, shard)
    }

    /// A client, with the greeting in place of what a real one would have.
    async fn client(&self, greeting: &[&str]) -> Client {
        let address = self.listener.local_addr().unwrap();
        let (stream, accepted) = tokio::join!(TcpStream::connect(address), self.listener.accept());
        let (stream, (served, _)) = (stream.unwrap(), accepted.unwrap());
        let from = Ipv4Addr::from(self.addresses.fetch_add(1, Ordering::Relaxed));
        let place = self.admission.admit(IpAddr::V4(from)).unwrap();
        let mut seated = None;
        self.relay.join(None, &[], Visitor::default(), |member, _| {
            let (outbox, client_id) = (member.outbox.clone(), Arc::clone(&member.client_id));
            let parts = greeting.iter().map(|text| Frame::text(text.as_bytes()).into_bytes()).collect();
            let greeting = Message { parts, is_refresh: true, written: None };
            let (answer, early) = (Bytes::new(), Vec::new());
            let arrival = Arrival { stream: served, answer, early, greeting, member, presence: None, place };
            outbox.mailbox.send(Command::Join(outbox.id, Box::new(arrival)));
            seated = Some((outbox, client_id));
        });
        let (outbox, client_id) = seated.unwrap();
        Client { stream, outbox, client_id }
    }

    fn tell(&self, text: &str, except: Option<&Client>) {
        let frame = Frame::text(text.as_bytes());
        self.relay.shards[0].tell(None, except.map(|client| client.outbox.id), frame);
    }

    async fn end(self) {
        self.stop.cancel();
        let shard = self.shard.expect("it goes by itself");
        timeout(Duration::from_secs(10), shard).await.expect("the shard does not end").unwrap();
    }
}

impl Client {
    fn say(&self, text: &str) {
        self.outbox.push(Frame::text(text.as_bytes()));
    }

    /// The next frame's first byte and payload.
    async fn frame(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head).await.unwrap();
        let length = match head[1] {
            126 => usize::from(self.stream.read_u16().await.unwrap()),
            127 => usize::try_from(self.stream.read_u64().await.unwrap()).unwrap(),
            short => usize::from(short),
        };
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await.unwrap();
        (head[0], payload)
    }

    async fn hears(&mut self, expected: &[&str]) {
        for text in expected {
            let (first, payload) = self.frame().await;
            assert_eq!((first, String::from_utf8_lossy(&payload).as_ref()), (0x81, *text));
        }
    }

    async fn is_closed(&mut self, code: u16) {
        let (first, payload) = self.frame().await;
        assert_eq!((first, &payload[..2]), (0x88, &code.to_be_bytes()[..]));
    }
}

#[tokio::test]
async fn what_is_for_one_keeps_its_place_among_what_is_for_all() {
    let world = World::new().await;
    let mut one = world.client(&["hello", "one"]).await;
    let mut other = world.client(&["hello"]).await;
    world.tell("a", None);
    one.say("for one");
    world.tell("b", Some(&other));
    world.tell("c", None);
    other.say("for the other");
    world.tell("d", Some(&one));
    let mut late = world.client(&["hello"]).await;
    world.tell("e", None);
    one.hears(&["hello", "one", "a", "for one", "b", "c", "e"]).await;
    other.hears(&["hello", "a", "c", "for the other", "d", "e"]).await;
    late.hears(&["hello", "e"]).await;

    // Many at once, so that one pass has more turns than one call writes.
    for number in 0..200 {
        world.tell(&format!("{number}"), (number % 2 == 0).then_some(&one));
        one.say("own");
    }
    for number in 0..200 {
        let number = format!("{number}");
        let odd = number.ends_with(['1', '3', '5', '7', '9']);
        if odd {
            one.hears(&[&number]).await;
        }
        one.hears(&["own"]).await;
        other.hears(&[&number]).await;
    }
    drop((one, other, late));
    world.end().await;
}

#[tokio::test]
async fn a_channel_s_members_hear_it_in_its_place() {
    let world = World::new().await;
    let [mut one, mut other] = [world.client(&[]).await, world.client(&[]).await];
    let channel = Channel::new("c").unwrap();
    let shard = &world.relay.shards[0];
    shard.send(Command::Enter(one.outbox.id, channel.clone()));
    world.tell("a", None);
    shard.tell(Some(channel.clone()), None, Frame::text(b"b"));
    shard.tell(Some(channel.clone()), Some(one.outbox.id), Frame::text(b"not for one"));
    world.tell("c", None);
    shard.send(Command::Exit(one.outbox.id, channel.clone()));
    shard.tell(Some(channel), None, Frame::text(b"for nobody"));
    world.tell("d", None);
    one.hears(&["a", "b", "c", "d"]).await;
    other.hears(&["a", "c", "d"]).await;
    drop((one, other));
    world.end().await;
}

#[tokio::test]
async fn one_that_does_not_read_is_cut_off_alone_at_the_end_of_a_frame() {
    let world = World::new().await;
    let [mut slow, mut reading] = [world.client(&[]).await, world.client(&[]).await];
    let text = "x".repeat(100_000);
    let mut told = 0;
    // What the system buffers of loopback comes on top of the limit.
    while world.relay.find(&slow.client_id).is_some() {
        world.tell(&text, None);
        reading.hears(&[&text]).await;
        told += 1;
        assert!(told < 1_000, "never cut off");
    }
    assert!(told * text.len() > OUTBOX);
    let mut heard = 0;
    let close = loop {
        let (first, payload) = slow.frame().await;
        if first != 0x81 {
            break payload;
        }
        assert_eq!(payload.len(), text.len(), "whole frames only");
        heard += 1;
    };
    assert_eq!(close[..2], 1013_u16.to_be_bytes());
    assert!(heard < told);
    world.tell("on", None);
    reading.hears(&["on"]).await;
    drop((slow, reading));
    world.end().await;
}

#[tokio::test]
async fn a_long_refresh_is_written_whole_before_a_close() {
    let world = World::new().await;
    let mut client = world.client(&[]).await;
    let part = Bytes::from(vec![b'x'; OUTBOX]);
    let parts = crate::frame::text_of_parts(vec![part.clone(), part.clone(), part]);
    client.outbox.push(Message { parts, is_refresh: true, written: None });
    world.tell("after", None);
    client.outbox.close(Close::new(CloseCode::Restart, "restart"));
    world.tell("never heard", None);
    assert_eq!(client.frame().await.1.len(), 3 * OUTBOX);
    client.hears(&["after"]).await;
    client.is_closed(1012).await;
    let mut rest = Vec::new();
    client.stream.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "nothing comes after a close");
    drop(client);
    world.end().await;
}

#[tokio::test]
async fn written_is_told_when_it_is_and_never_when_it_is_not() {
    let world = World::new().await;
    let mut client = world.client(&[]).await;
    let notice = tokio::sync::watch::Sender::new(false);
    let mut written = notice.subscribe();
    client.outbox.push_noticed(Frame::text(b"noticed"), notice);
    client.hears(&["noticed"]).await;
    written.wait_for(|written| *written).await.unwrap();
    let outbox = client.outbox.clone();
    drop(client);
    let notice = tokio::sync::watch::Sender::new(false);
    let mut written = notice.subscribe();
    // The system may still take some for a connection that is gone.
    let frame = Frame::text(&vec![b'x'; 20 * OUTBOX]);
    outbox.push_noticed(frame, notice);
    assert!(written.wait_for(|written| *written).await.is_err());
    world.end().await;
}

#[tokio::test]
async fn passes_reach_everybody_while_sockets_come_and_go() {
    let world = World::new().await;
    let mut clients = Vec::new();
    for _ in 0..150 {
        clients.push(world.client(&[]).await);
    }
    for number in 0..40 {
        let text = number.to_string();
        world.tell(&text, None);
        // Between the slices of the pass some go, and others take their places.
        drop(clients.remove(fastrand::usize(..clients.len())));
        clients.push(world.client(&[]).await);
        let newest = clients.len() - 1;
        for client in &mut clients[..newest] {
            client.hears(&[&text]).await;
        }
    }
    drop(clients);
    world.end().await;
}

#[tokio::test]
async fn a_pass_ends_though_sockets_go_all_the_while() {
    let (world, mut shard) = World::by_hand().await;
    let mut clients = Vec::new();
    for _ in 0..3 * SLICE {
        clients.push(world.client(&[]).await);
    }
    while !shard.is_idle() || shard.sockets.len() < clients.len() {
        shard.round();
    }
    world.tell("a", None);
    for turn in 1..=3 {
        let (id, _) = shard.sockets.get_index(fastrand::usize(..shard.sockets.len())).unwrap();
        shard.over.push((*id, Over::Lost));
        shard.round();
        assert_eq!(shard.pass.done == shard.log.head(), turn == 3, "after {turn} slices");
    }
    assert_eq!(shard.sockets.len(), 3 * SLICE - 3, "buried in between");
    for client in &mut clients {
        client.hears(&["a"]).await;
    }
}

/// So much of the log is kept.
fn kept(log: &Log) -> usize {
    log.between(0, log.head()).len()
}

#[tokio::test]
async fn one_that_is_to_close_and_takes_nothing_does_not_hold_the_log() {
    let (world, mut shard) = World::by_hand().await;
    let mut reading = world.client(&[]).await;
    let text = "x".repeat(100_000);
    let mut tell = async |shard: &mut Shard, count: usize| {
        for _ in 0..count {
            world.tell(&text, None);
            shard.round();
            reading.hears(&[&text]).await;
        }
    };

    let slow = world.client(&[]).await;
    while world.relay.find(&slow.client_id).is_some() {
        tell(&mut shard, 1).await;
    }
    tell(&mut shard, 2 * OUTBOX / text.len()).await;
    assert!(kept(&shard.log) < OUTBOX / 2, "{} after it was cut off", kept(&shard.log));
    assert_eq!(shard.sockets.len(), 2, "it may still read the close");

    let restarted = world.client(&[]).await;
    shard.round();
    while shard.sockets.last().is_some_and(|(_, resident)| !resident.socket.is_blocked) {
        tell(&mut shard, 1).await;
    }
    restarted.outbox.close(Close::new(CloseCode::Restart, "restart"));
    tell(&mut shard, 2 * OUTBOX / text.len()).await;
    assert!(kept(&shard.log) < OUTBOX / 2, "{} after another is to come back", kept(&shard.log));
    assert_eq!(shard.sockets.len(), 2, "it is dropped by the same limit");
}

#[tokio::test]
async fn what_many_are_told_at_once_goes_in_slices_too() {
    let (world, mut shard) = World::by_hand().await;
    let mailbox = &world.relay.shards[0];
    let channel = Channel::new("c").unwrap();
    let mut clients = Vec::new();
    for _ in 0..3 * SLICE {
        let client = world.client(&[]).await;
        mailbox.send(Command::Enter(client.outbox.id, channel.clone()));
        clients.push(client);
    }
    shard.round();
    assert_eq!((shard.sockets.len(), shard.commands.len()), (SLICE / 2, 5 * SLICE));
    while !shard.is_idle() {
        shard.round();
    }

    mailbox.tell(Some(channel.clone()), None, Frame::text(b"a"));
    shard.round();
    assert_eq!(shard.listed.len(), 2 * SLICE, "are written to in the next turns");
    shard.round();
    shard.round();
    assert!(shard.is_idle());
    for client in &mut clients {
        client.hears(&["a"]).await;
    }

    // More than may wait: that stays with the topic.
    let count = 3 * TURNS / clients.len();
    for _ in 0..count {
        mailbox.tell(Some(channel.clone()), None, Frame::text(b"b"));
    }
    let mut most = 0;
    while !shard.is_idle() || !mailbox.is_empty() {
        shard.obey();
        most = most.max(shard.sockets.values().map(|resident| resident.socket.turns()).sum());
        shard.write();
    }
    assert!(most <= TURNS + clients.len(), "{most} turns");
    for client in &mut clients {
        client.hears(&vec!["b"; count]).await;
    }
}

#[tokio::test]
async fn one_that_reads_again_in_time_hears_all_and_is_heard() {
    let (world, mut shard) = World::by_hand().await;
    let mut client = world.client(&[]).await;
    shard.round();
    let text = "x".repeat(100_000);
    let mut told = 0;
    while !shard.sockets[0].socket.is_blocked {
        world.tell(&text, None);
        shard.round();
        told += 1;
    }
    // What it says meanwhile waits with the system.
    client.stream.write_all(&[0x89, 0x81, 0, 0, 0, 0, b'p']).await.unwrap();
    client.say("to it alone");
    world.tell("to all", None);
    shard.round();
    assert!(shard.sockets[0].socket.is_blocked);

    let shard = tokio::spawn(shard.run(world.stop.clone()));
    client.hears(&vec![text.as_str(); told]).await;
    client.hears(&["to it alone", "to all"]).await;
    assert_eq!(client.frame().await, (0x8a, b"p".into()));
    client.stream.write_all(&[0x88, 0x82, 0, 0, 0, 0, 3, 0xe8]).await.unwrap();
    client.is_closed(1000).await;
    drop(client);
    World { shard: Some(shard), ..world }.end().await;
}

#[tokio::test]
async fn a_watch_is_stopped_when_the_last_one_is_written_to() {
    let (world, mut shard) = World::by_hand().await;
    let mailbox = &world.relay.shards[0];
    let channel = Channel::new("c").unwrap();
    let mut clients = Vec::new();
    for _ in 0..2 * SLICE {
        let client = world.client(&[]).await;
        mailbox.send(Command::Enter(client.outbox.id, channel.clone()));
        clients.push(client);
    }
    while !shard.is_idle() || !mailbox.is_empty() {
        shard.round();
    }
    let metrics = &world.relay.metrics;
    let is_counted = |count: u64| {
        let line = format!("alien_alert_delivery_duration_seconds_count {count}");
        metrics.text(Format::Plain).lines().any(|other| other == line)
    };
    for (before, channel) in [(0, None), (1, Some(channel))] {
        mailbox.tell(channel, None, Frame::text(b"a"));
        mailbox.send(Command::Time(Stopwatch::since(clock::now_micros(), &metrics.delivery)));
        shard.round();
        assert!(is_counted(before), "half of them were written to");
        shard.round();
        assert!(is_counted(before + 1));
    }
    for client in &mut clients {
        client.hears(&["a", "a"]).await;
    }
}

#[tokio::test]
async fn what_sockets_leave_unread_is_told() {
    let (world, mut shard) = World::by_hand().await;
    let client = world.client(&[]).await;
    shard.round();
    let text = "x".repeat(100_000);
    while shard.sockets[0].socket.lag(&shard.log) == 0 {
        world.tell(&text, None);
        shard.round();
    }
    shard.tend();
    let unread = &world.relay.metrics.unread;
    assert_eq!(unread.get(), shard.sockets[0].socket.lag(&shard.log) as i64);

    let shard = tokio::spawn(shard.run(world.stop.clone()));
    drop(client);
    let told = async {
        while unread.get() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(10), told).await.expect("nobody is there to read");
    World { shard: Some(shard), ..world }.end().await;
}
