//! The HTTP side: the page, the upgrade to WebSocket, and what operators and machines ask.

mod address;
mod api;
mod backend;
mod connections;
mod framing;
mod listen;
mod page;
mod server;
mod spare;
mod status;
mod upgrade;

use std::convert::Infallible;
use std::sync::{Arc, LazyLock};

use serde::Serialize;
use warp::filters::BoxedFilter;
use warp::http::header::{HeaderMap, HeaderName, HeaderValue};
use warp::http::{StatusCode, header};
use warp::reply::{Reply, Response};
use warp::{Filter, Rejection};

pub use self::listen::listen;
pub use self::page::prepare as prepare_page;
pub use self::server::{MAX_CONNECTIONS, Peer, Takeover, Taker, answer, serve};
use crate::relay::Relay;
use crate::wire::ErrorCode;

/// Everything but images and the socket comes from this server, and nothing runs inline.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     img-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

/// All routes; [`answer`] is the way through them.
pub fn routes(relay: Arc<Relay>) -> BoxedFilter<(impl Reply,)> {
    let upgrade = upgrade::route(Arc::clone(&relay));
    let status = status::routes(Arc::clone(&relay));
    let connections = connections::routes(Arc::clone(&relay));
    upgrade
        .or(status)
        .unify()
        .or(connections)
        .unify()
        .or(api::routes(relay))
        .unify()
        .or(page::routes())
        .unify()
        .recover(refuse)
        .boxed()
}

/// With every answer of a route.
static STRICT: LazyLock<HeaderMap> = LazyLock::new(|| {
    let headers: [(HeaderName, &'static str); 5] = [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("permissions-policy"), "camera=(), microphone=(), geolocation=(self)"),
    ];
    headers.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).collect()
});

/// An error as JSON: `{"error": {"code", "message"}}`.
fn error(status: StatusCode, code: ErrorCode, message: &str) -> Response {
    #[derive(Serialize)]
    struct Body<'a> {
        error: Details<'a>,
    }
    #[derive(Serialize)]
    struct Details<'a> {
        code: ErrorCode,
        message: &'a str,
    }
    let body = warp::reply::json(&Body { error: Details { code, message } });
    warp::reply::with_status(body, status).into_response()
}

/// What no route took.
async fn refuse(rejection: Rejection) -> Result<Response, Infallible> {
    let method = rejection.find::<warp::reject::MethodNotAllowed>().is_some();
    Ok(if method {
        error(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::NotFound, "this route does not take that method")
    } else {
        error(StatusCode::NOT_FOUND, ErrorCode::NotFound, "no such page; the app is at /, its socket at /ws")
    })
}
