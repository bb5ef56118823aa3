//! What a backend tells everybody, or a channel: `POST /alerts` and `POST /channels/{channel}`.

use std::sync::Arc;

use percent_encoding::percent_decode_str;
use serde::Serialize;
use tokio::sync::oneshot;
use warp::filters::BoxedFilter;
use warp::http::{HeaderMap, StatusCode};
use warp::path::Tail;
use warp::reply::{Reply as _, Response};
use warp::{Filter, Rejection};

use super::backend::{Chunks, check_key, invalid, message_id, read_body, refuse, unavailable};
use super::server::Peer;
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
        .and(warp::ext::get::<Peer>())
        .and(warp::body::stream())
        .and_then(async |relay: Arc<Relay>, headers: HeaderMap, peer: Peer, body| {
            Ok::<_, Rejection>(alert(&relay, &headers, peer, body).await.unwrap_or_else(|refused| *refused))
        });
    let channels = warp::path("channels")
        .and(warp::path::tail())
        .and(warp::post())
        .and(relay)
        .and(warp::header::headers_cloned())
        .and(warp::ext::get::<Peer>())
        .and(warp::body::stream())
        .and_then(async |channel: Tail, relay: Arc<Relay>, headers: HeaderMap, peer: Peer, body| {
            let told = tell(&relay, channel.as_str(), &headers, peer, body).await;
            Ok::<_, Rejection>(told.unwrap_or_else(|refused| *refused))
        });
    alerts.or(channels).unify().boxed()
}

async fn alert(
    relay: &Arc<Relay>,
    headers: &HeaderMap,
    peer: Peer,
    body: impl Chunks,
) -> Result<Response, Box<Response>> {
    check_key(relay, headers, peer)?;
    let body = read_body(body, relay.config.limits.message_bytes).await?;
    let json = text(&body)?;
    let data = request::landing_of(if json.trim().is_empty() { "{}" } else { json }).map_err(refused)?;
    publish(relay, headers, Kind::Alert, None, data).await
}

async fn tell(
    relay: &Arc<Relay>,
    channel: &str,
    headers: &HeaderMap,
    peer: Peer,
    body: impl Chunks,
) -> Result<Response, Box<Response>> {
    check_key(relay, headers, peer)?;
    // A channel's slashes may stand for themselves; other characters may come encoded.
    let name = percent_decode_str(channel).decode_utf8_lossy();
    let channel = Channel::new(&name).map_err(invalid)?;
    let body = read_body(body, relay.config.limits.message_bytes).await?;
    let (kind, data) = request::app_event(text(&body)?).map_err(refused)?;
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

fn text(body: &[u8]) -> Result<&str, Box<Response>> {
    std::str::from_utf8(body).map_err(|_| invalid("the body is not UTF-8"))
}

fn refused(bad: Invalid) -> Box<Response> {
    refuse(StatusCode::BAD_REQUEST, bad.code, bad.message)
}
