//! What a failed fsync has left in memory only.
//!
//! When writing back fails, Linux reports it once and marks the pages clean: they stay readable,
//! they are not on disk, and no later fsync writes them (`fs/ext4`, `fs/xfs`; btrfs even goes back
//! to the old bytes). Only writing to them again makes them dirty again. A program that retries
//! the fsync, hears that all is well and acknowledges has lost the data at the next power cut.
//!
//! So a file has dirty pages and lost ones. A write makes its pages dirty, an fsync that succeeds
//! makes the dirty ones clean, one that fails makes them lost. Names in a directory that was not
//! synced are lost until a later fsync of it succeeds: the journal keeps them.

use std::collections::{BTreeSet, HashMap};

use crate::plan::PAGE_BYTES;

/// A file, whatever its name. Inode numbers are given again; birth times tell two files apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileKey {
    /// The device.
    pub device: u64,
    /// The inode.
    pub inode: u64,
    /// When it was made, in nanoseconds, where the file system knows.
    pub born_ns: u128,
    /// Whether it is a directory.
    pub directory: bool,
}

#[derive(Clone, Debug, Default)]
struct Pages {
    dirty: BTreeSet<u64>,
    lost: BTreeSet<u64>,
}

/// The pages of all files that a subject has written.
#[derive(Clone, Debug, Default)]
pub struct Unsynced {
    files: HashMap<FileKey, Pages>,
}

/// The page that stands for the names in a directory.
const NAMES: u64 = 0;

impl Unsynced {
    /// `length` bytes are written at `offset`.
    pub fn write(&mut self, file: FileKey, offset: u64, length: u64) {
        let pages = self.files.entry(file).or_default();
        let end = offset.saturating_add(length).div_ceil(PAGE_BYTES);
        for page in offset / PAGE_BYTES..end {
            pages.lost.remove(&page);
            pages.dirty.insert(page);
        }
    }

    /// The file gets this length.
    pub fn truncate(&mut self, file: FileKey, length: u64) {
        if let Some(pages) = self.files.get_mut(&file) {
            let end = length.div_ceil(PAGE_BYTES);
            pages.dirty.retain(|page| *page < end);
            pages.lost.retain(|page| *page < end);
        }
    }

    /// An fsync of it succeeds.
    pub fn synced(&mut self, file: FileKey) {
        if let Some(pages) = self.files.get_mut(&file) {
            pages.dirty.clear();
            if file.directory {
                pages.lost.clear();
            }
        }
    }

    /// An fsync of it fails, and nothing has reached the disk.
    pub fn failed(&mut self, file: FileKey) {
        let pages = self.files.entry(file).or_default();
        if file.directory {
            pages.lost.insert(NAMES);
        }
        pages.lost.append(&mut pages.dirty);
    }

    /// Whether some of it is in memory only, and will stay there.
    #[must_use]
    pub fn is_lost(&self, file: FileKey) -> bool {
        self.files.get(&file).is_some_and(|pages| !pages.lost.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileKey = FileKey { device: 1, inode: 2, born_ns: 3, directory: false };

    fn failed() -> Unsynced {
        let mut unsynced = Unsynced::default();
        unsynced.write(FILE, 0, 5000);
        unsynced.failed(FILE);
        unsynced
    }

    #[test]
    fn a_retry_that_succeeds_has_written_nothing() {
        let mut unsynced = failed();
        unsynced.synced(FILE);
        assert!(unsynced.is_lost(FILE));
    }

    #[test]
    fn what_is_written_again_can_be_synced() {
        let mut unsynced = failed();
        unsynced.write(FILE, 0, 5000);
        unsynced.synced(FILE);
        assert!(!unsynced.is_lost(FILE));
        let mut unsynced = failed();
        unsynced.write(FILE, 0, 4096);
        unsynced.synced(FILE);
        assert!(unsynced.is_lost(FILE));
    }

    #[test]
    fn what_was_synced_before_is_not_lost() {
        let mut unsynced = Unsynced::default();
        unsynced.write(FILE, 0, 4096);
        unsynced.synced(FILE);
        unsynced.write(FILE, 4096, 10);
        unsynced.failed(FILE);
        unsynced.truncate(FILE, 4096);
        assert!(!unsynced.is_lost(FILE));
    }

    #[test]
    fn names_are_durable_after_a_later_sync() {
        let directory = FileKey { directory: true, ..FILE };
        let mut unsynced = Unsynced::default();
        unsynced.failed(directory);
        assert!(unsynced.is_lost(directory));
        unsynced.synced(directory);
        assert!(!unsynced.is_lost(directory));
    }
}
