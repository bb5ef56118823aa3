//! Without a key: the program asks Fly's socket who its Machine is, and exchanges that at Google. Real
//! sockets, real TLS; Google's addresses are the program's own, led here by `HTTPS_PROXY`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::AUTHORIZATION;
use serde_json::json;
use tokio::net::UnixListener;

use crate::doctor::{Seen, examine};
use crate::support::google::{Asked, FlyApi, Google, granted};
use crate::support::until;
use crate::support::vm::Vm;

const PROVIDER: &str =
    "//iam.googleapis.com/projects/123/locations/global/workloadIdentityPools/fly-machines/providers/fly";
const ACCOUNT: &str = "alien-alert@my-project.iam.gserviceaccount.com";

/// What a Machine says of itself: three parts of base64url.
const MACHINE: &str = "eyJh.eyJzdWIi.c2ln";

/// Google's services as far as they are reached: tokens are granted, and there is no topic.
fn google(host: &str, path: &str, body: &str) -> (StatusCode, String) {
    match (host, path) {
        ("sts.googleapis.com", "/v1/token") if body.contains(MACHINE) => granted("of-the-machine"),
        ("iamcredentials.googleapis.com", path)
            if path.ends_with(&format!("{ACCOUNT}:generateAccessToken")) =>
        {
            let token = json!({"accessToken": "of-the-account", "expireTime": "2099-01-01T00:00:00Z"});
            (StatusCode::OK, token.to_string())
        }
        ("pubsub.googleapis.com", _) => {
            let error = json!({"code": 404, "status": "NOT_FOUND", "message": "Resource not found."});
            (StatusCode::NOT_FOUND, json!({ "error": error }).to_string())
        }
        _ => (StatusCode::BAD_REQUEST, json!({"error": "invalid_request"}).to_string()),
    }
}

fn says_who_it_is(_: &str) -> (StatusCode, String) {
    (StatusCode::OK, format!("{MACHINE}\n"))
}

/// What leads a program to both, as this account or as none.
fn vars<'a>(
    proxy: &'a str,
    google: &'a Google,
    socket: &'a str,
    account: Option<&'a str>,
) -> Vec<(&'a str, &'a str)> {
    let mut vars = vec![
        ("HTTPS_PROXY", proxy),
        ("SSL_CERT_FILE", &*google.certificate.file),
        ("GOOGLE_WORKLOAD_IDENTITY_PROVIDER", PROVIDER),
        ("FLY_API_SOCKET", socket),
    ];
    vars.push(
        account.map_or(("GOOGLE_CLOUD_PROJECT", "my-project"), |account| ("GOOGLE_SERVICE_ACCOUNT", account)),
    );
    vars
}

async fn examined(google: &Google, socket: &str, account: Option<&str>) -> Seen {
    examine(&vars(&google.proxy(), google, socket, account), &[]).await
}

/// Those asked of one host.
fn of(asked: Vec<Asked>, host: &str) -> Vec<Asked> {
    asked.into_iter().filter(|asked| asked.what.starts_with(host)).collect()
}

fn bearer(asked: &Asked) -> &str {
    asked.headers[AUTHORIZATION].to_str().unwrap()
}

#[tokio::test]
async fn fly_s_word_is_exchanged_for_the_account_s_token() {
    let (fly, google) = (FlyApi::start(says_who_it_is).await, Google::start(google).await);
    let seen = examined(&google, &fly.socket, Some(ACCOUNT)).await;
    seen.assert("configuration", "ok", &["project my-project"]);
    seen.assert("credentials", "ok", &["this Fly Machine", ACCOUNT]);
    seen.assert("service", "ok", &["https://pubsub.googleapis.com"]);
    // Google's answer, so the call was made.
    seen.assert("topic", "failed", &["Resource not found"]);

    let asked = fly.asked();
    assert_eq!(asked[0].body, json!({ "aud": PROVIDER }).to_string(), "the token is for this provider alone");
    let exchanged = of(google.asked(), "sts.googleapis.com");
    assert!(
        exchanged[0].body.contains("auth%2Fiam&") || exchanged[0].body.ends_with("auth%2Fiam"),
        "{exchanged:?}"
    );
    assert_eq!(bearer(&of(google.asked(), "iamcredentials.googleapis.com")[0]), "Bearer of-the-machine");
    let calls = of(google.asked(), "pubsub.googleapis.com/v1/projects/my-project/topics/");
    assert_eq!(bearer(&calls[0]), "Bearer of-the-account");
    // What is secret is nowhere told.
    for secret in [MACHINE, "of-the-machine", "of-the-account"] {
        assert!(!seen.report.to_string().contains(secret));
    }
}

