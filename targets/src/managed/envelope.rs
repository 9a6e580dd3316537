//! What is stored: a state in an envelope that tells damage, even such as is still valid JSON.
//!
//! One line of JSON, the same from every language:
//!
//! ```text
//! {"format":"managed-state","schema":1,"sequence":42,"saved_at":"2026-11-22T09:30:00.000Z","state":{...},"crc32":"89abcdef"}
//! ```
//!
//! The checksum is the CRC-32 (IEEE 802.3) of all bytes before `,"crc32":`, in lower case. It is
//! compared byte for byte, so that the file needs no canonical form.

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;

/// What the format calls itself.
pub const FORMAT: &str = "managed-state";
/// The newest schema that is read, and the one that is written.
pub const SCHEMA: u32 = 1;

/// What stands before the checksum, and after it.
const CHECKSUM: &str = ",\"crc32\":\"";
const END: &str = "\"}\n";

/// A state out of its envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    /// Counts the saves.
    pub sequence: u64,
    /// When it was saved.
    pub saved_at: DateTime<Utc>,
    /// The state as JSON.
    pub state: &'a str,
}

/// Why an envelope is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It has no bytes.
    Empty,
    /// It does not end like an envelope: it was cut, or is something else.
    NotSealed,
    /// It says another checksum than its bytes have.
    Checksum {
        /// The one that it says.
        said: String,
        /// The one that its bytes have.
        found: String,
    },
    /// It is whole, but no envelope of this format.
    Malformed(String),
    /// It is whole, and of a schema that a later version has written.
    Newer(u32),
    /// It can't be read at all: no regular file, no permission, or a failing disk.
    Unreadable(String),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::NotSealed => f.write_str("it does not end with its checksum: it was cut short"),
            Self::Checksum { said, found } => {
                write!(f, "its checksum is {said}, and that of its bytes is {found}")
            }
            Self::Malformed(why) => write!(f, "it is no state: {why}"),
            Self::Newer(schema) => {
                write!(f, "it has schema {schema}, and this program reads up to {SCHEMA}")
            }
            Self::Unreadable(why) => write!(f, "it can't be read: {why}"),
        }
    }
}

/// A time as it is stored: RFC 3339 in UTC, with milliseconds.
#[must_use]
pub fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Puts a state, which is JSON in one line, into its envelope.
#[must_use]
pub fn seal(sequence: u64, saved_at: DateTime<Utc>, state: &[u8]) -> Vec<u8> {
    let head = format!(
        "{{\"format\":\"{FORMAT}\",\"schema\":{SCHEMA},\"sequence\":{sequence},\"saved_at\":\"{}\",\"state\":",
        time(saved_at)
    );
    let mut bytes = Vec::with_capacity(head.len() + state.len() + CHECKSUM.len() + 8 + END.len());
    bytes.extend_from_slice(head.as_bytes());
    bytes.extend_from_slice(state);
    let checksum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(format!("{CHECKSUM}{checksum:08x}{END}").as_bytes());
    bytes
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    format: &'a str,
    schema: u32,
    sequence: u64,
    saved_at: DateTime<Utc>,
    #[serde(borrow)]
    state: &'a RawValue,
    #[serde(rename = "crc32")]
    _crc32: &'a str,
}

/// Takes a state out of its envelope, if that is whole.
pub fn open(bytes: &[u8]) -> Result<Opened<'_>, Damage> {
    if bytes.is_empty() {
        return Err(Damage::Empty);
    }
    let tail = CHECKSUM.len() + 8 + END.len();
    let (covered, tail) =
        bytes.len().checked_sub(tail).map(|at| bytes.split_at(at)).ok_or(Damage::NotSealed)?;
    let said = tail
        .strip_prefix(CHECKSUM.as_bytes())
        .and_then(|rest| rest.strip_suffix(END.as_bytes()))
        .ok_or(Damage::NotSealed)?;
    let found = format!("{:08x}", crc32fast::hash(covered));
    if said != found.as_bytes() {
        let said = String::from_utf8_lossy(said).into_owned();
        return Err(Damage::Checksum { said, found });
    }
    let envelope: Envelope<'_> =
        serde_json::from_slice(bytes).map_err(|error| Damage::Malformed(error.to_string()))?;
    if envelope.format != FORMAT {
        return Err(Damage::Malformed(format!("its format is `{}`", envelope.format)));
    }
    if envelope.schema > SCHEMA {
        return Err(Damage::Newer(envelope.schema));
    }
    let Envelope { sequence, saved_at, state, .. } = envelope;
    Ok(Opened { sequence, saved_at, state: state.get() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed() -> Vec<u8> {
        seal(42, DateTime::UNIX_EPOCH, br#"{"a":[1,"x"]}"#)
    }

    #[test]
    fn what_was_sealed_is_opened() {
        let bytes = sealed();
        let opened = open(&bytes).unwrap();
        let saved_at = DateTime::UNIX_EPOCH;
        assert_eq!(opened, Opened { sequence: 42, saved_at, state: r#"{"a":[1,"x"]}"# });
    }

    #[test]
    fn each_flipped_bit_and_each_cut_is_told() {
        let whole = sealed();
        for length in 0..whole.len() {
            assert!(open(&whole[..length]).is_err(), "{length}");
        }
        for bit in 0..8 * whole.len() {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn valid_json_of_another_shape_is_told() {
        assert_eq!(open(br#"{"balance":1}"#), Err(Damage::NotSealed));
        let text = String::from_utf8(sealed()).unwrap();
        let other = text.replace("\"sequence\":42", "\"sequence\":43");
        assert!(matches!(open(other.as_bytes()), Err(Damage::Checksum { .. })));
    }

    #[test]
    fn a_state_of_a_newer_schema_is_whole_and_not_read() {
        let covered = format!(
            "{{\"format\":\"{FORMAT}\",\"schema\":7,\"sequence\":1,\"saved_at\":\"2026-01-01T00:00:00.000Z\",\"state\":{{}}"
        );
        let bytes = format!("{covered}{CHECKSUM}{:08x}{END}", crc32fast::hash(covered.as_bytes()));
        assert_eq!(open(bytes.as_bytes()), Err(Damage::Newer(7)));
    }
}
