//! Asks a program's load about what its unbroken runs had saved after each ack.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::path::PathBuf;
use std::time::Duration;

use xxhash_rust::xxh3::Xxh3;

use crate::error::{Context, Error, Result};
use crate::history::{History, Order, States};
use crate::inject::Left;
use crate::inject::checks::{Said, Shell};
use crate::inject::runner::Runner;
use crate::lab;
use crate::loads::{Loads, Printed};
use crate::model::{self, Files, NotModelled};
use crate::op::Trace;
use crate::outcome::Survivor;
use crate::power::survivor::Node;
use crate::subject::Command;

/// How many acks there may be: the load is asked about each of two runs.
const ACKS_MAX: usize = 1000;

/// An unbroken run: the files before it, and what it did.
pub type Run<'a> = (&'a Files, &'a Trace);

/// At how many op boundaries between acks it is asked, about.
const BETWEEN_MAX: usize = 200;

/// What the load printed; none where it failed.
#[derive(Default)]
struct All {
    /// For each number of acks, and at the end.
    by_acks: Vec<Option<Vec<u8>>>,
    /// Between acks, and after how many of them.
    between: Vec<(usize, Option<Vec<u8>>)>,
}

/// Who says how the state is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The user: the load must tell apart what has other bytes after an ack, or it is not believed.
    Users,
    /// It is known for such a store, of which bytes change where its contents do not.
    Stores,
}

/// Learns the versions by a load from two unbroken runs, whose versions by bytes are those of `history`; the text says
/// why there are none.
pub fn learn(
    (text, whose, command): (&str, Whose, &Command),
    runner: &mut Runner,
    (runs, history): ([Run<'_>; 2], &History),
    timeout: Duration,
) -> Result<std::result::Result<Loads, &'static str>> {
    if runs.iter().any(|(_, trace)| trace.acks.len() > ACKS_MAX) {
        return Ok(Err("there are too many acks to ask the load about each"));
    }
    if history.order == Order::Open {
        return Ok(Err("several threads or processes save, in an order of their own"));
    }
    if runs[0].1.acks.is_empty() && history.since.len() <= 2 {
        return Ok(Err("without acks it is not known what it is to print; only its status counts"));
    }
    let root = runner.scope.root.clone();
    let shell = Shell::new(text, command, &root, runner.sandbox())?;
    let mut all = Vec::new();
    for run in runs {
        match each(&shell, runner, (run, history), timeout)? {
            Some(printed) => all.push(printed),
            None => return Ok(Err("the calls do not explain what the load is to see")),
        }
    }
    let [one, other] = &all[..] else { return Err(Error::internal("there are two runs")) };
    let changed = match whose {
        Whose::Users => changed(history),
        Whose::Stores => Vec::new(),
    };
    Ok(compared(one, other, &changed)
        .ok_or("what it prints says nothing of what was saved; only its status counts"))
}

/// For each ack, and for the end: whether the state has other bytes than at the one before.
fn changed(history: &History) -> Vec<bool> {
    let at = history.owed.iter().copied().chain([history.last()]);
    let at: Vec<usize> = at.collect();
    at.windows(2)
        .map(|pair| history.versions.get(pair[0]) != history.versions.get(pair[1]))
        .collect()
}

/// Compares what was printed of two runs.
fn compared(one: &All, other: &All, changed: &[bool]) -> Option<Loads> {
    if one.by_acks.len() != other.by_acks.len() {
        return None;
    }
    let both = |(one, other): (&Option<Vec<u8>>, &Option<Vec<u8>>)| match (one, other) {
        (Some(one), Some(other)) => Some(Some(Printed::of_two_runs(one, other)?)),
        (None, None) => Some(None),
        _ => None,
    };
    let mut by_acks: Vec<_> =
        one.by_acks.iter().zip(&other.by_acks).map(both).collect::<Option<_>>()?;
    let at_the_end = by_acks.pop()??;
    // Where the two runs do not go in step, values that differ are not known.
    let other = if one.between.len() == other.between.len() { other } else { one };
    let between = one.between.iter().zip(&other.between);
    let between = between.filter_map(|((acks, one), (_, other))| {
        Some((*acks, Printed::of_two_runs(one.as_ref()?, other.as_ref()?)?))
    });
    let between: Vec<_> = between.collect();
    // Without acks the versions are told apart by nothing else.
    let unacked = by_acks.len() == 1;
    let alike = between.windows(2).any(|pair| !pair[0].1.differs_from(&pair[1].1));
    if unacked && (alike || between.is_empty()) {
        return None;
    }
    Loads::new(by_acks, at_the_end, between, changed)
}

/// Asks about one directory after the other; about the same only once.
struct Asking<'a> {
    shell: &'a Shell,
    runner: &'a mut Runner,
    timeout: Duration,
    /// What was printed, by a hash of the directory.
    known: HashMap<u128, Option<Vec<u8>>>,
}

impl Asking<'_> {
    fn about(&mut self, files: &Files) -> Result<Option<Vec<u8>>> {
        let directory = directory(files);
        let mut hasher = Xxh3::new();
        directory.hash(&mut hasher);
        let key = hasher.digest128();
        if let Some(printed) = self.known.get(&key) {
            return Ok(printed.clone());
        }
        let left = Left { directory, survivor: Survivor::default(), acks: 0 };
        let printed = ask(self.shell, self.runner, &left, self.timeout)?;
        self.known.insert(key, printed.clone());
        Ok(printed)
    }
}

