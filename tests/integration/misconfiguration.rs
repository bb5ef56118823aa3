//! A start that can't succeed: one clear line, a code of its own, no backtrace.

use crate::support::vm::command;
use crate::support::within;

/// Runs the program; its exit code and what it said.
async fn run(vars: &[(&str, &str)], arguments: &[&str]) -> (Option<i32>, String) {
    let output = command(vars).args(arguments).stdout(std::process::Stdio::piped()).output();
    let output = within("end of the process", output).await.unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap(),
    )
}

async fn assert_refused(vars: &[(&str, &str)], code: i32, says: &[&str]) {
    let mut all = vec![("RUST_BACKTRACE", "1"), ("HOST", "127.0.0.1"), ("PORT", "0")];
    all.retain(|(name, _)| vars.iter().all(|(other, _)| name != other));
    all.extend(vars);
    let (exit, said) = run(&all, &[]).await;
    assert_eq!(exit, Some(code), "{vars:?}: {said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{vars:?}: {said}");
    assert!(said.starts_with("alien-alert: "), "{said}");
    for part in says {
        assert!(said.contains(part), "{part:?} in {said}");
    }
}

#[tokio::test]
async fn each_bad_variable_is_named_with_what_is_accepted() {
    for (name, value, accepted) in [
        ("PORT", "eighty", "0 to 65535"),
        ("HOST", "localhost", "IP address"),
        ("RUN_AS", "root", "65532"),
        ("RUN_AS", "0", "not root's"),
        ("FLY_ALLOC_ID", "no/slash", "letters"),
        ("FLY_MACHINE_ID", "no space", "letters"),
        ("GAE_INSTANCE", "no/slash", "letters"),
        ("FLY_REGION", "ams;", "ams"),
        ("BUS", "kafka", "pubsub or memory"),
        ("TOPIC", "1st", "letter first"),
        ("HISTORY_SECONDS", "1h", "82800"),
        ("HISTORY_EVENTS", "0", "1 to"),
        ("HISTORY_BYTES", "1", "65536"),
        ("PING_INTERVAL", "0", "1 to 3600"),
        ("BEACON_INTERVAL", "-1", "1 to 300"),
        ("MAX_MESSAGE_BYTES", "huge", "1024"),
        ("OUTBOX_BYTES", "0", "65536"),
        ("MAX_CONNECTIONS", "many", "1 to"),
        ("MAX_CONNECTIONS_PER_ADDRESS", "0", "1 to"),
        ("UPGRADE_RATE", "0", "1 to"),
        ("UPGRADE_BURST", "0", "1 to"),
        ("MESSAGE_RATE", "0", "1 to"),
        ("MESSAGE_BURST", "0", "1 to"),
        ("API_RATE", "0", "1 to"),
        ("API_BURST", "0", "1 to"),
        ("ALLOWED_ORIGINS", "example.com", "https://"),
        ("TRUSTED_PROXY", "0.0.0.0/0", "10.0.0.0/8"),
        ("LIFECYCLE_TOPIC", "1st", "letter first"),
        ("LIFECYCLE_TOPIC", "life", "Pub/Sub"),
        ("GOOGLE_CLOUD_PROJECT", "My Project", "project id"),
        ("PUBSUB_EMULATOR_HOST", "localhost", "host:port"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/key.json", "readable file"),
        ("GOOGLE_WORKLOAD_IDENTITY_PROVIDER", "fly", "//iam.googleapis.com/projects/"),
        ("GOOGLE_SERVICE_ACCOUNT", "vm@p.iam", "GOOGLE_WORKLOAD_IDENTITY_PROVIDER"),
        ("RUST_LOG", "alien=loud", "level"),
        ("LOG_FORMAT", "xml", "text or json"),
        ("LOG_ADDRESSES", "none", "short or full"),
    ] {
        assert_refused(&[(name, value)], 78, &[name, value, accepted]).await;
    }
}

#[tokio::test]
async fn a_key_that_is_none_is_told_without_its_contents() {
    assert_refused(
        &[("GOOGLE_SERVICE_ACCOUNT_JSON", "secret{")],
        78,
        &["GOOGLE_SERVICE_ACCOUNT_JSON", "JSON"],
    )
    .await;
    let (_, said) = run(&[("GOOGLE_SERVICE_ACCOUNT_JSON", "secret{")], &[]).await;
    assert!(!said.contains("secret"), "{said}");

    let directory = std::env::temp_dir().join(format!("alien-alert-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&directory).unwrap();
    let file = directory.join("key.json");
    std::fs::write(&file, "not JSON").unwrap();
    let path = file.to_str().unwrap();
    assert_refused(
        &[("GOOGLE_APPLICATION_CREDENTIALS", path)],
        78,
        &["GOOGLE_APPLICATION_CREDENTIALS", "JSON"],
    )
    .await;
    std::fs::write(&file, r#"{"type":"service_account","project_id":"my-project","private_key":"none"}"#)
        .unwrap();
    assert_refused(&[("GOOGLE_APPLICATION_CREDENTIALS", path)], 78, &[path, "client_email"]).await;
    let bad_project = r#"{"type":"service_account","project_id":"Bad Project","private_key":"none"}"#;
    assert_refused(&[("GOOGLE_SERVICE_ACCOUNT_JSON", bad_project)], 78, &["project_id", "Bad Project"]).await;
    for (name, contents) in [("empty", "{}"), ("user", r#"{"type":"authorized_user"}"#)] {
        std::fs::write(&file, contents).unwrap();
        let vars = [("GOOGLE_APPLICATION_CREDENTIALS", path), ("GOOGLE_CLOUD_PROJECT", "my-project")];
        assert_refused(&vars, 78, &[path]).await;
        println!("{name} is refused");
    }
    let unreadable = directory.to_str().unwrap();
    let vars = [("GOOGLE_APPLICATION_CREDENTIALS", unreadable)];
    assert_refused(&vars, 78, &["GOOGLE_APPLICATION_CREDENTIALS", unreadable, "readable file"]).await;

    // The same in the working directory, under the article's name.
    let in_directory = directory.join("google-service-account.json");
    std::fs::write(&in_directory, "[]").unwrap();
    let mut command = command(&[]);
    command.current_dir(&directory);
    let output = within("end of the process", command.output()).await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("google-service-account.json"), "{said}");
    std::fs::remove_dir_all(&directory).unwrap();
}

#[tokio::test]
async fn a_secret_that_is_none_is_told_without_it() {
    for (name, value, accepted) in [
        ("AUTH_SECRET", "too short for it", "32 bytes"),
        ("AUTH_PUBLIC_KEY", "-----BEGIN PRIVATE KEY-----", "public key in PEM"),
        ("API_KEY", "easily guessed", "16 characters"),
        ("CONNECT_URL", "wss://vm:password@example.com", "http or https"),
    ] {
        assert_refused(&[(name, value)], 78, &[name, accepted]).await;
        let (_, said) = run(&[(name, value)], &[]).await;
        assert!(!said.contains(value), "{said}");
    }
    let secret = "of more than thirty-two characters";
    let both = [("AUTH_SECRET", secret), ("AUTH_PUBLIC_KEY", "any")];
    assert_refused(&both, 78, &["AUTH_SECRET", "AUTH_PUBLIC_KEY", "one of them"]).await;
}

#[tokio::test]
async fn pubsub_without_a_project_is_told() {
    assert_refused(&[("PUBSUB_EMULATOR_HOST", "127.0.0.1:1")], 78, &["GOOGLE_CLOUD_PROJECT"]).await;
    assert_refused(&[("BUS", "pubsub")], 78, &["GOOGLE_CLOUD_PROJECT"]).await;
}

#[tokio::test]
async fn on_fly_without_pubsub_it_does_not_start() {
    let says = ["FLY_APP_NAME", "GOOGLE_SERVICE_ACCOUNT_JSON", "BUS=memory"];
    assert_refused(&[("FLY_APP_NAME", "app"), ("FLY_ALLOC_ID", "148ed123c79d89")], 78, &says).await;
}

#[tokio::test]
async fn a_port_in_use_is_told() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    assert_refused(&[("PORT", &port)], 69, &["PORT", &port, "in use"]).await;
    // An address for documentation, which no machine has (RFC 5737).
    assert_refused(&[("HOST", "192.0.2.1")], 69, &["HOST=192.0.2.1"]).await;
}

#[tokio::test]
async fn help_lists_every_variable_and_nonsense_is_refused() {
    let (code, help) = run(&[], &["--help"]).await;
    assert_eq!(code, Some(0));
    for (name, ..) in alien_alert::config::VARIABLES {
        assert!(help.contains(name), "{name}");
    }
    let (code, version) = run(&[], &["--version"]).await;
    assert_eq!((code, version.trim()), (Some(0), concat!("alien-alert ", env!("CARGO_PKG_VERSION"))));
    let (code, said) = run(&[], &["--port=80"]).await;
    assert_eq!(code, Some(64));
    assert!(said.contains("--help"), "{said}");
}
