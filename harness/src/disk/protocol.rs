//! How the server of the disks is spoken to: commands are written to a file that it serves, as JSON, and
//! their answers read from it.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::images::Image;
use super::layout::Layout;
use super::log::DiskLog;

/// The name of the file to which commands are written, and from which their answers are read.
pub const CONTROL: &str = "control";
/// What the server can be asked to do, most of it with the disk of some number.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// The disk is empty, and so many bytes large.
    Blank(u32, u64),
    /// What the disk holds is kept as a start image.
    Keep(u32),
    /// The disk holds the start image of the second number.
    Load(u32, u32),
    /// So many bytes of the disk are wanted, from an offset on.
    Read(u32, u64, usize),
    /// From now on what is written to the disk is recorded; what carries file data by this layout is held
    /// in flight.
    Record(u32, Option<Layout>),
    /// Nothing is recorded any more, and nothing is held.
    Stop(u32),
    /// The disk holds what the power has left of it by the recording of the second number. It works for so
    /// many milliseconds.
    Show(u32, u32, Image, u64),
    /// Whether the time of the disk is not up: nothing is to hang for ever.
    Works(u32),
    /// A recording is not needed any more.
    ForgetRecording(u32),
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done,
    /// The number of what was kept.
    Number(u32),
    /// What lies there.
    Bytes(Vec<u8>),
    /// What was recorded, and its number.
    Log(u32, DiskLog),
    /// Whether the disk works, or its time was up.
    Works(bool),
    /// The image is shown in the file of this number of the process of the first, which is another than
    /// before, or is not. Which bytes were written since the last one was shown, or are others now.
    Shown(u32, i32, bool, Vec<Range<u64>>),
    /// It can't be done.
    Wrong(String),
}
