//! Figures for Prometheus, served at `/metrics`.
//!
//! Each is there from the first scrape on, at 0 where nothing has happened yet: a rate over it has a
//! beginning then, and a query that finds nothing is wrong. Labels take the words named here, so that
//! nobody outside can make new series.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};

use crate::bus::Cause;
use crate::clock;
use crate::config::Config;
use crate::process;

const RECEIVED: &[&str] = &["alert", "broadcast", "direct", "subscribe", "unsubscribe", "ping", "invalid"];

const EVENTS: &[&str] = &["alert", "broadcast", "app"];

const OPENED: &[&str] = &["new", "returning"];

const CLOSED: &[&str] = &[
    "closed",
    "lost",
    "idle",
    "protocol",
    "binary",
    "not_utf8",
    "too_large",
    "flooding",
    "expired",
    "dismissed",
    "defect",
    "restart",
    "slow_consumer",
];

const REJECTED: &[&str] = &[
    "handshake",
    "origin",
    "not_ready",
    "full",
    "address_connections",
    "address_flood",
    "address_rate",
    "token_missing",
    "token_malformed",
    "token_algorithm",
    "token_signature",
    "token_expired",
    "token_not_yet_valid",
    "token_audience",
    "token_issuer",
    "token_subject",
    "token_expiry",
    "authorizer_refused",
    "authorizer_failed",
    "authorizer_busy",
];

const API_REJECTED: &[&str] = &["not_configured", "key_missing", "key_wrong", "key_rate", "address_guesses"];

const ASKED: &[&str] = &["written", "described", "closed", "gone", "timeout", "unavailable"];

const AUTHORIZED: &[&str] = &["accepted", "refused", "failed"];

/// Why the topic is asked to bring events again: this VM has started; its way through the topic was
/// broken; some did not come, and still did not.
const SOUGHT: &[&str] = &["start", "broken", "overdue", "overdue_anew"];

pub struct Metrics {
    registry: Mutex<Registry>,
    // Noted when somebody asks.
    pub ready: Gauge,
    pub history_events: Gauge,
    pub history_bytes: Gauge,
    pub waiting_events: Gauge,
    pub waiting_bytes: Gauge,
    pub waiting_age: Gauge<f64, AtomicU64>,
    pub log_lines_dropped: Counter,
    pub tasks: Gauge,
    // Noted when they change.
    pub connections: Gauge,
    pub unread: Gauge,
    pub fleet: Gauge,
    pub beacons: Counter,
    pub opened: Counters,
    pub closed: Counters,
    pub rejected: Counters,
    pub api_rejected: Counters,
    pub received: Counters,
    pub rate_limited: Counter,
    pub duplicates: Counter,
    pub undecodable: Counter,
    pub holes: Counter,
    pub lost: Counter,
    pub seeks: Counters,
    pub receipts: Counter,
    pub asks: Counters,
    pub lifecycle_lost: Counter,
    pub round_trip: Histogram,
    pub delivery: Histogram,
    pub catch_up: Histogram,
    publish_seconds: Histogram,
    publish_errors: Counters,
    events: Counters,
    deliveries: Counters,
    authorized: Counters,
    authorizer_seconds: Histogram,
}

/// The two forms of the text. Prometheus asks for the newer one, much else only knows the older one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    OpenMetrics,
    Plain,
}

