//! A run of the scenario `poweroff`: every subject is recorded once, every crash state is derived,
//! and each distinct survivor is judged.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::agenda::Range;
use crate::error::{Error, Result};
use crate::fault::{Fault, Injection, PowerLoss, Struck};
use crate::history::History;
use crate::inject::{self, Injector, Left};
use crate::lab::{self, Lab};
use crate::model::NotModelled;
use crate::op::Trace;
use crate::oracle;
use crate::outcome::{Exit, Outcome, Recovery};
use crate::pool::{Completion, Pool, Work};
use crate::power::derive::{Budget, Derived, derive};
use crate::power::explain::{Broken, Explanation};
use crate::power::lower::lower;
use crate::power::profile::{EMBEDDED, Profile};
use crate::power::survivor::CrashState;
use crate::power::{Lowered, Time};
use crate::progress::Progress;
use crate::record::{Brief, Record};
use crate::report::power::{Cell, Finding};
use crate::results::{Kept, RunDirectory, SCHEMA};
use crate::run::Request;
use crate::second;
use crate::state_files::StateFiles;
use crate::subject::{Kind, Prepared};
use crate::sweep::Depth;
use crate::tally::Tally;
use crate::trial::Trial;
use crate::verdict::{Promise, Verdict, Violation, ViolationKind};

/// What a run of the scenario looks at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Power {
    /// The profiles of file systems, by name.
    #[serde(default = "all_profiles")]
    pub profiles: Vec<String>,
    /// How many crash states of a subject on a profile there may be before a sample must do.
    #[serde(default = "states_max")]
    pub states_max: u64,
    /// Whether there is no state file before the first save of a built-in strategy.
    #[serde(default)]
    pub first_save: bool,
}

fn all_profiles() -> Vec<String> {
    EMBEDDED.map(|(name, _)| name.to_owned()).into()
}

fn states_max() -> u64 {
    200_000
}

impl Default for Power {
    fn default() -> Self {
        Self { profiles: all_profiles(), states_max: states_max(), first_save: false }
    }
}

/// How many findings of one subject on one profile are explained.
const EXPLAINED_MAX: usize = 2000;

/// Everything that is derived of one subject on one profile.
struct Explored {
    profile: Profile,
    lowered: Lowered,
    derived: Derived,
    /// For each survivor, its place among those that the subject is confronted with.
    confronted: Vec<Option<usize>>,
}

/// One subject's recording, ready to be looked at.
pub struct Recording<'a> {
    prepared: &'a Prepared,
    history: History,
    trace: Arc<Trace>,
    paths: Vec<PathBuf>,
}

/// A recording that a run asks about.
struct Case<'a> {
    request: &'a Request,
    index: usize,
    recording: Recording<'a>,
}

/// What the subject, or a check of the user's, made of a survivor.
#[derive(Clone, Debug, Default)]
struct Reaction {
    violations: Vec<Violation>,
}

/// Derives and judges the crash states of one subject on all profiles.
pub fn cells(
    request: &Request,
    lab: &Lab,
    index: usize,
    prepared: &Prepared,
    directory: &RunDirectory,
) -> Result<(Vec<Cell>, Completion)> {
    let case = Case { request, index, recording: Recording::new(prepared)? };
    let (mut explored, mut cells) = (Vec::new(), Vec::new());
    let mut lefts = Lefts::default();
    for name in &request.power.profiles {
        let profile = Profile::find(name)?;
        match lower(&case.recording.trace, &prepared.before, &profile.flags) {
            Ok(lowered) => explored.push(case.explore(profile, lowered, &mut lefts)),
            Err(NotModelled(why)) => cells.push(case.not_measured(name, why)),
        }
    }
    let (reactions, completion) = case.confront(lab, lefts.all)?;
    for one in &explored {
        cells.push(case.judge(one, &reactions, directory)?);
    }
    let place = |cell: &Cell| request.power.profiles.iter().position(|name| *name == cell.profile);
    cells.sort_by_key(place);
    Ok((cells, completion))
}

