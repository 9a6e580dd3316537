//! From the options of `run` to what is asked for: the scenario's word, unless the command line says
//! otherwise; what makes no sense is refused.

use std::collections::BTreeSet;

use crashtest_targets::Strategy;

use crate::asked::Asked;
use crate::cli::{self, ThenArg};
use crate::disk::plan::Cutting;
use crate::environment::{Environment, without_values};
use crate::error::{Context, Error, Result};
use crate::fault::FaultKind;
use crate::file_system::FileSystem;
use crate::plan::Seed;
use crate::power::profile::Profile;
use crate::poweroff::Power;
use crate::program::{command, command_name, live, supply, unknown, useless};
use crate::results::RunDirectory;
use crate::run::{Place, Request};
use crate::scenario::Scenario;
use crate::shard::{self, Shard};
use crate::showing::say;
use crate::subject::{Command, Subject};
use crate::suggest;
use crate::sweep::{Depth, Reach};
use crate::verdict::Promise;
use crate::volume::BLOCK_BYTES;

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

/// What the options ask for.
pub fn request(options: &cli::Run) -> Result<Request> {
    let place = Place {
        jobs: jobs(options.jobs)?,
        directory: options.dir.clone(),
        results: options.results.root.clone(),
        quiet: options.quiet || options.json,
        verbose: options.verbose,
        keep: options.keep,
    };
    let words = std::env::args_os();
    let words = words.map(|word| word.to_string_lossy().into_owned());
    let command_line = without_values(words, &options.about.keep_env);
    if let Some(name) = &options.resume {
        let directory = RunDirectory::open(&options.results.root, name)?;
        let plan = directory.read_plan()?;
        let mut subjects: Vec<_> = plan.subjects.into_iter().map(|s| (s.name, s.subject)).collect();
        let given = Environment::parse(&options.about.env, &[])?;
        subjects.iter_mut().try_for_each(|(_, subject)| supply(subject, &given))?;
        return Ok(Request {
            asked: plan.asked,
            subjects,
            command_line: plan.command_line,
            place,
            resume: Some(directory),
            shard: plan.shard,
        });
    }
    if options.program.is_empty() && !options.about.env.is_empty() {
        return Err(Error::usage("--env is for a program, or for a run that goes on")
            .help("give the program after `--`, or --resume RUN"));
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
    let asked = Asked {
        fault,
        power,
        disk: disk(options, &scenario, fault)?,
        exhaustive: exhaustive(options, &scenario, fault)?,
        reach,
        granularity: options.granularity.unwrap_or(scenario.granularity),
        seed: Seed(match options.seed {
            Some(seed) => seed,
            None => new_seed()?,
        }),
        trials,
        every_boundary: options.drawn.is_some() && options.trials.is_none() && fault.is_drawn(),
        scenario,
        promises,
    };
    let shard = shard(options, fault)?;
    Ok(Request { asked, subjects, command_line, place, resume: None, shard })
}

/// Which part of the run this is: as the command line says, or else the environment.
fn shard(options: &cli::Run, fault: FaultKind) -> Result<Shard> {
    let named = match options.shard {
        Some(shard) => Some(("--shard".to_owned(), shard)),
        None => shard::from_environment(|name| {
            // What is no text is no number either, and is said to be none.
            std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
        })?,
    };
    let Some(named) = named else { return Ok(Shard::default()) };
    let told = shard::Told {
        seed: options.seed.is_some(),
        cut_short: fault.is_swept() && options.trials.is_some(),
        timed: options.timing,
    };
    shard::check(&named, told)
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
        let mut command = command(&options.about, &options.program)?;
        command.live = live(options)?;
        let own =
            command.check.is_some() || command.schema.is_some() || !command.invariants.is_empty();
        if own {
            promises.insert(Promise::Checked);
        }
        // What is not looked at is not promised: without an ack no save is owed to anybody, and
        // without a command that recovers nothing is recovered.
        if let Some((what, help)) = unknown(&options.about, scenario) {
            return Err(Error::usage(what).help(help));
        }
        useless(&options.about, scenario)?;
        if command.ack.is_none()
            && !scenario.fault.is_power()
            && scenario.fault != FaultKind::AtRest
        {
            promises.remove(&Promise::Durable);
        }
        if command.recover.is_none() {
            promises.remove(&Promise::Recoverable);
            promises.remove(&Promise::Tidy);
        }
        if scenario.fault == FaultKind::Parted {
            promises.clone_from(&scenario.promises);
        } else if command.live.is_some() {
            promises = [Promise::Checked].into();
        } else if !options.about.promise.is_empty() {
            promises = chosen(&options.about.promise, &command, own, scenario.fault)?;
        }
        vec![(command_name(&options.about, &command), Subject::Command(Box::new(command)))]
    };
    Ok((subjects, promises))
}

