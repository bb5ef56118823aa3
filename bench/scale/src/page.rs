//! `docs/scale/`: a plot for each question, and `figures.md` with the numbers behind them.

use std::fmt::Write as _;

use anyhow::Result;
use bench::chart::{Chart, Line};

use crate::constants::{HISTORY, REGIONS, SUBSCRIPTIONS, Source, all};
use crate::cost::{self, Bill};
use crate::latency::{self, to_the_last_page};
use crate::storm::{self, Lost, Rolling, back};
use crate::{FLEETS, beacons, fewest, fullest, is_possible};

/// The width of the column with the lines' names.
const NAMES: u32 = 210;

/// Sockets in all, and the fleets that are asked for them.
const SOCKETS: [f64; 6] = [1e3, 1e4, 1e5, 1e6, 1e7, 1e8];
const SIZES: [usize; 4] = [5, 100, 1_000, 10_000];

/// Events a second, to everybody.
const EVENTS: [f64; 3] = [0.1, 1.0, 10.0];

/// Sockets of each VM where these come back: a usual number, half of what `fly.toml` prefers.
const USUAL: usize = 5_000;

/// All files of the folder, by name.
///
/// # Errors
/// A plot can't be drawn.
pub fn made() -> Result<Vec<(String, String)>> {
    let mut files = vec![("figures.md".to_owned(), figures())];
    for (name, chart) in charts() {
        files.push((format!("{name}.svg"), chart.svg()?));
    }
    Ok(files)
}

fn charts() -> Vec<(&'static str, Chart)> {
    let chart = |title: &str, x, y, lines: Vec<(String, Vec<(f64, f64)>)>| Chart {
        title: title.into(),
        x,
        y,
        from_zero: false,
        names: NAMES,
        lines: lines
            .into_iter()
            .enumerate()
            .map(|(colour, (name, points))| Line { name, colour, is_thick: colour == 0, points })
            .collect(),
    };
    let by_vms = |of: &dyn Fn(usize) -> f64| -> Vec<(f64, f64)> {
        FLEETS.iter().map(|vms| (*vms as f64, of(*vms))).collect()
    };
    let google = |bill: Bill| bill.pubsub + bill.google_out;
    let by_sockets = |of: &dyn Fn(Bill) -> f64| -> Vec<(f64, f64)> {
        steps(1e3, 1e8)
            .map(|sockets| (sockets, of(cost::monthly(fewest(sockets), sockets, 1.0, false))))
            .collect()
    };

    let mut by_fleet = vec![("Fly's VMs".to_owned(), by_vms(&|vms| cost::monthly(vms, 0.0, 0.0, false).vms))];
    for events in EVENTS {
        let line = by_vms(&|vms| google(cost::monthly(vms, 0.0, events, false)));
        by_fleet.push((format!("Google, {events} events a second"), line));
    }
    by_fleet.push((
        "the same, 1, with receipts".into(),
        by_vms(&|vms| google(cost::monthly(vms, 0.0, 1.0, true))),
    ));
    by_fleet.push(("beacons alone".into(), by_vms(&beacons::monthly)));

    let latencies = SIZES.map(|vms| {
        let possible = steps(1e3, 1e8).filter(|sockets| is_possible(vms, *sockets));
        let points = possible.map(|sockets| (sockets, to_the_last_page(vms, sockets, 1.0).p99));
        (format!("{vms} VMs"), points.collect())
    });

    vec![
        (
            "cost-by-vms",
            chart(
                "Cost of a fleet by its VMs, what goes out to browsers not counted",
                "VMs",
                "USD a month",
                by_fleet,
            ),
        ),
        (
            "cost-by-sockets",
            chart(
                "Cost by sockets, on the fewest VMs that hold them, one event a second to all",
                "sockets",
                "USD a month",
                vec![
                    ("all of it".into(), by_sockets(&Bill::sum)),
                    ("Fly's VMs".into(), by_sockets(&|bill| bill.vms)),
                    ("Google".into(), by_sockets(&google)),
                    ("Fly to browsers".into(), by_sockets(&|bill| bill.fly_out)),
                ],
            ),
        ),
        (
            "latency-by-sockets",
            chart(
                "From a press to the last page, 99th percentile, one event a second",
                "sockets",
                "ms",
                latencies.into(),
            ),
        ),
        (
            "beacons-cost",
            chart(
                "Cost of beacons",
                "VMs",
                "USD a month",
                vec![
                    ("one a second to each VM".into(), by_vms(&beacons::monthly)),
                    ("one of each VM in 15 s".into(), by_vms(&beacons::monthly_unbounded)),
                ],
            ),
        ),
        (
            "beacons-age",
            chart(
                "What a large fleet pays for that with: time",
                "VMs",
                "s",
                vec![
                    ("a cursor's age".into(), by_vms(&|vms| beacons::cursors(vms).0)),
                    ("until a death is known".into(), by_vms(&beacons::death)),
                    ("a cursor's age after a death".into(), by_vms(&|vms| beacons::cursors(vms).1)),
                    ("the default history window".into(), by_vms(&|_| HISTORY.value)),
                ],
            ),
        ),
        (
            "storms",
            Chart {
                from_zero: true,
                ..chart(
                    "Sockets that were lost: share that is back",
                    "s",
                    "share",
                    storms().into_iter().map(|storm| (storm.name.to_owned(), shares(&storm))).collect(),
                )
            },
        ),
    ]
}

