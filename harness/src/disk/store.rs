//! Disks in memory: start images that are shared, what lies above them, and what is recorded.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::log::{self, DiskLog, SECTOR_BYTES, Span, Tick, Write};

/// What is stored in one piece.
pub const BLOCK_BYTES: usize = 4096;

/// One piece.
pub type Block = Arc<[u8; BLOCK_BYTES]>;

/// What a disk held at some moment.
#[derive(Clone)]
pub struct Layer {
    blocks: HashMap<u64, Block>,
    /// Stands for all blocks of zeros: file systems write many.
    zeros: Block,
    below: Option<Arc<Self>>,
    bytes: u64,
}

impl Default for Layer {
    fn default() -> Self {
        Self::blank(0)
    }
}

impl Layer {
    /// An empty disk of so many bytes.
    #[must_use]
    pub fn blank(bytes: u64) -> Self {
        Self { bytes, blocks: HashMap::new(), zeros: Arc::new([0; BLOCK_BYTES]), below: None }
    }

    /// A disk that holds what this one does, to be written to.
    #[must_use]
    pub fn above(self: &Arc<Self>) -> Self {
        let (blocks, zeros) = (HashMap::new(), Arc::clone(&self.zeros));
        Self { blocks, zeros, below: Some(Arc::clone(self)), bytes: self.bytes }
    }

    /// How large the disk is.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A block, if anything was ever written there.
    #[must_use]
    pub fn block(&self, number: u64) -> Option<&Block> {
        let mut layer = self;
        loop {
            match (layer.blocks.get(&number), &layer.below) {
                (Some(block), _) => return Some(block),
                (None, Some(below)) => layer = below,
                (None, None) => return None,
            }
        }
    }

    /// Whether a block is the one that stands for zeros.
    #[must_use]
    pub fn is_zeros(&self, block: &Block) -> bool {
        Arc::ptr_eq(block, &self.zeros)
    }

    /// Adds the numbers of the blocks that differ from what lies below.
    pub fn add_blocks(&self, blocks: &mut BTreeSet<u64>) {
        blocks.extend(self.blocks.keys());
    }

    /// The same, of those below, too.
    pub fn add_all_blocks(&self, blocks: &mut BTreeSet<u64>) {
        self.layers().for_each(|layer| layer.add_blocks(blocks));
    }

    fn layers(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |layer| layer.below.as_deref())
    }

    /// The numbers of the blocks in which this disk can differ from another; `None` if they have nothing in
    /// common.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Option<BTreeSet<u64>> {
        let is_below = |one: &&Self| other.layers().any(|two| std::ptr::eq(*one, two));
        let common = self.layers().find(is_below)?;
        let mut blocks = BTreeSet::new();
        for of in [self, other] {
            for layer in of.layers().take_while(|layer| !std::ptr::eq(*layer, common)) {
                layer.add_blocks(&mut blocks);
            }
        }
        Some(blocks)
    }

    /// What lies at these bytes.
    #[must_use]
    pub fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        for (number, within, piece) in pieces(offset, length) {
            if let Some(block) = self.block(number) {
                let end = within + piece.len();
                bytes[piece].copy_from_slice(&block[within..end]);
            }
        }
        bytes
    }

    /// Writes bytes.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (number, within, piece) in pieces(offset, bytes.len()) {
            if piece.len() == BLOCK_BYTES && bytes[piece.clone()] == *self.zeros {
                self.blocks.insert(number, Arc::clone(&self.zeros));
                continue;
            }
            let below = self.below.as_ref().and_then(|below| below.block(number));
            let block = self.blocks.entry(number).or_insert_with(|| match below {
                Some(block) => Arc::clone(block),
                None => Arc::clone(&self.zeros),
            });
            let end = within + piece.len();
            Arc::make_mut(block)[within..end].copy_from_slice(&bytes[piece]);
        }
    }
}

