//! From a plan and what came of its trials to the rows of the report: the same for a run that has just
//! ended, for one that is read again, and for the parts of one together.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::agenda::Agenda;
use crate::asked::Asked;
use crate::books::Books;
use crate::cut::Cut;
use crate::fault::FaultKind;
use crate::file_system::FileSystem;
use crate::plan::Planner;
use crate::planned::{Plan, PlannedSubject};
use crate::power::spread::Spread;
use crate::poweroff_disk;
use crate::record::Record;
use crate::report::heat::Counter;
use crate::report::power::{Cell, Finding, OnDisk};
use crate::report::{DerivedKills, Row, Swept};
use crate::scenario::Expectation;
use crate::sweep;
use crate::tally::Tally;
use crate::verdict::Why;

/// A piece of a run by crash states, which is derived or recorded for itself: a line of `units.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unit {
    /// Its number in the run.
    pub unit: u64,
    /// What came of it.
    pub found: Found,
}

/// What came of such a piece.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// Of a subject on a profile.
    Cell(Box<Cell>),
    /// Of one recording of a subject on a real disk.
    Cut(Box<Cut>),
}

/// How many such pieces a run has.
#[must_use]
pub fn units(plan: &Plan) -> u64 {
    match plan.asked.fault {
        FaultKind::PowerLoss => (plan.subjects.len() * plan.asked.power.profiles.len()) as u64,
        FaultKind::PowerCut => poweroff_disk::pieces(plan).len() as u64,
        _ => 0,
    }
}

/// The rows of a run of trials.
#[must_use]
pub fn trial_rows(plan: &Plan, books: Books, agenda: &Agenda) -> Vec<Row> {
    let subjects = plan.subjects.iter().zip(books.into_rows()).enumerate();
    let row = |(index, (one, (mut tally, kept, heat))): (usize, (&PlannedSubject, _))| {
        if let Some(ends) = agenda.whole_lanes(index) {
            // How far past the end of a lane was tried differs with the number of machines.
            let not_reached = (ends > 0).then_some((Why::NotReached, ends));
            tally_without_ends(&mut tally).extend(not_reached);
        }
        let swept = plan.asked.fault.is_swept().then(|| Swept {
            open_lanes: agenda.open_lanes(index),
            sampled: plan.asked.fault == FaultKind::DiskFull
                && sweep::free_at(agenda.last_struck(index)) > sweep::EXACT,
        });
        let mut row = Row {
            sweep: swept,
            whole: one.whole,
            population: one.population,
            planned: match one.derived {
                None => one.trials.unwrap_or(tally.trials()),
                Some(_) => tally.trials(),
            },
            kept,
            heat,
            ..bare(plan, one, tally)
        };
        if let Some((states, derived)) = &one.derived {
            exhaust(&mut row, *states, derived.clone());
        }
        row
    };
    subjects.map(row).collect()
}

fn tally_without_ends(tally: &mut Tally) -> &mut BTreeMap<Why, u64> {
    tally.inconclusive.remove(&Why::NotReached);
    &mut tally.inconclusive
}

fn bare(plan: &Plan, one: &PlannedSubject, tally: Tally) -> Row {
    let mut expectation = plan.asked.expectation(&one.name, None);
    if !plan.shard.is_whole() {
        // What breaks is not sure to be met by a part.
        expectation.breaks.clear();
    }
    Row {
        name: one.name.clone(),
        planned: tally.trials(),
        population: None,
        whole: false,
        interval: tally.interval(),
        tally,
        expectation,
        kept: Vec::new(),
        notes: one.notes.clone(),
        cells: Vec::new(),
        derived: None,
        sweep: None,
        heat: None,
    }
}

/// Counts all derived states instead of those that were really made; what only these can show
/// (recovery, the user's own checks) stays.
fn exhaust(row: &mut Row, states: u64, derived: Tally) {
    let confirmed = std::mem::replace(&mut row.tally, derived);
    row.derived = Some(DerivedKills { states, confirmed: confirmed.judged() });
    row.interval = row.tally.interval();
    for (promise, count) in confirmed.broken {
        row.tally.broken.entry(promise).or_insert(count);
    }
    row.tally.leftovers = confirmed.leftovers;
}

/// Trials that were done elsewhere or before, read again.
pub struct Recalled {
    agenda: Agenda,
    books: Books,
    planners: Vec<Option<Planner>>,
}

/// Why a trial can't be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no such trial in the plan, or it strikes elsewhere.
    Foreign,
    /// It was entered before.
    Twice,
}

impl Recalled {
    /// None yet.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        // How many of a sweep there were to be does not matter any more.
        let asked = Asked { trials: None, ..plan.asked.clone() };
        let agenda = Plan { asked, ..plan.clone() }.agenda(plan.shard);
        let planners = (0..plan.subjects.len()).map(|index| plan.planner(index)).collect();
        Self { agenda, books: Books::new(plan), planners }
    }

    /// Enters one, in any order.
    pub fn enter(&mut self, record: &Record) -> Result<(), Refused> {
        if let Some(planner) = self.planners.get(record.subject).ok_or(Refused::Foreign)? {
            let fault = planner.fault(record.n).ok_or(Refused::Foreign)?;
            if record.at != fault.place() || record.nature != fault.nature() {
                return Err(Refused::Foreign);
            }
        }
        if !self.agenda.recall(record) {
            return Err(Refused::Twice);
        }
        self.books.enter(record);
        Ok(())
    }

    /// What they have shown, and how many are missing; of a sweep nobody knows.
    #[must_use]
    pub fn finish(mut self) -> (Books, Agenda, u64) {
        let mut missing = self.agenda.left();
        if let Agenda::Swept(_) = self.agenda {
            missing = 0;
            while self.agenda.next(u64::MAX).is_some() {}
        }
        (self.books, self.agenda, missing)
    }
}

