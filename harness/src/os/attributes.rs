//! Attributes of files that only root can set, such as immutable.

use std::os::fd::RawFd;

use nix::errno::Errno;

// linux/fs.h
const FS_IOC_GETFLAGS: libc::Ioctl = 0x8008_6601;
const FS_IOC_SETFLAGS: libc::Ioctl = 0x4008_6602;
const FS_IMMUTABLE_FL: libc::c_long = 0x10;
const FS_APPEND_FL: libc::c_long = 0x20;

/// Lets an open file be changed and removed again, if this process may say so.
pub fn make_mutable(file: RawFd) {
    let mut flags: libc::c_long = 0;
    // SAFETY: the kernel writes one number to `flags`, which outlives the call.
    let read = unsafe { libc::ioctl(file, FS_IOC_GETFLAGS, &raw mut flags) };
    if Errno::result(read).is_err() || flags & (FS_IMMUTABLE_FL | FS_APPEND_FL) == 0 {
        return;
    }
    flags &= !(FS_IMMUTABLE_FL | FS_APPEND_FL);
    // SAFETY: the kernel reads one number from `flags`, which outlives the call. If it refuses, the file
    // stays as it is, and its removal says so.
    let _ = unsafe { libc::ioctl(file, FS_IOC_SETFLAGS, &raw const flags) };
}
