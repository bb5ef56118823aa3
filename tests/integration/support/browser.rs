//! A real Chromium, driven through its own driver.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::{http, until, within};

const CHROMIUM: &str = "/usr/bin/chromium";

/// What makes it run here, and speak to nobody else.
pub const FLAGS: [&str; 10] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
];

/// Where it is.
pub fn chromium() -> &'static str {
    assert!(Path::new(CHROMIUM).exists(), "Chromium is needed: apt-get install chromium chromium-driver");
    CHROMIUM
}

/// A directory of its own for what browsers write to disk.
pub fn directory() -> PathBuf {
    std::env::temp_dir().join(format!("alien-alert-{}", uuid::Uuid::new_v4()))
}

/// Ends all browsers of a process group, which would outlive a test that fails, and what they wrote.
pub fn end(group: u32, directory: &Path) {
    let _ = std::process::Command::new("kill").args(["-KILL", "--", &format!("-{group}")]).status();
    let _ = std::fs::remove_dir_all(directory);
}

/// A driver, the browsers that it opened, and what they wrote to disk; all end with this value.
pub struct Driver {
    group: u32,
    port: u16,
    directory: PathBuf,
    _process: Child,
}

/// One browser with one page.
pub struct Page {
    pub client: Client,
    /// Where the browser keeps what it writes.
    pub profile: PathBuf,
    session: String,
    driver: u16,
}

impl Driver {
    pub async fn start() -> Self {
        chromium();
        let mut process = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("chromedriver is needed: apt-get install chromium-driver");
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let port = within("chromedriver", async {
            loop {
                let line = lines.next_line().await.unwrap().expect("chromedriver ended");
                if let Some((_, port)) = line.rsplit_once("started successfully on port ") {
                    return port.trim_end_matches('.').parse().unwrap();
                }
            }
        })
        .await;
        // What else it says must go somewhere, or it would block.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let directory = directory();
        Self { group: process.id().unwrap(), port, directory, _process: process }
    }

    /// Opens `url` in a browser of its own.
    pub async fn open(&self, url: &str) -> Page {
        let profile = self.directory.join(uuid::Uuid::new_v4().to_string());
        let mut args = FLAGS.map(str::to_owned).to_vec();
        args.push(format!("--user-data-dir={}", profile.display()));
        let capabilities = json!({
            "goog:chromeOptions": {
                "binary": chromium(),
                "args": args,
            },
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        });
        let Value::Object(capabilities) = capabilities else { unreachable!() };
        let client = within(
            "browser",
            ClientBuilder::new(HttpConnector::new())
                .capabilities(capabilities)
                .connect(&format!("http://127.0.0.1:{}", self.port)),
        )
        .await
        .unwrap();
        let session = client.session_id().await.unwrap().unwrap();
        let page = Page { client, profile, session, driver: self.port };
        page.client.goto(url).await.unwrap();
        page
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        end(self.group, &self.directory);
    }
}

impl Page {
    /// Waits until the page is connected to its VM.
    pub async fn connected(&self) {
        self.wait_for("#connection[data-state=connected]").await;
    }

    pub async fn wait_for(&self, selector: &str) {
        until(selector, async || (self.count(selector).await > 0).then_some(())).await;
    }

    pub async fn count(&self, selector: &str) -> usize {
        self.client.find_all(Locator::Css(selector)).await.unwrap().len()
    }

    pub async fn text(&self, selector: &str) -> String {
        self.client.find(Locator::Css(selector)).await.unwrap().text().await.unwrap()
    }

    pub async fn click(&self, selector: &str) {
        self.client.find(Locator::Css(selector)).await.unwrap().click().await.unwrap();
    }

    pub async fn type_into(&self, selector: &str, text: &str) {
        self.client.find(Locator::Css(selector)).await.unwrap().send_keys(text).await.unwrap();
    }

    /// Runs a script in the page; its value.
    pub async fn run(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap()
    }

    /// Cuts the browser off from the network, or not any longer.
    pub async fn set_offline(&self, offline: bool) {
        let conditions =
            json!({"network_conditions": {"offline": offline, "latency": 0, "throughput": 10_000_000}});
        self.vendor("chromium/network_conditions", &conditions).await;
    }

