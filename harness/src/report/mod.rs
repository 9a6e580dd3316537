//! What a run found, as data; the formats are a file each.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::exit_status::ExitStatus;
use crate::fault::{Nature, Place};
use crate::plan::Seed;
use crate::scenario::{Expectation, Surprise};
use crate::shard::Shard;
use crate::tally::{Interval, Tally};
use crate::verdict::{Promise, ViolationKind};

pub mod all;
pub mod github;
pub mod harmless;
pub mod heat;
pub mod html;
pub mod judged;
pub mod junit;
pub mod layout;
pub mod next;
pub mod place;
pub mod power;
pub mod replay;
pub mod summary;
pub mod table;
pub mod timeline;

/// The file system of a run that used none but its model.
pub const MODEL: &str = "model";

/// What a run found. `report.json` is this.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Report {
    /// The version of this format.
    pub schema: u32,
    /// The version of crashtest.
    pub crashtest: String,
    /// The name of the scenario.
    pub scenario: String,
    /// The name of the plan: the same for runs with the same trials.
    pub plan: String,
    /// Which part of the run this is.
    #[serde(default)]
    pub shard: Shard,
    /// Of how many parts it was put together, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged: Option<u32>,
    /// A hash of the kept outcomes, as long as they are not changed.
    pub checksum: String,
    /// The seed.
    pub seed: Seed,
    /// The command line.
    pub command_line: Vec<String>,
    /// The kernel.
    pub kernel: String,
    /// The kind of file system that the trials ran on.
    pub file_system: String,
    /// How many workers there were.
    pub jobs: usize,
    /// How long the trials took, in milliseconds.
    pub elapsed_ms: u64,
    /// How many trials were done in that time; fewer than all after a resume.
    pub trials_now: u64,
    /// Whether all planned trials were done.
    pub complete: bool,
    /// The directory of the run.
    pub directory: String,
    /// The promises that were judged.
    pub promises: BTreeSet<Promise>,
    /// A row per subject.
    pub subjects: Vec<Row>,
}

/// What was found of one subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Row {
    /// Its name.
    pub name: String,
    /// How many trials were planned.
    pub planned: u64,
    /// How many different faults there are.
    pub population: Option<u64>,
    /// Whether nothing was drawn: these are all that there are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole: bool,
    /// The verdicts.
    pub tally: Tally,
    /// The 95 % interval of the pass rate.
    pub interval: Interval,
    /// What was expected.
    pub expectation: Expectation,
    /// One kept violation of each kind and nature, by the op that it struck at.
    pub kept: Vec<KeptLine>,
    /// What people should know.
    pub notes: Vec<String>,
    /// What a loss of power leaves, by profile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cells: Vec<power::Cell>,
    /// What was derived from a recording, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derived: Option<DerivedKills>,
    /// How a sweep ended, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweep: Option<Swept>,
    /// Where along the calls of the run promises broke.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heat: Option<heat::Heat>,
}

/// Every state that a kill can leave, derived from one recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DerivedKills {
    /// How many there are.
    pub states: u64,
    /// How many of them were confirmed by real kills, which left the same bytes.
    pub confirmed: u64,
}

/// How a sweep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Swept {
    /// How many of its lanes were cut off before a trial was not struck any more.
    pub open_lanes: usize,
    /// Whether it went on in growing steps, past the number of blocks up to which each is a step.
    #[serde(default)]
    pub sampled: bool,
}

/// A kept violation in a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KeptLine {
    /// What broke.
    pub kind: ViolationKind,
    /// Whether Linux itself can leave it.
    pub nature: Nature,
    /// Where it struck.
    pub place: Place,
    /// With which it is replayed.
    pub id: String,
    /// The number of its trial.
    pub n: u64,
}

impl Row {
    /// Where this differs from what was expected.
    #[must_use]
    pub fn surprises(&self, promises: &BTreeSet<Promise>) -> Vec<Surprise> {
        if self.cells.is_empty() {
            return self.expectation.surprises(&self.tally, promises);
        }
        self.cells.iter().flat_map(|cell| cell.surprises(promises)).collect()
    }

    /// One violation of each kind: the earliest trial.
    #[must_use]
    pub fn examples(&self) -> BTreeMap<ViolationKind, &KeptLine> {
        let mut examples: BTreeMap<_, &KeptLine> = BTreeMap::new();
        for line in &self.kept {
            let example = examples.entry(line.kind).or_insert(line);
            if line.n < example.n {
                *example = line;
            }
        }
        examples
    }
}

impl Row {
    /// Whether its trials are a sample, so that chance is in its counts.
    #[must_use]
    pub fn is_drawn(&self) -> bool {
        !self.whole && self.derived.is_none() && self.sweep.is_none() && self.cells.is_empty()
    }

    /// Whether more than half of the runs that were struck say nothing, or it was not asked about all of them.
    #[must_use]
    pub fn is_unclear(&self) -> bool {
        let most = self.tally.judged().saturating_mul(2) < self.tally.struck;
        self.tally.failed() == 0 && (most || self.tally.not_asked() > 0)
    }

    /// Whether there is a cell in which nothing broke and not all was asked about.
    #[must_use]
    pub fn has_gaps(&self) -> bool {
        self.cells.iter().any(|cell| cell.tally.failed() == 0 && cell.tally.not_asked() > 0)
    }
}

impl Report {
    /// With which status the command ends.
    #[must_use]
    pub fn status(&self) -> ExitStatus {
        if !self.complete {
            return ExitStatus::Interrupted;
        }
        let nothing = |row: &Row| row.tally.judged() == 0 || row.is_unclear();
        // Of a part it can't be said what the whole will show.
        if self.shard.is_whole() && self.subjects.iter().any(nothing) {
            return ExitStatus::NothingStruck;
        }
        let surprised = |row: &Row| !row.surprises(&self.promises).is_empty();
        if self.subjects.iter().any(surprised) {
            return ExitStatus::Unexpected;
        }
        if self.shard.is_whole() && self.subjects.iter().any(Row::has_gaps) {
            return ExitStatus::NothingStruck;
        }
        ExitStatus::AsExpected
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::Report;
    use crate::all::All;
    use crate::compare::Comparison;
    use crate::record::Record;

    /// The schemas that are kept beside the code; `CRASHTEST_SCHEMAS=write` writes them anew.
    #[test]
    fn the_kept_schemas_are_those_of_the_formats() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
        let schemas = [
            ("report", schemars::schema_for!(Report)),
            ("all", schemars::schema_for!(All)),
            ("outcome", schemars::schema_for!(Record)),
            ("comparison", schemars::schema_for!(Comparison)),
        ];
        for (name, schema) in schemas {
            let path = directory.join(format!("{name}.schema.json"));
            let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
            if std::env::var_os("CRASHTEST_SCHEMAS").is_some() {
                std::fs::create_dir_all(&directory).unwrap();
                std::fs::write(&path, &text).unwrap();
            }
            let kept = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                kept == text,
                "{name}: the format changed: raise its version, and see CRASHTEST_SCHEMAS"
            );
        }
    }
}
