//! A cursor that a client kept: one that is taken is one that could have been given.
#![no_main]

use alien_alert::cursor::Cursor;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u32, &str)| {
    let (topic, text) = input;
    if let Ok(cursor) = Cursor::parse(text, topic) {
        assert!(cursor.at >= 0 && cursor.topic == topic);
        assert_eq!(Cursor::parse(&cursor.to_string(), topic), Ok(cursor));
    }
});
