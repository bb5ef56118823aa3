//! This VM's sockets, as the rest of the program sees them: a name and an outbox each.
//!
//! Plain data under its owner's lock. Handing an event to all sockets is one pass that puts the
//! same bytes into each outbox; the writing is done by each socket's own task.

mod outbox;

use std::collections::HashMap;
use std::sync::Arc;

pub use self::outbox::{Batch, Notice, Outbox};
use crate::frame::Frame;

#[derive(Default)]
pub struct Hub {
    sockets: HashMap<Arc<str>, Arc<Outbox>>,
}

impl Hub {
    pub fn join(&mut self, client_id: Arc<str>, outbox: Arc<Outbox>) {
        self.sockets.insert(client_id, outbox);
    }

    pub fn leave(&mut self, client_id: &str) {
        self.sockets.remove(client_id);
    }

    pub fn outbox(&self, client_id: &str) -> Option<&Arc<Outbox>> {
        self.sockets.get(client_id)
    }

    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// Hands `frame` to every socket but `except`; returns to how many.
    ///
    /// One that lags too far behind closes itself, alone.
    pub fn send_all(&self, frame: &Frame, except: Option<&str>) -> usize {
        // The sender of a broadcast is found once, not compared with at each socket.
        let except = except.and_then(|client_id| self.sockets.get(client_id)).map(Arc::as_ptr);
        self.sockets
            .values()
            .filter(|outbox| Some(Arc::as_ptr(outbox)) != except)
            .filter(|outbox| outbox.push(frame.clone()))
            .count()
    }

    /// Every socket's outbox, in no order.
    pub fn outboxes(&self) -> Vec<Arc<Outbox>> {
        self.sockets.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Buf as _;

    use super::*;
    use crate::wire::CloseCode;

    fn hub() -> (Hub, [Arc<Outbox>; 2]) {
        let mut hub = Hub::default();
        let outboxes = [Arc::new(Outbox::new(1_000)), Arc::new(Outbox::new(1_000))];
        for (name, outbox) in ["a", "b"].into_iter().zip(&outboxes) {
            hub.join(name.into(), Arc::clone(outbox));
        }
        (hub, outboxes)
    }

    #[tokio::test]
    async fn all_hear_but_the_excepted() {
        let (hub, [a, b]) = hub();
        assert_eq!(hub.send_all(&Frame::text(b"1"), None), 2);
        assert_eq!(hub.send_all(&Frame::text(b"2"), Some("a")), 1);
        assert_eq!(hub.send_all(&Frame::text(b"3"), Some("elsewhere")), 2);
        assert_eq!(a.take().await.unwrap().len(), 2);
        assert_eq!(b.take().await.unwrap().len(), 3);
    }

    #[tokio::test]
    async fn one_that_lags_is_closed_alone() {
        let (hub, [a, b]) = hub();
        let frame = Frame::text(&[b'x'; 300]);
        for _ in 0..3 {
            hub.send_all(&frame, None);
            let batch = a.take().await.unwrap();
            a.written(batch.len(), batch.remaining());
        }
        hub.send_all(&frame, None);
        assert_eq!(b.take().await.unwrap_err().code, CloseCode::SlowConsumer);
        assert_eq!(a.take().await.unwrap().len(), 1);
    }
}
