//! Trials of damage at rest: harm what an unbroken run has left, and have the subject load it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crashtest_targets::{Disk, Origin};

use super::builtin::save_again;
use super::command::CommandInjector;
use super::{Injector, Left};
use crate::at_rest::{Harmed, Rest};
use crate::error::{Context, Error, Result};
use crate::fault::{Fault, Injection, Struck};
use crate::lab;
use crate::outcome::{Check, Content, Exit, Load, Loaded, NextSave, Outcome, Recovery, Survivor};
use crate::power::survivor::Node;
use crate::subject::{BuiltIn, Kind, Prepared};

/// Has a subject load what was harmed.
pub struct AtRest<'a> {
    rest: &'a Rest,
    loads: Box<dyn Loads + 'a>,
    keep: Option<PathBuf>,
}

/// How a subject loads.
trait Loads {
    /// Makes the directory what it is after that harm, keeps a copy in `keep`, and loads what is there;
    /// if `thorough`, saves once more.
    fn load(
        &mut self,
        harmed: &Harmed,
        thorough: bool,
        keep: Option<&Path>,
    ) -> Result<(Vec<Check>, Recovery)>;
}

impl<'a> AtRest<'a> {
    /// An injector that works in `room`.
    pub fn new(prepared: &'a Prepared, rest: &'a Rest, room: &Path) -> Result<Self> {
        let loads: Box<dyn Loads + 'a> = match &prepared.kind {
            Kind::BuiltIn(subject) => {
                let directory = room.join("rest");
                Box::new(OfBuiltIn { subject, rest, directory, changed: None })
            }
            Kind::Command(learned) => {
                let injector = CommandInjector::new(learned, prepared, room, None)?;
                Box::new(OfCommand { injector, rest, prepared, comparable: None })
            }
            Kind::Recorded(_) | Kind::Live(_) | Kind::Bot(_) => {
                return Err(Error::usage("what lies at rest must be loaded by a program")
                    .help("give a strategy, or a program that ends by itself"));
            }
        };
        Ok(Self { rest, loads, keep: None })
    }

    fn one(&mut self, fault: &Fault) -> Result<Outcome> {
        let Fault::AtRest(harming) = fault else {
            return Err(Error::internal("only what lies at rest is harmed here"));
        };
        let harmed = self.rest.harmed(*harming);
        let mut outcome = Outcome {
            survivor: survivor(self.rest, &harmed),
            ..Outcome::new(
                fault.clone(),
                Injection::At(Struck::AtRest { whole: harmed.whole }),
                Exit::Killed,
            )
        };
        // Root may read everything; and what is as it was is not harmed.
        let readable = !harmed.unreadable.is_empty() && nix::unistd::geteuid().is_root();
        let harms = self.rest.files.iter().any(|file| harmed.changed.contains_key(file));
        if readable || !harms {
            outcome.injection = Injection::NotReached;
            return Ok(outcome);
        }
        let keep = self.keep.take();
        (outcome.checks, outcome.recovery) =
            self.loads.load(&harmed, harming.is_thorough() || keep.is_some(), keep.as_deref())?;
        Ok(outcome)
    }
}

impl Injector for AtRest<'_> {
    fn together(&self) -> usize {
        64
    }

    fn inject(&mut self, faults: &[Fault]) -> Result<Vec<Outcome>> {
        faults.iter().map(|fault| self.one(fault)).collect()
    }

    fn keep_in(&mut self, directory: PathBuf) {
        self.keep = Some(directory);
    }
}

/// The state files after a harm.
fn survivor(rest: &Rest, harmed: &Harmed) -> Survivor {
    let mut survivor = Survivor::default();
    for path in &rest.files {
        let node = match harmed.changed.get(path) {
            Some(node) => node.as_ref(),
            None => rest.directory.get(path),
        };
        let content = match node {
            None => continue,
            Some(Node::File(bytes)) => Content::Bytes(bytes.clone()),
            Some(Node::Directory) => Content::Other("a directory".to_owned()),
            Some(Node::Symlink(_)) => Content::Other("a symbolic link".to_owned()),
        };
        survivor.files.insert(path.clone(), content);
    }
    survivor
}

