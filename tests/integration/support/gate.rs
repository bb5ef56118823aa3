//! A gate between a VM and the emulator that knows requests: it lets all through but those of one kind,
//! which it answers as Google does where a right is taken away, or where a subscription is detached.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE};
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Version};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::select;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What is refused, also in the middle of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    Nothing,
    /// Every call: all rights are gone.
    All,
    /// The right to publish is gone.
    Publishing,
    /// The right to consume is gone, which is asked for by seeking, too.
    Consuming,
    /// The right to change the topic is gone.
    Changing,
    /// And that to look at it.
    Looking,
    /// The right to look at subscriptions is gone.
    Inspecting,
    /// The right to make subscriptions is gone.
    Creating,
    /// And that to delete them.
    Deleting,
    /// Consuming, since the subscription is detached, as it says itself: until it is deleted.
    Detached,
}

/// A running gate; ends with this value.
pub struct Gate {
    port: u16,
    refused: Arc<watch::Sender<Refused>>,
    /// By how many seconds the other side's clock is wrong.
    clock: Arc<AtomicI64>,
    accepting: JoinHandle<()>,
}

type Body = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;

/// How Google says no: the code and its name, of gRPC and of HTTP.
struct Answer {
    code: &'static str,
    status: &'static str,
    http: StatusCode,
    message: &'static str,
}

impl Gate {
    /// Starts a gate to `port` of this machine.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let refused = Arc::new(watch::Sender::new(Refused::Nothing));
        let clock = Arc::new(AtomicI64::new(0));
        let way = Way {
            port,
            refused: Arc::clone(&refused),
            clock: Arc::clone(&clock),
            http1: Client::builder(TokioExecutor::new()).build_http(),
            http2: Client::builder(TokioExecutor::new()).http2_only(true).build_http(),
        };
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let way = way.clone();
                let answer = service_fn(move |request| way.clone().answer(request));
                tokio::spawn(async move {
                    let server = auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(client), answer).await;
                });
            }
        });
        Self { port: own, refused, clock, accepting }
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn refuse(&self, what: Refused) {
        self.refused.send_replace(what);
    }

    /// Lets the dates of answers be so many seconds ahead.
    pub fn set_clock_ahead(&self, seconds: i64) {
        self.clock.store(seconds, Ordering::Relaxed);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// What a request needs to get to the other side.
#[derive(Clone)]
struct Way {
    port: u16,
    refused: Arc<watch::Sender<Refused>>,
    clock: Arc<AtomicI64>,
    http1: Client<HttpConnector, Incoming>,
    http2: Client<HttpConnector, Incoming>,
}

impl Way {
    async fn answer(
        self,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Box<dyn Error + Send + Sync>> {
        let path = request.uri().path().to_owned();
        let is_grpc = request.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "application/grpc");
        let refused = *self.refused.borrow();
        let method = request.method().clone();
        if refused.concerns(&method, &path) {
            return Ok(refused.answer().response(is_grpc));
        }
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        *request.uri_mut() = format!("http://127.0.0.1:{}{target}", self.port).parse()?;
        let client = if request.version() == Version::HTTP_2 { &self.http2 } else { &self.http1 };
        let (mut head, body) = client.request(request).await?.into_parts();
        let ahead = self.clock.load(Ordering::Relaxed);
        let by = Duration::from_secs(ahead.unsigned_abs());
        let now = SystemTime::now();
        let date = httpdate::fmt_http_date(if ahead < 0 { now - by } else { now + by });
        head.headers.insert(DATE, date.parse()?);
        if refused == Refused::Detached && path.contains("/subscriptions/") && head.status.is_success() {
            if method == Method::DELETE {
                self.refused.send_replace(Refused::Nothing);
            } else if method == Method::GET {
                let mut subscription: Value = serde_json::from_slice(&body.collect().await?.to_bytes())?;
                subscription["detached"] = true.into();
                head.headers.remove(CONTENT_LENGTH);
                return Ok(Response::from_parts(head, whole(subscription.to_string())));
            }
        }
        let body = if is_grpc { self.ending(path, body) } else { body.map_err(Into::into).boxed_unsync() };
        Ok(Response::from_parts(head, body))
    }

    /// A stream that ends with a refusal when what it is for is refused.
    fn ending(&self, path: String, body: Incoming) -> Body {
        let going_on = Some((body, self.refused.subscribe(), path));
        let frames = stream::unfold(going_on, |going_on| async {
            let (mut body, mut refused, path) = going_on?;
            let refusal = async {
                refused
                    .wait_for(|refused| refused.concerns(&Method::POST, &path))
                    .await
                    .map(|refused| *refused)
            };
            select! {
                frame = body.frame() => Some((frame?.map_err(Into::into), Some((body, refused, path)))),
                Ok(refused) = refusal => Some((Ok(Frame::trailers(refused.answer().trailers())), None)),
            }
        });
        StreamBody::new(frames).boxed_unsync()
    }
}

impl Refused {
    fn concerns(self, method: &Method, path: &str) -> bool {
        let consuming = path.starts_with("/google.pubsub.v1.Subscriber/") || path.ends_with(":seek");
        match self {
            Self::Nothing => false,
            Self::All => true,
            Self::Publishing => path.starts_with("/google.pubsub.v1.Publisher/"),
            Self::Consuming | Self::Detached => consuming,
            Self::Changing => *method == Method::PATCH,
            Self::Looking => *method == Method::GET && path.contains("/topics/"),
            Self::Inspecting => *method == Method::GET && path.contains("/subscriptions/"),
            Self::Creating => *method == Method::PUT && path.contains("/subscriptions/"),
            Self::Deleting => *method == Method::DELETE && path.contains("/subscriptions/"),
        }
    }

    fn answer(self) -> Answer {
        if self == Self::Detached {
            return Answer {
                code: "9",
                status: "FAILED_PRECONDITION",
                http: StatusCode::BAD_REQUEST,
                message: "The subscription is detached from its topic.",
            };
        }
        Answer {
            code: "7",
            status: "PERMISSION_DENIED",
            http: StatusCode::FORBIDDEN,
            message: "User not authorized to perform this action.",
        }
    }
}

impl Answer {
    fn response(&self, is_grpc: bool) -> Response<Body> {
        if is_grpc {
            // Only trailers: the status is in the head, and there is nothing else.
            let mut response = Response::new(whole(""));
            *response.headers_mut() = self.trailers();
            response.headers_mut().insert(CONTENT_TYPE, "application/grpc".parse().unwrap());
            return response;
        }
        let error = json!({"code": self.http.as_u16(), "status": self.status, "message": self.message});
        let body = whole(json!({"error": error}).to_string());
        Response::builder().status(self.http).header(CONTENT_TYPE, "application/json").body(body).unwrap()
    }

    fn trailers(&self) -> HeaderMap {
        let status = [("grpc-status", self.code), ("grpc-message", self.message)];
        status.into_iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }
}

fn whole(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never| match never {}).boxed_unsync()
}
