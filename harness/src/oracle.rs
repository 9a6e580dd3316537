//! The oracle: one pure function from facts to a verdict.

use std::collections::BTreeSet;
use std::path::Path;

use crate::describe;
use crate::fault::{FaultKind, Injection};
use crate::history::History;
use crate::outcome::{Check, CheckKind, Content, Exit, Load, NextSave, Outcome};
use crate::verdict::{Promise, Verdict, Violation, ViolationKind, Why};

/// Judges one trial by the promises that the scenario asks about.
#[must_use]
pub fn judge(outcome: &Outcome, history: &History, promises: &BTreeSet<Promise>) -> Verdict {
    if let Some(why) = says_nothing(outcome) {
        return Verdict::Inconclusive(why);
    }
    let owed = match outcome.exit {
        Exit::Status(0) => history.last(),
        _ => history.owed_after(outcome.acks),
    };
    let (mut found, comparable) = state(outcome, history, owed);
    found.extend(outcome.checks.iter().filter_map(check));
    found.extend(recovery(outcome, history, owed));
    found.retain(|violation| promises.contains(&violation.kind.promise()));
    found.sort_by_key(|violation| violation.kind.promise());
    match (found.is_empty(), comparable) {
        (false, _) => Verdict::Violated(found),
        (true, Comparable::No) => Verdict::Inconclusive(Why::NotComparable),
        (true, Comparable::Yes) => Verdict::Pass,
    }
}

fn says_nothing(outcome: &Outcome) -> Option<Why> {
    match (&outcome.exit, &outcome.injection) {
        (Exit::TimedOut, _) => Some(Why::TimedOut),
        (Exit::TooManyProcesses, _) => Some(Why::TooManyProcesses),
        // A program that a short write brings down has met the fault, and what is left counts.
        (Exit::Signal(signal), Injection::At(_))
            if outcome.fault.kind() == FaultKind::ShortWrite && *signal != libc::SIGKILL =>
        {
            None
        }
        (Exit::Signal(_), _) => Some(Why::DiedOtherwise),
        (Exit::Killed | Exit::Status(_), Injection::NotReached) => Some(Why::NotReached),
        (Exit::Killed | Exit::Status(_), Injection::At(_)) => None,
    }
}

/// Whether the state could be compared with the versions.
enum Comparable {
    Yes,
    No,
}

fn state(outcome: &Outcome, history: &History, owed: usize) -> (Vec<Violation>, Comparable) {
    let mut found = Vec::new();
    let mut comparable = Comparable::Yes;
    for file in history.files() {
        let content = outcome.survivor.files.get(file);
        let op = outcome.fault.op().map(|op| op.0);
        let vanished = content.is_none() && !history.may_be_missing(file, op, owed);
        match newest_match(content, history, file).filter(|_| !vanished) {
            Some(version) if version < owed && history.versions_are_known() => {
                found.push(lost_ack(file, version, owed, outcome.acks));
            }
            Some(version) if version < owed => comparable = Comparable::No,
            Some(_) => {}
            None => match mismatch(outcome.survivor.files.get(file), history, file) {
                Some(violation) => found.push(violation),
                None => comparable = Comparable::No,
            },
        }
    }
    (found, comparable)
}

/// The newest version of `file` that `content` is.
fn newest_match(content: Option<&Content>, history: &History, file: &Path) -> Option<usize> {
    history.versions.iter().rposition(|version| match (content, version.get(file)) {
        (None, None) => true,
        (Some(Content::Bytes(bytes)), Some(reference)) => reference.fits(bytes),
        (None, Some(_)) | (Some(_), None) | (Some(Content::Other(_)), Some(_)) => false,
    })
}

/// What is wrong with content that is no version; `None` when the run does not repeat and nothing
/// is wrong for certain.
fn mismatch(content: Option<&Content>, history: &History, file: &Path) -> Option<Violation> {
    let name = file.display().to_string();
    let bytes = match content {
        None => {
            let detail = format!("{name} is not there");
            return Some(Violation { kind: ViolationKind::Missing, detail });
        }
        Some(Content::Other(what)) => {
            let detail = format!("{name} is {what}");
            return Some(Violation { kind: ViolationKind::Alien, detail });
        }
        Some(Content::Bytes(bytes)) => bytes,
    };
    let versions: Vec<&[u8]> = history
        .versions
        .iter()
        .map(|version| version.get(file).map_or(&[][..], |reference| &reference.bytes))
        .collect();
    let json = history.is_json(file);
    let violation = describe::damage(&name, bytes, &versions, json);
    // Where each run saves other bytes, what is no version of one may be one of another.
    let certain = match violation.kind {
        ViolationKind::Empty | ViolationKind::Zeroed => true,
        ViolationKind::Torn => json,
        _ => false,
    };
    (certain || history.versions_are_known()).then_some(violation)
}

fn lost_ack(file: &Path, version: usize, owed: usize, acks: u64) -> Violation {
    let detail =
        format!("{} is version {version}, but {acks} acks promise version {owed}", file.display());
    Violation { kind: ViolationKind::LostAck, detail }
}

fn check(check: &Check) -> Option<Violation> {
    let kind = match check.kind {
        CheckKind::Command => ViolationKind::CheckFailed,
        CheckKind::Schema => ViolationKind::SchemaBroken,
        CheckKind::Invariant => ViolationKind::InvariantBroken,
    };
    check.complaint.clone().map(|detail| Violation { kind, detail })
}

fn recovery(outcome: &Outcome, history: &History, owed: usize) -> Vec<Violation> {
    let violation = |kind, detail: String| Violation { kind, detail };
    let recovery = &outcome.recovery;
    let mut found = Vec::new();
    match &recovery.load {
        Load::NotTried | Load::Loaded => {}
        Load::Default if history.versions[owed].is_empty() => {}
        Load::Default => {
            let detail = format!("the load fell back to the default state, version {owed} is owed");
            found.push(violation(ViolationKind::Reset, detail));
        }
        Load::Failed(why) => found.push(violation(ViolationKind::RecoveryFailed, why.clone())),
        Load::Hung => {
            let detail = "the recovery did not end in time".to_owned();
            found.push(violation(ViolationKind::RecoveryHung, detail));
        }
    }
    if let NextSave::Failed(why) = &recovery.next_save {
        found.push(violation(ViolationKind::CannotSaveAgain, why.clone()));
    }
    if !recovery.leftovers.is_empty() {
        let names: Vec<_> =
            recovery.leftovers.iter().map(|path| path.display().to_string()).collect();
        found.push(violation(ViolationKind::Leftovers, names.join(", ")));
    }
    found
}
