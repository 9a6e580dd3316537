//! Where trials struck, along a line that can be drawn: the ops of the run with their bytes, or what was free.

use crate::at_rest::Harm;
use crate::fault::{Place, Point};
use crate::file_system;
use crate::op::Family;
use crate::plan::Sites;

/// What the line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Axis {
    /// The ops of the unbroken run, each as long as the bytes that it writes, or all as long, with a place before
    /// it and one after it.
    Run,
    /// How much was free of what.
    Free(file_system::Axis),
    /// The whole state file, and then its bytes.
    State,
    /// How many acks had been given.
    Acks,
    /// Moments, in their order.
    Moments,
}

/// The line of one subject.
#[derive(Clone, Debug)]
pub struct Line<'a> {
    sites: &'a Sites,
    /// Where each op begins.
    begins: Vec<u64>,
    end: u64,
    /// Whether bytes have no places.
    even: bool,
}

impl<'a> Line<'a> {
    /// The line of a subject with these sites.
    #[must_use]
    pub fn new(sites: &'a Sites) -> Self {
        Self { sites, begins: Vec::new(), end: 0, even: false }.laid_out()
    }

    /// The same with ops that are all as long, for what happens between them only.
    #[must_use]
    pub fn even(self) -> Self {
        Self { even: true, ..self }.laid_out()
    }

    fn laid_out(mut self) -> Self {
        self.end = 0;
        self.begins.clear();
        for op in 0..self.sites.sites.len() {
            self.begins.push(self.end);
            self.end += self.length(op) + 2;
        }
        self
    }

    /// How many bytes of an op have a place.
    #[must_use]
    pub fn length(&self, op: usize) -> u64 {
        self.sites.sites.get(op).map_or(0, |site| if self.even { 0 } else { site.length })
    }

    /// Where the ops begin, and how long the line is.
    #[must_use]
    pub fn begins(&self) -> (&[u64], u64) {
        (&self.begins, self.end)
    }

    /// The nth op of a family, from 1.
    #[must_use]
    pub fn nth(sites: &Sites, family: Family, nth: u32) -> Option<usize> {
        let nth = usize::try_from(nth.checked_sub(1)?).ok()?;
        let of_family = sites.sites.iter().enumerate().filter(|(_, s)| s.call.family() == family);
        of_family.map(|(op, _)| op).nth(nth)
    }

    /// The ops.
    #[must_use]
    pub fn sites(&self) -> &Sites {
        self.sites
    }

    fn begin(&self, op: usize) -> u64 {
        self.begins.get(op).copied().unwrap_or(self.end)
    }

    /// The op of a place, from none done to all done, if it is at one of those of the unbroken run.
    #[must_use]
    pub fn op(&self, place: &Place) -> Option<usize> {
        let op = match place {
            Place::Op(op, _) => op.0,
            Place::Call(family, nth, _) => Self::nth(self.sites, *family, *nth)?,
            Place::Meeting(meeting) => meeting.before as usize,
            Place::Free(..) | Place::Rest(_) | Place::Parting(_) | Place::Moment => return None,
        };
        (op <= self.sites.sites.len()).then_some(op)
    }

    /// Where the place of trial `n` is, on which line.
    #[must_use]
    pub fn at(&self, place: &Place, n: u64) -> (Axis, u64) {
        match place {
            Place::Op(op, point) => {
                let length = self.length(op.0);
                let inside = match point {
                    Point::Before => 0,
                    Point::Inside(byte) => byte.0.min(length),
                    Point::After => length + 1,
                };
                (Axis::Run, self.begin(op.0) + inside)
            }
            Place::Call(family, nth, _) => {
                let op = Self::nth(self.sites, *family, *nth);
                (Axis::Run, op.map_or(self.end, |op| self.begin(op)))
            }
            Place::Free(axis, free, _) => (Axis::Free(*axis), *free),
            Place::Rest(harming) => match harming.how {
                Harm::Cut(byte) | Harm::Flip(byte, _) => (Axis::State, byte + 1),
                // Not a byte of it.
                _ => (Axis::State, 0),
            },
            Place::Meeting(meeting) => (Axis::Run, self.begin(meeting.before as usize)),
            Place::Parting(_) | Place::Moment => (Axis::Moments, n),
        }
    }
}
