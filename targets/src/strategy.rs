//! The strategies: ways to replace the saved state by a newer one.
//!
//! `ack` is how a strategy tells the world that a version is saved; when it does so is part of
//! what is tested.

use std::fmt;
use std::io;
use std::path::Path;

use crate::log::{self, Ack, Format, LOG_FILE};
use crate::managed::backups::BACKUPS;
use crate::managed::store::LOCK_FILE;
use crate::managed::strategy as managed;
use crate::state::{BotState, Version};
use crate::storage::Storage;
use crate::temp::Temp;
use crate::ways::{
    REPLACE_LOCK, Sync, copy_over_backup, dump_in_place, durably, ignore_missing, leave_temps,
    overwrite_then_cut, remove_stale_temps, replace_backup, retry_fsync, start_over,
    sync_directory, via_temp, write_once_and_rename, write_temp,
};

/// The name of the state file in the state directory.
pub const STATE_FILE: &str = "state.json";
/// The name of the backup, of strategies that keep one.
pub(crate) const BACKUP_FILE: &str = "state.json.bak";

/// A way to save.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Strategy {
    /// Opens the state file for writing and dumps JSON into it.
    Unsafe,
    /// Fixed temp name, write, fsync, rename.
    Atomic,
    /// Fixed temp name, write, rename, without fsync, under an in-process lock.
    Replace,
    /// Random temp name, write, rename, without fsync.
    Mkstemp,
    /// Random temp name, write, fsync, rename, fsync of the directory; clears old temp files.
    Durable,
    /// Bad twin of `durable`: acknowledges before the rename.
    AckEarly,
    /// Bad twin of `atomic`: removes the old file, then renames.
    UnlinkFirst,
    /// Bad twin of `unsafe`, which is bad already: overwrites in place, then cuts to length.
    TruncateLate,
    /// Bad twin of `atomic`: ignores the count that write returned.
    PartialOk,
    /// Bad twin of `durable`: catches every error, goes on and acknowledges.
    SwallowErrors,
    /// Bad twin of `mkstemp`: tries again with a new temp file and leaves the old one.
    Leaky,
    /// Bad: copies the old state to a backup as well as it can, then dumps into the state file.
    BackupFirst,
    /// Good twin of `backup-first`: both files are replaced by rename, and both must succeed.
    Backup,
    /// Bad twin of `durable`: tries a failed fsync again.
    FsyncRetry,
    /// Good twin of `fsync-retry`: writes a fresh temp file when fsync has failed.
    FsyncAfresh,
    /// Appends a record with a checksum to a log, fsync.
    Log,
    /// Bad twin of `log`: its records have no checksum.
    LogNoChecksum,
    /// Bad twin of `log`: acknowledges before the fsync.
    LogAckEarly,
    /// The reference state manager: durable, with a checksum, a lock and backups.
    Managed,
}

/// Where a loaded state came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The state file.
    File,
    /// A backup: the state file was damaged, or not there.
    Backup,
    /// There was no state file, so this is the default state.
    Default,
}

/// A state as the next start of the program finds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The state.
    pub state: BotState,
    /// Where it came from.
    pub origin: Origin,
}

/// Why a state could not be loaded.
#[derive(Debug)]
pub enum LoadError {
    /// The file could not be read.
    Read(io::Error),
    /// The state manager does not take what is there.
    Refused(managed::StoreError),
    /// The file is not the JSON of a state.
    Damaged(serde_json::Error),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => write!(f, "cannot read the state: {error}"),
            Self::Refused(error) => error.fmt(f),
            Self::Damaged(error) => write!(f, "the state is damaged: {error}"),
        }
    }
}

impl std::error::Error for LoadError {}

impl Strategy {
    /// All strategies, in the order of the tables.
    pub const ALL: [Self; 19] = [
        Self::Unsafe,
        Self::Atomic,
        Self::Replace,
        Self::Mkstemp,
        Self::Durable,
        Self::AckEarly,
        Self::UnlinkFirst,
        Self::TruncateLate,
        Self::PartialOk,
        Self::SwallowErrors,
        Self::Leaky,
        Self::BackupFirst,
        Self::Backup,
        Self::FsyncRetry,
        Self::FsyncAfresh,
        Self::Log,
        Self::LogNoChecksum,
        Self::LogAckEarly,
        Self::Managed,
    ];

