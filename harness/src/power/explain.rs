//! Why a crash state breaks a promise, in words: what is durable too early, what is lost, and what
//! would have helped.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::names::relevant;
use super::remedy::Remedy;
use super::repair::{self, Repair};
use super::survivor::CrashState;
use super::{Content, Ino, Kind, Lowered, NEVER, StepChange, Time};
use crate::op::{Call, Effect, Op};
use crate::verdict::{Promise, ViolationKind};

/// Why a crash state breaks a promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Explanation {
    /// How many ops had been done, or begun, when the power went.
    pub after_ops: usize,
    /// The ops that are lost, or parts of them, by their places in the recording.
    pub lost: Vec<usize>,
    /// The op whose durability the lost ones contradict.
    pub durable: Option<usize>,
    /// All of it in a sentence.
    pub words: String,
    /// What would have helped.
    pub remedy: Remedy,
    /// What explanations of the same cause have in common.
    pub cause: String,
}

impl Explanation {
    /// Why a state is broken that a load does not take for any version.
    #[must_use]
    pub fn of_load(after_ops: usize, kind: ViolationKind) -> Self {
        let remedy = Remedy::LookAtObjection;
        let cause = format!("{} {remedy:?}", kind.promise().name());
        let words = "what the load makes of these files was never saved".to_owned();
        Self { after_ops, lost: Vec::new(), durable: None, words, remedy, cause }
    }

    /// Of a state whose files are all whole, and as new as they must be.
    #[must_use]
    pub fn of_whole(after_ops: usize, kind: ViolationKind) -> Self {
        let (words, remedy) = match kind.promise() {
            Promise::Checked | Promise::Recoverable | Promise::Tidy => (
                "each state file is a whole version, and no older than what was promised: the \
                 load or the check objects to that version, or to what lies beside it",
                Remedy::LookAtObjection,
            ),
            _ => ("the recovery of a sound state is not sound itself", Remedy::SaferRecovery),
        };
        let cause = format!("{} {remedy:?}", kind.promise().name());
        Self { after_ops, lost: Vec::new(), durable: None, words: words.to_owned(), remedy, cause }
    }
}

/// A crash state that breaks a promise.
pub struct Broken<'a> {
    /// The recording.
    pub lowered: &'a Lowered,
    /// The state files.
    pub paths: &'a [PathBuf],
    /// The state.
    pub state: &'a CrashState,
    /// The moment: when the power went, or later, when something was promised.
    pub moment: Time,
    /// What is broken first.
    pub kind: ViolationKind,
    /// Whether the last ack stands for the end with status 0.
    pub ended: bool,
    /// Whether the file holds JSON, which no record can be appended to.
    pub json: bool,
    /// Whether a state breaks the same promise; none where that can't be told without a load.
    pub is_broken: Option<&'a dyn Fn(&CrashState) -> bool>,
}

