//! Where an alert has been heard, told to who sent it: each VM that hears one answers the VM it came
//! from with the number of its own sockets, and the sender hears the sums as they grow.
//!
//! An answer is addressed, but each subscription is charged for it all the same, so what VMs tell costs
//! as many deliveries as there are VMs. Three bounds keep that in proportion however large the fleet is.
//! About twenty VMs answer an alert, those at random. What is owed to one VM goes together in one message.
//! And a VM sends ten of these a second, or fewer where more than twenty would, so that the topic carries
//! some two hundred a second at most. What is not confirmed is not counted, and nothing is extrapolated:
//! the size of the fleet is in its beacons.
//!
//! A receipt is no event: it has no number and no history, and one that gets lost is not sent again. Only
//! alerts that a socket sent ask for any, so that nobody answers for nothing, nor a VM that knows of none.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;
use tokio::time::Instant;

use crate::clock::{self, micros};
use crate::event::{Event, Receipt, Receipts as Told};
use crate::fleet::{ANSWERS, Fleet};
use crate::shard::Outbox;
use crate::wire::reply;

/// Alerts whose receipts are awaited here at once; further ones ask for none.
const MAX_AWAITED: usize = 1_024;

/// So long after it was first heard; and so long for the topic to take it.
const PATIENCE: Duration = Duration::from_secs(5);
const MAX_UNHEARD: Duration = Duration::from_secs(35);

/// VMs counted for one alert: more than answer by chance.
const MAX_INSTANCES: usize = 64;

/// A sender is told at most so often.
const TOLD_EVERY: Duration = Duration::from_millis(200);

/// Receipts that this VM owes to others.
const MAX_OWED: usize = 1_024;

/// Between two messages of a VM, on average, and what it may be ahead.
const SPACING: Duration = Duration::from_millis(100);
const BURST: Duration = Duration::from_secs(1);

pub struct Receipts {
    own: Arc<str>,
    /// By the event's id.
    awaited: HashMap<String, Awaited>,
    told: Instant,
    /// By the VM that they are for, the longest waiting first.
    owed: IndexMap<String, Owed>,
    owing: usize,
    /// When the next message would go if all were spread evenly.
    next: Instant,
}

/// An alert of one of this VM's sockets.
struct Awaited {
    sender: Outbox,
    /// Who has answered: what the topic repeats counts once.
    instances: Vec<String>,
    sockets: u64,
    is_news: bool,
    until: Instant,
}

/// What one VM is to be told.
struct Owed {
    since: Instant,
    receipts: Vec<Receipt>,
}

impl Receipts {
    /// Of the VM called `own`.
    pub fn new(own: Arc<str>) -> Self {
        let now = Instant::now();
        Self { own, awaited: HashMap::new(), told: now, owed: IndexMap::new(), owing: 0, next: now }
    }

    /// Awaits the receipts of an alert that `sender` sends; false when there is no room for it. The first
    /// of those who send it with the same id hears of them.
    pub fn expect(&mut self, event_id: &str, sender: &Outbox) -> bool {
        if self.awaited.len() >= MAX_AWAITED {
            return self.awaited.contains_key(event_id);
        }
        self.awaited.entry(event_id.into()).or_insert_with(|| Awaited {
            sender: sender.clone(),
            instances: Vec::new(),
            sockets: 0,
            is_news: false,
            until: Instant::now() + MAX_UNHEARD,
        });
        true
    }

    /// This VM has heard an alert for the first time, which was published at `at` (µs), and has handed it
    /// to so many sockets.
    pub fn heard(&mut self, alert: &Event, at: i64, sockets: usize, fleet: &Fleet) {
        let receipt =
            Receipt { event_id: alert.id.clone(), sockets: u32::try_from(sockets).unwrap_or(u32::MAX) };
        let (origin, own) = (&alert.origin.instance, Arc::clone(&self.own));
        if **origin == *own {
            return self.count(&own, receipt);
        }
        // One that comes late, by a seek or out of a backlog, is awaited no longer.
        let is_live = clock::now_micros() - at <= micros(PATIENCE);
        if is_live && self.owing < MAX_OWED && fleet.has(origin) && fleet.is_to_answer() {
            self.owing += 1;
            let owed = self.owed.entry(origin.clone());
            owed.or_insert_with(|| Owed { since: Instant::now(), receipts: Vec::new() })
                .receipts
                .push(receipt);
        }
    }

    /// Takes what another VM has heard; what nobody awaits is dropped.
    pub fn hear(&mut self, told: Told) {
        for receipt in told.receipts {
            self.count(&told.instance, receipt);
        }
    }

    fn count(&mut self, instance: &str, receipt: Receipt) {
        let Some(awaited) = self.awaited.get_mut(&receipt.event_id) else { return };
        let is_known = awaited.instances.iter().any(|known| known == instance);
        if is_known || awaited.instances.len() >= MAX_INSTANCES {
            return;
        }
        if awaited.instances.is_empty() {
            awaited.until = Instant::now() + PATIENCE;
        }
        awaited.instances.push(instance.into());
        awaited.sockets += u64::from(receipt.sockets);
        awaited.is_news = true;
    }

    /// Tells the senders what has grown, and ends what is awaited for too long.
    pub fn tell(&mut self) {
        if self.told.elapsed() < TOLD_EVERY {
            return;
        }
        let now = Instant::now();
        self.told = now;
        self.awaited.retain(|event_id, awaited| {
            if std::mem::take(&mut awaited.is_news) {
                awaited.sender.push(reply::receipt(event_id, awaited.instances.len(), awaited.sockets));
            }
            awaited.until > now
        });
    }

    /// What to send now in a fleet of so many, and to which VMs.
    pub fn due(&mut self, fleet: usize) -> Vec<(String, Told)> {
        let now = Instant::now();
        let spacing = SPACING.mul_f64((fleet as f64 / ANSWERS).max(1.0));
        let mut due = Vec::new();
        while self.next <= now + BURST
            && let Some((to, Owed { since, receipts })) = self.owed.shift_remove_index(0)
        {
            self.owing -= receipts.len();
            if since + PATIENCE > now {
                self.next = self.next.max(now) + spacing;
                due.push((to, Told { instance: self.own.to_string(), receipts }));
            }
        }
        due
    }
}
