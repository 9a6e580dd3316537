//! Any program: run under the tracer, and killed where the trial says.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::checks::{Checks, Said, Shell};
use super::decode::Asked;
use super::runner::GRACE;
use super::runner::{Plain, Runner};
use super::tracer::{Done, How, Unfollowed, Watcher};
use crate::armed::{Action, Armed};
use crate::error::{Error, Result};
use crate::fault::{Fault, Injection, Point, Struck};
use crate::inject::Injector;
use crate::op::ByteOffset;
use crate::os::process::Ended;
use crate::outcome::{Check, CheckKind, Exit, Load, NextSave, Outcome, Recovery, Survivor};
use crate::subject::{Learned, Prepared};

/// Does the trials of one program in one room.
pub struct CommandInjector<'a> {
    learned: &'a Learned,
    /// Whether there was a state before the first run.
    state_at_start: bool,
    runner: Runner,
    checks: Checks,
    recover: Option<Shell>,
}

impl<'a> CommandInjector<'a> {
    /// An injector that works in `room`.
    pub fn new(learned: &'a Learned, prepared: &'a Prepared, room: &Path) -> Result<Self> {
        let command = &learned.command;
        let mut runner = Runner::new(command, room)?;
        runner.outside.clone_from(&learned.outside);
        let root = runner.scope.root.clone();
        let recover = command
            .recover
            .as_ref()
            .map(|text| Shell::new(text, command, &root, runner.sandbox()))
            .transpose()?;
        Ok(Self {
            learned,
            state_at_start: prepared
                .history
                .versions
                .first()
                .is_some_and(|first| !first.is_empty()),
            checks: Checks::new(command, &root, runner.sandbox())?,
            runner,
            recover,
        })
    }

    fn strike(&mut self, fault: &Fault) -> Result<(Injection, Exit)> {
        let mut striker = Striker { armed: Armed::new(fault), struck: None };
        let only = striker.armed.call();
        let grace = GRACE;
        let ran = self.runner.traced(&mut striker, only, self.learned.timeout, grace)?;
        let injection = striker.struck.map_or(Injection::NotReached, Injection::At);
        let exit = match ran.how {
            How::Struck => Exit::Killed,
            How::Ended(Ended::Status(status)) => Exit::Status(status),
            How::Ended(Ended::Signal(signal)) => Exit::Signal(signal),
            How::TimedOut | How::Enough => Exit::TimedOut,
            How::TooMany => Exit::TooManyProcesses,
        };
        Ok((injection, exit))
    }

    fn kill_after(&mut self, delay: Duration) -> Result<(Injection, Exit)> {
        Ok(match self.runner.plain(Some(delay), self.learned.timeout)? {
            Plain::Killed => (Injection::At(Struck::Moment { delay_us: delay }), Exit::Killed),
            Plain::Ended(Ended::Status(status)) => (Injection::NotReached, Exit::Status(status)),
            Plain::Ended(Ended::Signal(signal)) => (Injection::NotReached, Exit::Signal(signal)),
            Plain::TimedOut => (Injection::NotReached, Exit::TimedOut),
        })
    }

    /// Whether the program was struck before it saved for the first time: what then is left is no
    /// state that could be checked.
    fn before_first_save(&self, survivor: &Survivor, acks: u64) -> bool {
        !self.state_at_start && survivor.files.is_empty() && acks == 0
    }

    fn check(&self, survivor: &Survivor, acks: u64) -> Result<Vec<Check>> {
        let mut checks = self.checks.look(survivor);
        let early = self.before_first_save(survivor, acks);
        if let Some(command) = self.checks.command()
            && (!early || self.learned.before_first_save.check)
        {
            let complaint = match command.run(self.learned.timeout)? {
                Said::Yes => None,
                Said::No(why) => Some(format!("--check: {why}")),
                Said::Hung => Some("--check did not end in time".to_owned()),
            };
            checks.push(Check { kind: CheckKind::Command, complaint });
        }
        Ok(checks)
    }

