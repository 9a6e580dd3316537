//! Built-in strategies: run in a forked child that strikes at itself.
//!
//! The strategy does not know. It calls a [`Storage`] that shows each call to [`Armed`] and, when
//! the moment has come, lets through what it is told to and ends the process with SIGKILL.

use std::ffi::OsString;
use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crashtest_targets::{Disk, FileId, Open, Origin, STATE_FILE, Storage};
use nix::sys::signal::{Signal, kill};

use crate::armed::{Action, Armed, Then};
use crate::error::{Context, Error, Result};
use crate::fault::{Fault, Injection, Struck};
use crate::inject::Injector;
use crate::lab;
use crate::op::{ByteOffset, Call, Effect, Op, Trace};
use crate::os::process::{Ended, fork_child, kill_self, wait_for};
use crate::outcome::{Content, Exit, Load, NextSave, Outcome, Recovery, Survivor};
use crate::plan::Sites;
use crate::subject::BuiltIn;

/// What the child says through its pipe, a byte each.
const ACK: u8 = b'A';
const STRUCK: u8 = b'S';

/// Does the trials of one built-in strategy in one directory.
pub struct BuiltInInjector<'a> {
    subject: &'a BuiltIn,
    sites: &'a Sites,
    directory: PathBuf,
    told: PipeReader,
    tell: PipeWriter,
    keep: Option<PathBuf>,
}

impl<'a> BuiltInInjector<'a> {
    /// An injector that works in `room`.
    pub fn new(subject: &'a BuiltIn, sites: &'a Sites, room: &Path) -> Result<Self> {
        let directory = room.join("state");
        fs::create_dir_all(&directory).context(format_args!("make {}", directory.display()))?;
        let (told, tell) = io::pipe().context("make a pipe")?;
        set_nonblocking(&told)?;
        Ok(Self { subject, sites, directory, told, tell, keep: None })
    }

    /// Empties the directory and puts version 0 there.
    fn reset(&self) -> io::Result<()> {
        for name in names(&self.directory)? {
            if name != STATE_FILE {
                remove(&self.directory.join(name))?;
            }
        }
        fs::write(self.directory.join(STATE_FILE), &self.subject.initial)
    }

    /// The body of the child.
    fn save_all(&self, fault: &Fault) -> i32 {
        let tell = &self.tell;
        let mut disk = ArmedStorage { disk: Disk::default(), armed: Armed::new(fault), tell };
        let strategy = self.subject.strategy;
        // The pipe outlives the child; if it could not be written the parent would miss an ack.
        let mut ack = |_| tell_byte(tell, ACK);
        let saved = strategy.start(&mut disk, &self.directory).and_then(|()| {
            self.subject
                .saved()
                .iter()
                .try_for_each(|state| strategy.save(&mut disk, &self.directory, state, &mut ack))
        });
        i32::from(saved.is_err())
    }

