//! Two reports compared: what got worse, so that chance does not fail a night and a broken promise does.
//!
//! A promise that was kept and is broken now got worse: one violation proves that it is broken, and it can be
//! replayed. Whether a promise that was broken before is broken more often now is tested: Fisher's exact test
//! of two proportions, one-sided (R. A. Fisher, 1935), at a level for all comparisons together (S. Holm,
//! Scandinavian Journal of Statistics 6, 1979). Where nothing is drawn there is no chance: of the same trials
//! each one counts, and of others, as crash states of a program that was changed, the share says nothing.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::all::{All, One};
use crate::error::{Error, Result};
use crate::exit_status::ExitStatus;
use crate::report::power::Cell;
use crate::report::{Report, Row};
use crate::tally::Tally;
use crate::verdict::Promise;

/// The version of this format.
pub const SCHEMA: u32 = 1;
/// How often chance may look like something that got worse, in all comparisons of a night together.
pub const ALPHA: f64 = 0.01;

/// What is another in the second report than in the first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Comparison {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Whether something got worse.
    pub worse: bool,
    /// How often chance may look like that.
    pub alpha: f64,
    /// Each promise of each subject in each scenario.
    pub lines: Vec<Line>,
    /// What was judged before and is not any more, in words.
    pub gone: Vec<String>,
    /// What was not judged before, in words.
    pub new: Vec<String>,
}

/// A promise of a subject in a scenario, before and after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Line {
    /// The scenario, and the profile or file system if there are several.
    pub scenario: String,
    /// The subject.
    pub subject: String,
    /// The promise.
    pub promise: Promise,
    /// In how many it was broken before, and of how many.
    pub before: (u64, u64),
    /// The same now.
    pub after: (u64, u64),
    /// How likely it is to see this many or more now by chance, 0 to 1; none of what is not drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p: Option<f64>,
    /// Whether nothing was drawn and the trials are the same, so that each count can be compared.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub same_trials: bool,
    /// What that says.
    pub change: Change,
    /// With which a violation is replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<String>,
    /// What would have helped, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// What became of a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It was kept, and is broken.
    NewlyBroken,
    /// It is broken more often, by more than chance.
    Worse,
    /// Nothing, or no more than chance.
    Same,
    /// It is broken less often, by more than chance.
    Better,
    /// It was broken, and is kept.
    Mended,
}

impl Change {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NewlyBroken => "NEWLY BROKEN",
            Self::Worse => "WORSE",
            Self::Same => "same",
            Self::Better => "better",
            Self::Mended => "mended",
        }
    }
}

/// Refuses what says something else than a run of its own would: parts of a run, and runs that were
/// interrupted, have other rates than the whole, and of two of one name it can't be said which is meant.
pub fn comparable(all: &All, name: &str) -> Result<()> {
    for report in all.reports() {
        let what = match () {
            () if !report.shard.is_whole() => format!("is shard {} of a run", report.shard),
            () if !report.complete => "is not complete".to_owned(),
            () => continue,
        };
        return Err(Error::usage(format!("{name} can't be compared: {} {what}", report.scenario))
            .help("go on with it (`run --resume`), or merge all of its shards"));
    }
    let counted = counted(all);
    for (n, one) in counted.iter().enumerate() {
        let (scenario, subject) = (&one.scenario, one.subject);
        if counted[..n].iter().any(|other| (&other.scenario, other.subject) == (scenario, subject))
        {
            return Err(Error::usage(format!(
                "{name} can't be compared: {subject} is there twice in {scenario}"
            ))
            .help("compare one run at a time, or tell them apart by --name"));
        }
        let most = one.tally.broken.values().max().copied().unwrap_or(0);
        if most > one.tally.judged() {
            let what = format!(
                "{name} is no report: {subject} in {scenario} broke more often than it was judged"
            );
            return Err(Error::usage(what).help("it was edited; write it anew"));
        }
    }
    Ok(())
}

/// What is counted together: all of a subject in a scenario, or on one profile of it.
struct Counted<'a> {
    scenario: String,
    subject: &'a str,
    tally: &'a Tally,
    report: &'a Report,
    row: &'a Row,
    cell: Option<&'a Cell>,
}

