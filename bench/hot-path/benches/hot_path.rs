//! The time that each part of the hot path takes, and a VM's books of its fleet: `cargo bench -p hot-path`.

use criterion::{Criterion, criterion_group, criterion_main};
use hot_path::{FLEETS, PARTS};

fn parts(criterion: &mut Criterion) {
    for (name, set_up) in PARTS.into_iter().chain(FLEETS) {
        let mut act = set_up();
        criterion.bench_function(name, |bencher| bencher.iter(&mut act));
    }
}

criterion_group!(hot_path, parts);
criterion_main!(hot_path);
