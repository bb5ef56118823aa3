//! `GET /ws`: from HTTP to a WebSocket.
//!
//! An upgrade of our own instead of warp's: warp's sockets come with 128 KiB of read buffer each,
//! and can't be had as the bare TCP stream, which a [`crate::shard`] reads and writes. Who may come in is
//! answered there too, in one write with what a socket hears first.

use std::collections::BTreeMap;
use std::future::pending;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tracing::debug;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::{HeaderMap, HeaderValue, StatusCode, header};
use warp::reply::Response;

use super::address;
use super::error;
use super::server::{Peer, Takeover};
use crate::admission::{Admission, Place, Refusal};
use crate::auth::Visitor;
use crate::authorizer::{Denied, Question};
use crate::health::Phase;
use crate::logs::Address;
use crate::relay::{RETRY_AFTER, Relay};
use crate::shard::{Arrival, Command};
use crate::wire::{Close, CloseCode, ErrorCode};

/// What the URL names: `since`, the last cursor that the client has seen; `channels` to join at once, by
/// comma; `token`, where one is asked for. The rest is for an app's backend. Of one name, the last counts.
type Query = BTreeMap<String, String>;

/// What a browser's script speaks here. It can't set headers, but it can name subprotocols: its token
/// may be another one.
const SUBPROTOCOL: &str = "alien-alert";

pub fn route(relay: Arc<Relay>) -> BoxedFilter<(Response,)> {
    let admission = Admission::new(relay.config.limits);
    warp::path!("ws")
        .and(warp::get())
        .and(warp::query::<Query>())
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional::<Takeover>())
        .and(warp::ext::get::<Peer>())
        .then(move |query: Query, headers: HeaderMap, takeover: Option<Takeover>, peer: Peer| {
            let (relay, admission) = (Arc::clone(&relay), Arc::clone(&admission));
            async move {
                match accept(&relay, &admission, query, &headers, takeover, peer).await {
                    Ok(()) => pending().await,
                    Err(refused) => {
                        let (reason, response) = *refused;
                        relay.metrics.rejected.inc(reason);
                        debug!(
                            reason,
                            address = %Address(address::visitor(&relay, peer, &headers)),
                            "socket refused"
                        );
                        response
                    }
                }
            }
        })
        .boxed()
}

type Refused = Box<(&'static str, Response)>;

/// Lets a visitor in, and takes the connection then. Dropped while the app's backend is asked, as it is when
/// the visitor goes, it leaves nothing behind.
async fn accept(
    relay: &Arc<Relay>,
    admission: &Arc<Admission>,
    query: Query,
    headers: &HeaderMap,
    takeover: Option<Takeover>,
    peer: Peer,
) -> Result<(), Refused> {
    let key = handshake(headers).map_err(|why| {
        let mut refused = refuse("handshake", StatusCode::BAD_REQUEST, why);
        refused.1.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        refused
    })?;
    let takeover = takeover.ok_or_else(|| {
        refuse("handshake", StatusCode::BAD_REQUEST, "HTTP/1.1 is needed to open a WebSocket")
    })?;
    if !origin_is_allowed(relay, headers) {
        let why = "this Origin may not open sockets here; the server's ALLOWED_ORIGINS lists who may";
        return Err(refuse("origin", StatusCode::FORBIDDEN, why));
    }
    takes_sockets(relay.health.phase())?;
    let ip = address::visitor(relay, peer, headers);
    let place = admission.admit(ip).map_err(|refusal| match refusal {
        Refusal::Full => later("full", StatusCode::SERVICE_UNAVAILABLE, "this VM is full", 5),
        Refusal::TooMany => later(
            "address_connections",
            StatusCode::TOO_MANY_REQUESTS,
            "too many sockets from this address",
            30,
        ),
        Refusal::Flooded(wait) => later(
            "address_flood",
            StatusCode::TOO_MANY_REQUESTS,
            "a socket of this address was cut off for flooding",
            wait,
        ),
        Refusal::TooFast(wait) => later(
            "address_rate",
            StatusCode::TOO_MANY_REQUESTS,
            "too many new sockets from this address",
            wait,
        ),
    })?;
    let (speaks_ours, token) = subprotocols(headers);
    let token = query.get("token").map(String::as_str).or(token);
    let visitor = relay.config.tokens.as_ref().map(|tokens| tokens.check(token)).transpose();
    let visitor = visitor
        .map_err(|bad| refuse(bad.name(), StatusCode::UNAUTHORIZED, &bad.to_string()))?
        .unwrap_or_default();
    let (visitor, named) = Box::pin(authorize(relay, &query, headers, ip, visitor)).await?;
    let answer = answer(&key, speaks_ours);
    let relay = Arc::clone(relay);
    takeover.by(move |stream, early| {
        // Copied: hyper's buffer of 8 KiB, nearly always empty, would stay for long.
        let newcomer = Newcomer { stream, answer, early: early.to_vec(), place };
        join(&relay, query, named, visitor, newcomer);
    });
    Ok(())
}

/// The head that ends HTTP on a connection (RFC 6455, 4.2.2).
fn answer(accept: &str, speaks_ours: bool) -> Bytes {
    let protocol =
        if speaks_ours { format!("sec-websocket-protocol: {SUBPROTOCOL}\r\n") } else { String::new() };
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-accept: {accept}\r\n{protocol}\r\n"
    );
    head.into()
}

