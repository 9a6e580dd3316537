//! Following processes: typed states, so that what needs a stopped thread has one.
//!
//! A [`Stopped`] thread is given back by [`wait`], and is used up by letting it run. A thread that
//! has died in between (SIGKILL from outside) makes every call fail with [`Died`].

use std::ffi::CString;
use std::io;

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::unistd::Pid;

use super::arch::{self, Registers, StackPoint};
use super::process::Ended;

/// The thread is not there any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Died;

/// The result of everything that a traced thread can escape by dying.
pub type Result<T> = std::result::Result<T, Died>;

impl From<Errno> for Died {
    fn from(_: Errno) -> Self {
        // ESRCH is what ptrace says of a thread that died. After any other error the thread may
        // still wait in its stop: see `nudge`.
        Self
    }
}

/// A thread in a ptrace stop.
#[derive(Debug)]
pub struct Stopped {
    tid: Pid,
}

/// Why a thread stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is about to make a call that the filter stops.
    Filter,
    /// A call that was let run with [`Run::ToExit`] has returned.
    CallDone,
    /// It has made a new thread or process, which is traced too.
    NewChild(Pid),
    /// It has replaced its program; as a thread it was called this before.
    Exec(Pid),
    /// It is about to receive a signal, or has been stopped by one that stops its whole group; a
    /// group stop of a traced program is not kept up.
    Signal(i32),
}

/// What [`wait`] has met.
#[derive(Debug)]
pub enum Event {
    /// A thread has stopped.
    Stop(Stopped, Reason),
    /// A thread or process has ended.
    Gone(Pid, Ended),
    /// The alarm rang.
    Tick,
    /// There is nobody left to wait for.
    NobodyLeft,
}

/// How far a thread is let run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// To its next event.
    On,
    /// To the return of the call that it is about to make.
    ToExit,
}

/// A call that is about to be made, or its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallInfo {
    /// About to be made.
    Entry {
        /// Which data the filter gave it.
        data: u16,
        /// Its number.
        number: i64,
        /// Its arguments.
        arguments: [u64; 6],
    },
    /// It returned this.
    Exit(i64),
    /// Something else.
    Other,
}

/// Lets a thread run on that may still be in a stop; one that is not, or is dead, does not notice.
pub fn nudge(tid: Pid) {
    let _ = Stopped { tid }.resume(Run::On, 0);
}

/// Waits for the next event among the children and tracees of this thread.
pub fn wait() -> io::Result<Event> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for one int.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
    match Errno::result(pid) {
        Ok(pid) => Ok(event(Pid::from_raw(pid), status)),
        Err(Errno::EINTR) => Ok(Event::Tick),
        Err(Errno::ECHILD) => Ok(Event::NobodyLeft),
        Err(error) => Err(error.into()),
    }
}

fn event(tid: Pid, status: i32) -> Event {
    if libc::WIFEXITED(status) {
        return Event::Gone(tid, Ended::Status(libc::WEXITSTATUS(status)));
    }
    if libc::WIFSIGNALED(status) {
        return Event::Gone(tid, Ended::Signal(libc::WTERMSIG(status)));
    }
    let stopped = Stopped { tid };
    let signal = libc::WSTOPSIG(status);
    let reason = match status >> 16 {
        libc::PTRACE_EVENT_SECCOMP => Reason::Filter,
        libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => {
            Reason::NewChild(stopped.message())
        }
        libc::PTRACE_EVENT_EXEC => Reason::Exec(stopped.message()),
        _ if signal == libc::SIGTRAP | 0x80 => Reason::CallDone,
        _ => Reason::Signal(signal),
    };
    Event::Stop(stopped, reason)
}

impl Stopped {
    /// Says which events stop it, and whatever it will fork; all of them die with the tracer.
    pub fn follow(&self) -> Result<()> {
        let options = Options::PTRACE_O_EXITKILL
            | Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACESECCOMP
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEEXEC;
        Ok(ptrace::setoptions(self.tid, options)?)
    }

    /// Its id.
    #[must_use]
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// The id that comes with a fork or exec event; 0 if the thread has died.
    fn message(&self) -> Pid {
        let message = ptrace::getevent(self.tid).unwrap_or(0);
        Pid::from_raw(i32::try_from(message).unwrap_or(0))
    }

    /// The call that it is about to make, or the result of the one that it made.
    pub fn call_info(&self) -> Result<CallInfo> {
        let info = ptrace::syscall_info(self.tid)?;
        match info.op {
            libc::PTRACE_SYSCALL_INFO_SECCOMP => {
                // SAFETY: `op` says that the kernel has filled this variant.
                let entry = unsafe { info.u.seccomp };
                // SECCOMP_RET_DATA is 16 bits wide.
                #[expect(clippy::cast_possible_truncation, reason = "see above")]
                let data = entry.ret_data as u16;
                let number = entry.nr.cast_signed();
                Ok(CallInfo::Entry { data, number, arguments: entry.args })
            }
            libc::PTRACE_SYSCALL_INFO_EXIT => {
                // SAFETY: `op` says that the kernel has filled this variant.
                let exit = unsafe { info.u.exit };
                Ok(CallInfo::Exit(exit.sval))
            }
            _ => Ok(CallInfo::Other),
        }
    }

