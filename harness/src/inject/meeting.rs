//! Trials in which two processes meet.

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crashtest_targets::{Disk, Origin};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};

use super::Injector;
use super::builtin::Slot;
use super::builtin_recorder;
use super::command::CommandInjector;
use super::resident::{Observer, Resident, Sight};
use super::runner::Runner;
use super::tracer::How;
use crate::error::{Context, Error, Result};
use crate::fault::{Fault, Injection, Struck};
use crate::lab;
use crate::meeting::{self, Meeting, Second, Then};
use crate::os::process::{self, Ended, die_with, fork_child, wait_at_most, wait_for};
use crate::os::signals;
use crate::outcome::{Check, Exit, Loaded, Outcome, Recovery, Survivor};
use crate::subject::{BuiltIn, Command, Kind, Prepared};

/// How long the second may take before it is taken to wait for the first; a save takes a thousandth.
const WAITS: Duration = Duration::from_secs(2);
/// How often it is looked at what a second program prints.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// How long one may take that nobody is in the way of.
const PATIENCE: Duration = Duration::from_secs(10);

/// Has two processes of a subject meet.
pub struct Meetings<'a> {
    meets: Box<dyn Meets + 'a>,
}

/// How two processes of a subject meet.
trait Meets {
    fn meet(&mut self, meeting: Meeting) -> Result<Met>;
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
                let run = Duration::from_micros(prepared.sites.duration_us);
                let patience = PROGRAM_WAITS.max(run * 3);
                let (second, room) = (learned.command.clone(), room.to_owned());
                Box::new(OfCommand { first, second, room, patience })
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
        let met = self.meets.meet(*meeting)?;
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

fn exit_of(ended: Option<Ended>) -> Exit {
    match ended {
        None => Exit::TimedOut,
        Some(Ended::Status(status)) => Exit::Status(status),
        Some(Ended::Signal(signal)) => Exit::Signal(signal),
    }
}

/// Kills a child that has not ended, and takes leave of it.
fn end(child: Pid) -> io::Result<Ended> {
    // It may have ended since.
    let _ = kill(child, Signal::SIGKILL);
    wait_for(child)
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

/// How a child ends that has nothing more to do.
fn reap(child: Pid) -> io::Result<Exit> {
    let ended = wait_at_most(child, PATIENCE)?;
    if ended.is_none() {
        end(child)?;
    }
    Ok(exit_of(ended))
}

/// What the children of a meeting say, a byte each.
const ACK: u8 = b'A';
const HERE: u8 = b'H';
const END: u8 = b'E';

/// A child that does not begin, or go on, before it is told to.
struct Child {
    pid: Pid,
    /// Tells it to go on.
    go: PipeWriter,
    /// What it says.
    said: PipeReader,
    acks: u64,
}

impl Child {
    /// Forks one that does `body` with what it hears and what it says.
    fn fork(body: impl FnOnce(PipeReader, PipeWriter) -> bool) -> io::Result<Self> {
        let (hears, go) = io::pipe()?;
        let (said, says) = io::pipe()?;
        let mut theirs = Some((body, hears, says));
        let mut ours = Some((go, said));
        let worker = getpid();
        let pid = fork_child(|| {
            // A child that kept the end by which it is told to go on would wait for itself.
            drop(ours.take());
            match (die_with(worker), theirs.take()) {
                (Ok(()), Some((body, hears, says))) => i32::from(!body(hears, says)),
                _ => 1,
            }
        })?;
        drop(theirs);
        let (go, said) = ours.ok_or_else(|| io::Error::other("the pipes of a child are gone"))?;
        Ok(Self { pid, go, said, acks: 0 })
    }

    /// Hears it until it says that it is there, or at its end; `None` if it does not in this time.
    fn hear(&mut self, time: Duration) -> io::Result<Option<u8>> {
        loop {
            let mut fds = [PollFd::new(self.said.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
            if poll(&mut fds, timeout)? == 0 {
                return Ok(None);
            }
            let mut byte = [0];
            match self.said.read(&mut byte)? {
                0 => return Ok(None),
                _ if byte[0] == ACK => self.acks += 1,
                _ => return Ok(Some(byte[0])),
            }
        }
    }

    fn go_on(&mut self) -> io::Result<()> {
        self.go.write_all(&[HERE])
    }
}

fn say(mut to: &PipeWriter, byte: u8) {
    // Whoever is not heard is taken for one that hangs.
    let _ = to.write_all(&[byte]);
}

/// Two processes of a built-in strategy.
struct OfBuiltIn<'a> {
    subject: &'a BuiltIn,
    slot: Slot,
    keep: Option<PathBuf>,
}

/// Lets the first wait before an op.
struct Waits<'a> {
    before: usize,
    hears: PipeReader,
    says: &'a PipeWriter,
}

impl Observer for Waits<'_> {
    fn between(&mut self, ops: usize) -> Result<()> {
        if ops == self.before {
            self.before = usize::MAX;
            say(self.says, HERE);
            self.hears.read_exact(&mut [0]).context("wait for another process")?;
        }
        Ok(())
    }

    fn acked(&mut self) -> Result<()> {
        say(self.says, ACK);
        Ok(())
    }
}

impl OfBuiltIn<'_> {
    /// Forks both; none of them may hold what the other locks in its memory.
    fn both(&self, before: u32) -> io::Result<(Child, Child)> {
        let (subject, directory) = (self.subject, &self.slot.directory);
        let second = Child::fork(|mut hears, says| {
            let saved = hears.read_exact(&mut [0]).and_then(|()| {
                let (strategy, mut disk) = (subject.strategy, Disk::default());
                let mut ack = |_| say(&says, ACK);
                strategy
                    .start(&mut disk, directory)
                    .and_then(|()| strategy.save(&mut disk, directory, subject.next(), &mut ack))
            });
            say(&says, END);
            saved.is_ok()
        })?;
        let first = Child::fork(|hears, says| {
            let before = usize::try_from(before).unwrap_or(usize::MAX);
            let mut waits = Waits { before, hears, says: &says };
            let saved = builtin_recorder::save(subject, directory, &mut waits);
            say(&says, END);
            saved.is_ok()
        })?;
        Ok((first, second))
    }

