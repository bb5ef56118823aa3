//! What this VM has accepted and the topic has not confirmed: numbered, retried, and bounded.
//!
//! Nothing is dropped in silence. An event is tried again, over new connections too, until the topic
//! has it or its time is over; its sender is told which. Every event has the next number of this
//! process's sequence, by which other VMs see that they have all. The number of one that was given up
//! is told in beacons, so that nobody waits for it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::select;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bus::{Bus, BusError, Cause, Message};
use crate::clock::{self, Backoff, micros};
use crate::event::{Event, Sequence, Told};
use crate::ledger::MAX_RANGES;
use crate::traces::Parent;

/// How long an event is tried. Longer than a hiccup, shorter than the patience of the person who
/// pressed the button.
const PATIENCE: Duration = Duration::from_secs(30);

/// One try's time: a connection that died in silence is replaced meanwhile.
const TRY: Duration = Duration::from_secs(5);

/// What may be waiting, of all sockets together.
const MAX_EVENTS: usize = 4_096;
const MAX_BYTES: usize = 8 << 20;

/// The window's beginning is known to one part in so many.
pub const MARKS: u32 = 32;

/// Ranges of given-up numbers waiting to be told. An outage makes one in the end, but until then its
/// numbers are given up in any order. Beyond that the oldest are left to the others' patience.
const MAX_GIVEN_UP: usize = MAX_EVENTS;

/// Cheap to clone.
#[derive(Clone)]
pub struct Publishing(Arc<Shared>);

struct Shared {
    bus: Bus,
    events: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    // A std mutex: held for a few instructions, never over an await.
    numbers: Mutex<Numbers>,
    tasks: TaskTracker,
    /// Time is over for all.
    ending: CancellationToken,
    /// A try has failed.
    trouble: AtomicBool,
}

/// How much waits for the topic's confirmation, and the oldest of it for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub events: usize,
    pub bytes: usize,
    pub age: Duration,
}

impl Publishing {
    /// `window` is how far back other VMs want to hear, as history does.
    pub fn new(bus: Bus, window: Duration) -> Self {
        Self(Arc::new(Shared {
            bus,
            events: Arc::new(Semaphore::new(MAX_EVENTS)),
            bytes: Arc::new(Semaphore::new(MAX_BYTES)),
            numbers: Mutex::new(Numbers::new(window)),
            tasks: TaskTracker::new(),
            ending: CancellationToken::new(),
            trouble: AtomicBool::new(false),
        }))
    }

    /// Puts `event` on the bus, with the next number of this process, as a part of `trace`. `done` hears
    /// whether the bus has it for certain.
    pub fn publish(
        &self,
        mut event: Event,
        trace: Parent,
        done: impl FnOnce(Result<(), BusError>) + Send + 'static,
    ) {
        let room = match self.room(event.data.get().len()) {
            Ok(room) => room,
            Err(full) => return done(Err(full)),
        };
        event.sequence = self.numbers().next();
        let number = event.sequence.number;
        let message = Message { data: Told::Event(event).encode(), to: None, trace };
        // Under way when this returns, so that what one socket sends leaves in its order.
        let first = self.0.bus.publish(message.clone());
        let publishing = self.clone();
        self.0.tasks.spawn(async move {
            let confirmed = publishing.try_until_confirmed(first, message).await;
            publishing.numbers().settle(number, confirmed.is_ok());
            drop(room);
            done(confirmed);
        });
    }

    /// Puts on the bus what has no number and is for one VM, with the same care.
    pub fn send(&self, message: Message, done: impl FnOnce(Result<(), BusError>) + Send + 'static) {
        let room = match self.room(message.data.len()) {
            Ok(room) => room,
            Err(full) => return done(Err(full)),
        };
        let first = self.0.bus.publish(message.clone());
        let publishing = self.clone();
        self.0.tasks.spawn(async move {
            let confirmed = publishing.try_until_confirmed(first, message).await;
            drop(room);
            done(confirmed);
        });
    }

    fn room(&self, bytes: usize) -> Result<[OwnedSemaphorePermit; 2], BusError> {
        let full = |_| BusError::new("too much is waiting for the topic already").because(Cause::Full);
        let room = Arc::clone(&self.0.events).try_acquire_owned().map_err(full)?;
        let size = u32::try_from(bytes).unwrap_or(u32::MAX);
        let bytes = Arc::clone(&self.0.bytes).try_acquire_many_owned(size).map_err(full)?;
        Ok([room, bytes])
    }

