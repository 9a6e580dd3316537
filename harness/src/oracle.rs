//! The oracle: one pure function from facts to a verdict.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::at_rest;
use crate::describe;
use crate::fault::{DiskFull, Fault, Injection, Struck};
use crate::history::{AfterFailure, History, Repeats};
use crate::loads::Loads;
use crate::meeting;
use crate::outcome::{Check, CheckKind, Content, Exit, Load, Loaded, NextSave, Outcome, Survivor};
use crate::parting;
use crate::verdict::{Promise, Verdict, Violation, ViolationKind, Why};

/// Judges one trial by the promises that the scenario asks about.
#[must_use]
pub fn judge(outcome: &Outcome, history: &History, promises: &BTreeSet<Promise>) -> Verdict {
    if let Fault::AtRest(harming) = outcome.fault {
        return of_promises(at_rest::judge(outcome, harming, promises), promises);
    }
    if let Fault::Parted(parting) = outcome.fault {
        return of_promises(parting::judge(outcome, parting), promises);
    }
    if let Fault::Concurrent(meeting) = &outcome.fault {
        return match meeting::judge(outcome, history, meeting) {
            Verdict::Inconclusive(Why::NotComparable) if !asks_about_bytes(promises) => {
                Verdict::Pass
            }
            verdict => of_promises(verdict, promises),
        };
    }
    let nothing = says_nothing(outcome);
    // One that hangs after something had failed can still have done harm.
    let hangs = nothing == Some(Why::TimedOut) && is_told(outcome);
    if let Some(why) = nothing.filter(|_| !hangs) {
        return Verdict::Inconclusive(why);
    }
    let owed = owed(outcome, history);
    let (mut found, mut comparable) = match &history.loads {
        Some(loads) => by_load(outcome, history, loads),
        None => state(outcome, history, owed),
    };
    if promises.contains(&Promise::Durable) && is_undistinguished(outcome, history) {
        comparable = Comparable::No;
    }
    found.extend(outcome.checks.iter().filter_map(check));
    found.extend(recovery(outcome, history, owed));
    found.retain(|violation| promises.contains(&violation.kind.promise()));
    if !promises.contains(&Promise::Atomic) {
        // Bytes that may be half written, because the load repairs them, give nobody the lie.
        found.retain(|violation| violation.kind != ViolationKind::SilentFailure);
    }
    found.sort_by_key(|violation| violation.kind.promise());
    match (found.is_empty(), comparable) {
        (false, _) => Verdict::Violated(found),
        (true, _) if hangs => Verdict::Inconclusive(Why::TimedOut),
        // What can't be compared is judged by the user's checks, where there are any.
        (true, Comparable::No) if asks_about_bytes(promises) && !is_checked(outcome, promises) => {
            Verdict::Inconclusive(Why::NotComparable)
        }
        (true, Comparable::No | Comparable::Yes) => Verdict::Pass,
    }
}

/// Whether what was promised last can't be seen by the judged files; an end with status 0 promises what is there then.
fn is_undistinguished(outcome: &Outcome, history: &History) -> bool {
    outcome.exit != Exit::Status(0) && history.undistinguished.contains(&outcome.acks)
}

/// Whether a check of the user's has judged it.
fn is_checked(outcome: &Outcome, promises: &BTreeSet<Promise>) -> bool {
    promises.contains(&Promise::Checked) && !outcome.checks.is_empty()
}

/// What is broken by what the program's own load makes of it.
fn by_load(outcome: &Outcome, history: &History, loads: &Loads) -> (Vec<Violation>, Comparable) {
    let other = matches!(outcome.recovery.loaded, Loaded::NoVersion(_));
    // It may save what no unbroken run does: once something has failed, or where nothing says when it saves.
    let may_differ = is_told(outcome) && history.after_failure == AfterFailure::MayDiffer;
    if other && (may_differ || history.since.is_empty()) {
        return (Vec::new(), Comparable::No);
    }
    let promised = history.acks_promised(outcome.acks, &outcome.said);
    let judged = loads.judge(outcome, promised, is_before_the_first(outcome, history));
    let Some(mut found) = judged else { return (Vec::new(), Comparable::No) };
    if let (Some(on_disk), true) = (&outcome.on_disk, found.is_empty()) {
        let lost = Outcome { recovery: on_disk.clone(), ..outcome.clone() };
        let judged = loads.judge(&lost, promised, is_before_the_first(outcome, history));
        let Some(more) = judged else { return (Vec::new(), Comparable::No) };
        let after =
            "after a loss of power, as an fsync failed and what it was to write is in memory only";
        let told = |one: Violation| Violation { detail: format!("{after}: {}", one.detail), ..one };
        let mut more: Vec<_> = more.into_iter().map(told).collect();
        // Whatever is there then, it is not what was promised.
        if let (Some(first), true) =
            (more.first().cloned(), promised > 0 || all_promised(outcome, history))
        {
            let silent = is_told(outcome) && outcome.says_so_afterwards();
            let kinds = [(true, ViolationKind::LostAck), (silent, ViolationKind::SilentFailure)];
            let kinds = kinds.into_iter().filter(|(so, _)| *so).map(|(_, kind)| kind);
            more = kinds.map(|kind| Violation { kind, ..first.clone() }).collect();
        }
        found.extend(more);
    }
    // A load reads what is in memory.
    let owed = owed(outcome, history);
    for file in history.files() {
        if let Some(version) = newest_match(outcome.survivor.files.get(file), history, file) {
            found.extend(unsynced(outcome, history, file, version, owed));
        }
    }
    (found, Comparable::Yes)
}

