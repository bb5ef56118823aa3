//! `scripts/fleet`: one command brings a fleet up and takes all of it down.

use std::collections::HashSet;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::fleet::REGIONS;
use crate::support::http::{get, try_get};
use crate::support::vm::program;
use crate::support::within;

#[tokio::test]
async fn a_fleet_comes_up_and_goes_down_whole() {
    // Ports in a row that were free a moment ago, below those that the system gives to connections.
    let first = (20_000..31_000)
        .step_by(7)
        .skip(std::process::id() as usize % 1_000)
        .find(|port| {
            let more = [0, 1, 2, 3, 4, 1_000];
            more.iter().all(|more| std::net::TcpListener::bind(("127.0.0.1", port + more)).is_ok())
        })
        .unwrap();
    let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/fleet"))
        .env("ALIEN_ALERT_BIN", program())
        .env("FLEET_PORT", first.to_string())
        .env("FORCE_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(script.stdout.take().unwrap()).lines();
    let mut next = async || within("line of the fleet", lines.next_line()).await.unwrap();
    let mut colours = HashSet::new();
    while colours.len() < REGIONS.len() {
        let line = next().await.expect("the fleet ended");
        if line.contains("ready") && line.contains("round_trip") {
            let (colour, _) = line.split_once('m').expect("a colour");
            assert!(colour.starts_with("\x1b["), "{line}");
            colours.insert(colour.to_owned());
        }
    }
    for (port, region) in (first..).zip(REGIONS) {
        assert_eq!(get(port, "/status").await.json()["region"], region);
    }

    // As by Ctrl-C.
    let pid = script.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let mut left = HashSet::new();
    while let Some(line) = next().await {
        if line.contains("subscription deleted") {
            left.extend(REGIONS.into_iter().filter(|region| line.contains(&format!("m{region} "))));
        }
    }
    assert_eq!(left.len(), REGIONS.len(), "each left in order, and its last words were heard: {left:?}");
    assert!(within("end of the fleet", script.wait()).await.unwrap().success());
    for port in (first..first + 5).chain([first + 1_000]) {
        assert!(try_get(port, "/").await.is_err(), "something still listens on {port}");
    }
}
