//! This VM's sockets, as the rest of the program sees them: a name and an outbox each.
//!
//! Plain data under its owner's lock. Handing an event to all sockets is one pass that puts the
//! same bytes into each outbox; the writing is done by each socket's own task.

mod outbox;

use std::collections::HashMap;
use std::sync::Arc;

pub use self::outbox::{Batch, Notice, Outbox};
use crate::channel::Channel;
use crate::clock;
use crate::frame::Frame;

#[derive(Default)]
pub struct Hub {
    sockets: HashMap<Arc<str>, Socket>,
    /// Who is in each; none is empty.
    channels: HashMap<Channel, HashMap<Arc<str>, Arc<Outbox>>>,
}

/// One socket, as others may know it.
#[derive(Clone)]
pub struct Socket {
    pub outbox: Arc<Outbox>,
    pub channels: Vec<Channel>,
    /// Who it is of, where that is known.
    pub user: Option<Arc<str>>,
    /// When it came, in ms since the epoch.
    pub opened_at: i64,
}

impl Socket {
    pub fn new(outbox: Arc<Outbox>, user: Option<Arc<str>>) -> Self {
        Self { outbox, channels: Vec::new(), user, opened_at: clock::now_millis() }
    }
}

impl Hub {
    pub fn join(&mut self, client_id: Arc<str>, socket: Socket) {
        self.sockets.insert(client_id, socket);
    }

    pub fn leave(&mut self, client_id: &str) {
        let Some(socket) = self.sockets.remove(client_id) else { return };
        for channel in socket.channels {
            self.leave_channel(client_id, &channel);
        }
    }

    /// Takes a socket into a channel; false when it is in `most` already.
    pub fn subscribe(&mut self, client_id: &Arc<str>, channel: &Channel, most: usize) -> bool {
        let Some(socket) = self.sockets.get_mut(client_id) else { return true };
        if socket.channels.contains(channel) {
            return true;
        }
        if socket.channels.len() >= most {
            return false;
        }
        socket.channels.push(channel.clone());
        let members = self.channels.entry(channel.clone()).or_default();
        members.insert(Arc::clone(client_id), Arc::clone(&socket.outbox));
        true
    }

    /// False when the socket is not in that channel.
    pub fn unsubscribe(&mut self, client_id: &str, channel: &Channel) -> bool {
        let Some(socket) = self.sockets.get_mut(client_id) else { return false };
        let Some(index) = socket.channels.iter().position(|other| other == channel) else { return false };
        socket.channels.swap_remove(index);
        self.leave_channel(client_id, channel);
        true
    }

    fn leave_channel(&mut self, client_id: &str, channel: &Channel) {
        if let Some(members) = self.channels.get_mut(channel) {
            members.remove(client_id);
            if members.is_empty() {
                self.channels.remove(channel);
            }
        }
    }

    /// The channels of a socket.
    pub fn channels(&self, client_id: &str) -> &[Channel] {
        self.sockets.get(client_id).map_or(&[], |socket| &socket.channels)
    }

    pub fn get(&self, client_id: &str) -> Option<&Socket> {
        self.sockets.get(client_id)
    }

    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// Hands `frame` to every socket, or to those of one channel, but not to `except`; returns to how
    /// many.
    ///
    /// One that lags too far behind closes itself, alone.
    pub fn send(&self, channel: Option<&Channel>, frame: &Frame, except: Option<&str>) -> usize {
        match channel {
            None => self.send_to(self.sockets.values().map(|socket| &socket.outbox), frame, except),
            Some(channel) => {
                self.channels.get(channel).map_or(0, |members| self.send_to(members.values(), frame, except))
            }
        }
    }

    fn send_to<'a>(
        &self,
        outboxes: impl Iterator<Item = &'a Arc<Outbox>>,
        frame: &Frame,
        except: Option<&str>,
    ) -> usize {
        // The sender of a broadcast is found once, not compared with at each socket.
        let except = except.and_then(|client_id| self.sockets.get(client_id));
        let except = except.map(|socket| Arc::as_ptr(&socket.outbox));
        outboxes
            .filter(|outbox| Some(Arc::as_ptr(outbox)) != except)
            .filter(|outbox| outbox.push(frame.clone()))
            .count()
    }

    /// Every socket's outbox, in no order.
    pub fn outboxes(&self) -> Vec<Arc<Outbox>> {
        self.sockets.values().map(|socket| Arc::clone(&socket.outbox)).collect()
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
            hub.join(name.into(), Socket::new(Arc::clone(outbox), None));
        }
        (hub, outboxes)
    }

    #[tokio::test]
    async fn all_hear_but_the_excepted() {
        let (hub, [a, b]) = hub();
        assert_eq!(hub.send(None, &Frame::text(b"1"), None), 2);
        assert_eq!(hub.send(None, &Frame::text(b"2"), Some("a")), 1);
        assert_eq!(hub.send(None, &Frame::text(b"3"), Some("elsewhere")), 2);
        assert_eq!(a.take().await.unwrap().len(), 2);
        assert_eq!(b.take().await.unwrap().len(), 3);
    }

    #[tokio::test]
    async fn a_channel_s_members_hear_it_and_nobody_else() {
        let (mut hub, [a, b]) = hub();
        let (name, channel) = (Arc::from("a"), Channel::new("c").unwrap());
        assert!(hub.subscribe(&name, &channel, 1) && hub.subscribe(&name, &channel, 1));
        assert!(!hub.subscribe(&name, &Channel::new("d").unwrap(), 1), "one is the most");
        assert_eq!(hub.send(Some(&channel), &Frame::text(b"1"), None), 1);
        assert_eq!(hub.send(Some(&channel), &Frame::text(b"2"), Some("a")), 0);
        assert_eq!(a.take().await.unwrap().len(), 1);
        assert_eq!(hub.channels("a"), std::slice::from_ref(&channel));
        assert!(hub.unsubscribe("a", &channel) && !hub.unsubscribe("a", &channel));
        assert!(hub.subscribe(&name, &channel, 1));
        hub.leave("a");
        assert_eq!(hub.send(Some(&channel), &Frame::text(b"3"), None), 0);
        assert!(hub.channels.is_empty(), "nothing is left of it");
        assert_eq!(hub.send(None, &Frame::text(b"4"), None), 1);
        assert_eq!(b.take().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn one_that_lags_is_closed_alone() {
        let (hub, [a, b]) = hub();
        let frame = Frame::text(&[b'x'; 300]);
        for _ in 0..3 {
            hub.send(None, &frame, None);
            let batch = a.take().await.unwrap();
            a.written(batch.len(), batch.remaining());
        }
        hub.send(None, &frame, None);
        assert_eq!(b.take().await.unwrap_err().code, CloseCode::SlowConsumer);
        assert_eq!(a.take().await.unwrap().len(), 1);
    }
}
