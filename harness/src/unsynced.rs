//! What a failed fsync has left in memory only.
//!
//! When writing back fails, Linux reports it once and marks the pages clean: they stay readable,
//! they are not on disk, and no later fsync writes them (`fs/ext4`, `fs/xfs`; btrfs even goes back
//! to the old bytes). Only writing to them again makes them dirty again. A program that retries
//! the fsync, hears that all is well and acknowledges has lost the data at the next power cut.
//! (Sources: `fs/ext4/page-io.c`, `mm/filemap.c`; "PostgreSQL's fsync() surprise", LWN 752063.)
//!
//! So a file has dirty pages and lost ones. A write makes its pages dirty, an fsync that succeeds
//! makes the dirty ones clean, one that fails makes them lost. A lost page does no harm if it holds
//! what is on disk: a program may have taken its write back. Names that have changed in a directory
//! since it was last synced are lost when an fsync of it fails, until a later one succeeds: the
//! journal keeps them. Its other names are on disk.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use crate::armed::Action;
use crate::op::{Call, Effect};
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
    /// The bytes that are on disk: those of the last time that all of it was synced.
    synced: Vec<u8>,
    /// Names in this directory that have changed.
    dirty_names: BTreeSet<OsString>,
    /// Names in this directory that are in memory only, and will stay there.
    lost_names: BTreeSet<OsString>,
}

impl Pages {
    /// What was dirty is lost.
    fn lose(&mut self) {
        self.lost.append(&mut self.dirty);
        self.lost_names.append(&mut self.dirty_names);
    }

    /// All is on disk.
    fn clear(&mut self) {
        self.dirty.clear();
        self.dirty_names.clear();
        self.lost_names.clear();
    }
}

/// The pages of all files that a subject has written.
#[derive(Clone, Debug, Default)]
pub struct Unsynced {
    files: HashMap<FileKey, Pages>,
}

/// A call that has returned.
pub struct Made<'a> {
    /// Its kind.
    pub call: Call,
    /// What it was to do.
    pub effect: &'a Effect,
    /// What it returned.
    pub result: i64,
    /// What the trial did to it.
    pub action: Action,
    /// Whether what it writes is on disk when it returns (`O_SYNC`, `O_DSYNC`).
    pub synchronous: bool,
}

/// A file that a call was about.
pub struct About<'a> {
    /// The file; for a change of names the directory that has them.
    pub file: FileKey,
    /// Its bytes.
    pub content: &'a dyn Fn() -> Vec<u8>,
    /// All files, and their bytes.
    pub all: &'a dyn Fn() -> Vec<(FileKey, Vec<u8>)>,
}

impl Unsynced {
    /// Follows a call.
    pub fn called(&mut self, made: &Made<'_>, about: &About<'_>) {
        let (file, done) = (about.file, made.result >= 0);
        match made.effect {
            Effect::Write { offset, .. } if made.result > 0 => {
                self.write(file, offset.0, made.result.cast_unsigned());
                if made.synchronous {
                    self.synced(file, about.content);
                }
            }
            Effect::Open { truncate: true, .. } if done => self.truncate(file, 0),
            Effect::Truncate { length, .. } if done => self.truncate(file, length.0),
            Effect::Rename { from, to, .. } if done => self.names(file, &[from, to]),
            Effect::Link { to: path, .. } | Effect::Unlink { path } if done => {
                self.names(file, &[path]);
            }
            // sync_file_range promises nothing.
            Effect::Sync { .. } if made.call != Call::SyncFileRange => {
                let reached = done || matches!(made.action, Action::FailAfter(_));
                match (reached, made.call) {
                    // syncfs writes out all files.
                    (true, Call::Sync) => {
                        self.files.values_mut().for_each(Pages::clear);
                        (about.all)().into_iter().for_each(|(file, bytes)| {
                            self.synced(file, || bytes);
                        });
                    }
                    (true, _) => self.synced(file, about.content),
                    (false, Call::Sync) => self.files.values_mut().for_each(Pages::lose),
                    (false, _) => self.failed(file),
                }
            }
            _ => {}
        }
    }

