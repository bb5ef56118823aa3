//! What clients and the topic say, line by line.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| alien_alert_fuzz::relay(text));
