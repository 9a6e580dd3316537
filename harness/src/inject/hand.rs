//! Forks the children of built-in strategies, which strike at themselves.
//!
//! The strategy does not know. It calls a [`Storage`] that shows each call to [`Armed`] and, when
//! the moment has come, lets through what it is told to and ends the process with SIGKILL.

use std::ffi::OsString;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crashtest_targets::{Disk, FileId, Open, STATE_FILE, Storage};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::striker::key;
use crate::armed::{Action, Armed, Then};
use crate::errno::Shown;
use crate::error::{Context, Error, Result};
use crate::fault::{Fault, Point, Struck};
use crate::op::{ByteOffset, Call, Effect};
use crate::os::process::{Ended, fork_briefly, fork_child, kill_self, wait_for};
use crate::outcome::{Exit, Step};
use crate::steps::{self, Steps};
use crate::subject::BuiltIn;
use crate::unsynced::Unsynced;

/// What a child says through its pipe, a byte each.
const ACK: u8 = b'A';
const STRUCK: u8 = b'S';
/// After this comes its account as JSON, and then nothing more.
const ACCOUNT: u8 = b'{';
/// What is read at once of what a child has said.
const PART_BYTES: usize = 256;

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

/// What a child says of a fault that it was told of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// What the fault met.
    pub first: Option<Struck>,
    /// What its second part met.
    pub second: Option<Struck>,
    /// What the strategy did from then on.
    pub steps: Vec<Step>,
    /// What a failed fsync has left in memory only: the state file, or the directory.
    pub unsynced: Vec<PathBuf>,
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
    pub account: Account,
}

/// The size of a reply: how the child ended, whether it was struck, how many acks it gave, and how
/// many bytes of account follow.
const REPLY_BYTES: usize = 32;

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
            [] => Account::default(),
            json => serde_json::from_slice(json).context("read a child's account")?,
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
        // The length comes first; it is known at the end.
        replies.clear();
        replies.extend([0; 8]);
        for (fault, slot) in faults.iter().zip(&slots) {
            std::env::set_current_dir(slot)?;
            let (ended, timed) = one(subject, fault, &tell)?;
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
    let mut disk = ArmedStorage {
        disk: Disk::default(),
        armed: Armed::new(fault),
        tell,
        notes: fault.is_told().then(Notes::default),
    };
    let strategy = subject.strategy;
    let mut ack = |_| tell_byte(tell, ACK);
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

/// Shows each call to [`Armed`] and does what that says.
struct ArmedStorage<'a> {
    disk: Disk,
    armed: Armed,
    tell: &'a PipeWriter,
    /// What is written down, of a fault that the strategy is told of.
    notes: Option<Notes>,
}

/// What a child writes down.
#[derive(Default)]
struct Notes {
    first: Option<Struck>,
    second: Option<Struck>,
    steps: Steps,
    unsynced: Unsynced,
    /// Path and position of each open file.
    open: Vec<(PathBuf, u64)>,
}

