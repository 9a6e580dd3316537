//! What this machine can do, found out by doing it.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use crate::armed::{Action, Follows};
use crate::disk::device::Mounted;
use crate::disk::plan::Cutting;
use crate::error::{Error, Result};
use crate::exit_status::ExitStatus;
use crate::file_system::{Axis, FileSystem};
use crate::inject::decode::Asked;
use crate::inject::runner::{Bound, Plain, Runner};
use crate::inject::tracer::{How, Unfollowed, Watcher};
use crate::lab::Lab;
use crate::os::enclosure;
use crate::os::process::{self, Ended};
use crate::os::ptrace::Stopped;
use crate::poweroff_disk::Disks;
use crate::subject::Command;
use crate::sweep::Reach;
use crate::volume::{self, Volume};

/// Something that crashtest can use.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What it is.
    pub what: &'static str,
    /// What needs it.
    pub needed: Needed,
    /// What was found, or what is wrong.
    pub state: std::result::Result<String, String>,
    /// What to do if it is missing.
    pub remedy: &'static str,
}

/// What needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    /// The main job.
    Always,
    /// Some options.
    For(&'static str),
}

/// Examines the machine.
#[must_use]
pub fn examine() -> Vec<Finding> {
    let programs = [
        ("python3", "the tests of the Python subjects", "install python3"),
        ("node", "the tests of the Node subjects", "install nodejs"),
        ("cc", "the tests of the C subjects", "install gcc or clang"),
    ];
    let mut findings = vec![
        Finding {
            what: "trial directory",
            needed: Needed::Always,
            state: trial_directory(),
            remedy: "make /dev/shm or the temporary directory writable, or use --dir",
        },
        Finding {
            what: "CPUs",
            needed: Needed::Always,
            state: std::thread::available_parallelism()
                .map(|count| format!("{count} may be used"))
                .map_err(|error| error.to_string()),
            remedy: "say how many workers there shall be with --jobs",
        },
        Finding {
            what: "ptrace and seccomp",
            needed: Needed::For("following programs"),
            state: follow(),
            remedy: "set kernel.yama.ptrace_scope to 0 or 1; in a container allow the calls \
                     ptrace, seccomp and process_vm_readv (docker: --cap-add SYS_PTRACE); or use \
                     --timing, which follows nothing",
        },
        Finding {
            what: "user namespaces and overlayfs",
            needed: Needed::For(
                "a sandbox; without one programs are stopped before they change other files",
            ),
            state: sandbox(),
            remedy: "set kernel.unprivileged_userns_clone and user.max_user_namespaces above 0 \
                     (on Ubuntu also kernel.apparmor_restrict_unprivileged_userns to 0), on Linux \
                     5.11 or later",
        },
    ];
    findings.push(Finding {
        what: "small tmpfs",
        needed: Needed::For("the scenario enospc"),
        state: small_disk(FileSystem::Tmpfs, Axis::Space),
        remedy: "run as root, or set kernel.unprivileged_userns_clone and \
                 user.max_user_namespaces above 0",
    });
    let disks = [
        (FileSystem::Ext4, "small ext4", "install e2fsprogs, and run as root"),
        (FileSystem::Xfs, "small xfs", "install xfsprogs, and run as root"),
        (FileSystem::Btrfs, "small btrfs", "install btrfs-progs, and run as root"),
    ];
    findings.extend(disks.map(|(kind, what, remedy)| Finding {
        what,
        needed: Needed::For("--fs of this kind in the scenario enospc"),
        state: small_disk(kind, Axis::Space),
        remedy,
    }));
    let recorded = [
        (FileSystem::Ext4, "recorded ext4"),
        (FileSystem::Xfs, "recorded xfs"),
        (FileSystem::Btrfs, "recorded btrfs"),
    ];
    findings.extend(recorded.map(|(kind, what)| Finding {
        what,
        needed: Needed::For("--fs of this kind in the scenario poweroff-disk"),
        state: recorded_disk(kind),
        remedy: "run as root on a machine with FUSE and loop devices (in a container: a privileged one), \
                 and install e2fsprogs, xfsprogs or btrfs-progs",
    }));
    findings.push(Finding {
        what: "quota on ext4",
        needed: Needed::For("--fs ext4 --axis quota"),
        state: small_disk(FileSystem::Ext4, Axis::Quota),
        remedy: "run as root on a kernel that was built with CONFIG_QFMT_V2, or use --fs btrfs",
    });
    findings.extend(programs.map(|(what, needed, remedy)| Finding {
        what,
        needed: Needed::For(needed),
        state: in_path(what),
        remedy,
    }));
    findings
}

/// Renders the findings for people.
#[must_use]
pub fn render(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let needed = match finding.needed {
            Needed::Always => "everything",
            Needed::For(what) => what,
        };
        // Writing to a string can't fail.
        let _ = match &finding.state {
            Ok(found) => writeln!(text, "ok       {}: {found}", finding.what),
            Err(wrong) => writeln!(
                text,
                "missing  {}: {wrong}\n         needed for {needed}; {}",
                finding.what, finding.remedy
            ),
        };
    }
    text
}