    /// What the console said so far, but for what the browser says of a connection that was refused:
    /// no page can keep it from that.
    pub async fn console_errors(&self) -> Vec<String> {
        let entries = self.log("browser").await;
        let errors = entries.iter().filter(|entry| entry["level"] == "SEVERE" || entry["level"] == "WARNING");
        let messages = errors.map(|entry| entry["message"].as_str().unwrap().to_owned());
        messages.filter(|message| !message.contains("WebSocket connection to")).collect()
    }

    /// Every address that the page asked for since it was opened, or since this or `network` was called.
    pub async fn requests(&self) -> Vec<String> {
        let events = self.network().await;
        let addresses = events.iter().filter_map(|event| match event["method"].as_str()? {
            "Network.requestWillBeSent" => event["params"]["request"]["url"].as_str(),
            "Network.webSocketCreated" => event["params"]["url"].as_str(),
            _ => None,
        });
        addresses.map(str::to_owned).collect()
    }

    /// What the browser's protocol told of the network since the page was opened, or since the last call.
    pub async fn network(&self) -> Vec<Value> {
        let entries = self.log("performance").await;
        let events = entries.iter().map(|entry| {
            serde_json::from_str::<Value>(entry["message"].as_str().unwrap()).unwrap()["message"].take()
        });
        // The browser's own first page is none of ours.
        let own = |event: &Value| {
            !event["params"]["documentURL"].as_str().is_some_and(|url| url.starts_with("chrome:"))
        };
        events.filter(own).collect()
    }

    async fn log(&self, kind: &str) -> Vec<Value> {
        self.vendor("se/log", &json!({"type": kind})).await.as_array().unwrap().clone()
    }

    /// A command of chromedriver's own, beyond the standard.
    async fn vendor(&self, command: &str, body: &Value) -> Value {
        let path = format!("/session/{}/{command}", self.session);
        let headers = [("content-type", "application/json")];
        let answer = http::request(self.driver, "POST", &path, &headers, &body.to_string()).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["value"].take()
    }

    /// A command of the browser's protocol.
    pub async fn cdp(&self, command: &str, params: Value) -> Value {
        self.vendor("goog/cdp/execute", &json!({"cmd": command, "params": params})).await
    }

    /// Gives the page this room; the window itself has a least width, and phones are smaller.
    pub async fn set_size(&self, width: u32, height: u32) {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.cdp("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// Loads the page anew, until it is connected again.
    pub async fn reload(&self) {
        self.client.refresh().await.unwrap();
        self.connected().await;
    }

    /// Runs a script in each document that is loaded from now on, before its own.
    pub async fn run_first(&self, script: &str) {
        self.cdp("Page.addScriptToEvaluateOnNewDocument", json!({"source": script})).await;
    }

    /// The system's choice: `dark` or `light`, and whether what moves should rest.
    pub async fn set_media(&self, scheme: &str, motion: &str) {
        let features = json!([
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": motion},
        ]);
        self.cdp("Emulation.setEmulatedMedia", json!({"features": features})).await;
    }

    /// As a person does in the browser's own dialog: `granted`, or `denied`.
    pub async fn permit(&self, permission: &str, state: &str) {
        let choice = json!({"descriptor": {"name": permission}, "state": state});
        self.vendor("permissions", &choice).await;
    }

    /// Presses keys where the focus is.
    pub async fn keys(&self, keys: &str) {
        self.client.active_element().await.unwrap().send_keys(keys).await.unwrap();
    }

    /// The id of the element that has the focus, or the name of its kind.
    pub async fn focus(&self) -> String {
        let focus =
            self.run("const { id, localName } = document.activeElement; return id || localName").await;
        focus.as_str().unwrap().to_owned()
    }

    /// Takes a picture for the documentation, where `PICTURES` names a folder for them. What moves stands
    /// still in it, each at its best.
    pub async fn picture(&self, name: &str, width: u32, height: u32, scheme: &str) {
        let Some(folder) = std::env::var_os("PICTURES") else { return };
        self.set_size(width, height).await;
        self.set_media(scheme, "no-preference").await;
        self.run(
            "scrollTo(0, 0);
             for (const animation of document.getAnimations()) {
               const moment = { ripple: 700, vanish: 2500 }[animation.animationName];
               if (moment === undefined) animation.finish();
               else {
                 animation.pause();
                 animation.currentTime = moment;
               }
             }",
        )
        .await;
        let png = self.client.screenshot().await.unwrap();
        std::fs::write(Path::new(&folder).join(name), png).unwrap();
    }

    pub async fn close(self) {
        self.client.close().await.unwrap();
    }
}
