//! Who gets in: tokens of every kind, good and bad, and what their bearers may then do, on one VM and on
//! a fleet.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::ECDSA_P384_SHA384_FIXED_SIGNING;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::support::client::{Client, Raw};
use crate::support::emulator::Emulator;
use crate::support::http::{API_KEY, ask, get, knock, request};
use crate::support::token::{Keys, SECRET, at, claims, pem, sign, token};
use crate::support::vm::{Vm, command};
use crate::support::within;

/// What a server that asks for an audience and an issuer finds good, but for what `change` says.
fn full_claims(change: Value) -> Value {
    let mut all = json!({"aud": "aliens", "iss": "https://id.example"});
    all.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    claims(all)
}

const FULL: [(&str, &str); 3] =
    [("AUTH_SECRET", SECRET), ("AUTH_AUDIENCE", "aliens"), ("AUTH_ISSUER", "https://id.example")];

/// Tokens that such a server refuses: the reason it counts, and a part of what it says.
fn bad_tokens() -> Vec<(String, &'static str, &'static str)> {
    let good = full_claims;
    let accepted = token(&good(json!({})));
    let none = [&json!({"alg": "none", "typ": "JWT"}), &good(json!({}))];
    let none = none.map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    let other_key = EncodingKey::from_secret(b"another secret of the tests, of more than 32 bytes");
    let same_key = EncodingKey::from_secret(SECRET.as_bytes());
    let mut forged: Vec<_> = accepted.split('.').map(str::to_owned).collect();
    forged[1] = URL_SAFE_NO_PAD.encode(good(json!({"sub": "bob"})).to_string());
    vec![
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
    ]
}

/// Expects a refusal that says `why`, and neither says nor logs anything of the token.
async fn assert_refused(vm: &Vm, token: &str, reason: &str, why: &str) {
    let answer = knock(vm, &format!("/ws?token={token}"), &[]).await;
    assert_eq!(answer.status, 401, "{why}: {}", answer.text());
    assert_eq!(answer.header("www-authenticate"), "Bearer");
    let body = answer.json();
    assert_eq!(body["error"]["code"], "forbidden", "{body}");
    assert!(body["error"]["message"].as_str().unwrap().contains(why), "{why:?} in {body}");
    let counter = format!("alien_alert_upgrades_rejected_total{{reason=\"{reason}\"}}");
    assert!(vm.figure(&counter).await > 0, "{reason}");
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
    // All that any part of it has to say.
    let vm = Vm::alone(&[&FULL[..], &[("RUST_LOG", "trace")]].concat()).await;
    let accepted = token(&full_claims(json!({"nbf": at(-5), "aud": ["men", "aliens"]})));
    assert_eq!(knock(&vm, &format!("/ws?token={accepted}"), &[]).await.status, 101);
    // Clocks differ a little.
    let barely = token(&full_claims(json!({"nbf": at(1)})));
    assert_eq!(knock(&vm, &format!("/ws?token={barely}"), &[]).await.status, 101);
    for (token, reason, why) in bad_tokens() {
        assert_refused(&vm, &token, reason, why).await;
    }
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

const ALGORITHMS: [Algorithm; 3] = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];

/// Knows its own key's tokens, and none by another key or algorithm.
async fn assert_takes_only(vm: &Vm, keys: &Keys) {
    let (claims, algorithm) = (claims(json!({})), keys.algorithm);
    let path = format!("/ws?token={}", keys.token(&claims));
    assert_eq!(knock(vm, &path, &[]).await.status, 101, "{algorithm:?}");
    let by_other = Keys::new(algorithm).token(&claims);
    assert_refused(vm, &by_other, "token_signature", "signature").await;
    // The classic confusion: the public key, which all know, as the secret.
    for known in [keys.public.as_bytes(), keys.public.trim().as_bytes()] {
        let forged = sign(&claims, Algorithm::HS256, &EncodingKey::from_secret(known));
        assert_refused(vm, &forged, "token_algorithm", "algorithm").await;
    }
    if algorithm == Algorithm::RS256 {
        let forged = keys.token_by(Algorithm::PS256, &claims);
        assert_refused(vm, &forged, "token_algorithm", "algorithm").await;
    }
}

#[tokio::test]
async fn a_public_key_takes_tokens_of_its_own_algorithm_and_no_other() {
    for algorithm in ALGORITHMS {
        let keys = Keys::new(algorithm);
        // As a place would have it that keeps variables on one line.
        let on_one_line = keys.public.replace('\n', "\\n");
        let value = if algorithm == Algorithm::ES256 { &on_one_line } else { &keys.public };
        let vm = Vm::alone(&[("AUTH_PUBLIC_KEY", value), ("RUST_LOG", "trace")]).await;
        assert_takes_only(&vm, &keys).await;
    }
}

#[tokio::test]
async fn a_key_that_would_take_no_token_does_not_start() {
    let weak = weak_rsa();
    let private = Keys::new(Algorithm::EdDSA).private;
    let other_curve = Keys::ec(&ECDSA_P384_SHA384_FIXED_SIGNING).public;
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
    let vm = Vm::alone(&[("AUTH_SECRET", SECRET), ("API_KEY", API_KEY)]).await;
    let ann = token(&claims(json!({"channels": ["room", "environment:*"]})));
    let bob = token(&claims(json!({"sub": "bob", "channels": ["*", "user:ann"]})));
    let mut ann = Client::connect(vm.port, &format!("/ws?token={ann}")).await;
    let mut bob = Client::connect(vm.port, &format!("/ws?token={bob}")).await;
    assert_eq!(ann.connected["channels"], json!(["user:ann"]));
    let path = format!("/connections/{}", ann.id());
    let told = ask(vm.port, "GET", &path, &[], "").await.json();
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
    let vars = [("AUTH_SECRET", SECRET), ("API_KEY", API_KEY)];
    let vms = Vm::fleet(&emulator, &["ams", "sin", "lax"], &vars).await;
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
        let answer = ask(vm.port, "POST", &format!("/channels/{path}"), &[], event).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
        let done = client.expect("done").await;
        assert_eq!((&done["channel"], &done["id"]), (&json!(channel), &answer.json()["id"]));
    }
}

