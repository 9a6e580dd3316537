//! A sample of the crash states, where there are too many to see them all.
//!
//! In each epoch, all prefixes of the free steps: what is there if the disk keeps up to some op;
//! where names come in any order, also all but one of them, one alone, and random sets. For each of
//! these, of the changes of the state files: none, all, all prefixes, one alone, all but one, pairs,
//! and random sets, each with all that it needs. What is drawn follows from the seed.

use std::collections::{HashMap, HashSet};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::contents::{At, Cache, Choice, Node, Tree, View};
use super::free::Free;
use super::profile::Names;
use super::walk::{Complete, Epoch, Epochs, Found, Go, Order, Thorough, Walk};
use super::{Ino, Time};

/// How many changes may be added and taken back for each state that is wanted.
const WORK_PER_STATE: usize = 50;
/// How many blocks are looked at for all states that are wanted, about.
const BLOCKS_MAX: usize = 50_000_000;
/// How many free steps the epochs that are looked at have together, about: each set takes as many.
const FREE_STEPS_MAX: usize = 1_000_000;
/// How many states of an epoch are looked at, at least; where there are too many epochs, some are left
/// out.
const EPOCH_STATES_MIN: usize = 32;
/// How many contents are looked at for a set of steps, at least.
const CONTENTS_MIN: usize = 8;
/// How many sets of steps are drawn in an epoch, at least if there is room, where names come in any order.
const DRAWN_SETS: usize = 64;

impl Walk<'_> {
    /// Shows at most `states` crash states to `visit`, drawn with `seed`.
    pub fn sampled(&mut self, states: usize, seed: u64, visit: &mut dyn FnMut(&Found<'_>) -> Go) {
        let epochs = self.epochs();
        let blocks = self.lowered.inodes.iter().map(|inode| inode.lanes.len()).max().unwrap_or(0);
        let states = states.min((BLOCKS_MAX / (blocks + 50)).max(EPOCH_STATES_MIN));
        // Where there are too many epochs some are left out, but not the last, at whose end all is owed.
        let stride = (epochs.len() * EPOCH_STATES_MIN)
            .div_ceil(states.max(1))
            .max(self.free_steps(&epochs) / FREE_STEPS_MAX)
            .max(1);
        let seen = epochs.len() / stride + 2;
        let (share, last_only) = ((states / seen).max(1), states < seen);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let last = epochs.len() - 1;
        for (number, epoch) in epochs.into_iter().enumerate() {
            self.enter(epoch);
            let drawn = !last_only && number % stride == seed as usize % stride;
            let share = if last_only { states } else { share };
            if (number == last || drawn)
                && self.sample_of(epoch, share, &mut random, visit) == Go::Stop
            {
                return;
            }
        }
    }

    /// How many steps that make a difference are free, in all epochs together.
    fn free_steps(&self, epochs: &[Epoch]) -> usize {
        let mut way = Epochs::of(self.lowered);
        let mut free = 0;
        let counts = |step: &&u32| self.in_order() || self.relevant[**step as usize];
        let mut in_epoch = |epoch: &Epoch| {
            let (fresh, forced) = way.enter(self.lowered, *epoch);
            free += fresh.iter().filter(counts).count();
            free -= forced.iter().filter(counts).count();
            free
        };
        epochs.iter().map(&mut in_epoch).sum()
    }

    /// Shows about so many states of one epoch.
    fn sample_of(
        &mut self,
        epoch: Epoch,
        states: usize,
        random: &mut ChaCha8Rng,
        visit: &mut dyn FnMut(&Found<'_>) -> Go,
    ) -> Go {
        let order = Order::of(self, epoch);
        let count = order.choices.len();
        let drawn = match self.lowered.flags.names {
            Names::InOrder => Vec::new(),
            Names::AnyOrder => {
                let most = (3 * count).max(DRAWN_SETS).min(states / CONTENTS_MIN / 2);
                drawn_sets(count, most, random)
            }
        };
        // Nothing, all, and as many between as there is room for.
        let room = (states / CONTENTS_MIN).saturating_sub(2 + drawn.len()).max(1);
        let stride = (count + 1).div_ceil(room).max(1);
        let sets = 2 + count / stride + drawn.len();
        self.nodes_max = (states / sets).clamp(2, 1 << 16);
        let (mut left, mut stopped) = (states, false);
        let mut limited = |found: &Found<'_>| {
            if left == 0 || stopped {
                return Go::Stop;
            }
            left -= 1;
            stopped = visit(found) == Go::Stop;
            Go::On
        };
        // All of it, and nothing but what is forced, first: they must not fall behind the limit.
        let whole = [vec![true; count], vec![false; count]].into_iter();
        for set in whole.chain(drawn) {
            let chosen = order.closed(&set);
            self.thorough = Thorough::Sample(random.random());
            self.first_missing = order.missing_after(chosen.last().copied());
            let undo: Vec<_> =
                chosen.into_iter().map(|choice| self.choose(&order.choices[choice])).collect();
            let complete = self.contents(epoch, &mut limited);
            undo.into_iter().rev().for_each(|undo| self.take_back(undo));
            if complete == Complete::No {
                break;
            }
        }
        let mut undo = Vec::new();
        for set in 0..count {
            self.first_missing = order.missing_after(set.checked_sub(1));
            if set % stride == 0 {
                self.thorough = Thorough::Sample(random.random());
                if self.contents(epoch, &mut limited) == Complete::No {
                    break;
                }
            }
            undo.push(self.choose(&order.choices[set]));
        }
        undo.into_iter().rev().for_each(|undo| self.take_back(undo));
        if stopped { Go::Stop } else { Go::On }
    }
}

