//! Subjects: what is tested.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use crashtest_targets::{BotState, STATE_BYTES_MAX, Strategy, Version};
use serde::{Deserialize, Serialize};

use crate::at_rest::Rest;
use crate::environment::Environment;
use crate::history::History;
use crate::model::Files;
use crate::op::Trace;
use crate::outcome::{Content, Loaded, Survivor};
use crate::plan::{Planner, Sites};
use crate::state_files::{KnownNames, StateFiles};

/// What is tested, as it can be stored and run again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A built-in strategy, run in a forked child.
    BuiltIn {
        /// Its name.
        strategy: String,
        /// How often it saves in one run.
        saves: u64,
        /// How large its state is, in bytes.
        state_bytes: usize,
        /// How much larger each version is than the one before, in bytes.
        #[serde(default)]
        growth_bytes: usize,
        /// Whether there is no state file before the first save.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        first_save: bool,
    },
    /// Any program.
    Command(Box<Command>),
    /// A run that was recorded.
    Recorded {
        /// The recording.
        file: PathBuf,
    },
}

impl Subject {
    /// Whether it serves until the power goes, and is not followed.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Command(command) if command.live.is_some())
    }

    /// A built-in strategy that replaces a state of so many bytes so often.
    #[must_use]
    pub fn built_in(strategy: &str, saves: u64, state_bytes: usize, growth_bytes: usize) -> Self {
        let strategy = strategy.to_owned();
        Self::BuiltIn { strategy, saves, state_bytes, growth_bytes, first_save: false }
    }
}

/// A program and what is known about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Program and arguments; `{dir}` stands for the trial directory.
    pub argv: Vec<String>,
    /// Globs of the state files; empty to find them.
    pub state: Vec<String>,
    /// What a line on stdout looks like that acknowledges a save.
    pub ack: Option<String>,
    /// Run in the survivor directory; status 0 says that it is sound.
    pub check: Option<String>,
    /// Run in the survivor directory; status 0 says that the program can load it.
    pub recover: Option<String>,
    /// Run in the survivor directory; restores the state from the copy that `{backup}` stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<String>,
    /// Serves as the program's broker, at the port that `{port}` stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker: Option<String>,
    /// Lets the broker's ledger move on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settle: Option<String>,
    /// A JSON Schema file for the state.
    pub schema: Option<PathBuf>,
    /// CEL expressions over `state`.
    pub invariants: Vec<String>,
    /// A directory that is copied into each trial directory before the run.
    pub init: Option<PathBuf>,
    /// Added to the environment.
    pub env: Environment,
    /// Whether what it does outside the trial directory is followed, too.
    pub sandbox: bool,
    /// The user as whom it runs, if that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Globs of files and directories outside the trial directory that it may write to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_write: Vec<String>,
    /// What it may use.
    pub limits: Limits,
    /// The names that it had in the trial directory in its baseline run: none of them is meant when a command
    /// names a file of the user's directory.
    #[serde(skip)]
    pub inside: BTreeSet<PathBuf>,
    /// How it is tried, if it is one that serves until the power goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<Live>,
}

/// A program that is not followed, and serves until the power goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// How long it goes on after its first ack.
    pub during_ms: u64,
    /// A shell command that works with it and gives the acks; without one the program itself does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
}

/// What a program may use in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// How long its unbroken run may take.
    pub timeout_ms: u64,
    /// How many bytes it may write, and how large its state may be.
    pub data_bytes: u64,
    /// How many processes and threads it may have at once.
    pub processes: usize,
    /// How many acks make a run of a program that does not end by itself.
    pub acks: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { timeout_ms: 30_000, data_bytes: 256 << 20, processes: 256, acks: None }
    }
}

