//! Google Cloud Pub/Sub as the bus. The only module that knows Google.
//!
//! Each VM has a subscription of its own on the one topic, so each gets a copy of every message.
//! Administration goes over HTTP and messages over gRPC, on connections of their own: when one way
//! is dead, the other may not be.

mod admin;
mod credentials;
mod federation;
mod names;
mod outlet;
pub mod probe;
pub mod rights;

use std::error::Error;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use google_cloud_auth::credentials::Credentials as GoogleCredentials;
use google_cloud_gax::error::rpc::Code;
use google_cloud_gax::retry_policy::{NeverRetry, RetryPolicyExt as _};
use google_cloud_pubsub::client::{Publisher, Subscriber, SubscriptionAdmin, TopicAdmin};
use google_cloud_pubsub::error::PublishError;
use google_cloud_pubsub::model;
use google_cloud_pubsub::publisher::PublishFuture;
use google_cloud_pubsub::subscriber::MessageStream;
use google_cloud_pubsub::subscriber::ShutdownBehavior;
use google_cloud_pubsub::subscriber::handler::Handler;
use tracing::info;

pub use self::credentials::Credentials;
pub use self::names::{check_characters, check_project, check_resource_name};
pub use self::outlet::Outlet;
use super::{BusError, Cause, Delivery, Join, Message};
use crate::config::ConfigError;
use crate::identity::Identity;
use crate::traces::{self, Parent};

/// How long one try to publish may take before Google's library gives it up. The next try is the
/// caller's: it may go over another connection, and knows when time is over.
const PUBLISH_TRY: Duration = Duration::from_secs(5);

/// How long Pub/Sub waits for what it gave to a stream before it gives it to another. What comes is handled
/// at once, so the shortest will do, and what went to the stream of a process that died comes again soon.
const LEASE: Duration = Duration::from_secs(10);

/// What may stand in this process and wait to be handled; the rest the topic keeps. Acknowledgements go ten times
/// a second, so ten times as much can be handled in one.
const MAX_UNHANDLED: i64 = 1_000;
const MAX_UNHANDLED_BYTES: i64 = 8 << 20;

/// The attribute that names the one VM a message is for.
const TO: &str = "to";

/// Where the topic is, and how much of it a newborn wants to hear.
#[derive(Clone, Debug)]
pub struct Settings {
    pub project: String,
    pub topic: String,
    pub credentials: Credentials,
    pub window: Duration,
}

/// A VM's access to its topic and subscription. Cheap to clone.
#[derive(Clone)]
pub struct PubSub(Arc<Inner>);

struct Inner {
    topic: String,
    subscription: String,
    /// Keeps other VMs' private messages away, at Google's side.
    filter: String,
    region: String,
    window: Duration,
    endpoint: Option<String>,
    credentials: GoogleCredentials,
    topics: TopicAdmin,
    subscriptions: SubscriptionAdmin,
    /// Replaced when the path is made anew: a client keeps its connection, even a dead one.
    publisher: RwLock<Publisher>,
    /// Done or said once in a process's life.
    looked_at_topic: AtomicBool,
    told_of_subscription: AtomicBool,
    /// What was published before (µs) the topic has not kept for a new subscription; 0 where that is not so, or
    /// told already.
    forgotten: AtomicI64,
}

