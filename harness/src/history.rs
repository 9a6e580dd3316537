//! The versions that a state goes through in the unbroken run, and which of them is owed when.
//!
//! They are learned from the trace alone. A version is what the state files hold at an ack, when
//! a file is renamed or linked to its place, when a file that was written is closed, and at the
//! end. If the last version is JSON, what is not JSON at such a moment is no version: a program
//! that empties its file, closes it and opens it again to write has no empty version.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imbl::ordmap::DiffItem;

use crate::learner::Learner;
use crate::lengths::Lengths;
use crate::loads::Loads;
use crate::model::{Files, NotModelled};
use crate::op::Trace;
use crate::template::Template;

/// The bytes of the state files at one moment; a file that was not there is not in it. Two moments share what
/// is the same in both, so that thousands of files in thousands of versions fit into memory.
pub type States = imbl::OrdMap<PathBuf, Arc<Reference>>;

/// What one state file holds in one version.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    /// The bytes of the first unbroken run.
    pub bytes: Vec<u8>,
    /// What is the same in every run, when the bytes are not.
    pub template: Option<Template>,
}

impl Reference {
    /// Whether `bytes` are this version.
    #[must_use]
    pub fn fits(&self, bytes: &[u8]) -> bool {
        self.bytes == bytes || self.template.as_ref().is_some_and(|template| template.fits(bytes))
    }
}

/// Whether a second unbroken run leaves the same versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    /// Byte for byte.
    Exactly,
    /// As JSON, but for some values.
    InShape,
    /// Not at all: only damage that needs no comparison is seen.
    No,
}

/// All versions of a run.
#[derive(Clone, Debug)]
pub struct History {
    /// In their order; the first is the state before the run.
    pub versions: Vec<States>,
    /// For each number of acks, the version that is then owed; the first is for none.
    pub owed: Vec<usize>,
    /// Which ack it is that says this (a hash of its line); empty if they do not say different
    /// things, the same in every run.
    pub said: HashMap<u64, usize>,
    /// How many acks make a run, if the versions of a longer one are known.
    pub run_acks: Option<u64>,
    /// For each version, how many ops had been done when it was there; empty if that is not known, or not the
    /// same in every run.
    pub since: Vec<usize>,
    /// For each ack, how many ops had been done when it came; empty if that is not known.
    pub acked: Vec<usize>,
    /// Whether the versions can be compared with those of another run.
    pub repeats: Repeats,
    /// Whether their order is the same in every run, so that an older one is a lost one.
    pub order: Order,
    /// Whether there can be other versions once something has failed.
    pub after_failure: AfterFailure,
    /// The state files that were there and empty at some moment of the run.
    pub begun: BTreeSet<PathBuf>,
    /// The state files that may be there and empty as long as nothing was promised that is in them.
    pub starts_empty: BTreeSet<PathBuf>,
    /// How long each state file is in any version, where every run has the same lengths.
    pub lengths: Lengths,
    /// The numbers of acks that the judged files do not tell from the acks before: see [`crate::undistinguished`].
    pub undistinguished: BTreeSet<u64>,
    /// The versions as the program's own load prints them, if that tells them apart.
    pub loads: Option<Arc<Loads>>,
}

/// What a program saves when something has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFailure {
    /// The same versions.
    Same,
    /// Perhaps others: it may count its failures, or save at other times.
    MayDiffer,
}

/// Whether versions come in the same order in every run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// They do.
    Fixed,
    /// Several threads or processes save, and their order is not known to be the same.
    Open,
}

/// The files that two versions do not have in common.
fn changed<'a>(before: &'a States, after: &'a States) -> impl Iterator<Item = PathBuf> + 'a {
    before.diff(after).map(|item| match item {
        DiffItem::Add(path, _) | DiffItem::Remove(path, _) => path.clone(),
        DiffItem::Update { new: (path, _), .. } => path.clone(),
    })
}

impl History {
    /// Learns the versions of the files that `is_state` selects.
    pub fn learn(
        trace: &Trace,
        before: &Files,
        is_state: &dyn Fn(&Path) -> bool,
    ) -> Result<Self, NotModelled> {
        let mut learner = Learner::new(before.clone(), is_state);
        for (done, op) in trace.ops.iter().enumerate() {
            learner.acks_up_to(trace, done);
            learner.op(op)?;
        }
        learner.acks_up_to(trace, trace.ops.len());
        learner.moment();
        let mut history = learner.finish();
        history.acked.clone_from(&trace.acks);
        history.said = said(&trace.said, trace.acks.len());
        Ok(history)
    }

