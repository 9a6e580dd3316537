//! The user's own checks of what survived.

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use serde_json::Value;

use super::runner;
use crate::error::{Context, Error, Result};
use crate::os::process::{self, Ended};
use crate::os::sandbox::Sandbox;
use crate::os::signals;
use crate::os::spawn::{self, User};
use crate::outcome::{Check, CheckKind, Content, Survivor};
use crate::subject::Command;

/// The checks of one subject, ready to be run.
pub struct Checks {
    command: Option<Shell>,
    json: Vec<Box<dyn JsonCheck>>,
}

/// A check of one state file, read as JSON.
trait JsonCheck {
    /// Which check it is.
    fn kind(&self) -> CheckKind;
    /// What is wrong; `None` if nothing is.
    fn complaint(&self, state: &Value) -> Option<String>;
}

impl Checks {
    /// Reads and compiles them.
    pub fn new(command: &Command, root: &Path, sandbox: Option<&Rc<Sandbox>>) -> Result<Self> {
        let shell = command.check.as_ref();
        let schema = command.schema.iter().map(|path| schema(path));
        let invariants = command.invariants.iter().map(|text| invariant(text));
        Ok(Self {
            command: shell.map(|text| Shell::new(text, command, root, sandbox)).transpose()?,
            json: schema.chain(invariants).collect::<Result<_>>()?,
        })
    }

    /// The user's command, if there is one.
    #[must_use]
    pub fn command(&self) -> Option<&Shell> {
        self.command.as_ref()
    }

    /// Looks at the state files that are there. JSON checks hold for each of them.
    #[must_use]
    pub fn look(&self, survivor: &Survivor) -> Vec<Check> {
        let mut checks = Vec::new();
        for (path, content) in &survivor.files {
            let Content::Bytes(bytes) = content else { continue };
            if self.json.is_empty() {
                continue;
            }
            let state = serde_json::from_slice(bytes);
            for check in &self.json {
                let complaint = match &state {
                    Ok(state) => check.complaint(state),
                    Err(error) => Some(format!("no JSON: {error}")),
                };
                let complaint = complaint.map(|why| format!("{}: {why}", path.display()));
                checks.push(Check { kind: check.kind(), complaint });
            }
        }
        checks
    }
}

#[cfg(feature = "schema")]
fn schema(path: &Path) -> Result<Box<dyn JsonCheck>> {
    let wrong =
        |why: String| Error::usage(format!("cannot use the schema {}: {why}", path.display()));
    let bytes = crate::tree::read_named(path, crate::tree::TEXT_BYTES_MAX)
        .map_err(|error| wrong(error.to_string()))?;
    let value = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    let schema = jsonschema::validator_for(&value).map_err(|error| wrong(error.to_string()))?;
    Ok(Box::new(schema))
}

#[cfg(not(feature = "schema"))]
fn schema(_path: &Path) -> Result<Box<dyn JsonCheck>> {
    Err(Error::usage("--schema is not built in").help("build with --features schema"))
}

#[cfg(feature = "schema")]
impl JsonCheck for jsonschema::Validator {
    fn kind(&self) -> CheckKind {
        CheckKind::Schema
    }

    fn complaint(&self, state: &Value) -> Option<String> {
        let error = self.iter_errors(state).next()?;
        Some(format!("{error} at `{}`", error.instance_path()))
    }
}

#[cfg(feature = "invariant")]
fn invariant(text: &str) -> Result<Box<dyn JsonCheck>> {
    match cel::Program::compile(text) {
        Ok(program) => Ok(Box::new(Invariant { text: text.to_owned(), program })),
        Err(error) => {
            Err(Error::usage(format!("`--invariant {text}` is not a CEL expression: {error}"))
                .help("an example is `state.peak >= state.balance`"))
        }
    }
}

#[cfg(not(feature = "invariant"))]
fn invariant(_text: &str) -> Result<Box<dyn JsonCheck>> {
    Err(Error::usage("--invariant is not built in").help("build with --features invariant"))
}

/// A CEL expression over `state`.
#[cfg(feature = "invariant")]
struct Invariant {
    text: String,
    program: cel::Program,
}

