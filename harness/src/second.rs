//! A loss of power in the recovery: what the subject does with a survivor is recorded, and explored
//! in its turn.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::Result;
use crate::history::{History, Reference};
use crate::inject::{Injector, Left, Recovered};
use crate::model::{Files, Node, NotModelled};
use crate::oracle;
use crate::os::signals;
use crate::power::derive::{Budget, derive};
use crate::power::lower::lower;
use crate::power::profile::Profile;
use crate::power::survivor;
use crate::recorded::Recording;
use crate::subject::Prepared;
use crate::verdict::{Promise, Verdict, Violation};

/// How many crash states of one recovery are looked at before a sample must do.
const STATES_MAX: u64 = 20_000;
/// To how many survivors of one recovery the subject is shown again.
const SHOWN_AGAIN_MAX: usize = 50;

/// What can go wrong if the power goes again while the subject recovers from `left`.
pub fn recovery(
    injector: &mut (dyn Injector + '_),
    prepared: &Prepared,
    left: &Left,
    profile: &str,
    seed: u64,
) -> Result<Vec<Violation>> {
    let Some(Recovered { trace, ended }) = injector.recover(left)? else { return Ok(Vec::new()) };
    let before = files(left);
    let unknown = |NotModelled(why): NotModelled| {
        crate::error::Error::baseline(format!("the model does not know {why}, in the recovery"))
    };
    let state: BTreeSet<PathBuf> = prepared.history.files().into_iter().cloned().collect();
    let is_state = |path: &Path| state.contains(path);
    let mut trace = trace;
    let mut history = History::learn(&trace, &before, &is_state).map_err(unknown)?;
    for reference in history.versions.iter_mut().flat_map(BTreeMap::values_mut) {
        let settled = prepared.settled_bytes(&reference.bytes).to_vec();
        *reference = Arc::new(Reference { bytes: settled, template: None });
    }
    if ended {
        trace.acks.push(trace.ops.len());
        history.owed.push(history.last());
    }
    let lowered = lower(&Arc::new(trace.clone()), &before, &Profile::find(profile)?.flags);
    let lowered = lowered.map_err(unknown)?;
    let recording = Recording::of(prepared, history, trace, ended);
    let budget = Budget { states_max: STATES_MAX, seed, judged: recording.judged };
    let derived =
        derive(&lowered, &recording.paths, &recording.history, budget, &signals::interrupted);
    let promises = [Promise::Atomic].into();
    let mut shown = 0;
    for distinct in &derived.survivors {
        for owing in &distinct.owing {
            let whole = distinct.version.is_some_and(|version| version >= owing.owed);
            let state = owing.first.clone();
            let outcome = recording.outcome(&lowered, profile, state.clone(), owing.acks);
            let mut found = match oracle::judge(&outcome, &recording.history, &promises) {
                Verdict::Violated(violations) if !whole => violations,
                _ => Vec::new(),
            };
            if found.is_empty() && shown < SHOWN_AGAIN_MAX {
                shown += 1;
                let directory = state.directory(&lowered);
                let (survivor, acks) = (outcome.survivor.clone(), left.acks);
                let again = Left { directory, survivor, acks };
                let mut outcome = outcome;
                (outcome.checks, outcome.recovery) = injector.confront(&again)?;
                let promises = [Promise::Recoverable, Promise::Checked].into();
                if let Verdict::Violated(violations) =
                    oracle::judge(&outcome, &recording.history, &promises)
                {
                    found = violations;
                }
            }
            if let Some(first) = found.first() {
                let ops = crate::power::Time(owing.first.moment).ops_begun();
                let detail = format!(
                    "after a second loss of power, {ops} ops into the recovery: {}",
                    first.detail
                );
                return Ok(vec![Violation { kind: first.kind, detail }]);
            }
        }
    }
    Ok(Vec::new())
}

/// What is left, as the files before a run.
fn files(left: &Left) -> Files {
    let mut files = Files::default();
    for (path, node) in &left.directory {
        let node = match node {
            survivor::Node::File(bytes) => Node::File(bytes.clone()),
            survivor::Node::Directory => Node::Directory,
            survivor::Node::Symlink(target) => Node::Symlink(target.clone()),
        };
        files.insert(path.clone(), node);
    }
    files
}
