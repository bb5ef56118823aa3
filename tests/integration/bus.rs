//! The contract of the bus, kept by both kinds alike.

use std::collections::HashSet;
use std::time::Duration;

use alien_alert::bus::memory::Topic;
use alien_alert::bus::pubsub::{Credentials, PubSub, Settings};
use alien_alert::bus::{Bus, Delivery, Inbox, Join, Message};
use alien_alert::clock;
use alien_alert::config::{Config, HistoryLimits};
use alien_alert::identity::Identity;
use tokio::time::sleep;

use crate::support::emulator::{Emulator, PROJECT};
use crate::support::proxy::Proxy;
use crate::support::{PATIENCE, until, within};

const HISTORY: HistoryLimits =
    HistoryLimits { age: Duration::from_secs(3600), events: 1_000, bytes: 4 << 20 };

/// A topic of one kind, and members for it.
enum Kind {
    Memory(Topic),
    PubSub(Emulator),
}

impl Kind {
    async fn both() -> [Self; 2] {
        [Self::Memory(Topic::new(HISTORY)), Self::PubSub(Emulator::start().await)]
    }

    async fn member(&self, name: &str) -> Bus {
        match self {
            Self::Memory(topic) => Bus::Memory(topic.member()),
            Self::PubSub(emulator) => pubsub(emulator.host(), name).await,
        }
    }
}

async fn pubsub(host: String, name: &str) -> Bus {
    let settings = Settings {
        project: PROJECT.into(),
        topic: "CONTRACT".into(),
        credentials: Credentials::Emulator(host),
        window: HISTORY.age,
    };
    Bus::PubSub(PubSub::new(&settings, &identity(name)).await.unwrap())
}

fn identity(name: &str) -> Identity {
    Config::from_vars([("FLY_ALLOC_ID".to_owned(), name.to_owned())]).unwrap().identity
}

/// When the history window begins.
fn window() -> i64 {
    clock::now_micros() - clock::micros(HISTORY.age)
}

fn message(text: &str) -> Message {
    Message { data: text.to_owned().into(), ..Message::default() }
}

async fn next(inbox: &mut Inbox) -> Delivery {
    within("delivery", inbox.next()).await.unwrap()
}

/// Acknowledges deliveries until `count` different texts have come.
async fn texts(inbox: &mut Inbox, count: usize) -> HashSet<String> {
    let mut texts = HashSet::new();
    while texts.len() < count {
        let delivery = next(inbox).await;
        texts.insert(String::from_utf8(delivery.message.data.to_vec()).unwrap());
        delivery.ack();
    }
    texts
}

#[tokio::test]
async fn every_member_hears_every_message_and_the_publisher_too() {
    for kind in Kind::both().await {
        let (a, b) = (kind.member("a").await, kind.member("b").await);
        let (mut from_a, mut from_b) =
            (a.join(Join::Resume, window()).await.unwrap(), b.join(Join::Resume, window()).await.unwrap());
        assert_eq!(a.tag(), b.tag());
        a.publish(message("from a")).await.unwrap();
        b.publish(message("from b")).await.unwrap();
        let both = HashSet::from(["from a".to_owned(), "from b".to_owned()]);
        assert_eq!(texts(&mut from_a, 2).await, both);
        assert_eq!(texts(&mut from_b, 2).await, both);
    }
}

#[tokio::test]
async fn a_message_arrives_as_it_was_sent() {
    for kind in Kind::both().await {
        let member = kind.member("a").await;
        let mut inbox = member.join(Join::Resume, window()).await.unwrap();
        let data = (0..=255).collect::<Vec<u8>>().into();
        let sent = Message { data, to: Some("a".into()), ..Message::default() };
        let before = clock::now_micros();
        member.publish(sent.clone()).await.unwrap();
        let delivery = next(&mut inbox).await;
        assert_eq!(delivery.message, sent);
        let second = 1_000_000;
        assert!((before - second..before + 30 * second).contains(&delivery.published_at));
        delivery.ack();
    }
}

#[tokio::test]
async fn what_is_not_acknowledged_comes_again() {
    for kind in Kind::both().await {
        let member = kind.member("a").await;
        let mut inbox = member.join(Join::Resume, window()).await.unwrap();
        member.publish(message("again")).await.unwrap();
        let first = next(&mut inbox).await;
        drop(first);
        let second = next(&mut inbox).await;
        assert_eq!(second.message, message("again"));
        second.ack();
    }
}

#[tokio::test]
async fn a_newborn_hears_what_was_before_it() {
    for kind in Kind::both().await {
        let old = kind.member("old").await;
        let _inbox = old.join(Join::Resume, window()).await.unwrap();
        old.publish(message("before")).await.unwrap();
        let mut inbox = kind.member("new").await.join(Join::Resume, window()).await.unwrap();
        assert!(texts(&mut inbox, 1).await.contains("before"));
    }
}

