//! A slow and obvious reference for crash states: every subset of the micro-ops, by the three rules that `power` begins
//! with.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crashtest::power::profile::{Names, Pushes};
use crashtest::power::{Content, Ino, Kind, Lowered, StepChange, Time};

/// The reference tries 2^n subsets.
pub const FREE_MAX: usize = 13;

/// What the state files are; a missing one is not in it.
pub type State = BTreeMap<PathBuf, Vec<u8>>;

/// A micro-op: a step, or a change of an inode.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Micro {
    Step(u32),
    Change(u32, u32),
}

/// The reference: knows the micro-ops and the rules, and nothing of how they are enumerated.
pub struct Reference<'a> {
    lowered: &'a Lowered,
    all: Vec<Micro>,
}

impl<'a> Reference<'a> {
    pub fn new(lowered: &'a Lowered) -> Self {
        let steps = (0..lowered.steps.len()).map(|step| Micro::Step(step as u32));
        let changes = lowered.inodes.iter().enumerate().flat_map(|(ino, inode)| {
            (0..inode.changes.len()).map(move |change| Micro::Change(ino as u32, change as u32))
        });
        Self { lowered, all: steps.chain(changes).collect() }
    }

    fn times(&self, micro: Micro) -> (Time, Time) {
        match micro {
            Micro::Step(step) => {
                let step = &self.lowered.steps[step as usize];
                (step.time, step.forced)
            }
            Micro::Change(ino, change) => {
                let change = &self.lowered.inodes[ino as usize].changes[change as usize];
                (change.time, change.forced)
            }
        }
    }

    fn needs(&self, micro: Micro) -> Vec<Micro> {
        match micro {
            Micro::Step(index) => {
                let step = &self.lowered.steps[index as usize];
                let mut needs: Vec<_> = step.needs.iter().map(|need| Micro::Step(*need)).collect();
                if self.lowered.flags.names == Names::InOrder {
                    needs.extend((0..index).map(Micro::Step));
                }
                for (ino, inode) in self.lowered.inodes.iter().enumerate() {
                    for (change, found) in inode.changes.iter().enumerate() {
                        let is_size = matches!(found.what, Content::Size(_));
                        let pushed = match step.pushes {
                            Some((of, Pushes::Waits)) => of.0 as usize == ino,
                            Some((of, Pushes::Allocates)) => of.0 as usize == ino && is_size,
                            _ => false,
                        };
                        let waits = self.lowered.flags.commit_waits_for_data;
                        if found.time < step.time && (pushed || waits) {
                            needs.push(Micro::Change(ino as u32, change as u32));
                        }
                    }
                }
                needs
            }
            Micro::Change(ino, index) => {
                let change = &self.lowered.inodes[ino as usize].changes[index as usize];
                let own = change.needs.iter().map(|need| Micro::Change(ino, *need));
                // All of the journal up to there.
                let journal = change.commit.map_or(0, |step| step + 1);
                let steps = change.resize.into_iter().chain(0..journal).map(Micro::Step);
                own.chain(steps).collect()
            }
        }
    }

    /// Those of which one is needed, unless there are none: what was forced before can't bring it along.
    fn any_of(&self, micro: Micro) -> Vec<Micro> {
        let Micro::Change(ino, index) = micro else { return Vec::new() };
        let changes = &self.lowered.inodes[ino as usize].changes;
        let change = &changes[index as usize];
        let open = |other: &&u32| changes[**other as usize].forced > change.time;
        change.any_of.iter().filter(open).map(|other| Micro::Change(ino, *other)).collect()
    }

    /// The state files of every legal set at every moment; `None` if there are too many sets.
    pub fn states(&self, paths: &[PathBuf]) -> Option<BTreeSet<State>> {
        let mut states = BTreeSet::new();
        self.each(paths, &mut |_, state| {
            states.insert(state);
        })?;
        Some(states)
    }

    /// Shows the state files of every legal set with its moment.
    pub fn each(&self, paths: &[PathBuf], show: &mut dyn FnMut(Time, State)) -> Option<()> {
        for moment in 0..=self.lowered.end().0 {
            let moment = Time(moment);
            let (mut forced, mut free) = (Vec::new(), Vec::new());
            for micro in &self.all {
                match self.times(*micro) {
                    (_, since) if since < moment => forced.push(*micro),
                    (time, _) if time < moment => free.push(*micro),
                    _ => {}
                }
            }
            if free.len() > FREE_MAX {
                return None;
            }
            let needs: Vec<_> = free.iter().map(|micro| self.needs(*micro)).collect();
            let any_of: Vec<_> = free.iter().map(|micro| self.any_of(*micro)).collect();
            for subset in 0..1_u32 << free.len() {
                let is_in = |n: usize| subset >> n & 1 == 1;
                let set: BTreeSet<Micro> = forced
                    .iter()
                    .copied()
                    .chain((0..free.len()).filter(|n| is_in(*n)).map(|n| free[n]))
                    .collect();
                let has_all = |n: usize| needs[n].iter().all(|need| set.contains(need));
                let has_any = |n: usize| {
                    any_of[n].is_empty() || any_of[n].iter().any(|need| set.contains(need))
                };
                let legal = (0..free.len()).all(|n| !is_in(n) || (has_all(n) && has_any(n)));
                if legal {
                    self.survivors(&set, paths).into_iter().for_each(|state| show(moment, state));
                }
            }
        }
        Some(())
    }

