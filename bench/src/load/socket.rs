//! One WebSocket of the load: its upgrade, and its frames as they come.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use bench::frame::{self, Frame};
use mio::event::Event;
use mio::net::TcpStream;

use super::{Dialect, Word};

pub struct Socket {
    pub stream: TcpStream,
    pub deaf: bool,
    state: State,
    /// The beginning of an answer or frame whose end is still to come.
    begun: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Connecting,
    Upgrading,
    Open,
}

impl Socket {
    pub fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        Ok(Self { stream, deaf: false, state: State::Connecting, begun: Vec::new() })
    }

    /// Writes all of `bytes`; they are few, so that a server that does not take them does not read.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.stream.write(bytes)?;
        ensure!(written == bytes.len(), "the server does not read");
        Ok(())
    }

    /// Goes on with what epoll says is possible, and tells of each message that is whole.
    pub fn ready(
        &mut self,
        event: &Event,
        dialect: Dialect,
        buffer: &mut [u8],
        mut tell: impl FnMut(Word, &[u8], Instant),
    ) -> Result<()> {
        if self.state == State::Connecting && event.is_writable() {
            self.stream.set_nodelay(true)?;
            self.ask(dialect)?;
        }
        loop {
            let count = match self.stream.read(buffer) {
                Ok(0) => bail!("the server has closed it"),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let at = Instant::now();
            if self.begun.is_empty() {
                let done = self.take(&mut buffer[..count], dialect, at, &mut tell)?;
                self.begun.extend_from_slice(&buffer[done..count]);
            } else {
                let mut begun = std::mem::take(&mut self.begun);
                begun.extend_from_slice(&buffer[..count]);
                let done = self.take(&mut begun, dialect, at, &mut tell)?;
                begun.drain(..done);
                self.begun = begun;
            }
            // A short read has emptied it: what comes after is a new edge.
            if count < buffer.len() {
                return Ok(());
            }
        }
    }

    fn ask(&mut self, dialect: Dialect) -> Result<()> {
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            dialect.path(),
        );
        self.state = State::Upgrading;
        self.write(request.as_bytes())
    }

    /// Takes what is whole; returns how much that was.
    fn take(
        &mut self,
        bytes: &mut [u8],
        dialect: Dialect,
        at: Instant,
        tell: &mut impl FnMut(Word, &[u8], Instant),
    ) -> Result<usize> {
        let mut done = 0;
        if self.state == State::Upgrading {
            let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(0) };
            let head = String::from_utf8_lossy(&bytes[..end]);
            ensure!(head.starts_with("HTTP/1.1 101 "), "refused: {head}");
            self.state = State::Open;
            if !dialect.greets() {
                tell(Word::Ready, b"", at);
            }
            done = end + 4;
        }
        while let Some(frame) = Frame::first(&bytes[done..]) {
            let payload = &bytes[done..][frame.payload.clone()];
            match frame.opcode {
                frame::TEXT => {
                    if let Some(answer) = dialect.answer(payload) {
                        self.write(&frame::from_client(frame::TEXT, answer.as_bytes()))?;
                    }
                    tell(dialect.word(payload), payload, at);
                }
                frame::PING => self.write(&frame::from_client(frame::PONG, payload))?,
                frame::CLOSE => bail!("the server has closed it: {}", String::from_utf8_lossy(payload)),
                _ => {}
            }
            done += frame.payload.end;
        }
        Ok(done)
    }
}
