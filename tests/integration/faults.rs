//! What can befall the topic, one fault at a time: sockets stay open, the fault is named once, and in
//! the end everyone has heard everything once.
//!
//! The VM `ams` reaches the emulator through a proxy, or through a gate where what it may do is at stake;
//! the VM `sin` reaches it directly. Each has a socket that is there throughout. The emulator can't detach a
//! subscription (501), nor take a right away: the gate answers in its place.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::client::Client;
use crate::support::emulator::{Emulator, PROJECT};
use crate::support::gate::{Gate, Refused};
use crate::support::http::get;
use crate::support::listener::Listener;
use crate::support::proxy::{Mode, Proxy};
use crate::support::vm::Vm;
use crate::support::within_for;

/// A fault is seen in the log and in `/health` within this.
const NOTICE: Duration = Duration::from_secs(30);

/// From the end of a fault to `/health` 200: the longest back-off, and the calls of one attempt.
const RECOVERY: Duration = Duration::from_secs(45);

/// All is heard within this, though messages went to a stream that is no more: a beacon tells of them after
/// 15 s at most, they are sought within 15 s, and within 30 s more over a new subscription.
const HEARD: Duration = Duration::from_secs(65);

/// A fault that is noticed at once lasts so long, for several tries to be made meanwhile.
const RETRIES: Duration = Duration::from_secs(10);

/// An alert is answered within this, whatever happens.
const ANSWER: Duration = Duration::from_secs(35);

/// How the log names an outage.
const OUTAGE: &str = "no way through the topic";

/// And that something did not come.
const HOLE: &str = "events of other VMs have not come";

/// Google's client opens its stream again by itself and says nothing. The emulator seems to go on handing
/// messages to the old one, each for the 10 s of a lease: then they are late, or a hole is noticed and sought.
#[tokio::test]
async fn connections_are_cut() {
    let mut scene = Scene::start().await;
    let begun = Instant::now();
    scene.proxy.set(Mode::Cut);
    scene.alert("during").await;
    let all = scene.ids();
    for listener in &scene.listeners {
        listener.hears(&all, HEARD).await;
    }
    // It may be mended faster than anyone could say so.
    assert!(scene.outages().len() <= 1, "{:?}", scene.outages());
    let noticed = scene.ams.lines(HOLE).len();
    let times = format!("all alerts heard after {:.1?}, holes sought: {noticed}", begun.elapsed());
    scene.end("connections cut", &times).await;
}

#[tokio::test]
async fn the_endpoint_refuses_for_a_minute() {
    let refuse = async |scene: &mut Scene| scene.proxy.set(Mode::Refuse);
    lasting(Scene::start().await, "endpoint refused", Duration::from_secs(60), refuse, pass).await;
}

#[tokio::test]
async fn the_stream_hangs_without_an_error() {
    let hang = async |scene: &mut Scene| scene.proxy.set(Mode::BlackHole);
    let scene = lasting(Scene::start().await, "black hole", Duration::ZERO, hang, pass).await;
    scene.assert_named("has not come back");
}

#[tokio::test]
async fn what_hung_is_cut_in_the_end() {
    let hang = async |scene: &mut Scene| scene.proxy.set(Mode::BlackHole);
    let cut = async |scene: &mut Scene| scene.proxy.set(Mode::Cut);
    let scene = lasting(Scene::start().await, "black hole, then cut", Duration::ZERO, hang, cut).await;
    scene.assert_named("has not come back");
}

#[tokio::test]
async fn permission_is_taken_away_and_given_back() {
    let deny = async |scene: &mut Scene| scene.gate.refuse(Refused::All);
    let scene = lasting(Scene::gated().await, "permission denied", RETRIES, deny, pass).await;
    scene.assert_named("PERMISSION_DENIED");
}

#[tokio::test]
async fn the_right_to_publish_is_taken_away_and_given_back() {
    let deny = async |scene: &mut Scene| scene.gate.refuse(Refused::Publishing);
    let give_back = async |scene: &mut Scene| {
        // What others publish goes on being heard.
        scene.heard_by("ams", &["early via sin", "late via sin"]).await;
        scene.gate.refuse(Refused::Nothing);
    };
    let scene = lasting(Scene::gated().await, "publishing denied", Duration::ZERO, deny, give_back).await;
    scene.assert_named("PERMISSION_DENIED");
}

