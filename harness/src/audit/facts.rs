//! What an audit knows: the reports of all scenarios, what they kept, and what the program did unbroken.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{Example, Line, Saves};
use crate::all::{All, One};
use crate::fault::{Fault, Point, Strike};
use crate::locate::{Frame, Located};
use crate::op::{Effect, Op, Trace};
use crate::report::power::Finding;
use crate::report::{KeptLine, Report, Row};
use crate::results::Kept;
use crate::steps;
use crate::verdict::Promise;

/// How many lines of the source are listed, and how many calls of one save.
const LISTED_MAX: usize = 24;
/// How many copies and temporary names are listed.
const NAMES_MAX: usize = 3;

/// What is known of one program.
pub struct Facts<'a> {
    /// Its name in the reports.
    pub name: &'a str,
    /// The reports.
    pub all: &'a All,
    /// The violations that were kept, by id.
    pub kept: BTreeMap<String, Kept>,
    /// What it did unbroken.
    pub trace: &'a Trace,
    /// Its state files.
    pub state: Vec<PathBuf>,
    /// Whether there was a state before it saved for the first time.
    pub replaces: bool,
    /// Where in its source it did that.
    pub located: &'a Located,
    /// The beginning of the command that replays a trial, and its end.
    pub replay: (String, String),
}

/// One promise in one scenario, as it was measured.
pub struct Judged<'a> {
    /// The scenario.
    pub scenario: &'a str,
    /// The promise.
    pub promise: Promise,
    /// What was found.
    pub row: &'a Row,
    /// How often it was broken.
    pub broken: u64,
    /// Of how many trials, states or images that say something.
    pub of: u64,
}

