//! What was measured: each figure as often as it was taken, and the distributions of latency.

use std::collections::BTreeMap;

use anyhow::Result;
use hdrhistogram::Histogram;

use crate::peer::Peer;

/// The kinds of figures, in the order of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    Cpu,
    LastP50,
    LastP99,
    AlwaysLast,
    Bytes,
    Memory,
    Process,
    Kernel,
    Upgrades,
    UpgradeCpu,
    SlowestUpgrade,
    Overflows,
    SlowNeighbour,
    Inbound,
    Direct,
    Cores,
    MemoryAfter,
}

/// Whether a figure is the better for being small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    Less,
    More,
    /// It tells, and is no contest.
    Neither,
}

impl Measure {
    pub fn title(self) -> &'static str {
        match self {
            Self::Cpu => "Processor time per delivery, µs",
            Self::LastP50 => "From publish to the last socket, p50, ms",
            Self::LastP99 => "From publish to the last socket, p99, ms",
            Self::AlwaysLast => "Events for which the unluckiest socket was in the last tenth, share",
            Self::Bytes => "Bytes of one event, its frame not counted",
            Self::Memory => "Memory (PSS) per idle socket, kB",
            Self::Process => "Memory (PSS) of the process with its idle sockets, MB",
            Self::Kernel => "Kernel memory per end of an idle socket, kB",
            Self::Upgrades => "Sockets that join at once: upgrades a second",
            Self::UpgradeCpu => "Sockets that join at once: processor time of each, µs",
            Self::SlowestUpgrade => "Sockets that join at once: the slowest, ms",
            Self::Overflows => "Sockets that join at once: connections turned away by a full backlog",
            Self::SlowNeighbour => {
                "p99 to any socket beside one that does not read, against without it, ratio"
            }
            Self::Inbound => "Processor time per inbound message, µs",
            Self::Direct => "Processor time per direct message, µs",
            Self::Cores => "Deliveries a second of two worker threads, against one, ratio",
            Self::MemoryAfter => "Memory (PSS) per socket after a time of traffic, kB",
        }
    }

    pub fn better(self) -> Better {
        match self {
            Self::Upgrades | Self::Cores => Better::More,
            Self::Bytes | Self::Kernel => Better::Neither,
            _ => Better::Less,
        }
    }
}

/// How many sockets there were, and how many events waited at a time (0 where that is no question).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setting {
    pub sockets: usize,
    pub window: usize,
}

#[derive(Default)]
pub struct Figures {
    pub values: BTreeMap<(Measure, Setting, Peer), Vec<f64>>,
    /// What a figure was of the floor's, which was taken by turns with it.
    beside: BTreeMap<(Measure, Setting, Peer), Vec<f64>>,
    /// From publish to any socket, one event at a time, in ns, by number of sockets.
    pub latency: BTreeMap<(usize, Peer), Histogram<u64>>,
}

/// The middle one of a figure's values, and how far they go.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Figures {
    pub fn add(&mut self, measure: Measure, setting: Setting, peer: Peer, value: f64) {
        self.values.entry((measure, setting, peer)).or_default().push(value);
    }

    /// The same for one that was taken by turns with the floor's.
    pub fn add_beside(&mut self, measure: Measure, setting: Setting, peer: Peer, value: f64, floor: f64) {
        self.add(measure, setting, peer, value);
        self.beside.entry((measure, setting, peer)).or_default().push(value / floor);
    }

    /// What the program's figure is of a peer's. By what both were of the floor's, where that was there at
    /// the same time: the machine's own pace changes more in a minute than they differ.
    pub fn ratio(&self, measure: Measure, setting: Setting, peer: Peer) -> Option<f64> {
        let median = |peer| Some(self.summary(measure, setting, peer)?.median);
        let of_floor = |peer| match peer {
            Peer::Floor => Some(1.0),
            _ => Some(summary(self.beside.get(&(measure, setting, peer))?)?.median),
        };
        let of = |figure: &dyn Fn(Peer) -> Option<f64>| {
            let (own, other) = (figure(Peer::AlienAlert)?, figure(peer)?);
            match (own, other) {
                (0.0, 0.0) => None,
                // None at all is infinitely better than some.
                _ => Some(own / other),
            }
        };
        of(&of_floor).filter(|_| median(peer).is_some()).or_else(|| of(&median))
    }

    pub fn add_latency(&mut self, sockets: usize, peer: Peer, latency: Histogram<u64>) -> Result<()> {
        match self.latency.get_mut(&(sockets, peer)) {
            Some(all) => all.add(latency)?,
            None => drop(self.latency.insert((sockets, peer), latency)),
        }
        Ok(())
    }

    pub fn summary(&self, measure: Measure, setting: Setting, peer: Peer) -> Option<Summary> {
        summary(self.values.get(&(measure, setting, peer))?)
    }

    /// How often it was taken.
    pub fn runs(&self, measure: Measure) -> usize {
        let taken = self.values.iter().filter(|(key, _)| key.0 == measure);
        taken.map(|(_, values)| values.len()).max().unwrap_or_default()
    }

    /// The settings in which it was taken.
    pub fn settings(&self, measure: Measure) -> Vec<Setting> {
        let mut settings: Vec<_> =
            self.values.keys().filter(|key| key.0 == measure).map(|key| key.1).collect();
        settings.dedup();
        settings
    }

    pub fn peers(&self, measure: Measure) -> impl Iterator<Item = Peer> + '_ {
        let taken = move |peer: &Peer| self.values.keys().any(|key| key.0 == measure && key.2 == *peer);
        Peer::ALL.into_iter().filter(taken)
    }

    pub fn measures(&self) -> Vec<Measure> {
        let mut measures: Vec<_> = self.values.keys().map(|key| key.0).collect();
        measures.dedup();
        measures
    }
}

pub fn summary(values: &[f64]) -> Option<Summary> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let (&least, &most) = (values.first()?, values.last()?);
    let middle = values.len() / 2;
    let median = if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    };
    Some(Summary { median, least, most })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let of = |values: &[f64]| summary(values).map(|summary| summary.median);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn what_had_the_floor_beside_it_is_compared_by_that() {
        let setting = Setting { sockets: 1_000, window: 1 };
        let mut figures = Figures::default();
        // The machine was slow for one, and fast for the others.
        figures.add_beside(Measure::Cpu, setting, Peer::AlienAlert, 6.0, 6.0);
        figures.add_beside(Measure::Cpu, setting, Peer::Bun, 4.4, 4.0);
        figures.add(Measure::Cpu, setting, Peer::Floor, 4.0);
        figures.add(Measure::Memory, setting, Peer::AlienAlert, 1.0);
        figures.add(Measure::Memory, setting, Peer::Bun, 2.0);
        figures.add(Measure::Overflows, setting, Peer::AlienAlert, 3.0);
        figures.add(Measure::Overflows, setting, Peer::Bun, 0.0);
        let ratio = |measure, peer| figures.ratio(measure, setting, peer);
        assert!((ratio(Measure::Cpu, Peer::Bun).unwrap() - 4.0 / 4.4).abs() < 1e-9);
        assert_eq!(ratio(Measure::Cpu, Peer::Floor), Some(1.0));
        assert_eq!(ratio(Measure::Memory, Peer::Bun), Some(0.5));
        assert_eq!((ratio(Measure::Memory, Peer::Floor), ratio(Measure::Cpu, Peer::Ws)), (None, None));
        assert_eq!(ratio(Measure::Overflows, Peer::Bun), Some(f64::INFINITY));
    }
}
