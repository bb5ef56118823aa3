//! `RESULTS.md`: first what is not better than a peer, then a table for each measure.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

use anyhow::Result;

use crate::figures::{Better, Figures, Measure, Setting};
use crate::peer::{self, Peer};
use crate::plot;

/// What is within this of a peer is as good as it: less can't be told apart from run to run.
const ALIKE: f64 = 0.02;

/// Writes `RESULTS.md` and its plots into `folder`.
pub fn write(figures: &Figures, repeats: usize, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let mut text = String::from("# Alien Alert beside its peers\n\n");
    text += &behind(figures);
    writeln!(
        text,
        "\nMedians of {repeats} alternated runs where no other number is told, the least and the most in \
         brackets; after × what {} is of that (below 1 it is the smaller). What is within {:.0} % is as good: runs \
         differ by more. Each server on core {}, the load on core {}. The floor is \
         a bare loop of writes; where files allow, it stands beside each contender and takes turns with it while \
         processor time and latency are measured, and × goes by what both were of the floor's: the machine's own \
         pace changes by a third from one minute to the next. `bench/run` makes this page.\n",
        Peer::AlienAlert.name(),
        ALIKE * 100.0,
        peer::SERVER_CORE,
        peer::LOAD_CORE,
    )?;
    text += &machine();
    text += &plot::all(figures, folder)?;
    for measure in figures.measures() {
        text += &table(figures, measure, repeats);
    }
    fs::write(folder.join("RESULTS.md"), text)?;
    Ok(())
}

/// Where a peer is better, which the first lines say.
fn behind(figures: &Figures) -> String {
    let mut lines = String::new();
    for &(measure, setting, peer) in figures.values.keys() {
        let own = figures.summary(measure, setting, Peer::AlienAlert);
        let (Some(own), Some(other)) = (own, figures.summary(measure, setting, peer)) else { continue };
        let Some(ratio) = figures.ratio(measure, setting, peer) else { continue };
        let worse = match measure.better() {
            Better::Less => ratio > 1.0 + ALIKE,
            Better::More => ratio < 1.0 - ALIKE,
            Better::Neither => false,
        };
        if worse && peer != Peer::AlienAlert {
            let _ = writeln!(
                lines,
                "- {}{}: {} where {} has {} (×{ratio:.2})",
                measure.title(),
                told(setting),
                number(own.median),
                peer.name(),
                number(other.median),
            );
        }
    }
    if lines.is_empty() {
        return "Nothing measured here is worse than a peer's.\n".into();
    }
    format!("Not better than a peer:\n\n{lines}")
}

fn table(figures: &Figures, measure: Measure, repeats: usize) -> String {
    let settings = figures.settings(measure);
    let runs = match figures.runs(measure) {
        1 if repeats > 1 => " (one run)",
        _ => "",
    };
    let mut text = format!("\n## {}{runs}\n\n| |", measure.title());
    for &setting in &settings {
        let _ = write!(text, " {} |", told(setting).trim_start_matches(", "));
    }
    text += "\n| --- |";
    text += &" --- |".repeat(settings.len());
    for peer in figures.peers(measure) {
        let _ = write!(text, "\n| {} |", peer.name());
        for &setting in &settings {
            text += &cell(figures, measure, setting, peer);
        }
    }
    text + "\n"
}

fn cell(figures: &Figures, measure: Measure, setting: Setting, peer: Peer) -> String {
    let Some(one) = figures.summary(measure, setting, peer) else { return " |".into() };
    let mut cell = format!(" {} ({}–{})", number(one.median), number(one.least), number(one.most));
    if let Some(ratio) = figures.ratio(measure, setting, peer).filter(|_| peer != Peer::AlienAlert) {
        let _ = write!(cell, " ×{ratio:.2}");
    }
    cell + " |"
}

fn told(setting: Setting) -> String {
    let mut told = format!(", {} sockets", setting.sockets);
    if setting.window > 0 {
        let _ = write!(told, ", {} at a time", setting.window);
    }
    told
}

/// Three digits say all that the runs agree on.
fn number(value: f64) -> String {
    let digits = if value == 0.0 || value.is_infinite() { 0 } else { 2 - value.abs().log10().floor() as i32 };
    format!("{value:.*}", usize::try_from(digits).unwrap_or_default())
}

/// What it ran on, and which versions.
fn machine() -> String {
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    // Of the machine: this process is kept on one.
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor\t")).count();
    let processor = cpuinfo.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("?");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let package = |name: &str| {
        let text = fs::read_to_string(peers.join("node_modules").join(name).join("package.json"));
        let package: serde_json::Value = serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default();
        package["version"].as_str().unwrap_or("?").to_owned()
    };
    let debian = |name| said("dpkg-query", &["-W", "-f=${Version}", name]);
    format!(
        "Machine: {processor}, {cores} cores, Linux {}. Versions: Bun {}; ws {} and Socket.IO {} on Node {}; \
         Nchan {} on nginx {}; warp 0.4.3; tokio-tungstenite 0.30; {}.\n",
        kernel.trim(),
        package("bun"),
        package("ws"),
        package("socket.io"),
        said("node", &["--version"]),
        debian("libnginx-mod-nchan"),
        debian("nginx-light"),
        said("rustc", &["--version"]),
    )
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or("?".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
