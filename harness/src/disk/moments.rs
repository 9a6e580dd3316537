//! Images at random moments, for recordings that are too long to be gone through.

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::images::{Chosen, Image, Stretch, Torn, stretches};
use super::log::{DiskLog, Tick};

/// How often as many images are drawn as are wanted: many are the same.
const ROUNDS: usize = 4;

/// At most `most` images of a log, each of a moment that is drawn with `seed`.
#[must_use]
pub fn moments(log: &DiskLog, most: usize, seed: u64) -> Vec<Image> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let stretches = stretches(log);
    let mut chosen = Chosen::new(log, most);
    for _ in 0..ROUNDS {
        let left = most.saturating_sub(chosen.images.len());
        let mut drawn: Vec<Image> =
            (0..left).map(|_| at_some_moment(log, &stretches, &mut random)).collect();
        // In order, so that what is certain is summed up once.
        drawn.sort_by_key(|image| image.certain);
        chosen.add(drawn);
    }
    chosen.images
}

/// The power goes at some moment: of what had come by then and was not flushed, all is there that was
/// answered, or nothing, or the first of it, or any of it, or the last only in part.
fn at_some_moment(log: &DiskLog, stretches: &[Stretch], random: &mut ChaCha8Rng) -> Image {
    let now = Tick(random.random_range(0..=log.end.0));
    let place = stretches.partition_point(|stretch| stretch.until <= now);
    let stretch = &stretches[place.min(stretches.len() - 1)];
    let come = |number: &&u32| log.writes[**number as usize].span.asked <= now;
    let open: Vec<u32> = stretch.open.iter().filter(come).copied().collect();
    match random.random_range(0..6) {
        0 => stretch.image(Vec::new()),
        1 => {
            let answered = |number: &u32| log.writes[*number as usize].span.answered <= now;
            stretch.image(open.into_iter().filter(answered).collect())
        }
        2 | 3 => stretch.image(open[..random.random_range(0..=open.len())].to_vec()),
        4 => {
            let share = random.random_range(0.05..0.95);
            stretch.image(open.into_iter().filter(|_| random.random_bool(share)).collect())
        }
        _ => torn(log, stretch, &open, random),
    }
}

/// One write is there in part, and all that came earlier.
fn torn(log: &DiskLog, stretch: &Stretch, open: &[u32], random: &mut ChaCha8Rng) -> Image {
    let sectors = |number: u32| u32::try_from(log.writes[number as usize].sums.len()).unwrap_or(0);
    let long: Vec<usize> = (0..open.len()).filter(|place| sectors(open[*place]) > 1).collect();
    let Some(place) = long.choose(random).copied() else { return stretch.image(Vec::new()) };
    let write = open[place];
    let middle = random.random_range(1..sectors(write));
    let (from, to) = if random.random_bool(0.5) { (0, middle) } else { (middle, sectors(write)) };
    let torn = Some(Torn { write, from, to });
    Image { torn, ..stretch.image(open[..place].to_vec()) }
}

#[cfg(test)]
mod tests {
    use super::super::log::{Span, Write};
    use super::*;

    /// Writes of four sectors to three places, and a flush after some.
    fn log(writes: u32, flush_after_each: u32) -> DiskLog {
        let mut log = DiskLog::default();
        let mut now = 0;
        let mut span = || {
            now += 2;
            Span { asked: Tick(now - 1), answered: Tick(now) }
        };
        for n in 0..writes {
            let sums = (0..4).map(|sector| u64::from(n * 100 + sector + 1) << 20).collect();
            log.writes.push(Write { sector: u64::from(n % 3) * 8, sums, span: span() });
            if n % flush_after_each == 0 {
                log.flushes.push(span());
            }
        }
        log.end = Tick(now + 1);
        log
    }

    #[test]
    fn all_that_is_drawn_is_legal() {
        let log = log(40, 7);
        let stretches = stretches(&log);
        for image in (0..50).flat_map(|seed| moments(&log, 30, seed)) {
            assert!(image.fits(&log), "{image:?}");
            let same = |stretch: &&Stretch| {
                stretch.until == image.until && stretch.image(Vec::new()).certain == image.certain
            };
            // What is there besides was asked by then, and comes in its order, what is torn last.
            let stretch = stretches.iter().find(same).unwrap();
            let others: Vec<u32> =
                image.kept.iter().copied().chain(image.torn.map(|torn| torn.write)).collect();
            assert!(others.is_sorted_by(|one, two| one < two), "{image:?}");
            assert!(others.iter().all(|number| stretch.open.contains(number)), "{image:?}");
        }
    }

    #[test]
    fn they_are_spread_over_a_long_log_whatever_is_flushed() {
        for flush_after_each in [1, 3000] {
            let log = log(3000, flush_after_each);
            let drawn = moments(&log, 400, 7);
            assert!(drawn.len() > 300, "{}", drawn.len());
            let writes = |image: &Image| image.kept.last().map_or(image.certain, |last| last + 1);
            for third in 0..3 {
                let here = |image: &&Image| writes(image) / 1001 == third;
                assert!(drawn.iter().filter(here).count() > 60, "{flush_after_each}");
            }
            assert!(drawn.iter().any(|image| image.torn.is_some()));
        }
    }
}
