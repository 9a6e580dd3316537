//! Two processes that save at once: one waits between two of its calls while another saves.
//!
//! A program that is started twice, by a timer and by hand, or by a supervisor that believes the first
//! to be dead. Both stop at each of their ops, so that what happens follows from their turns: where the
//! first is when the second comes, how many ops each then makes before it is the other's turn, and whether
//! both go on to their ends or one or both die. All interleavings with two switches are tried (the first to
//! an op, the second to its end, the first to its end or killed); those with more are drawn. A strategy
//! replaces a state that it has in memory; so if two are let in at once, what one of them has saved is lost,
//! whole as the file may be. The second may be sent away, and it may wait.

use std::fmt;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::describe;
use crate::fault::{Injection, Struck};
use crate::history::History;
use crate::oracle;
use crate::outcome::{Content, Exit, Load, Loaded, Outcome};
use crate::plan::Seed;
use crate::verdict::{Verdict, Violation, ViolationKind, Why};

/// Where two processes meet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Meeting {
    /// The op of the first before which the second comes.
    pub before: u32,
    /// How many ops the second makes then, the first after that, and so on. After these turns the one whose turn
    /// it is goes to its end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub turns: Vec<u32>,
    /// What becomes of the other one.
    pub then: Then,
}

/// What becomes of the one that waits when the other has done what it could.
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
    /// Both are killed, as soon as the turns are over.
    BothAreKilled,
}

/// What the second has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Second {
    /// How many saves it has acknowledged while the first was there.
    pub acks: u64,
    /// How it ended.
    pub exit: Exit,
}

/// Where two processes meet first, and how it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Encounter {
    /// The op of the first before which the second comes.
    pub before: u32,
    /// What becomes of the other one in the end.
    pub then: Then,
}

impl Meeting {
    /// Its place, whatever the turns are.
    #[must_use]
    pub fn encounter(&self) -> Encounter {
        Encounter { before: self.before, then: self.then }
    }
}

impl fmt::Display for Meeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { before, turns, then } = self;
        match &turns[..] {
            [] => write!(f, "another process saves before op {before} of the first, which then ")?,
            [second, rest @ ..] => {
                write!(f, "before op {before} of the first, another process makes {second} ops")?;
                for (turn, ops) in rest.iter().enumerate() {
                    write!(f, ", {} {ops}", if turn % 2 == 0 { "the first" } else { "the other" })?;
                }
                f.write_str(match (then, turns.len() % 2 == 0) {
                    (Then::BothAreKilled, _) => ", and ",
                    (_, true) => ", and the other goes to its end; the first ",
                    (_, false) => ", and the first goes to its end; the other ",
                })?;
            }
        }
        f.write_str(match then {
            Then::GoesOn => "goes on",
            Then::IsKilled => "is killed",
            Then::IsSucceeded => "is killed, and its number goes to another process",
            Then::BothAreKilled => "both are killed",
        })
    }
}

/// All meetings with two switches of a subject with so many ops. Before its first it has not begun, and none
/// meets it.
#[must_use]
pub fn all(ops: usize) -> Vec<Meeting> {
    let befores = 1..u32::try_from(ops).unwrap_or(u32::MAX);
    let meeting = |before, then| Meeting { before, turns: Vec::new(), then };
    befores
        .flat_map(|before| {
            [Then::GoesOn, Then::IsKilled, Then::IsSucceeded].map(|then| meeting(before, then))
        })
        .collect()
}

/// How many turns a drawn meeting has at most.
const TURNS_MAX: usize = 64;

/// Draws so many meetings with more switches, of a subject with so many ops (two at least): after each op it is the
/// other's turn with the same probability, which is another one in each meeting. Half of them end with both killed.
#[must_use]
pub fn drawn(ops: usize, seed: Seed, count: usize) -> Vec<Meeting> {
    let ops = u32::try_from(ops).unwrap_or(u32::MAX);
    if ops < 2 {
        return Vec::new();
    }
    let one = |n: usize| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed.0);
        rng.set_stream(n as u64);
        let before = rng.random_range(1..ops);
        let stays = 1.0 - [0.5, 0.25, 0.125][rng.random_range(0..3)];
        let then = [Then::GoesOn, Then::BothAreKilled][n % 2];
        let steps = rng.random_range(1..ops.saturating_mul(2));
        let mut turns = vec![1];
        for _ in 1..steps {
            let stays = turns.len() == TURNS_MAX || rng.random_bool(stays);
            match turns.last_mut().filter(|_| stays) {
                Some(last) => *last += 1,
                None => turns.push(1),
            }
        }
        Meeting { before, turns, then }
    };
    (0..count).map(one).collect()
}

