//! A run of the scenario `poweroff-disk`: every subject runs on disks that record what is written to
//! them, and the images that a power cut can leave are mounted and looked at, on all workers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::cutter::{Cut, Cutter, Unit};
use crate::disk::client::Server;
use crate::disk::device::Disk;
use crate::disk::plan::{Cutting, WriteBack};
use crate::disk::server::VIEWED;
use crate::error::{Context, Error, Result};
use crate::fault::PowerCut;
use crate::file_system::FileSystem;
use crate::lab::{self, Lab};
use crate::os::mount;
use crate::pool::{Completion, Job, Pool};
use crate::report::power::{Cell, Finding, OnDisk};
use crate::results::RunDirectory;
use crate::run::Request;
use crate::scenario::Expectation;
use crate::subject::{Kind, Prepared};

/// The disks of a run, and the images of empty file systems on them.
pub struct Disks {
    server: Server,
    starts: BTreeMap<FileSystem, u32>,
}

/// The number of the disk on which file systems are made; workers count from 0.
const MAKING: u32 = VIEWED - 1;

impl Disks {
    /// Starts their server, and makes file systems of the kinds that are asked for.
    pub fn start(cutting: &Cutting, lab: &Lab) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::lacking("only root can mount file systems on disks of his own")
                .help("run as root; the scenario poweroff derives the same from a model, for everybody"));
        }
        mount::make_private().map_err(|error| {
            Error::lacking(format!("cannot have mounts of its own: {error}"))
                .help("run as root, outside of a container or in a privileged one")
        })?;
        let directory = |name: &str| {
            let path = lab.path().join(name);
            fs::create_dir_all(&path).context(format_args!("make {}", path.display()))?;
            Ok::<_, Error>(path)
        };
        let server = Server::start(&directory("disks")?)?;
        let mut starts = BTreeMap::new();
        for kind in &cutting.fs {
            let bytes = cutting.fs_bytes.unwrap_or(kind.usual_bytes());
            let mut disk = Disk::new(server.client()?, MAKING, directory("making")?);
            starts.insert(*kind, disk.make(*kind, bytes, lab.path())?);
        }
        Ok(Self { server, starts })
    }

    /// The disks of worker `index`, with a place at which one of them is mounted at a time: one to record
    /// on, and one to look at what is left.
    pub fn of_worker(&self, lab: &Path, index: usize) -> Result<(Disk, Disk)> {
        // A subject that takes its mounts along, as one in a sandbox does, must not hold those of others. And
        // the server must have none of a disk that it serves: if it were the last to end, it would wait for
        // itself.
        mount::make_private().context("have mounts of its own")?;
        let place = lab::room(lab, index)?.join("disk");
        fs::create_dir_all(&place).context(format_args!("make {}", place.display()))?;
        let slot = u32::try_from(index).unwrap_or(0);
        let disk = |slot| Ok::<_, Error>(Disk::new(self.server.client()?, slot, place.clone()));
        Ok((disk(slot)?, disk(slot | VIEWED)?))
    }

    /// The image of an empty file system.
    #[must_use]
    pub fn start_of(&self, fs: FileSystem) -> u32 {
        self.starts.get(&fs).copied().unwrap_or(0)
    }
}

/// How many images of a recording are looked at to find one again.
const AGAIN_MAX: usize = 1000;

/// The recording that is asked for, and then, for a program that is followed, all others in which the same
/// may be seen.
pub fn units_again(
    request: &Request,
    prepared: &Prepared,
    disks: &Disks,
    cut: &PowerCut,
) -> Vec<Unit> {
    let mut recordings = vec![cut.write_back];
    if !matches!(prepared.kind, Kind::Live(_)) {
        let others = request.disk.recordings(prepared.trace.ops.len(), request.seed.0);
        recordings.extend(others.into_iter().filter(|other| *other != cut.write_back));
    }
    let start = disks.start_of(cut.fs);
    let unit =
        |write_back| Unit { subject: 0, fs: cut.fs, start, write_back, images_max: AGAIN_MAX };
    recordings.into_iter().map(unit).collect()
}

/// The recordings of all subjects on all file systems.
fn units(request: &Request, prepared: &[Prepared], disks: &Disks) -> Vec<Unit> {
    let mut units = Vec::new();
    for (subject, one) in prepared.iter().enumerate() {
        for fs in &request.disk.fs {
            let recordings = match &one.kind {
                Kind::Live(_) => request.disk.live_recordings(),
                _ => request.disk.recordings(one.trace.ops.len(), request.seed.0),
            };
            let all: u64 = recordings.iter().map(|recording| recording.mode.share()).sum();
            let start = disks.start_of(*fs);
            let unit = |write_back: WriteBack| {
                let images_max =
                    request.disk.images_max.saturating_mul(write_back.mode.share()).div_ceil(all);
                let images_max = usize::try_from(images_max).unwrap_or(usize::MAX);
                Unit { subject, fs: *fs, start, write_back, images_max }
            };
            units.extend(recordings.into_iter().map(unit));
        }
    }
    units
}

