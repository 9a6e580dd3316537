//! Ctrl-C: a flag for the coordinator, nothing for the workers.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::unistd::{Pid, getppid};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static ORPHANED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
    compute_no_longer();
}

extern "C" fn note_orphaning(_signal: libc::c_int) {
    ORPHANED.store(true, Ordering::Relaxed);
    compute_no_longer();
}

/// How long a process may go on computing that should come to its end, in microseconds of its own time.
const COMPUTE_MAX_US: libc::suseconds_t = 900_000;

/// Ends this process soon, unless it ends by itself or waits.
fn compute_no_longer() {
    let zero = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let limit = libc::timeval { tv_sec: 0, tv_usec: COMPUTE_MAX_US };
    let timer = libc::itimerval { it_interval: zero, it_value: limit };
    // SAFETY: as for `set_alarm`; this timer has a signal of its own.
    let _ =
        unsafe { libc::setitimer(libc::ITIMER_VIRTUAL, &raw const timer, std::ptr::null_mut()) };
}

/// Ends a process that has computed for too long: what it has kept until then is whole.
extern "C" fn stop_computing(_signal: libc::c_int) {
    if INTERRUPTED.load(Ordering::Relaxed) {
        let what = "error: interrupted before there was anything to show\n";
        // SAFETY: `write` may be called at any moment, and `what` is as long as is said.
        let _ = unsafe { libc::write(libc::STDERR_FILENO, what.as_ptr().cast(), what.len()) };
    }
    super::process::end_now(130)
}

extern "C" fn nothing(_signal: libc::c_int) {}

/// Whether SIGINT or SIGTERM has come since [`catch_interrupts`].
#[must_use]
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Makes SIGINT and SIGTERM set a flag; calls that wait are interrupted by them.
pub fn catch_interrupts() -> io::Result<()> {
    install(&[Signal::SIGVTALRM], SigHandler::Handler(stop_computing))?;
    install(&[Signal::SIGINT, Signal::SIGTERM], SigHandler::Handler(note))
}

/// Whether the parent has ended since [`notice_orphaning`].
#[must_use]
pub fn orphaned() -> bool {
    ORPHANED.load(Ordering::Relaxed)
}

/// Whether this process should come to its end: its run was interrupted, or its parent has ended.
#[must_use]
pub fn ends() -> bool {
    interrupted() || orphaned()
}

/// Makes the end of `parent` set a flag, so that this process can end what it has started.
pub fn notice_orphaning(parent: Pid) -> io::Result<()> {
    install(&[Signal::SIGVTALRM], SigHandler::Handler(stop_computing))?;
    install(&[Signal::SIGUSR1], SigHandler::Handler(note_orphaning))?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGUSR1)?;
    // It may have ended before that.
    ORPHANED.fetch_or(getppid() != parent, Ordering::Relaxed);
    Ok(())
}

/// Makes SIGINT do nothing: a terminal sends it to workers too, and they end with the coordinator.
pub fn ignore_interrupts() -> io::Result<()> {
    install(&[Signal::SIGINT, Signal::SIGTERM], SigHandler::SigIgn)
}

/// Signals that end a command, which a process that only waits passes on.
const FORWARDED: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// Makes the signals that end a command call `handler`, which may only do what is async-signal-safe.
pub fn forward(handler: extern "C" fn(libc::c_int)) -> io::Result<()> {
    install(&FORWARDED, SigHandler::Handler(handler))
}

/// Makes these signals end this process again.
pub fn stop_forwarding() -> io::Result<()> {
    install(&FORWARDED, SigHandler::SigDfl)
}

/// How often the alarm rings, in microseconds.
const ALARM_EVERY_US: libc::suseconds_t = 20_000;

/// Rings the alarm again and again while `body` runs, so that it never waits for long.
pub fn with_alarm<T>(body: impl FnOnce() -> T) -> T {
    let off = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let every = libc::timeval { tv_sec: 0, tv_usec: ALARM_EVERY_US };
    set_alarm(libc::itimerval { it_interval: every, it_value: every });
    let result = body();
    set_alarm(libc::itimerval { it_interval: off, it_value: off });
    result
}

fn set_alarm(timer: libc::itimerval) {
    // SAFETY: `timer` is valid for the call, and a null pointer says that the old one is not wanted.
    // The call fails for invalid times only.
    let _ = unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
}

/// Makes SIGALRM interrupt calls that wait, and do nothing else.
pub fn interrupt_by_alarm() -> io::Result<()> {
    install(&[Signal::SIGALRM], SigHandler::Handler(nothing))
}

fn install(signals: &[Signal], handler: SigHandler) -> io::Result<()> {
    // Without SA_RESTART, so that calls that wait return with EINTR.
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    for signal in signals {
        // SAFETY: the handlers store to an atomic or do nothing, which is allowed at any moment.
        unsafe { sigaction(*signal, &action) }?;
    }
    Ok(())
}
