//! The contents that one inode can have: every legal set of its changes, for a given set of steps.

use std::collections::HashMap;

use super::fingerprint::Fingerprint;
use super::free::{Free, Way};
use super::profile::{Pushes, Unwritten};
use super::{Change, Content, Ino, Inode, Lane, Lowered, StepChange, Time};

/// What stands for the bytes that were on the disk before.
pub const STALE_BYTE: u8 = 0xa5;

/// What an inode holds, by a set of its changes.
#[derive(Clone, Debug)]
pub struct View {
    size: u64,
    /// When the size was set.
    sized_at: Time,
    sum: Fingerprint,
    /// For each lane: the number of its last piece, 0 for its first bytes.
    positions: Vec<u32>,
    /// For each lane: what lies at or behind this was cut off since that piece.
    limits: Vec<u64>,
    /// The cuts that are of account: when, and to what length. Later ones are to more, or the earlier
    /// would be of none.
    cuts: Vec<(Time, u64)>,
}

/// How to go back.
pub(super) enum Undo {
    Lane { lane: usize, position: u32, limit: u64, sum: Fingerprint },
    Size { size: u64, sized_at: Time, sum: Fingerprint },
}

/// One legal content.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// The content that has one change less.
    pub parent: u32,
    /// The change that it has more; `u32::MAX` for the first one.
    pub change: u32,
    /// The time of the last of its changes that are not forced.
    pub time: Time,
    /// Its size in bytes.
    pub size: u64,
    /// Its fingerprint, unwritten blocks being zeros.
    pub sum: Fingerprint,
    /// Its fingerprint if unwritten blocks hold what was there before.
    pub stale: Option<Fingerprint>,
}

/// All legal contents of an inode, or some.
#[derive(Clone, Debug)]
pub struct Tree {
    /// The inode.
    pub ino: Ino,
    /// What is not forced and yet in all of them.
    pub given: Vec<u32>,
    /// The contents; the first has nothing but what all have.
    pub nodes: Vec<Node>,
    /// Of a sample: the changes that each content has and that are not given.
    pub sets: Option<Vec<Vec<u32>>>,
    /// Whether these are all that there are.
    pub complete: bool,
}

/// Fingerprints of parts of blocks, and of stale blocks.
#[derive(Default)]
pub struct Cache {
    parts: HashMap<(Ino, u32, u32, u64), Fingerprint>,
    stale: HashMap<(u64, u64), Fingerprint>,
}

/// Where what is not forced of an inode begins.
#[derive(Clone, Copy, Debug, Default)]
pub struct FirstFree {
    /// Among its changes.
    pub changes: usize,
    /// Among the steps that set its length.
    pub resizes: usize,
}

/// Which micro-ops of an inode can be in a set.
pub struct Choice<'a> {
    /// The inode.
    pub at: At<'a>,
    /// Its content by what is forced.
    pub forced: &'a View,
    /// Where what is not forced begins.
    pub first_free: FirstFree,
    /// What is in the set of steps.
    pub has_step: &'a dyn Fn(u32) -> bool,
    /// Where names are kept in order: the first step that is not in the set.
    pub first_missing: u32,
    /// What is forced at or before this is in.
    pub barrier: Time,
    /// What happened at or after this is not.
    pub until: Time,
    /// Sizes from before the first of these are in, and all changes from before the second.
    pub pushed: (Time, Time),
}

impl View {
    /// The content at the start.
    #[must_use]
    pub fn new(inode: &Inode) -> Self {
        let sum = inode.lanes.iter().fold(Fingerprint::default(), |sum, lane| sum.plus(lane.first));
        Self {
            size: inode.first.len() as u64,
            sized_at: Time(0),
            sum,
            positions: vec![0; inode.lanes.len()],
            limits: vec![u64::MAX; inode.lanes.len()],
            cuts: Vec::new(),
        }
    }

