//! Logs on stderr: for eyes at a terminal, JSON for machines, and each line says which VM it is of.
//!
//! The turns of a VM's life are told once each, at `info` and above. What visitors cause is told at
//! `debug`, or [`Seldom`], so that nobody from outside fills a disk; of a single delivery nothing is told
//! at all. Lines are written by a thread of their own: where nobody takes them, or a disk is full, they are
//! dropped and counted, and sockets are served all the same. A visitor's address is shortened to its network,
//! unless `LOG_ADDRESSES` asks for all of it.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::io::{self, IsTerminal as _, Write, stderr};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::panic::{PanicHookInfo, set_hook};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock};

pub use tracing_appender::non_blocking::WorkerGuard as Guard;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use ipnet::IpNet;
use serde_json::json;
use tracing::{Event, Subscriber, error};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{self, Format, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::ConfigError;
use crate::identity::Identity;

/// So much of an address is told: enough to see that many are of one provider, too little for one person.
const NETWORK_V4: u8 = 24;
const NETWORK_V6: u8 = 48;

/// Of the same thing, where visitors can cause it.
const LINES_PER_MINUTE: NonZeroU32 = NonZeroU32::new(6).unwrap();

/// So much of the VM's id is on a line of text.
const SHORT: usize = 8;

/// `LOG_ADDRESSES=full`. The process's, as its log is.
static WHOLE_ADDRESSES: AtomicBool = AtomicBool::new(false);

/// Counts the lines that found no room. The process's, as its log is.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// And those that could not be written.
static UNWRITTEN: AtomicU64 = AtomicU64::new(0);

/// Lines that may wait to be written.
const WAITING: usize = 8_192;

/// Sets the process's logging up, by `RUST_LOG`, `LOG_FORMAT` and `LOG_ADDRESSES`. Dropped, the guard waits
/// a second at most for the last lines.
///
/// # Errors
/// One of them is not understood.
pub fn start(identity: &Identity) -> Result<Guard, ConfigError> {
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
    let whole = match variable("LOG_ADDRESSES").as_deref() {
        Some("full") => true,
        Some("short") | None => false,
        Some(other) => return Err(ConfigError::value("LOG_ADDRESSES", other, "short or full")),
    };
    WHOLE_ADDRESSES.store(whole, Ordering::Relaxed);
    let colour = (terminal && variable("NO_COLOR").is_none()) || variable("FORCE_COLOR").is_some();
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(WAITING)
        .thread_name("logs")
        .finish(Lines::default());
    let _ = DROPPED.set(writer.error_counter());
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    // It would tell of them on stderr, and panic where that is the trouble.
    let logs = logs.log_internal_errors(false);
    if json {
        logs.json().flatten_event(true).map_event_format(|lines| Named::new(lines, identity)).init();
    } else {
        logs.with_ansi(colour).with_target(false).with_timer(Stamp::new(identity)).init();
    }
    set_hook(Box::new(tell_panic));
    Ok(guard)
}

/// Lines of this process that nobody will see.
pub fn dropped() -> u64 {
    let dropped = DROPPED.get().map_or(0, |lines| lines.dropped_lines() as u64);
    dropped + UNWRITTEN.load(Ordering::Relaxed)
}

/// stderr, whose lines may break off where a disk is full.
#[derive(Default)]
struct Lines {
    /// A part of the last one may stand there; the next one begins on a line of its own.
    broken: bool,
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stderr = stderr();
        let written = if self.broken { stderr.write_all(b"\n") } else { Ok(()) };
        let written = written.and_then(|()| stderr.write(bytes));
        self.broken = written.is_err();
        if self.broken {
            UNWRITTEN.fetch_add(1, Ordering::Relaxed);
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        stderr().flush()
    }
}

/// Lines of JSON with the VM's name as their last fields.
struct Named {
    lines: Format<format::Json>,
    /// Its fields, as they stand at the end of each line.
    name: String,
}

impl Named {
    fn new(lines: Format<format::Json>, identity: &Identity) -> Self {
        let name = json!({
            "instance": &**identity.instance(),
            "region": &**identity.region(),
            "version": env!("CARGO_PKG_VERSION"),
        });
        Self { lines, name: name.to_string().replacen('{', ",", 1) }
    }
}

impl<S, N> FormatEvent<S, N> for Named
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::new();
        self.lines.format_event(ctx, Writer::new(&mut line), event)?;
        let rest = line.trim_end().strip_suffix('}').ok_or(fmt::Error)?;
        writeln!(to, "{rest}{}", self.name)
    }
}

/// The time and the VM's name, short, where a line of text has its time.
struct Stamp(String);

