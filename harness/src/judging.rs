//! What the crash states of a recording are worth: each distinct survivor is judged once for each
//! version that can be owed, and what breaks a promise is sorted by its cause.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use crate::describe::folded;
use crate::history::{History, States};
use crate::oracle;
use crate::outcome::{Load, Outcome, Recovery};
use crate::power::derive::{Distinct, Owing};
use crate::power::spread::Spread;
use crate::power::survivor::CrashState;
use crate::power::{Lowered, Time};
use crate::recorded::{Recording, state_of};
use crate::tally::Tally;
use crate::verdict::{Promise, Verdict, Violation, ViolationKind, Why};

/// How many bytes of survivors the oracle looks at on one profile; others that are no version are taken
/// for what the one before was.
const LOOKED_AT_MAX: usize = 256 << 20;

/// How many findings of one subject on one profile are explained.
const EXPLAINED_MAX: usize = 2000;

/// Judges the survivors of one recording on one profile.
pub struct Judging<'a> {
    recording: &'a Recording<'a>,
    lowered: &'a Lowered,
    profile: &'a str,
    promises: &'a BTreeSet<Promise>,
    owed_by_acks: Vec<usize>,
    /// The verdicts, by crash state.
    pub tally: Tally,
    /// Where along the run they come.
    pub spread: Spread,
    /// What breaks promises, by its cause.
    pub causes: BTreeMap<String, Cause>,
    /// What a survivor is worth whose bytes break nothing.
    passes: Result<(), Why>,
    /// Whether a check of the user's has judged it.
    has_check: bool,
    looked_at: usize,
    explained: usize,
    /// The cause of the last violation of each kind.
    usual: HashMap<ViolationKind, String>,
    /// What the last survivor that is no version broke, and why.
    last: Option<Known>,
}

/// What was asked about a survivor besides its bytes.
#[derive(Clone, Copy, Debug)]
pub enum Asked<'a> {
    /// There is nothing that could be asked.
    Nothing,
    /// A load or a check, and this is what they say: for so many acks, and for fewer, the most first.
    Reacted(&'a [Reacted]),
    /// There is a load or a check, and it was not asked.
    NotYet,
}

/// What a load and the checks say of a survivor.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reacted {
    /// When so many acks had been given.
    pub acks: u64,
    /// What they found broken.
    pub violations: Vec<Violation>,
    /// What the load made of it.
    pub recovery: Recovery,
}

impl Reacted {
    /// What is said for so many acks: where nothing was broken, nothing is with fewer; else what was broken with the
    /// fewest.
    fn to(all: &[Self], acks: u64) -> Option<&Self> {
        let holds = |one: &&Self| one.violations.is_empty();
        let broken = || all.iter().filter(|one| !holds(one)).min_by_key(|one| one.acks);
        all.iter().filter(holds).find(|one| acks <= one.acks).or_else(broken).or(all.first())
    }
}

/// What breaks, and its cause.
type Known = (Vec<ViolationKind>, String);

impl<'a> Judging<'a> {
    /// Nothing is judged yet.
    #[must_use]
    pub fn new(
        recording: &'a Recording<'a>,
        lowered: &'a Lowered,
        profile: &'a str,
        promises: &'a BTreeSet<Promise>,
    ) -> Self {
        let (trace, history) = (&recording.trace, &recording.history);
        Self {
            recording,
            lowered,
            profile,
            promises,
            owed_by_acks: history.owed_by_acks(trace.acks.len(), &trace.said),
            tally: Tally::default(),
            spread: Spread::default(),
            causes: BTreeMap::new(),
            passes: Ok(()),
            has_check: false,
            looked_at: 0,
            explained: 0,
            usual: HashMap::new(),
            last: None,
        }
    }

