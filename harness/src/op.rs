//! Storage operations: what a subject asked of the kernel, and what came of it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The place of an op in its trace, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct OpIndex(pub usize);

/// A number of bytes, or a place in a file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct ByteOffset(pub u64);

/// The kinds of storage calls. Variants of one call that differ only in how a path is given
/// (`rename`, `renameat`, `renameat2`) are one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// `open`, `openat`, `openat2`, `creat`, when they can write, create or truncate.
    Open,
    /// `close`.
    Close,
    /// `write`.
    Write,
    /// `pwrite64`.
    Pwrite,
    /// `writev`.
    Writev,
    /// `pwritev`, `pwritev2`.
    Pwritev,
    /// `sendfile`.
    Sendfile,
    /// `copy_file_range`.
    CopyFileRange,
    /// `splice` into a file.
    Splice,
    /// `truncate`, `ftruncate`.
    Truncate,
    /// `fallocate`.
    Fallocate,
    /// `fsync`.
    Fsync,
    /// `fdatasync`.
    Fdatasync,
    /// `sync`, `syncfs`.
    Sync,
    /// `sync_file_range`.
    SyncFileRange,
    /// `msync`.
    Msync,
    /// `rename`, `renameat`, `renameat2`.
    Rename,
    /// `link`, `linkat`.
    Link,
    /// `symlink`, `symlinkat`.
    Symlink,
    /// `unlink`, `unlinkat`.
    Unlink,
    /// `mkdir`, `mkdirat`.
    Mkdir,
    /// `rmdir`, `unlinkat` with `AT_REMOVEDIR`.
    Rmdir,
    /// `mmap` of a file, shared: its later writes cannot be followed.
    MapShared,
    /// No call: bytes that were stored in a file through a shared mapping, as they are seen before the
    /// next call.
    Store,
    /// `ioctl` that shares blocks between files (`FICLONE`, `FICLONERANGE`).
    Clone,
}

/// Calls that do the same thing and fail in the same ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// [`Call::Open`].
    Open,
    /// All that put bytes into a file.
    Write,
    /// [`Call::Fsync`].
    Fsync,
    /// [`Call::Fdatasync`].
    Fdatasync,
    /// [`Call::Sync`].
    Sync,
    /// [`Call::SyncFileRange`].
    SyncFileRange,
    /// [`Call::Msync`].
    Msync,
    /// [`Call::Truncate`].
    Truncate,
    /// [`Call::Fallocate`].
    Fallocate,
    /// [`Call::Rename`].
    Rename,
    /// [`Call::Link`].
    Link,
    /// [`Call::Symlink`].
    Symlink,
    /// [`Call::Unlink`].
    Unlink,
    /// [`Call::Close`].
    Close,
    /// [`Call::Mkdir`].
    Mkdir,
    /// [`Call::Rmdir`].
    Rmdir,
    /// [`Call::Clone`].
    Clone,
    /// [`Call::MapShared`].
    Map,
}

impl Family {
    /// All families, in the order in which they are swept.
    pub const ALL: [Self; 18] = [
        Self::Open,
        Self::Write,
        Self::Fsync,
        Self::Fdatasync,
        Self::Sync,
        Self::SyncFileRange,
        Self::Msync,
        Self::Truncate,
        Self::Fallocate,
        Self::Rename,
        Self::Link,
        Self::Symlink,
        Self::Unlink,
        Self::Close,
        Self::Mkdir,
        Self::Rmdir,
        Self::Clone,
        Self::Map,
    ];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Write => "write",
            Self::Fsync => "fsync",
            Self::Fdatasync => "fdatasync",
            Self::Sync => "syncfs",
            Self::SyncFileRange => "sync_file_range",
            Self::Msync => "msync",
            Self::Truncate => "truncate",
            Self::Fallocate => "fallocate",
            Self::Rename => "rename",
            Self::Link => "link",
            Self::Symlink => "symlink",
            Self::Unlink => "unlink",
            Self::Close => "close",
            Self::Mkdir => "mkdir",
            Self::Rmdir => "rmdir",
            Self::Clone => "clone",
            Self::Map => "mmap",
        }
    }
}

