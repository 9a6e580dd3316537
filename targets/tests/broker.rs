//! The state manager and a broker that goes away: real connections, a real server, real kills.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crashtest_targets::managed::broker::{Broker, BrokerError};
use crashtest_targets::managed::event::Event;
use crashtest_targets::managed::server::Remote;
use crashtest_targets::managed::state::{Action, Order, Settlement, Status};
use crashtest_targets::managed::{ManagerError, Options, StateManager};

/// A broker that is killed with its test.
struct Running {
    process: Child,
    remote: Remote,
}

impl Running {
    fn start(directory: &Path, manners: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_broker"))
            .arg(directory)
            .arg("100000")
            .args(manners)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        Self { process, remote: Remote { address: line.trim().parse().unwrap() } }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // SIGKILL.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn open(directory: &Path) -> StateManager {
    StateManager::open(directory, Options { first_balance: 100_000, ..Options::default() }).unwrap()
}

fn order(id: &str) -> Order {
    Order::new(id, "UP", Action::Buy, 10)
}

/// The state is what the ledger says, and nothing was done twice.
fn agrees(manager: &StateManager, remote: &mut Remote, orders: usize) {
    // Nothing had to be corrected: it was known what the order does.
    let corrected = |event: &Event| {
        matches!(event, Event::BalanceCorrected { .. } | Event::PositionCorrected { .. })
    };
    assert!(!manager.events().iter().any(corrected));
    let (state, ledger) = (manager.state(), remote.ledger().unwrap());
    assert_eq!(state.current_balance, ledger.cash);
    let held = state.positions.iter().map(|p| (p.symbol.clone(), p.quantity)).collect();
    assert_eq!(ledger.positions, held);
    assert_eq!(ledger.orders.len(), orders);
    assert_eq!(state.complaints(), []);
    for order in &ledger.orders {
        assert_eq!(state.order(&order.id).map(|known| known.status), Some(order.status));
    }
}

#[test]
fn whatever_the_connection_does_the_order_is_carried_out_at_most_once() {
    let cases: [(&[&str], usize); 6] = [
        (&["good"], 1),
        (&["drops-before"], 0),
        (&["drops-after"], 1),
        (&["answers-twice", "answers-twice"], 1),
        (&["delays:50", "delays:50"], 1),
        // The order went through, and then the question for the ledger was not answered.
        (&["good", "drops-before"], 1),
    ];
    for (manners, orders) in cases {
        let directory = tempfile::tempdir().unwrap();
        let mut broker = Running::start(&directory.path().join("broker"), manners);
        let manager = open(&directory.path().join("bot"));
        let sent = manager.submit(order("a"), &mut broker.remote);
        drop(manager);
        let manager = open(&directory.path().join("bot"));
        manager.reconcile(&mut broker.remote).unwrap();
        agrees(&manager, &mut broker.remote, orders);
        let unknown = matches!(sent, Err(ManagerError::Broker(BrokerError::Unknown(_))));
        assert_eq!(sent.is_err(), unknown, "{manners:?}");
        // Sent again under its id it is not carried out again.
        if orders == 1 {
            manager.submit(order("a"), &mut broker.remote).unwrap();
            agrees(&manager, &mut broker.remote, 1);
        }
    }
}

#[test]
fn a_broker_that_was_killed_goes_on_with_what_it_has_answered() {
    let directory = tempfile::tempdir().unwrap();
    let manager = open(&directory.path().join("bot"));
    let mut broker = Running::start(&directory.path().join("broker"), &[]);
    assert_eq!(manager.submit(order("a"), &mut broker.remote).unwrap(), Status::Filled);
    drop(broker);
    let mut gone = Remote { address: "127.0.0.1:1".parse().unwrap() };
    let sent = manager.submit(order("b"), &mut gone);
    assert!(matches!(sent, Err(ManagerError::Broker(BrokerError::Unknown(_)))));
    let mut broker = Running::start(&directory.path().join("broker"), &[]);
    manager.reconcile(&mut broker.remote).unwrap();
    assert_eq!(manager.state().order("b").map(|order| order.status), Some(Status::Rejected));
    let events = manager.events();
    assert!(events.contains(&Event::OrderNeverSent("b".to_owned())), "{events:?}");
    let ledger = broker.remote.ledger().unwrap();
    assert_eq!((ledger.orders.len(), ledger.cash), (1, manager.state().current_balance));
}

#[test]
fn an_order_that_nobody_knows_is_cancelled_and_a_settlement_that_was_missed_applied_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut broker = Running::start(&directory.path().join("broker"), &["leaves-open"]);
    // Of a bot whose state is lost.
    broker.remote.submit(&order("orphan")).unwrap();
    let manager = open(&directory.path().join("bot"));
    manager.submit(order("a"), &mut broker.remote).unwrap();
    assert!(manager.events().contains(&Event::OrphanCancelled("orphan".to_owned())));
    drop(manager);
    // While the bot is down.
    let settlement = Settlement { id: "s1".into(), symbol: "UP".into(), profit: 700 };
    broker.remote.settle(settlement).unwrap();
    let manager = open(&directory.path().join("bot"));
    for _ in 0..2 {
        manager.reconcile(&mut broker.remote).unwrap();
        let state = manager.state();
        assert_eq!((state.current_balance, state.realised_profit), (100_700, 700));
        assert_eq!((state.positions.len(), state.peak_balance), (0, 100_700));
    }
}

/// Whether there is a Python; else why the test is skipped.
fn has_python() -> bool {
    let there = Command::new("python3").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !there {
        let required = std::env::var("CRASHTEST_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name == "python3"), "python3 is missing");
        eprintln!("skipped: python3 is missing");
    }
    there
}

#[test]
fn the_twin_in_python_sends_nothing_twice_either_and_rust_agrees_with_its_state() {
    if !has_python() {
        return;
    }
    let script = format!("{}/python/broker_client.py", env!("CARGO_MANIFEST_DIR"));
    // Which of its requests goes wrong: the ledger is asked first, then comes the order, then the ledger.
    for (manners, sent, orders) in [
        (&["good", "good", "good"][..], true, 1),
        (&["drops-before"], false, 0),
        (&["good", "drops-before"], false, 0),
        (&["good", "drops-after"], false, 1),
        (&["good", "good", "drops-after"], false, 1),
        (&["good", "answers-twice"], true, 1),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let mut broker = Running::start(&directory.path().join("broker"), manners);
        let (address, bot) = (broker.remote.address.to_string(), directory.path().join("bot"));
        let run = |id: &[&str]| {
            let mut command = Command::new("python3");
            command.arg(&script).arg(&address).arg(&bot).args(id).stderr(Stdio::null());
            command.output().unwrap().status.success()
        };
        assert_eq!(run(&["a"]), sent, "{manners:?}");
        assert!(run(&[]), "{manners:?}");
        if orders == 1 {
            // It is known, and not sent again.
            assert!(run(&["a"]), "{manners:?}");
        }
        let manager = open(&bot);
        agrees(&manager, &mut broker.remote, orders);
        manager.reconcile(&mut broker.remote).unwrap();
        agrees(&manager, &mut broker.remote, orders);
    }
}