    /// A history that is known beforehand: one file, one ack a version.
    #[must_use]
    pub fn of_versions(file: &Path, versions: Vec<Vec<u8>>) -> Self {
        let owed = (0..versions.len()).collect();
        let versions = versions
            .into_iter()
            .map(|bytes| {
                let reference = Arc::new(Reference { bytes, template: None });
                States::unit(file.to_owned(), reference)
            })
            .collect();
        Self {
            versions,
            owed,
            said: HashMap::new(),
            run_acks: None,
            since: Vec::new(),
            acked: Vec::new(),
            repeats: Repeats::Exactly,
            order: Order::Fixed,
            after_failure: AfterFailure::Same,
            begun: BTreeSet::new(),
            starts_empty: BTreeSet::new(),
            lengths: Lengths::default(),
            undistinguished: BTreeSet::new(),
            loads: None,
        }
    }

    /// Puts a version before all others that has no file.
    pub fn begin_with_nothing(&mut self) {
        self.versions.insert(0, States::new());
        self.owed = (0..self.versions.len()).collect();
    }

    /// A history of which only the first and the last version are known.
    #[must_use]
    pub fn of_ends(before: BTreeMap<PathBuf, Vec<u8>>, after: BTreeMap<PathBuf, Vec<u8>>) -> Self {
        let states = |files: BTreeMap<PathBuf, Vec<u8>>| {
            let reference = |bytes| Arc::new(Reference { bytes, template: None });
            files.into_iter().map(|(path, bytes)| (path, reference(bytes))).collect()
        };
        let versions = vec![states(before), states(after)];
        Self {
            versions,
            owed: vec![0],
            said: HashMap::new(),
            run_acks: None,
            since: Vec::new(),
            acked: Vec::new(),
            repeats: Repeats::No,
            order: Order::Open,
            after_failure: AfterFailure::MayDiffer,
            begun: BTreeSet::new(),
            starts_empty: BTreeSet::new(),
            lengths: Lengths::default(),
            undistinguished: BTreeSet::new(),
            loads: None,
        }
    }

    /// Finds the files that may be there and empty before anything was saved: those that were `touched`, closed
    /// empty when nothing had been in them, and those of stores and logs. A file that is `rewritten`, written from
    /// the beginning for each save, is no such file, whatever it holds, nor is JSON.
    #[must_use]
    pub fn with_starts(
        mut self,
        touched: &BTreeSet<PathBuf>,
        rewritten: &BTreeSet<PathBuf>,
    ) -> Self {
        let grows = |path: &PathBuf| {
            let all: Vec<&[u8]> =
                self.versions.iter().filter_map(|v| Some(&v.get(path)?.bytes[..])).collect();
            all.len() > 1 && all.windows(2).all(|pair| pair[1].starts_with(pair[0]))
        };
        let may = |path: &PathBuf| {
            let store = !self.is_json(path) && (!rewritten.contains(path) || grows(path));
            touched.contains(path) || store
        };
        self.starts_empty = self.files().into_iter().filter(|path| may(path)).cloned().collect();
        self
    }

    /// Compares with a second run and makes templates where the bytes differ.
    pub fn confirm(&mut self, second: &Self) {
        if self.said != second.said {
            self.said.clear();
        }
        if self.since != second.since {
            self.since.clear();
        }
        self.lengths = Lengths::common(&self.versions, &second.versions);
        if self.versions.len() != second.versions.len() || self.owed != second.owed {
            self.repeats = Repeats::No;
            return;
        }
        // Version by version only what is not as in the one before: all else was compared there.
        let nothing = States::new();
        let (mut mine_before, mut theirs_before) = (nothing.clone(), &nothing);
        let mut confirmed = nothing.clone();
        for (mine, theirs) in self.versions.iter_mut().zip(&second.versions) {
            let names: BTreeSet<PathBuf> =
                changed(&mine_before, mine).chain(changed(theirs_before, theirs)).collect();
            for name in names {
                let (reference, other) = match (mine.get(&name), theirs.get(&name)) {
                    (Some(reference), Some(other)) => (reference, other),
                    (None, None) => {
                        confirmed.remove(&name);
                        continue;
                    }
                    _ => {
                        self.repeats = Repeats::No;
                        return;
                    }
                };
                let mut reference = Arc::clone(reference);
                if reference.bytes != other.bytes {
                    let Some(template) = Template::learn(&reference.bytes, &other.bytes) else {
                        self.repeats = Repeats::No;
                        return;
                    };
                    self.repeats = Repeats::InShape;
                    Arc::make_mut(&mut reference).template = Some(template);
                }
                confirmed.insert(name, reference);
            }
            (mine_before, theirs_before) = (std::mem::replace(mine, confirmed.clone()), theirs);
        }
    }

