//! RFC 6455, rule by rule, on raw sockets: what a client may send is heard, what it may not ends its own
//! socket with the right code, and no other socket notices.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::client::{Client, Raw};
use crate::support::http::API_KEY;
use crate::support::vm::Vm;
use crate::support::{until, within};

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;
/// The last frame of its message.
const FIN: u8 = 0x80;

const PING_TEXT: &[u8] = br#"{"type":"ping","id":"settle"}"#;

/// A VM, and a socket on it to which nothing must happen.
struct Court {
    vm: Vm,
    witness: Client,
}

impl Court {
    async fn sit() -> Self {
        let settings = [("UPGRADE_RATE", "10000"), ("UPGRADE_BURST", "10000"), ("API_KEY", API_KEY)];
        let vm = Vm::alone(&settings).await;
        let witness = vm.connect().await;
        Self { vm, witness }
    }

    /// What these bytes, sent after the handshake, end the socket with; anything but a close is passed over.
    async fn sentence(&self, bytes: &[u8]) -> Option<u16> {
        let mut raw = Raw::connect(self.vm.port).await;
        raw.0.write_all(bytes).await.unwrap();
        let code = raw.closed().await;
        // Nothing more comes from here, so the server need not wait for this side's close.
        let _ = raw.0.get_mut().shutdown().await;
        let mut rest = Vec::new();
        let _ = within("end of the connection", raw.0.read_to_end(&mut rest)).await;
        assert_eq!(rest, b"", "nothing comes after a close");
        code
    }

    async fn assert_ends(&self, code: u16, cases: &[(&str, Vec<u8>)]) {
        for (name, bytes) in cases {
            assert_eq!(self.sentence(bytes).await, Some(code), "{name}");
        }
    }

    /// The witness is still there, and has heard nothing of all this but the fleet's figures.
    async fn rise(mut self) {
        assert_eq!(self.witness.settle().await, Vec::<serde_json::Value>::new());
        until("end of all others", async || (self.vm.status().await["connectedClients"] == 1).then_some(()))
            .await;
    }
}

/// A frame as a client must send it; the mask is not zero, so that it must be taken off.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = match payload.len() {
        length @ 0..126 => vec![length as u8],
        length @ 126..=0xffff => [&[126][..], &(length as u16).to_be_bytes()].concat(),
        length => [&[127][..], &(length as u64).to_be_bytes()].concat(),
    };
    framed(first, length, payload)
}

/// The same with the length in bytes of one's own choice, its first without the mask's bit.
fn framed(first: u8, mut length: Vec<u8>, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0xa5, 0x5a, 0x0f, 0xf0];
    length[0] |= 0x80;
    let masked = payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    [first].into_iter().chain(length).chain(MASK).chain(masked).collect()
}

fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(FIN | CLOSE, &[&code.to_be_bytes()[..], reason].concat())
}

