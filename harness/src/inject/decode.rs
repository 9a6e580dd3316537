//! From a stopped thread to the op that it is about to do.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::guard::Guard;
use super::transfer::vector;
use crate::errno::Shown;
use crate::model;
use crate::op::{ByteOffset, Call, Effect};
use crate::os::ptrace::{Died, Result, Stopped};

/// A storage call that a thread is about to make.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its kind.
    pub call: Call,
    /// What it does, with no bytes yet.
    pub effect: Effect,
    /// How many bytes it is to move.
    pub length: usize,
    /// Where the bytes are, and how it can be made to move fewer.
    pub bytes: Bytes,
    /// The open file that it is about, where it is given as one.
    pub file: Option<i32>,
    /// Whether it is not to wait.
    pub nonblocking: bool,
    /// The flags of open(2) of that file, with `O_SYNC` or `O_DSYNC` if this write has them for
    /// itself; 0 where they are not looked at.
    pub flags: i32,
}

impl Asked {
    /// What decisions are made by.
    #[must_use]
    pub fn shown(&self) -> Shown {
        let one_file = match &self.effect {
            Effect::Sync { path } => self.file.is_some() || !path.as_os_str().is_empty(),
            _ => true,
        };
        Shown {
            call: self.call,
            length: self.length,
            creates: matches!(self.effect, Effect::Open { create: true, .. }),
            nonblocking: self.nonblocking,
            one_file,
        }
    }
}

/// The bytes that a call is to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bytes {
    /// None.
    None,
    /// In one buffer; the length is argument 2.
    Buffer {
        /// Where it begins.
        address: u64,
    },
    /// In a list of buffers; how many is argument 2.
    Vector {
        /// Where the list begins.
        address: u64,
        /// How many there are.
        count: u64,
    },
    /// In another file; the length is this argument.
    Kernel {
        /// Which argument.
        length_argument: usize,
    },
}

/// What paths are relative to, and which of them matter.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The trial directory.
    pub root: PathBuf,
    /// Whether files elsewhere matter too: the sandbox redirects what is written to them.
    pub everywhere: bool,
    /// What stops the program from changing files elsewhere, where there is no sandbox.
    pub guard: Option<Guard>,
    /// Places elsewhere that the program may change, and whose files are none of its state.
    pub let_through: Vec<PathBuf>,
}

impl Scope {
    /// The path as ops have it, if it matters.
    #[must_use]
    pub fn place(&self, path: &Path) -> Option<PathBuf> {
        if let Ok(inside) = path.strip_prefix(&self.root) {
            return Some(inside.to_owned());
        }
        let special = ["/proc", "/sys", "/dev"].iter().any(|root| path.starts_with(root));
        let shared_memory = path.starts_with("/dev/shm");
        let let_through = self.let_through.iter().any(|place| path.starts_with(place));
        let matters = (!special || shared_memory) && !let_through;
        (self.everywhere && path.is_absolute() && matters && !is_cache(path))
            .then(|| path.to_owned())
    }

    /// As [`Scope::place`], but a path that does not matter stays as it is.
    fn name(&self, path: PathBuf) -> PathBuf {
        self.place(&path).unwrap_or(path)
    }
}

/// Whether a file outside the trial directory is a Python module that was compiled. Python makes it again when
/// it is missing, so that it is no state.
#[must_use]
pub fn is_cache(path: &Path) -> bool {
    path.iter().any(|name| name == "__pycache__")
}

/// Decodes a call; `None` when it is about nothing that matters.
pub fn decode(
    thread: &Stopped,
    number: i64,
    arguments: [u64; 6],
    scope: &Scope,
    detail: Detail,
) -> Result<Option<Asked>> {
    let own = if number == libc::SYS_pwritev2 { arguments[5] } else { 0 };
    let appends = [(RWF_APPEND, true), (RWF_NOAPPEND, false)];
    let appends = appends.into_iter().find(|(bit, _)| own & bit != 0).map(|(_, appends)| appends);
    let decoder = Decoder { thread, arguments, appends, scope, detail };
    let mut asked = decoder.decode(number)?;
    if let Some(asked) = &mut asked
        && detail != Detail::Place
        && asked.length > 0
    {
        asked.flags = asked.file.map_or(0, |file| decoder.file_info(file).1);
        asked.nonblocking = own & RWF_NOWAIT != 0 || asked.flags & libc::O_NONBLOCK != 0;
        for (bit, flag) in [(RWF_DSYNC, libc::O_DSYNC), (RWF_SYNC, libc::O_SYNC)] {
            asked.flags |= if own & bit != 0 { flag } else { 0 };
        }
    }
    Ok(asked)
}

