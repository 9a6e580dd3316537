//! A disk to look at: a file in memory that is made to hold one image after another. What changes from one
//! to the next, and what was written meanwhile, is written; the rest stays.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::images::Image;
use super::store::{BLOCK_BYTES, Block, Layer, Recording, ranges};
use crate::os::memory::MemoryFile;

/// A disk to look at.
#[derive(Default)]
pub struct View {
    file: Option<MemoryFile>,
    /// The blocks that the file held when it was last shown, but for zeros.
    held: HashMap<u64, Block>,
    shown: Option<Shown>,
    /// Whether its time was up.
    pub failed: bool,
}

/// Which image is shown.
struct Shown {
    /// Of which recording.
    number: u32,
    /// The writes that are there for certain.
    certain: u32,
    below: Arc<Layer>,
    /// The blocks in which the others are.
    others: BTreeSet<u64>,
}

/// How a disk is shown.
pub struct Showing {
    /// The number of the file in this process.
    pub file: i32,
    /// Whether this is another file than before.
    pub is_new: bool,
    /// Which bytes have changed since the last image was shown, one way or another.
    pub touched: Vec<Range<u64>>,
}

impl View {
    /// Makes it hold an image of the recording of that number. Nothing of it is mounted.
    pub fn show(
        &mut self,
        name: &str,
        (number, recording): (u32, &Recording),
        image: &Image,
    ) -> io::Result<Showing> {
        let bytes = recording.base.bytes();
        let is_new = self.file.as_ref().is_none_or(|file| file.length() != bytes);
        if is_new {
            (self.held, self.shown) = (HashMap::new(), None);
            self.file = Some(MemoryFile::new(name, bytes)?);
        }
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        self.failed = false;
        let mut touched = written(file, &self.held)?;
        let (shown, mut changed) = Shown::of(self.shown.take(), (number, recording), image);
        let top = shown.top(recording, image);
        top.add_blocks(&mut changed);
        for block in changed {
            let new = top.block(block).filter(|new| !top.is_zeros(new));
            let old = self.held.get(&block);
            let same = match (new, old) {
                (Some(new), Some(old)) => Arc::ptr_eq(new, old) || new == old,
                (None, None) => true,
                _ => false,
            };
            if !same {
                touched.insert(block);
            }
            match new {
                Some(new) => self.held.insert(block, Arc::clone(new)),
                None => self.held.remove(&block),
            };
        }
        for block in &touched {
            if let Some(held) = self.held.get(block) {
                let place = place(*block, bytes);
                let length = place.len();
                file.bytes_mut()[place].copy_from_slice(&held[..length]);
            }
        }
        let zeros = touched.iter().copied().filter(|block| !self.held.contains_key(block));
        for range in ranges(zeros, 0) {
            file.clear(range.start..range.end.min(bytes))?;
        }
        let touched = ranges(touched.into_iter(), TOLD_TOGETHER);
        let mut others = BTreeSet::new();
        top.add_blocks(&mut others);
        self.shown = Some(Shown { others, ..shown });
        Ok(Showing { file: file.number(), is_new, touched })
    }

    /// Its time is up: it works no more, and another file is taken next time.
    pub fn fail(&mut self) {
        self.failed = true;
        if let Some(file) = self.file.take() {
            // Whoever waits for it waits on.
            let _ = file.give_up();
        }
    }

    /// Forgets that a recording is shown, and what is kept for the next image of it.
    pub fn forget(&mut self, number: u32) {
        if let Some(shown) = self.shown.as_mut().filter(|shown| shown.number == number) {
            // No recording has this number: the next one begins anew, from what is held.
            shown.number = 0;
        }
    }
}

/// So many bytes between two ranges are told with them: few ranges are faster than small ones.
const TOLD_TOGETHER: u64 = 128 << 10;

fn start(block: u64) -> u64 {
    block * BLOCK_BYTES as u64
}

/// The bytes of a block on a disk of so many.
fn place(block: u64, bytes: u64) -> Range<usize> {
    let end = start(block + 1).min(bytes);
    usize::try_from(start(block)).unwrap_or(0)..usize::try_from(end).unwrap_or(0)
}

/// The blocks of a file that do not hold what they did.
fn written(file: &MemoryFile, held: &HashMap<u64, Block>) -> io::Result<BTreeSet<u64>> {
    let (data, bytes) = (file.data()?, file.bytes());
    let blocks = |range: &Range<u64>| {
        range.start / BLOCK_BYTES as u64..range.end.div_ceil(BLOCK_BYTES as u64)
    };
    let zeros = [0; BLOCK_BYTES];
    let mut found = BTreeSet::new();
    for block in data.iter().flat_map(blocks) {
        let now = &bytes[place(block, file.length())];
        let same = *now == held.get(&block).map_or(&zeros, |held| &**held)[..now.len()];
        if !same {
            found.insert(block);
        }
    }
    // What was discarded takes no memory, and is zeros.
    let is_data = |block: u64| {
        let after = data.partition_point(|range| range.start <= start(block));
        after > 0 && start(block) < data[after - 1].end
    };
    found.extend(held.keys().filter(|block| !is_data(**block)));
    Ok(found)
}

