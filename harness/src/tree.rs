//! Trees of files that a program under test has left, or that a file names: whatever is in them, nothing
//! outside is touched.
//!
//! Everything goes by descriptors of directories. No symbolic link is followed, no name may lead out, and a
//! tree may be deeper than a path can be long.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat, mkdirat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, SYSFS_MAGIC};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};

use crate::os::attributes;

/// How deep a tree may be that is read or copied; one that is removed may be deeper.
pub const DEPTH_MAX: usize = 128;

/// What an entry of a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
    /// A FIFO, a socket or a device; a device with number 0 is how an overlay says that a name is gone.
    Other {
        /// Whether it is such a device.
        whiteout: bool,
    },
}

/// An open directory.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    /// Whether the modes of what is in it may be changed, so that it can be read and removed.
    ours: bool,
}

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

impl Directory {
    /// Opens a directory of ours by its path, which is trusted.
    pub fn open(path: &Path) -> io::Result<Self> {
        let open = || nix::fcntl::open(path, DIRECTORY, Mode::empty());
        let fd = match open() {
            Err(Errno::EACCES) => {
                // A program may have taken the right to look at it away from itself.
                let found = fs::symlink_metadata(path)?;
                if !found.is_dir() {
                    return Err(Errno::EACCES.into());
                }
                fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
                open()?
            }
            opened => opened?,
        };
        Ok(Self { fd, ours: true })
    }

    /// Opens a directory of the user's, of which nothing is changed.
    pub fn open_users(path: &Path) -> io::Result<Self> {
        Ok(Self { fd: nix::fcntl::open(path, DIRECTORY, Mode::empty())?, ours: false })
    }

