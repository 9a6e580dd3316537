//! What stands in for a sandbox where a machine refuses one: the first call that would change a file outside
//! the trial directory is stopped before the kernel makes it.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, Pid, access, geteuid};

use super::decode::fd_number;
use crate::error::{Error, Result};
use crate::model;
use crate::os::ptrace::{Result as Traced, Stopped};
use crate::sandbox;

/// Where a program may change files.
#[derive(Clone, Debug)]
pub struct Guard {
    allowed: Vec<PathBuf>,
}

/// A call that was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trespass {
    /// The system call.
    pub call: &'static str,
    /// What it would have changed.
    pub victim: Victim,
}

/// What a call must not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Victim {
    /// A file outside the trial directory.
    File(PathBuf),
    /// A process that the program has not started; the number is that of a group if it is negative.
    Process(i32),
}

/// How a call names a file that it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    /// Which argument is the directory that a relative path begins at; none for the working directory.
    directory: Option<usize>,
    /// Which argument is the path; none if the directory argument is the file itself.
    path: Option<usize>,
    /// Whether a symbolic link at the end of the path is followed.
    follows: bool,
    /// What the call does to the file.
    change: Change,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// Its bytes.
    Bytes,
    /// It is made, and fails if it is there.
    Made,
    /// It is made, or its bytes are changed.
    MadeOrBytes,
    /// Its name is removed or replaced.
    Name,
    /// Its mode, owner, times or attributes.
    Attributes,
}

const fn at(directory: usize, path: usize, follows: bool, change: Change) -> Target {
    Target { directory: Some(directory), path: Some(path), follows, change }
}

const fn here(path: usize, follows: bool, change: Change) -> Target {
    Target { directory: None, path: Some(path), follows, change }
}

const fn open_file(file: usize) -> Target {
    Target { directory: Some(file), path: None, follows: true, change: Change::Attributes }
}

// asm-generic/unistd.h; the same everywhere
const SYS_FCHMODAT2: i64 = 452;

/// The calls that the guard must see besides those that are followed anyhow.
pub const MORE_CALLS: &[i64] = &[
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    SYS_FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_mknodat,
    libc::SYS_bind,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_ptrace,
    libc::SYS_mount,
    libc::SYS_umount2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utimes,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_futimesat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
];

/// The name of a call and what it changes.
fn targets(number: i64, arguments: [u64; 6]) -> Option<(&'static str, Vec<Target>)> {
    use Change::{Attributes, Bytes, Made, Name};
    let no_follow = |argument: usize| arguments[argument] & libc::AT_SYMLINK_NOFOLLOW as u64 == 0;
    Some(match number {
        libc::SYS_openat => ("openat", opens(arguments[2], Some(0), 1)?),
        libc::SYS_truncate => ("truncate", vec![here(0, true, Bytes)]),
        libc::SYS_renameat => ("renameat", vec![at(0, 1, false, Name), at(2, 3, false, Name)]),
        libc::SYS_renameat2 => ("renameat2", vec![at(0, 1, false, Name), at(2, 3, false, Name)]),
        libc::SYS_linkat => ("linkat", vec![at(2, 3, false, Made)]),
        libc::SYS_symlinkat => ("symlinkat", vec![at(1, 2, false, Made)]),
        libc::SYS_unlinkat => ("unlinkat", vec![at(0, 1, false, Name)]),
        libc::SYS_mkdirat => ("mkdirat", vec![at(0, 1, false, Made)]),
        libc::SYS_mknodat => ("mknodat", vec![at(0, 1, false, Made)]),
        libc::SYS_fchmod => ("fchmod", vec![open_file(0)]),
        libc::SYS_fchmodat => ("fchmodat", vec![at(0, 1, true, Attributes)]),
        SYS_FCHMODAT2 => ("fchmodat2", vec![at(0, 1, no_follow(3), Attributes)]),
        libc::SYS_fchown => ("fchown", vec![open_file(0)]),
        libc::SYS_fchownat => ("fchownat", vec![at(0, 1, no_follow(4), Attributes)]),
        libc::SYS_utimensat if arguments[1] == 0 => ("utimensat", vec![open_file(0)]),
        libc::SYS_utimensat => ("utimensat", vec![at(0, 1, no_follow(3), Attributes)]),
        libc::SYS_setxattr => ("setxattr", vec![here(0, true, Attributes)]),
        libc::SYS_lsetxattr => ("lsetxattr", vec![here(0, false, Attributes)]),
        libc::SYS_fsetxattr => ("fsetxattr", vec![open_file(0)]),
        libc::SYS_removexattr => ("removexattr", vec![here(0, true, Attributes)]),
        libc::SYS_lremovexattr => ("lremovexattr", vec![here(0, false, Attributes)]),
        libc::SYS_fremovexattr => ("fremovexattr", vec![open_file(0)]),
        #[cfg(target_arch = "x86_64")]
        older => return older_targets(older, arguments),
        #[cfg(not(target_arch = "x86_64"))]
        _ => return None,
    })
}

