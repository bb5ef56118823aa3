//! A VM's heart between clients and the topic: a line of the input is what one of three clients says, or
//! what somebody put on the topic.
#![no_main]

use std::sync::{Arc, LazyLock};

use alien_alert::auth::Visitor;
use alien_alert::bus::{Join, Message};
use alien_alert::clock;
use alien_alert::config::Config;
use alien_alert::relay::Relay;
use alien_alert::vm;
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_all().build().expect("a runtime"));

fuzz_target!(|text: &str| {
    RUNTIME.block_on(async {
        let config = Config::from_vars([]).expect("settings");
        let bus = vm::bus(&config).await.expect("a bus");
        let mut inbox = bus.join(Join::Resume, clock::now_micros()).await.expect("a member");
        let relay = Arc::new(Relay::new(config, bus, 1));
        relay.health.ready();
        let join = |since: Option<&str>, channels: &[&str]| {
            let mut seated = None;
            relay.join(since, channels, Visitor::default(), |member, _| seated = Some(member));
            seated.expect("a member")
        };
        let mut members = vec![join(None, &[]), join(None, &["jobs"]), join(Some("1-1"), &["jobs", "team"])];
        for line in text.lines().take(64) {
            match line.split_at_checked(1) {
                Some(("t", rest)) => {
                    let message = Message { data: rest.as_bytes().to_vec().into(), ..Message::default() };
                    let _ = relay.bus.publish(message).await;
                    let delivery = inbox.next().await.expect("what was published");
                    let _ = relay.receive(delivery);
                }
                Some(("j", rest)) => {
                    members.remove(0);
                    members.push(join(Some(rest), &[rest, "jobs"]));
                }
                Some((who, rest)) => {
                    let index = usize::from(who.as_bytes()[0]) % members.len();
                    relay.handle(&members[index], rest);
                    // An event goes to the bus, and comes from it.
                    tokio::task::yield_now().await;
                }
                None => {}
            }
        }
        let _ = relay.tend_ledger();
    });
});
