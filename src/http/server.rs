//! The accept loop: warp's routes behind hyper, with the bounds that warp's own server lacks.
//!
//! A request's head has its time and size, connections have their number, and only HTTP/1.1 is
//! spoken (Fly's proxy speaks HTTP/2 to the world). The same time-out ends idle keep-alives.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::select;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use warp::filters::BoxedFilter;
use warp::http::{Request, Version};
use warp::reply::Reply;

use crate::logs::{Address, Seldom};

/// A half-sent request is dropped after this.
const HEADER_TIME: Duration = Duration::from_secs(10);

/// A connection that is no socket is let go of after this, with so long to end in order: by its next
/// request, or when it takes its answer. One that asks and never reads would stay.
const LIFETIME: Duration = Duration::from_secs(60);
const LAST_ANSWER: Duration = Duration::from_secs(10);

/// A request's head may have so many bytes; hyper's least is 8 KiB.
const HEADER_BYTES: usize = 16 << 10;

/// Connections that are not sockets (yet).
pub const MAX_CONNECTIONS: usize = 4_096;

/// Where a request came from, by TCP.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// With each request of HTTP/1.1: takes its connection away from HTTP, which then answers nothing.
#[derive(Clone)]
pub struct Takeover(mpsc::Sender<Taker>);

/// Gets the connection, and what its client has sent since the request.
type Taker = Box<dyn FnOnce(TcpStream, &[u8]) + Send>;

impl Takeover {
    /// The request must be left unanswered from here on.
    pub fn by(&self, taker: impl FnOnce(TcpStream, &[u8]) + Send + 'static) {
        // There is room: a connection has one request at a time.
        let _ = self.0.try_send(Box::new(taker));
    }
}

/// Serves until `stop`; what is under way then is ended by its own time-outs.
pub async fn serve<R: Reply + 'static>(
    listeners: Vec<TcpListener>,
    routes: BoxedFilter<(R,)>,
    stop: CancellationToken,
) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let complaints = Seldom::default();
    let accepting = listeners.into_iter();
    join_all(accepting.map(|listener| accept_all(listener, &connections, &routes, &complaints, &stop))).await;
}

async fn accept_all<R: Reply + 'static>(
    listener: TcpListener,
    connections: &Arc<Semaphore>,
    routes: &BoxedFilter<(R,)>,
    complaints: &Seldom,
    stop: &CancellationToken,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME).max_buf_size(HEADER_BYTES);
    loop {
        let accepted = select! {
            accepted = accept(&listener, connections) => accepted,
            () = stop.cancelled() => return,
        };
        let (stream, peer, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: the ones that end make room.
                if let Some(kept_back) = complaints.pass() {
                    warn!(%error, kept_back, "can't accept connections; trying again");
                }
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let routes = warp::service(routes.clone());
        let (takeover, mut taken) = mpsc::channel(1);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Peer(peer));
            if request.version() == Version::HTTP_11 {
                request.extensions_mut().insert(Takeover(takeover.clone()));
            }
            tower_service::Service::call(&mut routes.clone(), request)
        });
        let mut connection = http.serve_connection(TokioIo::new(stream), service);
        let stop = stop.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let ended = select! {
                ended = &mut connection => ended,
                Some(taker) = taken.recv() => {
                    let parts = connection.into_parts();
                    return taker(parts.io.into_inner(), &parts.read_buf);
                }
                () = stop.cancelled() => return,
                () = sleep(LIFETIME) => {
                    std::pin::Pin::new(&mut connection).graceful_shutdown();
                    timeout(LAST_ANSWER, connection).await.unwrap_or(Ok(()))
                }
            };
            if let Err(error) = ended {
                debug!(address = %Address(peer.ip()), %error, "connection ended");
            }
        });
    }
}

type Accepted = (TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit);

async fn accept(listener: &TcpListener, connections: &Arc<Semaphore>) -> io::Result<Accepted> {
    let permit = Arc::clone(connections).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    // An alert is one small write: it must not wait for another to fill a packet.
    stream.set_nodelay(true)?;
    Ok((stream, peer, permit))
}