#[cfg(target_arch = "x86_64")]
fn older_targets(number: i64, arguments: [u64; 6]) -> Option<(&'static str, Vec<Target>)> {
    use Change::{Attributes, Made, Name};
    let created = (libc::O_CREAT | libc::O_TRUNC) as u64;
    Some(match number {
        libc::SYS_open => ("open", opens(arguments[1], None, 0)?),
        libc::SYS_creat => ("creat", opens(created, None, 0)?),
        libc::SYS_rename => ("rename", vec![here(0, false, Name), here(1, false, Name)]),
        libc::SYS_link => ("link", vec![here(1, false, Made)]),
        libc::SYS_symlink => ("symlink", vec![here(1, false, Made)]),
        libc::SYS_unlink => ("unlink", vec![here(0, false, Name)]),
        libc::SYS_rmdir => ("rmdir", vec![here(0, false, Name)]),
        libc::SYS_mkdir => ("mkdir", vec![here(0, false, Made)]),
        libc::SYS_mknod => ("mknod", vec![here(0, false, Made)]),
        libc::SYS_chmod => ("chmod", vec![here(0, true, Attributes)]),
        libc::SYS_chown => ("chown", vec![here(0, true, Attributes)]),
        libc::SYS_lchown => ("lchown", vec![here(0, false, Attributes)]),
        libc::SYS_utime => ("utime", vec![here(0, true, Attributes)]),
        libc::SYS_utimes => ("utimes", vec![here(0, true, Attributes)]),
        libc::SYS_futimesat => ("futimesat", vec![at(0, 1, true, Attributes)]),
        _ => return None,
    })
}

/// What an open with these flags changes, if anything.
fn opens(flags: u64, directory: Option<usize>, path: usize) -> Option<Vec<Target>> {
    let has = |flag: i32| flags & flag as u64 == flag as u64;
    let changes = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC) as u64;
    // A file without a name changes nothing until it is linked, and then the link is looked at.
    if flags & changes == 0 || has(libc::O_PATH) || has(libc::O_TMPFILE) {
        return None;
    }
    let exclusive = has(libc::O_CREAT | libc::O_EXCL);
    let change = match (exclusive, has(libc::O_CREAT)) {
        (true, _) => Change::Made,
        (false, true) => Change::MadeOrBytes,
        (false, false) => Change::Bytes,
    };
    let follows = !exclusive && !has(libc::O_NOFOLLOW);
    Some(vec![Target { directory, path: Some(path), follows, change }])
}

/// The process, or minus the process group, that a call sends a signal to or takes hold of.
fn signals(number: i64, arguments: [u64; 6]) -> Option<(&'static str, i32)> {
    let [first, second, third, ..] = arguments.map(fd_number);
    // Signal 0 only asks whether the process is there.
    match number {
        libc::SYS_kill if second != 0 => Some(("kill", first)),
        libc::SYS_tkill if second != 0 => Some(("tkill", first)),
        libc::SYS_tgkill if third != 0 => Some(("tgkill", first)),
        libc::SYS_ptrace if TAKES_HOLD.contains(&first.cast_unsigned()) => Some(("ptrace", second)),
        _ => None,
    }
}

const TAKES_HOLD: [libc::c_uint; 2] = [libc::PTRACE_ATTACH, libc::PTRACE_SEIZE];

/// Files of `/dev` that hold nothing.
const HARMLESS: [&str; 7] = ["null", "zero", "full", "random", "urandom", "tty", "ptmx"];
/// As many symbolic links as the kernel follows (`MAXSYMLINKS`).
const LINKS_MAX: usize = 40;

impl Guard {
    /// One that lets files below `root` be changed, and those that the globs of `--allow-write` name.
    pub fn new(root: &Path, globs: &[String]) -> Result<Self> {
        let mut allowed = vec![root.to_owned()];
        for path in sandbox::let_through(globs)? {
            allowed.push(fs::canonicalize(&path).unwrap_or(path));
        }
        Ok(Self { allowed })
    }

    /// Lets files below `place` be changed, too.
    pub fn allow(&mut self, place: &Path) {
        self.allowed.push(place.to_owned());
    }

