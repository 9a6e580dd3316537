//! Lowering: from a trace to changes of inodes and of names, for one profile.
//!
//! Ops are known by path; here each path is looked up in the names of that moment, so that what
//! follows is about inodes. See [`super`] for what a step and a change are, and `barrier` for what
//! makes them durable.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::fingerprint::Fingerprint;
use super::profile::{Flags, Names, Overwrite, Pushes, Size};
use super::{
    Change, Content, Entry, EntryIndex, Ino, Inode, Kind, Lane, Lowered, NEVER, Piece, Step,
    StepChange, Time,
};
use crate::model::{Files, Node, NotModelled};
use crate::op::{Call, Effect, Op, Trace};

/// Lowers a trace that began with the files `before`.
pub fn lower(trace: &Arc<Trace>, before: &Files, flags: &Flags) -> Result<Lowered, NotModelled> {
    let mut lowering = Lowering::new(trace, flags);
    lowering.begin(before);
    for (index, op) in trace.ops.iter().enumerate() {
        lowering.now = Time::of_effect(index);
        lowering.op(op)?;
    }
    Ok(lowering.lowered)
}

/// What is known while a trace is gone through.
pub(super) struct Lowering<'a> {
    pub(super) flags: &'a Flags,
    pub(super) lowered: Lowered,
    pub(super) now: Time,
    /// What each entry leads to now.
    current: Vec<Option<Ino>>,
    /// The step that last changed an entry.
    last_of_entry: HashMap<EntryIndex, u32>,
    /// Files that have no name, by the name that `/proc` shows.
    nameless: HashMap<PathBuf, Ino>,
    /// What the page cache holds of each inode.
    pub(super) cache: Vec<Vec<u8>>,
    /// What the barriers have done so far.
    pub(super) forced: super::barrier::Progress,
}

impl<'a> Lowering<'a> {
    fn new(trace: &Arc<Trace>, flags: &'a Flags) -> Self {
        let mut lowering = Self {
            flags,
            lowered: Lowered {
                trace: Arc::clone(trace),
                block_bytes: u64::from(flags.block_bytes),
                flags: flags.clone(),
                inodes: Vec::new(),
                entries: Vec::new(),
                below: HashMap::new(),
                first: Vec::new(),
                steps: Vec::new(),
            },
            now: Time(0),
            current: Vec::new(),
            last_of_entry: HashMap::new(),
            nameless: HashMap::new(),
            cache: Vec::new(),
            forced: super::barrier::Progress::default(),
        };
        // The trial directory, and the root of what lies outside.
        lowering.add_inode(Kind::Directory, Vec::new());
        lowering.add_inode(Kind::Directory, Vec::new());
        lowering
    }

    /// Puts the files there that were there before.
    fn begin(&mut self, before: &Files) {
        let mut known: HashMap<usize, Ino> = HashMap::new();
        let paths: Vec<PathBuf> = before.paths().map(Path::to_owned).collect();
        for path in paths {
            let (Some(node), Some(inode)) = (before.get(&path), before.inode_number(&path)) else {
                continue;
            };
            let ino = known.get(&inode).copied().unwrap_or_else(|| match node {
                Node::File(bytes) => self.add_inode(Kind::File, bytes.clone()),
                Node::Symlink(target) => self.add_inode(Kind::Symlink(target.clone()), Vec::new()),
                Node::Directory => self.add_inode(Kind::Directory, Vec::new()),
            });
            known.insert(inode, ino);
            let entry = self.entry(&path);
            self.current[entry.0 as usize] = Some(ino);
            self.lowered.first[entry.0 as usize] = Some(ino);
        }
    }

    fn add_inode(&mut self, kind: Kind, bytes: Vec<u8>) -> Ino {
        let ino = Ino(count(self.lowered.inodes.len()));
        self.lowered.inodes.push(Inode::new(kind, &bytes, self.lowered.block_bytes));
        self.cache.push(bytes);
        self.forced.add_inode();
        ino
    }