    fn succeed(&self, dead: Pid) -> io::Result<()> {
        let state = Path::new(self.subject.strategy.state_file());
        succeed(&self.slot.directory, &[dead], &|path| path == state)
    }

    fn processes(&self, meeting: Meeting) -> io::Result<(Option<Second>, Exit, u64)> {
        let (mut first, mut second) = self.both(meeting.before)?;
        if first.hear(PATIENCE)? != Some(HERE) {
            end(second.pid)?;
            return Ok((None, reap(first.pid)?, first.acks));
        }
        second.go_on()?;
        let mut waits = second.hear(WAITS)?.is_none();
        let mut meanwhile = second.acks;
        let exit = match meeting.then {
            Then::IsKilled | Then::IsSucceeded => {
                end(first.pid)?;
                if meeting.then == Then::IsSucceeded {
                    self.succeed(first.pid)?;
                }
                Exit::Killed
            }
            Then::GoesOn => {
                first.go_on()?;
                first.hear(PATIENCE)?;
                reap(first.pid)?
            }
        };
        if waits && meeting.then == Then::GoesOn {
            // What it has saved while the first was there; from now on it is alone.
            waits = second.hear(Duration::ZERO)?.is_none();
            meanwhile = second.acks;
        }
        let gives_up = waits && second.hear(PATIENCE)?.is_none();
        let ended = match gives_up {
            true => end(second.pid).map(|_| Exit::TimedOut)?,
            false => reap(second.pid)?,
        };
        Ok((Some(Second { acks: meanwhile, exit: ended }), exit, first.acks))
    }
}

impl Meets for OfBuiltIn<'_> {
    fn meet(&mut self, meeting: Meeting) -> Result<Met> {
        let (subject, directory) = (self.subject, self.slot.directory.clone());
        let file = directory.join(subject.strategy.state_file());
        lab::remove_tree(&directory)
            .and_then(|()| fs::create_dir_all(&directory))
            .and_then(|()| fs::write(file, subject.first_content()))
            .context(format_args!("make {}", directory.display()))?;
        let (second, exit, acks) = self.processes(meeting).context("have two processes meet")?;
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
        Ok(Met { second, exit, acks, survivor, checks: Vec::new(), recovery })
    }

    fn keep_in(&mut self, directory: PathBuf) {
        self.keep = Some(directory);
    }
}