    /// What a call that is about to be made would change that it must not; `own` are the program's processes
    /// and threads.
    pub fn look(
        &self,
        thread: &Stopped,
        number: i64,
        arguments: [u64; 6],
        own: &HashSet<Pid>,
    ) -> Traced<Option<Trespass>> {
        let process = Process { thread };
        if let Some((call, target)) = signals(number, arguments) {
            // 0 is its own process group, which it leads.
            let is_own = target == 0 || own.contains(&Pid::from_raw(target.abs()));
            let victim = Victim::Process(target);
            return Ok((!is_own || target == -1).then_some(Trespass { call, victim }));
        }
        // A mount outlives the program, wherever it is.
        let mounted = match number {
            libc::SYS_mount => Some(("mount", arguments[1])),
            libc::SYS_umount2 => Some(("umount2", arguments[0])),
            _ => None,
        };
        if let Some((call, path)) = mounted
            && geteuid().is_root()
        {
            let path = thread.read_string(path)?;
            let path = Path::new(OsStr::from_bytes(path.as_bytes()));
            let path = process.resolved(None, path, true);
            return Ok(path.map(|path| Trespass { call, victim: Victim::File(path) }));
        }
        if number == libc::SYS_bind {
            let path = process.socket(arguments)?;
            let path = path.and_then(|path| process.resolved(None, &path, false));
            return Ok(self.judge("bind", path, Change::Made));
        }
        if number == libc::SYS_openat2 {
            let flags = thread.read(arguments[2], 8)?;
            let flags = flags.try_into().map_or(0, u64::from_le_bytes);
            let Some(all) = opens(flags, Some(0), 1) else { return Ok(None) };
            return self.first(&process, "openat2", &all, arguments);
        }
        match targets(number, arguments) {
            Some((call, all)) => self.first(&process, call, &all, arguments),
            None => Ok(None),
        }
    }

    fn first(
        &self,
        process: &Process<'_>,
        call: &'static str,
        targets: &[Target],
        arguments: [u64; 6],
    ) -> Traced<Option<Trespass>> {
        for target in targets {
            let path = process.path(target, arguments)?;
            if let Some(trespass) = self.judge(call, path, target.change) {
                return Ok(Some(trespass));
            }
        }
        Ok(None)
    }

    fn judge(&self, call: &'static str, path: Option<PathBuf>, change: Change) -> Option<Trespass> {
        let path = path?;
        let allowed = self.allowed.iter().any(|place| path.starts_with(place));
        (!allowed && !is_harmless(&path) && would_change(&path, change))
            .then_some(Trespass { call, victim: Victim::File(path) })
    }
}

/// Whether the path is no file that holds anything.
fn is_harmless(path: &Path) -> bool {
    let device = path.strip_prefix("/dev").ok();
    let known = |name: &Path| HARMLESS.iter().any(|one| name == Path::new(one));
    path.starts_with("/proc")
        || device.is_some_and(|name| known(name) || name.starts_with("pts"))
        || path.to_string_lossy().ends_with(" (deleted)")
}

/// Whether the kernel would let this user make such a change.
fn would_change(path: &Path, change: Change) -> bool {
    let found = fs::symlink_metadata(path);
    let may = |path: &Path| access(path, AccessFlags::W_OK).is_ok();
    let in_parent = || path.parent().is_some_and(may);
    match (change, found) {
        (Change::Made, Ok(_)) => false,
        (Change::Made | Change::MadeOrBytes, Err(_)) => in_parent(),
        (Change::Name, Ok(_)) => in_parent(),
        (Change::Bytes | Change::MadeOrBytes, Ok(_)) => may(path),
        (Change::Attributes, Ok(found)) => geteuid().is_root() || found.uid() == geteuid().as_raw(),
        // A rename to a name that is not there makes one.
        (Change::Name, Err(_)) => in_parent(),
        (Change::Bytes | Change::Attributes, Err(_)) => false,
    }
}

/// The process that makes a call.
struct Process<'a> {
    thread: &'a Stopped,
}