    /// The entry of a path; directories on the way that nobody has made were there before.
    fn entry(&mut self, path: &Path) -> EntryIndex {
        let (directory, name) = self.directory_and_name(path);
        self.entry_in(directory, name)
    }

    fn directory_and_name(&mut self, path: &Path) -> (Ino, OsString) {
        let mut directory = if path.is_absolute() { Ino(1) } else { Ino(0) };
        let mut names: Vec<&OsStr> = super::names_in(path).collect();
        let last = names.pop().unwrap_or_default().to_owned();
        for name in names {
            let entry = self.entry_in(directory, name.to_owned());
            directory = match self.current[entry.0 as usize] {
                Some(ino) => ino,
                None => {
                    let made = self.add_inode(Kind::Directory, Vec::new());
                    self.current[entry.0 as usize] = Some(made);
                    self.lowered.first[entry.0 as usize] = Some(made);
                    made
                }
            };
        }
        (directory, last)
    }

    fn entry_in(&mut self, directory: Ino, name: OsString) -> EntryIndex {
        let below = self.lowered.below.entry(directory).or_default();
        if let Some(known) = below.get(&name) {
            return *known;
        }
        let index = EntryIndex(count(self.lowered.entries.len()));
        below.insert(name.clone(), index);
        self.lowered.entries.push(Entry { directory, name });
        self.lowered.first.push(None);
        self.current.push(None);
        index
    }

    /// What a path leads to now.
    pub(super) fn find(&mut self, path: &Path) -> Option<Ino> {
        if path.as_os_str().is_empty() {
            return Some(Ino(0));
        }
        if let Some(ino) = self.nameless.get(path) {
            return Some(*ino);
        }
        let entry = self.entry(path);
        self.current[entry.0 as usize]
    }

    fn file(&mut self, path: &Path) -> Result<Ino, NotModelled> {
        let unknown = || NotModelled(format!("{} is not known to the trace", path.display()));
        let ino = self.find(path).ok_or_else(unknown)?;
        match self.lowered.inode(ino).kind {
            Kind::File => Ok(ino),
            _ => Err(NotModelled(format!("{} is not a regular file", path.display()))),
        }
    }

    fn op(&mut self, op: &Op) -> Result<(), NotModelled> {
        if !op.succeeded() {
            return Ok(());
        }
        match &op.effect {
            Effect::Open { path, create, truncate } => self.open(path, *create, *truncate)?,
            Effect::Close { path } => self.close(path),
            Effect::Write { path, offset, data } => {
                let ino = self.file(path)?;
                self.write(ino, offset.0, data)?;
                self.synchronous_write(op, ino);
            }
            Effect::Truncate { path, length } => {
                let ino = self.file(path)?;
                self.resize(ino, length.0)?;
            }
            Effect::Fallocate { path, mode, offset, length } => {
                let ino = self.file(path)?;
                self.fallocate(ino, *mode, offset.0, length.0)?;
            }
            Effect::Sync { path } => {
                let target = if op.call == Call::Sync { None } else { self.find(path) };
                self.barrier(op.call, target);
            }
            Effect::Rename { from, to, exchange } => self.rename(from, to, *exchange)?,
            Effect::Link { from, to } => {
                let ino = self.find(from);
                let ino = ino.ok_or_else(|| {
                    NotModelled(format!("{} is not known to the trace", from.display()))
                })?;
                let entry = self.entry(to);
                self.names(vec![(entry, Some(ino))]);
            }
            Effect::Symlink { target, path } => {
                let ino = self.add_inode(Kind::Symlink(target.clone()), Vec::new());
                let entry = self.entry(path);
                self.names(vec![(entry, Some(ino))]);
            }
            Effect::Unlink { path } => {
                let entry = self.entry(path);
                self.forget(path, entry);
                self.names(vec![(entry, None)]);
            }
            Effect::Directory { path } => {
                let made =
                    (op.call == Call::Mkdir).then(|| self.add_inode(Kind::Directory, Vec::new()));
                let entry = self.entry(path);
                self.names(vec![(entry, made)]);
            }
            // What is stored through the mapping comes as ops of its own.
            Effect::Unfollowed { .. } if op.call == Call::MapShared => {}
            Effect::Unfollowed { path } => {
                return Err(NotModelled(format!("{} of {}", op.call.name(), path.display())));
            }
        }
        Ok(())
    }

