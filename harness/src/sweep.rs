//! Sweeps: faults as rows of a table, each struck at its first, second, third place and so on,
//! until a trial is not struck any more.
//!
//! A lane is one row: one way in which calls of one family fail, or one thing that runs out. Its
//! steps are the places. Where a second part of a fault is asked for (another call that fails, a
//! kill), each step that was struck opens a lane of its own below it. So a sweep ends by itself and
//! is exhaustive without knowing beforehand how many calls there will be.

use serde::{Deserialize, Serialize};

use crate::errno::{self, Errno, Shown, Way};
use crate::fault::{DiskFull, Failing, Fault, FaultKind, Repeat, Second};
use crate::file_system::{Axis, FileSystem};
use crate::op::Family;
use crate::plan::Sites;

/// How far and on what a sweep goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reach {
    /// Whether faults have a second part.
    pub depth: Depth,
    /// The kind of the small file system.
    pub fs: FileSystem,
    /// What runs out on it.
    pub axes: Vec<Axis>,
    /// How large it is, in bytes; the usual size if that is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fs_bytes: Option<u64>,
}

impl Default for Reach {
    fn default() -> Self {
        let fs = FileSystem::Tmpfs;
        Self { depth: Depth::One, fs, axes: fs.axes().to_vec(), fs_bytes: None }
    }
}

impl Reach {
    /// All that runs out by itself on a small disk of this kind.
    #[must_use]
    pub fn on(fs: FileSystem) -> Self {
        Self { fs, axes: fs.axes().to_vec(), ..Self::default() }
    }
}

/// Whether faults have a second part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Depth {
    /// They have not.
    One,
    /// A second call fails, or the subject is killed while the disk is full.
    Two,
}

/// The number of a trial: which lane, which step of it, which step of the lane below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number {
    /// The lane, from 0.
    pub lane: u32,
    /// Its step, from 1.
    pub step: u32,
    /// The step of the lane below it, from 1; 0 for none.
    pub below: u32,
}

/// How many steps a lane may have: more than any program that one would wait for.
pub const STEPS_MAX: u32 = (1 << 16) - 1;

impl Number {
    /// From the number that is kept.
    #[must_use]
    pub fn from_kept(n: u64) -> Self {
        let part = |shift: u32, bits: u32| u32::try_from((n >> shift) & ((1 << bits) - 1));
        Self {
            lane: part(32, 20).unwrap_or(0),
            step: part(16, 16).unwrap_or(0),
            below: part(0, 16).unwrap_or(0),
        }
    }

    /// As a number that can be kept; it fits into the integers of JSON.
    #[must_use]
    pub fn kept(self) -> u64 {
        u64::from(self.lane) << 32 | u64::from(self.step) << 16 | u64::from(self.below)
    }
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Lane {
    Failing { family: Family, way: Way, repeat: Repeat },
    Full { fs: FileSystem, axis: Axis },
}

/// The lanes of one subject.
#[derive(Clone, Debug)]
pub struct Sweep {
    rows: Vec<Row>,
    depth: Depth,
}

/// A lane, and what is known of it.
#[derive(Clone, Debug)]
struct Row {
    lane: Lane,
    /// How many of its steps are struck if the subject does what it did when left alone.
    known: u32,
    /// Whether it waits until the row before it that does not has been struck.
    waits: bool,
}

impl Sweep {
    /// The lanes for a kind of fault, of a subject that does this when it is left alone.
    #[must_use]
    pub fn new(kind: FaultKind, sites: &Sites, reach: &Reach) -> Self {
        let rows = match kind {
            FaultKind::DiskFull => reach
                .axes
                .iter()
                .map(|axis| {
                    let lane = Lane::Full { fs: reach.fs, axis: *axis };
                    Row { lane, known: 0, waits: false }
                })
                .collect(),
            _ => Family::ALL.iter().flat_map(|family| of_family(*family, sites)).collect(),
        };
        Self { rows, depth: reach.depth }
    }

