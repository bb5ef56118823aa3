//! A client's bytes, in pieces of some size.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (u8, Vec<u8>)| {
    alien_alert_fuzz::frames(&input.1, &[usize::from(input.0) + 1], 1 << 14);
});
