//! Runs one kept trial again.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::Serialize;

use crate::cutter::{Cutter, Likeness};
use crate::describe::folded;
use crate::environment::Environment;
use crate::error::{Context, Error, Result};
use crate::fault::{Fault, FaultKind, Injection, PowerCut, PowerLoss};
use crate::history::History;
use crate::inject;
use crate::lab::Lab;
use crate::oracle;
use crate::outcome::{Content, Exit, Outcome, Step};
use crate::plan::{Granularity, Planner, Seed};
use crate::power::explain::Explanation;
use crate::poweroff_disk::{self, Disks};
use crate::prepare;
use crate::program;
use crate::recorded::{self, Again};
use crate::results::{self, Kept};
use crate::run::Request;
use crate::second::{self, Shown};
use crate::subject::{About, Kind, Prepared, Subject};
use crate::sweep::Depth;
use crate::tree;
use crate::trial::Trial;
use crate::verdict::{Verdict, Violation, ViolationKind};
use crate::volume::Volume;

/// One trial, run again.
#[derive(Clone, Debug, Serialize)]
pub struct Replayed {
    /// The trial's id.
    pub id: String,
    /// The trial.
    pub trial: Trial,
    /// Whether the subject is one that is not followed.
    #[serde(skip)]
    pub live: bool,
    /// What the fault met.
    pub injection: Injection,
    /// How the subject ended.
    pub exit: Exit,
    /// How many acks the world saw.
    pub acks: u64,
    /// The version that is then owed.
    pub owed: usize,
    /// What the subject did from the strike on.
    pub steps: Vec<Step>,
    /// Why a loss of power breaks a promise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explanation>,
    /// The verdict.
    pub verdict: Verdict,
    /// Whether the verdict and every surviving byte are those that were kept.
    pub again: bool,
    /// Where a copy of the directory is.
    pub directory: PathBuf,
    /// The state files.
    pub files: Vec<ReplayedFile>,
}

/// One state file after the trial.
#[derive(Clone, Debug, Serialize)]
pub struct ReplayedFile {
    /// Its name.
    pub path: PathBuf,
    /// Its bytes; `None` when it is missing or no regular file.
    #[serde(skip)]
    pub bytes: Option<Vec<u8>>,
    /// How many there are.
    pub length: Option<usize>,
    /// Whether they are those that were kept.
    pub again: bool,
    /// The versions that it could be: those from the owed one to the next.
    #[serde(skip)]
    pub expected: Vec<(usize, Vec<u8>)>,
}

/// Runs the trial called `id` again and keeps the directory in `keep`, or in a new one.
///
/// `given` has the values of the program's variables, which are not kept; `tell` is shown what is about to run.
pub fn replay(
    root: &Path,
    id: &str,
    keep: Option<&Path>,
    given: &Environment,
    tell: &mut dyn FnMut(&Subject),
) -> Result<Replayed> {
    let (mut kept, survivor) = results::find_kept(root, id)?;
    program::supply(&mut kept.subject, given)?;
    tell(&kept.subject);
    let kept = kept;
    let lab = Lab::new(None)?;
    let kind = kept.trial.fault.kind();
    match &kept.trial.fault {
        Fault::PowerLoss(loss) => return power(&kept, loss, &survivor, &lab, keep),
        Fault::PowerCut(cut) => return power_cut(&kept, cut, &survivor, &lab, keep),
        _ => {}
    }
    let mut prepared = unbroken(&kept, &lab, kind)?;
    prepared.about = match kind {
        FaultKind::AtRest => About::Rest(prepare::rest(&prepared)?),
        FaultKind::Concurrent => About::Meeting,
        FaultKind::Parted => About::Outside,
        _ => About::Run,
    };
    let prepared = prepared;
    let directory = directory_to_keep(&kept, keep)?;
    let room = lab.room(0)?;
    let volume = match kind {
        FaultKind::DiskFull => Some(Rc::new(Volume::make(&room, &kept.reach)?)),
        _ => None,
    };
    let mut injector = inject::for_subject(&prepared, &room, volume)?;
    injector.keep_in(directory.clone());
    let outcomes = injector.inject(std::slice::from_ref(&kept.trial.fault))?;
    let [outcome] = &outcomes[..] else {
        return Err(Error::internal("one fault must have one outcome"));
    };
    let mut steps = outcome.steps.clone();
    if steps.is_empty() && outcome.fault.is_told() {
        steps = injector.explain(&kept.trial.fault)?;
    }
    let verdict = oracle::judge(outcome, &prepared.history, &kept.promises);
    if let Injection::NotReached = outcome.injection {
        return Err(not_reached(&kept));
    }
    let again = Found { outcome, history: &prepared.history, verdict, explanation: None, steps };
    Ok(again.beside(&kept, &survivor, directory))
}

