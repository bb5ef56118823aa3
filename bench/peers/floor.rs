//! The floor: what it costs to hand bytes to the kernel, and nothing else.
//!
//! One thread. What one read brings is encoded once and then written to each socket in a plain loop,
//! one system call per socket. A socket that can't take it at once is let go.

use std::io::{ErrorKind, Read as _, Result, Write as _};
use std::net::SocketAddr;

use bench::frame::{self, Frame};
use bench::words::{self, Request};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

const LISTENER: Token = Token(usize::MAX);

struct Socket {
    stream: TcpStream,
    name: String,
    upgraded: bool,
    /// The beginning of a request or frame whose end is still to come.
    begun: Vec<u8>,
}

fn main() -> Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let mut listener = listen()?;
    println!("listening on http://{}", listener.local_addr()?);
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut sockets: Vec<Option<Socket>> = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                accept(&listener, &poll, &mut sockets)?;
                continue;
            }
            let index = event.token().0;
            let Some(socket) = &mut sockets[index] else { continue };
            match socket.read(&mut buffer) {
                Some(heard) if heard.is_empty() => {}
                Some(heard) => write_to_all(&mut sockets, &heard),
                None => sockets[index] = None,
            }
        }
    }
}

/// With room for a burst: mio's own `bind` lets 128 wait.
fn listen() -> Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(TcpListener::from_std(socket.into()))
}

fn accept(listener: &TcpListener, poll: &Poll, sockets: &mut Vec<Option<Socket>>) -> Result<()> {
    loop {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.set_nodelay(true)?;
                poll.registry().register(&mut stream, Token(sockets.len()), Interest::READABLE)?;
                let name = words::client_id();
                sockets.push(Some(Socket { stream, name, upgraded: false, begun: Vec::new() }));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn write_to_all(sockets: &mut [Option<Socket>], frames: &[u8]) {
    for place in sockets {
        let Some(socket) = place else { continue };
        if socket.upgraded && !matches!(socket.stream.write(frames), Ok(written) if written == frames.len()) {
            *place = None;
        }
    }
}

impl Socket {
    /// Reads what there is and answers it; returns what all must hear. None when the socket is over.
    fn read(&mut self, buffer: &mut [u8]) -> Option<Vec<u8>> {
        let mut for_all = Vec::new();
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return None,
                Ok(count) => self.begun.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Some(for_all),
                Err(_) => return None,
            }
            if !self.upgraded {
                self.upgrade()?;
            }
            self.answer(&mut for_all)?;
        }
    }

    fn upgrade(&mut self) -> Option<()> {
        let head = std::str::from_utf8(&self.begun).ok()?;
        let Some(end) = head.find("\r\n\r\n") else { return Some(()) };
        let key = head[..end].lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim())
        })?;
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-accept: {}\r\n\r\n",
            derive_accept_key(key.as_bytes()),
        );
        self.stream.write_all(answer.as_bytes()).ok()?;
        self.begun.drain(..end + 4);
        self.upgraded = true;
        Some(())
    }

    fn answer(&mut self, for_all: &mut Vec<u8>) -> Option<()> {
        let mut done = 0;
        while self.upgraded
            && let Some(frame) = Frame::first(&self.begun[done..])
        {
            if frame.opcode == frame::CLOSE {
                return None;
            }
            match words::request(frame.unmasked(&mut self.begun[done..])) {
                Some(Request::Alert(data)) => {
                    let text = words::alert(&self.name, &data);
                    for_all.extend(frame::from_server(frame::TEXT, text.as_bytes()));
                }
                Some(Request::Ping) => {
                    self.stream.write_all(&frame::from_server(frame::TEXT, words::pong().as_bytes())).ok()?;
                }
                None => {}
            }
            done += frame.payload.end;
        }
        self.begun.drain(..done);
        Some(())
    }
}
