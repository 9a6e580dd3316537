//! Damage at rest: what can happen to a saved state between two runs of a program, and what its next
//! load is then worth.
//!
//! A bad sector, a full disk under a copy, an operator, a restore of the wrong file: nobody saves, and
//! the state file is another when the program starts. The promises are about the load. It is *sound*
//! if what it takes for the state is one that was saved, *recoverable* if it comes to one, and
//! *durable* if that is no older than the newest whole copy which lies in the directory. Where nothing
//! whole is left, to refuse is right, and to begin with a default state is not, unless there is nothing
//! at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use rand::seq::index;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::fault::{Fault, Struck};
use crate::history::History;
use crate::model::{self, Files};
use crate::oracle;
use crate::outcome::{Load, Loaded, NextSave, Outcome};
use crate::plan::Seed;
use crate::power::lower::count;
use crate::power::survivor::Node;
use crate::verdict::{Promise, Verdict, Violation, ViolationKind, Why};

/// Damage at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Harming {
    /// What was done.
    pub how: Harm,
    /// To which copies of the state it was done too.
    #[serde(default, skip_serializing_if = "Copies::are_spared")]
    pub copies: Copies,
}

/// What was done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Harm {
    /// It was cut to a length in bytes.
    Cut(u64),
    /// One bit of one byte is another.
    Flip(u64, u8),
    /// It has other bytes, drawn with this seed, as many as before.
    Garbage(u64),
    /// It holds JSON of another shape: one of [`SHAPES`].
    Shape(u8),
    /// It is a version that was saved before.
    Older(u32),
    /// It is gone.
    Deleted,
    /// It is a directory.
    Directory,
    /// It is a symbolic link to what it was.
    Link,
    /// It is a symbolic link to nothing.
    DanglingLink,
    /// Nobody may read it.
    Unreadable,
    /// It holds random bytes, and is restored from a copy: the nth, the newest being 0.
    Restored(u32),
    /// It is to be restored, and there is no copy.
    NothingToRestore,
}

/// JSON that is no state.
pub const SHAPES: [&str; 6] = ["{}", "[]", "null", "0", "\"state\"", "{\"state\":null}\n"];

/// Kinds of [`Harm`], as a scenario names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HarmKind {
    /// See [`Harm::Cut`].
    Cut,
    /// See [`Harm::Flip`].
    Flip,
    /// See [`Harm::Garbage`].
    Garbage,
    /// See [`Harm::Shape`].
    Shape,
    /// See [`Harm::Older`].
    Older,
    /// See [`Harm::Deleted`].
    Deleted,
    /// See [`Harm::Directory`].
    Directory,
    /// See [`Harm::Link`] and [`Harm::DanglingLink`].
    Link,
    /// See [`Harm::Unreadable`].
    Unreadable,
    /// See [`Harm::Restored`].
    Restored,
}

/// Which copies of the state are harmed like it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Copies {
    /// None.
    #[default]
    Spared,
    /// The newest.
    Newest,
    /// All.
    All,
}

impl Copies {
    fn are_spared(&self) -> bool {
        *self == Self::Spared
    }
}

impl Harming {
    /// Whether it is one of a few, and the program is asked to save again after it; of the many it is
    /// asked only to load.
    #[must_use]
    pub fn is_thorough(&self) -> bool {
        const EVERY: u64 = 256;
        match self.how {
            Harm::Cut(length) => length.is_multiple_of(EVERY),
            Harm::Flip(byte, bit) => bit == 0 && byte.is_multiple_of(EVERY),
            _ => true,
        }
    }

    /// One for all of its kind.
    #[must_use]
    pub fn coarse(self) -> Self {
        let how = match self.how {
            Harm::Cut(_) => Harm::Cut(0),
            Harm::Flip(..) => Harm::Flip(0, 0),
            Harm::Garbage(_) => Harm::Garbage(0),
            other => other,
        };
        Self { how, ..self }
    }
}

