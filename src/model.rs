//! The model test: whatever happens to VMs, connections and deliveries, every client that ends
//! connected has every acknowledged event exactly once, or was told that it is missing: hardly ever, but
//! where the window is narrow, so that events and processes are forgotten. And who is told that its
//! catch-up is complete has all there was.
//!
//! Real relays, paths and leavings on a [`stormy`] topic, under virtual time; clients that do what
//! `static/client.js` does. A schedule follows from its seed, which a failure names: repeat it by
//! `MODEL_SEED=<seed> cargo nextest run model`, or run others by `MODEL_SEED` and `MODEL_SCHEDULES`.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::auth::Visitor;
use crate::bus::stormy::{Link, Member as BusMember, TAG, Topic, Weather};
use crate::bus::{Bus, Cause};
use crate::clock::{self, micros};
use crate::config::Config;
use crate::cursor::{Cursor, OVERLAP};
use crate::event::Told;
use crate::health::Phase;
use crate::relay::{Member, Relay};
use crate::shard::Command;
use crate::{path, vm};

const SCHEDULES: u64 = 200;
const STEPS: usize = 60;
const VMS: usize = 4;
const CLIENTS: usize = 6;

/// Longer than anything stays late or broken once nothing is broken any more: what came late may
/// have to be sought, and found late once more.
const CALM: Duration = Duration::from_secs(300);

/// A setting of the VMs' window: more than a schedule takes, or less.
type Window = (&'static str, &'static str);
const WIDE: Window = ("HISTORY_SECONDS", "3600");
const FEW: Window = ("HISTORY_EVENTS", "4");
const SHORT: Window = ("HISTORY_SECONDS", "120");

struct Vm {
    relay: Arc<Relay>,
    bus: BusMember,
    stop: CancellationToken,
    path: JoinHandle<()>,
}

#[derive(Default)]
struct Client {
    connection: Option<Connection>,
    cursor: Option<String>,
    /// Its first cursor.
    began: Option<String>,
    /// What it shows: each event that it has not seen before.
    shown: Vec<String>,
    seen: HashSet<String>,
    /// Whether its last connection began with all that it had missed.
    complete: bool,
    /// Between what times (ms) it was told that something is missing.
    told_missing: Vec<(i64, i64)>,
}

struct Connection {
    vm: usize,
    member: Member,
    /// Events of this connection: none comes twice on one socket.
    heard: HashSet<String>,
}

struct World {
    rng: Rng,
    topic: Topic,
    window: Window,
    vms: Vec<Option<Vm>>,
    clients: Vec<Client>,
    sent: Vec<(String, String)>,
    acked: BTreeSet<String>,
    told: Vec<String>,
    /// Catch-ups that were told to be complete, and acknowledged events that were held against them.
    complete: usize,
    proven: usize,
    /// Events that clients do not have, and know that they have not.
    told_missing: usize,
}

impl Vm {
    fn start(topic: &Topic, index: usize, window: Window) -> Self {
        let vars = [("FLY_ALLOC_ID", &*format!("vm-{index}")), window];
        let vars = vars.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config = Config::from_vars(vars).unwrap();
        let bus = topic.member(&format!("vm-{index}"));
        let relay = Arc::new(Relay::new(config, Bus::Stormy(bus.clone()), 1));
        let stop = CancellationToken::new();
        let path = tokio::spawn(path::keep(Arc::clone(&relay), stop.clone()));
        Self { relay, bus, stop, path }
    }

    /// As by SIGKILL: nothing it does from here on has any effect.
    fn kill(self) {
        self.path.abort();
        self.bus.set_link(Link::Hung);
    }

    /// As by SIGINT; what it told its sockets is left in the relay.
    async fn leave(self) -> Arc<Relay> {
        self.relay.health.leaving();
        self.stop.cancel();
        let _ = self.path.await;
        vm::leave(&self.relay).await;
        self.bus.set_link(Link::Hung);
        self.relay
    }
}

impl Client {
    fn connect(&mut self, index: usize, vm: &Vm) {
        if !vm.relay.health.phase().takes_sockets() {
            return;
        }
        let mut seated = None;
        vm.relay.join(self.cursor.as_deref(), &[], Visitor::default(), |member, greeting| {
            seated = Some((member, greeting));
        });
        let (member, greeting) = seated.unwrap();
        self.connection = Some(Connection { vm: index, member, heard: HashSet::new() });
        self.read(&greeting.parts.concat());
    }

