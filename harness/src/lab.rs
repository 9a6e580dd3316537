//! Where trials take place: directories that are made for them and taken away again.
//!
//! Everything lies below one base directory, which is removed at the end of the run. If the run is killed, a
//! janitor process that outlives it removes the directory. If the janitor is killed too, the next run does,
//! which finds the lock of the base free.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, PipeWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Gid, Uid};
use rand::TryRng;

use crate::error::{Context, Error, Result};
use crate::os::process;
use crate::os::sandbox;
use crate::tree::{Directory, Kind};

const PREFIX: &str = "crashtest-lab-";
const LOCK: &str = "crashtest-lab.lock";

/// The base directory of one run.
#[derive(Debug)]
pub struct Lab {
    base: PathBuf,
    _lock: Flock<File>,
}

impl Lab {
    /// Makes a base below `parent`, or in the best place: memory, or else the directory for
    /// temporary files.
    pub fn new(parent: Option<&Path>) -> Result<Self> {
        let parent = match parent {
            Some(parent) if parent.is_dir() => fs::canonicalize(parent)
                .context(format_args!("use the directory {}", parent.display()))?,
            Some(parent) => {
                return Err(Error::usage(format!("{} is not a directory", parent.display()))
                    .help("name an existing directory with --dir"));
            }
            None => default_parent()?,
        };
        sweep(&parent);
        let base = make_base(&parent)?;
        let lock = lock(&base.join(LOCK)).context("lock the trial directory")?;
        Ok(Self { base, _lock: lock })
    }

    /// The base directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.base
    }

    /// The directory of one worker, made new. All have names of the same length.
    pub fn room(&self, worker: usize) -> Result<PathBuf> {
        room(self.path(), worker)
    }
}

/// Makes a directory with a new name, which the janitor hears of first.
fn make_base(parent: &Path) -> Result<PathBuf> {
    const TRIES: usize = 100;
    let mut made = Err(io::Error::from(io::ErrorKind::AlreadyExists));
    for _ in 0..TRIES {
        let number = rand::rngs::SysRng.try_next_u64().context("draw a name")?;
        let base = parent.join(format!("{PREFIX}{number:016x}"));
        tell_janitor(&base)?;
        made = fs::DirBuilder::new().mode(0o700).create(&base);
        match &made {
            Ok(()) => return Ok(base),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(_) => break,
        }
    }
    let error = made.err().map(|error| error.to_string()).unwrap_or_default();
    Err(Error::lacking(format!("cannot make a directory in {}: {error}", parent.display()))
        .help("name a writable directory with --dir"))
}

/// The way to the janitor. Every process of the run has it open; when the last has ended the janitor
/// begins.
static JANITOR: OnceLock<PipeWriter> = OnceLock::new();

/// Starts the janitor: a process that removes the bases of this run when all its processes have ended,
/// however they did. To be called before the run has namespaces of its own, which end with it.
pub fn start_janitor() -> Result<()> {
    if JANITOR.get().is_some() {
        return Ok(());
    }
    let (told, tell) = io::pipe().context("make a pipe")?;
    let mut tell = Some(tell);
    process::fork_detached(c"ct-janitor", || {
        drop(tell.take());
        tidy_up(told);
    })
    .context("start a janitor")?;
    match tell {
        Some(tell) => {
            let _ = JANITOR.set(tell);
            Ok(())
        }
        None => Err(Error::internal("the pipe of the janitor is gone")),
    }
}

fn tell_janitor(base: &Path) -> Result<()> {
    start_janitor()?;
    let Some(mut janitor) = JANITOR.get() else {
        return Err(Error::internal("there is no janitor"));
    };
    let line = [base.as_os_str().as_bytes(), b"\0"].concat();
    janitor.write_all(&line).context("tell the janitor of a directory")
}

/// The life of the janitor: hears of directories until every other process of the run has ended.
fn tidy_up(mut told: impl Read) {
    let mut paths = Vec::new();
    // What was heard counts, even if reading fails.
    let _ = told.read_to_end(&mut paths);
    for path in paths.split(|byte| *byte == 0).filter(|path| !path.is_empty()) {
        let (base, heard) = (Path::new(OsStr::from_bytes(path)), Instant::now());
        // The last process of the run closes its files one after another, the lock among them.
        while !remove_base(base, Duration::ZERO) && heard.elapsed() < LOCKED_MAX {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// How long the janitor waits for the lock of a base.
const LOCKED_MAX: Duration = Duration::from_secs(20);

impl Drop for Lab {
    fn drop(&mut self) {
        sandbox::release(self.path());
        // The lock goes last: the janitor, or the next run, removes what is still there after this.
        if empty(self.path(), Some(LOCK.as_ref())).is_ok() {
            let _ = remove_tree(self.path());
        }
    }
}

/// As [`Lab::room`], for a worker that has but the base's path.
pub fn room(base: &Path, worker: usize) -> Result<PathBuf> {
    let room = base.join(format!("w{worker:03}"));
    fs::create_dir_all(&room).context(format_args!("make {}", room.display()))?;
    Ok(room)
}

/// The room in which a path lies; the path itself, if it lies in none.
#[must_use]
pub fn room_of(path: &Path) -> PathBuf {
    let is_base = |path: &&Path| {
        path.parent()
            .and_then(Path::file_name)
            .is_some_and(|name| name.to_string_lossy().starts_with(PREFIX))
    };
    path.ancestors().find(is_base).unwrap_or(path).to_owned()
}

/// Memory if there is any to write to: fsync costs nothing there, and a kill leaves the same.
fn default_parent() -> Result<PathBuf> {
    let memory = Path::new("/dev/shm");
    let writable = tempfile::tempfile_in(memory).is_ok();
    let parent = if writable { memory.to_owned() } else { std::env::temp_dir() };
    fs::canonicalize(&parent).context(format_args!("use the directory {}", parent.display()))
}

fn lock(path: &Path) -> io::Result<Flock<File>> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into())
}

/// Removes what runs left that were killed. What can't be removed belongs to another user.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            remove_base(&entry.path(), WITHOUT_LOCK_AT_LEAST);
        }
    }
}