#[tokio::test]
async fn without_an_account_the_machine_acts_as_itself() {
    let (fly, google) = (FlyApi::start(says_who_it_is).await, Google::start(google).await);
    let seen = examined(&google, &fly.socket, None).await;
    seen.assert("credentials", "ok", &["this Fly Machine"]);
    let exchanged = of(google.asked(), "sts.googleapis.com");
    assert!(exchanged[0].body.contains("cloud-platform"), "{exchanged:?}");
    let calls = of(google.asked(), "pubsub.googleapis.com/v1/");
    assert_eq!(bearer(&calls[0]), "Bearer of-the-machine");
}

#[tokio::test]
async fn what_is_wrong_at_fly_s_socket_is_told() {
    let google = Google::start(google).await;
    let nowhere = format!("/tmp/no-such-{}", uuid::Uuid::new_v4());
    let seen = examined(&google, &nowhere, Some(ACCOUNT)).await;
    assert_eq!(seen.code, Some(2));
    seen.assert("credentials", "failed", &["FLY_API_SOCKET", &nowhere, "Machine on Fly"]);
    seen.assert("topic", "skipped", &["credentials"]);

    for (status, said, told) in [
        (StatusCode::FORBIDDEN, "not this machine".to_owned(), "403 Forbidden: not this machine"),
        (StatusCode::OK, "<html>".into(), "no token"),
        (StatusCode::OK, "a".repeat(1 << 20), "can't be read"),
    ] {
        let fly = FlyApi::start(move |_| (status, said.clone())).await;
        let seen = examined(&google, &fly.socket, Some(ACCOUNT)).await;
        seen.assert("credentials", "failed", &["FLY_API_SOCKET", told]);
    }

    // One that takes the connection and never answers.
    let socket = std::env::temp_dir().join(format!("fly-{}", uuid::Uuid::new_v4().simple()));
    let _silent = UnixListener::bind(&socket).unwrap();
    let begun = std::time::Instant::now();
    let seen = examined(&google, socket.to_str().unwrap(), Some(ACCOUNT)).await;
    seen.assert("credentials", "failed", &["FLY_API_SOCKET", "no answer in 3 s"]);
    assert!(begun.elapsed() < Duration::from_secs(15));
    std::fs::remove_file(&socket).unwrap();
    assert!(of(google.asked(), "sts.googleapis.com").is_empty());
}

#[tokio::test]
async fn who_is_refused_at_google_is_told_and_a_vm_is_let_in_when_that_is_over() {
    let refusing = Arc::new(AtomicBool::new(true));
    let is_refusing = Arc::clone(&refusing);
    let fly = FlyApi::start(says_who_it_is).await;
    let google = Google::start(move |host, path, body| {
        // As long as a right is not known everywhere.
        if host == "sts.googleapis.com" && is_refusing.load(Ordering::Relaxed) {
            let refused =
                json!({"error": "unauthorized_client", "error_description": "not by the condition"});
            return (StatusCode::BAD_REQUEST, refused.to_string());
        }
        google(host, path, body)
    })
    .await;
    let seen = examined(&google, &fly.socket, Some(ACCOUNT)).await;
    seen.assert("credentials", "failed", &["not by the condition"]);

    let proxy = google.proxy();
    let vm = Vm::spawn("keyless", &vars(&proxy, &google, &fly.socket, Some(ACCOUNT))).await;
    let outage = vm.logged("no way through the topic").await;
    assert!(outage["reason"].as_str().unwrap().contains("not by the condition"), "{outage}");
    refusing.store(false, Ordering::Relaxed);
    until("a call with a token", async || {
        let calls = of(google.asked(), "pubsub.googleapis.com/v1/");
        calls.iter().any(|call| bearer(call) == "Bearer of-the-account").then_some(())
    })
    .await;
}
