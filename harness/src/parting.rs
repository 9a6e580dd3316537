//! A bot and its broker part: the connection breaks, or the bot is killed, at any moment of an order's
//! life; then the bot starts again.
//!
//! The moments are its storage calls and what it asks the broker, in their order in the unbroken life.
//! A request can be lost on the way there, or its answer on the way back, which the bot can't tell apart.
//! What counts is the ledger: no order twice, none that the bot does not know, and cash and positions as
//! the ledger has them. The ledger may move on while the bot is down.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::fault::{Injection, Struck};
use crate::outcome::Outcome;
use crate::verdict::{Verdict, Violation, ViolationKind, Why};

/// When and how they part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Parting {
    /// When.
    pub at: Moment,
    /// Whether the ledger moves on before the bot starts again: what is held is settled.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moves_on: bool,
}

/// A moment in the life of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// The bot is killed before its nth storage call, from 0.
    Killed(u32),
    /// The nth request, from 0, does not come to the broker, nor any later one.
    Unsent(u32),
    /// The answer to the nth request does not come to the bot, nor any later one.
    Unanswered(u32),
    /// The bot is killed when it has sent the nth request, which is carried out.
    KilledUnanswered(u32),
    /// The bot is killed when it has had the answer to the nth request.
    KilledAnswered(u32),
    /// Nothing happens, and the bot ends by itself.
    AtTheEnd,
}

/// What the ledger and the bot say in the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sides {
    /// How many orders of each kind the ledger has, beside how many there are to be.
    pub orders: Vec<(usize, usize)>,
    /// Orders of the ledger that the bot does not know.
    pub unknown: Vec<String>,
    /// Cash and holding by the ledger.
    pub ledger: (i64, i64),
    /// And by the bot; why not, if it can't be asked.
    pub bot: Result<(i64, i64), String>,
    /// What `--check` says of a program and its broker, if it objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objection: Option<String>,
}

impl Sides {
    /// Of a program, of which nothing is known but what its check says.
    #[must_use]
    pub fn of_program() -> Self {
        Self {
            orders: Vec::new(),
            unknown: Vec::new(),
            ledger: (0, 0),
            bot: Ok((0, 0)),
            objection: None,
        }
    }
}

impl fmt::Display for Parting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Moment::Killed(n) => write!(f, "the bot is killed before storage call {n}"),
            Moment::Unsent(n) => write!(f, "request {n} does not come to the broker"),
            Moment::Unanswered(n) => write!(f, "the answer to request {n} does not come back"),
            Moment::KilledUnanswered(n) => {
                write!(f, "the bot is killed before it has the answer to request {n}")
            }
            Moment::KilledAnswered(n) => {
                write!(f, "the bot is killed when it has the answer to request {n}")
            }
            Moment::AtTheEnd => f.write_str("the bot ends"),
        }?;
        f.write_str(if self.moves_on {
            ", and the ledger moves on before it starts again"
        } else {
            ""
        })
    }
}

/// Whose turn it was to say something, and what becomes of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The other side hears it.
    Passed,
    /// Nobody hears it, nor anything after it.
    Lost,
    /// It is held, and the bot is killed.
    Held,
}

/// What a bot and its broker say in turn, over a line that breaks at some moment.
///
/// A request is all that a bot says on a connection until it is answered, whatever the language.
#[derive(Clone, Debug)]
pub struct Turns {
    at: Moment,
    requests: u32,
    broken: bool,
}

impl Turns {
    /// A line that breaks then.
    #[must_use]
    pub fn new(at: Moment) -> Self {
        Self { at, requests: 0, broken: false }
    }

    /// How many requests there were.
    #[must_use]
    pub fn requests(&self) -> u32 {
        self.requests
    }

    /// Whether nothing comes through any more.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// The bot asks.
    pub fn asked(&mut self) -> Turn {
        let n = self.requests;
        self.requests += 1;
        self.broken |= self.at == Moment::Unsent(n);
        if self.broken { Turn::Lost } else { Turn::Passed }
    }

    /// The broker answers what was asked last.
    pub fn answered(&mut self) -> Turn {
        let Some(n) = self.requests.checked_sub(1) else { return Turn::Passed };
        self.broken |= self.at == Moment::Unanswered(n);
        match self.at {
            _ if self.broken => Turn::Lost,
            Moment::KilledUnanswered(at) if at == n => Turn::Held,
            _ => Turn::Passed,
        }
    }
}

