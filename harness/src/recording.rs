//! The recording of one run as a file: JSON lines that anybody can read, attach and start from.
//!
//! The first line names the format and its version, the last one counts the others and has a
//! checksum of them, so that a recording which was cut short or edited is told from a whole one.
//! What was written is kept once for each content, by its hash.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::error::{Context, Error, Result};
use crate::model::{Files, Node};
use crate::op::{ByteOffset, Call, Effect, Op, Trace};
use crate::tree;

/// The version of the format.
pub const VERSION: u32 = 1;

/// One run, and what it began with.
#[derive(Clone, Debug)]
pub struct Recording {
    /// The program and its arguments, or the built-in strategy.
    pub command: Vec<String>,
    /// The kernel on which it ran.
    pub kernel: String,
    /// The state files.
    pub state: BTreeSet<PathBuf>,
    /// Whether it ended by itself, with status 0.
    pub ended: bool,
    /// The files before it.
    pub before: Files,
    /// What it did.
    pub trace: Trace,
}

/// A path; one that is no text is kept as its bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
enum PathText {
    Text(String),
    Bytes(Vec<u8>),
}

impl From<&Path> for PathText {
    fn from(path: &Path) -> Self {
        match path.to_str() {
            Some(text) => Self::Text(text.to_owned()),
            None => Self::Bytes(path.as_os_str().as_bytes().to_vec()),
        }
    }
}

impl From<PathText> for PathBuf {
    fn from(path: PathText) -> Self {
        match path {
            PathText::Text(text) => text.into(),
            PathText::Bytes(bytes) => OsString::from_vec(bytes).into(),
        }
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    Recording {
        version: u32,
        crashtest: String,
        kernel: String,
        command: Vec<String>,
        state: Vec<PathText>,
        ended: bool,
    },
    Content {
        hash: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        base64: Option<String>,
    },
    Before {
        path: PathText,
        node: Before,
    },
    Op {
        n: usize,
        thread: u32,
        call: Call,
        nth: u32,
        effect: What,
        result: i64,
        #[serde(default, skip_serializing_if = "is_zero")]
        flags: i32,
    },
    Ack {
        n: usize,
        after_ops: usize,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        said: Option<u64>,
    },
    End {
        lines: usize,
        hash: String,
    },
}

fn is_zero(flags: &i32) -> bool {
    *flags == 0
}

/// What was there before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Before {
    File(String),
    Symlink(PathText),
    Directory,
}

/// An [`Effect`] whose bytes are elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum What {
    Open { path: PathText, create: bool, truncate: bool },
    Close { path: PathText },
    Write { path: PathText, offset: u64, bytes: usize, content: String },
    Truncate { path: PathText, length: u64 },
    Fallocate { path: PathText, mode: i32, offset: u64, length: u64 },
    Sync { path: PathText },
    Rename { from: PathText, to: PathText, exchange: bool },
    Link { from: PathText, to: PathText },
    Symlink { target: PathText, path: PathText },
    Unlink { path: PathText },
    Directory { path: PathText },
    Unfollowed { path: PathText },
}

/// The name of a content.
fn hash(bytes: &[u8]) -> String {
    format!("{:032x}", xxh3_128(bytes))
}

/// Writes lines, and each content before the first line that names it.
struct Writer<W: Write> {
    to: W,
    check: Xxh3,
    lines: usize,
    contents: BTreeSet<String>,
}

impl<W: Write> Writer<W> {
    fn line(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_vec(line).context("write a recording")?;
        text.push(b'\n');
        self.check.update(&text);
        self.lines += 1;
        self.to.write_all(&text).context("write a recording")
    }

    fn content(&mut self, bytes: &[u8]) -> Result<String> {
        let hash = hash(bytes);
        if self.contents.insert(hash.clone()) {
            let (text, base64) = match std::str::from_utf8(bytes) {
                Ok(text) => (Some(text.to_owned()), None),
                Err(_) => (None, Some(BASE64_STANDARD.encode(bytes))),
            };
            self.line(&Line::Content { hash: hash.clone(), text, base64 })?;
        }
        Ok(hash)
    }
}

