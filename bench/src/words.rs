//! What the peers written in Rust hear and say: the same JSON as the product, byte for byte in length,
//! so that all do the same work. `peers/words.mjs` is the same for those written in JavaScript.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

pub const INSTANCE: &str = "9080e6f3a12345";
pub const REGION: &str = "ams";

/// What a client asks for.
pub enum Request {
    Alert(Box<RawValue>),
    Ping,
}

/// Reads a client's message; none where it is neither of the two.
pub fn request(text: &[u8]) -> Option<Request> {
    #[derive(Deserialize)]
    struct Fields<'a> {
        r#type: &'a str,
        data: Option<Box<RawValue>>,
    }
    let fields: Fields = serde_json::from_slice(text).ok()?;
    match fields.r#type {
        "alert" => Some(Request::Alert(fields.data?)),
        "ping" => Some(Request::Ping),
        _ => None,
    }
}

/// A connection's name.
pub fn client_id() -> String {
    format!("{}@{INSTANCE}", Uuid::new_v4().simple())
}

/// The answer to a ping.
pub fn pong() -> String {
    #[derive(Serialize)]
    struct Pong<'a> {
        r#type: &'a str,
        time: u128,
        cursor: String,
    }
    let now = now();
    let pong = Pong { r#type: "pong", time: now.as_millis(), cursor: cursor(now) };
    serde_json::to_string(&pong).unwrap_or_default()
}

/// The alert as every socket hears it.
pub fn alert(sender_id: &str, data: &RawValue) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Alert<'a> {
        r#type: &'a str,
        id: Uuid,
        sender_id: &'a str,
        data: &'a RawValue,
        timestamp: u128,
        origin: Origin<'a>,
        cursor: String,
        message: &'a str,
        region_code: &'a str,
        published: u128,
        received: u128,
    }
    #[derive(Serialize)]
    struct Origin<'a> {
        instance: &'a str,
        region: &'a str,
    }
    let now = now();
    let alert = Alert {
        r#type: "alert",
        id: Uuid::new_v4(),
        sender_id,
        data,
        timestamp: now.as_millis(),
        origin: Origin { instance: INSTANCE, region: REGION },
        cursor: cursor(now),
        message: "ALIEN_LANDING",
        region_code: REGION,
        published: now.as_millis(),
        received: now.as_millis(),
    };
    serde_json::to_string(&alert).unwrap_or_default()
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn cursor(time: Duration) -> String {
    format!("579c96c2-{:x}", time.as_micros())
}
