//! The VMs that are alive, by the beacons heard of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock;
use crate::event::Beacon;

/// About so many VMs answer what is asked of all, however large the fleet.
pub const ANSWERS: f64 = 20.0;

/// As many as Pub/Sub has subscriptions to give to one project.
const MAX_INSTANCES: usize = 10_000;

/// The longest that a VM says it is silent: as many seconds as there are VMs, or `BEACON_INTERVAL`, which is
/// less. Who tells of more is none.
const MAX_INTERVAL: Duration = Duration::from_secs(MAX_INSTANCES as u64);

#[derive(Default)]
pub struct Fleet {
    instances: BTreeMap<String, Instance>,
    /// How many of them have not left: asked for with each alert and each beacon, in fleets of thousands.
    alive: usize,
    /// Processes that ended without a word, as it seems.
    silent: BTreeSet<Gone>,
}

/// A process of a VM that ended without a word; of several the first to be certain comes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gone {
    /// This VM must have heard itself after this.
    certain: Instant,
    pub instance: String,
    pub region: String,
    pub clients: usize,
    pub started: i64,
}

/// What is known of one VM.
#[derive(Clone, Debug)]
pub struct Instance {
    pub region: String,
    pub clients: usize,
    pub round_trip_ms: Option<u64>,
    /// In ms since the epoch, by the topic's clock.
    pub last_seen: i64,
    /// It said goodbye; remembered, so that an older beacon that comes late does not call it back.
    left: bool,
    /// Which process of that name, and which of its beacons.
    latest: (i64, u64),
    heard: Instant,
    interval: Duration,
    expires: Instant,
}

/// What a beacon changed, the more important last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    Nothing,
    Figures,
    Members,
}

impl Fleet {
    /// Takes note of a beacon that was published at `at` (µs by the topic's clock).
    pub fn hear(&mut self, beacon: Beacon, at: i64) -> Change {
        let age = Duration::from_micros(u64::try_from(clock::now_micros() - at).unwrap_or(0));
        let Some(left) = patience(&beacon).checked_sub(age) else {
            // Out of the backlog: it tells of a life that may be over.
            return Change::Nothing;
        };
        let latest = (beacon.sequence.started, beacon.beat);
        let known = self.instances.get(&beacon.origin.instance);
        if known.is_some_and(|known| known.latest >= latest) {
            return Change::Nothing;
        }
        let was_here = known.is_some_and(|known| !known.left);
        if known.is_none() && self.instances.len() >= MAX_INSTANCES {
            return Change::Nothing;
        }
        let change = match known {
            _ if was_here == beacon.leaving => Change::Members,
            Some(known) if known.looks_different(&beacon) && !beacon.leaving => Change::Figures,
            _ => Change::Nothing,
        };
        self.alive = self.alive - usize::from(was_here) + usize::from(!beacon.leaving);
        // A new process under the old one's name.
        let gone = known.filter(|known| was_here && known.latest.0 < latest.0);
        if let Some(gone) = gone.map(|known| known.gone(&beacon.origin.instance)) {
            note(&mut self.silent, gone);
        }
        let interval = interval(&beacon);
        self.instances.insert(
            beacon.origin.instance,
            Instance {
                region: beacon.origin.region,
                clients: beacon.clients,
                round_trip_ms: beacon.round_trip_ms,
                last_seen: at / 1000,
                left: beacon.leaving,
                latest,
                heard: Instant::now(),
                interval,
                expires: Instant::now() + left,
            },
        );
        change
    }

    /// How long it takes at most until each has spoken, by what they say.
    pub fn longest_interval(&self) -> Duration {
        let alive = self.instances.values().filter(|instance| !instance.left);
        alive.map(|instance| instance.interval).max().unwrap_or_default()
    }

