//! The books of a run: what the trials that are done have shown.

use std::collections::BTreeMap;

use crate::fault::{Nature, Place};
use crate::record::{Brief, Record};
use crate::report::KeptLine;
use crate::tally::Tally;
use crate::verdict::ViolationKind;

/// Violations are told apart by what broke and where.
type Found = (ViolationKind, Nature, Place);

/// What the trials have shown, by subject.
#[derive(Clone, Debug)]
pub struct Books {
    rows: Vec<(Tally, BTreeMap<Found, KeptLine>)>,
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

    /// Tally and kept violations of each subject.
    #[must_use]
    pub fn into_rows(self) -> Vec<(Tally, Vec<KeptLine>)> {
        self.rows.into_iter().map(|(tally, kept)| (tally, kept.into_values().collect())).collect()
    }
}