/// The next `count` of an app's own events: their ids, in order of their names.
async fn heard(client: &mut Client, count: usize) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    while ids.len() < count {
        let event = client.next().await;
        assert_eq!(event["type"], "told", "{event}");
        ids.insert(event["id"].as_str().unwrap().to_owned());
    }
    ids
}

#[tokio::test]
async fn a_fleet_lets_in_by_one_secret_and_tells_each_user_their_own() {
    const KEYS: [&str; 2] = ["the-key-until-now", "the-key-from-now-on"];
    let emulator = Emulator::start().await;
    let api_key = KEYS.join(",");
    let vars = [&FULL[..], &[("API_KEY", &*api_key)]].concat();
    let vms = Vm::fleet(&emulator, &["ams", "sin", "syd"], &vars).await;
    let path = |change: Value| format!("/ws?channels=room,secret&token={}", token(&full_claims(change)));
    let ann = path(json!({"channels": ["room", "environment:*"]}));
    let bob = path(json!({"sub": "bob", "channels": ["*", "user:ann"]}));
    let (mut anns, mut bobs) = (Vec::new(), Vec::new());
    for vm in &vms {
        for (token, reason, why) in bad_tokens() {
            assert_refused(vm, &token, reason, why).await;
        }
        let mut client = Client::connect(vm.port, &ann).await;
        assert_eq!(client.connected["channels"], json!(["user:ann", "room"]));
        assert_eq!(client.expect("error").await["code"], "forbidden", "what is not in the claims");
        anns.push(client);
        let mut client = Client::connect(vm.port, &bob).await;
        for message in [
            json!({"type": "subscribe", "channel": "user:ann"}),
            json!({"type": "broadcast", "channel": "user:ann", "data": "as if from ann's backend"}),
        ] {
            client.send(message).await;
            assert_eq!(client.expect("error").await["code"], "forbidden");
        }
        bobs.push(client);
    }

    // Through each VM by each of the backend's keys, and by no other.
    let mut told = BTreeSet::new();
    for (number, vm) in vms.iter().enumerate() {
        for (channel, key, status) in [
            ("user:ann", KEYS[0], 202),
            ("user:ann", KEYS[1], 202),
            ("user:bob", KEYS[number % 2], 202),
            ("secret", KEYS[0], 202),
            ("room", KEYS[1], 202),
            ("user:ann", "the-key-of-last-year", 401),
        ] {
            let id = format!("{channel} of {key} through {number}");
            let headers = [("authorization", &*format!("Bearer {key}")), ("idempotency-key", &id)];
            let path = format!("/channels/{channel}");
            let answer = request(vm.port, "POST", &path, &headers, r#"{"type":"told"}"#).await.unwrap();
            assert_eq!(answer.status, status, "{id}");
            if status == 202 {
                told.insert((channel, id));
            }
        }
    }
    let of = |channels: &[&str]| -> BTreeSet<_> {
        told.iter().filter(|(channel, _)| channels.contains(channel)).map(|(_, id)| id.clone()).collect()
    };
    for (clients, channels) in
        [(&mut anns, &["user:ann", "room"][..]), (&mut bobs, &["user:bob", "room", "secret"])]
    {
        let expected = of(channels);
        for client in clients {
            assert_eq!(heard(client, expected.len()).await, expected);
        }
    }

    // Who was away finds it, wherever they come.
    for vm in &vms {
        let mut late = Client::connect(vm.port, &ann).await;
        let refresh = late.expect("refresh-store").await;
        let ids = refresh["events"].as_array().unwrap().iter().map(|event| event["id"].as_str().unwrap());
        let ids: BTreeSet<_> = ids.map(str::to_owned).collect();
        assert_eq!((&refresh["channel"], ids), (&json!("user:ann"), of(&["user:ann"])));
    }

    // What ends one visitor's time ends no other's, and what comes last is the first they hear now.
    let brief = path(json!({"exp": at(1)}));
    let mut ending = Vec::new();
    for vm in &vms {
        ending.push(Client::connect(vm.port, &brief).await);
    }
    for client in ending {
        assert_eq!(client.closed().await, Some((1008, "token expired".into())));
    }
    let last = anns[0].alert(json!({})).await;
    for client in anns[1..].iter_mut().chain(&mut bobs) {
        assert_eq!(client.next().await["id"], last.as_str());
    }
}

#[tokio::test]
async fn a_fleet_lets_in_by_one_public_key_of_any_kind() {
    let emulator = Emulator::start().await;
    for algorithm in ALGORITHMS {
        let (keys, topic) = (Keys::new(algorithm), format!("{algorithm:?}"));
        let regions = ["a", "b", "c"].map(|letter| format!("{topic}-{letter}"));
        let vars = [("TOPIC", &*topic), ("AUTH_PUBLIC_KEY", &keys.public)];
        let vms = Vm::fleet(&emulator, &regions.each_ref().map(String::as_str), &vars).await;
        let path = format!("/ws?token={}", keys.token(&claims(json!({}))));
        let mut clients = Vec::new();
        for vm in &vms {
            assert_takes_only(vm, &keys).await;
            clients.push(Client::connect(vm.port, &path).await);
        }
        let id = clients[0].alert(json!({})).await;
        for client in &mut clients[1..] {
            assert_eq!(client.expect("alert").await["id"], id.as_str());
        }
    }
}
