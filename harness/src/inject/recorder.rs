//! Writes down all that a program does to its files, and when it gives its acks.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::decode::{Asked, Detail, Scope};
use super::output::AckCounter;
use super::tracer::{Done, Unfollowed, Watcher};
use super::transfer;
use crate::armed::Action;
use crate::locate::Frame;
use crate::op::{ByteOffset, Call, Effect, Op, Trace};
use crate::os::ptrace::Stopped;

/// How long a program may go on after the acks that make a run, if nobody asked for so many.
const LINGER: Duration = Duration::from_secs(2);
/// How many acks make a run of a program that does not end by itself.
const ACKS_DEFAULT: u64 = 10;
/// How many more are waited for: a trial in which a save has failed gets further in its versions.
const BEYOND: u64 = 5;

/// Who looks at the stack of each thread before each of its ops.
pub trait Witness {
    /// The frames of a thread that is about to make a call, the innermost first.
    fn look(&mut self, asked: &Asked, thread: &Stopped) -> Vec<Frame>;
}

/// Records a run.
pub struct Recorder<'a> {
    scope: &'a Scope,
    counter: AckCounter,
    /// How many acks make a run, if the user said so.
    acks_asked: Option<u64>,
    data_bytes_max: u64,
    /// What was recorded.
    pub trace: Trace,
    /// What could not be followed.
    pub unfollowed: BTreeSet<Unfollowed>,
    /// The threads that changed files, in the order of their first ops.
    pub threads: Vec<i32>,
    /// Which threads start late.
    hesitates: Hesitates,
    counts: HashMap<Call, u32>,
    data_bytes: u64,
    enough_acks_at: Option<Instant>,
    last_op_at: Instant,
    /// How many threads and processes have been started.
    started: u32,
    /// The files that are mapped, shared and to be written: what was seen of each.
    mapped: Vec<Mapped>,
    witness: Option<Box<dyn Witness>>,
    /// What was seen before the call that each thread is about to make.
    seen: HashMap<i32, Vec<Frame>>,
    /// Of each op what the witness has seen, if there is one.
    pub stacks: Vec<Vec<Frame>>,
    /// Where the program was when it was stopped at a call that it must not make.
    pub trespassed_at: Option<Frame>,
}

/// A file that may change without a call.
struct Mapped {
    file: fs::File,
    seen: Vec<u8>,
}

impl Mapped {
    /// The file that an open descriptor of a thread is about; none if it is one that is known.
    fn of(tid: i32, descriptor: i32, known: &[Self]) -> Option<Self> {
        let file = fs::File::open(format!("/proc/{tid}/fd/{descriptor}")).ok()?;
        let same = |other: &Self| match (file.metadata(), other.file.metadata()) {
            (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
            _ => false,
        };
        if known.iter().any(same) {
            return None;
        }
        let mut mapped = Self { file, seen: Vec::new() };
        mapped.seen = mapped.bytes();
        Some(mapped)
    }

    fn bytes(&self) -> Vec<u8> {
        let length = self.file.metadata().map_or(0, |found| found.len());
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        match self.file.read_exact_at(&mut bytes, 0) {
            Ok(()) => bytes,
            Err(_) => self.seen.clone(),
        }
    }

    /// Its name now.
    fn path(&self) -> Option<PathBuf> {
        fs::read_link(format!("/proc/self/fd/{}", self.file.as_raw_fd())).ok()
    }

    /// The pages that have changed since it was last seen: where, and their new bytes.
    fn changes(&mut self) -> Vec<(u64, Vec<u8>)> {
        let now = self.bytes();
        let pages = now.chunks(PAGE).zip(self.seen.chunks(PAGE)).enumerate();
        let changed = pages.filter(|(_, (new, old))| new[..] != old[..new.len().min(old.len())]);
        let changes = changed.map(|(page, (new, _))| ((page * PAGE) as u64, new.to_vec()));
        let changes = changes.collect();
        self.seen = now;
        changes
    }
}

/// What is written out as a whole.
const PAGE: usize = 4096;

/// Which threads and processes start late, so that an order that is not the program's own comes out
/// otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hesitates {
    /// None.
    Nobody,
    /// Every second one; of the two halves the one with this remainder.
    Half(u32),
}

