//! Workers: small processes, one per CPU, that do trials and send back what came of them.
//!
//! They are processes and not threads because a forked child may only be trusted if its parent
//! had one thread, because ptrace belongs to one thread, and because a small parent forks fast.
//! The coordinator hands out ranges of trial numbers; a worker that loses its coordinator ends.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, BufWriter, PipeReader, PipeWriter, Read, Write};
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getpid};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::agenda::Range;
use crate::error::{Context, Error, Result};
use crate::exit_status::ExitStatus;
use crate::os::{process, signals};
use crate::progress::Progress;

/// What a worker does with one trial.
pub trait Work {
    /// What comes of one.
    type Answer: Serialize + DeserializeOwned;
    /// Does the trials of a range, from the first on; as many as suit it, but at least one.
    fn trials(&mut self, range: Range) -> Result<Vec<Self::Answer>>;
}

/// Some work with such answers.
pub type Job<'a, A> = Box<dyn Work<Answer = A> + 'a>;

/// How long a range should keep a worker busy: short enough for Ctrl-C, long enough to cost
/// nothing.
const RANGE_TARGET: Duration = Duration::from_millis(40);
const RANGE_MAX: u64 = 4096;
/// How long workers may go on with what they have begun when the run is interrupted.
const STOP_MAX: Duration = Duration::from_millis(1500);
/// How many ranges a worker has in hand, so that it never waits for the next.
const IN_HAND: usize = 2;

struct Worker {
    pid: Pid,
    commands: PipeWriter,
    answers: BufReader<PipeReader>,
    in_hand: VecDeque<(Range, Instant)>,
    next_count: u64,
    ended: bool,
}

/// How the work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// All of it was done.
    Whole,
    /// Ctrl-C came first.
    Interrupted,
}

/// The workers of one run.
pub struct Pool<A> {
    workers: Vec<Worker>,
    answers: PhantomData<A>,
}

impl<A: Serialize + DeserializeOwned> Pool<A> {
    /// Forks `jobs` workers; `make` builds what each does, in its own process. With `pin`, each is
    /// bound to a CPU of its own.
    pub fn start<'a>(
        jobs: usize,
        pin: bool,
        make: impl Fn(usize) -> Result<Job<'a, A>>,
    ) -> Result<Self>
    where
        A: 'a,
    {
        let mut pool = Self { workers: Vec::new(), answers: PhantomData };
        for index in 0..jobs {
            let (commands_out, commands) = io::pipe().context("make a pipe")?;
            let (answers, answers_in) = io::pipe().context("make a pipe")?;
            let earlier = &mut pool.workers;
            let mut ends = Some((commands_out, answers_in, commands, answers));
            let coordinator = getpid();
            let pid = process::fork_child(|| {
                let Some((commands_out, answers_in, commands, answers)) = ends.take() else {
                    return 1;
                };
                // The other ends must live in the coordinator alone, or nobody sees it end.
                drop((commands, answers));
                earlier.clear();
                let served = serve(coordinator, (index, pin), commands_out, answers_in, &make);
                i32::from(served.is_err())
            })
            .context("fork a worker")?;
            let Some((_, _, commands, answers)) = ends.take() else {
                return Err(Error::internal("the pipes of a worker are gone"));
            };
            pool.workers.push(Worker {
                pid,
                commands,
                answers: BufReader::with_capacity(1 << 16, answers),
                in_hand: VecDeque::new(),
                next_count: 1,
                ended: false,
            });
        }
        Ok(pool)
    }

    /// Has all trials done that `next` names, and shows each answer to `each`, with its line.
    ///
    /// `tick` is called a few times a second.
    pub fn run(
        &mut self,
        next: &mut dyn FnMut(u64) -> Option<Range>,
        each: &mut dyn FnMut(A, &[u8]) -> Result<()>,
        tick: &mut dyn FnMut(),
    ) -> Result<Completion> {
        let mut stopping: Option<Instant> = None;
        loop {
            let stop = signals::interrupted();
            if stop && stopping.get_or_insert_with(Instant::now).elapsed() >= STOP_MAX {
                self.kill_workers();
                return Ok(Completion::Interrupted);
            }
            if !stop {
                for worker in &mut self.workers {
                    worker.fill(next);
                }
            }
            if self.workers.iter().all(|worker| worker.in_hand.is_empty()) {
                return Ok(if stop { Completion::Interrupted } else { Completion::Whole });
            }
            for index in self.ready()? {
                self.workers[index].listen(each)?;
            }
            for worker in &self.workers {
                worker.keep_going();
            }
            tick();
        }
    }

    /// Has the things from 0 to `all` done, and shows each answer to `each`, which says whether
    /// something broke.
    pub fn run_all(
        &mut self,
        (all, quiet): (u64, bool),
        each: &mut dyn FnMut(A) -> bool,
    ) -> Result<Completion> {
        let progress = RefCell::new(Progress::new(all, quiet));
        let mut first = 0;
        let completion = self.run(
            &mut |count| {
                let range =
                    Range { subject: 0, start: first, stride: 1, count: count.min(all - first) };
                first += range.count;
                (range.count > 0).then_some(range)
            },
            &mut |answer, _| {
                progress.borrow_mut().count(each(answer));
                Ok(())
            },
            &mut || progress.borrow_mut().show(),
        );
        progress.into_inner().finish();
        completion
    }

    /// Ends workers that take too long to come to an end; what they are about is not kept.
    fn kill_workers(&mut self) {
        for worker in &mut self.workers {
            // All that it has started ends with it.
            let _ = kill(worker.pid, Signal::SIGKILL);
        }
    }

    /// The workers that have something to say, after at most a fifth of a second.
    fn ready(&self) -> Result<Vec<usize>> {
        let buffered = |worker: &Worker| worker.answers.buffer().contains(&b'\n');
        let at_once: Vec<_> =
            (0..self.workers.len()).filter(|index| buffered(&self.workers[*index])).collect();
        if !at_once.is_empty() {
            return Ok(at_once);
        }
        let mut fds: Vec<_> = self
            .workers
            .iter()
            .map(|worker| PollFd::new(worker.answers.get_ref().as_fd(), PollFlags::POLLIN))
            .collect();
        match poll(&mut fds, PollTimeout::from(200_u16)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(Error::internal(format!("cannot wait for workers: {error}"))),
        }
        let has = |fd: &PollFd| fd.revents().is_some_and(|events| !events.is_empty());
        Ok(fds.iter().enumerate().filter(|(_, fd)| has(fd)).map(|(index, _)| index).collect())
    }
}

