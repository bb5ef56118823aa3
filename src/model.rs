//! The model test: whatever happens to VMs, connections and deliveries, every client that ends
//! connected has every acknowledged event exactly once.
//!
//! Real relays, paths and leavings on a [`stormy`] topic, under virtual time; clients that do what
//! `static/client.js` does. A schedule follows from its seed, which a failure names: repeat it by
//! `MODEL_SEED=<seed> cargo nextest run model`, or run others by `MODEL_SEED` and `MODEL_SCHEDULES`.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Buf as _;
use fastrand::Rng;
use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::auth::Visitor;
use crate::bus::Bus;
use crate::bus::stormy::{Link, Member as BusMember, Topic, Weather};
use crate::config::Config;
use crate::health::Phase;
use crate::relay::{Member, Relay};
use crate::{path, vm};

const SCHEDULES: u64 = 200;
const STEPS: usize = 60;
const VMS: usize = 4;
const CLIENTS: usize = 6;

/// Longer than anything stays late or broken once nothing is broken any more: what came late may
/// have to be sought, and found late once more.
const CALM: Duration = Duration::from_secs(300);

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
    /// What it shows: each event that it has not seen before.
    shown: Vec<String>,
    seen: HashSet<String>,
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
    vms: Vec<Option<Vm>>,
    clients: Vec<Client>,
    sent: Vec<(String, String)>,
    acked: BTreeSet<String>,
    told: Vec<String>,
}

impl Vm {
    fn start(topic: &Topic, index: usize) -> Self {
        let vars = [("FLY_ALLOC_ID".to_owned(), format!("vm-{index}"))];
        let config = Config::from_vars(vars).unwrap();
        let bus = topic.member(&format!("vm-{index}"));
        let relay = Arc::new(Relay::new(config, Bus::Stormy(bus.clone())));
        let stop = CancellationToken::new();
        let path = tokio::spawn(path::keep(Arc::clone(&relay), stop.clone()));
        Self { relay, bus, stop, path }
    }

    /// As by SIGKILL: nothing it does from here on has any effect.
    fn kill(self) {
        self.path.abort();
        self.bus.set_link(Link::Hung);
    }

    /// As by SIGINT.
    async fn leave(self) {
        self.relay.health.leaving();
        self.stop.cancel();
        let _ = self.path.await;
        vm::leave(&self.relay).await;
        self.bus.set_link(Link::Hung);
    }
}

impl Client {
    fn connect(&mut self, index: usize, vm: &Vm) {
        if !vm.relay.health.phase().takes_sockets() {
            return;
        }
        let (member, greeting) = vm.relay.join(self.cursor.as_deref(), &[], Visitor::default());
        self.connection = Some(Connection { vm: index, member, heard: HashSet::new() });
        self.read(&greeting.concat());
    }

    /// Takes what waits; what was acknowledged.
    fn pump(&mut self) -> Vec<String> {
        let mut acked = Vec::new();
        while let Some(connection) = &self.connection {
            let outbox = Arc::clone(&connection.member.outbox);
            match outbox.take().now_or_never() {
                None => break,
                Some(Err(_close)) => self.connection = None,
                Some(Ok(mut batch)) => {
                    let (frames, length) = (batch.len(), batch.remaining());
                    let bytes = batch.copy_to_bytes(length);
                    outbox.written(frames, length);
                    acked.extend(self.read(&bytes));
                }
            }
        }
        acked
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
                }
                Some("alert") => self.hear(&message),
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
    }
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
    fn new(seed: u64) -> Self {
        let topic = Topic::new(seed);
        let vms = (0..VMS).map(|index| (index < 2).then(|| Vm::start(&topic, index))).collect();
        let clients = (0..CLIENTS).map(|_| Client::default()).collect();
        let rng = Rng::with_seed(seed);
        Self { rng, topic, vms, clients, sent: vec![], acked: BTreeSet::new(), told: vec![] }
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
                    self.vms[vm] = Some(Vm::start(&self.topic, vm));
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
                leaving.leave().await;
                self.pump();
                self.leave_behind(vm);
                format!("vm {vm} leaves")
            }
            84..94 => {
                let link =
                    *self.rng.choice(&[Link::Up, Link::Up, Link::Cut, Link::Hung, Link::Mute]).unwrap();
                let Some(vm_there) = &self.vms[vm] else { return };
                vm_there.bus.set_link(link);
                format!("vm {vm}'s link is {link:?}")
            }
            _ => {
                let weather = Weather {
                    late: self.rng.u8(..30),
                    twice: self.rng.u8(..30),
                    unconfirmed: self.rng.u8(..30),
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
        if let Some(there) = &self.vms[vm] {
            self.clients[client].connect(vm, there);
        }
        format!("client {client} connects to vm {vm}")
    }

    /// What was not read of a VM's sockets when it ended is lost with it.
    fn leave_behind(&mut self, vm: usize) {
        for client in &mut self.clients {
            if client.connection.as_ref().is_some_and(|connection| connection.vm == vm) {
                client.connection = None;
            }
        }
    }

    fn pump(&mut self) {
        for client in &mut self.clients {
            self.acked.extend(client.pump());
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
        }
        self.calm_down().await;
        for (index, client) in self.clients.iter().enumerate() {
            let shown: BTreeSet<_> = client.shown.iter().cloned().collect();
            assert_eq!(shown.len(), client.shown.len(), "client {index} shows an event twice");
            let missing: Vec<_> = self.acked.difference(&shown).collect();
            let vm = client.connection.as_ref().unwrap().vm;
            assert!(missing.is_empty(), "client {index} on vm {vm} misses {missing:?}");
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
                None => self.vms[index] = Some(Vm::start(&self.topic, index)),
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

fn run(seed: u64) -> usize {
    fastrand::seed(seed);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(seed);
        let ended = std::panic::AssertUnwindSafe(world.run()).catch_unwind().await;
        if let Err(panic) = ended {
            println!("MODEL_SEED={seed}: {:#?}", world.told);
            std::panic::resume_unwind(panic);
        }
        world.acked.len()
    })
}

#[test]
fn whatever_happens_every_client_ends_with_every_acknowledged_event_once() {
    let variable = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let first = variable("MODEL_SEED");
    let count = variable("MODEL_SCHEDULES").unwrap_or(if first.is_some() { 1 } else { SCHEDULES });
    let first = first.unwrap_or(0);
    let acked: usize = (first..first + count).map(run).sum();
    println!("{count} schedules, {acked} acknowledged events");
    assert!(acked > 0);
}
