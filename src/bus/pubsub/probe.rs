//! What the doctor asks of Pub/Sub: each call that a VM makes, one at a time and as a VM makes it, on a
//! subscription of its own.
//!
//! No VM takes notice. What a probe publishes names the probe as the one that it is for, in the attribute
//! by which Pub/Sub's filters and each VM tell what is theirs. Its subscription is named as a VM's is, so
//! that rights are tried on what they are for, and should it ever stay it is found like a VM's.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use google_cloud_auth::credentials::Credentials as GoogleCredentials;
use google_cloud_gax::error::rpc::Code;
use google_cloud_pubsub::Error as GoogleError;
use google_cloud_pubsub::error::PublishError;
use google_cloud_pubsub::model::Subscription;
use google_cloud_pubsub::subscriber::ShutdownToken;
use reqwest::header::DATE;
use reqwest::redirect::Policy;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::admin::{APP, CREATED, Failure, call};
use super::{PUBLISH_TRY, PubSub, Settings, chain, published_at};
use crate::bus::Message;
use crate::clock;
use crate::config::ConfigError;
use crate::identity::Identity;

/// One call's time.
const PATIENCE: Duration = Duration::from_secs(5);

/// For credentials that have to be asked for elsewhere, in up to three places.
const PROOF_PATIENCE: Duration = Duration::from_secs(15);

/// For a stream to end in order.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Heard and not looked at yet.
const WAITING: usize = 1_024;

/// More than a topic may have.
const MAX_SUBSCRIPTIONS: usize = 20_000;

/// The service, where it is Google's own.
const SERVICE: &str = "https://pubsub.googleapis.com";

/// Why a call did not do what was asked.
#[derive(Debug)]
pub struct Trouble {
    pub kind: Kind,
    /// In one line.
    pub why: String,
}

/// What decides on what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The right to it is missing.
    Denied,
    /// There is no such thing.
    Missing,
    /// Google does not believe who asks.
    NotProven,
    /// No answer.
    Unreachable,
    Other,
}

/// How this machine's clock and Pub/Sub's differ, in µs: ahead is positive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skew {
    /// What is certain; what the way may have taken is not.
    pub least: i64,
    /// The middle of what is possible.
    pub about: i64,
}

/// A subscription, as far as it tells whose it is.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// Made by this program.
    pub is_ours: bool,
    /// When, in seconds since the epoch; older versions did not say.
    pub created: Option<i64>,
}

/// What came by the topic.
#[derive(Debug)]
pub struct Heard {
    pub message: Message,
    /// In µs by the topic's clock.
    pub published_at: i64,
}

/// Where the service is.
pub fn endpoint(settings: &Settings) -> String {
    settings.credentials.endpoint().unwrap_or_else(|| SERVICE.into())
}

/// Asks the service for nothing, to see that it answers, and by its answer's date how the clocks differ,
/// where it has one.
///
/// # Errors
/// There is no answer.
pub async fn knock(settings: &Settings) -> Result<Option<Skew>, Trouble> {
    let unreachable = |error: &reqwest::Error| Trouble { kind: Kind::Unreachable, why: chain(error) };
    let client = reqwest::Client::builder().redirect(Policy::none()).timeout(PATIENCE).build();
    let client = client.map_err(|error| unreachable(&error))?;
    let before = clock::now_micros();
    let answer = client.get(endpoint(settings)).send().await.map_err(|error| unreachable(&error))?;
    let after = clock::now_micros();
    let date =
        answer.headers().get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    let since_epoch = date.and_then(|date| date.duration_since(std::time::UNIX_EPOCH).ok());
    // It is cut to a second.
    Ok(since_epoch.map(clock::micros).map(|date| Skew::between(before, after, date, date + 999_999)))
}

impl Skew {
    /// Something happened between two times of this clock, and between two of the other one.
    pub fn between(from: i64, to: i64, other_from: i64, other_to: i64) -> Self {
        let (ahead, behind) = (from - other_to, to - other_from);
        let least = if ahead > 0 { ahead } else { behind.min(0) };
        Self { least, about: i64::midpoint(ahead, behind) }
    }
}

/// A VM in all that it asks of Pub/Sub, and in nothing else. Cheap to clone.
#[derive(Clone)]
pub struct Probe {
    bus: PubSub,
    identity: Identity,
    project: String,
    credentials: GoogleCredentials,
    /// Its subscription may be there. Held while that is decided, so that nobody deletes it before it is made.
    made: Arc<Mutex<bool>>,
}

impl Probe {
    /// # Errors
    /// The credentials can't be used.
    pub async fn new(settings: &Settings, identity: &Identity) -> Result<Self, ConfigError> {
        let identity = identity.probe();
        let bus = PubSub::new(settings, &identity).await?;
        let credentials = bus.0.credentials.clone();
        let project = format!("projects/{}", settings.project);
        Ok(Self { bus, identity, project, credentials, made: Arc::default() })
    }

