//! Many pages that do what `client.js` does, and people who press their buttons: who comes back with a cursor
//! after every close, and what each has heard.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alien_alert::clock::Backoff;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::client::{Raw, open};
use super::vm::Vm;
use super::{PATIENCE, until};

/// All pages come from one address here.
pub const ROOM: [(&str, &str); 5] = [
    ("UPGRADE_RATE", "100000"),
    ("UPGRADE_BURST", "100000"),
    ("MAX_CONNECTIONS_PER_ADDRESS", "20000"),
    ("MESSAGE_RATE", "100000"),
    ("MESSAGE_BURST", "100000"),
];

/// What answers a ping: an empty pong, masked with zeros.
pub const PONG: [u8; 6] = [0x8a, 0x80, 0, 0, 0, 0];

/// Pages that do what `client.js` does, and what became of them.
pub struct Crowd {
    ports: Vec<u16>,
    pub pages: Vec<Mutex<Page>>,
    pub returns: Mutex<Vec<Return>>,
    /// Sockets that ended without a hint.
    pub unhinted: AtomicUsize,
    /// Alerts so far.
    pub numbers: AtomicUsize,
    /// No more alerts.
    pub enough: AtomicBool,
}

#[derive(Default)]
pub struct Page {
    connected: bool,
    /// How many connections it had.
    connections: usize,
    cursor: Option<String>,
    /// By an alert's number: on which of its connections it came last; 0: not yet.
    came_on: Vec<usize>,
    /// Came twice on one connection.
    pub repeated: usize,
}

/// A page that comes back after a close.
pub struct Return {
    pub closed_by: usize,
    pub at: Instant,
}

impl Crowd {
    /// Pages on VMs, spread evenly; all are connected when this returns, and live for as long as their tasks.
    pub async fn gather(vms: &[Vm], pages: usize) -> (Arc<Self>, JoinSet<()>) {
        let crowd = Arc::new(Self::new(vms.iter().map(|vm| vm.port).collect(), pages));
        let mut living = JoinSet::new();
        for number in 0..pages {
            living.spawn(live(Arc::clone(&crowd), number));
        }
        until("all pages", async || (crowd.connected() == pages).then_some(())).await;
        (crowd, living)
    }

    /// Someone on each VM who presses the button until it is enough; which alerts were acknowledged.
    pub fn press(self: &Arc<Self>) -> JoinSet<Vec<usize>> {
        (0..self.ports.len()).map(|vm| press(Arc::clone(self), vm)).collect()
    }

    fn new(ports: Vec<u16>, pages: usize) -> Self {
        Self {
            ports,
            pages: (0..pages).map(|_| Mutex::default()).collect(),
            returns: Mutex::default(),
            unhinted: AtomicUsize::new(0),
            numbers: AtomicUsize::new(0),
            enough: AtomicBool::new(false),
        }
    }

    pub fn connected(&self) -> usize {
        self.pages.iter().filter(|page| page.lock().unwrap().connected).count()
    }
}

impl Page {
    fn hear(&mut self, text: &str) {
        if text.starts_with(r#"{"type":"connected""#) {
            self.connected = true;
            self.connections += 1;
            return;
        }
        for number in numbers(text) {
            if self.came_on.len() <= number {
                self.came_on.resize(number + 1, 0);
            }
            self.repeated += usize::from(self.came_on[number] == self.connections);
            self.came_on[number] = self.connections;
        }
        if let Some(cursor) = cursor(text)
            && self.cursor.as_ref().is_none_or(|known| is_later(cursor, known))
        {
            self.cursor = Some(cursor.into());
        }
    }

    pub fn has(&self, numbers: &[usize]) -> bool {
        numbers.iter().all(|number| self.came_on.get(*number).is_some_and(|connection| *connection > 0))
    }
}

