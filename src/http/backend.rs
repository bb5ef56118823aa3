//! What the backend's routes have in common: who may use them, which message a request is, and how it is
//! refused.

use std::fmt;

use warp::http::{HeaderMap, HeaderValue, StatusCode, header};
use warp::reply::Response;

use super::error;
use crate::auth::ApiRefusal;
use crate::relay::{RETRY_AFTER, Relay};
use crate::wire::ErrorCode;
use crate::wire::request::checked_id;

/// The message's id, so that a retry is the same message.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Lets in who knows the key, and not faster than it allows.
///
/// # Errors
/// The refusal, ready to be sent.
pub fn check_key(relay: &Relay, headers: &HeaderMap) -> Result<(), Box<Response>> {
    let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let Err(refusal) = relay.backend.admit(given) else { return Ok(()) };
    relay.metrics.api_rejected(refusal.name());
    let (status, code) = match refusal {
        ApiRefusal::NotConfigured => (StatusCode::FORBIDDEN, ErrorCode::Forbidden),
        ApiRefusal::Missing | ApiRefusal::Wrong => (StatusCode::UNAUTHORIZED, ErrorCode::Forbidden),
        ApiRefusal::TooFast(_) => (StatusCode::TOO_MANY_REQUESTS, ErrorCode::RateLimited),
    };
    let mut refused = refuse(status, code, refusal);
    let headers = refused.headers_mut();
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let ApiRefusal::TooFast(seconds) = refusal {
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

pub fn invalid(why: impl fmt::Display) -> Box<Response> {
    refuse(StatusCode::BAD_REQUEST, ErrorCode::InvalidField, why)
}

pub fn too_large(most: usize) -> Box<Response> {
    let why = format!("the body: expected at most {most} bytes");
    refuse(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::TooLarge, why)
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
