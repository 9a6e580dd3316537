//! A run of the scenario `poweroff`: every subject is recorded once, every crash state is derived,
//! and each distinct survivor is judged.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::agenda::Range;
use crate::error::{Error, Result};
use crate::fault::{Fault, Injection, PowerLoss, Struck};
use crate::inject::{self, Injector, Left};
use crate::lab::{self, Lab};
use crate::model::NotModelled;
use crate::oracle;
use crate::os::signals;
use crate::outcome::{Exit, Outcome};
use crate::pool::{Completion, Pool, Work};
use crate::power::derive::{Budget, Derived, derive};
use crate::power::lower::lower;
use crate::power::profile::{EMBEDDED, Profile};
use crate::power::survivor::CrashState;
use crate::power::{Lowered, Time};
use crate::progress::Progress;
use crate::record::{Brief, Record};
use crate::recorded::{Recording, state_of};
use crate::report::power::{Cell, Finding};
use crate::results::{Kept, RunDirectory, SCHEMA};
use crate::run::Request;
use crate::second;
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

/// How many bytes of survivors a subject is confronted with.
const SHOWN_BYTES_MAX: usize = 256 << 20;
/// How many bytes of survivors the oracle looks at on one profile; others that are no version are taken
/// for what the one before was.
const LOOKED_AT_MAX: usize = 256 << 20;

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

