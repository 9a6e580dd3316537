//! Follows a program and everything that it starts, and shows each storage call to a [`Watcher`].
//!
//! What a call means is not decided here. The watcher says what is to be done, and this does it:
//! lets the call through, cuts it, kills the whole tree before or after it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, gettid};

use super::decode::{self, Asked, Detail, Scope};
use super::guard::Trespass;
use super::output::Output;
use super::transfer::{self, Undo};
use crate::armed::{Action, Then};
use crate::error::{Error, Result};
use crate::os::process::{self, Ended};
use crate::os::ptrace::{self, CallInfo, Died, Event, Reason, Run, Stopped};
use crate::os::{seccomp, signals};

/// Sees the calls of a run and says what is to be done with them.
pub trait Watcher {
    /// The program has been executed and is about to make its first step.
    fn begun(&mut self) -> Result<()> {
        Ok(())
    }
    /// A thread or process has been started; whether it is to wait for a moment first.
    fn starts_late(&mut self) -> bool {
        false
    }
    /// A storage call that matters is about to be made by `thread`.
    fn asked(&mut self, asked: &Asked, thread: &Stopped) -> Action;
    /// Whether the results of calls are wanted; then calls are made one at a time.
    fn wants_results(&self) -> bool;
    /// How much of a call is found out.
    fn detail(&self) -> Detail {
        Detail::Place
    }
    /// A thread is about to make a call that it must not make; it is the last of the run.
    fn trespasses(&mut self, _thread: &Stopped) {}
    /// A call has returned. Cut calls are reported too.
    fn done(&mut self, _done: Done<'_>) {}
    /// The program is about to print this.
    fn prints(&mut self, _bytes: &[u8]) {}
    /// Whether a part of the fault has struck, and it is wanted how many acks came before.
    fn wants_acks(&self) -> bool {
        false
    }
    /// So many acks came before.
    fn acked_before(&mut self, _acks: u64) {}
    /// Something that can't be followed was met.
    fn unfollowed(&mut self, what: Unfollowed);
    /// Whether the run has shown enough.
    fn enough(&self) -> bool {
        false
    }
}

/// A call that has returned.
pub struct Done<'a> {
    /// What it was asked.
    pub asked: Asked,
    /// What it returned.
    pub result: i64,
    /// The thread, stopped at the return.
    pub thread: &'a Stopped,
    /// Its arguments.
    pub arguments: [u64; 6],
    /// What the watcher said is to be done with it.
    pub action: Action,
}

/// What a tracer can not follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unfollowed {
    /// A call of the 32-bit or x32 kind.
    ForeignCode,
    /// `io_uring_setup`; it was answered with `ENOSYS`.
    IoUring,
}

/// What a run may use.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// When it is killed.
    pub deadline: Instant,
    /// How many processes and threads there may be at once.
    pub processes: usize,
    /// How long what the program left running may go on after the program.
    pub grace: Duration,
}

/// How a traced run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// How the program itself ended.
    pub how: How,

    /// How many processes were still running when the program itself had ended.
    pub stragglers: usize,
    /// The call that it was stopped at since it would have changed a file elsewhere.
    pub trespass: Option<Trespass>,
}

/// How a program itself ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// By itself or by a signal from elsewhere.
    Ended(Ended),
    /// The watcher's action killed it.
    Struck,
    /// The watcher had seen enough.
    Enough,
    /// Its time was up.
    TimedOut,
    /// It started too many processes.
    TooMany,
}

/// A call whose result is awaited.
struct Calling {
    asked: Box<Asked>,
    arguments: [u64; 6],
    then: After,
    undo: Option<Undo>,
    /// What it returns, whatever it does.
    answer: Option<i64>,
    action: Action,
}

/// What follows the return of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    GoOn,
    Kill,
}

/// Follows one run.
pub struct Tracer<'a, W: Watcher> {
    root: Pid,
    scope: &'a Scope,
    output: &'a mut Output,
    watcher: &'a mut W,
    bounds: Bounds,
    /// All threads that are known to live.
    threads: HashSet<Pid>,
    /// Those that have stopped for the first time.
    begun: HashSet<Pid>,
    calling: HashMap<Pid, Calling>,
    /// Stopped before a call, until the calls before it have returned.
    held: VecDeque<Stopped>,
    /// Stopped before their first step, until the next tick.
    late: Vec<Stopped>,
    ended: Option<Ended>,
    ended_at: Option<Instant>,
    verdict: Option<How>,
    stragglers: usize,
    /// What went wrong in the harness itself.
    failed: Option<Error>,
    trespass: Option<Trespass>,
}

impl<'a, W: Watcher> Tracer<'a, W> {
    /// A tracer for the program `root`, which waits to be traced.
    pub fn new(
        root: Pid,
        scope: &'a Scope,
        output: &'a mut Output,
        watcher: &'a mut W,
        bounds: Bounds,
    ) -> Self {
        Self {
            root,
            scope,
            output,
            watcher,
            bounds,
            threads: HashSet::from([root]),
            begun: HashSet::new(),
            calling: HashMap::new(),
            held: VecDeque::new(),
            late: Vec::new(),
            ended: None,
            ended_at: None,
            verdict: None,
            stragglers: 0,
            failed: None,
            trespass: None,
        }
    }