    /// A file that loses its name goes on under the one that `/proc` then shows.
    fn forget(&mut self, path: &Path, entry: EntryIndex) {
        if let Some(ino) = self.current[entry.0 as usize] {
            let mut name = OsString::from(path);
            name.push(" (deleted)");
            self.nameless.insert(name.into(), ino);
        }
    }

    fn open(&mut self, path: &Path, create: bool, truncate: bool) -> Result<(), NotModelled> {
        let is_nameless = path.as_os_str().as_encoded_bytes().ends_with(b" (deleted)");
        match self.find(path) {
            Some(ino) if truncate && self.lowered.inode(ino).kind == Kind::File => {
                self.resize(ino, 0)?;
            }
            Some(_) => {}
            None if create => {
                let ino = self.add_inode(Kind::File, Vec::new());
                if is_nameless {
                    self.nameless.insert(path.to_owned(), ino);
                } else {
                    let entry = self.entry(path);
                    self.names(vec![(entry, Some(ino))]);
                }
            }
            None => {}
        }
        Ok(())
    }

    /// Changes names, in one step.
    fn names(&mut self, changes: Vec<(EntryIndex, Option<Ino>)>) {
        let step = self.next_step();
        let mut needs = Vec::new();
        for (entry, ino) in &changes {
            needs.extend(self.last_of_entry.insert(*entry, step));
            let old = std::mem::replace(&mut self.current[entry.0 as usize], *ino);
            let directory = self.lowered.entries[entry.0 as usize].directory;
            for ino in [Some(directory), old, *ino].into_iter().flatten() {
                self.forced.touch(ino, step);
            }
        }
        needs.sort_unstable();
        needs.dedup();
        self.push_step(needs, StepChange::Names(changes), None);
    }

    fn next_step(&self) -> u32 {
        count(self.lowered.steps.len())
    }

    fn push_step(&mut self, needs: Vec<u32>, change: StepChange, pushes: Option<(Ino, Pushes)>) {
        let pushes = pushes.filter(|(_, how)| *how != Pushes::Nothing);
        self.lowered.steps.push(Step { time: self.now, forced: NEVER, needs, change, pushes });
    }

    fn rename(&mut self, from: &Path, to: &Path, exchange: bool) -> Result<(), NotModelled> {
        let (source, target) = (self.entry(from), self.entry(to));
        let unknown = || NotModelled(format!("{} is not known to the trace", from.display()));
        let moved = self.current[source.0 as usize].ok_or_else(unknown)?;
        let replaced = self.current[target.0 as usize];
        if replaced == Some(moved) {
            return Ok(());
        }
        if !exchange {
            self.forget(to, target);
        }
        let left = if exchange { replaced } else { None };
        self.names(vec![(source, left), (target, Some(moved))]);
        if let (Some(_), false, Some(step)) = (replaced, exchange, self.lowered.steps.last_mut()) {
            let how = self.flags.rename_over;
            step.pushes = (how != Pushes::Nothing).then_some((moved, how));
        }
        Ok(())
    }

    fn close(&mut self, path: &Path) {
        let Some(ino) = self.find(path) else { return };
        let was_cut = std::mem::take(&mut self.lowered.inodes[ino.0 as usize].cut_to_nothing);
        if was_cut && self.flags.close_after_truncate != Pushes::Nothing {
            self.forced.touch(ino, self.next_step());
            let pushes = Some((ino, self.flags.close_after_truncate));
            self.push_step(Vec::new(), StepChange::Closed, pushes);
        }
    }

