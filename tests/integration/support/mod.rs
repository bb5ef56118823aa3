//! Real parts for the tests: VM processes, Google's emulator, sockets and a browser.

pub mod backend;
pub mod browser;
pub mod certificate;
pub mod client;
#[cfg(feature = "otlp")]
pub mod collector;
pub mod crowd;
pub mod devtools;
pub mod document;
pub mod emulator;
pub mod gate;
pub mod google;
pub mod group;
pub mod http;
pub mod listener;
pub mod network;
pub mod pipe;
pub mod prometheus;
pub mod proxy;
pub mod token;
pub mod vm;

use std::future::Future;
use std::time::Duration;

/// Longer than anything takes on a slow and busy machine; reached only by what would never come.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for what must come.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    within_for(PATIENCE, what, future).await
}

/// The same for what has a bound of its own.
pub async fn within_for<T>(patience: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(patience, future).await {
        Ok(value) => value,
        Err(_) => panic!("no {what} within {patience:?}"),
    }
}

/// Asks again and again until `probe` answers.
pub async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    within(what, async {
        loop {
            if let Some(value) = probe().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}
