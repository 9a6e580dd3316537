//! What a sandboxed program sees: a plan of mounts, made by looking at the machine and no more.
//!
//! Each directory below `/` becomes an overlay whose upper layer lies in the room of the trial, so
//! that all writes land there. An overlay does not reach into other mounts, so a directory with
//! mounts below it is made up of its entries, in turn.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};

/// One step in building the new root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make this directory.
    Directory(PathBuf),
    /// Make this symbolic link: where it points, and its path.
    Symlink(PathBuf, PathBuf),
    /// Overlay this directory.
    Overlay(PathBuf),
    /// Show this as it is, with all mounts below it.
    Bind(PathBuf),
    /// Show an empty directory of the room here.
    Fresh(PathBuf),
}

/// How a sandbox is built.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Where the new root is put together.
    pub root: PathBuf,
    /// Below this are the upper layers, by path.
    pub upper: PathBuf,
    /// Below this are the work directories of the overlays.
    pub work: PathBuf,
    /// The trial directory, which keeps its path.
    pub directory: PathBuf,
    /// The steps, parents first.
    pub steps: Vec<Step>,
}

/// Where programs put what is no file of theirs.
const SHOWN: [&str; 2] = ["/proc", "/sys"];
/// Directories that may be replaced by an empty one, if the trials take place in it.
const SCRATCH: [&str; 3] = ["/dev/shm", "/tmp", "/var/tmp"];
/// How deep directories that hold mounts are looked through.
const DEPTH_MAX: usize = 8;

impl Sandbox {
    /// Plans the sandbox for one room.
    pub fn plan(room: &Path, directory: &Path) -> Result<Self> {
        let Some(scratch) = SCRATCH.iter().map(PathBuf::from).find(|path| room.starts_with(path))
        else {
            return Err(Error::usage(format!("--sandbox can't work in {}", room.display()))
                .help("let the trials take place below /dev/shm or /tmp: --dir /tmp"));
        };
        let mounts = mount_points()?;
        let mut planner = Planner { mounts, scratch, steps: Vec::new() };
        planner.entries(Path::new("/"), 0).context("look at the directories of this machine")?;
        Ok(Self {
            root: room.join("root"),
            upper: room.join("upper"),
            work: room.join("work"),
            directory: directory.to_owned(),
            steps: planner.steps,
        })
    }
}

struct Planner {
    mounts: BTreeSet<PathBuf>,
    /// The directory with the rooms: layers must not lie in what they are layers of.
    scratch: PathBuf,
    steps: Vec<Step>,
}

impl Planner {
    fn entries(&mut self, directory: &Path, depth: usize) -> io::Result<()> {
        let mut entries: Vec<_> = fs::read_dir(directory)?.collect::<io::Result<_>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_symlink() {
                self.steps.push(Step::Symlink(fs::read_link(&path)?, path));
            } else if kind.is_dir() {
                self.directory(path, depth)?;
            } else {
                self.steps.push(Step::Bind(path));
            }
        }
        Ok(())
    }

    fn directory(&mut self, path: PathBuf, depth: usize) -> io::Result<()> {
        let holds = |other: &PathBuf| *other != path && other.starts_with(&path);
        if SHOWN.iter().any(|shown| path == Path::new(shown)) {
            self.steps.push(Step::Bind(path));
        } else if self.scratch == path {
            self.steps.push(Step::Fresh(path));
        } else if path == Path::new("/dev") {
            // Devices can't be overlaid; what is below is shown as it is, but for shared memory.
            self.steps.push(Step::Bind(path.clone()));
            self.directory(path.join("shm"), depth)?;
        } else if self.mounts.iter().any(holds) || holds(&self.scratch) {
            self.steps.push(Step::Directory(path.clone()));
            if depth < DEPTH_MAX {
                // What may not be looked at is not there for the program either.
                let _ = self.entries(&path, depth + 1);
            }
        } else {
            self.steps.push(Step::Overlay(path));
        }
        Ok(())
    }
}

fn mount_points() -> Result<BTreeSet<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    Ok(text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).collect())
}

/// Spaces and the like are octal there.
fn unescape(field: &str) -> PathBuf {
    let plain = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    let text = plain.iter().fold(field.to_owned(), |text, (code, plain)| text.replace(code, plain));
    PathBuf::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_mounts_below_is_made_of_its_entries_and_others_are_overlaid() {
        let top = tempfile::tempdir().unwrap();
        for name in ["plain", "mixed/mount", "mixed/rest", "tmp"] {
            fs::create_dir_all(top.path().join(name)).unwrap();
        }
        let path = |name: &str| top.path().join(name);
        let mut planner = Planner {
            mounts: BTreeSet::from([path("mixed/mount")]),
            scratch: path("tmp"),
            steps: Vec::new(),
        };
        planner.entries(top.path(), 0).unwrap();
        assert_eq!(
            planner.steps,
            [
                Step::Directory(path("mixed")),
                Step::Overlay(path("mixed/mount")),
                Step::Overlay(path("mixed/rest")),
                Step::Overlay(path("plain")),
                Step::Fresh(path("tmp")),
            ]
        );
    }
}
