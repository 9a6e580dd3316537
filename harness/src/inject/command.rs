//! Any program: run under the tracer, and killed where the trial says.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use nix::unistd::Pid;

use super::checks::{Acked, Checks, Said, Shell};
use super::output::AckCounter;
use super::recorder::Recorder;
use super::resident::{Observed, Observer, Resident, Sight, is_damage};
use super::runner::{Bound, GRACE, Plain, Runner};
use super::striker::Striker;
use super::tracer::How;
use crate::armed::Follows;
use crate::at_rest::Harmed;
use crate::error::{Context, Error, Result};
use crate::fault::{Fault, Injection, Struck};
use crate::history::History;
use crate::inject::{Injector, Left, Recovered};
use crate::lab;
use crate::oracle;
use crate::os::process::Ended;
use crate::outcome::{
    Check, CheckKind, Exit, InMemory, Load, Loaded, NextSave, Outcome, Recovery, Step, Survivor,
};
use crate::subject::{Command, Learned, Prepared};
use crate::tree::Directory;
use crate::volume::{Filled, Volume};

/// Whether a version was loaded that is newer than what was there at the start.
fn is_newer(loaded: &Loaded) -> bool {
    matches!(loaded, Loaded::Version(version) if *version > 0)
}

/// How long a program is waited for that was told that something had failed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// Some times as long as its unbroken run takes.
    Short,
    /// As long as any run.
    Long,
    /// No longer than at first: it was seen to hang.
    Spent,
}

/// Does the trials of one program in one room.
pub struct CommandInjector<'a> {
    learned: &'a Learned,
    /// Whether there was a state before the first run.
    state_at_start: bool,
    /// What its unbroken run does, and how long that takes.
    history: &'a History,
    duration: Duration,
    /// The small disk that it works on, if it does.
    volume: Option<Rc<Volume>>,
    runner: Runner,
    checks: Checks,
    acked: Acked,
    patience: Patience,
    recover: Option<Shell>,
    restore: Option<Shell>,
    /// Runs that command so that it is followed; made when it is needed.
    recoverer: Option<Runner>,
    room: PathBuf,
}

impl<'a> CommandInjector<'a> {
    /// An injector that works in `room`.
    pub fn new(
        learned: &'a Learned,
        prepared: &'a Prepared,
        room: &Path,
        volume: Option<Rc<Volume>>,
    ) -> Result<Self> {
        let command = &learned.command;
        let mut runner = Runner::new(command, room)?;
        runner.outside.clone_from(&learned.outside);
        if command.check.is_some() {
            runner.output.keep_acks();
        }
        let root = runner.scope.root.clone();
        let recover = learned
            .load()
            .map(|text| Shell::new(text, command, &root, runner.sandbox()))
            .transpose()?;
        let restore = command.restore.as_ref();
        let restore =
            restore.map(|text| Shell::new(text, command, &root, runner.sandbox())).transpose()?;
        Ok(Self {
            learned,
            state_at_start: prepared
                .history
                .versions
                .first()
                .is_some_and(|first| !first.is_empty()),
            history: &prepared.history,
            duration: Duration::from_micros(prepared.sites.duration_us),
            volume,
            checks: Checks::new(command, &root, runner.sandbox())?,
            acked: Acked::new(&root),
            patience: Patience::Short,
            runner,
            recover,
            restore,
            recoverer: None,
            room: room.to_owned(),
        })
    }

