//! Two worker threads against one. The load has no core left for itself, so it does not read: events
//! go into the kernel's buffers, and the server's falling asleep tells that they all are there.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::load::Load;
use crate::process;

/// Events before the load reads again; their bytes fit into each socket's buffer.
const EVENTS: usize = 100;

/// How often to look whether the server sleeps: a look takes time of a core that the server needs, and an
/// event takes tens of milliseconds.
const LOOK: Duration = Duration::from_millis(1);

/// The server sleeps when it has used nothing for so long.
const ASLEEP: Duration = Duration::from_millis(4);

const PATIENCE: Duration = Duration::from_secs(10);

/// Publishes one event at a time to sockets that read none; returns deliveries a second.
pub fn measure(load: &mut Load, pid: u32, rounds: usize) -> Result<f64> {
    let alert = load.dialect().alerts(1);
    let mut spent = Duration::ZERO;
    for _ in 0..rounds {
        for _ in 0..EVENTS {
            let published = Instant::now();
            load.send(0, &alert)?;
            spent += asleep(pid)? - published;
        }
        load.settle(Duration::from_millis(50))?;
    }
    Ok((load.len() * EVENTS * rounds) as f64 / spent.as_secs_f64())
}

/// Waits until the server has gone to sleep; returns when that was.
fn asleep(pid: u32) -> Result<Instant> {
    let started = Instant::now();
    let mut cpu = process::cpu(pid)?;
    let mut last = started;
    while last.elapsed() < ASLEEP || process::runs(pid)? {
        std::thread::sleep(LOOK);
        let now = process::cpu(pid)?;
        if now != cpu {
            (cpu, last) = (now, Instant::now());
        }
        if started.elapsed() > PATIENCE {
            bail!("the server does not fall asleep");
        }
    }
    Ok(last)
}