    /// Two files that both change in one acknowledged save, if there are two: a state with one of them new and the
    /// other old is a version of each.
    #[must_use]
    pub fn untied(&self) -> Option<[PathBuf; 2]> {
        let state = |owed: usize| self.versions.get(owed);
        self.owed.windows(2).find_map(|pair| {
            let mut files = changed(state(pair[0])?, state(pair[1])?);
            Some([files.next()?, files.next()?])
        })
    }

    /// How many acks count as given after so many that said this: up to the newest of the unbroken run's.
    #[must_use]
    pub fn acks_promised(&self, acks: u64, said: &[u64]) -> u64 {
        if self.said.is_empty() || said.len() as u64 != acks {
            return acks;
        }
        let newest = said.iter().filter_map(|line| self.said.get(line)).max();
        newest.map_or(0, |ack| *ack as u64 + 1)
    }

    /// The version owed after acks that said this: the newest of those that were promised. If
    /// nobody knows what they promised, it is by their number.
    #[must_use]
    pub fn owed_by(&self, acks: u64, said: &[u64]) -> usize {
        if self.said.is_empty() || said.len() as u64 != acks {
            return self.owed_after(acks);
        }
        let promised = said.iter().filter_map(|line| self.said.get(line));
        promised.filter_map(|ack| self.owed.get(ack + 1)).max().copied().unwrap_or(self.owed[0])
    }

    /// For each number of acks of a recorded run, what is owed then; it never gets less.
    #[must_use]
    pub fn owed_by_acks(&self, acks: usize, said: &[u64]) -> Vec<usize> {
        let first = self.owed_by(0, &[]);
        let mut owed = vec![first];
        for ack in 1..=acks {
            // One more line, and what it promises; as `owed_by`, without going through all again.
            let next = match (self.said.is_empty() || said.len() < ack, owed.last()) {
                (false, Some(before)) => {
                    let promised = self.said.get(&said[ack - 1]);
                    let promised = promised.and_then(|line| self.owed.get(line + 1));
                    promised.copied().unwrap_or(first).max(*before)
                }
                (_, before) => self.owed_after(ack as u64).max(before.copied().unwrap_or(first)),
            };
            owed.push(next);
        }
        owed
    }

    /// How many acks a run gives.
    #[must_use]
    pub fn acks_of_a_run(&self) -> u64 {
        let all = self.owed.len().saturating_sub(1) as u64;
        self.run_acks.map_or(all, |acks| acks.min(all))
    }

    /// Whether every ack of an unbroken run was given.
    #[must_use]
    pub fn all_acked(&self, acks: u64) -> bool {
        let all = self.acks_of_a_run();
        all > 0 && acks >= all
    }

    /// Whether some of these acks say what no unbroken run says.
    #[must_use]
    pub fn says_more(&self, said: &[u64]) -> bool {
        !self.said.is_empty() && said.iter().any(|line| !self.said.contains_key(line))
    }

    /// The version owed after `acks` acks.
    #[must_use]
    pub fn owed_after(&self, acks: u64) -> usize {
        let last = self.owed.len().saturating_sub(1);
        let acks = usize::try_from(acks).unwrap_or(usize::MAX).min(last);
        self.owed.get(acks).copied().unwrap_or(0)
    }

    /// Whether every run goes through the same versions in the same order, but for volatile values:
    /// then what is none of them is damage, and an older one than is owed is a loss.
    #[must_use]
    pub fn versions_are_known(&self) -> bool {
        match self.repeats {
            Repeats::Exactly => true,
            Repeats::InShape => self.order == Order::Fixed,
            Repeats::No => false,
        }
    }

