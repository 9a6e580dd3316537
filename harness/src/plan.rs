//! Which trials a run consists of: a function of the seed and of what the unbroken run did.
//!
//! Trial `n` of a subject depends on nothing but the seed, the subject's sites and `n`, so that any
//! worker can make any trial, and a run that was interrupted goes on where it stopped.

use std::time::Duration;

use clap::ValueEnum;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::confirm::Listed;
use crate::fault::{Fault, FaultKind, Nature, Point, Strike};
use crate::op::{ByteOffset, Call, Effect, OpIndex, Trace};
use crate::sweep::{Number, Reach, Sweep};

/// The page size at which Linux cuts a killed write.
pub const PAGE_BYTES: u64 = 4096;

/// What draws everything that is drawn in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Seed(pub u64);

/// Where faults may strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// After any byte, and at op boundaries.
    Byte,
    /// After any page, and at op boundaries.
    Page,
    /// At op boundaries only.
    Op,
}

/// One op of the unbroken run at which a fault can strike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// The op in the trace.
    pub op: OpIndex,
    /// Its kind.
    pub call: Call,
    /// Which occurrence of that kind it is, from 1.
    pub nth: u32,
    /// The file that it is about, for people.
    pub path: String,
    /// Where its first byte goes in the file, when it moves bytes.
    pub offset: ByteOffset,
    /// How many bytes it moves.
    pub length: u64,
    /// Whether it is an open that makes the file when it is missing.
    pub creates: bool,
}

/// All places of one subject at which faults can strike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sites {
    /// The ops, in their order.
    pub sites: Vec<Site>,
    /// How long the unbroken run took.
    pub duration_us: u64,
}

impl Sites {
    /// Those of a run whose ops move so many bytes.
    #[cfg(test)]
    pub(crate) fn of_lengths(lengths: &[u64]) -> Self {
        let site = |(op, length): (usize, &u64)| Site {
            op: OpIndex(op),
            call: Call::Write,
            nth: 1,
            path: "state".to_owned(),
            offset: ByteOffset(0),
            length: *length,
            creates: false,
        };
        Self { sites: lengths.iter().enumerate().map(site).collect(), duration_us: 0 }
    }

    /// The sites of a trace.
    #[must_use]
    pub fn of(trace: &Trace, duration: Duration) -> Self {
        let sites = trace.ops.iter().enumerate().map(|(index, op)| Site {
            op: OpIndex(index),
            call: op.call,
            nth: op.nth,
            path: op.effect.path().to_string_lossy().into_owned(),
            offset: match &op.effect {
                Effect::Write { offset, .. } => *offset,
                _ => ByteOffset(0),
            },
            length: if op.call == Call::Store { 0 } else { op.written() as u64 },
            creates: matches!(op.effect, Effect::Open { create: true, .. }),
        });
        Self {
            sites: sites.collect(),
            duration_us: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
        }
    }

    /// How many bytes the ops move.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.sites.iter().map(|site| site.length).sum()
    }

    /// Whether a program can have done this: no file is longer than Linux lets it be (2^63 - 1 bytes), and all ops
    /// together move no more than that. What a file from elsewhere says need not be so.
    #[must_use]
    pub fn are_possible(&self) -> bool {
        let most = i64::MAX.unsigned_abs();
        let ends =
            |site: &Site| site.offset.0.checked_add(site.length).is_some_and(|end| end <= most);
        let all = self.sites.iter().try_fold(0_u64, |sum, site| sum.checked_add(site.length));
        self.sites.iter().all(ends) && all.is_some_and(|bytes| bytes <= most)
    }
}

/// Makes the trials of one subject.
#[derive(Clone, Debug)]
pub enum Planner {
    /// Places are drawn.
    Sampled(Sampler),
    /// All places are struck, one after another.
    Swept(Sweep),
    /// The places are given.
    Listed(Listed),
}

