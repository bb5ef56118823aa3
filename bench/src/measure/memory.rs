//! What a socket that is idle takes: of the server, and of the kernel.

use std::fs;

use anyhow::{Context as _, Result};

use crate::process;

/// What is taken at one moment.
#[derive(Clone, Copy)]
pub struct Memory {
    /// By the server, in bytes.
    pub process: u64,
    /// By the kernel: its objects, and what waits in TCP's buffers, in bytes.
    pub kernel: u64,
}

impl Memory {
    pub fn now(pid: u32) -> Result<Self> {
        let slab = number_after("/proc/meminfo", "Slab:")? * 1024;
        let tcp = number_after("/proc/net/sockstat", " mem ")? * 4096;
        Ok(Self { process: process::pss(pid)?, kernel: slab + tcp })
    }

    /// What `sockets` have added since: for each, in kB, of the server and of the kernel. Of the
    /// latter each socket has two ends here.
    pub fn per_socket(self, before: Self, sockets: usize) -> (f64, f64) {
        let each = |now: u64, before: u64, ends: usize| (now as f64 - before as f64) / 1000.0 / ends as f64;
        (each(self.process, before.process, sockets), each(self.kernel, before.kernel, 2 * sockets))
    }
}

fn number_after(file: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(file)?;
    let rest = text.split(name).nth(1).with_context(|| format!("{name} in {file}"))?;
    let digits = rest.trim_start().split(|next: char| !next.is_ascii_digit()).next();
    digits.unwrap_or_default().parse().with_context(|| format!("{name} in {file}"))
}
