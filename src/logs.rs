//! Logs on stderr: for eyes at a terminal, JSON for machines.

use std::io::{IsTerminal as _, stderr};

use tracing_subscriber::EnvFilter;

use crate::config::ConfigError;

/// Sets the process's logging up, by `RUST_LOG` and `LOG_FORMAT`.
///
/// # Errors
/// One of the two is not understood.
pub fn start() -> Result<(), ConfigError> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let level = variable("RUST_LOG").unwrap_or_else(|| "info".into());
    let filter = EnvFilter::try_new(&level).map_err(|_| {
        ConfigError::value("RUST_LOG", &level, "a level such as info, or target=level by comma")
    })?;
    let terminal = stderr().is_terminal();
    let json = match variable("LOG_FORMAT").as_deref() {
        Some("json") => true,
        Some("text") => false,
        None => !terminal,
        Some(other) => return Err(ConfigError::value("LOG_FORMAT", other, "text or json")),
    };
    let colour = (terminal && variable("NO_COLOR").is_none()) || variable("FORCE_COLOR").is_some();
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    if json {
        logs.json().flatten_event(true).init();
    } else {
        logs.with_ansi(colour).with_target(false).init();
    }
    Ok(())
}
