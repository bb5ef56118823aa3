//! What a client's bytes say: frames put together to messages, each rule of RFC 6455 held.
//!
//! tungstenite reads the headers; the rest is here, because its own reader keeps a buffer for each
//! socket. This one keeps memory only while a message is not complete, and most sockets, most of the
//! time, say nothing.

use std::io::Cursor;

use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

/// A code for closing that was registered after the others, and which tungstenite does not know.
const BAD_GATEWAY: u16 = 1014;

/// Fragments of one message that are free: as many as a long one sensibly has. Each further one is work like a
/// message.
const FREE_FRAGMENTS: usize = 16;

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    Text(String),
    /// To be answered with the same bytes.
    Ping(Vec<u8>),
    Pong,
    /// A message in many fragments has one more.
    Fragment,
    /// With the code to answer by, if it gave one. Nothing comes after it.
    Close(Option<u16>),
}

/// Why a client is not listened to any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    Protocol(&'static str),
    Binary,
    TooLarge,
    NotUtf8,
}

/// One socket's reader.
#[derive(Debug, Default)]
pub struct Reader {
    /// Boxed: nearly always None.
    incomplete: Option<Box<Incomplete>>,
}

#[derive(Debug, Default)]
struct Incomplete {
    /// The beginning of a frame.
    frame: Vec<u8>,
    /// The beginning of a message, of which more frames come.
    message: Option<Begun>,
}

#[derive(Debug)]
struct Begun {
    text: Vec<u8>,
    fragments: usize,
}

impl Reader {
    /// Reads on; puts complete messages, in order, into `messages`. One may have `limit` bytes.
    ///
    /// # Errors
    /// A rule was broken, after those messages. Nothing that comes later means anything.
    pub fn read(&mut self, bytes: &[u8], limit: usize, messages: &mut Vec<Message>) -> Result<(), Violation> {
        let Incomplete { mut frame, mut message } = self.incomplete.take().map(|it| *it).unwrap_or_default();
        // Nearly always there is nothing before it, and nothing to copy.
        let mut rest = if frame.is_empty() {
            bytes
        } else {
            frame.extend_from_slice(bytes);
            &frame
        };
        while let Some((header, mask, payload, after)) =
            next_frame(rest, message.as_ref().map_or(0, |begun| begun.text.len()), limit)?
        {
            rest = after;
            let payload = unmask(payload, mask);
            match header.opcode {
                OpCode::Control(control) => {
                    let told = control_message(control, payload)?;
                    let ends = matches!(told, Message::Close(_));
                    messages.push(told);
                    if ends {
                        return Ok(());
                    }
                }
                OpCode::Data(data) => {
                    let mut begun = match (data, message.take()) {
                        (Data::Text, None) => Begun { text: payload, fragments: 0 },
                        (Data::Continue, Some(mut begun)) => {
                            // Not twice as much as it needs: it may be kept for long.
                            begun.text.reserve_exact(payload.len());
                            begun.text.extend_from_slice(&payload);
                            begun
                        }
                        (Data::Continue, None) => return Err(Violation::Protocol("nothing to continue")),
                        _ => return Err(Violation::Protocol("a message within a message")),
                    };
                    if header.is_final {
                        let text = String::from_utf8(begun.text).map_err(|_| Violation::NotUtf8)?;
                        messages.push(Message::Text(text));
                    } else {
                        begun.fragments += 1;
                        if begun.fragments > FREE_FRAGMENTS {
                            messages.push(Message::Fragment);
                        }
                        message = Some(begun);
                    }
                }
            }
        }
        if !rest.is_empty() || message.is_some() {
            let frame = rest.to_vec();
            self.incomplete = Some(Box::new(Incomplete { frame, message }));
        }
        Ok(())
    }

    /// Bytes that are kept until it is complete.
    pub fn kept(&self) -> usize {
        self.incomplete.as_ref().map_or(0, |incomplete| {
            let message = incomplete.message.as_ref().map_or(0, |begun| begun.text.capacity());
            size_of::<Incomplete>() + incomplete.frame.capacity() + message
        })
    }
}

type Frame<'a> = (FrameHeader, [u8; 4], &'a [u8], &'a [u8]);

