//! What a program prints: acks on stdout, the last words on stderr. Bounded, however much it is.

use std::io;

use nix::errno::Errno;
use regex::bytes::Regex;
use xxhash_rust::xxh3::xxh3_64;

use crate::os::ptrace::Stopped;
use crate::os::spawn::{Pipes, Stream};

/// Longer lines are no acks.
const LINE_MAX: usize = 64 << 10;
/// How many acks are told apart.
const SAID_MAX: usize = 10_000;
/// How much of stderr is kept for messages.
const LAST_WORDS_BYTES: usize = 2048;

/// Counts the lines of a stream that acknowledge a save.
#[derive(Clone, Debug)]
pub struct AckCounter {
    pattern: Option<Regex>,
    line: Vec<u8>,
    acks: u64,
    /// What the acks said, as hashes; no more than [`SAID_MAX`].
    said: Vec<u64>,
    /// The lines themselves, if they are kept.
    lines: Option<Vec<Vec<u8>>>,
}

impl AckCounter {
    /// Counts lines that match; none if there is no pattern.
    #[must_use]
    pub fn new(pattern: Option<Regex>) -> Self {
        Self { pattern, line: Vec::new(), acks: 0, said: Vec::new(), lines: None }
    }

    /// Takes more of the stream. A line counts when its end has come.
    pub fn feed(&mut self, bytes: &[u8]) {
        let Some(pattern) = &self.pattern else { return };
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            match part.strip_suffix(b"\n") {
                Some(end) => {
                    self.line.extend_from_slice(end);
                    if self.line.len() <= LINE_MAX && pattern.is_match(&self.line) {
                        self.acks += 1;
                        if self.said.len() < SAID_MAX {
                            self.said.push(xxh3_64(&self.line));
                        }
                        if let Some(lines) = &mut self.lines {
                            lines.push(self.line.clone());
                        }
                    }
                    self.line.clear();
                }
                // One byte more than the longest ack tells that it is longer.
                None => {
                    let room = (LINE_MAX + 1).saturating_sub(self.line.len());
                    self.line.extend_from_slice(&part[..part.len().min(room)]);
                }
            }
        }
    }

    /// How many there were.
    #[must_use]
    pub fn acks(&self) -> u64 {
        self.acks
    }

    /// What they said, as a hash of each line.
    #[must_use]
    pub fn said(&self) -> &[u64] {
        &self.said
    }
}

/// The output of the programs of one worker, one after another.
#[derive(Debug)]
pub struct Output {
    /// The pipes.
    pub pipes: Pipes,
    counter: AckCounter,
    last_words: Vec<u8>,
    /// The end of stdout, for those that complain there.
    last_printed: Vec<u8>,
    stdout_name: String,
}

impl Output {
    /// A counter of the same acks, from the beginning.
    #[must_use]
    pub fn new_counter(&self) -> AckCounter {
        AckCounter::new(self.counter.pattern.clone())
    }

    /// Makes the pipes.
    pub fn new(ack: Option<Regex>) -> io::Result<Self> {
        let pipes = Pipes::new()?;
        let stdout_name = pipes.stdout_name()?;
        let (last_words, last_printed) = (Vec::new(), Vec::new());
        Ok(Self { pipes, counter: AckCounter::new(ack), last_words, last_printed, stdout_name })
    }

    /// Forgets what the last program printed.
    pub fn reset(&mut self) -> io::Result<()> {
        self.drain()?;
        let kept = self.counter.lines.is_some();
        self.counter = AckCounter::new(self.counter.pattern.take());
        self.counter.lines = kept.then(Vec::new);
        self.last_words.clear();
        self.last_printed.clear();
        Ok(())
    }

    /// Takes what has been printed, so that the program never waits for a reader.
    pub fn drain(&mut self) -> io::Result<()> {
        let mut part = Vec::new();
        while self.pipes.read(Stream::Out, &mut part)? {
            self.counter.feed(&part);
            self.last_printed.append(&mut part);
            keep_end(&mut self.last_printed);
        }
        while self.pipes.read(Stream::Err, &mut self.last_words)? {
            keep_end(&mut self.last_words);
        }
        Ok(())
    }

    /// From now on keeps what acks say, word by word.
    pub fn keep_acks(&mut self) {
        self.counter.lines.get_or_insert_default();
    }

    /// What the acks said, if that is kept.
    #[must_use]
    pub fn kept_acks(&self) -> &[Vec<u8>] {
        self.counter.lines.as_deref().unwrap_or_default()
    }

    /// How many acks there were.
    #[must_use]
    pub fn acks(&self) -> u64 {
        self.counter.acks()
    }

    /// What they said, as a hash of each line.
    #[must_use]
    pub fn said(&self) -> Vec<u64> {
        self.counter.said.clone()
    }

    /// The end of stderr, as text, or of stdout, if nothing came there.
    #[must_use]
    pub fn last_words(&self) -> String {
        let words = if self.last_words.is_empty() { &self.last_printed } else { &self.last_words };
        String::from_utf8_lossy(words).trim().to_owned()
    }

    /// Why the program could not be started, if it could not.
    pub fn start_error(&mut self) -> Option<Errno> {
        self.pipes.start_error()
    }

    /// Whether an open file of a thread is the stdout that it was started with.
    #[must_use]
    pub fn is_stdout(&self, thread: &Stopped, file: u64) -> bool {
        // Descriptors are ints, whatever stands in the upper half of the register.
        #[expect(clippy::cast_possible_truncation, reason = "see above")]
        let file = file as i32;
        let link = std::fs::read_link(format!("/proc/{}/fd/{file}", thread.tid()));
        link.is_ok_and(|link| link.as_os_str() == self.stdout_name.as_str())
    }
}

/// Forgets all but the last words.
fn keep_end(words: &mut Vec<u8>) {
    let surplus = words.len().saturating_sub(LAST_WORDS_BYTES);
    words.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acks(parts: &[&str]) -> u64 {
        let mut counter = AckCounter::new(Some(Regex::new("^saved").unwrap()));
        for part in parts {
            counter.feed(part.as_bytes());
        }
        counter.acks()
    }

    #[test]
    fn a_line_counts_when_its_end_has_come() {
        assert_eq!(acks(&["saved 1\nsav", "ed 2\nnot saved\nsaved 3"]), 2);
    }

    #[test]
    fn an_endless_line_is_bounded_and_no_ack() {
        let mut counter = AckCounter::new(Some(Regex::new("^saved").unwrap()));
        for _ in 0..100 {
            counter.feed(&[b'x'; 10_000]);
            counter.feed(b"saved");
        }
        assert!(counter.line.len() <= LINE_MAX + 1);
        counter.feed(b"\nsaved 1\n");
        assert_eq!(counter.acks(), 1);
    }
}