    fn listen(&mut self) -> io::Result<(u64, bool)> {
        let (mut acks, mut struck) = (0, false);
        let mut buffer = [0; 4096];
        loop {
            match self.told.read(&mut buffer) {
                Ok(0) => return Ok((acks, struck)),
                Ok(count) => {
                    for byte in &buffer[..count] {
                        match *byte {
                            ACK => acks += 1,
                            _ => struck = true,
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok((acks, struck));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn survivor(&self) -> io::Result<Survivor> {
        let mut survivor = Survivor::default();
        for name in names(&self.directory)? {
            let path = self.directory.join(&name);
            if name == STATE_FILE {
                survivor.files.insert(name.into(), Content::Bytes(fs::read(path)?));
            } else {
                survivor.others.push(name.into());
            }
        }
        Ok(survivor)
    }

    fn recover(&self) -> Recovery {
        let attempt = catch_unwind(AssertUnwindSafe(|| self.load_and_save()));
        attempt.unwrap_or_else(|_| Recovery {
            load: Load::Failed("the load panicked".to_owned()),
            ..Recovery::default()
        })
    }

    fn load_and_save(&self) -> Recovery {
        let (strategy, directory) = (self.subject.strategy, &self.directory);
        let load = match strategy.load(directory) {
            Ok(loaded) if loaded.origin == Origin::Default => Load::Default,
            Ok(_) => Load::Loaded,
            Err(error) => Load::Failed(error.to_string()),
        };
        let mut disk = Disk::default();
        let saved = strategy
            .start(&mut disk, directory)
            .and_then(|()| strategy.save(&mut disk, directory, self.subject.next(), &mut |_| {}));
        let next_save = match (saved, strategy.load(directory)) {
            (Ok(()), Ok(loaded)) if loaded.state == *self.subject.next() => NextSave::Saved,
            (Ok(()), Ok(_)) => NextSave::Failed("what was saved is not what is loaded".to_owned()),
            (Ok(()), Err(error)) => NextSave::Failed(error.to_string()),
            (Err(error), _) => NextSave::Failed(format!("the next save failed: {error}")),
        };
        let others = names(directory).unwrap_or_default().into_iter();
        let leftovers = others.filter(|name| name != STATE_FILE).map(PathBuf::from).collect();
        Recovery { load, next_save, leftovers }
    }

    fn struck(&self, fault: &Fault) -> Struck {
        match fault {
            Fault::Kill(strike) | Fault::ShortWrite(strike) => Struck::Call {
                call: strike.call,
                path: PathBuf::from(&self.sites.sites[strike.op.0].path),
                point: strike.point,
            },
            Fault::KillAfter { delay_us } => Struck::Moment { delay_us: *delay_us },
        }
    }
}

impl Injector for BuiltInInjector<'_> {
    fn keep_in(&mut self, directory: PathBuf) {
        self.keep = Some(directory);
    }

    fn inject(&mut self, fault: &Fault) -> Result<Outcome> {
        self.reset().context(format_args!("prepare {}", self.directory.display()))?;
        let started = Instant::now();
        let child = fork_child(|| self.save_all(fault)).context("fork")?;
        let timed = if let Fault::KillAfter { delay_us } = fault {
            std::thread::sleep(delay_us.saturating_sub(started.elapsed()));
            // A child that has ended stays a zombie until it is waited for: this is its pid.
            let _ = kill(child, Signal::SIGKILL);
            true
        } else {
            false
        };
        let ended = wait_for(child).context("wait for the subject")?;
        let (acks, told) = self.listen().context("read the acks")?;
        let struck = told || (timed && ended == Ended::Signal(libc::SIGKILL));
        let exit = match ended {
            Ended::Status(status) => Exit::Status(status),
            Ended::Signal(libc::SIGKILL) if struck => Exit::Killed,
            Ended::Signal(signal) => Exit::Signal(signal),
        };
        let survivor = self.survivor().context("read what is left")?;
        if let Some(keep) = self.keep.take() {
            lab::copy_tree(&self.directory, &keep)
                .context(format_args!("keep a copy in {}", keep.display()))?;
        }
        let injection =
            if struck { Injection::At(self.struck(fault)) } else { Injection::NotReached };
        let recovery = self.recover();
        Ok(Outcome {
            fault: fault.clone(),
            injection,
            exit,
            acks,
            survivor,
            checks: Vec::new(),
            recovery,
        })
    }
}

/// Runs the strategy unbroken in `directory`, records what it does and how long it takes.
pub fn record(subject: &BuiltIn, directory: &Path) -> Result<(Trace, Duration)> {
    fs::create_dir_all(directory).context(format_args!("make {}", directory.display()))?;
    fs::write(directory.join(STATE_FILE), &subject.initial).context("write the first state")?;
    let mut recorder = Recorder {
        disk: Disk::default(),
        root: directory,
        open: Vec::new(),
        trace: Trace::default(),
    };
    let started = Instant::now();
    let mut acks = Vec::new();
    let strategy = subject.strategy;
    let mut saved = strategy.start(&mut recorder, directory);
    for state in subject.saved() {
        if saved.is_ok() {
            saved =
                strategy.save(&mut recorder, directory, state, &mut |version| acks.push(version));
        }
    }
    let duration = started.elapsed();
    saved
        .map_err(|error| Error::baseline(format!("`{}` cannot save: {error}", strategy.name())))?;
    let loaded = strategy.load(directory);
    if loaded.is_ok_and(|loaded| Some(&loaded.state) == subject.saved().last()) {
        return Ok((recorder.trace, duration));
    }
    Err(Error::baseline(format!("`{}` does not load what it saved", strategy.name())))
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

/// Writes down each call.
struct Recorder<'a> {
    disk: Disk,
    root: &'a Path,
    /// Path and position of each open file.
    open: Vec<(PathBuf, u64)>,
    trace: Trace,
}

impl Recorder<'_> {
    fn note(&mut self, call: Call, effect: Effect, result: i64) {
        let nth = 1 + self.trace.ops.iter().filter(|op| op.call == call).count();
        let nth = u32::try_from(nth).unwrap_or(u32::MAX);
        self.trace.ops.push(Op { call, nth, effect, result });
    }

    fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(self.root).unwrap_or(path).to_owned()
    }
}

fn result_of<T>(result: &io::Result<T>) -> i64 {
    match result {
        Ok(_) => 0,
        Err(error) => -i64::from(error.raw_os_error().unwrap_or(libc::EIO)),
    }
}

impl Storage for Recorder<'_> {
    fn open(&mut self, path: &Path, how: Open) -> io::Result<FileId> {
        let result = self.disk.open(path, how);
        if let Ok(FileId(id)) = result {
            self.open.resize(id + 1, (PathBuf::new(), 0));
            self.open[id] = (self.relative(path), 0);
        }
        if how != Open::Directory {
            let (path, truncate) = (self.relative(path), how == Open::Truncate);
            self.note(
                Call::Open,
                Effect::Open { path, create: true, truncate },
                result_of(&result),
            );
        }
        result
    }

    fn write(&mut self, file: FileId, bytes: &[u8]) -> io::Result<usize> {
        let result = self.disk.write(file, bytes);
        let (path, offset) = self.open[file.0].clone();
        let count = *result.as_ref().unwrap_or(&0);
        let effect =
            Effect::Write { path, offset: ByteOffset(offset), data: bytes[..count].to_vec() };
        self.open[file.0].1 += count as u64;
        let status = if result.is_ok() { count as i64 } else { result_of(&result) };
        self.note(Call::Write, effect, status);
        result
    }

    fn truncate(&mut self, file: FileId, length: u64) -> io::Result<()> {
        let result = self.disk.truncate(file, length);
        let effect =
            Effect::Truncate { path: self.open[file.0].0.clone(), length: ByteOffset(length) };
        self.note(Call::Truncate, effect, result_of(&result));
        result
    }

    fn fsync(&mut self, file: FileId) -> io::Result<()> {
        let result = self.disk.fsync(file);
        let effect = Effect::Sync { path: self.open[file.0].0.clone() };
        self.note(Call::Fsync, effect, result_of(&result));
        result
    }

    fn close(&mut self, file: FileId) -> io::Result<()> {
        let result = self.disk.close(file);
        let effect = Effect::Close { path: self.open[file.0].0.clone() };
        self.note(Call::Close, effect, result_of(&result));
        result
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let result = self.disk.rename(from, to);
        let effect =
            Effect::Rename { from: self.relative(from), to: self.relative(to), exchange: false };
        self.note(Call::Rename, effect, result_of(&result));
        result
    }

    fn unlink(&mut self, path: &Path) -> io::Result<()> {
        let result = self.disk.unlink(path);
        let effect = Effect::Unlink { path: self.relative(path) };
        self.note(Call::Unlink, effect, result_of(&result));
        result
    }

    fn list(&mut self, directory: &Path) -> io::Result<Vec<OsString>> {
        self.disk.list(directory)
    }
}

fn tell_byte(mut tell: &PipeWriter, byte: u8) {
    // A child that can't speak is a child whose trial says nothing: the parent sees no strike.
    let _ = tell.write_all(&[byte]);
}

fn names(directory: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect()
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn set_nonblocking(pipe: &PipeReader) -> Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .context(format_args!("make pipe {} nonblocking", pipe.as_raw_fd()))?;
    Ok(())
}
