//! The books of a run: what the trials that are done have shown.

use std::collections::BTreeMap;

use crate::fault::{Nature, Place};
use crate::planned::{Plan, PlannedSubject};
use crate::record::{Brief, Record};
use crate::report::KeptLine;
use crate::report::heat::{Counter, Heat};
use crate::tally::Tally;
use crate::verdict::ViolationKind;

/// Violations are told apart by what broke and where.
type Found = (ViolationKind, Nature, Place);

/// What the trials have shown, by subject.
#[derive(Clone, Debug)]
pub struct Books {
    rows: Vec<(Tally, BTreeMap<Found, KeptLine>, Counter)>,
}

impl Books {
    /// Books for the subjects of a plan.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        let row = |one: &PlannedSubject| {
            let counter = Counter::new(&one.sites).with_derived(&one.stretches);
            (Tally::default(), BTreeMap::new(), counter)
        };
        Self { rows: plan.subjects.iter().map(row).collect() }
    }

    /// Enters one trial. The order makes no difference.
    pub fn enter(&mut self, record: &Record) {
        let Some((tally, kept, counter)) = self.rows.get_mut(record.subject) else { return };
        tally.add(record);
        counter.add(record);
        let (Brief::Violated(kinds), Some(id)) = (&record.verdict, &record.evidence) else {
            return;
        };
        let Some(kind) = kinds.first() else { return };
        let (nature, place) = (record.nature, record.at.coarse());
        let line = KeptLine { kind: *kind, nature, place, id: id.clone(), n: record.n };
        kept.entry((*kind, nature, place))
            .and_modify(|old| {
                if line.n < old.n {
                    *old = line.clone();
                }
            })
            .or_insert(line);
    }

    /// Tally and kept violations of each subject, and where they were.
    #[must_use]
    pub fn into_rows(self) -> Vec<(Tally, Vec<KeptLine>, Option<Heat>)> {
        let row = |(tally, kept, counter): (_, BTreeMap<_, _>, Counter)| {
            (tally, kept.into_values().collect(), counter.heat())
        };
        self.rows.into_iter().map(row).collect()
    }
}
