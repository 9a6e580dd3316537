//! Starts a program in a trial directory, again and again.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use regex::bytes::Regex;

use super::checks::quoted;
use super::decode::{Asked, Scope, is_cache};
use super::guard::{Guard, MORE_CALLS, Trespass};
use super::meeting::PROCESS;
use super::output::Output;
use super::recorder::Recorder;
use super::resident::{Observer, Watched};
use super::survivors::{collect, is_whiteout};
use super::tracer::{Bounds, How, Ran, Tracer, Unfollowed, Watcher};
use crate::armed::{Action, Follows};
use crate::command_line;
use crate::error::{Context, Error, Result};
use crate::lab;
use crate::model;
use crate::op::Trace;
use crate::os::enclosure;
use crate::os::process::{self, Ended};
use crate::os::ptrace::Stopped;
use crate::os::sandbox::{self, Sandbox};
use crate::os::seccomp::Filter;
use crate::os::signals;
use crate::os::spawn::{self, Pipes, Program, Traced, User};
use crate::outcome::{Content, Survivor};
use crate::sandbox::let_through;
use crate::state_files::StateFiles;
use crate::subject::{Command, Limits};

/// Starts one program in one room.
pub struct Runner {
    program: Program,
    init: Option<PathBuf>,
    limits: Limits,
    /// What the program prints.
    pub output: Output,
    /// The trial directory, and what matters in it.
    pub scope: Scope,
    filters: HashMap<Follows, Filter>,
    /// Where the program runs; none where this machine refuses namespaces.
    sandbox: Option<Rc<Sandbox>>,
    /// Files outside the trial directory that the program changes in its sandbox, as they are before a
    /// run.
    pub outside: BTreeMap<PathBuf, Vec<u8>>,
    keep: Option<PathBuf>,
    /// The call at which the guard has stopped the program in the last run, if it has.
    pub trespass: Option<Trespass>,
}

/// How long what a program left running may go on after it.
pub const GRACE: Duration = Duration::from_millis(500);
/// How long a program that is not traced may wait for its output to be read.
const DRAIN_EVERY: Duration = Duration::from_millis(20);

/// How long a followed run may go on.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// The program itself.
    pub timeout: Duration,
    /// What it left running, after it.
    pub grace: Duration,
}

/// How a run without tracing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    /// By itself or by a signal from elsewhere.
    Ended(Ended),
    /// It was killed at the moment that was asked for.
    Killed,
    /// Its time was up.
    TimedOut,
}

impl Runner {
    /// A runner that works in `room`.
    pub fn new(command: &Command, room: &Path) -> Result<Self> {
        let root = room.join("dir");
        let ack = command.ack.as_deref().map(ack_pattern).transpose()?;
        let program = program(command, &root)?;
        if program.user.is_some() {
            lab::let_in(room).context("let the user into the trial directory")?;
        }
        process::keep_memory();
        signals::interrupt_by_alarm().context("catch the alarm")?;
        let sandbox = sandbox::of_room(room, &command.allow_write, command.limits.data_bytes)?;
        let let_through = let_through(&command.allow_write)?;
        let guard = match sandbox {
            Some(_) => None,
            None => Some(Guard::new(&root, &command.allow_write)?),
        };
        Ok(Self {
            sandbox,
            outside: BTreeMap::new(),
            keep: None,
            program,
            init: command.init.clone(),
            limits: command.limits,
            output: Output::new(ack).context("make pipes")?,
            scope: Scope { root, everywhere: command.sandbox, guard, let_through },
            trespass: None,
            filters: HashMap::new(),
        })
    }

    /// Makes the trial directory anew.
    pub fn reset(&mut self) -> Result<()> {
        if let Some(sandbox) = &self.sandbox {
            sandbox.renew().context("renew the sandbox")?;
        }
        let root = &self.scope.root;
        let made = lab::remove_tree(root).and_then(|()| fs::create_dir(root));
        made.context(format_args!("make {}", root.display()))?;
        if let Some(init) = &self.init {
            let copied = lab::copy_users(init, root, self.limits.data_bytes);
            copied.map_err(|error| {
                Error::usage(format!("cannot copy --init {}: {error}", init.display()))
                    .help("name a directory with the files that the program starts with")
            })?;
        }
        self.hand_over().context(format_args!("give {} away", root.display()))?;
        self.output.reset().context("read what the program printed")
    }

