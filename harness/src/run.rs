//! A run: unbroken runs, plan, trials, report.

use std::cell::RefCell;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::agenda::Agenda;
use crate::asked::Asked;
use crate::assemble::{self, Found, Unit};
use crate::books::Books;
use crate::disk::plan::Cutting;
use crate::error::Result;
use crate::exhaustive::Exhausted;
use crate::exit_status::ExitStatus;
use crate::fault::{FaultKind, PowerCut};
use crate::lab::{self, Lab};
use crate::listing;
use crate::model::Files;
use crate::op::Trace;
use crate::outcome::Outcome;
use crate::plan::{Granularity, Planner, Seed};
use crate::planned::{Plan, PlannedSubject};
use crate::pool::{Completion, Job, Pool};
use crate::poweroff;
use crate::poweroff_disk;
use crate::prepare;
use crate::progress::Progress;
use crate::record::{Brief, Record};
use crate::report::{MODEL, Report, Row};
use crate::results::{self, Kept, RunDirectory, SCHEMA};
use crate::scenario::Scenario;
use crate::shard::Shard;
use crate::showing::say;
use crate::subject::{Prepared, Subject};
use crate::trial::Trial;
use crate::verdict::Violation;
use crate::worker::Worker;

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Request {
    /// What is asked for, of all subjects.
    pub asked: Asked,
    /// The subjects, with their names in tables.
    pub subjects: Vec<(String, Subject)>,
    /// The command line, for the record.
    pub command_line: Vec<String>,
    /// How this machine does it.
    pub place: Place,
    /// The run to go on with.
    pub resume: Option<RunDirectory>,
    /// Which part of the run this is.
    pub shard: Shard,
}

/// Where and how a run takes place; it makes no difference to what is found.
#[derive(Clone, Debug)]
pub struct Place {
    /// How many workers.
    pub jobs: usize,
    /// The parent of the trial directories.
    pub directory: Option<PathBuf>,
    /// Where results are kept.
    pub results: PathBuf,
    /// Whether nothing but the result is printed.
    pub quiet: bool,
    /// Whether the whole directory of a kept violation is kept.
    pub keep: bool,
    /// Whether the unbroken runs are described.
    pub verbose: bool,
}

/// Runs it all and returns what was found.
pub fn run(request: &Request) -> Result<Report> {
    let lab = Lab::new(request.place.directory.as_deref())?;
    let attempted = attempt(request, &lab);
    let Err(error) = &attempted else { return attempted };
    if error.status != ExitStatus::Internal || request.asked.exhaustive.is_none() {
        return attempted;
    }
    // A real kill left something else than was derived: either we are wrong, or two recordings of a
    // subject that does not repeat were the same by luck.
    let Some(name) = listing::unrepeated(request, &lab)? else { return attempted };
    let mut report = attempt(
        &Request { asked: Asked { exhaustive: None, ..request.asked.clone() }, ..request.clone() },
        &lab,
    )?;
    for row in report.subjects.iter_mut().filter(|row| row.name == name) {
        row.notes.push(
            "its recording does not repeat, though the first two did: nothing is derived, it is really \
             killed instead"
                .to_owned(),
        );
    }
    Ok(report)
}

fn attempt(request: &Request, lab: &Lab) -> Result<Report> {
    let earlier = request.resume.as_ref().map(RunDirectory::read_plan).transpose()?;
    let (prepared, exhausted) = prepare_all(request, lab, earlier.as_ref())?;
    let plan = plan(request, &prepared, exhausted);
    let (directory, earlier) = match (&request.resume, earlier) {
        (Some(directory), earlier) => (directory.clone(), earlier),
        (None, _) => begin(request, &plan)?,
    };
    match &earlier {
        Some(earlier) => {
            earlier.check_unchanged(&plan)?;
            directory.go_on()?;
        }
        None => directory.write_plan(&plan)?,
    }
    // What was planned counts, however long this machine took now.
    let plan = earlier.unwrap_or(plan);
    let (rows, done) = match request.asked.fault.is_power() {
        true => power_rows(request, lab, (&plan, &prepared), &directory)?,
        false => trial_rows(request, lab, (&plan, &prepared), &directory)?,
    };
    let mut report = head(request, lab, (&plan, &directory), &done)?;
    report.subjects = rows;
    directory.write_report(&report)?;
    Ok(report)
}

/// The directory of a run that begins; of a part of one that was interrupted, its own, and its plan: whoever
/// hands out the parts starts one again by the same command.
fn begin(request: &Request, plan: &Plan) -> Result<(RunDirectory, Option<Plan>)> {
    let (root, scenario) = (&request.place.results, &request.asked.scenario.name);
    if !plan.shard.is_whole()
        && let Some(begun) = RunDirectory::begun(root, plan)?
    {
        let earlier = begun.read_plan()?;
        return Ok((begun, Some(earlier)));
    }
    Ok((RunDirectory::create(root, scenario, plan.shard)?, None))
}

