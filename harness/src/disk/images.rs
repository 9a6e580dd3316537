//! Which images a power loss can leave of a disk, by what the disk saw: see the module above.

use std::collections::{BTreeSet, HashMap};

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::log::{DiskLog, Tick};

/// What is on a disk when the power has gone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Image {
    /// So many writes, the first to be answered, are there for certain.
    pub certain: u32,
    /// The numbers of others that are there, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<u32>,
    /// A write of which a part is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub torn: Option<Torn>,
    /// The last moment at which the power can have gone.
    pub until: Tick,
}

/// A write of which some sectors are there; it comes after all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Torn {
    /// Which write.
    pub write: u32,
    /// The first of its sectors that is there.
    pub from: u32,
    /// The first after those that are there.
    pub to: u32,
}

impl Image {
    /// Whether a log has what it takes to make it.
    #[must_use]
    pub fn fits(&self, log: &DiskLog) -> bool {
        let of = |number: &u32| log.writes.get(*number as usize);
        let torn = self.torn.as_ref().is_none_or(|torn| {
            of(&torn.write).is_some_and(|write| torn.to as usize <= write.sums.len())
        });
        self.certain as usize <= log.writes.len()
            && self.kept.iter().all(|n| of(n).is_some())
            && torn
    }
}

/// Some of the images that a log can leave, or all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// Distinct images, each with the last moment at which it is possible.
    pub images: Vec<Image>,
    /// Whether all prefixes are among them.
    pub prefixes: bool,
}

/// A stretch between two flushes.
pub(super) struct Stretch {
    certain: usize,
    /// The writes that may be there, by number.
    pub(super) open: Vec<u32>,
    /// Its last moment.
    pub(super) until: Tick,
}

/// Sets of so few writes are gone through completely.
const ALL_SETS_MAX: usize = 4;
/// How many random sets are drawn in each stretch.
const RANDOM_SETS: usize = 12;
/// How many of a stretch's writes are left out, kept alone, or torn.
const SINGLES: usize = 64;

/// The images of a log, at most `most`, drawn with `seed` where there are more: first the prefixes
/// in the order of the answers; then sets with one write less, one write alone, and random ones; then
/// torn writes. Where there are too many, those that are possible near `focus` come first, if that is
/// given, and else those at flushes.
#[must_use]
pub fn images(log: &DiskLog, most: usize, seed: u64, focus: Option<Tick>) -> Images {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let stretches = stretches(log);
    let mut chosen = Chosen::new(log, most);
    let mut prefixes: Vec<Image> = stretches.iter().flat_map(Stretch::prefixes).collect();
    let all_prefixes = prefixes.len() <= most;
    if !all_prefixes {
        prefixes.shuffle(&mut random);
        prefixes.sort_by_key(|image| match focus {
            Some(focus) => image.until.0.abs_diff(focus.0),
            None => u32::from(!image.kept.is_empty()),
        });
    }
    while !prefixes.is_empty() && chosen.images.len() < most {
        let left = most - chosen.images.len();
        let mut next: Vec<Image> = prefixes.drain(..left.min(prefixes.len())).collect();
        // What is certain is then summed up once.
        next.sort_by_key(|image| image.certain);
        chosen.add(next);
    }
    let (mut sets, mut torn) = (Vec::new(), Vec::new());
    for stretch in &stretches {
        sets.extend(stretch.sets(&mut random));
        torn.extend(stretch.torn(log, &mut random));
    }
    sets.shuffle(&mut random);
    torn.shuffle(&mut random);
    // Torn writes are to have their share.
    let room = most.saturating_sub(chosen.images.len());
    let for_sets = room.saturating_sub(torn.len().min(room / 4));
    chosen.add_some(sets, for_sets);
    chosen.add(torn);
    Images { images: chosen.images, prefixes: all_prefixes }
}

/// The stretches of a log: before the first flush, between two, after the last.
pub(super) fn stretches(log: &DiskLog) -> Vec<Stretch> {
    let starts = std::iter::once(0).chain(log.flushes.iter().map(|flush| log.certain(flush)));
    let ends = log.flushes.iter().map(|flush| flush.answered).chain([log.end]);
    let mut least = 0;
    let mut found = Vec::new();
    for (certain, until) in starts.zip(ends) {
        // A flush that was asked earlier may be answered later.
        least = certain.max(least);
        let open = log.writes.iter().enumerate().skip(least);
        let open = open.filter(|(_, write)| write.span.asked < until);
        let open = open.filter_map(|(number, _)| u32::try_from(number).ok()).collect();
        found.push(Stretch { certain: least, open, until });
    }
    found
}

impl Stretch {
    /// What is certain and these.
    pub(super) fn image(&self, kept: Vec<u32>) -> Image {
        let certain = u32::try_from(self.certain).unwrap_or(u32::MAX);
        Image { certain, kept, torn: None, until: self.until }
    }

