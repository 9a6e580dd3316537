//! A sample of the crash states, where there are too many to see them all.
//!
//! In each epoch, all prefixes of the free steps: what is there if the disk keeps up to some op;
//! where names come in any order, also all but one of them, one alone, and random sets. For each of
//! these, of the changes of the state files: none, all, all prefixes, one alone, all but one, pairs,
//! and random sets, each with all that it needs. What is drawn follows from the seed.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::contents::{At, Cache, Choice, FirstFree, Free, Node, Tree, View};
use super::profile::Names;
use super::walk::{Complete, Found, Go, Order, Thorough, Walk};

/// How many changes may be added and taken back for each state that is wanted.
const WORK_PER_STATE: usize = 50;
/// How many blocks are looked at for all states that are wanted, about.
const BLOCKS_MAX: usize = 50_000_000;
/// How many steps may be gone through for each state that is wanted.
const STEPS_PER_STATE: usize = 20;
/// How many contents are looked at for a set of steps, at least.
const CONTENTS_MIN: usize = 8;
/// How many sets of steps are drawn in an epoch, where names come in any order.
const DRAWN_SETS: usize = 64;

impl Walk<'_> {
    /// Shows about `states` crash states to `visit`, drawn with `seed`.
    pub fn sampled(
        &mut self,
        states: usize,
        seed: u64,
        visit: &mut dyn FnMut(&Found<'_>) -> Go,
    ) -> Complete {
        let epochs = self.epochs();
        let blocks = self.lowered.inodes.iter().map(|inode| inode.lanes.len()).max().unwrap_or(0);
        let states = states.min(BLOCKS_MAX / (blocks + 50));
        let sets = self.count_of_prefixes().max(1);
        let per_set = (states / sets).clamp(CONTENTS_MIN, 1 << 16);
        // Where even that is too much, some sets of steps are left out.
        let stride = (sets * CONTENTS_MIN / states.max(1)).max(1);
        // And where even to go through them is too much, of some epochs only the first set is seen.
        let epoch_stride = (sets / (states * STEPS_PER_STATE).max(1)).max(1);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (mut free, mut next_step, mut left) = (Vec::new(), 0, states);
        let mut limited = |found: &Found<'_>| {
            left = left.saturating_sub(1);
            if left == 0 { Go::Stop } else { visit(found) }
        };
        for (number, epoch) in epochs.into_iter().enumerate() {
            self.enter(epoch, &mut free, &mut next_step);
            if number % epoch_stride != seed as usize % epoch_stride {
                self.nodes_max = CONTENTS_MIN;
                self.thorough = Thorough::Sample(random.random());
                self.first_missing = free.first().copied().unwrap_or(u32::MAX);
                if self.contents(epoch, &mut limited) == Complete::No {
                    return Complete::No;
                }
                continue;
            }
            let order = Order::of(self.lowered, &free, &self.relevant);
            self.nodes_max = per_set;
            let mut undo = Vec::new();
            let count = order.choices.len();
            for set in 0..=count {
                if set > 0 {
                    undo.push(self.choose(&order.choices[set - 1]));
                }
                self.first_missing = order.missing_after(set.checked_sub(1));
                let ends = set == 0 || set == count;
                if ends || set % stride == seed as usize % stride {
                    self.thorough = Thorough::Sample(random.random());
                    if self.contents(epoch, &mut limited) == Complete::No {
                        return Complete::No;
                    }
                }
            }
            for undo in undo.into_iter().rev() {
                self.take_back(undo);
            }
            if self.lowered.flags.names == Names::InOrder {
                continue;
            }
            self.first_missing = u32::MAX;
            for set in drawn_sets(count, &mut random) {
                self.thorough = Thorough::Sample(random.random());
                let undo: Vec<_> = order
                    .closed(&set)
                    .into_iter()
                    .map(|choice| self.choose(&order.choices[choice]))
                    .collect();
                let complete = self.contents(epoch, &mut limited);
                for undo in undo.into_iter().rev() {
                    self.take_back(undo);
                }
                if complete == Complete::No {
                    return Complete::No;
                }
            }
        }
        Complete::No
    }

    /// How many prefixes of free steps there are in all epochs.
    fn count_of_prefixes(&self) -> usize {
        let barriers = self.lowered.barriers();
        let free = |step: &super::Step| {
            let from = barriers.partition_point(|barrier| *barrier <= step.time);
            let to = barriers.partition_point(|barrier| *barrier < step.forced);
            1 + to.saturating_sub(from)
        };
        self.lowered.steps.iter().map(free).sum::<usize>() + barriers.len()
    }
}

