//! The heart: what a socket sends goes to the bus, and what the bus brings goes to the sockets.
//!
//! There is no shortcut between the two, not even for the sender's own VM, so every VM and every
//! page sees the same thing. History, hub and fleet are plain data under one lock, so that a socket
//! joins between two events: what is not in its `refresh-store` comes after it.

mod tending;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep};
use tracing::{Level, debug, enabled, warn};
use uuid::Uuid;

pub use self::tending::Search;
use crate::auth::{Backend, Visitor};
use crate::bus::{Bus, BusError, Delivery};
use crate::channel::{BadName, Channel};
use crate::clock::{self, micros};
use crate::config::Config;
use crate::connections::Connections;
use crate::cursor::{BadCursor, Cursor, OVERLAP};
use crate::event::{Ask, Beacon, Event, Heard, Kind, Numbered, Origin, Sequence, Told, Wish};
use crate::fleet::{Change, Fleet};
use crate::frame::Frame;
use crate::health::{Health, Phase};
use crate::history::{CatchUp, History, Hole, Missing};
use crate::hub::{Crowded, Hub, Socket};
use crate::identity::Identity;
use crate::ledger::Ledger;
use crate::lifecycle::Lifecycle;
use crate::logs::Seldom;
use crate::metrics::{Metrics, Stopwatch};
use crate::publishing::{MARKS, Publishing};
use crate::receipts::Receipts;
use crate::shard::{Mailbox, Message, Outbox};
use crate::traces::{Hearing, Taking};
use crate::wire::request::{self, Body, Request};
use crate::wire::{Close, CloseCode, ErrorCode, reply};

/// When a client may try again what the topic did not take.
pub const RETRY_AFTER: Duration = Duration::from_secs(2);

/// What a sender is told then.
pub const NOT_TAKEN: &str = "the topic did not take it; send it again with the same id";

/// Events that wait for a shard are this part of what a socket may leave unread at most. Else a shard that
/// can't keep up for a moment would cut off those who do.
const SHARD_S_PART: u64 = 2;

/// Whatever others say of their intervals, a VM does not doubt for longer.
const MOST_DOUBT: Duration = Duration::from_secs(300);

/// How finely the closing of all sockets is spread.
const STEP: Duration = Duration::from_millis(20);

pub struct Relay {
    pub config: Config,
    pub health: Health,
    pub metrics: Metrics,
    pub bus: Bus,
    pub publishing: Publishing,
    /// Who may use the backend's routes.
    pub backend: Backend,
    pub connections: Connections,
    pub lifecycle: Lifecycle,
    /// What holes make of the log, of which anybody on the topic can tell.
    complaints: Seldom,
    /// Who serves the sockets.
    pub shards: Arc<[Mailbox]>,
    // A std mutex: held for one pass over plain data, never over an await.
    state: Mutex<State>,
}

struct State {
    history: History,
    hub: Hub,
    fleet: Fleet,
    /// As sockets are told it, until something changes.
    fleet_told_as: Option<Frame>,
    ledger: Ledger,
    receipts: Receipts,
    /// The newest place in the topic that this VM has seen, in µs.
    latest: Option<i64>,
    /// Something may be missing of which nobody tells yet: since when, and how late it may come.
    doubt: Option<(Instant, Duration)>,
    /// So may what was published since then (µs) and before this VM joined: the topic has not brought it yet.
    past_awaited: Option<i64>,
    fleet_news: Change,
    fleet_told: Instant,
    /// What the last telling took, in bytes to all sockets.
    fleet_took: f64,
    /// The fleet is larger than the window is long: said once.
    outgrown: bool,
}

/// A socket's place in the relay; dropped, the place is free.
pub struct Member {
    pub relay: Arc<Relay>,
    pub client_id: Arc<str>,
    pub outbox: Outbox,
    pub visitor: Visitor,
}

impl Relay {
    /// A relay whose sockets are served by so many shards.
    pub fn new(config: Config, bus: Bus, shards: usize) -> Self {
        let shards: Arc<[_]> = (0..shards).map(|_| Mailbox::default()).collect();
        let publishing = Publishing::new(bus.clone(), config.history.age);
        let metrics = Metrics::new(&config);
        let lifecycle = Lifecycle::new(
            config.lifecycle_topic.as_deref(),
            &config.identity,
            publishing.started(),
            metrics.lifecycle_lost.clone(),
        );
        Self {
            health: Health::default(),
            metrics,
            backend: Backend::new(config.api_keys.clone(), config.limits.api),
            lifecycle,
            complaints: Seldom::default(),
            connections: Connections::new(config.identity.clone(), publishing.clone()),
            publishing,
            bus,
            state: Mutex::new(State {
                history: History::new(config.history),
                hub: Hub::new(Arc::clone(&shards)),
                fleet: Fleet::default(),
                fleet_told_as: None,
                ledger: Ledger::new(clock::now_micros() - micros(config.history.age)),
                receipts: Receipts::new(Arc::clone(config.identity.instance())),
                latest: None,
                doubt: None,
                past_awaited: None,
                fleet_news: Change::Nothing,
                fleet_told: Instant::now(),
                fleet_took: 0.0,
                outgrown: false,
            }),
            shards,
            config,
        }
    }