    fn resize(&mut self, ino: Ino, length: u64) -> Result<(), NotModelled> {
        let bytes = in_memory(length)?;
        let old = self.cache[ino.0 as usize].len() as u64;
        if length == old {
            return Ok(());
        }
        // The rest of the last page is zeroed in memory, and may be written before the length is. Where a
        // length may be anything, that shows nothing more beyond the block.
        let page = match self.flags.size {
            Size::AnyTime => self.lowered.block_bytes,
            _ => PAGE_BYTES.max(self.lowered.block_bytes),
        };
        let rest = length.next_multiple_of(page).min(old).saturating_sub(length);
        self.write(ino, length, &vec![0; usize::try_from(rest).unwrap_or(0)])?;
        let step = self.next_step();
        let inode = &mut self.lowered.inodes[ino.0 as usize];
        let needs = inode.resizes.last().copied().into_iter().collect();
        inode.resizes.push(step);
        if length < old {
            // A later cut to less makes an earlier one of no account.
            inode.cuts.retain(|(kept, _)| *kept < length);
            inode.cuts.push((length, step));
        }
        inode.cut_to_nothing |= length == 0;
        self.forced.touch(ino, step);
        let resize = StepChange::Resize { ino, length, cuts: length < old };
        self.push_step(needs, resize, None);
        self.cache[ino.0 as usize].resize(bytes, 0);
        Ok(())
    }

