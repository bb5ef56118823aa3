//! Going without a key: Fly says who this Machine is, and Google believes Fly (Workload Identity Federation).
//!
//! Fly signs a token for whoever asks at a socket within the Machine, and Google gives one of its own for it,
//! for an hour. So there is nothing to keep secret, and nothing that can be carried away. The socket is
//! for root alone: who runs the program as somebody else is told so.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use google_cloud_auth::credentials::external_account::ProgrammaticBuilder;
use google_cloud_auth::credentials::subject_token::{self, SubjectToken, SubjectTokenProvider};
use google_cloud_auth::credentials::{CacheableResource, Credentials, CredentialsProvider};
use google_cloud_auth::errors::{CredentialsError, SubjectTokenProviderError};
use http_body_util::{BodyExt as _, Limited};
use hyper::HeaderMap;
use hyper::http::Extensions;
use reqwest::redirect::Policy;
use reqwest::{Body, Client, StatusCode};
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::chain;
use crate::config::{ConfigError, Env};

const PROVIDER: &str = "GOOGLE_WORKLOAD_IDENTITY_PROVIDER";
const ACCOUNT: &str = "GOOGLE_SERVICE_ACCOUNT";
const SOCKET: &str = "FLY_API_SOCKET";

/// Where Fly's init listens in each Machine.
const FLY_SOCKET: &str = "/.fly/api";

/// The socket's host has no name; this one is not looked up.
const TOKENS: &str = "http://localhost/v1/tokens/oidc";

/// For Fly's answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// For a token of Google's, which asks Fly and then Google, once or twice.
const EXCHANGE: Duration = Duration::from_secs(10);

/// Longer than any token or error.
const MAX_ANSWER: usize = 16 << 10;

/// What is shown of an answer that is no token.
const MAX_SHOWN: usize = 200;

/// Google's library gives up for good where it was told no; it is asked anew so often.
const ANEW: Duration = Duration::from_secs(2);

/// How a Machine on Fly is known to Google.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Federation {
    /// The provider's full name, which is also whom Fly's token is for.
    provider: String,
    /// As whom it acts; None: as itself.
    pub(super) account: Option<String>,
    socket: PathBuf,
}

impl Federation {
    /// Where the environment names a provider.
    ///
    /// # Errors
    /// One of its variables does not fit, or another way is set beside it.
    pub fn find(env: &Env) -> Result<Option<Self>, ConfigError> {
        let account = env.google_service_account.clone();
        let Some(provider) = &env.google_workload_identity_provider else {
            return match account {
                None => Ok(None),
                Some(account) => Err(ConfigError::value(
                    ACCOUNT,
                    &account,
                    format!("{PROVIDER} beside it, or neither; a key is {ACCOUNT}_JSON"),
                )),
            };
        };
        let keys = [
            ("GOOGLE_SERVICE_ACCOUNT_JSON", &env.google_service_account_json),
            ("GOOGLE_APPLICATION_CREDENTIALS", &env.google_application_credentials),
        ];
        if let Some((key, _)) = keys.iter().find(|(_, key)| key.is_some()) {
            return Err(ConfigError::new(format!("{PROVIDER} and {key} are both set: expected one of them")));
        }
        if !is_provider(provider) {
            let accepted = "//iam.googleapis.com/projects/NUMBER/locations/global/workloadIdentityPools/POOL/\
                            providers/PROVIDER";
            return Err(ConfigError::value(PROVIDER, provider, accepted));
        }
        if let Some(account) = account.as_ref().filter(|account| !is_account(account)) {
            let accepted = "a service account's address, NAME@PROJECT.iam.gserviceaccount.com";
            return Err(ConfigError::value(ACCOUNT, account, accepted));
        }
        let socket = env.fly_api_socket.as_deref().unwrap_or(FLY_SOCKET);
        if !socket.starts_with('/') {
            return Err(ConfigError::value(SOCKET, socket, "the path of a socket, from / on"));
        }
        Ok(Some(Self { provider: provider.clone(), account, socket: socket.into() }))
    }

    /// The project that the service account belongs to.
    pub(super) fn project(&self) -> Option<String> {
        let (_, domain) = self.account.as_deref()?.split_once('@')?;
        domain.strip_suffix(".iam.gserviceaccount.com").map(str::to_owned)
    }

