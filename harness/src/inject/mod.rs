//! The seam between deciding and doing: a trial goes in, facts come out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::error::{Error, Result};
use crate::fault::Fault;
use crate::op::Trace;
use crate::outcome::{Check, Outcome, Recovery, Step, Survivor};
use crate::power::survivor::Node;
use crate::subject::{About, Kind, Prepared};
use crate::tree::Directory;
use crate::volume::Volume;

pub mod armed_storage;
pub mod at_rest;
pub mod bot;
pub mod builtin;
pub mod builtin_recorder;
pub mod by_turns;
pub mod checks;
pub mod command;
pub mod decode;
pub mod guard;
pub mod hand;
pub mod line;
pub mod live;
pub mod meeting;
pub mod output;
pub mod outside;
pub mod recorder;
pub mod resident;
pub mod runner;
pub mod striker;
pub mod survivors;
pub mod tracer;
pub mod transfer;

/// What is left of a run that was not made: a directory, and what the world was told.
#[derive(Clone, Debug)]
pub struct Left {
    /// Everything in the directory.
    pub directory: BTreeMap<PathBuf, Node>,
    /// The state files.
    pub survivor: Survivor,
    /// How many acks had been given.
    pub acks: u64,
}

impl Left {
    /// How many bytes there are in all files.
    #[must_use]
    pub fn size(&self) -> usize {
        let size = |node: &Node| if let Node::File(bytes) = node { bytes.len() } else { 0 };
        self.directory.values().map(size).sum::<usize>() + self.survivor.size() + 256
    }

    /// Puts everything into `directory`, which is empty.
    pub fn unfold(&self, directory: &Path) -> std::io::Result<()> {
        let directory = Directory::open(directory)?;
        // Directories come before what is in them.
        for (path, node) in &self.directory {
            // What lies outside is not ours to change.
            if path.is_absolute() {
                continue;
            }
            match node {
                Node::Directory => directory.make_all(path).map(drop)?,
                Node::Symlink(target) => directory.symlink(target, path)?,
                Node::File(bytes) => directory.write(path, bytes)?,
            }
        }
        Ok(())
    }
}

/// What a subject did to recover.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Its calls.
    pub trace: Trace,
    /// Whether its end promises that all of it is saved.
    pub ended: bool,
}

/// Does trials.
pub trait Injector {
    /// How many trials it does at once; asking for fewer is no error.
    fn together(&self) -> usize {
        1
    }
    /// Does trials and reports the facts of each.
    fn inject(&mut self, faults: &[Fault]) -> Result<Vec<Outcome>>;
    /// Shows the subject a directory as its next start would find it.
    fn confront(&mut self, _left: &Left) -> Result<(Vec<Check>, Recovery)> {
        Err(Error::internal("this subject is shown nothing"))
    }
    /// Records what the subject does to recover from such a directory, if it has a way to.
    fn recover(&mut self, _left: &Left) -> Result<Option<Recovered>> {
        Err(Error::internal("this subject is shown nothing"))
    }
    /// Does a trial again to see what the subject does from the strike on, if it is told of that.
    fn explain(&mut self, _fault: &Fault) -> Result<Vec<Step>> {
        Ok(Vec::new())
    }
    /// Keeps a copy of what the next trial leaves, before any check or recovery.
    fn keep_in(&mut self, directory: PathBuf);
}

/// The injector for a subject, working in `room`, which lies on `volume` if that is given.
pub fn for_subject<'a>(
    prepared: &'a Prepared,
    room: &Path,
    volume: Option<Rc<Volume>>,
) -> Result<Box<dyn Injector + 'a>> {
    match (&prepared.about, &prepared.kind) {
        (About::Run, _) => {}
        (About::Rest(rest), _) => return Ok(Box::new(at_rest::AtRest::new(prepared, rest, room)?)),
        (About::Meeting, _) => return Ok(Box::new(meeting::Meetings::new(prepared, room)?)),
        (About::Outside, Kind::BuiltIn(subject)) => {
            return Ok(Box::new(outside::Outside::new(subject.strategy, room)));
        }
        (About::Outside, Kind::Bot(bot)) => {
            return Ok(Box::new(bot::Partings::new(&bot.command, &prepared.sites, room)?));
        }
        (About::Outside, _) => return Err(Error::internal("no bot is known")),
    }
    match &prepared.kind {
        Kind::BuiltIn(subject) => {
            Ok(Box::new(builtin::BuiltInInjector::new(subject, &prepared.sites, room, volume)?))
        }
        Kind::Command(subject) => {
            Ok(Box::new(command::CommandInjector::new(subject, prepared, room, volume)?))
        }
        Kind::Recorded(_) => Err(Error::usage("a recording can't be run")),
        Kind::Live(_) | Kind::Bot(_) => {
            Err(Error::usage("a program that is not followed can't be struck"))
        }
    }
}
