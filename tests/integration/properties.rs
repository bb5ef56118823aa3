//! What holds for every input (`fuzz/src/lib.rs`): bytes of clients, requests, cursors, and messages of the
//! topic, made up by chance. What fails is made as small as it can be, and told with the seed that brings it
//! again.

use alien_alert::channel::Channel;
use alien_alert::clock;
use alien_alert::cursor::{BadCursor, Cursor};
use alien_alert::frame::reader::Message;
use alien_alert::wire::request::Request;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::holds;

/// One message's most bytes here.
const LIMIT: usize = 1_000;

/// What a client sends next, and how it is cut.
#[derive(Clone, Debug)]
enum Said {
    /// In fragments that begin at these places.
    Text(String, Vec<prop::sample::Index>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
}

fn said() -> impl Strategy<Value = Said> {
    prop_oneof![
        ("\\PC{0,80}", vec(any::<prop::sample::Index>(), 0..4))
            .prop_map(|(text, cuts)| Said::Text(text, cuts)),
        vec(any::<u8>(), 0..=125).prop_map(Said::Ping),
        vec(any::<u8>(), 0..=125).prop_map(Said::Pong),
    ]
}

fn frame(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// The frames of what is said; `between` stands between the fragments of each message.
fn frames(said: &[Said], mask: [u8; 4], between: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for one in said {
        match one {
            Said::Ping(payload) => bytes.extend(frame(0x89, payload, mask)),
            Said::Pong(payload) => bytes.extend(frame(0x8a, payload, mask)),
            Said::Text(text, cuts) => {
                let mut places: Vec<_> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
                places.sort_unstable();
                places.push(text.len());
                let (mut begin, last) = (0, places.len() - 1);
                for (number, end) in places.into_iter().enumerate() {
                    let opcode = u8::from(number == 0);
                    let fin = if number == last { 0x80 } else { 0 };
                    bytes.extend(frame(fin | opcode, &text.as_bytes()[begin..end], mask));
                    if number < last {
                        bytes.extend(frame(0x89, between, mask));
                    }
                    begin = end;
                }
            }
        }
    }
    bytes
}

/// A client's message: fields that there are, with values that may be anything.
fn message() -> impl Strategy<Value = String> {
    const KINDS: &[&str] = &["alert", "broadcast", "direct", "subscribe", "unsubscribe", "ping", "pong", ""];
    const FIELDS: &[&str] = &["id", "data", "channel", "targetId", "since", "message"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(KINDS).prop_map(Value::from),
        "\\PC{0,140}".prop_map(Value::from),
    ];
    let any_value = leaf.prop_recursive(3, 16, 4, |inner| {
        let names = prop::sample::select(&["place", "note", "lat", "lon", "x"][..]);
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((names, inner), 0..4).prop_map(|fields| fields
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect()),
        ]
    });
    let fields = vec((prop::sample::select(FIELDS), any_value), 0..5);
    (prop::sample::select(KINDS), fields).prop_map(|(kind, fields)| {
        let mut object = json!({"type": kind});
        for (name, value) in fields {
            object[name] = value;
        }
        object.to_string()
    })
}

/// What was recorded of some version, with some bytes changed.
fn nearly_ours() -> impl Strategy<Value = Vec<u8>> {
    let lines: Vec<_> = include_str!("../recorded/0.1.0.jsonl").lines().collect();
    let changes = vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (prop::sample::select(lines), changes, any::<prop::sample::Index>()).prop_map(|(line, changes, end)| {
        let mut bytes = line.as_bytes().to_vec();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        // Now and then it ends early.
        let length = if end.index(4) == 0 { end.index(bytes.len()) } else { bytes.len() };
        bytes.truncate(length);
        bytes
    })
}

/// What clients and the topic say, as `holds::relay` reads it.
fn talk() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        ("[abc]", message()).prop_map(|(who, said)| format!("{who}{said}")),
        nearly_ours().prop_map(|data| format!("t{}", String::from_utf8_lossy(&data))),
        "[abcjt]\\PC{0,40}",
    ];
    vec(line, 0..20).prop_map(|lines| lines.join("\n"))
}

