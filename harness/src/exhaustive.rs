//! Every state that a kill can leave, derived from one recording.
//!
//! The page cache survives a kill: all ops that were done stay done, and a write that is cut has
//! put its first bytes into the file and no others. So there is a state for each op boundary and
//! for each byte of each write. The state file's fingerprint changes by one term from one to the
//! next, and is looked up among those of the versions: a million states take a million steps,
//! and bytes are only looked at where the fingerprint is of no version.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::fault::{self, Fault, Injection, Nature, Point, Strike, Struck};
use crate::history::History;
use crate::model::{Files, Node, NotModelled};
use crate::op::{ByteOffset, Call, Effect, Op, OpIndex, Trace};
use crate::oracle;
use crate::outcome::{Content, Exit, Outcome, Survivor};
use crate::plan::PAGE_BYTES;
use crate::power::fingerprint::{Fingerprint, Weight};
use crate::tally::Tally;
use crate::verdict::{Promise, Verdict, ViolationKind};

/// What all states of a recording have shown.
#[derive(Clone, Debug, Default)]
pub struct Exhausted {
    /// How many states there are.
    pub states: u64,
    /// The verdicts, by state.
    pub tally: Tally,
    /// Where promises break, and where they hold, one place of each stretch of equal states.
    pub places: Vec<Place>,
}

/// A stretch of states with the same verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The first of them.
    pub strike: Strike,
    /// The last byte of the op up to which they are the same; of a boundary, 0.
    pub until: u64,
    /// What is broken.
    pub broken: Vec<ViolationKind>,
}

/// So many states, one after the other, that are worth the same: what is kept of them for the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// Where the first of them is.
    pub at: fault::Place,
    /// How many there are; the others follow byte by byte.
    pub states: u64,
    /// The most fundamental violation, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broken: Option<ViolationKind>,
}

/// How many stretches are kept of a subject: a state that breaks another promise at each byte would make the plan
/// larger than the outcomes.
const STRETCHES_MAX: usize = 50_000;

impl Stretch {
    /// The places of its states.
    pub fn places(self) -> impl Iterator<Item = fault::Place> {
        (0..self.states).map(move |more| match self.at {
            fault::Place::Op(op, Point::Inside(ByteOffset(byte))) => {
                fault::Place::Op(op, Point::Inside(ByteOffset(byte + more)))
            }
            other => other,
        })
    }

    /// Whether the state after its last one is there.
    fn goes_on_at(&self, at: fault::Place) -> bool {
        match (self.at, at) {
            (
                fault::Place::Op(op, Point::Inside(ByteOffset(first))),
                fault::Place::Op(other, Point::Inside(ByteOffset(next))),
            ) => op == other && first + self.states == next,
            _ => false,
        }
    }
}

impl Exhausted {
    /// All states in their order; none if they are too many to be kept.
    #[must_use]
    pub fn stretches(&self) -> Vec<Stretch> {
        let mut stretches: Vec<Stretch> = Vec::new();
        for Place { strike, until, broken } in &self.places {
            let (at, broken) = (fault::Place::Op(strike.op, strike.point), broken.first().copied());
            let states = match strike.point {
                Point::Inside(ByteOffset(first)) => until - first + 1,
                Point::Before | Point::After => 1,
            };
            match stretches.last_mut() {
                Some(last) if last.broken == broken && last.goes_on_at(at) => last.states += states,
                _ => stretches.push(Stretch { at, states, broken }),
            }
        }
        if stretches.len() > STRETCHES_MAX {
            stretches.clear();
        }
        stretches
    }
}

/// How many bytes are looked at, in all looks together, to tell one kind of damage from another; after
/// that, what the look before has shown is taken for granted.
const LOOKED_AT_MAX: usize = 64 << 20;

/// Judges every state of a recording by these promises.
pub fn exhaust(
    trace: &Trace,
    before: &Files,
    history: &History,
    promises: &BTreeSet<Promise>,
    settled: &dyn Fn(Survivor) -> Survivor,
) -> Result<Exhausted, NotModelled> {
    let mut all = All::new(trace, before, history, promises, settled);
    for index in 0..trace.ops.len() {
        all.boundary(index);
        all.inside(index);
        let op = &trace.ops[index];
        all.files.apply(op)?;
        all.refresh(op);
        all.done = index + 1;
    }
    all.boundary(trace.ops.len());
    Ok(all.exhausted)
}