    /// The name that its messages are for, as a VM's id would be.
    pub fn instance(&self) -> &str {
        self.identity.instance()
    }

    /// Its subscription's own name.
    pub fn subscription(&self) -> String {
        self.identity.subscription()
    }

    /// Gets what is shown to Google with each call.
    ///
    /// # Errors
    /// It can't be had, and why.
    pub async fn prove(&self) -> Result<(), Trouble> {
        match timeout(PROOF_PATIENCE, self.credentials.headers(hyper::http::Extensions::new())).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Trouble { kind: Kind::NotProven, why: chain(&error) }),
            Err(_) => {
                let why =
                    format!("no answer in {} s from where they are asked for", PROOF_PATIENCE.as_secs());
                Err(Trouble { kind: Kind::NotProven, why })
            }
        }
    }

    /// For how long the topic keeps its messages.
    ///
    /// # Errors
    /// It can't be looked at, or is not there.
    pub async fn topic(&self) -> Result<Duration, Trouble> {
        let topic = self.bus.get_topic(&self.bus.0.topic).await?;
        let kept = topic.message_retention_duration.map_or(0, |kept| kept.seconds());
        Ok(Duration::from_secs(u64::try_from(kept).unwrap_or(0)))
    }

    /// For how long VMs want it to.
    pub fn wanted(&self) -> Duration {
        self.bus.retention()
    }

    /// # Errors
    /// Another topic of the project can't be looked at, or is not there.
    pub async fn other_topic(&self, name: &str) -> Result<(), Trouble> {
        Ok(self.bus.get_topic(&format!("{}/topics/{name}", self.project)).await.map(drop)?)
    }

    /// The names of the topic's subscriptions in this project, but for its own.
    ///
    /// # Errors
    /// They can't be listed.
    pub async fn subscriptions(&self) -> Result<Vec<String>, Trouble> {
        let inner = &self.bus.0;
        let (folder, own) = (format!("{}/subscriptions/", self.project), self.subscription());
        let mut names = Vec::new();
        let mut token = String::new();
        loop {
            let request = inner.topics.list_topic_subscriptions().set_topic(&inner.topic);
            let page = call(request.set_page_size(1_000).set_page_token(token).send()).await?;
            let found = page.subscriptions.iter().filter_map(|name| name.strip_prefix(&folder));
            names.extend(found.filter(|name| *name != own).map(str::to_owned));
            token = page.next_page_token;
            if token.is_empty() || names.len() > MAX_SUBSCRIPTIONS {
                return Ok(names);
            }
        }
    }

    /// Whose a subscription is; None: it is gone.
    ///
    /// # Errors
    /// It can't be looked at.
    pub async fn look(&self, name: &str) -> Result<Option<Found>, Trouble> {
        match self.bus.get_subscription(&format!("{}/subscriptions/{name}", self.project)).await {
            Ok(subscription) => Ok(Some(Found::read(&subscription))),
            Err(failure) if failure.is(Code::NotFound) => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    /// # Errors
    /// It can't be deleted.
    pub async fn delete(&self, name: &str) -> Result<(), Trouble> {
        Ok(self.bus.delete(&format!("{}/subscriptions/{name}", self.project)).await?)
    }

    /// Makes its own subscription. Dropped half-way it goes on, so that [`Probe::remove`] knows.
    ///
    /// # Errors
    /// It can't be made.
    pub async fn subscribe(&self) -> Result<(), Trouble> {
        let mut made = Arc::clone(&self.made).lock_owned().await;
        let bus = self.bus.clone();
        let making = tokio::spawn(async move {
            let created = bus.create_subscription().await;
            // Who gets no answer may have been heard all the same.
            *made = match &created {
                Ok(()) | Err(Failure::NoAnswer) => true,
                Err(Failure::Google(error)) => error.status().is_none(),
            };
            created
        });
        match making.await {
            Ok(created) => Ok(created?),
            Err(error) => Err(Trouble { kind: Kind::Other, why: error.to_string() }),
        }
    }

    /// Deletes its own subscription, if it may be there.
    ///
    /// # Errors
    /// It can't be deleted; Pub/Sub does it after a day.
    pub async fn remove(&self) -> Result<(), Trouble> {
        let mut made = self.made.lock().await;
        if *made {
            self.bus.delete(&self.bus.0.subscription).await?;
            *made = false;
        }
        Ok(())
    }

    /// Winds its subscription back to `since` (µs).
    ///
    /// # Errors
    /// It may not consume, or can't.
    pub async fn seek(&self, since: i64) -> Result<(), Trouble> {
        Ok(self.bus.wind_back(since).await?)
    }

    /// # Errors
    /// A stream can't even be made; that it can't be opened, it says itself.
    pub async fn listen(&self) -> Result<Ear, Trouble> {
        let made = self.bus.listen().await;
        let mut stream = made.map_err(|error| Trouble { kind: Kind::Other, why: chain(&error) })?;
        let shutdown = stream.shutdown_token();
        let (heard, waiting) = mpsc::channel(WAITING);
        let listening = tokio::spawn(async move {
            loop {
                let next = match stream.next().await {
                    Some(Ok((message, receipt))) => {
                        receipt.ack();
                        let published_at = published_at(&message);
                        let to = message.attributes.get(super::TO).cloned();
                        Ok(Heard {
                            message: Message { data: message.data, to, ..Message::default() },
                            published_at,
                        })
                    }
                    Some(Err(error)) => Err(Failure::Google(error).into()),
                    None => Err(Trouble { kind: Kind::Other, why: "the stream of messages ended".into() }),
                };
                let is_over = next.is_err();
                if heard.send(next).await.is_err() || is_over {
                    return;
                }
            }
        });
        Ok(Ear { waiting, ended: None, listening, shutdown })
    }

    /// Publishes what is for this probe alone.
    ///
    /// # Errors
    /// The topic did not take it.
    pub async fn publish(&self, data: Bytes) -> Result<(), Trouble> {
        let message = Message { data, to: Some(self.instance().into()), ..Message::default() };
        match timeout(PUBLISH_TRY + PATIENCE, self.bus.send(message)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(PublishError::Rpc(error))) => Err(Trouble { kind: kind(&error), why: chain(&*error) }),
            Ok(Err(error)) => Err(Trouble { kind: Kind::Other, why: chain(&error) }),
            Err(_) => Err(Failure::NoAnswer.into()),
        }
    }
}

