//! What is done with a report: printed, written in other forms, compared with an earlier one.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::all::{All, One};
use crate::cli;
use crate::compare::{self, Comparison};
use crate::error::{Context, Error, Result};
use crate::exit_status::ExitStatus;
use crate::merge;
use crate::os::process;
use crate::page;
use crate::report::harmless::harmless;
use crate::report::layout::Screen;
use crate::report::{self, Report, github, html, junit, summary, table};
use crate::results::{self, RunDirectory, SCHEMA};
use crate::tree;

/// Prints to stdout. Where the reader has gone away, ends the command as any other tool ends.
pub fn print(text: &str) -> Result<ExitStatus> {
    put(&mut std::io::stdout().lock(), text, "stdout").map(|()| ExitStatus::AsExpected)
}

/// Prints a line to stderr, as [`print`] does.
pub fn say(line: &str) -> Result<()> {
    put(&mut std::io::stderr().lock(), &format!("{line}\n"), "stderr")
}

fn put(to: &mut dyn Write, text: &str, name: &str) -> Result<()> {
    match to.write_all(text.as_bytes()).and_then(|()| to.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => process::end_by_pipe(),
        Err(error) => Err(Error::lacking(format!("cannot write to {name}: {error}"))
            .help("results are kept all the same: see `crashtest list runs`")),
    }
}

/// Prints something as JSON.
pub fn json(what: &impl serde::Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(what).context("write the report")?;
    print(&format!("{json}\n")).map(|_| ())
}

/// What came of one scenario, as of several.
#[must_use]
pub fn alone(report: Report) -> All {
    All { scenarios: vec![(report.scenario.clone(), One::Ran(Box::new(report)))] }
}

/// What a run is measured by besides the expectations of its scenario: read before it begins, so that it is
/// not in vain.
pub fn baseline(formats: &cli::Formats, root: &Path) -> Result<Option<All>> {
    let baseline = formats.baseline.as_deref().map(|name| read(name, root)).transpose()?;
    if let (Some(all), Some(name)) = (&baseline, &formats.baseline) {
        compare::comparable(all, name)?;
    }
    Ok(baseline)
}

/// Prints what was found and writes it in all forms that are asked for; says with which status that ends.
pub fn show(
    all: &All,
    formats: &cli::Formats,
    as_json: bool,
    baseline: Option<&All>,
) -> Result<ExitStatus> {
    // What is not all there can't be compared, and its status says so.
    let whole = all.reports().all(|report| report.complete && report.shard.is_whole());
    let comparison = match baseline.filter(|_| whole) {
        Some(before) => {
            compare::comparable(all, "this run")?;
            Some(compare::compare(before, all, compare::ALPHA))
        }
        None => None,
    };
    match (as_json, &all.scenarios[..]) {
        (true, [(_, One::Ran(report))]) => json(&**report)?,
        (true, _) => json(all)?,
        (false, [(_, One::Ran(report))]) => {
            let report = harmless(&**report)?;
            print(&table::render(&report, Screen::of_stdout()))?;
            say(&table::how(&report))?;
        }
        (false, _) => {
            print(&report::all::render(&harmless(all)?, Screen::of_stdout()))?;
        }
    }
    if let Some(comparison) = &comparison {
        let text =
            format!("compared with the baseline:\n{}", compare::render(&harmless(comparison)?));
        beside(as_json, &text)?;
    }
    write(all, formats, as_json)?;
    Ok(match &comparison {
        None => all.status(),
        Some(comparison) => compare::status(all, comparison),
    })
}

/// Prints to stdout, or beside the JSON that is there alone.
fn beside(as_json: bool, text: &str) -> Result<()> {
    match as_json {
        false => print(text).map(|_| ()),
        true => say(text.trim_end_matches('\n')),
    }
}

fn write(all: &All, formats: &cli::Formats, as_json: bool) -> Result<()> {
    let unwritable = |path: &Path, error| {
        Error::usage(format!("cannot write {}: {error}", path.display()))
            .help("name a file in a directory that is there")
    };
    if let Some(path) = &formats.junit {
        fs::write(path, junit::render(all)?).map_err(|error| unwritable(path, error))?;
    }
    if let Some(path) = &formats.html {
        let page = html::render(&page::gather(all)?)?;
        fs::write(path, page).map_err(|error| unwritable(path, error))?;
    }
    let mut summaries: Vec<PathBuf> = formats.markdown.clone().into_iter().collect();
    if formats.github {
        for line in github::annotations(&harmless(all)?) {
            // GitHub reads both.
            beside(as_json, &format!("{line}\n"))?;
        }
        summaries.extend(std::env::var_os("GITHUB_STEP_SUMMARY").map(PathBuf::from));
    }
    for path in summaries {
        let file = fs::File::options().create(true).append(true).open(&path);
        file.and_then(|mut file| file.write_all(summary::render(all).as_bytes()))
            .map_err(|error| unwritable(&path, error))?;
    }
    Ok(())
}

