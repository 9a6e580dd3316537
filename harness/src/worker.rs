//! What a worker does with a trial: inject, judge, keep.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};
use crate::fault::{Fault, Nature};
use crate::inject::{self, Injector};
use crate::lab;
use crate::op::OpIndex;
use crate::oracle;
use crate::os::signals;
use crate::outcome::Outcome;
use crate::pool::{Range, Work};
use crate::record::Record;
use crate::results::{Kept, RunDirectory, SCHEMA};
use crate::run::Request;
use crate::subject::Prepared;
use crate::trial::Trial;
use crate::verdict::{Verdict, ViolationKind};

/// How many violations of one subject a worker keeps with their survivors.
const KEPT_MAX: usize = 200;

/// Does trials of all subjects in one room.
pub struct Worker<'a> {
    request: &'a Request,
    prepared: &'a [Prepared],
    directory: &'a RunDirectory,
    room: PathBuf,
    injectors: HashMap<usize, Box<dyn Injector + 'a>>,
    /// What was kept: the first of each kind at each op.
    kept: HashSet<(usize, ViolationKind, Nature, Option<OpIndex>)>,
}

impl<'a> Worker<'a> {
    /// A worker that keeps violations in `directory`.
    #[must_use]
    pub fn new(
        request: &'a Request,
        prepared: &'a [Prepared],
        directory: &'a RunDirectory,
        room: PathBuf,
    ) -> Self {
        let (injectors, kept) = (HashMap::new(), HashSet::new());
        Self { request, prepared, directory, room, injectors, kept }
    }

    /// Keeps a violation if it is the first of its kind here; returns its id.
    fn keep(
        &mut self,
        index: usize,
        outcome: &Outcome,
        verdict: &Verdict,
    ) -> Result<Option<String>> {
        let Verdict::Violated(violations) = verdict else { return Ok(None) };
        let Some(first) = violations.first() else { return Ok(None) };
        let key = (index, first.kind, outcome.fault.nature(), outcome.fault.op());
        let of_subject = self.kept.iter().filter(|(subject, ..)| *subject == index).count();
        if of_subject >= KEPT_MAX || !self.kept.insert(key) {
            return Ok(None);
        }
        let (name, subject) = &self.request.subjects[index];
        let trial = Trial { subject: name.clone(), fault: outcome.fault.clone() };
        let kept = Kept {
            schema: SCHEMA,
            id: trial.id(),
            trial,
            subject: subject.clone(),

            promises: self.request.promises.clone(),
            injection: outcome.injection.clone(),
            acks: outcome.acks,
            violations: violations.clone(),
        };
        self.directory.keep(&kept, outcome)?;
        Ok(Some(kept.id))
    }
}

impl Worker<'_> {
    /// Moves the copy of a trial's directory to its violation, if there is one.
    fn keep_whole(&self, copy: &Path, violation: Option<&str>) -> Result<()> {
        if let Some(id) = violation {
            let kept = self.directory.whole_directory(id);
            lab::copy_tree(copy, &kept).context(format_args!("keep {}", kept.display()))?;
        }
        lab::remove_tree(copy).context(format_args!("remove {}", copy.display()))
    }
}

impl Work for Worker<'_> {
    fn trials(&mut self, range: Range) -> Result<Vec<Record>> {
        let trials = self.request.trials;
        let index = usize::try_from(range.start / trials).unwrap_or(usize::MAX);
        let prepared = &self.prepared[index];
        let injector = match self.injectors.entry(index) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let injector = inject::for_subject(prepared, &self.room)?;
                entry.insert(injector)
            }
        };
        // Not past the end of this subject.
        let first = range.start % trials;
        let together = if self.request.place.keep { 1 } else { injector.together() };
        let count = range.count.min(trials - first).min(together as u64);
        let faults: Vec<Fault> =
            (first..first + count).filter_map(|n| prepared.planner.fault(n)).collect();
        if faults.len() as u64 != count {
            let what = format!("there is nowhere to strike at `{}`", prepared.name);
            return Err(Error::internal(what));
        }
        let copy = self.room.join("copy");
        if self.request.place.keep {
            injector.keep_in(copy.clone());
        }
        let outcomes = injector.inject(&faults)?;
        if signals::orphaned() {
            // What was under way was cut off: it says nothing of the subject.
            return Err(Error::internal("the coordinator has ended"));
        }
        let judged = outcomes.iter().zip(range.start..).map(|(outcome, n)| {
            let verdict = oracle::judge(outcome, &prepared.history, &self.request.promises);
            let mut record = Record::new(n, index, outcome, &verdict);
            record.evidence = self.keep(index, outcome, &verdict)?;
            if self.request.place.keep {
                self.keep_whole(&copy, record.evidence.as_deref())?;
            }
            Ok(record)
        });
        judged.collect()
    }
}