/// Four to a decade.
fn steps(from: f64, to: f64) -> impl Iterator<Item = f64> {
    (0..)
        .map(move |step| from * 10.0_f64.powf(f64::from(step) / 4.0))
        .take_while(move |value| *value < to * 1.01)
}

struct Storm {
    name: &'static str,
    told: &'static str,
    sockets: usize,
    takers: usize,
    lost: Lost,
}

fn storms() -> [Storm; 5] {
    let storm = |name, told, sockets, takers, lost| Storm { name, told, sockets, takers, lost };
    let region = (1_000.0 / REGIONS.value).round() as usize;
    [
        storm(
            "a VM leaves",
            "one VM leaves, as in a rolling deployment; four others take its sockets",
            USUAL,
            4,
            Lost::Told,
        ),
        storm("a VM is killed", "one VM is killed; four others", USUAL, 4, Lost::Cut),
        storm(
            "a full VM is killed",
            "one with 20,000 sockets is killed, and one other takes all of them",
            4 * USUAL,
            1,
            Lost::Cut,
        ),
        storm(
            "a region is lost",
            "a region of a fleet of 1,000 is lost; the next one, as large, takes it",
            region * USUAL,
            region,
            Lost::Cut,
        ),
        storm(
            "100 VMs leave at once",
            "a tenth of 1,000 VMs leaves at once; the others take it",
            100 * USUAL,
            900,
            Lost::Told,
        ),
    ]
}

/// When each hundredth of the sockets is back.
fn shares(storm: &Storm) -> Vec<(f64, f64)> {
    let back = back(storm.sockets, storm.takers, storm.lost);
    (1..=100).map(|percent| (back[storm.sockets * percent / 100 - 1], percent as f64 / 100.0)).collect()
}

fn figures() -> String {
    let mut text = String::from(
        "# Figures of scale\n\n\
         What [scale.md](../scale.md) and its plots rest on. `cargo run -p scale` makes this page; a test holds it \
         to the model, the measured constants to [bench/RESULTS.md](../../bench/RESULTS.md), and the program's own \
         to its source.\n",
    );
    text += &constants();
    text += &costs();
    text += &latencies();
    text += &beacon_table();
    text += &storm_tables();
    text
}

fn constants() -> String {
    let rows = all().into_iter().map(|constant| {
        let from = match constant.from {
            Source::Measured(section, column) => format!("measured: bench/RESULTS.md, {section}, {column}"),
            Source::Own(file, _) => format!("the program's own: {file}"),
            Source::Quoted(page) => format!("quoted: {page}"),
            Source::Assumed(why) => format!("**assumed**: {why}"),
        };
        vec![constant.what.to_owned(), format!("{} {}", number(constant.value), constant.unit), from]
    });
    table("Constants", &["", "", "from"], rows)
}

fn costs() -> String {
    let mut rows = Vec::new();
    for vms in SIZES {
        for events in EVENTS {
            let with = |are_alerts| cost::monthly(vms, 0.0, events, are_alerts);
            let Bill { vms: machines, pubsub, google_out, .. } = with(false);
            let receipts = with(true).sum() - with(false).sum();
            let figures = [events, machines, pubsub, google_out, receipts];
            rows.push([vms as f64].into_iter().chain(figures).map(number).collect());
        }
    }
    let names = [
        "VMs",
        "events a second",
        "Fly's VMs",
        "Pub/Sub, beacons too",
        "out of Google",
        "and receipts, if all are alerts of sockets",
    ];
    let mut text = table("Cost by VMs, USD a month", &names, rows);
    let rows = SOCKETS.map(|sockets| {
        let vms = fewest(sockets);
        let bill = cost::monthly(vms, sockets, 1.0, false);
        let figures = [sockets, vms as f64, bill.vms, bill.pubsub, bill.google_out, bill.fly_out, bill.sum()];
        figures.map(number).to_vec()
    });
    let names =
        ["sockets", "fewest VMs", "Fly's VMs", "Pub/Sub", "out of Google", "Fly to browsers", "all of it"];
    text += &table("Cost by sockets, one event a second to all, USD a month", &names, rows);
    text
}

