//! The state manager, by the incidents that it is there for.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Barrier};

use chrono::{DateTime, TimeDelta, Utc};
use crashtest_targets::managed::backups::BACKUPS;
use crashtest_targets::managed::broker::{Broker, BrokerError, BrokerOrder, Ledger};
use crashtest_targets::managed::event::Event;
use crashtest_targets::managed::state::{Action, Order, State, Status};
use crashtest_targets::managed::store::{DAMAGED_PREFIX, LOCK_FILE, StoreError};
use crashtest_targets::managed::{ManagerError, Options, Remote, StateManager, envelope, store};
use tempfile::TempDir;

/// A clock that is set by hand.
#[derive(Clone)]
struct Hand(Arc<AtomicI64>);

impl Hand {
    fn new() -> Self {
        Self(Arc::new(AtomicI64::new(20_000 * 24 * 60)))
    }

    fn pass(&self, minutes: i64) {
        self.0.fetch_add(minutes, Ordering::SeqCst);
    }

    fn now(&self) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::minutes(self.0.load(Ordering::SeqCst))
    }

    fn options(&self) -> Options {
        let clock = self.clone();
        let clock = Box::new(move || clock.now());
        Options {
            first_balance: 100_000,
            settings_hash: "s1".to_owned(),
            clock,
            ..Options::default()
        }
    }

    fn open(&self, directory: &Path) -> StateManager {
        StateManager::open(directory, self.options()).unwrap()
    }
}

fn order(id: &str) -> Order {
    Order::new(id, "UP", Action::Buy, 10)
}

fn backups(directory: &Path) -> Vec<String> {
    store::backups(directory).iter().map(|backup| backup.name()).collect()
}

fn aside(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(DAMAGED_PREFIX)).collect()
}

/// A directory with three saves, five minutes apart, of balances 901, 902 and 903.
fn saved(hand: &Hand) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let manager = hand.open(directory.path());
    for balance in 901..=903 {
        hand.pass(5);
        manager.update(|state| state.current_balance = balance * 100).unwrap();
    }
    directory
}

#[test]
fn the_first_start_begins_with_the_default_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let inner = directory.path().join("made/on/the/way");
    let manager = Hand::new().open(&inner);
    assert_eq!(manager.events(), [Event::Default]);
    assert_eq!(manager.state().current_balance, 100_000);
}

#[test]
fn a_directory_that_is_a_link_is_as_good_as_another() {
    let hand = Hand::new();
    let directory = saved(&hand);
    let link = tempfile::tempdir().unwrap();
    let link = link.path().join("state");
    std::os::unix::fs::symlink(directory.path(), &link).unwrap();
    let manager = hand.open(&link);
    manager.update(|state| state.current_balance = 5).unwrap();
    drop(manager);
    assert_eq!(hand.open(directory.path()).state().current_balance, 5);
}

#[test]
fn what_was_saved_is_loaded_by_the_next_start() {
    let hand = Hand::new();
    let directory = tempfile::tempdir().unwrap();
    let manager = hand.open(directory.path());
    manager.realise(5000, "redeemed").unwrap();
    let state = manager.state();
    drop(manager);
    let manager = hand.open(directory.path());
    assert_eq!((manager.state(), manager.events()), (state, vec![]));
}

#[test]
fn a_file_that_was_cut_off_falls_back_to_the_newest_good_backup_and_is_kept_aside() {
    let hand = Hand::new();
    let directory = saved(&hand);
    let file = directory.path().join("state.json");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..100]).unwrap();
    let manager = hand.open(directory.path());
    let events = manager.events();
    assert!(matches!(&events[..], [Event::FellBack { backup, .. }, Event::SetAside(name)]
        if *backup == backups(directory.path())[0] && *name == aside(directory.path())[0]));
    assert_eq!(manager.state().current_balance, 90_300);
    assert_eq!(
        fs::read(directory.path().join(&aside(directory.path())[0])).unwrap(),
        &whole[..100]
    );
    drop(manager);
    assert_eq!(hand.open(directory.path()).events(), []);
}

