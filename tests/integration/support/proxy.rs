//! A TCP proxy between a VM and the emulator: counts what goes through, and breaks as networks do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::select;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What becomes of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All goes through.
    Pass,
    /// Those there are end; new ones go through.
    Cut,
    /// Those there are end, and new ones at once.
    Refuse,
    /// None ends and nothing goes through; new ones are taken and hang. What waits goes on when the
    /// mode is [`Mode::Pass`] again.
    BlackHole,
}

/// A running proxy; ends with this value.
pub struct Proxy {
    pub port: u16,
    mode: watch::Sender<Mode>,
    passed: Arc<Passed>,
    accepting: JoinHandle<()>,
}

/// What has gone through, of all connections together.
#[derive(Default)]
struct Passed {
    sent: AtomicU64,
    received: AtomicU64,
    /// What clients sent first.
    first: Mutex<Vec<u8>>,
}

/// So much of it is kept.
const FIRST: usize = 1 << 20;

impl Proxy {
    /// Starts a proxy to `port` of this machine.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let (mode, modes) = watch::channel(Mode::Pass);
        let passed = Arc::new(Passed::default());
        let counters = Arc::clone(&passed);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, port, modes.clone(), Arc::clone(&counters)));
            }
        });
        Self { port: own, mode, passed, accepting }
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Bytes that clients have sent so far.
    pub fn sent(&self) -> u64 {
        self.passed.sent.load(Ordering::Relaxed)
    }

    /// Bytes that clients were sent so far.
    pub fn received(&self) -> u64 {
        self.passed.received.load(Ordering::Relaxed)
    }

    /// Whether `bytes` are among the first that clients sent.
    pub fn was_sent(&self, bytes: &[u8]) -> bool {
        self.passed.first.lock().unwrap().windows(bytes.len()).any(|window| window == bytes)
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Serves one connection until the mode ends it.
async fn serve(client: TcpStream, port: u16, mut modes: watch::Receiver<Mode>, passed: Arc<Passed>) {
    let mode = *modes.borrow_and_update();
    let open = modes.clone();
    let served = async {
        match mode {
            Mode::Pass | Mode::Cut | Mode::BlackHole => pass(client, port, open, &passed).await,
            Mode::Refuse => {}
        }
    };
    let ended = async {
        while modes.changed().await.is_ok() {
            let now = *modes.borrow_and_update();
            if !matches!(now, Mode::Pass | Mode::BlackHole) {
                return;
            }
        }
    };
    select! {
        () = served => {}
        () = ended => {}
    }
}

async fn pass(client: TcpStream, port: u16, mut open: watch::Receiver<Mode>, passed: &Passed) {
    out_of_the_hole(&mut open).await;
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let sent = |bytes: &[u8]| {
        passed.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let mut first = passed.first.lock().unwrap();
        let room = FIRST - first.len();
        first.extend(&bytes[..bytes.len().min(room)]);
    };
    let received = |bytes: &[u8]| {
        passed.received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    };
    tokio::join!(
        carry(from_client, to_server, open.clone(), sent),
        carry(from_server, to_client, open, received)
    );
}

/// Carries one direction to its end, and notes what goes through.
async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut open: watch::Receiver<Mode>,
    note: impl Fn(&[u8]),
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count) = from.read(&mut buffer).await {
        // Neither bytes nor an end come out of a hole.
        out_of_the_hole(&mut open).await;
        note(&buffer[..count]);
        if count == 0 || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

async fn out_of_the_hole(modes: &mut watch::Receiver<Mode>) {
    // An error says that the proxy is gone, which ends the connection elsewhere.
    let _ = modes.wait_for(|mode| *mode != Mode::BlackHole).await;
}