/// Sets among so many choices: all but one, one, and random ones.
fn drawn_sets(count: usize, random: &mut ChaCha8Rng) -> Vec<Vec<bool>> {
    let last = count.saturating_sub(DRAWN_SETS / 4)..count;
    let but_one = last.clone().map(|out| (0..count).map(|n| n != out).collect());
    let one = last.map(|only| (0..count).map(|n| n == only).collect());
    let mut sets: Vec<Vec<bool>> = but_one.chain(one).collect();
    while count > 0 && sets.len() < DRAWN_SETS {
        let share = random.random_range(0.05..0.95);
        sets.push((0..count).map(|_| random.random_bool(share)).collect());
    }
    sets
}

impl Order {
    /// The choices of a set whose needs are in it too, in order.
    fn closed(&self, set: &[bool]) -> Vec<usize> {
        let mut in_set = set.to_vec();
        for choice in 0..set.len() {
            if !in_set[choice] {
                for later in &self.needed_by[choice] {
                    in_set[*later] = false;
                }
            }
        }
        (0..set.len()).filter(|choice| in_set[*choice]).collect()
    }
}

impl Tree {
    /// Some contents of an inode: at most `max.0`, drawn with `max.1`.
    pub(super) fn sample(
        at: At<'_>,
        forced: &View,
        first_free: FirstFree,
        choice: &Choice<'_>,
        cache: &mut Cache,
        (nodes_max, seed): (usize, u64),
    ) -> Self {
        let (view, free, mut tree) = Self::start(at, forced, first_free, choice, cache);
        let possible: Vec<usize> =
            (0..free.unmet.len()).filter(|index| free.unmet[*index].is_some()).collect();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let work = nodes_max * WORK_PER_STATE;
        let nodes_max = nodes_max.min((work / possible.len().max(1)).max(CONTENTS_MIN));
        let mut sets = vec![Vec::new()];
        for wish in wishes(possible.len(), nodes_max, &mut random) {
            let set = free.closed(at, &possible, &wish);
            let (mut one, mut time) = (view.clone(), tree.nodes[0].time);
            for change in &set {
                let change = &at.inode.changes[*change as usize];
                one.add(at, cache, change);
                time = time.max(change.time);
            }
            let node = one.node(at, cache, time);
            tree.nodes.push(Node { change: 0, ..node });
            sets.push(set);
        }
        tree.sets = Some(sets);
        tree
    }
}

/// What is wished of so many changes; at most so many wishes, the most telling first.
fn wishes(count: usize, most: usize, random: &mut ChaCha8Rng) -> Vec<Vec<bool>> {
    let of = |is_in: &dyn Fn(usize) -> bool| (0..count).map(is_in).collect::<Vec<bool>>();
    let mut wishes = vec![of(&|_| true)];
    let some = |random: &mut ChaCha8Rng| random.random_range(0..count.max(1));
    let share = most / 5;
    let all = count <= share;
    let places: Vec<usize> =
        if all { (0..count).collect() } else { (0..share).map(|_| some(random)).collect() };
    for place in places {
        wishes.push(of(&|n| n < place));
        wishes.push(of(&|n| n != place));
        wishes.push(of(&|n| n == place));
    }
    while count > 1 && wishes.len() < most {
        if wishes.len() % 2 == 0 {
            let pair = (some(random), some(random));
            wishes.push(of(&|n| n == pair.0 || n == pair.1));
        } else {
            let share = random.random_range(0.05..0.95);
            wishes.push((0..count).map(|_| random.random_bool(share)).collect());
        }
    }
    wishes.truncate(most);
    wishes
}

impl Free {
    /// A legal set that is as close to a wish as can be: one change that is wished alone, or two,
    /// bring what they need; else what lacks its needs is left out.
    fn closed(&self, at: At<'_>, possible: &[usize], wish: &[bool]) -> Vec<u32> {
        let mut is_in = vec![false; self.unmet.len()];
        let wished = wish.iter().filter(|is_in| **is_in).count();
        let brings = wished <= 2;
        let needs = |index: usize| {
            let needs = at.inode.changes[index + self.from].needs.iter();
            needs.filter_map(|need| (*need as usize).checked_sub(self.from))
        };
        for (index, wished) in possible.iter().zip(wish) {
            let mut open = if *wished { vec![*index] } else { Vec::new() };
            let open_needs = |index: usize, is_in: &[bool]| -> Vec<usize> {
                needs(index).filter(|n| self.unmet[*n].is_some() && !is_in[*n]).collect()
            };
            if !brings && !open_needs(*index, &is_in).is_empty() {
                continue;
            }
            while let Some(index) = open.pop() {
                if !std::mem::replace(&mut is_in[index], true) {
                    open.extend(open_needs(index, &is_in));
                }
            }
        }
        let all = is_in.iter().enumerate().filter(|(_, is_in)| **is_in);
        all.map(|(index, _)| super::lower::count(index + self.from)).collect()
    }
}
