//! Derived states against real kills: which of them are run, and whether what they leave is what
//! was derived.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};
use crate::exhaustive::{self, Exhausted, Place};
use crate::fault::{Fault, Nature, Point, Strike};
use crate::model::NotModelled;
use crate::op::{ByteOffset, Call, Effect, Trace};
use crate::outcome::{Content, Outcome, Survivor};
use crate::plan::Seed;
use crate::subject::Prepared;

/// How often a byte is drawn for each strike that is wanted, at most.
const ATTEMPTS: usize = 4;

/// Kills that are given, and what each is to leave.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    /// The kills.
    pub faults: Vec<Fault>,
    /// Whether these are all that there are.
    pub whole: bool,
    expected: Vec<Expected>,
}

/// What the state files are to hold: bytes, and whether they are the same in every run; none of
/// what is no regular file.
type Expected = BTreeMap<PathBuf, Option<(Vec<u8>, bool)>>;

/// One of so many places is such that breaks no promise, if others do.
const SOUND_SHARE: usize = 5;

impl Listed {
    /// Faults that are given; `whole` if there are no others.
    #[must_use]
    pub fn of(faults: Vec<Fault>, whole: bool) -> Self {
        Self { faults, whole, ..Self::default() }
    }

    /// Chooses about `count` places of a recording, those that break a promise first.
    pub fn choose(
        prepared: &Prepared,
        twin: &Trace,
        exhausted: &Exhausted,
        count: usize,
        seed: Seed,
    ) -> std::result::Result<Self, NotModelled> {
        let (broken, sound): (Vec<&Place>, Vec<&Place>) =
            exhausted.places.iter().partition(|place| !place.broken.is_empty());
        let mut random = ChaCha8Rng::seed_from_u64(seed.0);
        let most = if broken.is_empty() { count } else { count.div_ceil(SOUND_SHARE) };
        let some_sound = chosen(&sound, most, &prepared.trace, &mut random);
        let mut strikes = chosen(&broken, count - some_sound.len(), &prepared.trace, &mut random);
        if strikes.len() + some_sound.len() < count {
            strikes.extend(chosen(&sound, count - strikes.len(), &prepared.trace, &mut random));
        } else {
            strikes.extend(some_sound);
        }
        let mut listed = Self::default();
        for strike in strikes {
            listed.expected.push(expected(prepared, twin, &strike)?);
            listed.faults.push(Fault::Kill(strike));
        }
        Ok(listed)
    }

    /// Makes sure that kill `n` has left what was derived.
    pub fn confirm(&self, name: &str, n: u64, outcome: &Outcome) -> Result<()> {
        let place = usize::try_from(n).unwrap_or(usize::MAX);
        let Some(expected) = self.expected.get(place) else { return Ok(()) };
        let wrong = |what: String| {
            Err(Error::internal(format!("derived and real kill of `{name}` differ: {what}"))
                .help("please report this with a recording: crashtest record"))
        };
        if !outcome.injection.struck() {
            return wrong(format!("the {} did not strike", outcome.fault));
        }
        let real = &outcome.survivor.files;
        let paths = expected.keys().chain(real.keys());
        for path in paths {
            let same = match (expected.get(path), real.get(path)) {
                (Some(Some((bytes, fixed))), Some(Content::Bytes(found))) => match fixed {
                    true => bytes == found,
                    false => bytes.len() == found.len(),
                },
                (Some(None), Some(Content::Other(_))) | (None, None) => true,
                _ => false,
            };
            if !same {
                return wrong(format!("{} after {}", path.display(), outcome.fault));
            }
        }
        Ok(())
    }
}

/// At most `most` strikes among these stretches, spread evenly; inside a stretch at some byte.
fn chosen(places: &[&Place], most: usize, trace: &Trace, random: &mut ChaCha8Rng) -> Vec<Strike> {
    let mut strikes: Vec<Strike> = Vec::new();
    let can_strike = |strike: &Strike| strike.call != Call::Store;
    // The first of each stretch, or of as many as may be; then bytes inside them.
    for n in 0..places.len().min(most) {
        let place = places[n * places.len() / places.len().min(most)];
        if can_strike(&place.strike) {
            strikes.push(place.strike.clone());
        }
    }
    let wide: Vec<&&Place> = places.iter().filter(|place| place.until > 0).collect();
    for n in 0..most * ATTEMPTS {
        if strikes.len() >= most || wide.is_empty() {
            break;
        }
        let place = wide[n % wide.len()];
        if let Point::Inside(ByteOffset(first)) = place.strike.point {
            let byte = random.random_range(first..=place.until);
            let strike = at_byte(&place.strike, byte, trace);
            if can_strike(&strike) && !strikes.contains(&strike) {
                strikes.push(strike);
            }
        }
    }
    strikes
}

/// The strike at another byte of the same op.
fn at_byte(strike: &Strike, byte: u64, trace: &Trace) -> Strike {
    let offset = match trace.ops.get(strike.op.0).map(|op| &op.effect) {
        Some(Effect::Write { offset, .. }) => offset.0,
        _ => 0,
    };
    let (point, nature) = (Point::Inside(ByteOffset(byte)), Nature::of_cut(offset + byte));
    Strike { point, nature, ..strike.clone() }
}

/// What is derived for a strike; of a file whose bytes another recording has otherwise only the length counts.
fn expected(
    prepared: &Prepared,
    twin: &Trace,
    strike: &Strike,
) -> std::result::Result<Expected, NotModelled> {
    let left = |trace: &Trace| -> std::result::Result<Survivor, NotModelled> {
        let files = exhaustive::derived(trace, &prepared.before, strike)?;
        Ok(prepared.settled(exhaustive::survivor(&files, &prepared.history)))
    };
    let (one, mut other) = (left(&prepared.trace)?, left(twin)?);
    let mut expected = Expected::new();
    for (path, content) in one.files {
        let Content::Bytes(bytes) = content else {
            expected.insert(path, None);
            continue;
        };
        let fixed = match other.files.remove(&path) {
            // Bytes that are drawn in each run can be the same in two of them by chance.
            Some(Content::Bytes(twin)) => twin == bytes,
            _ => true,
        };
        expected.insert(path, Some((bytes, fixed)));
    }
    Ok(expected)
}
