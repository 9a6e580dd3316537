//! Scenario files: which faults, on which strategies, and what is expected of each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crashtest_targets::{STATE_BYTES_MAX, STATE_BYTES_MIN, Strategy};
use serde::{Deserialize, Serialize};

use crate::at_rest::HarmKind;
use crate::disk::plan::Cutting;
use crate::error::{Error, Result};
use crate::fault::FaultKind;
use crate::plan::Granularity;
use crate::power::profile::EMBEDDED as EMBEDDED_PROFILES;
use crate::poweroff::Power;
use crate::subject;
use crate::suggest;
use crate::sweep::Reach;
use crate::tally::Tally;
use crate::tree;
use crate::verdict::Promise;

/// The scenarios that are built into the command: name and TOML.
pub const EMBEDDED: [(&str, &str); 12] = [
    ("sigkill", include_str!("../../scenarios/sigkill.toml")),
    ("shortwrite", include_str!("../../scenarios/shortwrite.toml")),
    ("enospc", include_str!("../../scenarios/enospc.toml")),
    ("errno", include_str!("../../scenarios/errno.toml")),
    ("poweroff", include_str!("../../scenarios/poweroff.toml")),
    ("poweroff-disk", include_str!("../../scenarios/poweroff-disk.toml")),
    ("corrupt", include_str!("../../scenarios/corrupt.toml")),
    ("deleted", include_str!("../../scenarios/deleted.toml")),
    ("restore", include_str!("../../scenarios/restore.toml")),
    ("concurrent", include_str!("../../scenarios/concurrent.toml")),
    ("disconnect", include_str!("../../scenarios/disconnect.toml")),
    ("stale", include_str!("../../scenarios/stale.toml")),
];

/// A scenario, as its file says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name; part of the name of the results.
    pub name: String,
    /// What it does, in a sentence.
    pub about: String,
    /// The kind of fault.
    pub fault: FaultKind,
    /// Where faults may strike.
    #[serde(default = "granularity")]
    pub granularity: Granularity,
    /// How many trials of each subject; a sweep has as many as it needs, unless this is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trials: Option<u64>,
    /// How often a built-in strategy saves in one trial.
    #[serde(default = "one")]
    pub saves: u64,
    /// How large a built-in strategy's state is.
    #[serde(default = "page")]
    pub state_bytes: usize,
    /// How much larger each version of it is than the one before.
    #[serde(default)]
    pub growth_bytes: usize,
    /// How far a sweep goes.
    #[serde(default)]
    pub sweep: Reach,
    /// What a loss of power is derived for.
    #[serde(default)]
    pub power: Power,
    /// What a power cut below real file systems looks at.
    #[serde(default)]
    pub disk: Cutting,
    /// What happens to a state between two runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub harms: Vec<HarmKind>,
    /// Whether the ledger of a broker moves on while a bot is down.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ledger_moves_on: bool,
    /// The built-in strategies that run when none is named.
    pub strategies: Vec<String>,
    /// The promises that are judged.
    pub promises: BTreeSet<Promise>,
    /// What is expected of strategies, by name. A subject that is not listed is expected to keep
    /// every promise.
    #[serde(default)]
    pub expect: BTreeMap<String, Expectation>,
}

/// What is expected of one strategy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// Promises of which no violation may be found. Judged promises in neither list may go either
    /// way.
    #[serde(default)]
    pub keeps: BTreeSet<Promise>,
    /// Promises of which a violation must be found.
    #[serde(default)]
    pub breaks: BTreeSet<Promise>,
    /// What is expected besides on some profiles of file systems.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub on: BTreeMap<String, Expectation>,
}

fn granularity() -> Granularity {
    Granularity::Byte
}

fn one() -> u64 {
    1
}

fn page() -> usize {
    4096
}

impl Scenario {
    /// The embedded scenario called `name`, or the one in the file of that path.
    pub fn find(name: &str) -> Result<Self> {
        if let Some((name, text)) = EMBEDDED.iter().find(|(embedded, _)| *embedded == name) {
            return Self::parse(&format!("{name}.toml"), text);
        }
        let names = EMBEDDED.map(|(embedded, _)| embedded);
        let is_path = name.ends_with(".toml") || name.contains('/') || Path::new(name).is_file();
        if !is_path {
            let error = Error::usage(format!("there is no scenario `{name}`"));
            let names = names.into_iter().chain([crate::all::ALL]);
            return Err(error.help(suggest::among(name, names)));
        }
        match tree::read_text(Path::new(name), tree::TEXT_BYTES_MAX) {
            Ok(text) => Self::parse(name, &text),
            Err(error) => Err(Error::usage(format!("cannot read the scenario {name}: {error}"))
                .help(format!("the built-in ones are {}", names.join(", ")))),
        }
    }

