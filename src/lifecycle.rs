//! Every connect and disconnect, told to an app's backend through a topic of its own, where there is
//! one: to store who is there, or to end what was going on for who went.
//!
//! Each message is told at least once, in no order; its `time` says when it was. A VM that is killed
//! tells nothing: the others notice that its beacons end, and one of them, that with the lowest id, tells
//! that all its connections are gone. They don't know its connections, but each message names the process
//! that its connection is of, by `instance` and `started`.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use tokio::select;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::bus::{Bus, BusError, Outlet};
use crate::clock::{self, Backoff};
use crate::fleet::Gone;
use crate::identity::Identity;

/// What may wait for the topic; about 300 bytes each. Enough for a whole VM's sockets to go at once.
const MAX_WAITING: usize = 32_768;

/// What is under way at once, and for how long.
const BATCH: usize = 500;
const TRY: Duration = Duration::from_secs(5);

/// What is told, and where; nothing where the settings name no topic. Cheap to clone.
#[derive(Clone)]
pub struct Lifecycle(Option<Arc<Shared>>);

struct Shared {
    topic: String,
    identity: Identity,
    /// When this process started, in ms since the epoch.
    started: i64,
    // A std mutex: held for a push or a few, never over an await.
    queue: Mutex<Queue>,
    grown: Notify,
    lost: Counter,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Report>,
    /// Something was lost since all was well.
    overflown: bool,
}

/// One message, and its event for filters.
#[derive(Clone)]
struct Report {
    event: &'static str,
    data: Bytes,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told<'a> {
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    instance: &'a str,
    region: &'a str,
    started: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clients: Option<usize>,
    time: i64,
}

/// A connection that was told of as opened; dropped, it is told of as closed.
pub struct Presence(Box<Inner>);

struct Inner {
    shared: Arc<Shared>,
    client_id: Arc<str>,
    user: Option<Arc<str>>,
    ip: IpAddr,
    reason: &'static str,
}

impl Lifecycle {
    pub fn new(topic: Option<&str>, identity: &Identity, started: i64, lost: Counter) -> Self {
        Self(topic.map(|topic| {
            Arc::new(Shared {
                topic: topic.into(),
                identity: identity.clone(),
                started,
                queue: Mutex::default(),
                grown: Notify::new(),
                lost,
            })
        }))
    }

    /// Tells of a new connection; None where nobody wants to know.
    pub fn opened(&self, client_id: &Arc<str>, user: Option<&Arc<str>>, ip: IpAddr) -> Option<Presence> {
        let shared = Arc::clone(self.0.as_ref()?);
        let (client_id, user) = (Arc::clone(client_id), user.cloned());
        let inner = Inner { shared, client_id, user, ip, reason: "lost" };
        inner.tell("connect", None);
        Some(Presence(Box::new(inner)))
    }

    /// Tells that a VM's process has ended without a word, and all its connections with it.
    pub fn gone(&self, gone: &Gone) {
        let Some(shared) = &self.0 else { return };
        shared.push(&Told {
            event: "instance-gone",
            client_id: None,
            user: None,
            instance: &gone.instance,
            region: &gone.region,
            started: gone.started,
            ip: None,
            reason: None,
            clients: Some(gone.clients),
            time: clock::now_millis(),
        });
    }
}

impl Presence {
    pub fn ended(mut self, reason: &'static str) {
        self.0.reason = reason;
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.tell("disconnect", Some(self.0.reason));
    }
}

impl Inner {
    fn tell(&self, event: &'static str, reason: Option<&'static str>) {
        self.shared.push(&Told {
            event,
            client_id: Some(&self.client_id),
            user: self.user.as_deref(),
            instance: self.shared.identity.instance(),
            region: self.shared.identity.region(),
            started: self.shared.started,
            ip: Some(self.ip),
            reason,
            clients: None,
            time: clock::now_millis(),
        });
    }
}

