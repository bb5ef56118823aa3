//! What this VM remembers of the topic: a bounded window of events for those who were away, and
//! the ids that it has already passed on.
//!
//! Each channel has a window of its own, so that a busy one takes nothing from the others but room.
//! It is kept in pages. A full page's events are joined once, as they stand in a
//! `refresh-store`, and shared by all who ask: when thousands of sockets come back at once, each
//! costs a few references, not a copy of the history.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::BuildHasher;

use bytes::Bytes;

use crate::channel::Channel;
use crate::clock::{self, micros};
use crate::config::HistoryLimits;
use crate::cursor::OVERLAP;

/// Events of one page.
const PAGE: usize = 64;

/// Ids remembered at least; as many fit in about 3 MiB. They are for clients that repeat themselves:
/// what the topic repeats is known by its number.
const LEAST_SEEN: usize = 65_536;

/// What an event takes in the window at least, with its [`OVERHEAD`]: more do not fit into its bytes, on
/// however many channels.
const LEAST_EVENT: usize = 128;

/// What one remembered event takes beside its bytes, so that the bound holds for small ones too.
const OVERHEAD: usize = 64;

/// The same for a channel.
const STREAM_OVERHEAD: usize = 512;

pub struct History {
    limits: HistoryLimits,
    /// By channel; None is what everybody hears.
    streams: HashMap<Option<Channel>, Stream>,
    /// When each stream begins, the oldest first: where room is made.
    beginnings: BTreeSet<(i64, Option<Channel>)>,
    events: usize,
    bytes: usize,
    /// Everything published at or after this (µs) on a channel that has no stream is here.
    reaches: i64,
    /// Up to where something may have been missed on any channel, as told last.
    missed: i64,
    seen: Seen,
}

/// The window of one channel.
struct Stream {
    /// In the order of the topic's time, and so the events of each; none is empty.
    pages: VecDeque<Page>,
    events: usize,
    /// Everything published at or after this is here, in µs of the topic's clock.
    reaches: i64,
    /// Why it does not reach further.
    reason: Missing,
}

#[derive(Default)]
struct Page {
    events: VecDeque<Remembered>,
    /// All of them, with commas between.
    joined: Option<Bytes>,
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
    /// It did not come, though others heard it.
    Gap,
}

/// What a client missed.
#[derive(Debug)]
pub struct CatchUp {
    /// The events as they went out, oldest first; each part one or more, with commas between.
    pub parts: Vec<Bytes>,
    /// None: that is all of it. Else what is not there.
    pub missing: Option<Hole>,
}

/// What is missing, and when it was published (µs). From None: since nobody knows when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    pub reason: Missing,
    pub from: Option<i64>,
    pub to: i64,
}

impl History {
    pub fn new(limits: HistoryLimits) -> Self {
        Self {
            limits,
            streams: HashMap::new(),
            beginnings: BTreeSet::new(),
            events: 0,
            bytes: 0,
            reaches: clock::now_micros() - micros(limits.age),
            missed: i64::MIN,
            seen: Seen::new(LEAST_SEEN.max(limits.bytes / LEAST_EVENT)),
        }
    }

    /// Notes an event's id; false when it was noted before, which makes it a duplicate.
    pub fn first_sight(&mut self, id: &str) -> bool {
        // A repetition within the window may itself come a window late, after an outage.
        self.seen.insert(id, clock::now_micros() - 2 * micros(self.limits.age + OVERLAP))
    }

    /// Keeps an event that was published at `at`, as it is told to sockets.
    pub fn push(&mut self, channel: Option<&Channel>, at: i64, payload: Bytes) {
        self.bytes += payload.len() + OVERHEAD;
        self.events += 1;
        let channel = channel.cloned();
        let stream = self.streams.entry(channel.clone()).or_insert_with(|| {
            self.bytes += STREAM_OVERHEAD;
            Stream::new(self.reaches)
        });
        let began = stream.begins();
        stream.push(at, payload);
        self.beginnings.remove(&(began, channel.clone()));
        self.beginnings.insert((stream.begins(), channel.clone()));
        if stream.events > self.limits.events {
            self.drop_first(&channel, Missing::TooMany);
        }
        self.trim();
    }

