//! Alien Alert beside its peers: each server on one core, the load on the other.

mod fanout;
mod load;
mod peer;
mod process;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lexopt::prelude::*;
use load::Load;
use peer::Peer;

/// Sockets on their way at a time while they are only to be there: few enough for every backlog.
const AT_ONCE: usize = 100;

fn main() -> Result<()> {
    let mut peers = Peer::ALL.to_vec();
    let mut counts = vec![1000];
    let mut windows = vec![1, 8, 32];
    let mut repeats = 1;
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("peers") => {
                peers = parser
                    .value()?
                    .parse_with(|text| text.split(',').map(Peer::named).collect::<Result<_>>())?
            }
            Long("sockets") => counts = numbers(&parser.value()?.string()?)?,
            Long("windows") => windows = numbers(&parser.value()?.string()?)?,
            Long("repeats") => repeats = parser.value()?.parse()?,
            other => return Err(other.unexpected().into()),
        }
    }
    stay_on_core(peer::SERVER_CORE + 1)?;
    for _ in 0..repeats {
        for &sockets in &counts {
            for &peer in &peers {
                run(peer, sockets, &windows)
                    .with_context(|| format!("{} with {sockets} sockets", peer.name()))?;
            }
        }
    }
    Ok(())
}

fn numbers(list: &str) -> Result<Vec<usize>> {
    list.split(',').map(|number| number.parse().with_context(|| format!("{number:?}"))).collect()
}

fn run(peer: Peer, sockets: usize, windows: &[usize]) -> Result<()> {
    let server = peer.start()?;
    let mut load = Load::new(server.dialect)?;
    // Some have to warm up before their memory says anything.
    load.connect(server.address, 1, 1)?;
    load.settle(Duration::from_millis(200))?;
    let empty = process::pss(server.pid)?;
    let started = Instant::now();
    load.connect(server.address, sockets, AT_ONCE)?;
    let joined = started.elapsed();
    load.settle(Duration::from_millis(1500))?;
    let full = process::pss(server.pid)?;
    print!(
        "{:12} {sockets:6} upgrades/s {:7.0}  kB/socket {:6.2}  MB {:5.1}",
        peer.name(),
        sockets as f64 / joined.as_secs_f64(),
        full.saturating_sub(empty) as f64 / 1000.0 / sockets as f64,
        full as f64 / 1e6,
    );
    for &window in windows {
        fanout::measure(&mut load, server.pid, window, 200_000usize.div_ceil(sockets * window))?;
        let shown = fanout::measure(&mut load, server.pid, window, 600_000usize.div_ceil(sockets * window))?;
        print!(
            "  | w{window} {:5.3} µs, last p50 {:6.2} p99 {:6.2} ms, late {:4.2}, {:.0} B",
            shown.cpu.as_nanos() as f64 / 1e3,
            shown.last.value_at_quantile(0.5) as f64 / 1e6,
            shown.last.value_at_quantile(0.99) as f64 / 1e6,
            shown.always_last,
            shown.bytes,
        );
    }
    println!();
    Ok(())
}

/// Keeps this process on one core.
fn stay_on_core(core: usize) -> Result<()> {
    let mut cores = rustix::thread::CpuSet::new();
    cores.set(core);
    rustix::thread::sched_setaffinity(None, &cores).context("the load can't be kept on one core")
}