impl Shared {
    fn push(&self, told: &Told<'_>) {
        // Strings and numbers always serialize.
        let data = serde_json::to_vec(told).unwrap_or_default().into();
        let mut queue = self.queue();
        if queue.waiting.len() < MAX_WAITING {
            queue.waiting.push_back(Report { event: told.event, data });
            drop(queue);
            self.grown.notify_one();
            return;
        }
        self.lost.inc();
        if !queue.overflown {
            queue.overflown = true;
            warn!(
                topic = self.topic,
                "too many connects and disconnects wait for the topic; further ones are lost"
            );
        }
    }

    /// The oldest that wait. Cancel-safe.
    async fn take(&self) -> Vec<Report> {
        loop {
            {
                let mut queue = self.queue();
                if !queue.waiting.is_empty() {
                    let count = queue.waiting.len().min(BATCH);
                    return queue.waiting.drain(..count).collect();
                }
                queue.overflown = false;
            }
            self.grown.notified().await;
        }
    }

    /// Those the topic did not take, to be tried again.
    fn put_back(&self, reports: Vec<Report>) {
        let mut queue = self.queue();
        for report in reports.into_iter().rev() {
            queue.waiting.push_front(report);
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Publishes what is told until `stop`, and then what still waits.
pub async fn keep(lifecycle: Lifecycle, bus: Bus, stop: CancellationToken) {
    let Some(shared) = lifecycle.0 else { return };
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(15));
    let mut outlet = bus.outlet(&shared.topic).await.ok();
    let mut troubled = false;
    loop {
        let reports = select! {
            biased;
            reports = shared.take() => reports,
            () = stop.cancelled() => return,
        };
        match publish(&bus, &shared.topic, &mut outlet, reports).await {
            Ok(()) => {
                backoff.reset();
                troubled = false;
            }
            Err((error, rest)) => {
                shared.put_back(rest);
                // Over a new connection the next time.
                outlet = None;
                if troubled {
                    debug!(%error, "connects and disconnects still can't be told");
                } else {
                    troubled = true;
                    warn!(%error, topic = shared.topic, "connects and disconnects can't be told; trying again");
                }
                sleep(backoff.wait()).await;
            }
        }
    }
}

/// # Errors
/// Those that the topic did not take, and why.
async fn publish(
    bus: &Bus,
    topic: &str,
    outlet: &mut Option<Outlet>,
    reports: Vec<Report>,
) -> Result<(), (BusError, Vec<Report>)> {
    let outlet = match outlet {
        Some(outlet) => outlet,
        None => match bus.outlet(topic).await {
            Ok(made) => outlet.insert(made),
            Err(error) => return Err((error, reports)),
        },
    };
    let end = Instant::now() + TRY;
    // All are under way before the first is waited for.
    let sent: Vec<_> = reports
        .into_iter()
        .map(|report| (outlet.publish(report.data.clone(), report.event), report))
        .collect();
    let mut failed = None;
    let mut rest = Vec::new();
    for (confirmed, report) in sent {
        let confirmed = timeout_at(end, confirmed).await;
        let no_answer = |_| Err(BusError::new("publishing: no answer in time"));
        if let Err(error) = confirmed.unwrap_or_else(no_answer) {
            failed = Some(error);
            rest.push(report);
        }
    }
    failed.map_or(Ok(()), |error| Err((error, rest)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[tokio::test]
    async fn what_is_lost_is_counted() {
        let identity = Config::from_vars([]).unwrap().identity;
        let lost = Counter::default();
        let lifecycle = Lifecycle::new(Some("life"), &identity, 7, lost.clone());
        let ip = [127, 0, 0, 1].into();
        let first = lifecycle.opened(&"a".into(), None, ip).unwrap();
        for _ in 0..MAX_WAITING / 2 {
            lifecycle.opened(&"b".into(), None, ip);
        }
        assert_eq!(lost.get(), 1);
        first.ended("closed");
        assert_eq!(lost.get(), 2);
        let shared = lifecycle.0.unwrap();
        let taken = shared.take().await;
        assert_eq!(taken.len(), BATCH);
        let told: serde_json::Value = serde_json::from_slice(&taken[0].data).unwrap();
        assert_eq!((&told["event"], &told["clientId"]), (&"connect".into(), &"a".into()));
        shared.put_back(taken);
        assert_eq!(shared.queue().waiting.len(), MAX_WAITING);
    }
}