    /// Follows the program to its end, and leaves none of its processes.
    pub fn run(mut self) -> io::Result<Result<Ran>> {
        loop {
            match ptrace::wait()? {
                Event::NobodyLeft => break,
                Event::Tick => self.tick()?,
                Event::Gone(tid, how) => self.gone(tid, how),
                Event::Stop(stopped, reason) => {
                    let tid = stopped.tid();
                    if self.verdict.is_some() {
                        kill_hard(tid);
                    } else if let Err(Died) = self.stopped(stopped, reason) {
                        // Its end is the next that is heard of it, unless it still waits for us.
                        self.calling.remove(&tid);
                        ptrace::nudge(tid);
                        self.release();
                    }
                }
            }
        }
        self.output.drain()?;
        if let Some(error) = self.failed {
            return Ok(Err(error));
        }
        let how = match (self.verdict, self.ended) {
            (Some(verdict), _) => verdict,
            (None, Some(ended)) => How::Ended(ended),
            (None, None) => return Err(io::Error::other("the program ended unseen")),
        };
        Ok(Ok(Ran { how, stragglers: self.stragglers, trespass: self.trespass }))
    }

    fn tick(&mut self) -> io::Result<()> {
        self.output.drain()?;
        for thread in self.late.drain(..) {
            // One that died is heard of soon.
            let _ = thread.resume(Run::On, 0);
        }
        let now = Instant::now();
        if self.verdict.is_some() {
            // Killed again, in case one was between two states the first time; and with them what
            // escaped being traced.
            self.kill_all();
            process::kill_children()?;
        } else if let Some(since) = self.ended_at {
            if now.duration_since(since) >= self.bounds.grace {
                self.stragglers = self.threads.len();
                self.end(self.ended.map_or(How::Enough, How::Ended));
            }
        } else if now >= self.bounds.deadline || signals::orphaned() || signals::interrupted() {
            self.end(How::TimedOut);
        } else if self.watcher.enough() {
            self.end(How::Enough);
        }
        Ok(())
    }

    fn gone(&mut self, tid: Pid, how: Ended) {
        self.threads.remove(&tid);
        self.begun.remove(&tid);
        let was_calling = self.calling.remove(&tid).is_some();
        if tid == self.root && self.ended.is_none() {
            self.ended = Some(how);
            self.ended_at = Some(Instant::now());
        }
        if was_calling {
            self.release();
        }
    }

    fn stopped(&mut self, stopped: Stopped, reason: Reason) -> ptrace::Result<()> {
        match reason {
            Reason::Filter => self.call(stopped),
            Reason::CallDone => self.returned(stopped),
            Reason::NewChild(child) => {
                if child.as_raw() != 0 {
                    self.threads.insert(child);
                }
                if self.threads.len() > self.bounds.processes {
                    self.end(How::TooMany);
                    kill_hard(stopped.tid());
                    return Ok(());
                }
                stopped.resume(Run::On, 0)
            }
            Reason::Exec(before) => {
                if before != stopped.tid() {
                    self.threads.remove(&before);
                    self.begun.remove(&before);
                }
                self.threads.insert(stopped.tid());
                stopped.resume(Run::On, 0)
            }
            // The first stop of each is no signal of the program's own: SIGTRAP when the program
            // itself has been executed, SIGSTOP when a new thread or process has begun.
            Reason::Signal(libc::SIGTRAP)
                if stopped.tid() == self.root && self.begun.insert(self.root) =>
            {
                stopped.follow()?;
                if let Err(error) = self.watcher.begun() {
                    self.failed = Some(error);
                    self.end(How::Enough);
                    return Ok(());
                }
                stopped.resume(Run::On, 0)
            }
            Reason::Signal(libc::SIGSTOP) if self.begun.insert(stopped.tid()) => {
                self.threads.insert(stopped.tid());
                if self.watcher.starts_late() {
                    self.late.push(stopped);
                    return Ok(());
                }
                stopped.resume(Run::On, 0)
            }
            Reason::Signal(signal) => {
                let run = self.run_of(stopped.tid());
                stopped.resume(run, signal)
            }
        }
    }

    /// A thread that is in a call which is awaited goes on to its return.
    fn run_of(&self, tid: Pid) -> Run {
        if self.calling.contains_key(&tid) { Run::ToExit } else { Run::On }
    }