#[tokio::test]
async fn one_that_comes_back_hears_what_came_meanwhile() {
    for how in [Join::Resume, Join::Again, Join::Afresh] {
        for kind in Kind::both().await {
            let (a, b) = (kind.member("a").await, kind.member("b").await);
            let inbox = a.join(Join::Resume, window()).await.unwrap();
            let _other = b.join(Join::Resume, window()).await.unwrap();
            drop(inbox);
            b.publish(message("meanwhile")).await.unwrap();
            let mut inbox = a.join(how, window()).await.unwrap();
            assert!(texts(&mut inbox, 1).await.contains("meanwhile"), "{how:?}");
        }
    }
}

#[tokio::test]
async fn a_member_that_seeks_hears_again_what_it_had() {
    for kind in Kind::both().await {
        let (a, b) = (kind.member("a").await, kind.member("b").await);
        let mut from_a = a.join(Join::Resume, window()).await.unwrap();
        let mut from_b = b.join(Join::Resume, window()).await.unwrap();
        a.publish(message("heard")).await.unwrap();
        for inbox in [&mut from_a, &mut from_b] {
            assert!(texts(inbox, 1).await.contains("heard"));
        }
        a.seek(window()).await.unwrap();
        assert!(texts(&mut from_a, 1).await.contains("heard"));
        a.publish(message("next")).await.unwrap();
        assert!(texts(&mut from_a, 1).await.contains("next"));
        assert_eq!(texts(&mut from_b, 1).await, HashSet::from(["next".to_owned()]), "b asked for nothing");
    }
}

#[tokio::test]
async fn a_burst_arrives_whole() {
    for kind in Kind::both().await {
        let member = kind.member("a").await;
        let mut inbox = member.join(Join::Resume, window()).await.unwrap();
        let sent: HashSet<String> = (0..1_000).map(|number| format!("{number:04}")).collect();
        let confirmed: Vec<_> = sent.iter().map(|text| member.publish(message(text))).collect();
        for confirmed in confirmed {
            within("confirmation", confirmed).await.unwrap();
        }
        assert_eq!(texts(&mut inbox, 1_000).await, sent);
    }
}

#[tokio::test]
async fn publishing_is_not_undone_by_dropping_its_future() {
    for kind in Kind::both().await {
        let member = kind.member("a").await;
        let mut inbox = member.join(Join::Resume, window()).await.unwrap();
        drop(member.publish(message("dropped")));
        assert!(texts(&mut inbox, 1).await.contains("dropped"));
    }
}

#[tokio::test]
async fn leaving_twice_is_no_error() {
    for kind in Kind::both().await {
        let member = kind.member("a").await;
        let _inbox = member.join(Join::Resume, window()).await.unwrap();
        member.leave().await.unwrap();
        member.leave().await.unwrap();
        if let Kind::PubSub(emulator) = &kind {
            assert!(emulator.subscriptions().await.is_empty());
        }
    }
}

#[tokio::test]
async fn on_pubsub_the_subscription_is_as_it_should_be() {
    let emulator = Emulator::start().await;
    let kind = Kind::PubSub(emulator);
    let _inbox = kind.member("a").await.join(Join::Resume, window()).await.unwrap();
    let Kind::PubSub(emulator) = &kind else { unreachable!() };
    let subscription = emulator.subscription("ID_a").await;
    assert_eq!(subscription["expirationPolicy"]["ttl"], "86400s");
    assert_eq!(subscription["messageRetentionDuration"], "3900s");
    assert_eq!(subscription["filter"], "NOT attributes:to OR attributes.to = \"a\"");
    assert_eq!(subscription["labels"]["app"], "alien-alert");
    let created: i64 = subscription["labels"]["created"].as_str().unwrap().parse().unwrap();
    assert!((clock::now_millis() / 1_000 - created).abs() < 60, "{created}");
    assert_eq!(emulator.topic("CONTRACT").await["messageRetentionDuration"], "3900s");
}

#[tokio::test]
async fn on_pubsub_a_topic_that_keeps_nothing_is_told_to_keep() {
    let emulator = Emulator::start().await;
    emulator.create_topic("CONTRACT").await;
    assert_eq!(emulator.topic("CONTRACT").await["messageRetentionDuration"], serde_json::Value::Null);
    let _inbox = pubsub(emulator.host(), "a").await.join(Join::Resume, window()).await.unwrap();
    until("retention", async || {
        (emulator.topic("CONTRACT").await["messageRetentionDuration"] == "3900s").then_some(())
    })
    .await;
}

