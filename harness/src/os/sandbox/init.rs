//! PID 1 of the processes of trials: while it lives their PID namespace does, and when it ends the kernel
//! kills them all.
//!
//! It is no child of the worker, which waits for all its children after each trial. It watches the worker
//! by a PID file descriptor and ends when the worker does.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};

use crate::os::process::{
    Ended, close_from, end_now, fork_child, fork_into, has_children, pidfd, wait_for,
};

/// The init process of a PID namespace, as the worker sees it.
#[derive(Debug)]
pub struct Init {
    control: UnixStream,
    namespace: OwnedFd,
    own: OwnedFd,
    /// `/proc/PID/task/PID/children` of the init process, where the kernel has it.
    children: Option<File>,
}

impl Init {
    /// Starts an init process in a new PID namespace.
    pub fn start() -> io::Result<Self> {
        let (control, theirs) = UnixStream::pair()?;
        let (mut told, mut tell) = io::pipe()?;
        let worker = pidfd(getpid())?;
        let between = fork_child(|| {
            if unshare(CloneFlags::CLONE_NEWPID).is_err() {
                return 1;
            }
            match fork_into(CloneFlags::empty()) {
                Ok(None) => serve(&theirs, worker.as_fd()),
                Ok(Some(init)) => i32::from(tell.write_all(&init.as_raw().to_ne_bytes()).is_err()),
                Err(_) => 1,
            }
        })?;
        if wait_for(between)? != Ended::Status(0) {
            return Err(Errno::EPERM.into());
        }
        let mut pid = [0; 4];
        told.read_exact(&mut pid)?;
        let pid = i32::from_ne_bytes(pid);
        let namespace = File::open(format!("/proc/{pid}/ns/pid"))?.into();
        let own = File::open("/proc/self/ns/pid")?.into();
        let children = File::open(format!("/proc/{pid}/task/{pid}/children")).ok();
        Ok(Self { control, namespace, own, children })
    }

    /// Does something in which each process that this one forks becomes one of the namespace.
    pub fn fork_inside<T>(&self, body: impl FnOnce() -> T) -> io::Result<T> {
        setns(&self.namespace, CloneFlags::CLONE_NEWPID)?;
        let result = body();
        setns(&self.own, CloneFlags::CLONE_NEWPID)?;
        Ok(result)
    }

    /// Whether there is no process in the namespace besides the init process; `false` also where that is unknown.
    ///
    /// What has lost its parent there becomes a child of the init process, so all of them descend from that one
    /// or from the caller.
    fn is_alone(&self) -> io::Result<bool> {
        let Some(children) = &self.children else { return Ok(false) };
        Ok(children.read_at(&mut [0], 0)? == 0 && !has_children()?)
    }

    /// Kills all processes of the namespace, and returns when they are gone. The caller must have waited for
    /// its own children among them.
    pub fn end_all(&self) -> io::Result<()> {
        if self.is_alone()? {
            return Ok(());
        }
        (&self.control).write_all(&[0])?;
        (&self.control).read_exact(&mut [0])
    }
}

/// How long a zombie may wait, in milliseconds.
const REAP_EVERY_MS: u16 = 1000;

/// The life of the init process.
fn serve(control: &UnixStream, worker: BorrowedFd<'_>) -> ! {
    let _ = nix::unistd::setsid();
    let _ = nix::sys::prctl::set_name(c"ct-init");
    let _ = crate::os::signals::ignore_interrupts();
    close_from(3, &[control.as_raw_fd(), worker.as_raw_fd()]);
    loop {
        let mut fds = [
            PollFd::new(control.as_fd(), PollFlags::POLLIN),
            PollFd::new(worker, PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::from(REAP_EVERY_MS)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => end_now(1),
        }
        let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        if ready(&fds[1]) {
            end_now(0);
        }
        let asked = ready(&fds[0]);
        if asked {
            if (&mut &*control).read_exact(&mut [0]).is_err() {
                end_now(0);
            }
            // Everything in the namespace but this process.
            let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        }
        reap(asked);
        if asked && (&mut &*control).write_all(&[0]).is_err() {
            end_now(0);
        }
    }
}

/// Reaps what has ended; or all children, however long that takes.
fn reap(all: bool) {
    let flags = (!all).then_some(WaitPidFlag::WNOHANG);
    loop {
        match waitpid(None::<Pid>, flags) {
            Ok(WaitStatus::StillAlive) => return,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}