/// At most so many sets among so many choices: all but one, one alone, and random ones.
fn drawn_sets(count: usize, most: usize, random: &mut ChaCha8Rng) -> Vec<Vec<bool>> {
    let stride = (count * 8).div_ceil((most * 3).max(1)).max(1);
    let first = random.random_range(0..stride);
    // From the last on: what came last is the least likely to be forced by something else.
    let places = || (0..count).rev().skip(first).step_by(stride);
    let but_one = places().map(|out| (0..count).map(|n| n != out).collect());
    let one = places().map(|only| (0..count).map(|n| n == only).collect());
    let mut sets: Vec<Vec<bool>> = but_one.chain(one).collect();
    sets.truncate(most);
    while count > 0 && sets.len() < most {
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

/// What there is to choose of one inode, and the contents that were chosen.
struct Sampled<'a> {
    at: At<'a>,
    view: View,
    free: Free,
    /// The changes that can be chosen, by their place in `free`.
    possible: Vec<usize>,
    tree: Tree,
    sets: Vec<Vec<u32>>,
    known: HashMap<Vec<u32>, u32>,
}

impl<'a> Sampled<'a> {
    fn new(at: At<'a>, view: View, free: Free, tree: Tree) -> Self {
        let possible = (0..free.unmet.len()).filter(|index| free.unmet[*index].is_some()).collect();
        // The first content has nothing but what all have.
        let (sets, known) = (vec![Vec::new()], HashMap::from([(Vec::new(), 0)]));
        Self { at, view, free, possible, tree, sets, known }
    }

    fn time(&self, possible: usize) -> Time {
        self.at.inode.changes[self.free.from + self.possible[possible]].time
    }

    /// The content with a legal set that is as close to a wish as can be.
    fn node(&mut self, wish: &[bool], cache: &mut Cache) -> u32 {
        let set = self.free.closed(self.at, &self.possible, wish);
        if let Some(node) = self.known.get(&set) {
            return *node;
        }
        let (mut view, mut time) = (self.view.clone(), self.tree.nodes[0].time);
        for change in &set {
            let change = &self.at.inode.changes[*change as usize];
            view.add(self.at, cache, change);
            time = time.max(change.time);
        }
        let node = super::lower::count(self.tree.nodes.len());
        self.tree.nodes.push(Node { change: 0, ..view.node(self.at, cache, time) });
        self.sets.push(set.clone());
        self.known.insert(set, node);
        node
    }
}

impl Walk<'_> {
    /// Some contents of these inodes, and which of them are combined: what is chosen is chosen among the changes
    /// of all of them, in the order of their times.
    pub(super) fn sampled_contents(
        &mut self,
        epoch: Epoch,
        files: &[Ino],
        seed: u64,
    ) -> (Vec<Tree>, Vec<Vec<u32>>) {
        let mut all = Vec::new();
        for ino in files {
            let at = At::new(self.lowered, *ino);
            let start = |choice: &Choice<'_>, cache: &mut Cache| {
                let (view, free, tree) = Tree::start(choice, cache);
                Sampled::new(at, view, free, tree)
            };
            all.push(self.choosing(epoch, *ino, start));
        }
        let mut order: Vec<(Time, usize, usize)> = Vec::new();
        for (file, one) in all.iter().enumerate() {
            order.extend((0..one.possible.len()).map(|place| (one.time(place), file, place)));
        }
        order.sort_unstable();
        let work = self.nodes_max * WORK_PER_STATE;
        let most = self.nodes_max.min((work / order.len().max(1)).max(CONTENTS_MIN));
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (mut combinations, mut seen) = (Vec::new(), HashSet::new());
        for wish in wishes(order.len(), most, &mut random) {
            let mut of_files: Vec<Vec<bool>> =
                all.iter().map(|one| vec![false; one.possible.len()]).collect();
            for ((_, file, place), is_in) in order.iter().zip(wish) {
                of_files[*file][*place] = is_in;
            }
            let nodes: Vec<u32> = all
                .iter_mut()
                .zip(&of_files)
                .map(|(one, wish)| one.node(wish, &mut self.cache))
                .collect();
            if seen.insert(nodes.clone()) {
                combinations.push(nodes);
            }
        }
        let tree = |one: Sampled<'_>| Tree { sets: Some(one.sets), ..one.tree };
        (all.into_iter().map(tree).collect(), combinations)
    }
}

/// What is wished of so many changes; at most so many wishes, the most telling first.
fn wishes(count: usize, most: usize, random: &mut ChaCha8Rng) -> Vec<Vec<bool>> {
    let of = |is_in: &dyn Fn(usize) -> bool| (0..count).map(is_in).collect::<Vec<bool>>();
    let mut wishes = vec![of(&|_| true), of(&|_| false)];
    let some = |random: &mut ChaCha8Rng| random.random_range(0..count.max(1));
    // Each prefix, all but one, and one alone; or as many as there is room for, all along the run.
    let stride = count.div_ceil((most / 5).max(1)).max(1);
    let places = (random.random_range(0..stride)..count).step_by(stride);
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
    /// One of those of which a change needs one, if none is in the set: the last.
    fn lacks_help(&self, index: usize, is_in: &[bool]) -> Option<usize> {
        let helpers = &self.helpers[index];
        let last = helpers.iter().rev().find(|helper| self.unmet[**helper].is_some())?;
        let none = !helpers.iter().any(|helper| is_in[*helper]);
        none.then_some(*last)
    }

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
                let open = |n: &usize| self.unmet[*n].is_some() && !is_in[*n];
                needs(index).filter(open).chain(self.lacks_help(index, is_in)).collect()
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
