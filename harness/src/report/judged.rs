//! What a run says of one subject, in sentences: for all formats that have no table of their own.

use super::next::example;
use super::table::{called, percent, place};
use super::{Report, Row};
use crate::all::{All, One};
use crate::scenario::Surprise;

/// Whether it went as expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judged {
    /// It did.
    AsExpected,
    /// It did not: each difference with what shows it.
    Unexpected(Vec<Difference>),
    /// Nothing can be said, for this reason.
    Unclear(&'static str),
}

/// A difference from what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// A sentence without its full stop.
    pub what: String,
    /// Why, and what would have helped, if that is known.
    pub why: Option<(String, String)>,
    /// The command that shows it again.
    pub replay: Option<String>,
}

impl Judged {
    /// What is said of a row.
    #[must_use]
    pub fn of(report: &Report, row: &Row) -> Self {
        if !report.complete {
            return Self::Unclear("the run was cut short");
        }
        if row.cells.iter().any(|cell| cell.not_measured.is_some()) {
            return Self::Unclear("it does what the model does not know");
        }
        if report.shard.is_whole() && row.tally.judged() == 0 {
            return Self::Unclear(match row.tally.struck {
                0 => "no fault struck",
                _ => "nothing can be judged",
            });
        }
        if report.shard.is_whole() && row.is_unclear() {
            return Self::Unclear(match row.tally.not_asked() {
                0 => "most runs can't be judged",
                _ => "the load and the checks were not asked about all crash states",
            });
        }
        let mut surprises = row.surprises(&report.promises);
        surprises.sort();
        surprises.dedup();
        match surprises.is_empty() {
            true if report.shard.is_whole() && row.has_gaps() => {
                Self::Unclear("the load and the checks were not asked about all crash states")
            }
            true => Self::AsExpected,
            false => {
                let each = |surprise: &Surprise| difference(report, row, surprise);
                Self::Unexpected(surprises.iter().map(each).collect())
            }
        }
    }
}

fn difference(report: &Report, row: &Row, surprise: &Surprise) -> Difference {
    let Row { name, tally, .. } = row;
    let scenario = &report.scenario;
    match surprise {
        Surprise::Vanished(promise) => Difference {
            what: format!("{name} was to break {} in {scenario}, and kept it", promise.name()),
            why: None,
            replay: None,
        },
        Surprise::Broken(promise) => {
            let findings = row.cells.iter().flat_map(|cell| &cell.findings);
            let finding = findings.into_iter().find(|found| found.kind.promise() == *promise);
            let broken = tally.broken.get(promise).copied().unwrap_or(0);
            let kinds = tally.violated.iter().filter(|(kind, _)| kind.promise() == *promise);
            let kinds: Vec<_> = kinds
                .map(|(kind, count)| format!("{} {}", kind.name(), count.natural + count.forced))
                .collect();
            let kinds =
                if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) };
            let left = finding.map_or(String::new(), |found| format!(": {}", found.detail));
            Difference {
                what: format!(
                    "{name} breaks {} in {broken} of {} of {scenario}{kinds}{left}",
                    promise.name(),
                    tally.judged()
                ),
                why: finding.map(|found| {
                    let explanation = &found.explanation;
                    (explanation.words.clone(), explanation.remedy.words().to_owned())
                }),
                replay: example(row, *promise)
                    .map(|id| format!("{} replay {id}{}", called(report), place(report))),
            }
        }
    }
}

/// A row in a few words: its pass rate, and what broke.
#[must_use]
pub fn short(row: &Row) -> String {
    let rate = row.tally.pass_rate().map_or("nothing struck".to_owned(), percent);
    let broken: Vec<_> = row.tally.broken.keys().map(|promise| promise.name()).collect();
    if broken.is_empty() { rate } else { format!("{rate}, breaks {}", broken.join(", ")) }
}

/// All rows of all reports that did not go as expected.
#[must_use]
pub fn wrong(all: &All) -> Vec<(&Report, &Row, Judged)> {
    let rows =
        all.reports().flat_map(|report| report.subjects.iter().map(move |row| (report, row)));
    rows.map(|(report, row)| (report, row, Judged::of(report, row)))
        .filter(|(_, _, judged)| *judged != Judged::AsExpected)
        .collect()
}

/// The scenarios that were not run, and why.
pub fn skipped(all: &All) -> impl Iterator<Item = (&str, &str)> {
    all.scenarios.iter().filter_map(|(name, one)| match one {
        One::Skipped(why) => Some((name.as_str(), why.as_str())),
        One::Ran(_) => None,
    })
}
