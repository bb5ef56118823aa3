//! What the backend's routes have in common: who may use them, which message a request is, how its body is
//! read, and how it is refused.

use std::fmt;
use std::pin::pin;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{Stream, TryStreamExt as _};
use http_body_util::{BodyExt as _, LengthLimitError, Limited, StreamBody};
use hyper::body::Frame;
use tokio::time::timeout;
use warp::http::{HeaderMap, HeaderValue, StatusCode, header};
use warp::reply::Response;

use super::server::Peer;
use super::{address, error};
use crate::auth::ApiRefusal;
use crate::relay::{RETRY_AFTER, Relay};
use crate::wire::ErrorCode;
use crate::wire::request::checked_id;

/// The message's id, so that a retry is the same message.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// A body that is not whole by then is given up.
const BODY_TIME: Duration = Duration::from_secs(10);

/// A request's body as it comes.
pub trait Chunks: Stream<Item = Result<Self::Chunk, warp::Error>> + Send {
    type Chunk: Buf + Send;
}

impl<C: Buf + Send, S: Stream<Item = Result<C, warp::Error>> + Send> Chunks for S {
    type Chunk = C;
}

/// Lets in who knows the key, and not faster than it allows.
///
/// # Errors
/// The refusal, ready to be sent.
pub fn check_key(relay: &Relay, headers: &HeaderMap, peer: Peer) -> Result<(), Box<Response>> {
    let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let Err(refusal) = relay.backend.admit(given, address::visitor(relay, peer, headers)) else {
        return Ok(());
    };
    relay.metrics.api_rejected.inc(refusal.name());
    let (status, code) = match refusal {
        ApiRefusal::NotConfigured => (StatusCode::FORBIDDEN, ErrorCode::Forbidden),
        ApiRefusal::Missing | ApiRefusal::Wrong => (StatusCode::UNAUTHORIZED, ErrorCode::Forbidden),
        ApiRefusal::TooFast(_) | ApiRefusal::Guessing(_) => {
            (StatusCode::TOO_MANY_REQUESTS, ErrorCode::RateLimited)
        }
    };
    let mut refused = refuse(status, code, refusal);
    let headers = refused.headers_mut();
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let ApiRefusal::TooFast(seconds) | ApiRefusal::Guessing(seconds) = refusal {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    Err(refused)
}

/// # Errors
/// The refusal of a key that is no id.
pub fn message_id(headers: &HeaderMap) -> Result<Option<String>, Box<Response>> {
    let Some(key) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = key.to_str().ok().and_then(|key| checked_id(key).ok());
    key.map(Some).ok_or_else(|| invalid("Idempotency-Key: expected 1 to 64 printable characters"))
}

/// The whole body of a request, whether its length was told beforehand or not.
///
/// # Errors
/// The refusal of one that has more than `most` bytes, takes too long or breaks off.
pub async fn read_body(body: impl Chunks, most: usize) -> Result<Bytes, Box<Response>> {
    let body = pin!(body.map_ok(Frame::data));
    match timeout(BODY_TIME, Limited::new(StreamBody::new(body), most).collect()).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let why = format!("the body: expected at most {most} bytes");
            Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::TooLarge, why))
        }
        Ok(Err(_)) => Err(invalid("the body broke off")),
        Err(_) => {
            let why = format!("the body did not come within {} s", BODY_TIME.as_secs());
            Err(refuse(StatusCode::REQUEST_TIMEOUT, ErrorCode::Unavailable, why))
        }
    }
}

pub fn invalid(why: impl fmt::Display) -> Box<Response> {
    refuse(StatusCode::BAD_REQUEST, ErrorCode::InvalidField, why)
}

/// This VM can't do it now; with when to come again.
pub fn unavailable(why: impl fmt::Display) -> Box<Response> {
    let mut refused = refuse(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, why);
    refused.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER.as_secs().into());
    refused
}

pub fn refuse(status: StatusCode, code: ErrorCode, why: impl fmt::Display) -> Box<Response> {
    Box::new(error(status, code, &why.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{StreamExt as _, stream};

    async fn read(chunks: &'static [&'static str], most: usize) -> Result<Bytes, StatusCode> {
        let chunks = stream::iter(chunks).map(|chunk| Ok(chunk.as_bytes()));
        read_body(chunks, most).await.map_err(|refusal| refusal.status())
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_read_whole_within_its_bounds() {
        assert_eq!(read(&[], 0).await.unwrap(), "");
        assert_eq!(read(&["ab", "", "cd"], 4).await.unwrap(), "abcd");
        assert_eq!(read(&["ab", "cd"], 3).await, Err(StatusCode::PAYLOAD_TOO_LARGE));
        let stuck = stream::iter([Ok(&b"ab"[..])]).chain(stream::pending());
        let refused = read_body(stuck, 9).await.unwrap_err();
        assert_eq!(refused.status(), StatusCode::REQUEST_TIMEOUT);
    }
}
