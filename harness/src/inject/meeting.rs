//! Trials in which two processes meet.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crashtest_targets::Origin;
use nix::unistd::Pid;

use super::Injector;
use super::builtin::Slot;
use super::builtin_recorder;
use super::by_turns::{Ending, Run, Turns, Where};
use super::command::CommandInjector;
use super::resident::{Resident, Sight};
use super::runner::{Plain, Runner};
use super::tracer::How;
use crate::error::{Context, Error, Result};
use crate::fault::{Fault, Injection, Struck};
use crate::lab;
use crate::meeting::{self, Meeting, Second, Then};
use crate::os::process::Ended;
use crate::outcome::{Check, Content, Exit, Loaded, Outcome, Recovery, Survivor};
use crate::subject::{BuiltIn, Command, Kind, Learned, Prepared};

/// Has two processes of a subject meet.
pub struct Meetings<'a> {
    meets: Box<dyn Meets + 'a>,
}

/// How two processes of a subject meet.
trait Meets {
    fn meet(&mut self, meeting: &Meeting) -> Result<Met>;
    fn keep_in(&mut self, directory: PathBuf);
}

/// What came of it.
struct Met {
    /// None if the first ended before the second came.
    second: Option<Second>,
    exit: Exit,
    acks: u64,
    survivor: Survivor,
    checks: Vec<Check>,
    recovery: Recovery,
}

impl<'a> Meetings<'a> {
    /// An injector that works in `room`.
    pub fn new(prepared: &'a Prepared, room: &Path) -> Result<Self> {
        let meets: Box<dyn Meets + 'a> = match &prepared.kind {
            Kind::BuiltIn(subject) => {
                let slot = Slot::at(room.join("meeting"), subject.strategy.state_file());
                Box::new(OfBuiltIn { subject, slot, keep: None })
            }
            Kind::Command(learned) => {
                let first = CommandInjector::new(learned, prepared, room, None)?;
                let mut second = Runner::new(&second_of(&learned.command), room)?;
                if learned.command.check.is_some() {
                    second.output.keep_acks();
                }
                Box::new(OfCommand { first, second })
            }
            Kind::Recorded(_) | Kind::Live(_) | Kind::Bot(_) => {
                return Err(Error::usage("what does not run can't meet another")
                    .help("give a strategy, or a program"));
            }
        };
        Ok(Self { meets })
    }

    fn one(&mut self, fault: &Fault) -> Result<Outcome> {
        let Fault::Concurrent(meeting) = fault else {
            return Err(Error::internal("only meetings are made here"));
        };
        let met = self.meets.meet(meeting)?;
        let injection = match met.second {
            None => Injection::NotReached,
            Some(second) => Injection::At(Struck::Met { second }),
        };
        Ok(Outcome {
            acks: met.acks,
            survivor: met.survivor,
            checks: met.checks,
            recovery: met.recovery,
            ..Outcome::new(fault.clone(), injection, met.exit)
        })
    }
}

impl Injector for Meetings<'_> {
    fn inject(&mut self, faults: &[Fault]) -> Result<Vec<Outcome>> {
        faults.iter().map(|fault| self.one(fault)).collect()
    }

    fn keep_in(&mut self, directory: PathBuf) {
        self.meets.keep_in(directory);
    }
}

/// How large a file may be that says the number of a process.
const NUMBERED_BYTES_MAX: u64 = 64 << 10;

/// Lets this process have the numbers of dead ones: in each small file of text that is no state.
fn succeed(root: &Path, dead: &[Pid], is_state: &dyn Fn(&Path) -> bool) -> io::Result<()> {
    for path in lab::files(root)? {
        let relative = path.strip_prefix(root).unwrap_or(&path);
        if is_state(relative) || fs::metadata(&path)?.len() > NUMBERED_BYTES_MAX {
            continue;
        }
        let Ok(mut text) = String::from_utf8(fs::read(&path)?) else { continue };
        let before = text.clone();
        for pid in dead {
            let number = |pid: Pid| u32::try_from(pid.as_raw()).unwrap_or(0);
            let own = number(nix::unistd::getpid());
            text = meeting::renumbered(&text, number(*pid), own).unwrap_or(text);
        }
        if text != before {
            fs::write(&path, text)?;
        }
    }
    Ok(())
}

/// How long a run of a built-in strategy may take that none is in the way of.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came of two runs.
struct Played {
    /// None if the first ended before the second came.
    second: Option<Second>,
    first: Ending,
    /// How many saves the first has acknowledged.
    acks: u64,
    /// The lines of the acks of both.
    lines: Vec<Vec<u8>>,
    /// The PIDs of the dead that go to others.
    succeeded: Vec<Pid>,
}

