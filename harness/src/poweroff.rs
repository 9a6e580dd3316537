//! A run of the scenario `poweroff`: every subject is recorded once, every crash state is derived,
//! and each distinct survivor is judged.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::agenda::Range;
use crate::difference;
use crate::error::{Error, Result};
use crate::fault::{Fault, Injection, PowerLoss, Struck};
use crate::inject::{self, Injector, Left};
use crate::judging::{Asked, Cause, Judging, Reacted};
use crate::lab::{self, Lab};
use crate::model::NotModelled;
use crate::oracle;
use crate::os::signals;
use crate::outcome::{Exit, Outcome, Recovery};
use crate::pool::{Completion, Job, Pool, Work};
use crate::power::Lowered;
use crate::power::derive::{Budget, Derived, derive};
use crate::power::lower::lower;
use crate::power::profile::{EMBEDDED, Profile};
use crate::power::spread::Spread;
use crate::power::survivor::{CrashState, Made};
use crate::recorded::Recording;
use crate::report::power::{Cell, Finding};
use crate::results::RunDirectory;
use crate::run::Request;
use crate::second::{self, Shown};
use crate::subject::{Kind, Prepared};
use crate::sweep::Depth;
use crate::tally::Tally;
use crate::verdict::{Promise, Verdict};

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
    /// About how many survivors of a program a load or a check is asked, on all profiles together.
    #[serde(default = "asked_max")]
    pub asked_max: usize,
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

fn asked_max() -> usize {
    20_000
}

impl Default for Power {
    fn default() -> Self {
        Self {
            profiles: all_profiles(),
            states_max: states_max(),
            asked_max: asked_max(),
            first_save: false,
        }
    }
}

/// Everything that is derived of one subject on one profile.
struct Explored {
    profile: Profile,
    lowered: Lowered,
    derived: Derived,
    /// For each survivor, its place among those that are asked about.
    asked: Vec<Option<usize>>,
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
    /// For each number of acks that it was asked with, the most first.
    asked: Vec<Reacted>,
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
    let mut questions = Questions::default();
    for (n, name) in profiles {
        let profile = Profile::find(name)?;
        // A built-in is asked in this process, which takes no time.
        questions.most = match prepared.kind {
            Kind::Command(_) => questions
                .most
                .saturating_add(request.asked.power.asked_max.div_ceil(profiles.len())),
            _ => usize::MAX,
        };
        match lower(&case.recording.trace, &prepared.before, &profile.flags) {
            Ok(lowered) => {
                explored.push((*n, case.explore(profile, lowered)));
                case.ask_about(&mut explored, &mut questions);
            }
            Err(NotModelled(why)) => cells.push((*n, case.not_measured(name, why))),
        }
    }
    let (reactions, completion) = case.confront(lab, &explored, &questions.all)?;
    for (n, one) in &explored {
        cells.push((*n, case.judge(one, &reactions, directory)?));
    }
    // What was explored when Ctrl-C came is not all.
    let completion = if signals::interrupted() { Completion::Interrupted } else { completion };
    Ok((cells, completion))
}

/// What a load or a check is to be asked about: a survivor of one of the profiles.
///
/// Its bytes are made when it is asked, from the recording: there may be many, and large ones.
struct Question {
    explored: usize,
    state: CrashState,
    /// How many acks may have been given, the most first.
    acks: Vec<u64>,
}

impl Question {
    fn left(&self, lowered: &Lowered, state_files: &[PathBuf], made: &mut Made) -> Left {
        let survivor = self.state.survivor(lowered, state_files);
        let directory = self.state.directory_like(lowered, made);
        Left { directory, survivor, acks: 0 }
    }
}

/// All questions, the same only once.
#[derive(Default)]
struct Questions {
    all: Vec<Question>,
    known: HashMap<u64, usize>,
    /// How many there may be with those of this profile.
    most: usize,
}

