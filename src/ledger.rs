//! What has been heard of each VM's sequence, and what has not: the proof that nothing is missing.
//!
//! Each VM's process numbers its events without gaps, and its beacons tell the last number. A number
//! that others go beyond is a hole here: still under way, or lost on it. One that stays open is sought
//! by winding the subscription back; one that can't be filled is remembered as a gap for as long as
//! the window reaches, and told to everybody whom it may concern.

use std::cell::Cell;
use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::{self, micros};
use crate::event::{Beacon, Heard, Sequence};

/// Messages of one moment overtake one another; this is longer than they do.
pub const OVERTAKING: Duration = Duration::from_secs(1);

/// A hole that stays open so long is sought: first by asking the topic again, then over a new
/// connection and subscription, since a dead stream may still be given what the live one waits for.
/// Then it is a gap.
const PATIENCE: Duration = Duration::from_secs(10);

/// Before a new connection is tried: longer than a VM tries to publish, since its number may be late by
/// that without any fault of the way to here.
const LONG_PATIENCE: Duration = Duration::from_secs(25);

/// Each VM waits up to so much longer, so that a fleet does not ask all at once.
const SPREAD: Duration = Duration::from_secs(5);

/// So long at most between two searches of one kind, however many were in vain; and after twice that nobody
/// remembers them.
const MOST_SPACING: Duration = Duration::from_secs(300);

/// What all of it may take: some 18,000 processes without holes.
const MAX_BYTES: usize = 4 << 20;

/// What a process takes beside its name and holes, and a hole, with the room that maps and lists keep.
const RUN_BYTES: usize = 192;
const HOLE_BYTES: usize = 2 * size_of::<Hole>();

/// Holes of one process. Beyond that they are merged, which says too much is missing, never too little.
const MAX_HOLES: usize = 64;

/// Ranges of numbers that are read of one message.
pub const MAX_RANGES: usize = 1_024;

/// Ended processes that one beacon vouches for, and what is told of each; and how many are read of one, for
/// versions that vouch for more.
const VOUCHED: usize = 16;
const MAX_HEARD: usize = 256;

pub struct Ledger {
    /// What was published before this (µs) is not awaited: it is older than this VM's memory.
    edge: i64,
    runs: HashMap<String, Vec<Run>>,
    /// Of `runs`, in bytes.
    size: usize,
    /// Something published before this may have been missed unnoticed, in µs.
    reaches: i64,
    /// [`Ledger::awaited_since`] and what processes said of themselves, which are asked for with each event:
    /// as long as nothing changes them.
    awaited: Cell<Option<Option<i64>>>,
    spoken: Cell<Option<i64>>,
    /// Who was last heard of before this (µs) is not waited for.
    silent: i64,
    /// What was published before this (µs) was asked for anew, and comes late or not at all.
    asked: i64,
    /// Where the next list of ended processes begins.
    turn: usize,
    /// This VM's own part of [`SPREAD`].
    slack: Duration,
    /// When the topic may be asked again, and when over a new connection.
    seeks: Spacing,
    rejoins: Spacing,
}

/// How often a search of one kind may begin: each brings a whole window, and anybody on the topic can tell of
/// numbers that nobody ever gave. So each in vain makes the wait for the next one twice as long.
///
/// The shortest wait keeps no hole waiting: one that was noticed before the last search is sought by it, and
/// one that was noticed after it has to be open for as long.
struct Spacing {
    least: Duration,
    wait: Duration,
    last: Option<Instant>,
    in_vain: bool,
}

/// One process of one VM.
struct Run {
    started: i64,
    /// Numbers below are beyond the window; they were given before `first_at` (µs).
    first: u64,
    first_at: i64,
    /// One above the highest number known of.
    next: u64,
    /// When it was last heard of, in µs by the topic's clock.
    at: i64,
    /// All that it published before this (µs) is known of here, by what it said itself.
    spoken: i64,
    /// All up to the last number was published by this (µs), where that is known.
    published_until: Option<i64>,
    /// In the order of their numbers.
    holes: Vec<Hole>,
}

#[derive(Clone, Debug)]
struct Hole {
    numbers: Range<u64>,
    /// Between what times it was published, in µs.
    published: (i64, i64),
    noticed: Instant,
    /// What was last done about it, and when.
    state: State,
    since: Instant,
}

/// The less is hoped for, the later; of two that are merged the earlier counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Open,
    Sought,
    SoughtAnew,
    Lost,
    /// Its sender was told that it failed. It may come all the same, and is heard then.
    GivenUp,
}

/// What is to be done about holes that stay open.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Overdue {
    /// Holes to be sought now.
    pub seek: usize,
    /// Holes to be sought over a new connection.
    pub anew: usize,
    /// Events given up just now, and between what times they were published (µs).
    pub lost: Option<(u64, (i64, i64))>,
}

impl Ledger {
    /// A ledger of what was published since `edge` (µs).
    pub fn new(edge: i64) -> Self {
        let slack = clock::random_part(SPREAD);
        Self {
            edge,
            runs: HashMap::new(),
            size: 0,
            reaches: edge,
            awaited: Cell::default(),
            spoken: Cell::default(),
            silent: edge,
            asked: edge,
            turn: 0,
            slack,
            seeks: Spacing::new(PATIENCE),
            rejoins: Spacing::new(LONG_PATIENCE),
        }
    }

