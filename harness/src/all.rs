//! `--scenario all`: every scenario that this machine can run, one after the other, in one table.

use serde::{Deserialize, Serialize};

use crate::cli;
use crate::error::{Error, Result};
use crate::exit_status::ExitStatus;
use crate::fault::FaultKind;
use crate::program::unknown;
use crate::report::Report;
use crate::request::{new_seed, request};
use crate::run;
use crate::scenario::{EMBEDDED, Scenario};

/// What `--scenario` calls it.
pub const ALL: &str = "all";

/// The strategies that run when none is named: the worst, the usual, the reference.
const STRATEGIES: [&str; 3] = ["unsafe", "atomic", "managed"];

/// One scenario of all.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum One {
    /// It was run.
    Ran(Box<Report>),
    /// It could not be, for this reason.
    Skipped(String),
}

/// All scenarios, by name, in the order in which they were run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct All {
    /// What came of each.
    pub scenarios: Vec<(String, One)>,
}

impl All {
    /// Those that were run.
    pub fn reports(&self) -> impl Iterator<Item = &Report> {
        self.scenarios.iter().filter_map(|(_, one)| match one {
            One::Ran(report) => Some(&**report),
            One::Skipped(_) => None,
        })
    }

    /// With which status the command ends: that of the worst scenario.
    #[must_use]
    pub fn status(&self) -> ExitStatus {
        let worst_first =
            [ExitStatus::Interrupted, ExitStatus::Unexpected, ExitStatus::NothingStruck];
        let has = |status: &ExitStatus| self.reports().any(|report| report.status() == *status);
        match worst_first.into_iter().find(has) {
            Some(status) => status,
            None if self.reports().next().is_none() => ExitStatus::MachineLacks,
            None => ExitStatus::AsExpected,
        }
    }
}

/// Runs all scenarios with these options, or `only` some; `tell` hears of each before it begins.
pub fn run(
    options: &cli::Run,
    only: &[String],
    tell: &mut dyn FnMut(&run::Request) -> Result<()>,
) -> Result<All> {
    let mut options = options.clone();
    for name in only {
        // An unknown one is an error here.
        Scenario::find(name)?;
    }
    options.seed = Some(options.seed.map_or_else(new_seed, Ok)?);
    if options.program.is_empty() && options.strategy.is_empty() {
        options.strategy = STRATEGIES.map(str::to_owned).into();
    }
    let mut all = All::default();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|one| one == name);
    for (name, _) in EMBEDDED.into_iter().filter(|(name, _)| wanted(name)) {
        options.scenario = name.to_owned();
        let scenario = Scenario::find(name)?;
        let one = match missing(&options, &scenario) {
            Some(why) => One::Skipped(why),
            None => {
                let request = request(&meant(&options, &scenario))?;
                tell(&request)?;
                match run::run(&request) {
                    Ok(report) => One::Ran(Box::new(report)),
                    Err(error) if error.status == ExitStatus::MachineLacks => {
                        One::Skipped(skipped(&error))
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        let interrupted = matches!(&one, One::Ran(report) if !report.complete);
        all.scenarios.push((name.to_owned(), one));
        if interrupted {
            break;
        }
    }
    Ok(all)
}

/// The options without those that are meant for other scenarios.
fn meant(options: &cli::Run, scenario: &Scenario) -> cli::Run {
    let (mut meant, fault) = (options.clone(), scenario.fault);
    if fault != FaultKind::Parted {
        (meant.about.broker, meant.about.settle) = (None, None);
    }

    if fault != FaultKind::PowerCut {
        meant.images_max = None;
    }
    if fault != FaultKind::PowerLoss {
        (meant.states_max, meant.asked_max) = (None, None);
        meant.profile.clear();
    }
    meant
}

/// What is not known of a program that a scenario must know.
fn missing(options: &cli::Run, scenario: &Scenario) -> Option<String> {
    let unknown = if options.program.is_empty() { None } else { unknown(&options.about, scenario) };
    unknown.map(|(what, help)| format!("{what}: {help}"))
}

fn skipped(error: &Error) -> String {
    match &error.help {
        Some(help) => format!("{}: {help}", error.message),
        None => error.message.clone(),
    }
}