    /// Applies the set in the order of time, byte by byte.
    fn survivors(&self, set: &BTreeSet<Micro>, paths: &[PathBuf]) -> Vec<State> {
        let mut names = self.lowered.first.clone();
        for micro in set {
            if let Micro::Step(step) = micro
                && let StepChange::Names(changes) = &self.lowered.steps[*step as usize].change
            {
                for (entry, ino) in changes {
                    names[entry.0 as usize] = *ino;
                }
            }
        }
        let look = |stale: bool| -> State {
            let file = |path: &PathBuf| {
                let mut ino = Ino(0);
                for name in path.iter() {
                    let entries = self.lowered.entries.iter();
                    let place = entries
                        .clone()
                        .position(|entry| entry.directory == ino && entry.name == name)?;
                    ino = names[place]?;
                }
                match self.lowered.inode(ino).kind {
                    Kind::File => Some((path.clone(), self.bytes(set, ino, stale))),
                    _ => None,
                }
            };
            paths.iter().filter_map(file).collect()
        };
        vec![look(false), look(true)]
    }

    fn bytes(&self, set: &BTreeSet<Micro>, ino: Ino, stale: bool) -> Vec<u8> {
        enum Event<'b> {
            Resize(u64),
            Size(u64),
            Data(u64, std::borrow::Cow<'b, [u8]>),
        }
        let inode = self.lowered.inode(ino);
        let mut events: Vec<(Time, usize, Event<'_>)> = Vec::new();
        for step in &inode.resizes {
            let found = &self.lowered.steps[*step as usize];
            if let (true, StepChange::Resize { length, .. }) =
                (set.contains(&Micro::Step(*step)), &found.change)
            {
                events.push((found.time, 0, Event::Resize(*length)));
            }
        }
        for (index, change) in inode.changes.iter().enumerate() {
            if set.contains(&Micro::Change(ino.0, index as u32)) {
                let event = match change.what {
                    Content::Size(size) => Event::Size(size),
                    Content::Data { lane, piece } => {
                        let piece = &inode.lanes[lane as usize].pieces[piece as usize - 1];
                        Event::Data(piece.at, self.lowered.data(piece))
                    }
                };
                events.push((change.time, 1 + index, event));
            }
        }
        events.sort_by_key(|(time, index, _)| (*time, *index));
        // Bytes as far as they were written; none where no write has put one.
        let mut size = inode.first.len() as u64;
        let mut bytes: Vec<Option<u8>> = inode.first.iter().map(|byte| Some(*byte)).collect();
        let (mut sized_at, mut cuts) = (Time(0), Vec::new());
        for (time, _, event) in &events {
            match event {
                Event::Resize(length) => {
                    (size, sized_at) = (*length, *time);
                    bytes.truncate(*length as usize);
                    cuts.push((*time, *length));
                }
                Event::Size(length) => (size, sized_at) = (*length, *time),
                Event::Data(at, data) => {
                    let end = *at as usize + data.len();
                    bytes.resize(bytes.len().max(end), None);
                    for (n, byte) in data.iter().enumerate() {
                        bytes[*at as usize + n] = Some(*byte);
                    }
                }
            }
        }
        bytes.resize(size as usize, None);
        let block = self.lowered.block_bytes as usize;
        let promised = |number: usize| {
            let start = (number * block) as u64;
            let cut = cuts.iter().filter(|(_, length)| *length <= start).map(|(time, _)| *time);
            let cut = cut.max();
            inode.lanes.iter().filter(|lane| lane.block == number as u64).any(|lane| {
                let since = |time: Time| cut.is_none_or(|cut| time > cut);
                lane.pieces.iter().any(|piece| piece.time <= sized_at && since(piece.time))
            })
        };
        let stale =
            stale && self.lowered.flags.unwritten == crashtest::power::profile::Unwritten::Anything;
        for (number, bytes) in bytes.chunks_mut(block).enumerate() {
            if stale && bytes.iter().all(Option::is_none) && promised(number) {
                bytes.fill(Some(crashtest::power::contents::STALE_BYTE));
            }
        }
        bytes.into_iter().map(Option::unwrap_or_default).collect()
    }
}
