//! The areas of an audit, and the sentences in each.

use std::collections::BTreeSet;

use super::facts::{Facts, Judged, forced_only, listed};
use super::risk::{Level, level};
use super::words::{broken, held, told};
use super::{Area, Finding, Outcome, Risk, Saves};
use crate::report::Row;
use crate::verdict::{Promise, ViolationKind, Why};

/// An area: its name, and which promises in which scenarios it is about.
struct About {
    name: &'static str,
    scenarios: &'static [&'static str],
    promises: &'static [Promise],
}

use Promise::{Atomic, Checked, Consistent, Durable, Honest, Recoverable, Sound, Tidy};

const EVERY: &[&str] =
    &["sigkill", "shortwrite", "enospc", "errno", "poweroff", "poweroff-disk", "concurrent"];

/// All areas but the first, in the order of the document. Each promise in each scenario is in one.
const AREAS: [About; 8] = [
    About {
        name: "Atomic write",
        scenarios: &["sigkill", "shortwrite", "enospc", "errno"],
        promises: &[Atomic, Durable],
    },
    About {
        name: "Durability",
        scenarios: &["poweroff", "poweroff-disk"],
        promises: &[Atomic, Durable],
    },
    About {
        name: "Failed calls",
        scenarios: &["shortwrite", "enospc", "errno"],
        promises: &[Honest],
    },
    About {
        name: "Locking",
        scenarios: &["concurrent"],
        promises: &[Atomic, Durable, Recoverable],
    },
    About { name: "Temporary files", scenarios: EVERY, promises: &[Tidy] },
    About { name: "Load validation", scenarios: &["corrupt"], promises: &[Sound, Recoverable] },
    About { name: "Backups", scenarios: &["restore"], promises: &[Sound, Recoverable] },
    About {
        name: "Recovery",
        scenarios: &[
            "sigkill",
            "shortwrite",
            "enospc",
            "errno",
            "poweroff",
            "poweroff-disk",
            "deleted",
            "disconnect",
            "stale",
        ],
        promises: &[Sound, Recoverable, Checked, Consistent],
    },
];

/// What was found in each area.
#[must_use]
pub fn areas(facts: &Facts<'_>, saves: &Saves) -> Vec<Area> {
    let mut areas = vec![area("Existence", existence(facts, saves))];
    // What was not run is said once, where it matters first.
    let mut said = BTreeSet::new();
    for about in &AREAS {
        let mut findings = Vec::new();
        match about.name {
            "Temporary files" => findings.push(temps(saves)),
            "Backups" => findings.push(copies(saves)),
            _ => {}
        }
        for scenario in about.scenarios {
            let judged = about.promises.iter().filter_map(|p| facts.judged(scenario, *p));
            let mut here: Vec<_> = judged.map(|judged| finding(facts, &judged)).collect();
            if let Some((_, row)) = facts.report(scenario)
                && (!here.is_empty() || row.tally.judged() == 0)
                && said.insert(*scenario)
            {
                here.extend(unclear(scenario, row));
            }
            findings.append(&mut here);
            if let Some(why) = facts.skipped(scenario)
                && said.insert(*scenario)
            {
                findings.push(not_measured(format!("`{scenario}` was not run: {why}")));
            }
        }
        if findings.is_empty() {
            findings.push(not_measured(needs(about.name).to_owned()));
        }
        areas.push(area(about.name, findings));
    }
    areas
}

/// What can happen, and which promise that breaks; the worst first.
#[must_use]
pub fn risks(facts: &Facts<'_>) -> Vec<(Risk, Promise)> {
    let mut risks = Vec::new();
    for report in facts.all.reports() {
        let broken_here =
            Promise::ALL.into_iter().filter_map(|promise| facts.judged(&report.scenario, promise));
        for judged in broken_here.filter(|judged| judged.broken > 0) {
            let risk = Risk {
                level: level(judged.scenario, judged.promise, forced_only(&judged)),
                scenario: judged.scenario.to_owned(),
                when: told(judged.scenario).when.to_owned(),
                what: broken(judged.promise).to_owned(),
                broken: judged.broken,
                of: judged.of,
            };
            risks.push((risk, judged.promise));
        }
    }
    risks.sort_by_key(|(risk, _)| std::cmp::Reverse(risk.level));
    risks
}

fn area(name: &str, findings: Vec<Finding>) -> Area {
    let outcome = findings.iter().map(|finding| finding.outcome).max();
    Area { name: name.to_owned(), outcome: outcome.unwrap_or(Outcome::NotMeasured), findings }
}

fn says(outcome: Outcome, text: String) -> Finding {
    Finding { outcome, text, example: None, remedies: Vec::new() }
}

fn not_measured(text: String) -> Finding {
    says(Outcome::NotMeasured, text)
}

/// What a scenario has left open: trials that say nothing, and a sweep that was cut short.
fn unclear(scenario: &str, row: &Row) -> Vec<Finding> {
    let told = told(scenario);
    let mut findings = Vec::new();
    // What did not come about is no gap.
    let open = |why: &&Why| **why != Why::NotReached;
    let reasons: Vec<_> =
        row.tally.inconclusive.keys().filter(open).map(|why| why.name()).collect();
    let count: u64 =
        row.tally.inconclusive.iter().filter(|(why, _)| open(why)).map(|(_, count)| count).sum();
    if count > 0 || row.tally.judged() == 0 {
        let mut text = format!(
            "{}, {count} of {} {} say nothing ({})",
            told.when,
            row.tally.trials(),
            told.unit,
            if reasons.is_empty() { "nothing was struck".to_owned() } else { reasons.join(", ") }
        );
        for note in row.notes.iter().filter(|note| note.contains("differ")) {
            text += &format!("; {note}");
        }
        findings.push(not_measured(text));
    }
    if row.sweep.is_some_and(|sweep| sweep.open_lanes > 0) {
        let text = format!("`{scenario}` was cut short by --trials: there are more ways to fail");
        findings.push(not_measured(text));
    }
    findings
}