    /// Whether `file` may be missing when the run is struck at op `op` after so many acks: only if the version
    /// that is there then, or the next one, has no such file.
    #[must_use]
    pub fn may_be_missing(&self, file: &Path, op: Option<usize>, acks: u64, owed: usize) -> bool {
        // One that has given fewer acks than others at that op has done other calls, and is elsewhere.
        let in_step = |op: usize| self.acked.partition_point(|ops| *ops <= op) as u64 == acks;
        let current = match op.filter(|op| in_step(*op)) {
            // The op may have been done, and its own version may be there already.
            Some(op) if !self.since.is_empty() && self.repeats != Repeats::No => {
                self.since.partition_point(|since| *since <= op).saturating_sub(1)
            }
            _ => owed,
        };
        let current = current.max(owed);
        let mut possible = (current..=current + 1).filter_map(|n| self.versions.get(n));
        possible.any(|version| !version.contains_key(file))
    }

    /// The last version.
    #[must_use]
    pub fn last(&self) -> usize {
        self.versions.len() - 1
    }

    /// All files that any version has.
    #[must_use]
    pub fn files(&self) -> BTreeSet<&PathBuf> {
        self.versions.iter().flat_map(States::keys).collect()
    }

    /// Whether every version of `file` is JSON.
    #[must_use]
    pub fn is_json(&self, file: &Path) -> bool {
        self.versions.iter().filter_map(|version| version.get(file)).all(|r| is_json(&r.bytes))
    }
}

/// Whether bytes are a JSON object or array. A lone number is no sign that a state is JSON: a piece
/// of one is a number, too.
pub fn is_json(bytes: &[u8]) -> bool {
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    matches!(first, Some(b'{' | b'['))
        && serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok()
}