impl Questions {
    /// Adds one unless there are enough; `apart` tells those that are not the same whatever is left.
    fn add(
        &mut self,
        question: Question,
        (lowered, made): (&Lowered, &mut Made),
        apart: Option<&str>,
    ) -> Option<usize> {
        use std::hash::Hash;
        let mut hasher = Xxh3::new();
        question.state.directory_like(lowered, made).hash(&mut hasher);
        (&question.acks, apart).hash(&mut hasher);
        let key = hasher.digest();
        if let Some(known) = self.known.get(&key) {
            return Some(*known);
        }
        if self.all.len() >= self.most {
            return None;
        }
        self.all.push(question);
        self.known.insert(key, self.all.len() - 1);
        Some(self.all.len() - 1)
    }
}

/// All numbers below `count`, so that the first of them, however many, are spread over all.
fn spread_out(count: usize) -> impl Iterator<Item = usize> {
    let bits = count.next_power_of_two().trailing_zeros();
    let reversed = move |n: usize| n.reverse_bits().checked_shr(usize::BITS - bits).unwrap_or(0);
    (0..1_usize << bits).map(reversed).filter(move |n| *n < count)
}

impl Case<'_> {
    /// Whether the subject, or a check, has something to say about survivors.
    fn reacts(&self) -> bool {
        if matches!(self.recording.prepared.kind, Kind::Recorded(_)) {
            return false;
        }
        let asked = [Promise::Recoverable, Promise::Checked, Promise::Tidy];
        let promises = &self.request.asked.promises;
        self.recording.history.loads.is_some()
            || asked.iter().any(|promise| promises.contains(promise))
    }

    fn has_check(&self) -> bool {
        matches!(&self.recording.prepared.kind, Kind::Command(learned) if learned.command.check.is_some())
    }

    fn explore(&self, profile: Profile, lowered: Lowered) -> Explored {
        let budget = Budget {
            states_max: self.request.asked.power.states_max,
            seed: self.request.asked.seed.0,
            judged: self.recording.judged,
        };
        let Recording { paths, history, .. } = &self.recording;
        let derived = derive(&lowered, paths, history, budget, &signals::interrupted);
        let asked = vec![None; derived.survivors.len()];
        Explored { profile, lowered, derived, asked }
    }

    /// Chooses what of the last one that was explored a load or a check is asked about.
    fn ask_about(&self, explored: &mut [(u64, Explored)], questions: &mut Questions) {
        let (place, true) = (explored.len() - 1, self.reacts()) else { return };
        let Explored { profile, lowered, derived, asked } = &mut explored[place].1;
        let twice = self.request.asked.reach.depth == Depth::Two;
        let apart = twice.then_some(&profile.name[..]);
        let mut made = Made::default();
        for number in spread_out(derived.survivors.len()) {
            let all = &derived.survivors[number].owing;
            let Some(owing) = all.iter().max_by_key(|owing| owing.owed) else { continue };
            let state = owing.first.at(owing.moment(lowered));
            let given = all.iter().map(|owing| self.recording.given(owing.acks));
            let given: BTreeSet<u64> = given.collect();
            // Only a check hears of them.
            let most = if self.has_check() { given.len() } else { 1 };
            let acks = given.into_iter().rev().take(most).collect();
            let question = Question { explored: place, state, acks };
            asked[number] = questions.add(question, (&*lowered, &mut made), apart);
            if signals::interrupted() {
                return;
            }
        }
    }

    fn judge(
        &self,
        explored: &Explored,
        reactions: &[Reaction],
        directory: &RunDirectory,
    ) -> Result<Cell> {
        let Explored { profile, lowered, derived, asked } = explored;
        let name = &profile.name;
        let reaction = |place: &Option<usize>| place.map(|place| &reactions[place]);
        let mut unknown = asked.iter().filter_map(reaction).filter_map(|r| r.unknown.as_ref());
        if let Some(why) = unknown.next() {
            return Ok(self.not_measured(name, format!("{why}, in the recovery")));
        }
        let mut judging =
            Judging::new(&self.recording, lowered, name, &self.request.asked.promises);
        for (distinct, place) in derived.survivors.iter().zip(asked) {
            judging.distinct(
                distinct,
                match reaction(place) {
                    Some(reaction) => Asked::Reacted(&reaction.asked),
                    None if self.reacts() => Asked::NotYet,
                    None => Asked::Nothing,
                },
            );
        }
        let Judging { tally, spread, causes, .. } = judging;
        let mut findings = Vec::new();
        for cause in causes.into_values() {
            findings.push(self.finding(explored, cause, directory)?);
        }
        findings.sort_by_key(|finding| (finding.kind.promise(), finding.explanation.after_ops));
        let shown = asked.iter().filter(|place| place.is_some()).count();
        let all_asked = !self.reacts() || shown == asked.len();
        Ok(Cell {
            profile: name.clone(),
            states: derived.states,
            distinct: derived.survivors.len(),
            shown: self.reacts().then_some(shown),
            exhaustive: derived.exhaustive && all_asked,
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

    /// Asks a load or a check about survivors, on all workers.
    fn confront(
        &self,
        lab: &Lab,
        explored: &[(u64, Explored)],
        questions: &[Question],
    ) -> Result<(Vec<Reaction>, Completion)> {
        let mut reactions = vec![Reaction::default(); questions.len()];
        if questions.is_empty() {
            return Ok((reactions, Completion::Whole));
        }
        let jobs = self.request.place.jobs.min(questions.len().div_ceil(8));
        let mut pool = Pool::start(jobs, false, |index| {
            let room = lab::room(lab.path(), index)?;
            let injector = inject::for_subject(self.recording.prepared, &room, None)?;
            let made = (0, Made::default());
            let work = Confronter { case: self, explored, questions, injector, made };
            Ok(Box::new(work) as Job<'_, Reaction>)
        })?;
        let all = (questions.len() as u64, self.request.place.quiet);
        let completion = pool.run_all(all, &mut |reaction: Reaction| {
            let broke = reaction.asked.iter().any(|reacted| !reacted.violations.is_empty());
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
    explored: &'a [(u64, Explored)],
    questions: &'a [Question],
    injector: Box<dyn Injector + 'a>,
    /// Contents of what was explored at this place.
    made: (usize, Made),
}

impl Work for Confronter<'_> {
    type Answer = Reaction;

    fn trials(&mut self, range: Range) -> Result<Vec<Reaction>> {
        let index = usize::try_from(range.start).unwrap_or(usize::MAX);
        let Some(question) = self.questions.get(index) else { return Ok(Vec::new()) };
        let Explored { profile, lowered, .. } = &self.explored[question.explored].1;
        if self.made.0 != question.explored {
            self.made = (question.explored, Made::default());
        }
        let mut left = question.left(lowered, self.case.recording.state(), &mut self.made.1);
        let mut reaction = Reaction { n: range.start, ..Reaction::default() };
        // What holds after so many acks holds after fewer: the most first, and then the middle of what is open.
        let (mut from, mut until) = (0, question.acks.len());
        let mut at = 0;
        while from < until {
            left.acks = question.acks[at];
            let asked = self.ask(&left, &profile.name, &mut reaction.unknown)?;
            if asked.violations.is_empty() {
                until = at
            } else {
                from = at + 1
            }
            reaction.asked.push(asked);
            at = from.midpoint(until);
        }
        Ok(vec![reaction])
    }
}

impl Confronter<'_> {
    /// Asks about a survivor after so many acks.
    fn ask(&mut self, left: &Left, profile: &str, unknown: &mut Option<String>) -> Result<Reacted> {
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
        if verdict == Verdict::Pass && self.case.request.asked.reach.depth == Depth::Two {
            let (prepared, seed) = (self.case.recording.prepared, self.case.request.asked.seed.0);
            match second::recovery(&mut *self.injector, prepared, left, profile, seed)? {
                Shown::Found(found) if found.is_empty() => {}
                Shown::Found(found) => verdict = Verdict::Violated(found),
                Shown::Unknown(call) => *unknown = Some(call),
            }
        }
        let violations = match verdict {
            Verdict::Violated(violations) => violations,
            Verdict::Pass | Verdict::Inconclusive(_) => Vec::new(),
        };
        // Names need not be text, and are told already.
        let recovery = Recovery { leftovers: Vec::new(), ..outcome.recovery };
        Ok(Reacted { acks: left.acks, violations, recovery })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_numbers_are_spread_over_all_and_each_comes_once() {
        assert_eq!(spread_out(6).collect::<Vec<_>>(), [0, 4, 2, 1, 5, 3]);
        for count in 0..40 {
            let mut all: Vec<_> = spread_out(count).collect();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..count), "{count}");
        }
    }
}
