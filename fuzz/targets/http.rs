//! A connection's bytes, through hyper to the routes.
#![no_main]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use alien_alert::config::Config;
use alien_alert::relay::Relay;
use alien_alert::{http, vm};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::{Builder, Runtime};
use warp::filters::BoxedFilter;
use warp::reply::Response;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_all().build().expect("a runtime"));

static ROUTES: LazyLock<BoxedFilter<(Response,)>> = LazyLock::new(|| {
    use warp::Filter as _;
    let vars = [("API_KEY", "a-key-for-the-backend"), ("AUTH_SECRET", "0123456789abcdef0123456789abcdef")];
    let vars = vars.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = Config::from_vars(vars).expect("settings");
    let bus = RUNTIME.block_on(vm::bus(&config)).expect("a bus");
    let relay = Arc::new(Relay::new(config, bus, 1));
    relay.health.ready();
    http::routes(relay).map(warp::Reply::into_response).boxed()
});

fuzz_target!(|bytes: &[u8]| {
    let routes = ROUTES.clone();
    let answer = RUNTIME.block_on(async move {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(http::Peer(SocketAddr::from((Ipv4Addr::LOCALHOST, 1))));
            http::answer(routes.clone(), request)
        });
        let connection = http1::Builder::new().max_buf_size(16 << 10).serve_connection(TokioIo::new(server), service);
        let talk = async {
            let _ = client.write_all(bytes).await;
            let _ = client.shutdown().await;
            let mut answer = Vec::new();
            let _ = client.read_to_end(&mut answer).await;
            answer
        };
        // What waits for more than there is ends with the connection.
        let both = async { tokio::join!(connection, talk).1 };
        tokio::time::timeout(Duration::from_secs(5), both).await.expect("an end")
    });
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 ") || answer.starts_with(b"HTTP/1.0 "));
});