impl fmt::Display for Harming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.how {
            Harm::Cut(0) => f.write_str("the state file is empty"),
            Harm::Cut(length) => write!(f, "the state file is cut to {length} bytes"),
            Harm::Flip(byte, bit) => {
                write!(f, "bit {bit} of byte {byte} of the state file is flipped")
            }
            Harm::Garbage(seed) => write!(f, "the state file holds random bytes (seed {seed})"),
            Harm::Shape(n) => {
                let shape = SHAPES.get(usize::from(n)).copied().unwrap_or_default();
                write!(f, "the state file holds {}", shape.trim())
            }
            Harm::Older(version) => write!(f, "the state file is version {version} again"),
            Harm::Deleted => f.write_str("the state file is gone"),
            Harm::Directory => f.write_str("the state file is a directory"),
            Harm::Link => f.write_str("the state file is a link to what it was"),
            Harm::DanglingLink => f.write_str("the state file is a link to nothing"),
            Harm::Unreadable => f.write_str("the state file may be read by nobody"),
            Harm::Restored(n) => write!(f, "the state file is restored from copy {n} of it"),
            Harm::NothingToRestore => f.write_str("the state file holds random bytes, and no copy"),
        }?;
        f.write_str(match self.copies {
            Copies::Spared => "",
            Copies::Newest => ", and so is its newest copy",
            Copies::All => ", and so are all its copies",
        })
    }
}

/// What lies there between two runs.
#[derive(Clone, Debug, Default)]
pub struct Rest {
    /// Everything in the directory.
    pub directory: BTreeMap<PathBuf, Node>,
    /// The state files.
    pub files: Vec<PathBuf>,
    /// The copies of versions, the newest first: where, and of which version.
    pub copies: Vec<(PathBuf, usize)>,
    /// For each version but the last, its state files.
    older: Vec<BTreeMap<PathBuf, Vec<u8>>>,
}

/// A directory that was harmed; by default it was not.
#[derive(Clone, Debug, Default)]
pub struct Harmed {
    /// What is another now.
    pub changed: BTreeMap<PathBuf, Option<Node>>,
    /// What nobody may read.
    pub unreadable: Vec<PathBuf>,
    /// The newest version of which a whole copy is left, the state file itself included; of a restored
    /// one, that version.
    pub whole: Option<usize>,
    /// The copy from which it is to be restored.
    pub restore: Option<PathBuf>,
}

impl Rest {
    /// What an unbroken run leaves: these files, of these versions.
    #[must_use]
    pub fn of(files: &Files, history: &History) -> Self {
        let node = |path: &Path| match files.get(path)? {
            model::Node::File(bytes) => Some(Node::File(bytes.clone())),
            model::Node::Directory => Some(Node::Directory),
            model::Node::Symlink(target) => Some(Node::Symlink(target.clone())),
        };
        let directory: BTreeMap<PathBuf, Node> =
            files.paths().filter_map(|path| Some((path.to_owned(), node(path)?))).collect();
        let state: Vec<PathBuf> = history.files().into_iter().cloned().collect();
        let mut copies = Vec::new();
        for (path, node) in &directory {
            let Node::File(bytes) = node else { continue };
            let is = |version: &crate::history::States| {
                state.iter().any(|file| version.get(file).is_some_and(|one| one.bytes == *bytes))
            };
            if !state.contains(path)
                && !path.is_absolute()
                && let Some(version) = history.versions.iter().rposition(is)
            {
                copies.push((path.clone(), version));
            }
        }
        copies.sort_by_key(|(_, version)| std::cmp::Reverse(*version));
        let before_last = history.versions.split_last().map_or(&[][..], |(_, older)| older);
        let bytes = |version: &crate::history::States| {
            version.iter().map(|(path, one)| (path.clone(), one.bytes.clone())).collect()
        };
        Self { older: before_last.iter().map(bytes).collect(), directory, files: state, copies }
    }

    /// How many bytes there are in the state files that lie in the directory.
    fn bytes(&self) -> u64 {
        let length = |path| match self.directory.get(path) {
            Some(Node::File(bytes)) => bytes.len() as u64,
            _ => 0,
        };
        self.files.iter().map(length).max().unwrap_or(0)
    }