/// A request that is whole: to the routes that there are and to others, with and without what they want.
fn request() -> impl Strategy<Value = Vec<u8>> {
    const METHODS: &[&str] = &["GET", "HEAD", "POST", "DELETE", "PUT", "OPTIONS", "get", "BREW"];
    const PATHS: &[&str] = &[
        "/",
        "/ws",
        "/alerts",
        "/channels/jobs",
        "/channels/",
        "/connections/0123456789abcdef0123456789abcdef@alone",
        "/connections/0123456789abcdef0123456789abcdef@gone",
        "/health",
        "/_ah/health",
        "/status",
        "/metrics",
        "/openapi.json",
        "/static/client.js",
        "*",
        "example.org:443",
    ];
    const HEADERS: &[&str] = &[
        "accept",
        "accept-encoding",
        "authorization",
        "connection",
        "cookie",
        "expect",
        "fly-client-ip",
        "idempotency-key",
        "if-none-match",
        "origin",
        "sec-websocket-protocol",
        "upgrade",
        "x-forwarded-for",
    ];
    // Of these letters a target and a line can be made, so that no request is refused before its route.
    let path = prop_oneof![
        prop::sample::select(PATHS).prop_map(String::from),
        "/[A-Za-z0-9%._~!$&()*+,;=:@/-]{0,60}",
        "/(channels|connections|static|_ah)/[A-Za-z0-9%._~@:/-]{0,140}",
    ];
    let query = prop_oneof!["", "\\?[A-Za-z0-9%._=&,+-]{0,60}"];
    let line = (prop::sample::select(HEADERS), "[!-~]([ -~]{0,60}[!-~])?");
    let line = line.prop_map(|(name, value)| format!("{name}: {value}\r\n"));
    let key = prop_oneof![Just(String::new()), Just(format!("authorization: Bearer {}\r\n", holds::API_KEY))];
    let body = prop_oneof![
        Just(Vec::new()),
        message().prop_map(String::into_bytes),
        vec(any::<u8>(), 0..100),
        vec(Just(b' '), 16_000..17_000),
    ];
    let parts = (prop::sample::select(METHODS), path, query, vec(line, 0..6), key, body, any::<bool>());
    parts.prop_map(|(method, path, query, lines, key, body, is_chunked)| {
        let query = if path.starts_with('/') { query } else { String::new() };
        let head = format!("{method} {path}{query} HTTP/1.1\r\nhost: vm\r\n{key}{}", lines.concat());
        [head.as_bytes(), &framed(&body, is_chunked)].concat()
    })
}

