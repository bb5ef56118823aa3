//! What is said to one connection, on whichever VM it is, and what becomes of that.
//!
//! A connection's id names its VM. The VM that is asked publishes an ask for that one alone, which does
//! what is wanted with its socket and publishes an answer for the one that asked. The way is the same
//! when both are one VM. None of it is history: who asked does not wait for long, and a connection does
//! not outlive its socket.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::select;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout};
use tracing::debug;
use uuid::Uuid;

use crate::bus::Message;
use crate::clock::{self, micros};
use crate::event::{Answer, Ask, Description, Letter, Outcome, Told, Wish};
use crate::history::Seen;
use crate::hub::Socket;
use crate::identity::Identity;
use crate::publishing::Publishing;
use crate::relay::{Member, NOT_TAKEN, RETRY_AFTER, Relay, report};
use crate::wire::{Close, CloseCode, ErrorCode, reply};

/// How long who asks waits for the answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// An ask older than this came out of a backlog: nobody waits for its answer any more. One that nobody
/// waited for, but that a sender was told is safe, may be late by the mending of the path.
const MAX_AGE: Duration = Duration::from_secs(5);
const MAX_UNANSWERED_AGE: Duration = Duration::from_secs(60);

/// Answers awaited here at once; and messages with somebody who waits for them to be written.
const MAX_PENDING: usize = 4_096;
const MAX_WRITING: usize = 4_096;

/// Asks, and messages to connections, known again when they come again; and for how long.
const MAX_SEEN: usize = 16_384;
const REMEMBERED: Duration = Duration::from_secs(600);

/// The id of a connection: hard to guess, and telling its VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientId(String);

impl ClientId {
    /// None: no VM of this program gave that.
    pub fn parse(text: &str) -> Option<Self> {
        let (unique, instance) = text.split_once('@')?;
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let fits = unique.len() == 32 && unique.bytes().all(is_hex) && Identity::is_instance(instance);
        fits.then(|| Self(text.into()))
    }

    /// The VM that it is on.
    pub fn instance(&self) -> &str {
        self.0.split_once('@').map_or("", |(_, instance)| instance)
    }
}

/// Why a connection was not reached.
#[derive(Debug)]
pub enum Unreached {
    /// It is gone, for certain.
    Gone,
    /// Its VM did not answer in time; the wish may have been done.
    NoAnswer,
    /// This VM can't ask now.
    Unavailable(String),
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Connections(Arc<Shared>);

struct Shared {
    identity: Identity,
    publishing: Publishing,
    // A std mutex: held for a few instructions, never over an await.
    state: Mutex<State>,
}

struct State {
    /// Who waits here, by the ask's id.
    pending: HashMap<String, oneshot::Sender<Outcome>>,
    /// Asks that this VM has taken up.
    asks: Seen,
    /// Messages that were written, or nobody waits for.
    written: Seen,
    /// Messages that are not written yet.
    writing: HashMap<String, watch::Receiver<bool>>,
}

/// One who waits for an answer; dropped, it is no longer awaited.
struct Pending {
    connections: Connections,
    id: String,
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.connections.state().pending.remove(&self.id);
    }
}

/// The asking side.
impl Relay {
    /// Has `wish` done by the connection's VM.
    ///
    /// # Errors
    /// It was not, or nobody knows.
    pub async fn ask(&self, to: &ClientId, wish: Wish) -> Result<Outcome, Unreached> {
        let answered = self.ask_uncounted(to, wish).await;
        self.metrics.asks.inc(match &answered {
            Ok(Outcome::Written) => "written",
            Ok(Outcome::Described(_)) => "described",
            Ok(Outcome::Closed) => "closed",
            Ok(Outcome::Gone) | Err(Unreached::Gone) => "gone",
            Err(Unreached::NoAnswer) => "timeout",
            Err(Unreached::Unavailable(_)) => "unavailable",
        });
        answered
    }

    async fn ask_uncounted(&self, to: &ClientId, wish: Wish) -> Result<Outcome, Unreached> {
        self.locate(to)?;
        let (ask, answer) = self.connections.expect()?;
        let message = Ask {
            id: ask.id.clone(),
            from: Some(self.identity().instance().to_string()),
            client_id: to.0.clone(),
            wish,
        };
        let confirmed = self.bus.publish(to_instance(to.instance(), Told::Ask(message)));
        let answered = async {
            let mut answer = pin!(answer);
            select! {
                biased;
                outcome = &mut answer => outcome,
                confirmed = confirmed => {
                    confirmed.map_err(|error| Unreached::Unavailable(error.to_string()))?;
                    answer.await
                }
            }
            .map_err(|_| Unreached::NoAnswer)
        };
        match timeout(PATIENCE, answered).await {
            Ok(Ok(Outcome::Gone)) => Err(Unreached::Gone),
            Ok(answered) => answered,
            Err(_) => Err(Unreached::NoAnswer),
        }
    }

