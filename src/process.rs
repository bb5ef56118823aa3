//! What the system tells of this process: time on its processors, memory, open files.
//!
//! By the names that Prometheus' own libraries give them. What a system does not tell is left out.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector as Collect;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use rlimit::Resource;
use rustix::time::{ClockId, clock_gettime};

use crate::clock;

/// Memory in use, where the system tells it in Linux' way.
pub fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// Files open, sockets too. Linux tells their number as the folder's size since 6.2; counted one by one
/// it takes milliseconds with thousands of them.
fn open_files() -> Option<u64> {
    const FOLDER: &str = "/proc/self/fd";
    match fs::metadata(FOLDER).ok()?.len() {
        0 => Some(fs::read_dir(FOLDER).ok()?.count() as u64),
        count => Some(count),
    }
}

/// Looks when Prometheus asks.
#[derive(Debug)]
pub struct Collector {
    /// In seconds since the epoch.
    started: f64,
}

/// Made when the process starts.
impl Default for Collector {
    fn default() -> Self {
        Self { started: clock::now_micros() as f64 / 1e6 }
    }
}

impl Collect for Collector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let used = clock_gettime(ClockId::ProcessCPUTime);
        let used = ConstCounter::new(used.tv_sec as f64 + used.tv_nsec as f64 / 1e9);
        let help = "Time on processors, the system's for it too";
        used.encode(encoder.encode_descriptor("cpu", help, Some(&Unit::Seconds), used.metric_type())?)?;
        let most_files = Resource::NOFILE.get().ok().map(|(now, _)| now);
        let gauges = [
            ("start_time_seconds", "When it started, since the epoch", Some(self.started)),
            ("resident_memory_bytes", "Memory in use", resident_bytes().map(|bytes| bytes as f64)),
            ("open_fds", "Files open, sockets too", open_files().map(|count| count as f64)),
            ("max_fds", "Files that may be open", most_files.map(|count| count as f64)),
        ];
        for (name, help, value) in gauges {
            let Some(gauge) = value.map(ConstGauge::new) else { continue };
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Config;
    use crate::metrics::{Format, Metrics};

    fn figure(name: &str) -> f64 {
        let text = Metrics::new(&Config::from_vars([]).unwrap()).text(Format::Plain);
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_else(|| panic!("{name} in {text}"));
        line.trim().parse().unwrap()
    }

    #[test]
    fn figures_are_this_process_s() {
        let started = figure("process_start_time_seconds ");
        let age = clock::now_micros() as f64 / 1e6 - started;
        assert!((0.0..60.0).contains(&age), "{age}");
        assert!(figure("process_resident_memory_bytes ") > 1e6);
        let open = figure("process_open_fds ");
        let files: Vec<_> = (0..10).map(|_| fs::File::open("/proc/self/status").unwrap()).collect();
        assert_eq!(figure("process_open_fds "), open + files.len() as f64);
        assert!(open < figure("process_max_fds "));
        let used = figure("process_cpu_seconds_total ");
        let begun = std::time::Instant::now();
        while figure("process_cpu_seconds_total ") < used + 0.02 {
            assert!(begun.elapsed() < Duration::from_secs(30), "time on the processor is not counted");
        }
    }
}
