//! The storage of a built-in strategy in a trial: strikes at the calls that go through it, and
//! writes down what the strategy does once something has failed.

use std::cell::Cell;
use std::ffi::OsString;
use std::io::{self, PipeWriter, Write};
use std::path::{Path, PathBuf};

use crashtest_targets::{Disk, FileId, LOG_FILE, Open, STATE_FILE, Storage};
use serde::{Deserialize, Serialize};

use super::striker::{bytes, key};
use crate::armed::{Action, Armed, Then};
use crate::errno::Shown;
use crate::fault::{Fault, Injection};
use crate::op::{ByteOffset, Call, Effect};
use crate::os::process::kill_self;
use crate::outcome::Step;
use crate::steps::{self, Steps};
use crate::unsynced::{About, Made, Unsynced};
use crate::volume::Taker;

/// What a child says through its pipe, a byte each.
pub const ACK: u8 = b'A';
/// The fault has struck.
pub const STRUCK: u8 = b'S';
/// After this comes its account as JSON, and then nothing more.
pub const ACCOUNT: u8 = b'{';

/// A child works in its slot.
pub const HERE: &str = ".";

/// What a child says of a fault that it was told of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// What the fault met.
    pub injection: Injection,
    /// What the strategy did from then on.
    pub steps: Vec<Step>,
    /// How many acks it had given before the last part of the fault.
    pub acks_before: Option<u64>,
    /// The state files that a failed fsync has left in memory only, and how many bytes at the beginning
    /// of each are on disk.
    pub unsynced: Vec<(PathBuf, usize)>,
    /// The state files whose names it has left there.
    pub names: Vec<PathBuf>,
}

/// Shows each call to [`Armed`] and does what that says.
pub struct ArmedStorage<'a> {
    disk: Disk,
    armed: Armed,
    tell: &'a PipeWriter,
    /// What is written down, of a fault that the strategy is told of.
    notes: Option<Notes>,
    /// Takes what is freed on a full disk, if that is asked for.
    taker: Option<Taker<'a>>,
    /// How many acks were given: now, and when so many parts of the fault had struck.
    acks: &'a Cell<u64>,
    acks_before: Option<(u32, u64)>,
}

/// What a child writes down.
#[derive(Default)]
struct Notes {
    steps: Steps,
    unsynced: Option<Unsynced>,
    /// Path and position of each open file.
    open: Vec<(PathBuf, u64)>,
}

impl<'a> ArmedStorage<'a> {
    /// Arms `fault`; what there is to say goes to `tell`.
    #[must_use]
    pub fn new(
        fault: &Fault,
        tell: &'a PipeWriter,
        taker: Option<Taker<'a>>,
        acks: &'a Cell<u64>,
    ) -> Self {
        Self {
            taker,
            acks,
            acks_before: None,
            disk: Disk::default(),
            armed: Armed::new(fault),
            tell,
            notes: fault.is_told().then(|| Notes {
                unsynced: fault.can_lose_pages().then(Unsynced::default),
                ..Notes::default()
            }),
        }
    }

    /// `effect` is asked for only if the call is written down.
    fn gate<T>(
        &mut self,
        call: Call,
        length: usize,
        effect: impl FnOnce(&Notes) -> Effect,
        run: impl FnOnce(&mut Disk, usize) -> io::Result<T>,
        count: impl FnOnce(&T) -> usize,
    ) -> io::Result<T> {
        let effect = self.notes.as_ref().map(effect);
        let creates = matches!(effect, Some(Effect::Open { create: true, .. }) | None);
        let shown = Shown { creates, ..Shown::plain(call, length) };
        let path = || effect.as_ref().map(steps::shown_path).unwrap_or_default();
        let action = self.armed.decide(&shown, path);
        let done = match action {
            Action::Pass => run(&mut self.disk, length),
            Action::KillBefore => self.strike(call, effect.as_ref()),
            Action::KillAfter => {
                let _done = run(&mut self.disk, length);
                self.strike(call, effect.as_ref())
            }
            Action::Cut { keep, then } => {
                let done = run(&mut self.disk, keep);
                match then {
                    Then::Kill => self.strike(call, effect.as_ref()),
                    Then::GoOn => done,
                }
            }
            Action::Fail(errno) => Err(io::Error::from_raw_os_error(errno.number())),
            Action::FailAfter(errno) => {
                run(&mut self.disk, length).and(Err(io::Error::from_raw_os_error(errno.number())))
            }
        };
        if let (Some(notes), Some(effect)) = (&mut self.notes, effect) {
            let result = match &done {
                Ok(done) => i64::try_from(count(done)).unwrap_or(i64::MAX),
                Err(error) => -i64::from(error.raw_os_error().unwrap_or(libc::EIO)),
            };
            self.armed.returned(&shown, result, || steps::shown_path(&effect));
            if let Some(taker) = &mut self.taker {
                taker.take()?;
            }
            let parts = self.armed.parts_struck();
            if parts > self.acks_before.map_or(0, |(parts, _)| parts) {
                self.acks_before = Some((parts, self.acks.get()));
            }
            if self.armed.has_begun() {
                let what = steps::call(shown.call, &effect, shown.length);
                notes.steps.called(what, Some(result), action != Action::Pass);
            }
            notes.track(shown.call, &effect, result, action);
        }
        done
    }

