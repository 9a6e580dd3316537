//! A run of the scenario `poweroff-disk`: every subject runs on disks that record what is written to
//! them, and the images that a power cut can leave are mounted and looked at, on all workers.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::cut::Cut;
use crate::cutter::{Cutter, Unit};
use crate::disk::client::Server;
use crate::disk::device::Disk;
use crate::disk::plan::{Cutting, WriteBack};
use crate::disk::server::VIEWED;
use crate::error::{Context, Error, Result};
use crate::fault::{FaultKind, PowerCut};
use crate::file_system::FileSystem;
use crate::lab::{self, Lab};
use crate::os::{enclosure, mount, sandbox};
use crate::planned::Plan;
use crate::pool::{Completion, Job, Pool};
use crate::results::RunDirectory;
use crate::run::Request;
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
        let room = lab::room(lab, index)?;
        if enclosure::refused().is_none() {
            sandbox::share(&room).context("share a mount")?;
        }
        let place = room.join("disk");
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
        let others = request.asked.disk.recordings(prepared.trace.ops.len(), request.asked.seed.0);
        recordings.extend(others.into_iter().filter(|other| *other != cut.write_back));
    }
    let start = disks.start_of(cut.fs);
    let unit = |write_back| Unit {
        piece: 0,
        subject: 0,
        fs: cut.fs,
        start,
        write_back,
        images_max: AGAIN_MAX,
    };
    recordings.into_iter().map(unit).collect()
}

/// One recording of a subject on a file system, which is made for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Of which subject.
    pub subject: usize,
    /// On which file system.
    pub fs: FileSystem,
    /// How write-back is brought about.
    pub write_back: WriteBack,
    /// How many images are looked at.
    pub images_max: usize,
}

/// The recordings of all subjects on all file systems, none where nothing is cut off a real disk.
#[must_use]
pub fn pieces(plan: &Plan) -> Vec<Piece> {
    let (mut pieces, disk) = (Vec::new(), &plan.asked.disk);
    if plan.asked.fault != FaultKind::PowerCut {
        return pieces;
    }
    for (subject, one) in plan.subjects.iter().enumerate() {
        for fs in &disk.fs {
            let recordings = match one.subject.is_live() {
                true => disk.live_recordings(),
                false => disk.recordings(one.sites.sites.len(), plan.asked.seed.0),
            };
            let all: u64 = recordings.iter().map(|recording| recording.mode.share()).sum();
            let piece = |write_back: WriteBack| {
                let images_max =
                    disk.images_max.saturating_mul(write_back.mode.share()).div_ceil(all);
                let images_max = usize::try_from(images_max).unwrap_or(usize::MAX);
                Piece { subject, fs: *fs, write_back, images_max }
            };
            pieces.extend(recordings.into_iter().map(piece));
        }
    }
    pieces
}

/// Cuts the power of all subjects on all file systems, in those pieces that are still to do; `each` hears
/// what came of one.
pub fn cut(
    request: &Request,
    lab: &Lab,
    prepared: &[Prepared],
    (plan, todo): (&Plan, &[u64]),
    directory: &RunDirectory,
    each: &mut dyn FnMut(u64, Cut) -> Result<()>,
) -> Result<Completion> {
    let disks = Disks::start(&request.asked.disk, lab)?;
    let pieces = pieces(plan);
    let of = |n: &u64| Some((*n, pieces.get(usize::try_from(*n).ok()?)?));
    let unit = |(piece, one): (u64, &Piece)| {
        let Piece { subject, fs, write_back, images_max } = *one;
        Unit { piece, subject, fs, start: disks.start_of(fs), write_back, images_max }
    };
    let units: Vec<Unit> = todo.iter().filter_map(of).map(unit).collect();
    let mut pool = Pool::start(request.place.jobs.min(units.len()), true, |index| {
        let own = disks.of_worker(lab.path(), index)?;
        Ok(Box::new(Cutter::new(request, prepared, &units, Some(directory), own)) as Job<'_, Cut>)
    })?;
    let mut kept = Ok(());
    let completion = pool.run_all((units.len() as u64, request.place.quiet), &mut |cut: Cut| {
        let broke = !cut.findings.is_empty();
        let n = usize::try_from(cut.n).ok().and_then(|n| todo.get(n)).copied();
        if let (Some(n), Ok(())) = (n, &kept) {
            kept = each(n, cut);
        }
        broke
    })?;
    kept.map(|()| completion)
}