// Flags of one write (linux/fs.h).
const RWF_DSYNC: u64 = 2;
const RWF_SYNC: u64 = 4;
const RWF_NOWAIT: u64 = 8;
const RWF_APPEND: u64 = 16;
const RWF_NOAPPEND: u64 = 32;

/// How much of a call is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// What kind of call, on which file, of what length.
    Place,
    /// And whether it may wait.
    Flags,
    /// Where in the file a write begins, too.
    All,
}

struct Decoder<'a> {
    thread: &'a Stopped,
    arguments: [u64; 6],
    /// Whether this write goes to the end of the file, if it says so itself.
    appends: Option<bool>,
    scope: &'a Scope,
    detail: Detail,
}

/// `AT_FDCWD` as an argument.
const HERE: u64 = libc::AT_FDCWD as u64;

impl Decoder<'_> {
    fn decode(&self, number: i64) -> Result<Option<Asked>> {
        let [first, second, third, fourth, fifth, _] = self.arguments;
        match number {
            libc::SYS_openat => self.open(first, second, third),
            libc::SYS_openat2 => {
                let flags = self.thread.read(third, 8)?;
                let flags = u64::from_le_bytes(flags.try_into().map_err(|_| Died)?);
                let changes = libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC;
                if flags & changes as u64 == 0 { Ok(None) } else { self.open(first, second, flags) }
            }
            libc::SYS_close => {
                let path = self.about_file(first)?;
                Ok(path.map(|path| plain(Call::Close, Effect::Close { path }).of(first)))
            }
            libc::SYS_write => self.write(Call::Write, None),
            libc::SYS_pwrite64 => self.write(Call::Pwrite, Some(fourth)),
            libc::SYS_writev => self.writev(Call::Writev, None),
            // The offset -1 of pwritev2 means the file's own position.
            libc::SYS_pwritev | libc::SYS_pwritev2 => {
                self.writev(Call::Pwritev, (fourth != u64::MAX).then_some(fourth))
            }
            libc::SYS_sendfile => self.kernel_copy(Call::Sendfile, first, None, 3),
            libc::SYS_copy_file_range => {
                let offset = self.offset_at(fourth)?;
                self.kernel_copy(Call::CopyFileRange, third, offset, 4)
            }
            libc::SYS_splice => {
                let offset = self.offset_at(fourth)?;
                self.kernel_copy(Call::Splice, third, offset, 4)
            }
            libc::SYS_truncate => self.truncate(self.path_at(HERE, first)?, second),
            libc::SYS_ftruncate => match self.about_file(first)? {
                Some(path) => Ok(Some(truncate(path, second).of(first))),
                None => Ok(None),
            },
            libc::SYS_fallocate => Ok(self.about_file(first)?.map(|path| {
                let (offset, length) = (ByteOffset(third), ByteOffset(fourth));
                // The mode is an int.
                #[expect(clippy::cast_possible_truncation, reason = "see above")]
                let mode = second as i32;
                plain(Call::Fallocate, Effect::Fallocate { path, mode, offset, length }).of(first)
            })),
            libc::SYS_fsync => self.sync(Call::Fsync, first),
            libc::SYS_fdatasync => self.sync(Call::Fdatasync, first),
            libc::SYS_syncfs => self.sync(Call::Sync, first),
            libc::SYS_sync_file_range => self.sync(Call::SyncFileRange, first),
            libc::SYS_sync => Ok(Some(plain(Call::Sync, Effect::Sync { path: PathBuf::new() }))),
            libc::SYS_msync => {
                Ok(self.mapped_at(first).map(|path| plain(Call::Msync, Effect::Sync { path })))
            }
            libc::SYS_mmap => self.map(fifth),
            libc::SYS_ioctl => Ok(self
                .about_file(first)?
                .map(|path| plain(Call::Clone, Effect::Unfollowed { path }).of(first))),
            libc::SYS_renameat => self.rename(first, second, third, fourth, 0),
            libc::SYS_renameat2 => self.rename(first, second, third, fourth, fifth),
            libc::SYS_linkat => self.link(first, second, third, fourth),
            libc::SYS_symlinkat => self.symlink(first, second, third),
            libc::SYS_unlinkat => self.unlink(first, second, third),
            libc::SYS_mkdirat => self.directory(Call::Mkdir, first, second),
            #[cfg(target_arch = "x86_64")]
            older => self.decode_older(older),
            #[cfg(not(target_arch = "x86_64"))]
            _ => Ok(None),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn decode_older(&self, number: i64) -> Result<Option<Asked>> {
        let [first, second, ..] = self.arguments;
        match number {
            libc::SYS_open => self.open(HERE, first, second),
            libc::SYS_creat => self.open(HERE, first, (libc::O_CREAT | libc::O_TRUNC) as u64),
            libc::SYS_rename => self.rename(HERE, first, HERE, second, 0),
            libc::SYS_link => self.link(HERE, first, HERE, second),
            libc::SYS_symlink => self.symlink(first, HERE, second),
            libc::SYS_unlink => self.unlink(HERE, first, 0),
            libc::SYS_mkdir => self.directory(Call::Mkdir, HERE, first),
            libc::SYS_rmdir => self.directory(Call::Rmdir, HERE, first),
            _ => Ok(None),
        }
    }

    fn open(&self, directory: u64, path: u64, flags: u64) -> Result<Option<Asked>> {
        let Some(path) = self.scope.place(&self.path_at(directory, path)?) else { return Ok(None) };
        let has = |flag: i32| flags & flag as u64 == flag as u64;
        if has(libc::O_TMPFILE) {
            // It has no name to be struck at before it is open; what it gets is seen when it is
            // written, and its creation by the name that /proc gives it.
            let effect = Effect::Open { path, create: false, truncate: false };
            return Ok(Some(plain(Call::Open, effect).with(flags)));
        }
        let (create, truncate) = (has(libc::O_CREAT), has(libc::O_TRUNC));
        Ok(Some(plain(Call::Open, Effect::Open { path, create, truncate }).with(flags)))
    }

    fn write(&self, call: Call, offset: Option<u64>) -> Result<Option<Asked>> {
        let [file, address, length, ..] = self.arguments;
        let Some(path) = self.about_file(file)? else { return Ok(None) };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.bytes(call, file, path, offset, length, Bytes::Buffer { address })
    }

    fn writev(&self, call: Call, offset: Option<u64>) -> Result<Option<Asked>> {
        let [file, address, count, ..] = self.arguments;
        let Some(path) = self.about_file(file)? else { return Ok(None) };
        let length = vector(self.thread, address, count)?.iter().map(|(_, length)| *length).sum();
        self.bytes(call, file, path, offset, length, Bytes::Vector { address, count })
    }

    fn kernel_copy(
        &self,
        call: Call,
        file: u64,
        offset: Option<u64>,
        length_argument: usize,
    ) -> Result<Option<Asked>> {
        let Some(path) = self.about_file(file)? else { return Ok(None) };
        let length = usize::try_from(self.arguments[length_argument]).unwrap_or(usize::MAX);
        self.bytes(call, file, path, offset, length, Bytes::Kernel { length_argument })
    }

    fn bytes(
        &self,
        call: Call,
        file: u64,
        path: PathBuf,
        offset: Option<u64>,
        length: usize,
        bytes: Bytes,
    ) -> Result<Option<Asked>> {
        let offset = ByteOffset(match self.detail {
            Detail::All => self.position(file, offset)?,
            Detail::Place | Detail::Flags => 0,
        });
        let effect = Effect::Write { path, offset, data: Vec::new() };
        let file = Some(fd_number(file));
        Ok(Some(Asked { call, effect, length, bytes, file, nonblocking: false, flags: 0 }))
    }

    fn truncate(&self, path: PathBuf, length: u64) -> Result<Option<Asked>> {
        Ok(self.scope.place(&path).map(|path| truncate(path, length)))
    }

    fn sync(&self, call: Call, file: u64) -> Result<Option<Asked>> {
        let path = self.file(file).and_then(|path| self.scope.place(&path));
        Ok(path.map(|path| plain(call, Effect::Sync { path }).of(file)))
    }

    /// A shared mapping matters if the file can be written through it.
    fn map(&self, file: u64) -> Result<Option<Asked>> {
        let Some(path) = self.about_file(file)? else { return Ok(None) };
        let writable = self.flags(file) & libc::O_ACCMODE == libc::O_RDWR;
        Ok(writable.then(|| plain(Call::MapShared, Effect::Unfollowed { path }).of(file)))
    }

    fn rename(
        &self,
        from_directory: u64,
        from: u64,
        to_directory: u64,
        to: u64,
        flags: u64,
    ) -> Result<Option<Asked>> {
        let from = self.path_at(from_directory, from)?;
        let to = self.path_at(to_directory, to)?;
        if self.scope.place(&from).or_else(|| self.scope.place(&to)).is_none() {
            return Ok(None);
        }
        let exchange = flags & u64::from(libc::RENAME_EXCHANGE) != 0;
        let (from, to) = (self.scope.name(from), self.scope.name(to));
        if flags & u64::from(libc::RENAME_WHITEOUT) != 0 {
            // It leaves a device behind, for which there is no model.
            return Ok(Some(plain(Call::Rename, Effect::Unfollowed { path: to })));
        }
        Ok(Some(plain(Call::Rename, Effect::Rename { from, to, exchange })))
    }

    fn link(
        &self,
        from_directory: u64,
        from: u64,
        to_directory: u64,
        to: u64,
    ) -> Result<Option<Asked>> {
        let from = self.path_at(from_directory, from)?;
        // An open file without a name is linked by way of /proc, or by an empty path.
        let from = match from.to_str() {
            Some(path) if path.starts_with("/proc/") => {
                fs::read_link(self.own_proc(path)).unwrap_or(from)
            }
            _ => from,
        };
        let to = self.path_at(to_directory, to)?;
        let Some(to) = self.scope.place(&to) else { return Ok(None) };
        let from = self.scope.name(from);
        Ok(Some(plain(Call::Link, Effect::Link { from, to })))
    }

    fn symlink(&self, target: u64, directory: u64, path: u64) -> Result<Option<Asked>> {
        let target = PathBuf::from(OsStr::from_bytes(self.thread.read_string(target)?.as_bytes()));
        let path = self.scope.place(&self.path_at(directory, path)?);
        Ok(path.map(|path| plain(Call::Symlink, Effect::Symlink { target, path })))
    }

    fn unlink(&self, directory: u64, path: u64, flags: u64) -> Result<Option<Asked>> {
        if flags & libc::AT_REMOVEDIR as u64 != 0 {
            return self.directory(Call::Rmdir, directory, path);
        }
        let path = self.scope.place(&self.path_at(directory, path)?);
        Ok(path.map(|path| plain(Call::Unlink, Effect::Unlink { path })))
    }

    fn directory(&self, call: Call, directory: u64, path: u64) -> Result<Option<Asked>> {
        let path = self.scope.place(&self.path_at(directory, path)?);
        Ok(path.map(|path| plain(call, Effect::Directory { path })))
    }

    /// An absolute path without `.` and `..`, from a directory and a string.
    fn path_at(&self, directory: u64, path: u64) -> Result<PathBuf> {
        let path = self.thread.read_string(path)?;
        let path = Path::new(OsStr::from_bytes(path.as_bytes()));
        let whole = if path.is_absolute() {
            path.to_owned()
        } else {
            let base = if fd_number(directory) == libc::AT_FDCWD {
                fs::read_link(self.proc("cwd")).ok()
            } else {
                self.file(directory)
            };
            base.unwrap_or_default().join(path)
        };
        Ok(self.through_links(model::plain(&whole)))
    }

    /// Follows symbolic links in the directories of a path that seems to lie elsewhere.
    fn through_links(&self, path: PathBuf) -> PathBuf {
        const SYSTEM: [&str; 6] = ["/usr", "/lib", "/etc", "/proc", "/sys", "/dev/null"];
        if self.scope.everywhere
            || self.scope.place(&path).is_some()
            || SYSTEM.iter().any(|root| path.starts_with(root))
        {
            return path;
        }
        match (path.parent().and_then(|parent| fs::canonicalize(parent).ok()), path.file_name()) {
            (Some(parent), Some(name)) => parent.join(name),
            _ => path,
        }
    }

    /// The path of an open file that matters.
    fn about_file(&self, file: u64) -> Result<Option<PathBuf>> {
        Ok(self.file(file).and_then(|path| self.scope.place(&path)))
    }

    fn file(&self, file: u64) -> Option<PathBuf> {
        fs::read_link(self.proc(&format!("fd/{}", fd_number(file)))).ok()
    }

    fn proc(&self, what: &str) -> String {
        format!("/proc/{}/{what}", self.thread.tid())
    }

    /// `/proc/self` and `/proc/thread-self` of the thread, as we can open it.
    fn own_proc(&self, path: &str) -> String {
        let own = self.proc("");
        let own = own.trim_end_matches('/');
        path.replacen("/proc/thread-self", own, 1).replacen("/proc/self", own, 1)
    }

    fn flags(&self, file: u64) -> i32 {
        self.file_info(fd_number(file)).1
    }

    /// Position and flags of an open file.
    fn file_info(&self, file: i32) -> (u64, i32) {
        let text = fs::read_to_string(self.proc(&format!("fdinfo/{file}"))).unwrap_or_default();
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default()
        };
        let position = field("pos:").parse().unwrap_or(0);
        (position, i32::from_str_radix(field("flags:"), 8).unwrap_or(0))
    }

    /// Where a write will begin.
    fn position(&self, file: u64, given: Option<u64>) -> Result<u64> {
        let (position, flags) = self.file_info(fd_number(file));
        if self.appends.unwrap_or(flags & libc::O_APPEND != 0) {
            // Appending ignores the position, and pwrite's offset too (pwrite(2), BUGS).
            let path = self.proc(&format!("fd/{}", fd_number(file)));
            return fs::metadata(path).map(|metadata| metadata.len()).map_err(|_| Died);
        }
        Ok(given.unwrap_or(position))
    }

    /// An offset that is given by address; `None` for a null pointer.
    fn offset_at(&self, address: u64) -> Result<Option<u64>> {
        if address == 0 {
            return Ok(None);
        }
        let bytes = self.thread.read(address, 8)?;
        Ok(Some(u64::from_le_bytes(bytes.try_into().map_err(|_| Died)?)))
    }

    /// The file that is mapped, shared, at an address.
    fn mapped_at(&self, address: u64) -> Option<PathBuf> {
        let maps = fs::read_to_string(self.proc("maps")).ok()?;
        let path = maps.lines().find_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (from, to) = range.split_once('-')?;
            let from = u64::from_str_radix(from, 16).ok()?;
            let to = u64::from_str_radix(to, 16).ok()?;
            let shared = rest.as_bytes().get(3) == Some(&b's');
            let path = rest.find('/').map(|start| PathBuf::from(&rest[start..]))?;
            ((from..to).contains(&address) && shared).then_some(path)
        })?;
        self.scope.place(&path)
    }
}

