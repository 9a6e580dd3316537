//! Says how damaged bytes differ from the versions that they should be.

use crate::verdict::{Violation, ViolationKind};

/// Classifies bytes that are none of `versions` (the newest last); `json` says that all of those
/// are JSON.
#[must_use]
pub fn damage(file: &str, bytes: &[u8], versions: &[&[u8]], json: bool) -> Violation {
    let (kind, what) = classify(bytes, versions, json);
    Violation { kind, detail: format!("{file} {what}") }
}

fn classify(bytes: &[u8], versions: &[&[u8]], json: bool) -> (ViolationKind, String) {
    if bytes.is_empty() {
        return (ViolationKind::Empty, "is empty".to_owned());
    }
    let length = bytes.len();
    if bytes.iter().all(|byte| *byte == 0) {
        return (ViolationKind::Zeroed, format!("is {length} NUL bytes"));
    }
    if let Some(n) = versions.iter().rposition(|version| version.starts_with(bytes)) {
        let position = if json { json_position(bytes) } else { String::new() };
        let whole = versions[n].len();
        return (
            ViolationKind::Torn,
            format!("is cut short: {length} of the {whole} bytes of version {n}{position}"),
        );
    }
    if let Some(what) = mixture(bytes, versions) {
        return (ViolationKind::Mixed, what);
    }
    let zeros = bytes.iter().rev().take_while(|byte| **byte == 0).count();
    if zeros > 0 && !versions.iter().any(|version| version.last() == Some(&0)) {
        let from = length - zeros;
        return (
            ViolationKind::Zeroed,
            format!("has NUL bytes from byte {from} to its end at {length}"),
        );
    }
    if json && ends_early(bytes) {
        let position = json_position(bytes);
        return (ViolationKind::Torn, format!("is cut short at {length} bytes{position}"));
    }
    (ViolationKind::Alien, format!("holds {length} bytes that are no version"))
}

/// A message without what differs from one time to the next: `#` for each number, and for each word of 8 or more
/// hexadecimal digits with a number among them.
#[must_use]
pub fn folded(text: &str) -> String {
    let mut folded = String::new();
    let word = |c: char| c.is_ascii_alphanumeric();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c| word(c) != word(first)).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(end);
        let digits = piece.bytes().any(|byte| byte.is_ascii_digit());
        if piece.len() >= 8 && digits && piece.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            folded.push('#');
        } else {
            let mut in_number = false;
            for c in piece.chars() {
                if !c.is_ascii_digit() {
                    folded.push(c);
                } else if !in_number {
                    folded.push('#');
                }
                in_number = c.is_ascii_digit();
            }
        }
        rest = after;
    }
    folded
}

/// Finds two versions of which `bytes` are made, place by place.
fn mixture(bytes: &[u8], versions: &[&[u8]]) -> Option<String> {
    // Neighbours are what a crash mixes; trying all pairs of many versions would be quadratic.
    for (n, pair) in versions.windows(2).enumerate().rev() {
        let (old, new) = (pair[0], pair[1]);
        if bytes.len() > old.len().max(new.len()) {
            continue;
        }
        let from_one = |i: usize| old.get(i) == Some(&bytes[i]) || new.get(i) == Some(&bytes[i]);
        if (0..bytes.len()).all(from_one) {
            return Some(format!("mixes two versions: {}", pieces(bytes, (old, n), (new, n + 1))));
        }
    }
    None
}

/// How many pieces of a mixture are told.
const PIECES_MAX: usize = 4;

