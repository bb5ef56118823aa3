//! What a client may send, checked field by field: what is wrong is told by the field's name and
//! by what is accepted.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::ErrorCode;
use crate::channel::Channel;
use crate::connections::ClientId;
use crate::event::Kind;

/// The article's page names its alert so, without a `type`.
pub const ALIEN_LANDING: &str = "ALIEN_LANDING";

const MAX_ID: usize = 64;
const MAX_TYPE: usize = 64;
const MAX_PLACE: usize = 120;
const MAX_NOTE: usize = 500;

/// The types that mean something on this wire; an app's events are called something else.
const RESERVED: [&str; 13] = [
    "ack",
    "alert",
    "broadcast",
    "connected",
    "direct",
    "error",
    "fleet",
    "ping",
    "pong",
    "receipt",
    "refresh-store",
    "subscribe",
    "unsubscribe",
];

/// A client's message.
#[derive(Debug)]
pub struct Request {
    /// The client's own name for it.
    pub id: Option<String>,
    pub body: Body,
}

#[derive(Debug)]
pub enum Body {
    Ping,
    Publish {
        kind: Kind,
        channel: Option<Channel>,
        data: Box<RawValue>,
    },
    /// To one connection.
    Direct {
        target: ClientId,
        data: Box<RawValue>,
    },
    /// `since` is checked when it is used: a bad one is no reason not to join.
    Subscribe {
        channel: Channel,
        since: Option<String>,
    },
    Unsubscribe {
        channel: Channel,
    },
}

/// Why a message is refused.
#[derive(Debug)]
pub struct Invalid {
    pub id: Option<String>,
    pub code: ErrorCode,
    pub message: String,
}

/// The fields as they came; `null` is as good as none. Unknown ones are ignored.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    channel: Option<&'a RawValue>,
    #[serde(borrow, rename = "targetId")]
    target: Option<&'a RawValue>,
    #[serde(borrow)]
    since: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
}

/// The red button's `data`, with nothing else passed on.
#[derive(Default, Deserialize, Serialize)]
struct Landing {
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lat: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lon: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

impl Request {
    /// # Errors
    /// What is wrong with it, ready to be told to the client.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let fields = fields(text)?;
        let id = fields.id.map(id).transpose()?;
        match body(&fields) {
            Ok(body) => Ok(Self { id, body }),
            Err(invalid) => Err(Invalid { id, ..invalid }),
        }
    }
}

/// The id of a message that is answered without being read any further.
pub fn id_of(text: &str) -> Option<String> {
    id(fields(text).ok()?.id?).ok()
}

fn fields(text: &str) -> Result<Fields<'_>, Invalid> {
    // An array would be read as the fields in their order.
    let object = text.trim_start().starts_with('{');
    match serde_json::from_str(text) {
        Ok(fields) if object => Ok(fields),
        Err(error) if !error.is_data() => {
            Err(invalid(ErrorCode::InvalidJson, format!("the message is not JSON: {error}")))
        }
        Err(error) if object => Err(invalid(ErrorCode::InvalidField, error.to_string())),
        _ => Err(invalid(ErrorCode::InvalidField, "the message: expected an object with a \"type\"")),
    }
}

fn body(fields: &Fields<'_>) -> Result<Body, Invalid> {
    let kind = match (fields.kind, fields.message.and_then(read::<String>).as_deref()) {
        (Some(kind), _) => read::<String>(kind)
            .ok_or_else(|| invalid(ErrorCode::InvalidField, "type: expected a string such as \"alert\""))?,
        (None, Some(ALIEN_LANDING)) => "alert".into(),
        (None, _) => {
            return Err(invalid(
                ErrorCode::InvalidField,
                "type: missing, expected a string such as \"alert\"",
            ));
        }
    };
    match kind.as_str() {
        "ping" => Ok(Body::Ping),
        "alert" => Ok(Body::Publish { kind: Kind::Alert, channel: None, data: landing(fields.data)? }),
        "broadcast" => {
            let channel = fields.channel.map(channel).transpose()?;
            Ok(Body::Publish { kind: Kind::Broadcast, channel, data: any(fields.data) })
        }
        "direct" => {
            let target = fields.target.and_then(read::<String>).and_then(|id| ClientId::parse(&id));
            let target = target.ok_or_else(|| {
                invalid(ErrorCode::InvalidField, "targetId: expected a clientId, as \"connected\" tells it")
            })?;
            Ok(Body::Direct { target, data: any(fields.data) })
        }
        "subscribe" => {
            let since = fields.since.map(|raw| read(raw).unwrap_or_default());
            Ok(Body::Subscribe { channel: required_channel(fields)?, since })
        }
        "unsubscribe" => Ok(Body::Unsubscribe { channel: required_channel(fields)? }),
        other => {
            let shown: String = other.chars().take(40).collect();
            let message = format!(
                "type: {shown:?} is unknown, expected alert, broadcast, direct, subscribe, unsubscribe or ping"
            );
            Err(invalid(ErrorCode::UnknownType, message))
        }
    }
}

