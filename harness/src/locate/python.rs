//! Lines of Python programs, from the memory that `sitecustomize.py` keeps.

use std::collections::HashMap;

use super::{Frame, mappings};
use crate::os::ptrace::Stopped;

/// The hook, under the name by which each Python finds it in `PYTHONPATH`.
pub const HOOK: (&str, &str) = ("sitecustomize.py", include_str!("sitecustomize.py"));

/// As in the hook.
const MAGIC: &[u8] = b"crashtest-frames";
const SLOT: u64 = 2048;
const SLOTS: u64 = 64;

/// Where each process has its memory.
#[derive(Default)]
pub struct Memories {
    addresses: HashMap<i32, u64>,
}

impl Memories {
    /// The frames of a thread; none if it is no Python.
    pub fn look(&mut self, thread: &Stopped) -> Option<Vec<Frame>> {
        let tid = thread.tid().as_raw();
        let known = self.addresses.get(&tid).copied().filter(|address| is_memory(thread, *address));
        let address = known.or_else(|| find(thread))?;
        self.addresses.insert(tid, address);
        let number = own_number(tid)?;
        let slot = address + MAGIC.len() as u64 + u64::from(number) % SLOTS * SLOT;
        let bytes = thread.read(slot, usize::try_from(SLOT).ok()?).ok()?;
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        if word(0)? != number {
            return Some(Vec::new());
        }
        let text = bytes.get(8..8 + usize::try_from(word(4)?).ok()?)?;
        let lines = text.split(|byte| *byte == b'\n').filter_map(frame);
        Some(lines.collect())
    }
}

fn is_memory(thread: &Stopped, address: u64) -> bool {
    thread.read(address, MAGIC.len()).is_ok_and(|bytes| bytes == MAGIC)
}

/// An anonymous mapping that is shared is one of this file.
fn find(thread: &Stopped) -> Option<u64> {
    let all = mappings(thread.tid().as_raw());
    let shared = all.iter().filter(|(_, mapping)| mapping.path.starts_with("/dev/zero (deleted)"));
    shared.map(|(address, _)| *address).find(|address| is_memory(thread, *address))
}

/// The number of a thread as it knows it itself, in its own namespace.
fn own_number(tid: i32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().next_back()?.parse().ok()
}

fn frame(line: &[u8]) -> Option<Frame> {
    let text = String::from_utf8_lossy(line);
    let mut parts = text.split('\0');
    let (file, line, function) = (parts.next()?, parts.next()?, parts.next()?);
    let line = line.parse().ok();
    Some(Frame { file: file.into(), line, function: function.to_owned() })
}
