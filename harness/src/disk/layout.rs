//! Which writes of a file system carry file data, or at least nothing that the next commit waits for.
//!
//! What is in the journal, and what is metadata, is told by its place (ext4, XFS) or by what it
//! looks like (btrfs). What is taken for data and is none only comes later than it could.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::file_system::FileSystem;

/// What tells data from a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// The journal lies at these bytes.
    Journal(Vec<Range<u64>>),
    /// Metadata blocks carry this id of the file system.
    Marked([u8; 16]),
}

impl Layout {
    /// Where on a disk it is told: an offset and a length.
    #[must_use]
    pub fn head(fs: FileSystem) -> (u64, usize) {
        match fs {
            FileSystem::Tmpfs | FileSystem::Xfs => (0, 512),
            FileSystem::Ext4 => (1024, 1024),
            FileSystem::Btrfs => (64 << 10, 4096),
        }
    }

    /// Finds it out from what lies there; `None` if it is not as expected.
    #[must_use]
    pub fn of(fs: FileSystem, head: &[u8]) -> Option<Self> {
        match fs {
            FileSystem::Tmpfs => None,
            FileSystem::Ext4 => ext4(head),
            FileSystem::Xfs => xfs(head),
            FileSystem::Btrfs => btrfs(head),
        }
    }

    /// Whether a write carries file data.
    #[must_use]
    pub fn is_data(&self, offset: u64, bytes: &[u8]) -> bool {
        match self {
            Self::Journal(places) => !places.iter().any(|place| place.contains(&offset)),
            // Block header: checksum, 32 bytes; id, 16. The superblock has it at the same place.
            Self::Marked(id) => bytes.get(32..48) != Some(&id[..]),
        }
    }
}

/// Where in ext4's superblock that copy is.
const MAP: usize = 0x10c;

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// ext4's superblock (fs/ext4/ext4.h, `struct ext4_super_block`) has a copy of the block map of the
/// journal's inode, `s_jnl_blocks`: the root of a tree of extents.
fn ext4(superblock: &[u8]) -> Option<Layout> {
    let u16_at = |at| number(superblock, at).map(u16::from_le_bytes);
    let u32_at = |at| number(superblock, at).map(u32::from_le_bytes);
    let block_bytes = 1024_u64 << u32_at(0x18)?.min(10);
    // The header: magic, entries, most, depth, generation. Then extents of 12 bytes.
    if u16_at(0x38)? != 0xef53 || u16_at(MAP)? != 0xf30a || u16_at(MAP + 6)? != 0 {
        return None;
    }
    let extent = |nth: u16| {
        let at = MAP + 12 + 12 * usize::from(nth);
        let length = u64::from(u16_at(at + 4)?);
        let start = u64::from(u16_at(at + 6)?) << 32 | u64::from(u32_at(at + 8)?);
        Some(start * block_bytes..(start + length) * block_bytes)
    };
    let places: Option<Vec<_>> = (0..u16_at(MAP + 2)?).map(extent).collect();
    places.filter(|places| !places.is_empty()).map(Layout::Journal)
}

/// XFS has its log in one piece, in an allocation group (fs/xfs/libxfs/xfs_format.h, `struct
/// xfs_dsb`).
fn xfs(superblock: &[u8]) -> Option<Layout> {
    let u32_at = |at| number(superblock, at).map(u32::from_be_bytes).map(u64::from);
    if superblock.get(..4)? != b"XFSB" {
        return None;
    }
    let (block_bytes, group_blocks, log_blocks) = (u32_at(4)?, u32_at(84)?, u32_at(96)?);
    let log_start = u64::from_be_bytes(number(superblock, 48)?);
    let shift = u32::from(*superblock.get(124)?);
    let (group, block) = (log_start >> shift, log_start & ((1 << shift) - 1));
    let start = (group * group_blocks + block) * block_bytes;
    let log = start..start + log_blocks * block_bytes;
    (log_start != 0).then(|| Layout::Journal(std::iter::once(log).collect()))
}

/// btrfs marks every metadata block with the id of the file system (fs/btrfs/accessors.h,
/// `struct btrfs_header` and `struct btrfs_super_block`).
fn btrfs(superblock: &[u8]) -> Option<Layout> {
    let is_one = superblock.get(64..72)? == b"_BHRfS_M";
    number(superblock, 32).filter(|_| is_one).map(Layout::Marked)
}
