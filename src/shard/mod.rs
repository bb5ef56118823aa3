//! A part of this VM's sockets, and the one task that reads and writes them all.
//!
//! One event to many sockets is what this program is for, and its floor is one system call a socket.
//! So there is nothing else on that way: no task to wake, no lock, no queue and no allocation for each
//! socket. The event is put into the shard's `log` once, and a pass over the sockets writes to each
//! all that it has not been told yet. (One to a channel, or to a single socket, is a turn of its own for each
//! who hears it, at the same place in the order.) A pass goes in slices, between which others have their turn:
//! what comes meanwhile goes out with it to the sockets that it has not reached.
//!
//! There is a shard for each thread of the runtime; a socket stays in its own.

#[cfg(test)]
mod interleavings;
mod log;
mod mailbox;
mod queue;
mod socket;
mod sync;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet, VecDeque};
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use governor::clock::MonotonicClock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use indexmap::IndexMap;
use rustc_hash::FxBuildHasher;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::select;
use tokio::task::yield_now;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use self::log::Log;
pub use self::mailbox::{Audience, Command, Mailbox, Message, Notice, Outbox, SocketId};
use self::socket::{Read, Socket, Written};
use crate::admission::Place;
use crate::channel::Channel;
use crate::clock;
use crate::frame::Frame;
use crate::frame::reader::{Message as Said, Violation};
use crate::lifecycle::Presence;
use crate::logs::Address;
use crate::metrics::Stopwatch;
use crate::relay::{Member, Relay};
use crate::wire::{Close, CloseCode, ErrorCode, reply, request};

/// Steps of work between two looks at what else there is to do: a command done or a socket written is one, and
/// so is each message that was read, or so many turns that an event to a channel gives out, or bytes written.
const SLICE: usize = 128;
const TURNS_A_STEP: usize = 64;
const BYTES_A_STEP: usize = 16 << 10;

/// Turns that channels' events may give out before those with turns are written to. An event to a channel
/// is one for each member.
const TURNS: usize = 1 << 16;

/// Connections that are taken leave of at once: as many as a round finds to be over, at most.
const BURIED_AT_ONCE: usize = 3 * SLICE;

/// Sockets that time ends with one tick; the others are found again at the next.
const DUE_AT_ONCE: usize = 1 << 10;

/// Each pass begins elsewhere, by this part of the whole, so that the same sockets are not always last.
const GOLDEN: f64 = 0.618_033_988;

/// Bytes that are read of a socket at once; and how often before it is another one's turn.
const READ_BUFFER: usize = 16 << 10;
const READS: usize = 4;

/// A shard that always finds a new command waiting lets others on its thread go first after so many.
const ROUNDS_AT_ONCE: u64 = 64;

/// What may be kept of all sockets together, beside the log, because their clients do not take it, or do not
/// finish what they say. Beyond it those for whom most is kept are ended.
const MOST_KEPT: usize = 24 << 20;

/// Where such a part of that may have come since it was looked at, it is looked at again so soon; or, so that
/// looking is a small part of all work, after so many times as long as it took.
const MUCH: usize = 8;
const SOON: Duration = Duration::from_millis(5);
const SELDOM: u32 = 10;

/// Who took something so lately may be reading, though it has not read all: the later, the more likely. The
/// system takes some even for one that reads nothing, but only at first.
const TAKING: Duration = Duration::from_secs(1);

/// How finely time is kept.
const TICK: Duration = Duration::from_millis(100);

/// How long a socket that is to be closed may take to hear so, and its client to close in turn.
const LINGER: Duration = Duration::from_secs(5);

/// What is read and dropped of a client that still talks after the close.
const LINGER_BYTES: usize = 1 << 20;

/// A client that kept to the rate for so long has a clean record again.
const FORGIVEN_AFTER: Duration = Duration::from_secs(10);

/// A slow consumer that comes back at once would be slow again.
const SLOW_RETRY: Duration = Duration::from_secs(5);

/// Room for commands that is kept.
const KEPT: usize = 1_024;

/// A new socket.
pub struct Arrival {
    pub stream: TcpStream,
    /// To the request that it came by.
    pub answer: Bytes,
    /// What the client sent before it was answered.
    pub early: Vec<u8>,
    /// What it is to hear first: whole frames.
    pub greeting: Message,
    pub member: Member,
    pub presence: Option<Presence>,
    pub place: Place,
}

