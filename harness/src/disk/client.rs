//! The process that serves disks, and how it is spoken to.

use std::fs::File;
use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{BackgroundSession, Config, Session, SessionACL};

use super::log::Tick;
use super::protocol::{Answer, CONTROL, Command};
use super::server::{Disks, Served, TOLD};
use crate::error::{Context, Error, Result};
use crate::os::mount;
use crate::os::process;
use crate::os::shared::Counters;

/// A process that serves disks below a directory, for as long as a process of this run lives. It is no
/// child of ours: whoever ends all his children does not end it.
pub struct Server {
    home: PathBuf,
    ticks: Arc<Counters>,
    _alive: PipeWriter,
}

impl Server {
    /// Starts it, in the mounts of this process, which nobody else should share. Disks to record on are in
    /// `home`, an empty directory.
    pub fn start(home: &Path) -> Result<Self> {
        let (mut says, told) = io::pipe().context("make a pipe")?;
        let (mut ended, alive) = io::pipe().context("make a pipe")?;
        let ticks = Arc::new(Counters::new(2 * TOLD).context("share memory")?);
        let (mut alive, mut told) = (Some(alive), Some(told));
        process::fork_detached(c"ct-disks", || {
            drop(alive.take());
            let Some(mut told) = told.take() else { return };
            // Ctrl-C is for the coordinator, whose end is the end of this.
            let served = crate::os::signals::ignore_interrupts().and_then(|()| serve(home, &ticks));
            let _session = match served {
                Ok(session) => session,
                // If nobody listens any more, nobody needs to know.
                Err(error) => return drop(write!(told, "{error}")),
            };
            let ready = told.write_all(READY.as_bytes());
            drop(told);
            if ready.is_ok() {
                // Nobody writes: this returns when all of the run have ended.
                let _ = ended.read(&mut [0]);
            }
        })
        .context("fork the server of the disks")?;
        drop(told.take());
        let mut said = String::new();
        (&mut says)
            .take(512)
            .read_to_string(&mut said)
            .context("wait for the server of the disks")?;
        match (said.as_str(), alive) {
            (READY, Some(alive)) => Ok(Self { home: home.to_owned(), ticks, _alive: alive }),
            (why, _) => Err(cannot_serve(why)),
        }
    }

    /// A way to speak to it.
    pub fn client(&self) -> Result<Client> {
        let path = self.home.join(CONTROL);
        let control = File::options().read(true).write(true).open(&path);
        let control = control.context(format_args!("open {}", path.display()))?;
        Ok(Client { control, home: self.home.clone(), ticks: Arc::clone(&self.ticks) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // If it stays, it goes with the mounts of this process.
        let _ = mount::detach(&self.home);
    }
}

fn cannot_serve(why: &str) -> Error {
    Error::lacking(format!("cannot serve disks by FUSE: {why}"))
        .help("run as root, and load the module `fuse`; `crashtest doctor` shows what is missing")
}

/// What the server says when it serves.
const READY: &str = "ready";

fn serve(home: &Path, ticks: &Arc<Counters>) -> io::Result<BackgroundSession> {
    process::serve_disks_under_pressure();
    let disks = Arc::new(Disks::telling(Arc::clone(ticks), name_of_run(home)));
    let session = session(home, &disks)?;
    std::thread::spawn(move || disks.look_after());
    session.spawn()
}

/// What shows in `losetup` of which run a disk is.
fn name_of_run(home: &Path) -> String {
    home.display().to_string().replace('/', "!")
}

fn session(place: &Path, disks: &Arc<Disks>) -> io::Result<Session<Served>> {
    let device = File::options().read(true).write(true).open("/dev/fuse");
    let device =
        device.map_err(|error| io::Error::new(error.kind(), format!("/dev/fuse: {error}")))?;
    mount::fuse(device.as_raw_fd(), place)?;
    let served = Served { disks: Arc::clone(disks) };
    let mut config = Config::default();
    // Workers look at the same time, and record at the same time.
    config.n_threads = Some(THREADS);
    Session::from_fd(served, OwnedFd::from(device), SessionACL::Owner, config)
}

/// How many threads answer.
const THREADS: usize = 2;

/// A way to speak to the server.
pub struct Client {
    control: File,
    home: PathBuf,
    ticks: Arc<Counters>,
}

impl Client {
    /// A disk to record on, as a file. `losetup` shows its name, and it is to be seen there of which run
    /// it is.
    #[must_use]
    pub fn file(&self, slot: u32) -> PathBuf {
        self.home.join(format!("{}!{slot}", name_of_run(&self.home)))
    }

    /// How many things have happened to a disk since it is recorded.
    #[must_use]
    pub fn now(&self, slot: u32) -> Tick {
        Tick(self.ticks.get(usize::try_from(slot).unwrap_or(0)))
    }

    /// How many MiB were written to a disk since it is recorded.
    #[must_use]
    pub fn written_mib(&self, slot: u32) -> u32 {
        self.ticks.get(usize::try_from(slot).unwrap_or(0) + TOLD)
    }

    /// Has the server do something.
    pub fn ask(&self, command: &Command) -> Result<Answer> {
        let what = "speak to the server of the disks";
        let json = serde_json::to_vec(command).context(what)?;
        self.control.write_all_at(&json, 0).context(what)?;
        let (mut answer, mut piece) = (Vec::new(), vec![0; 1 << 18]);
        loop {
            let count = self.control.read_at(&mut piece, answer.len() as u64).context(what)?;
            answer.extend_from_slice(&piece[..count]);
            if count < piece.len() {
                break;
            }
        }
        match serde_json::from_slice(&answer).context(what)? {
            Answer::Wrong(why) => Err(Error::internal(format!("cannot {what}: {why}"))),
            answer => Ok(answer),
        }
    }

    /// Has the server do something that has no result.
    pub fn tell(&self, command: &Command) -> Result<()> {
        self.ask(command).map(drop)
    }
}
