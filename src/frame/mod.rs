//! WebSocket frames as bytes, header and all, made once and then shared by every socket.
//!
//! The server's frames are not masked (RFC 6455, 5.1), so the same bytes serve all. Writing them
//! past tungstenite's buffer saves a copy, and the buffer, for each socket.

pub mod reader;

use bytes::Bytes;
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// One whole frame. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    bytes: Bytes,
    header: usize,
}

impl Frame {
    /// A text frame; `payload` is UTF-8, as all JSON here is.
    pub fn text(payload: &[u8]) -> Self {
        Self::new(OpCode::Data(Data::Text), payload)
    }

    pub fn ping() -> Self {
        Self::new(OpCode::Control(Control::Ping), &[])
    }

    pub fn pong(payload: &[u8]) -> Self {
        Self::new(OpCode::Control(Control::Pong), payload)
    }

    /// A close frame; `reason` may have 123 bytes, and needs a code.
    pub fn close(code: Option<u16>, reason: &str) -> Self {
        debug_assert!(reason.len() <= 123, "a control frame holds 125 bytes");
        let payload = code.map(|code| [&code.to_be_bytes(), reason.as_bytes()].concat());
        Self::new(OpCode::Control(Control::Close), &payload.unwrap_or_default())
    }

    fn new(opcode: OpCode, payload: &[u8]) -> Self {
        let mut bytes = header_bytes(opcode, payload.len());
        let header = bytes.len();
        bytes.reserve_exact(payload.len());
        bytes.extend_from_slice(payload);
        Self { bytes: bytes.into(), header }
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// What is inside, sharing the frame's memory.
    pub fn payload(&self) -> Bytes {
        self.bytes.slice(self.header..)
    }
}

/// A text frame whose payload is `parts` one after another: nothing is copied, however large the
/// parts are and however many sockets they go to.
pub fn text_of_parts(parts: Vec<Bytes>) -> Vec<Bytes> {
    let length = parts.iter().map(Bytes::len).sum();
    let mut frame = Vec::with_capacity(parts.len() + 1);
    frame.push(header_bytes(OpCode::Data(Data::Text), length).into());
    frame.extend(parts);
    frame
}

fn header_bytes(opcode: OpCode, length: usize) -> Vec<u8> {
    let header = FrameHeader { opcode, ..FrameHeader::default() };
    let mut bytes = Vec::with_capacity(header.len(length as u64));
    // Writing to a Vec can't fail.
    let _ = header.format(length as u64, &mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_as_rfc_6455_has_them() {
        assert_eq!(Frame::text(b"Hello").bytes()[..], [0x81, 5, b'H', b'e', b'l', b'l', b'o']);
        assert_eq!(Frame::ping().bytes()[..], [0x89, 0]);
        assert_eq!(Frame::close(Some(1001), "idle").bytes()[..], [0x88, 6, 3, 0xe9, b'i', b'd', b'l', b'e']);
        assert_eq!(Frame::text(&[b'x'; 300]).bytes()[..4], [0x81, 126, 1, 44]);
        assert_eq!(Frame::text(&[b'x'; 70_000]).bytes()[..4], [0x81, 127, 0, 0]);
    }

    #[test]
    fn parts_make_the_same_frame_as_the_whole() {
        let parts = vec![Bytes::from_static(b"[1"), Bytes::from_static(b",2]")];
        assert_eq!(text_of_parts(parts).concat(), Frame::text(b"[1,2]").bytes()[..]);
        assert_eq!(Frame::text(b"[1,2]").payload(), Bytes::from_static(b"[1,2]"));
    }
}
