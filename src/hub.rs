//! Who is here: this VM's sockets by name, their channels, and the [`shard`](crate::shard) of each.
//!
//! Plain data under its owner's lock. Handing an event to all sockets is one command to each shard,
//! however many sockets there are; the writing is done there.

use std::collections::HashMap;
use std::sync::Arc;

use crate::channel::Channel;
use crate::clock;
use crate::frame::Frame;
use crate::metrics::Stopwatch;
use crate::shard::{Command, Mailbox, Outbox};

/// What the memberships in channels may take, of all sockets together; and each beside the channel's name,
/// where it is the only one in it.
const MOST_MEMBERSHIPS: usize = 24 << 20;
const MEMBERSHIP: usize = 320;

/// Why a socket can't enter a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crowded {
    /// It is in as many as it may.
    Socket,
    /// All together take as much as they may.
    Vm,
}

pub struct Hub {
    shards: Arc<[Mailbox]>,
    sockets: HashMap<Arc<str>, Socket>,
    /// How many are in each shard, in all and of each channel.
    loads: Box<[usize]>,
    /// None is empty.
    channels: HashMap<Channel, Box<[usize]>>,
    /// Of all memberships, in bytes.
    memberships: usize,
}

/// One socket, as others may know it.
#[derive(Clone)]
pub struct Socket {
    pub outbox: Outbox,
    shard: usize,
    pub channels: Vec<Channel>,
    /// Who it is of, where that is known.
    pub user: Option<Arc<str>>,
    /// When it came, in ms since the epoch.
    pub opened_at: i64,
}

impl Hub {
    pub fn new(shards: Arc<[Mailbox]>) -> Self {
        let loads = vec![0; shards.len()].into();
        Self { shards, sockets: HashMap::new(), loads, channels: HashMap::new(), memberships: 0 }
    }

    /// Takes a socket into the shard that has the least.
    pub fn join(&mut self, client_id: Arc<str>, user: Option<Arc<str>>) -> Outbox {
        let shard = (0..self.loads.len()).min_by_key(|shard| self.loads[*shard]).unwrap_or(0);
        let outbox = Outbox::new(self.shards[shard].clone());
        let socket = Socket {
            outbox: outbox.clone(),
            shard,
            channels: Vec::new(),
            user,
            opened_at: clock::now_millis(),
        };
        self.loads[shard] += 1;
        self.sockets.insert(client_id, socket);
        outbox
    }

    pub fn leave(&mut self, client_id: &str) {
        let Some(socket) = self.sockets.remove(client_id) else { return };
        self.loads[socket.shard] -= 1;
        for channel in &socket.channels {
            self.leave_channel(&socket.outbox, socket.shard, channel);
        }
    }

    /// Takes a socket into a channel, of which it may be in `most`.
    ///
    /// # Errors
    /// There is no room.
    pub fn subscribe(&mut self, client_id: &str, channel: &Channel, most: usize) -> Result<(), Crowded> {
        let Some(socket) = self.sockets.get_mut(client_id) else { return Ok(()) };
        if socket.channels.contains(channel) {
            return Ok(());
        }
        if socket.channels.len() >= most {
            return Err(Crowded::Socket);
        }
        if self.memberships + membership(channel) > MOST_MEMBERSHIPS {
            return Err(Crowded::Vm);
        }
        self.memberships += membership(channel);
        socket.channels.push(channel.clone());
        let members = self.channels.entry(channel.clone());
        members.or_insert_with(|| vec![0; self.loads.len()].into())[socket.shard] += 1;
        socket.outbox.mailbox.send(Command::Enter(socket.outbox.id, channel.clone()));
        Ok(())
    }

    /// False when the socket is not in that channel.
    pub fn unsubscribe(&mut self, client_id: &str, channel: &Channel) -> bool {
        let Some(socket) = self.sockets.get_mut(client_id) else { return false };
        let Some(index) = socket.channels.iter().position(|other| other == channel) else { return false };
        socket.channels.swap_remove(index);
        let (outbox, shard) = (socket.outbox.clone(), socket.shard);
        self.leave_channel(&outbox, shard, channel);
        true
    }

