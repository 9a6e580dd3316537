//! From a trace to the versions that a state goes through: see `history` for what a version is.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::history::{AfterFailure, History, Order, Reference, Repeats, States, is_json};
use crate::lengths::Lengths;
use crate::model::{Files, NotModelled};
use crate::op::{Effect, Op, Trace};

/// A moment at which the state may have been a version.
struct Moment {
    states: States,
    /// Whether only a program that means it gets here: an ack, a rename, the end.
    deliberate: bool,
    /// Whether the file was written on after it had got its name.
    torn: bool,
    /// How many ops had been done.
    done: usize,
}

/// Why a moment may be a version.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// A file was closed.
    Closed,
    /// A file was renamed or linked to its place.
    Renamed,
    /// An ack, the beginning, the end.
    Meant,
}

/// Goes through a trace.
pub struct Learner<'a> {
    files: Files,
    is_state: &'a dyn Fn(&Path) -> bool,
    moments: Vec<Moment>,
    /// For each ack, the moment it stands for.
    acked: Vec<usize>,
    /// State files that were changed since the last moment.
    changed: BTreeSet<PathBuf>,
    /// How many ops have been done.
    done: usize,
    /// State files that were empty at some moment.
    begun: BTreeSet<PathBuf>,
    /// Those that were closed empty before anything was in them.
    touched: BTreeSet<PathBuf>,
    /// Those of them that were not opened since.
    closed_empty: BTreeSet<PathBuf>,
    /// Those that were opened to be written from the beginning.
    rewritten: BTreeSet<PathBuf>,
    /// How often each file is open.
    open: HashMap<PathBuf, usize>,
    /// Files that got their name while they were open, and the moment of that.
    unfinished: HashMap<PathBuf, usize>,
}

impl<'a> Learner<'a> {
    /// Begins with the files that were there before the run.
    pub fn new(files: Files, is_state: &'a dyn Fn(&Path) -> bool) -> Self {
        let changed = files.paths().filter(|path| is_state(path)).map(Path::to_owned).collect();
        let mut learner = Self {
            files,
            is_state,
            moments: Vec::new(),
            acked: Vec::new(),
            changed,
            done: 0,
            begun: BTreeSet::new(),
            touched: BTreeSet::new(),
            closed_empty: BTreeSet::new(),
            rewritten: BTreeSet::new(),
            open: HashMap::new(),
            unfinished: HashMap::new(),
        };
        learner.refresh(Why::Meant);
        learner
    }

    /// Hears the acks that were given when so many ops had been done.
    pub fn acks_up_to(&mut self, trace: &Trace, done: usize) {
        while self.acked.len() < trace.acks.len() && trace.acks[self.acked.len()] <= done {
            self.moment();
            self.acked.push(self.moments.len() - 1);
        }
    }

    /// Does an op.
    pub fn op(&mut self, op: &Op) -> Result<(), NotModelled> {
        self.files.apply(op)?;
        self.done += 1;
        if !op.succeeded() {
            return Ok(());
        }
        let published = match &op.effect {
            Effect::Rename { from, to, .. } => {
                self.changed_below(from);
                self.changed_below(to)
            }
            Effect::Link { to: path, .. } | Effect::Symlink { path, .. } => {
                self.changed_below(path)
            }
            other => {
                self.changed_as(other.path());
                false
            }
        };
        self.note_begun(&op.effect);
        let moments = self.moments.len();
        if published {
            self.refresh(Why::Renamed);
        }
        let fresh = self.moments.len() > moments;
        let finished = self.follow_open(&op.effect, fresh);
        if let Effect::Close { path } = &op.effect
            && self.names_state(path)
        {
            self.refresh(if finished { Why::Meant } else { Why::Closed });
        }
        Ok(())
    }

    /// Notes a state file that is empty now, or that is to be written from the beginning.
    fn note_begun(&mut self, effect: &Effect) {
        let path = effect.path();
        if !(self.is_state)(path) {
            return;
        }
        match effect {
            Effect::Open { truncate, .. } => {
                if *truncate {
                    self.rewritten.insert(path.to_owned());
                }
                self.closed_empty.remove(path);
            }
            // It was closed under one number and written under another, as shells do.
            Effect::Write { .. } if self.closed_empty.remove(path) => {
                self.touched.remove(path);
            }
            _ => {}
        }
        if self.files.bytes(path).is_some_and(<[u8]>::is_empty) {
            self.begun.insert(path.to_owned());
            let held = |moment: &Moment| {
                moment.states.get(path).is_some_and(|reference| !reference.bytes.is_empty())
            };
            if matches!(effect, Effect::Close { .. }) && !self.moments.iter().any(held) {
                self.touched.insert(path.to_owned());
                self.closed_empty.insert(path.to_owned());
            }
        }
    }

    /// Follows which files are open. One that gets its name while it is open, and is written after
    /// that, was no version when it got it: what it holds when it is closed is. Says whether this is
    /// the close of such a file; `fresh` says whether this op has made a new moment.
    fn follow_open(&mut self, effect: &Effect, fresh: bool) -> bool {
        match effect {
            Effect::Open { path, .. } => *self.open.entry(path.clone()).or_default() += 1,
            Effect::Rename { from, to, exchange: false } => {
                self.unfinished.remove(to);
                self.open.remove(to);
                if let Some(count) = self.open.remove(from) {
                    self.open.insert(to.clone(), count);
                    if fresh {
                        self.unfinished.insert(to.clone(), self.moments.len() - 1);
                    }
                }
            }
            Effect::Write { path, .. } => {
                if let Some(moment) = self.unfinished.get(path)
                    && *moment > 0
                    && self.acked.binary_search(moment).is_err()
                {
                    self.moments[*moment].deliberate = false;
                    self.moments[*moment].torn = true;
                }
            }
            Effect::Close { path } => {
                if let Some(count) = self.open.get_mut(path) {
                    *count = count.saturating_sub(1);
                    if *count == 0 {
                        self.open.remove(path);
                        let moment = self.unfinished.remove(path);
                        return moment.is_some_and(|moment| self.moments[moment].torn);
                    }
                }
            }
            _ => {}
        }
        false
    }

