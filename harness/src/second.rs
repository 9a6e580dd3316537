//! A loss of power in the recovery: what the subject does with a survivor is recorded, and explored
//! in its turn.

use std::collections::BTreeSet;
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

/// What is said first of what is found here.
pub const AGAIN: &str = "after a second loss of power";

/// How many crash states of one recovery are looked at before a sample must do.
const STATES_MAX: u64 = 20_000;
/// To how many survivors of one recovery the subject is shown again.
const SHOWN_AGAIN_MAX: usize = 50;

/// What exploring a recovery has shown.
pub enum Shown {
    /// This can go wrong, or nothing.
    Found(Vec<Violation>),
    /// The model does not know one of its calls.
    Unknown(String),
}

/// What can go wrong if the power goes again while the subject recovers from `left`.
pub fn recovery(
    injector: &mut (dyn Injector + '_),
    prepared: &Prepared,
    left: &Left,
    profile: &str,
    seed: u64,
) -> Result<Shown> {
    let Some(Recovered { trace, ended }) = injector.recover(left)? else {
        return Ok(Shown::Found(Vec::new()));
    };
    let before = files(left);
    let state: BTreeSet<PathBuf> = prepared.history.files().into_iter().cloned().collect();
    let is_state = |path: &Path| state.contains(path);
    let mut trace = trace;
    let mut history = match History::learn(&trace, &before, &is_state) {
        Ok(history) => history,
        Err(NotModelled(why)) => return Ok(Shown::Unknown(why)),
    };
    for version in &mut history.versions {
        let settle = |(path, reference): (&PathBuf, &Arc<Reference>)| {
            let bytes = prepared.settled_bytes(&reference.bytes).to_vec();
            (path.clone(), Arc::new(Reference { bytes, template: None }))
        };
        *version = version.iter().map(settle).collect();
    }
    if ended {
        trace.acks.push(trace.ops.len());
        history.owed.push(history.last());
    }
    let lowered = lower(&Arc::new(trace.clone()), &before, &Profile::find(profile)?.flags);
    let lowered = match lowered {
        Ok(lowered) => lowered,
        Err(NotModelled(why)) => return Ok(Shown::Unknown(why)),
    };
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
            let mut outcome = recording.outcome(&lowered, profile, state.clone(), owing.acks);
            let mut found = match oracle::judge(&outcome, &recording.history, &promises) {
                Verdict::Violated(violations) if !whole => violations,
                _ => Vec::new(),
            };
            if found.is_empty() && shown < SHOWN_AGAIN_MAX {
                shown += 1;
                let directory = state.directory(&lowered);
                let (survivor, acks) = (outcome.survivor.clone(), left.acks);
                let again = Left { directory, survivor, acks };
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
                let why = recording.explain(&lowered, &outcome, first.kind).words;
                let detail =
                    format!("{AGAIN}, {ops} ops into the recovery: {} ({why})", first.detail);
                return Ok(Shown::Found(vec![Violation { kind: first.kind, detail }]));
            }
        }
    }
    Ok(Shown::Found(Vec::new()))
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