impl Limits {
    /// How long the unbroken run may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

/// How often a built-in strategy may save in one run.
const SAVES_MAX: usize = 10_000;
/// How many bytes all of its states may have together.
const STATES_BYTES_MAX: usize = 1 << 30;
/// What [`can_be_held`] means, for people.
pub const HOLDABLE: &str = "let there be at most 10,000 saves, the last state of at most 16 MiB, all of them of at most 1 GiB";

/// Whether so many states fit into memory; each save makes the state larger by `growth_bytes`.
#[must_use]
pub fn can_be_held(saves: u64, state_bytes: usize, growth_bytes: usize) -> bool {
    let held = || {
        let states =
            usize::try_from(saves).ok().filter(|saves| *saves <= SAVES_MAX)?.checked_add(2)?;
        let largest = states.checked_mul(growth_bytes)?.checked_add(state_bytes)?;
        Some(largest <= STATE_BYTES_MAX && states.checked_mul(largest)? <= STATES_BYTES_MAX)
    };
    held().unwrap_or(false)
}

/// A built-in strategy with the states that it saves.
#[derive(Clone, Debug)]
pub struct BuiltIn {
    /// The strategy.
    pub strategy: Strategy,
    /// Version 0, which is there at the start, then those that it saves, then one more for the
    /// save after the recovery.
    versions: Vec<Version>,
    /// What the state file holds at the start.
    first: Vec<u8>,
    /// Whether there is none at the start.
    pub first_save: bool,
}

impl BuiltIn {
    /// The strategy saving `saves` states of `state_bytes`, and `growth_bytes` more each time.
    #[must_use]
    pub fn new(strategy: Strategy, saves: u64, state_bytes: usize, growth_bytes: usize) -> Self {
        let first_save = false;
        let size = |n| state_bytes + growth_bytes * usize::try_from(n).unwrap_or(0);
        let version = |n| Version::from(&BotState::sample(n, size(n)));
        let versions: Vec<_> = (0..=saves + 1).map(version).collect();
        Self { strategy, first: strategy.stored(&versions[..1]), versions, first_save }
    }

    /// What the state file holds at the start.
    #[must_use]
    pub fn first_content(&self) -> &[u8] {
        &self.first
    }

    /// The same, beginning without a state file.
    #[must_use]
    pub fn from_nothing(self) -> Self {
        Self { first_save: true, ..self }
    }

    /// The states that a trial saves.
    #[must_use]
    pub fn saved(&self) -> &[Version] {
        &self.versions[1..self.versions.len() - 1]
    }

    /// Which version a state is that was loaded.
    #[must_use]
    pub fn loaded(&self, state: &BotState) -> Loaded {
        let json = state.to_json();
        let number = usize::try_from(state.version).ok();
        match number.and_then(|number| Some((number, self.versions.get(number)?))) {
            Some((number, version)) if version.json == json => Loaded::Version(number),
            Some((number, version)) => {
                let same = version.json.iter().zip(&json).take_while(|(a, b)| a == b).count();
                let from = same.saturating_sub(16);
                let text = String::from_utf8_lossy(&json[from..(same + 16).min(json.len())]);
                Loaded::NoVersion(format!(
                    "it is not version {number}, at byte {same}: ...{text}..."
                ))
            }
            None => Loaded::NoVersion(format!("it says that it is version {}", state.version)),
        }
    }

    /// The state that is saved after the recovery.
    #[must_use]
    pub fn next(&self) -> &Version {
        &self.versions[self.versions.len() - 1]
    }

    /// The versions of the state file.
    #[must_use]
    pub fn history(&self) -> History {
        let skipped = usize::from(self.first_save);
        let last = self.versions.len() - 1;
        let stored = |end: usize| self.strategy.stored(&self.versions[skipped..end]);
        let versions = (1 + skipped..=last).map(stored).collect();
        let mut history = History::of_versions(self.strategy.state_file().as_ref(), versions);
        if self.first_save {
            history.begin_with_nothing();
        }
        history
    }
}

/// What is needed to run a subject's trials.
#[derive(Clone, Debug)]
pub enum Kind {
    /// See [`Subject::BuiltIn`].
    BuiltIn(BuiltIn),
    /// See [`Subject::Command`].
    Command(Box<Learned>),
    /// See [`Subject::Recorded`].
    Recorded(Recorded),
    /// See [`Live`].
    Live(Box<Command>),
    /// See [`Bot`].
    Bot(Box<Bot>),
}

/// A program that speaks with a broker.
#[derive(Clone, Debug)]
pub struct Bot {
    /// The program.
    pub command: Command,
    /// How many requests it makes in its unbroken life.
    pub requests: u32,
}

/// A run that was recorded.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Its state files.
    pub state: StateFiles,
    /// Whether it ended by itself, with status 0.
    pub ended: bool,
}

