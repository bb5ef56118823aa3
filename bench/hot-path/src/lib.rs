//! The parts of the way from the bus to the sockets, and back, each set up so that it can be done again
//! and again: `main` counts their instructions, `benches/hot_path` takes their time.

use std::hint::black_box;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use alien_alert::admission::Admission;
use alien_alert::auth::Visitor;
use alien_alert::bus::memory::Topic;
use alien_alert::bus::{Bus, Inbox, Join, Message};
use alien_alert::channel::Channel;
use alien_alert::clock;
use alien_alert::config::{Config, HistoryLimits};
use alien_alert::cursor::Cursor;
use alien_alert::event::{Beacon, Event, Kind, Origin, Sequence, Told};
use alien_alert::frame::Frame;
use alien_alert::frame::reader::Reader;
use alien_alert::history::History;
use alien_alert::ledger::Ledger;
use alien_alert::metrics::Stopwatch;
use alien_alert::relay::Relay;
use alien_alert::shard::{Arrival, Command, Shard};
use alien_alert::wire::reply;
use alien_alert::wire::request::Request;
use serde_json::value::RawValue;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

// The product's, whose work is a part of this.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Does a part once.
pub type Act = Box<dyn FnMut()>;

/// Makes a part ready.
pub type SetUp = fn() -> Act;

/// The parts by name.
pub const PARTS: [(&str, SetUp); 8] = [
    ("decode an event from the bus", decode),
    ("hear its number", hear),
    ("encode it as a frame", encode),
    ("keep it in the history", keep),
    ("pass it to 64 sockets", || pass(None)),
    ("pass it to 64 sockets of a channel", || pass(Some("orders"))),
    ("read a client's frame", read),
    ("parse a client's alert", parse),
];

/// Parts that depend on a fleet's size. Their time is taken; their instructions are not counted, since most
/// of them are of the setting up.
pub const FLEETS: [(&str, SetUp); 4] = [
    ("take in a beacon and an event of 10 VMs", || take_in(10)),
    ("take in a beacon and an event of 1,000 VMs", || take_in(1_000)),
    ("look after 10 VMs", || tend(10)),
    ("look after 1,000 VMs", || tend(1_000)),
];

/// How many times [`pass`] is done before its clients read.
const UNREAD: usize = 64;

/// Sockets of [`pass`].
const SOCKETS: usize = 64;

/// Nothing that is waited for takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a client sends when somebody presses the button.
const ALERT: &str = r#"{"type":"alert","id":"6f1e0f0c-3c4b-4c57-9c63-2f0d7e0a4d11","data":{"place":"Amsterdam","lat":52.37,"lon":4.9}}"#;

/// In ms since the epoch.
const AT: i64 = 1_700_000_000_000;

const CURSOR: Cursor = Cursor { topic: 0x579c_96c2, at: 1_700_000_000_000_000 };

fn event() -> Event {
    Event {
        id: "6f1e0f0c-3c4b-4c57-9c63-2f0d7e0a4d11".into(),
        kind: Kind::Alert,
        channel: None,
        sender_id: "0b9e4d1c8a1f4f0f9d1b2c3d4e5f6a7b@9080e6f3a12345".into(),
        data: RawValue::from_string(r#"{"place":"Amsterdam","lat":52.37,"lon":4.9}"#.into()).expect("JSON"),
        timestamp: AT,
        origin: Origin { instance: "9080e6f3a12345".into(), region: "ams".into() },
        sequence: Sequence { started: AT, number: 7, first: 1, first_at: AT },
        wants_receipt: true,
    }
}

fn decode() -> Act {
    let data = Told::Event(event()).encode();
    Box::new(move || {
        black_box(Told::decode(black_box(&data)).expect("an event"));
    })
}

/// Of a fleet of twenty, each in its turn.
fn hear() -> Act {
    let instances: Vec<_> = (0..20).map(|index| format!("9080e6f3a123{index:02}")).collect();
    let mut ledger = Ledger::new(0);
    let mut heard = 0;
    Box::new(move || {
        let instance = &instances[heard % instances.len()];
        let number = (heard / instances.len() + 1) as u64;
        let sequence = Sequence { started: 1, number, first: 1, first_at: 1 };
        assert!(ledger.hear(black_box(instance), &sequence, CURSOR.at), "it is new");
        heard += 1;
    })
}

fn encode() -> Act {
    let event = event();
    Box::new(move || {
        black_box(reply::event(black_box(&event), CURSOR, AT, AT));
    })
}

/// In a history that is full, so that the oldest goes for each.
fn keep() -> Act {
    const EVENTS: usize = 1_000;
    let limits = HistoryLimits { age: Duration::from_secs(3600), events: EVENTS, bytes: 64 << 20 };
    let mut history = History::new(limits);
    let payload = reply::event(&event(), CURSOR, AT, AT).payload();
    let begun = clock::now_micros();
    let mut kept = 0;
    let mut keep = move || {
        history.push(None, begun + kept, black_box(&payload).clone());
        kept += 1;
    };
    (0..EVENTS).for_each(|_| keep());
    Box::new(keep)
}

fn read() -> Act {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = vec![0x81, 0x80 | u8::try_from(ALERT.len()).expect("a short one")];
    frame.extend(MASK);
    frame.extend(ALERT.bytes().zip(MASK.into_iter().cycle()).map(|(byte, mask)| byte ^ mask));
    let mut reader = Reader::default();
    let mut said = Vec::new();
    Box::new(move || {
        said.clear();
        reader.read(black_box(&frame), 64 << 10, &mut said).expect("a frame");
        assert_eq!(said.len(), 1, "it is whole");
    })
}

fn parse() -> Act {
    Box::new(|| {
        black_box(Request::parse(black_box(ALERT)).expect("an alert"));
    })
}

/// A relay that knows so many VMs, each of which has published something, and how it hears more.
struct Fleet {
    runtime: Runtime,
    relay: Arc<Relay>,
    inbox: Inbox,
    vms: usize,
    heard: usize,
}

impl Fleet {
    fn new(vms: usize) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let config = Config::from_vars([]).expect("the defaults");
        let bus = Bus::Memory(Topic::new(config.history).member());
        let relay = Arc::new(Relay::new(config, bus, 1));
        let inbox = runtime.block_on(relay.bus.join(Join::Resume, clock::now_micros())).expect("an inbox");
        let mut fleet = Self { runtime, relay, inbox, vms, heard: 0 };
        (0..vms).for_each(|_| fleet.hear());
        fleet
    }

    /// Another one's beacon, and an event of it.
    fn hear(&mut self) {
        let number = (self.heard / self.vms + 1) as u64;
        let origin =
            Origin { instance: format!("9080e6f3a{:05}", self.heard % self.vms), region: "ams".into() };
        let sequence = Sequence { started: AT, number, first: 1, first_at: AT };
        let beacon = Beacon {
            origin: origin.clone(),
            sequence: Sequence { number: number - 1, ..sequence },
            settled_until: clock::now_millis(),
            published_until: Some(clock::now_millis()),
            beat: number,
            asking: false,
            clients: self.heard,
            round_trip_ms: Some(100),
            interval_ms: 3_600_000,
            leaving: false,
            given_up: Vec::new(),
            heard: Vec::new(),
        };
        let event = Event { id: self.heard.to_string(), origin, sequence, ..event() };
        let Self { runtime, relay, inbox, .. } = self;
        runtime.block_on(async {
            for told in [Told::Beacon(beacon), Told::Event(event)] {
                drop(relay.bus.publish(Message { data: told.encode(), ..Message::default() }));
                relay.receive(black_box(inbox.next().await.expect("it")));
            }
        });
        self.heard += 1;
    }
}

