//! Checks in a Rust test: `crashtest::check(|dir| save(dir))`.
//!
//! A test is a thread among others, and a process with such must neither be killed nor fork. So the binary of
//! the test is started again, for that test alone, and told in an environment variable what is wanted of it
//! when it comes to the same call: to examine, to save, to load what is left, or to verify it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::io::Write;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio, Termination, exit};
use std::str::FromStr;

use clap::Parser;

use crate::cli::Cli;
use crate::commands;
use crate::error::{Context, Error, Result};
use crate::exit_status::ExitStatus;
use crate::inject::checks::quoted;
use crate::os::process::{self, Ended};

/// Tells the binary of a test what is wanted of it.
const CALL: &str = "CRASHTEST_CALL";
/// Which binary that is meant for: one that a test starts is not told.
const CALL_OF: &str = "CRASHTEST_CALL_OF";
/// Stands before the report: what a test harness prints comes first.
const BEGIN: &str = "--- what crashtest found ---";
/// The thread of a test is named like it, and this one like none.
const MAIN: &str = "main";

/// Fails the test if what `save` has saved into the directory is lost or damaged when the process is killed,
/// the disk is full, a call fails or the power goes. The message says what was left, by what, which line wrote
/// it, and what to do.
///
/// `save` is run in a process of its own, again and again, in an empty directory that it is given and that is
/// the current one. It has saved if it returns, with `Ok` if it returns a `Result`. All that stands before this
/// call in the test is run in that process too. What this machine lacks is said, and nothing is checked then,
/// unless `CRASHTEST_REQUIRE` is set.
///
/// ```no_run
/// # fn save(_: &std::path::Path) -> std::io::Result<()> { Ok(()) }
/// #[test]
/// fn the_state_survives() {
///     crashtest::check(|dir| save(&dir.join("state.json")));
/// }
/// ```
///
/// # Panics
///
/// If the state is lost or damaged, or if that could not be found out.
#[track_caller]
pub fn check<T: Termination>(save: impl FnOnce(&Path) -> T) {
    Checker::new().check(save);
}

/// One thing that the test does in the directory.
type Step<'a> = Box<dyn FnOnce(&Path) -> ExitCode + 'a>;

/// A check, with what it is to be told besides; the options are those of `crashtest check`.
#[must_use = "nothing is checked before `check`"]
#[derive(Default)]
pub struct Checker<'a> {
    options: Vec<String>,
    results: Option<PathBuf>,
    recover: Option<Step<'a>>,
    verify: Option<Step<'a>>,
}

impl<'a> Checker<'a> {
    /// What [`check`] does: sigkill, enospc, errno and poweroff, with seed 1.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only these scenarios.
    pub fn scenarios<S: AsRef<str>>(self, names: impl IntoIterator<Item = S>) -> Self {
        let names: Vec<_> = names.into_iter().map(|name| name.as_ref().to_owned()).collect();
        self.option(format!("--scenario={}", names.join(",")))
    }

    /// What draws everything that is drawn.
    pub fn seed(self, seed: u64) -> Self {
        self.option(format!("--seed={seed}"))
    }

    /// How many trials in each scenario that has no end by itself, and the most in one that has.
    pub fn trials(self, trials: u64) -> Self {
        self.option(format!("--trials={trials}"))
    }

    /// How many worker processes; the CPUs unless this is said.
    pub fn jobs(self, jobs: usize) -> Self {
        self.option(format!("--jobs={jobs}"))
    }

    /// Fail on risks of medium level too, such as a save that is acknowledged before it is on disk.
    pub fn strict(self) -> Self {
        self.option("--strict")
    }

    /// A regular expression for a line that `save` prints to stdout when one of several saves is done.
    pub fn ack(self, regex: &str) -> Self {
        self.option(format!("--ack={regex}"))
    }

    /// A glob of the state files, relative to the directory; the files that are changed unless this is said.
    pub fn state(self, glob: &str) -> Self {
        self.option(format!("--state={glob}"))
    }

    /// A directory that is copied into the one of each trial first.
    pub fn init(self, directory: impl AsRef<Path>) -> Self {
        self.option(format!("--init={}", directory.as_ref().display()))
    }

    /// An environment variable for `save`.
    pub fn env(self, name: &str, value: &str) -> Self {
        self.option(format!("--env={name}={value}"))
    }

    /// Any option of `crashtest check`, as in a shell.
    pub fn option(mut self, option: impl Into<String>) -> Self {
        self.options.push(option.into());
        self
    }

