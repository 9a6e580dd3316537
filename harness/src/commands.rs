//! From the command line to what it asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};

use clap::CommandFactory;
use crashtest_targets::Strategy;

use crate::cli::{self, Cli, Listed, ThenArg};
use crate::doctor;
use crate::error::{Context, Error, Result};
use crate::exit_status::ExitStatus;
use crate::fault::FaultKind;
use crate::os::signals;
use crate::plan::Seed;
use crate::power::lower::lower;
use crate::power::profile::Profile;
use crate::poweroff::Power;
use crate::prepare;
use crate::recording::Recording;
use crate::replay;
use crate::report::timeline;
use crate::report::{self, table};
use crate::results::{self, RunDirectory};
use crate::run::{self, Place, Request};
use crate::scenario::{EMBEDDED, Scenario};
use crate::subject::{Command, Limits, Subject};
use crate::suggest;
use crate::sweep::{Depth, Reach};
use crate::verdict::Promise;
use crate::volume::BLOCK_BYTES;
use std::sync::Arc;

/// Trials of a program, which may take long to start, unless the user says otherwise.
const PROGRAM_TRIALS: u64 = 500;

/// How many derived states are really made, unless the user says so.
const CONFIRMED: u64 = 50;

/// The most trials of one subject; their numbers are kept in memory.
const TRIALS_MAX: u64 = 10_000_000;
/// The largest file system: images are sparse, and few of their blocks are ever written.
const FS_BYTES_MAX: u64 = 64 << 30;
/// The most bytes of state that a built-in saves in one trial; all versions are kept in memory.
const SAVED_BYTES_MAX: u64 = 1 << 30;

/// Does what the command line asks for.
pub fn dispatch(cli: Cli) -> Result<ExitStatus> {
    match cli.command {
        cli::Command::Run(options) => run(&options),
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

/// Prints to stdout; a reader that has gone away is no error.
fn print(text: &str) -> Result<ExitStatus> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("write to stdout")
        }
        _ => Ok(ExitStatus::AsExpected),
    }
}

fn run(options: &cli::Run) -> Result<ExitStatus> {
    signals::catch_interrupts().context("catch Ctrl-C")?;
    let request = request(options)?;
    if !options.quiet && !options.json {
        eprintln!(
            "crashtest {}: {}; seed {}, {} of each of {}",
            request.scenario.name,
            match request.fault {
                FaultKind::KillAfter => "SIGKILL after a random time, with no tracing",
                _ => request.scenario.about.as_str(),
            },
            request.seed.0,
            match request.trials {
                Some(trials) => format!("{trials} trials"),
                None => "a sweep".to_owned(),
            },
            request.subjects.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
        );
    }
    let report = run::run(&request)?;
    if options.json {
        let json = serde_json::to_string_pretty(&report).context("write the report")?;
        print(&format!("{json}\n"))?;
    } else {
        print(&table::render(&report, terminal_width()))?;
    }
    Ok(report.status())
}

fn record(options: &cli::Record) -> Result<ExitStatus> {
    let command = command(&options.about, &options.program)?;
    let recording = prepare::recording(&command_name(&command), &command, options.dir.as_deref())?;
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
    let replayed = replay::replay(&options.results.root, &options.id, options.keep.as_deref())?;
    if options.json {
        let json = serde_json::to_string_pretty(&replayed).context("write the facts")?;
        print(&format!("{json}\n"))?;
    } else {
        print(&report::replay::render(&replayed))?;
    }
    Ok(if replayed.again { ExitStatus::AsExpected } else { ExitStatus::Unexpected })
}

fn terminal_width() -> Option<u16> {
    let on_terminal = std::io::stdout().is_terminal();
    on_terminal.then(|| indicatif_width().max(40))
}

/// The width of the terminal, in columns.
fn indicatif_width() -> u16 {
    std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).unwrap_or(120)
}

