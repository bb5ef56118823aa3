//! VMs that go and come back under many sockets: nothing is lost, those who return do not return all at
//! once, and those who stayed do not feel it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alien_alert::clock::random_part;
use futures_util::future::join_all;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, sleep_until};
use tokio_tungstenite::tungstenite::Message;

use crate::fleet::REGIONS;
use crate::support::client::{Raw, open};
use crate::support::crowd::{Crowd, PONG, ROOM, Return, numbers};
use crate::support::emulator::Emulator;
use crate::support::until;
use crate::support::vm::Vm;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_loses_nothing_and_spreads_those_who_return() {
    const PAGES: usize = 2_000;
    let emulator = Emulator::start().await;
    let host = emulator.host();
    let mut vms = Vec::new();
    for region in REGIONS {
        vms.push(Vm::spawn_on(&host, region, &ROOM).await);
    }
    for vm in &vms {
        vm.ready().await;
    }
    let (crowd, _pages) = Crowd::gather(&vms, PAGES).await;

    // 20 alerts a second in all.
    let senders = crowd.press();
    until("the first alerts", async || (crowd.numbers.load(Ordering::Relaxed) > 20).then_some(())).await;

    let begun = Instant::now();
    for (number, vm) in vms.iter_mut().enumerate() {
        let port = vm.port.to_string();
        let (code, took) = vm.end(["TERM", "INT"][number % 2]).await;
        assert_eq!(code, Some(0), "{}", vm.name);
        assert!(took < Duration::from_secs(5), "{took:?}");
        let more: Vec<_> = ROOM.into_iter().chain([("PORT", &*port)]).collect();
        *vm = Vm::spawn_on(&host, REGIONS[number], &more).await;
        vm.ready().await;
        println!("{} left in {took:.1?} and is back {:.1?} after the first", vm.name, begun.elapsed());
    }
    until("all pages back", async || (crowd.connected() == PAGES).then_some(())).await;
    println!("all pages are back after {:.1?}", begun.elapsed());

    crowd.enough.store(true, Ordering::Relaxed);
    let acknowledged: Vec<usize> = senders.join_all().await.concat();
    println!("{} alerts acknowledged", acknowledged.len());
    until("every alert on every page", async || {
        crowd.pages.iter().all(|page| page.lock().unwrap().has(&acknowledged)).then_some(())
    })
    .await;
    for page in &crowd.pages {
        assert_eq!(page.lock().unwrap().repeated, 0, "alerts that came twice on one connection");
    }

    let returns = crowd.returns.lock().unwrap();
    print_histogram(&returns, begun);
    println!("closed without a time to come back: {}", crowd.unhinted.load(Ordering::Relaxed));
    for (vm, region) in REGIONS.iter().enumerate() {
        let mut times: Vec<_> =
            returns.iter().filter(|told| told.closed_by == vm).map(|told| told.at).collect();
        times.sort();
        let fullest = times
            .iter()
            .enumerate()
            .map(|(first, begin)| times[first..].partition_point(|at| *at < *begin + Duration::from_secs(1)))
            .max();
        let fullest = fullest.expect("pages on each VM");
        println!("of {} closed by {region}, {fullest} came back in the fullest second", times.len());
        // Spread evenly over 5 s it is a fifth.
        assert!(2 * fullest <= times.len(), "{fullest} of {} in one second", times.len());
    }
}

