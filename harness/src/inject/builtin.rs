//! Built-in strategies: run in forked children that strike at themselves (see `hand`), a few at
//! a time; then each survivor is read, loaded as the program's next start would, and saved to.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crashtest_targets::{Disk, Origin, read_file};

use super::builtin_recorder;
use super::hand::{self, Done, Hand};
use crate::error::{Context, Result};
use crate::fault::{Fault, Injection, Struck};
use crate::inject::{Injector, Left, Recovered};
use crate::lab;
use crate::outcome::{
    Check, Content, InMemory, Load, Loaded, NextSave, Outcome, Recovery, Step, Survivor,
};
use crate::plan::Sites;
use crate::subject::BuiltIn;
use crate::volume::{Filled, Volume};

/// Does the trials of one built-in strategy in one room.
pub struct BuiltInInjector<'a> {
    subject: &'a BuiltIn,
    sites: &'a Sites,
    slots: Vec<Slot>,
    hand: Hand,
    /// The small disk that it works on, if it does.
    volume: Option<Rc<Volume>>,
    keep: Option<PathBuf>,
}

/// The directory of one of the trials that are under way together.
pub(super) struct Slot {
    /// Relative to the working directory: such paths are looked up faster, and a trial looks up a
    /// dozen.
    pub(super) directory: PathBuf,
    state: PathBuf,
    /// The name of the state file.
    file: &'static str,
    /// What lies beside the state file.
    others: Vec<OsString>,
}

/// How many bytes of state may be in the trials that are under way together.
const TOGETHER_BYTES_MAX: usize = 1 << 20;

impl<'a> BuiltInInjector<'a> {
    /// An injector that works in `room`, which becomes the working directory.
    pub fn new(
        subject: &'a BuiltIn,
        sites: &'a Sites,
        room: &Path,
        volume: Option<Rc<Volume>>,
    ) -> Result<Self> {
        std::env::set_current_dir(room).context(format_args!("enter {}", room.display()))?;
        // On a full disk one would take the space of the others.
        let together = match volume {
            Some(_) => 1,
            None => TOGETHER_BYTES_MAX / subject.first_content().len().max(1),
        };
        let slots: Vec<_> = (0..together.clamp(1, hand::TOGETHER_MAX))
            .map(|index| Slot::new(index, subject.strategy.state_file()))
            .collect();
        for slot in &slots {
            fs::create_dir_all(&slot.directory)
                .and_then(|()| slot.names())
                .and_then(|names| {
                    names.iter().try_for_each(|name| remove(&slot.directory.join(name)))
                })
                .context(format_args!("make {}", slot.directory.display()))?;
        }
        Ok(Self {
            subject,
            sites,
            slots,
            hand: Hand::start(subject, volume.as_deref())?,
            volume,
            keep: None,
        })
    }

    fn outcome(&mut self, index: usize, fault: &Fault, done: Done) -> Result<Outcome> {
        let slot = &mut self.slots[index];
        let survivor = slot.survivor(self.subject).context("read what is left")?;
        if let Some(keep) = self.keep.take() {
            lab::copy_tree(&slot.directory, &keep)
                .context(format_args!("keep a copy in {}", keep.display()))?;
        }
        if let Some(volume) = &self.volume {
            volume.release()?;
        }
        let recovery = slot.recover(self.subject).context("read what is left")?;
        let on_disk = |(path, length): (PathBuf, usize)| {
            let bytes = match survivor.files.get(&path) {
                Some(Content::Bytes(bytes)) => &bytes[..length.min(bytes.len())],
                _ => &[],
            };
            (path, self.subject.strategy.settled(bytes).to_vec())
        };
        let Done { exit, acks, account, struck } = done;
        let acks_before = account.as_ref().and_then(|account| account.acks_before);
        let (injection, steps, unsynced) = match account {
            Some(account) => {
                let bytes = account.unsynced.into_iter().map(on_disk).collect();
                let names = account.names.into_iter().collect();
                (account.injection, account.steps, InMemory { bytes, names })
            }
            None if struck => (Injection::At(self.struck(fault)), Vec::new(), InMemory::default()),
            None => (Injection::NotReached, Vec::new(), InMemory::default()),
        };
        Ok(Outcome {
            acks,
            acks_before,
            steps,
            unsynced,
            survivor,
            recovery,
            ..Outcome::new(fault.clone(), injection, exit)
        })
    }

    /// What a kill has met: a child that is killed at once gives no account.
    fn struck(&self, fault: &Fault) -> Struck {
        match fault {
            Fault::Kill(strike) | Fault::ShortWrite(strike) => Struck::Call {
                call: strike.call,
                path: self.sites.sites.get(strike.op.0).map(|s| s.path.clone()).unwrap_or_default(),
                point: strike.point,
            },
            Fault::KillAfter { delay_us } => Struck::Moment { delay_us: *delay_us },
            Fault::Errno(_)
            | Fault::DiskFull(_)
            | Fault::PowerLoss(_)
            | Fault::PowerCut(_)
            | Fault::AtRest(_)
            | Fault::Concurrent(_)
            | Fault::Parted(_) => Struck::Unseen,
        }
    }
}