#[test]
fn a_damaged_backup_is_passed_over_and_one_before_it_is_taken() {
    let hand = Hand::new();
    let directory = saved(&hand);
    fs::write(directory.path().join("state.json"), "{}").unwrap();
    let newest = backups(directory.path())[0].clone();
    fs::write(directory.path().join(BACKUPS).join(&newest), "").unwrap();
    let manager = hand.open(directory.path());
    assert_eq!(manager.state().current_balance, 90_200);
    assert!(matches!(&manager.events()[..], [Event::BackupDamaged { backup, .. }, ..]
        if *backup == newest));
}

#[test]
fn where_nothing_is_whole_nothing_is_made_up_and_nothing_changed() {
    let hand = Hand::new();
    let directory = saved(&hand);
    for name in backups(directory.path()) {
        fs::write(directory.path().join(BACKUPS).join(name), "{").unwrap();
    }
    for left in [Some("garbage"), None] {
        let file = directory.path().join("state.json");
        match left {
            Some(left) => fs::write(&file, left).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        let refused = StateManager::open(directory.path(), hand.options());
        assert!(matches!(refused, Err(ManagerError::Store(StoreError::Lost(_)))));
        assert_eq!(fs::read_to_string(&file).ok().as_deref(), left);
    }
}

#[test]
fn a_state_file_that_was_deleted_comes_back_from_its_backup() {
    let hand = Hand::new();
    let directory = saved(&hand);
    fs::remove_file(directory.path().join("state.json")).unwrap();
    let manager = hand.open(directory.path());
    assert_eq!(manager.state().current_balance, 90_300);
    assert!(matches!(&manager.events()[..], [Event::Restored { .. }]));
}

#[test]
fn an_older_file_that_was_put_back_is_noticed() {
    let hand = Hand::new();
    let directory = saved(&hand);
    let oldest = backups(directory.path()).pop().unwrap();
    let old = directory.path().join(BACKUPS).join(oldest);
    fs::copy(old, directory.path().join("state.json")).unwrap();
    let manager = hand.open(directory.path());
    assert_eq!(manager.state().current_balance, 90_300);
    assert!(matches!(&manager.events()[0], Event::RolledBack { file: 1, newest: 3, .. }));
}

#[test]
fn a_directory_a_link_and_a_dangling_link_are_no_state_file() {
    let hand = Hand::new();
    for replace in 0..3 {
        let directory = saved(&hand);
        let file = directory.path().join("state.json");
        fs::rename(&file, directory.path().join("elsewhere")).unwrap();
        match replace {
            0 => fs::create_dir(&file).unwrap(),
            1 => std::os::unix::fs::symlink("elsewhere", &file).unwrap(),
            _ => std::os::unix::fs::symlink("nowhere", &file).unwrap(),
        }
        let manager = hand.open(directory.path());
        assert_eq!(manager.state().current_balance, 90_300, "{replace}");
        assert!(matches!(&manager.events()[0], Event::FellBack { .. }));
        assert!(fs::symlink_metadata(&file).unwrap().is_file());
    }
}

#[test]
fn a_state_of_a_newer_version_is_refused_and_left_alone() {
    let hand = Hand::new();
    let directory = saved(&hand);
    let covered = r#"{"format":"managed-state","schema":9,"sequence":9,"saved_at":"2026-01-01T00:00:00.000Z","state":{}"#;
    let crc = crc32fast::hash(covered.as_bytes());
    let newer = format!("{covered},\"crc32\":\"{crc:08x}\"}}\n");
    fs::write(directory.path().join("state.json"), &newer).unwrap();
    let refused = StateManager::open(directory.path(), hand.options());
    assert!(matches!(refused, Err(ManagerError::Store(StoreError::Newer(9)))));
    assert_eq!(fs::read_to_string(directory.path().join("state.json")).unwrap(), newer);
}

#[test]
fn whole_json_that_is_no_bot_and_a_negative_balance_are_refused() {
    let hand = Hand::new();
    let directory = tempfile::tempdir().unwrap();
    let put = |state: &[u8]| {
        let sealed = envelope::seal(1, hand.now(), state);
        fs::write(directory.path().join("state.json"), sealed).unwrap();
        StateManager::open(directory.path(), hand.options()).err()
    };
    assert!(matches!(put(br#"{"balance":1}"#), Some(ManagerError::Shape(_))));
    let debt = State { current_balance: -5, ..State::new(0, "s1", hand.now()) };
    assert!(matches!(put(&serde_json::to_vec(&debt).unwrap()), Some(ManagerError::Invalid(_))));
}

#[test]
fn a_change_that_can_not_be_is_not_saved_and_leaves_the_state_as_it_was() {
    let hand = Hand::new();
    let directory = saved(&hand);
    let manager = hand.open(directory.path());
    let before = manager.state();
    assert!(manager.update(|state| state.current_balance = -1).is_err());
    assert_eq!(manager.state(), before);
}

#[test]
fn changed_settings_and_a_clock_that_jumped_back_are_told_and_hinder_nothing() {
    let hand = Hand::new();
    let directory = saved(&hand);
    hand.pass(-60 * 24 * 365);
    let options = Options { settings_hash: "s2".to_owned(), ..hand.options() };
    let manager = StateManager::open(directory.path(), options).unwrap();
    let events = manager.events();
    assert!(matches!(&events[..], [Event::SettingsChanged { .. }, Event::ClockWentBack { .. }]));
    // And the next save is backed up, though the last backup seems to lie in the future.
    manager.update(|state| state.current_balance = 7).unwrap();
    assert!(manager.events().iter().any(|event| matches!(event, Event::BackedUp(_))));
    drop(manager);
    assert_eq!(hand.open(directory.path()).state().current_balance, 7);
}

#[test]
fn only_one_process_at_a_time_and_no_lock_outlives_its_holder() {
    let hand = Hand::new();
    let directory = saved(&hand);
    let first = hand.open(directory.path());
    let Err(ManagerError::Store(StoreError::Locked(who))) =
        StateManager::open(directory.path(), hand.options())
    else {
        panic!("two at a time");
    };
    assert_eq!(who, format!("process {:010}", std::process::id()));
    drop(first);
    // The file stays, and says the number of a process that is not: that means nothing.
    fs::write(directory.path().join(LOCK_FILE), "process 0000000001\n").unwrap();
    hand.open(directory.path());
}

#[test]
fn threads_that_save_at_once_lose_nothing() {
    let hand = Hand::new();
    let directory = tempfile::tempdir().unwrap();
    let manager = hand.open(directory.path());
    let start = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                start.wait();
                for _ in 0..25 {
                    manager.realise(100, "won").unwrap();
                }
            });
        }
    });
    assert_eq!(manager.state().realised_profit, 20_000);
    drop(manager);
    assert_eq!(hand.open(directory.path()).state().current_balance, 120_000);
}