    /// Where results are kept, for `crashtest replay`; unless this or `CRASHTEST_RESULTS` says it, in the
    /// target directory, until the test runs again.
    pub fn results(mut self, directory: impl Into<PathBuf>) -> Self {
        self.results = Some(directory.into());
        self
    }

    /// Loads what is left, as the program does when it starts: it must not fail. Then `save` is run once more.
    pub fn recover<T: Termination>(mut self, load: impl FnOnce(&Path) -> T + 'a) -> Self {
        self.recover = Some(Box::new(move |dir| load(dir).report()));
        self
    }

    /// Looks at what is left: what it does not like, by a panic or an `Err`, is a violation.
    pub fn verify<T: Termination>(mut self, look: impl FnOnce(&Path) -> T + 'a) -> Self {
        self.verify = Some(Box::new(move |dir| look(dir).report()));
        self
    }

    /// Checks how `save` saves, as [`check`] does.
    ///
    /// # Panics
    ///
    /// If the state is lost or damaged, or if that could not be found out.
    #[track_caller]
    pub fn check<T: Termination>(self, save: impl FnOnce(&Path) -> T) {
        let place = this_call(Location::caller());
        match wanted() {
            None => tell(ask(&place)),
            // The test is run for another one of its calls.
            Some(call) if call.place != place => {}
            Some(Call { role: Role::Examine, .. }) => exit(self.examine(&place)),
            Some(Call { role: Role::Save, .. }) => act(Box::new(move |dir| save(dir).report())),
            Some(Call { role: Role::Recover, .. }) => act_aside(self.recover),
            Some(Call { role: Role::Verify, .. }) => act_aside(self.verify),
        }
    }

    /// Runs the command in a process with one thread; returns with which status it ended.
    fn examine(self, place: &str) -> i32 {
        println!("\n{BEGIN}");
        let ended = self.words(place).and_then(|words| {
            let cli = Cli::try_parse_from(words).map_err(|why| Error::usage(why.to_string()))?;
            // Whoever waits for this process may end; then so do this one and what it has started.
            process::end_with_parent().context("ask for the end of the test")?;
            let child = process::fork_beside_sleepers(|| dispatched(cli));
            let child = child
                .map_err(|why| Error::usage(format!("cannot fork beside other threads: {why}")))
                .map_err(|error| error.help("start no threads in the test before the check"))?;
            process::wait_for(child).context("wait for the check")
        });
        match ended {
            Ok(Ended::Status(status)) => status,
            Ok(Ended::Signal(signal)) => {
                eprintln!("error: the check was ended by signal {signal}");
                ExitStatus::Internal as i32
            }
            Err(error) => failed(&error),
        }
    }

    /// The command line.
    fn words(&self, place: &str) -> Result<Vec<String>> {
        let (program, arguments) = again()?;
        let name = test_name().unwrap_or_else(|| file_name(&program));
        let mut words: Vec<_> = ["crashtest", "check", "--quiet"].map(str::to_owned).into();
        words.push(format!("--name={name}"));
        if let Some(results) = self.kept(Path::new(&program), &name)? {
            words.push(format!("--results={results}"));
        }
        let told = |role| Call { role, place: place.to_owned() }.to_string();
        words.push(format!("--env={CALL}={}", told(Role::Save)));
        // A replay is started by somebody else.
        words.push(format!("--env={CALL_OF}={program}"));
        // A panic is an answer to a call that fails; to look all of its frames up would take longer than it.
        words.push("--env=RUST_BACKTRACE=0".to_owned());
        // A replay needs these, and they are no secrets.
        words.push(format!("--keep-env={CALL},{CALL_OF},RUST_BACKTRACE"));
        let shell = |role| {
            let call = [quoted(&told(role)), quoted(&program)];
            let rest = arguments.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
            // The test harness has something to say, which must not be taken for the test's.
            format!("{CALL}={} {} {rest} 3>&1 >/dev/null", call[0], call[1])
        };
        let steps = [
            ("recover", self.recover.is_some(), Role::Recover),
            ("check", self.verify.is_some(), Role::Verify),
        ];
        for (option, _, role) in steps.into_iter().filter(|(_, given, _)| *given) {
            words.push(format!("--{option}={}", shell(role)));
        }
        words.extend(self.options.clone());
        words.extend(["--".to_owned(), program.clone()]);
        words.extend(arguments);
        Ok(words)
    }

