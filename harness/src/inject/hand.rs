//! Forks the children of built-in strategies, which strike at themselves.
//!
//! The strategy does not know: see `armed_storage`.

use std::cell::Cell;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};

use super::armed_storage::{ACCOUNT, ACK, Account, ArmedStorage, HERE, tell_byte};
use crate::error::{Context, Error, Result};
use crate::fault::Fault;
use crate::file_system::Axis;
use crate::os::process::{Ended, die_with, fork_briefly, fork_child, wait_for};
use crate::outcome::Exit;
use crate::subject::BuiltIn;
use crate::volume::{Taker, Volume};

/// What is read at once of what a child has said.
const PART_BYTES: usize = 256;

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
    /// What it said besides.
    pub account: Option<Account>,
}

/// The size of a reply: how the child ended, whether it was struck, how many acks it gave, and how
/// many bytes of account follow.
const REPLY_BYTES: usize = 32;

impl Hand {
    /// Forks a hand that works in the current directory.
    pub fn start(subject: &BuiltIn, volume: Option<&Volume>) -> Result<Self> {
        let (orders, commands) = io::pipe().context("make a pipe")?;
        let (replies, answer) = io::pipe().context("make a pipe")?;
        let mut theirs = Some((orders, answer));
        let mut ours = Some((commands, replies));
        let worker = getpid();
        let pid = fork_child(|| {
            drop(ours.take());
            if die_with(worker).is_err() {
                return 1;
            }
            match theirs.take() {
                Some((orders, answer)) => {
                    i32::from(serve((subject, volume), orders, answer).is_err())
                }
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
        let mut length = [0; 8];
        self.commands
            .write_all(&order)
            .and_then(|()| self.replies.read_exact(&mut length))
            .context("have a child forked")?;
        let mut replies = vec![0; usize::try_from(u64::from_le_bytes(length)).unwrap_or(0)];
        self.replies.read_exact(&mut replies).context("hear of a child")?;
        let mut rest = &replies[..];
        faults.iter().map(|_| Done::from_reply(&mut rest)).collect()
    }
}

impl Done {
    /// Takes one reply from the front of `rest`.
    fn from_reply(rest: &mut &[u8]) -> Result<Self> {
        let cut = || Error::internal("a hand's reply is cut short");
        let (reply, after) = rest.split_at_checked(REPLY_BYTES).ok_or_else(cut)?;
        let word =
            |n: usize| u64::from_le_bytes(reply[8 * n..8 * n + 8].try_into().unwrap_or_default());
        let (ended, struck, acks) = (word(0).cast_signed(), word(1) == 1, word(2));
        let length = usize::try_from(word(3)).unwrap_or(usize::MAX);
        let (json, after) = after.split_at_checked(length).ok_or_else(cut)?;
        *rest = after;
        let account = match json {
            [] => None,
            json => Some(serde_json::from_slice(json).context("read a child's account")?),
        };
        // A signal is sent as a negative number.
        let number = i32::try_from(ended.abs()).unwrap_or(0);
        let exit = match ended {
            status if status >= 0 => Exit::Status(number),
            _ if struck && number == libc::SIGKILL => Exit::Killed,
            _ => Exit::Signal(number),
        };
        Ok(Self { exit, struck, acks, account })
    }

    fn add_reply(replies: &mut Vec<u8>, ended: Ended, struck: bool, told: &Told) {
        let ended = match ended {
            Ended::Status(status) => i64::from(status),
            Ended::Signal(signal) => -i64::from(signal),
        };
        let words =
            [ended.cast_unsigned(), u64::from(struck), told.acks, told.account.len() as u64];
        for word in words {
            replies.extend(word.to_le_bytes());
        }
        replies.extend(&told.account);
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
fn serve(
    of: (&BuiltIn, Option<&Volume>),
    mut orders: PipeReader,
    mut answer: PipeWriter,
) -> io::Result<()> {
    let (mut told, tell) = io::pipe()?;
    fcntl(&told, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
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
        // The length comes first; it is known at the end.
        replies.clear();
        replies.extend([0; 8]);
        for (fault, slot) in faults.iter().zip(&slots) {
            std::env::set_current_dir(slot)?;
            let (ended, timed) = one(of, fault, &tell)?;
            let told = listen(&mut told)?;
            let struck = told.struck || (timed && ended == Ended::Signal(libc::SIGKILL));
            Done::add_reply(&mut replies, ended, struck, &told);
        }
        let length = (replies.len() - 8) as u64;
        replies[..8].copy_from_slice(&length.to_le_bytes());
        answer.write_all(&replies)?;
    }
}

/// Forks one child and waits for its end; says whether it was killed by the clock.
fn one(
    of: (&BuiltIn, Option<&Volume>),
    fault: &Fault,
    tell: &PipeWriter,
) -> io::Result<(Ended, bool)> {
    let started = Instant::now();
    let child = fork_briefly(|| save_all(of, fault, tell))?;
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
fn save_all(
    (subject, volume): (&BuiltIn, Option<&Volume>),
    fault: &Fault,
    tell: &PipeWriter,
) -> i32 {
    let taken = matches!(fault, Fault::DiskFull(full) if full.axis == Axis::Taken);
    let taker = match volume.filter(|_| taken).map(Taker::on).transpose() {
        Ok(taker) => taker,
        Err(_) => return 1,
    };
    let acks = Cell::new(0);
    let mut disk = ArmedStorage::new(fault, tell, taker, &acks);
    let strategy = subject.strategy;
    let mut ack = |_| {
        acks.set(acks.get() + 1);
        tell_byte(tell, ACK);
    };
    let saved = strategy.start(&mut disk, HERE.as_ref()).and_then(|()| {
        subject
            .saved()
            .iter()
            .try_for_each(|state| strategy.save(&mut disk, HERE.as_ref(), state, &mut ack))
    });
    disk.end();
    i32::from(saved.is_err())
}

/// What a child has said.
#[derive(Default)]
struct Told {
    acks: u64,
    struck: bool,
    account: Vec<u8>,
}

/// Hears what a child has said.
fn listen(from: &mut PipeReader) -> io::Result<Told> {
    let mut told = Told::default();
    let mut buffer = [0; PART_BYTES];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(told),
            Err(error) => return Err(error),
        };
        for byte in &buffer[..count] {
            match *byte {
                byte if byte == ACCOUNT || !told.account.is_empty() => told.account.push(byte),
                ACK => told.acks += 1,
                _ => told.struck = true,
            }
        }
        // Less than was asked for is all there is.
        if count < buffer.len() {
            return Ok(told);
        }
    }
}
