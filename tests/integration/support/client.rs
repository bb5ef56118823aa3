//! A client of the wire: real sockets, real handshakes.

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error, Message};

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
        let mut socket = open(port, path).await.unwrap();
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

    /// The next message that is not about the fleet, which comes at its own times.
    pub async fn next(&mut self) -> Value {
        loop {
            let message = next(&mut self.socket).await;
            if message["type"] != "fleet" {
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

    /// All that came before the answer to a ping sent now, but for the fleet's news.
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

    /// Reads to the end; the close code, if a close came.
    pub async fn closed(mut self) -> Option<(u16, String)> {
        closed(&mut self.socket).await
    }
}

pub async fn open(port: u16, path: &str) -> Result<WebSocketStream<TcpStream>, Error> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let url = format!("ws://127.0.0.1:{port}{path}");
    let (socket, _) = within("answer to a handshake", tokio_tungstenite::client_async(url, stream)).await?;
    Ok(socket)
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

/// A connection on which the handshake is done, and then every byte is the test's own.
pub struct Raw(pub TcpStream);

impl Raw {
    pub async fn connect(port: u16) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(within("answer to a handshake", stream.read_u8()).await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        Self(stream)
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

    /// Reads frames up to a close; its code, if one came.
    pub async fn closed(&mut self) -> Option<u16> {
        within("close", async {
            loop {
                let opcode = self.0.read_u8().await.ok()? & 0x0f;
                let length = match self.0.read_u8().await.ok()? {
                    126 => u64::from(self.0.read_u16().await.ok()?),
                    127 => self.0.read_u64().await.ok()?,
                    short => u64::from(short),
                };
                let mut payload = vec![0; usize::try_from(length).unwrap()];
                self.0.read_exact(&mut payload).await.ok()?;
                if opcode == 8 {
                    return Some(u16::from_be_bytes([payload[0], payload[1]]));
                }
            }
        })
        .await
    }
}
