//! Where an alert has been heard, told to who sent it: each VM that hears one answers the VM it came
//! from with the number of its own sockets, and the sender hears the sums as they grow.
//!
//! An answer is addressed, but each subscription is charged for it all the same, so what VMs tell costs
//! as many deliveries as there are VMs. Three bounds keep that in proportion however large the fleet is.
//! About twenty VMs answer an alert, by chance. What is owed to one VM goes together in one message. And a
//! VM sends ten of these a second, or fewer where more than twenty would, so that the topic carries some two
//! hundred a second at most: in a large fleet, all answers to ten alerts a second of as many VMs. What is not
//! confirmed is not counted, and nothing is extrapolated: the size of the fleet is in its beacons.
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

/// Bytes of the longest id that a client can give.
const MAX_ID: usize = 4 * 64;

/// VMs counted for one alert: more than answer by chance.
const MAX_INSTANCES: usize = 64;

/// A sender is told at most so often.
const TOLD_EVERY: Duration = Duration::from_millis(200);

/// Receipts that this VM owes to others, and how long: where more are owed than may be sent, some go at
/// once rather than all too late.
const MAX_OWED: usize = 1_024;
const MAX_OWING: Duration = Duration::from_secs(2);

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

impl Owed {
    fn new() -> Self {
        Self { since: Instant::now(), receipts: Vec::new() }
    }
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
        if alert.id.len() > MAX_ID {
            return;
        }
        let sockets = u32::try_from(sockets).unwrap_or(u32::MAX);
        let receipt = Receipt { event_id: alert.id.clone(), sockets };
        let (origin, own) = (&alert.origin.instance, Arc::clone(&self.own));
        if **origin == *own {
            return self.count(&own, receipt);
        }
        // One that comes late, by a seek or out of a backlog, is awaited no longer.
        let is_live = clock::now_micros() - at <= micros(PATIENCE);
        if is_live && self.owing < MAX_OWED && fleet.has(origin) && fleet.is_to_answer() {
            self.owing += 1;
            let owed = self.owed.entry(origin.clone()).or_insert_with(Owed::new);
            owed.receipts.push(receipt);
        }
    }

    /// An alert of this VM was heard before it was sent: nobody answers it.
    pub fn heard_before(&mut self, event_id: &str) {
        if self.awaited.get(event_id).is_some_and(|awaited| awaited.instances.is_empty()) {
            self.awaited.remove(event_id);
        }
    }

    /// Takes what another VM has heard; what nobody awaits is dropped, and what is more than a VM owes at once.
    pub fn hear(&mut self, told: Told) {
        for receipt in told.receipts.into_iter().take(MAX_OWED) {
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
            if since + MAX_OWING > now {
                self.next = self.next.max(now) + spacing;
                due.push((to, Told { instance: self.own.to_string(), receipts }));
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::event::{Kind, Origin, Sequence, Told as OnBus};
    use crate::shard::{Command, Mailbox};

    /// So many VMs, from `vm-0` on.
    fn fleet(count: usize) -> Fleet {
        let mut fleet = Fleet::default();
        for index in 0..count {
            let beacon = format!(
                r#"{{"beacon":{{"origin":{{"instance":"vm-{index}","region":"ams"}},
                "sequence":{{"started":1,"number":0,"first":1,"firstAt":1}},"beat":1,"clients":1,
                "roundTripMs":1,"intervalMs":3600000,"leaving":false}}}}"#
            );
            let Ok(OnBus::Beacon(beacon)) = OnBus::decode(beacon.as_bytes()) else { panic!("no beacon") };
            fleet.hear(beacon, clock::now_micros());
        }
        fleet
    }

    fn alert(id: &str, instance: &str) -> Event {
        Event {
            id: id.into(),
            kind: Kind::Alert,
            channel: None,
            sender_id: "s".into(),
            data: RawValue::NULL.to_owned(),
            timestamp: 0,
            origin: Origin { instance: instance.into(), region: "ams".into() },
            sequence: Sequence::default(),
            wants_receipt: true,
        }
    }

    fn own() -> Receipts {
        Receipts::new("vm-0".into())
    }

    fn told(instance: &str, event_id: &str, sockets: u32) -> Told {
        let receipts = vec![Receipt { event_id: event_id.into(), sockets }];
        Told { instance: instance.into(), receipts }
    }

    /// What this VM says to its sockets now, however often it looks.
    async fn said(receipts: &mut Receipts, shard: &Mailbox) -> Vec<String> {
        for _ in 0..4 {
            tokio::time::advance(TOLD_EVERY / 4).await;
            receipts.tell();
        }
        let said = shard.waiting().into_iter().filter_map(|command| match command {
            Command::Say(_, message) => Some(message.parts.concat()),
            _ => None,
        });
        said.map(|frame| String::from_utf8_lossy(&frame[2..]).into_owned()).collect()
    }

    fn frame(event_id: &str, instances: usize, sockets: u64) -> String {
        let frame = reply::receipt(event_id, instances, sockets);
        String::from_utf8_lossy(&frame.payload()).into_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn the_sender_hears_the_sums_as_they_grow() {
        let (mut receipts, fleet) = (own(), fleet(3));
        let (sender, other) = (Mailbox::default(), Mailbox::default());
        assert!(receipts.expect("a", &Outbox::new(sender.clone())));
        assert!(receipts.expect("a", &Outbox::new(other.clone())), "the same alert");
        assert!(said(&mut receipts, &sender).await.is_empty(), "it was not heard yet");
        receipts.heard(&alert("a", "vm-0"), clock::now_micros(), 2, &fleet);
        assert_eq!(said(&mut receipts, &sender).await, [frame("a", 1, 2)]);
        receipts.hear(told("vm-1", "a", 0));
        receipts.hear(told("vm-2", "a", 5));
        assert_eq!(said(&mut receipts, &sender).await, [frame("a", 3, 7)]);
        // Again, and of what nobody awaits.
        receipts.hear(told("vm-2", "a", 5));
        receipts.hear(told("vm-2", "b", 5));
        assert!(said(&mut receipts, &sender).await.is_empty());
        tokio::time::advance(PATIENCE).await;
        assert!(said(&mut receipts, &sender).await.is_empty());
        receipts.hear(told("vm-3", "a", 1));
        assert!(said(&mut receipts, &sender).await.is_empty(), "too late");
        assert!(receipts.awaited.is_empty() && other.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_awaited_is_bounded_whatever_comes() {
        let (mut receipts, shard) = (own(), Mailbox::default());
        let outbox = Outbox::new(shard.clone());
        for number in 0..MAX_AWAITED {
            assert!(receipts.expect(&number.to_string(), &outbox));
        }
        assert!(!receipts.expect("one too many", &outbox));
        for number in 0..10_000 {
            receipts.hear(told(&format!("forged-{number}"), "0", u32::MAX));
            receipts.hear(told("forged", &format!("none-{number}"), u32::MAX));
        }
        let most = MAX_INSTANCES as u64 * u64::from(u32::MAX);
        assert_eq!(said(&mut receipts, &shard).await, [frame("0", MAX_INSTANCES, most)]);
        assert_eq!(receipts.awaited.len(), MAX_AWAITED);
        receipts.heard_before("0");
        receipts.heard_before("1");
        assert_eq!(receipts.awaited.len(), MAX_AWAITED - 1, "only that which nobody has heard");
        tokio::time::advance(MAX_UNHEARD).await;
        receipts.tell();
        assert!(receipts.awaited.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_owed_is_bounded_whatever_comes() {
        let (mut receipts, fleet, now) = (own(), fleet(3), clock::now_micros());
        for number in 0..2 * MAX_OWED {
            let instance = if number % 2 == 0 { "vm-1" } else { "vm-2" };
            receipts.heard(&alert(&number.to_string(), instance), now, 4, &fleet);
            assert_eq!(receipts.owing, (number + 1).min(MAX_OWED));
        }
        let due = receipts.due(3);
        let owed: usize = due.iter().map(|(_, told)| told.receipts.len()).sum();
        assert_eq!((due.len(), owed), (2, MAX_OWED), "the first of them");
        receipts.heard(&alert("later", "vm-1"), now, 4, &fleet);
        assert_eq!(receipts.owing, 1, "there is room again");
    }

    #[tokio::test(start_paused = true)]
    async fn of_one_message_no_more_is_read_than_a_vm_can_owe() {
        let (mut receipts, shard) = (own(), Mailbox::default());
        receipts.expect("a", &Outbox::new(shard.clone()));
        for (before, heard) in [(MAX_OWED, 0), (MAX_OWED - 1, 1)] {
            let mut told = told("vm-1", "a", 1);
            let none = || Receipt { event_id: "none".into(), sockets: 1 };
            told.receipts.splice(0..0, std::iter::repeat_with(none).take(before));
            receipts.hear(told);
            assert_eq!(said(&mut receipts, &shard).await.len(), heard);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_owed_goes_together() {
        let (mut receipts, fleet, now) = (own(), fleet(3), clock::now_micros());
        for (id, instance) in [("a", "vm-1"), ("b", "vm-2"), ("c", "vm-1")] {
            receipts.heard(&alert(id, instance), now, 4, &fleet);
        }
        receipts.heard(&alert(&"x".repeat(MAX_ID + 1), "vm-1"), now, 4, &fleet);
        receipts.heard(&alert("unknown", "vm-3"), now, 4, &fleet);
        receipts.heard(&alert("sought", "vm-1"), now - micros(PATIENCE) - 1, 4, &fleet);
        let due: Vec<_> =
            receipts.due(3).into_iter().map(|(to, told)| (to, told.instance, told.receipts)).collect();
        let receipt = |id: &str| Receipt { event_id: id.into(), sockets: 4 };
        let expected = [("vm-1", vec![receipt("a"), receipt("c")]), ("vm-2", vec![receipt("b")])];
        assert_eq!(due, expected.map(|(to, receipts)| (to.to_owned(), "vm-0".to_owned(), receipts)));
        assert_eq!((receipts.owed.len(), receipts.owing), (0, 0));
        // What could not be sent in time is not sent.
        receipts.heard(&alert("d", "vm-1"), now, 4, &fleet);
        tokio::time::advance(MAX_OWING).await;
        assert!(receipts.due(3).is_empty() && receipts.owing == 0);
    }

    /// How many messages a VM puts on the topic in a minute, and how many receipts, where each of a fleet
    /// sends so many alerts a second.
    async fn sent_in_a_minute(vms: usize, alerts: usize) -> (usize, usize) {
        let (mut receipts, fleet) = (own(), fleet(vms));
        let mut sent = (0, 0);
        for tick in 0..240 {
            tokio::time::advance(Duration::from_millis(250)).await;
            for index in (1..vms).cycle().take(if tick % 4 == 0 { alerts * (vms - 1) } else { 0 }) {
                receipts.heard(&alert("a", &format!("vm-{index}")), clock::now_micros(), 1, &fleet);
            }
            assert!(receipts.owing <= MAX_OWED);
            for (_, told) in receipts.due(vms) {
                sent = (sent.0 + 1, sent.1 + told.receipts.len());
            }
        }
        sent
    }

    #[tokio::test(start_paused = true)]
    async fn the_topic_bears_it_however_large_the_fleet_is() {
        fastrand::seed(7);
        // In a small fleet all is answered, in few messages.
        assert_eq!(sent_in_a_minute(3, 100).await, (120, 60 * 200));
        // In a larger one by about twenty.
        let fleet = fleet(100);
        let answers = (0..10_000).filter(|_| fleet.is_to_answer()).count();
        assert!((1_900..2_100).contains(&answers), "{answers}");
        // A hundred send no more than twenty do: two hundred messages a second.
        for (vms, alerts, most) in [(20, 10, 611), (100, 2, 123), (400, 1, 31)] {
            let (messages, _) = sent_in_a_minute(vms, alerts).await;
            println!("{vms}: {messages}");
            assert!((most * 9 / 10..=most).contains(&messages), "{vms}: {messages}");
        }
    }
}
