//! Which files of a baseline run are its state.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::baseline::Unbroken;
use crate::error::{Error, Result};
use crate::inject::command::no_sites;
use crate::model;
use crate::op::{Effect, Trace};
use crate::outcome::{Content, Survivor};
use crate::state_files::{self, StateFiles};
use crate::subject::Command;

/// How many names a note lists.
const NAMES_MAX: usize = 10;

/// Chooses the state files: those that the user names, or those that the run leaves changed.
pub fn choose_state(
    name: &str,
    command: &Command,
    run: &Unbroken,
    notes: &mut Vec<String>,
) -> Result<StateFiles> {
    let changed = changed(run);
    if let Some((path, what)) = too_large(&run.after) {
        return Err(Error::baseline(format!("{} of `{name}` is {what}", path.display()))
            .help("allow more with --max-data MIB"));
    }
    if !command.state.is_empty() {
        let given = StateFiles::given(&command.state)?;
        few_enough(name, changed.iter().filter(|path| given.contains(path)).count())?;
        if changed.iter().any(|path| given.contains(path)) {
            return Ok(given);
        }
        let found: Vec<_> = changed.iter().map(|path| path.display().to_string()).collect();
        let error = Error::baseline(format!(
            "`{name}` leaves no file that matches --state {}",
            command.state.join(" --state ")
        ));
        return Err(if found.is_empty() {
            no_sites(name)
        } else {
            error.help(format!("it leaves {}", found.join(", ")))
        });
    }
    let (state, companions) = state_files::choose(&changed, &passing(&run.trace));
    if state.is_empty() {
        return Err(no_sites(name));
    }
    few_enough(name, state.len())?;
    let list =
        |paths: &BTreeSet<PathBuf>| listed(paths.iter().map(|path| path.display().to_string()));
    let mut note = format!("state found: {}", list(&state));
    if !companions.is_empty() {
        note += &format!("; not judged: {} (--state GLOB changes that)", list(&companions));
    }
    notes.push(note);
    Ok(StateFiles::Found(state))
}

/// How many state files are judged at once.
const STATE_FILES_MAX: usize = 1000;

fn few_enough(name: &str, count: usize) -> Result<()> {
    if count <= STATE_FILES_MAX {
        return Ok(());
    }
    Err(Error::baseline(format!(
        "`{name}` changes {count} files, and at most {STATE_FILES_MAX} state files are judged at once"
    ))
    .help("name those that matter with --state GLOB"))
}

/// A list of names, which may be long.
pub fn listed(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(NAMES_MAX);
    let names = names.take(NAMES_MAX).collect::<Vec<_>>().join(", ");
    match more {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}

/// Names that are no state by what is done with them: what is renamed away, and what a symbolic
/// link leads to.
fn passing(trace: &Trace) -> BTreeSet<PathBuf> {
    let done = || trace.ops.iter().filter(|op| op.succeeded());
    let targets: BTreeSet<&PathBuf> = done()
        .filter_map(|op| match &op.effect {
            Effect::Rename { to, .. } => Some(to),
            _ => None,
        })
        .collect();
    let names = done().filter_map(|op| match &op.effect {
        // A state that is moved away for its successor is no temp file.
        Effect::Rename { from, .. } if targets.contains(from) => None,
        Effect::Rename { from, .. } => Some(from.clone()),
        Effect::Symlink { target, path } => {
            let directory = path.parent().unwrap_or(Path::new(""));
            Some(model::plain(&directory.join(target)))
        }
        _ => None,
    });
    names.collect()
}

/// The files that a run has left changed.
fn changed(run: &Unbroken) -> BTreeSet<PathBuf> {
    let differs = |path: &Path, bytes: &[u8]| run.before.bytes(path) != Some(bytes);
    if run.serves {
        // It was ended in the middle of something: what counts is what it had done by its last ack.
        let mut files = run.before.clone();
        if run.trace.ops.iter().all(|op| files.apply(op).is_ok()) {
            let paths = files
                .paths()
                .filter(|path| files.bytes(path).is_some_and(|bytes| differs(path, bytes)));
            return paths.map(Path::to_owned).collect();
        }
    }
    let files = run.after.files.iter().filter(|(path, content)| match content {
        Content::Bytes(bytes) => differs(path, bytes),
        Content::Other(_) => false,
    });
    files.map(|(path, _)| path.clone()).collect()
}

fn too_large(survivor: &Survivor) -> Option<(&PathBuf, &String)> {
    survivor.files.iter().find_map(|(path, content)| match content {
        Content::Other(what) if what.contains("more than is read") => Some((path, what)),
        Content::Other(_) | Content::Bytes(_) => None,
    })
}