impl Worker {
    fn fill(&mut self, next: &mut dyn FnMut(u64) -> Option<Range>) {
        while self.in_hand.len() < IN_HAND {
            let Some(range) = next(self.next_count) else { return };
            self.in_hand.push_back((range, Instant::now()));
            // One that has ended does not take it; why it ended is among its answers.
            let _ = self.commands.write_all(&command_of(range));
        }
    }

    /// Takes all whole lines that have come.
    fn listen<A: DeserializeOwned>(
        &mut self,
        each: &mut dyn FnMut(A, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut line = Vec::new();
        loop {
            line.clear();
            let count = self.answers.read_until(b'\n', &mut line).context("read from a worker")?;
            if count == 0 {
                return self.died();
            }
            match line[0] {
                b'a' => {
                    let json = &line[1..];
                    let answer = serde_json::from_slice(json).context("read an answer")?;
                    each(answer, json)?;
                }
                b'd' => self.range_done(),
                _ => return Err(parse_error(&line)),
            }
            if !self.answers.buffer().contains(&b'\n') {
                return Ok(());
            }
        }
    }

    /// Lets it go on if a program has stopped it.
    fn keep_going(&self) {
        let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT;
        if let Ok(WaitStatus::Stopped(pid, _)) = waitid(Id::Pid(self.pid), flags) {
            let _ = kill(pid, Signal::SIGCONT);
        }
    }

    fn range_done(&mut self) {
        let Some((range, started)) = self.in_hand.pop_front() else { return };
        let now = Instant::now();
        let each = (now - started).as_nanos().max(1) / u128::from(range.count.max(1));
        let fitting = RANGE_TARGET.as_nanos() / each.max(1);
        self.next_count = u64::try_from(fitting).unwrap_or(RANGE_MAX).clamp(1, RANGE_MAX);
        // The next range begins now, however long it has been in hand.
        if let Some((_, started)) = self.in_hand.front_mut() {
            *started = now;
        }
    }

    fn died(&mut self) -> Result<()> {
        self.ended = true;
        let how = process::wait_for(self.pid).context("wait for a worker")?;
        Err(Error::internal(format!("a worker died: {how:?}"))
            .help("was it killed from outside? the run can go on with --resume"))
    }
}

impl<A> Drop for Pool<A> {
    fn drop(&mut self) {
        let workers = std::mem::take(&mut self.workers);
        for Worker { pid, commands, answers, ended, .. } in workers {
            // The end of its commands is what a worker ends at.
            drop((commands, answers));
            if !ended {
                let _ = process::wait_for(pid);
            }
        }
    }
}

/// The life of a worker.
fn serve<'a, A: Serialize + DeserializeOwned>(
    coordinator: Pid,
    (index, pin): (usize, bool),
    mut commands: PipeReader,
    answers: PipeWriter,
    make: &impl Fn(usize) -> Result<Job<'a, A>>,
) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 16, answers);
    let lost = "write to the coordinator";
    // While a subject runs nobody reads the commands: this is how its worker hears of the end.
    let prepared = signals::notice_orphaning(coordinator)
        .and_then(|()| signals::ignore_interrupts())
        .and_then(|()| if pin { process::pin_to_cpu(index) } else { Ok(()) })
        .context("prepare a worker");
    let mut work = match prepared.and_then(|()| make(index)) {
        Ok(work) => work,
        Err(error) => return out.write_all(&error_line(&error)).context(lost),
    };
    let mut command = [0; COMMAND_BYTES];
    loop {
        match commands.read_exact(&mut command) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error).context("read from the coordinator"),
        }
        let range = range_of(&command);
        let mut done = 0;
        while done < range.count {
            match work.trials(range.after(done)) {
                Ok(answers) => {
                    // A worker that does nothing would do so for ever.
                    done += (answers.len() as u64).max(1);
                    for answer in answers {
                        out.write_all(b"a").context(lost)?;
                        serde_json::to_writer(&mut out, &answer).context(lost)?;
                        out.write_all(b"\n").context(lost)?;
                    }
                }
                Err(error) => {
                    out.write_all(&error_line(&error)).context(lost)?;
                    return out.flush().context(lost);
                }
            }
        }
        out.write_all(b"d\n").and_then(|()| out.flush()).context(lost)?;
    }
}

