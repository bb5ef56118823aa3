//! The browser's own protocol, where its driver does not reach: the trace of what a page's thread does, and its
//! service worker.

use std::future::Future;

use futures_util::SinkExt as _;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::browser::Page;
use super::client::{next, open};
use super::http;

/// A line to one page or its worker, beside the driver's.
pub struct Devtools {
    socket: WebSocketStream<TcpStream>,
    calls: u64,
    /// What was told between answers.
    told: Vec<Value>,
}

impl Devtools {
    /// To the first of that page's browser's targets of a kind: `page`, or `service_worker`.
    pub async fn attach(page: &Page, kind: &str) -> Self {
        let ports = std::fs::read_to_string(page.profile.join("DevToolsActivePort")).unwrap();
        let port = ports.lines().next().unwrap().parse().unwrap();
        let targets = http::get(port, "/json").await.json();
        let target = targets.as_array().unwrap().iter().find(|target| target["type"] == kind).unwrap();
        let path = format!("/devtools/page/{}", target["id"].as_str().unwrap());
        Self { socket: open(port, &path).await.unwrap(), calls: 0, told: Vec::new() }
    }

    pub async fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let call = json!({"id": self.calls, "method": method, "params": params});
        self.socket.send(Message::text(call.to_string())).await.unwrap();
        loop {
            let mut message = next(&mut self.socket).await;
            if message["id"] == self.calls {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].take();
            }
            self.told.push(message);
        }
    }

    /// What an expression comes to, when its promise is kept.
    pub async fn evaluate(&mut self, expression: &str) -> Value {
        let how = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut answer = self.call("Runtime.evaluate", how).await;
        assert!(answer["exceptionDetails"].is_null(), "{answer}");
        answer["result"]["value"].take()
    }

    /// The trace of what happens while `act` does.
    pub async fn trace(&mut self, categories: &[&str], act: impl Future<Output = ()>) -> Vec<Value> {
        let config = json!({"includedCategories": categories});
        self.call("Tracing.start", json!({"transferMode": "ReportEvents", "traceConfig": config})).await;
        act.await;
        self.told.clear();
        self.call("Tracing.end", json!({})).await;
        while self.told.iter().all(|message| message["method"] != "Tracing.tracingComplete") {
            let message = next(&mut self.socket).await;
            self.told.push(message);
        }
        let collected = self.told.iter_mut().filter(|message| message["method"] == "Tracing.dataCollected");
        collected
            .flat_map(|message| match message["params"]["value"].take() {
                Value::Array(events) => events,
                _ => Vec::new(),
            })
            .collect()
    }
}