fn take_in(vms: usize) -> Act {
    let mut fleet = Fleet::new(vms);
    Box::new(move || fleet.hear())
}

/// What a VM does four times a second.
fn tend(vms: usize) -> Act {
    let Fleet { relay, .. } = Fleet::new(vms);
    Box::new(move || {
        black_box(relay.own_beacon_interval());
        relay.tend_fleet();
        relay.tend_receipts();
        black_box(relay.tend_ledger());
    })
}

/// A shard on a runtime of one thread, and its clients, which read now and then: that all has come is
/// proven, at little cost. Valgrind does not count what the kernel does, so that what remains of a
/// system call is its way there.
fn pass(channel: Option<&str>) -> Act {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (relay, mut clients) = runtime.block_on(serve(channel));
    let channel = channel.map(|name| Channel::new(name).expect("a channel's name"));
    let frame = reply::event(&event(), CURSOR, AT, AT);
    let mut buffer = vec![0; frame.bytes().len() * UNREAD];
    let mut unread = 0;
    Box::new(move || {
        tell(&runtime, &relay, channel.as_ref(), &frame);
        unread += 1;
        if unread == UNREAD {
            for client in &mut clients {
                client.read_exact(&mut buffer).expect("all events");
            }
            unread = 0;
        }
    })
}

fn tell(runtime: &Runtime, relay: &Relay, channel: Option<&Channel>, frame: &Frame) {
    runtime.block_on(async {
        relay.shards[0].tell(channel.cloned(), None, black_box(frame).clone());
        relay.shards[0].send(Command::Time(Stopwatch::since(1000 * AT, &relay.metrics.delivery)));
        // The shard's turn: one slice is enough for all of them.
        yield_now().await;
    });
}

/// A relay with one shard and its sockets, which are not greeted, and may be in a channel.
async fn serve(channel: Option<&str>) -> (Arc<Relay>, Vec<TcpStream>) {
    let config = Config::from_vars([]).expect("the defaults");
    let admission = Admission::new(config.limits);
    let bus = Bus::Memory(Topic::new(config.history).member());
    let relay = Arc::new(Relay::new(config, bus, 1));
    let shard = Shard::new(Arc::clone(&relay), relay.shards[0].clone(), TaskTracker::new());
    tokio::spawn(shard.run(CancellationToken::new()));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a listener");
    let address = listener.local_addr().expect("its address");
    let mut clients = Vec::new();
    for _ in 0..SOCKETS {
        let client = TcpStream::connect(address).expect("a connection");
        client.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        clients.push(client);
        let (stream, _) = listener.accept().await.expect("the same");
        let place = admission.admit(IpAddr::V4(Ipv4Addr::LOCALHOST)).expect("a place");
        relay.join(None, channel.as_slice(), Visitor::default(), |member, _| {
            let outbox = member.outbox.clone();
            let (answer, early, greeting) = Default::default();
            let arrival = Arrival { stream, answer, early, greeting, member, presence: None, place };
            outbox.mailbox.send(Command::Join(outbox.id, Box::new(arrival)));
        });
    }
    (relay, clients)
}