    /// Notes an event that was published at `at` (µs); false when it was heard before.
    pub fn hear(&mut self, instance: &str, sequence: &Sequence, at: i64) -> bool {
        let number = sequence.number;
        let found = self.change(instance, sequence, at, |run| {
            if number < run.next {
                return run.fill(number, at);
            }
            run.expect(number, at);
            run.next = number + 1;
            run.published_until = run.published_until.map(|until| until.max(at));
            Some(false)
        });
        if found == Some(true) {
            self.seeks.found();
            self.rejoins.found();
        }
        found.is_some()
    }

    /// Notes what a process says of itself at `at` (µs): all up to its number, and all from before it is
    /// settled, is on the topic, but for the numbers it gave up.
    pub fn learn(&mut self, beacon: &Beacon, at: i64) {
        let Beacon { origin, sequence, settled_until, published_until, given_up, .. } = beacon;
        self.change(&origin.instance, sequence, at, |run| {
            run.learn(sequence, *published_until, given_up, State::GivenUp, at);
            let until = settled_until.saturating_mul(1000).min(at);
            run.spoken = run.spoken.max(until.saturating_sub(micros(OVERTAKING)));
        });
        self.spoken.take();
    }

    /// Notes what another VM says of processes that have ended: up to where it heard each, and when.
    pub fn trust(&mut self, heard: &[Heard], at: i64) {
        for Heard { instance, sequence, at: heard_at, published_until, lost } in heard.iter().take(MAX_HEARD)
        {
            let at = (*heard_at).min(at);
            if at >= self.edge {
                let learn = |run: &mut Run| run.learn(sequence, *published_until, lost, State::Lost, at);
                self.change(instance, sequence, at, learn);
            }
        }
    }

    /// Changes what is known of a process that says something, or of which something is said, at `at` (µs).
    fn change<T>(
        &mut self,
        instance: &str,
        sequence: &Sequence,
        at: i64,
        change: impl FnOnce(&mut Run) -> T,
    ) -> T {
        let first = sequence.first.clamp(1, sequence.number.saturating_add(1));
        // Another clock may be ahead; the topic's is the one that counts.
        let first_at = sequence.first_at.saturating_mul(1000).min(at);
        let runs = match self.runs.get_mut(instance) {
            Some(runs) => runs,
            // A name of its own is made for the first event of an instance only.
            None => self.runs.entry(instance.to_owned()).or_insert(Vec::with_capacity(1)),
        };
        let index = runs.iter().position(|run| run.started == sequence.started).unwrap_or_else(|| {
            let run = Run::new(sequence.started, first_at);
            self.size += run.size(instance);
            self.spoken.take();
            runs.push(run);
            runs.len() - 1
        });
        let run = &mut runs[index];
        let had_holes = !run.holes.is_empty();
        let size_before = run.size(instance);
        if run.raise(first, first_at) {
            self.reaches = self.reaches.max(first_at);
        }
        let changed = change(run);
        run.at = run.at.max(at);
        if had_holes || !run.holes.is_empty() {
            self.awaited.take();
        }
        // Of lists, many stay empty for ever, and few stay long.
        if run.holes.capacity() > 2 * run.holes.len() {
            run.holes.shrink_to_fit();
        }
        self.size = self.size - size_before + run.size(instance);
        if self.size > MAX_BYTES {
            self.forget_oldest();
        }
        changed
    }

    /// What is to be done now about holes that stay open.
    pub fn overdue(&mut self) -> Overdue {
        let mut overdue = Overdue::default();
        let slack = self.slack;
        let (may_seek, may_rejoin) = (self.seeks.is_over(), self.rejoins.is_over());
        self.awaited.take();
        for hole in self.awaited_mut() {
            let (patience, may_go_on) = match hole.state {
                State::Open => (PATIENCE, may_seek),
                State::Sought => (LONG_PATIENCE, may_rejoin),
                State::SoughtAnew | State::Lost | State::GivenUp => (PATIENCE, true),
            };
            if !may_go_on || hole.since.elapsed() < patience + slack {
                continue;
            }
            hole.since = Instant::now();
            hole.state = match hole.state {
                State::Open => {
                    overdue.seek += 1;
                    State::Sought
                }
                State::Sought => {
                    overdue.anew += 1;
                    State::SoughtAnew
                }
                State::SoughtAnew | State::Lost | State::GivenUp => {
                    let (count, (from, to)) = overdue.lost.unwrap_or((0, hole.published));
                    let range = (from.min(hole.published.0), to.max(hole.published.1));
                    let lost = hole.numbers.end - hole.numbers.start;
                    overdue.lost = Some((count.saturating_add(lost), range));
                    State::Lost
                }
            };
        }
        if overdue.seek > 0 {
            self.seeks.begin();
        }
        if overdue.anew > 0 {
            self.rejoins.begin();
        }
        overdue
    }

    /// The topic begins to bring anew what may be missing of before `at` (µs): holes have their time again.
    pub fn wait_again(&mut self, at: i64) {
        self.asked = at;
        for hole in self.awaited_mut() {
            hole.since = Instant::now();
        }
    }

    #[cfg(test)]
    fn is_whole(&self) -> bool {
        self.awaited_since().is_none()
    }

    /// Between what times (µs) something is missing that was published at or after `since`. What may just
    /// have been overtaken is not.
    pub fn missing(&self, since: i64) -> Option<(i64, i64)> {
        let is_late = |hole: &&Hole| hole.published.0 < self.asked || hole.noticed.elapsed() > OVERTAKING;
        self.holes()
            .filter(|hole| hole.published.1 >= since)
            .filter(|hole| hole.state == State::Lost || (hole.is_awaited() && is_late(hole)))
            .map(|hole| hole.published)
            .reduce(|(from, to), (other_from, other_to)| (from.min(other_from), to.max(other_to)))
    }

