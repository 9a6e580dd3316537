//! One replayed trial on the terminal.

use std::fmt::Write;

use crate::fault::{Injection, Struck};
use crate::replay::{Replayed, ReplayedFile};
use crate::verdict::Verdict;

/// How many bytes are shown around the place where survivor and version part.
const SHOWN: usize = 32;

/// Renders a replayed trial for people.
#[must_use]
pub fn render(replayed: &Replayed) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = writeln!(
        text,
        "trial {}: {}: {}",
        replayed.id, replayed.trial.subject, replayed.trial.fault
    );
    let struck = match &replayed.injection {
        Injection::NotReached => "nowhere".to_owned(),
        Injection::At(Struck::Call { call, path, point }) => {
            format!("{point} {} on {path}", call.name())
        }
        Injection::At(Struck::Moment { delay_us }) => format!("after {delay_us:?}"),
    };
    let _ = writeln!(text, "struck:  {struck}");
    let _ = writeln!(text, "acks:    {} seen, so version {} is owed", replayed.acks, replayed.owed);
    for file in &replayed.files {
        file_lines(file, &mut text);
    }
    let verdict = match &replayed.verdict {
        Verdict::Pass => "pass: every promise held".to_owned(),
        Verdict::Inconclusive(why) => format!("inconclusive: {}", why.name()),
        Verdict::Violated(violations) => violations
            .iter()
            .map(|v| format!("{}: {}", v.kind.name(), v.detail))
            .collect::<Vec<_>>()
            .join("\n         "),
    };
    let _ = writeln!(text, "verdict: {verdict}");
    let again = if replayed.again {
        "the same verdict and the same bytes as before"
    } else {
        "NOT what was found before: does the program save other bytes in each run?"
    };
    let _ = writeln!(text, "again:   {again}");
    let _ = writeln!(text, "kept in: {}", replayed.directory.display());
    text
}

fn file_lines(file: &ReplayedFile, text: &mut String) {
    let path = file.path.display();
    let Some(bytes) = &file.bytes else {
        let _ = writeln!(text, "file:    {path} is missing");
        return;
    };
    let _ = writeln!(text, "file:    {path}, {} bytes", bytes.len());
    for (n, version) in &file.expected {
        let same = bytes.iter().zip(version).take_while(|(a, b)| a == b).count();
        if same == bytes.len() && same == version.len() {
            let _ = writeln!(text, "  version {n}: the same");
            continue;
        }
        let _ = writeln!(
            text,
            "  version {n}: {} bytes, the first {same} are the same, then",
            version.len()
        );
        let _ = writeln!(text, "    survivor: {}", excerpt(bytes, same));
        let _ = writeln!(text, "    version:  {}", excerpt(version, same));
    }
}

/// The bytes around `place`, printable.
fn excerpt(bytes: &[u8], place: usize) -> String {
    let from = place.saturating_sub(SHOWN / 2);
    let to = (place + SHOWN / 2).min(bytes.len());
    let before = if from > 0 { "..." } else { "" };
    let after = if to < bytes.len() { "..." } else { " (end)" };
    let left = bytes[from..place.min(to)].escape_ascii();
    let right = bytes[place.min(to)..to].escape_ascii();
    format!("{before}{left} | {right}{after}")
}
