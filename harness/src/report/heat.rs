//! Where along the calls of a run promises broke, in as many columns as fit into a line.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::Report;
use super::layout::Screen;
use super::place::Line;
use super::power::Cell;
use crate::exhaustive::Stretch;
use crate::fault::{Place, Point};
use crate::op::OpIndex;
use crate::plan::Sites;
use crate::record::{Brief, Record};
use crate::verdict::ViolationKind;

/// How many columns there are.
pub const COLUMNS: usize = 60;

/// What the trials in one column have shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Column {
    /// In how many every promise held.
    pub passed: u64,
    /// In how many one broke, by the most fundamental violation.
    pub broken: BTreeMap<ViolationKind, u64>,
}

/// The columns of a subject, and which call begins in which.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Heat {
    /// From the first call to the last.
    pub columns: Vec<Column>,
    /// The calls that have a column of their own, by that; none if there are too many.
    pub calls: Vec<(usize, String)>,
}

/// Counts trials by column.
#[derive(Clone, Debug)]
pub struct Counter {
    sites: Sites,
    /// The column before each op, if each has its own, and after the last.
    begins: Vec<usize>,
    /// Whether these are derived states.
    derived: bool,
    heat: Heat,
}

impl Counter {
    /// No trial yet, of a subject with these sites.
    #[must_use]
    pub fn new(sites: &Sites) -> Self {
        let count = sites.sites.len();
        let bytes: u64 = sites.bytes();
        let writing = sites.sites.iter().filter(|site| site.length > 0).count();
        let mut counter = Self {
            sites: sites.clone(),
            begins: Vec::new(),
            derived: false,
            heat: Heat::default(),
        };
        let Some(free) = COLUMNS.checked_sub(count + writing + 1).filter(|_| count > 0) else {
            return counter;
        };
        let mut column = 0;
        for site in &sites.sites {
            counter.begins.push(column);
            counter.heat.calls.push((column, site.call.name().to_owned()));
            let share = (free as u128 * u128::from(site.length)).checked_div(u128::from(bytes));
            let share = share.and_then(|share| usize::try_from(share).ok()).unwrap_or(0);
            column += 1 + share + usize::from(site.length > 0);
        }
        counter.begins.push(column);
        counter
    }

    /// Counts derived states, if there are any, and from then on no trial: those that are really made are a few of
    /// them once more.
    #[must_use]
    pub fn with_derived(mut self, stretches: &[Stretch]) -> Self {
        for stretch in stretches {
            for place in stretch.places() {
                self.count(&place, stretch.broken, 1);
            }
        }
        self.derived = !stretches.is_empty();
        self
    }

    /// Crash states, where it is known after which ops they come: no byte of a write has a column.
    #[must_use]
    pub fn of_cells(sites: &Sites, cells: &[Cell]) -> Self {
        let mut sites = sites.clone();
        sites.sites.iter_mut().for_each(|site| site.length = 1);
        let mut counter = Self::new(&sites);
        let cells = cells.iter().filter(|cell| cell.is_by_ops());
        for (broken, ops, states) in cells.flat_map(|cell| cell.spread.all()) {
            // On a disk it may have done more than in the unbroken run.
            let ops = ops.min(sites.sites.len());
            let place = match ops.checked_sub(1).filter(|_| ops == sites.sites.len()) {
                Some(last) => Place::Op(OpIndex(last), Point::After),
                None => Place::Op(OpIndex(ops), Point::Before),
            };
            counter.count(&place, broken, states);
        }
        counter
    }

    /// Counts one, if it struck at a call.
    pub fn add(&mut self, record: &Record) {
        if self.derived {
            return;
        }
        match &record.verdict {
            Brief::Pass => self.count(&record.at, None, 1),
            Brief::Violated(kinds) => {
                if let Some(kind) = kinds.first() {
                    self.count(&record.at, Some(*kind), 1);
                }
            }
            Brief::Inconclusive(_) => {}
        }
    }

    fn count(&mut self, place: &Place, broken: Option<ViolationKind>, states: u64) {
        let Some(column) = self.column(place) else { return };
        if self.heat.columns.is_empty() {
            self.heat.columns = vec![Column::default(); COLUMNS];
        }
        let Some(column) = self.heat.columns.get_mut(column) else { return };
        match broken {
            None => column.passed += states,
            Some(kind) => *column.broken.entry(kind).or_default() += states,
        }
    }

    fn column(&self, place: &Place) -> Option<usize> {
        let (op, point) = match place {
            Place::Op(op, point) => (op.0, *point),
            Place::Call(family, nth, _) => (Line::nth(&self.sites, *family, *nth)?, Point::Before),
            Place::Meeting(meeting) => (meeting.before as usize, Point::Before),
            _ => return None,
        };
        if self.begins.is_empty() {
            // One after the last op is at its end.
            return (op * COLUMNS)
                .checked_div(self.sites.sites.len())
                .map(|at| at.min(COLUMNS - 1));
        }
        let (begin, end) = (*self.begins.get(op)?, *self.begins.get(op + 1)?);
        let length = self.sites.sites.get(op)?.length;
        Some(match point {
            Point::Before => begin,
            Point::After => end,
            Point::Inside(byte) => {
                let room = (end - begin).saturating_sub(1);
                let past = (byte.0.min(length) as usize * room).checked_div(length as usize + 1);
                begin + 1 + past.unwrap_or(0)
            }
        })
    }