/// A crash state, derived again from another recording of the same subject.
pub struct Again {
    /// The directory.
    pub left: Left,
    /// The facts.
    pub outcome: Outcome,
    /// The versions of this recording.
    pub history: History,
    /// Why it breaks a promise.
    pub explanation: Option<Explanation>,
}

/// Derives a crash state again.
pub fn again(
    prepared: &Prepared,
    loss: &PowerLoss,
    acks: u64,
    broken: Option<ViolationKind>,
) -> Result<Again> {
    let recording = Recording::new(prepared)?;
    let profile = Profile::find(&loss.profile)?;
    let lowered = lower(&recording.trace, &prepared.before, &profile.flags)
        .map_err(|NotModelled(why)| Error::baseline(format!("the model does not know {why}")))?;
    if !loss.state.fits(&lowered) {
        return Err(Error::usage("the program makes other calls than when this was found")
            .help("run the scenario anew"));
    }
    let acks = usize::try_from(acks).unwrap_or(usize::MAX);
    let outcome = recording.outcome(&lowered, &profile.name, loss.state.clone(), acks);
    let explanation = broken.map(|kind| recording.explain(&lowered, &outcome, kind));
    let left = Left {
        directory: loss.state.directory(&lowered),
        survivor: outcome.survivor.clone(),
        acks: outcome.acks,
    };
    Ok(Again { left, outcome, history: recording.history, explanation })
}

/// The survivors that the subject is to be confronted with, each once.
#[derive(Default)]
struct Lefts {
    /// What is left, and on which profile it first was.
    all: Vec<(Left, String)>,
    known: HashMap<u64, usize>,
}

impl Lefts {
    fn add(&mut self, left: Left, profile: &str, apart: bool) -> usize {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        left.directory.hash(&mut hasher);
        (left.acks > 0).hash(&mut hasher);
        if apart {
            profile.hash(&mut hasher);
        }
        *self.known.entry(hasher.finish()).or_insert_with(|| {
            self.all.push((left, profile.to_owned()));
            self.all.len() - 1
        })
    }
}

impl<'a> Recording<'a> {
    /// A recording of a part of what the subject does.
    #[must_use]
    pub fn of(prepared: &'a Prepared, history: History, trace: Trace) -> Self {
        let paths = history.files().into_iter().cloned().collect();
        Self { prepared, history, trace: Arc::new(trace), paths }
    }

    /// Its state files.
    #[must_use]
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Its versions.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    fn new(prepared: &'a Prepared) -> Result<Self> {
        let mut trace = prepared.trace.clone();
        // The crash states are of this very recording: its versions are known byte by byte.
        let history = match &prepared.kind {
            Kind::BuiltIn(_) => prepared.history.clone(),
            Kind::Command(learned) => learn(&mut trace, prepared, &learned.state, !learned.serves)?,
            Kind::Recorded(recorded) => {
                learn(&mut trace, prepared, &recorded.state, recorded.ended)?
            }
        };
        Ok(Self::of(prepared, history, trace))
    }

    /// The facts of a crash state.
    pub fn outcome(
        &self,
        lowered: &Lowered,
        profile: &str,
        state: CrashState,
        acks: usize,
    ) -> Outcome {
        let said = &self.trace.said;
        let survivor = state.survivor(lowered, &self.paths);
        let ops = Time(state.moment).ops_begun();
        Outcome {
            fault: Fault::PowerLoss(PowerLoss { profile: profile.to_owned(), state }),
            injection: Injection::At(Struck::Power { ops }),
            exit: Exit::Killed,
            acks: acks as u64,
            said: said[..acks.min(said.len())].to_vec(),
            steps: Vec::new(),
            unsynced: BTreeMap::new(),
            survivor: self.prepared.settled(survivor),
            checks: Vec::new(),
            recovery: Recovery::default(),
        }
    }

    fn explain(&self, lowered: &Lowered, outcome: &Outcome, kind: ViolationKind) -> Explanation {
        let (state, paths) = (state_of(outcome), &self.paths);
        Broken { lowered, paths, state, moment: Time(state.moment), kind }.explain()
    }
}

