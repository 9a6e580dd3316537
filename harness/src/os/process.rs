//! Forking, waiting and killing.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid};

/// Runs `body` in a forked child, without exec, and ends the child with the status it returns.
///
/// The caller's process must have one thread only, or others that wait and hold nothing: a lock held
/// by another thread would stay locked in the child for ever. Workers and the coordinator start no threads.
pub fn fork_child(body: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: no other thread is at work (see above), so the child's copy of the memory is
    // consistent and the child may allocate and lock.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => end_now(catch_unwind(AssertUnwindSafe(body)).unwrap_or(101)),
    }
}

/// As [`fork_child`], in a process in which other threads do nothing but wait for this one, as the main
/// thread of a test does. If they go on doing something, it is an error.
pub fn fork_beside_sleepers(body: impl FnOnce() -> i32) -> io::Result<Pid> {
    const TRIES: u32 = 1000;
    for _ in 0..TRIES {
        if others_sleep()? {
            return fork_child(body);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(io::Error::other("they do not come to rest"))
}

/// Whether all other threads of this process wait in the kernel.
fn others_sleep() -> io::Result<bool> {
    let this = nix::unistd::gettid().to_string();
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?;
        if task.file_name() == *this {
            continue;
        }
        // One that has ended meanwhile has no state any more, and holds nothing.
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        if state.is_some_and(|state| state != 'S') {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Ends this process as SIGPIPE ends one that writes to a pipe without a reader.
pub fn end_by_pipe() -> ! {
    end_by(Signal::SIGPIPE)
}

/// Ends this process by a signal that has ended the process that did its work, if it is one by which commands
/// are ended.
pub fn end_like(signal: i32) {
    let usual = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGPIPE, Signal::SIGTERM];
    if let Some(signal) = usual.into_iter().find(|one| *one as i32 == signal) {
        end_by(signal)
    }
}

/// Ends this process by a signal, as if nothing had caught it.
fn end_by(signal: Signal) -> ! {
    // SAFETY: the default action is no handler that could be called.
    let _ = unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl) };
    let _ = kill(getpid(), signal);
    end_now(128 + signal as i32)
}

/// Has SIGKILL sent to this process when `parent` ends, which has forked it; ends it if that is gone already.
pub fn die_with(parent: Pid) -> nix::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    match nix::unistd::getppid() {
        // In a PID namespace of its own a process can't see its parent, and ends with the namespace.
        found if found == parent || found.as_raw() == 0 => Ok(()),
        _ => end_now(1),
    }
}

/// Has SIGTERM sent to this process when the thread ends that has started it.
pub fn end_with_parent() -> io::Result<()> {
    Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?)
}

/// Prints to another descriptor of this process from now on.
pub fn stdout_from(fd: i32) -> io::Result<()> {
    // SAFETY: dup2 takes two numbers; one that is no open descriptor is an error.
    let copied = unsafe { libc::dup2(fd, libc::STDOUT_FILENO) };
    Errno::result(copied)?;
    Ok(())
}

/// As [`fork_child`], for a child that is soon killed or replaced by a program: at once, without
/// the C library's preparations, which cost as much again in page faults.
pub fn fork_briefly(body: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: as for `fork_child`. What the C library does more is for threads (their list, their
    // ids, handlers around the fork); the child makes none, and locks nothing that is shared.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    match Errno::result(pid)? {
        0 => end_now(catch_unwind(AssertUnwindSafe(body)).unwrap_or(101)),
        pid => Ok(Pid::from_raw(i32::try_from(pid).unwrap_or(0))),
    }
}

/// Forks a child with these namespaces of its own; returns its PID in the parent, and `None` in the child.
///
/// The caller's process must have one thread, as for [`fork_child`].
pub fn fork_into(flags: CloneFlags) -> io::Result<Option<Pid>> {
    let flags = i64::from(flags.bits() | libc::SIGCHLD);
    // SAFETY: without CLONE_VM the child has memory of its own; no other thread holds a lock in it.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match Errno::result(pid)? {
        0 => Ok(None),
        pid => i32::try_from(pid).map(|pid| Some(Pid::from_raw(pid))).map_err(io::Error::other),
    }
}

/// `struct clone_args` (linux/sched.h), up to the fields of Linux 5.5.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
}

/// Forks a child that does nothing until it is killed, and has this PID in the PID namespace of the children
/// of this process. Fails with `EEXIST` if another process has it.
pub fn fork_sleeper(pid: Pid) -> io::Result<Pid> {
    let number = pid.as_raw();
    let arguments = CloneArgs {
        exit_signal: libc::SIGCHLD as u64,
        set_tid: (&raw const number) as u64,
        set_tid_size: 1,
        ..CloneArgs::default()
    };
    let size = size_of::<CloneArgs>();
    // SAFETY: as for `fork_into`; the kernel only reads `arguments` and `number`, which outlive the call.
    let child = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size) };
    match Errno::result(child)? {
        0 => loop {
            nix::unistd::pause();
        },
        child => i32::try_from(child).map(Pid::from_raw).map_err(io::Error::other),
    }
}

/// The PID that a process has in its own PID namespace.
pub fn pid_inside(pid: Pid) -> io::Result<Pid> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let inner = line.and_then(|pids| pids.split_whitespace().last()?.parse().ok());
    Ok(inner.map_or(pid, Pid::from_raw))
}

/// Ends this process at once, without the exit handlers that its parent has installed.
pub fn end_now(status: i32) -> ! {
    // SAFETY: `_exit` takes no pointers.
    unsafe { libc::_exit(status) }
}