impl Call {
    /// Whether the call is given a path, by which it changes a file or a name.
    #[must_use]
    pub fn names_a_file(self) -> bool {
        matches!(
            self,
            Self::Open
                | Self::Truncate
                | Self::Rename
                | Self::Link
                | Self::Symlink
                | Self::Unlink
                | Self::Mkdir
                | Self::Rmdir
        )
    }

    /// Its family.
    #[must_use]
    pub fn family(self) -> Family {
        match self {
            Self::Open => Family::Open,
            Self::Close => Family::Close,
            Self::Write
            | Self::Pwrite
            | Self::Writev
            | Self::Pwritev
            | Self::Sendfile
            | Self::CopyFileRange
            | Self::Splice => Family::Write,
            Self::Truncate => Family::Truncate,
            Self::Fallocate => Family::Fallocate,
            Self::Fsync => Family::Fsync,
            Self::Fdatasync => Family::Fdatasync,
            Self::Sync => Family::Sync,
            Self::SyncFileRange => Family::SyncFileRange,
            Self::Msync => Family::Msync,
            Self::Rename => Family::Rename,
            Self::Link => Family::Link,
            Self::Symlink => Family::Symlink,
            Self::Unlink => Family::Unlink,
            Self::Mkdir => Family::Mkdir,
            Self::Rmdir => Family::Rmdir,
            Self::MapShared | Self::Store => Family::Map,
            Self::Clone => Family::Clone,
        }
    }

    /// Whether it writes bytes that the program has given it.
    #[must_use]
    pub fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::Pwrite | Self::Writev | Self::Pwritev)
    }

    /// The name as the manual has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Close => "close",
            Self::Write => "write",
            Self::Pwrite => "pwrite64",
            Self::Writev => "writev",
            Self::Pwritev => "pwritev",
            Self::Sendfile => "sendfile",
            Self::CopyFileRange => "copy_file_range",
            Self::Splice => "splice",
            Self::Truncate => "ftruncate",
            Self::Fallocate => "fallocate",
            Self::Fsync => "fsync",
            Self::Fdatasync => "fdatasync",
            Self::Sync => "sync",
            Self::SyncFileRange => "sync_file_range",
            Self::Msync => "msync",
            Self::Rename => "rename",
            Self::Link => "link",
            Self::Symlink => "symlink",
            Self::Unlink => "unlink",
            Self::Mkdir => "mkdir",
            Self::Rmdir => "rmdir",
            Self::MapShared => "mmap",
            Self::Store => "(store)",
            Self::Clone => "ioctl",
        }
    }
}

/// What an op does. Paths inside the trial directory are relative to it, others absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Opens a file; `truncate` empties it, `create` makes it when missing.
    Open {
        /// The file; for `O_TMPFILE` the name that `/proc` gives the nameless file.
        path: PathBuf,
        /// `O_CREAT` or `O_TMPFILE`.
        create: bool,
        /// `O_TRUNC`.
        truncate: bool,
    },
    /// Closes a file.
    Close {
        /// The file.
        path: PathBuf,
    },
    /// Puts bytes into a file.
    Write {
        /// The file.
        path: PathBuf,
        /// Where in the file the first byte goes.
        offset: ByteOffset,
        /// The bytes that the call was asked to write; after the call, those that it wrote.
        data: Vec<u8>,
    },
    /// Sets the length of a file.
    Truncate {
        /// The file.
        path: PathBuf,
        /// The new length.
        length: ByteOffset,
    },
    /// `fallocate`.
    Fallocate {
        /// The file.
        path: PathBuf,
        /// `FALLOC_FL_*`.
        mode: i32,
        /// Where the range begins.
        offset: ByteOffset,
        /// How long the range is.
        length: ByteOffset,
    },
    /// Makes something durable; nothing changes for the page cache.
    Sync {
        /// The file or directory; empty when it is everything.
        path: PathBuf,
    },
    /// Gives a file another name.
    Rename {
        /// The old name.
        from: PathBuf,
        /// The new name.
        to: PathBuf,
        /// `RENAME_EXCHANGE`: both files stay, with their names exchanged.
        exchange: bool,
    },
    /// Gives a file one more name.
    Link {
        /// A name that it has.
        from: PathBuf,
        /// The name that it gets.
        to: PathBuf,
    },
    /// Makes a symbolic link.
    Symlink {
        /// What it points to, as written.
        target: PathBuf,
        /// Its name.
        path: PathBuf,
    },
    /// Removes a name.
    Unlink {
        /// The name.
        path: PathBuf,
    },
    /// Makes or removes a directory.
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// Changes a file in a way that the trace cannot follow.
    Unfollowed {
        /// The file.
        path: PathBuf,
    },
}

