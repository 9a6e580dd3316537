//! What to do about what was measured, with an example in the language of the program.
//!
//! The examples are programs that are tested like any other; a document shows the part between their
//! marks.

use std::collections::BTreeSet;

use super::language::Language;
use super::{Area, Code, Recommendation, Risk};
use crate::locate::Frame;
use crate::verdict::Promise;

/// Something that helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Advice {
    Save,
    Report,
    Lock,
    Load,
    Reconcile,
    CleanUp,
}

const ALL: [Advice; 6] =
    [Advice::Save, Advice::Report, Advice::Load, Advice::Lock, Advice::Reconcile, Advice::CleanUp];

impl Advice {
    /// What answers a risk.
    fn against(scenario: &str, promise: Promise) -> Self {
        match (scenario, promise) {
            (_, Promise::Consistent) => Self::Reconcile,
            (_, Promise::Honest) => Self::Report,
            (_, Promise::Tidy) => Self::CleanUp,
            ("concurrent", _) => Self::Lock,
            ("corrupt" | "deleted" | "restore" | "stale", _) => Self::Load,
            (_, Promise::Recoverable | Promise::Checked | Promise::Sound) => Self::Load,
            _ => Self::Save,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Save => {
                "Save into a new file in the directory of the state, fsync it, rename it over the state and \
                 fsync the directory; acknowledge the save when that has returned."
            }
            Self::Report => {
                "Look at what each call returns, the write, the fsync and the close among them, and report \
                 the save as failed if one failed."
            }
            Self::Load => {
                "Load only what a checksum proves whole; else take the newest copy that is whole and say so; \
                 begin with a default state only if there has never been one."
            }
            Self::Lock => {
                "Take a lock of the operating system that dies with its process before the state is \
                 loaded, and end if another process holds it."
            }
            Self::Reconcile => {
                "Write each order down, with an id of your own, before it is sent; at the start ask the \
                 broker what became of those that are open, and take its ledger for the truth."
            }
            Self::CleanUp => {
                "Remove the temporary file when a save fails, and those of dead processes at the start."
            }
        }
    }

    /// The parts of the examples that show it.
    fn parts(self) -> &'static [&'static str] {
        match self {
            Self::Save | Self::Report | Self::CleanUp => &["replace"],
            Self::Load => &["save", "load"],
            Self::Lock => &["lock"],
            Self::Reconcile => &[],
        }
    }
}

/// The sound program of a language.
#[must_use]
pub fn example(language: Language) -> &'static str {
    match language {
        Language::Python => include_str!("../../../targets/python/durable.py"),
        Language::JavaScript => include_str!("../../../targets/node/durable.js"),
        Language::Rust => include_str!("../../../targets/rust/durable.rs"),
        Language::Go => include_str!("../../../targets/go/durable.go"),
        Language::C => include_str!("../../../targets/c/durable.c"),
        Language::Shell => include_str!("../../../targets/shell/durable.sh"),
    }
}

/// What stands between the marks of a part; the marks are comments that name it, and, after a colon, the lines
/// that it needs at the top of a file.
#[must_use]
pub fn part(example: &str, name: &str) -> String {
    let needs = |line: &str| {
        let needs = line.split_once("--- ")?.1.strip_prefix(name)?;
        needs.is_empty().then_some("").or_else(|| needs.strip_prefix(": ")).map(str::to_owned)
    };
    let mut lines = example.lines();
    let Some(needs) = lines.find_map(needs) else { return String::new() };
    let lines: Vec<_> = lines.take_while(|line| !line.ends_with("--- end")).collect();
    let text = lines.join("\n").trim_matches('\n').to_owned();
    match needs.is_empty() {
        true => text,
        false => format!("{}\n\n{text}", needs.replace(" | ", "\n")),
    }
}

/// What to do, the most urgent first.
#[must_use]
pub fn recommendations(
    risks: &[(Risk, Promise)],
    areas: &[Area],
    skipped: &[(&str, &str)],
    language: Option<Language>,
) -> Vec<Recommendation> {
    let mut all = Vec::new();
    for advice in ALL {
        let answers: Vec<_> = risks
            .iter()
            .filter(|(risk, promise)| Advice::against(&risk.scenario, *promise) == advice)
            .map(|(risk, _)| risk)
            .collect();
        let Some(priority) = answers.iter().map(|risk| risk.level).max() else { continue };
        let why = answers
            .iter()
            .map(|risk| format!("{}, {} ({} of {})", risk.when, risk.what, risk.broken, risk.of));
        all.push(Recommendation {
            priority: Some(priority),
            what: advice.words().to_owned(),
            why: why.collect(),
            places: if advice == Advice::Save { places(areas) } else { Vec::new() },
            code: language.filter(|_| !advice.parts().is_empty()).map(|language| {
                let parts = advice.parts().iter().map(|name| part(example(language), name));
                Code { language, text: parts.collect::<Vec<_>>().join("\n\n") }
            }),
        });
    }
    all.sort_by_key(|one| std::cmp::Reverse(one.priority));
    all.extend(complete(skipped));
    all
}

/// Where the examples of what does not hold are, each place once.
fn places(areas: &[Area]) -> Vec<Frame> {
    let saving = areas.iter().filter(|area| matches!(&*area.name, "Atomic write" | "Durability"));
    let places = saving
        .flat_map(|area| &area.findings)
        .filter_map(|found| found.example.as_ref().and_then(|example| example.place.clone()));
    places.collect::<BTreeSet<_>>().into_iter().collect()
}

/// What would let more be said: the scenarios that were not run, by the reason.
fn complete(skipped: &[(&str, &str)]) -> Option<Recommendation> {
    let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
    for (scenario, why) in skipped {
        let name = format!("`{scenario}`");
        match reasons.iter_mut().find(|(reason, _)| reason == why) {
            Some((_, names)) => names.push(name),
            None => reasons.push((why, vec![name])),
        }
    }
    let why = reasons.iter().map(|(why, names)| format!("{}: {why}", names.join(", ")));
    (!skipped.is_empty()).then(|| Recommendation {
        priority: None,
        what: "Let the audit see what it could not measure.".to_owned(),
        why: why.collect(),
        places: Vec::new(),
        code: None,
    })
}