    /// Sets the length, as a step of this time does.
    pub fn resize(&mut self, at: At<'_>, cache: &mut Cache, time: Time, length: u64, cuts: bool) {
        if cuts {
            self.cut(time, length);
            for (index, lane) in at.inode.lanes.iter().enumerate() {
                if time_of(lane, self.positions[index]) < time && length < self.limits[index] {
                    self.relimit(at, cache, index, length);
                }
            }
        }
        if time >= self.sized_at {
            self.set_size(at, cache, length, time);
        }
    }

    /// Notes a cut.
    fn cut(&mut self, time: Time, length: u64) {
        let place = self.cuts.partition_point(|(other, _)| *other <= time);
        if self.cuts.get(place).is_none_or(|(_, later)| *later > length) {
            let kept = self.cuts[..place].partition_point(|(_, earlier)| *earlier < length);
            self.cuts.splice(kept..place, [(time, length)]);
        }
    }

    /// What a piece of this time was cut to since.
    fn cut_since(&self, time: Time) -> u64 {
        let place = self.cuts.partition_point(|(other, _)| *other <= time);
        self.cuts.get(place).map_or(u64::MAX, |(_, length)| *length)
    }

    fn relimit(&mut self, at: At<'_>, cache: &mut Cache, lane: usize, limit: u64) {
        let old = self.value(at, cache, lane);
        self.limits[lane] = limit;
        let new = self.value(at, cache, lane);
        self.sum = self.sum.minus(old).plus(new);
    }

    fn set_size(&mut self, at: At<'_>, cache: &mut Cache, size: u64, time: Time) {
        let (low, high) = (self.size.min(size), self.size.max(size));
        self.sized_at = time;
        let touched: Vec<usize> = lanes_between(at.inode, low, high);
        for lane in &touched {
            self.sum = self.sum.minus(self.value(at, cache, *lane));
        }
        self.size = size;
        for lane in touched {
            self.sum = self.sum.plus(self.value(at, cache, lane));
        }
    }

    /// The fingerprint of what is seen of a block.
    fn value(&self, at: At<'_>, cache: &mut Cache, lane: usize) -> Fingerprint {
        let limit = self.limits[lane].min(self.size);
        cache.part(at, lane, self.positions[lane], limit)
    }

    /// Adds a change; those that are of no effect any more are none.
    pub(super) fn add(&mut self, at: At<'_>, cache: &mut Cache, change: &Change) -> Undo {
        match change.what {
            Content::Size(size) => {
                let undo = Undo::Size { size: self.size, sized_at: self.sized_at, sum: self.sum };
                if change.time >= self.sized_at {
                    self.set_size(at, cache, size, change.time);
                }
                undo
            }
            Content::Data { lane, piece } => {
                let lane = lane as usize;
                let (position, limit, sum) = (self.positions[lane], self.limits[lane], self.sum);
                if piece > position {
                    let old = self.value(at, cache, lane);
                    self.positions[lane] = piece;
                    self.limits[lane] = self.cut_since(change.time);
                    let new = self.value(at, cache, lane);
                    self.sum = self.sum.minus(old).plus(new);
                }
                Undo::Lane { lane, position, limit, sum }
            }
        }
    }

    pub(super) fn undo(&mut self, undo: &Undo) {
        match *undo {
            Undo::Lane { lane, position, limit, sum } => {
                (self.positions[lane], self.limits[lane], self.sum) = (position, limit, sum);
            }
            Undo::Size { size, sized_at, sum } => {
                (self.size, self.sized_at, self.sum) = (size, sized_at, sum);
            }
        }
    }

    /// Whether a change makes no difference any more, because of what came after it.
    pub(super) fn is_moot(&self, at: At<'_>, change: &Change) -> bool {
        match change.what {
            Content::Size(_) => change.time < self.sized_at,
            Content::Data { lane, piece } => {
                let start = at.inode.lanes[lane as usize].block * at.block_bytes;
                self.cut_since(change.time) <= start || piece <= self.positions[lane as usize]
            }
        }
    }

