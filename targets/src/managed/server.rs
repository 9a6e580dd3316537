//! A small broker for tests: a server on loopback with a durable ledger of its own.
//!
//! One request and one answer a connection, each a line of JSON: `{"submit": ORDER}`, `{"cancel": "id"}`,
//! `{"settle": SETTLEMENT}`, `"ledger"`; the answer is `{"ok": ...}` or `{"refused": "why"}`. What it has
//! answered is on its disk, and killed and started again it goes on where it was. It can be told to do
//! wrong: see [`Manners`].

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::broker::{Broker, BrokerError, BrokerOrder, Ledger};
use super::state::{Action, Order, Settlement, Status};
use crate::storage::Disk;
use crate::ways;

/// The ledger, in the directory of the broker.
const LEDGER: &str = "ledger.json";
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a client asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Request {
    Submit(Order),
    Cancel(String),
    Settle(Settlement),
    Ledger,
}

/// What it is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Order(BrokerOrder),
    Ledger(Ledger),
    Done,
    Refused(String),
}

/// How a broker treats a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manners {
    /// He does it and answers.
    #[default]
    Good,
    /// He hangs up before he has done it.
    DropsBefore,
    /// He does it, and hangs up without an answer.
    DropsAfter,
    /// He does it and answers late.
    Delays(Duration),
    /// He does it and answers twice.
    AnswersTwice,
    /// He does it and leaves the order open.
    LeavesOpen,
}

/// What an order costs, in cents apiece, whatever it is about.
pub const PRICE: i64 = 500;

/// A broker and his ledger.
pub struct Server {
    directory: PathBuf,
    ledger: Ledger,
}

impl Server {
    /// A broker who begins with so much cash of the client's, or goes on with the ledger in `directory`.
    pub fn open(directory: &Path, cash: i64) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let ledger = match std::fs::read(directory.join(LEDGER)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ledger { cash, ..Ledger::default() }
            }
            other => serde_json::from_slice(&other?)?,
        };
        Ok(Self { directory: directory.to_owned(), ledger })
    }

    /// Serves one client after the other, `manners` saying how the nth request is treated, from 0.
    pub fn serve(
        mut self,
        listener: &TcpListener,
        manners: &mut dyn FnMut(usize) -> Manners,
    ) -> io::Result<()> {
        for n in 0.. {
            let (stream, _) = listener.accept()?;
            // A client that goes away is nothing to a broker.
            let _ = self.answer(stream, manners(n));
        }
        Ok(())
    }

    fn answer(&mut self, stream: TcpStream, manners: Manners) -> io::Result<()> {
        if manners == Manners::DropsBefore {
            return Ok(());
        }
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        let filled = if manners == Manners::LeavesOpen { Status::Open } else { Status::Filled };
        let answer = match serde_json::from_str(&line) {
            Ok(request) => self.carry_out(request, filled)?,
            Err(error) => Answer::Refused(error.to_string()),
        };
        let mut answer = serde_json::to_vec(&answer)?;
        answer.push(b'\n');
        match manners {
            Manners::DropsAfter => return Ok(()),
            Manners::Delays(time) => std::thread::sleep(time),
            Manners::AnswersTwice => (&stream).write_all(&answer)?,
            Manners::Good | Manners::DropsBefore | Manners::LeavesOpen => {}
        }
        (&stream).write_all(&answer)
    }

    /// Does what is asked, and has it on disk before it is answered.
    fn carry_out(&mut self, request: Request, filled: Status) -> io::Result<Answer> {
        let mut ledger = self.ledger.clone();
        let answer = match request {
            Request::Ledger => return Ok(Answer::Ledger(ledger)),
            Request::Submit(order) => match submit(&mut ledger, &order, filled) {
                Ok(order) => Answer::Order(order),
                Err(why) => Answer::Refused(why),
            },
            Request::Cancel(id) => {
                let open =
                    |order: &&mut BrokerOrder| order.id == id && order.status == Status::Open;
                match ledger.orders.iter_mut().find(open) {
                    Some(order) => {
                        order.status = Status::Cancelled;
                        Answer::Done
                    }
                    None => Answer::Refused(format!("there is no open order {id}")),
                }
            }
            Request::Settle(settlement) => {
                settle(&mut ledger, settlement);
                Answer::Done
            }
        };
        let json = serde_json::to_vec(&ledger)?;
        ways::durably(&mut Disk::default(), &self.directory, LEDGER, &json)?;
        self.ledger = ledger;
        Ok(answer)
    }
}

