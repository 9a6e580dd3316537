//! A sandbox: namespaces in which the program under test finds everything that is on this machine, and can
//! change nothing of it.
//!
//! A sandbox belongs to one room of one worker and lives as long as that. Entering it costs a program two or
//! three system calls. What a trial has written outside its directory is thrown away after it. A sandbox has
//!
//! - a mount namespace, whose root is put together by [`mounts`],
//! - a PID namespace with an [`init`] of its own, so that no process outlives its trial,
//! - System V IPC that no other process sees,
//! - for root a user namespace, so that root in it has no power over the machine.

mod init;
mod mounts;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::statfs;
use nix::unistd::{Pid, chdir, getcwd, geteuid, getpid, pivot_root};

use super::enclosure;
use super::ipc;
use super::process::{Ended, fork_child, fork_sleeper, wait_for};
use crate::error::{Error, Result};
use crate::lab;
use crate::sandbox::{self, Plan, Step};
use init::Init;
use mounts::Stage;

const NOTHING: Option<&str> = None;

/// Namespaces for the programs of one room.
#[derive(Debug)]
pub struct Sandbox {
    plan: Plan,
    stage: Stage,
    init: Init,
    inner: RefCell<Inner>,
    /// PIDs that other processes have now than they had.
    occupied: RefCell<Vec<Pid>>,
    /// The process that has made it; its children leave it alone.
    owner: Pid,
}

/// The way into a sandbox.
#[derive(Debug)]
pub struct Entrance {
    mounts: OwnedFd,
    user: Option<OwnedFd>,
}

impl Entrance {
    /// As [`Sandbox::enter`]; the process keeps its working directory.
    pub fn enter(&self) -> nix::Result<()> {
        let here = getcwd()?;
        enter(&self.mounts, self.user.as_ref())?;
        chdir(&here)
    }
}

/// Enters namespaces; the root of the mounts is the working directory then.
fn enter(mounts: &OwnedFd, user: Option<&OwnedFd>) -> nix::Result<()> {
    setns(mounts, CloneFlags::CLONE_NEWNS)?;
    user.map_or(Ok(()), |user| setns(user, CloneFlags::CLONE_NEWUSER))
}

/// What is made again after a program has written where that can't be undone otherwise.
#[derive(Debug)]
struct Inner {
    mounts: OwnedFd,
    user: Option<OwnedFd>,
    /// How many inodes and blocks the stage has in use when nothing was written.
    fresh: Used,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Used {
    inodes: u64,
    blocks: u64,
}

thread_local! {
    /// The sandboxes of this process, by their rooms; those of its parent are not its own.
    static KNOWN: RefCell<HashMap<(i32, PathBuf), Weak<Sandbox>>> = RefCell::default();
}

thread_local! {
    /// The rooms of this process that are shared, with the process.
    static SHARED: RefCell<HashSet<(i32, PathBuf)>> = RefCell::default();
}

/// Makes a room a mount of its own, so that what this process mounts in it later reaches the mounts of the
/// program. To be called before anything is mounted in it.
pub fn share(room: &Path) -> io::Result<()> {
    let key = (getpid().as_raw(), room.to_owned());
    if SHARED.with_borrow(|shared| shared.contains(&key)) {
        return Ok(());
    }
    // Mounts that a worker makes for its room are not for other workers.
    super::mount::make_private()?;
    mount(Some(room), room, NOTHING, MsFlags::MS_BIND | MsFlags::MS_REC, NOTHING)?;
    mount(NOTHING, room, NOTHING, MsFlags::MS_SHARED, NOTHING)?;
    SHARED.with_borrow_mut(|shared| shared.insert(key));
    Ok(())
}

/// Takes all mounts below `base` away again that this process has made in mounts of its own, so that it can be
/// removed.
pub fn release(base: &Path) {
    if !super::mount::are_own() {
        return;
    }
    let mounts = crate::sandbox::mount_points().unwrap_or_default();
    // The deepest first; several may lie at one place.
    for place in mounts.iter().rev().filter(|place| place.starts_with(base)) {
        while umount2(place, MntFlags::MNT_DETACH).is_ok() {}
    }
    SHARED.with_borrow_mut(|shared| shared.retain(|(_, room)| !room.starts_with(base)));
}

/// The sandbox of a room, made if there is none; `None` where this machine refuses namespaces.
///
/// `allowed` are globs of what may be written to, and `bytes_max` limits what is written elsewhere.
pub fn of_room(room: &Path, allowed: &[String], bytes_max: u64) -> Result<Option<Rc<Sandbox>>> {
    if enclosure::refused().is_some() {
        return Ok(None);
    }
    // The disk of a room is mounted in it, now or later.
    let room = &lab::room_of(room);
    let key = (getpid().as_raw(), room.to_owned());
    let known = KNOWN.with_borrow(|known| known.get(&key).and_then(Weak::upgrade));
    if known.is_some() {
        return Ok(known);
    }
    let own = room.parent().unwrap_or(room);
    let plan = Plan::new(room, own, allowed, bytes_max)?;
    let made = Sandbox::make(plan).map_err(|error| {
        Error::lacking(format!("cannot make a sandbox: {error}"))
            .help("`crashtest doctor` shows what is missing; CRASHTEST_NAMESPACES=off does without")
    })?;
    let made = Rc::new(made);
    KNOWN.with_borrow_mut(|known| known.insert(key, Rc::downgrade(&made)));
    Ok(Some(made))
}

impl Sandbox {
    fn make(plan: Plan) -> io::Result<Self> {
        let root_user = geteuid().is_root();
        share(&plan.room)?;
        ipc::renew()?;
        let init = Init::start()?;
        let place = plan.room.with_extension("sandbox");
        let stage = Stage::mount(&place, plan.bytes_max, !root_user)?;
        let inner = RefCell::new(built(&plan, &stage, &init)?);
        let occupied = RefCell::default();
        Ok(Self { plan, stage, init, inner, occupied, owner: getpid() })
    }