/// The survivors that the subject is to be confronted with, each once.
#[derive(Default)]
struct Lefts {
    /// What is left, and on which profile it first was.
    all: Vec<(Left, String)>,
    known: HashMap<u64, usize>,
    /// How many bytes are kept for that.
    bytes: usize,
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
            self.bytes += left.size();
            self.all.push((left, profile.to_owned()));
            self.all.len() - 1
        })
    }
}

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
        let budget = Budget {
            states_max: self.request.power.states_max,
            seed: self.request.seed.0,
            judged: self.recording.judged,
        };
        let Recording { paths, history, .. } = &self.recording;
        let derived = derive(&lowered, paths, history, budget, &signals::interrupted);
        let (reacts, twice) = (self.reacts(), self.request.reach.depth == Depth::Two);
        let mut confronted = Vec::new();
        for distinct in &derived.survivors {
            let owing = distinct.owing.iter().max_by_key(|owing| owing.owed);
            let shown = owing.filter(|_| reacts && lefts.bytes < SHOWN_BYTES_MAX).map(|owing| {
                let state = Self::at(&owing.first, owing.moment(&lowered));
                let survivor = state.survivor(&lowered, self.recording.state());
                let (directory, acks) = (state.directory(&lowered), owing.acks as u64);
                lefts.add(Left { directory, survivor, acks }, &profile.name, twice)
            });
            confronted.push(shown);
        }
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
        let mut last: Option<(Vec<Violation>, String)> = None;
        let (mut tally, mut causes) = (Tally::default(), BTreeMap::<String, Cause>::new());
        let (mut explained, mut usual) = (0, HashMap::<ViolationKind, String>::new());
        let (trace, history) = (&self.recording.trace, &self.recording.history);
        let owed_by_acks = history.owed_by_acks(trace.acks.len(), &trace.said);
        let mut looked_at = 0;
        for (distinct, confronted) in derived.survivors.iter().zip(confronted) {
            let reaction = confronted.map(|place| &reactions[place]);
            let reacted = reaction.map(|reaction| &reaction.violations[..]).unwrap_or_default();
            let mut lost: Option<(Vec<Violation>, String)> = None;
            for owing in &distinct.owing {
                let whole = distinct.version.is_some_and(|version| version >= owing.owed);
                if whole && reacted.is_empty() {
                    tally.enter(&[], owing.states);
                    continue;
                }
                let moment = self.first_moment(lowered, distinct.version, owing, &owed_by_acks);
                let state = Self::at(&owing.first, moment);
                // The same older version breaks the same promise, however much newer the one is that is owed.
                if let Some((violations, cause)) = &lost
                    && distinct.version.is_some()
                    && causes.get(cause).is_some_and(|cause| cause.rank() <= rank(&state))
                {
                    let kinds: Vec<_> = violations.iter().map(|v| v.kind).collect();
                    tally.enter(&kinds, owing.states);
                    if let Some(cause) = causes.get_mut(cause) {
                        cause.count(&kinds, owing.states);
                    }
                    continue;
                }
                if looked_at > LOOKED_AT_MAX
                    && let Some((violations, cause)) = &last
                    && distinct.version.is_none()
                {
                    let kinds: Vec<_> = violations.iter().map(|v| v.kind).collect();
                    tally.enter(&kinds, owing.states);
                    if let Some(cause) = causes.get_mut(cause) {
                        cause.count(&kinds, owing.states);
                    }
                    continue;
                }
                let acks = lowered.acks_at(moment);
                let outcome = self.recording.outcome(lowered, &profile.name, state, acks);
                looked_at += outcome.survivor.size() + 64;
                let violations = self.violations(&outcome, reacted);
                let kinds: Vec<_> = violations.iter().map(|violation| violation.kind).collect();
                tally.enter(&kinds, owing.states);
                let Some(first) = violations.first() else { continue };
                explained += 1;
                let explain = || self.recording.explain(lowered, &outcome, first.kind).cause;
                // What breaks thousands of states breaks the rest for the same reason.
                let known = usual.get(&first.kind).filter(|_| explained > EXPLAINED_MAX);
                let cause = known.cloned().unwrap_or_else(explain);
                usual.insert(first.kind, cause.clone());
                let found = Some((violations.clone(), cause.clone()));
                if distinct.version.is_some() {
                    lost = found
                } else {
                    last = found
                }
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

    /// What a crash state breaks, by its bytes and by what the subject made of it.
    fn violations(&self, outcome: &Outcome, reacted: &[Violation]) -> Vec<Violation> {
        let (promises, history) = (&self.request.promises, &self.recording.history);
        let owed = oracle::owed(outcome, history);
        let mut violations = match oracle::judge(outcome, history, promises) {
            Verdict::Violated(violations) => violations,
            Verdict::Pass | Verdict::Inconclusive(_) => Vec::new(),
        };
        // Where nothing is left, as before the first save, the load rightly says so.
        let begins = |version: usize| history.versions.get(version).is_some_and(BTreeMap::is_empty);
        let nothing = begins(owed) || (outcome.survivor.files.is_empty() && begins(0));
        let counts = |violation: &&Violation| {
            promises.contains(&violation.kind.promise())
                && !(nothing && violation.kind == ViolationKind::Reset)
        };
        violations.extend(reacted.iter().filter(counts).cloned());
        for violation in &mut violations {
            // The subject was shown the survivor once, whatever is owed in each state.
            if violation.kind == ViolationKind::Reset {
                violation.detail = oracle::reset_detail(owed);
            }
        }
        violations
    }

    /// The first moment at which the state breaks a promise: when the power goes, or when something
    /// is promised that is not there.
    fn first_moment(
        &self,
        lowered: &Lowered,
        version: Option<usize>,
        owing: &crate::power::derive::Owing,
        owed_by_acks: &[usize],
    ) -> Time {
        let start = Time(owing.first.moment);
        // A whole state breaks what it breaks by what is made of it, and not by what is owed.
        let Some(version) = version.filter(|version| *version < owing.owed) else { return start };
        let ack = owed_by_acks.partition_point(|owed| *owed <= version).checked_sub(1);
        let ops = ack.and_then(|ack| lowered.trace.acks.get(ack));
        ops.map_or(start, |ops| start.max(Time::after_ops(*ops)))
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
            seed: self.request.seed.0,
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
        let kinds: Vec<_> = violations.iter().map(|violation| violation.kind).collect();
        self.count(&kinds, states);
        if self.violations.is_empty() || rank(state_of(&outcome)) < self.rank() {
            (self.outcome, self.violations) = (outcome, violations);
        }
    }

    /// Counts states that are no better example.
    fn count(&mut self, kinds: &[ViolationKind], states: u64) {
        if let Some(first) = kinds.first() {
            *self.kinds.entry(*first).or_default() += states;
        }
        self.states += states;
        self.survivors += 1;
    }

    fn rank(&self) -> (u32, usize) {
        rank(state_of(&self.outcome))
    }
}

/// The less, the better an example: the earlier it is, and the less it has lost.
fn rank(state: &CrashState) -> (u32, usize) {
    let kept = state.changes.iter().map(|(_, changes)| changes.len()).sum::<usize>();
    (state.moment, usize::MAX - state.steps.len() - kept)
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
