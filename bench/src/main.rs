//! Alien Alert beside its peers: each server on one core, the load on the other, in alternated runs.

mod figures;
mod load;
mod measure;
mod peer;
mod plan;
mod plot;
mod process;
mod report;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use figures::{Figures, Measure, Setting};
use load::Load;
use measure::memory::Memory;
use measure::{cores, direct, fanout, inbound, joins, neighbour};
use peer::{Peer, Server};
use plan::{Part, Plan};

/// Sockets on their way at a time while they are only to be there: few enough for every backlog.
const AT_ONCE: usize = 100;

fn main() -> Result<()> {
    let plan = Plan::from_arguments()?;
    let mut figures = Figures::default();
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: files, maximum: files },
    )?;
    for repeat in 0..plan.repeats {
        for &sockets in plan.sockets.iter().filter(|_| plan.asks_of_each_number()) {
            for peer in plan.peers_at(repeat, sockets) {
                run(&plan, peer, sockets, &mut figures)
                    .with_context(|| format!("{} with {sockets} sockets", peer.name()))?;
            }
        }
        if plan.has(Part::Joins) {
            for peer in plan.peers(repeat) {
                join(&plan, peer, &mut figures).with_context(|| format!("{}, joins", peer.name()))?;
            }
        }
        if plan.has(Part::Cores) {
            scale(&plan, &mut figures).context("two threads")?;
        }
        if plan.has(Part::Soak) && repeat + 1 == plan.repeats {
            soak_all(&plan, &mut figures)?;
        }
        report::write(&figures, repeat + 1, &plan.folder)?;
    }
    Ok(())
}

/// What can be asked of one process with so many sockets.
fn run(plan: &Plan, peer: Peer, sockets: usize, figures: &mut Figures) -> Result<()> {
    stay_on(&[peer::LOAD_CORE])?;
    let (server, mut load, before) = open(peer, peer::SERVER_CORE)?;
    load.connect(server.address, sockets, AT_ONCE)?;
    load.settle(Duration::from_millis(1500))?;
    let idle = Memory::now(server.pid)?;
    let mut add = |measure, window, value| {
        let setting = Setting { sockets, window };
        eprintln!("{:12} {measure:?} {sockets} {window}: {value:.3}", peer.name());
        figures.add(measure, setting, peer, value);
    };
    if plan.has(Part::Memory) {
        let (own, kernel) = idle.per_socket(before, sockets - 1);
        add(Measure::Memory, 0, own);
        add(Measure::Kernel, 0, kernel);
        add(Measure::Process, 0, idle.process as f64 / 1e6);
    }
    let mut latency = None;
    if plan.has(Part::Fanout) {
        for &window in plan.windows(sockets) {
            // The first one warms up: compilers at run time want to have seen it before.
            fanout::measure(&mut load, server.pid, window, plan.rounds(sockets, window).div_ceil(4))?;
            let shown = fanout::measure(&mut load, server.pid, window, plan.rounds(sockets, window))?;
            add(Measure::Cpu, window, shown.cpu);
            if window == 1 {
                add(Measure::LastP50, window, shown.last.value_at_quantile(0.5) as f64 / 1e6);
                add(Measure::LastP99, window, shown.last.value_at_quantile(0.99) as f64 / 1e6);
                add(Measure::AlwaysLast, window, shown.always_last);
                add(Measure::Bytes, window, shown.bytes);
                latency = Some(shown.any);
            }
        }
    }
    if plan.has(Part::Inbound) && sockets == plan.usual() && peer != Peer::Nchan {
        add(Measure::Inbound, 0, inbound::measure(&mut load, server.pid, plan.time)?);
    }
    if plan.has(Part::Direct) && peer == Peer::AlienAlert {
        add(Measure::Direct, 0, direct::measure(&mut load, server.pid, plan.messages)?);
    }
    if plan.has(Part::Neighbour) && sockets == plan.usual() && peer == Peer::AlienAlert {
        add(Measure::SlowNeighbour, 0, neighbour::measure(&mut load, server.pid, plan.rounds(sockets, 1))?);
    }
    latency.map_or(Ok(()), |latency| figures.add_latency(sockets, peer, latency))
}

