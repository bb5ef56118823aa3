//! A client's message, and a backend's bodies.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| alien_alert_fuzz::requests(text));
