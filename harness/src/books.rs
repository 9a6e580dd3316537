//! The books of a run: which trials are still to do, and what those that are done have shown.

use std::collections::BTreeMap;

use crate::fault::Nature;
use crate::op::OpIndex;
use crate::pool::Range;
use crate::record::{Brief, Record};
use crate::report::KeptLine;
use crate::tally::Tally;
use crate::verdict::ViolationKind;

/// The trials that are still to do.
#[derive(Clone, Debug)]
pub struct Todo {
    done: Vec<bool>,
    from: usize,
}

impl Todo {
    /// Trials 0 to `total`.
    #[must_use]
    pub fn new(total: u64) -> Self {
        Self { done: vec![false; usize::try_from(total).unwrap_or(usize::MAX)], from: 0 }
    }

    /// Crosses out a trial that an earlier run did; false if that was said before.
    pub fn cross_out(&mut self, n: u64) -> bool {
        let done = usize::try_from(n).ok().and_then(|n| self.done.get_mut(n));
        done.is_some_and(|done| !std::mem::replace(done, true))
    }

    /// How many are left.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.done[self.from..].iter().filter(|done| !**done).count() as u64
    }

    /// Hands out the next trials in a row, at most `count` of them.
    pub fn next(&mut self, count: u64) -> Option<Range> {
        let start = self.from + self.done[self.from..].iter().position(|done| !done)?;
        let wanted = usize::try_from(count.max(1)).unwrap_or(usize::MAX);
        let free = self.done[start..].iter().take(wanted).take_while(|done| !**done);
        let count = free.count() as u64;
        self.from = start + usize::try_from(count).unwrap_or(usize::MAX);
        Some(Range { start: start as u64, count })
    }
}

/// Violations are told apart by what broke and where.
type Place = (ViolationKind, Nature, Option<OpIndex>);

/// What the trials have shown, by subject.
#[derive(Clone, Debug)]
pub struct Books {
    rows: Vec<(Tally, BTreeMap<Place, KeptLine>)>,
}

impl Books {
    /// Books for so many subjects.
    #[must_use]
    pub fn new(subjects: usize) -> Self {
        Self { rows: vec![(Tally::default(), BTreeMap::new()); subjects] }
    }

    /// Enters one trial. The order makes no difference.
    pub fn enter(&mut self, record: &Record) {
        let Some((tally, kept)) = self.rows.get_mut(record.subject) else { return };
        tally.add(record);
        let (Brief::Violated(kinds), Some(id)) = (&record.verdict, &record.evidence) else {
            return;
        };
        let Some(kind) = kinds.first() else { return };
        let (nature, op) = (record.nature, record.at.map(|(op, _)| op));
        let line = KeptLine { kind: *kind, nature, op, id: id.clone(), n: record.n };
        kept.entry((*kind, nature, op))
            .and_modify(|old| {
                if line.n < old.n {
                    *old = line.clone();
                }
            })
            .or_insert(line);
    }

    /// Tally and kept violations of each subject.
    #[must_use]
    pub fn into_rows(self) -> Vec<(Tally, Vec<KeptLine>)> {
        self.rows.into_iter().map(|(tally, kept)| (tally, kept.into_values().collect())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_is_not_handed_out_again() {
        let mut todo = Todo::new(10);
        assert!(todo.cross_out(3));
        assert!(!todo.cross_out(3));
        assert!(!todo.cross_out(99));
        assert_eq!(todo.left(), 9);
        let ranges: Vec<_> =
            std::iter::from_fn(|| todo.next(4)).map(|r| (r.start, r.count)).collect();
        assert_eq!(ranges, [(0, 3), (4, 4), (8, 2)]);
    }
}
