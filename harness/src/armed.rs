//! When a fault strikes: a pure function of the calls seen so far.

use crate::fault::{Fault, Point, Strike};
use crate::op::Call;

/// A fault waiting for its call. Calls of other kinds need not be shown to it.
#[derive(Clone, Debug)]
pub struct Armed {
    strike: Option<Strike>,
    then: Then,
    seen: u32,
}

/// What happens after a call that was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The subject is killed.
    Kill,
    /// The call returns the shortened count and the subject goes on.
    GoOn,
}

/// What is to be done with a call that is about to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Pass,
    /// Kill now; the call is not made.
    KillBefore,
    /// Let this many bytes of it through.
    Cut {
        /// How many; fewer than the call asks for.
        keep: usize,
        /// What then.
        then: Then,
    },
    /// Let it be made whole, then kill.
    KillAfter,
}

impl Armed {
    /// Arms `fault`.
    #[must_use]
    pub fn new(fault: &Fault) -> Self {
        match fault {
            Fault::Kill(strike) => Self { strike: Some(strike.clone()), then: Then::Kill, seen: 0 },
            Fault::ShortWrite(strike) => {
                Self { strike: Some(strike.clone()), then: Then::GoOn, seen: 0 }
            }
            Fault::KillAfter { .. } => Self { strike: None, then: Then::Kill, seen: 0 },
        }
    }

    /// The kind of call that it waits for.
    #[must_use]
    pub fn call(&self) -> Option<Call> {
        self.strike.as_ref().map(|strike| strike.call)
    }

    /// Decides on the next call, which asks for `length` bytes (0 when it moves none).
    pub fn decide(&mut self, call: Call, length: usize) -> Action {
        let Some(strike) = &self.strike else { return Action::Pass };
        if call != strike.call {
            return Action::Pass;
        }
        self.seen += 1;
        if self.seen != strike.nth {
            return Action::Pass;
        }
        match strike.point {
            Point::Before => Action::KillBefore,
            Point::After => Action::KillAfter,
            Point::Inside(byte) => {
                let keep = usize::try_from(byte.0).unwrap_or(usize::MAX);
                match self.then {
                    then if keep < length => Action::Cut { keep, then },
                    // The call is shorter than the one that was recorded: there is no inside here.
                    Then::Kill => Action::KillAfter,
                    Then::GoOn => Action::Pass,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Nature;
    use crate::op::{ByteOffset, OpIndex};

    fn armed(nth: u32, point: Point) -> Armed {
        let (op, call, nature) = (OpIndex(0), Call::Write, Nature::Natural);
        Armed::new(&Fault::Kill(Strike { op, call, nth, point, nature }))
    }

    #[test]
    fn it_strikes_at_the_nth_call_of_its_kind_and_never_again() {
        let mut armed = armed(2, Point::Before);
        assert_eq!(armed.decide(Call::Open, 0), Action::Pass);
        assert_eq!(armed.decide(Call::Write, 9), Action::Pass);
        assert_eq!(armed.decide(Call::Rename, 0), Action::Pass);
        assert_eq!(armed.decide(Call::Write, 9), Action::KillBefore);
        assert_eq!(armed.decide(Call::Write, 9), Action::Pass);
    }

    #[test]
    fn a_cut_past_the_end_of_a_shorter_write_is_a_kill_after_it() {
        let cut = Point::Inside(ByteOffset(5));
        assert_eq!(armed(1, cut).decide(Call::Write, 6), Action::Cut { keep: 5, then: Then::Kill });
        assert_eq!(armed(1, cut).decide(Call::Write, 5), Action::KillAfter);
    }
}
