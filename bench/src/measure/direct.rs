//! A message to one connection: what the server spends on it must not depend on how many there are.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bench::frame;

use crate::load::{Load, Word};
use crate::process;

const PATIENCE: Duration = Duration::from_secs(30);

/// Lets the first socket write to the last one, one message at a time; returns the server's processor
/// time for each, in µs.
pub fn measure(load: &mut Load, pid: u32, messages: usize) -> Result<f64> {
    let target = load.len() - 1;
    let name = name_of(load, target)?;
    let text = format!(r#"{{"type":"direct","targetId":"{name}","data":{{"place":"Amsterdam"}}}}"#);
    let direct = frame::from_client(frame::TEXT, text.as_bytes());
    let before = process::cpu(pid)?;
    let started = Instant::now();
    for _ in 0..messages {
        load.send(0, &direct)?;
        let mut come = false;
        while !come {
            load.turn(Some(Duration::ZERO), |heard| {
                come |= heard.socket == target && heard.text.starts_with(br#"{"type":"direct""#);
            })?;
            if started.elapsed() > PATIENCE {
                bail!("a direct message did not come");
            }
        }
    }
    load.settle(Duration::from_millis(20))?;
    Ok(process::cpu(pid)?.saturating_sub(before).as_nanos() as f64 / 1e3 / messages as f64)
}

/// A socket's name, which its own alert tells.
fn name_of(load: &mut Load, socket: usize) -> Result<String> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Alert {
        sender_id: String,
    }
    let alert = load.dialect().alerts(1);
    load.send(socket, &alert)?;
    let mut name = None;
    let started = Instant::now();
    while name.is_none() && started.elapsed() < PATIENCE {
        load.turn(Some(Duration::from_millis(100)), |heard| {
            if heard.word == Word::Alert {
                name = serde_json::from_slice::<Alert>(heard.text).ok();
            }
        })?;
    }
    load.settle(Duration::from_millis(100))?;
    Ok(name.context("no socket has a name")?.sender_id)
}