    /// Reads a scenario; errors name `file`, the line and the column.
    pub fn parse(file: &str, text: &str) -> Result<Self> {
        let scenario: Self = toml::from_str(text).map_err(|error| {
            let place = error.span().map_or(String::new(), |span| {
                let (line, column) = line_and_column(text, span.start);
                format!(":{line}:{column}")
            });
            let message = error.message().lines().next().unwrap_or_default().to_owned();
            let wrong = Error::usage(format!("{file}{place}: {message}"));
            match suggest::from_message(&message) {
                Some(help) => wrong.help(help),
                None => wrong,
            }
        })?;
        scenario.check(file, text)?;
        Ok(scenario)
    }

    fn check(&self, file: &str, text: &str) -> Result<()> {
        let at = |word: &str| {
            let (line, column) = line_and_column(text, text.find(word).unwrap_or(0));
            format!("{file}:{line}:{column}")
        };
        for name in self.strategies.iter().chain(self.expect.keys()) {
            if Strategy::by_name(name).is_none() {
                let error = Error::usage(format!("{}: there is no strategy `{name}`", at(name)));
                return Err(error.help(suggest::among(name, Strategy::ALL.map(Strategy::name))));
            }
        }
        if !(STATE_BYTES_MIN..=STATE_BYTES_MAX).contains(&self.state_bytes) {
            let range = format!("{STATE_BYTES_MIN} to {STATE_BYTES_MAX}");
            return Err(Error::usage(format!(
                "{}: state_bytes is out of range",
                at("state_bytes")
            ))
            .help(format!("use {range} bytes")));
        }
        if !subject::can_be_held(self.saves, self.state_bytes, self.growth_bytes) {
            return Err(Error::usage(format!("{}: the states are too large", at("growth_bytes")))
                .help(subject::HOLDABLE));
        }
        if self.trials == Some(0) || self.saves == 0 {
            let key = if self.saves == 0 { "saves" } else { "trials" };
            return Err(Error::usage(format!("{}: {key} must not be 0", at(key))));
        }
        let at_rest = self.fault == FaultKind::AtRest;
        if at_rest == self.harms.is_empty() {
            let key = if at_rest { "fault" } else { "harms" };
            return Err(Error::usage(format!(
                "{}: `harms` and the fault at-rest go together",
                at(key)
            ))
            .help("harms = [\"cut\", \"flip\", ...] says what happens between two runs"));
        }
        if self.trials.is_none() && self.fault.is_drawn() {
            return Err(Error::usage(format!("{}: `trials` is missing", at("fault")))
                .help("say how many trials of each subject there shall be"));
        }
        self.check_promises(&at("promises"))?;
        let profiles = EMBEDDED_PROFILES.map(|(name, _)| name);
        let known =
            |name: &String| profiles.contains(&name.as_str()) || self.power.profiles.contains(name);
        for (name, expectation) in &self.expect {
            if let Some(on) = expectation.on.keys().find(|on| !known(on)) {
                let what = format!("{}: there is no profile `{on}`", at(&format!(".on.{on}")));
                return Err(Error::usage(what).help(suggest::among(on, profiles)));
            }
            if let Some(both) = expectation.keeps.intersection(&expectation.breaks).next() {
                let place = at(&format!("[expect.{name}]"));
                return Err(Error::usage(format!(
                    "{place}: `{name}` can not both keep and break `{}`",
                    both.name()
                )));
            }
        }
        Ok(())
    }

    fn check_promises(&self, place: &str) -> Result<()> {
        // Whoever is killed is told of nothing, and can't keep it to himself.
        let killed = !self.fault.is_told();
        let at_rest = self.fault == FaultKind::AtRest;
        let parted = self.fault == FaultKind::Parted;
        let unjudged = |promise: Promise| match promise {
            Promise::Honest => killed,
            Promise::Checked => true,
            // It is the harness that breaks the bytes.
            Promise::Atomic | Promise::Tidy => at_rest || parted,
            Promise::Sound => !at_rest,
            Promise::Consistent => !parted,
            Promise::Durable => parted,
            Promise::Recoverable => false,
        };
        match self.promises.iter().find(|promise| unjudged(**promise)) {
            None => Ok(()),
            Some(promise) => {
                let what = format!("{place}: `{}` is not judged by this fault", promise.name());
                Err(Error::usage(what).help(if parted {
                    "judge consistent or recoverable"
                } else if at_rest {
                    "judge durable, sound or recoverable"
                } else if killed {
                    "judge atomic, durable, recoverable or tidy"
                } else {
                    "judge atomic, durable, recoverable, honest or tidy"
                }))
            }
        }
    }

