//! What a trading bot must not lose, and what of it can't be.

use std::collections::BTreeSet;
use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::event::Event;

/// After so many days without a change of the peak somebody should look.
pub const PEAK_STALE_DAYS: i64 = 7;

/// The state of a bot. Money is in cents, times are in UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Digest of the settings that it belongs to.
    pub settings_hash: String,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
    /// Realised cash.
    pub current_balance: i64,
    /// The most that `current_balance` ever was.
    pub peak_balance: i64,
    /// When that was.
    pub peak_changed_at: DateTime<Utc>,
    /// All profit and loss of what was settled.
    pub realised_profit: i64,
    /// How many of the last settlements in a row were losses.
    pub consecutive_losses: u32,
    /// Why no order may be sent, if none may.
    pub halted: Option<Halt>,
    /// What is held.
    pub positions: Vec<Position>,
    /// What was ordered.
    pub orders: Vec<Order>,
    /// The settlements that were applied, so that none is applied twice.
    pub settled: BTreeSet<String>,
}

/// Why, and since when, no order may be sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Halt {
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: DateTime<Utc>,
}

/// What is held of one symbol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Of what.
    pub symbol: String,
    /// How many.
    pub quantity: i64,
    /// What one cost.
    pub entry_price: i64,
    /// The order that opened it, by the client's id.
    pub order: String,
}

/// An order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Chosen by the client before it is sent, unique for ever.
    pub id: String,
    /// What is traded.
    pub symbol: String,
    /// Whether it buys or sells.
    pub action: Action,
    /// How many; more than none.
    pub quantity: i64,
    /// How far it is.
    pub status: Status,
    /// The order that it belongs to.
    #[serde(default)]
    pub parent: Option<String>,
    /// The order that limits its loss.
    #[serde(default)]
    pub stop: Option<String>,
    /// The order that takes its profit.
    #[serde(default)]
    pub profit: Option<String>,
}

/// What an order does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It buys.
    Buy,
    /// It sells.
    Sell,
}

/// How far an order is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is written down, and may have been sent.
    Submitting,
    /// The broker has it.
    Open,
    /// It was carried out.
    Filled,
    /// It was taken back.
    Cancelled,
    /// The broker did not take it, or never saw it.
    Rejected,
}

impl Order {
    /// An order that belongs to no other, and is yet to be sent.
    #[must_use]
    pub fn new(id: &str, symbol: &str, action: Action, quantity: i64) -> Self {
        Self {
            id: id.to_owned(),
            symbol: symbol.to_owned(),
            action,
            quantity,
            status: Status::Submitting,
            parent: None,
            stop: None,
            profit: None,
        }
    }
}

impl Status {
    /// Whether nothing more will become of it.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Filled | Self::Cancelled | Self::Rejected)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Submitting => "submitting",
            Self::Open => "open",
            Self::Filled => "filled",
            Self::Cancelled => "cancelled",
            Self::Rejected => "rejected",
        })
    }
}

/// Something that a state can't be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// The balance is below nothing, in cents.
    NegativeBalance(i64),
    /// The peak is below the balance.
    PeakBelowBalance {
        /// In cents.
        peak: i64,
        /// In cents.
        balance: i64,
    },
    /// A position that no order has opened.
    PositionWithoutOrder(String),
    /// Two orders have the same id.
    DoubleOrder(String),
    /// An order about nothing or less.
    QuantityOf(String),
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NegativeBalance(cents) => write!(f, "the balance is {cents} cents"),
            Self::PeakBelowBalance { peak, balance } => {
                write!(f, "the peak is {peak} cents, below the balance of {balance}")
            }
            Self::PositionWithoutOrder(symbol) => {
                write!(f, "no order has opened the position in {symbol}")
            }
            Self::DoubleOrder(id) => write!(f, "two orders are called {id}"),
            Self::QuantityOf(id) => write!(f, "the order {id} has no quantity"),
        }
    }
}

/// What is done about a complaint at load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnInvalid {
    /// The state is not loaded.
    Refuse,
    /// The value is mended, and that is said.
    Repair,
}

/// What is done about each kind of complaint that can be mended; of the others the state is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validation {
    /// Of a peak below the balance: to make it the balance.
    pub peak: OnInvalid,
    /// Of a position without an order: to leave it out.
    pub positions: OnInvalid,
}

impl Default for Validation {
    fn default() -> Self {
        // A peak can only be too low; a position may be money.
        Self { peak: OnInvalid::Repair, positions: OnInvalid::Refuse }
    }
}

