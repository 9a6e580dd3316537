//! Which trials come next: the numbers 0 to n of each subject, or the front of a sweep.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::record::{Brief, Record};
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
    /// Hands out the next trials in a row, at most `count` of them.
    pub fn next(&mut self, count: u64) -> Option<Range> {
        match self {
            Self::Sampled(sampled) => sampled.next(count),
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
    /// The last step of any lane of a subject that was struck.
    #[must_use]
    pub fn last_struck(&self, subject: usize) -> u32 {
        match self {
            Self::Sampled(_) => 0,
            Self::Swept(fronts) => fronts.get(subject).map_or(0, Front::last_struck),
        }
    }
}

/// The same number of trials of each subject.
#[derive(Clone, Debug)]
pub struct Sampled {
    each: u64,
    done: Vec<bool>,
    from: usize,
}

impl Sampled {
    /// Trials 0 to `each` of so many subjects.
    #[must_use]
    pub fn new(subjects: usize, each: u64) -> Self {
        let total = usize::try_from(each).unwrap_or(usize::MAX).saturating_mul(subjects);
        Self { each, done: vec![false; total], from: 0 }
    }

    /// Leaves out the trials of a subject from `all` on.
    pub fn end(&mut self, subject: usize, all: u64) {
        for n in all..self.each {
            self.cross_out(subject, n);
        }
    }

    fn index(&self, subject: usize, n: u64) -> Option<usize> {
        let first = subject.checked_mul(usize::try_from(self.each).ok()?)?;
        (n < self.each).then_some(first + usize::try_from(n).ok()?)
    }

    fn cross_out(&mut self, subject: usize, n: u64) -> bool {
        let index = self.index(subject, n);
        let done = index.and_then(|index| self.done.get_mut(index));
        done.is_some_and(|done| !std::mem::replace(done, true))
    }

    fn left(&self) -> u64 {
        self.done.iter().filter(|done| !**done).count() as u64
    }

    fn next(&mut self, count: u64) -> Option<Range> {
        let start = self.from + self.done[self.from..].iter().position(|done| !done)?;
        let (subject, first) = (start as u64 / self.each, start as u64 % self.each);
        // Not past the end of this subject.
        let wanted = usize::try_from(count.clamp(1, self.each - first)).unwrap_or(usize::MAX);
        let free = self.done[start..].iter().take(wanted).take_while(|done| !**done);
        let count = free.count();
        self.from = start + count;
        let subject = usize::try_from(subject).unwrap_or(usize::MAX);
        Some(Range { subject, start: first, stride: 1, count: count as u64 })
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
}

impl Front {
    /// The beginning of a sweep, of at most `budget` trials.
    #[must_use]
    pub fn new(subject: usize, sweep: Sweep, budget: Option<u64>) -> Self {
        let mut front = Self {
            subject,
            lanes: BTreeMap::new(),
            queue: VecDeque::new(),
            earlier: HashMap::new(),
            budget: budget.unwrap_or(u64::MAX),
            sweep,
        };
        for lane in
            (0..front.sweep.lanes()).filter(|lane| !front.sweep.waits(*lane)).collect::<Vec<_>>()
        {
            // The one after the last that is known is to show that it is the last. With a budget
            // all lanes begin before any goes on.
            let known = front.sweep.known(lane).min(STEPS_MAX - 1) + 1;
            let window = if budget.is_some() { 1 } else { known };
            front.open((lane, None), window);
        }
        front
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
        let Some(progress) = self.lanes.get_mut(&key) else { return };
        let count = progress.window.min(STEPS_MAX - progress.asked);
        if count == 0 {
            progress.ended = true;
            return;
        }
        let first = progress.asked + 1;
        progress.asked += count;
        progress.waiting += count;
        progress.window = (progress.window * 2).min(WINDOW_MAX);
        let (start, stride) = match key {
            (lane, None) => (Number { lane, step: first, below: 0 }, 1 << 16),
            (lane, Some(step)) => (Number { lane, step, below: first }, 1),
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
        Agenda::Swept(vec![Front::new(0, sweep, budget)])
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
        let mut sampled = Sampled::new(2, 5);
        assert!(sampled.cross_out(0, 3));
        assert!(!sampled.cross_out(0, 3));
        assert!(!sampled.cross_out(0, 5) && !sampled.cross_out(2, 0));
        assert_eq!(sampled.left(), 9);
        let ranges: Vec<_> =
            std::iter::from_fn(|| sampled.next(4)).map(|r| (r.subject, r.start, r.count)).collect();
        assert_eq!(ranges, [(0, 0, 3), (0, 4, 1), (1, 0, 4), (1, 4, 1)]);
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
