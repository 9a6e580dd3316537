//! The state manager as a strategy among the others: it saves the same states, in its envelope, and a
//! version is saved five minutes after the one before, so that each is backed up.

use std::io;
use std::path::Path;

use super::backups::{Backup, Policy, Reason};
use super::codec::Codec;
use super::{envelope, store};
use crate::state::{BotState, Version, time_of};
use crate::storage::Storage;
use crate::strategy::{LoadError, Loaded, Origin, STATE_FILE};
use crate::ways;

pub use super::store::StoreError;

/// What a file holds of a version.
#[must_use]
pub fn sealed(version: &Version) -> Vec<u8> {
    envelope::seal(version.number, time_of(version.number), &version.json)
}

/// Takes the lock, cleans, and puts a damaged state back. What can't be mended is left for the load to
/// tell.
pub fn start(disk: &mut dyn Storage, directory: &Path) -> io::Result<()> {
    store::lock(disk, directory).map_err(error)?;
    store::prepare(disk, directory)?;
    match store::find(directory, &Codec::default()) {
        Ok(Some(mut found)) => store::put_back(disk, directory, &mut found, &Codec::default()),
        Ok(None) => Ok(()),
        Err(refused) => Err(error(refused)),
    }
}

fn error(error: StoreError) -> io::Error {
    match error {
        StoreError::Io(_, error) => error,
        other => io::Error::other(other.to_string()),
    }
}

/// Saves, acknowledges, and makes a backup if one is due.
pub fn save(
    disk: &mut dyn Storage,
    directory: &Path,
    version: &Version,
    ack: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let (stored, at) = (sealed(version), time_of(version.number));
    ways::durably(disk, directory, STATE_FILE, &stored)?;
    ack(version.number);
    let policy = Policy::default();
    if policy.is_due(store::last_scheduled(directory), at) {
        let backup = Backup { at, sequence: version.number, reason: Reason::Schedule };
        // The state is saved. A manager would say that there is no backup of it.
        let how = (&policy, &Codec::default());
        let _ = store::back_up(disk, directory, &backup, &stored, how);
    }
    Ok(())
}

/// Loads the state of a directory.
pub fn load(directory: &Path) -> Result<Loaded, LoadError> {
    let found = store::find(directory, &Codec::default()).map_err(LoadError::Refused)?;
    let Some(found) = found else {
        return Ok(Loaded { state: BotState::default(), origin: Origin::Default });
    };
    let state = serde_json::from_str(&found.state).map_err(LoadError::Damaged)?;
    let origin = if found.backup.is_some() { Origin::Backup } else { Origin::File };
    Ok(Loaded { state, origin })
}

/// Goes back to a backup, as an operator does while nothing runs: it becomes the newest state.
pub fn restore(disk: &mut dyn Storage, directory: &Path, backup: &str) -> io::Result<()> {
    store::lock(disk, directory).map_err(error)?;
    let found = store::backup(directory, backup, &Codec::default()).map_err(error)?;
    store::restore(disk, directory, &found, &Codec::default())
}
