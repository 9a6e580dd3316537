//! `managed`, the reference state manager: what the audits of trading bots ask for, in one place.
//!
//! - [`envelope`]: a checksum and a version around each state;
//! - [`store`]: atomic and durable saves, one process at a time, backups, and what a load does about
//!   damage;
//! - [`state`]: what a bot keeps, what of it can't be, and how the peak is counted;
//! - [`broker`]: bringing a state in line with a ledger;
//! - [`manager`]: all of that for the threads of a bot.
//!
//! `targets/python/managed.py` is its twin and reads and writes the same files.

pub mod backups;
pub mod broker;
pub mod codec;
pub mod envelope;
pub mod event;
pub mod manager;
#[cfg(feature = "remote")]
pub mod remote;
pub mod server;
pub mod state;
pub mod store;
pub(crate) mod strategy;

pub use manager::{ManagerError, Options, Remote, StateManager};
