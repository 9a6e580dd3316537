//! The seam between deciding and doing: a trial goes in, facts come out.

use crate::error::Result;
use crate::fault::Fault;
use crate::outcome::Outcome;

pub mod builtin;

/// Does trials.
pub trait Injector {
    /// Does one trial and reports the facts.
    fn inject(&mut self, fault: &Fault) -> Result<Outcome>;
}