fn request(options: &cli::Run) -> Result<Request> {
    let place = Place {
        jobs: jobs(options.jobs)?,
        directory: options.dir.clone(),
        results: options.results.root.clone(),
        quiet: options.quiet || options.json,
        verbose: options.verbose,
        keep: options.keep,
    };
    let command_line = std::env::args().collect();
    if let Some(name) = &options.resume {
        let directory = RunDirectory::open(&options.results.root, name)?;
        let plan = directory.read_plan()?;
        return Ok(Request {
            scenario: plan.scenario,
            fault: plan.fault,
            granularity: plan.granularity,
            seed: plan.seed,
            trials: plan.trials,
            reach: plan.reach,
            power: plan.power,
            exhaustive: plan.exhaustive,
            subjects: plan.subjects.into_iter().map(|s| (s.name, s.subject)).collect(),
            promises: plan.promises,
            command_line: plan.command_line,
            place,
            resume: Some(directory),
        });
    }
    let mut scenario = Scenario::find(&options.scenario)?;
    scenario.saves = options.saves.unwrap_or(scenario.saves);
    scenario.state_bytes = options.state_bytes.unwrap_or(scenario.state_bytes);
    let (subjects, promises) = subjects(options, &scenario)?;
    let fault = if options.timing { FaultKind::KillAfter } else { scenario.fault };
    if options.timing && scenario.fault != FaultKind::Kill {
        let name = &scenario.name;
        return Err(Error::usage(format!("--timing has no meaning in the scenario `{name}`"))
            .help("it kills after a random time: use the scenario sigkill"));
    }
    let trials = trials(options, &scenario, fault)?;
    let reach = reach(options, &scenario, fault)?;
    let power = power(options, &scenario, fault)?;
    Ok(Request {
        fault,
        power,
        exhaustive: exhaustive(options, &scenario, fault)?,
        reach,
        granularity: options.granularity.unwrap_or(scenario.granularity),
        seed: Seed(match options.seed {
            Some(seed) => seed,
            None => new_seed()?,
        }),
        trials,
        scenario,
        subjects,
        promises,
        command_line,
        place,
        resume: None,
    })
}

/// What is tested: its name in tables, and the promises that are judged.
type Subjects = (Vec<(String, Subject)>, BTreeSet<Promise>);

/// What the command line wants to be tested, and by which promises.
fn subjects(options: &cli::Run, scenario: &Scenario) -> Result<Subjects> {
    let mut promises: BTreeSet<Promise> = scenario.promises.clone();
    let subjects = if let Some(file) = &options.recording {
        if scenario.fault != FaultKind::PowerLoss && !options.exhaustive {
            return Err(Error::usage(format!("nothing of `{}` can be derived", scenario.name))
                .help("--recording is for the scenario poweroff, and for sigkill --exhaustive"));
        }
        // Nothing is run, so that nothing can be said of a recovery.
        promises.retain(|promise| matches!(promise, Promise::Atomic | Promise::Durable));
        let file = std::fs::canonicalize(file)
            .map_err(|error| Error::usage(format!("cannot read {}: {error}", file.display())))?;
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        vec![(name, Subject::Recorded { file })]
    } else if options.program.is_empty() {
        built_ins(options, scenario)?
    } else {
        let command = command(&options.about, &options.program)?;
        let own =
            command.check.is_some() || command.schema.is_some() || !command.invariants.is_empty();
        if own {
            promises.insert(Promise::Checked);
        }
        // What is not looked at is not promised: without an ack no save is owed to anybody, and
        // without a command that recovers nothing is recovered.
        if command.ack.is_none() && scenario.fault != FaultKind::PowerLoss {
            promises.remove(&Promise::Durable);
        }
        if command.recover.is_none() {
            promises.remove(&Promise::Recoverable);
            promises.remove(&Promise::Tidy);
        }
        if !options.about.promise.is_empty() {
            promises = chosen(&options.about.promise, &command, own, scenario.fault)?;
        }
        vec![(command_name(&command), Subject::Command(Box::new(command)))]
    };
    Ok((subjects, promises))
}

/// How many trials there shall be; none for a whole sweep.
fn trials(options: &cli::Run, scenario: &Scenario, fault: FaultKind) -> Result<Option<u64>> {
    let sweeps = fault.is_swept();
    let usual = match scenario.trials {
        // Killed after a random time, whatever the scenario was about.
        None if !sweeps => Some(PROGRAM_TRIALS),
        Some(trials) if !sweeps && !options.program.is_empty() => Some(trials.min(PROGRAM_TRIALS)),
        other => other,
    };
    let trials = options.trials.or(usual);
    let Some(trials) = trials else { return Ok(None) };
    if trials > TRIALS_MAX {
        return Err(Error::usage(format!("{trials} trials are too many"))
            .help(format!("give --trials at most {TRIALS_MAX}")));
    }
    if trials == 0 {
        return Err(Error::usage("no trials were asked for").help("give --trials 1 or more"));
    }
    Ok(Some(trials))
}

