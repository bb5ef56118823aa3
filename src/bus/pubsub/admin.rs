//! The topic and this VM's subscription: made, taken up, wound back and deleted.
//!
//! No call retries by itself: the caller's loop does, with its own back-off, and a VM that is to
//! leave within seconds must not hang in somebody else's patience.

use std::future::Future;
use std::sync::atomic::Ordering;
use std::time::Duration;

use google_cloud_gax::error::rpc::Code;
use google_cloud_pubsub::model::{ExpirationPolicy, Subscription, Topic};
use google_cloud_wkt as wkt;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::{PubSub, chain};
use crate::bus::BusError;
use crate::clock;

/// One call's time.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a subscription that is made anew is not there.
const ABSENCE: Duration = Duration::from_millis(200);

/// Pub/Sub's shortest; what a crashed VM leaves behind is gone after this.
const EXPIRES_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Pub/Sub's shortest retention, of topics and subscriptions alike.
const LEAST_RETENTION: Duration = Duration::from_secs(600);

/// Kept longer than the window by this.
const RETENTION_MARGIN: Duration = Duration::from_secs(300);

/// Labels by which a subscription of this program is known, and since when it is there, in seconds since
/// the epoch: Pub/Sub does not say by itself.
pub(super) const APP: (&str, &str) = ("app", "alien-alert");
pub(super) const CREATED: &str = "created";

/// What a deleted topic's subscriptions are on.
const DELETED_TOPIC: &str = "_deleted-topic_";

impl PubSub {
    /// Creates the subscription, or takes up the one that is there; creates the topic if missing. Returns
    /// whether it was there.
    pub(super) async fn make_subscription(&self) -> Result<bool, BusError> {
        let mut created = self.create_subscription().await;
        if matches!(&created, Err(failure) if failure.is(Code::NotFound)) {
            self.create_topic(&self.0.topic, Some(self.retention())).await?;
            created = self.create_subscription().await;
        }
        let (done, was_there) = match created {
            Ok(()) => ("subscription created", false),
            Err(failure) if failure.is(Code::AlreadyExists) => self.take_up_subscription().await?,
            Err(failure) => return Err(failure.of("creating the subscription")),
        };
        // News when this VM starts; later on it is a part of each try to mend what is named already.
        if self.0.told_of_subscription.swap(true, Ordering::Relaxed) {
            debug!(subscription = self.0.subscription, "{done}");
        } else {
            info!(subscription = self.0.subscription, "{done}");
        }
        Ok(was_there)
    }

    pub(super) async fn create_subscription(&self) -> Result<(), Failure> {
        let inner = &self.0;
        let now = (clock::now_millis() / 1_000).to_string();
        let request = inner
            .subscriptions
            .create_subscription()
            .set_name(&inner.subscription)
            .set_topic(&inner.topic)
            .set_filter(&inner.filter)
            .set_labels([APP, ("region", &inner.region), (CREATED, &now)])
            .set_message_retention_duration(duration(self.retention()))
            .set_expiration_policy(ExpirationPolicy::new().set_ttl(duration(EXPIRES_AFTER)));
        call(request.send()).await.map(drop)
    }

    /// What this VM left behind when it last ended without saying goodbye, with its backlog. Returns what
    /// was done, in words, and whether that is still there.
    async fn take_up_subscription(&self) -> Result<(&'static str, bool), BusError> {
        let inner = &self.0;
        let found = self.get_subscription(&inner.subscription).await;
        let found = found.map_err(|failure| failure.of("looking at the subscription"))?;
        if found.detached || found.topic == DELETED_TOPIC {
            self.remove_subscription().await?;
            return match self.create_subscription().await {
                Ok(()) => Ok(("own subscription of before was dead, and is made anew", false)),
                Err(failure) => Err(failure.of("creating the subscription")),
            };
        }
        if found.topic != inner.topic {
            return Err(BusError::new(format!(
                "the subscription {} belongs to {}, not to {}: delete it, or give this VM another id",
                inner.subscription, found.topic, inner.topic
            )));
        }
        Ok(("own subscription of before taken up", true))
    }

    pub(super) async fn get_subscription(&self, name: &str) -> Result<Subscription, Failure> {
        call(self.0.subscriptions.get_subscription().set_subscription(name).send()).await
    }

    /// Creates a topic where it is missing, to keep its messages for so long.
    pub(super) async fn create_topic(&self, name: &str, retention: Option<Duration>) -> Result<(), BusError> {
        let request = self
            .0
            .topics
            .create_topic()
            .set_name(name)
            .set_labels([APP])
            .set_or_clear_message_retention_duration(retention.map(duration));
        match call(request.send()).await {
            Ok(_) => {
                info!(topic = name, "topic created");
                Ok(())
            }
            // It was there, or another VM was faster.
            Err(failure) if failure.is(Code::AlreadyExists) => Ok(()),
            Err(failure) => Err(failure.of("creating the topic")),
        }
    }

