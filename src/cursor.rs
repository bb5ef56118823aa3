//! A place in the stream of events, opaque to clients: which topic, and the topic's own time.
//!
//! The topic's clock, and not a VM's count, because a client may come back to any VM, and VMs
//! receive in different orders. That order is why catch-up overlaps by [`OVERLAP`] and clients drop
//! ids that they have seen.

use std::fmt;
use std::time::Duration;

use crate::clock;

/// How much earlier than the cursor catch-up begins. All before a cursor is proven to have been heard, but
/// for what a VM published that died right after: it can't speak for itself, and others take their time.
pub const OVERLAP: Duration = Duration::from_secs(60);

/// How far ahead of this VM's clock the topic's may be.
const SKEW: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// [`crate::bus::Bus::tag`] of its topic.
    pub topic: u32,
    /// Microseconds since the epoch.
    pub at: i64,
}

/// Why a cursor can't be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadCursor {
    Malformed,
    OtherTopic,
    Future,
}

impl Cursor {
    /// Reads what a client kept.
    ///
    /// # Errors
    /// It is none of this topic's cursors.
    pub fn parse(text: &str, topic: u32) -> Result<Self, BadCursor> {
        let (tag, at) = text.split_once('-').ok_or(BadCursor::Malformed)?;
        // from_str_radix would take a sign.
        if text.len() > 32 || !tag.chars().chain(at.chars()).all(|c| c.is_ascii_hexdigit()) {
            return Err(BadCursor::Malformed);
        }
        let tag = u32::from_str_radix(tag, 16).map_err(|_| BadCursor::Malformed)?;
        let at = i64::from_str_radix(at, 16).map_err(|_| BadCursor::Malformed)?;
        if tag != topic {
            return Err(BadCursor::OtherTopic);
        }
        if at > clock::now_micros() + SKEW.as_micros() as i64 {
            return Err(BadCursor::Future);
        }
        Ok(Self { topic, at })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:x}", self.topic, self.at)
    }
}

impl fmt::Display for BadCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "since: not a cursor of this server; everything kept is sent",
            Self::OtherTopic => "since: a cursor of another topic; everything kept is sent",
            Self::Future => "since: a cursor from the future; everything kept is sent",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_wrote() {
        let cursor = Cursor { topic: 0xbeef, at: clock::now_micros() };
        assert_eq!(Cursor::parse(&cursor.to_string(), 0xbeef), Ok(cursor));
        assert_eq!(Cursor::parse(&cursor.to_string(), 1), Err(BadCursor::OtherTopic));
    }

    #[test]
    fn refuses_what_it_did_not_write() {
        for text in
            ["", "-", "x", "1-", "-1", "1--1", "+1-+1", "1-g", "é-1", &"1".repeat(99), "1-1-1", "fffffffff-1"]
        {
            assert_eq!(Cursor::parse(text, 1), Err(BadCursor::Malformed), "{text}");
        }
        assert_eq!(Cursor::parse("1-7fffffffffffffff", 1), Err(BadCursor::Future));
        let padded = |length: usize| format!("{:0>width$}-00000001", 1, width = length - 9);
        assert_eq!(Cursor::parse(&padded(32), 1), Ok(Cursor { topic: 1, at: 1 }));
        assert_eq!(Cursor::parse(&padded(33), 1), Err(BadCursor::Malformed), "longer than any");
    }

    #[tokio::test(start_paused = true)]
    async fn the_topic_s_clock_may_be_a_minute_ahead() {
        let ahead = Cursor { topic: 1, at: clock::now_micros() + SKEW.as_micros() as i64 };
        assert_eq!(Cursor::parse(&ahead.to_string(), 1), Ok(ahead));
        let further = Cursor { at: ahead.at + 1, ..ahead };
        assert_eq!(Cursor::parse(&further.to_string(), 1), Err(BadCursor::Future));
    }
}
