//! A network of its own: what listens there is reached by nobody else, and reaches nobody.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Gives this process, and what it will fork, a network with nothing in it but `lo`. Needs
/// CAP_SYS_ADMIN.
pub fn make_private() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all zeros is an ifreq: a name that is empty, and flags of which none is set.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(c"lo".to_bytes_with_nul()) {
        *place = libc::c_char::from_ne_bytes([*byte]);
    }
    request.ifr_ifru.ifru_flags = FLAGS_UP;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives until it returns.
    let done = unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    Errno::result(done).map(drop).map_err(io::Error::from)
}

/// An interface that is up, and runs.
#[expect(clippy::cast_possible_truncation, reason = "the flags of an interface are 16 bits")]
const FLAGS_UP: libc::c_short = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
