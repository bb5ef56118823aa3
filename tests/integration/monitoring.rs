//! What is deployed beside the program to watch it: the dashboard and the alerts, tried on a real
//! Prometheus that watches a real fleet.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::backend::{Backend, says};
use crate::support::client::Client;
use crate::support::emulator::Emulator;
use crate::support::http::{API_KEY, ask, get, get_with};
use crate::support::prometheus::{Prometheus, metrics, promtool};
use crate::support::until;
use crate::support::vm::Vm;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn dashboard() -> Value {
    serde_json::from_str(&read("deploy/grafana/dashboard.json")).unwrap()
}

/// The panels that show something, and all of it: each query, and whether it is for a graph.
fn panels(dashboard: &Value) -> Vec<(&Value, Vec<(&str, bool)>)> {
    let panels = dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row");
    fn query(target: &Value) -> (&str, bool) {
        (target["expr"].as_str().unwrap(), target["range"].as_bool().unwrap())
    }
    panels.map(|panel| (panel, panel["targets"].as_array().unwrap().iter().map(query).collect())).collect()
}

#[test]
fn promtool_finds_nothing_wrong() {
    for arguments in [
        &["check", "config", "prometheus.yml"][..],
        &["check", "rules", "alerts.yml"],
        &["test", "rules", "alerts.test.yml"],
    ] {
        let checked = promtool(arguments).output().expect("promtool is needed: apt-get install prometheus");
        let said = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
        assert!(checked.status.success(), "{arguments:?}: {said}");
    }
}

#[test]
fn every_alert_is_tried_and_in_the_runbook() {
    let (rules, tests, runbook) = (
        read("deploy/prometheus/alerts.yml"),
        read("deploy/prometheus/alerts.test.yml"),
        read("docs/runbook.md"),
    );
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 8, "{alerts:?}");
    for alert in alerts {
        assert!(tests.contains(alert), "{alert} is not tried");
        assert!(runbook.contains(&format!("\n## {alert}\n")), "{alert} is not in docs/runbook.md");
        let link = format!("runbook_url: docs/runbook.md#{}\n", alert.to_ascii_lowercase());
        assert!(rules.contains(&link), "{link}");
    }
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard = dashboard();
    let all = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in all {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(cell.0 < 24 && taken.insert(cell), "{title} lies over another");
        }
    }
    let source = json!({"type": "prometheus", "uid": "${datasource}"});
    for (panel, queries) in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap();
        assert!(!panel["description"].as_str().unwrap().is_empty() && !queries.is_empty(), "{title}");
        assert_eq!(panel["datasource"], source, "{title}");
        for (query, _) in queries {
            let variables = query.split('$').skip(1);
            for variable in variables {
                assert!(
                    ["instance", "__range"].iter().any(|known| variable.starts_with(known)),
                    "${variable}"
                );
            }
        }
    }
    let titles: Vec<_> = all.iter().filter(|panel| panel["type"] == "row").map(|row| &row["title"]).collect();
    assert_eq!(titles, ["Is anything wrong?", "Topic", "Sockets", "Delivery", "Resources"]);
}

