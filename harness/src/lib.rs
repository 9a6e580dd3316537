//! crashtest: kills a program while it saves its state, and shows what is left.
//!
//! In a test of your own, [`check`] is all that you need. The modules are in three layers: the vocabulary (plain data), the decisions (pure functions)
//! and the effects. ARCHITECTURE.md has the map.

pub mod environment;
pub mod errno;
pub mod error;
pub mod exit_status;
pub mod fault;
pub mod file_system;
pub mod op;
pub mod outcome;
pub mod parting;
pub mod record;
pub mod recorded;
pub mod recording;
pub mod scenario;
pub mod second;
pub mod subject;
pub mod trial;
pub mod verdict;

pub mod agenda;
pub mod all;
pub mod armed;
pub mod asked;
pub mod assemble;
pub mod at_rest;
pub mod books;
pub mod command_line;
pub mod compare;
pub mod confirm;
pub mod cut;
pub mod cutter;
pub mod describe;
pub mod difference;
pub mod disk;
pub mod exhaustive;
pub mod history;
pub mod judging;
pub mod learner;
pub mod listing;
pub mod locate;
pub mod markdown;
pub mod meeting;
pub mod model;
pub mod oracle;
pub mod plan;
pub mod planned;
pub mod power;
pub mod report;
pub mod shard;
pub mod state_files;
pub mod steps;
pub mod suggest;
pub mod sweep;
pub mod tally;
pub mod template;
pub mod tree;
pub mod unsynced;

pub mod audit;
pub mod baseline;
mod checker;
pub mod cli;
pub mod commands;
pub mod doctor;
pub mod inject;
pub mod lab;
pub mod merge;
pub mod os;
pub mod page;
pub mod pool;
pub mod poweroff;
pub mod poweroff_disk;
pub mod prepare;
pub mod progress;
pub mod replay;
pub mod request;
pub mod results;
pub mod run;
pub mod sandbox;
pub mod showing;
pub mod source;
pub mod volume;
pub mod worker;

pub use checker::{Checker, check};
