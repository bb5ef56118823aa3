//! A client's message, and a backend's bodies: a request, or a short word on what is wrong.
#![no_main]

use alien_alert::wire::request::{Request, app_event, checked_id, id_of, landing_of};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = (id_of(text), checked_id(text));
    let refusals = [Request::parse(text).err(), app_event(text).err(), landing_of(text).err()];
    for refused in refusals.into_iter().flatten() {
        assert!((1..=400).contains(&refused.message.len()), "{}", refused.message);
    }
});
