//! The facts of one trial. No opinion: that is `oracle`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::fault::{Fault, Injection};

/// What one trial left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What was done.
    pub fault: Fault,
    /// Whether and where it struck.
    pub injection: Injection,
    /// How the subject ended.
    pub exit: Exit,
    /// How many acks the world saw.
    pub acks: u64,
    /// How many of them had been given when the last part of the fault struck; `None` if that is not known.
    pub acks_before: Option<u64>,
    /// What each of them said, as a hash of the line; empty if that is not known.
    pub said: Vec<u64>,
    /// What the subject did from the first call that failed on; empty if nobody looked.
    pub steps: Vec<Step>,
    /// What a failed fsync left in memory only.
    pub unsynced: InMemory,
    /// What the load makes of it once that is lost, where a load tells the versions.
    pub on_disk: Option<Recovery>,
    /// What was left, before any recovery.
    pub survivor: Survivor,
    /// What the user's own checks said of it.
    pub checks: Vec<Check>,
    /// What the subject's recovery made of it.
    pub recovery: Recovery,
}

impl Outcome {
    /// A trial that ended so, and has left nothing that is known.
    #[must_use]
    pub fn new(fault: Fault, injection: Injection, exit: Exit) -> Self {
        Self {
            fault,
            injection,
            exit,
            acks: 0,
            acks_before: None,
            said: Vec::new(),
            steps: Vec::new(),
            unsynced: InMemory::default(),
            on_disk: None,
            survivor: Survivor::default(),
            checks: Vec::new(),
            recovery: Recovery::default(),
        }
    }

    /// Whether the subject has said that something is saved after the fault had struck: what it said before is no
    /// lie.
    #[must_use]
    pub fn says_so_afterwards(&self) -> bool {
        self.exit == Exit::Status(0) || self.acks > self.acks_before.unwrap_or(0)
    }
}

/// What a failed fsync has left in memory only; paths are relative to the trial directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InMemory {
    /// State files of which bytes are, with the bytes that are on disk.
    pub bytes: BTreeMap<PathBuf, Vec<u8>>,
    /// State files whose names are.
    pub names: BTreeSet<PathBuf>,
}

/// Something that a subject did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// A storage call.
    Called {
        /// The call with its arguments, as `strace` shows them.
        what: String,
        /// What it returned: bytes or 0, or minus the error number; none if it was not seen to
        /// return.
        result: Option<i64>,
        /// Whether the trial made it fail.
        injected: bool,
    },
    /// A line that it printed, or an ack that it gave.
    Said(String),
    /// There was more.
    More(usize),
}

/// How a subject ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// The trial killed it.
    Killed,
    /// It ended by itself with this status.
    Status(i32),
    /// A signal that the trial did not send ended it.
    Signal(i32),
    /// It did not end in time and was killed for it.
    TimedOut,
    /// It started more processes than it may.
    TooManyProcesses,
}

/// What is in the state directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survivor {
    /// The state files; one that is missing is not in it.
    pub files: BTreeMap<PathBuf, Content>,
    /// All other names.
    pub others: Vec<PathBuf>,
}

/// What a name holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A regular file's bytes.
    Bytes(Vec<u8>),
    /// Something that is no readable regular file; the text says what.
    Other(String),
}

/// The result of one of the user's own checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Which check.
    pub kind: CheckKind,
    /// What it found wrong; `None` when it found nothing.
    pub complaint: Option<String>,
}

/// The kinds of checks that a user can add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// `--check CMD`.
    Command,
    /// `--schema FILE`.
    Schema,
    /// `--invariant EXPR`.
    Invariant,
}

/// What the subject's own recovery did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// The load.
    pub load: Load,
    /// What it loaded.
    pub loaded: Loaded,
    /// The save after it.
    pub next_save: NextSave,
    /// Files that are still there after it and that no version has.
    pub leftovers: Vec<PathBuf>,
}

/// What the load found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Load {
    /// Nothing was run.
    #[default]
    NotTried,
    /// It loaded a state.
    Loaded,
    /// It started from its default state.
    Default,
    /// It failed.
    Failed(String),
    /// It did not end in time.
    Hung,
}

/// What was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Loaded {
    /// It is not known, or nothing.
    #[default]
    Unknown,
    /// That version.
    Version(usize),
    /// Something that is no version; the text says what.
    NoVersion(String),
}

/// What the save after the load did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NextSave {
    /// Nothing was run.
    #[default]
    NotTried,
    /// It saved.
    Saved,
    /// It failed, or what it saved is not there.
    Failed(String),
}

impl Survivor {
    /// How many bytes there are in all state files.
    #[must_use]
    pub fn size(&self) -> usize {
        let sizes = self.files.values().map(|content| match content {
            Content::Bytes(bytes) => bytes.len(),
            Content::Other(_) => 0,
        });
        sizes.sum()
    }
}
