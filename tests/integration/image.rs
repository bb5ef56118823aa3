//! The image, without Docker: its file system is put together by the script that the Dockerfile runs,
//! and started as a container would. Read-only, as a user without rights, with nothing else to be seen.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use crate::support::backend::{Backend, says};
use crate::support::certificate::Certificate;
use crate::support::http::{get, knock};
use crate::support::vm::{Vm, program};

/// The most that all of it may be, in bytes.
const MOST: u64 = 25_000_000;

/// The image's file system, in a folder that is gone with this value.
struct Image {
    folder: PathBuf,
    root: PathBuf,
}

impl Image {
    fn put_together() -> Self {
        let folder = std::env::temp_dir().join(format!("alien-alert-image-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).unwrap();
        let image = Self { root: folder.join("root"), folder };
        let sbom = image.folder.join("sbom");
        run("scripts/sbom", &[&sbom]);
        run("scripts/image-root", &[Path::new(&program()), &sbom, &image.root]);
        image
    }

    fn text(&self, file: &str) -> String {
        std::fs::read_to_string(self.root.join(file)).unwrap()
    }

    fn files(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        files(&self.root, &self.root, &mut found);
        found
    }

    fn size(&self, file: &str) -> u64 {
        std::fs::metadata(self.root.join(file)).unwrap().len()
    }

    /// A VM in it; ready when this returns.
    async fn start(&self, vars: &[(&str, &str)]) -> Vm {
        // Tells why, where a container can't be had here.
        let version = run("scripts/image-run", &[&self.root, "--version".as_ref()]);
        assert_eq!(version, concat!("alien-alert ", env!("CARGO_PKG_VERSION"), "\n"));
        self.start_by(&[], &[], vars).await
    }

    /// The same with something in front of the script, and with more words for it.
    async fn start_by(&self, front: &[&str], more: &[&str], vars: &[(&str, &str)]) -> Vm {
        let words = front.iter().map(OsString::from).chain([script("scripts/image-run")]);
        let words: Vec<_> =
            words.chain(more.iter().map(OsString::from)).chain([self.root.clone().into()]).collect();
        let vm = Vm::spawn_by(&words, "in the image", vars).await;
        vm.ready().await;
        vm
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn script(path: &str) -> OsString {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path).into()
}

/// What a script of the project says, if it succeeds.
fn run(path: &str, arguments: &[&Path]) -> String {
    said(path, Command::new(script(path)).args(arguments).output().unwrap())
}

fn said(what: &str, output: Output) -> String {
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn files(root: &Path, folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(root, &path, found);
        } else {
            found.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
        }
    }
}

#[tokio::test]
async fn it_runs_read_only_and_without_rights() {
    let image = Image::put_together();
    let mut vm = image.start(&[]).await;
    let health = get(vm.port, "/health").await;
    assert_eq!((health.status, health.text()), (200, "OK"));
    let page = get(vm.port, "/").await;
    assert_eq!(page.status, 200);
    assert!(page.text().contains("<!doctype html>"), "{}", page.text());
    assert!(get(vm.port, "/status").await.json()["memoryUsage"]["rss"].is_u64());

    if is_root() {
        assert_without_rights(&vm);
    } else {
        let own = proc(&vm, "uid_map");
        assert_eq!(own.split_whitespace().next(), Some("65532"), "{own}");
    }

    // Through its own eyes, where even this process can write nothing.
    let inside = PathBuf::from(format!("/proc/{}/root", vm.pid));
    assert!(inside.join("alien-alert").exists());
    assert!(!inside.join("home").exists());
    for folder in ["", "etc", "etc/ssl/certs", "var/lib/dpkg"] {
        let error = std::fs::write(inside.join(folder).join("new"), "").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem, "/{folder}: {error}");
    }

    let (code, took) = vm.end("INT").await;
    println!("the image: left {took:?} after SIGINT");
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(4), "{took:?}");
}

fn is_root() -> bool {
    said("id", Command::new("id").arg("-u").output().unwrap()) == "0\n"
}

/// What the system says of the process; sudo stands in front of it.
fn proc(vm: &Vm, file: &str) -> String {
    let mut pid = vm.pid.to_string();
    loop {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let Some(child) = children.split_whitespace().next() else { break };
        pid = child.to_owned();
    }
    std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap()
}

fn assert_without_rights(vm: &Vm) {
    let status = proc(vm, "status");
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
    for rights in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(line(rights), "0000000000000000", "{rights}");
    }
    assert_eq!(line("Uid:"), "65532\t65532\t65532\t65532");
    assert_eq!(line("Gid:"), "65532\t65532\t65532\t65532");
    assert_eq!(line("Groups:"), "");
}

/// Fly's machines allow 10,240 open files, as its published init has it, which only root may have raised.
#[tokio::test]
async fn on_fly_it_takes_the_files_that_it_needs_and_gives_up_root() {
    let image = Image::put_together();
    let few = ["prlimit", "--nofile=10240:10240"];
    let sudo: &[&str] = if is_root() { &[] } else { &["sudo", "-n", "--preserve-env"] };
    let front = [sudo, &few].concat();
    let mut vm = image.start_by(&front, &["--root"], &[("RUN_AS", "65532")]).await;
    assert_without_rights(&vm);
    // In some sandboxes root may not either. Then the VM has to live with it, like the one below.
    let more = [&front[..], &["prlimit", "--nofile=10240:1048576", "true"]].concat();
    if Command::new(more[0]).args(&more[1..]).output().unwrap().status.success() {
        assert_eq!(vm.lines(TOO_FEW).len(), 0, "{:?}", vm.log());
        let limits = proc(&vm, "limits");
        let raised = |line: &str| line.starts_with("Max open files") && line.contains("1048576");
        assert!(limits.lines().any(raised), "{limits}");
    } else {
        println!("NOT SHOWN HERE: this machine's root may not raise its limit on open files");
        assert_room_for_fewer(&vm);
    }
    assert_eq!(vm.end("INT").await.0, Some(0));

    assert_room_for_fewer(&image.start_by(&few, &[], &[("RUN_AS", "65532")]).await);
}

