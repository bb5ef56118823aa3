//! A topic with the faults of a real one, under virtual time: late, repeated and disordered
//! deliveries, connections that break or hang, confirmations that get lost. For the model test.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::{BusError, Delivery, Join, Message};
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
    log: Vec<(Message, i64)>,
    subscriptions: BTreeMap<String, Subscription>,
    /// Counts deliveries, so that two of one moment have an order.
    count: u64,
}

/// What waits for one subscriber: indices into the log, by when they are due.
#[derive(Default)]
struct Subscription {
    waiting: BTreeMap<(Instant, u64), usize>,
}

/// How bad it is, in percent of messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    pub late: u8,
    pub twice: u8,
    /// The topic has it, but says that it has not.
    pub unconfirmed: u8,
}

/// A process's connection to the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Up,
    /// Every call fails at once.
    Cut,
    /// No call is ever answered.
    Hung,
    /// All is well, but what is published is refused.
    Mute,
}

/// One process's access.
#[derive(Clone)]
pub struct Member {
    topic: Topic,
    name: String,
    link: Arc<Mutex<Link>>,
}

impl Topic {
    pub fn new(seed: u64) -> Self {
        let state = State {
            rng: Rng::with_seed(seed),
            weather: Weather::default(),
            log: Vec::new(),
            subscriptions: BTreeMap::new(),
            count: 0,
        };
        Self(Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }))
    }

    pub fn member(&self, name: &str) -> Member {
        Member { topic: self.clone(), name: name.into(), link: Arc::new(Mutex::new(Link::Up)) }
    }

    /// All that was published, and when (µs).
    pub fn log(&self) -> Vec<(Message, i64)> {
        self.state().log.clone()
    }

    pub fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn schedule(&mut self, name: &str, index: usize, delay: Duration) {
        self.count += 1;
        let due = (Instant::now() + delay, self.count);
        if let Some(subscription) = self.subscriptions.get_mut(name) {
            subscription.waiting.insert(due, index);
        }
    }

    /// Nearly at once; in bad weather up to a minute later.
    fn delay(&mut self) -> Duration {
        let most = if self.rng.u8(..100) < self.weather.late { 60_000 } else { 100 };
        Duration::from_millis(self.rng.u64(..most))
    }

    fn deliver(&mut self, name: &str, index: usize) {
        let times = if self.rng.u8(..100) < self.weather.twice { 2 } else { 1 };
        for _ in 0..times {
            let delay = self.delay();
            self.schedule(name, index, delay);
        }
    }

    fn seek(&mut self, name: &str, since: i64) {
        if let Some(subscription) = self.subscriptions.get_mut(name) {
            subscription.waiting.clear();
        }
        for index in self.log.partition_point(|(_, at)| *at < since)..self.log.len() {
            self.deliver(name, index);
        }
    }
}

impl Member {
    pub fn set_link(&self, link: Link) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = link;
        self.topic.0.changed.notify_waiters();
    }

    fn link(&self) -> Link {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call over the link, which takes a moment.
    async fn reach(&self) -> Result<(), BusError> {
        sleep(Duration::from_millis(10)).await;
        match self.link() {
            Link::Up | Link::Mute => Ok(()),
            Link::Cut => Err(BusError::new("the connection is cut")),
            Link::Hung => std::future::pending().await,
        }
    }

    pub(super) async fn join(&self, how: Join, since: i64) -> Result<Inbox, BusError> {
        // As for administration: it goes its own way, and gives up by itself.
        let reached = tokio::time::timeout(Duration::from_secs(5), self.reach()).await;
        reached.map_err(|_| BusError::new("no answer"))??;
        let mut state = self.topic.state();
        if how == Join::Afresh {
            state.subscriptions.remove(&self.name);
        }
        state.subscriptions.entry(self.name.clone()).or_default();
        state.seek(&self.name, since);
        Ok(Inbox { member: self.clone() })
    }

    pub(super) async fn seek(&self, since: i64) -> Result<(), BusError> {
        self.reach().await?;
        self.topic.state().seek(&self.name, since);
        self.topic.0.changed.notify_waiters();
        Ok(())
    }

    pub(super) fn publish(
        &self,
        message: Message,
    ) -> impl Future<Output = Result<(), BusError>> + Send + use<> {
        let member = self.clone();
        let mut confirmed = false;
        if self.link() == Link::Up {
            let mut state = self.topic.state();
            let index = state.log.len();
            state.log.push((message, clock::now_micros()));
            let names: Vec<_> = state.subscriptions.keys().cloned().collect();
            for name in names {
                state.deliver(&name, index);
            }
            confirmed = state.rng.u8(..100) >= state.weather.unconfirmed;
            self.topic.0.changed.notify_waiters();
        }
        async move {
            member.reach().await?;
            if confirmed { Ok(()) } else { Err(BusError::new("there was no confirmation")) }
        }
    }

    pub(super) async fn leave(&self) -> Result<(), BusError> {
        self.reach().await?;
        self.topic.state().subscriptions.remove(&self.name);
        Ok(())
    }
}

pub struct Inbox {
    member: Member,
}

impl Inbox {
    pub(super) async fn next(&mut self) -> Result<Delivery, BusError> {
        let topic = self.member.topic.clone();
        loop {
            let changed = topic.0.changed.notified();
            let mut due = Instant::now() + Duration::from_secs(3600);
            match self.member.link() {
                Link::Cut => return Err(BusError::new("the stream is cut")),
                Link::Hung => {}
                Link::Up | Link::Mute => match self.take() {
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

    /// What is due, or when something will be.
    fn take(&self) -> Result<Delivery, Option<Instant>> {
        let mut state = self.member.topic.state();
        let Some(subscription) = state.subscriptions.get_mut(&self.member.name) else { return Err(None) };
        let Some(first) = subscription.waiting.first_entry() else { return Err(None) };
        if first.key().0 > Instant::now() {
            return Err(Some(first.key().0));
        }
        let index = first.remove();
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
            self.member.topic.state().schedule(&self.member.name, self.index, Duration::from_secs(1));
            self.member.topic.0.changed.notify_waiters();
        }
    }
}