/// Whether it is asked what the state files hold, and not only what a load or a check says of them.
fn asks_about_bytes(promises: &BTreeSet<Promise>) -> bool {
    [Promise::Atomic, Promise::Durable, Promise::Honest].iter().any(|one| promises.contains(one))
}

/// A verdict without what was not asked about.
fn of_promises(verdict: Verdict, promises: &BTreeSet<Promise>) -> Verdict {
    let Verdict::Violated(mut found) = verdict else { return verdict };
    found.retain(|violation| promises.contains(&violation.kind.promise()));
    found.sort_by_key(|violation| violation.kind.promise());
    if found.is_empty() { Verdict::Pass } else { Verdict::Violated(found) }
}

/// The version that the subject has promised: by its acks, or by ending with status 0.
#[must_use]
pub fn owed(outcome: &Outcome, history: &History) -> usize {
    match outcome.exit {
        Exit::Status(0) => history.last(),
        _ => history.owed_by(outcome.acks, &outcome.said),
    }
}

/// Whether something failed and the subject was told of it.
fn is_told(outcome: &Outcome) -> bool {
    outcome.fault.is_told() && outcome.injection.struck()
}

fn says_nothing(outcome: &Outcome) -> Option<Why> {
    match (&outcome.exit, outcome.injection.struck()) {
        (Exit::TimedOut, _) => Some(Why::TimedOut),
        (Exit::TooManyProcesses, _) => Some(Why::TooManyProcesses),
        // A program that a failed call brings down has met the fault, and what is left counts.
        (Exit::Signal(signal), true) if outcome.fault.is_told() && *signal != libc::SIGKILL => None,
        (Exit::Signal(_), _) => Some(Why::DiedOtherwise),
        (Exit::Killed | Exit::Status(_), false) => Some(Why::NotReached),
        (Exit::Killed | Exit::Status(_), true) => None,
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
        // What was there before the first save is a version, and the power can bring it back.
        let goes_back = matches!(outcome.fault, Fault::PowerLoss(_) | Fault::PowerCut(_));
        // Where there was none at the start, one that was promised and never came has not vanished.
        let never_came = is_told(outcome)
            && all_promised(outcome, history)
            && history.versions.first().is_some_and(|first| !first.contains_key(file));
        let vanished = content.is_none()
            && !goes_back
            && !never_came
            && !history.may_be_missing(file, op, outcome.acks, owed);
        // What was never empty was not just begun: what it held is lost.
        let just_begun = !goes_back || history.begun.contains(file);
        if just_begun && begun_and_left(content, history, file, owed) {
            continue;
        }
        match newest_match(content, history, file).filter(|_| !vanished) {
            // An ack that no unbroken run gives may be of a state that none of them saves.
            Some(version) if version < owed && history.says_more(&outcome.said) => {
                comparable = Comparable::No;
            }
            Some(version) if version < owed && history.versions_are_known() => {
                let what = match content {
                    Some(_) => format!("{} is version {version}", file.display()),
                    None => format!("{} is not there", file.display()),
                };
                found.extend(lost(outcome, owed, &what));
            }
            Some(version) if version < owed => comparable = Comparable::No,
            Some(version) => found.extend(unsynced(outcome, history, file, version, owed)),
            None => match mismatch(outcome, history, file) {
                Some(violation) => found.extend(damaged(outcome, history, violation, owed)),
                None => comparable = Comparable::No,
            },
        }
    }
    (found, comparable)
}

/// An empty file where nothing has been promised that is in it: a log or a store that was just begun. A program that
/// starts again finds nothing in it, as in none.
fn begun_and_left(content: Option<&Content>, history: &History, file: &Path, owed: usize) -> bool {
    matches!(content, Some(Content::Bytes(bytes)) if bytes.is_empty())
        && history.starts_empty.contains(file)
        && history.versions.get(owed).is_some_and(|version| !version.contains_key(file))
}