    /// Moves this process, which has one thread, into the sandbox.
    ///
    /// To be called in a child between fork and exec.
    pub fn enter(&self) -> nix::Result<()> {
        let inner = self.inner.borrow();
        enter(&inner.mounts, inner.user.as_ref())
    }

    /// The way in for a process that is started later.
    pub fn entrance(&self) -> io::Result<Entrance> {
        let inner = self.inner.borrow();
        let user = inner.user.as_ref().map(OwnedFd::try_clone).transpose()?;
        Ok(Entrance { mounts: inner.mounts.try_clone()?, user })
    }

    /// Does something in which each process that this one forks becomes one of the sandbox.
    pub fn fork_inside<T>(&self, body: impl FnOnce() -> T) -> io::Result<T> {
        self.init.fork_inside(|| {
            for pid in self.occupied.borrow().iter() {
                // That it is taken already is as good.
                let _ = fork_sleeper(*pid);
            }
            body()
        })
    }

    /// From now until it is renewed, lets other processes have these PIDs of processes that are dead.
    pub fn occupy(&self, pids: &[Pid]) {
        self.occupied.borrow_mut().extend(pids);
    }

    /// Gives the next process that begins in the sandbox this number, and those after it the next ones. Needs the
    /// right to choose numbers (`CAP_CHECKPOINT_RESTORE`), which the owner of the namespace has.
    pub fn number_from(&self, pid: i32) -> io::Result<()> {
        // The kernel takes the namespace of the process that writes.
        let write =
            || std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).is_ok();
        let writer = self.init.fork_inside(|| fork_child(|| i32::from(!write())))??;
        match wait_for(writer)? {
            Ended::Status(0) => Ok(()),
            _ => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    /// Kills all its processes, and returns when they are gone. The caller must have waited for its own
    /// children among them.
    pub fn end_all(&self) -> io::Result<()> {
        self.init.end_all()
    }

    /// What was written outside the trial directory lies below this one, by path.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.stage.upper()
    }

    /// Whether a path that lies below [`Sandbox::upper`] was there before any program ran.
    #[must_use]
    pub fn is_part_of_it(&self, path: &Path) -> bool {
        self.plan.steps.iter().any(|step| {
            step.path() == path && !matches!(step, Step::Overlay(_) | Step::Directory(_))
        })
    }

    /// Whether anything was written outside the trial directory.
    pub fn is_written(&self) -> io::Result<bool> {
        Ok(used(self.stage.place())? != self.inner.borrow().fresh)
    }

    /// Ends all processes, and throws away what was written outside the trial directory.
    pub fn renew(&self) -> io::Result<()> {
        self.occupied.borrow_mut().clear();
        self.end_all()?;
        if ipc::is_used()? {
            ipc::renew()?;
        }
        let used = used(self.stage.place())?;
        if used == self.inner.borrow().fresh {
            return Ok(());
        }
        let (mut again, mut whole) = (Vec::new(), false);
        for step in &self.plan.steps {
            match step {
                Step::Overlay(path) => match written(&self.stage.written(path))? {
                    Written::Nothing | Written::Caches => {}
                    Written::Something => again.push(path),
                },
                Step::Directory(path) => whole |= self.has_more(path)?,
                _ => {}
            }
        }
        whole |= self.has_more(Path::new("/"))?;
        if whole {
            return self.rebuild();
        }
        for path in again {
            umount2(&mounts::below(&self.stage.root(), path), MntFlags::MNT_DETACH)?;
            lab::remove_tree(&self.stage.work(path))?;
            lab::empty(&self.stage.written(path), self.room_in(path))?;
            match self.stage.overlay(path) {
                Err(_) if sandbox::is_gone(path) => continue,
                made => made?,
            }
            self.bind_below(path)?;
        }
        self.inner.borrow_mut().fresh = self::used(self.stage.place())?;
        Ok(())
    }