    /// The name in tables and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unsafe => "unsafe",
            Self::Atomic => "atomic",
            Self::Replace => "replace",
            Self::Mkstemp => "mkstemp",
            Self::Durable => "durable",
            Self::AckEarly => "ack-early",
            Self::UnlinkFirst => "unlink-first",
            Self::TruncateLate => "truncate-late",
            Self::PartialOk => "partial-ok",
            Self::SwallowErrors => "swallow-errors",
            Self::Leaky => "leaky",
            Self::BackupFirst => "backup-first",
            Self::Backup => "backup",
            Self::FsyncRetry => "fsync-retry",
            Self::FsyncAfresh => "fsync-afresh",
            Self::Log => "log",
            Self::LogNoChecksum => "log-no-checksum",
            Self::LogAckEarly => "log-ack-early",
            Self::Managed => "managed",
        }
    }

    /// What it does, in a line.
    #[must_use]
    pub fn about(self) -> &'static str {
        match self {
            Self::Unsafe => "opens the state file for writing and dumps JSON into it",
            Self::Atomic => "fixed temp name, write, fsync, rename",
            Self::Replace => "fixed temp name, write, rename, no fsync, under a lock",
            Self::Mkstemp => "random temp name, write, rename, no fsync",
            Self::Durable => "random temp name, write, fsync, rename, fsync of the directory",
            Self::AckEarly => "durable, but acknowledges before the rename (bad)",
            Self::UnlinkFirst => "atomic, but removes the old file before the rename (bad)",
            Self::TruncateLate => "overwrites in place, then cuts to length (bad)",
            Self::PartialOk => "atomic, but ignores the count that write returned (bad)",
            Self::SwallowErrors => "durable, but catches every error and acknowledges (bad)",
            Self::Leaky => "mkstemp that tries again, but leaves a temp file each time (bad)",
            Self::BackupFirst => "copies to a backup if that works, then dumps in place (bad)",
            Self::Backup => "backup by rename, then state by rename; both must succeed",
            Self::FsyncRetry => "durable, but tries a failed fsync again (bad)",
            Self::Log => "appends a record with length and checksum to a log, fsync",
            Self::LogNoChecksum => "log, but its records have a length only (bad)",
            Self::LogAckEarly => "log, but acknowledges before the fsync (bad)",
            Self::Managed => {
                "durable, with a checksum, a lock, and backups that a load falls back to"
            }
            Self::FsyncAfresh => "durable; a failed fsync makes it start over with a fresh file",
        }
    }

    /// The strategy called `name`.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|strategy| strategy.name() == name)
    }

    /// What the program does when it starts, before its first save in `directory`.
    pub fn start(self, disk: &mut dyn Storage, directory: &Path) -> io::Result<()> {
        match self {
            Self::Durable
            | Self::AckEarly
            | Self::SwallowErrors
            | Self::FsyncRetry
            | Self::FsyncAfresh => remove_stale_temps(disk, directory).map(|_| ()),
            Self::Managed => managed::start(disk, directory),
            _ => match self.log_format() {
                Some(format) => log::repair(disk, directory, format),
                None => Ok(()),
            },
        }
    }

    /// How its log is written, if it keeps one.
    fn log_format(self) -> Option<Format> {
        match self {
            Self::Log | Self::LogAckEarly => Some(Format::Checksum),
            Self::LogNoChecksum => Some(Format::Length),
            _ => None,
        }
    }

    /// Whether it appends to a log.
    #[must_use]
    pub fn is_log(self) -> bool {
        self.log_format().is_some()
    }

    /// The name of the file that holds its state.
    #[must_use]
    pub fn state_file(self) -> &'static str {
        if self.is_log() { LOG_FILE } else { STATE_FILE }
    }

    /// What that file holds when these versions have been saved to it, one after the other.
    #[must_use]
    pub fn stored(self, versions: &[Version]) -> Vec<u8> {
        match self.log_format() {
            None => versions.last().map(|version| self.one(version)).unwrap_or_default(),
            Some(format) => {
                versions.iter().flat_map(|version| log::record(&version.json, format)).collect()
            }
        }
    }

    /// What a file of its own holds of one version.
    fn one(self, version: &Version) -> Vec<u8> {
        match self {
            Self::Managed => managed::sealed(version),
            _ => version.json.clone(),
        }
    }

    /// What its load takes of that file: of a log, the whole records at its beginning.
    #[must_use]
    pub fn settled(self, bytes: &[u8]) -> &[u8] {
        match self.log_format() {
            None => bytes,
            Some(format) => &bytes[..log::whole(bytes, format).1],
        }
    }

    /// Whether that file holds `version` as its state.
    #[must_use]
    pub fn holds(self, bytes: &[u8], version: &Version) -> bool {
        match self.log_format() {
            None => bytes == self.one(version),
            Some(format) => log::whole(bytes, format).0 == Some(&version.json[..]),
        }
    }

    /// Files that it keeps beside the state, and that are no leftovers.
    #[must_use]
    pub fn companions(self) -> &'static [&'static str] {
        match self {
            Self::BackupFirst | Self::Backup => &[BACKUP_FILE],
            Self::Managed => &[LOCK_FILE, BACKUPS],
            _ => &[],
        }
    }

    /// Replaces the state in `directory` by `version` and calls `ack` with its number.
    pub fn save(
        self,
        disk: &mut dyn Storage,
        directory: &Path,
        version: &Version,
        ack: &mut dyn FnMut(u64),
    ) -> io::Result<()> {
        let target = directory.join(STATE_FILE);
        match self {
            Self::Unsafe => dump_in_place(disk, &target, &version.json)?,
            Self::Atomic => {
                via_temp(disk, &Temp::fixed(&target), &target, &version.json, Sync::File)?
            }
            Self::Replace => {
                let _held = REPLACE_LOCK.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                via_temp(disk, &Temp::fixed(&target), &target, &version.json, Sync::Nothing)?;
            }
            Self::Mkstemp => {
                via_temp(disk, &Temp::random(directory)?, &target, &version.json, Sync::Nothing)?;
            }
            Self::Durable => durably(disk, directory, STATE_FILE, &version.json)?,
            Self::AckEarly => {
                let temp = Temp::random(directory)?;
                write_temp(disk, &temp, &version.json, Sync::File)?;
                ack(version.number);
                disk.rename(&temp.path, &target)?;
                return sync_directory(disk, directory);
            }
            Self::UnlinkFirst => {
                let temp = Temp::fixed(&target);
                write_temp(disk, &temp, &version.json, Sync::File)?;
                ignore_missing(disk.unlink(&target))?;
                disk.rename(&temp.path, &target)?;
            }
            Self::TruncateLate => overwrite_then_cut(disk, &target, &version.json)?,
            Self::PartialOk => write_once_and_rename(disk, &target, &version.json)?,
            Self::SwallowErrors => {
                // The defect: whatever happens, it goes on.
                let _ = durably(disk, directory, STATE_FILE, &version.json);
            }
            Self::Leaky => leave_temps(disk, directory, &version.json)?,
            Self::BackupFirst => {
                // Two defects: the backup is cut before it is written, and its failure is no
                // reason to leave the state alone.
                let _ = copy_over_backup(disk, directory);
                dump_in_place(disk, &target, &version.json)?;
            }
            Self::Backup => {
                replace_backup(disk, directory)?;
                via_temp(disk, &Temp::fixed(&target), &target, &version.json, Sync::File)?;
            }
            Self::Managed => return managed::save(disk, directory, version, ack),
            Self::FsyncRetry => retry_fsync(disk, directory, &version.json)?,
            Self::FsyncAfresh => start_over(disk, directory, &version.json)?,
            Self::Log | Self::LogNoChecksum | Self::LogAckEarly => {
                let format = self.log_format().unwrap_or(Format::Checksum);
                let when = if self == Self::LogAckEarly { Ack::Written } else { Ack::Synced };
                return log::append(disk, directory, version, format, when, ack);
            }
        }
        ack(version.number);
        Ok(())
    }

    /// Goes back to a copy of the state while nothing runs, as its documentation says: `copy` is relative
    /// to `directory`.
    pub fn restore(self, disk: &mut dyn Storage, directory: &Path, copy: &Path) -> io::Result<()> {
        if self == Self::Managed {
            let name = copy.file_name().unwrap_or_default().to_string_lossy();
            return managed::restore(disk, directory, &name);
        }
        // It says nothing: cp, as everybody would.
        std::fs::copy(directory.join(copy), directory.join(self.state_file())).map(|_| ())
    }

    /// Loads the state from `directory` as the program's next start would.
    pub fn load(self, directory: &Path) -> Result<Loaded, LoadError> {
        if let Some(format) = self.log_format() {
            return load_log(&directory.join(LOG_FILE), format);
        }
        if self == Self::Managed {
            return managed::load(directory);
        }
        let loaded = load_file(&directory.join(STATE_FILE));
        let whole = matches!(&loaded, Ok(Loaded { origin: Origin::File, .. }));
        let backup = directory.join(BACKUP_FILE);
        if whole || !self.companions().contains(&BACKUP_FILE) || !backup.exists() {
            return loaded;
        }
        load_file(&backup).map(|loaded| Loaded { origin: Origin::Backup, ..loaded })
    }
}

