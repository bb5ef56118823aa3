//! Whatever is said by whom, through whichever VM: it arrives where a model of ten lines says, once, and
//! nowhere else.

use serde_json::json;

use crate::support::client::Client;
use crate::support::emulator::Emulator;
use crate::support::http::{API_KEY, ask, get};
use crate::support::token::{SECRET, claims, token};
use crate::support::until;
use crate::support::vm::Vm;

const SOCKETS: usize = 50;
const CHANNELS: usize = 10;
const USERS: usize = 10;
const MESSAGES: usize = 1_000;

struct Seat {
    client: Client,
    user: String,
    channels: Vec<String>,
    /// What it should hear: ids, in order.
    expected: Vec<String>,
}

/// One message, of a socket or of the backend.
struct Message {
    from: Option<usize>,
    to: To,
}

enum To {
    All,
    Channel(String),
    One(usize),
}

/// The model. Nobody hears their own words, but who writes to themselves.
fn hears(message: &Message, number: usize, seat: &Seat) -> bool {
    match &message.to {
        To::All => message.from != Some(number),
        To::Channel(channel) => message.from != Some(number) && seat.channels.contains(channel),
        To::One(target) => number == *target,
    }
}

fn invent(rng: &mut fastrand::Rng, seats: &[Seat]) -> Message {
    let from = rng.bool().then(|| rng.usize(..SOCKETS));
    let to = match rng.u8(..4) {
        0 => To::All,
        1 => To::One(rng.usize(..SOCKETS)),
        2 => To::Channel(format!("c{}", rng.usize(..CHANNELS))),
        // Only the backend may speak in another user's.
        _ => To::Channel(match from {
            Some(number) => format!("user:{}", seats[number].user),
            None => format!("user:{}", rng.usize(..USERS)),
        }),
    };
    Message { from, to }
}

async fn send(Message { from, to }: &Message, id: &str, vm: &Vm, seats: &mut [Seat]) {
    let target = if let To::One(number) = to { seats[*number].client.id().to_owned() } else { String::new() };
    if let Some(number) = from {
        let said = match to {
            To::All => json!({"type": "broadcast", "id": id}),
            To::Channel(channel) => json!({"type": "broadcast", "channel": channel, "id": id}),
            To::One(_) => json!({"type": "direct", "targetId": target, "id": id}),
        };
        return seats[*number].client.send(said).await;
    }
    let (path, status) = match to {
        To::All => ("/alerts".into(), 202),
        To::Channel(channel) => (format!("/channels/{channel}"), 202),
        To::One(_) => (format!("/connections/{target}"), 200),
    };
    let answer = ask(vm.port, "POST", &path, &[("idempotency-key", id)], r#"{"type":"told"}"#).await;
    assert_eq!(answer.status, status, "{path}: {}", answer.text());
}

/// The ids of the next `count` messages.
async fn heard(client: &mut Client, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    while ids.len() < count {
        let message = client.next().await;
        assert_ne!(message["type"], "error", "{message}");
        if ["alert", "broadcast", "direct", "told"].iter().any(|kind| message["type"] == *kind) {
            ids.push(message["id"].as_str().unwrap().to_owned());
        }
    }
    ids.sort();
    ids
}

/// How many events a VM has had from the topic.
async fn events(vm: &Vm) -> usize {
    let metrics = get(vm.port, "/metrics").await;
    let counted = metrics.text().lines().filter(|line| line.starts_with("alien_alert_events_total{"));
    counted.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
}

#[tokio::test]
async fn a_thousand_messages_arrive_exactly_where_they_should() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let emulator = Emulator::start().await;
    // The sockets are read when all is sent: until then they answer no pings.
    let vars = [
        ("AUTH_SECRET", SECRET),
        ("API_KEY", API_KEY),
        ("API_BURST", "1000"),
        ("OUTBOX_BYTES", "16777216"),
        ("PING_INTERVAL", "600"),
    ];
    let vms = Vm::fleet(&emulator, &["ams", "sin", "lax"], &vars).await;
    let mut seats = Vec::new();
    for _ in 0..SOCKETS {
        let user = rng.usize(..USERS).to_string();
        let mut channels: Vec<_> =
            (0..CHANNELS).filter(|_| rng.bool()).map(|channel| format!("c{channel}")).collect();
        let token = token(&claims(json!({"sub": user, "channels": ["c*"]})));
        let path = format!("/ws?token={token}&channels={}", channels.join(","));
        let client = Client::connect(rng.choice(&vms).unwrap().port, &path).await;
        channels.insert(0, format!("user:{user}"));
        assert_eq!(client.connected["channels"], json!(channels));
        seats.push(Seat { client, user, channels, expected: Vec::new() });
    }
    let mut to_many = 0;
    for number in 0..MESSAGES {
        let (id, message) = (format!("{number:04}"), invent(&mut rng, &seats));
        send(&message, &id, rng.choice(&vms).unwrap(), &mut seats).await;
        to_many += usize::from(!matches!(message.to, To::One(_)));
        for (number, seat) in seats.iter_mut().enumerate() {
            if hears(&message, number, seat) {
                seat.expected.push(id.clone());
            }
        }
    }
    for seat in &mut seats {
        assert_eq!(heard(&mut seat.client, seat.expected.len()).await, seat.expected, "{}", seat.client.id());
    }
    // Every VM has had all there was: what is to come to a socket by mistake waits in front of its pong.
    for vm in &vms {
        until("all events", async || (events(vm).await == to_many).then_some(())).await;
    }
    for Seat { client, .. } in &mut seats {
        let more = client.settle().await;
        assert!(more.iter().all(|message| message["type"] == "ack"), "{more:?}");
    }
}
