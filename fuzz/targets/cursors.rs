//! A cursor that a client kept.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (u32, &str)| alien_alert_fuzz::cursors(input.0, input.1));
