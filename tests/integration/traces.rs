//! Traces, in a build that has them: one for each event, over all VMs, at a collector of the test's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::certificate::Certificate;
use crate::support::collector::{Collector, Span};
use crate::support::emulator::Emulator;
use crate::support::http::{API_KEY, ask};
use crate::support::vm::{Vm, command};
use crate::support::{until, within};

/// The only one of that name on that VM.
fn named<'a>(spans: &'a [Span], name: &str, instance: &str) -> &'a Span {
    let is_it = |span: &&Span| span.name == name && span.resource["service.instance.id"] == instance;
    let found: Vec<_> = spans.iter().filter(is_it).collect();
    assert_eq!(found.len(), 1, "{name} on {instance} in {spans:?}");
    found[0]
}

/// Those of one event.
fn of(spans: &[Span], event: &str) -> Vec<Span> {
    spans.iter().filter(|span| span.attributes["alien_alert.event_id"] == event).cloned().collect()
}

/// An event as another VM would publish it.
fn raw(number: u64, id: &str) -> Vec<u8> {
    let event = json!({"event": {
        "id": id, "type": "alert", "senderId": "s", "data": {}, "timestamp": 7,
        "origin": {"instance": "other", "region": "ams"},
        "sequence": {"started": 1, "number": number, "first": 1, "firstAt": 1},
    }});
    event.to_string().into_bytes()
}

#[tokio::test]
async fn an_alert_is_one_trace_over_all_vms() {
    let collector = Collector::start().await;
    let emulator = Emulator::start().await;
    let url = collector.url();
    // Nothing is sent before the end, which must bring all.
    let vars = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "600000"),
        ("API_KEY", API_KEY),
    ];
    let mut vms = Vm::fleet(&emulator, &["ams", "sin"], &vars).await;
    let mut here = vms[0].connect().await;
    let mut beside = vms[0].connect().await;
    let mut there = Vec::new();
    for _ in 0..20 {
        there.push(vms[1].connect().await);
    }
    let client = here.id().to_owned();
    let pressed = here.alert(json!({"note": "nobody's business"})).await;
    let told = ask(vms[1].port, "POST", "/alerts", &[("idempotency-key", "told")], "").await;
    assert_eq!(told.status, 202);
    // Those with a trace that is none, and one with a real one of somebody else's.
    let somebody = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for (number, trace) in [
        "",
        "nonsense",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        // Its sender's sampler did not want this one.
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
        "é00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        somebody,
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("raw {number}");
        let attributes =
            if trace.is_empty() { json!({"unknown": "x"}) } else { json!({"traceparent": trace}) };
        emulator.publish(&raw(number as u64 + 1, &id), attributes).await;
    }
    let ids: BTreeSet<_> =
        (0..10).map(|number| format!("raw {number}")).chain([pressed.clone(), "told".into()]).collect();
    for client in [&mut beside, &mut there[0]] {
        let mut heard = BTreeSet::new();
        while heard != ids {
            heard.insert(client.expect("alert").await["id"].as_str().unwrap().to_owned());
        }
    }
    assert!(collector.spans().is_empty(), "sent too early for this test to say anything");
    for vm in &mut vms {
        let (code, took) = vm.end("TERM").await;
        assert_eq!(code, Some(0));
        assert!(took < Duration::from_secs(4), "{took:?}");
    }

    let spans = collector.spans();
    // Two on the VM that took it, and one on each: none for any of the sockets.
    assert_eq!(spans.len(), 4 + 4 + 2, "{spans:#?}");
    for (id, taker, sender, publisher) in
        [(pressed.as_str(), "vm-ams", client.as_str(), "ams"), ("told", "vm-sin", "backend", "sin")]
    {
        let spans = of(&spans, id);
        let take = named(&spans, "take", taker);
        let publish = named(&spans, "publish", taker);
        let hears = [named(&spans, "hear", "vm-ams"), named(&spans, "hear", "vm-sin")];
        let traces: BTreeSet<_> = spans.iter().map(|span| &span.trace).collect();
        assert_eq!(traces.len(), 1, "{spans:#?}");
        assert_eq!((take.parent.as_str(), &publish.parent), ("", &take.id));
        assert!(hears.iter().all(|hear| hear.parent == publish.id), "{hears:#?}");
        // Server, producer, consumer.
        assert_eq!((take.kind, publish.kind, hears[0].kind), (2, 4, 5));
        assert!(take.start <= publish.start && publish.end <= take.end, "{take:?} {publish:?}");
        assert!(hears.iter().all(|hear| publish.start <= hear.start && hear.start <= hear.end), "{hears:#?}");
        assert!(!spans.iter().any(|span| span.failed));
        assert_eq!(take.attributes["alien_alert.client_id"], sender);
        assert_eq!(take.resource["cloud.region"], publisher);
        assert_eq!(hears.map(|hear| hear.attributes["alien_alert.sockets"].as_str()), ["2", "20"]);
        for span in &spans {
            assert_eq!(span.attributes["alien_alert.type"], "alert");
            assert_eq!(span.resource["service.name"], "alien-alert");
            assert_eq!(span.resource["service.version"], env!("CARGO_PKG_VERSION"));
        }
    }
    let of_somebody = of(&spans, "raw 9");
    assert_eq!(of_somebody.len(), 2);
    for hear in of_somebody {
        assert_eq!((hear.name.as_str(), hear.trace.as_str()), ("hear", &somebody[3..35]));
        assert_eq!(hear.parent, &somebody[36..52]);
    }
    assert!(!format!("{spans:?}").contains("nobody's business"), "what is in an event is not told");
}

