//! The way of an event as a trace over all the VMs that it comes to, for who collects such.
//!
//! One event, one trace: `take` on the VM that it came in by, up to its sender's ack; in that `publish`, up
//! to the topic's confirmation; and as its children a `hear` on each VM, from the topic's message to the
//! sockets' shards. What joins them goes with the message as an attribute, in the words of W3C Trace
//! Context. There is none for a socket. A build without the feature `otlp` has all of this as types without
//! size and functions without work.

#[cfg(not(feature = "otlp"))]
mod off;
#[cfg(feature = "otlp")]
mod otlp;

#[cfg(not(feature = "otlp"))]
pub use self::off::*;
#[cfg(feature = "otlp")]
pub use self::otlp::*;

/// The attribute that a message carries its trace in.
pub const ATTRIBUTE: &str = "traceparent";

/// What says where traces are collected, the first that is set.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// Which of some variables is set, and to what; an empty one is not.
fn first_set(names: [&'static str; 2]) -> Option<(&'static str, String)> {
    let set = |name| Some((name, std::env::var(name).ok().filter(|value| !value.trim().is_empty())?));
    names.into_iter().find_map(set)
}
