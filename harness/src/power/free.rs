//! The changes of an inode among which there is a choice, and all legal sets of them.

use super::Content;
use super::contents::{Choice, Undo, View};

/// The changes of an inode among which there is a choice.
pub(super) struct Free {
    /// The index of the first.
    pub(super) from: usize,
    /// For each change from there on: how many of its needs are not in the set; `None` for one
    /// that can't be chosen.
    pub(super) unmet: Vec<Option<u32>>,
    /// For each: those that need it.
    needed_by: Vec<Vec<u32>>,
    /// For each that needs one of some that are not in the set for certain: these.
    pub(super) helpers: Vec<Vec<usize>>,
    /// For each: those that need it, or another.
    helps: Vec<Vec<u32>>,
    /// For each that needs one of some: how many of them are in the set.
    helped: Vec<u32>,
}

/// Which way a search goes.
pub(super) enum Way<'a> {
    /// It adds a change, and this is how it will be undone.
    In(&'a mut Vec<Undo>),
    /// It takes a change back.
    Out(Undo),
}

impl Free {
    /// What is given by the steps, and what there is to choose.
    pub(super) fn of(view: &View, choice: &Choice<'_>) -> (Vec<u32>, Self) {
        let (at, from) = (choice.at, choice.first_free.changes);
        let changes = &at.inode.changes;
        let until = changes.partition_point(|change| change.time < choice.until).max(from);
        let mut given = Vec::new();
        // In the set, or of no effect and with nothing but such needs.
        let mut settled = vec![false; until - from];
        let mut unmet = vec![None; until - from];
        let mut needed_by = vec![Vec::new(); until - from];
        let mut helps = vec![Vec::new(); until - from];
        let mut all_helpers = vec![Vec::new(); until - from];
        for index in from..until {
            let change = &changes[index];
            // What it needs one of, if none of them is there.
            let mut helpers: Vec<u32> = at.inode.alternatives(change).collect();
            let is_there =
                |one: &u32| (*one as usize).checked_sub(from).is_none_or(|one| settled[one]);
            if helpers.iter().any(is_there) {
                helpers.clear();
            }
            let helpers: Vec<usize> = helpers.into_iter().map(|one| one as usize - from).collect();
            let helpless = !helpers.is_empty();
            let (sizes, all) = choice.pushed;
            let is_size = matches!(change.what, Content::Size(_));
            let open: Vec<usize> = change
                .needs
                .iter()
                .filter_map(|need| (*need as usize).checked_sub(from))
                .filter(|need| !settled[*need])
                .collect();
            if change.forced <= choice.barrier {
                settled[index - from] = true;
            } else if change.time < all || (is_size && change.time < sizes) {
                settled[index - from] = true;
                given.push(super::lower::count(index));
            } else if open.is_empty() && !helpless && view.is_moot(at, change) {
                settled[index - from] = true;
            } else {
                let has = |step: Option<u32>| step.is_none_or(|step| (choice.has_step)(step));
                let possible = has(change.resize)
                    && change.commit.is_none_or(|step| step < choice.first_missing)
                    && open.iter().all(|need| unmet[*need].is_some())
                    && (!helpless || helpers.iter().any(|helper| unmet[*helper].is_some()));
                if possible {
                    unmet[index - from] =
                        Some(super::lower::count(open.len()) + u32::from(helpless));
                    for helper in &helpers {
                        helps[*helper].push(super::lower::count(index));
                    }
                    all_helpers[index - from] = helpers;
                    for need in open {
                        needed_by[need].push(super::lower::count(index));
                    }
                }
            }
        }
        let helped = vec![0; until - from];
        (given, Self { from, unmet, needed_by, helpers: all_helpers, helps, helped })
    }

    /// Goes through all sets that have, with each change, all that it needs; each set is reached
    /// once, by adding its changes in the order of their times.
    pub(super) fn each_set(mut self, visit: &mut dyn FnMut(u32, u32, Way<'_>) -> Option<u32>) {
        let first: Vec<u32> = (0..self.unmet.len())
            .filter(|index| self.unmet[*index] == Some(0))
            .map(|index| super::lower::count(index + self.from))
            .collect();
        // Of each set on the way: what can be added, what is next of that, the set's own number.
        let mut way = vec![(first, 0_usize, 0_u32, u32::MAX)];
        let mut undos: Vec<Undo> = Vec::new();
        while let Some((open, next, node, _)) = way.last_mut() {
            let Some(change) = open.get(*next).copied() else {
                let (.., added) = way.pop().unwrap_or_default();
                if let Some(undo) = undos.pop() {
                    visit(0, 0, Way::Out(undo));
                    self.taken(added);
                }
                continue;
            };
            *next += 1;
            let (node, rest) = (*node, open[*next..].to_vec());
            let Some(child) = visit(node, change, Way::In(&mut undos)) else { return };
            let mut open = rest;
            for later in self.added(change) {
                let place = open.partition_point(|other| *other < later);
                open.insert(place, later);
            }
            way.push((open, 0, child, change));
        }
    }

    /// A change is in the set; returns those that can now be added.
    fn added(&mut self, change: u32) -> Vec<u32> {
        let index = change as usize - self.from;
        let mut possible = Vec::new();
        for place in 0..self.needed_by[index].len() {
            let later = self.needed_by[index][place];
            possible.extend((self.need(later, -1) == Some(0)).then_some(later));
        }
        for place in 0..self.helps[index].len() {
            let later = self.helps[index][place];
            let helped = &mut self.helped[later as usize - self.from];
            *helped += 1;
            if *helped == 1 && self.need(later, -1) == Some(0) {
                possible.push(later);
            }
        }
        possible
    }

    /// A change is not in the set any more.
    fn taken(&mut self, change: u32) {
        let index = change as usize - self.from;
        for place in 0..self.needed_by[index].len() {
            self.need(self.needed_by[index][place], 1);
        }
        for place in 0..self.helps[index].len() {
            let later = self.helps[index][place];
            let helped = &mut self.helped[later as usize - self.from];
            *helped -= 1;
            if *helped == 0 {
                self.need(later, 1);
            }
        }
    }

    fn need(&mut self, change: u32, more: i32) -> Option<u32> {
        let unmet = &mut self.unmet[change as usize - self.from];
        *unmet = unmet.and_then(|unmet| unmet.checked_add_signed(more));
        *unmet
    }
}
