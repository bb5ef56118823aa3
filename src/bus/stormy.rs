//! A topic with the faults of a real one, under virtual time: late, repeated and disordered
//! deliveries, connections that break or hang, confirmations that get lost. For the model test, and for the path's.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::{BusError, Cause, Delivery, Join, Message};
use crate::clock;

/// What cursors of this topic begin with.
pub const TAG: u32 = 7;

/// One topic, shared by all members.
#[derive(Clone)]
pub struct Topic(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    rng: Rng,
    weather: Weather,
    /// Nothing is kept for subscriptions that are still to be made.
    forgets: bool,
    refuses_seeks: bool,
    log: Vec<(Message, i64)>,
    subscriptions: BTreeMap<String, Subscription>,
    /// Counts deliveries, so that two of one moment have an order.
    count: u64,
}

/// What waits for one subscriber, by when it is due.
#[derive(Default)]
struct Subscription {
    /// What was in the log when it was made.
    begins: usize,
    waiting: BTreeMap<(Instant, u64), Due>,
}

enum Due {
    /// A message, by its index in the log.
    Message(usize),
    /// A seek to a time (µs) takes effect.
    Seek(i64),
}

/// How bad it is, in percent of messages where nothing else is said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    pub late: u8,
    pub twice: u8,
    /// Of seeks: they take effect late.
    pub slow: u8,
    /// The topic has it, but says that it has not.
    pub unconfirmed: u8,
    /// The time between two messages that a seek brings; the newest come first.
    pub pace: Duration,
}

/// A process's connection to the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Up,
    /// Every call fails at once.
    Cut,
    /// No call is answered as long as it is so.
    Hung,
    /// Calls are done, but their answers are lost, and the stream breaks.
    Unanswered,
    /// All is well, but what is published is refused, for this reason.
    Mute(Cause),
}

/// One process's access.
#[derive(Clone)]
pub struct Member {
    topic: Topic,
    name: String,
    link: Arc<Mutex<Link>>,
    reconnected: Arc<AtomicUsize>,
    /// Up to where it is to be told that nothing was kept.
    forgotten: Arc<Mutex<Option<i64>>>,
}

impl Topic {
    pub fn new(seed: u64) -> Self {
        let state = State {
            rng: Rng::with_seed(seed),
            weather: Weather::default(),
            forgets: false,
            refuses_seeks: false,
            log: Vec::new(),
            subscriptions: BTreeMap::new(),
            count: 0,
        };
        Self(Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }))
    }

    pub fn member(&self, name: &str) -> Member {
        Member {
            topic: self.clone(),
            name: name.into(),
            link: Arc::new(Mutex::new(Link::Up)),
            reconnected: Arc::default(),
            forgotten: Arc::default(),
        }
    }

    /// All that was published, and when (µs).
    pub fn log(&self) -> Vec<(Message, i64)> {
        self.state().log.clone()
    }

    pub fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    /// Somebody deletes a subscription.
    pub fn remove(&self, name: &str) {
        self.state().subscriptions.remove(name);
        self.0.changed.notify_waiters();
    }

    pub fn has(&self, name: &str) -> bool {
        self.state().subscriptions.contains_key(name)
    }

    pub fn refuse_seeks(&self, refuse: bool) {
        self.state().refuses_seeks = refuse;
    }

    pub fn keep_nothing(&self) {
        self.state().forgets = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn schedule(&mut self, name: &str, what: Due, delay: Duration) {
        self.count += 1;
        let due = (Instant::now() + delay, self.count);
        if let Some(subscription) = self.subscriptions.get_mut(name) {
            subscription.waiting.insert(due, what);
        }
    }

    /// Nearly at once; of so many in a hundred up to a minute later.
    fn delay(&mut self, late: u8) -> Duration {
        let most = if self.rng.u8(..100) < late { 60_000 } else { 100 };
        Duration::from_millis(self.rng.u64(..most))
    }

    fn deliver(&mut self, name: &str, index: usize, after: Duration) {
        let times = if self.rng.u8(..100) < self.weather.twice { 2 } else { 1 };
        for _ in 0..times {
            let delay = after + self.delay(self.weather.late);
            self.schedule(name, Due::Message(index), delay);
        }
    }

    fn may_seek(&self) -> Result<(), BusError> {
        if self.refuses_seeks { Err(BusError::new("it may not seek")) } else { Ok(()) }
    }

    fn seek(&mut self, name: &str, since: i64) {
        let delay = self.delay(self.weather.slow);
        self.schedule(name, Due::Seek(since), delay);
    }

    fn wind_back(&mut self, name: &str, since: i64) {
        let Some(subscription) = self.subscriptions.get_mut(name) else { return };
        subscription.waiting.retain(|_, due| matches!(due, Due::Seek(_)));
        let kept = if self.forgets { subscription.begins } else { 0 };
        let begins = kept.max(self.log.partition_point(|(_, at)| *at < since));
        let mut after = Duration::ZERO;
        for index in (begins..self.log.len()).rev() {
            self.deliver(name, index, after);
            after += self.weather.pace;
        }
    }
}

