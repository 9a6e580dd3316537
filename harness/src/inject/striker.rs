//! The watcher of a trial: strikes where its fault is armed, and notes what came of it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::decode::{Asked, Detail, Scope};
use super::output::AckCounter;
use super::tracer::{Done, Unfollowed, Watcher};
use crate::armed::{Action, Armed, Follows};
use crate::error::{Context, Error, Result};
use crate::fault::{DiskFull, Fault, FaultKind, Injection};
use crate::file_system::Axis;
use crate::op::Effect;
use crate::os::ptrace::Stopped;
use crate::outcome::{InMemory, Step, Survivor};
use crate::steps::{self, Steps};
use crate::unsynced::{About, FileKey, Made, Unsynced};
use crate::volume::{Filled, Taker, Volume};

/// Strikes where it is armed.
pub struct Striker<'a> {
    scope: &'a Scope,
    armed: Armed,
    /// What is written down, if anything is.
    steps: Option<Steps>,
    unsynced: Option<Unsynced>,
    detail: Detail,
    follows: Follows,
    /// Counts acks, and how many are enough, of a program that does not end by itself.
    until: Option<(AckCounter, u64)>,
    /// The disk that runs full, and how.
    disk: Option<(&'a Volume, DiskFull)>,
    /// Takes what is freed on it, if that is asked for.
    taker: Option<Taker<'a>>,
    /// What went wrong with the disk.
    pub failed: Option<Error>,
    /// How far it was filled.
    pub filled: Filled,
    /// How many parts of it have struck, and how many acks had come before the last of them.
    acks_before: Option<(u32, u64)>,
}

impl<'a> Striker<'a> {
    /// Arms `fault`; with `narrate`, writes down what the subject does from the strike on.
    #[must_use]
    pub fn new(fault: &Fault, scope: &'a Scope, volume: Option<&'a Volume>, narrate: bool) -> Self {
        let armed = Armed::new(fault);
        let loses = fault.can_lose_pages();
        // What runs out is seen by what calls return.
        let narrate = narrate || fault.kind() == FaultKind::DiskFull;
        let follows = if loses || narrate { Follows::All } else { armed.follows() };
        let detail = match (loses, fault.asks_whether_to_wait()) {
            (true, _) => Detail::All,
            (false, true) => Detail::Flags,
            (false, false) => Detail::Place,
        };
        Self {
            scope,
            armed,
            steps: narrate.then(Steps::default),
            unsynced: loses.then(Unsynced::default),
            detail,
            follows,
            until: None,
            disk: match (volume, fault) {
                (Some(volume), Fault::DiskFull(full)) => Some((volume, full.clone())),
                _ => None,
            },
            taker: None,
            failed: None,
            filled: Filled::ToThat,
            acks_before: None,
        }
    }

    /// Ends the run, of a program that does not end by itself, when so many acks have come.
    pub fn until(&mut self, counter: AckCounter, acks: u64) {
        self.until = Some((counter, acks));
        // To see what it prints, and when.
        self.steps.get_or_insert_default();
        self.follows = Follows::All;
    }

    /// Which calls it must see.
    #[must_use]
    pub fn follows(&self) -> Follows {
        self.follows
    }

    /// What the fault met.
    #[must_use]
    pub fn injection(&self) -> Injection {
        self.armed.injection()
    }

    /// How many acks had come when the last part of the fault struck, if one has.
    #[must_use]
    pub fn acks_before(&self) -> Option<u64> {
        self.acks_before.map(|(_, acks)| acks)
    }

    /// What the subject did.
    pub fn steps(&mut self) -> Vec<Step> {
        self.steps.take().map(Steps::finish).unwrap_or_default()
    }

    /// Of which state files a failed fsync has left bytes, or names, in memory only; and what then is
    /// on disk.
    #[must_use]
    pub fn unsynced(&self, survivor: &Survivor) -> InMemory {
        let mut found = InMemory::default();
        let Some(unsynced) = &self.unsynced else { return found };
        // What a sandbox redirects has another place here.
        for path in survivor.files.keys().filter(|path| path.is_relative()) {
            let place = self.scope.root.join(path);
            if let Some(file) = key(&place)
                && unsynced.is_lost(file, || bytes(&place))
            {
                found.bytes.insert(path.clone(), unsynced.on_disk(file, &bytes(&place)));
            }
            if let (Some(directory), Some(name)) = (place.parent().and_then(key), place.file_name())
                && unsynced.is_name_lost(directory, name)
            {
                found.names.insert(path.clone());
            }
        }
        found
    }