/// What the app's backend says of a visitor, where it wants to be asked, and the channels that it names.
async fn authorize(
    relay: &Relay,
    query: &Query,
    headers: &HeaderMap,
    ip: IpAddr,
    visitor: Visitor,
) -> Result<(Visitor, Vec<String>), Refused> {
    let Some(authorizer) = &relay.config.authorizer else { return Ok((visitor, Vec::new())) };
    let identity = relay.identity();
    let (user, instance, region) = (visitor.user.as_deref(), identity.instance(), identity.region());
    let question = Question { headers, query, ip, user, instance, region };
    let begun = Instant::now();
    let answer = authorizer.ask(&question, relay.config.limits.channels).await;
    let outcome = match &answer {
        Ok(_) => Some("accepted"),
        Err(Denied::Refused(..)) => Some("refused"),
        Err(Denied::Failed) => Some("failed"),
        Err(Denied::Busy) => None,
    };
    if let Some(outcome) = outcome {
        relay.metrics.authorized(begun.elapsed(), outcome);
    }
    let answer = answer.map_err(|denied| match denied {
        Denied::Refused(status, wait) => {
            let why = "the app's backend does not let this visitor in";
            match wait.or((status == StatusCode::TOO_MANY_REQUESTS).then_some(RETRY_AFTER.as_secs())) {
                Some(wait) => later("authorizer_refused", status, why, wait),
                None => refuse("authorizer_refused", status, why),
            }
        }
        Denied::Failed => later(
            "authorizer_failed",
            StatusCode::SERVICE_UNAVAILABLE,
            "the app's backend, which says who may come in, does not answer as it should",
            RETRY_AFTER.as_secs(),
        ),
        Denied::Busy => later(
            "authorizer_busy",
            StatusCode::SERVICE_UNAVAILABLE,
            "the app's backend is asked about too many visitors already",
            RETRY_AFTER.as_secs(),
        ),
    })?;
    // Meanwhile it may have begun to leave.
    takes_sockets(relay.health.phase())?;
    Ok(answer.about(visitor))
}

fn takes_sockets(phase: Phase) -> Result<(), Refused> {
    if phase.takes_sockets() {
        return Ok(());
    }
    Err(later("not_ready", StatusCode::SERVICE_UNAVAILABLE, &phase.text(), 1))
}

/// What a socket comes with, beside what its visitor asks for.
struct Newcomer {
    stream: TcpStream,
    /// To its request.
    answer: Bytes,
    early: Vec<u8>,
    place: Place,
}

/// Brings a socket to its shard. Takes the query, token and all: nothing of it is kept for as long as the
/// socket lives.
fn join(relay: &Arc<Relay>, query: Query, named: Vec<String>, visitor: Visitor, newcomer: Newcomer) {
    let own = visitor.own_channel();
    let asked = query.get("channels").map_or("", String::as_str);
    let asked = asked.split(',').filter(|name| !name.is_empty());
    let named = own.iter().chain(&named).map(String::as_str);
    let channels: Vec<_> = named.chain(asked).collect();
    relay.join(query.get("since").map(String::as_str), &channels, visitor, |member, greeting| {
        let Newcomer { stream, answer, early, place } = newcomer;
        let ip = place.address;
        debug!(clientId = &*member.client_id, address = %Address(ip), "socket opened");
        let presence = relay.lifecycle.opened(&member.client_id, member.visitor.user.as_ref(), ip);
        let outbox = member.outbox.clone();
        let arrival = Arrival { stream, answer, early, greeting, member, presence, place };
        outbox.mailbox.send(Command::Join(outbox.id, Box::new(arrival)));
        if !relay.health.phase().takes_sockets() {
            // The VM began to leave between the answer and now.
            outbox.close(Close::come_back(CloseCode::Restart, 1_000));
        }
    });
}