    /// Runs the program and strikes it; with `narrate`, writes down what it then does.
    fn strike(&mut self, fault: &Fault, narrate: bool) -> Result<Struckdown> {
        let scope = self.runner.scope.clone();
        let volume = self.volume.clone();
        let mut striker = Striker::new(fault, &scope, volume.as_deref(), narrate);
        if self.learned.serves && fault.is_told() {
            striker.until(self.runner.output.new_counter(), self.history.acks_of_a_run());
        }
        let (follows, bound) = (striker.follows(), self.bound(fault));
        let ran = self.runner.traced(&mut striker, follows, bound)?;
        if let Some(error) = striker.failed.take() {
            return Err(error);
        }
        let exit = match ran.how {
            How::Struck => Exit::Killed,
            How::Ended(Ended::Status(status)) => Exit::Status(status),
            How::Ended(Ended::Signal(signal)) => Exit::Signal(signal),
            // It would have gone on serving; that it was ended is no fault of its own.
            How::TimedOut | How::Enough if self.learned.serves && fault.is_told() => Exit::Killed,
            How::TimedOut | How::Enough => Exit::TimedOut,
            How::TooMany => Exit::TooManyProcesses,
        };
        let survivor = self.runner.survivor(&self.learned.state)?;
        let acks = self.runner.output.acks();
        let met = striker.injection();
        let injection = oracle::met(fault, met, exit, acks, &survivor, self.history);
        if let (Filled::NotAtAll, true, Some(volume)) =
            (striker.filled, injection.struck(), &self.volume)
        {
            return Err(volume.too_small(&self.learned.command.argv.join(" "), &injection));
        }
        let unsynced = striker.unsynced(&survivor);
        let (acks_before, steps) = (striker.acks_before(), striker.steps());
        Ok(Struckdown { injection, exit, acks_before, survivor, unsynced, steps })
    }

    /// Strikes it, and once more with all the time that there is if it does not end: on a busy machine what took
    /// long may only have waited. One that was found to hang is not given that time again.
    fn strike_again(&mut self, fault: &Fault) -> Result<Struckdown> {
        let struckdown = self.strike(fault, false)?;
        let late = struckdown.exit == Exit::TimedOut && fault.is_told();
        if !late || self.patience != Patience::Short {
            return Ok(struckdown);
        }
        self.patience = Patience::Long;
        let again = self.reset().and_then(|()| self.strike(fault, false));
        let hangs = matches!(&again, Ok(again) if again.exit == Exit::TimedOut);
        self.patience = if hangs { Patience::Spent } else { Patience::Short };
        again
    }

    /// How long a trial may take. One that does not end by itself ends after its acks, or when it
    /// has had the time for them.
    fn bound(&self, fault: &Fault) -> Bound {
        let grace = GRACE;
        if self.learned.serves && fault.is_told() {
            let timeout = (self.duration * 3 + Duration::from_secs(1)).min(self.learned.timeout);
            return Bound { timeout, grace };
        }
        let timeout = match fault.is_told() && self.patience != Patience::Long {
            // One that tries again for ever does so in many trials.
            true => (self.duration * 10 + Duration::from_secs(3)).min(self.learned.timeout),
            false => self.learned.timeout,
        };
        Bound { timeout, grace }
    }

    fn kill_after(&mut self, delay: Duration) -> Result<(Injection, Exit)> {
        Ok(match self.runner.plain(Some(delay), self.learned.timeout)? {
            Plain::Killed => (Injection::At(Struck::Moment { delay_us: delay }), Exit::Killed),
            Plain::Ended(Ended::Status(status)) => (Injection::NotReached, Exit::Status(status)),
            Plain::Ended(Ended::Signal(signal)) => (Injection::NotReached, Exit::Signal(signal)),
            Plain::TimedOut => (Injection::NotReached, Exit::TimedOut),
        })
    }

    /// Whether the program was struck before it saved for the first time: what then is left is no
    /// state that could be checked.
    fn before_first_save(&self, survivor: &Survivor, acks: u64) -> bool {
        !self.state_at_start && survivor.files.is_empty() && acks == 0
    }

    /// Runs the checks; `lines` are the acks of the run, of which so many had been given.
    fn check(&self, survivor: &Survivor, acks: u64, lines: &[Vec<u8>]) -> Result<Vec<Check>> {
        let mut checks = self.checks.look(survivor);
        let early = self.before_first_save(survivor, acks);
        if let Some(command) = self.checks.command()
            && (!early || self.learned.before_first_save.check)
        {
            let given = usize::try_from(acks).unwrap_or(usize::MAX).min(lines.len());
            self.acked.write(&lines[..given])?;
            let complaint = match command.run_after(&self.acked, acks, self.learned.timeout)? {
                Said::Yes => None,
                Said::No(why) => Some(format!("--check: {why}")),
                Said::Hung => Some("--check did not end in time".to_owned()),
            };
            checks.push(Check { kind: CheckKind::Command, complaint });
        }
        Ok(checks)
    }