fn latencies() -> String {
    let mut rows = Vec::new();
    for vms in SIZES {
        for sockets in SOCKETS.into_iter().filter(|sockets| is_possible(vms, *sockets)) {
            let full = fullest(vms, sockets);
            let latency = to_the_last_page(vms, sockets, 1.0);
            let figures =
                [sockets, full, latency::pass(full, 1), latency.p50, latency.p99, latency::sustained(full)];
            rows.push([vms as f64].into_iter().chain(figures).map(number).collect());
        }
    }
    let names = [
        "VMs",
        "sockets",
        "on the fullest VM",
        "one pass over them, ms",
        "to the last page, p50, ms",
        "p99, ms",
        "events a second that a shared CPU keeps up",
    ];
    table("From a press to the last page, one event a second", &names, rows)
}

fn beacon_table() -> String {
    let rows = FLEETS.map(|vms| {
        let (age, held) = beacons::cursors(vms);
        let figures = [
            vms as f64,
            beacons::interval(vms),
            beacons::messages(vms),
            beacons::monthly(vms),
            beacons::monthly_unbounded(vms),
            age,
            beacons::death(vms),
            held,
        ];
        figures.map(number).to_vec()
    });
    let names = [
        "VMs",
        "between two of one VM, s",
        "messages a second",
        "USD a month",
        "USD if each spoke in 15 s",
        "a cursor's age, s",
        "until a death is known, s",
        "a cursor's age after it, s",
    ];
    let mut text = table("Beacons", &names, rows);
    let (whole, killed) = beacons::provable();
    let _ = writeln!(
        text,
        "\nWith the default window of {} s, catch-up can be proven whole up to {} VMs while all is well, and up to \
         {} VMs when one was killed; with more, set `HISTORY_SECONDS` to five times the number of VMs. \
         {} subscriptions end it.",
        number(HISTORY.value),
        number(whole as f64),
        number(killed as f64),
        number(SUBSCRIPTIONS.value),
    );
    text
}

fn storm_tables() -> String {
    let rows = storms().into_iter().map(|storm| {
        let shares = shares(&storm);
        let at = |percent: usize| number(shares[percent - 1].0);
        let (sockets, takers) = (storm.sockets as f64, storm.takers as f64);
        vec![storm.told.to_owned(), number(sockets), number(takers), at(50), at(99), at(100)]
    });
    let names = ["", "sockets", "VMs that take them", "half is back, s", "99 %, s", "all, s"];
    let mut text = table("Storms", &names, rows);
    let mut rows = Vec::new();
    for vms in SIZES {
        for at_once in [1, vms / 10].into_iter().filter(|at_once| *at_once > 0) {
            let Rolling { time, moves, fullest } = storm::rolling(vms, at_once);
            rows.push([vms as f64, at_once as f64, time / 60.0, moves, fullest].map(number).to_vec());
        }
    }
    let names = [
        "VMs",
        "at a time",
        "takes, minutes",
        "a socket moves, times",
        "the fullest VM holds, times the mean",
    ];
    text += &table("Rolling deployments", &names, rows);
    text
}

fn table(title: &str, names: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut text = format!("\n## {title}\n\n| {} |\n|{}\n", names.join(" | "), " --- |".repeat(names.len()));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

/// Three digits, and what is whole as it is; thousands apart.
fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let digits = 2 - value.abs().log10().floor() as i32;
    let scale = 10.0_f64.powi(digits);
    let rounded = (value * scale).round() / scale;
    if rounded.abs() < 1_000.0 {
        let text = format!("{rounded:.*}", usize::try_from(digits).unwrap_or(0));
        let is_whole = !text.contains('.');
        return if is_whole { text } else { text.trim_end_matches('0').trim_end_matches('.').into() };
    }
    let whole = if value.fract() == 0.0 && value < 1e4 { value } else { rounded };
    let digits = format!("{whole:.0}");
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_have_three_digits() {
        let told =
            [0.0, 0.0625, 0.138, 4.23, 20.0, 95.71, 309.0, 3_600.0, 3_150.0, 28_571.4, 1e8].map(number);
        let expected =
            ["0", "0.0625", "0.138", "4.23", "20", "95.7", "309", "3,600", "3,150", "28,600", "100,000,000"];
        assert_eq!(told, expected);
    }
}