impl Recording {
    /// Writes it.
    pub fn write(&self, to: impl Write) -> Result<()> {
        let (check, contents) = (Xxh3::new(), BTreeSet::new());
        let mut writer = Writer { to, check, lines: 0, contents };
        writer.line(&Line::Recording {
            version: VERSION,
            crashtest: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: self.kernel.clone(),
            command: self.command.clone(),
            state: self.state.iter().map(|path| path.as_path().into()).collect(),
            ended: self.ended,
        })?;
        for path in self.before.paths() {
            let node = match self.before.get(path) {
                Some(Node::File(bytes)) => Before::File(writer.content(bytes)?),
                Some(Node::Symlink(target)) => Before::Symlink(target.as_path().into()),
                Some(Node::Directory) | None => Before::Directory,
            };
            writer.line(&Line::Before { path: path.into(), node })?;
        }
        let (trace, mut acks) = (&self.trace, 0);
        for n in 0..=trace.ops.len() {
            while trace.acks.get(acks).is_some_and(|after| *after <= n) {
                let said = trace.said.get(acks).copied();
                writer.line(&Line::Ack { n: acks + 1, after_ops: trace.acks[acks], said })?;
                acks += 1;
            }
            if let Some(op) = trace.ops.get(n) {
                let effect = what(&op.effect, |bytes| writer.content(bytes))?;
                let Op { call, nth, result, thread, flags, .. } = *op;
                writer.line(&Line::Op { n, thread, call, nth, effect, result, flags })?;
            }
        }
        let end =
            Line::End { lines: writer.lines, hash: format!("{:016x}", writer.check.digest()) };
        writer.line(&end)?;
        writer.to.flush().context("write a recording")
    }

    /// Reads one; errors name `file` and the line.
    pub fn read(file: &Path) -> Result<Self> {
        let bytes = tree::read_named(file, tree::RECORDING_BYTES_MAX).map_err(|error| {
            Error::usage(format!("cannot read the recording {}: {error}", file.display()))
        })?;
        Self::parse(&file.display().to_string(), &bytes)
    }

    /// As [`Recording::read`], of what is in memory.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let (mut reader, mut check) = (Reader::default(), Xxh3::new());
        for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
            let place = format!("{file}:{}", index + 1);
            let parsed: Line = serde_json::from_slice(line)
                .map_err(|error| not_a_line(&place, index, line.last() == Some(&b'\n'), &error))?;
            if line.last() != Some(&b'\n') {
                return Err(damaged(&place, "it was cut short"));
            }
            if reader.ended {
                return Err(damaged(&place, "there is more after the end"));
            }
            if let Line::End { lines, hash } = &parsed
                && (*lines != index || *hash != format!("{:016x}", check.digest()))
            {
                return Err(damaged(&place, "it was edited: its checksum is another"));
            }
            check.update(line);
            reader.line(&place, index, parsed)?;
        }
        reader.finish(file)
    }
}

/// How large the files of a recording may get together.
const FILES_BYTES_MAX: u64 = 1 << 30;

/// A path in a recording becomes one in a directory of ours: it must not lead out of that.
fn checked(place: &str, path: &Path) -> Result<()> {
    // What lies elsewhere has an absolute path, and is never written to.
    match path.components().any(|one| one == Component::ParentDir) {
        true => Err(damaged(place, "a path in it leads out of its directory")),
        false => Ok(()),
    }
}

fn damaged(place: &str, what: &str) -> Error {
    Error::usage(format!("{place}: {what}")).help("record the program again")
}

fn not_a_line(place: &str, index: usize, whole: bool, error: &serde_json::Error) -> Error {
    match (index, whole) {
        (0, _) => Error::usage(format!("{place}: not a recording: {error}"))
            .help("`crashtest record -- PROGRAM` makes one"),
        (_, false) => damaged(place, "it was cut short"),
        (_, true) => damaged(place, &format!("not a line of a recording: {error}")),
    }
}

/// Puts a recording together from its lines.
#[derive(Default)]
struct Reader {
    head: Option<(Vec<String>, String, BTreeSet<PathBuf>, bool)>,
    contents: BTreeMap<String, Vec<u8>>,
    before: Files,
    trace: Trace,
    ended: bool,
    /// How large each file gets, and all of them.
    sizes: BTreeMap<PathBuf, u64>,
    bytes: u64,
}

