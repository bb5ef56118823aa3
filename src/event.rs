//! What VMs tell one another over the bus, and its form there: JSON, one object a message.
//!
//! Unknown fields are ignored and unknown kinds left to newer VMs, so that two versions can share
//! a topic while a deployment rolls.
//!
//! An alert with a place takes 364 bytes, a beacon 340: Pub/Sub bills 1,000 at least. Where processes have
//! ended, beacons vouch for some, and take up to 3.3 kB.

use std::ops::Range;

use bytes::Bytes;
use serde::de::Error as _;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::channel::{self, Channel};

/// One message of the bus.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Told {
    Event(Event),
    Beacon(Beacon),
    Ask(Ask),
    Answer(Answer),
    Receipts(Receipts),
}

/// Something that happened, for sockets to hear.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// The sender's own id where it gave one, so that a retry is the same event.
    pub id: String,
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Only sockets in it hear of it; None: all do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<Channel>,
    /// The connection it came from.
    pub sender_id: String,
    /// Passed on as it came; this program never looks inside.
    pub data: Box<RawValue>,
    /// When the origin took it, in ms since the epoch.
    pub timestamp: i64,
    pub origin: Origin,
    pub sequence: Sequence,
    /// Its sender wants to hear where it was heard.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wants_receipt: bool,
}

/// Where something stands in what one process of a VM has put on the topic. Events are numbered from 1
/// without gaps, so that whoever hears one knows of those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sequence {
    /// When the process started, in ms since the epoch: a restart keeps the instance's id.
    pub started: i64,
    /// The event's own number; in a beacon, that of the last one before which all are settled.
    pub number: u64,
    /// The oldest number still in the history window; those below are awaited by nobody.
    pub first: u64,
    /// All numbers below `first` were given before this, in ms since the epoch.
    pub first_at: i64,
}

/// What every version can read of an event: which one it is. Noted for one that a newer version sent, or
/// it would be waited for as if it had not come.
#[derive(Debug, Deserialize)]
pub struct Numbered {
    pub origin: Origin,
    pub sequence: Sequence,
}

/// Longer than any VM's or region's name.
const MAX_NAME: usize = 255;

/// Whether it can be a name, or an id of a VM's own making.
fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME
}

impl Origin {
    fn is_possible(&self) -> bool {
        is_name(&self.instance) && is_name(&self.region)
    }
}

impl Sequence {
    /// Numbers that can be counted on with; nobody gets to the last of them.
    fn is_possible(&self) -> bool {
        const MOST: u64 = 1 << 53;
        self.number < MOST && self.first <= self.number + 1
    }
}

/// What an event is, on the bus and on the wire a word.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(from = "String", into = "String")]
pub enum Kind {
    /// To every socket, the sender's too.
    Alert,
    /// To every socket but the sender's.
    Broadcast,
    /// An app's own, of that name.
    App(String),
}

impl Kind {
    /// The `type` on the wire.
    pub fn name(&self) -> &str {
        match self {
            Self::Alert => "alert",
            Self::Broadcast => "broadcast",
            Self::App(name) => name,
        }
    }

    /// For metrics, whose labels must not be the clients' to choose.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Alert => "alert",
            Self::Broadcast => "broadcast",
            Self::App(_) => "app",
        }
    }
}

impl From<String> for Kind {
    fn from(name: String) -> Self {
        match name.as_str() {
            "alert" => Self::Alert,
            "broadcast" => Self::Broadcast,
            _ => Self::App(name),
        }
    }
}

impl From<Kind> for String {
    fn from(kind: Kind) -> Self {
        kind.name().to_owned()
    }
}

/// The VM that something comes from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Origin {
    pub instance: String,
    pub region: String,
}

/// A VM's sign of life.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Beacon {
    pub origin: Origin,
    pub sequence: Sequence,
    /// All that was given a number before this is settled, in ms since the epoch. Older versions do not say.
    #[serde(default)]
    pub settled_until: i64,
    /// All that is settled was published before this, in ms since the epoch. Older versions do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_until: Option<i64>,
    /// Counts this process's beacons, to tell which one came round.
    pub beat: u64,
    /// This VM has just joined, and wants others' beacons at once, to know what it has to wait for.
    #[serde(default)]
    pub asking: bool,
    pub clients: usize,
    /// How long the last beacon took through the topic and back.
    pub round_trip_ms: Option<u64>,
    /// When to expect the next one, at the latest.
    pub interval_ms: u64,
    /// The last one: this VM is on its way out.
    pub leaving: bool,
    /// Numbers of this process that will never come, or never mattered: their senders were told.
    #[serde(default)]
    pub given_up: Vec<Range<u64>>,
    /// What this VM has heard of processes that can't speak for themselves any more.
    #[serde(default)]
    pub heard: Vec<Heard>,
}

