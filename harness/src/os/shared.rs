//! Numbers that forked processes share.

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Counters that this process and those that it forks see alike.
#[derive(Debug)]
pub struct Counters {
    numbers: NonNull<AtomicU32>,
    count: usize,
}

impl Counters {
    /// So many, all 0.
    pub fn new(count: usize) -> io::Result<Self> {
        let bytes = NonZeroUsize::new(count.max(1) * size_of::<AtomicU32>());
        let bytes = bytes.ok_or_else(|| io::Error::other("no counters"))?;
        let (read_write, shared) =
            (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        // SAFETY: a new anonymous mapping touches nothing that is there.
        let numbers = unsafe { mmap_anonymous(None, bytes, read_write, shared) }?;
        Ok(Self { numbers: numbers.cast(), count: count.max(1) })
    }

    fn number(&self, index: usize) -> &AtomicU32 {
        // SAFETY: the mapping is large enough for `count` numbers, is aligned to a page, begins with zeros,
        // which is a valid number, and stays as long as `self`.
        let numbers = unsafe { std::slice::from_raw_parts(self.numbers.as_ptr(), self.count) };
        &numbers[index % self.count]
    }

    /// Sets one.
    pub fn set(&self, index: usize, number: u32) {
        self.number(index).store(number, Ordering::Release);
    }

    /// Reads one.
    #[must_use]
    pub fn get(&self, index: usize) -> u32 {
        self.number(index).load(Ordering::Acquire)
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody borrows from it any more. The call fails for no
        // mapping that exists.
        let _ = unsafe { munmap(self.numbers.cast(), self.count * size_of::<AtomicU32>()) };
    }
}

// SAFETY: the numbers are atomic, and the mapping does not move.
unsafe impl Send for Counters {}
// SAFETY: as above.
unsafe impl Sync for Counters {}
