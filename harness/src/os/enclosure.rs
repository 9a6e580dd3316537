//! One PID namespace for all processes of a run: when the command that the user started ends, however it
//! ends, the kernel ends every other process of the run.
//!
//! Three processes share the work:
//!
//! - the *outer* process, which the user started, forwards signals and waits;
//! - the *init* process, PID 1 of the namespace, reaps orphans and ends with the coordinator;
//! - the *coordinator* does what was asked for, and forks workers.
//!
//! The init process has SIGKILL as its parent-death signal. If it dies, the kernel kills the namespace.
//! An ordinary user gets a user namespace too, in which the coordinator may mount.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, getegid, geteuid};

use super::mount::{has_own_mounts, map_ids, private_mounts};
use super::process::{Ended, end_now, fork_into, wait_for};
use super::signals;

/// Why this process has no namespaces of its own, once that is known; `None` if it has them.
static REFUSED: OnceLock<Option<String>> = OnceLock::new();

/// An environment variable: set to `off`, no process gets namespaces of its own. For tests, and for
/// machines on which namespaces fail.
pub const SWITCH: &str = "CRASHTEST_NAMESPACES";

/// Why this process has no namespaces of its own; `None` if it has them.
#[must_use]
pub fn refused() -> Option<String> {
    REFUSED.get().cloned().unwrap_or_else(|| Some("no run was begun".to_owned()))
}

/// In which process [`enter`] has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The outer process; the coordinator has ended like this.
    Outer(Ended),
    /// The coordinator, in namespaces of its own.
    Coordinator,
    /// The only process: this machine refuses namespaces.
    Alone,
}

/// Starts the coordinator in namespaces of its own. As `fork` does, it returns in two processes.
///
/// The caller's process must have one thread. The coordinator must end by itself.
pub fn enter() -> io::Result<Role> {
    if REFUSED.get().is_some() {
        return Ok(Role::Alone);
    }
    if std::env::var_os(SWITCH).is_some_and(|value| value == "off") {
        return Ok(alone(format!("{SWITCH}=off")));
    }
    let (says, ready) = io::pipe()?;
    let (outer_lives, outer) = io::pipe()?;
    // Their values in the parent's namespace: without a map a process shows the overflow ids.
    let ids = (geteuid(), getegid());
    let mut flags = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC;
    if !ids.0.is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    match fork_into(flags) {
        Ok(None) => {
            drop((says, outer));
            be_init(ids, ready, &outer_lives)
        }
        Ok(Some(init)) => {
            drop((ready, outer_lives));
            watch(init, says, outer)
        }
        Err(error) => Ok(alone(error.to_string())),
    }
}

fn alone(why: String) -> Role {
    let _ = REFUSED.set(Some(why));
    Role::Alone
}

const READY: &str = "ready";

/// The outer process: waits for the init process, which ends as the coordinator does.
fn watch(init: Pid, mut says: PipeReader, outer: PipeWriter) -> io::Result<Role> {
    FORWARD_TO.store(init.as_raw(), Ordering::Relaxed);
    signals::forward(forward)?;
    let mut said = String::new();
    says.read_to_string(&mut said)?;
    let ended = wait_for(init)?;
    drop(outer);
    match said.strip_prefix(READY) {
        Some(_) => Ok(Role::Outer(match ended {
            Ended::Status(status) if status > SIGNALED => Ended::Signal(status - SIGNALED),
            ended => ended,
        })),
        None => {
            signals::stop_forwarding()?;
            Ok(alone(said))
        }
    }
}

/// The process to which this one forwards signals.
static FORWARD_TO: AtomicI32 = AtomicI32::new(0);

extern "C" fn forward(signal: libc::c_int) {
    if let (pid @ 1.., Ok(signal)) = (FORWARD_TO.load(Ordering::Relaxed), Signal::try_from(signal))
    {
        // It may have ended; then so does this process soon.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Exit statuses of the init process above this one say by which signal the coordinator ended.
const SIGNALED: i32 = 128 + 64;

/// The init process; returns in the coordinator.
fn be_init(ids: (Uid, Gid), mut ready: PipeWriter, outer_lives: &PipeReader) -> io::Result<Role> {
    if let Err(error) = settle(ids, outer_lives) {
        let _ = write!(ready, "{error}");
        end_now(1);
    }
    if ready.write_all(READY.as_bytes()).is_err() {
        end_now(1);
    }
    drop(ready);
    match fork_into(CloneFlags::empty()) {
        Ok(None) => {
            let _ = REFUSED.set(None);
            has_own_mounts();
            signals::stop_forwarding()?;
            Ok(Role::Coordinator)
        }
        Ok(Some(coordinator)) => {
            FORWARD_TO.store(coordinator.as_raw(), Ordering::Relaxed);
            reap_until_end_of(coordinator)
        }
        Err(_) => end_now(1),
    }
}

/// Makes the namespaces usable, and sees to it that this process ends with the outer one.
fn settle((uid, gid): (Uid, Gid), outer_lives: &PipeReader) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The outer process may have ended before that.
    let mut fds = [PollFd::new(outer_lives.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, PollTimeout::ZERO)? != 0 {
        end_now(1);
    }
    if !uid.is_root() {
        map_ids(uid, gid)?;
    }
    private_mounts()?;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), quiet, None::<&str>)?;
    signals::forward(forward)
}

fn reap_until_end_of(coordinator: Pid) -> ! {
    loop {
        match waitpid(None::<Pid>, None) {
            Ok(WaitStatus::Exited(pid, status)) if pid == coordinator => end_now(status),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == coordinator => {
                end_now(SIGNALED + signal as i32)
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => end_now(1),
        }
    }
}