impl Reader {
    fn line(&mut self, place: &str, index: usize, line: Line) -> Result<()> {
        match line {
            Line::Recording { version, .. } if version != VERSION => {
                let what = format!("{place}: this recording has version {version}");
                return Err(Error::usage(what)
                    .help(format!("this crashtest reads version {VERSION}; record again")));
            }
            Line::Recording { kernel, command, state, ended, .. } if index == 0 => {
                let state: BTreeSet<_> = state.into_iter().map(PathBuf::from).collect();
                state.iter().try_for_each(|path| checked(place, path))?;
                self.head = Some((command, kernel, state, ended));
            }
            _ if index == 0 => return Err(damaged(place, "a recording begins otherwise")),
            Line::Recording { .. } => return Err(damaged(place, "a second beginning")),
            Line::Content { hash: name, text, base64 } => {
                let bytes = match (text, base64) {
                    (Some(text), None) => text.into_bytes(),
                    (None, Some(base64)) => BASE64_STANDARD
                        .decode(base64)
                        .map_err(|error| damaged(place, &format!("no content: {error}")))?,
                    _ => return Err(damaged(place, "a content has either text or base64")),
                };
                if hash(&bytes) != name {
                    return Err(damaged(place, "this content does not have its hash"));
                }
                self.contents.insert(name, bytes);
            }
            Line::Before { path, node } => {
                let node = match node {
                    Before::File(hash) => Node::File(self.content(place, &hash)?),
                    Before::Symlink(target) => Node::Symlink(target.into()),
                    Before::Directory => Node::Directory,
                };
                let path = PathBuf::from(path);
                checked(place, &path)?;
                if let Node::File(bytes) = &node {
                    self.grow(place, &path, bytes.len() as u64)?;
                }
                self.before.insert(path, node);
            }
            Line::Op { n, thread, call, nth, effect, result, flags } => {
                if n != self.trace.ops.len() {
                    return Err(damaged(place, "an op is missing before this one"));
                }
                let effect = effect_of(effect, |hash| self.content(place, hash))?;
                let op = Op { call, nth, effect, result, thread, flags };
                op.paths().try_for_each(|path| checked(place, path))?;
                let end = match &op.effect {
                    Effect::Write { offset, data, .. } => {
                        offset.0.saturating_add(data.len() as u64)
                    }
                    Effect::Truncate { length, .. } => length.0,
                    Effect::Fallocate { offset, length, .. } => offset.0.saturating_add(length.0),
                    _ => 0,
                };
                self.grow(place, op.effect.path(), end)?;
                self.trace.ops.push(op);
            }
            Line::Ack { after_ops, said, .. } => {
                let before = self.trace.acks.last().copied().unwrap_or(0);
                if after_ops > self.trace.ops.len() || after_ops < before {
                    return Err(damaged(place, "this ack is not at its place"));
                }
                self.trace.acks.push(after_ops);
                self.trace.said.extend(said);
            }
            Line::End { .. } => self.ended = true,
        }
        Ok(())
    }

    /// Counts how large the files get, which are all kept in memory.
    fn grow(&mut self, place: &str, path: &Path, end: u64) -> Result<()> {
        let known = self.sizes.entry(path.to_owned()).or_default();
        self.bytes += end.saturating_sub(*known);
        *known = end.max(*known);
        match self.bytes > FILES_BYTES_MAX {
            true => Err(damaged(place, "its files get larger than 1 GiB in all")),
            false => Ok(()),
        }
    }

    fn content(&self, place: &str, hash: &str) -> Result<Vec<u8>> {
        let unknown = || damaged(place, &format!("there is no content {hash}"));
        self.contents.get(hash).cloned().ok_or_else(unknown)
    }

    fn finish(self, file: &str) -> Result<Recording> {
        match self.head {
            Some((command, kernel, state, ended)) if self.ended => {
                let (before, trace) = (self.before, self.trace);
                Ok(Recording { command, kernel, state, ended, before, trace })
            }
            Some(_) => Err(damaged(file, "it was cut short")),
            None => Err(Error::usage(format!("{file}: not a recording: it is empty"))),
        }
    }
}

fn what(effect: &Effect, mut keep: impl FnMut(&[u8]) -> Result<String>) -> Result<What> {
    let text = |path: &PathBuf| PathText::from(path.as_path());
    Ok(match effect {
        Effect::Open { path, create, truncate } => {
            What::Open { path: text(path), create: *create, truncate: *truncate }
        }
        Effect::Close { path } => What::Close { path: text(path) },
        Effect::Write { path, offset, data } => {
            let (path, content) = (text(path), keep(data)?);
            What::Write { path, offset: offset.0, bytes: data.len(), content }
        }
        Effect::Truncate { path, length } => What::Truncate { path: text(path), length: length.0 },
        Effect::Fallocate { path, mode, offset, length } => {
            let (path, mode) = (text(path), *mode);
            What::Fallocate { path, mode, offset: offset.0, length: length.0 }
        }
        Effect::Sync { path } => What::Sync { path: text(path) },
        Effect::Rename { from, to, exchange } => {
            What::Rename { from: text(from), to: text(to), exchange: *exchange }
        }
        Effect::Link { from, to } => What::Link { from: text(from), to: text(to) },
        Effect::Symlink { target, path } => {
            What::Symlink { target: text(target), path: text(path) }
        }
        Effect::Unlink { path } => What::Unlink { path: text(path) },
        Effect::Directory { path } => What::Directory { path: text(path) },
        Effect::Unfollowed { path } => What::Unfollowed { path: text(path) },
    })
}

