//! What a loss of power leaves: the model.
//!
//! A program calls the kernel, and the kernel changes its memory at once and the disk later. When
//! the power goes, what is on the disk is left. This module says what that can be, for the calls of
//! one recorded run and the promises of one file system, and finds all of it without a disk.
//!
//! **Calls become micro-ops.** A recording is a list of calls, made one after the other. Each is
//! taken apart into what can reach the disk by itself, and it is not about paths any more but about
//! inodes:
//!
//! - *Data*: the bytes that a write puts into one block of a file. Writes are split where blocks
//!   end, since a block is old or new as a whole. What reaches the disk is the block as it is in
//!   memory, so that earlier writes to the same block come with it.
//! - *Size*: a file is longer, because something was written beyond its end. What is appended inside a
//!   page makes it longer in two steps: to the end of that page, and then to the end of all.
//! - *Names*: entries of directories change; a rename changes two of them and is one micro-op, so
//!   that it is there or not, never half.
//! - *Resize*: the length of a file is set. What is cut off is gone, and zeros come if it grows.
//! - *Closed*: nothing by itself; some file systems push out a file's data when it is closed.
//!
//! Names, Resize and Closed are *steps*: metadata of the file system, which has one journal for all
//! of it. Data and Size are *changes* of one inode.
//!
//! **Time.** The start is time 0. The effect of op i, from 0, has the time 2i + 2; its promise, if it
//! is a barrier such as fsync, the time 2i + 3, when it has returned. The power goes at a moment c,
//! after all that has a time less than c: at an odd moment an op is still going on, and what it does
//! may have reached the disk, and what it promises is not yet promised. An ack that came when a ops
//! had been done is owed from moment 2a + 2 on.
//!
//! **A crash state** is a moment c and the set S of micro-ops that had reached the disk. It is
//! legal if
//!
//! 1. S holds nothing from after c: the time of each micro-op in S is less than c;
//! 2. S holds all that barriers before c have forced;
//! 3. each micro-op in S that is not forced finds in S all that it needs.
//!
//! What a micro-op needs follows from the profile:
//!
//! - Data needs the Data before it in its block, and the Resize that last cut off its whole page. This holds
//!   everywhere: one block is written in the order of its changes. A cut inside a block is also
//!   Data: the rest of the block is zeroed in memory, and may be written before the length is.
//! - Size needs the Size and the Resize before it; and if size comes *after-data*, the Data of its
//!   own op. (So, by the Sizes before, that of all earlier growth.) If it comes *after-own-data*, it needs
//!   that Data, or that of the new blocks among it, and no earlier Size. If it comes *after-any-data*, it
//!   needs one of the Size before it and all Data since, its own op's too, unless that was forced before
//!   it: whatever completes brings the size along, and the rest is a hole.
//! - Steps need all steps before them, where names are *in-order*, since there is one journal. In
//!   *any-order*, a step needs only those that changed the same entries or the same length.
//! - Where names are in order, Size needs all steps before it: the space that new bytes take is in
//!   the same journal, later. On a *copy-on-write* file system that is true of all Data.
//! - A rename over an existing file, or the close of one that was cut to nothing, needs the Sizes
//!   of the file (*allocates*), or its Data, too (*waits*). Where a *commit waits for data*, every
//!   step needs all Data and Size before it.
//!
//! What a barrier forces is in `barrier`.
//!
//! **What is left.** The names in S, applied in their order to those of the start, lead to inodes;
//! the changes in S, applied in their order to the first bytes, are what these hold. A block inside
//! the size that has none of its Data reads as zeros; where *unwritten* is *anything*, also as what
//! was there before, for which a fixed pattern stands.
//!
//! **Enumeration.** Between two barriers the forced set stays the same; such a stretch is an
//! *epoch*, and the states of an epoch are found together, at its last moment. First come the sets
//! of steps (`walk`), and for each of them, the sets of changes of those inodes that the state
//! files then are (`contents`): what happened to a file that nobody can find any more makes no
//! difference. Sets are closed downwards under *needs*, so that each is reached by adding its
//! micro-ops in the order of their times, exactly once, without a dead end. A survivor is known by
//! its fingerprint, which changes with each micro-op by what that micro-op changes (`fingerprint`).
//!
//! Rules 1 to 3 are all that `tests/power.rs` knows: it tries every subset of the micro-ops of
//! 1,000 random programs by them, and compares.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod barrier;
pub mod contents;
pub mod derive;
pub mod explain;
pub mod fingerprint;
mod free;
pub mod lower;
pub mod names;
pub mod profile;
pub mod remedy;
pub mod repair;
pub mod sample;
pub mod spread;
pub mod survivor;
pub mod walk;