/// All partings of a program's life. That it is killed when it has had an answer is before its next
/// storage call.
#[must_use]
pub fn all_of_program(calls: u32, requests: u32, moves_on: bool) -> Vec<Parting> {
    let all = all(calls, requests, moves_on);
    all.into_iter().filter(|one| !matches!(one.at, Moment::KilledAnswered(_))).collect()
}

/// All partings of a life with so many storage calls and so many requests.
#[must_use]
pub fn all(calls: u32, requests: u32, moves_on: bool) -> Vec<Parting> {
    let killed = (0..calls).map(Moment::Killed);
    let parted = (0..requests).flat_map(|n| {
        [
            Moment::Unsent(n),
            Moment::Unanswered(n),
            Moment::KilledUnanswered(n),
            Moment::KilledAnswered(n),
        ]
    });
    let end = moves_on.then_some(Moment::AtTheEnd);
    killed.chain(parted).chain(end).map(|at| Parting { at, moves_on }).collect()
}

/// What a parting is worth.
#[must_use]
pub fn judge(outcome: &Outcome, parting: Parting) -> Verdict {
    let Injection::At(Struck::Parted { sides }) = &outcome.injection else {
        return Verdict::Inconclusive(Why::NotReached);
    };
    // What a program says comes with line ends.
    let violation =
        |kind, what: String| Violation { kind, detail: format!("{parting}: {}", what.trim()) };
    let mut found = Vec::new();
    if let Some((there, due)) = sides.orders.iter().find(|(there, due)| there > due) {
        let what = format!("the ledger has {there} orders where there should be {due}");
        found.push(violation(ViolationKind::DoubleOrder, what));
    }
    // In the end the life is a whole one, unless there is nothing left to sell.
    if let Some((there, _)) =
        sides.orders.iter().find(|(there, due)| there < due && !parting.moves_on)
    {
        let what = format!("the ledger has {there} orders where the bot has meant one to be");
        found.push(violation(ViolationKind::Diverged, what));
    }
    if let Some(id) = sides.unknown.first() {
        let what = format!("the bot does not know the order {id} of the ledger");
        found.push(violation(ViolationKind::OrphanOrder, what));
    }
    let (cash, held) = sides.ledger;
    match &sides.bot {
        Err(why) => found.push(violation(ViolationKind::RecoveryFailed, why.clone())),
        Ok((own_cash, own_held)) => {
            if *own_held != held || (own_cash - cash).abs() > TOLERANCE {
                let what = format!(
                    "the bot has {own_cash} cents and {own_held} pieces, by the ledger {cash} and {held}"
                );
                found.push(violation(ViolationKind::Diverged, what));
            }
        }
    }
    if let Some(objection) = &sides.objection {
        found.push(violation(ViolationKind::Diverged, objection.clone()));
    }
    match found.is_empty() {
        true => Verdict::Pass,
        false => Verdict::Violated(found),
    }
}

/// How far the bot's cash may be from the ledger's, in cents.
const TOLERANCE: i64 = crashtest_targets::managed::broker::TOLERANCE;

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of each request and of its answer.
    fn said(at: Moment, requests: usize) -> Vec<Turn> {
        let mut turns = Turns::new(at);
        (0..requests).flat_map(|_| [turns.asked(), turns.answered()]).collect()
    }

    #[test]
    fn a_line_breaks_once_and_for_all_and_a_bot_is_killed_once() {
        use Turn::{Held, Lost, Passed};
        assert_eq!(said(Moment::Unsent(1), 3), [Passed, Passed, Lost, Lost, Lost, Lost]);
        assert_eq!(said(Moment::Unanswered(1), 3), [Passed, Passed, Passed, Lost, Lost, Lost]);
        assert_eq!(said(Moment::KilledUnanswered(0), 1), [Passed, Held]);
        assert_eq!(said(Moment::AtTheEnd, 2), [Passed; 4]);
        // A broker that greets is not asked.
        assert_eq!(Turns::new(Moment::Unanswered(0)).answered(), Passed);
    }
}
