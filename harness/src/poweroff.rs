//! A run of the scenario `poweroff`: every subject is recorded once, every crash state is derived,
//! and each distinct survivor is judged.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::agenda::Range;
use crate::difference;
use crate::error::{Error, Result};
use crate::fault::{Fault, Injection, PowerLoss, Struck};
use crate::inject::{self, Injector, Left};
use crate::judging::{Cause, Judging};
use crate::lab::{self, Lab};
use crate::model::NotModelled;
use crate::oracle;
use crate::os::signals;
use crate::outcome::{Exit, Outcome};
use crate::pool::{Completion, Job, Pool, Work};
use crate::power::Lowered;
use crate::power::derive::{Budget, Derived, derive};
use crate::power::lower::lower;
use crate::power::profile::{EMBEDDED, Profile};
use crate::power::spread::Spread;
use crate::power::survivor::CrashState;
use crate::recorded::Recording;
use crate::report::power::{Cell, Finding};
use crate::results::RunDirectory;
use crate::run::Request;
use crate::second::{self, Shown};
use crate::subject::{Kind, Prepared};
use crate::sweep::Depth;
use crate::tally::Tally;
use crate::verdict::{Promise, Verdict, Violation};

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

/// How many bytes of survivors a subject is confronted with, on all profiles together.
const SHOWN_BYTES_MAX: usize = 128 << 20;

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
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Reaction {
    /// Its number.
    n: u64,
    violations: Vec<Violation>,
    /// What of its recovery the model does not know.
    unknown: Option<String>,
}

/// Derives and judges the crash states of one subject on these profiles, each with a number of the caller's.
pub fn cells(
    request: &Request,
    lab: &Lab,
    index: usize,
    prepared: &Prepared,
    profiles: &[(u64, &String)],
    directory: &RunDirectory,
) -> Result<(Vec<(u64, Cell)>, Completion)> {
    let case = Case { request, index, recording: Recording::new(prepared)? };
    let (mut explored, mut cells) = (Vec::new(), Vec::new());
    let mut lefts = Lefts::default();
    for (n, name) in profiles {
        let profile = Profile::find(name)?;
        lefts.most += SHOWN_BYTES_MAX / request.asked.power.profiles.len();
        match lower(&case.recording.trace, &prepared.before, &profile.flags) {
            Ok(lowered) => explored.push((*n, case.explore(profile, lowered, &mut lefts))),
            Err(NotModelled(why)) => cells.push((*n, case.not_measured(name, why))),
        }
    }
    let (reactions, completion) = case.confront(lab, lefts.all)?;
    for (n, one) in &explored {
        cells.push((*n, case.judge(one, &reactions, directory)?));
    }
    // What was explored when Ctrl-C came is not all.
    let completion = if signals::interrupted() { Completion::Interrupted } else { completion };
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
    /// How many there may be with those of this profile.
    most: usize,
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
        let promises = &self.request.asked.promises;
        asked.iter().any(|promise| promises.contains(promise))
    }

    fn explore(&self, profile: Profile, lowered: Lowered, lefts: &mut Lefts) -> Explored {
        let budget = Budget {
            states_max: self.request.asked.power.states_max,
            seed: self.request.asked.seed.0,
            judged: self.recording.judged,
        };
        let Recording { paths, history, .. } = &self.recording;
        let derived = derive(&lowered, paths, history, budget, &signals::interrupted);
        let (reacts, twice) = (self.reacts(), self.request.asked.reach.depth == Depth::Two);
        let mut confronted = Vec::new();
        for distinct in &derived.survivors {
            let owing = distinct.owing.iter().max_by_key(|owing| owing.owed);
            let shown = owing.filter(|_| reacts && lefts.bytes < lefts.most).map(|owing| {
                let state = owing.first.at(owing.moment(&lowered));
                let survivor = state.survivor(&lowered, self.recording.state());
                let (directory, acks) = (state.directory(&lowered), owing.acks as u64);
                lefts.add(Left { directory, survivor, acks }, &profile.name, twice)
            });
            confronted.push(shown);
        }
        Explored { profile, lowered, derived, confronted }
    }

    fn judge(
        &self,
        explored: &Explored,
        reactions: &[Reaction],
        directory: &RunDirectory,
    ) -> Result<Cell> {
        let Explored { profile, lowered, derived, confronted } = explored;
        let name = &profile.name;
        let reaction = |place: &Option<usize>| place.map(|place| &reactions[place]);
        let mut unknown = confronted.iter().filter_map(reaction).filter_map(|r| r.unknown.as_ref());
        if let Some(why) = unknown.next() {
            return Ok(self.not_measured(name, format!("{why}, in the recovery")));
        }
        let mut judging =
            Judging::new(&self.recording, lowered, name, &self.request.asked.promises);
        for (distinct, confronted) in derived.survivors.iter().zip(confronted) {
            let reacted = reaction(confronted).map(|reaction| &reaction.violations[..]);
            judging.distinct(distinct, reacted.unwrap_or_default());
        }
        let Judging { tally, spread, causes, .. } = judging;
        let mut findings = Vec::new();
        for cause in causes.into_values() {
            findings.push(self.finding(explored, cause, directory)?);
        }
        findings.sort_by_key(|finding| (finding.kind.promise(), finding.explanation.after_ops));
        let shown = confronted.iter().filter(|place| place.is_some()).count();
        Ok(Cell {
            profile: name.clone(),
            states: derived.states,
            distinct: derived.survivors.len(),
            shown: self.reacts().then_some(shown),
            exhaustive: derived.exhaustive,
            not_measured: None,
            tally,
            spread: spread.coarse(),
            findings,
            expectation: self.request.asked.expectation(&self.recording.prepared.name, Some(name)),
            disk: None,
        })
    }

    fn not_measured(&self, profile: &str, why: String) -> Cell {
        Cell {
            profile: profile.to_owned(),
            states: 0,
            distinct: 0,
            shown: None,
            exhaustive: false,
            not_measured: Some(why),
            tally: Tally::default(),
            spread: Spread::default(),
            findings: Vec::new(),
            expectation: self
                .request
                .asked
                .expectation(&self.recording.prepared.name, Some(profile)),
            disk: None,
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
            Ok(Box::new(work) as Job<'_, Reaction>)
        })?;
        let all = (lefts.len() as u64, self.request.place.quiet);
        let completion = pool.run_all(all, &mut |reaction: Reaction| {
            let broke = !reaction.violations.is_empty();
            if let Some(slot) = reactions.get_mut(usize::try_from(reaction.n).unwrap_or(0)) {
                *slot = reaction;
            }
            broke
        })?;
        Ok((reactions, completion))
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
        let mut kept = self.request.kept(self.index, &outcome, &violations);
        kept.calls = Some(self.recording.calls());
        kept.explanation = Some(explanation.clone());
        let history = &self.recording.history;
        kept.differences = difference::of(history, outcome.acks, &outcome.survivor);
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

/// Shows survivors to a subject.
struct Confronter<'a> {
    case: &'a Case<'a>,
    lefts: &'a [(Left, String)],
    injector: Box<dyn Injector + 'a>,
}

