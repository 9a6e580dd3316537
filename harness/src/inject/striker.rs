//! The watcher of a trial: strikes where its fault is armed, and notes what came of it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::decode::{Asked, Detail, Scope};
use super::output::AckCounter;
use super::tracer::{Done, Unfollowed, Watcher};
use crate::armed::{Action, Armed, Follows};
use crate::errno::{Errno, Shown, Way};
use crate::error::Result;
use crate::fault::{DiskFull, Fault, FaultKind, Injection, Point, Struck};
use crate::op::{ByteOffset, Call, Effect, Family};
use crate::os::ptrace::Stopped;
use crate::outcome::{Step, Survivor};
use crate::steps::{self, Steps};
use crate::unsynced::{FileKey, Unsynced};
use crate::volume::Volume;

/// Strikes where it is armed.
pub struct Striker<'a> {
    scope: &'a Scope,
    armed: Armed,
    kind: FaultKind,
    first: Option<Struck>,
    second: Option<Struck>,
    /// What is written down, if anything is.
    steps: Option<Steps>,
    unsynced: Option<Unsynced>,
    detail: Detail,
    follows: Follows,
    /// Counts acks, and how many are enough, of a program that does not end by itself.
    until: Option<(AckCounter, u64)>,
    /// The disk that runs full, and how.
    disk: Option<(&'a Volume, DiskFull)>,
}

impl<'a> Striker<'a> {
    /// Arms `fault`; with `narrate`, writes down what the subject does from the strike on.
    #[must_use]
    pub fn new(fault: &Fault, scope: &'a Scope, volume: Option<&'a Volume>, narrate: bool) -> Self {
        let armed = Armed::new(fault);
        let (mut loses, mut waits) = (false, false);
        if let Fault::Errno(failing) = fault {
            let sync = matches!(
                failing.family,
                Family::Fsync | Family::Fdatasync | Family::Sync | Family::Msync
            );
            loses = failing.second.is_some() || (sync && matches!(failing.way, Way::NotMade(_)));
            waits = failing.way == Way::NotMade(Errno::Eagain);
        }
        // What runs out is seen by what calls return.
        let narrate = narrate || fault.kind() == FaultKind::DiskFull;
        let follows = if loses || narrate { Follows::All } else { armed.follows() };
        let detail = match (loses, waits) {
            (true, _) => Detail::All,
            (false, true) => Detail::Flags,
            (false, false) => Detail::Place,
        };
        Self {
            scope,
            armed,
            kind: fault.kind(),
            first: None,
            second: None,
            steps: narrate.then(Steps::default),
            unsynced: loses.then(Unsynced::default),
            detail,
            follows,
            until: None,
            disk: match (volume, fault) {
                (Some(volume), Fault::DiskFull(full)) => Some((volume, full.clone())),
                _ => None,
            },
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
    pub fn injection(&mut self) -> Injection {
        match (self.first.take(), self.second.take()) {
            _ if !self.armed.has_struck() => Injection::NotReached,
            (Some(first), None) => Injection::At(first),
            (Some(first), Some(second)) => Injection::Both(first, second),
            (None, _) => Injection::NotReached,
        }
    }

    /// What the subject did.
    pub fn steps(&mut self) -> Vec<Step> {
        self.steps.take().map(Steps::finish).unwrap_or_default()
    }

    /// Of which state files a failed fsync has left bytes, or names, in memory only; and what then is
    /// on disk.
    #[must_use]
    pub fn unsynced(&self, survivor: &Survivor) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let Some(unsynced) = &self.unsynced else { return found };
        for path in survivor.files.keys() {
            let directory = path.parent().unwrap_or(Path::new(""));
            for path in [path.as_path(), directory] {
                let place = self.scope.root.join(path);
                let Some(file) = key(&place) else { continue };
                if unsynced.is_lost(file, || bytes(&place)) {
                    found.insert(path.to_owned(), unsynced.on_disk(file, &bytes(&place)));
                }
            }
        }
        found
    }

    fn strike(&mut self, asked: &Asked, action: Action) {
        let path = steps::shown_path(&asked.effect);
        let call = asked.call;
        let at = |point, path| Struck::Call { call, path, point };
        let struck = match (action, self.kind) {
            (Action::Pass, _) => return,
            (Action::KillBefore, _) => at(Point::Before, path),
            (Action::KillAfter, _) => at(Point::After, path),
            (Action::Cut { keep, .. }, FaultKind::Errno) => {
                Struck::Failed { call, path, result: i64::try_from(keep).unwrap_or(i64::MAX) }
            }
            (Action::Cut { keep, .. }, _) => at(Point::Inside(ByteOffset(keep as u64)), path),
            (Action::Fail(errno) | Action::FailAfter(errno), _) => {
                Struck::Failed { call, path, result: -i64::from(errno.number()) }
            }
        };
        if self.first.is_none() {
            self.first = Some(struck);
        } else if self.armed.has_struck() && self.second.is_none() && !self.only_repeats() {
            self.second = Some(struck);
        }
    }

    /// Whether all that comes after the first strike is the same again.
    fn only_repeats(&self) -> bool {
        matches!(self.armed.follows(), Follows::Family(_))
    }

    /// Follows what is on disk.
    fn track(&mut self, asked: &Asked, shown: &Shown, action: Action, thread: &Stopped) {
        let Some(unsynced) = &mut self.unsynced else { return };
        let path = match asked.file {
            Some(file) => PathBuf::from(format!("/proc/{}/fd/{file}", thread.tid())),
            None => self.scope.root.join(asked.effect.path()),
        };
        let Some(file) = key(&path) else { return };
        if matches!(asked.effect, Effect::Write { .. } | Effect::Truncate { .. }) {
            unsynced.meet(file, || bytes(&path));
        }
        match (&asked.effect, action) {
            (Effect::Write { offset, .. }, Action::Pass | Action::Cut { .. }) => {
                unsynced.write(file, offset.0, shown.length as u64);
            }
            (Effect::Open { truncate: true, .. }, Action::Pass) => unsynced.truncate(file, 0),
            (Effect::Truncate { length, .. }, Action::Pass) => unsynced.truncate(file, length.0),
            (Effect::Sync { .. }, Action::Fail(_)) => unsynced.failed(file),
            // sync_file_range promises nothing.
            (Effect::Sync { .. }, Action::Pass | Action::FailAfter(_))
                if asked.call != Call::SyncFileRange =>
            {
                unsynced.synced(file, || bytes(&path));
            }
            _ => {}
        }
    }
}

impl Watcher for Striker<'_> {
    fn begun(&mut self) -> Result<()> {
        // Not earlier: a sandbox takes space of its own, and it is no part of the program.
        match &self.disk {
            Some((volume, full)) => volume.fill(full.axis, full.free),
            None => Ok(()),
        }
    }

