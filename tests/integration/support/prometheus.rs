//! A real Prometheus on the files of `deploy/prometheus`, and its `promtool`.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::http::{get, try_get};
use super::until;

/// Where the files are that people use.
pub const DEPLOYED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus");

/// A running Prometheus; ends with this value, and so do its files.
pub struct Prometheus {
    process: Child,
    folder: PathBuf,
    pub port: u16,
}

impl Prometheus {
    /// One that watches what listens on `ports`, by the deployed files, in which `changes` are made.
    pub async fn start(ports: &[u16], changes: &[(&str, &str)]) -> Self {
        let folder =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("prometheus-{}", uuid::Uuid::new_v4()));
        fs::create_dir_all(&folder).unwrap();
        let mut made = BTreeSet::new();
        for name in ["prometheus.yml", "alerts.yml"] {
            let mut text = fs::read_to_string(Path::new(DEPLOYED).join(name)).unwrap();
            for (from, to) in changes.iter().filter(|(from, _)| text.contains(from)).collect::<Vec<_>>() {
                text = text.replace(from, to);
                made.insert(*from);
            }
            fs::write(folder.join(name), text).unwrap();
        }
        assert_eq!(made.len(), changes.len(), "only {made:?} could be changed");
        let targets: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        fs::write(folder.join("targets.yml"), format!("- targets: {targets:?}\n")).unwrap();

        // Free a moment ago; it does not tell which one it chose by itself.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .args(["--log.level=warn"])
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("prometheus is needed: apt-get install --no-install-recommends prometheus");
        let prometheus = Self { process, folder, port };
        until("Prometheus", async || {
            let ready = try_get(port, "/-/ready").await.ok()?;
            (ready.status == 200).then_some(())
        })
        .await;
        prometheus
    }

    /// What it answers, or why it does not.
    ///
    /// # Errors
    /// It finds the question wrong.
    pub async fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let encode =
            |(name, value): &(&str, &str)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC));
        let query: Vec<_> = parameters.iter().map(encode).collect();
        let mut answer = get(self.port, &format!("/api/v1/{path}?{}", query.join("&"))).await.json();
        if answer["status"] == "success" { Ok(answer["data"].take()) } else { Err(answer.to_string()) }
    }

    /// The newest value of each series of an expression, asked for as now is, or as a graph asks.
    pub async fn query(&self, expression: &str, as_graph: bool) -> Result<Vec<f64>, String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let [begin, end] = [now - 5.0, now].map(|time| format!("{time:.3}"));
        let data = if as_graph {
            let range = [("query", expression), ("start", &begin), ("end", &end), ("step", "1")];
            self.ask("query_range", &range).await?
        } else {
            self.ask("query", &[("query", expression), ("time", &end)]).await?
        };
        let newest = |series: &Value| match series["values"].as_array() {
            Some(values) => values.last().unwrap()[1].clone(),
            None => series["value"][1].clone(),
        };
        let value = |series: &Value| newest(series).as_str().unwrap().parse().unwrap();
        Ok(data["result"].as_array().unwrap().iter().map(value).collect())
    }

    /// The values of a label, of the series that `selector` names.
    pub async fn values(&self, label: &str, selector: Option<&str>) -> BTreeSet<String> {
        let selector: Vec<_> = selector.iter().map(|selector| ("match[]", *selector)).collect();
        let values = self.ask(&format!("label/{label}/values"), &selector).await.unwrap();
        values.as_array().unwrap().iter().map(|value| value.as_str().unwrap().to_owned()).collect()
    }

    /// The alerts that are pending or firing.
    pub async fn alerts(&self) -> Vec<Value> {
        self.ask("alerts", &[]).await.unwrap()["alerts"].as_array().unwrap().clone()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// `promtool` in the folder of the deployed files, ready to run.
pub fn promtool(arguments: &[&str]) -> Command {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(DEPLOYED);
    command
}

/// The names of metrics in an expression: words that are neither functions nor the language's own, nor
/// stand among labels.
pub fn metrics(expression: &str) -> BTreeSet<String> {
    const LISTS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
    const WORDS: [&str; 5] = ["and", "or", "unless", "offset", "bool"];
    let mut names = BTreeSet::new();
    let mut rest = expression;
    let mut is_list = false;
    while let Some(first) = rest.chars().next() {
        let word = rest
            .split(|letter: char| !letter.is_ascii_alphanumeric() && !"_:".contains(letter))
            .next()
            .unwrap();
        let end = match first {
            '"' => Some('"'),
            '{' => Some('}'),
            '[' => Some(']'),
            '(' if is_list => Some(')'),
            _ => None,
        };
        if let Some(end) = end {
            // No value of a label here holds a brace, and no string a quote.
            let length = rest[1..].find(end).expect("an expression that is whole");
            rest = &rest[length + 2..];
            is_list = false;
        } else if word.is_empty() {
            rest = &rest[first.len_utf8()..];
        } else {
            rest = &rest[word.len()..];
            let next = rest.trim_start();
            let is_function =
                next.starts_with('(') || next.starts_with("by ") || next.starts_with("without ");
            is_list = LISTS.contains(&word);
            if !is_function && !is_list && !WORDS.contains(&word) && !first.is_ascii_digit() {
                names.insert(word.to_owned());
            }
        }
    }
    names
}
