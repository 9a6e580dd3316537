//! What a point of a sweep of a full disk costs, against a kill of the same subject and one mount.
//!
//! `cargo bench -p crashtest --bench full_disk`; ext4 needs root, the native program a C compiler.

use std::path::Path;
use std::process::Command as Process;
use std::rc::Rc;

use crashtest::fault::{DiskFull, Fault, FaultKind};
use crashtest::file_system::{Axis, FileSystem};
use crashtest::inject;
use crashtest::lab::Lab;
use crashtest::os::mount::{self, Again};
use crashtest::os::process;
use crashtest::plan::{Granularity, Planner, Seed};
use crashtest::prepare;
use crashtest::subject::{Command, Prepared, Subject};
use crashtest::sweep::Reach;
use crashtest::volume::Volume;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// How many points one iteration has.
const POINTS: u64 = 8;

fn compile(directory: &Path) -> Option<Subject> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../targets/c/stdio_rename.c");
    let program = directory.join("subject");
    let compiled = Process::new("cc").args(["-O2", "-o"]).args([&program, &source]).status();
    let argv = vec![program.display().to_string()];
    let command = Command { argv, ..Command::default() };
    compiled.ok()?.success().then(|| Subject::Command(Box::new(command)))
}

fn prepared(subject: &Subject, lab: &Lab, kind: FaultKind) -> Prepared {
    let planner = |sites| match kind {
        FaultKind::DiskFull => Planner::sweeping(kind, &sites, &Reach::default()),
        _ => Planner::new(Seed(1), 0, kind, Granularity::Byte, sites),
    };
    prepare::prepare("subject", subject, lab, kind, planner).expect("it works")
}

fn kills(c: &mut Criterion, name: &str, subject: &Subject, lab: &Lab) {
    let prepared = prepared(subject, lab, FaultKind::Kill);
    let room = lab.room(0).expect("there is room");
    let mut injector = inject::for_subject(&prepared, &room, None).expect("it works");
    let together = (injector.together() as u64).min(POINTS);
    let mut n = 0;
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(together));
    group.bench_function("sigkill trials", |b| {
        b.iter(|| {
            let fault = |n| prepared.planner.fault(n).expect("there are sites");
            let faults: Vec<_> = (n..n + together).map(fault).collect();
            n += together;
            injector.inject(&faults).expect("the trials work")
        });
    });
    group.finish();
}

fn points(c: &mut Criterion, name: &str, subject: &Subject, lab: &Lab, fs: FileSystem, n: usize) {
    let prepared = prepared(subject, lab, FaultKind::DiskFull);
    let room = lab.room(n).expect("there is room");
    let volume = match Volume::make(&room, &Reach::on(fs)) {
        Ok(volume) => Rc::new(volume),
        Err(error) => return eprintln!("skipped: {error}"),
    };
    let mut injector = inject::for_subject(&prepared, &room, Some(volume)).expect("it works");
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(POINTS));
    group.bench_function(format!("points on {fs}"), |b| {
        b.iter(|| {
            for free in 0..POINTS {
                let (axis, kill_before) = (Axis::Space, None);
                let fault = Fault::DiskFull(DiskFull { fs, axis, free, kill_before });
                injector.inject(&[fault]).expect("the trial works");
            }
        });
    });
    group.finish();
}

fn one_mount(c: &mut Criterion, lab: &Lab) {
    let room = lab.room(9).expect("there is room");
    mount::make_private().expect("mounts of its own");
    c.bench_function("one mount of a tmpfs", |b| {
        b.iter(|| {
            mount::tmpfs(&room, "nr_blocks=100", Again::New).expect("it can be mounted");
            nix::mount::umount(&room).expect("it can be unmounted");
        });
    });
}

fn full_disk(c: &mut Criterion) {
    let lab = Lab::new(None).expect("there is a place for trials");
    process::pin_to_cpu(0).expect("the bench may use a CPU");
    let strategy = "atomic".to_owned();
    let built_in = Subject::built_in(&strategy, 2, 8192, 6000);
    let native = compile(lab.path());
    kills(c, "built-in", &built_in, &lab);
    if let Some(native) = &native {
        kills(c, "native", native, &lab);
    }
    // From here on this process has mounts of its own.
    one_mount(c, &lab);
    points(c, "built-in", &built_in, &lab, FileSystem::Tmpfs, 1);
    if let Some(native) = &native {
        points(c, "native", native, &lab, FileSystem::Tmpfs, 2);
    }
    points(c, "built-in", &built_in, &lab, FileSystem::Ext4, 3);
}

criterion_group!(benches, full_disk);
criterion_main!(benches);
