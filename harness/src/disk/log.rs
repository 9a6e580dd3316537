//! What a disk saw.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What a disk carries out whole.
pub const SECTOR_BYTES: u64 = 512;

/// A moment in the life of a disk: how many things had happened.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Tick(pub u32);

/// What a disk saw from some moment on. What it held then is the start image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLog {
    /// The writes, in the order in which they were answered.
    pub writes: Vec<Write>,
    /// The flushes that were answered, in the order of that.
    pub flushes: Vec<Span>,
    /// The last moment.
    pub end: Tick,
}

/// When something was asked, and when it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// When it was asked.
    pub asked: Tick,
    /// When it was answered.
    pub answered: Tick,
}

/// A write, or a discard, which writes zeros.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// Where, in sectors.
    pub sector: u64,
    /// What each sector holds then, as a hash that is of this place only.
    pub sums: Vec<u64>,
    /// When.
    pub span: Span,
}

/// The hash of what a sector holds.
#[must_use]
pub fn sum(sector: u64, bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, sector)
}

impl DiskLog {
    /// How many writes are there for certain when this flush has been answered.
    #[must_use]
    pub fn certain(&self, flush: &Span) -> usize {
        self.writes.partition_point(|write| write.span.answered < flush.asked)
    }

    /// How many bytes were written.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.writes.iter().map(|write| write.sums.len() as u64 * SECTOR_BYTES).sum()
    }
}