/// Which ack says what, if each of `acks` says something of its own.
fn said(lines: &[u64], acks: usize) -> HashMap<u64, usize> {
    let said: HashMap<u64, usize> = lines.iter().enumerate().map(|(n, line)| (*line, n)).collect();
    if said.len() == acks { said } else { HashMap::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{ByteOffset, Call, Effect, Op};

    fn op(call: Call, effect: Effect) -> Op {
        Op::new(call, 1, effect, 0)
    }

    fn open(path: &str) -> Op {
        op(Call::Open, Effect::Open { path: path.into(), create: true, truncate: true })
    }

    fn write(path: &str, offset: u64, data: &str) -> Op {
        let effect =
            Effect::Write { path: path.into(), offset: ByteOffset(offset), data: data.into() };
        op(Call::Write, effect)
    }

    fn close(path: &str) -> Op {
        op(Call::Close, Effect::Close { path: path.into() })
    }

    fn rename(from: &str, to: &str) -> Op {
        op(Call::Rename, Effect::Rename { from: from.into(), to: to.into(), exchange: false })
    }

    fn learn(ops: Vec<Op>, acks: Vec<usize>) -> History {
        let is_state = |path: &Path| path == Path::new("s");
        History::learn(&Trace { ops, acks, said: Vec::new() }, &Files::default(), &is_state)
            .unwrap()
    }

    fn texts(history: &History) -> Vec<Option<String>> {
        let text = |states: &States| {
            states.get(Path::new("s")).map(|r| String::from_utf8(r.bytes.clone()).unwrap())
        };
        history.versions.iter().map(text).collect()
    }

    #[test]
    fn an_in_place_saver_has_a_version_at_each_close() {
        let history = learn(
            vec![
                open("s"),
                write("s", 0, "[1]"),
                close("s"),
                open("s"),
                write("s", 0, "[2]"),
                close("s"),
            ],
            vec![],
        );
        assert_eq!(texts(&history), [None, Some("[1]".into()), Some("[2]".into())]);
        assert_eq!(history.owed, [0]);
    }

    #[test]
    fn an_emptied_and_closed_file_is_no_version_of_a_json_state() {
        let history =
            learn(vec![open("s"), close("s"), open("s"), write("s", 0, "[1]"), close("s")], vec![]);
        assert_eq!(texts(&history), [None, Some("[1]".into())]);
    }

    #[test]
    fn an_ack_owes_the_version_of_its_moment() {
        let history = learn(
            vec![
                open("t"),
                write("t", 0, "[1]"),
                rename("t", "s"),
                open("t"),
                write("t", 0, "[2]"),
                rename("t", "s"),
            ],
            vec![2, 6],
        );
        assert_eq!(texts(&history), [None, Some("[1]".into()), Some("[2]".into())]);
        // The first ack came before the rename: it promised what was not there yet.
        assert_eq!(history.owed, [0, 1, 2]);
        assert_eq!(history.since, [0, 3, 6]);
    }

    #[test]
    fn text_without_acks_has_versions_at_renames_and_the_end_only() {
        let history = learn(
            vec![
                open("s"),
                write("s", 0, "a"),
                close("s"),
                open("s"),
                write("s", 0, "b!"),
                close("s"),
            ],
            vec![],
        );
        assert_eq!(texts(&history), [None, Some("b!".into())]);
    }

    #[test]
    fn a_file_that_is_away_for_a_moment_is_no_version() {
        let unlink = op(Call::Unlink, Effect::Unlink { path: "s".into() });
        let save = |text: &str| vec![open("t"), write("t", 0, text), close("t"), rename("t", "s")];
        let ops = [save("[1]"), vec![unlink], save("[2]")].concat();
        let history = learn(ops, vec![4, 9]);
        assert_eq!(texts(&history), [None, Some("[1]".into()), Some("[2]".into())]);
        let missing = |op, acks| {
            history.may_be_missing(Path::new("s"), Some(op), acks, usize::try_from(acks).unwrap())
        };
        assert!(missing(2, 0) && missing(3, 0));
        assert!(!missing(5, 1) && !missing(8, 1));
        // A run that has given no ack at its fifth op is not where the others are then.
        assert!(missing(5, 0) && missing(8, 0));
    }

    #[test]
    fn a_renamed_directory_takes_the_state_along() {
        let mkdir = op(Call::Mkdir, Effect::Directory { path: "new".into() });
        let rest = [open("new/s"), write("new/s", 0, "[1]"), close("new/s"), rename("new", "d")];
        let ops = [vec![mkdir], rest.to_vec()].concat();
        let is_state = |path: &Path| path == Path::new("d/s");
        let trace = Trace { ops, acks: vec![5], said: Vec::new() };
        let history = History::learn(&trace, &Files::default(), &is_state).unwrap();
        assert_eq!((history.versions.len(), history.owed), (2, vec![0, 1]));
    }

    #[test]
    fn an_ack_owes_what_it_says_and_not_what_its_number_says() {
        let save = |text: &str| vec![open("t"), write("t", 0, text), close("t"), rename("t", "s")];
        let ops = [save("[1]"), save("[2]"), save("[3]")].concat();
        let trace = Trace { ops, acks: vec![4, 8, 12], said: vec![11, 22, 33] };
        let is_state = |path: &Path| path == Path::new("s");
        let mut history = History::learn(&trace, &Files::default(), &is_state).unwrap();
        // The second save failed, and the program said so by saying nothing.
        assert_eq!(history.owed_by(2, &[11, 33]), 3);
        assert_eq!(history.owed_by(2, &[11, 99]), 1);
        history.said.clear();
        assert_eq!(history.owed_by(2, &[11, 33]), 2);
    }

    #[test]
    fn a_second_run_with_other_times_makes_templates() {
        let run = |time: &str| {
            let text = format!("{{\"at\":{time},\"n\":1}}");
            learn(vec![open("s"), write("s", 0, &text), close("s")], vec![])
        };
        let mut history = run("1");
        history.confirm(&run("2"));
        assert_eq!(history.repeats, Repeats::InShape);
        assert!(history.versions[1][Path::new("s")].fits(b"{\"at\":3,\"n\":1}"));
        assert!(!history.versions[1][Path::new("s")].fits(b"{\"at\":3,\"n\":2}"));
    }

    #[test]
    fn two_files_of_one_save_are_not_tied() {
        let states = |files: &[(&str, &str)]| -> States {
            let reference = |text: &str| Arc::new(Reference { bytes: text.into(), template: None });
            files.iter().map(|(path, text)| (PathBuf::from(path), reference(text))).collect()
        };
        let of = |last: &[(&str, &str)]| {
            let mut history = History::of_versions(Path::new("a"), vec![Vec::new(), Vec::new()]);
            history.versions = vec![states(&[("a", "0"), ("b", "0")]), states(last)];
            history.untied()
        };
        assert_eq!(of(&[("a", "1"), ("b", "1")]), Some(["a", "b"].map(PathBuf::from)));
        assert_eq!(of(&[("a", "1"), ("b", "0")]), None);
        assert_eq!(of(&[("a", "0"), ("b", "0")]), None);
    }
}