impl Shown {
    /// The certain writes of an image, and the blocks in which these and the others before can differ from
    /// what was shown before.
    fn of(
        before: Option<Self>,
        (number, recording): (u32, &Recording),
        image: &Image,
    ) -> (Self, BTreeSet<u64>) {
        let mut blocks = BTreeSet::new();
        let others = BTreeSet::new();
        let fresh = Self { number, certain: 0, below: Arc::clone(&recording.base), others };
        let mut shown = match before {
            Some(mut same) if same.number == number && same.certain <= image.certain => {
                blocks.append(&mut same.others);
                same
            }
            Some(mut other) => {
                blocks.append(&mut other.others);
                match other.below.differences(&recording.base) {
                    Some(mut differences) => blocks.append(&mut differences),
                    None => {
                        other.below.add_all_blocks(&mut blocks);
                        recording.base.add_all_blocks(&mut blocks);
                    }
                }
                fresh
            }
            None => {
                recording.base.add_all_blocks(&mut blocks);
                fresh
            }
        };
        if image.certain > shown.certain {
            recording.add_written(shown.certain..image.certain, &mut blocks);
            if Arc::ptr_eq(&shown.below, &recording.base) {
                shown.below = Arc::new(recording.base.above());
            }
            // Nobody else has it: what lay above it is gone.
            let below = Arc::make_mut(&mut shown.below);
            for number in shown.certain..image.certain {
                recording.carry_out(below, number as usize, None);
            }
            shown.certain = image.certain;
        }
        (shown, blocks)
    }

    /// A disk that holds the image.
    fn top(&self, recording: &Recording, image: &Image) -> Layer {
        let mut top = self.below.above();
        for number in &image.kept {
            recording.carry_out(&mut top, *number as usize, None);
        }
        if let Some(torn) = &image.torn {
            recording.carry_out(&mut top, torn.write as usize, Some((torn.from, torn.to)));
        }
        top
    }
}

#[cfg(test)]
mod tests {
    use super::super::images::Torn;
    use super::super::log::Tick;
    use super::*;

    const BYTES: u64 = 1 << 20;

    fn image(certain: u32, kept: &[u32], torn: Option<Torn>) -> Image {
        Image { certain, kept: kept.to_vec(), torn, until: Tick(9) }
    }

    /// A recording of three writes of two sectors each.
    fn recording(base: &Arc<Layer>, first: u8) -> Recording {
        let mut recording = Recording::of(Arc::new(base.above()));
        for (offset, byte) in [(4096, first), (8192, first + 1), (4608, first + 2)] {
            let asked = recording.tick();
            recording.wrote(asked, offset, vec![byte; 1024]);
        }
        recording
    }

    fn start() -> Arc<Layer> {
        let mut base = Layer::blank(BYTES);
        base.write(4000, &[1; 200]);
        Arc::new(base)
    }

    fn shown(view: &View, places: &[usize]) -> Vec<u8> {
        let bytes = view.file.as_ref().unwrap().bytes();
        places.iter().map(|place| bytes[*place]).collect()
    }

    #[test]
    fn it_holds_each_image_whatever_was_shown_before() {
        let base = start();
        let (one, two) = (recording(&base, 2), recording(&base, 12));
        let mut view = View::default();
        let torn = Some(Torn { write: 1, from: 1, to: 2 });
        let cases = [
            (1, &one, image(3, &[], None), [1, 2, 4, 0, 3, 3]),
            (1, &one, image(1, &[2], None), [1, 2, 4, 0, 0, 0]),
            (1, &one, image(1, &[], torn), [1, 2, 2, 0, 0, 3]),
            (2, &two, image(0, &[1], None), [1, 1, 0, 0, 13, 13]),
            (2, &two, image(3, &[], None), [1, 12, 14, 0, 13, 13]),
            (1, &one, image(0, &[], None), [1, 1, 0, 0, 0, 0]),
        ];
        for (number, recording, image, expected) in cases {
            view.show("test", (number, recording), &image).unwrap();
            let found = shown(&view, &[4000, 4096, 4608, 5632, 8192, 8704]);
            assert_eq!(found, expected, "{image:?}");
        }
    }

    #[test]
    fn what_was_written_meanwhile_is_undone_and_told() {
        let base = start();
        let recording = recording(&base, 2);
        let mut view = View::default();
        let all = image(3, &[], None);
        assert!(view.show("test", (1, &recording), &all).unwrap().is_new);
        view.file.as_mut().unwrap().bytes_mut()[4700] = 77;
        view.file.as_mut().unwrap().bytes_mut()[500_000] = 78;
        let showing = view.show("test", (1, &recording), &all).unwrap();
        assert!(!showing.is_new);
        assert!(showing.touched.iter().any(|range| range.contains(&4700)));
        assert!(showing.touched.iter().any(|range| range.contains(&500_000)));
        assert_eq!(shown(&view, &[4700, 500_000]), [4, 0]);
        assert_eq!(view.show("test", (1, &recording), &all).unwrap().touched, []);
    }

    #[test]
    fn one_whose_time_is_up_fails_and_another_takes_its_place() {
        let base = start();
        let recording = recording(&base, 2);
        let mut view = View::default();
        let file = view.show("test", (1, &recording), &image(3, &[], None)).unwrap().file;
        let seen = std::fs::File::open(format!("/proc/self/fd/{file}")).unwrap();
        view.fail();
        assert!(view.failed);
        assert_eq!(seen.metadata().unwrap().len(), 0);
        assert!(view.show("test", (1, &recording), &image(3, &[], None)).unwrap().is_new);
        assert!(!view.failed);
        assert_eq!(shown(&view, &[4096]), [2]);
    }
}