fn join(plan: &Plan, peer: Peer, figures: &mut Figures) -> Result<()> {
    stay_on(&[peer::LOAD_CORE])?;
    let (server, ..) = open(peer, peer::SERVER_CORE)?;
    let joins = joins::measure(&server, plan.joins)?;
    let setting = Setting { sockets: plan.joins, window: 0 };
    eprintln!("{:12} joins {:.0}/s", peer.name(), joins.per_second);
    figures.add(Measure::Upgrades, setting, peer, joins.per_second);
    figures.add(Measure::SlowestUpgrade, setting, peer, joins.slowest.as_secs_f64() * 1e3);
    figures.add(Measure::Overflows, setting, peer, joins.overflows as f64);
    Ok(())
}

/// The product with one worker thread and with two; the load goes where there is room.
fn scale(plan: &Plan, figures: &mut Figures) -> Result<()> {
    stay_on(&[0, 1])?;
    let mut rates = Vec::new();
    for cores in ["0", "0,1"] {
        let (server, mut load, _) = open(Peer::AlienAlert, cores)?;
        load.connect(server.address, plan.many, AT_ONCE)?;
        load.settle(Duration::from_millis(500))?;
        rates.push(cores::measure(&mut load, server.pid, 1)?);
    }
    eprintln!("alien-alert  deliveries a second of one thread and of two: {rates:.0?}");
    let setting = Setting { sockets: plan.many, window: 1 };
    figures.add(Measure::Cores, setting, Peer::AlienAlert, rates[1] / rates[0]);
    Ok(())
}

/// All at the same time: it is memory that is measured, and there is plenty.
fn soak_all(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let soaked: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> =
            plan.soaked().map(|peer| (peer, scope.spawn(move || soak(plan, peer)))).collect();
        running.into_iter().map(|(peer, soak)| (peer, soak.join())).collect()
    });
    for (peer, memory) in soaked {
        let memory = memory.map_err(|_| anyhow::anyhow!("{} panicked, soaked", peer.name()))?;
        let memory = memory.with_context(|| format!("{}, soaked", peer.name()))?;
        figures.add(Measure::MemoryAfter, Setting { sockets: plan.many, window: 0 }, peer, memory);
    }
    Ok(())
}

/// Memory in kB a socket after a time of traffic, at ten events a second.
fn soak(plan: &Plan, peer: Peer) -> Result<f64> {
    stay_on(&[peer::LOAD_CORE])?;
    let (server, mut load, before) = open(peer, peer::SERVER_CORE)?;
    load.connect(server.address, plan.many, AT_ONCE)?;
    let started = Instant::now();
    while started.elapsed() < plan.soak {
        let alert = load.dialect().alerts(1);
        load.send(0, &alert)?;
        load.settle(Duration::from_millis(50))?;
        thread::sleep(Duration::from_millis(50));
    }
    load.settle(Duration::from_millis(1500))?;
    let (own, _) = Memory::now(server.pid)?.per_socket(before, plan.many - 1);
    eprintln!("{:12} after {:?} of traffic {own:.2} kB", peer.name(), plan.soak);
    Ok(own)
}

/// A server that has had one socket, so that what only the first one costs is no part of the rest.
fn open(peer: Peer, cores: &str) -> Result<(Server, Load, Memory)> {
    let server = peer.start(cores)?;
    let mut load = Load::new(server.dialect)?;
    load.connect(server.address, 1, 1)?;
    load.settle(Duration::from_millis(200))?;
    let memory = Memory::now(server.pid)?;
    Ok((server, load, memory))
}

/// Keeps this process on some cores.
fn stay_on(cores: &[usize]) -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    cores.iter().for_each(|&core| set.set(core));
    rustix::thread::sched_setaffinity(None, &set).context("the load can't be kept on its core")
}