    fn leave_channel(&mut self, outbox: &Outbox, shard: usize, channel: &Channel) {
        self.memberships -= membership(channel);
        outbox.mailbox.send(Command::Exit(outbox.id, channel.clone()));
        if let Some(members) = self.channels.get_mut(channel) {
            members[shard] -= 1;
            if members.iter().all(|count| *count == 0) {
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
    pub fn send(&self, channel: Option<&Channel>, frame: &Frame, except: Option<&str>) -> usize {
        let counts = match channel {
            None => &self.loads,
            Some(channel) => match self.channels.get(channel) {
                Some(members) => members,
                None => return 0,
            },
        };
        // The sender of a broadcast is found once, not compared with at each socket.
        let except = except.and_then(|client_id| self.sockets.get(client_id));
        for (shard, mailbox) in self.shards.iter().enumerate().filter(|(shard, _)| counts[*shard] > 0) {
            let except = except.filter(|socket| socket.shard == shard).map(|socket| socket.outbox.id);
            mailbox.tell(channel.cloned(), except, frame.clone());
        }
        let hears = |socket: &Socket| channel.is_none_or(|channel| socket.channels.contains(channel));
        counts.iter().sum::<usize>() - usize::from(except.is_some_and(hears))
    }

    /// Stops `watch` when all that was sent to these sockets so far is written, as far as the system takes
    /// it; never, if there are none.
    pub fn time(&self, channel: Option<&Channel>, watch: Stopwatch) {
        let counts = channel.map_or(Some(&self.loads), |channel| self.channels.get(channel));
        let counts = counts.into_iter().flat_map(|counts| counts.iter());
        let mut shards =
            self.shards.iter().zip(counts).filter_map(|(shard, count)| (*count > 0).then_some(shard));
        let Some(one) = shards.next() else { return };
        for other in shards {
            other.send(Command::Time(watch.clone()));
        }
        // None is kept here: the last one to be stopped is to be one of theirs.
        one.send(Command::Time(watch));
    }

    /// Every socket's outbox, in no order.
    pub fn outboxes(&self) -> Vec<Outbox> {
        self.sockets.values().map(|socket| socket.outbox.clone()).collect()
    }
}

fn membership(channel: &Channel) -> usize {
    MEMBERSHIP + channel.as_str().len()
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::histogram::Histogram;

    use super::*;

    /// What a shard of two has been told, by the frames' last byte and the excepted one.
    fn told(mailbox: &Mailbox) -> Vec<(u8, bool)> {
        let commands = mailbox.waiting();
        let tells = commands.iter().filter_map(|command| match command {
            Command::Tell(audience, frame) => Some((frame, audience.except.is_some())),
            _ => None,
        });
        tells.map(|(frame, except)| (*frame.bytes().last().unwrap(), except)).collect()
    }

    fn hub() -> (Hub, [Mailbox; 2]) {
        let shards = [Mailbox::default(), Mailbox::default()];
        let mut hub = Hub::new(Arc::new(shards.clone()));
        for name in ["a", "b", "c"] {
            hub.join(name.into(), None);
        }
        (hub, shards)
    }

    #[test]
    fn all_hear_but_the_excepted() {
        assert!(Hub::new(Arc::new([])).is_empty());
        let (hub, [first, second]) = hub();
        assert_eq!(*hub.loads, [2, 1], "spread over the shards");
        assert_eq!((hub.len(), hub.outboxes().len(), hub.is_empty()), (3, 3, false));
        assert!(hub.get("a").is_some() && hub.get("elsewhere").is_none());
        assert_eq!(hub.send(None, &Frame::text(b"1"), None), 3);
        assert_eq!(hub.send(None, &Frame::text(b"2"), Some("b")), 2);
        assert_eq!(hub.send(None, &Frame::text(b"3"), Some("elsewhere")), 3);
        assert_eq!(told(&first), [(b'1', false), (b'2', false), (b'3', false)]);
        assert_eq!(told(&second), [(b'1', false), (b'2', true), (b'3', false)]);
    }

    #[test]
    fn memberships_are_bounded_for_all_together_and_given_back() {
        const EACH: usize = 64;
        let (mut hub, _shards) = hub();
        // As long as makes a round number of them.
        let channel = |number: usize| Channel::new(&format!("{number:064}")).unwrap();
        let most = MOST_MEMBERSHIPS / (MEMBERSHIP + 64);
        for number in 0..most {
            let name = (number / EACH).to_string();
            if number % EACH == 0 {
                hub.join(name.clone().into(), None);
            }
            assert_eq!(hub.subscribe(&name, &channel(number), EACH), Ok(()), "{number}");
        }
        assert_eq!(hub.subscribe("b", &channel(0), EACH), Err(Crowded::Vm));
        assert!(hub.unsubscribe("0", &channel(0)));
        assert_eq!(hub.subscribe("b", &channel(1), EACH), Ok(()));
        assert_eq!(hub.subscribe("c", &channel(1), EACH), Err(Crowded::Vm));
        hub.leave("1");
        for number in 0..EACH {
            assert_eq!(hub.subscribe("c", &channel(number), EACH), Ok(()), "{number}");
        }
        assert_eq!(hub.subscribe("a", &channel(1), EACH), Err(Crowded::Vm));
    }

    #[test]
    fn a_watch_goes_to_each_shard_with_somebody_who_hears() {
        let (mut hub, shards) = hub();
        let [channel, empty] = ["c", "d"].map(|name| Channel::new(name).unwrap());
        hub.subscribe("b", &channel, 1).unwrap();
        for (channel, expected) in [(None, [1, 1]), (Some(&channel), [0, 1]), (Some(&empty), [0, 0])] {
            hub.time(channel, Stopwatch::since(0, &Histogram::new([1.0])));
            let watches = |shard: &Mailbox| {
                shard.waiting().iter().filter(|command| matches!(command, Command::Time(_))).count()
            };
            assert_eq!(shards.each_ref().map(watches), expected, "{channel:?}");
        }
    }

    #[test]
    fn a_channel_s_shards_hear_it_and_no_others() {
        let (mut hub, [first, second]) = hub();
        let channel = Channel::new("c").unwrap();
        assert_eq!([(); 2].map(|()| hub.subscribe("b", &channel, 1)), [Ok(()); 2]);
        let full = hub.subscribe("b", &Channel::new("d").unwrap(), 1);
        assert_eq!(full, Err(Crowded::Socket), "one is the most");
        assert_eq!(hub.send(Some(&channel), &Frame::text(b"1"), None), 1);
        assert_eq!(hub.send(Some(&channel), &Frame::text(b"2"), Some("b")), 0);
        assert_eq!(hub.send(Some(&channel), &Frame::text(b"3"), Some("a")), 1, "a is not in it");
        assert_eq!(told(&first), []);
        assert_eq!(told(&second), [(b'1', false), (b'2', true), (b'3', false)]);
        assert_eq!(hub.channels("b"), std::slice::from_ref(&channel));
        assert!(hub.unsubscribe("b", &channel) && !hub.unsubscribe("b", &channel));
        hub.subscribe("b", &channel, 1).unwrap();
        hub.leave("b");
        assert_eq!(hub.send(Some(&channel), &Frame::text(b"4"), None), 0);
        assert!(hub.channels.is_empty(), "nothing is left of it");
        assert_eq!(*hub.loads, [2, 0]);
    }
}