/// Checks the client's half of the handshake (RFC 6455, 4.2.1); returns this side's proof.
fn handshake(headers: &HeaderMap) -> Result<String, &'static str> {
    let has = |name, token: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(token))
    };
    if !has(header::UPGRADE, "websocket") || !has(header::CONNECTION, "upgrade") {
        return Err("not a WebSocket request: expected Upgrade: websocket and Connection: Upgrade");
    }
    if !has(header::SEC_WEBSOCKET_VERSION, "13") {
        return Err("Sec-WebSocket-Version: expected 13");
    }
    if headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0")
    {
        return Err("a WebSocket request has no body");
    }
    // 16 bytes in base64: 22 characters and two of padding.
    let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).into_iter().map(HeaderValue::as_bytes);
    let key = keys
        .next()
        // Another reader, a proxy, might go by the other one.
        .filter(|_| keys.next().is_none())
        .filter(|key| key.len() == 24 && key.ends_with(b"=="))
        .filter(|key| key[..22].iter().all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(byte)))
        .ok_or("Sec-WebSocket-Key: expected 16 bytes in base64")?;
    Ok(derive_accept_key(key))
}

/// Whether the client speaks ours, and the token that came along then.
fn subprotocols(headers: &HeaderMap) -> (bool, Option<&str>) {
    let lines = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter();
    let names = lines.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(',')).map(str::trim);
    let (ours, others): (Vec<_>, Vec<_>) = names.partition(|name| *name == SUBPROTOCOL);
    let ours = !ours.is_empty();
    (ours, others.into_iter().find(|name| ours && name.contains('.')))
}

/// Browsers tell where a script comes from; other programs say nothing and are let in. Without
/// this, any site could open sockets here in its visitors' names.
fn origin_is_allowed(relay: &Relay, headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let Ok(origin) = origin.to_str().map(str::to_ascii_lowercase) else { return false };
    let allowed = &relay.config.allowed_origins;
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_ascii_lowercase);
    let of_origin = origin.split_once("://").map(|(_scheme, host)| host);
    allowed.contains("*")
        || allowed.contains(&origin)
        || (of_origin.is_some() && of_origin == host.as_deref())
}

fn refuse(reason: &'static str, status: StatusCode, why: &str) -> Refused {
    let code = match status {
        StatusCode::BAD_REQUEST => ErrorCode::InvalidField,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorCode::Forbidden,
        StatusCode::TOO_MANY_REQUESTS => ErrorCode::RateLimited,
        // One of the app's backend.
        status if status.is_client_error() => ErrorCode::Forbidden,
        _ => ErrorCode::Unavailable,
    };
    let mut response = error(status, code, why);
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    Box::new((reason, response))
}

/// A refusal that says when to come again, in seconds.
fn later(reason: &'static str, status: StatusCode, why: &str, seconds: u64) -> Refused {
    let mut refused = refuse(reason, status, why);
    refused.1.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(change: &[(&'static str, &str)]) -> HeaderMap {
        let good = [
            ("host", "localhost"),
            ("upgrade", "WebSocket"),
            ("connection", "keep-alive, Upgrade"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let all = good.iter().chain(change);
        all.fold(HeaderMap::new(), |mut headers, (name, value)| {
            headers.insert(*name, value.parse().unwrap());
            headers
        })
    }

    #[test]
    fn answers_the_rfc_s_example() {
        let accept = handshake(&headers(&[])).unwrap();
        let head = answer(&accept, false);
        let lines: Vec<_> = head.split(|byte| *byte == b'\n').collect();
        assert_eq!(lines[0], b"HTTP/1.1 101 Switching Protocols\r");
        assert!(lines.contains(&&b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r"[..]));
        assert!(lines.iter().all(|line| !line.starts_with(b"sec-websocket-protocol")));
        assert!(head.ends_with(b"\r\n\r\n"));
        assert!(answer(&accept, true).ends_with(b"\r\nsec-websocket-protocol: alien-alert\r\n\r\n"));
    }

    #[test]
    fn refuses_what_is_no_handshake() {
        for change in [
            ("upgrade", "h2c"),
            ("connection", "close"),
            ("sec-websocket-version", "8"),
            ("content-length", "2"),
            ("transfer-encoding", "chunked"),
            ("sec-websocket-key", "short=="),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZ!=="),
        ] {
            assert!(handshake(&headers(&[change])).is_err(), "{change:?}");
        }
    }
}