impl Broken<'_> {
    /// Says why.
    #[must_use]
    pub fn explain(&self) -> Explanation {
        let mut lost = self.lost();
        let repair = self.is_broken.and_then(|is_broken| {
            repair::smallest(self.lowered, (self.state, self.moment), &lost.ops(), is_broken)
        });
        if let Some(Repair::Ops(ops)) = &repair {
            lost.keep(ops);
        }
        let (words, durable, remedy) = match self.kind {
            ViolationKind::LostAck if repair == Some(Repair::Nothing) => self.wrong_order(),
            ViolationKind::LostAck => self.lost_ack(&lost),
            ViolationKind::Missing => self.missing(&lost),
            _ => self.damaged(&lost),
        };
        let ops = lost.ops();
        let file = self.paths.first().map(|path| path.display().to_string()).unwrap_or_default();
        let cause = format!("{} {remedy:?} {file}", self.kind.promise().name());
        let after_ops = self.moment.ops_begun();
        Explanation { after_ops, lost: ops.into_iter().collect(), durable, words, remedy, cause }
    }

    fn op(&self, index: usize) -> &Op {
        &self.lowered.trace.ops[index]
    }

    /// All that had happened and is lost, and matters.
    fn lost(&self) -> Lost {
        let lowered = self.lowered;
        let matters = relevant(lowered, self.paths);
        let mut lost = Lost::default();
        for (index, step) in lowered.steps.iter().enumerate() {
            let number = super::lower::count(index);
            if step.time < self.moment && matters[index] && !self.state.has_step(lowered, number) {
                lost.steps.push((step.time.op(), Step::of(&step.change)));
            }
        }
        let (mut whole, state) = (self.state.clone(), self.state.names(lowered));
        whole.steps = (0..super::lower::count(lowered.steps.len()))
            .filter(|step| lowered.steps[*step as usize].time < self.moment)
            .collect();
        let whole = whole.names(lowered);
        let inos: BTreeSet<Ino> = self
            .paths
            .iter()
            .flat_map(|path| [lowered.find(&state, path), lowered.find(&whole, path)])
            .flatten()
            .filter(|ino| lowered.inode(*ino).kind == Kind::File)
            .collect();
        for ino in inos {
            for (index, change) in lowered.inode(ino).changes.iter().enumerate() {
                let number = super::lower::count(index);
                if change.time < self.moment && !self.state.has_change(lowered, ino, number) {
                    let bytes = match change.what {
                        Content::Data { lane, piece } => {
                            let lane = &lowered.inode(ino).lanes[lane as usize];
                            lane.pieces[piece as usize - 1].length
                        }
                        Content::Size(_) => 0,
                    };
                    lost.writes.push((change.time.op(), (ino, bytes)));
                }
            }
        }
        lost
    }

    /// What the first state file leads to.
    fn ino(&self) -> Option<Ino> {
        let names = self.state.names(self.lowered);
        self.paths.iter().find_map(|path| self.lowered.find(&names, path))
    }

    /// The last step of the state that gave an inode its name, if it came after `time`.
    fn naming(&self, ino: Ino) -> Option<usize> {
        let gives = |change: &StepChange| match change {
            StepChange::Names(changes) => changes.iter().any(|(_, to)| *to == Some(ino)),
            _ => false,
        };
        let steps = self.lowered.steps.iter().enumerate().rev();
        let mut steps = steps
            .filter(|(index, _)| self.state.has_step(self.lowered, super::lower::count(*index)));
        steps.find(|(_, step)| gives(&step.change)).map(|(_, step)| step.time.op())
    }

    fn damaged(&self, lost: &Lost) -> (String, Option<usize>, Remedy) {
        let Some(ino) = self.ino() else { return self.missing(lost) };
        let writes = lost.of(ino);
        let naming = self.naming(ino);
        let renamed = naming.filter(|_| !writes.is_empty()).filter(|op| {
            matches!(self.op(*op).call, Call::Rename | Call::Link)
                && writes.first().is_none_or(|(first, _)| first < op)
        });
        if let Some(op) = renamed {
            let what = self.bytes_of(&writes);
            let why = self.why_not_synced(&writes, op);
            let words = format!("{} is durable, {what} not: {why}", self.name_of(op));
            return (words, Some(op), Remedy::SyncFile);
        }
        if let Some(op) = self.written_on(naming, ino) {
            let words = self.too_early(op, &writes, "the rest of the file was written");
            return (words, Some(op), Remedy::WriteBeforeRename);
        }
        if let Some(op) = self.crossed() {
            let what = self.bytes_of(&writes);
            let words = format!(
                "{} failed with EXDEV, so that the file is copied over the state in place; {what} \
                 not durable",
                self.name_of(op)
            );
            return (words, Some(op), Remedy::TempBeside);
        }
        if let Some(away) = self.removed_before(naming) {
            let words = self.too_early(away, &writes, "the new file was written");
            return (words, Some(away), Remedy::KeepOldName);
        }
        self.in_place(ino, lost)
    }

    /// An op that is durable, and what should have been so before it.
    fn too_early(&self, op: usize, writes: &[(usize, usize)], before: &str) -> String {
        let op = self.name_of(op);
        match writes.is_empty() {
            true => format!("{op} is durable, and the power went before {before}"),
            false => format!("{op} is durable, {} not", self.bytes_of(writes)),
        }
    }

    /// A file that is changed where it is.
    fn in_place(&self, ino: Ino, lost: &Lost) -> (String, Option<usize>, Remedy) {
        let writes = lost.of(ino);
        let cut = self.lowered.inode(ino).resizes.iter().rev().find(|step| {
            self.state.has_step(self.lowered, **step)
                && self.lowered.steps[**step as usize].time < self.moment
        });
        let cut = cut.map(|step| self.lowered.steps[*step as usize].time.op());
        let appended = cut.is_none()
            && !self.json
            && !writes.is_empty()
            && writes.iter().all(|(op, _)| self.appends(*op, ino))
            && (!self.lowered.inode(ino).first.is_empty() || self.is_log(writes[0].0));
        let state = self.paths.first().map(|path| path.display().to_string()).unwrap_or_default();
        let after = lost.steps.first().map(|(op, _)| *op);
        let words = match (cut, writes.is_empty(), after) {
            (Some(op), false, _) => format!(
                "{state} is written in place: {} is durable, {} not",
                self.name_of(op),
                self.bytes_of(&writes)
            ),
            (None, false, _) if appended => {
                format!("{state} has grown, {} not durable", self.bytes_of(&writes))
            }
            (None, false, _) => format!(
                "{state} is written in place: {} not durable, other bytes are",
                self.bytes_of(&writes)
            ),
            (_, true, Some(op)) => {
                format!("{state} is written in place: {} is not durable", self.name_of(op))
            }
            (_, true, None) => format!(
                "{state} is written in place, and the power went before {}",
                self.next_write(ino)
            ),
        };
        let remedy = if appended { Remedy::Checksum } else { Remedy::ReplaceByRename };
        (words, cut, remedy)
    }

    /// The rename that gave a file its name, if the file is written on before anything is promised.
    fn written_on(&self, naming: Option<usize>, ino: Ino) -> Option<usize> {
        let named = naming.filter(|op| matches!(self.op(*op).call, Call::Rename | Call::Link))?;
        let changes = &self.lowered.inode(ino).changes;
        let later = changes.iter().find(|change| change.time > Time::of_effect(named))?;
        let acks = &self.lowered.trace.acks;
        let promised = acks.iter().any(|ops| (named + 1..=later.time.op()).contains(ops));
        (!promised).then_some(named)
    }

    /// The removal of the state before it was made anew by this op.
    fn removed_before(&self, naming: Option<usize>) -> Option<usize> {
        let made = naming.filter(|op| self.op(*op).call == Call::Open)?;
        (0..made).rev().find(|op| {
            let op = self.op(*op);
            matches!(&op.effect, Effect::Unlink { path } if self.paths.contains(path))
                && op.succeeded()
        })
    }

    /// What an in-place save does next.
    fn next_write(&self, ino: Ino) -> String {
        let changes = &self.lowered.inode(ino).changes;
        match changes.iter().find(|change| change.time >= self.moment) {
            Some(change) => format!("op {} wrote the rest", change.time.op()),
            None => "the save was done".to_owned(),
        }
    }

    /// Whether the file that an op writes to is opened to be appended to.
    fn is_log(&self, op: usize) -> bool {
        let path = self.op(op).effect.path();
        self.lowered.trace.ops[..=op]
            .iter()
            .any(|op| op.flags & libc::O_APPEND != 0 && op.effect.path() == path)
    }

    fn appends(&self, op: usize, ino: Ino) -> bool {
        let grows = |change: &&super::Change| matches!(change.what, Content::Size(_));
        let changes = &self.lowered.inode(ino).changes;
        changes.iter().filter(grows).any(|change| change.time.op() == op)
    }

    fn missing(&self, lost: &Lost) -> (String, Option<usize>, Remedy) {
        let names = |op: &Op| match &op.effect {
            Effect::Unlink { path } => self.paths.contains(path),
            Effect::Rename { from, .. } => self.paths.contains(from),
            _ => false,
        };
        let before = self.lowered.steps.iter().enumerate().rev().filter(|(index, step)| {
            step.time < self.moment
                && self.state.has_step(self.lowered, super::lower::count(*index))
        });
        let away = before.map(|(_, step)| step.time.op()).find(|op| names(self.op(*op)));
        let Some(away) = away else { return self.lost_ack(lost) };
        let back = lost.steps.iter().map(|(op, _)| *op).find(|op| *op > away);
        let words = match back {
            Some(back) => {
                format!("{} is durable, {} is not", self.name_of(away), self.name_of(back))
            }
            None => format!(
                "{} is durable, and the power went before the new file had its name",
                self.name_of(away)
            ),
        };
        (words, Some(away), Remedy::KeepOldName)
    }

    /// The last ack before the moment, how many ops had been done then, and how it was given.
    fn promise(&self) -> (usize, String) {
        let acks = self.lowered.trace.acks.iter().enumerate();
        let mut acks = acks.filter(|(_, ops)| Time::after_ops(**ops) <= self.moment);
        let (ack, ops) = acks.next_back().map_or((0, 0), |(n, ops)| (n + 1, *ops));
        let given = match self.ended && ack == self.lowered.trace.acks.len() {
            true => "the program has ended with status 0".to_owned(),
            false => format!("ack {ack} is given"),
        };
        (ops, given)
    }

    /// A promise that is broken with all that had been done.
    fn wrong_order(&self) -> (String, Option<usize>, Remedy) {
        let (ack_ops, given) = self.promise();
        let takes_away = |op: &Op| {
            op.succeeded()
                && match &op.effect {
                    Effect::Unlink { path } => self.paths.contains(path),
                    Effect::Rename { from, exchange: false, .. } => self.paths.contains(from),
                    _ => false,
                }
        };
        let after = self.lowered.trace.ops.iter().enumerate().skip(ack_ops);
        let until = self.moment.ops_begun();
        let mut done = after.clone().take_while(|(index, _)| *index < until);
        if let Some((away, _)) = done.find(|(_, op)| takes_away(op)) {
            let words = format!(
                "{given}, and {} takes that state away before the new one is there",
                self.name_of(away)
            );
            return (words, Some(away), Remedy::KeepOldName);
        }
        let mut after = after;
        let words = match after.find(|(_, op)| op.changes()) {
            Some((first, _)) => {
                format!("{given} before {}, with which its save begins", self.name_of(first))
            }
            None => format!("{given}, and nothing is saved after it"),
        };
        (words, None, Remedy::AckLater)
    }

    /// The op that makes all of this durable, if it comes after the ack and before the next save.
    fn synced_late(&self, lost: &Lost, ack_ops: usize) -> Option<usize> {
        let ops = lost.ops();
        let steps = self.lowered.steps.iter().map(|step| (step.time, step.forced));
        let inodes = self.lowered.inodes.iter();
        let changes = inodes.flat_map(|inode| &inode.changes).map(|one| (one.time, one.forced));
        let lost = steps.chain(changes).filter(|(time, forced)| {
            ops.contains(&time.op()) && *time < self.moment && forced.0 > self.state.barrier
        });
        let forced = lost.map(|(_, forced)| forced).max().filter(|forced| *forced != NEVER)?;
        let sync = forced.op();
        // What the next save syncs for itself is no sync of this one that came late.
        let between = self.lowered.trace.ops.get(ack_ops..sync)?;
        let next = |op: &Op| matches!(op.effect, Effect::Open { create: true, .. });
        let acked = |ops: &usize| (ack_ops + 1..=sync).contains(ops);
        let same = !between.iter().any(next) && !self.lowered.trace.acks.iter().any(acked);
        same.then_some(sync)
    }

    fn lost_ack(&self, lost: &Lost) -> (String, Option<usize>, Remedy) {
        let (ack_ops, given) = self.promise();
        let names_state = |op: &usize| match &self.op(*op).effect {
            Effect::Rename { to, .. } | Effect::Link { to, .. } => self.paths.contains(to),
            Effect::Open { path, .. } | Effect::Symlink { path, .. } => self.paths.contains(path),
            _ => false,
        };
        let names = lost.steps.iter().filter(|(_, step)| *step == Step::Names);
        let all_names: Vec<usize> = names.map(|(op, _)| *op).collect();
        let naming = all_names.iter().copied().rfind(names_state);
        let naming =
            naming.or_else(|| all_names.last().copied().filter(|_| lost.writes.is_empty()));
        let what = match naming {
            Some(op) => format!("{} is", self.name_of(op)),
            None if lost.writes.is_empty() => match lost.steps.last() {
                Some((op, _)) => format!("{} is", self.name_of(*op)),
                None => "the save is".to_owned(),
            },
            None => self.bytes_of(&lost.all_writes()),
        };
        if let Some(late) = self.synced_late(lost, ack_ops) {
            let late = self.name_of(late);
            let words = format!("{given} before {late}, and {what} not durable");
            return (words, None, Remedy::AckLater);
        }
        let Some(naming) = naming else {
            let why = self.why_not_synced(&lost.all_writes(), ack_ops);
            let remedy = match lost.writes.is_empty() {
                true => Remedy::SyncDirectory,
                false => Remedy::SyncFileBeforeAck,
            };
            return (format!("{given}, and {what} not durable: {why}"), None, remedy);
        };
        let unsynced = !lost.writes.is_empty();
        let directories: BTreeSet<&Path> = match unsynced {
            true => BTreeSet::from([self.op(naming).effect.path().as_path()]),
            false => all_names.iter().map(|op| self.op(*op).effect.path().as_path()).collect(),
        };
        let parents = directories.into_iter().filter_map(Path::parent);
        let parents: Vec<_> = parents.filter(|path| !path.as_os_str().is_empty()).collect();
        let directory = match &parents[..] {
            [] => "its directory".to_owned(),
            parents => {
                let names: Vec<_> = parents.iter().map(|path| path.display().to_string()).collect();
                format!("its directory {}", names.join(", nor on "))
            }
        };
        let words =
            format!("{given}, and {what} not durable: nothing calls fsync on {directory} after it");
        (words, None, if unsynced { Remedy::SyncFileAndDirectory } else { Remedy::SyncDirectory })
    }

    /// A rename to another file system, which failed.
    fn crossed(&self) -> Option<usize> {
        let ops = self.lowered.trace.ops.iter();
        ops.enumerate()
            .take_while(|(index, _)| Time::of_effect(*index) < self.moment)
            .filter(|(_, op)| op.call == Call::Rename && op.result == -i64::from(libc::EXDEV))
            .map(|(index, _)| index)
            .last()
    }

    /// What an op does, in words.
    fn name_of(&self, index: usize) -> String {
        let (op, name) = (self.op(index), |path: &Path| match path.as_os_str() {
            root if root == OsStr::new("") => "the directory".to_owned(),
            _ => path.display().to_string(),
        });
        let made = self.lowered.steps.iter().any(|step| {
            step.time == Time::of_effect(index) && matches!(step.change, StepChange::Names(_))
        });
        let what = match &op.effect {
            Effect::Open { path, .. } if made => format!("the making of {}", name(path)),
            Effect::Rename { from, to, exchange: true } => {
                format!("the exchange of {} and {}", name(from), name(to))
            }
            Effect::Rename { from, to, .. } => {
                let over = if self.paths.contains(to) { "over" } else { "to" };
                format!("the rename of {} {over} {}", name(from), name(to))
            }
            Effect::Link { from, to } => format!("the link of {} as {}", name(from), name(to)),
            Effect::Unlink { path } => format!("the removal of {}", name(path)),
            Effect::Open { path, truncate: true, .. } => {
                format!("the truncation of {}", name(path))
            }
            Effect::Open { path, .. } => format!("the making of {}", name(path)),
            Effect::Truncate { path, length } => {
                format!("the cut of {} to {} bytes", name(path), length.0)
            }
            Effect::Sync { path } => format!("the {} of {}", op.call.name(), name(path)),
            Effect::Close { path } => format!("the close of {}", name(path)),
            other => format!("the {} of {}", op.call.name(), name(other.path())),
        };
        format!("{what} (op {index})")
    }

    /// What was lost of these writes, with its verb.
    fn bytes_of(&self, writes: &[(usize, usize)]) -> String {
        let bytes: usize = writes.iter().map(|(_, bytes)| bytes).sum();
        let ops: BTreeSet<usize> = writes.iter().map(|(op, _)| *op).collect();
        let whole: usize = ops.iter().map(|op| self.op(*op).written()).sum();
        let at = match (ops.first(), ops.last()) {
            (Some(first), Some(last)) if first == last => format!("at op {first}"),
            (Some(first), Some(last)) => format!("at ops {first} to {last}"),
            _ => return "nothing is".to_owned(),
        };
        match bytes {
            0 => format!("the length that the file got {at} is"),
            _ if bytes < whole => format!("{bytes} of the {whole} bytes written {at} are"),
            _ => format!("the {bytes} bytes written {at} are"),
        }
    }

    /// Why nothing made these writes durable before an op.
    fn why_not_synced(&self, writes: &[(usize, usize)], before: usize) -> String {
        let Some((last, _)) = writes.last() else { return "nothing syncs it".to_owned() };
        let path = self.op(*last).effect.path().clone();
        let syncs = |range: std::ops::Range<usize>, calls: &[Call]| {
            range.rev().find(|index| {
                let op = self.op(*index);
                calls.contains(&op.call) && *op.effect.path() == path
            })
        };
        let real = [Call::Fsync, Call::Fdatasync, Call::Msync];
        if let Some(op) = syncs(*last..before.max(*last), &[Call::SyncFileRange]) {
            return format!("sync_file_range (op {op}) promises nothing");
        }
        let failed = syncs(*last..before.max(*last), &real);
        if let Some(op) = failed.filter(|op| !self.op(*op).succeeded()) {
            return format!("the fsync of that file failed (op {op})");
        }
        match syncs(0..*last, &real) {
            Some(op) => format!("the fsync of that file (op {op}) came before op {last}"),
            None => match before < self.lowered.trace.ops.len() {
                true => format!("nothing calls fsync on that file before op {before}"),
                false => "nothing calls fsync on that file".to_owned(),
            },
        }
    }
}