impl PubSub {
    /// Prepares the clients; the network is first used by [`super::Bus::join`].
    ///
    /// # Errors
    /// The credentials can't be used.
    pub async fn new(settings: &Settings, identity: &Identity) -> Result<Self, ConfigError> {
        let Settings { project, topic, credentials, window } = settings;
        let endpoint = credentials.endpoint();
        let credentials = credentials.build()?;
        let topic = format!("projects/{project}/topics/{topic}");
        let unusable = |error: &dyn std::fmt::Display| {
            ConfigError::new(format!("the client for Google Pub/Sub can't be made: {error}"))
        };

        let mut topics = TopicAdmin::builder().with_credentials(credentials.clone());
        let mut subscriptions = SubscriptionAdmin::builder().with_credentials(credentials.clone());
        if let Some(endpoint) = &endpoint {
            topics = topics.with_endpoint(endpoint);
            subscriptions = subscriptions.with_endpoint(endpoint);
        }
        // Each reads the system's root certificates: the longest part of a start, so at once.
        let (topics, subscriptions, publisher) = tokio::join!(
            tokio::spawn(topics.build()),
            tokio::spawn(subscriptions.build()),
            tokio::spawn(publisher(topic.clone(), endpoint.clone(), credentials.clone(), Duration::ZERO)),
        );
        let (topics, subscriptions, publisher) = (
            topics.map_err(|error| unusable(&error))?.map_err(|error| unusable(&error))?,
            subscriptions.map_err(|error| unusable(&error))?.map_err(|error| unusable(&error))?,
            publisher.map_err(|error| unusable(&error))?.map_err(|error| unusable(&error))?,
        );
        Ok(Self(Arc::new(Inner {
            subscription: format!("projects/{project}/subscriptions/{}", identity.subscription()),
            filter: format!("NOT attributes:{TO} OR attributes.{TO} = \"{}\"", identity.instance()),
            region: identity.region().to_ascii_lowercase(),
            window: *window,
            topic,
            endpoint,
            credentials,
            topics,
            subscriptions,
            publisher: RwLock::new(publisher),
            looked_at_topic: AtomicBool::new(false),
            told_of_subscription: AtomicBool::new(false),
            forgotten: AtomicI64::new(0),
        })))
    }

    /// FNV-1a over the topic's full name: small, and the same on every VM and version.
    pub(super) fn tag(&self) -> u32 {
        self.0
            .topic
            .bytes()
            .fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
    }

    pub(super) async fn join(&self, how: Join, since: i64) -> Result<Inbox, BusError> {
        if how == Join::Afresh {
            // The old stream may still be taking messages, into a connection that nobody reads.
            self.remove_subscription().await?;
        }
        let was_there = self.make_subscription().await?;
        let withheld = was_there.then_some(LEASE + LEASE / 2);
        if !self.0.looked_at_topic.swap(true, Ordering::Relaxed) {
            let bus = self.clone();
            let joined = (!was_there).then(crate::clock::now_micros);
            tokio::spawn(async move { bus.keep_messages(joined).await });
        }
        let not_sought = match self.seek(since).await {
            Ok(()) => None,
            // The backlog went with the old subscription: without it this would be a loss.
            Err(error) if how != Join::Resume => return Err(error),
            // Live events may come all the same, so this is no reason not to serve them.
            Err(error) => Some(error),
        };

        let stream = self.listen().await;
        let stream = stream.map_err(|error| BusError::new(format!("making the subscriber: {error}")))?;
        Ok(Inbox { stream, not_sought, withheld })
    }

    /// A stream of messages over a connection of its own.
    async fn listen(&self) -> google_cloud_gax::client_builder::Result<MessageStream> {
        let mut subscriber = Subscriber::builder().with_credentials(self.0.credentials.clone());
        if let Some(endpoint) = &self.0.endpoint {
            subscriber = subscriber.with_endpoint(endpoint);
        }
        let stream = subscriber
            .build()
            .await?
            .subscribe(&self.0.subscription)
            .set_max_lease_extension(LEASE)
            .set_max_outstanding_messages(MAX_UNHANDLED)
            .set_max_outstanding_bytes(MAX_UNHANDLED_BYTES)
            // A VM that leaves must not wait for messages it will never handle.
            .set_shutdown_behavior(ShutdownBehavior::NackImmediately)
            .build();
        Ok(stream)
    }