use fingerprint::Fingerprint;
use profile::{Flags, Pushes};

use crate::op::{Effect, Trace};

/// A moment of a recording: see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u32);

/// What no barrier forces.
pub const NEVER: Time = Time(u32::MAX);

impl Time {
    /// When the effect of an op is there.
    #[must_use]
    pub fn of_effect(op: usize) -> Self {
        Self(lower::count(op * 2 + 2))
    }

    /// When so many ops have been done.
    #[must_use]
    pub fn after_ops(ops: usize) -> Self {
        Self::of_effect(ops)
    }

    /// When the promise of the op with this effect counts.
    #[must_use]
    pub fn of_barrier(self) -> Self {
        Self(self.0 + 1)
    }

    /// How many ops have been done, or begun, when the power goes at this moment.
    #[must_use]
    pub fn ops_begun(self) -> usize {
        (self.0 as usize).saturating_sub(1) / 2
    }

    /// The op that has its effect, or its promise, at this time.
    #[must_use]
    pub fn op(self) -> usize {
        (self.0 as usize / 2).saturating_sub(1)
    }
}

/// An inode of a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u32);

/// The place of an entry in [`Lowered::entries`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryIndex(pub u32);

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The directory.
    pub directory: Ino,
    /// The name.
    pub name: OsString,
}

/// A recording as micro-ops.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// The recording.
    pub trace: Arc<Trace>,
    /// How long a block is, in bytes.
    pub block_bytes: u64,
    /// The promises of the file system.
    pub flags: Flags,
    /// All inodes; the first is the trial directory, the second the root of what lies outside.
    pub inodes: Vec<Inode>,
    /// All entries that were ever looked at.
    pub entries: Vec<Entry>,
    /// The entries of each directory, by name.
    pub below: HashMap<Ino, HashMap<OsString, EntryIndex>>,
    /// What each entry leads to at the start.
    pub first: Vec<Option<Ino>>,
    /// The steps, in the order of their times.
    pub steps: Vec<Step>,
}

/// A micro-op that is metadata of the whole file system.
#[derive(Clone, Debug)]
pub struct Step {
    /// When it happened.
    pub time: Time,
    /// Since when it is forced.
    pub forced: Time,
    /// The steps that it needs; where names are kept in order, it needs all before it besides.
    pub needs: Vec<u32>,
    /// What it does.
    pub change: StepChange,
    /// The inode whose earlier changes it needs, and which of them.
    pub pushes: Option<(Ino, Pushes)>,
}

/// What a step does.
#[derive(Clone, Debug)]
pub enum StepChange {
    /// These entries lead to these inodes now.
    Names(Vec<(EntryIndex, Option<Ino>)>),
    /// A file has this length now.
    Resize {
        /// The file.
        ino: Ino,
        /// Its length in bytes.
        length: u64,
        /// Whether it was longer.
        cuts: bool,
    },
    /// A file was closed.
    Closed,
}

/// An inode: its first content, and what changes it.
#[derive(Clone, Debug)]
pub struct Inode {
    /// What it is.
    pub kind: Kind,
    /// Its bytes at the start.
    pub first: Vec<u8>,
    /// Its blocks.
    pub lanes: Vec<Lane>,
    /// The lane of each block.
    pub lane_of_block: HashMap<u64, usize>,
    /// Its changes, in the order of their times.
    pub changes: Vec<Change>,
    /// The steps that set its length.
    pub resizes: Vec<u32>,
    /// The cuts that are of account: to what length, and the step; the shortest, and oldest, first.
    cuts: Vec<(u64, u32)>,
    /// The last change of its size.
    last_size: Option<u32>,
    /// Whether it was cut to nothing and not closed since.
    cut_to_nothing: bool,
    block_bytes: u64,
}

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, and where it points.
    Symlink(PathBuf),
}