impl Planner {
    /// A planner for the subject with these sites; `stream` keeps subjects apart.
    #[must_use]
    pub fn new(
        seed: Seed,
        stream: u64,
        kind: FaultKind,
        granularity: Granularity,
        sites: Sites,
    ) -> Self {
        Self::Sampled(Sampler::new(seed, stream, kind, granularity, sites))
    }

    /// A planner that sweeps.
    #[must_use]
    pub fn sweeping(kind: FaultKind, sites: &Sites, reach: &Reach) -> Self {
        Self::Swept(Sweep::new(kind, sites, reach))
    }

    /// The fault of trial `n`; `None` when there is nowhere to strike.
    #[must_use]
    pub fn fault(&self, n: u64) -> Option<Fault> {
        match self {
            Self::Sampled(sampler) => sampler.fault(n),
            Self::Swept(sweep) => sweep.fault(Number::from_kept(n)),
            Self::Listed(listed) => {
                usize::try_from(n).ok().and_then(|n| listed.faults.get(n)).cloned()
            }
        }
    }

    /// How many trials strike each op boundary once, where places are drawn.
    #[must_use]
    pub fn trials_of_every_boundary(&self) -> Option<u64> {
        match self {
            Self::Sampled(sampler) => Some(sampler.trials_of_every_boundary()),
            Self::Swept(_) | Self::Listed(_) => None,
        }
    }

    /// Whether there is anywhere to strike.
    #[must_use]
    pub fn has_places(&self) -> bool {
        match self {
            Self::Sampled(sampler) => sampler.fault(0).is_some(),
            Self::Swept(sweep) => sweep.lanes() > 0,
            Self::Listed(listed) => !listed.faults.is_empty(),
        }
    }

    /// Whether a list holds all faults that there are.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        matches!(self, Self::Listed(listed) if listed.whole)
    }

    /// How many different faults there are, if they can be counted beforehand.
    #[must_use]
    pub fn population(&self) -> Option<u64> {
        match self {
            Self::Sampled(sampler) => sampler.population(),
            Self::Swept(_) | Self::Listed(_) => None,
        }
    }
}

/// Draws places.
#[derive(Clone, Debug)]
pub struct Sampler {
    seed: Seed,
    kind: FaultKind,
    sites: Sites,
    /// Before and after each op, in a seeded order.
    boundaries: Vec<(usize, Point)>,
    /// For each op, how many places inside lie before it, and its own; one more at the end.
    inside: Vec<u64>,
    granularity: Granularity,
}

