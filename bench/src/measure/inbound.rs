//! Messages from many sockets: what the server spends on reading, understanding and answering one.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::load::{Load, Word};
use crate::process;

/// Messages of one socket, a second.
const RATE: usize = 10;

/// They come in groups, as on a busy server: so many a second.
const TICKS: f64 = 100.0;

/// Lets each socket send ten pings a second, which the server's program answers;
/// returns its processor time for each, in µs.
pub fn measure(load: &mut Load, pid: u32, time: Duration) -> Result<f64> {
    let ping = load.dialect().ping();
    let per_second = load.len() * RATE;
    let messages = (time.as_secs_f64() * per_second as f64) as usize;
    let before = process::cpu(pid)?;
    let started = Instant::now();
    let mut sent = 0;
    let mut answered = 0;
    while answered < messages {
        let ticks = (started.elapsed().as_secs_f64() * TICKS).floor();
        let due = (ticks / TICKS * per_second as f64) as usize;
        while sent < due.min(messages) {
            load.send(sent % load.len(), &ping)?;
            sent += 1;
        }
        load.turn(Some(Duration::ZERO), |heard| answered += usize::from(heard.word == Word::Pong))?;
        if started.elapsed() > 4 * time {
            bail!("{answered} of {messages} pings are answered");
        }
    }
    load.settle(Duration::from_millis(20))?;
    Ok(process::cpu(pid)?.saturating_sub(before).as_nanos() as f64 / 1e3 / messages as f64)
}
