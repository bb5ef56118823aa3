//! What time asks of the relay, beside what comes: holes to look for, a fleet and receipts to tell of, and
//! figures when Prometheus wants them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;
use tracing::warn;

use super::Relay;
use crate::clock::{self, micros};
use crate::connections::to_instance;
use crate::event::Told;
use crate::fleet::Change;
use crate::health::Phase;
use crate::history::{Hole, Missing};
use crate::ledger::Overdue;
use crate::logs;
use crate::metrics::Format;
use crate::wire::reply;

/// Bytes a second that a VM may spend on telling its sockets the fleet's figures, and who is in it: in a
/// large fleet the frame is long, and there is news at every moment.
const FIGURES_BYTES: f64 = (512 << 10) as f64;
const MEMBERS_BYTES: f64 = (8 << 20) as f64;

/// At least so long between two fleet frames.
const FLEET_SPACING: Duration = Duration::from_secs(1);

/// In beacon intervals: others take a silent VM for dead after two and a half, and tell within two more
/// what they heard of it.
const SILENT: f64 = 4.5;

/// How to look for what did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// Wind the subscription back.
    Again,
    /// The same over a new connection and subscription.
    Anew,
}

impl Relay {
    /// Sees to holes in what was heard; how the bus is to bring it again, if it is.
    pub fn tend_ledger(&self) -> Option<Search> {
        let mut state = self.state();
        let overdue = state.ledger.overdue();
        if overdue.seek > 0 {
            self.metrics.holes.inc_by(overdue.seek as u64);
            if let Some(kept_back) = self.complaints.pass() {
                let holes = overdue.seek;
                warn!(holes, kept_back, "events of other VMs have not come; asking the topic again");
            }
        }
        if let Some((events, (from, to))) = overdue.lost {
            self.metrics.lost.inc_by(events);
            if let Some(kept_back) = self.complaints.pass() {
                warn!(events, from, to, kept_back, "events of other VMs did not come and are given up");
            }
            // Who is connected is told as well as who comes later.
            let cursor = self.cursor(&state, state.latest.unwrap_or(to));
            let hole = Hole { reason: Missing::Gap, from: Some(from), to };
            state.hub.send(None, &reply::gap(hole, cursor), None);
        }
        // Once over it is not looked at for each event any more, and does not come again.
        if state.doubt.is_some() && !self.is_doubted(&state) {
            state.doubt = None;
        }
        state.ledger.forget(self.memory_begins());
        let silent = self.beacon_interval(&state.fleet).mul_f64(SILENT);
        state.ledger.silence(clock::now_micros() - micros(silent));
        if silent > self.config.history.age && !state.outgrown {
            state.outgrown = true;
            let (vms, history_seconds, enough) =
                (state.fleet.len(), self.config.history.age.as_secs(), silent.as_secs() + 1);
            warn!(
                vms,
                history_seconds,
                "after a VM is killed, catch-up will be told to be incomplete for a while: in a fleet of this \
                 size set HISTORY_SECONDS to {enough} or more"
            );
        }
        if overdue.anew > 0
            && let Some(kept_back) = self.complaints.pass()
        {
            let holes = overdue.anew;
            warn!(holes, kept_back, "they still have not come; asking over a new connection");
        }
        match overdue {
            Overdue { anew: 1.., .. } => Some(Search::Anew),
            Overdue { seek: 1.., .. } => Some(Search::Again),
            _ => None,
        }
    }

    /// Forgets VMs that fell silent, and tells the sockets what changed in the fleet.
    pub fn tend_fleet(&self) {
        let mut state = self.state();
        if state.fleet.expire() {
            state.fleet_told_as = None;
            state.fleet_news = Change::Members;
            self.metrics.fleet.set(state.fleet.len() as i64);
        }
        for gone in state.fleet.take_gone(self.identity().instance()) {
            self.lifecycle.gone(&gone);
        }
        let rate = match state.fleet_news {
            Change::Nothing => return,
            Change::Figures => FIGURES_BYTES,
            Change::Members => MEMBERS_BYTES,
        };
        let spacing = FLEET_SPACING.max(Duration::from_secs_f64(state.fleet_took / rate));
        if state.fleet_told.elapsed() < spacing {
            return;
        }
        state.fleet_told = Instant::now();
        state.fleet_news = Change::Nothing;
        let frame = state.fleet_frame();
        let sockets = state.hub.send(None, &frame, None);
        state.fleet_took = (frame.bytes().len() * sockets) as f64;
    }

    /// Tells senders and other VMs where alerts were heard.
    pub fn tend_receipts(&self) {
        let mut state = self.state();
        state.receipts.tell();
        let fleet = state.fleet.len();
        let due = state.receipts.due(fleet);
        drop(state);
        for (instance, receipts) in due {
            self.metrics.receipts.inc();
            // Tried once: without it the sender hears of fewer.
            drop(self.bus.publish(to_instance(&instance, Told::Receipts(receipts))));
        }
    }

    /// All figures as of now, for Prometheus.
    pub fn figures(&self, format: Format) -> String {
        let metrics = &self.metrics;
        metrics.ready.set((self.health.phase() == Phase::Ready).into());
        let waiting = self.publishing.waiting();
        metrics.waiting_events.set(waiting.events as i64);
        metrics.waiting_bytes.set(waiting.bytes as i64);
        metrics.waiting_age.set(waiting.age.as_secs_f64());
        metrics.log_lines_dropped.inner().store(logs::dropped(), Ordering::Relaxed);
        if let Ok(runtime) = Handle::try_current() {
            metrics.tasks.set(runtime.metrics().num_alive_tasks() as i64);
        }
        {
            let state = self.state();
            metrics.history_events.set(state.history.len() as i64);
            metrics.history_bytes.set(state.history.bytes() as i64);
        }
        metrics.text(format)
    }
}