#[tokio::test]
async fn the_right_to_consume_is_taken_away_and_given_back() {
    let deny = async |scene: &mut Scene| scene.gate.refuse(Refused::Consuming);
    let give_back = async |scene: &mut Scene| {
        // What it publishes goes on being heard by others.
        scene.heard_by("sin", &["early via ams", "late via ams"]).await;
        scene.gate.refuse(Refused::Nothing);
    };
    let scene = lasting(Scene::gated().await, "consuming denied", RETRIES, deny, give_back).await;
    scene.assert_named("PERMISSION_DENIED");
}

#[tokio::test]
async fn the_subscription_is_detached() {
    let detach = async |scene: &mut Scene| scene.gate.refuse(Refused::Detached);
    let scene = passing(Scene::gated().await, "subscription detached", detach).await;
    scene.assert_named("is detached");
}

#[tokio::test]
async fn the_emulator_is_killed_and_starts_again_empty() {
    let kill = async |scene: &mut Scene| scene.emulator.kill();
    let start = async |scene: &mut Scene| scene.emulator.start_again().await;
    lasting(Scene::start().await, "emulator killed", Duration::ZERO, kill, start).await;
}

#[tokio::test]
async fn the_subscription_is_deleted() {
    let delete = async |scene: &mut Scene| scene.emulator.delete("subscriptions/ID_vm-ams").await;
    let scene = passing(Scene::start().await, "subscription deleted", delete).await;
    scene.assert_named("Subscription does not exist");
}

#[tokio::test]
async fn the_topic_is_deleted() {
    let delete = async |scene: &mut Scene| scene.emulator.delete("topics/ALIEN_NOTIFICATIONS").await;
    let scene = passing(Scene::start().await, "topic deleted", delete).await;
    scene.assert_named("Topic not found");
}

#[tokio::test]
async fn a_vm_that_finds_its_subscription_detached_makes_it_anew() {
    let emulator = Emulator::start().await;
    emulator.create_topic("ALIEN_NOTIFICATIONS").await;
    emulator.subscribe("ID_vm-ams", "ALIEN_NOTIFICATIONS").await;
    let gate = Gate::to(emulator.port).await;
    gate.refuse(Refused::Detached);
    let ams = Vm::spawn_on(&gate.host(), "ams", &[]).await;
    ams.logged("own subscription of before was dead, and is made anew").await;
    ams.ready().await;
    ams.connect().await.alert(json!({})).await;
    assert_eq!(ams.lines(OUTAGE).len(), 0);
}

#[tokio::test]
async fn a_topic_whose_retention_can_not_be_mended_is_told_of_with_how_to_mend_it() {
    for (refused, says) in [
        (Refused::Changing, "the topic does not keep its messages long enough"),
        (Refused::Looking, "can't see whether the topic keeps its messages long enough"),
    ] {
        let emulator = Emulator::start().await;
        emulator.create_topic("ALIEN_NOTIFICATIONS").await;
        let gate = Gate::to(emulator.port).await;
        gate.refuse(refused);
        let ams = Vm::spawn_on(&gate.host(), "ams", &[("HISTORY_SECONDS", "1800")]).await;
        let line = ams.logged(says).await;
        assert_eq!(line["level"], "WARN");
        let told = line["message"].as_str().unwrap();
        let topic = format!("projects/{PROJECT}/topics/ALIEN_NOTIFICATIONS");
        let mend = format!("gcloud pubsub topics update {topic} --message-retention-duration=2100s");
        assert!(
            told.contains("a new VM does not know what was before it") && told.ends_with(&mend),
            "{told}"
        );
        // It serves all the same.
        ams.ready().await;
        let mut page = ams.connect().await;
        page.alert(json!({})).await;
        assert!(emulator.topic("ALIEN_NOTIFICATIONS").await["messageRetentionDuration"].is_null());
        if refused == Refused::Looking {
            continue;
        }
        // It is known that the topic has not kept what was before a new VM, so that claims nothing of it.
        let since = format!("/ws?since={}", page.refresh["cursor"].as_str().unwrap());
        let later = Vm::spawn_on(&gate.host(), "sin", &[("HISTORY_SECONDS", "1800")]).await;
        later.logged(says).await;
        later.ready().await;
        within_for(HEARD, "word of it", async {
            loop {
                let refresh = Client::connect(later.port, &since).await.refresh;
                if refresh["complete"] == false && refresh["reason"] == "too_old" {
                    break;
                }
                sleep(Duration::from_millis(200)).await;
            }
        })
        .await;
    }
}

