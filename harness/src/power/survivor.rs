//! From a crash state to bytes.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::contents::STALE_BYTE;
use super::names::NamesView;
use super::{Change, Content, Ino, Inode, Kind, Lane, Lowered, StepChange, Time};
use crate::outcome::{self, Survivor};

/// A crash state, as plain data. What it says follows from the recording and the profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CrashState {
    /// What was forced at or before this moment is there.
    pub barrier: u32,
    /// When the power went.
    pub moment: u32,
    /// The steps that are there and not forced.
    pub steps: Vec<u32>,
    /// The changes that are there and not forced, by inode.
    pub changes: Vec<(u32, Vec<u32>)>,
    /// Whether blocks without their data hold what was there before, and not zeros.
    pub stale: bool,
}

impl CrashState {
    /// The same disk at another moment, if that is later.
    #[must_use]
    pub fn at(&self, moment: crate::power::Time) -> Self {
        Self { moment: moment.0.max(self.moment), ..self.clone() }
    }

    /// Whether a recording has all that the set names.
    #[must_use]
    pub fn fits(&self, lowered: &Lowered) -> bool {
        let has = |ino: &u32, changes: &Vec<u32>| {
            lowered.inodes.get(*ino as usize).is_some_and(|inode| {
                changes.iter().all(|change| (*change as usize) < inode.changes.len())
            })
        };
        self.steps.iter().all(|step| (*step as usize) < lowered.steps.len())
            && self.changes.iter().all(|(ino, changes)| has(ino, changes))
    }

    /// Whether a step is in the set.
    #[must_use]
    pub fn has_step(&self, lowered: &Lowered, step: u32) -> bool {
        lowered.steps[step as usize].forced <= Time(self.barrier)
            || self.steps.binary_search(&step).is_ok()
    }

    /// Whether a change of an inode is in the set.
    #[must_use]
    pub fn has_change(&self, lowered: &Lowered, ino: Ino, change: u32) -> bool {
        let chosen = self.changes.iter().find(|(of, _)| *of == ino.0);
        lowered.inode(ino).changes[change as usize].forced <= Time(self.barrier)
            || chosen.is_some_and(|(_, chosen)| chosen.binary_search(&change).is_ok())
    }

    /// The names of the state.
    #[must_use]
    pub fn names(&self, lowered: &Lowered) -> NamesView {
        let mut names = NamesView::new(lowered);
        for step in 0..super::lower::count(lowered.steps.len()) {
            if self.has_step(lowered, step) {
                names.apply(lowered, step);
            }
        }
        names
    }

    /// What an inode holds.
    #[must_use]
    pub fn bytes(&self, lowered: &Lowered, ino: Ino) -> Vec<u8> {
        let inode = lowered.inode(ino);
        let mut file = Unfolding::new(inode);
        let mut resizes = inode.resizes.iter().filter(|step| self.has_step(lowered, **step));
        let mut next = resizes.next();
        let cut = |file: &mut Unfolding, step: u32| {
            let step = &lowered.steps[step as usize];
            if let StepChange::Resize { length, .. } = step.change {
                file.resize(inode, step.time, length);
            }
        };
        for (index, change) in inode.changes.iter().enumerate() {
            while let Some(step) = next.filter(|s| lowered.steps[**s as usize].time < change.time) {
                cut(&mut file, *step);
                next = resizes.next();
            }
            if self.has_change(lowered, ino, super::lower::count(index)) {
                file.change(lowered, inode, change);
            }
        }
        for step in next.into_iter().chain(resizes) {
            cut(&mut file, *step);
        }
        file.end(self.stale, inode)
    }

    /// The files that these paths lead to.
    #[must_use]
    pub fn survivor(&self, lowered: &Lowered, paths: &[PathBuf]) -> Survivor {
        let names = self.names(lowered);
        self.survivor_at(lowered, paths, |path| lowered.find(&names, path))
    }

