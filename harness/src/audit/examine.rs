//! Runs what an audit is made of, and puts the document together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::advice;
use super::areas;
use super::facts::Facts;
use super::language::Language;
use super::risk;
use super::words::told;
use super::{Audit, Compared, Made, Rate, SCHEMA};
use crate::all::{self, ALL, All, One};
use crate::cli;
use crate::error::{Error, Result};
use crate::fault::FaultKind;
use crate::inject::checks::quoted;
use crate::lab::Lab;
use crate::locate::{self, Located};
use crate::plan::Planner;
use crate::prepare;
use crate::program::unknown;
use crate::report::Report;
use crate::request::{new_seed, request};
use crate::results::{self, Kept};
use crate::run::{Request, kernel};
use crate::scenario::Scenario;
use crate::shard::Shard;
use crate::source;
use crate::subject::{Prepared, Subject};

/// The strategy that is recommended, and that "after" is measured with.
const RECOMMENDED: &str = "managed";

/// Audits what the command line names; `tell` hears of each scenario before it begins.
pub fn audit(options: &cli::Audit, tell: &mut dyn FnMut(&Request) -> Result<()>) -> Result<Audit> {
    let hints = options.source.as_deref().map(source::look).transpose()?.unwrap_or_default();
    let strategy = options.strategy.clone().into_iter().collect();
    Ok(Audit { hints, ..examine(&options.examined, strategy, true, tell)? })
}

/// Examines a program, or a strategy; and, to be compared with it, the one that is recommended.
pub fn examine(
    options: &cli::Examined,
    strategy: Vec<String>,
    compare: bool,
    tell: &mut dyn FnMut(&Request) -> Result<()>,
) -> Result<Audit> {
    let mut wanted = wanted(options, strategy)?;
    let only = if options.scenario.is_empty() { &options.usual } else { &options.scenario };
    for name in options.scenario.iter().filter(|_| !options.program.is_empty()) {
        if let Some((what, help)) = unknown(&options.about, &Scenario::find(name)?) {
            return Err(Error::usage(format!("{name}: {what}")).help(help));
        }
    }
    // The strategy is another row of the same runs; of a program it takes runs of its own.
    let of_program = wanted.strategy.is_empty();
    if !of_program && wanted.strategy != [RECOMMENDED] {
        wanted.strategy.push(RECOMMENDED.to_owned());
    }
    let before = all::run(&wanted, only, tell)?;
    let after = match of_program && compare {
        true => Some(all::run(&recommended(&wanted), only, tell)?),
        false => None,
    };
    if before.reports().any(|report| !report.complete) {
        return Err(Error { message: "interrupted".to_owned(), ..Error::interrupted() });
    }
    let skipped: Vec<_> =
        skipped(&before).iter().map(|(name, why)| format!("{name}: {why}")).collect();
    // A scenario that was asked for by its name is not passed over; and without any nothing is known.
    if before.reports().next().is_none() || (!skipped.is_empty() && !options.scenario.is_empty()) {
        return Err(Error::lacking(format!("not run: {}", skipped.join("; ")))
            .help("`crashtest doctor` says what this machine can do; --scenario names others"));
    }
    let request =
        request(&cli::Run { scenario: "sigkill".to_owned(), images_max: None, ..wanted.clone() })?;
    let (name, subject) = &request.subjects[0];
    let lab = Lab::new(options.dir.as_deref())?;
    let planner = |sites| {
        Planner::new(request.asked.seed, 0, FaultKind::Kill, request.asked.granularity, sites)
    };
    let prepared = prepare::prepare(name, subject, &lab, FaultKind::Kill, planner)?;
    let kept = kept(&before);
    let located = match compare || !kept.is_empty() {
        true => located(subject, &prepared, &lab)?,
        // Nobody asks for the lines of a program that is sound.
        false => unlocated(&prepared, "it was not asked"),
    };
    let facts = Facts {
        name,
        all: &before,
        kept,
        trace: &prepared.trace,
        state: prepared.history.files().into_iter().cloned().collect(),
        replaces: prepared.history.versions.first().is_some_and(|first| !first.is_empty()),
        located: &located,
        replay: replay(&options.results.root),
    };
    let language = match subject {
        Subject::Command(command) => Language::of(&command.argv),
        Subject::BuiltIn { .. } | Subject::Recorded { .. } => Some(Language::Rust),
    };
    let after = after.as_ref();
    let all = before.reports().chain(after.into_iter().flat_map(All::reports));
    let made = made(&request, &all.collect::<Vec<_>>());
    document(&facts, &prepared, (language, made), after.unwrap_or(&before))
}

fn made(request: &Request, all: &[&Report]) -> Made {
    Made {
        crashtest: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: kernel(),
        seed: request.asked.seed,
        command_line: request.command_line.clone(),
        trials: all.iter().flat_map(|r| &r.subjects).map(|row| row.tally.trials()).sum(),
        broken: all.iter().flat_map(|r| &r.subjects).map(|row| row.tally.failed()).sum(),
        elapsed_ms: all.iter().map(|report| report.elapsed_ms).sum(),
    }
}