    /// Gives all that is in the trial directory to the user as whom the program runs.
    pub fn hand_over(&self) -> io::Result<()> {
        match &self.program.user {
            Some(user) => lab::give(&self.scope.root, user.uid, user.gid),
            None => Ok(()),
        }
    }

    /// Runs the program in the directory as it is, and follows it. It stops at the calls that are
    /// followed alone.
    pub fn traced(
        &mut self,
        watcher: &mut impl Watcher,
        follows: Follows,
        bound: Bound,
    ) -> Result<Ran> {
        let guarded = self.scope.guard.is_some().then_some(MORE_CALLS);
        let filter = self.filters.entry(follows).or_insert_with(|| Filter::new(follows, guarded));
        let bounds = Bounds {
            deadline: Instant::now() + bound.timeout,
            processes: self.limits.processes,
            grace: bound.grace,
        };
        let child = start(
            &self.program,
            &mut self.output.pipes,
            Traced::With(filter),
            self.sandbox.as_deref(),
        )
        .map_err(|error| cannot_trace(&error))?;
        let tracer = Tracer::new(child, &self.scope, &mut self.output, watcher, bounds);
        let ran = process::adopt_orphans(|| signals::with_alarm(|| tracer.run()))
            .context("follow the program")?;
        self.started()?;
        let ran = ran?;
        self.trespass.clone_from(&ran.trespass);
        match &ran.trespass {
            Some(trespass) => Err(trespass.error(None)),
            None => Ok(ran),
        }
    }

    /// Runs the program in the directory as it is, watched between its ops, for at most so long; how it ended.
    pub fn observe(
        &mut self,
        observer: &mut dyn Observer,
        timeout: Duration,
    ) -> Result<(Trace, How)> {
        let scope = self.scope.clone();
        let counter = self.output.new_counter();
        let recorder = Recorder::new(&scope, counter, self.limits.acks, self.limits.data_bytes);
        let mut watched = Watched::new(recorder, observer);
        let bound = Bound { timeout, grace: GRACE };
        let ran = self.traced(&mut watched, Follows::All, bound)?;
        if let Some(error) = watched.failed {
            return Err(error);
        }
        let mut recorder = watched.recorder;
        recorder.stores();
        Ok((recorder.trace, ran.how))
    }

    /// As [`Runner::plain`], but where there is a guard: it must see the calls that name a file.
    fn guarded(&mut self, timeout: Duration) -> Result<Plain> {
        let bound = Bound { timeout, grace: Duration::ZERO };
        let ran = self.traced(&mut Unwatched, Follows::Nothing, bound)?;
        Ok(match ran.how {
            How::Ended(ended) => Plain::Ended(ended),
            How::Struck | How::Enough | How::TimedOut | How::TooMany => Plain::TimedOut,
        })
    }

    /// Starts the program in the directory as it is, without tracing.
    pub fn start(&mut self) -> io::Result<Pid> {
        let sandbox = self.sandbox.as_deref();
        start(&self.program, &mut self.output.pipes, Traced::Not, sandbox)
    }

    /// Runs the program without tracing; with `kill_after`, kills it then.
    pub fn plain(&mut self, kill_after: Option<Duration>, timeout: Duration) -> Result<Plain> {
        if self.scope.guard.is_some() && kill_after.is_none() {
            return self.guarded(timeout);
        }
        let started = Instant::now();
        let ran = process::adopt_orphans(|| {
            let child = self.start()?;
            let limit = kill_after.unwrap_or(timeout);
            let ended = loop {
                let left = limit.saturating_sub(started.elapsed());
                let ended = process::wait_at_most(child, left.min(DRAIN_EVERY))?;
                if ended.is_some() || started.elapsed() >= limit || signals::ends() {
                    break ended;
                }
                self.output.drain()?;
            };
            let descendants = process::end_descendants()?;
            // Those that are no descendants of this process any more.
            self.sandbox.as_ref().map_or(Ok(()), |sandbox| sandbox.end_all())?;
            self.output.drain()?;
            Ok((child, ended, descendants))
        });
        let (child, ended, descendants) = ran.context("run the program")?;
        if signals::interrupted() {
            return Err(Error::interrupted());
        }
        self.started()?;
        Ok(match (ended, kill_after) {
            (Some(ended), _) => Plain::Ended(ended),
            // It may have ended by itself in the last moment.
            (None, Some(_)) => match descendants.iter().find(|(pid, _)| *pid == child) {
                Some((_, Ended::Signal(libc::SIGKILL))) | None => Plain::Killed,
                Some((_, ended)) => Plain::Ended(*ended),
            },
            (None, None) => Plain::TimedOut,
        })
    }

