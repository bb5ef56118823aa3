//! warp's own example of a chat (`examples/websockets_chat.rs`), with its words changed to ours: an
//! unbounded channel and a task for each socket, and a `String` cloned for each.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bench::words::{self, Request};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpListener;
use tokio::sync::{RwLock, mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;
use warp::Filter as _;
use warp::ws::{Message, WebSocket};

static NEXT_USER_ID: AtomicUsize = AtomicUsize::new(1);

type Users = Arc<RwLock<HashMap<usize, mpsc::UnboundedSender<Message>>>>;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let users = Users::default();
    let users = warp::any().map(move || users.clone());
    let chat = warp::path("ws")
        .and(warp::ws())
        .and(users)
        .map(|ws: warp::ws::Ws, users| ws.on_upgrade(move |socket| user_connected(socket, users)));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on http://{}", listener.local_addr()?);
    warp::serve(chat).incoming(listener).run().await;
    Ok(())
}

async fn user_connected(ws: WebSocket, users: Users) {
    let my_id = NEXT_USER_ID.fetch_add(1, Ordering::Relaxed);
    let my_name = words::client_id();
    let (mut user_ws_tx, mut user_ws_rx) = ws.split();
    let (tx, rx) = mpsc::unbounded_channel();
    let mut rx = UnboundedReceiverStream::new(rx);
    tokio::task::spawn(async move {
        while let Some(message) = rx.next().await {
            if user_ws_tx.send(message).await.is_err() {
                break;
            }
        }
    });
    users.write().await.insert(my_id, tx);
    while let Some(Ok(message)) = user_ws_rx.next().await {
        user_message(my_id, &my_name, &message, &users).await;
    }
    users.write().await.remove(&my_id);
}

async fn user_message(my_id: usize, my_name: &str, message: &Message, users: &Users) {
    match words::request(message.as_bytes()) {
        Some(Request::Alert(data)) => {
            let text = words::alert(my_name, &data);
            for tx in users.read().await.values() {
                let _ = tx.send(Message::text(text.clone()));
            }
        }
        Some(Request::Ping) => {
            if let Some(tx) = users.read().await.get(&my_id) {
                let _ = tx.send(Message::text(words::pong()));
            }
        }
        None => {}
    }
}