    /// Does what its shard would; what was acknowledged.
    fn obey(&mut self, vm: usize, command: &Command) -> Vec<String> {
        let Some(connection) = self.connection.as_ref().filter(|connection| connection.vm == vm) else {
            return Vec::new();
        };
        let own = connection.member.outbox.id;
        match command {
            Command::Tell(audience, frame) if audience.except != Some(own) => self.read(frame.bytes()),
            Command::Say(id, message) if *id == own => self.read(&message.parts.concat()),
            Command::Close(id, _) if *id == own => {
                self.connection = None;
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn read(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut acked = Vec::new();
        for message in messages(bytes) {
            match message["type"].as_str() {
                Some("refresh-store") => {
                    for event in message["events"].as_array().unwrap() {
                        self.hear(event);
                    }
                    self.keep(&message["cursor"]);
                    self.complete = message["complete"] == true;
                    if !self.complete {
                        let time = |name| message["missing"][name].as_i64();
                        self.told_missing.push((time("from").unwrap_or(0), time("to").unwrap()));
                    }
                }
                Some("alert") => self.hear(&message),
                Some("pong") => self.keep(&message["cursor"]),
                Some("ack") => acked.push(message["eventId"].as_str().unwrap().to_owned()),
                _ => {}
            }
        }
        acked
    }

    fn hear(&mut self, event: &Value) {
        let id = event["id"].as_str().unwrap();
        let connection = self.connection.as_mut().unwrap();
        assert!(connection.heard.insert(id.to_owned()), "{id} came twice on one socket");
        self.keep(&event["cursor"]);
        if self.seen.insert(id.to_owned()) {
            self.shown.push(id.to_owned());
        }
    }

    /// The later of two cursors; they are of one topic and of one length here. `client.js` takes the last
    /// one that it heard and so asks for more again: this asks more of the server.
    fn keep(&mut self, cursor: &Value) {
        let cursor = cursor.as_str().unwrap();
        if self.cursor.as_deref().is_none_or(|known| known < cursor) {
            self.cursor = Some(cursor.to_owned());
        }
        self.began.get_or_insert(cursor.to_owned());
    }

    /// Whether it was not told that what was published then (µs, first and last) is missing, nor was it
    /// before its time.
    fn may_expect(&self, (first, last): (i64, i64)) -> bool {
        let told = |(from, to): &(i64, i64)| *from <= last / 1000 && first / 1000 <= *to;
        first >= self.began.as_deref().map_or(i64::MAX, at) && !self.told_missing.iter().any(told)
    }
}

/// When (µs) a cursor is.
fn at(cursor: &str) -> i64 {
    Cursor::parse(cursor, TAG).unwrap().at
}

/// The messages in a server's frames, which are not masked.
fn messages(mut bytes: &[u8]) -> Vec<Value> {
    let mut messages = Vec::new();
    while let [_, short, rest @ ..] = bytes {
        let (length, rest) = match short {
            126 => (usize::from(u16::from_be_bytes([rest[0], rest[1]])), &rest[2..]),
            127 => (usize::try_from(u64::from_be_bytes(rest[..8].try_into().unwrap())).unwrap(), &rest[8..]),
            length => (usize::from(*length), rest),
        };
        messages.push(serde_json::from_slice(&rest[..length]).unwrap());
        bytes = &rest[length..];
    }
    messages
}

impl World {
    fn new(seed: u64, window: Window) -> Self {
        let topic = Topic::new(seed);
        let vms = (0..VMS).map(|index| (index < 2).then(|| Vm::start(&topic, index, window))).collect();
        let clients = (0..CLIENTS).map(|_| Client::default()).collect();
        let rng = Rng::with_seed(seed);
        Self {
            rng,
            topic,
            window,
            vms,
            clients,
            sent: vec![],
            acked: BTreeSet::new(),
            told: vec![],
            complete: 0,
            proven: 0,
            told_missing: 0,
        }
    }

    async fn step(&mut self) {
        let vm = self.rng.usize(..VMS);
        let client = self.rng.usize(..CLIENTS);
        let what = match self.rng.u8(..100) {
            0..45 => self.press(client),
            45..52 => self.press_again(client),
            52..68 => self.reconnect(client, vm),
            68..72 => {
                self.clients[client].connection = None;
                format!("client {client} goes away")
            }
            72..78 => match self.vms[vm] {
                Some(_) => return,
                None => {
                    self.vms[vm] = Some(Vm::start(&self.topic, vm, self.window));
                    format!("vm {vm} starts")
                }
            },
            78..81 => {
                let Some(killed) = self.vms[vm].take() else { return };
                self.leave_behind(vm);
                killed.kill();
                format!("vm {vm} is killed")
            }
            81..84 => {
                let Some(leaving) = self.vms[vm].take() else { return };
                let relay = leaving.leave().await;
                self.pump_vm(vm, &relay);
                self.leave_behind(vm);
                format!("vm {vm} leaves")
            }
            84..94 => {
                let link = *self
                    .rng
                    .choice(&[Link::Up, Link::Up, Link::Cut, Link::Hung, Link::Mute(Cause::Other)])
                    .unwrap();
                let Some(vm_there) = &self.vms[vm] else { return };
                vm_there.bus.set_link(link);
                format!("vm {vm}'s link is {link:?}")
            }
            _ => {
                // A short window proves only what is not later than it reaches.
                let late = if self.window == SHORT { 1 } else { 30 };
                let weather = Weather {
                    late: self.rng.u8(..late),
                    twice: self.rng.u8(..30),
                    slow: self.rng.u8(..2 * late),
                    unconfirmed: self.rng.u8(..30),
                    pace: Duration::from_millis(self.rng.u64(..u64::from(late))),
                };
                self.topic.set_weather(weather);
                format!("{weather:?}")
            }
        };
        self.told.push(what);
    }

    fn press(&mut self, client: usize) -> String {
        let id = format!("event-{}", self.sent.len());
        self.sent.push((id.clone(), json!({"type": "alert", "id": id}).to_string()));
        self.send(client, self.sent.len() - 1)
    }

    /// Now and then a client asks whether its VM is there, and hears how far it has everything.
    fn ping(&mut self) {
        let client = self.rng.usize(..CLIENTS);
        if let Some(connection) = &self.clients[client].connection {
            connection.member.relay.handle(&connection.member, r#"{"type":"ping"}"#);
        }
    }

    /// The same id again, by whoever and through whichever VM.
    fn press_again(&mut self, client: usize) -> String {
        if self.sent.is_empty() {
            return "nothing to press again".into();
        }
        let index = self.rng.usize(..self.sent.len());
        self.send(client, index)
    }

    fn send(&mut self, client: usize, index: usize) -> String {
        let (id, text) = &self.sent[index];
        if let Some(connection) = &self.clients[client].connection {
            connection.member.relay.handle(&connection.member, text);
        }
        format!("client {client} sends {id}")
    }

    fn reconnect(&mut self, client: usize, vm: usize) -> String {
        self.clients[client].connection = None;
        // What waits is of before this one came.
        self.pump();
        let since = self.clients[client].cursor.clone();
        if let Some(there) = &self.vms[vm] {
            self.clients[client].connect(vm, there);
        }
        let there = &self.clients[client];
        if let Some(since) = since.filter(|_| there.connection.is_some() && there.complete) {
            // What is newer may be under way. It is not lost: catch-up begins that much earlier next time.
            let until = clock::now_micros() - micros(OVERLAP);
            let proven = self.assert_complete(there, at(&since), until);
            self.complete += 1;
            self.proven += proven;
        }
        format!("client {client} connects to vm {vm}")
    }

    /// A client that is told so has all that was acknowledged and published between these times (µs); how
    /// many that are. Not at the first: a cursor is a place after what it was told with.
    fn assert_complete(&self, client: &Client, since: i64, until: i64) -> usize {
        let published = self.published();
        let within = |id: &&String| published[*id].0 > since && published[*id].1 <= until;
        let acked: Vec<_> = self.acked.iter().filter(within).collect();
        let missing: Vec<_> = acked.iter().filter(|id| !client.seen.contains(**id)).collect();
        assert!(missing.is_empty(), "{missing:?} are missing of what is said to be complete");
        acked.len()
    }

    /// When (µs) each event was published, first and last.
    fn published(&self) -> HashMap<String, (i64, i64)> {
        let mut published = HashMap::new();
        for (message, at) in self.topic.log() {
            if let Ok(Told::Event(event)) = Told::decode(&message.data) {
                published.entry(event.id).or_insert((at, at)).1 = at;
            }
        }
        published
    }

    /// What was not read of a VM's sockets when it ended is lost with it.
    fn leave_behind(&mut self, vm: usize) {
        for client in &mut self.clients {
            if client.connection.as_ref().is_some_and(|connection| connection.vm == vm) {
                client.connection = None;
            }
        }
    }

    /// Takes what waits on every VM.
    fn pump(&mut self) {
        for vm in 0..VMS {
            if let Some(there) = &self.vms[vm] {
                self.pump_vm(vm, &Arc::clone(&there.relay));
            }
        }
    }

    fn pump_vm(&mut self, vm: usize, relay: &Relay) {
        for command in relay.shards[0].waiting() {
            for client in &mut self.clients {
                self.acked.extend(client.obey(vm, &command));
            }
        }
    }

    async fn run(&mut self) {
        // The first two are there, and everybody is with one of them.
        sleep(Duration::from_secs(2)).await;
        for client in 0..CLIENTS {
            self.reconnect(client, client % 2);
        }
        for _ in 0..STEPS {
            self.step().await;
            let pause = if self.rng.u8(..10) == 0 { 40_000 } else { 2_000 };
            sleep(Duration::from_millis(self.rng.u64(..pause))).await;
            self.pump();
            self.ping();
        }
        self.calm_down().await;
        let published = self.published();
        for (index, client) in self.clients.iter().enumerate() {
            let shown: BTreeSet<_> = client.shown.iter().cloned().collect();
            assert_eq!(shown.len(), client.shown.len(), "client {index} shows an event twice");
            let missing = self.acked.difference(&shown);
            let (missing, told): (Vec<_>, Vec<_>) = missing.partition(|id| client.may_expect(published[*id]));
            self.told_missing += told.len();
            let vm = client.connection.as_ref().unwrap().vm;
            assert!(missing.is_empty(), "client {index} on vm {vm} misses {missing:?}");
        }
        for vm in self.vms.iter().flatten() {
            // One that was away since the beginning.
            let mut returned = Client { cursor: self.clients[0].began.clone(), ..Client::default() };
            returned.connect(0, vm);
            if returned.complete {
                let since = at(self.clients[0].began.as_ref().unwrap());
                self.proven += self.assert_complete(&returned, since, i64::MAX);
                self.complete += 1;
            }
        }
        if self.window != WIDE {
            return;
        }
        // A visitor who comes now gets the same from any VM.
        for vm in self.vms.iter().flatten() {
            let mut visitor = Client::default();
            visitor.connect(0, vm);
            let shown: BTreeSet<_> = visitor.shown.iter().cloned().collect();
            let missing: Vec<_> = self.acked.difference(&shown).collect();
            assert!(missing.is_empty(), "{} has forgotten {missing:?}", vm.relay.identity().instance());
            assert!(vm.relay.is_whole(i64::MAX), "{} waits for something", vm.relay.identity().instance());
        }
    }

    /// Every link is mended, every VM and client connected, and time passes.
    async fn calm_down(&mut self) {
        self.topic.set_weather(Weather::default());
        for index in 0..VMS {
            match &self.vms[index] {
                Some(vm) => vm.bus.set_link(Link::Up),
                None => self.vms[index] = Some(Vm::start(&self.topic, index, self.window)),
            }
        }
        self.told.push("calm".into());
        for vm in self.vms.iter().flatten() {
            let ready = async {
                while vm.relay.health.phase() != Phase::Ready {
                    sleep(Duration::from_millis(100)).await;
                }
            };
            timeout(CALM, ready).await.expect("a VM is not ready again");
        }
        // Half of them stay where they are; the others move.
        for client in 0..CLIENTS {
            if client % 2 == 0 || self.clients[client].connection.is_none() {
                let vm = self.rng.usize(..VMS);
                self.reconnect(client, vm);
            }
        }
        for _ in 0..60 {
            sleep(CALM / 60).await;
            self.pump();
        }
    }
}

/// How many events were acknowledged, catch-ups complete, events proven by them, and told to be missing.
fn run(seed: u64, window: Window) -> [usize; 4] {
    fastrand::seed(seed);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(seed, window);
        let ended = std::panic::AssertUnwindSafe(world.run()).catch_unwind().await;
        if let Err(panic) = ended {
            println!("MODEL_SEED={seed}: {:#?}", world.told);
            std::panic::resume_unwind(panic);
        }
        [world.acked.len(), world.complete, world.proven, world.told_missing]
    })
}

fn run_all(window: Window, schedules: u64) {
    let variable = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let first = variable("MODEL_SEED");
    let count = variable("MODEL_SCHEDULES").unwrap_or(if first.is_some() { 1 } else { schedules });
    let first = first.unwrap_or(0);
    let mut sums = [0; 4];
    for seed in first..first + count {
        for (sum, more) in sums.iter_mut().zip(run(seed, window)) {
            *sum += more;
        }
    }
    let [acked, complete, proven, told_missing] = sums;
    println!("{window:?}: {count} schedules, {acked} acknowledged events; {complete} catch-ups said to be");
    println!("complete, which {proven} acknowledged events bear out; {told_missing} told to be missing");
    assert!(acked > 0);
    // One may be late by a minute each time that it is asked for.
    assert!(window != WIDE || told_missing as u64 <= 2 * count.div_ceil(100), "{told_missing} of {acked}");
}

#[test]
fn whatever_happens_every_client_ends_with_every_acknowledged_event_once() {
    run_all(WIDE, SCHEDULES);
}

#[test]
fn what_a_narrow_window_loses_is_told() {
    run_all(FEW, SCHEDULES / 4);
    run_all(SHORT, SCHEDULES / 4);
}
