//! What a sandboxed program sees: a plan of mounts, made by looking at the machine and no more.
//!
//! Each directory below `/` becomes an overlay whose upper layer lies in memory, so that all writes land
//! there and the machine's own files stay as they are. An unprivileged overlay does not reach into other
//! mounts, so a directory with mounts below it is made up of its entries, in turn.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use globset::GlobBuilder;

use crate::error::{Context, Error, Result};

/// One step in building the new root. Paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Make this directory.
    Directory(PathBuf),
    /// Make this symbolic link: where it points, and its path.
    Symlink(PathBuf, PathBuf),
    /// Overlay this directory.
    Overlay(PathBuf),
    /// Show this as it is, and let nothing be written to it.
    ReadOnly(PathBuf),
    /// Show this as it is: what is written to it reaches the machine.
    Bind(PathBuf),
    /// Mount a `/proc` here.
    Proc(PathBuf),
    /// Make a `/dev` with what every program may use here.
    Devices(PathBuf),
}

impl Step {
    /// Where the step puts something.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Directory(path)
            | Self::Symlink(_, path)
            | Self::Overlay(path)
            | Self::ReadOnly(path)
            | Self::Bind(path)
            | Self::Proc(path)
            | Self::Devices(path) => path,
        }
    }
}

/// How a sandbox is built.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The directory of trials, which keeps its path and is not overlaid.
    pub room: PathBuf,
    /// The steps, parents first.
    pub steps: Vec<Step>,
    /// How many bytes a program may write outside of its trial directory.
    pub bytes_max: u64,
}

/// How deep directories that hold mounts are looked through.
const DEPTH_MAX: usize = 8;
/// Where services listen: a socket is reached through a bind mount only, not through an overlay.
const SOCKETS_IN: [&str; 2] = ["/run", "/tmp"];
const SOCKETS_MAX: usize = 128;
const SOCKET_DEPTH_MAX: usize = 3;

impl Plan {
    /// Plans the sandbox for one room; `own` is below which directory mounts are our own, and `allowed` are
    /// globs of files and directories that may be written to.
    pub fn new(room: &Path, own: &Path, allowed: &[String], bytes_max: u64) -> Result<Self> {
        let mut mounts = mount_points()?;
        mounts.retain(|mount| !mount.starts_with(own));
        let mut planner = Planner { mounts, steps: Vec::new() };
        planner.entries(Path::new("/"), 0).context("look at the directories of this machine")?;
        let mut steps = planner.steps;
        let mut sockets = Vec::new();
        for directory in SOCKETS_IN {
            find_sockets(Path::new(directory), own, 0, &mut sockets);
        }
        steps.extend(sockets.into_iter().map(Step::Bind));
        steps.extend(let_through(allowed)?.into_iter().map(Step::Bind));
        Ok(Self { room: room.to_owned(), steps, bytes_max })
    }
}

/// The files and directories of this machine that the globs of `--allow-write` name.
pub fn let_through(globs: &[String]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for text in globs {
        let usage = |why: &str| Error::usage(format!("`--allow-write {text}` {why}"));
        if !text.starts_with('/') {
            return Err(usage("is not an absolute path").help("begin it with a slash"));
        }
        let glob = GlobBuilder::new(text).literal_separator(true).build();
        let glob = glob.map_err(|error| usage(&format!("is not a glob: {}", error.kind())))?;
        let (matcher, before) = (glob.compile_matcher(), found.len());
        expand(Path::new("/"), Path::new(text), &mut |path| {
            if matcher.is_match(path) {
                found.push(path.to_owned());
            }
        });
        if found.len() == before {
            return Err(usage("names nothing on this machine")
                .help("make the file or directory first: only what exists can be let through"));
        }
    }
    Ok(found)
}

/// Shows each path below `directory` that may match `pattern`, which is absolute, component by component.
fn expand(directory: &Path, pattern: &Path, each: &mut impl FnMut(&Path)) {
    let depth = directory.components().count();
    let mut rest = pattern.components().skip(depth);
    let Some(next) = rest.next() else { return each(directory) };
    let text = next.as_os_str().to_string_lossy();
    if !text.contains(['*', '?', '[', '{', '\\']) {
        let path = directory.join(next);
        if path.symlink_metadata().is_ok() {
            expand(&path, pattern, each);
        }
        return;
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        expand(&entry.path(), pattern, each);
    }
}