    /// Makes room: what is too old goes, and the oldest of all where it is too much.
    fn trim(&mut self) {
        let oldest = clock::now_micros() - micros(self.limits.age);
        while let Some((at, channel)) = self.beginnings.first() {
            let reason = if *at < oldest {
                Missing::TooOld
            } else if self.bytes > self.limits.bytes {
                Missing::TooMany
            } else {
                return;
            };
            let channel = channel.clone();
            self.drop_first(&channel, reason);
        }
    }

    fn drop_first(&mut self, channel: &Option<Channel>, reason: Missing) {
        let Some(stream) = self.streams.get_mut(channel) else { return };
        self.beginnings.remove(&(stream.begins(), channel.clone()));
        if let Some(payload) = stream.drop_first(reason) {
            self.bytes -= payload.len() + OVERHEAD;
            self.events -= 1;
        }
        if stream.events > 0 {
            self.beginnings.insert((stream.begins(), channel.clone()));
        } else if channel.is_some() {
            // Channels come and go; that of everybody stays.
            self.reaches = self.reaches.max(stream.reaches);
            self.bytes -= STREAM_OVERHEAD;
            self.streams.remove(channel);
        }
    }

    /// What was published before `at` (µs) may have been missed, on any channel.
    pub fn miss(&mut self, at: i64) {
        // It is asked for with each catch-up, and there may be thousands of channels.
        if at <= self.missed {
            return;
        }
        self.missed = at;
        self.reaches = self.reaches.max(at);
        for stream in self.streams.values_mut().filter(|stream| stream.reaches < at) {
            stream.reaches = at;
            stream.reason = Missing::TooOld;
        }
    }

    /// All of a channel since `since` (µs), and what comes within [`OVERLAP`] before; all there is without it.
    pub fn since(&mut self, channel: Option<&Channel>, since: Option<i64>) -> CatchUp {
        self.trim();
        let from = since.map_or(i64::MIN, |since| since.saturating_sub(micros(OVERLAP)));
        let mut absent = Stream::new(self.reaches);
        let stream = self.streams.get_mut(&channel.cloned()).unwrap_or(&mut absent);
        let parts = stream.pages.iter_mut().filter_map(|page| page.since(from)).collect();
        // What comes before the cursor all the same is not all there either then.
        let hole = Hole { reason: stream.reason, from: Some(from), to: stream.reaches };
        CatchUp { parts, missing: since.filter(|since| *since < stream.reaches).map(|_| hole) }
    }

    /// Everything of a channel published at or after this is here (µs).
    pub fn reaches(&self, channel: Option<&Channel>) -> i64 {
        self.streams.get(&channel.cloned()).map_or(self.reaches, |stream| stream.reaches)
    }

    pub fn len(&self) -> usize {
        self.events
    }

    pub fn is_empty(&self) -> bool {
        self.events == 0
    }

    /// What it takes of its limit of bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Stream {
    fn new(reaches: i64) -> Self {
        Self { pages: VecDeque::new(), events: 0, reaches, reason: Missing::TooOld }
    }

    fn begins(&self) -> i64 {
        self.pages.front().map_or(i64::MIN, Page::begins)
    }

