//! The unbroken run of a built-in strategy.

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crashtest_targets::{Disk, FileId, Open, Storage};

use crate::error::{Context, Error, Result};
use crate::inject::resident::{Nobody, Observer};
use crate::op::{ByteOffset, Call, Effect, Op, Trace};
use crate::subject::BuiltIn;

/// Runs the strategy unbroken in `directory`, records what it does and how long it takes.
pub fn record(subject: &BuiltIn, directory: &Path) -> Result<(Trace, Duration)> {
    fs::create_dir_all(directory).context(format_args!("make {}", directory.display()))?;
    if !subject.first_save {
        fs::write(directory.join(subject.strategy.state_file()), subject.first_content())
            .context("write the first state")?;
    }
    save(subject, directory, &mut Nobody)
}

/// Runs the strategy unbroken where its first state is; `observer` sees it between its ops.
pub fn save(
    subject: &BuiltIn,
    directory: &Path,
    observer: &mut dyn Observer,
) -> Result<(Trace, Duration)> {
    let (done, watch) = (Rc::new(Cell::new(0)), Watch::new(observer));
    let mut recorder = Recorder::new(directory, &done, &watch);
    let started = Instant::now();
    let mut acks = Vec::new();
    let strategy = subject.strategy;
    let mut saved = strategy.start(&mut recorder, directory);
    for version in subject.saved() {
        if saved.is_ok() {
            let ack = &mut |_| {
                acks.push(done.get());
                watch.tell(|observer| observer.acked());
            };
            saved = strategy.save(&mut recorder, directory, version, ack);
        }
    }
    let duration = started.elapsed();
    recorder.trace.acks = acks;
    let trace = std::mem::take(&mut recorder.trace);
    drop(recorder);
    if let Some(error) = watch.failed.take() {
        return Err(error);
    }
    saved
        .map_err(|error| Error::baseline(format!("`{}` cannot save: {error}", strategy.name())))?;
    let loaded = strategy.load(directory);
    if loaded.is_ok_and(|loaded| Some(&(&loaded.state).into()) == subject.saved().last()) {
        return Ok((trace, duration));
    }
    Err(Error::baseline(format!("`{}` does not load what it saved", strategy.name())))
}

/// Records what a strategy does in `directory` when it starts there and saves once more; a save that
/// fails ends the recording.
pub fn record_recovery(subject: &BuiltIn, directory: &Path) -> Result<Trace> {
    // What a failed recovery has done can be cut off, too.
    Ok(save_next(subject, directory, &mut Nobody)?.0)
}

/// Lets a strategy start in `directory` and save once more; `observer` sees it between its ops. What it did, and
/// whether it has saved.
pub fn save_next(
    subject: &BuiltIn,
    directory: &Path,
    observer: &mut dyn Observer,
) -> Result<(Trace, bool)> {
    let (done, watch) = (Rc::new(Cell::new(0)), Watch::new(observer));
    let mut recorder = Recorder::new(directory, &done, &watch);
    let (strategy, mut acks) = (subject.strategy, Vec::new());
    let ack = &mut |_| {
        acks.push(done.get());
        watch.tell(|observer| observer.acked());
    };
    let saved = strategy
        .start(&mut recorder, directory)
        .and_then(|()| strategy.save(&mut recorder, directory, subject.next(), ack));
    recorder.trace.acks = acks;
    let trace = std::mem::take(&mut recorder.trace);
    drop(recorder);
    match watch.failed.take() {
        Some(error) => Err(error),
        None => Ok((trace, saved.is_ok())),
    }
}

/// Tells an observer, and remembers what went wrong with it.
struct Watch<'a> {
    observer: RefCell<&'a mut dyn Observer>,
    failed: RefCell<Option<Error>>,
}

impl<'a> Watch<'a> {
    fn new(observer: &'a mut dyn Observer) -> Self {
        Self { observer: RefCell::new(observer), failed: RefCell::new(None) }
    }

    fn tell(&self, tell: impl FnOnce(&mut dyn Observer) -> Result<()>) {
        let mut failed = self.failed.borrow_mut();
        if failed.is_none() {
            *failed = tell(&mut **self.observer.borrow_mut()).err();
        }
    }
}