    fn fallocate(
        &mut self,
        ino: Ino,
        mode: i32,
        offset: u64,
        length: u64,
    ) -> Result<(), NotModelled> {
        let size = self.cache[ino.0 as usize].len() as u64;
        let end = offset.saturating_add(length);
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => {}
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE if offset < size => {
                let zeros = usize::try_from(end.min(size) - offset).unwrap_or(0);
                self.write(ino, offset, &vec![0; zeros])?;
            }
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE => {}
            other => return Err(NotModelled(format!("fallocate with mode {other:#x}"))),
        }
        if mode & libc::FALLOC_FL_KEEP_SIZE == 0 && end > size {
            self.resize(ino, end)?;
        }
        Ok(())
    }

    fn write(&mut self, ino: Ino, offset: u64, data: &[u8]) -> Result<(), NotModelled> {
        if data.is_empty() {
            return Ok(());
        }
        let index = ino.0 as usize;
        let (old, end) = (self.cache[index].len() as u64, offset.saturating_add(data.len() as u64));
        let length = in_memory(end)?;
        if end > old {
            self.cache[index].resize(length, 0);
        }
        // What is appended inside a page makes that page's part of the file longer first: there is space
        // for it already.
        let inside = old.next_multiple_of(PAGE_BYTES);
        if self.flags.size == Size::AfterOwnData && old < inside && inside <= offset {
            // It is zeroed up to its end, and that is written as if it were data.
            let zeros = vec![0; usize::try_from(inside - old).unwrap_or(0)];
            self.pieces(ino, (old, old), &zeros, 0);
        }
        if (offset.max(old)..end).contains(&inside) && offset.max(old) < inside {
            let cut = usize::try_from(inside - offset).unwrap_or(0);
            self.pieces(ino, (offset, old), &data[..cut], 0);
            self.pieces(ino, (inside, inside), &data[cut..], cut);
        } else {
            self.pieces(ino, (offset, old), data, 0);
        }
        Ok(())
    }

    /// Some of the bytes of a write: they begin at `offset` in the file, which was `old` bytes long, and at
    /// `source` in the write.
    fn pieces(&mut self, ino: Ino, (offset, old): (u64, u64), data: &[u8], source: usize) {
        let (index, block_bytes) = (ino.0 as usize, self.lowered.block_bytes);
        let end = offset + data.len() as u64;
        let first = self.lowered.inode(ino).changes.len();
        let mut at = offset;
        while at < end {
            let stop = ((at / block_bytes + 1) * block_bytes).min(end);
            let from = usize::try_from(at - offset).unwrap_or(0);
            let bytes = from..from + usize::try_from(stop - at).unwrap_or(0);
            self.data(ino, at, &data[bytes.clone()], source + bytes.start);
            at = stop;
        }
        if end > old {
            let needs = self.needs_of_size(ino, first, old);
            let any_of = self.alternatives_of_size(ino);
            self.content(ino, Content::Size(end), needs);
            if let Some(change) = self.lowered.inodes[index].changes.last_mut() {
                change.any_of = any_of;
            }
        }
    }

    /// Where any data brings the size along: the size before it, and all data since.
    fn alternatives_of_size(&self, ino: Ino) -> Vec<u32> {
        let inode = self.lowered.inode(ino);
        let from = match self.flags.size {
            Size::AfterAnyData => inode.last_size.unwrap_or(0) as usize,
            _ => inode.changes.len(),
        };
        (from..inode.changes.len()).map(count).collect()
    }

    /// One piece of a write, inside one block.
    fn data(&mut self, ino: Ino, at: u64, bytes: &[u8], source: usize) {
        let block = at / self.lowered.block_bytes;
        let start = usize::try_from(at).unwrap_or(0);
        let cached = &mut self.cache[ino.0 as usize][start..start + bytes.len()];
        let mut difference = Fingerprint::of(at, bytes);
        difference = difference.minus(Fingerprint::of(at, cached));
        cached.copy_from_slice(bytes);
        let inode = &mut self.lowered.inodes[ino.0 as usize];
        let lane_index = inode.lane(block);
        let block_start = block * self.lowered.block_bytes;
        // What of this block was cut off since its last write: its fingerprint starts anew.
        let block_end = block_start + self.lowered.block_bytes;
        let since = inode.lanes[lane_index].pieces.last().map(|piece| piece.time);
        let cut = inode.cuts[..inode.cuts.partition_point(|(length, _)| *length < block_end)]
            .iter()
            .find(|(_, step)| {
                since.is_none_or(|since| self.lowered.steps[*step as usize].time > since)
            })
            .map(|(length, _)| *length);
        let whole_cut = cut.is_some_and(|length| length <= block_start);
        let cuts_here = cut.is_some();
        let lane = &mut inode.lanes[lane_index];
        let sum = if cuts_here {
            let stop = (block_start + self.lowered.block_bytes)
                .min(self.cache[ino.0 as usize].len() as u64);
            let range =
                usize::try_from(block_start).unwrap_or(0)..usize::try_from(stop).unwrap_or(0);
            Fingerprint::of(block_start, &self.cache[ino.0 as usize][range])
        } else {
            lane.pieces.last().map_or(lane.first, |piece| piece.sum).plus(difference)
        };
        let end = at + bytes.len() as u64;
        let reach = if whole_cut {
            end
        } else {
            lane.pieces.last().map_or(lane.first_end, |piece| piece.reach).max(end)
        };
        let position = lane.pieces.last().map(|piece| piece.change).filter(|_| !whole_cut);
        let change = count(inode.changes.len());
        lane.pieces.push(Piece {
            time: self.now,
            at,
            source,
            length: bytes.len(),
            change,
            sum,
            reach,
            after_cut: cuts_here,
        });
        let piece = count(lane.pieces.len());
        let content = Content::Data { lane: count(lane_index), piece };
        self.content(ino, content, position.into_iter().collect());
    }

    /// A size needs the size before it, and where it comes after the data, the data of its op.
    fn needs_of_size(&self, ino: Ino, first: usize, old: u64) -> Vec<u32> {
        let inode = self.lowered.inode(ino);
        if self.flags.size == Size::AfterAnyData {
            return Vec::new();
        }
        let alone = self.flags.size == Size::AfterOwnData;
        let mut needs: Vec<u32> = inode.last_size.filter(|_| !alone).into_iter().collect();
        let new_blocks = |index: &usize| match inode.changes[*index].what {
            Content::Data { lane, .. } => {
                inode.lanes[lane as usize].block >= old.div_ceil(self.lowered.block_bytes)
            }
            Content::Size(_) => false,
        };
        let of_op = first..inode.changes.len();
        match self.flags.size {
            Size::AnyTime | Size::AfterAnyData => {}
            Size::AfterNewBlocks => needs.extend(of_op.filter(new_blocks).map(count)),
            Size::AfterData => needs.extend(of_op.map(count)),
            // Blocks that were there are written by themselves.
            Size::AfterOwnData => match of_op.clone().any(|index| new_blocks(&index)) {
                true => needs.extend(of_op.filter(new_blocks).map(count)),
                false => needs.extend(of_op.map(count)),
            },
        }
        needs
    }

    fn content(&mut self, ino: Ino, what: Content, needs: Vec<u32>) {
        let in_order = self.flags.names == Names::InOrder;
        let last_step = self.next_step().checked_sub(1);
        let committed = match what {
            Content::Size(_) => in_order,
            Content::Data { .. } => in_order && self.flags.overwrite == Overwrite::CopyOnWrite,
        };
        let now = self.now;
        let inode = &mut self.lowered.inodes[ino.0 as usize];
        let resize = match what {
            Content::Size(_) => inode.resizes.last().copied(),
            Content::Data { lane, .. } => {
                // A page of which only a part was cut off keeps its place on the disk, and may be written there.
                let start = inode.lanes[lane as usize].block * inode.block_bytes;
                inode.last_cut_before(start / PAGE_BYTES * PAGE_BYTES + 1)
            }
        };
        if let Content::Size(_) = what {
            inode.last_size = Some(count(inode.changes.len()));
        }
        let commit = if committed { last_step } else { None };
        self.forced.change(ino);
        let any_of = Vec::new();
        inode.changes.push(Change {
            time: now,
            forced: NEVER,
            what,
            needs,
            any_of,
            resize,
            commit,
        });
    }
}