    /// What is expected of the subject called `name`, of which `judged` is judged.
    #[must_use]
    pub fn expectation(&self, name: &str, judged: &BTreeSet<Promise>) -> Expectation {
        let all = || Expectation { keeps: judged.clone(), ..Expectation::default() };
        self.expect.get(name).cloned().unwrap_or_else(all)
    }
}

/// A difference between what was expected and what was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Surprise {
    /// A promise was broken that was expected to be kept.
    Broken(Promise),
    /// A promise was kept that was expected to be broken.
    Vanished(Promise),
}

impl Expectation {
    /// What is expected on a profile: what is expected there counts before what is everywhere.
    #[must_use]
    pub fn on(&self, profile: &str) -> Self {
        let mut expected = Self { on: BTreeMap::new(), ..self.clone() };
        if let Some(there) = self.on.get(profile) {
            expected.keeps.retain(|promise| !there.breaks.contains(promise));
            expected.breaks.retain(|promise| !there.keeps.contains(promise));
            expected.keeps.extend(&there.keeps);
            expected.breaks.extend(&there.breaks);
        }
        expected
    }

    /// Compares with what was found, among the promises that were judged.
    #[must_use]
    pub fn surprises(&self, tally: &Tally, judged: &BTreeSet<Promise>) -> Vec<Surprise> {
        let broken = |promise: &Promise| tally.broken.contains_key(promise);
        let kept = self.keeps.intersection(judged).filter(|p| broken(p)).copied();
        let breaks = self.breaks.intersection(judged).filter(|p| !broken(p)).copied();
        kept.map(Surprise::Broken).chain(breaks.map(Surprise::Vanished)).collect()
    }
}

/// Line and column, from 1, of a byte of `text`.
fn line_and_column(text: &str, byte: usize) -> (usize, usize) {
    let before = &text[..byte.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(from: &str, to: &str) -> String {
        let text = EMBEDDED[0].1.replacen(from, to, 1);
        assert_ne!(text, EMBEDDED[0].1, "{from} is not in the scenario");
        Scenario::parse("x.toml", &text).unwrap_err().to_string()
    }

    #[test]
    fn the_embedded_scenarios_are_sound() {
        for (name, text) in EMBEDDED {
            let scenario = Scenario::parse(name, text).unwrap();
            assert_eq!(scenario.name, name);
            for strategy in Strategy::ALL {
                assert!(
                    scenario.expect.contains_key(strategy.name()),
                    "{name}: {}",
                    strategy.name()
                );
            }
        }
    }

    #[test]
    fn a_misspelt_key_is_placed_and_mended() {
        let error = error_of("trials =", "trails =");
        assert!(error.contains("x.toml:"), "{error}");
        assert!(error.contains("unknown field `trails`"), "{error}");
        assert!(error.contains("did you mean `trials`?"), "{error}");
    }

    #[test]
    fn a_misspelt_value_is_placed_and_mended() {
        let error = error_of("[\"atomic\"", "[\"atomci\"");
        assert!(error.contains("did you mean `atomic`?"), "{error}");
        let error = error_of("strategies = [\"unsafe\"", "strategies = [\"unsave\"");
        assert!(error.contains("there is no strategy `unsave`"), "{error}");
        assert!(error.contains("did you mean `unsafe`?"), "{error}");
    }

    #[test]
    fn an_unknown_name_in_an_expectation_is_an_error() {
        let (from, to) = ("[expect.unsafe]", "[expect.unsave]");
        assert!(error_of(from, to).contains("did you mean `unsafe`?"));
        let (from, to) = ("keeps = [\"atomic\", \"durable\"", "keeps = [\"atomic\", \"durabel\"");
        assert!(error_of(from, to).contains("did you mean `durable`?"));
        let error = error_of(from, "on.ext5.breaks = [\"durable\"]\nkeeps = [\"atomic\"");
        assert!(error.contains("there is no profile `ext5`"), "{error}");
        assert!(error.contains("did you mean `ext4`?"), "{error}");
    }

    #[test]
    fn an_expected_violation_that_vanished_is_a_surprise() {
        let judged = BTreeSet::from([Promise::Atomic]);
        let expectation = Scenario::find("sigkill").unwrap().expectation("unsafe", &judged);
        let surprises = expectation.surprises(&Tally::default(), &judged);
        assert_eq!(surprises, [Surprise::Vanished(Promise::Atomic)]);
    }
}