    fn prefixes(&self) -> impl Iterator<Item = Image> {
        (0..=self.open.len()).map(|count| self.image(self.open[..count].to_vec()))
    }

    /// Sets that are no prefixes.
    fn sets(&self, random: &mut ChaCha8Rng) -> Vec<Image> {
        let count = self.open.len();
        let of = |is_in: &dyn Fn(usize) -> bool| {
            let kept = (0..count).filter(|place| is_in(*place)).map(|place| self.open[place]);
            self.image(kept.collect())
        };
        if count <= ALL_SETS_MAX {
            return (0..1_usize << count).map(|set| of(&|place| set >> place & 1 == 1)).collect();
        }
        let mut sets = Vec::new();
        for place in some_of(count, random) {
            sets.push(of(&|other| other != place));
            sets.push(of(&|other| other == place));
        }
        for _ in 0..RANDOM_SETS {
            let share = random.random_range(0.1..0.9);
            let set: Vec<bool> = (0..count).map(|_| random.random_bool(share)).collect();
            sets.push(of(&|place| set[place]));
        }
        sets
    }

    /// What is there when the power goes in the middle of a write: some of its sectors, and before it
    /// all that came earlier.
    fn torn(&self, log: &DiskLog, random: &mut ChaCha8Rng) -> Vec<Image> {
        let mut images = Vec::new();
        for place in some_of(self.open.len(), random) {
            let write = self.open[place];
            let sectors = u32::try_from(log.writes[write as usize].sums.len()).unwrap_or(u32::MAX);
            if sectors < 2 {
                continue;
            }
            let middle = random.random_range(1..sectors);
            let cuts = BTreeSet::from([1, middle, sectors - 1]);
            let parts = cuts.into_iter().flat_map(|cut| [(0, cut), (cut, sectors)]);
            for (from, to) in parts {
                let torn = Some(Torn { write, from, to });
                images.push(Image { torn, ..self.image(self.open[..place].to_vec()) });
            }
        }
        images
    }
}

/// All places below `count`, or some of them where there are many.
fn some_of(count: usize, random: &mut ChaCha8Rng) -> Vec<usize> {
    if count <= SINGLES {
        return (0..count).collect();
    }
    (0..SINGLES).map(|_| random.random_range(0..count)).collect()
}

/// Distinct images.
pub(super) struct Chosen<'a> {
    log: &'a DiskLog,
    pub(super) images: Vec<Image>,
    most: usize,
    /// What the sectors hold by the certain writes of the last image that was looked at.
    base: Sectors,
    /// The place of each.
    known: HashMap<u64, usize>,
}

/// What the sectors hold that were written.
#[derive(Clone, Default)]
struct Sectors {
    certain: usize,
    sums: HashMap<u64, u64>,
    /// The sum of all.
    all: u64,
}

impl Sectors {
    fn write(&mut self, sector: u64, sum: u64) {
        let old = self.sums.insert(sector, sum).unwrap_or(0);
        self.all = self.all.wrapping_sub(old).wrapping_add(sum);
    }
}

impl<'a> Chosen<'a> {
    pub(super) fn new(log: &'a DiskLog, most: usize) -> Self {
        let (base, known) = (Sectors::default(), HashMap::new());
        Self { log, images: Vec::new(), most, base, known }
    }

    pub(super) fn add(&mut self, images: Vec<Image>) {
        self.add_some(images, usize::MAX);
    }

    /// Adds what is not yet there, at most so many.
    fn add_some(&mut self, images: Vec<Image>, most: usize) {
        let limit = self.images.len().saturating_add(most).min(self.most);
        let keys = self.keys(&images);
        for (image, key) in images.into_iter().zip(keys) {
            if let Some(place) = self.known.get(&key) {
                // Of equal images the one that is possible longest is owed most.
                let known = &mut self.images[*place];
                if known.until < image.until {
                    *known = image;
                }
            } else if self.images.len() < limit {
                self.known.insert(key, self.images.len());
                self.images.push(image);
            }
        }
    }

    /// What tells each image from others, by rising numbers of certain writes: these are then summed up once.
    fn keys(&mut self, images: &[Image]) -> Vec<u64> {
        let mut order: Vec<usize> = (0..images.len()).collect();
        order.sort_by_key(|place| images[*place].certain);
        let mut keys = vec![0; images.len()];
        for place in order {
            keys[place] = self.key(&images[place]);
        }
        keys
    }