impl ArmedStorage<'_> {
    /// `effect` is asked for only if the call is written down.
    fn gate<T>(
        &mut self,
        call: Call,
        length: usize,
        effect: impl FnOnce(&Notes) -> Effect,
        run: impl FnOnce(&mut Disk, usize) -> io::Result<T>,
        count: impl FnOnce(&T) -> usize,
    ) -> io::Result<T> {
        let effect = self.notes.as_ref().map(effect);
        let creates = matches!(effect, Some(Effect::Open { create: true, .. }) | None);
        let shown = Shown { creates, ..Shown::plain(call, length) };
        let action = self.armed.decide(&shown);
        let done = match action {
            Action::Pass => run(&mut self.disk, length),
            Action::KillBefore => self.strike(call, effect.as_ref()),
            Action::KillAfter => {
                let _done = run(&mut self.disk, length);
                self.strike(call, effect.as_ref())
            }
            Action::Cut { keep, then } => {
                let done = run(&mut self.disk, keep);
                match then {
                    Then::Kill => self.strike(call, effect.as_ref()),
                    Then::GoOn => done,
                }
            }
            Action::Fail(errno) => Err(io::Error::from_raw_os_error(errno.number())),
            Action::FailAfter(errno) => run(&mut self.disk, length)
                .and(Err(io::Error::from_raw_os_error(errno.number()))),
        };
        if let (Some(notes), Some(effect)) = (&mut self.notes, effect) {
            let result = match &done {
                Ok(done) => i64::try_from(count(done)).unwrap_or(i64::MAX),
                Err(error) => -i64::from(error.raw_os_error().unwrap_or(libc::EIO)),
            };
            let full = self.armed.returned(&shown, result);
            notes.note(&shown, &effect, result, action, full || action != Action::Pass);
        }
        done
    }

    fn strike(&mut self, call: Call, effect: Option<&Effect>) -> ! {
        if let (Some(notes), Some(effect)) = (&mut self.notes, effect) {
            let path = effect.path().to_string_lossy().into_owned();
            notes.second = Some(Struck::Call { call, path, point: Point::Before });
            notes.steps.called(steps::call(call, effect, 0), None, false);
            notes.steps.push(Step::Said("(killed here)".to_owned()));
        }
        tell_byte(self.tell, STRUCK);
        self.end();
        kill_self()
    }

    /// Gives the account, if there is one.
    fn end(&mut self) {
        let Some(notes) = self.notes.take() else { return };
        let lost = |path: &str| key(Path::new(path)).is_some_and(|key| notes.unsynced.is_lost(key));
        let names = [(STATE_FILE, STATE_FILE), (HERE, "")];
        let unsynced = names.into_iter().filter(|(path, _)| lost(path));
        let account = Account {
            unsynced: unsynced.map(|(_, name)| PathBuf::from(name)).collect(),
            first: notes.first,
            second: notes.second,
            steps: notes.steps.finish(),
        };
        if self.armed.has_struck() {
            tell_byte(self.tell, STRUCK);
        }
        // A child that can't speak is a child whose trial says nothing.
        let mut tell = self.tell;
        let _ = tell.write_all(&serde_json::to_vec(&account).unwrap_or_default());
    }
}

impl Notes {
    fn path(&self, file: FileId) -> PathBuf {
        self.open.get(file.0).map(|(path, _)| path.clone()).unwrap_or_default()
    }

    fn position(&self, file: FileId) -> u64 {
        self.open.get(file.0).map_or(0, |(_, position)| *position)
    }

    fn opened(&mut self, file: FileId, path: &Path) {
        self.open.resize(self.open.len().max(file.0 + 1), (PathBuf::new(), 0));
        self.open[file.0] = (plain(path), 0);
    }

    /// Writes down a call that has returned; `fails` says whether the trial made it fail, or the
    /// disk is full.
    fn note(&mut self, shown: &Shown, effect: &Effect, result: i64, action: Action, fails: bool) {
        let struck = || {
            let path = effect.path().to_string_lossy().into_owned();
            Struck::Failed { call: shown.call, path, result }
        };
        match (fails, &self.first) {
            (true, None) => self.first = Some(struck()),
            (true, Some(_)) if action != Action::Pass => self.second = Some(struck()),
            _ => {}
        }
        if self.first.is_some() {
            let what = steps::call(shown.call, effect, shown.length);
            self.steps.called(what, Some(result), action != Action::Pass);
        }
        self.track(effect, result, action);
    }

