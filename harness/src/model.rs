//! What a killed process leaves: the model of the page cache.
//!
//! SIGKILL takes the process and nothing else. Every call that had completed stays done: its bytes
//! and names are in the page cache, and the next process sees them. The call in flight is done in
//! part: a write may have put its first bytes into the file and no others. Nothing is reordered
//! and nothing is lost. So the files after a kill are a function of the trace and of the place of
//! the kill, and this module computes it: [`Files::apply`] does one op, [`Files::apply_cut`] the
//! first bytes of one.
//!
//! Ops are known by path. A file that is unlinked while it is open goes on under the name that
//! `/proc` then shows for it: its old path and ` (deleted)`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use crate::op::{Call, Effect, Op};

/// A tree of files in memory: names, and what they lead to.
#[derive(Clone, Debug, Default)]
pub struct Files {
    inodes: Vec<Node>,
    names: BTreeMap<PathBuf, usize>,
}

/// What a name leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A regular file and its bytes.
    File(Vec<u8>),
    /// A symbolic link and where it points.
    Symlink(PathBuf),
    /// A directory.
    Directory,
}

/// The op cannot be computed; the message names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotModelled(pub String);

impl Files {
    /// Puts a node at `path`, as it was before the run.
    pub fn insert(&mut self, path: PathBuf, node: Node) {
        self.inodes.push(node);
        self.names.insert(path, self.inodes.len() - 1);
    }

    /// What is at `path`.
    #[must_use]
    pub fn get(&self, path: &Path) -> Option<&Node> {
        self.names.get(path).map(|inode| &self.inodes[*inode])
    }

    /// The bytes of the regular file that `path` leads to, by way of symbolic links too.
    #[must_use]
    pub fn bytes(&self, path: &Path) -> Option<&[u8]> {
        match self.get(&self.target(path)?)? {
            Node::File(bytes) => Some(bytes),
            Node::Directory | Node::Symlink(_) => None,
        }
    }

    /// The path that `path` leads to, by way of symbolic links.
    #[must_use]
    pub fn target(&self, path: &Path) -> Option<PathBuf> {
        let mut path = path.to_owned();
        for _ in 0..LINKS_MAX {
            match self.get(&path)? {
                Node::File(_) | Node::Directory => return Some(path),
                Node::Symlink(target) => {
                    path = plain(&path.parent().unwrap_or(Path::new("")).join(target));
                }
            }
        }
        None
    }

    /// A number that all names of the same file share.
    #[must_use]
    pub fn inode_number(&self, path: &Path) -> Option<usize> {
        self.names.get(path).copied()
    }

    /// All names of what `path` is a name of.
    pub fn names_of(&self, path: &Path) -> impl Iterator<Item = &Path> {
        let inode = self.names.get(path).copied();
        let same = move |other: &usize| inode == Some(*other);
        self.names.iter().filter(move |(_, other)| same(other)).map(|(path, _)| path.as_path())
    }

    /// The names that are symbolic links.
    pub fn symlinks(&self) -> impl Iterator<Item = &Path> {
        let is_link = |inode: &usize| matches!(self.inodes[*inode], Node::Symlink(_));
        self.names.iter().filter(move |(_, inode)| is_link(inode)).map(|(path, _)| path.as_path())
    }

