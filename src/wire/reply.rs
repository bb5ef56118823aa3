//! What a client hears, each message encoded once as a whole frame.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use super::ErrorCode;
use super::request::ALIEN_LANDING;
use crate::channel::Channel;
use crate::clock;
use crate::cursor::Cursor;
use crate::event::{Event, Kind, Letter, Origin};
use crate::fleet::{Fleet, Instance};
use crate::frame::{Frame, text_of_parts};
use crate::history::{CatchUp, Hole, Missing};
use crate::identity::Identity;

/// Most events fit into so many bytes, so that their room need not grow.
const USUAL: usize = 512;

/// VMs in one `fleet`, which are about a tenth of what a socket may leave unread.
pub const MOST_TOLD: usize = 1_000;

/// The first message of every socket.
pub fn connected(
    client_id: &str,
    identity: &Identity,
    channels: &[Channel],
    ping_interval: Duration,
    cursor: Cursor,
) -> Frame {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Connected<'a> {
        r#type: &'a str,
        client_id: &'a str,
        message: &'a str,
        instance: &'a str,
        region: &'a str,
        region_code: &'a str,
        channels: &'a [Channel],
        ping_interval: u128,
        cursor: String,
    }
    text(&Connected {
        r#type: "connected",
        client_id,
        message: "CONNECTED",
        instance: identity.instance(),
        region: identity.region(),
        region_code: identity.region(),
        channels,
        ping_interval: ping_interval.as_millis(),
        cursor: cursor.to_string(),
    })
}

/// The second message, and the answer to joining a channel: what there was before. The events' bytes are
/// shared, not copied.
pub fn refresh_store(channel: Option<&Channel>, catch_up: CatchUp, cursor: Cursor) -> Vec<Bytes> {
    #[derive(Serialize)]
    struct Rest<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        channel: Option<&'a Channel>,
        complete: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        missing: Option<Range>,
        cursor: String,
    }
    /// When what is missing was published, in ms since the epoch.
    #[derive(Serialize)]
    struct Range {
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<i64>,
        to: i64,
    }
    let reason = |hole: Hole| match hole.reason {
        Missing::TooOld => "too_old",
        Missing::TooMany => "too_many",
        Missing::Gap => "gap",
    };
    // Rounded outwards: the range is not smaller than the hole.
    let range = |hole: Hole| Range { from: hole.from.map(|from| from / 1000), to: hole.to / 1000 + 1 };
    let rest = Rest {
        channel,
        complete: catch_up.missing.is_none(),
        reason: catch_up.missing.map(reason),
        missing: catch_up.missing.map(range),
        cursor: cursor.to_string(),
    };
    let rest = serde_json::to_string(&rest).unwrap_or_default();

    let mut parts = Vec::with_capacity(2 * catch_up.parts.len() + 2);
    parts.push(Bytes::from_static(br#"{"type":"refresh-store","events":["#));
    for part in catch_up.parts {
        if parts.len() > 1 {
            parts.push(Bytes::from_static(b","));
        }
        parts.push(part);
    }
    // What follows the array is the rest's object without its opening brace.
    parts.push(Bytes::from(format!("],{}", &rest[1..])));
    text_of_parts(parts)
}

/// To those who are connected: something did not come, and won't.
pub fn gap(hole: Hole, cursor: Cursor) -> Frame {
    let told = refresh_store(None, CatchUp { parts: Vec::new(), missing: Some(hole) }, cursor);
    Frame::text(&told[1..].concat())
}

/// An event, as every socket hears it. An alert tells when (ms) the topic took it and when it came here.
pub fn event(event: &Event, cursor: Cursor, published: i64, received: i64) -> Frame {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Heard<'a> {
        r#type: &'a str,
        id: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        channel: Option<&'a Channel>,
        #[serde(skip_serializing_if = "Option::is_none")]
        sender_id: Option<&'a str>,
        data: &'a RawValue,
        timestamp: i64,
        #[serde(skip_serializing_if = "Option::is_none")]
        published: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        received: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        origin: Option<&'a Origin>,
        cursor: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        message: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        region_code: Option<&'a str>,
    }
    let is_app = matches!(event.kind, Kind::App(_));
    let is_alert = event.kind == Kind::Alert;
    text(&Heard {
        r#type: event.kind.name(),
        id: &event.id,
        channel: event.channel.as_ref(),
        sender_id: (!is_app).then_some(&event.sender_id),
        data: &event.data,
        timestamp: event.timestamp,
        published: is_alert.then_some(published),
        received: is_alert.then_some(received),
        origin: (!is_app).then_some(&event.origin),
        cursor: cursor.to_string(),
        message: is_alert.then_some(ALIEN_LANDING),
        region_code: (!is_app).then_some(&event.origin.region),
    })
}

