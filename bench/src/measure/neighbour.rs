//! One socket in a thousand that does not read, whose server has to keep what it does not take.

use std::fs;

use anyhow::{Context as _, Result, bail};

use super::fanout;
use crate::load::Load;

/// Events at once, and how often, between two looks at what the kernel keeps for the one that does not read.
const WINDOW: usize = 32;
const ROUNDS: usize = 10;

/// After so many looks the kernel is full, whatever its settings.
const LOOKS: usize = 200;

/// Makes one of them such a socket.
pub fn deafen(load: &mut Load, pid: u32) -> Result<()> {
    let deaf = load.len() / 2;
    load.stop_reading(deaf)?;
    fill(load, pid, load.port(deaf)?)
}

/// Publishes until the kernel takes no more for the client at `port`: from then on it is the server's.
fn fill(load: &mut Load, pid: u32, port: u16) -> Result<()> {
    let mut last = 0;
    for _ in 0..LOOKS {
        fanout::measure(load, pid, WINDOW, ROUNDS)?;
        let kept = unsent(port)?;
        // At first all of it goes into what the client's side keeps.
        if kept > 0 && kept == last {
            return Ok(());
        }
        last = kept;
    }
    bail!("the kernel takes ever more: {last} bytes so far")
}

/// Bytes that the kernel keeps for the peer at `port`.
fn unsent(port: u16) -> Result<u64> {
    let suffix = format!(":{port:04X}");
    // A server that listens on both families has its connections in the second.
    for file in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(file)?.lines() {
            // Number, own address, the other's, state, what is queued to be sent and to be read.
            let fields: Vec<_> = line.split_ascii_whitespace().take(5).collect();
            let [_, _, remote, _, queues] = fields[..] else { continue };
            if remote.ends_with(&suffix) {
                return Ok(u64::from_str_radix(queues.split(':').next().unwrap_or_default(), 16)?);
            }
        }
    }
    None.context("the one that does not read was cut off")
}
