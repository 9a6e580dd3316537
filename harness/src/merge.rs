//! Runs that are read again: one, for a report of it, or the parts of one, for the report that a single
//! machine would have made of all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::Path;

use crate::assemble::{self, Found, Recalled, Refused};
use crate::error::{Context, Error, Result};
use crate::lab;
use crate::planned::Plan;
use crate::report::harmless::escaped;
use crate::report::{Report, Row};
use crate::results::{self, RunDirectory};
use crate::run;
use crate::shard::Shard;

/// A run, or a part of one, as it is kept.
pub struct Part {
    directory: RunDirectory,
    plan: Plan,
    /// What it said at its end, if it came to one.
    report: Option<Report>,
}

impl Part {
    /// Opens one; one that was changed since it ended is refused.
    pub fn open(directory: RunDirectory) -> Result<Self> {
        let plan = directory.read_plan()?;
        let report = match directory.has_report() {
            true => Some(directory.read_report()?),
            false => None,
        };
        if let Some(report) = &report
            && report.checksum != directory.checksum()?
        {
            let what =
                format!("the outcomes in {} are not as they were written", called(&directory));
            return Err(
                Error::usage(what).help("they were cut short or edited; run the scenario again")
            );
        }
        Ok(Self { directory, plan, report })
    }

    fn is_complete(&self) -> bool {
        self.report.as_ref().is_some_and(|report| report.complete)
    }
}

fn called(directory: &RunDirectory) -> String {
    run::shown(directory.path())
}

/// Reads a run again.
pub fn read(directory: RunDirectory) -> Result<Report> {
    let part = Part::open(directory)?;
    let (plan, directory) = (part.plan.clone(), part.directory.clone());
    let (rows, whole) = rows(&plan, std::slice::from_ref(&part), &mut |_| Ok(()))?;
    if let Some(said) = part.report.as_ref().filter(|report| report.complete)
        && said.subjects.iter().map(|row| &row.tally).ne(rows.iter().map(|row| &row.tally))
    {
        let what =
            format!("report.json in {} does not say what its outcomes do", called(&directory));
        return Err(Error::usage(what).help("it was edited; run the scenario again"));
    }
    let mut report = head(&plan, &[part], &directory)?;
    (report.subjects, report.complete) = (rows, report.complete && whole);
    Ok(report)
}

/// Puts the parts of a run together, in a new directory below `root`; with `partial` even if some are
/// missing.
pub fn merge(directories: Vec<RunDirectory>, root: &Path, partial: bool) -> Result<Report> {
    let parts = directories.into_iter().map(Part::open).collect::<Result<Vec<_>>>()?;
    let parts = in_order(parts)?;
    let Some(first) = parts.first() else {
        return Err(
            Error::usage("there is nothing to merge").help("name the directories of the shards")
        );
    };
    let missing = missing(&parts, first.plan.shard.of());
    if !missing.is_empty() && !partial {
        return Err(Error::usage(format!(
            "of {} shards {}",
            first.plan.shard.of(),
            missing.join("; ")
        ))
        .help("run those by the same command, or say --partial for what there is"));
    }
    let mut plan = Plan { shard: Shard::default(), ..first.plan.clone() };
    let kernels: BTreeSet<_> = parts.iter().map(|part| part.plan.kernel.as_str()).collect();
    plan.kernel = kernels.into_iter().collect::<Vec<_>>().join(", ");
    let scenario = &plan.asked.scenario.name;
    let directory = RunDirectory::create(root, scenario, Shard::default())?;
    let merged = merge_into(&directory, &plan, &parts, missing.is_empty());
    if merged.is_err() {
        // Half a run would be found by whoever looks for all of them.
        let _ = fs::remove_dir_all(directory.path());
    }
    merged
}