/// The first op that two recordings of a subject do not share, if there is one.
///
/// What is written may differ (a time, a number), and so may the names of files that are no state;
/// what is done, to which state file, where and of what length may not.
#[must_use]
pub fn first_difference(
    one: &Trace,
    other: &Trace,
    is_state: &dyn Fn(&Path) -> bool,
) -> Option<usize> {
    let alike = |a: &Op, b: &Op| {
        let (mine, theirs) = (a.effect.path(), b.effect.path());
        let paths = mine == theirs || (!is_state(mine) && !is_state(theirs));
        let shape = match (&a.effect, &b.effect) {
            (Effect::Write { offset, data, .. }, Effect::Write { offset: at, data: bytes, .. }) => {
                offset == at && data.len() == bytes.len()
            }
            (Effect::Truncate { length, .. }, Effect::Truncate { length: other, .. }) => {
                length == other
            }
            _ => true,
        };
        a.call == b.call && a.succeeded() == b.succeeded() && paths && shape
    };
    let differs = one.ops.iter().zip(&other.ops).position(|(a, b)| !alike(a, b));
    let shorter = one.ops.len().min(other.ops.len());
    differs.or((one.ops.len() != other.ops.len() || one.acks != other.acks).then_some(shorter))
}

/// The files that are left when a run is struck there.
pub fn derived(trace: &Trace, before: &Files, strike: &Strike) -> Result<Files, NotModelled> {
    let mut files = before.clone();
    for op in trace.ops.iter().take(strike.op.0) {
        files.apply(op)?;
    }
    if let Some(op) = trace.ops.get(strike.op.0) {
        match strike.point {
            Point::Before => {}
            Point::Inside(ByteOffset(byte)) => {
                files.apply_cut(op, usize::try_from(byte).unwrap_or(usize::MAX))?;
            }
            Point::After => files.apply(op)?,
        }
    }
    Ok(files)
}

/// One state file on the way through the recording.
struct Watched {
    path: PathBuf,
    /// The newest version with this length and fingerprint; `None` stands for a missing file.
    versions: HashMap<Option<(u64, Fingerprint)>, usize>,
    now: Option<(u64, Fingerprint)>,
    /// What the path leads to.
    inode: Option<usize>,
}

impl Watched {
    /// Whether it is a version that is not older than what is owed. Of a missing file it depends on
    /// the moment whether it may be missing.
    fn is_good(&self, owed: usize) -> bool {
        self.now.is_some() && self.versions.get(&self.now).is_some_and(|found| *found >= owed)
    }
}

struct All<'a> {
    trace: &'a Trace,
    history: &'a History,
    promises: &'a BTreeSet<Promise>,
    files: Files,
    watched: Vec<Watched>,
    /// What is owed after each number of acks.
    owed_by_acks: Vec<usize>,
    /// How many ops have been done.
    done: usize,
    /// How many bytes were looked at.
    looked_at: usize,
    /// What the last look has shown.
    last_look: Vec<ViolationKind>,
    /// What the subject's load makes of a survivor: see `Prepared::settled`.
    settled: &'a dyn Fn(Survivor) -> Survivor,
    exhausted: Exhausted,
}

impl<'a> All<'a> {
    fn new(
        trace: &'a Trace,
        before: &Files,
        history: &'a History,
        promises: &'a BTreeSet<Promise>,
        settled: &'a dyn Fn(Survivor) -> Survivor,
    ) -> Self {
        let watch = |path: &PathBuf| {
            let versions = history.versions.iter().enumerate().map(|(number, version)| {
                let seen = version.get(path).map(|reference| {
                    let bytes = &reference.bytes;
                    (bytes.len() as u64, Fingerprint::of(0, bytes))
                });
                (seen, number)
            });
            Watched { path: path.clone(), versions: versions.collect(), now: None, inode: None }
        };
        let watched = history.files().into_iter().map(watch).collect();
        let mut all = Self {
            trace,
            history,
            promises,
            files: before.clone(),
            watched,
            owed_by_acks: history.owed_by_acks(trace.acks.len(), &trace.said),
            done: 0,
            looked_at: 0,
            last_look: Vec::new(),
            settled,
            exhausted: Exhausted::default(),
        };
        for index in 0..all.watched.len() {
            let inode = all.inode_of(&all.watched[index].path);
            let watched = &mut all.watched[index];
            (watched.inode, watched.now) = (inode, seen(&all.files, &watched.path));
        }
        all
    }

    /// Looks again at the state files that an op may have changed.
    fn refresh(&mut self, op: &Op) {
        let changes = match op.effect {
            Effect::Close { .. } | Effect::Sync { .. } => false,
            // What a write changes was followed byte by byte.
            Effect::Write { .. } => op.call == Call::Store,
            Effect::Open { truncate, .. } => truncate,
            _ => true,
        };
        for index in 0..self.watched.len() {
            // A name that leads where it led holds what it held, unless that was changed.
            let inode = self.inode_of(&self.watched[index].path);
            let moved = inode != self.watched[index].inode;
            if moved || (changes && self.is_about(index, op)) {
                let watched = &mut self.watched[index];
                (watched.inode, watched.now) = (inode, seen(&self.files, &watched.path));
            }
        }
    }