    /// Says why the program could not be started, if it could not.
    pub fn started(&mut self) -> Result<()> {
        match self.output.start_error() {
            None => Ok(()),
            Some(errno) => {
                if self.sandbox.is_some()
                    && !Path::new(OsStr::from_bytes(self.program.path.as_bytes())).is_dir()
                    && errno != nix::errno::Errno::ENOEXEC
                {
                    return Err(Error::lacking(format!("cannot start the program in a sandbox: {errno}"))
                        .help("unprivileged user namespaces and overlays are needed; `crashtest doctor` shows what is missing"));
                }
                let path = self.program.path.to_string_lossy().into_owned();
                let error = Error::baseline(format!("cannot execute {path}: {errno}"));
                Err(match errno {
                    nix::errno::Errno::ENOEXEC => {
                        error.help("a script needs a first line such as `#!/bin/sh`")
                    }
                    nix::errno::Errno::ENOENT => {
                        error.help("does the interpreter in its first line exist?")
                    }
                    _ => error,
                })
            }
        }
    }

    /// What the program may use.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The sandbox, if there is one.
    #[must_use]
    pub fn sandbox(&self) -> Option<&Rc<Sandbox>> {
        self.sandbox.as_ref()
    }

    /// Whether anything was written outside the trial directory.
    pub fn wrote_outside(&self) -> io::Result<bool> {
        self.sandbox.as_ref().map_or(Ok(false), |sandbox| sandbox.is_written())
    }

    /// Keeps a copy of what the next trial leaves.
    pub fn keep_in(&mut self, directory: PathBuf) {
        self.keep = Some(directory);
    }

    /// Copies what a trial has left, if that was asked for.
    pub fn keep(&mut self) -> Result<()> {
        let Some(directory) = self.keep.take() else { return Ok(()) };
        let copied = lab::copy_tree(&self.scope.root, &directory);
        copied.context(format_args!("keep a copy in {}", directory.display()))?;
        match &self.sandbox {
            None => Ok(()),
            Some(sandbox) if self.scope.everywhere => {
                lab::copy_tree(&sandbox.upper(), &directory.join("outside"))
                    .context(format_args!("keep a copy in {}", directory.display()))
            }
            Some(_) => Ok(()),
        }
    }

    /// Reads what is in the trial directory; files that are larger than may be are not read.
    pub fn survivor(&self, state: &StateFiles) -> Result<Survivor> {
        match self.collected(state) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let root = self.scope.root.display();
                Err(Error::baseline(format!(
                    "what the program leaves in {root} can't be read: {error}"
                )))
            }
            other => other.context(format_args!("read {}", self.scope.root.display())),
        }
    }

    /// The same, as the system says it.
    pub fn collected(&self, state: &StateFiles) -> io::Result<Survivor> {
        let root = &self.scope.root;
        let mut survivor = Survivor::default();
        let limit = self.limits.data_bytes;
        match collect(root, Path::new(""), state, limit, &mut survivor) {
            // The program removed its own directory: nothing is left.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        if let (Some(sandbox), true) = (&self.sandbox, self.scope.everywhere) {
            self.outside(sandbox, state, &mut survivor)?;
        }
        Ok(survivor)
    }
}