    fn push(&mut self, at: i64, payload: Bytes) {
        self.events += 1;
        // Nearly always at the end: deliveries are out of order by moments only.
        let later = self.pages.iter().rev().take_while(|page| page.begins() > at).count();
        let mut index = (self.pages.len() - later).saturating_sub(1);
        let is_last = index + 1 >= self.pages.len();
        match self.pages.get(index) {
            None => self.pages.push_back(Page::default()),
            Some(page) if page.events.len() >= PAGE && is_last && page.ends() <= at => {
                index += 1;
                self.pages.push_back(Page::default());
            }
            Some(page) if page.events.len() >= 2 * PAGE => {
                let rest = self.pages[index].events.split_off(PAGE);
                self.pages[index].joined = None;
                self.pages.insert(index + 1, Page { events: rest, joined: None });
                index += usize::from(self.pages[index + 1].begins() <= at);
            }
            Some(_) => {}
        }
        self.pages[index].insert(at, payload);
    }

    fn drop_first(&mut self, reason: Missing) -> Option<Bytes> {
        let page = self.pages.front_mut()?;
        let first = page.events.pop_front()?;
        page.joined = None;
        if page.events.is_empty() {
            self.pages.pop_front();
        }
        self.events -= 1;
        // Who has a cursor of just this event has the event.
        if first.at > self.reaches {
            self.reaches = first.at;
            self.reason = reason;
        }
        Some(first.payload)
    }
}

impl Page {
    fn begins(&self) -> i64 {
        self.events.front().map_or(i64::MIN, |event| event.at)
    }

    fn ends(&self) -> i64 {
        self.events.back().map_or(i64::MIN, |event| event.at)
    }

    fn insert(&mut self, at: i64, payload: Bytes) {
        let index = self.events.partition_point(|event| event.at <= at);
        self.events.insert(index, Remembered { at, payload });
        self.joined = None;
    }

    /// The whole page in one piece; its events are parts of that from then on, not copies beside it.
    fn join(&mut self) -> Bytes {
        if let Some(joined) = &self.joined {
            return joined.clone();
        }
        let joined = join(self.events.iter());
        let mut start = 0;
        for event in &mut self.events {
            let end = start + event.payload.len();
            event.payload = joined.slice(start..end);
            start = end + 1;
        }
        self.joined.insert(joined).clone()
    }

    fn since(&mut self, from: i64) -> Option<Bytes> {
        if self.ends() < from {
            return None;
        }
        if self.begins() >= from {
            return Some(self.join());
        }
        let start = self.events.partition_point(|event| event.at < from);
        Some(join(self.events.range(start..)))
    }
}

fn join<'a>(events: impl Iterator<Item = &'a Remembered>) -> Bytes {
    let payloads: Vec<&[u8]> = events.map(|event| &*event.payload).collect();
    payloads.join(&b","[..]).into()
}

/// The ids of the window, as 64-bit hashes with a key of this process: a quarter of the memory,
/// and nobody outside can make two ids collide.
pub struct Seen {
    most: usize,
    key: RandomState,
    hashes: HashSet<u64>,
    by_age: VecDeque<(i64, u64)>,
}

impl Seen {
    pub fn new(most: usize) -> Self {
        Self { most, key: RandomState::new(), hashes: HashSet::new(), by_age: VecDeque::new() }
    }

