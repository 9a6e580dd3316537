//! A served disk as a block device with a file system on it, mounted and unmounted again and again.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::client::Client;
use super::layout::Layout;
use super::protocol::{Answer, Command};
use super::server::is_viewed;
use crate::error::{Context, Error, Result};
use crate::file_system::FileSystem;
use crate::os::memory;
use crate::os::mount::{self, LoopDevice};
use crate::os::process;
use crate::volume;

/// How long mounting a disk, looking at it and unmounting it may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a file system may be in use after all that was started in it was ended.
const BUSY_MAX: Duration = Duration::from_secs(5);

/// One disk, its block device, and the place where it is mounted.
pub struct Disk {
    client: Client,
    slot: u32,
    device: Option<LoopDevice>,
    /// Where the image lies that is shown, if one is.
    shown: Option<PathBuf>,
    place: PathBuf,
    mounted: bool,
    messages: Messages,
    /// When its time began.
    shown_at: Instant,
}

/// How a mount went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mounted {
    /// It is mounted.
    Yes,
    /// The kernel refuses; its reason.
    No(String),
}

/// How an unmount went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmounted {
    /// As it should.
    Yes,
    /// Somebody uses the file system, even after all that was started in it was ended.
    StaysInUse,
}

impl Disk {
    /// A disk without a file system that will be mounted at `place`, an empty directory.
    #[must_use]
    pub fn new(client: Client, slot: u32, place: PathBuf) -> Self {
        let (messages, shown_at) = (Messages::open(), Instant::now());
        let (device, shown, mounted) = (None, None, false);
        Self { client, slot, device, shown, place, mounted, messages, shown_at }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// The number of the disk.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// The way to the server.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What lies below the device.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.shown.clone().unwrap_or_else(|| self.client.file(self.slot))
    }

    /// Makes an empty file system and keeps it as a start image; returns its number.
    pub fn make(&mut self, kind: FileSystem, bytes: u64, scratch: &Path) -> Result<u32> {
        // What the tool writes is a sparse file, and only what it wrote is copied.
        let path = scratch.join(format!("{kind}.img"));
        let what = format!("make {}", path.display());
        let image = File::options().create(true).truncate(true).read(true).write(true).open(&path);
        let image = image.context(&what)?;
        image.set_len(bytes).context(&what)?;
        volume::make_file_system(kind, &path, bytes, false)?;
        self.detach();
        self.client.tell(&Command::Blank(self.slot, bytes))?;
        let disk = self.file();
        let disk = File::options().write(true).open(&disk);
        let disk = disk.context("open a disk")?;
        copy_data(&image, &disk).context("put a file system on a disk")?;
        fs::remove_file(&path).context(&what)?;
        match self.client.ask(&Command::Keep(self.slot))? {
            Answer::Number(number) => Ok(number),
            other => Err(unexpected(&other)),
        }
    }

    /// Holds a start image now; one of another size needs another device, see [`Disk::detach`].
    pub fn load(&mut self, image: u32) -> Result<()> {
        self.forget_cached()?;
        self.client.tell(&Command::Load(self.slot, image))
    }

    /// What tells file data from the rest on what it holds now.
    pub fn layout(&self, kind: FileSystem) -> Result<Layout> {
        let (client, slot) = (&self.client, self.slot);
        let (offset, length) = Layout::head(kind);
        match client.ask(&Command::Read(slot, offset, length))? {
            Answer::Bytes(head) => Layout::of(kind, &head).ok_or_else(|| {
                Error::usage(format!("cannot find the journal of {kind} on a disk of this size"))
                    .help("use another --fs-size, or leave out slow writes: --write-back never,sync,commit")
            }),
            other => Err(unexpected(&other)),
        }
    }

    fn device(&mut self) -> Result<&LoopDevice> {
        if self.device.is_none() {
            let path = self.file();
            let file = File::options().read(true).write(true).open(&path);
            let file = file.context(format_args!("open {}", path.display()))?;
            let attached = match is_viewed(self.slot) {
                true => LoopDevice::attach(&file),
                false => LoopDevice::attach_direct(&file),
            };
            self.device = Some(attached.map_err(|error| {
                Error::lacking(format!("cannot get a loop device: {error}"))
                    .help("`losetup -a` shows who has them; the module `loop` makes more")
            })?);
        }
        self.device.as_ref().ok_or_else(|| Error::internal("the loop device is gone"))
    }

    /// Lets go of the block device; another is made when it is needed. A disk that has another size is
    /// another device.
    pub fn detach(&mut self) {
        self.device = None;
    }

    /// Lets the kernel forget what it has read: what the disk holds changes behind its back.
    fn forget_cached(&mut self) -> Result<()> {
        match &self.device {
            Some(device) => device.forget_cached().context("empty the cache of a disk"),
            None => Ok(()),
        }
    }

