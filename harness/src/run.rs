//! A run: unbroken runs, plan, trials, report.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::agenda::{Agenda, Front, Sampled};
use crate::books::Books;
use crate::disk::plan::Cutting;
use crate::error::{Context, Error, Result};
use crate::exhaustive::Exhausted;
use crate::exit_status::ExitStatus;
use crate::fault::{FaultKind, PowerCut};
use crate::lab::{self, Lab};
use crate::listing;
use crate::model::Files;
use crate::op::Trace;
use crate::outcome::Outcome;
use crate::plan::{Granularity, Planner, Seed};
use crate::pool::{Completion, Job, Pool};
use crate::poweroff::{self, Power};
use crate::poweroff_disk;
use crate::prepare;
use crate::progress::Progress;
use crate::record::{Brief, Record};
use crate::report::{MODEL, Report, Row, Swept};
use crate::results::{Kept, Plan, PlannedSubject, RunDirectory, SCHEMA};
use crate::scenario::{Expectation, Scenario};
use crate::subject::{Prepared, Subject};
use crate::sweep::{self, Reach};
use crate::tally::Tally;
use crate::trial::Trial;
use crate::verdict::{Promise, Violation};
use crate::worker::Worker;

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Request {
    /// The scenario.
    pub scenario: Scenario,
    /// The kind of fault; the scenario's unless the command line says otherwise.
    pub fault: FaultKind,
    /// Where faults may strike.
    pub granularity: Granularity,
    /// The seed.
    pub seed: Seed,
    /// How many trials of each subject; none for a whole sweep.
    pub trials: Option<u64>,
    /// How far a sweep goes.
    pub reach: Reach,
    /// What a loss of power is derived for.
    pub power: Power,
    /// What a power cut below real file systems looks at.
    pub disk: Cutting,
    /// Whether every state is derived from a recording, and how many of them are confirmed.
    pub exhaustive: Option<u64>,
    /// The subjects, with their names in tables.
    pub subjects: Vec<(String, Subject)>,
    /// The promises that are judged.
    pub promises: BTreeSet<Promise>,
    /// The command line, for the record.
    pub command_line: Vec<String>,
    /// How this machine does it.
    pub place: Place,
    /// The run to go on with.
    pub resume: Option<RunDirectory>,
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
    if error.status != ExitStatus::Internal || request.exhaustive.is_none() {
        return attempted;
    }
    // A real kill left something else than was derived: either we are wrong, or two recordings of a
    // subject that does not repeat were the same by luck.
    let Some(name) = listing::unrepeated(request, &lab)? else { return attempted };
    let mut report = attempt(&Request { exhaustive: None, ..request.clone() }, &lab)?;
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
    let plan = plan(request, &prepared);
    let directory = match &request.resume {
        Some(directory) => {
            if let Some(earlier) = &earlier {
                same_plan(earlier, &plan)?;
            }
            directory.clone()
        }
        None => RunDirectory::create(&request.place.results, &request.scenario.name)?,
    };
    if request.resume.is_none() {
        directory.write_plan(&plan)?;
    }
    if request.fault.is_power() {
        let report = power_report(request, lab, prepared, &directory)?;
        directory.write_report(&report)?;
        return Ok(report);
    }
    let mut books = Books::new(prepared.len());
    let mut agenda = agenda(request, &prepared);
    let mut foreign = None;
    directory.read_outcomes(|record| {
        if !of_this_plan(&record, &prepared) {
            foreign = Some(record.n);
        } else if agenda.recall(&record) {
            books.enter(&record);
        }
    })?;
    if let Some(n) = foreign {
        return Err(Error::usage(format!("outcome {n} is not of this plan"))
            .help("the results were changed by hand, or mixed; start the run anew"));
    }
    let done = trials(request, lab, &prepared, &directory, &mut agenda, &mut books)?;
    let mut report = report(request, lab, prepared, &directory, (books, &agenda), &done);
    for (row, exhausted) in report.subjects.iter_mut().zip(exhausted) {
        if let Some(exhausted) = exhausted {
            row.exhaust(exhausted);
        }
    }
    directory.write_report(&report)?;
    Ok(report)
}

