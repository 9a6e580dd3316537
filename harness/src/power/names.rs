//! The names of a crash state, and which of them matter.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{EntryIndex, Ino, Kind, Lowered, StepChange, Time, names_in};

/// How many symbolic links are followed (`MAXSYMLINKS`).
const LINKS_MAX: usize = 40;

/// What the entries lead to, by a set of steps.
#[derive(Clone, Debug)]
pub struct NamesView {
    entries: Vec<(Option<Ino>, Time)>,
}

/// What an entry was before a step: how to go back.
pub type Undo = Vec<(EntryIndex, Option<Ino>, Time)>;

impl NamesView {
    /// The names at the start.
    #[must_use]
    pub fn new(lowered: &Lowered) -> Self {
        Self { entries: lowered.first.iter().map(|ino| (*ino, Time(0))).collect() }
    }

    /// Does a step. Steps may come in any order: an entry is what its latest one made it.
    pub fn apply(&mut self, lowered: &Lowered, step: u32) -> Undo {
        let step = &lowered.steps[step as usize];
        let StepChange::Names(changes) = &step.change else { return Vec::new() };
        let mut undo = Vec::new();
        for (entry, ino) in changes {
            let current = &mut self.entries[entry.0 as usize];
            // Times begin at 0, which is also the time of the first names.
            if step.time >= current.1 {
                undo.push((*entry, current.0, current.1));
                *current = (*ino, step.time);
            }
        }
        undo
    }

    /// Takes a step back.
    pub fn undo(&mut self, undo: Undo) {
        for (entry, ino, time) in undo.into_iter().rev() {
            self.entries[entry.0 as usize] = (ino, time);
        }
    }

    fn get(&self, entry: EntryIndex) -> Option<Ino> {
        self.entries[entry.0 as usize].0
    }

    /// All paths that lead to something, directories too.
    #[must_use]
    pub fn all(&self, lowered: &Lowered) -> Vec<(PathBuf, Ino)> {
        let mut below: HashMap<Ino, Vec<(&OsString, Ino)>> = HashMap::new();
        for (index, entry) in lowered.entries.iter().enumerate() {
            if let Some(ino) = self.entries[index].0 {
                below.entry(entry.directory).or_default().push((&entry.name, ino));
            }
        }
        let mut found = Vec::new();
        let mut open = vec![(PathBuf::new(), Ino(0), 0), (PathBuf::from("/"), Ino(1), 0)];
        while let Some((path, directory, depth)) = open.pop() {
            for (name, ino) in below.get(&directory).into_iter().flatten() {
                let path = path.join(name);
                // Directories that were moved into each other in a state that loses one of the moves.
                if lowered.inode(*ino).kind == Kind::Directory && depth < LINKS_MAX {
                    open.push((path.clone(), *ino, depth + 1));
                }
                found.push((path, *ino));
            }
        }
        found.sort();
        found
    }
}

impl Lowered {
    /// What a path leads to, by way of symbolic links too.
    #[must_use]
    pub fn find(&self, names: &NamesView, path: &Path) -> Option<Ino> {
        let mut path = Cow::Borrowed(path);
        for _ in 0..LINKS_MAX {
            let ino = self.find_here(names, &path)?;
            let Kind::Symlink(target) = &self.inode(ino).kind else { return Some(ino) };
            let directory = path.parent().unwrap_or(Path::new(""));
            path = Cow::Owned(crate::model::plain(&directory.join(target)));
        }
        None
    }

    fn find_here(&self, names: &NamesView, path: &Path) -> Option<Ino> {
        let mut ino = if path.is_absolute() { Ino(1) } else { Ino(0) };
        for name in names_in(path) {
            let entries = self.below.get(&ino)?;
            ino = names.get(*entries.get(name)?)?;
        }
        Some(ino)
    }
}

/// For each step, whether it can make a difference to what these paths lead to or hold.
///
/// It does not if it only changes names that occur in none of the paths and lead to no directory.
#[must_use]
pub fn relevant(lowered: &Lowered, paths: &[PathBuf]) -> Vec<bool> {
    let links = lowered.inodes.iter().any(|inode| matches!(inode.kind, Kind::Symlink(_)));
    let occurs =
        |name: &OsString| links || paths.iter().any(|path| names_in(path).any(|part| part == name));
    let is_directory =
        |ino: &Option<Ino>| ino.is_some_and(|ino| lowered.inode(ino).kind == Kind::Directory);
    let relevant = |change: &StepChange| match change {
        StepChange::Names(changes) => changes.iter().any(|(entry, ino)| {
            occurs(&lowered.entries[entry.0 as usize].name) || is_directory(ino)
        }),
        StepChange::Resize { .. } => true,
        StepChange::Closed => false,
    };
    lowered.steps.iter().map(|step| relevant(&step.change)).collect()
}