    /// Its path now.
    pub fn path(&self) -> io::Result<PathBuf> {
        fs::read_link(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    /// The names in it, in the order of their bytes.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        let mut dir = Dir::from_fd(self.fd.try_clone()?)?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name.to_vec()));
            }
        }
        // The clone shares the position with this descriptor.
        let _ = nix::unistd::lseek(&self.fd, 0, nix::unistd::Whence::SeekSet);
        names.sort();
        Ok(names)
    }

    /// What an entry is.
    pub fn kind(&self, name: &OsStr) -> io::Result<Kind> {
        let found = fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        Ok(match SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFDIR => Kind::Directory,
            SFlag::S_IFREG => Kind::File,
            SFlag::S_IFLNK => Kind::Link,
            kind => Kind::Other { whiteout: kind == SFlag::S_IFCHR && found.st_rdev == 0 },
        })
    }

    /// A directory in it, even if its mode forbids to look at it, if it is ours.
    pub fn enter(&self, name: &OsStr) -> io::Result<Self> {
        match openat(&self.fd, name, DIRECTORY, Mode::empty()) {
            Err(Errno::EACCES) if self.ours && self.kind(name)? == Kind::Directory => {
                self.set_mode(name, 0o700)?;
                self.beside(openat(&self.fd, name, DIRECTORY, Mode::empty())?)
            }
            opened => self.beside(opened?),
        }
    }

    /// Another directory of the same owner.
    fn beside(&self, fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { fd, ours: self.ours })
    }

    /// A regular file in it, to be read, even if its mode forbids that and it is ours. What is no regular file is an error.
    pub fn read(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(&self.fd, name, flags, Mode::empty()) {
            Err(Errno::EACCES) if self.ours && self.kind(name)? == Kind::File => {
                self.set_mode(name, 0o600)?;
                openat(&self.fd, name, flags, Mode::empty())?
            }
            opened => opened?,
        };
        let file = File::from(file);
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::other("no regular file")),
        }
    }

    /// Where a symbolic link in it points.
    pub fn link(&self, name: &OsStr) -> io::Result<PathBuf> {
        Ok(readlinkat(&self.fd, name)?.into())
    }

    /// Sets the mode of an entry that is no symbolic link.
    fn set_mode(&self, name: &OsStr, mode: u32) -> io::Result<()> {
        let mode = Mode::from_bits_truncate(mode);
        Ok(fchmodat(&self.fd, name, mode, FchmodatFlags::FollowSymlink)?)
    }

    /// Gives an entry to a user; a symbolic link is given itself.
    pub fn give(&self, name: &OsStr, uid: Uid, gid: Gid) -> io::Result<()> {
        Ok(fchownat(&self.fd, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?)
    }

    /// Makes a directory in it, unless there is one, and opens it.
    pub fn make(&self, name: &OsStr) -> io::Result<Self> {
        match mkdirat(&self.fd, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => self.enter(name),
            Err(error) => Err(error.into()),
        }
    }

    /// The directory at a path below this one, made where it is missing. A path that would lead out, or goes
    /// by a symbolic link, is an error.
    pub fn make_all(&self, path: &Path) -> io::Result<Self> {
        let mut directory = self.beside(self.fd.try_clone()?)?;
        for component in path.components() {
            match component {
                Component::Normal(name) => directory = directory.make(name)?,
                Component::CurDir => {}
                Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                    return Err(leads_out(path));
                }
            }
        }
        Ok(directory)
    }

    /// The directory in which a path below this one lies, made where it is missing, and the path's name.
    fn parent_of<'a>(&self, path: &'a Path) -> io::Result<(Self, &'a OsStr)> {
        let name = path.file_name().ok_or_else(|| leads_out(path))?;
        Ok((self.make_all(path.parent().unwrap_or(Path::new("")))?, name))
    }

    /// Makes a file at a path below this directory, or replaces what one holds.
    pub fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let (parent, name) = self.parent_of(path)?;
        let flags = OFlag::O_WRONLY
            | OFlag::O_CREAT
            | OFlag::O_TRUNC
            | OFlag::O_NOFOLLOW
            | OFlag::O_NONBLOCK
            | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o644);
        File::from(openat(&parent.fd, name, flags, mode)?).write_all(bytes)
    }

    /// Makes a symbolic link at a path below this directory. Where it points is not looked at.
    pub fn symlink(&self, target: &Path, path: &Path) -> io::Result<()> {
        let (parent, name) = self.parent_of(path)?;
        Ok(symlinkat(target, &parent.fd, name)?)
    }

    /// Removes an entry with all that is in it, however deep, whatever its modes are.
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        // What is too deep is moved up here, and removed in turn.
        let mut hoisted = Hoisted { top: self.fd.as_fd(), names: Vec::new(), count: 0 };
        self.remove_into(name, 0, &mut hoisted)?;
        while let Some(name) = hoisted.names.pop() {
            self.remove_into(&name, 0, &mut hoisted)?;
        }
        Ok(())
    }

    fn remove_into(&self, name: &OsStr, depth: usize, hoisted: &mut Hoisted<'_>) -> io::Result<()> {
        if self.kind(name)? != Kind::Directory {
            return self.unlink(name, UnlinkatFlags::NoRemoveDir);
        }
        // What is mounted there is not part of the tree: it may be the machine's.
        if attributes::is_mounted_on(self.fd.as_raw_fd(), name)? {
            return Err(Errno::EBUSY.into());
        }
        if depth >= DEPTH_MAX {
            return hoisted.take(self.fd.as_fd(), name);
        }
        let directory = self.enter(name)?;
        for name in directory.names()? {
            directory.remove_into(&name, depth + 1, hoisted)?;
        }
        self.unlink(name, UnlinkatFlags::RemoveDir)
    }

    fn unlink(&self, name: &OsStr, flags: UnlinkatFlags) -> io::Result<()> {
        match unlinkat(&self.fd, name, flags) {
            Err(Errno::EACCES | Errno::EPERM) => {
                // The directory may be read-only, or one of both immutable.
                attributes::make_mutable(self.fd.as_raw_fd());
                if let Ok(file) = openat(
                    &self.fd,
                    name,
                    OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC,
                    Mode::empty(),
                ) {
                    attributes::make_mutable(file.as_raw_fd());
                }
                let _ = nix::sys::stat::fchmod(&self.fd, Mode::from_bits_truncate(0o700));
                Ok(unlinkat(&self.fd, name, flags)?)
            }
            other => Ok(other?),
        }
    }

    /// Removes everything in it but directories.
    pub fn remove_files(&self) -> io::Result<()> {
        self.each(&mut |directory, _, name, kind| match kind {
            Kind::Directory => Ok(()),
            _ => directory.unlink(name, UnlinkatFlags::NoRemoveDir),
        })
    }

    /// Shows every entry below it with its path, directories before what is in them.
    pub fn each(
        &self,
        see: &mut dyn FnMut(&Self, &Path, &OsStr, Kind) -> io::Result<()>,
    ) -> io::Result<()> {
        self.each_below(Path::new(""), 0, see)
    }

    fn each_below(
        &self,
        below: &Path,
        depth: usize,
        see: &mut dyn FnMut(&Self, &Path, &OsStr, Kind) -> io::Result<()>,
    ) -> io::Result<()> {
        if depth > DEPTH_MAX {
            let what = format!("directories are nested deeper than {DEPTH_MAX}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        for name in self.names()? {
            let (path, kind) = (below.join(&name), self.kind(&name)?);
            see(self, &path, &name, kind)?;
            if kind == Kind::Directory {
                self.enter(&name)?.each_below(&path, depth + 1, see)?;
            }
        }
        Ok(())
    }

    /// Copies the regular files, directories and symbolic links in it into another one. Holes stay holes.
    ///
    /// More than `bytes_max` bytes, or what has no size, such as `/proc`, is an error.
    pub fn copy_into(&self, to: &Self, bytes_max: u64) -> io::Result<()> {
        let kind = nix::sys::statfs::fstatfs(&self.fd)?.filesystem_type();
        if [PROC_SUPER_MAGIC, SYSFS_MAGIC].contains(&kind) {
            return Err(io::Error::other("it is no directory of files, but the kernel's own"));
        }
        let mut left = bytes_max;
        self.copy_below(to, 0, &mut left)
    }

    fn copy_below(&self, to: &Self, depth: usize, left: &mut u64) -> io::Result<()> {
        if depth > DEPTH_MAX {
            let what = format!("directories are nested deeper than {DEPTH_MAX}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        for name in self.names()? {
            match self.kind(&name)? {
                Kind::Directory => {
                    self.enter(&name)?.copy_below(&to.make(&name)?, depth + 1, left)?
                }
                Kind::Link => symlinkat(&*self.link(&name)?, &to.fd, &*name)?,
                Kind::File => self.copy_file(&name, to, left)?,
                Kind::Other { .. } => {}
            }
        }
        Ok(())
    }

    fn copy_file(&self, name: &OsStr, to: &Self, left: &mut u64) -> io::Result<()> {
        let from = self.read(name)?;
        let length = from.metadata()?.len();
        *left = left.checked_sub(length).ok_or_else(|| {
            io::Error::other("it holds more bytes than --max-data lets a program write")
        })?;
        let mode = from.metadata()?.permissions().mode() & 0o7777;
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = File::from(openat(&to.fd, name, flags, Mode::from_bits_truncate(0o600))?);
        copy_data(&from, &made)?;
        made.set_permissions(fs::Permissions::from_mode(mode))
    }
}

/// Copies what a file holds; holes stay holes.
fn copy_data(from: &File, to: &File) -> io::Result<()> {
    use nix::unistd::{Whence, lseek};
    use std::io::{Read, Seek, SeekFrom};
    let length = from.metadata()?.len();
    let signed = |n: u64| i64::try_from(n).map_err(io::Error::other);
    let mut at = 0;
    while at < length {
        let data = match lseek(from, signed(at)?, Whence::SeekData) {
            Ok(data) => u64::try_from(data).map_err(io::Error::other)?,
            // There are only holes from here on.
            Err(Errno::ENXIO) => break,
            // A file system that does not tell: all of it is data.
            Err(_) => at,
        };
        let end = lseek(from, signed(data)?, Whence::SeekHole).ok();
        let end = end.and_then(|end| u64::try_from(end).ok()).unwrap_or(length);
        let (mut source, mut target) = (from, to);
        source.seek(SeekFrom::Start(data))?;
        target.seek(SeekFrom::Start(data))?;
        io::copy(&mut source.take(end - data), &mut target)?;
        at = end;
    }
    to.set_len(length)
}

/// Directories that were too deep, moved to the top of the tree.
struct Hoisted<'a> {
    top: BorrowedFd<'a>,
    names: Vec<OsString>,
    count: u64,
}

