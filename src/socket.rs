//! One WebSocket, from its greeting to its close: one task that reads, writes and keeps time.
//!
//! Reading goes through tungstenite, which knows the protocol. Writing goes past it, straight to
//! the TCP stream: frames are encoded already, all that waits goes out in one system call, and no
//! socket keeps a write buffer. The two never mix: tungstenite's own answers (pongs) are flushed
//! before anything of ours is written.

use std::future::pending;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use bytes::{Buf as _, Bytes};
use futures_util::{SinkExt as _, StreamExt as _};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::select;
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep, interval_at, sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use tracing::debug;

use crate::frame::Frame;
use crate::hub::Batch;
use crate::lifecycle::Presence;
use crate::relay::Member;
use crate::wire::{Close, CloseCode, ErrorCode, reply, request};

/// Room for reading. Most messages are small, and 20,000 sockets hold one each.
const READ_BUFFER: usize = 1024;

/// How long a socket that is to be closed may take to hear so.
const LINGER: Duration = Duration::from_secs(5);

/// A client that kept to the rate for so long has a clean record again.
const FORGIVEN_AFTER: Duration = Duration::from_secs(10);

/// What is read and dropped of a client that still talks after the close.
const LINGER_BYTES: usize = 1 << 20;

/// How a socket ended.
enum End {
    /// The client went, by a close of its own or without a word.
    Gone(&'static str),
    /// This side closes it, when the rest of what was begun is written.
    Close(Close, Batch),
}

impl From<Close> for End {
    fn from(close: Close) -> Self {
        Self::Close(close, Batch::default())
    }
}

/// Serves one socket until it ends. `early` is what the client sent before it was answered; `flooded`
/// is told when it is cut off for that.
///
/// What is needed only at the beginning and at the end is boxed: thousands of these futures spend
/// their time in the middle.
pub async fn serve(
    stream: TcpStream,
    early: Vec<u8>,
    member: Member,
    presence: Option<Presence>,
    greeting: Vec<Bytes>,
    flooded: impl FnOnce(),
) {
    let mut socket = Box::pin(Socket::open(stream, early, member)).await;
    let end = socket.run(greeting).await;
    let reason = match &end {
        End::Gone(how) => how,
        End::Close(close, _) => close.code.name(),
    };
    debug!(client_id = %socket.member.client_id, reason, "socket ended");
    socket.member.relay.metrics.closed(reason);
    if let Some(presence) = presence {
        presence.ended(reason);
    }
    if let End::Close(close, rest) = end {
        if close.code == CloseCode::Flooding {
            flooded();
        }
        // Nothing more for it while it lingers.
        let Socket { stream, member, .. } = socket;
        drop(member);
        let _ = timeout(LINGER, Box::pin(say_goodbye(stream, rest, &close))).await;
    }
}

struct Socket {
    stream: WebSocketStream<TcpStream>,
    member: Member,
    rate: DefaultDirectRateLimiter,
    /// Messages beyond the rate lately, and when the last one came.
    excess: u32,
    exceeded: Instant,
    /// When the client last gave a sign of life.
    heard: Instant,
    timer: Interval,
    /// The end of a visitor's time. Boxed: most have no end.
    expiry: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    async fn open(stream: TcpStream, early: Vec<u8>, member: Member) -> Self {
        let config = &member.relay.config;
        let limits = &config.limits;
        let protocol = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_message_size(Some(limits.message_bytes))
            .max_frame_size(Some(limits.message_bytes));
        let mut timer = interval_at(Instant::now() + config.ping_interval, config.ping_interval);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let quota = Quota::per_second(limits.messages.per_second).allow_burst(limits.messages.burst);
        Self {
            stream: WebSocketStream::from_partially_read(stream, early, Role::Server, Some(protocol)).await,
            rate: RateLimiter::direct(quota),
            excess: 0,
            exceeded: Instant::now(),
            heard: Instant::now(),
            timer,
            expiry: member.visitor.expires.map(|at| Box::pin(sleep(time_until(at)))),
            member,
        }
    }