pub struct Shard {
    relay: Arc<Relay>,
    mailbox: Mailbox,
    commands: VecDeque<Command>,
    log: Log,
    // By a hash that is no defence, and need not be one: nobody chooses these ids.
    sockets: IndexMap<SocketId, Resident, FxBuildHasher>,
    channels: HashMap<Channel, HashSet<SocketId, FxBuildHasher>>,
    /// Those with turns of their own to write.
    listed: VecDeque<SocketId>,
    /// How many have left that list so far.
    delisted: u64,
    /// Turns given out by channels' events since nobody was listed.
    turns: usize,
    /// What is to be stopped when the log is told up to a place, and when so many have left the list.
    watches: VecDeque<(u64, u64, Stopwatch)>,
    /// Bytes that waited for sockets when time was last kept.
    unread: usize,
    /// When that was and how long it took, and the bytes that were said to single sockets, or of messages that
    /// they did not finish, since then.
    tended: Instant,
    tending: Duration,
    grown: usize,
    /// Steps of the slice under way.
    steps: usize,
    /// Those whose connection is found to be over.
    over: Vec<(SocketId, Over)>,
    pass: Pass,
    buffer: Vec<u8>,
    begun: Instant,
    /// The time, in ticks since then.
    now: u32,
    lingering: TaskTracker,
}

/// One way over all sockets.
#[derive(Default)]
struct Pass {
    /// Where it began, where it goes on, and how many are left.
    first: usize,
    next: usize,
    left: usize,
    /// The log's head when it began; up to where earlier ones came.
    goal: u64,
    done: u64,
    /// The place of the socket that is farthest behind, of those it has been to.
    lowest: u64,
}

impl Pass {
    fn begin(&mut self, sockets: usize, goal: u64) {
        // Truncated on purpose: it is a place to begin.
        self.first = (self.first + (GOLDEN * sockets as f64) as usize) % sockets.max(1);
        *self = Self { next: self.first, left: sockets, goal, lowest: goal, ..*self };
    }

    /// The next one's index.
    fn step(&mut self, sockets: usize) -> usize {
        let index = self.next % sockets;
        self.next = index + 1;
        self.left -= 1;
        index
    }
}

/// A socket and what belongs to it. Boxed: what the way of an event does not touch.
struct Resident {
    socket: Socket,
    home: Box<Home>,
}

struct Home {
    /// None once it is to close: nothing more is for it.
    member: Option<Member>,
    presence: Option<Presence>,
    place: Place,
    rate: Rate,
    /// Messages beyond the rate lately, and when the last one came.
    excess: u32,
    exceeded: Instant,
}

type Rate = RateLimiter<NotKeyed, InMemoryState, MonotonicClock, NoOpMiddleware<Instant>>;

/// How a connection is over.
#[derive(Clone, Copy)]
enum Over {
    /// Without a word.
    Lost,
    /// The close is written.
    Closed,
}

impl Shard {
    pub fn new(relay: Arc<Relay>, mailbox: Mailbox, lingering: TaskTracker) -> Self {
        Self {
            relay,
            mailbox,
            commands: VecDeque::new(),
            log: Log::new(),
            sockets: IndexMap::default(),
            channels: HashMap::new(),
            listed: VecDeque::new(),
            delisted: 0,
            turns: 0,
            watches: VecDeque::new(),
            unread: 0,
            tended: Instant::now(),
            tending: Duration::ZERO,
            grown: 0,
            steps: 0,
            over: Vec::new(),
            pass: Pass::default(),
            buffer: vec![0; READ_BUFFER],
            begun: Instant::now(),
            now: 0,
            lingering,
        }
    }

