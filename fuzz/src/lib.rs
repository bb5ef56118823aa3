//! What holds for every input from outside, whoever makes it up: the fuzzer, which looks for new paths
//! (`targets/`), or chance, which tries some in `./test` (`tests/integration/properties.rs`). What does not
//! hold is a panic.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use alien_alert::auth::Visitor;
use alien_alert::bus::{Bus, Join, Message};
use alien_alert::config::Config;
use alien_alert::cursor::Cursor;
use alien_alert::event::{Numbered, Told};
use alien_alert::frame::reader::{Message as Said, Reader, Violation};
use alien_alert::http::{Takeover, Taker};
use alien_alert::relay::Relay;
use alien_alert::shard::Shard;
use alien_alert::wire::request::{Body as Asked, Request, app_event, checked_id, id_of, landing_of};
use alien_alert::{clock, http, vm};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1::{self, Parts};
use hyper::service::service_fn;
use hyper::{Response, StatusCode, Version, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The key of the backend's routes here.
pub const API_KEY: &str = "a-key-for-the-backend";

/// Whatever is asked ends within this.
const PATIENCE: Duration = Duration::from_secs(60);

/// No answer is larger.
const LARGEST: u64 = 1 << 20;

/// A client's bytes mean the same in pieces of these sizes as whole.
pub fn frames(bytes: &[u8], sizes: &[usize], limit: usize) {
    assert_eq!(read(bytes, &[usize::MAX], limit), read(bytes, sizes, limit));
}

/// The same for an input of the fuzzer: the length of the pieces, less one, and then the bytes. (A `Vec` of its
/// own making would have every second byte.)
pub fn frames_in_pieces(input: &[u8]) {
    if let Some((size, bytes)) = input.split_first() {
        frames(bytes, &[usize::from(*size) + 1], 1 << 14);
    }
}

/// All that a reader says of bytes that come in pieces of those sizes, up to a close or the end.
pub fn read(bytes: &[u8], sizes: &[usize], limit: usize) -> (Vec<Said>, Result<(), Violation>) {
    let (mut reader, mut messages, mut rest) = (Reader::default(), Vec::new(), bytes);
    let mut sizes = sizes.iter().copied().cycle();
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(sizes.next().unwrap_or(rest.len()).clamp(1, rest.len()));
        rest = after;
        let result = reader.read(piece, limit, &mut messages);
        if result.is_err() || matches!(messages.last(), Some(Said::Close(_))) {
            return (messages, result);
        }
    }
    (messages, Ok(()))
}

/// A client's message, or a backend's body, becomes a request that is not much longer, or is refused with a
/// short word on what is wrong.
pub fn requests(text: &str) {
    let _ = (id_of(text), checked_id(text));
    let request = Request::parse(text);
    if let Ok(Request { body: Asked::Publish { data, .. } | Asked::Direct { data, .. }, .. }) = &request {
        assert!(data.get().len() <= text.len() + 100, "{}", data.get());
    }
    let refusals = [request.err(), app_event(text).err(), landing_of(text).err()];
    for refused in refusals.into_iter().flatten() {
        assert!((1..=400).contains(&refused.message.len()), "{}", refused.message);
    }
}

/// A cursor that is taken is one that could have been given.
pub fn cursors(topic: u32, text: &str) {
    if let Ok(cursor) = Cursor::parse(text, topic) {
        assert!(cursor.at >= 0 && cursor.topic == topic, "{text}");
        assert_eq!(Cursor::parse(&cursor.to_string(), topic), Ok(cursor));
    }
}

/// What can be read of a message of the topic is passed on as it was.
pub fn topic(data: &[u8]) {
    let _ = Numbered::decode(data);
    if let Ok(told) = Told::decode(data) {
        let again = told.encode();
        let told = Told::decode(&again).expect("what this program writes");
        assert_eq!(told.encode(), again);
    }
}

/// A connection's bytes, through hyper to the routes: each request has a fitting answer, and then there is an
/// end, or a socket. Returns what the client is told.
pub fn http(bytes: &[u8]) -> Vec<u8> {
    run(async {
        let (relay, bus) = relay_with(&[("API_KEY", API_KEY), ("FLY_ALLOC_ID", "alone")]).await;
        let routes = http::routes(Arc::clone(&relay));
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let (takeover, taken) = Takeover::new();
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(http::Peer(SocketAddr::from((Ipv4Addr::LOCALHOST, 1))));
            if request.version() == Version::HTTP_11 {
                request.extensions_mut().insert(takeover.clone());
            }
            let answer = http::answer(routes.clone(), request);
            async move {
                let answer = answer.await?;
                fits(&answer);
                Ok::<_, Infallible>(answer)
            }
        });
        let mut http = http1::Builder::new();
        // The client says at once all that it will.
        http.half_close(true).max_buf_size(16 << 10);
        let mut connection = http.serve_connection(TokioIo::new(server), service);
        let converse = async {
            client.write_all(bytes).await.expect("room for it");
            client.shutdown().await.expect("an end");
            tokio::select! {
                biased;
                _ = &mut connection => None,
                Ok(taker) = taken => Some(taker),
            }
        };
        let taker = timeout(PATIENCE, converse).await.expect("an end");
        let Parts { io, read_buf, .. } = connection.into_parts();
        let (mut server, mut rest, mut told) = (io.into_inner(), Vec::new(), Vec::new());
        server.read_to_end(&mut rest).await.expect("what the client said");
        drop(server);
        client.read_to_end(&mut told).await.expect("what it is told");
        assert!(told.is_empty() || told.starts_with(b"HTTP/1.1 ") || told.starts_with(b"HTTP/1.0 "));
        if let Some(taker) = taker {
            told.extend(socket(&relay, &bus, taker, &read_buf, &rest).await);
        }
        told
    })
}

