//! Figures for Prometheus, served at `/metrics`.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::identity::Identity;

/// The content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Type {
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    outcome: &'static str,
}

pub struct Metrics {
    registry: Mutex<Registry>,
    pub connections: Gauge,
    pub fleet: Gauge,
    pub rate_limited: Counter,
    pub duplicates: Counter,
    pub undecodable: Counter,
    pub holes: Counter,
    pub lost: Counter,
    pub seeks: Counter,
    pub receipts: Counter,
    pub publish_errors: Counter,
    pub lifecycle_lost: Counter,
    pub round_trip: Histogram,
    publish_seconds: Histogram,
    received: Family<Type, Counter>,
    events: Family<Type, Counter>,
    deliveries: Family<Type, Counter>,
    closed: Family<Reason, Counter>,
    rejected: Family<Reason, Counter>,
    api_rejected: Family<Reason, Counter>,
    asks: Family<Outcome, Counter>,
    authorized: Family<Outcome, Counter>,
    authorizer_seconds: Histogram,
}

impl Metrics {
    pub fn new(identity: Identity) -> Self {
        let mut registry = Registry::with_prefix("alien_alert");
        registry.register(
            "build",
            "The VM and its version",
            Info::new(vec![
                ("version", env!("CARGO_PKG_VERSION").to_owned()),
                ("instance", identity.instance().to_string()),
                ("region", identity.region().to_string()),
            ]),
        );
        // 1 ms to 16 s: from a bus in the same process to the end of patience.
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let metrics = Self {
            registry: Mutex::default(),
            connections: Gauge::<i64, _>::default(),
            fleet: Gauge::<i64, _>::default(),
            rate_limited: Counter::<u64, AtomicU64>::default(),
            duplicates: Counter::default(),
            undecodable: Counter::default(),
            holes: Counter::default(),
            lost: Counter::default(),
            seeks: Counter::default(),
            receipts: Counter::default(),
            publish_errors: Counter::default(),
            lifecycle_lost: Counter::default(),
            round_trip: seconds(),
            publish_seconds: seconds(),
            received: Family::default(),
            events: Family::default(),
            deliveries: Family::default(),
            closed: Family::default(),
            rejected: Family::default(),
            api_rejected: Family::default(),
            asks: Family::default(),
            authorized: Family::default(),
            authorizer_seconds: seconds(),
        };
        registry.register("connections", "Sockets open on this VM", metrics.connections.clone());
        registry.register("fleet_instances", "VMs alive, this one too", metrics.fleet.clone());
        registry.register("messages_received", "Messages from clients, by type", metrics.received.clone());
        registry.register(
            "messages_rate_limited",
            "Messages of clients dropped for coming too fast",
            metrics.rate_limited.clone(),
        );
        registry.register("events", "Events from the topic, by type", metrics.events.clone());
        registry.register("deliveries", "Events handed to sockets, by type", metrics.deliveries.clone());
        registry.register(
            "duplicates",
            "Events that came again and were dropped",
            metrics.duplicates.clone(),
        );
        registry.register("undecodable", "Messages on the topic not understood", metrics.undecodable.clone());
        registry.register("holes", "Times that events of a VM were overdue", metrics.holes.clone());
        registry.register("events_lost", "Events given up after searching", metrics.lost.clone());
        registry.register("seeks", "Times the topic was asked to bring events again", metrics.seeks.clone());
        registry.register(
            "receipts_sent",
            "Messages to other VMs that their alerts were heard here",
            metrics.receipts.clone(),
        );
        registry.register(
            "publish_errors",
            "Messages that the topic did not take",
            metrics.publish_errors.clone(),
        );
        registry.register(
            "lifecycle_lost",
            "Connects and disconnects that could not be told",
            metrics.lifecycle_lost.clone(),
        );
        registry.register_with_unit(
            "publish_duration",
            "From a client's message to the topic's confirmation",
            Unit::Seconds,
            metrics.publish_seconds.clone(),
        );
        registry.register_with_unit(
            "topic_round_trip",
            "From this VM through the topic and back, by its beacons",
            Unit::Seconds,
            metrics.round_trip.clone(),
        );
        registry.register("sockets_closed", "Sockets that ended, by reason", metrics.closed.clone());
        registry.register("upgrades_rejected", "Sockets refused, by reason", metrics.rejected.clone());
        registry.register("api_rejected", "Requests refused, by reason", metrics.api_rejected.clone());
        registry.register(
            "connection_asks",
            "What became of the backend's requests for one connection",
            metrics.asks.clone(),
        );
        registry.register(
            "authorizer_requests",
            "What CONNECT_URL answered about visitors",
            metrics.authorized.clone(),
        );
        registry.register_with_unit(
            "authorizer_duration",
            "From the question to CONNECT_URL to its answer",
            Unit::Seconds,
            metrics.authorizer_seconds.clone(),
        );
        Self { registry: Mutex::new(registry), ..metrics }
    }

    pub fn received(&self, name: &'static str) {
        self.received.get_or_create(&Type { r#type: name }).inc();
    }

    pub fn delivered(&self, name: &'static str, sockets: usize) {
        self.events.get_or_create(&Type { r#type: name }).inc();
        self.deliveries.get_or_create(&Type { r#type: name }).inc_by(sockets as u64);
    }

    pub fn published(&self, took: Duration, confirmed: bool) {
        self.publish_seconds.observe(took.as_secs_f64());
        if !confirmed {
            self.publish_errors.inc();
        }
    }

    pub fn closed(&self, reason: &'static str) {
        self.closed.get_or_create(&Reason { reason }).inc();
    }

    pub fn rejected(&self, reason: &'static str) {
        self.rejected.get_or_create(&Reason { reason }).inc();
    }

    pub fn api_rejected(&self, reason: &'static str) {
        self.api_rejected.get_or_create(&Reason { reason }).inc();
    }

    pub fn asked(&self, outcome: &'static str) {
        self.asks.get_or_create(&Outcome { outcome }).inc();
    }

    pub fn authorized(&self, took: Duration, outcome: &'static str) {
        self.authorizer_seconds.observe(took.as_secs_f64());
        self.authorized.get_or_create(&Outcome { outcome }).inc();
    }

    /// All figures, in the OpenMetrics text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a String can't fail.
        let _ = encode(&mut text, &registry);
        text
    }
}