    /// Whether the recovery has left none of the bytes of the state files that there were.
    fn lost_all(&self, before: &Survivor) -> Result<bool> {
        let after = self.runner.survivor(&self.learned.state)?;
        Ok(before.size() > 0 && after.size() == 0)
    }

    fn recover(&mut self, survivor: &Survivor, acks: u64) -> Result<Recovery> {
        let early = self.before_first_save(survivor, acks);
        let Some(recover) = self.recover.as_ref() else { return Ok(Recovery::default()) };
        let own = self.learned.own_load.is_some();
        if early && !own && !self.learned.before_first_save.recover {
            return Ok(Recovery::default());
        }
        let (said, printed) = recover.run_and_hear(self.learned.timeout)?;
        let loads = self.history.loads.as_ref().filter(|_| said == Said::Yes);
        let loaded = loads.map_or(Loaded::Unknown, |loads| loads.version(&printed));
        let load = match said {
            // What was there is gone, and nothing that was saved is loaded.
            Said::Yes if !is_newer(&loaded) && self.lost_all(survivor)? => Load::Default,
            Said::Yes => Load::Loaded,
            Said::No(why) => Load::Failed(format!("--load: {why}")),
            Said::Hung => Load::Hung,
        };
        if own {
            // Nothing is known of how the program itself goes on.
            return Ok(Recovery { load, loaded, ..Recovery::default() });
        }
        let next_save = self.saves_again()?;
        let after = self.runner.survivor(&self.learned.state)?;
        let leftovers =
            after.others.into_iter().filter(|path| !self.learned.known.contains(path)).collect();
        Ok(Recovery { load, loaded, next_save, leftovers })
    }
}

impl CommandInjector<'_> {
    /// Runs the program once more.
    fn saves_again(&mut self) -> Result<NextSave> {
        Ok(match self.runner.plain(None, self.learned.timeout)? {
            Plain::Ended(Ended::Status(0)) => NextSave::Saved,
            Plain::Ended(ended) => NextSave::Failed(format!(
                "the program run again ended with {ended:?}: {}",
                self.runner.output.last_words()
            )),
            Plain::TimedOut | Plain::Killed if self.learned.serves => NextSave::Saved,
            Plain::TimedOut | Plain::Killed => {
                NextSave::Failed("the program run again did not end in time".to_owned())
            }
        })
    }

    /// Makes the trial directory what was harmed, has it loaded, and checks what then is there; `version`
    /// says which version it is that the load has printed. If `thorough`, the program runs once more.
    pub fn load_at_rest(
        &mut self,
        left: &Left,
        harmed: &Harmed,
        thorough: bool,
        version: &dyn Fn(&[u8]) -> Loaded,
    ) -> Result<(Vec<Check>, Recovery)> {
        self.fill(left)?;
        for path in &harmed.unreadable {
            let path = self.runner.scope.root.join(path);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o000))
                .context(format_args!("change the mode of {}", path.display()))?;
        }
        self.runner.keep()?;
        let mut recovery = Recovery::default();
        if let (Some(copy), Some(restore)) = (&harmed.restore, &self.restore) {
            let said = restore.with("{backup}", copy).run(self.learned.timeout)?;
            if said != Said::Yes {
                recovery.load = Load::Failed(format!("--restore: {said:?}"));
                return Ok((Vec::new(), recovery));
            }
        }
        let Some(recover) = self.recover.as_ref() else { return Ok((Vec::new(), recovery)) };
        let (said, printed) = recover.run_and_hear(self.learned.timeout)?;
        // What it prints says more than what it has left: it may keep what is damaged aside.
        let loaded = version(&printed);
        let is_version = matches!(loaded, Loaded::Version(_));
        recovery.load = match said {
            Said::Yes if !is_version && self.lost_all(&left.survivor)? => Load::Default,
            Said::Yes => Load::Loaded,
            Said::No(why) => Load::Failed(format!("--load: {why}")),
            Said::Hung => Load::Hung,
        };
        if recovery.load != Load::Loaded {
            return Ok((Vec::new(), recovery));
        }
        recovery.loaded = loaded;
        let survivor = self.runner.survivor(&self.learned.state)?;
        let checks = self.check(&survivor, left.acks, &self.learned.acked)?;
        if thorough {
            recovery.next_save = self.saves_again()?;
        }
        Ok((checks, recovery))
    }
}

