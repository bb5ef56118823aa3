//! Many WebSockets in one thread, at a fraction of what a server spends on them.
//!
//! Readiness comes edge-triggered from one epoll; all reads go into one buffer. While something is
//! measured, the load never sleeps: a server then never pays for waking it.

mod dialect;
mod socket;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use mio::{Events, Interest, Poll, Token};

pub use dialect::{Dialect, Word};
use socket::Socket;

/// Nothing that is waited for takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connections begun between two looks at those that are under way.
const BATCH: usize = 32;

pub struct Load {
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    dialect: Dialect,
    sockets: Vec<Socket>,
}

/// One message that a socket has heard.
pub struct Heard<'a> {
    pub socket: usize,
    pub word: Word,
    pub text: &'a [u8],
    pub at: Instant,
}

impl Load {
    pub fn new(dialect: Dialect) -> Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(4096),
            buffer: vec![0; 256 << 10],
            dialect,
            sockets: Vec::new(),
        })
    }

    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Opens sockets until there are `count`, `at_once` of them on their way at a time; returns how long
    /// each took, from its connect to its being ready. One that is connected asks at once, as if each were a
    /// client of its own.
    pub fn connect(&mut self, address: SocketAddr, count: usize, at_once: usize) -> Result<Vec<Duration>> {
        let first = self.len();
        let mut took = Vec::with_capacity(count.saturating_sub(first));
        let mut begun = Vec::new();
        let started = Instant::now();
        while first + took.len() < count {
            let room = (count - self.len()).min(at_once - (begun.len() - took.len()));
            for _ in 0..room.min(BATCH) {
                let mut socket = Socket::connect(address)?;
                let both = Interest::READABLE | Interest::WRITABLE;
                self.poll.registry().register(&mut socket.stream, Token(self.len()), both)?;
                self.sockets.push(socket);
                begun.push(Instant::now());
            }
            if started.elapsed() > PATIENCE {
                bail!("only {} of {count} sockets are open after {PATIENCE:?}", first + took.len());
            }
            let wait = if room > BATCH { Duration::ZERO } else { Duration::from_millis(100) };
            self.turn(Some(wait), |heard| {
                if heard.word == Word::Ready {
                    took.push(heard.at - begun[heard.socket - first]);
                }
            })?;
        }
        Ok(took)
    }

    /// Lets one socket send what [`Dialect`] has made; all of it at once.
    pub fn send(&mut self, socket: usize, bytes: &[u8]) -> Result<()> {
        self.sockets[socket].write(bytes)
    }

    /// From here on nobody reads what comes to this socket.
    pub fn stop_reading(&mut self, socket: usize) -> Result<()> {
        let socket = &mut self.sockets[socket];
        socket.deaf = true;
        Ok(self.poll.registry().deregister(&mut socket.stream)?)
    }

    /// Its own port.
    pub fn port(&self, socket: usize) -> Result<u16> {
        Ok(self.sockets[socket].stream.local_addr()?.port())
    }

    /// Whether what comes to it is read.
    pub fn reads(&self, socket: usize) -> bool {
        !self.sockets[socket].deaf
    }

    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Reads what has come, after waiting for something up to `wait`; tells of each message.
    pub fn turn(&mut self, wait: Option<Duration>, mut tell: impl FnMut(Heard)) -> Result<()> {
        if let Err(error) = self.poll.poll(&mut self.events, wait)
            && error.kind() != std::io::ErrorKind::Interrupted
        {
            return Err(error.into());
        }
        for event in &self.events {
            let index = event.token().0;
            let socket = &mut self.sockets[index];
            let told = |word, text: &[u8], at| tell(Heard { socket: index, word, text, at });
            socket
                .ready(event, self.dialect, &mut self.buffer, told)
                .with_context(|| format!("socket {index} of {}", self.sockets.len()))?;
        }
        Ok(())
    }

    /// Reads until nothing has come for `quiet`.
    pub fn settle(&mut self, quiet: Duration) -> Result<()> {
        let started = Instant::now();
        let mut last = started;
        while last.elapsed() < quiet {
            if started.elapsed() > PATIENCE {
                bail!("the server does not fall silent");
            }
            self.turn(Some(quiet / 4), |_| last = Instant::now())?;
        }
        Ok(())
    }
}