    /// Names in a directory lead to something else now.
    fn names(&mut self, directory: FileKey, paths: &[&PathBuf]) {
        let names = paths.iter().filter_map(|path| path.file_name()).map(OsStr::to_owned);
        self.files.entry(directory).or_default().dirty_names.extend(names);
    }

    /// A file is met that may have been there before: what it holds is on disk.
    pub fn meet(&mut self, file: FileKey, content: impl FnOnce() -> Vec<u8>) {
        self.files.entry(file).or_insert_with(|| Pages { synced: content(), ..Pages::default() });
    }

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

    /// An fsync of it succeeds; it holds these bytes.
    pub fn synced(&mut self, file: FileKey, content: impl FnOnce() -> Vec<u8>) {
        if let Some(pages) = self.files.get_mut(&file) {
            pages.clear();
            if pages.lost.is_empty() && !file.directory {
                pages.synced = content();
            }
        }
    }

    /// An fsync of it fails, and nothing has reached the disk.
    pub fn failed(&mut self, file: FileKey) {
        self.files.entry(file).or_default().lose();
    }

    /// Whether some of it, which holds these bytes, is in memory only and will stay there.
    #[must_use]
    pub fn is_lost(&self, file: FileKey, content: impl FnOnce() -> Vec<u8>) -> bool {
        let Some(pages) = self.files.get(&file).filter(|pages| !pages.lost.is_empty()) else {
            return false;
        };
        let content = content();
        pages.lost.iter().any(|page| !same_page(*page, &content, &pages.synced))
    }

    /// Whether what a name in a directory leads to is in memory only, and will stay there.
    #[must_use]
    pub fn is_name_lost(&self, directory: FileKey, name: &OsStr) -> bool {
        self.files.get(&directory).is_some_and(|pages| pages.lost_names.contains(name))
    }

    /// What is on disk of a file that holds `content`: for lost pages what was synced before.
    #[must_use]
    pub fn on_disk(&self, file: FileKey, content: &[u8]) -> Vec<u8> {
        let Some(pages) = self.files.get(&file) else { return content.to_vec() };
        let mut disk = Vec::new();
        for (page, bytes) in content.chunks(PAGE).enumerate() {
            let from = page * PAGE;
            let synced = pages.synced.get(from..).unwrap_or_default();
            let lost = pages.lost.contains(&(page as u64));
            let kept = if lost { &synced[..synced.len().min(PAGE)] } else { bytes };
            if !kept.is_empty() {
                disk.resize(from, 0);
                disk.extend_from_slice(kept);
            }
        }
        disk
    }
}

/// [`PAGE_BYTES`], for slices.
const PAGE: usize = PAGE_BYTES as usize;

