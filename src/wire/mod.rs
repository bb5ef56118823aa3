//! The protocol between a client and its VM: JSON in text frames, `type` first.
//!
//! [`request`] reads what clients send, [`reply`] writes what they get. Only these and
//! [`crate::event`] know JSON.

pub mod reply;
pub mod request;

use std::fmt;

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
    Unavailable,
}

/// Why a socket is closed. Sources: RFC 6455, 7.4.1, and its registry at IANA for 1012 and 1013.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum CloseCode {
    Idle = 1001,
    Protocol = 1002,
    Binary = 1003,
    NotUtf8 = 1007,
    Flooding = 1008,
    TooLarge = 1009,
    Restart = 1012,
    SlowConsumer = 1013,
}

impl CloseCode {
    /// The word for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Protocol => "protocol",
            Self::Binary => "binary",
            Self::NotUtf8 => "not_utf8",
            Self::Flooding => "flooding",
            Self::TooLarge => "too_large",
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

impl fmt::Display for Close {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code as u16, self.reason)
    }
}