    /// How many lanes there are.
    #[must_use]
    pub fn lanes(&self) -> u32 {
        u32::try_from(self.rows.len()).unwrap_or(u32::MAX)
    }

    /// How many steps of a lane are struck if the subject does what it did when left alone.
    #[must_use]
    pub fn known(&self, lane: u32) -> u32 {
        self.rows.get(lane as usize).map_or(0, |row| row.known)
    }

    /// Whether a step of a lane that was struck opens a lane below it.
    #[must_use]
    pub fn goes_deeper(&self, lane: u32) -> bool {
        // One that lasts leaves nothing to fail; one that is two failures has its second.
        let ends = |lane: &Lane| {
            let Lane::Failing { repeat, way, .. } = lane else { return false };
            *repeat == Repeat::Sticky || *way == Way::ShortThenFull
        };
        self.depth == Depth::Two && self.rows.get(lane as usize).is_some_and(|row| !ends(&row.lane))
    }

    /// Whether a lane waits until another one is struck.
    #[must_use]
    pub fn waits(&self, lane: u32) -> bool {
        self.rows.get(lane as usize).is_some_and(|row| row.waits)
    }

    /// The lanes that wait for this one.
    pub fn wakes(&self, lane: u32) -> impl Iterator<Item = u32> + use<> {
        let waiting = (lane + 1..self.lanes()).take_while(|next| self.waits(*next)).count();
        let count = if self.waits(lane) { 0 } else { u32::try_from(waiting).unwrap_or(0) };
        lane + 1..lane + 1 + count
    }