    async fn run(&mut self, greeting: Vec<Bytes>) -> End {
        if let Err(end) = self.write(greeting.into()).await {
            return end;
        }
        loop {
            let done = select! {
                waiting = self.member.outbox.take() => match waiting {
                    Ok(batch) => self.write_counted(batch).await,
                    Err(close) => Err(close.into()),
                },
                message = self.stream.next() => self.read(message).await,
                _ = self.timer.tick() => match self.check_silence() {
                    Ok(()) => self.write(vec![Frame::ping().into_bytes()].into()).await,
                    end => end,
                },
                close = expired(&mut self.expiry) => Err(close.into()),
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    /// A socket that was not heard of for two intervals is gone, whatever TCP says.
    fn check_silence(&self) -> Result<(), End> {
        if self.heard.elapsed() >= 2 * self.timer.period() {
            return Err(Close::new(CloseCode::Idle, "no sign of life for two ping intervals").into());
        }
        Ok(())
    }

    async fn read(&mut self, message: Option<tungstenite::Result<Message>>) -> Result<(), End> {
        self.heard = Instant::now();
        let message = message.ok_or(End::Gone("gone"))?.map_err(failed)?;
        if let Message::Close(_) = message {
            // tungstenite has the answer ready; it reports the end when that is out.
            let _ = timeout(LINGER, self.stream.flush()).await;
            return Err(End::Gone("closed"));
        }
        // Pings too: each makes work.
        if self.rate.check().is_err() {
            return self.flooded(&message);
        }
        match message {
            Message::Text(text) => {
                self.member.relay.handle(&self.member, &text);
                Ok(())
            }
            Message::Binary(_) => Err(Close::new(CloseCode::Binary, "text frames of JSON only").into()),
            _ => self.flush().await,
        }
    }

    /// First a word, then, for one that goes on, the end.
    fn flooded(&mut self, message: &Message) -> Result<(), End> {
        if self.exceeded.elapsed() > FORGIVEN_AFTER {
            self.excess = 0;
        }
        self.exceeded = Instant::now();
        self.excess += 1;
        self.member.relay.metrics.rate_limited.inc();
        let limit = self.member.relay.config.limits.messages;
        if self.excess > limit.burst.get() {
            return Err(Close::new(CloseCode::Flooding, "too many messages").into());
        }
        let why = format!("more than {} messages a second; this one was dropped", limit.per_second);
        let wait = Duration::from_secs(1);
        let id = if let Message::Text(text) = message { request::id_of(text) } else { None };
        self.member.outbox.push(reply::error(ErrorCode::RateLimited, &why, id.as_deref(), Some(wait)));
        Ok(())
    }

    /// Lets out what tungstenite has to say, a pong mostly. A client that does not read is waited for
    /// as in [`Self::write`].
    async fn flush(&mut self) -> Result<(), End> {
        let patience = 2 * self.timer.period();
        select! {
            biased;
            flushed = timeout(patience, self.stream.flush()) => match flushed {
                Ok(flushed) => flushed.map_err(failed),
                Err(_) => Err(Close::new(CloseCode::Idle, "not reading").into()),
            },
            close = self.member.outbox.closing() => Err(close.into()),
            close = expired(&mut self.expiry) => Err(close.into()),
        }
    }

    /// Writes what came out of the outbox, and gives its room back.
    async fn write_counted(&mut self, batch: Batch) -> Result<(), End> {
        let (frames, bytes) = (batch.len(), batch.remaining());
        self.write(batch).await?;
        self.member.outbox.written(frames, bytes);
        Ok(())
    }

    /// Writes all of `batch`, joined. A client that does not read is waited for until its outbox
    /// overflows, or until it takes not one byte for two ping intervals.
    async fn write(&mut self, mut batch: Batch) -> Result<(), End> {
        self.flush().await?;
        let patience = 2 * self.timer.period();
        while batch.has_remaining() {
            let stream = self.stream.get_mut();
            select! {
                biased;
                written = timeout(patience, stream.write_buf(&mut batch)) => match written {
                    Ok(Ok(_)) => {}
                    Ok(Err(_)) => return Err(End::Gone("lost")),
                    Err(_) => return Err(End::Close(Close::new(CloseCode::Idle, "not reading"), batch)),
                },
                close = self.member.outbox.closing() => return Err(End::Close(close, batch)),
                close = expired(&mut self.expiry) => return Err(End::Close(close, batch)),
            }
        }
        Ok(())
    }
}

fn time_until(at: SystemTime) -> Duration {
    at.duration_since(SystemTime::now()).unwrap_or_default()
}

/// Waits for the end of a visitor's time, if it has one.
async fn expired(expiry: &mut Option<Pin<Box<Sleep>>>) -> Close {
    match expiry {
        Some(expiry) => expiry.await,
        None => pending().await,
    }
    Close::new(CloseCode::Expired, "token expired")
}

/// Ends what was begun, or the close would be read as part of it; sends the close; and waits for
/// the client's, so that no reset overtakes what was sent.
async fn say_goodbye(mut stream: WebSocketStream<TcpStream>, mut rest: Batch, close: &Close) {
    if !rest.has_remaining() {
        // Between frames only: tungstenite may have an answer of its own waiting.
        let _ = stream.flush().await;
    }
    let stream = stream.get_mut();
    let frame = Frame::close(close.code.number(), &close.reason);
    let said = async {
        stream.write_all_buf(&mut rest).await?;
        stream.write_all(frame.bytes()).await?;
        stream.shutdown().await
    };
    if said.await.is_err() {
        return;
    }
    let mut dropped = [0; 512];
    let mut left = LINGER_BYTES;
    while let Ok(count @ 1..) = stream.read(&mut dropped).await {
        left = left.saturating_sub(count);
        if left == 0 {
            return;
        }
    }
}

/// What a read error means for the socket.
fn failed(error: tungstenite::Error) -> End {
    use tungstenite::Error;
    use tungstenite::error::ProtocolError;
    match error {
        Error::Capacity(_) => Close::new(CloseCode::TooLarge, "message too large").into(),
        Error::Utf8(_) => Close::new(CloseCode::NotUtf8, "text must be UTF-8").into(),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => End::Gone("lost"),
        Error::Protocol(error) => {
            let reason: String = error.to_string().chars().filter(char::is_ascii).take(100).collect();
            Close::new(CloseCode::Protocol, reason).into()
        }
        Error::ConnectionClosed | Error::AlreadyClosed => End::Gone("closed"),
        _ => End::Gone("lost"),
    }
}