    /// What a path leads to.
    fn inode_of(&self, path: &Path) -> Option<usize> {
        self.files.target(path).and_then(|path| self.files.inode_number(&path))
    }

    /// Whether an op is about what a state file's path leads to.
    fn is_about(&self, index: usize, op: &Op) -> bool {
        let inode = self.inode_of(&self.watched[index].path);
        inode.is_some() && inode == self.files.inode_number(op.effect.path())
    }

    /// The acks that were given by now.
    fn acks(&self) -> usize {
        self.trace.acks.partition_point(|ops| *ops <= self.done)
    }

    fn owed(&self, acks: usize) -> usize {
        self.owed_by_acks.get(acks).copied().unwrap_or(0)
    }

    /// The state between two ops.
    fn boundary(&mut self, index: usize) {
        let (strike, acks) = match self.trace.ops.get(index) {
            Some(op) => (strike(index, op, Point::Before), self.acks()),
            None => match self.trace.ops.last() {
                Some(op) => (strike(index - 1, op, Point::After), self.acks()),
                None => return,
            },
        };
        let broken = if self.all_known(acks) { Vec::new() } else { self.look(&strike, acks) };
        self.exhausted.states += 1;
        self.exhausted.tally.enter_as(&broken, Nature::Natural, 1);
        self.exhausted.places.push(Place { strike, until: 0, broken });
    }

    /// Whether all state files are versions that are not older than what is owed.
    fn all_known(&self, acks: usize) -> bool {
        let owed = self.owed(acks);
        self.watched.iter().all(|watched| watched.is_good(owed))
    }

    /// The states inside a write, byte by byte; at the end, what the state file is after it.
    fn inside(&mut self, index: usize) {
        let op = &self.trace.ops[index];
        let Effect::Write { offset, data, .. } = &op.effect else { return };
        if op.call == Call::Store {
            // Pages change one store at a time; no call is cut.
            return;
        }
        let length = op.written() as u64;
        let acks = self.acks();
        let about: Vec<usize> =
            (0..self.watched.len()).filter(|watched| self.is_about(*watched, op)).collect();
        let Some(first) = about.first().copied() else {
            // Nothing changes for any state file.
            if length > 1 {
                let cut = strike(index, op, Point::Inside(ByteOffset(1)));
                let broken = if self.all_known(acks) { Vec::new() } else { self.look(&cut, acks) };
                let natural = (offset.0 + length - 1) / PAGE_BYTES - offset.0 / PAGE_BYTES;
                self.stretch(cut, length - 1, broken, natural);
            }
            return;
        };
        let owed = self.owed(acks);
        let mut others = self.watched.iter().enumerate().filter(|(n, _)| !about.contains(n));
        let rest = others.all(|(_, watched)| watched.is_good(owed)) && about.len() == 1;
        let watched = &self.watched[first];
        let old = self.files.bytes(&watched.path).unwrap_or_default();
        let start = usize::try_from(offset.0).unwrap_or(usize::MAX);
        let (mut size, mut sum) = watched.now.unwrap_or_default();
        let mut weight = Weight::at(offset.0);
        // Stretches of cuts that are all of one version, or all of none.
        let mut stretches: Vec<(u64, u64, bool)> = Vec::new();
        for cut in 1..=length {
            let place = usize::try_from(cut - 1).unwrap_or(usize::MAX);
            let before = old.get(start.saturating_add(place)).copied().unwrap_or(0);
            sum.change(before, data[place], weight);
            weight = weight.next();
            size = size.max(offset.0 + cut);
            if cut == length {
                break;
            }
            let version = watched.versions.get(&Some((size, sum)));
            let good = rest && version.is_some_and(|version| *version >= owed);
            match stretches.last_mut() {
                Some((_, last, same)) if *same == good => *last = cut,
                _ => stretches.push((cut, cut, good)),
            }
        }
        for watched in about {
            self.watched[watched].now = Some((size, sum));
        }
        for (first, last, good) in stretches {
            self.cuts(index, (first, last), good, acks);
        }
    }

    /// Cuts of one op that are all of some version, or all of none: in the second case they are
    /// looked at, halved as long as both ends are not broken alike.
    fn cuts(&mut self, index: usize, (first, last): (u64, u64), good: bool, acks: usize) {
        let op = &self.trace.ops[index];
        let at = |byte: u64| strike(index, op, Point::Inside(ByteOffset(byte)));
        let Effect::Write { offset, .. } = &op.effect else { return };
        let pages = |byte: u64| (offset.0 + byte) / PAGE_BYTES;
        let natural = |first: u64, last: u64| pages(last) - pages(first - 1);
        if good {
            return self.stretch(at(first), last - first + 1, Vec::new(), natural(first, last));
        }
        let mut open = vec![(first, last)];
        while let Some((first, last)) = open.pop() {
            let (one, other) = (self.look(&at(first), acks), self.look(&at(last), acks));
            let enough = self.looked_at > LOOKED_AT_MAX;
            if one == other || enough {
                self.stretch(at(first), last - first + 1, one, natural(first, last));
            } else {
                let middle = first + (last - first) / 2;
                open.extend([(middle + 1, last), (first, middle)]);
            }
        }
    }

