//! Traces as OTLP over gRPC, by OpenTelemetry's own crates and their variables.
//!
//! Spans that have ended wait in a bounded queue (`OTEL_BSP_MAX_QUEUE_SIZE`) for a thread that sends them;
//! one too many is dropped and counted there. So a collector that is slow or gone holds nothing up. Which
//! events are traced the VM that takes them decides (`OTEL_TRACES_SAMPLER`), for all others too.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use hyper::Uri;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{
    Span as _, SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{SpanExporter, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};
use tokio::task::spawn_blocking;
use tracing::info;

use super::{ATTRIBUTE, ENDPOINTS, first_set};
use crate::clock;
use crate::config::ConfigError;
use crate::event::Event;
use crate::identity::Identity;

const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];

const SERVICE: &str = "alien-alert";

/// The process's, as its log is; never set where nobody collects.
static EXPORT: OnceLock<Export> = OnceLock::new();

struct Export {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    /// In µs since the epoch: what was published before is history to this VM, which it did not hear then.
    since: i64,
}

/// Sends traces to where the environment says, if it does. Within the runtime: the connection lives there.
///
/// # Errors
/// One of OpenTelemetry's variables can't be used.
pub fn start(identity: &Identity) -> Result<(), ConfigError> {
    let Some((name, endpoint)) = first_set(ENDPOINTS) else { return Ok(()) };
    let is_ours = |scheme: &str| matches!(scheme, "http" | "https");
    let is_url = |uri: Uri| uri.host().is_some() && uri.scheme_str().is_none_or(is_ours);
    if !endpoint.trim().parse().is_ok_and(is_url) {
        // Its value is not told: it may hold a password.
        return Err(ConfigError::new(format!(
            "{name}: expected a URL of http or https, such as http://localhost:4317"
        )));
    }
    if let Some((name, protocol)) = first_set(PROTOCOLS).filter(|(_, protocol)| protocol.trim() != "grpc") {
        return Err(ConfigError::value(name, &protocol, "grpc, which is what this program speaks"));
    }
    let exporter = SpanExporter::builder()
        .with_tonic()
        // Only for https; without this it would trust nobody.
        .with_tls_config(ClientTlsConfig::new().with_enabled_roots())
        .build()
        .map_err(|error| {
            ConfigError::new(format!("traces can't be sent by the OTEL_EXPORTER_OTLP_… variables: {error}"))
        })?;
    let provider =
        SdkTracerProvider::builder().with_resource(resource(identity)).with_batch_exporter(exporter).build();
    let tracer = provider.tracer(SERVICE);
    info!("each event's way is sent as a trace to where {name} says");
    // A second start in one process changes nothing.
    let _ = EXPORT.set(Export { provider, tracer, since: clock::now_micros() });
    Ok(())
}

/// This VM, as every span tells it.
fn resource(identity: &Identity) -> Resource {
    let vm = [
        KeyValue::new("service.instance.id", identity.instance().to_string()),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("cloud.region", identity.region().to_string()),
    ];
    let resource = Resource::builder().with_attributes(vm);
    // By OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES; else OpenTelemetry calls it unknown.
    let name = Resource::builder().build().get(&Key::from_static_str("service.name"));
    if name.is_none_or(|name| name.as_str().starts_with("unknown_service")) {
        return resource.with_service_name(SERVICE).build();
    }
    resource.build()
}

/// Sends what waits, for so long; nothing is traced after this.
pub async fn finish(patience: Duration) {
    let Some(export) = EXPORT.get() else { return };
    let provider = export.provider.clone();
    // What went wrong it has logged. A thread that still waits ends with the process.
    let _ = spawn_blocking(move || provider.shutdown_with_timeout(patience)).await;
}

/// Which span the next one is a child of, as it travels. Empty: none, or one that is not sampled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parent(Option<String>);

impl Parent {
    pub fn of_attribute(value: Option<&String>) -> Self {
        // Where nobody collects, nothing is kept.
        Self(EXPORT.get().and(value.cloned()))
    }

    pub fn attribute(&self) -> Option<&str> {
        self.0.as_deref()
    }

    fn of_span(span: &SpanContext) -> Self {
        let mut words = HashMap::new();
        TraceContextPropagator::new().inject_context(&under(span), &mut words);
        Self(words.remove(ATTRIBUTE).filter(|_| span.is_sampled()))
    }

    /// None: nobody's, or not in the words of W3C Trace Context.
    fn context(&self) -> Option<Context> {
        let words = HashMap::from([(ATTRIBUTE.to_owned(), self.0.clone()?)]);
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &words);
        let is_sampled = context.span().span_context().is_sampled();
        is_sampled.then_some(context)
    }
}

fn under(span: &SpanContext) -> Context {
    Context::new().with_remote_span_context(span.clone())
}

/// The spans of an event on the VM that takes it. Dropped, it is taken.
pub struct Taking(Option<Spans>);

struct Spans {
    take: Span,
    publish: Span,
}

impl Taking {
    pub fn begin(event: &Event) -> Self {
        Self(EXPORT.get().map(|Export { tracer, .. }| {
            let mut attributes = names(event);
            attributes.push(KeyValue::new("alien_alert.client_id", event.sender_id.clone()));
            let take = tracer.span_builder("take").with_kind(SpanKind::Server).with_attributes(attributes);
            let take = tracer.build_with_context(take, &Context::new());
            let publish = tracer.span_builder("publish").with_kind(SpanKind::Producer);
            let publish = publish.with_attributes(names(event));
            let publish = tracer.build_with_context(publish, &under(take.span_context()));
            Spans { take, publish }
        }))
    }

    /// What goes with the message.
    pub fn parent(&self) -> Parent {
        self.0.as_ref().map_or_else(Parent::default, |spans| Parent::of_span(spans.publish.span_context()))
    }

    /// The topic has it, or does not take it.
    pub fn confirmed(&mut self, has_it: bool) {
        let Some(Spans { take, publish }) = &mut self.0 else { return };
        if !has_it {
            let failed = Status::error("the topic did not take it");
            take.set_status(failed.clone());
            publish.set_status(failed);
        }
        publish.end();
    }
}

/// The span of an event that may turn out to be one.
pub struct Hearing(Option<(Context, SystemTime)>);

impl Hearing {
    pub fn begin(parent: &Parent) -> Self {
        Self(parent.context().map(|context| (context, SystemTime::now())))
    }

    /// An event that was published at `at` (µs) and not heard before has gone to so many sockets.
    pub fn end(self, event: &Event, at: i64, sockets: usize) {
        let (Some((parent, begun)), Some(export)) = (self.0, EXPORT.get()) else { return };
        if at < export.since {
            return;
        }
        let mut attributes = names(event);
        attributes.push(KeyValue::new("alien_alert.sockets", i64::try_from(sockets).unwrap_or(i64::MAX)));
        let hear = export.tracer.span_builder("hear").with_kind(SpanKind::Consumer);
        let hear = hear.with_start_time(begun).with_attributes(attributes);
        // Ends at once.
        drop(export.tracer.build_with_context(hear, &parent));
    }
}

/// Which event a span is of. Nothing of what is in it.
fn names(event: &Event) -> Vec<KeyValue> {
    vec![
        KeyValue::new("alien_alert.event_id", event.id.clone()),
        KeyValue::new("alien_alert.type", event.kind.label()),
    ]
}
