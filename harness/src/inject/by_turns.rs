//! A run in a process of its own that goes on when it is told to, so many ops at a time.
//!
//! The process that makes the run listens to the worker and says what happens, a byte each; at its end follows what
//! became of the run. A program that waits for another one says nothing: it does not make its next op, none of its
//! threads runs, and it uses no CPU time. That is seen after [`IDLE_LOOKS`] looks.

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};
use serde::{Deserialize, Serialize};

use super::resident::Observer;
use crate::error::{Context, Error, Result};
use crate::os::process::{self, die_with, fork_child, wait_at_most, wait_for};
use crate::os::signals;
use crate::outcome::Exit;

const ACK: u8 = b'A';
const HERE: u8 = b'H';
const END: u8 = b'E';

/// What a run is told that is to die where it is.
const DIE: u32 = 0;
/// To its end.
const ALL: u32 = u32::MAX;

/// How often a run that says nothing is looked at, and how often it must be found idle in a row to be taken for one
/// that waits: a save takes a thousandth of that.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const IDLE_LOOKS: u32 = 10;

/// What became of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ending {
    /// How it ended.
    pub exit: Exit,
    /// The PIDs that its processes had for themselves when it was killed.
    pub dead: Vec<i32>,
    /// The lines of its acks, if they are kept.
    pub lines: Vec<Vec<u8>>,
    /// Why it could not be made.
    pub failed: Option<String>,
}

impl Ending {
    /// One that could not be made.
    #[must_use]
    pub fn failed(why: &Error) -> Self {
        Self { failed: Some(why.to_string()), ..Self::of(Exit::TimedOut) }
    }

    /// One that ended so, and of which no more is known.
    #[must_use]
    pub fn of(exit: Exit) -> Self {
        Self { exit, dead: Vec::new(), lines: Vec::new(), failed: None }
    }
}

/// The turns of a run, as its own process has them.
pub struct Turns {
    hears: PipeReader,
    says: PipeWriter,
    /// How many ops it may make.
    left: u32,
    /// The PIDs of its processes, once it is to die.
    pub dead: Option<Vec<i32>>,
}

impl Turns {
    /// Waits for the first turn; `false` if it is to die before.
    pub fn begin(&mut self) -> Result<bool> {
        self.hear()?;
        Ok(self.left != DIE)
    }

    fn hear(&mut self) -> Result<()> {
        let mut ops = [0; 4];
        self.hears.read_exact(&mut ops).context("wait for the next turn")?;
        self.left = u32::from_ne_bytes(ops);
        Ok(())
    }

    fn say(&mut self, bytes: &[u8]) {
        // A run that is not heard is taken for one that hangs.
        let _ = self.says.write_all(bytes);
    }

    fn end(&mut self, ending: &Ending) {
        let text = serde_json::to_vec(ending).unwrap_or_default();
        self.say(&[&[END][..], &text].concat());
    }
}

impl Observer for Turns {
    fn between(&mut self, _ops: usize) -> Result<()> {
        if self.left == 0 {
            self.say(&[HERE]);
            self.hear()?;
        }
        if self.left == DIE {
            let processes = process::descendants().context("look for the processes")?;
            // By the numbers that they have for themselves.
            let inside = |pid| Some(process::pid_inside(pid).ok()?.as_raw());
            self.dead = Some(processes.into_iter().filter_map(inside).collect());
            return Err(Error::internal("it is killed here"));
        }
        if self.left != ALL {
            self.left -= 1;
        }
        Ok(())
    }

    fn acked(&mut self) -> Result<()> {
        self.say(&[ACK]);
        Ok(())
    }
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// Before an op, or before its first step: it goes on when it is told to.
    Stopped,
    /// It goes on, or waits for something that another one has.
    Running,
    /// At its end.
    Ended,
}

/// A run by turns, as the worker has it.
pub struct Run {
    pid: Pid,
    go: PipeWriter,
    said: PipeReader,
    place: Where,
    /// How many saves it has acknowledged, as far as it was heard.
    pub acks: u64,
    ending: Option<Ending>,
    /// Whether its process was waited for.
    reaped: bool,
}

impl Run {
    /// Forks a process that makes a run; `body` begins with [`Turns::begin`].
    pub fn fork(body: impl FnOnce(&mut Turns) -> Ending) -> io::Result<Self> {
        let (hears, go) = io::pipe()?;
        let (said, says) = io::pipe()?;
        let mut theirs = Some((body, hears, says));
        let mut ours = Some((go, said));
        let worker = getpid();
        let pid = fork_child(|| {
            // One that kept the end by which it is told to go on would wait for itself.
            drop(ours.take());
            let (Ok(()), Some((body, hears, says))) = (die_with(worker), theirs.take()) else {
                return 1;
            };
            let mut turns = Turns { hears, says, left: 0, dead: None };
            let ending = body(&mut turns);
            turns.end(&ending);
            0
        })?;
        drop(theirs);
        let (go, said) = ours.ok_or_else(|| io::Error::other("the pipes of a run are gone"))?;
        Ok(Self { pid, go, said, place: Where::Stopped, acks: 0, ending: None, reaped: false })
    }

