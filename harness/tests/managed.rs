//! The state manager in Rust and its twin in Python: the same files.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use crashtest_targets::managed::event::Event;
use crashtest_targets::managed::state::State;
use crashtest_targets::managed::{Options, StateManager, store};

fn script(name: &str) -> String {
    format!("{}/../targets/python/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn python(python: &str, arguments: &[&str], directory: &Path) -> String {
    let output = Command::new(python).args(arguments).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn open(directory: &Path) -> StateManager {
    let settings_hash = "5c1f3a0e".to_owned();
    StateManager::open(directory, Options { settings_hash, ..Options::default() }).unwrap()
}

#[test]
fn each_of_the_twins_loads_what_the_other_has_saved() {
    let Some(interpreter) = common::python() else { return };
    let directory = tempfile::tempdir().unwrap();
    python(&interpreter, &[&script("managed_bot.py")], directory.path());
    let manager = open(directory.path());
    assert_eq!(manager.events(), []);
    assert_eq!(
        (manager.state().current_balance, manager.state().realised_profit),
        (1_000_822, 822)
    );
    // While one has the lock the other is sent away.
    let refused = Command::new(&interpreter)
        .arg(script("managed_bot.py"))
        .current_dir(directory.path())
        .output()
        .unwrap();
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("in use by process"), "{why}");
    manager.realise(-500, "lost").unwrap();
    let state = manager.state();
    drop(manager);
    let loaded = python(&interpreter, &[&script("managed.py"), "load", "."], directory.path());
    assert_eq!(serde_json::from_str::<State>(&loaded).unwrap(), state);
}

#[test]
fn each_of_the_twins_falls_back_to_the_backup_of_the_other_and_restores_from_it() {
    let Some(interpreter) = common::python() else { return };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("state.json");
    python(&interpreter, &[&script("managed_bot.py")], directory.path());
    let whole = fs::read(&file).unwrap();
    // One bit: still JSON, and no longer what was saved.
    let mut flipped = whole.clone();
    let digit = flipped.windows(7).position(|window| window == b"1000822").unwrap();
    flipped[digit] ^= 2;
    fs::write(&file, flipped).unwrap();
    let manager = open(directory.path());
    assert!(matches!(&manager.events()[0], Event::FellBack { .. }));
    assert_eq!(manager.state().current_balance, 1_000_822);
    manager.back_up("by rust").unwrap();
    drop(manager);
    fs::write(&file, &fs::read(&file).unwrap()[..40]).unwrap();
    let loaded = python(&interpreter, &[&script("managed.py"), "load", "."], directory.path());
    assert_eq!(serde_json::from_str::<State>(&loaded).unwrap().current_balance, 1_000_822);
    let oldest = store::backups(directory.path()).pop().unwrap().name();
    let restore = [&script("managed.py"), "restore", ".", &oldest];
    python(&interpreter, &restore, directory.path());
    let manager = open(directory.path());
    assert_eq!((manager.events(), manager.state().current_balance), (vec![], 1_000_137));
}

#[test]
fn a_state_in_directories_that_were_not_there_survives_a_loss_of_power() {
    let Some(interpreter) = common::python() else { return };
    if !common::can_follow() {
        return;
    }
    let script = "import datetime, managed\n\
        now = datetime.datetime(2026, 1, 5, 9, 30, tzinfo=managed.UTC)\n\
        with managed.StateManager('a/b', '5c1f3a0e', 1_000_000, lambda: now) as manager:\n\
        \x20   manager.realise(137, 'trade')\n\
        \x20   print('saved', flush=True)\n";
    let results = tempfile::tempdir().unwrap();
    let path = format!("PYTHONPATH={}", common::targets("python"));
    let options = ["--scenario=poweroff", "--env", &path, "--ack=^saved", "--state=a/b/state.json"];
    let program = ["--", &interpreter, "-c", script];
    let (status, report) = common::report(results.path(), &[&options[..], &program].concat());
    assert_eq!(status, 0, "{report:#}");
    assert!(report["subjects"][0]["tally"]["passed"].as_u64() > Some(50), "{report:#}");
}