/// Loads of a built-in strategy.
struct OfBuiltIn<'a> {
    subject: &'a BuiltIn,
    rest: &'a Rest,
    directory: PathBuf,
    /// What of the directory is not as it was left; `None` if it must be made anew.
    changed: Option<Vec<PathBuf>>,
}

impl OfBuiltIn<'_> {
    fn make(&mut self, harmed: &Harmed) -> io::Result<()> {
        match self.changed.take() {
            None => {
                lab::remove_tree(&self.directory)?;
                fs::create_dir_all(&self.directory)?;
                left(self.rest, &BTreeMap::new()).unfold(&self.directory)?;
            }
            Some(changed) => {
                for path in changed.iter().filter(|path| !harmed.changed.contains_key(*path)) {
                    put(&self.directory.join(path), self.rest.directory.get(path))?;
                }
            }
        }
        for (path, node) in &harmed.changed {
            put(&self.directory.join(path), node.as_ref())?;
        }
        for path in &harmed.unreadable {
            fs::set_permissions(self.directory.join(path), fs::Permissions::from_mode(0o000))?;
        }
        self.changed = Some(harmed.changed.keys().cloned().collect());
        Ok(())
    }

    fn loaded(&self) -> (Load, Loaded) {
        match self.subject.strategy.load(&self.directory) {
            Ok(loaded) if loaded.origin == Origin::Default => (Load::Default, Loaded::Unknown),
            Ok(loaded) => (Load::Loaded, self.subject.loaded(&loaded.state)),
            Err(error) => (Load::Failed(error.to_string()), Loaded::Unknown),
        }
    }
}

impl Loads for OfBuiltIn<'_> {
    fn load(
        &mut self,
        harmed: &Harmed,
        thorough: bool,
        keep: Option<&Path>,
    ) -> Result<(Vec<Check>, Recovery)> {
        self.make(harmed).context(format_args!("harm {}", self.directory.display()))?;
        if let Some(keep) = keep {
            lab::copy_tree(&self.directory, keep)
                .context(format_args!("keep a copy in {}", keep.display()))?;
        }
        if let Some(copy) = &harmed.restore {
            let (strategy, mut disk) = (self.subject.strategy, Disk::default());
            if let Err(error) = strategy.restore(&mut disk, &self.directory, copy) {
                let load = Load::Failed(format!("the restore failed: {error}"));
                self.changed = None;
                return Ok((Vec::new(), Recovery { load, ..Recovery::default() }));
            }
        }
        let panicked = |_| (Load::Failed("the load panicked".to_owned()), Loaded::Unknown);
        let (load, loaded) =
            catch_unwind(AssertUnwindSafe(|| self.loaded())).unwrap_or_else(panicked);
        let mut next_save = NextSave::NotTried;
        if thorough {
            next_save = save_again(self.subject, &self.directory);
            self.changed = None;
        }
        Ok((Vec::new(), Recovery { load, loaded, next_save, leftovers: Vec::new() }))
    }
}

/// Makes a path what it is to be, whatever it is.
fn put(path: &Path, node: Option<&Node>) -> io::Result<()> {
    let there = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        other => Some(other?),
    };
    let in_place =
        |there: &fs::Metadata| there.is_file() && there.permissions().mode() & 0o200 != 0;
    if let Some(there) =
        there.filter(|there| !in_place(there) || !matches!(node, Some(Node::File(_))))
    {
        if there.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
    }
    match node {
        None => Ok(()),
        Some(Node::File(bytes)) => fs::write(path, bytes),
        Some(Node::Directory) => fs::create_dir(path),
        Some(Node::Symlink(target)) => std::os::unix::fs::symlink(target, path),
    }
}

