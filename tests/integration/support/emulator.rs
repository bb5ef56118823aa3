//! Google's own Pub/Sub emulator, started directly as the jar that it is.

use std::ffi::OsString;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};

use super::http::{self, get};
use super::network::Place;
use super::until;

/// Where it has an address of its own.
pub const PORT: u16 = 8085;

pub const PROJECT: &str = "alien-alert-test";

/// A running emulator; ends with this value.
pub struct Emulator {
    process: Child,
    pub port: u16,
}

impl Emulator {
    pub async fn start() -> Self {
        // Free a moment ago; the emulator can't choose one by itself.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let emulator = Self { process: spawn(port), port };
        emulator.answers().await;
        emulator
    }

    /// Starts it in a place of a network, from where `other` can reach it.
    pub async fn start_at(place: &Place, other: &Place) -> Self {
        // It asks itself by its loopback.
        let emulator = Self { process: spawn_by(&place.enter(), "0.0.0.0", PORT), port: PORT };
        until("emulator", async || other.connect(place.address, PORT).await.ok()).await;
        emulator
    }

    /// Ends it at once, with all that it knew.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Starts it again where it was, empty.
    pub async fn start_again(&mut self) {
        self.process = spawn(self.port);
        self.answers().await;
    }

    async fn answers(&self) {
        until("emulator", async || http::try_get(self.port, "/").await.ok()).await;
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The names of the project's subscriptions, in order.
    pub async fn subscriptions(&self) -> Vec<String> {
        let answer = get(self.port, &format!("/v1/projects/{PROJECT}/subscriptions")).await.json();
        let all = answer["subscriptions"].as_array().cloned().unwrap_or_default();
        let name =
            |subscription: &Value| subscription["name"].as_str()?.rsplit('/').next().map(str::to_owned);
        let mut names: Vec<_> = all.iter().filter_map(name).collect();
        names.sort();
        names
    }

    pub async fn subscription(&self, name: &str) -> Value {
        get(self.port, &format!("/v1/projects/{PROJECT}/subscriptions/{name}")).await.json()
    }

    pub async fn topic(&self, name: &str) -> Value {
        get(self.port, &format!("/v1/projects/{PROJECT}/topics/{name}")).await.json()
    }

    /// Makes a topic as somebody else would, who knows nothing of history.
    pub async fn create_topic(&self, name: &str) {
        let path = format!("/v1/projects/{PROJECT}/topics/{name}");
        assert_eq!(http::request(self.port, "PUT", &path, &[], "{}").await.unwrap().status, 200);
    }

    /// Makes a topic that keeps its messages for so many seconds.
    pub async fn create_topic_that_keeps(&self, name: &str, seconds: u64) {
        let path = format!("/v1/projects/{PROJECT}/topics/{name}");
        let body = json!({"messageRetentionDuration": format!("{seconds}s")}).to_string();
        assert_eq!(http::request(self.port, "PUT", &path, &[], &body).await.unwrap().status, 200);
    }

    /// Subscribes to a topic, as a backend would.
    pub async fn subscribe(&self, name: &str, topic: &str) {
        self.subscribe_as(name, topic, &json!({})).await;
    }

    /// The same, with labels.
    pub async fn subscribe_as(&self, name: &str, topic: &str, labels: &Value) {
        let path = format!("/v1/projects/{PROJECT}/subscriptions/{name}");
        let topic = format!("projects/{PROJECT}/topics/{topic}");
        let body = json!({"topic": topic, "labels": labels}).to_string();
        assert_eq!(http::request(self.port, "PUT", &path, &[], &body).await.unwrap().status, 200);
    }

    /// What a subscription holds now: each message's `event` attribute and its JSON.
    pub async fn pull(&self, name: &str) -> Vec<(Value, Value)> {
        let path = format!("/v1/projects/{PROJECT}/subscriptions/{name}");
        let body = json!({"maxMessages": 1000, "returnImmediately": true}).to_string();
        let pulled = http::request(self.port, "POST", &format!("{path}:pull"), &[], &body).await.unwrap();
        let received = pulled.json()["receivedMessages"].as_array().cloned().unwrap_or_default();
        let ids: Vec<_> = received.iter().map(|one| &one["ackId"]).collect();
        if !ids.is_empty() {
            let body = json!({"ackIds": ids}).to_string();
            let acked = http::request(self.port, "POST", &format!("{path}:acknowledge"), &[], &body).await;
            assert_eq!(acked.unwrap().status, 200);
        }
        let message = |one: &Value| {
            let data = BASE64_STANDARD.decode(one["message"]["data"].as_str().unwrap()).unwrap();
            (one["message"]["attributes"]["event"].clone(), serde_json::from_slice(&data).unwrap())
        };
        received.iter().map(message).collect()
    }

    /// Deletes `resource` of the project, such as `topics/T`, behind everyone's back.
    pub async fn delete(&self, resource: &str) {
        let path = format!("/v1/projects/{PROJECT}/{resource}");
        let answer = http::request(self.port, "DELETE", &path, &[], "").await.unwrap();
        assert_eq!(answer.status, 200);
    }

    /// Puts bytes on the topic, with attributes, past any VM.
    pub async fn publish(&self, data: &[u8], attributes: Value) {
        let path = format!("/v1/projects/{PROJECT}/topics/ALIEN_NOTIFICATIONS:publish");
        let body = json!({"messages": [{"data": BASE64_STANDARD.encode(data), "attributes": attributes}]});
        let answer = http::request(self.port, "POST", &path, &[], &body.to_string()).await.unwrap();
        assert_eq!(answer.status, 200);
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(port: u16) -> Child {
    spawn_by(&[], "127.0.0.1", port)
}

/// The emulator by a command of one's own, whose process becomes the emulator's.
fn spawn_by(words: &[OsString], host: &str, port: u16) -> Child {
    let java = ["java".into()];
    let mut words = words.iter().chain(&java);
    Command::new(words.next().unwrap())
        .args(words)
        // It is started often and lives for seconds: not worth much compiling.
        .args(["-Xmx2g", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-jar"])
        .arg(jar())
        .args([&format!("--host={host}"), &format!("--port={port}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("java is needed for the Pub/Sub emulator: apt-get install default-jre-headless")
}

fn jar() -> String {
    let found = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/emulator-jar")).output().unwrap();
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    String::from_utf8(found.stdout).unwrap().trim().to_owned()
}