impl State {
    /// The state to begin with.
    #[must_use]
    pub fn new(balance: i64, settings_hash: &str, now: DateTime<Utc>) -> Self {
        Self {
            settings_hash: settings_hash.to_owned(),
            updated_at: now,
            current_balance: balance,
            peak_balance: balance,
            peak_changed_at: now,
            realised_profit: 0,
            consecutive_losses: 0,
            halted: None,
            positions: Vec::new(),
            orders: Vec::new(),
            settled: BTreeSet::new(),
        }
    }

    /// All that it can't be.
    #[must_use]
    pub fn complaints(&self) -> Vec<Complaint> {
        let mut found = Vec::new();
        let (peak, balance) = (self.peak_balance, self.current_balance);
        if balance < 0 {
            found.push(Complaint::NegativeBalance(balance));
        }
        if peak < balance {
            found.push(Complaint::PeakBelowBalance { peak, balance });
        }
        let mut ids: Vec<&str> = self.orders.iter().map(|order| order.id.as_str()).collect();
        ids.sort_unstable();
        let double = ids.windows(2).filter(|pair| pair[0] == pair[1]);
        found.extend(double.map(|pair| Complaint::DoubleOrder(pair[0].to_owned())));
        let about_nothing = self.orders.iter().filter(|order| order.quantity <= 0);
        found.extend(about_nothing.map(|order| Complaint::QuantityOf(order.id.clone())));
        let orphan = |position: &&Position| ids.binary_search(&position.order.as_str()).is_err();
        let orphans = self.positions.iter().filter(orphan);
        found.extend(orphans.map(|p| Complaint::PositionWithoutOrder(p.symbol.clone())));
        found
    }

    /// Mends what is to be mended, and says so; the first complaint of which the state is refused comes
    /// back.
    pub fn validate(&mut self, validation: Validation) -> Result<Vec<Event>, Complaint> {
        let mut events = Vec::new();
        for complaint in self.complaints() {
            match &complaint {
                Complaint::PeakBelowBalance { .. } if validation.peak == OnInvalid::Repair => {
                    self.peak_balance = self.current_balance;
                }
                Complaint::PositionWithoutOrder(symbol)
                    if validation.positions == OnInvalid::Repair =>
                {
                    self.positions.retain(|position| position.symbol != *symbol);
                }
                _ => return Err(complaint),
            }
            events.push(Event::Repaired(complaint));
        }
        Ok(events)
    }

    /// Books realised cash: a profit or a loss. Only this raises the peak; what an open position may be
    /// worth is no cash.
    pub fn realise(&mut self, cents: i64, why: &str, now: DateTime<Utc>) -> Vec<Event> {
        self.realised_profit += cents;
        self.consecutive_losses = if cents < 0 { self.consecutive_losses + 1 } else { 0 };
        self.set_balance(self.current_balance + cents, why, now)
    }

    /// Sets the balance, and raises the peak to it if it is lower.
    pub fn set_balance(&mut self, cents: i64, why: &str, now: DateTime<Utc>) -> Vec<Event> {
        self.current_balance = cents;
        if cents <= self.peak_balance {
            return Vec::new();
        }
        let (from, to) = (self.peak_balance, cents);
        (self.peak_balance, self.peak_changed_at) = (to, now);
        vec![Event::PeakChanged { from, to, reason: why.to_owned() }]
    }

    /// Applies a settlement of a position once, however often it is reported.
    pub fn settle(&mut self, settlement: &Settlement, now: DateTime<Utc>) -> Vec<Event> {
        let Settlement { id, symbol, profit } = settlement;
        if !self.settled.insert(id.clone()) {
            return Vec::new();
        }
        let ended = self.positions.iter().filter(|position| position.symbol == *symbol);
        // What it had cost is cash again.
        self.current_balance += ended.map(|p| p.entry_price * p.quantity).sum::<i64>();
        self.positions.retain(|position| position.symbol != *symbol);
        let mut events = vec![Event::Settled { id: id.clone(), profit: *profit }];
        events.extend(self.realise(*profit, &format!("settlement {id}"), now));
        events
    }

    /// Applies an order that was carried out at this price.
    pub fn fill(&mut self, id: &str, price: i64, now: DateTime<Utc>) -> Vec<Event> {
        let Some(order) = self.order(id).cloned() else { return Vec::new() };
        let quantity = match order.action {
            Action::Buy => order.quantity,
            Action::Sell => -order.quantity,
        };
        match self.positions.iter().position(|position| position.symbol == order.symbol) {
            Some(at) => {
                self.positions[at].quantity += quantity;
                if self.positions[at].quantity == 0 {
                    self.positions.remove(at);
                }
            }
            None => {
                let (symbol, order) = (order.symbol, order.id);
                self.positions.push(Position { symbol, quantity, entry_price: price, order });
            }
        }
        self.set_balance(
            self.current_balance - price * quantity,
            &format!("order {id} filled"),
            now,
        )
    }