    pub(super) fn build(&self) -> Result<Credentials, ConfigError> {
        let renewed =
            Renewed { current: Mutex::new((self.once()?, Instant::now())), federation: self.clone() };
        Ok(renewed.into())
    }

    fn once(&self) -> Result<Credentials, ConfigError> {
        let unusable = |error: &dyn Error| ConfigError::new(format!("{PROVIDER}: {}", chain(error)));
        let client = Client::builder().unix_socket(&*self.socket).redirect(Policy::none()).build();
        let client = client.map_err(|error| unusable(&error))?;
        let machine =
            Machine { client, audience: self.provider.clone(), socket: self.socket.display().to_string() };
        let mut builder = ProgrammaticBuilder::new(Arc::new(machine))
            .with_audience(&self.provider)
            .with_subject_token_type("urn:ietf:params:oauth:token-type:jwt");
        if let Some(account) = &self.account {
            builder = builder.with_target_principal(account);
        }
        builder.build().map_err(|error| unusable(&error))
    }
}

impl fmt::Display for Federation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PROVIDER}: this Fly Machine")?;
        if let Some(account) = &self.account {
            write!(f, ", as {account}")?;
        }
        Ok(())
    }
}

fn is_provider(name: &str) -> bool {
    let is_part =
        |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let parts: Vec<_> = name.split('/').collect();
    let ["", "", host, "projects", project, "locations", "global", pools, pool, "providers", provider] =
        parts[..]
    else {
        return false;
    };
    let is_google = host == "iam.googleapis.com" && pools == "workloadIdentityPools";
    is_google && [project, pool, provider].into_iter().all(is_part)
}

/// It becomes a part of a URL.
fn is_account(address: &str) -> bool {
    let is_part =
        |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "-.:".contains(c));
    address.split_once('@').is_some_and(|(name, domain)| is_part(name) && is_part(domain))
}

/// Credentials that are made anew after Google said no, which may be over: a right that was just granted
/// takes minutes to be known everywhere.
#[derive(Debug)]
struct Renewed {
    federation: Federation,
    // A std mutex: held for a clone or an exchange, never over an await.
    current: Mutex<(Credentials, Instant)>,
}

impl Renewed {
    async fn ask(
        credentials: &Credentials,
        extensions: Extensions,
    ) -> Result<CacheableResource<HeaderMap>, CredentialsError> {
        let no_answer = |_| {
            let seconds = EXCHANGE.as_secs();
            Err(CredentialsError::from_msg(true, format!("no token of Google's in {seconds} s")))
        };
        timeout(EXCHANGE, credentials.headers(extensions)).await.unwrap_or_else(no_answer)
    }

    /// Others in place of those that failed, if they have been there for a while.
    fn anew(&self) -> Option<Credentials> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.1.elapsed() < ANEW {
            return None;
        }
        let anew = self.federation.once().ok()?;
        *current = (anew.clone(), Instant::now());
        Some(anew)
    }
}

impl CredentialsProvider for Renewed {
    async fn headers(
        &self,
        extensions: Extensions,
    ) -> Result<CacheableResource<HeaderMap>, CredentialsError> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner).0.clone();
        let answer = Self::ask(&current, extensions.clone()).await;
        match answer.is_err().then(|| self.anew()).flatten() {
            Some(anew) => Self::ask(&anew, extensions).await,
            None => answer,
        }
    }

    async fn universe_domain(&self) -> Option<String> {
        None
    }
}

/// This Machine, asked who it is.
#[derive(Debug)]
struct Machine {
    client: Client,
    audience: String,
    socket: String,
}

impl SubjectTokenProvider for Machine {
    type Error = NotTold;

    async fn subject_token(&self) -> Result<SubjectToken, NotTold> {
        let asked = timeout(PATIENCE, self.ask()).await;
        let told = asked.unwrap_or_else(|_| Err(format!("no answer in {} s", PATIENCE.as_secs())));
        match told {
            Ok(token) => Ok(subject_token::Builder::new(token).build()),
            Err(why) => Err(NotTold(format!("{SOCKET}={:?}: {why}", self.socket))),
        }
    }
}

