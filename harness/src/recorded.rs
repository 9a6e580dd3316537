//! A recorded subject: its versions, and the facts of any crash state of its recording.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::fault::{Fault, Injection, PowerLoss, Struck};
use crate::history::History;
use crate::inject::Left;
use crate::model::NotModelled;
use crate::op::{Effect, Trace};
use crate::oracle;
use crate::outcome::{Exit, Outcome};
use crate::power::explain::{Broken, Explanation};
use crate::power::lower::lower;
use crate::power::profile::Profile;
use crate::power::survivor::CrashState;
use crate::power::{Lowered, Time};
use crate::state_files::StateFiles;
use crate::subject::{Kind, Prepared};
use crate::verdict::{Verdict, ViolationKind};
use xxhash_rust::xxh3::Xxh3;

/// One subject's recording, ready to be looked at.
pub struct Recording<'a> {
    /// The subject.
    pub prepared: &'a Prepared,
    /// Its versions.
    pub history: History,
    /// What it did. If its end promised something, there is an ack for it.
    pub trace: Arc<Trace>,
    /// The files that are told apart: first those that are its state, then others that a load may
    /// look at.
    pub paths: Vec<PathBuf>,
    /// How many of them are its state.
    pub judged: usize,
    /// Whether the last ack stands for its end with status 0.
    ended: bool,
}

impl<'a> Recording<'a> {
    /// A recording of a part of what the subject does.
    #[must_use]
    pub fn of(prepared: &'a Prepared, history: History, trace: Trace, ended: bool) -> Self {
        let mut paths: Vec<PathBuf> = history.files().into_iter().cloned().collect();
        let judged = paths.len();
        paths.extend(companions(prepared, &trace, &history.files()));
        Self { prepared, history, trace: Arc::new(trace), paths, judged, ended }
    }

    /// The state files.
    #[must_use]
    pub fn state(&self) -> &[PathBuf] {
        &self.paths[..self.judged]
    }

    /// The unbroken run of a subject.
    pub fn new(prepared: &'a Prepared) -> Result<Self> {
        let mut trace = prepared.trace.clone();
        // The crash states are of this very recording: its versions are known byte by byte.
        let (state, ended) = match &prepared.kind {
            Kind::BuiltIn(_) | Kind::Live(_) | Kind::Bot(_) => {
                return Ok(Self::of(prepared, prepared.history.clone(), trace, false));
            }
            Kind::Command(learned) => (&learned.state, !learned.serves),
            Kind::Recorded(recorded) => (&recorded.state, recorded.ended),
        };
        let history = learn(&mut trace, prepared, state, ended)?;
        Ok(Self::of(prepared, history, trace, ended))
    }

    /// Whether the last ack stands for its end with status 0.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// How many acks the world had seen: its end with status 0 is one in the trace, and none that was printed.
    #[must_use]
    pub fn given(&self, acks: usize) -> u64 {
        let all = self.ended && acks == self.trace.acks.len();
        (acks - usize::from(all)) as u64
    }

    /// What was called, as a hash: the calls, where they wrote and how much, but no names and no bytes,
    /// which may differ from run to run.
    #[must_use]
    pub fn calls(&self) -> u64 {
        let mut hash = Xxh3::new();
        for op in &self.trace.ops {
            hash.update(op.call.name().as_bytes());
            hash.update(&op.result.min(0).to_le_bytes());
            if let Effect::Write { offset, data, .. } = &op.effect {
                hash.update(&offset.0.to_le_bytes());
                hash.update(&data.len().to_le_bytes());
            }
        }
        hash.digest()
    }

    /// The facts of a crash state.
    pub fn outcome(
        &self,
        lowered: &Lowered,
        profile: &str,
        state: CrashState,
        acks: usize,
    ) -> Outcome {
        let said = &self.trace.said;
        let survivor = state.survivor(lowered, self.state());
        let ops = Time(state.moment).ops_begun();
        let all = self.ended && acks == self.trace.acks.len();
        let fault = Fault::PowerLoss(PowerLoss { profile: profile.to_owned(), state });
        let exit = if all { Exit::Status(0) } else { Exit::Killed };
        Outcome {
            acks: self.given(acks),
            said: said[..acks.min(said.len())].to_vec(),
            survivor: self.prepared.settled(survivor),
            ..Outcome::new(fault, Injection::At(Struck::Power { ops }), exit)
        }
    }

