//! Serves disks from memory as files of a FUSE file system, and records what is written to them.
//!
//! One process serves all disks of a run. It has some threads and never forks: most answer the kernel,
//! one looks after what is in flight. When it ends, however that comes, the kernel aborts
//! the connection: whoever waits for a disk gets an error and does not wait for ever.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, WriteFlags,
};

use super::layout::Layout;
use super::log::Tick;
use super::protocol::{Answer, CONTROL, Command};
use super::store::{Layer, Recording};
use super::view::View;
use crate::os::shared::Counters;

/// How long after the last request writes in flight are answered: the file system waits for them.
const HELD_UNTIL_IDLE: Duration = Duration::from_millis(20);
/// How many requests may be in flight.
const IN_FLIGHT_MAX: u16 = 4096;
/// How many bytes of writes are held at most.
const HELD_BYTES_MAX: usize = 16 << 20;
const ROOT_INO: u64 = 1;
const CONTROL_INO: u64 = 2;
const DISK_INO: u64 = 16;
/// The kernel asks each time: a disk changes its size.
const NO_TIME: Duration = Duration::ZERO;

/// Of how many disks it is told how much has happened to them, and then how many MiB were written; no
/// machine has so many workers.
pub const TOLD: usize = 4096;

/// Disks from this number on are for looking only: see [`View`].
pub const VIEWED: u32 = 1 << 24;

/// See [`VIEWED`].
#[must_use]
pub fn is_viewed(slot: u32) -> bool {
    slot & VIEWED != 0
}

/// A write that is in flight.
struct Held {
    asked: Tick,
    offset: u64,
    bytes: Vec<u8>,
    reply: ReplyWrite,
}

/// One disk.
#[derive(Default)]
struct Slot {
    top: Layer,
    recording: Option<Recording>,
    hold: Option<Layout>,
    held: Vec<Held>,
    last_request: Option<Instant>,
    /// Where the moment is told to whoever asks often.
    told: Option<(Arc<Counters>, usize)>,
}

#[derive(Default)]
struct State {
    ticks: Option<Arc<Counters>>,
    /// The disks to look at; each is changed on its own, while others are used.
    views: HashMap<u32, Arc<Mutex<View>>>,
    /// When their time is up.
    ends: HashMap<u32, Instant>,
    slots: HashMap<u32, Slot>,
    images: HashMap<u32, Arc<Layer>>,
    recordings: HashMap<u32, Arc<Recording>>,
    numbers: u32,
    /// What each open control file is to read.
    answers: HashMap<u64, Vec<u8>>,
    handles: u64,
}

/// The disks of a run.
#[derive(Default)]
pub struct Disks {
    run: String,
    state: Mutex<State>,
    /// Something may have to be looked after.
    stirred: Condvar,
}

impl Disks {
    /// Tells how many things have happened to each disk in `ticks`, by its number. `run` says of which run
    /// they are.
    #[must_use]
    pub fn telling(ticks: Arc<Counters>, run: String) -> Self {
        let state = State { ticks: Some(ticks), ..State::default() };
        Self { state: Mutex::new(state), run, ..Self::default() }
    }