impl Metrics {
    pub fn new(config: &Config) -> Self {
        let mut registry = Registry::default();
        registry
            .sub_registry_with_prefix("process")
            .register_collector(Box::new(process::Collector::default()));
        let mut book = Book(registry.sub_registry_with_prefix("alien_alert"));
        let build = [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("instance", config.identity.instance().to_string()),
            ("region", config.identity.region().to_string()),
        ];
        book.0.register("build", "The VM and its version", Info::new(build.to_vec()));
        let limit = book.gauge("connections_limit", "Sockets that this VM takes at most");
        limit.set(i64::try_from(config.limits.connections).unwrap_or(i64::MAX));
        Self {
            ready: book.gauge("ready", "Whether this VM's beacons come round through the topic"),
            fleet: book.gauge("fleet_instances", "VMs alive, this one too"),
            beacons: book.counter("beacons", "Signs of life heard of VMs, this one too"),
            round_trip: book
                .seconds("topic_round_trip", "From this VM through the topic and back, by its beacons"),
            publish_seconds: book
                .seconds("publish_duration", "From a client's message to the topic's confirmation"),
            publish_errors: book.counters(
                "publish_errors",
                "Messages that the topic did not take",
                ("cause", &Cause::NAMES),
            ),
            waiting_events: book.gauge("publish_waiting_events", "Events that the topic has not confirmed"),
            waiting_bytes: book.gauge("publish_waiting_bytes", "Bytes of events that it has not confirmed"),
            waiting_age: book.enter(
                "publish_waiting_seconds",
                "How long the oldest of them waits",
                Gauge::default(),
            ),
            log_lines_dropped: book.counter("log_lines_dropped", "Lines of the log that nobody took in time"),
            tasks: book.gauge("tasks", "Tasks that are alive in the runtime"),
            undecodable: book.counter("undecodable", "Messages on the topic not understood"),
            duplicates: book
                .counter("duplicates", "Events that came again, or from before the window, and were dropped"),
            holes: book.counter("holes", "Times that events of a VM were overdue"),
            seeks: book.counters(
                "seeks",
                "Times the topic was asked to bring events again",
                ("cause", SOUGHT),
            ),
            lost: book.counter("events_lost", "Events given up after searching"),
            connections: book.gauge("connections", "Sockets open on this VM"),
            opened: book.counters("sockets_opened", "Sockets that came", ("kind", OPENED)),
            closed: book.counters("sockets_closed", "Sockets that ended", ("reason", CLOSED)),
            rejected: book.counters("upgrades_rejected", "Sockets refused", ("reason", REJECTED)),
            received: book.counters("messages_received", "Messages from clients", ("type", RECEIVED)),
            rate_limited: book
                .counter("messages_rate_limited", "Messages of clients dropped for coming too fast"),
            events: book.counters("events", "Events from the topic", ("type", EVENTS)),
            deliveries: book.counters("deliveries", "Events handed to sockets", ("type", EVENTS)),
            delivery: book.seconds(
                "delivery_duration",
                "From the moment when an event's VM took it until it is written to this VM's sockets",
            ),
            catch_up: book
                .seconds("catch_up_duration", "From a socket's request for history until that is written"),
            unread: book.gauge("unread_bytes", "Bytes that wait for sockets to take them"),
            history_events: book.gauge("history_events", "Events in the window for catch-up"),
            history_bytes: book.gauge("history_bytes", "What these take of HISTORY_BYTES"),
            receipts: book
                .counter("receipts_sent", "Messages to other VMs that their alerts were heard here"),
            asks: book.counters(
                "connection_asks",
                "What became of the backend's requests for one connection",
                ("outcome", ASKED),
            ),
            api_rejected: book.counters("api_rejected", "Requests refused", ("reason", API_REJECTED)),
            authorized: book.counters(
                "authorizer_requests",
                "What CONNECT_URL answered about visitors",
                ("outcome", AUTHORIZED),
            ),
            authorizer_seconds: book
                .seconds("authorizer_duration", "From the question to CONNECT_URL to its answer"),
            lifecycle_lost: book.counter("lifecycle_lost", "Connects and disconnects that could not be told"),
            registry: Mutex::new(registry),
        }
    }

    pub fn delivered(&self, name: &'static str, sockets: usize) {
        self.events.inc(name);
        self.deliveries.inc_by(name, sockets as u64);
    }

    /// `failed` is why, if the topic did not take it.
    pub fn published(&self, took: Duration, failed: Option<Cause>) {
        match failed {
            None => self.publish_seconds.observe(took.as_secs_f64()),
            Some(cause) => self.not_published(cause),
        }
    }

    pub fn not_published(&self, cause: Cause) {
        self.publish_errors.inc(cause.name());
    }

    pub fn authorized(&self, took: Duration, outcome: &'static str) {
        self.authorizer_seconds.observe(took.as_secs_f64());
        self.authorized.inc(outcome);
    }

    /// All figures.
    pub fn text(&self, format: Format) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a String can't fail.
        let _ = match format {
            Format::OpenMetrics => text::encode(&mut text, &registry),
            Format::Plain => prometheus_text::encode(&mut text, &registry),
        };
        text
    }
}

impl Format {
    /// By an `Accept` header. Who does not say that it wants the older form gets the newer one.
    pub fn accepted(accept: Option<&str>) -> Self {
        let names = |word| accept.is_some_and(|accept| accept.to_ascii_lowercase().contains(word));
        if names("text/plain") && !names("openmetrics") { Self::Plain } else { Self::OpenMetrics }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Plain => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// Enters each figure as it is made.
struct Book<'a>(&'a mut Registry);

impl Book<'_> {
    fn gauge(&mut self, name: &str, help: &str) -> Gauge {
        self.enter(name, help, Gauge::default())
    }

    fn counter(&mut self, name: &str, help: &str) -> Counter {
        self.enter(name, help, Counter::default())
    }

