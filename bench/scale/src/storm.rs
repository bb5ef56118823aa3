//! What comes back when sockets are lost: how long it takes until all are there again, and what a rolling
//! deployment does to the VMs that it has not come to.

use fastrand::Rng;

use crate::constants::{CLOSING, FIRST_WAIT, JOINS, RESTART, SPREAD};

const SEED: u64 = 7;

/// How sockets were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Their VM left in order, and told each a time of its own.
    Told,
    /// It was killed, and each client has its own patience.
    Cut,
}

/// When (s) each of so many sockets is back, in order, where so many VMs take them.
pub fn back(sockets: usize, takers: usize, lost: Lost) -> Vec<f64> {
    let mut rng = Rng::with_seed(SEED);
    let mut comes: Vec<f64> = (0..sockets)
        .map(|_| match lost {
            Lost::Told => rng.f64() * CLOSING.value + rng.f64() * SPREAD.value,
            Lost::Cut => FIRST_WAIT.value * (0.5 + rng.f64() / 2.0),
        })
        .collect();
    comes.sort_by(f64::total_cmp);
    // Each goes to any of them, and waits there for its turn.
    let mut free = vec![0.0_f64; takers];
    let mut back: Vec<_> = comes
        .into_iter()
        .map(|at| {
            let free = &mut free[rng.usize(..takers)];
            *free = free.max(at) + 1.0 / JOINS.value;
            *free
        })
        .collect();
    back.sort_by(f64::total_cmp);
    back
}

/// A rolling deployment of so many VMs, so many at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rolling {
    /// How long it takes, in s.
    pub time: f64,
    /// How often a socket moves, on average.
    pub moves: f64,
    /// What the fullest VM holds meanwhile, by the mean.
    pub fullest: f64,
}

/// Sockets of those that leave go to any of the others, those too that are still to leave.
pub fn rolling(vms: usize, at_once: usize) -> Rolling {
    // What a VM holds is its own and what all others were given since: one sum for all.
    let mut own = vec![1.0; vms];
    let mut given = 0.0;
    let (mut moved, mut fullest) = (0.0, 1.0_f64);
    let mut steps = 0.0;
    for first in (0..vms).step_by(at_once) {
        let group = &mut own[first..vms.min(first + at_once)];
        let sockets: f64 = group.iter().map(|own| *own + given).sum();
        fullest = group.iter().fold(fullest, |fullest, own| fullest.max(*own + given));
        moved += sockets;
        given += sockets / (vms - group.len()) as f64;
        // They come back empty.
        group.fill(-given);
        steps += 1.0;
    }
    let fullest = own.iter().fold(fullest, |fullest, own| fullest.max(*own + given));
    Rolling { time: steps * RESTART.value, moves: moved / vms as f64, fullest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_told_a_time_comes_then_and_who_is_not_comes_at_once() {
        let told = back(5_000, 4, Lost::Told);
        assert_eq!(told.len(), 5_000);
        assert!(told[4_999] < CLOSING.value + SPREAD.value + 0.5, "the VMs keep up: {}", told[4_999]);
        let cut = back(5_000, 4, Lost::Cut);
        assert!(cut[4_999] < told[2_500]);
        assert!(back(20_000, 1, Lost::Cut)[19_999] > 20_000.0 / JOINS.value, "no faster than one VM can");
        assert_eq!(cut, back(5_000, 4, Lost::Cut));
    }

    #[test]
    fn a_socket_moves_one_or_two_times_in_a_rolling_deployment() {
        let Rolling { time, moves, fullest } = rolling(1_000, 1);
        assert!((moves - (std::f64::consts::E - 1.0)).abs() < 0.01, "{moves}");
        assert!((fullest - std::f64::consts::E).abs() < 0.01, "the last one before its turn: {fullest}");
        assert!((time - 1_000.0 * RESTART.value).abs() < 1.0);
        let two = rolling(2, 1);
        assert_eq!((two.moves, two.fullest), (1.5, 2.0));
    }

    #[test]
    fn no_socket_is_lost_on_the_way() {
        for (vms, at_once) in [(5, 1), (100, 10), (1_000, 100)] {
            let Rolling { moves, fullest, .. } = rolling(vms, at_once);
            assert!(moves >= 1.0 && moves <= fullest && fullest < 3.0, "{vms}: {moves}, {fullest}");
        }
    }
}