impl Hoisted<'_> {
    fn take(&mut self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        let new = OsString::from(format!(".crashtest-deep-{}-{}", std::process::id(), self.count));
        self.count += 1;
        renameat(directory, name, self.top, &*new)?;
        self.names.push(new);
        Ok(())
    }
}

fn leads_out(path: &Path) -> io::Error {
    let what = format!("{} would lead out of its directory", path.display());
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

/// Whether a path names something below the directory that it is relative to, by its text.
#[must_use]
pub fn stays_inside(path: &Path) -> bool {
    let mut normal = path.components().filter(|one| *one != Component::CurDir);
    normal.clone().next().is_some() && normal.all(|one| matches!(one, Component::Normal(_)))
}

/// The longest text that a person writes: a scenario, a profile, a schema.
pub const TEXT_BYTES_MAX: u64 = 16 << 20;
/// The longest recording that is read.
pub const RECORDING_BYTES_MAX: u64 = 4 << 30;

/// Opens a named file for reading. Returns an error if it is no regular file.
pub fn open_named(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = File::from(nix::fcntl::open(path, flags, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")),
    }
}

/// Reads a named file. Returns an error if it is no regular file, or longer than `limit` bytes.
pub fn read_named(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let file = open_named(path)?;
    let length = file.metadata()?.len();
    if length > limit {
        let what = format!("it is {length} bytes long, more than the {limit} that are read");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let mut bytes = Vec::new();
    // It may grow meanwhile.
    file.take(limit + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// As [`read_named`], for a text.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    String::from_utf8(read_named(path, limit)?).map_err(invalid)
}

/// Reads the file at a path below `directory`, which no name and no link of the path leads out of.
pub fn read_below(directory: &Path, path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    if !stays_inside(path) {
        return Err(leads_out(path));
    }
    let mut place = Directory::open(directory)?;
    for name in path.parent().into_iter().flat_map(Path::components) {
        if let Component::Normal(name) = name {
            place = place.enter(name)?;
        }
    }
    let mut bytes = Vec::new();
    place.read(path.file_name().unwrap_or_default())?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn top() -> (tempfile::TempDir, Directory) {
        let top = tempfile::tempdir().unwrap();
        let open = Directory::open(top.path()).unwrap();
        (top, open)
    }

    #[test]
    fn what_is_written_below_a_directory_never_leads_out_of_it() {
        let (top, directory) = top();
        let outside = tempfile::tempdir().unwrap();
        directory.symlink(outside.path(), Path::new("link")).unwrap();
        for path in ["../x", "/x", "a/../../x", "link/x", "link", "."] {
            assert!(directory.write(Path::new(path), b"x").is_err(), "{path}");
        }
        directory.write(Path::new("a/b/./c"), b"x").unwrap();
        assert_eq!(fs::read(top.path().join("a/b/c")).unwrap(), b"x");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_tree_is_removed_however_deep_it_is_and_links_in_it_are_not_followed() {
        let (top, directory) = top();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "").unwrap();
        let mut deep = directory.make(OsStr::new("deep")).unwrap();
        for _ in 0..5000 {
            deep = deep.make(OsStr::new("a-directory-with-a-name")).unwrap();
        }
        deep.symlink(outside.path(), Path::new("link")).unwrap();
        deep.write(Path::new("file"), b"").unwrap();
        drop(deep);
        directory.remove(OsStr::new("deep")).unwrap();
        assert_eq!(fs::read_dir(top.path()).unwrap().count(), 0);
        assert!(outside.path().join("kept").exists());
    }

    #[test]
    fn a_copy_has_files_directories_and_links_and_stays_sparse() {
        use std::os::unix::fs::MetadataExt;
        let ((from_path, from), (_half, to)) = (top(), top());
        from.write(Path::new("d/file"), b"text").unwrap();
        from.symlink(Path::new("/etc"), Path::new("link")).unwrap();
        let sparse = File::create(from_path.path().join("sparse")).unwrap();
        sparse.set_len(64 << 20).unwrap();
        nix::unistd::mkfifo(&from_path.path().join("fifo"), Mode::S_IRWXU).unwrap();
        from.copy_into(&to, 64 << 20).unwrap_err();
        from.remove(OsStr::new("fifo")).unwrap();
        let (to_path, to) = top();
        from.copy_into(&to, u64::MAX).unwrap();
        assert_eq!(fs::read(to_path.path().join("d/file")).unwrap(), b"text");
        assert_eq!(fs::read_link(to_path.path().join("link")).unwrap(), Path::new("/etc"));
        let copied = fs::metadata(to_path.path().join("sparse")).unwrap();
        assert_eq!((copied.len(), copied.blocks()), (64 << 20, 0));
        assert!(!to_path.path().join("fifo").exists());
    }

    #[test]
    fn the_modes_of_what_is_the_users_stay_as_they_are() {
        let (top, _) = top();
        let closed = top.path().join("closed");
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        // Root may look at it all the same.
        let _ = Directory::open_users(top.path()).unwrap().enter(OsStr::new("closed"));
        assert_eq!(fs::metadata(&closed).unwrap().permissions().mode() & 0o777, 0);
    }

    #[test]
    fn devices_and_endless_files_are_not_read() {
        assert!(read_named(Path::new("/dev/zero"), 10).is_err());
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "12345678901").unwrap();
        assert!(read_named(file.path(), 10).unwrap_err().to_string().contains("11 bytes"));
        assert_eq!(read_named(file.path(), 11).unwrap().len(), 11);
    }

    #[test]
    fn a_name_without_steps_up_stays_inside() {
        for (path, inside) in
            [("a/b", true), ("./a", true), ("../a", false), ("/a", false), ("", false)]
        {
            assert_eq!(stays_inside(Path::new(path)), inside, "{path}");
        }
    }
}
