//! A channel's name: what sockets join, and what an app's own events go to.
//!
//! A user's channel is `user:` and the user's name as it is, though identity providers put characters
//! into it that no other channel has (`auth0|5f7c`, `ann@example.org`). Another spelling of it would be a
//! second name for the same thing, which each backend would have to make in the same way.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest name, in characters.
pub const MAX_NAME: usize = 128;

/// Channels of one socket, whatever `MAX_CHANNELS` is set to.
pub const MOST_OF_ONE: usize = 10_000;

/// Channels that begin so are one user's each.
pub const USER: &str = "user:";

/// A checked name. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Channel(Arc<str>);

/// The name is none; says what is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadName;

impl Channel {
    /// # Errors
    /// Not 1 to [`MAX_NAME`] of `A-Z a-z 0-9 . _ : - /`, or of all visible ASCII after [`USER`].
    pub fn new(name: &str) -> Result<Self, BadName> {
        let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-/".contains(&byte);
        let fits = match name.strip_prefix(USER) {
            Some(user) => user.bytes().all(|byte| byte.is_ascii_graphic()),
            None => name.bytes().all(is_legal),
        };
        if name.is_empty() || name.len() > MAX_NAME || !fits {
            return Err(BadName);
        }
        Ok(Self(name.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Channel {
    type Error = BadName;

    fn try_from(name: String) -> Result<Self, BadName> {
        Self::new(&name)
    }
}

impl From<Channel> for String {
    fn from(channel: Channel) -> Self {
        channel.0.to_string()
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "channel: expected 1 to {MAX_NAME} of A-Z a-z 0-9 . _ : - /, or {USER} and visible ASCII characters"
        )
    }
}

impl std::error::Error for BadName {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for name in [
            "a",
            "environment:42",
            "A.b_c:d-e/f",
            &"x".repeat(128),
            "user:auth0|5f7c",
            "user:ann@example.org",
        ] {
            assert_eq!(Channel::new(name).unwrap().as_str(), name);
        }
        for name in
            ["", " ", "a b", "ä", "a,b", "a*", "a\n", &"x".repeat(129), "users|a", "user:a b", "user:ä"]
        {
            assert_eq!(Channel::new(name), Err(BadName), "{name:?}");
        }
    }
}