/// The versions of a recording. Exit status 0 promises the last one.
fn learn(
    trace: &mut Trace,
    prepared: &Prepared,
    state: &StateFiles,
    ended: bool,
) -> Result<History> {
    let is_state = |path: &Path| state.contains(path);
    let mut history = History::learn(trace, &prepared.before, &is_state)
        .map_err(|NotModelled(why)| Error::internal(why))?;
    if ended {
        trace.acks.push(trace.ops.len());
        history.owed.push(history.last());
    }
    Ok(history)
}

/// The crash state of an outcome.
fn state_of(outcome: &Outcome) -> &CrashState {
    match &outcome.fault {
        Fault::PowerLoss(loss) => &loss.state,
        _ => &NOTHING,
    }
}

/// The state of a disk to which nothing was written.
static NOTHING: CrashState =
    CrashState { barrier: 0, moment: 0, steps: Vec::new(), changes: Vec::new(), stale: false };

impl Case<'_> {
    /// Whether the subject, or a check, has something to say about survivors.
    fn reacts(&self) -> bool {
        if matches!(self.recording.prepared.kind, Kind::Recorded(_)) {
            return false;
        }
        let asked = [Promise::Recoverable, Promise::Checked, Promise::Tidy];
        let promises = &self.request.promises;
        asked.iter().any(|promise| promises.contains(promise))
    }

    fn explore(&self, profile: Profile, lowered: Lowered, lefts: &mut Lefts) -> Explored {
        let budget =
            Budget { states_max: self.request.power.states_max, seed: self.request.seed.0 };
        let derived = derive(&lowered, &self.recording.paths, &self.recording.history, budget);
        let (reacts, twice) = (self.reacts(), self.request.reach.depth == Depth::Two);
        let confronted = derived.survivors.iter().map(|distinct| {
            let owing = distinct.owing.iter().max_by_key(|owing| owing.owed)?;
            let state = Self::at(&owing.first, owing.moment(&lowered));
            let survivor = state.survivor(&lowered, &self.recording.paths);
            let acks = owing.acks as u64;
            let directory = state.directory(&lowered);
            let left = Left { directory, survivor, acks };
            reacts.then(|| lefts.add(left, &profile.name, twice))
        });
        let confronted = confronted.collect();
        Explored { profile, lowered, derived, confronted }
    }

    /// A crash state at a later moment of its epoch.
    fn at(state: &CrashState, moment: Time) -> CrashState {
        CrashState { moment: moment.0.max(state.moment), ..state.clone() }
    }

    fn not_measured(&self, profile: &str, why: String) -> Cell {
        Cell {
            profile: profile.to_owned(),
            states: 0,
            distinct: 0,
            exhaustive: false,
            not_measured: Some(why),
            tally: Tally::default(),
            findings: Vec::new(),
            expectation: self.request.expectation(&self.recording.prepared.name, Some(profile)),
        }
    }

    /// Shows each survivor to the subject, on all workers.
    fn confront(
        &self,
        lab: &Lab,
        lefts: Vec<(Left, String)>,
    ) -> Result<(Vec<Reaction>, Completion)> {
        let mut reactions = vec![Reaction::default(); lefts.len()];
        if lefts.is_empty() {
            return Ok((reactions, Completion::Whole));
        }
        let jobs = self.request.place.jobs.min(lefts.len().div_ceil(8));
        let mut pool = Pool::start(jobs, false, |index| {
            let room = lab::room(lab.path(), index)?;
            let injector = inject::for_subject(self.recording.prepared, &room, None)?;
            let work = Confronter { case: self, lefts: &lefts, injector };
            Ok(Box::new(work) as Box<dyn Work>)
        })?;
        let progress =
            std::cell::RefCell::new(Progress::new(lefts.len() as u64, self.request.place.quiet));
        let (mut next, all) = (0, lefts.len() as u64);
        let completion = pool.run(
            &mut |count| {
                let count = count.min(all - next);
                let range = Range { subject: 0, start: next, stride: 1, count };
                next += count;
                (count > 0).then_some(range)
            },
            &mut |record, _| {
                progress.borrow_mut().count(matches!(record.verdict, Brief::Violated(_)));
                if let Some(slot) = reactions.get_mut(usize::try_from(record.n).unwrap_or(0)) {
                    slot.violations = record.reactions;
                }
                Ok(())
            },
            &mut || progress.borrow_mut().show(),
        )?;
        progress.into_inner().finish();
        Ok((reactions, completion))
    }

    fn judge(
        &self,
        explored: &Explored,
        reactions: &[Reaction],
        directory: &RunDirectory,
    ) -> Result<Cell> {
        let Explored { profile, lowered, derived, confronted } = explored;
        let promises = &self.request.promises;
        let (mut tally, mut causes) = (Tally::default(), BTreeMap::<String, Cause>::new());
        let (mut explained, mut usual) = (0, HashMap::<ViolationKind, String>::new());
        for (distinct, confronted) in derived.survivors.iter().zip(confronted) {
            let reaction = confronted.map(|place| &reactions[place]);
            let reacted = reaction.map(|reaction| &reaction.violations[..]).unwrap_or_default();
            for owing in &distinct.owing {
                let whole = distinct.version.is_some_and(|version| version >= owing.owed);
                if whole && reacted.is_empty() {
                    tally.enter(&[], owing.states);
                    continue;
                }
                let moment = self.first_moment(lowered, distinct.version, owing);
                let state = Self::at(&owing.first, moment);
                let acks = lowered.acks_at(moment);
                let outcome = self.recording.outcome(lowered, &profile.name, state, acks);
                let mut violations =
                    match oracle::judge(&outcome, &self.recording.history, promises) {
                        Verdict::Violated(violations) => violations,
                        Verdict::Pass | Verdict::Inconclusive(_) => Vec::new(),
                    };
                // Where nothing is left, as before the first save, the load rightly says so.
                let versions = &self.recording.history.versions;
                let owed = versions.get(owing.owed).is_some_and(BTreeMap::is_empty);
                let nothing = outcome.survivor.files.is_empty()
                    && versions.first().is_some_and(BTreeMap::is_empty);
                let counts = |violation: &&Violation| {
                    promises.contains(&violation.kind.promise())
                        && !((owed || nothing) && violation.kind == ViolationKind::Reset)
                };
                violations.extend(reacted.iter().filter(counts).cloned());
                let kinds: Vec<_> = violations.iter().map(|violation| violation.kind).collect();
                tally.enter(&kinds, owing.states);
                let Some(first) = violations.first() else { continue };
                explained += 1;
                let explain = || self.recording.explain(lowered, &outcome, first.kind).cause;
                // What breaks thousands of states breaks the rest for the same reason.
                let known = usual.get(&first.kind).filter(|_| explained > EXPLAINED_MAX);
                let cause = known.cloned().unwrap_or_else(explain);
                usual.insert(first.kind, cause.clone());
                let entry = causes.entry(cause).or_insert_with(|| Cause::new(outcome.clone()));
                entry.add(outcome, violations, owing.states);
            }
        }
        let mut findings = Vec::new();
        for cause in causes.into_values() {
            findings.push(self.finding(explored, cause, directory)?);
        }
        findings.sort_by_key(|finding| (finding.kind.promise(), finding.explanation.after_ops));
        Ok(Cell {
            profile: profile.name.clone(),
            states: derived.states,
            distinct: derived.survivors.len(),
            exhaustive: derived.exhaustive,
            not_measured: None,
            tally,
            findings,
            expectation: self
                .request
                .expectation(&self.recording.prepared.name, Some(&profile.name)),
        })
    }

    /// The first moment at which the state breaks a promise: when the power goes, or when something
    /// is promised that is not there.
    fn first_moment(
        &self,
        lowered: &Lowered,
        version: Option<usize>,
        owing: &crate::power::derive::Owing,
    ) -> Time {
        let start = Time(owing.first.moment);
        let Some(version) = version else { return start };
        let trace = &lowered.trace;
        let breaks = (0..owing.acks).find(|ack| {
            let said = &trace.said[..(ack + 1).min(trace.said.len())];
            self.recording.history.owed_by(*ack as u64 + 1, said) > version
        });
        breaks.map_or(start, |ack| start.max(Time::after_ops(trace.acks[ack])))
    }

    /// Keeps the best example of a cause.
    fn finding(
        &self,
        explored: &Explored,
        cause: Cause,
        directory: &RunDirectory,
    ) -> Result<Finding> {
        let Cause { outcome, violations, states, survivors, kinds } = cause;
        let Some(first) = violations.first() else {
            return Err(Error::internal("a finding without a violation"));
        };
        let explanation = self.recording.explain(&explored.lowered, &outcome, first.kind);
        let (name, subject) = &self.request.subjects[self.index];
        let trial = Trial { subject: name.clone(), fault: outcome.fault.clone() };
        let kept = Kept {
            schema: SCHEMA,
            id: trial.id(subject),
            trial,
            subject: subject.clone(),
            reach: self.request.reach.clone(),
            promises: self.request.promises.clone(),
            injection: outcome.injection.clone(),
            acks: outcome.acks,
            violations: violations.clone(),
            exit: outcome.exit,
            steps: Vec::new(),
            explanation: Some(explanation.clone()),
        };
        directory.keep(&kept, &outcome)?;
        Ok(Finding {
            kind: first.kind,
            kinds,
            detail: first.detail.clone(),
            states,
            survivors,
            explanation,
            id: kept.id,
        })
    }
}