    /// Runs until `stop`, and then until its last socket is closed.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        for round in 1_u64.. {
            let may_wait = self.may_wait(round);
            select! {
                // The tick first, or one that is always busy would have none.
                biased;
                _ = tick.tick(), if !self.sockets.is_empty() || self.unread > 0 => self.tend(),
                () = yield_now(), if !may_wait => {}
                () = self.mailbox.filled(), if may_wait => {}
                () = stop.cancelled(), if may_wait && self.sockets.is_empty() => return,
            }
            self.round();
        }
    }

    /// Whether it need not go on at once. Where commands come without end there would be no wait: so others
    /// on this thread have their turn now and then all the same.
    fn may_wait(&self, round: u64) -> bool {
        self.is_idle() && !round.is_multiple_of(ROUNDS_AT_ONCE)
    }

    fn is_idle(&self) -> bool {
        self.commands.is_empty()
            && self.listed.is_empty()
            && self.over.is_empty()
            && self.pass.done == self.log.head()
    }

    fn round(&mut self) {
        self.look_at_the_clock();
        self.obey();
        self.write();
        if self.grown > self.most_kept() / MUCH && self.tended.elapsed() >= SOON.max(SELDOM * self.tending) {
            self.tend();
        }
        self.bury();
    }

    /// The hot path: writes to some of those who have something of their own, and to a slice of all.
    fn write(&mut self) {
        let limit = self.relay.config.limits.outbox_bytes;
        self.steps = 0;
        while self.steps < SLICE
            && let Some(id) = self.listed.pop_front()
        {
            self.delisted += 1;
            if let Some(index) = self.sockets.get_index_of(&id) {
                self.sockets[index].socket.is_listed = false;
                self.write_to(index, limit);
            }
        }
        let is_due = self.pass.done == self.pass.goal && self.pass.done < self.log.head();
        if is_due && self.over.len() < BURIED_AT_ONCE {
            self.pass.begin(self.sockets.len(), self.log.head());
        }
        self.steps = 0;
        while self.steps < SLICE && self.pass.left > 0 {
            let index = self.pass.step(self.sockets.len());
            self.write_to(index, limit);
            self.pass.lowest = self.pass.lowest.min(self.sockets[index].socket.place());
        }
        if self.pass.left == 0 && self.pass.done < self.pass.goal {
            self.mailbox.offered(self.pass.goal - self.pass.done);
            self.pass.done = self.pass.goal;
            self.log.forget(self.pass.lowest);
        }
        while let Some((place, turn, _)) = self.watches.front()
            && *place <= self.pass.done
            && *turn <= self.delisted
            && let Some((.., watch)) = self.watches.pop_front()
        {
            watch.stop();
        }
    }

    fn write_to(&mut self, index: usize, limit: usize) {
        self.steps += 1;
        let Some((id, Resident { socket, .. })) = self.sockets.get_index_mut(index) else { return };
        let (written, bytes) = socket.write(&self.log, self.now);
        self.steps += bytes / BYTES_A_STEP;
        match written {
            Written::All => {}
            Written::Blocked if socket.is_closing() => {
                if socket.holds(&self.log) > limit {
                    self.over.push((*id, Over::Lost));
                }
            }
            Written::Blocked if socket.lag(&self.log) <= limit => {}
            Written::Blocked => {
                let id = *id;
                self.close(id, &too_slow(), true);
            }
            Written::Ended => self.over.push((*id, Over::Closed)),
            Written::Lost => self.over.push((*id, Over::Lost)),
        }
    }

    fn obey(&mut self) {
        if self.commands.is_empty() {
            self.commands.shrink_to(KEPT);
            self.mailbox.take(&mut self.commands);
        }
        if self.listed.is_empty() {
            self.turns = 0;
        }
        self.steps = 0;
        while self.steps < SLICE
            && self.turns < TURNS
            && let Some(command) = self.commands.pop_front()
        {
            self.steps += 1;
            match command {
                Command::Join(id, arrival) => self.join(id, *arrival),
                Command::Tell(audience, frame) => self.tell(&audience, &frame),
                Command::Say(id, message) => self.say(id, message),
                Command::Enter(id, channel) => {
                    self.channels.entry(channel).or_default().insert(id);
                }
                Command::Exit(id, channel) => {
                    if let Some(members) = self.channels.get_mut(&channel) {
                        members.remove(&id);
                        if members.is_empty() {
                            self.channels.remove(&channel);
                        }
                    }
                }
                Command::Close(id, close) => self.close(id, &close, false),
                Command::Ready(id) => self.ready(id),
                Command::Time(watch) => {
                    let turns = self.delisted + self.listed.len() as u64;
                    self.watches.push_back((self.log.head(), turns, watch));
                }
            }
        }
    }

    /// An event for those it is for.
    fn tell(&mut self, audience: &Audience, frame: &Frame) {
        let Some(channel) = &audience.channel else {
            let from = self.log.head();
            self.log.push(frame.bytes());
            if let Some(resident) = audience.except.and_then(|id| self.sockets.get_mut(&id)) {
                resident.socket.skip(from, &self.log);
            }
            return;
        };
        let members = self.channels.get(channel).into_iter().flatten();
        let before = self.turns;
        for id in members.filter(|id| Some(**id) != audience.except) {
            let Some(Resident { socket, .. }) = self.sockets.get_mut(id) else { continue };
            socket.tell(&self.log, frame.bytes().clone());
            list(&mut self.listed, *id, socket);
            self.turns += 1;
        }
        self.steps += (self.turns - before) / TURNS_A_STEP;
        self.mailbox.offered(frame.bytes().len() as u64);
    }

    /// Something for one socket.
    fn say(&mut self, id: SocketId, message: Message) {
        let limit = self.relay.config.limits.outbox_bytes;
        self.grown += message.length();
        let Some(Resident { socket, .. }) = self.sockets.get_mut(&id) else { return };
        socket.say(&self.log, message, limit);
        list(&mut self.listed, id, socket);
    }

    fn join(&mut self, id: SocketId, arrival: Arrival) {
        let Arrival { stream, mut answer, early, mut greeting, member, presence, place } = arrival;
        // What is in one piece is short: with the answer it is one for the system too.
        if let [piece] = greeting.parts.as_mut_slice() {
            answer = [answer, mem::take(piece)].concat().into();
        }
        let config = &member.relay.config;
        let (now, limit) = (self.now, config.limits.outbox_bytes);
        let mut socket = Socket::new(stream, member.outbox.clone(), answer, &self.log, now);
        socket.ping_at = now + ticks(config.ping_interval);
        socket.expires_at = member.visitor.expires.map_or(u32::MAX, |at| now + ticks(time_until(at)));
        self.grown += greeting.length();
        socket.say(&self.log, greeting, limit);
        list(&mut self.listed, id, &mut socket);
        let messages = config.limits.messages;
        let quota = Quota::per_second(messages.per_second).allow_burst(messages.burst);
        let home = Home {
            rate: RateLimiter::direct_with_clock(quota, MonotonicClock),
            member: Some(member),
            presence,
            place,
            excess: 0,
            exceeded: self.begun,
        };
        self.sockets.insert(id, Resident { socket, home: Box::new(home) });
        if self.pass.left > 0 {
            // Its way round is longer by one.
            self.pass.left += 1;
        }
        if !early.is_empty() {
            self.hear(id, |socket, _, limit, said| socket.hear(&early, limit, said));
        }
        self.ready(id);
    }

    /// The system has something of the socket's to read, or takes its bytes again.
    fn ready(&mut self, id: SocketId) {
        let now = self.now;
        let Some(Resident { socket, .. }) = self.sockets.get_mut(&id) else { return };
        if socket.is_blocked {
            socket.is_blocked = false;
            list(&mut self.listed, id, socket);
            // One that does not take its answers is not listened to.
            let (written, bytes) = socket.write(&self.log, now);
            self.steps += bytes / BYTES_A_STEP;
            if written == Written::Blocked {
                return;
            }
            // It takes bytes again: that is a sign of life.
            socket.heard = now;
        }
        for _ in 0..READS {
            if !self.hear(id, Socket::read) {
                return;
            }
        }
        self.mailbox.send(Command::Ready(id));
    }

    /// Does what a client says; false when there is nothing more to be read for now.
    fn hear(
        &mut self,
        id: SocketId,
        read: impl FnOnce(&mut Socket, &mut [u8], usize, &mut Vec<Said>) -> Read,
    ) -> bool {
        let now = self.now;
        let Some(Resident { socket, home }) = self.sockets.get_mut(&id) else { return false };
        if socket.is_closing() {
            return false;
        }
        let limits = &self.relay.config.limits;
        let mut said = Vec::new();
        let before = socket.unfinished();
        let read = read(socket, &mut self.buffer, limits.message_bytes, &mut said);
        self.grown += socket.unfinished().saturating_sub(before);
        if !matches!(read, Read::All) {
            socket.heard = now;
        }
        self.steps += said.len();
        for message in said {
            let Some(member) = &home.member else { break };
            match message {
                Said::Close(code) => {
                    // Its own code back, as RFC 6455, 5.5.1, has it.
                    let frame = Frame::close(code, "");
                    self.end(id, frame, "closed", true);
                    return false;
                }
                // Pings, pongs and many fragments too: each makes work.
                _ if home.rate.check().is_err() => {
                    if !home.excuses(&message) {
                        home.place.flooded();
                        self.close(id, &Close::new(CloseCode::Flooding, "too many messages"), false);
                        return false;
                    }
                }
                Said::Text(text) => {
                    // A defect that one client's message finds is to be that client's alone.
                    let handled = catch_unwind(AssertUnwindSafe(|| self.relay.handle(member, &text)));
                    if handled.is_err() {
                        self.close(id, &Close::new(CloseCode::Defect, "this message found a defect"), false);
                        return false;
                    }
                }
                Said::Ping(payload) => {
                    socket.tell(&self.log, Frame::pong(&payload).into_bytes());
                    list(&mut self.listed, id, socket);
                }
                Said::Pong | Said::Fragment => {}
            }
        }
        match read {
            Read::All => false,
            Read::Some => true,
            Read::Ended => {
                // Behind the answers to what it asked, which wait in the mailbox.
                self.mailbox.send(Command::Close(id, Box::new(Close::new(CloseCode::Lost, ""))));
                false
            }
            Read::Lost => {
                self.over.push((id, Over::Lost));
                false
            }
            Read::Broken(violation) => {
                self.close(id, &violation.into(), false);
                false
            }
        }
    }

    /// Does what time asks for.
    fn tend(&mut self) {
        let begun = Instant::now();
        self.look_at_the_clock();
        let now = self.now;
        let interval = ticks(self.relay.config.ping_interval);
        let mut due = Vec::new();
        let ping = Frame::ping().into_bytes();
        self.grown = 0;
        let (mut unread, mut kept) = (0, 0);
        for (id, Resident { socket, .. }) in &mut self.sockets {
            unread += socket.unread(&self.log);
            kept += socket.keeps();
            if let Some(since) = socket.closing_since {
                if now - since.get().min(now) >= ticks(LINGER) {
                    self.over.push((*id, Over::Lost));
                }
            } else if due.len() < DUE_AT_ONCE
                && let Some(close) = socket.overdue(now, interval)
            {
                due.push((*id, close));
            } else if socket.ping_at <= now {
                socket.ping_at = now + interval;
                socket.tell(&self.log, ping.clone());
                list(&mut self.listed, *id, socket);
            }
        }
        for (id, close) in due {
            self.close(id, &close, true);
        }
        if kept > self.most_kept() {
            self.make_room();
        }
        self.relay.metrics.unread.inc_by(unread as i64 - self.unread as i64);
        self.unread = unread;
        self.tended = Instant::now();
        self.tending = self.tended - begun;
    }

    /// A newcomer may be told as much as the whole history, which is not to be too much by itself.
    fn most_kept(&self) -> usize {
        (MOST_KEPT / self.relay.shards.len()).max(2 * self.relay.config.history.bytes)
    }

    /// Ends those for whom most is kept, until there is room again: for more than one, or many small ones would
    /// stay and each newcomer be the one too many. Those who take what they are told, if not all at once, are
    /// the last: after those that keep more than an equal share the others, and among each the latest to take
    /// something at the end. What several are told goes with the last of them; where that is not enough, the
    /// next look ends more.
    fn make_room(&mut self) {
        // What several are told is there once, and each has a part of it.
        let mut holders: HashMap<usize, usize, FxBuildHasher> = HashMap::default();
        for (end, _) in self.sockets.values().flat_map(|resident| resident.socket.untaken()) {
            *holders.entry(end).or_insert(0) += 1;
        }
        let charge = |socket: &Socket| {
            let others =
                socket.untaken().map(|(end, length)| length - length / holders.get(&end).unwrap_or(&1));
            socket.keeps() - others.sum::<usize>()
        };
        let keeping = self.sockets.iter().filter(|(_, resident)| resident.socket.keeps() > 0);
        let lately = self.now.saturating_sub(ticks(TAKING));
        let took = |socket: &Socket| socket.took().unwrap_or(lately).max(lately);
        let kept = keeping.map(|(id, Resident { socket, .. })| (*id, charge(socket), took(socket)));
        let mut kept: Vec<_> = kept.collect();
        let most = self.most_kept();
        let mut sum = kept.iter().map(|(_, bytes, _)| bytes).sum::<usize>();
        if sum <= most {
            return;
        }
        let share = most / kept.len();
        kept.sort_by_key(|(_, bytes, took)| (*took > lately && *bytes <= share, *took, Reverse(*bytes)));
        for (id, bytes, _) in kept {
            if sum <= most / 4 * 3 {
                return;
            }
            sum -= bytes;
            self.close(id, &too_slow(), true);
            // A frame that is begun goes first, and one of what was missed may be as long as the history.
            if self.sockets.get(&id).is_some_and(|resident| charge(&resident.socket) > share) {
                self.over.push((id, Over::Lost));
            }
        }
    }

    fn close(&mut self, id: SocketId, close: &Close, is_urgent: bool) {
        let frame = Frame::close(Some(close.code.number()), &close.reason);
        self.end(id, frame, close.code.name(), is_urgent);
    }

    /// Begins to end a socket. The first reason stays.
    fn end(&mut self, id: SocketId, frame: Frame, reason: &'static str, is_urgent: bool) {
        let now = self.now;
        let Some(Resident { socket, home }) = self.sockets.get_mut(&id) else { return };
        if socket.is_closing() {
            return;
        }
        socket.end(&self.log, frame.into_bytes(), is_urgent, now);
        home.depart(reason);
        list(&mut self.listed, id, socket);
    }

    /// Takes leave of connections that are over. Between two passes: it changes others' indices.
    fn bury(&mut self) {
        if self.pass.left > 0 {
            return;
        }
        let count = self.over.len().min(BURIED_AT_ONCE);
        for (id, over) in self.over.drain(..count) {
            let Some(Resident { socket, mut home }) = self.sockets.swap_remove(&id) else { continue };
            home.depart("lost");
            if let Over::Closed = over {
                self.lingering.spawn(linger(socket.into_stream(), home.place));
            }
        }
    }

    /// Once a round: it is short beside a tick.
    fn look_at_the_clock(&mut self) {
        self.now = ticks(self.begun.elapsed());
    }
}

