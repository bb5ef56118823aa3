//! Who may use a backend's routes: who knows the key, and not faster than it allows.

use warp::http::{HeaderMap, HeaderValue, StatusCode, header};
use warp::reply::Response;

use super::error;
use crate::auth::ApiRefusal;
use crate::relay::Relay;
use crate::wire::ErrorCode;

/// # Errors
/// The refusal, ready to be sent.
pub fn check(relay: &Relay, headers: &HeaderMap) -> Result<(), Box<Response>> {
    let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let Err(refusal) = relay.backend.admit(given) else { return Ok(()) };
    relay.metrics.rejected(refusal.name());
    let why = refusal.to_string();
    Err(Box::new(match refusal {
        ApiRefusal::NotConfigured => error(StatusCode::FORBIDDEN, ErrorCode::Forbidden, &why),
        ApiRefusal::Missing | ApiRefusal::Wrong => {
            let mut answer = error(StatusCode::UNAUTHORIZED, ErrorCode::Forbidden, &why);
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            answer
        }
        ApiRefusal::TooFast(wait) => {
            let mut answer = error(StatusCode::TOO_MANY_REQUESTS, ErrorCode::RateLimited, &why);
            answer.headers_mut().insert(header::RETRY_AFTER, wait.into());
            answer
        }
    }))
}
