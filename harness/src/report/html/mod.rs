//! The report as one HTML file that needs no network.
//!
//! The page is a template; what was found is JSON inside of it, which the page's script shows as text. Points
//! of the maps are packed, so that a million of them are a few hundred KiB.

use std::collections::BTreeMap;
use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::DeflateEncoder;
use serde::Serialize;

use super::judged::{Judged, short};
use super::place::{Axis, Line};
use super::table::percent;
use super::{Report, Row, next};
use crate::difference::Difference;
use crate::error::{Context, Result};
use crate::fault::{Injection, Struck};
use crate::plan::Sites;
use crate::record::{Brief, Record};
use crate::results::Kept;
use crate::steps;

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// How many violations of a row are in the page.
const VIOLATIONS_MAX: usize = 60;
/// How many ops of a row are.
const OPS_MAX: usize = 20_000;
/// How many bytes of a name or a sentence are.
const TEXT_MAX: usize = 2000;

/// What the page shows.
#[derive(Debug, Serialize)]
pub struct Page {
    /// What it was made with and on.
    pub made: String,
    /// A part per scenario.
    pub scenarios: Vec<Part>,
}

/// What it shows of one scenario.
#[derive(Debug, Default, Serialize)]
pub struct Part {
    name: String,
    about: String,
    skipped: Option<String>,
    rows: Vec<RowShown>,
}

#[derive(Debug, Serialize)]
struct RowShown {
    name: String,
    /// yes, no or unclear.
    expected: &'static str,
    words: Vec<String>,
    rate: String,
    summary: String,
    broken: Vec<&'static str>,
    kinds: Vec<&'static str>,
    notes: Vec<String>,
    cells: Vec<CellShown>,
    violations: Vec<ViolationShown>,
    left_out: usize,
    axis: Axis,
    end: u64,
    /// For each op the place of its call and of its path in their lists, where it begins, and its length.
    ops: Vec<(usize, usize, u64, u64)>,
    calls: Vec<&'static str>,
    paths: Vec<String>,
    outcomes: Vec<String>,
    /// How many trials had each outcome.
    counts: Vec<u64>,
    points: Option<Packed>,
}

#[derive(Debug, Serialize)]
struct CellShown {
    profile: String,
    failed: u64,
    states: u64,
    kinds: String,
    how: String,
}

#[derive(Debug, Serialize)]
struct ViolationShown {
    kind: &'static str,
    fault: String,
    details: Vec<String>,
    why: Option<String>,
    remedy: Option<String>,
    differences: Vec<Difference>,
    steps: Vec<String>,
    /// The op of the unbroken run that it struck at, and where in it.
    op: Option<usize>,
    inside: String,
    /// Where on the map it is.
    x: Option<u64>,
    replay: String,
}

#[derive(Debug, Serialize)]
struct Packed {
    count: usize,
    bytes: String,
}

/// What came of the trials of one subject, for its map.
pub struct Points<'a> {
    line: Line<'a>,
    axis: Option<Axis>,
    outcomes: Vec<String>,
    /// Each place and outcome.
    all: Vec<(u64, u8)>,
}

impl<'a> Points<'a> {
    /// None yet, of a subject with these sites.
    #[must_use]
    pub fn new(sites: &'a Sites) -> Self {
        let outcomes = vec!["passed".to_owned()];
        Self { line: Line::new(sites), axis: None, outcomes, all: Vec::new() }
    }

    /// Adds one. What did not strike has no place.
    pub fn add(&mut self, record: &Record) {
        let name = match &record.verdict {
            Brief::Pass => "passed",
            Brief::Violated(kinds) => kinds.first().map_or("passed", |kind| kind.name()),
            Brief::Inconclusive(_) if !record.struck => return,
            Brief::Inconclusive(why) => why.name(),
        };
        let (axis, at) = self.line.at(&record.at, record.n);
        self.axis.get_or_insert(axis);
        let code = self.outcomes.iter().position(|known| known == name).unwrap_or_else(|| {
            self.outcomes.push(name.to_owned());
            self.outcomes.len() - 1
        });
        self.all.push((at, u8::try_from(code).unwrap_or(u8::MAX)));
    }

    fn end(&self) -> u64 {
        match self.axis {
            Some(Axis::Run) | None => self.line.begins().1 + 1,
            _ => self.all.iter().map(|(at, _)| at + 1).max().unwrap_or(1),
        }
    }