    /// Sends one client's message to another, and tells the sender when the bus has it.
    pub fn direct(&self, from: &Member, to: &ClientId, data: Box<RawValue>, id: Option<String>) {
        let sender = from.outbox.clone();
        let refuse = |code, why: &str, wait| reply::error(code, why, id.as_deref(), wait);
        match self.locate(to) {
            Ok(()) => {}
            Err(Unreached::Unavailable(why)) => {
                sender.push(refuse(ErrorCode::Unavailable, &why, Some(RETRY_AFTER)));
                return;
            }
            Err(_) => {
                sender.push(refuse(ErrorCode::NotFound, "there is no such connection any more", None));
                return;
            }
        }
        let letter = letter(id.clone(), Some(&from.client_id), data);
        let event_id = letter.id.clone();
        let wish = Wish::Write(letter);
        let ask = Ask { id: Uuid::new_v4().to_string(), from: None, client_id: to.0.clone(), wish };
        let message = to_instance(to.instance(), Told::Ask(ask));
        let client_id = Arc::clone(&from.client_id);
        self.publishing.send(message, move |confirmed| {
            match &confirmed {
                Ok(()) => {
                    debug!(eventId = event_id, clientId = &*client_id, "message to a connection published")
                }
                Err(error) => debug!(
                    eventId = event_id, clientId = &*client_id, %error,
                    "message to a connection not published"
                ),
            }
            let confirmed = confirmed.map_err(|_| NOT_TAKEN);
            report(&sender, id.as_deref(), &event_id, confirmed);
        });
    }

    /// Whether its VM can be asked for that connection.
    fn locate(&self, id: &ClientId) -> Result<(), Unreached> {
        let phase = self.health.phase();
        if !phase.takes_sockets() {
            return Err(Unreached::Unavailable(format!("this VM is {}", phase.text())));
        }
        let own = self.identity().instance();
        if id.instance() == &**own {
            return self.find(&id.0).map(drop).ok_or(Unreached::Gone);
        }
        self.with_fleet(|fleet| match (fleet.has(id.instance()), fleet.has(own)) {
            (true, _) => Ok(()),
            (false, true) => Err(Unreached::Gone),
            // One that does not hear itself does not hear the others, which says nothing of them.
            (false, false) => Err(Unreached::Unavailable("this VM does not hear the topic".into())),
        })
    }
}

/// A message to one connection, as this VM takes it.
pub fn letter(id: Option<String>, sender_id: Option<&str>, data: Box<RawValue>) -> Letter {
    Letter {
        id: id.unwrap_or_else(|| Uuid::new_v4().to_string()),
        sender_id: sender_id.map(str::to_owned),
        data,
        timestamp: clock::now_millis(),
    }
}

/// A message for one VM alone.
pub fn to_instance(instance: &str, told: Told) -> Message {
    Message { data: told.encode(), to: Some(instance.into()), ..Message::default() }
}

/// The answering side.
impl Connections {
    pub fn new(identity: Identity, publishing: Publishing) -> Self {
        let state = State {
            pending: HashMap::new(),
            asks: Seen::new(MAX_SEEN),
            written: Seen::new(MAX_SEEN),
            writing: HashMap::new(),
        };
        Self(Arc::new(Shared { identity, publishing, state: Mutex::new(state) }))
    }

    /// Does what an ask wants that was published at `at` (µs), and answers. `found` is the connection.
    pub fn asked(&self, ask: Ask, at: i64, found: Option<Socket>) {
        let now = clock::now_micros();
        let max_age = if ask.from.is_some() { MAX_AGE } else { MAX_UNANSWERED_AGE };
        let is_new = now - at <= micros(max_age)
            && self.state().asks.insert(&ask.id, now - 2 * micros(MAX_UNANSWERED_AGE));
        if !is_new {
            return;
        }
        let Ask { id, from, client_id, wish } = ask;
        let asker = from.map(|instance| Asker { connections: self.clone(), instance, id });
        let outcome = match (found, wish) {
            (None, _) => Outcome::Gone,
            (Some(found), Wish::Write(letter)) => {
                debug!(eventId = letter.id, clientId = client_id, "message to this connection heard");
                return self.write(asker, &client_id, &found, &letter);
            }
            (Some(found), Wish::Describe) => Outcome::Described(self.describe(client_id, found)),
            (Some(found), Wish::Close) => {
                found.outbox.close(Close::new(CloseCode::Dismissed, "closed by the app"));
                Outcome::Closed
            }
        };
        if let Some(asker) = asker {
            asker.answer(outcome);
        }
    }