/// The first frame of `bytes`, its mask, its payload and what comes after; None when it is not all there. `begun`
/// bytes of its message came before.
fn next_frame(bytes: &[u8], begun: usize, limit: usize) -> Result<Option<Frame<'_>>, Violation> {
    let mut cursor = Cursor::new(bytes);
    let header = FrameHeader::parse(&mut cursor).map_err(|_| Violation::Protocol("an unknown opcode"))?;
    let Some((header, length)) = header else { return Ok(None) };
    if header.rsv1 || header.rsv2 || header.rsv3 {
        return Err(Violation::Protocol("a reserved bit is set"));
    }
    let mask = header.mask.ok_or(Violation::Protocol("a client's frames are masked"))?;
    // RFC 6455, 5.2: as few bytes as it needs, and of eight not the highest bit.
    let encodable = match bytes[1] & 0x7f {
        126 => 126..=0xffff,
        127 => 0x1_0000..=u64::MAX >> 1,
        short => 0..=u64::from(short),
    };
    if !encodable.contains(&length) {
        return Err(Violation::Protocol("a length in another form than it must have"));
    }
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    match header.opcode {
        OpCode::Control(_) if !header.is_final => {
            return Err(Violation::Protocol("a control frame in fragments"));
        }
        OpCode::Control(_) if length > 125 => {
            return Err(Violation::Protocol("a control frame of more than 125 bytes"));
        }
        OpCode::Data(Data::Binary) => return Err(Violation::Binary),
        OpCode::Data(_) if length.saturating_add(begun) > limit => return Err(Violation::TooLarge),
        _ => {}
    }
    let rest = &bytes[usize::try_from(cursor.position()).unwrap_or(bytes.len())..];
    let frame = rest.split_at_checked(length).map(|(payload, after)| (header, mask, payload, after));
    Ok(frame)
}

fn unmask(payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut clear = payload.to_vec();
    let (words, rest) = clear.as_chunks_mut::<4>();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask) {
        *byte ^= mask;
    }
    clear
}