/// A message to one connection, as that hears it.
pub fn direct(letter: &Letter) -> Frame {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Direct<'a> {
        r#type: &'a str,
        #[serde(flatten)]
        letter: &'a Letter,
    }
    text(&Direct { r#type: "direct", letter })
}

/// Who is alive. Of more than [`MOST_TOLD`] those with the lowest ids, which stay the same.
pub fn fleet(fleet: &Fleet) -> Frame {
    #[derive(Serialize)]
    struct Message<'a> {
        r#type: &'a str,
        instances: Vec<InstanceInfo<'a>>,
        /// How many others there are.
        #[serde(skip_serializing_if = "Option::is_none")]
        more: Option<usize>,
    }
    let more = fleet.len().checked_sub(MOST_TOLD).filter(|more| *more > 0);
    text(&Message { r#type: "fleet", instances: told(fleet.instances().take(MOST_TOLD)), more })
}

/// One VM, as `fleet` and `/status` tell it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceInfo<'a> {
    instance: &'a str,
    region: &'a str,
    clients: usize,
    round_trip_ms: Option<u64>,
    last_seen: i64,
}

/// All that are alive.
pub fn instances(fleet: &Fleet) -> Vec<InstanceInfo<'_>> {
    told(fleet.instances())
}

fn told<'a>(instances: impl Iterator<Item = (&'a String, &'a Instance)>) -> Vec<InstanceInfo<'a>> {
    instances
        .map(|(name, instance)| InstanceInfo {
            instance: name,
            region: &instance.region,
            clients: instance.clients,
            round_trip_ms: instance.round_trip_ms,
            last_seen: instance.last_seen,
        })
        .collect()
}

