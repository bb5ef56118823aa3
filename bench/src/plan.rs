//! What is measured in one call, by its arguments.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use lexopt::prelude::*;

use crate::peer::Peer;

const HELP: &str = "\
Measures Alien Alert beside its peers and writes bench/RESULTS.md, with plots.

  --quick          a subset in less than three minutes, written to target/bench
  --only PARTS     fanout,memory,inbound,direct,neighbour,joins,cores,soak
  --peers NAMES    alien-alert,floor,bun,warp-chat,tuned,nchan,ws,socket.io
  --sockets N,N    how many sockets
  --windows N,N    how many events wait at a time
  --repeats N      how often each figure is taken
  --soak SECONDS   how long the traffic of a soak is
  --into FOLDER    where the results go
";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Fanout,
    Memory,
    Inbound,
    Direct,
    Neighbour,
    Joins,
    Cores,
    Soak,
}

impl Part {
    const ALL: [(&'static str, Self); 8] = [
        ("fanout", Self::Fanout),
        ("memory", Self::Memory),
        ("inbound", Self::Inbound),
        ("direct", Self::Direct),
        ("neighbour", Self::Neighbour),
        ("joins", Self::Joins),
        ("cores", Self::Cores),
        ("soak", Self::Soak),
    ];

    fn named(name: &str) -> Result<Self> {
        let part = Self::ALL.into_iter().find(|part| part.0 == name);
        Ok(part.with_context(|| format!("{name:?} is none of the parts, see --help"))?.1)
    }
}

/// Files that are no sockets, at most.
const OTHER_FILES: u64 = 100;

pub struct Plan {
    parts: Vec<Part>,
    peers: Vec<Peer>,
    pub sockets: Vec<usize>,
    windows: Vec<usize>,
    pub repeats: usize,
    /// Deliveries that one figure of fan-out rests on.
    deliveries: usize,
    /// Events, at least: a p99 needs hundreds.
    events: usize,
    /// Sockets that join at once.
    pub joins: usize,
    /// Sockets where many are wanted.
    pub many: usize,
    /// Direct messages.
    pub messages: usize,
    /// How long inbound messages flow.
    pub time: Duration,
    pub soak: Duration,
    /// Files that this process may have open; None: no limit.
    pub files: Option<u64>,
    /// Where the results go.
    pub folder: PathBuf,
}

impl Plan {
    pub fn from_arguments() -> Result<Self> {
        let mut plan = Self {
            parts: Part::ALL.map(|part| part.1).to_vec(),
            peers: Peer::ALL.to_vec(),
            sockets: vec![100, 1_000, 4_000, 8_000, 15_500],
            windows: vec![1, 8, 32],
            repeats: 5,
            deliveries: 300_000,
            events: 200,
            joins: 10_000,
            many: 8_000,
            messages: 20_000,
            time: Duration::from_secs(4),
            soak: Duration::from_secs(600),
            files: rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum,
            folder: PathBuf::from(env!("CARGO_MANIFEST_DIR")),
        };
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("quick") => plan.shorten(),
                Long("only") => plan.parts = list(&mut parser, Part::named)?,
                Long("peers") => plan.peers = list(&mut parser, Peer::named)?,
                Long("sockets") => plan.sockets = list(&mut parser, number)?,
                Long("windows") => plan.windows = list(&mut parser, number)?,
                Long("repeats") => plan.repeats = parser.value()?.parse()?,
                Long("soak") => plan.soak = Duration::from_secs(parser.value()?.parse()?),
                Long("into") => plan.folder = parser.value()?.into(),
                Long("help") => {
                    print!("{HELP}");
                    std::process::exit(0);
                }
                other => return Err(other.unexpected().into()),
            }
        }
        if plan.sockets.iter().any(|&sockets| sockets < 2) || plan.windows.contains(&0) {
            bail!("at least two sockets, and one event at a time");
        }
        Ok(plan)
    }

    fn shorten(&mut self) {
        // What takes long by itself: minutes of traffic, and millions of deliveries to fill the kernel.
        self.parts.retain(|part| !matches!(part, Part::Soak | Part::Neighbour));
        self.peers = vec![Peer::AlienAlert, Peer::Floor, Peer::Bun, Peer::Ws];
        self.sockets = vec![1_000];
        self.repeats = 2;
        self.deliveries = 200_000;
        self.joins = 2_000;
        self.many = 2_000;
        self.messages = 5_000;
        self.time = Duration::from_secs(1);
        // What is committed comes of a whole run.
        self.folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
    }

    pub fn has(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    /// Whether anything is asked that depends on the number of sockets.
    pub fn asks_of_each_number(&self) -> bool {
        self.parts.iter().any(|part| !matches!(part, Part::Joins | Part::Cores | Part::Soak))
    }

    /// The contenders, another one first each time.
    pub fn peers(&self, repeat: usize) -> impl Iterator<Item = Peer> + '_ {
        self.peers.iter().copied().cycle().skip(repeat % self.peers.len().max(1)).take(self.peers.len())
    }

    /// The same for one number of sockets: all where they are compared, and elsewhere those that show how a
    /// figure changes with it.
    pub fn peers_at(&self, repeat: usize, sockets: usize) -> impl Iterator<Item = Peer> + '_ {
        let all = self.compares(sockets);
        self.peers(repeat)
            .filter(move |peer| all || matches!(peer, Peer::AlienAlert | Peer::Floor | Peer::Bun))
    }

    /// Whose memory after a long time is a question.
    pub fn soaked(&self) -> impl Iterator<Item = Peer> + '_ {
        self.peers.iter().copied().filter(|peer| matches!(peer, Peer::AlienAlert | Peer::Bun))
    }

    /// Whether so many sockets can be open at once, beside the other files.
    pub fn has_room_for(&self, sockets: usize) -> bool {
        self.files.is_none_or(|files| sockets as u64 + OTHER_FILES <= files)
    }

    /// The number of sockets for what is asked at one number only.
    pub fn usual(&self) -> usize {
        if self.sockets.contains(&1_000) { 1_000 } else { self.sockets[0] }
    }

    /// How many events wait at a time, with so many sockets: where it is compared, every number.
    pub fn windows(&self, sockets: usize) -> &[usize] {
        if self.compares(sockets) { &self.windows } else { &self.windows[..1] }
    }

    fn compares(&self, sockets: usize) -> bool {
        sockets == self.usual() || sockets == self.many
    }

    pub fn rounds(&self, sockets: usize, window: usize) -> usize {
        let events = self.deliveries.div_ceil(sockets).max(if window == 1 { self.events } else { 0 });
        events.div_ceil(window)
    }
}

fn list<T>(parser: &mut lexopt::Parser, parse: impl Fn(&str) -> Result<T>) -> Result<Vec<T>> {
    parser.value()?.string()?.split(',').map(parse).collect()
}

fn number(text: &str) -> Result<usize> {
    text.parse().with_context(|| format!("{text:?} is no number"))
}