/// Two processes of a program.
struct OfCommand<'a> {
    first: CommandInjector<'a>,
    second: Command,
    room: PathBuf,
    /// How long the second may take: a run takes as long as it takes.
    patience: Duration,
}

/// Runs the second when the first is before an op.
struct Comes<'a> {
    meeting: Meeting,
    second: &'a mut Runner,
    met: Option<Second>,
    acks: u64,
    /// The processes of the first.
    dead: Vec<Pid>,
    /// How long the second may take.
    patience: Duration,
}

/// What the first is told that is to die.
const DIES: &str = "it is killed here";

impl Observer for Comes<'_> {
    fn between(&mut self, ops: usize) -> Result<()> {
        if ops != self.meeting.before as usize || self.met.is_some() {
            return Ok(());
        }
        let first = process::descendants().context("look for the first process")?;
        // By the numbers that they have for themselves.
        self.dead = first.into_iter().filter_map(|pid| process::pid_inside(pid).ok()).collect();
        let child = self.second.start().context("start the second process")?;
        let mut ended = None;
        let until = Instant::now() + self.patience;
        while Instant::now() < until {
            ended = wait_at_most(child, LOOK_EVERY).context("wait for the second process")?;
            self.second.output.drain().context("read what the second process prints")?;
            if ended.is_some() || signals::ends() {
                break;
            }
        }
        if ended.is_none() {
            // It waits for the first, which waits here: it gives up.
            end(child).context("end the second process")?;
        }
        self.second.started()?;
        self.met = Some(Second { acks: self.second.output.acks(), exit: exit_of(ended) });
        match self.meeting.then {
            Then::GoesOn => Ok(()),
            Then::IsKilled | Then::IsSucceeded => Err(Error::internal(DIES)),
        }
    }

    fn acked(&mut self) -> Result<()> {
        self.acks += 1;
        Ok(())
    }
}

/// The least that a second program may take.
const PROGRAM_WAITS: Duration = Duration::from_secs(3);

impl Meets for OfCommand<'_> {
    fn meet(&mut self, meeting: Meeting) -> Result<Met> {
        self.first.move_in()?;
        let mut second = Runner::new(&self.second, &self.room)?;
        second.output.reset().context("read what the program printed")?;
        let mut comes = Comes {
            meeting,
            second: &mut second,
            met: None,
            acks: 0,
            dead: Vec::new(),
            patience: self.patience,
        };
        let exit = match self.first.observe(&mut comes) {
            Ok((_, How::Ended(Ended::Status(status)))) => Exit::Status(status),
            Ok((_, How::Ended(Ended::Signal(signal)))) => Exit::Signal(signal),
            Ok((_, How::TooMany)) => Exit::TooManyProcesses,
            // It would have gone on.
            Ok(_) if self.first.serves() => Exit::Killed,
            Ok(_) => Exit::TimedOut,
            Err(error) if error.message == DIES => Exit::Killed,
            Err(error) => return Err(error),
        };
        let (met, acks, dead) = (comes.met, comes.acks, comes.dead);
        if meeting.then == Then::IsSucceeded && exit == Exit::Killed && !self.first.occupy(&dead) {
            succeed(self.first.root(), &dead, &|path| self.first.is_state(path))
                .context("give the number of the first to another")?;
        }
        match self.first.look(acks)? {
            Sight::Seen(survivor, checks, recovery) => {
                // The second may have saved what no unbroken run does.
                let recovery = Recovery { loaded: Loaded::Unknown, ..recovery };
                Ok(Met { second: met, exit, acks, survivor, checks, recovery })
            }
            Sight::Unreadable(why) => Err(Error::internal(format!("cannot read the trial: {why}"))),
        }
    }

    fn keep_in(&mut self, directory: PathBuf) {
        Resident::keep_in(&mut self.first, directory);
    }
}