/// The bus has the event for certain.
pub fn ack(id: Option<&str>, event_id: &str) -> Frame {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Ack<'a> {
        r#type: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        event_id: &'a str,
    }
    text(&Ack { r#type: "ack", id, event_id })
}

/// Where the sender's alert has been heard so far: on how many VMs, by how many sockets.
pub fn receipt(event_id: &str, instances: usize, sockets: u64) -> Frame {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Receipt<'a> {
        r#type: &'a str,
        event_id: &'a str,
        instances: usize,
        sockets: u64,
    }
    text(&Receipt { r#type: "receipt", event_id, instances, sockets })
}

/// With this VM's time, in ms since the epoch, and how far the socket has everything: while nothing
/// happens, no event tells that.
pub fn pong(id: Option<&str>, cursor: Cursor) -> Frame {
    #[derive(Serialize)]
    struct Pong<'a> {
        r#type: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        time: i64,
        cursor: String,
    }
    text(&Pong { r#type: "pong", id, time: clock::now_millis(), cursor: cursor.to_string() })
}

/// `retry_after` goes with [`ErrorCode::Unavailable`] and [`ErrorCode::RateLimited`].
pub fn error(code: ErrorCode, message: &str, id: Option<&str>, retry_after: Option<Duration>) -> Frame {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Refusal<'a> {
        r#type: &'a str,
        code: ErrorCode,
        message: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u128>,
    }
    let retry_after_ms = retry_after.map(|wait| wait.as_millis());
    text(&Refusal { r#type: "error", code, message, id, retry_after_ms })
}

fn text(message: &impl Serialize) -> Frame {
    let mut json = Vec::with_capacity(USUAL);
    // Strings, numbers and JSON that was parsed before: nothing here can fail to serialize.
    let _ = serde_json::to_writer(&mut json, message);
    Frame::text(&json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Sequence, Told};
    use serde_json::{Value, json};

    const CURSOR: Cursor = Cursor { topic: 1, at: 2 };

    fn value(frame: &Frame) -> Value {
        serde_json::from_slice(&frame.payload()).unwrap()
    }

    #[test]
    fn a_refresh_store_is_one_json_text() {
        let events = vec![Bytes::from_static(b"{\"id\":1}"), Bytes::from_static(b"{\"id\":2}")];
        let parts = refresh_store(None, CatchUp { parts: events, missing: None }, CURSOR);
        let whole: Value = serde_json::from_slice(&parts[1..].concat()).unwrap();
        let expected = json!({"type": "refresh-store", "events": [{"id": 1}, {"id": 2}],
            "complete": true, "cursor": "00000001-2"});
        assert_eq!(whole, expected);

        let missing = Some(Hole { reason: Missing::TooOld, from: Some(5_000), to: 7_000 });
        let parts = refresh_store(None, CatchUp { parts: vec![], missing }, CURSOR);
        let whole: Value = serde_json::from_slice(&parts[1..].concat()).unwrap();
        let expected = json!({"type": "refresh-store", "events": [], "complete": false, "reason": "too_old",
            "missing": {"from": 5, "to": 8}, "cursor": "00000001-2"});
        assert_eq!(whole, expected);
    }

    #[test]
    fn a_fleet_of_thousands_is_told_in_part_and_the_rest_counted() {
        let told = |vms: usize| {
            let mut fleet = Fleet::default();
            for vm in 0..vms {
                let beacon = format!(
                    r#"{{"beacon":{{"origin":{{"instance":"9080e6f3a{vm:05}","region":"ams"}},
                    "sequence":{{"started":1,"number":0,"first":1,"firstAt":1}},"beat":1,"clients":5000,
                    "roundTripMs":100,"intervalMs":3600000,"leaving":false}}}}"#
                );
                let Ok(Told::Beacon(beacon)) = Told::decode(beacon.as_bytes()) else { panic!("no beacon") };
                fleet.hear(beacon, clock::now_micros());
            }
            assert_eq!(instances(&fleet).len(), vms, "all, where one asks for them");
            super::fleet(&fleet)
        };
        let frame = value(&told(MOST_TOLD));
        assert_eq!((frame["instances"].as_array().unwrap().len(), frame.get("more")), (MOST_TOLD, None));
        let frame = told(MOST_TOLD + 7);
        assert!(frame.bytes().len() < (1 << 20) / 8, "{}", frame.bytes().len());
        let frame = value(&frame);
        assert_eq!(frame["instances"].as_array().unwrap().len(), MOST_TOLD);
        assert_eq!(
            (&frame["instances"][0]["instance"], &frame["more"]),
            (&json!("9080e6f3a00000"), &json!(7))
        );
    }

    #[test]
    fn an_alert_has_what_the_article_s_page_needs() {
        let heard = value(&event(
            &Event {
                id: "e".into(),
                kind: Kind::Alert,
                channel: None,
                sender_id: "s".into(),
                data: RawValue::from_string("{}".into()).unwrap(),
                timestamp: 7,
                origin: Origin { instance: "i".into(), region: "ams".into() },
                sequence: Sequence::default(),
                wants_receipt: false,
            },
            CURSOR,
            8,
            9,
        ));
        let expected = json!({"type": "alert", "id": "e", "senderId": "s", "data": {}, "timestamp": 7,
            "published": 8, "received": 9,
            "origin": {"instance": "i", "region": "ams"}, "cursor": "00000001-2",
            "message": "ALIEN_LANDING", "regionCode": "ams"});
        assert_eq!(heard, expected);
    }

    #[test]
    fn type_comes_first() {
        let frames = [
            ack(Some("1"), "2"),
            receipt("1", 2, 3),
            pong(None, CURSOR),
            error(ErrorCode::InvalidJson, "no", None, None),
            fleet(&Fleet::default()),
            connected(
                "c",
                &Identity::from_env(&Default::default()).unwrap(),
                &[],
                Duration::from_secs(30),
                CURSOR,
            ),
        ];
        for frame in frames {
            assert!(frame.payload().starts_with(b"{\"type\":"), "{frame:?}");
        }
    }
}