    /// All names but those of files that have none any more.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.names.keys().map(PathBuf::as_path).filter(|path| !is_nameless(path))
    }

    /// Does a whole op; one that failed changes nothing.
    pub fn apply(&mut self, op: &Op) -> Result<(), NotModelled> {
        if !op.succeeded() {
            return Ok(());
        }
        match &op.effect {
            Effect::Open { path, create, truncate } => self.open(path, *create, *truncate),
            Effect::Write { path, offset, data } => self.write(path, offset.0, data)?,
            Effect::Truncate { path, length } => {
                let length = end_of(path, 0, length.0)?;
                self.file(path)?.resize(length, 0);
            }
            Effect::Fallocate { path, mode, offset, length } => {
                self.fallocate(path, *mode, offset.0, length.0)?;
            }
            Effect::Rename { from, to, exchange } => self.rename(from, to, *exchange)?,
            Effect::Link { from, to } => {
                let inode = self.inode(from)?;
                // A file that had no name goes on under the name that `/proc` shows for it, too.
                self.names.insert(to.clone(), inode);
            }
            Effect::Symlink { target, path } => {
                self.insert(path.clone(), Node::Symlink(target.clone()));
            }
            Effect::Unlink { path } => {
                if let Some(inode) = self.names.remove(path) {
                    self.names.insert(nameless(path), inode);
                }
            }
            Effect::Directory { path } => self.directory(op, path),
            // Whether anything was written through the mapping is seen at the end of the run.
            Effect::Unfollowed { .. } if op.call == Call::MapShared => {}
            Effect::Unfollowed { path } => {
                return Err(NotModelled(format!("{} of {}", op.call.name(), path.display())));
            }
            Effect::Close { .. } | Effect::Sync { .. } => {}
        }
        Ok(())
    }

    /// Does a write of which only the first `keep` bytes arrived.
    pub fn apply_cut(&mut self, op: &Op, keep: usize) -> Result<(), NotModelled> {
        match &op.effect {
            Effect::Write { path, offset, data } => {
                self.write(path, offset.0, &data[..keep.min(data.len())])
            }
            _ => Err(NotModelled(format!("{} cut inside", op.call.name()))),
        }
    }

    fn open(&mut self, path: &Path, create: bool, truncate: bool) {
        match self.names.get(path).copied() {
            Some(inode) => {
                if let (true, Node::File(bytes)) = (truncate, &mut self.inodes[inode]) {
                    bytes.clear();
                }
            }
            None if create => self.insert(path.to_owned(), Node::File(Vec::new())),
            None => {}
        }
    }

    fn write(&mut self, path: &Path, offset: u64, data: &[u8]) -> Result<(), NotModelled> {
        if data.is_empty() {
            return Ok(());
        }
        let end = end_of(path, offset, data.len() as u64)?;
        let bytes = self.file(path)?;
        let start = end - data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[start..end].copy_from_slice(data);
        Ok(())
    }

    fn fallocate(
        &mut self,
        path: &Path,
        mode: i32,
        offset: u64,
        length: u64,
    ) -> Result<(), NotModelled> {
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let end = end_of(path, offset, length)?;
        let start = end.saturating_sub(usize::try_from(length).unwrap_or(usize::MAX));
        let bytes = self.file(path)?;
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => {}
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE => {
                let size = bytes.len();
                bytes[start.min(size)..end.min(size)].fill(0);
            }
            other => return Err(NotModelled(format!("fallocate with mode {other:#x}"))),
        }
        if !keep_size && bytes.len() < end {
            bytes.resize(end, 0);
        }
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path, exchange: bool) -> Result<(), NotModelled> {
        // Two names of one file both stay (rename(2)).
        if self.names.get(to) == Some(&self.inode(from)?) {
            return Ok(());
        }
        let moved = self.take_tree(from);
        let replaced = self.take_tree(to);
        for (rest, inode) in moved {
            self.names.insert(join(to, &rest), inode);
        }
        for (rest, inode) in replaced {
            let path = if exchange { join(from, &rest) } else { nameless(&join(to, &rest)) };
            self.names.insert(path, inode);
        }
        Ok(())
    }

    /// Takes out `root` and everything below it, as paths relative to `root`.
    fn take_tree(&mut self, root: &Path) -> Vec<(PathBuf, usize)> {
        let paths: Vec<PathBuf> = self
            .names
            .range(root.to_owned()..)
            .map(|(path, _)| path.clone())
            .take_while(|path| path.starts_with(root))
            .collect();
        paths
            .into_iter()
            .filter_map(|path| {
                let inode = self.names.remove(&path)?;
                Some((path.strip_prefix(root).ok()?.to_owned(), inode))
            })
            .collect()
    }

    fn directory(&mut self, op: &Op, path: &Path) {
        match op.call {
            Call::Mkdir => self.insert(path.to_owned(), Node::Directory),
            _ => {
                self.names.remove(path);
            }
        }
    }

    fn inode(&self, path: &Path) -> Result<usize, NotModelled> {
        self.names
            .get(path)
            .copied()
            .ok_or_else(|| NotModelled(format!("{} is not known to the trace", path.display())))
    }

    fn file(&mut self, path: &Path) -> Result<&mut Vec<u8>, NotModelled> {
        let inode = self.inode(path)?;
        match &mut self.inodes[inode] {
            Node::File(bytes) => Ok(bytes),
            Node::Symlink(_) | Node::Directory => {
                Err(NotModelled(format!("{} is not a regular file", path.display())))
            }
        }
    }
}