    /// The entry of a directory in which the room is, if it is in there.
    fn room_in(&self, directory: &Path) -> Option<&OsStr> {
        let below = self.plan.room.strip_prefix(directory).ok()?;
        below.iter().next()
    }

    /// Mounts again what lay in an overlay that is new.
    fn bind_below(&self, path: &Path) -> io::Result<()> {
        let inside = |step: &&Step| matches!(step, Step::Bind(at) if at.starts_with(path));
        self.plan.steps.iter().filter(inside).try_for_each(|step| self.stage.step(step))?;
        if self.plan.room.starts_with(path) {
            self.stage.bind_room(&self.plan)?;
        }
        Ok(())
    }

    /// Whether a directory that is made up of its entries has entries that were not planned.
    fn has_more(&self, path: &Path) -> io::Result<bool> {
        for entry in fs::read_dir(self.stage.written(path))? {
            let entry = path.join(entry?.file_name());
            let planned = self.plan.steps.iter().any(|step| step.path() == entry);
            if !planned && !self.plan.room.starts_with(&entry) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Puts the whole tree together again.
    fn rebuild(&self) -> io::Result<()> {
        umount2(self.stage.place(), MntFlags::MNT_DETACH)?;
        Stage::mount(self.stage.place(), self.plan.bytes_max, !geteuid().is_root())?;
        *self.inner.borrow_mut() = built(&self.plan, &self.stage, &self.init)?;
        Ok(())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if getpid() != self.owner {
            return;
        }
        // What can't be unmounted goes with this process.
        let _ = umount2(self.stage.place(), MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(self.stage.place());
    }
}

/// Whether, and what, a program has written below a directory of the upper layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    Nothing,
    /// Nothing but Python's compiled modules, which are the same after each run.
    Caches,
    Something,
}

fn written(directory: &Path) -> io::Result<Written> {
    let mut all = Written::Nothing;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let found = match entry.file_type()?.is_dir() {
            true if entry.file_name() == "__pycache__" => Written::Caches,
            // A directory that was removed and made again is another one, even if it is empty.
            true => match written(&entry.path())? {
                Written::Nothing => Written::Something,
                other => other,
            },
            false => Written::Something,
        };
        match found {
            Written::Something => return Ok(found),
            Written::Caches => all = found,
            Written::Nothing => {}
        }
    }
    Ok(all)
}

fn used(place: &Path) -> io::Result<Used> {
    let found = statfs(place)?;
    Ok(Used {
        inodes: found.files() - found.files_free(),
        blocks: found.blocks() - found.blocks_free(),
    })
}

/// Builds the tree, and has a process make the program's own namespaces of it.
fn built(plan: &Plan, stage: &Stage, init: &Init) -> io::Result<Inner> {
    stage.build(plan)?;
    let root_user = geteuid().is_root();
    let (mut says, mut ready) = io::pipe()?;
    let (mut waits, go) = io::pipe()?;
    let mut go = Some(go);
    let builder = init.fork_inside(|| {
        fork_child(|| {
            drop(go.take());
            let made = own_namespaces(&stage.root(), root_user);
            let said = made.as_ref().map_or_else(ToString::to_string, |()| READY.to_owned());
            let told = ready.write_all(said.as_bytes());
            // Until its namespaces were opened.
            let _ = waits.read(&mut [0]);
            i32::from(told.is_err())
        })
    })??;
    drop(ready);
    let opened = (|| {
        let mut said = [0; 512];
        let count = says.read(&mut said)?;
        if &said[..count] != READY.as_bytes() {
            return Err(io::Error::other(String::from_utf8_lossy(&said[..count]).into_owned()));
        }
        let mounts = namespace(builder, "mnt")?;
        let user = match root_user {
            true => Some(mapped(builder)?),
            false => None,
        };
        Ok(Inner { mounts, user, fresh: used(stage.place())? })
    })();
    drop(go);
    wait_for(builder)?;
    opened
}

const READY: &str = "ready";

fn namespace(pid: Pid, name: &str) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/{pid}/ns/{name}"))?.into())
}

/// The user namespace of a process, in which all ids are what they are outside.
fn mapped(pid: Pid) -> io::Result<OwnedFd> {
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{pid}/{map}"), "0 0 4294967295")?;
    }
    namespace(pid, "user")
}

/// Gives this process, one of the PID namespace of trials, the namespaces of a program.
fn own_namespaces(root: &Path, root_user: bool) -> nix::Result<()> {
    mounts::proc(root, root_user).map_err(|error| mounts::errno_of(&error))?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_SLAVE, NOTHING)?;
    chdir(root)?;
    pivot_root(".", ".")?;
    // The old root lies over the new one now; it goes as soon as no process uses it.
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    if root_user {
        unshare(CloneFlags::CLONE_NEWUSER)?;
    }
    Ok(())
}
