//! The ways in which strategies write: in place, by a temp file, with and without what makes it durable.

use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;

use crate::storage::{Open, Storage};
use crate::strategy::{BACKUP_FILE, STATE_FILE};
use crate::temp::{Handle, TEMP_PREFIX, Temp};

/// In what pieces a dump comes to its buffer, about as a JSON library makes them.
pub(crate) const DUMP_PIECE_BYTES: usize = 64;

/// Held while `replace` saves; no other strategy has threads to fear.
pub(crate) static REPLACE_LOCK: Mutex<()> = Mutex::new(());

/// What is synced before the rename.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sync {
    Nothing,
    File,
}

pub(crate) fn dump_in_place(disk: &mut dyn Storage, target: &Path, json: &[u8]) -> io::Result<()> {
    let file = disk.open(target, Open::Truncate)?;
    let mut out = BufWriter::new(Handle { disk, file });
    let dumped = json
        .chunks(DUMP_PIECE_BYTES)
        .try_for_each(|piece| out.write_all(piece))
        .and_then(|()| out.flush());
    // What a failed dump left in the buffer must not be written by the buffer's drop.
    let (handle, _unwritten) = out.into_parts();
    dumped.and(handle.disk.close(file))
}

pub(crate) fn via_temp(
    disk: &mut dyn Storage,
    temp: &Temp,
    target: &Path,
    json: &[u8],
    sync: Sync,
) -> io::Result<()> {
    let saved = write_temp(disk, temp, json, sync).and_then(|()| disk.rename(&temp.path, target));
    if saved.is_err() {
        // The save has failed already; that error is the one to report.
        let _ = disk.unlink(&temp.path);
    }
    saved
}

pub(crate) fn write_temp(
    disk: &mut dyn Storage,
    temp: &Temp,
    bytes: &[u8],
    sync: Sync,
) -> io::Result<()> {
    let file = disk.open(&temp.path, temp.how)?;
    let written = Handle { disk, file }.write_all(bytes);
    let synced = match sync {
        Sync::File => written.and_then(|()| disk.fsync(file)),
        Sync::Nothing => written,
    };
    synced.and(disk.close(file))
}

pub(crate) fn overwrite_then_cut(
    disk: &mut dyn Storage,
    target: &Path,
    json: &[u8],
) -> io::Result<()> {
    let file = disk.open(target, Open::Overwrite)?;
    let written = Handle { disk, file }.write_all(json);
    let cut = written.and_then(|()| disk.truncate(file, json.len() as u64));
    cut.and(disk.close(file))
}

pub(crate) fn write_once_and_rename(
    disk: &mut dyn Storage,
    target: &Path,
    json: &[u8],
) -> io::Result<()> {
    let temp = Temp::fixed(target);
    let file = disk.open(&temp.path, temp.how)?;
    // The defect: the count is not looked at.
    let _count = disk.write(file, json)?;
    disk.fsync(file)?;
    disk.close(file)?;
    disk.rename(&temp.path, target)
}

/// Replaces a file of a directory for good: temp file with a random name, fsync, rename, fsync of the
/// directory.
pub(crate) fn durably(
    disk: &mut dyn Storage,
    directory: &Path,
    name: &str,
    bytes: &[u8],
) -> io::Result<()> {
    let (temp, target) = (Temp::random(directory)?, directory.join(name));
    via_temp(disk, &temp, &target, bytes, Sync::File)?;
    sync_directory(disk, directory)
}

/// How often a save is tried by those that try again.
pub(crate) const ATTEMPTS: usize = 3;

pub(crate) fn leave_temps(disk: &mut dyn Storage, directory: &Path, json: &[u8]) -> io::Result<()> {
    let target = directory.join(STATE_FILE);
    attempts(|| {
        let temp = Temp::random(directory)?;
        // The defect: what a failed attempt has written stays, and takes the space of the next.
        write_temp(disk, &temp, json, Sync::Nothing)?;
        disk.rename(&temp.path, &target)
    })
}

pub(crate) fn attempts(mut attempt: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let mut result = attempt();
    for _ in 1..ATTEMPTS {
        if result.is_ok() {
            break;
        }
        result = attempt();
    }
    result
}

pub(crate) fn copy_over_backup(disk: &mut dyn Storage, directory: &Path) -> io::Result<()> {
    match std::fs::read(directory.join(STATE_FILE)) {
        Ok(old) => dump_in_place(disk, &directory.join(BACKUP_FILE), &old),
        Err(error) => ignore_missing(Err(error)),
    }
}

pub(crate) fn replace_backup(disk: &mut dyn Storage, directory: &Path) -> io::Result<()> {
    let backup = directory.join(BACKUP_FILE);
    match std::fs::read(directory.join(STATE_FILE)) {
        Ok(old) => via_temp(disk, &Temp::fixed(&backup), &backup, &old, Sync::File),
        Err(error) => ignore_missing(Err(error)),
    }
}

pub(crate) fn retry_fsync(disk: &mut dyn Storage, directory: &Path, json: &[u8]) -> io::Result<()> {
    let temp = Temp::random(directory)?;
    let file = disk.open(&temp.path, temp.how)?;
    let written = Handle { disk, file }.write_all(json);
    // The defect: after a failed fsync the pages are clean, and the next one writes nothing.
    let synced = written.and_then(|()| attempts(|| disk.fsync(file)));
    let saved = synced
        .and(disk.close(file))
        .and_then(|()| disk.rename(&temp.path, &directory.join(STATE_FILE)));
    if saved.is_err() {
        let _ = disk.unlink(&temp.path);
    }
    saved?;
    sync_directory(disk, directory)
}

pub(crate) fn start_over(disk: &mut dyn Storage, directory: &Path, json: &[u8]) -> io::Result<()> {
    attempts(|| durably(disk, directory, STATE_FILE, json))
}

pub(crate) fn sync_directory(disk: &mut dyn Storage, directory: &Path) -> io::Result<()> {
    let handle = disk.open(directory, Open::Directory)?;
    let synced = disk.fsync(handle);
    synced.and(disk.close(handle))
}

/// Removes what a crash has left; returns the names.
pub(crate) fn remove_stale_temps(
    disk: &mut dyn Storage,
    directory: &Path,
) -> io::Result<Vec<String>> {
    let mut removed = Vec::new();
    for name in disk.list(directory)? {
        let text = name.to_string_lossy();
        if text.starts_with(TEMP_PREFIX) {
            ignore_missing(disk.unlink(&directory.join(&name)))?;
            removed.push(text.into_owned());
        }
    }
    Ok(removed)
}

pub(crate) fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
