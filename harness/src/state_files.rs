//! Which of a program's files are its state.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::error::{Error, Result};

/// The state files of a program.
#[derive(Clone, Debug)]
pub enum StateFiles {
    /// Those that match the user's globs.
    Given(GlobSet),
    /// Those that were found.
    Found(BTreeSet<PathBuf>),
}

impl StateFiles {
    /// Reads globs, which are relative to the trial directory; `*` stops at a slash.
    pub fn given(globs: &[String]) -> Result<Self> {
        let mut set = GlobSetBuilder::new();
        for text in globs {
            let text = text.trim_start_matches("./").trim_start_matches("{dir}/");
            let glob = globset::GlobBuilder::new(text).literal_separator(true).build();
            let glob: Glob = glob.map_err(|error| {
                Error::usage(format!("`--state {text}` is not a glob: {}", error.kind()))
                    .help("quote special characters with a backslash, or name the file")
            })?;
            set.add(glob);
        }
        set.build().map(Self::Given).map_err(|error| Error::usage(format!("--state: {error}")))
    }

    /// Whether a path, relative to the trial directory, is state.
    #[must_use]
    pub fn contains(&self, path: &Path) -> bool {
        match self {
            Self::Given(globs) => globs.is_match(path),
            Self::Found(files) => files.contains(path),
        }
    }
}

/// Chooses the state among the files that a run left changed; the rest are companions, such as
/// backups and logs.
///
/// A file is a companion if its name says so (`.bak`, `.tmp`, `.log`, `.lock`, `.pid`, a directory
/// with `backup` in its name), or if it is another changed file's name with more behind it
/// (`state.json.1`), or if it is `passing`: renamed away again and again, or what a symbolic link
/// leads to. If only companions were changed they are the state.
#[must_use]
pub fn choose(
    changed: &BTreeSet<PathBuf>,
    passing: &BTreeSet<PathBuf>,
) -> (BTreeSet<PathBuf>, BTreeSet<PathBuf>) {
    let is_companion = |path: &&PathBuf| {
        says_companion(path) || passing.contains(*path) || extends_one(path, changed)
    };
    let (companions, state): (BTreeSet<_>, BTreeSet<_>) =
        changed.iter().partition(|path| is_companion(path));
    let owned = |set: BTreeSet<&PathBuf>| set.into_iter().cloned().collect::<BTreeSet<_>>();
    if state.is_empty() {
        return (owned(companions), BTreeSet::new());
    }
    (owned(state), owned(companions))
}

/// Whether the name says that it is a backup, a log, a lock or the like.
#[must_use]
pub fn says_companion(path: &Path) -> bool {
    const ENDINGS: [&str; 9] =
        [".bak", ".tmp", ".temp", ".log", ".lock", ".pid", ".old", "~", ".pyc"];
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let in_backups = path.parent().is_some_and(|parent| {
        let parent = parent.to_string_lossy().to_lowercase();
        parent.contains("backup") || parent.contains("__pycache__")
    });
    let called_backup = name.contains("backup") || name.contains(".bak.") || name == "bak";
    in_backups || called_backup || ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// Whether `path` is the name of one of `others`, in the same directory, with more behind it.
fn extends_one(path: &Path, others: &BTreeSet<PathBuf>) -> bool {
    let Some(name) = path.file_name().map(OsStr::as_bytes) else { return false };
    let ends = name.iter().enumerate().skip(1).filter(|(_, byte)| b".-_~".contains(byte));
    let mut bases = ends.map(|(end, _)| path.with_file_name(OsStr::from_bytes(&name[..end])));
    bases.any(|base| others.contains(&base))
}

/// Names of files that a program leaves when nothing goes wrong. Numbers in them count for nothing:
/// of a backup with a date or a count in its name, each run leaves another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownNames(BTreeSet<String>);

impl KnownNames {
    /// Adds names.
    pub fn extend<'a>(&mut self, paths: impl IntoIterator<Item = &'a PathBuf>) {
        self.0.extend(paths.into_iter().map(|path| without_numbers(path)));
    }

    /// Whether a name is one of them.
    #[must_use]
    pub fn contains(&self, path: &Path) -> bool {
        self.0.contains(&without_numbers(path))
    }
}

/// A name with `#` for each number in it.
fn without_numbers(path: &Path) -> String {
    let mut plain = String::new();
    for c in path.to_string_lossy().chars() {
        match c {
            '0'..='9' if plain.ends_with('#') => {}
            '0'..='9' => plain.push('#'),
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(changed: &[&str]) -> Vec<String> {
        let changed = changed.iter().map(PathBuf::from).collect();
        choose(&changed, &BTreeSet::new()).0.iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn backups_logs_and_temps_are_companions() {
        let changed =
            ["state.json", "state.json.1", "state.json.tmp", "bot.log", "backups/state.json"];
        assert_eq!(chosen(&changed), ["state.json"]);
    }

    #[test]
    fn several_files_can_be_state_and_a_lone_log_too() {
        assert_eq!(chosen(&["a.json", "b.json"]), ["a.json", "b.json"]);
        assert_eq!(chosen(&["wal.log"]), ["wal.log"]);
    }

    #[test]
    fn globs_stop_at_slashes_and_may_begin_with_the_directory() {
        let state = StateFiles::given(&["*.json".into(), "{dir}/data/*".into()]).unwrap();
        assert!(state.contains(Path::new("a.json")));
        assert!(!state.contains(Path::new("x/a.json")));
        assert!(state.contains(Path::new("data/a")));
        assert!(StateFiles::given(&["[".into()]).is_err());
    }

    #[test]
    fn a_backup_with_another_number_is_known_and_a_random_name_is_not() {
        let mut known = KnownNames::default();
        known.extend([&PathBuf::from("state.json.bak.1"), &PathBuf::from("b/2026-01-01.json")]);
        assert!(known.contains(Path::new("state.json.bak.12")));
        assert!(known.contains(Path::new("b/2027-12-31.json")));
        assert!(!known.contains(Path::new(".state.json.3f9a")));
    }
}