    /// Forgets those whose beacons stopped; true if there were any.
    pub fn expire(&mut self) -> bool {
        let before = self.alive;
        let now = Instant::now();
        for (name, instance) in self.instances.extract_if(.., |_, instance| instance.expires <= now) {
            if !instance.left {
                self.alive -= 1;
                note(&mut self.silent, instance.gone(&name));
            }
        }
        self.alive < before
    }

    /// The processes that ended without a word and that `own` VM is to tell of: it has the lowest id,
    /// and hears itself while it does not hear them, so that the silence is not its own.
    pub fn take_gone(&mut self, own: &str) -> Vec<Gone> {
        let Self { instances, silent, .. } = self;
        silent.retain(|gone| !is_known(instances, &gone.instance, gone.started));
        let heard = instances.get(own).map(|own| own.heard);
        let certain = silent.extract_if(.., |gone| heard.is_some_and(|heard| heard > gone.certain)).collect();
        let is_lowest = self.instances().next().is_some_and(|(lowest, _)| lowest == own);
        if is_lowest { certain } else { Vec::new() }
    }

    /// Whether that process of that VM speaks for itself, or has just said goodbye.
    pub fn is_known(&self, instance: &str, started: i64) -> bool {
        is_known(&self.instances, instance, started)
    }

    /// Whether a VM of that name is alive.
    pub fn has(&self, instance: &str) -> bool {
        self.instances.get(instance).is_some_and(|known| !known.left)
    }

    /// Whether this VM is one of those that answer what is asked of all.
    pub fn is_to_answer(&self) -> bool {
        clock::random_share() < ANSWERS / self.len() as f64
    }

    pub fn instances(&self) -> impl Iterator<Item = (&String, &Instance)> {
        self.instances.iter().filter(|(_, instance)| !instance.left)
    }

