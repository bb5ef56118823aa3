//! Networks as they are: slow, lossy, parted. What is between VMs, topic and clients is
//! [`crate::support::network`], so it is the kernels' TCP that repeats, waits and gives up.
//!
//! `PARTITION_SECONDS=120` for a longer time without the topic; `scripts/long-tests` does it.

use std::fmt::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::sleep;

use crate::support::client::{Client, open_over};
use crate::support::emulator::{self, Emulator, PROJECT};
use crate::support::http::{Answer, request_over};
use crate::support::listener::Listener;
use crate::support::network::{Link, Network, Place};
use crate::support::vm::{Vm, program};
use crate::support::{within, within_for};

const REGIONS: [&str; 3] = ["ams", "sin", "lax"];

/// From the other end of the world over a bad line, where each way back takes as long again.
const FAR: Link = Link { delay: Duration::from_millis(200), lost: 0.05, late: 0.05 };

/// A person's own line to the nearest VM.
const NEAR: Link = Link { delay: Duration::from_millis(30), lost: 0.02, late: 0.05 };

/// All is heard within this: a lost segment is sent again after a second, then two, and beacons find what
/// stayed away.
const HEARD: Duration = Duration::from_secs(65);

/// An alert is answered within this, whatever happens.
const ANSWER: Duration = Duration::from_secs(35);

/// The VM knows that it is cut off.
const NOTICE: Duration = Duration::from_secs(30);

/// From the healing to `/health` 200: the longest back-off, and the calls of one attempt.
const RECOVERY: Duration = Duration::from_secs(45);

/// VMs in places of their own, whose ways to the topic are at stake; people reach each VM as they like.
struct World {
    network: Network,
    people: Place,
    topic: Place,
    regions: Vec<(Place, Vm)>,
    _emulator: Emulator,
}

impl World {
    async fn begin(link: Link) -> Self {
        let network = Network::default();
        let (people, topic) = (network.place(), network.place());
        let emulator = Emulator::start_at(&topic, &people).await;
        let host = format!("{}:{}", topic.address, emulator::PORT);
        let mut regions = Vec::new();
        for region in REGIONS {
            let place = network.place();
            network.link(&place, &topic, link);
            let vars = [
                ("PUBSUB_EMULATOR_HOST", &*host),
                ("GOOGLE_CLOUD_PROJECT", PROJECT),
                ("FLY_ALLOC_ID", region),
                ("FLY_REGION", region),
            ];
            let vm = spawn_at(&place, region, &vars).await;
            regions.push((place, vm));
        }
        let world = Self { network, people, topic, regions, _emulator: emulator };
        for (place, _) in &world.regions {
            world.health(place, 200, RECOVERY).await;
        }
        world
    }

    async fn get(&self, place: &Place, path: &str) -> Answer {
        let port = self.vm(place).port;
        let stream = within("connection", self.people.connect(place.address, port)).await.unwrap();
        request_over(stream, "GET", path, &[], "").await.unwrap()
    }

    fn vm(&self, place: &Place) -> &Vm {
        &self.regions.iter().find(|(other, _)| other.address == place.address).unwrap().1
    }

