//! Counts the instructions of each part of the hot path, which hardly differ from run to run however
//! busy the machine is, and fails where they are not what they were.
//!
//!     cargo run --release -p hot-path            # counts, and compares
//!     cargo run --release -p hot-path -- renew   # takes what it counts as what is to be
//!
//! Callgrind counts what is done within one function, [`measured`], and so nothing of the setting up. It
//! is called without a framework: that needs a runner that takes minutes to build, and a second optimized
//! build of all that the product has compiled already.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::{env, fs};

use anyhow::{Context as _, Result, ensure};
use hot_path::{Act, PARTS, SetUp};

/// How often a part is done, so that what happens now and then has its share.
const TIMES: u64 = 1_024;

/// A count may be so far from what it was, up or down: one that got better has a new value to keep.
const TOLERANCE: f64 = 0.1;

fn main() -> Result<ExitCode> {
    let words: Vec<_> = env::args().skip(1).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    match words[..] {
        [] => compare(),
        ["renew"] => {
            let mut text = String::new();
            for (part, count) in count_all()? {
                writeln!(text, "{count:>8} {part}")?;
            }
            fs::write(file(), text)?;
            Ok(ExitCode::SUCCESS)
        }
        [part, times] => {
            measured(find(part)?(), times.parse()?);
            Ok(ExitCode::SUCCESS)
        }
        _ => anyhow::bail!("there is `renew`, and a part's name with a number"),
    }
}

fn compare() -> Result<ExitCode> {
    let text = fs::read_to_string(file()).with_context(|| file().display().to_string())?;
    let mut code = ExitCode::SUCCESS;
    for (part, count) in count_all()? {
        let known = text.lines().filter_map(|line| line.trim_start().split_once(' '));
        let expected = known.into_iter().find(|(_, name)| *name == part).map(|(count, _)| count);
        let expected: u64 = expected.unwrap_or("0").parse()?;
        let change = count as f64 / expected as f64 - 1.0;
        let verdict = if change.abs() <= TOLERANCE { "" } else { "  <-- more than 10 %" };
        println!("{count:>8} {part}: {:+.1} % of {expected}{verdict}", change * 100.0);
        if !verdict.is_empty() {
            code = ExitCode::FAILURE;
        }
    }
    if code != ExitCode::SUCCESS {
        println!(
            "Where that is meant: cargo run --release -p hot-path -- renew, and commit {}",
            file().display()
        );
    }
    Ok(code)
}

/// Known to Callgrind by its name.
#[inline(never)]
fn measured(mut act: Act, times: u64) {
    (0..times).for_each(|_| act());
}

fn count_all() -> Result<Vec<(&'static str, u64)>> {
    PARTS.iter().map(|&(part, _)| Ok((part, count(part)?))).collect()
}

/// The instructions of doing `part` once.
fn count(part: &str) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*hot_path*measured*", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe()?)
        .args([part, &TIMES.to_string()])
        .output()
        .context("valgrind")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{part}: {said}");
    // ==7== Collected : 1234567
    let count =
        said.lines().find_map(|line| line.split_once("Collected :")).with_context(|| said.to_string())?;
    let count = count.1.trim().parse::<u64>()? / TIMES;
    ensure!(count > 0, "{part} was not seen: {said}");
    Ok(count)
}

fn find(name: &str) -> Result<SetUp> {
    let part = PARTS.into_iter().find(|(part, _)| *part == name);
    Ok(part.with_context(|| format!("no part is called {name:?}"))?.1)
}

/// What each part took when that was last looked at; each architecture has its own instructions.
fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("instructions.{}.txt", env::consts::ARCH))
}