    /// As [`CrashState::survivor`], when it is known where the paths lead.
    pub fn survivor_at(
        &self,
        lowered: &Lowered,
        paths: &[PathBuf],
        find: impl Fn(&Path) -> Option<Ino>,
    ) -> Survivor {
        let mut survivor = Survivor::default();
        for path in paths {
            let Some(ino) = find(path) else { continue };
            let content = match lowered.inode(ino).kind {
                Kind::File => outcome::Content::Bytes(self.bytes(lowered, ino)),
                Kind::Directory => outcome::Content::Other("a directory".to_owned()),
                Kind::Symlink(_) => outcome::Content::Other("a symbolic link".to_owned()),
            };
            survivor.files.insert(path.clone(), content);
        }
        survivor
    }

    /// The whole directory: the state files as they are, and other files with all that had
    /// happened to them, as far as the steps that are there allow.
    #[must_use]
    pub fn directory(&self, lowered: &Lowered) -> BTreeMap<PathBuf, Node> {
        self.directory_like(lowered, &mut Made::default())
    }

    /// As [`CrashState::directory`]; what was made for other states of the same recording is not made again.
    pub fn directory_like(&self, lowered: &Lowered, made: &mut Made) -> BTreeMap<PathBuf, Node> {
        let names = self.names(lowered);
        let mut node = |ino: Ino| match &lowered.inode(ino).kind {
            Kind::Directory => Node::Directory,
            Kind::Symlink(target) => Node::Symlink(target.clone()),
            Kind::File if self.changes.iter().any(|(of, _)| *of == ino.0) => {
                Node::File(made.bytes(self, lowered, ino))
            }
            Kind::File => Node::File(made.bytes(&self.with_all_of(lowered, ino), lowered, ino)),
        };
        names.all(lowered).into_iter().map(|(path, ino)| (path, node(ino))).collect()
    }

    /// This state with all changes of one inode that had happened and can be there.
    fn with_all_of(&self, lowered: &Lowered, ino: Ino) -> Self {
        let has = |step: Option<u32>| step.is_none_or(|step| self.has_step(lowered, step));
        let steps = 0..super::lower::count(lowered.steps.len());
        let missing = steps.clone().find(|step| !self.has_step(lowered, *step));
        let committed = |step: Option<u32>| {
            step.is_none_or(|step| missing.is_none_or(|missing| step < missing))
        };
        let changes = lowered.inode(ino).changes.iter().enumerate();
        let chosen = changes
            .filter(|(_, change)| change.time < Time(self.moment))
            .filter(|(_, change)| has(change.resize) && committed(change.commit))
            .map(|(index, _)| super::lower::count(index))
            .collect();
        let mut state = self.clone();
        state.changes.push((ino.0, chosen));
        state
    }
}

/// Contents of files that were made for crash states of one recording.
#[derive(Default)]
pub struct Made {
    known: HashMap<MadeOf, Vec<u8>>,
    size: usize,
}

/// What determines the bytes of a file.
#[derive(PartialEq, Eq, Hash)]
struct MadeOf {
    ino: Ino,
    stale: bool,
    changes: Vec<u32>,
    resizes: Vec<u32>,
}

/// How many bytes are kept to be used again.
const MADE_BYTES_MAX: usize = 64 << 20;

impl Made {
    fn bytes(&mut self, state: &CrashState, lowered: &Lowered, ino: Ino) -> Vec<u8> {
        let inode = lowered.inode(ino);
        let changes = 0..super::lower::count(inode.changes.len());
        let of = MadeOf {
            ino,
            stale: state.stale,
            changes: changes.filter(|n| state.has_change(lowered, ino, *n)).collect(),
            resizes: inode
                .resizes
                .iter()
                .copied()
                .filter(|n| state.has_step(lowered, *n))
                .collect(),
        };
        if let Some(bytes) = self.known.get(&of) {
            return bytes.clone();
        }
        let bytes = state.bytes(lowered, ino);
        self.size += bytes.len() + (of.changes.len() + of.resizes.len()) * size_of::<u32>();
        if self.size > MADE_BYTES_MAX {
            self.known.clear();
            self.size = 0;
        }
        self.known.insert(of, bytes.clone());
        bytes
    }
}

