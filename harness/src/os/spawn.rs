//! Starting a program: traced from its first instruction, or not at all.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal, sigprocmask};
use nix::unistd::{Gid, Pid, Uid, getpid};

use super::process::die_with;
use super::sandbox::{Entrance, Sandbox};
use super::seccomp::Filter;

/// A program ready to be started.
#[derive(Clone, Debug)]
pub struct Program {
    /// The file to execute.
    pub path: CString,
    /// Its arguments, the name that it is called by first.
    pub arguments: Vec<CString>,
    /// Its environment, as NAME=VALUE.
    pub environment: Vec<CString>,
    /// Its working directory.
    pub directory: CString,
    /// The user as whom it runs, if that is another one.
    pub user: Option<User>,
}

/// A user of this machine, with his groups.
#[derive(Clone, Debug)]
pub struct User {
    /// His id.
    pub uid: Uid,
    /// His group.
    pub gid: Gid,
    groups: Vec<Gid>,
}

impl User {
    /// The user of that name, if there is one.
    pub fn find(name: &str) -> io::Result<Option<Self>> {
        let Some(found) = nix::unistd::User::from_name(name)? else { return Ok(None) };
        let c_name = CString::new(name).map_err(io::Error::other)?;
        let groups = nix::unistd::getgrouplist(&c_name, found.gid)?;
        Ok(Some(Self { uid: found.uid, gid: found.gid, groups }))
    }

    /// Makes this process, which is root's, one of the user's.
    fn take_over(&self) -> nix::Result<()> {
        nix::unistd::setgroups(&self.groups)?;
        nix::unistd::setgid(self.gid)?;
        nix::unistd::setuid(self.uid)
    }
}

/// The pipes between a worker and the programs that it starts one after another.
#[derive(Debug)]
pub struct Pipes {
    stdout: PipeReader,
    stdout_in: PipeWriter,
    stderr: PipeReader,
    stderr_in: PipeWriter,
    null: File,
    /// The stack of a child until it has executed its program.
    stack: Vec<u8>,
    /// Why the last program could not be started, if it could not.
    failed: AtomicI32,
}

/// The child's part takes some hundred bytes of stack, a sandbox some thousand.
const STACK_BYTES: usize = 256 << 10;

/// Which output of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Its stdout.
    Out,
    /// Its stderr.
    Err,
}

impl Pipes {
    /// Makes them.
    pub fn new() -> io::Result<Self> {
        let (stdout, stdout_in) = io::pipe()?;
        let (stderr, stderr_in) = io::pipe()?;
        for pipe in [&stdout, &stderr] {
            fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        // A program that prints more than a pipe takes waits for the next tick of the alarm.
        for pipe in [&stdout_in, &stderr_in] {
            let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(1 << 20));
        }
        let null = File::open("/dev/null")?;
        let (stack, failed) = (vec![0; STACK_BYTES], AtomicI32::new(0));
        Ok(Self { stdout, stdout_in, stderr, stderr_in, null, stack, failed })
    }