impl Runner {
    /// Adds what lies outside the trial directory: what was changed is in the upper layers of the
    /// sandbox, the rest is as it was.
    fn outside(
        &self,
        sandbox: &Sandbox,
        state: &StateFiles,
        survivor: &mut Survivor,
    ) -> io::Result<()> {
        let mut changed = Survivor::default();
        let limit = self.limits.data_bytes;
        let upper = &sandbox.upper();
        collect(upper, Path::new("/"), state, limit, &mut changed)?;
        changed.files.retain(|path, _| !sandbox.is_part_of_it(path));
        changed.others.retain(|path| !sandbox.is_part_of_it(path) && !is_cache(path));
        for (path, bytes) in &self.outside {
            if state.contains(path) && !changed.others.contains(path) {
                survivor.files.insert(path.clone(), Content::Bytes(bytes.clone()));
            }
        }
        for (path, content) in changed.files {
            if is_whiteout(upper, &path) {
                survivor.files.remove(&path);
            } else {
                survivor.files.insert(path, content);
            }
        }
        let others = changed.others.into_iter().filter(|path| !is_whiteout(upper, path));
        survivor.others.extend(others);
        Ok(())
    }
}

/// Starts a program, in the sandbox if there is one.
fn start(
    program: &Program,
    pipes: &mut Pipes,
    trace: Traced<'_>,
    sandbox: Option<&Sandbox>,
) -> io::Result<Pid> {
    match sandbox {
        Some(sandbox) => {
            sandbox.fork_inside(|| spawn::spawn(program, pipes, trace, || sandbox.enter()))?
        }
        None => spawn::spawn(program, pipes, trace, || Ok(())),
    }
}

/// Watches nothing: only the guard looks.
struct Unwatched;

impl Watcher for Unwatched {
    fn asked(&mut self, _asked: &Asked, _thread: &Stopped) -> Action {
        Action::Pass
    }

    fn wants_results(&self) -> bool {
        false
    }

    fn unfollowed(&mut self, _what: Unfollowed) {}
}

fn cannot_trace(error: &io::Error) -> Error {
    let cannot = Error::lacking(format!("cannot trace the program: {error}"));
    match error.raw_os_error() {
        Some(libc::EPERM) => cannot.help(
            "ptrace is forbidden here (kernel.yama.ptrace_scope, or a container's policy); \
             `crashtest doctor` shows what is missing, and --timing does without",
        ),
        _ => cannot,
    }
}

/// Compiles the user's pattern for acks.
pub fn ack_pattern(pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|error| {
        let reason = error.to_string();
        let last = reason.lines().last().unwrap_or_default().to_owned();
        Error::usage(format!("`--ack {pattern}` is not a regular expression: {last}"))
    })
}

fn program(command: &Command, root: &Path) -> Result<Program> {
    let [name, arguments @ ..] = &command.argv[..] else {
        return Err(Error::usage("no program was named").help("give it after `--`"));
    };
    let c_string = |text: &OsStr| {
        CString::new(text.as_bytes()).map_err(|_| Error::usage("an argument holds a NUL byte"))
    };
    let here = std::env::current_dir().context("find the current directory")?;
    let directory = root.to_string_lossy();
    let words: Vec<&str> = command.argv.iter().map(String::as_str).collect();
    let script = command_line::script(&words);
    let mut all = vec![c_string(name.as_ref())?];
    for (n, argument) in arguments.iter().enumerate() {
        let file = file_here(&here, argument).filter(|_| script == Some(n + 1));
        let filled = || {
            let filled = argument.replace("{dir}", &directory);
            OsString::from(filled.replace("{process}", process_of(command)))
        };
        all.push(c_string(&file.map_or_else(filled, PathBuf::into_os_string))?);
    }
    Ok(Program {
        path: c_string(executable(&here, name)?.as_os_str())?,
        arguments: all,
        environment: environment(command, root, &here)
            .into_iter()
            .map(|(name, value)| {
                let pair = [name.as_bytes(), b"=", value.as_bytes()].concat();
                c_string(&OsString::from_vec(pair))
            })
            .collect::<Result<_>>()?,
        directory: c_string(root.as_os_str())?,
        user: user_of(command)?,
    })
}

/// The user as whom a program runs, if that is another one.
pub fn user_of(command: &Command) -> Result<Option<User>> {
    let Some(name) = &command.user else { return Ok(None) };
    let found = User::find(name).context(format_args!("look for the user {name}"))?;
    let user = found.ok_or_else(|| Error::usage(format!("there is no user `{name}`")))?;
    match nix::unistd::geteuid().is_root() {
        true => Ok(Some(user)),
        false => Err(Error::lacking("only root can run a program as another user")
            .help("run crashtest as root, or leave out --user")),
    }
}