/// Another run may be about to lock a directory that it has just made.
const WITHOUT_LOCK_AT_LEAST: Duration = Duration::from_secs(60);

/// Removes a base that no run has locked; says whether there is none left that could be removed. One without
/// a lock is removed if it is empty and that old.
fn remove_base(base: &Path, age: Duration) -> bool {
    if base.join(LOCK).is_file() {
        return lock(&base.join(LOCK)).is_ok() && remove_tree(base).is_ok();
    }
    let old = fs::symlink_metadata(base)
        .and_then(|found| found.modified())
        .is_ok_and(|made| made.elapsed().is_ok_and(|passed| passed >= age));
    !old || fs::remove_dir(base).is_ok() || !base.exists()
}

/// Removes a directory and all in it; one that is not there is no error.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let Some(name) = path.file_name() else { return Err(io::ErrorKind::InvalidInput.into()) };
    let gone = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    match Directory::open(parent.unwrap_or(Path::new("."))) {
        Ok(parent) => parent.remove(name).or_else(gone),
        Err(error) => gone(error),
    }
}

/// Removes everything in `directory` but the entry of that name.
pub fn empty(directory: &Path, kept: Option<&OsStr>) -> io::Result<()> {
    let directory = Directory::open(directory)?;
    directory
        .names()?
        .iter()
        .filter(|name| Some(&***name) != kept)
        .try_for_each(|name| directory.remove(name))
}

/// Removes everything below `path` that is no directory.
pub fn remove_files(path: &Path) -> io::Result<()> {
    Directory::open(path)?.remove_files()
}

/// Gives a directory, and all that is in it, to a user.
pub fn give(path: &Path, uid: Uid, gid: Gid) -> io::Result<()> {
    std::os::unix::fs::lchown(path, Some(uid.as_raw()), Some(gid.as_raw()))?;
    Directory::open(path)?.each(&mut |directory, _, name, _| directory.give(name, uid, gid))
}

/// Lets other users reach a room by its path.
pub fn let_in(room: &Path) -> io::Result<()> {
    let base = room_of(room).parent().map(Path::to_owned).unwrap_or_default();
    fs::set_permissions(base, fs::Permissions::from_mode(0o711))
}

/// The regular files in a tree.
pub fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    Directory::open(path)?.each(&mut |_, below, _, kind| {
        if kind == Kind::File {
            files.push(path.join(below));
        }
        Ok(())
    })?;
    Ok(files)
}

/// Copies the regular files, directories and symbolic links below `from`, which is ours, into `to`, which is
/// made.
pub fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    Directory::open(from)?.copy_into(&Directory::open(to)?, u64::MAX)
}

/// The same of a directory of the user's, and no more than so many bytes.
pub fn copy_users(from: &Path, to: &Path, bytes_max: u64) -> io::Result<()> {
    fs::create_dir_all(to)?;
    // The user may name a directory by a link.
    let from = fs::canonicalize(from)?;
    Directory::open_users(&from)?.copy_into(&Directory::open(to)?, bytes_max)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    #[test]
    fn a_lab_goes_away_with_its_directories_even_if_they_lost_their_mode() {
        let parent = tempfile::tempdir().unwrap();
        let lab = Lab::new(Some(parent.path())).unwrap();
        let room = lab.room(0).unwrap();
        fs::create_dir(room.join("closed")).unwrap();
        fs::set_permissions(room.join("closed"), Permissions::from_mode(0o000)).unwrap();
        remove_tree(&room).unwrap();
        drop(lab);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_next_lab_sweeps_what_a_killed_run_left_and_not_what_a_running_one_has() {
        let parent = tempfile::tempdir().unwrap();
        let running = Lab::new(Some(parent.path())).unwrap();
        let dead = parent.path().join("crashtest-lab-dead");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join(LOCK), "").unwrap();
        let begun = parent.path().join("crashtest-lab-begun");
        fs::create_dir(&begun).unwrap();
        let next = Lab::new(Some(parent.path())).unwrap();
        assert!(!dead.exists() && running.path().exists() && next.path().exists());
        // Its run may be about to lock it; the janitor, who comes at the end, does not wait.
        assert!(begun.exists());
        remove_base(&begun, Duration::ZERO);
        remove_base(running.path(), Duration::ZERO);
        assert!(!begun.exists() && running.path().exists());
    }
}
