//! The outside world of a bot: a broker with a ledger of his own, and how a state is brought in line
//! with it after a time in which nobody looked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::event::Event;
use super::state::{Action, Order, Position, Settlement, State, Status};

/// Differences of balance up to this many cents are no error: one unit of currency.
pub const TOLERANCE: i64 = 100;

/// An order, as the broker has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerOrder {
    /// The id that the client chose.
    pub id: String,
    /// What is traded.
    pub symbol: String,
    /// Whether it buys or sells.
    pub action: Action,
    /// How many.
    pub quantity: i64,
    /// What it cost, or brought, in cents.
    pub price: i64,
    /// How far it is.
    pub status: Status,
}

/// What the ledger says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ledger {
    /// Realised cash, in cents.
    pub cash: i64,
    /// How many are held of each symbol.
    pub positions: BTreeMap<String, i64>,
    /// All settlements so far.
    pub settlements: Vec<Settlement>,
    /// All orders so far.
    pub orders: Vec<BrokerOrder>,
}

/// Why a broker does not answer as he should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerError {
    /// The connection broke: what was asked may have been done, or not.
    Unknown(String),
    /// He does not take the order.
    Refused(String),
}

impl fmt::Display for BrokerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(why) => write!(f, "no answer came, it may be done or not: {why}"),
            Self::Refused(why) => write!(f, "refused: {why}"),
        }
    }
}

impl std::error::Error for BrokerError {}

/// A broker. Orders are told apart by the client's id: one that comes twice is carried out once.
pub trait Broker {
    /// Sends an order.
    fn submit(&mut self, order: &Order) -> Result<BrokerOrder, BrokerError>;
    /// Takes one back.
    fn cancel(&mut self, id: &str) -> Result<(), BrokerError>;
    /// What the ledger says now.
    fn ledger(&mut self) -> Result<Ledger, BrokerError>;
}

/// What came of bringing a state in line with a ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// What was changed.
    pub events: Vec<Event>,
    /// Open orders at the broker that nobody knows; to be cancelled.
    pub orphans: Vec<String>,
}

/// Brings a state in line with a ledger: settlements that were missed are applied once, statuses are
/// those of the broker, an order that he never saw is no order, and where cash or positions differ, the
/// ledger is right.
pub fn reconcile(state: &mut State, ledger: &Ledger, now: DateTime<Utc>) -> Reconciled {
    let mut done = Reconciled::default();
    let theirs: BTreeMap<&str, &BrokerOrder> =
        ledger.orders.iter().map(|order| (order.id.as_str(), order)).collect();
    let mut filled = Vec::new();
    for order in &mut state.orders {
        let id = order.id.clone();
        match theirs.get(id.as_str()) {
            Some(known) if known.status != order.status => {
                order.status = known.status;
                if known.status == Status::Filled {
                    filled.push((id.clone(), known.price));
                }
                done.events.push(Event::OrderUpdated { id, status: known.status });
            }
            None if !order.status.is_final() => {
                order.status = Status::Rejected;
                done.events.push(Event::OrderNeverSent(id));
            }
            Some(_) | None => {}
        }
    }
    for (id, price) in filled {
        done.events.extend(state.fill(&id, price, now));
    }
    for settlement in &ledger.settlements {
        done.events.extend(state.settle(settlement, now));
    }
    let ours: BTreeSet<&str> = state.orders.iter().map(|order| order.id.as_str()).collect();
    let orphan =
        |order: &&BrokerOrder| order.status == Status::Open && !ours.contains(order.id.as_str());
    done.orphans = ledger.orders.iter().filter(orphan).map(|order| order.id.clone()).collect();
    done.events.extend(positions(state, ledger));
    if (state.current_balance - ledger.cash).abs() > TOLERANCE {
        let was = state.current_balance;
        done.events.push(Event::BalanceCorrected { was, ledger: ledger.cash });
        done.events.extend(state.set_balance(ledger.cash, "the ledger says so", now));
    }
    done
}

/// Makes the positions those of the ledger.
fn positions(state: &mut State, ledger: &Ledger) -> Vec<Event> {
    let mut events = Vec::new();
    let symbols: BTreeSet<String> = state
        .positions
        .iter()
        .map(|p| p.symbol.clone())
        .chain(ledger.positions.keys().cloned())
        .collect();
    for symbol in symbols {
        let held = ledger.positions.get(&symbol).copied().unwrap_or(0);
        let known = state.positions.iter().position(|position| position.symbol == symbol);
        let was = known.map_or(0, |at| state.positions[at].quantity);
        if was == held {
            continue;
        }
        events.push(Event::PositionCorrected { symbol: symbol.clone(), was, ledger: held });
        match known {
            Some(at) if held == 0 => {
                state.positions.remove(at);
            }
            Some(at) => state.positions[at].quantity = held,
            None => {
                let opened = opened(state, ledger, &symbol, held);
                state.positions.extend(opened);
            }
        }
    }
    events
}