/// The options of the runs.
fn wanted(options: &cli::Examined, strategy: Vec<String>) -> Result<cli::Run> {
    Ok(cli::Run {
        scenario: ALL.to_owned(),
        strategy,
        seed: Some(options.seed.map_or_else(new_seed, Ok)?),
        trials: options.trials,
        drawn: options.drawn,
        images_max: options.images_max,
        jobs: options.jobs,
        dir: options.dir.clone(),
        // A scheduler may have shared out the tests, and each asks for all that there is.
        shard: Some(Shard::default()),
        quiet: options.quiet,
        results: options.results.clone(),
        about: options.about.clone(),
        program: options.program.clone(),
        ..cli::Run::default()
    })
}

/// The same runs, of the recommended strategy.
fn recommended(wanted: &cli::Run) -> cli::Run {
    let strategy = vec![RECOMMENDED.to_owned()];
    cli::Run { strategy, program: Vec::new(), about: cli::About::default(), ..wanted.clone() }
}

/// Where the program makes its calls; of a strategy that is not asked, it is built in.
fn located(subject: &Subject, prepared: &Prepared, lab: &Lab) -> Result<Located> {
    match subject {
        Subject::Command(command) => Ok(locate::locate(command, lab)?.seen_from_here()),
        Subject::BuiltIn { .. } | Subject::Recorded { .. } => {
            Ok(unlocated(prepared, "it is a built-in strategy: `targets/src/strategy.rs`"))
        }
    }
}

fn unlocated(prepared: &Prepared, why: &str) -> Located {
    Located {
        trace: prepared.trace.clone(),
        stacks: vec![Vec::new(); prepared.trace.ops.len()],
        unknown: Some(why.to_owned()),
    }
}

/// All violations that the runs have kept.
fn kept(all: &All) -> BTreeMap<String, Kept> {
    // Reports name their directories from here, if they lie below.
    let directories = all.reports().map(|report| PathBuf::from(&report.directory));
    let kept = directories.flat_map(|directory| results::kept(&directory));
    kept.map(|kept| (kept.id.clone(), kept)).collect()
}

/// What stands before and after an id in the command that replays it.
fn replay(root: &Path) -> (String, String) {
    let default = root == Path::new(results::DEFAULT_ROOT);
    let root = quoted(&root.to_string_lossy());
    let place = if default { String::new() } else { format!(" --results {root}") };
    ("crashtest replay".to_owned(), place)
}

fn document(
    facts: &Facts<'_>,
    prepared: &Prepared,
    (language, made): (Option<Language>, Made),
    after: &All,
) -> Result<Audit> {
    let rest = prepare::rest(prepared)?;
    let last = prepared.history.versions.last();
    let bytes = last.map_or(0, |files| files.values().map(|one| one.bytes.len() as u64).sum());
    let copies: Vec<PathBuf> = rest.copies.iter().map(|(path, _)| path.clone()).collect();
    let saves = facts.saves(prepared.history.versions.len().saturating_sub(1), bytes, &copies);
    let areas = areas::areas(facts, &saves);
    let risks = areas::risks(facts);
    let skipped = skipped(facts.all);
    let only: Vec<_> = risks.iter().map(|(risk, _)| risk.clone()).collect();
    let (status, risk, rule) =
        risk::status(&only, (facts.all.reports().count(), skipped.len()), areas::is_unclear(facts));
    Ok(Audit {
        schema: SCHEMA,
        made,
        subject: facts.name.to_owned(),
        language,
        status,
        risk,
        rule,
        recommendations: advice::recommendations(&risks, &areas, &skipped, language),
        scenarios: compared(facts, after),
        risks: only,
        saves,
        areas,
        recommended: RECOMMENDED.to_owned(),
        hints: Vec::new(),
        unclear: areas::is_unclear(facts),
        notes: notes(facts.all),
        skipped: skipped.into_iter().map(|(name, why)| (name.to_owned(), why.to_owned())).collect(),
    })
}

/// What the runs say besides, each once.
fn notes(all: &All) -> Vec<String> {
    let notes = all.reports().flat_map(|report| &report.subjects).flat_map(|row| &row.notes);
    let notes: std::collections::BTreeSet<_> = notes.collect();
    notes.into_iter().cloned().collect()
}

/// The scenarios that were not run, and why.
fn skipped(all: &All) -> Vec<(&str, &str)> {
    let why = all.scenarios.iter().filter_map(|(name, one)| match one {
        One::Skipped(why) => Some((name.as_str(), why.as_str())),
        One::Ran(_) => None,
    });
    why.collect()
}

/// Each scenario before and after.
fn compared(facts: &Facts<'_>, after: &All) -> Vec<Compared> {
    let scenarios = facts.all.scenarios.iter().map(|(name, _)| name);
    let row = |scenario: &String| Compared {
        scenario: scenario.clone(),
        story: told(scenario).story.to_owned(),
        before: rate(facts.all, scenario, facts.name),
        after: rate(after, scenario, RECOMMENDED),
    };
    scenarios.map(row).collect()
}

fn rate(all: &All, scenario: &str, subject: &str) -> Rate {
    let one = all.scenarios.iter().find(|(name, _)| name == scenario).map(|(_, one)| one);
    match one {
        Some(One::Ran(report)) => match report.subjects.iter().find(|row| row.name == subject) {
            Some(row) => Rate::Of { passed: row.tally.passed, judged: row.tally.judged() },
            None => Rate::NotMeasured("it was not run".to_owned()),
        },
        Some(One::Skipped(why)) => Rate::NotMeasured(why.clone()),
        None => Rate::NotMeasured("it was not run".to_owned()),
    }
}
