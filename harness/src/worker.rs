//! What a worker does with a trial: inject, judge, keep.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::agenda::Range;
use crate::difference;
use crate::error::{Context, Error, Result};
use crate::fault::{Fault, FaultKind, Nature, Place};
use crate::inject::{self, Injector};
use crate::lab;
use crate::oracle;
use crate::os::signals;
use crate::outcome::Outcome;
use crate::plan::Planner;
use crate::pool::Work;
use crate::record::Record;
use crate::results::RunDirectory;
use crate::run::Request;
use crate::subject::Prepared;
use crate::sweep::Reach;
use crate::verdict::{Verdict, ViolationKind};
use crate::volume::{self, Volume};

/// How many violations of one subject a worker keeps with their survivors.
const KEPT_MAX: usize = 200;

/// Does trials of all subjects in one room.
pub struct Worker<'a> {
    request: &'a Request,
    prepared: &'a [Prepared],
    directory: &'a RunDirectory,
    room: PathBuf,
    /// How far the run goes, and how large its small disk is.
    reach: Reach,
    /// The small disk at the room, if the run is about one.
    volume: Option<Rc<Volume>>,
    /// The subject that is being tried.
    current: Option<(usize, Box<dyn Injector + 'a>)>,
    /// What was kept: the first of each kind at each place.
    kept: HashSet<(usize, ViolationKind, Nature, Place)>,
}

impl<'a> Worker<'a> {
    /// A worker that keeps violations in `directory`.
    pub fn new(
        request: &'a Request,
        prepared: &'a [Prepared],
        directory: &'a RunDirectory,
        room: PathBuf,
    ) -> Result<Self> {
        let mut reach = request.asked.reach.clone();
        let most = prepared.iter().map(|subject| subject.sites.bytes()).max().unwrap_or(0);
        reach.fs_bytes.get_or_insert(volume::enough_bytes(reach.fs, most));
        let disk = |()| Volume::make(&room, &reach).map(Rc::new);
        let volume =
            (request.asked.fault == FaultKind::DiskFull).then_some(()).map(disk).transpose()?;
        let (current, kept) = (None, HashSet::new());
        Ok(Self { request, prepared, directory, room, reach, volume, current, kept })
    }

    /// Makes sure that this subject is the one that is being tried.
    fn turn_to(&mut self, index: usize) -> Result<()> {
        if self.current.as_ref().is_none_or(|(current, _)| *current != index) {
            // The old one's processes end before the new one's begin.
            self.current = None;
            let prepared = &self.prepared[index];
            if let Some(volume) = &self.volume {
                volume.hold(&prepared.name, prepared.sites.bytes())?;
            }
            let injector = inject::for_subject(prepared, &self.room, self.volume.clone())?;
            self.current = Some((index, injector));
        }
        Ok(())
    }

    fn injector(&mut self) -> Result<&mut Box<dyn Injector + 'a>> {
        let nobody = || Error::internal("no subject is being tried");
        self.current.as_mut().map(|(_, injector)| injector).ok_or_else(nobody)
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
        let key = (index, first.kind, outcome.fault.nature(), outcome.fault.place().coarse());
        let of_subject = self.kept.iter().filter(|(subject, ..)| *subject == index).count();
        if of_subject >= KEPT_MAX || !self.kept.insert(key) {
            return Ok(None);
        }
        let steps = match &outcome.steps[..] {
            [] if outcome.fault.is_told() => self.injector()?.explain(&outcome.fault)?,
            steps => steps.to_vec(),
        };
        let mut kept = self.request.kept(index, outcome, violations);
        (kept.reach, kept.steps) = (self.reach.clone(), steps);
        let history = &self.prepared[index].history;
        kept.differences = difference::of(history, outcome.acks, &outcome.survivor);
        self.directory.keep(&kept, outcome)?;
        Ok(Some(kept.id))
    }
}

impl Worker<'_> {
    /// Keeps the copy of a trial's directory with its violation, if there is one.
    fn keep_whole(&self, copy: &Path, violation: Option<&str>) -> Result<()> {
        if let Some(id) = violation {
            self.directory.keep_whole(id, |to| {
                lab::copy_tree(copy, to).context(format_args!("keep {}", to.display()))
            })?;
        }
        lab::remove_tree(copy).context(format_args!("remove {}", copy.display()))
    }
}

impl Work for Worker<'_> {
    type Answer = Record;

    fn trials(&mut self, range: Range) -> Result<Vec<Record>> {
        let index = range.subject;
        let prepared = &self.prepared[index];
        self.turn_to(index)?;
        let keep = self.request.place.keep;
        // Beside the room, which may be a disk that is full.
        let copy = self.room.with_extension("copy");
        let injector = self.injector()?;
        let together = if keep { 1 } else { injector.together() };
        let numbers: Vec<u64> = range.numbers().take(together).collect();
        let faults: Vec<Fault> =
            numbers.iter().filter_map(|n| prepared.planner.fault(*n)).collect();
        if faults.len() != numbers.len() {
            let what = format!("there is nowhere to strike at `{}`", prepared.name);
            return Err(Error::internal(what));
        }
        if keep {
            injector.keep_in(copy.clone());
        }
        let outcomes = injector.inject(&faults)?;
        if signals::orphaned() {
            // What was under way was cut off: it says nothing of the subject.
            return Err(Error::internal("the coordinator has ended"));
        }
        let judged = outcomes.iter().zip(numbers).map(|(outcome, n)| {
            if let Planner::Listed(listed) = &prepared.planner {
                listed.confirm(&prepared.name, n, outcome)?;
            }
            let verdict = oracle::judge(outcome, &prepared.history, &self.request.asked.promises);
            let mut record = Record::new(n, index, outcome, &verdict);
            record.evidence = self.keep(index, outcome, &verdict)?;
            if keep {
                self.keep_whole(&copy, record.evidence.as_deref())?;
            }
            Ok(record)
        });
        judged.collect()
    }
}