    /// Where results are kept, unless the environment says it.
    fn kept(&self, program: &Path, name: &str) -> Result<Option<String>> {
        let words = |path: &Path| Some(path.display().to_string());
        if let Some(directory) = &self.results {
            return Ok(words(directory));
        }
        if std::env::var_os("CRASHTEST_RESULTS").is_some() {
            return Ok(None);
        }
        // Cargo puts the binaries of tests into `deps`.
        let beside = program.parent().filter(|place| place.ends_with("deps"));
        let root = beside.and_then(Path::parent).map_or_else(std::env::temp_dir, Path::to_owned);
        let plain = |c: char| if c.is_alphanumeric() || c == '_' { c } else { '-' };
        let name: String = name.chars().map(plain).collect();
        let directory =
            root.join("crashtest-results").join(file_name(&program.to_string_lossy())).join(name);
        match std::fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context(format_args!("remove old results in {}", directory.display()))
            }
            _ => Ok(words(&directory)),
        }
    }
}

impl fmt::Debug for Checker<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checker").field("options", &self.options).finish_non_exhaustive()
    }
}

/// What is wanted of this binary, if it was started for that.
fn wanted() -> Option<Call> {
    let of = std::env::var_os(CALL_OF)?;
    let call = std::env::var(CALL).ok()?.parse().ok()?;
    (std::env::current_exe().ok()?.as_os_str() == of).then_some(call)
}

/// What is wanted of the binary of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// To examine how it saves.
    Examine,
    /// To save.
    Save,
    /// To load what is left.
    Recover,
    /// To look at what is left.
    Verify,
}

impl Role {
    const ALL: [Self; 4] = [Self::Examine, Self::Save, Self::Recover, Self::Verify];

    fn name(self) -> &'static str {
        match self {
            Self::Examine => "examine",
            Self::Save => "save",
            Self::Recover => "recover",
            Self::Verify => "verify",
        }
    }
}

/// A role, and the call of [`Checker::check`] that is to take it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Call {
    role: Role,
    place: String,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role.name(), self.place)
    }
}

impl FromStr for Call {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        let (name, place) = text.split_once(' ').ok_or(())?;
        let role = Role::ALL.into_iter().find(|role| role.name() == name).ok_or(())?;
        Ok(Self { role, place: place.to_owned() })
    }
}

/// Which call this is: its place, and how often this test has come there.
fn this_call(location: &Location<'_>) -> String {
    thread_local! {
        static COUNTS: RefCell<HashMap<String, u64>> = RefCell::default();
    }
    let place = location.to_string();
    let nth = COUNTS.with_borrow_mut(|counts| {
        let count = counts.entry(place.clone()).or_default();
        *count += 1;
        *count
    });
    format!("{place}#{nth}")
}

/// The test that this thread runs; none if the binary has a `main` of its own.
fn test_name() -> Option<String> {
    let thread = std::thread::current();
    thread.name().filter(|name| *name != MAIN).map(str::to_owned)
}

/// How this binary is started again, to run the same test alone.
fn again() -> Result<(String, Vec<String>)> {
    let no_text = |what: std::ffi::OsString| {
        Error::usage(format!("`{}` is no UTF-8", what.display())).help("rename it")
    };
    let program = std::env::current_exe().context("find the binary of the test")?;
    let program = program.into_os_string().into_string().map_err(no_text)?;
    let arguments = match test_name() {
        Some(name) => ["--exact", &name, "--nocapture", "--include-ignored", "--quiet"]
            .map(str::to_owned)
            .into(),
        None => std::env::args_os()
            .skip(1)
            .map(|word| word.into_string().map_err(no_text))
            .collect::<Result<_>>()?,
    };
    Ok((program, arguments))
}

fn file_name(program: &str) -> String {
    let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy().into_owned();
    // Cargo's binaries end with a hash.
    let hash = |text: &str| text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match name.rsplit_once('-') {
        Some((stem, end)) if hash(end) => stem.to_owned(),
        _ => name,
    }
}

/// What a check came to.
struct Answer {
    status: i32,
    found: String,
    complaint: String,
}