/// Compares; `alpha` is how often chance may look like something that got worse.
#[must_use]
pub fn compare(before: &All, after: &All, alpha: f64) -> Comparison {
    let (old, now) = (counted(before), counted(after));
    let same =
        |a: &Counted<'_>, b: &Counted<'_>| (&a.scenario, a.subject) == (&b.scenario, b.subject);
    let (mut lines, mut gone, mut new) = (Vec::new(), Vec::new(), Vec::new());
    for one in &old {
        let Some(other) = now.iter().find(|other| same(one, other)) else {
            if one.tally.judged() > 0 {
                gone.push(format!("{} in {}", one.subject, one.scenario));
            }
            continue;
        };
        for promise in &one.report.promises {
            match (one.tally.judged(), other.tally.judged()) {
                (0, 0) => {}
                (0, _) => {
                    new.push(format!("{} of {} in {}", promise.name(), one.subject, one.scenario))
                }
                (_, judged) if judged == 0 || !other.report.promises.contains(promise) => {
                    gone.push(format!("{} of {} in {}", promise.name(), one.subject, one.scenario));
                }
                _ => lines.push(line(one, other, *promise)),
            }
        }
    }
    for one in &now {
        let known = old.iter().find(|other| same(one, other));
        match known {
            None => new.push(format!("{} in {}", one.subject, one.scenario)),
            Some(known) => {
                let more = one.report.promises.difference(&known.report.promises);
                new.extend(
                    more.map(|p| format!("{} of {} in {}", p.name(), one.subject, one.scenario)),
                );
            }
        }
    }
    for (name, one) in &before.scenarios {
        let ran =
            |all: &All| all.scenarios.iter().any(|(n, o)| n == name && matches!(o, One::Ran(_)));
        if matches!(one, One::Ran(_))
            && !ran(after)
            && !gone.iter().any(|g| g.ends_with(name.as_str()))
        {
            gone.push(name.clone());
        }
    }
    judge(&mut lines, alpha);
    let bad = |line: &Line| matches!(line.change, Change::NewlyBroken | Change::Worse);
    let worse = !gone.is_empty() || lines.iter().any(bad);
    Comparison { schema: SCHEMA, worse, alpha, lines, gone, new }
}

/// All that is counted together in all reports.
fn counted(all: &All) -> Vec<Counted<'_>> {
    let mut counted = Vec::new();
    for report in all.reports() {
        for row in &report.subjects {
            let subject = row.name.as_str();
            if row.cells.is_empty() {
                let scenario = report.scenario.clone();
                counted.push(Counted {
                    scenario,
                    subject,
                    tally: &row.tally,
                    report,
                    row,
                    cell: None,
                });
            }
            for cell in &row.cells {
                let scenario = format!("{} on {}", report.scenario, cell.profile);
                let tally = &cell.tally;
                counted.push(Counted { scenario, subject, tally, report, row, cell: Some(cell) });
            }
        }
    }
    counted
}

fn line(one: &Counted<'_>, other: &Counted<'_>, promise: Promise) -> Line {
    let counts =
        |of: &Counted<'_>| (of.tally.broken.get(&promise).copied().unwrap_or(0), of.tally.judged());
    let (before, after) = (counts(one), counts(other));
    // Of a file system one on that, and no other.
    let findings = other.cell.into_iter().flat_map(|cell| &cell.findings);
    let finding = findings.into_iter().find(|finding| finding.kind.promise() == promise);
    let example = match other.cell {
        Some(_) => finding.map(|finding| finding.id.as_str()),
        None => crate::report::next::example(other.row, promise),
    };
    let remedy = finding.map(|finding| finding.explanation.remedy.words().to_owned());
    let replay = example.map(|id| {
        let (command, place) =
            (crate::report::table::called(other.report), crate::report::table::place(other.report));
        format!("{command} replay {id}{place}")
    });
    Line {
        scenario: one.scenario.clone(),
        subject: one.subject.to_owned(),
        promise,
        before,
        after,
        p: (one.row.is_drawn() && other.row.is_drawn()).then(|| at_least(before, after)),
        same_trials: !one.row.is_drawn() && one.report.plan == other.report.plan,
        change: Change::Same,
        replay: replay.filter(|_| after.0 > 0),
        remedy: remedy.filter(|_| after.0 > 0),
    }
}

