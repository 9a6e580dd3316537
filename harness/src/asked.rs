//! What is asked for, of all subjects: what a scenario says, as far as the command line does not say
//! otherwise. With the subjects it determines a run.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::disk::plan::Cutting;
use crate::fault::FaultKind;
use crate::plan::{Granularity, Seed};
use crate::poweroff::Power;
use crate::scenario::{Expectation, Scenario};
use crate::sweep::Reach;
use crate::verdict::Promise;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// The scenario.
    pub scenario: Scenario,
    /// The kind of fault; the scenario's unless the command line says otherwise.
    pub fault: FaultKind,
    /// Where faults may strike.
    pub granularity: Granularity,
    /// The seed.
    pub seed: Seed,
    /// How many trials of each subject; none for a whole sweep.
    pub trials: Option<u64>,
    /// Whether there are as many trials more as it takes to strike each op boundary once.
    #[serde(default)]
    pub every_boundary: bool,
    /// How far a sweep goes.
    pub reach: Reach,
    /// What a loss of power is derived for.
    #[serde(default)]
    pub power: Power,
    /// What a power cut below real file systems looks at.
    #[serde(default)]
    pub disk: Cutting,
    /// Whether every state is derived from a recording, and how many of them are confirmed.
    #[serde(default)]
    pub exhaustive: Option<u64>,
    /// The promises that are judged.
    pub promises: BTreeSet<Promise>,
}

impl Asked {
    /// What is expected of a subject, on a profile if one is given. What breaks on one full disk may
    /// hold on another.
    #[must_use]
    pub fn expectation(&self, name: &str, profile: Option<&str>) -> Expectation {
        let mut expectation = self.scenario.expectation(name, &self.promises);
        if self.power.first_save != self.scenario.power.first_save {
            // What breaks a replacement may be harmless when there is nothing yet, and the other way.
            expectation.breaks.clear();
            return expectation;
        }
        if let Some(profile) = profile {
            return expectation.on(profile);
        }
        let (reach, usual) = (&self.reach, &self.scenario.sweep);
        let elsewhere = reach.fs != usual.fs || reach.axes != usual.axes;
        // Nor is what breaks sure to be met by a sweep that was cut short.
        if self.fault.is_swept() && (elsewhere || self.trials.is_some()) {
            expectation.breaks.clear();
        }
        expectation
    }
}
