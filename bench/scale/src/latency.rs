//! How long it is from a press to the last page: to the VM, through the topic to the VM that hears it last,
//! and there, on the fullest one, until the last of its sockets is written.
//!
//! The VM that hears last and the fullest one are taken for the same, so this is rather too long than too
//! short. Events that come while a pass over the sockets is under way wait for the next and share it, as
//! the shard does it.

use fastrand::Rng;
use libm::{erfc, exp, log};

use crate::constants::{
    CPU_SHARE, DELIVERY, DELIVERY_OF_8, DELIVERY_OF_32, LAST_MILE, TOPIC_MEDIAN, TOPIC_P99, UPLINK,
};
use crate::fullest;

const EVENTS: usize = 2_000;
const SEED: u64 = 7;

/// The 99th percentile of the normal distribution, in its standard deviations.
const Z99: f64 = 2.326_347_874;

/// In ms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
}

/// From a press to the last page, where so many events a second are under way.
pub fn to_the_last_page(vms: usize, sockets: f64, events: f64) -> Latency {
    let mut rng = Rng::with_seed(SEED);
    let fan_outs = fan_outs(fullest(vms, sockets), events, &mut rng);
    let mut times: Vec<_> = fan_outs
        .into_iter()
        .map(|fan_out| UPLINK.value + last_to_hear(vms, rng.f64()) + fan_out + LAST_MILE.value)
        .collect();
    times.sort_by(f64::total_cmp);
    Latency { p50: times[EVENTS / 2], p99: times[EVENTS * 99 / 100] }
}

/// How long one pass over so many sockets takes, with so many events (ms).
pub fn pass(sockets: f64, events: usize) -> f64 {
    let known =
        [(1.0, DELIVERY.value), (8.0, 8.0 * DELIVERY_OF_8.value), (32.0, 32.0 * DELIVERY_OF_32.value)];
    let events = events as f64;
    let each =
        known.windows(2).find(|pair| events <= pair[1].0).map_or(events * DELIVERY_OF_32.value, |pair| {
            let share = (events - pair[0].0) / (pair[1].0 - pair[0].0);
            pair[0].1 + share * (pair[1].1 - pair[0].1)
        });
    sockets * each / 1_000.0
}

/// Events a second to all of so many sockets that a small VM keeps up for ever.
pub fn sustained(sockets: f64) -> f64 {
    CPU_SHARE.value * 1_000.0 / pass(sockets, 1)
}

/// How long each of many events waits for its pass and takes there (ms), come at random.
fn fan_outs(sockets: f64, events: f64, rng: &mut Rng) -> Vec<f64> {
    let mut at = 0.0;
    let arrivals: Vec<f64> = (0..EVENTS)
        .map(|_| {
            at -= log(1.0 - rng.f64()) * 1_000.0 / events;
            at
        })
        .collect();
    let mut fan_outs = Vec::with_capacity(EVENTS);
    let mut free: f64 = 0.0;
    let mut rest = arrivals.as_slice();
    while let Some(first) = rest.first() {
        let begun = free.max(*first);
        let (waiting, later) = rest.split_at(rest.partition_point(|at| *at <= begun));
        free = begun + pass(sockets, waiting.len());
        fan_outs.extend(waiting.iter().map(|at| free - at));
        rest = later;
    }
    fan_outs
}

/// When the last of so many VMs hears an event (ms), by a chance from 0 to 1: each hears it at a time of its
/// own.
fn last_to_hear(vms: usize, chance: f64) -> f64 {
    // All of them have it by then with the probability that one has, to the power of their number.
    let one = exp(log(chance.max(1e-12)) / vms as f64);
    let deviation = log(TOPIC_P99.value / TOPIC_MEDIAN.value) / Z99;
    TOPIC_MEDIAN.value * exp(deviation * normal_quantile(one))
}

/// How many standard deviations are not exceeded with this probability: found by halving, as nobody waits.
fn normal_quantile(probability: f64) -> f64 {
    let (mut low, mut high) = (-9.0_f64, 9.0_f64);
    for _ in 0..48 {
        let middle = f64::midpoint(low, high);
        if 0.5 * erfc(-middle / std::f64::consts::SQRT_2) < probability {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_vm_hears_as_it_is_assumed() {
        assert!((last_to_hear(1, 0.5) - TOPIC_MEDIAN.value).abs() < 0.01);
        assert!((last_to_hear(1, 0.99) - TOPIC_P99.value).abs() < 0.01);
        // Half of the times all of a hundred have it by then: so one has it with 0.5 ^ (1 / 100).
        assert!((last_to_hear(100, 0.5) - last_to_hear(1, 0.5_f64.powf(0.01))).abs() < 1e-6);
    }

    #[test]
    fn more_vms_wait_longer_for_the_last_and_more_sockets_for_their_turn() {
        let base = to_the_last_page(100, 1e5, 1.0);
        assert!(base.p50 < base.p99);
        assert!(to_the_last_page(1_000, 1e6, 1.0).p50 > base.p50, "as full, and more of them");
        assert!(to_the_last_page(100, 1e6, 1.0).p50 > base.p50 + 40.0, "15,000 sockets are 60 ms more");
        assert_eq!(base, to_the_last_page(100, 1e5, 1.0), "chance is the same each time");
    }

    #[test]
    fn events_that_wait_share_a_pass_so_nobody_waits_longer_than_two() {
        let one = pass(10_000.0, 1);
        // Twice as many events come as passes could be made one by one.
        let fan_outs = fan_outs(10_000.0, 2_000.0 / one, &mut Rng::with_seed(1));
        let longest = fan_outs.iter().copied().fold(0.0, f64::max);
        // One of a few events takes a little longer than one of one.
        assert!(longest <= 2.1 * pass(10_000.0, 8).max(one), "{longest} of {one}");
        assert!(fan_outs.iter().sum::<f64>() / EVENTS as f64 > 1.2 * one, "but they do wait");
        assert!(pass(1.0, 64) > pass(1.0, 32), "it is not for nothing in the end");
    }

    #[test]
    fn few_events_go_on_for_ever() {
        assert!((1.5..3.0).contains(&sustained(5_000.0)), "{}", sustained(5_000.0));
    }
}