/// A program, and what its unbroken run has taught.
#[derive(Clone, Debug)]
pub struct Learned {
    /// The program.
    pub command: Command,
    /// Which files are its state.
    pub state: StateFiles,
    /// How long a trial may take.
    pub timeout: Duration,
    /// All files that unbroken runs leave, and which are no leftovers.
    pub known: KnownNames,
    /// Whether it does not end by itself.
    pub serves: bool,
    /// Files outside the trial directory that it touches, as they are before a run.
    pub outside: BTreeMap<PathBuf, Vec<u8>>,
    /// Whether `--check` and `--load` also hold before the first save.
    pub before_first_save: BeforeFirstSave,
    /// A load that is known for such a store, where the user gave none.
    pub own_load: Option<String>,
    /// The lines of the acks of its unbroken run, if a check may ask for them.
    pub acked: Vec<Vec<u8>>,
}

/// Which of the user's commands succeed where there is no state yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BeforeFirstSave {
    /// `--check` does.
    pub check: bool,
    /// `--load` does.
    pub recover: bool,
}

impl Learned {
    /// The shell command that loads the state, given or known.
    #[must_use]
    pub fn load(&self) -> Option<&str> {
        self.command.recover.as_deref().or(self.own_load.as_deref())
    }
}

impl Prepared {
    /// Whether the subject's load leaves out a part of a sound state.
    #[must_use]
    pub fn leaves_out(&self) -> bool {
        matches!(&self.kind, Kind::BuiltIn(subject) if subject.strategy.is_log())
    }

    /// What the subject's load takes of a state file.
    #[must_use]
    pub fn settled_bytes<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        match &self.kind {
            Kind::BuiltIn(subject) => subject.strategy.settled(bytes),
            Kind::Command(_) | Kind::Recorded(_) | Kind::Live(_) | Kind::Bot(_) => bytes,
        }
    }

    /// A survivor without what the subject's load leaves out: a torn record at the end of a log.
    #[must_use]
    pub fn settled(&self, mut survivor: Survivor) -> Survivor {
        let Kind::BuiltIn(subject) = &self.kind else { return survivor };
        for content in survivor.files.values_mut() {
            if let Content::Bytes(bytes) = content {
                bytes.truncate(subject.strategy.settled(bytes).len());
            }
        }
        if subject.first_save && subject.strategy.is_log() {
            // A log without a record is no state, as none is.
            survivor.files.retain(|_, content| *content != Content::Bytes(Vec::new()));
        }
        survivor
    }
}

/// What the trials of a subject are about.
#[derive(Clone, Debug, Default)]
pub enum About {
    /// One run of it.
    #[default]
    Run,
    /// What a run has left.
    Rest(Rest),
    /// Two runs of it at once.
    Meeting,
    /// Its bot and a broker.
    Outside,
}

impl Prepared {
    /// A subject that has done so much in so much time, and nothing else is known of it.
    #[must_use]
    pub fn new(
        name: &str,
        (kind, history): (Kind, History),
        (before, trace): (Files, Trace),
        duration: Duration,
        planner: impl Fn(Sites) -> Planner,
    ) -> Self {
        let sites = Sites::of(&trace, duration);
        Self {
            name: name.to_owned(),
            kind,
            planner: planner(sites.clone()),
            sites,
            history,
            before,
            trace,
            twin: None,
            about: About::Run,
            notes: Vec::new(),
        }
    }
}

/// A subject after its unbroken run.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Its name in tables.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Where faults can strike.
    pub sites: Sites,
    /// Its versions.
    pub history: History,
    /// Makes its trials.
    pub planner: Planner,
    /// The files before its unbroken run.
    pub before: Files,
    /// What it did in its unbroken run.
    pub trace: Trace,
    /// What it did in another one.
    pub twin: Option<Trace>,
    /// What its trials are about.
    pub about: About,
    /// What people should know about it.
    pub notes: Vec<String>,
}
