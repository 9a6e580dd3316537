//! What would have helped where a crash state breaks a promise.

use serde::{Deserialize, Serialize};

/// What would have helped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Remedy {
    /// fsync of the new file before it is given its name.
    SyncFile,
    /// fsync of the file before the ack.
    SyncFileBeforeAck,
    /// fsync of the directory before the ack.
    SyncDirectory,
    /// Both.
    SyncFileAndDirectory,
    /// All writes before the new file is given its name.
    WriteBeforeRename,
    /// A temporary file in the directory of the state, and not on another file system.
    TempBeside,
    /// A new file and a rename, and not writing over the old one.
    ReplaceByRename,
    /// A rename over the old file, and not removing it first.
    KeepOldName,
    /// The ack after the sync, and not before.
    AckLater,
    /// A checksum in each record.
    Checksum,
    /// A recovery that replaces the state as a save does.
    SaferRecovery,
    /// A look at what the load, or the check, objects to.
    LookAtObjection,
    /// Nothing that is known here.
    Unknown,
}

impl Remedy {
    /// It in words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::SyncFile => "missing fsync of the file: call fsync on it before the rename",
            Self::SyncFileBeforeAck => "missing fsync of the file: call fsync on it before the ack",
            Self::SyncDirectory => {
                "missing fsync of the directory: open it and call fsync on it before the ack"
            }
            Self::SyncFileAndDirectory => {
                "missing fsync of the file and of its directory: of the file before it gets its \
                 name, of the directory before the ack"
            }
            Self::WriteBeforeRename => {
                "the file is written on when it has got its name: write, flush and fsync all of it \
                 before the rename"
            }
            Self::TempBeside => {
                "the temporary file is on another file system, so that it is copied and not \
                 renamed: make it in the directory of the state"
            }
            Self::ReplaceByRename => {
                "in-place overwrite: write a temporary file, fsync it, rename it over the state"
            }
            Self::KeepOldName => "rename over the old file; do not remove it first",
            Self::AckLater => "the ack comes too early: give it when the sync has returned",
            Self::Checksum => {
                "a record can be torn: give each a checksum, and let the load stop at a bad one"
            }
            Self::SaferRecovery => {
                "let the recovery replace files as a save does: a temporary file, fsync, rename, fsync \
                 of the directory"
            }
            Self::LookAtObjection => {
                "look at the directory that `crashtest replay` keeps, and run the load or the check there"
            }
            Self::Unknown => "sync what is lost before what is durable, or before the ack",
        }
    }
}