    pub fn identity(&self) -> &Identity {
        &self.config.identity
    }

    /// Takes a socket in, and into `channels`. `seat` brings it to its shard, with the frames that it is
    /// to hear first; what comes on the bus from here on comes after those.
    pub fn join(
        self: &Arc<Self>,
        since: Option<&str>,
        channels: &[&str],
        visitor: Visitor,
        seat: impl FnOnce(Member, Message),
    ) {
        let asked = Stopwatch::since(clock::now_micros(), &self.metrics.catch_up);
        self.metrics.opened.inc(if since.is_some() { "returning" } else { "new" });
        // The VM's name is in the id, so that anyone can tell where the connection is.
        let client_id: Arc<str> =
            format!("{}@{}", Uuid::new_v4().simple(), self.identity().instance()).into();
        let since = since.map(|since| Cursor::parse(since, self.bus.tag()));
        let mut errors = Vec::new();

        let outbox = self.state().hub.join(Arc::clone(&client_id), visitor.user.clone());
        // Made before the lock is taken for good: dropped in a panic under it, it would wait for itself.
        let member = Member { relay: Arc::clone(self), client_id, outbox, visitor };
        let mut state = self.state();
        self.metrics.connections.set(state.hub.len() as i64);
        for name in channels {
            let entered = self.enter(&mut state, &member, Channel::new(name));
            // Who asks for thousands that are none is told enough by these.
            let is_told = errors.len() < self.config.limits.channels;
            if let (Err((code, why)), true) = (entered, is_told) {
                let again = (code == ErrorCode::Unavailable).then_some(RETRY_AFTER);
                errors.push(reply::error(code, &why, None, again).into_bytes());
            }
        }
        let cursor = self.cursor_now(&state);
        let joined = state.hub.channels(&member.client_id).to_vec();
        let (identity, interval) = (self.identity(), self.config.ping_interval);
        let connected = reply::connected(&member.client_id, identity, &joined, interval, cursor);
        let mut greeting = vec![connected.into_bytes()];
        greeting.extend(self.refresh(&mut state, None, since, cursor));
        for channel in &joined {
            greeting.extend(self.refresh(&mut state, Some(channel), since, cursor));
        }
        greeting.push(state.fleet_frame().into_bytes());
        if let Some(Err(bad)) = since {
            let error = reply::error(ErrorCode::InvalidField, &bad.to_string(), None, None);
            greeting.push(error.into_bytes());
        }
        greeting.append(&mut errors);
        seat(member, Message::refresh(greeting, asked));
    }

    /// Takes a socket into a channel, if it may be there.
    fn enter(
        &self,
        state: &mut State,
        member: &Member,
        channel: Result<Channel, BadName>,
    ) -> Result<Channel, (ErrorCode, String)> {
        let channel = channel.map_err(|bad| (ErrorCode::InvalidField, bad.to_string()))?;
        if !member.may_join(&channel) {
            return Err((ErrorCode::Forbidden, format!("channel: {channel} is not yours to join")));
        }
        let most = self.config.limits.channels;
        match state.hub.subscribe(&member.client_id, &channel, most) {
            Ok(()) => Ok(channel),
            Err(Crowded::Socket) => {
                let why = format!("channel: {channel} would be one too many, a socket has at most {most}");
                Err((ErrorCode::Forbidden, why))
            }
            Err(Crowded::Vm) => {
                let why =
                    format!("channel: this VM has no room for {channel} now, its sockets are in too many");
                Err((ErrorCode::Unavailable, why))
            }
        }
    }

    /// The `refresh-store` of a channel, or of what everybody hears.
    fn refresh(
        &self,
        state: &mut State,
        channel: Option<&Channel>,
        since: Option<Result<Cursor, BadCursor>>,
        cursor: Cursor,
    ) -> Vec<Bytes> {
        let catch_up = self.catch_up(state, channel, since);
        reply::refresh_store(channel, catch_up, cursor)
    }

