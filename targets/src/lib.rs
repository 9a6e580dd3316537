//! The built-in subjects of crashtest: strategies with which programs save their state.
//!
//! Each sound strategy has broken twins that differ from it in one defect. All of them save the
//! same [`BotState`] and go through the same [`Storage`] seam, so that the harness can count,
//! record and strike each storage call without the strategy knowing.
#![forbid(unsafe_code)]

pub mod bot;
mod log;
pub mod managed;
mod state;
mod storage;
mod strategy;
mod temp;
mod ways;

pub use log::LOG_FILE;
pub use state::{BotState, Order, Position, STATE_BYTES_MAX, STATE_BYTES_MIN, Version};
pub use storage::{Disk, FileId, Open, Storage, read_file};
pub use strategy::{LoadError, Loaded, Origin, STATE_FILE, Strategy};
