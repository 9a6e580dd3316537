//! The line between a program and its broker: a process of its own that starts the broker, passes on what
//! both say, and breaks where it is told to.
//!
//! It is no child of the worker, which ends all its children after each run; it ends itself, and the
//! broker with it, when the worker closes its end of the control socket.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::error::{Context, Error, Result};
use crate::os::process;
use crate::parting::{Moment, Turn, Turns};

/// How long a broker may take until it listens.
const START_MAX: Duration = Duration::from_secs(10);
/// How long either side may take to take what is passed on.
const TAKE_MAX: Duration = Duration::from_secs(5);

/// What the worker says, a byte each.
const NEXT: u8 = b'n';
const COUNT: u8 = b'c';
/// What the line says: it is ready; the program is to be killed now.
const READY: u8 = b'r';
const KILL: u8 = b'k';

/// The worker's end.
pub struct Line {
    control: UnixStream,
}

impl Line {
    /// Starts the broker in `place`, and lets the line break at that moment.
    pub fn start(listener: &TcpListener, broker: &str, place: &Path, at: Moment) -> Result<Self> {
        let (control, theirs) = UnixStream::pair().context("make a socket")?;
        let ours = control.as_raw_fd();
        process::fork_detached(c"crashtest-line", || {
            // The worker's death must be seen.
            let _ = nix::unistd::close(ours);
            let _ = keep(listener, theirs, broker, place, at);
        })
        .context("start the line to the broker")?;
        control.set_read_timeout(Some(START_MAX * 2)).context("wait for the broker")?;
        let mut line = Self { control };
        match line.hear() {
            Ok(READY) => Ok(line),
            _ => {
                let said = fs::read_to_string(said(place)).unwrap_or_default();
                let last = said.trim().lines().last().unwrap_or("it says nothing").to_owned();
                Err(Error::baseline(format!("the broker does not listen on its port: {last}"))
                    .help("--broker CMD is to serve at 127.0.0.1:{port}"))
            }
        }
    }

    fn hear(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.control.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    /// Whether the program is to be killed now.
    pub fn says_kill(&mut self) -> Result<bool> {
        self.control.set_nonblocking(true).context("ask the line")?;
        let heard = self.hear();
        self.control.set_nonblocking(false).context("ask the line")?;
        match heard {
            Ok(byte) => Ok(byte == KILL),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error).context("ask the line"),
        }
    }

    /// How many requests there were.
    pub fn requests(&mut self) -> Result<u32> {
        let mut number = [0; 4];
        self.control
            .write_all(&[COUNT])
            .and_then(|()| self.control.read_exact(&mut number))
            .context("ask the line")?;
        Ok(u32::from_ne_bytes(number))
    }

    /// Closes all connections, and lets the line be whole from now on.
    pub fn mend(&mut self) -> Result<()> {
        self.control.write_all(&[NEXT]).context("mend the line")?;
        // Something may have been said just before.
        while self.hear().context("mend the line")? != READY {}
        Ok(())
    }
}

/// Where a broker's last words go.
fn said(place: &Path) -> PathBuf {
    place.with_extension("said")
}

/// The other end, until the worker's is closed.
fn keep(
    listener: &TcpListener,
    mut control: UnixStream,
    broker: &str,
    place: &Path,
    at: Moment,
) -> io::Result<()> {
    // Free now; nobody else asks for this one in the moment until the broker has it.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let said = fs::File::create(said(place))?;
    let mut child = Command::new("/bin/sh")
        .args(["-c", &broker.replace("{port}", &port.to_string())])
        .current_dir(place)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(said.try_clone()?)
        .stderr(said)
        .spawn()?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let served = listens(address, &mut child).and_then(|()| {
        control.write_all(&[READY])?;
        Keeper { listener, control, address, turns: Turns::new(at), pairs: Vec::new() }.serve()
    });
    // It leads a process group of its own.
    if let Ok(group) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let _ = child.wait();
    served
}

