//! The tree of mounts that a sandboxed program sees as its root.
//!
//! It is put together on a *stage*, a tmpfs in the mounts of the worker: `root` is the tree, `upper` holds
//! what was written, by path, and `work` is for the overlays. The program's own mount namespace has a copy
//! of the tree, to which later mounts of the worker propagate.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use crate::os::mount::{self, Again, errno, read_only};
use crate::sandbox::{Plan, Step, is_gone};

const NOTHING: Option<&str> = None;

/// The devices that every program may use: they hold nothing.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Links of `/dev`: where they point, and their names.
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// The directories of a stage.
#[derive(Clone, Debug)]
pub struct Stage {
    place: PathBuf,
    /// Whether the overlays are made in a user namespace.
    unprivileged: bool,
}

impl Stage {
    /// Mounts an empty stage at `place`.
    pub fn mount(place: &Path, bytes_max: u64, unprivileged: bool) -> io::Result<Self> {
        fs::create_dir_all(place)?;
        // A page for each inode, so that this many empty files fit, too.
        let options = format!("mode=755,size={}k", (bytes_max >> 10).max(1 << 14));
        mount::tmpfs(place, &options, Again::New)?;
        let stage = Self { place: place.to_owned(), unprivileged };
        for name in ["root", "upper", "work"] {
            fs::create_dir(stage.place.join(name))?;
        }
        bind(&stage.upper(), &stage.root())?;
        // What is mounted here later is to reach the program's own mounts.
        mount(NOTHING, &stage.root(), NOTHING, MsFlags::MS_SHARED, NOTHING)?;
        Ok(stage)
    }

    /// The tree as the program sees it.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.place.join("root")
    }

    /// What was written, by path.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.place.join("upper")
    }

    /// Where it is mounted.
    #[must_use]
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Puts the whole tree together, but for `/proc`.
    pub fn build(&self, plan: &Plan) -> io::Result<()> {
        for step in &plan.steps {
            match self.step(step) {
                // It has gone since it was listed: other programs use these directories, too.
                Err(_) if is_gone(step.path()) => {}
                done => done.map_err(|error| named(error, step.path()))?,
            }
        }
        self.bind_room(plan).map_err(|error| named(error, &plan.room))
    }

    /// Shows the directory of trials.
    pub fn bind_room(&self, plan: &Plan) -> io::Result<()> {
        let home = below(&self.root(), &plan.room);
        fs::create_dir_all(&home)?;
        Ok(bind(&plan.room, &home)?)
    }

    /// Does one step of the plan.
    pub fn step(&self, step: &Step) -> io::Result<()> {
        let place = below(&self.root(), step.path());
        match step {
            Step::Directory(path) => {
                fs::create_dir_all(&place)?;
                like(path, &place)
            }
            Step::Symlink(target, _) => std::os::unix::fs::symlink(target, place),
            Step::Overlay(path) => {
                fs::create_dir_all(&place)?;
                self.overlay(path)
            }
            Step::Proc(_) => fs::create_dir_all(place),
            Step::Devices(_) => self.devices(&place),
            Step::ReadOnly(path) => {
                if path.is_dir() {
                    fs::create_dir_all(&place)?;
                } else {
                    File::create(&place)?;
                }
                bind(path, &place)?;
                read_only(&place)
            }
            Step::Bind(path) => match bind(path, &place) {
                // It has gone since it was looked for.
                Err(Errno::ENOENT) => Ok(()),
                other => Ok(other?),
            },
        }
    }

    /// Overlays one directory; its upper layer is empty.
    pub fn overlay(&self, path: &Path) -> io::Result<()> {
        let (upper, work) = (below(&self.upper(), path), below(&self.place.join("work"), path));
        fs::create_dir_all(&work)?;
        fs::create_dir_all(&upper)?;
        like(path, &upper)?;
        let escaped = |path: &Path| {
            // In overlayfs options a colon or comma separates, and a backslash escapes.
            let text = path.to_string_lossy().replace('\\', r"\\");
            text.replace(':', r"\:").replace(',', r"\,")
        };
        let options = format!(
            "lowerdir={},upperdir={},workdir={}{}",
            escaped(path),
            escaped(&upper),
            escaped(&work),
            if self.unprivileged { ",userxattr" } else { "" }
        );
        let options = CString::new(options).map_err(|_| Errno::EINVAL)?;
        let (kind, place) = (Some("overlay"), below(&self.root(), path));
        match mount(kind, &place, kind, MsFlags::empty(), Some(options.as_c_str())) {
            // What may not be looked at stays an empty directory.
            Err(Errno::EACCES) => Ok(()),
            // A file system that can't be the lower layer of an overlay is shown as it is.
            Err(Errno::EINVAL | Errno::ELOOP | Errno::EOPNOTSUPP) => {
                bind(path, &place)?;
                read_only(&place)
            }
            other => Ok(other?),
        }
    }

    fn devices(&self, place: &Path) -> io::Result<()> {
        let kind = Some("crashtest");
        fs::create_dir_all(place)?;
        mount(kind, place, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=755,size=64k"))?;
        for name in DEVICES {
            let (device, shown) = (Path::new("/dev").join(name), place.join(name));
            if device.exists() {
                File::create(&shown)?;
                bind(&device, &shown)?;
            }
        }
        for (target, name) in LINKS {
            std::os::unix::fs::symlink(target, place.join(name))?;
        }
        let (pts, quiet) = (place.join("pts"), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC);
        fs::create_dir(&pts)?;
        let options = Some("newinstance,ptmxmode=0666,mode=620");
        // Without it there are no terminals, and nothing else is missing.
        let _ = mount(kind, &pts, Some("devpts"), quiet, options);
        Ok(())
    }

    /// Where `path`, which is absolute, lies among what was written.
    #[must_use]
    pub fn written(&self, path: &Path) -> PathBuf {
        below(&self.upper(), path)
    }

    /// Where the work directory of an overlay is.
    #[must_use]
    pub fn work(&self, path: &Path) -> PathBuf {
        below(&self.place.join("work"), path)
    }
}