    /// Everything published before this (µs) was heard or is lost for good. None: nothing is awaited.
    pub fn awaited_since(&self) -> Option<i64> {
        let known = self.awaited.get().unwrap_or_else(|| {
            self.holes().filter(|hole| hole.is_awaited()).map(|hole| hole.published.0).min()
        });
        self.awaited.set(Some(known));
        known
    }

    /// Up to where (µs) everything is known of that there was: it was heard, or is lost for good. A process
    /// that says nothing is waited for, but not further back than `silent`: by then others tell of it.
    pub fn proven_until(&self) -> i64 {
        let spoken = self.spoken.get().unwrap_or_else(|| {
            let speaking = self.runs.values().flatten().filter(|run| run.at >= self.silent);
            speaking.map(|run| run.spoken).min().unwrap_or(i64::MAX)
        });
        self.spoken.set(Some(spoken));
        self.awaited_since().unwrap_or(i64::MAX).min(spoken.max(self.silent))
    }

    /// Something published before this (µs) may have been missed unnoticed.
    pub fn reaches(&self) -> i64 {
        self.reaches
    }

    /// Some of the processes that no longer speak for themselves; each time others, in turn.
    pub fn vouch(&mut self, speaks: impl Fn(&str, i64) -> bool) -> Vec<Heard> {
        let ended: Vec<_> = self
            .runs
            .iter()
            .flat_map(|(instance, runs)| runs.iter().map(move |run| (instance, run)))
            .filter(|(instance, run)| run.next > run.first && !speaks(instance, run.started))
            .collect();
        self.turn = if self.turn < ended.len() { self.turn } else { 0 };
        let chosen = ended.iter().cycle().skip(self.turn).take(VOUCHED.min(ended.len()));
        let heard = chosen.map(|(instance, run)| Heard {
            instance: (*instance).clone(),
            sequence: run.told(),
            at: run.at,
            published_until: run.published_until.map(|until| until / 1000),
            lost: run.lost(),
        });
        let heard = heard.collect();
        self.turn += VOUCHED;
        heard
    }

    /// Time goes on: who was last heard of before `silent` (µs) is not waited for. It may go back, since a VM
    /// learns only with time how large the fleet is.
    pub fn silence(&mut self, silent: i64) {
        self.silent = silent;
        self.spoken.take();
    }

    /// Forgets processes that were last heard of before `oldest` (µs), and awaits nothing of before.
    pub fn forget(&mut self, oldest: i64) {
        self.edge = self.edge.max(oldest);
        self.awaited.take();
        self.spoken.take();
        let Self { runs, size, reaches, .. } = self;
        *size = 0;
        runs.retain(|instance, runs| {
            runs.retain(|run| {
                let keep = run.at >= oldest;
                if keep {
                    *size += run.size(instance);
                } else {
                    *reaches = run.holes.iter().map(|hole| hole.published.1).fold(*reaches, i64::max);
                }
                keep
            });
            !runs.is_empty()
        });
    }

    /// More than any fleet has: somebody plays with the topic. The older half goes.
    fn forget_oldest(&mut self) {
        while self.size > MAX_BYTES / 2 {
            let mut times: Vec<_> = self.runs.values().flatten().map(|run| run.at).collect();
            let middle = times.len() / 2;
            let (_, oldest, _) = times.select_nth_unstable(middle);
            let edge = *oldest + 1;
            self.forget(edge);
            self.reaches = self.reaches.max(edge);
        }
    }

    /// At its limit, by processes with so long a name and so many holes.
    #[cfg(test)]
    pub fn full(name: usize, holes: usize) -> Self {
        let mut ledger = Self::new(0);
        let each = RUN_BYTES + name + holes * HOLE_BYTES;
        for process in 0..MAX_BYTES / each {
            let instance = format!("{process:0name$}");
            let events = holes.max(1) as u64;
            for number in (1..=events).map(|event| if holes == 0 { event } else { 2 * event }) {
                let sequence = Sequence { started: 1, number, first: 1, first_at: 0 };
                ledger.hear(&instance, &sequence, 1);
            }
        }
        assert!(ledger.reaches == 0 && ledger.size + each > MAX_BYTES);
        ledger
    }

    fn holes(&self) -> impl Iterator<Item = &Hole> {
        let edge = self.edge;
        self.runs.values().flatten().flat_map(move |run| {
            let beyond = usize::from(run.begins_beyond(edge));
            &run.holes[beyond..]
        })
    }

    fn awaited_mut(&mut self) -> impl Iterator<Item = &mut Hole> {
        let edge = self.edge;
        let holes = self.runs.values_mut().flatten().flat_map(move |run| {
            let beyond = usize::from(run.begins_beyond(edge));
            &mut run.holes[beyond..]
        });
        holes.filter(|hole| hole.is_awaited())
    }
}

impl Hole {
    fn is_awaited(&self) -> bool {
        self.state < State::Lost
    }

    /// Whether what comes of it now and was published at `at` (µs) was brought by a search. What was published
    /// about then or later comes by itself.
    fn is_found(&self, at: i64) -> bool {
        let sought = clock::now_micros() - micros(self.since.elapsed() + OVERTAKING);
        (State::Sought..=State::Lost).contains(&self.state) && at < sought
    }
}

impl Spacing {
    fn new(least: Duration) -> Self {
        Self { least, wait: least, last: None, in_vain: false }
    }

    fn is_over(&self) -> bool {
        self.last.is_none_or(|last| last.elapsed() >= self.wait)
    }