    /// All harms of these kinds, or of cuts and flips as many as `most` allows; and whether these are
    /// all.
    #[must_use]
    pub fn harms(&self, kinds: &[HarmKind], seed: Seed, most: usize) -> (Vec<Fault>, bool) {
        let mut random = ChaCha8Rng::seed_from_u64(seed.0);
        let bytes = usize::try_from(self.bytes()).unwrap_or(usize::MAX);
        let (mut few, mut whole) = (Vec::new(), true);
        let (mut many, mut alone) = (Vec::new(), Vec::new());
        for kind in kinds {
            match kind {
                HarmKind::Cut => many.push((bytes, false)),
                HarmKind::Flip => many.push((bytes.saturating_mul(8), true)),
                HarmKind::Garbage => few.extend((0..4).map(|_| Harm::Garbage(random.next_u64()))),
                HarmKind::Shape => few.extend((0..).zip(SHAPES).map(|(n, _)| Harm::Shape(n))),
                HarmKind::Older => {
                    let whole = |(_, older): &(u32, &BTreeMap<PathBuf, Vec<u8>>)| {
                        self.files.iter().all(|file| older.contains_key(file))
                    };
                    let older = (0..).zip(&self.older).filter(whole);
                    alone.extend(older.map(|(n, _)| Harm::Older(n)));
                }
                HarmKind::Deleted => few.push(Harm::Deleted),
                HarmKind::Directory => few.push(Harm::Directory),
                HarmKind::Link => few.extend([Harm::Link, Harm::DanglingLink]),
                HarmKind::Unreadable => few.push(Harm::Unreadable),
                HarmKind::Restored => alone.extend(self.restored()),
            }
        }
        let copies = match self.copies.len() {
            0 => &[Copies::Spared][..],
            // Of several state files it is not known which copies belong together.
            _ if self.files.len() > 1 => &[Copies::Spared, Copies::All],
            1 => &[Copies::Spared, Copies::All],
            _ => &[Copies::Spared, Copies::Newest, Copies::All],
        };
        let with = |how| copies.iter().map(move |copies| Harming { how, copies: *copies });
        let spared = |how| Harming { how, copies: Copies::Spared };
        let few = few.into_iter().flat_map(with);
        let mut harms: Vec<Harming> = few.chain(alone.into_iter().map(spared)).collect();
        let share = most.saturating_sub(harms.len()) / many.len().max(1);
        // Of what happens to copies too, some.
        let of_copies = COPIES_HARMED.min(share / 4);
        let share = share - of_copies * (copies.len() - 1);
        for (count, flips) in many {
            let harm = |n: usize| match flips {
                true => Harm::Flip(n as u64 / 8, u8::try_from(n % 8).unwrap_or(0)),
                false => Harm::Cut(n as u64),
            };
            whole &= count <= share;
            let mut chosen = index::sample(&mut random, count, count.min(share)).into_vec();
            chosen.sort_unstable();
            harms.extend(chosen.iter().map(|n| spared(harm(*n))));
            let some = index::sample(&mut random, count, count.min(of_copies)).into_vec();
            let also = copies.iter().filter(|copies| !copies.are_spared());
            let both = also.flat_map(|copies| some.iter().map(move |n| (*copies, *n)));
            harms.extend(both.map(|(copies, n)| Harming { how: harm(n), copies }));
        }
        (harms.into_iter().map(Fault::AtRest).collect(), whole)
    }

    /// A restore from each copy.
    fn restored(&self) -> Vec<Harm> {
        match self.copies.len() {
            0 => vec![Harm::NothingToRestore],
            copies => (0..copies).map(|n| Harm::Restored(count(n))).collect(),
        }
    }

    /// Does it.
    #[must_use]
    pub fn harmed(&self, harming: Harming) -> Harmed {
        let copies = match harming.copies {
            Copies::Spared => 0,
            Copies::Newest => 1,
            Copies::All => self.copies.len(),
        };
        let struck = &self.copies[..copies.min(self.copies.len())];
        let mut harmed = Harmed::default();
        let paths = self.files.iter().chain(struck.iter().map(|(path, _)| path));
        for path in paths {
            let Some(Node::File(bytes)) = self.directory.get(path) else { continue };
            self.harm(harming.how, path, bytes, &mut harmed);
        }
        // A shorter copy may lie before the place that was harmed.
        let left = self.copies.iter().find(|(path, _)| !harmed.changed.contains_key(path));
        harmed.whole = left.map(|(_, version)| *version);
        match harming.how {
            Harm::Older(version) => harmed.whole = harmed.whole.max(Some(version as usize)),
            Harm::Restored(n) => {
                if let Some((path, version)) = self.copies.get(n as usize) {
                    (harmed.whole, harmed.restore) = (Some(*version), Some(path.clone()));
                }
            }
            _ => {}
        }
        harmed
    }

