//! Quotas: what a user (ext4) or a subvolume (btrfs) may use of a disk that has room.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use caps::errors::CapsError;
use caps::{CapSet, Capability};
use nix::errno::Errno;
use nix::sys::quota::{Dqblk, QuotaType, QuotaValidFlags, quotactl_get, quotactl_set};
use nix::unistd::geteuid;

/// The unit of limits (`QIF_DQBLKSIZE`), in bytes.
const LIMIT_BYTES: u64 = 1024;

/// How many bytes of the disk on `device` are this user's.
pub fn used_by_user(device: &Path) -> io::Result<u64> {
    let quota = quotactl_get(QuotaType::USRQUOTA, device, user())?;
    Ok(quota.occupied_space().unwrap_or(0))
}

/// Lets this user have so many bytes of the disk on `device`; 0 for as many as there are.
pub fn limit_user(device: &Path, bytes: u64) -> io::Result<()> {
    let mut quota = Dqblk::default();
    quota.set_blocks_hard_limit(bytes / LIMIT_BYTES);
    quota.set_blocks_soft_limit(bytes / LIMIT_BYTES);
    let which = QuotaType::USRQUOTA;
    Ok(quotactl_set(which, device, user(), &quota, QuotaValidFlags::QIF_BLIMITS)?)
}

fn user() -> i32 {
    geteuid().as_raw().cast_signed()
}

/// Gives up, for good, the right to take more than a quota allows, which root has. The programs that
/// are started do not get it back.
pub fn obey_quotas() -> Result<(), CapsError> {
    use CapSet::{Bounding, Effective, Inheritable, Permitted};
    [Bounding, Inheritable, Effective, Permitted]
        .into_iter()
        .try_for_each(|set| caps::drop(None, set, Capability::CAP_SYS_RESOURCE))
}

// linux/btrfs.h
const BTRFS_IOC_SUBVOL_CREATE: libc::Ioctl = 0x5000_940E;
const BTRFS_IOC_TREE_SEARCH: libc::Ioctl = 0xD000_9411;
const BTRFS_IOC_QUOTA_CTL: libc::Ioctl = 0xC010_9428;
const BTRFS_IOC_QGROUP_LIMIT: libc::Ioctl = 0x8030_942B;
const BTRFS_IOC_QUOTA_RESCAN_WAIT: libc::Ioctl = 0x942E;
const BTRFS_QUOTA_CTL_ENABLE: u64 = 1;
const BTRFS_QGROUP_LIMIT_MAX_RFER: u64 = 1;
// linux/btrfs_tree.h
const BTRFS_QUOTA_TREE_OBJECTID: u64 = 8;
const BTRFS_QGROUP_INFO_KEY: u32 = 242;
/// The subvolume that a new btrfs has (`BTRFS_FS_TREE_OBJECTID`).
const TOP: u64 = 5;

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct Named {
    fd: i64,
    name: [u8; 4088],
}

/// Makes a subvolume in the directory `place`.
pub fn make_subvolume(place: &Path, name: &str) -> io::Result<()> {
    let directory = File::open(place)?;
    let mut named = Named { fd: 0, name: [0; 4088] };
    named.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the request reads a `struct btrfs_ioctl_vol_args`, which outlives the call; the name
    // is shorter than its place, so that a NUL byte follows.
    let done =
        unsafe { libc::ioctl(directory.as_raw_fd(), BTRFS_IOC_SUBVOL_CREATE, &raw const named) };
    Ok(Errno::result(done).map(drop)?)
}

/// Starts to count what the subvolumes of a btrfs use; `root` is open on it.
pub fn count_subvolumes(root: &File) -> io::Result<()> {
    let mut control = [BTRFS_QUOTA_CTL_ENABLE, 0];
    // SAFETY: the request takes two numbers of 64 bits, which outlive the call.
    let done = unsafe { libc::ioctl(root.as_raw_fd(), BTRFS_IOC_QUOTA_CTL, control.as_mut_ptr()) };
    Errno::result(done)?;
    // SAFETY: the request takes no argument.
    let done = unsafe { libc::ioctl(root.as_raw_fd(), BTRFS_IOC_QUOTA_RESCAN_WAIT) };
    Ok(Errno::result(done).map(drop)?)
}

/// Lets the top subvolume have so many bytes; `u64::MAX` for as many as there are.
pub fn limit_subvolume(root: &File, bytes: u64) -> io::Result<()> {
    // The group, then `struct btrfs_qgroup_limit`: flags, and limits of which the first counts.
    let limit = [TOP, BTRFS_QGROUP_LIMIT_MAX_RFER, bytes, 0, 0, 0];
    // SAFETY: the request reads six numbers of 64 bits, which outlive the call.
    let done = unsafe { libc::ioctl(root.as_raw_fd(), BTRFS_IOC_QGROUP_LIMIT, limit.as_ptr()) };
    Ok(Errno::result(done).map(drop)?)
}

/// `struct btrfs_ioctl_search_args`, with the key first.
#[repr(C)]
struct Search {
    tree: u64,
    objects: [u64; 2],
    offsets: [u64; 2],
    transactions: [u64; 2],
    types: [u32; 2],
    items: u32,
    unused: u32,
    unused_too: [u64; 4],
    found: [u8; FOUND_BYTES],
}

const FOUND_BYTES: usize = 4096 - 104;
/// `struct btrfs_ioctl_search_header`; then comes `struct btrfs_qgroup_info_item`, whose second
/// number of 64 bits is what is referenced.
const REFERENCED_AT: usize = 32 + 8;

/// How many bytes the top subvolume uses, as of the last commit.
pub fn used_by_subvolume(root: &File) -> io::Result<u64> {
    let mut search = Search {
        tree: BTRFS_QUOTA_TREE_OBJECTID,
        objects: [0, 0],
        offsets: [TOP, TOP],
        transactions: [0, u64::MAX],
        types: [BTRFS_QGROUP_INFO_KEY, BTRFS_QGROUP_INFO_KEY],
        items: 1,
        unused: 0,
        unused_too: [0; 4],
        found: [0; FOUND_BYTES],
    };
    // SAFETY: `search` is what the request takes, 4096 bytes of which it fills the last.
    let done = unsafe { libc::ioctl(root.as_raw_fd(), BTRFS_IOC_TREE_SEARCH, &raw mut search) };
    Errno::result(done)?;
    if search.items == 0 {
        return Err(io::Error::other("the quota tree has no such group"));
    }
    let bytes = &search.found[REFERENCED_AT..REFERENCED_AT + 8];
    Ok(u64::from_le_bytes(bytes.try_into().map_err(io::Error::other)?))
}
