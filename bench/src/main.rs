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
use measure::fanout::Fanout;
use measure::memory::Memory;
use measure::{cores, direct, fanout, inbound, joins, neighbour};
use peer::{Peer, Server};
use plan::{Part, Plan};

/// Sockets that connect at a time where their joining is not measured: few enough for every backlog.
const AT_ONCE: usize = 100;

fn main() -> Result<()> {
    let plan = Plan::from_arguments()?;
    let mut figures = Figures::default();
    let files = plan.files;
    let most = rustix::process::Rlimit { current: files, maximum: files };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, most)?;
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

/// How often a contender and the floor take turns while one figure is taken, and the fewest rounds of a turn, or
/// deliveries. One more round comes first and is not counted: the other's turn has emptied the processor's
/// caches. A round of so many deliveries fills them with its first few.
const TURNS: usize = 6;
const ROUNDS: usize = 4;
const DELIVERIES: usize = 128_000;

/// A server and its sockets.
struct Stand {
    server: Server,
    load: Load,
}

/// What can be asked of one process with so many sockets.
fn run(plan: &Plan, peer: Peer, sockets: usize, figures: &mut Figures) -> Result<()> {
    stay_on(&[peer::LOAD_CORE])?;
    let (mut stand, before) = open(peer, peer::SERVER_CORE)?;
    fill(&mut stand, sockets)?;
    let idle = Memory::now(stand.server.pid)?;
    let mut add = |measure, window, value, floor: Option<f64>| {
        let setting = Setting { sockets, window };
        eprint!("{:12} {measure:?} {sockets} {window}: {value:.3}", peer.name());
        match floor {
            Some(floor) => {
                eprintln!(", {:.2} of the floor's", value / floor);
                figures.add_beside(measure, setting, peer, value, floor);
            }
            None => {
                eprintln!();
                figures.add(measure, setting, peer, value);
            }
        }
    };
    if plan.has(Part::Memory) {
        let (own, kernel) = idle.per_socket(before, sockets - 1);
        add(Measure::Memory, 0, own, None);
        add(Measure::Kernel, 0, kernel, None);
        add(Measure::Process, 0, idle.process as f64 / 1e6, None);
    }
    let mut stands = vec![stand];
    if peer != Peer::Floor && plan.has_room_for(2 * sockets) {
        let (mut floor, _) = open(Peer::Floor, peer::SERVER_CORE)?;
        fill(&mut floor, sockets)?;
        stands.push(floor);
    }
    let mut latency = None;
    if plan.has(Part::Fanout) {
        for &window in plan.windows(sockets) {
            let mut shown = fan_out(&mut stands, window, plan.rounds(sockets, window))?.into_iter();
            let own = shown.next().context("a contender")?;
            let floor = shown.next();
            let mut beside = |measure, figure: &dyn Fn(&Fanout) -> f64| {
                add(measure, window, figure(&own), floor.as_ref().map(figure));
            };
            beside(Measure::Cpu, &Fanout::cpu);
            if window == 1 {
                beside(Measure::LastP50, &|shown| shown.last(0.5));
                beside(Measure::LastP99, &|shown| shown.last(0.99));
                add(Measure::AlwaysLast, window, own.always_last(), None);
                add(Measure::Bytes, window, own.bytes(), None);
                latency = Some(own.any);
            }
        }
    }
    if plan.has(Part::Inbound) && sockets == plan.usual() && peer != Peer::Nchan {
        let time = plan.time / TURNS as u32;
        let shown = take_turns(&mut stands, TURNS, |Stand { server, load }| {
            inbound::measure(load, server.pid, time)
        })?;
        let mut medians = shown.iter().map(|turns| figures::summary(turns).map_or(0.0, |turns| turns.median));
        add(Measure::Inbound, 0, medians.next().context("a contender")?, medians.next());
    }
    let mut stand = stands.swap_remove(0);
    drop(stands);
    if plan.has(Part::Direct) && peer == Peer::AlienAlert {
        let direct = direct::measure(&mut stand.load, stand.server.pid, plan.messages)?;
        add(Measure::Direct, 0, direct, None);
    }
    if plan.has(Part::Neighbour) && sockets == plan.usual() && peer == Peer::AlienAlert {
        neighbour::deafen(&mut stand.load, stand.server.pid)?;
        let (mut without, _) = open(peer, peer::SERVER_CORE)?;
        fill(&mut without, sockets)?;
        let shown = fan_out(&mut [stand, without], 1, plan.rounds(sockets, 1))?;
        let p99 = |index: usize| shown[index].any.value_at_quantile(0.99) as f64;
        add(Measure::SlowNeighbour, 0, p99(0) / p99(1), None);
    }
    latency.map_or(Ok(()), |latency| figures.add_latency(sockets, peer, latency))
}