impl Work for Confronter<'_> {
    type Answer = Reaction;

    fn trials(&mut self, range: Range) -> Result<Vec<Reaction>> {
        let index = usize::try_from(range.start).unwrap_or(usize::MAX);
        let Some((left, profile)) = self.lefts.get(index) else { return Ok(Vec::new()) };
        let (checks, recovery) = self.injector.confront(left)?;
        let outcome = Outcome {
            acks: left.acks,
            survivor: left.survivor.clone(),
            checks,
            recovery,
            ..Outcome::new(
                Fault::PowerLoss(PowerLoss {
                    profile: String::new(),
                    state: CrashState::default(),
                }),
                Injection::At(Struck::Power { ops: 0 }),
                Exit::Killed,
            )
        };
        let promises = [Promise::Recoverable, Promise::Checked, Promise::Tidy].into();
        let mut verdict = oracle::judge(&outcome, &self.case.recording.history, &promises);
        let mut unknown = None;
        if verdict == Verdict::Pass && self.case.request.asked.reach.depth == Depth::Two {
            let (prepared, seed) = (self.case.recording.prepared, self.case.request.asked.seed.0);
            match second::recovery(&mut *self.injector, prepared, left, profile, seed)? {
                Shown::Found(found) if found.is_empty() => {}
                Shown::Found(found) => verdict = Verdict::Violated(found),
                Shown::Unknown(call) => unknown = Some(call),
            }
        }
        let violations = match verdict {
            Verdict::Violated(violations) => violations,
            Verdict::Pass | Verdict::Inconclusive(_) => Vec::new(),
        };
        Ok(vec![Reaction { n: range.start, violations, unknown }])
    }
}
