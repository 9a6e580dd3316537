//! The seccomp filter: storage calls stop for the tracer, everything else runs at full speed.

use libc::{sock_filter, sock_fprog};

use super::arch::{self, Syscall, When};
use crate::armed::Follows;

/// The data of a stop for a storage call.
pub const STORAGE: u16 = 1;
/// The data of a stop for a call that is not of this machine's native kind.
pub const FOREIGN: u16 = 2;
/// The data of a stop for `io_uring_setup`.
pub const IO_URING: u16 = 3;
/// The data of a stop for a call that only a guard looks at.
pub const GUARDED: u16 = 4;

/// A filter program, ready to be loaded.
#[derive(Clone)]
pub struct Filter {
    program: Vec<sock_filter>,
}

// Offsets in struct seccomp_data (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const JUMP_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const JUMP_NOT_LESS: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const JUMP_ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

impl Filter {
    /// The filter that stops what is followed; for a guard, also what names a file or is among `more`.
    #[must_use]
    pub fn new(follows: Follows, guarded: Option<&[i64]>) -> Self {
        let mut filter = Self { program: Vec::new() };
        filter.push(LOAD, ARCH, 0, 0);
        filter.push(JUMP_EQUAL, arch::NATIVE, 1, 0);
        filter.stop(FOREIGN);
        filter.push(LOAD, NUMBER, 0, 0);
        if arch::FOREIGN_BIT != 0 {
            filter.push(JUMP_NOT_LESS, arch::FOREIGN_BIT, 0, 1);
            filter.stop(FOREIGN);
        }
        filter.push(JUMP_EQUAL, number(libc::SYS_io_uring_setup), 0, 1);
        filter.stop(IO_URING);
        for syscall in arch::syscalls() {
            let wanted = match follows {
                Follows::All => true,
                Follows::Call(call) => syscall.calls.contains(&call),
                Follows::Family(family) => syscall.calls.iter().any(|call| call.family() == family),
                Follows::Nothing => false,
            };
            if wanted {
                filter.add(syscall, STORAGE);
            } else if guarded.is_some() && syscall.calls.iter().any(|call| call.names_a_file()) {
                filter.add(syscall, GUARDED);
            }
        }
        for call in guarded.into_iter().flatten() {
            filter.push(JUMP_EQUAL, number(*call), 0, 1);
            filter.stop(GUARDED);
        }
        filter.allow();
        filter
    }

    fn push(&mut self, code: u32, k: u32, jt: u8, jf: u8) {
        // The codes of classic BPF fit in 16 bits.
        #[expect(clippy::cast_possible_truncation, reason = "see above")]
        self.program.push(sock_filter { code: code as u16, jt, jf, k });
    }

    fn stop(&mut self, data: u16) {
        self.push(RETURN, libc::SECCOMP_RET_TRACE | u32::from(data), 0, 0);
    }

    fn allow(&mut self) {
        self.push(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0);
    }

    fn add(&mut self, syscall: &Syscall, data: u16) {
        let number = number(syscall.number);
        match syscall.when {
            When::Always => {
                self.push(JUMP_EQUAL, number, 0, 1);
                self.stop(data);
            }
            When::Bits { argument, any, none } => {
                self.push(JUMP_EQUAL, number, 0, 5);
                self.push(LOAD, low_half(argument), 0, 0);
                self.push(JUMP_ANY_BIT, none, 2, 0);
                self.push(JUMP_ANY_BIT, any, 0, 1);
                self.stop(data);
                self.allow();
            }
            When::Is { argument, values } => {
                self.push(JUMP_EQUAL, number, 0, 5);
                self.push(LOAD, low_half(argument), 0, 0);
                self.push(JUMP_EQUAL, values[0], 1, 0);
                self.push(JUMP_EQUAL, values[1], 0, 1);
                self.stop(data);
                self.allow();
            }
        }
    }

    /// Loads the filter into this process, for good.
    pub fn load(&self) -> nix::Result<()> {
        nix::sys::prctl::set_no_new_privs()?;
        let program = sock_fprog {
            // The kernel takes at most 4096 instructions; there are some 150.
            len: u16::try_from(self.program.len()).unwrap_or(u16::MAX),
            filter: self.program.as_ptr().cast_mut(),
        };
        // SAFETY: `program` points to `len` instructions that live until the call returns, and the
        // kernel only reads them.
        let result = unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
        };
        nix::errno::Errno::result(result).map(drop)
    }
}

/// Where the low half of an argument is: both machines are little-endian.
fn low_half(argument: u8) -> u32 {
    ARGUMENTS + 8 * u32::from(argument)
}

fn number(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