/// The frames up to the answer to `PING_TEXT`, but for those that come by themselves.
async fn answers(raw: &mut Raw) -> Vec<(u8, Vec<u8>)> {
    let mut heard = Vec::new();
    loop {
        let (opcode, payload) = within("frame", raw.next()).await.unwrap();
        let said = String::from_utf8_lossy(&payload);
        if said.starts_with(r#"{"type":"pong","id":"settle""#) {
            return heard;
        }
        let by_itself = ["connected", "refresh-store", "fleet"];
        if !by_itself.iter().any(|name| said.starts_with(&format!(r#"{{"type":"{name}""#))) {
            heard.push((opcode, payload));
        }
    }
}

#[tokio::test]
async fn frames_5_1_a_client_s_are_masked_and_a_server_s_are_not() {
    let court = Court::sit().await;
    let cases = [
        ("text", vec![FIN | TEXT, 2, b'{', b'}']),
        ("empty text", vec![FIN | TEXT, 0]),
        ("a first fragment", vec![TEXT, 1, b'{']),
        ("ping", vec![FIN | PING, 0]),
        ("pong", vec![FIN | PONG, 0]),
        ("close", vec![FIN | CLOSE, 2, 3, 0xe8]),
        ("a continuation", [frame(TEXT, b"{"), vec![FIN, 1, b'}']].concat()),
    ];
    court.assert_ends(1002, &cases).await;

    let mut raw = Raw::connect(court.vm.port).await;
    raw.0.write_all(&[frame(FIN | PING, b"hello"), frame(FIN | TEXT, PING_TEXT)].concat()).await.unwrap();
    loop {
        let first = within("frame", raw.0.read_u8()).await.unwrap();
        assert!(first & FIN != 0 && first & 0x70 == 0, "whole, and nothing of an extension: {first:#x}");
        let length = match raw.0.read_u8().await.unwrap() {
            masked @ 0x80.. => panic!("masked: {masked:#x}"),
            126 => usize::from(raw.0.read_u16().await.unwrap()),
            127 => usize::try_from(raw.0.read_u64().await.unwrap()).unwrap(),
            short => usize::from(short),
        };
        let mut payload = vec![0; length];
        raw.0.read_exact(&mut payload).await.unwrap();
        if payload.starts_with(br#"{"type":"pong""#) {
            break;
        }
    }
    drop(raw);
    court.rise().await;
}

#[tokio::test]
async fn frames_5_2_reserved_bits_and_opcodes_have_no_meaning() {
    let court = Court::sit().await;
    let mut cases = Vec::new();
    for bits in 1..8 {
        for opcode in [TEXT, CLOSE, PING, PONG] {
            cases.push(("a reserved bit", frame(FIN | bits << 4 | opcode, b"")));
        }
        let continued = [frame(TEXT, b"{"), frame(FIN | bits << 4 | CONTINUATION, b"}")].concat();
        cases.push(("a reserved bit in a continuation", continued));
    }
    for opcode in (0x3..=0x7).chain(0xb..=0xf) {
        cases.push(("a reserved opcode", frame(FIN | opcode, b"{}")));
        cases.push((
            "a reserved opcode between fragments",
            [frame(TEXT, b"{"), frame(FIN | opcode, b"")].concat(),
        ));
    }
    court.assert_ends(1002, &cases).await;
    court.rise().await;
}

#[tokio::test]
async fn frames_5_2_a_length_takes_as_few_bytes_as_it_needs() {
    let court = Court::sit().await;
    let in_two = |length: u16| [&[126][..], &length.to_be_bytes()].concat();
    let in_eight = |length: u64| [&[127][..], &length.to_be_bytes()].concat();
    let long = |length: usize| vec![b' '; length];
    let cases = [
        ("0 in two bytes", framed(FIN | TEXT, in_two(0), b"")),
        ("125 in two bytes", framed(FIN | TEXT, in_two(125), &long(125))),
        ("125 in eight bytes", framed(FIN | TEXT, in_eight(125), &long(125))),
        ("126 in eight bytes", framed(FIN | TEXT, in_eight(126), &long(126))),
        ("the highest bit", framed(FIN | TEXT, in_eight(1 << 63), b"")),
        ("all bits", framed(FIN | TEXT, in_eight(u64::MAX), b"")),
    ];
    court.assert_ends(1002, &cases).await;
    let cases = [
        ("more than a message may have", frame(FIN | TEXT, &long((16 << 10) + 1))),
        ("more than there is room for", framed(FIN | TEXT, in_eight(u64::MAX >> 1), b"")),
        ("the least that needs eight bytes", framed(FIN | TEXT, in_eight(1 << 16), b"")),
    ];
    court.assert_ends(1009, &cases).await;

    // At each border of the encoding, a message is heard: blanks before it are part of its JSON.
    let mut raw = Raw::connect(court.vm.port).await;
    for length in [125, 126, 127, 128, 16 << 10] {
        let text = [long(length - PING_TEXT.len()), PING_TEXT.into()].concat();
        raw.0.write_all(&frame(FIN | TEXT, &text)).await.unwrap();
        assert_eq!(answers(&mut raw).await, []);
    }
    drop(raw);
    court.rise().await;
}

#[tokio::test]
async fn fragments_5_4_make_one_message_with_control_frames_between() {
    let court = Court::sit().await;
    let mut raw = Raw::connect(court.vm.port).await;
    // A byte a fragment, empty ones too, and each of the control frames between them.
    let mut bytes = frame(TEXT, b"");
    for byte in PING_TEXT {
        bytes.extend(frame(FIN | PONG, b"unasked"));
        bytes.extend(frame(CONTINUATION, b""));
        bytes.extend(frame(CONTINUATION, &[*byte]));
        bytes.extend(frame(FIN | PING, &[*byte]));
    }
    bytes.extend(frame(FIN | CONTINUATION, b""));
    raw.0.write_all(&bytes).await.unwrap();
    let pongs: Vec<_> = PING_TEXT.iter().map(|byte| (PONG, vec![*byte])).collect();
    assert_eq!(answers(&mut raw).await, pongs, "each ping has its pong, in order");
    drop(raw);

    let cases = [
        ("nothing to continue", frame(FIN | CONTINUATION, b"{}")),
        ("nothing to continue, and more to come", frame(CONTINUATION, b"{")),
        (
            "nothing to continue any longer",
            [frame(FIN | TEXT, PING_TEXT), frame(FIN | CONTINUATION, b"")].concat(),
        ),
        ("a message within a message", [frame(TEXT, b"{"), frame(FIN | TEXT, b"{}")].concat()),
        ("the beginning of another", [frame(TEXT, b"{"), frame(TEXT, b"{")].concat()),
    ];
    court.assert_ends(1002, &cases).await;
    let half = vec![b' '; 9 << 10];
    let cases = [
        ("fragments that are too much together", [frame(TEXT, &half), frame(FIN, &half)].concat()),
        ("the same before the last is there", [frame(TEXT, &half), frame(CONTINUATION, &half)].concat()),
        (
            "as soon as the length is known",
            [frame(TEXT, &half), framed(FIN, [&[126][..], &u16::MAX.to_be_bytes()].concat(), b"")].concat(),
        ),
    ];
    court.assert_ends(1009, &cases).await;
    court.rise().await;
}

#[tokio::test]
async fn control_frames_5_5_are_short_and_whole() {
    let court = Court::sit().await;
    let mut cases = Vec::new();
    for opcode in [CLOSE, PING, PONG] {
        cases.push(("of 126 bytes", frame(FIN | opcode, &[b'x'; 126])));
        cases.push(("of 64 KiB", frame(FIN | opcode, &[b'x'; 1 << 16])));
        cases.push(("in fragments", frame(opcode, b"")));
        cases.push(("in fragments within a message", [frame(TEXT, b"{"), frame(opcode, b"")].concat()));
    }
    court.assert_ends(1002, &cases).await;

    let mut raw = Raw::connect(court.vm.port).await;
    for length in [0, 1, 124, 125] {
        let payload: Vec<u8> = (0..length).collect();
        let bytes = [frame(FIN | PONG, &payload), frame(FIN | PING, &payload), frame(FIN | TEXT, PING_TEXT)];
        raw.0.write_all(&bytes.concat()).await.unwrap();
        assert_eq!(answers(&mut raw).await, [(PONG, payload)], "any bytes, the same back");
    }
    drop(raw);
    court.rise().await;
}

#[tokio::test]
async fn close_5_5_1_is_answered_with_its_code_and_ends_everything() {
    let court = Court::sit().await;
    let legal = (1000..=1003).chain(1007..=1014).chain([3000, 3999, 4000, 4999]);
    for code in legal {
        assert_eq!(court.sentence(&close(code, b"")).await, Some(code));
        assert_eq!(
            court.sentence(&close(code, "ü".repeat(61).as_bytes())).await,
            Some(code),
            "with a reason"
        );
    }
    assert_eq!(court.sentence(&frame(FIN | CLOSE, b"")).await, Some(1005), "no code for none");
    let illegal = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1999, 2000, 2999, 5000, 65_535];
    let cases: Vec<_> =
        illegal.into_iter().map(|code| ("a code that nobody may send", close(code, b""))).collect();
    court.assert_ends(1002, &cases).await;
    court.assert_ends(1002, &[("half a code", frame(FIN | CLOSE, &[3]))]).await;
    court.assert_ends(1007, &[("a reason that is no text", close(1000, &[0xff]))]).await;

    // What comes after a close is not heard, whatever it is.
    let alert = frame(FIN | TEXT, br#"{"type":"alert"}"#);
    let bad = frame(FIN | 0x3, b"");
    assert_eq!(court.sentence(&[close(1000, b""), alert.clone(), bad].concat()).await, Some(1000));
    assert_eq!(court.sentence(&[frame(TEXT, b"{"), close(1001, b""), alert].concat()).await, Some(1001));
    court.rise().await;
}

#[tokio::test]
async fn text_5_6_is_utf_8_wherever_it_is_cut() {
    let court = Court::sit().await;
    let good = r#"{"type":"ping","id":"settle","x":"aé€😀\u0000￿"}"#.as_bytes();
    let mut raw = Raw::connect(court.vm.port).await;
    for cut in 0..=good.len() {
        let bytes = [frame(TEXT, &good[..cut]), frame(FIN, &good[cut..])].concat();
        raw.0.write_all(&bytes).await.unwrap();
        assert_eq!(answers(&mut raw).await, [], "cut at {cut}");
    }
    drop(raw);
    let bad: [&[u8]; 10] = [
        b"\x80",
        b"\xc3",
        b"\xe2\x82",
        b"\xf0\x9f\x98",
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xff",
    ];
    for bytes in bad {
        court.assert_ends(1007, &[("whole", frame(FIN | TEXT, bytes))]).await;
        let pieces: Vec<u8> = bytes.iter().flat_map(|byte| frame(CONTINUATION, &[*byte])).collect();
        let message = [frame(TEXT, b"{}"), pieces, frame(FIN, b"")].concat();
        court.assert_ends(1007, &[("a byte a fragment", message)]).await;
    }
    court
        .assert_ends(
            1003,
            &[("binary", frame(FIN | 0x2, b"{}")), ("a first fragment of it", frame(0x2, b""))],
        )
        .await;
    court.rise().await;
}

#[tokio::test]
async fn a_connection_may_end_at_any_moment() {
    let court = Court::sit().await;
    let whole = frame(FIN | TEXT, PING_TEXT);
    for bytes in [&[][..], &whole[..1], &whole[..9], &frame(TEXT, b"{"), &whole] {
        // The client says that nothing more comes, and reads on: it is told all, and the end.
        let mut raw = Raw::connect(court.vm.port).await;
        raw.0.write_all(bytes).await.unwrap();
        raw.0.get_mut().shutdown().await.unwrap();
        if bytes == whole {
            assert_eq!(answers(&mut raw).await, []);
        }
        assert_eq!(raw.closed().await, Some(1001));
        let mut rest = Vec::new();
        within("end of the connection", raw.0.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"");
        // The client's system ends it at once, and whatever comes is an error to who sends it.
        let mut raw = Raw::connect(court.vm.port).await;
        raw.0.write_all(bytes).await.unwrap();
        let stream = raw.0.into_inner().into_std().unwrap();
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(stream);
    }
    court.rise().await;
}

/// A body of two bytes in chunks.
const CHUNKED: &str = "2\r\n{}\r\n0\r\n\r\n";

/// All that is answered on a connection, until that ends.
async fn answers_to(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answers = String::new();
    let _ = within("end of the connection", stream.read_to_string(&mut answers)).await;
    answers
}

/// The statuses of answers.
fn told(answers: &str) -> Vec<&str> {
    answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect()
}

/// The answer to a request's bytes: its status line and headers.
async fn answer_to(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    within("answer", async {
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => break,
            }
        }
    })
    .await;
    String::from_utf8(head).unwrap().to_ascii_lowercase()
}

