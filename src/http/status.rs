//! What load balancers, people and Prometheus ask a VM.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::{HeaderMap, StatusCode, header};
use warp::reply::{Reply as _, Response};

use crate::health::Phase;
use crate::metrics::Format;
use crate::process;
use crate::relay::Relay;
use crate::wire::reply::{InstanceInfo, instances};

/// `/health`, App Engine's `/_ah/health`, `/status` and `/metrics`.
pub fn routes(relay: Arc<Relay>) -> BoxedFilter<(Response,)> {
    let started = Instant::now();
    let relay = warp::any().map(move || Arc::clone(&relay));
    let get = warp::get().or(warp::head()).unify();
    let health = warp::path!("health").or(warp::path!("_ah" / "health")).unify();
    let health = health.and(get).and(relay.clone()).map(|relay: Arc<Relay>| health_reply(&relay));
    let status = warp::path!("status")
        .and(get)
        .and(relay.clone())
        .map(move |relay: Arc<Relay>| status_reply(&relay, started));
    let metrics = warp::path!("metrics").and(get).and(relay).and(warp::header::headers_cloned());
    let metrics = metrics.map(|relay: Arc<Relay>, headers: HeaderMap| {
        let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
        let format = Format::accepted(accept);
        let text = relay.figures(format);
        warp::reply::with_header(text, header::CONTENT_TYPE, format.content_type()).into_response()
    });
    health.or(status).unify().or(metrics).unify().boxed()
}

fn health_reply(relay: &Relay) -> Response {
    let phase = relay.health.phase();
    let status = if phase == Phase::Ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    warp::reply::with_status(phase.text(), status).into_response()
}

fn status_reply(relay: &Relay, started: Instant) -> Response {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Status<'a> {
        status: &'static str,
        connected_clients: usize,
        uptime: f64,
        memory_usage: Memory,
        instance_id: &'a str,
        region: &'a str,
        version: &'static str,
        bus: &'static str,
        fleet: Vec<InstanceInfo<'a>>,
    }
    #[derive(Serialize)]
    struct Memory {
        rss: Option<u64>,
    }
    let identity = relay.identity();
    let connected_clients = relay.clients();
    let memory_usage = Memory { rss: process::resident_bytes() };
    relay.with_fleet(|fleet| {
        warp::reply::json(&Status {
            status: match relay.health.phase() {
                Phase::Starting => "starting",
                Phase::Ready => "ready",
                Phase::Unreachable(_) => "unreachable",
                Phase::Leaving => "leaving",
            },
            connected_clients,
            uptime: started.elapsed().as_secs_f64(),
            memory_usage,
            instance_id: identity.instance(),
            region: identity.region(),
            version: env!("CARGO_PKG_VERSION"),
            bus: relay.bus.kind(),
            fleet: instances(fleet),
        })
        .into_response()
    })
}
