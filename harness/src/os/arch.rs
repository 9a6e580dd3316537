//! What differs between x86-64 and aarch64: registers, and which system calls there are.

use crate::op::Call;

/// `AUDIT_ARCH_*` of this machine's native calls (linux/audit.h).
#[cfg(target_arch = "x86_64")]
pub const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
pub const NATIVE: u32 = 0xc000_00b7;

/// Calls with this bit are of the x32 ABI, which shares `NATIVE`; 0 where there is none.
#[cfg(target_arch = "x86_64")]
pub const FOREIGN_BIT: u32 = 0x4000_0000;
#[cfg(target_arch = "aarch64")]
pub const FOREIGN_BIT: u32 = 0;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("crashtest knows the registers of x86-64 and aarch64 only");

/// The registers of a stopped thread.
pub type Registers = libc::user_regs_struct;

/// Sets the `index`th argument of the call that a thread is about to make.
pub fn set_argument(registers: &mut Registers, index: usize, value: u64) {
    #[cfg(target_arch = "x86_64")]
    {
        let register = match index {
            0 => &mut registers.rdi,
            1 => &mut registers.rsi,
            2 => &mut registers.rdx,
            3 => &mut registers.r10,
            4 => &mut registers.r8,
            _ => &mut registers.r9,
        };
        *register = value;
    }
    #[cfg(target_arch = "aarch64")]
    {
        registers.regs[index] = value;
    }
}

/// On x86-64 the kernel takes the number of the call from the registers, so that a call can be
/// skipped by changing it; aarch64 keeps it elsewhere (`NT_ARM_SYSTEM_CALL`).
pub fn skip_call(registers: &mut Registers, result: i64) {
    #[cfg(target_arch = "x86_64")]
    {
        registers.orig_rax = u64::MAX;
        registers.rax = result.cast_unsigned();
    }
    #[cfg(target_arch = "aarch64")]
    {
        registers.regs[0] = result.cast_unsigned();
    }
}

/// Sets what a call that was made returns.
pub fn set_result(registers: &mut Registers, result: i64) {
    #[cfg(target_arch = "x86_64")]
    {
        registers.rax = result.cast_unsigned();
    }
    #[cfg(target_arch = "aarch64")]
    {
        registers.regs[0] = result.cast_unsigned();
    }
}

/// Where a thread is, and where its stack is.
#[derive(Clone, Copy, Debug)]
pub struct StackPoint {
    /// The address of its next instruction.
    pub pc: u64,
    /// The stack pointer.
    pub sp: u64,
    /// The frame pointer.
    pub fp: u64,
    /// The return address, where a register holds it.
    #[cfg(target_arch = "aarch64")]
    pub lr: u64,
}

impl StackPoint {
    /// The registers that unwinding begins with.
    #[must_use]
    pub fn registers(&self) -> framehop::UnwindRegsNative {
        #[cfg(target_arch = "x86_64")]
        {
            framehop::UnwindRegsNative::new(self.pc, self.sp, self.fp)
        }
        #[cfg(target_arch = "aarch64")]
        {
            framehop::UnwindRegsNative::new(self.lr, self.sp, self.fp)
        }
    }
}

/// Where a thread with these registers is.
#[must_use]
pub fn stack_point(registers: &Registers) -> StackPoint {
    #[cfg(target_arch = "x86_64")]
    {
        StackPoint { pc: registers.rip, sp: registers.rsp, fp: registers.rbp }
    }
    #[cfg(target_arch = "aarch64")]
    {
        let [fp, lr] = [registers.regs[29], registers.regs[30]];
        StackPoint { pc: registers.pc, sp: registers.sp, fp, lr }
    }
}

/// When a system call is of interest; the filter in the kernel checks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Always.
    Always,
    /// When argument `argument` has one of the bits `any`, and none of the bits `none`.
    Bits {
        /// Which argument, from 0.
        argument: u8,
        /// At least one of these must be set.
        any: u32,
        /// None of these may be set.
        none: u32,
    },
    /// When argument `argument` is one of two values.
    Is {
        /// Which argument, from 0.
        argument: u8,
        /// The values.
        values: [u32; 2],
    },
}

