//! Lines of Node.js programs, from what `hook.cjs` writes down.

use std::path::PathBuf;

use super::Frame;
use crate::inject::decode::Asked;
use crate::os::ptrace::Stopped;

/// The hook and its name.
pub const HOOK: (&str, &str) = ("hook.cjs", include_str!("hook.cjs"));

/// The name of the file that it writes.
pub const FRAMES: &str = "frames";

/// What the hook has written down.
pub struct Notes {
    /// Where.
    pub file: PathBuf,
    /// The directory in which the program runs.
    pub root: PathBuf,
}

impl Notes {
    /// The frames of whoever has last asked for something to be done with the file of this call; none if
    /// no Node.js has asked for anything.
    pub fn look(&self, asked: &Asked, thread: &Stopped) -> Option<Vec<Frame>> {
        // As the program sees it, who may have a file system of its own.
        let seen = format!("/proc/{}/root{}", thread.tid(), self.file.display());
        let text = std::fs::read(seen).or_else(|_| std::fs::read(&self.file)).ok()?;
        let path = self.root.join(asked.effect.path());
        let mut lines = text.split(|byte| *byte == b'\n').rev().filter_map(parse).peekable();
        lines.peek()?;
        let found = lines.find(|(about, _)| *about == path);
        Some(found.map(|(_, frames)| frames).unwrap_or_default())
    }
}

fn parse(line: &[u8]) -> Option<(PathBuf, Vec<Frame>)> {
    let text = std::str::from_utf8(line).ok()?;
    let (path, rest) = text.split_once('\0')?;
    let parts: Vec<_> = rest.split('\0').collect();
    let frames = parts.chunks_exact(3).map(|parts| Frame {
        file: parts[0].into(),
        line: parts[1].parse().ok().filter(|line| *line > 0),
        function: parts[2].to_owned(),
    });
    Some((path.into(), frames.collect()))
}
