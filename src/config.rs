//! The settings: read once from the environment, checked once, and then plain values.
//!
//! Every variable is one row of [`VARIABLES`], which is also what `--help` prints, so that the
//! table and the program cannot drift apart. A value that does not fit ends the start with one
//! line that names the variable, the value and what is accepted.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use crate::auth::{ApiKeys, Tokens};
use crate::authorizer::Authorizer;
use crate::bus::pubsub::{self, Credentials};
use crate::channel;
use crate::identity::Identity;

/// A key in the working directory, as the article has it.
const KEY_FILE: &str = "google-service-account.json";

/// All that the environment decides.
#[derive(Clone, Debug)]
pub struct Config {
    pub host: IpAddr,
    pub port: u16,
    pub identity: Identity,
    pub bus: BusConfig,
    pub history: HistoryLimits,
    pub limits: Limits,
    pub ping_interval: Duration,
    pub beacon_interval: Duration,
    /// Origins besides the page's own that may open sockets.
    pub allowed_origins: HashSet<String>,
    /// How visitors' tokens are checked, where they need one.
    pub tokens: Option<Tokens>,
    pub api_keys: ApiKeys,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Who is asked about each visitor.
    pub authorizer: Option<Authorizer>,
    /// Where connects and disconnects are told.
    pub lifecycle_topic: Option<String>,
}

/// Which bus carries the events.
#[derive(Clone, Debug)]
pub enum BusConfig {
    Memory,
    PubSub(pubsub::Settings),
}

/// How far back a VM remembers: whichever bound is reached first.
#[derive(Clone, Copy, Debug)]
pub struct HistoryLimits {
    pub age: Duration,
    pub events: usize,
    pub bytes: usize,
}

/// What one socket, one address and all of them together may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub message_bytes: usize,
    pub outbox_bytes: usize,
    pub connections: usize,
    pub connections_per_address: usize,
    /// Of one socket.
    pub channels: usize,
    /// Per address, a second.
    pub upgrades: Rate,
    /// Per socket, a second.
    pub messages: Rate,
    /// Per key of the backend, a second.
    pub api: Rate,
}

/// A token bucket: so many a second on average, so many at once.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    pub per_second: NonZeroU32,
    pub burst: NonZeroU32,
}

/// Why the settings can't be used, in one line for the operator.
#[derive(Debug)]
pub struct ConfigError(String);

impl ConfigError {
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// The common form: which variable, which value, what is accepted.
    pub fn value(name: &str, value: &str, accepted: impl fmt::Display) -> Self {
        // Debug formatting keeps it on one line whatever the value holds.
        Self(format!("{name}={value:?}: expected {accepted}"))
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A cause from a library may hold line breaks; the promise is one line.
        f.write_str(&self.0.replace(['\n', '\r'], " "))
    }
}

impl std::error::Error for ConfigError {}

