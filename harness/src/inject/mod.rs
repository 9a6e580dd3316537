//! The seam between deciding and doing: a trial goes in, facts come out.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::error::Result;
use crate::fault::Fault;
use crate::outcome::{Outcome, Step};
use crate::subject::{Kind, Prepared};
use crate::volume::Volume;

pub mod armed_storage;
pub mod builtin;
pub mod builtin_recorder;
pub mod checks;
pub mod command;
pub mod decode;
pub mod hand;
pub mod output;
pub mod recorder;
pub mod runner;
pub mod striker;
pub mod tracer;
pub mod transfer;

/// Does trials.
pub trait Injector {
    /// How many trials it does at once; asking for fewer is no error.
    fn together(&self) -> usize {
        1
    }
    /// Does trials and reports the facts of each.
    fn inject(&mut self, faults: &[Fault]) -> Result<Vec<Outcome>>;
    /// Does a trial again to see what the subject does from the strike on.
    fn explain(&mut self, fault: &Fault) -> Result<Vec<Step>>;
    /// Keeps a copy of what the next trial leaves, before any check or recovery.
    fn keep_in(&mut self, directory: PathBuf);
}

/// The injector for a subject, working in `room`, which lies on `volume` if that is given.
pub fn for_subject<'a>(
    prepared: &'a Prepared,
    room: &Path,
    volume: Option<Rc<Volume>>,
) -> Result<Box<dyn Injector + 'a>> {
    match &prepared.kind {
        Kind::BuiltIn(subject) => {
            Ok(Box::new(builtin::BuiltInInjector::new(subject, &prepared.sites, room, volume)?))
        }
        Kind::Command(subject) => {
            Ok(Box::new(command::CommandInjector::new(subject, prepared, room, volume)?))
        }
    }
}