/// What a fault has met, all in all. On a full disk a run may be hindered though no call has failed:
/// the program has asked how much space there is, and left it at that.
#[must_use]
pub fn met(
    fault: &Fault,
    seen: Injection,
    exit: Exit,
    acks: u64,
    survivor: &Survivor,
    history: &History,
) -> Injection {
    let Fault::DiskFull(DiskFull { kill_before: None, .. }) = fault else { return seen };
    // A SIGKILL came from outside, and says nothing.
    let hindered =
        exit != Exit::Signal(libc::SIGKILL) && !unhindered(exit, acks, survivor, history);
    match seen {
        Injection::NotReached if hindered => Injection::At(Struck::Unseen),
        seen => seen,
    }
}

/// Whether a run has ended, said and left what an unbroken run does.
fn unhindered(exit: Exit, acks: u64, survivor: &Survivor, history: &History) -> bool {
    let ended = matches!(exit, Exit::Status(0) | Exit::Killed | Exit::TimedOut);
    let said = acks >= history.acks_of_a_run();
    let as_last = |file: &PathBuf| {
        let last = history.versions.last().and_then(|version| version.get(file));
        match (survivor.files.get(file), last) {
            (None, None) => true,
            (Some(Content::Bytes(bytes)), Some(reference)) => reference.fits(bytes),
            _ => false,
        }
    };
    // One that was ended while it served, or that never leaves the same, has left what it has.
    let compared = exit == Exit::Status(0) && history.repeats != Repeats::No;
    ended && said && (!compared || history.files().into_iter().all(as_last))
}

/// A version that was promised and is not there. If the subject was told that something had
/// failed, it has passed that over in silence.
fn lost(outcome: &Outcome, owed: usize, what: &str) -> Vec<Violation> {
    let detail = format!("{what}, but {}", promise(outcome, owed));
    let silent = is_told(outcome) && outcome.says_so_afterwards();
    let silent =
        silent.then(|| Violation { kind: ViolationKind::SilentFailure, detail: detail.clone() });
    let lost = Violation { kind: ViolationKind::LostAck, detail };
    std::iter::once(lost).chain(silent).collect()
}

/// A state that is no version. Of a file that is not there nothing is left that was promised; and a
/// subject that says that all is saved has passed the damage over in silence.
fn damaged(
    outcome: &Outcome,
    history: &History,
    violation: Violation,
    owed: usize,
) -> Vec<Violation> {
    let detail = format!("{}, but {}", violation.detail, promise(outcome, owed));
    let gone = violation.kind == ViolationKind::Missing && owed > 0;
    let silent = is_told(outcome) && all_promised(outcome, history) && outcome.says_so_afterwards();
    let more = [(gone, ViolationKind::LostAck), (silent, ViolationKind::SilentFailure)];
    let more = more.into_iter().filter(|(so, _)| *so);
    let more = more.map(|(_, kind)| Violation { kind, detail: detail.clone() });
    std::iter::once(violation).chain(more).collect()
}

/// What the subject has said to the world, in words.
fn promise(outcome: &Outcome, owed: usize) -> String {
    match (outcome.exit, outcome.acks) {
        (Exit::Status(0), _) => format!("exit status 0 promises version {owed}"),
        (_, 1) => format!("1 ack promises version {owed}"),
        (_, acks) => format!("{acks} acks promise version {owed}"),
    }
}

/// Whether the subject has said that all is saved.
fn all_promised(outcome: &Outcome, history: &History) -> bool {
    outcome.exit == Exit::Status(0) || history.all_acked(outcome.acks)
}

/// A state that is there and is not on disk: a failed fsync has left it in memory.
fn unsynced(
    outcome: &Outcome,
    history: &History,
    file: &Path,
    version: usize,
    owed: usize,
) -> Vec<Violation> {
    let in_memory = &outcome.unsynced;
    // Where the load was asked about what is on disk, that was judged.
    let is_in = in_memory.bytes.contains_key(file) && outcome.on_disk.is_none();
    let name = file.display();
    let promised = version <= owed;
    // What is on disk may be the version before, whole: then nothing is lost but what has failed.
    let on_disk = in_memory.bytes.get(file).map(|bytes| Content::Bytes(bytes.clone()));
    let begun = begun_and_left(on_disk.as_ref(), history, file, owed);
    let on_disk = on_disk.and_then(|content| newest_match(Some(&content), history, file));
    if is_in && (begun || on_disk.is_some_and(|on_disk| on_disk >= owed)) {
        Vec::new()
    } else if is_in && promised {
        let what = format!(
            "version {version} of {name} is in memory only: an fsync failed, which marks its \
             pages clean, and nothing has written them again"
        );
        lost(outcome, owed, &what)
    } else if is_in {
        let detail = format!(
            "{name} was replaced by bytes that a failed fsync has left in memory only: after a \
             power cut neither the old nor the new state is there"
        );
        vec![Violation { kind: ViolationKind::Unsynced, detail }]
    // A name that was promised before was not durable then either: a loss of power shows that, without a failure.
    } else if in_memory.names.contains(file) && promised && outcome.says_so_afterwards() {
        let what = format!(
            "the name of version {version} of {name} is in memory only: the fsync of its \
             directory failed"
        );
        lost(outcome, owed, &what)
    } else {
        Vec::new()
    }
}

