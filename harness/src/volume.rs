//! Small disks that are really full: a tmpfs of few blocks, or a file system on a loop device
//! whose space a ballast file takes.
//!
//! A disk is made once for each worker, in mounts of its own, and emptied between two points: so
//! nothing stays mounted and no device stays attached, however the worker ends.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::{Statvfs, statvfs};

use crate::error::{Context, Error, Result};
use crate::fault::Injection;
use crate::file_system::{Axis, FileSystem};
use crate::os::mount::{self, Again, LoopDevice};
use crate::os::quota;
use crate::sweep::Reach;

/// What a step takes or gives: a page, and a block of most file systems.
pub const BLOCK_BYTES: u64 = 4096;
/// How many inodes a small disk has.
const INODES: u64 = 4096;
/// How many are free between two points on a disk where each must be taken by a file.
const INODES_FREE: u64 = 128;

/// How far a disk was filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// As was asked for.
    ToThat,
    /// Not at all: it has no more free than was to be left.
    NotAtAll,
}

/// How large a disk is on which a subject can run that writes so many bytes in one run: the usual
/// size, or as much more as that takes.
#[must_use]
pub fn enough_bytes(kind: FileSystem, written: u64) -> u64 {
    // A quarter for what the file system needs itself.
    let needed = needed_bytes(written).saturating_mul(5) / 4;
    let spare = kind.usual_bytes() / 2;
    kind.usual_bytes().max(needed.saturating_add(spare)).next_multiple_of(BLOCK_BYTES)
}

/// The state before, a run, its recovery, and a block here and there.
fn needed_bytes(written: u64) -> u64 {
    written.saturating_mul(3).saturating_add(64 * BLOCK_BYTES)
}

/// A small disk, mounted where a worker works.
#[derive(Debug)]
pub struct Volume {
    root: PathBuf,
    kind: FileSystem,
    /// Whether there are quotas on it.
    quota: bool,
    blocks: u64,
    /// Takes the space that is not to be free.
    ballast: File,
    /// The files that take the inodes that are not to be free.
    inodes: RefCell<Vec<PathBuf>>,
    device: Option<LoopDevice>,
}

impl Volume {
    /// Makes a disk and mounts it at `room`, which only this process and those that it will fork
    /// see.
    pub fn make(room: &Path, reach: &Reach) -> Result<Self> {
        let kind = reach.fs;
        let quota = reach.axes.contains(&Axis::Quota);
        let blocks = reach.fs_bytes.unwrap_or(kind.usual_bytes()).div_ceil(BLOCK_BYTES).max(2);
        mount::make_private().map_err(|error| {
            Error::lacking(format!("cannot have mounts of its own: {error}"))
                .help("run as root, or allow unprivileged user namespaces; `crashtest doctor` shows what is missing")
        })?;
        let device = match kind {
            FileSystem::Tmpfs => {
                let options = format!("mode=700,nr_blocks={blocks},nr_inodes={INODES}");
                mount::tmpfs(room, &options, Again::New)
                    .map_err(|error| cannot_mount(kind, &error))?;
                None
            }
            _ => Some(on_loop_device(room, kind, blocks * BLOCK_BYTES, quota)?),
        };
        let mut home = room.to_owned();
        if quota && kind == FileSystem::Btrfs {
            // Whoever lifts a limit must not be bound by it.
            home.push("keeper");
            quota::make_subvolume(room, "keeper").context("make a subvolume")?;
        }
        let path = home.join("ballast");
        let ballast = File::create_new(&path).context(format_args!("make {}", path.display()))?;
        let inodes = RefCell::default();
        if quota {
            if kind == FileSystem::Btrfs {
                quota::count_subvolumes(&ballast).context("count what is used on btrfs")?;
            }
            quota::obey_quotas().context("obey quotas")?;
        }
        let volume = Self { root: room.to_owned(), kind, quota, blocks, ballast, inodes, device };
        // A tmpfs of no blocks at all would have no limit: there is always one that is taken.
        fallocate(&volume.ballast, FallocateFlags::empty(), 0, BLOCK_BYTES as i64)
            .context(format_args!("take space on {kind}"))?;
        Ok(volume)
    }

