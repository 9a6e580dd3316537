//! The seam between deciding and doing: a trial goes in, facts come out.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::fault::Fault;
use crate::outcome::Outcome;
use crate::subject::{Kind, Prepared};

pub mod builtin;
pub mod builtin_recorder;
pub mod checks;
pub mod command;
pub mod decode;
pub mod hand;
pub mod output;
pub mod recorder;
pub mod runner;
pub mod tracer;

/// Does trials.
pub trait Injector {
    /// How many trials it does at once; asking for fewer is no error.
    fn together(&self) -> usize {
        1
    }
    /// Does trials and reports the facts of each.
    fn inject(&mut self, faults: &[Fault]) -> Result<Vec<Outcome>>;
    /// Keeps a copy of what the next trial leaves, before any check or recovery.
    fn keep_in(&mut self, directory: PathBuf);
}

/// The injector for a subject, working in `room`.
pub fn for_subject<'a>(prepared: &'a Prepared, room: &Path) -> Result<Box<dyn Injector + 'a>> {
    match &prepared.kind {
        Kind::BuiltIn(subject) => {
            Ok(Box::new(builtin::BuiltInInjector::new(subject, &prepared.sites, room)?))
        }
        Kind::Command(subject) => {
            Ok(Box::new(command::CommandInjector::new(subject, prepared, room)?))
        }
    }
}