impl Found {
    fn read(subscription: &Subscription) -> Self {
        let labels = &subscription.labels;
        Self {
            is_ours: labels.get(APP.0).is_some_and(|app| app == APP.1),
            created: labels.get(CREATED).and_then(|created| created.parse().ok()),
        }
    }
}

/// A subscription that is listened to; ends with this value.
pub struct Ear {
    waiting: mpsc::Receiver<Result<Heard, Trouble>>,
    /// Why nothing comes any more.
    ended: Option<Trouble>,
    listening: JoinHandle<()>,
    shutdown: ShutdownToken,
}

impl Ear {
    /// What comes next. Cancel-safe.
    ///
    /// # Errors
    /// Nothing does any more.
    pub async fn next(&mut self) -> Result<Heard, Trouble> {
        if let Some(trouble) = self.ended.take() {
            return Err(trouble);
        }
        let next = self.waiting.recv().await;
        next.unwrap_or_else(|| Err(Trouble { kind: Kind::Other, why: "the stream of messages ended".into() }))
    }

    /// What has come already, if anything.
    pub fn waiting(&mut self) -> Option<Heard> {
        match self.waiting.try_recv().ok()? {
            Ok(heard) => Some(heard),
            Err(trouble) => {
                self.ended = Some(trouble);
                None
            }
        }
    }

    /// Ends the stream in order.
    pub async fn close(self) {
        let _ = timeout(LAST_WORDS, self.shutdown.shutdown()).await;
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Google(error) => Self { kind: kind(&error), why: chain(&error) },
            Failure::NoAnswer => {
                Self { kind: Kind::Unreachable, why: format!("no answer in {} s", PATIENCE.as_secs()) }
            }
        }
    }
}

fn kind(error: &GoogleError) -> Kind {
    match (error.status().map(|status| status.code), error.http_status_code()) {
        (Some(Code::PermissionDenied), _) | (None, Some(403)) => Kind::Denied,
        (Some(Code::NotFound), _) | (None, Some(404)) => Kind::Missing,
        (Some(Code::Unauthenticated), _) | (None, Some(401)) => Kind::NotProven,
        (Some(Code::Unavailable | Code::DeadlineExceeded), _) | (None, None) => Kind::Unreachable,
        (Some(_), _) | (None, Some(_)) => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_differ_by_what_is_certain() {
        let skew = |from, to, date| Skew::between(from, to, date, date + 999);
        // Within the second that the date stands for.
        assert_eq!(skew(5_100, 5_300, 5_000).least, 0);
        assert_eq!(skew(4_900, 5_100, 5_000).least, 0);
        assert_eq!(skew(8_000, 8_200, 5_000).least, 2_001);
        assert_eq!(skew(2_000, 2_200, 5_000).least, -2_800);
        assert_eq!(skew(8_000, 8_200, 5_000).about, 2_600);
    }

    #[test]
    fn a_subscription_s_labels_tell_whose_it_is() {
        let labelled = |labels: &[(&str, &str)]| {
            Found::read(&Subscription::new().set_labels(labels.iter().map(|(name, value)| (*name, *value))))
        };
        assert_eq!(labelled(&[]), Found { is_ours: false, created: None });
        assert_eq!(labelled(&[APP]), Found { is_ours: true, created: None });
        assert_eq!(labelled(&[APP, (CREATED, "x")]), Found { is_ours: true, created: None });
        assert_eq!(labelled(&[APP, (CREATED, "7")]), Found { is_ours: true, created: Some(7) });
    }
}
