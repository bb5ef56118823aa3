//! A client of the wire: real sockets, real handshakes.

use std::io;
use std::net::SocketAddr;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::within;

/// A connected client that has been greeted.
pub struct Client {
    pub socket: WebSocketStream<TcpStream>,
    /// The first message.
    pub connected: Value,
    /// The second.
    pub refresh: Value,
}

impl Client {
    pub async fn connect(port: u16, path: &str) -> Self {
        Self::greeted(open(port, path).await.unwrap()).await
    }

    /// On an open socket, whose greeting is still to come.
    pub async fn greeted(mut socket: WebSocketStream<TcpStream>) -> Self {
        let connected = next(&mut socket).await;
        assert_eq!(connected["type"], "connected");
        let refresh = next(&mut socket).await;
        assert_eq!(refresh["type"], "refresh-store");
        Self { socket, connected, refresh }
    }

    pub fn id(&self) -> &str {
        self.connected["clientId"].as_str().unwrap()
    }

    pub async fn send(&mut self, message: Value) {
        self.send_text(&message.to_string()).await;
    }

    pub async fn send_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// The next message but for those that come at their own times: about the fleet, and receipts.
    pub async fn next(&mut self) -> Value {
        loop {
            let message = next(&mut self.socket).await;
            if message["type"] != "fleet" && message["type"] != "receipt" {
                return message;
            }
        }
    }

    /// The next message of a type, whatever comes before it.
    pub async fn expect(&mut self, kind: &str) -> Value {
        loop {
            let message = next(&mut self.socket).await;
            if message["type"] == kind {
                return message;
            }
        }
    }

    /// Presses the button and returns the event's id when it is confirmed.
    pub async fn alert(&mut self, data: Value) -> String {
        let id = uuid::Uuid::new_v4().to_string();
        self.send(json!({"type": "alert", "id": id, "data": data})).await;
        // The event itself may come first.
        loop {
            let message = next(&mut self.socket).await;
            assert_ne!(message["type"], "error", "{message}");
            if message["type"] == "ack" && message["id"] == id.as_str() {
                return message["eventId"].as_str().unwrap().to_owned();
            }
        }
    }

    /// All that came before the answer to a ping sent now, but for what comes at its own times.
    pub async fn settle(&mut self) -> Vec<Value> {
        self.send(json!({"type": "ping", "id": "settle"})).await;
        let mut seen = Vec::new();
        loop {
            let message = self.next().await;
            if message["type"] == "pong" && message["id"] == "settle" {
                return seen;
            }
            seen.push(message);
        }
    }

    /// Closes from this side, and waits for the end.
    pub async fn closed_by_us(mut self) {
        self.socket.close(None).await.unwrap();
        closed(&mut self.socket).await;
    }

    /// Reads to the end; the close code, if a close came.
    pub async fn closed(mut self) -> Option<(u16, String)> {
        closed(&mut self.socket).await
    }
}

/// The events' ids, in their order.
pub fn ids(messages: &[Value]) -> Vec<&str> {
    messages.iter().filter_map(|message| message["id"].as_str()).collect()
}

pub async fn open(port: u16, path: &str) -> Result<WebSocketStream<TcpStream>, Error> {
    open_over(TcpStream::connect(("127.0.0.1", port)).await?, path).await
}

/// A socket over a connection that is there.
pub async fn open_over(stream: TcpStream, path: &str) -> Result<WebSocketStream<TcpStream>, Error> {
    let url = format!("ws://{}{path}", stream.peer_addr()?);
    let (socket, _) = within("answer to a handshake", client_async(url, stream)).await?;
    Ok(socket)
}

/// A socket of a client at another address of this machine.
pub async fn open_from(source: &str, port: u16) -> Result<WebSocketStream<TcpStream>, Error> {
    let socket = TcpSocket::new_v4()?;
    // Thousands of ports that wait after their close would make the search for a free one slow, and the
    // flood with it.
    socket.set_zero_linger()?;
    socket.bind(SocketAddr::new(source.parse().unwrap(), 0))?;
    let stream = socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    Ok(client_async(format!("ws://127.0.0.1:{port}/ws"), stream).await?.0)
}

pub async fn next(socket: &mut WebSocketStream<TcpStream>) -> Value {
    within("message", async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).unwrap(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("expected a message, got {other:?}"),
            }
        }
    })
    .await
}

pub async fn closed(socket: &mut WebSocketStream<TcpStream>) -> Option<(u16, String)> {
    within("close", async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Close(Some(close)))) => {
                    return Some((close.code.into(), close.reason.to_string()));
                }
                Some(Ok(Message::Close(None))) | Some(Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    })
    .await
}

/// A connection on which the handshake is done, and then every byte is the test's own. Costs little, so
/// that thousands fit into a test.
pub struct Raw(pub BufReader<TcpStream>);

impl Raw {
    pub async fn connect(port: u16) -> Self {
        Self::open(port, "/ws").await.unwrap()
    }

    /// # Errors
    /// Nobody is there, or the answer is no.
    pub async fn open(port: u16, path: &str) -> io::Result<Self> {
        Self::over(TcpStream::connect(("127.0.0.1", port)).await?, path).await
    }

    /// The same over a connection that is there.
    ///
    /// # Errors
    /// As above.
    pub async fn over(stream: TcpStream, path: &str) -> io::Result<Self> {
        let mut stream = BufReader::with_capacity(4 << 10, stream);
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: vm\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(within("answer to a handshake", stream.read_u8()).await?);
        }
        if head.starts_with(b"HTTP/1.1 101 ") {
            return Ok(Self(stream));
        }
        Err(io::Error::other(String::from_utf8_lossy(&head).into_owned()))
    }

    /// Sends one frame as a client must: masked (with zeros, which leaves the payload readable).
    pub async fn frame(&mut self, first: u8, payload: &[u8]) {
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..126 => frame.push(0x80 | length as u8),
            length @ 126..=0xffff => {
                frame.push(0x80 | 126);
                frame.extend((length as u16).to_be_bytes());
            }
            length => {
                frame.push(0x80 | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(payload);
        self.0.write_all(&frame).await.unwrap();
    }

    /// The next frame: its kind and what is in it.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn next(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let (opcode, length) = self.head().await?;
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).await?;
        Ok((opcode, payload))
    }

    /// Reads the next frame without keeping it; its length.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn skip(&mut self) -> io::Result<usize> {
        let (_, length) = self.head().await?;
        let mut scratch = vec![0; 64 << 10];
        let mut left = length;
        while left > 0 {
            let room = left.min(scratch.len());
            match self.0.read(&mut scratch[..room]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => left -= count,
            }
        }
        Ok(length)
    }

    async fn head(&mut self) -> io::Result<(u8, usize)> {
        let opcode = self.0.read_u8().await? & 0x0f;
        let length = match self.0.read_u8().await? {
            126 => u64::from(self.0.read_u16().await?),
            127 => self.0.read_u64().await?,
            short => u64::from(short),
        };
        Ok((opcode, usize::try_from(length).unwrap()))
    }

    /// Reads frames up to a close; its code, if one came, where 1005 stands for none (RFC 6455, 7.1.5).
    pub async fn closed(&mut self) -> Option<u16> {
        within("close", async {
            loop {
                let (opcode, payload) = self.next().await.ok()?;
                if opcode == 8 {
                    return Some(payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code)));
                }
            }
        })
        .await
    }
}
