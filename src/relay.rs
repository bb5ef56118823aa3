//! The heart: what a socket sends goes to the bus, and what the bus brings goes to the sockets.
//!
//! There is no shortcut between the two, not even for the sender's own VM, so every VM and every
//! page sees the same thing. History, hub and fleet are plain data under one lock, so that a socket
//! joins between two events: what is not in its `refresh-store` comes after it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};
use uuid::Uuid;

use crate::bus::{Bus, Delivery, Message};
use crate::clock;
use crate::config::Config;
use crate::cursor::Cursor;
use crate::event::{Beacon, Event, Kind, Origin, Told};
use crate::fleet::{Change, Fleet};
use crate::health::{Health, Phase};
use crate::history::History;
use crate::hub::{Hub, Outbox};
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::wire::request::{Body, Request};
use crate::wire::{Close, CloseCode, ErrorCode, reply};

/// When a client may try again what the topic did not take.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Fleet frames a second that a VM may spend on figures; membership is told at once.
const FLEET_FRAMES: usize = 1_000;

/// At least so long between two fleet frames.
const FLEET_SPACING: Duration = Duration::from_secs(1);

pub struct Relay {
    pub config: Config,
    pub health: Health,
    pub metrics: Metrics,
    pub bus: Bus,
    /// What is accepted and not confirmed yet.
    pub publishing: TaskTracker,
    // A std mutex: held for one pass over plain data, never over an await.
    state: Mutex<State>,
}

struct State {
    history: History,
    hub: Hub,
    fleet: Fleet,
    /// The newest place in the topic that this VM has seen, in µs.
    latest: i64,
    fleet_news: Change,
    fleet_told: Instant,
}

/// A socket's place in the relay; dropped, the place is free.
pub struct Member {
    pub relay: Arc<Relay>,
    pub client_id: Arc<str>,
    pub outbox: Arc<Outbox>,
}

impl Relay {
    pub fn new(config: Config, bus: Bus) -> Self {
        Self {
            health: Health::default(),
            metrics: Metrics::new(config.identity.clone()),
            bus,
            publishing: TaskTracker::new(),
            state: Mutex::new(State {
                history: History::new(config.history),
                hub: Hub::default(),
                fleet: Fleet::default(),
                latest: clock::now_micros(),
                fleet_news: Change::Nothing,
                fleet_told: Instant::now(),
            }),
            config,
        }
    }

    pub fn identity(&self) -> &Identity {
        &self.config.identity
    }

    /// Takes a socket in; it comes with the bytes that it is to hear first.
    pub fn join(self: &Arc<Self>, since: Option<&str>) -> (Member, Vec<Bytes>) {
        // The VM's name is in the id, so that anyone can tell where the connection is.
        let client_id: Arc<str> =
            format!("{}@{}", Uuid::new_v4().simple(), self.identity().instance()).into();
        let outbox = Arc::new(Outbox::new(self.config.limits.outbox_bytes));
        let since = since.map(|since| Cursor::parse(since, self.bus.tag()));
        let from = since.and_then(|since| since.ok()).map(|cursor| cursor.at);

        let mut state = self.state();
        let catch_up = state.history.since(from);
        let cursor = self.cursor(state.latest);
        let fleet = reply::fleet(&state.fleet);
        state.hub.join(Arc::clone(&client_id), Arc::clone(&outbox));
        self.metrics.connections.set(state.hub.len() as i64);
        drop(state);

        let identity = self.identity();
        let connected = reply::connected(&client_id, identity, self.config.ping_interval, cursor);
        let mut greeting = vec![connected.into_bytes()];
        greeting.extend(reply::refresh_store(catch_up, cursor));
        greeting.push(fleet.into_bytes());
        if let Some(Err(bad)) = since {
            let error = reply::error(ErrorCode::InvalidField, &bad.to_string(), None, None);
            greeting.push(error.into_bytes());
        }
        (Member { relay: Arc::clone(self), client_id, outbox }, greeting)
    }

    /// Does what a client's message asks.
    pub fn handle(self: &Arc<Self>, member: &Member, text: &str) {
        match Request::parse(text) {
            Ok(Request { id, body: Body::Ping }) => {
                self.metrics.received("ping");
                member.outbox.push(reply::pong(id.as_deref()));
            }
            Ok(Request { id, body: Body::Publish { kind, data } }) => {
                self.metrics.received(kind.name());
                let event = Event {
                    id: id.clone().unwrap_or_else(|| Uuid::new_v4().to_string()),
                    kind,
                    sender_id: member.client_id.to_string(),
                    data,
                    timestamp: clock::now_millis(),
                    origin: self.origin(),
                };
                self.publish(event, id, Arc::clone(&member.outbox));
            }
            Err(invalid) => {
                self.metrics.received("invalid");
                member.outbox.push(reply::error(invalid.code, &invalid.message, invalid.id.as_deref(), None));
            }
        }
    }

