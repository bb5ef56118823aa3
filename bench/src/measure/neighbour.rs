//! One socket in a thousand that does not read: what the others notice of it.

use anyhow::Result;

use super::fanout;
use crate::load::Load;

/// So much is published before it counts: more than the kernel keeps for one that does not read.
const UNREAD: usize = 12_000;
const WINDOW: usize = 32;

/// Returns the p99 from publish to any reading socket, divided by what it was before one of them
/// stopped to read.
pub fn measure(load: &mut Load, pid: u32, rounds: usize) -> Result<f64> {
    let before = fanout::measure(load, pid, 1, rounds)?;
    load.stop_reading(load.len() / 2)?;
    fanout::measure(load, pid, WINDOW, UNREAD / WINDOW)?;
    let beside = fanout::measure(load, pid, 1, rounds)?;
    Ok(beside.any.value_at_quantile(0.99) as f64 / before.any.value_at_quantile(0.99) as f64)
}