#[test]
fn what_a_crash_left_is_cleaned_at_the_next_start() {
    let hand = Hand::new();
    let directory = saved(&hand);
    fs::write(directory.path().join(".state.json.0123456789abcdef"), "half").unwrap();
    fs::write(directory.path().join(BACKUPS).join(".state.json.0123"), "half").unwrap();
    assert_eq!(hand.open(directory.path()).events().len(), 2);
    let left = fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(left, ["state.json", "state.lock", "backups"].len());
}

#[test]
fn a_backup_is_made_every_five_minutes_or_by_reason_and_ten_are_kept() {
    let hand = Hand::new();
    let directory = tempfile::tempdir().unwrap();
    let manager = hand.open(directory.path());
    for minute in 0..20 {
        manager.update(|state| state.current_balance = minute).unwrap();
        hand.pass(1);
    }
    assert_eq!(backups(directory.path()).len(), 4);
    manager.back_up("before upgrade").unwrap();
    assert!(backups(directory.path())[0].ends_with("-before-upgrade.json"));
    for minute in 0..200 {
        hand.pass(1);
        manager.update(|state| state.current_balance = minute).unwrap();
    }
    let kept = backups(directory.path());
    // Ten, and the last of each hour before them.
    assert!((10..=14).contains(&kept.len()), "{kept:?}");
}

