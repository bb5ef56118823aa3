//! What a process costs, from `/proc`: time of its processor, and memory.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// The processor time of all threads that live, to the nanosecond (of those that wait; a running one's is up to
/// a tick behind).
pub fn cpu(pid: u32) -> Result<Duration> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("the server has ended")? {
        // A thread may end between the listing and the reading.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        sum += text.split(' ').next().unwrap_or_default().parse::<u64>().context("schedstat")?;
    }
    Ok(Duration::from_nanos(sum))
}

/// Whether any thread runs, or would if it had a core.
pub fn runs(pid: u32) -> Result<bool> {
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("the server has ended")? {
        let Ok(text) = fs::read_to_string(task?.path().join("stat")) else { continue };
        // The name before it may hold anything, a closing parenthesis too.
        if text.rsplit(") ").next().is_some_and(|rest| rest.starts_with('R')) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The process's own share of memory, in bytes.
pub fn pss(pid: u32) -> Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("the server has ended")?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("smaps_rollup")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse().context("smaps_rollup")?;
    Ok(kib * 1024)
}
