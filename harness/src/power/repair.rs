//! What would have kept a promise: the fewest ops that, had they been durable, make a crash state sound.

use std::collections::{BTreeMap, BTreeSet};

use super::survivor::CrashState;
use super::{Lowered, Time, lower};

/// How many ops may be missing before the search is left.
const OPS_MAX: usize = 256;

/// What repairs a crash state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Had these ops been durable, nothing were broken; and each of them is needed for that.
    Ops(BTreeSet<usize>),
    /// It is broken with all that had been done, too: what was done, or promised, came in the wrong order.
    Nothing,
}

/// Looks for what repairs a state: the fewest of `missing`, by leaving out one half after the other. `None` if they are
/// too many. The power went at `moment`, and `is_broken` judges.
pub fn smallest(
    lowered: &Lowered,
    (state, moment): (&CrashState, Time),
    missing: &BTreeSet<usize>,
    is_broken: &dyn Fn(&CrashState) -> bool,
) -> Option<Repair> {
    if missing.len() > OPS_MAX {
        return None;
    }
    let mut kept: Vec<usize> = missing.iter().copied().collect();
    let repairs = |ops: &[usize]| !is_broken(&with(lowered, (state, moment), ops));
    if !repairs(&kept) {
        return Some(Repair::Nothing);
    }
    let mut chunk = kept.len();
    while chunk > 0 {
        let mut from = 0;
        while from < kept.len() {
            let end = (from + chunk).min(kept.len());
            let others = [&kept[..from], &kept[end..]].concat();
            match repairs(&others) {
                true => kept = others,
                false => from = end,
            }
        }
        chunk = if chunk == 1 { 0 } else { chunk.div_ceil(2) };
    }
    Some(Repair::Ops(kept.into_iter().collect()))
}

/// The state with all that these ops did before the moment.
fn with(lowered: &Lowered, (state, moment): (&CrashState, Time), ops: &[usize]) -> CrashState {
    let adds = |time: Time| time < moment && ops.binary_search(&time.op()).is_ok();
    let mut steps: BTreeSet<u32> = state.steps.iter().copied().collect();
    let of_ops = lowered.steps.iter().enumerate().filter(|(_, step)| adds(step.time));
    steps.extend(of_ops.map(|(index, _)| lower::count(index)));
    let mut changes: BTreeMap<u32, BTreeSet<u32>> =
        state.changes.iter().map(|(ino, all)| (*ino, all.iter().copied().collect())).collect();
    for (ino, inode) in lowered.inodes.iter().enumerate() {
        let of_ops = inode.changes.iter().enumerate().filter(|(_, change)| adds(change.time));
        let of_ops: Vec<u32> = of_ops.map(|(index, _)| lower::count(index)).collect();
        if !of_ops.is_empty() {
            changes.entry(lower::count(ino)).or_default().extend(of_ops);
        }
    }
    CrashState {
        steps: steps.into_iter().collect(),
        changes: changes.into_iter().map(|(ino, all)| (ino, all.into_iter().collect())).collect(),
        ..state.clone()
    }
}