    /// The fault of a trial.
    #[must_use]
    pub fn fault(&self, number: Number) -> Option<Fault> {
        let Row { lane, .. } = self.rows.get(number.lane as usize)?;
        if number.step == 0 {
            return None;
        }
        let below = (number.below > 0).then_some(number.below);
        Some(match lane {
            Lane::Failing { family, way, repeat } => Fault::Errno(Failing {
                family: *family,
                nth: number.step,
                way: *way,
                repeat: *repeat,
                second: below.map(|nth_after| Second {
                    nth_after,
                    // After a short write comes the error that explains it.
                    errno: way.errno().unwrap_or(Errno::Enospc),
                }),
            }),
            Lane::Full { fs, axis } => Fault::DiskFull(DiskFull {
                fs: *fs,
                axis: *axis,
                free: free_at(number.step),
                kill_before: below.map(|nth| nth - 1),
            }),
        })
    }
}

/// The lanes of one family. If the subject makes no such call when it is left alone, one lane sees
/// whether it ever does, and the others wait for it.
fn of_family(family: Family, sites: &Sites) -> Vec<Row> {
    let shown = |site: &crate::plan::Site| Shown {
        creates: site.creates,
        one_file: !site.path.is_empty() || site.call.family() != Family::Sync,
        ..Shown::plain(site.call, usize::try_from(site.length).unwrap_or(usize::MAX))
    };
    let of = |way: Way| {
        let calls = sites.sites.iter().filter(|site| site.call.family() == family);
        let count = calls.filter(|site| errno::can(&shown(site), way)).count();
        u32::try_from(count).unwrap_or(STEPS_MAX).min(STEPS_MAX)
    };
    let there = sites.sites.iter().any(|site| site.call.family() == family);
    let lanes = errno::ways(family).iter().flat_map(|way| {
        let sticky = way.lasts().then_some(Repeat::Sticky);
        let repeats = std::iter::once(Repeat::Once).chain(sticky);
        repeats.map(|repeat| (Lane::Failing { family, way: *way, repeat }, of(*way)))
    });
    let row = |(n, (lane, known))| Row { lane, known, waits: !there && n > 0 };
    lanes.enumerate().map(row).collect()
}

/// Up to here each block is a step.
pub const EXACT: u64 = 1024;

/// How much is free at a step: 0, 1, 2, ... and, past [`EXACT`], a twentieth more each time, so that
/// a state of megabytes is swept too.
#[must_use]
pub fn free_at(step: u32) -> u64 {
    let index = u64::from(step.saturating_sub(1));
    (EXACT..index).fold(index.min(EXACT), |free: u64, _| free.saturating_add(free / 20))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{ByteOffset, Call, OpIndex};
    use crate::plan::Site;

    fn sites(calls: &[(Call, u64)]) -> Sites {
        let site = |(n, (call, length)): (usize, &(Call, u64))| Site {
            op: OpIndex(n),
            call: *call,
            nth: 1,
            path: "s".into(),
            offset: ByteOffset(0),
            length: *length,
            creates: true,
        };
        Sites { sites: calls.iter().enumerate().map(site).collect(), duration_us: 0 }
    }

    fn sweep(depth: Depth) -> Sweep {
        let sites = sites(&[(Call::Open, 0), (Call::Write, 9), (Call::Write, 1), (Call::Close, 0)]);
        Sweep::new(FaultKind::Errno, &sites, &Reach { depth, ..Reach::default() })
    }

    #[test]
    fn a_number_is_kept_and_read_again() {
        for (lane, step, below) in [(0, 1, 0), (7, 65535, 3), (1 << 19, 1, 65535)] {
            let number = Number { lane, step, below };
            assert_eq!(Number::from_kept(number.kept()), number);
            assert!(number.kept() < 1 << 53);
        }
    }

    #[test]
    fn each_way_of_each_family_that_is_there_has_its_lanes_and_others_have_one() {
        let sweep = sweep(Depth::One);
        let count = |family: Family| {
            let is = |lane: &Lane| matches!(lane, Lane::Failing { family: f, .. } if *f == family);
            sweep.rows.iter().filter(|row| is(&row.lane) && !row.waits).count()
        };
        assert_eq!((count(Family::Open), count(Family::Fsync), count(Family::Map)), (10, 1, 0));
        // EINTR, EAGAIN and two of the short writes do not last.
        assert_eq!(count(Family::Write), 3 * 2 + 2 + 3 + 1 + 2);
    }

    #[test]
    fn the_other_lanes_of_an_absent_family_wait_for_its_first() {
        let sweep = sweep(Depth::One);
        let is = |lane: &Lane| matches!(lane, Lane::Failing { family: Family::Fsync, .. });
        let first = sweep.rows.iter().position(|row| is(&row.lane)).unwrap() as u32;
        let all = sweep.rows.iter().filter(|row| is(&row.lane)).count();
        assert_eq!(sweep.wakes(first).count(), all - 1);
        assert_eq!(sweep.wakes(first + 1).count(), 0);
        assert_eq!(sweep.wakes(0).count(), 0);
    }

    #[test]
    fn only_calls_that_can_fail_so_are_known_places() {
        let sweep = sweep(Depth::One);
        let known = |way: Way| {
            let of = |lane: &Lane| matches!(lane, Lane::Failing { way: w, family: Family::Write, .. } if *w == way);
            sweep.rows.iter().find(|row| of(&row.lane)).map(|row| row.known)
        };
        assert_eq!(known(Way::NotMade(Errno::Eio)), Some(2));
        assert_eq!(known(Way::Short(crate::errno::Keep::One)), Some(1));
        assert_eq!(known(Way::NotMade(Errno::Eagain)), Some(0));
    }

    #[test]
    fn what_lasts_has_no_second_part() {
        let sweep = sweep(Depth::Two);
        assert!(sweep.goes_deeper(0) && !sweep.goes_deeper(1));
        let Some(Fault::Errno(failing)) = sweep.fault(Number { lane: 0, step: 2, below: 3 }) else {
            panic!()
        };
        assert_eq!((failing.nth, failing.second.map(|second| second.nth_after)), (2, Some(3)));
    }

    #[test]
    fn free_space_grows_by_blocks_and_then_by_a_twentieth() {
        assert_eq!((free_at(1), free_at(2), free_at(1025)), (0, 1, 1024));
        assert_eq!(free_at(1026), 1075);
        assert!(free_at(1200) > 1_000_000);
    }
}
