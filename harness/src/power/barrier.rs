//! Barriers: what fsync and its kin make durable, for one profile.
//!
//! Each step and each change is forced at most once, so that all barriers together take a time that
//! is linear in the length of the trace.

use std::collections::BTreeSet;

use super::lower::Lowering;
use super::profile::{FsyncOfFile, Pushes};
use super::{Content, Ino, Kind, NEVER, StepChange, Time};
use crate::op::{Call, Op};

/// How far the barriers have come.
#[derive(Default)]
pub(super) struct Progress {
    /// All steps before this one are forced.
    steps: usize,
    inodes: Vec<InodeProgress>,
    /// What was changed since everything was forced.
    changed: BTreeSet<Ino>,
}

/// How far they have come with one inode.
#[derive(Default)]
struct InodeProgress {
    /// All changes before this one are forced.
    changes: usize,
    /// The steps that are about it: its names, its length, and, of a directory, what is in it.
    touched_by: Vec<u32>,
    /// All of those before this one are forced.
    touched: usize,
    /// All of the steps that set its length before this one are forced.
    resizes: usize,
    /// All of what gives it, and the directories above it, a name before this one is forced.
    named: usize,
}

impl Progress {
    pub(super) fn add_inode(&mut self) {
        self.inodes.push(InodeProgress::default());
    }

    /// Notes that the content of an inode was changed.
    pub(super) fn change(&mut self, ino: Ino) {
        self.changed.insert(ino);
    }

    /// Notes that a step is about an inode.
    pub(super) fn touch(&mut self, ino: Ino, step: u32) {
        let touched = &mut self.inodes[ino.0 as usize].touched_by;
        if touched.last() != Some(&step) {
            touched.push(step);
        }
    }
}

/// What a barrier promises about a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Promise {
    /// `fsync`: all of it.
    All,
    /// `fdatasync`: what it takes to read its data again.
    Data,
}