/// A request for a socket, with all that it needs, and what is said on it.
fn talk_on_a_socket() -> impl Strategy<Value = Vec<u8>> {
    const NEEDED: &str = "host: vm\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let one = prop_oneof![message().prop_map(|text| Said::Text(text, Vec::new())), said()];
    let query = "(\\?since=[0-9a-f-]{0,20}&channels=[a-z:,]{0,40})?";
    (query, vec(one, 0..6), any::<[u8; 4]>()).prop_map(|(query, mut said, mask)| {
        said.push(Said::Text(r#"{"type":"ping","id":"last"}"#.to_owned(), Vec::new()));
        let head = format!("GET /ws{query} HTTP/1.1\r\n{NEEDED}\r\n");
        [head.as_bytes(), &frames(&said, mask, b"between")].concat()
    })
}

/// What tells a body's length, and the body.
fn framed(body: &[u8], is_chunked: bool) -> Vec<u8> {
    if !is_chunked {
        return [format!("content-length: {}\r\n\r\n", body.len()).as_bytes(), body].concat();
    }
    let mut framed = b"transfer-encoding: chunked\r\n\r\n".to_vec();
    for chunk in body.chunks(1_000) {
        framed.extend(format!("{:x}\r\n", chunk.len()).as_bytes());
        framed.extend([chunk, b"\r\n"].concat());
    }
    framed.extend(b"0\r\n\r\n");
    framed
}

proptest! {
    #[test]
    fn what_is_said_is_heard_however_it_is_cut_and_masked(
        said in vec(said(), 0..8),
        mask: [u8; 4],
        between in vec(any::<u8>(), 0..=125),
        sizes in vec(1_usize..300, 1..6),
    ) {
        let mut expected = Vec::new();
        for one in &said {
            match one {
                Said::Ping(payload) => expected.push(Message::Ping(payload.clone())),
                Said::Pong(_) => expected.push(Message::Pong),
                Said::Text(text, cuts) => {
                    expected.extend(cuts.iter().map(|_| Message::Ping(between.clone())));
                    expected.push(Message::Text(text.clone()));
                }
            }
        }
        let bytes = frames(&said, mask, &between);
        prop_assert_eq!(holds::read(&bytes, &sizes, LIMIT), (expected, Ok(())));
    }

    #[test]
    fn any_bytes_are_read_alike_whole_and_in_pieces(
        begun in vec(said(), 0..3),
        bytes in vec(any::<u8>(), 0..400),
        sizes in vec(1_usize..50, 1..6),
    ) {
        let bytes = [frames(&begun, [1, 2, 3, 4], b""), bytes].concat();
        holds::frames(&bytes, &sizes, LIMIT);
    }

    #[test]
    fn any_text_is_a_request_or_a_short_word_on_what_is_wrong(text in prop_oneof![message(), "\\PC{0,300}"]) {
        holds::requests(&text);
    }

    #[test]
    fn an_alert_s_place_is_taken_exactly_where_it_is_one(
        lat in prop_oneof![-100.0..100.0, Just(90.0), Just(-90.0)],
        lon in prop_oneof![-200.0..200.0, Just(180.0), Just(-180.0)],
        place in "\\PC{0,130}",
    ) {
        let text = json!({"type": "alert", "data": {"lat": lat, "lon": lon, "place": place}}).to_string();
        let fits = f64::abs(lat) <= 90.0 && f64::abs(lon) <= 180.0 && place.chars().count() <= 120;
        prop_assert_eq!(Request::parse(&text).is_ok(), fits, "{}", text);
    }

    #[test]
    fn a_cursor_is_read_back_and_nothing_else_is_one(topic: u32, other: u32, ago in 0_i64..1 << 50, text in "\\PC{0,40}") {
        let cursor = Cursor { topic, at: clock::now_micros() - ago };
        if cursor.at >= 0 {
            prop_assert_eq!(Cursor::parse(&cursor.to_string(), topic), Ok(cursor));
            if other != topic {
                prop_assert_eq!(Cursor::parse(&cursor.to_string(), other), Err(BadCursor::OtherTopic));
            }
        }
        holds::cursors(topic, &text);
    }

    #[test]
    fn what_can_be_read_of_the_topic_is_passed_on_as_it_was(data in prop_oneof![nearly_ours(), vec(any::<u8>(), 0..200)]) {
        holds::topic(&data);
    }

    #[test]
    fn a_channel_s_name_is_short_and_visible(name in "\\PC{0,140}|[ -~]{0,140}|user:\\PC{0,20}") {
        if let Ok(channel) = Channel::new(&name) {
            prop_assert_eq!(channel.as_str(), &name);
            prop_assert!((1..=128).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }

    #[test]
    fn any_request_has_an_answer_that_fits(request in request()) {
        let told = holds::http(&request);
        let told = String::from_utf8_lossy(&told);
        prop_assert!(told.starts_with("HTTP/1.1 "), "{told}");
        // Of a route, not of the reader of requests, which says nothing more.
        prop_assert!(told.contains("\r\ncontent-security-policy: "), "{told}");
    }

    #[test]
    fn whatever_is_said_on_a_socket_what_is_asked_last_is_answered_and_its_place_is_free_afterwards(
        talk in talk_on_a_socket(),
    ) {
        let told = String::from_utf8_lossy(&holds::http(&talk)).into_owned();
        prop_assert!(told.starts_with("HTTP/1.1 101 ") && told.contains(r#"{"type":"pong","id":"last""#), "{told}");
    }

    #[test]
    fn whatever_clients_and_the_topic_say_a_vm_goes_on(talk in talk()) {
        holds::relay(&talk);
    }
}

/// What the fuzzer begins with, and what it has found.
#[test]
fn it_holds_for_what_the_fuzzer_knows() {
    let inputs = |target: &str| {
        let folder = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
        let inputs: Vec<_> = files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
        assert!(!inputs.is_empty(), "{folder}");
        inputs
    };
    // A text of the fuzzer ends where it is none any more.
    let text = |input: &[u8]| {
        let end = str::from_utf8(input).map_or_else(|error| error.valid_up_to(), str::len);
        String::from_utf8_lossy(&input[..end]).into_owned()
    };
    let texts = |target: &str| -> Vec<_> { inputs(target).iter().map(|input| text(input)).collect() };
    inputs("frames").iter().for_each(|input| holds::frames_in_pieces(input));
    for input in inputs("cursors") {
        let (topic, rest) = input.split_first_chunk().unwrap_or((&[0; 4], &[]));
        holds::cursors(u32::from_le_bytes(*topic), &text(rest));
    }
    texts("requests").iter().for_each(|text| holds::requests(text));
    inputs("topic").iter().for_each(|data| holds::topic(data));
    for bytes in inputs("http") {
        holds::http(&bytes);
    }
    texts("relay").iter().for_each(|text| holds::relay(text));
}