#[tokio::test]
async fn over_tls_and_under_a_name_of_one_s_own() {
    let certificate = Certificate::for_this_machine(&[b"h2"]);
    let collector = Collector::start_tls(certificate.tls.clone()).await;
    let url = format!("https://127.0.0.1:{}", collector.port);
    let vars = [
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", url.as_str()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_SERVICE_NAME", "landings"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
    ];
    let trusting = Vm::alone(&[&vars[..], &[("SSL_CERT_FILE", &certificate.file)]].concat()).await;
    trusting.connect().await.alert(json!({})).await;
    until("its spans", async || (collector.spans().len() == 3).then_some(())).await;
    let wary = Vm::alone(&[&vars[..], &[("OTEL_EXPORTER_OTLP_TIMEOUT", "100")]].concat()).await;
    wary.connect().await.alert(json!({})).await;
    let failed = |line: &Value| line["name"] == "BatchSpanProcessor.ExportError";
    let told = until("its failure", async || wary.log().into_iter().find(failed)).await;
    assert!(told["error"].as_str().unwrap().contains("certificate"), "{told}");
    assert_eq!(collector.spans().len(), 3);
    for span in collector.spans() {
        assert_eq!(span.resource["service.name"], "landings");
        assert_eq!(span.resource["deployment.environment.name"], "test");
    }
}

#[tokio::test]
async fn a_collector_that_is_none_holds_nothing_up() {
    // Takes connections and never says a word; nobody there; and one that is left alone.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute = format!("http://{}", mute.local_addr().unwrap());
    for (url, more) in [
        (mute.as_str(), ("OTEL_BSP_MAX_QUEUE_SIZE", "8")),
        ("http://127.0.0.1:9", ("OTEL_BSP_SCHEDULE_DELAY", "50")),
        ("http://127.0.0.1:9", ("OTEL_TRACES_SAMPLER", "always_off")),
    ] {
        let mut vm = Vm::alone(&[("OTEL_EXPORTER_OTLP_ENDPOINT", url), more]).await;
        let mut client = vm.connect().await;
        for _ in 0..50 {
            client.alert(json!({})).await;
        }
        let (code, took) = vm.end("TERM").await;
        assert_eq!(code, Some(0));
        println!("leaving with {more:?}: {took:?}");
        assert!(took < Duration::from_secs(2), "{took:?}");
        let dropped = vm.log().iter().any(|line| line.to_string().contains("SpanDroppingStarted"));
        assert_eq!(dropped, more.1 == "8", "{more:?}: {:?}", vm.log());
    }
}

#[tokio::test]
async fn settings_that_can_not_be_used_are_named() {
    for (name, value, accepted) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://vm:hunter2@example.com", "http://localhost:4317"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://", "http://localhost:4317"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", "grpc"),
    ] {
        let vars = BTreeMap::from([
            ("HOST", "127.0.0.1"),
            ("PORT", "0"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"),
            (name, value),
        ]);
        let vars: Vec<_> = vars.into_iter().collect();
        let output = within("end of the process", command(&vars).output()).await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{name}: {said}");
        assert!(said.starts_with("alien-alert: ") && said.trim_end().lines().count() == 1, "{said}");
        assert!(said.contains(name) && said.contains(accepted) && !said.contains("hunter2"), "{said}");
    }
}
