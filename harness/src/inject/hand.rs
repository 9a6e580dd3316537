//! Forks the children of built-in strategies, which strike at themselves.
//!
//! The strategy does not know. It calls a [`Storage`] that shows each call to [`Armed`] and, when
//! the moment has come, lets through what it is told to and ends the process with SIGKILL.

use std::ffi::OsString;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::path::Path;
use std::time::Instant;

use crashtest_targets::{Disk, FileId, Open, Storage};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::armed::{Action, Armed, Then};
use crate::error::{Context, Error, Result};
use crate::fault::Fault;
use crate::op::Call;
use crate::os::process::{Ended, fork_briefly, fork_child, kill_self, wait_for};
use crate::outcome::Exit;
use crate::subject::BuiltIn;

/// What a child says through its pipe, a byte each.
const ACK: u8 = b'A';
const STRUCK: u8 = b'S';

/// A child works in its slot.
const HERE: &str = ".";

/// How many trials can be under way together, each in its slot.
pub const TOGETHER_MAX: usize = 16;
/// `PIPE_BUF`; the faults of one order take less.
const ORDER_BYTES_MAX: usize = 4096;

/// The name of the directory of a slot, in the room.
#[must_use]
pub fn slot_name(index: usize) -> String {
    format!("s{index:02}")
}

/// A process that does nothing but fork the children that are struck.
///
/// It is small and stays so, and it touches next to nothing between two forks: after a fork each
/// page that the parent writes to costs a page fault, and a worker writes to many.
pub struct Hand {
    pid: Pid,
    commands: PipeWriter,
    replies: PipeReader,
}

/// What the hand says of one child.
pub struct Done {
    /// How it ended.
    pub exit: Exit,
    /// Whether the fault struck.
    pub struck: bool,
    /// How many acks it gave.
    pub acks: u64,
}

/// The size of a reply: how the child ended, whether it was struck, how many acks it gave.
const REPLY_BYTES: usize = 24;

impl Hand {
    /// Forks a hand that works in the current directory.
    pub fn start(subject: &BuiltIn) -> Result<Self> {
        let (orders, commands) = io::pipe().context("make a pipe")?;
        let (replies, answer) = io::pipe().context("make a pipe")?;
        let mut theirs = Some((orders, answer));
        let mut ours = Some((commands, replies));
        let pid = fork_child(|| {
            drop(ours.take());
            match theirs.take() {
                Some((orders, answer)) => i32::from(serve(subject, orders, answer).is_err()),
                None => 1,
            }
        })
        .context("fork")?;
        let Some((commands, replies)) = ours else {
            return Err(Error::internal("the pipes of a hand are gone"));
        };
        Ok(Self { pid, commands, replies })
    }

    /// Has one child forked for each fault, one after another, each in its own slot.
    pub fn strike(&mut self, faults: &[Fault]) -> Result<Vec<Done>> {
        let order = serde_json::to_vec(faults).context("write the faults")?;
        let mut replies = vec![0; REPLY_BYTES * faults.len()];
        self.commands
            .write_all(&order)
            .and_then(|()| self.replies.read_exact(&mut replies))
            .context("have a child forked")?;
        Ok(replies.chunks_exact(REPLY_BYTES).map(Done::from_reply).collect())
    }
}

impl Done {
    fn from_reply(reply: &[u8]) -> Self {
        let word =
            |n: usize| u64::from_le_bytes(reply[8 * n..8 * n + 8].try_into().unwrap_or_default());
        let (ended, struck, acks) = (word(0).cast_signed(), word(1) == 1, word(2));
        // A signal is sent as a negative number.
        let number = i32::try_from(ended.abs()).unwrap_or(0);
        let exit = match ended {
            status if status >= 0 => Exit::Status(number),
            _ if struck && number == libc::SIGKILL => Exit::Killed,
            _ => Exit::Signal(number),
        };
        Self { exit, struck, acks }
    }

    fn to_reply(ended: Ended, struck: bool, acks: u64) -> [u8; REPLY_BYTES] {
        let ended = match ended {
            Ended::Status(status) => i64::from(status),
            Ended::Signal(signal) => -i64::from(signal),
        };
        let mut reply = [0; REPLY_BYTES];
        reply[..8].copy_from_slice(&ended.to_le_bytes());
        reply[8] = u8::from(struck);
        reply[16..].copy_from_slice(&acks.to_le_bytes());
        reply
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        // It waits for orders and does nothing. (The end of its orders does not reach it: hands
        // that were forked later hold that pipe too.)
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = wait_for(self.pid);
    }
}

