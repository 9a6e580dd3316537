//! Ctrl-C: a flag for the coordinator, nothing for the workers.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

extern "C" fn nothing(_signal: libc::c_int) {}

/// Whether SIGINT or SIGTERM has come since [`catch_interrupts`].
#[must_use]
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Makes SIGINT and SIGTERM set a flag; calls that wait are interrupted by them.
pub fn catch_interrupts() -> io::Result<()> {
    install(&[Signal::SIGINT, Signal::SIGTERM], SigHandler::Handler(note))
}

/// Makes SIGINT do nothing: a terminal sends it to workers too, and they end with the coordinator.
pub fn ignore_interrupts() -> io::Result<()> {
    install(&[Signal::SIGINT, Signal::SIGTERM], SigHandler::SigIgn)
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