/// Which bytes are of which version, in words; bytes that both have are counted to the piece before.
fn pieces(bytes: &[u8], old: (&[u8], usize), new: (&[u8], usize)) -> String {
    let mut pieces: Vec<(usize, usize)> = Vec::new();
    for (at, byte) in bytes.iter().enumerate() {
        let of = |version: (&[u8], usize)| (version.0.get(at) == Some(byte)).then_some(version.1);
        match (of(old), of(new), pieces.last()) {
            (Some(_), Some(_), _) => {}
            (Some(version), None, last) | (None, Some(version), last) => {
                if last.is_none_or(|(_, before)| *before != version) {
                    pieces.push((if pieces.is_empty() { 0 } else { at }, version));
                }
            }
            (None, None, _) => {}
        }
    }
    let ends = pieces.iter().skip(1).map(|(start, _)| *start).chain([bytes.len()]);
    let words: Vec<_> = pieces
        .iter()
        .zip(ends)
        .take(PIECES_MAX)
        .enumerate()
        .map(|(n, ((start, version), end))| match n {
            0 => format!("bytes {start} to {} are of version {version}", end - 1),
            _ => format!("{start} to {} of version {version}", end - 1),
        })
        .collect();
    let more = match pieces.len().saturating_sub(PIECES_MAX) {
        0 => String::new(),
        more => format!(" and {more} pieces more"),
    };
    words.join(", ") + &more
}

fn ends_early(bytes: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_err_and(|error| error.is_eof())
}

/// Where a JSON parser gives up, as ", JSON error at line L column C".
fn json_position(bytes: &[u8]) -> String {
    match serde_json::from_slice::<serde::de::IgnoredAny>(bytes) {
        Ok(_) => String::new(),
        Err(error) => format!(", JSON error at line {} column {}", error.line(), error.column()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &[u8] = br#"{"n":1,"long":"aaaaaaaa"}"#;
    const NEW: &[u8] = br#"{"n":2,"long":"bbbb"}"#;

    fn kind(bytes: &[u8]) -> ViolationKind {
        damage("s", bytes, &[OLD, NEW], true).kind
    }

    #[test]
    fn each_damage_has_its_name() {
        assert_eq!(kind(b""), ViolationKind::Empty);
        assert_eq!(kind(&[0; 25]), ViolationKind::Zeroed);
        assert_eq!(kind(&NEW[..9]), ViolationKind::Torn);
        assert_eq!(kind(br#"{"n":2,"long":"bbbb"}aa"}"#), ViolationKind::Mixed);
        assert_eq!(kind(br#"{"n":2,"long":"aaaaaaaa"}"#), ViolationKind::Mixed);
        assert_eq!(kind(b"{\"n\":2,\0\0\0"), ViolationKind::Zeroed);
        assert_eq!(kind(br#"{"n":9}"#), ViolationKind::Alien);
        assert_eq!(kind(br#"{"n":9"#), ViolationKind::Torn);
    }

    #[test]
    fn a_mixture_says_which_bytes_are_of_which_version() {
        let detail = |bytes: &[u8]| damage("s", bytes, &[OLD, NEW], true).detail;
        assert_eq!(
            detail(br#"{"n":2,"long":"bbbb"}aa"}"#),
            "s mixes two versions: bytes 0 to 20 are of version 1, 21 to 24 of version 0"
        );
        let (old, new) = (vec![b'A'; 8192], vec![b'B'; 8192]);
        let half = [&old[..4096], &new[4096..]].concat();
        assert_eq!(
            damage("s", &half, &[&old, &new], false).detail,
            "s mixes two versions: bytes 0 to 4095 are of version 0, 4096 to 8191 of version 1"
        );
    }

    #[test]
    fn a_torn_file_says_where_the_parser_stops() {
        let violation = damage("s", &NEW[..9], &[OLD, NEW], true);
        assert_eq!(
            violation.detail,
            "s is cut short: 9 of the 21 bytes of version 1, JSON error at line 1 column 9"
        );
    }

    #[test]
    fn messages_are_the_same_but_for_numbers_and_hashes() {
        assert_eq!(folded("pid 4711: byte 17 of v2"), "pid #: byte # of v#");
        assert_eq!(folded("no object deadbeef01 in a"), "no object # in a");
        assert_eq!(folded("faded defaced é"), "faded defaced é");
        assert_ne!(folded("line 3: orders"), folded("line 3: cash"));
    }
}