impl Sampler {
    /// A sampler for the subject with these sites; `stream` keeps subjects apart.
    #[must_use]
    pub fn new(
        seed: Seed,
        stream: u64,
        kind: FaultKind,
        granularity: Granularity,
        sites: Sites,
    ) -> Self {
        let mut boundaries: Vec<_> = (0..sites.sites.len())
            .filter(|site| sites.sites[*site].call != Call::Store)
            .flat_map(|site| [(site, Point::Before), (site, Point::After)])
            .collect();
        let seed = Seed(seed.0 ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut rng = ChaCha8Rng::seed_from_u64(seed.0);
        for last in (1..boundaries.len()).rev() {
            boundaries.swap(last, rng.random_range(0..=last));
        }
        if kind == FaultKind::ShortWrite {
            boundaries.clear();
        }
        let places = sites.sites.iter().scan(0, |sum, site| {
            *sum += places_inside(site, granularity);
            Some(*sum)
        });
        let inside = std::iter::once(0).chain(places).collect();
        Self { seed, kind, sites, boundaries, inside, granularity }
    }

    /// How many different faults there are, if they can be counted.
    #[must_use]
    pub fn population(&self) -> Option<u64> {
        match self.kind {
            FaultKind::KillAfter
            | FaultKind::Errno
            | FaultKind::DiskFull
            | FaultKind::PowerLoss
            | FaultKind::PowerCut
            | FaultKind::AtRest
            | FaultKind::Concurrent
            | FaultKind::Parted => None,
            FaultKind::Kill | FaultKind::ShortWrite => {
                Some(self.boundaries.len() as u64 + self.places_inside())
            }
        }
    }

    /// Every second trial strikes inside a write, if there is anything inside.
    fn trials_of_every_boundary(&self) -> u64 {
        let boundaries = self.boundaries.len() as u64;
        if self.places_inside() > 0 { 2 * boundaries } else { boundaries }
    }

    fn places_inside(&self) -> u64 {
        self.inside.last().copied().unwrap_or(0)
    }

    /// The fault of trial `n`; `None` when there is nowhere to strike.
    ///
    /// Even trials take the op boundaries, in a seeded order and each once before any comes again;
    /// odd trials strike inside a write, at a byte drawn uniformly over all that are written.
    #[must_use]
    pub fn fault(&self, n: u64) -> Option<Fault> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed.0);
        // A number from a file can be any; stream 0 has drawn the order of the boundaries.
        rng.set_stream(n.wrapping_add(1));
        if self.kind == FaultKind::KillAfter {
            // A little past the end, so that the moments around the exit are met too.
            let delay = rng.random_range(0..=self.sites.duration_us.saturating_mul(21) / 20);
            return Some(Fault::KillAfter { delay_us: Duration::from_micros(delay) });
        }
        let turn_inside = n % 2 == 1 || self.boundaries.is_empty();
        if turn_inside && self.places_inside() > 0 {
            let place = rng.random_range(0..self.places_inside());
            return Some(self.strike_inside(place));
        }
        let turn = if self.places_inside() > 0 { n / 2 } else { n };
        let index =
            usize::try_from(turn).unwrap_or(usize::MAX).checked_rem(self.boundaries.len())?;
        let (site, point) = self.boundaries[index];
        Some(self.strike(site, point, Nature::Natural))
    }

    fn strike_inside(&self, place: u64) -> Fault {
        let site = self.inside.partition_point(|before| *before <= place) - 1;
        let nth = place - self.inside[site] + 1;
        let offset = self.sites.sites[site].offset.0;
        let byte = match self.granularity {
            Granularity::Byte => nth,
            Granularity::Page | Granularity::Op => nth * PAGE_BYTES - offset % PAGE_BYTES,
        };
        let natural = (offset + byte).is_multiple_of(PAGE_BYTES);
        let nature = if natural { Nature::Natural } else { Nature::Forced };
        self.strike(site, Point::Inside(ByteOffset(byte)), nature)
    }

    fn strike(&self, site: usize, point: Point, nature: Nature) -> Fault {
        let Site { op, call, nth, .. } = self.sites.sites[site];
        let strike = Strike { op, call, nth, point, nature };
        match self.kind {
            FaultKind::ShortWrite => Fault::ShortWrite(strike),
            _ => Fault::Kill(strike),
        }
    }
}

