//! Trials in which a bot and its broker part: the bot in a forked child, the broker's ledger on its disk.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crashtest_targets::bot::{self, CASH, ORDERS, SYMBOL};
use crashtest_targets::managed::broker::{Broker, BrokerError, BrokerOrder, Ledger};
use crashtest_targets::managed::server::Server;
use crashtest_targets::managed::state::{Order, Settlement};
use crashtest_targets::{Disk, FileId, Open, Storage, Strategy};

use super::Injector;
use crate::error::{Context, Error, Result};
use crate::fault::{Fault, Injection, Struck};
use crate::lab;
use crate::os::process::{Ended, fork_child, kill_self, wait_for};
use crate::outcome::{Exit, Outcome};
use crate::parting::{Moment, Parting, Sides};

/// What a settlement brings, in cents: more than any tolerance.
const PROFIT: i64 = 7_000;

/// Has the bot of a strategy and its broker part.
pub struct Outside {
    strategy: Strategy,
    directory: PathBuf,
    keep: Option<PathBuf>,
}

/// Counts the storage calls of a bot, and kills it before one.
struct Counted {
    disk: Disk,
    calls: Arc<AtomicU32>,
    killed_before: Option<u32>,
}

impl Counted {
    fn next(&mut self) -> &mut Disk {
        let n = self.calls.fetch_add(1, Ordering::Relaxed);
        if self.killed_before == Some(n) {
            kill_self();
        }
        &mut self.disk
    }
}

impl Storage for Counted {
    fn open(&mut self, path: &Path, how: Open) -> io::Result<FileId> {
        self.next().open(path, how)
    }

    fn write(&mut self, file: FileId, bytes: &[u8]) -> io::Result<usize> {
        self.next().write(file, bytes)
    }

    fn truncate(&mut self, file: FileId, length: u64) -> io::Result<()> {
        self.next().truncate(file, length)
    }

    fn fsync(&mut self, file: FileId) -> io::Result<()> {
        self.next().fsync(file)
    }

    fn close(&mut self, file: FileId) -> io::Result<()> {
        self.next().close(file)
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.next().rename(from, to)
    }

    fn unlink(&mut self, path: &Path) -> io::Result<()> {
        self.next().unlink(path)
    }

    fn make_directory(&mut self, path: &Path) -> io::Result<()> {
        self.next().make_directory(path)
    }

    fn try_lock(&mut self, file: FileId) -> io::Result<bool> {
        self.disk.try_lock(file)
    }

    fn list(&mut self, directory: &Path) -> io::Result<Vec<OsString>> {
        self.disk.list(directory)
    }
}

/// A broker whose line may break.
struct Line {
    server: Server,
    at: Moment,
    requests: Cell<u32>,
    broken: bool,
}

impl Line {
    fn ask<T>(
        &mut self,
        ask: impl FnOnce(&mut Server) -> std::result::Result<T, BrokerError>,
    ) -> std::result::Result<T, BrokerError> {
        let n = self.requests.replace(self.requests.get() + 1);
        let lost = || BrokerError::Unknown("the connection broke".to_owned());
        self.broken |= self.at == Moment::Unsent(n);
        if self.broken {
            return Err(lost());
        }
        let answer = ask(&mut self.server);
        self.broken |= self.at == Moment::Unanswered(n);
        if self.broken {
            return Err(lost());
        }
        if self.at == Moment::KilledUnanswered(n) || self.at == Moment::KilledAnswered(n) {
            kill_self();
        }
        answer
    }
}

impl Broker for Line {
    fn submit(&mut self, order: &Order) -> std::result::Result<BrokerOrder, BrokerError> {
        self.ask(|server| server.submit(order))
    }

    fn cancel(&mut self, id: &str) -> std::result::Result<(), BrokerError> {
        self.ask(|server| server.cancel(id))
    }

    fn ledger(&mut self) -> std::result::Result<Ledger, BrokerError> {
        self.ask(Server::ledger)
    }
}

