//! A burst of connections: all at once, as after a restart.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::load::Load;
use crate::peer::Server;
use crate::process;

pub struct Joins {
    pub per_second: f64,
    /// Processor time of the server for each, in µs. A server that is faster than the load is told by it alone.
    pub cpu: f64,
    /// From a socket's connect to its being ready.
    pub slowest: Duration,
    /// Connections that found the backlog full, and had to try again.
    pub overflows: u64,
}

/// Opens `count` sockets, none waiting for another.
pub fn measure(server: &Server, count: usize) -> Result<Joins> {
    let mut load = Load::new(server.dialect)?;
    let (before, cpu) = (overflows()?, process::cpu(server.pid)?);
    let started = Instant::now();
    let took = load.connect(server.address, count, count)?;
    let time = started.elapsed();
    load.settle(Duration::from_millis(50))?;
    let cpu = process::cpu(server.pid)?.saturating_sub(cpu);
    Ok(Joins {
        per_second: count as f64 / time.as_secs_f64(),
        cpu: cpu.as_nanos() as f64 / 1e3 / count as f64,
        slowest: took.into_iter().max().unwrap_or_default(),
        overflows: overflows()? - before,
    })
}

/// Of the whole machine.
fn overflows() -> Result<u64> {
    let text = fs::read_to_string("/proc/net/netstat")?;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = lines.next().zip(lines.next()).context("TcpExt")?;
    let pairs = names.split(' ').zip(values.split(' '));
    let value = pairs.into_iter().find(|(name, _)| *name == "ListenOverflows").context("ListenOverflows")?.1;
    Ok(value.parse()?)
}