fn load_file(path: &Path) -> Result<Loaded, LoadError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Loaded { state: BotState::default(), origin: Origin::Default });
        }
        Err(error) => return Err(LoadError::Read(error)),
    };
    let state = serde_json::from_slice(&bytes).map_err(LoadError::Damaged)?;
    Ok(Loaded { state, origin: Origin::File })
}

fn load_log(path: &Path, format: Format) -> Result<Loaded, LoadError> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other.map_err(LoadError::Read)?,
    };
    match log::whole(&bytes, format).0 {
        None => Ok(Loaded { state: BotState::default(), origin: Origin::Default }),
        Some(json) => {
            let state = serde_json::from_slice(json).map_err(LoadError::Damaged)?;
            Ok(Loaded { state, origin: Origin::File })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Disk;

    #[test]
    fn every_strategy_loads_what_it_saved() {
        for strategy in Strategy::ALL {
            let directory = tempfile::tempdir().unwrap();
            let mut disk = Disk::default();
            let mut acked = Vec::new();
            strategy.start(&mut disk, directory.path()).unwrap();
            for version in 1..=3 {
                let state = BotState::sample(version, 2048);
                strategy
                    .save(&mut disk, directory.path(), &(&state).into(), &mut |v| acked.push(v))
                    .unwrap();
                let loaded = strategy.load(directory.path()).unwrap();
                assert_eq!(loaded, Loaded { state, origin: Origin::File }, "{}", strategy.name());
            }
            assert_eq!(acked, [1, 2, 3]);
            let mut names = disk.list(directory.path()).unwrap();
            names.retain(|name| strategy.companions().iter().all(|known| name != known));
            assert_eq!(names, [strategy.state_file()], "{}", strategy.name());
        }
    }

    #[test]
    fn a_missing_state_loads_as_the_default_and_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let loaded = Strategy::Atomic.load(directory.path()).unwrap();
        assert_eq!(loaded.origin, Origin::Default);
    }

    #[test]
    fn durable_clears_what_a_crash_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(".state.json.dead"), "x").unwrap();
        let mut disk = Disk::default();
        Strategy::Durable.start(&mut disk, directory.path()).unwrap();
        assert_eq!(disk.list(directory.path()).unwrap().len(), 0);
    }

    #[test]
    fn names_are_found_again() {
        for strategy in Strategy::ALL {
            assert_eq!(Strategy::by_name(strategy.name()), Some(strategy));
        }
        assert_eq!(Strategy::by_name("atomci"), None);
    }
}