    /// False when it was there before; forgets what was put in before `oldest` (µs).
    pub fn insert(&mut self, id: &str, oldest: i64) -> bool {
        while self.by_age.front().is_some_and(|(at, _)| *at < oldest) || self.by_age.len() >= self.most {
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

    pub fn contains(&self, id: &str) -> bool {
        self.hashes.contains(&self.key.hash_one(id))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ledger::Ledger;

    fn history(events: usize, bytes: usize) -> History {
        History::new(HistoryLimits { age: Duration::from_secs(3600), events, bytes })
    }

    fn texts(catch_up: &CatchUp) -> Vec<String> {
        let parts: Vec<_> = catch_up.parts.iter().map(|part| std::str::from_utf8(part).unwrap()).collect();
        parts.join(",").split(',').filter(|text| !text.is_empty()).map(str::to_owned).collect()
    }

    const SECOND: i64 = 1_000_000;

    #[test]
    fn late_arrivals_take_their_place() {
        let mut history = history(10, 1 << 20);
        let now = clock::now_micros();
        for (at, text) in [(1, "a"), (3, "c"), (2, "b")] {
            history.push(None, now + at, Bytes::from_static(text.as_bytes()));
        }
        assert_eq!(texts(&history.since(None, None)), ["a", "b", "c"]);
    }

    #[test]
    fn any_order_over_many_pages_comes_out_sorted() {
        // They have no factor in common with 2,003: every number once, far out of order.
        for factor in [7, 619] {
            let mut history = history(10_000, 1 << 24);
            let first = clock::now_micros() - 2_003 * SECOND;
            for step in 0..2_003_i64 {
                let at = step * factor % 2_003;
                history.push(None, first + at * SECOND, Bytes::from(format!("{at:04}")));
                // Joined pages must not stay when something is put between.
                history.since(None, None);
            }
            let expected: Vec<_> = (0..2_003).map(|at| format!("{at:04}")).collect();
            assert_eq!(texts(&history.since(None, None)), expected);
            let since = first + 1_500 * SECOND + micros(OVERLAP);
            assert_eq!(texts(&history.since(None, Some(since))), expected[1_500..]);
            let pages = &history.streams[&None].pages;
            assert_eq!(pages.iter().map(|page| page.events.len()).sum::<usize>(), history.len());
            assert!(pages.iter().all(|page| page.events.len() <= 2 * PAGE), "none grows for ever");
            assert!(pages.len() <= history.len() / PAGE + 1, "{} pages", pages.len());
        }
    }

    #[test]
    fn what_was_published_at_one_time_keeps_the_order_in_which_it_came() {
        let mut history = history(1_000, 1 << 20);
        let now = clock::now_micros();
        let expected: Vec<_> = (0..5 * PAGE).map(|number| number.to_string()).collect();
        for text in &expected {
            history.push(None, now, Bytes::from(text.clone()));
        }
        assert_eq!(texts(&history.since(None, None)), expected);
    }

    #[test]
    fn what_was_missed_is_told_on_every_channel() {
        let mut history = history(1, 1 << 20);
        let [one, other] = ["one", "other"].map(|name| Channel::new(name).unwrap());
        let now = clock::now_micros();
        for at in [now, now + 1] {
            history.push(Some(&one), at, Bytes::from_static(b"a"));
        }
        let reason = |history: &mut History, channel: &Channel, since: i64| {
            history.since(Some(channel), Some(since)).missing.map(|hole| (hole.reason, hole.to))
        };
        history.miss(now);
        assert_eq!(reason(&mut history, &one, now - 1), Some((Missing::TooMany, now)), "as it was before");
        assert_eq!(reason(&mut history, &other, now - 1), Some((Missing::TooOld, now)));
        assert_eq!(reason(&mut history, &other, now), None);
        history.miss(now + 2);
        history.miss(now + 1);
        for channel in [&one, &other] {
            assert_eq!(reason(&mut history, channel, now + 1), Some((Missing::TooOld, now + 2)));
            assert_eq!(history.reaches(Some(channel)), now + 2);
        }
    }

    #[test]
    fn keeps_the_newest_and_says_what_is_gone() {
        let mut history = history(2, 1 << 20);
        let now = clock::now_micros();
        for (at, text) in [(-300, "a"), (-200, "b"), (-100, "c")] {
            history.push(None, now + at * SECOND, Bytes::from_static(text.as_bytes()));
        }
        let all = history.since(None, None);
        assert_eq!(texts(&all), ["b", "c"]);
        assert_eq!(all.missing, None, "who names no cursor misses nothing");
        let since = now - 400 * SECOND;
        let early = history.since(None, Some(since));
        let from = Some(since - micros(OVERLAP));
        let hole = Hole { reason: Missing::TooMany, from, to: now - 300 * SECOND };
        assert_eq!(early.missing, Some(hole));
        let heard = history.since(None, Some(now - 300 * SECOND));
        assert_eq!(heard.missing, None, "one that heard the last that is gone lacks nothing");
        let late = history.since(None, Some(now - 110 * SECOND));
        assert_eq!(texts(&late), ["c"]);
        assert_eq!(late.missing, None);
    }

    #[tokio::test(start_paused = true)]
    async fn time_alone_takes_nothing_away_that_was_there() {
        let mut history = history(2, 1 << 20);
        let cursor = clock::now_micros();
        tokio::time::advance(Duration::from_secs(7_200)).await;
        assert_eq!(history.since(None, Some(cursor)).missing, None, "nothing came in two hours");
        let at = clock::now_micros();
        history.push(None, at, Bytes::from_static(b"a"));
        tokio::time::advance(Duration::from_secs(3_600)).await;
        assert_eq!(texts(&history.since(None, Some(cursor))), ["a"], "it is as old as it may be");
        tokio::time::advance(Duration::from_secs(1)).await;
        let missing = history.since(None, Some(cursor)).missing.unwrap();
        assert_eq!(missing.reason, Missing::TooOld);
        assert_eq!(history.since(None, Some(at)).missing, None, "one that heard it lacks nothing");
    }

    #[test]
    fn is_bounded_by_bytes_and_by_age() {
        let mut history = history(100, 3 * (10 + OVERHEAD) + STREAM_OVERHEAD);
        assert!(history.is_empty());
        let now = clock::now_micros();
        for _ in 0..10 {
            history.push(None, now, Bytes::from_static(b"0123456789"));
        }
        assert_eq!((history.len(), history.is_empty()), (3, false));
        history.push(None, now - 3601 * SECOND, Bytes::from_static(b"old"));
        assert_eq!(history.len(), 3);
    }

    #[test]
    fn catch_up_overlaps() {
        let mut history = history(10, 1 << 20);
        let now = clock::now_micros();
        history.push(None, now - 59 * SECOND, Bytes::from_static(b"just before"));
        history.push(None, now - 61 * SECOND, Bytes::from_static(b"long before"));
        history.push(None, now - 60 * SECOND, Bytes::from_static(b"a minute before"));
        assert_eq!(texts(&history.since(None, Some(now))), ["a minute before", "just before"]);
        assert_eq!(texts(&history.since(None, Some(now + SECOND))), ["just before"]);
        assert!(texts(&history.since(None, Some(now + SECOND + 1))).is_empty());
    }

    #[test]
    fn a_busy_channel_keeps_others_events_and_room_is_made_where_it_is_oldest() {
        let mut history = history(3, 8 * (10 + OVERHEAD) + 2 * STREAM_OVERHEAD);
        let now = clock::now_micros();
        let (quiet, busy) = (Channel::new("quiet").unwrap(), Channel::new("busy").unwrap());
        let since = now - 1;
        history.push(Some(&quiet), now, Bytes::from_static(b"quiet-----"));
        for at in 1..=10 {
            history.push(Some(&busy), now + at, Bytes::from_static(b"busy------"));
        }
        assert_eq!(texts(&history.since(Some(&quiet), Some(since))).len(), 1);
        assert_eq!(history.since(Some(&quiet), Some(since)).missing, None);
        let caught_up = history.since(Some(&busy), Some(since));
        assert_eq!(texts(&caught_up).len(), 3);
        assert_eq!(caught_up.missing.unwrap().reason, Missing::TooMany);
        assert!(texts(&history.since(None, None)).is_empty());

        // Four more channels have no room: the oldest events of all make it.
        for number in 0..4 {
            let other = Channel::new(&format!("other-{number}")).unwrap();
            history.push(Some(&other), now + 100, Bytes::from_static(b"other-----"));
        }
        assert!(texts(&history.since(Some(&quiet), None)).is_empty());
        let missing = history.since(Some(&quiet), Some(since)).missing;
        assert!(missing.is_some(), "its stream is gone, and that something was there is remembered");
        let events = history.streams.values().flat_map(|stream| &stream.pages).flat_map(|page| &page.events);
        let taken: usize = events.map(|event| event.payload.len() + OVERHEAD).sum();
        assert_eq!(history.bytes(), taken + history.streams.len() * STREAM_OVERHEAD);
        assert!(history.bytes <= history.limits.bytes);
        assert_eq!(history.beginnings.len(), history.streams.values().filter(|s| s.events > 0).count());
    }

    #[test]
    fn those_who_come_together_share_the_pages() {
        let mut history = history(1_000, 1 << 20);
        let now = clock::now_micros();
        for at in 0..1_000 {
            history.push(None, now + at, Bytes::from_static(b"0123456789"));
        }
        let (one, other) = (history.since(None, None), history.since(None, None));
        assert_eq!(one.parts.len(), 1_000 / PAGE + 1);
        assert!(history.streams[&None].pages.iter().all(|page| page.events.len() <= PAGE));
        let same = one.parts.iter().zip(&other.parts).all(|(one, other)| one.as_ptr() == other.as_ptr());
        assert!(same);
    }

    #[tokio::test]
    async fn with_the_ledger_at_its_limits_it_takes_less_than_12_mib() {
        // Not the program's own pages, which come in as it runs.
        let anonymous = || {
            let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
            let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
            line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap()
        };
        let before = anonymous();
        let mut history = history(1_000, 4 << 20);
        let now = clock::now_micros();
        for number in 0..2 * LEAST_SEEN {
            assert!(history.first_sight(&format!("0123456789-{number}")));
        }
        for number in 0..3_000 {
            history.push(None, now + number, vec![b'x'; (4 << 20) / 1_000 - OVERHEAD - 1].into());
            if number % 100 == 0 {
                history.since(None, None);
            }
        }
        let catch_up = history.since(None, None);
        assert_eq!(history.len(), 1_000);
        for (name, holes) in [(14, 0), (14, 1), (14, 64), (36, 0), (36, 3), (255, 0), (255, 64)] {
            let ledger = Ledger::full(name, holes);
            let kilobytes = anonymous().saturating_sub(before);
            println!("history, ids and a ledger of {holes} holes each: {kilobytes} kB");
            assert!(kilobytes <= 12 << 10, "{kilobytes} kB");
            drop(ledger);
        }
        drop(catch_up);
    }

    #[test]
    fn ids_are_remembered_for_as_long_as_their_events_however_many_channels_there_are() {
        let mut history = history(1_000, 64 << 20);
        let now = clock::now_micros();
        let ids: Vec<_> = (0..100_000).map(|number| format!("{number}")).collect();
        for (number, id) in ids.iter().enumerate() {
            let channel = Channel::new(&format!("channel-{}", number % 100)).unwrap();
            assert!(history.first_sight(id));
            history.push(Some(&channel), now, Bytes::from(id.clone()));
        }
        assert_eq!(history.len(), ids.len());
        assert!(ids.iter().all(|id| !history.first_sight(id)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_id_is_remembered_while_its_event_may_come_a_window_late() {
        let mut history = history(10, 1 << 20);
        assert!(history.first_sight("a"));
        tokio::time::advance(2 * (Duration::from_secs(3_600) + OVERLAP)).await;
        assert!(!history.first_sight("a"));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(history.first_sight("a"));
    }

    #[test]
    fn an_id_is_new_once_and_memory_is_bounded() {
        let mut history = history(10, 1 << 20);
        assert!(history.first_sight("a"));
        assert!(!history.first_sight("a"));
        for number in 0..2 * LEAST_SEEN {
            history.first_sight(&number.to_string());
        }
        assert_eq!(history.seen.hashes.len(), LEAST_SEEN);
        assert_eq!(history.seen.by_age.len(), LEAST_SEEN);
    }
}