/// What a replay has found.
struct Found<'a> {
    outcome: &'a Outcome,
    history: &'a History,
    verdict: Verdict,
    explanation: Option<Explanation>,
    steps: Vec<Step>,
}

impl Found<'_> {
    /// Compares it with what was kept, whose state files are below `survivor`; a copy is in `directory`.
    fn beside(self, kept: &Kept, survivor: &Path, directory: PathBuf) -> Replayed {
        let Self { outcome, history, verdict, explanation, steps } = self;
        let files = files(outcome, history, survivor);
        let live = is_live(kept);
        Replayed {
            live,
            id: kept.id.clone(),
            trial: kept.trial.clone(),
            injection: outcome.injection.clone(),
            exit: outcome.exit,
            acks: outcome.acks,
            owed: oracle::owed(outcome, history),
            steps,
            explanation,
            again: same(&verdict, kept) && files.iter().all(|file| file.again),
            verdict,
            directory,
            files,
        }
    }
}

/// Runs the subject unbroken. The fault is given: nothing is planned and nothing is drawn.
fn unbroken(kept: &Kept, lab: &Lab, fault: FaultKind) -> Result<Prepared> {
    let planner = |sites| Planner::new(Seed(0), 0, FaultKind::Kill, Granularity::Byte, sites);
    prepare::prepare(&kept.trial.subject, &kept.subject, lab, fault, planner)
}

fn directory_to_keep(kept: &Kept, keep: Option<&Path>) -> Result<PathBuf> {
    Ok(match keep {
        Some(directory) => {
            fs::create_dir_all(directory).context(format_args!("make {}", directory.display()))?;
            if fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some()) {
                return Err(Error::usage(format!("{} is not empty", directory.display()))
                    .help("name a new directory with --keep"));
            }
            fs::canonicalize(directory).context(format_args!("find {}", directory.display()))?
        }
        None => tempfile::Builder::new()
            .prefix(&format!("crashtest-replay-{}-", kept.id))
            .tempdir()
            .context("make a directory to keep")?
            .keep(),
    })
}

/// Records the subject again, and derives the same crash state from that.
fn power(
    kept: &Kept,
    loss: &PowerLoss,
    survivor: &Path,
    lab: &Lab,
    keep: Option<&Path>,
) -> Result<Replayed> {
    let prepared = unbroken(kept, lab, FaultKind::PowerLoss)?;
    let kind = kept.violations.first().map(|violation| violation.kind);
    let Again { left, mut outcome, history, explanation } =
        recorded::again(&prepared, loss, kept.calls, kind)?;
    let mut again = Vec::new();
    let directory = directory_to_keep(kept, keep)?;
    left.unfold(&directory).context(format_args!("fill {}", directory.display()))?;
    if !matches!(prepared.kind, Kind::Recorded(_)) {
        let mut injector = inject::for_subject(&prepared, &lab.room(0)?, None)?;
        (outcome.checks, outcome.recovery) = injector.confront(&left)?;
        let passed = oracle::judge(&outcome, &history, &kept.promises) == Verdict::Pass;
        if passed && kept.reach.depth == Depth::Two {
            let (injector, profile) = (&mut *injector, &loss.profile);
            if let Shown::Found(found) =
                second::recovery(injector, &prepared, &left, profile, kept.seed)?
            {
                again = found;
            }
        }
    }
    let verdict = match again.is_empty() {
        true => oracle::judge(&outcome, &history, &kept.promises),
        false => Verdict::Violated(again),
    };
    let again =
        Found { outcome: &outcome, history: &history, verdict, explanation, steps: Vec::new() };
    Ok(again.beside(kept, survivor, directory))
}

