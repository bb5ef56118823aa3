//! `/connections/{clientId}`: an app's backend and one connection, on whichever VM that is.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use percent_encoding::percent_decode_str;
use serde_json::value::RawValue;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::{HeaderMap, Method, StatusCode, header};
use warp::reply::{Reply as _, Response};

use super::{api_key, error};
use crate::connections::{ClientId, Unreached, letter};
use crate::event::{Outcome, Wish};
use crate::relay::Relay;
use crate::wire::ErrorCode;
use crate::wire::request::checked_id;

/// The message's id, so that a retry is the same message.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

pub fn routes(relay: Arc<Relay>) -> BoxedFilter<(Response,)> {
    let method = warp::get().or(warp::post()).unify().or(warp::delete()).unify();
    warp::path!("connections" / String)
        .and(method)
        .and(warp::method())
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .and_then(move |id: String, method: Method, headers: HeaderMap, body| {
            let relay = Arc::clone(&relay);
            async move {
                let answered = handle(&relay, &id, &method, &headers, body).await;
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
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Result<Response, Box<Response>> {
    api_key::check(relay, headers)?;
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

fn message_id(headers: &HeaderMap) -> Result<Option<String>, Box<Response>> {
    let Some(key) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = key.to_str().ok().and_then(|key| checked_id(key).ok());
    key.map(Some).ok_or_else(|| invalid("Idempotency-Key: expected 1 to 64 printable characters"))
}

async fn data(
    relay: &Relay,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Result<Box<RawValue>, Box<Response>> {
    let most = relay.config.limits.message_bytes;
    let body = read(body, most).await.ok_or_else(|| {
        let why = format!("the body: expected at most {most} bytes");
        refuse(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::TooLarge, &why)
    })?;
    serde_json::from_slice(&body).map_err(|error| {
        refuse(StatusCode::BAD_REQUEST, ErrorCode::InvalidJson, &format!("the body is not JSON: {error}"))
    })
}

/// The whole body, if it has not more than `most` bytes. One that breaks off is no JSON.
async fn read(body: impl Stream<Item = Result<impl Buf, warp::Error>>, most: usize) -> Option<Bytes> {
    let mut body = std::pin::pin!(body);
    let mut whole = BytesMut::new();
    while let Some(Ok(mut chunk)) = body.next().await {
        if whole.len() + chunk.remaining() > most {
            return None;
        }
        whole.extend_from_slice(&chunk.copy_to_bytes(chunk.remaining()));
    }
    Some(whole.freeze())
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
        Unreached::Unavailable(why) => {
            let mut refusal = refuse(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, &why);
            refusal.headers_mut().insert(header::RETRY_AFTER, 2.into());
            refusal
        }
    }
}

fn invalid(why: &str) -> Box<Response> {
    refuse(StatusCode::BAD_REQUEST, ErrorCode::InvalidField, why)
}

fn refuse(status: StatusCode, code: ErrorCode, why: &str) -> Box<Response> {
    Box::new(error(status, code, why))
}
