//! A message of the topic: what can be read is passed on as it was.
#![no_main]

use alien_alert::event::{Numbered, Told};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = Numbered::decode(data);
    if let Ok(told) = Told::decode(data) {
        let again = told.encode();
        let told = Told::decode(&again).expect("what this program writes");
        assert_eq!(told.encode(), again);
    }
});
