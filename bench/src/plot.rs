//! The figures as lines, one for each contender: SVG files beside `RESULTS.md`.

use std::fs;
use std::path::Path;

use anyhow::Result;
use bench::chart::{Chart, Line};

use crate::figures::{Figures, Measure};
use crate::peer::Peer;

const FOLDER: &str = "plots";

/// The width of the column with their names.
const NAMES: u32 = 120;

/// Draws what there is; returns the Markdown that shows it.
pub fn all(figures: &Figures, folder: &Path) -> Result<String> {
    let mut text = String::new();
    for (name, chart) in plots(figures) {
        fs::create_dir_all(folder.join(FOLDER))?;
        let file = format!("{FOLDER}/{name}.svg");
        fs::write(folder.join(&file), chart.svg()?)?;
        text += &format!("\n![{}]({file})\n", chart.title);
    }
    Ok(text)
}

/// Those that are a line at all, not a point, by their names.
fn plots(figures: &Figures) -> Vec<(String, Chart)> {
    let usual =
        figures.settings(Measure::Cpu).iter().map(|setting| setting.sockets).find(|count| *count >= 1_000);
    let chart = |title: String, x, y, lines| Chart { title, x, y, from_zero: false, names: NAMES, lines };
    let mut plots = vec![
        (
            "cpu-by-sockets".into(),
            chart(
                format!("{}, one event at a time", Measure::Cpu.title()),
                "sockets",
                "µs",
                lines(figures, Measure::Cpu, |sockets, window| (window == 1).then_some(sockets)),
            ),
        ),
        (
            "cpu-by-window".into(),
            chart(
                format!("{}, {} sockets", Measure::Cpu.title(), usual.unwrap_or_default()),
                "events at a time",
                "µs",
                lines(figures, Measure::Cpu, |sockets, window| (Some(sockets) == usual).then_some(window)),
            ),
        ),
        (
            "memory-by-sockets".into(),
            chart(
                Measure::Memory.title().into(),
                "sockets",
                "kB",
                lines(figures, Measure::Memory, |sockets, _| Some(sockets)),
            ),
        ),
    ];
    let mut counts: Vec<_> = figures.latency.keys().map(|key| key.0).collect();
    counts.dedup();
    plots.extend(counts.into_iter().map(|sockets| {
        let title = format!("From publish to any of {sockets} sockets: share that has the event");
        let latency = Chart { from_zero: true, ..chart(title, "ms", "share", latencies(figures, sockets)) };
        (format!("latency-{sockets}"), latency)
    }));
    plots.retain(|(_, chart)| chart.lines.iter().any(|line| line.points.len() > 1));
    plots
}

/// The same colour in all plots; the program's own line is the thick one.
fn line(peer: Peer, points: Vec<(f64, f64)>) -> Line {
    let is_thick = peer == Peer::AlienAlert;
    Line { name: peer.name().into(), colour: peer as usize, is_thick, points }
}

/// A measure's medians, by what `x` makes of its sockets and window.
fn lines(figures: &Figures, measure: Measure, x: impl Fn(usize, usize) -> Option<usize>) -> Vec<Line> {
    let of = |peer| {
        let settings = figures.settings(measure).into_iter();
        let point = |setting| {
            let summary = figures.summary(measure, setting, peer)?;
            Some((x(setting.sockets, setting.window)? as f64, summary.median))
        };
        line(peer, settings.filter_map(point).collect())
    };
    figures.peers(measure).map(of).collect()
}

fn latencies(figures: &Figures, sockets: usize) -> Vec<Line> {
    let of = |peer| figures.latency.get(&(sockets, peer)).map(|latency| (peer, latency));
    let drawn = |(peer, latency): (_, &hdrhistogram::Histogram<u64>)| {
        let point = |percent| {
            let share = f64::from(percent) / 100.0;
            (latency.value_at_quantile(share) as f64 / 1e6, share)
        };
        line(peer, (1..100).map(point).collect())
    };
    Peer::ALL.into_iter().filter_map(of).map(drawn).collect()
}