impl Injector for BuiltInInjector<'_> {
    fn together(&self) -> usize {
        self.slots.len()
    }

    fn inject(&mut self, faults: &[Fault]) -> Result<Vec<Outcome>> {
        for slot in self.slots.iter_mut().take(faults.len()) {
            slot.reset(self.subject)
                .context(format_args!("prepare {}", slot.directory.display()))?;
        }
        let mut filled = Filled::ToThat;
        if let (Some(volume), [Fault::DiskFull(full)]) = (&self.volume, faults) {
            filled = volume.fill(full.axis, full.free)?;
        }
        let done = self.hand.strike(faults)?;
        let trials = faults.iter().zip(done).enumerate();
        let outcomes: Vec<_> = trials
            .map(|(index, (fault, done))| self.outcome(index, fault, done))
            .collect::<Result<_>>()?;
        match (&self.volume, &outcomes[..]) {
            (Some(volume), [one]) if filled == Filled::NotAtAll && one.injection.struck() => {
                Err(volume.too_small(self.subject.strategy.name(), &one.injection))
            }
            _ => Ok(outcomes),
        }
    }

    fn recover(&mut self, left: &Left) -> Result<Option<Recovered>> {
        let slot = &mut self.slots[0];
        slot.fill(left).context("show a survivor")?;
        let trace = builtin_recorder::record_recovery(self.subject, &slot.directory)?;
        // The acks of built-ins promise; their end does not.
        Ok(Some(Recovered { trace, ended: false }))
    }

    fn confront(&mut self, left: &Left) -> Result<(Vec<Check>, Recovery)> {
        let slot = &mut self.slots[0];
        let shown = slot.fill(left).and_then(|()| slot.recover(self.subject));
        // What the recovery left goes with the directory.
        slot.others.clear();
        Ok((Vec::new(), shown.context("show a survivor")?))
    }

    fn explain(&mut self, fault: &Fault) -> Result<Vec<Step>> {
        let outcomes = self.inject(std::slice::from_ref(fault))?;
        Ok(outcomes.into_iter().next().map(|outcome| outcome.steps).unwrap_or_default())
    }

    fn keep_in(&mut self, directory: PathBuf) {
        self.keep = Some(directory);
    }
}

impl Slot {
    fn new(index: usize, file: &'static str) -> Self {
        Self::at(PathBuf::from(hand::slot_name(index)), file)
    }

    pub(super) fn at(directory: PathBuf, file: &'static str) -> Self {
        Self { state: directory.join(file), file, directory, others: Vec::new() }
    }

    /// Makes the directory what is left of a run.
    fn fill(&self, left: &Left) -> io::Result<()> {
        lab::remove_tree(&self.directory)?;
        fs::create_dir_all(&self.directory)?;
        left.unfold(&self.directory)
    }

    fn names(&self) -> io::Result<Vec<OsString>> {
        fs::read_dir(&self.directory)?.map(|entry| Ok(entry?.file_name())).collect()
    }

    /// Leaves nothing in the directory but version 0.
    fn reset(&mut self, subject: &BuiltIn) -> io::Result<()> {
        for name in std::mem::take(&mut self.others) {
            remove(&self.directory.join(name))?;
        }
        fs::write(&self.state, subject.first_content())
    }

    fn survivor(&self, subject: &BuiltIn) -> io::Result<Survivor> {
        let mut survivor = self.bytes(subject)?;
        for content in survivor.files.values_mut() {
            if let Content::Bytes(bytes) = content {
                bytes.truncate(subject.strategy.settled(bytes).len());
            }
        }
        Ok(survivor)
    }

    /// What is there, byte by byte.
    pub(super) fn bytes(&self, subject: &BuiltIn) -> io::Result<Survivor> {
        let mut survivor = Survivor::default();
        match read_file(&self.state, subject.first_content().len()) {
            Ok(bytes) => {
                survivor.files.insert(self.file.into(), Content::Bytes(bytes));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(survivor)
    }

    /// Loads what is left as the next start of the program would, and saves once more.
    pub(super) fn recover(&mut self, subject: &BuiltIn) -> io::Result<Recovery> {
        let attempt = catch_unwind(AssertUnwindSafe(|| self.load_and_save(subject)));
        let (load, next_save) = attempt
            .unwrap_or_else(|_| (Load::Failed("the load panicked".to_owned()), NextSave::NotTried));
        self.others = self.names()?;
        self.others.retain(|name| name != self.file);
        let known = subject.strategy.companions();
        let leftover = |name: &&OsString| known.iter().all(|known| *name != known);
        let leftovers = self.others.iter().filter(leftover).map(PathBuf::from).collect();
        Ok(Recovery { load, loaded: Loaded::Unknown, next_save, leftovers })
    }

    fn load_and_save(&self, subject: &BuiltIn) -> (Load, NextSave) {
        let load = match subject.strategy.load(&self.directory) {
            Ok(loaded) if loaded.origin == Origin::Default => Load::Default,
            Ok(_) => Load::Loaded,
            Err(error) => Load::Failed(error.to_string()),
        };
        (load, save_again(subject, &self.directory))
    }
}

/// Starts the strategy in a directory and saves the next version.
pub(super) fn save_again(subject: &BuiltIn, directory: &Path) -> NextSave {
    let (strategy, next) = (subject.strategy, subject.next());
    let mut disk = Disk::default();
    let saved = strategy
        .start(&mut disk, directory)
        .and_then(|()| strategy.save(&mut disk, directory, next, &mut |_| {}));
    match (saved, read_file(&directory.join(strategy.state_file()), next.json.len())) {
        (Ok(()), Ok(bytes)) if strategy.holds(&bytes, next) => NextSave::Saved,
        (Ok(()), Ok(_)) => NextSave::Failed("what was saved is not what is there".to_owned()),
        (Ok(()), Err(error)) => NextSave::Failed(error.to_string()),
        (Err(error), _) => NextSave::Failed(format!("the next save failed: {error}")),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}
