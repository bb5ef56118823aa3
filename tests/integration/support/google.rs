//! Google's side of an exchange of tokens: real HTTPS behind a real proxy, by which the program's own
//! addresses of Google lead here. Nothing leaves this machine.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::HOST;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::JoinHandle;

use super::certificate::Certificate;

/// What answers a request by its host and path, and its body.
type Answer = dyn Fn(&str, &str, &str) -> (StatusCode, String) + Send + Sync;

/// One request.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Host and path.
    pub what: String,
    pub headers: HeaderMap,
    pub body: String,
}

/// A server that remembers what it was asked.
struct Server {
    answer: Box<Answer>,
    asked: Mutex<Vec<Asked>>,
}

impl Server {
    fn new(answer: impl Fn(&str, &str, &str) -> (StatusCode, String) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { answer: Box::new(answer), asked: Mutex::default() })
    }

    async fn serve(self: Arc<Self>, stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
        let service = service_fn(|request: Request<Incoming>| {
            let server = Arc::clone(&self);
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let body = String::from_utf8(body.to_vec()).unwrap();
                let host = head.headers[HOST].to_str().unwrap().to_owned();
                let (status, said) = (server.answer)(&host, head.uri.path(), &body);
                let what = format!("{host}{}", head.uri.path());
                server.asked.lock().unwrap().push(Asked { what, headers: head.headers, body });
                let response = Response::builder().status(status).header("content-type", "application/json");
                Ok::<_, Infallible>(response.body(Full::new(Bytes::from(said))).unwrap())
            }
        });
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }
}

/// Google's services of tokens and of topics; ends with this value.
pub struct Google {
    port: u16,
    /// The certificate to trust.
    pub certificate: Certificate,
    server: Arc<Server>,
    accepting: JoinHandle<()>,
}

impl Google {
    pub async fn start(
        answer: impl Fn(&str, &str, &str) -> (StatusCode, String) + Send + Sync + 'static,
    ) -> Self {
        let names = ["sts", "iamcredentials", "pubsub"].map(|name| format!("DNS:{name}.googleapis.com"));
        let certificate = Certificate::new(&names.join(","), &[]);
        let tls = certificate.tls.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Server::new(answer);
        let serving = Arc::clone(&server);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (server, tls) = (Arc::clone(&serving), tls.clone());
                tokio::spawn(async move {
                    // Wherever it leads, it ends here.
                    let Some(stream) = connected(stream).await else { return };
                    match tls.accept(stream).await {
                        Ok(stream) => server.serve(stream).await,
                        Err(error) => println!("no TLS: {error}"),
                    }
                });
            }
        });
        Self { port, certificate, server, accepting }
    }

    /// The variables that lead here.
    pub fn proxy(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.server.asked.lock().unwrap().clone()
    }
}

impl Drop for Google {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Reads a `CONNECT` and grants it.
async fn connected(mut stream: TcpStream) -> Option<TcpStream> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    assert!(head.starts_with(b"CONNECT "), "{}", String::from_utf8_lossy(&head));
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
    Some(stream)
}

/// Fly's init at its socket within a Machine; ends with this value.
pub struct FlyApi {
    pub socket: String,
    server: Arc<Server>,
    accepting: JoinHandle<()>,
}

impl FlyApi {
    /// Answers with what `answer` makes of the audience that is asked for.
    pub async fn start(answer: impl Fn(&str) -> (StatusCode, String) + Send + Sync + 'static) -> Self {
        let server = Server::new(move |_, path, body| {
            let question: Value = serde_json::from_str(body).unwrap();
            match path {
                "/v1/tokens/oidc" => answer(question["aud"].as_str().unwrap()),
                _ => (StatusCode::NOT_FOUND, String::new()),
            }
        });
        // Short: a socket's path may have 108 bytes.
        let socket = std::env::temp_dir().join(format!("fly-{}", uuid::Uuid::new_v4().simple()));
        let listener = UnixListener::bind(&socket).unwrap();
        let serving = Arc::clone(&server);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&serving).serve(stream));
            }
        });
        Self { socket: socket.to_str().unwrap().to_owned(), server, accepting }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.server.asked.lock().unwrap().clone()
    }
}

impl Drop for FlyApi {
    fn drop(&mut self) {
        self.accepting.abort();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// As Google's Security Token Service grants one (RFC 8693).
pub fn granted(token: &str) -> (StatusCode, String) {
    let granted = json!({"access_token": token, "token_type": "Bearer", "expires_in": 3600,
        "issued_token_type": "urn:ietf:params:oauth:token-type:access_token"});
    (StatusCode::OK, granted.to_string())
}