/// How many trials there shall be; none for a whole sweep.
fn trials(options: &cli::Run, scenario: &Scenario, fault: FaultKind) -> Result<Option<u64>> {
    let sweeps = fault.is_swept();
    let usual = match scenario.trials {
        None if !fault.is_drawn() && !sweeps => {
            (!options.program.is_empty()).then_some(PROGRAM_TRIALS)
        }
        // Killed after a random time, whatever the scenario was about.
        None if !sweeps => Some(PROGRAM_TRIALS),
        Some(trials) if !sweeps && !options.program.is_empty() => Some(trials.min(PROGRAM_TRIALS)),
        other => other,
    };
    let drawn = options.drawn.filter(|_| fault.is_drawn());
    let trials = options.trials.or(drawn).or(usual);
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
        (!options.fs.is_empty(), "--fs"),
        (options.fs_size.is_some(), "--fs-size"),
        (!options.axis.is_empty(), "--axis"),
        (options.then.is_some(), "--then"),
    ];
    let about_calls = [(options.depth.is_some(), "--depth")];
    let useless = match fault {
        FaultKind::DiskFull => &about_calls[..],
        FaultKind::PowerCut => &[&about_disk[2..], &about_calls].concat(),
        FaultKind::Errno | FaultKind::PowerLoss => &about_disk[..],
        _ => &[&about_disk[..], &about_calls].concat(),
    };
    if let Some((_, option)) = useless.iter().find(|(given, _)| *given) {
        let name = &scenario.name;
        return Err(Error::usage(format!("{option} has no meaning in the scenario `{name}`"))
            .help("the scenario enospc is about full file systems, errno about calls that fail"));
    }
    if fault == FaultKind::PowerCut {
        return Ok(reach);
    }
    if let [fs, others @ ..] = &options.fs[..] {
        if !others.is_empty() {
            return Err(Error::usage("only one disk can run full at a time")
                .help("give one --fs; run the scenario once for each"));
        }
        reach.fs = *fs;
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
            say(&format!("note: {size} bytes are rounded up to {} blocks", rounded / BLOCK_BYTES))?;
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
        (options.asked_max.is_some(), "--asked-max"),
        (options.first_save, "--first-save"),
    ];
    // A first save is the same on a real disk.
    let useless = if fault == FaultKind::PowerCut { &given[..3] } else { &given[..] };
    if let Some((_, option)) = useless.iter().find(|(given, _)| *given)
        && fault != FaultKind::PowerLoss
    {
        let name = &scenario.name;
        return Err(Error::usage(format!("{option} has no meaning in the scenario `{name}`"))
            .help("use the scenario poweroff"));
    }
    if fault != FaultKind::PowerLoss {
        power.first_save |= options.first_save;
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
    power.asked_max = options.asked_max.unwrap_or(power.asked_max);
    power.first_save |= options.first_save;
    let recovers = options.program.is_empty() || options.about.recover.is_some();
    if options.depth == Some(2) && (!recovers || options.recording.is_some()) {
        return Err(Error::usage("a recovery that is not known can't be explored")
            .help("say with --load CMD how the program loads its state"));
    }
    Ok(power)
}

/// What a power cut looks at: as the scenario says, unless the command line says otherwise.
fn disk(options: &cli::Run, scenario: &Scenario, fault: FaultKind) -> Result<Cutting> {
    let mut disk = scenario.disk.clone();
    let given = [
        (options.mount_opts.is_some(), "--mount-opts"),
        (!options.write_back.is_empty(), "--write-back"),
        (options.slow_writes, "--slow-writes"),
        (options.images_max.is_some(), "--images-max"),
        (options.fsck, "--fsck"),
        (options.during.is_some(), "--during"),
    ];
    if fault != FaultKind::PowerCut {
        return match given.iter().find(|(given, _)| *given) {
            None => Ok(disk),
            Some((_, option)) => {
                let name = &scenario.name;
                Err(Error::usage(format!("{option} has no meaning in the scenario `{name}`"))
                    .help("use the scenario poweroff-disk"))
            }
        };
    }
    if !options.fs.is_empty() {
        disk.fs.clone_from(&options.fs);
        disk.fs.sort();
        disk.fs.dedup();
    }
    if disk.fs.contains(&FileSystem::Tmpfs) {
        return Err(Error::usage("a tmpfs has no disk, and nothing of it is left")
            .help("use --fs ext4, xfs or btrfs"));
    }
    if !options.write_back.is_empty() {
        disk.write_back.clone_from(&options.write_back);
        disk.write_back.sort();
        disk.write_back.dedup();
    }
    if let Some(size) = &options.fs_size {
        disk.fs_bytes = Some(bytes(size)?.next_multiple_of(BLOCK_BYTES));
    }
    if let Some(mount_options) = &options.mount_opts {
        disk.mount_options.clone_from(mount_options);
    }
    disk.images_max = options.images_max.unwrap_or(disk.images_max);
    if disk.images_max == 0 {
        return Err(Error::usage("no images were asked for").help("give --images-max 1 or more"));
    }
    (disk.slow_writes, disk.fsck) =
        (disk.slow_writes || options.slow_writes, disk.fsck || options.fsck);
    Ok(disk)
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
    let at_rest = fault == FaultKind::AtRest;
    let known = [
        (Promise::Atomic, !at_rest, "a fault that strikes while the program saves"),
        (Promise::Durable, at_rest || command.ack.is_some(), "--ack"),
        (Promise::Sound, at_rest, "the scenario corrupt or deleted"),
        (Promise::Consistent, false, "a strategy, and the scenario disconnect or stale"),
        (Promise::Checked, own, "--check, --schema or --invariant"),
        (Promise::Recoverable, command.recover.is_some(), "--load"),
        (
            Promise::Honest,
            fault.is_told(),
            "a fault that the program is told of: a scenario such as errno",
        ),
        (
            Promise::Tidy,
            command.recover.is_some() && !at_rest,
            "--load, and a fault that strikes while it saves",
        ),
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

/// A seed that is short enough to be typed.
pub fn new_seed() -> Result<u64> {
    use rand::TryRng;
    rand::rngs::SysRng.try_next_u32().map(u64::from).context("draw a seed")
}