/// The life of a hand.
fn serve(subject: &BuiltIn, mut orders: PipeReader, mut answer: PipeWriter) -> io::Result<()> {
    let (mut told, tell) = io::pipe()?;
    fcntl(&told, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    let room = std::env::current_dir()?;
    let slots: Vec<_> = (0..TOGETHER_MAX).map(|index| room.join(slot_name(index))).collect();
    // An order is smaller than what a pipe takes at once, so it comes at once.
    let mut order = [0; ORDER_BYTES_MAX];
    let mut replies = Vec::new();
    loop {
        let count = orders.read(&mut order)?;
        if count == 0 {
            return Ok(());
        }
        let faults: Vec<Fault> = serde_json::from_slice(&order[..count])?;
        replies.clear();
        for (fault, slot) in faults.iter().zip(&slots) {
            std::env::set_current_dir(slot)?;
            let (ended, timed) = one(subject, fault, &tell)?;
            let (acks, told) = listen(&mut told)?;
            let struck = told || (timed && ended == Ended::Signal(libc::SIGKILL));
            replies.extend(Done::to_reply(ended, struck, acks));
        }
        answer.write_all(&replies)?;
    }
}

/// Forks one child and waits for its end; says whether it was killed by the clock.
fn one(subject: &BuiltIn, fault: &Fault, tell: &PipeWriter) -> io::Result<(Ended, bool)> {
    let started = Instant::now();
    let child = fork_briefly(|| save_all(subject, fault, tell))?;
    let timed = if let Fault::KillAfter { delay_us } = fault {
        std::thread::sleep(delay_us.saturating_sub(started.elapsed()));
        // A child that has ended stays a zombie until it is waited for: this is its pid.
        let _ = kill(child, Signal::SIGKILL);
        true
    } else {
        false
    };
    Ok((wait_for(child)?, timed))
}

/// The body of the child.
fn save_all(subject: &BuiltIn, fault: &Fault, tell: &PipeWriter) -> i32 {
    let mut disk = ArmedStorage { disk: Disk::default(), armed: Armed::new(fault), tell };
    let strategy = subject.strategy;
    let mut ack = |_| tell_byte(tell, ACK);
    let saved = strategy.start(&mut disk, HERE.as_ref()).and_then(|()| {
        subject
            .saved()
            .iter()
            .try_for_each(|state| strategy.save(&mut disk, HERE.as_ref(), state, &mut ack))
    });
    i32::from(saved.is_err())
}

/// Counts what a child has said: its acks, and whether it was struck.
fn listen(told: &mut PipeReader) -> io::Result<(u64, bool)> {
    let (mut acks, mut struck) = (0, false);
    let mut buffer = [0; 256];
    loop {
        match told.read(&mut buffer) {
            Ok(count) => {
                for byte in &buffer[..count] {
                    match *byte {
                        ACK => acks += 1,
                        _ => struck = true,
                    }
                }
                // Less than was asked for is all there is.
                if count < buffer.len() {
                    return Ok((acks, struck));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok((acks, struck)),
            Err(error) => return Err(error),
        }
    }
}

/// Shows each call to [`Armed`] and does what that says.
struct ArmedStorage<'a> {
    disk: Disk,
    armed: Armed,
    tell: &'a PipeWriter,
}

impl ArmedStorage<'_> {
    fn gate<T>(
        &mut self,
        call: Call,
        length: usize,
        run: impl FnOnce(&mut Disk, usize) -> io::Result<T>,
    ) -> io::Result<T> {
        match self.armed.decide(call, length) {
            Action::Pass => run(&mut self.disk, length),
            Action::KillBefore => self.strike(),
            Action::KillAfter => {
                let _done = run(&mut self.disk, length);
                self.strike()
            }
            Action::Cut { keep, then } => {
                let done = run(&mut self.disk, keep);
                match then {
                    Then::Kill => self.strike(),
                    Then::GoOn => {
                        tell_byte(self.tell, STRUCK);
                        done
                    }
                }
            }
        }
    }

    fn strike(&self) -> ! {
        tell_byte(self.tell, STRUCK);
        kill_self()
    }
}

impl Storage for ArmedStorage<'_> {
    fn open(&mut self, path: &Path, how: Open) -> io::Result<FileId> {
        if how == Open::Directory {
            return self.disk.open(path, how);
        }
        self.gate(Call::Open, 0, |disk, _| disk.open(path, how))
    }

    fn write(&mut self, file: FileId, bytes: &[u8]) -> io::Result<usize> {
        self.gate(Call::Write, bytes.len(), |disk, keep| {
            // A kernel that is to take some bytes takes them all: what is left is only delayed.
            let mut done = 0;
            while done < keep {
                done += disk.write(file, &bytes[done..keep])?;
            }
            Ok(done)
        })
    }

    fn truncate(&mut self, file: FileId, length: u64) -> io::Result<()> {
        self.gate(Call::Truncate, 0, |disk, _| disk.truncate(file, length))
    }

    fn fsync(&mut self, file: FileId) -> io::Result<()> {
        self.gate(Call::Fsync, 0, |disk, _| disk.fsync(file))
    }

    fn close(&mut self, file: FileId) -> io::Result<()> {
        self.gate(Call::Close, 0, |disk, _| disk.close(file))
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.gate(Call::Rename, 0, |disk, _| disk.rename(from, to))
    }

    fn unlink(&mut self, path: &Path) -> io::Result<()> {
        self.gate(Call::Unlink, 0, |disk, _| disk.unlink(path))
    }

    fn list(&mut self, directory: &Path) -> io::Result<Vec<OsString>> {
        self.disk.list(directory)
    }
}

fn tell_byte(mut tell: &PipeWriter, byte: u8) {
    // A child that can't speak is a child whose trial says nothing: the parent sees no strike.
    let _ = tell.write_all(&[byte]);
}
