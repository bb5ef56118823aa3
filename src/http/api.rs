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

use super::backend::{check_key, invalid, message_id, refuse, too_large, unavailable};
use crate::channel::Channel;
use crate::event::Kind;
use crate::relay::Relay;
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
    check_key(relay, headers)?;
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
    check_key(relay, headers)?;
    // A channel's slashes may stand for themselves; other characters may come encoded.
    let name = percent_decode_str(channel).decode_utf8_lossy();
    let channel = Channel::new(&name).map_err(invalid)?;
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
    let event = relay.event(kind, channel, data, message_id(headers)?, BACKEND.into());
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
        Err(why) => Err(unavailable(why)),
    }
}

/// A body within reason, of a length told beforehand; none at all is an empty one. What this program
/// takes is checked by [`text`].
fn body() -> impl Filter<Extract = (Bytes,), Error = Rejection> + Clone {
    const MOST: u64 = 2 << 20;
    let told = warp::body::content_length_limit(MOST).and(warp::body::bytes());
    let none = warp::header::headers_cloned().and_then(async |headers: HeaderMap| {
        let told = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
        if told.iter().any(|name| headers.contains_key(name)) {
            return Err(warp::reject::not_found());
        }
        Ok(Bytes::new())
    });
    told.or(none).unify()
}

fn text<'a>(relay: &Relay, body: &'a [u8]) -> Result<&'a str, Box<Response>> {
    let most = relay.config.limits.message_bytes;
    if body.len() > most {
        return Err(too_large(most));
    }
    std::str::from_utf8(body).map_err(|_| invalid("the body is not UTF-8"))
}

fn refused(bad: Invalid) -> Box<Response> {
    refuse(StatusCode::BAD_REQUEST, bad.code, bad.message)
}