    fn asked(&mut self, asked: &Asked, thread: &Stopped) -> Action {
        let shown = asked.shown();
        let action = self.armed.decide(&shown);
        self.strike(asked, action);
        self.track(asked, &shown, action, thread);
        if action == Action::KillBefore
            && let Some(steps) = &mut self.steps
        {
            steps.called(steps::call(asked.call, &asked.effect, asked.length), None, false);
            steps.push(Step::Said("(killed here)".to_owned()));
        }
        action
    }

    fn wants_results(&self) -> bool {
        self.steps.is_some()
    }

    fn detail(&self) -> Detail {
        self.detail
    }

    fn done(&mut self, done: Done<'_>) {
        // The kernel may have taken fewer bytes than it was let.
        if let Some(Struck::Call { point: Point::Inside(byte), .. }) = &mut self.first
            && let Ok(count) = u64::try_from(done.result)
        {
            *byte = ByteOffset(count.min(byte.0));
        }
        let asked = &done.asked;
        if self.armed.returned(&asked.shown(), done.result) && self.first.is_none() {
            let path = steps::shown_path(&asked.effect);
            self.first = Some(Struck::Failed { call: asked.call, path, result: done.result });
        }
        if self.first.is_some()
            && let Some(steps) = &mut self.steps
        {
            let what = steps::call(asked.call, &asked.effect, asked.length);
            steps.called(what, Some(done.result), done.injected);
        }
    }

    fn prints(&mut self, bytes: &[u8]) {
        if let Some((counter, _)) = &mut self.until {
            counter.feed(bytes);
        }
        if self.first.is_some()
            && let Some(steps) = &mut self.steps
        {
            steps.said(bytes);
        }
    }

    fn unfollowed(&mut self, _what: Unfollowed) {}

    fn enough(&self) -> bool {
        self.until.as_ref().is_some_and(|(counter, acks)| counter.acks() >= *acks)
    }
}

/// The bytes of a file; none if it can't be read, or is no file.
#[must_use]
pub fn bytes(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_default()
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
