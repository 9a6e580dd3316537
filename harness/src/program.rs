//! From the options about a program to the program as it can be stored and run again.

use crate::at_rest::HarmKind;
use crate::cli;
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::fault::FaultKind;
use crate::sandbox;
use crate::scenario::Scenario;
use crate::subject::{Command, Limits, Live, Subject};
use std::collections::BTreeSet;

/// Gives a subject from a file the values of its variables, which are not kept there.
pub fn supply(subject: &mut Subject, given: &Environment) -> Result<()> {
    match subject {
        Subject::Command(command) => command.env.supply(given, |name| std::env::var(name).ok()),
        Subject::BuiltIn { .. } | Subject::Recorded { .. } => Ok(()),
    }
}

/// What is not known of a program that a scenario must know, and how it can be said.
#[must_use]
pub fn unknown(about: &cli::About, scenario: &Scenario) -> Option<(&'static str, &'static str)> {
    let parted = scenario.fault == FaultKind::Parted;
    if parted && (about.broker.is_none() || about.check.is_none()) {
        return Some((
            "it is not known how the program speaks with its broker",
            "say with --broker CMD what serves at {port}, and with --check CMD whether the program and \
             its broker agree",
        ));
    }
    if parted && scenario.ledger_moves_on && about.settle.is_none() {
        return Some((
            "it is not known how the ledger moves on",
            "say it with --settle CMD, which finds the broker in CRASHTEST_BROKER",
        ));
    }
    if scenario.fault == FaultKind::AtRest && about.recover.is_none() {
        return Some((
            "what a program makes of a damaged state is not known",
            "say with --load CMD how it loads its state; if that prints the state as JSON, it is \
             compared with what was saved",
        ));
    }
    (scenario.harms.contains(&HarmKind::Restored) && about.restore.is_none()).then_some((
        "how the program is restored is not known",
        "say it with --restore 'CMD {backup}'",
    ))
}

/// Refuses what is said of a program and no trial of the scenario asks for.
pub fn useless(about: &cli::About, scenario: &Scenario) -> Result<()> {
    let parted = scenario.fault == FaultKind::Parted;
    let given = [
        (about.broker.is_some() && !parted, "--broker", "disconnect or stale"),
        (about.settle.is_some() && !parted, "--settle", "stale"),
    ];
    match given.into_iter().find(|(is, ..)| *is) {
        None => Ok(()),
        Some((_, option, other)) => {
            let name = &scenario.name;
            Err(Error::usage(format!("{option} has no meaning in the scenario `{name}`"))
                .help(format!("use the scenario {other}")))
        }
    }
}

/// A program, with what is known about it.
pub fn command(about: &cli::About, program: &[String]) -> Result<Command> {
    let default = Limits::default();
    if about.timeout == Some(0) || about.max_data == Some(0) || about.max_processes == Some(0) {
        return Err(Error::usage("a limit of 0 lets no program run")
            .help("give --timeout, --max-data and --max-processes 1 or more"));
    }
    if let Some(init) = &about.init
        && !init.is_dir()
    {
        return Err(Error::usage(format!("--init {} is not a directory", init.display())));
    }
    sandbox::let_through(&about.allow_write)?;
    Ok(Command {
        argv: program.to_vec(),
        state: about.state.clone(),
        ack: about.ack.clone(),
        check: about.check.clone(),
        recover: about.recover.clone(),
        restore: about.restore.clone(),
        broker: about.broker.clone(),
        settle: about.settle.clone(),
        schema: about.schema.clone(),
        invariants: about.invariant.clone(),
        init: about.init.clone(),
        env: Environment::parse(&about.env, &about.keep_env)?,
        sandbox: about.sandbox,
        allow_write: about.allow_write.clone(),
        user: about.user.clone(),
        limits: Limits {
            timeout_ms: about.timeout.map_or(default.timeout_ms, |s| s.saturating_mul(1000)),
            data_bytes: about
                .max_data
                .map_or(default.data_bytes, |mib| mib.saturating_mul(1 << 20)),
            processes: about.max_processes.unwrap_or(default.processes),
            acks: about.acks,
        },
        inside: BTreeSet::new(),
        live: None,
    })
}

/// How long a program may be let work before its power goes, in seconds.
const DURING: std::ops::RangeInclusive<f64> = 0.1..=3600.0;

/// How a program is tried that serves until the power goes, if that is asked for.
pub fn live(options: &cli::Run) -> Result<Option<Live>> {
    let Some(seconds) = options.during else { return Ok(None) };
    if !DURING.contains(&seconds) {
        return Err(Error::usage(format!("{seconds} seconds are out of range")).help(format!(
            "give --during {} to {}",
            DURING.start(),
            DURING.end()
        )));
    }
    let during = std::time::Duration::from_secs_f64(seconds);
    let about = &options.about;
    if about.check.is_none() {
        return Err(Error::usage("what is left of a program that is not followed can't be judged")
            .help("give --check CMD, which compares it with the acks"));
    }
    let useless = [
        (!about.state.is_empty(), "--state"),
        (about.recover.is_some(), "--load"),
        (about.schema.is_some(), "--schema"),
        (!about.invariant.is_empty(), "--invariant"),
        (!about.promise.is_empty(), "--promise"),
        (about.sandbox, "--sandbox"),
        (about.acks.is_some(), "--acks"),
    ];
    if let Some((_, option)) = useless.iter().find(|(given, _)| *given) {
        return Err(Error::usage(format!("{option} has no meaning with --during"))
            .help("the program is not followed; what is left of it is for --check to judge"));
    }
    let during_ms = u64::try_from(during.as_millis()).unwrap_or(u64::MAX);
    Ok(Some(Live { during_ms, client: options.client.clone() }))
}

/// What the table calls a program: as it is told, or the script that an interpreter is given, or the program.
pub fn command_name(about: &cli::About, command: &Command) -> String {
    if let Some(name) = &about.name {
        return name.clone();
    }
    let file_name = |argument: &String| {
        let path = std::path::Path::new(argument);
        path.file_name()
            .map_or_else(|| argument.clone(), |name| name.to_string_lossy().into_owned())
    };
    let script = command.argv.iter().skip(1).take(2).find(|argument| {
        let path = std::path::Path::new(argument);
        path.extension().is_some() && path.is_file()
    });
    script.or(command.argv.first()).map(file_name).unwrap_or_default()
}