    /// Holds what the power has left.
    pub fn show(&mut self, recording: u32, image: super::images::Image) -> Result<()> {
        let limit_ms = u64::try_from(LIMIT.as_millis()).unwrap_or(u64::MAX);
        self.shown_at = Instant::now();
        match self.client.ask(&Command::Show(self.slot, recording, image, limit_ms))? {
            Answer::Shown(process, file, is_new, touched) => {
                if is_new || self.device.is_none() {
                    self.detach();
                    self.shown = Some(format!("/proc/{process}/fd/{file}").into());
                    return Ok(());
                }
                match &self.device {
                    Some(device) => {
                        device.forget_ranges(&touched).context("empty the cache of a disk")
                    }
                    None => Ok(()),
                }
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Mounts it.
    pub fn mount(&mut self, kind: FileSystem, options: &str) -> Result<Mounted> {
        let place = self.place.clone();
        self.messages.skip();
        let own = if kind == FileSystem::Xfs { "nouuid" } else { "" };
        let options: Vec<_> = [own, options].into_iter().filter(|text| !text.is_empty()).collect();
        let device = self.device()?;
        match mount::device(device, &place, kind.name(), &options.join(",")) {
            Ok(()) => {
                self.mounted = true;
                Ok(Mounted::Yes)
            }
            Err(error) => {
                let name =
                    device.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let said = self.messages.about(&name);
                Ok(Mounted::No(match said.is_empty() {
                    true => error.to_string(),
                    false => format!("{error}; the kernel says: {}", said.join("; ")),
                }))
            }
        }
    }

    /// Unmounts it. A disk whose file system stays in use is left behind, and another taken.
    pub fn unmount(&mut self) -> Result<Unmounted> {
        if !std::mem::take(&mut self.mounted) {
            return Ok(Unmounted::Yes);
        }
        let what = || format!("unmount {}", self.place.display());
        let started = Instant::now();
        let mut mounted = true;
        while started.elapsed() < BUSY_MAX {
            match mount::unmount(&self.place) {
                Ok(()) => mounted = false,
                Err(Errno::EBUSY) => {}
                // It is not mounted any more.
                Err(Errno::EINVAL) if !mounted => {}
                Err(error) => return Err(io::Error::from(error)).with_context(what),
            }
            if !mounted && !self.device.as_ref().is_some_and(LoopDevice::is_used) {
                return Ok(Unmounted::Yes);
            }
            process::end_descendants().with_context(what)?;
            std::thread::sleep(Duration::from_millis(5));
        }
        if mounted {
            mount::detach(&self.place).map_err(io::Error::from).with_context(what)?;
        }
        self.detach();
        self.slot += SLOTS_APART;
        Ok(Unmounted::StaysInUse)
    }

    /// What the tool of a file system objects to, once its journal was carried out; `None` if nothing.
    pub fn fsck(&mut self, kind: FileSystem) -> Result<Option<String>> {
        let (name, options): (_, &[&str]) = match kind {
            FileSystem::Tmpfs => return Ok(None),
            FileSystem::Ext4 => ("fsck.ext4", &["-f", "-n"]),
            FileSystem::Xfs => ("xfs_repair", &["-n"]),
            FileSystem::Btrfs => ("btrfs", &["check", "--readonly"]),
        };
        let Some(program) = volume::find_tool(name) else {
            return Err(Error::lacking(format!("there is no {name}"))
                .help("install it, or leave out --fsck"));
        };
        // XFS and btrfs write past what the kernel keeps of the device for others.
        self.forget_cached()?;
        let device = self.device()?.path.clone();
        let output = std::process::Command::new(program).args(options).arg(&device).output();
        let output = output.context(format_args!("run {name}"))?;
        if output.status.success() {
            return Ok(None);
        }
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        let lines: Vec<_> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        Ok(Some(format!("{name}: {}", lines.join("; ").chars().take(300).collect::<String>())))
    }

    /// Whether the disk still worked when it was last used, or its time was up. Then another is taken.
    pub fn works(&mut self) -> Result<bool> {
        if self.shown_at.elapsed() < LIMIT {
            return Ok(true);
        }
        match self.client.ask(&Command::Works(self.slot))? {
            Answer::Works(works) => {
                if !works {
                    self.detach();
                    self.slot += SLOTS_APART;
                }
                Ok(works)
            }
            other => Err(unexpected(&other)),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What can't be unmounted goes with this process's mounts.
        let _ = mount::detach(&self.place);
    }
}

/// A worker that has left a disk behind goes on with one of this number more.
const SLOTS_APART: u32 = 1 << 10;

/// An answer that does not belong to what was asked.
pub fn unexpected(answer: &Answer) -> Error {
    Error::internal(format!("the server of the disks answers {answer:?}"))
}

/// Copies what a sparse file has.
fn copy_data(from: &File, to: &File) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    for range in memory::data(from)? {
        let mut at = range.start;
        while at < range.end {
            let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
            let piece = &mut buffer[..left.min(1 << 20)];
            from.read_exact_at(piece, at)?;
            to.write_all_at(piece, at)?;
            at += piece.len() as u64;
        }
    }
    Ok(())
}

/// What the kernel says.
struct Messages(Option<File>);

impl Messages {
    /// Where they can't be read there are none.
    fn open() -> Self {
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        Self(File::options().read(true).custom_flags(flags).open("/dev/kmsg").ok())
    }

    /// Leaves out those that were before.
    fn skip(&mut self) {
        if let Some(file) = &mut self.0 {
            // It can always be done; else what is said was said before.
            let _ = file.seek(SeekFrom::End(0));
        }
    }

    /// Those about a device, without their heads.
    fn about(&mut self, device: &str) -> Vec<String> {
        const MOST: usize = 3;
        let Some(file) = &mut self.0 else { return Vec::new() };
        let mut found = Vec::new();
        let mut record = vec![0; 8192];
        while let Ok(count) = file.read(&mut record) {
            let text = String::from_utf8_lossy(&record[..count]).into_owned();
            let text = text.split_once(';').map_or("", |(_, text)| text);
            let text = text.lines().next().unwrap_or_default().trim();
            if text.contains(device) && found.len() < MOST {
                found.push(text.to_owned());
            }
            if count == 0 {
                break;
            }
        }
        found
    }
}