/// Prints how many came back in each quarter of a second, a line for each second.
fn print_histogram(returns: &[Return], begun: Instant) {
    let mut quarters: BTreeMap<u128, [usize; 4]> = BTreeMap::new();
    for told in returns {
        let quarter = told.at.duration_since(begun).as_millis() / 250;
        quarters.entry(quarter / 4).or_default()[(quarter % 4) as usize] += 1;
    }
    println!("pages that come back, per 250 ms:");
    for (second, counts) in quarters {
        println!("{second:3} s {counts:4?} {}", "#".repeat(counts.iter().sum::<usize>() / 10));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_returning_pages_does_not_stop_live_alerts() {
    const PAGES: usize = 5_000;
    // As long without as with pages that return: 300 alerts on each of the witnesses.
    const MEASURED: Duration = Duration::from_secs(15);
    let vm = Vm::alone(&ROOM).await;
    let mut sender = vm.connect().await;
    let cursor = sender.connected["cursor"].as_str().unwrap().to_owned();
    for _ in 0..1_000 {
        sender.send(json!({"type": "alert", "data": {}})).await;
    }
    // Heard, not only confirmed: then they are in the history.
    for _ in 0..1_000 {
        sender.expect("alert").await;
    }
    drop(sender);
    let events = vm.connect().await.refresh["events"].clone();
    let events = events.as_array().unwrap();
    assert_eq!(events.len(), 1_000);
    println!("{} events of {} bytes", events.len(), events[0].to_string().len());
    let path = format!("/ws?since={cursor}");

    // On a thread of its own: it measures the VM, not this crowd's work.
    let live = Arc::new(Live::default());
    let (measured, port) = (Arc::clone(&live), vm.port);
    let measuring = std::thread::spawn(move || measured.run(port));
    let nobody = (0..PAGES).map(|_| None).collect();
    let mut pages = return_within(vm.port, &path, nobody, MEASURED / 3).await;
    let calm = Instant::now();
    join_all(pages.iter_mut().flatten().map(|page| read_until(page, calm + MEASURED))).await;
    let storm = Instant::now();
    let pages = return_within(vm.port, &path, pages, MEASURED).await;
    let over = Instant::now();
    println!("{PAGES} pages came back for their refresh-store within {:.1?}", over - storm);
    until("every alert on every witness", async || live.all_heard(over).then_some(())).await;
    live.enough.store(true, Ordering::Relaxed);
    measuring.join().unwrap();
    drop(pages);
    let usual = live.p99("usual", calm, storm);
    let stormy = live.p99("in the storm", storm, over);
    let times = stormy.as_secs_f64() / usual.as_secs_f64();
    println!("p99 in the storm is {times:.1} times the usual");
    assert!(times <= 3.0, "{times:.1} times the usual");
}

/// Each page goes at a moment of its own within `spread` and comes back at once, so that there are always as
/// many; returns them when each has its `refresh-store` and the time is over.
async fn return_within(
    port: u16,
    path: &str,
    pages: Vec<Option<TcpStream>>,
    spread: Duration,
) -> Vec<Option<TcpStream>> {
    let over = Instant::now() + spread;
    let mut returning = JoinSet::new();
    for mut page in pages {
        let path = path.to_owned();
        returning.spawn(async move {
            let moment = over - random_part(spread);
            match page.take() {
                Some(mut page) => read_until(&mut page, moment).await,
                None => sleep_until(moment.into()).await,
            }
            let mut socket = loop {
                match Raw::open(port, &path).await {
                    Ok(socket) => break socket,
                    Err(_) => sleep(random_part(Duration::from_secs(1))).await,
                }
            };
            let (_, connected) = socket.next().await.unwrap();
            assert!(connected.starts_with(br#"{"type":"connected""#));
            let length = socket.skip().await.unwrap();
            assert!(length > 200_000, "all there is: {length} bytes");
            let mut page = socket.0.into_inner();
            read_until(&mut page, over).await;
            Some(page)
        });
    }
    returning.join_all().await
}

/// Now and then reads and drops what came: these are pages on machines of their own.
async fn read_until(page: &mut TcpStream, end: Instant) {
    let mut scratch = vec![0; 4 << 10];
    while Instant::now() < end {
        while let Ok(1..) = page.try_read(&mut scratch) {}
        let pause = random_part(Duration::from_secs(1));
        sleep_until((Instant::now() + pause).min(end).into()).await;
    }
}

/// Alerts at a steady 20 a second, and how long each takes to each of some witnesses.
#[derive(Default)]
struct Live {
    /// By an alert's number, when it was sent.
    sent: Mutex<Vec<Instant>>,
    /// When one was sent, and how long it took to one witness.
    heard: Mutex<Vec<(Instant, Duration)>>,
    enough: AtomicBool,
}

impl Live {
    const WITNESSES: usize = 36;

    fn run(self: Arc<Self>, port: u16) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for _ in 0..Self::WITNESSES {
                let witness = Raw::open(port, "/ws").await.unwrap();
                tokio::spawn(Arc::clone(&self).listen(witness));
            }
            let (mut sender, mut answers) = open(port, "/ws").await.unwrap().split();
            tokio::spawn(async move { while let Some(Ok(_)) = answers.next().await {} });
            let mut tick = interval(Duration::from_millis(50));
            for number in 0.. {
                tick.tick().await;
                if self.enough.load(Ordering::Relaxed) {
                    return;
                }
                let alert = json!({"type": "alert", "id": format!("#{number:06}"), "data": {}});
                self.sent.lock().unwrap().push(Instant::now());
                sender.send(Message::text(alert.to_string())).await.unwrap();
            }
        });
    }

    async fn listen(self: Arc<Self>, mut witness: Raw) {
        while let Ok((opcode, payload)) = witness.next().await {
            if opcode == 0x9 {
                witness.0.write_all(&PONG).await.unwrap();
            }
            let text = String::from_utf8(payload).unwrap_or_default();
            if !text.starts_with(r#"{"type":"alert""#) {
                continue;
            }
            for number in numbers(&text) {
                let sent = self.sent.lock().unwrap()[number];
                self.heard.lock().unwrap().push((sent, sent.elapsed()));
            }
        }
    }

    /// Whether all that was sent before `end` has come to every witness.
    fn all_heard(&self, end: Instant) -> bool {
        let sent = self.sent.lock().unwrap().partition_point(|sent| *sent < end);
        let heard = self.heard.lock().unwrap().iter().filter(|(sent, _)| *sent < end).count();
        heard == sent * Self::WITNESSES
    }

    fn p99(&self, when: &str, from: Instant, to: Instant) -> Duration {
        let heard = self.heard.lock().unwrap();
        let within = heard.iter().filter(|(sent, _)| (from..to).contains(sent));
        let mut times: Vec<Duration> = within.map(|(_, took)| *took).collect();
        times.sort();
        let [p50, p99] = [50, 99].map(|part| times[times.len() * part / 100]);
        println!("{when}: p50 {p50:.1?}, p99 {p99:.1?} of {} deliveries", times.len());
        p99
    }
}
