//! Profiles: what a file system promises about the order in which changes reach the disk, as data.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::suggest;
use crate::tree;

/// The profiles that are built into the command: name and TOML.
pub const EMBEDDED: [(&str, &str); 7] = [
    ("posix", include_str!("../../../scenarios/profiles/posix.toml")),
    ("ext4", include_str!("../../../scenarios/profiles/ext4.toml")),
    ("ext4-dioread_lock", include_str!("../../../scenarios/profiles/ext4-dioread_lock.toml")),
    ("ext4-writeback", include_str!("../../../scenarios/profiles/ext4-writeback.toml")),
    ("xfs", include_str!("../../../scenarios/profiles/xfs.toml")),
    ("btrfs", include_str!("../../../scenarios/profiles/btrfs.toml")),
    ("btrfs-flushoncommit", include_str!("../../../scenarios/profiles/btrfs-flushoncommit.toml")),
];

/// What a file system promises.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// What it stands for, in a sentence.
    pub about: String,
    /// The flags.
    pub flags: Flags,
    /// For each flag, where it is shown.
    pub sources: BTreeMap<String, String>,
}

/// The flags of a profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Flags {
    /// What is old or new as a whole, in bytes.
    pub block_bytes: u32,
    /// In which order names reach the disk.
    pub names: Names,
    /// When the new size of a file that was written beyond its end is on disk.
    pub size: Size,
    /// What a block holds that became part of a file without its data.
    pub unwritten: Unwritten,
    /// How data that replaces older data of the same block gets there.
    pub overwrite: Overwrite,
    /// What a rename over an existing file does with the data of the new one.
    pub rename_over: Pushes,
    /// What the close of a file that was cut to nothing does with its new data.
    pub close_after_truncate: Pushes,
    /// Of which names an fsync of a file takes care.
    pub fsync_of_file: FsyncOfFile,
    /// Whether the data of all files is written before names are committed.
    pub commit_waits_for_data: bool,
}

/// The names of the flags, as TOML has them.
const FLAGS: [&str; 9] = [
    "block-bytes",
    "names",
    "size",
    "unwritten",
    "overwrite",
    "rename-over",
    "close-after-truncate",
    "fsync-of-file",
    "commit-waits-for-data",
];

/// In which order names reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Names {
    /// In any.
    AnyOrder,
    /// In that of the calls.
    InOrder,
}

/// When the new size of a file that was written beyond its end is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Size {
    /// At any time, before or after the data.
    AnyTime,
    /// After the data of the blocks that it takes; that of a block which the file had already may
    /// come later.
    AfterNewBlocks,
    /// After the data that it covers.
    AfterData,
    /// After the data that it is about, and no other: where an earlier part of the file is not yet written,
    /// there is a hole.
    AfterOwnData,
    /// With the first data that is written then, wherever that lies.
    AfterAnyData,
}

/// What a block holds that became part of a file without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unwritten {
    /// Zeros.
    Zeros,
    /// Zeros, or what was there before.
    Anything,
}

/// How data that replaces older data of the same block gets there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overwrite {
    /// Over the old data, at any time.
    InPlace,
    /// To another place, which is found by what is committed with the names.
    CopyOnWrite,
}

/// What a call does with the data of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pushes {
    /// Nothing, or it only starts to write it.
    Nothing,
    /// It takes space for it: the size goes to the journal before what comes after.
    Allocates,
    /// What it changes is on disk after the data only.
    Waits,
}

/// Of which names an fsync of a file takes care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FsyncOfFile {
    /// Of none.
    NoNames,
    /// Of those of the file.
    OwnNames,
    /// Of all that were changed before the file was.
    AllBefore,
}