/// Connects sockets, and waits until nothing more comes.
fn fill(stand: &mut Stand, sockets: usize) -> Result<()> {
    stand.load.connect(stand.server.address, sockets, AT_ONCE)?;
    stand.load.settle(Duration::from_millis(1500))
}

/// What each shows in so many rounds, by turns.
fn fan_out(stands: &mut [Stand], window: usize, rounds: usize) -> Result<Vec<Fanout>> {
    let round = window * stands[0].load.len();
    let rounds = rounds.div_ceil(TURNS).max(ROUNDS.min(DELIVERIES.div_ceil(round)));
    let turn = |Stand { server, load }: &mut Stand| {
        if round < DELIVERIES {
            fanout::measure(load, server.pid, window, 1)?;
        }
        fanout::measure(load, server.pid, window, rounds)
    };
    // The first one warms up: compilers at run time want to have seen it before.
    take_turns(stands, 1, turn)?;
    take_turns(stands, TURNS, turn)?.into_iter().map(Fanout::sum).collect()
}

/// Does the same with each, one after the other, so many times: what else the machine does, it does to all.
fn take_turns<T>(
    stands: &mut [Stand],
    times: usize,
    mut turn: impl FnMut(&mut Stand) -> Result<T>,
) -> Result<Vec<Vec<T>>> {
    let mut taken: Vec<_> = stands.iter().map(|_| Vec::new()).collect();
    for _ in 0..times {
        for (stand, taken) in stands.iter_mut().zip(&mut taken) {
            taken.push(turn(stand)?);
        }
    }
    Ok(taken)
}

fn join(plan: &Plan, peer: Peer, figures: &mut Figures) -> Result<()> {
    stay_on(&[peer::LOAD_CORE])?;
    let (stand, _) = open(peer, peer::SERVER_CORE)?;
    let joins = joins::measure(&stand.server, plan.joins)?;
    let setting = Setting { sockets: plan.joins, window: 0 };
    eprintln!("{:12} joins {:.0}/s, {:.1} µs each", peer.name(), joins.per_second, joins.cpu);
    figures.add(Measure::Upgrades, setting, peer, joins.per_second);
    figures.add(Measure::UpgradeCpu, setting, peer, joins.cpu);
    figures.add(Measure::SlowestUpgrade, setting, peer, joins.slowest.as_secs_f64() * 1e3);
    figures.add(Measure::Overflows, setting, peer, joins.overflows as f64);
    Ok(())
}

/// The product with one worker thread and with two; the load goes where there is room.
fn scale(plan: &Plan, figures: &mut Figures) -> Result<()> {
    stay_on(&[0, 1])?;
    let mut rates = Vec::new();
    for cores in ["0", "0,1"] {
        let (Stand { server, mut load }, _) = open(Peer::AlienAlert, cores)?;
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
    let (Stand { server, mut load }, before) = open(peer, peer::SERVER_CORE)?;
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
fn open(peer: Peer, cores: &str) -> Result<(Stand, Memory)> {
    let server = peer.start(cores)?;
    let mut load = Load::new(server.dialect)?;
    load.connect(server.address, 1, 1)?;
    load.settle(Duration::from_millis(200))?;
    let memory = Memory::now(server.pid)?;
    Ok((Stand { server, load }, memory))
}

/// Keeps this process on some cores.
fn stay_on(cores: &[usize]) -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    cores.iter().for_each(|&core| set.set(core));
    rustix::thread::sched_setaffinity(None, &set).context("the load can't be kept on its core")
}
