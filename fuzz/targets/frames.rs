//! A client's bytes: read in pieces they mean the same as read whole.
#![no_main]

use alien_alert::frame::reader::{Message, Reader, Violation};
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 1 << 14;

fn read(bytes: &[u8], size: usize) -> (Vec<Message>, Result<(), Violation>) {
    let (mut reader, mut messages) = (Reader::default(), Vec::new());
    for piece in bytes.chunks(size) {
        let result = reader.read(piece, LIMIT, &mut messages);
        if result.is_err() || matches!(messages.last(), Some(Message::Close(_))) {
            return (messages, result);
        }
    }
    (messages, Ok(()))
}

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (size, bytes) = input;
    assert_eq!(read(&bytes, usize::MAX), read(&bytes, usize::from(size) + 1));
});
