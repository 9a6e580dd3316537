//! A program that serves until the power goes: it is started on a disk, works with its client, and is not
//! followed, so that it may save in any way that there is.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::PollTimeout;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::checks::{Said, Shell};
use super::resident::{Nobody, Observed, Observer, Resident, Sight};
use super::runner::Runner;
use crate::error::{Context, Error, Result};
use crate::op::Trace;
use crate::os::network;
use crate::os::process::{self, Ended};
use crate::os::signals;
use crate::os::spawn::Pipes;
use crate::outcome::{Check, CheckKind, Recovery, Survivor};
use crate::subject::{Command, Limits, Live};

/// How long it may be between two moments at which the observer is asked, in milliseconds.
const MOMENTS_MS: std::ops::Range<u64> = 10..150;
/// How often it is looked at whether a program still runs.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long trial zero goes on after the first ack.
const TRIAL_ZERO: Duration = Duration::from_millis(300);
/// How often the check may object to what trial zero leaves.
const TRIES: usize = 5;
/// How long a program may take to end when it is asked to.
const END_MAX: Duration = Duration::from_secs(10);

/// Lives on a disk.
pub struct LiveResident {
    server: Runner,
    client: Option<Runner>,
    check: Shell,
    live: Live,
    limits: Limits,
    /// What was acknowledged, for the check.
    acked: PathBuf,
}

/// How a run comes to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// As when the machine stops.
    Kill,
    /// The client is ended first, and the program is asked to end.
    Ask,
}

impl LiveResident {
    /// One on the disk that is mounted at `place` from time to time, in a network of its own.
    pub fn new(command: &Command, place: &Path) -> Result<Self> {
        let (Some(live), Some(check)) = (command.live.clone(), &command.check) else {
            return Err(Error::internal("a program that is not followed lacks its check"));
        };
        network::make_private().map_err(|error| {
            Error::lacking(format!("cannot have a network of its own: {error}"))
                .help("run as root: a server that is tried must not meet others on their ports")
        })?;
        // Whatever is printed is an ack, unless it is said which lines are.
        let ack = Some(command.ack.clone().unwrap_or_default());
        let root = place.join("dir");
        let mut server = Runner::new(&Command { ack: ack.clone(), ..command.clone() }, place)?;
        let mut client = None;
        if let Some(text) = &live.client {
            let text = Shell::new(text, command, &root, None)?.text().to_owned();
            let argv = vec!["/bin/sh".to_owned(), "-c".to_owned(), text];
            client = Some(Runner::new(&Command { argv, ack, ..command.clone() }, place)?);
        }
        client.as_mut().unwrap_or(&mut server).output.keep_acks();
        let acked = place.parent().unwrap_or(place).join("acked");
        let check = Shell::new(check, command, &root, server.sandbox())?;
        Ok(Self { server, client, check, live, limits: command.limits, acked })
    }

    /// Shows that it works as long as nothing happens: there are acks, and the check agrees with what
    /// is there when the program has ended.
    pub fn trial_zero(&mut self) -> Result<()> {
        let mut objection = String::new();
        for _ in 0..TRIES {
            self.move_in()?;
            self.serve(&mut Nobody, TRIAL_ZERO, End::Ask)?;
            match self.ask(self.acks())? {
                None => return Ok(()),
                Some(complaint) => objection = complaint,
            }
        }
        Err(Error::baseline(format!("though the power never went, {objection}")).help(
            "it gets the number of acks in CRASHTEST_ACKS and what they said in the file \
             CRASHTEST_ACKED, and should wait until the program answers",
        ))
    }

    /// Who gives the acks.
    fn teller(&self) -> &Runner {
        self.client.as_ref().unwrap_or(&self.server)
    }

    fn acks(&self) -> u64 {
        self.teller().output.acks()
    }

    /// Runs both in the directory as it is, until `during` after the first ack.
    fn serve(&mut self, observer: &mut dyn Observer, during: Duration, end: End) -> Result<()> {
        let mut told = Ok(());
        let ran = process::adopt_orphans(|| {
            let server = self.server.start()?;
            let client = self.client.as_mut().map(Runner::start).transpose()?;
            told = self.watch((server, client), observer, during);
            if let (End::Ask, Ok(())) = (end, &told) {
                if let Some(client) = client {
                    // All that it has started is in its process group.
                    let _ = killpg(client, Signal::SIGKILL);
                }
                // It may have ended by itself.
                let _ = kill(server, Signal::SIGTERM);
                process::wait_at_most(server, END_MAX)?;
            }
            process::end_descendants()?;
            self.server.sandbox().map_or(Ok(()), |sandbox| sandbox.end_all())
        });
        self.server.started()?;
        ran.context("run the program")?;
        told?;
        self.drain(observer)
    }

