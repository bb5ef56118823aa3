//! Keeps this VM's way through the topic alive, and knows that it is: by beacons of its own that
//! must come round.
//!
//! A stream that is silent may be idle or dead; Google's client can't tell (a black-holed
//! connection stays silent for minutes without an error). So silence is probed with a beacon, and
//! when that does not come back, the path is made anew, connections and subscription too.

use std::mem;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::select;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::bus::{BusError, Cause, Inbox, Join, Message};
use crate::clock::{self, Backoff, micros};
use crate::event::{Beacon, Told};
use crate::fleet::Fleet;
use crate::health::Phase;
use crate::publishing::Standing;
use crate::relay::{Relay, Search};

/// How often beacons, silence, holes and the fleet are looked at; and while somebody waits for it.
const TICK: Duration = Duration::from_millis(250);
const QUICK_TICK: Duration = Duration::from_millis(50);

/// How long a beacon may take while nothing else comes either.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it may take behind a backlog.
const BACKLOG_PATIENCE: Duration = Duration::from_secs(60);

/// The first repetition of a beacon that has not come round; each further one takes twice as long.
/// One may be late by its lease: Pub/Sub gives messages to a dead process's stream, too, until it
/// notices.
const REPEAT: Duration = Duration::from_secs(1);

/// A change in the number of sockets is told at most so often.
const EARLY: Duration = Duration::from_secs(2);

/// One that is asked for comes at once, but not for each who asks.
const EARLIEST: Duration = Duration::from_millis(100);

/// All VMs of a fleet hear the same silence. So each waits longer by a random part of so much for each VM,
/// before it probes: the first one's beacon then breaks the silence for nearly all others.
const SLACK_EACH: Duration = Duration::from_millis(50);

/// A proven path is of use after this, though something is still missing: that is told then.
const CATCH_UP: Duration = Duration::from_secs(10);

/// How long it may take until a seek has its effect; Google says up to a minute.
const LATE_PAST: Duration = Duration::from_secs(60);

/// How long a mark is tried.
const MARK_PATIENCE: Duration = Duration::from_secs(5);

/// Acknowledgements go ten times a second.
const LAST_ACKS: Duration = Duration::from_millis(300);

/// A join under way when the VM is to leave gets so long to end, or it might create the
/// subscription after its deletion.
pub const LAST_JOIN: Duration = Duration::from_millis(500);

