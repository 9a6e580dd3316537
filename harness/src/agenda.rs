//! Which trials come next: the numbers 0 to n of each subject, or the front of a sweep.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::record::{Brief, Record};
use crate::shard::Shard;
use crate::sweep::{Number, STEPS_MAX, Sweep};
use crate::verdict::Why;

/// Trials of one subject, one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The place of the subject in the plan.
    pub subject: usize,
    /// The number of the first.
    pub start: u64,
    /// How far apart the numbers are.
    pub stride: u64,
    /// How many.
    pub count: u64,
}

impl Range {
    /// The numbers.
    pub fn numbers(self) -> impl Iterator<Item = u64> {
        (0..self.count).map(move |n| self.start + n * self.stride)
    }

    /// Without the first `done`.
    #[must_use]
    pub fn after(self, done: u64) -> Self {
        let (start, count) = (self.start + done * self.stride, self.count.saturating_sub(done));
        Self { start, count, ..self }
    }
}

/// What is still to do.
#[derive(Clone, Debug)]
pub enum Agenda {
    /// A number of trials of each subject.
    Sampled(Sampled),
    /// A sweep of each subject.
    Swept(Vec<Front>),
}

impl Agenda {
    /// Hands out the next trials in a row, at most `count` of them, but at least one.
    pub fn next(&mut self, count: u64) -> Option<Range> {
        match self {
            Self::Sampled(sampled) => sampled.next(count.max(1)),
            // A subject that waits for an answer lets the next one begin.
            Self::Swept(fronts) => fronts.iter_mut().find_map(|front| front.next(count)),
        }
    }

    /// Hears of a trial that was handed out.
    pub fn heard(&mut self, record: &Record) {
        if let Self::Swept(fronts) = self
            && let Some(front) = fronts.get_mut(record.subject)
        {
            front.heard(record.n, Heard::of(record));
        }
    }

    /// Hears of a trial that an earlier part of this run has done, before any is handed out; false
    /// if that was said before.
    pub fn recall(&mut self, record: &Record) -> bool {
        match self {
            Self::Sampled(sampled) => sampled.cross_out(record.subject, record.n),
            Self::Swept(fronts) => fronts
                .get_mut(record.subject)
                .is_some_and(|front| front.recall(record.n, Heard::of(record))),
        }
    }

    /// How many are known to be left, handed out or not.
    #[must_use]
    pub fn left(&self) -> u64 {
        match self {
            Self::Sampled(sampled) => sampled.left(),
            Self::Swept(fronts) => fronts.iter().map(Front::left).sum(),
        }
    }

    /// How many lanes of a subject did not come to their end.
    #[must_use]
    pub fn open_lanes(&self, subject: usize) -> usize {
        match self {
            Self::Sampled(_) => 0,
            Self::Swept(fronts) => fronts.get(subject).map_or(0, Front::open_lanes),
        }
    }
}

impl Agenda {
    /// How many lanes of a subject came to their end: a trial that was not struck.
    #[must_use]
    pub fn whole_lanes(&self, subject: usize) -> Option<u64> {
        match self {
            Self::Sampled(_) => None,
            Self::Swept(fronts) => fronts.get(subject).map(Front::whole_lanes),
        }
    }

    /// The last step of any lane of a subject that was struck.
    #[must_use]
    pub fn last_struck(&self, subject: usize) -> u32 {
        match self {
            Self::Sampled(_) => 0,
            Self::Swept(fronts) => fronts.get(subject).map_or(0, Front::last_struck),
        }
    }
}

/// A number of trials of each subject.
#[derive(Clone, Debug)]
pub struct Sampled {
    /// For each subject, which of its trials need not be done any more.
    done: Vec<Vec<bool>>,
    /// The subject that is being tried, and the trial from which on to look.
    from: (usize, u64),
    shard: Shard,
}