impl Facts<'_> {
    /// The report of a scenario, and the program's row in it.
    #[must_use]
    pub fn report(&self, scenario: &str) -> Option<(&Report, &Row)> {
        let report = self.all.reports().find(|report| report.scenario == scenario)?;
        Some((report, report.subjects.iter().find(|row| row.name == self.name)?))
    }

    /// Why a scenario was not run, if it was not.
    #[must_use]
    pub fn skipped(&self, scenario: &str) -> Option<&str> {
        self.all.scenarios.iter().find_map(|(name, one)| match one {
            One::Skipped(why) if name == scenario => Some(why.as_str()),
            _ => None,
        })
    }

    /// What was measured of a promise in a scenario; none if it was not judged there.
    #[must_use]
    pub fn judged(&self, scenario: &str, promise: Promise) -> Option<Judged<'_>> {
        let (report, row) = self.report(scenario)?;
        let of = row.tally.judged();
        let broken = row.tally.broken.get(&promise).copied().unwrap_or(0);
        let scenario = report.scenario.as_str();
        (report.promises.contains(&promise) && of > 0).then_some(Judged {
            scenario,
            promise,
            row,
            broken,
            of,
        })
    }

    /// An example of a broken promise, with the place in the source that is to blame.
    #[must_use]
    pub fn example(&self, judged: &Judged<'_>) -> Option<Example> {
        let power = || self.finding(judged).map(|found| self.lost_power(found));
        self.kept_line(judged).and_then(|line| self.struck(line, judged.promise)).or_else(power)
    }

    /// The earliest violation that Linux itself can leave, or else the earliest.
    fn kept_line<'r>(&self, judged: &Judged<'r>) -> Option<&'r KeptLine> {
        let of_promise =
            judged.row.kept.iter().filter(|line| line.kind.promise() == judged.promise);
        of_promise.min_by_key(|line| (line.nature, line.n))
    }

    /// The cause with most crash states.
    fn finding<'r>(&self, judged: &Judged<'r>) -> Option<&'r Finding> {
        let causes = judged.row.cells.iter().flat_map(|cell| &cell.findings);
        let of_promise =
            causes.filter(|found| found.kinds.keys().any(|kind| kind.promise() == judged.promise));
        of_promise.max_by_key(|found| found.states)
    }

    fn struck(&self, line: &KeptLine, promise: Promise) -> Option<Example> {
        let kept = self.kept.get(&line.id)?;
        let violation =
            kept.violations.iter().find(|violation| violation.kind.promise() == promise)?;
        Some(Example {
            fault: kept.trial.fault.to_string(),
            detail: violation.detail.clone(),
            why: None,
            place: self.blamed(&kept.trial.fault, &violation.detail).and_then(|op| self.place(op)),
            replay: self.replay(&line.id),
        })
    }

    fn lost_power(&self, found: &Finding) -> Example {
        let why = &found.explanation;
        // What is durable too early is a line to change; else what is not durable yet.
        let op = why.durable.or(why.lost.first().copied());
        let op = op.or_else(|| self.changed_before(why.after_ops, &found.detail));
        let fault = match why.after_ops {
            0 => "the power goes at the start".to_owned(),
            1 => "the power goes when one op is done".to_owned(),
            n => format!("the power goes when {n} ops are done"),
        };
        Example {
            fault,
            detail: found.detail.clone(),
            why: Some(why.words.clone()),
            place: op.and_then(|op| self.place(op)),
            replay: self.replay(&found.id),
        }
    }

    fn replay(&self, id: &str) -> String {
        format!("{} {id}{}", self.replay.0, self.replay.1)
    }

    /// The op that has made of the state what a fault has left.
    fn blamed(&self, fault: &Fault, detail: &str) -> Option<usize> {
        match fault {
            Fault::Kill(Strike { op, point: Point::Before, .. }) => {
                self.changed_before(op.0, detail)
            }
            Fault::Kill(strike) | Fault::ShortWrite(strike) => Some(strike.op.0),
            Fault::Concurrent(meeting) => {
                self.changed_before(usize::try_from(meeting.before).ok()?, detail)
            }
            Fault::Errno(failing) => {
                let of_family = |(_, op): &(usize, &Op)| op.call.family() == failing.family;
                let place = usize::try_from(failing.nth).ok()?.checked_sub(1)?;
                Some(self.trace.ops.iter().enumerate().filter(of_family).nth(place)?.0)
            }
            // Whatever failed first, the state had been opened to be changed.
            Fault::DiskFull(_) => self.trace.ops.iter().position(|op| self.changes_state(op)),
            _ => None,
        }
    }

    /// The last op before this one that changed the state file that a sentence begins with.
    fn changed_before(&self, op: usize, detail: &str) -> Option<usize> {
        let before = self.trace.ops.get(..op).unwrap_or(&self.trace.ops);
        let named = |op: &Op| detail.starts_with(&op.effect.path().display().to_string());
        let of_it = before.iter().rposition(|op| self.changes_state(op) && named(op));
        of_it.or_else(|| before.iter().rposition(|op| self.changes_state(op)))
    }

    fn changes_state(&self, op: &Op) -> bool {
        let changes = match &op.effect {
            Effect::Open { create, truncate, .. } => *create || *truncate,
            Effect::Write { .. } | Effect::Truncate { .. } | Effect::Rename { .. } => true,
            _ => false,
        };
        changes && op.succeeded() && self.state.iter().any(|state| state == op.effect.path())
    }

    /// Where in its source the program makes an op of its unbroken run.
    #[must_use]
    pub fn place(&self, op: usize) -> Option<Frame> {
        let wanted = self.trace.ops.get(op)?;
        let ops = &self.located.trace.ops;
        let same = |(_, other): &(usize, &Op)| other.call == wanted.call && other.nth == wanted.nth;
        let alike = |(_, other): &(usize, &Op)| {
            other.call == wanted.call && other.effect.path() == wanted.effect.path()
        };
        let each = || ops.iter().enumerate();
        let found = each().find(same).filter(|found| alike(found)).or_else(|| each().find(alike));
        let found = found.or_else(|| each().find(same));
        found.and_then(|(index, _)| self.located.of(index)).cloned()
    }

    /// How it saves; `copies` are the files beside the state that hold a version of it.
    #[must_use]
    pub fn saves(&self, versions: usize, bytes: u64, copies: &[PathBuf]) -> Saves {
        let names = |paths: &mut dyn Iterator<Item = &PathBuf>| -> Vec<String> {
            let known: BTreeSet<_> = paths.map(|path| path.display().to_string()).collect();
            known.into_iter().take(NAMES_MAX).collect()
        };
        let mut temps = self.trace.ops.iter().filter_map(|op| match &op.effect {
            Effect::Rename { from, to, .. } if self.state.contains(to) => Some(from),
            _ => None,
        });
        Saves {
            files: names(&mut self.state.iter()),
            broken: names(&mut self.state.iter().filter(|path| self.is_broken(path))),
            versions,
            bytes,
            acks: self.trace.acks.len(),
            copies: names(&mut copies.iter()),
            temps: names(&mut temps),
            lines: self.lines(),
            lines_unknown: self.located.unknown.clone(),
            calls: self.calls(),
            of_one: self.one_save().is_some(),
        }
    }

    /// Whether a kept violation names a state file.
    fn is_broken(&self, path: &Path) -> bool {
        let name = path.display().to_string();
        let details = self.kept.values().flat_map(|kept| &kept.violations);
        details.into_iter().any(|violation| names_file(&violation.detail, &name))
    }

    /// The lines that make calls, in the order of their first ones.
    fn lines(&self) -> Vec<Line> {
        let mut lines: Vec<Line> = Vec::new();
        for (op, stack) in self.located.trace.ops.iter().zip(&self.located.stacks) {
            let (Some(frame), true) = (stack.first(), self.is_own(op.effect.path())) else {
                continue;
            };
            let place = lines.iter().position(|line| line.place == *frame).unwrap_or_else(|| {
                lines.push(Line { place: frame.clone(), calls: BTreeMap::new() });
                lines.len() - 1
            });
            *lines[place].calls.entry(op.call.name().to_owned()).or_default() += 1;
        }
        lines.truncate(LISTED_MAX);
        lines
    }

    /// Whether an op on this file is the program's saving.
    fn is_own(&self, path: &Path) -> bool {
        path.is_relative() || self.state.iter().any(|state| state == path)
    }

    /// The ops of the second save, which is like all that follow.
    fn one_save(&self) -> Option<(usize, usize)> {
        match self.trace.acks[..] {
            [first, second, ..] if second > first => Some((first, second)),
            _ => None,
        }
    }

    /// The calls of one save; without acks those at the start.
    fn calls(&self) -> Vec<String> {
        let (first, end) = self.one_save().unwrap_or((0, self.trace.ops.len()));
        let ops = self.trace.ops.iter().enumerate().take(end).skip(first);
        let line = |(index, op): (usize, &Op)| {
            let words = steps::call(op.call, &op.effect, op.written());
            let at = self.place(index).map_or(String::new(), |frame| format!("    # {frame}"));
            format!("{index:4}  {words} = {}{at}", op.result)
        };
        let mut calls: Vec<String> = ops.take(LISTED_MAX).map(line).collect();
        if end - first > LISTED_MAX {
            calls.push(format!("      and {} more", end - first - LISTED_MAX));
        }
        calls
    }
}

