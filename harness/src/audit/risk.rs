//! The rule by which a risk gets its level, and a program its status.

use serde::{Deserialize, Serialize};

use super::{Risk, Status};
use crate::verdict::Promise;

/// How bad a risk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Untidy.
    Low,
    /// What was promised is lost in rare cases.
    Medium,
    /// The state is lost in rare cases, or nobody is told that it is.
    High,
    /// The state is lost, or wrong, by what happens every day.
    Critical,
}

impl Level {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }

    /// The next lower one.
    fn lower(self) -> Self {
        match self {
            Self::Critical => Self::High,
            Self::High => Self::Medium,
            Self::Medium | Self::Low => Self::Low,
        }
    }
}

/// The rule in words, for the document.
pub const RULE: &str = "A damaged state, damage that is taken for a state, and books that do not agree with \
    the broker are critical; high if it takes a loss of power or a second process. A failed save that is \
    reported as done and a state that the program can't load or check again are high. A lost \
    acknowledged save is high; medium if it takes a loss of power or a second process. Files that stay \
    behind are low. What was only brought about inside a page, where Linux itself cuts no write, is one \
    level lower. Critical and high risks are a FAIL, medium ones a WARN; so is a scenario of which most trials \
    say nothing.";

/// The level of a broken promise in a scenario; `forced` if only what Linux itself can't leave
/// breaks it.
#[must_use]
pub fn level(scenario: &str, promise: Promise, forced: bool) -> Level {
    let rare = matches!(scenario, "poweroff" | "poweroff-disk" | "concurrent");
    let level = match promise {
        Promise::Atomic | Promise::Sound | Promise::Consistent => Level::Critical,
        Promise::Durable => Level::High,
        Promise::Honest | Promise::Recoverable | Promise::Checked => {
            return or_lower(Level::High, forced);
        }
        Promise::Tidy => Level::Low,
    };
    or_lower(or_lower(level, rare), forced)
}

fn or_lower(level: Level, lower: bool) -> Level {
    if lower { level.lower() } else { level }
}

/// The status that follows from the risks, which come with the worst first; its level, and why. Where so many
/// scenarios were run, `unclear` says that of one most says nothing.
#[must_use]
pub fn status(
    risks: &[Risk],
    (measured, skipped): (usize, usize),
    unclear: bool,
) -> (Status, Option<Level>, String) {
    let Some(worst) = risks.first() else {
        let left = match skipped {
            0 => String::new(),
            n => format!("; {n} could not be run"),
        };
        if unclear {
            let why = "no promise was seen broken, but of some scenario most trials say nothing";
            return (Status::Warn, None, format!("{why}{left}"));
        }
        let of = match measured {
            1 => "in the one scenario that was run".to_owned(),
            n => format!("in all {n} scenarios that were run"),
        };
        return (Status::Pass, None, format!("every promise held {of}{left}"));
    };
    let status = match worst.level {
        Level::Critical | Level::High => Status::Fail,
        Level::Medium => Status::Warn,
        Level::Low if unclear => Status::Warn,
        Level::Low => Status::Pass,
    };
    let why = format!("{}: {} ({} of {})", worst.when, worst.what, worst.broken, worst.of);
    (status, Some(worst.level), why)
}