    /// The loss since the peak as a share of it, 0 to 1.
    #[must_use]
    pub fn drawdown(&self) -> f64 {
        let lost = (self.peak_balance - self.current_balance).max(0);
        if self.peak_balance <= 0 { 0.0 } else { lost as f64 / self.peak_balance as f64 }
    }

    /// Allows no more orders.
    pub fn halt(&mut self, reason: &str, now: DateTime<Utc>) {
        self.halted = Some(Halt { reason: reason.to_owned(), since: now });
    }

    /// The alert of a peak that has not changed for long.
    #[must_use]
    pub fn peak_alert(&self, now: DateTime<Utc>) -> Option<Event> {
        let since = now - self.peak_changed_at;
        (since >= TimeDelta::days(PEAK_STALE_DAYS)).then(|| Event::PeakStale(since.num_days()))
    }

    /// An order by its id.
    #[must_use]
    pub fn order(&self, id: &str) -> Option<&Order> {
        self.orders.iter().find(|order| order.id == id)
    }
}

/// The end of a position, as a ledger reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settlement {
    /// Unique for ever.
    pub id: String,
    /// What was held.
    pub symbol: String,
    /// Profit, or loss, in cents.
    pub profit: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State::new(100_000, "s", DateTime::UNIX_EPOCH)
    }

    fn position(symbol: &str, order: &str) -> Position {
        let (symbol, order) = (symbol.to_owned(), order.to_owned());
        Position { symbol, quantity: 10, entry_price: 500, order }
    }

    #[test]
    fn an_unredeemed_position_never_raises_the_peak_and_so_halts_nobody() {
        let mut state = state();
        // It is worth a lot, for now.
        state.positions.push(position("UP", "o1"));
        assert_eq!(
            state.set_balance(state.current_balance - 5000, "bought", DateTime::UNIX_EPOCH),
            []
        );
        assert_eq!((state.peak_balance, state.drawdown()), (100_000, 0.05));
        let won = Settlement { id: "s1".into(), symbol: "UP".into(), profit: 20_000 };
        let events = state.settle(&won, DateTime::UNIX_EPOCH);
        let raised =
            Event::PeakChanged { from: 100_000, to: 120_000, reason: "settlement s1".into() };
        assert_eq!(events, [Event::Settled { id: "s1".into(), profit: 20_000 }, raised]);
    }

    #[test]
    fn a_settlement_that_is_reported_twice_is_applied_once() {
        let mut state = state();
        let lost = Settlement { id: "s1".into(), symbol: "UP".into(), profit: -300 };
        assert_eq!(state.settle(&lost, DateTime::UNIX_EPOCH).len(), 1);
        assert_eq!(state.settle(&lost, DateTime::UNIX_EPOCH), []);
        assert_eq!((state.current_balance, state.consecutive_losses), (99_700, 1));
    }

    #[test]
    fn a_peak_that_does_not_change_for_seven_days_is_told() {
        let (state, days) = (state(), |n| DateTime::UNIX_EPOCH + TimeDelta::days(n));
        assert_eq!(state.peak_alert(days(6)), None);
        assert_eq!(state.peak_alert(days(7)), Some(Event::PeakStale(7)));
    }

    #[test]
    fn what_can_not_be_is_refused_or_mended_as_declared_and_never_passed_over() {
        let mut low = State { peak_balance: 5, ..state() };
        assert!(matches!(low.validate(Validation::default()).unwrap()[..], [Event::Repaired(_)]));
        assert_eq!((low.peak_balance, low.complaints()), (100_000, vec![]));
        let mut debt = State { current_balance: -1, ..state() };
        assert_eq!(debt.validate(Validation::default()), Err(Complaint::NegativeBalance(-1)));
        let mut orphan = State { positions: vec![position("UP", "gone")], ..state() };
        let refused = Err(Complaint::PositionWithoutOrder("UP".to_owned()));
        assert_eq!(orphan.validate(Validation::default()), refused);
        let mend = Validation { positions: OnInvalid::Repair, ..Validation::default() };
        assert_eq!(orphan.validate(mend).unwrap().len(), 1);
        assert_eq!(orphan.positions, []);
    }
}
