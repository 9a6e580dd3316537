//! The audit: what an auditor would write of how a program saves its state, each sentence from what was
//! measured.
//!
//! It runs every scenario on the program and on the strategy that it recommends, and once more the
//! program with a look at where in its source it makes its calls. All that follows is pure: areas,
//! risks by a rule, recommendations. This file is the document as data; `audit.json` is this.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::locate::Frame;
use crate::plan::Seed;
use crate::source::Hint;

pub mod advice;
pub mod areas;
pub mod brief;
pub mod examine;
pub mod facts;
pub mod language;
pub mod render;
pub mod risk;
pub mod words;

use language::Language;
use risk::Level;

/// The version of this format.
pub const SCHEMA: u32 = 1;

/// What was found of one program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Audit {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What it was made with and on.
    pub made: Made,
    /// The program's name.
    pub subject: String,
    /// What it is written in, if that is known.
    pub language: Option<Language>,
    /// How it ends.
    pub status: Status,
    /// The highest level of its risks; none if there is none.
    pub risk: Option<Level>,
    /// Why that is so.
    pub rule: String,
    /// How it saves.
    pub saves: Saves,
    /// What was found, area by area.
    pub areas: Vec<Area>,
    /// What can happen, the worst first.
    pub risks: Vec<Risk>,
    /// Each scenario before and after.
    pub scenarios: Vec<Compared>,
    /// The strategy that "after" was measured with.
    pub recommended: String,
    /// What to do, the most urgent first.
    pub recommendations: Vec<Recommendation>,
    /// What its source looks like, which proves nothing.
    pub hints: Vec<Hint>,
    /// The scenarios that were not run, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<(String, String)>,
    /// Whether of some scenario most trials say nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unclear: bool,
    /// What people should know, by scenario.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What a document was made with and on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Made {
    /// The version of crashtest.
    pub crashtest: String,
    /// The kernel.
    pub kernel: String,
    /// The seed of all runs.
    pub seed: Seed,
    /// The command line.
    pub command_line: Vec<String>,
    /// How many trials, states and images it took.
    pub trials: u64,
    /// In how many of them a promise was broken.
    #[serde(default)]
    pub broken: u64,
    /// How long they took, in milliseconds.
    pub elapsed_ms: u64,
}

/// How an audit ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// No risk, or low ones.
    Pass,
    /// Risks of medium level.
    Warn,
    /// Risks of high or critical level.
    Fail,
}

impl Status {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        }
    }
}

/// How the program saves, by its unbroken run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Saves {
    /// Its state files.
    pub files: Vec<String>,
    /// Those of them that kept violations name.
    #[serde(default)]
    pub broken: Vec<String>,
    /// How many versions it left of them.
    pub versions: usize,
    /// How many bytes the last version has.
    pub bytes: u64,
    /// How many acks it gave, the end not counted.
    pub acks: usize,
    /// Other files that hold a version.
    pub copies: Vec<String>,
    /// What it renames over a state file.
    pub temps: Vec<String>,
    /// Which lines make which calls, in the order of the calls, and how often.
    pub lines: Vec<Line>,
    /// Why lines are not known, if they are not.
    pub lines_unknown: Option<String>,
    /// What it calls.
    pub calls: Vec<String>,
    /// Whether these are the calls of one save; else they are those at the beginning.
    pub of_one: bool,
}

/// A line of the source and the storage calls that it makes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    /// Where.
    pub place: Frame,
    /// The calls by name, and how often each is made.
    pub calls: BTreeMap<String, usize>,
}

/// What was found in one area.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Area {
    /// Its name.
    pub name: String,
    /// The worst of its findings.
    pub outcome: Outcome,
    /// Each a sentence.
    pub findings: Vec<Finding>,
}

/// What a finding says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was not measured, and why.
    NotMeasured,
    /// It held.
    Passed,
    /// It did not hold, with a risk of medium level at most.
    Warned,
    /// It did not hold.
    Failed,
}

/// A sentence, and what it is backed by.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// What it says.
    pub outcome: Outcome,
    /// The sentence.
    pub text: String,
    /// An example of what does not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub example: Option<Example>,
    /// What would have helped, if that is known of this very case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remedies: Vec<String>,
}

/// A violation that can be replayed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Example {
    /// What was done to it.
    pub fault: String,
    /// What was left.
    pub detail: String,
    /// Why, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Where in its source the program was, or is to blame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Frame>,
    /// The command that shows it again.
    pub replay: String,
}

/// Something that can happen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Risk {
    /// How bad it is.
    pub level: Level,
    /// The scenario.
    pub scenario: String,
    /// When it happens.
    pub when: String,
    /// What it does.
    pub what: String,
    /// In how many trials, states or images it did.
    pub broken: u64,
    /// Of how many.
    pub of: u64,
}

/// A scenario before and after.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Compared {
    /// The scenario.
    pub scenario: String,
    /// What happens in the world.
    pub story: String,
    /// The program.
    pub before: Rate,
    /// The recommended strategy.
    pub after: Rate,
}

/// A pass rate.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rate {
    /// So many passed of so many that say something.
    Of {
        /// How many passed.
        passed: u64,
        /// Of how many.
        judged: u64,
    },
    /// It was not run, for this reason.
    NotMeasured(String),
}

/// Something to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Recommendation {
    /// How urgent it is; none for what makes the audit complete.
    pub priority: Option<Level>,
    /// What to do.
    pub what: String,
    /// What was measured that it answers.
    pub why: Vec<String>,
    /// Where in the source.
    pub places: Vec<Frame>,
    /// How it is done, in the language of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
}

/// An example in a language.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Code {
    /// The language.
    pub language: Language,
    /// The text.
    pub text: String,
}
