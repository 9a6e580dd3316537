//! Which recordings are made of a subject on a disk, and how many images of them are looked at.

use std::fmt;

use clap::ValueEnum;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::file_system::FileSystem;

/// What a power cut below real file systems looks at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cutting {
    /// The file systems.
    pub fs: Vec<FileSystem>,
    /// How they are mounted, beside what is needed.
    pub mount_options: String,
    /// How large a disk is, in bytes; the usual size if none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fs_bytes: Option<u64>,
    /// How write-back is brought about.
    pub write_back: Vec<Mode>,
    /// How many op boundaries there may be before a sample must do.
    pub boundaries_max: usize,
    /// How many images of a subject on a file system are looked at.
    pub images_max: u64,
    /// Whether writes of file data are held in flight in all recordings.
    pub slow_writes: bool,
    /// Whether each image is checked by the file system's own tool before it is mounted.
    pub fsck: bool,
}

impl Default for Cutting {
    fn default() -> Self {
        Self {
            fs: vec![FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs],
            mount_options: String::new(),
            fs_bytes: None,
            write_back: vec![Mode::Never, Mode::Sync, Mode::Commit, Mode::Slow],
            boundaries_max: 24,
            images_max: 500,
            slow_writes: false,
            fsck: false,
        }
    }
}

/// How write-back is brought about: on a busy machine it may come at any moment.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Not at all, before the subject has ended.
    Never,
    /// Everything is written out at one op boundary; one recording for each boundary.
    Sync,
    /// The file system commits its metadata at one op boundary, as it does every few seconds, and does
    /// not wait for data; one recording for each boundary.
    Commit,
    /// Another file is synced at one op boundary; one recording for each boundary.
    Other,
    /// Data is on its way at every op boundary, but slow, and metadata is committed there.
    Slow,
}

impl Mode {
    /// Whether it needs a recording for each boundary.
    fn at_each(self) -> bool {
        matches!(self, Self::Sync | Self::Commit | Self::Other)
    }

    /// How many images of one of its recordings there are for each of another: one that is about a single
    /// boundary shows little that others do not.
    #[must_use]
    pub fn share(self) -> u64 {
        match self {
            Self::Never => 2,
            Self::Sync | Self::Commit | Self::Other => 1,
            Self::Slow => 6,
        }
    }
}

/// What one recording brings about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WriteBack {
    /// What.
    pub mode: Mode,
    /// Before which op, if at one; after the last if there are so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<usize>,
}

impl fmt::Display for WriteBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.mode {
            Mode::Never => "nothing written back before the end",
            Mode::Slow => "metadata committed while data is on its way",
            Mode::Sync => "everything written out",
            Mode::Commit => "metadata committed",
            Mode::Other => "another file synced",
        })?;
        match self.before {
            Some(before) => write!(f, " before op {before}"),
            None if self.mode.at_each() => f.write_str(" now and then"),
            None => Ok(()),
        }
    }
}

impl Cutting {
    /// The recordings of a subject with so many ops; boundaries are drawn with `seed` where there are
    /// too many.
    #[must_use]
    pub fn recordings(&self, ops: usize, seed: u64) -> Vec<WriteBack> {
        let mut boundaries: Vec<usize> = (0..=ops).collect();
        if boundaries.len() > self.boundaries_max {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            // The end is always one.
            boundaries[..ops].shuffle(&mut random);
            boundaries.rotate_right(1);
            boundaries.truncate(self.boundaries_max.max(1));
            boundaries.sort_unstable();
        }
        let of_mode = |mode: &Mode| {
            let all = mode.at_each();
            let befores =
                if all { boundaries.iter().copied().map(Some).collect() } else { vec![None] };
            befores.into_iter().map(|before| WriteBack { mode: *mode, before }).collect::<Vec<_>>()
        };
        self.write_back.iter().flat_map(of_mode).collect()
    }

    /// The recordings of a subject that is not followed: one for each mode, at random moments.
    #[must_use]
    pub fn live_recordings(&self) -> Vec<WriteBack> {
        self.write_back.iter().map(|mode| WriteBack { mode: *mode, before: None }).collect()
    }

    /// Whether not all boundaries of so many ops are looked at.
    #[must_use]
    pub fn samples_boundaries(&self, ops: usize) -> bool {
        ops + 1 > self.boundaries_max && self.write_back.iter().any(|mode| mode.at_each())
    }

    /// The profile that should explain what such a file system leaves; `None` if there is none for these
    /// options.
    #[must_use]
    pub fn profile(&self, fs: FileSystem) -> Option<&'static str> {
        let options: Vec<&str> =
            self.mount_options.split(',').filter(|option| !option.is_empty()).collect();
        match (fs, &options[..]) {
            (FileSystem::Ext4, []) => Some("ext4"),
            (FileSystem::Ext4, ["dioread_lock"]) => Some("ext4-dioread_lock"),
            (FileSystem::Ext4, ["data=writeback"]) => Some("ext4-writeback"),
            (FileSystem::Xfs, []) => Some("xfs"),
            (FileSystem::Btrfs, []) => Some("btrfs"),
            (FileSystem::Btrfs, ["flushoncommit"]) => Some("btrfs-flushoncommit"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_recording_for_each_boundary_or_a_sample_with_the_end() {
        let cutting = Cutting { boundaries_max: 5, ..Cutting::default() };
        assert_eq!(cutting.recordings(4, 1).len(), 1 + 5 + 5 + 1);
        let many = cutting.recordings(1000, 1);
        assert_eq!(many.len(), 1 + 5 + 5 + 1);
        assert_eq!(many.iter().filter(|one| one.before == Some(1000)).count(), 2);
        assert_eq!(many, cutting.recordings(1000, 1));
    }
}
