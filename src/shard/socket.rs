//! One WebSocket: a place in the shard's log, and its own turns, which deviate from that.
//!
//! What is for this socket alone stands at the place in the log where it came. Writing is one system
//! call for all that waits, straight to TCP. Nothing is kept for a socket that has been told all.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice};
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf as _, Bytes};
use socket2::SockRef;
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::net::TcpStream;

use super::log::Log;
use super::mailbox::{Message, Notice, Outbox};
use crate::frame::reader::{Message as Said, Reader, Violation};
use crate::wire::{Close, CloseCode};

/// What a waiting turn takes beside its bytes, so that many small ones are bounded too: a queue has room for
/// twice as many as it was made to hold.
const OVERHEAD: usize = 2 * size_of::<Turn>();

/// The place of a socket that needs nothing of the log any longer.
const BEYOND: u64 = u64::MAX;

/// Pieces that one system call writes.
const PIECES: usize = 32;

pub struct Socket {
    stream: TcpStream,
    /// What comes next of the log, or, where a turn stands there, after it.
    place: u64,
    /// In the order of their places.
    turns: VecDeque<Turn>,
    /// What the turns count for, and the bytes that they keep.
    own: usize,
    kept: usize,
    reader: Reader,
    waker: Waker,
    /// The system takes no more bytes for now.
    pub is_blocked: bool,
    /// It is on the shard's list of those with turns to write.
    pub is_listed: bool,
    /// When, by the shard's clock: it said something; bytes were taken last; it is to be pinged; its
    /// visitor's time is over; it began to close.
    pub heard: u32,
    pub moved: u32,
    pub ping_at: u32,
    pub expires_at: u32,
    pub closing_since: Option<NonZeroU32>,
}

/// Something of its own that a socket is told between what all are told.
struct Turn {
    /// Where in the log it stands, and where the log goes on after it.
    at: u64,
    resume: u64,
    bytes: Bytes,
    /// Some of its frame is written.
    is_begun: bool,
    /// Its frame goes on in the next turn.
    goes_on: bool,
    /// Nothing comes after it.
    is_last: bool,
    /// What it counts for, and how many bytes it had at first: all of them are kept until the last is written.
    cost: usize,
    length: usize,
    written: Option<Box<Notice>>,
}

/// How far writing came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    All,
    /// The shard hears when it can go on.
    Blocked,
    /// The last turn too.
    Ended,
    Lost,
}

/// What reading brought.
pub enum Read {
    /// All there was.
    All,
    /// There may be more.
    Some,
    Broken(Violation),
    /// Its client says nothing more.
    Ended,
    Lost,
}

impl Socket {
    /// A socket that hears what is put into `log` from here on. First comes the `answer` to its request,
    /// which is owed even if it is to be closed before.
    pub fn new(stream: TcpStream, outbox: Outbox, answer: Bytes, log: &Log, now: u32) -> Self {
        let answer = Turn { is_begun: true, ..Turn::new(log.head(), answer) };
        let mut socket = Self {
            stream,
            place: log.head(),
            turns: VecDeque::new(),
            own: 0,
            kept: 0,
            reader: Reader::default(),
            waker: Arc::new(outbox).into(),
            is_blocked: false,
            is_listed: false,
            heard: now,
            moved: now,
            ping_at: u32::MAX,
            expires_at: u32::MAX,
            closing_since: None,
        };
        socket.put(answer);
        socket
    }

    /// Writes all that it has not been told yet, as far as the system takes it; and how many bytes that were.
    pub fn write(&mut self, log: &Log, now: u32) -> (Written, usize) {
        if self.is_blocked {
            return (Written::Blocked, 0);
        }
        let mut bytes = 0;
        if self.turns.is_empty() {
            // The hot path. Past tokio's record of what is ready: one cache line less.
            let waiting = log.between(self.place, log.head());
            if waiting.is_empty() {
                return (Written::All, 0);
            }
            // What stands in the way, if something does, is met again.
            if let Ok(count) = SockRef::from(&self.stream).send(waiting) {
                self.place += count as u64;
                self.moved = now;
                bytes = count;
            }
            if self.place == log.head() {
                return (Written::All, bytes);
            }
        }
        let written = self.write_turns(log, now, &mut bytes);
        (written, bytes)
    }

