//! Where along a run crash states come, and which of them break a promise.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Time;
use crate::verdict::ViolationKind;

/// How many states there are at each moment.
#[derive(Clone, Debug, Default)]
pub struct Moments {
    /// Moments, most of them once and in their order; [`Self::tidy`] makes that of all.
    counts: Vec<(Time, u64)>,
    /// How many there may be before they are tidied.
    room: usize,
}

/// How many moments are never too many.
const ROOM_MIN: usize = 64;

impl Moments {
    /// One state more at this moment.
    pub fn add(&mut self, moment: Time) {
        if let Some((last, count)) = self.counts.last_mut()
            && *last == moment
        {
            *count += 1;
            return;
        }
        if self.counts.len() >= self.room.max(ROOM_MIN) {
            self.tidy();
            self.room = self.counts.len() * 2;
        }
        self.counts.push((moment, 1));
    }

    fn tidy(&mut self) {
        self.counts.sort_unstable_by_key(|(moment, _)| *moment);
        self.counts.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            kept.1 += if same { next.1 } else { 0 };
            same
        });
    }

    /// Moments and how many states there are; a moment may come more than once.
    pub fn counts(&self) -> impl Iterator<Item = (Time, u64)> {
        self.counts.iter().copied()
    }
}

/// How many crash states come where along a run: after how many ops, or after how many acks if no op of it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Spread {
    /// Those in which every promise held.
    pub passed: BTreeMap<usize, u64>,
    /// Those in which one broke, by the most fundamental violation.
    pub broken: BTreeMap<ViolationKind, BTreeMap<usize, u64>>,
}

/// How many places of one outcome are kept: more than a map has columns.
const PLACES_MAX: usize = 2000;

impl Spread {
    /// Counts states.
    pub fn enter(&mut self, broken: Option<ViolationKind>, at: usize, states: u64) {
        let places = match broken {
            None => &mut self.passed,
            Some(kind) => self.broken.entry(kind).or_default(),
        };
        *places.entry(at).or_default() += states;
    }

    /// Counts what is counted elsewhere.
    pub fn merge(&mut self, other: &Self) {
        for (broken, at, states) in other.all() {
            self.enter(broken, at, states);
        }
    }

    /// What broke, where, and in how many states.
    pub fn all(&self) -> impl Iterator<Item = (Option<ViolationKind>, usize, u64)> {
        let broken = self.broken.iter().map(|(kind, places)| (Some(*kind), places));
        let outcomes = std::iter::once((None, &self.passed)).chain(broken);
        outcomes.flat_map(|(broken, places)| places.iter().map(move |(at, n)| (broken, *at, *n)))
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.passed.is_empty() && self.broken.is_empty()
    }

    /// The same with so few places that they can be kept: if there are more, neighbours are counted at the first of
    /// them. The first and the last place of each outcome stay what they are.
    #[must_use]
    pub fn coarse(mut self) -> Self {
        std::iter::once(&mut self.passed).chain(self.broken.values_mut()).for_each(coarsen);
        self
    }
}

fn coarsen(places: &mut BTreeMap<usize, u64>) {
    if places.len() <= PLACES_MAX {
        return;
    }
    let last = places.pop_last();
    let all: Vec<_> = std::mem::take(places).into_iter().collect();
    for group in all.chunks(all.len().div_ceil(PLACES_MAX - 1)) {
        places.insert(group[0].0, group.iter().map(|(_, states)| states).sum());
    }
    places.extend(last);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_counted_in_whatever_order_they_come() {
        let mut moments = Moments::default();
        for n in 0..10_000_u32 {
            moments.add(Time(n * 7 % 100));
        }
        assert!(moments.counts.len() <= 2 * 100, "{}", moments.counts.len());
        moments.tidy();
        let expected: Vec<_> = (0..100).map(|moment| (Time(moment), 100)).collect();
        assert_eq!(moments.counts().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_is_kept_is_bounded_and_complete() {
        let mut spread = Spread::default();
        for at in 0..100_000 {
            spread.enter((at % 2 == 0).then_some(ViolationKind::Torn), at, 3);
        }
        let coarse = spread.clone().coarse();
        assert!(coarse.all().count() <= 2 * PLACES_MAX, "{}", coarse.all().count());
        // However many states come before a place, they have not moved far.
        let until = |spread: &Spread, end: usize, kind| -> u64 {
            let all = spread.all().filter(|(broken, at, _)| *broken == kind && *at < end);
            all.map(|(_, _, states)| states).sum()
        };
        for kind in [None, Some(ViolationKind::Torn)] {
            for end in (0..=100_000).step_by(10_000) {
                let (fine, coarse) = (until(&spread, end, kind), until(&coarse, end, kind));
                assert!(fine.abs_diff(coarse) <= 200, "{kind:?} before {end}: {fine}, {coarse}");
            }
            assert_eq!(until(&coarse, usize::MAX, kind), 150_000);
        }
        assert_eq!(coarse.passed.keys().last(), Some(&99_999));
    }

    #[test]
    fn a_few_places_stay_what_they_are_wherever_they_are() {
        let mut spread = Spread::default();
        for at in (0..40_000).step_by(31) {
            spread.enter(None, at, 1);
        }
        assert_eq!(spread.clone().coarse(), spread);
    }
}