/// How many are held up in one run.
const LATE_MAX: u32 = 100;

/// The number of a thread among those that were met.
fn ordinal(threads: &mut Vec<i32>, tid: i32) -> u32 {
    let place = threads.iter().position(|known| *known == tid).unwrap_or_else(|| {
        threads.push(tid);
        threads.len() - 1
    });
    u32::try_from(place).unwrap_or(u32::MAX)
}

impl<'a> Recorder<'a> {
    /// A recorder that keeps at most `data_bytes_max` bytes.
    #[must_use]
    pub fn new(
        scope: &'a Scope,
        counter: AckCounter,
        acks_asked: Option<u64>,
        data_bytes_max: u64,
    ) -> Self {
        Self {
            scope,
            counter,
            acks_asked,
            data_bytes_max,
            trace: Trace::default(),
            unfollowed: BTreeSet::new(),
            threads: Vec::new(),
            hesitates: Hesitates::Nobody,
            started: 0,
            mapped: Vec::new(),
            witness: None,
            seen: HashMap::new(),
            stacks: Vec::new(),
            trespassed_at: None,
            counts: HashMap::new(),
            data_bytes: 0,
            enough_acks_at: None,
            last_op_at: Instant::now(),
        }
    }

    /// Lets some threads start late.
    #[must_use]
    pub fn hesitating(self, hesitates: Hesitates) -> Self {
        Self { hesitates, ..self }
    }

    /// Lets somebody look at the stacks.
    #[must_use]
    pub fn seen_by(self, witness: Box<dyn Witness>) -> Self {
        Self { witness: Some(witness), ..self }
    }

    /// Adds an op, and where it was made.
    fn add(&mut self, op: Op, stack: Option<Vec<Frame>>) {
        if self.witness.is_some() {
            self.stacks.push(stack.unwrap_or_default());
        }
        self.trace.ops.push(op);
    }

    /// Writes down what was stored in mapped files since the last call.
    pub fn stores(&mut self) {
        for index in 0..self.mapped.len() {
            let Some(path) = self.mapped[index].path() else { continue };
            let Some(path) = self.scope.place(&path) else { continue };
            for (offset, data) in self.mapped[index].changes() {
                let nth = self.counts.entry(Call::Store).or_default();
                *nth += 1;
                let (nth, result) = (*nth, i64::try_from(data.len()).unwrap_or(i64::MAX));
                self.data_bytes += data.len() as u64;
                let effect = Effect::Write { path: path.clone(), offset: ByteOffset(offset), data };
                self.add(Op::new(Call::Store, nth, effect, result), None);
            }
        }
    }

    /// Whether the program wrote more than is kept.
    #[must_use]
    pub fn overflowed(&self) -> bool {
        self.data_bytes > self.data_bytes_max
    }

    /// Whether the run was ended after so many acks.
    #[must_use]
    pub fn had_enough_acks(&self) -> bool {
        let more =
            self.acks_asked.is_some() && self.counter.acks() >= self.acks_of_a_run() + BEYOND;
        self.enough_acks_at.is_some_and(|since| more || since.elapsed() >= LINGER)
    }

    /// When the last op had been done.
    #[must_use]
    pub fn last_op_at(&self) -> Instant {
        self.last_op_at
    }

    /// How many acks make a run.
    #[must_use]
    pub fn acks_of_a_run(&self) -> u64 {
        self.acks_asked.unwrap_or(ACKS_DEFAULT)
    }

