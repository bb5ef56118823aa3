//! A message of the topic.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| alien_alert_fuzz::topic(data));
