//! From the command line to what it asks for.

use clap::CommandFactory;
use crashtest_targets::Strategy;

use crate::all::{self, ALL};
use crate::audit::{Status, brief, examine, render};
use crate::cli::{self, Cli, Listed};
use crate::doctor;
use crate::environment::Environment;
use crate::error::{Context, Error, Result};
use crate::exit_status::ExitStatus;
use crate::fault::FaultKind;
use crate::inject::checks::quoted;
use crate::lab;
use crate::os::enclosure::{self, Role};
use crate::os::process::{self, Ended};
use crate::os::signals;
use crate::power::lower::lower;
use crate::power::profile::Profile;
use crate::prepare;
use crate::program::{command, command_name};
use crate::recording::Recording;
use crate::replay;
use crate::report;
use crate::report::harmless::escaped;
use crate::report::timeline;
use crate::request::request;
use crate::results;
use crate::run::{self, Request};
use crate::scenario::{EMBEDDED, Scenario};
use crate::showing::{self, json, print, say};
use crate::source;
use crate::subject::Subject;
use std::path::Path;
use std::sync::Arc;

/// Does what the command line asks for.
pub fn dispatch(cli: Cli) -> Result<ExitStatus> {
    if cli.command.runs_programs() {
        lab::start_janitor()?;
        match enclosure::enter().context("start a process")? {
            Role::Outer(Ended::Status(status)) => return Ok(ExitStatus::of_code(status)),
            Role::Outer(Ended::Signal(signal)) => {
                // A signal that is meant for a command ends it as it ends any other.
                process::end_like(signal);
                return Err(Error::internal(format!("crashtest was ended by signal {signal}"))
                    .help("what was done is kept; `crashtest run --resume RUN` goes on with it"));
            }
            Role::Coordinator | Role::Alone => {}
        }
    }
    match cli.command {
        cli::Command::Run(options) => run(&options),
        cli::Command::Report(options) => showing::report(&options),
        cli::Command::Merge(options) => showing::merge(&options),
        cli::Command::Compare(options) => showing::compare(&options),
        cli::Command::Check(options) => check(&options),
        cli::Command::Audit(options) => audit(&options),
        cli::Command::Record(options) => record(&options),
        cli::Command::Timeline(options) => print(&shown(&Recording::read(&options.file)?)?),
        cli::Command::Replay(options) => replay(&options),
        cli::Command::List(list) => print(&list_text(&list)),
        cli::Command::Doctor => {
            let findings = doctor::examine();
            print(&doctor::render(&findings))?;
            Ok(doctor::status(&findings))
        }
        cli::Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "crashtest", &mut text);
            print(&String::from_utf8_lossy(&text))
        }
        cli::Command::Man => {
            let mut text = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut text).context("render the manual")?;
            print(&String::from_utf8_lossy(&text))
        }
    }
}

fn run(options: &cli::Run) -> Result<ExitStatus> {
    signals::catch_interrupts().context("catch Ctrl-C")?;
    let quiet = options.quiet || options.json;
    let tell = |request: &Request| if quiet { Ok(()) } else { say(&beginning(request)) };
    let baseline = showing::baseline(&options.formats, &options.results.root)?;
    let several = several(&options.scenario);
    let all = match several.is_empty() {
        false if several.iter().any(|name| name == ALL) => all::run(options, &[], &mut { tell })?,
        false => all::run(options, &several, &mut { tell })?,
        true => {
            let request = request(options)?;
            tell(&request)?;
            if request.resume.is_some() {
                // It is a file that says what runs now, and not the user's command line.
                request.subjects.iter().try_for_each(|(_, one)| say(&about_to_run(one)))?;
            }
            showing::alone(run::run(&request)?)
        }
    };
    showing::show(&all, &options.formats, options.json, baseline.as_ref())
}

/// The scenarios that are named, if these are all or several; a path may have commas in it.
fn several(names: &str) -> Vec<String> {
    match names.contains(',') && !Path::new(names).exists() || names == ALL {
        true => names.split(',').map(|name| name.trim().to_owned()).collect(),
        false => Vec::new(),
    }
}

/// What is about to be run.
fn beginning(request: &Request) -> String {
    format!(
        "crashtest {}: {}; seed {}{} of {}",
        request.asked.scenario.name,
        match request.asked.fault {
            FaultKind::KillAfter => "SIGKILL after a random time, with no tracing",
            _ => request.asked.scenario.about.as_str(),
        },
        request.asked.seed.0,
        match request.asked.trials {
            _ if request.asked.fault.is_power() => String::new(),
            _ if request.asked.every_boundary => {
                ", a kill at each op boundary and at drawn bytes".to_owned()
            }
            Some(trials) => format!(", {trials} trials of each"),
            None if request.asked.fault.is_swept() => ", a sweep of each".to_owned(),
            None => String::new(),
        },
        request.subjects.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
    )
}

fn audit(options: &cli::Audit) -> Result<ExitStatus> {
    signals::catch_interrupts().context("catch Ctrl-C")?;
    if options.examined.program.is_empty() && options.strategy.is_none() {
        let Some(source) = &options.source else {
            return Err(Error::usage("there is nothing to audit")
                .help("give a program after --, or --strategy NAME, or --source DIR"));
        };
        let hints = source::look(source)?;
        return print(&render::only_hints(&hints, source));
    }
    let tell =
        |request: &Request| if options.examined.quiet { Ok(()) } else { say(&beginning(request)) };
    let audit = examine::audit(options, &mut { tell })?;
    let markdown = render::markdown(&audit);
    let json = serde_json::to_string_pretty(&audit).context("write the audit")?;
    for (file, text) in [(&options.output, &markdown), (&options.json_output, &json)] {
        let Some(file) = file else { continue };
        std::fs::write(file, text)
            .map_err(|error| Error::usage(format!("cannot write {}: {error}", file.display())))?;
    }
    match options.json {
        true => print(&format!("{json}\n"))?,
        false => print(&markdown)?,
    };
    Ok(match audit.status {
        Status::Fail => ExitStatus::Unexpected,
        Status::Pass | Status::Warn => ExitStatus::AsExpected,
    })
}