/// With which status the command ends: the main job must be possible.
#[must_use]
pub fn status(findings: &[Finding]) -> ExitStatus {
    let lacks = |finding: &Finding| finding.needed == Needed::Always && finding.state.is_err();
    if findings.iter().any(lacks) { ExitStatus::MachineLacks } else { ExitStatus::AsExpected }
}

fn trial_directory() -> std::result::Result<String, String> {
    let lab = Lab::new(None).map_err(|error| error.message)?;
    let parent = lab.path().parent().unwrap_or(Path::new("/"));
    Ok(parent.display().to_string())
}

fn follow() -> std::result::Result<String, String> {
    let followed = || -> Result<How> {
        let lab = Lab::new(None)?;
        let mut runner = Runner::new(&shell(false), &lab.room(0)?)?;
        runner.reset()?;
        let mut count = Count(0);
        let ran = runner.traced(
            &mut count,
            Follows::All,
            Bound { timeout: Duration::from_secs(5), grace: Duration::ZERO },
        )?;
        if count.0 == 0 {
            return Err(Error::lacking("a call of a traced program was not seen"));
        }
        Ok(ran.how)
    };
    match followed() {
        Ok(How::Ended(Ended::Status(0))) => Ok("programs can be followed".to_owned()),
        Ok(how) => Err(format!("a traced program ended with {how:?}")),
        Err(error) => Err(error.message),
    }
}

fn sandbox() -> std::result::Result<String, String> {
    if let Some(why) = enclosure::refused() {
        return Err(why);
    }
    let ran = || -> Result<Plain> {
        let lab = Lab::new(None)?;
        let mut runner = Runner::new(&shell(true), &lab.room(0)?)?;
        runner.reset()?;
        runner.plain(None, Duration::from_secs(5))
    };
    match ran() {
        Ok(Plain::Ended(Ended::Status(0))) => {
            Ok("programs can change nothing of this machine".to_owned())
        }
        Ok(other) => Err(format!("a program in a sandbox ended with {other:?}")),
        Err(error) => Err(error.message),
    }
}

/// Makes a disk and takes its space.
fn small_disk(kind: FileSystem, axis: Axis) -> std::result::Result<String, String> {
    let reach = Reach { axes: vec![axis], ..Reach::on(kind) };
    let lab = Lab::new(None).map_err(|error| error.message)?;
    let room = lab.room(0).map_err(|error| error.message)?;
    in_own_process("a full one can be made", || {
        Volume::make(&room, &reach).and_then(|disk| disk.fill(axis, 0)).map(drop)
    })
}

/// Makes a disk that records what is written to it, and mounts it.
fn recorded_disk(kind: FileSystem) -> std::result::Result<String, String> {
    let lab = Lab::new(None).map_err(|error| error.message)?;
    in_own_process("what is written to its disk can be recorded", || {
        let disks = Disks::start(&Cutting { fs: vec![kind], ..Cutting::default() }, &lab)?;
        let (mut disk, _) = disks.of_worker(lab.path(), 0)?;
        disk.load(disks.start_of(kind))?;
        match disk.mount(kind, "")? {
            Mounted::Yes => disk.unmount().map(drop),
            Mounted::No(why) => Err(Error::lacking(format!("cannot mount {kind}: {why}"))),
        }
    })
}

/// Tries something in a process of its own, for the mounts that it makes are.
fn in_own_process(
    done: &str,
    body: impl FnOnce() -> crate::error::Result<()>,
) -> std::result::Result<String, String> {
    let (mut said, say) = std::io::pipe().map_err(|error| error.to_string())?;
    let mut say = Some(say);
    let child = process::fork_child(|| {
        let Err(error) = body() else { return 0 };
        // Who can't be told sees the status.
        let _ = say.as_ref().map(|mut say| say.write_all(error.message.as_bytes()));
        1
    });
    drop(say.take());
    let mut text = String::new();
    let read = said.read_to_string(&mut text);
    let ended = child.and_then(process::wait_for).map_err(|error| error.to_string())?;
    match (ended, read) {
        (Ended::Status(0), _) => Ok(done.to_owned()),
        (_, Ok(_)) if !text.is_empty() => Err(text),
        (ended, _) => Err(format!("the process that made it ended with {ended:?}")),
    }
}

/// A program that writes one file.
fn shell(sandbox: bool) -> Command {
    let argv = ["/bin/sh", "-c", "echo x > probe"].map(str::to_owned).into();
    Command { argv, sandbox, ..Command::default() }
}

fn in_path(name: &str) -> std::result::Result<String, String> {
    volume::find_tool(name)
        .map(|path| path.display().to_string())
        .ok_or_else(|| "not in PATH".to_owned())
}

struct Count(u64);

impl Watcher for Count {
    fn asked(&mut self, _asked: &Asked, _thread: &Stopped) -> Action {
        self.0 += 1;
        Action::Pass
    }

    fn wants_results(&self) -> bool {
        false
    }

    fn unfollowed(&mut self, _what: Unfollowed) {}
}