/// A range on its way to a worker: four numbers.
const COMMAND_BYTES: usize = 32;

fn command_of(range: Range) -> [u8; COMMAND_BYTES] {
    let mut command = [0; COMMAND_BYTES];
    let numbers = [range.subject as u64, range.start, range.stride, range.count];
    for (place, number) in command.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    command
}

fn range_of(command: &[u8; COMMAND_BYTES]) -> Range {
    let number =
        |n: usize| u64::from_le_bytes(command[8 * n..8 * n + 8].try_into().unwrap_or_default());
    let subject = usize::try_from(number(0)).unwrap_or(usize::MAX);
    Range { subject, start: number(1), stride: number(2), count: number(3) }
}

/// An error on its way to the coordinator: "e", status, message and help.
fn error_line(error: &Error) -> Vec<u8> {
    let parts = (error.status as u8, &error.message, &error.help);
    let json = serde_json::to_string(&parts).unwrap_or_default();
    format!("e{json}\n").into_bytes()
}

fn parse_error(line: &[u8]) -> Error {
    let parts = line.strip_prefix(b"e").map(serde_json::from_slice::<(u8, String, Option<String>)>);
    let Some(Ok((status, message, help))) = parts else {
        return Error::internal("a worker sent something that is no answer");
    };
    let status = [ExitStatus::Usage, ExitStatus::BaselineFailed, ExitStatus::MachineLacks]
        .into_iter()
        .find(|known| *known as u8 == status)
        .unwrap_or(ExitStatus::Internal);
    Error { status, message, help }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_cannot_have_is_told_even_if_it_ended_before_the_first_command() {
        let nothing = |_| -> Result<Job<'_, ()>> { Err(Error::lacking("no disk").help("buy one")) };
        let mut pool = Pool::start(2, false, nothing).unwrap();
        for worker in &pool.workers {
            waitid(Id::Pid(worker.pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
        }
        let range = Range { subject: 0, start: 0, stride: 1, count: 1 };
        let error = pool.run(&mut |_| Some(range), &mut |_, _| Ok(()), &mut || ()).unwrap_err();
        assert_eq!((error.status, &*error.message), (ExitStatus::MachineLacks, "no disk"));
        assert_eq!(error.help.as_deref(), Some("buy one"));
    }

    #[test]
    fn a_worker_that_is_killed_is_told() {
        let idle = |_| -> Result<Job<'_, ()>> {
            nix::unistd::pause();
            Err(Error::internal("woken"))
        };
        let mut pool = Pool::start(1, false, idle).unwrap();
        nix::sys::signal::kill(pool.workers[0].pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        let range = Range { subject: 0, start: 0, stride: 1, count: 1 };
        let error = pool.run(&mut |_| Some(range), &mut |_, _| Ok(()), &mut || ()).unwrap_err();
        assert!(error.message.starts_with("a worker died: Signal"), "{}", error.message);
    }
}