    /// Makes sure that there is room for a subject that writes so many bytes in one run.
    pub fn hold(&self, name: &str, bytes: u64) -> Result<()> {
        let free = self.free_blocks().context("ask how much space is free")? * BLOCK_BYTES;
        let needed = needed_bytes(bytes);
        if needed <= free {
            return Ok(());
        }
        let (kind, size) = (self.kind, self.blocks * BLOCK_BYTES);
        Err(Error::usage(format!(
            "{size} bytes of {kind} are too few: `{name}` writes {bytes} bytes in one run, \
             of which three times as much is needed, and {free} are free"
        ))
        .help(format!("give at least --fs-size {}K", (size - free + needed).div_ceil(1024))))
    }

    fn usage(&self) -> Result<Statvfs> {
        statvfs(&self.root).context("ask how much space is free")
    }

    /// Leaves so many blocks or inodes free, if there are as many.
    pub fn fill(&self, axis: Axis, free: u64) -> Result<Filled> {
        let what = || format!("leave {free} {} free on {}", axis.unit(), self.kind);
        let usage = self.usage()?;
        let there = match axis {
            Axis::Inodes => usage.files_free(),
            Axis::Space | Axis::Taken | Axis::Quota => self.free_blocks().with_context(what)?,
        };
        if free >= there {
            return Ok(Filled::NotAtAll);
        }
        self.leave(axis, free, &usage).with_context(what)?;
        Ok(Filled::ToThat)
    }

    fn leave(&self, axis: Axis, free: u64, usage: &Statvfs) -> io::Result<()> {
        if axis != Axis::Inodes {
            // They are taken for points of the other axis only.
            self.give_inodes(0)?;
        }
        match (self.kind, axis) {
            (FileSystem::Tmpfs, Axis::Space | Axis::Taken) => {
                let used = usage.blocks() - usage.blocks_free();
                self.limit(&format!("nr_blocks={}", used + free))
            }
            (FileSystem::Tmpfs, Axis::Inodes) => {
                let used = usage.files() - usage.files_free();
                self.limit(&format!("nr_inodes={}", used + free))
            }
            (_, Axis::Space | Axis::Taken) => self.take_blocks(free),
            (_, Axis::Inodes) => self.take_inodes(free),
            (_, Axis::Quota) => self.allow(Some(free)),
        }
    }

    /// A program that fails with all the space that there is fails because of something else.
    pub fn too_small(&self, name: &str, outcome: &Injection) -> Error {
        let (kind, size) = (self.kind, self.blocks * BLOCK_BYTES);
        let met = match outcome {
            Injection::At(struck) | Injection::Both(struck, _) => struck.to_string(),
            Injection::NotReached => "nothing".to_owned(),
        };
        Error::baseline(format!(
            "`{name}` fails on {kind} of {size} bytes and {INODES} inodes with all of them free: {met}"
        ))
        .help("give more with --fs-size, or use another --fs")
    }

    /// Sets what the quota allows, in blocks; `None` for all there is.
    fn allow(&self, free: Option<u64>) -> io::Result<()> {
        if free.is_some() {
            self.settle();
        }
        let bytes = free.map(|free| free * BLOCK_BYTES);
        match (&self.device, self.kind) {
            (_, FileSystem::Btrfs) => {
                let used = quota::used_by_subvolume(&self.ballast)?;
                let limit = bytes.map_or(u64::MAX, |bytes| used + bytes);
                quota::limit_subvolume(&self.ballast, limit)
            }
            (Some(device), FileSystem::Ext4) => {
                let used = quota::used_by_user(&device.path)?;
                quota::limit_user(&device.path, bytes.map_or(0, |bytes| used + bytes))
            }
            _ => Err(io::Error::other("there are no quotas on it")),
        }
    }