/// After how many ops it is asked besides: at the moments of versions; and while a store is made that was not there,
/// before the first ack, at any.
fn moments(trace: &Trace, history: &History) -> BTreeSet<usize> {
    let from_nothing = history.versions.first().is_some_and(States::is_empty);
    let stores = history.files().into_iter().all(|file| history.starts_empty.contains(file));
    let until = trace.acks.first().copied().filter(|_| from_nothing && stores).unwrap_or(0);
    let stride = until.div_ceil(BETWEEN_MAX).max(1);
    let versions = history.since.iter().copied().take(ACKS_MAX);
    versions.chain((1..until).step_by(stride)).collect()
}

/// After how many ops the version of each ack is there: with the ack, or later, if that comes too early.
fn promised(trace: &Trace, history: &History) -> Vec<usize> {
    let version = |ack: usize| history.owed.get(ack + 1).and_then(|owed| history.since.get(*owed));
    let at = |(ack, ops): (usize, &usize)| version(ack).map_or(*ops, |since| *since.max(ops));
    trace.acks.iter().enumerate().map(at).collect()
}

/// What the load prints of one run; none if its files can't be made again.
fn each(
    shell: &Shell,
    runner: &mut Runner,
    ((before, trace), history): (Run<'_>, &History),
    timeout: Duration,
) -> Result<Option<All>> {
    let mut files = before.clone();
    let mut asking = Asking { shell, runner, timeout, known: HashMap::new() };
    let mut all = All { by_acks: vec![asking.about(&files)?], between: Vec::new() };
    let (moments, promised) = (moments(trace, history), promised(trace, history));
    for done in 0..=trace.ops.len() {
        if let Some(op) = done.checked_sub(1).map(|last| &trace.ops[last])
            && let Err(NotModelled(_)) = files.apply(op)
        {
            return Ok(None);
        }
        let acks = promised.partition_point(|ops| *ops <= done);
        if acks >= all.by_acks.len() {
            let printed = asking.about(&files)?;
            all.by_acks.resize(acks + 1, printed);
        } else if moments.contains(&done) {
            let printed = asking.about(&files)?;
            all.between.push((acks, printed));
        }
    }
    all.by_acks.push(asking.about(&files)?);
    Ok(Some(all))
}

fn ask(
    shell: &Shell,
    runner: &mut Runner,
    left: &Left,
    timeout: Duration,
) -> Result<Option<Vec<u8>>> {
    runner.reset()?;
    let root = runner.scope.root.clone();
    lab::remove_files(&root)
        .and_then(|()| left.unfold(&root))
        .and_then(|()| runner.hand_over())
        .context(format_args!("make {} again", root.display()))?;
    let (said, printed) = shell.run_and_hear(timeout)?;
    Ok((said == Said::Yes).then_some(printed))
}

/// All files of the trial directory.
fn directory(files: &Files) -> BTreeMap<PathBuf, Node> {
    let node = |path: &std::path::Path| {
        Some(match files.get(path)? {
            model::Node::File(bytes) => Node::File(bytes.clone()),
            model::Node::Symlink(target) => Node::Symlink(target.clone()),
            model::Node::Directory => Node::Directory,
        })
    };
    let inside = files.paths().filter(|path| path.is_relative());
    inside.filter_map(|path| Some((path.to_owned(), node(path)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(all: &[&str]) -> All {
        let by_acks = all.iter().map(|text| Some(text.as_bytes().to_vec())).collect();
        All { by_acks, between: Vec::new() }
    }

    #[test]
    fn a_load_that_does_not_tell_saves_apart_tells_no_versions() {
        let learned = |one: &[&str], other: &[&str], changed: &[bool]| {
            compared(&printed(one), &printed(other), changed).is_some()
        };
        let both = |all: &[&str], changed: &[bool]| learned(all, all, changed);
        assert!(!both(&["", "", ""], &[true, true]));
        assert!(both(&["0", "1", "2", "2"], &[true, true, false]));
        // It says that there is a state, and not which.
        assert!(!both(&["none", "ok", "ok", "ok"], &[true, true, false]));
        // What lies beside the state may change alone.
        assert!(both(&["0", "1", "2", "2"], &[true, false, false]));
        // Text that is another in each run can't be compared; JSON can, if something else in it tells versions apart.
        assert!(!learned(&["0", "a", "b"], &["0", "a", "c"], &[true, true]));
        let with_time = |at: u32| {
            [
                "{}".to_owned(),
                format!("{{\"n\": 1, \"at\": {at}}}"),
                format!("{{\"n\": 2, \"at\": {at}}}"),
            ]
        };
        let (one, other) = (with_time(5), with_time(6));
        let (one, other) =
            (one.each_ref().map(String::as_str), other.each_ref().map(String::as_str));
        assert!(learned(&one, &other, &[true, true]));
        assert!(!learned(
            &["{\"at\": 1}", "{\"at\": 2}"],
            &["{\"at\": 3}", "{\"at\": 4}"],
            &[true]
        ));
        // Without acks each version that was seen must be told from the next.
        let unacked = |between: &[&str]| {
            let all = || {
                let told = |text: &&str| (0, Some(text.as_bytes().to_vec()));
                All { between: between.iter().map(told).collect(), ..printed(&["none", "ok"]) }
            };
            compared(&all(), &all(), &[true]).is_some()
        };
        assert!(unacked(&["none", "1", "ok"]) && !unacked(&["none", "ok", "ok"]) && !unacked(&[]));
    }
}
