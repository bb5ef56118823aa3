//! A shard with real sockets over loopback: what each hears, and in what order.

use bytes::Bytes;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::FutureExt as _;
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::socket::tests::narrow;
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
        Self::by_hand_with(&[]).await
    }

    async fn by_hand_with(settings: &[(&str, &str)]) -> (Self, Shard) {
        let settings = settings.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let config = Config::from_vars(settings).unwrap();
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
        self.visitor(Visitor::default(), &[], greeting).await
    }

    /// One whose system takes little before it reads.
    async fn narrow_client(&self) -> Client {
        self.seat(narrow().await, Visitor::default(), &[], &[]).await
    }

    /// One of whom more is known, and that has said something already.
    async fn visitor(&self, visitor: Visitor, early: &[u8], greeting: &[&str]) -> Client {
        let address = self.listener.local_addr().unwrap();
        let (stream, accepted) = tokio::join!(TcpStream::connect(address), self.listener.accept());
        self.seat((accepted.unwrap().0, stream.unwrap()), visitor, early, greeting).await
    }

    /// One at the second end of this connection.
    async fn seat(
        &self,
        (served, stream): (TcpStream, TcpStream),
        visitor: Visitor,
        early: &[u8],
        greeting: &[&str],
    ) -> Client {
        // Else the runtime may not know yet that it takes bytes.
        served.writable().await.unwrap();
        let from = Ipv4Addr::from(self.addresses.fetch_add(1, Ordering::Relaxed));
        let place = self.admission.admit(IpAddr::V4(from)).unwrap();
        let mut seated = None;
        self.relay.join(None, &[], visitor, |member, _| {
            let (outbox, client_id) = (member.outbox.clone(), Arc::clone(&member.client_id));
            let parts = greeting.iter().map(|text| Frame::text(text.as_bytes()).into_bytes()).collect();
            let greeting = Message { parts, is_refresh: true, written: None };
            let (answer, early) = (Bytes::new(), early.to_vec());
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

    async fn is_pinged(&mut self) {
        assert_eq!(self.frame().await, (0x89, vec![]));
    }
}

/// A client's frame, masked with nothing; `first` is its first byte.
fn said(first: u8, payload: &[u8]) -> Vec<u8> {
    [&[first, 0x80 | u8::try_from(payload.len()).unwrap(), 0, 0, 0, 0][..], payload].concat()
}

/// Lets the shard go on until a client has what it waits for.
async fn served<T>(shard: &mut Shard, waiting: impl Future<Output = T>) -> T {
    let mut waiting = pin!(timeout(Duration::from_secs(10), waiting));
    loop {
        select! {
            biased;
            came = &mut waiting => return came.expect("it never comes"),
            () = yield_now() => shard.round(),
        }
    }
}

/// Does what time asks for, so long after the shard began.
fn wind(shard: &mut Shard, on: Duration) {
    shard.begun = Instant::now() - on;
    shard.tend();
    shard.round();
}

/// More than a busy machine's slowness, and less than anything that is waited for.
const MOMENT: Duration = Duration::from_secs(2);

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
    let wait = str::from_utf8(&close[2..]).unwrap().strip_prefix("retry in ").unwrap();
    let wait = Duration::from_millis(wait.strip_suffix(" ms").unwrap().parse().unwrap());
    assert!((SLOW_RETRY / 2..=SLOW_RETRY).contains(&wait), "{wait:?}");
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
        let before = shard.turns;
        shard.obey();
        let given = shard.turns.saturating_sub(before);
        assert!(given <= SLICE * TURNS_A_STEP + clients.len(), "{given} turns at once");
        most = most.max(shard.sockets.values().map(|resident| resident.socket.turns()).sum());
        shard.write();
    }
    assert!(most <= TURNS + clients.len(), "{most} turns");
    for client in &mut clients {
        client.hears(&vec!["b"; count]).await;
    }
}

