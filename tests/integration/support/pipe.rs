//! A Chromium that is told what to do over a pipe, and by no driver: only so does it let a page be installed.

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::browser::{FLAGS, chromium, directory, end};
use super::{until, within};

/// A browser with a home of its own, where it puts what it installs; both end with this value.
pub struct PipedBrowser {
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    calls: u64,
    home: PathBuf,
}

impl PipedBrowser {
    pub fn start() -> Self {
        let home = directory();
        // It reads from file descriptor 3, and writes to 4.
        let mut process = Command::new("sh")
            .args(["-c", r#"exec "$@" 3<&0 4>&1 </dev/null >/dev/null"#, "sh", chromium()])
            .args(FLAGS)
            .args(["--remote-debugging-pipe", "--enable-devtools-pwa-handler"])
            .arg(format!("--user-data-dir={}", home.join("profile").display()))
            .env("HOME", &home)
            .env("XDG_DATA_HOME", home.join("data"))
            .env("XDG_CONFIG_HOME", home.join("config"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let commands = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Self { process, commands, answers, calls: 0, home }
    }

    /// Calls a method of the browser, or of the target that a session is with.
    pub async fn call(&mut self, session: Option<&str>, method: &str, params: Value) -> Value {
        let mut answer = self.answer(session, method, params).await;
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].take()
    }

    async fn answer(&mut self, session: Option<&str>, method: &str, params: Value) -> Value {
        self.calls += 1;
        let mut call = json!({"id": self.calls, "method": method, "params": params});
        if let Some(session) = session {
            call["sessionId"] = session.into();
        }
        self.commands.write_all(format!("{call}\0").as_bytes()).await.unwrap();
        within(method, async {
            loop {
                let mut answer = Vec::new();
                self.answers.read_until(0, &mut answer).await.unwrap();
                let answer: Value = serde_json::from_slice(answer.strip_suffix(&[0]).unwrap()).unwrap();
                if answer["id"] == self.calls {
                    return answer;
                }
            }
        })
        .await
    }

    /// A session with the page that shows `url`.
    pub async fn page(&mut self, url: &str) -> String {
        let id = until("page", async || self.shown(url).await).await;
        let attached = self.call(None, "Target.attachToTarget", json!({"targetId": id, "flatten": true}));
        attached.await["sessionId"].as_str().unwrap().to_owned()
    }

    /// Closes the page that shows `url`.
    pub async fn close(&mut self, url: &str) {
        let id = self.shown(url).await.unwrap();
        self.call(None, "Target.closeTarget", json!({"targetId": id})).await;
        until("end of the page", async || self.shown(url).await.is_none().then_some(())).await;
    }

    async fn shown(&mut self, url: &str) -> Option<Value> {
        let mut told = self.call(None, "Target.getTargets", json!({})).await;
        let Value::Array(targets) = told["targetInfos"].take() else { return None };
        let mut page = targets.into_iter().find(|target| target["type"] == "page" && target["url"] == url)?;
        Some(page["targetId"].take())
    }

    /// What an expression comes to in a page, when its promise is kept; null where that page goes.
    pub async fn evaluate(&mut self, session: &str, expression: &str) -> Value {
        let how = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut answer = self.answer(Some(session), "Runtime.evaluate", how).await;
        answer["result"]["result"]["value"].take()
    }
}

impl Drop for PipedBrowser {
    fn drop(&mut self) {
        if let Some(group) = self.process.id() {
            end(group, &self.home);
        }
    }
}