/// How many storage calls and requests the unbroken life of a strategy's bot has.
pub fn unbroken(strategy: Strategy, directory: &Path) -> Result<(u32, u32)> {
    let calls = Arc::new(AtomicU32::new(0));
    let mut line = begin(directory, Moment::AtTheEnd).context("begin the life of a bot")?;
    let disk = Counted { disk: Disk::default(), calls: Arc::clone(&calls), killed_before: None };
    bot::live(strategy, Box::new(disk), &directory.join("bot"), &mut line)
        .map_err(|why| Error::baseline(format!("the bot of `{}` fails: {why}", strategy.name())))?;
    Ok((calls.load(Ordering::Relaxed), line.requests.get()))
}

/// An empty place for a bot, and a broker.
fn begin(directory: &Path, at: Moment) -> io::Result<Line> {
    lab::remove_tree(directory)?;
    fs::create_dir_all(directory.join("bot"))?;
    let server = Server::open(&directory.join("broker"), CASH)?;
    Ok(Line { server, at, requests: Cell::new(0), broken: false })
}

impl Outside {
    /// An injector that works in `room`.
    #[must_use]
    pub fn new(strategy: Strategy, room: &Path) -> Self {
        Self { strategy, directory: room.join("outside"), keep: None }
    }

    /// One life that is broken, and how it ended.
    fn broken(&self, at: Moment) -> io::Result<Ended> {
        let mut line = begin(&self.directory, at)?;
        let killed_before = if let Moment::Killed(n) = at { Some(n) } else { None };
        let place = self.directory.join("bot");
        let child = fork_child(|| {
            let disk = Counted { disk: Disk::default(), calls: Arc::default(), killed_before };
            i32::from(bot::live(self.strategy, Box::new(disk), &place, &mut line).is_err())
        })?;
        wait_for(child)
    }

    /// The next start, and what both sides then say.
    fn started_again(&self, moves_on: bool) -> io::Result<Sides> {
        let (broker, place) = (self.directory.join("broker"), self.directory.join("bot"));
        let mut server = Server::open(&broker, CASH)?;
        let ledger = |server: &mut Server| {
            server.ledger().map_err(|error| io::Error::other(error.to_string()))
        };
        if moves_on && ledger(&mut server)?.positions.contains_key(SYMBOL) {
            let (id, symbol) = ("settled-meanwhile".to_owned(), SYMBOL.to_owned());
            server.settle(Settlement { id, symbol, profit: PROFIT })?;
        }
        let at = Moment::AtTheEnd;
        let mut line = Line { server, at, requests: Cell::new(0), broken: false };
        let lived = bot::live(self.strategy, Box::new(Disk::default()), &place, &mut line);
        let ledger = ledger(&mut line.server)?;
        let of_kind =
            |(action, _)| (ledger.orders.iter().filter(|order| order.action == action).count(), 1);
        let belief = lived.and_then(|()| bot::belief(self.strategy, &place));
        let known = belief.as_ref().ok().and_then(|belief| belief.orders.clone());
        let unknown = ledger.orders.iter().map(|order| order.id.clone());
        let unknown =
            unknown.filter(|id| known.as_ref().is_some_and(|known| !known.contains(id))).collect();
        Ok(Sides {
            orders: ORDERS.into_iter().map(of_kind).collect(),
            unknown,
            ledger: (ledger.cash, ledger.positions.get(SYMBOL).copied().unwrap_or(0)),
            bot: belief.map(|belief| (belief.cash, belief.held)),
            objection: None,
        })
    }

    fn one(&mut self, parting: Parting, fault: &Fault) -> Result<Outcome> {
        let ended = self.broken(parting.at).context("let a bot live")?;
        if let Some(keep) = self.keep.take() {
            lab::copy_tree(&self.directory, &keep)
                .context(format_args!("keep a copy in {}", keep.display()))?;
        }
        let sides = self.started_again(parting.moves_on).context("start a bot again")?;
        Ok(Outcome::new(
            fault.clone(),
            Injection::At(Struck::Parted { sides }),
            match ended {
                Ended::Status(status) => Exit::Status(status),
                Ended::Signal(_) => Exit::Killed,
            },
        ))
    }
}

impl Injector for Outside {
    fn inject(&mut self, faults: &[Fault]) -> Result<Vec<Outcome>> {
        let one = |fault| match fault {
            &Fault::Parted(parting) => self.one(parting, fault),
            _ => Err(Error::internal("only partings are made here")),
        };
        faults.iter().map(one).collect()
    }

    fn keep_in(&mut self, directory: PathBuf) {
        self.keep = Some(directory);
    }
}
