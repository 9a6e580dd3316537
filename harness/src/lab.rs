//! Where trials take place: directories that are made for them and taken away again.
//!
//! Everything lies below one base directory, which is removed at the end of the run; if the run is
//! killed, by a janitor process that outlives it; and if that is killed too, by the next run, which
//! finds the lock of the base free.

use std::fs::{self, File, Permissions};
use std::io::{self, PipeWriter, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::error::{Context, Error, Result};
use crate::os::process;

const PREFIX: &str = "crashtest-lab-";
const LOCK: &str = "crashtest-lab.lock";

/// The base directory of one run.
#[derive(Debug)]
pub struct Lab {
    base: tempfile::TempDir,
    _lock: Flock<File>,
    /// All processes of the run have it open; when the last has ended the janitor hears of it.
    _alive: PipeWriter,
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
        let base =
            tempfile::Builder::new().prefix(PREFIX).tempdir_in(&parent).map_err(|error| {
                Error::lacking(format!("cannot make a directory in {}: {error}", parent.display()))
                    .help("name a writable directory with --dir")
            })?;
        let lock = lock(&base.path().join(LOCK)).context("lock the trial directory")?;
        let alive = start_janitor(base.path())?;
        Ok(Self { base, _lock: lock, _alive: alive })
    }

    /// The base directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.base.path()
    }

    /// The directory of one worker, made new. All have names of the same length.
    pub fn room(&self, worker: usize) -> Result<PathBuf> {
        room(self.path(), worker)
    }
}

/// Starts a process that removes `base` when all others of the run have ended, however they did.
fn start_janitor(base: &Path) -> Result<PipeWriter> {
    let (mut ended, alive) = io::pipe().context("make a pipe")?;
    let mut alive = Some(alive);
    process::fork_detached(c"ct-janitor", || {
        drop(alive.take());
        // Nobody writes: this returns at the end.
        let _ = ended.read(&mut [0]);
        let _ = remove_tree(base);
    })
    .context("start a janitor")?;
    alive.ok_or_else(|| Error::internal("the pipe of the janitor is gone"))
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The overlays of a sandbox leave directories without any permissions, at which the
        // ordinary removal stops. What is still there after this is removed by the next run.
        let _ = remove_tree(self.path());
    }
}

/// As [`Lab::room`], for a worker that has but the base's path.
pub fn room(base: &Path, worker: usize) -> Result<PathBuf> {
    let room = base.join(format!("w{worker:03}"));
    fs::create_dir_all(&room).context(format_args!("make {}", room.display()))?;
    Ok(room)
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

/// Removes what runs left that were killed. Whatever can't be removed is somebody else's.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if ours && path.join(LOCK).is_file() && lock(&path.join(LOCK)).is_ok() {
            let _ = remove_tree(&path);
        }
    }
}

/// Removes a directory and all in it, directories without permissions too.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            fs::remove_dir_all(path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes everything below `path` that is no directory.
pub fn remove_files(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_files(&entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes `path` and all directories below it readable and writable for their owner.
pub fn open_up(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

/// The regular files in a tree.
pub fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            files.extend(self::files(&entry.path())?);
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(files)
}

/// Copies the regular files, directories and symbolic links below `from` into `to`.
pub fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&source, &target)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_file() {
            fs::copy(&source, &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
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
        let next = Lab::new(Some(parent.path())).unwrap();
        assert!(!dead.exists() && running.path().exists() && next.path().exists());
    }
}
