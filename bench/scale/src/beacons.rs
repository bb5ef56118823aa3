//! What VMs tell each other about themselves, by what the program does: each VM speaks every 15 s, or every as
//! many seconds as there are VMs, so that each hears about one beacon a second at most.

use crate::constants::{BEACON, BEACON_INTERVAL, DEAD, HISTORY, LEAST_BILLED, SILENT};
use crate::cost;

/// Seconds between two beacons of one VM.
pub fn interval(vms: usize) -> f64 {
    BEACON_INTERVAL.value.max(vms as f64)
}

/// Beacons a second on the topic, of all VMs; each VM hears them all.
pub fn rate(vms: usize) -> f64 {
    vms as f64 / interval(vms)
}

/// Messages a second that Pub/Sub carries for them: published, and delivered to each.
pub fn messages(vms: usize) -> f64 {
    rate(vms) * (1.0 + vms as f64)
}

/// USD a month.
pub fn monthly(vms: usize) -> f64 {
    at_rate(vms, rate(vms))
}

/// The same if each VM spoke every 15 s in a fleet of any size.
pub fn monthly_unbounded(vms: usize) -> f64 {
    at_rate(vms, vms as f64 / BEACON_INTERVAL.value)
}

fn at_rate(vms: usize, rate: f64) -> f64 {
    let billed = rate * (1.0 + vms as f64) * BEACON.value.max(LEAST_BILLED.value);
    cost::pubsub(billed) + cost::google_out(rate * vms as f64 * BEACON.value)
}

/// Seconds until all know that a VM was killed.
pub fn death(vms: usize) -> f64 {
    DEAD.value * interval(vms)
}

/// Seconds by which cursors are behind: while all is well, and at most after a VM was killed.
pub fn cursors(vms: usize) -> (f64, f64) {
    (interval(vms), SILENT.value * interval(vms))
}

/// The largest fleet in which a cursor lies within the default history window: while all is well, and also
/// after a VM was killed.
pub fn provable() -> (usize, usize) {
    let largest = |factor: f64| (HISTORY.value / factor) as usize;
    (largest(1.0), largest(SILENT.value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FLEETS;

    #[test]
    fn each_vm_hears_one_a_second_at_most() {
        for vms in FLEETS {
            assert!(rate(vms) <= 1.0, "{vms}");
        }
        assert_eq!((rate(5), rate(15), rate(1_000)), (1.0 / 3.0, 1.0, 1.0));
    }

    #[test]
    fn they_cost_as_much_as_there_are_vms_and_not_the_square() {
        let ratio = monthly(10_000) / monthly(1_000);
        assert!((6.0..10.5).contains(&ratio), "{ratio}");
        let ratio = monthly_unbounded(10_000) / monthly_unbounded(1_000);
        assert!(ratio > 60.0, "what it would be: {ratio}");
        assert!(monthly(5) < 1.0);
    }

    #[test]
    fn what_grows_in_their_place_is_time() {
        assert_eq!((death(5), death(1_000)), (37.5, 2_500.0));
        let (whole, killed) = provable();
        assert!(cursors(whole).0 <= HISTORY.value && cursors(whole + 1).0 > HISTORY.value);
        assert!(cursors(killed).1 <= HISTORY.value && cursors(killed + 1).1 > HISTORY.value);
    }
}