impl Sampled {
    /// Those trials of each subject, from 0 on, that are a shard's.
    #[must_use]
    pub fn new(trials: Vec<u64>, shard: Shard) -> Self {
        let fresh = |count: u64| vec![false; usize::try_from(count).unwrap_or(usize::MAX)];
        Self { done: trials.into_iter().map(fresh).collect(), from: (0, 0), shard }
    }

    fn cross_out(&mut self, subject: usize, n: u64) -> bool {
        let of_subject = self.done.get_mut(subject).filter(|_| self.shard.owns(n));
        let done = of_subject.zip(usize::try_from(n).ok()).and_then(|(done, n)| done.get_mut(n));
        done.is_some_and(|done| !std::mem::replace(done, true))
    }

    fn left(&self) -> u64 {
        let open = |done: &Vec<bool>| {
            done.iter().zip(0..).filter(|(done, n)| !**done && self.shard.owns(*n)).count() as u64
        };
        self.done.iter().map(open).sum()
    }

    fn next(&mut self, count: u64) -> Option<Range> {
        let stride = u64::from(self.shard.of());
        while let Some(done) = self.done.get(self.from.0) {
            let open = |n: &u64| usize::try_from(*n).is_ok_and(|n| done.get(n) == Some(&false));
            let end = done.len() as u64;
            let mut own =
                (self.shard.next_from(self.from.1)..end).step_by(self.shard.of() as usize);
            let Some(start) = own.find(open) else {
                self.from = (self.from.0 + 1, 0);
                continue;
            };
            let later = own.take_while(open).take(usize::try_from(count - 1).unwrap_or(0)).count();
            let count = later as u64 + 1;
            self.from.1 = start + count * stride;
            return Some(Range { subject: self.from.0, start, stride, count });
        }
        None
    }
}

/// How many steps of a lane whose length is not known are tried at once, at most.
const WINDOW_MAX: u32 = 16;
/// After so many trials in a row that say nothing, a lane is given up and stays open.
const UNCLEAR_MAX: u32 = 32;

/// What a trial says about its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// It was struck: there may be a next place.
    Struck,
    /// It was not: this was the end.
    NotReached,
    /// It ended in some other way (killed from outside, out of time), and was not struck.
    Unclear,
}

impl Heard {
    fn of(record: &Record) -> Self {
        match (&record.verdict, record.struck) {
            (Brief::Inconclusive(Why::NotReached), _) => Self::NotReached,
            (_, true) => Self::Struck,
            (_, false) => Self::Unclear,
        }
    }
}

/// A lane, or one below a step of it.
type LaneKey = (u32, Option<u32>);

/// How far one lane has come.
#[derive(Clone, Debug)]
struct Progress {
    /// The last step that was asked for.
    asked: u32,
    /// How many of them have not been heard of.
    waiting: u32,
    window: u32,
    ended: bool,
    /// Whether it ended because nothing was struck any more.
    whole: bool,
    /// How many trials in a row have said nothing.
    unclear: u32,
    /// The last step that was struck.
    struck: u32,
}

/// The front of the sweep of one subject.
#[derive(Clone, Debug)]
pub struct Front {
    subject: usize,
    sweep: Sweep,
    lanes: BTreeMap<LaneKey, Progress>,
    queue: VecDeque<Range>,
    /// What was done in an earlier part of this run.
    earlier: HashMap<u64, Heard>,
    /// How many trials may still be handed out.
    budget: u64,
    /// Whose steps are handed out.
    shard: Shard,
}

