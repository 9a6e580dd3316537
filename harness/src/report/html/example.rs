//! A kept violation in the page: what is left, why, the calls around it, and how to see it again.

use std::fmt::Write;

use super::points::Points;
use super::text::{count, html};
use crate::difference::{self, Difference};
use crate::fault::{Place, Point};
use crate::report::{Report, table};
use crate::results::Kept;
use crate::steps;

/// How many steps after the strike are shown.
const STEPS_MAX: usize = 100;
/// How many ops before the one that was struck are shown, and how many after it.
const AROUND: usize = 4;

/// Writes one.
pub(super) fn write(report: &Report, kept: &Kept, points: &Points<'_>, out: &mut String) {
    let kind = kept.violations.first().map_or("", |violation| violation.kind.name());
    let place = kept.trial.fault.place();
    let x =
        points.x(&kept.id, &place, kept.acks).map_or(String::new(), |x| format!(" data-x=\"{x}\""));
    let fault = html(&kept.trial.fault.to_string());
    // Writing to a string can't fail.
    let _ = write!(
        out,
        "<details data-kind=\"{kind}\"{x}><summary>{kind}: <bdi>{fault}</bdi></summary><dl>"
    );
    for violation in &kept.violations {
        say("left", &format!("<bdi>{}</bdi>", html(&violation.detail)), out);
    }
    if let Some(explanation) = &kept.explanation {
        say("why", &format!("<bdi>{}</bdi>", html(&explanation.words)), out);
        say("remedy", &html(explanation.remedy.words()), out);
    }
    for one in &kept.differences {
        say("against", &difference(one), out);
    }
    if !kept.steps.is_empty() {
        let step = |step| format!("<li><code>{}</code></li>", html(&steps::line(step)));
        let steps: String = kept.steps.iter().take(STEPS_MAX).map(step).collect();
        say("it did", &format!("<ol class=\"calls\">{steps}</ol>"), out);
    }
    if let Some(timeline) = timeline(kept, &place, points) {
        say("calls", &timeline, out);
    }
    let (command, place) = (table::called(report), table::place(report));
    let replay = format!("{command} replay {}{place}", kept.id);
    say("again", &format!("<code class=\"command\">{}</code>", html(&replay)), out);
    out.push_str("</dl></details>\n");
}

fn say(term: &str, what: &str, out: &mut String) {
    let _ = write!(out, "<dt>{term}</dt><dd>{what}</dd>");
}

fn difference(one: &Difference) -> String {
    let size = |bytes: Option<u64>| match bytes {
        None => "no file".to_owned(),
        Some(1) => "1 byte".to_owned(),
        Some(bytes) => format!("{} bytes", count(bytes)),
    };
    let cut = if one.at > difference::BEFORE as u64 { "…" } else { "" };
    let line = |sign: &str, tag: &str, text: &str, bytes: Option<u64>| {
        let more = bytes.is_some_and(|bytes| bytes > one.at + difference::FROM as u64);
        let shown = if text.is_empty() { "∅".to_owned() } else { html(text) };
        format!(
            "<div data-sign=\"{sign}\">{cut}{}<{tag}>{shown}</{tag}>{} ({})</div>",
            html(&one.before),
            if more { "…" } else { "" },
            size(bytes)
        )
    };
    format!(
        "<div>version {} of <bdi>{}</bdi>, from byte {} on:<div class=\"diff bytes\">{}{}</div></div>",
        one.version,
        html(&one.file),
        one.at,
        line("−", "del", &one.expected, one.expected_bytes),
        line("+", "ins", &one.left, one.left_bytes)
    )
}

/// What happens at the op at which it strikes, in words.
fn here(place: &Place) -> String {
    match place {
        Place::Op(_, Point::Before) => "before it".to_owned(),
        Place::Op(_, Point::After) => "after it".to_owned(),
        Place::Op(_, Point::Inside(byte)) => format!("after byte {} of it", byte.0),
        Place::Call(_, _, None) => "it fails".to_owned(),
        Place::Call(_, _, Some(nth)) => format!("it fails, and then call {nth} after it"),
        Place::Meeting(_) => "another process comes before it".to_owned(),
        Place::Free(..) | Place::Rest(_) | Place::Parting(_) | Place::Moment => String::new(),
    }
}

/// The recorded ops around the one at which it strikes; none of a fault that strikes at no op.
fn timeline(kept: &Kept, place: &Place, points: &Points<'_>) -> Option<String> {
    let op = points.line.op(place)?;
    let sites = &points.line.sites().sites;
    let (first, end) = (op.saturating_sub(AROUND), sites.len().min(op + AROUND + 1));
    let mark = |here: &str| format!(" <strong>← here, {here}</strong>");
    let power = kept.trial.fault.kind().is_power();
    let lost = kept.explanation.as_ref().map_or(&[][..], |explanation| &explanation.lost);
    let mut list = String::new();
    for (n, site) in sites.iter().enumerate().take(end).skip(first) {
        let length = match site.length {
            0 => String::new(),
            length => format!(", {} bytes", count(length)),
        };
        let (class, mark) = match n == op {
            true if power => (" class=\"here\"", mark("the power goes before it")),
            true => (" class=\"here\"", mark(&here(place))),
            false => ("", String::new()),
        };
        let lost = if lost.contains(&n) { " (lost)" } else { "" };
        let (call, path) = (site.call.name(), html(&site.path));
        let _ = write!(
            list,
            "<li{class}><code>{call}(<bdi>{path}</bdi>{length})</code>{lost}{mark}</li>"
        );
    }
    let after = match op == sites.len() {
        true => format!(
            "<p class=\"here\">after the last op{}</p>",
            mark(match power {
                true => "the power goes",
                false => "it strikes",
            })
        ),
        false => String::new(),
    };
    let last = end.saturating_sub(1);
    (end > first).then(|| {
        format!(
            "<div>ops {first} to {last} of {}:<ol class=\"calls\" start=\"{first}\">{list}</ol>{after}</div>",
            count(sites.len() as u64)
        )
    })
}