    /// Changes an argument of the call that it is about to make.
    pub fn set_argument(&self, index: usize, value: u64) -> Result<()> {
        let mut registers = self.registers()?;
        arch::set_argument(&mut registers, index, value);
        self.set_registers(registers)
    }

    /// Makes the call that it is about to make return `result` without being made.
    pub fn skip_call(&self, result: i64) -> Result<()> {
        let mut registers = self.registers()?;
        arch::skip_call(&mut registers, result);
        self.set_registers(registers)?;
        #[cfg(target_arch = "aarch64")]
        self.set_call_number(-1)?;
        Ok(())
    }

    /// Changes what the call that it has made returns.
    pub fn set_result(&self, result: i64) -> Result<()> {
        let mut registers = self.registers()?;
        arch::set_result(&mut registers, result);
        self.set_registers(registers)
    }

    #[cfg(target_arch = "aarch64")]
    fn set_call_number(&self, mut number: i32) -> Result<()> {
        const NT_ARM_SYSTEM_CALL: usize = 0x404;
        let mut place =
            libc::iovec { iov_base: (&raw mut number).cast(), iov_len: size_of::<i32>() };
        // SAFETY: `place` describes `number`, which outlives the call.
        let result = unsafe {
            libc::ptrace(
                libc::PTRACE_SETREGSET,
                self.tid.as_raw(),
                NT_ARM_SYSTEM_CALL,
                &raw mut place,
            )
        };
        Ok(Errno::result(result).map(drop)?)
    }

    /// Where it is, and where its stack is.
    pub fn stack_point(&self) -> Result<StackPoint> {
        Ok(arch::stack_point(&self.registers()?))
    }

    fn registers(&self) -> Result<Registers> {
        Ok(ptrace::getregset::<ptrace::regset::NT_PRSTATUS>(self.tid)?)
    }

    fn set_registers(&self, registers: Registers) -> Result<()> {
        Ok(ptrace::setregset::<ptrace::regset::NT_PRSTATUS>(self.tid, registers)?)
    }

    /// Reads memory; fewer bytes than `length` when the rest is not mapped.
    pub fn read(&self, address: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let mut done = 0;
        while done < length {
            match self.read_some(address + done as u64, &mut bytes[done..]) {
                Ok(0) | Err(Errno::EFAULT) => break,
                Ok(count) => done += count,
                Err(error) => return Err(error.into()),
            }
        }
        bytes.truncate(done);
        Ok(bytes)
    }

    fn read_some(&self, address: u64, bytes: &mut [u8]) -> nix::Result<usize> {
        let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let base = usize::try_from(address).unwrap_or(usize::MAX);
        let remote = libc::iovec { iov_base: base as *mut libc::c_void, iov_len: bytes.len() };
        // SAFETY: `local` describes `bytes`; `remote` is an address of another process, which the
        // kernel checks.
        let count = unsafe {
            libc::process_vm_readv(self.tid.as_raw(), &raw const local, 1, &raw const remote, 1, 0)
        };
        Errno::result(count).map(|count| usize::try_from(count).unwrap_or(0))
    }

    /// Reads a C string of at most `PATH_MAX` bytes, without its end.
    pub fn read_string(&self, address: u64) -> Result<CString> {
        const PAGE: u64 = 4096;
        let mut bytes = Vec::new();
        while bytes.len() < libc::PATH_MAX as usize {
            let here = address + bytes.len() as u64;
            // Not past the page: the next one may not be mapped.
            let length = usize::try_from(PAGE - here % PAGE).unwrap_or(1).min(256);
            let part = self.read(here, length)?;
            if part.is_empty() {
                break;
            }
            if let Some(end) = part.iter().position(|byte| *byte == 0) {
                bytes.extend_from_slice(&part[..end]);
                break;
            }
            bytes.extend_from_slice(&part);
        }
        // There is no NUL in `bytes`: it ends before the first.
        Ok(CString::new(bytes).unwrap_or_default())
    }

    /// Writes one machine word, to read-only memory too.
    pub fn write_word(&self, address: u64, word: u64) -> Result<()> {
        let place = usize::try_from(address).unwrap_or(usize::MAX) as *mut libc::c_void;
        Ok(ptrace::write(self.tid, place, word.cast_signed())?)
    }

    /// Lets it run; `signal` is delivered to it unless it is 0.
    pub fn resume(self, run: Run, signal: i32) -> Result<()> {
        let request = match run {
            Run::On => libc::PTRACE_CONT,
            Run::ToExit => libc::PTRACE_SYSCALL,
        };
        self.request(request, signal)
    }

    fn request(&self, request: libc::c_uint, data: i32) -> Result<()> {
        let none = std::ptr::null_mut::<libc::c_void>();
        let data = data as *mut libc::c_void;
        // SAFETY: these requests take no addresses: the third argument is ignored and the fourth
        // is a number.
        let result = unsafe { libc::ptrace(request, self.tid.as_raw(), none, data) };
        Ok(Errno::result(result).map(drop)?)
    }
}