    /// Where it is.
    #[must_use]
    pub fn place(&self) -> Where {
        self.place
    }

    /// Lets it make so many ops, and hears it until it has, ends, waits for another one, or its time is up.
    pub fn go(&mut self, ops: u32, time: Duration) -> io::Result<Where> {
        if self.place == Where::Stopped {
            // It may have died.
            let _ = self.go.write_all(&ops.clamp(1, ALL).to_ne_bytes());
            self.place = Where::Running;
        }
        self.hear(time)
    }

    /// Lets it go on to its end.
    pub fn finish(&mut self, time: Duration) -> io::Result<Where> {
        self.go(ALL, time)?;
        // It had been told of fewer ops, and waited before they were made.
        if self.place == Where::Stopped { self.go(ALL, time) } else { Ok(self.place) }
    }

    /// Hears it until it stops, ends, waits for another one, or its time is up.
    pub fn hear(&mut self, time: Duration) -> io::Result<Where> {
        let until = Instant::now() + time;
        let (mut idle, mut before) = (0, None);
        while self.place == Where::Running {
            let mut fds = [PollFd::new(self.said.as_fd(), PollFlags::POLLIN)];
            let left = until.saturating_duration_since(Instant::now()).min(LOOK_EVERY);
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut fds, timeout) {
                Ok(0) if Instant::now() >= until || signals::ends() => break,
                Ok(0) => {
                    let used = used_if_idle(self.pid);
                    idle = if used.is_some() && used == before { idle + 1 } else { 0 };
                    before = used;
                    if idle >= IDLE_LOOKS {
                        break;
                    }
                }
                Ok(_) => self.read()?,
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.place)
    }

    /// Reads one thing that it says.
    fn read(&mut self) -> io::Result<()> {
        let mut byte = [0];
        match self.said.read(&mut byte)? {
            1 if byte[0] == ACK => self.acks += 1,
            1 if byte[0] == HERE => self.place = Where::Stopped,
            _ => {
                let mut text = Vec::new();
                self.said.read_to_end(&mut text)?;
                self.ending = serde_json::from_slice(&text).ok();
                self.place = Where::Ended;
            }
        }
        Ok(())
    }

    /// Kills it where it is, with all of its processes; they are gone when this returns.
    pub fn kill(&mut self, time: Duration) -> io::Result<()> {
        if self.place == Where::Stopped {
            let _ = self.go.write_all(&DIE.to_ne_bytes());
            self.place = Where::Running;
            self.hear(time)?;
        }
        if self.place == Where::Ended {
            return Ok(());
        }
        let processes = process::descendants_of(self.pid);
        let dead =
            processes.iter().filter_map(|pid| Some(process::pid_inside(*pid).ok()?.as_raw()));
        let ending = Ending { dead: dead.collect(), ..Ending::of(Exit::Killed) };
        let gone: Vec<_> =
            processes.into_iter().filter_map(|pid| process::pidfd(pid).ok()).collect();
        self.end_process()?;
        // They die with the one that follows them, a moment after it.
        for pidfd in gone {
            let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout);
        }
        (self.place, self.ending) = (Where::Ended, Some(ending));
        Ok(())
    }

    /// Kills the process that makes the run.
    fn end_process(&mut self) -> io::Result<()> {
        // It may have ended since.
        let _ = kill(self.pid, Signal::SIGKILL);
        self.reaped = true;
        wait_for(self.pid).map(drop)
    }

    /// What became of it; one that is not at its end is killed, and has not ended in time.
    pub fn ending(mut self, time: Duration) -> Result<Ending> {
        let late = self.place != Where::Ended;
        if late {
            self.kill(time).context("end a run")?;
        }
        if !self.reaped && wait_at_most(self.pid, time).context("wait for a run")?.is_none() {
            self.end_process().context("end a run")?;
        }
        match self.ending {
            Some(Ending { failed: Some(why), .. }) => Err(Error::internal(why)),
            Some(ending) if late => Ok(Ending { exit: Exit::TimedOut, ..ending }),
            Some(ending) => Ok(ending),
            None => Err(Error::internal("a run ended without a word")),
        }
    }
}

/// The CPU time that a process and all that descend from it have used, in clock ticks, if all of their threads sleep.
fn used_if_idle(pid: Pid) -> Option<u64> {
    let mut used = 0;
    for pid in process::descendants_of(pid).into_iter().chain([pid]) {
        for task in fs::read_dir(PathBuf::from(format!("/proc/{pid}/task"))).into_iter().flatten() {
            let stat = fs::read_to_string(task.ok()?.path().join("stat")).unwrap_or_default();
            // After the name: state, then from field 4 on; utime and stime are fields 14 and 15 (proc_pid_stat(5)).
            let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
            if fields.first() != Some(&"S") && fields.first() != Some(&"Z") {
                return None;
            }
            let ticks = |n: usize| fields.get(n)?.parse::<u64>().ok();
            used += ticks(11)? + ticks(12)?;
        }
    }
    Some(used)
}
