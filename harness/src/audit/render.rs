//! The audit as a Markdown document.

use std::fmt::Write;
use std::path::Path;

use super::risk::{Level, RULE};
use super::{Area, Audit, Finding, Outcome, Rate, Recommendation};
use crate::inject::checks::quoted;
use crate::markdown::{cell, code, plain};
use crate::source::Hint;

/// Renders it.
#[must_use]
pub fn markdown(audit: &Audit) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = head(audit, &mut text)
        .and_then(|()| summary(audit, &mut text))
        .and_then(|()| saves(audit, &mut text))
        .and_then(|()| findings(audit, &mut text))
        .and_then(|()| risks(audit, &mut text))
        .and_then(|()| scenarios(audit, &mut text))
        .and_then(|()| recommendations(audit, &mut text))
        .and_then(|()| hints(&audit.hints, &mut text))
        .and_then(|()| appendix(audit, &mut text));
    text
}

/// Renders hints alone, where nothing was run.
#[must_use]
pub fn only_hints(found: &[Hint], source: &Path) -> String {
    let mut text = format!("# Hints from {}\n\n", code(&source.display()));
    text += match found {
        [] => "None of the known patterns was found. ",
        _ => "",
    };
    text += "Nothing was run: `crashtest audit -- PROGRAM` measures.\n\n";
    let _ = hints(found, &mut text);
    text
}

fn head(audit: &Audit, text: &mut String) -> std::fmt::Result {
    let made = &audit.made;
    writeln!(text, "# How {} saves its state: {}\n", code(&audit.subject), audit.status.name())?;
    let risk = audit.risk.map_or("none found", Level::name);
    writeln!(text, "- **Status: {}**", audit.status.name())?;
    writeln!(text, "- **Risk level: {risk}**. {}", sentence(&audit.rule))?;
    if let Some(language) = audit.language {
        writeln!(text, "- Language: {language}")?;
    }
    writeln!(
        text,
        "- Measured by crashtest {} on {}: {} trials, crash states, images and loads in {} s, seed {}",
        made.crashtest,
        made.kernel,
        made.trials,
        made.elapsed_ms.div_ceil(1000),
        made.seed.0
    )?;
    let words: Vec<_> = made.command_line.iter().map(|word| quoted(word)).collect();
    writeln!(text, "- Command: {}\n", code(&words.join(" ")))
}

fn summary(audit: &Audit, text: &mut String) -> std::fmt::Result {
    writeln!(text, "## Summary\n")?;
    let words = [
        (Outcome::Failed, "Failed"),
        (Outcome::Warned, "Warned"),
        (Outcome::Passed, "Passed"),
        (Outcome::NotMeasured, "Not measured"),
    ];
    for (outcome, word) in words {
        let names = names(&audit.areas, outcome);
        if !names.is_empty() {
            writeln!(text, "- {word}: {names}")?;
        }
    }
    let first = audit.recommendations.iter().find(|one| one.priority.is_some());
    if let Some(first) = first {
        writeln!(text, "\nFirst of all: {}", first.what)?;
        if let [place, ..] = &first.places[..] {
            writeln!(text, "The place is {}.", code(place))?;
        }
    }
    writeln!(text)
}

fn names(areas: &[Area], outcome: Outcome) -> String {
    let names = areas.iter().filter(|area| area.outcome == outcome);
    names.map(|area| area.name.to_lowercase()).collect::<Vec<_>>().join(", ")
}

fn saves(audit: &Audit, text: &mut String) -> std::fmt::Result {
    let saves = &audit.saves;
    writeln!(text, "## How it saves\n")?;
    if let Some(why) = &saves.lines_unknown {
        writeln!(text, "The lines of its source that save are not known: {why}.\n")?;
    }
    if saves.lines.is_empty() {
        return Ok(());
    }
    writeln!(text, "| where | calls in the unbroken run |\n| --- | --- |")?;
    for line in &saves.lines {
        let calls: Vec<_> =
            line.calls.iter().map(|(name, count)| format!("{name} {count}")).collect();
        writeln!(text, "| {} | {} |", cell(&code(&line.place)), calls.join(", "))?;
    }
    writeln!(text)
}

fn findings(audit: &Audit, text: &mut String) -> std::fmt::Result {
    writeln!(text, "## Findings\n")?;
    for area in &audit.areas {
        writeln!(text, "### {}: {}\n", area.name, word(area.outcome))?;
        for finding in &area.findings {
            one_finding(finding, text)?;
        }
        writeln!(text)?;
    }
    Ok(())
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::NotMeasured => "not measured",
        Outcome::Passed => "passed",
        Outcome::Warned => "warned",
        Outcome::Failed => "FAILED",
    }
}

fn one_finding(finding: &Finding, text: &mut String) -> std::fmt::Result {
    let mark = match finding.outcome {
        Outcome::Failed => "**Failed.** ",
        Outcome::Warned => "**Warned.** ",
        Outcome::Passed => "",
        Outcome::NotMeasured => "*Not measured.* ",
    };
    writeln!(text, "- {mark}{}", sentence(&finding.text))?;
    if let Some(example) = &finding.example {
        let (fault, detail) = (plain(&example.fault), plain(&example.detail));
        match detail.starts_with(&fault) {
            true => writeln!(text, "  - For example: {detail}")?,
            false => writeln!(text, "  - For example: {fault}: {detail}")?,
        }
        if let Some(why) = &example.why {
            writeln!(text, "  - Why: {}", plain(why))?;
        }
        if let Some(place) = &example.place {
            writeln!(text, "  - Where: {}", code(place))?;
        }
        writeln!(text, "  - Again: {}", code(&example.replay))?;
    }
    for remedy in &finding.remedies {
        writeln!(text, "  - Remedy: {}", sentence(remedy))?;
    }
    Ok(())
}