impl Front {
    /// The beginning of a shard's part of a sweep, of at most `budget` trials.
    ///
    /// The steps of a lane are shared out, and each part goes on until one of its own is not struck. A lane
    /// below a step belongs to whose step it is, and one that waits for another to whose that is.
    #[must_use]
    pub fn new(subject: usize, sweep: Sweep, budget: Option<u64>, shard: Shard) -> Self {
        let mut front = Self {
            subject,
            lanes: BTreeMap::new(),
            queue: VecDeque::new(),
            earlier: HashMap::new(),
            budget: budget.unwrap_or(u64::MAX),
            shard,
            sweep,
        };
        for lane in
            (0..front.sweep.lanes()).filter(|lane| !front.sweep.waits(*lane)).collect::<Vec<_>>()
        {
            if front.is_foreign(lane) {
                continue;
            }
            // The one after the last that is known is to show that it is the last. With a budget
            // all lanes begin before any goes on.
            let known = front.sweep.known(lane).min(STEPS_MAX - 1);
            let own = (1..=known).filter(|step| front.owns(lane, *step)).count();
            let window = u32::try_from(own + 1).unwrap_or(STEPS_MAX);
            front.open((lane, None), if budget.is_some() { 1 } else { window });
        }
        front
    }

    /// Whether a lane for which others wait is another shard's, with these.
    fn is_foreign(&self, lane: u32) -> bool {
        self.is_awaited(lane) && !self.shard.owns(u64::from(lane))
    }

    fn is_awaited(&self, lane: u32) -> bool {
        self.sweep.wakes(lane).next().is_some()
    }

    /// Whether a lane is shared out step by step.
    fn is_shared(&self, lane: u32) -> bool {
        !self.sweep.waits(lane) && !self.is_awaited(lane)
    }

    fn owns(&self, lane: u32, step: u32) -> bool {
        // So that not all lanes begin with the same shard.
        !self.is_shared(lane) || self.shard.owns(u64::from(lane) + u64::from(step))
    }

    fn open(&mut self, key: LaneKey, window: u32) {
        let progress = Progress {
            asked: 0,
            waiting: 0,
            window,
            ended: false,
            whole: false,
            unclear: 0,
            struck: 0,
        };
        self.lanes.insert(key, progress);
        self.ask(key);
    }

    /// Puts the next steps of a lane into the queue.
    fn ask(&mut self, key: LaneKey) {
        let (lane, below) = key;
        let shared = below.is_none() && self.is_shared(lane);
        let stride = if shared { self.shard.of() } else { 1 };
        let Some(progress) = self.lanes.get_mut(&key) else { return };
        let first = match shared {
            true => {
                let next = u64::from(lane) + u64::from(progress.asked) + 1;
                progress.asked + 1 + u32::try_from(self.shard.next_from(next) - next).unwrap_or(0)
            }
            false => progress.asked + 1,
        };
        let room = if first > STEPS_MAX { 0 } else { (STEPS_MAX - first) / stride + 1 };
        let count = progress.window.min(room);
        if count == 0 {
            progress.ended = true;
            return;
        }
        progress.asked = first + (count - 1) * stride;
        progress.waiting += count;
        progress.window = (progress.window * 2).min(WINDOW_MAX);
        let stride = u64::from(stride);
        let (start, stride) = match below {
            None => (Number { lane, step: first, below: 0 }, stride << 16),
            Some(step) => (Number { lane, step, below: first }, stride),
        };
        let (subject, count) = (self.subject, u64::from(count));
        self.queue.push_back(Range { subject, start: start.kept(), stride, count });
    }

    fn next(&mut self, count: u64) -> Option<Range> {
        loop {
            let range = self.queue.pop_front()?;
            if let Some(heard) = self.earlier.remove(&range.start) {
                self.put_back(range.after(1));
                self.heard(range.start, heard);
                continue;
            }
            let fresh = range.numbers().take_while(|n| !self.earlier.contains_key(n)).count();
            let count = count.max(1).min(fresh as u64).min(self.budget);
            if count == 0 {
                self.queue.push_front(range);
                return None;
            }
            self.budget -= count;
            self.put_back(range.after(count));
            return Some(Range { count, ..range });
        }
    }

    fn put_back(&mut self, range: Range) {
        if range.count > 0 {
            self.queue.push_front(range);
        }
    }

    fn recall(&mut self, n: u64, heard: Heard) -> bool {
        let fresh = self.earlier.insert(n, heard).is_none();
        self.budget -= u64::from(fresh).min(self.budget);
        fresh
    }

