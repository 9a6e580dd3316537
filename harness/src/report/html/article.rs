//! What the page says of one subject in one scenario.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::example;
use super::points::Points;
use super::text::{count, html, plural};
use crate::report::judged::{Judged, short};
use crate::report::power::Cell;
use crate::report::{Report, Row};
use crate::results::Kept;

/// How many violations of a row are in the page.
const VIOLATIONS_MAX: usize = 60;

/// All of it but the heading.
pub(super) fn body(
    report: &Report,
    row: &Row,
    judged: &Judged,
    points: &Points<'_>,
    kept: Vec<&Kept>,
) -> String {
    let mut out = String::new();
    let mut say = |class: &str, what: &str| {
        // Writing to a string can't fail.
        let _ = writeln!(out, "<p{class}>{what}</p>");
    };
    match judged {
        Judged::AsExpected => {}
        Judged::Unclear(why) => say(" class=\"unclear\"", why),
        Judged::Unexpected(differences) => {
            for one in differences {
                say(" class=\"no\"", &format!("<bdi>{}</bdi>", html(&one.what)));
            }
        }
    }
    say("", &html(&summary(row)));
    for note in &row.notes {
        say(" class=\"quiet\"", &format!("Note: <bdi>{}</bdi>", html(note)));
    }
    map(row, points, &mut out);
    if !row.cells.is_empty() {
        cells(report, row, &mut out);
    }
    if !kept.is_empty() {
        examples(report, points, kept, &mut out);
    }
    out
}

fn summary(row: &Row) -> String {
    let tally = &row.tally;
    if tally.judged() == 0 {
        return "Nothing was judged.".to_owned();
    }
    let of = match row.is_drawn() {
        false => String::new(),
        true => format!(
            " (95 % interval {:.1} to {:.1} %)",
            row.interval.low * 100.0,
            row.interval.high * 100.0
        ),
    };
    format!(
        "{} of {} judged passed: {}{of}",
        count(tally.passed),
        count(tally.judged()),
        short(row)
    )
}

/// The place of the map, and its outcomes as text, which a map can't be.
fn map(row: &Row, points: &Points<'_>, out: &mut String) {
    let counts = points.counts();
    if counts.iter().sum::<u64>() == 0 {
        return;
    }
    let outcomes = points.outcomes.iter().zip(&counts).filter(|(_, count)| **count > 0);
    let outcomes: Vec<_> =
        outcomes.map(|(name, number)| format!("{name} {}", count(*number))).collect();
    let _ = writeln!(
        out,
        "<div class=\"plot\"></div><p class=\"quiet outcomes\">{}: {}.</p>",
        match row.cells.iter().any(|cell| !cell.is_by_ops()) {
            true => "On the map, by the acks that had been given",
            false => "On the map",
        },
        outcomes.join(", ")
    );
    let Some(derived) = row.derived else { return };
    let said = match points.derived {
        true => "The map shows all derived states",
        false => "The map shows only these",
    };
    let _ = writeln!(
        out,
        "<p class=\"quiet\">{} of {} states were really made. {said}.</p>",
        count(derived.confirmed),
        count(derived.states)
    );
}

fn cells(report: &Report, row: &Row, out: &mut String) {
    let label = html(&format!("{} in {} by file system", row.name, report.scenario));
    let _ = write!(
        out,
        "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{label}\"><table>\
         <caption class=\"quiet\">By file system</caption><thead><tr>"
    );
    for title in ["file system", "broken", "of", "what is left", "looked at"] {
        let _ = write!(out, "<th scope=\"col\">{title}</th>");
    }
    out.push_str("</tr></thead><tbody>");
    for cell in &row.cells {
        let kinds = cell.tally.violated.iter();
        let kinds = kinds
            .map(|(kind, n)| format!("{} {}", kind.name(), count(n.natural + n.forced)))
            .collect::<Vec<_>>();
        let kinds = if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") };
        let _ = write!(
            out,
            "<tr><th scope=\"row\">{}</th><td class=\"number\">{}</td><td class=\"number\">{}</td><td>{kinds}</td>\
             <td>{}</td></tr>",
            html(&cell.profile),
            count(cell.tally.failed()),
            count(cell.states),
            html(&how(cell))
        );
    }
    out.push_str("</tbody></table></div>\n");
}

/// How a cell was looked at.
fn how(cell: &Cell) -> String {
    match (&cell.not_measured, cell.exhaustive, &cell.disk) {
        (Some(why), _, _) => format!("not measured: the model does not know {why}"),
        (None, true, _) => "all there are".to_owned(),
        (None, false, None) => "a sample".to_owned(),
        (None, false, Some(disk)) => format!("images of {} recordings", disk.recordings),
    }
}

fn examples(report: &Report, points: &Points<'_>, mut kept: Vec<&Kept>, out: &mut String) {
    // One of each kind first, the rest in the order of the run.
    kept.sort_by_cached_key(|kept| {
        let place = kept.trial.fault.place();
        (points.x(&kept.id, &place, kept.acks), points.line.op(&place), kept.id.clone())
    });
    let mut seen = BTreeSet::new();
    let (first, others): (Vec<&Kept>, Vec<&Kept>) =
        kept.iter().partition(|kept| seen.insert(kept.violations.first().map(|v| v.kind)));
    let left_out = match kept.len().saturating_sub(VIOLATIONS_MAX) {
        0 => String::new(),
        more => format!(", {} more are in the run's directory", count(more as u64)),
    };
    let number = plural(kept.len().min(VIOLATIONS_MAX), "violation is", "violations are");
    let _ = writeln!(
        out,
        "<div class=\"examples\"><p class=\"quiet\">{number} kept as examples{left_out}\
         <span class=\"kept\"></span>:</p>"
    );
    for kept in first.into_iter().chain(others).take(VIOLATIONS_MAX) {
        example::write(report, kept, points, out);
    }
    out.push_str("</div>\n");
}