/// What one strike has led to.
struct Struckdown {
    injection: Injection,
    exit: Exit,
    acks_before: Option<u64>,
    survivor: Survivor,
    unsynced: InMemory,
    steps: Vec<Step>,
}

impl CommandInjector<'_> {
    /// Lets other processes have the PIDs of dead ones, until the next trial; says whether that can be done.
    #[must_use]
    pub fn occupy(&self, dead: &[Pid]) -> bool {
        self.runner.sandbox().is_some_and(|sandbox| {
            sandbox.occupy(dead);
            true
        })
    }

    /// Whether it does not end by itself.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.learned.serves
    }

    /// The trial directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.runner.scope.root
    }

    /// Whether a file of the trial directory is one of the state.
    #[must_use]
    pub fn is_state(&self, path: &Path) -> bool {
        self.learned.state.contains(path)
    }

    /// As [`Resident::look`], after acks with these lines.
    pub fn look_after(&mut self, acks: u64, lines: &[Vec<u8>]) -> Result<Sight> {
        let survivor = match self.runner.collected(&self.learned.state) {
            Ok(survivor) => survivor,
            Err(error) if is_damage(&error) => return Ok(Sight::Unreadable(error.to_string())),
            Err(error) => return Err(error).context("read what is left"),
        };
        self.runner.keep()?;
        let checks = self.check(&survivor, acks, lines)?;
        let recovery = self.recover(&survivor, acks)?;
        Ok(Sight::Seen(survivor, checks, recovery))
    }

    /// What runs the program.
    pub fn runner(&mut self) -> &mut Runner {
        &mut self.runner
    }

    /// Makes the trial directory anew, with all the space that it takes.
    fn reset(&mut self) -> Result<()> {
        if let Some(volume) = &self.volume {
            volume.release()?;
        }
        self.runner.reset()
    }

    /// Makes the trial directory what is left of a run.
    fn fill(&mut self, left: &Left) -> Result<()> {
        let root = self.runner.scope.root.clone();
        self.reset()?;
        lab::remove_files(&root)
            .and_then(|()| left.unfold(&root))
            .and_then(|()| self.runner.hand_over())
            .context(format_args!("make {} anew", root.display()))
    }

    /// Makes the trial directory what it was before a load, without what was in memory only.
    fn lose_memory(&self, before: &Path, unsynced: &InMemory) -> Result<()> {
        let root = self.root();
        let put_back = || {
            lab::remove_files(root)?;
            lab::copy_tree(before, root)?;
            lab::remove_tree(before)?;
            let directory = Directory::open(root)?;
            unsynced.bytes.iter().try_for_each(|(path, bytes)| directory.write(path, bytes))?;
            self.runner.hand_over()
        };
        put_back().context(format_args!("make {} again", root.display()))
    }

    fn one(&mut self, fault: &Fault) -> Result<Outcome> {
        self.reset()?;
        let struckdown = match fault {
            Fault::KillAfter { delay_us } => {
                let (injection, exit) = self.kill_after(*delay_us)?;
                let survivor = self.runner.survivor(&self.learned.state)?;
                Struckdown {
                    injection,
                    exit,
                    acks_before: None,
                    survivor,
                    unsynced: InMemory::default(),
                    steps: Vec::new(),
                }
            }
            _ => self.strike_again(fault)?,
        };
        let Struckdown { injection, exit, acks_before, survivor, unsynced, steps } = struckdown;
        let (acks, said) = (self.runner.output.acks(), self.runner.output.said());
        self.runner.keep()?;
        if let Some(volume) = &self.volume {
            volume.release()?;
        }
        let (mut checks, mut recovery, mut on_disk) = (Vec::new(), Recovery::default(), None);
        let memory = self.history.loads.is_some() && !unsynced.bytes.is_empty();
        let before = self.room.join("before");
        if memory {
            lab::copy_tree(self.root(), &before).context("copy what is left")?;
        }
        if injection.struck() {
            checks = self.check(&survivor, acks, self.runner.output.kept_acks())?;
            recovery = self.recover(&survivor, acks)?;
        }
        if memory {
            self.lose_memory(&before, &unsynced)?;
            on_disk = Some(self.recover(&survivor, acks)?);
        }
        let fault = fault.clone();
        Ok(Outcome {
            fault,
            injection,
            exit,
            acks,
            acks_before,
            said,
            steps,
            unsynced,
            on_disk,
            survivor,
            checks,
            recovery,
        })
    }
}

