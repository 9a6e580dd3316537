//! Faults: what is done to a subject, and where it strikes.

use std::fmt;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::at_rest::Harming;
use crate::disk::images::Image;
use crate::disk::plan::WriteBack;
use crate::errno::{self, Errno, Way};
use crate::file_system::{Axis, FileSystem};
use crate::meeting::{Encounter, Meeting, Second as SecondProcess};
use crate::op::{ByteOffset, Call, Family, OpIndex};
use crate::parting::{Parting, Sides};
use crate::plan::PAGE_BYTES;
use crate::power::Time;
use crate::power::survivor::CrashState;

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
    /// One or two calls fail, or all from one on; the subject runs on.
    Errno(Failing),
    /// There is little space left on a real file system.
    DiskFull(DiskFull),
    /// The power goes; nothing is run for that, what is left follows from a recording.
    PowerLoss(PowerLoss),
    /// The power of a real file system's disk goes.
    PowerCut(PowerCut),
    /// What was saved is damaged while nobody runs.
    AtRest(Harming),
    /// Another process saves while it does.
    Concurrent(Meeting),
    /// The broker goes away, or the bot does.
    Parted(Parting),
}

/// Of what a disk had seen, what it had when the power went.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PowerCut {
    /// The file system.
    pub fs: FileSystem,
    /// How it was mounted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mount_options: String,
    /// How large it was, in bytes, if not as large as usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs_bytes: Option<u64>,
    /// How write-back was brought about.
    pub write_back: WriteBack,
    /// Whether data was held in flight at all places.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub slow_writes: bool,
    /// How many ops had been done or begun, at the latest, if these were followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<usize>,
    /// What was there.
    pub image: Image,
}

/// What the disk had when the power went.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PowerLoss {
    /// The profile of the file system.
    pub profile: String,
    /// The micro-ops of the recording that had reached the disk, and the moment.
    pub state: CrashState,
}

/// Which calls fail.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Failing {
    /// The family of the first.
    pub family: Family,
    /// Which of those calls that can fail in this way it is, over all threads and files, from 1.
    pub nth: u32,
    /// How it fails.
    pub way: Way,
    /// Whether those after it fail too.
    pub repeat: Repeat,
    /// Another call that fails, while the subject deals with the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second: Option<Second>,
}

/// Whether a failure goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Repeat {
    /// One call fails.
    Once,
    /// All later calls of its family fail too.
    Sticky,
}

/// A call that fails after another has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Second {
    /// Which call after the first failure, among all that can fail, from 1.
    pub nth_after: u32,
    /// The error; EIO for a call that can't return it.
    pub errno: Errno,
}

/// How full a file system is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DiskFull {
    /// Its kind.
    pub fs: FileSystem,
    /// What runs out.
    pub axis: Axis,
    /// How much of it is free when the subject starts, in blocks or inodes.
    pub free: u64,
    /// The subject is killed before the nth call after the first that failed, from 0; else it
    /// runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_before: Option<u32>,
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
    /// Calls that fail.
    Errno,
    /// A full file system.
    DiskFull,
    /// Loss of power, by enumeration.
    PowerLoss,
    /// Loss of power below real file systems.
    PowerCut,
    /// Damage between two runs.
    AtRest,
    /// Two processes at once.
    Concurrent,
    /// A bot and its broker part.
    Parted,
}

