//! All scenarios as one table: a row for each subject, a column for each scenario.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::judged::{Difference, Judged};
use super::layout::{Grid, Screen};
use super::table::percent;
use super::{Report, Row};
use crate::all::{All, One};

/// How wide a table is where nobody says it: as logs are read.
const WIDTH: u16 = 120;

/// Renders them for people: as a table the way round in which it fits, or else as a list.
#[must_use]
pub fn render(all: &All, screen: Screen) -> String {
    let width = screen.width.unwrap_or(WIDTH);
    let grid = by_strategy(all);
    let whole = grid.table(Some(width)).or_else(|| turned(&grid).table(Some(width)));
    let mut text = whole.unwrap_or_else(|| list(&grid, width));
    // Writing to a string can't fail.
    let _ = writeln!(
        text,
        "pass rate of each scenario, its 95 % interval where places are drawn, and the promises that were broken"
    );
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
    let seeds: BTreeSet<u64> = all.reports().map(|report| report.seed.0).collect();
    let seed = seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    let _ = writeln!(
        text,
        "{trials} trials, states and images in {seconds} s, seed {seed}; of one scenario more says: run \
         --scenario NAME"
    );
    text
}

/// A row for each subject, a column for each scenario.
fn by_strategy(all: &All) -> Grid {
    let mut header = vec!["strategy".to_owned()];
    for (n, (name, _)) in all.scenarios.iter().enumerate() {
        // Of several runs of one scenario each has its number.
        let before = all.scenarios[..n].iter().filter(|(other, _)| other == name).count();
        header.push(if before > 0 { format!("{name} {}", before + 1) } else { name.clone() });
    }
    header.push("expected".to_owned());
    let rows = subjects(all).into_iter().map(|name| row(all, name)).collect();
    Grid { header, rows, numbers: 0..0 }
}

/// The same with a column for each subject.
fn turned(grid: &Grid) -> Grid {
    let mut columns = grid.header.iter().enumerate().map(|(n, title)| {
        let cells = grid.rows.iter().map(|row| row[n].clone());
        std::iter::once(title.clone()).chain(cells).collect::<Vec<_>>()
    });
    let mut header = columns.next().unwrap_or_default();
    "scenario".clone_into(&mut header[0]);
    Grid { header, rows: columns.collect(), numbers: 0..0 }
}

/// A line for each scenario, below the name of the subject; what is too long goes on in the next.
fn list(grid: &Grid, width: u16) -> String {
    let titles = grid.header.iter().map(|title| title.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for row in &grid.rows {
        text += &row[0];
        text.push('\n');
        for (title, cell) in grid.header.iter().zip(row).skip(1) {
            let mut line = format!("  {title:titles$}");
            for word in cell.lines() {
                if line.chars().count() + 2 + word.chars().count() > usize::from(width) {
                    let _ = writeln!(text, "{line}");
                    line = "   ".to_owned();
                }
                line += "  ";
                line += word;
            }
            let _ = writeln!(text, "{line}");
        }
    }
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
    let (mut unexpected, mut unclear) = (Vec::new(), Vec::new());
    for (scenario, one) in &all.scenarios {
        cells.push(match one {
            One::Skipped(_) => "skipped".to_owned(),
            One::Ran(report) => find(report, name).map_or("-".to_owned(), |row| cell(report, row)),
        });
        if let One::Ran(report) = one
            && let Some(row) = find(report, name)
            && report.shard.is_whole()
        {
            if !row.surprises(&report.promises).is_empty() {
                unexpected.push(scenario.as_str());
            } else if row.tally.judged() == 0 || row.is_unclear() {
                unclear.push(scenario.as_str());
            }
        }
    }
    let lists = [("NO:", unexpected), ("UNCLEAR:", unclear)];
    let words = lists.iter().filter(|(_, names)| !names.is_empty());
    let words: Vec<_> =
        words.map(|(what, names)| format!("{what}\n{}", names.join("\n"))).collect();
    cells.push(if words.is_empty() { "yes".to_owned() } else { words.join("\n") });
    cells
}

fn cell(report: &Report, row: &Row) -> String {
    let rate = row.tally.pass_rate().map_or("nothing\nstruck".to_owned(), percent);
    let drawn =
        row.is_drawn() && row.tally.judged() > 0 && report.shard.is_whole() && report.complete;
    let (low, high) = (row.interval.low * 100.0, row.interval.high * 100.0);
    let interval = drawn.then(|| format!("({low:.1} - {high:.1})"));
    let broken = row.tally.broken.keys().map(|promise| promise.name().to_owned());
    std::iter::once(rate).chain(interval).chain(broken).collect::<Vec<_>>().join("\n")
}

/// What was not expected, why, and how to look at it.
fn surprises(report: &Report, text: &mut String) {
    for row in &report.subjects {
        let Judged::Unexpected(differences) = Judged::of(report, row) else { continue };
        for Difference { what, why, replay } in differences {
            // Writing to a string can't fail.
            let _ = writeln!(text, "unexpected: {what}");
            if let Some((why, remedy)) = why {
                let _ = writeln!(text, "  why:    {why}\n  remedy: {remedy}");
            }
            if let Some(replay) = replay {
                let _ = writeln!(text, "  replay: {replay}");
            }
        }
    }
}
