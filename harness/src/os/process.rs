//! Forking, waiting and killing.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid};

/// Runs `body` in a forked child, without exec, and ends the child with the status it returns.
///
/// The caller's process must have one thread only: a lock held by another thread would stay
/// locked in the child for ever. Workers and the coordinator start no threads.
pub fn fork_child(body: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: the process has one thread (see above), so the child's copy of the memory is
    // consistent and the child may allocate and lock.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let status = catch_unwind(AssertUnwindSafe(body)).unwrap_or(101);
            // SAFETY: `_exit` takes no pointers; it skips the parent's exit handlers on purpose.
            unsafe { libc::_exit(status) }
        }
    }
}

/// Ends this process as the OOM killer or a user would: at once.
pub fn kill_self() -> ! {
    // A process may always signal itself, so this can't fail.
    let _ = kill(getpid(), Signal::SIGKILL);
    loop {
        nix::unistd::pause();
    }
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
}

/// Waits until `child` has ended.
pub fn wait_for(child: Pid) -> io::Result<Ended> {
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, status)) => return Ok(Ended::Status(status)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Ended::Signal(signal as i32)),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Binds this process, and what it will fork, to one of the CPUs that it may use: the `nth`,
/// counted round.
pub fn pin_to_cpu(nth: usize) -> io::Result<()> {
    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let cpus: Vec<usize> =
        (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).collect();
    if cpus.is_empty() {
        return Ok(());
    }
    let mut one = CpuSet::new();
    one.set(cpus[nth % cpus.len()])?;
    Ok(sched_setaffinity(this, &one)?)
}