async fn pass(scene: &mut Scene) {
    scene.proxy.set(Mode::Pass);
    scene.gate.refuse(Refused::Nothing);
}

/// A fault that is there, for `least` or until it is noticed, up to `mend`.
async fn lasting(
    mut scene: Scene,
    what: &str,
    least: Duration,
    fault: impl AsyncFnOnce(&mut Scene),
    mend: impl AsyncFnOnce(&mut Scene),
) -> Scene {
    let begun = Instant::now();
    fault(&mut scene).await;
    scene.alert("early").await;
    scene.health(503, NOTICE).await;
    let noticed = begun.elapsed();
    sleep(least.saturating_sub(begun.elapsed())).await;
    assert_eq!(get(scene.ams.port, "/health").await.status, 503, "as long as it lasts");
    scene.alert("late").await;
    mend(&mut scene).await;
    let mended = Instant::now();
    scene.health(200, RECOVERY).await;
    let recovered = mended.elapsed();
    let times = format!("noticed after {noticed:.1?}, recovered {recovered:.1?} after its end");
    scene.end(what, &times).await;
    scene.assert_named_once();
    scene
}

/// A fault that happens once and leaves the rest to the VM.
async fn passing(mut scene: Scene, what: &str, fault: impl AsyncFnOnce(&mut Scene)) -> Scene {
    let begun = Instant::now();
    fault(&mut scene).await;
    scene.alert("during").await;
    within_for(NOTICE, "line in the log", async {
        while scene.outages().is_empty() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let noticed = begun.elapsed();
    scene.health(200, RECOVERY).await;
    let recovered = begun.elapsed();
    let times = format!("noticed after {noticed:.1?}, recovered after {recovered:.1?}");
    scene.end(what, &times).await;
    scene.assert_named_once();
    scene
}

struct Scene {
    emulator: Emulator,
    gate: Gate,
    proxy: Proxy,
    ams: Vm,
    sin: Vm,
    /// A socket on each, in the same order.
    listeners: [Listener; 2],
    sent: Vec<Sent>,
    /// From before the first alert.
    cursor: String,
    /// Outages at the start, where the emulator is slow to answer.
    early: usize,
}

/// An alert and the socket that it was sent on.
struct Sent {
    id: String,
    via: usize,
    at: Instant,
}

impl Scene {
    async fn start() -> Self {
        let emulator = Emulator::start().await;
        let gate = Gate::to(emulator.port).await;
        let proxy = Proxy::to(emulator.port).await;
        let way = proxy.host();
        Self::all_well(emulator, gate, proxy, &way).await
    }

    /// With the gate in the place of the proxy.
    async fn gated() -> Self {
        let emulator = Emulator::start().await;
        let gate = Gate::to(emulator.port).await;
        let proxy = Proxy::to(emulator.port).await;
        let way = gate.host();
        Self::all_well(emulator, gate, proxy, &way).await
    }

    /// All is well, and an alert from each side has been heard by each.
    async fn all_well(emulator: Emulator, gate: Gate, proxy: Proxy, way: &str) -> Self {
        let ams = Vm::spawn_on(way, "ams", &[]).await;
        let sin = Vm::spawn_on(&emulator.host(), "sin", &[]).await;
        ams.ready().await;
        sin.ready().await;
        let listeners = [Listener::connect(ams.port).await, Listener::connect(sin.port).await];
        let cursor = sin.connect().await.refresh["cursor"].as_str().unwrap().to_owned();
        let mut scene =
            Self { cursor, emulator, gate, proxy, ams, sin, listeners, sent: Vec::new(), early: 0 };
        scene.alert("before").await;
        scene.all_confirmed().await;
        scene.all_heard().await;
        scene.early = scene.ams.lines(OUTAGE).len();
        scene
    }

    /// Sends an alert on each side.
    async fn alert(&mut self, when: &str) {
        for (via, listener) in self.listeners.iter_mut().enumerate() {
            let id = format!("{when} via {}", ["ams", "sin"][via]);
            listener.alert(&id).await;
            self.sent.push(Sent { id, via, at: Instant::now() });
        }
    }

    fn ids(&self) -> Vec<String> {
        let mut ids: Vec<_> = self.sent.iter().map(|sent| sent.id.clone()).collect();
        ids.sort();
        ids
    }

    /// Waits for `ams` to give this answer.
    async fn health(&self, status: u16, patience: Duration) {
        within_for(patience, &format!("/health {status}"), async {
            while get(self.ams.port, "/health").await.status != status {
                sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    /// Sends what was answered `unavailable` again, as a client does, until all is acknowledged; tells
    /// how each was answered first.
    async fn all_confirmed(&mut self) -> String {
        let mut told = String::new();
        for Sent { id, via, at } in &self.sent {
            let listener = &mut self.listeners[*via];
            for attempt in 0.. {
                let (answered, answer) = listener.answer(id, attempt, ANSWER).await;
                let kind = if answer["type"] == "ack" { &answer["type"] } else { &answer["code"] };
                if attempt == 0 {
                    assert!(answered - *at < ANSWER, "{id}: answered after {:.1?}", answered - *at);
                    write!(told, "; {id}: {kind} after {:.1?}", answered - *at).unwrap();
                }
                if kind == "ack" {
                    break;
                }
                assert_eq!(kind, "unavailable", "{answer}");
                let wait = answer["retryAfterMs"].as_u64().expect("a time to wait");
                sleep(Duration::from_millis(wait)).await;
                listener.alert(id).await;
            }
        }
        told
    }

    async fn heard_by(&self, vm: &str, ids: &[&str]) {
        let listener = &self.listeners[usize::from(vm == "sin")];
        listener.hears(&ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>(), HEARD).await;
    }

    async fn all_heard(&self) {
        let all = self.ids();
        for listener in &self.listeners {
            listener.hears(&all, HEARD).await;
        }
    }

    /// When it is over, all four have the same list: two that were there, and two that come now.
    async fn end(&mut self, what: &str, times: &str) {
        let answers = self.all_confirmed().await;
        let named = self.outages().first().map_or("nothing".into(), |line| line["reason"].to_string());
        println!("{what}: {times}{answers}; named as {named}");
        // What comes twice would be among what comes before this.
        self.alert("after").await;
        self.all_confirmed().await;
        self.all_heard().await;
        let all = self.ids();
        for (listener, vm) in self.listeners.iter().zip([&self.ams, &self.sin]) {
            assert!(listener.is_open(), "the socket on {} stays open", vm.name);
            let mut heard = listener.events();
            heard.sort();
            assert_eq!(heard, all, "each once on the socket on {}", vm.name);
            self.assert_caught_up(vm, &all).await;
        }
    }

    /// One that was there before anything happened, and comes back only now. It is not said to have all before
    /// that is proven: what was given up is told by a beacon, and the emulator's old stream may take beacons.
    async fn assert_caught_up(&self, vm: &Vm, all: &[String]) {
        let begun = Instant::now();
        within_for(HEARD, "catch-up that is complete", async {
            loop {
                let since = format!("/ws?since={}", self.cursor);
                let refresh = Client::connect(vm.port, &since).await.refresh;
                let id = |event: &Value| event["id"].as_str().unwrap().to_owned();
                let mut heard: Vec<_> = refresh["events"].as_array().unwrap().iter().map(id).collect();
                heard.sort();
                assert_eq!(heard, all, "each once on a new socket on {}", vm.name);
                if refresh["complete"] == true {
                    return;
                }
                let health = get(vm.port, "/health").await.status;
                let [reason, missing] = [&refresh["reason"], &refresh["missing"]];
                let after = begun.elapsed();
                println!("{}: not complete {after:.1?} later: {reason} {missing}, /health {health}", vm.name);
                sleep(Duration::from_secs(1)).await;
            }
        })
        .await;
    }

    /// What the log of `ams` told of since all was well.
    fn outages(&self) -> Vec<Value> {
        let warnings = self.ams.lines(OUTAGE).into_iter().filter(|line| line["level"] == "WARN");
        warnings.skip(self.early).collect()
    }

    /// The log says what kind of fault it was.
    fn assert_named(&self, by: &str) {
        let outages = self.outages();
        assert!(outages[0]["reason"].as_str().unwrap().contains(by), "{by} in {outages:?}");
    }

    /// A fault is named once. The emulator's old stream may take the beacons after it, which is another.
    fn assert_named_once(&self) {
        let outages = self.outages();
        let first = outages.first().map(|line| &line["reason"]);
        let same = outages.iter().filter(|line| Some(&line["reason"]) == first).count();
        assert_eq!(same, 1, "{outages:?}");
        // Nor is what each try does about it.
        for told in ["subscription created", "own subscription", "subscription deleted"] {
            assert!(self.ams.lines(told).len() <= 1, "{:?}", self.ams.log());
        }
    }
}
