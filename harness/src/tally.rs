//! Counts verdicts, and says how sure the counts are.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::errno;
use crate::fault::Nature;
use crate::record::{Brief, Record};
use crate::verdict::{Promise, ViolationKind, Why};

/// Verdicts of one subject.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Tally {
    /// Trials in which every promise held.
    pub passed: u64,
    /// Trials in which one broke, by the most fundamental violation.
    pub violated: BTreeMap<ViolationKind, ByNature>,
    /// Trials in which a promise broke, by promise; one trial can break several.
    pub broken: BTreeMap<Promise, u64>,
    /// Trials that say nothing.
    pub inconclusive: BTreeMap<Why, u64>,
    /// Trials that left temporary files for ever.
    pub leftovers: u64,
    /// Trials whose fault struck.
    pub struck: u64,
    /// Trials by the call that failed first and by its error; `short` for a write that fell short.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub met: BTreeMap<String, u64>,
}

/// A count, split by whether Linux itself can leave such a state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ByNature {
    /// At op and page boundaries.
    pub natural: u64,
    /// Inside a page.
    pub forced: u64,
}

impl Tally {
    /// Counts one trial.
    pub fn add(&mut self, record: &Record) {
        self.leftovers += u64::from(record.leftovers);
        self.struck += u64::from(record.struck);
        if let Some((family, result)) = record.met {
            let how = if result < 0 { errno::name_of(-result) } else { "short".to_owned() };
            *self.met.entry(format!("{} {how}", family.name())).or_default() += 1;
        }
        match &record.verdict {
            Brief::Pass => self.passed += 1,
            Brief::Inconclusive(why) => *self.inconclusive.entry(*why).or_default() += 1,
            Brief::Violated(kinds) => {
                let Some(first) = kinds.first() else { return };
                let count = self.violated.entry(*first).or_default();
                match record.nature {
                    Nature::Natural => count.natural += 1,
                    Nature::Forced => count.forced += 1,
                }
                let promises: BTreeSet<_> = kinds.iter().map(|kind| kind.promise()).collect();
                for promise in promises {
                    *self.broken.entry(promise).or_default() += 1;
                }
            }
        }
    }

    /// Counts crash states of a recording; all of them are struck, and by a power loss as it comes.
    pub fn enter(&mut self, broken: &[ViolationKind], states: u64) {
        self.enter_as(broken, Nature::Natural, states);
    }

    /// Counts states that were derived from a recording.
    pub fn enter_as(&mut self, broken: &[ViolationKind], nature: Nature, states: u64) {
        if states == 0 {
            return;
        }
        self.struck += states;
        let Some(first) = broken.first() else {
            self.passed += states;
            return;
        };
        let count = self.violated.entry(*first).or_default();
        match nature {
            Nature::Natural => count.natural += states,
            Nature::Forced => count.forced += states,
        }
        let promises: BTreeSet<_> = broken.iter().map(|kind| kind.promise()).collect();
        for promise in promises {
            *self.broken.entry(promise).or_default() += states;
        }
    }

    /// Counts states that were reached and can't be judged.
    pub fn say_nothing(&mut self, why: Why, states: u64) {
        self.struck += states;
        *self.inconclusive.entry(why).or_default() += states;
    }

    /// How many trials no load or check was asked about.
    #[must_use]
    pub fn not_asked(&self) -> u64 {
        self.inconclusive.get(&Why::NotAsked).copied().unwrap_or(0)
    }

