//! The evidence of violations: what was asked, what was met, and the files that were left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{RunDirectory, TEMPORARY, read_json, runs, unkept, write_json};
use crate::difference::Difference;
use crate::error::{Error, Result};
use crate::fault::Injection;
use crate::lab;
use crate::outcome::{Content, Exit, Outcome, Step};
use crate::power::explain::Explanation;
use crate::subject::Subject;
use crate::sweep::Reach;
use crate::tree::Directory;
use crate::trial::Trial;
use crate::verdict::{Promise, Violation};

pub(super) const VIOLATIONS: &str = "violations";
const VIOLATION: &str = "violation.json";
const SURVIVOR: &str = "survivor";
const WHOLE: &str = "directory";

/// A violation that is kept, and all that is needed to replay it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// The trial's id.
    pub id: String,
    /// The trial.
    pub trial: Trial,
    /// The subject.
    pub subject: Subject,
    /// On what small disk it was, if it was on one.
    pub reach: Reach,
    /// The promises that were judged.
    pub promises: BTreeSet<Promise>,
    /// What the fault met.
    pub injection: Injection,
    /// How many acks the world saw.
    pub acks: u64,
    /// What was broken.
    pub violations: Vec<Violation>,
    /// How the subject ended.
    pub exit: Exit,
    /// What it did from the strike on.
    pub steps: Vec<Step>,
    /// What the subject called, as a hash, if what is left follows from that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls: Option<u64>,
    /// What drew what was drawn.
    #[serde(default)]
    pub seed: u64,
    /// Why it broke, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explanation>,
    /// Where the state files differ from the version that they are most like.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
}

impl RunDirectory {
    /// Where a violation is kept. An id that is none, from a file that was changed, names a directory that is
    /// never there.
    #[must_use]
    pub fn violation(&self, id: &str) -> PathBuf {
        self.path.join(VIOLATIONS).join(if is_id(id) { id } else { "(no id)" })
    }

    /// Keeps the whole directory of a kept violation, which `fill` copies to where it is told to, or to nowhere.
    pub fn keep_whole(&self, id: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        appear(&self.violation(id), WHOLE, fill)
    }

    /// Keeps a violation and what survived.
    pub fn keep(&self, kept: &Kept, outcome: &Outcome) -> Result<()> {
        let violations = self.path.join(VIOLATIONS);
        fs::create_dir_all(&violations).map_err(|error| unkept(&violations, &error))?;
        appear(&violations, &kept.id, |directory| {
            let survivor = directory.join(SURVIVOR);
            write_files(&survivor, &outcome.survivor.files)
                .map_err(|error| unkept(&survivor, &error))?;
            write_json(&directory.join(VIOLATION), kept)
        })
    }
}

/// Fills a directory that appears in `parent` as a whole or not at all. Where one of that name is already, it
/// stays: another worker, or the run before it was broken off, has kept the same.
fn appear(parent: &Path, name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let path = parent.join(name);
    if path.exists() {
        return Ok(());
    }
    // No id begins with a dot: what is not whole is not found by its id.
    let partial = parent.join(format!(".{name}.{}.{TEMPORARY}", std::process::id()));
    let cannot = |error: io::Error| unkept(&path, &error);
    lab::remove_tree(&partial).map_err(cannot)?;
    fill(&partial).inspect_err(|_| {
        let _ = lab::remove_tree(&partial);
    })?;
    match fs::rename(&partial, &path) {
        Err(_) if path.exists() => lab::remove_tree(&partial).map_err(cannot),
        Err(_) if !partial.exists() => Ok(()),
        moved => moved.map_err(cannot),
    }
}

fn write_files(directory: &Path, files: &BTreeMap<PathBuf, Content>) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let directory = Directory::open(directory)?;
    for (file, content) in files {
        let Content::Bytes(bytes) = content else { continue };
        // Absolute paths, of what a sandbox has redirected, are kept below the directory too.
        directory.write(file.strip_prefix("/").unwrap_or(file), bytes)?;
    }
    Ok(())
}

/// Finds a kept violation by its id, or by the beginning of it; and the directory of what
/// survived.
pub fn find_kept(root: &Path, id: &str) -> Result<(Kept, PathBuf)> {
    // The survivor may be read when the working directory is another one.
    let root = &fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    let mut found: Vec<PathBuf> = Vec::new();
    for run in runs(root) {
        for entry in fs::read_dir(run.join(VIOLATIONS)).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let named = is_id(&name) && name.starts_with(id);
            if named && entry.path().join(VIOLATION).is_file() {
                found.push(entry.path());
            }
        }
    }
    let names: BTreeSet<_> = found.iter().filter_map(|path| path.file_name()).collect();
    match (names.len(), found.pop()) {
        (1, Some(newest)) => Ok((read_json(&newest.join(VIOLATION))?, newest.join(SURVIVOR))),
        (0, _) | (_, None) => {
            Err(Error::usage(format!("no violation `{id}` is kept in {}", root.display()))
                .help("the table of a run prints the ids; --results names another place"))
        }
        (several, _) => {
            Err(Error::usage(format!("`{id}` is the beginning of {several} ids; give more of it")))
        }
    }
}

/// The violations that a run kept, those that can be read.
#[must_use]
pub fn kept(run: &Path) -> Vec<Kept> {
    let entries = fs::read_dir(run.join(VIOLATIONS)).into_iter().flatten().flatten();
    let whole = entries.filter(|entry| is_id(&entry.file_name().to_string_lossy()));
    whole.filter_map(|entry| read_json(&entry.path().join(VIOLATION)).ok()).collect()
}

/// Whether a text can be the id of a violation: it becomes the name of a directory.
#[must_use]
pub fn is_id(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=64).contains(&text.len()) && text.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::Shard;

    #[test]
    fn what_two_workers_keep_is_there_once_and_whole_and_what_was_broken_off_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDirectory::create(root.path(), "x", Shard::default()).unwrap();
        let parent = run.path().join(VIOLATIONS).join("abc");
        fs::create_dir_all(&parent).unwrap();
        for content in ["first", "second"] {
            let fill = |to: &Path| {
                fs::create_dir(to).and_then(|()| fs::write(to.join("file"), content)).unwrap();
                if content == "first" {
                    // Meanwhile another one keeps the same.
                    fs::create_dir(parent.join(WHOLE)).unwrap();
                    fs::write(parent.join(WHOLE).join("file"), "other").unwrap();
                }
                Ok(())
            };
            run.keep_whole("abc", fill).unwrap();
            assert_eq!(fs::read_to_string(parent.join(WHOLE).join("file")).unwrap(), "other");
            assert_eq!(fs::read_dir(&parent).unwrap().count(), 1);
        }
        let failed = run.keep_whole("abc", |_| Err(Error::usage("no space")));
        assert!(failed.is_ok(), "it is there");
        fs::remove_dir_all(parent.join(WHOLE)).unwrap();
        let failed = run.keep_whole("abc", |to| {
            fs::create_dir(to).unwrap();
            Err(Error::usage("no space"))
        });
        assert!(failed.is_err() && fs::read_dir(&parent).unwrap().count() == 0);
        fs::create_dir(parent.join(".directory.1.tmp")).unwrap();
        fs::create_dir(run.path().join(VIOLATIONS).join(".def.1.tmp")).unwrap();
        run.tidy();
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 0);
        assert_eq!(fs::read_dir(run.path().join(VIOLATIONS)).unwrap().count(), 1);
    }
}