/// Writes down each call.
struct Recorder<'a> {
    watch: &'a Watch<'a>,
    disk: Disk,
    root: &'a Path,
    /// Path and position of each open file; one that is appended to has none.
    open: Vec<(PathBuf, Option<u64>)>,
    trace: Trace,
    /// The flags of the open that is being made.
    flags: i32,
    /// How many ops have been done; an ack looks at it in the middle of a save.
    done: Rc<Cell<usize>>,
}

impl<'a> Recorder<'a> {
    fn new(root: &'a Path, done: &Rc<Cell<usize>>, watch: &'a Watch<'a>) -> Self {
        let (disk, trace) = (Disk::default(), Trace::default());
        Self { watch, disk, root, open: Vec::new(), trace, flags: 0, done: Rc::clone(done) }
    }

    /// A call is about to be made.
    fn between(&self) {
        self.watch.tell(|observer| observer.between(self.trace.ops.len()));
    }

    fn note(&mut self, call: Call, effect: Effect, result: i64) {
        let flags = std::mem::take(&mut self.flags);
        let nth = 1 + self.trace.ops.iter().filter(|op| op.call == call).count();
        let nth = u32::try_from(nth).unwrap_or(u32::MAX);
        self.trace.ops.push(Op { flags, ..Op::new(call, nth, effect, result) });
        self.done.set(self.trace.ops.len());
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
        self.between();
        let result = self.disk.open(path, how);
        if let Ok(FileId(id)) = result {
            self.open.resize(id + 1, (PathBuf::new(), None));
            self.open[id] = (self.relative(path), (how != Open::Append).then_some(0));
        }
        if how != Open::Directory {
            self.flags = libc::O_WRONLY
                | libc::O_CREAT
                | match how {
                    Open::Truncate => libc::O_TRUNC,
                    Open::New => libc::O_EXCL,
                    Open::Append => libc::O_APPEND,
                    Open::Overwrite | Open::Directory => 0,
                };
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
        let (path, position) = self.open[file.0].clone();
        let end = || fs::metadata(self.root.join(&path)).map_or(0, |found| found.len());
        let offset = position.unwrap_or_else(end);
        self.between();
        let result = self.disk.write(file, bytes);
        let count = *result.as_ref().unwrap_or(&0);
        let effect =
            Effect::Write { path, offset: ByteOffset(offset), data: bytes[..count].to_vec() };
        if let Some(position) = &mut self.open[file.0].1 {
            *position += count as u64;
        }
        let status = if result.is_ok() { count as i64 } else { result_of(&result) };
        self.note(Call::Write, effect, status);
        result
    }

    fn truncate(&mut self, file: FileId, length: u64) -> io::Result<()> {
        self.between();
        let result = self.disk.truncate(file, length);
        let effect =
            Effect::Truncate { path: self.open[file.0].0.clone(), length: ByteOffset(length) };
        self.note(Call::Truncate, effect, result_of(&result));
        result
    }

    fn fsync(&mut self, file: FileId) -> io::Result<()> {
        self.between();
        let result = self.disk.fsync(file);
        let effect = Effect::Sync { path: self.open[file.0].0.clone() };
        self.note(Call::Fsync, effect, result_of(&result));
        result
    }

    fn close(&mut self, file: FileId) -> io::Result<()> {
        self.between();
        let result = self.disk.close(file);
        let effect = Effect::Close { path: self.open[file.0].0.clone() };
        self.note(Call::Close, effect, result_of(&result));
        result
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.between();
        let result = self.disk.rename(from, to);
        let effect =
            Effect::Rename { from: self.relative(from), to: self.relative(to), exchange: false };
        self.note(Call::Rename, effect, result_of(&result));
        result
    }

    fn unlink(&mut self, path: &Path) -> io::Result<()> {
        self.between();
        let result = self.disk.unlink(path);
        let effect = Effect::Unlink { path: self.relative(path) };
        self.note(Call::Unlink, effect, result_of(&result));
        result
    }

    fn make_directory(&mut self, path: &Path) -> io::Result<()> {
        self.between();
        let result = self.disk.make_directory(path);
        self.note(Call::Mkdir, Effect::Directory { path: self.relative(path) }, result_of(&result));
        result
    }

    fn try_lock(&mut self, file: FileId) -> io::Result<bool> {
        self.disk.try_lock(file)
    }

    fn list(&mut self, directory: &Path) -> io::Result<Vec<OsString>> {
        self.disk.list(directory)
    }
}
