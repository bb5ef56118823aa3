//! A channel's name: what sockets join, and what an app's own events go to.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest name, in characters.
pub const MAX_NAME: usize = 128;

/// A checked name. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Channel(Arc<str>);

/// The name is none; says what is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadName;

impl Channel {
    /// # Errors
    /// Not 1 to [`MAX_NAME`] of `A-Z a-z 0-9 . _ : - /`.
    pub fn new(name: &str) -> Result<Self, BadName> {
        let is_legal = |c: char| c.is_ascii_alphanumeric() || "._:-/".contains(c);
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(is_legal) {
            return Err(BadName);
        }
        Ok(Self(name.into()))
    }

    /// The channel of one user, wherever they are: nobody else can join it.
    ///
    /// # Errors
    /// The user's name has other characters than a channel's, or is too long.
    pub fn of_user(user: &str) -> Result<Self, BadName> {
        Self::new(&format!("user:{user}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Channel {
    fn borrow(&self) -> &str {
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
        write!(f, "channel: expected 1 to {MAX_NAME} of A-Z a-z 0-9 . _ : - /")
    }
}

impl std::error::Error for BadName {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for name in ["a", "environment:42", "A.b_c:d-e/f", &"x".repeat(128)] {
            assert_eq!(Channel::new(name).unwrap().as_str(), name);
        }
        for name in ["", " ", "a b", "ä", "a,b", "a*", "a\n", &"x".repeat(129)] {
            assert_eq!(Channel::new(name), Err(BadName), "{name:?}");
        }
        assert_eq!(Channel::of_user("ann").unwrap().as_str(), "user:ann");
    }
}