/// Does all trials, and says what they come to.
fn trial_rows(
    request: &Request,
    lab: &Lab,
    (plan, prepared): (&Plan, &[Prepared]),
    directory: &RunDirectory,
) -> Result<(Vec<Row>, Done)> {
    let mut books = Books::new(plan);
    let mut agenda = plan.agenda(plan.shard);
    let shared = !plan.asked.fault.is_swept();
    directory.recall_outcomes(|record| {
        let own = !shared || plan.shard.owns(record.n);
        if !own || !of_this_plan(&record, prepared) || !agenda.recall(&record) {
            return Err(results::mixed(record.n));
        }
        books.enter(&record);
        Ok(())
    })?;
    let done = trials(request, lab, prepared, directory, &mut agenda, &mut books)?;
    Ok((assemble::trial_rows(plan, books, &agenda), done))
}

/// Runs all subjects unbroken; of those of which every state is to be derived, derives them.
fn prepare_all(
    request: &Request,
    lab: &Lab,
    earlier: Option<&Plan>,
) -> Result<(Vec<Prepared>, Vec<Option<Exhausted>>)> {
    let (mut prepared, mut exhausted) = (Vec::new(), Vec::new());
    for (stream, (name, subject)) in request.subjects.iter().enumerate() {
        let mut one = prepare::prepare(name, subject, lab, request.asked.fault, |sites| {
            let (kind, granularity) = (request.asked.fault, request.asked.granularity);
            // A run that goes on strikes where its plan says, however long this machine took now.
            let planned = earlier.and_then(|plan| plan.subjects.get(stream));
            let sites = planned.map_or(sites, |subject| subject.sites.clone());
            match kind.is_swept() {
                true => Planner::sweeping(kind, &sites, &request.asked.reach),
                false => Planner::new(request.asked.seed, stream as u64, kind, granularity, sites),
            }
        })?;
        exhausted.push(match request.asked.exhaustive {
            Some(confirm) => listing::exhaust(request, lab, &mut one, confirm)?,
            None => None,
        });
        if request.asked.fault == FaultKind::AtRest {
            listing::harm(request, stream, &mut one)?;
        }
        if request.asked.fault == FaultKind::Concurrent {
            listing::meet(request, lab, stream, &mut one)?;
        }
        if request.asked.fault == FaultKind::Parted {
            listing::part(request, lab, &mut one)?;
        }
        if !request.asked.fault.is_power() {
            // Workers fork the faster the less memory they have, and the trace is not used any more.
            (one.before, one.trace, one.twin) = (Files::default(), Trace::default(), None);
        }
        if request.place.verbose {
            say(&format!(
                "{name}: the unbroken run made {} ops and wrote {} bytes in {:.3} ms",
                one.sites.sites.len(),
                one.sites.bytes(),
                Duration::from_micros(one.sites.duration_us).as_secs_f64() * 1000.0
            ))?;
        }
        prepared.push(one);
    }
    Ok((prepared, exhausted))
}

/// Whether a kept outcome is of the trial that this plan makes of its number.
fn of_this_plan(record: &Record, prepared: &[Prepared]) -> bool {
    let subject = prepared.get(record.subject);
    let fault = subject.and_then(|subject| subject.planner.fault(record.n));
    fault.is_some_and(|fault| record.at == fault.place() && record.nature == fault.nature())
}

fn plan(request: &Request, prepared: &[Prepared], exhausted: Vec<Option<Exhausted>>) -> Plan {
    let mut plan = Plan {
        schema: SCHEMA,
        id: String::new(),
        seal: String::new(),
        crashtest: env!("CARGO_PKG_VERSION").to_owned(),
        command_line: request.command_line.clone(),
        kernel: kernel(),
        shard: request.shard,
        asked: request.asked.clone(),
        subjects: Vec::new(),
    };
    for (((name, subject), prepared), exhausted) in
        request.subjects.iter().zip(prepared).zip(exhausted)
    {
        let trials = match &prepared.planner {
            Planner::Listed(listed) => Some(listed.faults.len() as u64),
            Planner::Sampled(_) => {
                let every = prepared.planner.trials_of_every_boundary();
                let every = every.filter(|_| request.asked.every_boundary).unwrap_or(0);
                Some(request.asked.trials.unwrap_or(1).max(every))
            }
            Planner::Swept(_) => None,
        };
        plan.subjects.push(PlannedSubject {
            name: name.clone(),
            subject: subject.clone(),
            files: prepare::named_files(subject),
            sites: prepared.sites.clone(),
            trials: trials.filter(|_| !request.asked.fault.is_power()),
            population: prepared.planner.population(),
            whole: prepared.planner.is_whole(),
            notes: prepared.notes.clone(),
            stretches: exhausted.as_ref().map(Exhausted::stretches).unwrap_or_default(),
            derived: exhausted.map(|exhausted| (exhausted.states, exhausted.tally)),
        });
    }
    plan.id = plan.name();
    plan
}