impl Machine {
    async fn ask(&self) -> Result<String, String> {
        let request = self.client.post(TOKENS).json(&json!({ "aud": self.audience }));
        let response = request.send().await.map_err(|error| unreached(&error))?;
        let status = response.status();
        let body = Limited::new(Body::from(response), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| format!("Fly's answer can't be read: {error}"))?.to_bytes();
        let text = String::from_utf8_lossy(&body);
        let text = text.trim();
        if status != StatusCode::OK {
            // An error of Fly's, and no token.
            let said: String = text.chars().take(MAX_SHOWN).filter(|c| !c.is_control()).collect();
            return Err(format!("Fly answers {status}: {said}"));
        }
        if !is_jwt(text) {
            return Err(format!("Fly's answer is no token ({} bytes)", body.len()));
        }
        Ok(text.to_owned())
    }
}

/// Three parts of base64url.
fn is_jwt(text: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty() && part.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
    };
    text.split('.').count() == 3 && text.split('.').all(is_part)
}

/// Why there is nobody at the socket, and what to do.
fn unreached(error: &reqwest::Error) -> String {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::PermissionDenied) => {
                return "only root may use it: run the program as root, which the image for Fly does with an empty RUN_AS"
                    .into();
            }
            Some(io::ErrorKind::NotFound) => {
                return "there is no such socket: is this a Machine on Fly? Elsewhere use a key".into();
            }
            _ => cause = error.source(),
        }
    }
    chain(error)
}

/// Why Fly did not say who this Machine is.
#[derive(Debug)]
pub(super) struct NotTold(String);

impl fmt::Display for NotTold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for NotTold {}

impl SubjectTokenProviderError for NotTold {
    /// Fly's init may be starting again; nothing here is lost by asking again.
    fn is_transient(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str =
        "//iam.googleapis.com/projects/123/locations/global/workloadIdentityPools/fly/providers/fly";

    fn env(provider: &str, account: Option<&str>) -> Env {
        Env {
            google_workload_identity_provider: Some(provider.into()),
            google_service_account: account.map(str::to_owned),
            ..Env::default()
        }
    }

    #[test]
    fn a_provider_and_an_account_are_read() {
        let found = Federation::find(&env(NAME, None)).unwrap().unwrap();
        assert_eq!((found.project(), found.socket.to_str()), (None, Some(FLY_SOCKET)));
        let found = Federation::find(&env(NAME, Some("vm@my-project.iam.gserviceaccount.com"))).unwrap();
        assert_eq!(found.unwrap().project().as_deref(), Some("my-project"));
        assert_eq!(Federation::find(&Env::default()).unwrap(), None);
    }

    #[test]
    fn what_does_not_fit_is_told_by_its_variable() {
        for (provider, account, told) in [
            ("my-pool", None, PROVIDER),
            (&NAME[1..], None, PROVIDER),
            (&NAME.replace("global", "europe-west1"), None, PROVIDER),
            (&NAME.replace("/fly", "/"), None, PROVIDER),
            (&format!("{NAME}/x"), None, PROVIDER),
            (NAME, Some("vm"), ACCOUNT),
            (NAME, Some("vm@project/../x"), ACCOUNT),
        ] {
            let error = Federation::find(&env(provider, account)).unwrap_err().to_string();
            assert!(error.starts_with(told), "{provider} {account:?}: {error}");
        }
        let alone = Env { google_service_account: Some("vm@p.iam".into()), ..Env::default() };
        assert!(Federation::find(&alone).unwrap_err().to_string().contains(PROVIDER));
        let relative = Env { fly_api_socket: Some("api".into()), ..env(NAME, None) };
        assert!(Federation::find(&relative).unwrap_err().to_string().starts_with(SOCKET));
        let both = Env { google_service_account_json: Some("{}".into()), ..env(NAME, None) };
        assert!(Federation::find(&both).unwrap_err().to_string().contains("one of them"));
    }

    #[test]
    fn a_token_has_three_parts() {
        assert!(is_jwt("eyJh.eyJ_.s-g"));
        for text in ["", "a.b", "a.b.", "a.b.c.d", "a.b.c d", "{\"error\":\"x\"}"] {
            assert!(!is_jwt(text), "{text}");
        }
    }
}
