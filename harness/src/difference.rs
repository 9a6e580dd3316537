//! Where a survivor differs from a version that was expected, in words that can be shown.

use serde::{Deserialize, Serialize};

use crate::history::History;
use crate::outcome::{Content, Survivor};

/// Where a state file differs from a version of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The file.
    pub file: String,
    /// The version that it is most like, or that is owed.
    pub version: usize,
    /// How many bytes that has; none if the file is not in it.
    pub expected_bytes: Option<u64>,
    /// How many bytes were left; none if there is no such file.
    pub left_bytes: Option<u64>,
    /// The first byte that differs.
    pub at: u64,
    /// What comes before it in both; what is no printable ASCII is written as an escape.
    pub before: String,
    /// What comes from it on in the version.
    pub expected: String,
    /// What comes from it on in the survivor.
    pub left: String,
}

/// How many bytes before a difference are shown.
pub const BEFORE: usize = 48;
/// How many from it on.
pub const FROM: usize = 96;

/// The differences of all state files from the version that the survivor is most like, of those that may
/// exist when so many acks were given.
#[must_use]
pub fn of(history: &History, acks: u64, survivor: &Survivor) -> Vec<Difference> {
    let acks = usize::try_from(acks).unwrap_or(usize::MAX);
    let owed = history.owed.get(acks).or(history.owed.last()).copied().unwrap_or(0);
    let alike = |n: &usize| -> usize {
        let states = &history.versions[*n];
        let same =
            |(file, content): (&std::path::PathBuf, &Content)| match (states.get(file), content) {
                (Some(version), Content::Bytes(left)) => common(&version.bytes, left),
                _ => 0,
            };
        survivor.files.iter().map(same).sum()
    };
    // Of those that are equally like it, the oldest.
    let best = (owed..history.versions.len()).rev().max_by_key(alike);
    let Some(version) = best else { return Vec::new() };
    let mut differences = Vec::new();
    for file in history.files() {
        let expected = history.versions[version].get(file).map(|reference| &reference.bytes[..]);
        let left = match survivor.files.get(file) {
            Some(Content::Bytes(bytes)) => Some(&bytes[..]),
            Some(Content::Other(_)) | None => None,
        };
        if expected == left {
            continue;
        }
        let (whole, there) = (expected.unwrap_or_default(), left.unwrap_or_default());
        let at = common(whole, there);
        let from = |bytes: &[u8]| escaped(&bytes[at..bytes.len().min(at + FROM)]);
        differences.push(Difference {
            file: file.display().to_string(),
            version,
            expected_bytes: expected.map(|bytes| bytes.len() as u64),
            left_bytes: left.map(|bytes| bytes.len() as u64),
            at: at as u64,
            before: escaped(&whole[at.saturating_sub(BEFORE)..at]),
            expected: from(whole),
            left: from(there),
        });
    }
    differences
}

/// How many bytes are the same from the beginning on.
fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn escaped(bytes: &[u8]) -> String {
    let readable = |byte: &u8| match byte {
        b'"' | b'\'' => char::from(*byte).to_string(),
        byte => byte.escape_ascii().to_string(),
    };
    bytes.iter().map(readable).collect()
}
