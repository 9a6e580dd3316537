//! Where in its source a program was when it made each call: one more recorded run, with a look at the
//! stack before each op.
//!
//! Of Python the interpreter tells (`sitecustomize.py`, put at the front of `PYTHONPATH`), of Node.js its
//! own functions of `fs` do (`hook.cjs`, by `NODE_OPTIONS`), and native programs are unwound by
//! what their compiler left for exceptions and debuggers. No program is changed.

mod native;
mod node;
mod python;

use native::Unwinding;
use node::Notes;
use python::Memories;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::armed::Follows;
use crate::error::{Context, Result};
use crate::inject::decode::Asked;
use crate::inject::output::AckCounter;
use crate::inject::recorder::{Recorder, Witness};
use crate::inject::runner::{Bound, GRACE, Runner, ack_pattern};
use crate::inject::tracer::How;
use crate::lab::Lab;
use crate::op::{Op, Trace};
use crate::os::process::Ended;
use crate::os::ptrace::Stopped;
use crate::subject::Command;

/// A place in the source of a program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Frame {
    /// The source file, or the program if it has no debug information.
    pub file: PathBuf,
    /// The line, from 1, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// The function.
    pub function: String,
}

impl std::fmt::Display for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.file.display())?;
        self.line.map_or(Ok(()), |line| write!(f, ":{line}"))?;
        write!(f, " in {}", self.function)
    }
}

/// A recorded run with the place of each op.
#[derive(Clone, Debug, Default)]
pub struct Located {
    /// What was done.
    pub trace: Trace,
    /// Of each op the program's own frames, the innermost first.
    pub stacks: Vec<Vec<Frame>>,
    /// Why places are not known, if none is.
    pub unknown: Option<String>,
}

impl Located {
    /// Leaves out what the hooks have written themselves, and what the baseline run leaves out.
    fn forget(&mut self, hooks: &Path) {
        let of_hooks = |op: &Op| op.effect.path().starts_with(hooks);
        let outside = |op: &&Op| op.effect.path().is_absolute() && !of_hooks(op);
        let changes = self.trace.ops.iter().filter(outside).any(Op::changes);
        // As in the baseline run: what it only opens elsewhere is no op of it.
        let of_program = |op: &Op| !of_hooks(op) && (changes || op.effect.path().is_relative());
        let kept: Vec<bool> = self.trace.ops.iter().map(of_program).collect();
        for ack in &mut self.trace.acks {
            *ack = kept.iter().take(*ack).filter(|kept| **kept).count();
        }
        let mut keep = kept.iter();
        self.trace.ops.retain(|_| keep.next().copied().unwrap_or(true));
        let mut keep = kept.iter();
        self.stacks.retain(|_| keep.next().copied().unwrap_or(true));
    }

    /// With paths as people like them: from here, if they lie below.
    #[must_use]
    pub fn seen_from_here(mut self) -> Self {
        let here = std::env::current_dir().unwrap_or_default();
        for frame in self.stacks.iter_mut().flatten() {
            if let Ok(below) = frame.file.strip_prefix(&here) {
                frame.file = below.to_owned();
            }
        }
        self
    }

    /// The innermost of the program's own frames when it made the op.
    #[must_use]
    pub fn of(&self, op: usize) -> Option<&Frame> {
        self.stacks.get(op)?.first()
    }
}

/// Runs a program once more in its own directory of the lab, and finds where it makes its calls.
pub fn locate(command: &Command, lab: &Lab) -> Result<Located> {
    let room = lab.room(0)?;
    let root = room.join("dir");
    // In the room, which the sandbox shows as it is.
    let hooks = room.join("hooks");
    let mut command = command.clone();
    prepend(&mut command, "PYTHONPATH", &hooks.display().to_string(), ":");
    let require = format!("--require \"{}\"", hooks.join(node::HOOK.0).display());
    prepend(&mut command, "NODE_OPTIONS", &require, " ");
    let frames = hooks.join(node::FRAMES);
    command.env.insert("CRASHTEST_FRAMES", frames.display().to_string());
    let mut runner = Runner::new(&command, &room)?;
    runner.reset()?;
    runner.scope.everywhere = runner.sandbox().is_some();
    if let Some(guard) = &mut runner.scope.guard {
        guard.allow(&hooks);
    }
    write_hooks(&hooks).context(format_args!("write below {}", hooks.display()))?;
    let scope = runner.scope.clone();
    let pattern = command.ack.as_deref().map(ack_pattern).transpose()?;
    let limits = command.limits;
    let node = Notes { file: frames, root };
    let mut recorder =
        Recorder::new(&scope, AckCounter::new(pattern), limits.acks, limits.data_bytes).seen_by(
            Box::new(Looker { node, python: Memories::default(), native: Unwinding::default() }),
        );
    // It is slower now; what it has shown until then is enough.
    let bound = Bound { timeout: limits.timeout(), grace: GRACE };
    let ran = match runner.traced(&mut recorder, Follows::All, bound) {
        Err(error) => {
            let line = recorder.trespassed_at.as_ref().map(ToString::to_string);
            return Err(runner.trespass.map_or(error, |trespass| trespass.error(line.as_deref())));
        }
        Ok(ran) => ran,
    };
    let mut located = Located {
        stacks: std::mem::take(&mut recorder.stacks),
        trace: recorder.trace,
        unknown: None,
    };
    located.forget(&hooks);
    if located.stacks.iter().all(Vec::is_empty) {
        located.unknown = Some(
            match ran.how {
                How::Ended(Ended::Status(0)) | How::Enough => {
                    "nobody tells: it has no debug information, or an interpreter that was not asked"
                }
                How::TimedOut => "it took too long when it was looked at",
                _ => "it did not end well when it was looked at",
            }
            .to_owned(),
        );
    }
    for frame in located.stacks.iter_mut().flatten() {
        // A program that was copied there with --init.
        if let Ok(inside) = frame.file.strip_prefix(room.join("dir")) {
            frame.file = inside.to_owned();
        }
    }
    Ok(located)
}

