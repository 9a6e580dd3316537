//! A subject on a disk whose power goes later: it runs unbroken, and is watched between its ops.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::builtin::Slot;
use super::builtin_recorder;
use super::command::CommandInjector;
use super::decode::{Asked, Detail};
use super::live::LiveResident;
use super::recorder::Recorder;
use super::tracer::{Done, Unfollowed, Watcher};
use crate::armed::Action;
use crate::error::{Context, Error, Result};
use crate::lab;
use crate::op::Trace;
use crate::os::ptrace::Stopped;
use crate::outcome::{Check, Recovery, Survivor};
use crate::subject::{BuiltIn, Kind, Prepared};

/// Sees an unbroken run as it goes on.
pub trait Observer {
    /// So many ops have been done, and the next is about to be made; the subject waits meanwhile.
    fn between(&mut self, ops: usize) -> Result<()>;
    /// An ack was given.
    fn acked(&mut self) -> Result<()>;
    /// How many MiB were written, as far as it knows.
    fn written_mib(&self) -> u32 {
        0
    }
}

/// An observer that sees nothing.
pub struct Nobody;

impl Observer for Nobody {
    fn between(&mut self, _ops: usize) -> Result<()> {
        Ok(())
    }

    fn acked(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A run that was observed.
#[derive(Clone, Debug)]
pub struct Observed {
    /// What the subject did.
    pub trace: Trace,
    /// Whether its end promises that all of it is saved.
    pub ended: bool,
}

/// What is in the trial directory, and what the next start makes of it.
#[derive(Clone, Debug)]
pub enum Sight {
    /// The state files, what the user's own checks say, and what the subject's recovery makes of it.
    Seen(Survivor, Vec<Check>, Recovery),
    /// The file system can't be read; what it says.
    Unreadable(String),
}

/// Lives on a disk.
pub trait Resident {
    /// Makes the trial directory as it is before a run.
    fn move_in(&mut self) -> Result<()>;
    /// Runs unbroken.
    fn run(&mut self, observer: &mut dyn Observer) -> Result<Observed>;
    /// Looks at what is there, then lets the subject recover.
    fn look(&mut self, acks: u64) -> Result<Sight>;
    /// Keeps a copy of what is there at the next look, before any check or recovery.
    fn keep_in(&mut self, directory: PathBuf);
}

/// The resident for a subject, on the disk that is mounted at `place` from time to time.
pub fn of_subject<'a>(prepared: &'a Prepared, place: &Path) -> Result<Box<dyn Resident + 'a>> {
    match &prepared.kind {
        Kind::BuiltIn(subject) => Ok(Box::new(BuiltInResident {
            subject,
            slot: Slot::at(place.join(DIRECTORY), subject.strategy.state_file()),
            keep: None,
        })),
        Kind::Command(learned) => {
            Ok(Box::new(CommandInjector::new(learned, prepared, place, None)?))
        }
        Kind::Live(command) => Ok(Box::new(LiveResident::new(command, place)?)),
        Kind::Bot(_) => Err(Error::usage("a program with a broker has no disk of its own")),
        Kind::Recorded(_) => Err(Error::usage("a recording can't be run on a disk")
            .help("the scenario poweroff derives what a loss of power leaves of it")),
    }
}

/// Whether a file system says that it is damaged.
pub fn is_damage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EUCLEAN | libc::EBADMSG))
}

/// The trial directory on the disk.
const DIRECTORY: &str = "dir";

struct BuiltInResident<'a> {
    subject: &'a BuiltIn,
    slot: Slot,
    keep: Option<PathBuf>,
}

impl BuiltInResident<'_> {
    fn directory(&self) -> PathBuf {
        self.slot.directory.clone()
    }
}

impl Resident for BuiltInResident<'_> {
    fn move_in(&mut self) -> Result<()> {
        let (directory, subject) = (self.directory(), self.subject);
        let make = || {
            lab::remove_tree(&directory)?;
            fs::create_dir(&directory)?;
            match subject.first_save {
                true => Ok(()),
                false => fs::write(
                    directory.join(subject.strategy.state_file()),
                    subject.first_content(),
                ),
            }
        };
        make().context(format_args!("make {}", directory.display()))
    }

    fn run(&mut self, observer: &mut dyn Observer) -> Result<Observed> {
        let (trace, _) = builtin_recorder::save(self.subject, &self.directory(), observer)?;
        // The acks of built-ins promise; their end does not.
        Ok(Observed { trace, ended: false })
    }

    fn look(&mut self, _acks: u64) -> Result<Sight> {
        let what = "read what is left";
        let survivor = match self.slot.bytes(self.subject) {
            Ok(survivor) => survivor,
            Err(error) if is_damage(&error) => return Ok(Sight::Unreadable(error.to_string())),
            Err(error) => return Err(error).context(what),
        };
        if let Some(keep) = self.keep.take() {
            let what = format!("keep a copy in {}", keep.display());
            lab::copy_tree(&self.directory(), &keep).context(what)?;
        }
        let recovery = self.slot.recover(self.subject).context(what)?;
        Ok(Sight::Seen(survivor, Vec::new(), recovery))
    }

    fn keep_in(&mut self, directory: PathBuf) {
        self.keep = Some(directory);
    }
}

/// Writes a program's run down, and shows it to an observer.
pub struct Watched<'a, 'b> {
    /// Writes down.
    pub recorder: Recorder<'a>,
    observer: RefCell<&'b mut dyn Observer>,
    /// What went wrong with the observer.
    pub failed: Option<Error>,
}

impl<'a, 'b> Watched<'a, 'b> {
    /// Shows what `recorder` writes down to `observer`.
    pub fn new(recorder: Recorder<'a>, observer: &'b mut dyn Observer) -> Self {
        Self { recorder, observer: RefCell::new(observer), failed: None }
    }

    fn tell(&mut self, tell: impl FnOnce(&mut dyn Observer) -> Result<()>) {
        if self.failed.is_none() {
            self.failed = tell(&mut **self.observer.borrow_mut()).err();
        }
    }
}

impl Watcher for Watched<'_, '_> {
    fn asked(&mut self, asked: &Asked, thread: &Stopped) -> Action {
        let action = self.recorder.asked(asked, thread);
        let ops = self.recorder.trace.ops.len();
        self.tell(|observer| observer.between(ops));
        action
    }

    fn detail(&self) -> Detail {
        self.recorder.detail()
    }

    fn wants_results(&self) -> bool {
        true
    }

    fn done(&mut self, done: Done<'_>) {
        self.recorder.done(done);
    }

    fn prints(&mut self, bytes: &[u8]) {
        let before = self.recorder.trace.acks.len();
        self.recorder.prints(bytes);
        for _ in before..self.recorder.trace.acks.len() {
            self.tell(|observer| observer.acked());
        }
    }

    fn unfollowed(&mut self, what: Unfollowed) {
        self.recorder.unfollowed(what);
    }

    fn enough(&self) -> bool {
        self.failed.is_some() || self.recorder.enough()
    }
}