    fn stretch(&mut self, strike: Strike, states: u64, broken: Vec<ViolationKind>, natural: u64) {
        self.exhausted.states += states;
        self.exhausted.tally.enter_as(&broken, Nature::Natural, natural);
        self.exhausted.tally.enter_as(&broken, Nature::Forced, states - natural);
        let first = match strike.point {
            Point::Inside(ByteOffset(byte)) => byte,
            Point::Before | Point::After => 0,
        };
        self.exhausted.places.push(Place { strike, until: first + states - 1, broken });
    }

    /// Has the oracle look at the bytes of a state.
    fn look(&mut self, strike: &Strike, acks: usize) -> Vec<ViolationKind> {
        if self.looked_at > LOOKED_AT_MAX {
            return self.last_look.clone();
        }
        let mut survivor = survivor(&self.files, self.history);
        if let (Some(op), Point::Inside(ByteOffset(byte))) =
            (self.trace.ops.get(strike.op.0), strike.point)
        {
            self.cut(&mut survivor, op, usize::try_from(byte).unwrap_or(usize::MAX));
        }
        self.looked_at += survivor.size() + 1024;
        survivor = (self.settled)(survivor);
        let broken = broken(survivor, self.trace, self.history, self.promises, strike, acks);
        self.last_look.clone_from(&broken);
        broken
    }
}

impl All<'_> {
    /// Puts the first bytes of a write into the state files that it is about.
    fn cut(&self, survivor: &mut Survivor, op: &Op, keep: usize) {
        let Effect::Write { offset, data, .. } = &op.effect else { return };
        let from = usize::try_from(offset.0).unwrap_or(usize::MAX);
        for (index, watched) in self.watched.iter().enumerate() {
            if let Some(Content::Bytes(bytes)) = survivor.files.get_mut(&watched.path)
                && self.is_about(index, op)
            {
                let end = from + keep.min(data.len());
                bytes.resize(bytes.len().max(end), 0);
                bytes[from..end].copy_from_slice(&data[..end - from]);
            }
        }
    }
}

/// What is broken in a state.
fn broken(
    survivor: Survivor,
    trace: &Trace,
    history: &History,
    promises: &BTreeSet<Promise>,
    strike: &Strike,
    acks: usize,
) -> Vec<ViolationKind> {
    let said = trace.said[..acks.min(trace.said.len())].to_vec();
    let path = strike.path_in(trace);
    let outcome = Outcome {
        acks: acks as u64,
        said,
        survivor,
        ..Outcome::new(
            Fault::Kill(strike.clone()),
            Injection::At(Struck::Call { call: strike.call, path, point: strike.point }),
            Exit::Killed,
        )
    };
    match oracle::judge(&outcome, history, promises) {
        Verdict::Violated(violations) => violations.iter().map(|v| v.kind).collect(),
        Verdict::Pass | Verdict::Inconclusive(_) => Vec::new(),
    }
}

/// The state files of a tree.
#[must_use]
pub fn survivor(files: &Files, history: &History) -> Survivor {
    let mut survivor = Survivor::default();
    for path in history.files() {
        if let Some(bytes) = files.bytes(path) {
            survivor.files.insert(path.clone(), Content::Bytes(bytes.to_vec()));
        } else if let Some(Node::Directory) = files.get(path) {
            survivor.files.insert(path.clone(), Content::Other("a directory".to_owned()));
        }
    }
    survivor
}

fn seen(files: &Files, path: &Path) -> Option<(u64, Fingerprint)> {
    let bytes = files.bytes(path)?;
    Some((bytes.len() as u64, Fingerprint::of(0, bytes)))
}

/// A strike there.
fn strike(index: usize, op: &Op, point: Point) -> Strike {
    let nature = match (point, &op.effect) {
        (Point::Inside(ByteOffset(byte)), Effect::Write { offset, .. }) => {
            Nature::of_cut(offset.0 + byte)
        }
        _ => Nature::Natural,
    };
    Strike { op: OpIndex(index), call: op.call, nth: op.nth, point, nature }
}

impl Strike {
    /// The file that the op is about.
    fn path_in(&self, trace: &Trace) -> String {
        let op = trace.ops.get(self.op.0);
        op.map(|op| op.effect.path().to_string_lossy().into_owned()).unwrap_or_default()
    }
}