    /// What was counted.
    #[must_use]
    pub fn heat(self) -> Option<Heat> {
        (!self.heat.columns.is_empty()).then_some(self.heat)
    }
}

/// A letter for each violation: the first of its name that no other has.
fn letters(kinds: &BTreeSet<ViolationKind>) -> BTreeMap<ViolationKind, char> {
    let mut letters: BTreeMap<ViolationKind, char> = BTreeMap::new();
    for kind in kinds {
        let mut own = kind.name().chars().filter(char::is_ascii_alphabetic);
        let free = own.find(|c| !letters.values().any(|taken| taken.eq_ignore_ascii_case(c)));
        letters.insert(*kind, free.unwrap_or('?').to_ascii_uppercase());
    }
    letters
}

/// One column of several.
fn folded(columns: &[Column]) -> Column {
    let mut sum = Column::default();
    for column in columns {
        sum.passed += column.passed;
        for (kind, count) in &column.broken {
            *sum.broken.entry(*kind).or_default() += count;
        }
    }
    sum
}

/// How wide a terminal must be for whole strips.
const WHOLE_WIDTH: u16 = 80;

/// The strips of a report.
#[must_use]
pub fn of_rows(report: &Report, screen: Screen) -> String {
    let rows = report.subjects.iter();
    let rows: Vec<_> =
        rows.filter_map(|row| Some((row.name.as_str(), row.heat.as_ref()?))).collect();
    let fold = if screen.width.is_some_and(|width| width < WHOLE_WIDTH) { 3 } else { 1 };
    render(&rows, screen.colour, fold)
}

/// A line for each subject in which something broke, and one that says which calls are where; `fold` columns
/// are shown as one.
#[must_use]
fn render(rows: &[(&str, &Heat)], colour: bool, fold: usize) -> String {
    let mut text = String::new();
    let broken = |heat: &Heat| heat.columns.iter().any(|column| !column.broken.is_empty());
    let rows: Vec<_> = rows.iter().filter(|(_, heat)| broken(heat)).collect();
    if rows.is_empty() {
        return text;
    }
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let kinds: std::collections::BTreeSet<ViolationKind> = rows
        .iter()
        .flat_map(|(_, heat)| &heat.columns)
        .flat_map(|c| c.broken.keys().copied())
        .collect();
    let letters = letters(&kinds);
    let letter = |kind: &ViolationKind| letters.get(kind).copied().unwrap_or('?');
    let kinds: Vec<_> =
        letters.iter().map(|(kind, letter)| format!("{letter} {}", kind.name())).collect();
    // Writing to a string can't fail.
    let _ = writeln!(
        text,
        "where it broke, from the first call to the last (. held, {}; small: in some, large: in all):",
        kinds.join(", ")
    );
    for (name, heat) in rows {
        let _ = write!(text, "  {name:width$}  ");
        for column in heat.columns.chunks(fold.max(1)).map(folded) {
            let worst = column.broken.iter().max_by_key(|(_, count)| **count);
            let shown = match worst {
                None if column.passed > 0 => '.',
                None => ' ',
                Some((kind, _)) if column.passed > 0 => letter(kind).to_ascii_lowercase(),
                Some((kind, _)) => letter(kind),
            };
            let _ = match (colour, worst) {
                (true, Some(_)) => write!(text, "\x1b[31m{shown}\x1b[0m"),
                _ => write!(text, "{shown}"),
            };
        }
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
        if !heat.calls.is_empty() {
            let mut line = String::new();
            for (column, call) in &heat.calls {
                let column = column / fold.max(1);
                if line.len() <= column && column + call.len() <= COLUMNS / fold.max(1) + 9 {
                    let _ = write!(line, "{:1$}{call} ", "", column - line.len());
                }
            }
            let _ = writeln!(text, "  {:width$}  {}", "", line.trim_end());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_violation_has_a_letter_of_its_own() {
        let kinds = [ViolationKind::Missing, ViolationKind::Mixed, ViolationKind::Torn].into();
        let letters = letters(&kinds);
        let different: BTreeSet<_> = letters.values().collect();
        assert_eq!(different.len(), 3, "{letters:?}");
    }

    #[test]
    fn no_crash_state_falls_off_a_strip_however_many_ops_there_are() {
        for ops in [1, 29, 30, 61, 5000] {
            let cell: Cell = serde_json::from_value(serde_json::json!({
                "profile": "ext4", "states": 4, "distinct": 2, "exhaustive": true, "findings": [],
                "tally": crate::tally::Tally::default(), "expectation": { "breaks": [], "keeps": [] },
                // A recording on a disk may have more ops than the unbroken run.
                "spread": { "passed": { "0": 1, ops.to_string(): 1 }, "broken": { "torn": { (ops + 3).to_string(): 2 } } },
            }))
            .unwrap();
            let heat =
                Counter::of_cells(&Sites::of_lengths(&vec![0; ops]), &[cell]).heat().unwrap();
            let (first, last) = (heat.columns.first().unwrap(), heat.columns.iter().rev());
            assert_eq!(first.passed, 1, "{ops}");
            let last = last.into_iter().find(|column| **column != Column::default()).unwrap();
            assert_eq!((last.passed, last.broken[&ViolationKind::Torn]), (1, 2), "{ops}");
        }
    }
}
