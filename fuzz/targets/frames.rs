//! A client's bytes, in pieces of some size.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| alien_alert_fuzz::frames_in_pieces(input));
