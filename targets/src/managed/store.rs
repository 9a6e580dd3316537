//! Files: one state file, its lock, its backups. What is in the state is none of its business.
//!
//! ```text
//! state.json            the state in its envelope
//! state.lock            held by the one process that may save; says its number, for people
//! backups/state-*.json  earlier states in theirs
//! state.json.damaged-*  what a load would not take
//! ```

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

use super::backups::{BACKUPS, Backup, Policy, Reason};
use super::codec::Codec;
use super::envelope::{self, Damage};
use super::event::Event;
use crate::storage::{FileId, Open, Storage};
use crate::strategy::STATE_FILE;
use crate::temp::Handle;
use crate::ways;

/// The lock.
pub const LOCK_FILE: &str = "state.lock";
/// What the names of files begin with that were set aside.
pub const DAMAGED_PREFIX: &str = "state.json.damaged-";

/// A state that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Counts the saves.
    pub sequence: u64,
    /// When it was saved.
    pub saved_at: DateTime<Utc>,
    /// It, as JSON.
    pub state: String,
    /// The backup that it comes from; `None` of the state file.
    pub backup: Option<String>,
    /// What was found on the way.
    pub events: Vec<Event>,
}

/// Why no state can be had.
#[derive(Debug)]
pub enum StoreError {
    /// There is one, and nothing of it is whole; nothing was changed.
    Lost(Damage),
    /// It was saved by a later version of the program.
    Newer(u32),
    /// Another process holds the lock; it says this of itself.
    Locked(String),
    /// A call has failed.
    Io(PathBuf, io::Error),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(why) => write!(
                f,
                "the state file can't be used, {why}; and there is no whole backup of it. It is left \
                 as it is: put a good one there, or move it away to begin anew"
            ),
            Self::Newer(schema) => write!(
                f,
                "the state has schema {schema}, from a later version of this program: use that, or \
                 restore an older backup"
            ),
            Self::Locked(who) => write!(f, "the state is in use by {who}: end that first"),
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for StoreError {}

/// Makes a directory, and those on the way to it, for good: what is saved in one whose name is in memory
/// only goes with it.
pub fn make_directory(disk: &mut dyn Storage, directory: &Path) -> Result<(), StoreError> {
    let missing: Vec<&Path> = directory
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
        .collect();
    for path in missing.into_iter().rev() {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        disk.make_directory(path)
            .and_then(|()| ways::sync_directory(disk, parent.unwrap_or(Path::new("."))))
            .map_err(|error| StoreError::Io(path.to_owned(), error))?;
    }
    Ok(())
}

/// Takes the lock of a directory; it is held as long as the file is open, and no longer than the
/// process lives.
pub fn lock(disk: &mut dyn Storage, directory: &Path) -> Result<FileId, StoreError> {
    let path = directory.join(LOCK_FILE);
    let failed = |error| StoreError::Io(path.clone(), error);
    let file = disk.open(&path, Open::Overwrite).map_err(failed)?;
    let locked = disk.try_lock(file).and_then(|locked| match locked {
        true => Handle { disk: &mut *disk, file }
            .write_all(format!("process {:010}\n", std::process::id()).as_bytes())
            .map(|()| true),
        false => Ok(false),
    });
    match locked {
        Ok(true) => Ok(file),
        other => {
            // The lock was not had, or goes with the file.
            let _ = disk.close(file);
            other.map_err(failed)?;
            let who = fs::read_to_string(&path).unwrap_or_default();
            let who = who.lines().next().unwrap_or("a process that does not say its number");
            Err(StoreError::Locked(who.to_owned()))
        }
    }
}

/// Makes ready to save, under the lock: removes what a crash has left, and makes the directory of the
/// backups.
pub fn prepare(disk: &mut dyn Storage, directory: &Path) -> io::Result<Vec<Event>> {
    let mut events = Vec::new();
    remove_temps(disk, directory, &mut events)?;
    let backups = directory.join(BACKUPS);
    if disk.list(directory)?.iter().any(|name| name == BACKUPS) {
        remove_temps(disk, &backups, &mut events)?;
    } else {
        disk.make_directory(&backups)?;
        ways::sync_directory(disk, directory)?;
    }
    Ok(events)
}

fn remove_temps(
    disk: &mut dyn Storage,
    directory: &Path,
    events: &mut Vec<Event>,
) -> io::Result<()> {
    let removed = ways::remove_stale_temps(disk, directory)?;
    events.extend(removed.into_iter().map(Event::TempRemoved));
    Ok(())
}

/// Backs up what was just saved, looks whether that worked, and removes what is kept long enough.
pub fn back_up(
    disk: &mut dyn Storage,
    directory: &Path,
    backup: &Backup,
    stored: &[u8],
    (policy, codec): (&Policy, &Codec),
) -> io::Result<()> {
    let backups = directory.join(BACKUPS);
    let name = backup.name();
    ways::durably(disk, &backups, &name, stored)?;
    if let Err(why) = whole(&backups.join(&name), codec) {
        return Err(io::Error::other(format!("{name} was written, and {why}")));
    }
    let names = disk.list(&backups)?;
    let all = Backup::all(names.iter().map(OsString::as_os_str));
    for gone in policy.expendable(&all, backup, backup.at) {
        disk.unlink(&backups.join(gone.name()))?;
    }
    Ok(())
}

/// When a backup was last made by schedule.
#[must_use]
pub fn last_scheduled(directory: &Path) -> Option<DateTime<Utc>> {
    let scheduled = |backup: &Backup| backup.reason == Reason::Schedule;
    backups(directory).into_iter().find(scheduled).map(|backup| backup.at)
}

/// The backups in a directory, the newest first; none if it can't be read.
#[must_use]
pub fn backups(directory: &Path) -> Vec<Backup> {
    let names: Vec<OsString> = fs::read_dir(directory.join(BACKUPS))
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect())
        .unwrap_or_default();
    Backup::all(names.iter().map(OsString::as_os_str))
}