/// A text with another number wherever one stands by itself; `None` if it does not. One that was filled up with zeros
/// is as long as before.
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
            let width = if digits.starts_with('0') { digits.len() } else { 0 };
            renumbered += &format!("{new:0width$}");
        } else {
            renumbered += digits;
        }
        rest = after;
    }
    any.then(|| renumbered + rest)
}

/// What a meeting is worth; the promises that are not asked about are for the caller to leave out. A state that is
/// no version, that no check and no load was asked about, and that is not damaged for certain, is not comparable.
#[must_use]
pub fn judge(outcome: &Outcome, history: &History, meeting: &Meeting) -> Verdict {
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
    let (mut found, mut comparable) = (Vec::new(), true);
    let recovery = &outcome.recovery;
    if !matches!(recovery.loaded, Loaded::Version(_)) {
        // What a program loads is not known; that its load took it is something.
        let loads = recovery.loaded == Loaded::Unknown && recovery.load == Load::Loaded;
        for file in history.files() {
            match damage(outcome, history, file) {
                Found::Whole => {}
                Found::Damaged(violation) => found.push(Violation {
                    detail: format!("{}: {meeting}", violation.detail),
                    ..violation
                }),
                Found::Unknown => comparable &= loads || !outcome.checks.is_empty(),
            }
        }
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
        true if comparable => Verdict::Pass,
        true => Verdict::Inconclusive(Why::NotComparable),
        false => Verdict::Violated(found),
    }
}

/// What a file is after a meeting.
enum Found {
    Whole,
    Damaged(Violation),
    /// The second may have saved versions that are not known.
    Unknown,
}

