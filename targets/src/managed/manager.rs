//! The state manager: the state of a bot, kept by one process, changed by any of its threads, and on disk
//! before anybody hears of the change.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use chrono::{DateTime, Utc};

use super::backups::{Backup, Policy, Reason};
use super::broker::{Broker, BrokerError, reconcile};
use super::codec::Codec;
use super::envelope;
use super::event::Event;
use super::state::{Complaint, Order, State, Status, Validation};
use super::store::{self, Found, StoreError};
use crate::storage::{Disk, Storage};
use crate::strategy::STATE_FILE;
use crate::ways;

/// Where copies of backups go that are to survive this machine.
pub trait Remote: Send {
    /// Stores a backup under its name.
    fn put(&mut self, name: &str, bytes: &[u8]) -> Result<(), String>;
}

/// A clock.
pub type Clock = Box<dyn Fn() -> DateTime<Utc> + Send>;

/// How a state is managed.
pub struct Options {
    /// The balance of a bot that has no state yet, in cents.
    pub first_balance: i64,
    /// Digest of the settings.
    pub settings_hash: String,
    /// When backups are made, and how long they are kept.
    pub backups: Policy,
    /// What is done about values that can't be.
    pub validation: Validation,
    /// How states and backups are stored.
    pub codec: Codec,
    /// Where backups are copied.
    pub remote: Option<Box<dyn Remote>>,
    /// The clock.
    pub clock: Clock,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            first_balance: 0,
            settings_hash: String::new(),
            backups: Policy::default(),
            validation: Validation::default(),
            codec: Codec::default(),
            remote: None,
            clock: Box::new(Utc::now),
        }
    }
}

/// Why there is no state manager, or why it could not do what it should.
#[derive(Debug)]
pub enum ManagerError {
    /// The files.
    Store(StoreError),
    /// The state is whole JSON, and no state of a bot.
    Shape(String),
    /// The state holds what can't be.
    Invalid(Complaint),
    /// No order may be sent, for this reason.
    Halted(String),
    /// The broker.
    Broker(BrokerError),
}

impl fmt::Display for ManagerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Shape(why) => {
                write!(f, "the state is whole, and no state of this program: {why}")
            }
            Self::Invalid(complaint) => {
                write!(f, "the state can't be so: {complaint}; restore a backup, or correct it")
            }
            Self::Halted(reason) => write!(f, "no order may be sent: {reason}"),
            Self::Broker(error) => write!(f, "the broker: {error}"),
        }
    }
}

impl std::error::Error for ManagerError {}

impl From<StoreError> for ManagerError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Keeps the state of one directory.
pub struct StateManager {
    directory: PathBuf,
    inner: Mutex<Inner>,
    /// Held while the broker is spoken to; taken before `inner`.
    outside: Mutex<()>,
}

struct Inner {
    /// It holds the lock open.
    disk: Box<dyn Storage + Send>,
    options: Options,
    state: State,
    sequence: u64,
    saved_at: Option<DateTime<Utc>>,
    last_backup: Option<DateTime<Utc>>,
    /// Backups that are not yet copied away, the oldest first.
    to_copy: Vec<(String, Vec<u8>)>,
    events: Vec<Event>,
}

/// How many backups wait for a remote that is down; of more the oldest are given up.
const TO_COPY_MAX: usize = 100;

impl StateManager {
    /// Takes the lock of `directory`, which is made if it is missing, and loads the state.
    pub fn open(directory: &Path, options: Options) -> Result<Self, ManagerError> {
        let mut disk = Box::new(Disk::default());
        store::make_directory(&mut *disk, directory)?;
        Self::open_with(disk, directory, options)
    }

