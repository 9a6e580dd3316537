//! Every crash state of a recording: epoch by epoch, set of steps by set of steps.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;

use super::contents::{At, Cache, Choice, FirstFree, Tree, View, later};
use super::fingerprint::Fingerprint;
use super::names::{NamesView, relevant};
use super::profile::{Names, Pushes};
use super::survivor::CrashState;
use super::{Ino, Kind, Lowered, NEVER, StepChange, Time};

/// What a state file is in a crash state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Seen {
    /// Nothing.
    Missing,
    /// A directory.
    NoFile,
    /// A file of this size and fingerprint.
    File(u64, Fingerprint),
}

/// A crash state on its way to the judge.
pub struct Found<'a> {
    /// The last moment at which it is legal in its epoch.
    pub last_moment: Time,
    /// What the state files are, in the order of [`Walk::paths`].
    pub files: &'a [Seen],
    /// How to make it again.
    pub recipe: Recipe<'a>,
}

/// How a crash state was made.
pub struct Recipe<'a> {
    barrier: Time,
    /// The earliest moment at which it is legal in its epoch.
    pub moment: Time,
    steps: &'a [u32],
    trees: &'a [Tree],
    nodes: &'a [u32],
    stale: bool,
}

impl Recipe<'_> {
    /// The crash state as plain data.
    #[must_use]
    pub fn state(&self) -> CrashState {
        let mut steps = self.steps.to_vec();
        steps.sort_unstable();
        let changes = self.trees.iter().zip(self.nodes);
        CrashState {
            barrier: self.barrier.0,
            moment: self.moment.0,
            steps,
            changes: changes.map(|(tree, node)| (tree.ino.0, tree.changes(*node))).collect(),
            stale: self.stale,
        }
    }

    /// How many micro-ops it has that are not forced.
    #[must_use]
    pub fn size(&self) -> usize {
        let depth = |(tree, node): (&Tree, &u32)| tree.depth(*node);
        self.steps.len() + self.trees.iter().zip(self.nodes).map(depth).sum::<usize>()
    }
}

/// Whether a search goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Go {
    /// It does.
    On,
    /// It has had enough.
    Stop,
}

/// Goes through the crash states of a recording.
pub struct Walk<'a> {
    pub(super) lowered: &'a Lowered,
    /// The state files.
    pub paths: &'a [PathBuf],
    pub(super) relevant: Vec<bool>,
    epochs: Epochs,
    /// The steps that are free in the epoch that was entered, and make a difference.
    pub(super) free: BTreeSet<u32>,
    pub(super) cache: Cache,
    names: NamesView,
    /// What is forced of each inode that was looked at.
    forced: HashMap<Ino, Forced>,
    /// The steps that are in the set and not forced, in their order.
    pub(super) chosen: Vec<u32>,
    is_chosen: Vec<bool>,
    /// Where names are kept in order: the first step that is neither forced nor chosen.
    pub(super) first_missing: u32,
    /// What the chosen steps push before them, by inode.
    pushed: HashMap<Ino, Vec<(Time, Time)>>,
    /// How many contents of one inode there may be.
    pub nodes_max: usize,
    /// How the contents of a set of steps are gone through.
    pub(super) thorough: Thorough,
}

/// How many contents are looked at for a set of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thorough {
    /// All.
    All,
    /// A sample, with this seed.
    Sample(u64),
}

/// What is forced of an inode, up to some barrier.
struct Forced {
    view: View,
    /// Where what is not forced begins.
    first_free: FirstFree,
    /// The barrier up to which that is so.
    barrier: Option<Time>,
}

impl Forced {
    fn new(at: At<'_>) -> Self {
        Self { view: View::new(at.inode), first_free: FirstFree::default(), barrier: None }
    }
}

/// One epoch.
#[derive(Clone, Copy)]
pub(super) struct Epoch {
    /// The moment of the barrier before it; what is forced at or before it is there.
    pub(super) barrier: Time,
    /// Its last moment.
    pub(super) last: Time,
}

/// Before anything is forced.
const START: Time = Time(0);

/// The way through the epochs: each step comes once, and is forced at most once.
pub(super) struct Epochs {
    /// How many steps have come.
    come: usize,
    /// All steps that are ever forced, in the order in which they are.
    by_force: Vec<u32>,
    /// How many of them have been.
    forced: usize,
}