    pub(super) async fn reconnect(&self) -> Result<(), BusError> {
        let inner = &self.0;
        let (topic, endpoint) = (inner.topic.clone(), inner.endpoint.clone());
        let fresh = publisher(topic, endpoint, inner.credentials.clone(), Duration::ZERO);
        let fresh = fresh.await.map_err(|error| BusError::new(format!("connecting anew: {error}")))?;
        *inner.publisher.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    pub(super) fn publish(
        &self,
        message: Message,
    ) -> impl Future<Output = Result<(), BusError>> + Send + use<> {
        confirmation(self.send(message))
    }

    fn send(&self, message: Message) -> PublishFuture {
        let trace = message.trace.attribute().map(|trace| (traces::ATTRIBUTE, trace.to_owned()));
        let attributes = message.to.map(|to| (TO, to)).into_iter().chain(trace);
        let outgoing = model::Message::new().set_data(message.data).set_attributes(attributes);
        self.0.publisher.read().unwrap_or_else(PoisonError::into_inner).publish(outgoing)
    }

    pub(super) fn forgotten(&self) -> Option<i64> {
        Some(self.0.forgotten.swap(0, Ordering::Relaxed)).filter(|at| *at != 0)
    }

    pub(super) async fn leave(&self) -> Result<(), BusError> {
        self.delete_subscription().await?;
        info!(subscription = self.0.subscription, "subscription deleted");
        Ok(())
    }
}

async fn confirmation(published: PublishFuture) -> Result<(), BusError> {
    published.await.map(drop).map_err(|error| {
        let cause = cause(&error);
        BusError::new(format!("publishing: {}", chain(&error))).because(cause)
    })
}

fn cause(error: &PublishError) -> Cause {
    let PublishError::Rpc(error) = error else { return Cause::Other };
    match error.status().map(|status| status.code) {
        Some(Code::PermissionDenied | Code::Unauthenticated) => Cause::Denied,
        Some(Code::NotFound) => Cause::Missing,
        Some(Code::ResourceExhausted) => Cause::Quota,
        Some(Code::DeadlineExceeded) => Cause::NoAnswer,
        _ if error.is_authentication() => Cause::Denied,
        _ if error.is_timeout() => Cause::NoAnswer,
        _ => Cause::Other,
    }
}

/// One that sends what comes within `together` at once.
async fn publisher(
    topic: String,
    endpoint: Option<String>,
    credentials: GoogleCredentials,
    together: Duration,
) -> google_cloud_gax::client_builder::Result<Publisher> {
    let mut publisher = Publisher::builder(topic)
        .with_credentials(credentials)
        // Zero sends at once; what comes within the same turn of the timer still goes together.
        .set_delay_threshold(together)
        .with_retry_policy(NeverRetry.with_time_limit(PUBLISH_TRY));
    if let Some(endpoint) = endpoint {
        publisher = publisher.with_endpoint(endpoint);
    }
    publisher.build().await
}

/// One join's stream of messages.
pub struct Inbox {
    stream: MessageStream,
    pub(super) not_sought: Option<BusError>,
    pub(super) withheld: Option<Duration>,
}

impl Inbox {
    pub(super) async fn next(&mut self) -> Result<Delivery, BusError> {
        match self.stream.next().await {
            Some(Ok((message, handler))) => {
                let published_at = published_at(&message);
                let to = message.attributes.get(TO).cloned();
                let trace = Parent::of_attribute(message.attributes.get(traces::ATTRIBUTE));
                Ok(Delivery {
                    message: Message { data: message.data, to, trace },
                    published_at,
                    receipt: super::Receipt::PubSub(Receipt(handler)),
                })
            }
            Some(Err(error)) => {
                let ended = BusError::new(format!("the stream of messages ended: {}", chain(&error)));
                // Deleted, or detached from the topic.
                Err(match error.status().map(|status| status.code) {
                    Some(Code::NotFound | Code::FailedPrecondition) => ended.because(Cause::Missing),
                    _ => ended,
                })
            }
            None => Err(BusError::new("the stream of messages ended")),
        }
    }
}

/// When the topic took it, in µs.
fn published_at(message: &model::Message) -> i64 {
    message.publish_time.map_or_else(crate::clock::now_micros, |time| {
        time.seconds() * 1_000_000 + i64::from(time.nanos()) / 1_000
    })
}

/// An error and its causes, as far as they say more, on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(told) = error.downcast_ref::<federation::NotTold>() {
            // Google's library says much about it, and nothing more.
            return told.to_string();
        }
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text.replace(['\n', '\r'], " ")
}

/// Google's handle on one delivery; dropped, the message comes again.
pub(super) struct Receipt(Handler);

impl Receipt {
    pub(super) fn ack(self) {
        self.0.ack();
    }
}