    /// Takes the answer to an ask of this VM; one that nobody waits for is dropped.
    pub fn answered(&self, answer: Answer) {
        if let Some(pending) = self.state().pending.remove(&answer.id) {
            let _ = pending.send(answer.outcome);
        }
    }

    fn describe(&self, client_id: String, found: Socket) -> Description {
        let identity = &self.0.identity;
        Description {
            client_id,
            instance: identity.instance().to_string(),
            region: identity.region().to_string(),
            connected_at: found.opened_at,
            channels: found.channels,
            user: found.user.map(|user| user.to_string()),
        }
    }

    /// Hands `letter` to the socket, once however often it comes; who waits is answered when the system
    /// has the bytes.
    fn write(&self, asker: Option<Asker>, client_id: &str, found: &Socket, letter: &Letter) {
        // Neither part holds a space in its first place: ids of connections have none at all.
        let key = format!("{client_id} {}", letter.id);
        let mut state = self.state();
        if state.written.contains(&key) {
            drop(state);
            if let Some(asker) = asker {
                asker.answer(Outcome::Written);
            }
            return;
        }
        let mut written = match (state.writing.get(&key), &asker) {
            (Some(written), Some(_)) => written.clone(),
            (Some(_), None) => return,
            (None, Some(_)) if state.writing.len() < MAX_WRITING => {
                let (notice, written) = watch::channel(false);
                found.outbox.push_noticed(reply::direct(letter), notice);
                state.writing.insert(key.clone(), written.clone());
                written
            }
            (None, Some(_)) => return,
            (None, None) => {
                found.outbox.push(reply::direct(letter));
                state.written.insert(&key, oldest_remembered());
                return;
            }
        };
        drop(state);
        let connections = self.clone();
        let begun = Instant::now();
        // Ends with the socket at the latest.
        tokio::spawn(async move {
            let written = written.wait_for(|written| *written).await.is_ok();
            {
                let mut state = connections.state();
                state.writing.remove(&key);
                if written {
                    state.written.insert(&key, oldest_remembered());
                }
            }
            if let Some(asker) = asker.filter(|_| begun.elapsed() < PATIENCE) {
                asker.answer(if written { Outcome::Written } else { Outcome::Gone });
            }
        });
    }