fn find_sockets(directory: &Path, own: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
        if found.len() >= SOCKETS_MAX || path == own {
            continue;
        }
        if kind.is_socket() {
            found.push(path);
        } else if kind.is_dir() && depth < SOCKET_DEPTH_MAX {
            find_sockets(&path, own, depth + 1, found);
        }
    }
}

struct Planner {
    mounts: BTreeSet<PathBuf>,
    steps: Vec<Step>,
}

impl Planner {
    fn entries(&mut self, directory: &Path, depth: usize) -> io::Result<()> {
        let mut entries: Vec<_> = fs::read_dir(directory)?.collect::<io::Result<_>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            // Other programs make and remove files meanwhile.
            let path = entry.path();
            let Some(kind) = there(entry.file_type())? else { continue };
            if kind.is_symlink() {
                let target = there(fs::read_link(&path))?;
                self.steps.extend(target.map(|target| Step::Symlink(target, path)));
            } else if kind.is_dir() {
                self.directory(path, depth)?;
            } else {
                self.steps.push(Step::ReadOnly(path));
            }
        }
        Ok(())
    }

    fn directory(&mut self, path: PathBuf, depth: usize) -> io::Result<()> {
        let holds = |other: &PathBuf| *other != path && other.starts_with(&path);
        let step = match path.to_str() {
            Some("/proc") => Step::Proc(path),
            Some("/sys") => Step::ReadOnly(path),
            Some("/dev") => {
                let memory = path.join("shm");
                self.steps.push(Step::Devices(path));
                if !memory.is_dir() {
                    return Ok(());
                }
                Step::Overlay(memory)
            }
            _ if self.mounts.iter().any(holds) => {
                self.steps.push(Step::Directory(path.clone()));
                if depth < DEPTH_MAX {
                    // What may not be looked at is not there for the program either.
                    let _ = self.entries(&path, depth + 1);
                }
                return Ok(());
            }
            _ if !path.is_dir() => Step::Directory(path),
            // A file that is a mount of its own, such as /etc/resolv.conf in a container, is no directory.
            _ => Step::Overlay(path),
        };
        self.steps.push(step);
        Ok(())
    }
}

/// What was found, unless it has gone since it was listed.
fn there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// Whether a file or directory is not there any more.
#[must_use]
pub fn is_gone(path: &Path) -> bool {
    matches!(there(fs::symlink_metadata(path)), Ok(None))
}

/// Where something is mounted, as this process sees it.
pub fn mount_points() -> Result<BTreeSet<PathBuf>> {
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
        for name in ["plain", "mixed/mount", "mixed/rest"] {
            fs::create_dir_all(top.path().join(name)).unwrap();
        }
        let path = |name: &str| top.path().join(name);
        let mut planner =
            Planner { mounts: BTreeSet::from([path("mixed/mount")]), steps: Vec::new() };
        planner.entries(top.path(), 0).unwrap();
        assert_eq!(
            planner.steps,
            [
                Step::Directory(path("mixed")),
                Step::Overlay(path("mixed/mount")),
                Step::Overlay(path("mixed/rest")),
                Step::Overlay(path("plain")),
            ]
        );
    }

    #[test]
    fn what_is_let_through_exists_and_is_named_by_an_absolute_glob() {
        let top = tempfile::tempdir().unwrap();
        for name in ["a1", "a2", "b"] {
            fs::write(top.path().join(name), "").unwrap();
        }
        let glob = |name: &str| vec![top.path().join(name).display().to_string()];
        let names = |name: &str| let_through(&glob(name)).map(|found| found.len());
        assert_eq!((names("a*"), names("b")), (Ok(2), Ok(1)));
        assert!(names("c").unwrap_err().message.contains("names nothing"));
        assert!(let_through(&["a".to_owned()]).unwrap_err().message.contains("absolute"));
    }
}
