//! The page, and what operators and machines ask.

use serde_json::json;

use crate::support::http::{get, get_with};
use crate::support::until;
use crate::support::vm::Vm;

#[tokio::test]
async fn the_page_is_served_with_all_that_it_needs() {
    let vm = Vm::alone(&[]).await;
    let page = get(vm.port, "/").await;
    assert_eq!(page.status, 200);
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    let mut named: Vec<_> = page.text().split('"').filter(|part| part.starts_with("/static/")).collect();
    named.dedup();
    assert!(named.len() >= 3, "{named:?}");
    for path in named {
        assert_eq!(get(vm.port, path).await.status, 200, "{path}");
    }
    assert_eq!(
        get(vm.port, "/static/client.js").await.header("content-type"),
        "text/javascript; charset=utf-8"
    );
}

#[tokio::test]
async fn the_worker_may_stand_in_for_the_page_and_no_other_script_may() {
    let vm = Vm::alone(&[]).await;
    assert_eq!(get(vm.port, "/static/worker.js").await.header("service-worker-allowed"), "/");
    assert_eq!(get(vm.port, "/static/client.js").await.header("service-worker-allowed"), "");
    assert_eq!(get(vm.port, "/static/offline.html").await.header("content-type"), "text/html; charset=utf-8");
}

#[tokio::test]
async fn every_answer_has_strict_headers() {
    let vm = Vm::alone(&[]).await;
    for path in ["/", "/static/client.js", "/health", "/status", "/metrics", "/nowhere", "/ws"] {
        let answer = get(vm.port, path).await;
        assert!(answer.header("content-security-policy").starts_with("default-src 'none'"), "{path}");
        assert!(!answer.header("content-security-policy").contains("unsafe"), "{path}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
    }
}

#[tokio::test]
async fn the_page_is_compressed_for_who_can_read_it() {
    let vm = Vm::alone(&[]).await;
    let plain = get(vm.port, "/").await;
    assert_eq!(plain.header("content-encoding"), "");
    let zipped = get_with(vm.port, "/", &[("accept-encoding", "br, gzip")]).await;
    assert_eq!(zipped.header("content-encoding"), "gzip");
    assert!(zipped.body.len() < plain.body.len());
    let mut read = String::new();
    let mut decoder = flate2::read::GzDecoder::new(&zipped.body[..]);
    std::io::Read::read_to_string(&mut decoder, &mut read).unwrap();
    assert_eq!(read, plain.text());
}

#[tokio::test]
async fn status_tells_how_it_is() {
    let vm = Vm::alone(&[("FLY_ALLOC_ID", "vm-1"), ("FLY_REGION", "ams")]).await;
    let _client = vm.connect().await;
    let status = get(vm.port, "/status").await.json();
    assert_eq!(status["status"], "ready");
    assert_eq!(status["connectedClients"], 1);
    assert!(status["uptime"].as_f64().unwrap() > 0.0);
    assert!(status["memoryUsage"]["rss"].as_u64().unwrap() > 1 << 20);
    assert_eq!(status["instanceId"], "vm-1");
    assert_eq!(status["region"], "ams");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["bus"], "memory");
    assert_eq!(status["fleet"][0]["instance"], "vm-1");
}

#[tokio::test]
async fn metrics_count_what_happens() {
    let vm = Vm::alone(&[]).await;
    let mut client = vm.connect().await;
    let _other = vm.connect().await;
    client.alert(json!({})).await;
    client.settle().await;
    client.send_text("nonsense").await;
    client.expect("error").await;
    // A client may hear what it is told before the shard has noted that it is written.
    let noted = ["delivery_duration_seconds_count 1\n", "catch_up_duration_seconds_count 2\n"];
    let metrics = until("times of what is written", async || {
        let metrics = get(vm.port, "/metrics").await;
        noted.iter().all(|line| metrics.text().contains(line)).then_some(metrics)
    })
    .await;
    assert!(metrics.header("content-type").starts_with("application/openmetrics-text"));
    for line in [
        "alien_alert_connections 2",
        "alien_alert_fleet_instances 1",
        "alien_alert_messages_received_total{type=\"alert\"} 1",
        "alien_alert_messages_received_total{type=\"ping\"} 1",
        "alien_alert_messages_received_total{type=\"invalid\"} 1",
        "alien_alert_events_total{type=\"alert\"} 1",
        "alien_alert_deliveries_total{type=\"alert\"} 2",
        "alien_alert_sockets_opened_total{kind=\"new\"} 2",
        "alien_alert_publish_errors_total{cause=\"no_answer\"} 0",
        "alien_alert_publish_duration_seconds_count 1",
        "alien_alert_seeks_total{cause=\"start\"} 1",
        "alien_alert_history_events 1",
        "alien_alert_ready 1",
    ] {
        assert!(metrics.text().lines().any(|other| other == line), "{line} in\n{}", metrics.text());
    }
    assert!(metrics.text().contains("alien_alert_topic_round_trip_seconds_count"));
    assert!(metrics.text().ends_with("# EOF\n"));
    let plain = get_with(vm.port, "/metrics", &[("accept", "text/plain; version=0.0.4")]).await;
    assert_eq!(plain.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert!(plain.text().contains("# TYPE alien_alert_events_total counter\n"));
}