/// Cuts the power of all subjects on all file systems; returns their cells.
pub fn cells(
    request: &Request,
    lab: &Lab,
    prepared: &[Prepared],
    directory: &RunDirectory,
) -> Result<(Vec<Vec<Cell>>, Completion)> {
    let disks = Disks::start(&request.disk, lab)?;
    let units = units(request, prepared, &disks);
    let mut pool = Pool::start(request.place.jobs.min(units.len()), true, |index| {
        let own = disks.of_worker(lab.path(), index)?;
        Ok(Box::new(Cutter::new(request, prepared, &units, Some(directory), own)) as Job<'_, Cut>)
    })?;
    let mut cuts: BTreeMap<u64, Cut> = BTreeMap::new();
    let completion = pool.run_all((units.len() as u64, request.place.quiet), &mut |cut: Cut| {
        let broke = !cut.findings.is_empty();
        cuts.insert(cut.n, cut);
        broke
    })?;
    drop(pool);
    let mut cells = Vec::new();
    for (subject, one) in prepared.iter().enumerate() {
        let of_fs = |fs: &FileSystem| {
            let own =
                units.iter().zip(0..).filter(|(unit, _)| (unit.subject, unit.fs) == (subject, *fs));
            let own: Vec<Cut> = own.filter_map(|(_, n)| cuts.get(&n).cloned()).collect();
            cell(request, one, *fs, own)
        };
        cells.push(request.disk.fs.iter().map(of_fs).collect());
    }
    Ok((cells, completion))
}

/// What the recordings of a subject on a file system have shown together.
fn cell(request: &Request, prepared: &Prepared, fs: FileSystem, cuts: Vec<Cut>) -> Cell {
    let mut on_disk = OnDisk {
        recordings: cuts.len() as u64,
        acks: matches!(prepared.kind, Kind::Live(_)).then(|| cuts.iter().map(|cut| cut.acks).sum()),
        boundaries_sampled: request.disk.samples_boundaries(prepared.trace.ops.len()),
        prefixes_sampled: cuts.iter().any(|cut| !cut.prefixes),
        ..OnDisk::default()
    };
    let mut cell = Cell {
        profile: fs.name().to_owned(),
        states: 0,
        distinct: 0,
        shown: None,
        exhaustive: false,
        not_measured: None,
        tally: crate::tally::Tally::default(),
        findings: Vec::new(),
        expectation: expectation(request, &prepared.name, fs),
        disk: None,
    };
    let (mut seen, mut allowed) = (BTreeSet::new(), BTreeSet::new());
    let mut compared = !cuts.is_empty();
    for cut in cuts {
        cell.states += cut.images;
        cell.tally.merge(&cut.tally);
        seen.extend(cut.seen);
        compared &= cut.allowed.is_some();
        allowed.extend(cut.allowed.into_iter().flatten());
        on_disk.outside.merge(cut.outside);
        on_disk.refused.merge(cut.refused);
        on_disk.stuck.merge(cut.stuck);
        on_disk.harmed.merge(cut.harmed);
        for (finding, classes) in cut.findings {
            fold(&mut cell.findings, finding, &classes);
        }
    }
    cell.distinct = seen.len();
    cell.findings.sort_by_key(|finding| (finding.kind.promise(), finding.explanation.after_ops));
    on_disk.not_compared = !compared && request.disk.profile(fs).is_some();
    if compared {
        on_disk.profile = request.disk.profile(fs).map(str::to_owned);
        on_disk.allowed = allowed.len();
        on_disk.not_seen = allowed.difference(&seen).count();
    }
    cell.disk = Some(on_disk);
    cell
}

/// What is expected of a subject on a file system that is mounted like this.
fn expectation(request: &Request, name: &str, fs: FileSystem) -> Expectation {
    let (disk, usual) = (&request.disk, &request.scenario.disk);
    let mut expectation = request.expectation(name, disk.profile(fs));
    let less = disk.images_max < usual.images_max || disk.write_back != usual.write_back;
    // Of other mount options it is not known what they allow, and of less not what it meets.
    if less || disk.profile(fs).is_none() {
        expectation.breaks.clear();
    }
    expectation
}

/// Adds a finding to those of its cause.
fn fold(findings: &mut Vec<Finding>, finding: Finding, classes: &BTreeSet<u64>) {
    let cause = &finding.explanation.cause;
    match findings.iter_mut().find(|known| known.explanation.cause == *cause) {
        None => findings.push(Finding { survivors: classes.len(), ..finding }),
        Some(known) => {
            known.states += finding.states;
            known.survivors = known.survivors.max(classes.len());
            for (kind, count) in finding.kinds {
                *known.kinds.entry(kind).or_default() += count;
            }
        }
    }
}