    /// The content as it is now.
    pub(super) fn node(&self, at: At<'_>, cache: &mut Cache, time: Time) -> Node {
        let anything = at.lowered.flags.unwritten == Unwritten::Anything;
        let stale = if anything { self.stale(at, cache) } else { None };
        Node { parent: 0, change: u32::MAX, time, size: self.size, sum: self.sum, stale }
    }

    /// The fingerprint if blocks without their data hold what was there before; `None` if there
    /// is no such block.
    fn stale(&self, at: At<'_>, cache: &mut Cache) -> Option<Fingerprint> {
        let (mut sum, mut any) = (self.sum, false);
        for (index, lane) in at.inode.lanes.iter().enumerate() {
            if let Some((from, to)) = self.lacks(lane, index, at.block_bytes) {
                sum = sum.plus(cache.stale(from, to));
                any = true;
            }
        }
        any.then_some(sum)
    }

    /// Where a block that is part of the file has none of its data, if it has none.
    #[must_use]
    pub fn lacks(&self, lane: &Lane, index: usize, block_bytes: u64) -> Option<(u64, u64)> {
        let start = lane.block * block_bytes;
        let nothing = match self.positions[index] {
            0 => lane.first_end <= start,
            _ => false,
        };
        let cut_off = self.limits[index] <= start;
        let before = self.cuts.partition_point(|(_, length)| *length <= start).checked_sub(1);
        let cut_at = before.map(|last| self.cuts[last].0);
        (start < self.size && (nothing || cut_off) && lane.is_due(cut_at, self.sized_at))
            .then(|| (start, self.size.min(start + block_bytes)))
    }
}

/// An inode and what is known about all.
#[derive(Clone, Copy)]
pub struct At<'a> {
    /// The recording.
    pub lowered: &'a Lowered,
    /// Which inode.
    pub ino: Ino,
    /// The inode.
    pub inode: &'a Inode,
    /// How long a block is.
    pub block_bytes: u64,
}

impl<'a> At<'a> {
    /// At an inode.
    #[must_use]
    pub fn new(lowered: &'a Lowered, ino: Ino) -> Self {
        Self { lowered, ino, inode: lowered.inode(ino), block_bytes: lowered.block_bytes }
    }
}

fn time_of(lane: &Lane, position: u32) -> Time {
    match position.checked_sub(1) {
        Some(piece) => lane.pieces[piece as usize].time,
        None => Time(0),
    }
}

/// The lanes that have bytes between two places.
fn lanes_between(inode: &Inode, low: u64, high: u64) -> Vec<usize> {
    if low == high {
        return Vec::new();
    }
    let (first, last) = (low / inode.block_bytes, (high - 1) / inode.block_bytes);
    if last - first < inode.lanes.len() as u64 {
        (first..=last).filter_map(|block| inode.lane_of_block.get(&block).copied()).collect()
    } else {
        let inside = |lane: &Lane| (first..=last).contains(&lane.block);
        inode.lanes.iter().enumerate().filter(|(_, lane)| inside(lane)).map(|(n, _)| n).collect()
    }
}

impl Cache {
    /// The fingerprint of the bytes before `limit` of a block that has so many of its pieces.
    fn part(&mut self, at: At<'_>, lane: usize, position: u32, limit: u64) -> Fingerprint {
        let found = &at.inode.lanes[lane];
        if limit <= found.block * at.block_bytes {
            return Fingerprint::default();
        }
        let mut position = position as usize;
        // What lies behind the limit makes no difference.
        while position > 0 {
            let piece = &found.pieces[position - 1];
            if piece.reach <= limit {
                return piece.sum;
            }
            if piece.at < limit || piece.after_cut {
                break;
            }
            position -= 1;
        }
        if position == 0 && found.first_end <= limit {
            return found.first;
        }
        let key = (at.ino, super::lower::count(lane), super::lower::count(position), limit);
        *self.parts.entry(key).or_insert_with(|| {
            let start = found.block * at.block_bytes;
            let mut bytes = super::survivor::block(at.lowered, at.inode, found, position);
            bytes.truncate(usize::try_from(limit - start).unwrap_or(usize::MAX));
            Fingerprint::of(start, &bytes)
        })
    }