/// Where a trial strikes, without how: violations of one place are kept once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// An op of the unbroken run, and where in it.
    Op(OpIndex, Point),
    /// The nth call of a family, and the nth after it.
    Call(Family, u32, Option<u32>),
    /// So much was free, and the nth call after the first failure was not made.
    Free(Axis, u64, Option<u32>),
    /// Between two runs, and what was done there.
    Rest(Harming),
    /// Where two processes met.
    Meeting(Encounter),
    /// When a bot and its broker parted.
    Parting(Parting),
    /// Some moment.
    Moment,
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
    /// Both of its parts struck.
    Both(Struck, Struck),
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
    /// A call that failed, or that moved fewer bytes than it was asked to.
    Failed {
        /// The kind of call.
        call: Call,
        /// The file that it is about.
        path: String,
        /// What it returned: bytes, or minus the error number.
        result: i64,
    },
    /// The disk, when so many ops had been done or begun.
    Power {
        /// How many.
        ops: usize,
    },
    /// The state, between two runs.
    AtRest {
        /// The newest version of which a whole copy is left.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        whole: Option<usize>,
    },
    /// A bot and its broker.
    Parted {
        /// What both then said.
        sides: Sides,
    },
    /// Another process.
    Met {
        /// What that has done.
        second: SecondProcess,
    },
    /// No call that was followed; but the subject ended otherwise than with enough space.
    Unseen,
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
            Self::Errno(_) => FaultKind::Errno,
            Self::DiskFull(_) => FaultKind::DiskFull,
            Self::PowerLoss(_) => FaultKind::PowerLoss,
            Self::PowerCut(_) => FaultKind::PowerCut,
            Self::AtRest(_) => FaultKind::AtRest,
            Self::Concurrent(_) => FaultKind::Concurrent,
            Self::Parted(_) => FaultKind::Parted,
        }
    }

    /// Whether Linux itself can leave what this fault leaves.
    #[must_use]
    pub fn nature(&self) -> Nature {
        match self {
            Self::Kill(strike) => strike.nature,
            Self::ShortWrite(_) => Nature::Forced,
            Self::Errno(Failing { way: Way::Short(_) | Way::ShortThenFull, .. }) => Nature::Forced,
            Self::KillAfter { .. }
            | Self::Errno(_)
            | Self::DiskFull(_)
            | Self::PowerLoss(_)
            | Self::PowerCut(_)
            | Self::AtRest(_)
            | Self::Concurrent(_)
            | Self::Parted(_) => Nature::Natural,
        }
    }

    /// The op that it strikes, if it strikes at one.
    #[must_use]
    pub fn op(&self) -> Option<OpIndex> {
        match self {
            Self::Kill(strike) | Self::ShortWrite(strike) => Some(strike.op),
            Self::KillAfter { .. }
            | Self::Errno(_)
            | Self::DiskFull(_)
            | Self::PowerLoss(_)
            | Self::PowerCut(_)
            | Self::AtRest(_)
            | Self::Concurrent(_)
            | Self::Parted(_) => None,
        }
    }

    /// Where it strikes.
    #[must_use]
    pub fn place(&self) -> Place {
        let before = |ops| Place::Op(OpIndex(ops), Point::Before);
        match self {
            Self::Kill(strike) | Self::ShortWrite(strike) => Place::Op(strike.op, strike.point),
            Self::KillAfter { .. } => Place::Moment,
            Self::Errno(failing) => {
                let second = failing.second.map(|second| second.nth_after);
                Place::Call(failing.family, failing.nth, second)
            }
            Self::DiskFull(full) => Place::Free(full.axis, full.free, full.kill_before),
            Self::PowerLoss(loss) => before(loss.ops()),
            Self::PowerCut(cut) => cut.ops.map_or(Place::Moment, before),
            Self::AtRest(harming) => Place::Rest(*harming),
            Self::Concurrent(meeting) => Place::Meeting(meeting.encounter()),
            Self::Parted(parting) => Place::Parting(*parting),
        }
    }

    /// See [`FaultKind::is_told`].
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.kind().is_told()
    }

    /// Whether an fsync can fail in it whose data then is not on disk, now or as the second part.
    #[must_use]
    pub fn can_lose_pages(&self) -> bool {
        let Self::Errno(failing) = self else { return false };
        let syncs = matches!(
            failing.family,
            Family::Fsync | Family::Fdatasync | Family::Sync | Family::Msync
        );
        failing.second.is_some() || (syncs && matches!(failing.way, Way::NotMade(_)))
    }

    /// Whether it must be known of a call whether it may wait.
    #[must_use]
    pub fn asks_whether_to_wait(&self) -> bool {
        matches!(self, Self::Errno(Failing { way: Way::NotMade(Errno::Eagain), .. }))
    }
}

impl PowerLoss {
    /// How many ops had been done, or begun, when the power went.
    #[must_use]
    pub fn ops(&self) -> usize {
        Time(self.state.moment).ops_begun()
    }
}

impl FaultKind {
    /// Whether the subject itself is told that something failed, and may report or hide it.
    #[must_use]
    pub fn is_told(self) -> bool {
        match self {
            Self::Kill
            | Self::KillAfter
            | Self::PowerLoss
            | Self::PowerCut
            | Self::AtRest
            | Self::Concurrent
            | Self::Parted => false,
            Self::ShortWrite | Self::Errno | Self::DiskFull => true,
        }
    }