    fn strike(&mut self, call: Call, effect: Option<&Effect>) -> ! {
        if let (Some(notes), Some(effect)) = (&mut self.notes, effect) {
            notes.steps.called(steps::call(call, effect, 0), None, false);
            notes.steps.push(Step::Said("(killed here)".to_owned()));
        }
        tell_byte(self.tell, STRUCK);
        self.end();
        kill_self()
    }

    /// Gives the account, if there is one.
    pub fn end(&mut self) {
        let Some(notes) = self.notes.take() else { return };
        let lost = |path: &str| {
            let path = Path::new(path);
            let unsynced = notes.unsynced.as_ref();
            unsynced
                .zip(key(path))
                .is_some_and(|(unsynced, key)| unsynced.is_lost(key, || bytes(path)))
        };
        // No built-in syncs what it overwrites in place: only of a log something is on disk.
        let synced = |path: &str| {
            let (name, content) = (Path::new(path), bytes(Path::new(path)));
            let unsynced = notes.unsynced.as_ref().zip(key(name));
            let disk = unsynced.map(|(unsynced, key)| unsynced.on_disk(key, &content));
            let same = disk.unwrap_or_default();
            let same = same.iter().zip(&content).take_while(|(a, b)| a == b).count();
            if path == LOG_FILE { same } else { 0 }
        };
        let is_name_lost = |name: &&str| {
            let unsynced = notes.unsynced.as_ref().zip(key(Path::new(HERE)));
            unsynced.is_some_and(|(unsynced, here)| unsynced.is_name_lost(here, name.as_ref()))
        };
        let files = [STATE_FILE, LOG_FILE];
        let unsynced = files.into_iter().filter(|path| lost(path));
        let account = Account {
            unsynced: unsynced.map(|path| (PathBuf::from(path), synced(path))).collect(),
            names: files.into_iter().filter(is_name_lost).map(PathBuf::from).collect(),
            injection: self.armed.injection(),
            acks_before: self.acks_before.map(|(_, acks)| acks),
            steps: notes.steps.finish(),
        };
        // A child that can't speak is a child whose trial says nothing.
        let mut tell = self.tell;
        let _ = tell.write_all(&serde_json::to_vec(&account).unwrap_or_default());
    }
}

impl Notes {
    fn path(&self, file: FileId) -> PathBuf {
        self.open.get(file.0).map(|(path, _)| path.clone()).unwrap_or_default()
    }

    fn position(&self, file: FileId) -> u64 {
        self.open.get(file.0).map_or(0, |(_, position)| *position)
    }

    fn opened(&mut self, file: FileId, path: &Path, how: Open) {
        let end = || std::fs::metadata(path).map_or(0, |found| found.len());
        let position = if how == Open::Append { end() } else { 0 };
        if let (Open::Append, Some(unsynced), Some(key)) = (how, &mut self.unsynced, key(path)) {
            // What was there before is on disk.
            unsynced.meet(key, || bytes(path));
        }
        self.open.resize(self.open.len().max(file.0 + 1), (PathBuf::new(), 0));
        self.open[file.0] = (plain(path), position);
    }