/// The same without a connection.
impl Server {
    /// Has a position ended.
    pub fn settle(&mut self, settlement: Settlement) -> io::Result<()> {
        self.carry_out(Request::Settle(settlement), Status::Filled).map(|_| ())
    }

    fn here(&mut self, request: Request) -> Result<Answer, BrokerError> {
        match self.carry_out(request, Status::Filled) {
            Ok(Answer::Refused(why)) => Err(BrokerError::Refused(why)),
            Ok(answer) => Ok(answer),
            Err(error) => Err(BrokerError::Unknown(error.to_string())),
        }
    }
}

impl Broker for Server {
    fn submit(&mut self, order: &Order) -> Result<BrokerOrder, BrokerError> {
        self.here(Request::Submit(order.clone()))?.order()
    }

    fn cancel(&mut self, id: &str) -> Result<(), BrokerError> {
        self.here(Request::Cancel(id.to_owned())).map(|_| ())
    }

    fn ledger(&mut self) -> Result<Ledger, BrokerError> {
        self.here(Request::Ledger)?.ledger()
    }
}

impl Answer {
    fn order(self) -> Result<BrokerOrder, BrokerError> {
        match self {
            Self::Order(order) => Ok(order),
            other => Err(BrokerError::Unknown(format!("{other:?} is no order"))),
        }
    }

    fn ledger(self) -> Result<Ledger, BrokerError> {
        match self {
            Self::Ledger(ledger) => Ok(ledger),
            other => Err(BrokerError::Unknown(format!("{other:?} is no ledger"))),
        }
    }
}

/// Carries out an order, once for each id.
fn submit(ledger: &mut Ledger, order: &Order, status: Status) -> Result<BrokerOrder, String> {
    if let Some(known) = ledger.orders.iter().find(|known| known.id == order.id) {
        return Ok(known.clone());
    }
    let Order { id, symbol, action, quantity, .. } = order.clone();
    let signed = if action == Action::Buy { quantity } else { -quantity };
    if quantity <= 0 || PRICE * signed > ledger.cash {
        return Err(format!("{quantity} {symbol} can't be had for {} cents", ledger.cash));
    }
    if status == Status::Filled {
        ledger.cash -= PRICE * signed;
        add(&mut ledger.positions, &symbol, signed);
    }
    let taken = BrokerOrder { id, symbol, action, quantity, price: PRICE, status };
    ledger.orders.push(taken.clone());
    Ok(taken)
}

/// Ends a position: what it cost comes back with the profit.
fn settle(ledger: &mut Ledger, settlement: Settlement) {
    let held = ledger.positions.remove(&settlement.symbol).unwrap_or(0);
    ledger.cash += PRICE * held + settlement.profit;
    ledger.settlements.push(settlement);
}

fn add(positions: &mut BTreeMap<String, i64>, symbol: &str, quantity: i64) {
    let held = positions.entry(symbol.to_owned()).or_default();
    *held += quantity;
    if *held == 0 {
        positions.remove(symbol);
    }
}

/// A broker on the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Remote {
    /// Where he is.
    pub address: SocketAddr,
}

impl Remote {
    /// Has a position ended.
    pub fn settle(&mut self, settlement: Settlement) -> Result<(), BrokerError> {
        self.ask(&Request::Settle(settlement)).map(|_| ())
    }

    fn ask(&self, request: &Request) -> Result<Answer, BrokerError> {
        let unknown = |error: &dyn std::fmt::Display| BrokerError::Unknown(error.to_string());
        let asked = || -> io::Result<String> {
            let stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut line = serde_json::to_vec(request)?;
            line.push(b'\n');
            (&stream).write_all(&line)?;
            let mut answer = String::new();
            BufReader::new(&stream).read_line(&mut answer)?;
            Ok(answer)
        };
        let answer = asked().map_err(|error| unknown(&error))?;
        match serde_json::from_str(&answer).map_err(|error| unknown(&error))? {
            Answer::Refused(why) => Err(BrokerError::Refused(why)),
            other => Ok(other),
        }
    }
}

impl Broker for Remote {
    fn submit(&mut self, order: &Order) -> Result<BrokerOrder, BrokerError> {
        self.ask(&Request::Submit(order.clone()))?.order()
    }

    fn cancel(&mut self, id: &str) -> Result<(), BrokerError> {
        self.ask(&Request::Cancel(id.to_owned())).map(|_| ())
    }

    fn ledger(&mut self) -> Result<Ledger, BrokerError> {
        self.ask(&Request::Ledger)?.ledger()
    }
}
