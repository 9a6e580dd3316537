//! What is special about a file: attributes that only root can set, and that it is the root of a mount.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;

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

/// Whether something is mounted on an entry of an open directory (`STATX_ATTR_MOUNT_ROOT`, Linux 5.8). An older
/// kernel does not tell, and the answer is no.
pub fn is_mounted_on(directory: RawFd, name: &OsStr) -> io::Result<bool> {
    let name = CString::new(name.as_bytes())?;
    // SAFETY: all zeros is a `struct statx`.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    // SAFETY: `name` is a C string, and the kernel writes one `struct statx` to `found`; both outlive the call.
    let done = unsafe { libc::statx(directory, name.as_ptr(), flags, 0, &raw mut found) };
    Errno::result(done)?;
    let known = found.stx_attributes & found.stx_attributes_mask;
    Ok(known & (libc::STATX_ATTR_MOUNT_ROOT as u64) != 0)
}
