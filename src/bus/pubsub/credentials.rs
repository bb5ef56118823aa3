//! How this VM proves to Google who it is: the first of these that is there.
//!
//! 1. `PUBSUB_EMULATOR_HOST`: no proof is asked.
//! 2. `GOOGLE_SERVICE_ACCOUNT_JSON`: a key's contents, as a Fly secret brings them.
//! 3. `GOOGLE_APPLICATION_CREDENTIALS`: the path of a file, as Google's tools have it.
//! 4. `GOOGLE_WORKLOAD_IDENTITY_PROVIDER`: no key, but Fly's word; one of these three may be set.
//! 5. `google-service-account.json` in the working directory.
//! 6. Application Default Credentials, as Google's own machines have them.

use std::fmt;
use std::path::Path;

use google_cloud_auth::credentials::{self, anonymous, service_account};
use serde_json::Value;

use super::federation::Federation;
use crate::config::{ConfigError, Env};

/// What is found where nothing is set.
const DEFAULT: &str = "the default credentials of this machine";

#[derive(Clone)]
pub enum Credentials {
    /// The emulator's `host:port`.
    Emulator(String),
    /// A service account's key, and which setting brought it.
    Key(Value, String),
    /// Fly's word for this Machine.
    Federated(Federation),
    /// What Google's library finds by itself, and the setting that points it there.
    Default(Option<String>),
}

impl Credentials {
    /// Looks through the environment, and last for `key_file`.
    ///
    /// # Errors
    /// What is there can't be read or is no key; the error names it and never shows its contents.
    pub fn find(env: &Env, key_file: &Path) -> Result<Self, ConfigError> {
        if let Some(host) = &env.pubsub_emulator_host {
            let port = host.rsplit_once(':').and_then(|(name, port)| Some((name, port.parse::<u16>().ok()?)));
            if !port.is_some_and(|(name, _)| !name.is_empty() && !name.contains('/')) {
                return Err(ConfigError::value(
                    "PUBSUB_EMULATOR_HOST",
                    host,
                    "host:port, such as 127.0.0.1:8085",
                ));
            }
            return Ok(Self::Emulator(host.clone()));
        }
        if let Some(federation) = Federation::find(env)? {
            return Ok(Self::Federated(federation));
        }
        if let Some(json) = &env.google_service_account_json {
            let name = "GOOGLE_SERVICE_ACCOUNT_JSON";
            return Ok(Self::Key(key(name, json)?, name.into()));
        }
        if let Some(path) = &env.google_application_credentials {
            let name = "GOOGLE_APPLICATION_CREDENTIALS";
            let found = read(name, path)?;
            let source = format!("{name}={path:?}");
            // Other kinds of file (a user's, a federated identity's) are the library's to understand.
            let is_key = found.get("type").and_then(Value::as_str) == Some("service_account");
            return Ok(if is_key { Self::Key(found, source) } else { Self::Default(Some(source)) });
        }
        if key_file.exists() {
            let path = key_file.to_string_lossy();
            return Ok(Self::Key(read("the file in the working directory", &path)?, path.into()));
        }
        Ok(Self::Default(None))
    }

    /// Nothing here asks for Pub/Sub.
    pub fn is_default(&self) -> bool {
        matches!(self, Self::Default(None))
    }

    pub fn is_emulator(&self) -> bool {
        matches!(self, Self::Emulator(_))
    }

    /// The project that the account belongs to.
    pub fn project(&self) -> Option<String> {
        match self {
            Self::Key(key, _) => key.get("project_id")?.as_str().map(str::to_owned),
            Self::Federated(federation) => federation.project(),
            Self::Emulator(_) | Self::Default(_) => None,
        }
    }

    /// The service account, where it is known beforehand.
    pub fn account(&self) -> Option<&str> {
        match self {
            Self::Key(key, _) => key.get("client_email")?.as_str(),
            Self::Federated(federation) => federation.account.as_deref(),
            Self::Emulator(_) | Self::Default(_) => None,
        }
    }

    /// The address of the service, where it is not Google's own.
    pub(super) fn endpoint(&self) -> Option<String> {
        match self {
            Self::Emulator(host) => Some(format!("http://{host}")),
            Self::Key(..) | Self::Federated(_) | Self::Default(_) => None,
        }
    }

    pub(super) fn build(&self) -> Result<credentials::Credentials, ConfigError> {
        let (built, source) = match self {
            Self::Emulator(_) => return Ok(anonymous::Builder::new().build()),
            Self::Federated(federation) => return federation.build(),
            Self::Key(key, source) => (service_account::Builder::new(key.clone()).build(), source.as_str()),
            Self::Default(source) => {
                (credentials::Builder::default().build(), source.as_deref().unwrap_or(DEFAULT))
            }
        };
        built.map_err(|error| {
            ConfigError::new(format!("{source}: these Google credentials can't be used: {error}"))
        })
    }
}

fn read(name: &str, path: &str) -> Result<Value, ConfigError> {
    let json = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::value(name, path, format!("a readable file ({error})")))?;
    parse(&json)
        .ok_or_else(|| ConfigError::value(name, path, "a file with a JSON object, as Google hands it out"))
}

fn key(name: &str, json: &str) -> Result<Value, ConfigError> {
    parse(json).ok_or_else(|| {
        ConfigError::new(format!(
            "{name} is not a JSON object: expected the contents of a service account's key"
        ))
    })
}

fn parse(json: &str) -> Option<Value> {
    serde_json::from_str(json).ok().filter(Value::is_object)
}

/// Where they are from and whose they are, and nothing of what is secret.
impl fmt::Display for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Emulator(host) => write!(
                f,
                "PUBSUB_EMULATOR_HOST={host}: none are asked for, and nobody is refused; Google is another matter"
            ),
            Self::Key(_, source) => {
                write!(f, "{source}: the key of {}", self.account().unwrap_or("an account without a name"))
            }
            Self::Federated(federation) => federation.fmt(f),
            Self::Default(source) => f.write_str(source.as_deref().unwrap_or(DEFAULT)),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Emulator(host) => f.debug_tuple("Emulator").field(host).finish(),
            Self::Key(_, source) => write!(f, "Key(… of {source})"),
            Self::Federated(federation) => f.debug_tuple("Federated").field(federation).finish(),
            Self::Default(source) => f.debug_tuple("Default").field(source).finish(),
        }
    }
}
