//! What is done with a report: printed, written in other forms, compared with an earlier one.

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use crate::all::{All, One};
use crate::cli;
use crate::compare::{self, Comparison};
use crate::error::{Context, Error, Result};
use crate::exit_status::ExitStatus;
use crate::merge;
use crate::page;
use crate::report::{self, Report, github, html, junit, summary, table};
use crate::results::{self, RunDirectory, SCHEMA};

/// Prints to stdout; a reader that has gone away is no error.
pub fn print(text: &str) -> Result<ExitStatus> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("write to stdout")
        }
        _ => Ok(ExitStatus::AsExpected),
    }
}

/// Prints something as JSON.
pub fn json(what: &impl serde::Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(what).context("write the report")?;
    print(&format!("{json}\n")).map(|_| ())
}

/// The width of the terminal, if stdout is one.
#[must_use]
pub fn terminal_width() -> Option<u16> {
    let on_terminal = std::io::stdout().is_terminal();
    let columns = || std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    on_terminal.then(|| columns().unwrap_or(120).max(40))
}

/// What came of one scenario, as of several.
#[must_use]
pub fn alone(report: Report) -> All {
    All { scenarios: vec![(report.scenario.clone(), One::Ran(Box::new(report)))] }
}

/// What a run is measured by besides the expectations of its scenario: read before it begins, so that it is
/// not in vain.
pub fn baseline(formats: &cli::Formats, root: &Path) -> Result<Option<All>> {
    formats.baseline.as_deref().map(|name| read(name, root)).transpose()
}

/// Prints what was found and writes it in all forms that are asked for; says with which status that ends.
pub fn show(
    all: &All,
    formats: &cli::Formats,
    as_json: bool,
    baseline: Option<&All>,
) -> Result<ExitStatus> {
    let comparison = baseline.map(|before| compare::compare(before, all, compare::ALPHA));
    match (as_json, &all.scenarios[..]) {
        (true, [(_, One::Ran(report))]) => json(&**report)?,
        (true, _) => json(all)?,
        (false, [(_, One::Ran(report))]) => {
            print(&table::render(report, terminal_width()))?;
            eprintln!("{}", table::how(report));
        }
        (false, _) => {
            print(&report::all::render(all, terminal_width()))?;
        }
    }
    if let (Some(comparison), false) = (&comparison, as_json) {
        print(&format!("compared with the baseline:\n{}", compare::render(comparison)))?;
    }
    write(all, formats)?;
    Ok(match &comparison {
        None => all.status(),
        Some(comparison) => compare::status(all, comparison),
    })
}

fn write(all: &All, formats: &cli::Formats) -> Result<()> {
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
        for line in github::annotations(all) {
            print(&format!("{line}\n"))?;
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
    let comparison: Comparison = compare::compare(&before, &after, options.alpha);
    match options.json {
        true => json(&comparison)?,
        false => print(&compare::render(&comparison)).map(|_| ())?,
    }
    Ok(if comparison.worse { ExitStatus::Unexpected } else { ExitStatus::AsExpected })
}

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
    let text = fs::read(path).context(format_args!("read {name}"))?;
    let damaged = |error: serde_json::Error| {
        Error::usage(format!("{name} is no report of this crashtest: {error}"))
            .help("write it anew with `crashtest run --json`")
    };
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(damaged)?;
    if value.get("scenarios").is_some() {
        return serde_json::from_value(value).map_err(damaged);
    }
    match value.get("schema").and_then(serde_json::Value::as_u64) {
        Some(schema) if schema != u64::from(SCHEMA) => {
            Err(Error::usage(format!("{name} has schema version {schema}"))
                .help(format!("this crashtest reads version {SCHEMA}; write it anew")))
        }
        _ => serde_json::from_value(value).map_err(damaged).map(alone),
    }
}