/// Lets two runs, which have not begun, make their turns; each may take so long for one.
fn play(meeting: &Meeting, mut first: Run, mut second: Run, time: Duration) -> Result<Played> {
    let what = "have two processes meet";
    if first.go(meeting.before, time).context(what)? != Where::Stopped {
        second.kill(time).context(what)?;
        second.ending(time)?;
        let acks = first.acks;
        let first = first.ending(time)?;
        return Ok(Played { second: None, first, acks, lines: Vec::new(), succeeded: Vec::new() });
    }
    let mut meanwhile = None;
    let mut now_second = true;
    for ops in &meeting.turns {
        let turn = if now_second { &mut second } else { &mut first };
        turn.go(*ops, time).context(what)?;
        if first.place() == Where::Ended {
            meanwhile.get_or_insert(second.acks);
        }
        now_second = !now_second;
    }
    match meeting.then {
        Then::BothAreKilled => {
            first.kill(time).context(what)?;
            second.kill(time).context(what)?;
        }
        Then::GoesOn | Then::IsKilled | Then::IsSucceeded => {
            let (turn, other) =
                if now_second { (&mut second, &mut first) } else { (&mut first, &mut second) };
            turn.finish(time).context(what)?;
            match meeting.then {
                Then::GoesOn => drop(other.finish(time).context(what)?),
                _ => other.kill(time).context(what)?,
            }
        }
    }
    // What the second has saved while the first was there; from now on it may be alone.
    second.hear(Duration::ZERO).context(what)?;
    let meanwhile = meanwhile.unwrap_or(second.acks);
    // One that waited for the other goes on; it may have been told of fewer ops.
    for run in [&mut first, &mut second] {
        run.hear(time).and_then(|_| run.finish(time)).context(what)?;
    }
    let acks = first.acks;
    let (first, second) = (first.ending(time)?, second.ending(time)?);
    let dead = if now_second { &first.dead } else { &second.dead };
    let succeeded = match meeting.then {
        Then::IsSucceeded => dead.iter().copied().map(Pid::from_raw).collect(),
        _ => Vec::new(),
    };
    let lines = [&first.lines[..], &second.lines].concat();
    let second = Some(Second { acks: meanwhile, exit: second.exit });
    Ok(Played { second, first, acks, lines, succeeded })
}

/// Two processes of a built-in strategy.
struct OfBuiltIn<'a> {
    subject: &'a BuiltIn,
    slot: Slot,
    keep: Option<PathBuf>,
}

/// A run of a strategy by turns; `save` says whether it has saved.
fn strategy_by_turns(turns: &mut Turns, save: impl FnOnce(&mut Turns) -> Result<bool>) -> Ending {
    match turns.begin() {
        Ok(true) => {}
        Ok(false) => return Ending::of(Exit::Killed),
        Err(error) => return Ending::failed(&error),
    }
    let saved = save(turns);
    match turns.dead.take() {
        Some(dead) => Ending { dead, ..Ending::of(Exit::Killed) },
        None => Ending::of(Exit::Status(i32::from(!saved.unwrap_or(false)))),
    }
}

impl Meets for OfBuiltIn<'_> {
    fn meet(&mut self, meeting: &Meeting) -> Result<Met> {
        let (subject, directory) = (self.subject, self.slot.directory.clone());
        let file = directory.join(subject.strategy.state_file());
        lab::remove_tree(&directory)
            .and_then(|()| fs::create_dir_all(&directory))
            .and_then(|()| fs::write(file, subject.first_content()))
            .context(format_args!("make {}", directory.display()))?;
        // Both are forked first: neither may hold what the other locks in its memory.
        let second = Run::fork(|turns| {
            strategy_by_turns(turns, |turns| {
                Ok(builtin_recorder::save_next(subject, &directory, turns)?.1)
            })
        });
        let first = Run::fork(|turns| {
            strategy_by_turns(turns, |turns| {
                builtin_recorder::save(subject, &directory, turns).map(|_| true)
            })
        });
        let what = "have two processes meet";
        let (first, second) = (first.context(what)?, second.context(what)?);
        let played = play(meeting, first, second, PATIENCE)?;
        let state = Path::new(subject.strategy.state_file());
        succeed(&directory, &played.succeeded, &|path| path == state)
            .context("give the number of one to another")?;
        let survivor = self.slot.bytes(subject).context("read what is left")?;
        if let Some(keep) = self.keep.take() {
            lab::copy_tree(&directory, &keep)
                .context(format_args!("keep a copy in {}", keep.display()))?;
        }
        let loaded = match subject.strategy.load(&directory) {
            Ok(loaded) if loaded.origin == Origin::Default => Loaded::Unknown,
            Ok(loaded) => subject.loaded(&loaded.state),
            Err(error) => Loaded::NoVersion(error.to_string()),
        };
        let recovery = self.slot.recover(subject).context("read what is left")?;
        let recovery = Recovery { loaded, ..recovery };
        let (exit, acks) = (played.first.exit, played.acks);
        Ok(Met { second: played.second, exit, acks, survivor, checks: Vec::new(), recovery })
    }

    fn keep_in(&mut self, directory: PathBuf) {
        self.keep = Some(directory);
    }
}