/// What lies there after a harm.
fn left(rest: &Rest, changed: &BTreeMap<PathBuf, Option<Node>>) -> Left {
    let mut directory = rest.directory.clone();
    for (path, node) in changed {
        match node {
            Some(node) => directory.insert(path.clone(), node.clone()),
            None => directory.remove(path),
        };
    }
    // What lies there was saved, and acknowledged.
    Left { directory, survivor: Survivor::default(), acks: 1 }
}

/// Loads of a program, by the user's command.
struct OfCommand<'a> {
    injector: CommandInjector<'a>,
    rest: &'a Rest,
    prepared: &'a Prepared,
    /// Whether what it prints of an undamaged state is the last version; asked before the first harm.
    comparable: Option<bool>,
}

impl OfCommand<'_> {
    fn is_comparable(&mut self) -> Result<bool> {
        if let Some(known) = self.comparable {
            return Ok(known);
        }
        let none = Harmed::default();
        let whole = Left { survivor: survivor(self.rest, &none), ..left(self.rest, &none.changed) };
        let versions = &self.prepared.history.versions;
        let (_, recovery) = self
            .injector
            .load_at_rest(&whole, &none, false, &|said| said_version(said, versions))?;
        if let Load::Failed(why) = &recovery.load {
            let what = format!("the undamaged state is not loaded: {why}");
            return Err(Error::baseline(what).help(
                "is that how the program loads its state? --load is run by sh in its directory",
            ));
        }
        let comparable = matches!(recovery.loaded, Loaded::Version(_));
        self.comparable = Some(comparable);
        Ok(comparable)
    }
}

impl Loads for OfCommand<'_> {
    fn load(
        &mut self,
        harmed: &Harmed,
        thorough: bool,
        keep: Option<&Path>,
    ) -> Result<(Vec<Check>, Recovery)> {
        let left =
            Left { survivor: survivor(self.rest, harmed), ..left(self.rest, &harmed.changed) };
        // What it prints of a whole state is no version: then it says nothing of a damaged one.
        let comparable = self.is_comparable()?;
        if let Some(keep) = keep {
            self.injector.keep_in(keep.to_owned());
        }
        let versions = &self.prepared.history.versions;
        let version = |said: &[u8]| match comparable {
            true => said_version(said, versions),
            false => Loaded::Unknown,
        };
        self.injector.load_at_rest(&left, harmed, thorough, &version)
    }
}

/// Which version it is that a load has printed as JSON: a state file, or a member of one.
fn said_version(said: &[u8], versions: &[crate::history::States]) -> Loaded {
    let Ok(said) = serde_json::from_slice::<serde_json::Value>(said) else {
        return Loaded::Unknown;
    };
    let is = |bytes: &[u8]| match serde_json::from_slice::<serde_json::Value>(bytes) {
        Ok(serde_json::Value::Object(members)) => {
            // A scalar, or an object with nothing in it, says nothing.
            let whole = said.as_object().is_some_and(|said| !said.is_empty());
            (whole && members.values().any(|member| *member == said))
                || said.as_object().is_some_and(|said| *said == members)
        }
        Ok(other) => other == said,
        Err(_) => false,
    };
    let version = versions.iter().rposition(|version| version.values().any(|one| is(&one.bytes)));
    match version {
        Some(version) => Loaded::Version(version),
        None => Loaded::NoVersion("what --load prints is no version".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::history::{Reference, States};

    #[test]
    fn what_a_load_prints_is_found_among_the_versions_or_their_members() {
        let version = |text: &str| {
            let bytes = text.as_bytes().to_vec();
            States::unit(PathBuf::from("s"), Arc::new(Reference { bytes, template: None }))
        };
        let versions = [version(r#"{"a":1}"#), version(r#"{"crc":7,"state":{"a":2}}"#)];
        assert_eq!(said_version(br#" {"a": 1}"#, &versions), Loaded::Version(0));
        assert_eq!(said_version(br#"{"a":2}"#, &versions), Loaded::Version(1));
        assert!(matches!(said_version(br#"{"a":3}"#, &versions), Loaded::NoVersion(_)));
        assert_eq!(said_version(b"loaded", &versions), Loaded::Unknown);
    }
}