/// How the trials went.
struct Done {
    completion: Completion,
    elapsed: Duration,
    trials: u64,
}

/// How often what was done is written down, so that a run that is killed goes on from there.
const KEPT_EVERY: Duration = Duration::from_millis(500);

fn trials(
    request: &Request,
    lab: &Lab,
    prepared: &[Prepared],
    directory: &RunDirectory,
    agenda: &mut Agenda,
    books: &mut Books,
) -> Result<Done> {
    // Without tracing there is nothing to keep on one CPU, and a pinned subject is no untouched one.
    let pin = request.asked.fault != FaultKind::KillAfter;
    let mut pool = Pool::start(request.place.jobs, pin, |index| {
        let room = lab::room(lab.path(), index)?;
        Ok(Box::new(Worker::new(request, prepared, directory, room)?) as Job<'_, Record>)
    })?;
    let log = RefCell::new((directory.append_all_outcomes()?, Instant::now()));
    let progress = RefCell::new(Progress::new(agenda.left(), request.place.quiet));
    let agenda = RefCell::new(agenda);
    let (mut fresh, started) = (0, Instant::now());
    let unkept = |error: &std::io::Error| results::unkept(&directory.outcomes(), error);
    let completion = pool.run(
        &mut |count| agenda.borrow_mut().next(count),
        &mut |record, line| {
            fresh += 1;
            agenda.borrow_mut().heard(&record);
            progress.borrow_mut().count(matches!(record.verdict, Brief::Violated(_)));
            books.enter(&record);
            log.borrow_mut().0.write_all(line).map_err(|error| unkept(&error))
        },
        &mut || {
            let (log, flushed) = &mut *log.borrow_mut();
            if flushed.elapsed() > KEPT_EVERY {
                // What can't be written now is told at the end.
                let _ = log.flush();
                *flushed = Instant::now();
            }
            let mut progress = progress.borrow_mut();
            if let Agenda::Swept(_) = **agenda.borrow() {
                let total = progress.done() + agenda.borrow().left();
                progress.expect(total);
            }
            progress.show();
        },
    );
    let elapsed = started.elapsed();
    let (mut log, _) = log.into_inner();
    log.flush().and_then(|()| log.get_ref().sync_all()).map_err(|error| unkept(&error))?;
    progress.into_inner().finish();
    Ok(Done { completion: completion?, elapsed, trials: fresh })
}

/// All of a report but its rows.
fn head(
    request: &Request,
    lab: &Lab,
    (plan, directory): (&Plan, &RunDirectory),
    done: &Done,
) -> Result<Report> {
    Ok(Report {
        plan: plan.id.clone(),
        shard: plan.shard,
        merged: None,
        checksum: directory.checksum()?,
        schema: SCHEMA,
        crashtest: env!("CARGO_PKG_VERSION").to_owned(),
        scenario: request.asked.scenario.name.clone(),
        seed: request.asked.seed,
        command_line: request.command_line.clone(),
        kernel: kernel(),
        file_system: match request.asked.fault {
            FaultKind::DiskFull => request.asked.reach.fs.name().to_owned(),
            FaultKind::PowerLoss => MODEL.to_owned(),
            FaultKind::PowerCut => {
                request.asked.disk.fs.iter().map(|fs| fs.name()).collect::<Vec<_>>().join(", ")
            }
            _ => file_system(lab.path()),
        },
        jobs: request.place.jobs,
        elapsed_ms: u64::try_from(done.elapsed.as_millis()).unwrap_or(u64::MAX),
        trials_now: done.trials,
        complete: done.completion == Completion::Whole,
        directory: shown(directory.path()),
        promises: request.asked.promises.clone(),
        subjects: Vec::new(),
    })
}

/// Derives, or has a disk show, all crash states that are still to be looked at, and says what they come to.
fn power_rows(
    request: &Request,
    lab: &Lab,
    (plan, prepared): (&Plan, &[Prepared]),
    directory: &RunDirectory,
) -> Result<(Vec<Row>, Done)> {
    let started = Instant::now();
    let mut found = directory.recall_units(plan.shard)?;
    let own = (0..assemble::units(plan)).filter(|n| plan.shard.owns(*n));
    let todo: Vec<u64> = own.filter(|n| !found.contains_key(n)).collect();
    let mut log = directory.append_units()?;
    let unkept = |error: &std::io::Error| results::unkept(&directory.outcomes(), error);
    let mut keep = |unit: u64, one: Found| {
        let unit = Unit { unit, found: one };
        let written = serde_json::to_writer(&mut log, &unit).map_err(std::io::Error::from);
        written.and_then(|()| log.write_all(b"\n")).map_err(|error| unkept(&error))?;
        found.insert(unit.unit, unit.found);
        Ok(())
    };
    let mut completion = Completion::Whole;
    if request.asked.fault == FaultKind::PowerCut {
        let each = &mut |n, cut| keep(n, Found::Cut(Box::new(cut)));
        if !todo.is_empty() {
            completion =
                poweroff_disk::cut(request, lab, prepared, (plan, &todo), directory, each)?;
        }
    } else {
        let profiles = plan.asked.power.profiles.len() as u64;
        for (index, one) in prepared.iter().enumerate() {
            let of_subject = todo.iter().filter(|n| **n / profiles == index as u64);
            let named = |n: &u64| {
                let name = usize::try_from(n % profiles).ok()?;
                Some((*n, plan.asked.power.profiles.get(name)?))
            };
            let own: Vec<(u64, &String)> = of_subject.filter_map(named).collect();
            if own.is_empty() {
                continue;
            }
            let (cells, done) = poweroff::cells(request, lab, index, one, &own, directory)?;
            if done != Completion::Whole {
                completion = done;
                break;
            }
            for (n, cell) in cells {
                keep(n, Found::Cell(Box::new(cell)))?;
            }
        }
    }
    log.flush().and_then(|()| log.get_ref().sync_all()).map_err(|error| unkept(&error))?;
    let rows = assemble::power_rows(plan, found);
    let trials = rows.iter().map(|row| row.tally.trials()).sum();
    Ok((rows, Done { completion, elapsed: started.elapsed(), trials }))
}

impl Request {
    /// What was asked for when a power cut was found, as far as a replay needs it.
    pub fn of_cut(kept: &Kept, cut: &PowerCut) -> Result<Self> {
        let scenario = Scenario::find("poweroff-disk")?;
        let disk = Cutting {
            fs: vec![cut.fs],
            mount_options: cut.mount_options.clone(),
            fs_bytes: cut.fs_bytes,
            slow_writes: cut.slow_writes,
            ..Cutting::default()
        };
        let asked = Asked {
            fault: FaultKind::PowerCut,
            granularity: Granularity::Byte,
            seed: Seed(kept.seed),
            every_boundary: false,
            trials: None,
            reach: kept.reach.clone(),
            power: scenario.power.clone(),
            disk,
            exhaustive: None,
            promises: kept.promises.clone(),
            scenario,
        };
        Ok(Self {
            asked,
            subjects: vec![(kept.trial.subject.clone(), kept.subject.clone())],
            command_line: Vec::new(),
            place: Place {
                jobs: 1,
                directory: None,
                results: PathBuf::new(),
                quiet: true,
                keep: false,
                verbose: false,
            },
            resume: None,
            shard: Shard::default(),
        })
    }

    /// A violation of a subject with all that its replay needs. The steps, the calls and the
    /// explanation are for the caller to add.
    #[must_use]
    pub fn kept(&self, index: usize, outcome: &Outcome, violations: &[Violation]) -> Kept {
        let (name, subject) = &self.subjects[index];
        let trial = Trial { subject: name.clone(), fault: outcome.fault.clone() };
        Kept {
            schema: SCHEMA,
            id: trial.id(subject),
            trial,
            subject: subject.clone(),
            reach: self.asked.reach.clone(),
            promises: self.asked.promises.clone(),
            injection: outcome.injection.clone(),
            acks: outcome.acks,
            violations: violations.to_vec(),
            exit: outcome.exit,
            steps: Vec::new(),
            calls: None,
            seed: self.asked.seed.0,
            explanation: None,
            differences: Vec::new(),
        }
    }
}

/// A path as people like it: from here, if it is below.
#[must_use]
pub fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}

/// The kernel that runs here.
#[must_use]
pub fn kernel() -> String {
    nix::sys::utsname::uname().map_or_else(
        |_| "unknown".to_owned(),
        |name| format!("{} {}", name.sysname().to_string_lossy(), name.release().to_string_lossy()),
    )
}

fn file_system(path: &Path) -> String {
    use nix::sys::statfs::{
        BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC,
        statfs,
    };
    let Ok(found) = statfs(path) else { return "unknown".to_owned() };
    match found.filesystem_type() {
        TMPFS_MAGIC => "tmpfs".to_owned(),
        EXT4_SUPER_MAGIC => "ext4".to_owned(),
        XFS_SUPER_MAGIC => "xfs".to_owned(),
        BTRFS_SUPER_MAGIC => "btrfs".to_owned(),
        OVERLAYFS_SUPER_MAGIC => "overlayfs".to_owned(),
        other => format!("{:#x}", other.0),
    }
}
