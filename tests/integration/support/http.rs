//! The least of an HTTP client: one request, one connection, the whole answer.

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::vm::Vm;
use super::within;

/// The key by which the tests ask as an app's backend does.
pub const API_KEY: &str = "a-key-for-the-backend";

pub struct Answer {
    pub status: u16,
    pub headers: hyper::HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// It is a refusal, and says why.
    #[track_caller]
    pub fn assert_refused(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{}", self.text());
        let error = &self.json()["error"];
        assert_eq!(error["code"], code, "{error}");
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
}

pub async fn get(port: u16, path: &str) -> Answer {
    try_get(port, path).await.unwrap()
}

/// One of the figures at `/metrics`, by its name and labels; None where there is none (yet).
pub async fn figure(port: u16, name: &str) -> Option<u64> {
    let metrics = get(port, "/metrics").await;
    let value = metrics.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map(|value| value.parse().unwrap())
}

pub async fn get_with(port: u16, path: &str, headers: &[(&str, &str)]) -> Answer {
    request(port, "GET", path, headers, "").await.unwrap()
}

/// Asks as the backend does, unless `headers` bring a key of their own.
pub async fn ask(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let bearer = format!("Bearer {API_KEY}");
    let own = [("authorization", bearer.as_str())];
    let own = if headers.iter().any(|(name, _)| *name == "authorization") { &[] } else { &own[..] };
    request(port, method, path, &[headers, own].concat(), body).await.unwrap()
}

/// What asks for a WebSocket.
pub const HANDSHAKE: [(&str, &str); 4] = [
    ("upgrade", "websocket"),
    ("connection", "upgrade"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// Asks for a WebSocket, and leaves it at the answer.
pub async fn knock(vm: &Vm, path: &str, more: &[(&str, &str)]) -> Answer {
    get_with(vm.port, path, &[&HANDSHAKE, more].concat()).await
}

pub async fn try_get(port: u16, path: &str) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    request(port, "GET", path, &[], "").await
}

pub async fn request(
    port: u16,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let connected = TcpStream::connect(("127.0.0.1", port)).await?;
    request_over(connected, method, path, headers, body).await
}

/// The same over a connection that is there.
pub async fn request_over(
    stream: TcpStream,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    within("answer to an HTTP request", async {
        let host = stream.peer_addr()?.to_string();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let mut request = hyper::Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", host);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = sender.send_request(request.body(Full::new(Bytes::from(body.to_owned())))?).await?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await?.to_bytes();
        connection.abort();
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    })
    .await
}