impl Resident for CommandInjector<'_> {
    fn move_in(&mut self) -> Result<()> {
        self.reset()
    }

    fn run(&mut self, observer: &mut dyn Observer) -> Result<Observed> {
        let timeout = self.runner.limits().timeout();
        let (trace, how) = self.runner.observe(observer, timeout)?;
        match how {
            How::Ended(Ended::Status(0)) => Ok(Observed { trace, ended: true }),
            _ if self.learned.serves => Ok(Observed { trace, ended: false }),
            how => Err(Error::baseline(format!(
                "on the disk the unbroken run ended otherwise: {how:?}"
            ))
            .help("is the disk too small? --fs-size gives more, --timeout more time")),
        }
    }

    fn look(&mut self, acks: u64) -> Result<Sight> {
        let lines = self.runner.output.kept_acks().to_vec();
        self.look_after(acks, &lines)
    }

    fn keep_in(&mut self, directory: PathBuf) {
        self.runner.keep_in(directory);
    }
}

impl Injector for CommandInjector<'_> {
    fn keep_in(&mut self, directory: PathBuf) {
        self.runner.keep_in(directory);
    }

    fn inject(&mut self, faults: &[Fault]) -> Result<Vec<Outcome>> {
        faults.iter().map(|fault| self.one(fault)).collect()
    }

    fn recover(&mut self, left: &Left) -> Result<Option<Recovered>> {
        let Some(recover) = &self.recover else { return Ok(None) };
        if self.recoverer.is_none() {
            let argv = vec!["/bin/sh".to_owned(), "-c".to_owned(), recover.text().to_owned()];
            let command = Command { argv, ..self.learned.command.clone() };
            self.recoverer = Some(Runner::new(&command, &self.room)?);
        }
        self.fill(left)?;
        let Some(runner) = &mut self.recoverer else { return Ok(None) };
        let scope = runner.scope.clone();
        let limits = runner.limits();
        let mut recorder = Recorder::new(&scope, AckCounter::new(None), None, limits.data_bytes);
        let bound = Bound { timeout: self.learned.timeout, grace: GRACE };
        let ran = runner.traced(&mut recorder, Follows::All, bound)?;
        recorder.stores();
        let ended = ran.how == How::Ended(Ended::Status(0));
        Ok(Some(Recovered { trace: recorder.trace, ended }))
    }

    fn confront(&mut self, left: &Left) -> Result<(Vec<Check>, Recovery)> {
        self.fill(left)?;
        self.runner.keep()?;
        let checks = self.check(&left.survivor, left.acks, &self.learned.acked)?;
        Ok((checks, self.recover(&left.survivor, left.acks)?))
    }

    fn explain(&mut self, fault: &Fault) -> Result<Vec<Step>> {
        self.reset()?;
        Ok(self.strike(fault, true)?.steps)
    }
}

/// Why a fault could not be made at all; kept apart from what a subject did.
pub fn no_sites(name: &str) -> Error {
    Error::baseline(format!("`{name}` changes no file in the trial directory"))
        .help("does it save while it runs? what it saves by way of another process, or a network, is not seen")
}
