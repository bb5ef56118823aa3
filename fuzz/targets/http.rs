//! A connection's bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let told = alien_alert_fuzz::http(bytes);
    assert!(told.is_empty() || told.starts_with(b"HTTP/1.1 ") || told.starts_with(b"HTTP/1.0 "));
});