const TOO_FEW: &str = "the system allows too few open files";

/// A user without rights has to do with what there is, and it is told.
fn assert_room_for_fewer(vm: &Vm) {
    let [told] = &vm.lines(TOO_FEW)[..] else { panic!("{:?}", vm.log()) };
    assert_eq!((&told["room"], &told["wanted"]), (&9088.into(), &20_000.into()));
}

#[tokio::test]
async fn names_and_certificates_are_found_in_it() {
    let image = Image::put_together();
    let certificate = Certificate::for_this_machine(&[]);
    let backend = Backend::start_tls(certificate.tls.clone(), |_: &Value| says(204, "")).await;
    // As Docker and Fly write it. The list of authorities is the image's own, and this one not on it.
    std::fs::write(image.root.join("etc/hosts"), "127.0.0.1 backend.test\n").unwrap();
    let url = format!("https://backend.test:{}/connect", backend.port);
    let wary = image.start(&[("CONNECT_URL", &url)]).await;
    assert_eq!(knock(&wary, "/ws", &[]).await.status, 503);

    std::fs::copy(&certificate.file, image.root.join("etc/ssl/certs/ca-certificates.crt")).unwrap();
    let trusting = image.start(&[("CONNECT_URL", &url)]).await;
    assert_eq!(knock(&trusting, "/ws", &[]).await.status, 101);
    assert_eq!(backend.asked().len(), 1);
    assert_eq!(backend.connections(), 2, "the name was found both times");
}

#[test]
fn it_is_small_and_lists_what_is_in_it() {
    let image = Image::put_together();
    let libraries = said("ldd", Command::new("ldd").arg(program()).output().unwrap());
    let libraries = libraries.split_whitespace().filter_map(|word| word.strip_prefix('/'));
    let mut expected: BTreeSet<_> = libraries.map(str::to_owned).collect();
    assert!((3..=5).contains(&expected.len()), "libc, libm, libgcc_s and the loader: {expected:?}");
    expected.extend(
        ["alien-alert", "sbom.cdx.json", "etc/passwd", "etc/group", "etc/nsswitch.conf", "etc/os-release"]
            .map(str::to_owned),
    );
    expected.extend(["etc/ssl/certs/ca-certificates.crt", "var/lib/dpkg/status"].map(str::to_owned));
    assert_eq!(image.files(), expected, "no shell, no package manager, nothing else");

    let size: u64 = expected.iter().map(|file| image.size(file)).sum();
    println!("the image: {size} bytes, {} of them the program", image.size("alien-alert"));
    assert!(
        std::env::var_os("ALIEN_ALERT_BIN").is_some(),
        "the image holds an optimized build: cargo build --release, and name it in ALIEN_ALERT_BIN"
    );
    assert!(size <= MOST, "{size} bytes");

    // What scanners read.
    let debian = image.text("var/lib/dpkg/status");
    for package in ["libc6", "libgcc-s1", "ca-certificates"] {
        assert!(debian.contains(&format!("Package: {package}\n")), "{package} in {debian}");
    }
    let listed: BTreeSet<_> = bill(&image.text("sbom.cdx.json"));
    for package in linked() {
        assert!(listed.contains(&package), "{package:?} is in the program and not in sbom.cdx.json");
    }
    let locked: toml::Table = include_str!("../../Cargo.lock").parse().unwrap();
    let locked: BTreeSet<_> = locked["package"].as_array().unwrap().iter().map(named).collect();
    assert!(listed.is_subset(&locked), "listed but not in Cargo.lock: {:?}", &listed - &locked);
}

fn named(package: &toml::Value) -> (String, String) {
    let field = |name: &str| package[name].as_str().unwrap().to_owned();
    (field("name"), field("version"))
}

/// Names and versions of an SBOM, each with what makes it of use.
fn bill(text: &str) -> BTreeSet<(String, String)> {
    let bill: Value = serde_json::from_str(text).unwrap();
    assert_eq!(bill["bomFormat"], "CycloneDX");
    assert_eq!(bill["metadata"]["component"]["name"], "alien-alert");
    let components = bill["components"].as_array().unwrap();
    let named = components.iter().map(|component| {
        let field = |name: &str| component[name].as_str().unwrap_or_default().to_owned();
        let (name, version) = (field("name"), field("version"));
        assert_eq!(field("purl"), format!("pkg:cargo/{name}@{version}"));
        assert!(!component["licenses"].as_array().unwrap().is_empty(), "{name} has no licence");
        assert_eq!(component["hashes"][0]["alg"], "SHA-256", "{name}");
        (name, version)
    });
    named.collect()
}

/// The packages whose code is in the program, as cargo tells them.
fn linked() -> BTreeSet<(String, String)> {
    let tree = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--offline",
            "--package",
            "alien-alert",
            "--edges",
            "normal,no-proc-macro",
        ])
        .args(["--prefix", "none", "--no-dedupe", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let tree = said("cargo tree", tree);
    let packages = tree.lines().map(|line| {
        let mut words = line.split_whitespace();
        (words.next().unwrap().to_owned(), words.next().unwrap().trim_start_matches('v').to_owned())
    });
    let linked: BTreeSet<_> = packages.filter(|(name, _)| name != "alien-alert").collect();
    assert!(linked.len() > 100, "{linked:?}");
    linked
}
