//! A model of the program at sizes that no machine here has: what it costs and how long an alert takes, from
//! 5 to 10,000 VMs and from a thousand to a hundred million sockets.
//!
//! It follows from the [`constants`] alone, and from chance with fixed seeds, so that two runs make the same
//! bytes. Each of its files answers one question; [`page`] makes `docs/scale/` of them.

pub mod beacons;
pub mod constants;
pub mod cost;
pub mod latency;
pub mod page;
pub mod storm;

use std::path::PathBuf;

pub use page::made;

/// Where what is made is kept.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/scale")
}

/// VMs that everything is asked for.
pub const FLEETS: [usize; 11] = [5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000];

/// Sockets of the fullest of so many VMs.
pub fn fullest(vms: usize, sockets: f64) -> f64 {
    sockets / vms as f64 * constants::FULLEST.value
}

/// Whether so many VMs can hold so many sockets, and the topic so many VMs.
pub fn is_possible(vms: usize, sockets: f64) -> bool {
    vms as f64 <= constants::SUBSCRIPTIONS.value && fullest(vms, sockets) <= constants::SOCKETS.value
}

/// The fewest VMs that hold so many sockets.
pub fn fewest(sockets: f64) -> usize {
    ((sockets * constants::FULLEST.value / constants::SOCKETS.value).ceil() as usize).max(FLEETS[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_vms_hold_them_and_one_less_does_not() {
        for sockets in [1e5, 1e6, 1e7, 1e8] {
            let vms = fewest(sockets);
            assert!(is_possible(vms, sockets) && !is_possible(vms - 1, sockets), "{vms}");
        }
        assert!(!is_possible(fewest(2e8), 2e8), "the topic has no subscription for so many");
    }
}