#[tokio::test]
async fn on_pubsub_the_topic_keeps_what_a_member_does_not_take() {
    const MESSAGES: usize = 32;
    let emulator = Emulator::start().await;
    let proxy = Proxy::to(emulator.port).await;
    let (member, other) = (pubsub(proxy.host(), "a").await, pubsub(emulator.host(), "b").await);
    let mut inbox = member.join(Join::Resume, window()).await.unwrap();
    other.publish(message("first")).await.unwrap();
    texts(&mut inbox, 1).await;
    // Google keeps to what the stream's first request says, the emulator does not: 1,000 messages and 8 MiB
    // unacknowledged, `max_outstanding_messages` and `max_outstanding_bytes` in the form of Protocol Buffers.
    assert!(proxy.was_sent(&[7 << 3, 0xe8, 0x07, 8 << 3, 0x80, 0x80, 0x80, 0x04]));

    // With both, what nobody takes out of the inbox does not come into this process.
    let before = proxy.received();
    let mib = "x".repeat(1 << 20);
    for number in 0..MESSAGES {
        other.publish(message(&format!("{number} {mib}"))).await.unwrap();
    }
    let mut came = 0;
    until("an end of what comes", async || {
        let so_far = proxy.received() - before;
        sleep(Duration::from_millis(500)).await;
        came = proxy.received() - before;
        (came == so_far).then_some(())
    })
    .await;
    println!("of {MESSAGES} MiB that nobody took {came} bytes came");
    assert!(came < 8 << 20, "{came}");
    assert_eq!(texts(&mut inbox, MESSAGES).await.len(), MESSAGES);
}

#[tokio::test]
async fn on_pubsub_a_deleted_subscription_ends_the_inbox() {
    let emulator = Emulator::start().await;
    let kind = Kind::PubSub(emulator);
    let member = kind.member("a").await;
    let mut inbox = member.join(Join::Resume, window()).await.unwrap();
    // The stream is there when the first message has come through it.
    member.publish(message("first")).await.unwrap();
    texts(&mut inbox, 1).await;
    member.leave().await.unwrap();
    assert!(within("end of the inbox", inbox.next()).await.is_err());
    assert!(member.join(Join::Resume, window()).await.is_ok());
}

#[tokio::test]
async fn an_alert_leaves_at_once() {
    let kind = Kind::PubSub(Emulator::start().await);
    let member = kind.member("a").await;
    let _inbox = member.join(Join::Resume, window()).await.unwrap();
    member.publish(message("connects")).await.unwrap();
    // Best of several: a machine may be busy, but a delay would be in each of them.
    let mut best = PATIENCE;
    until("an undelayed publish", async || {
        let begun = std::time::Instant::now();
        member.publish(message("now")).await.unwrap();
        best = best.min(begun.elapsed());
        // The library's own default waits 10 ms for more to come.
        (best < Duration::from_millis(8)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_burst_goes_out_together() {
    const MESSAGES: u64 = 500;
    let emulator = Emulator::start().await;
    let proxy = Proxy::to(emulator.port).await;
    let member = pubsub(proxy.host(), "a").await;
    let inbox = member.join(Join::Resume, window()).await.unwrap();
    // What a request costs by itself, once the connection is there.
    member.publish(message("first")).await.unwrap();
    let before = proxy.sent();
    for _ in 0..5 {
        member.publish(message("alone")).await.unwrap();
    }
    let alone = (proxy.sent() - before) / 5;
    let before = proxy.sent();
    let confirmed: Vec<_> = (0..MESSAGES).map(|_| member.publish(message("burst"))).collect();
    for confirmed in confirmed {
        within("confirmation", confirmed).await.unwrap();
    }
    let together = (proxy.sent() - before) / MESSAGES;
    println!("a message takes {alone} bytes on the way out alone, {together} in a burst");
    assert!(together * 3 < alone, "{together} bytes each in a burst, {alone} alone");
    drop(inbox);
}

#[tokio::test]
async fn in_process_a_full_log_refuses_rather_than_drops() {
    let topic = Topic::new(HistoryLimits { events: 1, ..HISTORY });
    let member = Bus::Memory(topic.member());
    let mut inbox = member.join(Join::Resume, window()).await.unwrap();
    let mut kept = 0;
    while member.publish(message(&kept.to_string())).await.is_ok() {
        kept += 1;
        assert!(kept < 100_000, "nothing is refused");
    }
    for number in 0..kept {
        let delivery = next(&mut inbox).await;
        assert_eq!(delivery.message, message(&number.to_string()));
        delivery.ack();
    }
    assert!(member.publish(message("again")).await.is_ok());
}