/// What `check` runs unless it is told: what needs nothing but the program.
const CHECKED: [&str; 4] = ["sigkill", "errno", "enospc", "poweroff"];

/// How often it kills, unless it is told: a test must not take long.
const CHECKED_TRIALS: u64 = 100;

fn check(options: &cli::Check) -> Result<ExitStatus> {
    signals::catch_interrupts().context("catch Ctrl-C")?;
    let mut examined = options.examined.clone();
    if examined.program.is_empty() {
        return Err(Error::usage("there is nothing to check").help("give a program after --"));
    }
    let usual = CHECKED.map(str::to_owned);
    examined.usual = usual.into();
    examined.seed.get_or_insert(1);
    examined.drawn = Some(CHECKED_TRIALS);
    let tell = |request: &Request| if examined.quiet { Ok(()) } else { say(&beginning(request)) };
    let audit = examine::examine(&examined, Vec::new(), false, &mut { tell })?;
    match options.json {
        true => json(&audit)?,
        false => print(&brief::text(&audit)).map(|_| ())?,
    }
    Ok(brief::status(&audit, options.strict))
}

fn record(options: &cli::Record) -> Result<ExitStatus> {
    let command = command(&options.about, &options.program)?;
    let recording = prepare::recording(
        &command_name(&options.about, &command),
        &command,
        options.dir.as_deref(),
    )?;
    let file = std::fs::File::create(&options.output).map_err(|error| {
        Error::usage(format!("cannot write {}: {error}", options.output.display()))
    })?;
    recording.write(std::io::BufWriter::new(file))?;
    if !options.quiet {
        print(&shown(&recording)?)?;
        print(&format!("recorded in {}\n", options.output.display()))?;
    }
    Ok(ExitStatus::AsExpected)
}

/// A recording as text, with what syncs each op where nothing else is promised.
fn shown(recording: &Recording) -> Result<String> {
    let (trace, profile) = (Arc::new(recording.trace.clone()), Profile::find("posix")?);
    let lowered = lower(&trace, &recording.before, &profile.flags);
    Ok(timeline::render(recording, lowered.as_ref().ok()))
}

fn replay(options: &cli::Replay) -> Result<ExitStatus> {
    let given = Environment::parse(&options.env, &[])?;
    let (root, keep) = (&options.results.root, options.keep.as_deref());
    let mut said = Ok(());
    let mut tell = |subject: &Subject| said = say(&about_to_run(subject));
    let replayed = replay::replay(root, &options.id, keep, &given, &mut tell)?;
    said?;
    if options.json {
        let json = serde_json::to_string_pretty(&replayed).context("write the facts")?;
        print(&format!("{json}\n"))?;
    } else {
        print(&report::replay::render(&replayed))?;
    }
    Ok(if replayed.again { ExitStatus::AsExpected } else { ExitStatus::Unexpected })
}

/// The command that a file of results names, before it is run.
fn about_to_run(subject: &Subject) -> String {
    match subject {
        Subject::Command(command) => {
            let words: Vec<_> = command.argv.iter().map(|word| quoted(word)).collect();
            let own = [
                (&command.check, "--check"),
                (&command.recover, "--load"),
                (&command.restore, "--restore"),
                (&command.broker, "--broker"),
                (&command.settle, "--settle"),
            ];
            let own = own.into_iter().filter_map(|(text, option)| {
                Some(format!("\n  {option} {}", escaped(&quoted(text.as_ref()?))))
            });
            format!("runs: {}{}", escaped(&words.join(" ")), own.collect::<String>())
        }
        Subject::BuiltIn { strategy, .. } => format!("runs the strategy {}", escaped(strategy)),
        Subject::Recorded { file } => {
            format!("reads the recording {}", escaped(&file.display().to_string()))
        }
    }
}

fn list_text(list: &cli::List) -> String {
    let mut text = String::new();
    if matches!(list.what, None | Some(Listed::Scenarios)) {
        for (name, _) in EMBEDDED {
            let about = Scenario::find(name).map(|scenario| scenario.about).unwrap_or_default();
            text += &format!("scenario  {name:14}  {about}\n");
        }
    }
    if matches!(list.what, None | Some(Listed::Strategies)) {
        for strategy in Strategy::ALL {
            text += &format!("strategy  {:14}  {}\n", strategy.name(), strategy.about());
        }
    }
    for run in results::runs(&list.results.root) {
        let name = run.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match list.what {
            Some(Listed::Runs) => text += &format!("run  {name}\n"),
            Some(Listed::Violations) => {
                for kept in results::kept(&run) {
                    let first = kept.violations.first();
                    let what = first.map(|v| v.detail.as_str()).unwrap_or_default();
                    text += &format!(
                        "{}  {}: {}: {what}\n",
                        kept.id,
                        escaped(&kept.trial.subject),
                        escaped(&kept.trial.fault.to_string()),
                        what = escaped(what)
                    );
                }
            }
            _ => {}
        }
    }
    text
}