/// Which of two processes that save at once it is: `1` or `2`.
fn process_of(command: &Command) -> &str {
    command.env.get(PROCESS).unwrap_or("1")
}

/// The environment of a program: ours, with the trial directory as its home.
#[must_use]
pub fn environment(command: &Command, root: &Path, here: &Path) -> Vec<(OsString, OsString)> {
    let own = ["HOME", "PWD", "CRASHTEST_DIR"].map(|name| (name.into(), root.into()));
    let user =
        command.user.iter().flat_map(|name| ["USER", "LOGNAME"].map(|variable| (variable, name)));
    let given = command.env.iter().map(|(name, value)| (name.into(), value.into()));
    let set: HashMap<OsString, OsString> = std::env::vars_os()
        .filter(|(name, _)| name != "OLDPWD")
        .chain(own)
        .chain([("CRASHTEST_CWD".into(), here.into()), (PROCESS.into(), "1".into())])
        // Without a sandbox Python must not put compiled modules beside the user's.
        .chain(enclosure::refused().map(|_| ("PYTHONDONTWRITEBYTECODE".into(), "1".into())))
        .chain(user.map(|(variable, name)| (variable.into(), name.into())))
        .chain(given)
        .collect();
    set.into_iter().collect()
}

/// Whether there is a program of this name in `PATH`.
#[must_use]
pub fn is_in_path(name: &str) -> bool {
    executable(Path::new("/"), name).is_ok()
}

/// The file to execute: a path from here, or a name in `PATH`.
fn executable(here: &Path, name: &str) -> Result<PathBuf> {
    let runs = |path: &Path| {
        fs::metadata(path)
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        let path = here.join(name);
        if runs(&path) {
            return Ok(path);
        }
        return Err(match fs::metadata(&path) {
            Err(error) => Error::baseline(format!("cannot execute {name}: {error}"))
                .help("paths of programs are relative to the current directory"),
            Ok(found) if found.is_dir() => {
                Error::baseline(format!("cannot execute {name}: it is a directory"))
            }
            Ok(_) => Error::baseline(format!("cannot execute {name}: it is not executable"))
                .help(format!("chmod +x {name}, or name its interpreter: -- python3 {name}")),
        });
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    std::env::split_paths(&path)
        .map(|directory| here.join(directory).join(name))
        .find(|candidate| runs(candidate))
        .ok_or_else(|| {
            Error::baseline(format!("cannot execute {name}: it is not in PATH"))
                .help("give its path, such as ./program")
        })
}

/// The file that a word names, which is the program or a script, if it lies in the user's directory: the
/// program runs elsewhere, so that the path is made absolute.
///
/// Only the two words that [`command_line`] finds are looked at. A file such as `state.json` that happens to
/// lie here must never be what a trial writes to or a check reads.
fn file_here(here: &Path, word: &str) -> Option<PathBuf> {
    let path = here.join(word);
    (Path::new(word).is_relative() && path.is_file()).then_some(path)
}

/// A shell command of the user's with absolute paths for its program and script, if these are files of the
/// user's directory and nothing that the program under test makes.
#[must_use]
pub fn shell_text(text: &str, command: &Command, here: &Path) -> String {
    let mut filled = text.to_owned();
    let own = StateFiles::given(&command.state).ok();
    for range in command_line::files_in_shell(text).into_iter().rev() {
        let word = &text[range.clone()];
        let inside = model::plain(Path::new(word));
        let of_program = command.inside.contains(&inside)
            || own.as_ref().is_some_and(|state| state.contains(&inside))
            || command.init.as_ref().is_some_and(|init| init.join(&inside).exists())
            || command.argv.iter().skip(1).any(|argument| argument == word);
        // A name without a slash is a program of PATH, unless it is the script.
        let is_script = range.start > 0;
        if !of_program
            && (is_script || word.contains('/'))
            && let Some(path) = file_here(here, word)
        {
            filled.replace_range(range, &quoted(&path.to_string_lossy()));
        }
    }
    filled
}
