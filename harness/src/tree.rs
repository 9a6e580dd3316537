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
pub struct Directory(OwnedFd);

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

impl Directory {
    /// Opens a directory by its path, which is trusted.
    pub fn open(path: &Path) -> io::Result<Self> {
        let open = || nix::fcntl::open(path, DIRECTORY, Mode::empty());
        match open() {
            Err(Errno::EACCES) => {
                // A program may have taken the right to look at it away from itself.
                let found = fs::symlink_metadata(path)?;
                if !found.is_dir() {
                    return Err(Errno::EACCES.into());
                }
                fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
                Ok(Self(open()?))
            }
            opened => Ok(Self(opened?)),
        }
    }

    /// Its path now.
    pub fn path(&self) -> io::Result<PathBuf> {
        fs::read_link(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    /// The names in it, in the order of their bytes.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        let mut dir = Dir::from_fd(self.0.try_clone()?)?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name.to_vec()));
            }
        }
        // The clone shares the position with this descriptor.
        let _ = nix::unistd::lseek(&self.0, 0, nix::unistd::Whence::SeekSet);
        names.sort();
        Ok(names)
    }

    /// What an entry is.
    pub fn kind(&self, name: &OsStr) -> io::Result<Kind> {
        let found = fstatat(&self.0, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        Ok(match SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFDIR => Kind::Directory,
            SFlag::S_IFREG => Kind::File,
            SFlag::S_IFLNK => Kind::Link,
            kind => Kind::Other { whiteout: kind == SFlag::S_IFCHR && found.st_rdev == 0 },
        })
    }

    /// A directory in it, even if its mode forbids to look at it.
    pub fn enter(&self, name: &OsStr) -> io::Result<Self> {
        match openat(&self.0, name, DIRECTORY, Mode::empty()) {
            Err(Errno::EACCES) if self.kind(name)? == Kind::Directory => {
                self.set_mode(name, 0o700)?;
                Ok(Self(openat(&self.0, name, DIRECTORY, Mode::empty())?))
            }
            opened => Ok(Self(opened?)),
        }
    }

    /// A regular file in it, to be read, even if its mode forbids that. What is no regular file is an error.
    pub fn read(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(&self.0, name, flags, Mode::empty()) {
            Err(Errno::EACCES) if self.kind(name)? == Kind::File => {
                self.set_mode(name, 0o600)?;
                openat(&self.0, name, flags, Mode::empty())?
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
        Ok(readlinkat(&self.0, name)?.into())
    }

    /// Sets the mode of an entry that is no symbolic link.
    fn set_mode(&self, name: &OsStr, mode: u32) -> io::Result<()> {
        let mode = Mode::from_bits_truncate(mode);
        Ok(fchmodat(&self.0, name, mode, FchmodatFlags::FollowSymlink)?)
    }

    /// Gives an entry to a user; a symbolic link is given itself.
    pub fn give(&self, name: &OsStr, uid: Uid, gid: Gid) -> io::Result<()> {
        Ok(fchownat(&self.0, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?)
    }

    /// Makes a directory in it, unless there is one, and opens it.
    pub fn make(&self, name: &OsStr) -> io::Result<Self> {
        match mkdirat(&self.0, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => self.enter(name),
            Err(error) => Err(error.into()),
        }
    }

    /// The directory at a path below this one, made where it is missing. A path that would lead out, or goes
    /// by a symbolic link, is an error.
    pub fn make_all(&self, path: &Path) -> io::Result<Self> {
        let mut directory = Self(self.0.try_clone()?);
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
        File::from(openat(&parent.0, name, flags, mode)?).write_all(bytes)
    }

    /// Makes a symbolic link at a path below this directory. Where it points is not looked at.
    pub fn symlink(&self, target: &Path, path: &Path) -> io::Result<()> {
        let (parent, name) = self.parent_of(path)?;
        Ok(symlinkat(target, &parent.0, name)?)
    }

    /// Removes an entry with all that is in it, however deep, whatever its modes are.
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        // What is too deep is moved up here, and removed in turn.
        let mut hoisted = Hoisted { top: self.0.as_fd(), names: Vec::new(), count: 0 };
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
        if depth >= DEPTH_MAX {
            return hoisted.take(self.0.as_fd(), name);
        }
        let directory = self.enter(name)?;
        for name in directory.names()? {
            directory.remove_into(&name, depth + 1, hoisted)?;
        }
        self.unlink(name, UnlinkatFlags::RemoveDir)
    }

    fn unlink(&self, name: &OsStr, flags: UnlinkatFlags) -> io::Result<()> {
        match unlinkat(&self.0, name, flags) {
            Err(Errno::EACCES | Errno::EPERM) => {
                // The directory may be read-only, or one of both immutable.
                attributes::make_mutable(self.0.as_raw_fd());
                if let Ok(file) = openat(
                    &self.0,
                    name,
                    OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC,
                    Mode::empty(),
                ) {
                    attributes::make_mutable(file.as_raw_fd());
                }
                let _ = nix::sys::stat::fchmod(&self.0, Mode::from_bits_truncate(0o700));
                Ok(unlinkat(&self.0, name, flags)?)
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
    pub fn copy_into(&self, to: &Self) -> io::Result<()> {
        self.copy_below(to, 0)
    }

    fn copy_below(&self, to: &Self, depth: usize) -> io::Result<()> {
        if depth > DEPTH_MAX {
            let what = format!("directories are nested deeper than {DEPTH_MAX}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        for name in self.names()? {
            match self.kind(&name)? {
                Kind::Directory => self.enter(&name)?.copy_below(&to.make(&name)?, depth + 1)?,
                Kind::Link => symlinkat(&*self.link(&name)?, &to.0, &*name)?,
                Kind::File => self.copy_file(&name, to)?,
                Kind::Other { .. } => {}
            }
        }
        Ok(())
    }

    fn copy_file(&self, name: &OsStr, to: &Self) -> io::Result<()> {
        let from = self.read(name)?;
        let mode = from.metadata()?.permissions().mode() & 0o7777;
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = File::from(openat(&to.0, name, flags, Mode::from_bits_truncate(0o600))?);
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

/// Opens a file that somebody names, to read it; what is no regular file is refused.
pub fn open_named(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = File::from(nix::fcntl::open(path, flags, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")),
    }
}

/// Reads a file that somebody names; what is no regular file, or is longer than `limit`, is refused.
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
        let ((from_path, from), (to_path, to)) = (top(), top());
        from.write(Path::new("d/file"), b"text").unwrap();
        from.symlink(Path::new("/etc"), Path::new("link")).unwrap();
        let sparse = File::create(from_path.path().join("sparse")).unwrap();
        sparse.set_len(64 << 20).unwrap();
        nix::unistd::mkfifo(&from_path.path().join("fifo"), Mode::S_IRWXU).unwrap();
        from.copy_into(&to).unwrap();
        assert_eq!(fs::read(to_path.path().join("d/file")).unwrap(), b"text");
        assert_eq!(fs::read_link(to_path.path().join("link")).unwrap(), Path::new("/etc"));
        let copied = fs::metadata(to_path.path().join("sparse")).unwrap();
        assert_eq!((copied.len(), copied.blocks()), (64 << 20, 0));
        assert!(!to_path.path().join("fifo").exists());
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
