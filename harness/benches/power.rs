//! What it takes to derive and judge crash states, and what following a program costs it.
//!
//! `cargo bench -p crashtest --bench power`. Rates are states a second on one core: of a kill, each
//! byte of a state of 1 MiB that is written in pieces of 8 KiB; of a loss of power, a save of 4 KiB,
//! and 100 saves in one recording. The last lines are what a call costs that is not followed.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use crashtest::exhaustive::exhaust;
use crashtest::history::History;
use crashtest::model::{Files, Node};
use crashtest::op::{ByteOffset, Call, Effect, Op, Trace};
use crashtest::power::derive::{Budget, Derived, derive};
use crashtest::power::lower::lower;
use crashtest::power::profile::{EMBEDDED, Profile};
use crashtest::verdict::Promise;
use crashtest_targets::BotState;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// A recording of saves by a temp file and a rename, or in place.
struct Recorded {
    before: Files,
    trace: Trace,
    history: History,
}

#[derive(Clone, Copy, PartialEq)]
enum How {
    InPlace,
    Replace,
    SyncAndReplace,
}

fn saves(count: u64, bytes: usize, piece: usize, how: How) -> Recorded {
    let state = |version| BotState::sample(version, bytes).to_json();
    let mut before = Files::default();
    before.insert("s".into(), Node::File(state(0)));
    let mut trace = Trace::default();
    let target: PathBuf = if how == How::InPlace { "s".into() } else { "t".into() };
    for version in 1..=count {
        let mut add = |call, effect, result| trace.ops.push(Op::new(call, 1, effect, result));
        let (path, json) = (target.clone(), state(version));
        add(Call::Open, Effect::Open { path: path.clone(), create: true, truncate: true }, 3);
        for (n, piece_bytes) in json.chunks(piece).enumerate() {
            let (path, offset) = (path.clone(), ByteOffset((n * piece) as u64));
            let effect = Effect::Write { path, offset, data: piece_bytes.to_vec() };
            add(Call::Write, effect, piece_bytes.len() as i64);
        }
        if how == How::SyncAndReplace {
            add(Call::Fsync, Effect::Sync { path: path.clone() }, 0);
        }
        add(Call::Close, Effect::Close { path: path.clone() }, 0);
        if how != How::InPlace {
            add(Call::Rename, Effect::Rename { from: path, to: "s".into(), exchange: false }, 0);
        }
        trace.acks.push(trace.ops.len());
    }
    let history = History::of_versions("s".as_ref(), (0..=count).map(state).collect());
    Recorded { before, trace, history }
}

fn all_states(recorded: &Recorded, trace: &Arc<Trace>, profile: &Profile) -> Derived {
    let lowered = lower(trace, &recorded.before, &profile.flags).expect("it is modelled");
    let budget = Budget { states_max: 10_000_000, seed: 1, judged: 1 };
    derive(&lowered, &["s".into()], &recorded.history, budget, &|| false)
}

fn kill(c: &mut Criterion) {
    let recorded = saves(1, 1 << 20, 8192, How::InPlace);
    let promises = BTreeSet::from([Promise::Atomic, Promise::Durable]);
    let judged = || {
        let Recorded { before, trace, history } = &recorded;
        exhaust(trace, before, history, &promises, &|survivor| survivor).expect("it is modelled")
    };
    let mut group = c.benchmark_group("kill");
    group.throughput(Throughput::Elements(judged().states)).sample_size(10);
    group.bench_function("every byte of 1 MiB in 8 KiB writes", |b| b.iter(judged));
    group.finish();
}

fn power(c: &mut Criterion) {
    let cases = [
        ("a 4 KiB save in place", saves(1, 4096, 8192, How::InPlace)),
        ("a 4 KiB save by rename", saves(1, 4096, 8192, How::Replace)),
        ("2 saves of 4 KiB in place", saves(2, 4096, 8192, How::InPlace)),
        ("100 saves, 500 ops", saves(100, 4096, 8192, How::SyncAndReplace)),
        ("1000 saves, 5000 ops", saves(1000, 4096, 8192, How::SyncAndReplace)),
    ];
    for (what, recorded) in &cases {
        let mut group = c.benchmark_group(*what);
        group.sample_size(10);
        for (name, _) in
            EMBEDDED.iter().filter(|(name, _)| ["posix", "ext4", "btrfs"].contains(name))
        {
            let profile = Profile::find(name).expect("it is embedded");
            let trace = Arc::new(recorded.trace.clone());
            let states = all_states(recorded, &trace, &profile).states;
            group.throughput(Throughput::Elements(states));
            group.bench_function(BenchmarkId::new(*name, states), |b| {
                b.iter(|| all_states(recorded, &trace, &profile));
            });
        }
        group.finish();
    }
}

/// What one call that is not followed takes, in nanoseconds, with and without a tracer.
fn tracing(_: &mut Criterion) {
    let directory = tempfile::tempdir().expect("there is a place");
    let program = directory.path().join("calls");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../targets/c/odd/calls.c");
    let compiled = Command::new("cc").args(["-O2", "-o"]).arg(&program).arg(source).status();
    if !compiled.is_ok_and(|status| status.success()) {
        eprintln!("skipped: there is no C compiler");
        return;
    }
    let crashtest = env!("CARGO_BIN_EXE_crashtest");
    let ns = |mut command: Command| -> f64 {
        let output = command.current_dir(directory.path()).output().expect("it starts");
        let text = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        text.lines().find_map(|line| line.trim().parse().ok()).unwrap_or(f64::NAN)
    };
    let started = Instant::now();
    let (mut bare, mut followed) = (Vec::new(), Vec::new());
    while started.elapsed().as_secs() < 6 {
        bare.push(ns(Command::new(&program)));
        // What it printed in the trial directory would be gone with that.
        let out = directory.path().join("ns");
        let _ = std::fs::remove_file(&out);
        let script = format!("exec {} 2>{}", program.display(), out.display());
        let mut command = Command::new(crashtest);
        command.args(["record", "-q", "--", "/bin/sh", "-c", &script]);
        command.current_dir(directory.path()).output().expect("it starts");
        let text = std::fs::read_to_string(&out).unwrap_or_default();
        followed.extend(text.trim().parse::<f64>());
    }
    let least = |all: &[f64]| all.iter().copied().fold(f64::INFINITY, f64::min);
    let (bare, followed) = (least(&bare), least(&followed));
    println!(
        "a call that is not followed: {bare:.1} ns bare, {followed:.1} ns under the tracer, \
         {:.1} ns more",
        followed - bare
    );
}

criterion_group!(benches, kill, power, tracing);
criterion_main!(benches);