    /// Judges one survivor by its bytes, and by what the subject, or a check, made of it.
    pub fn distinct(&mut self, distinct: &Distinct, asked: Asked<'_>) {
        let by_load = self.recording.history.loads.is_some();
        let all = match asked {
            Asked::Reacted(all) if by_load => return self.loaded(distinct, all),
            // What its bytes are says nothing of what is loaded.
            Asked::NotYet if by_load => {
                let states = distinct.owing.iter().map(|owing| owing.states).sum();
                return self.tally.say_nothing(Why::NotAsked, states);
            }
            Asked::Reacted(all) => all,
            Asked::NotYet | Asked::Nothing => &[],
        };
        let checked = self.promises.contains(&Promise::Checked);
        self.has_check = checked && matches!(asked, Asked::Reacted(..));
        self.passes = match asked {
            Asked::Nothing | Asked::Reacted(..) => Ok(()),
            Asked::NotYet => Err(Why::NotAsked),
        };
        let durable = self.promises.contains(&Promise::Durable) && !self.has_check;
        let mut lost: Option<Known> = None;
        let mut counted = BTreeSet::new();
        for owing in &distinct.owing {
            let reacted = Reacted::to(all, self.recording.given(owing.acks));
            let reacted = reacted.map_or(&[][..], |reacted| &reacted.violations);
            let is_lost = distinct.version.is_some_and(|version| version < owing.owed);
            if distinct.version.is_some() && !is_lost && reacted.is_empty() {
                let history = &self.recording.history;
                let given = self.recording.given(owing.acks);
                // The end promises what is there then.
                let by_ack = given == owing.acks as u64;
                if durable && by_ack && history.undistinguished.contains(&given) {
                    self.tally.say_nothing(Why::NotComparable, owing.states);
                    continue;
                }
                self.enter(&[], owing, Time(0));
                continue;
            }
            let moment = self.first_moment(distinct.version, owing);
            let state = owing.first.at(moment);
            // An older version breaks the same promise, however much newer the one is that is owed; and
            // when enough was looked at, what is no version is taken for what the one before was.
            let known = if is_lost { lost.clone() } else { self.taken_for(distinct) };
            let known = known.filter(|(_, cause)| {
                self.causes.get(cause).is_some_and(|cause| cause.rank() <= rank(&state))
            });
            let (kinds, cause) = match known {
                Some(known) => known,
                None => match self.look(state, owing, (reacted, None)) {
                    Some(found) => found,
                    None => continue,
                },
            };
            self.enter(&kinds, owing, moment);
            if let Some(found) = self.causes.get_mut(&cause) {
                found.count(&kinds, owing.states, counted.insert(cause.clone()));
            }
            match (is_lost, distinct.version) {
                (true, _) => lost = Some((kinds, cause)),
                (false, None) => self.last = Some((kinds, cause)),
                (false, Some(_)) => {}
            }
        }
    }

    /// Judges one survivor by what the subject's load made of it, for each number of acks.
    fn loaded(&mut self, distinct: &Distinct, all: &[Reacted]) {
        (self.passes, self.has_check) = (Ok(()), self.promises.contains(&Promise::Checked));
        let mut counted = BTreeSet::new();
        for owing in &distinct.owing {
            let moment = owing.moment(self.lowered);
            let state = owing.first.at(moment);
            let given = self.recording.given(owing.acks);
            let Some(reacted) = Reacted::to(all, given) else { continue };
            // Whether a load may fail depends on what is owed here, and it was asked with the most acks.
            let fails = matches!(reacted.recovery.load, Load::Failed(_));
            let counts = |one: &&Violation| !fails || one.kind != ViolationKind::RecoveryFailed;
            let found: Vec<_> = reacted.violations.iter().filter(counts).cloned().collect();
            let reacted = (&found[..], Some(&reacted.recovery));
            let Some((kinds, cause)) = self.look(state, owing, reacted) else { continue };
            self.enter(&kinds, owing, moment);
            if let Some(found) = self.causes.get_mut(&cause) {
                found.count(&kinds, owing.states, counted.insert(cause.clone()));
            }
        }
    }

    /// Counts the states that are worth this, each at its moment, and not before one at which something is owed.
    fn enter(&mut self, kinds: &[ViolationKind], owing: &Owing, owed: Time) {
        if let (Err(why), true) = (self.passes, kinds.is_empty()) {
            self.tally.say_nothing(why, owing.states);
            return;
        }
        self.tally.enter(kinds, owing.states);
        for (moment, states) in owing.moments.counts() {
            self.spread.enter(kinds.first().copied(), moment.max(owed).ops_begun(), states);
        }
    }

    /// What a survivor that is no version is taken for without a look.
    fn taken_for(&self, distinct: &Distinct) -> Option<Known> {
        // Of a log, what is no version may be sound: a torn record is left out.
        let sure = distinct.version.is_none() && !self.recording.prepared.leaves_out();
        self.last.clone().filter(|_| sure && self.looked_at > LOOKED_AT_MAX)
    }