#[tokio::test]
async fn figures_are_named_as_prometheus_would_have_them() {
    let vm = Vm::alone(&[]).await;
    // The tool reads the older form only.
    let plain = get_with(vm.port, "/metrics", &[("accept", "text/plain")]).await;
    let mut checking = promtool(&["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    checking.stdin.take().unwrap().write_all(&plain.body).unwrap();
    let checked = checking.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
    assert!(checked.status.success() && said.is_empty(), "{said}");
}

#[test]
fn names_are_found_in_expressions() {
    let found = |expression| metrics(expression).into_iter().collect::<Vec<_>>();
    assert_eq!(
        found(r#"sum by (le) (rate(a_b{x="c", y=~"d|e"}[5m])) > 2 * on (z) group_left (r) d:e"#),
        ["a_b", "d:e"]
    );
    assert_eq!(found(r#"count(up{job="j"} == 0) or vector(0)"#), ["up"]);
    assert_eq!(found("0.5 * a + 100 and on (instance) b offset 1h"), ["a", "b"]);
}

/// Something of everything that is counted.
async fn stir(vm: &Vm, other: &Vm) {
    let mut first = vm.connect().await;
    let mut second = vm.connect().await;
    let cursor = first.connected["cursor"].as_str().unwrap().to_owned();
    let mut back = Client::connect(vm.port, &format!("/ws?since={cursor}")).await;
    let mut elsewhere = other.connect().await;
    first.send(json!({"type": "subscribe", "channel": "news"})).await;
    first.expect("refresh-store").await;
    first.alert(json!({"place": "Amsterdam"})).await;
    second.send(json!({"type": "broadcast", "data": 1, "channel": "news"})).await;
    second.send(json!({"type": "direct", "targetId": elsewhere.id(), "data": 1})).await;
    elsewhere.expect("direct").await;
    back.send_text("nonsense").await;
    back.expect("error").await;
    let path = format!("/connections/{}", elsewhere.id());
    assert_eq!(ask(vm.port, "GET", &path, &[], "").await.status, 200);
    assert_eq!(
        ask(vm.port, "POST", "/channels/news", &[], r#"{"type":"change","data":1}"#).await.status,
        202
    );
    second.closed_by_us().await;
}

#[tokio::test]
async fn every_panel_shows_a_real_fleet_and_a_killed_vm_is_told_of() {
    let backend = Backend::start(|_| says(200, "")).await;
    let emulator = Emulator::start().await;
    let url = backend.url();
    let settings = [("BEACON_INTERVAL", "1"), ("CONNECT_URL", url.as_str()), ("API_KEY", API_KEY)];
    let mut vms = Vm::fleet(&emulator, &["ams", "sin", "syd"], &settings).await;
    let ports: Vec<_> = vms.iter().map(|vm| vm.port).collect();
    let sooner = [
        ("_interval: 15s", "_interval: 1s"),
        // Of the VM that does not answer alone.
        (
            "expr: up{job=\"alien-alert\"} == 0\n        for: 1m",
            "expr: up{job=\"alien-alert\"} == 0\n        for: 2s",
        ),
    ];
    let prometheus = Prometheus::start(&ports, &sooner).await;
    until("first look at each VM", async || {
        let seen = prometheus.query("count(alien_alert_build_info)", false).await.unwrap();
        (*seen.first()? == 3.0).then_some(())
    })
    .await;
    stir(&vms[0], &vms[1]).await;
    stir(&vms[1], &vms[2]).await;
    stir(&vms[2], &vms[0]).await;

    // The variables, as Grafana fills them in.
    let regions = prometheus.values("region", Some("alien_alert_build_info")).await;
    assert_eq!(regions.iter().collect::<Vec<_>>(), ["ams", "sin", "syd"]);
    let instances =
        prometheus.values("instance", Some(r#"alien_alert_build_info{region=~"(ams|sin|syd)"}"#)).await;
    assert_eq!(instances, ports.iter().map(|port| format!("127.0.0.1:{port}")).collect());
    let instances = format!("({})", Vec::from_iter(instances).join("|"));
    let dashboard = dashboard();
    let mut used = BTreeSet::new();
    for (panel, queries) in panels(&dashboard) {
        for (query, as_graph) in queries {
            let expression = query.replace("$instance", &instances).replace("$__range", "5m");
            let title = &panel["title"];
            let shown = until(&format!("figures for {title}: {expression}"), async || {
                let found = prometheus.query(&expression, as_graph).await;
                let found = found.unwrap_or_else(|error| panic!("{title}: {error}"));
                let is_whole = !found.is_empty() && found.iter().all(|value| value.is_finite());
                is_whole.then_some(found)
            })
            .await;
            println!("{title}: {} series, the first {}", shown.len(), shown[0]);
            used.extend(metrics(query));
        }
    }

    let firing = async || {
        let alerts = prometheus.alerts().await;
        alerts.into_iter().filter(|alert| alert["state"] == "firing").collect::<Vec<_>>()
    };
    assert_eq!(firing().await, Vec::<Value>::new(), "all is well");
    let mut killed = vms.pop().unwrap();
    killed.end("KILL").await;
    let instance = format!("127.0.0.1:{}", killed.port);
    let alert = until("alert", async || firing().await.into_iter().next()).await;
    assert_eq!(alert["labels"]["alertname"], "AlienAlertVmDown", "{alert}");
    assert_eq!(alert["labels"]["instance"], instance.as_str(), "{alert}");
    assert!(alert["annotations"]["summary"].as_str().unwrap().contains(&instance), "{alert}");

    // Each name is one that exists, also where nothing is wrong and so nothing is found.
    let rules = prometheus.ask("rules", &[]).await.unwrap();
    for rule in rules["groups"][0]["rules"].as_array().unwrap() {
        let (name, annotations) = (&rule["name"], &rule["annotations"]);
        assert_eq!(rule["health"], "ok", "{rule}");
        assert!(
            ["critical", "warning"].iter().any(|severity| rule["labels"]["severity"] == *severity),
            "{name}"
        );
        for annotation in ["summary", "description", "runbook_url"] {
            assert!(
                annotations[annotation].as_str().is_some_and(|text| !text.is_empty()),
                "{name}: {annotation}"
            );
        }
        used.extend(metrics(rule["query"].as_str().unwrap()));
    }
    let known = prometheus.values("__name__", None).await;
    let unknown: Vec<_> = used.difference(&known).collect();
    assert!(unknown.is_empty(), "{unknown:?} is no metric");

    // And what a VM tells is somewhere to be seen.
    let told = get(vms[0].port, "/metrics").await;
    for family in told.text().lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = family.split(' ').next().unwrap();
        let suffixes = ["", "_total", "_info", "_bucket"];
        let is_used = suffixes.iter().any(|suffix| used.contains(&format!("{name}{suffix}")));
        assert!(is_used, "{name} is on no panel and in no alert");
    }
}
