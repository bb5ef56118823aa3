//! What carries events between VMs, behind one contract that both kinds keep:
//!
//! - what is published is delivered to every member, the publisher too, at least once;
//! - a delivery that is not acknowledged comes again;
//! - a member that joins, or seeks, hears again what the topic still holds since a time, so that a
//!   newborn knows what the others know, and one that comes back misses nothing;
//! - `publish` says yes only when the message is kept for certain.
//!
//! The contract is told by the tests in `tests/integration/bus.rs`, which run against both. The
//! set is ours and closed, so it is an enum and needs no trait objects.

pub mod memory;
pub mod pubsub;
#[cfg(test)]
pub mod stormy;

use std::fmt;
use std::future::{Future, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::Either;

pub use self::pubsub::Outlet;
use crate::traces::Parent;

/// A VM's access to the topic. Cheap to clone.
#[derive(Clone)]
pub enum Bus {
    Memory(memory::Member),
    PubSub(pubsub::PubSub),
    #[cfg(test)]
    Stormy(stormy::Member),
}

/// What is put on the topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    pub data: Bytes,
    /// The one VM that this is for; others need not be burdened with it. None: for all.
    pub to: Option<String>,
    pub trace: Parent,
}

/// How to come (back) to the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// Take up what this VM had, if it had any.
    Resume,
    /// The subscription was found to be gone: make it again. What the topic says of one that it has only just made
    /// may be wrong, so one that is there is kept.
    Again,
    /// The path was found dead: make the subscription and its connection anew.
    Afresh,
}

/// A message as it came from the topic. Dropped without [`Delivery::ack`], it comes again.
pub struct Delivery {
    pub message: Message,
    /// When the topic took it, in µs since the epoch by the topic's clock: the same on every VM.
    pub published_at: i64,
    receipt: Receipt,
}

enum Receipt {
    Memory(memory::Receipt),
    PubSub(pubsub::Receipt),
    #[cfg(test)]
    Stormy(stormy::Receipt),
}

/// The stream of deliveries of one join.
pub enum Inbox {
    Memory(memory::Inbox),
    PubSub(Box<pubsub::Inbox>),
    #[cfg(test)]
    Stormy(stormy::Inbox),
}

/// Why the topic did not do what was asked, for the log and for `/health`.
#[derive(Clone, Debug)]
pub struct BusError {
    why: String,
    pub cause: Cause,
}

/// The kind of reason, for metrics: each wants something else done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Too much waits here already.
    Full,
    NoAnswer,
    /// This VM may not.
    Denied,
    /// There is no such topic, or the subscription is gone.
    Missing,
    Quota,
    /// This VM leaves.
    Leaving,
    Other,
}

impl BusError {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), cause: Cause::Other }
    }

    pub(crate) fn because(self, cause: Cause) -> Self {
        Self { cause, ..self }
    }
}

