//! Everything that determines a run, as `plan.json` has it: whoever has that and what came of each trial
//! has the report.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::agenda::{Agenda, Front, Sampled};
use crate::asked::Asked;
use crate::error::{Error, Result};
use crate::exhaustive::Stretch;
use crate::fault::FaultKind;
use crate::plan::{Planner, Site, Sites};
use crate::shard::Shard;
use crate::subject::Subject;
use crate::sweep::Sweep;
use crate::tally::Tally;

/// Everything that determines a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The version of all JSON that is kept: [`crate::results::SCHEMA`].
    pub schema: u32,
    /// What names it: the same for all parts of a run, and for two runs with the same trials.
    pub id: String,
    /// A hash of all that is written here, as long as it is not changed.
    pub seal: String,
    /// The version of crashtest.
    pub crashtest: String,
    /// The command line.
    pub command_line: Vec<String>,
    /// The kernel, as `uname` has it.
    pub kernel: String,
    /// Which part of it this is.
    #[serde(default)]
    pub shard: Shard,
    /// What is asked for, of all subjects.
    pub asked: Asked,
    /// The subjects.
    pub subjects: Vec<PlannedSubject>,
}

/// One subject of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedSubject {
    /// Its name in tables.
    pub name: String,
    /// What it is.
    pub subject: Subject,
    /// The files that its command line names, and a hash of what they hold: another program of the same name
    /// is another subject.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
    /// Where faults can strike.
    pub sites: Sites,
    /// How many trials there are; none of a sweep, which goes on until it is not struck.
    pub trials: Option<u64>,
    /// How many different faults there are, if they can be counted beforehand.
    pub population: Option<u64>,
    /// Whether nothing is drawn: these are all that there are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole: bool,
    /// What people should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// How many states were derived from one recording, and what they are worth, if they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derived: Option<(u64, Tally)>,
    /// These states in their order, for the map.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stretches: Vec<Stretch>,
}

impl PlannedSubject {
    /// Whether this is the same subject, which still does what the other did when nothing struck it.
    fn does_the_same(&self, other: &Self, timed: bool) -> bool {
        let calls =
            |one: &Self| one.sites.sites.iter().map(|s| (s.call, s.length)).collect::<Vec<_>>();
        timed || calls(self) == calls(other)
    }
}

impl Plan {
    /// The name of a plan with these contents: what determines its trials, and nothing else.
    #[must_use]
    pub fn name(&self) -> String {
        // A temporary file has another name in each run, and the lab another path.
        let calls = |one: &PlannedSubject| {
            let call = |s: &Site| (s.call, s.nth, s.offset, s.length, s.creates);
            one.sites.sites.iter().map(call).collect::<Vec<_>>()
        };
        let planned = |one: &PlannedSubject| {
            let PlannedSubject { name, subject, files, trials, derived, .. } = one;
            (name.clone(), subject.clone(), files.clone(), calls(one), *trials, derived.clone())
        };
        let subjects: Vec<_> = self.subjects.iter().map(planned).collect();
        let content = serde_json::to_vec(&(self.schema, &self.crashtest, &self.asked, subjects));
        format!("{:012x}", xxh3_64(&content.unwrap_or_default()) >> 16)
    }

    /// The hash of all of it but of itself.
    #[must_use]
    pub fn sealed(&self) -> String {
        let content = serde_json::to_vec(&Self { seal: String::new(), ..self.clone() });
        format!("{:016x}", xxh3_64(&content.unwrap_or_default()))
    }

    /// What there is to do, for one part of the run.
    #[must_use]
    pub fn agenda(&self, shard: Shard) -> Agenda {
        let asked = &self.asked;
        if asked.fault.is_swept() {
            let front = |(index, one): (usize, &PlannedSubject)| {
                let sweep = Sweep::new(asked.fault, &one.sites, &asked.reach);
                Front::new(index, sweep, asked.trials, shard)
            };
            return Agenda::Swept(self.subjects.iter().enumerate().map(front).collect());
        }
        let trials = |one: &PlannedSubject| one.trials.unwrap_or(0);
        Agenda::Sampled(Sampled::new(self.subjects.iter().map(trials).collect(), shard))
    }

    /// Makes the trials of a subject, where they follow from the plan and are not a list.
    #[must_use]
    pub fn planner(&self, index: usize) -> Option<Planner> {
        let (asked, one) = (&self.asked, self.subjects.get(index)?);
        let drawn = asked.fault.is_drawn() && one.derived.is_none();
        match asked.fault.is_swept() {
            true => Some(Planner::sweeping(asked.fault, &one.sites, &asked.reach)),
            false => drawn.then(|| {
                let (kind, granularity) = (asked.fault, asked.granularity);
                Planner::new(asked.seed, index as u64, kind, granularity, one.sites.clone())
            }),
        }
    }

    /// A run can go on only if its subjects still do what they did.
    pub fn check_unchanged(&self, now: &Self) -> Result<()> {
        let timed = self.asked.fault == FaultKind::KillAfter;
        for (old, new) in self.subjects.iter().zip(&now.subjects) {
            if !old.does_the_same(new, timed) || old.files != new.files {
                return Err(Error::usage(format!(
                    "`{}` does other things than when the run began",
                    old.name
                ))
                .help("its earlier trials can't be continued; start the run anew"));
            }
        }
        Ok(())
    }
}