    async fn health(&self, place: &Place, status: u16, patience: Duration) {
        within_for(patience, &format!("/health {status}"), async {
            while self.get(place, "/health").await.status != status {
                sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
    }

    async fn open(&self, place: &Place, path: &str) -> Client {
        let stream = self.people.connect(place.address, self.vm(place).port).await.unwrap();
        Client::greeted(open_over(stream, path).await.unwrap()).await
    }

    async fn listeners(&self) -> Vec<Listener> {
        let mut listeners = Vec::new();
        for (place, vm) in &self.regions {
            let stream = self.people.connect(place.address, vm.port).await.unwrap();
            listeners.push(Listener::on(open_over(stream, "/ws").await.unwrap()));
        }
        listeners
    }

    /// The instances that a VM believes to be alive.
    async fn fleet(&self, place: &Place) -> Vec<String> {
        let status = self.get(place, "/status").await.json();
        let name = |instance: &Value| instance["instance"].as_str().unwrap().to_owned();
        let mut fleet: Vec<_> = status["fleet"].as_array().unwrap().iter().map(name).collect();
        fleet.sort();
        fleet
    }

    /// Waits until each VM believes in the same ones.
    async fn fleet_agrees(&self) {
        let mut all = REGIONS.map(str::to_owned);
        all.sort();
        for (place, _) in &self.regions {
            within_for(HEARD, "fleet that all agree upon", async {
                while self.fleet(place).await != all {
                    sleep(Duration::from_millis(100)).await;
                }
            })
            .await;
        }
    }

    /// Waits until a newcomer on each VM has exactly these, proven to be all.
    async fn lists_agree(&self, since: &str, all: &[String]) {
        for (place, vm) in &self.regions {
            within_for(HEARD, "list that is complete", async {
                loop {
                    let refresh = self.open(place, &format!("/ws?since={since}")).await.refresh;
                    let id = |event: &Value| event["id"].as_str().unwrap().to_owned();
                    let mut list: Vec<_> = refresh["events"].as_array().unwrap().iter().map(id).collect();
                    list.sort();
                    if refresh["complete"] == true {
                        return assert_eq!(list, all, "the list of {}", vm.name);
                    }
                    sleep(Duration::from_millis(500)).await;
                }
            })
            .await;
        }
    }
}

async fn spawn_at(place: &Place, name: &str, vars: &[(&str, &str)]) -> Vm {
    let address = place.address.to_string();
    let words = [&place.enter()[..], &[program()]].concat();
    Vm::spawn_by(&words, name, &[vars, &[("HOST", &*address)]].concat()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_slow_and_lossy_lines_every_region_hears_every_alert_once() {
    const ALERTS: usize = 20;
    let world = World::begin(FAR).await;
    world.fleet_agrees().await;
    for (place, _) in &world.regions {
        world.network.link(&world.people, place, NEAR);
    }
    let mut listeners = world.listeners().await;
    let mut sent = Vec::new();
    for number in 0..ALERTS {
        for (listener, region) in listeners.iter_mut().zip(REGIONS) {
            let id = format!("{region} {number:02}");
            listener.alert(&id).await;
            sent.push((id, Instant::now()));
        }
        sleep(Duration::from_millis(250)).await;
    }
    let mut all: Vec<_> = sent.iter().map(|(id, _)| id.clone()).collect();
    all.sort();
    let mut delays = Vec::new();
    for listener in &listeners {
        listener.hears(&all, HEARD).await;
        delays.extend(sent.iter().map(|(id, at)| listener.came(id) - *at));
    }
    for (id, at) in &sent {
        let via = REGIONS.iter().position(|region| id.starts_with(region)).unwrap();
        let (answered, answer) = listeners[via].answer(id, 0, ANSWER).await;
        assert_eq!(answer["type"], "ack", "{answer}");
        assert!(answered - *at < ANSWER);
    }
    for listener in &listeners {
        let mut heard = listener.events();
        heard.sort();
        assert_eq!(heard, all, "each once");
        assert!(listener.is_open());
    }
    delays.sort();
    let sent_again: u64 = world.regions.iter().map(|(place, _)| place.sent_again()).sum();
    println!(
        "{} alerts, heard by 3 regions over 2 x {:?}: half within {:.1?}, nine tenths {:.1?}, all {:.1?}; {} \
         packets lost, {} segments sent again",
        all.len(),
        FAR.delay,
        delays[delays.len() / 2],
        delays[delays.len() * 9 / 10],
        delays[delays.len() - 1],
        world.network.lost(),
        sent_again + world.topic.sent_again()
    );
    assert!(delays[0] >= 2 * (FAR.delay + NEAR.delay) && sent_again > 0, "no such network");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_was_cut_off_says_so_and_has_it_all_afterwards() {
    let time = std::env::var("PARTITION_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(40);
    let time = Duration::from_secs(time);
    let world = World::begin(Link::default()).await;
    world.fleet_agrees().await;
    let (island, _) = &world.regions[2];
    let cursor = world.open(island, "/ws").await.refresh["cursor"].as_str().unwrap().to_owned();
    let mut listeners = world.listeners().await;
    let mut sent: Vec<Sent> = Vec::new();
    alert(&mut listeners, &mut sent, "before").await;
    all_confirmed(&mut listeners, &sent).await;

    let begun = Instant::now();
    world.network.link(island, &world.topic, Link::CUT);
    alert(&mut listeners, &mut sent, "early").await;
    world.health(island, 503, NOTICE).await;
    let noticed = begun.elapsed();
    assert_eq!(world.get(island, "/status").await.json()["status"], "unreachable");
    // What can't be published is refused in its time; meanwhile nothing is claimed.
    let (answered, answer) = listeners[2].answer("early via lax", 0, ANSWER).await;
    assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!("unavailable")), "{answer}");
    let refused = answered - begun;
    within_for(HEARD, "fleet without who is cut off", async {
        while world.fleet(&world.regions[0].0).await.len() != 2 {
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let missed = begun.elapsed();
    sleep(time.saturating_sub(begun.elapsed())).await;
    alert(&mut listeners, &mut sent, "late").await;
    assert_eq!(world.get(island, "/health").await.status, 503, "as long as it lasts");
    for listener in &listeners[..2] {
        let heard = listener.events();
        assert!(!heard.iter().any(|id| id == "early via lax" || id == "late via lax"), "{heard:?}");
    }

    let healed = Instant::now();
    world.network.link(island, &world.topic, Link::default());
    world.health(island, 200, RECOVERY).await;
    let recovered = healed.elapsed();
    let answers = all_confirmed(&mut listeners, &sent).await;
    alert(&mut listeners, &mut sent, "after").await;
    all_confirmed(&mut listeners, &sent).await;
    let mut all: Vec<_> = sent.iter().map(|sent| sent.id.clone()).collect();
    all.sort();
    for listener in &listeners {
        listener.hears(&all, HEARD).await;
        let mut heard = listener.events();
        heard.sort();
        assert_eq!(heard, all, "each once");
        assert!(listener.is_open(), "no socket is lost");
    }
    world.lists_agree(&cursor, &all).await;
    world.fleet_agrees().await;
    println!(
        "cut off for {:.0?}: noticed after {noticed:.1?}, refused after {refused:.1?}, out of the fleet after \
         {missed:.1?}; healed, ready after {recovered:.1?}, all heard, in all lists and the fleet after \
         {:.1?}{answers}",
        healed - begun,
        healed.elapsed()
    );
}

/// An alert and the socket that it was sent on.
struct Sent {
    id: String,
    via: usize,
}

async fn alert(listeners: &mut [Listener], sent: &mut Vec<Sent>, when: &str) {
    for (via, (listener, region)) in listeners.iter_mut().zip(REGIONS).enumerate() {
        let id = format!("{when} via {region}");
        listener.alert(&id).await;
        sent.push(Sent { id, via });
    }
}

/// Sends what was refused again, as a client does, until all is acknowledged; tells what was refused.
async fn all_confirmed(listeners: &mut [Listener], sent: &[Sent]) -> String {
    let mut told = String::new();
    for Sent { id, via } in sent {
        for attempt in 0.. {
            let (_, answer) = listeners[*via].answer(id, attempt, ANSWER).await;
            if answer["type"] == "ack" {
                break;
            }
            assert_eq!(answer["code"], "unavailable", "{answer}");
            write!(told, "; {id}: refused").unwrap();
            sleep(Duration::from_millis(answer["retryAfterMs"].as_u64().unwrap())).await;
            listeners[*via].alert(id).await;
        }
    }
    told
}

/// What a page does, in a process of its own: tells its state, and each event with whether it was caught up.
const PAGE: &str = r#"
const [{ AlienClient }, url] = [await import(process.argv[1]), process.argv[2]];
const tell = (message) => console.log(JSON.stringify(message));
const client = new AlienClient(url, { storage: null });
client.on("state", (state) => tell({ state }));
client.on("refresh-store", ({ complete }) => tell({ complete }));
client.on("alert", ({ id }, { caughtUp }) => tell({ id, caughtUp }));
client.connect();
"#;

struct Page {
    _process: Child,
    told: Lines<BufReader<ChildStdout>>,
}

impl Page {
    fn open(place: &Place, url: &str) -> Self {
        let [command, namespace] = place.enter();
        let module = concat!(env!("CARGO_MANIFEST_DIR"), "/static/client.js");
        let mut process = Command::new(command)
            .arg(namespace)
            .args(["node", "--experimental-websocket", "--input-type=module", "--eval", PAGE, module, url])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let told = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { _process: process, told }
    }

    /// All that it tells up to this, and this.
    async fn tells(&mut self, awaited: Value) -> Vec<Value> {
        within_for(HEARD, &awaited.to_string(), async {
            let mut told = Vec::new();
            loop {
                let line = self.told.next_line().await.unwrap().expect("a page that lives");
                told.push(serde_json::from_str(&line).unwrap());
                if told.last() == Some(&awaited) {
                    return told;
                }
            }
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_cut_off_from_its_vm_is_let_go_and_comes_back_to_all_of_it() {
    const INTERVAL: Duration = Duration::from_secs(2);
    let network = Network::default();
    let (home, people, edge) = (network.place(), network.place(), network.place());
    let interval = INTERVAL.as_secs().to_string();
    let vm = spawn_at(&edge, "edge", &[("PING_INTERVAL", &interval)]).await;
    let mut page = Page::open(&home, &format!("ws://{}:{}/ws", edge.address, vm.port));
    page.tells(json!({"complete": true})).await;
    let stream = people.connect(edge.address, vm.port).await.unwrap();
    let mut sender = Client::greeted(open_over(stream, "/ws").await.unwrap()).await;
    let id = sender.alert(json!({})).await;
    page.tells(json!({"id": id, "caughtUp": false})).await;

    let sockets = async || {
        let stream = people.connect(edge.address, vm.port).await.unwrap();
        request_over(stream, "GET", "/status", &[], "").await.unwrap().json()["connectedClients"].clone()
    };
    let begun = Instant::now();
    network.link(&home, &edge, Link::CUT);
    let mut missed = Vec::new();
    while sockets().await == 2 {
        missed.push(sender.alert(json!({})).await);
        assert!(begun.elapsed() < 4 * INTERVAL, "still there");
        sleep(INTERVAL / 8).await;
    }
    let ended = begun.elapsed();
    assert!(ended > INTERVAL, "before it was silent for long");
    missed.push(sender.alert(json!({})).await);
    // It knows by itself.
    page.tells(json!({"state": "waiting"})).await;

    let healed = Instant::now();
    network.link(&home, &edge, Link::default());
    let told = page.tells(json!({"state": "connected"})).await;
    println!("its socket ended after {ended:.1?}; {:.1?} after the healing it was back", healed.elapsed());
    let expected: Vec<_> = missed.iter().map(|id| json!({"id": id, "caughtUp": true})).collect();
    let events: Vec<_> = told.iter().filter(|line| line["id"].is_string()).collect();
    assert_eq!(events, expected.iter().collect::<Vec<_>>(), "what it missed, each once");
    assert_eq!(page.tells(json!({"complete": true})).await.len(), 1);
    let id = sender.alert(json!({})).await;
    assert_eq!(page.tells(json!({"id": id, "caughtUp": false})).await.len(), 1);
}
