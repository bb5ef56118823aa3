//! What a fleet costs in a month: Fly's VMs and what they send to browsers, Pub/Sub and what Google sends to
//! VMs that are not Google's.

use crate::beacons;
use crate::constants::{
    ANSWERS, EVENT, FLY_OUT, FRAME, FREE, GOOGLE_OUT, LEAST_BILLED, RECEIPTS, TIB as USD_A_TIB, VM,
};

pub const MONTH: f64 = 30.0 * 24.0 * 3_600.0;
const GIB: f64 = (1_u64 << 30) as f64;
const TIB: f64 = (1_u64 << 40) as f64;

/// USD a month.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bill {
    pub vms: f64,
    /// For what is published and delivered, beacons too.
    pub pubsub: f64,
    /// For the same on its way out of Google.
    pub google_out: f64,
    pub fly_out: f64,
}

impl Bill {
    pub fn sum(self) -> f64 {
        self.vms + self.pubsub + self.google_out + self.fly_out
    }
}

/// Of a fleet on which so many events a second go to everybody; with receipts where they are alerts.
pub fn monthly(vms: usize, sockets: f64, events: f64, are_alerts: bool) -> Bill {
    let each = 1.0 + vms as f64;
    let receipts = if are_alerts { receipts(vms, events) } else { 0.0 };
    let messages = events + receipts + beacons::rate(vms);
    // No message here is longer than what is billed at least.
    let billed = messages * each * EVENT.value.max(LEAST_BILLED.value);
    // What a filter keeps back is billed as delivered, but does not leave Google.
    let sent = (events + beacons::rate(vms)) * vms as f64 * EVENT.value + receipts * EVENT.value;
    Bill {
        vms: vms as f64 * VM.value,
        pubsub: pubsub(billed),
        google_out: google_out(sent),
        fly_out: sockets * events * FRAME.value * MONTH / 1e9 * FLY_OUT.value,
    }
}

/// Messages a second that tell where alerts were heard, at most.
pub fn receipts(vms: usize, alerts: f64) -> f64 {
    let answer = ANSWERS.value.min(vms as f64 - 1.0);
    (alerts * answer).min(RECEIPTS.value)
}

/// USD a month for so many billed bytes a second.
pub fn pubsub(bytes: f64) -> f64 {
    (bytes * MONTH - FREE.value * GIB).max(0.0) / TIB * USD_A_TIB.value
}

/// USD a month for so many bytes a second out of Google.
pub fn google_out(bytes: f64) -> f64 {
    let gib = bytes * MONTH / GIB;
    let steps = [1_024.0_f64, 10_240.0, f64::INFINITY];
    let mut below: f64 = 0.0;
    let mut sum = 0.0;
    for (step, price) in steps.into_iter().zip(&GOOGLE_OUT) {
        sum += (gib.min(step) - below).max(0.0) * price.value;
        below = step;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the last ten events a second of a hundred cost: beyond what is free and what tiers change.
    fn slope(vms: usize, events: f64) -> f64 {
        let bill = |events| monthly(vms, 1e6, events, false).pubsub;
        (bill(events + 10.0) - bill(events)) / 10.0
    }

    #[test]
    fn pubsub_costs_vms_times_events() {
        for vms in [5, 100, 1_000, 10_000] {
            let ratio = slope(vms, 100.0) / slope(vms, 1_000.0);
            assert!((ratio - 1.0).abs() < 1e-6, "linear in events: {ratio}");
        }
        let ratio = slope(10_000, 100.0) / slope(1_000, 100.0);
        assert!((9.9..10.0).contains(&ratio), "linear in VMs: {ratio}");
    }

    #[test]
    fn nothing_costs_the_square_of_the_fleet() {
        for (events, are_alerts) in [(0.0, false), (1.0, false), (1.0, true), (1_000.0, true)] {
            for vms in [100, 1_000] {
                let ratio = monthly(10 * vms, 1e6, events, are_alerts).sum()
                    / monthly(vms, 1e6, events, are_alerts).sum();
                assert!(ratio < 15.0, "{vms} VMs, {events} events: {ratio}");
            }
        }
    }

    #[test]
    fn what_the_pages_of_google_and_fly_give_as_examples_comes_out() {
        // 1 MiB a second for 30 days, published, and delivered to two: 7.416 TiB, less what is free.
        let tib = pubsub(3.0 * f64::from(1 << 20)) / USD_A_TIB.value + FREE.value / 1_024.0;
        assert!((tib - 7.416).abs() < 0.001, "{tib}");
        // Five terabytes are about 570 USD.
        let five = google_out(5.0 * TIB / MONTH);
        assert!((five - 573.0).abs() < 1.0, "{five}");
    }

    #[test]
    fn receipts_are_bounded() {
        assert_eq!(receipts(5, 1.0), 4.0);
        assert_eq!(receipts(10_000, 1.0), 20.0);
        assert_eq!(receipts(10_000, 1e6), 200.0);
    }
}