const LINES: [&str; 5] = [
    "Host: localhost",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
];

/// A good handshake with the lines of those names taken away, and others added.
fn handshake(without: &[&str], with: &[&str]) -> String {
    let kept = LINES.iter().filter(|line| !without.iter().any(|name| line.starts_with(name)));
    let lines: Vec<_> = kept.chain(with).map(|line| format!("{line}\r\n")).collect();
    format!("GET /ws HTTP/1.1\r\n{}\r\n", lines.concat())
}

#[tokio::test]
async fn handshake_4_2_1_names_what_it_wants_in_any_spelling() {
    let court = Court::sit().await;
    for (without, with) in [
        (&[][..], &[][..]),
        (&["Upgrade"], &["uPGRADE: WebSocket"]),
        (&["Upgrade"], &["Upgrade: h2c, websocket"]),
        (&["Upgrade"], &["Upgrade: h2c", "Upgrade: websocket"]),
        (&["Connection"], &["Connection: keep-alive, UPGRADE"]),
        (&["Connection"], &["Connection: keep-alive", "Connection: upgrade"]),
        (&["Sec-WebSocket-Version"], &["sec-websocket-version:13"]),
        (&[], &["Content-Length: 0"]),
        (&[], &["Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"]),
        (&[], &["Sec-WebSocket-Protocol: chat, superchat"]),
    ] {
        let answer = answer_to(court.vm.port, &handshake(without, with)).await;
        assert!(answer.starts_with("http/1.1 101 "), "{with:?}: {answer}");
        // RFC 6455, 1.3: the proof for this key; 4.2.2: nothing is agreed upon that is not known here.
        assert!(answer.contains("\r\nsec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"), "{answer}");
        assert!(
            answer.contains("\r\nupgrade: websocket\r\n") && answer.contains("\r\nconnection: upgrade\r\n")
        );
        assert!(!answer.contains("extensions") && !answer.contains("protocol: "), "{answer}");
    }
    court.rise().await;
}

