//! The life of one order: a bot that buys ten of something and sells four again, with a broker who may
//! go away at any moment.
//!
//! The bot of the state manager writes each order down before it sends it, and asks the ledger at each
//! start. All other strategies belong to the bot that most people write: it sends, then it saves, and at
//! the next start it believes its state.

use std::path::Path;

use rand::TryRng;
use rand::rngs::SysRng;

use crate::managed::broker::{Broker, BrokerError};
use crate::managed::codec::Codec;
use crate::managed::state::{Action, Order, State, Status};
use crate::managed::{Options, StateManager, store};
use crate::state::{BotState, Position, Version};
use crate::storage::Storage;
use crate::strategy::{Loaded, Strategy};

/// What is traded.
pub const SYMBOL: &str = "UP";
/// How many are bought, and how many of them sold again.
pub const ORDERS: [(Action, i64); 2] = [(Action::Buy, 10), (Action::Sell, 4)];
/// The cash to begin with, in cents.
pub const CASH: i64 = 100_000;

/// What a bot believes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Belief {
    /// Its cash, in cents.
    pub cash: i64,
    /// How many it holds.
    pub held: i64,
    /// The orders that it knows, if it writes them down.
    pub orders: Option<Vec<String>>,
}

/// Lives, from a start to the end of its orders; an error ends it, as a crash of its own.
pub fn live(
    strategy: Strategy,
    disk: Box<dyn Storage + Send>,
    directory: &Path,
    broker: &mut dyn Broker,
) -> Result<(), String> {
    match strategy {
        Strategy::Managed => managed(disk, directory, broker).map_err(|error| error.to_string()),
        _ => usual(strategy, disk, directory, broker),
    }
}

fn order(id: &str, (action, quantity): (Action, i64)) -> Order {
    Order::new(id, SYMBOL, action, quantity)
}

fn managed(
    disk: Box<dyn Storage + Send>,
    directory: &Path,
    broker: &mut dyn Broker,
) -> Result<(), crate::managed::ManagerError> {
    let options = Options { first_balance: CASH, ..Options::default() };
    let manager = StateManager::open_with(disk, directory, options)?;
    manager.reconcile(broker)?;
    for (n, what) in ORDERS.into_iter().enumerate() {
        let prefix = format!("signal-{n}-");
        let state = manager.state();
        let tried = state.orders.iter().filter(|order| order.id.starts_with(&prefix));
        let (lost, known): (Vec<&Order>, Vec<&Order>) =
            tried.partition(|order| order.status == Status::Rejected);
        if !known.is_empty() || (what.0 == Action::Sell && state.positions.is_empty()) {
            continue;
        }
        // One that never came to the broker is another order when it is tried again.
        manager.submit(order(&format!("{prefix}{}", lost.len()), what), broker)?;
    }
    Ok(())
}

/// The bot that most people write.
fn usual(
    strategy: Strategy,
    mut disk: Box<dyn Storage + Send>,
    directory: &Path,
    broker: &mut dyn Broker,
) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    strategy.start(&mut *disk, directory).map_err(|error| text(&error))?;
    let mut state = load(strategy, directory)?;
    for (n, what) in ORDERS.into_iter().enumerate() {
        let done = state.open_orders.len() > n;
        if done || (what.0 == Action::Sell && state.positions.is_empty()) {
            continue;
        }
        let id = format!("{:016x}", SysRng.try_next_u64().map_err(|error| text(&error))?);
        let taken = broker.submit(&order(&id, what)).map_err(|error: BrokerError| text(&error))?;
        let quantity = if what.0 == Action::Buy { what.1 } else { -what.1 };
        state.current_balance -= taken.price * quantity;
        state.open_orders.push(crate::state::Order {
            id: taken.id,
            symbol: SYMBOL.to_owned(),
            quantity,
        });
        match state.positions.first_mut() {
            Some(position) => position.quantity += quantity,
            None => {
                let symbol = SYMBOL.to_owned();
                state.positions.push(Position { symbol, quantity, entry_price: taken.price });
            }
        }
        state.version += 1;
        let version = Version::from(&state);
        strategy
            .save(&mut *disk, directory, &version, &mut |_| {})
            .map_err(|error| text(&error))?;
    }
    Ok(())
}

fn load(strategy: Strategy, directory: &Path) -> Result<BotState, String> {
    let Loaded { state, .. } = strategy.load(directory).map_err(|error| error.to_string())?;
    Ok(match state.version {
        0 => BotState { current_balance: CASH, peak_balance: CASH, ..state },
        _ => state,
    })
}

/// What the bot believes that saves in `directory`.
pub fn belief(strategy: Strategy, directory: &Path) -> Result<Belief, String> {
    if strategy != Strategy::Managed {
        let state = load(strategy, directory)?;
        let held = state.positions.iter().map(|position| position.quantity).sum();
        return Ok(Belief { cash: state.current_balance, held, orders: None });
    }
    let found = store::find(directory, &Codec::default()).map_err(|error| error.to_string())?;
    let Some(found) = found else {
        return Ok(Belief { cash: CASH, held: 0, orders: Some(Vec::new()) });
    };
    let state: State = serde_json::from_str(&found.state).map_err(|error| error.to_string())?;
    Ok(Belief {
        cash: state.current_balance,
        held: state.positions.iter().map(|position| position.quantity).sum(),
        orders: Some(state.orders.into_iter().map(|order| order.id).collect()),
    })
}