    fn heard(&mut self, n: u64, heard: Heard) {
        let number = Number::from_kept(n);
        let key = (number.lane, (number.below > 0).then_some(number.step));
        let Some(progress) = self.lanes.get_mut(&key) else { return };
        progress.waiting = progress.waiting.saturating_sub(1);
        match heard {
            Heard::Struck => {
                progress.unclear = 0;
                let place = if number.below > 0 { number.below } else { number.step };
                progress.struck = progress.struck.max(place);
            }
            Heard::NotReached => (progress.ended, progress.whole) = (true, true),
            Heard::Unclear => progress.unclear += 1,
        }
        progress.ended |= progress.unclear >= UNCLEAR_MAX;
        let (waiting, ended) = (progress.waiting, progress.ended);
        if heard == Heard::Struck && number.below == 0 {
            for other in self.sweep.wakes(number.lane) {
                if !self.lanes.contains_key(&(other, None)) {
                    self.open((other, None), 1);
                }
            }
        }
        if heard == Heard::Struck && number.below == 0 && self.sweep.goes_deeper(number.lane) {
            self.open((number.lane, Some(number.step)), 4);
        }
        if waiting == 0 && !ended {
            self.ask(key);
        }
    }

    fn left(&self) -> u64 {
        let waiting: u64 = self.lanes.values().map(|lane| u64::from(lane.waiting)).sum();
        let queued: u64 = self.queue.iter().map(|range| range.count).sum();
        // What is queued and will not be handed out is not to be waited for.
        waiting - queued.saturating_sub(self.budget).min(waiting)
    }

    fn open_lanes(&self) -> usize {
        self.lanes.values().filter(|lane| !lane.whole).count()
    }

    fn whole_lanes(&self) -> u64 {
        self.lanes.values().filter(|lane| lane.whole).count() as u64
    }