    /// Puts an event on the bus, and tells the sender when it is there for certain, or is not.
    fn publish(self: &Arc<Self>, event: Event, id: Option<String>, sender: Arc<Outbox>) {
        let unavailable =
            |why: &str| reply::error(ErrorCode::Unavailable, why, id.as_deref(), Some(RETRY_AFTER));
        if self.health.phase() == Phase::Leaving {
            sender.push(unavailable("this VM is leaving; connect again and send it again with the same id"));
            return;
        }
        let event_id = event.id.clone();
        let begun = Instant::now();
        let confirmed = self.bus.publish(Message { data: Told::Event(event).encode(), to: None });
        let relay = Arc::clone(self);
        self.publishing.spawn(async move {
            let confirmed = confirmed.await;
            relay.metrics.published(begun.elapsed(), confirmed.is_ok());
            sender.push(match confirmed {
                Ok(()) => reply::ack(id.as_deref(), &event_id),
                Err(error) => {
                    debug!(event_id, %error, "event not published");
                    let why = "the topic did not take it; send it again with the same id";
                    reply::error(ErrorCode::Unavailable, why, id.as_deref(), Some(RETRY_AFTER))
                }
            });
        });
    }

    /// Passes on what the bus brought; returns it when it is a beacon of this VM.
    pub fn receive(&self, delivery: Delivery) -> Option<Beacon> {
        let at = delivery.published_at;
        let instance = self.identity().instance();
        // The topic filters too, where it can.
        let for_another = delivery.message.to.as_ref().is_some_and(|to| **to != **instance);
        let mut own = None;
        match Told::decode(&delivery.message.data) {
            _ if for_another => {}
            Ok(Told::Event(event)) => self.deliver(&event, at),
            Ok(Told::Beacon(beacon)) => {
                own = (*beacon.origin.instance == **instance).then(|| beacon.clone());
                let mut state = self.state();
                state.latest = state.latest.max(at);
                let change = state.fleet.hear(beacon, at);
                state.fleet_news = state.fleet_news.max(change);
                self.metrics.fleet.set(state.fleet.len() as i64);
            }
            Err(error) => {
                self.metrics.undecodable.inc();
                debug!(%error, "a message on the topic that this version does not know");
            }
        }
        // Only now: should this process end here, the message comes again.
        delivery.ack();
        own
    }

    fn deliver(&self, event: &Event, at: i64) {
        let mut state = self.state();
        state.latest = state.latest.max(at);
        if !state.history.first_sight(&event.id) {
            self.metrics.duplicates.inc();
            return;
        }
        let frame = reply::event(event, self.cursor(at));
        state.history.push(at, frame.payload());
        let except = (event.kind == Kind::Broadcast).then_some(event.sender_id.as_str());
        let sockets = state.hub.send_all(&frame, except);
        self.metrics.delivered(event.kind.name(), sockets);
    }

    /// Forgets VMs that fell silent, and tells the sockets what changed in the fleet.
    pub fn tend_fleet(&self) {
        let mut state = self.state();
        if state.fleet.expire() {
            state.fleet_news = Change::Members;
            self.metrics.fleet.set(state.fleet.len() as i64);
        }
        let figures_spacing = FLEET_SPACING.mul_f64((state.hub.len() as f64 / FLEET_FRAMES as f64).max(1.0));
        let spacing = match state.fleet_news {
            Change::Nothing => return,
            Change::Figures => figures_spacing,
            Change::Members => FLEET_SPACING,
        };
        if state.fleet_told.elapsed() < spacing {
            return;
        }
        state.fleet_told = Instant::now();
        state.fleet_news = Change::Nothing;
        state.hub.send_all(&reply::fleet(&state.fleet), None);
    }

    /// Tells every socket to come back, to another VM, at a time of its own within `spread`.
    pub fn close_sockets(&self, spread: Duration) {
        let close = || Close::come_back(CloseCode::Restart, clock::random_part(spread).as_millis());
        self.state().hub.close_all(close);
    }

    pub fn clients(&self) -> usize {
        self.state().hub.len()
    }

    /// Reads the fleet under the lock.
    pub fn with_fleet<T>(&self, read: impl FnOnce(&Fleet) -> T) -> T {
        read(&self.state().fleet)
    }

    pub fn history_len(&self) -> usize {
        self.state().history.len()
    }

    pub fn origin(&self) -> Origin {
        let identity = self.identity();
        Origin { instance: identity.instance().to_string(), region: identity.region().to_string() }
    }

    fn cursor(&self, at: i64) -> Cursor {
        Cursor { topic: self.bus.tag(), at }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| {
            // A panic in the middle of a pass can leave figures stale, never memory unsound.
            warn!("going on after a panic under the relay's lock");
            self.state.clear_poison();
            PoisonError::into_inner(poisoned)
        })
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut state = self.relay.state();
        state.hub.leave(&self.client_id);
        self.relay.metrics.connections.set(state.hub.len() as i64);
    }
}