/// Name, default and meaning of each variable, in the order of `--help`.
pub const VARIABLES: &[(&str, &str, &str)] = &[
    ("PORT", "8080", "port to listen on"),
    ("HOST", "0.0.0.0", "address to listen on"),
    (
        "RUN_AS",
        "",
        "user, by number, to go on as where root starts it: with root's limit on open files; empty: root stays",
    ),
    ("FLY_ALLOC_ID", "a new UUID", "this VM's id, set by Fly; else FLY_MACHINE_ID, else GAE_INSTANCE"),
    ("FLY_REGION", "LOCAL_REGION", "where this VM is, set by Fly"),
    ("FLY_APP_NAME", "", "set by Fly: Pub/Sub is then a must, and Fly-Client-IP is believed"),
    ("BUS", "by what is set", "pubsub, or memory for one VM alone"),
    ("GOOGLE_CLOUD_PROJECT", "the account's project", "project of the topic"),
    ("GOOGLE_SERVICE_ACCOUNT_JSON", "", "contents of a service account's key"),
    ("GOOGLE_APPLICATION_CREDENTIALS", "", "path of a credentials file"),
    (
        "GOOGLE_WORKLOAD_IDENTITY_PROVIDER",
        "",
        "in place of a key, on Fly: who believes Fly's word, //iam.googleapis.com/projects/…/providers/…",
    ),
    (
        "GOOGLE_SERVICE_ACCOUNT",
        "",
        "with it: the service account to act as, NAME@PROJECT.iam.gserviceaccount.com",
    ),
    ("FLY_API_SOCKET", "/.fly/api", "with it: where Fly says who this Machine is"),
    ("PUBSUB_EMULATOR_HOST", "", "host:port of the Pub/Sub emulator"),
    ("TOPIC", "ALIEN_NOTIFICATIONS", "topic that all VMs share"),
    ("HISTORY_SECONDS", "3600", "how far back catch-up reaches, by age (23 h at most)"),
    ("HISTORY_EVENTS", "1000", "the same, by number of events"),
    ("HISTORY_BYTES", "4194304", "the same, by bytes"),
    ("PING_INTERVAL", "30", "seconds between pings; two without a sign of life end a socket"),
    ("BEACON_INTERVAL", "15", "seconds between this VM's signs of life"),
    ("MAX_MESSAGE_BYTES", "16384", "one inbound message"),
    ("OUTBOX_BYTES", "1048576", "what a slow socket may leave unread"),
    ("MAX_CONNECTIONS", "20000", "sockets in all"),
    ("MAX_CONNECTIONS_PER_ADDRESS", "200", "sockets of one client address (IPv6: one /64)"),
    ("MAX_CHANNELS", "64", "channels of one socket"),
    ("UPGRADE_RATE", "20", "new sockets a second, per address"),
    ("UPGRADE_BURST", "200", "new sockets at once, per address"),
    ("MESSAGE_RATE", "50", "messages a second, per socket"),
    ("MESSAGE_BURST", "200", "messages at once, per socket"),
    ("API_RATE", "100", "requests of the backend a second, per key"),
    ("API_BURST", "500", "requests of the backend at once, per key"),
    ("API_KEY", "", "key of the backend's routes, 16 characters or more; two by comma while it is changed"),
    ("AUTH_SECRET", "", "secret of visitors' tokens (HS256), 32 bytes or more; unset: no token is needed"),
    (
        "AUTH_PUBLIC_KEY",
        "",
        "in its place, the PEM of a public key: RSA (RS256), P-256 (ES256) or Ed25519 (EdDSA)",
    ),
    ("AUTH_AUDIENCE", "", "what a token's aud must hold"),
    ("AUTH_ISSUER", "", "what a token's iss must be"),
    ("ALLOWED_ORIGINS", "", "further origins that may open sockets, by comma; * for any"),
    (
        "TRUSTED_PROXY",
        "",
        "addresses or networks of proxies, by comma: X-Forwarded-For is believed from them alone",
    ),
    (
        "CONNECT_URL",
        "",
        "the app's backend that is asked about each new socket before it opens, http or https",
    ),
    ("LIFECYCLE_TOPIC", "", "topic of its own on which every connect and disconnect is told"),
    ("RUST_LOG", "info", "what is logged"),
    ("LOG_FORMAT", "by terminal", "text or json"),
    ("LOG_ADDRESSES", "short", "visitors' addresses in the log: short (IPv4 /24, IPv6 /48), or full"),
    (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "",
        "collector of traces (OTLP by gRPC), such as http://localhost:4317, for a build with the feature otlp",
    ),
];

/// The variables as they stand in the environment.
///
/// All are text here: a number that does not parse must be answered with what is accepted,
/// which only the checks below know.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Env {
    pub port: Option<String>,
    pub host: Option<String>,
    pub fly_alloc_id: Option<String>,
    pub fly_machine_id: Option<String>,
    pub gae_instance: Option<String>,
    pub fly_region: Option<String>,
    pub fly_app_name: Option<String>,
    pub bus: Option<String>,
    pub google_cloud_project: Option<String>,
    pub google_service_account_json: Option<String>,
    pub google_application_credentials: Option<String>,
    pub google_workload_identity_provider: Option<String>,
    pub google_service_account: Option<String>,
    pub fly_api_socket: Option<String>,
    pub pubsub_emulator_host: Option<String>,
    pub topic: Option<String>,
    pub history_seconds: Option<String>,
    pub history_events: Option<String>,
    pub history_bytes: Option<String>,
    pub ping_interval: Option<String>,
    pub beacon_interval: Option<String>,
    pub max_message_bytes: Option<String>,
    pub outbox_bytes: Option<String>,
    pub max_connections: Option<String>,
    pub max_connections_per_address: Option<String>,
    pub max_channels: Option<String>,
    pub upgrade_rate: Option<String>,
    pub upgrade_burst: Option<String>,
    pub message_rate: Option<String>,
    pub message_burst: Option<String>,
    pub lifecycle_topic: Option<String>,
    pub connect_url: Option<String>,
    pub api_rate: Option<String>,
    pub api_burst: Option<String>,
    pub api_key: Option<String>,
    pub auth_secret: Option<String>,
    pub auth_public_key: Option<String>,
    pub auth_audience: Option<String>,
    pub auth_issuer: Option<String>,
    pub allowed_origins: Option<String>,
    pub trusted_proxy: Option<String>,
}

