//! The accept loop: warp's routes behind hyper, with the bounds that warp's own server lacks.
//!
//! A request's head has its time and size, connections have their number, and only HTTP/1.1 is
//! spoken (Fly's proxy speaks HTTP/2 to the world). The same time-out ends idle keep-alives. Where there
//! are too many, new ones take the places of the oldest, first of those that are not being answered: who opens
//! thousands and says nothing, or little, keeps nobody out. One that has not spoken yet costs no buffer.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::select;
use tokio::sync::{Mutex as TurnLock, Notify, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use warp::filters::BoxedFilter;
use warp::http::{HeaderValue, Request, StatusCode, Version, header};
use warp::reply::{Reply, Response};

use super::spare::Spare;
use super::{STRICT, error, framing};
use crate::logs::{Address, Seldom};
use crate::wire::ErrorCode;

/// A silent connection is dropped after this, and so is a half-sent request.
const HEADER_TIME: Duration = Duration::from_secs(10);

/// A connection that is no socket is let go of after this, with so long to end in order: by its next
/// request, or when it takes its answer. One that asks and never reads would stay.
const LIFETIME: Duration = Duration::from_secs(60);
const LAST_ANSWER: Duration = Duration::from_secs(10);

/// A request's head may have so many bytes; hyper's least is 8 KiB.
const HEADER_BYTES: usize = 16 << 10;

/// Connections that are not sockets (yet). Each may have half a head, or an answer that nobody takes. Those
/// that become sockets are such for a moment only.
pub const MAX_CONNECTIONS: usize = 1_024;

/// Where there are as many, the oldest is ended after this. Honest crowds have asked by then, even from
/// the other end of the world; those who say nothing make others wait no longer.
const TIME_OF_THE_OLDEST: Duration = Duration::from_millis(500);

const NO_PATH: &str = "the request's target: expected a path, such as /";

/// Where a request came from, by TCP.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// With each request of HTTP/1.1: takes its connection away from HTTP, which then answers nothing.
#[derive(Clone)]
pub struct Takeover(Arc<Mutex<Option<oneshot::Sender<Taker>>>>);

/// Gets the connection, and what its client has sent since the request.
pub type Taker = Box<dyn FnOnce(TcpStream, &[u8]) + Send>;

impl Takeover {
    /// One for a connection, and who it is taken by.
    #[must_use]
    pub fn new() -> (Self, oneshot::Receiver<Taker>) {
        let (takeover, taken) = oneshot::channel();
        (Self(Arc::new(Mutex::new(Some(takeover)))), taken)
    }

    /// The request must be left unanswered from here on.
    pub fn by(&self, taker: impl FnOnce(TcpStream, &[u8]) + Send + 'static) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Else the connection is over, or taken already.
        if let Some(sender) = sender {
            let _ = sender.send(Box::new(taker));
        }
    }
}

/// Serves until `stop`, which ends what is under way too.
pub async fn serve<R: Reply + 'static>(
    listeners: Vec<TcpListener>,
    routes: BoxedFilter<(R,)>,
    stop: CancellationToken,
) {
    let crowd = Arc::new(Crowd::default());
    let complaints = Seldom::default();
    let accepting = listeners.into_iter();
    join_all(accepting.map(|listener| accept_all(listener, &crowd, &routes, &complaints, &stop))).await;
}

/// Connections that are no sockets (yet), the oldest first.
#[derive(Default)]
struct Crowd {
    // Held for a moment by who comes and who goes, never over an await.
    guests: Mutex<BTreeMap<u64, Guest>>,
    came: AtomicU64,
    /// Who waits for room; the others of the listeners wait behind it, in their order.
    turn: TurnLock<()>,
    left: Notify,
}

struct Guest {
    since: Instant,
    /// None only while it is about to begin.
    task: Option<AbortHandle>,
    /// Its request is there, and the answer is being made.
    is_answered: Arc<AtomicBool>,
}

impl Guest {
    fn end(&self) {
        self.task.iter().for_each(AbortHandle::abort);
    }
}