    fn call(&mut self, stopped: Stopped) -> ptrace::Result<()> {
        if self.watcher.wants_results() && !self.calling.is_empty() {
            self.held.push_back(stopped);
            return Ok(());
        }
        if self.watcher.enough() {
            self.end(How::Enough);
            return Ok(());
        }
        let CallInfo::Entry { data, number, arguments } = stopped.call_info()? else {
            return stopped.resume(Run::On, 0);
        };
        if let (Some(guard), seccomp::STORAGE | seccomp::GUARDED) = (&self.scope.guard, data)
            && let Some(trespass) = guard.look(&stopped, number, arguments, &self.threads)?
        {
            self.watcher.trespasses(&stopped);
            self.trespass = Some(trespass);
            self.end(How::Enough);
            return Ok(());
        }
        match data {
            seccomp::GUARDED => return stopped.resume(Run::On, 0),
            seccomp::IO_URING => {
                self.watcher.unfollowed(Unfollowed::IoUring);
                stopped.skip_call(-i64::from(libc::ENOSYS))?;
                return stopped.resume(Run::On, 0);
            }
            seccomp::STORAGE => {}
            seccomp::FOREIGN => {
                self.watcher.unfollowed(Unfollowed::ForeignCode);
                return stopped.resume(Run::On, 0);
            }
            // A filter of the program's own asks for a tracer: without one the kernel says ENOSYS.
            _ => {
                stopped.skip_call(-i64::from(libc::ENOSYS))?;
                return stopped.resume(Run::On, 0);
            }
        }
        let detail = self.watcher.detail();
        let asked = decode::decode(&stopped, number, arguments, self.scope, detail)?;
        let Some(asked) = asked else {
            if self.watcher.wants_results() && self.output.is_stdout(&stopped, arguments[0]) {
                self.watcher.prints(&transfer::printed(&stopped, number, arguments)?);
            }
            return stopped.resume(Run::On, 0);
        };
        let action = self.watcher.asked(&asked, &stopped);
        self.count_acks();
        let (mut undo, mut answer) = (None, None);
        let then = match action {
            Action::Pass if !self.watcher.wants_results() => return stopped.resume(Run::On, 0),
            Action::Pass => After::GoOn,
            Action::KillBefore => {
                self.end(How::Struck);
                return Ok(());
            }
            Action::KillAfter => After::Kill,
            Action::Fail(errno) => {
                stopped.skip_call(-i64::from(errno.number()))?;
                if !self.watcher.wants_results() {
                    return stopped.resume(Run::On, 0);
                }
                After::GoOn
            }
            Action::FailAfter(errno) => {
                answer = Some(-i64::from(errno.number()));
                After::GoOn
            }
            Action::Cut { keep, then } => {
                undo = Some(transfer::shorten(&stopped, &asked, keep)?);
                match then {
                    Then::Kill => After::Kill,
                    Then::GoOn => After::GoOn,
                }
            }
        };
        let calling = Calling { asked: Box::new(asked), arguments, then, undo, answer, action };
        self.calling.insert(stopped.tid(), calling);
        stopped.resume(Run::ToExit, 0)
    }

    fn returned(&mut self, stopped: Stopped) -> ptrace::Result<()> {
        let Some(Calling { asked, arguments, then, undo, answer, action }) =
            self.calling.remove(&stopped.tid())
        else {
            return stopped.resume(Run::On, 0);
        };
        let result = match (answer, stopped.call_info()?) {
            (Some(answer), _) => answer,
            (None, CallInfo::Exit(result)) => result,
            (None, CallInfo::Entry { .. } | CallInfo::Other) => 0,
        };
        if let Some(answer) = answer {
            stopped.set_result(answer)?;
        }
        self.watcher.done(Done { asked: *asked, result, thread: &stopped, arguments, action });
        self.count_acks();
        match then {
            After::Kill => {
                self.end(How::Struck);
                Ok(())
            }
            After::GoOn if self.watcher.enough() => {
                self.end(How::Enough);
                Ok(())
            }
            After::GoOn => {
                if let Some(undo) = undo {
                    transfer::restore(&stopped, undo, arguments)?;
                }
                stopped.resume(Run::On, 0)?;
                self.release();
                Ok(())
            }
        }
    }

    /// Tells the watcher how many acks have come, if it wants to know that.
    fn count_acks(&mut self) {
        if self.watcher.wants_acks() {
            match self.output.drain() {
                Ok(()) => self.watcher.acked_before(self.output.acks()),
                Err(error) => self.failed = Some(Error::internal(error.to_string())),
            }
        }
    }

    /// Lets the next held thread make its call.
    fn release(&mut self) {
        while self.calling.is_empty() && self.verdict.is_none() {
            let Some(next) = self.held.pop_front() else { return };
            // A thread that died is heard of soon.
            let _ = self.call(next);
        }
    }

    /// Ends the run: nothing that is traced makes another step.
    fn end(&mut self, how: How) {
        self.verdict.get_or_insert(how);
        self.kill_all();
    }

    fn kill_all(&mut self) {
        // A tid that is not ours any more may have been given to somebody else's process.
        let me = gettid();
        // The program itself is ours for certain as long as it was not waited for.
        if self.ended.is_none() {
            kill_hard(self.root);
        }
        self.threads.retain(|tid| *tid == self.root || is_traced_by(*tid, me));
        for tid in self.threads.iter().filter(|tid| **tid != self.root) {
            kill_hard(*tid);
        }
    }
}

fn kill_hard(tid: Pid) {
    // It may have died already.
    let _ = kill(tid, Signal::SIGKILL);
}

fn is_traced_by(tid: Pid, tracer: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    line.is_some_and(|pid| pid.trim() == tracer.to_string())
}