/// One system call that changes files or makes them durable.
#[derive(Clone, Copy, Debug)]
pub struct Syscall {
    /// Its number.
    pub number: i64,
    /// The kinds that it can be.
    pub calls: &'static [Call],
    /// When it is of interest.
    pub when: When,
}

const fn always(number: i64, calls: &'static [Call]) -> Syscall {
    Syscall { number, calls, when: When::Always }
}

/// `FICLONE` and `FICLONERANGE` (linux/fs.h).
pub const CLONE_REQUESTS: [u32; 2] = [0x4004_9409, 0x4020_940d];

/// Open flags with which an open can change something.
const OPENS_TO_CHANGE: u32 =
    (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC).cast_unsigned();

const fn open_with_flags(number: i64, argument: u8) -> Syscall {
    let when = When::Bits { argument, any: OPENS_TO_CHANGE, none: 0 };
    Syscall { number, calls: &[Call::Open], when }
}

const SHARED_FILE_MAPPING: When = When::Bits {
    argument: 3,
    // MAP_SHARED_VALIDATE has the bit of MAP_SHARED too.
    any: libc::MAP_SHARED.cast_unsigned(),
    none: libc::MAP_ANONYMOUS.cast_unsigned(),
};

/// The calls that both machines have.
const COMMON: &[Syscall] = &[
    always(libc::SYS_write, &[Call::Write]),
    always(libc::SYS_close, &[Call::Close]),
    open_with_flags(libc::SYS_openat, 2),
    always(libc::SYS_openat2, &[Call::Open]),
    always(libc::SYS_pwrite64, &[Call::Pwrite]),
    always(libc::SYS_writev, &[Call::Writev]),
    always(libc::SYS_pwritev, &[Call::Pwritev]),
    always(libc::SYS_pwritev2, &[Call::Pwritev]),
    always(libc::SYS_sendfile, &[Call::Sendfile]),
    always(libc::SYS_copy_file_range, &[Call::CopyFileRange]),
    always(libc::SYS_splice, &[Call::Splice]),
    always(libc::SYS_truncate, &[Call::Truncate]),
    always(libc::SYS_ftruncate, &[Call::Truncate]),
    always(libc::SYS_fallocate, &[Call::Fallocate]),
    always(libc::SYS_fsync, &[Call::Fsync]),
    always(libc::SYS_fdatasync, &[Call::Fdatasync]),
    always(libc::SYS_sync, &[Call::Sync]),
    always(libc::SYS_syncfs, &[Call::Sync]),
    always(libc::SYS_sync_file_range, &[Call::SyncFileRange]),
    always(libc::SYS_msync, &[Call::Msync]),
    always(libc::SYS_renameat, &[Call::Rename]),
    always(libc::SYS_renameat2, &[Call::Rename]),
    always(libc::SYS_linkat, &[Call::Link]),
    always(libc::SYS_symlinkat, &[Call::Symlink]),
    always(libc::SYS_unlinkat, &[Call::Unlink, Call::Rmdir]),
    always(libc::SYS_mkdirat, &[Call::Mkdir]),
    Syscall { number: libc::SYS_mmap, calls: &[Call::MapShared], when: SHARED_FILE_MAPPING },
    Syscall {
        number: libc::SYS_ioctl,
        calls: &[Call::Clone],
        when: When::Is { argument: 1, values: CLONE_REQUESTS },
    },
];

/// The older calls, which only x86-64 has.
#[cfg(target_arch = "x86_64")]
const OLDER: &[Syscall] = &[
    open_with_flags(libc::SYS_open, 1),
    always(libc::SYS_creat, &[Call::Open]),
    always(libc::SYS_rename, &[Call::Rename]),
    always(libc::SYS_link, &[Call::Link]),
    always(libc::SYS_symlink, &[Call::Symlink]),
    always(libc::SYS_unlink, &[Call::Unlink]),
    always(libc::SYS_mkdir, &[Call::Mkdir]),
    always(libc::SYS_rmdir, &[Call::Rmdir]),
];
#[cfg(target_arch = "aarch64")]
const OLDER: &[Syscall] = &[];

/// All system calls that are followed.
pub fn syscalls() -> impl Iterator<Item = &'static Syscall> {
    COMMON.iter().chain(OLDER)
}
