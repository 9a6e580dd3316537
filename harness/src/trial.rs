//! One fully determined experiment. Replaying one draws no random number.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::fault::Fault;
use crate::subject::Subject;

/// An experiment: a subject, and what is done to it where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// The name of the subject in its run.
    pub subject: String,
    /// What is done to it.
    pub fault: Fault,
}

impl Trial {
    /// A short name that depends on the content alone: what is done, and to what.
    #[must_use]
    pub fn id(&self, subject: &Subject) -> String {
        let content = serde_json::to_vec(&(self, subject)).unwrap_or_default();
        format!("{:012x}", xxh3_64(&content) >> 16)
    }
}