/// How far a sweep goes: as the scenario says, unless the command line says otherwise.
fn reach(options: &cli::Run, scenario: &Scenario, fault: FaultKind) -> Result<Reach> {
    let mut reach = scenario.sweep.clone();
    let about_disk = [
        (options.fs.is_some(), "--fs"),
        (options.fs_size.is_some(), "--fs-size"),
        (!options.axis.is_empty(), "--axis"),
        (options.then.is_some(), "--then"),
    ];
    let about_calls = [(options.depth.is_some(), "--depth")];
    let useless = match fault {
        FaultKind::DiskFull => &about_calls[..],
        FaultKind::Errno | FaultKind::PowerLoss => &about_disk[..],
        _ => &[&about_disk[..], &about_calls].concat(),
    };
    if let Some((_, option)) = useless.iter().find(|(given, _)| *given) {
        let name = &scenario.name;
        return Err(Error::usage(format!("{option} has no meaning in the scenario `{name}`"))
            .help("the scenario enospc is about full file systems, errno about calls that fail"));
    }
    if let Some(fs) = options.fs {
        reach.fs = fs;
        reach.axes = reach.fs.axes().to_vec();
    }
    if !options.axis.is_empty() {
        reach.axes.clone_from(&options.axis);
        reach.axes.sort();
        reach.axes.dedup();
    }
    if let Some(axis) = reach.axes.iter().find(|axis| !reach.fs.can_run_out(**axis)) {
        let what = format!("{} does not run out of {}", reach.fs, axis.unit());
        return Err(Error::usage(what).help("leave out --axis, or use another --fs"));
    }
    if let Some(size) = &options.fs_size {
        let size = bytes(size)?;
        let rounded = size.next_multiple_of(BLOCK_BYTES);
        if rounded != size && !options.quiet && !options.json {
            eprintln!("note: {size} bytes are rounded up to {} blocks", rounded / BLOCK_BYTES);
        }
        reach.fs_bytes = Some(rounded);
    }
    reach.depth = match (options.then, options.depth) {
        (Some(ThenArg::Kill), _) | (None, Some(2..)) => Depth::Two,
        (Some(ThenArg::GoOn), _) | (None, Some(_)) => Depth::One,
        (None, None) => reach.depth,
    };
    Ok(reach)
}

/// How many derived states are to be confirmed, if all are to be derived.
fn exhaustive(options: &cli::Run, scenario: &Scenario, fault: FaultKind) -> Result<Option<u64>> {
    if options.exhaustive && fault != FaultKind::Kill {
        let name = &scenario.name;
        return Err(Error::usage(format!("--exhaustive has no meaning in the scenario `{name}`"))
            .help("poweroff is exhaustive as far as it can be; else use the scenario sigkill"));
    }
    Ok(options.exhaustive.then(|| options.confirm.unwrap_or(CONFIRMED)))
}

/// What a loss of power is derived for: as the scenario says, unless the command line says otherwise.
fn power(options: &cli::Run, scenario: &Scenario, fault: FaultKind) -> Result<Power> {
    let mut power = scenario.power.clone();
    let given = [
        (!options.profile.is_empty(), "--profile"),
        (options.states_max.is_some(), "--states-max"),
        (options.first_save, "--first-save"),
    ];
    if let Some((_, option)) = given.iter().find(|(given, _)| *given)
        && fault != FaultKind::PowerLoss
    {
        let name = &scenario.name;
        return Err(Error::usage(format!("{option} has no meaning in the scenario `{name}`"))
            .help("use the scenario poweroff"));
    }
    if fault != FaultKind::PowerLoss {
        return Ok(power);
    }
    if !options.profile.is_empty() {
        power.profiles.clone_from(&options.profile);
    }
    for profile in &power.profiles {
        Profile::find(profile)?;
    }
    power.states_max = options.states_max.unwrap_or(power.states_max);
    if power.states_max == 0 {
        return Err(
            Error::usage("no crash states were asked for").help("give --states-max 1 or more")
        );
    }
    power.first_save |= options.first_save;
    let recovers = options.program.is_empty() || options.about.recover.is_some();
    if options.depth == Some(2) && (!recovers || options.recording.is_some()) {
        return Err(Error::usage("a recovery that is not known can't be explored")
            .help("say with --recover CMD how the program loads its state"));
    }
    Ok(power)
}

/// A size such as `64M`, in bytes.
fn bytes(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => Some(0),
        "K" | "KB" | "KIB" => Some(10),
        "M" | "MB" | "MIB" => Some(20),
        "G" | "GB" | "GIB" => Some(30),
        _ => None,
    };
    let number = digits.parse::<u64>().ok();
    let size = number.zip(shift).and_then(|(number, shift)| number.checked_mul(1 << shift));
    size.filter(|size| (1..=FS_BYTES_MAX).contains(size)).ok_or_else(|| {
        Error::usage(format!("`{text}` is no size of a small file system"))
            .help("give bytes, or a number with K, M or G, up to 64G")
    })
}

