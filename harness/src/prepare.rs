//! Trial zero: the unbroken run. It proves that the subject works, and teaches its versions and
//! the places where faults can strike.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crashtest_targets::Strategy;
use xxhash_rust::xxh3::xxh3_128;

use crate::at_rest::Rest;
use crate::baseline;
use crate::error::{Context, Error, Result};
use crate::fault::FaultKind;
use crate::history::History;
use crate::inject::bot::Bot;
use crate::inject::builtin_recorder;
use crate::inject::live::LiveResident;
use crate::lab::{self, Lab};
use crate::model::{Files, Node, NotModelled};
use crate::op::Trace;
use crate::plan::{Granularity, Planner, Seed, Sites};
use crate::recording::Recording;
use crate::state_files::StateFiles;
use crate::subject::{self, BuiltIn, Command, Kind, Prepared, Recorded, Subject};

/// Runs the subject unbroken, so that a fault of this kind can strike it; `planner` makes the planner
/// from its sites.
pub fn prepare(
    name: &str,
    subject: &Subject,
    lab: &Lab,
    fault: FaultKind,
    planner: impl Fn(Sites) -> Planner,
) -> Result<Prepared> {
    match subject {
        Subject::BuiltIn { strategy, saves, state_bytes, growth_bytes, first_save } => {
            let strategy = Strategy::by_name(strategy)
                .ok_or_else(|| Error::usage(format!("there is no strategy `{strategy}`")))?;
            // In a plan or a violation that was changed it can be any number.
            if !subject::can_be_held(*saves, *state_bytes, *growth_bytes) {
                let what = format!("the states of `{name}` are too large");
                return Err(Error::usage(what).help(subject::HOLDABLE));
            }
            let subject = BuiltIn::new(strategy, *saves, *state_bytes, *growth_bytes);
            let subject = if *first_save { subject.from_nothing() } else { subject };
            built_in(name, subject, lab, planner)
        }
        Subject::Command(command) if command.live.is_some() => live(name, command, lab, planner),
        Subject::Command(command) if fault == FaultKind::Parted => bot(name, command, lab, planner),
        Subject::Command(command) => baseline::learn(name, command, lab, fault, planner),
        Subject::Recorded { file } => recorded(name, &Recording::read(file)?, planner),
    }
}

/// Runs a program unbroken and keeps what it did.
pub fn recording(name: &str, command: &Command, directory: Option<&Path>) -> Result<Recording> {
    let lab = Lab::new(directory)?;
    let planner = |sites| Planner::new(Seed(0), 0, FaultKind::Kill, Granularity::Byte, sites);
    let prepared = baseline::learn(name, command, &lab, FaultKind::PowerLoss, planner)?;
    let Kind::Command(learned) = &prepared.kind else {
        return Err(Error::internal("a program is no program"));
    };
    Ok(Recording {
        command: command.argv.clone(),
        kernel: crate::run::kernel(),
        state: prepared.history.files().into_iter().cloned().collect(),
        ended: !learned.serves,
        before: prepared.before,
        trace: prepared.trace,
    })
}

fn recorded(
    name: &str,
    recording: &Recording,
    planner: impl Fn(Sites) -> Planner,
) -> Result<Prepared> {
    let Recording { before, trace, state, ended, .. } = recording.clone();
    let is_state = |path: &Path| state.contains(path);
    let history = History::learn(&trace, &before, &is_state)
        .map_err(|why| Error::usage(format!("the model does not know {}", why.0)))?;
    let kind = Kind::Recorded(Recorded { state: StateFiles::Found(state.clone()), ended });
    let prepared = Prepared::new(name, (kind, history), (before, trace), Duration::ZERO, planner);
    Ok(Prepared { notes: vec!["a recording: nothing was run".to_owned()], ..prepared })
}

/// Lets a program that is not followed serve for a moment.
fn live(
    name: &str,
    command: &Command,
    lab: &Lab,
    planner: impl Fn(Sites) -> Planner,
) -> Result<Prepared> {
    let place = lab.room(0)?.join("live");
    std::fs::create_dir_all(&place).context(format_args!("make {}", place.display()))?;
    let tried = LiveResident::new(command, &place).and_then(|mut resident| resident.trial_zero());
    lab::remove_tree(&place).context("remove the directory of the unbroken run")?;
    tried?;
    unlearned(name, Kind::Live(Box::new(command.clone())), Trace::default(), planner)
}

