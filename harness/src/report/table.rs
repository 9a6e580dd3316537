//! The table on the terminal.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::layout::{Grid, Screen};
use super::{DerivedKills, Report, Row, Swept, heat, next};
use crate::inject::checks::quoted;
use crate::results::DEFAULT_ROOT;
use crate::scenario::Surprise;
use crate::sweep::EXACT;
use crate::verdict::{Promise, Why};

/// Renders a report for people.
#[must_use]
pub fn render(report: &Report, screen: Screen) -> String {
    if report.subjects.iter().any(|row| !row.cells.is_empty()) {
        let mut text = String::new();
        super::power::render(report, screen, &mut text);
        let _ = writeln!(text, "{}\n{}", next::about(report), next::next(report));
        return text;
    }
    let mut text = grid(report).render(screen.width);
    // Writing to a string can't fail.
    for row in &report.subjects {
        for note in &row.notes {
            let _ = writeln!(text, "note: {}: {note}", row.name);
        }
        met_lines(report, row, &mut text);
        if let Some(DerivedKills { states, confirmed }) = row.derived {
            let _ = writeln!(
                text,
                "derived: {}: all {states} states of one recording; {confirmed} were really made, and \
                 left the same bytes{}",
                row.name,
                asked(report, row, confirmed)
            );
        }
        if row.tally.leftovers > 0 && !report.promises.contains(&Promise::Tidy) {
            let _ = writeln!(
                text,
                "warning: {}: temporary files stayed for ever in {} trials",
                row.name, row.tally.leftovers
            );
        }
    }
    text += &heat::of_rows(report, screen);
    replay_lines(report, &mut text);
    let _ = writeln!(text, "{}\n{}", next::about(report), next::next(report));
    text
}

/// What only the states that were really made can show.
fn asked(report: &Report, row: &Row, confirmed: u64) -> String {
    let needs = [Promise::Checked, Promise::Recoverable, Promise::Tidy];
    let asked: Vec<_> = needs
        .into_iter()
        .filter(|promise| report.promises.contains(promise))
        .map(|promise| match row.tally.broken.get(&promise) {
            Some(count) => format!("{} broken in {count}", promise.name()),
            None => format!("{} held", promise.name()),
        })
        .collect();
    match asked.is_empty() || confirmed == 0 {
        true => String::new(),
        false => format!("; in these alone: {}", asked.join(", ")),
    }
}

/// What a sweep has met: which calls failed, and whether it came to its end.
fn met_lines(report: &Report, row: &Row, text: &mut String) {
    let Some(Swept { open_lanes, .. }) = row.sweep else { return };
    let tally = &row.tally;
    let ends = tally.inconclusive.get(&Why::NotReached).unwrap_or(&0);
    let _ = writeln!(
        text,
        "swept: {}: {} struck, {ends} not (the ends of the rows): {}",
        row.name,
        tally.struck,
        met(row)
    );
    unjudged_line(row, text);
    if open_lanes > 0 && report.complete {
        let _ = writeln!(text, "note: {}: cut short, {open_lanes} rows may have more", row.name);
    }
}

/// The calls that failed first, by family: how often, and of what.
fn met(row: &Row) -> String {
    let mut families: BTreeMap<&str, (u64, Vec<&str>)> = BTreeMap::new();
    for (what, count) in &row.tally.met {
        let (family, how) = what.split_once(' ').unwrap_or((what, ""));
        let entry = families.entry(family).or_default();
        entry.0 += count;
        entry.1.push(how);
    }
    let all: Vec<_> = families
        .into_iter()
        .map(|(family, (count, hows))| format!("{count} {family} ({})", hows.join(" ")))
        .collect();
    let unseen = row.tally.struck - row.tally.met.values().sum::<u64>().min(row.tally.struck);
    let other = format!("{unseen} without a failed call, ended otherwise");
    let all: Vec<_> = all.into_iter().chain((unseen > 0).then_some(other)).collect();
    if all.is_empty() { "nothing".to_owned() } else { all.join(", ") }
}