impl Profile {
    /// The profile called `name`.
    pub fn find(name: &str) -> Result<Self> {
        match EMBEDDED.iter().find(|(embedded, _)| *embedded == name) {
            Some((name, text)) => Self::parse(&format!("{name}.toml"), text),
            None if name.ends_with(".toml") => {
                let text =
                    tree::read_text(Path::new(name), tree::TEXT_BYTES_MAX).map_err(|error| {
                        Error::usage(format!("cannot read the profile {name}: {error}"))
                    })?;
                Self::parse(name, &text)
            }
            None => {
                let names = EMBEDDED.map(|(embedded, _)| embedded);
                Err(Error::usage(format!("there is no profile `{name}`"))
                    .help(suggest::among(name, names)))
            }
        }
    }

    /// Reads a profile; errors name `file`.
    pub fn parse(file: &str, text: &str) -> Result<Self> {
        let profile: Self = toml::from_str(text).map_err(|error| {
            let message = error.message().lines().next().unwrap_or_default().to_owned();
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            let wrong = Error::usage(format!("{file}:{line}: {message}"));
            match suggest::from_message(&message) {
                Some(help) => wrong.help(help),
                None => wrong,
            }
        })?;
        for (flag, known) in FLAGS.map(|flag| (flag, profile.sources.contains_key(flag))) {
            if !known {
                return Err(Error::usage(format!("{file}: `{flag}` has no source"))
                    .help("say under [sources] where that is shown"));
            }
        }
        match profile.flags.contradiction() {
            Some(what) => Err(Error::usage(format!("{file}: {what}"))),
            None => Ok(profile),
        }
    }
}

impl Flags {
    /// Two flags that can't both hold.
    fn contradiction(&self) -> Option<&'static str> {
        let in_order = self.names == Names::InOrder;
        let pushes = [self.rename_over, self.close_after_truncate];
        let block = self.block_bytes;
        let cases = [
            (
                !block.is_power_of_two() || !(512..=65_536).contains(&block),
                "`block-bytes` must be a power of two from 512 to 65536",
            ),
            (
                !in_order && self.fsync_of_file == FsyncOfFile::AllBefore,
                "`fsync-of-file = \"all-before\"` needs names that are kept in order",
            ),
            (
                !in_order && self.commit_waits_for_data,
                "`commit-waits-for-data` needs names that are kept in order",
            ),
            (
                !in_order && pushes.iter().any(|pushes| *pushes != Pushes::Nothing),
                "what a rename or a close pushes to disk before later names needs names that are \
                 kept in order",
            ),
            (
                !in_order && self.overwrite == Overwrite::CopyOnWrite,
                "`overwrite = \"copy-on-write\"` needs names that are kept in order",
            ),
            (
                self.size != Size::AnyTime && self.unwritten == Unwritten::Anything,
                "no unwritten block can hold anything where the size comes after the data",
            ),
            (
                self.size != Size::AnyTime && pushes.contains(&Pushes::Allocates),
                "nothing can push the size alone where the size comes after the data",
            ),
        ];
        cases.into_iter().find_map(|(wrong, what)| wrong.then_some(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_profiles_are_sound() {
        for (name, _) in EMBEDDED {
            assert_eq!(Profile::find(name).unwrap().name, name);
        }
    }

    fn error_of(profile: usize, from: &str, to: &str) -> String {
        let text = EMBEDDED[profile].1;
        assert!(text.contains(from), "{from} is not in the profile");
        Profile::parse("x.toml", &text.replacen(from, to, 1)).unwrap_err().to_string()
    }

    #[test]
    fn contradictions_misspelt_words_and_missing_sources_are_refused() {
        let error = error_of(0, "\"no-names\"", "\"all-before\"");
        assert!(error.contains("needs names that are kept in order"), "{error}");
        let error = error_of(4, "\"after-own-data\"", "\"after-own-dada\"");
        assert!(error.contains("did you mean `after-own-data`?"), "{error}");
        let error = error_of(1, "block-bytes = \"", "block-bites = \"");
        assert!(error.contains("`block-bytes` has no source"), "{error}");
        let error = Profile::find("ext5").unwrap_err().to_string();
        assert!(error.contains("ext4"), "{error}");
    }
}