/// What a lost step does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It changes names.
    Names,
    /// It changes a file.
    File,
}

impl Step {
    fn of(change: &StepChange) -> Self {
        match change {
            StepChange::Names(_) => Self::Names,
            StepChange::Resize { .. } | StepChange::Closed => Self::File,
        }
    }
}

/// What had happened and is lost.
#[derive(Default)]
struct Lost {
    /// Ops, and what they do.
    steps: Vec<(usize, Step)>,
    /// Op, inode, and how many bytes.
    writes: Vec<(usize, (Ino, usize))>,
}

impl Lost {
    /// All ops of which something is lost.
    fn ops(&self) -> BTreeSet<usize> {
        let steps = self.steps.iter().map(|(op, _)| *op);
        steps.chain(self.writes.iter().map(|(op, _)| *op)).collect()
    }

    /// Leaves out what other ops did.
    fn keep(&mut self, ops: &BTreeSet<usize>) {
        self.steps.retain(|(op, _)| ops.contains(op));
        self.writes.retain(|(op, _)| ops.contains(op));
    }

    /// The lost writes of one inode.
    fn of(&self, ino: Ino) -> Vec<(usize, usize)> {
        let of_it = self.writes.iter().filter(|(_, (of, _))| *of == ino);
        of_it.map(|(op, (_, bytes))| (*op, *bytes)).collect()
    }

    fn all_writes(&self) -> Vec<(usize, usize)> {
        self.writes.iter().map(|(op, (_, bytes))| (*op, *bytes)).collect()
    }
}