impl Process<'_> {
    /// The file that a call is about; none if there can be none.
    fn path(&self, target: &Target, arguments: [u64; 6]) -> Traced<Option<PathBuf>> {
        let directory = target.directory.map(|argument| fd_number(arguments[argument]));
        let path = match target.path {
            None => {
                let link = format!("/proc/{}/fd/{}", self.thread.tid(), directory.unwrap_or(-1));
                return Ok(fs::read_link(link).ok().filter(|path| path.is_absolute()));
            }
            Some(argument) => self.thread.read_string(arguments[argument])?,
        };
        let path = Path::new(OsStr::from_bytes(path.as_bytes()));
        Ok(self.resolved(directory, path, target.follows))
    }

    /// The path of a UNIX socket that is about to get a name.
    fn socket(&self, arguments: [u64; 6]) -> Traced<Option<PathBuf>> {
        let [_, address, length, ..] = arguments;
        let bytes = self.thread.read(address, usize::try_from(length).unwrap_or(0).min(128))?;
        let unix = (libc::AF_UNIX as u16).to_ne_bytes();
        let Some(name) = bytes.strip_prefix(&unix[..]) else { return Ok(None) };
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        // One that begins with NUL is in no directory.
        Ok((!name.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(name))))
    }

    /// The absolute path without links of what a call names; none if no call can find it.
    fn resolved(&self, directory: Option<i32>, path: &Path, follows: bool) -> Option<PathBuf> {
        let base = match directory {
            Some(file) if file != libc::AT_FDCWD && path.is_relative() => format!("fd/{file}"),
            _ => "cwd".to_owned(),
        };
        let base = fs::read_link(format!("/proc/{}/{base}", self.thread.tid())).ok()?;
        let mut path = base.join(path);
        for _ in 0..LINKS_MAX {
            let whole = self.own(&path);
            let Some(name) = whole.file_name() else { return fs::canonicalize(whole).ok() };
            let parent = fs::canonicalize(whole.parent()?).ok()?;
            let found = parent.join(name);
            let link = follows || whole.as_os_str().as_bytes().ends_with(b"/");
            match fs::read_link(&found) {
                Ok(target) if link => path = parent.join(target),
                _ => return Some(model::plain(&found)).filter(|path| path.is_absolute()),
            }
        }
        None
    }

    /// A path with what stands for the process itself replaced.
    fn own(&self, path: &Path) -> PathBuf {
        let own = PathBuf::from(format!("/proc/{}", self.thread.tid()));
        for (alias, real) in [
            ("/proc/self", own.clone()),
            ("/proc/thread-self", own.clone()),
            ("/dev/fd", own.join("fd")),
        ] {
            if let Ok(rest) = path.strip_prefix(alias) {
                return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
            }
        }
        path.to_owned()
    }
}

impl Trespass {
    /// What the user is told; `line` is where in its source the program makes the call.
    #[must_use]
    pub fn error(&self, line: Option<&str>) -> Error {
        let line = line.map(|line| format!(", at {line}")).unwrap_or_default();
        let call = self.call;
        let path = match &self.victim {
            Victim::File(path) => path.display(),
            Victim::Process(number) => {
                return Error::baseline(format!(
                    "the program was stopped before it sent a signal to process {number}, which it has not \
                     started ({call}{line})"
                ))
                .help("this machine gives crashtest no sandbox (`crashtest doctor` says why)");
            }
        };
        Error::baseline(format!(
            "the program was stopped before it changed {path}, which lies outside its trial directory ({call}{line})"
        ))
        .help(format!(
            "this machine gives crashtest no sandbox (`crashtest doctor` says why); let the program save in its \
             working directory or at {{dir}}, or let it change that file: --allow-write {path}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_that_only_reads_changes_nothing() {
        assert_eq!(opens(libc::O_RDONLY as u64, None, 0), None);
        assert_eq!(opens((libc::O_RDWR | libc::O_TMPFILE) as u64, None, 0), None);
        let made = opens((libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL) as u64, None, 0).unwrap();
        assert_eq!((made[0].change, made[0].follows), (Change::Made, false));
        let bytes = opens(libc::O_WRONLY as u64, Some(0), 1).unwrap();
        assert_eq!((bytes[0].change, bytes[0].follows), (Change::Bytes, true));
    }

    #[test]
    fn a_question_whether_a_process_is_there_is_no_signal() {
        let call = |number, words: [u64; 3]| {
            signals(number, [words[0], words[1], words[2], 0, 0, 0]).map(|(_, target)| target)
        };
        assert_eq!(call(libc::SYS_kill, [7, 0, 0]), None);
        assert_eq!(call(libc::SYS_kill, [7, 9, 0]), Some(7));
        assert_eq!(call(libc::SYS_kill, [u64::MAX, 9, 0]), Some(-1));
        assert_eq!(call(libc::SYS_tgkill, [7, 8, 6]), Some(7));
        assert_eq!(call(libc::SYS_ptrace, [u64::from(libc::PTRACE_ATTACH), 7, 0]), Some(7));
        assert_eq!(call(libc::SYS_ptrace, [u64::from(libc::PTRACE_TRACEME), 0, 0]), None);
    }

    #[test]
    fn what_the_kernel_would_refuse_anyhow_is_no_trespass() {
        let place = tempfile::tempdir().unwrap();
        let (here, gone) = (place.path().join("here"), place.path().join("gone"));
        fs::write(&here, "").unwrap();
        let guard = Guard { allowed: Vec::new() };
        let stopped = |path: &Path, change| guard.judge("x", Some(path.into()), change).is_some();
        assert!(!stopped(&here, Change::Made) && stopped(&gone, Change::Made));
        assert!(stopped(&here, Change::Bytes) && !stopped(&gone, Change::Bytes));
        assert!(stopped(&here, Change::Name) && stopped(&here, Change::Attributes));
        assert!(!stopped(Path::new("/dev/null"), Change::Bytes));
        let guard = Guard { allowed: vec![place.path().to_owned()] };
        assert_eq!(guard.judge("x", Some(here), Change::Bytes), None);
    }
}