fn control_message(control: Control, payload: Vec<u8>) -> Result<Message, Violation> {
    match (control, &payload[..]) {
        (Control::Ping, _) => Ok(Message::Ping(payload)),
        (Control::Close, []) => Ok(Message::Close(None)),
        (Control::Close, [high, low, reason @ ..]) => {
            let code = u16::from_be_bytes([*high, *low]);
            if !CloseCode::from(code).is_allowed() && code != BAD_GATEWAY {
                return Err(Violation::Protocol("a close code that nobody may send"));
            }
            str::from_utf8(reason).map_err(|_| Violation::NotUtf8)?;
            Ok(Message::Close(Some(code)))
        }
        (Control::Close, _) => Err(Violation::Protocol("half a close code")),
        _ => Ok(Message::Pong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1_000;

    /// A client's frame; `first` is its first byte.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [1, 2, 3, 4];
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..126 => frame.push(0x80 | u8::try_from(length).unwrap()),
            length @ 126..=0xffff => {
                frame.push(0x80 | 126);
                frame.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            length => {
                frame.push(0x80 | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    fn text(text: &str) -> Message {
        Message::Text(text.into())
    }

    /// The messages in `bytes`, given in pieces of `size`.
    fn read(bytes: &[u8], size: usize) -> (Vec<Message>, Result<(), Violation>) {
        let mut reader = Reader::default();
        let mut messages = Vec::new();
        for piece in bytes.chunks(size) {
            let result = reader.read(piece, LIMIT, &mut messages);
            if result.is_err() {
                return (messages, result);
            }
        }
        (messages, Ok(()))
    }

    #[test]
    fn messages_come_out_whole_however_they_are_cut() {
        let long = "é".repeat(200);
        let bytes = [
            frame(0x81, b"one"),
            frame(0x01, "tw\u{f6}".as_bytes()[..3].into()),
            frame(0x89, b"ping"),
            frame(0x00, &"tw\u{f6}".as_bytes()[3..]),
            frame(0x8a, b""),
            frame(0x80, b"!"),
            frame(0x81, long.as_bytes()),
            frame(0x88, &[3, 0xe8, b'x']),
            frame(0x81, b"never read"),
        ]
        .concat();
        let expected = vec![
            text("one"),
            Message::Ping(b"ping".into()),
            Message::Pong,
            text("tw\u{f6}!"),
            text(&long),
            Message::Close(Some(1000)),
        ];
        for size in [1, 2, 3, 7, 100, bytes.len()] {
            let mut reader = Reader::default();
            let mut messages = Vec::new();
            for piece in bytes.chunks(size) {
                reader.read(piece, LIMIT, &mut messages).unwrap();
                if matches!(messages.last(), Some(Message::Close(_))) {
                    break;
                }
            }
            assert_eq!(messages, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn an_idle_reader_keeps_nothing() {
        let mut reader = Reader::default();
        let mut messages = Vec::new();
        let bytes = frame(0x81, b"hello");
        reader.read(&bytes[..5], LIMIT, &mut messages).unwrap();
        assert!(reader.kept() >= 5);
        reader.read(&bytes[5..], LIMIT, &mut messages).unwrap();
        assert_eq!(reader.kept(), 0);
        assert_eq!(messages, [text("hello")]);
    }

    #[test]
    fn what_it_keeps_is_as_much_as_came() {
        let frames = [frame(0x01, b"x"), frame(0x00, &[b'x'; 9]).repeat(100)].concat();
        for bytes in [frame(0x81, &[b'x'; LIMIT - 1]), frames] {
            let (mut reader, mut messages) = (Reader::default(), Vec::new());
            for piece in bytes[..bytes.len() - 1].chunks(7) {
                reader.read(piece, LIMIT, &mut messages).unwrap();
            }
            let kept = reader.kept() - size_of::<Incomplete>();
            assert!((LIMIT - 100..LIMIT + 8).contains(&kept), "{kept}");
        }
    }

    #[test]
    fn each_broken_rule_has_its_name() {
        use Violation::{Binary, NotUtf8, Protocol, TooLarge};
        let unmasked = vec![0x81, 2, b'h', b'i'];
        let unmasked_ping = vec![0x89, 0];
        let long_ping = [vec![0x89, 0x80 | 126, 0, 126], vec![0; 130]].concat();
        let in_eight = |length: u64| [&[0x81, 0x80 | 127][..], &length.to_be_bytes(), &[0; 4]].concat();
        let huge = in_eight(u64::MAX >> 1);
        let in_two = [vec![0x81, 0x80 | 126, 0, 125], vec![0; 4 + 125]].concat();
        let fragments = [frame(0x01, &[b'x'; 600]), frame(0x80, &[b'x'; 600])].concat();
        for (bytes, violation) in [
            (frame(0xc1, b"x"), Protocol("a reserved bit is set")),
            (frame(0xa1, b"x"), Protocol("a reserved bit is set")),
            (frame(0x91, b"x"), Protocol("a reserved bit is set")),
            (frame(0xc9, b""), Protocol("a reserved bit is set")),
            (frame(0x83, b"x"), Protocol("an unknown opcode")),
            (frame(0x8b, b""), Protocol("an unknown opcode")),
            (in_two, Protocol("a length in another form than it must have")),
            (in_eight(126), Protocol("a length in another form than it must have")),
            (in_eight(u64::MAX), Protocol("a length in another form than it must have")),
            (in_eight(1 << 63), Protocol("a length in another form than it must have")),
            (unmasked, Protocol("a client's frames are masked")),
            (unmasked_ping, Protocol("a client's frames are masked")),
            (frame(0x08, b""), Protocol("a control frame in fragments")),
            (frame(0x09, b""), Protocol("a control frame in fragments")),
            (frame(0x0a, b""), Protocol("a control frame in fragments")),
            (long_ping, Protocol("a control frame of more than 125 bytes")),
            (frame(0x88, &[b'x'; 126]), Protocol("a control frame of more than 125 bytes")),
            (frame(0x80, b"x"), Protocol("nothing to continue")),
            (frame(0x00, b"x"), Protocol("nothing to continue")),
            ([frame(0x01, b"x"), frame(0x81, b"y")].concat(), Protocol("a message within a message")),
            (frame(0x88, &[3]), Protocol("half a close code")),
            (frame(0x88, &[3, 0xe8, 0xff]), NotUtf8),
            (frame(0x81, &[0xff]), NotUtf8),
            // Half a character, a surrogate, and an overlong form.
            (frame(0x81, &"é".as_bytes()[..1]), NotUtf8),
            (frame(0x81, &[0xed, 0xa0, 0x80]), NotUtf8),
            (frame(0x81, &[0xc0, 0xaf]), NotUtf8),
            (frame(0x82, b"x"), Binary),
            (frame(0x02, b"x"), Binary),
            // No need to wait for all of it.
            (frame(0x82, &[b'x'; LIMIT + 1])[..8].to_vec(), Binary),
            (frame(0x81, &[b'x'; LIMIT + 1]), TooLarge),
            (fragments, TooLarge),
            (huge, TooLarge),
        ] {
            let before = frame(0x81, b"before");
            let (messages, result) = read(&[before, bytes.clone()].concat(), usize::MAX);
            assert_eq!((result, &messages[0]), (Err(violation), &text("before")), "{bytes:02x?}");
        }
        for fits in
            [frame(0x81, &[b'x'; LIMIT]), [frame(0x01, &[b'x'; 600]), frame(0x80, &[b'x'; 400])].concat()]
        {
            assert_eq!(read(&fits, usize::MAX), (vec![text(&"x".repeat(LIMIT))], Ok(())));
        }
    }

    #[test]
    fn a_close_has_a_code_that_one_may_send_or_none() {
        assert_eq!(read(&frame(0x88, b""), 1), (vec![Message::Close(None)], Ok(())));
        for code in 0..=u16::MAX {
            let longest = [&u16::to_be_bytes(code)[..], &[b'x'; 123]].concat();
            let told = read(&frame(0x88, &longest), usize::MAX);
            let expected = match code {
                1000..=1003 | 1007..=1014 | 3000..=4999 => (vec![Message::Close(Some(code))], Ok(())),
                _ => (vec![], Err(Violation::Protocol("a close code that nobody may send"))),
            };
            assert_eq!(told, expected, "{code}");
        }
    }

    #[test]
    fn payloads_of_each_length_are_unmasked() {
        let most = 1 << 17;
        for length in (0..300).chain([0xfffe, 0xffff, 0x10000, 0x10001, most]) {
            let payload: String = ('a'..='z').cycle().take(length).collect();
            let mut messages = Vec::new();
            Reader::default().read(&frame(0x81, payload.as_bytes()), most, &mut messages).unwrap();
            assert!(messages == [text(&payload)], "{length}");
        }
        for length in [0, 1, 125] {
            let payload = vec![b'x'; length];
            assert_eq!(read(&frame(0x89, &payload), 1).0, [Message::Ping(payload)]);
            assert_eq!(read(&frame(0x8a, &vec![b'x'; length]), 1).0, [Message::Pong]);
        }
    }

    #[test]
    fn many_fragments_are_told_one_by_one() {
        let message = |fragments| {
            [frame(0x01, b"x"), frame(0x00, b"").repeat(fragments - 2), frame(0x80, b"y")].concat()
        };
        assert_eq!(read(&message(FREE_FRAGMENTS + 1), 3), (vec![text("xy")], Ok(())));
        let [one, two] = [Message::Fragment, Message::Fragment];
        assert_eq!(read(&message(FREE_FRAGMENTS + 3), 3), (vec![one, two, text("xy")], Ok(())));
    }

    #[test]
    fn fragments_may_be_empty_and_a_close_may_come_between_them() {
        let bytes = [frame(0x01, b""), frame(0x00, b""), frame(0x00, b"x"), frame(0x80, b"")].concat();
        assert_eq!(read(&[bytes.clone(), bytes].concat(), 1), (vec![text("x"), text("x")], Ok(())));
        let bytes = [frame(0x01, b"never"), frame(0x88, b""), frame(0x80, b"complete")].concat();
        assert_eq!(read(&bytes, usize::MAX), (vec![Message::Close(None)], Ok(())));
    }
}
