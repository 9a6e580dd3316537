//! How fast images of recorded disks are mounted, against the bare kernel, and what recording costs.
//!
//! `cargo bench -p crashtest --bench disks`; needs root, FUSE, loop devices and a C compiler. All figures
//! are ratios in one run.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command as Process;
use std::time::{Duration, Instant};

use crashtest::disk::device::{Disk, Mounted};
use crashtest::disk::images::{Image, images};
use crashtest::disk::log::Tick;
use crashtest::disk::plan::{Cutting, Mode, WriteBack};
use crashtest::disk::protocol::{Answer, Command as Ask};
use crashtest::disk::scribe::Scribe;
use crashtest::fault::FaultKind;
use crashtest::file_system::FileSystem;
use crashtest::inject::resident::{self, Observer};
use crashtest::lab::Lab;
use crashtest::os::mount::{self, LoopDevice};
use crashtest::os::process;
use crashtest::plan::{Granularity, Planner, Seed};
use crashtest::poweroff_disk::Disks;
use crashtest::prepare;
use crashtest::subject::{Command, Prepared, Subject};
use crashtest::volume;

const KINDS: [FileSystem; 3] = [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs];
/// How often a thing is measured; the median counts.
const ROUNDS: usize = 7;
const MOUNTS: usize = 40;
const SAVES: &str = "100";

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// A file system on a plain loop device.
fn plain(lab: &Lab, kind: FileSystem) -> (LoopDevice, std::path::PathBuf) {
    let path = lab.path().join(format!("{kind}.plain"));
    let image = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
    image.set_len(kind.usual_bytes()).unwrap();
    volume::make_file_system(kind, &path, kind.usual_bytes(), false).unwrap();
    let place = lab.path().join(format!("{kind}.place"));
    fs::create_dir_all(&place).unwrap();
    (LoopDevice::attach(&image).unwrap(), place)
}

fn options(kind: FileSystem) -> &'static str {
    if kind == FileSystem::Xfs { "nouuid" } else { "" }
}

/// One image again and again, and the images of a recording.
fn mounts(
    lab: &Lab,
    (disk, view): (&mut Disk, &mut Disk),
    disks: &Disks,
    kind: FileSystem,
    prepared: &Prepared,
) {
    let (device, place) = plain(lab, kind);
    let made = record(disk, disks, kind, prepared, Mode::Sync);
    // The bare kernel has a file system that was unmounted.
    let clean = unmounted(disk, disks, kind);
    let start = Image { certain: 0, kept: Vec::new(), torn: None, until: Tick(0) };
    let mut all = images(&made.1, MOUNTS, 1, None).images;
    all.sort_by_key(|image| image.certain);
    let (mut bare, mut same, mut crashed) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let started = Instant::now();
        for _ in 0..MOUNTS {
            mount::device(&device, &place, kind.name(), options(kind)).unwrap();
            mount::unmount(&place).unwrap();
        }
        bare.push(started.elapsed() / u32::try_from(MOUNTS).unwrap());
        let same_again = vec![start.clone(); MOUNTS];
        for (times, number, shown) in
            [(&mut same, clean, &same_again), (&mut crashed, made.0, &all)]
        {
            let started = Instant::now();
            for image in shown {
                view.show(number, image.clone()).unwrap();
                if view.mount(kind, "").unwrap() == Mounted::Yes {
                    view.unmount().unwrap();
                }
            }
            times.push(started.elapsed() / u32::try_from(shown.len()).unwrap());
        }
    }
    let (bare, same, crashed) = (median(bare), median(same), median(crashed));
    println!(
        "{kind}: bare mount and unmount {bare:?}, of a recorded disk {same:?}: {:.2} of its rate",
        bare.as_secs_f64() / same.as_secs_f64()
    );
    let bare = bare_crashed(
        view,
        (&device, &place),
        &lab.path().join(format!("{kind}.plain")),
        kind,
        (made.0, &all),
    );
    println!(
        "{kind}: crash images, journals carried out: bare {bare:?}, of a recorded disk {crashed:?}: {:.2} \
         of its rate",
        bare.as_secs_f64() / crashed.as_secs_f64()
    );
}

/// How long the bare kernel takes for the same crash images, each copied to the plain image before.
fn bare_crashed(
    view: &mut Disk,
    (device, place): (&LoopDevice, &Path),
    image: &Path,
    kind: FileSystem,
    (number, all): (u32, &[Image]),
) -> Duration {
    let mut times = Vec::new();
    for shown in all {
        view.show(number, shown.clone()).unwrap();
        let copied = Process::new("cp")
            .args(["--sparse=always", "--no-preserve=all"])
            .arg(view.file())
            .arg(image)
            .status();
        assert!(copied.unwrap().success());
        device.forget_cached().unwrap();
        let started = Instant::now();
        if mount::device(device, place, kind.name(), options(kind)).is_ok() {
            mount::unmount(place).unwrap();
        }
        times.push(started.elapsed());
    }
    times.iter().sum::<Duration>() / u32::try_from(times.len()).unwrap()
}

/// A recording of nothing, of a file system that was unmounted.
fn unmounted(disk: &mut Disk, disks: &Disks, kind: FileSystem) -> u32 {
    disk.load(disks.start_of(kind)).unwrap();
    assert_eq!(disk.mount(kind, "").unwrap(), Mounted::Yes);
    disk.unmount().unwrap();
    let (client, slot) = (disk.client(), disk.slot());
    client.tell(&Ask::Record(slot, None)).unwrap();
    let Answer::Log(number, _) = client.ask(&Ask::Stop(slot)).unwrap() else { panic!() };
    number
}