/// Records the subject on a disk again, and looks for the same damage.
fn power_cut(
    kept: &Kept,
    cut: &PowerCut,
    survivor: &Path,
    lab: &Lab,
    keep: Option<&Path>,
) -> Result<Replayed> {
    let prepared = unbroken(kept, lab, FaultKind::PowerCut)?;
    let directory = directory_to_keep(kept, keep)?;
    let request = Request::of_cut(kept, cut)?;
    let disks = Disks::start(&request.asked.disk, lab)?;
    let units = poweroff_disk::units_again(&request, &prepared, &disks, cut);
    let prepared = [prepared];
    let own = disks.of_worker(lab.path(), 0)?;
    let mut cutter = Cutter::new(&request, &prepared, &units, None, own);
    let found = cutter.again(
        cut,
        &|outcome, history| likeness(outcome, history, kept, survivor),
        &directory,
    )?;
    let verdict = oracle::judge(&found.outcome, &found.history, &kept.promises);
    let again = Found {
        outcome: &found.outcome,
        history: &found.history,
        verdict,
        explanation: kept.explanation.clone(),
        steps: Vec::new(),
    };
    Ok(again.beside(kept, survivor, directory))
}

/// How like what was kept this is.
fn likeness(outcome: &Outcome, history: &History, kept: &Kept, survivor: &Path) -> Likeness {
    let verdict = oracle::judge(outcome, history, &kept.promises);
    let kind = match &verdict {
        Verdict::Violated(found) => found.first().map(|violation| violation.kind),
        Verdict::Pass | Verdict::Inconclusive(_) => None,
    };
    if kind != kept.violations.first().map(|violation| violation.kind) {
        return Likeness::None;
    }
    // A program that is not followed never leaves the same bytes.
    let bytes = || files(outcome, history, survivor).iter().all(|file| file.again);
    match same(&verdict, kept) && (is_live(kept) || bytes()) {
        true => Likeness::Same,
        false => Likeness::Kind,
    }
}

/// Whether a verdict is the one that was kept, but for numbers and hashes in its messages. Temp files have other names
/// each time, and a program that is not followed does something else.
fn same(verdict: &Verdict, kept: &Kept) -> bool {
    let Verdict::Violated(found) = verdict else { return false };
    let live = is_live(kept);
    let alike = |(one, other): (&Violation, &Violation)| {
        let says_the_same = || folded(&one.detail) == folded(&other.detail);
        one.kind == other.kind && (live || one.kind == ViolationKind::Leftovers || says_the_same())
    };
    found.len() == kept.violations.len() && found.iter().zip(&kept.violations).all(alike)
}

fn is_live(kept: &Kept) -> bool {
    matches!(&kept.subject, Subject::Command(command) if command.live.is_some())
}

fn not_reached(kept: &Kept) -> Error {
    let mut error = Error::usage(format!("the fault did not strike: {}", kept.trial.fault));
    error.status = crate::exit_status::ExitStatus::NothingStruck;
    error.help("has the program changed since? run the scenario anew")
}

fn files(outcome: &Outcome, history: &History, survivor: &Path) -> Vec<ReplayedFile> {
    let owed = oracle::owed(outcome, history);
    let all: BTreeSet<&PathBuf> =
        history.files().into_iter().chain(outcome.survivor.files.keys()).collect();
    all.into_iter()
        .map(|path| {
            let bytes = match outcome.survivor.files.get(path) {
                Some(Content::Bytes(bytes)) => Some(bytes.clone()),
                Some(Content::Other(_)) | None => None,
            };
            let kept = tree::read_below(survivor, path.strip_prefix("/").unwrap_or(path)).ok();
            let versions = history.versions.iter().enumerate().skip(owed).take(2);
            let expected = versions
                .filter_map(|(n, version)| Some((n, version.get(path)?.bytes.clone())))
                .collect();
            let (length, again) = (bytes.as_ref().map(Vec::len), bytes == kept);
            ReplayedFile { path: path.clone(), bytes, length, again, expected }
        })
        .collect()
}
