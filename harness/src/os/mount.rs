//! Mounts that nobody else sees, and that go with the last process that does.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, getegid, geteuid, getpid};

const NOTHING: Option<&str> = None;

/// The process that has mounts of its own already.
static OWNER: AtomicI32 = AtomicI32::new(0);

/// Gives this process, which has one thread, and those that it will fork, mounts of their own. A process
/// without the right to them gets a user namespace too. Calling it again changes nothing.
pub fn make_private() -> nix::Result<()> {
    let this = getpid().as_raw();
    if OWNER.load(Ordering::Relaxed) == this {
        return Ok(());
    }
    match unshare(CloneFlags::CLONE_NEWNS) {
        Ok(()) => private_mounts()?,
        Err(_) => in_user_namespace()?,
    }
    has_own_mounts();
    Ok(())
}

/// Whether the mounts that this process makes are seen by no other run.
pub fn are_own() -> bool {
    OWNER.load(Ordering::Relaxed) == getpid().as_raw()
}

/// Tells [`make_private`] that this process has mounts of its own.
pub fn has_own_mounts() {
    OWNER.store(getpid().as_raw(), Ordering::Relaxed);
}

/// Lets nothing be written through the mount at `place`, and those below it.
pub fn read_only(place: &Path) -> io::Result<()> {
    let place = std::ffi::CString::new(place.as_os_str().as_bytes())?;
    // `struct mount_attr`: set, clear, propagation, user namespace.
    let attributes = [libc::MOUNT_ATTR_RDONLY, 0_u64, 0, 0];
    // SAFETY: `place` is a C string and `attributes` as large as is said; the kernel only reads them.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            place.as_ptr(),
            libc::AT_RECURSIVE,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    Ok(Errno::result(done).map(drop)?)
}

/// Gives this process, which has one thread, a user namespace in which it keeps its ids, and mounts
/// of its own.
pub fn in_user_namespace() -> nix::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
    map_ids(uid, gid)?;
    private_mounts()
}

/// Maps these ids to themselves, in a user namespace that was just made for this process.
pub fn map_ids(uid: Uid, gid: Gid) -> nix::Result<()> {
    let say = |path: &str, text: String| fs::write(path, text).map_err(|error| errno(&error));
    say("/proc/self/setgroups", "deny".to_owned())?;
    say("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    say("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// Sees to it that mounts of this process's mount namespace and those of its parent's stay apart.
pub fn private_mounts() -> nix::Result<()> {
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING)
}

/// The number of an error of the kernel's.
pub fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Mounts a tmpfs at `place`, or changes the options of the one that is there.
pub fn tmpfs(place: &Path, options: &str, again: Again) -> io::Result<()> {
    let flags = match again {
        Again::New => MsFlags::empty(),
        Again::Change => MsFlags::MS_REMOUNT,
    };
    Ok(mount(Some("crashtest"), place, Some("tmpfs"), flags, Some(options))?)
}

/// Whether something is mounted, or what is mounted is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// It is mounted.
    New,
    /// Its options are changed.
    Change,
}

/// Mounts the file system `kind` that is on `device` at `place`.
pub fn device(device: &LoopDevice, place: &Path, kind: &str, options: &str) -> io::Result<()> {
    let options = (!options.is_empty()).then_some(options);
    Ok(mount(Some(&device.path), place, Some(kind), MsFlags::empty(), options)?)
}

/// Mounts the FUSE file system that is served through an open `/dev/fuse`.
pub fn fuse(device: RawFd, place: &Path) -> io::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    let options = format!("fd={device},rootmode=40000,user_id={uid},group_id={gid}");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    Ok(mount(Some("crashtest"), place, Some("fuse"), flags, Some(options.as_str()))?)
}

/// Unmounts what is at `place`.
pub fn unmount(place: &Path) -> nix::Result<()> {
    umount2(place, MntFlags::empty())
}

/// Takes away what is mounted at `place`, even if it is in use.
pub fn detach(place: &Path) -> nix::Result<()> {
    umount2(place, MntFlags::MNT_DETACH)
}

/// Writes out all that is dirty on the file system of an open file.
pub fn sync_file_system(file: &File) -> io::Result<()> {
    // SAFETY: syncfs takes a descriptor and no pointers.
    Ok(Errno::result(unsafe { libc::syncfs(file.as_raw_fd()) }).map(drop)?)
}

/// Has the data of a file written, and does not wait for it.
pub fn start_writing(file: &File) -> io::Result<()> {
    // SAFETY: sync_file_range takes a descriptor and numbers.
    let done =
        unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    Ok(Errno::result(done).map(drop)?)
}