/// The promises that the user chose, if there is what it takes to judge them.
fn chosen(
    names: &[String],
    command: &Command,
    own: bool,
    fault: FaultKind,
) -> Result<BTreeSet<Promise>> {
    let known = [
        (Promise::Atomic, true, ""),
        (Promise::Durable, command.ack.is_some(), "--ack"),
        (Promise::Checked, own, "--check, --schema or --invariant"),
        (Promise::Recoverable, command.recover.is_some(), "--recover"),
        (
            Promise::Honest,
            fault.is_told(),
            "a fault that the program is told of: a scenario such as errno",
        ),
        (Promise::Tidy, command.recover.is_some(), "--recover"),
    ];
    let find = |name: &String| {
        let Some((promise, can, needs)) = known.iter().find(|(p, ..)| p.name() == name) else {
            return Err(Error::usage(format!("there is no promise `{name}` to judge"))
                .help(suggest::among(name, known.iter().map(|(p, ..)| p.name()))));
        };
        if *can {
            return Ok(*promise);
        }
        Err(Error::usage(format!("`{name}` can't be judged")).help(format!("it needs {needs}")))
    };
    let chosen: BTreeSet<Promise> = names.iter().map(find).collect::<Result<_>>()?;
    if chosen.contains(&Promise::Honest) && !chosen.contains(&Promise::Atomic) {
        return Err(Error::usage("`honest` can't be judged without `atomic`")
            .help("whether a save has failed shows in the bytes of the state; add atomic"));
    }
    Ok(chosen)
}

fn jobs(asked: Option<usize>) -> Result<usize> {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    match asked {
        Some(0) => Err(Error::usage("no workers were asked for").help("give --jobs 1 or more")),
        Some(jobs) if jobs > 512 => Err(Error::usage(format!("{jobs} workers are too many"))
            .help(format!("this process may use {available} CPUs; give --jobs at most 512"))),
        Some(jobs) => Ok(jobs),
        None => Ok(available),
    }
}

fn built_ins(options: &cli::Run, scenario: &Scenario) -> Result<Vec<(String, Subject)>> {
    let names: Vec<String> = match &options.strategy[..] {
        [] => scenario.strategies.clone(),
        [all] if all == "all" => Strategy::ALL.map(|s| s.name().to_owned()).into(),
        names => names.to_vec(),
    };
    names
        .into_iter()
        .map(|name| {
            if Strategy::by_name(&name).is_none() {
                return Err(Error::usage(format!("there is no strategy `{name}`"))
                    .help(suggest::among(&name, Strategy::ALL.map(Strategy::name))));
            }
            let (saves, state_bytes) = (scenario.saves, scenario.state_bytes);
            let growth_bytes = scenario.growth_bytes;
            let range = crashtest_targets::STATE_BYTES_MIN..=crashtest_targets::STATE_BYTES_MAX;
            if !range.contains(&state_bytes) {
                return Err(Error::usage(format!(
                    "a state of {state_bytes} bytes is out of range"
                ))
                .help(format!(
                    "give --state-bytes {} to {}",
                    range.start(),
                    range.end()
                )));
            }
            if !(1..=10_000).contains(&saves) || saves * state_bytes as u64 > SAVED_BYTES_MAX {
                return Err(Error::usage("the number of saves is out of range")
                    .help("give --saves 1 to 10000, and at most 1 GiB of state in all"));
            }
            Ok((
                name.clone(),
                Subject::BuiltIn {
                    strategy: name,
                    saves,
                    state_bytes,
                    growth_bytes,
                    first_save: options.first_save || scenario.power.first_save,
                },
            ))
        })
        .collect()
}

fn command(about: &cli::About, program: &[String]) -> Result<Command> {
    let default = Limits::default();
    let mut env = BTreeMap::new();
    for pair in &about.env {
        let Some((name, value)) = pair.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(Error::usage(format!("`--env {pair}` is not NAME=VALUE")));
        };
        env.insert(name.to_owned(), value.to_owned());
    }
    Ok(Command {
        argv: program.to_vec(),
        state: about.state.clone(),
        ack: about.ack.clone(),
        check: about.check.clone(),
        recover: about.recover.clone(),
        schema: about.schema.clone(),
        invariants: about.invariant.clone(),
        init: about.init.clone(),
        env,
        sandbox: about.sandbox,
        limits: Limits {
            timeout_ms: about.timeout.map_or(default.timeout_ms, |s| s.saturating_mul(1000)),
            data_bytes: about
                .max_data
                .map_or(default.data_bytes, |mib| mib.saturating_mul(1 << 20)),
            processes: about.max_processes.unwrap_or(default.processes),
            acks: about.acks,
        },
    })
}

/// What the table calls a program: the script that an interpreter is given, or else the program.
fn command_name(command: &Command) -> String {
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
                        kept.id, kept.trial.subject, kept.trial.fault
                    );
                }
            }
            _ => {}
        }
    }
    text
}

/// A seed that is short enough to be typed.
fn new_seed() -> Result<u64> {
    use rand::TryRng;
    rand::rngs::SysRng.try_next_u32().map(u64::from).context("draw a seed")
}
