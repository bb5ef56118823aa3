//! The contenders: how each is started on a core of its own, and in which dialect it is spoken to.

use std::io::{BufRead as _, BufReader, pipe};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use std::{env, fs, thread};

use anyhow::{Context as _, Result, bail};

use crate::load::Dialect;

/// The cores of the server, as taskset counts them, and the core of the load.
pub const SERVER_CORE: &str = "0";
pub const LOAD_CORE: usize = 1;

const START_TIME: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    AlienAlert,
    Floor,
    Bun,
    Warp,
    Tuned,
    Nchan,
    Ws,
    SocketIo,
}

/// A contender that runs; killed with this value.
pub struct Server {
    process: Child,
    pub pid: u32,
    pub address: SocketAddr,
    pub dialect: Dialect,
}

impl Peer {
    pub const ALL: [Self; 8] = [
        Self::AlienAlert,
        Self::Floor,
        Self::Bun,
        Self::Warp,
        Self::Tuned,
        Self::Nchan,
        Self::Ws,
        Self::SocketIo,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::AlienAlert => "alien-alert",
            Self::Floor => "floor",
            Self::Bun => "bun",
            Self::Warp => "warp-chat",
            Self::Tuned => "tuned",
            Self::Nchan => "nchan",
            Self::Ws => "ws",
            Self::SocketIo => "socket.io",
        }
    }

    pub fn named(name: &str) -> Result<Self> {
        let peer = Self::ALL.into_iter().find(|peer| peer.name() == name);
        peer.with_context(|| format!("{name:?} is none of {}", Self::ALL.map(Self::name).join(", ")))
    }

    fn dialect(self) -> Dialect {
        match self {
            Self::AlienAlert => Dialect::AlienAlert,
            Self::Nchan => Dialect::Nchan,
            Self::SocketIo => Dialect::SocketIo,
            _ => Dialect::Plain,
        }
    }

    /// Starts it on `cores`; it listens when this returns.
    pub fn start(self, cores: &str) -> Result<Server> {
        let (words, address) = self.command()?;
        // None is left behind by a bench that is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "taskset", "-c", cores]).args(words);
        command.env_clear().envs(env::var_os("PATH").map(|path| ("PATH", path)));
        command.current_dir(env::temp_dir());
        if self == Self::AlienAlert {
            command.envs(settings());
        }
        let (output, input) = pipe()?;
        command.stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input);
        let mut server = Server {
            process: command.spawn().with_context(|| format!("{} can't be started", self.name()))?,
            pid: 0,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            dialect: self.dialect(),
        };
        server.pid = server.process.id();
        // Or this process would keep the pipe open for ever.
        drop(command);
        let (teller, lines) = mpsc::channel();
        // All that it says is read, or it would stand still when the pipe is full.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = teller.send(line);
            }
        });
        match address {
            Some(address) => server.address = answering(address)?,
            None => {
                let line = said(&lines, "http://127.0.0.1:").with_context(|| self.name())?;
                server.address.set_port(port(&line)?);
            }
        }
        if self == Self::AlienAlert {
            said(&lines, r#""message":"ready""#)?;
        }
        Ok(server)
    }

    /// What to run, and where it will listen, unless it says so itself.
    fn command(self) -> Result<(Vec<PathBuf>, Option<SocketAddr>)> {
        let built = env::current_exe()?.parent().context("no folder")?.to_owned();
        let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
        let words = match self {
            Self::AlienAlert => vec![built.join("alien-alert")],
            Self::Floor | Self::Warp | Self::Tuned => vec![built.join(self.name())],
            Self::Bun => vec![peers.join("node_modules/.bin/bun"), peers.join("bun.mjs")],
            Self::Ws => vec!["node".into(), peers.join("ws.mjs")],
            Self::SocketIo => vec!["node".into(), peers.join("socketio.mjs")],
            Self::Nchan => return nchan(&peers),
        };
        Ok((words, None))
    }
}

/// The product with its limits out of the way, which are on all the same.
fn settings() -> [(&'static str, &'static str); 12] {
    [
        ("BUS", "memory"),
        ("HOST", "127.0.0.1"),
        ("PORT", "0"),
        ("FLY_ALLOC_ID", bench::words::INSTANCE),
        ("FLY_REGION", bench::words::REGION),
        ("LOG_FORMAT", "json"),
        ("MAX_CONNECTIONS", "20000"),
        ("MAX_CONNECTIONS_PER_ADDRESS", "20000"),
        ("UPGRADE_RATE", "1000000"),
        ("UPGRADE_BURST", "1000000"),
        ("MESSAGE_RATE", "1000000"),
        ("MESSAGE_BURST", "1000000"),
    ]
}

/// nginx can't tell a port that it chose, so it gets one that was free a moment ago.
fn nchan(peers: &Path) -> Result<(Vec<PathBuf>, Option<SocketAddr>)> {
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let folder = env::temp_dir().join("alien-alert-bench-nginx");
    fs::create_dir_all(&folder)?;
    let text = fs::read_to_string(peers.join("nginx.conf"))?
        .replace("PORT", &address.port().to_string())
        .replace("DIR", &folder.to_string_lossy());
    let file = folder.join("nginx.conf");
    fs::write(&file, text)?;
    let words = ["/usr/sbin/nginx", "-p", "/usr/share/nginx", "-e", "stderr", "-c"].map(PathBuf::from);
    Ok((words.into_iter().chain([file]).collect(), Some(address)))
}

/// Waits for the line that holds `what`.
fn said(lines: &mpsc::Receiver<String>, what: &str) -> Result<String> {
    let mut others = Vec::new();
    loop {
        let Ok(line) = lines.recv_timeout(START_TIME) else {
            bail!("it does not say {what}, but:\n{}", others.join("\n"));
        };
        if line.contains(what) {
            return Ok(line);
        }
        others.push(line);
    }
}

fn port(line: &str) -> Result<u16> {
    let rest = line.split("http://127.0.0.1:").nth(1).unwrap_or_default();
    let digits = rest.split(|next: char| !next.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().with_context(|| format!("a port in {line:?}"))
}

/// Waits until it accepts connections.
fn answering(address: SocketAddr) -> Result<SocketAddr> {
    for _ in 0..200 {
        if std::net::TcpStream::connect(address).is_ok() {
            return Ok(address);
        }
        thread::sleep(START_TIME / 200);
    }
    bail!("nothing listens on {address}")
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
