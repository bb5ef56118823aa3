//! WebSocket frames (RFC 6455), as far as a bench needs them: whole messages in one frame each.

use std::ops::Range;

pub const TEXT: u8 = 1;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// Where the parts of a frame are in the bytes that it was found in.
pub struct Frame {
    pub opcode: u8,
    pub payload: Range<usize>,
    mask: Option<[u8; 4]>,
}

impl Frame {
    /// The frame that `bytes` begin with; none while some of it is missing.
    #[inline]
    pub fn first(bytes: &[u8]) -> Option<Self> {
        let (&[head, length], _) = bytes.split_first_chunk()?;
        let (length, start) = match length & 0x7f {
            126 => (u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?).into(), 4),
            127 => (usize::try_from(u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?)).ok()?, 10),
            short => (short.into(), 2),
        };
        let mask = if bytes[1] & 0x80 == 0 { None } else { Some(*bytes.get(start..)?.first_chunk()?) };
        let start = start + mask.map_or(0, |mask| mask.len());
        let payload = start..start.checked_add(length)?;
        (payload.end <= bytes.len()).then_some(Self { opcode: head & 0x0f, payload, mask })
    }

    /// What it carries, in the clear.
    pub fn unmasked<'a>(&self, bytes: &'a mut [u8]) -> &'a [u8] {
        let payload = &mut bytes[self.payload.clone()];
        if let Some(mask) = self.mask {
            payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        }
        payload
    }
}

/// A frame as a server sends it.
pub fn from_server(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = head(opcode, payload.len(), 0);
    frame.extend_from_slice(payload);
    frame
}

/// A frame as a client sends it.
pub fn from_client(opcode: u8, payload: &[u8]) -> Vec<u8> {
    // Any key costs the server the same.
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = head(opcode, payload.len(), 0x80);
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

fn head(opcode: u8, length: usize, masked: u8) -> Vec<u8> {
    let mut head = vec![0x80 | opcode];
    match length {
        0..=125 => head.push(masked | length as u8),
        126..=0xffff => {
            head.push(masked | 126);
            head.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            head.push(masked | 127);
            head.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_read_and_parts_of_it_are_not() {
        for length in [0, 1, 125, 126, 0xffff, 0x1_0000] {
            let payload = vec![b'x'; length];
            for mut bytes in [from_client(TEXT, &payload), from_server(TEXT, &payload)] {
                for part in [0, 1, 2, 5, bytes.len() - 1] {
                    assert!(part >= bytes.len() || Frame::first(&bytes[..part]).is_none());
                }
                let frame = Frame::first(&bytes).unwrap();
                assert_eq!((frame.opcode, frame.payload.end), (TEXT, bytes.len()));
                assert_eq!(frame.unmasked(&mut bytes), payload);
            }
        }
    }
}