    /// What the kernel made of a call, where that says more than what was asked.
    fn effect(&self, done: &Done<'_>) -> Effect {
        let tid = done.thread.tid();
        match done.asked.effect.clone() {
            Effect::Write { path, offset, .. } => {
                let count = usize::try_from(done.result).unwrap_or(0);
                let file = match done.asked.call {
                    Call::CopyFileRange | Call::Splice => done.arguments[2],
                    _ => done.arguments[0],
                };
                // A thread that died here never saw its write succeed; the model will tell.
                let data =
                    transfer::moved(done.thread, &done.asked, file, count).unwrap_or_default();
                Effect::Write { path, offset, data }
            }
            Effect::Open { path, create, truncate } if done.result >= 0 => {
                // Links are followed, and a file without a name gets one.
                let real = fs::read_link(format!("/proc/{tid}/fd/{}", done.result)).ok();
                let real = real.and_then(|real| self.scope.place(&real));
                let nameless = real.as_ref().is_some_and(|real| {
                    real.as_os_str().as_encoded_bytes().ends_with(b" (deleted)")
                });
                Effect::Open { path: real.unwrap_or(path), create: create || nameless, truncate }
            }
            other => other,
        }
    }
}

impl Watcher for Recorder<'_> {
    fn asked(&mut self, asked: &Asked, thread: &Stopped) -> Action {
        self.stores();
        if let Some(witness) = &mut self.witness {
            self.seen.insert(thread.tid().as_raw(), witness.look(asked, thread));
        }
        Action::Pass
    }

    fn starts_late(&mut self) -> bool {
        self.started += 1;
        self.started <= LATE_MAX && self.hesitates == Hesitates::Half(self.started % 2)
    }

    fn detail(&self) -> Detail {
        Detail::All
    }

    fn wants_results(&self) -> bool {
        true
    }

    fn done(&mut self, done: Done<'_>) {
        let effect = self.effect(&done);
        let nth = self.counts.entry(done.asked.call).or_default();
        *nth += 1;
        let op = Op {
            call: done.asked.call,
            nth: *nth,
            effect,
            result: done.result,
            thread: ordinal(&mut self.threads, done.thread.tid().as_raw()),
            flags: done.asked.flags,
        };
        self.data_bytes += op.written() as u64;
        // What this call itself has changed is no store.
        for mapped in &mut self.mapped {
            let path = mapped.path().and_then(|path| self.scope.place(&path));
            if path.as_ref() == Some(op.effect.path()) {
                mapped.seen = mapped.bytes();
            }
        }
        if let (Call::MapShared, true, Some(file)) = (op.call, op.succeeded(), done.asked.file) {
            let mapped = Mapped::of(done.thread.tid().as_raw(), file, &self.mapped);
            // One that is too large is not followed: then its calls do not explain what it leaves.
            let fits = |mapped: &Mapped| mapped.seen.len() as u64 <= self.data_bytes_max;
            self.mapped.extend(mapped.filter(fits));
        }
        let stack = self.seen.remove(&done.thread.tid().as_raw());
        self.add(op, stack);
        self.last_op_at = Instant::now();
    }

    fn prints(&mut self, bytes: &[u8]) {
        self.stores();
        self.counter.feed(bytes);
        let acks = usize::try_from(self.counter.acks()).unwrap_or(usize::MAX);
        self.trace.acks.resize(acks.max(self.trace.acks.len()), self.trace.ops.len());
        let known = self.trace.said.len();
        self.trace.said.extend_from_slice(&self.counter.said()[known..]);
        if self.counter.acks() >= self.acks_of_a_run() {
            self.enough_acks_at.get_or_insert_with(Instant::now);
        }
    }

    fn trespasses(&mut self, thread: &Stopped) {
        if let Some(witness) = &mut self.witness {
            let asked = Asked::unknown(Call::Open);
            self.trespassed_at = witness.look(&asked, thread).into_iter().next();
        }
    }

    fn unfollowed(&mut self, what: Unfollowed) {
        self.unfollowed.insert(what);
    }

    fn enough(&self) -> bool {
        self.overflowed() || self.had_enough_acks()
    }
}