impl Config {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// The first variable whose value is not accepted.
    pub fn from_env() -> Result<Self, ConfigError> {
        // `env::vars` panics on a variable that is not UTF-8, even on one that is none of ours.
        let vars = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
        });
        Self::read(vars, Path::new(KEY_FILE))
    }

    /// Reads any list of variables, and no file that they do not name.
    ///
    /// # Errors
    /// As [`Config::from_env`].
    pub fn from_vars(vars: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        Self::read(vars, Path::new(""))
    }

    fn read(vars: impl IntoIterator<Item = (String, String)>, key_file: &Path) -> Result<Self, ConfigError> {
        // An empty variable is an unset one, as shells and compose files mean it.
        let set = vars.into_iter().filter(|(_, value)| !value.trim().is_empty());
        let env: Env = envy::from_iter(set).map_err(|error| ConfigError::new(error.to_string()))?;
        let host = env.host.as_deref().unwrap_or("0.0.0.0");
        let seconds = |name, value: &Option<String>, default, range| {
            number(name, value, default, range).map(Duration::from_secs)
        };
        let history = HistoryLimits {
            age: seconds("HISTORY_SECONDS", &env.history_seconds, 3600, 1..=82_800)?,
            events: number("HISTORY_EVENTS", &env.history_events, 1000, 1..=100_000)?,
            bytes: number("HISTORY_BYTES", &env.history_bytes, 4 << 20, 65_536..=1 << 30)?,
        };
        let message_bytes = number("MAX_MESSAGE_BYTES", &env.max_message_bytes, 16 << 10, 1024..=1 << 20)?;
        // Below this a few large events would cut off every socket.
        let least_outbox = (4 * message_bytes).max(65_536);
        let identity = Identity::from_env(&env)?;
        let bus = choose_bus(&env, key_file, &history)?;
        let lifecycle_topic = lifecycle_topic(&env, &bus)?;
        Ok(Self {
            host: host
                .parse()
                .map_err(|_| ConfigError::value("HOST", host, "an IP address such as 0.0.0.0 or ::"))?,
            port: number("PORT", &env.port, 8080, 0..=65_535)?,
            bus,
            identity,
            history,
            limits: Limits {
                message_bytes,
                outbox_bytes: number(
                    "OUTBOX_BYTES",
                    &env.outbox_bytes,
                    least_outbox.max(1 << 20),
                    least_outbox..=1 << 28,
                )?,
                connections: number("MAX_CONNECTIONS", &env.max_connections, 20_000, 1..=1_000_000)?,
                connections_per_address: number(
                    "MAX_CONNECTIONS_PER_ADDRESS",
                    &env.max_connections_per_address,
                    200,
                    1..=1_000_000,
                )?,
                channels: number("MAX_CHANNELS", &env.max_channels, 64, 1..=channel::MOST_OF_ONE)?,
                upgrades: Rate {
                    per_second: rate("UPGRADE_RATE", &env.upgrade_rate, 20)?,
                    burst: rate("UPGRADE_BURST", &env.upgrade_burst, 200)?,
                },
                messages: Rate {
                    per_second: rate("MESSAGE_RATE", &env.message_rate, 50)?,
                    burst: rate("MESSAGE_BURST", &env.message_burst, 200)?,
                },
                api: Rate {
                    per_second: rate("API_RATE", &env.api_rate, 100)?,
                    burst: rate("API_BURST", &env.api_burst, 500)?,
                },
            },
            ping_interval: seconds("PING_INTERVAL", &env.ping_interval, 30, 1..=3600)?,
            beacon_interval: seconds("BEACON_INTERVAL", &env.beacon_interval, 15, 1..=300)?,
            lifecycle_topic,
            allowed_origins: origins(env.allowed_origins.as_deref().unwrap_or_default())?,
            tokens: Tokens::find(&env)?,
            api_keys: ApiKeys::find(&env)?,
            authorizer: Authorizer::find(&env)?,
            trusted_proxies: networks(env.trusted_proxy.as_deref().unwrap_or_default())?,
        })
    }
}

