//! The life of one VM: listen, join the topic, relay, leave.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::select;
use tokio::task::JoinSet;
use tokio::task::coop::unconstrained;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::bus::Bus;
use crate::bus::memory::Topic;
use crate::bus::pubsub::PubSub;
use crate::config::{BusConfig, Config, ConfigError};
use crate::relay::Relay;
use crate::shard::Shard;
use crate::{http, lifecycle, path, traces};

/// Files open beside the sockets: connections that are none yet, those to Google, and the rest.
pub const OTHER_FILES: usize = http::MAX_CONNECTIONS + 128;

/// A VM that is to end has left within this.
const LEAVING: Duration = Duration::from_secs(4);

/// For the subscription's deletion, and at the same time for what is accepted to be published.
const LAST_CALLS: Duration = Duration::from_millis(1_200);

/// For the others to hear that this VM goes.
const FAREWELL: Duration = Duration::from_millis(300);

/// The closes of many sockets are spread over this; of few, over so much a socket.
const CLOSING: Duration = Duration::from_secs(1);
const CLOSING_EACH: Duration = Duration::from_micros(200);

/// For the sockets to hear that they are closed.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// For the backend to hear of the last disconnects.
const LAST_REPORTS: Duration = Duration::from_millis(400);

/// Each of these may take all its time, one after the other, and so much is left of what a VM has for leaving.
const _: () = {
    let waits = [path::LAST_JOIN, LAST_CALLS, FAREWELL, CLOSING, LAST_WORDS, LAST_REPORTS];
    let (mut sum, mut index) = (100, 0);
    while index < waits.len() {
        sum += waits[index].as_millis();
        index += 1;
    }
    assert!(sum <= LEAVING.as_millis());
};

/// Clients come back within this, each at a time of its own.
const SPREAD: Duration = Duration::from_secs(5);

/// The bus that the settings ask for.
///
/// # Errors
/// Its credentials can't be used.
pub async fn bus(config: &Config) -> Result<Bus, ConfigError> {
    Ok(match &config.bus {
        BusConfig::Memory => Bus::Memory(Topic::new(config.history).member()),
        BusConfig::PubSub(settings) => Bus::PubSub(PubSub::new(settings, &config.identity).await?),
    })
}

/// One of the tasks that make a VM has ended by itself: a defect of this program.
#[derive(Debug)]
pub struct Broken;

/// Runs a VM on `listeners` until `shutdown`, and leaves within 4 s then.
///
/// # Errors
/// It can't go on; it left in order, and is to be started anew.
pub async fn run(
    listeners: Vec<TcpListener>,
    config: Config,
    bus: Bus,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Broken> {
    // One for each thread: more would not write faster.
    let threads = Handle::current().metrics().num_workers();
    let relay = Arc::new(Relay::new(config, bus, threads));
    let sockets = TaskTracker::new();
    let serving = CancellationToken::new();
    let relaying = CancellationToken::new();
    let closing = CancellationToken::new();

    let mut shards = JoinSet::new();
    for mailbox in &*relay.shards {
        let shard = Shard::new(Arc::clone(&relay), mailbox.clone(), sockets.clone());
        // It shares its time with others by itself.
        shards.spawn(unconstrained(shard.run(closing.clone())));
    }
    let routes = http::routes(Arc::clone(&relay));
    let mut server = tokio::spawn(http::serve(listeners, routes, serving.clone()));
    // Beside the start, which need not wait for it, and not on the thread of the first who asks.
    tokio::task::spawn_blocking(http::prepare_page);
    let reporting = CancellationToken::new();
    let reports = lifecycle::keep(relay.lifecycle.clone(), relay.bus.clone(), reporting.clone());
    let reports = tokio::spawn(reports);
    let mut path = tokio::spawn(path::keep(Arc::clone(&relay), relaying.clone()));

    let ended = select! {
        () = shutdown => Ok(()),
        // Without these a VM looks alive and hears nothing; better one that starts anew.
        _ = &mut server => Err(Broken),
        _ = &mut path => Err(Broken),
        _ = shards.join_next() => Err(Broken),
    };
    let begun = Instant::now();
    relay.health.leaving();
    info!(sockets = relay.clients(), "leaving");

    // The path's task first, or it might make the subscription again.
    relaying.cancel();
    if !path.is_finished() {
        let _ = path.await;
    }
    leave(&relay).await;
    closing.cancel();
    sockets.close();
    let closed = async {
        while shards.join_next().await.is_some() {}
        sockets.wait().await;
    };
    // All that they are of is over. Sent beside what else is left to do.
    let traced = tokio::spawn(traces::finish(LAST_WORDS + LAST_REPORTS));
    if timeout(LAST_WORDS, closed).await.is_err() {
        let sockets = relay.clients() + sockets.len();
        info!(sockets, "sockets that did not answer the close are dropped");
    }
    reporting.cancel();
    if timeout(LAST_REPORTS, reports).await.is_err() {
        warn!("not all of the last disconnects could be told to the backend");
    }
    serving.cancel();
    if !server.is_finished() {
        let _ = server.await;
    }
    let _ = traced.await;
    info!(took = ?begun.elapsed(), "left");
    ended
}

/// Leaves the topic, with all that was accepted published or answered, and then sends the sockets away.
pub(crate) async fn leave(relay: &Relay) {
    let published = async {
        let unconfirmed = relay.publishing.finish(LAST_CALLS).await;
        if unconfirmed > 0 {
            warn!(unconfirmed, "not all that was accepted could be published; its senders are told");
        }
        // After the last event, so that the others know that they have all.
        let _ = timeout(FAREWELL, path::farewell(relay)).await;
    };
    let (left, ()) = tokio::join!(timeout(LAST_CALLS, relay.bus.leave()), published);
    match left {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(%error, "the subscription stays; it expires by itself after a day"),
        Err(_) => warn!("no answer from the topic; the subscription, if it stays, expires after a day"),
    }

    let count = u32::try_from(relay.clients()).unwrap_or(u32::MAX);
    relay.close_sockets(CLOSING.min(CLOSING_EACH * count), SPREAD).await;
}