    /// A search begins; in vain, as long as nothing is found.
    fn begin(&mut self) {
        let is_remembered = self.last.is_some_and(|last| last.elapsed() < 2 * MOST_SPACING);
        let doubled = (2 * self.wait).min(MOST_SPACING);
        self.wait = if self.in_vain && is_remembered { doubled } else { self.least };
        (self.last, self.in_vain) = (Some(Instant::now()), true);
    }

    fn found(&mut self) {
        (self.wait, self.in_vain) = (self.least, false);
    }
}

impl Run {
    fn new(started: i64, first_at: i64) -> Self {
        Self {
            started,
            first: 1,
            first_at: started.saturating_mul(1000).min(first_at),
            next: 1,
            at: first_at,
            spoken: first_at,
            published_until: None,
            holes: Vec::new(),
        }
    }

    /// What it takes, with the name of its instance.
    fn size(&self, instance: &str) -> usize {
        RUN_BYTES + instance.len() + self.holes.len() * HOLE_BYTES
    }

    /// All up to the number of `sequence` was published by `at`, and by `until` (ms) where that is told; of
    /// `gone` it is known what became of it.
    fn learn(&mut self, sequence: &Sequence, until: Option<i64>, gone: &[Range<u64>], state: State, at: i64) {
        // Anybody may say anything.
        let until = until.map(|until| until.saturating_mul(1000).clamp(self.first_at.min(at), at));
        let end = sequence.number.saturating_add(1);
        // A version that does not tell this time takes nothing back of what is known of the same number.
        if end > self.next || (end == self.next && until.is_some()) {
            self.published_until = until;
        }
        self.expect(end, until.map_or(at, |until| at_latest(until).min(at)));
        for numbers in gone.iter().take(MAX_RANGES) {
            self.change(numbers, state);
        }
    }

    /// Whether its first hole is of what was published before `edge`, as far as is known. One up to the last
    /// number is not, if that is known to be newer.
    fn begins_beyond(&self, edge: i64) -> bool {
        let reaches_in = |hole: &Hole| {
            hole.numbers.end == self.next
                && self.published_until.is_some_and(|until| at_latest(until) >= edge)
        };
        let first = self.holes.first().filter(|hole| hole.numbers.start == self.first);
        first.is_some_and(|hole| hole.published.0 < edge && !reaches_in(hole))
    }

    /// The window begins with `first`, given at `first_at` or later; true when something below was
    /// never heard.
    fn raise(&mut self, first: u64, first_at: i64) -> bool {
        if first < self.first {
            return false;
        }
        let mut missed = self.next < first;
        self.first = first;
        self.first_at = self.first_at.max(first_at);
        self.next = self.next.max(first);
        self.holes.retain_mut(|hole| {
            if hole.numbers.start < first {
                missed |= hole.state != State::GivenUp;
                hole.numbers.start = first;
            }
            if hole.numbers.start == first {
                hole.published.0 = hole.published.0.max(first_at);
                hole.published.1 = hole.published.1.max(first_at);
            }
            !hole.numbers.is_empty()
        });
        missed
    }

    /// All below `end` was published by `at`: what was not heard of it is a hole.
    fn expect(&mut self, end: u64, at: i64) {
        if end <= self.next {
            return;
        }
        self.holes.push(Hole {
            numbers: self.next..end,
            published: (self.at.min(at), at),
            noticed: Instant::now(),
            state: State::Open,
            since: Instant::now(),
        });
        self.next = end;
        self.bound();
    }

    /// Merges the oldest holes but the first, which may be of before this VM's memory.
    fn bound(&mut self) {
        while self.holes.len() > MAX_HOLES {
            let other = self.holes.remove(2);
            let merged = &mut self.holes[1];
            merged.numbers.end = other.numbers.end;
            merged.published.1 = merged.published.1.max(other.published.1);
            merged.state = merged.state.min(other.state);
        }
    }

    /// Closes the hole at `number`, which was published at `at` (µs). None when there is none; else whether
    /// a search has found it.
    fn fill(&mut self, number: u64, at: i64) -> Option<bool> {
        let index = self.holes.iter().position(|hole| hole.numbers.contains(&number))?;
        let found = self.holes[index].is_found(at);
        self.cut(index, &(number..number + 1), None);
        Some(found)
    }

    /// What is awaited of `numbers` is so no longer.
    fn change(&mut self, numbers: &Range<u64>, state: State) {
        for index in (0..self.holes.len()).rev() {
            let hole = &self.holes[index].numbers;
            let common = hole.start.max(numbers.start)..hole.end.min(numbers.end);
            if !common.is_empty() && self.holes[index].is_awaited() {
                self.cut(index, &common, Some(state));
            }
        }
    }

    /// Takes `numbers`, which are in it, out of a hole, or leaves them there in another state.
    fn cut(&mut self, index: usize, numbers: &Range<u64>, state: Option<State>) {
        let hole = self.holes[index].clone();
        let before = (hole.numbers.start..numbers.start, Some(hole.state));
        let after = (numbers.end..hole.numbers.end, Some(hole.state));
        let left = [before, (numbers.clone(), state), after].into_iter();
        let left = left.filter_map(|(numbers, state)| Some((numbers, state?)));
        let left = left.filter(|(numbers, _)| !numbers.is_empty());
        self.holes
            .splice(index..=index, left.map(|(numbers, state)| Hole { numbers, state, ..hole.clone() }));
        self.bound();
    }

    fn lost(&self) -> Vec<Range<u64>> {
        let lost = self.holes.iter().filter(|hole| hole.state == State::Lost);
        lost.map(|hole| hole.numbers.clone()).take(VOUCHED).collect()
    }