    /// What tells an image from others: the sum of what its sectors hold.
    fn key(&mut self, image: &Image) -> u64 {
        let certain = image.certain as usize;
        if certain < self.base.certain {
            self.base = Sectors::default();
        }
        for number in self.base.certain..certain {
            let write = &self.log.writes[number];
            for (sector, sum) in (write.sector..).zip(&write.sums) {
                self.base.write(sector, *sum);
            }
        }
        self.base.certain = certain;
        let mut top = HashMap::new();
        let whole = image.kept.iter().map(|number| {
            let length = self.log.writes[*number as usize].sums.len();
            (*number as usize, 0, length)
        });
        let part =
            image.torn.map(|torn| (torn.write as usize, torn.from as usize, torn.to as usize));
        for (number, from, to) in whole.chain(part) {
            let write = &self.log.writes[number];
            for place in from..to {
                top.insert(write.sector + place as u64, write.sums[place]);
            }
        }
        let mut all = self.base.all;
        for (sector, sum) in top {
            let old = self.base.sums.get(&sector).copied().unwrap_or(0);
            all = all.wrapping_sub(old).wrapping_add(sum);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::super::log::{Span, Write};
    use super::*;

    /// A log from words: a letter with a place is a write of one sector, `F` a flush.
    fn log(words: &str) -> DiskLog {
        let mut log = DiskLog::default();
        let mut now = 0;
        for word in words.split(' ') {
            let span = Span { asked: Tick(now), answered: Tick(now + 1) };
            now += 2;
            match word.strip_prefix('F') {
                Some(_) => log.flushes.push(span),
                None => {
                    let (letter, place) = word.split_at(1);
                    let sums = vec![u64::from(letter.as_bytes()[0])];
                    log.writes.push(Write { sector: place.parse().unwrap(), sums, span });
                }
            }
        }
        log.end = Tick(now);
        log
    }

    /// What each image leaves in the first sectors.
    fn shown(log: &DiskLog, images: &[Image]) -> BTreeSet<String> {
        let of = |image: &Image| {
            let mut disk = vec!['.'; 4];
            for number in (0..image.certain).chain(image.kept.iter().copied()) {
                let write = &log.writes[number as usize];
                disk[write.sector as usize] = char::from(write.sums[0] as u8);
            }
            disk.into_iter().collect()
        };
        images.iter().map(of).collect()
    }

    #[test]
    fn a_flush_keeps_what_came_before_and_the_rest_comes_in_any_order() {
        let log = log("a0 b1 F c2 d0");
        let found = images(&log, 100, 1, None);
        assert!(found.prefixes);
        let expected = ["....", "a...", ".b..", "ab..", "abc.", "db..", "dbc."];
        assert_eq!(shown(&log, &found.images), expected.map(str::to_owned).into());
        assert_eq!(found.images.len(), expected.len(), "equal images are looked at once");
    }

    #[test]
    fn a_write_that_is_in_flight_when_the_flush_comes_is_not_covered_by_it() {
        let mut log = log("b1 F a0");
        // Asked before the flush, and answered after it.
        log.writes[1].span.asked = Tick(1);
        let found = images(&log, 100, 1, None);
        let expected = ["....", "a...", ".b..", "ab.."];
        assert_eq!(shown(&log, &found.images), expected.map(str::to_owned).into());
    }

    #[test]
    fn an_image_is_possible_until_the_next_flush_is_answered() {
        let log = log("a0 F b1 F");
        let found = images(&log, 100, 1, None);
        let until: Vec<(String, u32)> = found
            .images
            .iter()
            .map(|image| {
                (shown(&log, std::slice::from_ref(image)).pop_first().unwrap(), image.until.0)
            })
            .collect();
        for expected in [("....", 3), ("a...", 7), ("ab..", 8)] {
            let expected = (expected.0.to_owned(), expected.1);
            assert!(until.contains(&expected), "{expected:?} in {until:?}");
        }
    }

    #[test]
    fn a_budget_is_kept_and_flushes_come_first() {
        let words: Vec<String> = (0..40)
            .flat_map(|n| [format!("{}0", 'a'), format!("b{}", n % 3), "F".to_owned()])
            .collect();
        let log = log(&words.join(" "));
        for most in [1, 5, 60, 10_000] {
            let found = images(&log, most, 7, None);
            assert!(found.images.len() <= most);
            // Where there is room for all, more room shows no more.
            assert!(most < 10_000 || found == images(&log, 10 * most, 7, None));
        }
    }

    #[test]
    fn of_too_many_those_near_a_moment_come_first() {
        let mut log = log(&["a0 F"; 40].join(" "));
        for (n, write) in (1..).zip(&mut log.writes) {
            write.sums = vec![n * 1000];
        }
        let near = images(&log, 5, 7, Some(Tick(80))).images;
        assert!(near.iter().all(|image| image.until.0.abs_diff(80) < 16), "{near:?}");
    }

    #[test]
    fn a_torn_write_leaves_some_of_its_sectors() {
        let mut log = log("a0");
        log.writes[0].sums = vec![1, 20, 300];
        let found = images(&log, 100, 1, None);
        let torn: BTreeSet<(u32, u32)> =
            found.images.iter().filter_map(|image| image.torn).map(|t| (t.from, t.to)).collect();
        assert_eq!(torn, BTreeSet::from([(0, 1), (1, 3), (0, 2), (2, 3)]));
    }
}