/// What a name in a survivor leads to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// A regular file.
    File(Vec<u8>),
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink(PathBuf),
}

/// A file to which one change after the other is done.
struct Unfolding {
    bytes: Vec<u8>,
    size: usize,
    sized_at: Time,
    /// For each lane: whether any of its bytes are there.
    there: Vec<bool>,
    /// For each lane: when all of it was last cut off.
    cut_at: Vec<Option<Time>>,
}

impl Unfolding {
    fn new(inode: &Inode) -> Self {
        let start = |lane: &Lane| lane.block * inode.block_bytes;
        Self {
            bytes: inode.first.clone(),
            size: inode.first.len(),
            sized_at: Time(0),
            there: inode.lanes.iter().map(|lane| lane.first_end > start(lane)).collect(),
            cut_at: vec![None; inode.lanes.len()],
        }
    }

    fn resize(&mut self, inode: &Inode, time: Time, length: u64) {
        for (index, lane) in inode.lanes.iter().enumerate() {
            if length <= lane.block * inode.block_bytes {
                (self.there[index], self.cut_at[index]) = (false, Some(time));
            }
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.bytes.truncate(length);
        (self.size, self.sized_at) = (length, time);
    }

    fn change(&mut self, lowered: &Lowered, inode: &Inode, change: &Change) {
        match change.what {
            Content::Size(size) => {
                self.size = usize::try_from(size).unwrap_or(usize::MAX);
                self.sized_at = change.time;
            }
            Content::Data { lane, piece } => {
                self.there[lane as usize] = true;
                let piece = &inode.lanes[lane as usize].pieces[piece as usize - 1];
                put(&mut self.bytes, piece.at, &lowered.data(piece));
            }
        }
    }

    fn end(mut self, stale: bool, inode: &Inode) -> Vec<u8> {
        self.bytes.resize(self.size, 0);
        for (index, lane) in inode.lanes.iter().enumerate().filter(|_| stale) {
            let start = lane.block * inode.block_bytes;
            let from = usize::try_from(start).unwrap_or(usize::MAX);
            let to = usize::try_from(start + inode.block_bytes).unwrap_or(usize::MAX);
            let to = to.min(self.size);
            if from < to && !self.there[index] && lane.is_due(self.cut_at[index], self.sized_at) {
                self.bytes[from..to].fill(STALE_BYTE);
            }
        }
        self.bytes
    }
}

/// The bytes of a block that has so many of its pieces, as they are in memory.
#[must_use]
pub fn block(lowered: &Lowered, inode: &Inode, lane: &Lane, pieces: usize) -> Vec<u8> {
    let start = lane.block * lowered.block_bytes;
    let from = usize::try_from(start).unwrap_or(0).min(inode.first.len());
    let to = usize::try_from(lane.first_end).unwrap_or(0).max(from);
    let mut bytes = inode.first[from..to].to_vec();
    let mut cuts = inode
        .resizes
        .iter()
        .map(|step| &lowered.steps[*step as usize])
        .filter_map(|step| match step.change {
            StepChange::Resize { length, cuts: true, .. } => Some((step.time, length)),
            _ => None,
        })
        .peekable();
    for piece in &lane.pieces[..pieces] {
        while let Some((_, length)) = cuts.next_if(|(time, _)| *time < piece.time) {
            bytes.truncate(usize::try_from(length.saturating_sub(start)).unwrap_or(usize::MAX));
        }
        put(&mut bytes, piece.at - start, &lowered.data(piece));
    }
    bytes
}

fn put(bytes: &mut Vec<u8>, at: u64, data: &[u8]) {
    let from = usize::try_from(at).unwrap_or(usize::MAX);
    let end = from + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[from..end].copy_from_slice(data);
}
