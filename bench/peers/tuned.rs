//! What an hour of tuning makes of tokio and tungstenite: one thread, one task and one bounded channel a
//! socket, text shared rather than copied, all that waits joined into one write, small read buffers.

use std::cell::RefCell;
use std::rc::Rc;

use bench::words::{self, Request};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes, protocol::WebSocketConfig};
use tokio_tungstenite::{WebSocketStream, accept_async_with_config};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Events that may wait for one socket; beyond them they are dropped.
const WAITING: usize = 1024;

type Members = Rc<RefCell<Vec<mpsc::Sender<Utf8Bytes>>>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    LocalSet::new().run_until(accept()).await
}

async fn accept() -> std::io::Result<()> {
    let members = Members::default();
    let listener = listen()?;
    println!("listening on http://{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let members = members.clone();
        spawn_local(async move {
            let config = WebSocketConfig::default().read_buffer_size(1024).write_buffer_size(8 << 10);
            // Boxed: the handshake's state is large, and not needed afterwards.
            let socket = Box::pin(accept_async_with_config(stream, Some(config))).await;
            if let Ok(socket) = socket {
                serve(socket, &members).await;
            }
        });
    }
}

/// With room for a burst: tokio's own `bind` lets 128 wait.
fn listen() -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, 1], 0).into())?;
    socket.listen(4096)
}

async fn serve(mut socket: WebSocketStream<TcpStream>, members: &Members) {
    let name = words::client_id();
    let (sender, mut waiting) = mpsc::channel(WAITING);
    members.borrow_mut().push(sender);
    loop {
        tokio::select! {
            Some(text) = waiting.recv() => {
                let mut next = Some(text);
                while let Some(text) = next {
                    if socket.feed(Message::Text(text)).await.is_err() {
                        return;
                    }
                    next = waiting.try_recv().ok();
                }
                if socket.flush().await.is_err() {
                    return;
                }
            }
            message = socket.next() => {
                let Some(Ok(message)) = message else { return };
                match words::request(&message.into_data()) {
                    Some(Request::Alert(data)) => {
                        let text = Utf8Bytes::from(words::alert(&name, &data));
                        let full_or_open = |member: &mpsc::Sender<_>| {
                            !matches!(member.try_send(text.clone()), Err(mpsc::error::TrySendError::Closed(_)))
                        };
                        members.borrow_mut().retain(full_or_open);
                    }
                    Some(Request::Ping) if socket.send(Message::text(words::pong())).await.is_err() => return,
                    _ => {}
                }
            }
        }
    }
}