fn plain(call: Call, effect: Effect) -> Asked {
    Asked { call, effect, length: 0, bytes: Bytes::None, file: None, nonblocking: false, flags: 0 }
}

impl Asked {
    /// A call of which no more is known.
    #[must_use]
    pub fn unknown(call: Call) -> Self {
        plain(call, Effect::Sync { path: PathBuf::new() })
    }

    /// Whether what it writes is on disk when it returns.
    #[must_use]
    pub fn synchronous(&self) -> bool {
        // O_SYNC has the bit of O_DSYNC, too.
        self.flags & libc::O_DSYNC != 0
    }

    /// It asks for these flags.
    fn with(self, flags: u64) -> Self {
        // They are an int, whatever stands in the upper half of the register.
        #[expect(clippy::cast_possible_truncation, reason = "see above")]
        let flags = flags as i32;
        Self { flags, ..self }
    }

    /// It is about this open file.
    fn of(self, file: u64) -> Self {
        Self { file: Some(fd_number(file)), ..self }
    }
}

fn truncate(path: PathBuf, length: u64) -> Asked {
    plain(Call::Truncate, Effect::Truncate { path, length: ByteOffset(length) })
}

/// File descriptors are ints, whatever stands in the upper half of the register.
#[expect(clippy::cast_possible_truncation, reason = "see above")]
pub fn fd_number(argument: u64) -> i32 {
    argument as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_in_the_trial_directory_matters_unless_a_sandbox_catches_all() {
        let mut scope =
            Scope { root: "/t".into(), everywhere: false, guard: None, let_through: Vec::new() };
        assert_eq!(scope.place(Path::new("/t/s")), Some("s".into()));
        assert_eq!(scope.place(Path::new("/tmp/s")), None);
        scope.everywhere = true;
        assert_eq!(scope.place(Path::new("/tmp/s")), Some("/tmp/s".into()));
        assert_eq!(scope.place(Path::new("/proc/1/x")), None);
        assert_eq!(scope.place(Path::new("pipe:[1]")), None);
    }
}
