//! `scripts/fleet`: one command brings a fleet up and takes all of it down.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::support::http::{get, try_get};
use crate::support::vm::program;
use crate::support::within;

#[tokio::test]
async fn a_fleet_comes_up_and_goes_down_whole() {
    // Two ports in a row that were free a moment ago.
    let first = (20_000..60_000)
        .step_by(7)
        .skip(std::process::id() as usize % 5_000)
        .find(|port| {
            [0, 1, 1_000].iter().all(|more| std::net::TcpListener::bind(("127.0.0.1", port + more)).is_ok())
        })
        .unwrap();
    let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/fleet"))
        .args(["ams", "sin"])
        .env("ALIEN_ALERT_BIN", program())
        .env("FLEET_PORT", first.to_string())
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(script.stdout.take().unwrap()).lines();
    let mut next = async || within("line of the fleet", lines.next_line()).await.unwrap();
    let mut ready = 0;
    while ready < 2 {
        let line = next().await.expect("the fleet ended");
        ready += usize::from(line.contains(" ready "));
    }
    let fleet = get(first, "/status").await.json();
    assert_eq!(fleet["region"], "ams");
    assert_eq!(get(first + 1, "/status").await.json()["region"], "sin");

    let pid = script.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let mut left = Vec::new();
    while let Some(line) = next().await {
        left.extend(line.contains(" subscription deleted ").then(|| line[..3].to_owned()));
    }
    left.sort();
    assert_eq!(left, ["ams", "sin"], "each left in order, and its last words were heard");
    assert!(within("end of the fleet", script.wait()).await.unwrap().success());
    for port in [first, first + 1, first + 1_000] {
        assert!(try_get(port, "/").await.is_err(), "something still listens on {port}");
    }
}