/// Records a run; returns the number of the recording, what was seen, and how long the run took.
fn record(
    disk: &mut Disk,
    disks: &Disks,
    kind: FileSystem,
    prepared: &Prepared,
    mode: Mode,
) -> (u32, crashtest::disk::log::DiskLog, Duration) {
    disk.load(disks.start_of(kind)).unwrap();
    assert_eq!(disk.mount(kind, "").unwrap(), Mounted::Yes);
    let place = disk.place().to_owned();
    let mut resident = resident::of_subject(prepared, &place).unwrap();
    resident.move_in().unwrap();
    let (client, slot) = (disk.client(), disk.slot());
    let write_back = WriteBack { mode, before: Some(2) };
    let mut scribe = Scribe::new((client, slot), (kind, &place), write_back).unwrap();
    scribe.sync().unwrap();
    client.tell(&Ask::Record(slot, None)).unwrap();
    let started = Instant::now();
    let observed = resident.run(&mut scribe).unwrap();
    let took = started.elapsed();
    scribe.between(observed.trace.ops.len()).unwrap();
    let Answer::Log(number, log) = client.ask(&Ask::Stop(slot)).unwrap() else { panic!() };
    drop(scribe);
    disk.unmount().unwrap();
    (number, log, took)
}

/// How much longer a program takes that is recorded.
fn slowdown(
    lab: &Lab,
    disk: &mut Disk,
    disks: &Disks,
    kind: FileSystem,
    subject: (&Path, &Prepared),
) {
    let (device, place) = plain(lab, kind);
    mount::device(&device, &place, kind.name(), options(kind)).unwrap();
    let (mut bare, mut recorded) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let status = Process::new(subject.0)
            .args(["6", SAVES])
            .current_dir(&place)
            .stdout(std::process::Stdio::null())
            .status();
        assert!(status.unwrap().success());
        bare.push(started.elapsed());
        recorded.push(record(disk, disks, kind, subject.1, Mode::Never).2);
    }
    mount::unmount(&place).unwrap();
    let (bare, recorded) = (median(bare), median(recorded));
    println!(
        "{kind}: {SAVES} durable saves on a plain loop image {bare:?}, recorded {recorded:?}: {:.2} times",
        recorded.as_secs_f64() / bare.as_secs_f64()
    );
}

/// How much faster two workers are.
fn workers() {
    let rate = |jobs: &str| {
        let results = tempfile::tempdir().unwrap();
        let started = Instant::now();
        let status = Process::new(env!("CARGO_BIN_EXE_crashtest"))
            .args(["run", "-q", "--scenario", "poweroff-disk", "--seed", "1", "-j", jobs])
            .env("CRASHTEST_RESULTS", results.path())
            .stdout(std::process::Stdio::null())
            .status();
        assert!(status.unwrap().success());
        started.elapsed()
    };
    let (mut one, mut two) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        one.push(rate("1"));
        two.push(rate("2"));
    }
    let (one, two) = (median(one), median(two));
    println!(
        "whole command: one worker {one:?}, two {two:?}: {:.2} times",
        one.as_secs_f64() / two.as_secs_f64()
    );
}

fn main() {
    let lab = Lab::new(None).unwrap();
    let program = lab.path().join("six_saves");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../targets/c/six_saves.c");
    let compiled = Process::new("cc").args(["-O2", "-o"]).args([&program, &source]).status();
    assert!(compiled.unwrap().success());
    let init = lab.path().join("init");
    fs::create_dir_all(&init).unwrap();
    fs::write(init.join("state.json"), "{}").unwrap();
    let argv = vec![program.display().to_string(), "6".to_owned(), SAVES.to_owned()];
    let command = Command { argv, init: Some(init), ..Command::default() };
    let planner = |sites| Planner::new(Seed(1), 0, FaultKind::Kill, Granularity::Byte, sites);
    let subject = Subject::Command(Box::new(command));
    let prepared =
        prepare::prepare("six_saves", &subject, &lab, FaultKind::PowerCut, planner).unwrap();
    let disks = match Disks::start(&Cutting::default(), &lab) {
        Ok(disks) => disks,
        Err(error) => return eprintln!("skipped: {error}"),
    };
    let (mut disk, mut view) = disks.of_worker(lab.path(), 0).unwrap();
    // As a worker is.
    process::pin_to_cpu(0).unwrap();
    // `cargo bench ... -- xfs` is about one alone.
    let asked: Vec<String> = std::env::args().collect();
    let named = |kind: &FileSystem| asked.iter().any(|word| word == kind.name());
    let one = KINDS.iter().any(named);
    for kind in KINDS.into_iter().filter(|kind| !one || named(kind)) {
        disk.detach();
        view.detach();
        mounts(&lab, (&mut disk, &mut view), &disks, kind, &prepared);
        fs::remove_file(lab.path().join(format!("{kind}.plain"))).unwrap();
        slowdown(&lab, &mut disk, &disks, kind, (&program, &prepared));
    }
    drop((disk, view));
    drop(disks);
    if !one {
        workers();
    }
}
