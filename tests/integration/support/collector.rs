//! A collector of traces: a real server of OTLP over gRPC, which decodes what it is sent by the fields of
//! opentelemetry/proto/trace/v1/trace.proto that tests ask for.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// The compressed flag and four bytes of length, before each message (gRPC over HTTP/2).
const PREFIX: usize = 5;

/// A running collector; ends with this value.
pub struct Collector {
    pub port: u16,
    spans: Arc<Mutex<Vec<Span>>>,
    accepting: JoinHandle<()>,
}

/// A span, and whose it is.
#[derive(Clone, Debug)]
pub struct Span {
    pub name: String,
    pub trace: String,
    pub id: String,
    /// Empty: it has none.
    pub parent: String,
    pub kind: i32,
    /// In ns since the epoch.
    pub start: u64,
    pub end: u64,
    pub failed: bool,
    pub attributes: BTreeMap<String, String>,
    pub resource: BTreeMap<String, String>,
}

impl Collector {
    pub async fn start() -> Self {
        Self::serve(None).await
    }

    /// The same behind TLS.
    pub async fn start_tls(tls: TlsAcceptor) -> Self {
        Self::serve(Some(tls)).await
    }

    async fn serve(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let spans = Arc::<Mutex<Vec<Span>>>::default();
        let collected = Arc::clone(&spans);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (tls, collected) = (tls.clone(), Arc::clone(&collected));
                tokio::spawn(async move {
                    match tls {
                        // Who does not trust the certificate goes.
                        Some(tls) => match tls.accept(client).await {
                            Ok(client) => talk(client, collected).await,
                            Err(error) => println!("no TLS: {error}"),
                        },
                        None => talk(client, collected).await,
                    }
                });
            }
        });
        Self { port, spans, accepting }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// All that came so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn talk(
    client: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    collected: Arc<Mutex<Vec<Span>>>,
) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let collected = Arc::clone(&collected);
        async move {
            assert_eq!(request.uri().path(), EXPORT);
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let (prefix, message) = body.split_at(PREFIX);
            assert_eq!(prefix[0], 0, "not compressed");
            let length = u32::from_be_bytes(prefix[1..].try_into().unwrap());
            assert_eq!(message.len(), length as usize, "one message");
            let spans = wire::Request::decode(message).unwrap().spans();
            collected.lock().unwrap().extend(spans);
            // An empty answer, and that all went well.
            let status = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
            let frames = [Frame::data(Bytes::from_static(&[0; PREFIX])), Frame::trailers(status)];
            let body = StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>)));
            let response = Response::builder().header("content-type", "application/grpc");
            Ok::<_, Infallible>(response.body(body).unwrap())
        }
    });
    // Ends with an error when the other side goes.
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(client), answer).await;
}

/// What is on the wire, by its numbers.
mod wire {
    use std::collections::BTreeMap;

    #[derive(prost::Message)]
    pub struct Request {
        #[prost(message, repeated, tag = "1")]
        resource_spans: Vec<ResourceSpans>,
    }

    #[derive(prost::Message)]
    struct ResourceSpans {
        #[prost(message, optional, tag = "1")]
        resource: Option<Resource>,
        #[prost(message, repeated, tag = "2")]
        scope_spans: Vec<ScopeSpans>,
    }

    #[derive(prost::Message)]
    struct Resource {
        #[prost(message, repeated, tag = "1")]
        attributes: Vec<KeyValue>,
    }

    #[derive(prost::Message)]
    struct ScopeSpans {
        #[prost(message, repeated, tag = "2")]
        spans: Vec<Span>,
    }

    #[derive(prost::Message)]
    struct Span {
        #[prost(bytes = "vec", tag = "1")]
        trace_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        span_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "4")]
        parent_span_id: Vec<u8>,
        #[prost(string, tag = "5")]
        name: String,
        #[prost(int32, tag = "6")]
        kind: i32,
        #[prost(fixed64, tag = "7")]
        start: u64,
        #[prost(fixed64, tag = "8")]
        end: u64,
        #[prost(message, repeated, tag = "9")]
        attributes: Vec<KeyValue>,
        #[prost(message, optional, tag = "15")]
        status: Option<Status>,
    }

    #[derive(prost::Message)]
    struct Status {
        /// 2 is an error.
        #[prost(int32, tag = "3")]
        code: i32,
    }

    #[derive(prost::Message)]
    struct KeyValue {
        #[prost(string, tag = "1")]
        key: String,
        #[prost(message, optional, tag = "2")]
        value: Option<AnyValue>,
    }

    /// One of these.
    #[derive(prost::Message)]
    struct AnyValue {
        #[prost(string, optional, tag = "1")]
        text: Option<String>,
        #[prost(int64, optional, tag = "3")]
        number: Option<i64>,
    }

    impl Request {
        pub fn spans(self) -> Vec<super::Span> {
            let mut spans = Vec::new();
            for of_resource in self.resource_spans {
                let resource = words(of_resource.resource.unwrap_or_default().attributes);
                for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                    spans.push(super::Span {
                        name: span.name,
                        trace: hex(&span.trace_id),
                        id: hex(&span.span_id),
                        parent: hex(&span.parent_span_id),
                        kind: span.kind,
                        start: span.start,
                        end: span.end,
                        failed: span.status.is_some_and(|status| status.code == 2),
                        attributes: words(span.attributes),
                        resource: resource.clone(),
                    });
                }
            }
            spans
        }
    }

    fn words(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
        let word = |value: AnyValue| value.text.or(value.number.map(|number| number.to_string()));
        let words = attributes.into_iter();
        words.map(|KeyValue { key, value }| (key, value.and_then(word).unwrap_or_default())).collect()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