#[cfg(feature = "invariant")]
impl JsonCheck for Invariant {
    fn kind(&self) -> CheckKind {
        CheckKind::Invariant
    }

    fn complaint(&self, state: &Value) -> Option<String> {
        let text = &self.text;
        let mut context = cel::Context::default();
        if let Err(error) = context.add_variable("state", state) {
            return Some(format!("`{text}` can't be tried: {error}"));
        }
        match self.program.execute(&context) {
            Ok(cel::Value::Bool(true)) => None,
            Ok(cel::Value::Bool(false)) => Some(format!("`{text}` does not hold")),
            Ok(other) => Some(format!("`{text}` is no truth value but {:?}", other.type_of())),
            Err(error) => Some(format!("`{text}` fails: {error}")),
        }
    }
}

/// A command of the user's, run by `sh` in the directory with what survived.
pub struct Shell {
    text: String,
    environment: Vec<(OsString, OsString)>,
    root: PathBuf,
    /// What the program sees is what its checks must see.
    sandbox: Option<Rc<Sandbox>>,
    /// And as the same user.
    user: Option<User>,
}

/// The file with the lines of the acks that had been given, beside the trial directory.
#[derive(Clone, Debug)]
pub struct Acked(PathBuf);

impl Acked {
    /// Beside that directory.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self(root.with_file_name("acked"))
    }

    /// Writes the lines.
    pub fn write(&self, lines: &[Vec<u8>]) -> Result<()> {
        let mut text = lines.join(&b'\n');
        text.extend_from_slice(if text.is_empty() { b"" } else { b"\n" });
        std::fs::write(&self.0, text).context(format_args!("write {}", self.0.display()))
    }
}

/// How much of what a load prints is looked at: as much as a state may have.
const PRINTED_BYTES_MAX: u64 = 256 << 20;

/// How often it is looked at whether the server beside it has ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long it may go on when that has ended.
const NOBODY_ANSWERS: Duration = Duration::from_millis(300);

/// How a command of the user's ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// With status 0.
    Yes,
    /// With another status; the text is what it printed last.
    No(String),
    /// It did not end in time.
    Hung,
}

impl Shell {
    /// A command for the trial directory `root`.
    pub fn new(
        text: &str,
        command: &Command,
        root: &Path,
        sandbox: Option<&Rc<Sandbox>>,
    ) -> Result<Self> {
        let here = std::env::current_dir().context("find the current directory")?;
        let text = runner::shell_text(text, command, &here);
        let text = text.replace("{dir}", &root.to_string_lossy());
        let environment = runner::environment(command, root, &here);
        let user = runner::user_of(command)?;
        Ok(Self { text, environment, root: root.to_owned(), sandbox: sandbox.cloned(), user })
    }

    /// What is given to the shell.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The same with a path for a word in it.
    #[must_use]
    pub fn with(&self, word: &str, path: &Path) -> Self {
        let path = quoted(&path.to_string_lossy());
        // Quoted already, it must not be quoted twice.
        let quotes = ["\"", "'", ""].map(|quote| format!("{quote}{word}{quote}"));
        let text = quotes.iter().fold(self.text.clone(), |text, word| text.replace(word, &path));
        let (environment, root) = (self.environment.clone(), self.root.clone());
        Self { text, environment, root, sandbox: self.sandbox.clone(), user: self.user.clone() }
    }