impl Effect {
    /// The file that the op is about; the new name where there are two.
    #[must_use]
    pub fn path(&self) -> &PathBuf {
        match self {
            Self::Open { path, .. }
            | Self::Close { path }
            | Self::Write { path, .. }
            | Self::Truncate { path, .. }
            | Self::Fallocate { path, .. }
            | Self::Sync { path }
            | Self::Symlink { path, .. }
            | Self::Unlink { path }
            | Self::Directory { path }
            | Self::Unfollowed { path } => path,
            Self::Rename { to, .. } | Self::Link { to, .. } => to,
        }
    }
}

/// One storage call of a recorded run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// The kind of call.
    pub call: Call,
    /// Which occurrence of `call` it is in the run, over all threads and files, from 1.
    pub nth: u32,
    /// What it does.
    pub effect: Effect,
    /// What the kernel returned: bytes or 0, or minus the error number.
    pub result: i64,
    /// The thread that made it, numbered from 0 in the order of their first ops.
    pub thread: u32,
    /// The flags of open(2) of the open file that it is about: those asked for by an open, and
    /// else those that the file has. `O_SYNC` and `O_DSYNC` stand for the flags of one write, too.
    pub flags: i32,
}

/// All ops of one run, in one global order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// The ops.
    pub ops: Vec<Op>,
    /// For each ack, how many ops had been done when it was given.
    pub acks: Vec<usize>,
    /// What each ack said, as a hash of the line; empty if that is not known.
    pub said: Vec<u64>,
}

impl Trace {
    /// What had been done when so many acks had been given; all of it if there were fewer.
    #[must_use]
    pub fn up_to_ack(&self, acks: u64) -> Self {
        let acks = usize::try_from(acks).unwrap_or(usize::MAX);
        let last = acks.checked_sub(1).and_then(|last| self.acks.get(last)).copied();
        let ops = last.unwrap_or(self.ops.len());
        Self {
            ops: self.ops[..ops].to_vec(),
            acks: self.acks.iter().take(acks).copied().collect(),
            said: self.said.iter().take(acks).copied().collect(),
        }
    }

    /// How many bytes reached files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ops.iter().map(|op| op.written() as u64).sum()
    }
}

impl Op {
    /// An op of the only thread, with no flags.
    #[must_use]
    pub fn new(call: Call, nth: u32, effect: Effect, result: i64) -> Self {
        Self { call, nth, effect, result, thread: 0, flags: 0 }
    }

    /// How many bytes the op put into a file.
    #[must_use]
    pub fn written(&self) -> usize {
        match &self.effect {
            Effect::Write { data, .. } if self.result > 0 => data.len(),
            _ => 0,
        }
    }

    /// Whether it may have changed a file or a name; opening a file that is there to write to it does not.
    #[must_use]
    pub fn changes(&self) -> bool {
        self.succeeded()
            && match &self.effect {
                Effect::Open { create, truncate, .. } => *create || *truncate,
                Effect::Close { .. } | Effect::Sync { .. } => false,
                Effect::Write { .. }
                | Effect::Truncate { .. }
                | Effect::Fallocate { .. }
                | Effect::Rename { .. }
                | Effect::Link { .. }
                | Effect::Symlink { .. }
                | Effect::Unlink { .. }
                | Effect::Directory { .. }
                | Effect::Unfollowed { .. } => true,
            }
    }

    /// The files that the op is about.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let from = match &self.effect {
            Effect::Rename { from, .. } | Effect::Link { from, .. } => Some(from.as_path()),
            _ => None,
        };
        from.into_iter().chain([self.effect.path().as_path()])
    }

    /// Whether the kernel did it.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.result >= 0
    }
}