/// Runs until `stop`.
pub async fn keep(relay: Arc<Relay>, stop: CancellationToken) {
    let mut path = Path::new(relay);
    let (mut how, mut cause) = (Join::Resume, "start");
    let mut remake = false;
    while !stop.is_cancelled() {
        let relay = Arc::clone(&path.relay);
        relay.metrics.seeks.inc(cause);
        let is_remade = mem::take(&mut remake);
        let heard = path.heard();
        if how != Join::Resume {
            // The subscription goes, with what it still held.
            relay.await_past(Some(heard.unwrap_or(0)));
        }
        let mut joining = pin!(join(&relay, how, path.joined.left()));
        let joined = select! {
            joined = &mut joining => joined,
            () = stop.cancelled() => {
                let _ = timeout(LAST_JOIN, joining).await;
                return;
            }
        };
        let broken = match joined {
            // Its subscription was made without a mark: the way came back after the mark was tried, or what was
            // to be taken up is gone. So it is made anew, once.
            Ok((inbox, Past::Unmarked)) if inbox.withheld().is_none() && !is_remade => {
                (how, remake) = (Join::Afresh, true);
                continue;
            }
            Ok((inbox, past)) => select! {
                broken = path.carry(inbox, past, heard) => match broken {
                    Broken::Dead(why, next) => {
                        how = next;
                        why
                    }
                    Broken::Incomplete => {
                        // At once: the ledger sees to it that this is seldom.
                        (how, cause) = (Join::Afresh, "overdue_anew");
                        continue;
                    }
                },
                () = stop.cancelled() => return,
            },
            Err(error) => {
                // It may have made the subscription all the same. One that only took up what there was hardly has.
                if how != Join::Resume || is_starting(&relay) {
                    path.joined.past = Past::Unmarked;
                }
                error.to_string()
            }
        };
        cause = "broken";
        path.lose(broken);
        select! {
            () = sleep(path.backoff.wait()) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Joins; where that is probably to a new subscription, after a mark. `before` is what became of the last one's.
async fn join(relay: &Relay, how: Join, before: Past) -> Result<(Inbox, Past), BusError> {
    let is_new = how != Join::Resume || is_starting(relay);
    if how == Join::Afresh {
        relay.bus.reconnect().await?;
    }
    let marked = if is_new { mark(relay).await } else { Past::Unmarked };
    let inbox = relay.bus.join(how, relay.memory_begins()).await?;
    let was_there = inbox.withheld().is_some() || !relay.bus.brings_the_past_late();
    let past = match (was_there, before) {
        (false, _) => marked,
        (true, Past::In) if how == Join::Resume || !relay.bus.brings_the_past_late() => Past::In,
        // The mark of the join before is still to come: the seek of that one or of this one brings it.
        (true, Past::Marked | Past::Coming) if !is_new => Past::Marked,
        // To a subscription of before a new mark comes by itself, and tells nothing.
        (true, _) => Past::Unmarked,
    };
    Ok((inbox, past))
}

/// Tells a beacon that only comes back to this VM if what was published before a join that is still to be made
/// does. For what comes after a join comes at once, and would look as if it were all.
async fn mark(relay: &Relay) -> Past {
    if !relay.bus.brings_the_past_late() {
        return Past::In;
    }
    let mark = Beacon { beat: Beacon::MARK, ..beacon(relay) };
    let mark = message(mark);
    let marked = async {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        loop {
            match relay.bus.publish(mark.clone()).await {
                Ok(()) => return Past::Marked,
                // Nothing was published on it.
                Err(error) if error.cause == Cause::Missing => return Past::In,
                Err(error) if error.cause == Cause::Denied => return Past::Unmarked,
                Err(error) => debug!(%error, "no mark before the join yet"),
            }
            sleep(backoff.wait()).await;
        }
    };
    timeout(MARK_PATIENCE, marked).await.unwrap_or(Past::Unmarked)
}

fn is_starting(relay: &Relay) -> bool {
    relay.health.phase() == Phase::Starting
}

struct Path {
    relay: Arc<Relay>,
    begun: Instant,
    /// Beacons sent so far: the last one's number.
    beats: u64,
    last: Option<Sent>,
    /// The oldest one that is to come round.
    awaited: Option<Awaited>,
    round_trip: Option<Duration>,
    joined: Joined,
    /// The way was lost that was there, or never was.
    lost: Option<Lost>,
    /// What the topic last said to a beacon that it did not take.
    trouble: Arc<Mutex<Option<String>>>,
    backoff: Backoff,
}

/// The last beacon.
#[derive(Clone, Copy)]
struct Sent {
    at: Instant,
    /// The count of sockets that it told, and when it said that another one comes.
    clients: usize,
    interval: Duration,
    /// This VM's part of the slack, until the next one.
    share: f64,
}

#[derive(Clone, Copy)]
struct Awaited {
    beat: u64,
    sent: Instant,
    /// When to send another, and how long to wait after that.
    repeat: Instant,
    next: Duration,
}

/// Why a join is over.
enum Broken {
    /// There is no way through the topic; and how to join again.
    Dead(String, Join),
    /// There is, but not all comes by it.
    Incomplete,
}

/// When the way was lost, and up to where (µs) all was heard by it.
struct Lost {
    at: Instant,
    heard: Option<i64>,
}

/// What beacons that do not come round tell.
enum Overdue {
    /// Nothing comes by this join any more.
    Dead,
    /// Others are heard, but the topic does not take what this VM publishes.
    Refused,
}

/// What was published before the latest join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Past {
    /// It is here, but for what is known to be missing.
    In,
    /// It begins to come.
    Coming,
    /// When it comes, a mark will.
    Marked,
    /// Only time will tell.
    Unmarked,
}

/// How far the latest join has come.
struct Joined {
    since: Instant,
    /// The same, in µs since the epoch: older messages are of the backlog.
    at: i64,
    /// When the last one of the backlog came.
    backlog: Instant,
    /// An own beacon has come round.
    proven: bool,
    /// Somebody asks for a beacon.
    asked: bool,
    /// What was published before, as it was at first and as it is.
    sought: Past,
    past: Past,
    /// Up to where (µs) this VM had heard what there was.
    heard: Option<i64>,
    /// Why nothing of before comes, if it does not.
    not_sought: Option<BusError>,
}

impl Joined {
    fn new(sought: Past, heard: Option<i64>, not_sought: Option<BusError>) -> Self {
        let (now, at) = (Instant::now(), clock::now_micros());
        // What was not sought does not come.
        let past = if not_sought.is_some() { Past::In } else { sought };
        Self { since: now, at, backlog: now, proven: false, asked: false, sought, past, heard, not_sought }
    }

    /// What the next join may take for granted of what was published before this one: of a new subscription,
    /// what could not be sought is still to come.
    fn left(&self) -> Past {
        if self.not_sought.is_some() && self.sought != Past::In { Past::Unmarked } else { self.past }
    }
}

impl Path {
    fn new(relay: Arc<Relay>) -> Self {
        Self {
            beats: 0,
            last: None,
            awaited: None,
            round_trip: None,
            joined: Joined::new(Past::In, None, None),
            begun: Instant::now(),
            lost: None,
            trouble: Arc::default(),
            backoff: Backoff::new(Duration::from_millis(500), Duration::from_secs(15)),
            relay,
        }
    }

    /// Passes on what comes until the path is found broken.
    async fn carry(&mut self, mut inbox: Inbox, past: Past, heard: Option<i64>) -> Broken {
        self.last = None;
        self.awaited = None;
        self.begin(Joined::new(past, heard, inbox.not_sought().cloned()));
        // What went to a stream of before comes when its lease is over, and the mark may come earlier.
        if (is_starting(&self.relay) || past == Past::Marked)
            && let Some(late) = inbox.withheld()
        {
            self.relay.doubt(late);
        }
        self.relay.rejoined(self.joined.at);
        // Cut off for longer than the window: told before anything newer is heard.
        let begins = self.relay.window_begins();
        if let Some(heard) = self.lost.as_mut().and_then(|lost| lost.heard.as_mut())
            && *heard < begins
        {
            self.relay.miss(Some(*heard), begins);
            *heard = begins;
        }
        let mut heard = Instant::now();
        let mut tick = ticks(QUICK_TICK);
        loop {
            // Kept over the ticks: dropped while the stream opens, it would leave a half-open one
            // behind, to which Pub/Sub gives messages that nobody reads.
            let mut next = pin!(inbox.next());
            let delivery = loop {
                select! {
                    // The tick first, or a backlog would keep it waiting.
                    biased;
                    _ = tick.tick() => {
                        match self.overdue(heard) {
                            Some((Overdue::Dead, why)) => return Broken::Dead(why, Join::Afresh),
                            Some((Overdue::Refused, why)) => self.speak_anew(why).await,
                            None => {}
                        }
                        if self.tend(heard) == Some(Search::Anew) {
                            return Broken::Incomplete;
                        }
                        self.settle(&mut tick);
                    }
                    delivery = &mut next => break delivery,
                }
            };
            match delivery {
                Ok(delivery) => {
                    let came = Instant::now();
                    let published_at = delivery.published_at;
                    // The topic keeps what this VM has no room for.
                    self.relay.room().await;
                    // Nothing was read meanwhile, so that was no silence.
                    heard = Instant::now();
                    self.joined.backlog += heard - came;
                    let beacon = self.relay.receive(delivery);
                    if published_at < self.joined.at {
                        self.joined.backlog = heard;
                    }
                    if let Some(beacon) = beacon
                        && self.hear(&beacon, published_at)
                    {
                        self.begin_anew().await;
                    }
                    self.settle(&mut tick);
                }
                // What it held has gone with it.
                Err(error) if error.cause == Cause::Missing => {
                    return Broken::Dead(error.to_string(), Join::Again);
                }
                Err(error) => return Broken::Dead(error.to_string(), Join::Resume),
            }
        }
    }

    fn begin(&mut self, joined: Joined) {
        let past = joined.past;
        self.joined = joined;
        self.put_past(past);
    }

    /// Up to where (µs) this VM has heard what there was, or had when the way was lost.
    fn heard(&self) -> Option<i64> {
        self.lost.as_ref().map_or_else(|| self.relay.heard_until(), |lost| lost.heard)
    }

    /// Does what time asks for; returns how missing events are looked for, if they are.
    fn tend(&mut self, heard: Instant) -> Option<Search> {
        if self.is_due(heard) {
            self.send();
        }
        if let Some(before) = self.relay.bus.forgotten() {
            self.relay.miss(None, before);
            // Nothing is kept at all: what would come is there.
            if before > self.joined.at - micros(LATE_PAST) {
                self.relay.miss(None, self.joined.at);
                self.put_past(Past::In);
            }
        }
        self.relay.tend_fleet();
        self.relay.tend_receipts();
        // What is missing may be what is still to come.
        if self.joined.past != Past::In {
            return None;
        }
        let search = self.relay.tend_ledger()?;
        if search == Search::Again {
            self.relay.metrics.seeks.inc("overdue");
            let relay = Arc::clone(&self.relay);
            tokio::spawn(async move {
                if let Err(error) = relay.bus.seek(relay.memory_begins()).await {
                    debug!(%error, "the topic can't be asked again now");
                }
            });
        }
        Some(search)
    }

    /// What is wrong with the path by its beacons, and in what words.
    fn overdue(&self, heard: Instant) -> Option<(Overdue, String)> {
        let Awaited { sent, .. } = self.awaited?;
        let silent = sent.elapsed().min(heard.elapsed()) > PATIENCE;
        let stuck = sent.elapsed() > BACKLOG_PATIENCE && self.joined.backlog.elapsed() > PATIENCE;
        let refused = sent.elapsed() > PATIENCE && self.trouble().is_some();
        let overdue = match (silent || stuck, refused) {
            (true, _) => Overdue::Dead,
            (false, true) => Overdue::Refused,
            (false, false) => return None,
        };
        let why = self.trouble().take().map_or(String::new(), |why| format!("; {why}"));
        Some((overdue, format!("the beacon sent {:.0?} ago has not come back{why}", sent.elapsed())))
    }

    /// Tries to publish over a new connection, and goes on hearing what others publish.
    async fn speak_anew(&mut self, why: String) {
        self.lose(why);
        self.joined.proven = false;
        // The next beacon is due at once, and has its own time.
        (self.last, self.awaited) = (None, None);
        if let Err(error) = self.relay.bus.reconnect().await {
            debug!(%error, "no new connection to publish over");
        }
    }

    /// There is no way through the topic: told once until there is again.
    fn lose(&mut self, why: String) {
        self.relay.health.unreachable(why.clone());
        if self.lost.is_some() {
            return debug!(reason = why, "still no way through the topic");
        }
        self.lost = Some(Lost { at: Instant::now(), heard: self.heard() });
        warn!(reason = why, "no way through the topic; trying again until there is");
    }

    fn trouble(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_due(&self, heard: Instant) -> bool {
        let Some(last) = self.last else { return true };
        let age = last.at.elapsed();
        if self.joined.asked && age >= EARLIEST {
            return true;
        }
        let fleet = u32::try_from(self.relay.with_fleet(Fleet::len)).unwrap_or(u32::MAX);
        let early = Duration::from_secs(fleet.into()).max(EARLY);
        let silence = match self.awaited {
            Some(awaited) => awaited.repeat <= Instant::now(),
            None => {
                let patience = self.relay.config.beacon_interval;
                let slack = SLACK_EACH.saturating_mul(fleet).min(patience).mul_f64(last.share);
                // A publication that failed asks whether the way back is dead as well.
                heard.elapsed() > patience + slack || self.relay.publishing.had_trouble()
            }
        };
        // Not later than it was said, though the fleet has grown: others would take this VM for dead.
        silence
            || age >= self.relay.own_beacon_interval().min(last.interval)
            || (age >= early && self.relay.clients() != last.clients)
    }

    fn send(&mut self) {
        self.beats += 1;
        self.joined.asked = false;
        let clients = self.relay.clients();
        let beacon = Beacon {
            clients,
            round_trip_ms: self.round_trip.map(|trip| u64::try_from(trip.as_millis()).unwrap_or(u64::MAX)),
            beat: self.beats,
            asking: !self.joined.proven,
            heard: self.relay.vouch(),
            ..beacon(&self.relay)
        };
        let now = Instant::now();
        let interval = Duration::from_millis(beacon.interval_ms);
        let given_up = beacon.given_up.clone();
        self.last = Some(Sent { at: now, clients, interval, share: clock::random_share() });
        self.awaited = Some(match self.awaited {
            None => Awaited { beat: self.beats, sent: now, repeat: now + REPEAT, next: 2 * REPEAT },
            Some(awaited) => Awaited { repeat: now + awaited.next, next: 2 * awaited.next, ..awaited },
        });
        let confirmed = self.relay.bus.publish(message(beacon));
        let relay = Arc::clone(&self.relay);
        let trouble = Arc::clone(&self.trouble);
        tokio::spawn(async move {
            match confirmed.await {
                Ok(()) => relay.publishing.told(&given_up),
                Err(error) => {
                    relay.metrics.not_published(error.cause);
                    debug!(%error, "beacon not published");
                    *trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
                }
            }
        });
    }

    /// Returns whether all is to be asked for again, by another clock.
    fn hear(&mut self, beacon: &Beacon, at: i64) -> bool {
        let own = *beacon.origin.instance == **self.relay.identity().instance();
        if own {
            return self.came_round(beacon, at);
        }
        if beacon.asking && at >= self.joined.at {
            self.joined.asked |= self.relay.with_fleet(Fleet::is_to_answer);
            if self.joined.asked && self.last.is_none_or(|last| last.at.elapsed() >= EARLIEST) {
                self.send();
            }
        }
        false
    }

    /// As if it had just joined. By the same stream: another one of this subscription would share with it.
    async fn begin_anew(&mut self) {
        self.relay.begin_anew();
        // The acknowledgements of what was heard are on their way, and would count after the seek.
        sleep(LAST_ACKS).await;
        let not_sought = self.relay.bus.seek(self.relay.memory_begins()).await.err();
        // This seek brings the mark again; if it has not come yet, the one before may bring it.
        let past = if self.joined.past == Past::Marked { Past::Unmarked } else { self.joined.sought };
        self.begin(Joined::new(past, None, not_sought));
        self.relay.rejoined(self.joined.at);
        (self.last, self.awaited) = (None, None);
    }

    fn came_round(&mut self, beacon: &Beacon, at: i64) -> bool {
        // An earlier process's proves nothing.
        if beacon.sequence.started != self.relay.publishing.started() {
            return false;
        }
        if beacon.is_mark() && self.joined.past == Past::Marked {
            self.joined.past = Past::Coming;
            self.joined.backlog = Instant::now();
        }
        let Some(Awaited { beat, sent, .. }) = self.awaited else { return false };
        // A later one proves the path as well.
        if beacon.beat < beat {
            return false;
        }
        if let Some(ahead) = clock::set_by(at, sent.elapsed()) {
            warn!(
                ahead_ms = ahead / 1_000,
                "this machine's clock is not the topic's, which counts from here on"
            );
            // Before anybody came: what was heard until now was taken for older or newer than it is.
            if is_starting(&self.relay) {
                return true;
            }
        }
        self.awaited = None;
        *self.trouble() = None;
        self.joined.proven = true;
        self.backoff.reset();
        if beacon.beat == beat {
            self.round_trip = Some(sent.elapsed());
            self.relay.metrics.round_trip.observe(sent.elapsed().as_secs_f64());
        }
        false
    }

    /// Whether what was published before the join does not come any more, or not now.
    fn is_quiet(&self) -> bool {
        self.joined.backlog.elapsed() >= self.relay.bus.quiet()
    }

    fn look_for_past(&mut self) {
        if self.joined.past == Past::In || !self.is_quiet() {
            return;
        }
        if self.joined.past != Past::Coming && self.joined.since.elapsed() < LATE_PAST {
            return;
        }
        if self.joined.past == Past::Marked {
            self.relay.miss(self.joined.heard, self.joined.at);
            warn!("what was published before this VM joined has not come and may be missing on it");
        }
        self.put_past(Past::In);
        // What is missing now has its time from here on.
        self.relay.rejoined(self.joined.at);
    }

    fn put_past(&mut self, past: Past) {
        self.joined.past = past;
        self.relay.await_past((past != Past::In).then_some(self.joined.heard.unwrap_or(0)));
    }

    /// Ready when the way is proven and what was missed is in, or will hardly come any more.
    fn settle(&mut self, tick: &mut Interval) {
        self.look_for_past();
        if !self.joined.proven {
            return;
        }
        if self.relay.health.phase() == Phase::Ready {
            if self.joined.past == Past::In && tick.period() != TICK {
                *tick = ticks(TICK);
            }
            return;
        }
        let whole = self.joined.past == Past::In && self.is_quiet() && self.relay.is_whole(self.joined.at);
        if !whole && self.joined.since.elapsed() < CATCH_UP {
            return;
        }
        // Not before: a join that fails is followed by one that may bring it.
        if let Some(error) = self.joined.not_sought.take() {
            self.relay.miss(self.lost.as_ref().and_then(|lost| lost.heard), self.joined.at);
            warn!(%error, "what was published before this VM joined may be missing on it");
        }
        if self.relay.health.ready() {
            let history = self.relay.history_len();
            let round_trip = self.round_trip;
            match self.lost.take() {
                Some(lost) => info!(?round_trip, down = ?lost.at.elapsed(), history, whole, "ready again"),
                None => info!(?round_trip, after = ?self.begun.elapsed(), history, whole, "ready"),
            }
        }
    }
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

/// What every beacon of this VM tells.
fn beacon(relay: &Relay) -> Beacon {
    let Standing { sequence, settled_until, published_until, given_up } = relay.publishing.standing();
    Beacon {
        origin: relay.origin(),
        sequence,
        settled_until,
        published_until: Some(published_until),
        given_up,
        beat: u64::MAX,
        clients: 0,
        round_trip_ms: None,
        interval_ms: u64::try_from(relay.own_beacon_interval().as_millis()).unwrap_or(u64::MAX),
        asking: false,
        leaving: false,
        heard: Vec::new(),
    }
}

fn message(beacon: Beacon) -> Message {
    Message { data: Told::Beacon(beacon).encode(), ..Message::default() }
}

/// Tells the others that this VM goes. They find out by themselves if this is lost.
pub fn farewell(relay: &Relay) -> impl Future<Output = ()> + Send + use<> {
    let beacon = Beacon { leaving: true, ..beacon(relay) };
    let confirmed = relay.bus.publish(message(beacon));
    async move {
        let _ = confirmed.await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinHandle;
    use tokio::time::sleep_until;

    use super::*;
    use crate::auth::Visitor;
    use crate::bus::Bus;
    use crate::bus::stormy::{Link, Member, TAG, Topic, Weather};
    use crate::config::Config;
    use crate::cursor::Cursor;
    use crate::event::{Event, Kind, Sequence};
    use crate::metrics::Format;
    use crate::shard::Command;
    use crate::vm;

    fn relay(topic: &Topic, vm: usize) -> Arc<Relay> {
        relay_of(topic.member(&format!("vm-{vm}")), vm)
    }

    fn relay_of(member: Member, vm: usize) -> Arc<Relay> {
        let config = Config::from_vars([("FLY_ALLOC_ID".to_owned(), format!("vm-{vm}"))]).unwrap();
        Arc::new(Relay::new(config, Bus::Stormy(member), 1))
    }

    fn start(topic: &Topic, vm: usize) -> (Arc<Relay>, JoinHandle<()>) {
        let (_, relay, path) = start_linked(topic, vm);
        (relay, path)
    }

    /// The same, with its link to the topic.
    fn start_linked(topic: &Topic, vm: usize) -> (Member, Arc<Relay>, JoinHandle<()>) {
        let member = topic.member(&format!("vm-{vm}"));
        let relay = relay_of(member.clone(), vm);
        (member, Arc::clone(&relay), tokio::spawn(keep(relay, CancellationToken::new())))
    }

    fn cursor() -> String {
        Cursor { topic: TAG, at: clock::now_micros() }.to_string()
    }

    /// What a client is told that was away since `since`.
    fn greeting(relay: &Arc<Relay>, since: &str) -> String {
        let mut seated = None;
        relay.join(Some(since), &[], Visitor::default(), |member, message| seated = Some((member, message)));
        String::from_utf8_lossy(&seated.unwrap().1.parts.concat()).into_owned()
    }

    async fn publish(relay: &Arc<Relay>, id: &str) {
        let data = serde_json::value::to_raw_value(&()).unwrap();
        let event = relay.event(Kind::Alert, None, data, Some(id.into()), "s".into());
        relay.publish(event, |confirmed| confirmed.unwrap());
        sleep(Duration::from_secs(1)).await;
    }

    /// The same, as soon as it is told to be complete.
    async fn complete(relay: &Arc<Relay>, since: &str) -> String {
        let begun = Instant::now();
        loop {
            let told = greeting(relay, since);
            if told.contains(r#""complete":true"#) {
                return told;
            }
            assert!(begun.elapsed() < LATE_PAST / 2, "{told}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// After how long what was published meanwhile is there. Until then it is not said that nothing is missing.
    async fn honest_until_it_comes(relay: &Arc<Relay>, since: &str) -> Duration {
        let begun = Instant::now();
        let mut told = greeting(relay, since);
        while !told.contains("meanwhile") {
            assert!(!told.contains(r#""complete":true"#), "after {:?}: {told}", begun.elapsed());
            assert!(begun.elapsed() < 3 * LATE_PAST, "{told}");
            sleep(Duration::from_millis(100)).await;
            told = greeting(relay, since);
        }
        begun.elapsed()
    }

    /// The event with that number of a process that tells nothing else.
    async fn tell_one(topic: &Topic, number: u64, id: &str) {
        let sequence = Sequence { started: 1, number, first: 1, first_at: clock::now_millis() };
        let other = relay_of(topic.member("vm-1"), 1);
        let data = serde_json::value::to_raw_value(&()).unwrap();
        let event = Event { sequence, ..other.event(Kind::Alert, None, data, Some(id.into()), "s".into()) };
        other.bus.publish(Message { data: Told::Event(event).encode(), ..Message::default() }).await.unwrap();
    }

    fn knows(relay: &Relay) -> usize {
        relay.with_fleet(Fleet::len)
    }

    #[tokio::test(start_paused = true)]
    async fn vms_that_start_together_tell_little_and_know_each_other() {
        const VMS: usize = 40;
        fastrand::seed(7);
        let topic = Topic::new(7);
        let vms: Vec<_> = (0..VMS).map(|vm| start(&topic, vm)).collect();
        // Now all of them hear the same silence.
        sleep(Duration::from_secs(20)).await;
        let before = topic.log().len();
        let time = Duration::from_secs(200);
        sleep(time).await;
        let rate = (topic.log().len() - before) as f64 / time.as_secs_f64();
        println!("{rate} beacons a second of {VMS} VMs");
        assert!((0.7..1.5).contains(&rate), "about one a second, but {rate}");
        for (relay, _) in &vms {
            assert_eq!((relay.health.phase(), knows(relay)), (Phase::Ready, VMS));
        }

        // A death is known within two and a half beacons.
        vms[0].1.abort();
        sleep(Duration::from_secs(VMS as u64).mul_f64(2.5) + Duration::from_secs(2)).await;
        for (relay, _) in &vms[1..] {
            assert_eq!((relay.health.phase(), knows(relay)), (Phase::Ready, VMS - 1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_beacon_that_does_not_come_round_is_sent_again_and_tells_what_is_wrong_in_the_end() {
        let wrong = |path: &Path, heard| {
            path.overdue(heard).map(|(overdue, why)| (matches!(overdue, Overdue::Dead), why))
        };
        let moment = Duration::from_millis(1);
        let mut path = Path::new(relay(&Topic::new(7), 0));
        let begun = Instant::now();
        for (after, again) in [(0, 1), (1, 3), (3, 7), (7, 15)]
            .map(|(after, again)| (begun + REPEAT * after, begun + REPEAT * again))
        {
            sleep_until(after).await;
            assert!(path.is_due(Instant::now()));
            path.send();
            assert!(!path.is_due(Instant::now()));
            let awaited = path.awaited.unwrap();
            assert_eq!((awaited.beat, awaited.sent, awaited.repeat), (1, begun, again));
        }
        // Nothing else comes either.
        assert!(wrong(&path, begun).is_none());
        sleep_until(begun + PATIENCE).await;
        *path.trouble() = Some("it may not".into());
        assert!(wrong(&path, begun).is_none());
        *path.trouble() = None;
        sleep(moment).await;
        assert!(wrong(&path, begun).unwrap().0);
        // Others are heard: it may be behind a backlog, or not be taken.
        let now = Instant::now();
        assert!(wrong(&path, now).is_none());
        *path.trouble() = Some("it may not".into());
        let (is_dead, why) = wrong(&path, now).unwrap();
        assert!(!is_dead && why.ends_with("; it may not"), "{why}");
        assert!(wrong(&path, now).is_none(), "said once");
        path.joined.backlog = begun;
        sleep_until(begun + BACKLOG_PATIENCE).await;
        assert!(wrong(&path, Instant::now()).is_none());
        sleep(moment).await;
        for (quiet, is_dead) in [(PATIENCE, false), (PATIENCE + moment, true)] {
            path.joined.backlog = Instant::now() - quiet;
            assert_eq!(wrong(&path, Instant::now()).is_some_and(|(is_dead, _)| is_dead), is_dead);
        }
        // Two at once: then it is dead.
        *path.trouble() = Some("it may not".into());
        assert!(wrong(&path, begun).unwrap().0);
        path.awaited = None;
        assert!(wrong(&path, begun).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn beacons_come_after_silence_for_who_asks_and_when_sockets_came() {
        let topic = Topic::new(7);
        let mut path = Path::new(relay(&topic, 0));
        assert!(path.is_due(Instant::now()), "the first");
        path.send();
        path.awaited = None;
        let begun = Instant::now();
        assert!(!path.is_due(begun));
        path.joined.asked = true;
        sleep(EARLIEST - Duration::from_millis(1)).await;
        assert!(!path.is_due(begun));
        sleep(Duration::from_millis(1)).await;
        assert!(path.is_due(begun));
        path.joined.asked = false;

        let mut seated = None;
        path.relay.join(None, &[], Visitor::default(), |member, _| seated = Some(member));
        assert!(!path.is_due(begun));
        sleep_until(begun + EARLY).await;
        assert!(path.is_due(begun));
        path.send();
        path.awaited = None;
        assert_eq!((path.last.unwrap().clients, path.is_due(Instant::now())), (1, false));

        // What one hears breaks the silence.
        let moment = Duration::from_millis(1);
        let interval = path.relay.config.beacon_interval;
        sleep(interval - moment).await;
        let now = Instant::now();
        assert!(!path.is_due(now - interval) && path.is_due(now - interval - moment));
        // Of many, one breaks it for all.
        let mut inbox = path.relay.bus.join(Join::Resume, clock::now_micros()).await.unwrap();
        path.relay.bus.publish(message(beacon(&relay(&topic, 1)))).await.unwrap();
        while knows(&path.relay) == 0 {
            path.relay.receive(inbox.next().await.unwrap());
        }
        path.send();
        path.awaited = None;
        path.last.as_mut().unwrap().share = 1.0;
        sleep(interval - moment).await;
        let now = Instant::now();
        assert!(
            !path.is_due(now - interval - SLACK_EACH) && path.is_due(now - interval - SLACK_EACH - moment)
        );
        sleep(moment).await;
        assert!(path.is_due(Instant::now()), "but each speaks in time");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_lacks_something_is_of_use_ten_seconds_later() {
        let topic = Topic::new(7);
        tell_one(&topic, 2, "the second").await;
        let (relay, _path) = start(&topic, 0);
        sleep(CATCH_UP - TICK).await;
        assert_eq!((relay.history_len(), relay.health.phase()), (1, Phase::Starting));
        sleep(2 * TICK).await;
        assert_eq!(relay.health.phase(), Phase::Ready);
    }

    #[tokio::test(start_paused = true)]
    async fn it_looks_less_often_when_nobody_waits_for_it() {
        let mut path = Path::new(relay(&Topic::new(7), 0));
        path.joined.proven = true;
        path.relay.health.ready();
        let mut tick = ticks(QUICK_TICK);
        path.joined.past = Past::Marked;
        path.settle(&mut tick);
        assert_eq!(tick.period(), QUICK_TICK);
        path.joined.past = Past::In;
        path.settle(&mut tick);
        assert_eq!(tick.period(), TICK);
    }

    #[tokio::test(start_paused = true)]
    async fn a_beacon_tells_what_others_need() {
        let topic = Topic::new(7);
        let mut path = Path::new(relay(&topic, 0));
        let mut inbox = path.relay.bus.join(Join::Resume, clock::now_micros()).await.unwrap();
        tell_one(&topic, 1, "of one that is gone").await;
        path.relay.receive(inbox.next().await.unwrap());
        let mut seated = None;
        path.relay.join(None, &[], Visitor::default(), |member, _| seated = Some(member));
        path.round_trip = Some(Duration::from_millis(30));
        path.send();
        path.joined.proven = true;
        path.send();
        let told = topic.log().into_iter().filter_map(|(message, _)| match Told::decode(&message.data) {
            Ok(Told::Beacon(beacon)) => Some(beacon),
            _ => None,
        });
        let told: Vec<_> = told.collect();
        assert_eq!(told.len(), 2);
        for (beacon, (beat, asking)) in told.iter().zip([(1, true), (2, false)]) {
            assert_eq!(
                (beacon.beat, beacon.asking, beacon.clients, beacon.round_trip_ms),
                (beat, asking, 1, Some(30))
            );
            assert_eq!(beacon.heard.len(), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_own_beacon_proves_the_path_and_others_are_answered() {
        let topic = Topic::new(7);
        let mut path = Path::new(relay(&topic, 0));
        let own = |path: &Path, beat| Beacon { beat, ..beacon(&path.relay) };
        path.send();
        sleep(REPEAT).await;
        path.send();
        let at = clock::now_micros();
        let mut earlier = own(&path, 1);
        earlier.sequence.started -= 1;
        path.hear(&earlier, at);
        path.hear(&own(&path, 0), at);
        assert!(!path.joined.proven && path.awaited.is_some());
        // A later one proves it as well, but not how long the way is.
        path.hear(&own(&path, 2), at);
        assert!(path.joined.proven && path.awaited.is_none() && path.round_trip.is_none());
        path.send();
        sleep(Duration::from_millis(30)).await;
        path.hear(&own(&path, 3), clock::now_micros());
        assert_eq!(path.round_trip, Some(Duration::from_millis(30)));

        let asking = Beacon { asking: true, ..beacon(&relay(&topic, 1)) };
        sleep(EARLIEST).await;
        let beats = path.beats;
        path.hear(&Beacon { asking: false, ..asking.clone() }, clock::now_micros());
        path.hear(&asking, path.joined.at - 1);
        assert_eq!(path.beats, beats, "not asked, or before it was there");
        path.hear(&asking, path.joined.at);
        assert_eq!(path.beats, beats + 1);
        path.hear(&asking, path.joined.at);
        assert_eq!((path.beats, path.joined.asked), (beats + 1, true), "soon, but not at once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_beacon_comes_when_the_last_one_said_though_the_fleet_has_grown() {
        let topic = Topic::new(7);
        let mut path = Path::new(relay(&topic, 0));
        path.send();
        path.awaited = None;
        let interval = path.relay.own_beacon_interval();
        let mut inbox = path.relay.bus.join(Join::Resume, clock::now_micros()).await.unwrap();
        for vm in 1..=100 {
            let beacon = Told::Beacon(beacon(&relay(&topic, vm)));
            path.relay.bus.publish(Message { data: beacon.encode(), ..Message::default() }).await.unwrap();
        }
        while knows(&path.relay) < 100 {
            path.relay.receive(inbox.next().await.unwrap());
        }
        assert!(path.relay.own_beacon_interval() > 6 * interval);
        sleep(interval / 2).await;
        assert!(!path.is_due(Instant::now()));
        sleep(interval / 2).await;
        assert!(path.is_due(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_vm_proves_nothing_before_the_topic_brings_the_past_however_late_that_is() {
        const CUT: (Duration, Link) = (Duration::from_secs(3), Link::Cut);
        // Between its mark and the answer to its join.
        const UNANSWERED: (Duration, Link) = (Duration::from_millis(15), Link::Unanswered);
        for troubles in [&[][..], &[CUT], &[UNANSWERED], &[UNANSWERED, CUT]] {
            let mut latest = Duration::ZERO;
            for seed in 0..10 {
                latest = latest.max(past_of_a_new_vm(seed, troubles).await);
            }
            assert!(latest > Duration::from_secs(30), "the past was late: {latest:?}");
        }
    }

    /// After how long a new VM tells that it has all of it; never before it has. From those times on its link is
    /// so for a second.
    async fn past_of_a_new_vm(seed: u64, troubles: &'static [(Duration, Link)]) -> Duration {
        let topic = Topic::new(seed);
        let since = cursor();
        // One that nobody remembers any more.
        let (before, path) = start(&topic, 0);
        sleep(Duration::from_secs(5)).await;
        publish(&before, "the past").await;
        path.abort();
        before.health.leaving();
        vm::leave(&before).await;
        sleep(Duration::from_secs(5)).await;

        topic.set_weather(Weather { slow: 100, ..Weather::default() });
        let (member, relay, path) = start_linked(&topic, 1);
        let begun = Instant::now();
        tokio::spawn(async move {
            for (after, link) in troubles {
                sleep_until(begun + *after).await;
                member.set_link(*link);
                sleep(Duration::from_secs(1)).await;
                member.set_link(Link::Up);
            }
        });
        loop {
            sleep(Duration::from_millis(100)).await;
            let told = greeting(&relay, &since);
            if told.contains(r#""complete":true"#) {
                assert!(told.contains("the past"), "seed {seed}, after {:?}: {told}", begun.elapsed());
                break;
            }
            assert!(begun.elapsed() < 2 * LATE_PAST, "seed {seed}: {told}");
            // It is of use before.
            let is_ready = relay.health.phase() == Phase::Ready;
            assert!(is_ready || begun.elapsed() < 2 * CATCH_UP, "seed {seed}");
        }
        path.abort();
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_vm_proves_nothing_while_the_past_still_comes() {
        let topic = Topic::new(7);
        let since = cursor();
        let (before, path) = start(&topic, 0);
        sleep(Duration::from_secs(5)).await;
        publish(&before, "the past").await;
        path.abort();
        vm::leave(&before).await;
        // Each has published only its first event, so no number tells of a gap.
        let others: Vec<_> = (1..=100).map(|vm| relay(&topic, vm)).collect();
        for other in &others {
            publish(other, "since then").await;
        }

        topic.set_weather(Weather { pace: Duration::from_millis(100), ..Weather::default() });
        let (relay, _path) = start(&topic, 101);
        // A mark comes with it, so it is known to be in.
        sleep(Duration::from_millis(50)).await;
        assert!(complete(&relay, &since).await.contains("the past"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_never_comes_is_sought_again_and_over_a_new_connection_and_told_in_the_end() {
        let topic = Topic::new(7);
        let (relay, _path) = start(&topic, 0);
        sleep(2 * CATCH_UP).await;
        let since = cursor();
        tell_one(&topic, 2, "the second").await;
        let searches = || {
            let figures = relay.figures(Format::Plain);
            let count = |cause: &str| {
                let name = format!(r#"alien_alert_seeks_total{{cause="{cause}"}} "#);
                let line = figures.lines().find_map(|line| line.strip_prefix(&name));
                line.map_or(0, |count| count.parse().unwrap())
            };
            (count("overdue"), count("overdue_anew"), relay.metrics.lost.get())
        };
        let (mut seen, begun) = (vec![(0, 0, 0)], Instant::now());
        while searches() != (1, 1, 1) {
            sleep(Duration::from_millis(100)).await;
            if seen.last() != Some(&searches()) {
                seen.push(searches());
            }
            assert!(relay.health.phase() == Phase::Ready && begun.elapsed() < 2 * LATE_PAST, "{seen:?}");
        }
        assert_eq!(seen, [(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1)]);
        assert!(greeting(&relay, &since).contains(r#""complete":false,"reason":"gap""#));
    }

    #[tokio::test(start_paused = true)]
    async fn however_long_the_way_was_lost_it_is_soon_known_what_came_meanwhile() {
        for seconds in 20..40 {
            let topic = Topic::new(7);
            let (member, relay, path) = start_linked(&topic, 0);
            sleep(CATCH_UP).await;
            let since = cursor();
            member.set_link(Link::Hung);
            sleep(Duration::from_secs(seconds)).await;
            let (other, other_path) = start(&topic, 1);
            sleep(CATCH_UP).await;
            publish(&other, "meanwhile").await;
            member.set_link(Link::Up);
            assert!(complete(&relay, &since).await.contains("meanwhile"), "{seconds}");
            path.abort();
            other_path.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscription_that_is_gone_is_made_again_and_soon_known_to_have_brought_all() {
        let topic = Topic::new(7);
        let (member, relay, _path) = start_linked(&topic, 0);
        let (other, _other_path) = start(&topic, 1);
        sleep(CATCH_UP).await;
        let since = cursor();
        topic.remove("vm-0");
        publish(&other, "meanwhile").await;
        assert!(complete(&relay, &since).await.contains("meanwhile"));
        assert_eq!(member.reconnected(), 0, "it is known from the start to be gone");
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscription_that_is_gone_after_a_break_is_made_again_and_soon_known_to_have_brought_all() {
        let topic = Topic::new(7);
        let (member, relay, _path) = start_linked(&topic, 0);
        let (other, _other_path) = start(&topic, 1);
        sleep(CATCH_UP).await;
        let since = cursor();
        member.set_link(Link::Cut);
        topic.remove("vm-0");
        publish(&other, "meanwhile").await;
        member.set_link(Link::Up);
        assert!(complete(&relay, &since).await.contains("meanwhile"));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_made_without_a_mark_proves_nothing_where_the_next_join_fails() {
        for seed in 0..10 {
            println!("seed {seed}");
            let topic = Topic::new(seed);
            let (member, relay, path) = start_linked(&topic, 0);
            sleep(CATCH_UP).await;
            let since = cursor();
            topic.set_weather(Weather { slow: 100, ..Weather::default() });
            member.set_link(Link::Cut);
            topic.remove("vm-0");
            tell_one(&topic, 1, "meanwhile").await;
            sleep(Duration::from_secs(1)).await;
            let before = topic.log().len();
            member.set_link(Link::Up);
            // It is made by the first join; before the second is a mark.
            while topic.log().len() == before {
                sleep(Duration::from_millis(1)).await;
            }
            assert!(topic.has("vm-0"));
            sleep(Duration::from_millis(15)).await;
            member.set_link(Link::Unanswered);
            sleep(Duration::from_millis(100)).await;
            assert!(relay.health.phase() != Phase::Ready);
            member.set_link(Link::Up);
            honest_until_it_comes(&relay, &since).await;
            path.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscription_that_a_late_request_made_proves_nothing() {
        let mut latest = Duration::ZERO;
        for seed in 0..10 {
            println!("seed {seed}");
            let topic = Topic::new(seed);
            let (relay, path) = start(&topic, 0);
            sleep(CATCH_UP).await;
            let since = cursor();
            topic.set_weather(Weather { slow: 100, ..Weather::default() });
            topic.remove("vm-0");
            // Nobody else knows of it.
            tell_one(&topic, 1, "meanwhile").await;
            let late = Bus::Stormy(topic.member("vm-0"));
            let _late = late.join(Join::Resume, clock::now_micros()).await;
            latest = latest.max(honest_until_it_comes(&relay, &since).await);
            path.abort();
        }
        assert!(latest > Duration::from_secs(30), "the past was late: {latest:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_lent_to_a_killed_process_may_come_late() {
        let topic = Topic::new(7);
        let (_killed, path) = start(&topic, 0);
        sleep(CATCH_UP).await;
        let since = cursor();
        path.abort();
        let (relay, _path) = start(&topic, 0);
        let doubt = relay.config.beacon_interval + Duration::from_secs(15);
        sleep(doubt - Duration::from_secs(1)).await;
        assert_eq!(relay.health.phase(), Phase::Ready);
        assert!(greeting(&relay, &since).contains(r#""complete":false"#));
        sleep(Duration::from_secs(2)).await;
        assert!(greeting(&relay, &since).contains(r#""complete":true"#));
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_all_up_to_a_break_that_is_longer_than_the_window_is_told() {
        let topic = Topic::new(7);
        let (member, relay, _path) = start_linked(&topic, 0);
        let gaps = || {
            let commands = relay.shards[0].waiting();
            let told = commands.into_iter().filter_map(|command| match command {
                Command::Tell(_, frame) => Some(String::from_utf8_lossy(&frame.payload()).into_owned()),
                _ => None,
            });
            told.filter(|told| told.contains(r#""reason":"gap""#)).count()
        };
        sleep(CATCH_UP).await;
        let mut seated = None;
        relay.join(None, &[], Visitor::default(), |member, _| seated = Some(member));
        let window = relay.config.history.age;
        for (seconds, told) in [(window.as_secs() / 2, 0), (window.as_secs() + 60, 1)] {
            member.set_link(Link::Cut);
            sleep(Duration::from_secs(seconds)).await;
            member.set_link(Link::Up);
            sleep(2 * CATCH_UP).await;
            assert_eq!((relay.health.phase(), gaps()), (Phase::Ready, told), "after {seconds} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_can_not_be_sought_is_told_to_be_missing_until_it_can_be_again() {
        let topic = Topic::new(7);
        let (member, relay, _path) = start_linked(&topic, 0);
        let break_off = async || {
            member.set_link(Link::Cut);
            sleep(Duration::from_secs(1)).await;
            member.set_link(Link::Up);
            sleep(Duration::from_secs(5)).await;
            assert_eq!(relay.health.phase(), Phase::Ready);
        };
        sleep(CATCH_UP).await;
        let before = cursor();
        topic.refuse_seeks(true);
        break_off().await;
        assert!(greeting(&relay, &before).contains(r#""complete":false,"reason":"too_old""#));
        let after = cursor();
        assert!(greeting(&relay, &after).contains(r#""complete":true"#));
        topic.refuse_seeks(false);
        break_off().await;
        assert!(greeting(&relay, &after).contains(r#""complete":true"#));
        // Also where it is lost again before it was of use.
        topic.refuse_seeks(true);
        member.set_link(Link::Cut);
        sleep(Duration::from_secs(1)).await;
        member.set_link(Link::Mute(Cause::Other));
        sleep(Duration::from_secs(5)).await;
        topic.refuse_seeks(false);
        break_off().await;
        assert!(greeting(&relay, &cursor()).contains(r#""complete":true"#));

        // A new one knows nothing of before, and does not wait for it.
        topic.refuse_seeks(true);
        let (new, _path) = start(&topic, 1);
        sleep(CATCH_UP).await;
        assert_eq!(new.health.phase(), Phase::Ready);
        assert!(greeting(&new, &after).contains(r#""complete":false,"reason":"too_old""#));
        assert!(greeting(&new, &cursor()).contains(r#""complete":true"#));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_heard_no_more_speaks_over_a_new_connection_and_goes_on_hearing() {
        let topic = Topic::new(7);
        let (member, relay, _path) = start_linked(&topic, 0);
        let (other, _other_path) = start(&topic, 1);
        sleep(CATCH_UP).await;
        let since = cursor();
        member.set_link(Link::Mute(Cause::Denied));
        let begun = Instant::now();
        while relay.health.phase() == Phase::Ready {
            assert!(begun.elapsed() < 2 * relay.config.beacon_interval + PATIENCE);
            publish(&other, "meanwhile").await;
        }
        let (heard, reconnected) = (relay.history_len(), member.reconnected());
        assert_eq!(reconnected, 1);
        publish(&other, "still heard").await;
        assert!(greeting(&relay, &since).contains("still heard"));
        assert_eq!(relay.history_len(), heard + 1);
        member.set_link(Link::Up);
        sleep(Duration::from_secs(5)).await;
        assert_eq!((relay.health.phase(), member.reconnected()), (Phase::Ready, reconnected));
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_is_known_to_have_left_at_once() {
        let topic = Topic::new(7);
        let (relay, _path) = start(&topic, 0);
        let (other, path) = start(&topic, 1);
        sleep(CATCH_UP).await;
        assert_eq!(knows(&relay), 2);
        path.abort();
        vm::leave(&other).await;
        sleep(Duration::from_secs(1)).await;
        assert_eq!(knows(&relay), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_topic_has_not_kept_is_not_awaited() {
        let topic = Topic::new(7);
        topic.set_weather(Weather { slow: 100, ..Weather::default() });
        let member = topic.member("vm-0");
        let relay = relay_of(member.clone(), 0);
        let since = cursor();
        sleep(Duration::from_secs(5)).await;
        let _path = tokio::spawn(keep(Arc::clone(&relay), CancellationToken::new()));
        sleep(Duration::from_secs(1)).await;
        let now = cursor();
        // What is found first lies further back than what it waits for.
        for until in [clock::now_micros() - 2 * micros(LATE_PAST), clock::now_micros()] {
            assert!(greeting(&relay, &now).contains(r#""complete":false"#), "it still waits for its mark");
            member.find_forgotten(until);
            sleep(2 * TICK).await;
        }
        assert!(greeting(&relay, &now).contains(r#""complete":true"#));
        assert!(greeting(&relay, &since).contains(r#""complete":false,"reason":"too_old""#));
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_short_break_it_is_soon_known_what_came_meanwhile_over_the_same_connection() {
        let topic = Topic::new(7);
        let (member, relay, _path) = start_linked(&topic, 0);
        let (other, _other_path) = start(&topic, 1);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(relay.health.phase(), Phase::Ready);
        sleep(CATCH_UP).await;
        let since = cursor();
        member.set_link(Link::Cut);
        publish(&other, "meanwhile").await;
        member.set_link(Link::Up);
        let begun = Instant::now();
        assert!(complete(&relay, &since).await.contains("meanwhile"));
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert_eq!(member.reconnected(), 0);
        member.set_link(Link::Hung);
        sleep(3 * PATIENCE).await;
        assert!(member.reconnected() > 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_mark_is_tried_for_a_while_where_that_can_help() {
        let member = Topic::new(7).member("vm-0");
        let relay = relay_of(member.clone(), 0);
        let begun = Instant::now();
        for (cause, past) in [(Cause::Missing, Past::In), (Cause::Denied, Past::Unmarked)] {
            member.set_link(Link::Mute(cause));
            assert_eq!(mark(&relay).await, past);
        }
        assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
        member.set_link(Link::Mute(Cause::NoAnswer));
        assert_eq!(mark(&relay).await, Past::Unmarked);
        let again = tokio::spawn(async move {
            sleep(Duration::from_secs(2)).await;
            member.set_link(Link::Up);
        });
        assert_eq!(mark(&relay).await, Past::Marked);
        again.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_past_that_never_comes_is_told_to_be_missing_also_after_another_break() {
        let topic = Topic::new(7);
        let (member, relay, _path) = start_linked(&topic, 0);
        sleep(Duration::from_secs(20)).await;
        let since = cursor();
        topic.keep_nothing();
        // Silent for so long that it makes the subscription anew, after a mark.
        member.set_link(Link::Hung);
        while relay.health.phase() == Phase::Ready {
            sleep(Duration::from_millis(100)).await;
        }
        member.set_link(Link::Cut);
        sleep(Duration::from_secs(20)).await;
        member.set_link(Link::Up);
        while relay.health.phase() != Phase::Ready {
            sleep(Duration::from_millis(100)).await;
        }
        // Up to where it had heard all is proven meanwhile.
        let told = greeting(&relay, &since);
        let (_, place) = told.split_once(r#""cursor":""#).unwrap();
        let place = Cursor::parse(place.split_once('"').unwrap().0, TAG).unwrap();
        let silence = micros(relay.own_beacon_interval());
        let since_at = Cursor::parse(&since, TAG).unwrap().at;
        assert!((since_at - silence..clock::now_micros() - micros(PATIENCE)).contains(&place.at), "{told}");
        member.set_link(Link::Cut);
        sleep(Duration::from_secs(1)).await;
        member.set_link(Link::Up);
        sleep(2 * LATE_PAST).await;
        assert!(greeting(&relay, &since).contains(r#""complete":false"#));
        let now = cursor();
        sleep(Duration::from_secs(5)).await;
        assert!(greeting(&relay, &now).contains(r#""complete":true"#));
    }

    #[tokio::test(start_paused = true)]
    async fn a_past_that_never_comes_is_told_to_be_missing() {
        let topic = Topic::new(7);
        let since = cursor();
        sleep(Duration::from_secs(5)).await;
        topic.keep_nothing();
        let (relay, _path) = start(&topic, 0);
        for _ in 0..3 {
            sleep(LATE_PAST / 2).await;
            assert!(greeting(&relay, &since).contains(r#""complete":false"#));
        }
        let now = cursor();
        sleep(LATE_PAST + LATE_PAST).await;
        assert!(greeting(&relay, &now).contains(r#""complete":true"#));
        assert!(greeting(&relay, &since).contains(r#""complete":false,"reason":"too_old""#));
    }
}