impl Cause {
    pub const NAMES: [&str; 7] = ["full", "no_answer", "denied", "missing", "quota", "leaving", "other"];

    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for BusError {}

impl Bus {
    /// The kind, as `/status` tells it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Memory(_) => "memory",
            Self::PubSub(_) => "pubsub",
            #[cfg(test)]
            Self::Stormy(_) => "stormy",
        }
    }

    /// Which topic this is. A place in one topic's stream means nothing in another's.
    pub fn tag(&self) -> u32 {
        match self {
            Self::Memory(bus) => bus.tag(),
            Self::PubSub(bus) => bus.tag(),
            #[cfg(test)]
            Self::Stormy(_) => stormy::TAG,
        }
    }

    /// Becomes a member who hears what was published since `since` (µs by the topic's clock), and on;
    /// returns when messages can come.
    ///
    /// # Errors
    /// The topic can't be reached, or refuses. Try again later.
    pub async fn join(&self, how: Join, since: i64) -> Result<Inbox, BusError> {
        match self {
            Self::Memory(bus) => Ok(Inbox::Memory(bus.join(since))),
            Self::PubSub(bus) => bus.join(how, since).await.map(Box::new).map(Inbox::PubSub),
            #[cfg(test)]
            Self::Stormy(bus) => bus.join(how, since).await.map(Inbox::Stormy),
        }
    }

    /// Publishes over a new connection from now on, where there are connections.
    ///
    /// # Errors
    /// There is something wrong with the credentials, which may pass.
    pub async fn reconnect(&self) -> Result<(), BusError> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::PubSub(bus) => bus.reconnect().await,
            #[cfg(test)]
            Self::Stormy(bus) => {
                bus.reconnect();
                Ok(())
            }
        }
    }

    /// Lets this member, while it stays one, hear again what was published since `since` (µs).
    ///
    /// # Errors
    /// The topic can't be reached, or refuses.
    pub async fn seek(&self, since: i64) -> Result<(), BusError> {
        match self {
            Self::Memory(bus) => bus.seek(since),
            Self::PubSub(bus) => bus.seek(since).await,
            #[cfg(test)]
            Self::Stormy(bus) => bus.seek(since).await,
        }
    }

    /// After a join, so long without an old message means that all of them came.
    pub fn quiet(&self) -> Duration {
        match self {
            // Its messages come in order: when an own one comes, those before it have.
            Self::Memory(_) => Duration::ZERO,
            Self::PubSub(_) => Duration::from_millis(300),
            #[cfg(test)]
            Self::Stormy(_) => Duration::from_millis(300),
        }
    }

    /// Whether what is published after a join may come before what the join is to bring.
    pub fn brings_the_past_late(&self) -> bool {
        !matches!(self, Self::Memory(_))
    }

    /// Up to where (µs) this VM can't hear what was before it, since the topic has not kept that; told once, as
    /// soon as it is known.
    pub fn forgotten(&self) -> Option<i64> {
        match self {
            Self::Memory(_) => None,
            Self::PubSub(bus) => bus.forgotten(),
            #[cfg(test)]
            Self::Stormy(bus) => bus.forgotten(),
        }
    }

    /// Sends `message`; the future is ready when the topic has it for certain.
    ///
    /// The message is under way when this returns, so that calls keep their order and a future
    /// that is dropped takes nothing back.
    ///
    /// # Errors
    /// The topic did not confirm this one try; it may have the message all the same.
    pub fn publish(&self, message: Message) -> impl Future<Output = Result<(), BusError>> + Send + use<> {
        match self {
            Self::Memory(bus) => Either::Left(ready(bus.publish(message))),
            #[cfg(not(test))]
            Self::PubSub(bus) => Either::Right(bus.publish(message)),
            #[cfg(test)]
            Self::PubSub(bus) => Either::Right(Either::Left(bus.publish(message))),
            #[cfg(test)]
            Self::Stormy(bus) => Either::Right(Either::Right(bus.publish(message))),
        }
    }

    /// A further topic of the same service, made where it is missing.
    ///
    /// # Errors
    /// The service can't be reached, or the bus has no other topics.
    pub async fn outlet(&self, topic: &str) -> Result<Outlet, BusError> {
        match self {
            Self::PubSub(bus) => bus.outlet(topic).await,
            _ => Err(BusError::new("this bus has no other topics")),
        }
    }

    /// Ends the membership and leaves nothing behind on the topic.
    ///
    /// # Errors
    /// The topic can't be reached, or refuses.
    pub async fn leave(&self) -> Result<(), BusError> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::PubSub(bus) => bus.leave().await,
            #[cfg(test)]
            Self::Stormy(bus) => bus.leave().await,
        }
    }
}

impl Inbox {
    /// Why what was asked for of before the join will not come, if it will not.
    pub fn not_sought(&self) -> Option<&BusError> {
        match self {
            Self::Memory(_) => None,
            Self::PubSub(inbox) => inbox.not_sought.as_ref(),
            #[cfg(test)]
            Self::Stormy(inbox) => inbox.not_sought.as_ref(),
        }
    }

    /// How long after the join messages may still stay away that went to a process of before, which ended
    /// without giving them back; None where nobody was a member under this VM's name before.
    pub fn withheld(&self) -> Option<Duration> {
        match self {
            Self::PubSub(inbox) => inbox.withheld,
            #[cfg(test)]
            Self::Stormy(inbox) => inbox.withheld(),
            Self::Memory(_) => None,
        }
    }

    /// The next delivery. Not to be dropped before it is ready, but to go on: on Pub/Sub, opening
    /// the stream is a part of it.
    ///
    /// # Errors
    /// The membership is over: join again.
    pub async fn next(&mut self) -> Result<Delivery, BusError> {
        match self {
            Self::Memory(inbox) => Ok(inbox.next().await),
            Self::PubSub(inbox) => inbox.next().await,
            #[cfg(test)]
            Self::Stormy(inbox) => inbox.next().await,
        }
    }
}

impl Delivery {
    /// Tells the topic that this VM has it.
    pub fn ack(self) {
        match self.receipt {
            Receipt::Memory(receipt) => receipt.ack(),
            Receipt::PubSub(receipt) => receipt.ack(),
            #[cfg(test)]
            Receipt::Stormy(receipt) => receipt.ack(),
        }
    }
}