/// A subject of whose state nothing is known.
fn unlearned(
    name: &str,
    kind: Kind,
    trace: Trace,
    planner: impl Fn(Sites) -> Planner,
) -> Result<Prepared> {
    let before = Files::default();
    let history = History::learn(&Trace::default(), &before, &|_| false)
        .map_err(|why| Error::internal(format!("not modelled: {}", why.0)))?;
    Ok(Prepared::new(name, (kind, history), (before, trace), Duration::ZERO, planner))
}

/// Lets a program live with its broker, and nothing happens.
fn bot(
    name: &str,
    command: &Command,
    lab: &Lab,
    planner: impl Fn(Sites) -> Planner,
) -> Result<Prepared> {
    let (trace, requests) = Bot::new(command, &lab.room(0)?)?.unbroken(name)?;
    let kind = Kind::Bot(Box::new(subject::Bot { command: command.clone(), requests }));
    unlearned(name, kind, trace, planner)
}

/// What an unbroken run has left.
pub fn rest(prepared: &Prepared) -> Result<Rest> {
    let unknown = |why: NotModelled| Error::baseline(format!("the model does not know {}", why.0));
    let mut files = prepared.before.clone();
    for op in &prepared.trace.ops {
        files.apply(op).map_err(unknown)?;
    }
    Ok(Rest::of(&files, &prepared.history))
}

/// Runs a built-in strategy unbroken once more.
pub fn record_again(subject: &BuiltIn, lab: &Lab) -> Result<Trace> {
    let directory = lab.path().join("again");
    let recorded = builtin_recorder::record(subject, &directory);
    lab::remove_tree(&directory).context("remove the directory of the unbroken run")?;
    Ok(recorded?.0)
}

fn built_in(
    name: &str,
    subject: BuiltIn,
    lab: &Lab,
    planner: impl Fn(Sites) -> Planner,
) -> Result<Prepared> {
    let directory = lab.path().join("baseline");
    let mut before = Files::default();
    let file = subject.strategy.state_file();
    if !subject.first_save {
        before.insert(file.into(), Node::File(subject.first_content().to_vec()));
    }
    let recorded = builtin_recorder::record(&subject, &directory);
    let explained = recorded.and_then(|(trace, duration)| {
        let mut files = before.clone();
        for op in &trace.ops {
            files.apply(op).map_err(|why| Error::internal(format!("not modelled: {}", why.0)))?;
        }
        let real = std::fs::read(directory.join(file)).context("read the saved state")?;
        if files.bytes(Path::new(file)) == Some(&real[..]) {
            return Ok((trace, duration));
        }
        Err(Error::internal(format!("the trace of `{name}` does not explain what it saved")))
    });
    lab::remove_tree(&directory).context("remove the directory of the unbroken run")?;
    let (trace, duration) = explained?;
    let history = subject.history();
    let kind = (Kind::BuiltIn(subject), history);
    Ok(Prepared::new(name, kind, (before, trace), duration, planner))
}

/// The files that a program's command line names, with a hash of what they hold (XXH3, 128 bits, in
/// hexadecimal). The machine's own programs are left out: each machine has its own Python.
#[must_use]
pub fn named_files(subject: &Subject) -> BTreeMap<String, String> {
    let Subject::Command(command) = subject else { return BTreeMap::new() };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let of = |word: &String| {
        let file = Path::new(word);
        let of_machine = std::env::split_paths(&path).any(|place| file.parent() == Some(&place));
        let named = !of_machine && (word.contains('/') || file.extension().is_some());
        Some((word.clone(), named.then(|| hash_of(file)).flatten()?))
    };
    command.argv.iter().filter_map(of).collect()
}

/// The hash of what a file holds, read once as long as it is not changed: each scenario asks for it, and a
/// program with debug information can have hundreds of MB.
fn hash_of(file: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    /// Device, inode, size and the time of the last change.
    type Identity = (u64, u64, u64, i64, i64);
    thread_local! {
        static KNOWN: RefCell<BTreeMap<Identity, String>> = RefCell::default();
    }
    let meta = std::fs::metadata(file).ok()?;
    let identity = (meta.dev(), meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec());
    if let Some(known) = KNOWN.with_borrow(|known| known.get(&identity).cloned()) {
        return Some(known);
    }
    let hash = format!("{:032x}", xxh3_128(&std::fs::read(file).ok()?));
    KNOWN.with_borrow_mut(|known| known.insert(identity, hash.clone()));
    Some(hash)
}