/// Runs all subjects unbroken; of those of which every state is to be derived, derives them.
fn prepare_all(
    request: &Request,
    lab: &Lab,
    earlier: Option<&Plan>,
) -> Result<(Vec<Prepared>, Vec<Option<Exhausted>>)> {
    let (mut prepared, mut exhausted) = (Vec::new(), Vec::new());
    for (stream, (name, subject)) in request.subjects.iter().enumerate() {
        let mut one = prepare::prepare(name, subject, lab, request.fault, |sites| {
            let (kind, granularity) = (request.fault, request.granularity);
            // A run that goes on strikes where its plan says, however long this machine took now.
            let planned = earlier.and_then(|plan| plan.subjects.get(stream));
            let sites = planned.map_or(sites, |subject| subject.sites.clone());
            match kind.is_swept() {
                true => Planner::sweeping(kind, &sites, &request.reach),
                false => Planner::new(request.seed, stream as u64, kind, granularity, sites),
            }
        })?;
        exhausted.push(match request.exhaustive {
            Some(confirm) => listing::exhaust(request, lab, &mut one, confirm)?,
            None => None,
        });
        if request.fault == FaultKind::AtRest {
            listing::harm(request, stream, &mut one)?;
        }
        if request.fault == FaultKind::Concurrent {
            listing::meet(request, &mut one);
        }
        if request.fault == FaultKind::Parted {
            listing::part(request, lab, &mut one)?;
        }
        if !request.fault.is_power() {
            // Workers fork the faster the less memory they have, and the trace is not used any more.
            (one.before, one.trace, one.twin) = (Files::default(), Trace::default(), None);
        }
        if request.place.verbose {
            eprintln!(
                "{name}: the unbroken run made {} ops and wrote {} bytes in {:.3} ms",
                one.sites.sites.len(),
                one.sites.bytes(),
                Duration::from_micros(one.sites.duration_us).as_secs_f64() * 1000.0
            );
        }
        prepared.push(one);
    }
    Ok((prepared, exhausted))
}

/// What there is to do.
fn agenda(request: &Request, prepared: &[Prepared]) -> Agenda {
    let sweep = |(index, subject): (usize, &Prepared)| match &subject.planner {
        Planner::Swept(sweep) => Some(Front::new(index, sweep.clone(), request.trials)),
        Planner::Sampled(_) | Planner::Listed(_) => None,
    };
    match prepared.iter().enumerate().map(sweep).collect() {
        Some(fronts) => Agenda::Swept(fronts),
        None => {
            let listed = |subject: &Prepared| match &subject.planner {
                Planner::Listed(listed) => Some(listed.faults.len() as u64),
                Planner::Sampled(_) | Planner::Swept(_) => None,
            };
            let each = prepared
                .iter()
                .map(|subject| listed(subject).unwrap_or(request.trials.unwrap_or(1)))
                .max();
            let each = each.unwrap_or(1);
            let mut sampled = Sampled::new(prepared.len(), each);
            for (index, subject) in prepared.iter().enumerate() {
                let all = listed(subject).unwrap_or(request.trials.unwrap_or(1));
                sampled.end(index, all);
            }
            Agenda::Sampled(sampled)
        }
    }
}

/// Whether a kept outcome is of the trial that this plan makes of its number.
fn of_this_plan(record: &Record, prepared: &[Prepared]) -> bool {
    let subject = prepared.get(record.subject);
    let fault = subject.and_then(|subject| subject.planner.fault(record.n));
    fault.is_some_and(|fault| record.at == fault.place() && record.nature == fault.nature())
}

fn plan(request: &Request, prepared: &[Prepared]) -> Plan {
    let subjects = request.subjects.iter().zip(prepared);
    Plan {
        schema: SCHEMA,
        crashtest: env!("CARGO_PKG_VERSION").to_owned(),
        command_line: request.command_line.clone(),
        kernel: kernel(),
        seed: request.seed,
        trials: request.trials,
        reach: request.reach.clone(),
        power: request.power.clone(),
        disk: request.disk.clone(),
        exhaustive: request.exhaustive,
        fault: request.fault,
        granularity: request.granularity,
        scenario: request.scenario.clone(),
        promises: request.promises.clone(),
        subjects: subjects
            .map(|((name, subject), prepared)| PlannedSubject {
                name: name.clone(),
                subject: subject.clone(),
                sites: prepared.sites.clone(),
            })
            .collect(),
    }
}