    /// Notes that what `path` is a name of has changed, under all its names.
    fn changed_as(&mut self, path: &Path) {
        let names = self.files.names_of(path).chain([path]);
        let state: Vec<_> =
            names.filter(|name| (self.is_state)(name)).map(Path::to_owned).collect();
        self.changed.extend(state);
    }

    /// Notes that `path` leads to something else now, and all below it; says whether any of that is
    /// state.
    fn changed_below(&mut self, path: &Path) -> bool {
        let before = self.moments.last().map(|moment| moment.states.keys()).into_iter().flatten();
        let all = self.files.paths().chain(before.map(PathBuf::as_path)).chain([path]);
        let state: BTreeSet<_> = all
            .filter(|name| name.starts_with(path) && (self.is_state)(name))
            .map(Path::to_owned)
            .collect();
        let any = !state.is_empty();
        self.changed.extend(state);
        any
    }

    fn names_state(&self, path: &Path) -> bool {
        (self.is_state)(path) || self.files.names_of(path).any(|name| (self.is_state)(name))
    }

    /// The state may be a version now.
    pub fn moment(&mut self) {
        self.refresh(Why::Meant);
    }

    /// Adds a moment if the state differs from the last one.
    fn refresh(&mut self, why: Why) {
        if self.changed.is_empty() && why == Why::Closed {
            return;
        }
        let mut states = self.moments.last().map(|m| m.states.clone()).unwrap_or_default();
        let links = self.files.symlinks().filter(|path| (self.is_state)(path)).map(Path::to_owned);
        let changed: BTreeSet<_> =
            std::mem::take(&mut self.changed).into_iter().chain(links).collect();
        for path in changed {
            match self.files.bytes(&path) {
                Some(bytes) if states.get(&path).is_some_and(|old| old.bytes == bytes) => {}
                Some(bytes) => {
                    let reference = Reference { bytes: bytes.to_vec(), template: None };
                    states.insert(path, Arc::new(reference));
                }
                None => {
                    states.remove(&path);
                }
            }
        }
        let last = self.moments.last_mut();
        let deliberate = match why {
            Why::Closed => false,
            Why::Meant => true,
            // A file that is moved away to make room for the next one is soon there again.
            Why::Renamed => {
                let before = last.as_ref().map(|last| last.states.keys());
                before.into_iter().flatten().all(|path| states.contains_key(path))
            }
        };
        match last {
            Some(last) if last.states == states => last.deliberate |= deliberate,
            _ => self.moments.push(Moment { states, deliberate, torn: false, done: self.done }),
        }
    }

    /// Drops the moments that are no versions.
    pub fn finish(self) -> History {
        let json: BTreeSet<PathBuf> = self
            .moments
            .last()
            .map(|last| &last.states)
            .into_iter()
            .flatten()
            .filter(|(_, r)| is_json(&r.bytes))
            .map(|(path, _)| path.clone())
            .collect();
        let last = self.moments.len() - 1;
        let whole = |moment: &Moment| {
            moment.states.iter().all(|(path, r)| !json.contains(path) || is_json(&r.bytes))
        };
        let mut kept: Vec<bool> = Vec::new();
        let mut before: Option<&Moment> = None;
        for (n, moment) in self.moments.iter().enumerate() {
            // A file that is away for a moment, or not whole, makes no version of it by accident.
            let gone = before.is_some_and(|before| {
                before.states.keys().any(|path| !moment.states.contains_key(path))
            });
            let meant = moment.deliberate || (!json.is_empty() && !gone);
            let keep = n == 0 || n == last || (whole(moment) && meant && !moment.torn);
            if keep {
                before = Some(moment);
            }
            kept.push(keep);
        }
        // An ack of a moment that is no version stands for the version before it.
        let place: Vec<usize> = kept
            .iter()
            .scan(0, |count, kept| {
                *count += usize::from(*kept);
                Some(*count - 1)
            })
            .collect();
        let owed: Vec<usize> =
            std::iter::once(0).chain(self.acked.iter().map(|moment| place[*moment])).collect();
        let moments: Vec<_> =
            self.moments.into_iter().zip(kept).filter_map(|(m, kept)| kept.then_some(m)).collect();
        let since = moments.iter().map(|moment| moment.done).collect();
        let versions: Vec<_> = moments.into_iter().map(|moment| moment.states).collect();
        let owed = if owed.len() == versions.len() {
            // As many acks as saves: the nth promises the nth, even if it came too early, or too
            // late because its line waited in a buffer.
            (0..owed.len()).collect()
        } else {
            owed
        };
        History {
            versions,
            owed,
            said: HashMap::new(),
            run_acks: None,
            since,
            acked: Vec::new(),
            repeats: Repeats::Exactly,
            order: Order::Fixed,
            after_failure: AfterFailure::MayDiffer,
            begun: self.begun,
            starts_empty: BTreeSet::new(),
            lengths: Lengths::default(),
            undistinguished: BTreeSet::new(),
            loads: None,
        }
        .with_starts(&self.touched, &self.rewritten)
    }
}