fn damage(outcome: &Outcome, history: &History, file: &std::path::Path) -> Found {
    let name = file.display();
    let bytes = match outcome.survivor.files.get(file) {
        Some(Content::Bytes(bytes)) => bytes,
        Some(Content::Other(what)) => {
            let detail = format!("{name} is {what}");
            return Found::Damaged(Violation { kind: ViolationKind::Alien, detail });
        }
        // Where it is in every version, the one that is not there was taken away.
        None if history.versions.iter().all(|version| version.contains_key(file)) => {
            let detail = format!("{name} is not there");
            return Found::Damaged(Violation { kind: ViolationKind::Missing, detail });
        }
        None => return Found::Whole,
    };
    let all = history.versions.iter();
    if all.clone().any(|version| version.get(file).is_some_and(|one| one.fits(bytes))) {
        return Found::Whole;
    }
    let versions: Vec<&[u8]> =
        all.filter_map(|version| Some(&version.get(file)?.bytes[..])).collect();
    let json = history.is_json(file);
    let violation = describe::damage(&file.display().to_string(), bytes, &versions, json);
    match oracle::differs_for_certain(violation.kind, json, bytes) {
        true => Found::Damaged(violation),
        // What is JSON to its end is no mixture.
        false if json => Found::Whole,
        false => Found::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::fault::Fault;
    use crate::outcome::{Check, CheckKind};

    #[test]
    fn a_number_is_another_only_where_it_stands_by_itself() {
        assert_eq!(renumbered("pid=41\n", 41, 999).as_deref(), Some("pid=999\n"));
        assert_eq!(renumbered("4100", 4100, 7).as_deref(), Some("7"));
        assert_eq!(
            renumbered("process 0000000041", 41, 999).as_deref(),
            Some("process 0000000999")
        );
        assert_eq!(renumbered("1410 and 4.1", 41, 999), None);
    }

    #[test]
    fn none_meets_one_that_has_not_begun() {
        assert_eq!(all(1), []);
        assert_eq!(all(3).len(), 6);
        assert_eq!(drawn(1, Seed(1), 5), []);
    }

    #[test]
    fn drawn_meetings_have_all_numbers_of_switches_and_are_drawn_once() {
        let meetings = drawn(12, Seed(1), 200);
        assert_eq!(meetings, drawn(12, Seed(1), 200));
        assert_ne!(meetings, drawn(12, Seed(2), 200));
        assert_eq!(meetings[..50], drawn(12, Seed(1), 50));
        for Meeting { before, turns, .. } in &meetings {
            assert!((1..12).contains(before) && turns.iter().all(|ops| *ops > 0));
            assert!((1..24).contains(&turns.iter().sum::<u32>()));
        }
        for switches in 1..12 {
            assert!(meetings.iter().any(|one| one.turns.len() == switches), "{switches}");
        }
        for then in [Then::GoesOn, Then::BothAreKilled] {
            assert_eq!(meetings.iter().filter(|one| one.then == then).count(), 100);
        }
    }

    #[test]
    fn a_meeting_is_told_turn_by_turn() {
        let told =
            |turns: &[u32], then| Meeting { before: 3, turns: turns.to_vec(), then }.to_string();
        assert_eq!(
            told(&[], Then::IsKilled),
            "another process saves before op 3 of the first, which then is killed"
        );
        assert_eq!(
            told(&[5, 1], Then::GoesOn),
            "before op 3 of the first, another process makes 5 ops, the first 1, and the other goes to its \
             end; the first goes on"
        );
        assert_eq!(
            told(&[5, 1, 2], Then::BothAreKilled),
            "before op 3 of the first, another process makes 5 ops, the first 1, the other 2, and both are \
             killed"
        );
    }

    /// What comes of a meeting of a program that saves two texts, or two JSON documents, and leaves this.
    fn judged(versions: [&str; 2], left: &[u8], load: Load, check: Option<&str>) -> Verdict {
        let (file, meeting) = (std::path::PathBuf::from("s"), all(2).remove(0));
        let files = versions.map(|text| BTreeMap::from([(file.clone(), text.as_bytes().to_vec())]));
        let [before, after] = files;
        let history = History::of_ends(before, after);
        let second = Second { acks: 1, exit: Exit::Status(0) };
        let injection = Injection::At(Struck::Met { second });
        let mut outcome =
            Outcome::new(Fault::Concurrent(meeting.clone()), injection, Exit::Status(0));
        outcome.survivor.files.insert(file, Content::Bytes(left.to_vec()));
        outcome.recovery.load = load;
        outcome.checks = check
            .map(|complaint| Check {
                kind: CheckKind::Command,
                complaint: Some(complaint.to_owned()).filter(|text| !text.is_empty()),
            })
            .into_iter()
            .collect();
        judge(&outcome, &history, &meeting)
    }

    #[test]
    fn what_is_no_version_is_judged_by_a_check_or_a_load_or_not_at_all() {
        let unknown = Verdict::Inconclusive(Why::NotComparable);
        let texts = ["n=1;", "n=2;"];
        let kind = |verdict: Verdict| match verdict {
            Verdict::Violated(found) => Some(found[0].kind),
            _ => None,
        };
        assert_eq!(judged(texts, b"n=2;", Load::NotTried, None), Verdict::Pass);
        assert_eq!(judged(texts, b"n=7;", Load::NotTried, None), unknown);
        assert_eq!(judged(texts, b"n=7;", Load::Loaded, None), Verdict::Pass);
        assert_eq!(judged(texts, b"n=7;", Load::NotTried, Some("")), Verdict::Pass);
        let failed = kind(judged(texts, b"n=7;", Load::NotTried, Some("no")));
        assert_eq!(failed, Some(ViolationKind::CheckFailed));
        assert_eq!(kind(judged(texts, b"", Load::NotTried, None)), Some(ViolationKind::Empty));
        let json = ["{\"n\":1}", "{\"n\":2}"];
        assert_eq!(judged(json, b"{\"n\":7}", Load::NotTried, None), Verdict::Pass);
        let mixed = kind(judged(json, b"{\"n\":7}}", Load::NotTried, None));
        assert!(mixed.is_some(), "{mixed:?}");
    }

    #[test]
    fn a_second_that_something_else_has_killed_says_nothing() {
        let meeting = all(2).remove(0);
        let second = Second { acks: 0, exit: Exit::Signal(libc::SIGKILL) };
        let injection = Injection::At(Struck::Met { second });
        let fault = Fault::Concurrent(meeting.clone());
        let outcome = Outcome::new(fault, injection, Exit::Status(0));
        let history = History::of_ends(BTreeMap::new(), BTreeMap::new());
        let verdict = judge(&outcome, &history, &meeting);
        assert_eq!(verdict, Verdict::Inconclusive(Why::DiedOtherwise));
    }
}