    async fn try_until_confirmed(
        &self,
        under_way: impl Future<Output = Result<(), BusError>> + Send,
        message: Message,
    ) -> Result<(), BusError> {
        let end = Instant::now() + PATIENCE;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(4));
        let mut error = match self.one_try(under_way, end).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        loop {
            self.0.trouble.store(true, Ordering::Relaxed);
            let next = Instant::now() + backoff.wait();
            if next >= end {
                return Err(error);
            }
            select! {
                () = sleep_until(next) => {}
                () = self.0.ending.cancelled() => return Err(error),
            }
            match self.one_try(self.0.bus.publish(message.clone()), end).await {
                Ok(()) => return Ok(()),
                Err(again) => error = again,
            }
        }
    }

    async fn one_try(
        &self,
        under_way: impl Future<Output = Result<(), BusError>>,
        end: Instant,
    ) -> Result<(), BusError> {
        select! {
            answer = timeout_at(end.min(Instant::now() + TRY), under_way) => {
                let late = || BusError::new("publishing: no answer in time").because(Cause::NoAnswer);
                answer.unwrap_or_else(|_| Err(late()))
            }
            () = self.0.ending.cancelled() => {
                Err(BusError::new("publishing: this VM is leaving").because(Cause::Leaving))
            }
        }
    }

    /// Where this process's sequence stands, for a beacon.
    pub fn standing(&self) -> Standing {
        let mut numbers = self.numbers();
        let sequence = numbers.settled();
        let is_settled = |given_up: &&Range<u64>| given_up.end <= sequence.number + 1;
        let given_up = numbers.given_up.iter().filter(is_settled).take(MAX_RANGES).cloned().collect();
        let (settled_until, published_until) = (numbers.settled_until(), numbers.published_until);
        Standing { sequence, settled_until, published_until, given_up }
    }

    /// When this process started, in ms: by that, others tell it from one before.
    pub fn started(&self) -> i64 {
        self.numbers().started
    }

    /// These numbers that were given up are known to the others.
    pub fn told(&self, given_up: &[Range<u64>]) {
        self.numbers().given_up.retain(|numbers| !given_up.contains(numbers));
    }

    /// What is accepted and not settled.
    pub fn waiting(&self) -> Waiting {
        let since = self.numbers().settled_until();
        Waiting {
            events: MAX_EVENTS - self.0.events.available_permits(),
            bytes: MAX_BYTES - self.0.bytes.available_permits(),
            age: Duration::from_millis(u64::try_from(clock::now_millis() - since).unwrap_or(0)),
        }
    }

    /// Whether a try has failed since this was last asked.
    pub fn had_trouble(&self) -> bool {
        self.0.trouble.swap(false, Ordering::Relaxed)
    }

    /// Waits for what is under way, for so long; what is not confirmed then is told to its sender as
    /// not taken. Returns how many that were.
    pub async fn finish(&self, patience: Duration) -> usize {
        self.0.tasks.close();
        if tokio::time::timeout(patience, self.0.tasks.wait()).await.is_ok() {
            return 0;
        }
        let unconfirmed = self.0.tasks.len();
        self.0.ending.cancel();
        self.0.tasks.wait().await;
        unconfirmed
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.0.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a process's sequence stands.
pub struct Standing {
    /// All up to its number is settled.
    pub sequence: Sequence,
    /// So is all that was given a number before this (ms).
    pub settled_until: i64,
    /// All that is settled was published before this (ms).
    pub published_until: i64,
    /// Settled numbers that were given up and are not told yet, as many as others read of one beacon;
    /// [`Publishing::told`] when they are.
    pub given_up: Vec<Range<u64>>,
}

/// This process's sequence.
struct Numbers {
    /// How long a number may matter: an event is published up to [`PATIENCE`] after it was given, and is
    /// heard for a window after that.
    window: Duration,
    started: i64,
    last: u64,
    /// When the last one was given, in ms.
    last_at: i64,
    /// When the topic last confirmed one, in ms.
    published_until: i64,
    /// When each was given, in ms.
    unsettled: BTreeMap<u64, i64>,
    given_up: Vec<Range<u64>>,
    /// Times (ms) in the window, and the first number given at or after each.
    marks: VecDeque<(i64, u64)>,
}

impl Numbers {
    fn new(window: Duration) -> Self {
        let started = clock::now_millis();
        Self {
            window: window + PATIENCE,
            started,
            last: 0,
            last_at: started,
            published_until: started,
            unsettled: BTreeMap::new(),
            given_up: Vec::new(),
            marks: VecDeque::new(),
        }
    }

    fn next(&mut self) -> Sequence {
        let now = clock::now_millis();
        self.last += 1;
        self.last_at = now;
        self.unsettled.insert(self.last, now);
        let step = micros(self.window / MARKS) / 1000;
        if self.marks.back().is_none_or(|(at, _)| now - at >= step) {
            self.marks.push_back((now, self.last));
        }
        self.sequence(self.last)
    }

    fn settle(&mut self, number: u64, confirmed: bool) {
        self.unsettled.remove(&number);
        if confirmed {
            self.published_until = clock::now_millis();
            return;
        }
        // In order, and joined with what it touches: what fails together fails in any order.
        let index = self.given_up.partition_point(|numbers| numbers.end < number);
        match self.given_up.get_mut(index) {
            Some(numbers) if numbers.end == number => numbers.end += 1,
            _ => self.given_up.insert(index, number..number + 1),
        }
        if self.given_up.get(index + 1).is_some_and(|next| next.start == self.given_up[index].end) {
            self.given_up[index].end = self.given_up.remove(index + 1).end;
        }
        if self.given_up.len() > MAX_GIVEN_UP {
            self.given_up.remove(0);
        }
    }

    fn settled(&mut self) -> Sequence {
        let number = self.unsettled.first_key_value().map_or(self.last, |(number, _)| number - 1);
        self.sequence(number)
    }

    fn settled_until(&self) -> i64 {
        self.unsettled.first_key_value().map_or_else(clock::now_millis, |(_, given)| *given)
    }

    fn sequence(&mut self, number: u64) -> Sequence {
        let oldest = clock::now_millis() - micros(self.window) / 1000;
        while self.marks.front().is_some_and(|(at, _)| *at < oldest) {
            self.marks.pop_front();
        }
        // All before the first mark was given before its time; without marks, by the last one's.
        let (first_at, first) = self.marks.front().copied().unwrap_or((self.last_at + 1, self.last + 1));
        Sequence { started: self.started, number, first: first.min(number + 1), first_at }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;
    use tokio::sync::mpsc;

    use super::*;
    use crate::bus::stormy::{Link, Topic};
    use crate::event::{Kind, Origin};

    /// An alert whose data takes so many bytes.
    fn event(bytes: usize) -> Event {
        Event {
            id: "e".into(),
            kind: Kind::Alert,
            channel: None,
            sender_id: "s".into(),
            data: RawValue::from_string(format!("\"{}\"", "x".repeat(bytes - 2))).unwrap(),
            timestamp: 0,
            origin: Origin { instance: "a".into(), region: "ams".into() },
            sequence: Sequence::default(),
            wants_receipt: false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_bounded_by_number_by_bytes_and_by_age() {
        let member = Topic::new(0).member("a");
        let publishing = Publishing::new(Bus::Stormy(member.clone()), Duration::from_secs(3600));
        assert_eq!(publishing.started(), clock::now_millis());
        let (tell, mut told) = mpsc::unbounded_channel();
        let publish = |bytes| {
            let tell = tell.clone();
            let done = move |confirmed: Result<(), BusError>| tell.send(confirmed.is_ok()).unwrap();
            publishing.publish(event(bytes), Parent::default(), done);
        };
        let mut numbers = 0;
        for broken in [Link::Cut, Link::Hung] {
            for (most, bytes) in [(MAX_EVENTS, 2), (8, MAX_BYTES / 8)] {
                for mended in [true, false] {
                    member.set_link(broken);
                    let begun = Instant::now();
                    (0..most).for_each(|_| publish(bytes));
                    let waiting = Waiting { events: most, bytes: most * bytes, age: Duration::ZERO };
                    assert_eq!(publishing.waiting(), waiting);
                    numbers += most as u64;
                    assert!(told.try_recv().is_err(), "all of them wait");
                    publish(bytes);
                    assert_eq!(told.try_recv(), Ok(false), "one too many is refused at once");
                    tokio::time::sleep(PATIENCE / 2).await;
                    let later = publishing.waiting();
                    assert_eq!(Waiting { age: Duration::ZERO, ..later }, waiting);
                    assert!((PATIENCE / 2..PATIENCE).contains(&later.age), "{later:?}");
                    if mended {
                        member.set_link(Link::Up);
                    }
                    for _ in 0..most {
                        assert_eq!(told.recv().await, Some(mended), "{broken:?}");
                    }
                    let took = begun.elapsed();
                    assert!(took <= PATIENCE, "{took:?}");
                    assert!(
                        mended || took > PATIENCE - Duration::from_secs(5),
                        "not tried to the end: {took:?}"
                    );
                    let given_up = publishing.standing().given_up;
                    let gone: u64 = given_up.iter().map(|gone| gone.end - gone.start).sum();
                    assert_eq!(gone, if mended { 0 } else { most as u64 }, "told to the other VMs");
                    publishing.told(&given_up);
                    assert!(publishing.had_trouble() && !publishing.had_trouble(), "it is told of once");
                    assert_eq!(publishing.waiting(), Waiting { events: 0, bytes: 0, age: Duration::ZERO });
                    assert_eq!(publishing.standing().sequence.number, numbers);
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_leaves_waits_for_what_is_under_way_and_tells_what_is_not_taken() {
        for (link, unconfirmed) in [(Link::Up, 0), (Link::Hung, 2)] {
            let member = Topic::new(0).member("a");
            let publishing = Publishing::new(Bus::Stormy(member.clone()), Duration::from_secs(3600));
            let (tell, mut told) = mpsc::unbounded_channel();
            member.set_link(link);
            let done = || {
                let tell = tell.clone();
                move |confirmed: Result<(), BusError>| tell.send(confirmed.is_ok()).unwrap()
            };
            publishing.publish(event(2), Parent::default(), done());
            publishing.send(Message::default(), done());
            assert_eq!(publishing.finish(Duration::from_secs(1)).await, unconfirmed);
            for _ in 0..2 {
                assert_eq!(told.try_recv(), Ok(unconfirmed == 0), "{link:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_beacon_speaks_only_of_what_is_settled() {
        let mut numbers = Numbers::new(Duration::from_secs(3600));
        assert_eq!(numbers.settled().number, 0);
        let begun = numbers.started;
        for expected in 1..=4 {
            assert_eq!(numbers.next().number, expected);
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        let mut after = |number, confirmed| {
            numbers.settle(number, confirmed);
            (numbers.settled().number, numbers.settled_until() - begun)
        };
        assert_eq!(after(2, true), (0, 0));
        assert_eq!(after(4, true), (0, 0));
        assert_eq!(after(1, true), (2, 20));
        assert_eq!(after(3, false), (4, 40));
        assert_eq!(numbers.given_up.first(), Some(&(3..4)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_moves_on() {
        let mut numbers = Numbers::new(Duration::from_secs(320) - PATIENCE);
        let begun = numbers.started;
        for _ in 0..40 {
            numbers.next();
            tokio::time::advance(Duration::from_secs(10)).await;
        }
        // 400 s after the first, the window begins at 80 s, where the ninth was given.
        let sequence = numbers.settled();
        assert_eq!((sequence.first, sequence.number), (1, 0), "nothing is settled yet");
        (1..=40).for_each(|number| numbers.settle(number, true));
        let sequence = numbers.settled();
        assert_eq!((sequence.first, sequence.first_at, sequence.number), (9, begun + 80_000, 40));
        tokio::time::advance(Duration::from_secs(3600)).await;
        let sequence = numbers.settled();
        assert_eq!((sequence.first, sequence.first_at, sequence.number), (41, begun + 390_001, 40));
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_s_beginning_is_known_by_a_few_marks() {
        let mut numbers = Numbers::new(Duration::from_secs(320) - PATIENCE);
        for _ in 0..10_000 {
            numbers.next();
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert_eq!(numbers.marks.len(), MARKS as usize);
    }

    #[test]
    fn what_is_given_up_is_told_in_ranges() {
        let mut numbers = Numbers::new(Duration::from_secs(1));
        for number in [7, 5, 9, 6, 4] {
            numbers.settle(number, false);
        }
        assert_eq!(numbers.given_up, [4..8, 9..10]);
        for number in 0..10_000 {
            numbers.settle(20 + 2 * number, false);
        }
        assert_eq!(numbers.given_up.len(), MAX_GIVEN_UP);
    }
}