    fn write_turns(&mut self, log: &Log, now: u32, bytes: &mut usize) -> Written {
        loop {
            if self.advance(0) {
                return Written::Ended;
            }
            let mut pieces = [IoSlice::new(&[]); PIECES];
            let count = self.gather(log, &mut pieces);
            let written = match &pieces[..count] {
                [] => {
                    // An idle socket keeps no queue.
                    self.turns = VecDeque::new();
                    return Written::All;
                }
                // Cheaper for the system than one of many.
                [piece] => self.stream.try_write(piece),
                pieces => self.stream.try_write_vectored(pieces),
            };
            match written {
                Ok(count) => {
                    self.moved = now;
                    *bytes += count;
                    if self.advance(count) {
                        return Written::Ended;
                    }
                }
                Err(error) if is_for_now(error.kind()) => {
                    match self.stream.poll_write_ready(&mut Context::from_waker(&self.waker)) {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(_)) => return Written::Lost,
                        Poll::Pending => {
                            self.is_blocked = true;
                            return Written::Blocked;
                        }
                    }
                }
                Err(_) => return Written::Lost,
            }
        }
    }

    /// What is to be written next, in order; how many pieces that is.
    fn gather<'a>(&'a self, log: &'a Log, pieces: &mut [IoSlice<'a>]) -> usize {
        let mut place = self.place;
        let mut count = 0;
        let mut add = |bytes: &'a [u8]| {
            if let Some(piece) = pieces.get_mut(count).filter(|_| !bytes.is_empty()) {
                *piece = IoSlice::new(bytes);
                count += 1;
            }
        };
        for turn in self.turns.iter().take(PIECES) {
            add(log.between(place, turn.at));
            add(&turn.bytes);
            place = turn.resume;
        }
        if self.turns.len() < PIECES && !self.turns.back().is_some_and(|turn| turn.is_last) {
            add(log.between(place, log.head()));
        }
        count
    }

    /// Goes on by `count` bytes that are written; true when that was the last.
    fn advance(&mut self, mut count: usize) -> bool {
        loop {
            match self.turns.front_mut() {
                Some(turn) if turn.at <= self.place => {
                    let written = count.min(turn.bytes.len());
                    turn.bytes.advance(written);
                    turn.is_begun |= written > 0;
                    count -= written;
                    if !turn.bytes.is_empty() {
                        return false;
                    }
                    self.place = turn.resume;
                    if turn.is_last {
                        return true;
                    }
                    self.own -= turn.cost;
                    self.kept -= turn.length;
                    if let Some(written) = turn.written.take() {
                        written.written();
                    }
                    let goes_on = turn.goes_on;
                    self.turns.pop_front();
                    if let Some(next) = self.turns.front_mut().filter(|_| goes_on) {
                        next.is_begun = true;
                    }
                }
                _ if count == 0 => return false,
                next => {
                    let until = next.map_or(u64::MAX, |turn| turn.at);
                    let step = (until - self.place).min(count as u64);
                    self.place += step;
                    count -= usize::try_from(step).unwrap_or(count);
                }
            }
        }
    }

    /// Puts in a frame.
    pub fn tell(&mut self, log: &Log, frame: Bytes) {
        if !self.is_closing() {
            self.put(Turn { cost: frame.len() + OVERHEAD, ..Turn::new(log.head(), frame) });
        }
    }

    /// The same for one in parts, or that somebody waits for; `limit` is what it may leave unread.
    pub fn say(&mut self, log: &Log, message: Message, limit: usize) {
        if self.is_closing() {
            return;
        }
        let Message { parts, is_refresh, mut written } = message;
        let at = log.head();
        let most = if is_refresh { limit / 2 / parts.len().max(1) } else { usize::MAX };
        let last = parts.len().saturating_sub(1);
        for (index, bytes) in parts.into_iter().enumerate() {
            let cost = (bytes.len() + OVERHEAD).min(most);
            let goes_on = index < last;
            let written = written.take_if(|_| !goes_on);
            self.put(Turn { goes_on, cost, written, ..Turn::new(at, bytes) });
        }
    }

    /// Leaves out what stands in the log from `from` on, the newest frame.
    pub fn skip(&mut self, from: u64, log: &Log) {
        if !self.is_closing() {
            self.put(Turn { resume: log.head(), ..Turn::new(from, Bytes::new()) });
        }
    }

    /// Ends it with `frame`: after all that waits, or, where it is `urgent`, after what is begun. Then it
    /// needs no more of the log.
    pub fn end(&mut self, log: &Log, frame: Bytes, is_urgent: bool, now: u32) {
        let mut at = log.head();
        if is_urgent {
            let is_begun = self.turns.front().is_some_and(|turn| turn.is_begun);
            let rest = self.turns.iter().take_while(|turn| turn.goes_on).count() + 1;
            self.turns.truncate(if is_begun { rest } else { 0 });
            self.turns.shrink_to_fit();
            let begun = log.between(self.place, log.frame_end(self.place));
            if !begun.is_empty() {
                self.turns.push_back(Turn::new(at, Bytes::copy_from_slice(begun)));
            }
            at = BEYOND;
            self.place = at;
            self.turns.iter_mut().for_each(|turn| (turn.at, turn.resume) = (at, at));
            self.own = self.turns.iter().map(|turn| turn.cost).sum();
            self.kept = self.turns.iter().map(|turn| turn.length).sum();
        }
        // Nothing more is heard of it.
        self.reader = Reader::default();
        self.put(Turn { is_last: true, ..Turn::new(at, frame) });
        self.closing_since = NonZeroU32::new(now.max(1));
    }

    /// Reads what is there, as far as `buffer` goes; puts what the client says into `said`.
    pub fn read(&mut self, buffer: &mut [u8], limit: usize, said: &mut Vec<Said>) -> Read {
        let mut bytes = ReadBuf::new(buffer);
        let mut context = Context::from_waker(&self.waker);
        match Pin::new(&mut self.stream).poll_read(&mut context, &mut bytes) {
            Poll::Pending => Read::All,
            Poll::Ready(Err(_)) => Read::Lost,
            Poll::Ready(Ok(())) if bytes.filled().is_empty() => Read::Ended,
            Poll::Ready(Ok(())) => self.hear(bytes.filled(), limit, said),
        }
    }

    /// Reads what is in `bytes` already.
    pub fn hear(&mut self, bytes: &[u8], limit: usize, said: &mut Vec<Said>) -> Read {
        match self.reader.read(bytes, limit, said) {
            Ok(()) => Read::Some,
            Err(violation) => Read::Broken(violation),
        }
    }

    /// Bytes that it has not taken yet.
    pub fn lag(&self, log: &Log) -> usize {
        self.holds(log).saturating_add(self.own)
    }

    /// Bytes that are kept for it, beside the log, because its client does not take them, or has not said the
    /// rest. What others are told too counts as if it were for this one alone.
    pub fn keeps(&self) -> usize {
        let untaken = if self.is_blocked { self.kept + self.turns.capacity() * size_of::<Turn>() } else { 0 };
        untaken + self.unfinished()
    }

    /// When it last took some of what it has to read, if there is more.
    pub fn took(&self) -> Option<u32> {
        self.is_blocked.then_some(self.moved)
    }

    /// Bytes that wait for it: of the log, and of its own.
    pub fn unread(&self, log: &Log) -> usize {
        self.holds(log).saturating_add(self.kept)
    }

    /// Why its time is over, if it is: its visitor's, or that for a sign of life, which is two intervals of pings.
    pub fn overdue(&self, now: u32, interval: u32) -> Option<Close> {
        if self.expires_at <= now {
            return Some(Close::new(CloseCode::Expired, "token expired"));
        }
        let (since, why) = if self.is_blocked {
            (self.moved, "not reading")
        } else {
            (self.heard, "no sign of life for two ping intervals")
        };
        (now - since >= 2 * interval).then(|| Close::new(CloseCode::Idle, why))
    }

    /// Bytes of a message of which there is more to come.
    pub fn unfinished(&self) -> usize {
        self.reader.kept()
    }

    /// The pieces that its client does not take: where each ends in memory, by which it is known among those
    /// of others, and its length.
    pub fn untaken(&self) -> impl Iterator<Item = (usize, usize)> {
        let turns = self.is_blocked.then_some(&self.turns).into_iter().flatten();
        turns.map(|turn| (turn.bytes.as_ptr_range().end.addr(), turn.length))
    }

    /// Bytes of the log that are kept for it.
    pub fn holds(&self, log: &Log) -> usize {
        usize::try_from(log.head().saturating_sub(self.place)).unwrap_or(usize::MAX)
    }

    fn put(&mut self, turn: Turn) {
        self.own += turn.cost;
        self.kept += turn.length;
        self.turns.push_back(turn);
    }

    /// How many turns wait.
    #[cfg(test)]
    pub fn turns(&self) -> usize {
        self.turns.len()
    }

    pub fn place(&self) -> u64 {
        self.place
    }

    pub fn is_closing(&self) -> bool {
        self.closing_since.is_some()
    }

    pub fn into_stream(self) -> TcpStream {
        self.stream
    }
}

