//! The process: read the settings, set up, run the VM, and end with a code that tells how it went.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::process::ExitCode;

use alien_alert::config::{BusConfig, Config, ConfigError, VARIABLES};
use alien_alert::signals::Signals;
use alien_alert::{doctor, http, logs, privileges, traces, vm};
use tracing::{info, warn};

// Sockets come and go by the thousand; this one gives memory back and packs small things well.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

// From sysexits.h.
const USAGE: u8 = 64;
const UNAVAILABLE: u8 = 69;
const SOFTWARE: u8 = 70;
const CONFIG: u8 = 78;

/// What a system allows whose limit can't be read.
const LEAST_FILES: u64 = 1_024;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if let Some(argument) = arguments.next() {
        return match argument.to_str() {
            Some("doctor") => see_doctor(arguments.collect()),
            Some("--help" | "-h") => print(&help()),
            Some("--version" | "-V") => print(concat!("alien-alert ", env!("CARGO_PKG_VERSION"), "\n")),
            _ => fail(
                USAGE,
                &format!("{argument:?} is not understood; settings are environment variables, see --help"),
            ),
        };
    }
    // Its memory is many small things, which pages of 2 MiB would round up by megabytes. Where the system
    // has no such pages, that is as well.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    if let Err(error) = privileges::give_up() {
        return fail(CONFIG, &error.to_string());
    }
    match settings() {
        Ok((config, _logs)) => run(config),
        Err(error) => fail(CONFIG, &error.to_string()),
    }
}

/// The settings, and logs that name the VM they tell of.
fn settings() -> Result<(Config, logs::Guard), ConfigError> {
    let config = Config::from_env()?;
    let logs = logs::start(&config.identity)?;
    Ok((config, logs))
}

fn see_doctor(arguments: Vec<OsString>) -> ExitCode {
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        return print(doctor::HELP);
    }
    // It looks from where the VM stands.
    if let Err(error) = privileges::give_up() {
        return fail(CONFIG, &error.to_string());
    }
    let options = match doctor::Options::parse(arguments) {
        Ok(options) => options,
        Err(why) => return fail(USAGE, &why),
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(UNAVAILABLE, &format!("the runtime can't be started: {error}")),
    };
    let examined = runtime.block_on(async {
        let signals = Signals::catch().map_err(|error| format!("signals can't be caught: {error}"))?;
        let (config, _logs) =
            settings().map_or_else(|error| (Err(error), None), |(config, logs)| (Ok(config), Some(logs)));
        Ok(doctor::run(config, options, io::stdout(), signals.shutdown()).await)
    });
    runtime.shutdown_background();
    examined.map_or_else(|why: String| fail(UNAVAILABLE, &why), ExitCode::from)
}

fn run(mut config: Config) -> ExitCode {
    let wanted = config.limits.connections;
    config.limits.connections = room_for(wanted);
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(UNAVAILABLE, &format!("the runtime can't be started: {error}")),
    };
    let ended = runtime.block_on(live(config, wanted));
    // Google's client may have tasks that wait for an answer; nobody waits for them.
    runtime.shutdown_background();
    ended.unwrap_or_else(|failed| failed)
}

/// Each socket is a file to the system, which allows a process 1,024 unless asked for more. How many
/// of the sockets wanted that leaves room for: one beyond is refused in order, by its own limit.
fn room_for(sockets: usize) -> usize {
    let wanted = (sockets + vm::OTHER_FILES) as u64;
    let allowed = rlimit::increase_nofile_limit(wanted).unwrap_or(LEAST_FILES);
    let allowed = usize::try_from(allowed).unwrap_or(usize::MAX);
    sockets.min(allowed.saturating_sub(vm::OTHER_FILES).max(allowed / 2))
}

async fn live(config: Config, wanted: usize) -> Result<ExitCode, ExitCode> {
    let signals =
        Signals::catch().map_err(|error| fail(UNAVAILABLE, &format!("signals can't be caught: {error}")))?;
    traces::start(&config.identity).map_err(|error| fail(CONFIG, &error.to_string()))?;
    let address = SocketAddr::new(config.host, config.port);
    let listeners = http::listen(address).map_err(|error| fail(UNAVAILABLE, &unbound(&config, &error)))?;
    let address = listeners[0].local_addr().unwrap_or(address);
    let bus = vm::bus(&config).await.map_err(|error: ConfigError| fail(CONFIG, &error.to_string()))?;
    info!(bus = bus.kind(), topic = topic(&config), "listening on http://{address}");
    let room = config.limits.connections;
    if room < wanted {
        warn!(room, wanted, "the system allows too few open files for MAX_CONNECTIONS; see ulimit -n");
    }
    match vm::run(listeners, config, bus, signals.shutdown()).await {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(vm::Broken) => Err(fail(SOFTWARE, "a task has ended that must not; the log says more")),
    }
}

/// Why it can't listen, by the variable that is at fault.
fn unbound(config: &Config, error: &io::Error) -> String {
    let Config { host, port, .. } = config;
    match error.kind() {
        ErrorKind::AddrNotAvailable => {
            format!("HOST={host}: {error}; expected an address of this machine, or 0.0.0.0 for all of them")
        }
        ErrorKind::PermissionDenied => {
            format!("PORT={port}: {error}; ports below 1024 are for root, set PORT to a higher one")
        }
        _ => format!("PORT={port}: can't listen on {host}: {error}; set PORT to a free one"),
    }
}

fn topic(config: &Config) -> &str {
    match &config.bus {
        BusConfig::Memory => "in this process",
        BusConfig::PubSub(settings) => &settings.topic,
    }
}

fn print(text: &str) -> ExitCode {
    // A reader that closed the pipe has seen enough.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
    ExitCode::SUCCESS
}

fn fail(code: u8, why: &str) -> ExitCode {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("alien-alert: {why}\n").as_bytes());
    ExitCode::from(code)
}

fn help() -> String {
    let mut text = String::from(
        "Someone presses the red button, and every open page in the world knows.\n\n\
         Usage: alien-alert          runs a VM\n       \
         alien-alert doctor   looks at what a deployment needs; see doctor --help\n\n\
         Settings, by environment variable:\n",
    );
    for (name, default, meaning) in VARIABLES {
        let default = if default.is_empty() { String::new() } else { format!(" [{default}]") };
        // Writing to a String can't fail.
        let _ = writeln!(text, "  {name:<33} {meaning}{default}");
    }
    text
}