/// Says of what it can't be said whether it is right.
fn unjudged_line(row: &Row, text: &mut String) {
    let count = |why: Why| row.tally.inconclusive.get(&why).copied().unwrap_or(0);
    let (other, late) = (count(Why::NotComparable), count(Why::TimedOut));
    if other > 0 {
        let _ = writeln!(
            text,
            "note: {}: {other} of {} runs can't be judged: after the failure it saved something \
             whole that no unbroken run saves; --check CMD can tell whether it is right",
            row.name, row.tally.struck
        );
    }
    if late > 0 {
        let _ = writeln!(
            text,
            "note: {}: {late} of {} runs did not end in time, as one that tries again for ever; \
             nothing was found wrong in them",
            row.name, row.tally.struck
        );
    }
}

/// Whether nothing was drawn.
fn is_sweep(report: &Report) -> bool {
    report.subjects.iter().all(|row| row.sweep.is_some())
}

/// The titles of the columns.
fn header(report: &Report) -> &'static [&'static str] {
    if is_sweep(report) {
        &["strategy", "struck", "pass rate", "of", "broken promises", "failures", "expected"]
    } else {
        &[
            "strategy",
            "judged",
            "pass rate",
            "95 % interval",
            "natural",
            "forced",
            "failures",
            "expected",
        ]
    }
}

fn grid(report: &Report) -> Grid {
    let row = |row| if is_sweep(report) { swept(report, row) } else { sampled(report, row) };
    let header: Vec<_> = header(report).iter().map(|title| (*title).to_owned()).collect();
    Grid { numbers: 1..header.len() - 2, header, rows: report.subjects.iter().map(row).collect() }
}

fn sampled(report: &Report, row: &Row) -> Vec<String> {
    let tally = &row.tally;
    let nature = tally.by_nature();
    vec![
        row.name.clone(),
        tally.judged().to_string(),
        tally.pass_rate().map_or("-".to_owned(), percent),
        interval(report, row),
        nature.natural.to_string(),
        nature.forced.to_string(),
        failures(row),
        expected(report, row),
    ]
}

fn swept(report: &Report, row: &Row) -> Vec<String> {
    let tally = &row.tally;
    // Nothing was drawn: these are all that there are.
    let of = match &row.sweep {
        Some(Swept { open_lanes: 0, sampled: false }) => "all there are".to_owned(),
        Some(Swept { open_lanes: 0, sampled: true }) => {
            format!("all up to {EXACT},\nthen steps of 5 %")
        }
        Some(Swept { .. }) | None => "cut short".to_owned(),
    };
    let broken: Vec<_> =
        tally.broken.iter().map(|(promise, count)| format!("{} {count}", promise.name())).collect();
    vec![
        row.name.clone(),
        tally.struck.to_string(),
        tally.pass_rate().map_or("-".to_owned(), percent),
        of,
        if broken.is_empty() { "none".to_owned() } else { broken.join(", ") },
        failures(row),
        expected(report, row),
    ]
}

pub(super) fn percent(rate: f64) -> String {
    // 99.97 % must not look like 100 %, nor 0.02 % like none.
    let percent = rate * 100.0;
    match percent {
        99.9995..100.0 => "> 99.999 %".to_owned(),
        99.9..100.0 => format!("{percent:.3} %"),
        _ if percent > 0.0 && percent < 0.0005 => "< 0.001 %".to_owned(),
        _ if percent > 0.0 && percent < 0.1 => format!("{percent:.3} %"),
        _ => format!("{percent:.1} %"),
    }
}

fn interval(report: &Report, row: &Row) -> String {
    if !report.shard.is_whole() || report.merged.is_some() && !report.complete {
        // Which places fall to a part is not drawn.
        return "of a part".to_owned();
    }
    let (interval, tally) = (row.interval, &row.tally);
    if tally.judged() == 0 {
        return "-".to_owned();
    }
    if row.derived.is_some() || row.whole {
        return "all there are".to_owned();
    }
    let bounds = format!("{:.1} - {:.1} %", interval.low * 100.0, interval.high * 100.0);
    if tally.failed() > 0 {
        return bounds;
    }
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    let bound = 300.0 / tally.judged() as f64;
    if bound >= 100.0 {
        return bounds;
    }
    let digits = if bound < 0.01 { 4 } else { 2 };
    format!("{bounds}\nfails < {bound:.digits$} %")
}