/// How many places strictly inside an op a fault can strike at.
fn places_inside(site: &Site, granularity: Granularity) -> u64 {
    match granularity {
        _ if site.length == 0 => 0,
        Granularity::Byte => site.length - 1,
        Granularity::Page => {
            let end = site.offset.0 + site.length;
            (end - 1) / PAGE_BYTES - site.offset.0 / PAGE_BYTES
        }
        Granularity::Op => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_boundary_is_left_out_by_that_many_trials() {
        for (lengths, trials) in [(vec![0; 90], 180), (vec![5; 7], 28), (vec![], 0)] {
            let sites = Sites::of_lengths(&lengths);
            let sampler = Sampler::new(Seed(3), 0, FaultKind::Kill, Granularity::Byte, sites);
            assert_eq!(sampler.trials_of_every_boundary(), trials);
            let struck: BTreeSet<_> = (0..trials)
                .filter_map(|n| match sampler.fault(n) {
                    Some(Fault::Kill(Strike { op, point: Point::Before, .. })) => Some((op, true)),
                    Some(Fault::Kill(Strike { op, point: Point::After, .. })) => Some((op, false)),
                    _ => None,
                })
                .collect();
            assert_eq!(struck.len(), 2 * lengths.len());
        }
    }

    #[test]
    fn a_trial_of_any_number_is_drawn() {
        let sites = Sites::of_lengths(&[10]);
        let sampler = Sampler::new(Seed(1), 0, FaultKind::Kill, Granularity::Byte, sites);
        assert!(sampler.fault(u64::MAX).is_some());
    }

    #[test]
    fn no_ops_of_a_program_move_more_than_a_file_can_hold() {
        let most = i64::MAX.unsigned_abs();
        assert!(Sites::of_lengths(&[0, 10, most - 10]).are_possible());
        assert!(!Sites::of_lengths(&[0, 11, most - 10]).are_possible());
        assert!(!Sites::of_lengths(&[u64::MAX, 1]).are_possible());
        let at_the_end = |offset| site(0, Call::Write, offset, 10);
        let of = |site| Sites { sites: vec![site], duration_us: 0 };
        assert!(of(at_the_end(most - 10)).are_possible());
        assert!(!of(at_the_end(most - 9)).are_possible());
        assert!(!of(at_the_end(u64::MAX)).are_possible());
    }

    fn site(op: usize, call: Call, offset: u64, length: u64) -> Site {
        let (op, offset) = (OpIndex(op), ByteOffset(offset));
        Site { op, call, nth: 1, path: "s".into(), offset, length, creates: false }
    }

    fn planner(kind: FaultKind, granularity: Granularity) -> Sampler {
        let sites = vec![
            site(0, Call::Open, 0, 0),
            site(1, Call::Write, 0, 5000),
            site(2, Call::Pwrite, 5000, 10),
            site(3, Call::Close, 0, 0),
        ];
        Sampler::new(Seed(7), 0, kind, granularity, Sites { sites, duration_us: 1000 })
    }

    #[test]
    fn the_same_seed_plans_the_same_trials() {
        let (one, two) = (
            planner(FaultKind::Kill, Granularity::Byte),
            planner(FaultKind::Kill, Granularity::Byte),
        );
        assert!((0..100).all(|n| one.fault(n) == two.fault(n)));
    }

    #[test]
    fn every_boundary_is_struck_before_any_comes_again() {
        let planner = planner(FaultKind::Kill, Granularity::Op);
        let faults: BTreeSet<String> = (0..8).map(|n| format!("{:?}", planner.fault(n))).collect();
        assert_eq!(faults.len(), 8);
        assert_eq!(planner.population(), Some(8));
    }

    #[test]
    fn every_byte_can_be_struck_and_none_outside() {
        let planner = planner(FaultKind::ShortWrite, Granularity::Byte);
        assert_eq!(planner.population(), Some(4999 + 9));
        let mut seen = BTreeSet::new();
        for place in 0..4999 + 9 {
            let Fault::ShortWrite(strike) = planner.strike_inside(place) else { panic!() };
            let Point::Inside(byte) = strike.point else { panic!() };
            assert!(byte.0 > 0 && byte.0 < [0, 5000, 10, 0][strike.op.0]);
            assert_eq!(strike.nature == Nature::Natural, strike.op.0 == 1 && byte.0 == 4096);
            assert!(seen.insert((strike.op, byte)));
        }
    }

    #[test]
    fn pages_are_those_of_the_file_and_not_of_the_write() {
        let sites = vec![site(0, Call::Write, 100, 9000)];
        let planner = Sampler::new(
            Seed(1),
            0,
            FaultKind::Kill,
            Granularity::Page,
            Sites { sites, duration_us: 0 },
        );
        let bytes: Vec<_> =
            (0..planner.places_inside()).map(|place| planner.strike_inside(place)).collect();
        let Fault::Kill(first) = &bytes[0] else { panic!() };
        assert_eq!(first.point, Point::Inside(ByteOffset(3996)));
        assert_eq!((bytes.len(), first.nature), (2, Nature::Natural));
    }

    #[test]
    fn nowhere_to_strike_is_said() {
        let none = Sites { sites: Vec::new(), duration_us: 0 };
        let planner = Sampler::new(Seed(1), 0, FaultKind::Kill, Granularity::Byte, none);
        assert_eq!(planner.fault(0), None);
    }
}
