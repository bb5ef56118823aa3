//! What VMs tell one another over the bus, and its form there: JSON, one object a message.
//!
//! Unknown fields are ignored and unknown kinds left to newer VMs, so that two versions can share
//! a topic while a deployment rolls.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// One message of the bus.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Told {
    Event(Event),
    Beacon(Beacon),
}

/// Something that happened, for sockets to hear.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// The sender's own id where it gave one, so that a retry is the same event.
    pub id: String,
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The connection it came from.
    pub sender_id: String,
    /// Passed on as it came; this program never looks inside.
    pub data: Box<RawValue>,
    /// When the origin took it, in ms since the epoch.
    pub timestamp: i64,
    pub origin: Origin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// To every socket, the sender's too.
    Alert,
    /// To every socket but the sender's.
    Broadcast,
}

impl Kind {
    /// The `type` on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alert => "alert",
            Self::Broadcast => "broadcast",
        }
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
    /// When this VM's process started, in ms since the epoch: a restart keeps the instance's id.
    pub started: i64,
    /// Counts this process's beacons, to tell which one came round.
    pub number: u64,
    pub clients: usize,
    /// How long the last beacon took through the topic and back.
    pub round_trip_ms: Option<u64>,
    /// When to expect the next one, at the latest.
    pub interval_ms: u64,
    /// The last one: this VM is on its way out.
    pub leaving: bool,
}

impl Told {
    pub fn encode(&self) -> Bytes {
        // Strings, numbers and JSON that was parsed before: nothing here can fail to serialize.
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    /// # Errors
    /// Not a message of this program, or one of a kind that this version does not know.
    pub fn decode(data: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_passes_through_byte_for_byte() {
        let json = r#"{"event":{"id":"1","type":"broadcast","senderId":"s","data":{"a" : 1.0e0, "a":"é"},
            "timestamp":7,"origin":{"instance":"i","region":"ams","newer":1},"newer":true}}"#;
        let Told::Event(event) = Told::decode(json.as_bytes()).unwrap() else { panic!("no event") };
        assert_eq!(event.data.get(), r#"{"a" : 1.0e0, "a":"é"}"#);
        let Told::Event(again) = Told::decode(&Told::Event(event).encode()).unwrap() else {
            panic!("no event")
        };
        assert_eq!(again.data.get(), r#"{"a" : 1.0e0, "a":"é"}"#);
    }

    #[test]
    fn what_is_not_ours_is_an_error_and_no_panic() {
        for data in [&b""[..], b"null", b"{}", b"[]", b"{\"event\":{}}", b"{\"later\":{}}", b"\xff"] {
            assert!(Told::decode(data).is_err());
        }
    }
}