    /// Reads what a program has printed; `false` when there is nothing more for now.
    pub fn read(&mut self, stream: Stream, buffer: &mut Vec<u8>) -> io::Result<bool> {
        let pipe = match stream {
            Stream::Out => &mut self.stdout,
            Stream::Err => &mut self.stderr,
        };
        let mut part = [0; 2048];
        match pipe.read(&mut part) {
            Ok(count) => {
                buffer.extend_from_slice(&part[..count]);
                Ok(count > 0)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Waits until one of these has something to read, but at most so long.
    pub fn wait(all: &[&Self], time: PollTimeout) -> io::Result<()> {
        let outputs = all.iter().flat_map(|pipes| [pipes.stdout.as_fd(), pipes.stderr.as_fd()]);
        let mut fds: Vec<_> = outputs.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut fds, time) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Why the last program could not be started, if it could not.
    pub fn start_error(&mut self) -> Option<Errno> {
        match self.failed.swap(0, Ordering::Relaxed) {
            0 => None,
            number => Some(Errno::from_raw(number)),
        }
    }

    /// The name that `/proc` gives to the stdout of a program.
    pub fn stdout_name(&self) -> io::Result<String> {
        let link = format!("/proc/self/fd/{}", self.stdout_in.as_raw_fd());
        Ok(std::fs::read_link(link)?.to_string_lossy().into_owned())
    }
}

/// Whether and how a program is traced.
#[derive(Clone, Copy)]
pub enum Traced<'a> {
    /// It runs as it would without us.
    Not,
    /// It stops at the calls of this filter.
    With(&'a Filter),
}

/// Starts `program` in a process group of its own. `confine` runs in the child first.
///
/// The child borrows our memory until it has executed the program, and we wait for that: copying
/// the memory, as fork does, would cost more than many a program's whole run.
pub fn spawn(
    program: &Program,
    pipes: &mut Pipes,
    trace: Traced<'_>,
    confine: impl FnOnce() -> nix::Result<()>,
) -> io::Result<Pid> {
    let parent = getpid();
    let arguments = pointers(&program.arguments);
    let environment = pointers(&program.environment);
    let mut stack = std::mem::take(&mut pipes.stack);
    let mut confine = Some(confine);
    let child = {
        let pipes = &*pipes;
        let body = Box::new(|| {
            let Some(confine) = confine.take() else { return 127 };
            let error = start(program, pipes, trace, parent, confine, &arguments, &environment);
            pipes.failed.store(error as i32, Ordering::Relaxed);
            127
        });
        let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
        // SAFETY: this thread is suspended until the child has executed or ended, so the two never
        // use the memory at once; the child has a stack of its own, which lives until then.
        unsafe { nix::sched::clone(body, &mut stack, flags, Some(libc::SIGCHLD)) }
    };
    pipes.stack = stack;
    Ok(child?)
}

/// The child's part; returns only when it failed.
fn start(
    program: &Program,
    pipes: &Pipes,
    trace: Traced<'_>,
    parent: Pid,
    confine: impl FnOnce() -> nix::Result<()>,
    arguments: &[*const libc::c_char],
    environment: &[*const libc::c_char],
) -> Errno {
    let prepare = || -> nix::Result<()> {
        nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        die_with(parent)?;
        reset_signals()?;
        onto(pipes.null.as_fd(), 0)?;
        onto(pipes.stdout_in.as_fd(), 1)?;
        onto(pipes.stderr_in.as_fd(), 2)?;
        confine()?;
        if let Some(user) = &program.user {
            user.take_over()?;
            // The kernel forgets it when the user changes.
            die_with(parent)?;
        }
        nix::unistd::chdir(program.directory.as_c_str())?;
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0)?;
        match trace {
            Traced::With(filter) => {
                nix::sys::ptrace::traceme()?;
                filter.load()
            }
            Traced::Not => Ok(()),
        }
    };
    if let Err(error) = prepare() {
        return error;
    }
    // SAFETY: `path`, `arguments` and `environment` are C strings, and lists of them that end with
    // a null pointer; all live in `program`.
    unsafe { libc::execve(program.path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    Errno::last()
}

/// Starts a command of the user's, in the sandbox if there is one; it ends with this process, which has one
/// thread.
pub fn command(
    command: &mut std::process::Command,
    sandbox: Option<&Sandbox>,
    user: Option<&User>,
) -> io::Result<std::process::Child> {
    use std::os::unix::process::CommandExt;
    let parent = getpid();
    let mounts = sandbox.map(Sandbox::entrance).transpose()?;
    let user = user.cloned();
    let prepare = move || {
        die_with(parent)?;
        mounts.as_ref().map_or(Ok(()), Entrance::enter)?;
        if let Some(user) = &user {
            user.take_over()?;
            die_with(parent)?;
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only.
    unsafe { command.pre_exec(prepare) };
    match sandbox {
        Some(sandbox) => sandbox.fork_inside(|| command.spawn())?,
        None => command.spawn(),
    }
}

fn onto(fd: BorrowedFd<'_>, number: i32) -> nix::Result<()> {
    // SAFETY: dup2 takes no pointers; the child gives up whatever it had under `number`.
    Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), number) }).map(drop)
}

fn reset_signals() -> nix::Result<()> {
    // Rust ignores SIGPIPE, workers ignore SIGINT and SIGTERM; a program expects the defaults.
    for ignored in [Signal::SIGPIPE, Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the default action is no handler that could be called.
        unsafe { signal(ignored, SigHandler::SigDfl) }?;
    }
    sigprocmask(nix::sys::signal::SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}