    /// What a client missed, and whether that is provably all of it.
    fn catch_up(
        &self,
        state: &mut State,
        channel: Option<&Channel>,
        since: Option<Result<Cursor, BadCursor>>,
    ) -> CatchUp {
        state.history.miss(state.ledger.reaches());
        let reaches = state.history.reaches(channel);
        let from = since.and_then(|since| since.ok()).map(|cursor| cursor.at);
        let mut catch_up = state.history.since(channel, from);
        let unknown = || Hole { reason: Missing::TooOld, from: None, to: reaches };
        let gap = |(from, to)| Hole { reason: Missing::Gap, from: Some(from), to };
        let asked_from = from.map_or(reaches, |from| from.saturating_sub(micros(OVERLAP)));
        let holes = [
            catch_up.missing,
            matches!(since, Some(Err(_))).then(unknown),
            state.ledger.missing(asked_from).map(gap),
            // Who is cut off knows nothing of what came since.
            (self.health.phase() != Phase::Ready)
                .then(|| gap((state.latest.unwrap_or(0), clock::now_micros()))),
            self.unproven_since(state).map(|from| gap((from, clock::now_micros()))),
        ];
        // By the first of the reasons, and as far as all of them reach.
        catch_up.missing = holes.into_iter().flatten().reduce(|hole, other| Hole {
            reason: hole.reason,
            from: hole.from.zip(other.from).map(|(from, other)| from.min(other)),
            to: hole.to.max(other.to),
        });
        catch_up
    }

    /// Does what a client's message asks.
    pub fn handle(self: &Arc<Self>, member: &Member, text: &str) {
        match Request::parse(text) {
            Ok(Request { id, body: Body::Ping }) => {
                self.metrics.received.inc("ping");
                let cursor = self.cursor_now(&self.state());
                // What comes between the two is told first, which only makes the cursor an older one.
                member.outbox.push(reply::pong(id.as_deref(), cursor));
            }
            Ok(Request { id, body: Body::Publish { kind, channel, data } }) => {
                self.metrics.received.inc(kind.label());
                if let Some(channel) = channel.as_ref().filter(|channel| !member.may_join(channel)) {
                    let why = format!("channel: {channel} is not yours to speak in");
                    return refuse(member, ErrorCode::Forbidden, &why, id.as_deref());
                }
                let event = self.event(kind, channel, data, id.clone(), member.client_id.to_string());
                self.publish_for(event, id, member.outbox.clone());
            }
            Ok(Request { id, body: Body::Subscribe { channel, since } }) => {
                self.metrics.received.inc("subscribe");
                self.subscribe(member, channel, since.as_deref(), id.as_deref());
            }
            Ok(Request { id, body: Body::Unsubscribe { channel } }) => {
                self.metrics.received.inc("unsubscribe");
                if !self.state().hub.unsubscribe(&member.client_id, &channel) {
                    let why = format!("channel: you are not in {channel}");
                    refuse(member, ErrorCode::NotFound, &why, id.as_deref());
                }
            }
            Ok(Request { id, body: Body::Direct { target, data } }) => {
                self.metrics.received.inc("direct");
                self.direct(member, &target, data, id);
            }
            Err(invalid) => {
                self.metrics.received.inc("invalid");
                refuse(member, invalid.code, &invalid.message, invalid.id.as_deref());
            }
        }
    }

    fn subscribe(&self, member: &Member, channel: Channel, since: Option<&str>, id: Option<&str>) {
        let asked = Stopwatch::since(clock::now_micros(), &self.metrics.catch_up);
        let since = since.map(|since| Cursor::parse(since, self.bus.tag()));
        let mut state = self.state();
        match self.enter(&mut state, member, Ok(channel)) {
            Ok(channel) => {
                let cursor = self.cursor_now(&state);
                let refreshed = self.refresh(&mut state, Some(&channel), since, cursor);
                // Under the lock: what comes on the channel from here on comes after this.
                member.outbox.push(Message::refresh(refreshed, asked));
            }
            Err((code, why)) => refuse(member, code, &why, id),
        }
        drop(state);
        if let Some(Err(bad)) = since {
            refuse(member, ErrorCode::InvalidField, &bad.to_string(), id);
        }
    }

    /// An event of this VM.
    pub fn event(
        &self,
        kind: Kind,
        channel: Option<Channel>,
        data: Box<RawValue>,
        id: Option<String>,
        sender_id: String,
    ) -> Event {
        Event {
            id: id.unwrap_or_else(|| Uuid::new_v4().to_string()),
            kind,
            channel,
            sender_id,
            data,
            timestamp: clock::now_millis(),
            origin: self.origin(),
            sequence: Sequence::default(),
            wants_receipt: false,
        }
    }

    /// Puts a socket's event on the bus, and tells it when it is there for certain, or is not.
    fn publish_for(self: &Arc<Self>, mut event: Event, id: Option<String>, sender: Outbox) {
        event.wants_receipt = event.kind == Kind::Alert && self.state().receipts.expect(&event.id, &sender);
        let event_id = event.id.clone();
        self.publish(event, move |confirmed| report(&sender, id.as_deref(), &event_id, confirmed));
    }