/// One page's life. Every other one comes back to the same VM, the rest go to the next.
async fn live(crowd: Arc<Crowd>, number: usize) {
    let page = &crowd.pages[number];
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
    let mut vm = number % crowd.ports.len();
    loop {
        let cursor = page.lock().unwrap().cursor.clone();
        let path = cursor.map_or("/ws".into(), |cursor| format!("/ws?since={cursor}"));
        if let Ok(socket) = Raw::open(crowd.ports[vm], &path).await {
            backoff.reset();
            let reason = listen(socket, page).await;
            page.lock().unwrap().connected = false;
            let told = reason.strip_prefix("retry in ").and_then(|told| told.strip_suffix(" ms"));
            match told.and_then(|told| told.parse().ok()) {
                Some(told) => sleep(Duration::from_millis(told)).await,
                None => {
                    crowd.unhinted.fetch_add(1, Ordering::Relaxed);
                    sleep(backoff.wait()).await;
                }
            }
            crowd.returns.lock().unwrap().push(Return { closed_by: vm, at: Instant::now() });
            vm = (vm + number % 2) % crowd.ports.len();
        } else {
            sleep(backoff.wait()).await;
            vm = (vm + 1) % crowd.ports.len();
        }
    }
}

/// Listens until the end; the close's reason, if one came.
async fn listen(mut socket: Raw, page: &Mutex<Page>) -> String {
    while let Ok((opcode, payload)) = socket.next().await {
        match opcode {
            0x1 => page.lock().unwrap().hear(&String::from_utf8(payload).unwrap()),
            0x8 => return String::from_utf8_lossy(&payload[2..]).into_owned(),
            // An end is found out by the next read.
            _ => {
                let _ = socket.0.write_all(&PONG).await;
            }
        }
    }
    String::new()
}

/// The numbers of the alerts in a message, whose ids are `#` and six digits. Searched for as text, since
/// thousands of pages have one processor here.
pub fn numbers(text: &str) -> impl Iterator<Item = usize> {
    text.split('#').skip(1).filter_map(|rest| rest.get(..6)?.parse().ok())
}

/// A message's own cursor: the last in its text.
fn cursor(text: &str) -> Option<&str> {
    let (mut after, mut second_after) = ("", "");
    for part in text.rsplit('"') {
        if part == "cursor" {
            return Some(second_after);
        }
        (after, second_after) = (part, after);
    }
    None
}

/// Stricter than `client.js`, which takes the last one that it heard: these ask for less again.
fn is_later(cursor: &str, known: &str) -> bool {
    let at = |cursor: &str| {
        let at = cursor.split('-').nth(1).unwrap_or_default();
        (at.len(), at.to_owned())
    };
    at(cursor) > at(known)
}

/// Presses the button four times a second, each time until that is acknowledged; which ones were.
async fn press(crowd: Arc<Crowd>, mut vm: usize) -> Vec<usize> {
    let mut tick = interval(Duration::from_millis(250));
    let mut acknowledged = Vec::new();
    let mut socket = None;
    while !crowd.enough.load(Ordering::Relaxed) {
        tick.tick().await;
        let number = crowd.numbers.fetch_add(1, Ordering::Relaxed);
        let id = format!("#{number:06}");
        loop {
            if socket.is_none() {
                socket = open(crowd.ports[vm], "/ws").await.ok();
            }
            if let Some(open) = &mut socket
                && timeout(PATIENCE, is_acknowledged(open, &id)).await.unwrap_or(false)
            {
                break;
            }
            // The same again, elsewhere.
            socket = None;
            vm = (vm + 1) % crowd.ports.len();
            sleep(Duration::from_millis(50)).await;
        }
        acknowledged.push(number);
    }
    acknowledged
}

async fn is_acknowledged(socket: &mut WebSocketStream<TcpStream>, id: &str) -> bool {
    let alert = json!({"type": "alert", "id": id, "data": {}});
    if socket.send(Message::text(alert.to_string())).await.is_err() {
        return false;
    }
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Text(text) if text.contains(id) && text.starts_with(r#"{"type":"ack""#) => return true,
            Message::Text(text) if text.contains(id) && text.starts_with(r#"{"type":"error""#) => {
                return false;
            }
            Message::Close(_) => return false,
            _ => {}
        }
    }
    false
}
