//! The in-process bus: a topic for one VM alone, with nothing to install, and for many VMs in
//! one process in tests.
//!
//! The topic is one log; a member is a position in it. The log keeps the history window, and
//! beyond it only what a live member has not read yet, up to a bound at which publishing is
//! refused: what was confirmed is never dropped.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use uuid::Uuid;

use super::{BusError, Cause, Delivery, Message};
use crate::clock::{TopicClock, micros};
use crate::config::HistoryLimits;

/// What the slowest member may be behind before publishing is refused, in messages; and what all messages may
/// have beyond the window's bytes then.
const MAX_BEHIND: u64 = 16_384;
const MAX_BYTES: usize = 4 << 20;

/// Messages kept beside the history's events: beacons.
const BESIDE_EVENTS: usize = 1_000;

/// A topic in this process. Cheap to clone.
#[derive(Clone)]
pub struct Topic(Arc<Shared>);

struct Shared {
    // A std mutex: held for a few instructions, never over an await.
    log: Mutex<Log>,
    grown: Notify,
    keep: HistoryLimits,
    tag: u32,
}

#[derive(Default)]
struct Log {
    messages: VecDeque<(Message, i64)>,
    clock: TopicClock,
    bytes: usize,
    /// The place of the first of `messages`, counted from the topic's beginning.
    first: u64,
    members: HashMap<Uuid, Position>,
    joins: u64,
}

/// Where a member is in the log.
#[derive(Default)]
struct Position {
    /// Which join's this is: one that is over has no say any more.
    join: u64,
    next: u64,
    /// Places of deliveries that were dropped without an acknowledgement.
    again: VecDeque<u64>,
    /// The lowest place delivered and not acknowledged yet bounds what may be forgotten.
    open: BTreeSet<u64>,
}

impl Position {
    fn needs(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.next).min(self.next)
    }
}

/// One VM's access to a [`Topic`].
#[derive(Clone)]
pub struct Member {
    topic: Topic,
    id: Uuid,
}

impl Topic {
    pub fn new(keep: HistoryLimits) -> Self {
        let tag = Uuid::new_v4().as_fields().0;
        Self(Arc::new(Shared { log: Mutex::default(), grown: Notify::new(), keep, tag }))
    }

    pub fn member(&self) -> Member {
        Member { topic: self.clone(), id: Uuid::new_v4() }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    pub(super) fn tag(&self) -> u32 {
        self.topic.0.tag
    }

    pub(super) fn join(&self, since: i64) -> Inbox {
        let mut log = self.topic.log();
        log.joins += 1;
        let join = log.joins;
        let position = Position { join, next: log.place(since), ..Position::default() };
        log.members.insert(self.id, position);
        Inbox { topic: self.topic.clone(), member: self.id, join }
    }

    pub(super) fn seek(&self, since: i64) -> Result<(), BusError> {
        let mut log = self.topic.log();
        let place = log.place(since);
        let position = log.members.get_mut(&self.id).ok_or_else(|| BusError::new("not a member"))?;
        position.next = place;
        drop(log);
        self.topic.0.grown.notify_waiters();
        Ok(())
    }

    pub(super) fn publish(&self, message: Message) -> Result<(), BusError> {
        let mut log = self.topic.log();
        let end = log.first + log.messages.len() as u64;
        let oldest_needed = log.members.values().map(Position::needs).min().unwrap_or(end);
        log.forget(&self.topic.0.keep, oldest_needed);
        if end - oldest_needed >= MAX_BEHIND || log.bytes >= self.topic.0.keep.bytes + MAX_BYTES {
            return Err(BusError::new("too many messages are waiting to be read").because(Cause::Full));
        }
        log.bytes += message.data.len();
        let at = log.clock.now_micros();
        log.messages.push_back((message, at));
        drop(log);
        self.topic.0.grown.notify_waiters();
        Ok(())
    }
}

impl Log {
    /// The place of the first message published at or after `since` (µs).
    fn place(&self, since: i64) -> u64 {
        self.first + self.messages.partition_point(|(_, at)| *at < since) as u64
    }

    fn position(&mut self, member: Uuid, join: u64) -> Option<&mut Position> {
        self.members.get_mut(&member).filter(|position| position.join == join)
    }

    /// Drops what is beyond the window and read by all.
    fn forget(&mut self, keep: &HistoryLimits, oldest_needed: u64) {
        let oldest = self.clock.now_micros() - micros(keep.age);
        while self.first < oldest_needed
            && let Some((message, at)) = self.messages.front()
            && (*at < oldest || self.messages.len() > keep.events + BESIDE_EVENTS || self.bytes > keep.bytes)
        {
            self.bytes -= message.data.len();
            self.messages.pop_front();
            self.first += 1;
        }
    }
}

/// One join's deliveries; dropped, it no longer holds anything back.
pub struct Inbox {
    topic: Topic,
    member: Uuid,
    join: u64,
}

impl Inbox {
    pub(super) async fn next(&mut self) -> Delivery {
        loop {
            // Registered before the log is looked at, so that nothing slips in between.
            let grown = self.topic.0.grown.notified();
            if let Some(delivery) = self.take() {
                return delivery;
            }
            grown.await;
        }
    }

    fn take(&self) -> Option<Delivery> {
        let mut log = self.topic.log();
        let position = log.position(self.member, self.join)?;
        let place = position.again.pop_front().unwrap_or(position.next);
        let index = usize::try_from(place.checked_sub(log.first)?).ok()?;
        let (message, published_at) = log.messages.get(index)?.clone();
        let position = log.position(self.member, self.join)?;
        position.next = position.next.max(place + 1);
        position.open.insert(place);
        let Self { member, join, .. } = *self;
        let receipt = Receipt { topic: self.topic.clone(), member, join, place, acked: false };
        Some(Delivery { message, published_at, receipt: super::Receipt::Memory(receipt) })
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let mut log = self.topic.log();
        if log.position(self.member, self.join).is_some() {
            log.members.remove(&self.member);
        }
    }
}

/// Proof of one delivery, given back by acknowledging or by dropping it.
pub(super) struct Receipt {
    topic: Topic,
    member: Uuid,
    join: u64,
    place: u64,
    acked: bool,
}

impl Receipt {
    pub(super) fn ack(mut self) {
        self.acked = true;
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        let mut log = self.topic.log();
        let Some(position) = log.position(self.member, self.join) else { return };
        if self.acked {
            position.open.remove(&self.place);
            return;
        }
        position.again.push_back(self.place);
        drop(log);
        self.topic.0.grown.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock;

    #[tokio::test]
    async fn what_waits_to_be_read_is_bounded_and_none_of_it_is_dropped() {
        let keep = HistoryLimits { age: Duration::from_secs(3600), events: 1_000, bytes: 1 << 20 };
        let (small, large) = (1, 16 << 10);
        for (size, most) in [(small, MAX_BEHIND as usize), (large, (keep.bytes + MAX_BYTES) / large)] {
            let member = Topic::new(keep).member();
            let mut inbox = member.join(clock::now_micros());
            let message = |number: usize| {
                let data = format!("{number:size$}").into();
                Message { data, ..Message::default() }
            };
            let mut confirmed = 0;
            let refused = loop {
                match member.publish(message(confirmed)) {
                    Ok(()) => confirmed += 1,
                    Err(refused) => break refused,
                }
            };
            assert_eq!((confirmed, refused.cause), (most, Cause::Full));
            for number in 0..confirmed {
                let delivery = inbox.next().await;
                assert_eq!(delivery.message, message(number));
                delivery.ack();
            }
            member.publish(message(0)).expect("room again");
        }
    }
}