/// The newest version of `file` that `content` is.
#[must_use]
pub fn newest_match(content: Option<&Content>, history: &History, file: &Path) -> Option<usize> {
    history.versions.iter().rposition(|version| match (content, version.get(file)) {
        (None, None) => true,
        (Some(Content::Bytes(bytes)), Some(reference)) => reference.fits(bytes),
        (None, Some(_)) | (Some(_), None) | (Some(Content::Other(_)), Some(_)) => false,
    })
}

/// What is wrong with content that is no version; `None` when the run does not repeat and nothing
/// is wrong for certain.
fn mismatch(outcome: &Outcome, history: &History, file: &Path) -> Option<Violation> {
    let content = outcome.survivor.files.get(file);
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
    let may_differ = is_told(outcome) && history.after_failure == AfterFailure::MayDiffer;
    if !bytes.is_empty()
        && !history.versions_are_known()
        && history.lengths.is_cut_short(file, bytes.len(), may_differ)
    {
        let detail = format!("{name} is cut short at {} bytes", bytes.len());
        return Some(Violation { kind: ViolationKind::Torn, detail });
    }
    if is_told(outcome) && history.after_failure == AfterFailure::MayDiffer {
        return differs_for_certain(violation.kind, json, bytes).then_some(violation);
    }
    // Where each run saves other bytes, what is no version of one may be one of another.
    let certain = match violation.kind {
        ViolationKind::Empty | ViolationKind::Zeroed => true,
        ViolationKind::Torn => json,
        _ => false,
    };
    (certain || history.versions_are_known()).then_some(violation)
}

/// Whether bytes are damaged, and not perhaps the state of a program that has met a failure: it may
/// count its failures, or save something else.
#[must_use]
pub fn differs_for_certain(kind: ViolationKind, json: bool, bytes: &[u8]) -> bool {
    match kind {
        // Each byte of a mixture is one of two versions': no new state is that by chance.
        ViolationKind::Empty
        | ViolationKind::Zeroed
        | ViolationKind::Torn
        | ViolationKind::Mixed => true,
        _ => json && serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_err(),
    }
}

/// The violation that a check of the user's has found.
#[must_use]
pub fn check(check: &Check) -> Option<Violation> {
    let kind = match check.kind {
        CheckKind::Command => ViolationKind::CheckFailed,
        CheckKind::Schema => ViolationKind::SchemaBroken,
        CheckKind::Invariant => ViolationKind::InvariantBroken,
    };
    check.complaint.clone().map(|detail| Violation { kind, detail })
}

/// What is said of a load that fell back to the default state.
#[must_use]
pub fn reset_detail(owed: usize) -> String {
    format!("the load fell back to the default state, version {owed} is owed")
}

/// Whether nothing had been saved yet, and the load rightly fails then.
fn is_before_the_first(outcome: &Outcome, history: &History) -> bool {
    let before = |ops: usize| history.since.get(1).is_some_and(|first| ops < *first);
    let early = match (&outcome.injection, outcome.fault.op()) {
        (Injection::At(Struck::Power { ops }), _) => before(*ops),
        (Injection::At(Struck::Met { .. }), _) => false,
        (_, Some(op)) => before(op.0),
        // Where it is not known when it was struck, the first ack tells.
        (_, None) => outcome.acks == 0 && !history.acked.is_empty(),
    };
    early && history.loads.as_ref().is_some_and(|loads| loads.fails_on_nothing())
}

/// What is wrong with the recovery, where so much is owed.
#[must_use]
pub fn recovery(outcome: &Outcome, history: &History, owed: usize) -> Vec<Violation> {
    let violation = |kind, detail: String| Violation { kind, detail };
    let recovery = &outcome.recovery;
    let mut found = Vec::new();
    match &recovery.load {
        Load::NotTried | Load::Loaded => {}
        Load::Default if history.versions[owed].is_empty() => {}
        Load::Default => {
            found.push(violation(ViolationKind::Reset, reset_detail(owed)));
        }
        // As it does where nothing was saved yet.
        Load::Failed(_) if owed == 0 && is_before_the_first(outcome, history) => {}
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