    /// Makes all space free again that the subject has not taken.
    pub fn release(&self) -> Result<()> {
        let what = || format!("free the space of {}", self.kind);
        if self.kind == FileSystem::Tmpfs {
            let options = format!("nr_blocks={},nr_inodes={INODES}", self.blocks);
            // No subject can have taken more than was left to it, and that was no more than this.
            return self.limit(&options).with_context(what);
        }
        if self.quota {
            self.allow(None).with_context(what)?;
        }
        self.ballast.set_len(0).with_context(what)?;
        if self.kind == FileSystem::Btrfs {
            // What was freed can be used after the next commit only, and is not waited for.
            self.settle();
        }
        let taken = self.inodes.borrow().len() as u64;
        self.give_inodes(taken.saturating_sub(INODES_FREE)).with_context(what)
    }

    /// Removes the files that take inodes, but for so many of them.
    fn give_inodes(&self, kept: u64) -> io::Result<()> {
        let mut inodes = self.inodes.borrow_mut();
        let kept = usize::try_from(kept).unwrap_or(usize::MAX).min(inodes.len());
        inodes.drain(kept..).try_for_each(fs::remove_file)
    }

    /// Has all written out, so that what is used can be asked.
    fn settle(&self) {
        // What fails here is what the subject has left: there was no space for it.
        let _ = mount::sync_file_system(&self.ballast);
    }

    fn limit(&self, options: &str) -> io::Result<()> {
        mount::tmpfs(&self.root, options, Again::Change)
    }

    fn free_blocks(&self) -> io::Result<u64> {
        let usage = statvfs(&self.root)?;
        Ok(usage.blocks_available() * usage.fragment_size() / BLOCK_BYTES)
    }

    /// Lets the ballast take what is to be taken. The file system needs blocks to keep account of
    /// the ballast, too, so this may take some turns; and it may keep some for itself.
    fn take_blocks(&self, free: u64) -> io::Result<()> {
        const TURNS: usize = 40;
        self.settle();
        if self.kind == FileSystem::Xfs {
            // XFS frees the blocks of removed files in the background, and waits for that only when
            // it is asked for more than there is.
            let more = signed((self.blocks + 1) * BLOCK_BYTES);
            let length = signed(self.ballast.metadata()?.len());
            let _refused = fallocate(&self.ballast, FallocateFlags::empty(), length, more);
        }
        let mut largest = u64::MAX;
        for _ in 0..TURNS {
            let now = self.free_blocks()?;
            let length = self.ballast.metadata()?.len();
            if now > free && largest > 0 {
                let more = (now - free).min(largest);
                let (from, bytes) = (signed(length), signed(more * BLOCK_BYTES));
                match fallocate(&self.ballast, FallocateFlags::empty(), from, bytes) {
                    Ok(()) => {}
                    Err(nix::errno::Errno::ENOSPC) => largest = more / 2,
                    Err(error) => return Err(error.into()),
                }
            } else if now < free && length >= BLOCK_BYTES {
                let less = ((free - now) * BLOCK_BYTES).min(length);
                self.ballast.set_len(length - less)?;
                largest = 0;
            } else {
                break;
            }
        }
        Ok(())
    }