    /// Sets a variable of its environment.
    pub fn set(&mut self, name: &str, value: impl Into<OsString>) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.into(), value.into()));
    }

    /// Runs it.
    pub fn run(&self, timeout: Duration) -> Result<Said> {
        Ok(self.run_with(None, timeout)?.0)
    }

    /// Runs it with what had been acknowledged: how often, and in which words.
    pub fn run_after(&self, acked: &Acked, acks: u64, timeout: Duration) -> Result<Said> {
        let given = [
            ("CRASHTEST_ACKS", acks.to_string().into()),
            ("CRASHTEST_ACKED", acked.0.clone().into()),
        ];
        Ok(self.run_to(None, None, (&given, timeout))?.0)
    }

    /// Runs it; returns besides what it has printed to stdout.
    pub fn run_and_hear(&self, timeout: Duration) -> Result<(Said, Vec<u8>)> {
        use std::io::{Read, Seek};
        let mut printed = tempfile::tempfile().context("make a temporary file")?;
        let said = self.run_to(Some(&printed), None, (&[], timeout))?.0;
        let mut bytes = Vec::new();
        printed
            .rewind()
            .and_then(|()| printed.take(PRINTED_BYTES_MAX).read_to_end(&mut bytes))
            .context("read what it has printed")?;
        Ok((said, bytes))
    }

    /// Runs it while a server runs, which is a child of this process, and ends that then. Returns how the
    /// server ended, if it was by itself: with another status than 0, nobody goes on asking it.
    pub fn run_with(
        &self,
        server: Option<Pid>,
        timeout: Duration,
    ) -> Result<(Said, Option<Ended>)> {
        self.run_to(None, server, (&[], timeout))
    }

    /// The same, with a file for its stdout.
    fn run_to(
        &self,
        stdout: Option<&std::fs::File>,
        server: Option<Pid>,
        (given, timeout): (&[(&str, OsString)], Duration),
    ) -> Result<(Said, Option<Ended>)> {
        use std::os::unix::process::CommandExt;
        let mut said = tempfile::tempfile().context("make a temporary file")?;
        let to_file = |file: &std::fs::File| file.try_clone().context("share a file");
        let mut shell = std::process::Command::new("/bin/sh");
        shell
            .args(["-c", &self.text])
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .envs(given.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.root)
            .stdin(std::process::Stdio::null())
            .stdout(to_file(stdout.unwrap_or(&said))?)
            .stderr(to_file(&said)?)
            .process_group(0);
        let sandbox = self.sandbox.as_deref();
        let mut gone = None;
        let ended = process::adopt_orphans(|| {
            let child = spawn::command(&mut shell, sandbox, self.user.as_ref())?;
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
            let mut until = Instant::now() + timeout;
            let ended = loop {
                let left = until.saturating_duration_since(Instant::now());
                let look =
                    if server.is_some() && gone.is_none() { left.min(LOOK_EVERY) } else { left };
                let ended = process::wait_at_most(pid, look)?;
                if let (Some(server), None) = (server, gone) {
                    gone = process::wait_at_most(server, Duration::ZERO)?;
                    if gone.is_some_and(|gone| gone != Ended::Status(0)) {
                        until = until.min(Instant::now() + NOBODY_ANSWERS);
                    }
                }
                if ended.is_some() || left.is_zero() || signals::ends() {
                    break ended;
                }
            };
            process::end_descendants()?;
            sandbox.map_or(Ok(()), Sandbox::end_all)?;
            Ok(ended)
        })
        .context(format_args!("run `{}`", self.text))?;
        if signals::interrupted() {
            return Err(Error::interrupted());
        }
        let said = match ended {
            None => Said::Hung,
            Some(Ended::Status(0)) => Said::Yes,
            Some(ended) => Said::No(last_line(&mut said, ended)),
        };
        Ok((said, gone))
    }
}

fn last_line(said: &mut std::fs::File, ended: Ended) -> String {
    use std::io::{Read, Seek, SeekFrom};
    const LOOKED_AT: u64 = 4096;
    let mut text = Vec::new();
    let length = said.metadata().map_or(0, |found| found.len());
    let read = said
        .seek(SeekFrom::Start(length.saturating_sub(LOOKED_AT)))
        .and_then(|_| said.take(LOOKED_AT).read_to_end(&mut text));
    let how = match ended {
        Ended::Status(status) => format!("exit status {status}"),
        Ended::Signal(signal) => format!("signal {signal}"),
    };
    let text = String::from_utf8_lossy(&text).trim().lines().last().unwrap_or_default().to_owned();
    match read {
        Ok(_) if !text.is_empty() => format!("{how}: {text}"),
        _ => how,
    }
}

/// A word for a shell; in quotes if it needs some. A NUL byte, which no word can have, is left out.
#[must_use]
pub fn quoted(word: &str) -> String {
    let word = word.replace('\0', "");
    shlex::try_quote(&word).map_or_else(|_| String::new(), Cow::into_owned)
}