    /// Adds what was counted elsewhere.
    pub fn merge(&mut self, other: &Self) {
        // It may come from a file, in which anything can stand.
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut self.passed, other.passed);
        add(&mut self.struck, other.struck);
        add(&mut self.leftovers, other.leftovers);
        for (kind, count) in &other.violated {
            let sum = self.violated.entry(*kind).or_default();
            add(&mut sum.natural, count.natural);
            add(&mut sum.forced, count.forced);
        }
        for (promise, count) in &other.broken {
            add(self.broken.entry(*promise).or_default(), *count);
        }
        for (why, count) in &other.inconclusive {
            add(self.inconclusive.entry(*why).or_default(), *count);
        }
    }

    /// Trials in which a promise broke.
    #[must_use]
    pub fn failed(&self) -> u64 {
        let both = self.violated.values().flat_map(|count| [count.natural, count.forced]);
        both.fold(0, u64::saturating_add)
    }

    /// Trials that say something: the fault struck and the result could be judged.
    #[must_use]
    pub fn judged(&self) -> u64 {
        self.passed.saturating_add(self.failed())
    }

    /// Trials in all.
    #[must_use]
    pub fn trials(&self) -> u64 {
        self.inconclusive.values().fold(self.judged(), |sum, count| sum.saturating_add(*count))
    }

    /// Violations, split by nature.
    #[must_use]
    pub fn by_nature(&self) -> ByNature {
        self.violated.values().fold(ByNature::default(), |sum, count| ByNature {
            natural: sum.natural.saturating_add(count.natural),
            forced: sum.forced.saturating_add(count.forced),
        })
    }

    /// The share of judged trials that passed, 0 to 1; `None` when none was judged.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    pub fn pass_rate(&self) -> Option<f64> {
        (self.judged() > 0).then(|| self.passed as f64 / self.judged() as f64)
    }

    /// The 95 % interval of the pass rate.
    #[must_use]
    pub fn interval(&self) -> Interval {
        wilson(self.passed, self.judged())
    }
}

/// A 95 % interval of a proportion, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// The 97.5 % quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// The 95 % score interval of `hits` of `trials` (E. B. Wilson, JASA 22, 1927).
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
pub fn wilson(hits: u64, trials: u64) -> Interval {
    if trials == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    // What was read from a file need not add up.
    let hits = hits.min(trials);
    let n = trials as f64;
    let rate = hits as f64 / n;
    let centre = rate + Z * Z / (2.0 * n);
    let spread = Z * (rate * (1.0 - rate) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    Interval {
        low: ((centre - spread) / scale).clamp(0.0, rate),
        high: ((centre + spread) / scale).clamp(rate, 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_wilsons() {
        // R: binom::binom.wilson(81, 263)
        let interval = wilson(81, 263);
        assert!((interval.low - 0.255_2).abs() < 5e-4, "{interval:?}");
        assert!((interval.high - 0.366_2).abs() < 5e-4, "{interval:?}");
        let all = wilson(1000, 1000);
        assert!((all.high - 1.0).abs() < 1e-12 && (all.low - 0.996_17).abs() < 5e-5, "{all:?}");
    }

    fn record(verdict: Brief, nature: Nature) -> Record {
        Record {
            n: 0,
            subject: 0,
            at: crate::fault::Place::Moment,
            struck: true,
            met: None,
            nature,
            acks: 0,
            verdict,
            leftovers: false,
            evidence: None,
        }
    }

    #[test]
    fn what_did_not_strike_is_no_pass() {
        let mut tally = Tally::default();
        tally.add(&record(Brief::Inconclusive(Why::NotReached), Nature::Natural));
        assert_eq!((tally.trials(), tally.judged(), tally.pass_rate()), (1, 0, None));
    }

    #[test]
    fn a_trial_counts_once_and_each_broken_promise_once() {
        use ViolationKind::{CannotSaveAgain, RecoveryFailed, Torn};
        let mut tally = Tally::default();
        let verdict = Brief::Violated(vec![Torn, RecoveryFailed, CannotSaveAgain]);
        tally.add(&record(verdict, Nature::Forced));
        assert_eq!(tally.failed(), 1);
        assert_eq!(tally.violated[&Torn], ByNature { natural: 0, forced: 1 });
        assert_eq!(tally.broken[&Promise::Recoverable], 1);
    }
}