/// How many symbolic links are followed (`MAXSYMLINKS`).
const LINKS_MAX: usize = 40;

/// A path without `.` and `..`, by its text.
#[must_use]
pub fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}

/// The name that `/proc` shows for an open file that lost the name `path`.
fn nameless(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(" (deleted)");
    PathBuf::from(name)
}

fn is_nameless(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b" (deleted)")
}

/// `Path::join`, but joining nothing adds no slash.
fn join(base: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() { base.to_owned() } else { base.join(rest) }
}

/// The largest file that the model holds.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Where a range ends, if the model holds that much.
fn end_of(path: &Path, offset: u64, length: u64) -> Result<usize, NotModelled> {
    offset
        .checked_add(length)
        .filter(|end| *end <= FILE_BYTES_MAX)
        .and_then(|end| usize::try_from(end).ok())
        .ok_or_else(|| NotModelled(format!("{} is larger than 1 GiB", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::ByteOffset;

    fn op(call: Call, effect: Effect) -> Op {
        Op::new(call, 1, effect, 0)
    }

    fn create(path: &str) -> Op {
        op(Call::Open, Effect::Open { path: path.into(), create: true, truncate: true })
    }

    fn write(path: &str, offset: u64, data: &[u8]) -> Op {
        let effect =
            Effect::Write { path: path.into(), offset: ByteOffset(offset), data: data.to_vec() };
        op(Call::Write, effect)
    }

    fn rename(from: &str, to: &str) -> Op {
        op(Call::Rename, Effect::Rename { from: from.into(), to: to.into(), exchange: false })
    }

    fn after(ops: &[Op]) -> Files {
        let mut files = Files::default();
        for op in ops {
            files.apply(op).unwrap();
        }
        files
    }

    #[test]
    fn a_rename_replaces_the_old_file_in_one_step() {
        let files = after(&[
            create("a"),
            write("a", 0, b"old"),
            create("b"),
            write("b", 0, b"new"),
            rename("b", "a"),
        ]);
        assert_eq!(files.bytes(Path::new("a")), Some(&b"new"[..]));
        assert_eq!(files.paths().count(), 1);
    }

    #[test]
    fn a_cut_write_leaves_its_first_bytes() {
        let mut files = after(&[create("a"), write("a", 0, b"xxxxxx")]);
        files.apply_cut(&write("a", 1, b"yyyy"), 2).unwrap();
        assert_eq!(files.bytes(Path::new("a")), Some(&b"xyyxxx"[..]));
    }

    #[test]
    fn a_write_past_the_end_leaves_zeros_between() {
        let files = after(&[create("a"), write("a", 3, b"x")]);
        assert_eq!(files.bytes(Path::new("a")), Some(&b"\0\0\0x"[..]));
    }

    #[test]
    fn renaming_a_directory_takes_its_files_along_and_not_its_neighbours() {
        let mkdir = op(Call::Mkdir, Effect::Directory { path: "d".into() });
        let files = after(&[mkdir, create("d/x"), create("d.x"), rename("d", "e")]);
        let paths: Vec<_> = files.paths().map(|path| path.display().to_string()).collect();
        assert_eq!(paths, ["d.x", "e", "e/x"]);
    }

    #[test]
    fn a_failed_op_changes_nothing() {
        let mut failed = rename("a", "b");
        failed.result = -2;
        let files = after(&[create("a"), failed]);
        assert!(files.bytes(Path::new("a")).is_some());
    }

    #[test]
    fn an_unknown_change_is_named() {
        let effect = Effect::Unfollowed { path: "a".into() };
        let error = Files::default().apply(&op(Call::Clone, effect)).unwrap_err();
        assert_eq!(error.0, "ioctl of a");
    }
}