    fn recover(&mut self, survivor: &Survivor, acks: u64) -> Result<Recovery> {
        let early = self.before_first_save(survivor, acks);
        let Some(recover) = self.recover.as_ref() else { return Ok(Recovery::default()) };
        if early && !self.learned.before_first_save.recover {
            return Ok(Recovery::default());
        }
        let load = match recover.run(self.learned.timeout)? {
            Said::Yes => Load::Loaded,
            Said::No(why) => Load::Failed(format!("--recover: {why}")),
            Said::Hung => Load::Hung,
        };
        let next_save = match self.runner.plain(None, self.learned.timeout)? {
            Plain::Ended(Ended::Status(0)) => NextSave::Saved,
            Plain::Ended(ended) => NextSave::Failed(format!(
                "the program run again ended with {ended:?}: {}",
                self.runner.output.last_words()
            )),
            Plain::TimedOut | Plain::Killed if self.learned.serves => NextSave::Saved,
            Plain::TimedOut | Plain::Killed => {
                NextSave::Failed("the program run again did not end in time".to_owned())
            }
        };
        let after = self.runner.survivor(&self.learned.state)?;
        let leftovers =
            after.others.into_iter().filter(|path| !self.learned.known.contains(path)).collect();
        Ok(Recovery { load, next_save, leftovers })
    }
}

impl CommandInjector<'_> {
    fn one(&mut self, fault: &Fault) -> Result<Outcome> {
        self.runner.reset()?;
        let (injection, exit) = match fault {
            Fault::Kill(_) | Fault::ShortWrite(_) => self.strike(fault)?,
            Fault::KillAfter { delay_us } => self.kill_after(*delay_us)?,
        };
        let acks = self.runner.output.acks();
        let survivor = self.runner.survivor(&self.learned.state)?;
        self.runner.keep()?;
        let says_something = matches!(injection, Injection::At(_));
        let (mut checks, mut recovery) = (Vec::new(), Recovery::default());
        if says_something {
            checks = self.check(&survivor, acks)?;
            recovery = self.recover(&survivor, acks)?;
        }
        Ok(Outcome { fault: fault.clone(), injection, exit, acks, survivor, checks, recovery })
    }
}

impl Injector for CommandInjector<'_> {
    fn keep_in(&mut self, directory: PathBuf) {
        self.runner.keep_in(directory);
    }

    fn inject(&mut self, faults: &[Fault]) -> Result<Vec<Outcome>> {
        faults.iter().map(|fault| self.one(fault)).collect()
    }
}

/// Strikes where it is armed.
struct Striker {
    armed: Armed,
    struck: Option<Struck>,
}

impl Watcher for Striker {
    fn asked(&mut self, asked: &Asked) -> Action {
        let action = self.armed.decide(asked.call, asked.length);
        let point = match action {
            Action::Pass => return action,
            Action::KillBefore => Point::Before,
            Action::KillAfter => Point::After,
            Action::Cut { keep, .. } => Point::Inside(ByteOffset(keep as u64)),
        };
        let path = asked.effect.path().to_string_lossy().into_owned();
        self.struck = Some(Struck::Call { call: asked.call, path, point });
        action
    }

    fn wants_results(&self) -> bool {
        false
    }

    fn done(&mut self, done: Done<'_>) {
        // The kernel may have taken fewer bytes than it was let.
        if let Some(Struck::Call { point: Point::Inside(byte), .. }) = &mut self.struck
            && let Ok(count) = u64::try_from(done.result)
        {
            *byte = ByteOffset(count.min(byte.0));
        }
    }

    fn unfollowed(&mut self, _what: Unfollowed) {}
}

/// Why a fault could not be made at all; kept apart from what a subject did.
pub fn no_sites(name: &str) -> Error {
    Error::baseline(format!("`{name}` changes no file in the trial directory"))
        .help("a program that writes to fixed paths can be caught with --sandbox")
}