/// Puts parts together in a directory of their own.
fn merge_into(directory: &RunDirectory, plan: &Plan, parts: &[Part], all: bool) -> Result<Report> {
    directory.write_plan(plan)?;
    let mut log = match plan.asked.fault.is_power() {
        true => directory.append_units()?,
        false => directory.append_all_outcomes()?,
    };
    let (rows, whole) =
        rows(plan, parts, &mut |line| log.write_all(line).context("keep an outcome"))?;
    log.flush().and_then(|()| log.get_ref().sync_all()).context("keep the outcomes")?;
    for id in named(&rows) {
        if !results::is_id(id) {
            let what = format!("`{}` is no id of a violation", escaped(id));
            return Err(
                Error::usage(what).help("the results were changed by hand; run the scenario again")
            );
        }
        let from = parts.iter().map(|part| part.directory.violation(id)).find(|path| path.is_dir());
        let Some(from) = from else { continue };
        let to = directory.violation(id);
        let copied = fs::create_dir_all(&to).and_then(|()| lab::copy_users(&from, &to, u64::MAX));
        copied.context(format_args!("copy {}", from.display()))?;
    }
    let mut report = head(plan, parts, directory)?;
    report.complete = whole && all;
    report.subjects = rows;
    directory.write_report(&report)?;
    Ok(report)
}

/// The ids of all violations that a report names.
fn named(rows: &[Row]) -> BTreeSet<&str> {
    let kept = rows.iter().flat_map(|row| &row.kept).map(|line| line.id.as_str());
    let cells = rows.iter().flat_map(|row| &row.cells);
    kept.chain(cells.flat_map(|cell| &cell.findings).map(|finding| finding.id.as_str())).collect()
}

/// The parts by their number; what are not parts of one run is refused.
fn in_order(mut parts: Vec<Part>) -> Result<Vec<Part>> {
    parts.sort_by_key(|part| part.plan.shard);
    let Some(first) = parts.first() else { return Ok(parts) };
    for part in &parts {
        if let Some(why) = difference(&first.plan, &part.plan) {
            let (one, other) = (called(&first.directory), called(&part.directory));
            return Err(Error::usage(format!("{one} and {other} are not of one run: {why}"))
                .help("merge parts that were made by the same command with the same seed"));
        }
    }
    for pair in parts.windows(2) {
        if let [one, other] = pair
            && one.plan.shard == other.plan.shard
        {
            let (first, second) = (called(&one.directory), called(&other.directory));
            let what = format!("shard {} is there twice: {first} and {second}", one.plan.shard);
            return Err(Error::usage(what).help("leave one of them out"));
        }
    }
    Ok(parts)
}

/// Why two plans are not of one run, if they are not.
fn difference(one: &Plan, other: &Plan) -> Option<String> {
    if one.crashtest != other.crashtest {
        return Some(format!("crashtest {} and {}", one.crashtest, other.crashtest));
    }
    if one.shard.of() != other.shard.of() {
        return Some(format!("{} shards and {}", one.shard.of(), other.shard.of()));
    }
    if one.asked.seed != other.asked.seed {
        return Some(format!("seed {} and {}", one.asked.seed.0, other.asked.seed.0));
    }
    if one.asked.scenario.name != other.asked.scenario.name {
        let (one, other) = (&one.asked.scenario.name, &other.asked.scenario.name);
        return Some(format!("scenario {one} and {other}"));
    }
    if one.asked != other.asked {
        return Some("other options".to_owned());
    }
    let names = |plan: &Plan| plan.subjects.iter().map(|s| s.name.clone()).collect::<Vec<_>>();
    if names(one) != names(other) {
        return Some(format!("{} and {}", names(one).join(", "), names(other).join(", ")));
    }
    for (a, b) in one.subjects.iter().zip(&other.subjects) {
        if a.subject != b.subject {
            return Some(format!("`{}` is started in another way", a.name));
        }
        if a.files != b.files {
            return Some(format!("`{}` is another program", a.name));
        }
    }
    (one.id != other.id).then(|| {
        "an unbroken run did other things: its trials are not the same on both machines".to_owned()
    })
}

