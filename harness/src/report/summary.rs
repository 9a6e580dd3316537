//! The report as Markdown, for the summary of a CI job.

use std::fmt::Write;

use super::judged::{Difference, Judged, short, skipped, wrong};
use super::{Report, Row, next};
use crate::all::{All, One};
use crate::markdown::{cell, code, plain};

/// How long a summary may be, in bytes: GitHub takes 1 MiB for all steps of a job.
pub const BYTES_MAX: usize = 900 << 10;

/// Renders it. What would make it too long is left out row by row, and counted; what went wrong comes first.
#[must_use]
pub fn render(all: &All) -> String {
    let wrong = wrong(all);
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = match wrong.len() {
        0 => writeln!(text, "# crashtest: as expected\n"),
        1 => writeln!(text, "# crashtest: 1 result is not as expected\n"),
        more => writeln!(text, "# crashtest: {more} results are not as expected\n"),
    };
    let unexpected: Vec<_> =
        wrong.iter().map(|(report, row, judged)| lines(report, row, judged)).collect();
    rows(&mut text, &unexpected, BYTES_MAX / 2);
    for (name, one) in &all.scenarios {
        let One::Ran(report) = one else { continue };
        if text.len() > BYTES_MAX - 4096 {
            let _ = writeln!(text, "The table of {} is left out: this is too long.", code(name));
            break;
        }
        let _ = writeln!(text, "\n## {}\n", code(name));
        let _ = writeln!(text, "{}.\n", plain(&next::about(report)));
        text += "| strategy | pass rate | failures | expected |\n| --- | ---: | --- | --- |\n";
        let table: Vec<_> = report.subjects.iter().map(|row| table_row(report, row)).collect();
        rows(&mut text, &table, BYTES_MAX - 2048);
    }
    for (name, why) in skipped(all) {
        if text.len() + why.len() < BYTES_MAX {
            let _ = writeln!(text, "\nSkipped: {}: {}", code(&name), plain(why));
        }
    }
    text
}

/// As many rows as there is room for.
fn rows(text: &mut String, rows: &[String], bytes_max: usize) {
    for (n, row) in rows.iter().enumerate() {
        if text.len() + row.len() > bytes_max {
            let _ =
                writeln!(text, "\n{} more rows are left out: this is too long.", rows.len() - n);
            return;
        }
        *text += row;
    }
}

fn lines(report: &Report, row: &Row, judged: &Judged) -> String {
    let mut text = String::new();
    match judged {
        Judged::AsExpected => {}
        Judged::Unclear(why) => {
            let _ = writeln!(text, "- {} in {}: {why}", code(&row.name), code(&report.scenario));
        }
        Judged::Unexpected(differences) => {
            for Difference { what, why, replay } in differences {
                let _ = writeln!(text, "- **{}**", plain(what));
                if let Some((why, remedy)) = why {
                    let _ = writeln!(text, "  - Why: {}", plain(why));
                    let _ = writeln!(text, "  - Remedy: {}", plain(remedy));
                }
                if let Some(replay) = replay {
                    let _ = writeln!(text, "  - Again: {}", code(replay));
                }
            }
        }
    }
    text
}

fn table_row(report: &Report, row: &Row) -> String {
    let count = |(kind, count): (&crate::verdict::ViolationKind, &crate::tally::ByNature)| {
        format!("{} {}", kind.name(), count.natural + count.forced)
    };
    let failures: Vec<_> = row.tally.violated.iter().map(count).collect();
    let expected = match Judged::of(report, row) {
        Judged::AsExpected => "yes".to_owned(),
        Judged::Unclear(why) => format!("unclear: {why}"),
        Judged::Unexpected(_) => "**no**".to_owned(),
    };
    let failures = if failures.is_empty() { "none".to_owned() } else { failures.join(", ") };
    format!(
        "| {} | {} | {failures} | {expected} |\n",
        cell(&code(&row.name)),
        short(row).split(',').next().unwrap_or_default()
    )
}