    /// Tells the observer of each ack, and now and then that time goes by.
    fn watch(
        &mut self,
        (server, client): (Pid, Option<Pid>),
        observer: &mut dyn Observer,
        during: Duration,
    ) -> Result<()> {
        let mut random = ChaCha8Rng::try_from_rng(&mut rand::rngs::SysRng)
            .map_err(std::io::Error::from)
            .context("draw moments")?;
        let mut until = Instant::now() + self.limits.timeout();
        let (mut moments, mut next, mut looked) = (0, Instant::now(), Instant::now());
        let mut begun = false;
        // What was written is kept in memory.
        let most_mib = u32::try_from(self.limits.data_bytes >> 20).unwrap_or(u32::MAX);
        while Instant::now() < until && observer.written_mib() < most_mib && !signals::orphaned() {
            let own = [Some(&self.server), self.client.as_ref()];
            let pipes: Vec<&Pipes> =
                own.into_iter().flatten().map(|one| &one.output.pipes).collect();
            Pipes::wait(&pipes, PollTimeout::from(5_u8)).context("wait for output")?;
            self.drain(observer)?;
            if !begun && self.acks() > 0 {
                (begun, until) = (true, Instant::now() + during);
            }
            let now = Instant::now();
            if now >= next {
                observer.between(moments)?;
                moments += 1;
                next = Instant::now() + Duration::from_millis(random.random_range(MOMENTS_MS));
            }
            if now >= looked + LOOK_EVERY {
                looked = now;
                if self.has_ended(server, client)? {
                    self.drain(observer)?;
                    break;
                }
            }
        }
        if self.acks() > 0 {
            return Ok(());
        }
        let who = if client.is_some() { "the client" } else { "the program" };
        let words = self.teller().output.last_words();
        let seconds = self.limits.timeout().as_secs();
        Err(Error::baseline(format!("{who} gave no ack in {seconds} s: {words}")).help(
            "each line that it prints is one, or those that --ack describes; is stdout flushed?",
        ))
    }

    /// Whether who gives the acks has come to the end; nobody may end otherwise.
    fn has_ended(&mut self, server: Pid, client: Option<Pid>) -> Result<bool> {
        let all = [(Some(server), "the program", client.is_none()), (client, "the client", true)];
        for (pid, who, may) in all {
            let Some(pid) = pid else { continue };
            match process::wait_at_most(pid, Duration::ZERO).context("wait for a program")? {
                None => {}
                Some(Ended::Status(0)) if may => return Ok(true),
                Some(ended) => {
                    self.server.started()?;
                    let teller = if may { self.teller() } else { &self.server };
                    let words = teller.output.last_words();
                    return Err(Error::baseline(format!("{who} ended with {ended:?}: {words}"))
                        .help("it should go on until it is ended"));
                }
            }
        }
        Ok(false)
    }

    fn drain(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let before = self.acks();
        for runner in [Some(&mut self.server), self.client.as_mut()].into_iter().flatten() {
            runner.output.drain().context("read what a program prints")?;
        }
        (before..self.acks()).try_for_each(|_| observer.acked())
    }

    /// Starts the program on what is there, if it has a client, and lets the check compare that with the
    /// acks; returns its complaint.
    fn ask(&mut self, acks: u64) -> Result<Option<String>> {
        let count = usize::try_from(acks).unwrap_or(usize::MAX);
        let lines = self.teller().output.kept_acks();
        let mut text = lines[..count.min(lines.len())].join(&b'\n');
        text.extend_from_slice(if text.is_empty() { b"" } else { b"\n" });
        fs::write(&self.acked, text).context(format_args!("write {}", self.acked.display()))?;
        self.check.set("CRASHTEST_ACKS", acks.to_string());
        self.check.set("CRASHTEST_ACKED", &self.acked);
        let mut asked = None;
        process::adopt_orphans(|| {
            let server = self.client.is_some().then(|| self.server.start()).transpose()?;
            asked = Some(self.check.run_with(server, self.limits.timeout()));
            Ok(())
        })
        .context("run the program")?;
        self.server.started()?;
        let (said, gone) = asked.unwrap_or_else(|| Err(Error::internal("nothing was asked")))?;
        let complaint = match said {
            Said::Yes => return Ok(None),
            Said::No(why) => format!("--check: {why}"),
            Said::Hung => "--check did not end in time".to_owned(),
        };
        let Some(ended) = gone else { return Ok(Some(complaint)) };
        self.server.output.drain().context("read what a program prints")?;
        let words = self.server.output.last_words();
        let words = words.lines().last().unwrap_or_default();
        Ok(Some(format!("the program ended by itself with {ended:?}: {words} ({complaint})")))
    }
}

impl Resident for LiveResident {
    fn move_in(&mut self) -> Result<()> {
        if let Some(client) = &mut self.client {
            client.output.reset().context("read what the client printed")?;
        }
        self.server.reset()
    }

    fn run(&mut self, observer: &mut dyn Observer) -> Result<Observed> {
        self.serve(observer, Duration::from_millis(self.live.during_ms), End::Kill)?;
        Ok(Observed { trace: Trace::default(), ended: false })
    }

    fn look(&mut self, acks: u64) -> Result<Sight> {
        self.server.keep()?;
        let check = Check { kind: CheckKind::Command, complaint: self.ask(acks)? };
        let (survivor, recovery) = (Survivor::default(), Recovery::default());
        Ok(Sight::Seen(survivor, vec![check], recovery))
    }

    fn keep_in(&mut self, directory: PathBuf) {
        self.server.keep_in(directory);
    }
}