    /// Whether the power goes: then it is looked at what one recording can leave.
    #[must_use]
    pub fn is_power(self) -> bool {
        matches!(self, Self::PowerLoss | Self::PowerCut)
    }

    /// Whether places are drawn, so that somebody must say how many.
    #[must_use]
    pub fn is_drawn(self) -> bool {
        matches!(self, Self::Kill | Self::KillAfter | Self::ShortWrite)
    }

    /// Whether all places are struck, and none is drawn.
    #[must_use]
    pub fn is_swept(self) -> bool {
        match self {
            Self::Kill
            | Self::KillAfter
            | Self::ShortWrite
            | Self::PowerLoss
            | Self::PowerCut
            | Self::AtRest
            | Self::Concurrent
            | Self::Parted => false,
            Self::Errno | Self::DiskFull => true,
        }
    }
}

impl Place {
    /// The place without where in the op: what is kept once.
    #[must_use]
    pub fn coarse(self) -> Self {
        match self {
            Self::Op(op, _) => Self::Op(op, Point::Before),
            Self::Rest(harming) => Self::Rest(harming.coarse()),
            other => other,
        }
    }
}

impl Injection {
    /// Whether all of the fault struck.
    #[must_use]
    pub fn struck(&self) -> bool {
        !matches!(self, Self::NotReached)
    }
}

impl Nature {
    /// Of a write that is cut at this byte of its file.
    #[must_use]
    pub fn of_cut(byte: u64) -> Self {
        if byte.is_multiple_of(PAGE_BYTES) { Self::Natural } else { Self::Forced }
    }

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
            Self::Errno(failing) => failing.fmt(f),
            Self::DiskFull(full) => full.fmt(f),
            Self::PowerLoss(loss) => {
                write!(f, "power loss on {} after {} ops", loss.profile, loss.ops())
            }
            Self::PowerCut(cut) => cut.fmt(f),
            Self::AtRest(harming) => harming.fmt(f),
            Self::Concurrent(meeting) => meeting.fmt(f),
            Self::Parted(parting) => parting.fmt(f),
        }
    }
}

impl fmt::Display for PowerCut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fs, write_back, ops, image, .. } = self;
        let (certain, kept) = (image.certain, image.kept.len());
        write!(f, "power cut on {fs}")?;
        if let Some(ops) = ops {
            write!(f, " after {ops} ops")?;
        }
        write!(f, ", {write_back}: {certain} writes are on the disk")?;
        match (kept, image.torn) {
            (0, None) => Ok(()),
            (_, None) => write!(f, ", and {kept} later ones"),
            (0, Some(_)) => f.write_str(", and a part of another"),
            (_, Some(_)) => write!(f, ", {kept} later ones and a part of another"),
        }
    }
}

impl fmt::Display for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, nth, way, repeat, second } = self;
        write!(f, "{way} at {} number {nth}", family.name())?;
        if *repeat == Repeat::Sticky {
            f.write_str(" and all later ones")?;
        }
        match second {
            Some(second) => {
                write!(f, ", then {} at call {} after it", second.errno.name(), second.nth_after)
            }
            None => Ok(()),
        }
    }
}

impl fmt::Display for DiskFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fs, axis, free, kill_before } = self;
        write!(f, "{fs} with {free} free {}", axis.unit())?;
        match kill_before {
            Some(0) => f.write_str(", SIGKILL as soon as a call has failed"),
            Some(nth) => write!(f, ", SIGKILL before call {nth} after the first failure"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Struck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call { call, path, point } => write!(f, "{point} {} on {path}", call.name()),
            Self::Failed { call, path, result } if *result < 0 => {
                write!(f, "{} on {path} = {}", call.name(), errno::name_of(-result))
            }
            Self::Failed { call, path, result } => {
                write!(f, "{} on {path} = {result} bytes only", call.name())
            }
            Self::Moment { delay_us } => write!(f, "after {delay_us:?}"),
            Self::Unseen => f.write_str("no call that was seen"),
            Self::Parted { .. } => f.write_str("between a bot and its broker"),
            Self::Met { second } => {
                write!(f, "another process, which acknowledged {} saves", second.acks)
            }
            Self::AtRest { whole: None } => f.write_str("between two runs; no whole copy is left"),
            Self::AtRest { whole: Some(version) } => {
                write!(f, "between two runs; a whole copy of version {version} is left")
            }
            Self::Power { ops } => write!(f, "the disk, when {ops} ops had been done or begun"),
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