/// Whether a sentence names a file, and not another one whose name is longer.
fn names_file(sentence: &str, name: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || "._-/~".contains(c);
    sentence.match_indices(name).any(|(at, _)| {
        let before = sentence[..at].chars().next_back();
        let mut after = sentence[at + name.len()..].chars();
        // A dot or a dash may be the sentence's own.
        let longer = match (after.next(), after.next()) {
            (Some('.' | '-' | '~'), Some(next)) => is_part(next),
            (Some(next), _) => is_part(next) && !".-~".contains(next),
            (None, _) => false,
        };
        !before.is_some_and(is_part) && !longer
    })
}

/// Whether all that broke a promise was brought about where Linux itself cuts no write.
#[must_use]
pub fn forced_only(judged: &Judged<'_>) -> bool {
    let mut kinds =
        judged.row.tally.violated.iter().filter(|(kind, _)| kind.promise() == judged.promise);
    // A promise that breaks beside a more fundamental one is not counted by nature.
    judged.row.tally.violated.keys().any(|kind| kind.promise() == judged.promise)
        && kinds.all(|(_, count)| count.natural == 0)
}

/// The state files as they are named in sentences.
#[must_use]
pub fn listed(paths: &[impl AsRef<Path>]) -> String {
    let names: Vec<_> = paths.iter().map(|path| format!("`{}`", path.as_ref().display())).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_names_a_file_by_its_whole_name() {
        let cut = "state.json is cut short: 8185 of the 10990 bytes of version 1";
        assert!(names_file(cut, "state.json") && !names_file(cut, "json"));
        assert!(!names_file("state.json.bak is empty", "state.json"));
        assert!(!names_file("a/state.json is empty", "state.json"));
        assert!(names_file("version 4 of state.json.", "state.json"));
        assert!(names_file("left in /srv/state: torn", "/srv/state"));
    }
}