    /// One for each word that the label can be.
    fn counters(
        &mut self,
        name: &str,
        help: &str,
        (label, words): (&'static str, &'static [&'static str]),
    ) -> Counters {
        let counters = Counters { label, words, family: Family::default() };
        for word in words {
            counters.inc_by(word, 0);
        }
        self.enter(name, &format!("{help}, by {label}"), counters.family.clone());
        counters
    }

    /// A duration: 1 ms to 16 s, from a bus in the same process to the end of patience.
    fn seconds(&mut self, name: &str, help: &str) -> Histogram {
        let histogram = Histogram::new(exponential_buckets(0.001, 2.0, 15));
        self.0.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        histogram
    }

    fn enter<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }
}

/// Counters that differ in one label.
pub struct Counters {
    label: &'static str,
    words: &'static [&'static str],
    family: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Counters {
    pub fn inc(&self, word: &'static str) {
        self.inc_by(word, 1);
    }

    fn inc_by(&self, word: &'static str, count: u64) {
        debug_assert!(self.words.contains(&word), "{word} is missing among the words for {}", self.label);
        self.family.get_or_create(&[(self.label, word)]).inc_by(count);
    }
}

/// Takes the time of what one or several do: the last to be done with it stops it. Dropped, it is not.
#[derive(Clone)]
pub struct Stopwatch(Arc<Running>);

struct Running {
    /// In µs since the epoch: it may have been another VM's clock.
    since: i64,
    histogram: Histogram,
}

impl Stopwatch {
    pub fn since(micros: i64, histogram: &Histogram) -> Self {
        Self(Arc::new(Running { since: micros, histogram: histogram.clone() }))
    }

    pub fn stop(self) {
        let Some(Running { since, histogram }) = Arc::into_inner(self.0) else { return };
        // Two clocks may differ by more than it took.
        let took = clock::now_micros().saturating_sub(since).max(0);
        histogram.observe(took as f64 / 1e6);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        Metrics::new(&Config::from_vars([]).unwrap())
    }

    #[test]
    fn every_figure_is_there_before_anything_happens() {
        let text = metrics().text(Format::OpenMetrics);
        let mut families = 0;
        for family in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, _) = family.split_once(' ').unwrap();
            let sample = |line: &&str| line.starts_with(name);
            let value = text.lines().find(sample).and_then(|line| line.rsplit(' ').next());
            assert!(value.is_some_and(|value| value.parse::<f64>().is_ok()), "{name} in {text}");
            families += 1;
        }
        assert!(families > 30, "{families}");
        for line in [
            "alien_alert_sockets_closed_total{reason=\"slow_consumer\"} 0",
            "alien_alert_publish_errors_total{cause=\"denied\"} 0",
            "alien_alert_connections_limit 20000",
            "alien_alert_delivery_duration_seconds_count 0",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} in {text}");
        }
    }

    #[test]
    fn causes_are_called_by_their_names() {
        let causes = [
            (Cause::Full, "full"),
            (Cause::NoAnswer, "no_answer"),
            (Cause::Denied, "denied"),
            (Cause::Missing, "missing"),
            (Cause::Quota, "quota"),
            (Cause::Leaving, "leaving"),
            (Cause::Other, "other"),
        ];
        assert_eq!(causes.map(|(cause, _)| cause.name()), causes.map(|(_, name)| name));
        assert_eq!(causes.map(|(_, name)| name), Cause::NAMES);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_one_stops_the_watch_and_clocks_may_differ() {
        let metrics = metrics();
        let figures = |line: &str| metrics.text(Format::Plain).lines().any(|other| other == line);
        let watch = Stopwatch::since(clock::now_micros(), &metrics.delivery);
        let [one, other] = [watch.clone(), watch];
        one.stop();
        assert!(figures("alien_alert_delivery_duration_seconds_count 0"));
        tokio::time::advance(Duration::from_secs(2)).await;
        other.stop();
        drop(Stopwatch::since(clock::now_micros(), &metrics.delivery));
        assert!(figures("alien_alert_delivery_duration_seconds_count 1"));
        assert!(figures("alien_alert_delivery_duration_seconds_bucket{le=\"1.024\"} 0"));
        assert!(figures("alien_alert_delivery_duration_seconds_bucket{le=\"2.048\"} 1"));
        for ahead in [clock::now_micros() + 1_000_000, i64::MAX] {
            Stopwatch::since(ahead, &metrics.delivery).stop();
        }
        assert!(figures("alien_alert_delivery_duration_seconds_bucket{le=\"0.001\"} 2"));
    }

    #[test]
    fn the_older_form_is_for_who_asks_for_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";
        for (accept, format) in [
            (None, Format::OpenMetrics),
            (Some("*/*"), Format::OpenMetrics),
            (Some(prometheus), Format::OpenMetrics),
            (Some("Text/Plain; version=0.0.4"), Format::Plain),
        ] {
            assert_eq!(Format::accepted(accept), format, "{accept:?}");
        }
        let metrics = metrics();
        assert!(metrics.text(Format::OpenMetrics).ends_with("# EOF\n"));
        assert!(metrics.text(Format::Plain).contains("# TYPE alien_alert_events_total counter\n"));
    }
}