#[test]
fn ten_thousand_old_backups_are_no_hindrance_and_go() {
    let hand = Hand::new();
    let directory = saved(&hand);
    let newest = backups(directory.path())[0].clone();
    let bytes = fs::read(directory.path().join(BACKUPS).join(&newest)).unwrap();
    for n in 0..10_000 {
        let old = directory.path().join(BACKUPS);
        let at = hand.now() - TimeDelta::days(31) - TimeDelta::minutes(n);
        let name = format!("state-{}-0000000000-schedule.json", at.format("%Y%m%dT%H%M%S%3fZ"));
        fs::write(old.join(name), &bytes).unwrap();
    }
    hand.pass(5);
    let manager = hand.open(directory.path());
    manager.update(|state| state.current_balance = 1).unwrap();
    assert_eq!(backups(directory.path()).len(), 4);
}

#[test]
fn the_documented_restore_works_from_each_backup() {
    let hand = Hand::new();
    for n in 0..3 {
        let directory = saved(&hand);
        let manager = hand.open(directory.path());
        let backup = backups(directory.path())[n].clone();
        manager.restore(&backup).unwrap();
        drop(manager);
        let manager = hand.open(directory.path());
        // It is the newest now: no later backup takes its place.
        assert_eq!(manager.state().current_balance, 90_300 - 100 * n as i64);
        assert_eq!(manager.events(), []);
    }
}

#[test]
fn a_directory_that_is_gone_is_an_error_and_not_a_loss() {
    let hand = Hand::new();
    let directory = saved(&hand);
    let manager = hand.open(directory.path());
    let gone = directory.path().with_extension("gone");
    fs::rename(directory.path(), &gone).unwrap();
    let state = manager.state();
    let failed = manager.update(|state| state.current_balance = 1);
    assert!(matches!(failed, Err(ManagerError::Store(StoreError::Io(..)))));
    assert_eq!(manager.state(), state);
    fs::rename(&gone, directory.path()).unwrap();
    manager.update(|state| state.current_balance = 1).unwrap();
}

/// A remote that is down for a while.
#[derive(Clone, Default)]
struct Flaky(Arc<AtomicI64>, Arc<std::sync::Mutex<Vec<String>>>);

impl Remote for Flaky {
    fn put(&mut self, name: &str, _: &[u8]) -> Result<(), String> {
        if self.0.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Err("connection refused".to_owned());
        }
        self.1.lock().unwrap().push(name.to_owned());
        Ok(())
    }
}

#[test]
fn a_remote_that_is_down_hinders_no_save_is_told_and_gets_its_copy_later() {
    let (hand, remote) = (Hand::new(), Flaky::default());
    remote.0.store(2, Ordering::SeqCst);
    let directory = tempfile::tempdir().unwrap();
    let options = Options { remote: Some(Box::new(remote.clone())), ..hand.options() };
    let manager = StateManager::open(directory.path(), options).unwrap();
    for _ in 0..3 {
        manager.update(|state| state.current_balance -= 1).unwrap();
        hand.pass(5);
    }
    let failed = manager.events();
    let failed = failed.iter().filter(|event| matches!(event, Event::CopyFailed { .. }));
    assert_eq!(failed.count(), 2);
    let mut all = backups(directory.path());
    all.reverse();
    assert_eq!(*remote.1.lock().unwrap(), all);
}

