//! What a trial costs, against the least that it could cost, in one run.
//!
//! `cargo bench -p crashtest --bench trials`; docs/what-it-costs.md has the ratios.

use std::fs;
use std::hint::black_box;
use std::path::Path;

use crashtest::fault::FaultKind;
use crashtest::inject::{Injector, builtin, builtin_recorder};
use crashtest::os::process;
use crashtest::plan::{Granularity, Planner, Seed, Sites};
use crashtest::subject::BuiltIn;
use crashtest_targets::Strategy;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const STATE_BYTES: usize = 4096;

/// Fork, write 4 KiB, be killed, be reaped: nothing else.
fn bare(path: &Path, bytes: &[u8]) {
    let child = process::fork_child(|| {
        let written = fs::write(path, bytes);
        black_box(&written);
        process::kill_self()
    });
    let child = child.expect("the bench can fork");
    black_box(process::wait_for(child).expect("the child can be reaped"));
}

fn built_in(c: &mut Criterion) {
    let lab = crashtest::lab::Lab::new(None).expect("there is a place for trials");
    process::pin_to_cpu(0).expect("the bench may use a CPU");
    let mut group = c.benchmark_group("built-in");
    let (path, bytes) = (lab.path().join("bare"), vec![b'x'; STATE_BYTES]);
    group.throughput(Throughput::Elements(1));
    group.bench_function("bare", |b| b.iter(|| bare(&path, &bytes)));
    for strategy in [Strategy::Unsafe, Strategy::Atomic] {
        let subject = BuiltIn::new(strategy, 1, STATE_BYTES, 0);
        let recorded = builtin_recorder::record(&subject, &lab.path().join("baseline"));
        let (trace, duration) = recorded.expect("the strategy works");
        let sites = Sites::of(&trace, duration);
        let planner = Planner::new(Seed(1), 0, FaultKind::Kill, Granularity::Byte, sites.clone());
        let room = lab.room(0).expect("there is room");
        let mut injector =
            builtin::BuiltInInjector::new(&subject, &sites, &room, None).expect("pipes");
        let mut n = 0;
        group.throughput(Throughput::Elements(injector.together() as u64));
        group.bench_function(strategy.name(), |b| {
            b.iter(|| {
                let faults: Vec<_> = (n..n + injector.together() as u64)
                    .map(|n| planner.fault(n).expect("there are sites"))
                    .collect();
                n += faults.len() as u64;
                injector.inject(&faults).expect("the trials work")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, built_in);
criterion_main!(benches);
