//! Trials in which a program and its broker part: the line between them breaks, or the program is killed.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Injector;
use super::checks::{Said, Shell};
use super::line::Line;
use super::output::AckCounter;
use super::recorder::Recorder;
use super::runner::{Bound, GRACE, Plain, Runner};
use super::striker::Striker;
use super::tracer::How;
use crate::armed::Follows;
use crate::error::{Context, Error, Result};
use crate::fault::{Fault, Injection, Nature, Point, Strike, Struck};
use crate::lab;
use crate::op::Trace;
use crate::os::process::{self, Ended};
use crate::os::signals;
use crate::outcome::{Exit, Outcome};
use crate::parting::{Moment, Parting, Sides};
use crate::plan::Sites;
use crate::subject::Command;

/// How often it is looked whether the program is to be killed.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Has a program and its broker part.
pub struct Bot {
    runner: Runner,
    listener: TcpListener,
    broker: String,
    check: Shell,
    settle: Option<Shell>,
    /// The directory in which the broker runs.
    place: PathBuf,
    timeout: Duration,
    data_bytes: u64,
    keep: Option<PathBuf>,
}

impl Bot {
    /// One that works in `room`.
    pub fn new(command: &Command, room: &Path) -> Result<Self> {
        let (Some(broker), Some(check)) = (&command.broker, &command.check) else {
            return Err(Error::internal("a bot lacks its broker or its check"));
        };
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen for the program")?;
        let address = listener.local_addr().context("listen for the program")?.to_string();
        let place = room.join("broker");
        let mut command = command.clone();
        for argument in &mut command.argv {
            *argument = argument.replace("{broker}", &address);
        }
        command.env.insert("CRASHTEST_BROKER", address.clone());
        let ledger = place.display().to_string();
        command.env.insert("CRASHTEST_LEDGER", ledger);
        let runner = Runner::new(&command, room)?;
        let root = runner.scope.root.clone();
        let shell = |text: &String| {
            Shell::new(&text.replace("{broker}", &address), &command, &root, runner.sandbox())
        };
        Ok(Self {
            check: shell(check)?,
            settle: command.settle.as_ref().map(shell).transpose()?,
            broker: Shell::new(broker, &command, &place, None)?.text().to_owned(),
            timeout: command.limits.timeout(),
            data_bytes: command.limits.data_bytes,
            keep: None,
            listener,
            place,
            runner,
        })
    }

    /// An empty directory for the program, and one for its broker, which listens.
    fn begin(&mut self, at: Moment) -> Result<Line> {
        self.runner.reset()?;
        lab::remove_tree(&self.place)
            .and_then(|()| fs::create_dir_all(&self.place))
            .context(format_args!("make {}", self.place.display()))?;
        Line::start(&self.listener, &self.broker, &self.place, at)
    }

    /// The unbroken life: what it calls, and how many requests it makes. The program must then start
    /// again, and the check must hold.
    pub fn unbroken(&mut self, name: &str) -> Result<(Trace, u32)> {
        let mut line = self.begin(Moment::AtTheEnd)?;
        let scope = self.runner.scope.clone();
        let mut recorder = Recorder::new(&scope, AckCounter::new(None), None, self.data_bytes);
        let bound = Bound { timeout: self.timeout, grace: GRACE };
        let ran = self.runner.traced(&mut recorder, Follows::All, bound)?;
        if signals::interrupted() {
            return Err(Error::interrupted());
        }
        if !matches!(ran.how, How::Ended(Ended::Status(0))) {
            let words = self.runner.output.last_words();
            let what =
                format!("the unbroken life of `{name}` did not end well ({:?}): {words}", ran.how);
            return Err(Error::baseline(what));
        }
        let (trace, requests) = (recorder.trace, line.requests()?);
        if requests == 0 {
            let what = format!("`{name}` asks its broker nothing");
            return Err(Error::baseline(what).help(
                "it finds the broker's address in {broker} among its arguments, and in CRASHTEST_BROKER",
            ));
        }
        let sides = self.started_again(&mut line, false)?;
        match (sides.bot, sides.objection) {
            (Ok(_), None) => Ok((trace, requests)),
            (Err(why), _) | (Ok(_), Some(why)) => {
                let what = format!("though `{name}` and its broker never parted, {}", why.trim());
                Err(Error::baseline(what).help(
                    "the program is started a second time, and must end well; --check then compares it with \
                     the broker, which it finds in CRASHTEST_BROKER and whose directory is CRASHTEST_LEDGER",
                ))
            }
        }
    }

