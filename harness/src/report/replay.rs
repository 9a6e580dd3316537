//! One replayed trial on the terminal.

use std::fmt::Write;

use super::harmless::escaped;
use crate::fault::Injection;
use crate::outcome::Exit;
use crate::replay::{Replayed, ReplayedFile};
use crate::steps;
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
        replayed.id,
        escaped(&replayed.trial.subject),
        escaped(&replayed.trial.fault.to_string())
    );
    let struck = match &replayed.injection {
        Injection::NotReached => "nowhere".to_owned(),
        Injection::At(struck) => escaped(&struck.to_string()),
        Injection::Both(first, second) => {
            format!("{}\n         {}", escaped(&first.to_string()), escaped(&second.to_string()))
        }
    };
    if !replayed.live {
        let _ = writeln!(text, "struck:  {struck}");
    }
    step_lines(replayed, &mut text);
    if let Some(why) = &replayed.explanation {
        let _ = writeln!(text, "why:     {}", escaped(&why.words));
        let _ = writeln!(text, "remedy:  {}", why.remedy.words());
    }
    let promise = match replayed.exit {
        Exit::Status(0) => "exit status 0 promises the last".to_owned(),
        _ => format!("{} seen", replayed.acks),
    };
    let _ = match replayed.live {
        true => writeln!(text, "acks:    {promise}"),
        false => writeln!(text, "acks:    {promise}, so version {} is owed", replayed.owed),
    };
    for file in &replayed.files {
        file_lines(file, &mut text);
    }
    let verdict = match &replayed.verdict {
        Verdict::Pass => "pass: every promise held".to_owned(),
        Verdict::Inconclusive(why) => format!("inconclusive: {}", why.name()),
        Verdict::Violated(violations) => violations
            .iter()
            .map(|v| format!("{}: {}", v.kind.name(), escaped(&v.detail)))
            .collect::<Vec<_>>()
            .join("\n         "),
    };
    let _ = writeln!(text, "verdict: {verdict}");
    let again = match (replayed.again, replayed.live) {
        (true, false) => "the same verdict and the same bytes as before",
        (true, true) => "the same kind of violation, in another recording",
        (false, _) => "NOT what was found before: does the program save other bytes in each run?",
    };
    let _ = writeln!(text, "again:   {again}");
    let _ = writeln!(text, "kept in: {}", replayed.directory.display());
    text
}

/// What the subject did, from the call that failed to its end.
fn step_lines(replayed: &Replayed, text: &mut String) {
    for (n, step) in replayed.steps.iter().enumerate() {
        let label = if n == 0 { "did:     " } else { "         " };
        let _ = writeln!(text, "{label}{}", escaped(&steps::line(step)));
    }
    if !replayed.steps.is_empty() {
        let _ = writeln!(text, "         {}", ended(replayed.exit));
    }
}

fn ended(exit: Exit) -> String {
    match exit {
        Exit::Killed => "was killed".to_owned(),
        Exit::Status(status) => format!("ended with status {status}"),
        Exit::Signal(signal) => format!("died of signal {signal}"),
        Exit::TimedOut => "did not end in time".to_owned(),
        Exit::TooManyProcesses => "started too many processes".to_owned(),
    }
}

fn file_lines(file: &ReplayedFile, text: &mut String) {
    let path = escaped(&file.path.to_string_lossy());
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