/// The crash states that break a promise for the same reason.
struct Cause {
    outcome: Outcome,
    violations: Vec<Violation>,
    states: u64,
    survivors: usize,
    kinds: BTreeMap<ViolationKind, u64>,
}

impl Cause {
    fn new(outcome: Outcome) -> Self {
        let (violations, kinds) = (Vec::new(), BTreeMap::new());
        Self { outcome, violations, states: 0, survivors: 0, kinds }
    }

    /// Counts states; the one that comes first, and has lost least, is the example.
    fn add(&mut self, outcome: Outcome, violations: Vec<Violation>, states: u64) {
        let rank = |outcome: &Outcome| match &outcome.fault {
            Fault::PowerLoss(PowerLoss { state, .. }) => {
                let kept = state.changes.iter().map(|(_, changes)| changes.len()).sum::<usize>();
                (state.moment, usize::MAX - state.steps.len() - kept)
            }
            _ => (u32::MAX, 0),
        };
        if let Some(first) = violations.first() {
            *self.kinds.entry(first.kind).or_default() += states;
        }
        if self.violations.is_empty() || rank(&outcome) < rank(&self.outcome) {
            (self.outcome, self.violations) = (outcome, violations);
        }
        self.states += states;
        self.survivors += 1;
    }
}

/// Shows survivors to a subject.
struct Confronter<'a> {
    case: &'a Case<'a>,
    lefts: &'a [(Left, String)],
    injector: Box<dyn Injector + 'a>,
}

