//! What threads meet by in [`queue`](super::queue). A module of its own, so that the test `interleavings` can
//! put loom's in its place.

pub use std::sync::atomic::{AtomicU64, Ordering};
pub use std::sync::{Mutex, MutexGuard, PoisonError};

pub use futures_util::task::AtomicWaker;