impl Home {
    /// It is no member any longer, for this reason.
    fn depart(&mut self, reason: &'static str) {
        let Some(member) = self.member.take() else { return };
        debug!(clientId = &*member.client_id, reason, address = %Address(self.place.address), "socket ended");
        member.relay.metrics.closed.inc(reason);
        if let Some(presence) = self.presence.take() {
            presence.ended(reason);
        }
    }

    /// Whether one that sends too much is only told so, this time still.
    fn excuses(&mut self, message: &Said) -> bool {
        let Some(member) = &self.member else { return false };
        if self.exceeded.elapsed() > FORGIVEN_AFTER {
            self.excess = 0;
        }
        self.exceeded = Instant::now();
        self.excess += 1;
        member.relay.metrics.rate_limited.inc();
        let limit = member.relay.config.limits.messages;
        if self.excess > limit.burst.get() {
            return false;
        }
        let what = if matches!(message, Said::Fragment) {
            "a message in many fragments counts as many"
        } else {
            "this one was dropped"
        };
        let why = format!("more than {} messages a second; {what}", limit.per_second);
        let wait = Duration::from_secs(1);
        let id = if let Said::Text(text) = message { request::id_of(text) } else { None };
        member.outbox.push(reply::error(ErrorCode::RateLimited, &why, id.as_deref(), Some(wait)));
        true
    }
}

