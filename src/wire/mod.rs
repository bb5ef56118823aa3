//! The protocol between a client and its VM: JSON in text frames, `type` first.
//!
//! [`request`] reads what clients send, [`reply`] writes what they get. Only these and
//! [`crate::event`] know the JSON of events.

pub mod reply;
pub mod request;

use serde::Serialize;

/// What went wrong, in words that a program can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    InvalidJson,
    UnknownType,
    InvalidField,
    RateLimited,
    Forbidden,
    NotFound,
    TooLarge,
    Unavailable,
}

/// Why a socket is closed. Sources: RFC 6455, 7.4.1, and its registry at IANA for 1012 and 1013.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCode {
    Idle,
    /// The client ended its side without a close.
    Lost,
    Protocol,
    Binary,
    NotUtf8,
    Flooding,
    Expired,
    /// The app does not want it any longer.
    Dismissed,
    TooLarge,
    /// A defect of this program.
    Defect,
    Restart,
    SlowConsumer,
}

impl CloseCode {
    /// As it stands in the frame.
    pub fn number(self) -> u16 {
        match self {
            Self::Idle | Self::Lost => 1001,
            Self::Protocol => 1002,
            Self::Binary => 1003,
            Self::NotUtf8 => 1007,
            Self::Flooding | Self::Expired | Self::Dismissed => 1008,
            Self::TooLarge => 1009,
            Self::Defect => 1011,
            Self::Restart => 1012,
            Self::SlowConsumer => 1013,
        }
    }

    /// The word for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Lost => "lost",
            Self::Protocol => "protocol",
            Self::Binary => "binary",
            Self::NotUtf8 => "not_utf8",
            Self::Flooding => "flooding",
            Self::Expired => "expired",
            Self::Dismissed => "dismissed",
            Self::TooLarge => "too_large",
            Self::Defect => "defect",
            Self::Restart => "restart",
            Self::SlowConsumer => "slow_consumer",
        }
    }
}

/// A close, with the reason that the client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    pub code: CloseCode,
    pub reason: String,
}

impl Close {
    pub fn new(code: CloseCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }

    /// To come back after so many milliseconds, to this VM or another.
    pub fn come_back(code: CloseCode, after_ms: u128) -> Self {
        Self::new(code, format!("retry in {after_ms} ms"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_has_a_number_for_clients_and_a_word_for_figures() {
        for (code, number, name) in [
            (CloseCode::Idle, 1001, "idle"),
            (CloseCode::Lost, 1001, "lost"),
            (CloseCode::Dismissed, 1008, "dismissed"),
            (CloseCode::SlowConsumer, 1013, "slow_consumer"),
        ] {
            assert_eq!((code.number(), code.name()), (number, name));
        }
    }
}