/// A client's bytes after its request for a socket: it is told whole frames, and when it is gone, so is its
/// place.
async fn socket(relay: &Arc<Relay>, bus: &Bus, taker: Taker, early: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut inbox = bus.join(Join::Resume, clock::now_micros()).await.expect("a member");
    let hearing = Arc::clone(relay);
    tokio::spawn(async move {
        while let Ok(delivery) = inbox.next().await {
            let _ = hearing.receive(delivery);
        }
    });
    let shard = Shard::new(Arc::clone(relay), relay.shards[0].clone(), TaskTracker::new());
    tokio::spawn(shard.run(CancellationToken::new()));

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let (client, server) =
        tokio::join!(TcpStream::connect(listener.local_addr().expect("it")), listener.accept());
    let (mut client, (server, _)) = (client.expect("a connection"), server.expect("a connection"));
    taker(server, early);
    let mut told = Vec::new();
    // The VM may end it before it has all.
    let _ = client.write_all(rest).await;
    let (mut quiet, begun) = (0, Instant::now());
    while quiet < 20 && (!told.is_empty() || begun.elapsed() < PATIENCE) {
        sleep(Duration::from_millis(10)).await;
        // The clock is not the system's, which may need a moment.
        thread::sleep(Duration::from_micros(20));
        quiet += usize::from(!told.is_empty());
        while client.try_read_buf(&mut told).is_ok_and(|bytes| bytes > 0) {
            quiet = 0;
        }
    }
    // Gone without a word; and without what the system else remembers of a connection for a minute.
    client.set_zero_linger().expect("a connection");
    drop(client);
    timeout(PATIENCE, async {
        while relay.clients() > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("a place that is free");
    whole_frames(&told);
    told
}

/// An answer that makes a connection a socket, and a server's frames.
fn whole_frames(told: &[u8]) {
    let end = told.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("the end of the head");
    assert!(told.starts_with(b"HTTP/1.1 101 "));
    let mut rest = &told[end + 4..];
    let mut take = |count: usize| {
        let (taken, after) = rest.split_at_checked(count)?;
        rest = after;
        Some(taken)
    };
    while let Some(first) = take(1) {
        let length = match take(1).expect("a length")[0] {
            126 => u64::from(u16::from_be_bytes(take(2).expect("a length").try_into().expect("two"))),
            127 => u64::from_be_bytes(take(8).expect("a length").try_into().expect("eight")),
            short => short.into(),
        };
        let payload = take(usize::try_from(length).expect("a length")).expect("all of a frame");
        match first[0] {
            0x81 => drop(serde_json::from_slice::<serde_json::Value>(payload).expect("JSON")),
            0x88 => assert!(payload.len() >= 2, "a close has a code"),
            0x89 | 0x8a => assert!(payload.len() <= 125),
            other => panic!("a frame that begins with {other:#x}"),
        }
    }
}

/// An answer is safe for a browser, of a bounded size, and not the result of a defect.
fn fits<B: Body>(answer: &Response<B>) {
    let told = |name| answer.headers().get(name).map_or(&b""[..], |value| value.as_bytes());
    assert!(told(header::CONTENT_SECURITY_POLICY).starts_with(b"default-src 'none'"));
    assert_eq!(told(header::X_CONTENT_TYPE_OPTIONS), b"nosniff");
    assert!(answer.body().size_hint().upper().is_some_and(|bytes| bytes <= LARGEST));
    let is_honest = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT].contains(&answer.status());
    assert!(is_honest || !answer.status().is_server_error(), "{}", answer.status());
}

/// A VM's relay between clients and the topic goes on: a line is what one of three clients says, or, after a
/// `t`, what somebody puts on the topic; after a `j` a client comes with that cursor, in that channel.
pub fn relay(text: &str) {
    run(async {
        let (relay, bus) = relay_with(&[]).await;
        let mut inbox = bus.join(Join::Resume, clock::now_micros()).await.expect("a member");
        let join = |since: Option<&str>, channels: &[&str]| {
            let mut seated = None;
            relay.join(since, channels, Visitor::default(), |member, _| seated = Some(member));
            seated.expect("a member")
        };
        let mut members = vec![join(None, &[]), join(None, &["jobs"]), join(Some("1-1"), &["jobs", "team"])];
        for line in text.lines().take(64) {
            match line.split_at_checked(1) {
                Some(("t", rest)) => {
                    let message = Message { data: rest.as_bytes().to_vec().into(), ..Message::default() };
                    let _ = bus.publish(message).await;
                    let delivery = inbox.next().await.expect("what was published");
                    let _ = relay.receive(delivery);
                }
                Some(("j", rest)) => {
                    members.remove(0);
                    members.push(join(Some(rest), &[rest, "jobs"]));
                }
                Some((who, rest)) => {
                    let index = usize::from(who.as_bytes()[0]) % members.len();
                    relay.handle(&members[index], rest);
                    // An event goes to the bus, and comes from it.
                    tokio::task::yield_now().await;
                }
                None => {}
            }
        }
        let _ = relay.tend_ledger();
    });
}

/// In a runtime of its own, so that nothing is left of one input when the next comes; what waits for time
/// alone does not wait.
fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    runtime.block_on(future)
}

/// A VM alone that is ready.
async fn relay_with(settings: &[(&str, &str)]) -> (Arc<Relay>, Bus) {
    let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let config = Config::from_vars(settings).expect("settings");
    let bus = vm::bus(&config).await.expect("a bus");
    let relay = Arc::new(Relay::new(config, bus.clone(), 1));
    relay.health.ready();
    (relay, bus)
}