impl Beacon {
    /// The beat of one that is told before a join, by which its VM sees that the past has come. It is of no
    /// use to others: its VM is not there yet.
    pub const MARK: u64 = 0;

    pub fn is_mark(&self) -> bool {
        self.beat == Self::MARK
    }
}

/// How far the sequence of an ended process went, as another VM heard it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Heard {
    pub instance: String,
    pub sequence: Sequence,
    /// When it was last heard of, in µs by the topic's clock.
    pub at: i64,
    /// All of it was published before this, in ms since the epoch. Older versions do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_until: Option<i64>,
    /// Numbers that could not be had.
    #[serde(default)]
    pub lost: Vec<Range<u64>>,
}

/// To the VM of one connection, about that connection. Not of the sequence and not of the history: what
/// is too old to be of use is ignored.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ask {
    pub id: String,
    /// The VM that waits for an answer, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    pub client_id: String,
    pub wish: Wish,
}

/// What is to be done with a connection.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Wish {
    Write(Letter),
    Describe,
    Close,
}

/// A message to one connection.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Letter {
    /// The sender's own id where it gave one, so that a retry is the same message.
    pub id: String,
    /// The connection it came from; None: an app's backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender_id: Option<String>,
    pub data: Box<RawValue>,
    /// When the VM that was asked took it, in ms since the epoch.
    pub timestamp: i64,
}

impl Ask {
    /// `from` becomes an attribute of the answer, and the connection's id a key.
    fn is_possible(&self) -> bool {
        let names = [&self.id, &self.client_id];
        names.into_iter().chain(&self.from).all(|name| is_name(name))
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The ask's.
    pub id: String,
    pub outcome: Outcome,
}

impl Answer {
    fn is_possible(&self) -> bool {
        let is_told = match &self.outcome {
            Outcome::Described(description) => description.is_possible(),
            Outcome::Written | Outcome::Closed | Outcome::Gone => true,
        };
        is_name(&self.id) && is_told
    }
}

/// What became of a wish.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// The system has taken the bytes.
    Written,
    Described(Description),
    Closed,
    /// There is no such connection any more.
    Gone,
}

/// A connection, as its VM knows it.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Description {
    pub client_id: String,
    pub instance: String,
    pub region: String,
    /// In ms since the epoch.
    pub connected_at: i64,
    pub channels: Vec<Channel>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

impl Description {
    fn is_possible(&self) -> bool {
        let names = [&self.client_id, &self.instance, &self.region];
        names.into_iter().chain(&self.user).all(|name| is_name(name))
            && self.channels.len() <= channel::MOST_OF_ONE
    }
}

/// To the VM that alerts came from: that another one has heard them.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipts {
    /// The VM that has.
    pub instance: String,
    pub receipts: Vec<Receipt>,
}

#[derive(Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    pub event_id: String,
    /// To how many of that VM's sockets it went.
    pub sockets: u32,
}