/// Pub/Sub when anything of it is set, else in-process; never in-process on Fly by accident.
fn choose_bus(env: &Env, key_file: &Path, history: &HistoryLimits) -> Result<BusConfig, ConfigError> {
    let topic = env.topic.clone().unwrap_or_else(|| "ALIEN_NOTIFICATIONS".into());
    pubsub::check_resource_name("TOPIC", &topic)?;
    match env.bus.as_deref() {
        Some("memory") => return Ok(BusConfig::Memory),
        Some("pubsub") | None => {}
        Some(other) => return Err(ConfigError::value("BUS", other, "pubsub or memory")),
    }
    let credentials = Credentials::find(env, key_file)?;
    let wanted = env.bus.is_some() || env.google_cloud_project.is_some() || !credentials.is_default();
    if !wanted {
        if env.fly_app_name.is_some() {
            return Err(ConfigError::new(
                "FLY_APP_NAME is set but Pub/Sub is not configured: VMs would not hear one another. \
                 Set GOOGLE_SERVICE_ACCOUNT_JSON (fly secrets set) or GOOGLE_WORKLOAD_IDENTITY_PROVIDER, or \
                 BUS=memory for one VM alone",
            ));
        }
        return Ok(BusConfig::Memory);
    }
    let named = env.google_cloud_project.clone().map(|project| ("GOOGLE_CLOUD_PROJECT", project));
    let of_account = || Some(("the service account's project (a key's project_id)", credentials.project()?));
    let (source, project) = named.or_else(of_account).ok_or_else(|| {
        ConfigError::new("GOOGLE_CLOUD_PROJECT is not set and no service account names a project: set it")
    })?;
    pubsub::check_project(source, &project)?;
    Ok(BusConfig::PubSub(pubsub::Settings { project, topic, credentials, window: history.age }))
}

fn lifecycle_topic(env: &Env, bus: &BusConfig) -> Result<Option<String>, ConfigError> {
    let Some(topic) = &env.lifecycle_topic else { return Ok(None) };
    let name = "LIFECYCLE_TOPIC";
    pubsub::check_resource_name(name, topic)?;
    match bus {
        BusConfig::Memory => Err(ConfigError::new(format!(
            "{name}={topic:?}: it is a topic of Google Pub/Sub, which this VM does not use; unset it, or \
             configure Pub/Sub"
        ))),
        BusConfig::PubSub(settings) if settings.topic == *topic => {
            Err(ConfigError::value(name, topic, "another topic than TOPIC"))
        }
        BusConfig::PubSub(_) => Ok(Some(topic.clone())),
    }
}

fn number<T>(
    name: &str,
    value: &Option<String>,
    default: T,
    range: RangeInclusive<T>,
) -> Result<T, ConfigError>
where
    T: std::str::FromStr + PartialOrd + fmt::Display,
{
    let Some(text) = value else { return Ok(default) };
    text.trim().parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
        ConfigError::value(name, text, format!("a whole number from {} to {}", range.start(), range.end()))
    })
}

fn rate(name: &str, value: &Option<String>, default: u32) -> Result<NonZeroU32, ConfigError> {
    let number = number(name, value, default, 1..=1_000_000)?;
    Ok(NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN))
}

fn origins(list: &str) -> Result<HashSet<String>, ConfigError> {
    let origins = list.split(',').map(str::trim).filter(|origin| !origin.is_empty());
    origins
        .map(|origin| {
            let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            if origin == "*" || host.is_some_and(|host| !host.is_empty() && !host.contains('/')) {
                Ok(origin.to_ascii_lowercase())
            } else {
                Err(ConfigError::value(
                    "ALLOWED_ORIGINS",
                    origin,
                    "origins such as https://example.com, or *",
                ))
            }
        })
        .collect()
}