/// A run can go on only if its subjects still do what they did.
fn same_plan(old: &Plan, new: &Plan) -> Result<()> {
    let timed = old.fault == FaultKind::KillAfter;
    for (old, new) in old.subjects.iter().zip(&new.subjects) {
        let same = timed
            || old.sites.sites.len() == new.sites.sites.len()
                && old
                    .sites
                    .sites
                    .iter()
                    .zip(&new.sites.sites)
                    .all(|(a, b)| (a.call, a.length) == (b.call, b.length));
        if !same {
            return Err(Error::usage(format!(
                "`{}` does other things than when the run began",
                old.name
            ))
            .help("its earlier trials can't be continued; start the run anew"));
        }
    }
    Ok(())
}

/// How the trials went.
struct Done {
    completion: Completion,
    elapsed: Duration,
    trials: u64,
}

fn trials(
    request: &Request,
    lab: &Lab,
    prepared: &[Prepared],
    directory: &RunDirectory,
    agenda: &mut Agenda,
    books: &mut Books,
) -> Result<Done> {
    // Without tracing there is nothing to keep on one CPU, and a pinned subject is no untouched one.
    let pin = request.fault != FaultKind::KillAfter;
    let mut pool = Pool::start(request.place.jobs, pin, |index| {
        let room = lab::room(lab.path(), index)?;
        Ok(Box::new(Worker::new(request, prepared, directory, room)?) as Job<'_, Record>)
    })?;
    let mut log = BufWriter::with_capacity(1 << 18, directory.append_outcomes()?);
    let progress = RefCell::new(Progress::new(agenda.left(), request.place.quiet));
    let agenda = RefCell::new(agenda);
    let (mut fresh, started) = (0, Instant::now());
    let completion = pool.run(
        &mut |count| agenda.borrow_mut().next(count),
        &mut |record, line| {
            fresh += 1;
            agenda.borrow_mut().heard(&record);
            progress.borrow_mut().count(matches!(record.verdict, Brief::Violated(_)));
            books.enter(&record);
            log.write_all(line).context("keep an outcome")
        },
        &mut || {
            let mut progress = progress.borrow_mut();
            if let Agenda::Swept(_) = **agenda.borrow() {
                let total = progress.done() + agenda.borrow().left();
                progress.expect(total);
            }
            progress.show();
        },
    );
    let elapsed = started.elapsed();
    log.flush().and_then(|()| log.get_ref().sync_all()).context("keep the outcomes")?;
    progress.into_inner().finish();
    Ok(Done { completion: completion?, elapsed, trials: fresh })
}

fn report(
    request: &Request,
    lab: &Lab,
    prepared: Vec<Prepared>,
    directory: &RunDirectory,
    (books, agenda): (Books, &Agenda),
    done: &Done,
) -> Report {
    let rows = prepared.into_iter().zip(books.into_rows());
    Report {
        subjects: rows
            .enumerate()
            .map(|(index, (prepared, (tally, kept)))| Row {
                sweep: match prepared.planner {
                    Planner::Swept(_) => Some(Swept {
                        open_lanes: agenda.open_lanes(index),
                        sampled: request.fault == FaultKind::DiskFull
                            && sweep::free_at(agenda.last_struck(index)) > sweep::EXACT,
                    }),
                    Planner::Sampled(_) | Planner::Listed(_) => None,
                },
                whole: prepared.planner.is_whole(),
                population: prepared.planner.population(),
                expectation: request.expectation(&prepared.name, None),
                name: prepared.name,
                planned: request.trials.unwrap_or(tally.trials()),
                interval: tally.interval(),
                tally,
                kept,
                notes: prepared.notes,
                cells: Vec::new(),
                derived: None,
            })
            .collect(),
        ..head(request, lab, directory, done)
    }
}

/// All of a report but its rows.
fn head(request: &Request, lab: &Lab, directory: &RunDirectory, done: &Done) -> Report {
    Report {
        schema: SCHEMA,
        crashtest: env!("CARGO_PKG_VERSION").to_owned(),
        scenario: request.scenario.name.clone(),
        seed: request.seed,
        command_line: request.command_line.clone(),
        kernel: kernel(),
        file_system: match request.fault {
            FaultKind::DiskFull => request.reach.fs.name().to_owned(),
            FaultKind::PowerLoss => MODEL.to_owned(),
            FaultKind::PowerCut => {
                request.disk.fs.iter().map(|fs| fs.name()).collect::<Vec<_>>().join(", ")
            }
            _ => file_system(lab.path()),
        },
        jobs: request.place.jobs,
        elapsed_ms: u64::try_from(done.elapsed.as_millis()).unwrap_or(u64::MAX),
        trials_now: done.trials,
        complete: done.completion == Completion::Whole,
        directory: shown(directory.path()),
        promises: request.promises.clone(),
        subjects: Vec::new(),
    }
}

/// Derives and judges all crash states.
fn power_report(
    request: &Request,
    lab: &Lab,
    prepared: Vec<Prepared>,
    directory: &RunDirectory,
) -> Result<Report> {
    let started = Instant::now();
    let (mut rows, mut completion) = (Vec::new(), Completion::Whole);
    let mut on_disk = Vec::new();
    if request.fault == FaultKind::PowerCut {
        (on_disk, completion) = poweroff_disk::cells(request, lab, &prepared, directory)?;
    }
    let mut on_disk = on_disk.into_iter();
    for (index, one) in prepared.into_iter().enumerate() {
        let cells = match on_disk.next() {
            Some(cells) => cells,
            None => {
                let (cells, done) = poweroff::cells(request, lab, index, &one, directory)?;
                if done != Completion::Whole {
                    completion = done;
                }
                cells
            }
        };
        let mut tally = Tally::default();
        cells.iter().for_each(|cell| tally.merge(&cell.tally));
        rows.push(Row {
            planned: tally.trials(),
            population: None,
            whole: false,
            interval: tally.interval(),
            tally,
            expectation: request.expectation(&one.name, None),
            kept: Vec::new(),
            notes: one.notes,
            cells,
            derived: None,
            sweep: None,
            name: one.name,
        });
    }
    let trials = rows.iter().map(|row| row.tally.trials()).sum();
    let done = Done { completion, elapsed: started.elapsed(), trials };
    Ok(Report { subjects: rows, ..head(request, lab, directory, &done) })
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
        Ok(Self {
            fault: FaultKind::PowerCut,
            granularity: Granularity::Byte,
            seed: Seed(kept.seed),
            trials: None,
            reach: kept.reach.clone(),
            power: scenario.power.clone(),
            disk,
            exhaustive: None,
            subjects: vec![(kept.trial.subject.clone(), kept.subject.clone())],
            promises: kept.promises.clone(),
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
            scenario,
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
            reach: self.reach.clone(),
            promises: self.promises.clone(),
            injection: outcome.injection.clone(),
            acks: outcome.acks,
            violations: violations.to_vec(),
            exit: outcome.exit,
            steps: Vec::new(),
            calls: None,
            seed: self.seed.0,
            explanation: None,
        }
    }

    /// What is expected of a subject, on a profile if one is given. What breaks on one full disk may
    /// hold on another.
    #[must_use]
    pub fn expectation(&self, name: &str, profile: Option<&str>) -> Expectation {
        let mut expectation = self.scenario.expectation(name, &self.promises);
        if self.power.first_save != self.scenario.power.first_save {
            // What breaks a replacement may be harmless when there is nothing yet, and the other way.
            expectation.breaks.clear();
            return expectation;
        }
        if let Some(profile) = profile {
            return expectation.on(profile);
        }
        let (reach, usual) = (&self.reach, &self.scenario.sweep);
        let elsewhere = reach.fs != usual.fs || reach.axes != usual.axes;
        // Nor is what breaks sure to be met by a sweep that was cut short.
        if self.fault.is_swept() && (elsewhere || self.trials.is_some()) {
            expectation.breaks.clear();
        }
        expectation
    }
}

/// A path as people like it: from here, if it is below.
fn shown(path: &Path) -> String {
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