    /// Puts an event on the bus; `done` hears when it is there for certain, or why it is not.
    pub fn publish(
        self: &Arc<Self>,
        event: Event,
        done: impl FnOnce(Result<(), &'static str>) + Send + 'static,
    ) {
        if self.health.phase() == Phase::Leaving {
            return done(Err("this VM is leaving; connect again and send it again with the same id"));
        }
        let mut taking = Taking::begin(&event);
        // Kept only where it will be said.
        let names = enabled!(Level::DEBUG).then(|| (event.id.clone(), event.sender_id.clone()));
        let begun = Instant::now();
        let relay = Arc::clone(self);
        self.publishing.publish(event, taking.parent(), move |confirmed: Result<(), BusError>| {
            relay.metrics.published(begun.elapsed(), confirmed.as_ref().err().map(|error| error.cause));
            taking.confirmed(confirmed.is_ok());
            match (&confirmed, names) {
                (Ok(()), Some((id, sender))) => debug!(eventId = id, clientId = sender, "published"),
                (Err(error), Some((id, sender))) => {
                    debug!(eventId = id, clientId = sender, %error, "not published");
                }
                (_, None) => {}
            }
            done(confirmed.map_err(|_| NOT_TAKEN));
        });
    }

    /// Waits until the shards have come so far that more can be told: meanwhile the topic keeps it. Cancel-safe.
    pub async fn room(&self) {
        let most = self.config.limits.outbox_bytes as u64 / SHARD_S_PART;
        for shard in &*self.shards {
            shard.room(most).await;
        }
    }

    /// Passes on what the bus brought; returns it when it is a beacon.
    pub fn receive(&self, delivery: Delivery) -> Option<Beacon> {
        let at = delivery.published_at;
        let hearing = Hearing::begin(&delivery.message.trace);
        // The topic filters too, where it can.
        let for_another = delivery.message.to.as_ref().is_some_and(|to| **to != **self.identity().instance());
        let mut heard = None;
        match Told::decode(&delivery.message.data) {
            _ if for_another => {}
            Ok(told) if !self.is_sound(&told) => self.pass_over("what no VM of ours lets in", &delivery),
            Ok(Told::Event(event)) => self.deliver(&event, at, hearing),
            Ok(Told::Beacon(beacon)) => {
                if !beacon.is_mark() {
                    self.note(&beacon, at);
                }
                heard = Some(beacon);
            }
            Ok(Told::Ask(ask)) => {
                let found = self.find(&ask.client_id);
                self.connections.asked(ask, at, found);
            }
            Ok(Told::Answer(answer)) => self.connections.answered(answer),
            Ok(Told::Receipts(receipts)) => self.state().receipts.hear(receipts),
            Err(error) => self.pass_over(&error.to_string(), &delivery),
        }
        // Only now: should this process end here, the message comes again.
        delivery.ack();
        heard
    }

    /// Whether what sockets would hear of it could have come from a client or a backend: the topic may be
    /// anybody's, and what they hear must be what they know, of a size that they can take.
    fn is_sound(&self, told: &Told) -> bool {
        const MAX_SENDER: usize = 512;
        let is_usual = |id: &str, sender_id: Option<&str>, data: &RawValue| {
            request::is_id(id)
                && sender_id.is_none_or(|sender_id| sender_id.len() <= MAX_SENDER)
                && data.get().len() <= self.config.limits.outbox_bytes
        };
        match told {
            Told::Event(event) => {
                let is_named = match &event.kind {
                    Kind::Alert | Kind::Broadcast => true,
                    Kind::App(name) => request::is_app_type(name),
                };
                is_named && is_usual(&event.id, Some(&event.sender_id), &event.data)
            }
            Told::Ask(Ask { wish: Wish::Write(letter), .. }) => {
                is_usual(&letter.id, letter.sender_id.as_deref(), &letter.data)
            }
            // Of these they hear names and figures at most, which were looked at when they were read.
            Told::Ask(_) | Told::Answer(_) | Told::Beacon(_) | Told::Receipts(_) => true,
        }
    }

    /// What is not for this version, or for nobody: counted, and awaited no longer if it has a number.
    fn pass_over(&self, why: &str, delivery: &Delivery) {
        self.metrics.undecodable.inc();
        debug!(why, "a message on the topic was passed over");
        if let Some(Numbered { origin, sequence }) = Numbered::decode(&delivery.message.data) {
            self.state().ledger.hear(&origin.instance, &sequence, delivery.published_at);
        }
    }

    fn deliver(&self, event: &Event, at: i64, hearing: Hearing) {
        let received = clock::now_millis();
        let mut state = self.state();
        state.latest = state.latest.max(Some(at));
        // By its number when the topic repeats it, by its id when the client did.
        let new = state.ledger.hear(&event.origin.instance, &event.sequence, at);
        // What a seek brings of before the window may be forgotten already, and is no news.
        let new = new && at >= self.memory_begins();
        if !new || !state.history.first_sight(&event.id) {
            self.metrics.duplicates.inc();
            if event.wants_receipt {
                state.receipts.heard_before(&event.id);
            }
            return;
        }
        let frame = reply::event(event, self.cursor(&state, at), at / 1000, received);
        state.history.push(event.channel.as_ref(), at, frame.payload());
        let except = (event.kind == Kind::Broadcast).then_some(event.sender_id.as_str());
        let sockets = state.hub.send(event.channel.as_ref(), &frame, except);
        let taken = Stopwatch::since(event.timestamp.saturating_mul(1000), &self.metrics.delivery);
        state.hub.time(event.channel.as_ref(), taken);
        self.metrics.delivered(event.kind.label(), sockets);
        if event.wants_receipt {
            let State { receipts, fleet, .. } = &mut *state;
            receipts.heard(event, at, sockets, fleet);
        }
        drop(state);
        hearing.end(event, at, sockets);
        debug!(eventId = event.id, origin = event.origin.instance, sockets, "heard");
    }

    fn note(&self, beacon: &Beacon, at: i64) {
        self.metrics.beacons.inc();
        let mut state = self.state();
        state.latest = state.latest.max(Some(at));
        state.ledger.learn(beacon, at);
        state.ledger.trust(&beacon.heard, at);
        state.fleet_told_as = None;
        let change = state.fleet.hear(beacon.clone(), at);
        state.fleet_news = state.fleet_news.max(change);
        self.metrics.fleet.set(state.fleet.len() as i64);
    }

    /// From when on (µs) the bus is to bring everything again, where something may have been missed: as
    /// far as memory reaches. Not less: winding a subscription back drops what it still held of before.
    pub fn memory_begins(&self) -> i64 {
        // A little more than the window, whose edge other VMs' clocks see elsewhere.
        clock::now_micros() - micros(self.config.history.age + OVERLAP)
    }

    /// What was published before this (µs) may be awaited by nobody when it comes. A little less than the
    /// window, whose beginning other VMs know only roughly, and which moves on while a backlog comes.
    pub fn window_begins(&self) -> i64 {
        clock::now_micros() - micros(self.config.history.age - 2 * self.config.history.age / MARKS)
    }

    /// Forgets all that it heard, which it is to hear again by another clock.
    pub fn begin_anew(&self) {
        let mut state = self.state();
        state.history = History::new(self.config.history);
        state.ledger = Ledger::new(clock::now_micros() - micros(self.config.history.age));
        state.latest = None;
    }

    /// What went to a process of before comes so much later, and the VMs that could tell of it are not known
    /// yet: nothing is proven.
    ///
    /// The topic may be late to notice that nobody reads the dead process's stream. So the doubt begins with the
    /// time in which each VM speaks once: by the numbers that they tell it is known what is still missing.
    pub fn doubt(&self, late: Duration) {
        self.state().doubt = Some((Instant::now(), late));
    }

    /// What was published since then (µs) and before this VM joined is still to come: of that nothing is
    /// proven. None: it has come.
    pub fn await_past(&self, since: Option<i64>) {
        self.state().past_awaited = since;
    }

    /// The bus begins to bring anew what was missed of what was published before `at` (µs).
    pub fn rejoined(&self, at: i64) {
        self.state().ledger.wait_again(at);
    }

    /// Whether nothing is known to be missing that was published before `at` (µs).
    pub fn is_whole(&self, at: i64) -> bool {
        self.state().ledger.awaited_since().is_none_or(|since| since >= at)
    }

    /// Up to where (µs) this VM has heard what there was; None if nothing is proven.
    pub fn heard_until(&self) -> Option<i64> {
        let state = self.state();
        if self.unproven_since(&state).is_some_and(|since| since <= self.window_begins()) {
            return None;
        }
        state.latest.map(|latest| self.cursor(&state, latest).at)
    }

    /// What was published before `to` (µs) could not be asked for. Sockets that have what this VM heard up
    /// to `from` are told.
    pub fn miss(&self, from: Option<i64>, to: i64) {
        let mut state = self.state();
        state.history.miss(to);
        if from.is_some() {
            let hole = Hole { reason: Missing::Gap, from, to };
            let cursor = self.cursor(&state, state.latest.unwrap_or(to));
            state.hub.send(None, &reply::gap(hole, cursor), None);
        }
    }

    /// What to tell of processes that have ended.
    pub fn vouch(&self) -> Vec<Heard> {
        let mut state = self.state();
        let State { ledger, fleet, .. } = &mut *state;
        ledger.vouch(|instance, started| fleet.is_known(instance, started))
    }

    /// Tells every socket to come back, to another VM, each at a time of its own within `spread`; the
    /// telling itself takes `over`, so that not all are on their way at once.
    pub async fn close_sockets(&self, over: Duration, spread: Duration) {
        let outboxes = self.state().hub.outboxes();
        let steps = u32::try_from(over.as_millis() / STEP.as_millis()).unwrap_or(u32::MAX).max(1);
        for group in outboxes.chunks(outboxes.len().div_ceil(steps as usize).max(1)) {
            for outbox in group {
                let wait = clock::random_part(spread).as_millis();
                outbox.close(Close::come_back(CloseCode::Restart, wait));
            }
            if outboxes.len() > group.len() {
                sleep(STEP).await;
            }
        }
    }

    /// One of this VM's own connections.
    pub fn find(&self, client_id: &str) -> Option<Socket> {
        self.state().hub.get(client_id).cloned()
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

    /// The place up to which a client that was told this has everything: `at`, but not beyond what is proven
    /// to have been heard.
    fn cursor(&self, state: &State, at: i64) -> Cursor {
        let proven = state.ledger.proven_until().min(self.unproven_since(state).unwrap_or(i64::MAX));
        Cursor { topic: self.bus.tag(), at: proven.min(at) }
    }

    /// The same for all that was heard so far.
    fn cursor_now(&self, state: &State) -> Cursor {
        self.cursor(state, state.latest.unwrap_or_else(clock::now_micros))
    }

    fn is_doubted(&self, state: &State) -> bool {
        state.doubt.is_some_and(|(since, late)| {
            let interval = self.config.beacon_interval.max(state.fleet.longest_interval());
            since.elapsed() < interval.min(MOST_DOUBT) + late
        })
    }

    /// Since when (µs) something may be missing of which nobody tells yet.
    fn unproven_since(&self, state: &State) -> Option<i64> {
        if self.is_doubted(state) {
            return Some(self.window_begins());
        }
        state.past_awaited.map(|since| since.max(self.window_begins()))
    }

    pub fn own_beacon_interval(&self) -> Duration {
        self.beacon_interval(&self.state().fleet)
    }

    /// Beacons cost the square of the fleet: each VM is to hear about one a second at most.
    fn beacon_interval(&self, fleet: &Fleet) -> Duration {
        Duration::from_secs(fleet.len() as u64).max(self.config.beacon_interval)
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

impl State {
    /// Who is alive, encoded once for all who come until that changes.
    fn fleet_frame(&mut self) -> Frame {
        self.fleet_told_as.get_or_insert_with(|| reply::fleet(&self.fleet)).clone()
    }
}

/// Tells a sender that the bus has its message for certain, or why it has not.
pub fn report(sender: &Outbox, id: Option<&str>, event_id: &str, confirmed: Result<(), &str>) {
    sender.push(match confirmed {
        Ok(()) => reply::ack(id, event_id),
        Err(why) => reply::error(ErrorCode::Unavailable, why, id, Some(RETRY_AFTER)),
    });
}

/// Tells a socket that what it asked is not done, and why.
fn refuse(member: &Member, code: ErrorCode, why: &str, id: Option<&str>) {
    let again = (code == ErrorCode::Unavailable).then_some(RETRY_AFTER);
    member.outbox.push(reply::error(code, why, id, again));
}

impl Member {
    /// Whether it may hear that channel and speak in it.
    fn may_join(&self, channel: &Channel) -> bool {
        self.visitor.may_join(channel.as_str())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut state = self.relay.state();
        state.hub.leave(&self.client_id);
        self.relay.metrics.connections.set(state.hub.len() as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{Inbox, Join, Message};
    use crate::event::Letter;
    use crate::metrics::Format;
    use crate::shard::Command;
    use crate::vm;

    /// An event of another VM; `id` is JSON.
    fn event(number: u64, id: &str) -> Message {
        let event = format!(
            r#"{{"event":{{"id":{id},"type":"alert","senderId":"s","data":1,"timestamp":7,
            "origin":{{"instance":"other","region":"ams"}},
            "sequence":{{"started":1,"number":{number},"first":1,"firstAt":1}}}}}}"#
        );
        Message { data: event.into(), ..Message::default() }
    }

    /// A VM's beacon, which tells as many sockets as its number.
    fn beacon(vm: usize, beat: usize) -> Message {
        let beacon = format!(
            r#"{{"beacon":{{"origin":{{"instance":"9080e6f3a{vm:05}","region":"ams"}},
            "sequence":{{"started":1,"number":0,"first":1,"firstAt":1}},"beat":{beat},"clients":{beat},
            "roundTripMs":100,"intervalMs":3600000,"leaving":false}}}}"#
        );
        Message { data: beacon.into(), ..Message::default() }
    }

    /// A relay, and its inbox on a topic of its own.
    async fn relay() -> (Arc<Relay>, Inbox) {
        let config = Config::from_vars([]).unwrap();
        let bus = vm::bus(&config).await.unwrap();
        let inbox = bus.join(Join::Resume, clock::now_micros()).await.unwrap();
        let relay = Arc::new(Relay::new(config, bus, 1));
        relay.health.ready();
        (relay, inbox)
    }

    /// A socket, and what it hears first.
    fn join(relay: &Arc<Relay>, since: &str) -> (Member, String) {
        let mut seated = None;
        relay
            .join(Some(since), &[], Visitor::default(), |member, greeting| seated = Some((member, greeting)));
        let (member, greeting) = seated.unwrap();
        (member, String::from_utf8_lossy(&greeting.parts.concat()).into_owned())
    }

    /// What all sockets were told since this was last asked.
    fn told(relay: &Relay) -> Vec<String> {
        let text = |frame: &Frame| String::from_utf8_lossy(&frame.payload()).into_owned();
        let told = relay.shards[0].waiting().into_iter().filter_map(|command| match command {
            Command::Tell(_, frame) => Some(text(&frame)),
            _ => None,
        });
        told.collect()
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_say_how_far_it_is_is_waited_for_until_it_is_taken_for_dead() {
        let (relay, mut inbox) = relay().await;
        relay.bus.publish(beacon(1, 1)).await.unwrap();
        relay.receive(inbox.next().await.unwrap());
        relay.tend_ledger();
        let ago = clock::now_micros() - relay.heard_until().unwrap();
        let patience = micros(relay.config.beacon_interval.mul_f64(4.5));
        assert!((patience..patience + 1_000_000).contains(&ago), "{ago} µs");
    }

    #[tokio::test(start_paused = true)]
    async fn who_sent_an_alert_is_told_that_it_was_heard() {
        let (relay, mut inbox) = relay().await;
        let alert = event(1, r#""asked""#).data;
        let alert = String::from_utf8(alert.to_vec()).unwrap();
        let alert = alert.replace("other", "9080e6f3a00001").replacen(
            "\"data\"",
            "\"wantsReceipt\":true,\"data\"",
            1,
        );
        for message in [beacon(1, 1), Message { data: alert.into(), ..Message::default() }] {
            relay.bus.publish(message).await.unwrap();
            relay.receive(inbox.next().await.unwrap());
        }
        relay.tend_receipts();
        let told = inbox.next().await.unwrap().message;
        assert_eq!(told.to.as_deref(), Some("9080e6f3a00001"));
        let Ok(Told::Receipts(told)) = Told::decode(&told.data) else { panic!("no receipts") };
        assert_eq!(told.receipts[0].event_id, "asked");
        assert!(relay.figures(Format::Plain).contains("alien_alert_ready 1\n"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hole_is_counted_and_filled_by_a_seek() {
        let (relay, mut inbox) = relay().await;
        let since = Cursor { topic: relay.bus.tag(), at: clock::now_micros() }.to_string();
        let (_member, greeting) = join(&relay, &since);
        assert!(greeting.contains(r#""complete":true"#), "{greeting}");
        for number in 1..=3 {
            relay.bus.publish(event(number, &format!("\"#{number}\""))).await.unwrap();
            let delivery = inbox.next().await.unwrap();
            // One is lost on its way.
            if number == 2 { delivery.ack() } else { _ = relay.receive(delivery) }
        }
        assert_eq!(relay.tend_ledger(), None, "it may just have been overtaken");
        assert_eq!(relay.metrics.holes.get(), 0);
        tokio::time::advance(Duration::from_secs(15)).await;
        assert_eq!(relay.tend_ledger(), Some(Search::Again));
        assert_eq!(relay.metrics.holes.get(), 1);
        let (_, greeting) = join(&relay, &since);
        assert!(greeting.contains(r#""complete":false,"reason":"gap""#), "{greeting}");

        relay.bus.seek(relay.memory_begins()).await.unwrap();
        for _ in 1..=3 {
            relay.receive(inbox.next().await.unwrap());
        }
        let told = told(&relay);
        for number in 1..=3 {
            let times = told.iter().filter(|text| text.contains(&format!("\"#{number}\""))).count();
            assert_eq!(times, 1, "{told:?}");
        }
        let (_, greeting) = join(&relay, &since);
        assert!(greeting.contains(r#""complete":true"#), "{greeting}");
        assert_eq!((relay.tend_ledger(), relay.metrics.lost.get()), (None, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_never_comes_is_told_to_who_is_there_and_to_who_comes() {
        let (relay, mut inbox) = relay().await;
        let since = Cursor { topic: relay.bus.tag(), at: clock::now_micros() }.to_string();
        let (_member, _) = join(&relay, &since);
        for number in [1, 3] {
            relay.bus.publish(event(number, &format!("\"#{number}\""))).await.unwrap();
            relay.receive(inbox.next().await.unwrap());
        }
        for (wait, search) in [(15, Some(Search::Again)), (30, Some(Search::Anew)), (15, None)] {
            assert_eq!(relay.metrics.lost.get(), 0);
            assert!(told(&relay).iter().all(|text| !text.contains("refresh-store")));
            tokio::time::advance(Duration::from_secs(wait)).await;
            assert_eq!(relay.tend_ledger(), search);
        }
        assert_eq!((relay.metrics.holes.get(), relay.metrics.lost.get()), (1, 1));
        let gap = r#""complete":false,"reason":"gap","missing":{"from":"#;
        let told = told(&relay);
        assert!(told.len() == 1 && told[0].contains("refresh-store") && told[0].contains(gap), "{told:?}");
        let (_, greeting) = join(&relay, &since);
        assert!(greeting.contains(gap), "{greeting}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_doubt_lasts_until_each_vm_has_spoken_and_what_is_late_has_come() {
        const LATE: Duration = Duration::from_secs(15);
        let (relay, mut inbox) = relay().await;
        let since = Cursor { topic: relay.bus.tag(), at: clock::now_micros() }.to_string();
        let is_complete = || join(&relay, &since).1.contains(r#""complete":true"#);
        let interval = relay.config.beacon_interval;
        relay.doubt(LATE);
        tokio::time::advance(interval + LATE - Duration::from_secs(1)).await;
        assert!(!is_complete());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(is_complete());

        // One that says that it speaks once an hour is not waited for as long as that.
        relay.doubt(LATE);
        relay.bus.publish(beacon(1, 1)).await.unwrap();
        relay.receive(inbox.next().await.unwrap());
        tokio::time::advance(interval + LATE).await;
        assert!(!is_complete());
        tokio::time::advance(MOST_DOUBT - interval).await;
        assert!(is_complete());
    }

    /// Bytes that `sockets` of a VM were told of a fleet of so many in so many seconds, in each of which
    /// another VM has other figures.
    async fn told_of_the_fleet(vms: usize, sockets: usize, seconds: usize) -> usize {
        let (relay, mut inbox) = relay().await;
        let _members: Vec<_> = (0..sockets).map(|_| join(&relay, "").0).collect();
        let mut beats = 0;
        let mut hear = async |vm: usize| {
            beats += 1;
            relay.bus.publish(beacon(vm, beats)).await.unwrap();
            relay.receive(inbox.next().await.unwrap());
        };
        for vm in 0..vms {
            hear(vm).await;
        }
        let mut bytes = 0;
        for second in 0..seconds {
            hear(second % vms).await;
            for _ in 0..4 {
                tokio::time::advance(Duration::from_millis(250)).await;
                relay.tend_fleet();
            }
            bytes += told(&relay).iter().map(|text| text.len() * sockets).sum::<usize>();
        }
        bytes
    }

    #[tokio::test(start_paused = true)]
    async fn a_fleet_larger_than_the_window_is_long_is_told_of() {
        // By default an hour, and four and a half beacons of as many seconds as there are VMs.
        for (vms, outgrown) in [(800, false), (801, true)] {
            let (relay, mut inbox) = relay().await;
            for vm in 0..vms {
                relay.bus.publish(beacon(vm, 1)).await.unwrap();
                relay.receive(inbox.next().await.unwrap());
            }
            relay.tend_ledger();
            assert_eq!(relay.state().outgrown, outgrown, "{vms}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_sockets_are_told_of_the_fleet_is_bounded() {
        // Of a small one all that changes, in the second after.
        let small = told_of_the_fleet(5, 100, 60).await;
        assert!((50 * 100 * 400..60 * 100 * 800).contains(&small), "{small}");
        // Of a large one who is in it, and then one frame for each share of the bytes that it takes.
        let frame = 400 * 110;
        let large = told_of_the_fleet(400, 500, 120).await;
        let most = 2 * 500 * frame + 120 * (512 << 10);
        assert!((500 * frame / 2..most).contains(&large), "{large} of {most}");
    }

    #[tokio::test]
    async fn what_is_for_one_socket_is_held_to_the_same_as_what_is_for_all() {
        let (relay, _inbox) = relay().await;
        let most = relay.config.limits.outbox_bytes;
        let text = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
        let (long, longer) = ("x".repeat(512), "x".repeat(513));
        for (id, sender_id, data, is_sound) in [
            ("a", None, text(most), true),
            ("a", None, text(most + 1), false),
            ("a", Some(&long), text(2), true),
            ("a", Some(&longer), text(2), false),
            (&"é".repeat(64), None, text(2), true),
            (&"é".repeat(65), None, text(2), false),
            ("", None, text(2), false),
            ("line\nbreak", None, text(2), false),
        ] {
            let letter = Letter {
                id: id.into(),
                sender_id: sender_id.cloned(),
                data: RawValue::from_string(data).unwrap(),
                timestamp: 7,
            };
            let sender_id = sender_id.cloned().unwrap_or_default();
            let event = relay.event(Kind::Alert, None, letter.data.clone(), Some(id.into()), sender_id);
            let wish = Wish::Write(letter);
            let ask = Ask { id: "ask".into(), from: None, client_id: "c@vm".into(), wish };
            for told in [Told::Event(event), Told::Ask(ask)] {
                assert_eq!(relay.is_sound(&told), is_sound, "{told:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_newer_version_s_event_leaves_no_hole() {
        let (relay, mut inbox) = relay().await;
        let mut tell = async |number: u64, id: &str| {
            relay.bus.publish(event(number, id)).await.unwrap();
            relay.receive(inbox.next().await.unwrap());
        };
        tell(1, r#""a""#).await;
        tell(2, r#"{"an": "object"}"#).await;
        tell(3, r#""c""#).await;
        assert_eq!(relay.metrics.undecodable.get(), 1);
        assert!(relay.is_whole(i64::MAX));
        tell(5, r#""e""#).await;
        assert!(!relay.is_whole(i64::MAX), "the fourth did not come");
    }
}