    /// Follows what is on disk.
    fn track(&mut self, call: Call, effect: &Effect, result: i64, action: Action) {
        let Some(unsynced) = &mut self.unsynced else { return };
        let path = match effect {
            Effect::Rename { .. } | Effect::Unlink { .. } => Path::new(HERE),
            other if other.path().as_os_str().is_empty() => Path::new(HERE),
            other => other.path(),
        };
        if let Some(file) = key(path) {
            let made = Made { call, effect, result, action, synchronous: false };
            unsynced.called(&made, &About { file, content: &|| bytes(path), all: &Vec::new });
        }
    }
}

/// A path as it is shown: without the `./` before it.
fn plain(path: &Path) -> PathBuf {
    path.strip_prefix(HERE).unwrap_or(path).to_owned()
}

impl Storage for ArmedStorage<'_> {
    fn open(&mut self, path: &Path, how: Open) -> io::Result<FileId> {
        let opened = if how == Open::Directory {
            self.disk.open(path, how)?
        } else {
            let effect = |_: &Notes| {
                let truncate = how == Open::Truncate;
                Effect::Open { path: plain(path), create: true, truncate }
            };
            self.gate(Call::Open, 0, effect, |disk, _| disk.open(path, how), |_| 0)?
        };
        if let Some(notes) = &mut self.notes {
            notes.opened(opened, path, how);
        }
        Ok(opened)
    }

    fn write(&mut self, file: FileId, bytes: &[u8]) -> io::Result<usize> {
        let effect = |notes: &Notes| Effect::Write {
            path: notes.path(file),
            offset: ByteOffset(notes.position(file)),
            data: Vec::new(),
        };
        let told = self.notes.is_some();
        let write = |disk: &mut Disk, keep: usize| {
            // A kernel that is to take some bytes takes them all, unless the disk is full: what is
            // left is only delayed.
            let mut done = 0;
            while done < keep {
                done += disk.write(file, &bytes[done..keep])?;
                if told {
                    break;
                }
            }
            Ok(done)
        };
        let written = self.gate(Call::Write, bytes.len(), effect, write, |count| *count)?;
        if let Some(notes) = &mut self.notes
            && let Some((_, position)) = notes.open.get_mut(file.0)
        {
            *position += written as u64;
        }
        Ok(written)
    }

    fn truncate(&mut self, file: FileId, length: u64) -> io::Result<()> {
        let effect =
            |notes: &Notes| Effect::Truncate { path: notes.path(file), length: ByteOffset(length) };
        self.gate(Call::Truncate, 0, effect, |disk, _| disk.truncate(file, length), |()| 0)
    }

    fn fsync(&mut self, file: FileId) -> io::Result<()> {
        let effect = |notes: &Notes| Effect::Sync { path: notes.path(file) };
        self.gate(Call::Fsync, 0, effect, |disk, _| disk.fsync(file), |()| 0)
    }

    fn close(&mut self, file: FileId) -> io::Result<()> {
        let effect = |notes: &Notes| Effect::Close { path: notes.path(file) };
        self.gate(Call::Close, 0, effect, |disk, _| disk.close(file), |()| 0)
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let effect =
            |_: &Notes| Effect::Rename { from: plain(from), to: plain(to), exchange: false };
        self.gate(Call::Rename, 0, effect, |disk, _| disk.rename(from, to), |()| 0)
    }

    fn unlink(&mut self, path: &Path) -> io::Result<()> {
        let effect = |_: &Notes| Effect::Unlink { path: plain(path) };
        self.gate(Call::Unlink, 0, effect, |disk, _| disk.unlink(path), |()| 0)
    }

    fn make_directory(&mut self, path: &Path) -> io::Result<()> {
        let effect = |_: &Notes| Effect::Directory { path: plain(path) };
        self.gate(Call::Mkdir, 0, effect, |disk, _| disk.make_directory(path), |()| 0)
    }

    fn try_lock(&mut self, file: FileId) -> io::Result<bool> {
        self.disk.try_lock(file)
    }

    fn list(&mut self, directory: &Path) -> io::Result<Vec<OsString>> {
        self.disk.list(directory)
    }
}

/// Says one byte.
pub fn tell_byte(mut tell: &PipeWriter, byte: u8) {
    // A child that can't speak is a child whose trial says nothing: the parent sees no strike.
    let _ = tell.write_all(&[byte]);
}
