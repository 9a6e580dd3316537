//! Enters a sandbox: a user and mount namespace with a root of its own.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::pivot_root;

use super::mount::{errno, in_user_namespace};
use crate::sandbox::{Sandbox, Step};

const NOTHING: Option<&str> = None;

/// Makes the empty layers of one trial; to be called before the fork.
pub fn prepare(sandbox: &Sandbox) -> io::Result<()> {
    for path in [&sandbox.root, &sandbox.upper, &sandbox.work] {
        crate::lab::remove_tree(path)?;
        fs::create_dir(path)?;
    }
    for (number, step) in sandbox.steps.iter().enumerate() {
        match step {
            Step::Overlay(path) => {
                let upper = below(&sandbox.upper, path);
                fs::create_dir_all(&upper)?;
                if let Ok(found) = fs::metadata(path) {
                    fs::set_permissions(&upper, found.permissions())?;
                }
                fs::create_dir(sandbox.work.join(number.to_string()))?;
            }
            Step::Fresh(path) => fs::create_dir_all(below(&sandbox.upper, path))?,
            // A plain file in a directory that holds mounts: the program gets a copy.
            Step::Bind(path) if path.is_file() => {
                let copy = below(&sandbox.upper, path);
                if let Some(parent) = copy.parent() {
                    fs::create_dir_all(parent)?;
                }
                // What may not be read is not there for the program either.
                let _ = fs::copy(path, copy);
            }
            Step::Directory(_) | Step::Symlink(..) | Step::Bind(_) => {}
        }
    }
    Ok(())
}

/// Moves this process, which has one thread, into the sandbox.
pub fn enter(sandbox: &Sandbox) -> nix::Result<()> {
    in_user_namespace()?;
    mount(Some("crashtest"), &sandbox.root, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
    for (number, step) in sandbox.steps.iter().enumerate() {
        build(sandbox, number, step)?;
    }
    let home = below(&sandbox.root, &sandbox.directory);
    make_directory(&home)?;
    bind(&sandbox.directory, &home)?;
    nix::unistd::chdir(&sandbox.root)?;
    pivot_root(".", ".")?;
    // The old root lies over the new one now; it goes as soon as nobody uses it.
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")
}

/// Makes a command run in a sandbox whose layers are there already.
pub fn confine(command: &mut std::process::Command, sandbox: Sandbox) {
    use std::os::unix::process::CommandExt;
    // SAFETY: the process that forks has one thread (see `fork_child`), so its child may allocate.
    unsafe { command.pre_exec(move || enter(&sandbox).map_err(io::Error::from)) };
}

fn build(sandbox: &Sandbox, number: usize, step: &Step) -> nix::Result<()> {
    match step {
        Step::Directory(path) => make_directory(&below(&sandbox.root, path)),
        Step::Symlink(target, path) => {
            std::os::unix::fs::symlink(target, below(&sandbox.root, path))
                .map_err(|error| errno(&error))
        }
        Step::Bind(path) => {
            let place = below(&sandbox.root, path);
            if path.is_dir() {
                make_directory(&place)?;
            } else {
                File::create(&place).map_err(|error| errno(&error))?;
            }
            let copy = below(&sandbox.upper, path);
            let shown = if copy.is_file() { &copy } else { path };
            bind(shown, &place)
        }
        Step::Fresh(path) => {
            let place = below(&sandbox.root, path);
            make_directory(&place)?;
            bind(&below(&sandbox.upper, path), &place)
        }
        Step::Overlay(path) => {
            let place = below(&sandbox.root, path);
            make_directory(&place)?;
            overlay(sandbox, number, path, &place)
        }
    }
}

fn overlay(sandbox: &Sandbox, number: usize, path: &Path, place: &Path) -> nix::Result<()> {
    let escaped = |path: &Path| {
        // In overlayfs options a colon or comma separates, and a backslash escapes.
        let text = path.to_string_lossy().replace('\\', r"\\");
        text.replace(':', r"\:").replace(',', r"\,")
    };
    let options = format!(
        "lowerdir={},upperdir={},workdir={},userxattr",
        escaped(path),
        escaped(&below(&sandbox.upper, path)),
        escaped(&sandbox.work.join(number.to_string()))
    );
    let options = CString::new(options).map_err(|_| Errno::EINVAL)?;
    let kind = Some("overlay");
    match mount(kind, place, kind, MsFlags::empty(), Some(options.as_c_str())) {
        // What may not be looked at stays an empty directory.
        Err(Errno::EACCES) => Ok(()),
        other => other,
    }
}

fn bind(from: &Path, to: &Path) -> nix::Result<()> {
    mount(Some(from), to, NOTHING, MsFlags::MS_BIND | MsFlags::MS_REC, NOTHING)
}

fn make_directory(path: &Path) -> nix::Result<()> {
    fs::create_dir_all(path).map_err(|error| errno(&error))
}

/// `path`, which is absolute, below `root`.
fn below(root: &Path, path: &Path) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    root.join(Path::new(std::ffi::OsStr::from_bytes(bytes.strip_prefix(b"/").unwrap_or(bytes))))
}
