//! What every socket of a shard is to be told, as one string of bytes: whole frames, one after another.
//!
//! A socket is a place in it, counted in bytes since the shard began. All that a socket has not been
//! told yet is one slice, so that one system call writes it, however many events it is.

use std::collections::VecDeque;

/// Room that is kept when all is told.
const KEPT: usize = 64 << 10;

pub struct Log {
    /// What somebody may still have to be told; the first `told` of them nobody has.
    bytes: Vec<u8>,
    told: usize,
    /// The place of the first of `bytes`.
    origin: u64,
    /// Where the frames end, from the last one that everybody was told.
    ends: VecDeque<u64>,
}

impl Log {
    pub fn new() -> Self {
        Self { bytes: Vec::new(), told: 0, origin: 0, ends: VecDeque::from([0]) }
    }

    /// The place after the last frame.
    pub fn head(&self) -> u64 {
        self.origin + self.bytes.len() as u64
    }

    pub fn push(&mut self, frame: &[u8]) {
        self.bytes.extend_from_slice(frame);
        self.ends.push_back(self.head());
    }

    /// What lies between two places, as far as it is not forgotten.
    pub fn between(&self, from: u64, to: u64) -> &[u8] {
        self.bytes.get(self.index(from)..self.index(to)).unwrap_or_default()
    }

    /// Where the frame ends that `place` is in; `place` itself when it is between two.
    pub fn frame_end(&self, place: u64) -> u64 {
        let index = self.ends.partition_point(|end| *end < place);
        self.ends.get(index).copied().unwrap_or(place)
    }

    /// Forgets what comes before `place`: everybody was told.
    pub fn forget(&mut self, place: u64) {
        self.told = self.told.max(self.index(place).min(self.bytes.len()));
        self.ends.drain(..self.ends.partition_point(|end| *end < place));
        if self.told == self.bytes.len() {
            self.origin = self.head();
            self.bytes.clear();
            self.bytes.shrink_to(KEPT);
            self.told = 0;
        } else if self.told > self.bytes.len() / 2 {
            // No byte is moved more often than another one is forgotten.
            self.bytes.drain(..self.told);
            self.origin += self.told as u64;
            self.told = 0;
        }
    }

    fn index(&self, place: u64) -> usize {
        usize::try_from(place.saturating_sub(self.origin)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_stay_what_they_are_while_the_log_forgets() {
        let mut log = Log::new();
        let mut all = Vec::new();
        let mut told = 0;
        for length in (1..200).cycle().take(5_000) {
            let frame = vec![u8::try_from(length).unwrap(); length];
            let begins = log.head();
            log.push(&frame);
            all.extend(frame);
            assert_eq!(log.frame_end(begins), begins);
            assert_eq!(log.frame_end(begins + 1), log.head());
            // The slowest is up to a thousand bytes behind.
            told = (log.head() - log.head().min(fastrand::u64(..1_000))).max(told);
            log.forget(told);
            let from = usize::try_from(told).unwrap();
            assert_eq!(log.between(told, log.head()), &all[from..]);
            assert!(log.bytes.len() < 4_000);
        }
        log.forget(log.head());
        assert_eq!((log.bytes.len(), log.ends.len()), (0, 1));
        assert_eq!(log.frame_end(log.head()), log.head());
        assert_eq!(log.between(0, 10), b"", "forgotten");
    }

    #[test]
    fn what_is_left_is_moved_when_it_is_the_smaller_part() {
        let mut log = Log::new();
        log.push(&[0; 100]);
        for (told, kept) in [(50, 100), (51, 49)] {
            log.forget(told);
            assert_eq!((log.bytes.len(), log.head()), (kept, 100));
        }
    }

    #[test]
    fn a_burst_s_room_is_given_back() {
        let mut log = Log::new();
        log.push(&vec![0; 10 * KEPT]);
        log.forget(log.head());
        assert!(log.bytes.capacity() <= KEPT);
    }
}