/// A position that the ledger has, with the order that opened it.
fn opened(state: &mut State, ledger: &Ledger, symbol: &str, quantity: i64) -> Option<Position> {
    let filled = |order: &&BrokerOrder| order.symbol == symbol && order.status == Status::Filled;
    let order = ledger.orders.iter().rev().find(filled)?;
    if state.order(&order.id).is_none() {
        let known = Order::new(&order.id, symbol, order.action, order.quantity);
        state.orders.push(Order { status: order.status, ..known });
    }
    let (symbol, entry_price) = (symbol.to_owned(), order.price);
    Some(Position { symbol, quantity, entry_price, order: order.id.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(id: &str, status: Status) -> Order {
        Order { status, ..Order::new(id, "UP", Action::Buy, 10) }
    }

    fn theirs(id: &str, status: Status) -> BrokerOrder {
        let Order { id, symbol, action, quantity, .. } = order(id, status);
        BrokerOrder { id, symbol, action, quantity, price: 500, status }
    }

    fn state(orders: Vec<Order>) -> State {
        State { orders, ..State::new(100_000, "s", DateTime::UNIX_EPOCH) }
    }

    #[test]
    fn an_order_that_was_sent_before_the_crash_is_known_again_and_one_that_was_not_is_none() {
        let mut state =
            state(vec![order("sent", Status::Submitting), order("not", Status::Submitting)]);
        let ledger = Ledger {
            cash: 95_000,
            positions: [("UP".to_owned(), 10)].into(),
            orders: vec![theirs("sent", Status::Filled), theirs("whose", Status::Open)],
            settlements: Vec::new(),
        };
        let done = reconcile(&mut state, &ledger, DateTime::UNIX_EPOCH);
        assert_eq!(state.order("sent").map(|o| o.status), Some(Status::Filled));
        assert_eq!(state.order("not").map(|o| o.status), Some(Status::Rejected));
        assert_eq!(done.orphans, ["whose"]);
        assert_eq!((state.positions[0].quantity, &*state.positions[0].order), (10, "sent"));
        assert_eq!((state.current_balance, state.complaints()), (95_000, vec![]));
        // The second time there is nothing to do.
        let again = reconcile(&mut state, &ledger, DateTime::UNIX_EPOCH);
        assert_eq!(again.events, []);
    }

    #[test]
    fn a_balance_within_one_unit_is_left_and_one_beyond_is_the_ledgers() {
        let mut state = state(Vec::new());
        let ledger = |cash| Ledger { cash, ..Ledger::default() };
        assert_eq!(reconcile(&mut state, &ledger(99_900), DateTime::UNIX_EPOCH).events, []);
        assert_eq!(state.current_balance, 100_000);
        let done = reconcile(&mut state, &ledger(99_899), DateTime::UNIX_EPOCH);
        assert_eq!(done.events, [Event::BalanceCorrected { was: 100_000, ledger: 99_899 }]);
        assert_eq!(state.current_balance, 99_899);
    }

    #[test]
    fn a_position_that_was_settled_while_the_bot_was_down_is_applied_once() {
        let mut state = state(vec![order("o1", Status::Filled)]);
        state.current_balance = 95_000;
        let (symbol, order) = ("UP".to_owned(), "o1".to_owned());
        state.positions.push(Position { symbol, quantity: 10, entry_price: 500, order });
        let settlements = vec![Settlement { id: "s1".into(), symbol: "UP".into(), profit: 700 }];
        let orders = vec![theirs("o1", Status::Filled)];
        let ledger = Ledger { cash: 100_700, settlements, orders, ..Ledger::default() };
        let done = reconcile(&mut state, &ledger, DateTime::UNIX_EPOCH);
        let corrected = |event: &Event| matches!(event, Event::BalanceCorrected { .. });
        assert!(!done.events.iter().any(corrected), "{:?}", done.events);
        assert_eq!(reconcile(&mut state, &ledger, DateTime::UNIX_EPOCH).events, []);
        assert_eq!((state.current_balance, state.realised_profit), (100_700, 700));
        assert_eq!((state.peak_balance, state.positions.len()), (100_700, 0));
    }
}
