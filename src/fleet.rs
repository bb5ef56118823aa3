//! The VMs that are alive, by the beacons heard of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::clock;
use crate::event::Beacon;

/// More than Pub/Sub has subscriptions to give to one project.
const MAX_INSTANCES: usize = 10_000;

#[derive(Default)]
pub struct Fleet {
    instances: BTreeMap<String, Instance>,
}

/// What is known of one VM.
#[derive(Clone, Debug)]
pub struct Instance {
    pub region: String,
    pub clients: usize,
    pub round_trip_ms: Option<u64>,
    /// In ms since the epoch, by the topic's clock.
    pub last_seen: i64,
    /// Which process of that name, and which of its beacons.
    latest: (i64, u64),
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
        let latest = (beacon.started, beacon.number);
        let known = self.instances.get(&beacon.origin.instance);
        if known.is_some_and(|known| known.latest >= latest) {
            return Change::Nothing;
        }
        if beacon.leaving {
            let gone = self.instances.remove(&beacon.origin.instance).is_some();
            return if gone { Change::Members } else { Change::Nothing };
        }
        if known.is_none() && self.instances.len() >= MAX_INSTANCES {
            return Change::Nothing;
        }
        let change = if known.is_none() { Change::Members } else { Change::Figures };
        self.instances.insert(
            beacon.origin.instance,
            Instance {
                region: beacon.origin.region,
                clients: beacon.clients,
                round_trip_ms: beacon.round_trip_ms,
                last_seen: at / 1000,
                latest,
                expires: Instant::now() + left,
            },
        );
        change
    }

    /// Forgets those whose beacons stopped; true if there were any.
    pub fn expire(&mut self) -> bool {
        let before = self.instances.len();
        let now = Instant::now();
        self.instances.retain(|_, instance| instance.expires > now);
        self.instances.len() < before
    }

    pub fn instances(&self) -> impl Iterator<Item = (&String, &Instance)> {
        self.instances.iter()
    }

    pub fn len(&self) -> usize {
        self.instances.len()
    }

    pub fn is_empty(&self) -> bool {
        self.instances.is_empty()
    }
}

/// One beacon may be lost and the next one late before a VM counts as gone.
fn patience(beacon: &Beacon) -> Duration {
    Duration::from_millis(beacon.interval_ms.min(24 * 3600 * 1000)).mul_f64(2.5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Origin;

    fn beacon(instance: &str, started: i64, number: u64) -> Beacon {
        Beacon {
            origin: Origin { instance: instance.into(), region: "ams".into() },
            started,
            number,
            clients: 1,
            round_trip_ms: None,
            interval_ms: 1_000,
            leaving: false,
        }
    }

    #[test]
    fn comes_stays_and_leaves() {
        let mut fleet = Fleet::default();
        let now = clock::now_micros();
        assert_eq!(fleet.hear(beacon("a", 1, 1), now), Change::Members);
        assert_eq!(fleet.hear(beacon("a", 1, 2), now), Change::Figures);
        assert_eq!(fleet.hear(beacon("a", 1, 2), now), Change::Nothing, "delivered twice");
        assert_eq!(fleet.hear(beacon("a", 2, 1), now), Change::Figures, "restarted");
        let last = Beacon { leaving: true, ..beacon("a", 2, 2) };
        assert_eq!(fleet.hear(last, now), Change::Members);
        assert!(fleet.is_empty());
    }

    #[test]
    fn an_old_beacon_is_no_sign_of_life() {
        let mut fleet = Fleet::default();
        assert_eq!(fleet.hear(beacon("a", 1, 1), clock::now_micros() - 3_000_000), Change::Nothing);
        assert!(fleet.is_empty());
    }

    #[test]
    fn silence_ends_it() {
        let mut fleet = Fleet::default();
        fleet.hear(Beacon { interval_ms: 0, ..beacon("a", 1, 1) }, clock::now_micros() + 1_000);
        assert!(fleet.expire());
        assert!(fleet.is_empty());
    }
}
