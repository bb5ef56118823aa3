//! All that the model stands on: each number with its unit, and whether it was measured, is the program's
//! own, is quoted, or is no more than assumed.
//!
//! What was measured is held to `bench/RESULTS.md`, and the program's own to its source, by a test: a
//! constant that is not true any more is a failure, not an old picture.

/// One number.
pub struct Constant {
    pub what: &'static str,
    pub value: f64,
    pub unit: &'static str,
    pub from: Source,
}

/// Where a number is from.
pub enum Source {
    /// The section and the column of `bench/RESULTS.md`.
    Measured(&'static str, &'static str),
    /// A file of the project, and what stands there.
    Own(&'static str, &'static str),
    /// Somebody else's page.
    Quoted(&'static str),
    /// Nobody knows: what it rests on.
    Assumed(&'static str),
}

const fn measured(
    what: &'static str,
    value: f64,
    unit: &'static str,
    section: &'static str,
    column: &'static str,
) -> Constant {
    Constant { what, value, unit, from: Source::Measured(section, column) }
}

const fn own(
    what: &'static str,
    value: f64,
    unit: &'static str,
    file: &'static str,
    text: &'static str,
) -> Constant {
    Constant { what, value, unit, from: Source::Own(file, text) }
}

const fn quoted(what: &'static str, value: f64, unit: &'static str, page: &'static str) -> Constant {
    Constant { what, value, unit, from: Source::Quoted(page) }
}

const fn assumed(what: &'static str, value: f64, unit: &'static str, why: &'static str) -> Constant {
    Constant { what, value, unit, from: Source::Assumed(why) }
}

const CPU: &str = "Processor time per delivery, µs";

pub const DELIVERY: Constant = measured(
    "processor time of a delivery, one event at a time",
    5.85,
    "µs",
    CPU,
    "8000 sockets, 1 at a time",
);
pub const DELIVERY_OF_8: Constant =
    measured("the same of each where eight wait", 0.83, "µs", CPU, "8000 sockets, 8 at a time");
pub const DELIVERY_OF_32: Constant =
    measured("the same where 32 wait", 0.215, "µs", CPU, "8000 sockets, 32 at a time");
pub const FRAME: Constant = measured(
    "an event as a socket hears it",
    360.0,
    "bytes",
    "Bytes of one event, its frame not counted",
    "8000 sockets, 1 at a time",
);
pub const JOINS: Constant = measured(
    "sockets that one VM takes in where thousands come at once",
    27_600.0,
    "a second",
    "Sockets that join at once: upgrades a second",
    "10000 sockets",
);
pub const PROCESS_MEMORY: Constant = measured(
    "an idle socket in the process, at 8,000",
    1.36,
    "kB",
    "Memory (PSS) per idle socket, kB",
    "8000 sockets",
);
pub const KERNEL_MEMORY: Constant = measured(
    "the same in the kernel",
    4.03,
    "kB",
    "Kernel memory per end of an idle socket, kB",
    "8000 sockets",
);

pub const SOCKETS: Constant = own(
    "sockets of a VM at most (`MAX_CONNECTIONS`)",
    20_000.0,
    "",
    "src/config.rs",
    "\"MAX_CONNECTIONS\", \"20000\"",
);
pub const BEACON_INTERVAL: Constant = own(
    "between two beacons of a VM, or as many seconds as there are VMs",
    15.0,
    "s",
    "src/config.rs",
    "\"BEACON_INTERVAL\", \"15\"",
);
pub const HISTORY: Constant = own(
    "how far back catch-up reaches (`HISTORY_SECONDS`)",
    3_600.0,
    "s",
    "src/config.rs",
    "\"HISTORY_SECONDS\", \"3600\"",
);
pub const DEAD: Constant =
    own("beacon intervals after which a silent VM is dead", 2.5, "", "src/fleet.rs", ".mul_f64(2.5)");
pub const SILENT: Constant = own(
    "beacon intervals for which a killed VM holds cursors back",
    4.5,
    "",
    "src/relay/tending.rs",
    "const SILENT: f64 = 4.5;",
);
pub const ANSWERS: Constant = own(
    "VMs that answer an alert, or ask of a newborn",
    20.0,
    "",
    "src/fleet.rs",
    "pub const ANSWERS: f64 = 20.0;",
);
pub const RECEIPTS: Constant = own(
    "messages of receipts on the topic at most",
    200.0,
    "a second",
    "src/receipts.rs",
    "const SPACING: Duration = Duration::from_millis(100);",
);
pub const CLOSING: Constant = own(
    "a leaving VM's closes are spread over",
    1.0,
    "s",
    "src/vm.rs",
    "const CLOSING: Duration = Duration::from_secs(1);",
);
pub const SPREAD: Constant = own(
    "and its clients come back within",
    5.0,
    "s",
    "src/vm.rs",
    "const SPREAD: Duration = Duration::from_secs(5);",
);
pub const FIRST_WAIT: Constant = own(
    "a killed VM's come back within this, and not before its half",
    1.0,
    "s",
    "static/client.js",
    "const FIRST_WAIT = 1_000;",
);
pub const EVENT: Constant = own(
    "an alert with a place, as VMs tell it",
    364.0,
    "bytes",
    "src/event.rs",
    "An alert with a place takes 364 bytes",
);
pub const BEACON: Constant = own("a beacon, as VMs tell it", 340.0, "bytes", "src/event.rs", "a beacon 340");

const PUBSUB: &str = "https://cloud.google.com/pubsub/pricing";
const QUOTAS: &str = "https://cloud.google.com/pubsub/quotas";
const NETWORK: &str = "https://cloud.google.com/vpc/network-pricing, Premium Tier, as others tell it";
const FLY: &str = "https://fly.io/docs/about/pricing/";

pub const SUBSCRIPTIONS: Constant =
    quoted("subscriptions of a topic, and of a project, at most", 10_000.0, "", QUOTAS);
pub const THROUGHPUT: Constant =
    quoted("delivered by streams in a large region, of a project", 4_000.0, "MB a second", QUOTAS);
pub const STREAM: Constant = quoted("delivered by one stream", 10.0, "MB a second", QUOTAS);
pub const LEAST_BILLED: Constant = quoted("billed for a request at least", 1_000.0, "bytes", PUBSUB);
pub const TIB: Constant = quoted("published or delivered", 40.0, "USD a TiB", PUBSUB);
pub const FREE: Constant = quoted("of it free", 10.0, "GiB a month", PUBSUB);
pub const GOOGLE_OUT: [Constant; 3] = [
    quoted("from Google to VMs elsewhere, the first TiB a month", 0.12, "USD a GiB", NETWORK),
    quoted("the next nine", 0.11, "USD a GiB", NETWORK),
    quoted("and beyond", 0.08, "USD a GiB", NETWORK),
];
pub const VM: Constant = quoted("a shared-cpu-1x with 256 MB that never stops", 2.02, "USD a month", FLY);
pub const FLY_OUT: Constant = quoted(
    "from Fly to browsers, in Europe and North America (elsewhere twice and more)",
    0.02,
    "USD a GB",
    FLY,
);
pub const CPU_SHARE: Constant = quoted(
    "of a core that a shared-cpu-1x may use in the long run",
    1.0 / 16.0,
    "",
    "https://fly.io/docs/machines/cpu-performance/",
);

pub const FULLEST: Constant =
    assumed("the fullest VM, by the mean", 1.5, "", "regions differ, and Fly fills the nearest first");
pub const UPLINK: Constant = assumed("from a page to its VM", 25.0, "ms", "the nearest region");
pub const TOPIC_MEDIAN: Constant = assumed(
    "from a VM through the topic to another one: the median",
    80.0,
    "ms",
    "half a round trip between continents, and Google's own; lognormal",
);
pub const TOPIC_P99: Constant =
    assumed("and the 99th percentile", 400.0, "ms", "a promise that Google does not make");
pub const LAST_MILE: Constant =
    assumed("from a VM to a page", 25.0, "ms", "as above; pages that are further or asleep are not counted");
pub const RESTART: Constant = assumed(
    "for Fly to replace a VM in a deployment",
    20.0,
    "s",
    "4 s to leave, a start, and the first health check of 10 s",
);
pub const REGIONS: Constant =
    assumed("regions that the fleet is spread over", 35.0, "", "about as many as Fly has");

/// In the order of the page.
pub fn all() -> Vec<&'static Constant> {
    let mut all = vec![
        &DELIVERY,
        &DELIVERY_OF_8,
        &DELIVERY_OF_32,
        &FRAME,
        &JOINS,
        &PROCESS_MEMORY,
        &KERNEL_MEMORY,
        &SOCKETS,
        &BEACON_INTERVAL,
        &HISTORY,
        &DEAD,
        &SILENT,
        &ANSWERS,
        &RECEIPTS,
        &CLOSING,
        &SPREAD,
        &FIRST_WAIT,
        &EVENT,
        &BEACON,
        &SUBSCRIPTIONS,
        &THROUGHPUT,
        &STREAM,
        &LEAST_BILLED,
        &TIB,
        &FREE,
    ];
    all.extend(&GOOGLE_OUT);
    all.extend([
        &VM,
        &FLY_OUT,
        &CPU_SHARE,
        &FULLEST,
        &UPLINK,
        &TOPIC_MEDIAN,
        &TOPIC_P99,
        &LAST_MILE,
        &RESTART,
        &REGIONS,
    ]);
    all
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Less is the weather of one machine: of times, the constants are the middle of two days' runs, of which
    /// one took half as long again as the other.
    const TOLERANCE: f64 = 0.35;

    fn read(file: &str) -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        std::fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    /// The program's own figure in a table of `RESULTS.md`.
    fn result(results: &str, section: &str, column: &str) -> f64 {
        let section_text = results.split("\n## ").find_map(|text| text.strip_prefix(section));
        let text = section_text.unwrap_or_else(|| panic!("no section {section:?}"));
        let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
        let rows: Vec<_> = text.lines().filter(|line| line.starts_with('|')).map(cells).collect();
        let index = rows[0].iter().position(|cell| cell == column);
        let index = index.unwrap_or_else(|| panic!("no column {column:?} in {section:?}"));
        let row = rows.iter().find(|row| row[1] == "alien-alert").expect("its own row");
        row[index].split(' ').next().unwrap().parse().unwrap()
    }

    #[test]
    fn what_was_measured_is_what_the_bench_last_found() {
        let results = read("bench/RESULTS.md");
        for constant in all() {
            let Source::Measured(section, column) = constant.from else { continue };
            let found = result(&results, section, column);
            let off = (constant.value / found - 1.0).abs();
            let Constant { what, value, unit, .. } = constant;
            assert!(
                off <= TOLERANCE,
                "{what}: {value} {unit} in bench/scale/src/constants.rs, {found} in bench/RESULTS.md; \
                 change the constant, and run: cargo run -p scale"
            );
        }
    }

    #[test]
    fn what_is_the_program_s_own_stands_there() {
        for constant in all() {
            let Source::Own(file, text) = constant.from else { continue };
            assert!(read(file).contains(text), "{}: {text:?} is not in {file}", constant.what);
        }
    }
}
