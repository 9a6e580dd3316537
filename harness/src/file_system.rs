//! The file systems that a small disk can have, and what can run out on one.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A kind of file system.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum FileSystem {
    /// In memory; needs no root where there are user namespaces.
    Tmpfs,
    /// On a loop device; needs root.
    Ext4,
    /// On a loop device; needs root and mkfs.xfs.
    Xfs,
    /// On a loop device; needs root and mkfs.btrfs.
    Btrfs,
}

/// What runs out.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum,
)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// Blocks.
    Space,
    /// Inodes; tmpfs and ext4 have a fixed number of them.
    Inodes,
    /// What a quota allows, in blocks; on ext4 and btrfs.
    Quota,
    /// Blocks, and those that are freed are taken at once by another process: who empties a file to write it again
    /// may not get its space back.
    Taken,
}

impl FileSystem {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tmpfs, Self::Ext4, Self::Xfs, Self::Btrfs];

    /// The name, as `mount -t` has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tmpfs => "tmpfs",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// How large a small disk is unless the user says otherwise, in bytes: about the least that
    /// the tools make, and room for the state beside it.
    #[must_use]
    pub fn usual_bytes(self) -> u64 {
        match self {
            Self::Tmpfs | Self::Ext4 => 64 << 20,
            Self::Btrfs => 256 << 20,
            Self::Xfs => 320 << 20,
        }
    }

    /// What can run out on it by itself. Only ext4 and tmpfs have a fixed number of inodes.
    #[must_use]
    pub fn axes(self) -> &'static [Axis] {
        match self {
            Self::Tmpfs | Self::Ext4 => &[Axis::Space, Axis::Inodes, Axis::Taken],
            Self::Xfs | Self::Btrfs => &[Axis::Space],
        }
    }

    /// Whether this can run out on it at all.
    #[must_use]
    pub fn can_run_out(self, axis: Axis) -> bool {
        let quotas = matches!(self, Self::Ext4 | Self::Btrfs);
        match axis {
            Axis::Space | Axis::Taken => true,
            Axis::Inodes => self.axes().contains(&axis),
            Axis::Quota => quotas,
        }
    }
}

impl Axis {
    /// What it is counted in.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::Space => "blocks",
            Self::Inodes => "inodes",
            Self::Quota => "blocks of quota",
            Self::Taken => "blocks (freed ones taken)",
        }
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