    /// Follows what is on disk.
    fn track(&mut self, effect: &Effect, result: i64, action: Action) {
        let path = effect.path();
        let place = if path.as_os_str().is_empty() { Path::new(HERE) } else { path };
        let Some(file) = key(place) else { return };
        match (effect, action) {
            (Effect::Write { offset, .. }, _) if result > 0 => {
                self.unsynced.write(file, offset.0, result.cast_unsigned());
            }
            (Effect::Open { truncate: true, .. }, _) if result >= 0 => {
                self.unsynced.truncate(file, 0);
            }
            (Effect::Truncate { length, .. }, _) if result >= 0 => {
                self.unsynced.truncate(file, length.0);
            }
            (Effect::Sync { .. }, Action::Pass | Action::FailAfter(_)) => {
                self.unsynced.synced(file);
            }
            (Effect::Sync { .. }, _) => self.unsynced.failed(file),
            _ => {}
        }
    }
}

/// A path as it is shown: without the `./` before it.
fn plain(path: &Path) -> PathBuf {
    path.strip_prefix(HERE).unwrap_or(path).to_owned()
}

impl Storage for ArmedStorage<'_> {
    fn open(&mut self, path: &Path, how: Open) -> io::Result<FileId> {
        let opened = if how == Open::Directory {
            self.disk.open(path, how)?
        } else {
            let effect = |_: &Notes| {
                let truncate = how == Open::Truncate;
                Effect::Open { path: plain(path), create: true, truncate }
            };
            self.gate(Call::Open, 0, effect, |disk, _| disk.open(path, how), |_| 0)?
        };
        if let Some(notes) = &mut self.notes {
            notes.opened(opened, path);
        }
        Ok(opened)
    }

    fn write(&mut self, file: FileId, bytes: &[u8]) -> io::Result<usize> {
        let effect = |notes: &Notes| Effect::Write {
            path: notes.path(file),
            offset: ByteOffset(notes.position(file)),
            data: Vec::new(),
        };
        let full = matches!(self.notes, Some(_));
        let write = |disk: &mut Disk, keep: usize| {
            // A kernel that is to take some bytes takes them all, unless the disk is full: what is
            // left is only delayed.
            let mut done = 0;
            while done < keep {
                done += disk.write(file, &bytes[done..keep])?;
                if full {
                    break;
                }
            }
            Ok(done)
        };
        let written = self.gate(Call::Write, bytes.len(), effect, write, |count| *count)?;
        if let Some(notes) = &mut self.notes
            && let Some((_, position)) = notes.open.get_mut(file.0)
        {
            *position += written as u64;
        }
        Ok(written)
    }

    fn truncate(&mut self, file: FileId, length: u64) -> io::Result<()> {
        let effect = |notes: &Notes| Effect::Truncate {
            path: notes.path(file),
            length: ByteOffset(length),
        };
        self.gate(Call::Truncate, 0, effect, |disk, _| disk.truncate(file, length), |()| 0)
    }

    fn fsync(&mut self, file: FileId) -> io::Result<()> {
        let effect = |notes: &Notes| Effect::Sync { path: notes.path(file) };
        self.gate(Call::Fsync, 0, effect, |disk, _| disk.fsync(file), |()| 0)
    }

    fn close(&mut self, file: FileId) -> io::Result<()> {
        let effect = |notes: &Notes| Effect::Close { path: notes.path(file) };
        self.gate(Call::Close, 0, effect, |disk, _| disk.close(file), |()| 0)
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let effect = |_: &Notes| Effect::Rename { from: plain(from), to: plain(to), exchange: false };
        self.gate(Call::Rename, 0, effect, |disk, _| disk.rename(from, to), |()| 0)
    }

    fn unlink(&mut self, path: &Path) -> io::Result<()> {
        let effect = |_: &Notes| Effect::Unlink { path: plain(path) };
        self.gate(Call::Unlink, 0, effect, |disk, _| disk.unlink(path), |()| 0)
    }

    fn list(&mut self, directory: &Path) -> io::Result<Vec<OsString>> {
        self.disk.list(directory)
    }
}

fn tell_byte(mut tell: &PipeWriter, byte: u8) {
    // A child that can't speak is a child whose trial says nothing: the parent sees no strike.
    let _ = tell.write_all(&[byte]);
}