/// Gives a directory the mode and, as far as this process may, the owner of another.
fn like(model: &Path, directory: &Path) -> io::Result<()> {
    let Ok(found) = fs::metadata(model) else { return Ok(()) };
    let (uid, gid) = (Some(found.uid()), Some(found.gid()));
    let _ = std::os::unix::fs::chown(directory, uid, gid);
    fs::set_permissions(directory, found.permissions())
}

fn named(error: io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn bind(from: &Path, to: &Path) -> nix::Result<()> {
    mount(Some(from), to, NOTHING, MsFlags::MS_BIND | MsFlags::MS_REC, NOTHING)
}

/// `path`, which is absolute, below `root`.
#[must_use]
pub fn below(root: &Path, path: &Path) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    root.join(Path::new(std::ffi::OsStr::from_bytes(bytes.strip_prefix(b"/").unwrap_or(bytes))))
}

/// Files of `/proc` by which root changes the machine; an ordinary user may not write to them.
const OF_ROOT: [&str; 6] = ["sys", "sysrq-trigger", "irq", "bus", "fs", "acpi"];

/// Mounts `/proc` for the PID namespace of this process.
pub fn proc(root: &Path, protect: bool) -> io::Result<()> {
    let place = root.join("proc");
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), &place, Some("proc"), quiet, NOTHING)?;
    for name in OF_ROOT.into_iter().filter(|_| protect) {
        let place = place.join(name);
        if place.exists() {
            bind(&place, &place)?;
            read_only(&place)?;
        }
    }
    Ok(())
}

/// The errno of an error of the standard library.
pub fn errno_of(error: &io::Error) -> Errno {
    errno(error)
}
