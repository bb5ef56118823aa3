//! What a backend tells everybody, or a channel: `POST /alerts` and `POST /channels/{channel}`.

use std::sync::Arc;

use bytes::Bytes;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use tokio::sync::oneshot;
use warp::filters::BoxedFilter;
use warp::http::{HeaderMap, StatusCode, header};
use warp::path::Tail;
use warp::reply::{Reply as _, Response};
use warp::{Filter, Rejection};

use super::{api_key, error};
use crate::channel::Channel;
use crate::event::Kind;
use crate::relay::{RETRY_AFTER, Relay};
use crate::wire::ErrorCode;
use crate::wire::request::{self, Invalid};

/// The `senderId` of an alert that no connection sent.
const BACKEND: &str = "backend";

pub fn routes(relay: Arc<Relay>) -> BoxedFilter<(Response,)> {
    let relay = warp::any().map(move || Arc::clone(&relay));
    let alerts = warp::path!("alerts")
        .and(warp::post())
        .and(relay.clone())
        .and(warp::header::headers_cloned())
        .and(body())
        .and_then(async |relay: Arc<Relay>, headers: HeaderMap, body: Bytes| {
            Ok::<_, Rejection>(alert(&relay, &headers, &body).await.unwrap_or_else(|refused| *refused))
        });
    let channels = warp::path("channels")
        .and(warp::path::tail())
        .and(warp::post())
        .and(relay)
        .and(warp::header::headers_cloned())
        .and(body())
        .and_then(async |channel: Tail, relay: Arc<Relay>, headers: HeaderMap, body: Bytes| {
            let told = tell(&relay, channel.as_str(), &headers, &body).await;
            Ok::<_, Rejection>(told.unwrap_or_else(|refused| *refused))
        });
    alerts.or(channels).unify().boxed()
}

async fn alert(relay: &Arc<Relay>, headers: &HeaderMap, body: &[u8]) -> Result<Response, Box<Response>> {
    api_key::check(relay, headers)?;
    let json = text(relay, body)?;
    let data = request::landing_of(if json.trim().is_empty() { "{}" } else { json }).map_err(refused)?;
    publish(relay, headers, Kind::Alert, None, data).await
}

async fn tell(
    relay: &Arc<Relay>,
    channel: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response, Box<Response>> {
    api_key::check(relay, headers)?;
    // A channel's slashes may stand for themselves; other characters may come encoded.
    let name = percent_decode_str(channel).decode_utf8_lossy();
    let channel = Channel::new(&name).map_err(|bad| invalid(&bad.to_string()))?;
    let (kind, data) = request::app_event(text(relay, body)?).map_err(refused)?;
    publish(relay, headers, kind, Some(channel), data).await
}

async fn publish(
    relay: &Arc<Relay>,
    headers: &HeaderMap,
    kind: Kind,
    channel: Option<Channel>,
    data: Box<serde_json::value::RawValue>,
) -> Result<Response, Box<Response>> {
    #[derive(Serialize)]
    struct Accepted<'a> {
        id: &'a str,
    }
    let key = headers.get("idempotency-key").map(|key| key.to_str().unwrap_or_default());
    let id = key.map(request::checked_id).transpose();
    let id = id.map_err(|bad| invalid(&format!("Idempotency-Key: {}", bad.message)))?;
    let event = relay.event(kind, channel, data, id, BACKEND.into());
    let id = event.id.clone();
    let (done, confirmed) = oneshot::channel();
    relay.publish(event, move |answer| {
        // Who asked may have gone; the event is on its way all the same.
        let _ = done.send(answer);
    });
    match confirmed.await.unwrap_or(Err("this VM is leaving; ask another")) {
        Ok(()) => {
            let body = warp::reply::json(&Accepted { id: &id });
            Ok(warp::reply::with_status(body, StatusCode::ACCEPTED).into_response())
        }
        Err(why) => {
            let mut answer = error(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, why);
            answer.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER.as_secs().into());
            Err(Box::new(answer))
        }
    }
}

/// A body whose length is told and within reason; what this program takes is checked by [`text`].
fn body() -> impl Filter<Extract = (Bytes,), Error = Rejection> + Clone {
    const MOST: u64 = 2 << 20;
    warp::body::content_length_limit(MOST).and(warp::body::bytes())
}

fn text<'a>(relay: &Relay, body: &'a [u8]) -> Result<&'a str, Box<Response>> {
    let most = relay.config.limits.message_bytes;
    if body.len() > most {
        let why = format!("the body has more than {most} bytes");
        return Err(Box::new(error(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::TooLarge, &why)));
    }
    std::str::from_utf8(body).map_err(|_| invalid("the body is not UTF-8"))
}

fn refused(bad: Invalid) -> Box<Response> {
    Box::new(error(StatusCode::BAD_REQUEST, bad.code, &bad.message))
}

fn invalid(why: &str) -> Box<Response> {
    Box::new(error(StatusCode::BAD_REQUEST, ErrorCode::InvalidField, why))
}
