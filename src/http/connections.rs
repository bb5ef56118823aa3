//! `/connections/{clientId}`: an app's backend and one connection, on whichever VM that is.

use std::convert::Infallible;
use std::sync::Arc;

use percent_encoding::percent_decode_str;
use serde_json::value::RawValue;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::{HeaderMap, Method, StatusCode};
use warp::reply::{Reply as _, Response};

use super::backend::{Chunks, check_key, invalid, message_id, read_body, refuse, unavailable};
use super::server::Peer;
use crate::connections::{ClientId, Unreached, letter};
use crate::event::{Outcome, Wish};
use crate::relay::Relay;
use crate::wire::ErrorCode;

pub fn routes(relay: Arc<Relay>) -> BoxedFilter<(Response,)> {
    let method = warp::get().or(warp::post()).unify().or(warp::delete()).unify();
    warp::path!("connections" / String)
        .and(method)
        .and(warp::method())
        .and(warp::header::headers_cloned())
        .and(warp::ext::get::<Peer>())
        .and(warp::body::stream())
        .and_then(move |id: String, method: Method, headers: HeaderMap, peer: Peer, body| {
            let relay = Arc::clone(&relay);
            async move {
                let answered = handle(&relay, &id, &method, &headers, peer, body).await;
                Ok::<_, Infallible>(answered.unwrap_or_else(|refusal| *refusal))
            }
        })
        .boxed()
}

async fn handle(
    relay: &Relay,
    id: &str,
    method: &Method,
    headers: &HeaderMap,
    peer: Peer,
    body: impl Chunks,
) -> Result<Response, Box<Response>> {
    check_key(relay, headers, peer)?;
    let id = percent_decode_str(id).decode_utf8().ok().and_then(|id| ClientId::parse(&id));
    let id = id.ok_or_else(|| invalid("clientId: expected one as \"connected\" tells it"))?;
    let (message, wish) = match *method {
        Method::POST => {
            let letter = letter(message_id(headers)?, None, data(relay, body).await?);
            (letter.id.clone(), Wish::Write(letter))
        }
        Method::DELETE => (String::new(), Wish::Close),
        _ => (String::new(), Wish::Describe),
    };
    let outcome = relay.ask(&id, wish).await.map_err(unreached)?;
    Ok(match outcome {
        Outcome::Described(description) => warp::reply::json(&description).into_response(),
        Outcome::Closed => StatusCode::NO_CONTENT.into_response(),
        Outcome::Written => warp::reply::json(&serde_json::json!({"id": message})).into_response(),
        Outcome::Gone => *unreached(Unreached::Gone),
    })
}

async fn data(relay: &Relay, body: impl Chunks) -> Result<Box<RawValue>, Box<Response>> {
    let body = read_body(body, relay.config.limits.message_bytes).await?;
    serde_json::from_slice(&body).map_err(|error| {
        refuse(StatusCode::BAD_REQUEST, ErrorCode::InvalidJson, format!("the body is not JSON: {error}"))
    })
}

fn unreached(why: Unreached) -> Box<Response> {
    match why {
        Unreached::Gone => {
            refuse(StatusCode::GONE, ErrorCode::NotFound, "there is no such connection any more")
        }
        Unreached::NoAnswer => refuse(
            StatusCode::GATEWAY_TIMEOUT,
            ErrorCode::Unavailable,
            "its VM did not answer in 2 s; it may have been done, and the same Idempotency-Key is safe",
        ),
        Unreached::Unavailable(why) => unavailable(why),
    }
}