    fn expect(&self) -> Result<(Pending, oneshot::Receiver<Outcome>), Unreached> {
        let mut state = self.state();
        if state.pending.len() >= MAX_PENDING {
            return Err(Unreached::Unavailable("this VM waits for too many answers already".into()));
        }
        let (sender, answer) = oneshot::channel();
        let id = Uuid::new_v4().to_string();
        state.pending.insert(id.clone(), sender);
        Ok((Pending { connections: self.clone(), id }, answer))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn oldest_remembered() -> i64 {
    clock::now_micros() - micros(REMEMBERED)
}

/// The VM that waits for an answer.
struct Asker {
    connections: Connections,
    instance: String,
    id: String,
}

impl Asker {
    fn answer(self, outcome: Outcome) {
        let message = to_instance(&self.instance, Told::Answer(Answer { id: self.id, outcome }));
        // One that gets lost is a time-out there.
        self.connections.0.publishing.send(message, |confirmed| {
            if let Err(error) = confirmed {
                debug!(%error, "an answer about a connection was not published");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Bus;
    use crate::bus::memory::Topic;
    use crate::config::Config;
    use crate::hub::Hub;
    use crate::shard::{Command, Mailbox, Message as Own, Notice};

    #[test]
    fn ids_of_connections_are_known_by_their_form() {
        let good = format!("{}@148ed123c79d89", "0123456789abcdef".repeat(2));
        assert_eq!(ClientId::parse(&good).unwrap().instance(), "148ed123c79d89");
        let short = "0123@vm";
        let upper = format!("{}@vm", "0123456789ABCDEF".repeat(2));
        let nowhere = format!("{}@", "0".repeat(32));
        let slash = format!("{}@a/b", "0".repeat(32));
        for bad in ["", "@", short, &upper, &nowhere, &slash, &good[..32]] {
            assert_eq!(ClientId::parse(bad), None, "{bad}");
        }
    }

    /// A connection and its shard.
    fn connections() -> (Connections, Socket, Mailbox) {
        let config = Config::from_vars([]).unwrap();
        let bus = Bus::Memory(Topic::new(config.history).member());
        let publishing = Publishing::new(bus, config.history.age);
        let shard = Mailbox::default();
        let mut hub = Hub::new(Arc::new([shard.clone()]));
        hub.join("c@vm".into(), None);
        (Connections::new(config.identity, publishing), hub.get("c@vm").unwrap().clone(), shard)
    }

    fn write(id: &str, ask: &str, from: Option<&str>) -> Ask {
        let wish = Wish::Write(letter(Some(id.into()), None, RawValue::NULL.to_owned()));
        Ask { id: ask.into(), from: from.map(str::to_owned), client_id: "c@vm".into(), wish }
    }

    /// What the shard is to write to it.
    fn said(shard: &Mailbox) -> Vec<Own> {
        let commands = shard.waiting().into_iter();
        let said = commands.filter_map(|command| match command {
            Command::Say(_, message) => Some(message),
            _ => None,
        });
        said.collect()
    }

    #[tokio::test]
    async fn a_message_is_handed_on_once_however_often_it_comes() {
        let (connections, found, shard) = connections();
        let now = clock::now_micros();
        for (ask, from) in [("1", Some("vm")), ("1", Some("vm")), ("2", Some("vm")), ("3", None)] {
            connections.asked(write("m", ask, from), now, Some(found.clone()));
        }
        let said_once = said(&shard);
        assert_eq!((said_once.len(), connections.state().writing.len()), (1, 1));
        let Some(Notice::Tell(written)) = said_once[0].written.as_deref() else {
            panic!("nobody waits for it")
        };
        written.send_replace(true);
        while !connections.state().writing.is_empty() {
            tokio::task::yield_now().await;
        }
        connections.asked(write("m", "4", Some("vm")), now, Some(found.clone()));
        connections.asked(write("other", "5", None), now, Some(found.clone()));
        connections.asked(write("other", "6", None), now, Some(found));
        assert_eq!(said(&shard).len(), 1, "the other one");
    }

    #[tokio::test]
    async fn so_many_answers_are_awaited_and_no_more() {
        let (connections, ..) = connections();
        let mut awaited: Vec<_> = (0..MAX_PENDING).map(|_| connections.expect().unwrap()).collect();
        assert!(matches!(connections.expect(), Err(Unreached::Unavailable(_))));
        awaited.pop();
        assert!(connections.expect().is_ok(), "there is room again");
    }

    #[tokio::test]
    async fn so_many_messages_are_watched_until_they_are_written_and_no_more() {
        let (connections, found, shard) = connections();
        let now = clock::now_micros();
        for number in 0..=MAX_WRITING {
            let id = number.to_string();
            connections.asked(write(&id, &id, Some("vm")), now, Some(found.clone()));
        }
        assert_eq!(connections.state().writing.len(), MAX_WRITING);
        connections.asked(write("unwatched", "unwatched", None), now, Some(found.clone()));
        assert_eq!(said(&shard).len(), MAX_WRITING + 1, "one that nobody waits for is written all the same");
        // None of them will be: their socket is gone.
        while !connections.state().writing.is_empty() {
            tokio::task::yield_now().await;
        }
        connections.asked(write("later", "later", Some("vm")), now, Some(found));
        assert_eq!(said(&shard).len(), 1, "there is room again");
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded() {
        let (connections, found, _shard) = connections();
        let now = clock::now_micros();
        for number in 0..=MAX_SEEN {
            let id = number.to_string();
            connections.asked(write(&id, &id, None), now, Some(found.clone()));
        }
        let state = connections.state();
        for (number, known) in [(0, false), (1, true), (MAX_SEEN, true)] {
            assert_eq!(state.asks.contains(&number.to_string()), known, "{number}");
            assert_eq!(state.written.contains(&format!("c@vm {number}")), known, "{number}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn asks_are_recognized_for_two_minutes_and_messages_for_ten() {
        let (connections, found, shard) = connections();
        let ask = |message: &str, id: &str| {
            connections.asked(write(message, id, None), clock::now_micros(), Some(found.clone()));
            said(&shard).len()
        };
        assert_eq!(ask("a", "1"), 1);
        tokio::time::advance(Duration::from_secs(119)).await;
        assert_eq!(ask("b", "1"), 0, "the ask is known");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(ask("b", "1"), 1);
        tokio::time::advance(Duration::from_secs(599 - 121)).await;
        assert_eq!((ask("c", "2"), ask("a", "3")), (1, 0), "the message is known");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!((ask("d", "4"), ask("a", "5")), (1, 1));
    }

    #[tokio::test]
    async fn what_comes_out_of_a_backlog_is_left_alone() {
        let (connections, found, shard) = connections();
        connections.asked(write("m", "1", Some("vm")), clock::now_micros() - 6_000_000, Some(found));
        assert!(said(&shard).is_empty());
    }
}