    pub fn len(&self) -> usize {
        self.alive
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Instance {
    fn gone(&self, name: &str) -> Gone {
        Gone {
            instance: name.into(),
            region: self.region.clone(),
            clients: self.clients,
            started: self.latest.0,
            certain: Instant::now() + self.interval,
        }
    }

    /// Whether people would call what the beacon says news. A few milliseconds are none, and telling
    /// them would keep every phone's radio awake.
    fn looks_different(&self, beacon: &Beacon) -> bool {
        let (old, new) = (self.round_trip_ms.unwrap_or(0), beacon.round_trip_ms.unwrap_or(0));
        self.clients != beacon.clients
            || self.region != beacon.origin.region
            || old.abs_diff(new) > 20 + old / 2
    }
}

fn is_known(instances: &BTreeMap<String, Instance>, instance: &str, started: i64) -> bool {
    instances.get(instance).is_some_and(|known| known.latest.0 == started)
}

/// Keeps a process that fell silent until that is certain. Beyond the bound those go that take longest: whoever
/// fills the list with processes that there never were says that they are silent for long, or they would leave
/// it soon.
fn note(silent: &mut BTreeSet<Gone>, gone: Gone) {
    silent.insert(gone);
    if silent.len() > MAX_INSTANCES {
        silent.pop_last();
    }
}

fn interval(beacon: &Beacon) -> Duration {
    Duration::from_millis(beacon.interval_ms).min(MAX_INTERVAL)
}

/// One beacon may be lost and the next one late before a VM counts as gone.
fn patience(beacon: &Beacon) -> Duration {
    interval(beacon).mul_f64(2.5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Origin, Sequence};

    fn beacon(instance: &str, started: i64, number: u64) -> Beacon {
        Beacon {
            origin: Origin { instance: instance.into(), region: "ams".into() },
            sequence: Sequence { started, ..Sequence::default() },
            settled_until: 0,
            published_until: None,
            beat: number,
            clients: usize::try_from(number).unwrap(),
            round_trip_ms: None,
            interval_ms: 1_000,
            asking: false,
            leaving: false,
            given_up: Vec::new(),
            heard: Vec::new(),
        }
    }

    #[test]
    fn comes_stays_and_leaves() {
        let mut fleet = Fleet::default();
        let now = clock::now_micros();
        assert_eq!(fleet.hear(beacon("a", 1, 1), now), Change::Members);
        assert_eq!(fleet.hear(beacon("a", 1, 2), now), Change::Figures);
        assert_eq!(fleet.hear(beacon("a", 1, 2), now), Change::Nothing, "delivered twice");
        let same = Beacon { clients: 2, round_trip_ms: Some(9), ..beacon("a", 1, 3) };
        assert_eq!(fleet.hear(same, now), Change::Nothing, "nothing that anyone would call news");
        assert_eq!(fleet.hear(beacon("a", 2, 1), now), Change::Figures, "restarted");
        let last = Beacon { leaving: true, ..beacon("a", 2, 3) };
        assert_eq!(fleet.hear(last, now), Change::Members);
        assert!(fleet.is_empty());
        assert_eq!(fleet.hear(beacon("a", 2, 2), now), Change::Nothing, "delivered late");
        assert!(fleet.is_empty());
    }

    #[test]
    fn news_is_what_people_would_call_so() {
        let before = Beacon { round_trip_ms: Some(100), ..beacon("a", 1, 1) };
        let changed = |after: Beacon| {
            let mut fleet = Fleet::default();
            fleet.hear(before.clone(), clock::now_micros());
            fleet.hear(Beacon { beat: 2, ..after }, clock::now_micros())
        };
        for (round_trip_ms, change) in [
            (Some(100), Change::Nothing),
            (Some(170), Change::Nothing),
            (Some(171), Change::Figures),
            (Some(30), Change::Nothing),
            (Some(29), Change::Figures),
            (None, Change::Figures),
        ] {
            assert_eq!(changed(Beacon { round_trip_ms, ..before.clone() }), change, "{round_trip_ms:?}");
        }
        assert_eq!(changed(Beacon { clients: 2, ..before.clone() }), Change::Figures);
        let moved = Origin { region: "sin".into(), ..before.origin.clone() };
        assert_eq!(changed(Beacon { origin: moved, ..before.clone() }), Change::Figures);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_said_goodbye_is_forgotten_without_a_word() {
        let mut fleet = Fleet::default();
        fleet.hear(beacon("a", 1, 1), clock::now_micros());
        assert!(fleet.has("a") && !fleet.has("b") && fleet.is_known("a", 1) && !fleet.is_known("a", 2));
        fleet.hear(Beacon { leaving: true, ..beacon("a", 1, 2) }, clock::now_micros());
        assert!(!fleet.has("a"));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(!fleet.expire(), "no news");
        assert!(fleet.instances.is_empty() && fleet.silent.is_empty());
    }

    #[test]
    fn an_old_beacon_is_no_sign_of_life() {
        let mut fleet = Fleet::default();
        assert_eq!(fleet.hear(beacon("a", 1, 1), clock::now_micros() - 3_000_000), Change::Nothing);
        assert!(fleet.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_ended_without_a_word_is_told_of_once_by_the_lowest() {
        let mut fleet = Fleet::default();
        let second = Duration::from_secs(1);
        for name in ["a", "b", "c"] {
            fleet.hear(beacon(name, 1, 1), clock::now_micros());
        }
        fleet.hear(Beacon { leaving: true, ..beacon("c", 1, 2) }, clock::now_micros());
        tokio::time::advance(3 * second).await;
        fleet.hear(beacon("a", 1, 2), clock::now_micros());
        assert!(fleet.expire());
        assert!(fleet.take_gone("a").is_empty(), "the silence may be its own");
        tokio::time::advance(2 * second).await;
        fleet.hear(beacon("a", 1, 3), clock::now_micros());
        let gone = fleet.take_gone("a");
        assert_eq!(gone.len(), 1, "who said goodbye is not told of");
        assert_eq!((gone[0].instance.as_str(), gone[0].started), ("b", 1));
        assert!(fleet.take_gone("a").is_empty());

        // One that is followed by another of its name.
        fleet.hear(beacon("b", 2, 1), clock::now_micros());
        fleet.hear(beacon("b", 3, 1), clock::now_micros());
        tokio::time::advance(2 * second).await;
        fleet.hear(beacon("a", 1, 4), clock::now_micros());
        fleet.hear(beacon("b", 3, 2), clock::now_micros());
        let (instances, silent) = (fleet.instances.clone(), fleet.silent.clone());
        let mut other = Fleet { instances, alive: fleet.alive, silent };
        assert!(other.take_gone("b").is_empty(), "a is lower");
        assert_eq!(fleet.take_gone("a")[0].started, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn forged_deaths_do_not_hide_a_real_one() {
        let mut fleet = Fleet::default();
        let second = Duration::from_secs(1);
        for name in ["a", "b"] {
            fleet.hear(beacon(name, 1, 1), clock::now_micros());
        }
        let processes = MAX_INSTANCES as i64 + 2;
        // Processes that follow one another, each of which says that it is silent for ever.
        for started in 0..processes {
            let forged = Beacon { interval_ms: u64::MAX, ..beacon("z", started, 1) };
            fleet.hear(forged, clock::now_micros());
        }
        assert_eq!(fleet.silent.len(), MAX_INSTANCES);
        tokio::time::advance(3 * second).await;
        fleet.hear(beacon("a", 1, 2), clock::now_micros());
        assert!(fleet.expire());
        assert_eq!(fleet.silent.len(), MAX_INSTANCES);
        tokio::time::advance(2 * second).await;
        fleet.hear(beacon("a", 1, 3), clock::now_micros());
        let gone = fleet.take_gone("a");
        assert_eq!((gone.len(), gone[0].instance.as_str()), (1, "b"));
        // Nor do they stay for ever.
        tokio::time::advance(MAX_INTERVAL).await;
        fleet.hear(beacon("a", 1, 4), clock::now_micros());
        assert_eq!(fleet.take_gone("a").len(), MAX_INSTANCES - 1);
        assert!(fleet.silent.is_empty() && fleet.is_known("z", processes - 1));
        tokio::time::advance(2 * MAX_INTERVAL).await;
        assert!(fleet.expire() && fleet.is_empty());
    }

    #[test]
    fn more_than_there_can_be_are_not_listed() {
        let mut fleet = Fleet::default();
        let (now, name) = (clock::now_micros(), |vm: usize| format!("vm-{vm}"));
        for vm in 0..=MAX_INSTANCES {
            let news = if vm < MAX_INSTANCES { Change::Members } else { Change::Nothing };
            assert_eq!(fleet.hear(beacon(&name(vm), 1, 1), now), news, "{vm}");
        }
        assert_eq!(fleet.len(), MAX_INSTANCES);
        assert!(fleet.has(&name(0)) && !fleet.has(&name(MAX_INSTANCES)));
        assert_eq!(fleet.hear(beacon(&name(0), 1, 2), now), Change::Figures, "who is listed is still heard");
    }

    #[tokio::test(start_paused = true)]
    async fn how_many_there_are_is_counted() {
        let mut fleet = Fleet::default();
        fastrand::seed(7);
        for beat in 1..2_000 {
            let leaving = fastrand::u8(..4) == 0;
            let name = fastrand::u8(..50).to_string();
            fleet.hear(
                Beacon { leaving, ..beacon(&name, i64::from(fastrand::u8(..4)), beat) },
                clock::now_micros(),
            );
            tokio::time::advance(Duration::from_millis(50)).await;
            if fastrand::bool() {
                fleet.expire();
            }
            assert_eq!(fleet.len(), fleet.instances().count());
        }
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(fleet.expire() && fleet.is_empty());
    }

    #[test]
    fn silence_ends_it() {
        let mut fleet = Fleet::default();
        fleet.hear(Beacon { interval_ms: 0, ..beacon("a", 1, 1) }, clock::now_micros() + 1_000);
        assert!(fleet.expire());
        assert!(fleet.is_empty());
    }
}