fn effect_of(what: What, content: impl Fn(&str) -> Result<Vec<u8>>) -> Result<Effect> {
    Ok(match what {
        What::Open { path, create, truncate } => {
            Effect::Open { path: path.into(), create, truncate }
        }
        What::Close { path } => Effect::Close { path: path.into() },
        What::Write { path, offset, bytes, content: hash } => {
            let mut data = content(&hash)?;
            data.truncate(bytes);
            Effect::Write { path: path.into(), offset: ByteOffset(offset), data }
        }
        What::Truncate { path, length } => {
            Effect::Truncate { path: path.into(), length: ByteOffset(length) }
        }
        What::Fallocate { path, mode, offset, length } => {
            let (offset, length) = (ByteOffset(offset), ByteOffset(length));
            Effect::Fallocate { path: path.into(), mode, offset, length }
        }
        What::Sync { path } => Effect::Sync { path: path.into() },
        What::Rename { from, to, exchange } => {
            Effect::Rename { from: from.into(), to: to.into(), exchange }
        }
        What::Link { from, to } => Effect::Link { from: from.into(), to: to.into() },
        What::Symlink { target, path } => {
            Effect::Symlink { target: target.into(), path: path.into() }
        }
        What::Unlink { path } => Effect::Unlink { path: path.into() },
        What::Directory { path } => Effect::Directory { path: path.into() },
        What::Unfollowed { path } => Effect::Unfollowed { path: path.into() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Recording {
        let mut before = Files::default();
        before.insert("s".into(), Node::File(b"[0]".to_vec()));
        before.insert("l".into(), Node::Symlink("s".into()));
        let path = OsString::from_vec(vec![b't', 0xff]);
        let write = |data: &[u8]| Effect::Write {
            path: path.clone().into(),
            offset: ByteOffset(0),
            data: data.to_vec(),
        };
        let ops = vec![
            Op::new(Call::Write, 1, write(b"[1]"), 3),
            Op { thread: 1, flags: 0o2001, ..Op::new(Call::Write, 2, write(&[0xff, 0]), 2) },
        ];
        let trace = Trace { ops, acks: vec![0, 2], said: vec![7, 8] };
        let (command, state) = (vec!["bot".to_owned()], BTreeSet::from(["s".into()]));
        Recording { command, kernel: "Linux".to_owned(), state, ended: true, before, trace }
    }

    fn bytes(recording: &Recording) -> Vec<u8> {
        let mut bytes = Vec::new();
        recording.write(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_recording_is_read_as_it_was_written() {
        let (one, mut again) = (sample(), Vec::new());
        let read = Recording::parse("r", &bytes(&one)).unwrap();
        assert_eq!((&read.trace, &read.state), (&one.trace, &one.state));
        read.write(&mut again).unwrap();
        assert_eq!(bytes(&one), again);
    }

    #[test]
    fn one_that_was_cut_edited_or_is_of_another_version_is_refused() {
        let whole = bytes(&sample());
        for cut in 1..whole.len() {
            let error = Recording::parse("r", &whole[..cut]).unwrap_err().to_string();
            assert!(error.contains("cut short") || error.contains("not a recording"), "{error}");
        }
        let text = String::from_utf8(whole).unwrap();
        let error_of = |from: &str, to: &str| {
            assert!(text.contains(from), "{from}");
            let edited = text.replacen(from, to, 1);
            Recording::parse("r", edited.as_bytes()).unwrap_err().to_string()
        };
        assert!(error_of("\"version\":1", "\"version\":2").contains("reads version 1"));
        assert!(error_of("\"result\":3", "\"result\":2").contains("edited"));
        assert!(error_of("\"[1]\"", "\"[2]\"").contains("does not have its hash"));
        assert!(error_of("\"op\":{\"n\":1,", "\"op\":{\"n\":3,").contains("missing"));
    }
}