/// One block of a file.
#[derive(Clone, Debug)]
pub struct Lane {
    /// Which block it is.
    pub block: u64,
    /// The fingerprint of its bytes at the start.
    pub first: Fingerprint,
    /// Where these end, in bytes from the beginning of the file.
    pub first_end: u64,
    /// What was written to it.
    pub pieces: Vec<Piece>,
}

/// What one write puts into one block.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// When.
    pub time: Time,
    /// Where it begins, in bytes from the beginning of the file.
    pub at: u64,
    /// Where it begins in the data of its op.
    pub source: usize,
    /// How long it is.
    pub length: usize,
    /// Its change.
    pub change: u32,
    /// The fingerprint of the whole block after it.
    pub sum: Fingerprint,
    /// Where the bytes of the block then end, at most.
    pub reach: u64,
    /// Whether some of the block was cut off since the piece before.
    pub after_cut: bool,
}

/// A micro-op of one inode.
#[derive(Clone, Debug)]
pub struct Change {
    /// When it happened.
    pub time: Time,
    /// Since when it is forced.
    pub forced: Time,
    /// What it does.
    pub what: Content,
    /// The changes of the same inode that it needs.
    pub needs: Vec<u32>,
    /// Changes of the same inode of which it needs one, unless there are none: of those that were not
    /// forced before it.
    pub any_of: Vec<u32>,
    /// The step that cut the file before it, which it needs.
    pub resize: Option<u32>,
    /// The step before it in the journal, if it needs that.
    pub commit: Option<u32>,
}

/// What a change does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A block has this piece.
    Data {
        /// The lane of the block.
        lane: u32,
        /// Which piece, from 1.
        piece: u32,
    },
    /// The file has this size, in bytes.
    Size(u64),
}

impl Inode {
    /// The changes of which this one needs one, if it needs any: what was on the disk before it happened can't
    /// bring it along.
    pub fn alternatives<'a>(&'a self, change: &'a Change) -> impl Iterator<Item = u32> + 'a {
        let open = |index: &u32| self.changes[*index as usize].forced > change.time;
        change.any_of.iter().copied().filter(open)
    }
}

impl Lowered {
    /// An inode.
    #[must_use]
    pub fn inode(&self, ino: Ino) -> &Inode {
        &self.inodes[ino.0 as usize]
    }

    /// The moment after the last op.
    #[must_use]
    pub fn end(&self) -> Time {
        Time::after_ops(self.trace.ops.len())
    }

    /// How many acks had been given at a moment.
    #[must_use]
    pub fn acks_at(&self, moment: Time) -> usize {
        self.trace.acks.partition_point(|ops| Time::after_ops(*ops) <= moment)
    }

    /// The bytes of a piece; zeros of a call that writes none by itself.
    #[must_use]
    pub fn data(&self, piece: &Piece) -> Cow<'_, [u8]> {
        match self.trace.ops.get(piece.time.op()).map(|op| &op.effect) {
            Some(Effect::Write { data, offset, .. }) if piece.at >= offset.0 => {
                let range = piece.source..piece.source + piece.length;
                Cow::Borrowed(data.get(range).unwrap_or_default())
            }
            _ => Cow::Owned(vec![0; piece.length]),
        }
    }

    /// The moments at which something is forced, in order: where epochs begin.
    #[must_use]
    pub fn barriers(&self) -> Vec<Time> {
        let steps = self.steps.iter().map(|step| step.forced);
        let changes = self.inodes.iter().flat_map(|inode| &inode.changes);
        let mut all: Vec<_> =
            steps.chain(changes.map(|change| change.forced)).filter(|f| *f != NEVER).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

impl Lane {
    /// Whether a file of a size that was set then should hold something that was written to this
    /// block since it was last cut off.
    fn is_due(&self, cut_at: Option<Time>, sized_at: Time) -> bool {
        let since = |piece: &Piece| cut_at.is_none_or(|cut| piece.time > cut);
        self.pieces.iter().any(|piece| piece.time <= sized_at && since(piece))
    }
}

/// The parts of a path that are names.
fn names_in(path: &Path) -> impl Iterator<Item = &std::ffi::OsStr> {
    path.components().filter_map(|component| match component {
        std::path::Component::Normal(name) => Some(name),
        _ => None,
    })
}