    /// Winds the subscription back to `since` (µs), so that this VM hears again what it may not have.
    pub(in crate::bus) async fn seek(&self, since: i64) -> Result<(), BusError> {
        self.wind_back(since).await.map_err(|failure| failure.of("seeking back"))
    }

    pub(super) async fn wind_back(&self, since: i64) -> Result<(), Failure> {
        let since = wkt::Timestamp::clamp(since.div_euclid(1_000_000), 0);
        let request = self.0.subscriptions.seek().set_subscription(&self.0.subscription).set_time(since);
        call(request.send()).await.map(drop)
    }

    pub(super) async fn get_topic(&self, name: &str) -> Result<Topic, Failure> {
        call(self.0.topics.get_topic().set_topic(name).send()).await
    }

    /// Sees to it that a topic that was there keeps its messages for as long as history wants; says
    /// what is lost, and what to do, where that is not allowed. Before `joined` (µs) a new subscription has only
    /// what the topic kept.
    pub(super) async fn keep_messages(&self, joined: Option<i64>) {
        let inner = &self.0;
        let wanted = duration(self.retention());
        let otherwise = format!(
            "a new VM does not know what was before it, and an outage may lose events. Mend it: \
             gcloud pubsub topics update {} --message-retention-duration={}s",
            inner.topic,
            wanted.seconds(),
        );
        let found = match self.get_topic(&inner.topic).await {
            Ok(found) => found,
            Err(failure) => {
                let error = failure.of("looking at the topic");
                return warn!(
                    %error,
                    wanted = wanted.seconds(),
                    "can't see whether the topic keeps its messages long enough; if not, {otherwise}"
                );
            }
        };
        let kept = found.message_retention_duration.map_or(0, |kept| kept.seconds());
        if kept >= wanted.seconds() {
            return;
        }
        // Also where it will from now on: of what was published before it keeps no more.
        if let Some(joined) = joined {
            self.0.forgotten.store(joined - kept * 1_000_000, Ordering::Relaxed);
        }
        let topic = Topic::new().set_name(&inner.topic).set_message_retention_duration(wanted);
        let mask = wkt::FieldMask::default().set_paths(["message_retention_duration"]);
        match call(inner.topics.update_topic().set_topic(topic).set_update_mask(mask).send()).await {
            Ok(_) => {
                info!(topic = inner.topic, seconds = wanted.seconds(), "the topic now keeps its messages")
            }
            Err(failure) => {
                let error = failure.of("updating the topic");
                warn!(
                    %error,
                    kept,
                    wanted = wanted.seconds(),
                    "the topic does not keep its messages long enough: {otherwise}"
                );
            }
        }
    }

    /// Deletes the subscription, so that another of its name can be made.
    pub(super) async fn remove_subscription(&self) -> Result<(), BusError> {
        self.delete_subscription().await?;
        // The emulator's streams seem to look the name up every so often: one that never found it missing
        // would go on with the new subscription, and take messages from it.
        sleep(ABSENCE).await;
        Ok(())
    }

    pub(super) async fn delete_subscription(&self) -> Result<(), BusError> {
        let deleted = self.delete(&self.0.subscription).await;
        deleted.map_err(|failure| failure.of("deleting the subscription"))
    }

    /// Deletes a subscription; one that is not there is deleted already.
    pub(super) async fn delete(&self, name: &str) -> Result<(), Failure> {
        let request = self.0.subscriptions.delete_subscription().set_subscription(name);
        match call(request.send()).await {
            Err(failure) if failure.is(Code::NotFound) => Ok(()),
            deleted => deleted,
        }
    }

    /// The window and a little more, since its edge moves on while a VM joins; never less than Pub/Sub
    /// allows. The settings keep it below the expiration.
    pub(super) fn retention(&self) -> Duration {
        (self.0.window + RETENTION_MARGIN).max(LEAST_RETENTION)
    }
}

fn duration(duration: Duration) -> wkt::Duration {
    wkt::Duration::clamp(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX), 0)
}

/// Why a call failed; its code decides what to try instead.
pub(super) enum Failure {
    Google(google_cloud_pubsub::Error),
    NoAnswer,
}

impl Failure {
    pub(super) fn is(&self, code: Code) -> bool {
        matches!(self, Self::Google(error) if error.status().is_some_and(|status| status.code == code))
    }

    pub(super) fn of(self, what: &str) -> BusError {
        BusError::new(match self {
            Self::Google(error) => format!("{what}: {}", chain(&error)),
            Self::NoAnswer => format!("{what}: no answer in {} s", PATIENCE.as_secs()),
        })
    }
}

pub(super) async fn call<T>(
    request: impl Future<Output = google_cloud_pubsub::Result<T>>,
) -> Result<T, Failure> {
    match timeout(PATIENCE, request).await {
        Ok(answer) => answer.map_err(Failure::Google),
        Err(_) => Err(Failure::NoAnswer),
    }
}