    /// The same in a directory that is there, with other storage calls.
    pub fn open_with(
        mut disk: Box<dyn Storage + Send>,
        directory: &Path,
        options: Options,
    ) -> Result<Self, ManagerError> {
        let failed = |error| StoreError::Io(directory.to_owned(), error);
        store::lock(&mut *disk, directory)?;
        let mut events = store::prepare(&mut *disk, directory).map_err(failed)?;
        let now = (options.clock)();
        let found = store::find(directory, &options.codec)?;
        let (state, sequence, saved_at) = match found {
            None => {
                events.push(Event::Default);
                (State::new(options.first_balance, &options.settings_hash, now), 0, None)
            }
            Some(mut found) => {
                let state = checked(&found, &options, now, &mut events)?;
                store::put_back(&mut *disk, directory, &mut found, &options.codec)
                    .map_err(failed)?;
                events.append(&mut found.events);
                (state, found.sequence, Some(found.saved_at))
            }
        };
        let last_backup = store::last_scheduled(directory);
        let to_copy = Vec::new();
        let inner =
            Inner { disk, options, state, sequence, saved_at, last_backup, to_copy, events };
        Ok(Self {
            directory: directory.to_owned(),
            inner: Mutex::new(inner),
            outside: Mutex::new(()),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A thread that panicked while it changed the state has saved nothing of it.
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A copy of the state.
    #[must_use]
    pub fn state(&self) -> State {
        self.inner().state.clone()
    }

    /// What there is to say since this was last asked.
    pub fn events(&self) -> Vec<Event> {
        std::mem::take(&mut self.inner().events)
    }

    /// Changes the state. When this returns `Ok`, the change is on disk; when it does not, the state is
    /// what it was.
    pub fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> Result<T, ManagerError> {
        let mut inner = self.inner();
        let mut state = inner.state.clone();
        let value = change(&mut state);
        inner.save(&self.directory, state)?;
        Ok(value)
    }

    /// Books realised cash.
    pub fn realise(&self, cents: i64, why: &str) -> Result<(), ManagerError> {
        let now = self.now();
        let events = self.update(|state| state.realise(cents, why, now))?;
        self.inner().events.extend(events);
        Ok(())
    }

    /// Says if the peak has not changed for long.
    #[must_use]
    pub fn peak_alert(&self) -> Option<Event> {
        let inner = self.inner();
        inner.state.peak_alert((inner.options.clock)())
    }

    /// Makes a backup now, with its reason in its name.
    pub fn back_up(&self, reason: &str) -> Result<(), ManagerError> {
        let mut inner = self.inner();
        let state = inner.state.clone();
        inner.save_because(&self.directory, state, Some(Reason::wanted(reason)))
    }

    /// Goes back to a backup: it becomes the newest state, as if it had been saved now.
    pub fn restore(&self, backup: &str) -> Result<(), ManagerError> {
        let mut inner = self.inner();
        let found = store::backup(&self.directory, backup, &inner.options.codec)?;
        let now = (inner.options.clock)();
        let Inner { options, events, .. } = &mut *inner;
        let state = checked(&found, options, now, events)?;
        inner.save_because(&self.directory, state, None)
    }

    /// Sends an order: it is written down first, so that whatever happens then, the next start knows its
    /// id and asks the broker what became of it. An order that was sent is not sent again.
    pub fn submit(&self, order: Order, broker: &mut dyn Broker) -> Result<Status, ManagerError> {
        let _alone = self.alone();
        let id = order.id.clone();
        let recorded = Order { status: Status::Submitting, ..order };
        {
            let mut inner = self.inner();
            if let Some(halt) = &inner.state.halted {
                return Err(ManagerError::Halted(halt.reason.clone()));
            }
            if let Some(known) = inner.state.order(&id) {
                return Ok(known.status);
            }
            let mut state = inner.state.clone();
            state.orders.push(recorded.clone());
            inner.save(&self.directory, state)?;
        }
        let status = match broker.submit(&recorded) {
            Ok(order) => order.status,
            Err(BrokerError::Refused(_)) => Status::Rejected,
            Err(error) => return Err(ManagerError::Broker(error)),
        };
        self.bring_in_line(broker)?;
        Ok(self.inner().state.order(&id).map_or(status, |order| order.status))
    }

    /// Brings the state in line with the broker's ledger, and cancels open orders that nobody knows.
    pub fn reconcile(&self, broker: &mut dyn Broker) -> Result<(), ManagerError> {
        let _alone = self.alone();
        self.bring_in_line(broker)
    }

    fn bring_in_line(&self, broker: &mut dyn Broker) -> Result<(), ManagerError> {
        let ledger = broker.ledger().map_err(ManagerError::Broker)?;
        let done = {
            let mut inner = self.inner();
            let mut state = inner.state.clone();
            let done = reconcile(&mut state, &ledger, (inner.options.clock)());
            if state != inner.state {
                inner.save(&self.directory, state)?;
            }
            inner.events.extend(done.events);
            done.orphans
        };
        for id in done {
            broker.cancel(&id).map_err(ManagerError::Broker)?;
            self.inner().events.push(Event::OrphanCancelled(id));
        }
        Ok(())
    }

    /// What one thread has sent, another must not take for what never came to the broker.
    fn alone(&self) -> MutexGuard<'_, ()> {
        self.outside.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn now(&self) -> DateTime<Utc> {
        (self.inner().options.clock)()
    }
}

/// The state that was found, if it can be one.
fn checked(
    found: &Found,
    options: &Options,
    now: DateTime<Utc>,
    events: &mut Vec<Event>,
) -> Result<State, ManagerError> {
    let mut state: State = serde_json::from_str(&found.state)
        .map_err(|error| ManagerError::Shape(error.to_string()))?;
    events.extend(state.validate(options.validation).map_err(ManagerError::Invalid)?);
    if state.settings_hash != options.settings_hash {
        let now = options.settings_hash.clone();
        let was = std::mem::replace(&mut state.settings_hash, now.clone());
        events.push(Event::SettingsChanged { was, now });
    }
    if now < found.saved_at {
        events.push(Event::ClockWentBack { saved_at: found.saved_at, now });
    }
    Ok(state)
}

impl Inner {
    /// Saves a state that was changed now.
    fn save(&mut self, directory: &Path, state: State) -> Result<(), ManagerError> {
        let updated_at = (self.options.clock)();
        self.save_because(directory, State { updated_at, ..state }, None)
    }

    /// Saves a state, and backs it up if that is wanted or due.
    fn save_because(
        &mut self,
        directory: &Path,
        state: State,
        wanted: Option<Reason>,
    ) -> Result<(), ManagerError> {
        let now = (self.options.clock)();
        if let Some(complaint) = state.complaints().into_iter().next() {
            return Err(ManagerError::Invalid(complaint));
        }
        if let Some(saved_at) = self.saved_at.filter(|saved_at| now < *saved_at) {
            self.events.push(Event::ClockWentBack { saved_at, now });
        }
        let failed = |error| StoreError::Io(directory.join(STATE_FILE), error);
        let json = serde_json::to_vec(&state).map_err(|error| failed(error.into()))?;
        let sequence = self.sequence + 1;
        let stored = self.options.codec.encode(envelope::seal(sequence, now, &json));
        let stored = stored.map_err(failed)?;
        ways::durably(&mut *self.disk, directory, STATE_FILE, &stored).map_err(failed)?;
        (self.state, self.sequence, self.saved_at) = (state, sequence, Some(now));
        let due = self.options.backups.is_due(self.last_backup, now);
        if let Some(reason) = wanted.or(due.then_some(Reason::Schedule)) {
            self.back_up(directory, Backup { at: now, sequence, reason }, stored);
        }
        Ok(())
    }

    /// Backs up what was saved. That this fails is said, and undoes nothing.
    fn back_up(&mut self, directory: &Path, backup: Backup, stored: Vec<u8>) {
        let how = (&self.options.backups, &self.options.codec);
        let name = backup.name();
        if let Err(error) = store::back_up(&mut *self.disk, directory, &backup, &stored, how) {
            self.events.push(Event::BackupFailed(error.to_string()));
            return;
        }
        if backup.reason == Reason::Schedule {
            self.last_backup = Some(backup.at);
        }
        self.events.push(Event::BackedUp(name.clone()));
        let Some(remote) = &mut self.options.remote else { return };
        self.to_copy.push((name, stored));
        let given_up = self.to_copy.len().saturating_sub(TO_COPY_MAX);
        self.to_copy.drain(..given_up);
        while let Some((name, bytes)) = self.to_copy.first() {
            if let Err(why) = remote.put(name, bytes) {
                self.events.push(Event::CopyFailed { backup: name.clone(), why });
                return;
            }
            let (name, _) = self.to_copy.remove(0);
            self.events.push(Event::Copied(name));
        }
    }
}
