//! The files that deploy it, held to the program, to each other and to what the documents say of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use alien_alert::config::{Config, VARIABLES};
use serde::Deserialize;
use serde_json::Value;

use crate::support::vm::program;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The lines of the Dockerfile that begin with a word, without it.
fn dockerfile(word: &str) -> Vec<String> {
    let lines = read("Dockerfile");
    lines.lines().filter_map(|line| Some(line.strip_prefix(word)?.trim().to_owned())).collect()
}

fn default_of(variable: &str) -> &'static str {
    VARIABLES.iter().find(|(name, ..)| *name == variable).unwrap().1
}

/// The variables that `alien-alert --help` names.
fn variables() -> BTreeSet<String> {
    let help = Command::new(program()).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let is_name = |word: &&str| word.len() > 2 && word.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    let words = help.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(is_name);
    words.map(str::to_owned).collect()
}

/// The program knows these variables and takes their values.
fn assert_settings(file: &str, settings: impl IntoIterator<Item = (String, String)>) {
    let known = variables();
    let settings: Vec<_> = settings.into_iter().collect();
    for (name, _) in &settings {
        assert!(known.contains(name), "{file} sets {name}, which alien-alert --help does not name");
    }
    let alone = ("BUS".to_owned(), "memory".to_owned());
    Config::from_vars(settings.into_iter().chain([alone])).unwrap_or_else(|error| panic!("{file}: {error}"));
}

/// A path that answers GET, by the document that is held to real answers.
fn assert_route(file: &str, path: &str) {
    let document: Value = serde_json::from_str(&read("src/http/documents/openapi.json")).unwrap();
    assert!(document["paths"][path]["get"].is_object(), "{file}: GET {path} is no route");
}

// fly.toml