    fn stale(&mut self, from: u64, to: u64) -> Fingerprint {
        *self.stale.entry((from, to)).or_insert_with(|| {
            let length = usize::try_from(to - from).unwrap_or(0);
            Fingerprint::of(from, &vec![STALE_BYTE; length])
        })
    }
}

impl Tree {
    /// All contents, but at most `nodes_max` of them.
    #[must_use]
    pub fn grow(choice: &Choice<'_>, cache: &mut Cache, nodes_max: usize) -> Self {
        let (mut view, free, mut tree) = Self::start(choice, cache);
        let at = choice.at;
        // So many that need nothing alone make too many sets.
        let independent = free.unmet.iter().filter(|unmet| **unmet == Some(0)).count();
        if u32::try_from(independent)
            .is_ok_and(|n| 1_usize.checked_shl(n).is_none_or(|sets| sets == 0 || sets > nodes_max))
            && independent > 1
        {
            tree.complete = false;
            return tree;
        }
        free.each_set(&mut |parent, change, way| match way {
            Way::In(undos) => {
                if tree.nodes.len() >= nodes_max {
                    tree.complete = false;
                    return None;
                }
                let added = &at.inode.changes[change as usize];
                undos.push(view.add(at, cache, added));
                let time = tree.nodes[parent as usize].time.max(added.time);
                let node = view.node(at, cache, time);
                tree.nodes.push(Node { parent, change, ..node });
                Some(super::lower::count(tree.nodes.len() - 1))
            }
            Way::Out(undo) => {
                view.undo(&undo);
                None
            }
        });
        tree
    }

    /// The content that all have, what there is to choose, and a tree with that content only.
    pub(super) fn start(choice: &Choice<'_>, cache: &mut Cache) -> (View, Free, Self) {
        let at = choice.at;
        let mut view = choice.forced.clone();
        for step in &at.inode.resizes[choice.first_free.resizes..] {
            let found = &at.lowered.steps[*step as usize];
            if found.forced > choice.barrier
                && (choice.has_step)(*step)
                && let StepChange::Resize { length, cuts, .. } = found.change
            {
                view.resize(at, cache, found.time, length, cuts);
            }
        }
        let (given, free) = Free::of(&view, choice);
        let mut time = Time(0);
        for change in &given {
            let change = &at.inode.changes[*change as usize];
            view.add(at, cache, change);
            time = time.max(change.time);
        }
        let nodes = vec![view.node(at, cache, time)];
        (view, free, Self { ino: at.ino, given, nodes, sets: None, complete: true })
    }

    /// The changes of a content that are not forced, in their order.
    #[must_use]
    pub fn changes(&self, node: u32) -> Vec<u32> {
        let mut changes = self.given.clone();
        let mut node = node;
        if let Some(sets) = &self.sets {
            changes.extend(&sets[node as usize]);
            node = 0;
        }
        while node != 0 {
            let found = self.nodes[node as usize];
            changes.push(found.change);
            node = found.parent;
        }
        changes.sort_unstable();
        changes
    }
}

impl Tree {
    /// How many changes a content has that are not forced.
    #[must_use]
    pub fn depth(&self, node: u32) -> usize {
        if let Some(sets) = &self.sets {
            return self.given.len() + sets[node as usize].len();
        }
        let (mut node, mut depth) = (node, self.given.len());
        while node != 0 {
            node = self.nodes[node as usize].parent;
            depth += 1;
        }
        depth
    }
}

/// What all steps of a set push before them: see [`Choice::pushed`].
#[must_use]
pub fn later(pushed: (Time, Time), how: Pushes, time: Time) -> (Time, Time) {
    match how {
        Pushes::Nothing => pushed,
        Pushes::Allocates => (pushed.0.max(time), pushed.1),
        Pushes::Waits => (pushed.0, pushed.1.max(time)),
    }
}