// linux/btrfs.h
const BTRFS_IOC_START_SYNC: libc::Ioctl = 0x8008_9418;
const BTRFS_IOC_WAIT_SYNC: libc::Ioctl = 0x4008_9416;

/// Has the btrfs of an open file commit its transaction, without waiting for file data, as it does
/// every half a minute.
pub fn commit_btrfs(file: &File) -> io::Result<()> {
    let mut transaction = 0_u64;
    // SAFETY: the kernel writes a number to `transaction`, which outlives the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), BTRFS_IOC_START_SYNC, &raw mut transaction) };
    match Errno::result(done) {
        // There is nothing to commit.
        Err(Errno::ENOENT) => return Ok(()),
        done => done?,
    };
    // SAFETY: the kernel reads a number from `transaction`, which outlives the call.
    let done =
        unsafe { libc::ioctl(file.as_raw_fd(), BTRFS_IOC_WAIT_SYNC, &raw const transaction) };
    match Errno::result(done) {
        // It was committed before it could be waited for.
        Ok(_) | Err(Errno::EINVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A block device over a file. The kernel lets go of the file when nobody has the device open or
/// mounted any more, however its users ended.
#[derive(Debug)]
pub struct LoopDevice {
    /// The device.
    pub path: PathBuf,
    open: File,
}

// linux/loop.h
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
// linux/fs.h
const BLKFLSBUF: libc::Ioctl = 0x1261;

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// How often another process may take the free device before us.
const ATTEMPTS: usize = 50;

impl LoopDevice {
    /// Makes `image` a block device.
    pub fn attach(image: &File) -> io::Result<Self> {
        Self::with_flags(image, LO_FLAGS_AUTOCLEAR)
    }

    /// Makes `image` a block device that does not keep anything of it in memory, and has many requests
    /// in flight.
    pub fn attach_direct(image: &File) -> io::Result<Self> {
        Self::with_flags(image, LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO)
    }

    fn with_flags(image: &File, flags: u32) -> io::Result<Self> {
        let control = File::options().read(true).write(true).open("/dev/loop-control")?;
        for _ in 0..ATTEMPTS {
            // SAFETY: this request takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            let number = Errno::result(number)?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = File::options().read(true).write(true).open(&path)?;
            match configure(&device, image, flags) {
                Ok(()) => return Ok(Self { path, open: device }),
                Err(Errno::EBUSY) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::EBUSY.into())
    }

    /// Whether a file system on it is mounted somewhere: also where this process can't see it, such as in
    /// the mounts of another.
    #[must_use]
    pub fn is_used(&self) -> bool {
        let alone = File::options().read(true).custom_flags(libc::O_EXCL).open(&self.path);
        alone.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
    }

    /// Drops what the kernel has kept of these bytes (from, to) of the device while it was not mounted;
    /// all, if it would not drop only these.
    pub fn forget_ranges(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        for range in ranges {
            let (from, length) = (signed(range.start), signed(range.end - range.start));
            posix_fadvise(&self.open, from, length, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
            if cached_pages(&self.open, range)? != 0 {
                return self.forget_cached();
            }
        }
        Ok(())
    }

    /// Drops what the kernel has kept of the device while it was not mounted.
    pub fn forget_cached(&self) -> io::Result<()> {
        // SAFETY: this request takes no argument.
        let done = unsafe { libc::ioctl(self.open.as_raw_fd(), BLKFLSBUF) };
        Ok(Errno::result(done).map(drop)?)
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

// asm-generic/unistd.h; the same everywhere
const SYS_CACHESTAT: libc::c_long = 451;

/// How many pages of these bytes of a file are in memory.
fn cached_pages(file: &File, range: &Range<u64>) -> nix::Result<u64> {
    let asked = [range.start, range.end - range.start];
    // Cached, dirty, being written, evicted, recently evicted.
    let mut found = [0_u64; 5];
    // SAFETY: both arrays are as large as the structures that the call reads and writes, and outlive it.
    let done = unsafe {
        libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), asked.as_ptr(), found.as_mut_ptr(), 0)
    };
    match Errno::result(done) {
        Ok(_) => Ok(found[0]),
        // A kernel that can't tell may have kept any.
        Err(Errno::ENOSYS) => Ok(u64::MAX),
        Err(error) => Err(error),
    }
}

fn configure(device: &File, image: &File, flags: u32) -> nix::Result<()> {
    let config = LoopConfig {
        fd: u32::try_from(image.as_raw_fd()).unwrap_or(u32::MAX),
        block_size: 0,
        info: LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: `config` is a `struct loop_config` that outlives the call, and the kernel only reads
    // it.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    Errno::result(done).map(drop)
}
