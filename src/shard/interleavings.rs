//! The [`queue`] under loom: a few senders and the one receiver, in every order that threads and memory can
//! have; and two of them behind one lock, as the relay has it, when a socket joins while events are told.
//!
//! loom, and not schedules by chance: what is shared is small enough to try all, and loom knows what
//! `Relaxed` allows, which no run on x86-64 shows. A wake-up that is missed is a deadlock, which it tells of.
//! The file is compiled once more here, with loom's types in place of [`sync`](super::sync)'s: the program
//! carries nothing of it, and these are tests like others.

use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::pin;
use std::task::{Context, Waker};

use loom::future::block_on;
use loom::model::Builder;
use loom::sync::{Arc, Mutex};
use loom::thread::{self, JoinHandle};

use self::queue::Queue;

mod sync {
    pub use std::sync::PoisonError;
    use std::task::Waker;

    pub use loom::sync::atomic::{AtomicU64, Ordering};
    pub use loom::sync::{Mutex, MutexGuard};

    #[derive(Default)]
    pub struct AtomicWaker(loom::future::AtomicWaker);

    impl AtomicWaker {
        pub fn register(&self, waker: &Waker) {
            self.0.register_by_ref(waker);
        }

        pub fn wake(&self) {
            self.0.wake();
        }
    }
}

#[expect(clippy::duplicate_mod, reason = "the same code over other types")]
#[path = "queue.rs"]
mod queue;

/// In so many places a thread may lose its turn where it could go on. Faults of this kind need one or two; each
/// more takes several times as long.
const PREEMPTIONS: usize = 2;

/// Bytes that may be behind.
const ROOM: u64 = 100;

fn in_every_order(threads: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(threads);
}

/// A thread that puts these into the queue.
fn sender<T: 'static>(queue: &Arc<Queue<T>>, items: impl IntoIterator<Item = T> + 'static) -> JoinHandle<()> {
    let queue = Arc::clone(queue);
    thread::spawn(move || items.into_iter().for_each(|item| queue.push(item)))
}

/// A thread that hands out these events, as there is room for them. Each takes all there is.
fn teller<T: 'static>(
    queue: &Arc<Queue<T>>,
    events: impl IntoIterator<Item = T> + 'static,
) -> JoinHandle<()> {
    let queue = Arc::clone(queue);
    thread::spawn(move || {
        for event in events {
            block_on(queue.room(ROOM));
            queue.push_event(event, ROOM);
        }
    })
}

/// Waits for something, as a shard does, and takes all.
fn receive<T>(queue: &Queue<T>) -> VecDeque<T> {
    let mut items = VecDeque::new();
    block_on(queue.filled());
    queue.take(&mut items);
    assert!(!items.is_empty(), "woken for nothing");
    items
}

#[test]
fn nothing_is_lost_and_each_sender_s_order_stays() {
    in_every_order(|| {
        let queue = Arc::new(Queue::default());
        let senders = ["a", "b"].map(|name| sender(&queue, [(name, 1), (name, 2)]));
        let mut received = Vec::new();
        while received.len() < 4 {
            received.extend(receive(&queue));
        }
        for name in ["a", "b"] {
            let of_one = received.iter().filter(|(sender, _)| *sender == name).map(|(_, number)| *number);
            assert_eq!(of_one.collect::<Vec<_>>(), [1, 2]);
        }
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        assert!(queue.is_empty());
    });
}

#[test]
fn who_hands_out_events_waits_for_the_room_and_is_woken() {
    in_every_order(|| {
        let queue = Arc::new(Queue::default());
        let teller = teller(&queue, 0..3);
        for number in 0..3 {
            assert_eq!(receive(&queue), [number], "no second one while the first has all the room");
            assert_eq!(queue.behind(), ROOM);
            queue.offered(ROOM);
        }
        teller.join().unwrap();
        assert_eq!((queue.behind(), queue.is_empty()), (0, true));
    });
}

#[test]
fn events_and_what_is_said_meanwhile_both_wake_the_shard() {
    in_every_order(|| {
        let queue = Arc::new(Queue::default());
        let teller = teller(&queue, [ROOM; 2]);
        let socket = sender(&queue, [0]);
        let mut received = 0;
        while received < 3 {
            for bytes in receive(&queue) {
                received += 1;
                if bytes > 0 {
                    assert!(queue.behind() <= ROOM);
                    queue.offered(bytes);
                }
            }
        }
        teller.join().unwrap();
        socket.join().unwrap();
        assert_eq!((queue.behind(), queue.is_empty()), (0, true));
    });
}

#[test]
fn a_wait_that_is_given_up_takes_no_wake_up_along() {
    in_every_order(|| {
        let queue = Arc::new(Queue::default());
        let sender = sender(&queue, [1, 2]);
        let mut received = Vec::new();
        while received.len() < 2 {
            let _ = pin!(queue.filled()).poll(&mut Context::from_waker(Waker::noop()));
            received.extend(receive(&queue));
        }
        assert_eq!(received, [1, 2]);
        sender.join().unwrap();
    });
}

/// As the relay does it under its lock, with two shards: who joins is told what there was and takes its place
/// behind it, and an event goes into the history and to every shard.
#[test]
fn who_joins_while_events_are_told_hears_each_once_and_in_order() {
    enum Command {
        /// With what it missed.
        Join(Vec<usize>),
        Tell(usize),
    }
    in_every_order(|| {
        let shards = [(); 2].map(|()| Arc::new(Queue::default()));
        let history = Arc::new(Mutex::new(Vec::new()));
        let teller = {
            let (history, shards) = (Arc::clone(&history), shards.clone());
            thread::spawn(move || {
                for event in [1, 2] {
                    let mut history = history.lock().unwrap();
                    history.push(event);
                    shards.iter().for_each(|shard| shard.push_event(Command::Tell(event), ROOM));
                }
            })
        };
        let joiner = {
            let shards = shards.clone();
            thread::spawn(move || {
                for shard in &shards {
                    let history = history.lock().unwrap();
                    shard.push(Command::Join(history.clone()));
                }
            })
        };
        for shard in &shards {
            let (mut told, mut heard) = (0, None);
            while told < 2 || heard.is_none() {
                for command in receive(shard) {
                    match command {
                        Command::Join(missed) => heard = Some(missed),
                        Command::Tell(event) => {
                            told += 1;
                            heard.iter_mut().for_each(|heard| heard.push(event));
                        }
                    }
                }
            }
            assert_eq!(heard, Some(vec![1, 2]));
        }
        teller.join().unwrap();
        joiner.join().unwrap();
    });
}

#[test]
fn what_comes_when_the_shard_is_gone_is_dropped_with_the_last_sender() {
    in_every_order(|| {
        let item = std::sync::Arc::new(());
        let queue = Arc::new(Queue::default());
        let senders = [1, 2].map(|count| sender(&queue, vec![std::sync::Arc::clone(&item); count]));
        drop(receive(&queue));
        drop(queue);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        assert_eq!(std::sync::Arc::strong_count(&item), 1);
    });
}
