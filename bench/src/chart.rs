//! Lines on paper: one look for all plots of the project, as SVG text.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

const SIZE: (u32, u32) = (800, 440);

/// What a plot shows.
pub struct Chart {
    pub title: String,
    pub x: &'static str,
    pub y: &'static str,
    /// Heights begin at 0, even where they go over decades.
    pub from_zero: bool,
    /// The width of the column with the lines' names.
    pub names: u32,
    pub lines: Vec<Line>,
}

/// One line, named beside it.
pub struct Line {
    pub name: String,
    /// Of the palette.
    pub colour: usize,
    /// The one that it is about.
    pub is_thick: bool,
    pub points: Vec<(f64, f64)>,
}

impl Chart {
    /// What goes over decades is on a logarithmic scale.
    pub fn svg(&self) -> Result<String> {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let range = |values: &mut dyn Iterator<Item = f64>| {
            values.fold((f64::MAX, f64::MIN), |(least, most), value| (least.min(value), most.max(value)))
        };
        let (left, right) = range(&mut points().map(|point| point.0));
        let (low, high) = range(&mut points().map(|point| point.1));
        let x = (left..right * 1.02).log_scale();
        if high > 10.0 * low && !self.from_zero {
            self.draw(x, (low * 0.9..high * 1.1).log_scale())
        } else {
            self.draw(x, 0.0..high * 1.1)
        }
    }

    fn draw<X, Y>(&self, x: X, y: Y) -> Result<String>
    where
        X: AsRangedCoord<Value = f64, CoordDescType: ValueFormatter<f64>>,
        Y: AsRangedCoord<Value = f64, CoordDescType: ValueFormatter<f64>>,
    {
        let mut text = String::new();
        self.draw_on(&SVGBackend::with_string(&mut text, SIZE).into_drawing_area(), x, y)?;
        Ok(text)
    }

    fn draw_on<X, Y>(&self, root: &DrawingArea<SVGBackend<'_>, Shift>, x: X, y: Y) -> Result<()>
    where
        X: AsRangedCoord<Value = f64, CoordDescType: ValueFormatter<f64>>,
        Y: AsRangedCoord<Value = f64, CoordDescType: ValueFormatter<f64>>,
    {
        root.fill(&WHITE)?;
        let (area, names) = root.split_horizontally(SIZE.0 - self.names);
        let mut chart = ChartBuilder::on(&area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(self.y)
            .x_label_formatter(&number)
            .y_label_formatter(&number)
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (row, line) in (2..).zip(&self.lines) {
            let style =
                Palette99::pick(line.colour).to_rgba().stroke_width(if line.is_thick { 4 } else { 2 });
            chart.draw_series(LineSeries::new(line.points.iter().copied(), style))?;
            let height = row * 20;
            names.draw(&PathElement::new([(0, height), (18, height)], style))?;
            names.draw(&Text::new(line.name.as_str(), (24, height - 6), ("sans-serif", 13)))?;
        }
        root.present()?;
        Ok(())
    }
}

fn number(value: &f64) -> String {
    let (value, unit) = match value.abs() {
        1e6.. => (value / 1e6, "M"),
        1e5.. => (value / 1e3, "k"),
        _ => (*value, ""),
    };
    format!("{}{unit}", (value * 1e3).round() / 1e3)
}