fn any(data: Option<&RawValue>) -> Box<RawValue> {
    data.map_or_else(|| RawValue::NULL.to_owned(), ToOwned::to_owned)
}

fn required_channel(fields: &Fields<'_>) -> Result<Channel, Invalid> {
    channel(fields.channel.unwrap_or(RawValue::NULL))
}

fn channel(raw: &RawValue) -> Result<Channel, Invalid> {
    let name = read::<String>(raw).unwrap_or_default();
    Channel::new(&name).map_err(|bad| invalid(ErrorCode::InvalidField, bad.to_string()))
}

/// The red button's `data`, checked; what is not known of it is left out.
pub fn landing_of(json: &str) -> Result<Box<RawValue>, Invalid> {
    let data = serde_json::from_str(json)
        .map_err(|error| invalid(ErrorCode::InvalidJson, format!("the body is not JSON: {error}")))?;
    landing(data)
}

/// An app's own event, as a backend sends it: `{"type", "data"}`.
pub fn app_event(json: &str) -> Result<(Kind, Box<RawValue>), Invalid> {
    let fields = fields(json)?;
    let name = fields.kind.and_then(read::<String>).unwrap_or_default();
    if !is_app_type(&name) {
        let message = format!(
            "type: expected a name of your own, 1 to {MAX_TYPE} of A-Z a-z 0-9 . _ : - /, and none of {}",
            RESERVED.join(", ")
        );
        return Err(invalid(ErrorCode::InvalidField, message));
    }
    Ok((Kind::App(name), any(fields.data)))
}

/// Whether an app's own event may be called so.
pub fn is_app_type(name: &str) -> bool {
    let is_legal = |c: char| c.is_ascii_alphanumeric() || "._:-/".contains(c);
    (1..=MAX_TYPE).contains(&name.len()) && name.chars().all(is_legal) && !RESERVED.contains(&name)
}

/// An id that came by another way than a message, checked alike.
pub fn checked_id(id: &str) -> Result<String, Invalid> {
    Some(id.to_owned()).filter(|id| is_id(id)).ok_or_else(bad_id)
}

/// Whether an event may have that id.
pub fn is_id(id: &str) -> bool {
    !id.is_empty() && id.chars().count() <= MAX_ID && !id.chars().any(char::is_control)
}

fn bad_id() -> Invalid {
    invalid(ErrorCode::InvalidField, format!("id: expected a string of 1 to {MAX_ID} printable characters"))
}

fn id(raw: &RawValue) -> Result<String, Invalid> {
    read::<String>(raw).filter(|id| is_id(id)).ok_or_else(bad_id)
}

fn landing(data: Option<&RawValue>) -> Result<Box<RawValue>, Invalid> {
    #[derive(Deserialize)]
    struct Data<'a> {
        #[serde(borrow)]
        place: Option<&'a RawValue>,
        #[serde(borrow)]
        lat: Option<&'a RawValue>,
        #[serde(borrow)]
        lon: Option<&'a RawValue>,
        #[serde(borrow)]
        note: Option<&'a RawValue>,
    }

    let mut landing = Landing::default();
    if let Some(data) = data {
        let fields: Data<'_> = Some(data.get())
            .filter(|json| json.starts_with('{'))
            .and_then(|json| serde_json::from_str(json).ok())
            .ok_or_else(|| {
                invalid(ErrorCode::InvalidField, "data: expected an object with place, lat, lon, note")
            })?;
        landing.place = text("data.place", fields.place, MAX_PLACE)?;
        landing.lat = degrees("data.lat", fields.lat, 90.0)?;
        landing.lon = degrees("data.lon", fields.lon, 180.0)?;
        landing.note = text("data.note", fields.note, MAX_NOTE)?;
        if landing.lat.is_some() != landing.lon.is_some() {
            return Err(invalid(ErrorCode::InvalidField, "data: lat and lon come together or not at all"));
        }
    }
    // Strings and finite numbers always serialize.
    Ok(to_raw_value(&landing).unwrap_or_default())
}