impl From<Violation> for Close {
    fn from(violation: Violation) -> Self {
        match violation {
            Violation::Protocol(rule) => Self::new(CloseCode::Protocol, rule),
            Violation::Binary => Self::new(CloseCode::Binary, "text frames of JSON only"),
            Violation::TooLarge => Self::new(CloseCode::TooLarge, "message too large"),
            Violation::NotUtf8 => Self::new(CloseCode::NotUtf8, "text must be UTF-8"),
        }
    }
}

/// Puts a socket among those with turns of their own to write.
fn list(listed: &mut VecDeque<SocketId>, id: SocketId, socket: &mut Socket) {
    if !mem::replace(&mut socket.is_listed, true) {
        listed.push_back(id);
    }
}

/// Waits for the client's close, so that no reset overtakes what was sent.
async fn linger(mut stream: TcpStream, _place: Place) {
    let closing = async {
        stream.shutdown().await?;
        let mut dropped = [0; 512];
        let mut left = LINGER_BYTES;
        while left > 0 {
            match stream.read(&mut dropped).await? {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        std::io::Result::Ok(())
    };
    let _ = timeout(LINGER, closing).await;
}

/// Some years at most, so that a sum of them is none that has gone by.
fn ticks(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis().div_ceil(TICK.as_millis())).unwrap_or(u32::MAX).min(u32::MAX / 4)
}

/// It comes back, and is told by its cursor what it did not read.
fn too_slow() -> Close {
    let wait = SLOW_RETRY / 2 + clock::random_part(SLOW_RETRY / 2);
    Close::come_back(CloseCode::SlowConsumer, wait.as_millis())
}

fn time_until(at: SystemTime) -> Duration {
    at.duration_since(SystemTime::now()).unwrap_or_default()
}