impl Epochs {
    pub(super) fn of(lowered: &Lowered) -> Self {
        let forced = |step: &u32| lowered.steps[*step as usize].forced;
        let mut by_force: Vec<u32> = (0..super::lower::count(lowered.steps.len()))
            .filter(|step| forced(step) != NEVER)
            .collect();
        by_force.sort_by_key(forced);
        Self { come: 0, by_force, forced: 0 }
    }

    /// Goes on to the next epoch: the steps that come in it, and those that are forced from its
    /// beginning on.
    pub(super) fn enter(&mut self, lowered: &Lowered, epoch: Epoch) -> (Vec<u32>, Vec<u32>) {
        let (come, forced) = (self.come, self.forced);
        let steps = &lowered.steps[come..];
        self.come += steps.partition_point(|step| step.time < epoch.last);
        let is_forced = |step: &u32| lowered.steps[*step as usize].forced <= epoch.barrier;
        self.forced += self.by_force[forced..].partition_point(is_forced);
        let fresh = (come..self.come).map(super::lower::count).collect();
        (fresh, self.by_force[forced..self.forced].to_vec())
    }
}

impl<'a> Walk<'a> {
    /// A walk through the states that these files can be in.
    #[must_use]
    pub fn new(lowered: &'a Lowered, paths: &'a [PathBuf]) -> Self {
        Self {
            lowered,
            paths,
            relevant: relevant(lowered, paths),
            epochs: Epochs::of(lowered),
            free: BTreeSet::new(),
            cache: Cache::default(),
            names: NamesView::new(lowered),
            forced: HashMap::new(),
            chosen: Vec::new(),
            is_chosen: vec![false; lowered.steps.len()],
            first_missing: u32::MAX,
            pushed: HashMap::new(),
            nodes_max: usize::MAX,
            thorough: Thorough::All,
        }
    }

