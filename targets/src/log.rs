//! Strategies that append each version to a log. The state is what its last whole record holds.
//!
//! A record is a line: the length of its JSON as eight hexadecimal digits, then, in the sound
//! format, its CRC-32 in eight more, then the JSON.

use std::io::{self, Write};
use std::path::Path;

use crate::state::Version;
use crate::storage::{Open, Storage};

/// The name of the log in the state directory.
pub const LOG_FILE: &str = "state.log";

/// How a load knows that a record is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// By its length alone.
    Length,
    /// By its length and its checksum.
    Checksum,
}

/// When a save is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// When the record has been written.
    Written,
    /// When it is on disk.
    Synced,
}

/// The record of a version.
#[must_use]
pub fn record(json: &[u8], format: Format) -> Vec<u8> {
    let mut record = format!("{:08x} ", json.len()).into_bytes();
    if format == Format::Checksum {
        record.extend(format!("{:08x} ", crc32fast::hash(json)).into_bytes());
    }
    record.extend(json);
    record.push(b'\n');
    record
}

/// The whole records at the beginning of a log: the JSON of the last, and where they end.
#[must_use]
pub fn whole(log: &[u8], format: Format) -> (Option<&[u8]>, usize) {
    let (mut last, mut end) = (None, 0);
    while let Some((json, length)) = first(&log[end..], format) {
        last = Some(json);
        end += length;
    }
    (last, end)
}

/// The first record: its JSON, and its length with all.
fn first(log: &[u8], format: Format) -> Option<(&[u8], usize)> {
    let number = |from: usize| {
        let digits = std::str::from_utf8(log.get(from..from + 8)?).ok()?;
        u32::from_str_radix(digits, 16).ok()
    };
    let length = usize::try_from(number(0)?).ok()?;
    let start = match format {
        Format::Length => 9,
        Format::Checksum => 18,
    };
    let end = start + length;
    let json = log.get(start..end)?;
    match format {
        // The defect: that so many bytes are there does not say that they are the right ones.
        Format::Length => (log.len() > end).then_some((json, end + 1)),
        Format::Checksum => {
            let whole = number(9)? == crc32fast::hash(json) && log.get(end) == Some(&b'\n');
            whole.then_some((json, end + 1))
        }
    }
}

/// Removes what a crash has left half written at the end of the log.
pub fn repair(disk: &mut dyn Storage, directory: &Path, format: Format) -> io::Result<()> {
    let path = directory.join(LOG_FILE);
    let log = read(&path)?;
    let (_, end) = whole(&log, format);
    if end == log.len() {
        return Ok(());
    }
    let file = disk.open(&path, Open::Append)?;
    let cut = disk.truncate(file, end as u64).and_then(|()| disk.fsync(file));
    cut.and(disk.close(file))
}

/// Appends a version.
pub fn append(
    disk: &mut dyn Storage,
    directory: &Path,
    version: &Version,
    format: Format,
    when: Ack,
    ack: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let path = directory.join(LOG_FILE);
    let is_new = !path.exists();
    let log = read(&path)?;
    let (_, end) = whole(&log, format);
    let record = record(&version.json, format);
    let file = disk.open(&path, Open::Append)?;
    let mut write = || {
        if end < log.len() {
            disk.truncate(file, end as u64)?;
        }
        crate::temp::Handle { disk, file }.write_all(&record)?;
        if when == Ack::Written {
            ack(version.number);
        }
        disk.fsync(file)
    };
    let written = write();
    if written.is_err() {
        // A torn record must not stand before a whole one. That this fails changes nothing: the
        // next save cuts it off.
        let _ = disk.truncate(file, end as u64);
    }
    written.and(disk.close(file))?;
    if is_new {
        crate::ways::sync_directory(disk, directory)?;
    }
    if when == Ack::Synced {
        ack(version.number);
    }
    Ok(())
}

/// The log; an empty one if there is none.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_tail_is_left_out_and_only_a_checksum_sees_a_hole() {
        for format in [Format::Length, Format::Checksum] {
            let log = [record(b"[1]", format), record(b"[22]", format)].concat();
            let first = record(b"[1]", format).len();
            assert_eq!(whole(&log, format), (Some(&b"[22]"[..]), log.len()));
            for cut in first..log.len() {
                assert_eq!(whole(&log[..cut], format), (Some(&b"[1]"[..]), first));
            }
            let mut hole = log.clone();
            let place = hole.len() - 3;
            hole[place] = 0;
            let taken = whole(&hole, format).0;
            assert_eq!(taken == Some(&b"[1]"[..]), format == Format::Checksum);
        }
    }
}