    /// Lets the program live until its own end, or until the line says that it is to be killed.
    fn live(&mut self, line: &mut Line) -> Result<Exit> {
        let mut told = Ok(false);
        let runner = &mut self.runner;
        let timeout = self.timeout;
        let ran = process::adopt_orphans(|| {
            let child = runner.start()?;
            let started = std::time::Instant::now();
            let ended = loop {
                let ended = process::wait_at_most(child, LOOK_EVERY)?;
                told = line.says_kill();
                let over = started.elapsed() >= timeout || signals::ends();
                if ended.is_some() || !matches!(told, Ok(false)) || over {
                    break ended;
                }
                runner.output.drain()?;
            };
            process::end_descendants()?;
            runner.sandbox().map_or(Ok(()), |sandbox| sandbox.end_all())?;
            runner.output.drain()?;
            Ok(ended)
        });
        let ended = ran.context("run the program")?;
        self.runner.started()?;
        Ok(match (ended, told?) {
            (_, true) => Exit::Killed,
            (Some(Ended::Status(status)), _) => Exit::Status(status),
            (Some(Ended::Signal(signal)), _) => Exit::Signal(signal),
            (None, false) => Exit::TimedOut,
        })
    }

    /// One life up to that moment; none if it was not reached.
    fn broken(&mut self, line: &mut Line, at: Moment, sites: &Sites) -> Result<Option<Exit>> {
        let Moment::Killed(n) = at else {
            let exit = self.live(line)?;
            let reached = match at {
                Moment::Unsent(n) | Moment::Unanswered(n) => line.requests()? > n,
                Moment::KilledUnanswered(_) | Moment::KilledAnswered(_) => exit == Exit::Killed,
                Moment::Killed(_) | Moment::AtTheEnd => true,
            };
            return Ok(reached.then_some(exit));
        };
        let Some(site) = sites.sites.get(usize::try_from(n).unwrap_or(usize::MAX)) else {
            return Ok(None);
        };
        let (op, call, nth) = (site.op, site.call, site.nth);
        let strike = Strike { op, call, nth, point: Point::Before, nature: Nature::Natural };
        let scope = self.runner.scope.clone();
        let mut striker = Striker::new(&Fault::Kill(strike), &scope, None, false);
        let bound = Bound { timeout: self.timeout, grace: GRACE };
        let follows = striker.follows();
        self.runner.traced(&mut striker, follows, bound)?;
        Ok(striker.injection().struck().then_some(Exit::Killed))
    }

    /// The next start, and what the check then says.
    fn started_again(&mut self, line: &mut Line, moves_on: bool) -> Result<Sides> {
        line.mend()?;
        let mut sides = Sides::of_program();
        if let (true, Some(settle)) = (moves_on, &self.settle) {
            match settle.run(self.timeout)? {
                Said::Yes => {}
                other => {
                    let what = format!("--settle fails: {other:?}");
                    return Err(Error::baseline(what).help("it is to let the ledger move on"));
                }
            }
        }
        sides.bot = match self.runner.plain(None, self.timeout)? {
            Plain::Ended(Ended::Status(0)) => Ok((0, 0)),
            other => {
                let words = self.runner.output.last_words();
                Err(format!("started again, it does not end well ({other:?}): {words}"))
            }
        };
        sides.objection = match self.check.run(self.timeout)? {
            Said::Yes => None,
            Said::No(why) => Some(format!("--check: {why}")),
            Said::Hung => Some("--check did not end in time".to_owned()),
        };
        Ok(sides)
    }

    fn one(&mut self, parting: Parting, fault: &Fault, sites: &Sites) -> Result<Outcome> {
        let mut line = self.begin(parting.at)?;
        let exit = self.broken(&mut line, parting.at, sites)?;
        if let Some(keep) = self.keep.take() {
            lab::copy_tree(&self.runner.scope.root, &keep)
                .context(format_args!("keep a copy in {}", keep.display()))?;
        }
        let injection = match exit {
            None => Injection::NotReached,
            Some(_) => {
                let sides = self.started_again(&mut line, parting.moves_on)?;
                Injection::At(Struck::Parted { sides })
            }
        };
        Ok(Outcome::new(fault.clone(), injection, exit.unwrap_or(Exit::Status(0))))
    }
}

/// The same with the sites of its unbroken life.
pub struct Partings<'a> {
    bot: Bot,
    sites: &'a Sites,
}

impl<'a> Partings<'a> {
    /// An injector that works in `room`.
    pub fn new(command: &Command, sites: &'a Sites, room: &Path) -> Result<Self> {
        Ok(Self { bot: Bot::new(command, room)?, sites })
    }
}

impl Injector for Partings<'_> {
    fn inject(&mut self, faults: &[Fault]) -> Result<Vec<Outcome>> {
        let one = |fault| match fault {
            &Fault::Parted(parting) => self.bot.one(parting, fault, self.sites),
            _ => Err(Error::internal("only partings are made here")),
        };
        faults.iter().map(one).collect()
    }

    fn keep_in(&mut self, directory: PathBuf) {
        self.bot.keep = Some(directory);
    }
}