fn networks(list: &str) -> Result<Vec<IpNet>, ConfigError> {
    let networks = list.split(',').map(str::trim).filter(|network| !network.is_empty());
    networks
        .map(|text| {
            let network: Option<IpNet> =
                text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
            // One that holds every address would let clients choose theirs.
            network.filter(|network| network.prefix_len() > 0).ok_or_else(|| {
                ConfigError::value("TRUSTED_PROXY", text, "addresses or networks such as 10.0.0.0/8")
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::from_vars(vars.iter().map(|(name, value)| (name.to_string(), value.to_string())))
    }

    #[test]
    fn nothing_set_is_one_vm_alone() {
        let config = read(&[]).unwrap();
        assert_eq!(config.port, 8080);
        assert!(matches!(config.bus, BusConfig::Memory));
        assert_eq!(&**config.identity.region(), "LOCAL_REGION");
    }

    #[test]
    fn an_empty_variable_is_an_unset_one() {
        assert_eq!(read(&[("PORT", ""), ("FLY_REGION", " ")]).unwrap().port, 8080);
    }

    #[test]
    fn each_bad_value_names_its_variable() {
        for (name, value) in [
            ("PORT", "http"),
            ("PORT", "65536"),
            ("HOST", "localhost"),
            ("BUS", "kafka"),
            ("TOPIC", "goog-topic"),
            ("HISTORY_SECONDS", "0"),
            ("HISTORY_EVENTS", "-1"),
            ("HISTORY_BYTES", "1.5"),
            ("PING_INTERVAL", "30s"),
            ("BEACON_INTERVAL", "0"),
            ("MAX_MESSAGE_BYTES", "1"),
            ("OUTBOX_BYTES", "1"),
            ("MAX_CONNECTIONS", "0"),
            ("MAX_CONNECTIONS_PER_ADDRESS", "0"),
            ("UPGRADE_RATE", "0"),
            ("UPGRADE_BURST", "x"),
            ("MESSAGE_RATE", "0"),
            ("MESSAGE_BURST", "0"),
            ("API_RATE", "0"),
            ("API_BURST", "0"),
            ("API_KEY", "short"),
            ("API_KEY", "0123456789abcdef,0123456789abcdeF,0123456789abcdEF"),
            ("AUTH_SECRET", "0123456789abcdef0123456789abcde"),
            ("AUTH_PUBLIC_KEY", "-----BEGIN PUBLIC KEY-----\nMA==\n-----END PUBLIC KEY-----"),
            ("AUTH_AUDIENCE", "alien"),
            ("AUTH_ISSUER", "alien"),
            ("ALLOWED_ORIGINS", "example.com"),
            ("TRUSTED_PROXY", "proxy.example"),
            ("TRUSTED_PROXY", "10.0.0.1, ::/0"),
            ("LIFECYCLE_TOPIC", "1st"),
            ("LIFECYCLE_TOPIC", "life"),
            ("CONNECT_URL", "example.com/connect"),
            ("CONNECT_URL", "ftp://example.com"),
            ("CONNECT_URL", "http://"),
            ("GOOGLE_CLOUD_PROJECT", "No Project"),
            ("PUBSUB_EMULATOR_HOST", "http://localhost:1"),
            ("FLY_ALLOC_ID", "a/b"),
            ("GOOGLE_APPLICATION_CREDENTIALS", "/does/not/exist.json"),
            ("GOOGLE_SERVICE_ACCOUNT_JSON", "not json"),
            ("GOOGLE_WORKLOAD_IDENTITY_PROVIDER", "fly"),
            ("GOOGLE_SERVICE_ACCOUNT", "nobody"),
        ] {
            let error = read(&[(name, value)]).expect_err(name).to_string();
            assert!(error.starts_with(name), "{name}={value}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn every_variable_read_is_in_the_table() {
        let source = include_str!("config.rs");
        let fields = source.split("pub struct Env {").nth(1).unwrap().split('}').next().unwrap();
        for field in fields.lines().filter_map(|line| line.trim().strip_prefix("pub ")?.split(':').next()) {
            let name = field.to_ascii_uppercase();
            let known =
                VARIABLES.iter().any(|(variable, _, meaning)| *variable == name || meaning.contains(&name));
            assert!(known, "{name} is read but not told of");
        }
    }

    #[test]
    fn on_fly_pubsub_is_a_must() {
        let error = read(&[("FLY_APP_NAME", "app")]).unwrap_err().to_string();
        assert!(error.contains("BUS=memory"), "{error}");
        assert!(read(&[("FLY_APP_NAME", "app"), ("BUS", "memory")]).is_ok());
    }

    #[test]
    fn a_secret_never_shows() {
        let error = read(&[("GOOGLE_SERVICE_ACCOUNT_JSON", "{\"private_key\":\"hunter2")]).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
        for name in ["AUTH_SECRET", "AUTH_PUBLIC_KEY", "API_KEY", "CONNECT_URL"] {
            let error = read(&[(name, "hunter2")]).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        let secret = "hunter2 hunter2 hunter2 hunter2 hunter2";
        let vars = [
            ("AUTH_SECRET", secret),
            ("API_KEY", "hunter2hunter2hunter2"),
            ("CONNECT_URL", "http://vm:hunter2@localhost/?key=hunter2"),
        ];
        let config = read(&vars).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
        assert!(read(&[("AUTH_SECRET", secret), ("AUTH_PUBLIC_KEY", "any")]).is_err());
    }
}
