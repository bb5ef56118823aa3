//! Who may use a backend's routes: who knows the key.

use warp::http::{HeaderMap, HeaderValue, StatusCode, header};
use warp::reply::Response;

use super::error;
use crate::relay::Relay;
use crate::wire::ErrorCode;

/// # Errors
/// The refusal, ready to be sent.
pub fn check(relay: &Relay, headers: &HeaderMap) -> Result<(), Box<Response>> {
    let Some(key) = &relay.config.api_key else {
        let why = "this server has no API_KEY, so nobody may use this route; set one";
        return Err(Box::new(error(StatusCode::FORBIDDEN, ErrorCode::Forbidden, why)));
    };
    let given =
        headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    if given.is_some_and(|given| is_same(given, key.as_bytes())) {
        return Ok(());
    }
    let why = "expected the header Authorization: Bearer <API_KEY>";
    let mut refusal = error(StatusCode::UNAUTHORIZED, ErrorCode::Forbidden, why);
    refusal.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    Err(Box::new(refusal))
}

/// Takes as long wherever they differ.
fn is_same(given: &[u8], key: &[u8]) -> bool {
    let differences = given.iter().zip(key).fold(0, |all, (a, b)| all | (a ^ b));
    given.len() == key.len() && differences == 0
}