/// Whether a page of `content` is also in `synced`, as far as the file goes.
fn same_page(page: u64, content: &[u8], synced: &[u8]) -> bool {
    let place = |page: u64| usize::try_from(page * PAGE_BYTES).unwrap_or(usize::MAX);
    let (from, to) = (place(page).min(content.len()), place(page + 1).min(content.len()));
    synced.get(from..to).is_some_and(|synced| *synced == content[from..to])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errno::Errno;

    const FILE: FileKey = FileKey { device: 1, inode: 2, born_ns: 3, directory: false };

    fn failed() -> Unsynced {
        let mut unsynced = Unsynced::default();
        unsynced.write(FILE, 0, 5000);
        unsynced.failed(FILE);
        unsynced
    }

    fn is_lost(unsynced: &Unsynced, content: &[u8]) -> bool {
        unsynced.is_lost(FILE, || content.to_vec())
    }

    #[test]
    fn a_retry_that_succeeds_has_written_nothing() {
        let mut unsynced = failed();
        unsynced.synced(FILE, || vec![7; 5000]);
        assert!(is_lost(&unsynced, &[7; 5000]));
    }

    #[test]
    fn what_is_written_again_can_be_synced() {
        let mut unsynced = failed();
        unsynced.write(FILE, 0, 5000);
        unsynced.synced(FILE, || vec![7; 5000]);
        assert!(!is_lost(&unsynced, &[7; 5000]));
        let mut unsynced = failed();
        unsynced.write(FILE, 0, 4096);
        unsynced.synced(FILE, || vec![7; 5000]);
        assert!(is_lost(&unsynced, &[7; 5000]));
    }

    #[test]
    fn what_was_synced_before_is_not_lost() {
        let mut unsynced = Unsynced::default();
        unsynced.write(FILE, 0, 4096);
        unsynced.synced(FILE, || vec![7; 4096]);
        unsynced.write(FILE, 4096, 10);
        unsynced.failed(FILE);
        unsynced.truncate(FILE, 4096);
        assert!(!is_lost(&unsynced, &[7; 4096]));
    }

    #[test]
    fn a_write_that_was_taken_back_is_as_on_disk() {
        let mut unsynced = Unsynced::default();
        unsynced.meet(FILE, || b"one\n".to_vec());
        unsynced.write(FILE, 4, 4);
        unsynced.failed(FILE);
        assert!(is_lost(&unsynced, b"one\ntwo\n"));
        assert_eq!(unsynced.on_disk(FILE, b"one\ntwo\n"), b"one\n");
        // A page is cut, and not taken away.
        unsynced.truncate(FILE, 4);
        assert!(!is_lost(&unsynced, b"one\n"));
        assert!(is_lost(&unsynced, b"two\n"));
    }

    #[test]
    fn what_syncfs_has_written_is_on_disk() {
        let mut unsynced = Unsynced::default();
        let sync = Effect::Sync { path: "".into() };
        let one = || vec![(FILE, b"one\n".to_vec())];
        let about = About { file: FILE, content: &Vec::new, all: &one };
        unsynced.write(FILE, 0, 4);
        let (call, result, action) = (Call::Sync, 0, Action::Pass);
        let made = Made { call, effect: &sync, result, action, synchronous: false };
        unsynced.called(&made, &about);
        unsynced.write(FILE, 4, 4);
        unsynced.failed(FILE);
        assert_eq!(unsynced.on_disk(FILE, b"one\ntwo\n"), b"one\n");
    }

    #[test]
    fn names_are_durable_after_a_later_sync() {
        let directory = FileKey { directory: true, ..FILE };
        let mut unsynced = Unsynced::default();
        let rename = Effect::Rename { from: "t".into(), to: "s".into(), exchange: false };
        let made = |call, effect, result, action| Made {
            call,
            effect,
            result,
            action,
            synchronous: false,
        };
        let about = About { file: directory, content: &Vec::new, all: &Vec::new };
        let sync = Effect::Sync { path: "".into() };
        let eio = (-i64::from(libc::EIO), Action::Fail(Errno::Eio));
        let lost =
            |unsynced: &Unsynced, name: &str| unsynced.is_name_lost(directory, name.as_ref());
        // No name has changed: nothing can be lost.
        unsynced.called(&made(Call::Fsync, &sync, eio.0, eio.1), &about);
        assert!(!lost(&unsynced, "s"));
        unsynced.called(&made(Call::Rename, &rename, 0, Action::Pass), &about);
        unsynced.called(&made(Call::Fsync, &sync, eio.0, eio.1), &about);
        assert!(lost(&unsynced, "s") && lost(&unsynced, "t") && !lost(&unsynced, "other"));
        unsynced.called(&made(Call::Fsync, &sync, 0, Action::Pass), &about);
        assert!(!lost(&unsynced, "s"));
    }
}
