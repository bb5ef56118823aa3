//! A VM as a process of its own: the real binary, its real environment and signals.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::Notify;

use super::client::Client;
use super::emulator::{Emulator, PROJECT};
use super::{http, until, within, within_for};

/// A running VM; killed with this value.
pub struct Vm {
    process: Child,
    pub pid: u32,
    pub port: u16,
    pub name: String,
    pub spawned: Instant,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    lines: Mutex<Vec<Value>>,
    grown: Notify,
}

/// The program: an optimized build where one is named, since some figures need it.
pub fn program() -> OsString {
    std::env::var_os("ALIEN_ALERT_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_alien-alert").into())
}

/// The program with nothing of this process's environment but what it needs to run.
pub fn command(vars: &[(&str, &str)]) -> Command {
    command_of(&[program()], vars)
}

pub fn command_of(words: &[OsString], vars: &[(&str, &str)]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command.env_clear().envs(vars.iter().copied()).current_dir(std::env::temp_dir());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

impl Vm {
    /// A VM alone, on the in-process bus; ready when this returns.
    pub async fn alone(vars: &[(&str, &str)]) -> Self {
        let vm = Self::spawn("alone", vars).await;
        vm.ready().await;
        vm
    }

    /// One of several VMs on the emulator; ready when this returns.
    pub async fn on(emulator: &Emulator, region: &str) -> Self {
        let vm = Self::spawn_on(&emulator.host(), region, &[]).await;
        vm.ready().await;
        vm
    }

    /// Several VMs that know one another.
    pub async fn fleet(emulator: &Emulator, regions: &[&str], more: &[(&str, &str)]) -> Vec<Self> {
        let mut vms = Vec::new();
        for region in regions {
            vms.push(Self::spawn_on(&emulator.host(), region, more).await);
        }
        for vm in &vms {
            vm.ready().await;
            vm.knows(regions.len()).await;
        }
        vms
    }

    /// Waits until this VM knows of so many, itself too.
    pub async fn knows(&self, vms: usize) {
        until("whole fleet", async || (self.status().await["fleet"].as_array()?.len() == vms).then_some(()))
            .await;
    }

    /// One of the figures at `/metrics`, by its name and labels.
    pub async fn figure(&self, name: &str) -> u64 {
        http::figure(self.port, name).await.unwrap_or_else(|| panic!("{name} is no figure"))
    }

    pub async fn status(&self) -> Value {
        http::get(self.port, "/status").await.json()
    }

    pub async fn spawn_on(emulator: &str, region: &str, more: &[(&str, &str)]) -> Self {
        Self::spawn_on_by(program(), emulator, region, more).await
    }

    /// The same of another version's program.
    pub async fn spawn_on_by(program: OsString, emulator: &str, region: &str, more: &[(&str, &str)]) -> Self {
        let id = format!("vm-{region}");
        let mut vars = vec![
            ("PUBSUB_EMULATOR_HOST", emulator),
            ("GOOGLE_CLOUD_PROJECT", PROJECT),
            ("FLY_ALLOC_ID", &id),
            ("FLY_REGION", region),
        ];
        vars.extend(more);
        Self::spawn_by(&[program], region, &vars).await
    }

    /// A VM alone, in a process that may have so many files open; ready when this returns.
    pub async fn within_files(files: u64) -> Self {
        let limit = format!("--nofile={files}");
        let words = ["prlimit".into(), limit.into(), program()];
        let vm = Self::spawn_by(&words, "few files", &[]).await;
        vm.ready().await;
        vm
    }

    /// Starts the process and waits until it listens.
    pub async fn spawn(name: &str, vars: &[(&str, &str)]) -> Self {
        Self::spawn_by(&[program()], name, vars).await
    }

    /// The same by a command of one's own, whose process becomes the VM's.
    pub async fn spawn_by(words: &[OsString], name: &str, vars: &[(&str, &str)]) -> Self {
        let mut all = vec![("HOST", "127.0.0.1"), ("PORT", "0"), ("LOG_FORMAT", "json")];
        all.retain(|(name, _)| vars.iter().all(|(other, _)| name != other));
        all.extend(vars);
        let spawned = Instant::now();
        let mut process = command_of(words, &all).spawn().unwrap();
        let log = Arc::new(Log::default());
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let growing = Arc::clone(&log);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                growing.lines.lock().unwrap().push(line);
                growing.grown.notify_waiters();
            }
        });
        let pid = process.id().unwrap();
        let mut vm = Self { process, pid, port: 0, name: name.into(), spawned, log };
        let listening = vm.logged("listening on").await;
        let address = listening["message"].as_str().unwrap();
        vm.port = address.rsplit(':').next().unwrap().parse().unwrap();
        vm
    }

    pub async fn ready(&self) {
        self.logged("ready").await;
    }

    /// The first line of the log whose message begins with `message`.
    pub async fn logged(&self, message: &str) -> Value {
        within(&format!("{message:?} in the log of {}", self.name), async {
            loop {
                let grown = self.log.grown.notified();
                if let Some(line) = self.lines(message).into_iter().next() {
                    return line;
                }
                grown.await;
            }
        })
        .await
    }

    /// All lines of the log so far whose message begins with `message`.
    pub fn lines(&self, message: &str) -> Vec<Value> {
        let begins = |line: &Value| line["message"].as_str().is_some_and(|text| text.starts_with(message));
        self.log().into_iter().filter(begins).collect()
    }

    pub fn log(&self) -> Vec<Value> {
        self.log.lines.lock().unwrap().clone()
    }

    pub async fn connect(&self) -> Client {
        Client::connect(self.port, "/ws").await
    }

    /// Sends `signal` (INT, TERM, KILL, …) to the process.
    pub fn signal(&self, signal: &str) {
        let sent =
            std::process::Command::new("kill").args([&format!("-{signal}"), &self.pid.to_string()]).status();
        assert!(sent.unwrap().success());
    }

    pub async fn exit(&mut self) -> ExitStatus {
        within("end of the process", self.process.wait()).await.unwrap()
    }

    /// Sends `signal`; returns the exit code and how long the end took.
    pub async fn end(&mut self, signal: &str) -> (Option<i32>, Duration) {
        let begun = Instant::now();
        self.signal(signal);
        let status = self.exit().await;
        assert_eq!(status.signal().is_some(), signal == "KILL", "{status}");
        (status.code(), begun.elapsed())
    }

    /// How many files the process has open, sockets too.
    pub fn files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap().count()
    }

    /// The process's own share of memory, in bytes.
    pub fn pss(&self) -> u64 {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid)).unwrap();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() * 1024
    }
}

/// What a VM tells of the past to who comes by `path`, as soon as it says that this is all: what went to the
/// stream of one that was killed is sought for a while, at last over a new subscription.
pub async fn complete(vm: &Vm, path: &str) -> Value {
    within_for(Duration::from_secs(65), "catch-up that is complete", async {
        loop {
            let refresh = Client::connect(vm.port, path).await.refresh;
            if refresh["complete"] == true {
                return refresh;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await
}
