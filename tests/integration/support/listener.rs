//! A socket that is read all the time, as a page's is, and remembers all that it heard.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::stream::SplitSink;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::client::open;
use super::within_for;

/// An open socket; ends with this value.
pub struct Listener {
    sender: SplitSink<WebSocketStream<TcpStream>, Message>,
    heard: Arc<Heard>,
    reading: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Heard {
    messages: Mutex<Vec<(Instant, Value)>>,
    grown: Notify,
}

impl Listener {
    pub async fn connect(port: u16) -> Self {
        Self::on(open(port, "/ws").await.unwrap())
    }

    pub fn on(socket: WebSocketStream<TcpStream>) -> Self {
        let (sender, mut receiver) = socket.split();
        let heard = Arc::new(Heard::default());
        let growing = Arc::clone(&heard);
        let reading = tokio::spawn(async move {
            while let Some(Ok(message)) = receiver.next().await {
                if let Message::Text(text) = message {
                    let message = serde_json::from_str(&text).unwrap();
                    growing.messages.lock().unwrap().push((Instant::now(), message));
                    growing.grown.notify_waiters();
                }
            }
        });
        Self { sender, heard, reading }
    }

    /// Presses the button; the answer is awaited elsewhere.
    pub async fn alert(&mut self, id: &str) {
        let alert = json!({"type": "alert", "id": id, "data": {"note": id}});
        self.sender.send(Message::text(alert.to_string())).await.unwrap();
    }

    /// The answer number `nth`, from 0, to what was sent with this id, and when it came.
    pub async fn answer(&self, id: &str, nth: usize, patience: Duration) -> (Instant, Value) {
        self.until(&format!("answer {nth} to {id}"), patience, |messages| {
            let is_answer = |message: &Value| {
                (message["type"] == "ack" || message["type"] == "error") && message["id"] == id
            };
            messages.iter().filter(|(_, message)| is_answer(message)).nth(nth).cloned()
        })
        .await
    }

    /// Waits until all these events have come.
    pub async fn hears(&self, ids: &[String], patience: Duration) {
        for id in ids {
            self.until(&format!("event {id}"), patience, |messages| {
                events(messages).contains(id).then_some(())
            })
            .await;
        }
    }

    /// When an event came that has come.
    pub fn came(&self, id: &str) -> Instant {
        let messages = self.heard.messages.lock().unwrap();
        messages.iter().find(|(_, message)| message["type"] == "alert" && message["id"] == id).unwrap().0
    }

    /// The ids of all events so far, as often as they came, in their order.
    pub fn events(&self) -> Vec<String> {
        events(&self.heard.messages.lock().unwrap())
    }

    pub fn is_open(&self) -> bool {
        !self.reading.is_finished()
    }

    async fn until<T>(
        &self,
        what: &str,
        patience: Duration,
        find: impl Fn(&[(Instant, Value)]) -> Option<T>,
    ) -> T {
        within_for(patience, what, async {
            loop {
                let grown = self.heard.grown.notified();
                if let Some(found) = find(&self.heard.messages.lock().unwrap()) {
                    return found;
                }
                grown.await;
            }
        })
        .await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

fn events(messages: &[(Instant, Value)]) -> Vec<String> {
    let all = messages.iter().flat_map(|(_, message)| match &message["events"] {
        Value::Array(events) => events.iter().collect(),
        _ => vec![message],
    });
    all.filter(|event| event["type"] == "alert")
        .map(|event| event["id"].as_str().unwrap().to_owned())
        .collect()
}
