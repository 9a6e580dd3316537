//! Two processes that save at once: one waits between two of its calls while another saves.
//!
//! A program that is started twice, by a timer and by hand, or by a supervisor that believes the first
//! to be dead. All that can happen at such a moment follows from where the first is when the second
//! comes, and from whether it then goes on or dies there. A strategy replaces a state that it has in
//! memory; so if two are let in at once, what one of them has saved is lost, whole as the file may be.
//! The second may be sent away, and it may wait.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::describe;
use crate::fault::{Injection, Struck};
use crate::history::History;
use crate::oracle;
use crate::outcome::{Content, Exit, Load, Loaded, Outcome};
use crate::verdict::{Verdict, Violation, ViolationKind, Why};

/// Where two processes meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Meeting {
    /// The op of the first before which the second comes.
    pub before: u32,
    /// What becomes of the first when the second has done what it could.
    pub then: Then,
}

/// What becomes of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Then {
    /// It goes on.
    GoesOn,
    /// It is killed.
    IsKilled,
    /// It is killed, and another process, which lives on, gets its number: where a file that is no state
    /// says the number of the dead, it says that of somebody else.
    IsSucceeded,
}

/// What the second has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Second {
    /// How many saves it has acknowledged while the first was there.
    pub acks: u64,
    /// How it ended.
    pub exit: Exit,
}

impl fmt::Display for Meeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { before, then } = self;
        write!(f, "another process saves before op {before} of the first, which then ")?;
        f.write_str(match then {
            Then::GoesOn => "goes on",
            Then::IsKilled => "is killed",
            Then::IsSucceeded => "is killed, and its number goes to another process",
        })
    }
}

/// All meetings of a subject with so many ops. Before its first it has not begun, and nobody meets it.
#[must_use]
pub fn all(ops: usize) -> Vec<Meeting> {
    let befores = 1..u32::try_from(ops).unwrap_or(u32::MAX);
    befores
        .flat_map(|before| {
            [Then::GoesOn, Then::IsKilled, Then::IsSucceeded].map(|then| Meeting { before, then })
        })
        .collect()
}

/// A text with another number wherever one stands by itself, as long as before; `None` if it does not.
#[must_use]
pub fn renumbered(text: &str, old: u32, new: u32) -> Option<String> {
    let (mut renumbered, mut any, mut rest) = (String::new(), false, text);
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, from) = rest.split_at(start);
        let end = from.find(|c: char| !c.is_ascii_digit()).unwrap_or(from.len());
        let (digits, after) = from.split_at(end);
        renumbered += before;
        if digits.parse() == Ok(old) {
            any = true;
            renumbered += &format!("{new:0width$}", width = digits.len());
        } else {
            renumbered += digits;
        }
        rest = after;
    }
    any.then(|| renumbered + rest)
}

/// What a meeting is worth; the promises that are not asked about are for the caller to leave out.
#[must_use]
pub fn judge(outcome: &Outcome, history: &History, meeting: Meeting) -> Verdict {
    let Injection::At(Struck::Met { second }) = &outcome.injection else {
        return Verdict::Inconclusive(Why::NotReached);
    };
    // It is sent away, or waits; only what is not part of the trial kills it.
    if second.exit == Exit::Signal(libc::SIGKILL) {
        return Verdict::Inconclusive(Why::DiedOtherwise);
    }
    match outcome.exit {
        Exit::TimedOut => return Verdict::Inconclusive(Why::TimedOut),
        Exit::Signal(_) => return Verdict::Inconclusive(Why::DiedOtherwise),
        Exit::TooManyProcesses => return Verdict::Inconclusive(Why::TooManyProcesses),
        Exit::Killed | Exit::Status(_) => {}
    }
    let mut found = Vec::new();
    let recovery = &outcome.recovery;
    let whole = match (&recovery.loaded, &recovery.load) {
        (Loaded::Version(_), _) => true,
        (Loaded::NoVersion(_), _) => false,
        // Of a program it is not known what it loads.
        (Loaded::Unknown, Load::Failed(_)) => false,
        (Loaded::Unknown, _) => !history.versions_are_known(),
    };
    if !whole {
        found.extend(history.files().into_iter().filter_map(|file| {
            damage(outcome, history, file).map(|violation| Violation {
                detail: format!("{}: {meeting}", violation.detail),
                ..violation
            })
        }));
    }
    let at_once = second.acks > 0 && outcome.acks > 0;
    let alone_known = matches!(recovery.loaded, Loaded::Version(_) | Loaded::NoVersion(_));
    if at_once && alone_known {
        let detail = format!(
            "two processes were let in at once, and what one of them had acknowledged is lost: {meeting}"
        );
        found.push(Violation { kind: ViolationKind::LostAck, detail });
    }
    found.extend(outcome.checks.iter().filter_map(oracle::check));
    found.extend(oracle::recovery(outcome, history, 0));
    match found.is_empty() {
        true => Verdict::Pass,
        false => Verdict::Violated(found),
    }
}

/// Bytes that are certainly no state: the second may have saved versions that are not known.
fn damage(outcome: &Outcome, history: &History, file: &std::path::Path) -> Option<Violation> {
    let name = file.display();
    let bytes = match outcome.survivor.files.get(file) {
        Some(Content::Bytes(bytes)) => bytes,
        Some(Content::Other(what)) => {
            let detail = format!("{name} is {what}");
            return Some(Violation { kind: ViolationKind::Alien, detail });
        }
        // Where it is in every version, the one that is not there was taken away.
        None if history.versions.iter().all(|version| version.contains_key(file)) => {
            let detail = format!("{name} is not there");
            return Some(Violation { kind: ViolationKind::Missing, detail });
        }
        None => return None,
    };
    let all = history.versions.iter();
    let versions: Vec<&[u8]> =
        all.filter_map(|version| Some(&version.get(file)?.bytes[..])).collect();
    if versions.contains(&&bytes[..]) {
        return None;
    }
    let json = history.is_json(file);
    let violation = describe::damage(&file.display().to_string(), bytes, &versions, json);
    oracle::differs_for_certain(violation.kind, json, bytes).then_some(violation)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::fault::Fault;

    #[test]
    fn a_number_is_another_only_where_it_stands_by_itself() {
        assert_eq!(renumbered("pid=41\n", 41, 999).as_deref(), Some("pid=999\n"));
        assert_eq!(
            renumbered("process 0000000041", 41, 999).as_deref(),
            Some("process 0000000999")
        );
        assert_eq!(renumbered("1410 and 4.1", 41, 999), None);
    }

    #[test]
    fn nobody_meets_one_that_has_not_begun() {
        assert_eq!(all(1), []);
        assert_eq!(all(3).len(), 6);
    }

    #[test]
    fn a_second_that_something_else_has_killed_says_nothing() {
        let meeting = Meeting { before: 1, then: Then::GoesOn };
        let second = Second { acks: 0, exit: Exit::Signal(libc::SIGKILL) };
        let injection = Injection::At(Struck::Met { second });
        let outcome = Outcome::new(Fault::Concurrent(meeting), injection, Exit::Status(0));
        let verdict = judge(&outcome, &History::of_ends(BTreeMap::new(), BTreeMap::new()), meeting);
        assert_eq!(verdict, Verdict::Inconclusive(Why::DiedOtherwise));
    }
}