/// What a file holds, if it is whole.
fn whole(path: &Path, codec: &Codec) -> Result<Found, Damage> {
    let bytes = read(path)?.ok_or_else(|| Damage::Unreadable("it is not there".to_owned()))?;
    opened(&bytes, codec)
}

fn opened(bytes: &[u8], codec: &Codec) -> Result<Found, Damage> {
    let plain = codec.decode(bytes)?;
    let opened = envelope::open(&plain)?;
    Ok(Found {
        sequence: opened.sequence,
        saved_at: opened.saved_at,
        state: opened.state.to_owned(),
        backup: None,
        events: Vec::new(),
    })
}

/// The bytes of a regular file, which is no link to one; none if there is nothing of that name.
fn read(path: &Path) -> Result<Option<Vec<u8>>, Damage> {
    let unreadable = |error: io::Error| Damage::Unreadable(error.to_string());
    let kind = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(unreadable)?.file_type(),
    };
    if !kind.is_file() {
        let what = if kind.is_dir() { "a directory" } else { "no regular file" };
        return Err(Damage::Unreadable(format!("it is {what}")));
    }
    fs::read(path).map(Some).map_err(unreadable)
}

/// Finds the state of a directory and changes nothing: that of the state file if it is whole and no
/// backup is newer, else that of the newest backup that is whole. `None` if there is neither.
pub fn find(directory: &Path, codec: &Codec) -> Result<Option<Found>, StoreError> {
    let file = match read(&directory.join(STATE_FILE)) {
        Ok(None) => None,
        Ok(Some(bytes)) => Some(opened(&bytes, codec)),
        Err(damage) => Some(Err(damage)),
    };
    if let Some(Err(Damage::Newer(schema))) = file {
        return Err(StoreError::Newer(schema));
    }
    let newest = |found: &Found, backup: &Backup| found.sequence >= backup.sequence;
    let mut events = Vec::new();
    for backup in backups(directory) {
        if matches!(&file, Some(Ok(found)) if newest(found, &backup)) {
            break;
        }
        let name = backup.name();
        match whole(&directory.join(BACKUPS).join(&name), codec) {
            Ok(found) => {
                events.push(taken(&file, &found, &name));
                return Ok(Some(Found { backup: Some(name), events, ..found }));
            }
            Err(why) => events.push(Event::BackupDamaged { backup: name, why }),
        }
    }
    match file {
        Some(Ok(found)) => Ok(Some(Found { events, ..found })),
        Some(Err(why)) => Err(StoreError::Lost(why)),
        // Backups of which none is whole say that there was a state.
        None => match events.into_iter().next() {
            Some(Event::BackupDamaged { why, .. }) => Err(StoreError::Lost(why)),
            _ => Ok(None),
        },
    }
}