    fn told(&self) -> Sequence {
        Sequence {
            started: self.started,
            number: self.next - 1,
            first: self.first,
            first_at: self.first_at / 1000,
        }
    }
}

/// A time (µs) of another clock, by the topic's.
fn at_latest(time: i64) -> i64 {
    time.saturating_add(micros(OVERTAKING))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Origin;

    fn sequence(number: u64) -> Sequence {
        Sequence { started: 1, number, first: 1, first_at: 0 }
    }

    fn beacon(instance: &str, sequence: &Sequence, settled_until: i64, given_up: &[Range<u64>]) -> Beacon {
        Beacon {
            origin: Origin { instance: instance.into(), region: "ams".into() },
            sequence: *sequence,
            settled_until,
            published_until: None,
            beat: 1,
            asking: false,
            clients: 0,
            round_trip_ms: None,
            interval_ms: 1_000,
            leaving: false,
            given_up: given_up.to_vec(),
            heard: Vec::new(),
        }
    }

    fn learn(
        ledger: &mut Ledger,
        instance: &str,
        sequence: &Sequence,
        settled_until: i64,
        given_up: &[Range<u64>],
        at: i64,
    ) {
        ledger.learn(&beacon(instance, sequence, settled_until, given_up), at);
    }

    #[tokio::test(start_paused = true)]
    async fn a_number_is_new_once() {
        let mut ledger = Ledger::new(0);
        assert!(ledger.hear("a", &sequence(1), 1));
        assert!(ledger.is_whole());
        assert!(ledger.hear("a", &sequence(4), 4));
        assert!(!ledger.is_whole());
        assert!(ledger.hear("a", &sequence(2), 5) && !ledger.hear("a", &sequence(2), 6));
        assert!(!ledger.is_whole());
        assert!(ledger.hear("a", &sequence(3), 7));
        assert!(ledger.is_whole());
        for number in 1..=4 {
            assert!(!ledger.hear("a", &sequence(number), 8));
        }
        assert!(ledger.hear("b", &sequence(1), 9), "another VM's");
        let restarted = Sequence { started: 2, ..sequence(1) };
        assert!(ledger.hear("a", &restarted, 10), "another process's");
    }

    #[tokio::test(start_paused = true)]
    async fn a_beacon_shows_what_is_missing_at_the_end() {
        let mut ledger = Ledger::new(100);
        ledger.hear("a", &sequence(1), 100);
        learn(&mut ledger, "a", &sequence(3), 0, &[], 200);
        assert_eq!(ledger.awaited_since(), Some(100));
        tokio::time::advance(OVERTAKING).await;
        assert_eq!(ledger.missing(0), None, "it may just have been overtaken");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(ledger.missing(150), Some((100, 200)));
        assert_eq!(ledger.missing(201), None, "not missing for one that has all up to there");
        learn(&mut ledger, "a", &sequence(3), 0, &[2..3, 3..4], 300);
        assert!(ledger.is_whole() && ledger.missing(0).is_none(), "not awaited: their senders know");
        assert!(ledger.hear("a", &sequence(2), 400), "but heard if it comes");
        assert!(!ledger.hear("a", &sequence(2), 400));
        for hostile in [Range { start: 5, end: 1 }, 0..u64::MAX, 3..3] {
            learn(&mut ledger, "a", &sequence(3), 0, &[hostile], 500);
        }
        assert!(ledger.is_whole());
    }

    #[test]
    fn proven_is_what_all_that_live_have_spoken_of() {
        const SECOND: i64 = 1_000_000;
        let mut ledger = Ledger::new(0);
        assert_eq!(ledger.proven_until(), i64::MAX, "nobody is there");
        let beacon = |ledger: &mut Ledger, vm: &str, number: u64, settled: i64, at: i64| {
            learn(ledger, vm, &sequence(number), settled * 1000, &[], at * SECOND);
        };
        beacon(&mut ledger, "a", 0, 100, 100);
        beacon(&mut ledger, "b", 0, 110, 110);
        assert_eq!(ledger.proven_until(), 99 * SECOND, "messages of one moment overtake one another");
        ledger.hear("a", &sequence(1), 115 * SECOND);
        assert_eq!(ledger.proven_until(), 99 * SECOND, "one before it may have been lost on its way");
        beacon(&mut ledger, "a", 1, 105, 120);
        assert_eq!(ledger.proven_until(), 104 * SECOND, "what is older may be there and not confirmed");
        beacon(&mut ledger, "a", 3, 900, 130);
        assert_eq!(ledger.proven_until(), 109 * SECOND, "not before b speaks");
        beacon(&mut ledger, "b", 0, 140, 140);
        assert_eq!(ledger.proven_until(), 120 * SECOND, "two of a's are awaited, published after that");
        ledger.hear("a", &sequence(2), 121 * SECOND);
        ledger.hear("a", &sequence(3), 122 * SECOND);
        assert_eq!(ledger.proven_until(), 129 * SECOND, "by the topic's clock where a's is ahead");
        ledger.silence(135 * SECOND);
        assert_eq!(ledger.proven_until(), 139 * SECOND, "a is dead");
        ledger.hear("c", &Sequence { started: 1_000, ..sequence(1) }, 141 * SECOND);
        assert_eq!(ledger.proven_until(), 135 * SECOND, "c has not spoken");
        ledger.silence(125 * SECOND);
        assert_eq!(ledger.proven_until(), 125 * SECOND, "the fleet is larger than it was known to be");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hole_is_sought_and_at_last_given_up_but_still_filled_when_it_comes() {
        let mut ledger = Ledger::new(0);
        ledger.hear("a", &sequence(1), 100);
        ledger.hear("a", &sequence(5), 400);
        assert_eq!(ledger.overdue(), Overdue::default());
        for (seek, anew, patience) in [(1, 0, PATIENCE), (0, 1, LONG_PATIENCE)] {
            tokio::time::advance(patience + SPREAD).await;
            assert_eq!(ledger.overdue(), Overdue { seek, anew, lost: None });
            assert_eq!(ledger.overdue(), Overdue::default());
        }
        tokio::time::advance(PATIENCE + SPREAD).await;
        assert_eq!(ledger.overdue().lost, Some((3, (100, 400))));
        assert_eq!(ledger.overdue(), Overdue::default());
        assert!(ledger.is_whole() && ledger.awaited_since().is_none());
        assert_eq!(ledger.missing(0), Some((100, 400)));
        assert_eq!(
            ledger.vouch(|_, _| false)[0].lost,
            [Range { start: 2, end: 5 }],
            "others need not seek it"
        );
        assert!((2..5).all(|number| ledger.hear("a", &sequence(number), 500)));
        assert_eq!(ledger.missing(0), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_topic_brings_anew_has_its_time_again() {
        let mut ledger = Ledger { slack: Duration::from_secs(1), ..Ledger::new(0) };
        ledger.hear("a", &sequence(2), 200);
        tokio::time::advance(PATIENCE).await;
        assert_eq!(ledger.overdue(), Overdue::default(), "each VM waits for a while of its own");
        ledger.wait_again(clock::now_micros());
        tokio::time::advance(PATIENCE).await;
        assert_eq!(ledger.overdue(), Overdue::default());
        tokio::time::advance(ledger.slack).await;
        assert_eq!(ledger.overdue(), Overdue { seek: 1, ..Overdue::default() });
        ledger.hear("b", &sequence(2), 300);
        assert_eq!(ledger.missing(250), Some((0, 300)), "what was not just published was not overtaken");
        let asked = clock::now_micros() - 5_000_000;
        ledger.wait_again(asked);
        ledger.hear("c", &Sequence { first_at: asked / 1_000, ..sequence(1) }, asked + 1);
        ledger.hear("c", &sequence(3), asked + 2);
        assert_eq!(ledger.missing(asked), None, "but what was published since it was asked may be");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_up_opens_no_hole_where_there_was_none() {
        let mut ledger = Ledger::new(0);
        ledger.hear("a", &sequence(1), 100);
        ledger.hear("a", &sequence(3), 300);
        learn(&mut ledger, "a", &sequence(5), 0, &[Range { start: 2, end: 3 }], 500);
        assert!(!ledger.hear("a", &sequence(3), 600), "heard before");
        assert!(ledger.hear("a", &sequence(4), 600) && ledger.hear("a", &sequence(5), 600));
        assert!(ledger.is_whole());
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_window_left_behind_is_not_awaited_but_not_vouched_for_either() {
        let mut ledger = Ledger::new(0);
        let late = Sequence { first: 10, first_at: 5, ..sequence(12) };
        assert!(ledger.hear("a", &late, 7_000));
        assert_eq!(ledger.reaches(), 5_000, "nine numbers before that were never heard here");
        assert!(ledger.hear("a", &Sequence { number: 10, ..late }, 7_001));
        assert!(!ledger.hear("a", &Sequence { number: 9, ..late }, 7_002), "older than the window");
        let later = Sequence { first: 12, first_at: 6, number: 12, ..late };
        learn(&mut ledger, "a", &later, 0, &[], 7_003);
        assert!(ledger.is_whole());
        assert_eq!(ledger.reaches(), 6_000);
        assert!(!ledger.hear("a", &late, 7_004));
        assert_eq!(ledger.runs["a"][0].first, 12, "an old message does not bring the window back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_that_moves_over_what_was_heard_leaves_nothing_unproven() {
        let mut ledger = Ledger::new(0);
        for (number, first) in [(1, 1), (2, 2), (4, 3), (5, 3)] {
            ledger.hear("a", &Sequence { first, first_at: 7, ..sequence(number) }, 8_000);
        }
        assert_eq!((ledger.reaches(), ledger.is_whole()), (0, false), "the third may still come");
        let told = Sequence { started: 1, number: 5, first: 3, first_at: 7 };
        assert_eq!(ledger.vouch(|_, _| false)[0].sequence, told);
        let fresh = Sequence { first_at: 9, ..told };
        learn(&mut ledger, "a", &fresh, 0, &[], 9_500);
        assert_eq!(ledger.awaited_since(), Some(9_000), "it was given after that");
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_of_holes_takes_no_room_when_they_are_closed() {
        let mut ledger = Ledger::new(0);
        for number in (2..=16).step_by(2).chain((1..16).step_by(2)) {
            assert!(ledger.hear("a", &sequence(number), 1));
        }
        assert_eq!(ledger.runs["a"][0].holes.capacity(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_newborn_does_not_wait_for_what_is_older_than_its_memory() {
        let mut ledger = Ledger::new(5_000);
        // An old message speaks of its own time's window.
        let old = Sequence { first: 10, first_at: 4, ..sequence(20) };
        ledger.hear("a", &old, 6_000);
        assert!(ledger.is_whole());
        assert!(ledger.hear("a", &Sequence { number: 19, ..old }, 6_000), "it may come all the same");
        // A fresh one speaks of what this VM can have.
        let fresh = Sequence { first: 15, first_at: 5, number: 20, ..old };
        learn(&mut ledger, "a", &fresh, 0, &[], 7_000);
        assert_eq!(ledger.awaited_since(), Some(5_000));
        assert!(ledger.hear("a", &Sequence { number: 18, ..fresh }, 7_000));
        assert!(!ledger.is_whole());
    }

    #[tokio::test(start_paused = true)]
    async fn of_one_that_nothing_was_heard_of_it_counts_when_it_last_published() {
        const SECOND: i64 = 1_000_000;
        const EDGE: i64 = 5_000 * SECOND;
        // What it told by its marks: it began before the edge.
        let told = Sequence { first: 10, first_at: 4_900_000, ..sequence(20) };
        for (published_until, awaited) in [
            // In s; told, when its beacon came, at 6,000.
            (None, None),
            (Some(4_998), None),
            (Some(5_500), Some(4_900 * SECOND)),
        ] {
            let published_until = published_until.map(|at| at * 1_000);
            let beacon = Beacon { published_until, ..beacon("a", &told, 0, &[]) };
            let mut ledger = Ledger::new(EDGE);
            ledger.learn(&beacon, 6_000 * SECOND);
            assert_eq!(ledger.awaited_since(), awaited, "{published_until:?}");
            // Those that nobody brings any more are not awaited, once the newest is here.
            ledger.hear("a", &told, 5_500 * SECOND);
            assert!(ledger.is_whole());

            // From somebody who vouches for it, when it has ended.
            let mut other = Ledger::new(0);
            other.learn(&beacon, 6_000 * SECOND);
            let mut ledger = Ledger::new(EDGE);
            ledger.trust(&other.vouch(|_, _| false), 6_001 * SECOND);
            assert_eq!(ledger.awaited_since(), awaited, "{published_until:?}");
            // It is older than what is remembered, at last.
            ledger.forget(5_502 * SECOND);
            assert!(ledger.is_whole());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_published_after_its_last_word_is_vouched_for_with_its_time() {
        const SECOND: i64 = 1_000_000;
        let mut ledger = Ledger::new(0);
        let said = Beacon { published_until: Some(100_000), ..beacon("a", &sequence(10), 0, &[]) };
        ledger.learn(&said, 700 * SECOND);
        // Then it published one more, and was killed.
        assert!(ledger.hear("a", &sequence(11), 705 * SECOND));
        let mut other = Ledger::new(0);
        other.learn(&said, 700 * SECOND);
        for number in 1..=10 {
            assert!(other.hear("a", &sequence(number), 100 * SECOND));
        }
        other.trust(&ledger.vouch(|_, _| false), 710 * SECOND);
        tokio::time::advance(2 * OVERTAKING).await;
        assert!(other.missing(700 * SECOND).is_some_and(|(_, to)| to >= 705 * SECOND));
    }

    #[test]
    fn when_one_published_is_kept_though_another_does_not_know_it() {
        let mut ledger = Ledger::new(0);
        let said = Beacon { published_until: Some(100), ..beacon("a", &sequence(10), 0, &[]) };
        ledger.learn(&said, 200_000);
        ledger.learn(&Beacon { published_until: None, ..said.clone() }, 300_000);
        assert_eq!(ledger.vouch(|_, _| false)[0].published_until, Some(100));
        ledger.learn(&Beacon { published_until: Some(150), ..said.clone() }, 300_000);
        assert_eq!(ledger.vouch(|_, _| false)[0].published_until, Some(150));
        ledger.learn(&Beacon { sequence: sequence(9), ..said }, 300_000);
        assert_eq!(ledger.vouch(|_, _| false)[0].published_until, Some(150), "that is of fewer numbers");
        ledger.learn(&beacon("a", &sequence(11), 0, &[]), 400_000);
        assert_eq!(ledger.vouch(|_, _| false)[0].published_until, None, "there is one that may be later");
    }

    #[tokio::test(start_paused = true)]
    async fn when_one_published_is_between_its_first_and_when_it_says_so() {
        for (published_until, published) in
            [(i64::MIN, (800, 1_000_800)), (1, (800, 1_001_000)), (i64::MAX, (800, 2_000_000))]
        {
            let mut ledger = Ledger::new(0);
            let started = Sequence { first_at: 400, ..sequence(1) };
            ledger.hear("a", &started, 800);
            let said = Beacon { published_until: Some(published_until), ..beacon("a", &sequence(9), 0, &[]) };
            ledger.learn(&said, 2_000_000);
            tokio::time::advance(2 * OVERTAKING).await;
            assert_eq!(ledger.missing(0), Some(published), "{published_until}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ended_processes_are_vouched_for_in_turn() {
        let mut ledger = Ledger::new(0);
        for vm in 0..VOUCHED + 4 {
            ledger.hear(&format!("vm-{vm}"), &sequence(1), 1);
        }
        learn(&mut ledger, "one that said nothing", &sequence(0), 0, &[], 1);
        let mut other = Ledger::new(0);
        for _ in 0..2 {
            let told = ledger.vouch(|instance, _| instance == "vm-0");
            assert_eq!(told.len(), VOUCHED);
            other.trust(&told, 2);
        }
        assert_eq!(other.runs.len(), VOUCHED + 3, "all but the one that speaks for itself");
        assert!(!other.is_whole());
        other.forget(2);
        assert_eq!(other.runs.len(), 0, "a vouch makes nobody live longer");
        ledger.forget(2);
        assert_eq!((ledger.size, ledger.runs.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn of_one_beacon_so_many_are_taken() {
        let heard = |vm: usize| Heard {
            instance: vm.to_string(),
            sequence: sequence(1),
            at: 1,
            published_until: None,
            lost: Vec::new(),
        };
        let mut ledger = Ledger::new(0);
        ledger.trust(&(0..2 * MAX_HEARD).map(heard).collect::<Vec<_>>(), 1);
        assert_eq!(ledger.runs.len(), MAX_HEARD);
        let mut ledger = Ledger::new(0);
        let none = vec![Range { start: 0, end: 0 }; MAX_RANGES];
        for (before, is_whole) in [(MAX_RANGES, false), (MAX_RANGES - 1, true)] {
            let given_up = [&none[..before], &[Range { start: 1, end: 4 }]].concat();
            learn(&mut ledger, "a", &sequence(3), 0, &given_up, 1);
            assert_eq!(ledger.is_whole(), is_whole, "{before}");
        }
    }

    /// When (s) the topic was asked again, and over a new connection, where for so many seconds a process that
    /// nobody heard of is told of every half minute.
    async fn searches(ledger: &mut Ledger, seconds: u64) -> [Vec<u64>; 2] {
        let mut searches = [Vec::new(), Vec::new()];
        for second in 0..seconds {
            if second % 30 == 0 {
                ledger.hear(&format!("ghost-{second}"), &sequence(2), clock::now_micros());
            }
            tokio::time::advance(Duration::from_secs(1)).await;
            let overdue = ledger.overdue();
            if overdue.seek > 0 {
                searches[0].push(second);
            }
            if overdue.anew > 0 {
                searches[1].push(second);
                ledger.wait_again(clock::now_micros());
            }
        }
        searches
    }

    #[tokio::test(start_paused = true)]
    async fn searches_in_vain_are_made_more_and_more_seldom() {
        let mut ledger = Ledger::new(0);
        let searches = searches(&mut ledger, 3_600).await;
        println!("{searches:?}");
        for (times, least) in searches.iter().zip([PATIENCE, LONG_PATIENCE]) {
            assert!((10..20).contains(&times.len()), "{times:?}");
            for (number, pair) in times.windows(2).enumerate() {
                let spacing = Duration::from_secs(pair[1] - pair[0]);
                assert!(spacing >= (least * (1_u32 << number.min(10))).min(MOST_SPACING), "{times:?}");
                assert!(spacing <= MOST_SPACING + Duration::from_secs(60), "{times:?}");
            }
        }
        // Nothing of it is forgotten while it waits.
        assert!(ledger.missing(0).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_something_may_search_again() {
        let mut ledger = Ledger { slack: Duration::ZERO, ..Ledger::new(0) };
        searches(&mut ledger, 600).await;
        // All that is left of it is given up.
        for _ in 0..2_000 {
            tokio::time::advance(Duration::from_secs(1)).await;
            ledger.overdue();
        }
        assert!(ledger.is_whole());
        let overdue = async |ledger: &mut Ledger| {
            tokio::time::advance(PATIENCE).await;
            ledger.overdue().seek
        };
        let hole = |ledger: &mut Ledger, vm: &str| {
            let at = clock::now_micros();
            assert!(ledger.hear(vm, &sequence(2), at));
            at
        };
        hole(&mut ledger, "a");
        assert_eq!(overdue(&mut ledger).await, 1, "at once, after so long a rest");
        let was_there = hole(&mut ledger, "b");
        assert_eq!(overdue(&mut ledger).await, 1, "not sought by the first, and open for as long");
        hole(&mut ledger, "c");
        assert_eq!(overdue(&mut ledger).await, 0, "two were in vain");
        assert!(ledger.hear("a", &sequence(1), clock::now_micros()));
        assert_eq!(ledger.overdue().seek, 0, "it came by itself");
        assert!(ledger.hear("b", &sequence(1), was_there));
        assert_eq!(ledger.overdue().seek, 1, "it was found");
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded() {
        let mut ledger = Ledger::new(0);
        for number in 1..2_000 {
            ledger.hear("a", &sequence(2 * number), i64::try_from(number).unwrap());
        }
        assert_eq!(ledger.runs["a"][0].holes.len(), MAX_HOLES);
        let missing: u64 = ledger.holes().map(|hole| hole.numbers.end - hole.numbers.start).sum();
        assert!(missing >= 1_999, "merged, they are more than there are: {missing}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_at_one_time_is_forgotten_at_one_time() {
        let mut ledger = Ledger::new(0);
        let mut processes = 0;
        while ledger.reaches == 0 {
            processes += 1;
            ledger.hear(&format!("{processes}"), &sequence(1), 1);
        }
        assert_eq!((ledger.reaches, ledger.size, ledger.runs.len()), (2, 0, 0));
        assert!(processes > 18_000, "{processes}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_there_is_no_room_for_is_not_vouched_for() {
        let mut ledger = Ledger::new(0);
        let mut at = 0;
        while ledger.reaches == 0 {
            at += 1;
            ledger.hear("a", &Sequence { started: at / 8, ..sequence(2 * at.unsigned_abs()) }, at);
            assert!(ledger.size <= MAX_BYTES);
        }
        assert!(ledger.size <= MAX_BYTES / 2);
        let kept = || ledger.runs.values().flatten();
        assert_eq!(ledger.size, kept().map(|run| run.size("a")).sum::<usize>());
        // What is forgotten was published before; the newest is still known.
        assert!(kept().all(|run| run.at >= ledger.reaches) && kept().any(|run| run.at == at));
        let awaited = ledger.awaited_since();
        ledger.hear("a", &Sequence { started: 0, ..sequence(100) }, at);
        assert_eq!(ledger.awaited_since(), awaited, "what was forgotten is not awaited anew");
    }
}