fn write_hooks(hooks: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(hooks)?;
    for (name, text) in [python::HOOK, node::HOOK, (node::FRAMES, "")] {
        std::fs::write(hooks.join(name), text)?;
    }
    Ok(())
}

/// Puts a value in front of what a variable of the program's environment holds.
fn prepend(command: &mut Command, variable: &str, value: &str, separator: &str) {
    let inherited = || std::env::var(variable).ok();
    let given = command.env.get(variable).map(str::to_owned);
    let old = given.or_else(inherited).filter(|old| !old.is_empty());
    let new = old.map_or(value.to_owned(), |old| format!("{value}{separator}{old}"));
    command.env.insert(variable, new);
}

/// Looks at the stacks of all kinds of programs.
struct Looker {
    python: Memories,
    node: Notes,
    native: Unwinding,
}

impl Witness for Looker {
    fn look(&mut self, asked: &Asked, thread: &Stopped) -> Vec<Frame> {
        let told = self.python.look(thread).or_else(|| self.node.look(asked, thread));
        match told {
            Some(frames) => own(frames.clone()).unwrap_or(frames),
            None if interprets(thread) => Vec::new(),
            None => own(self.native.look(thread)).unwrap_or_default(),
        }
    }
}

/// Where programs and libraries lie that came with the machine or the compiler.
const INSTALLED: [&str; 7] = [
    "/usr/lib/",
    "/usr/bin/",
    "/usr/include/",
    "/usr/local/lib/",
    "/usr/local/go/",
    "/rustc/",
    "/rust/deps/",
];
/// Names of directories of what was fetched.
const FETCHED: [&str; 5] =
    ["/site-packages/", "/dist-packages/", "/node_modules/", "/.cargo/registry/", "/go/pkg/mod/"];

/// Programs that run others' sources: their own functions say nothing of these.
const INTERPRETERS: [&str; 10] =
    ["python", "pypy", "node", "perl", "ruby", "php", "java", "sh", "bash", "dash"];

/// Whether a thread runs an interpreter.
fn interprets(thread: &Stopped) -> bool {
    let program = std::fs::read_link(format!("/proc/{}/exe", thread.tid())).unwrap_or_default();
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    INTERPRETERS.contains(&name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.'))
}

/// The frames of the program's own code, if there are any: those with a line if there are such.
fn own(mut frames: Vec<Frame>) -> Option<Vec<Frame>> {
    frames.retain(|frame| {
        let path = frame.file.to_string_lossy();
        path.starts_with(['/', '<'])
            && !INSTALLED.iter().any(|place| path.starts_with(place))
            && !FETCHED.iter().any(|place| path.contains(place))
    });
    if frames.iter().any(|frame| frame.line.is_some()) {
        frames.retain(|frame| frame.line.is_some());
    }
    Some(frames).filter(|frames| !frames.is_empty())
}

/// The mappings of a process, by their first addresses.
fn mappings(tid: i32) -> BTreeMap<u64, Mapping> {
    let text = std::fs::read_to_string(format!("/proc/{tid}/maps")).unwrap_or_default();
    text.lines().filter_map(mapping).collect()
}

/// A line of `/proc/PID/maps`.
struct Mapping {
    end: u64,
    offset: u64,
    executable: bool,
    path: PathBuf,
}

fn mapping(line: &str) -> Option<(u64, Mapping)> {
    let mut parts = line.splitn(6, ' ');
    let (first, end) = parts.next()?.split_once('-')?;
    let permissions = parts.next()?;
    let offset = parts.next()?;
    let path = parts.nth(2).unwrap_or_default().trim_start();
    let number = |text| u64::from_str_radix(text, 16).ok();
    let mapping = Mapping {
        end: number(end)?,
        offset: number(offset)?,
        executable: permissions.contains('x'),
        path: Path::new(path).to_owned(),
    };
    Some((number(first)?, mapping))
}