/// `crashtest report`.
pub fn report(options: &cli::Report) -> Result<ExitStatus> {
    let root = &options.results.root;
    let baseline = baseline(&options.formats, root)?;
    let mut all = All::default();
    for name in &options.runs {
        let report = merge::read(RunDirectory::open(root, name)?)?;
        all.scenarios.push((report.scenario.clone(), One::Ran(Box::new(report))));
    }
    show(&all, &options.formats, options.json, baseline.as_ref())
}

/// `crashtest merge`.
pub fn merge(options: &cli::Merge) -> Result<ExitStatus> {
    let root = &options.results.root;
    let baseline = baseline(&options.formats, root)?;
    let mut directories = Vec::new();
    for name in &options.runs {
        let inside = results::runs(Path::new(name));
        match inside.is_empty() {
            true => directories.push(RunDirectory::open(root, name)?),
            false => {
                for run in inside {
                    directories.push(RunDirectory::open(&run, ".")?);
                }
            }
        }
    }
    let report = merge::merge(directories, root, options.partial)?;
    show(&alone(report), &options.formats, options.json, baseline.as_ref())
}

/// `crashtest compare`.
pub fn compare(options: &cli::Compare) -> Result<ExitStatus> {
    if !(options.alpha > 0.0 && options.alpha < 1.0) {
        return Err(Error::usage(format!("{} is no probability", options.alpha))
            .help("give --alpha between 0 and 1, such as 0.01"));
    }
    let root = &options.results.root;
    let (before, after) = (read(&options.before, root)?, read(&options.after, root)?);
    compare::comparable(&before, &options.before)?;
    compare::comparable(&after, &options.after)?;
    let comparison: Comparison = compare::compare(&before, &after, options.alpha);
    match options.json {
        true => json(&comparison)?,
        false => print(&compare::render(&harmless(&comparison)?)).map(|_| ())?,
    }
    Ok(match compare::status(&after, &comparison) {
        ExitStatus::NothingStruck => ExitStatus::NothingStruck,
        _ if comparison.worse => ExitStatus::Unexpected,
        _ => ExitStatus::AsExpected,
    })
}

/// The longest report that is read.
const REPORT_BYTES_MAX: u64 = 1 << 30;

/// An earlier report: a file with what `--json` printed, or a kept run.
fn read(name: &str, root: &Path) -> Result<All> {
    let path = Path::new(name);
    if !path.is_file() {
        let run = RunDirectory::open(root, name).map_err(|error| {
            Error::usage(format!("there is no report `{name}`: {}", error.message)).help(
                "name a file that `crashtest run --json` wrote, or a run of `crashtest list runs`",
            )
        })?;
        return merge::read(run).map(alone);
    }
    let text = tree::read_named(path, REPORT_BYTES_MAX)
        .map_err(|error| Error::usage(format!("cannot read {name}: {error}")))?;
    let damaged = |error: serde_json::Error| {
        Error::usage(format!("{name} is no report of this crashtest: {error}"))
            .help("write it anew with `crashtest run --json`")
    };
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(damaged)?;
    let ran = value.get("scenarios").and_then(serde_json::Value::as_array);
    let ran = ran.into_iter().flatten().filter_map(|one| one.get(1)?.get("ran"));
    for report in ran.chain([&value]) {
        let schema = report.get("schema").and_then(serde_json::Value::as_u64);
        if let Some(schema) = schema.filter(|schema| *schema != u64::from(SCHEMA)) {
            return Err(Error::usage(format!("{name} has schema version {schema}"))
                .help(format!("this crashtest reads version {SCHEMA}; write it anew")));
        }
    }
    match value.get("scenarios") {
        Some(_) => serde_json::from_value(value).map_err(damaged),
        None => serde_json::from_value(value).map_err(damaged).map(alone),
    }
}
