//! What a state manager has to say: nothing that it does to a state by itself goes unsaid.

use std::fmt;

use chrono::{DateTime, Utc};

use super::envelope::Damage;
use super::state::Complaint;

/// Something that people should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// There was no state, and no backup: it begins with the default one.
    Default,
    /// The state file was not taken, and a backup was.
    FellBack {
        /// Why not.
        why: Damage,
        /// The name of the backup.
        backup: String,
    },
    /// The state file was not there, and a backup was taken.
    Restored {
        /// The name of the backup.
        backup: String,
    },
    /// The state file is older than a backup, which was taken: an older file was put back.
    RolledBack {
        /// The sequence number in the file.
        file: u64,
        /// The one in the backup.
        newest: u64,
        /// The name of the backup.
        backup: String,
    },
    /// A backup was passed over.
    BackupDamaged {
        /// Its name.
        backup: String,
        /// Why.
        why: Damage,
    },
    /// A state file that was not taken is kept under this name.
    SetAside(String),
    /// What a crash has left was removed.
    TempRemoved(String),
    /// Values that can't be were mended as declared.
    Repaired(Complaint),
    /// The state belongs to other settings.
    SettingsChanged {
        /// Those of the state.
        was: String,
        /// Those of now.
        now: String,
    },
    /// The clock is behind the last save.
    ClockWentBack {
        /// The time of the last save.
        saved_at: DateTime<Utc>,
        /// The time now.
        now: DateTime<Utc>,
    },
    /// The peak was raised.
    PeakChanged {
        /// In cents.
        from: i64,
        /// In cents.
        to: i64,
        /// Why.
        reason: String,
    },
    /// The peak has not changed for so many days.
    PeakStale(i64),
    /// A backup was made and found whole.
    BackedUp(String),
    /// A backup could not be made; the state is saved all the same.
    BackupFailed(String),
    /// A backup was copied away.
    Copied(String),
    /// A backup could not be copied away; that is tried again with the next one.
    CopyFailed {
        /// Its name.
        backup: String,
        /// Why not.
        why: String,
    },
    /// The balance was another than that of the ledger, which was taken.
    BalanceCorrected {
        /// In cents.
        was: i64,
        /// In cents.
        ledger: i64,
    },
    /// A position was settled while nobody looked; its result was applied.
    Settled {
        /// The settlement.
        id: String,
        /// In cents.
        profit: i64,
    },
    /// The broker knows another status of an order, which was taken.
    OrderUpdated {
        /// The client's id.
        id: String,
        /// Its status now.
        status: super::state::Status,
    },
    /// The broker never saw an order that was to be sent.
    OrderNeverSent(String),
    /// The broker had an open order that nobody knows; it was cancelled.
    OrphanCancelled(String),
    /// A position was corrected from the ledger.
    PositionCorrected {
        /// What is held.
        symbol: String,
        /// How many it was.
        was: i64,
        /// How many there are.
        ledger: i64,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("there is no state and no backup: the default is taken"),
            Self::FellBack { why, backup } => {
                write!(f, "the state file is not taken, {why}; the backup {backup} is")
            }
            Self::Restored { backup } => {
                write!(f, "the state file is not there; the backup {backup} is taken")
            }
            Self::RolledBack { file, newest, backup } => write!(
                f,
                "the state file is number {file}, and the backup {backup} number {newest}, which is taken"
            ),
            Self::BackupDamaged { backup, why } => {
                write!(f, "the backup {backup} is passed over: {why}")
            }
            Self::SetAside(name) => write!(f, "what was the state file is kept as {name}"),
            Self::TempRemoved(name) => write!(f, "{name} was left by a crash, and is removed"),
            Self::Repaired(complaint) => write!(f, "mended: {complaint}"),
            Self::SettingsChanged { was, now } => {
                write!(f, "the settings have changed from {was} to {now}")
            }
            Self::ClockWentBack { saved_at, now } => {
                write!(f, "the clock says {now}, and the last save was at {saved_at}")
            }
            Self::PeakChanged { from, to, reason } => {
                write!(f, "the peak goes from {from} to {to} cents: {reason}")
            }
            Self::PeakStale(days) => write!(f, "the peak has not changed for {days} days"),
            Self::BackedUp(name) => write!(f, "backup {name}"),
            Self::BackupFailed(why) => write!(f, "saved, but there is no backup of it: {why}"),
            Self::Copied(name) => write!(f, "backup {name} is copied away"),
            Self::CopyFailed { backup, why } => {
                write!(f, "backup {backup} is not copied away, and will be tried again: {why}")
            }
            Self::BalanceCorrected { was, ledger } => {
                write!(f, "the balance was {was} cents, and by the ledger is {ledger}")
            }
            Self::Settled { id, profit } => write!(f, "settlement {id}: {profit} cents"),
            Self::OrderUpdated { id, status } => write!(f, "order {id} is {status}"),
            Self::OrderNeverSent(id) => write!(f, "order {id} never came to the broker"),
            Self::OrphanCancelled(id) => write!(f, "order {id} is nobody's, and is cancelled"),
            Self::PositionCorrected { symbol, was, ledger } => {
                write!(f, "{symbol}: {was} were held, and by the ledger {ledger}")
            }
        }
    }
}