#[tokio::test]
async fn handshake_4_2_2_what_is_none_is_refused() {
    let court = Court::sit().await;
    for (without, with) in [
        (&["Host"][..], &[][..]),
        (&[], &["Host: another"]),
        (&["Upgrade"], &[]),
        (&["Upgrade"], &["Upgrade: websockets"]),
        (&["Connection"], &[]),
        (&["Connection"], &["Connection: keep-alive"]),
        (&["Sec-WebSocket-Key"], &[]),
        (&["Sec-WebSocket-Key"], &["Sec-WebSocket-Key: "]),
        (&["Sec-WebSocket-Key"], &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ="]),
        (&["Sec-WebSocket-Key"], &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==AA=="]),
        (&["Sec-WebSocket-Key"], &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j*Q=="]),
        (&[], &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]),
        (&[], &["Content-Length: 1"]),
        (&[], &["Transfer-Encoding: chunked"]),
    ] {
        let answer = answer_to(court.vm.port, &handshake(without, with)).await;
        assert!(answer.starts_with("http/1.1 400 "), "without {without:?}, with {with:?}: {answer}");
    }
    for version in ["", "0", "7", "8", "12", "14", "130", "thirteen"] {
        let line = format!("Sec-WebSocket-Version: {version}");
        let answer = answer_to(court.vm.port, &handshake(&["Sec-WebSocket-Version"], &[&line])).await;
        assert!(answer.starts_with("http/1.1 400 "), "{version}: {answer}");
        assert!(answer.contains("\r\nsec-websocket-version: 13\r\n"), "it says which it speaks: {answer}");
    }
    for method in ["POST", "HEAD", "OPTIONS", "CONNECT", "get"] {
        let request = handshake(&[], &[]).replacen("GET", method, 1);
        let answer = answer_to(court.vm.port, &request).await;
        assert!(answer.starts_with("http/1.1 4"), "{method}: {answer}");
    }
    for version in ["HTTP/1.0", "HTTP/0.9", "HTTP/2.0"] {
        let request = handshake(&[], &[]).replacen("HTTP/1.1", version, 1);
        let answer = answer_to(court.vm.port, &request).await;
        assert!(
            answer.is_empty() || answer.contains(" 400 ") || answer.contains(" 505 "),
            "{version}: {answer}"
        );
    }
    court.rise().await;
}

#[tokio::test]
async fn requests_that_two_readers_would_cut_differently_are_refused() {
    let mut court = Court::sit().await;
    let post = |lines: &str, body: &str| {
        let head = format!("POST /alerts HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {API_KEY}\r\n");
        format!("{head}{lines}\r\n{body}")
    };
    let chunked = "Transfer-Encoding: chunked\r\n";
    let hidden = "GET /hidden HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    // What is refused below is refused for its shape alone, and what follows it is not heard as a request.
    for lines in ["Content-Length: 2\r\n", "Content-Length: 2\r\nContent-Length: 2\r\n"] {
        let answer = answer_to(court.vm.port, &post(lines, "{}")).await;
        assert!(answer.starts_with("http/1.1 202 "), "{lines}: {answer}");
    }
    for (name, request) in [
        ("two lengths", post("Content-Length: 2\r\nContent-Length: 3\r\n", "{}x")),
        ("two lengths in one line", post("Content-Length: 2, 2\r\n", "{}")),
        ("a length that is none", post("Content-Length: +2\r\n", "{}")),
        ("a length below zero", post("Content-Length: -1\r\n", "{}")),
        ("an unknown encoding", post("Transfer-Encoding: xchunked\r\n", "{}")),
        ("chunked, but not at last", post("Transfer-Encoding: chunked, identity\r\n", "{}")),
        ("chunked after another", post("Transfer-Encoding: gzip, chunked\r\n", CHUNKED)),
        ("chunked twice", post("Transfer-Encoding: chunked, chunked\r\n", CHUNKED)),
        (
            "chunked in two lines",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", CHUNKED),
        ),
        (
            "two encodings in two lines",
            post("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", CHUNKED),
        ),
        ("an encoding after a control character", post("Transfer-Encoding: \x0bchunked\r\n", CHUNKED)),
        ("two hosts", post("Host: another\r\nContent-Length: 2\r\n", "{}")),
        ("no host", post("Content-Length: 2\r\n", "{}").replacen("Host", "Ghost", 1)),
        ("a length with a blank", post("Content-Length: 2 2\r\n", "{}")),
        ("a length in base 16", post("Content-Length: 0x2\r\n", "{}")),
        ("a length that is empty", post("Content-Length: \r\n", "{}")),
        ("a blank before the colon", post("Content-Length : 2\r\n", "{}")),
        ("a line folded", post("X-A: b\r\n c: d\r\n", "")),
        ("a line without a colon", post("nonsense\r\n", "")),
        ("a NUL", post("X-A: a\0b\r\n", "")),
        ("a bare CR", post("X-A: a\rContent-Length: 2\r\n", "{}")),
        ("a blank in a name", post("X A: b\r\n", "")),
        ("a chunk's length that is none", post(chunked, "zz\r\n{}\r\n0\r\n\r\n")),
        ("one with a sign", post(chunked, "+2\r\n{}\r\n0\r\n\r\n")),
        ("one with a prefix", post(chunked, "0x2\r\n{}\r\n0\r\n\r\n")),
        ("one beyond all numbers", post(chunked, "fffffffffffffffff\r\n{}")),
        ("one after a blank", post(chunked, " 2\r\n{}\r\n0\r\n\r\n")),
        ("none", post(chunked, "\r\n{}\r\n0\r\n\r\n")),
        ("a bare LF after it", post(chunked, "2\n{}\r\n0\r\n\r\n")),
        ("a bare LF after a chunk", post(chunked, "2\r\n{}\n0\r\n\r\n")),
        ("bare LFs at the end", post(chunked, "2\r\n{}\r\n0\n\n")),
        ("a chunk longer than it says", post(chunked, "2\r\n{}x\r\n0\r\n\r\n")),
        ("a chunk without its end", post(chunked, "2\r\n{}0\r\n\r\n")),
        ("a bare LF in an extension", post(chunked, "2;a\n{}\r\n0\r\n\r\n")),
        ("a bare CR in an extension", post(chunked, "2;a\rb\r\n{}\r\n0\r\n\r\n")),
        (
            "an extension without end",
            post(chunked, &format!("2;{}\r\n{{}}\r\n0\r\n\r\n", "a".repeat(20_000))),
        ),
        ("a trailer that is none", post(chunked, "2\r\n{}\r\n0\r\nnonsense\r\n\r\n")),
        (
            "a trailer without end",
            post(chunked, &format!("2\r\n{{}}\r\n0\r\nX-A: {}\r\n\r\n", "a".repeat(40_000))),
        ),
        (
            "more trailers than a head may have lines",
            post(chunked, &format!("2\r\n{{}}\r\n0\r\n{}\r\n", "X-A: b\r\n".repeat(200))),
        ),
        ("chunks before there were any", post(chunked, CHUNKED).replacen("HTTP/1.1", "HTTP/1.0", 1)),
    ] {
        let answers = answers_to(court.vm.port, &format!("{request}{hidden}")).await;
        assert_eq!(told(&answers), ["400"], "{name}: {answers}");
    }
    // A target without a path, as proxies are asked.
    for target in ["rics", "example.org:443", "localhost"] {
        let answer =
            answer_to(court.vm.port, &format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
        assert!(answer.starts_with("http/1.1 400 "), "{target}: {answer}");
    }
    assert!(court.vm.lines("a defect").is_empty());
    // What all readers cut alike (RFC 9112, 2.2 and 7.1) is one request, and the next is the next: lines of the
    // head that end in LF alone, and chunks with an extension, with zeros before their length or with trailers,
    // whatever these say.
    for request in [
        post("Content-Length: 2\r\n", "{}").replace("\r\n", "\n"),
        post("X-A: b\nContent-Length: 2\r\n", "{}"),
        post(chunked, "2;a=b\r\n{}\r\n0;c\r\n\r\n"),
        post(chunked, "00000000000000000002\r\n{}\r\n0\r\n\r\n"),
        post(chunked, "2\r\n{}\r\n0\r\nX-A: b\r\n\r\n"),
        post(chunked, "2\r\n{}\r\n0\r\nContent-Length: 100\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ] {
        let answers = answers_to(court.vm.port, &format!("{request}{hidden}")).await;
        assert_eq!(told(&answers), ["202", "404"], "{request}: {answers}");
    }

    // A length beside an encoding: the chunks count, and what follows is not heard as a request.
    let chunks = format!("0\r\n\r\n{hidden}");
    let length = format!("Content-Length: {}\r\n", chunks.len());
    for (lines, statuses) in [
        (chunked.to_owned(), &["202", "404"][..]),
        (format!("{length}{chunked}"), &["202"]),
        (format!("{chunked}{length}"), &["202"]),
    ] {
        let answers = answers_to(court.vm.port, &post(&lines, &chunks)).await;
        assert_eq!(told(&answers), statuses, "{lines}: {answers}");
    }
    // Nor is what follows a handshake that is refused for having a body.
    let key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let handshake = format!(
        "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n{key}\r\n\
         Content-Length: {}\r\n\r\n{hidden}",
        hidden.len()
    );
    let answers = answers_to(court.vm.port, &handshake).await;
    assert_eq!(told(&answers), ["400"], "{answers}");
    // Those that were answered 202, and none of the others.
    for _ in 0..11 {
        court.witness.expect("alert").await;
    }
    court.rise().await;
}