/// The rows of a run by crash states.
#[must_use]
pub fn power_rows(plan: &Plan, found: BTreeMap<u64, Found>) -> Vec<Row> {
    let mut cells: Vec<Vec<Cell>> = vec![Vec::new(); plan.subjects.len()];
    let mut cuts: BTreeMap<(usize, FileSystem), Vec<Cut>> = BTreeMap::new();
    let pieces = poweroff_disk::pieces(plan);
    let profiles = plan.asked.power.profiles.len().max(1);
    for (unit, found) in found {
        let Ok(unit) = usize::try_from(unit) else { continue };
        match found {
            Found::Cell(cell) => {
                if let Some(cells) = cells.get_mut(unit / profiles) {
                    cells.push(*cell);
                }
            }
            Found::Cut(cut) => {
                if let Some(piece) = pieces.get(unit) {
                    cuts.entry((piece.subject, piece.fs)).or_default().push(*cut);
                }
            }
        }
    }
    for ((subject, fs), cuts) in cuts {
        if let (Some(cells), Some(one)) = (cells.get_mut(subject), plan.subjects.get(subject)) {
            cells.push(disk_cell(&plan.asked, one, fs, cuts));
        }
    }
    let row = |(one, mut cells): (&PlannedSubject, Vec<Cell>)| {
        if !plan.shard.is_whole() {
            cells.iter_mut().for_each(|cell| cell.expectation.breaks.clear());
        }
        let mut tally = Tally::default();
        cells.iter().for_each(|cell| tally.merge(&cell.tally));
        let heat = Counter::of_cells(&one.sites, &cells).heat();
        Row { cells, heat, ..bare(plan, one, tally) }
    };
    plan.subjects.iter().zip(cells).map(row).collect()
}

/// What the recordings of a subject on a file system have shown together.
fn disk_cell(asked: &Asked, one: &PlannedSubject, fs: FileSystem, cuts: Vec<Cut>) -> Cell {
    let mut on_disk = OnDisk {
        recordings: cuts.len() as u64,
        acks: one.subject.is_live().then(|| cuts.iter().map(|cut| cut.acks).sum()),
        boundaries_sampled: asked.disk.samples_boundaries(one.sites.sites.len()),
        prefixes_sampled: cuts.iter().any(|cut| !cut.prefixes),
        ..OnDisk::default()
    };
    let mut cell = Cell {
        profile: fs.name().to_owned(),
        states: 0,
        distinct: 0,
        shown: None,
        exhaustive: false,
        not_measured: None,
        tally: Tally::default(),
        spread: Spread::default(),
        findings: Vec::new(),
        expectation: expectation_on_disk(asked, &one.name, fs),
        disk: None,
    };
    let (mut seen, mut allowed) = (BTreeSet::new(), BTreeSet::new());
    let mut compared = !cuts.is_empty();
    for cut in cuts {
        cell.states += cut.images;
        cell.tally.merge(&cut.tally);
        cell.spread.merge(&cut.spread);
        seen.extend(cut.seen);
        compared &= cut.allowed.is_some();
        allowed.extend(cut.allowed.into_iter().flatten());
        on_disk.outside.merge(cut.outside);
        on_disk.refused.merge(cut.refused);
        on_disk.stuck.merge(cut.stuck);
        on_disk.harmed.merge(cut.harmed);
        for (finding, classes) in cut.findings {
            fold(&mut cell.findings, finding, &classes);
        }
    }
    cell.distinct = seen.len();
    cell.spread = cell.spread.coarse();
    cell.findings.sort_by_key(|finding| (finding.kind.promise(), finding.explanation.after_ops));
    on_disk.not_compared = !compared && asked.disk.profile(fs).is_some();
    if compared {
        on_disk.profile = asked.disk.profile(fs).map(str::to_owned);
        on_disk.allowed = allowed.len();
        on_disk.not_seen = allowed.difference(&seen).count();
    }
    cell.disk = Some(on_disk);
    cell
}

/// What is expected of a subject on a file system that is mounted like this.
fn expectation_on_disk(asked: &Asked, name: &str, fs: FileSystem) -> Expectation {
    let (disk, usual) = (&asked.disk, &asked.scenario.disk);
    let mut expectation = asked.expectation(name, disk.profile(fs));
    let less = disk.images_max < usual.images_max || disk.write_back != usual.write_back;
    // Of other mount options it is not known what they allow, and of less not what it meets.
    if less || disk.profile(fs).is_none() {
        expectation.breaks.clear();
    }
    expectation
}

/// Adds a finding to those of its cause.
fn fold(findings: &mut Vec<Finding>, finding: Finding, classes: &BTreeSet<u64>) {
    let cause = &finding.explanation.cause;
    match findings.iter_mut().find(|known| known.explanation.cause == *cause) {
        None => findings.push(Finding { survivors: classes.len(), ..finding }),
        Some(known) => {
            known.states += finding.states;
            known.survivors = known.survivors.max(classes.len());
            for (kind, count) in finding.kinds {
                *known.kinds.entry(kind).or_default() += count;
            }
        }
    }
}
