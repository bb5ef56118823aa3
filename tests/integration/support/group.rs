//! Control groups, of version 1 or 2, whichever the system has: a share of its processors or of its memory.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// One of its own; gone with this value, once its processes are.
pub struct Group {
    folder: PathBuf,
    /// What its version calls things.
    names: Names,
}

/// Where something is told.
#[derive(Clone, Copy)]
struct Names {
    used: &'static str,
    most_used: &'static str,
    most: &'static str,
}

const OLD: Names = Names {
    used: "memory.usage_in_bytes",
    most_used: "memory.max_usage_in_bytes",
    most: "memory.limit_in_bytes",
};
const NEW: Names = Names { used: "memory.current", most_used: "memory.peak", most: "memory.max" };

impl Group {
    /// One whose processes have `share` of a processor.
    pub fn of_processor(share: f64) -> Self {
        let period = 100_000;
        let quota = (share * f64::from(period)) as u32;
        let group = Self::new("cpu");
        if group.is_old() {
            group.set("cpu.cfs_period_us", period);
            group.set("cpu.cfs_quota_us", quota);
        } else {
            group.set("cpu.max", format!("{quota} {period}"));
        }
        group
    }

    /// One whose memory can be bounded.
    pub fn of_memory() -> Self {
        Self::new("memory")
    }

    fn new(controller: &str) -> Self {
        let old = Path::new("/sys/fs/cgroup").join(controller);
        let (root, names) = if old.is_dir() { (&*old, OLD) } else { (Path::new("/sys/fs/cgroup"), NEW) };
        if root != old {
            // Of version 2 a group has only what its parent gives away.
            let given = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
            given.unwrap_or_else(|error| panic!("the controller {controller} can't be had: {error}"));
        }
        let folder = root.join(format!("alien-alert-{controller}-{}", std::process::id()));
        fs::create_dir(&folder).expect("control groups can be made by root alone, where they are mounted");
        Self { folder, names }
    }

    fn is_old(&self) -> bool {
        self.names.most == OLD.most
    }

    fn set(&self, file: &str, value: impl ToString) {
        fs::write(self.folder.join(file), value.to_string()).unwrap();
    }

    fn told(&self, file: &str) -> u64 {
        fs::read_to_string(self.folder.join(file)).unwrap().trim().parse().unwrap()
    }

    /// What makes a command run in it from the start, before its own words.
    pub fn enter(&self) -> [OsString; 4] {
        let enter = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;
        ["sh".into(), "-c".into(), enter.into(), self.folder.clone().into()]
    }

    pub fn take(&self, pid: u32) {
        self.set("cgroup.procs", pid);
    }

    pub fn let_go(&self, pid: u32) {
        fs::write(self.folder.parent().unwrap().join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// Bytes that its processes have now.
    pub fn memory(&self) -> u64 {
        self.told(self.names.used)
    }

    /// The most that they had.
    pub fn most_memory(&self) -> u64 {
        self.told(self.names.most_used)
    }

    pub fn limit_memory(&self, bytes: u64) {
        self.set(self.names.most, bytes);
        // Else it would take the disk's.
        if self.folder.join("memory.swap.max").exists() {
            self.set("memory.swap.max", 0);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that was just killed may be in it for a moment longer, and can't be moved any more.
        for _ in 0..100 {
            for pid in fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default().lines() {
                let _ = fs::write(self.folder.parent().unwrap().join("cgroup.procs"), pid);
            }
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}