impl Lowering<'_> {
    /// A call that makes something durable: an inode, or everything.
    pub(super) fn barrier(&mut self, call: Call, target: Option<Ino>) {
        match (call, target) {
            (Call::Sync, _) => self.everything(),
            (Call::Fsync | Call::Msync, Some(ino)) => self.sync(ino, Promise::All),
            (Call::Fdatasync, Some(ino)) => self.sync(ino, Promise::Data),
            // sync_file_range promises nothing (sync_file_range(2), WARNING).
            _ => {}
        }
    }

    /// A write whose file was opened, or that was asked, to be synchronous.
    pub(super) fn synchronous_write(&mut self, op: &Op, ino: Ino) {
        let has = |flag: i32| op.flags & flag == flag;
        if has(libc::O_SYNC) {
            self.written(ino, Promise::All);
        } else if has(libc::O_DSYNC) {
            self.written(ino, Promise::Data);
        }
    }

    fn moment(&self) -> Time {
        self.now.of_barrier()
    }

    fn everything(&mut self) {
        for ino in std::mem::take(&mut self.forced.changed) {
            self.contents(ino);
        }
        self.steps_up_to(self.lowered.steps.len());
    }

    /// The data that this op has written, and what it takes to find it; not that of earlier writes.
    fn written(&mut self, ino: Ino, promise: Promise) {
        let inode = &self.lowered.inodes[ino.0 as usize];
        let of_op = inode.changes.iter().rev().take_while(|change| change.time == self.now).count();
        let (first, moment) = (inode.changes.len() - of_op, self.moment());
        let grows = matches!(inode.changes.last().map(|last| &last.what), Some(Content::Size(_)));
        let limit = if grows { self.steps_before_last_growth(ino) } else { 0 };
        let mut open: Vec<u32> = (first..inode.changes.len()).map(super::lower::count).collect();
        while let Some(change) = open.pop() {
            let change = &mut self.lowered.inodes[ino.0 as usize].changes[change as usize];
            if change.forced == NEVER {
                change.forced = moment;
                open.extend(&change.needs);
                let resize = change.resize;
                self.force_resize(resize);
            }
        }
        self.names_of(ino, promise, limit);
    }

    fn sync(&mut self, ino: Ino, promise: Promise) {
        let is_directory = self.lowered.inode(ino).kind == Kind::Directory;
        let limit = self.steps_before_last_growth(ino);
        self.contents(ino);
        if is_directory && self.flags.fsync_of_file == FsyncOfFile::NoNames {
            self.entries_of(ino);
        } else {
            self.names_of(ino, promise, limit);
        }
    }

    /// How many steps came before the last write that made the file grow and is not yet forced: its
    /// new size, and the space that it takes, are in the journal after them.
    fn steps_before_last_growth(&self, ino: Ino) -> usize {
        let inode = self.lowered.inode(ino);
        let last = inode.last_size.map(|last| &inode.changes[last as usize]);
        match last.filter(|change| change.forced == NEVER) {
            Some(growth) => growth.commit.map_or(0, |step| step as usize + 1),
            None => 0,
        }
    }

    /// The names, and the length, that a barrier on an inode takes care of.
    fn names_of(&mut self, ino: Ino, promise: Promise, growth: usize) {
        let resizes = self.lowered.inode(ino).resizes.len();
        match self.flags.fsync_of_file {
            FsyncOfFile::NoNames => {
                let progress = &mut self.forced.inodes[ino.0 as usize];
                let from = std::mem::replace(&mut progress.resizes, resizes);
                for index in from..resizes {
                    self.force_step(self.lowered.inode(ino).resizes[index]);
                }
            }
            FsyncOfFile::OwnNames => {
                self.touching(ino);
                self.parents(ino);
            }
            FsyncOfFile::AllBefore => {
                let touched = match promise {
                    Promise::All => self.forced.inodes[ino.0 as usize].touched_by.last().copied(),
                    Promise::Data => self.lowered.inode(ino).resizes.last().copied(),
                };
                let touched = touched.map_or(0, |step| step as usize + 1);
                self.steps_up_to(touched.max(growth));
            }
        }
    }

    /// Everything that was done to an inode.
    fn touching(&mut self, ino: Ino) {
        let progress = &mut self.forced.inodes[ino.0 as usize];
        let from = std::mem::replace(&mut progress.touched, progress.touched_by.len());
        let steps = progress.touched_by[from..].to_vec();
        for step in steps {
            self.force_step(step);
        }
    }

    /// What was changed in a directory: the names that came, and those that went and came nowhere. Of
    /// a rename the directory that got the name is promised to have it.
    fn entries_of(&mut self, directory: Ino) {
        let progress = &mut self.forced.inodes[directory.0 as usize];
        let from = std::mem::replace(&mut progress.touched, progress.touched_by.len());
        let steps = progress.touched_by[from..].to_vec();
        for step in steps {
            let StepChange::Names(changes) = &self.lowered.steps[step as usize].change else {
                continue;
            };
            let comes = changes.iter().any(|(_, to)| to.is_some());
            let here = changes.iter().any(|(entry, to)| {
                let found = &self.lowered.entries[entry.0 as usize];
                found.directory == directory && (to.is_some() || !comes)
            });
            if here {
                self.force_step(step);
            }
        }
    }

    /// The making of the directories that lead to an inode.
    fn parents(&mut self, ino: Ino) {
        let mut open = vec![ino];
        while let Some(ino) = open.pop() {
            let progress = &mut self.forced.inodes[ino.0 as usize];
            let from = std::mem::replace(&mut progress.named, progress.touched_by.len());
            let steps = progress.touched_by[from..].to_vec();
            for step in steps {
                if self.names_it(step, ino) {
                    self.force_step(step);
                    open.extend(self.directories(step));
                }
            }
        }
    }

    /// Whether a step gives an inode a name.
    fn names_it(&self, step: u32, ino: Ino) -> bool {
        match &self.lowered.steps[step as usize].change {
            StepChange::Names(changes) => changes.iter().any(|(_, to)| *to == Some(ino)),
            StepChange::Resize { .. } | StepChange::Closed => false,
        }
    }

    /// The directories in which a step changes names.
    fn directories(&self, step: u32) -> Vec<Ino> {
        match &self.lowered.steps[step as usize].change {
            StepChange::Names(changes) => changes
                .iter()
                .map(|(entry, _)| self.lowered.entries[entry.0 as usize].directory)
                .collect(),
            StepChange::Resize { .. } | StepChange::Closed => Vec::new(),
        }
    }

    /// All data, and the length, of an inode.
    fn contents(&mut self, ino: Ino) {
        self.contents_until(ino, Time(u32::MAX), Pushes::Waits);
    }

    /// The contents of an inode from before `until`: all, or its sizes only.
    fn contents_until(&mut self, ino: Ino, until: Time, what: Pushes) {
        let moment = self.moment();
        let inode = &mut self.lowered.inodes[ino.0 as usize];
        let from = self.forced.inodes[ino.0 as usize].changes;
        let mut whole = true;
        for (index, change) in inode.changes.iter_mut().enumerate().skip(from) {
            let sizes_only = what == Pushes::Allocates && !matches!(change.what, Content::Size(_));
            if change.time >= until {
                break;
            }
            if sizes_only {
                whole = false;
            } else if change.forced == NEVER {
                change.forced = moment;
            }
            if whole {
                self.forced.inodes[ino.0 as usize].changes = index + 1;
            }
        }
    }

    fn steps_up_to(&mut self, limit: usize) {
        for step in self.forced.steps..limit {
            self.force_step(super::lower::count(step));
        }
        self.forced.steps = self.forced.steps.max(limit);
    }

    fn force_resize(&mut self, resize: Option<u32>) {
        if let Some(step) = resize {
            self.force_step(step);
        }
    }

    fn force_step(&mut self, step: u32) {
        let moment = self.moment();
        let found = &mut self.lowered.steps[step as usize];
        if found.forced != NEVER {
            return;
        }
        found.forced = moment;
        let (time, pushes) = (found.time, found.pushes);
        // What is in the journal before the step is there, too.
        if let Some((ino, how)) = pushes {
            self.contents_until(ino, time, how);
        }
    }
}
