//! `alien-alert doctor`: looks at what a deployment needs, in the order in which one thing needs another,
//! and says of each how it is and what to do about it.
//!
//! It does what a VM does rather than asking what a VM might do: rights are tried, a message goes round.
//! What it makes it takes away again, however it ends, and VMs and their clients take no notice.

mod checks;
mod findings;
mod leftovers;

use std::future::Future;
use std::io::Write;

use tokio::select;

use self::checks::{examine, look_at_bus};
use self::findings::Findings;
use crate::bus::pubsub::probe::Probe;
use crate::config::{BusConfig, Config, ConfigError};

pub use self::findings::Outcome;

pub const HELP: &str = "\
Looks at what a deployment needs, and says what to do about what is not well.

Usage: alien-alert doctor [--clean] [--json]

  --clean  deletes subscriptions of VMs that are gone: named ID_…, on the topic, made by this
           program more than an hour ago, and no beacon is heard of their VM
  --json   tells all at the end, as one object of JSON

It goes by the settings of the VMs: run it with their environment, BEACON_INTERVAL too. Each line is
ok, warning, failed, or skipped where something before it must be well first. It makes a subscription
of its own on the topic, publishes what no VM takes notice of, and deletes the subscription again. Where
a subscription's VM is not heard it listens for two and a half of the VMs' beacon intervals, 38 s by
default and an hour at most; all else takes seconds. A VM that ended within that time still counts as
alive.

Exit codes: 0 all is well, 1 there are warnings, 2 something failed, 130 interrupted.
";

/// How an examination ended, as the process's exit code.
pub const INTERRUPTED: u8 = 130;

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Delete what dead VMs left behind.
    pub clean: bool,
    pub json: bool,
}

impl Options {
    /// # Errors
    /// The first argument that is not understood.
    pub fn parse(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Self, String> {
        let mut options = Self::default();
        for argument in arguments {
            match argument.to_str() {
                Some("--clean") => options.clean = true,
                Some("--json") => options.json = true,
                _ => return Err(format!("doctor: {argument:?} is not understood, see doctor --help")),
            }
        }
        Ok(options)
    }
}

/// Examines what `config` sets up, tells it on `out`, and returns the exit code.
pub async fn run(
    config: Result<Config, ConfigError>,
    options: Options,
    out: impl Write,
    shutdown: impl Future<Output = ()>,
) -> u8 {
    let mut findings = Findings::new(out, options.json);
    let probe = match &config {
        Ok(Config { bus: BusConfig::PubSub(settings), identity, .. }) => {
            Some(Probe::new(settings, identity).await)
        }
        _ => None,
    };
    let is_whole = select! {
        () = look(&config, probe.as_ref(), options, &mut findings) => true,
        () = shutdown => false,
    };
    if let Some(Ok(probe)) = &probe
        && let Err(trouble) = probe.remove().await
    {
        findings.left_behind(&probe.subscription(), &trouble.why);
    }
    findings.end(is_whole)
}

async fn look<W: Write>(
    config: &Result<Config, ConfigError>,
    probe: Option<&Result<Probe, ConfigError>>,
    options: Options,
    findings: &mut Findings<W>,
) {
    let config = match config {
        Ok(config) => config,
        Err(error) => return findings.no_configuration(&error.to_string()),
    };
    match (&config.bus, probe) {
        (BusConfig::PubSub(settings), Some(probe)) => {
            look_at_bus(config, settings, findings);
            examine(config, settings, probe, options, findings).await;
        }
        _ => findings.in_process(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_and_others_named() {
        let parse = |words: &[&str]| Options::parse(words.iter().map(Into::into));
        assert_eq!(parse(&[]), Ok(Options::default()));
        assert_eq!(parse(&["--json", "--clean"]), Ok(Options { clean: true, json: true }));
        assert!(parse(&["--json", "--cleen"]).unwrap_err().contains("--cleen"));
    }

    #[tokio::test]
    async fn in_process_nothing_else_is_looked_at() {
        let mut out = Vec::new();
        let code = run(Config::from_vars([]), Options::default(), &mut out, std::future::pending()).await;
        let told = String::from_utf8(out).unwrap();
        assert_eq!(code, 0, "{told}");
        assert!(told.contains("one VM alone"), "{told}");
    }

    #[tokio::test]
    async fn a_setting_that_can_t_be_used_is_named_and_the_rest_skipped() {
        let mut out = Vec::new();
        let config = Config::from_vars([("PORT".to_owned(), "eighty".to_owned())]);
        let options = Options { json: true, ..Options::default() };
        assert_eq!(run(config, options, &mut out, std::future::pending()).await, 2);
        let told: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(
            (&told["result"], &told["checks"][0]["check"]),
            (&"failed".into(), &"configuration".into())
        );
        assert!(told["checks"][0]["found"].as_str().unwrap().starts_with("PORT="), "{told}");
        assert!(told["checks"].as_array().unwrap()[1..].iter().all(|check| check["outcome"] == "skipped"));
    }
}
