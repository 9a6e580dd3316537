//! The audit in a few lines: what a test says when it fails.

use crate::report::harmless::escaped;
use std::fmt::Write;

use super::{Audit, Finding, Outcome, Status};
use crate::exit_status::ExitStatus;

/// What is wrong with the program, where, and what to do; or that nothing is.
#[must_use]
pub fn text(audit: &Audit) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = lines(audit, &mut text);
    text
}

/// With which status a check ends.
#[must_use]
pub fn status(audit: &Audit, strict: bool) -> ExitStatus {
    match audit.status {
        Status::Fail => ExitStatus::Unexpected,
        // Of what says nothing it is not known that it is right.
        Status::Warn if audit.risk.is_none() => ExitStatus::NothingStruck,
        Status::Warn if strict => ExitStatus::Unexpected,
        Status::Warn | Status::Pass => ExitStatus::AsExpected,
    }
}

fn lines(audit: &Audit, text: &mut String) -> std::fmt::Result {
    let made = &audit.made;
    // A check of the user's own names no file.
    let broken = match &audit.saves.broken[..] {
        [] => &audit.saves.files,
        broken => broken,
    };
    let (files, broken) = (audit.saves.files.join(", "), broken.join(", "));
    let ran = |name: &&str| audit.skipped.iter().all(|(skipped, _)| skipped != name);
    let scenarios = audit.scenarios.iter().map(|one| one.scenario.as_str()).filter(ran);
    let scenarios: Vec<_> = scenarios.collect();
    writeln!(
        text,
        "{}: {} {} in {}{} trials and crash states of {}, seed {}",
        audit.status.name(),
        audit.subject,
        match audit.status {
            Status::Fail => format!("loses {broken}"),
            Status::Warn if audit.risk.is_none() => format!("can't be judged by {files}"),
            Status::Warn => format!("saves {broken} with a risk"),
            Status::Pass => format!("kept {files}"),
        },
        match made.broken {
            0 => String::new(),
            broken => format!("{broken} of "),
        },
        made.trials,
        scenarios.join(", "),
        made.seed.0
    )?;
    for (name, why) in &audit.skipped {
        writeln!(text, "not run: {name}: {why}")?;
    }
    if audit.unclear {
        writeln!(text, "note: {}", audit.rule)?;
        audit.notes.iter().try_for_each(|note| writeln!(text, "note: {note}"))?;
    }
    let findings = || audit.areas.iter().flat_map(|area| &area.findings);
    let wrong = |finding: &&Finding| {
        finding.example.is_some() && matches!(finding.outcome, Outcome::Failed | Outcome::Warned)
    };
    for finding in findings().filter(wrong) {
        one(finding, text)?;
    }
    let first = audit.recommendations.iter().find(|one| one.priority.is_some());
    if let Some(first) = first {
        writeln!(text, "\nWhat to do: {}", first.what)?;
        for place in &first.places {
            writeln!(text, "  at {place}")?;
        }
        if let Some(code) = &first.code {
            writeln!(text, "For example:\n")?;
            for line in code.text.lines() {
                writeln!(text, "    {line}")?;
            }
        }
    }
    Ok(())
}

fn one(finding: &Finding, text: &mut String) -> std::fmt::Result {
    let Some(example) = &finding.example else { return Ok(()) };
    writeln!(text, "\n- {}", finding.text)?;
    writeln!(text, "  left:   {} ({})", escaped(&example.detail), escaped(&example.fault))?;
    if let Some(why) = &example.why {
        writeln!(text, "  why:    {}", escaped(why))?;
    }
    if let Some(place) = &example.place {
        writeln!(text, "  where:  {place}")?;
    }
    for remedy in &finding.remedies {
        writeln!(text, "  remedy: {remedy}")?;
    }
    writeln!(text, "  again:  {}", example.replay)
}
