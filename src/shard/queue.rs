//! What threads share of a shard: the commands that wait for it, and how far it is behind.
//!
//! The one place where they meet by more than a plain lock: one task that sleeps must be woken for what
//! comes, and is not woken for each. So it is small, knows nothing of what waits in it, and is run by
//! `interleavings` in every order that threads can have.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem;
use std::task::Poll;

use super::sync::{AtomicU64, AtomicWaker, Mutex, MutexGuard, Ordering, PoisonError};

pub struct Queue<T> {
    // Held for a push or a swap, never over an await.
    waiting: Mutex<VecDeque<T>>,
    filled: AtomicWaker,
    /// Bytes of events that not every socket was offered yet. Relaxed: the wakers order what is waited for.
    behind: AtomicU64,
    caught_up: AtomicWaker,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            filled: AtomicWaker::default(),
            behind: AtomicU64::default(),
            caught_up: AtomicWaker::default(),
        }
    }
}

impl<T> Queue<T> {
    pub fn push(&self, item: T) {
        let mut waiting = self.lock();
        waiting.push_back(item);
        let was_empty = waiting.len() == 1;
        drop(waiting);
        if was_empty {
            self.filled.wake();
        }
    }

    /// The same for an event, with its bytes.
    pub fn push_event(&self, item: T, bytes: u64) {
        self.behind.fetch_add(bytes, Ordering::Relaxed);
        self.push(item);
    }

    /// Waits until less than `most` is behind. Cancel-safe; for one task at a time, the last to wait.
    pub async fn room(&self, most: u64) {
        poll_fn(|context| {
            self.caught_up.register(context.waker());
            if self.behind() < most { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// All that waits, into `items`, which is empty and gives its room back.
    pub fn take(&self, items: &mut VecDeque<T>) {
        mem::swap(&mut *self.lock(), items);
    }

    /// Waits until something waits. Cancel-safe; for one task at a time, the last to wait.
    pub async fn filled(&self) {
        poll_fn(|context| {
            self.filled.register(context.waker());
            if self.is_empty() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    /// Every socket was offered `bytes` more of the events.
    pub fn offered(&self, bytes: u64) {
        self.behind.fetch_sub(bytes, Ordering::Relaxed);
        self.caught_up.wake();
    }

    pub fn behind(&self) -> u64 {
        self.behind.load(Ordering::Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
