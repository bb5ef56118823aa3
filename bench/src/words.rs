//! What the peers written in Rust hear and say: the same JSON as the product, byte for byte in length,
//! so that all do the same work. `peers/words.mjs` is the same for those written in JavaScript.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

pub const INSTANCE: &str = "9080e6f3a12345";
pub const REGION: &str = "ams";

/// The answer to a ping.
pub const PONG: &str = r#"{"type":"pong"}"#;

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
    }
    #[derive(Serialize)]
    struct Origin<'a> {
        instance: &'a str,
        region: &'a str,
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let alert = Alert {
        r#type: "alert",
        id: Uuid::new_v4(),
        sender_id,
        data,
        timestamp: now.as_millis(),
        origin: Origin { instance: INSTANCE, region: REGION },
        cursor: format!("579c96c2-{:x}", now.as_micros()),
        message: "ALIEN_LANDING",
        region_code: REGION,
    };
    serde_json::to_string(&alert).unwrap_or_default()
}
