//! Records what a disk sees while a subject runs on it, and brings write-back about meanwhile.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::client::Client;
use super::log::Tick;
use super::plan::{Mode, WriteBack};
use crate::error::{Context, Result};
use crate::file_system::FileSystem;
use crate::inject::resident::Observer;
use crate::os::mount;

/// Watches a subject.
pub struct Scribe<'a> {
    client: &'a Client,
    slot: u32,
    fs: FileSystem,
    place: &'a Path,
    write_back: WriteBack,
    /// A file that is not the subject's.
    other: File,
    /// When each op was about to be made.
    pub begun: Vec<Tick>,
    /// When each ack was given.
    pub acked: Vec<Tick>,
    /// When write-back was brought about, if at one boundary.
    pub brought: Option<Tick>,
}

impl<'a> Scribe<'a> {
    /// For a subject on the disk `slot`, which is mounted at `place`.
    pub fn new(
        (client, slot): (&'a Client, u32),
        (fs, place): (FileSystem, &'a Path),
        write_back: WriteBack,
    ) -> Result<Self> {
        let path = place.join("other");
        let other = File::create(&path).context(format_args!("make {}", path.display()))?;
        let (begun, acked, brought) = (Vec::new(), Vec::new(), None);
        Ok(Self { client, slot, fs, place, write_back, other, begun, acked, brought })
    }

    /// Now, as the disk counts.
    #[must_use]
    pub fn now(&self) -> Tick {
        self.client.now(self.slot)
    }

    /// Has everything written out.
    pub fn sync(&self) -> Result<()> {
        mount::sync_file_system(&self.other).context("sync the disk")
    }

    fn bring_about(&self) -> io::Result<()> {
        match self.write_back.mode {
            Mode::Never => Ok(()),
            Mode::Sync => mount::sync_file_system(&self.other),
            Mode::Commit => self.commit(),
            Mode::Other => self.sync_other(),
            Mode::Slow => {
                start_writing(self.place)?;
                self.commit()
            }
        }
    }

    /// Has the file system commit its metadata, as its timer does.
    fn commit(&self) -> io::Result<()> {
        match self.fs {
            FileSystem::Btrfs => mount::commit_btrfs(&self.other),
            // It has one journal: what syncs one inode commits all metadata. No data is to be waited for.
            _ => {
                let mode = self.other.metadata()?.permissions().mode();
                self.other.set_permissions(fs::Permissions::from_mode(mode ^ 0o100))?;
                self.other.sync_all()
            }
        }
    }

    fn sync_other(&self) -> io::Result<()> {
        (&self.other).write_all(b".")?;
        self.other.sync_all()
    }
}

/// Has the data of all files below a directory written, and does not wait for it.
fn start_writing(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            start_writing(&entry.path())?;
        } else if kind.is_file()
            && let Ok(file) = File::open(entry.path())
        {
            mount::start_writing(&file)?;
        }
    }
    Ok(())
}

impl Observer for Scribe<'_> {
    fn between(&mut self, ops: usize) -> Result<()> {
        let here = self.write_back.before.is_none_or(|before| before == ops);
        if here {
            self.bring_about().context("have a disk written")?;
            self.brought = Some(self.now()).filter(|_| self.write_back.before.is_some());
        }
        if self.begun.len() <= ops {
            let now = self.now();
            self.begun.resize(ops + 1, now);
        }
        Ok(())
    }

    fn acked(&mut self) -> Result<()> {
        let now = self.now();
        self.acked.push(now);
        Ok(())
    }

    fn written_mib(&self) -> u32 {
        self.client.written_mib(self.slot)
    }
}