/// Closes the descriptors of this process from `first` on, but for a few.
pub fn close_from(first: i32, kept: &[i32]) {
    let mut kept: Vec<_> = kept.iter().copied().filter(|fd| *fd >= first).collect();
    kept.sort_unstable();
    let mut from = first;
    for fd in kept.into_iter().chain([i32::MAX]) {
        // SAFETY: close_range takes numbers; the caller uses none of these descriptors any more.
        let _ = unsafe { libc::syscall(libc::SYS_close_range, from, fd - 1, 0) };
        from = fd.saturating_add(1);
    }
}

/// Runs `body` in a process that is no child of ours, in a session of its own, with no open
/// terminal or pipe of ours as its input or output.
pub fn fork_detached(name: &std::ffi::CStr, body: impl FnOnce()) -> io::Result<()> {
    let mut body = Some(body);
    let between = fork_child(|| {
        // Before the second fork: a signal to the caller's process group never reaches the new process.
        // What fails here makes the process less detached, and it does its work all the same.
        let _ = nix::unistd::setsid();
        let grandchild = fork_child(|| {
            let _ = nix::sys::prctl::set_name(name);
            if let Ok(null) = std::fs::File::options().read(true).write(true).open("/dev/null") {
                let _ = nix::unistd::dup2_stdin(&null);
                let _ = nix::unistd::dup2_stdout(&null);
                let _ = nix::unistd::dup2_stderr(&null);
            }
            if let Some(body) = body.take() {
                body();
            }
            0
        });
        i32::from(grandchild.is_err())
    })?;
    wait_for(between).map(drop)
}

/// Ends this process as the OOM killer or a user would: at once.
pub fn kill_self() -> ! {
    // A process may always signal itself, so this can't fail.
    let _ = kill(getpid(), Signal::SIGKILL);
    loop {
        nix::unistd::pause();
    }
}

// linux/prctl.h
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Lets this process, on which disks depend, get memory without waiting for one of them. What
/// forbids it (a container) makes it slower under memory pressure, and nothing else.
pub fn serve_disks_under_pressure() {
    // SAFETY: this prctl takes numbers.
    let _ = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
}

/// Whether this process has a child, or follows a process, that it has not waited for.
pub fn has_children() -> io::Result<bool> {
    let flags =
        WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT | WaitPidFlag::__WALL;
    loop {
        match waitid(Id::All, flags) {
            Ok(_) => return Ok(true),
            Err(Errno::ECHILD) => return Ok(false),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until `child` has ended.
pub fn wait_for(child: Pid) -> io::Result<Ended> {
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, status)) => return Ok(Ended::Status(status)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Ended::Signal(signal as i32)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Keeps freed memory for the next trial: given back, each page would cost a fault to get again.
#[cfg(target_env = "gnu")]
pub fn keep_memory() {
    // SAFETY: mallopt takes two numbers; a setting that it does not know changes nothing.
    let _ = unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 20) };
}

/// Other C libraries have no such setting.
#[cfg(not(target_env = "gnu"))]
pub fn keep_memory() {}

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

/// Makes this process the parent of the orphans among its descendants while `body` runs.
pub fn adopt_orphans<T>(body: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    nix::sys::prctl::set_child_subreaper(true)?;
    let result = body();
    nix::sys::prctl::set_child_subreaper(false)?;
    result
}

/// How long a wait may go without a look at whether the coordinator is still there.
const LOOK_UP_EVERY: Duration = Duration::from_millis(100);

/// Waits for `child` for at most so long; `None` when it has not ended by then, or when this
/// process should come to its end.
pub fn wait_at_most(child: Pid, time: Duration) -> io::Result<Option<Ended>> {
    let pidfd = pidfd(child)?;
    let deadline = Instant::now() + time;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).min(LOOK_UP_EVERY);
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, Some(left.into()), None) {
            _ if super::signals::ends() => return Ok(None),
            Ok(0) if deadline <= Instant::now() => return Ok(None),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return wait_for(child).map(Some),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A file descriptor of a process, which can be waited for.
pub fn pidfd(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = i32::try_from(Errno::result(fd)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Kills all children of this process, and then theirs, until there are none. Orphans come to us
/// (see [`adopt_orphans`]), so that no daemon escapes. Returns how each ended.
pub fn end_descendants() -> io::Result<Vec<(Pid, Ended)>> {
    let mut ended = Vec::new();
    loop {
        kill_children()?;
        match waitpid(None::<Pid>, Some(nix::sys::wait::WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(pid, status)) => ended.push((pid, Ended::Status(status))),
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                ended.push((pid, Ended::Signal(signal as i32)));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(ended),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Kills the children of this process, orphans that came to it among them.
pub fn kill_children() -> io::Result<()> {
    for child in children()? {
        // It may have ended since.
        let _ = kill(child, Signal::SIGKILL);
    }
    Ok(())
}

/// The children of this process, which has one thread.
fn children() -> io::Result<Vec<Pid>> {
    let pid = getpid();
    Ok(numbers(&std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?))
}

fn numbers(text: &str) -> Vec<Pid> {
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
}

/// The children of this process, and theirs, of whichever of their threads.
pub fn descendants() -> io::Result<Vec<Pid>> {
    children().map(with_theirs)
}

/// The children of another process, and theirs; none if it has ended.
#[must_use]
pub fn descendants_of(pid: Pid) -> Vec<Pid> {
    let mut all = with_theirs(vec![pid]);
    all.remove(0);
    all
}

fn with_theirs(mut all: Vec<Pid>) -> Vec<Pid> {
    let mut next = 0;
    while let Some(pid) = all.get(next) {
        // One that has ended meanwhile has none any more.
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
        let texts = tasks
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok());
        let found: Vec<Pid> = texts.flat_map(|text| numbers(&text)).collect();
        all.extend(found);
        next += 1;
    }
    all
}
