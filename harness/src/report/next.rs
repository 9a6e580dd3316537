//! The last lines of a report: what it was about, and what to do next.

use super::table::{called, place};
use super::{MODEL, Report, Row};
use crate::exit_status::ExitStatus;
use crate::inject::checks::quoted;
use crate::scenario::Surprise;
use crate::verdict::{Promise, ViolationKind};

/// How many trials it were, and what drew them: the same wherever the run took place.
#[must_use]
pub fn about(report: &Report) -> String {
    let trials: u64 = report.subjects.iter().map(|row| row.tally.trials()).sum();
    let part = match report.shard.is_whole() {
        true => String::new(),
        false => format!(", shard {} of the run", report.shard),
    };
    format!("{trials} {}, seed {}{part}", counted(report), report.seed.0)
}

/// What is counted.
pub(super) fn counted(report: &Report) -> &'static str {
    let on_disk = report.subjects.iter().flat_map(|row| &row.cells).any(|cell| cell.disk.is_some());
    match report.file_system == MODEL {
        true => "crash states",
        false if on_disk => "disk images",
        false => "trials",
    }
}

/// What to do next.
#[must_use]
pub fn next(report: &Report) -> String {
    let (command, place) = (called(report), place(report));
    let name = report.directory.rsplit('/').next().unwrap_or_default();
    if !report.complete {
        // Parts of a run know nothing of each other, and can't go on as one.
        return match report.merged {
            Some(shards) => format!("next: run the missing shards, and merge all {shards}"),
            None => format!("interrupted: go on with `{command} run --resume {name}{place}`"),
        };
    }
    if !report.shard.is_whole() {
        // What a merge finds is kept where runs usually are, and not among its shards.
        let parent = report.directory.rsplit_once('/').map_or(".", |(parent, _)| parent);
        return format!(
            "next: `{command} merge {}` when all {} shards are there",
            quoted(parent),
            report.shard.of()
        );
    }
    match report.status() {
        ExitStatus::NothingStruck if report.subjects.iter().any(Row::is_unclear) => {
            "next: of most runs it can't be said whether what is left is right: --check CMD can tell".to_owned()
        }
        ExitStatus::NothingStruck => "next: nothing can be said yet: see that the program saves while it \
             runs, in the directory in which it is started or at `{dir}` (--state, --init, --sandbox)"
            .to_owned(),
        ExitStatus::Unexpected => match first_surprise(report) {
            Some((row, Surprise::Broken(promise), Some(id))) => format!(
                "next: {row} breaks {}: `{command} replay {id}{place}` shows how",
                promise.name()
            ),
            Some((row, Surprise::Vanished(promise), _)) => format!(
                "next: {row} was to break {} and did not: is it mended, or does the scenario not meet it any \
                 more? [expect.{row}] in the scenario says what is expected",
                promise.name()
            ),
            _ => format!("next: `{command} report {name}{place} --html report.html` shows where"),
        },
        _ => held(report, &command, name, &place),
    }
}

/// The first difference from what was expected, and a violation to look at.
fn first_surprise(report: &Report) -> Option<(&str, Surprise, Option<&str>)> {
    let of = |row: &Row| row.surprises(&report.promises).into_iter().next();
    let (row, surprise) = report.subjects.iter().find_map(|row| Some((row, of(row)?)))?;
    let id = match surprise {
        Surprise::Broken(promise) => example(row, promise),
        Surprise::Vanished(_) => None,
    };
    Some((&row.name, surprise, id))
}

/// A violation of a promise that can be replayed; of another one if there is none of it.
#[must_use]
pub fn example(row: &Row, promise: Promise) -> Option<&str> {
    let kept = row.examples();
    let breaks = |kind: &&ViolationKind| kind.promise() == promise;
    let of_promise = kept.keys().find(breaks).and_then(|kind| kept.get(kind)).map(|line| &line.id);
    let findings = || row.cells.iter().flat_map(|cell| &cell.findings);
    let found = || findings().find(|finding| breaks(&&finding.kind)).map(|finding| &finding.id);
    let any = || kept.values().next().map(|line| &line.id);
    let at_all = || findings().next().map(|finding| &finding.id);
    of_promise.or_else(found).or_else(any).or_else(at_all).map(String::as_str)
}

/// All is as expected: what has not been asked yet.
fn held(report: &Report, command: &str, name: &str, place: &str) -> String {
    let other = match report.scenario.as_str() {
        "sigkill" | "shortwrite" => "poweroff",
        "poweroff" | "poweroff-disk" => "errno",
        "errno" => "enospc",
        _ => "all",
    };
    let of_program = report.command_line.iter().any(|word| word == "--");
    match of_program {
        true => format!(
            "next: --scenario {other} asks more; `{command} report {name}{place} --html report.html` shows this \
             run; a night is guarded by --baseline"
        ),
        false => format!(
            "next: --scenario {other} asks more, and `{command} run -- PROGRAM` asks the same of yours"
        ),
    }
}