fn text(name: &str, raw: Option<&RawValue>, most: usize) -> Result<Option<String>, Invalid> {
    let Some(raw) = raw else { return Ok(None) };
    match read::<String>(raw) {
        Some(text) if text.chars().count() <= most => Ok(Some(text)),
        _ => Err(invalid(
            ErrorCode::InvalidField,
            format!("{name}: expected a string of at most {most} characters"),
        )),
    }
}

fn degrees(name: &str, raw: Option<&RawValue>, most: f64) -> Result<Option<f64>, Invalid> {
    let Some(raw) = raw else { return Ok(None) };
    match read::<f64>(raw) {
        Some(degrees) if degrees.abs() <= most => Ok(Some(degrees)),
        _ => {
            Err(invalid(ErrorCode::InvalidField, format!("{name}: expected a number from -{most} to {most}")))
        }
    }
}

fn read<T: DeserializeOwned>(raw: &RawValue) -> Option<T> {
    serde_json::from_str(raw.get()).ok()
}

fn invalid(code: ErrorCode, message: impl Into<String>) -> Invalid {
    Invalid { id: None, code, message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(text: &str) -> (Kind, String) {
        match Request::parse(text).unwrap().body {
            Body::Publish { kind, data, .. } => (kind, data.get().to_owned()),
            other => panic!("{text} is {other:?}"),
        }
    }

    #[test]
    fn reads_every_type() {
        assert!(matches!(Request::parse(r#"{"type":"ping"}"#).unwrap().body, Body::Ping));
        assert_eq!(published(r#"{"type":"alert"}"#), (Kind::Alert, "{}".into()));
        for nothing in ["null", "{}", r#"{"place":null,"lat":null,"lon":null,"note":null}"#] {
            let text = format!(r#"{{"type":"alert","data":{nothing}}}"#);
            assert_eq!(published(&text), (Kind::Alert, "{}".into()));
            assert_eq!(landing_of(nothing).unwrap().get(), "{}");
        }
        assert_eq!(published(r#"{"type":"broadcast","channel":null}"#), (Kind::Broadcast, "null".into()));
        assert_eq!(
            published(r#"{"data":{"place":"Ürümqi","lat":43.8,"lon":87.6,"x":1},"type":"alert"}"#),
            (Kind::Alert, r#"{"place":"Ürümqi","lat":43.8,"lon":87.6}"#.into()),
        );
        assert_eq!(
            published(r#"{"type":"broadcast","data":[1, "a"]}"#),
            (Kind::Broadcast, r#"[1, "a"]"#.into())
        );
        assert_eq!(published(r#"{"type":"broadcast"}"#), (Kind::Broadcast, "null".into()));
        assert_eq!(published(r#"{"message":"ALIEN_LANDING","timestamp":1}"#), (Kind::Alert, "{}".into()));
        assert_eq!(Request::parse(r#"{"type":"ping","id":"7"}"#).unwrap().id.as_deref(), Some("7"));
    }

    #[test]
    fn says_what_is_wrong() {
        let long = |field: &str, length| {
            format!(r#"{{"type":"alert","data":{{"{field}":"{}"}}}}"#, "x".repeat(length))
        };
        for (text, code, field) in [
            ("", ErrorCode::InvalidJson, "not JSON"),
            ("{\"type\":", ErrorCode::InvalidJson, "not JSON"),
            ("{} {}", ErrorCode::InvalidJson, "not JSON"),
            ("1", ErrorCode::InvalidField, "object"),
            ("[\"alert\"]", ErrorCode::InvalidField, "object"),
            (r#"["ping",null,null,null,null,null,null]"#, ErrorCode::InvalidField, "object"),
            ("null", ErrorCode::InvalidField, "object"),
            ("{}", ErrorCode::InvalidField, "type"),
            (r#"{"type":1}"#, ErrorCode::InvalidField, "type"),
            (r#"{"type":"alert","type":"ping"}"#, ErrorCode::InvalidField, "duplicate"),
            (r#"{"message":"HELLO"}"#, ErrorCode::InvalidField, "type"),
            (r#"{"type":"dance"}"#, ErrorCode::UnknownType, "dance"),
            (r#"{"type":"ping","id":1}"#, ErrorCode::InvalidField, "id:"),
            (r#"{"type":"ping","id":""}"#, ErrorCode::InvalidField, "id:"),
            (r#"{"type":"ping","id":"\u0000"}"#, ErrorCode::InvalidField, "id:"),
            (&format!(r#"{{"type":"ping","id":"{}"}}"#, "x".repeat(65)), ErrorCode::InvalidField, "id:"),
            (r#"{"type":"alert","data":"x"}"#, ErrorCode::InvalidField, "data:"),
            (r#"{"type":"alert","data":[1]}"#, ErrorCode::InvalidField, "data:"),
            (r#"{"type":"alert","data":{"lat":91,"lon":0}}"#, ErrorCode::InvalidField, "data.lat"),
            (r#"{"type":"alert","data":{"lat":1e999,"lon":0}}"#, ErrorCode::InvalidField, "data.lat"),
            (r#"{"type":"alert","data":{"lat":0,"lon":-180.5}}"#, ErrorCode::InvalidField, "data.lon"),
            (r#"{"type":"alert","data":{"lat":"0","lon":0}}"#, ErrorCode::InvalidField, "data.lat"),
            (r#"{"type":"alert","data":{"lat":1}}"#, ErrorCode::InvalidField, "together"),
            (r#"{"type":"alert","data":{"place":7}}"#, ErrorCode::InvalidField, "data.place"),
            (&long("place", 121), ErrorCode::InvalidField, "data.place"),
            (&long("note", 501), ErrorCode::InvalidField, "data.note"),
            (r#"{"type":"direct","data":1}"#, ErrorCode::InvalidField, "targetId"),
            (r#"{"type":"direct","targetId":"b@a"}"#, ErrorCode::InvalidField, "targetId"),
            (r#"{"type":"broadcast","channel":"a b"}"#, ErrorCode::InvalidField, "channel"),
            (r#"{"type":"subscribe"}"#, ErrorCode::InvalidField, "channel"),
            (r#"{"type":"unsubscribe","channel":7}"#, ErrorCode::InvalidField, "channel"),
        ] {
            let error = Request::parse(text).expect_err(text);
            assert_eq!(error.code, code, "{text}: {}", error.message);
            assert!(error.message.contains(field), "{text}: {}", error.message);
        }
        assert!(Request::parse(&long("place", 120)).is_ok());
        assert!(Request::parse(&long("note", 500)).is_ok());
    }

    #[test]
    fn an_app_s_event_has_a_name_of_its_own() {
        let (kind, data) = app_event(r#"{"type":"change","data":{"name":"A"}}"#).unwrap();
        assert_eq!((kind.name(), data.get()), ("change", r#"{"name":"A"}"#));
        for json in ["{}", r#"{"type":""}"#, r#"{"type":"alert"}"#, r#"{"type":"a b"}"#, r#"{"type":1}"#] {
            assert!(app_event(json).unwrap_err().message.starts_with("type:"), "{json}");
        }
        assert_eq!(app_event("[").unwrap_err().code, ErrorCode::InvalidJson);
    }

    #[test]
    fn one_who_joins_a_channel_may_say_since_when() {
        for (since, expected) in [("", None), (r#","since":null"#, None), (r#","since":"1-2""#, Some("1-2"))]
        {
            let text = format!(r#"{{"type":"subscribe","channel":"c"{since}}}"#);
            let Body::Subscribe { channel, since } = Request::parse(&text).unwrap().body else {
                panic!("{text} is something else")
            };
            assert_eq!((channel.as_str(), since.as_deref()), ("c", expected));
        }
    }

    #[test]
    fn an_error_carries_the_id() {
        let unknown = r#"{"type":"dance","id":"7"}"#;
        assert_eq!(Request::parse(unknown).unwrap_err().id.as_deref(), Some("7"));
        assert_eq!(id_of(unknown).as_deref(), Some("7"));
        for text in ["", "{}", r#"{"type":"ping","id":""}"#] {
            assert_eq!(id_of(text), None, "{text}");
        }
    }

    #[test]
    fn an_id_that_comes_by_another_way_is_checked_alike() {
        let longest = "é".repeat(MAX_ID);
        for id in ["7", &longest] {
            assert_eq!(checked_id(id).unwrap(), id);
        }
        for id in ["", "\n", &format!("{longest}x")] {
            assert!(checked_id(id).unwrap_err().message.starts_with("id:"), "{id:?}");
        }
    }
}