    /// Why a crash state breaks a promise.
    #[must_use]
    pub fn explain(
        &self,
        lowered: &Lowered,
        outcome: &Outcome,
        kind: ViolationKind,
    ) -> Explanation {
        let (state, ended) = (state_of(outcome), self.ended);
        let owed = oracle::owed(outcome, &self.history);
        let is_wrong = |path: &&PathBuf| {
            let content = outcome.survivor.files.get(*path);
            oracle::newest_match(content, &self.history, path).is_none_or(|found| found < owed)
        };
        let moment = Time(state.moment);
        if self.history.loads.is_some() {
            // What its files mean only the load can say; what was promised and is lost lies in some of them.
            if kind != ViolationKind::LostAck {
                return Explanation::of_load(moment.ops_begun(), kind);
            }
            let (paths, is_broken) = (&self.paths[..], None);
            let json = false;
            return Broken { lowered, paths, state, moment, kind, ended, json, is_broken }
                .explain();
        }
        let Some(wrong) = self.state().iter().find(is_wrong) else {
            return Explanation::of_whole(moment.ops_begun(), kind);
        };
        let paths = std::slice::from_ref(wrong);
        let promises = BTreeSet::from([kind.promise()]);
        let profile = match &outcome.fault {
            Fault::PowerLoss(loss) => loss.profile.as_str(),
            _ => "",
        };
        let acks = lowered.acks_at(moment);
        let is_broken = |state: &CrashState| {
            let outcome = self.outcome(lowered, profile, state.clone(), acks);
            matches!(oracle::judge(&outcome, &self.history, &promises), Verdict::Violated(_))
        };
        let small = outcome.survivor.size() <= REPAIRED_BYTES_MAX;
        let is_broken: Option<&dyn Fn(&CrashState) -> bool> = small.then_some(&is_broken);
        let json = self.history.is_json(wrong);
        Broken { lowered, paths, state, moment, kind, ended, json, is_broken }.explain()
    }
}

/// Of how large a state it is looked for what repairs it, in bytes.
const REPAIRED_BYTES_MAX: usize = 1 << 20;

/// The versions of a recording. Exit status 0 promises the last one.
pub fn learn(
    trace: &mut Trace,
    prepared: &Prepared,
    state: &StateFiles,
    ended: bool,
) -> Result<History> {
    let is_state = |path: &Path| state.contains(path);
    let mut history = History::learn(trace, &prepared.before, &is_state)
        .map_err(|NotModelled(why)| Error::internal(why))?;
    if ended {
        trace.acks.push(trace.ops.len());
        history.owed.push(history.last());
    }
    history.loads.clone_from(&prepared.history.loads);
    Ok(history)
}

/// The crash state of an outcome.
#[must_use]
pub fn state_of(outcome: &Outcome) -> &CrashState {
    match &outcome.fault {
        Fault::PowerLoss(loss) => &loss.state,
        _ => &NOTHING,
    }
}

/// The state of a disk to which nothing was written.
static NOTHING: CrashState =
    CrashState { barrier: 0, moment: 0, steps: Vec::new(), changes: Vec::new(), stale: false };

/// Files that are no state and that a load may look at: whatever has a name at some moment and is not
/// just renamed to another. Who has no load that can be asked looks at nothing else.
fn companions(prepared: &Prepared, trace: &Trace, state: &BTreeSet<&PathBuf>) -> Vec<PathBuf> {
    let asks = match &prepared.kind {
        Kind::BuiltIn(subject) => {
            return subject.strategy.companions().iter().map(PathBuf::from).collect();
        }
        Kind::Command(learned) => learned.command.check.is_some() || learned.load().is_some(),
        Kind::Recorded(_) | Kind::Live(_) | Kind::Bot(_) => false,
    };
    if !asks {
        return Vec::new();
    }
    let mut named: BTreeSet<PathBuf> = prepared.before.paths().map(Path::to_owned).collect();
    let mut passing = BTreeSet::new();
    for op in trace.ops.iter().filter(|op| op.succeeded()) {
        match &op.effect {
            Effect::Open { path, create: true, .. } | Effect::Symlink { path, .. } => {
                named.insert(path.clone());
            }
            Effect::Rename { from, to, .. } => {
                passing.insert(from.clone());
                named.insert(to.clone());
            }
            Effect::Link { to, .. } => {
                named.insert(to.clone());
            }
            _ => {}
        }
    }
    let counts = |path: &PathBuf| !state.contains(path) && path.is_relative();
    let mut found: Vec<PathBuf> = named.into_iter().filter(counts).collect();
    if found.len() > COMPANIONS_MAX {
        found.retain(|path| !passing.contains(path));
    }
    found
}

/// How many files that are no state are told apart; if there are more, those that are renamed are shown
/// with all that had happened to them.
pub const COMPANIONS_MAX: usize = 32;

/// A crash state, derived again from another recording of the same subject.
pub struct Again {
    /// The directory.
    pub left: Left,
    /// The facts.
    pub outcome: Outcome,
    /// The versions of this recording.
    pub history: History,
    /// Why it breaks a promise.
    pub explanation: Option<Explanation>,
}

/// Derives a crash state again.
pub fn again(
    prepared: &Prepared,
    loss: &PowerLoss,
    calls: Option<u64>,
    broken: Option<ViolationKind>,
) -> Result<Again> {
    let recording = Recording::new(prepared)?;
    let same = calls.is_none_or(|calls| calls == recording.calls());
    let profile = Profile::find(&loss.profile)?;
    let lowered = lower(&recording.trace, &prepared.before, &profile.flags)
        .map_err(|NotModelled(why)| Error::baseline(format!("the model does not know {why}")))?;
    if !same || !loss.state.fits(&lowered) {
        return Err(Error::usage("the program makes other calls than when this was found")
            .help("run the scenario anew"));
    }
    let acks = lowered.acks_at(Time(loss.state.moment));
    let outcome = recording.outcome(&lowered, &profile.name, loss.state.clone(), acks);
    let explanation = broken.map(|kind| recording.explain(&lowered, &outcome, kind));
    let left = Left {
        directory: loss.state.directory(&lowered),
        survivor: outcome.survivor.clone(),
        acks: outcome.acks,
    };
    Ok(Again { left, outcome, history: recording.history, explanation })
}
