//! All scenarios as one table: a row for each subject, a column for each scenario.

use std::collections::BTreeSet;
use std::fmt::Write;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{ContentArrangement, Table};

use super::table::{called, percent, place};
use super::{Report, Row};
use crate::all::{All, One};
use crate::scenario::Surprise;

/// Renders them for people, `width` columns wide if it is known.
#[must_use]
pub fn render(all: &All, width: Option<u16>) -> String {
    let mut table = Table::new();
    let names = all.scenarios.iter().map(|(name, _)| name.as_str());
    let header: Vec<&str> =
        std::iter::once("strategy").chain(names).chain(std::iter::once("expected")).collect();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
    for name in subjects(all) {
        table.add_row(row(all, name));
    }
    let mut text = format!("{table}\n");
    // Writing to a string can't fail.
    let _ = writeln!(text, "pass rate of each scenario, and the promises that were broken in it");
    for (name, one) in &all.scenarios {
        match one {
            One::Skipped(why) => {
                let _ = writeln!(text, "skipped: {name}: {why}");
            }
            One::Ran(report) => surprises(report, &mut text),
        }
    }
    if all.reports().any(|report| !report.complete) {
        text += "interrupted: what comes after it was not run\n";
    }
    let trials: u64 =
        all.reports().flat_map(|report| &report.subjects).map(|row| row.tally.trials()).sum();
    let seconds = all.reports().map(|report| report.elapsed_ms).sum::<u64>() / 1000;
    let seed = all.reports().next().map_or(0, |report| report.seed.0);
    let _ = writeln!(
        text,
        "{trials} trials, states and images in {seconds} s, seed {seed}; of one scenario more says: run \
         --scenario NAME"
    );
    text
}

/// The names of all subjects, in the order of the first report.
fn subjects(all: &All) -> Vec<&str> {
    let mut known = BTreeSet::new();
    let names = all.reports().flat_map(|report| &report.subjects).map(|row| row.name.as_str());
    names.filter(|name| known.insert(*name)).collect()
}

fn find<'a>(report: &'a Report, name: &str) -> Option<&'a Row> {
    report.subjects.iter().find(|row| row.name == name)
}

fn row(all: &All, name: &str) -> Vec<String> {
    let mut cells = vec![name.to_owned()];
    let mut unexpected = Vec::new();
    for (scenario, one) in &all.scenarios {
        cells.push(match one {
            One::Skipped(_) => "skipped".to_owned(),
            One::Ran(report) => find(report, name).map_or("-".to_owned(), cell),
        });
        if let One::Ran(report) = one
            && let Some(row) = find(report, name)
            && (!row.surprises(&report.promises).is_empty() || row.tally.judged() == 0)
        {
            unexpected.push(scenario.as_str());
        }
    }
    cells.push(match unexpected[..] {
        [] => "yes".to_owned(),
        _ => format!("NO:\n{}", unexpected.join("\n")),
    });
    cells
}

fn cell(row: &Row) -> String {
    let rate = row.tally.pass_rate().map_or("nothing\nstruck".to_owned(), percent);
    let broken = row.tally.broken.keys().map(|promise| promise.name());
    std::iter::once(rate.as_str()).chain(broken).collect::<Vec<_>>().join("\n")
}

/// What was not expected, and how to look at it.
fn surprises(report: &Report, text: &mut String) {
    for row in &report.subjects {
        // What breaks on several file systems is said once.
        let all: BTreeSet<Surprise> = row.surprises(&report.promises).into_iter().collect();
        for surprise in all {
            let (scenario, name) = (&report.scenario, &row.name);
            let _ = match surprise {
                Surprise::Vanished(promise) => writeln!(
                    text,
                    "unexpected: {name} in {scenario}: {} was to break and held",
                    promise.name()
                ),
                Surprise::Broken(promise) => {
                    let example =
                        row.examples().into_values().find(|e| e.kind.promise() == promise);
                    let findings = row.cells.iter().flat_map(|cell| &cell.findings);
                    let mut findings = findings.filter(|found| found.kind.promise() == promise);
                    let id = example.map(|line| &line.id).or_else(|| Some(&findings.next()?.id));
                    let replay = id.map_or(String::new(), |id| {
                        format!(": {} replay {id}{}", called(report), place(report))
                    });
                    writeln!(
                        text,
                        "unexpected: {name} in {scenario}: {} is broken{replay}",
                        promise.name()
                    )
                }
            };
        }
    }
}