/// Why a backup was taken.
fn taken(file: &Option<Result<Found, Damage>>, found: &Found, backup: &str) -> Event {
    let backup = backup.to_owned();
    match file {
        None => Event::Restored { backup },
        Some(Err(why)) => Event::FellBack { why: why.clone(), backup },
        Some(Ok(old)) => Event::RolledBack { file: old.sequence, newest: found.sequence, backup },
    }
}

/// Puts a state back that was found in a backup, under the lock; what was the state file is kept under
/// another name.
pub fn put_back(
    disk: &mut dyn Storage,
    directory: &Path,
    found: &mut Found,
    codec: &Codec,
) -> io::Result<()> {
    let target = directory.join(STATE_FILE);
    if found.backup.is_none() {
        return Ok(());
    }
    if fs::symlink_metadata(&target).is_ok() {
        let name = aside(directory, found.saved_at);
        disk.rename(&target, &directory.join(&name))?;
        found.events.push(Event::SetAside(name));
    }
    let sealed = envelope::seal(found.sequence, found.saved_at, found.state.as_bytes());
    ways::durably(disk, directory, STATE_FILE, &codec.encode(sealed)?)
}

/// A free name for what is set aside.
fn aside(directory: &Path, saved_at: DateTime<Utc>) -> String {
    let stem = format!("{DAMAGED_PREFIX}{}", saved_at.format("%Y%m%dT%H%M%SZ"));
    let name = |n: u32| if n == 0 { stem.clone() } else { format!("{stem}-{n}") };
    (0..u32::MAX)
        .map(name)
        .find(|name| fs::symlink_metadata(directory.join(name)).is_err())
        .unwrap_or(stem.clone())
}

/// The backup of this name.
pub fn backup(directory: &Path, name: &str, codec: &Codec) -> Result<Found, StoreError> {
    let plain = Path::new(name).file_name().is_some_and(|file| file == name);
    let path = directory.join(BACKUPS).join(name);
    if !plain {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "give the name of a backup alone");
        return Err(StoreError::Io(path, error));
    }
    match whole(&path, codec) {
        Err(Damage::Newer(schema)) => Err(StoreError::Newer(schema)),
        Err(damage) => {
            Err(StoreError::Io(path, io::Error::other(format!("not restored: {damage}"))))
        }
        Ok(found) => Ok(Found { backup: Some(name.to_owned()), ..found }),
    }
}

/// Makes a state that was found in a backup the newest one, so that no later backup takes its place.
pub fn restore(
    disk: &mut dyn Storage,
    directory: &Path,
    found: &Found,
    codec: &Codec,
) -> io::Result<()> {
    let newest = backups(directory).first().map_or(0, |backup| backup.sequence);
    let current = whole(&directory.join(STATE_FILE), codec).map_or(0, |found| found.sequence);
    let sequence = newest.max(current).max(found.sequence) + 1;
    let sealed = envelope::seal(sequence, found.saved_at, found.state.as_bytes());
    let target = directory.join(STATE_FILE);
    if fs::symlink_metadata(&target).is_ok_and(|there| !there.is_file()) {
        // A file can't be renamed over a directory.
        disk.rename(&target, &directory.join(aside(directory, found.saved_at)))?;
    }
    ways::durably(disk, directory, STATE_FILE, &codec.encode(sealed)?)
}
