//! What the images of one recording on a real disk have shown.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::power::spread::Spread;
use crate::report::power::{Finding, Troubles};
use crate::tally::Tally;
use crate::verdict::ViolationKind;

/// What the images of one recording have shown.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Cut {
    /// The number of the recording.
    pub n: u64,
    /// How many images were mounted.
    pub images: u64,
    /// Whether these are all prefixes of what was written, at least.
    pub prefixes: bool,
    /// How many acks were given.
    pub acks: u64,
    /// The verdicts.
    pub tally: Tally,
    /// Where along the run they come: after how many ops, or acks if it is not followed.
    #[serde(default)]
    pub spread: Spread,
    /// Why promises break, each cause once, and the distinct survivors of each.
    pub findings: Vec<(Finding, BTreeSet<u64>)>,
    /// The distinct survivors.
    pub seen: BTreeSet<u64>,
    /// Those that the model allows, if there is one for this file system.
    pub allowed: Option<BTreeSet<u64>>,
    /// Survivors that the model does not allow.
    pub outside: Troubles,
    /// Images that could not be mounted, and what the kernel said of the first.
    pub refused: Troubles,
    /// Images with which something took too long.
    pub stuck: Troubles,
    /// Images at which the tool of the file system complains once they have been mounted.
    pub harmed: Troubles,
}

impl Cut {
    /// Counts an image of a moment after so many ops, or acks, that breaks this.
    pub fn enter(&mut self, broken: &[ViolationKind], at: usize) {
        self.tally.enter(broken, 1);
        self.spread.enter(broken.first().copied(), at, 1);
    }
}
