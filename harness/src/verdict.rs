//! Verdicts: what one trial says about the promises.

use serde::{Deserialize, Serialize};

/// What a strategy may promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Promise {
    /// The state is one of its versions, whole.
    Atomic,
    /// The state is not older than the last acknowledged version.
    Durable,
    /// What the program loads is a state that was saved.
    Sound,
    /// The program and the outside world agree.
    Consistent,
    /// The user's own checks hold.
    Checked,
    /// The program loads what is left and can save again.
    Recoverable,
    /// A save that failed is not reported as done.
    Honest,
    /// No temporary files stay behind.
    Tidy,
}

impl Promise {
    /// All promises, the most fundamental first.
    pub const ALL: [Self; 8] = [
        Self::Atomic,
        Self::Durable,
        Self::Sound,
        Self::Consistent,
        Self::Checked,
        Self::Recoverable,
        Self::Honest,
        Self::Tidy,
    ];

    /// The name in scenario files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Atomic => "atomic",
            Self::Durable => "durable",
            Self::Sound => "sound",
            Self::Consistent => "consistent",
            Self::Checked => "checked",
            Self::Recoverable => "recoverable",
            Self::Honest => "honest",
            Self::Tidy => "tidy",
        }
    }
}

/// How a promise was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ViolationKind {
    /// Cut short.
    Torn,
    /// No bytes.
    Empty,
    /// NUL bytes where the state should be.
    Zeroed,
    /// No file.
    Missing,
    /// Old and new bytes together.
    Mixed,
    /// Neither old nor new.
    Alien,
    /// In memory only, after a failed fsync, where the old state was.
    Unsynced,
    /// Older than what was acknowledged.
    LostAck,
    /// The program took damage for its state.
    SilentDamage,
    /// An order was sent twice.
    DoubleOrder,
    /// An order that the bot does not know.
    OrphanOrder,
    /// Other cash or positions than the ledger has.
    Diverged,
    /// `--check` failed.
    CheckFailed,
    /// `--schema` does not hold.
    SchemaBroken,
    /// `--invariant` does not hold.
    InvariantBroken,
    /// The program cannot load what is left.
    RecoveryFailed,
    /// The program does not end while it loads.
    RecoveryHung,
    /// The program fell back to its default state.
    Reset,
    /// The program loaded, and cannot save any more.
    CannotSaveAgain,
    /// A save that failed was reported as done.
    SilentFailure,
    /// Temporary files stay for ever.
    Leftovers,
}

impl ViolationKind {
    /// The promise that it breaks.
    #[must_use]
    pub fn promise(self) -> Promise {
        match self {
            Self::Torn
            | Self::Empty
            | Self::Zeroed
            | Self::Missing
            | Self::Mixed
            | Self::Alien
            | Self::Unsynced => Promise::Atomic,
            Self::LostAck => Promise::Durable,
            Self::SilentDamage => Promise::Sound,
            Self::DoubleOrder | Self::OrphanOrder | Self::Diverged => Promise::Consistent,
            Self::CheckFailed | Self::SchemaBroken | Self::InvariantBroken => Promise::Checked,
            Self::RecoveryFailed | Self::RecoveryHung | Self::Reset | Self::CannotSaveAgain => {
                Promise::Recoverable
            }
            Self::SilentFailure => Promise::Honest,
            Self::Leftovers => Promise::Tidy,
        }
    }

    /// The word in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Torn => "torn",
            Self::Empty => "empty",
            Self::Zeroed => "zeroed",
            Self::Missing => "missing",
            Self::Mixed => "mixed",
            Self::Alien => "alien",
            Self::Unsynced => "not on disk",
            Self::LostAck => "lost ack",
            Self::SilentDamage => "damage taken",
            Self::DoubleOrder => "double order",
            Self::OrphanOrder => "orphan order",
            Self::Diverged => "diverged",
            Self::CheckFailed => "check failed",
            Self::SchemaBroken => "schema broken",
            Self::InvariantBroken => "invariant broken",
            Self::RecoveryFailed => "recovery failed",
            Self::RecoveryHung => "recovery hung",
            Self::Reset => "reset",
            Self::CannotSaveAgain => "cannot save again",
            Self::SilentFailure => "silent failure",
            Self::Leftovers => "leftovers",
        }
    }
}

/// One way in which one trial broke a promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// How.
    pub kind: ViolationKind,
    /// In words, with the file and the bytes.
    pub detail: String,
}

/// Why a trial says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// The fault did not strike.
    NotReached,
    /// The subject died of something that the trial did not do.
    DiedOtherwise,
    /// The subject did not end in time.
    TimedOut,
    /// The subject started more processes than it may.
    TooManyProcesses,
    /// The state differs from run to run, and not only in values: it cannot be compared.
    NotComparable,
    /// The file system itself could not be mounted any more.
    NotMounted,
    /// What a load or a check makes of it was not asked.
    NotAsked,
}

impl Why {
    /// The words in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NotReached => "not reached",
            Self::DiedOtherwise => "died otherwise",
            Self::TimedOut => "timed out",
            Self::TooManyProcesses => "too many processes",
            Self::NotComparable => "not comparable",
            Self::NotMounted => "not mounted",
            Self::NotAsked => "not asked",
        }
    }
}

/// What one trial says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every promise held.
    Pass,
    /// At least one was broken; the most fundamental comes first.
    Violated(Vec<Violation>),
    /// Nothing can be said.
    Inconclusive(Why),
}
