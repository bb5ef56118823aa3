//! An app's backend, asked about each visitor before the socket opens (`CONNECT_URL`).
//!
//! It hears what the visitor's request holds, and lets in or not. One that does not answer lets nobody in:
//! a door that opens when its keeper is away is none. What it costs is bounded: so many requests at once,
//! each with a time, over connections that are kept. Nothing of a visitor or of an answer is logged.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use hyper::StatusCode;
use hyper::header::{self, HeaderMap};
use reqwest::redirect::Policy;
use reqwest::{Body, Client, Url};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::warn;

use crate::auth::{Visitor, is_user};
use crate::channel::Channel;
use crate::config::{ConfigError, Env};
use crate::logs::Seldom;

/// From the question to the end of the answer. A person waits for it.
const PATIENCE: Duration = Duration::from_secs(3);

/// Requests under way at once. A visitor beyond is told to come again.
const MAX_REQUESTS: usize = 256;

const MAX_ANSWER: usize = 64 << 10;

/// An idle connection is let go of before the other side does it, which is 5 s with Node's servers: a
/// request that meets such an end fails.
const KEEP_IDLE: Duration = Duration::from_secs(4);

/// Of one connection alone (RFC 9110, 7.6.1), besides those that `Connection` names.
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Cheap to clone.
#[derive(Clone)]
pub struct Authorizer(Arc<Inner>);

struct Inner {
    url: Url,
    client: Client,
    places: Semaphore,
    complaints: Seldom,
}

/// What is asked, as the JSON of a POST.
#[derive(Serialize)]
pub struct Question<'a> {
    #[serde(serialize_with = "end_to_end")]
    pub headers: &'a HeaderMap,
    pub query: &'a BTreeMap<String, String>,
    pub ip: IpAddr,
    /// Whom the token names, where one is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<&'a str>,
    pub instance: &'a str,
    pub region: &'a str,
}

/// What the backend may say of a visitor that it lets in.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Answer {
    user: Option<String>,
    /// Channels to join at once; those that end in a `*` are beginnings of what may be joined later.
    channels: Option<Vec<String>>,
}

/// Why a visitor does not come in.
#[derive(Debug, PartialEq, Eq)]
pub enum Denied {
    /// The backend says no, and after how many seconds to ask again, if it says so.
    Refused(StatusCode, Option<u64>),
    /// There was no answer, or none that says anything.
    Failed,
    /// Too many are asked about already.
    Busy,
}

impl Authorizer {
    /// The backend to ask, where the environment names one.
    ///
    /// # Errors
    /// It is no URL of http or https.
    pub fn find(env: &Env) -> Result<Option<Self>, ConfigError> {
        let Some(url) = &env.connect_url else { return Ok(None) };
        let is_http = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
        // Its value is not told: it may hold a password.
        let url = url.trim().parse().ok().filter(is_http).ok_or_else(|| {
            ConfigError::new(
                "CONNECT_URL: expected a URL of http or https, such as https://example.com/connect",
            )
        })?;
        let client = Client::builder()
            .redirect(Policy::none())
            .connect_timeout(PATIENCE)
            .pool_idle_timeout(KEEP_IDLE)
            .pool_max_idle_per_host(MAX_REQUESTS)
            .user_agent(concat!("alien-alert/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| ConfigError::new(format!("CONNECT_URL: {}", chain(&error))))?;
        let places = Semaphore::new(MAX_REQUESTS);
        let complaints = Seldom::default();
        Ok(Some(Self(Arc::new(Inner { url, client, places, complaints }))))
    }

    /// Asks about a visitor. Dropped, it asks no longer.
    ///
    /// # Errors
    /// The visitor is not to come in.
    pub async fn ask(&self, question: &Question<'_>, max_channels: usize) -> Result<Answer, Denied> {
        let Ok(_place) = self.0.places.try_acquire() else { return Err(Denied::Busy) };
        let failed = match timeout(PATIENCE, self.exchange(question, max_channels)).await {
            Ok(Ok(answered)) => return answered,
            Ok(Err(why)) => why,
            Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
        };
        if let Some(kept_back) = self.0.complaints.pass() {
            warn!(
                why = failed,
                kept_back, "the backend at CONNECT_URL can't be asked, and nobody is let in without"
            );
        }
        Err(Denied::Failed)
    }

    /// # Errors
    /// Why there is no answer, in words for an operator.
    async fn exchange(
        &self,
        question: &Question<'_>,
        max_channels: usize,
    ) -> Result<Result<Answer, Denied>, String> {
        let request = self.0.client.post(self.0.url.clone()).json(question);
        let response = request.send().await.map_err(|error| chain(&error.without_url()))?;
        let status = response.status();
        if status.is_client_error() {
            let wait = response.headers().get(header::RETRY_AFTER);
            let wait = wait.and_then(|wait| wait.to_str().ok()?.trim().parse().ok());
            return Ok(Err(Denied::Refused(status, wait)));
        }
        if !status.is_success() {
            return Err(format!("its answer is {status}, expected 2xx or 4xx"));
        }
        let body = Limited::new(Body::from(response), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| format!("its answer can't be read: {error}"))?.to_bytes();
        Answer::read(&body, max_channels).map(Ok)
    }
}

impl Answer {
    /// # Errors
    /// What is wrong with it, without its contents.
    fn read(body: &[u8], max_channels: usize) -> Result<Self, String> {
        if body.is_empty() {
            return Ok(Self::default());
        }
        // serde takes an array for a struct as well.
        if !body.trim_ascii_start().starts_with(b"{") {
            return Err("its answer: expected an object of JSON, or nothing".into());
        }
        let answer: Self = serde_json::from_slice(body).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            format!("its answer: expected user? a string, channels? strings; line {line}, column {column}")
        })?;
        if answer.user.as_deref().is_some_and(|user| !is_user(user)) {
            return Err("its answer's user: expected 1 to 64 visible characters of ASCII".into());
        }
        let is_channel = |name: &String| match name.strip_suffix('*') {
            Some("") => true,
            Some(beginning) => Channel::new(beginning).is_ok(),
            None => Channel::new(name).is_ok(),
        };
        if !answer.channels.iter().flatten().all(is_channel) {
            return Err("its answer's channels: one is no name of a channel, nor a beginning and *".into());
        }
        if answer.joined().count() > max_channels {
            return Err(format!("its answer's channels: more than {max_channels} to join"));
        }
        Ok(answer)
    }