/// Says of each line what changed.
fn judge(lines: &mut [Line], alpha: f64) {
    for line in lines.iter_mut() {
        line.change = match (line.before.0, line.after.0) {
            (0, 1..) => Change::NewlyBroken,
            (1.., 0) => Change::Mended,
            (before, after) if line.same_trials && after > before => Change::Worse,
            (before, after) if line.same_trials && after < before => Change::Better,
            _ => Change::Same,
        };
    }
    let mut tested: Vec<(f64, &mut Line)> = Vec::new();
    for line in lines.iter_mut().filter(|line| line.before.0 > 0 && line.after.0 > 0) {
        if let Some(p) = line.p {
            tested.push((p, line));
        }
    }
    tested.sort_by(|a, b| a.0.total_cmp(&b.0));
    let count = tested.len();
    for (n, (p, line)) in tested.iter_mut().enumerate() {
        if !is_below(*p, alpha, count - n) {
            break;
        }
        line.change = Change::Worse;
    }
    for (_, line) in tested {
        if line.change == Change::Same && is_below(at_least(line.after, line.before), alpha, count)
        {
            line.change = Change::Better;
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "there are few comparisons")]
fn is_below(p: f64, alpha: f64, comparisons: usize) -> bool {
    p <= alpha / comparisons as f64
}

/// How likely it is to see as many broken in the second sample, or more, if both are of one kind: the tail of
/// the hypergeometric distribution. Samples are pairs of how many are broken and how many there are.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
pub fn at_least((broken, of): (u64, u64), (broken_now, of_now): (u64, u64)) -> f64 {
    let ln_choose = |n: u64, k: u64| {
        let ln_factorial = |n: u64| libm::lgamma(n as f64 + 1.0);
        ln_factorial(n) - ln_factorial(k) - ln_factorial(n - k)
    };
    let all = broken + broken_now;
    let most = all.min(of_now);
    let total = ln_choose(of + of_now, all);
    let exactly = |now: u64| (ln_choose(of, all - now) + ln_choose(of_now, now) - total).exp();
    let least = all.saturating_sub(of).max(broken_now);
    let mut sum = 0.0;
    for now in least..=most {
        let term = exactly(now);
        sum += term;
        // Past the middle terms only shrink.
        let middle = all as f64 * of_now as f64 / (of + of_now).max(1) as f64;
        if now as f64 > middle && term < sum * 1e-17 {
            break;
        }
    }
    sum.min(1.0)
}

/// Renders it for people.
#[must_use]
pub fn render(comparison: &Comparison) -> String {
    let mut text = String::new();
    let (mut lines, same): (Vec<_>, Vec<_>) =
        comparison.lines.iter().partition(|line| line.change != Change::Same);
    lines.sort_by_key(|line| line.change);
    for line in lines {
        let Line { scenario, subject, promise, before, after, p, change, replay, remedy, .. } =
            line;
        // Writing to a string can't fail.
        let _ = write!(
            text,
            "{}: {subject} in {scenario}: {} broken in {} of {}, before in {} of {}",
            change.name(),
            promise.name(),
            after.0,
            after.1,
            before.0,
            before.1
        );
        if let (Change::Worse, Some(p)) = (change, p) {
            let _ = write!(text, " (p = {p:.1e})");
        }
        for more in [remedy, replay].into_iter().flatten().filter(|_| *change <= Change::Worse) {
            let _ = write!(text, "\n  {more}");
        }
        text.push('\n');
    }
    for gone in &comparison.gone {
        let _ = writeln!(text, "NOT JUDGED ANY MORE: {gone}");
    }
    for new in &comparison.new {
        let _ = writeln!(text, "judged for the first time: {new}");
    }
    let _ = writeln!(
        text,
        "{}: {} promise{} compared, {} the same or no more than chance (level {} for all together)",
        if comparison.worse { "WORSE" } else { "no worse" },
        comparison.lines.len(),
        if comparison.lines.len() == 1 { "" } else { "s" },
        same.len(),
        comparison.alpha
    );
    text
}

/// With which status a run ends that is measured by an earlier one.
#[must_use]
pub fn status(after: &All, comparison: &Comparison) -> ExitStatus {
    // A promise that is broken hides that of something else nothing is known.
    let unclear = |report: &Report| report.status() == ExitStatus::NothingStruck;
    match after.status() {
        ExitStatus::AsExpected | ExitStatus::Unexpected
            if !comparison.worse && after.reports().any(unclear) =>
        {
            ExitStatus::NothingStruck
        }
        ExitStatus::AsExpected | ExitStatus::Unexpected if comparison.worse => {
            ExitStatus::Unexpected
        }
        ExitStatus::AsExpected | ExitStatus::Unexpected => ExitStatus::AsExpected,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_is_fishers() {
        // (35 * 9 + 21) of the 4368 tables with these margins.
        assert!((at_least((1, 9), (4, 7)) - 336.0 / 4368.0).abs() < 1e-12);
        assert!((at_least((0, 10), (1, 10)) - 0.5).abs() < 1e-12);
        assert!((at_least((0, 3), (3, 3)) - 0.05).abs() < 1e-12);
        assert!((at_least((5, 10), (0, 10)) - 1.0).abs() < 1e-9);
        assert!(at_least((500_000, 1_000_000), (510_000, 1_000_000)) < 1e-40);
        assert!(at_least((500_000, 1_000_000), (500_100, 1_000_000)) > 0.3);
    }

    #[test]
    fn every_sample_against_the_sum_over_all_tables() {
        // The tails of both sides overlap in the table itself.
        let choose = |n: u64, k: u64| (0..k).fold(1.0, |c, i| c * (n - i) as f64 / (i + 1) as f64);
        for (of, of_now) in [(5_u64, 7_u64), (12, 3), (9, 9)] {
            for broken in 0..=of {
                for now in 0..=of_now {
                    let all = broken + now;
                    let total = choose(of + of_now, all);
                    let tail: f64 = (now..=of_now.min(all))
                        .filter(|k| all - k <= of)
                        .map(|k| choose(of, all - k) * choose(of_now, k) / total)
                        .sum();
                    let found = at_least((broken, of), (now, of_now));
                    assert!((found - tail).abs() < 1e-9, "{broken}/{of} {now}/{of_now}");
                }
            }
        }
    }
}
