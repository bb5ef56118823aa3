//! Who gets in: tokens of every kind, good and bad, and what their bearers may then do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, KeyPair as _};
use aws_lc_rs::signature::{EcdsaKeyPair, Ed25519KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures_util::{SinkExt as _, StreamExt as _};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};
use tokio_util::sync::CancellationToken;

use crate::support::client::{Client, Raw};
use crate::support::emulator::Emulator;
use crate::support::http::{get, get_with, knock, request};
use crate::support::vm::{Vm, command};
use crate::support::within;

const SECRET: &str = "a secret of the tests, of more than 32 bytes";

/// The second of the epoch that is so far from now.
fn at(seconds: i64) -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64 + seconds
}

fn sign(claims: &Value, algorithm: Algorithm, key: &EncodingKey) -> String {
    encode(&Header::new(algorithm), claims, key).unwrap()
}

/// By the secret of the tests.
fn token(claims: &Value) -> String {
    sign(claims, Algorithm::HS256, &EncodingKey::from_secret(SECRET.as_bytes()))
}

/// Ann's good claims for an hour, but for what `change` says.
fn claims(change: Value) -> Value {
    let mut claims = json!({"sub": "ann", "exp": at(3600)});
    claims.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    claims
}

/// Expects a refusal that says `why`, and neither says nor logs anything of the token.
async fn assert_refused(vm: &Vm, token: &str, reason: &str, why: &str) {
    let answer = knock(vm, &format!("/ws?token={token}"), &[]).await;
    assert_eq!(answer.status, 401, "{why}: {}", answer.text());
    assert_eq!(answer.header("www-authenticate"), "Bearer");
    let body = answer.json();
    assert_eq!(body["error"]["code"], "forbidden", "{body}");
    assert!(body["error"]["message"].as_str().unwrap().contains(why), "{why:?} in {body}");
    let metrics = get(vm.port, "/metrics").await;
    let counted = format!("upgrades_rejected_total{{reason=\"{reason}\"}}");
    assert!(metrics.text().contains(&counted), "{counted} in {}", metrics.text());
    for part in token.split('.').filter(|part| part.len() > 20) {
        assert!(!answer.text().contains(part), "{}", answer.text());
        assert_silent(vm, part);
    }
}

fn assert_silent(vm: &Vm, secret: &str) {
    for line in vm.log() {
        assert!(!line.to_string().contains(secret), "{line}");
    }
}

#[tokio::test]
async fn each_bad_token_is_refused_and_told_why() {
    let vars = [
        ("AUTH_SECRET", SECRET),
        ("AUTH_AUDIENCE", "aliens"),
        ("AUTH_ISSUER", "https://id.example"),
        // All that any part of it has to say.
        ("RUST_LOG", "trace"),
    ];
    let vm = Vm::alone(&vars).await;
    let good = |change: Value| {
        let mut all = json!({"aud": "aliens", "iss": "https://id.example"});
        all.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        claims(all)
    };
    let accepted = token(&good(json!({"nbf": at(-5), "aud": ["men", "aliens"]})));
    assert_eq!(knock(&vm, &format!("/ws?token={accepted}"), &[]).await.status, 101);
    // Clocks differ a little.
    let barely = token(&good(json!({"nbf": at(1)})));
    assert_eq!(knock(&vm, &format!("/ws?token={barely}"), &[]).await.status, 101);

    let none = [&json!({"alg": "none", "typ": "JWT"}), &good(json!({}))];
    let none = none.map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    let other_key = EncodingKey::from_secret(b"another secret of the tests, of more than 32 bytes");
    let same_key = EncodingKey::from_secret(SECRET.as_bytes());
    let mut forged: Vec<_> = accepted.split('.').map(str::to_owned).collect();
    forged[1] = URL_SAFE_NO_PAD.encode(good(json!({"sub": "bob"})).to_string());
    for (token, reason, why) in [
        (String::new(), "token_missing", "a token is needed"),
        ("nonsense".into(), "token_malformed", "not understood"),
        (format!("{}.{}.", none[0], none[1]), "token_malformed", "unknown algorithm"),
        (sign(&good(json!({})), Algorithm::HS256, &other_key), "token_signature", "signature"),
        (forged.join("."), "token_signature", "signature"),
        (sign(&good(json!({})), Algorithm::HS512, &same_key), "token_algorithm", "algorithm"),
        (token(&good(json!({"exp": at(-10)}))), "token_expired", "expired"),
        (token(&good(json!({"nbf": at(60)}))), "token_not_yet_valid", "not yet valid"),
        (token(&good(json!({"aud": "men"}))), "token_audience", "audience"),
        (token(&good(json!({"aud": null}))), "token_audience", "audience"),
        (token(&good(json!({"iss": "https://id.evil"}))), "token_issuer", "issuer"),
        (token(&good(json!({"iss": null}))), "token_issuer", "issuer"),
        (token(&good(json!({"sub": null}))), "token_subject", "sub: expected 1 to 64"),
        (token(&good(json!({"sub": ""}))), "token_subject", "sub: expected 1 to 64"),
        (token(&good(json!({"sub": "a\nb"}))), "token_subject", "sub: expected 1 to 64"),
        (token(&good(json!({"sub": "x".repeat(65)}))), "token_subject", "sub: expected 1 to 64"),
        (token(&good(json!({"sub": "ann lee"}))), "token_subject", "visible"),
        (token(&good(json!({"exp": null}))), "token_expiry", "exp: expected"),
        (token(&good(json!({"exp": 1e19}))), "token_expiry", "exp: expected"),
        (token(&good(json!({"channels": "room"}))), "token_malformed", "another type"),
    ] {
        assert_refused(&vm, &token, reason, why).await;
    }
    assert_refused(&vm, "", "token_missing", "a token is needed").await;
    assert_eq!(knock(&vm, "/ws", &[]).await.status, 401);
    for part in accepted.split('.').chain([SECRET]) {
        assert_silent(&vm, part);
    }
}