impl Work for Confronter<'_> {
    fn trials(&mut self, range: Range) -> Result<Vec<Record>> {
        let index = usize::try_from(range.start).unwrap_or(usize::MAX);
        let Some((left, profile)) = self.lefts.get(index) else { return Ok(Vec::new()) };
        let (checks, recovery) = self.injector.confront(left)?;
        let outcome = Outcome {
            fault: Fault::PowerLoss(PowerLoss {
                profile: String::new(),
                state: CrashState::default(),
            }),
            injection: Injection::At(Struck::Power { ops: 0 }),
            exit: Exit::Killed,
            acks: left.acks,
            said: Vec::new(),
            steps: Vec::new(),
            unsynced: BTreeMap::new(),
            survivor: left.survivor.clone(),
            checks,
            recovery,
        };
        let promises = [Promise::Recoverable, Promise::Checked, Promise::Tidy].into();
        let mut verdict = oracle::judge(&outcome, &self.case.recording.history, &promises);
        if verdict == Verdict::Pass && self.case.request.reach.depth == Depth::Two {
            let (prepared, seed) = (self.case.recording.prepared, self.case.request.seed.0);
            let found = second::recovery(&mut *self.injector, prepared, left, profile, seed)?;
            if !found.is_empty() {
                verdict = Verdict::Violated(found);
            }
        }
        let mut record = Record::new(range.start, 0, &outcome, &verdict);
        if let Verdict::Violated(violations) = verdict {
            record.reactions = violations;
        }
        Ok(vec![record])
    }
}
