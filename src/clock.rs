//! What time it is, in the units of the wire, and chance to spread things over time with.
//!
//! Places in the stream are times of the topic's, so the topic's clock is the one that counts. This machine's
//! is looked at once, when the process begins; from there on time goes by a clock that nobody sets, and where
//! the topic is found to have another time, by the topic's. So a clock that is wrong, or jumps, moves no cursor
//! and no window.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
#[cfg(not(test))]
use uuid::Uuid;

/// Clocks that are kept by NTP differ by less, and so do a message's ways to the topic and back.
const TOLERANCE: Duration = Duration::from_secs(1);

/// When this process began, and what time (µs) it was then.
static BEGUN: LazyLock<(Instant, AtomicI64)> =
    LazyLock::new(|| (Instant::now(), AtomicI64::new(machine_micros())));

/// Microseconds since the epoch.
pub fn now_micros() -> i64 {
    let (begun, then) = &*BEGUN;
    then.load(Ordering::Relaxed) + micros(begun.elapsed())
}

/// The same by this machine's clock, as it is set now.
fn machine_micros() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros())
        .unwrap_or(i64::MAX)
}

/// The topic took at `taken` (µs, by its clock) what was sent to it `ago`. Where that can't be, the topic is
/// right; returns by how much (µs) this process was ahead of it.
pub fn set_by(taken: i64, ago: Duration) -> Option<i64> {
    let ahead = ahead_of(taken, ago, now_micros())?;
    BEGUN.1.fetch_sub(ahead, Ordering::Relaxed);
    Some(ahead)
}

fn ahead_of(taken: i64, ago: Duration, now: i64) -> Option<i64> {
    let possible = taken - micros(TOLERANCE)..=taken + micros(ago + TOLERANCE);
    (!possible.contains(&now)).then(|| now - (taken + micros(ago / 2)))
}

/// The clock of a topic in this process: that of this machine, but for that it never goes back.
pub struct TopicClock(i64, Instant);

impl Default for TopicClock {
    fn default() -> Self {
        Self(now_micros(), Instant::now())
    }
}

impl TopicClock {
    pub fn now_micros(&mut self) -> i64 {
        let went_on = self.0 + micros(self.1.elapsed());
        // In tests time may be paused, and wound on.
        let machine = if cfg!(test) { went_on } else { machine_micros() };
        *self = Self(machine.max(went_on), Instant::now());
        self.0
    }
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
    fn the_topic_s_word_counts_where_it_leaves_no_doubt() {
        const SECOND: i64 = 1_000_000;
        let ahead_of = |taken, now| ahead_of(taken * SECOND, Duration::from_secs(2), now * SECOND);
        // Sent two seconds ago, at 98; taken somewhere between, by clocks that may differ by a second.
        for taken in 97..=101 {
            assert_eq!(ahead_of(taken, 100), None, "{taken}");
        }
        assert_eq!(ahead_of(102, 100), Some(-3 * SECOND), "behind");
        assert_eq!(ahead_of(96, 100), Some(3 * SECOND), "ahead");
        assert_eq!(ahead_of(100, 3_701), Some(3_600 * SECOND));
    }

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
