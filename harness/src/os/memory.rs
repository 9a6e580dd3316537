//! A file in memory that one process changes through its mapping while nobody else uses it.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::Whence;

/// A file in memory, mapped.
#[derive(Debug)]
pub struct MemoryFile {
    file: File,
    bytes: NonNull<u8>,
    length: usize,
}

impl MemoryFile {
    /// A file of so many bytes, all of them zeros, that `losetup` and others call `name`.
    pub fn new(name: &str, length: u64) -> io::Result<Self> {
        let file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?);
        file.set_len(length)?;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let mapped = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        let (read_write, shared) =
            (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        // SAFETY: a new mapping at a place of the kernel's choice touches nothing that is there.
        let bytes = unsafe { mmap(None, mapped, read_write, shared, &file, 0) }?;
        Ok(Self { file, bytes: bytes.cast(), length })
    }

    /// Where it holds something, see [`data`]; to look elsewhere takes memory.
    pub fn data(&self) -> io::Result<Vec<Range<u64>>> {
        data(&self.file)
    }

    /// What the file is called in this process: `/proc/PID/fd/` and this.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// How long it is.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length as u64
    }

    /// What it holds. Only while no file system that lies on it is mounted.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has so many bytes, and the file is never shorter while it exists. The kernel
        // writes to the file only for a file system that lies on it, and then nobody calls this.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr(), self.length) }
    }

    /// The same, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.as_ptr(), self.length) }
    }

    /// Makes some bytes zeros, and gives back their memory.
    pub fn clear(&mut self, range: Range<u64>) -> io::Result<()> {
        let signed = |bytes| i64::try_from(bytes).map_err(io::Error::other);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (start, length) = (signed(range.start)?, signed(range.end - range.start)?);
        Ok(fallocate(self.file.as_fd(), flags, start, length)?)
    }

    /// Gives it up: whoever reads it finds nothing any more.
    pub fn give_up(self) -> io::Result<()> {
        let file = self.file.try_clone()?;
        // No mapping of ours is there any more when it gets shorter.
        drop(self);
        file.set_len(0)
    }
}

/// Where a sparse file holds something; elsewhere are zeros that take no space.
pub fn data(file: &File) -> io::Result<Vec<Range<u64>>> {
    let (mut ranges, mut at) = (Vec::new(), 0);
    loop {
        let start = match nix::unistd::lseek(file.as_fd(), at, Whence::SeekData) {
            Ok(start) => start,
            Err(Errno::ENXIO) => return Ok(ranges),
            Err(error) => return Err(error.into()),
        };
        at = nix::unistd::lseek(file.as_fd(), start, Whence::SeekHole)?;
        ranges.push(start.unsigned_abs()..at.unsigned_abs());
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody borrows from it any more. The call fails for no
        // mapping that exists.
        let _ = unsafe { munmap(self.bytes.cast(), self.length) };
    }
}

// SAFETY: the mapping belongs to this value alone, whichever thread has it.
unsafe impl Send for MemoryFile {}