    /// Shows every crash state to `visit`. Says whether all were shown.
    pub fn all(&mut self, visit: &mut dyn FnMut(&Found<'_>) -> Go) -> Complete {
        for epoch in self.epochs() {
            self.enter(epoch);
            if self.sets(epoch, visit) == Complete::No {
                return Complete::No;
            }
        }
        Complete::Yes
    }

    pub(super) fn epochs(&self) -> Vec<Epoch> {
        let barriers = self.lowered.barriers();
        let starts = std::iter::once(START).chain(barriers.iter().copied());
        let ends = barriers.iter().copied().chain([self.lowered.end()]);
        // What is forced at a time counts from the moment after it.
        starts.zip(ends).map(|(barrier, last)| Epoch { barrier, last }).collect()
    }

    /// Goes on to the next epoch: the steps that are forced now, and those that are free.
    pub(super) fn enter(&mut self, epoch: Epoch) {
        let (fresh, forced) = self.epochs.enter(self.lowered, epoch);
        let (relevant, in_order) = (&self.relevant, self.in_order());
        let counts = |step: &u32| in_order || relevant[*step as usize];
        self.free.extend(fresh.into_iter().filter(counts));
        for step in forced {
            self.free.remove(&step);
            self.names.apply(self.lowered, step);
        }
    }

    /// Whether names are kept in order, so that a step needs all before it.
    pub(super) fn in_order(&self) -> bool {
        self.lowered.flags.names == Names::InOrder
    }

    /// All legal sets of free steps.
    fn sets(&mut self, epoch: Epoch, visit: &mut dyn FnMut(&Found<'_>) -> Go) -> Complete {
        let order = Order::of(self, epoch);
        let mut unmet = order.unmet.clone();
        let first: Vec<usize> =
            (0..order.choices.len()).filter(|index| unmet[*index] == 0).collect();
        self.first_missing = order.missing_after(None);
        if self.contents(epoch, visit) == Complete::No {
            return Complete::No;
        }
        let mut way = vec![(first, 0, Vec::new(), usize::MAX)];
        while let Some((open, next, _, _)) = way.last_mut() {
            let Some(choice) = open.get(*next).copied() else {
                let Some((_, _, undo, choice)) = way.pop() else { break };
                self.take_back(undo);
                for later in order.needed_by.get(choice).into_iter().flatten() {
                    unmet[*later] += 1;
                }
                continue;
            };
            *next += 1;
            let mut open = open[*next..].to_vec();
            let undo = self.choose(&order.choices[choice]);
            for later in &order.needed_by[choice] {
                unmet[*later] -= 1;
                if unmet[*later] == 0 {
                    let place = open.partition_point(|other| other < later);
                    open.insert(place, *later);
                }
            }
            way.push((open, 0, undo, choice));
            self.first_missing = order.missing_after(Some(choice));
            if self.contents(epoch, visit) == Complete::No {
                while let Some((_, _, undo, _)) = way.pop() {
                    self.take_back(undo);
                }
                return Complete::No;
            }
        }
        Complete::Yes
    }

    /// Adds steps to the set, those that are not yet in it.
    pub(super) fn choose(&mut self, steps: &[u32]) -> Vec<(u32, super::names::Undo)> {
        let mut undo = Vec::new();
        for step in steps {
            if std::mem::replace(&mut self.is_chosen[*step as usize], true) {
                continue;
            }
            self.chosen.push(*step);
            undo.push((*step, self.names.apply(self.lowered, *step)));
            let found = &self.lowered.steps[*step as usize];
            if let Some((ino, how)) = found.pushes {
                let pushed = self.pushed.entry(ino).or_default();
                let before = pushed.last().copied().unwrap_or((Time(0), Time(0)));
                pushed.push(later(before, how, found.time));
            }
        }
        undo
    }

    pub(super) fn take_back(&mut self, undo: Vec<(u32, super::names::Undo)>) {
        for (step, names) in undo.into_iter().rev() {
            self.is_chosen[step as usize] = false;
            self.chosen.pop();
            self.names.undo(names);
            if let Some((ino, _)) = self.lowered.steps[step as usize].pushes
                && let Some(pushed) = self.pushed.get_mut(&ino)
            {
                pushed.pop();
            }
        }
    }

    /// All contents that the state files can have with the steps of the set, or a sample of them.
    pub(super) fn contents(
        &mut self,
        epoch: Epoch,
        visit: &mut dyn FnMut(&Found<'_>) -> Go,
    ) -> Complete {
        let paths = self.paths;
        let inos: Vec<Option<Ino>> =
            paths.iter().map(|path| self.lowered.find(&self.names, path)).collect();
        let mut files: Vec<Ino> = inos
            .iter()
            .flatten()
            .copied()
            .filter(|ino| self.lowered.inode(*ino).kind == Kind::File)
            .collect();
        files.sort_unstable();
        files.dedup();
        let (trees, combinations) = match self.thorough {
            Thorough::All => (self.trees(epoch, &files), None),
            Thorough::Sample(seed) => {
                let (trees, combinations) = self.sampled_contents(epoch, &files, seed);
                (trees, Some(combinations))
            }
        };
        if trees.iter().any(|tree| !tree.complete) {
            return Complete::No;
        }
        let place = |ino: &Option<Ino>| ino.map(|ino| files.binary_search(&ino).ok());
        let places: Vec<Option<Option<usize>>> = inos.iter().map(place).collect();
        let start = self.chosen.last().map(|step| self.lowered.steps[*step as usize].time);
        let product = Product { epoch, steps: &self.chosen, trees: &trees, places: &places, start };
        match combinations {
            None => product.each(visit),
            Some(combinations) => product.each_of(&combinations, visit),
        }
    }

    fn trees(&mut self, epoch: Epoch, files: &[Ino]) -> Vec<Tree> {
        let nodes_max = self.nodes_max;
        let mut grow = |ino: &Ino| {
            self.choosing(epoch, *ino, |choice, cache| Tree::grow(choice, cache, nodes_max))
        };
        files.iter().map(&mut grow).collect()
    }

    /// Does something with what can be in a set of the changes of an inode.
    pub(super) fn choosing<T>(
        &mut self,
        epoch: Epoch,
        ino: Ino,
        body: impl FnOnce(&Choice<'_>, &mut Cache) -> T,
    ) -> T {
        self.advance(epoch, ino);
        let at = At::new(self.lowered, ino);
        let (lowered, is_chosen) = (self.lowered, &self.is_chosen);
        let has_step = |step: u32| {
            is_chosen[step as usize] || lowered.steps[step as usize].forced <= epoch.barrier
        };
        let nothing = (Time(0), Time(0));
        let mut pushed =
            self.pushed.get(&ino).and_then(|pushed| pushed.last()).copied().unwrap_or(nothing);
        if lowered.flags.commit_waits_for_data {
            let last = self.chosen.last();
            let last = last.map(|step| lowered.steps[*step as usize].time);
            pushed = last.map_or(pushed, |time| later(pushed, Pushes::Waits, time));
        }
        let forced = self.forced.entry(ino).or_insert_with(|| Forced::new(at));
        let choice = Choice {
            at,
            forced: &forced.view,
            first_free: forced.first_free,
            has_step: &has_step,
            first_missing: self.first_missing,
            barrier: epoch.barrier,
            until: epoch.last,
            pushed,
        };
        body(&choice, &mut self.cache)
    }

    /// Adds to what is known of an inode all that is forced in this epoch.
    fn advance(&mut self, epoch: Epoch, ino: Ino) {
        let at = At::new(self.lowered, ino);
        let forced = self.forced.entry(ino).or_insert_with(|| Forced::new(at));
        if forced.barrier == Some(epoch.barrier) {
            return;
        }
        let before = forced.barrier;
        let is_new =
            |since: Time| since <= epoch.barrier && before.is_none_or(|before| since > before);
        let (changes, resizes) = (&at.inode.changes, &at.inode.resizes);
        let step_of = |index: usize| &self.lowered.steps[resizes[index] as usize];
        let mut open = (forced.first_free.resizes..resizes.len())
            .filter(|index| is_new(step_of(*index).forced))
            .peekable();
        let (view, cache) = (&mut forced.view, &mut self.cache);
        let mut resize_before = |view: &mut View, cache: &mut Cache, time: Time| {
            while let Some(index) = open.next_if(|index| step_of(*index).time < time) {
                let step = step_of(index);
                if let StepChange::Resize { length, cuts, .. } = step.change {
                    view.resize(at, cache, step.time, length, cuts);
                }
            }
        };
        let until = changes.partition_point(|change| change.time < epoch.last);
        let first = forced.first_free.changes;
        for change in changes[first..until].iter().filter(|change| is_new(change.forced)) {
            resize_before(view, cache, change.time);
            view.add(at, cache, change);
        }
        resize_before(view, cache, Time(u32::MAX));
        let is_forced = |since: Time| since <= epoch.barrier;
        let free = &mut forced.first_free;
        while changes.get(free.changes).is_some_and(|change| is_forced(change.forced)) {
            free.changes += 1;
        }
        while free.resizes < resizes.len() && is_forced(step_of(free.resizes).forced) {
            free.resizes += 1;
        }
        forced.barrier = Some(epoch.barrier);
    }
}

/// Whether all states were shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complete {
    /// They were.
    Yes,
    /// There are more.
    No,
}

/// The order among the free steps that make a difference.
pub(super) struct Order {
    /// For each: itself and those that it needs and that make no difference by themselves.
    pub(super) choices: Vec<Vec<u32>>,
    unmet: Vec<u32>,
    pub(super) needed_by: Vec<Vec<usize>>,
    in_order: bool,
}

impl Order {
    /// In the epoch that a walk has entered.
    pub(super) fn of(walk: &Walk<'_>, epoch: Epoch) -> Self {
        let (lowered, in_order) = (walk.lowered, walk.in_order());
        let (choices, unmet, needed_by) = (Vec::new(), Vec::new(), Vec::new());
        let mut order = Self { choices, unmet, needed_by, in_order };
        if in_order {
            // One journal: what comes later needs all that came before, forced steps between or not.
            for step in &walk.free {
                let before = order.choices.len().checked_sub(1);
                order.add(before.into_iter().collect(), vec![*step]);
            }
            return order;
        }
        let choice_of: HashMap<u32, usize> =
            walk.free.iter().enumerate().map(|(choice, step)| (*step, choice)).collect();
        let is_free = |step: u32| lowered.steps[step as usize].forced > epoch.barrier;
        for step in &walk.free {
            let (mut needs, mut along, mut seen) = (Vec::new(), vec![*step], HashSet::new());
            let mut open = lowered.steps[*step as usize].needs.clone();
            while let Some(need) = open.pop() {
                if !is_free(need) || !seen.insert(need) {
                    continue;
                }
                if let Some(choice) = choice_of.get(&need) {
                    needs.push(*choice);
                } else {
                    along.push(need);
                    open.extend(&lowered.steps[need as usize].needs);
                }
            }
            along.sort_unstable();
            order.add(needs, along);
        }
        order
    }

    fn add(&mut self, needs: Vec<usize>, along: Vec<u32>) {
        self.unmet.push(super::lower::count(needs.len()));
        for need in needs {
            self.needed_by[need].push(self.choices.len());
        }
        self.needed_by.push(Vec::new());
        self.choices.push(along);
    }

    /// The first step that is missing when this is the last choice, where names are kept in order.
    pub(super) fn missing_after(&self, last: Option<usize>) -> u32 {
        let next = self.choices.get(last.map_or(0, |last| last + 1));
        next.filter(|_| self.in_order).map_or(u32::MAX, |step| step[0])
    }
}

/// All combinations of the contents of several inodes.
struct Product<'a> {
    epoch: Epoch,
    steps: &'a [u32],
    trees: &'a [Tree],
    /// For each path: nothing, no file, or the tree of its file.
    places: &'a [Option<Option<usize>>],
    /// The time of the last step that was chosen.
    start: Option<Time>,
}

impl Product<'_> {
    /// Shows all combinations.
    fn each(&self, visit: &mut dyn FnMut(&Found<'_>) -> Go) -> Complete {
        let mut nodes = vec![0_u32; self.trees.len()];
        let mut files = vec![Seen::Missing; self.places.len()];
        loop {
            if self.show(&nodes, &mut files, visit) == Go::Stop {
                return Complete::No;
            }
            if !self.advance(&mut nodes) {
                return Complete::Yes;
            }
        }
    }

    /// Shows these combinations.
    fn each_of(
        &self,
        combinations: &[Vec<u32>],
        visit: &mut dyn FnMut(&Found<'_>) -> Go,
    ) -> Complete {
        let mut files = vec![Seen::Missing; self.places.len()];
        let stops = |nodes: &Vec<u32>| self.show(nodes, &mut files, visit) == Go::Stop;
        if combinations.iter().any(stops) { Complete::No } else { Complete::Yes }
    }

    /// Shows one combination, and the same with stale blocks if there are such.
    fn show(
        &self,
        nodes: &[u32],
        files: &mut [Seen],
        visit: &mut dyn FnMut(&Found<'_>) -> Go,
    ) -> Go {
        let some_stale = self.picked(nodes).any(|node| node.stale.is_some());
        for stale in [false, true] {
            if stale && !some_stale {
                continue;
            }
            for (file, place) in files.iter_mut().zip(self.places) {
                *file = match place {
                    None => Seen::Missing,
                    Some(None) => Seen::NoFile,
                    Some(Some(tree)) => {
                        let node = &self.trees[*tree].nodes[nodes[*tree] as usize];
                        let sum = if stale { node.stale.unwrap_or(node.sum) } else { node.sum };
                        Seen::File(node.size, sum)
                    }
                };
            }
            // A micro-op is there from the moment after its time on, and a forced one, too.
            let times = self.picked(nodes).map(|node| node.time).chain(self.start);
            let latest = times.max().unwrap_or(Time(0)).max(self.epoch.barrier);
            let moment = Time(latest.0 + 1).min(self.epoch.last);
            let recipe = Recipe {
                barrier: self.epoch.barrier,
                moment,
                steps: self.steps,
                trees: self.trees,
                nodes,
                stale,
            };
            let found = Found { last_moment: self.epoch.last, files, recipe };
            if visit(&found) == Go::Stop {
                return Go::Stop;
            }
        }
        Go::On
    }

    fn picked<'b>(&'b self, nodes: &'b [u32]) -> impl Iterator<Item = &'b super::contents::Node> {
        self.trees.iter().zip(nodes).map(|(tree, node)| &tree.nodes[*node as usize])
    }

    /// Goes on to the next combination.
    fn advance(&self, nodes: &mut [u32]) -> bool {
        for (tree, node) in self.trees.iter().zip(nodes) {
            *node += 1;
            if (*node as usize) < tree.nodes.len() {
                return true;
            }
            *node = 0;
        }
        false
    }
}
