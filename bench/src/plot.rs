//! The figures as lines, one for each contender: SVG files beside `RESULTS.md`.

use std::fs;
use std::path::Path;

use anyhow::Result;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use crate::figures::{Figures, Measure};
use crate::peer::Peer;

const FOLDER: &str = "plots";
const SIZE: (u32, u32) = (800, 440);

/// The width of the column with their names.
const NAMES: u32 = 120;

/// A contender's points.
type Line = (Peer, Vec<(f64, f64)>);

/// What a plot shows.
struct Plot {
    name: String,
    title: String,
    x: &'static str,
    y: &'static str,
    lines: Vec<Line>,
}

/// Draws what there is; returns the Markdown that shows it.
pub fn all(figures: &Figures, folder: &Path) -> Result<String> {
    let mut text = String::new();
    for plot in plots(figures) {
        fs::create_dir_all(folder.join(FOLDER))?;
        let file = format!("{FOLDER}/{}.svg", plot.name);
        plot.draw(&folder.join(&file))?;
        text += &format!("\n![{}]({file})\n", plot.title);
    }
    Ok(text)
}

/// Those that are a line at all, not a point.
fn plots(figures: &Figures) -> Vec<Plot> {
    let sockets = "sockets";
    let usual =
        figures.settings(Measure::Cpu).iter().map(|setting| setting.sockets).find(|count| *count >= 1_000);
    let mut plots = vec![
        Plot {
            name: "cpu-by-sockets".into(),
            title: format!("{}, one event at a time", Measure::Cpu.title()),
            x: sockets,
            y: "µs",
            lines: lines(figures, Measure::Cpu, |sockets, window| (window == 1).then_some(sockets)),
        },
        Plot {
            name: "cpu-by-window".into(),
            title: format!("{}, {} sockets", Measure::Cpu.title(), usual.unwrap_or_default()),
            x: "events at a time",
            y: "µs",
            lines: lines(figures, Measure::Cpu, |sockets, window| (Some(sockets) == usual).then_some(window)),
        },
        Plot {
            name: "memory-by-sockets".into(),
            title: Measure::Memory.title().into(),
            x: sockets,
            y: "kB",
            lines: lines(figures, Measure::Memory, |sockets, _| Some(sockets)),
        },
    ];
    let mut counts: Vec<_> = figures.latency.keys().map(|key| key.0).collect();
    counts.dedup();
    plots.extend(counts.into_iter().map(|sockets| Plot {
        name: format!("latency-{sockets}"),
        title: format!("From publish to any of {sockets} sockets: share that has the event"),
        x: "ms",
        y: "share",
        lines: latencies(figures, sockets),
    }));
    plots.retain(|plot| plot.lines.iter().any(|line| line.1.len() > 1));
    plots
}

/// A measure's medians, by what `x` makes of its sockets and window.
fn lines(figures: &Figures, measure: Measure, x: impl Fn(usize, usize) -> Option<usize>) -> Vec<Line> {
    let line = |peer| {
        let settings = figures.settings(measure).into_iter();
        let point = |setting| {
            let summary = figures.summary(measure, setting, peer)?;
            Some((x(setting.sockets, setting.window)? as f64, summary.median))
        };
        (peer, settings.filter_map(point).collect())
    };
    figures.peers(measure).map(line).collect()
}

fn latencies(figures: &Figures, sockets: usize) -> Vec<Line> {
    let of = |peer| figures.latency.get(&(sockets, peer)).map(|latency| (peer, latency));
    let line = |(peer, latency): (_, &hdrhistogram::Histogram<u64>)| {
        let point = |percent| {
            let share = f64::from(percent) / 100.0;
            (latency.value_at_quantile(share) as f64 / 1e6, share)
        };
        (peer, (1..100).map(point).collect())
    };
    Peer::ALL.into_iter().filter_map(of).map(line).collect()
}

impl Plot {
    /// What goes over decades is on a logarithmic scale; other heights begin at 0.
    fn draw(&self, file: &Path) -> Result<()> {
        let points = || self.lines.iter().flat_map(|line| &line.1);
        let range = |values: &mut dyn Iterator<Item = f64>| {
            values.fold((f64::MAX, f64::MIN), |(least, most), value| (least.min(value), most.max(value)))
        };
        let (left, right) = range(&mut points().map(|point| point.0));
        let (low, high) = range(&mut points().map(|point| point.1));
        let x = (left..right * 1.02).log_scale();
        if high > 10.0 * low && self.y != "share" {
            self.draw_on(file, x, (low * 0.9..high * 1.1).log_scale())
        } else {
            self.draw_on(file, x, 0.0..high * 1.1)
        }
    }

    fn draw_on<X, Y>(&self, file: &Path, x: X, y: Y) -> Result<()>
    where
        X: AsRangedCoord<Value = f64, CoordDescType: ValueFormatter<f64>>,
        Y: AsRangedCoord<Value = f64, CoordDescType: ValueFormatter<f64>>,
    {
        let root = SVGBackend::new(file, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let (area, names) = root.split_horizontally(SIZE.0 - NAMES);
        let mut chart = ChartBuilder::on(&area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(x, y)?;
        let number = |value: &f64| format!("{}", (value * 1e3).round() / 1e3);
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(self.y)
            .x_label_formatter(&number)
            .y_label_formatter(&number)
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (row, (peer, points)) in (2..).zip(&self.lines) {
            // The same colour in all plots; the program's own line is the thick one.
            let color = Palette99::pick(*peer as usize).to_rgba();
            let style = color.stroke_width(if *peer == Peer::AlienAlert { 4 } else { 2 });
            chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
            let height = row * 20;
            names.draw(&PathElement::new([(0, height), (18, height)], style))?;
            names.draw(&Text::new(peer.name(), (24, height - 6), ("sans-serif", 13)))?;
        }
        root.present()?;
        Ok(())
    }
}
