//! When to end: SIGINT (Fly's default, and Ctrl-C) and SIGTERM alike; a second one ends at once.

use std::io;
use std::process;

use tokio::select;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The process's signals, caught from here on.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// # Errors
    /// The system does not let this process catch them.
    pub fn catch() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Ready at the first signal. From then on, the next one ends the process.
    pub async fn shutdown(mut self) {
        self.next().await;
        tokio::spawn(async move {
            self.next().await;
            process::exit(1);
        });
    }

    async fn next(&mut self) {
        select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
