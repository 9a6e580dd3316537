//! Mounts that nobody else sees, and that go with the last process that does.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

const NOTHING: Option<&str> = None;

/// Gives this process, which has one thread, and those that it will fork, mounts of their own.
/// Whoever may not have them by himself gets a user namespace too.
pub fn make_private() -> nix::Result<()> {
    match unshare(CloneFlags::CLONE_NEWNS) {
        Ok(()) => keep_to_ourselves(),
        Err(_) => in_user_namespace(),
    }
}

/// Gives this process, which has one thread, a user namespace in which it keeps its ids, and mounts
/// of its own.
pub fn in_user_namespace() -> nix::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
    let say = |path: &str, text: String| fs::write(path, text).map_err(|error| errno(&error));
    say("/proc/self/setgroups", "deny".to_owned())?;
    say("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    say("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    keep_to_ourselves()
}

fn keep_to_ourselves() -> nix::Result<()> {
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

/// Writes out all that is dirty on the file system of an open file.
pub fn sync_file_system(file: &File) -> io::Result<()> {
    // SAFETY: syncfs takes a descriptor and no pointers.
    Ok(Errno::result(unsafe { libc::syncfs(file.as_raw_fd()) }).map(drop)?)
}

/// A block device over a file. The kernel lets go of the file when nobody has the device open or
/// mounted any more, however its users ended.
#[derive(Debug)]
pub struct LoopDevice {
    /// The device.
    pub path: PathBuf,
    _open: File,
}

// linux/loop.h
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

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
        let control = File::options().read(true).write(true).open("/dev/loop-control")?;
        for _ in 0..ATTEMPTS {
            // SAFETY: this request takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            let number = Errno::result(number)?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = File::options().read(true).write(true).open(&path)?;
            match configure(&device, image) {
                Ok(()) => return Ok(Self { path, _open: device }),
                Err(Errno::EBUSY) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::EBUSY.into())
    }
}

fn configure(device: &File, image: &File) -> nix::Result<()> {
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
            flags: LO_FLAGS_AUTOCLEAR,
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