/// A broker in memory; what it is asked may be cut off before or after it is done.
#[derive(Clone, Default)]
struct Memory(Rc<RefCell<(Ledger, u32)>>);

impl Memory {
    fn break_after(&self, calls: u32) {
        self.0.borrow_mut().1 = calls;
    }

    fn count(&self) -> Result<(), BrokerError> {
        let mut inner = self.0.borrow_mut();
        inner.1 = inner.1.wrapping_sub(1);
        let broken = BrokerError::Unknown("the connection broke".to_owned());
        if inner.1 == 0 { Err(broken) } else { Ok(()) }
    }
}

impl Broker for Memory {
    fn submit(&mut self, order: &Order) -> Result<BrokerOrder, BrokerError> {
        self.count()?;
        let found = self.0.borrow().0.orders.iter().find(|known| known.id == order.id).cloned();
        let taken = found.unwrap_or_else(|| {
            let Order { id, symbol, action, quantity, .. } = order.clone();
            let status = Status::Filled;
            let taken = BrokerOrder { id, symbol, action, quantity, price: 500, status };
            let ledger = &mut self.0.borrow_mut().0;
            ledger.cash -= 500 * quantity;
            *ledger.positions.entry(taken.symbol.clone()).or_default() += quantity;
            ledger.orders.push(taken.clone());
            taken
        });
        self.count()?;
        Ok(taken)
    }

    fn cancel(&mut self, id: &str) -> Result<(), BrokerError> {
        self.count()?;
        let orders = &mut self.0.borrow_mut().0.orders;
        orders.iter_mut().filter(|order| order.id == id).for_each(|order| {
            order.status = Status::Cancelled;
        });
        Ok(())
    }

    fn ledger(&mut self) -> Result<Ledger, BrokerError> {
        self.count()?;
        Ok(self.0.borrow().0.clone())
    }
}

#[test]
fn a_broker_that_goes_away_at_any_moment_gets_each_order_once_and_leaves_no_orphan() {
    for calls in 0..8 {
        let hand = Hand::new();
        let directory = tempfile::tempdir().unwrap();
        let mut broker = Memory::default();
        broker.0.borrow_mut().0.cash = 100_000;
        let manager = hand.open(directory.path());
        broker.break_after(calls);
        let sent = manager.submit(order("a"), &mut broker);
        drop(manager);
        // The next start.
        broker.break_after(0);
        let manager = hand.open(directory.path());
        manager.reconcile(&mut broker).unwrap();
        let (state, ledger) = (manager.state(), broker.ledger().unwrap());
        assert!(ledger.orders.len() <= 1, "sent twice");
        let held: i64 = state.positions.iter().map(|position| position.quantity).sum();
        assert_eq!(held, ledger.positions.get("UP").copied().unwrap_or(0), "after {calls} calls");
        assert_eq!((state.current_balance, state.complaints()), (ledger.cash, vec![]));
        assert!(state.orders.iter().all(|order| order.status.is_final()));
        // Sent again with the same id, it is known, and what never came may be sent anew with another.
        if sent.is_ok() {
            manager.submit(order("a"), &mut broker).unwrap();
            assert_eq!(broker.ledger().unwrap().orders.len(), 1);
        }
    }
}

#[test]
fn a_halted_bot_sends_nothing() {
    let hand = Hand::new();
    let directory = tempfile::tempdir().unwrap();
    let manager = hand.open(directory.path());
    let now = hand.now();
    manager.update(|state| state.halt("drawdown of 20 %", now)).unwrap();
    let mut broker = Memory::default();
    let refused = manager.submit(order("a"), &mut broker);
    assert!(matches!(refused, Err(ManagerError::Halted(_))));
    assert_eq!(broker.0.borrow().0.orders, []);
}