    /// The last step of a lane that was struck.
    fn last_struck(&self) -> u32 {
        self.lanes
            .iter()
            .filter(|(key, _)| key.1.is_none())
            .map(|(_, lane)| lane.struck)
            .max()
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{FaultKind, Nature, Place};
    use crate::file_system::Axis;
    use crate::plan::Sites;
    use crate::sweep::{Depth, Reach};

    fn front(depth: Depth, budget: Option<u64>) -> Agenda {
        let sites = Sites { sites: Vec::new(), duration_us: 0 };
        let reach = Reach { depth, axes: vec![Axis::Space], ..Reach::default() };
        let sweep = Sweep::new(FaultKind::DiskFull, &sites, &reach);
        Agenda::Swept(vec![Front::new(0, sweep, budget, Shard::default())])
    }

    fn record(n: u64, struck: bool) -> Record {
        Record {
            n,
            subject: 0,
            at: Place::Moment,
            struck,
            met: None,
            nature: Nature::Natural,
            acks: 0,
            verdict: if struck { Brief::Pass } else { Brief::Inconclusive(Why::NotReached) },
            leftovers: false,
            evidence: None,
        }
    }

    /// Does trials until there are none, and says which; `struck` says whether one is struck.
    fn sweep(agenda: &mut Agenda, struck: impl Fn(Number) -> bool) -> Vec<Number> {
        let mut done = Vec::new();
        while let Some(range) = agenda.next(3) {
            for n in range.numbers() {
                let number = Number::from_kept(n);
                done.push(number);
                agenda.heard(&record(n, struck(number)));
            }
        }
        assert_eq!(agenda.left(), 0);
        done
    }

    #[test]
    fn what_is_done_is_not_handed_out_again() {
        let mut sampled = Sampled::new(vec![5, 5], Shard::default());
        assert!(sampled.cross_out(0, 3));
        assert!(!sampled.cross_out(0, 3));
        assert!(!sampled.cross_out(0, 5) && !sampled.cross_out(2, 0));
        assert_eq!(sampled.left(), 9);
        let ranges: Vec<_> =
            std::iter::from_fn(|| sampled.next(4)).map(|r| (r.subject, r.start, r.count)).collect();
        assert_eq!(ranges, [(0, 0, 3), (0, 4, 1), (1, 0, 4), (1, 4, 1)]);
    }

    #[test]
    fn the_parts_of_a_sample_are_the_sample_and_do_not_overlap() {
        let mut done = Vec::new();
        for shard in (0..3).filter_map(|index| Shard::new(index, 3)) {
            let mut sampled = Sampled::new(vec![10, 4], shard);
            assert!(sampled.left().abs_diff(5) <= 1);
            while let Some(range) = sampled.next(2) {
                done.extend(range.numbers().map(|n| (range.subject, n)));
            }
        }
        done.sort_unstable();
        let all = (0..10).map(|n| (0, n)).chain((0..4).map(|n| (1, n)));
        assert_eq!(done, all.collect::<Vec<_>>());
    }

    #[test]
    fn a_lane_goes_on_until_a_trial_is_not_struck() {
        for length in [0, 1, 5, 40] {
            let mut agenda = front(Depth::One, None);
            let done = sweep(&mut agenda, |number| number.step <= length);
            let struck = done.iter().filter(|number| number.step <= length).count();
            assert_eq!(struck, length as usize);
            assert!(done.len() <= length as usize + WINDOW_MAX as usize);
            assert_eq!(agenda.open_lanes(0), 0);
        }
    }

    #[test]
    fn the_parts_of_a_sweep_are_the_sweep_and_do_not_overlap() {
        let struck = |number: Number| number.step <= 9 && number.below <= 2;
        let whole = sweep(&mut front(Depth::Two, None), struck);
        let parts = (0..4).filter_map(|index| Shard::new(index, 4)).map(|shard| {
            let mut agenda = front(Depth::Two, None);
            if let Agenda::Swept(fronts) = &mut agenda {
                let sweep = fronts[0].sweep.clone();
                fronts[0] = Front::new(0, sweep, None, shard);
            }
            sweep(&mut agenda, struck)
        });
        let mut parts: Vec<_> = parts.flatten().collect();
        parts.sort();
        let done = parts.len();
        parts.dedup();
        assert_eq!(done, parts.len());
        let all_that_strike = |numbers: &[Number]| {
            let mut numbers: Vec<_> = numbers.iter().copied().filter(|n| struck(*n)).collect();
            numbers.sort();
            numbers
        };
        assert_eq!(all_that_strike(&parts), all_that_strike(&whole));
    }

    #[test]
    fn each_step_that_was_struck_opens_a_lane_below() {
        let mut agenda = front(Depth::Two, None);
        let done = sweep(&mut agenda, |number| number.step <= 3 && number.below <= number.step);
        let below = |step: u32| done.iter().filter(|n| n.step == step && n.below > 0).count();
        assert_eq!((below(1), below(3), below(4)), (4, 4, 0));
    }

    #[test]
    fn a_budget_is_kept_and_lanes_stay_open() {
        let mut agenda = front(Depth::One, Some(7));
        assert_eq!(sweep(&mut agenda, |_| true).len(), 7);
        assert_eq!(agenda.open_lanes(0), 1);
    }

    #[test]
    fn a_sweep_goes_on_where_it_was_interrupted() {
        let struck = |number: Number| number.step <= 9 && number.below <= 2;
        let whole = sweep(&mut front(Depth::Two, None), struck);
        for kept in [0, 1, 5, 17, whole.len()] {
            let mut agenda = front(Depth::Two, None);
            for number in &whole[..kept] {
                assert!(agenda.recall(&record(number.kept(), struck(*number))));
            }
            let mut all = sweep(&mut agenda, struck);
            all.extend(&whole[..kept]);
            all.sort();
            let mut wanted = whole.clone();
            wanted.sort();
            assert_eq!(all, wanted, "{kept}");
        }
    }
}
