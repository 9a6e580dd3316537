//! What a real kill of a native program costs, and a failed call, against one bare run of it and
//! against strace.
//!
//! `cargo bench -p crashtest --bench native`; needs a C compiler, and strace for the last one.

use std::path::Path;
use std::process::{Command as Process, Stdio};

use crashtest::errno::{Errno, Way};
use crashtest::fault::{Failing, Fault, FaultKind, Repeat};
use crashtest::inject;
use crashtest::lab::Lab;
use crashtest::op::Family;
use crashtest::os::enclosure::{self, Role};
use crashtest::os::process::{self, Ended};
use crashtest::plan::{Granularity, Planner, Seed};
use crashtest::prepare;
use crashtest::subject::{Command, Subject};
use crashtest::sweep::Reach;
use criterion::{Criterion, Throughput, criterion_group};

fn compile(directory: &Path) -> Option<String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../targets/c/stdio_rename.c");
    let program = directory.join("subject");
    let compiled = Process::new("cc").args(["-O2", "-o"]).args([&program, &source]).status();
    compiled.ok()?.success().then(|| program.display().to_string())
}

fn run_bare(mut program: Process, directory: &Path) {
    let status = program
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.expect("the program starts");
}

fn native(c: &mut Criterion) {
    let lab = Lab::new(None).expect("there is a place for trials");
    process::pin_to_cpu(0).expect("the bench may use a CPU");
    let Some(program) = compile(lab.path()) else {
        eprintln!("skipped: there is no C compiler");
        return;
    };
    let mut group = c.benchmark_group("native");
    let directory = lab.room(9).expect("there is room");
    group.bench_function("bare run", |b| {
        b.iter(|| run_bare(Process::new(&program), &directory));
    });
    let command = Command { argv: vec![program.clone()], ..Command::default() };
    let subject = Subject::Command(Box::new(command));
    let planner = |sites| Planner::new(Seed(1), 0, FaultKind::Kill, Granularity::Byte, sites);
    let prepared =
        prepare::prepare("subject", &subject, &lab, FaultKind::Kill, planner).expect("it works");
    let room = lab.room(0).expect("there is room");
    let mut injector = inject::for_subject(&prepared, &room, None).expect("it can be followed");
    let mut n = 0;
    group.bench_function("kill trial", |b| {
        b.iter(|| {
            n += 1;
            let fault = prepared.planner.fault(n).expect("there are sites");
            injector.inject(&[fault]).expect("the trial works")
        });
    });
    if Process::new("strace").arg("-V").stdout(Stdio::null()).status().is_ok() {
        let mut when = 0;
        group.bench_function("strace", |b| {
            b.iter(|| {
                when = when % 8 + 1;
                let mut strace = Process::new("strace");
                let inject = format!("inject=write:signal=KILL:when={when}");
                strace.args(["-f", "--seccomp-bpf", "-o", "/dev/null", "-e", &inject, &program]);
                run_bare(strace, &directory);
            });
        });
    } else {
        eprintln!("skipped: there is no strace");
    }
    group.finish();
}

/// A sweep of failing calls against a shell loop over strace.
fn failing(c: &mut Criterion) {
    let lab = Lab::new(None).expect("there is a place for trials");
    process::pin_to_cpu(0).expect("the bench may use a CPU");
    let Some(program) = compile(lab.path()) else { return };
    let mut group = c.benchmark_group("failing");
    let directory = lab.room(9).expect("there is room");
    let command = Command { argv: vec![program.clone()], ..Command::default() };
    let subject = Subject::Command(Box::new(command));
    let reach = Reach::default();
    let planner = |sites| Planner::sweeping(FaultKind::Errno, &sites, &reach);
    let prepared =
        prepare::prepare("subject", &subject, &lab, FaultKind::Errno, planner).expect("it works");
    let room = lab.room(0).expect("there is room");
    let mut injector = inject::for_subject(&prepared, &room, None).expect("it can be followed");
    // What the loop over strace does, too: EIO at one write after another.
    let (family, way, repeat) = (Family::Write, Way::NotMade(Errno::Eio), Repeat::Once);
    let faults: Vec<_> = (1..=RUNS)
        .map(|nth| Fault::Errno(Failing { family, nth, way, repeat, second: None }))
        .collect();
    group.throughput(Throughput::Elements(u64::from(RUNS)));
    group.bench_function("errno trials", |b| {
        b.iter(|| injector.inject(&faults).expect("the trials work"));
    });
    for (name, options) in [("strace", "-f"), ("strace with seccomp", "-f --seccomp-bpf")] {
        let script = format!(
            "for n in $(seq {RUNS}); do strace {options} -o /dev/null \
             -e inject=write:error=EIO:when=$n {program}; done"
        );
        if Process::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
            eprintln!("skipped: there is no strace");
            break;
        }
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut shell = Process::new("sh");
                shell.args(["-c", &script]);
                run_bare(shell, &directory);
            });
        });
    }
    group.finish();
}

/// How many runs one iteration has.
const RUNS: u32 = 8;

criterion_group!(benches, native, failing);
fn main() {
    // As a run does: programs are contained.
    if let Role::Outer(ended) = enclosure::enter().expect("a process can be started") {
        assert_eq!(ended, Ended::Status(0), "the bench has failed");
        return;
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
