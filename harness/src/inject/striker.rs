//! The watcher of a trial: strikes where its fault is armed, and notes what came of it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::decode::{Asked, Detail, Scope};
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
            disk: match (volume, fault) {
                (Some(volume), Fault::DiskFull(full)) => Some((volume, full.clone())),
                _ => None,
            },
        }
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

    /// Of which state files a failed fsync has left bytes, or names, in memory only.
    #[must_use]
    pub fn unsynced(&self, survivor: &Survivor) -> Vec<PathBuf> {
        let Some(unsynced) = &self.unsynced else { return Vec::new() };
        let lost = |path: &Path| {
            key(&self.scope.root.join(path)).is_some_and(|file| unsynced.is_lost(file))
        };
        let mut names = Vec::new();
        for path in survivor.files.keys() {
            let directory = path.parent().unwrap_or(Path::new(""));
            names.extend([path.as_path(), directory].into_iter().filter(|path| lost(path)));
        }
        let mut names: Vec<_> = names.into_iter().map(Path::to_owned).collect();
        names.sort();
        names.dedup();
        names
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
        let open = |file: i32| key(Path::new(&format!("/proc/{}/fd/{file}", thread.tid())));
        let named = || key(&self.scope.root.join(asked.effect.path()));
        let Some(file) = asked.file.map_or_else(named, open) else { return };
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
                unsynced.synced(file);
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
        if self.first.is_some()
            && let Some(steps) = &mut self.steps
        {
            steps.said(bytes);
        }
    }

    fn unfollowed(&mut self, _what: Unfollowed) {}
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