/// Two processes of a program.
struct OfCommand<'a> {
    first: CommandInjector<'a>,
    second: Runner,
}

/// The numbers that the programs of a meeting have for themselves, where they can be given: so far from each other
/// that what they start lies between, and of another rest in most divisions.
const PIDS: [i32; 2] = [1000, 2017];

/// The command of the second process: a program that is told so can save something else.
fn second_of(command: &Command) -> Command {
    let mut second = command.clone();
    second.env.insert(PROCESS, "2".to_owned());
    second
}

/// What a program is told of which of two processes it is: 1 or 2.
pub const PROCESS: &str = "CRASHTEST_PROCESS";

/// Whether a second process of a program saves what the first does when it is alone: then a mixture of the two
/// can't be seen.
pub fn second_saves_the_same(
    learned: &Learned,
    prepared: &Prepared,
    room: &Path,
) -> Result<Option<bool>> {
    let mut second = Runner::new(&second_of(&learned.command), room)?;
    second.reset()?;
    number_from(&second, PIDS[1]);
    let ran = second.plain(None, learned.timeout)?;
    let left = second.survivor(&learned.state)?;
    let Some(last) =
        prepared.history.versions.last().filter(|_| ran == Plain::Ended(Ended::Status(0)))
    else {
        return Ok(None);
    };
    let same = last.iter().all(|(file, reference)| {
        matches!(left.files.get(file), Some(Content::Bytes(bytes)) if *bytes == reference.bytes)
    });
    Ok(Some(same))
}

/// Gives the next process that the program starts this number, where that can be done.
fn number_from(runner: &Runner, pid: i32) {
    if let Some(sandbox) = runner.sandbox() {
        // Without it the numbers are other ones in each trial.
        let _ = sandbox.number_from(pid);
    }
}

fn program_by_turns(turns: &mut Turns, runner: &mut Runner, pid: i32, serves: bool) -> Ending {
    match turns.begin() {
        Ok(true) => {}
        Ok(false) => return Ending::of(Exit::Killed),
        Err(error) => return Ending::failed(&error),
    }
    number_from(runner, pid);
    // It waits while the other goes on.
    let timeout = runner.limits().timeout() * 3;
    let observed = runner.observe(turns, timeout);
    let lines = runner.output.kept_acks().to_vec();
    let exit = match (turns.dead.take(), observed) {
        (Some(dead), _) => return Ending { dead, lines, ..Ending::of(Exit::Killed) },
        (None, Err(error)) => return Ending::failed(&error),
        (None, Ok((_, How::Ended(Ended::Status(status))))) => Exit::Status(status),
        (None, Ok((_, How::Ended(Ended::Signal(signal))))) => Exit::Signal(signal),
        (None, Ok((_, How::TooMany))) => Exit::TooManyProcesses,
        // It would have gone on.
        (None, Ok(_)) if serves => Exit::Killed,
        (None, Ok(_)) => Exit::TimedOut,
    };
    Ending { lines, ..Ending::of(exit) }
}

impl Meets for OfCommand<'_> {
    fn meet(&mut self, meeting: &Meeting) -> Result<Met> {
        self.first.move_in()?;
        self.second.output.reset().context("read what the program printed")?;
        let serves = self.first.serves();
        let time = self.second.limits().timeout();
        let (one, other) = (self.first.runner(), &mut self.second);
        let first = Run::fork(|turns| program_by_turns(turns, one, PIDS[0], serves));
        let second = Run::fork(|turns| program_by_turns(turns, other, PIDS[1], serves));
        let what = "have two processes meet";
        let played = play(meeting, first.context(what)?, second.context(what)?, time)?;
        let dead = &played.succeeded;
        if !dead.is_empty() && !self.first.occupy(dead) {
            succeed(self.first.root(), dead, &|path| self.first.is_state(path))
                .context("give the number of one to another")?;
        }
        let exit = match played.first.exit {
            Exit::TimedOut if serves => Exit::Killed,
            exit => exit,
        };
        match self.first.look_after(played.acks, &played.lines)? {
            Sight::Seen(survivor, checks, recovery) => {
                // The second may have saved what no unbroken run does.
                let recovery = Recovery { loaded: Loaded::Unknown, ..recovery };
                let (second, acks) = (played.second, played.acks);
                Ok(Met { second, exit, acks, survivor, checks, recovery })
            }
            Sight::Unreadable(why) => Err(Error::internal(format!("cannot read the trial: {why}"))),
        }
    }

    fn keep_in(&mut self, directory: PathBuf) {
        Resident::keep_in(&mut self.first, directory);
    }
}
