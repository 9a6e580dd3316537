//! Faults: what is done to a subject, and where it strikes.

use std::fmt;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::op::{ByteOffset, Call, OpIndex};

/// What a trial does to its subject.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Fault {
    /// SIGKILL at a chosen place of the run.
    Kill(Strike),
    /// The call returns after some of its bytes, as if interrupted; the subject runs on.
    ShortWrite(Strike),
    /// SIGKILL after a time, with no tracing at all.
    KillAfter {
        /// Counted from the start of the subject.
        #[serde(with = "micros")]
        delay_us: Duration,
    },
}

/// What kind of fault a run injects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// SIGKILL at bytes and op boundaries.
    Kill,
    /// Writes that return early; the subject goes on.
    ShortWrite,
    /// SIGKILL after a random time, without tracing.
    KillAfter,
}

/// A place in a run: an op, and where in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Strike {
    /// The op in the baseline's trace.
    pub op: OpIndex,
    /// Its kind.
    pub call: Call,
    /// Which occurrence of that kind, over all threads and files, from 1.
    pub nth: u32,
    /// Where in it.
    pub point: Point,
    /// Whether Linux itself can cut there.
    pub nature: Nature,
}

/// Where in an op a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Point {
    /// The call is not executed.
    Before,
    /// The call is executed with this many of its bytes.
    Inside(ByteOffset),
    /// The call is executed whole.
    After,
}

/// Whether Linux itself can leave what the fault leaves.
///
/// A `write(2)` that is killed is cut at page boundaries only; a cut at another byte stands for a
/// short write, or for a program that writes in smaller pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nature {
    /// At an op boundary or a page boundary.
    Natural,
    /// Inside a page.
    Forced,
}

/// Whether, and where, the fault really struck.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Injection {
    /// The subject ended before the place came.
    NotReached,
    /// It struck.
    At(Struck),
}

/// What a fault met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Struck {
    /// A call.
    Call {
        /// The kind of call.
        call: Call,
        /// The file that it is about.
        path: String,
        /// Where in the call.
        point: Point,
    },
    /// A moment, in a run that was not traced.
    Moment {
        /// Counted from the start of the subject.
        #[serde(with = "micros")]
        delay_us: Duration,
    },
}

impl Fault {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::Kill(_) => FaultKind::Kill,
            Self::ShortWrite(_) => FaultKind::ShortWrite,
            Self::KillAfter { .. } => FaultKind::KillAfter,
        }
    }

    /// Whether Linux itself can leave what this fault leaves.
    #[must_use]
    pub fn nature(&self) -> Nature {
        match self {
            Self::Kill(strike) => strike.nature,
            Self::ShortWrite(_) => Nature::Forced,
            Self::KillAfter { .. } => Nature::Natural,
        }
    }

    /// The op that it strikes, if it strikes at one.
    #[must_use]
    pub fn op(&self) -> Option<OpIndex> {
        match self {
            Self::Kill(strike) | Self::ShortWrite(strike) => Some(strike.op),
            Self::KillAfter { .. } => None,
        }
    }
}

impl Nature {
    /// The word in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Natural => "natural",
            Self::Forced => "forced",
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Before => f.write_str("before"),
            Self::Inside(byte) => write!(f, "after byte {} of", byte.0),
            Self::After => f.write_str("after"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(strike) => write!(f, "SIGKILL {strike}"),
            Self::ShortWrite(strike) => write!(f, "short write: stopped {strike}"),
            Self::KillAfter { delay_us } => write!(f, "SIGKILL after {delay_us:?}"),
        }
    }
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} (op {}, {} number {})",
            self.point,
            self.call.name(),
            self.op.0,
            self.call.name(),
            self.nth
        )
    }
}

/// Durations as whole microseconds.
mod micros {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(delay: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(delay.as_micros()).unwrap_or(u64::MAX))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_micros)
    }
}