    fn harm(&self, how: Harm, path: &Path, bytes: &[u8], harmed: &mut Harmed) {
        let whole = || Node::File(bytes.to_vec());
        let node = match how {
            Harm::Cut(length) => {
                let length = usize::try_from(length).unwrap_or(usize::MAX).min(bytes.len());
                Some(Node::File(bytes[..length].to_vec()))
            }
            Harm::Flip(byte, bit) => {
                let mut bytes = bytes.to_vec();
                if let Some(byte) = usize::try_from(byte).ok().and_then(|n| bytes.get_mut(n)) {
                    *byte ^= 1 << bit;
                }
                Some(Node::File(bytes))
            }
            Harm::Garbage(_) | Harm::Restored(_) | Harm::NothingToRestore => {
                let seed = if let Harm::Garbage(seed) = how { seed } else { 0 };
                let mut garbage = vec![0; bytes.len()];
                ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut garbage);
                Some(Node::File(garbage))
            }
            Harm::Shape(n) => {
                let shape = SHAPES.get(usize::from(n)).copied().unwrap_or_default();
                Some(Node::File(shape.into()))
            }
            Harm::Older(version) => {
                let older = self.older.get(version as usize).and_then(|older| older.get(path));
                older.map(|bytes| Node::File(bytes.clone()))
            }
            Harm::Deleted => None,
            Harm::Directory => Some(Node::Directory),
            Harm::Link | Harm::DanglingLink => {
                let mut name = path.file_name().unwrap_or_default().to_owned();
                name.push(".moved");
                if how == Harm::Link {
                    harmed.changed.insert(path.with_file_name(&name), Some(whole()));
                }
                Some(Node::Symlink(name.into()))
            }
            Harm::Unreadable => {
                harmed.unreadable.push(path.to_owned());
                Some(whole())
            }
        };
        // What nobody may read is another file, though its bytes are the same.
        if how == Harm::Unreadable || node.as_ref() != Some(&whole()) {
            harmed.changed.insert(path.to_owned(), node);
        }
    }
}

/// Of how many cuts, and of how many flips, the copies are harmed too, at most.
const COPIES_HARMED: usize = 64;

/// What a load of a harmed directory is worth; the promises that are not asked about are for the caller
/// to leave out.
#[must_use]
pub fn judge(outcome: &Outcome, harming: Harming, promises: &BTreeSet<Promise>) -> Verdict {
    let whole = match outcome.injection {
        crate::fault::Injection::At(Struck::AtRest { whole }) => whole,
        _ => return Verdict::Inconclusive(Why::NotReached),
    };
    let violation = |kind, detail: String| Violation { kind, detail };
    let mut found = Vec::new();
    let recovery = &outcome.recovery;
    let nothing = harming.copies == Copies::All && harming.how == Harm::Deleted;
    let hopeless = whole.is_none() && harming.copies == Copies::All;
    match (&recovery.load, &recovery.loaded) {
        (Load::NotTried, _) => {}
        (Load::Hung, _) => {
            let detail = format!("{harming}: the load did not end in time");
            found.push(violation(ViolationKind::RecoveryHung, detail));
        }
        (Load::Failed(_), _) if hopeless => {}
        (Load::Failed(why), _) => {
            found.push(violation(ViolationKind::RecoveryFailed, format!("{harming}: {why}")));
        }
        (Load::Default, _) if nothing => {}
        (Load::Default, _) => {
            let detail = format!("{harming}, and the load began with the default state");
            found.push(violation(ViolationKind::Reset, detail));
        }
        (Load::Loaded, Loaded::NoVersion(_)) if nothing => {}
        (Load::Loaded, Loaded::NoVersion(what)) => {
            let detail = format!("{harming}, and the load took it: {what}");
            found.push(violation(ViolationKind::SilentDamage, detail));
        }
        (Load::Loaded, Loaded::Version(version))
            if matches!(harming.how, Harm::Restored(_)) && Some(*version) > whole =>
        {
            let detail =
                format!("{harming}, and version {version} was loaded: nothing was restored");
            found.push(violation(ViolationKind::RecoveryFailed, detail));
        }
        (Load::Loaded, Loaded::Version(version)) => {
            if let Some(whole) = whole.filter(|whole| version < whole) {
                let detail = format!(
                    "{harming}: version {version} was loaded, and a whole copy of version {whole} is there"
                );
                found.push(violation(ViolationKind::LostAck, detail));
            }
        }
        (Load::Loaded, Loaded::Unknown) => {}
    }
    if let (NextSave::Failed(why), Load::Loaded | Load::Default) =
        (&recovery.next_save, &recovery.load)
    {
        let detail = format!("{harming}: {why}");
        found.push(violation(ViolationKind::CannotSaveAgain, detail));
    }
    found.extend(outcome.checks.iter().filter_map(oracle::check));
    let taken_unseen = (&recovery.load, &recovery.loaded) == (&Load::Loaded, &Loaded::Unknown);
    match found.is_empty() {
        // What it took for its state is known to nobody, and nobody has looked at what it left.
        true if taken_unseen && outcome.checks.is_empty() && promises.contains(&Promise::Sound) => {
            Verdict::Inconclusive(Why::NotComparable)
        }
        true => Verdict::Pass,
        false => Verdict::Violated(found),
    }
}
