//! What waits to be written to one socket, bounded by bytes.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::sync::{Notify, watch};

use crate::clock;
use crate::frame::Frame;
use crate::wire::{Close, CloseCode};

/// What a waiting frame takes beside its shared bytes, so that many small ones are bounded too.
const OVERHEAD: usize = 64;

/// A slow consumer that comes back at once would be slow again.
const SLOW_RETRY: Duration = Duration::from_secs(5);

pub struct Outbox {
    // A std mutex: held for a push or a swap, never over an await.
    state: Mutex<State>,
    /// Something waits. One permit is enough: the taker takes all.
    changed: Notify,
    limit: usize,
}

/// Becomes true when a frame is written; dropped before, it never will be.
pub type Notice = watch::Sender<bool>;

#[derive(Default)]
struct State {
    frames: VecDeque<Bytes>,
    /// Of `frames` and of what was taken but is not written yet.
    bytes: usize,
    close: Option<Close>,
    /// Few frames have somebody who waits for them.
    notices: Option<Box<Notices>>,
}

#[derive(Default)]
struct Notices {
    waiting: Vec<Notice>,
    taken: Vec<Notice>,
}

impl Outbox {
    pub fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), changed: Notify::new(), limit }
    }

    /// Adds a frame; false when the socket is being closed, or is now, being too far behind.
    pub fn push(&self, frame: Frame) -> bool {
        self.push_with(frame, None)
    }

    /// The same, for one who wants to know when it is written.
    pub fn push_noticed(&self, frame: Frame, written: Notice) -> bool {
        self.push_with(frame, Some(written))
    }

    fn push_with(&self, frame: Frame, written: Option<Notice>) -> bool {
        let bytes = frame.into_bytes();
        let size = bytes.len() + OVERHEAD;
        self.add(size, [bytes], written)
    }

    /// Adds one frame that is in parts. However long it is, it is taken when nothing else waits:
    /// what a channel holds is not the reader's fault.
    pub fn push_parts(&self, parts: Vec<Bytes>) -> bool {
        let size: usize = parts.iter().map(|part| part.len() + OVERHEAD).sum();
        self.add(size.min(self.limit / 2), parts, None)
    }

    fn add(&self, size: usize, parts: impl IntoIterator<Item = Bytes>, written: Option<Notice>) -> bool {
        let mut state = self.state();
        if state.close.is_some() {
            return false;
        }
        state.bytes += size;
        let fits = state.bytes <= self.limit;
        if fits {
            state.frames.extend(parts);
            if let Some(notice) = written {
                state.notices.get_or_insert_default().waiting.push(notice);
            }
        } else {
            state.frames = VecDeque::new();
            if let Some(notices) = &mut state.notices {
                notices.waiting.clear();
            }
            let wait = SLOW_RETRY / 2 + clock::random_part(SLOW_RETRY / 2);
            state.close = Some(Close::come_back(CloseCode::SlowConsumer, wait.as_millis()));
        }
        drop(state);
        self.changed.notify_one();
        fits
    }

    /// Ends the socket after what waits. The first reason stays.
    pub fn close(&self, close: Close) {
        self.state().close.get_or_insert(close);
        self.changed.notify_one();
    }

    /// All that waits. Cancel-safe.
    ///
    /// # Errors
    /// The reason to close, when nothing waits any more.
    pub async fn take(&self) -> Result<Batch, Close> {
        loop {
            {
                let mut state = self.state();
                if !state.frames.is_empty() {
                    if let Some(notices) = &mut state.notices {
                        let Notices { waiting, taken } = &mut **notices;
                        taken.append(waiting);
                    }
                    // The queue's memory goes with its frames: an idle socket holds none.
                    return Ok(Batch { chunks: mem::take(&mut state.frames) });
                }
                if let Some(close) = &state.close {
                    return Err(close.clone());
                }
            }
            self.changed.notified().await;
        }
    }

    /// Ready when the socket is to be closed, whatever else waits. Cancel-safe.
    pub async fn closing(&self) -> Close {
        loop {
            if let Some(close) = &self.state().close {
                return close.clone();
            }
            self.changed.notified().await;
        }
    }

    /// Gives back the room of `bytes` in `frames` taken before, all that was taken.
    pub fn written(&self, frames: usize, bytes: usize) {
        let mut state = self.state();
        state.bytes = state.bytes.saturating_sub(bytes + frames * OVERHEAD);
        if let Some(notices) = &mut state.notices {
            for notice in notices.taken.drain(..) {
                notice.send_replace(true);
            }
            if notices.waiting.is_empty() {
                state.notices = None;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes on their way out, written together as far as the kernel takes them.
#[derive(Debug, Default)]
pub struct Batch {
    chunks: VecDeque<Bytes>,
}

impl Batch {
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}

impl From<Vec<Bytes>> for Batch {
    fn from(chunks: Vec<Bytes>) -> Self {
        Self { chunks: chunks.into() }
    }
}

impl Buf for Batch {
    fn remaining(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }

    fn has_remaining(&self) -> bool {
        !self.chunks.is_empty()
    }

    fn chunk(&self) -> &[u8] {
        self.chunks.front().map_or(&[], |chunk| chunk)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let pairs = slices.iter_mut().zip(&self.chunks);
        pairs.map(|(slice, chunk)| *slice = IoSlice::new(chunk)).count()
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(first) = self.chunks.front_mut() {
            if first.len() > count {
                first.advance(count);
                return;
            }
            count -= first.len();
            self.chunks.pop_front();
        }
        debug_assert_eq!(count, 0, "advanced beyond the end");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_taken_counts_until_it_is_written() {
        let outbox = Outbox::new(3 * (12 + OVERHEAD));
        let frame = Frame::text(b"0123456789");
        assert!(outbox.push(frame.clone()) && outbox.push(frame.clone()));
        let batch = outbox.take().await.unwrap();
        assert_eq!((batch.len(), batch.remaining()), (2, 24));
        assert!(outbox.push(frame.clone()));
        outbox.written(2, 24);
        assert!(outbox.push(frame.clone()) && outbox.push(frame.clone()));
        assert!(!outbox.push(frame), "the fourth is one too many");
        assert_eq!(outbox.take().await.unwrap_err().code, CloseCode::SlowConsumer);
    }

    #[tokio::test]
    async fn a_close_comes_after_what_waits_and_only_once() {
        let outbox = Outbox::new(1_000);
        outbox.push(Frame::text(b"last"));
        outbox.close(Close::new(CloseCode::Restart, "first"));
        outbox.close(Close::new(CloseCode::Idle, "second"));
        assert!(!outbox.push(Frame::text(b"late")));
        assert_eq!(outbox.take().await.unwrap().len(), 1);
        assert_eq!(outbox.take().await.unwrap_err().reason, "first");
        assert_eq!(outbox.closing().await.reason, "first");
    }

    #[tokio::test]
    async fn a_notice_comes_with_the_write_and_not_before() {
        let outbox = Outbox::new(1_000);
        let [first, second] = [(); 2].map(|()| watch::Sender::new(false));
        let (mut told_first, mut told_second) = (first.subscribe(), second.subscribe());
        outbox.push_noticed(Frame::text(b"1"), first);
        let batch = outbox.take().await.unwrap();
        outbox.push_noticed(Frame::text(b"2"), second);
        assert!(!*told_first.borrow());
        outbox.written(batch.len(), batch.remaining());
        assert!(*told_first.borrow_and_update() && !*told_second.borrow());
        drop(outbox);
        assert!(told_first.wait_for(|written| *written).await.is_ok());
        assert!(told_second.wait_for(|written| *written).await.is_err());
    }

    #[test]
    fn a_batch_advances_over_its_chunks() {
        let mut batch = Batch::from(vec![Bytes::from_static(b"abc"), Bytes::from_static(b"de")]);
        let mut slices = [IoSlice::new(&[]); 4];
        assert_eq!(batch.chunks_vectored(&mut slices), 2);
        batch.advance(4);
        assert_eq!(batch.chunk(), b"e");
        batch.advance(1);
        assert!(!batch.has_remaining());
    }
}
