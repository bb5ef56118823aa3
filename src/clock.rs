//! The wall clock, in the units of the wire, and chance to spread things over time with.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[cfg(not(test))]
use uuid::Uuid;

/// Microseconds since the epoch.
pub fn now_micros() -> i64 {
    i64::try_from(since_epoch().as_micros()).unwrap_or(i64::MAX)
}

#[cfg(not(test))]
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// In tests the wall clock goes with the runtime's, which may be paused and wound on.
#[cfg(test)]
fn since_epoch() -> Duration {
    use tokio::time::Instant;
    static BEGUN: std::sync::LazyLock<(Duration, Instant)> = std::sync::LazyLock::new(|| {
        (SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(), Instant::now())
    });
    let (wall, begun) = *BEGUN;
    wall + Instant::now().saturating_duration_since(begun)
}

/// Milliseconds since the epoch, as JavaScript counts.
pub fn now_millis() -> i64 {
    now_micros() / 1000
}

/// Microseconds of a duration, in the type of [`now_micros`].
pub fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// A random part of `whole`, so that what happens to many does not happen at once.
pub fn random_part(whole: Duration) -> Duration {
    whole.mul_f64(random_share())
}

/// A random number from 0 to 1.
#[cfg(not(test))]
pub fn random_share() -> f64 {
    // The only chance the program needs beside its ids; those come from the same good source.
    let (bits, _) = Uuid::new_v4().as_u64_pair();
    (bits >> 16) as f64 / (u64::MAX >> 16) as f64
}

/// In tests chance can be repeated.
#[cfg(test)]
pub fn random_share() -> f64 {
    fastrand::f64()
}

/// Waits that double from `first` to `most`, each with up to half of it taken off at random, so
/// that VMs that lost the same thing do not return for it together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    next: Duration,
    most: Duration,
}

impl Backoff {
    pub fn new(first: Duration, most: Duration) -> Self {
        Self { first, next: first, most }
    }

    /// The next wait.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.most);
        wait - random_part(wait / 2)
    }

    /// It worked: begin small again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_within_their_bounds() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, second * 30);
        for doubled in [1, 2, 4, 8, 16, 30, 30] {
            let wait = backoff.wait();
            assert!(wait <= second * doubled && wait >= second * doubled / 2, "{wait:?} of {doubled} s");
        }
        backoff.reset();
        assert!(backoff.wait() <= second);
    }
}