#[tokio::test]
async fn a_token_for_someone_is_refused_where_no_audience_is_named() {
    let vm = Vm::alone(&[("AUTH_SECRET", SECRET)]).await;
    assert_refused(&vm, &token(&claims(json!({"aud": "men"}))), "token_audience", "AUTH_AUDIENCE").await;
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// A new key's two halves in PEM.
fn halves(
    key: &impl AsDer<Pkcs8V1Der<'static>>,
    public: &impl AsDer<PublicKeyX509Der<'static>>,
) -> (String, String) {
    let (key, public) = (key.as_der().unwrap(), public.as_der().unwrap());
    (pem("PRIVATE KEY", key.as_ref()), pem("PUBLIC KEY", public.as_ref()))
}

fn rsa(size: KeySize) -> (String, String) {
    let key = aws_lc_rs::rsa::KeyPair::generate(size).unwrap();
    halves(&key, key.public_key())
}

fn ed25519() -> (String, String) {
    let key = Ed25519KeyPair::generate().unwrap();
    halves(&key, key.public_key())
}

fn ec(on: &'static aws_lc_rs::signature::EcdsaSigningAlgorithm) -> (String, String) {
    let document = EcdsaKeyPair::generate_pkcs8(on, &aws_lc_rs::rand::SystemRandom::new()).unwrap();
    let public = EcdsaKeyPair::from_pkcs8(on, document.as_ref()).unwrap();
    let public = public.public_key().as_der().unwrap();
    (pem("PRIVATE KEY", document.as_ref()), pem("PUBLIC KEY", public.as_ref()))
}

#[tokio::test]
async fn a_public_key_takes_tokens_of_its_own_algorithm_and_no_other() {
    let rsa_pair = || rsa(KeySize::Rsa2048);
    let ec_pair = || ec(&ECDSA_P256_SHA256_FIXED_SIGNING);
    let by_rsa = |pem: &str| EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap();
    let by_ec = |pem: &str| EncodingKey::from_ec_pem(pem.as_bytes()).unwrap();
    let by_ed = |pem: &str| EncodingKey::from_ed_pem(pem.as_bytes()).unwrap();
    type Read<'a> = &'a dyn Fn(&str) -> EncodingKey;
    let kinds: [(_, Read<'_>, _, _, Option<Algorithm>); 3] = [
        (Algorithm::RS256, &by_rsa, rsa_pair(), rsa_pair(), Some(Algorithm::PS256)),
        (Algorithm::ES256, &by_ec, ec_pair(), ec_pair(), None),
        (Algorithm::EdDSA, &by_ed, ed25519(), ed25519(), None),
    ];
    for (algorithm, read, (private, public), (other, _), sibling) in kinds {
        // As a place would have it that keeps variables on one line.
        let on_one_line = public.replace('\n', "\\n");
        let value = if algorithm == Algorithm::ES256 { &on_one_line } else { &public };
        let vm = Vm::alone(&[("AUTH_PUBLIC_KEY", value), ("RUST_LOG", "trace")]).await;
        let (key, claims) = (read(&private), claims(json!({})));
        let good = sign(&claims, algorithm, &key);
        assert_eq!(knock(&vm, &format!("/ws?token={good}"), &[]).await.status, 101, "{algorithm:?}");
        let by_other = sign(&claims, algorithm, &read(&other));
        assert_refused(&vm, &by_other, "token_signature", "signature").await;
        // The classic confusion: the public key, which all know, as the secret.
        for known in [public.as_bytes(), public.trim().as_bytes()] {
            let forged = sign(&claims, Algorithm::HS256, &EncodingKey::from_secret(known));
            assert_refused(&vm, &forged, "token_algorithm", "algorithm").await;
        }
        if let Some(sibling) = sibling {
            let forged = sign(&claims, sibling, &key);
            assert_refused(&vm, &forged, "token_algorithm", "algorithm").await;
        }
    }
}

#[tokio::test]
async fn a_key_that_would_take_no_token_does_not_start() {
    let weak = weak_rsa();
    let (private, _) = ed25519();
    let (_, other_curve) = ec(&ECDSA_P384_SHA384_FIXED_SIGNING);
    for (what, key) in [("RSA of 1024 bits", weak), ("private", private), ("P-384", other_curve)] {
        let vars = [("AUTH_PUBLIC_KEY", &*key), ("HOST", "127.0.0.1"), ("PORT", "0")];
        let output = within("end of the process", command(&vars).output()).await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{what}: {said}");
        assert!(said.contains("AUTH_PUBLIC_KEY: expected") && said.lines().count() == 1, "{what}: {said}");
    }
}

/// The public half of an RSA key that is too small, which no library makes any more: SEQUENCE of
/// modulus and exponent, of which only the size is looked at.
fn weak_rsa() -> String {
    let modulus = [&[0x02, 0x81, 0x81, 0x00][..], &[0xc5; 128]].concat();
    let key = [&[0x30, 0x81, 0x89][..], &modulus, &[0x02, 0x03, 0x01, 0x00, 0x01]].concat();
    pem("RSA PUBLIC KEY", &key)
}

#[tokio::test]
async fn a_browser_brings_its_token_as_a_subprotocol() {
    let vm = Vm::alone(&[("AUTH_SECRET", SECRET), ("RUST_LOG", "trace")]).await;
    let good = token(&claims(json!({})));
    let offers = |offer: &str| [("sec-websocket-protocol", offer.to_owned())];
    for (offer, status, answered) in [
        (format!("alien-alert, {good}"), 101, "alien-alert"),
        (format!("{good},alien-alert"), 101, "alien-alert"),
        ("alien-alert".into(), 401, ""),
        (format!("alien-alert, {}", token(&claims(json!({"exp": at(-10)})))), 401, ""),
        // Without ours there would be nothing to answer but the token.
        (good.clone(), 401, ""),
    ] {
        let [(name, offer)] = offers(&offer);
        let answer = knock(&vm, "/ws", &[(name, &offer)]).await;
        assert_eq!(answer.status, status, "{offer}");
        assert_eq!(answer.header("sec-websocket-protocol"), answered, "{offer}");
    }
    for part in good.split('.') {
        assert_silent(&vm, part);
    }
    // A client that holds the server to its answer.
    let mut request = format!("ws://127.0.0.1:{}/ws", vm.port).into_client_request().unwrap();
    let offer = format!("alien-alert, {good}").parse().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", offer);
    let stream = TcpStream::connect(("127.0.0.1", vm.port)).await.unwrap();
    within("answer to a handshake", client_async(request, stream)).await.unwrap();

    // Where no token is asked for, the same page works.
    let open = Vm::alone(&[]).await;
    let answer = knock(&open, "/ws", &[("sec-websocket-protocol", &*format!("alien-alert, {good}"))]).await;
    assert_eq!((answer.status, answer.header("sec-websocket-protocol")), (101, "alien-alert"));
}

#[tokio::test]
async fn another_site_s_script_is_refused_whatever_its_token() {
    let vm = Vm::alone(&[("AUTH_SECRET", SECRET)]).await;
    let path = format!("/ws?token={}", token(&claims(json!({}))));
    let answer = knock(&vm, &path, &[("origin", "https://foe.example")]).await;
    assert_eq!(answer.status, 403);
    let own = format!("http://127.0.0.1:{}", vm.port);
    assert_eq!(knock(&vm, &path, &[("origin", &own)]).await.status, 101);
    let metrics = get(vm.port, "/metrics").await;
    assert!(metrics.text().contains(r#"upgrades_rejected_total{reason="origin"} 1"#), "{}", metrics.text());
}

#[tokio::test]
async fn a_socket_ends_when_its_token_does() {
    let vm = Vm::alone(&[("AUTH_SECRET", SECRET)]).await;
    let mut lasting = Client::connect(vm.port, &format!("/ws?token={}", token(&claims(json!({}))))).await;
    let expires = at(1);
    let path = format!("/ws?token={}", token(&claims(json!({"exp": expires}))));
    let brief = Client::connect(vm.port, &path).await;
    assert_eq!(brief.closed().await, Some((1008, "token expired".into())));
    let late = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64() - expires as f64;
    // Not before, and with two seconds for clocks.
    assert!((1.9..10.0).contains(&late), "{late} s after exp");
    lasting.alert(json!({})).await;
    let metrics = get(vm.port, "/metrics").await;
    assert!(metrics.text().contains(r#"sockets_closed_total{reason="expired"} 1"#), "{}", metrics.text());
}

#[tokio::test]
async fn a_socket_that_does_not_read_ends_with_its_token_too() {
    let vars = [("AUTH_SECRET", SECRET), ("OUTBOX_BYTES", "268435456"), ("MESSAGE_RATE", "100000")];
    let vm = Vm::alone(&vars).await;
    let mut sender = Client::connect(vm.port, &format!("/ws?token={}", token(&claims(json!({}))))).await;
    let path = format!("/ws?token={}", token(&claims(json!({"exp": at(1)}))));
    let mut stuck = Raw::open(vm.port, &path).await.unwrap();
    // More than the kernel's buffers take.
    let data = "x".repeat(15 << 10);
    let ended = r#"sockets_closed_total{reason="expired"} 1"#;
    let begun = Instant::now();
    while !get(vm.port, "/metrics").await.text().contains(ended) {
        for _ in 0..20 {
            sender.send(json!({"type": "broadcast", "data": data})).await;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "never ended");
    }
    assert_eq!(stuck.closed().await, Some(1008), "told when it reads at last");
}

#[tokio::test]
async fn a_token_names_its_user_and_their_channels() {
    let vm = Vm::alone(&[("AUTH_SECRET", SECRET), ("API_KEY", "0123456789abcdef")]).await;
    let ann = token(&claims(json!({"channels": ["room", "environment:*"]})));
    let bob = token(&claims(json!({"sub": "bob", "channels": ["*", "user:ann"]})));
    let mut ann = Client::connect(vm.port, &format!("/ws?token={ann}")).await;
    let mut bob = Client::connect(vm.port, &format!("/ws?token={bob}")).await;
    assert_eq!(ann.connected["channels"], json!(["user:ann"]));
    let path = format!("/connections/{}", ann.id());
    let key = [("authorization", "Bearer 0123456789abcdef")];
    let told = get_with(vm.port, &path, &key).await.json();
    assert_eq!((&told["user"], &told["channels"]), (&json!("ann"), &json!(["user:ann"])));
    for (channel, may) in [("room", true), ("environment:42", true), ("rooms", false), ("user:bob", false)] {
        ann.send(json!({"type": "subscribe", "channel": channel, "id": channel})).await;
        let answers = ann.settle().await;
        let refused = answers.iter().find(|answer| answer["type"] == "error");
        assert_eq!(refused.is_none(), may, "{channel}: {answers:?}");
        if let Some(error) = refused {
            assert_eq!((&error["code"], &error["id"]), (&json!("forbidden"), &json!(channel)));
        }
    }
    for channel in ["rooms", "user:ann"] {
        bob.send(json!({"type": "subscribe", "channel": channel})).await;
    }
    let answers = bob.settle().await;
    let forbidden: Vec<_> = answers.iter().filter(|answer| answer["code"] == "forbidden").collect();
    assert_eq!(forbidden.len(), 1, "{answers:?}");
    assert!(forbidden[0]["message"].as_str().unwrap().contains("user:ann"), "{answers:?}");
}

#[tokio::test]
async fn a_user_is_reached_by_the_name_that_the_token_has() {
    let emulator = Emulator::start().await;
    let vars = [("AUTH_SECRET", SECRET), ("API_KEY", "0123456789abcdef")];
    let vms = Vm::fleet(&emulator, &["ams", "sin", "lax"], &vars).await;
    let key = [("authorization", "Bearer 0123456789abcdef")];
    let asyncapi = get(vms[0].port, "/asyncapi.json").await.json();
    let documented = &asyncapi["components"]["schemas"]["Channel"];
    let documented = jsonschema::validator_for(documented).unwrap();
    for (number, sub) in
        ["auth0|5f7c", "ann@example.org", "cn=ann,dc=a", r#"a%/?#"\b"#, "us-east-1:7"].into_iter().enumerate()
    {
        let channel = format!("user:{sub}");
        assert!(documented.is_valid(&json!(channel)));
        let token = token(&claims(json!({"sub": sub})));
        let mut client = Client::connect(vms[number % 3].port, &format!("/ws?token={token}")).await;
        assert_eq!(client.connected["channels"], json!([channel]));
        // As a frame it can be named too; as a URL's part it is encoded.
        client.send(json!({"type": "subscribe", "channel": channel, "id": "again"})).await;
        let path = percent_encoding::utf8_percent_encode(&channel, percent_encoding::NON_ALPHANUMERIC);
        let event = r#"{"type":"done","data":7}"#;
        let vm = &vms[(number + 1) % 3];
        let answer = request(vm.port, "POST", &format!("/channels/{path}"), &key, event).await.unwrap();
        assert_eq!(answer.status, 202, "{}", answer.text());
        let done = client.expect("done").await;
        assert_eq!((&done["channel"], &done["id"]), (&json!(channel), &answer.json()["id"]));
    }
}

/// A socket of a client at another address of this machine.
async fn open_from(source: &str, port: u16) -> Result<WebSocketStream<TcpStream>, Error> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(source.parse().unwrap(), 0))?;
    let stream = socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    Ok(client_async(format!("ws://127.0.0.1:{port}/ws"), stream).await?.0)
}

/// The 99th percentile of the time from a press of the button to its sight.
async fn alerts_p99(client: &mut Client) -> Duration {
    const PRESSES: usize = 250;
    // As fast as the limit allows.
    let mut presses = tokio::time::interval(Duration::from_millis(20));
    let mut times = Vec::new();
    for _ in 0..PRESSES {
        presses.tick().await;
        let id = uuid::Uuid::new_v4().to_string();
        let begun = Instant::now();
        client.send(json!({"type": "alert", "id": id})).await;
        while client.expect("alert").await["id"] != id.as_str() {}
        times.push(begun.elapsed());
    }
    times.sort();
    times[PRESSES * 99 / 100]
}

/// What a flood has met with.
#[derive(Default)]
struct Met {
    refused: AtomicU32,
    cut: AtomicU32,
}

/// Opens sockets as fast as it can, and speaks on none.
async fn flood_of_upgrades(source: &str, port: u16, met: &Met) {
    loop {
        if let Err(Error::Http(answer)) = open_from(source, port).await {
            assert_eq!(answer.status(), 429);
            met.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Sends as fast as it can on one socket after the other.
async fn flood_of_messages(source: &str, port: u16, met: &Met) {
    let alert = Message::text(json!({"type": "alert", "data": {"note": "flood"}}).to_string());
    loop {
        let Ok(socket) = open_from(source, port).await else { continue };
        let (mut sender, mut receiver) = socket.split();
        let sending = async { while sender.send(alert.clone()).await.is_ok() {} };
        let cut_off = async {
            loop {
                match receiver.next().await {
                    Some(Ok(Message::Close(Some(close)))) => return u16::from(close.code) == 1008,
                    Some(Ok(_)) => {}
                    _ => return false,
                }
            }
        };
        tokio::select! {
            () = sending => {}
            cut = cut_off => {
                met.cut.fetch_add(cut.into(), Ordering::Relaxed);
            }
        }
    }
}

#[tokio::test]
async fn a_flood_from_one_address_does_not_slow_another() {
    let vm = Vm::alone(&[]).await;
    let mut client = vm.connect().await;
    let quiet = alerts_p99(&mut client).await;

    let met = Arc::new(Met::default());
    let stop = CancellationToken::new();
    // On a thread of its own: the flood is not to slow the client by the runtime that they share.
    let flooding = std::thread::spawn({
        let (met, stop, port) = (Arc::clone(&met), stop.clone(), vm.port);
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let upgrades = || flood_of_upgrades("127.0.0.2", port, &met);
            let messages = || flood_of_messages("127.0.0.2", port, &met);
            runtime.block_on(async {
                tokio::select! {
                    () = async { tokio::join!(upgrades(), messages(), upgrades(), messages()); } => {}
                    () = stop.cancelled() => {}
                }
            });
        }
    });
    let loud = alerts_p99(&mut client).await;
    stop.cancel();
    tokio::task::spawn_blocking(move || flooding.join().unwrap()).await.unwrap();
    let (refused, cut) = (met.refused.load(Ordering::Relaxed), met.cut.load(Ordering::Relaxed));
    println!(
        "p99 of a client's alert: {quiet:?} alone, {loud:?} beside a flood from another address \
         ({refused} upgrades refused, {cut} sockets cut off)"
    );
    assert!(refused > 0 && cut > 0, "no flood");
    assert!(loud < Duration::from_millis(250), "{loud:?}");
}