impl Stamp {
    fn new(identity: &Identity) -> Self {
        let short: String = identity.instance().chars().take(SHORT).collect();
        Self(format!("{} {short} {}", identity.region(), env!("CARGO_PKG_VERSION")))
    }
}

impl FormatTime for Stamp {
    fn format_time(&self, to: &mut Writer<'_>) -> fmt::Result {
        SystemTime.format_time(to)?;
        write!(to, " {}", self.0)
    }
}

/// A visitor's address, as the log tells it.
pub struct Address(pub IpAddr);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.0.to_canonical();
        if WHOLE_ADDRESSES.load(Ordering::Relaxed) {
            return address.fmt(f);
        }
        let bits = if address.is_ipv4() { NETWORK_V4 } else { NETWORK_V6 };
        IpNet::new_assert(address, bits).trunc().fmt(f)
    }
}

/// Lets a few lines a minute through, and counts the others.
pub struct Seldom {
    rate: DefaultDirectRateLimiter,
    kept_back: AtomicU64,
}

impl Default for Seldom {
    fn default() -> Self {
        let rate = RateLimiter::direct(Quota::per_minute(LINES_PER_MINUTE));
        Self { rate, kept_back: AtomicU64::new(0) }
    }
}

impl Seldom {
    /// Whether it is said now, and if so, how often it was not since the last time.
    pub fn pass(&self) -> Option<u64> {
        if self.rate.check().is_ok() {
            return Some(self.kept_back.swap(0, Ordering::Relaxed));
        }
        self.kept_back.fetch_add(1, Ordering::Relaxed);
        None
    }
}

/// A defect is a line like others, or who reads JSON would stumble over it.
fn tell_panic(panic: &PanicHookInfo<'_>) {
    static SELDOM: LazyLock<Seldom> = LazyLock::new(Seldom::default);
    let Some(kept_back) = SELDOM.pass() else { return };
    let at = panic.location().map(ToString::to_string);
    // By RUST_BACKTRACE, as ever.
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    error!(at, backtrace, kept_back, "a defect: {}", panic.payload_as_str().unwrap_or("without words"));
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::panic::{catch_unwind, take_hook};
    use std::sync::{Arc, Mutex};

    use serde_json::Value;
    use tracing::{info, info_span, subscriber};

    use super::*;
    use crate::config::Env;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines of JSON that `act` makes.
    fn lines(act: impl FnOnce()) -> Vec<Value> {
        let env = Env { fly_alloc_id: Some("148ed123c79d89".into()), ..Env::default() };
        let identity = Identity::from_env(&env).unwrap();
        let sink = Sink::default();
        let writer = sink.clone();
        let logs = tracing_subscriber::fmt().with_writer(move || writer.clone());
        let logs =
            logs.json().flatten_event(true).map_event_format(|lines| Named::new(lines, &identity)).finish();
        subscriber::with_default(logs, act);
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn each_line_has_the_vm_s_name_whatever_else_it_has() {
        let lines = lines(|| {
            info!("plain");
            let _in = info_span!("outer", brace = "}").entered();
            info!(text = "}\n", instance = "another", "in a span");
        });
        assert_eq!(lines.len(), 2);
        for line in &lines {
            assert_eq!(line["instance"], "148ed123c79d89", "{line}");
            assert_eq!(line["region"], "LOCAL_REGION", "{line}");
            assert_eq!(line["version"], env!("CARGO_PKG_VERSION"), "{line}");
        }
        assert_eq!((&lines[1]["text"], &lines[1]["span"]["brace"]), (&"}\n".into(), &"}".into()));
    }

    #[test]
    fn a_panic_is_a_line() {
        let lines = lines(|| {
            let before = take_hook();
            set_hook(Box::new(tell_panic));
            assert!(catch_unwind(|| panic!("two\nlines")).is_err());
            set_hook(before);
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!(
            (&lines[0]["level"], &lines[0]["message"]),
            (&"ERROR".into(), &"a defect: two\nlines".into())
        );
        assert!(lines[0]["at"].as_str().unwrap().contains("logs.rs:"), "{}", lines[0]);
    }

    #[test]
    fn addresses_are_networks() {
        for (address, told) in [
            ("203.0.113.77", "203.0.113.0/24"),
            ("::ffff:203.0.113.77", "203.0.113.0/24"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1::/48"),
        ] {
            assert_eq!(Address(address.parse().unwrap()).to_string(), told);
        }
    }

    #[test]
    fn what_comes_too_often_is_counted() {
        let seldom = Seldom::default();
        let passed = (0..1_000).filter(|_| seldom.pass().is_some()).count();
        assert_eq!(passed, 6);
        assert_eq!(seldom.kept_back.load(Ordering::Relaxed), 994);
    }
}