    /// Has the oracle look at a state; if that breaks nothing, it is counted.
    fn look(
        &mut self,
        state: CrashState,
        owing: &Owing,
        (reacted, recovery): (&[Violation], Option<&Recovery>),
    ) -> Option<Known> {
        let acks = self.lowered.acks_at(Time(state.moment));
        let mut outcome = self.recording.outcome(self.lowered, self.profile, state, acks);
        outcome.recovery = recovery.cloned().unwrap_or_default();
        self.looked_at += outcome.survivor.size() + 64;
        let (violations, unclear) =
            violations(&outcome, &self.recording.history, self.promises, reacted);
        let Some(first) = violations.first().map(|violation| violation.kind) else {
            match unclear.filter(|_| !self.has_check) {
                Some(why) => self.tally.say_nothing(why, owing.states),
                None => self.enter(&[], owing, Time(0)),
            }
            return None;
        };
        self.explained += 1;
        let explain = || self.recording.explain(self.lowered, &outcome, first).cause;
        // What breaks thousands of states breaks the rest for the same reason.
        let known = self.usual.get(&first).filter(|_| self.explained > EXPLAINED_MAX);
        let cause = known.cloned().unwrap_or_else(explain);
        self.usual.insert(first, cause.clone());
        let cause = format!("{cause} {}", self.apart(&violations[0]));
        let kinds = violations.iter().map(|violation| violation.kind).collect();
        let entry = self.causes.entry(cause.clone());
        entry.or_insert_with(|| Cause::new(outcome.clone())).offer(outcome, violations);
        Some((kinds, cause))
    }

    /// What tells a violation from others of the same cause: the message of a load or a check, and else the file.
    fn apart(&self, violation: &Violation) -> String {
        match violation.kind.promise() {
            Promise::Checked | Promise::Recoverable => folded(&violation.detail),
            _ => {
                let files = self.recording.paths.iter().map(|path| path.display().to_string());
                let mut named = files.filter(|file| violation.detail.starts_with(file));
                named.next().unwrap_or_default()
            }
        }
    }

    /// The first moment at which the state breaks a promise: when the power goes, or when something
    /// is promised that is not there.
    fn first_moment(&self, version: Option<usize>, owing: &Owing) -> Time {
        let start = Time(owing.first.moment);
        // A whole state breaks what it breaks by what is made of it, and not by what is owed.
        let Some(version) = version.filter(|version| *version < owing.owed) else { return start };
        let ack = self.owed_by_acks.partition_point(|owed| *owed <= version).checked_sub(1);
        let ops = ack.and_then(|ack| self.lowered.trace.acks.get(ack));
        ops.map_or(start, |ops| start.max(Time::after_ops(*ops)))
    }
}

/// What a crash state breaks, by its bytes and by what the subject made of it; and why its bytes say nothing, if
/// they don't.
fn violations(
    outcome: &Outcome,
    history: &History,
    promises: &BTreeSet<Promise>,
    reacted: &[Violation],
) -> (Vec<Violation>, Option<Why>) {
    let owed = oracle::owed(outcome, history);
    let (mut violations, unclear) = match oracle::judge(outcome, history, promises) {
        Verdict::Violated(violations) => (violations, None),
        Verdict::Pass => (Vec::new(), None),
        Verdict::Inconclusive(why) => (Vec::new(), Some(why)),
    };
    // Where nothing is left, as before the first save, the load rightly says so.
    let begins = |version: usize| history.versions.get(version).is_some_and(States::is_empty);
    let nothing = begins(owed) || (outcome.survivor.files.is_empty() && begins(0));
    let counts = |violation: &&Violation| {
        promises.contains(&violation.kind.promise())
            && !(nothing && violation.kind == ViolationKind::Reset)
    };
    let known: Vec<_> = violations.iter().map(|violation| violation.kind).collect();
    let is_new = |violation: &&Violation| !known.contains(&violation.kind);
    violations.extend(reacted.iter().filter(counts).filter(is_new).cloned());
    for violation in &mut violations {
        // The subject was shown the survivor once, whatever is owed in each state.
        if violation.kind == ViolationKind::Reset {
            violation.detail = oracle::reset_detail(owed);
        }
    }
    (violations, unclear)
}

/// The crash states that break a promise for the same reason.
pub struct Cause {
    /// The facts of the best example.
    pub outcome: Outcome,
    /// What it breaks.
    pub violations: Vec<Violation>,
    /// How many crash states there are.
    pub states: u64,
    /// How many distinct survivors they leave.
    pub survivors: usize,
    /// What they break first.
    pub kinds: BTreeMap<ViolationKind, u64>,
}

impl Cause {
    fn new(outcome: Outcome) -> Self {
        let (violations, kinds) = (Vec::new(), BTreeMap::new());
        Self { outcome, violations, states: 0, survivors: 0, kinds }
    }

    /// Takes it for the example if it comes earlier, or has lost less.
    fn offer(&mut self, outcome: Outcome, violations: Vec<Violation>) {
        if self.violations.is_empty() || rank(state_of(&outcome)) < self.rank() {
            (self.outcome, self.violations) = (outcome, violations);
        }
    }

    /// Counts states, and a survivor that is a new one.
    fn count(&mut self, kinds: &[ViolationKind], states: u64, fresh: bool) {
        if let Some(first) = kinds.first() {
            *self.kinds.entry(*first).or_default() += states;
        }
        self.states += states;
        self.survivors += usize::from(fresh);
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
