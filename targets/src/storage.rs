//! The seam between a strategy and the kernel: one method for each storage system call.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

/// An open file of a [`Storage`]; meaningless to any other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId(pub usize);

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// For writing; made when missing, emptied when there (`O_CREAT | O_TRUNC`).
    Truncate,
    /// For writing from the start; made when missing, its bytes kept when there (`O_CREAT`).
    Overwrite,
    /// For writing; must not exist (`O_CREAT | O_EXCL`).
    New,
    /// For writing at its end; made when missing (`O_CREAT | O_APPEND`).
    Append,
    /// A directory, to be synced (`O_DIRECTORY`).
    Directory,
}

/// The storage calls that a strategy makes. Each method is one system call.
pub trait Storage {
    /// Opens `path`; the result is valid until [`Storage::close`].
    fn open(&mut self, path: &Path, how: Open) -> io::Result<FileId>;
    /// Writes at the file's position; returns how many bytes the kernel took, which may be fewer.
    fn write(&mut self, file: FileId, bytes: &[u8]) -> io::Result<usize>;
    /// Sets the file's length in bytes.
    fn truncate(&mut self, file: FileId, length: u64) -> io::Result<()>;
    /// Makes the file's bytes durable; for a directory, its names.
    fn fsync(&mut self, file: FileId) -> io::Result<()>;
    /// Closes the file.
    fn close(&mut self, file: FileId) -> io::Result<()>;
    /// Gives `from` the name `to`, replacing what had it.
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes the name `path`.
    fn unlink(&mut self, path: &Path) -> io::Result<()>;
    /// Makes the directory `path`.
    fn make_directory(&mut self, path: &Path) -> io::Result<()>;
    /// Takes the lock of an open file (`flock`), if nobody else holds it; it is held until the file is
    /// closed, or its process ends. Locks are not storage, and never struck.
    fn try_lock(&mut self, file: FileId) -> io::Result<bool>;
    /// The names in `directory`; reading is never struck.
    fn list(&mut self, directory: &Path) -> io::Result<Vec<OsString>>;
}

/// Reads a whole file with as few calls as can be, if it is about as long as expected.
pub fn read_file(path: &Path, expected_bytes: usize) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut bytes = vec![0; expected_bytes + 1];
    let count = file.read(&mut bytes)?;
    bytes.truncate(count);
    if count > expected_bytes {
        file.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// The real file system.
#[derive(Debug, Default)]
pub struct Disk {
    files: Vec<Option<File>>,
    /// The files whose locks it holds.
    locked: Vec<FileId>,
}

impl Drop for Disk {
    fn drop(&mut self) {
        for file in std::mem::take(&mut self.locked) {
            self.unlock(file);
        }
    }
}

impl Disk {
    fn file(&mut self, file: FileId) -> io::Result<&mut File> {
        self.files
            .get_mut(file.0)
            .and_then(Option::as_mut)
            .ok_or_else(|| io::Error::other("the file is not open"))
    }

    /// Gives a lock back. Closing alone would not do: a child that another thread has just forked holds the
    /// file open, and the lock with it, until it executes its program.
    fn unlock(&mut self, file: FileId) {
        if let Ok(file) = self.file(file) {
            // A lock that can't be given back goes with the last descriptor.
            let _ = file.unlock();
        }
    }
}

impl Storage for Disk {
    fn open(&mut self, path: &Path, how: Open) -> io::Result<FileId> {
        let mut options = OpenOptions::new();
        match how {
            Open::Truncate => options.write(true).create(true).truncate(true),
            Open::Overwrite => options.write(true).create(true).truncate(false),
            Open::Append => options.append(true).create(true),
            Open::New => options.write(true).create_new(true),
            Open::Directory => options.read(true),
        };
        self.files.push(Some(options.open(path)?));
        Ok(FileId(self.files.len() - 1))
    }

    fn write(&mut self, file: FileId, bytes: &[u8]) -> io::Result<usize> {
        self.file(file)?.write(bytes)
    }

    fn truncate(&mut self, file: FileId, length: u64) -> io::Result<()> {
        self.file(file)?.set_len(length)
    }

    fn fsync(&mut self, file: FileId) -> io::Result<()> {
        self.file(file)?.sync_all()
    }

    fn close(&mut self, file: FileId) -> io::Result<()> {
        self.file(file)?;
        if let Some(place) = self.locked.iter().position(|locked| *locked == file) {
            self.locked.swap_remove(place);
            self.unlock(file);
        }
        self.files[file.0] = None;
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn unlink(&mut self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn make_directory(&mut self, path: &Path) -> io::Result<()> {
        std::fs::create_dir(path)
    }

    fn try_lock(&mut self, file: FileId) -> io::Result<bool> {
        match self.file(file)?.try_lock() {
            Ok(()) => {
                self.locked.push(file);
                Ok(true)
            }
            Err(std::fs::TryLockError::WouldBlock) => Ok(false),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn list(&mut self, directory: &Path) -> io::Result<Vec<OsString>> {
        std::fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_whatever_was_expected() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        for length in [0, 9, 10, 11, 100_000] {
            std::fs::write(&path, vec![7; length]).unwrap();
            assert_eq!(read_file(&path, 10).unwrap().len(), length);
        }
    }

    #[test]
    fn a_lock_is_given_back_even_if_a_child_has_the_file_open_still() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let mut disk = Disk::default();
        let file = disk.open(&path, Open::Overwrite).unwrap();
        assert!(disk.try_lock(file).unwrap());
        // As a child has it between fork and exec.
        let _inherited = disk.file(file).unwrap().try_clone().unwrap();
        let mut other = Disk::default();
        let again = other.open(&path, Open::Overwrite).unwrap();
        assert!(!other.try_lock(again).unwrap());
        drop(disk);
        assert!(other.try_lock(again).unwrap());
    }
}