fn risks(audit: &Audit, text: &mut String) -> std::fmt::Result {
    writeln!(text, "## Risks\n")?;
    if audit.risks.is_empty() {
        writeln!(text, "None of the promises was broken.\n")?;
    } else {
        writeln!(text, "| level | when | what | measured |\n| --- | --- | --- | --- |")?;
        for risk in &audit.risks {
            let (level, broken, of) = (risk.level.name(), risk.broken, risk.of);
            let (when, what) = (cell(&risk.when), cell(&risk.what));
            writeln!(text, "| {level} | {when} | {what} | {broken} of {of} |")?;
        }
        writeln!(text)?;
    }
    writeln!(text, "The rule: {RULE}\n")
}

fn scenarios(audit: &Audit, text: &mut String) -> std::fmt::Result {
    writeln!(text, "## What happens in the world, before and after\n")?;
    writeln!(
        text,
        "\"After\" is the strategy `{}`, measured in the same run. A pass rate is over all places where a \
         fault can strike, many of which never matter: it is no probability.\n",
        audit.recommended
    )?;
    writeln!(text, "| what happens | scenario | before | after |\n| --- | --- | --- | --- |")?;
    for one in &audit.scenarios {
        let (story, scenario) = (cell(&one.story), &one.scenario);
        writeln!(
            text,
            "| {story} | `{scenario}` | {} | {} |",
            rate(&one.before),
            rate(&one.after)
        )?;
    }
    writeln!(text)
}

fn rate(rate: &Rate) -> String {
    match rate {
        Rate::Of { passed, judged: 0 } => format!("nothing could be judged ({passed})"),
        Rate::Of { passed, judged } => {
            // Rounded down: what is not all is not 100 %.
            let tenths = passed * 1000 / judged;
            format!("{}.{} % of {judged}", tenths / 10, tenths % 10)
        }
        Rate::NotMeasured(_) => "not measured".to_owned(),
    }
}

fn recommendations(audit: &Audit, text: &mut String) -> std::fmt::Result {
    writeln!(text, "## What to do\n")?;
    if audit.recommendations.is_empty() {
        writeln!(text, "Nothing.\n")?;
    }
    for (n, one) in audit.recommendations.iter().enumerate() {
        recommendation(n + 1, one, text)?;
    }
    Ok(())
}

fn recommendation(n: usize, one: &Recommendation, text: &mut String) -> std::fmt::Result {
    let priority = one.priority.map_or("to complete the audit", Level::name);
    writeln!(text, "### {n}. {} ({priority})\n", one.what.trim_end_matches('.'))?;
    for why in &one.why {
        writeln!(text, "- {}", sentence(why))?;
    }
    if !one.places.is_empty() {
        let places: Vec<_> = one.places.iter().map(code).collect();
        writeln!(text, "- Where: {}", places.join(", "))?;
    }
    writeln!(text)?;
    if let Some(example) = &one.code {
        writeln!(text, "```{}\n{}\n```\n", example.language.fence(), example.text)?;
    }
    Ok(())
}

fn hints(hints: &[Hint], text: &mut String) -> std::fmt::Result {
    if hints.is_empty() {
        return Ok(());
    }
    writeln!(text, "## Hints from the source\n")?;
    writeln!(text, "These were read and not measured: each is a place to look at.\n")?;
    for hint in hints {
        writeln!(
            text,
            "- `{}:{}`: {}",
            hint.file.display(),
            hint.line,
            sentence(hint.pattern.words())
        )?;
    }
    writeln!(text)
}

fn appendix(audit: &Audit, text: &mut String) -> std::fmt::Result {
    let saves = &audit.saves;
    writeln!(text, "## Appendix\n")?;
    let what = if saves.of_one { "one save" } else { "the unbroken run" };
    writeln!(text, "### The calls of {what}\n")?;
    writeln!(
        text,
        "The number is that of the op in the unbroken run; after `=` what the call returned.\n"
    )?;
    let calls: Vec<_> = saves.calls.iter().map(|call| call.replace(['\n', '`'], "?")).collect();
    writeln!(text, "```text\n{}\n```\n", calls.join("\n"))?;
    let examples = audit.areas.iter().flat_map(|area| &area.findings);
    let mut lines: Vec<_> =
        examples.filter_map(|finding| Some(&finding.example.as_ref()?.replay)).collect();
    lines.dedup();
    if !lines.is_empty() {
        writeln!(text, "### To see it again\n")?;
        writeln!(text, "```sh")?;
        for line in lines {
            writeln!(text, "{line}")?;
        }
        writeln!(text, "```")?;
    }
    Ok(())
}

/// With a capital letter at the beginning, if it begins with a word, and a full stop at the end.
fn sentence(text: &str) -> String {
    let word = text.split(' ').next().unwrap_or_default();
    let mut whole = text.to_owned();
    if word.chars().all(|letter| letter.is_ascii_lowercase()) {
        whole[..word.len().min(1)].make_ascii_uppercase();
    }
    if !whole.ends_with(['.', '`']) {
        whole.push('.');
    }
    whole
}
