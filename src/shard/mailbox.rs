//! How the rest of the program speaks to a shard: commands, done in the order in which they came.
//!
//! A socket's place in that order is its place among events. So whoever holds the relay's lock
//! decides it, with a push to a queue for each shard, however many sockets there are.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Wake;

use bytes::Bytes;
use tokio::sync::watch;

use super::Arrival;
use super::queue::Queue;
use crate::channel::Channel;
use crate::frame::Frame;
use crate::metrics::Stopwatch;
use crate::wire::Close;

/// Parts that are no more together are copied into one: that costs less than many pieces cost the system.
const SMALL: usize = 4 << 10;

/// What a shard is to do.
pub enum Command {
    Join(SocketId, Box<Arrival>),
    Tell(Audience, Frame),
    Say(SocketId, Message),
    Enter(SocketId, Channel),
    Exit(SocketId, Channel),
    Close(SocketId, Box<Close>),
    /// The system has something for the socket, or room for its bytes.
    Ready(SocketId),
    /// To be stopped when all that was told so far is written.
    Time(Stopwatch),
}

/// Who of a shard hears of an event.
pub struct Audience {
    /// None: all.
    pub channel: Option<Channel>,
    pub except: Option<SocketId>,
}

/// Something for one socket alone.
#[derive(Default)]
pub struct Message {
    /// One frame, in one or more parts; a new socket's first frames.
    pub parts: Vec<Bytes>,
    /// However long it is, it is taken when little else waits.
    pub is_refresh: bool,
    /// Boxed: few have one, and a socket's turn is to stay small.
    pub written: Option<Box<Notice>>,
}

impl Message {
    /// In bytes.
    pub fn length(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    /// What a socket missed, perhaps among other frames; `asked` is when it asked for it. However long
    /// it is, it is taken when little else waits: what a channel holds is not the reader's fault.
    pub fn refresh(mut parts: Vec<Bytes>, asked: Stopwatch) -> Self {
        if parts.iter().map(Bytes::len).sum::<usize>() <= SMALL {
            parts = vec![parts.concat().into()];
        }
        Self { parts, is_refresh: true, written: Some(Notice::Time(asked).into()) }
    }
}

impl From<Frame> for Message {
    fn from(frame: Frame) -> Self {
        Self { parts: vec![frame.into_bytes()], is_refresh: false, written: None }
    }
}

/// What is to happen when a frame is written; dropped before, it never will.
pub enum Notice {
    /// It becomes true.
    Tell(watch::Sender<bool>),
    /// It is stopped.
    Time(Stopwatch),
}

impl Notice {
    pub(super) fn written(self) {
        match self {
            Self::Tell(waiting) => {
                waiting.send_replace(true);
            }
            Self::Time(watch) => watch.stop(),
        }
    }
}

/// A socket of this process, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId(u64);

impl SocketId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A shard, as others know it. Cheap to clone.
///
/// What waits in it is bounded by those who fill it: events by [`Mailbox::room`], what is said to one
/// socket by that socket's rate, the publications under way, the receipts awaited and the asks under way,
/// those who join by their number, and what the system tells of a socket by what there is to tell: it may
/// be read, or written to.
#[derive(Clone, Default)]
pub struct Mailbox(Arc<Queue<Command>>);

impl Mailbox {
    pub fn tell(&self, channel: Option<Channel>, except: Option<SocketId>, frame: Frame) {
        let bytes = frame.bytes().len() as u64;
        self.0.push_event(Command::Tell(Audience { channel, except }, frame), bytes);
    }

    pub fn send(&self, command: Command) {
        self.0.push(command);
    }

    /// Waits until less than `most` bytes of events wait in the shard. Cancel-safe; for one task, who hands
    /// events out.
    pub async fn room(&self, most: u64) {
        self.0.room(most).await;
    }

    /// All commands so far, into `commands`, which is empty and gives its room back.
    pub(super) fn take(&self, commands: &mut VecDeque<Command>) {
        self.0.take(commands);
    }

    /// Waits for commands. Cancel-safe; for one task, the shard.
    pub(super) async fn filled(&self) {
        self.0.filled().await;
    }

    /// Every socket was offered `bytes` more of the events.
    pub(super) fn offered(&self, bytes: u64) {
        self.0.offered(bytes);
    }

    /// All commands so far, for tests that are a shard themselves.
    #[cfg(test)]
    pub fn waiting(&self) -> Vec<Command> {
        let mut commands = VecDeque::new();
        self.take(&mut commands);
        self.offered(self.0.behind());
        commands.into()
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What waits to be written to one socket, as others know it. Cheap to clone; what is put in when the
/// socket is gone is dropped.
#[derive(Clone)]
pub struct Outbox {
    pub mailbox: Mailbox,
    pub id: SocketId,
}

impl Outbox {
    pub fn new(mailbox: Mailbox) -> Self {
        Self { mailbox, id: SocketId::next() }
    }

    pub fn push(&self, message: impl Into<Message>) {
        self.mailbox.send(Command::Say(self.id, message.into()));
    }

    /// The same, for one who wants to know when it is written.
    pub fn push_noticed(&self, frame: Frame, written: watch::Sender<bool>) {
        self.push(Message { written: Some(Notice::Tell(written).into()), ..frame.into() });
    }

    /// Ends the socket after what waits. The first reason stays.
    pub fn close(&self, close: Close) {
        self.mailbox.send(Command::Close(self.id, Box::new(close)));
    }
}

/// The system wakes it when the socket has something to read, or room to write.
impl Wake for Outbox {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.mailbox.send(Command::Ready(self.id));
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::histogram::Histogram;

    use super::*;

    #[test]
    fn small_parts_are_one_and_large_ones_are_not_copied() {
        let histogram = Histogram::new([]);
        for (length, parts) in [(SMALL / 2, 1), (SMALL / 2 + 1, 2)] {
            let told = vec![Bytes::from(vec![b'x'; length]); 2];
            let message = Message::refresh(told, Stopwatch::since(0, &histogram));
            assert_eq!((message.length(), message.parts.len()), (2 * length, parts));
        }
    }
}
