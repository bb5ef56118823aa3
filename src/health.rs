//! Whether this VM does its job: proof of the path through the topic, not of the process alone.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Where in its life a VM is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its own beacon has not come round yet.
    Starting,
    Ready,
    /// It was ready and the path through the topic broke, with why. Its sockets stay.
    Unreachable(String),
    Leaving,
}

/// The phase, seen by all.
pub struct Health(Mutex<Phase>);

impl Default for Health {
    fn default() -> Self {
        Self(Mutex::new(Phase::Starting))
    }
}

impl Health {
    pub fn phase(&self) -> Phase {
        self.lock().clone()
    }

    /// The path is proven; true if that is news. A VM that leaves is not called back.
    pub fn ready(&self) -> bool {
        self.change(Phase::Ready)
    }

    /// The path is broken; true if that is news.
    pub fn unreachable(&self, why: String) -> bool {
        let phase = self.phase();
        // One that never was ready is still starting, and takes no sockets.
        phase != Phase::Starting
            && self.change(Phase::Unreachable(why))
            && !matches!(phase, Phase::Unreachable(_))
    }

    pub fn leaving(&self) {
        self.change(Phase::Leaving);
    }

    fn change(&self, to: Phase) -> bool {
        let mut phase = self.lock();
        let news = *phase != Phase::Leaving && *phase != to;
        if news {
            *phase = to;
        }
        news
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Phase {
    /// One line for whoever asks.
    pub fn text(&self) -> String {
        match self {
            Self::Starting => "starting: this VM's beacon has not come back through the topic yet".into(),
            Self::Ready => "OK".into(),
            Self::Unreachable(why) => format!("the topic can't be reached: {why}"),
            Self::Leaving => "leaving".into(),
        }
    }

    /// Whether new sockets are taken. One that waits for a topic to recover loses nothing here,
    /// and has nowhere better to go when the topic is down for all.
    pub fn takes_sockets(&self) -> bool {
        matches!(self, Self::Ready | Self::Unreachable(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_is_told_once() {
        let health = Health::default();
        assert!(!health.unreachable("no route".into()), "still starting");
        assert!(health.ready());
        assert!(!health.ready());
        assert!(health.unreachable("no route".into()));
        assert!(!health.unreachable("no answer".into()), "the same outage");
        assert_eq!(health.phase(), Phase::Unreachable("no answer".into()));
        assert!(health.ready());
    }

    #[test]
    fn leaving_is_final() {
        let health = Health::default();
        health.leaving();
        assert!(!health.ready());
        assert_eq!(health.phase(), Phase::Leaving);
    }
}