impl Crowd {
    /// Waits until there is room for one more: one of them ends, or the oldest has had its time.
    async fn room(&self) {
        let _turn = self.turn.lock().await;
        while let Some(wait) = self.make_room() {
            select! {
                () = self.left.notified() => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// How long it is until somebody can be asked to leave; none where there is room, or now is.
    fn make_room(&self) -> Option<Duration> {
        let mut guests = self.guests();
        if guests.len() < MAX_CONNECTIONS {
            return None;
        }
        let left = |guest: &Guest| TIME_OF_THE_OLDEST.saturating_sub(guest.since.elapsed());
        let (oldest, wait) = guests.first_key_value().map(|(id, guest)| (*id, left(guest)))?;
        if !wait.is_zero() {
            return Some(wait);
        }
        let mut idle = guests.iter().filter(|(_, guest)| !guest.is_answered.load(Ordering::Relaxed));
        let first = idle.next().map(|(id, guest)| (*id, left(guest)));
        // Where most are being answered, it is they who keep others out.
        let first = first.filter(|_| idle.nth(MAX_CONNECTIONS / 2 - 1).is_some());
        let (id, wait) = first.unwrap_or((oldest, wait));
        if !wait.is_zero() {
            return Some(wait);
        }
        guests.remove(&id).iter().for_each(Guest::end);
        None
    }

    /// Has what `converse` makes done by a task of its own, which is one of the crowd until it ends; it says
    /// when it is answered.
    fn take_in<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        converse: impl FnOnce(Arc<AtomicBool>) -> F,
    ) {
        let is_answered = Arc::default();
        let converse = converse(Arc::clone(&is_answered));
        let id = self.came.fetch_add(1, Ordering::Relaxed);
        let leaving = Leaving(Arc::downgrade(self), id);
        self.guests().insert(id, Guest { since: Instant::now(), task: None, is_answered });
        let task = tokio::spawn(async move {
            let _leaving = leaving;
            converse.await;
        });
        // Else it has left already.
        if let Some(guest) = self.guests().get_mut(&id) {
            guest.task = Some(task.abort_handle());
        }
    }

    fn guests(&self) -> MutexGuard<'_, BTreeMap<u64, Guest>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// It ends with the serving.
impl Drop for Crowd {
    fn drop(&mut self) {
        self.guests().values().for_each(Guest::end);
    }
}

/// Leaves the crowd when dropped.
struct Leaving(Weak<Crowd>, u64);

impl Drop for Leaving {
    fn drop(&mut self) {
        let Some(crowd) = self.0.upgrade() else { return };
        crowd.guests().remove(&self.1);
        crowd.left.notify_one();
    }
}

async fn accept_all<R: Reply + 'static>(
    listener: TcpListener,
    crowd: &Arc<Crowd>,
    routes: &BoxedFilter<(R,)>,
    complaints: &Seldom,
    stop: &CancellationToken,
) {
    let mut spare = Spare::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME).max_buf_size(HEADER_BYTES);
    let mut stopped = pin!(stop.cancelled());
    loop {
        let accepted = select! {
            biased;
            () = &mut stopped => return,
            accepted = accept(&listener, crowd) => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => {
                spare.renew();
                accepted
            }
            Err(error) => {
                if let Some(kept_back) = complaints.pass() {
                    warn!(%error, kept_back, "can't accept connections; trying again");
                }
                // Out of files, mostly: the ones that end make room.
                if !spare.refuse(&listener, &error).await {
                    sleep(Duration::from_millis(100)).await;
                }
                continue;
            }
        };
        let (http, routes) = (http.clone(), routes.clone());
        crowd.take_in(|is_answered| async move {
            // Hyper would begin with a buffer, and with a read that finds nothing.
            if let Ok(Ok(())) = timeout(HEADER_TIME, stream.readable()).await {
                // Boxed: what is silent stays small.
                Box::pin(converse(&http, stream, peer, routes, is_answered)).await;
            }
        });
    }
}

/// Answers one connection's requests, until it ends or is taken over.
async fn converse<R: Reply + 'static>(
    http: &http1::Builder,
    stream: TcpStream,
    peer: SocketAddr,
    routes: BoxedFilter<(R,)>,
    is_answered: Arc<AtomicBool>,
) {
    let (takeover, taken) = Takeover::new();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        if request.version() == Version::HTTP_11 {
            request.extensions_mut().insert(takeover.clone());
        }
        let (routes, is_answered) = (routes.clone(), Arc::clone(&is_answered));
        async move {
            is_answered.store(true, Ordering::Relaxed);
            let answer = answer(routes, request).await;
            is_answered.store(false, Ordering::Relaxed);
            answer
        }
    });
    let mut connection = http.serve_connection(TokioIo::new(stream), service);
    let ended = select! {
        // In this order, so that one that is soon taken over sets no clock.
        biased;
        ended = &mut connection => ended,
        Ok(taker) = taken => {
            let parts = connection.into_parts();
            return taker(parts.io.into_inner(), &parts.read_buf);
        }
        () = sleep(LIFETIME) => {
            std::pin::Pin::new(&mut connection).graceful_shutdown();
            timeout(LAST_ANSWER, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(address = %Address(peer.ip()), %error, "connection ended");
    }
}

/// Answers a request by the routes.
///
/// # Errors
/// None.
pub async fn answer<R: Reply + 'static>(
    routes: BoxedFilter<(R,)>,
    request: Request<Incoming>,
) -> Result<Response, Infallible> {
    let defect = framing::defect(request.version(), request.uri(), request.headers());
    // A target such as `example.org:443` has none, and is for proxies; warp expects one.
    let no_path = || request.uri().path_and_query().is_none().then_some(NO_PATH);
    let mut answer = if let Some(why) = defect.or_else(no_path) {
        let mut refused = error(StatusCode::BAD_REQUEST, ErrorCode::InvalidField, why);
        // For some of these reasons it is not certain where the next request begins.
        refused.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        refused
    } else {
        tower_service::Service::call(&mut warp::service(routes), request).await?
    };
    answer.headers_mut().extend(STRICT.clone());
    Ok(answer)
}

/// Somebody who comes, and for whom there is room.
async fn accept(listener: &TcpListener, crowd: &Crowd) -> io::Result<(TcpStream, SocketAddr)> {
    let accepted = listener.accept().await?;
    crowd.room().await;
    Ok(accepted)
}