/// What of a run in so many parts is not there, in words.
fn missing(parts: &[Part], of: u32) -> Vec<String> {
    let there: BTreeSet<u32> = parts.iter().map(|part| part.plan.shard.index()).collect();
    let absent: Vec<_> =
        (0..of).filter(|n| !there.contains(n)).map(|n| (n + 1).to_string()).collect();
    let cut = parts.iter().filter(|part| !part.is_complete());
    let cut: Vec<_> = cut.map(|part| (part.plan.shard.index() + 1).to_string()).collect();
    let mut words = Vec::new();
    if !absent.is_empty() {
        words.push(format!("{} missing: {}", are(absent.len()), absent.join(", ")));
    }
    if !cut.is_empty() {
        words.push(format!("{} cut short: {}", are(cut.len()), cut.join(", ")));
    }
    words
}

fn are(count: usize) -> String {
    if count == 1 { "1 is".to_owned() } else { format!("{count} are") }
}

/// The rows of all parts together, and whether no trial is missing; `keep` gets each line.
fn rows(
    plan: &Plan,
    parts: &[Part],
    keep: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<(Vec<Row>, bool)> {
    if plan.asked.fault.is_power() {
        let mut found: BTreeMap<u64, Found> = BTreeMap::new();
        for part in parts {
            part.directory.read_unit_lines(|unit, line| {
                if !part.plan.shard.owns(unit.unit) || found.contains_key(&unit.unit) {
                    return Err(foreign(part, unit.unit));
                }
                found.insert(unit.unit, unit.found);
                keep(line)
            })?;
        }
        let own = (0..assemble::units(plan)).filter(|n| plan.shard.owns(*n)).count();
        let whole = own == found.len();
        return Ok((assemble::power_rows(plan, found), whole));
    }
    let mut recalled = Recalled::new(plan);
    let shared = !plan.asked.fault.is_swept();
    for part in parts {
        part.directory.read_outcomes(|record, line| {
            let strange = shared && !part.plan.shard.owns(record.n);
            match recalled.enter(&record) {
                Ok(()) if !strange => keep(line),
                Err(Refused::Twice) => {
                    let what = format!("trial {} is there twice", record.n);
                    Err(Error::usage(what).help("the results were changed by hand, or mixed"))
                }
                Ok(()) | Err(Refused::Foreign) => Err(foreign(part, record.n)),
            }
        })?;
    }
    let (books, agenda, missing) = recalled.finish();
    Ok((assemble::trial_rows(plan, books, &agenda), missing == 0))
}

fn foreign(part: &Part, n: u64) -> Error {
    Error::usage(format!("{}: trial {n} is not of its plan", called(&part.directory)))
        .help("the results were changed by hand, or mixed; run the scenario again")
}

/// All of a report but its rows: what was said of the parts at their ends.
fn head(plan: &Plan, parts: &[Part], directory: &RunDirectory) -> Result<Report> {
    let said = || parts.iter().filter_map(|part| part.report.as_ref());
    let systems: BTreeSet<_> = said().map(|report| report.file_system.as_str()).collect();
    Ok(Report {
        schema: results::SCHEMA,
        crashtest: plan.crashtest.clone(),
        scenario: plan.asked.scenario.name.clone(),
        plan: plan.id.clone(),
        shard: plan.shard,
        merged: parts.first().map(|part| part.plan.shard.of()).filter(|of| *of > plan.shard.of()),
        checksum: directory.checksum()?,
        seed: plan.asked.seed,
        command_line: plan.command_line.clone(),
        kernel: plan.kernel.clone(),
        file_system: systems.into_iter().collect::<Vec<_>>().join(", "),
        jobs: said().map(|report| report.jobs).sum(),
        elapsed_ms: said().map(|report| report.elapsed_ms).max().unwrap_or(0),
        trials_now: said().map(|report| report.trials_now).sum(),
        complete: parts.iter().all(Part::is_complete),
        directory: called(directory),
        promises: plan.asked.promises.clone(),
        subjects: Vec::new(),
    })
}