    /// Obeys, without keeping others waiting for what takes long.
    fn obey(&self, command: Command) -> Answer {
        let number = match &command {
            Command::Show(number, ..) | Command::Works(number) => *number,
            Command::ForgetRecording(recording) => {
                let views: Vec<_> = self.state().views.values().cloned().collect();
                for view in views {
                    locked(&view).forget(*recording);
                }
                return self.state().obey(command);
            }
            _ => return self.state().obey(command),
        };
        let mut state = self.state();
        let view = Arc::clone(state.views.entry(number).or_default());
        let Command::Show(_, recorded, image, limit_ms) = command else {
            drop(state);
            return Answer::Works(!locked(&view).failed);
        };
        // The time of the image before must not end this one.
        state.ends.remove(&number);
        let Some(recording) = state.recordings.get(&recorded).cloned() else {
            return Answer::Wrong(format!("there is no recording {recorded}"));
        };
        drop(state);
        let name = format!("{}!{number}", self.run);
        let shown = locked(&view).show(&name, (recorded, &recording), &image);
        self.state().ends.insert(number, Instant::now() + Duration::from_millis(limit_ms));
        match shown {
            Ok(shown) => Answer::Shown(std::process::id(), shown.file, shown.is_new, shown.touched),
            Err(error) => Answer::Wrong(format!("cannot show an image: {error}")),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Answers writes in flight in time, and lets disks fail whose time is up. Never ends.
    pub fn look_after(&self) {
        let mut state = self.state();
        loop {
            let now = Instant::now();
            let mut next: Option<Instant> = None;
            for slot in state.slots.values_mut() {
                let due = slot.look_after(now);
                next = [next, due].into_iter().flatten().min();
            }
            let over = state.ends.extract_if(|_, ends| *ends <= now).map(|(number, _)| number);
            for number in over.collect::<Vec<_>>() {
                if let Some(view) = state.views.get(&number) {
                    locked(view).fail();
                }
            }
            next = state.ends.values().copied().chain(next).min();
            state = match next {
                Some(next) => {
                    let wait = next.saturating_duration_since(now);
                    let waited = self.stirred.wait_timeout(state, wait);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.stirred.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked has left no half-made change that another could trip over.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slot {
    /// Does what is due, and says when the next is.
    fn look_after(&mut self, now: Instant) -> Option<Instant> {
        let idle = self.last_request.map(|last| last + HELD_UNTIL_IDLE);
        let mut due = idle.filter(|_| !self.held.is_empty());
        if due.is_some_and(|due| due <= now) {
            self.release();
            due = None;
        }
        due
    }

    /// Carries out all that is in flight.
    fn release(&mut self) {
        for Held { asked, offset, bytes, reply } in std::mem::take(&mut self.held) {
            let length = bytes.len();
            self.carry_out(asked, offset, bytes.into());
            reply.written(u32::try_from(length).unwrap_or(u32::MAX));
        }
    }

    fn carry_out(&mut self, asked: Tick, offset: u64, bytes: Cow<'_, [u8]>) {
        self.top.write(offset, &bytes);
        if let Some(recording) = &mut self.recording {
            recording.wrote(asked, offset, bytes.into_owned());
        }
        self.tell();
    }

    /// Tells the moment.
    fn tell(&self) {
        if let (Some((ticks, number)), Some(recording)) = (&self.told, &self.recording) {
            ticks.set(*number, recording.log().end.0);
            let mib = u32::try_from(recording.bytes() >> 20).unwrap_or(u32::MAX);
            ticks.set(number + TOLD, mib);
        }
    }

    fn asked(&mut self) -> Tick {
        self.last_request = Some(Instant::now());
        let asked = self.recording.as_mut().map(Recording::tick).unwrap_or_default();
        self.tell();
        asked
    }

    fn put(&mut self, top: Layer) {
        self.release();
        (self.top, self.recording, self.hold) = (top, None, None);
    }
}

impl State {
    fn slot(&mut self, slot: u32) -> &mut Slot {
        self.slots.entry(slot).or_default()
    }

    fn number(&mut self) -> u32 {
        self.numbers += 1;
        self.numbers
    }

    fn obey(&mut self, command: Command) -> Answer {
        match command {
            Command::Blank(slot, bytes) => self.slot(slot).put(Layer::blank(bytes)),
            Command::Keep(slot) => {
                let slot = self.slot(slot);
                slot.release();
                let kept = Arc::new(std::mem::take(&mut slot.top));
                slot.top = kept.above();
                let number = self.number();
                self.images.insert(number, kept);
                return Answer::Number(number);
            }
            Command::Load(slot, image) => {
                let Some(image) = self.images.get(&image).cloned() else {
                    return Answer::Wrong(format!("there is no start image {image}"));
                };
                self.slot(slot).put(image.above());
            }
            Command::Read(slot, offset, length) => {
                return Answer::Bytes(self.slot(slot).top.read(offset, length));
            }
            Command::Record(number, hold) => {
                let ticks = self.ticks.clone();
                let slot = self.slot(number);
                slot.told = ticks.zip(usize::try_from(number).ok());
                slot.release();
                let base = Arc::new(std::mem::take(&mut slot.top));
                slot.top = base.above();
                (slot.recording, slot.hold) = (Some(Recording::of(base)), hold);
                slot.tell();
            }
            Command::Stop(slot) => {
                let slot = self.slot(slot);
                slot.release();
                slot.hold = None;
                let Some(mut recording) = slot.recording.take() else {
                    return Answer::Wrong("nothing is being recorded".to_owned());
                };
                // What was acknowledged after the last write is owed, too.
                recording.tick();
                let (log, number) = (recording.log().clone(), self.number());
                self.recordings.insert(number, Arc::new(recording));
                return Answer::Log(number, log);
            }
            Command::Show(..) | Command::Works(_) => {
                return Answer::Wrong("this is no command for a recorded disk".to_owned());
            }
            Command::ForgetRecording(recording) => {
                self.recordings.remove(&recording);
            }
        }
        Answer::Done
    }

    fn attributes(&self, ino: INodeNo) -> FileAttr {
        let size = match ino.0.checked_sub(DISK_INO) {
            Some(slot) => {
                let slot = u32::try_from(slot).ok().and_then(|slot| self.slots.get(&slot));
                slot.map_or(0, |slot| slot.top.bytes())
            }
            None => 0,
        };
        let is_root = ino.0 == ROOT_INO;
        FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_root { FileType::Directory } else { FileType::RegularFile },
            perm: if is_root { 0o700 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn disk(&mut self, ino: INodeNo) -> Option<&mut Slot> {
        let slot = u32::try_from(ino.0.checked_sub(DISK_INO)?).ok()?;
        self.slots.get_mut(&slot)
    }
}

/// The file system, as fuser wants it.
pub struct Served {
    /// The disks.
    pub disks: Arc<Disks>,
}

impl Filesystem for Served {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What this kernel does not have makes it slower, and nothing else.
        let wanted = InitFlags::FUSE_ASYNC_DIO | InitFlags::FUSE_MAX_PAGES;
        let _ = config.add_capabilities(wanted);
        let _ = config.set_max_write(1 << 20);
        let _ = config.set_max_background(IN_FLIGHT_MAX);
        let _ = config.set_congestion_threshold(IN_FLIGHT_MAX);
        Ok(())
    }

    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let slot = name.to_str().and_then(|name| name.rsplit_once('!'));
        let slot = slot.and_then(|(_, slot)| slot.parse::<u32>().ok());
        let ino = match slot {
            Some(slot) => DISK_INO + u64::from(slot),
            None if name == CONTROL => CONTROL_INO,
            None => return reply.error(Errno::ENOENT),
        };
        let attributes = self.disks.state().attributes(INodeNo(ino));
        reply.entry(&NO_TIME, &attributes, Generation(0));
    }

    fn getattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        reply.attr(&NO_TIME, &self.disks.state().attributes(ino));
    }

    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<fuser::TimeOrNow>,
        _mtime: Option<fuser::TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // A disk is as large as it is.
        reply.attr(&NO_TIME, &self.disks.state().attributes(ino));
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let mut state = self.disks.state();
        state.handles += 1;
        // Nothing is cached, so that many writes are in flight.
        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        reply.opened(FileHandle(state.handles), flags);
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut state = self.disks.state();
        let size = size as usize;
        if ino.0 == CONTROL_INO {
            let answer = state.answers.get(&handle.0).map(Vec::as_slice).unwrap_or_default();
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(answer.len());
            return reply.data(&answer[from..answer.len().min(from + size)]);
        }
        let Some(slot) = state.disk(ino) else { return reply.error(Errno::EIO) };
        slot.last_request = Some(Instant::now());
        let left = slot.top.bytes().saturating_sub(offset);
        let size = size.min(usize::try_from(left).unwrap_or(usize::MAX));
        let bytes = slot.top.read(offset, size);
        // Others need not wait until the kernel has it.
        drop(state);
        reply.data(&bytes);
    }

    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.disks.state();
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        if ino.0 == CONTROL_INO {
            let answer = match serde_json::from_slice(data) {
                Ok(command) => {
                    drop(state);
                    let answer = self.disks.obey(command);
                    state = self.disks.state();
                    answer
                }
                Err(error) => Answer::Wrong(error.to_string()),
            };
            state.answers.insert(handle.0, serde_json::to_vec(&answer).unwrap_or_default());
            self.disks.stirred.notify_all();
            return reply.written(length);
        }
        let Some(slot) = state.disk(ino) else {
            return reply.error(Errno::EIO);
        };
        let asked = slot.asked();
        if slot.hold.as_ref().is_some_and(|layout| layout.is_data(offset, data)) {
            slot.held.push(Held { asked, offset, bytes: data.to_vec(), reply });
            if slot.held.iter().map(|held| held.bytes.len()).sum::<usize>() > HELD_BYTES_MAX {
                slot.release();
            }
            self.disks.stirred.notify_all();
            return;
        }
        slot.carry_out(asked, offset, Cow::Borrowed(data));
        drop(state);
        reply.written(length);
    }

    fn fallocate(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        // A discard, or zeros: what is read there then is zeros.
        let mut state = self.disks.state();
        let Some(slot) = state.disk(ino) else {
            return reply.error(Errno::EIO);
        };
        let asked = slot.asked();
        let length = length.min(slot.top.bytes().saturating_sub(offset));
        slot.carry_out(asked, offset, vec![0; usize::try_from(length).unwrap_or(0)].into());
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        let mut state = self.disks.state();
        match state.disk(ino) {
            Some(slot) => {
                let asked = slot.asked();
                if let Some(recording) = &mut slot.recording {
                    recording.flushed(asked);
                }
                slot.tell();
                reply.ok();
            }
            None => reply.error(Errno::EIO),
        }
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.disks.state().answers.remove(&handle.0);
        reply.ok();
    }
}