    fn counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.outcomes.len()];
        for (_, code) in &self.all {
            if let Some(count) = counts.get_mut(usize::from(*code)) {
                *count += 1;
            }
        }
        counts
    }

    /// In order of their places: how far each is from the one before, its outcome, and for how many trials it
    /// stands; numbers in groups of seven bits, the lowest first.
    fn pack(&mut self) -> Result<Option<Packed>> {
        if self.all.is_empty() {
            return Ok(None);
        }
        self.all.sort_unstable();
        let mut packer = DeflateEncoder::new(Vec::new(), Compression::default());
        let (mut count, mut last, mut plain) = (0, 0, Vec::with_capacity(1 << 16));
        for same in self.all.chunk_by(|a, b| a == b) {
            let (at, code) = same[0];
            number(at - last, &mut plain);
            plain.push(code);
            number(same.len() as u64, &mut plain);
            (count, last) = (count + 1, at);
            if plain.len() > (1 << 16) - 32 {
                packer.write_all(&plain).context("pack points")?;
                plain.clear();
            }
        }
        packer.write_all(&plain).context("pack points")?;
        let bytes = STANDARD.encode(packer.finish().context("pack points")?);
        Ok(Some(Packed { count, bytes }))
    }
}

fn number(mut value: u64, out: &mut Vec<u8>) {
    while value >= 128 {
        out.push((value & 127) as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Renders the page.
pub fn render(page: &Page) -> Result<String> {
    // Nothing in it can end the element that holds it.
    let json = serde_json::to_string(page).context("write the report")?;
    let json = json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    let mut text = String::with_capacity(json.len() + SCRIPT.len() + STYLE.len() + 4096);
    let mut rest = TEMPLATE;
    for (mark, content) in
        [("/*STYLE*/", STYLE), ("/*DATA*/", json.as_str()), ("/*SCRIPT*/", SCRIPT)]
    {
        if let Some((before, after)) = rest.split_once(mark) {
            text += before;
            text += content;
            rest = after;
        }
    }
    text += rest;
    Ok(text)
}

/// A scenario that was not run.
#[must_use]
pub fn skipped(name: &str, why: &str) -> Part {
    Part { name: name.to_owned(), skipped: Some(why.to_owned()), ..Part::default() }
}

/// A scenario that was: its report, for each row what came of its trials, and the violations that are kept.
pub fn part(report: &Report, points: Vec<Points<'_>>, kept: &[Kept]) -> Result<Part> {
    let mut part = Part {
        name: report.scenario.clone(),
        about: format!("{}; {} on {}", next::about(report), report.kernel, report.file_system),
        ..Part::default()
    };
    for (row, points) in report.subjects.iter().zip(points) {
        let own: Vec<_> = kept.iter().filter(|kept| kept.trial.subject == row.name).collect();
        part.rows.push(shown(report, row, points, own)?);
    }
    Ok(part)
}

fn shown(
    report: &Report,
    row: &Row,
    mut points: Points<'_>,
    mut kept: Vec<&Kept>,
) -> Result<RowShown> {
    let (expected, words) = match Judged::of(report, row) {
        Judged::AsExpected => ("yes", Vec::new()),
        Judged::Unclear(why) => ("unclear", vec![why.to_owned()]),
        Judged::Unexpected(differences) => {
            ("no", differences.into_iter().map(|one| cut(&one.what)).collect())
        }
    };
    let tally = &row.tally;
    // One of each kind first, the rest in the order of the run.
    kept.sort_by_cached_key(|kept| (place_of(kept, &points), kept.id.clone()));
    let mut seen = std::collections::BTreeSet::new();
    let (first, others): (Vec<&Kept>, Vec<&Kept>) =
        kept.into_iter().partition(|kept| seen.insert(kept.violations.first().map(|v| v.kind)));
    let kept: Vec<_> = first.into_iter().chain(others).collect();
    let violations = kept.iter().take(VIOLATIONS_MAX).map(|kept| violation(report, kept, &points));
    let (violations, left_out) = (violations.collect(), kept.len().saturating_sub(VIOLATIONS_MAX));
    let (ops, calls, paths) = ops(&points.line);
    Ok(RowShown {
        name: cut(&row.name),
        expected,
        words,
        rate: tally.pass_rate().map_or("-".to_owned(), percent),
        summary: summary(row),
        broken: tally.broken.keys().map(|promise| promise.name()).collect(),
        kinds: tally.violated.keys().map(|kind| kind.name()).collect(),
        notes: row.notes.iter().map(|note| cut(note)).collect(),
        cells: cells(row),
        violations,
        left_out,
        axis: points.axis.unwrap_or(Axis::Run),
        end: points.end(),
        ops,
        calls,
        paths,
        counts: points.counts(),
        points: points.pack()?,
        outcomes: points.outcomes,
    })
}

fn summary(row: &Row) -> String {
    let tally = &row.tally;
    let of = match row.is_drawn() {
        false => String::new(),
        true => format!(
            " (95 % interval {:.1} to {:.1} %)",
            row.interval.low * 100.0,
            row.interval.high * 100.0
        ),
    };
    format!("{} of {} judged passed: {}{of}", tally.passed, tally.judged(), short(row))
}

fn cells(row: &Row) -> Vec<CellShown> {
    let shown = |cell: &super::power::Cell| {
        let kinds = cell.tally.violated.iter();
        let kinds = kinds.map(|(kind, n)| format!("{} {}", kind.name(), n.natural + n.forced));
        CellShown {
            profile: cell.profile.clone(),
            failed: cell.tally.failed(),
            states: cell.states,
            kinds: kinds.collect::<Vec<_>>().join(", "),
            how: match (&cell.not_measured, cell.exhaustive, &cell.disk) {
                (Some(why), _, _) => format!("not measured: the model does not know {}", cut(why)),
                (None, true, _) => "all there are".to_owned(),
                (None, false, None) => "a sample".to_owned(),
                (None, false, Some(disk)) => format!("images of {} recordings", disk.recordings),
            },
        }
    };
    row.cells.iter().map(shown).collect()
}

fn place_of(kept: &Kept, points: &Points<'_>) -> (Axis, u64) {
    points.line.at(&kept.trial.fault.place(), 0)
}

fn violation(report: &Report, kept: &Kept, points: &Points<'_>) -> ViolationShown {
    let place = kept.trial.fault.place();
    let (axis, x) = points.line.at(&place, 0);
    let at_op = |op: usize| points.line.begins().0.get(op).map(|_| op);
    let (op, inside) = match (&place, &kept.injection) {
        (crate::fault::Place::Op(op, point), _) => {
            (at_op(op.0), point.to_string().trim_end_matches(" of").to_owned())
        }
        (_, Injection::At(Struck::Power { ops })) => {
            (at_op(*ops), "the power goes before".to_owned())
        }
        _ => (None, String::new()),
    };
    let explanation = kept.explanation.as_ref();
    ViolationShown {
        kind: kept.violations.first().map_or("", |violation| violation.kind.name()),
        fault: cut(&kept.trial.fault.to_string()),
        details: kept.violations.iter().map(|violation| cut(&violation.detail)).collect(),
        why: explanation.map(|explanation| cut(&explanation.words)),
        remedy: explanation.map(|explanation| explanation.remedy.words().to_owned()),
        differences: kept.differences.clone(),
        steps: kept.steps.iter().take(100).map(|step| cut(&steps::line(step))).collect(),
        op,
        inside,
        x: (Some(axis) == points.axis).then_some(x),
        replay: format!(
            "{} replay {}{}",
            super::table::called(report),
            kept.id,
            super::table::place(report)
        ),
    }
}

/// The ops of a run, and the calls and paths in them, each once.
#[expect(clippy::type_complexity, reason = "three lists that belong together")]
fn ops(line: &Line<'_>) -> (Vec<(usize, usize, u64, u64)>, Vec<&'static str>, Vec<String>) {
    let (mut calls, mut paths) = (Vec::new(), BTreeMap::new());
    let (begins, _) = line.begins();
    let sites = line.sites().sites.iter().zip(begins).take(OPS_MAX);
    let ops = sites.map(|(site, begin)| {
        let name = site.call.name();
        let call = calls.iter().position(|known| *known == name).unwrap_or_else(|| {
            calls.push(name);
            calls.len() - 1
        });
        let count = paths.len();
        let path = *paths.entry(cut(&site.path)).or_insert(count);
        (call, path, *begin, site.length)
    });
    let ops = ops.collect();
    let mut paths: Vec<_> = paths.into_iter().map(|(path, n)| (n, path)).collect();
    paths.sort_unstable();
    (ops, calls, paths.into_iter().map(|(_, path)| path).collect())
}

/// A text that is no longer than a page can show.
fn cut(text: &str) -> String {
    if text.len() <= TEXT_MAX {
        return text.to_owned();
    }
    let end = (0..=TEXT_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_shown_ends_its_element() {
        let part = skipped("</script><script>alert(1)</script>", "<!-- & --> \u{2028}");
        let text = render(&Page { made: String::new(), scenarios: vec![part] }).unwrap();
        assert_eq!(text.matches("</script>").count(), 2);
        assert!(!text.contains("<script>alert"), "{text}");
    }

    #[test]
    fn numbers_are_packed_in_groups_of_seven_bits() {
        let mut out = Vec::new();
        number(300, &mut out);
        number(0, &mut out);
        assert_eq!(out, [0xac, 0x02, 0]);
    }
}