/// What the kernel copies a write to, piece by piece.
const PAGE_BYTES: u64 = 4096;

/// A length of which the model can hold the bytes.
fn in_memory(length: u64) -> Result<usize, NotModelled> {
    let fits = usize::try_from(length).ok().filter(|length| *length < 1 << 30);
    fits.ok_or_else(|| NotModelled("a file of more than 1 GiB".to_owned()))
}

/// Indices of one recording: the harness keeps far fewer than 2^32 ops and bytes.
pub(crate) fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Inode {
    fn new(kind: Kind, bytes: &[u8], block_bytes: u64) -> Self {
        let mut inode = Self {
            kind,
            first: bytes.to_vec(),
            lanes: Vec::new(),
            lane_of_block: HashMap::new(),
            changes: Vec::new(),
            resizes: Vec::new(),
            cuts: Vec::new(),
            last_size: None,
            cut_to_nothing: false,
            block_bytes,
        };
        let blocks = (bytes.len() as u64).div_ceil(block_bytes);
        for block in 0..blocks {
            inode.lane(block);
        }
        inode
    }

    /// The last step that cut something off before this place.
    fn last_cut_before(&self, end: u64) -> Option<u32> {
        let cuts = self.cuts.partition_point(|(length, _)| *length < end);
        cuts.checked_sub(1).map(|last| self.cuts[last].1)
    }

    /// The lane of a block, made if need be.
    fn lane(&mut self, block: u64) -> usize {
        if let Some(known) = self.lane_of_block.get(&block) {
            return *known;
        }
        let length = self.first.len() as u64;
        let start = block * self.block_bytes;
        let (from, to) = (start.min(length), (start + self.block_bytes).min(length));
        let range = usize::try_from(from).unwrap_or(0)..usize::try_from(to).unwrap_or(0);
        let first = Fingerprint::of(start, &self.first[range]);
        self.lanes.push(Lane { block, first, first_end: to, pieces: Vec::new() });
        self.lane_of_block.insert(block, self.lanes.len() - 1);
        self.lanes.len() - 1
    }
}
