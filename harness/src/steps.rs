//! What a subject did after something had failed, in the words of `strace`.

use crate::errno;
use crate::op::{Call, Effect};
use crate::outcome::Step;

/// How many steps are kept; the rest is counted.
const STEPS_MAX: usize = 40;
/// How much of a printed line is kept, in bytes.
const LINE_MAX: usize = 100;

/// Steps in their order, not too many.
#[derive(Clone, Debug, Default)]
pub struct Steps {
    steps: Vec<Step>,
    more: usize,
    /// What was printed of a line that has not ended.
    line: Vec<u8>,
}

impl Steps {
    /// Adds one.
    pub fn push(&mut self, step: Step) {
        if self.steps.len() < STEPS_MAX {
            self.steps.push(step);
        } else {
            self.more += 1;
        }
    }

    /// Adds a call.
    pub fn called(&mut self, what: String, result: Option<i64>, injected: bool) {
        self.push(Step::Called { what, result, injected });
    }

    /// Adds what was printed, a line a step, when its end has come.
    pub fn said(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_MAX.saturating_sub(self.line.len());
            self.line.extend(part.iter().take(room));
            if part.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        self.push(Step::Said(String::from_utf8_lossy(&line).trim_end().to_owned()));
    }

    /// All of them.
    #[must_use]
    pub fn finish(mut self) -> Vec<Step> {
        if !self.line.is_empty() {
            self.end_line();
        }
        if self.more > 0 {
            self.steps.push(Step::More(self.more));
        }
        self.steps
    }
}

/// A call with its arguments.
#[must_use]
pub fn call(call: Call, effect: &Effect, length: usize) -> String {
    let name = call.name();
    let arguments = match effect {
        Effect::Open { path, create, truncate } => {
            let flags = [(*create, "O_CREAT"), (*truncate, "O_TRUNC")];
            let flags: Vec<_> =
                flags.into_iter().filter_map(|(set, flag)| set.then_some(flag)).collect();
            let flags =
                if flags.is_empty() { String::new() } else { format!(", {}", flags.join("|")) };
            format!("{}{flags}", path.display())
        }
        Effect::Write { path, .. } => format!("{}, {length} bytes", path.display()),
        Effect::Truncate { path, length } => format!("{}, {}", path.display(), length.0),
        Effect::Fallocate { path, mode, offset, length } => {
            format!("{}, mode {mode:#x}, {}, {}", path.display(), offset.0, length.0)
        }
        Effect::Rename { from, to, .. } | Effect::Link { from, to } => {
            format!("{}, {}", from.display(), to.display())
        }
        Effect::Symlink { target, path } => {
            format!("{}, {}", target.display(), path.display())
        }
        other => shown_path(other),
    };
    format!("{name}({arguments})")
}

/// The file that an op is about; the trial directory itself has no name in it.
#[must_use]
pub fn shown_path(effect: &Effect) -> String {
    let path = effect.path();
    if path.as_os_str().is_empty() { ".".to_owned() } else { path.display().to_string() }
}

/// A step as a line.
#[must_use]
pub fn line(step: &Step) -> String {
    match step {
        Step::Called { what, result, injected } => {
            let result = match result {
                None => "?".to_owned(),
                Some(result) if *result < 0 => format!("-1 {}", errno::name_of(-result)),
                Some(result) => result.to_string(),
            };
            let injected = if *injected { " (injected)" } else { "" };
            format!("{what} = {result}{injected}")
        }
        Step::Said(line) => format!("says: {line}"),
        Step::More(1) => "and 1 step more".to_owned(),
        Step::More(count) => format!("and {count} steps more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_reads_as_in_strace() {
        let open = Effect::Open { path: "s".into(), create: true, truncate: true };
        assert_eq!(call(Call::Open, &open, 0), "open(s, O_CREAT|O_TRUNC)");
        let what = "write(s, 9 bytes)".to_owned();
        let full = Some(-i64::from(libc::ENOSPC));
        let step = Step::Called { what: what.clone(), result: full, injected: true };
        assert_eq!(line(&step), "write(s, 9 bytes) = -1 ENOSPC (injected)");
        let step = Step::Called { what, result: Some(4), injected: false };
        assert_eq!(line(&step), "write(s, 9 bytes) = 4");
    }

    #[test]
    fn a_line_that_comes_in_pieces_is_one_step() {
        let mut steps = Steps::default();
        for piece in [&b"saved"[..], b" ", b"4", b"\nand"] {
            steps.said(piece);
        }
        let said: Vec<_> = steps.finish().iter().map(line).collect();
        assert_eq!(said, ["says: saved 4", "says: and"]);
    }

    #[test]
    fn what_is_too_much_is_counted() {
        let mut steps = Steps::default();
        for _ in 0..STEPS_MAX + 3 {
            steps.said(b"x\n");
        }
        assert_eq!(steps.finish().last(), Some(&Step::More(3)));
    }
}