    fn joined(&self) -> impl Iterator<Item = &String> {
        self.channels.iter().flatten().filter(|name| !name.ends_with('*'))
    }

    /// Who the visitor is then, and the channels to join at once: what is said here holds instead of what
    /// the token says of the same.
    pub fn about(self, visitor: Visitor) -> (Visitor, Vec<String>) {
        let join = self.joined().cloned().collect();
        let user = self.user.map(Into::into).or(visitor.user);
        let channels = self.channels.map(Into::into).or(visitor.channels);
        (Visitor { user, channels, ..visitor }, join)
    }
}

impl fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorizer")
    }
}

/// The headers that are the visitor's, by lower-case names; lines of one name are joined.
fn end_to_end<S: serde::Serializer>(headers: &HeaderMap, serializer: S) -> Result<S::Ok, S::Error> {
    let lines = headers.get_all(header::CONNECTION).into_iter();
    let named: Vec<_> = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let is_hop = |name: &str| HOP_BY_HOP.contains(&name) || named.iter().any(|other| other == name);
    let names = headers.keys().filter(|name| !is_hop(name.as_str()));
    serializer.collect_map(names.map(|name| {
        let lines = headers.get_all(name).into_iter();
        let lines: Vec<_> = lines.map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
        // Cookies have commas of their own.
        (name.as_str(), lines.join(if name == header::COOKIE { "; " } else { ", " }))
    }))
}

/// An error and its causes, on one line.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_whole_or_not_at_all() {
        let says = |user: Option<&str>, channels: Option<&[&str]>| Answer {
            user: user.map(str::to_owned),
            channels: channels.map(|names| names.iter().map(|name| name.to_string()).collect()),
        };
        for (body, answer) in [
            ("", says(None, None)),
            ("{}", says(None, None)),
            (r#"{"user":null,"channels":null,"more":1}"#, says(None, None)),
            (r#"{"user":"auth0|7"}"#, says(Some("auth0|7"), None)),
            (r#"{"channels":[]}"#, says(None, Some(&[]))),
            (r#"{"channels":["a","b:*","*"]}"#, says(None, Some(&["a", "b:*", "*"]))),
        ] {
            assert_eq!(Answer::read(body.as_bytes(), 1).unwrap(), answer, "{body}");
        }
        for body in [
            "ok",
            "[]",
            "null",
            r#"{"user":7}"#,
            r#"{"user":""}"#,
            r#"{"user":"secret secret"}"#,
            r#"{"channels":"secret"}"#,
            r#"{"channels":["secret secret"]}"#,
            r#"{"channels":["a*b"]}"#,
            r#"{"channels":["secret?*"]}"#,
            r#"{"channels":["secret","secrets"]}"#,
            r#"{"user":"secret""#,
        ] {
            let why = Answer::read(body.as_bytes(), 1).unwrap_err();
            assert!(!why.contains("secret"), "{body}: {why}");
        }
    }

    #[test]
    fn what_the_backend_says_holds_instead_of_the_token() {
        let all = |names: &[&str]| Some(names.iter().map(|name| name.to_string()).collect());
        let token = || Visitor { user: Some("ann".into()), expires: None, channels: all(&["a"]) };
        let about = |json: &str| Answer::read(json.as_bytes(), 1).unwrap().about(token());
        let (visitor, join) = about("{}");
        assert_eq!((visitor.user, visitor.channels, join), (Some("ann".into()), all(&["a"]), vec![]));
        let (visitor, join) = about(r#"{"user":"bob"}"#);
        assert_eq!((visitor.user, visitor.channels, join), (Some("bob".into()), all(&["a"]), vec![]));
        let (visitor, join) = about(r#"{"channels":["b","c*"]}"#);
        let joined = vec!["b".to_owned()];
        assert_eq!((visitor.user, visitor.channels, join), (Some("ann".into()), all(&["b", "c*"]), joined));
    }

    #[test]
    fn headers_of_the_connection_alone_are_not_passed_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "vm"),
            ("connection", "Upgrade, X-Hop"),
            ("upgrade", "websocket"),
            ("x-hop", "1"),
            ("te", "trailers"),
            ("authorization", "Bearer t"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("accept-language", "de"),
            ("accept-language", "en"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        headers.insert("x-latin", header::HeaderValue::from_bytes(b"\xe4").unwrap());
        let told = end_to_end(&headers, serde_json::value::Serializer).unwrap();
        let expected = serde_json::json!({"host": "vm", "authorization": "Bearer t", "cookie": "a=1; b=2",
            "accept-language": "de, en", "x-latin": "\u{fffd}"});
        assert_eq!(told, expected);
    }
}
