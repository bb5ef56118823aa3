//! An app's backend, as `CONNECT_URL` names it: a real HTTP server whose answers are the test's to give.

use std::convert::Infallible;
use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// What is answered to a question; without one, nothing ever is.
pub type Reply = Option<Response<Full<Bytes>>>;

/// A running server; ends with this value.
pub struct Backend {
    pub port: u16,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

struct Shared {
    answer: Box<dyn Fn(&Value) -> Reply + Send + Sync>,
    asked: Mutex<Vec<Asked>>,
    connections: AtomicUsize,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
}

/// One question.
#[derive(Clone)]
pub struct Asked {
    pub uri: Uri,
    pub headers: HeaderMap,
    pub question: Value,
}

impl Backend {
    pub async fn start(answer: impl Fn(&Value) -> Reply + Send + Sync + 'static) -> Self {
        Self::serve(answer, None).await
    }

    /// The same behind TLS.
    pub async fn start_tls(
        tls: TlsAcceptor,
        answer: impl Fn(&Value) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::serve(answer, Some(tls)).await
    }

    async fn serve(
        answer: impl Fn(&Value) -> Reply + Send + Sync + 'static,
        tls: Option<TlsAcceptor>,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            answer: Box::new(answer),
            asked: Mutex::default(),
            connections: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            most_under_way: AtomicUsize::new(0),
        });
        let serving = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                let mut connections = JoinSet::new();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let (shared, tls) = (Arc::clone(&shared), tls.clone());
                    shared.connections.fetch_add(1, Ordering::Relaxed);
                    connections.spawn(async move {
                        match tls {
                            // Who does not trust the certificate goes.
                            Some(tls) => match tls.accept(stream).await {
                                Ok(stream) => talk(stream, shared).await,
                                Err(error) => println!("no TLS: {error}"),
                            },
                            None => talk(stream, shared).await,
                        }
                    });
                }
            }
        });
        Self { port, shared, serving }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/connect", self.port)
    }

    /// All questions so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// How many connections were made to it.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Questions that are not answered and not taken back, now and at most.
    pub fn under_way(&self) -> (usize, usize) {
        (self.shared.under_way.load(Ordering::Relaxed), self.shared.most_under_way.load(Ordering::Relaxed))
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn talk(stream: impl AsyncRead + AsyncWrite + Unpin, shared: Arc<Shared>) {
    let service = service_fn(|request: Request<Incoming>| {
        let shared = Arc::clone(&shared);
        async move {
            let _open = Open::new(Arc::clone(&shared));
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let question = serde_json::from_slice(&body).unwrap();
            let reply = (shared.answer)(&question);
            shared.asked.lock().unwrap().push(Asked { uri: head.uri, headers: head.headers, question });
            match reply {
                Some(reply) => Ok::<_, Infallible>(reply),
                None => pending().await,
            }
        }
    });
    // Ends with an error when the other side goes.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// A question under way.
struct Open(Arc<Shared>);

impl Open {
    fn new(shared: Arc<Shared>) -> Self {
        let now = shared.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        shared.most_under_way.fetch_max(now, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer with a body.
pub fn says(status: u16, body: impl ToString) -> Reply {
    Some(Response::builder().status(status).body(Full::from(body.to_string())).unwrap())
}