/// The blocks that some bytes touch: number, offset in it, and which of the bytes.
fn pieces(
    offset: u64,
    length: usize,
) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let left = length.checked_sub(done).filter(|left| *left > 0)?;
        let at = offset + done as u64;
        let within = usize::try_from(at % BLOCK_BYTES as u64).unwrap_or(0);
        let count = left.min(BLOCK_BYTES - within);
        let piece = done..done + count;
        done += count;
        Some((at / BLOCK_BYTES as u64, within, piece))
    })
}

/// Ranges of bytes that cover blocks, which are in their order; those with at most `gap` bytes between them
/// are one.
#[must_use]
pub fn ranges(blocks: impl Iterator<Item = u64>, gap: u64) -> Vec<std::ops::Range<u64>> {
    let mut ranges: Vec<std::ops::Range<u64>> = Vec::new();
    for block in blocks {
        let start = block * BLOCK_BYTES as u64;
        let end = start + BLOCK_BYTES as u64;
        match ranges.last_mut() {
            Some(last) if start - last.end <= gap => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

/// What was written, and to what.
pub struct Recording {
    /// What the disk held when it began.
    pub base: Arc<Layer>,
    log: DiskLog,
    /// The bytes of each write of the log.
    data: Vec<Vec<u8>>,
    bytes: u64,
}

impl Recording {
    /// Nothing was written yet.
    #[must_use]
    pub fn of(base: Arc<Layer>) -> Self {
        Self { base, log: DiskLog::default(), data: Vec::new(), bytes: 0 }
    }

    /// A moment goes by.
    pub fn tick(&mut self) -> Tick {
        self.log.end.0 += 1;
        self.log.end
    }

    /// What was seen so far.
    #[must_use]
    pub fn log(&self) -> &DiskLog {
        &self.log
    }

    /// A write is answered now that was asked then.
    pub fn wrote(&mut self, asked: Tick, offset: u64, bytes: Vec<u8>) {
        let sector = offset / SECTOR_BYTES;
        let chunks = bytes.chunks(SECTOR_BYTES.try_into().unwrap_or(usize::MAX));
        let sums = (sector..).zip(chunks).map(|(sector, bytes)| log::sum(sector, bytes)).collect();
        let span = Span { asked, answered: self.tick() };
        self.log.writes.push(Write { sector, sums, span });
        self.bytes += bytes.len() as u64;
        self.data.push(bytes);
    }

    /// How many bytes were written.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A flush is answered now that was asked then.
    pub fn flushed(&mut self, asked: Tick) {
        let answered = self.tick();
        self.log.flushes.push(Span { asked, answered });
    }

    /// Adds the numbers of the blocks to which some writes went.
    pub fn add_written(&self, writes: std::ops::Range<u32>, blocks: &mut BTreeSet<u64>) {
        for write in &self.log.writes[writes.start as usize..writes.end as usize] {
            let (start, count) =
                (write.sector * SECTOR_BYTES, write.sums.len() as u64 * SECTOR_BYTES);
            let block = BLOCK_BYTES as u64;
            blocks.extend(start / block..(start + count).div_ceil(block));
        }
    }

    /// Carries out a write, or some sectors of it.
    pub fn carry_out(&self, onto: &mut Layer, number: usize, part: Option<(u32, u32)>) {
        let (Some(write), Some(data)) = (self.log.writes.get(number), self.data.get(number)) else {
            return;
        };
        let byte = |sector: u32| u64::from(sector) * SECTOR_BYTES;
        let (from, to) = part.map_or((0, data.len() as u64), |(from, to)| (byte(from), byte(to)));
        let to = to.min(data.len() as u64);
        let range = usize::try_from(from).unwrap_or(0)..usize::try_from(to).unwrap_or(0);
        if let Some(bytes) = data.get(range) {
            onto.write(write.sector * SECTOR_BYTES + from, bytes);
        }
    }
}
