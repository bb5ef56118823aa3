//! One event to many sockets: what the server spends on each delivery, and when the last one has it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;

use crate::figures;
use crate::load::{Load, Word};
use crate::process;

/// A round whose events have not all come by then has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// A slice has so many deliveries at least: some 50 ms of processor time.
const SLICE: usize = 16_000;

/// What one run of rounds has shown.
pub struct Fanout {
    /// Processor time of the server for each delivery, in µs, by slice.
    slices: Vec<f64>,
    /// From the publish to the last socket's having an event, in ns.
    last: Histogram<u64>,
    /// The same to any socket.
    pub any: Histogram<u64>,
    /// By socket, for how many events it was in the last tenth.
    late: Vec<u32>,
    events: u32,
    /// Of all that was delivered, frames not counted.
    bytes: usize,
    deliveries: usize,
}

impl Fanout {
    /// The median of the slices, so that what else the machine does now and then does not show.
    pub fn cpu(&self) -> f64 {
        figures::summary(&self.slices).map_or(0.0, |slices| slices.median)
    }

    /// From the publish to the last socket, in ms.
    pub fn last(&self, quantile: f64) -> f64 {
        self.last.value_at_quantile(quantile) as f64 / 1e6
    }

    /// For what part of the events the unluckiest socket was in the last tenth: a tenth is fair, 1 is always
    /// the same ones.
    pub fn always_last(&self) -> f64 {
        f64::from(self.late.iter().copied().max().unwrap_or_default()) / f64::from(self.events)
    }

    /// The mean event, in bytes.
    pub fn bytes(&self) -> f64 {
        self.bytes as f64 / self.deliveries as f64
    }

    /// What several runs with the same sockets have shown together.
    pub fn sum(runs: Vec<Self>) -> Result<Self> {
        let mut runs = runs.into_iter();
        let mut sum = runs.next().context("a run")?;
        runs.try_for_each(|run| sum.add(run))?;
        Ok(sum)
    }

    fn add(&mut self, other: Self) -> Result<()> {
        self.slices.extend(other.slices);
        self.last.add(other.last)?;
        self.any.add(other.any)?;
        self.late.iter_mut().zip(other.late).for_each(|(late, other)| *late += other);
        self.events += other.events;
        self.bytes += other.bytes;
        self.deliveries += other.deliveries;
        Ok(())
    }
}

/// Publishes `window` events at once through one socket and waits until every socket has heard all of
/// them, `rounds` times.
pub fn measure(load: &mut Load, pid: u32, window: usize, rounds: usize) -> Result<Fanout> {
    let sockets = (0..load.len()).filter(|&socket| load.reads(socket)).count();
    let mut heard = vec![0; load.len()];
    let mut order = vec![0; window];
    let mut late = vec![0u32; load.len()];
    let mut last = Histogram::new_with_bounds(1_000, PATIENCE.as_nanos() as u64, 3)?;
    let mut any = last.clone();
    let mut bytes = 0;
    let mut slices = Vec::new();
    let mut slice = 0;
    let mut before = process::cpu(pid)?;
    for _ in 0..rounds {
        let alerts = load.dialect().alerts(window);
        heard.fill(0);
        order.fill(0);
        let mut missing = sockets * window;
        let published = Instant::now();
        load.send(0, &alerts)?;
        while missing > 0 {
            load.turn(Some(Duration::ZERO), |message| {
                if message.word != Word::Alert {
                    return;
                }
                let event = heard[message.socket];
                heard[message.socket] += 1;
                missing = missing.saturating_sub(1);
                bytes += message.text.len();
                let Some(position) = order.get_mut(event) else { return };
                *position += 1;
                let took = (message.at - published).as_nanos() as u64;
                any.saturating_record(took);
                if *position == sockets {
                    last.saturating_record(took);
                }
                if *position > sockets - sockets / 10 {
                    late[message.socket] += 1;
                }
            })?;
            if published.elapsed() > PATIENCE {
                bail!("{missing} of {} deliveries did not come", sockets * window);
            }
        }
        if let Some(wrong) = (0..load.len()).find(|&socket| load.reads(socket) && heard[socket] != window) {
            bail!("socket {wrong} has heard {} of {window} events", heard[wrong]);
        }
        slice += sockets * window;
        if slice >= SLICE {
            // The server may still be at what comes after the last write.
            load.settle(Duration::from_millis(4))?;
            let now = process::cpu(pid)?;
            slices.push(now.saturating_sub(before).as_nanos() as f64 / 1e3 / slice as f64);
            (before, slice) = (now, 0);
        }
    }
    let events = window * rounds;
    Ok(Fanout { slices, last, any, late, events: events as u32, bytes, deliveries: sockets * events })
}