fn failures(row: &Row) -> String {
    let tally = &row.tally;
    let violated = tally
        .violated
        .iter()
        .map(|(kind, count)| format!("{} {}", kind.name(), count.natural + count.forced));
    // A sweep ends with trials that are not struck; that they were not is no lack.
    let said = |why: &Why| row.sweep.is_none() || *why != Why::NotReached;
    let unsaid = tally
        .inconclusive
        .iter()
        .filter(|(why, _)| said(why))
        .map(|(why, count)| format!("({} {count})", why.name()));
    let all: Vec<_> = violated.chain(unsaid).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

fn expected(report: &Report, row: &Row) -> String {
    if row.tally.judged() == 0 && row.tally.struck == 0 {
        return "NOTHING STRUCK".to_owned();
    }
    if row.tally.judged() == 0 {
        return "UNCLEAR: nothing\ncan be judged".to_owned();
    }
    if row.is_unclear() {
        return "UNCLEAR: most runs\ncan't be judged".to_owned();
    }
    let surprises = row.surprises(&report.promises);
    if surprises.is_empty() {
        let names = |promises: Vec<&str>| promises.join(", ");
        let judged = |p: &&crate::verdict::Promise| report.promises.contains(p);
        let breaks: Vec<_> =
            row.expectation.breaks.iter().filter(judged).map(|p| p.name()).collect();
        let keeps: Vec<_> = row.expectation.keeps.iter().filter(judged).map(|p| p.name()).collect();
        return match breaks.is_empty() {
            false => format!("yes: breaks {}", names(breaks)),
            true if keeps.len() == report.promises.len() => "yes: keeps all".to_owned(),
            true if keeps.is_empty() => "yes".to_owned(),
            true => format!("yes: keeps {}", names(keeps)),
        };
    }
    let words = surprises.iter().map(|surprise| match surprise {
        Surprise::Broken(promise) => format!("NO: {} is broken", promise.name()),
        Surprise::Vanished(promise) => format!("NO: {} was to break and held", promise.name()),
    });
    words.collect::<Vec<_>>().join("\n")
}

fn replay_lines(report: &Report, text: &mut String) {
    let lines: Vec<_> = report
        .subjects
        .iter()
        .flat_map(|row| row.examples().into_values().map(move |line| (row, line)))
        .collect();
    if lines.is_empty() {
        return;
    }
    let width = lines.iter().map(|(row, line)| row.name.len() + line.kind.name().len()).max();
    let width = width.unwrap_or(0) + 1;
    let _ = writeln!(text, "replay:");
    for (row, line) in lines {
        let what = format!("{} {}", row.name, line.kind.name());
        let _ = writeln!(
            text,
            "  {what:width$}  {} replay {}{}",
            called(report),
            line.id,
            place(report)
        );
    }
}

/// Where the results are, as an option for a shell, unless they are in the usual place.
#[must_use]
pub fn place(report: &Report) -> String {
    let parent = std::path::Path::new(&report.directory).parent();
    match parent.map(|parent| parent.display().to_string()) {
        Some(parent) if parent.is_empty() => " --results .".to_owned(),
        Some(parent) if parent != DEFAULT_ROOT => format!(" --results {}", quoted(&parent)),
        _ => String::new(),
    }
}

/// What the user calls the command by, as a shell reads it.
#[must_use]
pub fn called(report: &Report) -> String {
    quoted(report.command_line.first().map_or("crashtest", String::as_str))
}

/// How the run went, which is another on each machine.
#[must_use]
pub fn how(report: &Report) -> String {
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    let rate = report.trials_now as f64 * 1000.0 / report.elapsed_ms.max(1) as f64;
    format!(
        "{rate:.0} {} a second on {} worker{}, results in {}",
        next::counted(report),
        report.jobs,
        if report.jobs == 1 { "" } else { "s" },
        report.directory
    )
}
