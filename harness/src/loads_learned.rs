//! Asks a program's load about what its unbroken runs had saved after each ack.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Context, Error, Result};
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

/// Learns the versions by a load from two unbroken runs; `versions` says after how many ops the bytes are a version. The
/// text says why there are none.
pub fn learn(
    (text, command): (&str, &Command),
    runner: &mut Runner,
    (runs, versions): ([Run<'_>; 2], &[usize]),
    timeout: Duration,
) -> Result<std::result::Result<Loads, &'static str>> {
    if runs.iter().any(|(_, trace)| trace.acks.len() > ACKS_MAX) {
        return Ok(Err("there are too many acks to ask the load about each"));
    }
    let root = runner.scope.root.clone();
    let shell = Shell::new(text, command, &root, runner.sandbox())?;
    let mut all = Vec::new();
    for run in runs {
        match each(&shell, runner, (run, versions), timeout)? {
            Some(printed) => all.push(printed),
            None => return Ok(Err("the calls do not explain what the load is to see")),
        }
    }
    let [one, other] = &all[..] else { return Err(Error::internal("there are two runs")) };
    Ok(compared(one, other)
        .ok_or("what it prints says nothing of what was saved; only its status counts"))
}

/// Compares what was printed of two runs.
fn compared(one: &All, other: &All) -> Option<Loads> {
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
    Loads::new(by_acks, at_the_end, between.collect())
}

/// Asks about one directory after the other; about the same only once.
struct Asking<'a> {
    shell: &'a Shell,
    runner: &'a mut Runner,
    timeout: Duration,
    known: HashMap<BTreeMap<PathBuf, Node>, Option<Vec<u8>>>,
}

impl Asking<'_> {
    fn about(&mut self, files: &Files) -> Result<Option<Vec<u8>>> {
        let directory = directory(files);
        if let Some(printed) = self.known.get(&directory) {
            return Ok(printed.clone());
        }
        let left = Left { directory, survivor: Survivor::default(), acks: 0 };
        let printed = ask(self.shell, self.runner, &left, self.timeout)?;
        self.known.insert(left.directory, printed.clone());
        Ok(printed)
    }
}

/// After how many ops it is asked besides: at the moments of versions, and before the first ack anywhere; if nothing says
/// when there is a version, anywhere at all.
fn moments(trace: &Trace, versions: &[usize]) -> BTreeSet<usize> {
    let unknown = trace.acks.is_empty() && versions.len() <= 2;
    let until = if unknown { trace.ops.len() } else { trace.acks.first().copied().unwrap_or(0) };
    let stride = until.div_ceil(BETWEEN_MAX).max(1);
    let versions = versions.iter().copied().take(ACKS_MAX);
    versions.chain((1..until).step_by(stride)).collect()
}

/// What the load prints of one run; none if its files can't be made again.
fn each(
    shell: &Shell,
    runner: &mut Runner,
    ((before, trace), versions): (Run<'_>, &[usize]),
    timeout: Duration,
) -> Result<Option<All>> {
    let mut files = before.clone();
    let mut asking = Asking { shell, runner, timeout, known: HashMap::new() };
    let mut all = All { by_acks: vec![asking.about(&files)?], between: Vec::new() };
    let moments = moments(trace, versions);
    for done in 0..=trace.ops.len() {
        if let Some(op) = done.checked_sub(1).map(|last| &trace.ops[last])
            && let Err(NotModelled(_)) = files.apply(op)
        {
            return Ok(None);
        }
        let acks = trace.acks.partition_point(|ops| *ops <= done);
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
    fn a_load_that_prints_the_same_whatever_is_saved_tells_no_versions_apart() {
        assert!(compared(&printed(&["", "", ""]), &printed(&["", "", ""])).is_none());
        assert!(compared(&printed(&["0", "1", "1"]), &printed(&["0", "1", "1"])).is_some());
        // Text that is another in each run can't be compared; JSON can.
        assert!(compared(&printed(&["0", "a", "b"]), &printed(&["0", "a", "c"])).is_none());
        let with_time = |at: u32| printed(&["{}", &format!("{{\"n\": 1, \"at\": {at}}}")]);
        assert!(compared(&with_time(5), &with_time(6)).is_some());
    }
}