/// Waits until the broker listens.
fn listens(address: SocketAddr, child: &mut Child) -> io::Result<()> {
    let started = Instant::now();
    while TcpStream::connect(address).is_err() {
        if started.elapsed() > START_MAX || child.try_wait()?.is_some() {
            return Err(ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Passes on what both sides say.
struct Keeper<'a> {
    listener: &'a TcpListener,
    control: UnixStream,
    address: SocketAddr,
    turns: Turns,
    pairs: Vec<Pair>,
}

/// One connection of the program, and the one to the broker that it stands for.
struct Pair {
    program: TcpStream,
    broker: TcpStream,
    /// Whether the program has asked, and there is no answer yet.
    asking: bool,
    /// Whether the program says no more.
    told: bool,
}

/// What became of a connection.
#[derive(PartialEq, Eq)]
enum Passed {
    On,
    /// It is over.
    Over,
    /// The line breaks, and all connections are over.
    Broken,
    /// What was said is held, and the program is to be killed.
    Held,
}

impl Keeper<'_> {
    fn serve(&mut self) -> io::Result<()> {
        let mut held = false;
        loop {
            let ready = self.wait(held)?;
            if ready[0] && !self.obey(&mut held)? {
                return Ok(());
            }
            if ready[1] {
                self.accept()?;
            }
            for n in (0..self.pairs.len()).rev() {
                for from_program in [true, false] {
                    // One that came just now has not been looked at.
                    let at = 2 + 2 * n + usize::from(!from_program);
                    if n >= self.pairs.len() || !ready.get(at).copied().unwrap_or(false) {
                        continue;
                    }
                    match self.pass(n, from_program) {
                        Passed::On => {}
                        Passed::Over => drop(self.pairs.swap_remove(n)),
                        Passed::Broken => self.pairs.clear(),
                        Passed::Held => {
                            held = true;
                            self.control.write_all(&[KILL])?;
                        }
                    }
                }
            }
        }
    }

    /// Waits until somebody says something: the worker, who connects, each side of each connection.
    fn wait(&self, held: bool) -> io::Result<Vec<bool>> {
        let want = |wanted: bool| if wanted { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut all = vec![
            PollFd::new(self.control.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), want(!held)),
        ];
        for pair in &self.pairs {
            all.push(PollFd::new(pair.program.as_fd(), want(!held && !pair.told)));
            all.push(PollFd::new(pair.broker.as_fd(), want(!held)));
        }
        poll(&mut all, PollTimeout::NONE)?;
        let ready = |one: &PollFd<'_>| {
            let wanted = !one.events().is_empty();
            wanted && one.revents().is_some_and(|revents| !revents.is_empty())
        };
        Ok(all.iter().map(ready).collect())
    }

    /// Does what the worker says; false if it is gone.
    fn obey(&mut self, held: &mut bool) -> io::Result<bool> {
        let mut said = [0];
        if self.control.read(&mut said)? == 0 {
            return Ok(false);
        }
        match said[0] {
            COUNT => self.control.write_all(&self.turns.requests().to_ne_bytes())?,
            _ => {
                self.pairs.clear();
                self.turns = Turns::new(Moment::AtTheEnd);
                *held = false;
                self.control.write_all(&[READY])?;
            }
        }
        Ok(true)
    }

    fn accept(&mut self) -> io::Result<()> {
        let (program, _) = self.listener.accept()?;
        if self.turns.is_broken() {
            return Ok(());
        }
        let Ok(broker) = TcpStream::connect(self.address) else { return Ok(()) };
        for side in [&program, &broker] {
            side.set_nodelay(true)?;
            side.set_write_timeout(Some(TAKE_MAX))?;
        }
        self.pairs.push(Pair { program, broker, asking: false, told: false });
        Ok(())
    }

    /// Passes on what one side of a connection has said.
    fn pass(&mut self, n: usize, from_program: bool) -> Passed {
        let pair = &mut self.pairs[n];
        let (from, to) = match from_program {
            true => (&mut pair.program, &mut pair.broker),
            false => (&mut pair.broker, &mut pair.program),
        };
        let mut bytes = [0; 1 << 16];
        let count = match from.read(&mut bytes) {
            Ok(0) if from_program => {
                pair.told = true;
                return match to.shutdown(Shutdown::Write) {
                    Ok(()) => Passed::On,
                    Err(_) => Passed::Over,
                };
            }
            Ok(0) | Err(_) => return Passed::Over,
            Ok(count) => count,
        };
        if pair.asking != from_program {
            pair.asking = from_program;
            let turn = if from_program { self.turns.asked() } else { self.turns.answered() };
            match turn {
                Turn::Passed => {}
                Turn::Lost => return Passed::Broken,
                Turn::Held => return Passed::Held,
            }
        }
        match to.write_all(&bytes[..count]) {
            Ok(()) => Passed::On,
            Err(_) => Passed::Over,
        }
    }
}
