//! What all crash states of a recording leave, each distinct survivor once.

use std::collections::HashMap;
use std::path::PathBuf;

use super::fingerprint::Fingerprint;
use super::spread::Moments;
use super::survivor::CrashState;
use super::walk::{Complete, Found, Go, Seen, Walk};
use super::{Lowered, Time};
use crate::history::History;

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// How many states there may be before a sample must do.
    pub states_max: u64,
    /// What draws the sample.
    pub seed: u64,
    /// How many of the files make the state; the others are told apart, and not judged.
    pub judged: usize,
}

/// What the crash states of a recording leave.
#[derive(Clone, Debug, Default)]
pub struct Derived {
    /// How many states were looked at.
    pub states: u64,
    /// Whether these are all that there are.
    pub exhaustive: bool,
    /// Each distinct survivor.
    pub survivors: Vec<Distinct>,
}

/// One distinct survivor.
#[derive(Clone, Debug)]
pub struct Distinct {
    /// What the state files are.
    pub files: Vec<Seen>,
    /// The newest version that all of them are at least; `None` if one of them is no version.
    pub version: Option<usize>,
    /// The states that leave it, by what is owed.
    pub owing: Vec<Owing>,
}

/// The states that leave the same survivor when the same is owed.
#[derive(Clone, Debug)]
pub struct Owing {
    /// How many acks had been given.
    pub acks: usize,
    /// The version that is owed.
    pub owed: usize,
    /// How many states there are.
    pub states: u64,
    /// The first moment of its epoch at which each of them is legal.
    pub moments: Moments,
    /// The one that comes first and has lost least.
    pub first: CrashState,
    /// How many micro-ops that one has which are not forced.
    kept: usize,
}

impl Owing {
    /// The earliest moment at which it is owed: when the power went, or the ack came, if later.
    #[must_use]
    pub fn moment(&self, lowered: &Lowered) -> Time {
        let ack = self.acks.checked_sub(1).and_then(|last| lowered.trace.acks.get(last));
        let ack = ack.map_or(Time(0), |ops| Time::after_ops(*ops));
        ack.max(Time(self.first.moment))
    }
}

/// Finds what the crash states leave in these files.
#[must_use]
pub fn derive(
    lowered: &Lowered,
    paths: &[PathBuf],
    history: &History,
    budget: Budget,
    stop: &dyn Fn() -> bool,
) -> Derived {
    if let Some(derived) = derive_all(lowered, paths, history, budget, stop) {
        return derived;
    }
    let states_max = usize::try_from(budget.states_max).unwrap_or(usize::MAX);
    let mut collector = Collector::new(lowered, &paths[..budget.judged], history);
    Walk::new(lowered, paths).sampled(states_max, budget.seed, &mut |found| {
        collector.add(found);
        if collector.is_to_stop(stop) { Go::Stop } else { Go::On }
    });
    collector.derived
}

/// The same, where there are no more crash states than may be looked at; `None` if there are.
#[must_use]
pub fn derive_all(
    lowered: &Lowered,
    paths: &[PathBuf],
    history: &History,
    budget: Budget,
    stop: &dyn Fn() -> bool,
) -> Option<Derived> {
    let mut collector = Collector::new(lowered, &paths[..budget.judged], history);
    let mut walk = Walk::new(lowered, paths);
    let states_max = usize::try_from(budget.states_max).unwrap_or(usize::MAX);
    walk.nodes_max = states_max;
    let complete = walk.all(&mut |found| {
        collector.add(found);
        let much = collector.derived.states > budget.states_max;
        if much || collector.is_to_stop(stop) { Go::Stop } else { Go::On }
    });
    collector.derived.exhaustive = complete == Complete::Yes;
    collector.derived.exhaustive.then_some(collector.derived)
}

/// After how many states it is asked whether to stop.
const ASK_EVERY: u64 = 256;

/// Counts states by what they leave.
struct Collector<'a> {
    lowered: &'a Lowered,
    /// What is owed after each number of acks.
    owed_by_acks: Vec<usize>,
    /// For each path, the newest version with this content.
    versions: Vec<HashMap<Seen, usize>>,
    known: HashMap<u64, usize>,
    /// The last moment for which it was found out what is owed.
    owed_at: Option<(Time, usize, usize)>,
    derived: Derived,
}

impl<'a> Collector<'a> {
    fn new(lowered: &'a Lowered, paths: &[PathBuf], history: &History) -> Self {
        let newest = |path: &PathBuf| {
            let mut newest = HashMap::new();
            for (number, version) in history.versions.iter().enumerate() {
                let seen = version.get(path).map_or(Seen::Missing, |reference| {
                    let bytes = &reference.bytes;
                    Seen::File(bytes.len() as u64, Fingerprint::of(0, bytes))
                });
                newest.insert(seen, number);
            }
            newest
        };
        let versions = paths.iter().map(newest).collect();
        let derived = Derived::default();
        let (trace, known) = (&lowered.trace, HashMap::new());
        let owed_by_acks = history.owed_by_acks(trace.acks.len(), &trace.said);
        Self { lowered, owed_by_acks, versions, known, owed_at: None, derived }
    }

    fn owed(&mut self, moment: Time) -> (usize, usize) {
        if let Some((at, acks, owed)) = self.owed_at
            && at == moment
        {
            return (acks, owed);
        }
        let acks = self.lowered.acks_at(moment);
        let owed = self.owed_by_acks[acks];
        self.owed_at = Some((moment, acks, owed));
        (acks, owed)
    }

    /// Asks now and then whether to go on.
    fn is_to_stop(&self, stop: &dyn Fn() -> bool) -> bool {
        self.derived.states.is_multiple_of(ASK_EVERY) && stop()
    }

    fn add(&mut self, found: &Found<'_>) {
        self.derived.states += 1;
        let (acks, owed) = self.owed(found.last_moment);
        let key = key(found.files);
        let index = *self.known.entry(key).or_insert_with(|| {
            let all = self.versions.iter().zip(found.files);
            let version = all.map(|(newest, seen)| newest.get(seen).copied()).min().flatten();
            let files = found.files.to_vec();
            self.derived.survivors.push(Distinct { files, version, owing: Vec::new() });
            self.derived.survivors.len() - 1
        });
        let owing = &mut self.derived.survivors[index].owing;
        let same = |known: &&mut Owing| (known.owed, known.acks) == (owed, acks);
        let Some(known) = owing.iter_mut().rev().find(same) else {
            let (first, kept) = (found.recipe.state(), found.recipe.size());
            let mut moments = Moments::default();
            moments.add(found.recipe.moment);
            owing.push(Owing { acks, owed, states: 1, moments, first, kept });
            return;
        };
        known.states += 1;
        known.moments.add(found.recipe.moment);
        let moment = found.recipe.moment.0;
        let earlier = moment < known.first.moment;
        if earlier || (moment == known.first.moment && found.recipe.size() > known.kept) {
            known.kept = found.recipe.size();
            known.first = found.recipe.state();
        }
    }
}

/// One number for what all state files are.
fn key(files: &[Seen]) -> u64 {
    files.iter().fold(0, |key, seen| {
        let (kind, size, sum) = match seen {
            Seen::Missing => (1, 0, 0),
            Seen::NoFile => (2, 0, 0),
            Seen::File(size, Fingerprint(sum)) => (3, *size, *sum),
        };
        [kind, size, sum].iter().fold(key, |key: u64, part: &u64| {
            (key.rotate_left(23) ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        })
    })
}