impl Turn {
    fn new(at: u64, bytes: Bytes) -> Self {
        let length = bytes.len();
        Self {
            at,
            resume: at,
            bytes,
            is_begun: false,
            goes_on: false,
            is_last: false,
            cost: 0,
            length,
            written: None,
        }
    }
}

fn is_for_now(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
pub mod tests {
    use fastrand::Rng;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::{TcpListener, TcpSocket};
    use tokio::select;
    use tokio::sync::watch;

    use super::*;
    use crate::frame::Frame;
    use crate::shard::mailbox::{Command, Mailbox};

    /// A connection whose system takes little, and its client.
    pub async fn narrow() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpSocket::new_v4().unwrap();
        client.set_recv_buffer_size(4_096).unwrap();
        let client = client.connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(client, listener.accept());
        let (served, _) = accepted.unwrap();
        SockRef::from(&served).set_send_buffer_size(4_096).unwrap();
        (served, client.unwrap())
    }

    /// The shard's part: it hears when the system takes bytes again.
    fn wake(socket: &mut Socket, mailbox: &Mailbox) {
        let is_ready = mailbox.waiting().iter().any(|command| matches!(command, Command::Ready(_)));
        socket.is_blocked &= !is_ready;
    }

    fn read(client: &TcpStream, most: usize, heard: &mut Vec<u8>) {
        let mut buffer = vec![0; most];
        if let Ok(count) = client.try_read(&mut buffer) {
            heard.extend(&buffer[..count]);
        }
    }

    /// Random events, turns and skips, written and read in random pieces, until a close.
    async fn play(seed: u64) {
        let mut random = Rng::with_seed(seed);
        let (served, mut client) = narrow().await;
        let mailbox = Mailbox::default();
        let mut log = Log::new();
        log.push(b"before it came");
        let answer = Bytes::from_static(b"HTTP/1.1 101 Switching Protocols\r\n\r\n");
        let mut socket = Socket::new(served, Outbox::new(mailbox.clone()), answer.clone(), &log, 0);
        let mut expected = Vec::new();
        let mut heard = Vec::new();
        let mut notices = Vec::new();
        for number in 0..random.usize(..400) {
            let text =
                format!("{number},").repeat(random.usize(..=if number % 10 == 0 { 5_000 } else { 50 }));
            let frame = Frame::text(text.as_bytes()).into_bytes();
            match random.u8(..10) {
                0..3 => {
                    log.push(&frame);
                    expected.push(frame);
                }
                3 => {
                    let from = log.head();
                    log.push(&frame);
                    socket.skip(from, &log);
                }
                4 | 5 => {
                    // Many parts too, so that the system stops between two of them.
                    let size = frame.len() / random.usize(1..100) + 1;
                    let mut whole = frame.clone();
                    let count = frame.len().div_ceil(size);
                    let parts = (0..count).map(|_| whole.split_to(size.min(whole.len()))).collect();
                    let (notice, written) = watch::channel(false);
                    socket.say(
                        &log,
                        Message { parts, is_refresh: false, written: Some(Notice::Tell(notice).into()) },
                        0,
                    );
                    notices.push((expected.len(), written));
                    expected.push(frame);
                }
                6 | 7 => read(&client, random.usize(1..10_000), &mut heard),
                _ => {
                    let (written, _) = socket.write(&log, 0);
                    assert!(matches!(written, Written::All | Written::Blocked), "seed {seed}: {written:?}");
                }
            }
            log.forget(socket.place());
            tokio::task::yield_now().await;
            wake(&mut socket, &mailbox);
        }

        let is_urgent = random.bool();
        let close = Frame::close(Some(1012), "").into_bytes();
        socket.end(&log, close.clone(), is_urgent, 0);
        log.push(b"after it went");
        if is_urgent {
            assert_eq!(socket.holds(&log), 0, "seed {seed}");
            log.forget(log.head());
        }
        while socket.write(&log, 0).0 != Written::Ended {
            select! {
                () = mailbox.filled() => wake(&mut socket, &mailbox),
                readable = client.readable() => {
                    readable.unwrap();
                    read(&client, 10_000, &mut heard);
                }
            }
        }
        drop(socket);
        client.read_to_end(&mut heard).await.unwrap();

        let mut rest = heard.strip_prefix(&answer[..]).expect("the answer to its request");
        let whole = expected.iter().take_while(|frame| {
            let after = rest.strip_prefix(&frame[..]);
            rest = after.unwrap_or(rest);
            after.is_some()
        });
        let whole = whole.count();
        assert!(rest == close, "seed {seed}: {} bytes after {whole} frames", rest.len());
        assert!(is_urgent || whole == expected.len(), "seed {seed}: {whole} of {} frames", expected.len());
        for (index, written) in notices {
            assert_eq!(*written.borrow(), index < whole, "seed {seed}: whether {index} is written");
        }
    }

    #[tokio::test]
    async fn what_is_its_own_counts_until_it_is_written() {
        let (served, _client) = narrow().await;
        served.writable().await.unwrap();
        let mut log = Log::new();
        let mut socket = Socket::new(served, Outbox::new(Mailbox::default()), Bytes::new(), &log, 0);
        let part = Bytes::from_static(&[b'x'; 100]);
        let message = |is_refresh| Message { parts: vec![part.clone(); 3], is_refresh, written: None };
        socket.tell(&log, part.clone());
        assert_eq!(socket.lag(&log), 100 + OVERHEAD);
        socket.say(&log, message(false), 60);
        assert_eq!(socket.lag(&log), 4 * (100 + OVERHEAD));
        socket.say(&log, message(true), 60);
        assert_eq!(socket.lag(&log), 4 * (100 + OVERHEAD) + 30, "half the limit at most for a refresh");
        log.push(b"for all");
        assert_eq!(socket.lag(&log), 4 * (100 + OVERHEAD) + 37);
        assert_eq!((socket.write(&log, 0).0, socket.lag(&log)), (Written::All, 0));
    }

    #[tokio::test]
    async fn an_urgent_end_drops_what_is_not_begun() {
        let (served, mut client) = narrow().await;
        served.writable().await.unwrap();
        let log = Log::new();
        let mut socket = Socket::new(served, Outbox::new(Mailbox::default()), Bytes::new(), &log, 0);
        socket.tell(&log, Frame::text(b"waits").into_bytes());
        assert!(!socket.advance(0), "nothing of it is written");
        let close = Frame::close(Some(1008), "").into_bytes();
        socket.end(&log, close.clone(), true, 0);
        assert_eq!(socket.write(&log, 0).0, Written::Ended);
        drop(socket);
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, close);
    }

    #[tokio::test]
    async fn clients_get_whole_frames_in_their_order_and_then_the_close() {
        for seed in 0..200 {
            play(seed).await;
        }
    }
}