    fn take_inodes(&self, free: u64) -> io::Result<()> {
        let mut inodes = self.inodes.borrow_mut();
        let directory = self.root.join("inodes");
        fs::create_dir_all(&directory)?;
        let now = statvfs(&self.root)?.files_free();
        for _ in free..now {
            let path = directory.join(inodes.len().to_string());
            File::create(&path)?;
            inodes.push(path);
        }
        for _ in now..free {
            let Some(path) = inodes.pop() else { break };
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

/// Stands for another process on a full disk, which takes what is freed at once.
#[derive(Debug)]
pub struct Taker<'a> {
    volume: &'a Volume,
    /// How many blocks were free when it last looked.
    free: u64,
}

impl<'a> Taker<'a> {
    /// One on a disk as full as it is now.
    pub fn on(volume: &'a Volume) -> io::Result<Self> {
        Ok(Self { volume, free: volume.free_blocks()? })
    }

    /// Takes what was freed since it last looked.
    pub fn take(&mut self) -> io::Result<()> {
        let now = self.volume.free_blocks()?;
        if now > self.free {
            let usage = statvfs(&self.volume.root)?;
            return self.volume.leave(Axis::Taken, self.free, &usage);
        }
        self.free = now;
        Ok(())
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn cannot_mount(kind: FileSystem, error: &io::Error) -> Error {
    let cannot = Error::lacking(format!("cannot mount {kind}: {error}"));
    match error.raw_os_error() {
        Some(libc::EPERM) => cannot.help(
            "run as root, or allow unprivileged user namespaces; `crashtest doctor` shows what is \
             missing",
        ),
        Some(libc::ENODEV) => cannot.help(format!("this kernel has no {kind}; use another --fs")),
        _ => cannot,
    }
}

/// Makes an image beside `room`, puts a file system on it and mounts it there.
fn on_loop_device(room: &Path, kind: FileSystem, bytes: u64, quota: bool) -> Result<LoopDevice> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::lacking(format!("only root can mount {kind}"))
            .help("run as root, or use --fs tmpfs"));
    }
    let path = room.with_extension("img");
    let what = format!("make {}", path.display());
    let _ = fs::remove_file(&path);
    let image =
        File::options().create_new(true).read(true).write(true).open(&path).context(&what)?;
    image.set_len(bytes).context(&what)?;
    let quota = quota && kind == FileSystem::Ext4;
    make_file_system(kind, &path, bytes, quota)?;
    let device = LoopDevice::attach(&image).map_err(|error| {
        let cannot = Error::lacking(format!("cannot get a loop device: {error}"));
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::ENOTTY) => {
                cannot.help("load the module `loop`, or use --fs tmpfs")
            }
            Some(libc::EACCES | libc::EPERM) => {
                cannot.help("this container may not use loop devices; use --fs tmpfs")
            }
            _ => cannot.help("`losetup -a` shows who has them; or use --fs tmpfs"),
        }
    })?;
    let options = if quota { "usrquota" } else { "" };
    mount::device(&device, room, kind.name(), options).map_err(|error| {
        let cannot = cannot_mount(kind, &error);
        if quota && error.raw_os_error() == Some(libc::EINVAL) {
            return cannot.help(
                "does this kernel have quotas for it (CONFIG_QFMT_V2)? those of btrfs need none: \
                 --fs btrfs",
            );
        }
        cannot
    })?;
    Ok(device)
}

/// The name and the options of the tool that makes a file system.
fn tool(kind: FileSystem) -> (&'static str, &'static [&'static str]) {
    match kind {
        FileSystem::Tmpfs => ("true", &[]),
        // Nothing reserved for root, nothing left to be initialised in the background.
        FileSystem::Ext4 => (
            "mkfs.ext4",
            &[
                "-q",
                "-F",
                "-m",
                "0",
                "-b",
                "4096",
                "-N",
                "4096",
                "-E",
                "lazy_itable_init=0,lazy_journal_init=0",
            ],
        ),
        FileSystem::Xfs => ("mkfs.xfs", &["-q", "-f"]),
        FileSystem::Btrfs => ("mkfs.btrfs", &["-q", "-f"]),
    }
}

/// Where a program is; tools for administrators are often not in the path of others.
#[must_use]
pub fn find_tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    let places: Vec<_> = std::env::split_paths(&path).chain(usual).collect();
    places.into_iter().map(|place| place.join(name)).find(|path| path.is_file())
}

/// Puts a file system on an image.
pub fn make_file_system(kind: FileSystem, image: &Path, bytes: u64, quota: bool) -> Result<()> {
    let (name, options) = tool(kind);
    let Some(program) = find_tool(name) else {
        let package = match kind {
            FileSystem::Tmpfs | FileSystem::Ext4 => "e2fsprogs",
            FileSystem::Xfs => "xfsprogs",
            FileSystem::Btrfs => "btrfs-progs",
        };
        return Err(Error::lacking(format!("there is no {name}"))
            .help(format!("install the package {package}, or use another --fs")));
    };
    let output = Command::new(program)
        .args(options)
        .args(if quota { &["-O", "quota"][..] } else { &[] })
        .arg(image)
        .stdin(Stdio::null())
        .output()
        .context(format_args!("run {name}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it does not say why");
    Err(Error::usage(format!("{name} can't make a file system of {bytes} bytes: {}", said.trim()))
        .help(format!(
            "give more with --fs-size; the usual size is {} MiB",
            kind.usual_bytes() >> 20
        )))
}
