//! The bytes that a stopped call is to move: how many there are, which, and how to make it fewer.

use std::fs;

use super::decode::{Asked, Bytes, fd_number};
use crate::op::Effect;
use crate::os::ptrace::{Died, Result, Stopped};

/// The size of `struct iovec`.
const IOVEC_BYTES: u64 = 16;
/// `IOV_MAX`.
const IOVECS_MAX: u64 = 1024;

/// The buffers of a list: address and length of each.
pub fn vector(thread: &Stopped, address: u64, count: u64) -> Result<Vec<(u64, usize)>> {
    let count = usize::try_from(count.min(IOVECS_MAX)).unwrap_or(0);
    let bytes = thread.read(address, count * IOVEC_BYTES as usize)?;
    let word = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or(0);
    Ok(bytes
        .chunks_exact(IOVEC_BYTES as usize)
        .map(|entry| (word(&entry[..8]), usize::try_from(word(&entry[8..])).unwrap_or(usize::MAX)))
        .collect())
}

/// The most that is looked at of what one call prints.
const PRINTED_MAX: usize = 1 << 20;

/// What a thread is about to print, if the call is one that prints.
pub fn printed(thread: &Stopped, number: i64, arguments: [u64; 6]) -> Result<Vec<u8>> {
    let [_, address, length, ..] = arguments;
    let buffers = match number {
        libc::SYS_write => vec![(address, usize::try_from(length).unwrap_or(usize::MAX))],
        libc::SYS_writev => vector(thread, address, length)?,
        _ => Vec::new(),
    };
    let mut bytes = Vec::new();
    for (address, length) in buffers {
        bytes.extend(thread.read(address, length.min(PRINTED_MAX - bytes.len().min(PRINTED_MAX)))?);
    }
    Ok(bytes)
}

/// What a shortened call has changed in its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undo {
    /// The argument.
    argument: usize,
    /// A word of its memory, and what was there.
    word: Option<(u64, u64)>,
}

/// Gives a thread back what [`shorten`] changed, so that it can go on and finish its write.
pub fn restore(thread: &Stopped, undo: Undo, arguments: [u64; 6]) -> Result<()> {
    if let Some((address, word)) = undo.word {
        thread.write_word(address, word)?;
    }
    thread.set_argument(undo.argument, arguments[undo.argument])
}

/// Makes a call move only its first `keep` bytes.
pub fn shorten(thread: &Stopped, asked: &Asked, keep: usize) -> Result<Undo> {
    let plain = |argument| Undo { argument, word: None };
    match asked.bytes {
        Bytes::None => Ok(plain(2)),
        Bytes::Buffer { .. } => thread.set_argument(2, keep as u64).map(|()| plain(2)),
        Bytes::Kernel { length_argument } => {
            thread.set_argument(length_argument, keep as u64).map(|()| plain(length_argument))
        }
        Bytes::Vector { address, count } => {
            let mut left = keep;
            for (index, (_, length)) in vector(thread, address, count)?.into_iter().enumerate() {
                if left <= length {
                    let place = address + index as u64 * IOVEC_BYTES + 8;
                    thread.write_word(place, left as u64)?;
                    thread.set_argument(2, index as u64 + 1)?;
                    return Ok(Undo { argument: 2, word: Some((place, length as u64)) });
                }
                left -= length;
            }
            Ok(plain(2))
        }
    }
}

/// Reads the first `count` bytes that a call has moved.
pub fn moved(thread: &Stopped, asked: &Asked, file: u64, count: usize) -> Result<Vec<u8>> {
    match asked.bytes {
        Bytes::None => Ok(Vec::new()),
        Bytes::Buffer { address } => thread.read(address, count),
        Bytes::Vector { address, count: buffers } => {
            let mut bytes = Vec::with_capacity(count);
            for (address, length) in vector(thread, address, buffers)? {
                let wanted = length.min(count - bytes.len());
                bytes.extend(thread.read(address, wanted)?);
            }
            Ok(bytes)
        }
        Bytes::Kernel { .. } => {
            let Effect::Write { offset, .. } = &asked.effect else { return Ok(Vec::new()) };
            let path = format!("/proc/{}/fd/{}", thread.tid(), fd_number(file));
            let mut bytes = vec![0; count];
            let read = fs::File::open(path).and_then(|file| {
                std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, offset.0)
            });
            read.map(|()| bytes).map_err(|_| Died)
        }
    }
}
