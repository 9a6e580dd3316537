//! Power loss below a real file system: what its disk saw, and which images that can leave.
//!
//! A disk takes writes, and answers them when it has them in its cache. It may carry out what is
//! in its cache in any order, and what was not carried out when the power goes is lost. A flush is
//! answered when all writes that were answered before it came are carried out. So at any moment
//!
//! - a write that was answered before some answered flush came is there, whole;
//! - of all other writes that have come, answered or not, any are there, and the last to be carried
//!   out may be there in part: a disk carries out sectors of 512 bytes whole, one after the other.
//!
//! Writes are numbered in the order in which they were answered. Those that are there for certain
//! are then the first so many, and an image is that number, a set of later ones, and perhaps a part of
//! one more.

pub mod client;
pub mod device;
pub mod images;
pub mod layout;
pub mod log;
pub mod moments;
pub mod plan;
pub mod protocol;
pub mod scribe;
pub mod server;
pub mod store;
pub mod view;
