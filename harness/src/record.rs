//! What is kept of every trial: one line of `outcomes.jsonl`.

use serde::{Deserialize, Serialize};

use crate::fault::{Injection, Nature, Place, Struck};
use crate::op::Family;
use crate::outcome::Outcome;
use crate::verdict::{Verdict, ViolationKind, Why};

/// One trial in short. The fault itself follows from the plan and `n`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Record {
    /// The number of the trial of its subject: see `plan` and `sweep`.
    pub n: u64,
    /// The place of the subject in the plan.
    pub subject: usize,
    /// Where the fault was to strike.
    pub at: Place,
    /// Whether it struck.
    pub struck: bool,
    /// The call that failed, and what it returned, if the subject was told of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub met: Option<(Family, i64)>,
    /// Whether Linux itself can leave this.
    pub nature: Nature,
    /// How many acks the world saw.
    pub acks: u64,
    /// The verdict.
    pub verdict: Brief,
    /// Whether temporary files stayed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leftovers: bool,
    /// The id under which the violation is kept, if it is one of those that are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
}

/// A verdict without its words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Brief {
    /// Every promise held.
    Pass,
    /// What was broken, the most fundamental first.
    Violated(Vec<ViolationKind>),
    /// Nothing can be said.
    Inconclusive(Why),
}

impl From<&Verdict> for Brief {
    fn from(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Pass => Self::Pass,
            Verdict::Inconclusive(why) => Self::Inconclusive(*why),
            Verdict::Violated(violations) => {
                Self::Violated(violations.iter().map(|violation| violation.kind).collect())
            }
        }
    }
}

impl Record {
    /// The record of trial `n`.
    #[must_use]
    pub fn new(n: u64, subject: usize, outcome: &Outcome, verdict: &Verdict) -> Self {
        let met = match &outcome.injection {
            Injection::At(Struck::Failed { call, result, .. })
            | Injection::Both(Struck::Failed { call, result, .. }, _) => {
                // How many bytes a short write took does not matter here.
                Some((call.family(), (*result).min(0)))
            }
            _ => None,
        };
        Self {
            n,
            subject,
            at: outcome.fault.place(),
            struck: outcome.injection.struck(),
            met,
            nature: outcome.fault.nature(),
            acks: outcome.acks,
            verdict: verdict.into(),
            leftovers: !outcome.recovery.leftovers.is_empty(),
            evidence: None,
        }
    }
}
