//! Keeps this VM's way through the topic alive, and knows that it is: by beacons of its own that
//! must come round.
//!
//! A stream that is silent may be idle or dead; Google's client can't tell (a black-holed
//! connection stays silent for minutes without an error). So silence is probed with a beacon, and
//! when that does not come back, the path is made anew, connections and subscription too.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::select;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::bus::{Inbox, Join, Message};
use crate::clock::{self, Backoff};
use crate::event::{Beacon, Told};
use crate::relay::Relay;

/// How often beacons, silence and the fleet are looked at.
const TICK: Duration = Duration::from_millis(250);

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

/// A join under way when the VM is to leave gets so long to end, or it might create the
/// subscription after its deletion.
const LAST_JOIN: Duration = Duration::from_millis(700);

/// Runs until `stop`.
pub async fn keep(relay: Arc<Relay>, stop: CancellationToken) {
    let mut path = Path {
        beacons: 0,
        last: None,
        awaited: None,
        round_trip: None,
        started: clock::now_millis(),
        begun: Instant::now(),
        backoff: Backoff::new(Duration::from_millis(500), Duration::from_secs(30)),
        relay,
    };
    let mut how = Join::Resume;
    let mut told = false;
    while !stop.is_cancelled() {
        let bus = path.relay.bus.clone();
        let mut joining = pin!(bus.join(how));
        let joined = select! {
            joined = &mut joining => joined,
            () = stop.cancelled() => {
                let _ = timeout(LAST_JOIN, joining).await;
                return;
            }
        };
        let broken = match joined {
            Ok(inbox) => select! {
                (broken, next) = path.carry(inbox) => {
                    how = next;
                    broken
                }
                () = stop.cancelled() => return,
            },
            Err(error) => error.to_string(),
        };
        let news = path.relay.health.unreachable(broken.clone());
        let wait = path.backoff.wait();
        if news || !told {
            warn!(reason = broken, "no way through the topic; trying again until there is");
            told = true;
        } else {
            debug!(reason = broken, ?wait, "still no way through the topic");
        }
        select! {
            () = sleep(wait) => {}
            () = stop.cancelled() => return,
        }
    }
}

struct Path {
    relay: Arc<Relay>,
    /// When this process started, in ms since the epoch.
    started: i64,
    begun: Instant,
    /// Beacons sent so far: the last one's number.
    beacons: u64,
    /// When the last one was sent, and the count of sockets that it told.
    last: Option<(Instant, usize)>,
    /// The oldest one that is to come round.
    awaited: Option<Awaited>,
    round_trip: Option<Duration>,
    backoff: Backoff,
}

#[derive(Clone, Copy)]
struct Awaited {
    number: u64,
    sent: Instant,
    /// When to send another, and how long to wait after that.
    repeat: Instant,
    next: Duration,
}

impl Path {
    /// Passes on what comes until the path is found broken; returns why, and how to join again.
    async fn carry(&mut self, mut inbox: Inbox) -> (String, Join) {
        self.last = None;
        self.awaited = None;
        let mut heard = Instant::now();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            // Kept over the ticks: dropped while the stream opens, it would leave a half-open one
            // behind, to which Pub/Sub gives messages that nobody reads.
            let mut next = pin!(inbox.next());
            let delivery = loop {
                select! {
                    delivery = &mut next => break delivery,
                    _ = tick.tick() => {
                        if let Some(why) = self.overdue(heard) {
                            return (why, Join::Afresh);
                        }
                        if self.is_due(heard) {
                            self.send();
                        }
                        self.relay.tend_fleet();
                    }
                }
            };
            match delivery {
                Ok(delivery) => {
                    heard = Instant::now();
                    if let Some(beacon) = self.relay.receive(delivery) {
                        self.came_round(&beacon);
                    }
                }
                Err(error) => return (error.to_string(), Join::Resume),
            }
        }
    }

    /// Whether the path is dead by its beacons, and in what words.
    fn overdue(&self, heard: Instant) -> Option<String> {
        let Awaited { sent, .. } = self.awaited?;
        let silent = sent.elapsed().min(heard.elapsed());
        let dead = silent > PATIENCE || sent.elapsed() > BACKLOG_PATIENCE;
        dead.then(|| format!("the beacon sent {:.1?} ago has not come back", sent.elapsed()))
    }

    fn is_due(&self, heard: Instant) -> bool {
        let Some((sent, clients)) = self.last else { return true };
        let early = self.spacing().max(EARLY);
        let silence = match self.awaited {
            Some(awaited) => awaited.repeat <= Instant::now(),
            None => heard.elapsed() > self.relay.config.beacon_interval,
        };
        silence
            || sent.elapsed() >= self.interval()
            || (sent.elapsed() >= early && self.relay.clients() != clients)
    }

    /// Beacons cost the square of the fleet: each VM is to hear about one a second at most.
    fn spacing(&self) -> Duration {
        let fleet = self.relay.with_fleet(|fleet| fleet.len());
        Duration::from_secs(fleet as u64)
    }

    fn interval(&self) -> Duration {
        self.spacing().max(self.relay.config.beacon_interval)
    }

    fn send(&mut self) {
        self.beacons += 1;
        let clients = self.relay.clients();
        let beacon = self.beacon(clients);
        let now = Instant::now();
        self.last = Some((now, clients));
        self.awaited = Some(match self.awaited {
            None => Awaited { number: self.beacons, sent: now, repeat: now + REPEAT, next: 2 * REPEAT },
            Some(awaited) => Awaited { repeat: now + awaited.next, next: 2 * awaited.next, ..awaited },
        });
        let confirmed = self.relay.bus.publish(Message { data: Told::Beacon(beacon).encode(), to: None });
        let relay = Arc::clone(&self.relay);
        tokio::spawn(async move {
            if let Err(error) = confirmed.await {
                relay.metrics.publish_errors.inc();
                debug!(%error, "beacon not published");
            }
        });
    }

    fn beacon(&self, clients: usize) -> Beacon {
        Beacon {
            origin: self.relay.origin(),
            started: self.started,
            number: self.beacons,
            clients,
            round_trip_ms: self.round_trip.map(|trip| u64::try_from(trip.as_millis()).unwrap_or(u64::MAX)),
            interval_ms: u64::try_from(self.interval().as_millis()).unwrap_or(u64::MAX),
            leaving: false,
        }
    }

    fn came_round(&mut self, beacon: &Beacon) {
        let Some(Awaited { number, sent, .. }) = self.awaited else { return };
        // A later one proves the path as well; an earlier process's proves nothing.
        if beacon.started != self.started || beacon.number < number {
            return;
        }
        self.awaited = None;
        self.backoff.reset();
        if beacon.number == number {
            self.round_trip = Some(sent.elapsed());
            self.relay.metrics.round_trip.observe(sent.elapsed().as_secs_f64());
        }
        if self.relay.health.ready() {
            let after_ms = self.begun.elapsed().as_millis();
            let history = self.relay.history_len();
            info!(round_trip = ?sent.elapsed(), after_ms, history, "ready");
        }
    }
}

/// Tells the others that this VM goes. They find out by themselves if this is lost.
pub fn farewell(relay: &Relay) -> impl Future<Output = ()> + Send + use<> {
    let beacon = Beacon {
        origin: relay.origin(),
        started: clock::now_millis(),
        number: u64::MAX,
        clients: 0,
        round_trip_ms: None,
        interval_ms: 60_000,
        leaving: true,
    };
    let confirmed = relay.bus.publish(Message { data: Told::Beacon(beacon).encode(), to: None });
    async move {
        let _ = confirmed.await;
    }
}
