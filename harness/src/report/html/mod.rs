//! The report as one HTML file that needs no network.
//!
//! All that is said is written here, as HTML, so that it can be read where no script runs. The page's script draws the
//! maps, and filters. Points of the maps are packed, so that a million of them are a few MiB.

use serde::Serialize;

use self::points::Map;
use super::judged::Judged;
use super::table::percent;
use super::{Report, Row, next};
use crate::error::{Context, Result};
use crate::results::Kept;

mod article;
mod example;
mod frame;
mod points;
mod text;

pub use self::points::Points;

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: [&str; 2] = [include_str!("map.js"), include_str!("page.js")];

/// What the page shows.
#[derive(Debug, Default)]
pub struct Page {
    /// A part per scenario.
    pub scenarios: Vec<Part>,
}

/// What it shows of one scenario.
#[derive(Debug, Default)]
pub struct Part {
    name: String,
    about: String,
    /// With which it was made.
    command: String,
    directory: String,
    skipped: Option<String>,
    /// How it goes on, if it has not come to its end.
    todo: Option<String>,
    rows: Vec<RowShown>,
}

#[derive(Debug)]
struct RowShown {
    name: String,
    expected: Expected,
    /// Whether it is expected to break a promise.
    is_to_break: bool,
    rate: String,
    broken: Vec<&'static str>,
    kinds: Vec<String>,
    /// Its article, but for the heading.
    article: String,
    map: Option<Map>,
}

/// How a row went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Expected {
    Yes,
    No,
    Unclear,
}

impl Expected {
    /// The class of its element, and the words.
    fn shown(self) -> (&'static str, &'static str) {
        match self {
            Self::Yes => ("yes", "as expected"),
            Self::No => ("no", "NOT as expected"),
            Self::Unclear => ("unclear", "unclear"),
        }
    }
}

/// Renders the page.
pub fn render(page: &Page) -> Result<String> {
    let frame = frame::Frame::new(page);
    let data = serde_json::to_string(&frame.data()).context("write the report")?;
    // Nothing in it can end the element that holds it.
    let data = data.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    // No script runs but one that has this word, which nobody can have guessed whose text it depends on.
    let nonce = format!("{:032x}", xxhash_rust::xxh3::xxh3_128(data.as_bytes()));
    let script = SCRIPT.concat();
    let mut parts = frame.parts();
    parts.extend([
        ("NONCE", nonce),
        ("STYLE", STYLE.to_owned()),
        ("DATA", data),
        ("SCRIPT", script),
    ]);
    let mut text = String::with_capacity(parts.iter().map(|(_, part)| part.len()).sum::<usize>());
    // What is put in is not looked at for marks.
    let mut rest = TEMPLATE;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((mark, after)) = after.split_once("}}") else { break };
        text += before;
        text += parts.iter().find(|(name, _)| *name == mark).map_or("", |(_, part)| part);
        rest = after;
    }
    text += rest;
    Ok(text)
}

/// A scenario that was not run.
#[must_use]
pub fn skipped(name: &str, why: &str) -> Part {
    Part { name: text::visible(name), skipped: Some(why.to_owned()), ..Part::default() }
}

/// A scenario that was: its report, for each row what came of its trials, and the violations that are kept.
pub fn part(report: &Report, points: Vec<Points<'_>>, kept: &[Kept]) -> Result<Part> {
    let mut part = Part {
        name: text::visible(&report.scenario),
        about: about(report),
        command: command(&report.command_line.iter().map(String::as_str).collect::<Vec<_>>()),
        directory: report.directory.clone(),
        skipped: None,
        todo: (!report.complete).then(|| next::next(report)),
        rows: Vec::new(),
    };
    for (row, points) in report.subjects.iter().zip(points) {
        let own: Vec<_> = kept.iter().filter(|kept| kept.trial.subject == row.name).collect();
        part.rows.push(shown(report, row, points.with_cells(&row.cells), own)?);
    }
    Ok(part)
}

/// What it was about and where it ran; on which file system, a run that was cut short has not said.
fn about(report: &Report) -> String {
    let on = match report.file_system.as_str() {
        "" => String::new(),
        file_system => format!(" on {file_system}"),
    };
    format!("{}; {}{on}", next::about(report), report.kernel)
}

/// A command line as a shell takes it.
fn command(words: &[&str]) -> String {
    shlex::try_join(words.iter().copied()).unwrap_or_else(|_| words.join(" "))
}

fn shown(report: &Report, row: &Row, mut points: Points<'_>, kept: Vec<&Kept>) -> Result<RowShown> {
    let judged = Judged::of(report, row);
    let of_kept = kept.iter().filter_map(|kept| kept.violations.first());
    let of_kept: Vec<_> = of_kept.map(|violation| violation.kind.name().to_owned()).collect();
    let article = article::body(report, row, &judged, &points, kept);
    let tally = &row.tally;
    let mut kinds: Vec<_> = match points.counts().iter().sum::<u64>() {
        0 => Vec::new(),
        _ => points.outcomes.clone(),
    };
    kinds.extend(tally.violated.keys().map(|kind| kind.name().to_owned()));
    kinds.extend(of_kept);
    kinds.sort_unstable();
    kinds.dedup();
    Ok(RowShown {
        name: text::visible(&row.name),
        expected: match judged {
            Judged::AsExpected => Expected::Yes,
            Judged::Unexpected(_) => Expected::No,
            Judged::Unclear(_) => Expected::Unclear,
        },
        is_to_break: !row.expectation.breaks.is_empty()
            || row.cells.iter().any(|cell| !cell.expectation.breaks.is_empty()),
        rate: tally.pass_rate().map_or("-".to_owned(), percent),
        broken: tally.broken.keys().map(|promise| promise.name()).collect(),
        kinds,
        article,
        map: points.map()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_shown_ends_its_element() {
        let part = skipped("</script><script>alert(1)</script>", "<!-- & --> {{DATA}} \u{2028}");
        let text = render(&Page { scenarios: vec![part] }).unwrap();
        assert_eq!(text.matches("</script>").count(), 2);
        assert!(!text.contains("<script>alert"), "{text}");
        assert!(text.contains("&lt;!-- &amp; --&gt; {{DATA}} \\u{2028}"), "{text}");
    }

    #[test]
    fn two_runs_of_a_scenario_are_told_apart() {
        let run = |directory: &str| Part {
            name: "sigkill".to_owned(),
            directory: directory.to_owned(),
            ..Part::default()
        };
        let text = render(&Page { scenarios: vec![run("one"), run("two")] }).unwrap();
        for heading in ["<h2>sigkill (1)</h2>", "<h2>sigkill (2)</h2>"] {
            assert!(text.contains(heading), "{text}");
        }
    }

    #[test]
    fn a_command_is_quoted_for_a_shell() {
        let words = ["crashtest", "run", "--", "python3", "my saver.py"];
        assert_eq!(command(&words), "crashtest run -- python3 'my saver.py'");
    }
}