#[derive(Deserialize)]
struct Fly {
    kill_signal: String,
    kill_timeout: String,
    build: BTreeMap<String, String>,
    env: BTreeMap<String, String>,
    deploy: FlyDeploy,
    http_service: FlyService,
    metrics: FlyMetrics,
    vm: Vec<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct FlyDeploy {
    strategy: String,
    max_unavailable: f64,
}

#[derive(Deserialize)]
struct FlyService {
    internal_port: u16,
    auto_stop_machines: String,
    concurrency: FlyConcurrency,
    checks: Vec<FlyCheck>,
}

#[derive(Deserialize)]
struct FlyConcurrency {
    r#type: String,
    soft_limit: usize,
    hard_limit: usize,
}

#[derive(Deserialize)]
struct FlyCheck {
    method: String,
    path: String,
    grace_period: String,
}

#[derive(Deserialize)]
struct FlyMetrics {
    port: u16,
    path: String,
}

fn fly() -> Fly {
    toml::from_str(&read("fly.toml")).unwrap()
}

fn seconds(text: &str) -> u64 {
    text.strip_suffix('s').and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn fly_reaches_the_vm_and_lets_it_leave() {
    let fly = fly();
    let port = default_of("PORT");
    assert_eq!(fly.env["PORT"], port);
    assert_eq!(fly.http_service.internal_port.to_string(), port);
    assert_eq!(fly.metrics.port.to_string(), port);
    assert_route("fly.toml", &fly.metrics.path);
    assert_settings("fly.toml", fly.env);
    assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(&fly.build["dockerfile"]).exists());

    let [check] = &fly.http_service.checks[..] else { panic!("one check") };
    assert_eq!(
        (&*check.method, &*check.path),
        ("GET", "/health"),
        "a VM that does not hear the others is no use"
    );
    assert_route("fly.toml", &check.path);
    assert!(seconds(&check.grace_period) > 10, "a newborn takes up to 10 s");

    // tests/integration/start.rs holds it to 4 s, whatever the topic does.
    assert_eq!(fly.kill_signal, "SIGINT");
    assert!((5..=300).contains(&seconds(&fly.kill_timeout)), "{}", fly.kill_timeout);

    assert_eq!((&*fly.deploy.strategy, fly.deploy.max_unavailable), ("rolling", 1.0));
    assert_eq!(fly.http_service.auto_stop_machines, "off");
}

#[test]
fn fly_s_limits_are_what_a_vm_holds() {
    let fly = fly();
    let concurrency = &fly.http_service.concurrency;
    assert_eq!(concurrency.r#type, "connections");
    assert_eq!(fly.env["MAX_CONNECTIONS"], concurrency.hard_limit.to_string());
    assert_eq!(concurrency.soft_limit * 2, concurrency.hard_limit, "one of two takes the other's sockets");

    // What was measured, and on what: the README tells it with its conditions.
    let [vm] = &fly.vm[..] else { panic!("one size") };
    let (size, memory) = (&vm["size"], vm["memory"].replace("mb", " MB"));
    let hard = format!("{},{:03}", concurrency.hard_limit / 1000, concurrency.hard_limit % 1000);
    let readme = read("README.md");
    let told = format!("the {hard} sockets of `MAX_CONNECTIONS`");
    assert!(readme.contains(&told), "README.md: {told}");
    let told = format!("a Fly `{size}` of {memory} holds them");
    assert!(readme.contains(&told), "README.md: {told}");
}

// Google's homes for it. A field that is not known here is a slip, or must be looked up and added.

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AppEngine {
    runtime: String,
    env: String,
    env_variables: BTreeMap<String, String>,
    manual_scaling: AppEngineScaling,
    resources: AppEngineResources,
    network: AppEngineNetwork,
    readiness_check: AppEngineCheck,
    liveness_check: AppEngineCheck,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AppEngineScaling {
    instances: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AppEngineResources {
    cpu: u32,
    memory_gb: f64,
    disk_size_gb: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AppEngineNetwork {
    session_affinity: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AppEngineCheck {
    path: String,
    check_interval_sec: u32,
    timeout_sec: u32,
    failure_threshold: u32,
    success_threshold: u32,
    app_start_timeout_sec: Option<u32>,
    initial_delay_sec: Option<u32>,
}

#[test]
fn app_engine_has_the_shape_that_google_asks_for() {
    let file = "deploy/app.yaml";
    let app: AppEngine = serde_saphyr::from_str(&read(file)).unwrap();
    assert_eq!((&*app.runtime, &*app.env), ("custom", "flex"));
    assert!(!app.env_variables.contains_key("PORT"), "App Engine sets it: 8080");
    assert_settings(file, app.env_variables);
    assert_eq!(default_of("PORT"), "8080");
    assert!(variables().contains("GAE_INSTANCE"), "an instance's id");
    assert!(app.manual_scaling.instances >= 2, "one is restarted each week");
    // Google's rule: as many GB as CPUs, to 6.5 times as many, less 0.4 that its own programs take.
    let (cpu, memory) = (f64::from(app.resources.cpu), app.resources.memory_gb);
    assert!((cpu - 0.4..=cpu * 6.5 - 0.4).contains(&memory), "{memory} GB for {cpu} CPUs");
    assert!((10..=10_240).contains(&app.resources.disk_size_gb));
    assert!(!app.network.session_affinity, "nothing needs it");

    assert_eq!(app.readiness_check.path, "/health");
    // The older checks know no other path.
    assert_route(file, "/_ah/health");
    assert_eq!(app.liveness_check.path, "/status", "a topic that is away must not end the instances");
    for check in [&app.readiness_check, &app.liveness_check] {
        assert_route(file, &check.path);
        assert!((1..=300).contains(&check.check_interval_sec) && (1..=300).contains(&check.timeout_sec));
        assert!((1..=10).contains(&check.failure_threshold) && (1..=10).contains(&check.success_threshold));
    }
    assert!(app.readiness_check.app_start_timeout_sec.is_some_and(|time| (1..=1800).contains(&time)));
    assert!(app.liveness_check.initial_delay_sec.is_some_and(|time| time <= 3600));
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct CloudRun {
    api_version: String,
    kind: String,
    metadata: CloudRunName,
    spec: CloudRunSpec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CloudRunName {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CloudRunSpec {
    template: CloudRunTemplate,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CloudRunTemplate {
    metadata: CloudRunAnnotations,
    spec: CloudRunRevision,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CloudRunAnnotations {
    /// Text, all of them: Kubernetes takes nothing else.
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct CloudRunRevision {
    container_concurrency: u32,
    timeout_seconds: u32,
    service_account_name: String,
    containers: Vec<CloudRunContainer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct CloudRunContainer {
    image: String,
    ports: Vec<CloudRunPort>,
    env: Vec<CloudRunVariable>,
    resources: CloudRunResources,
    startup_probe: CloudRunProbe,
    liveness_probe: CloudRunProbe,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct CloudRunPort {
    container_port: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CloudRunVariable {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CloudRunResources {
    limits: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct CloudRunProbe {
    http_get: CloudRunGet,
    period_seconds: u32,
    timeout_seconds: u32,
    failure_threshold: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CloudRunGet {
    path: String,
}

/// The file as the command of docs/deploy.md fills it in.
fn cloud_run() -> CloudRun {
    let told = read("docs/deploy.md");
    let (_, command) = told.split_once("      sed \"").expect("the command");
    let (command, _) = command.split_once("deploy/cloudrun.yaml").unwrap();
    let filled = Command::new("bash")
        .args(["-euc", &format!("place=europe-west4=ams; sed \"{command} deploy/cloudrun.yaml")])
        .envs([("PROJECT", "my-project"), ("IMAGE", "example.org/image:1")])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(filled.status.success(), "{}", String::from_utf8_lossy(&filled.stderr));
    serde_saphyr::from_str(&String::from_utf8(filled.stdout).unwrap()).unwrap()
}

#[test]
fn cloud_run_has_the_shape_that_google_asks_for() {
    let file = "deploy/cloudrun.yaml";
    let run = cloud_run();
    assert_eq!((&*run.api_version, &*run.kind), ("serving.knative.dev/v1", "Service"));
    let template = &run.spec.template;
    let annotations: BTreeMap<_, _> =
        template.metadata.annotations.iter().map(|(name, value)| (&**name, &**value)).collect();
    let number = |name: &str| annotations[name].parse::<u32>().unwrap();
    let (least, most) =
        (number("autoscaling.knative.dev/minScale"), number("autoscaling.knative.dev/maxScale"));
    assert!(1 <= least && least <= most);
    assert_eq!(annotations["run.googleapis.com/cpu-throttling"], "false", "beacons come between requests");
    assert_eq!(annotations["run.googleapis.com/sessionAffinity"], "false", "nothing needs it");
    assert_eq!(annotations.len(), 4, "others are not looked up: {annotations:?}");
    assert!((1..=1000).contains(&template.spec.container_concurrency));
    assert_eq!(template.spec.timeout_seconds, 3600, "the most that there is");

    let [container] = &template.spec.containers[..] else { panic!("one container") };
    let [port] = &container.ports[..] else { panic!("one port") };
    assert_eq!(port.container_port.to_string(), default_of("PORT"));
    assert_settings(file, container.env.iter().map(|set| (set.name.clone(), set.value.clone())));
    assert_eq!(container.image, "example.org/image:1");
    let value = |name: &str| &*container.env.iter().find(|variable| variable.name == name).unwrap().value;
    assert_eq!((value("GOOGLE_CLOUD_PROJECT"), value("FLY_REGION")), ("my-project", "ams"));
    assert_eq!(template.spec.service_account_name, "alien-alert@my-project.iam.gserviceaccount.com");
    assert_eq!(container.resources.limits["cpu"], "1");
    assert_eq!(container.resources.limits["memory"], "512Mi");
    assert_eq!(container.startup_probe.http_get.path, "/health");
    assert_eq!(
        container.liveness_probe.http_get.path, "/status",
        "a topic that is away must not end the instances"
    );
    for probe in [&container.startup_probe, &container.liveness_probe] {
        assert_route(file, &probe.http_get.path);
        assert!(probe.timeout_seconds <= probe.period_seconds);
    }
    let start = container.startup_probe.period_seconds * container.startup_probe.failure_threshold;
    assert!((10..=240).contains(&start), "a newborn takes up to 10 s: {start}");

    assert_eq!(run.metadata.name, "alien-alert");
}

// The Dockerfile

#[test]
fn the_image_is_what_it_says() {
    assert_eq!(dockerfile("EXPOSE"), [default_of("PORT")]);
    assert_eq!(dockerfile("ENTRYPOINT"), [r#"["/alien-alert"]"#]);
    // Nothing comes in beside what the script puts together, which tests/integration/image.rs runs.
    let dockerfile = read("Dockerfile");
    assert!(dockerfile.contains("scripts/image-root target/release/alien-alert sbom.cdx.json /image"));
    let (_, stages) = dockerfile.split_once("\nFROM scratch AS root\n").expect("it begins with nothing");
    assert!(stages.starts_with("COPY --from=build /image /\n"));
    assert_eq!(stages.lines().filter(|line| line.starts_with("COPY") || line.starts_with("RUN")).count(), 1);

    // Whoever names no stage gets the last one, which is never root; Fly's is, and says as whom to go on.
    let stage = |name: &str| stages.split(&format!("FROM root AS {name}\n")).nth(1).unwrap();
    let (fly_s, others) = (stage("fly").split("FROM").next().unwrap(), stage("image"));
    assert!(others.starts_with("USER 65532:65532\n") && !others.contains("FROM"));
    assert!(fly_s.starts_with("USER 0:0\nENV RUN_AS=65532\n"));
    assert_eq!(fly().build["build-target"], "fly");
    assert!(variables().contains("RUN_AS"));
    assert!(read("scripts/image-root").contains("nonroot:x:65532:65532:"));
    assert!(read("scripts/image-run").contains("user=65532:65532"));
}

#[test]
fn the_compiler_is_one() {
    let toolchain: toml::Table = toml::from_str(&read("rust-toolchain.toml")).unwrap();
    let channel = toolchain["toolchain"]["channel"].as_str().unwrap();
    let base = format!("rust:{channel}-slim-bookworm AS build");
    assert_eq!(dockerfile("FROM"), [&*base, "scratch AS root", "root AS fly", "root AS image"]);
    let compiler = Command::new("rustc").arg("--version").current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let compiler = String::from_utf8(compiler.unwrap().stdout).unwrap();
    assert!(compiler.starts_with(&format!("rustc {channel} ")), "{compiler}");
    let oldest = env!("CARGO_PKG_RUST_VERSION");
    let minor = |version: &str| version.split('.').nth(1).unwrap().parse::<u32>().unwrap();
    assert!(minor(oldest) <= minor(channel), "Cargo.toml's rust-version");
}

/// Docker isn't needed to see that the build has all the files that it wants: cargo reads them.
#[test]
fn the_build_gets_what_it_needs_and_no_key() {
    let allowed = read(".dockerignore");
    let copied: Vec<_> = dockerfile("COPY").into_iter().filter(|line| !line.starts_with("--from")).collect();
    let folder = std::env::temp_dir().join(format!("alien-alert-build-{}", uuid::Uuid::new_v4()));
    for line in &copied {
        let words: Vec<_> = line.split_whitespace().collect();
        let (to, from) = words.split_last().unwrap();
        for from in from {
            assert!(allowed.lines().any(|line| line == format!("!{from}")), "{from} in .dockerignore");
            let to = folder.join(to);
            std::fs::create_dir_all(&to).unwrap();
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(from);
            let source = if source.is_dir() { source.join(".") } else { source };
            let done = Command::new("cp").arg("-r").arg(&source).arg(&to).status().unwrap();
            assert!(done.success(), "{from}");
        }
    }
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--no-deps", "--format-version=1"])
        .current_dir(&folder)
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    for file in ["src/main.rs", "build.rs", "static/index.html", "scripts/sbom", "scripts/image-root"] {
        assert!(folder.join(file).exists(), "{file}");
    }
    std::fs::remove_dir_all(folder).unwrap();
    for file in [".gitignore", ".dockerignore"] {
        assert!(read(file).contains("google-service-account.json"), "{file}");
    }
}

// The documents

/// Every page that people read, but for the bench's.
fn documents() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages =
        [".", "docs", "docs/scale", "deploy/google", "examples/jobs"].into_iter().flat_map(|folder| {
            let files =
                std::fs::read_dir(root.join(folder)).unwrap().map(move |file| file.unwrap().file_name());
            files.map(move |file| format!("{folder}/{}", file.to_str().unwrap()))
        });
    let pages: Vec<_> = pages.filter(|file| file.ends_with(".md")).collect();
    assert!(pages.len() > 10, "{pages:?}");
    pages
}

#[test]
fn documents_name_variables_that_there_are() {
    // Two are the tests' own.
    let known: BTreeSet<_> =
        variables().into_iter().chain(["SOAK_SECONDS", "PARTITION_SECONDS"].map(str::to_owned)).collect();
    for file in documents() {
        let text = read(&file);
        let quoted = text.split('`').skip(1).step_by(2);
        let names = quoted
            .map(|word| word.split('=').next().unwrap())
            .filter(|word| word.contains('_') && word.chars().all(|c| c.is_ascii_uppercase() || c == '_'));
        // OpenTelemetry's own are told by OpenTelemetry.
        for name in names.filter(|name| !name.ends_with('_') && !name.starts_with("OTEL_")) {
            assert!(known.contains(name), "{file} names `{name}`, which alien-alert --help does not");
        }
        let secrets = text.split("fly secrets set ").skip(1).filter_map(|rest| rest.split_once('='));
        for (name, _) in secrets {
            assert!(known.contains(name), "{file} sets {name}, which alien-alert --help does not name");
        }
    }
}
