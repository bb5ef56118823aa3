//! What this VM remembers of the topic: a bounded window of events for those who were away, and
//! the ids that it has already passed on.

use std::collections::hash_map::RandomState;
use std::collections::{HashSet, VecDeque};
use std::hash::BuildHasher;
use std::time::Duration;

use bytes::Bytes;

use crate::clock;
use crate::config::HistoryLimits;
use crate::cursor::OVERLAP;

/// Ids remembered at most: the window's, and as many more as fit in about 1 MiB.
const MAX_SEEN: usize = 65_536;

/// What one remembered event takes beside its bytes, so that the bound holds for small ones too.
const OVERHEAD: usize = 64;

pub struct History {
    limits: HistoryLimits,
    /// Ordered by the topic's time.
    events: VecDeque<Remembered>,
    bytes: usize,
    /// Everything published at or after this is here, in µs of the topic's clock.
    reaches: i64,
    /// Why it does not reach further.
    reason: Missing,
    seen: Seen,
}

struct Remembered {
    at: i64,
    payload: Bytes,
}

/// Why something that a client asks for is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    TooOld,
    TooMany,
}

/// What a client missed.
#[derive(Debug)]
pub struct CatchUp {
    /// The events as they went out, oldest first.
    pub events: Vec<Bytes>,
    /// None: all of it. Else why not, and from when on it is all there (µs).
    pub missing: Option<(Missing, i64)>,
}

impl History {
    pub fn new(limits: HistoryLimits) -> Self {
        let reaches = clock::now_micros() - micros(limits.age);
        Self {
            limits,
            events: VecDeque::new(),
            bytes: 0,
            reaches,
            reason: Missing::TooOld,
            seen: Seen::default(),
        }
    }

    /// Notes an event's id; false when it was noted before, which makes it a duplicate.
    pub fn first_sight(&mut self, id: &str) -> bool {
        let oldest = clock::now_micros() - micros(self.limits.age);
        self.seen.insert(id, oldest)
    }

    /// Keeps an event that was published at `at`, as it is told to sockets.
    pub fn push(&mut self, at: i64, payload: Bytes) {
        self.bytes += payload.len() + OVERHEAD;
        // Nearly always at the end: deliveries are out of order by moments only.
        let behind = self.events.iter().rev().take_while(|event| event.at > at).count();
        self.events.insert(self.events.len() - behind, Remembered { at, payload });
        self.trim();
    }

    fn trim(&mut self) {
        let oldest = clock::now_micros() - micros(self.limits.age);
        while let Some(first) = self.events.front() {
            let reason = if first.at < oldest {
                Missing::TooOld
            } else if self.events.len() > self.limits.events || self.bytes > self.limits.bytes {
                Missing::TooMany
            } else {
                break;
            };
            self.bytes -= first.payload.len() + OVERHEAD;
            self.reaches = self.reaches.max(first.at + 1);
            self.reason = reason;
            self.events.pop_front();
        }
        if oldest > self.reaches {
            self.reaches = oldest;
            self.reason = Missing::TooOld;
        }
    }

    /// All since `since` (µs), and a little more; all there is without it.
    pub fn since(&mut self, since: Option<i64>) -> CatchUp {
        self.trim();
        let from = since.map_or(i64::MIN, |since| since.saturating_sub(micros(OVERLAP)));
        let start = self.events.partition_point(|event| event.at < from);
        let events = self.events.range(start..).map(|event| event.payload.clone()).collect();
        let missing = since.filter(|since| *since < self.reaches).map(|_| (self.reason, self.reaches));
        CatchUp { events, missing }
    }

    pub fn len(&self) -> usize {
        self.events.len()
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// The ids of the window, as 64-bit hashes with a key of this process: a quarter of the memory,
/// and nobody outside can make two ids collide.
#[derive(Default)]
struct Seen {
    key: RandomState,
    hashes: HashSet<u64>,
    by_age: VecDeque<(i64, u64)>,
}

impl Seen {
    fn insert(&mut self, id: &str, oldest: i64) -> bool {
        while self.by_age.front().is_some_and(|(at, _)| *at < oldest) || self.by_age.len() >= MAX_SEEN {
            let Some((_, hash)) = self.by_age.pop_front() else { break };
            self.hashes.remove(&hash);
        }
        let hash = self.key.hash_one(id);
        let new = self.hashes.insert(hash);
        if new {
            self.by_age.push_back((clock::now_micros(), hash));
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(events: usize, bytes: usize) -> History {
        History::new(HistoryLimits { age: Duration::from_secs(3600), events, bytes })
    }

    fn texts(catch_up: &CatchUp) -> Vec<&str> {
        catch_up.events.iter().map(|event| std::str::from_utf8(event).unwrap()).collect()
    }

    const SECOND: i64 = 1_000_000;

    #[test]
    fn late_arrivals_take_their_place() {
        let mut history = history(10, 1 << 20);
        let now = clock::now_micros();
        for (at, text) in [(1, "a"), (3, "c"), (2, "b")] {
            history.push(now + at, Bytes::from_static(text.as_bytes()));
        }
        assert_eq!(texts(&history.since(None)), ["a", "b", "c"]);
    }

    #[test]
    fn keeps_the_newest_and_says_what_is_gone() {
        let mut history = history(2, 1 << 20);
        let now = clock::now_micros();
        for (at, text) in [(-300, "a"), (-200, "b"), (-100, "c")] {
            history.push(now + at * SECOND, Bytes::from_static(text.as_bytes()));
        }
        let all = history.since(None);
        assert_eq!(texts(&all), ["b", "c"]);
        assert_eq!(all.missing, None, "who names no cursor misses nothing");
        let early = history.since(Some(now - 400 * SECOND));
        assert_eq!(early.missing, Some((Missing::TooMany, now - 300 * SECOND + 1)));
        let late = history.since(Some(now - 110 * SECOND));
        assert_eq!(texts(&late), ["c"]);
        assert_eq!(late.missing, None);
    }

    #[test]
    fn is_bounded_by_bytes_and_by_age() {
        let mut history = history(100, 3 * (10 + OVERHEAD));
        let now = clock::now_micros();
        for _ in 0..10 {
            history.push(now, Bytes::from_static(b"0123456789"));
        }
        assert_eq!(history.len(), 3);
        history.push(now - 3601 * SECOND, Bytes::from_static(b"old"));
        assert_eq!(history.len(), 3);
    }

    #[test]
    fn catch_up_overlaps() {
        let mut history = history(10, 1 << 20);
        let now = clock::now_micros();
        history.push(now - 59 * SECOND, Bytes::from_static(b"just before"));
        history.push(now - 61 * SECOND, Bytes::from_static(b"long before"));
        assert_eq!(texts(&history.since(Some(now))), ["just before"]);
    }

    #[test]
    fn an_id_is_new_once_and_memory_is_bounded() {
        let mut history = history(10, 1 << 20);
        assert!(history.first_sight("a"));
        assert!(!history.first_sight("a"));
        for number in 0..2 * MAX_SEEN {
            history.first_sight(&number.to_string());
        }
        assert_eq!(history.seen.hashes.len(), MAX_SEEN);
        assert_eq!(history.seen.by_age.len(), MAX_SEEN);
    }
}