impl Told {
    pub fn encode(&self) -> Bytes {
        // Strings, numbers and JSON that was parsed before: nothing here can fail to serialize.
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    /// # Errors
    /// Not a message of this program, or one of a kind that this version does not know.
    pub fn decode(data: &[u8]) -> serde_json::Result<Self> {
        let told: Self = serde_json::from_slice(data)?;
        let is_possible = match &told {
            Self::Event(event) => event.sequence.is_possible() && event.origin.is_possible(),
            Self::Ask(ask) => ask.is_possible(),
            Self::Answer(answer) => answer.is_possible(),
            Self::Receipts(receipts) => is_name(&receipts.instance),
            Self::Beacon(beacon) => {
                let heard = &mut beacon.heard.iter();
                beacon.sequence.is_possible()
                    && beacon.origin.is_possible()
                    && heard.all(|heard| heard.sequence.is_possible() && is_name(&heard.instance))
            }
        };
        if is_possible { Ok(told) } else { Err(serde_json::Error::custom("an impossible number or name")) }
    }
}

impl Numbered {
    /// None: no event, or not even that can be read of it.
    pub fn decode(data: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Newer {
            event: Numbered,
        }
        let Newer { event } = serde_json::from_slice(data).ok()?;
        (event.sequence.is_possible() && event.origin.is_possible()).then_some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_passes_through_byte_for_byte() {
        let json = r#"{"event":{"id":"1","type":"broadcast","senderId":"s","data":{"a" : 1.0e0, "a":"é"},
            "timestamp":7,"origin":{"instance":"i","region":"ams","newer":1},"newer":true,
            "sequence":{"started":1,"number":2,"first":1,"firstAt":1}}}"#;
        let Told::Event(event) = Told::decode(json.as_bytes()).unwrap() else { panic!("no event") };
        assert_eq!(event.data.get(), r#"{"a" : 1.0e0, "a":"é"}"#);
        let Told::Event(again) = Told::decode(&Told::Event(event).encode()).unwrap() else {
            panic!("no event")
        };
        assert_eq!(again.data.get(), r#"{"a" : 1.0e0, "a":"é"}"#);
    }

    /// One message of each kind, with all that it may have.
    fn samples() -> Vec<Told> {
        let raw = |json: &str| RawValue::from_string(json.into()).unwrap();
        let origin = || Origin { instance: "9080e6f3a12345".into(), region: "ams".into() };
        let sequence =
            Sequence { started: 1_764_000_000_000, number: 7, first: 3, first_at: 1_764_000_000_123 };
        let event = |kind: &str, channel: Option<&str>| {
            Told::Event(Event {
                id: "b7e23ec2-9af0-4b1a-8a57-5d4b7a6c1f00".into(),
                kind: kind.to_owned().into(),
                channel: channel.map(|channel| Channel::new(channel).unwrap()),
                sender_id: "0af7651916cd43dd8448eb211c80319c@9080e6f3a12345".into(),
                data: raw(r#"{"place":"Roswell","lat":33.4}"#),
                timestamp: 1_764_000_001_000,
                origin: origin(),
                sequence,
                wants_receipt: kind == "alert",
            })
        };
        let ask = |wish| {
            Told::Ask(Ask {
                id: "ask".into(),
                from: Some("vm-sin".into()),
                client_id: "client@9080e6f3a12345".into(),
                wish,
            })
        };
        let letter = Letter {
            id: "letter".into(),
            sender_id: Some("sender@vm-sin".into()),
            data: raw("[1,2]"),
            timestamp: 1_764_000_002_000,
        };
        let answer = |outcome| Told::Answer(Answer { id: "ask".into(), outcome });
        let description = Description {
            client_id: "client@9080e6f3a12345".into(),
            instance: "9080e6f3a12345".into(),
            region: "ams".into(),
            connected_at: 1_764_000_000_500,
            channels: vec![Channel::new("jobs").unwrap()],
            user: Some("anna".into()),
        };
        let heard = Heard {
            instance: "vm-gone".into(),
            sequence,
            at: 1_764_000_003_000_000,
            published_until: Some(1_764_000_002_900),
            lost: vec![4..6, 8..9],
        };
        let beacon = Beacon {
            origin: origin(),
            sequence,
            settled_until: 1_764_000_000_900,
            published_until: Some(1_764_000_000_800),
            beat: 12,
            asking: true,
            clients: 42,
            round_trip_ms: Some(31),
            interval_ms: 15_000,
            leaving: false,
            given_up: vec![2..3, 5..6],
            heard: vec![heard],
        };
        let receipts = Receipts {
            instance: "vm-sin".into(),
            receipts: vec![Receipt { event_id: "event".into(), sockets: 3 }],
        };
        vec![
            event("alert", None),
            event("broadcast", Some("team")),
            event("job.done", Some("user:anna")),
            Told::Beacon(beacon),
            ask(Wish::Write(letter)),
            ask(Wish::Describe),
            ask(Wish::Close),
            answer(Outcome::Written),
            answer(Outcome::Described(description)),
            answer(Outcome::Closed),
            answer(Outcome::Gone),
            Told::Receipts(receipts),
        ]
    }

    /// While a deployment rolls, two versions talk to one another. Each version's words are recorded in a
    /// file of its name, and those of a build that said less in one that is named by what it did not say yet;
    /// this one must understand all of them, and say what is recorded of it.
    #[test]
    fn every_version_s_words_are_understood() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded");
        let mut versions = 0;
        for file in std::fs::read_dir(&folder).unwrap() {
            let path = file.unwrap().path();
            let recorded = std::fs::read_to_string(&path).unwrap();
            for line in recorded.lines() {
                Told::decode(line.as_bytes())
                    .unwrap_or_else(|error| panic!("{}: {error}: {line}", path.display()));
            }
            versions += 1;
        }
        assert!(versions > 0);
        let own = folder.join(concat!(env!("CARGO_PKG_VERSION"), ".jsonl"));
        let recorded = std::fs::read_to_string(&own).unwrap_or_default();
        let said: String =
            samples().iter().map(|told| format!("{}\n", str::from_utf8(&told.encode()).unwrap())).collect();
        assert_eq!(
            said,
            recorded,
            "the words have changed: is the change one that the last version understands? then record it in {}",
            own.display()
        );
    }

    #[test]
    fn what_an_older_version_does_not_say_is_unknown_and_the_rest_means_what_it_meant() {
        let before = |told, tells_settled: bool| match told {
            Told::Event(event) => {
                Told::Event(Event { wants_receipt: event.wants_receipt && tells_settled, ..event })
            }
            Told::Beacon(beacon) => {
                let heard =
                    beacon.heard.into_iter().map(|heard| Heard { published_until: None, ..heard }).collect();
                let settled_until = if tells_settled { beacon.settled_until } else { 0 };
                Told::Beacon(Beacon { settled_until, published_until: None, heard, ..beacon })
            }
            told => told,
        };
        for (words, tells_settled) in [
            (include_str!("../tests/recorded/before-published-until.jsonl"), true),
            (include_str!("../tests/recorded/before-settled-until-and-receipts.jsonl"), false),
        ] {
            let meant: Vec<_> =
                samples().into_iter().map(|told| before(told, tells_settled).encode()).collect();
            for line in words.lines() {
                let read = Told::decode(line.as_bytes()).unwrap().encode();
                assert!(meant.contains(&read), "{line}");
            }
        }
    }

    #[test]
    fn messages_are_as_long_as_they_are_said_to_be() {
        const AT: i64 = 1_764_000_000_000;
        let origin = Origin { instance: "9080e6f3a12345".into(), region: "ams".into() };
        let sequence = Sequence { started: AT, number: 123_456, first: 120_000, first_at: AT };
        let beacon = Beacon {
            origin: origin.clone(),
            sequence,
            settled_until: AT,
            published_until: Some(AT),
            beat: 12_345,
            asking: false,
            clients: 5_000,
            round_trip_ms: Some(120),
            interval_ms: 1_000_000,
            leaving: false,
            given_up: Vec::new(),
            heard: Vec::new(),
        };
        assert_eq!(Told::Beacon(beacon.clone()).encode().len(), 340);
        let ended = Heard {
            instance: origin.instance.clone(),
            sequence,
            at: AT * 1_000,
            published_until: Some(AT),
            lost: Vec::new(),
        };
        let longest = Told::Beacon(Beacon { heard: vec![ended; 16], ..beacon }).encode().len();
        assert!((3_200..3_300).contains(&longest), "{longest}");
        let alert = Event {
            id: "6f1e0f0c-3c4b-4c57-9c63-2f0d7e0a4d11".into(),
            kind: Kind::Alert,
            channel: None,
            sender_id: "0b9e4d1c8a1f4f0f9d1b2c3d4e5f6a7b@9080e6f3a12345".into(),
            data: RawValue::from_string(r#"{"place":"Amsterdam","lat":52.37,"lon":4.9}"#.into()).unwrap(),
            timestamp: AT,
            origin,
            sequence: Sequence { number: 7, first: 1, ..sequence },
            wants_receipt: true,
        };
        assert_eq!(Told::Event(alert).encode().len(), 364);
    }

    #[test]
    fn kinds_are_words_and_an_app_s_own_is_no_label() {
        for (name, kind, label) in [
            ("alert", Kind::Alert, "alert"),
            ("broadcast", Kind::Broadcast, "broadcast"),
            ("job.done", Kind::App("job.done".into()), "app"),
        ] {
            assert_eq!(Kind::from(name.to_owned()), kind);
            assert_eq!((kind.name(), kind.label()), (name, label));
        }
    }

    #[test]
    fn names_longer_than_any_and_impossible_sequences_are_refused_wherever_they_stand() {
        let long = "x".repeat(MAX_NAME);
        let longer = &"x".repeat(MAX_NAME + 1);
        let sequence = |number: u64| Sequence { started: 1, number, first: 1, first_at: 1 };
        let event = |instance: &str, region: &str| {
            format!(
                r#"{{"event":{{"id":"1","type":"alert","senderId":"s","data":1,"timestamp":7,
                "origin":{{"instance":"{instance}","region":"{region}"}},
                "sequence":{{"started":1,"number":1,"first":1,"firstAt":1}}}}}}"#
            )
        };
        let beacon = |instance: &str, own: u64, heard: &str, its: u64| {
            let heard = Heard {
                instance: heard.into(),
                sequence: sequence(its),
                at: 1,
                published_until: None,
                lost: Vec::new(),
            };
            let beacon = Beacon {
                origin: Origin { instance: instance.into(), region: "r".into() },
                sequence: sequence(own),
                settled_until: 1,
                published_until: None,
                beat: 1,
                asking: false,
                clients: 1,
                round_trip_ms: None,
                interval_ms: 1_000,
                leaving: false,
                given_up: Vec::new(),
                heard: vec![heard],
            };
            String::from_utf8(Told::Beacon(beacon).encode().into()).unwrap()
        };
        let receipts =
            |instance: &str| format!(r#"{{"receipts":{{"instance":"{instance}","receipts":[]}}}}"#);
        let ask = |id: &str, from: &str, client_id: &str| {
            format!(r#"{{"ask":{{"id":"{id}","from":"{from}","clientId":"{client_id}","wish":"describe"}}}}"#)
        };
        let answer = |id: &str| format!(r#"{{"answer":{{"id":"{id}","outcome":"gone"}}}}"#);
        let described = |[client_id, instance, region, user]: [&str; 4], channels: usize| {
            let channels = vec![r#""c""#; channels].join(",");
            format!(
                r#"{{"answer":{{"id":"1","outcome":{{"described":{{"clientId":"{client_id}",
                "instance":"{instance}","region":"{region}","connectedAt":1,"channels":[{channels}],
                "user":"{user}"}}}}}}}}"#
            )
        };
        for told in [
            event(&long, &long),
            beacon(&long, 1, &long, 1),
            receipts(&long),
            ask(&long, &long, &long),
            answer(&long),
            described([&long; 4], channel::MOST_OF_ONE),
        ] {
            assert!(Told::decode(told.as_bytes()).is_ok(), "{told}");
        }
        for told in [
            ask(longer, "f", "c"),
            ask("a", longer, "c"),
            ask("a", "f", longer),
            answer(longer),
            described([longer, "i", "r", "u"], 1),
            described(["c", longer, "r", "u"], 1),
            described(["c", "i", longer, "u"], 1),
            described(["c", "i", "r", longer], 1),
            described(["c", "i", "r", "u"], channel::MOST_OF_ONE + 1),
            event(longer, "r"),
            event("i", longer),
            event(longer, longer),
            beacon(longer, 1, "h", 1),
            beacon("i", 1 << 53, "h", 1),
            beacon("i", 1, longer, 1),
            beacon("i", 1, "h", 1 << 53),
            receipts(longer),
        ] {
            assert!(Told::decode(told.as_bytes()).is_err(), "{told}");
            assert!(Numbered::decode(told.as_bytes()).is_none(), "{told}");
        }
    }

    #[test]
    fn what_is_not_ours_is_an_error_and_no_panic() {
        let event = |sequence: &str| {
            format!(
                r#"{{"event":{{"id":"1","type":"alert","senderId":"s","data":1,"timestamp":7,
                "origin":{{"instance":"i","region":"r"}},"sequence":{sequence}}}}}"#
            )
        };
        assert!(Told::decode(event(r#"{"started":1,"number":2,"first":3,"firstAt":1}"#).as_bytes()).is_ok());
        for sequence in [
            r#"{"started":1,"number":18446744073709551615,"first":1,"firstAt":1}"#,
            r#"{"started":1,"number":2,"first":4,"firstAt":1}"#,
            r#"{"started":1,"number":-2,"first":1,"firstAt":1}"#,
        ] {
            assert!(Told::decode(event(sequence).as_bytes()).is_err(), "{sequence}");
            assert!(Numbered::decode(event(sequence).as_bytes()).is_none(), "{sequence}");
        }
        for (number, is_possible) in [((1_u64 << 53) - 1, true), (1 << 53, false)] {
            let sequence = format!(r#"{{"started":1,"number":{number},"first":1,"firstAt":1}}"#);
            assert_eq!(Told::decode(event(&sequence).as_bytes()).is_ok(), is_possible, "{number}");
        }
        for data in [&b""[..], b"null", b"{}", b"[]", b"{\"event\":{}}", b"{\"later\":{}}", b"\xff"] {
            assert!(Told::decode(data).is_err() && Numbered::decode(data).is_none());
        }
    }
}