#[tokio::test]
async fn of_many_who_are_gone_at_once_leave_is_taken_in_slices() {
    const GONE: usize = 3 * BURIED_AT_ONCE;
    let (world, mut shard) = World::by_hand().await;
    let mut witness = world.client(&[]).await;
    let mut clients = Vec::new();
    for _ in 0..GONE {
        clients.push(world.client(&[]).await);
    }
    while !shard.is_idle() || !world.relay.shards[0].is_empty() {
        shard.round();
    }
    for client in &clients {
        SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
    drop(clients);

    world.tell("a", None);
    while shard.over.len() < GONE {
        assert_eq!(shard.sockets.len(), GONE + 1, "one way over all of them comes first");
        shard.obey();
        shard.write();
    }
    world.tell("b", None);
    for left in (0..3).rev() {
        shard.bury();
        assert_eq!(shard.sockets.len(), left * BURIED_AT_ONCE + 1);
        shard.obey();
        shard.write();
    }
    assert!(shard.is_idle());
    witness.hears(&["a", "b"]).await;
}

#[tokio::test]
async fn of_many_whose_time_is_over_a_bounded_number_ends_with_each_tick() {
    let _ = rlimit::increase_nofile_limit(4 * DUE_AT_ONCE as u64);
    let (world, mut shard) = World::by_hand().await;
    let past = Visitor { expires: Some(SystemTime::UNIX_EPOCH), ..Visitor::default() };
    let mut clients = Vec::new();
    for _ in 0..=DUE_AT_ONCE {
        clients.push(world.visitor(past.clone(), &[], &[]).await);
    }
    while !shard.is_idle() || !world.relay.shards[0].is_empty() {
        shard.round();
    }
    let closing =
        |shard: &Shard| shard.sockets.values().filter(|resident| resident.socket.is_closing()).count();
    for count in [DUE_AT_ONCE, DUE_AT_ONCE + 1] {
        shard.tend();
        assert_eq!(closing(&shard), count);
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
    yield_now().await;
    client.outbox.mailbox.send(Command::Ready(client.outbox.id));
    shard.round();
    assert!(shard.sockets[0].socket.is_blocked);
    assert_eq!(shard.sockets[0].socket.turns(), 1, "it is not listened to");

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

/// What a socket missed, in a page of the history.
fn refresh(page: &Bytes) -> Message {
    let parts = crate::frame::text_of_parts(vec![page.clone()]);
    Message { parts, is_refresh: true, written: None }
}

/// Bytes that are there because clients do not take them.
fn untaken(shard: &Shard) -> usize {
    let pieces = shard.sockets.values().flat_map(|resident| resident.socket.untaken());
    pieces.collect::<HashMap<_, _>>().values().sum()
}

#[tokio::test]
async fn what_is_kept_for_those_who_do_not_read_is_bounded_for_all_together() {
    const DEAF: usize = 50;
    let (world, mut shard) = World::by_hand().await;
    let mut reading = world.client(&[]).await;
    let page = || Bytes::from(vec![b'x'; MOST_KEPT / 16]);
    let mut deaf = Vec::new();
    // It would be three times as much as may be kept, if each had it for itself.
    let first = page();
    for _ in 0..DEAF {
        let client = world.narrow_client().await;
        client.outbox.push(refresh(&first));
        deaf.push(client);
        shard.round();
        shard.tend();
    }
    assert_eq!(shard.sockets.values().filter(|resident| resident.socket.is_blocked).count(), DEAF);
    assert!(deaf.iter().all(|client| world.relay.find(&client.client_id).is_some()));

    // The history has gone on, and each has missed something else.
    let mut most = 0;
    for client in &deaf {
        client.outbox.push(refresh(&page()));
        shard.round();
        most = most.max(untaken(&shard));
        shard.tend();
    }
    let bound = MOST_KEPT + 2 * page().len();
    assert!((MOST_KEPT..bound).contains(&most), "{most} at most");
    let closed: Vec<_> = deaf.iter().map(|client| world.relay.find(&client.client_id).is_none()).collect();
    assert!(closed[0] && !closed[DEAF - 1], "{closed:?}");
    let count = closed.iter().filter(|closed| **closed).count();
    assert!((DEAF - 17..DEAF - 11).contains(&count), "no more than must be: {count}");

    // What was begun comes whole, and then why it ends.
    assert_eq!(served(&mut shard, deaf[0].frame()).await.1.len(), first.len());
    served(&mut shard, deaf[0].is_closed(1013)).await;
    world.tell("to all", None);
    served(&mut shard, reading.hears(&["to all"])).await;
}

#[tokio::test]
async fn who_takes_what_it_is_told_is_ended_after_those_who_take_nothing() {
    let (world, mut shard) = World::by_hand().await;
    let mut slow = world.narrow_client().await;
    let deaf = world.narrow_client().await;
    let part = |tenths: usize| refresh(&Bytes::from(vec![b'x'; MOST_KEPT / 10 * tenths]));
    slow.outbox.push(part(7));
    deaf.outbox.push(part(2));
    shard.round();
    wind(&mut shard, 2 * TAKING);
    let mut some = vec![0; MOST_KEPT / 20];
    served(&mut shard, slow.stream.read_exact(&mut some)).await.unwrap();
    deaf.outbox.push(part(3));
    shard.round();
    shard.tend();
    assert!(world.relay.find(&slow.client_id).is_some(), "the most is kept for it");
    assert!(world.relay.find(&deaf.client_id).is_none());
}

#[tokio::test]
async fn of_those_who_have_just_come_one_that_takes_nothing_since_is_ended_first() {
    let (world, mut shard) = World::by_hand().await;
    let part = |tenths: usize| refresh(&Bytes::from(vec![b'x'; MOST_KEPT / 10 * tenths]));
    let (little, deaf) = (world.narrow_client().await, world.narrow_client().await);
    let (mut reading, newcomer) = (world.narrow_client().await, world.narrow_client().await);
    little.outbox.push(part(1));
    shard.round();
    // So much later, by the shard's clock.
    shard.begun -= TICK;
    reading.outbox.push(part(5));
    deaf.outbox.push(part(5));
    shard.round();
    shard.begun -= TICK;
    let mut some = vec![0; MOST_KEPT / 20];
    served(&mut shard, reading.stream.read_exact(&mut some)).await.unwrap();
    newcomer.outbox.push(part(1));
    shard.round();
    shard.tend();
    let is_there = |client: &Client| world.relay.find(&client.client_id).is_some();
    assert!(!is_there(&deaf));
    assert!(is_there(&reading), "as much is kept for it");
    assert!(is_there(&little), "it took something longer ago, but hardly anything is kept for it");
    assert!(is_there(&newcomer), "there is room again");
}

#[tokio::test]
async fn what_is_kept_of_unfinished_messages_is_bounded_for_all_together() {
    const LENGTH: usize = 256 << 10;
    let (world, mut shard) = World::by_hand_with(&[("MAX_MESSAGE_BYTES", "262144")]).await;
    let mut honest = world.client(&[]).await;
    let ping = said(0x89, b"ping");
    honest.stream.write_all(&ping[..7]).await.unwrap();
    let header = [&[0x81, 0x80 | 127][..], &(LENGTH as u64).to_be_bytes(), &[0; 4]].concat();
    let most_of_it = [header, vec![b'x'; LENGTH - 1]].concat();
    let (mut clients, mut most) = (Vec::new(), 0);
    for _ in 0..2 * MOST_KEPT / LENGTH {
        let mut client = world.client(&[]).await;
        served(&mut shard, client.stream.write_all(&most_of_it)).await.unwrap();
        shard.round();
        let heard = async {
            while let Some(Resident { socket, .. }) = shard.sockets.get(&client.outbox.id)
                && !socket.is_closing()
                && socket.unfinished() < LENGTH
            {
                yield_now().await;
                shard.round();
            }
        };
        timeout(Duration::from_secs(10), heard).await.expect("it is not read");
        let kept: usize = shard.sockets.values().map(|resident| resident.socket.unfinished()).sum();
        most = most.max(kept);
        clients.push(client);
    }
    assert!((MOST_KEPT / 2..MOST_KEPT / 2 * 3).contains(&most), "{most} at most");
    served(&mut shard, clients[0].is_closed(1013)).await;
    // Who has said less than a share is not asked to say it again.
    honest.stream.write_all(&ping[7..]).await.unwrap();
    assert_eq!(served(&mut shard, honest.frame()).await, (0x8a, b"ping".into()));
}

#[tokio::test]
async fn a_newcomer_may_be_told_all_that_the_history_has_room_for() {
    const HISTORY: usize = 2 * MOST_KEPT;
    let (world, mut shard) = World::by_hand_with(&[("HISTORY_BYTES", &HISTORY.to_string())]).await;
    let mut client = world.narrow_client().await;
    client.outbox.push(refresh(&Bytes::from(vec![b'x'; HISTORY])));
    shard.tended -= SOON;
    shard.round();
    assert!(shard.tended.elapsed() < SOON, "it was looked at");
    assert_eq!(served(&mut shard, client.frame()).await.1.len(), HISTORY);
}

#[tokio::test]
async fn one_that_would_have_to_read_too_much_before_it_is_closed_is_left() {
    let (world, mut shard) = World::by_hand().await;
    let clients = [world.narrow_client().await, world.narrow_client().await];
    for (client, bytes) in clients.iter().zip([MOST_KEPT + 1, MOST_KEPT / 4]) {
        client.outbox.push(refresh(&Bytes::from(vec![b'x'; bytes])));
    }
    shard.tended -= SOON;
    shard.round();
    assert_eq!(shard.sockets.len(), 1);
    assert!(world.relay.find(&clients[0].client_id).is_none());
}

#[tokio::test]
async fn what_was_taken_is_kept_no_longer() {
    const LENGTH: usize = MOST_KEPT / 4;
    let (world, mut shard) = World::by_hand().await;
    let mut client = world.narrow_client().await;
    let some = 64 << 10;
    let keeps = |shard: &Shard, bytes| (bytes..bytes + some).contains(&shard.sockets[0].socket.keeps());
    for _ in 0..2 {
        client.outbox.push(refresh(&Bytes::from(vec![b'x'; LENGTH])));
    }
    shard.round();
    assert!(keeps(&shard, 2 * LENGTH));
    assert_eq!(served(&mut shard, client.frame()).await.1.len(), LENGTH);
    assert!(keeps(&shard, LENGTH));
    // Small ones take more than their bytes.
    for _ in 0..2_000 {
        client.outbox.push(Frame::text(b"x"));
    }
    shard.round();
    while !shard.commands.is_empty() {
        shard.round();
    }
    assert!(shard.sockets[0].socket.keeps() > LENGTH + 2 * some);
}

#[tokio::test]
async fn who_gives_no_sign_of_life_is_pinged_and_at_last_closed() {
    let (world, mut shard) = World::by_hand().await;
    let interval = world.relay.config.ping_interval;
    let [mut alive, mut silent] = [world.client(&[]).await, world.client(&[]).await];
    shard.round();
    wind(&mut shard, interval - MOMENT);
    world.tell("not pinged yet", None);
    shard.round();
    wind(&mut shard, interval + MOMENT);
    wind(&mut shard, interval + 2 * MOMENT);
    for client in [&mut alive, &mut silent] {
        client.hears(&["not pinged yet"]).await;
        client.is_pinged().await;
    }

    alive.stream.write_all(&said(0x8a, b"")).await.unwrap();
    // To be woken for nothing is no sign.
    silent.outbox.mailbox.send(Command::Ready(silent.outbox.id));
    let before = shard.sockets[0].socket.heard;
    let answered = async {
        while shard.sockets[0].socket.heard == before {
            yield_now().await;
            shard.round();
        }
    };
    timeout(Duration::from_secs(10), answered).await.expect("the answer is not heard");
    wind(&mut shard, 2 * interval - MOMENT);
    world.tell("not closed yet", None);
    shard.round();
    wind(&mut shard, 2 * interval + 3 * MOMENT);
    alive.hears(&["not closed yet"]).await;
    alive.is_pinged().await;
    silent.hears(&["not closed yet"]).await;
    silent.is_closed(1001).await;
}

#[tokio::test]
async fn one_that_takes_nothing_for_two_intervals_is_closed_and_at_last_left() {
    let (world, mut shard) = World::by_hand().await;
    let interval = world.relay.config.ping_interval;
    let client = world.client(&[]).await;
    shard.round();
    wind(&mut shard, interval);
    let text = "x".repeat(100_000);
    while !shard.sockets[0].socket.is_blocked {
        world.tell(&text, None);
        shard.round();
    }
    wind(&mut shard, 3 * interval - MOMENT);
    assert!(!shard.sockets[0].socket.is_closing());
    wind(&mut shard, 3 * interval + MOMENT);
    assert!(shard.sockets[0].socket.is_closing() && world.relay.find(&client.client_id).is_none());
    wind(&mut shard, 3 * interval + LINGER);
    assert_eq!(shard.sockets.len(), 1, "it may still read the close");
    wind(&mut shard, 3 * interval + LINGER + 2 * MOMENT);
    assert_eq!(shard.sockets.len(), 0);
}

#[tokio::test]
async fn one_stays_for_as_long_as_its_token_lasts() {
    let (world, mut shard) = World::by_hand_with(&[("PING_INTERVAL", "3600")]).await;
    let hour = Duration::from_secs(3_600);
    let until = |lasts: Duration| Visitor { expires: Some(SystemTime::now() + lasts), ..Visitor::default() };
    let mut short = world.visitor(until(hour), &[], &[]).await;
    let mut long = world.visitor(until(10_000_000 * hour), &[], &[]).await;
    shard.round();
    wind(&mut shard, hour - MOMENT);
    world.tell("both are there", None);
    shard.round();
    wind(&mut shard, hour + MOMENT);
    short.hears(&["both are there"]).await;
    short.is_closed(1008).await;
    long.hears(&["both are there"]).await;
    long.is_pinged().await;
}

#[tokio::test]
async fn what_came_with_the_request_is_heard() {
    let (world, mut shard) = World::by_hand().await;
    let mut client = world.visitor(Visitor::default(), &said(0x89, b"early"), &["hello"]).await;
    shard.round();
    client.hears(&["hello"]).await;
    assert_eq!(client.frame().await, (0x8a, b"early".into()));
}

#[tokio::test]
async fn one_that_says_too_much_is_told_so_and_closed_when_it_goes_on() {
    let (world, mut shard) = World::by_hand_with(&[("MESSAGE_RATE", "1"), ("MESSAGE_BURST", "3")]).await;
    let mut client = world.client(&[]).await;
    let pings = |count| said(0x81, br#"{"type":"ping","id":"7"}"#).repeat(count);
    let pong = &br#"{"type":"pong","id":"7","#[..];
    let error = &br#"{"type":"error","code":"rate_limited","#[..];
    client.stream.write_all(&pings(6)).await.unwrap();
    for expected in [pong, pong, pong, error, error, error] {
        let (first, payload) = served(&mut shard, client.frame()).await;
        assert!(first == 0x81 && payload.starts_with(expected), "{}", payload.escape_ascii());
        assert!(payload.windows(8).any(|part| part == br#""id":"7""#));
    }
    assert_eq!(world.relay.metrics.rate_limited.get(), 3);

    // Who keeps to the rate for a while begins anew.
    shard.sockets[0].home.exceeded -= FORGIVEN_AFTER + MOMENT;
    client.stream.write_all(&pings(3)).await.unwrap();
    for _ in 0..3 {
        assert_eq!(served(&mut shard, client.frame()).await.0, 0x81);
    }
    client.stream.write_all(&pings(60)).await.unwrap();
    let close = loop {
        let (first, payload) = served(&mut shard, client.frame()).await;
        if first != 0x81 {
            break payload;
        }
    };
    assert_eq!(close[..2], 1008_u16.to_be_bytes());
    assert!(world.admission.admit(IpAddr::V4(Ipv4Addr::UNSPECIFIED)).is_err(), "its address waits");
}

#[tokio::test]
async fn one_that_says_no_more_is_answered_and_one_that_is_reset_is_left() {
    let (world, mut shard) = World::by_hand().await;
    let mut client = world.client(&[]).await;
    client.stream.write_all(&said(0x81, br#"{"type":"ping"}"#)).await.unwrap();
    client.stream.shutdown().await.unwrap();
    let (first, payload) = served(&mut shard, client.frame()).await;
    assert!(first == 0x81 && payload.starts_with(br#"{"type":"pong","#), "{}", payload.escape_ascii());
    served(&mut shard, client.is_closed(1001)).await;
    assert_eq!(served(&mut shard, client.stream.read(&mut [0])).await.unwrap(), 0);
    assert_eq!(shard.sockets.len(), 0);

    let client = world.client(&[]).await;
    shard.round();
    SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    let left = async {
        while shard.over.is_empty() {
            yield_now().await;
            shard.obey();
        }
    };
    timeout(Duration::from_secs(10), left).await.expect("nobody is there");
    assert!(matches!(shard.over[..], [(_, Over::Lost)]));
}

#[tokio::test]
async fn a_close_is_heard_though_the_client_still_talks() {
    let (world, mut shard) = World::by_hand().await;
    let mut client = world.client(&[]).await;
    shard.round();
    client.outbox.close(Close::new(CloseCode::Dismissed, "dismissed"));
    client.stream.write_all(&said(0x8a, b"").repeat(100)).await.unwrap();
    shard.round();
    client.is_closed(1008).await;
    assert_eq!(client.stream.read(&mut [0]).await.unwrap(), 0, "no more comes");
    for _ in 0..2 {
        client.stream.write_all(&vec![0; LINGER_BYTES / 4]).await.unwrap();
    }
    let flood = client.stream.write_all(&vec![0; 20 * LINGER_BYTES]).await;
    assert!(flood.is_err(), "there is an end to it");
    shard.lingering.close();
    timeout(LINGER, shard.lingering.wait()).await.expect("nothing is left of it");
}

#[tokio::test]
async fn no_more_is_taken_while_the_shard_is_behind() {
    let (world, mut shard) = World::by_hand().await;
    let relay = &world.relay;
    // Who keeps up is not to lag by what a socket may leave unread.
    let frame = Frame::text(&[b'x'; OUTBOX / 2]);
    for channel in [None, None, Channel::new("c").ok()] {
        assert!(relay.room().now_or_never().is_some());
        relay.shards[0].tell(channel, None, frame.clone());
        assert!(relay.room().now_or_never().is_none());
        shard.round();
    }
    assert!(relay.room().now_or_never().is_some());
}

#[tokio::test]
async fn one_that_comes_during_a_pass_leaves_nobody_out() {
    let (world, mut shard) = World::by_hand().await;
    let mailbox = &world.relay.shards[0];
    let mut clients = Vec::new();
    for _ in 0..2 * SLICE {
        clients.push(world.client(&[]).await);
    }
    for text in ["a", "b", "c"] {
        while !shard.is_idle() || !mailbox.is_empty() {
            shard.round();
        }
        world.tell(text, None);
        shard.round();
        assert_eq!(shard.pass.left, shard.sockets.len() - SLICE, "in the middle of a pass");
        clients.push(world.client(&[]).await);
        while !shard.is_idle() || !mailbox.is_empty() {
            shard.round();
        }
        assert!(shard.sockets.values().all(|resident| resident.socket.lag(&shard.log) == 0));
    }
}

#[tokio::test]
async fn it_sleeps_when_all_is_done_but_not_in_each_round() {
    let (_world, mut shard) = World::by_hand().await;
    assert!((1..ROUNDS_AT_ONCE).all(|round| shard.may_wait(round)));
    assert!(!shard.may_wait(ROUNDS_AT_ONCE));
    shard.log.push(b"something");
    assert!((1..=ROUNDS_AT_ONCE).all(|round| !shard.may_wait(round)));
}

#[test]
fn each_pass_begins_elsewhere() {
    let mut pass = Pass::default();
    let begin = |_| {
        pass.begin(100, 0);
        assert_eq!(pass.step(100), pass.first);
        pass.first
    };
    let begins: HashSet<_> = (0..100).map(begin).collect();
    assert!(begins.len() > 50, "{begins:?}");
}
