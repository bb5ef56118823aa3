//! Pub/Sub's rules for names, checked before Google is asked.
//!
//! Source: the comments of `Topic.name` and `Subscription.name` in google/pubsub/v1/pubsub.proto.

use crate::config::ConfigError;

/// Checks a topic's or subscription's own name.
///
/// # Errors
/// An error that names `variable` and tells the rule.
pub fn check_resource_name(variable: &str, name: &str) -> Result<(), ConfigError> {
    let fits = (3..=255).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(is_allowed)
        && !name.starts_with("goog");
    if fits {
        return Ok(());
    }
    let rule = "3 to 255 letters, digits or -_.~+%, a letter first, and not starting with goog";
    Err(ConfigError::value(variable, name, rule))
}

/// Checks what is to be a part of a name.
///
/// # Errors
/// As [`check_resource_name`].
pub fn check_characters(variable: &str, part: &str) -> Result<(), ConfigError> {
    if part.chars().all(is_allowed) {
        return Ok(());
    }
    Err(ConfigError::value(variable, part, "letters, digits or -_.~+%, to be part of a subscription's name"))
}

/// Checks a project's id: laxer than Google, whose rule has changed over the years, and strict
/// enough that nothing else is taken for one.
///
/// # Errors
/// As [`check_resource_name`].
pub fn check_project(variable: &str, project: &str) -> Result<(), ConfigError> {
    let fits = project.len() <= 100
        && project.starts_with(|c: char| c.is_ascii_lowercase())
        && project.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:".contains(c));
    if fits {
        return Ok(());
    }
    Err(ConfigError::value(variable, project, "a project id such as my-project-123 (not its display name)"))
}

fn is_allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.~+%".contains(c)
}