impl Member {
    pub fn set_link(&self, link: Link) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = link;
        self.topic.0.changed.notify_waiters();
    }

    /// How often it asked for a new connection.
    pub fn reconnected(&self) -> usize {
        self.reconnected.load(Ordering::Relaxed)
    }

    pub(super) fn reconnect(&self) {
        self.reconnected.fetch_add(1, Ordering::Relaxed);
    }

    /// It is found that the topic kept nothing up to there (µs).
    pub fn find_forgotten(&self, until: i64) {
        *self.forgotten.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    pub(super) fn forgotten(&self) -> Option<i64> {
        self.forgotten.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn link(&self) -> Link {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call over the link, which takes a moment.
    async fn reach(&self) -> Result<(), BusError> {
        sleep(Duration::from_millis(10)).await;
        loop {
            let changed = self.topic.0.changed.notified();
            match self.link() {
                Link::Up | Link::Unanswered | Link::Mute(_) => return Ok(()),
                Link::Cut => return Err(BusError::new("the connection is cut")),
                Link::Hung => changed.await,
            }
        }
    }

    /// Once a call is done.
    fn answered(&self) -> Result<(), BusError> {
        if self.link() == Link::Unanswered { Err(BusError::new("the answer is lost")) } else { Ok(()) }
    }

    pub(super) async fn join(&self, how: Join, since: i64) -> Result<Inbox, BusError> {
        // As for administration: it goes its own way, and gives up by itself.
        let reached = tokio::time::timeout(Duration::from_secs(5), self.reach()).await;
        reached.map_err(|_| BusError::new("no answer"))??;
        let mut state = self.topic.state();
        if how == Join::Afresh {
            state.subscriptions.remove(&self.name);
        }
        let is_sought = |there: &Subscription| there.waiting.values().any(|due| matches!(due, Due::Seek(_)));
        let there = state.subscriptions.get(&self.name).map(is_sought);
        let begins = state.log.len();
        let new = || Subscription { begins, ..Subscription::default() };
        state.subscriptions.entry(self.name.clone()).or_insert_with(new);
        let not_sought = state.may_seek().err();
        match there {
            _ if not_sought.is_some() => {}
            // A slow seek on what was there before is what `complete` can't know.
            Some(false) => state.wind_back(&self.name, since),
            _ => state.seek(&self.name, since),
        }
        drop(state);
        self.answered()?;
        Ok(Inbox { member: self.clone(), was_there: there.is_some(), not_sought })
    }

    pub(super) async fn seek(&self, since: i64) -> Result<(), BusError> {
        self.reach().await?;
        let mut state = self.topic.state();
        state.may_seek()?;
        state.seek(&self.name, since);
        drop(state);
        self.topic.0.changed.notify_waiters();
        self.answered()
    }

    pub(super) fn publish(
        &self,
        message: Message,
    ) -> impl Future<Output = Result<(), BusError>> + Send + use<> {
        let member = self.clone();
        let (link, mut confirmed) = (self.link(), false);
        let cause = if let Link::Mute(cause) = link { cause } else { Cause::Other };
        if matches!(link, Link::Up | Link::Unanswered) {
            let mut state = self.topic.state();
            let index = state.log.len();
            state.log.push((message, clock::now_micros()));
            let names: Vec<_> = state.subscriptions.keys().cloned().collect();
            for name in names {
                state.deliver(&name, index, Duration::ZERO);
            }
            confirmed = link == Link::Up && state.rng.u8(..100) >= state.weather.unconfirmed;
            self.topic.0.changed.notify_waiters();
        }
        async move {
            member.reach().await?;
            if confirmed { Ok(()) } else { Err(BusError::new("there was no confirmation").because(cause)) }
        }
    }

    pub(super) async fn leave(&self) -> Result<(), BusError> {
        self.reach().await?;
        self.topic.state().subscriptions.remove(&self.name);
        self.answered()
    }
}

pub struct Inbox {
    member: Member,
    was_there: bool,
    pub(super) not_sought: Option<BusError>,
}

impl Inbox {
    pub(super) fn withheld(&self) -> Option<Duration> {
        self.was_there.then_some(Duration::from_secs(15))
    }

    pub(super) async fn next(&mut self) -> Result<Delivery, BusError> {
        let topic = self.member.topic.clone();
        loop {
            let changed = topic.0.changed.notified();
            let mut due = Instant::now() + Duration::from_secs(3600);
            match self.member.link() {
                Link::Cut | Link::Unanswered => return Err(BusError::new("the stream is cut")),
                Link::Hung => {}
                Link::Up | Link::Mute(_) if self.is_gone() => {
                    return Err(BusError::new("no such subscription").because(Cause::Missing));
                }
                Link::Up | Link::Mute(_) => match self.take() {
                    Err(next) => due = next.unwrap_or(due),
                    Ok(delivery) => return Ok(delivery),
                },
            }
            tokio::select! {
                () = changed => {}
                () = sleep_until(due) => {}
            }
        }
    }

    fn is_gone(&self) -> bool {
        !self.member.topic.has(&self.member.name)
    }

    /// What is due, or when something will be.
    fn take(&self) -> Result<Delivery, Option<Instant>> {
        let mut state = self.member.topic.state();
        let Some(subscription) = state.subscriptions.get_mut(&self.member.name) else { return Err(None) };
        let Some(first) = subscription.waiting.first_entry() else { return Err(None) };
        if first.key().0 > Instant::now() {
            return Err(Some(first.key().0));
        }
        let index = match first.remove() {
            Due::Message(index) => index,
            Due::Seek(since) => {
                state.wind_back(&self.member.name, since);
                return Err(Some(Instant::now()));
            }
        };
        let (message, published_at) = state.log[index].clone();
        let receipt = Receipt { member: self.member.clone(), index, acked: false };
        Ok(Delivery { message, published_at, receipt: super::Receipt::Stormy(receipt) })
    }
}

/// Dropped without an acknowledgement, the message comes again.
pub(super) struct Receipt {
    member: Member,
    index: usize,
    acked: bool,
}

impl Receipt {
    pub(super) fn ack(mut self) {
        self.acked = true;
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if !self.acked {
            let again = Due::Message(self.index);
            self.member.topic.state().schedule(&self.member.name, again, Duration::from_secs(1));
            self.member.topic.0.changed.notify_waiters();
        }
    }
}