    /// Where the file is that a call is about, as we can open it; for a change of names, the
    /// directory that has them.
    fn place(&self, asked: &Asked, thread: &Stopped) -> Option<PathBuf> {
        let named = |path: &Path| path.is_relative().then(|| self.scope.root.join(path));
        match (asked.file, &asked.effect) {
            (Some(file), _) => Some(PathBuf::from(format!("/proc/{}/fd/{file}", thread.tid()))),
            (None, Effect::Rename { .. } | Effect::Link { .. } | Effect::Unlink { .. }) => {
                named(asked.effect.path().parent().unwrap_or(Path::new("")))
            }
            (None, effect) => named(effect.path()),
        }
    }

    /// Takes down what a file holds before it is changed for the first time.
    fn meet(&mut self, asked: &Asked, thread: &Stopped) {
        let changes = matches!(asked.effect, Effect::Write { .. } | Effect::Truncate { .. });
        if !changes || self.unsynced.is_none() {
            return;
        }
        let place = self.place(asked, thread);
        if let (Some(place), Some(unsynced)) = (place, &mut self.unsynced)
            && let Some(file) = key(&place)
        {
            unsynced.meet(file, || bytes(&place));
        }
    }

    /// Follows what is on disk.
    fn track(&mut self, done: &Done<'_>) {
        if self.unsynced.is_none() {
            return;
        }
        let (place, root) = (self.place(&done.asked, done.thread), &self.scope.root);
        if let (Some(place), Some(unsynced)) = (place, &mut self.unsynced)
            && let Some(file) = key(&place)
        {
            let made = Made {
                call: done.asked.call,
                effect: &done.asked.effect,
                result: done.result,
                action: done.action,
                synchronous: done.asked.synchronous(),
            };
            let all = || files_below(root);
            unsynced.called(&made, &About { file, content: &|| bytes(&place), all: &all });
        }
    }
}

impl Watcher for Striker<'_> {
    fn begun(&mut self) -> Result<()> {
        // Not earlier: a sandbox takes space of its own, and it is no part of the program.
        if let Some((volume, full)) = &self.disk {
            self.filled = volume.fill(full.axis, full.free)?;
            if full.axis == Axis::Taken {
                self.taker = Some(Taker::on(volume).context("ask how much space is free")?);
            }
        }
        Ok(())
    }

    fn asked(&mut self, asked: &Asked, thread: &Stopped) -> Action {
        self.meet(asked, thread);
        let action = self.armed.decide(&asked.shown(), || steps::shown_path(&asked.effect));
        if action == Action::KillBefore
            && let Some(steps) = &mut self.steps
        {
            steps.called(steps::call(asked.call, &asked.effect, asked.length), None, false);
            steps.push(Step::Said("(killed here)".to_owned()));
        }
        action
    }

    fn wants_acks(&self) -> bool {
        let parts = self.armed.parts_struck();
        parts > self.acks_before.map_or(0, |(parts, _)| parts)
    }

    fn acked_before(&mut self, acks: u64) {
        self.acks_before = Some((self.armed.parts_struck(), acks));
    }

    fn wants_results(&self) -> bool {
        self.steps.is_some() || self.unsynced.is_some()
    }

    fn detail(&self) -> Detail {
        self.detail
    }

    fn done(&mut self, done: Done<'_>) {
        let asked = &done.asked;
        self.armed.returned(&asked.shown(), done.result, || steps::shown_path(&asked.effect));
        self.track(&done);
        if let Some(taker) = &mut self.taker {
            self.failed = taker.take().context("take the space that was freed").err();
        }
        if self.armed.has_begun()
            && let Some(steps) = &mut self.steps
        {
            let what = steps::call(asked.call, &asked.effect, asked.length);
            steps.called(what, Some(done.result), done.action != Action::Pass);
        }
    }

    fn prints(&mut self, bytes: &[u8]) {
        if let Some((counter, _)) = &mut self.until {
            counter.feed(bytes);
        }
        if self.armed.has_begun()
            && let Some(steps) = &mut self.steps
        {
            steps.said(bytes);
        }
    }

    fn unfollowed(&mut self, _what: Unfollowed) {}

    fn enough(&self) -> bool {
        self.failed.is_some()
            || self.until.as_ref().is_some_and(|(counter, acks)| counter.acks() >= *acks)
    }
}

/// The bytes of a file; none if it can't be read, or is no file.
#[must_use]
pub fn bytes(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_default()
}

/// All regular files below a directory, and their bytes.
fn files_below(directory: &Path) -> Vec<(FileKey, Vec<u8>)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let found = entries.flat_map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => files_below(&entry.path()),
        Ok(kind) if kind.is_file() => {
            let path = entry.path();
            key(&path).map(|file| (file, bytes(&path))).into_iter().collect()
        }
        _ => Vec::new(),
    });
    found.collect()
}

/// Which file a path leads to.
#[must_use]
pub fn key(path: &Path) -> Option<FileKey> {
    let found = fs::metadata(path).ok()?;
    let born = found.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
    Some(FileKey {
        device: found.dev(),
        inode: found.ino(),
        born_ns: born.map_or(0, |born| born.as_nanos()),
        directory: found.is_dir(),
    })
}