/// Has a process of its own examine this test.
fn ask(place: &str) -> Result<Answer> {
    let (program, arguments) = again()?;
    let call = Call { role: Role::Examine, place: place.to_owned() };
    let output = Command::new(&program)
        .args(&arguments)
        .env(CALL, call.to_string())
        .env(CALL_OF, &program)
        .stdin(Stdio::null())
        .output()
        .context(format_args!("start {program} again"))?;
    let (said, complaint) = (text(&output.stdout), text(&output.stderr));
    let Some((_, found)) = said.split_once(BEGIN) else {
        return Err(Error::usage(format!(
            "the test did not come to this call when it was run by itself: {program} {}\n{}{}",
            arguments.join(" "),
            said.trim(),
            complaint.trim()
        ))
        .help("call it in the thread of the test, and whatever other tests do"));
    };
    let status = output.status.code().unwrap_or(ExitStatus::Internal as i32);
    let complaint = complaint.trim_end().trim_start_matches("error: ").to_owned();
    Ok(Answer { status, found: found.trim().to_owned(), complaint })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Passes or fails the test.
#[track_caller]
fn tell(answer: Result<Answer>) {
    const PASSED: i32 = ExitStatus::AsExpected as i32;
    const VIOLATED: i32 = ExitStatus::Unexpected as i32;
    const UNTESTED: i32 = ExitStatus::BaselineFailed as i32;
    const LACKING: i32 = ExitStatus::MachineLacks as i32;
    let required = std::env::var_os("CRASHTEST_REQUIRE").is_some_and(|what| !what.is_empty());
    match answer {
        Ok(Answer { status: PASSED, found, .. }) => println!("{found}"),
        Ok(Answer { status: VIOLATED, found, .. }) => panic!("{found}"),
        Ok(Answer { status: LACKING, complaint, .. }) if !required => {
            eprintln!("skipped: {complaint}");
        }
        Ok(Answer { status, complaint, .. }) if complaint.is_empty() => {
            panic!("the check was not made: it ended with status {status}")
        }
        Ok(Answer { status: UNTESTED, complaint, .. }) => panic!(
            "the check was not made: {complaint}\n  help: where it saves, the test is run from its beginning: what \
             stands before the check must work there, too"
        ),
        Ok(Answer { complaint, .. }) => panic!("the check was not made: {complaint}"),
        Err(error) => panic!("the check was not made: {error}"),
    }
}

/// Does what the command line says, in the process that was forked for it.
fn dispatched(cli: Cli) -> i32 {
    let status = match process::end_with_parent() {
        Err(why) => failed(&Error::internal(format!("cannot ask for the end of the test: {why}"))),
        Ok(()) => match commands::dispatch(cli) {
            Ok(status) => status as i32,
            Err(error) => failed(&error),
        },
    };
    // If nobody reads it, nobody waits for it.
    let _ = std::io::stdout().flush();
    status
}

fn failed(error: &Error) -> i32 {
    eprintln!("error: {error}");
    error.status as i32
}

/// Does one thing in the directory of a trial, and ends this process.
fn act(step: Step<'_>) -> ! {
    let directory = std::env::var_os("CRASHTEST_DIR").map_or_else(PathBuf::new, PathBuf::from);
    // What is said last is shown.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    // A test that is to panic would end with status 0.
    let code = catch_unwind(AssertUnwindSafe(|| step(&directory)));
    exit(match code {
        Ok(ExitCode::SUCCESS) => 0,
        Ok(_) => 1,
        Err(_) => 101,
    })
}

/// The same, and what it prints goes where the shell has put the real stdout aside.
fn act_aside(step: Option<Step<'_>>) -> ! {
    if let Err(why) = process::stdout_from(3) {
        eprintln!("error: cannot print to descriptor 3: {why}");
        exit(ExitStatus::Internal as i32)
    }
    act(step.unwrap_or_else(|| Box::new(|_| ExitCode::FAILURE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_known_by_its_place_and_by_how_often_it_was_reached() {
        let at = |column: u32| (0..2).map(move |_| column);
        let calls: Vec<_> = at(1).map(|_| this_call(Location::caller())).collect();
        assert!(calls[0].ends_with("#1") && calls[1].ends_with("#2"), "{calls:?}");
        assert_ne!(this_call(Location::caller()), this_call(Location::caller()));
    }

    #[test]
    fn a_call_is_read_as_it_was_written() {
        for role in Role::ALL {
            let call = Call { role, place: "tests/a b.rs:1:2#3".to_owned() };
            assert_eq!(call.to_string().parse(), Ok(call));
        }
        assert!("dance tests/a.rs:1:2#3".parse::<Call>().is_err());
    }

    #[test]
    fn the_hash_of_cargo_is_no_part_of_a_name() {
        assert_eq!(file_name("/target/debug/deps/bot-0123456789abcdef"), "bot");
        assert_eq!(file_name("/target/debug/my-bot"), "my-bot");
    }
}
