//! The seam between deciding and doing: a trial goes in, facts come out.

use std::path::Path;

use crate::error::{Error, Result};
use crate::fault::Fault;
use crate::outcome::Outcome;
use crate::subject::{Kind, Prepared};

pub mod builtin;

/// Does trials.
pub trait Injector {
    /// Does one trial and reports the facts.
    fn inject(&mut self, fault: &Fault) -> Result<Outcome>;
}

/// The injector for a subject, working in `room`.
pub fn for_subject<'a>(prepared: &'a Prepared, room: &Path) -> Result<Box<dyn Injector + 'a>> {
    match &prepared.kind {
        Kind::BuiltIn(subject) => {
            Ok(Box::new(builtin::BuiltInInjector::new(subject, &prepared.sites, room)?))
        }
        Kind::Command(_) => Err(Error::internal("commands are not here yet")),
    }
}
