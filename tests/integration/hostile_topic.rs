//! Anything may be on the topic. What is not for this version is counted, acknowledged and passed over: it
//! ends nothing, it comes once, and sockets hear what they know.

use std::io::Write as _;
use std::time::{Duration, Instant};

use alien_alert::clock;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::client::Client;
use crate::support::emulator::Emulator;
use crate::support::http::get;
use crate::support::until;
use crate::support::vm::Vm;

/// A good event, but for what `change` makes of it; its process is told of nowhere else.
fn event(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut event = json!({
        "id": "forged", "type": "alert", "senderId": "nobody@elsewhere", "data": {}, "timestamp": 1,
        "origin": {"instance": "elsewhere", "region": "ams"},
        "sequence": {"started": 1, "number": 1, "first": 1, "firstAt": 1},
    });
    change(&mut event);
    json!({"event": event}).to_string().into_bytes()
}

fn compressed(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// What no VM of this version says.
fn nonsense() -> Vec<Vec<u8>> {
    let mut all = vec![
        b" ".to_vec(),
        b"{\"later\":{}}".to_vec(),
        b"{\"event\":{}}".to_vec(),
        b"{\"event\":null}".to_vec(),
        b"[]".to_vec(),
        b"null".to_vec(),
        b"{\"event\":".to_vec(),
        vec![0xff; 4],
        vec![0; 100_000],
        // Good, but compressed.
        compressed(&event(|_| {})),
        b"[".repeat(1 << 20),
        b"{\"event\":{\"data\":".repeat(100_000),
        // The largest message that the service takes, and too large for any socket.
        event(|event| event["data"] = json!("x".repeat(9 << 20))),
    ];
    // Words of our own, said as an app's.
    for kind in
        ["connected", "refresh-store", "fleet", "ack", "error", "pong", "", "a b", "<b>", &"x".repeat(65)]
    {
        all.push(event(|event| event["type"] = json!(kind)));
    }
    for (field, value) in [
        ("id", json!("")),
        ("id", json!("x".repeat(65))),
        ("id", json!("line\nbreak")),
        ("id", json!(7)),
        ("senderId", json!("x".repeat(513))),
        ("channel", json!("")),
        ("channel", json!("x".repeat(10_000))),
        ("channel", json!("with a blank")),
        ("timestamp", json!(1e300)),
        ("timestamp", json!("now")),
        ("origin", json!({"instance": "x".repeat(256), "region": "ams"})),
        ("origin", json!({"instance": "elsewhere", "region": "x".repeat(256)})),
        ("origin", json!("elsewhere")),
        ("sequence", json!({"started": 1, "number": u64::MAX, "first": 1, "firstAt": 1})),
        ("sequence", json!({"started": 1, "number": 1, "first": 9, "firstAt": 1})),
        ("sequence", json!({"started": 1, "number": -1, "first": 1, "firstAt": 1})),
        ("sequence", json!(null)),
    ] {
        all.push(event(|event| event[field] = value));
    }
    all
}

/// What can be read, and is a lie.
fn lies() -> Vec<Vec<u8>> {
    let beacon = |change: &dyn Fn(&mut Value)| {
        let mut beacon = json!({
            "origin": {"instance": "ghost", "region": "<script>"},
            "sequence": {"started": 1, "number": 0, "first": 1, "firstAt": 1},
            "settledUntil": 0, "beat": 1, "clients": 1, "roundTripMs": 1, "intervalMs": 1, "leaving": false,
        });
        change(&mut beacon);
        json!({"beacon": beacon}).to_string().into_bytes()
    };
    let most = json!(u64::MAX);
    let mut all = vec![
        beacon(&|beacon| beacon["intervalMs"] = most.clone()),
        beacon(&|beacon| beacon["beat"] = most.clone()),
        beacon(&|beacon| beacon["clients"] = most.clone()),
        beacon(&|beacon| beacon["roundTripMs"] = most.clone()),
        beacon(&|beacon| beacon["settledUntil"] = json!(i64::MAX)),
        beacon(&|beacon| beacon["settledUntil"] = json!(i64::MIN)),
        beacon(&|beacon| beacon["sequence"]["started"] = json!(i64::MAX)),
        beacon(&|beacon| beacon["givenUp"] = json!([{"start": 5, "end": 1}, {"start": 0, "end": u64::MAX}])),
        beacon(&|beacon| {
            beacon["heard"] = json!([{
                "instance": "other", "at": i64::MIN, "lost": [{"start": 0, "end": u64::MAX}],
                "sequence": {"started": i64::MIN, "number": 1, "first": 1, "firstAt": i64::MAX},
            }]);
        }),
        // About connections that are nowhere.
        json!({"ask": {"id": "", "clientId": "nobody@vm-ams", "wish": "describe"}}).to_string().into_bytes(),
        json!({"ask": {"id": "x".repeat(100_000), "from": "vm-ams", "clientId": "", "wish": "close"}})
            .to_string()
            .into_bytes(),
        json!({"answer": {"id": "never asked", "outcome": "written"}}).to_string().into_bytes(),
        json!({"receipts": {"instance": "ghost", "receipts": [{"eventId": "x".repeat(100_000), "sockets": u32::MAX}]}})
            .to_string()
            .into_bytes(),
    ];
    for number in 0..200 {
        all.push(beacon(&|beacon| {
            beacon["origin"]["instance"] = json!(format!("ghost-{number}"));
            beacon["asking"] = json!(true);
            // It says that there were events which nobody ever hears.
            beacon["sequence"]["number"] = json!(1_u64 << 40);
        }));
    }
    all
}

#[tokio::test]
async fn nonsense_is_counted_and_passed_over_once() {
    let emulator = Emulator::start().await;
    let ams = Vm::on(&emulator, "ams").await;
    let mut client = ams.connect().await;
    let nonsense = nonsense();
    for data in &nonsense {
        emulator.publish(data, json!({})).await;
    }
    // A message that has attributes alone, and one with forged ones.
    emulator.publish(b"", json!({"to": "vm-ams", "event": "connect"})).await;
    emulator.publish(&event(|_| ()), json!({"to": "another VM"})).await;
    let last = client.alert(json!({"place": "after all that"})).await;
    let counted = format!("alien_alert_undecodable_total {}\n", nonsense.len() + 1);
    until("all of them counted", async || {
        get(ams.port, "/metrics").await.text().contains(&counted).then_some(())
    })
    .await;
    let heard = client.settle().await;
    assert!(heard.iter().all(|message| message["id"] == last.as_str()), "{heard:?}");
    client.alert(json!({})).await;
    assert!(get(ams.port, "/metrics").await.text().contains(&counted), "they came once");
    assert_eq!(get(ams.port, "/health").await.status, 200);
}

#[tokio::test]
async fn lies_about_others_cost_no_socket_and_no_event() {
    let emulator = Emulator::start().await;
    let (mut ams, mut sin) = (Vm::on(&emulator, "ams").await, Vm::on(&emulator, "sin").await);
    let (mut here, mut there) = (ams.connect().await, sin.connect().await);
    let before = ams.pss();
    for data in lies() {
        emulator.publish(&data, json!({})).await;
    }
    for number in 0..20 {
        let id = here.alert(json!({"note": format!("among lies {number}")})).await;
        assert_eq!(there.expect("alert").await["id"], id.as_str());
    }
    for vm in [&ams, &sin] {
        let health = get(vm.port, "/health").await;
        assert_eq!(health.status, 200, "{}", health.text());
        let status = vm.status().await;
        let alive: Vec<_> = status["fleet"].as_array().unwrap().iter().map(|vm| &vm["instance"]).collect();
        assert!(alive.contains(&&json!("vm-ams")) && alive.contains(&&json!("vm-sin")), "{alive:?}");
    }
    let grown = ams.pss().saturating_sub(before) / 1024;
    println!("memory after {} lies: {grown} kB more", lies().len());
    assert!(grown < 20_000, "{grown} kB");
    for vm in [&mut ams, &mut sin] {
        assert_eq!(vm.end("INT").await.0, Some(0));
    }
}

#[tokio::test]
async fn a_newer_and_an_older_version_share_the_topic() {
    let emulator = Emulator::start().await;
    let ams = Vm::on(&emulator, "ams").await;
    let mut client = ams.connect().await;
    // A newer one says more than this one knows, in events and of itself.
    let newer = event(|event| {
        event["id"] = json!("newer");
        event["priority"] = json!({"of": "a later version"});
        event["origin"]["zone"] = json!("b");
        event["sequence"]["epoch"] = json!(1);
    });
    emulator
        .publish(&newer, json!({"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}))
        .await;
    assert_eq!(client.expect("alert").await["id"], "newer");
    // Its new kind of event has a number that is not waited for.
    let kind = event(|event| {
        event["id"] = json!({"of": "another form"});
        event["sequence"]["number"] = json!(2);
    });
    emulator.publish(&kind, json!({})).await;
    let third = event(|event| {
        event["id"] = json!("third");
        event["sequence"]["number"] = json!(3);
    });
    emulator.publish(&third, json!({})).await;
    assert_eq!(client.expect("alert").await["id"], "third");
    // An older one's beacon has less.
    let beacon = json!({"beacon": {
        "origin": {"instance": "older", "region": "sin"},
        "sequence": {"started": 1, "number": 0, "first": 1, "firstAt": 1},
        "beat": 1, "clients": 7, "roundTripMs": null, "intervalMs": 15_000, "leaving": false,
    }});
    emulator.publish(beacon.to_string().as_bytes(), json!({})).await;
    until("the older one in the fleet", async || {
        let fleet = ams.status().await["fleet"].clone();
        fleet.as_array()?.iter().any(|vm| vm["instance"] == "older" && vm["clients"] == 7).then_some(())
    })
    .await;
    let back =
        Client::connect(ams.port, &format!("/ws?since={}", client.refresh["cursor"].as_str().unwrap())).await;
    assert_eq!(back.refresh["complete"], true, "no number is missing: {}", back.refresh);
}

/// Everybody who hears an alert knows the id of a connection, and so may anybody on the topic.
#[tokio::test]
async fn what_is_forged_for_a_connection_that_there_is_is_bounded_as_well() {
    let emulator = Emulator::start().await;
    let ams = Vm::on(&emulator, "ams").await;
    let mut client = ams.connect().await;
    let (long, huge) = ("x".repeat(1_000), "x".repeat(2 << 20));
    let ask = |change: &dyn Fn(&mut Value)| {
        let mut ask = json!({
            "id": uuid::Uuid::new_v4().to_string(), "from": "vm-sin", "clientId": client.id(),
            "wish": {"write": {"id": "forged", "senderId": "nobody@elsewhere", "data": 1, "timestamp": 1}},
        });
        change(&mut ask);
        json!({"ask": ask}).to_string().into_bytes()
    };
    let answer = |change: &dyn Fn(&mut Value)| {
        let mut answer = json!({"id": "never asked", "outcome": {"described": {
            "clientId": client.id(), "instance": "vm-ams", "region": "ams", "connectedAt": 1, "channels": [],
        }}});
        change(&mut answer);
        json!({"answer": answer}).to_string().into_bytes()
    };
    let forged = [
        ask(&|ask| ask["wish"]["write"]["data"] = json!(huge)),
        ask(&|ask| ask["wish"]["write"]["id"] = json!(huge)),
        ask(&|ask| ask["wish"]["write"]["id"] = json!("")),
        ask(&|ask| ask["wish"]["write"]["id"] = json!("x".repeat(65))),
        ask(&|ask| ask["wish"]["write"]["id"] = json!("line\nbreak")),
        ask(&|ask| ask["wish"]["write"]["senderId"] = json!(huge)),
        ask(&|ask| ask["id"] = json!(huge)),
        ask(&|ask| ask["from"] = json!(long)),
        ask(&|ask| (ask["from"], ask["wish"]) = (json!(huge), json!("describe"))),
        ask(&|ask| (ask["from"], ask["wish"]) = (json!(long), json!("close"))),
        answer(&|answer| answer["id"] = json!(huge)),
        answer(&|answer| answer["outcome"]["described"]["region"] = json!(huge)),
        answer(&|answer| answer["outcome"]["described"]["channels"] = json!(vec!["c"; 10_001])),
    ];
    let for_ams = json!({"to": "vm-ams"});
    for data in &forged {
        emulator.publish(data, for_ams.clone()).await;
    }
    until("all of them counted", async || {
        (ams.figure("alien_alert_undecodable_total").await == forged.len() as u64).then_some(())
    })
    .await;
    let (good, nothing) = (ask(&|_| ()), answer(&|_| ()));
    assert_eq!(client.settle().await, Vec::<Value>::new());
    // The same in bounds is taken, so it is these that were at fault.
    for data in [good, nothing] {
        emulator.publish(&data, for_ams.clone()).await;
    }
    assert_eq!(client.expect("direct").await["id"], "forged");
    client.alert(json!({})).await;
    assert_eq!(ams.figure("alien_alert_undecodable_total").await, forged.len() as u64);
}

/// Numbers that nobody ever gave are missing for ever, and whoever is on the topic can tell of more and more.
#[tokio::test]
async fn gaps_that_nobody_can_close_are_sought_seldom_and_cost_nobody_an_event() {
    // One takes about 50 s to be sought, sought over a new connection, and given up; each search gives it more.
    const MOST: Duration = Duration::from_secs(150);
    let emulator = Emulator::start().await;
    let vms = Vm::fleet(&emulator, &["ams", "sin"], &[]).await;
    let (mut here, mut there) = (vms[0].connect().await, vms[1].connect().await);
    let (mut forged, mut honest) = (0, Vec::new());
    let begun = Instant::now();
    let gave_up = async |vm: &Vm| vm.figure("alien_alert_events_lost_total").await > 0;
    while !(gave_up(&vms[0]).await && gave_up(&vms[1]).await) {
        assert!(begun.elapsed() < MOST, "nothing is given up after {forged} gaps");
        let now = clock::now_millis();
        forged += 1;
        let gap = event(|event| {
            event["id"] = json!(format!("forged-{forged}"));
            event["origin"]["instance"] = json!(format!("ghost-{forged}"));
            event["sequence"] = json!({"started": now, "number": 2, "first": 1, "firstAt": now});
        });
        emulator.publish(&gap, json!({})).await;
        let id = here.alert(json!({"note": "among gaps"})).await;
        while there.expect("alert").await["id"] != id.as_str() {}
        honest.push(id);
        sleep(Duration::from_millis(500)).await;
    }
    for (vm, client) in vms.iter().zip([&here, &there]) {
        let seeks = vm.figure(r#"alien_alert_seeks_total{cause="overdue"}"#).await;
        let rejoins = vm.figure(r#"alien_alert_seeks_total{cause="overdue_anew"}"#).await;
        let lost = vm.figure("alien_alert_events_lost_total").await;
        let warnings = vm.log().iter().filter(|line| line["level"] == "WARN").count();
        println!(
            "{}: {forged} gaps, {seeks} seeks, {rejoins} rejoins, {lost} lost, {warnings} warnings",
            vm.name
        );
        assert!((1..=5).contains(&seeks) && (1..=3).contains(&rejoins) && lost > 0, "of {forged} gaps");
        assert!(warnings <= 12, "{:#?}", vm.log());
        assert_eq!(get(vm.port, "/health").await.status, 200);
        let path = format!("/ws?since={}", client.refresh["cursor"].as_str().unwrap());
        let back = Client::connect(vm.port, &path).await.refresh;
        assert_eq!((&back["complete"], &back["reason"]), (&json!(false), &json!("gap")));
        let events = back["events"].as_array().unwrap();
        let heard = |id: &String| events.iter().any(|event| event["id"] == id.as_str());
        assert!(honest.iter().all(heard), "{} of {} are there", events.len(), honest.len());
    }
}