/// Whether something that was run says nothing, or next to nothing.
#[must_use]
pub fn is_unclear(facts: &Facts<'_>) -> bool {
    facts.all.reports().any(|report| {
        let row = facts.report(&report.scenario).map(|(_, row)| row);
        row.is_some_and(|row| {
            let not_reached = row.tally.inconclusive.get(&Why::NotReached).copied().unwrap_or(0);
            let said = row.tally.judged();
            said == 0 || said * 2 < row.tally.trials().saturating_sub(not_reached)
        })
    })
}

/// What an area needs that says nothing.
fn needs(area: &str) -> &'static str {
    match area {
        "Failed calls" => "whether it reports failed saves can't be told without acks: --ack REGEX",
        "Recovery" => {
            "whether it can go on is not known: --load CMD says how it loads its state, --check CMD \
             what is sound"
        }
        _ => "nothing of it was judged",
    }
}

/// What was measured of one promise in one scenario.
fn finding(facts: &Facts<'_>, judged: &Judged<'_>) -> Finding {
    let told = told(judged.scenario);
    if judged.broken == 0 {
        let text =
            format!("{}, {} in all {} {}.", told.when, held(judged.promise), judged.of, told.unit);
        return says(Outcome::Passed, text);
    }
    let level = level(judged.scenario, judged.promise, forced_only(judged));
    // A short write is no kill: Linux does what it stands for.
    let forced = match forced_only(judged) && judged.scenario != "shortwrite" {
        true => {
            ", only where a write was cut inside a page, which Linux itself does not do when it kills"
        }
        false => "",
    };
    Finding {
        outcome: if level > Level::Medium { Outcome::Failed } else { Outcome::Warned },
        text: format!(
            "{}, {}{} in {} of {} {}{forced}.",
            told.when,
            broken(judged.promise),
            kinds(judged),
            judged.broken,
            judged.of,
            told.unit
        ),
        example: facts.example(judged),
        remedies: remedies(judged),
    }
}

/// How the promise was broken, by kinds.
fn kinds(judged: &Judged<'_>) -> String {
    let all = judged.row.tally.violated.iter();
    let names: Vec<_> = all
        .filter(|(kind, _)| kind.promise() == judged.promise)
        .map(|(kind, count)| format!("{} {}", kind.name(), count.natural + count.forced))
        .collect();
    match (names.is_empty(), judged.promise) {
        (false, Promise::Atomic) => format!(" ({})", names.join(", ")),
        _ => String::new(),
    }
}

/// What would have helped after a loss of power, each remedy once.
fn remedies(judged: &Judged<'_>) -> Vec<String> {
    let causes = judged.row.cells.iter().flat_map(|cell| &cell.findings);
    let of_promise =
        causes.filter(|found| found.kinds.keys().any(|kind| kind.promise() == judged.promise));
    let mut remedies = Vec::new();
    for found in of_promise {
        let words = found.explanation.remedy.words().to_owned();
        if !remedies.contains(&words) {
            remedies.push(words);
        }
    }
    remedies
}

/// Whether there is a state, and whether it stays.
fn existence(facts: &Facts<'_>, saves: &Saves) -> Vec<Finding> {
    let files = listed(&saves.files);
    let text = format!(
        "The unbroken run left {files}, {} bytes long, in {} versions one after the other.",
        saves.bytes, saves.versions
    );
    let mut findings = vec![says(Outcome::Passed, text)];
    if !facts.replaces {
        let text = "it began without a state, so that to have none again may be to have gone back; with --init \
                    DIR it replaces one that is there";
        findings.push(not_measured(text.to_owned()));
    }
    let missing = ViolationKind::Missing;
    for report in facts.all.reports() {
        let Some((_, row)) = facts.report(&report.scenario) else { continue };
        let told = told(&report.scenario);
        let count =
            row.tally.violated.get(&missing).map_or(0, |count| count.natural + count.forced);
        if count > 0 {
            let of = row.tally.judged();
            let text =
                format!("{}, there was no state file in {count} of {of} {}.", told.when, told.unit);
            findings.push(says(Outcome::Failed, text));
        }
    }
    findings
}

/// What it renames over its state, and where that lies.
fn temps(saves: &Saves) -> Finding {
    let names = listed(&saves.temps);
    let text = match saves.temps.len() {
        0 => {
            return not_measured(
                "it makes no temporary file that it renames over its state".to_owned(),
            );
        }
        1 => format!("It writes {names} and renames it over its state."),
        _ => format!("It writes files such as {names} and renames them over its state."),
    };
    says(Outcome::Passed, text)
}

fn copies(saves: &Saves) -> Finding {
    match saves.copies.is_empty() {
        true => says(
            Outcome::Warned,
            "It keeps no copy of its state, or none with the same bytes: nothing brings back what is \
             damaged or deleted."
                .to_owned(),
        ),
        false => says(
            Outcome::Passed,
            format!("Beside its state it keeps copies of it: {}.", listed(&saves.copies)),
        ),
    }
}
