//! `crashtest::check` in tests such as people write: what it says of good and of bad ways to save.

mod common;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;

use common::can_follow;
use crashtest::Checker;

/// Two versions of a state that is longer than a page.
fn states() -> [String; 2] {
    ["a", "b"].map(|name| format!("{{\"{name}\": \"{}\"}}", name.repeat(9000)))
}

fn in_place(dir: &Path, state: &str) -> io::Result<()> {
    let mut file = File::create(dir.join("state.json"))?;
    file.write_all(state.as_bytes())?;
    file.sync_all()
}

fn durably(dir: &Path, state: &str) -> io::Result<()> {
    let temp = dir.join("state.json.tmp");
    let mut file = File::create(&temp)?;
    file.write_all(state.as_bytes())?;
    file.sync_all()?;
    fs::rename(temp, dir.join("state.json"))?;
    File::open(dir)?.sync_all()
}

fn load(dir: &Path) -> io::Result<()> {
    match fs::read_to_string(dir.join("state.json")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(text) => serde_json::from_str(&text).map(|_: serde_json::Value| ()).map_err(Into::into),
        Err(error) => Err(error),
    }
}

/// Whether checks can be made here; a process in which a check has the test run is not asked.
fn can_check() -> bool {
    std::env::var_os("CRASHTEST_CALL").is_some() || can_follow()
}

/// What a check says when it fails the test.
fn failure(check: impl FnOnce()) -> String {
    let panicked = catch_unwind(AssertUnwindSafe(check)).expect_err("it passes");
    *panicked.downcast::<String>().expect("a message")
}

#[test]
fn a_durable_save_passes() {
    crashtest::check(|dir| {
        let [first, second] = states();
        durably(dir, &first)?;
        durably(dir, &second)
    });
}

#[test]
fn the_line_of_a_save_in_place_and_what_to_do_are_the_message() {
    if !can_check() {
        return;
    }
    let message = failure(|| {
        crashtest::check(|dir| {
            let [first, second] = states();
            in_place(dir, &first)?;
            in_place(dir, &second)
        });
    });
    let name = "the_line_of_a_save_in_place_and_what_to_do_are_the_message";
    assert!(message.starts_with(&format!("FAIL: {name} loses state.json in ")), "{message}");
    assert!(
        message.contains("When it was killed while it saved, the state was damaged"),
        "{message}"
    );
    let source = include_str!("library.rs");
    let line = source.lines().position(|line| line.contains("File::create(dir.join(")).unwrap() + 1;
    let place = format!("tests/library.rs:{line} in library::in_place");
    assert!(message.contains(&place), "{message}");
    assert!(message.contains("What to do: Save into a new file"), "{message}");
    assert!(message.contains("File::open(parent)") || message.contains("sync_all"), "{message}");
    let again = message.lines().find_map(|line| line.trim().strip_prefix("again:")).unwrap();
    let words = shlex::split(again.trim()).unwrap();
    let replayed = common::crashtest().args(&words[1..]).output().unwrap();
    assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));
    assert!(String::from_utf8_lossy(&replayed.stdout).contains("the same verdict"), "{again}");
}

/// A way to save.
type Saver = fn(&Path, &str) -> io::Result<()>;

#[test]
fn each_call_is_a_check_of_its_own() {
    if !can_check() {
        return;
    }
    let [first, second] = states();
    // Each way twice: the third call and the fourth are in the same place as the first and the second.
    let savers: [(Saver, bool); 4] =
        [(durably, true), (in_place, false), (durably, true), (in_place, false)];
    for (save, sound) in savers {
        let check = || {
            Checker::new().scenarios(["sigkill"]).trials(20).check(|dir| {
                save(dir, &first)?;
                save(dir, &second)
            });
        };
        let passes = catch_unwind(AssertUnwindSafe(check)).is_ok();
        // Where one of the checks has the test run, the others say nothing.
        assert!(passes == sound || std::env::var_os("CRASHTEST_CALL").is_some());
    }
}

#[test]
fn an_ack_before_the_save_is_a_lie() {
    if !can_check() {
        return;
    }
    let check = |early: bool| {
        Checker::new().scenarios(["sigkill"]).trials(30).ack("^saved").check(|dir| {
            for state in states() {
                if early {
                    println!("saved");
                }
                durably(dir, &state)?;
                if !early {
                    println!("saved");
                }
            }
            io::Result::Ok(())
        });
    };
    check(false);
    let message = failure(|| check(true));
    assert!(message.contains("a save that had been acknowledged was lost"), "{message}");
}

/// A save in place, of which it is not asked whether it is atomic.
fn load_and_verify<'a>() -> Checker<'a> {
    Checker::new().scenarios(["sigkill"]).trials(20).option("--promise=recoverable,checked")
}

fn twice_in_place(dir: &Path) -> io::Result<()> {
    let [first, second] = states();
    in_place(dir, &first)?;
    in_place(dir, &second)
}

#[test]
fn what_is_left_is_loaded_by_the_test_itself() {
    if !can_check() {
        return;
    }
    load_and_verify().recover(|_| ()).verify(|_| ()).check(twice_in_place);
    let check = || load_and_verify().recover(load).verify(|_| ()).check(twice_in_place);
    let message = failure(check);
    assert!(message.contains("the program could not load what was left"), "{message}");
}

#[test]
fn what_is_left_is_verified_by_the_test_itself() {
    if !can_check() {
        return;
    }
    let verify = |dir: &Path| assert!(load(dir).is_ok(), "it is no JSON");
    let check = || load_and_verify().recover(|_| ()).verify(verify).check(twice_in_place);
    let message = failure(check);
    assert!(message.contains("it is no JSON"), "{message}");
}

#[test]
fn a_test_that_fails_by_itself_was_not_checked() {
    if !can_check() {
        return;
    }
    let message = failure(|| crashtest::check(|_| Err::<(), _>("there is no configuration")));
    assert!(message.starts_with("the check was not made: "), "{message}");
    assert!(message.contains("there is no configuration"), "{message}");
}

#[test]
fn an_option_that_there_is_not_is_named() {
    let message = failure(|| Checker::new().option("--sceanrio=sigkill").check(|_| ()));
    assert!(message.contains("--sceanrio") && message.contains("--scenario"), "{message}");
}

#[test]
fn a_call_in_a_thread_of_its_own_says_where_it_belongs() {
    let named = std::thread::Builder::new().name("worker".to_owned());
    let thread = named.spawn(|| failure(|| crashtest::check(|_| ()))).unwrap();
    let message = thread.join().unwrap();
    assert!(message.contains("call it in the thread of the test"), "{message}");
}

/// A small check for the tests below, which run it in processes of their own.
#[test]
fn a_few_kills() {
    if can_check() {
        Checker::new().scenarios(["sigkill"]).trials(9).check(|dir| durably(dir, &states()[0]));
    }
}

#[test]
fn it_works_whatever_the_test_harness_is_told() {
    if !can_check() || std::env::var_os("CRASHTEST_INNER").is_some() {
        return;
    }
    let name = "a_few_kills";
    for options in
        [&["--test-threads=1"][..], &["--test-threads=8", "--nocapture"], &["--exact", name]]
    {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.arg(name).args(options).env("CRASHTEST_INNER", "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains("1 passed"), "{options:?}: {said}");
    }
    // A scheduler that shares out tests does not share out what one of them looks at.
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture"])
        .envs([("TEST_SHARD_INDEX", "1"), ("TEST_TOTAL_SHARDS", "9")]);
    let part = String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned();
    let whole =
        command.env_remove("TEST_SHARD_INDEX").env_remove("TEST_TOTAL_SHARDS").output().unwrap();
    let line = |text: &str| text.lines().find(|line| line.contains("PASS: ")).map(str::to_owned);
    assert_eq!(line(&part), line(&String::from_utf8_lossy(&whole.stdout)));
    assert!(line(&part).is_some(), "{part}");
}

#[test]
fn what_the_machine_lacks_is_said_and_fails_only_where_it_is_required() {
    const INNER: &str = "CRASHTEST_INNER";
    if std::env::var_os(INNER).is_some() {
        Checker::new().scenarios(["poweroff-disk"]).check(|dir| durably(dir, "{}"));
        return;
    }
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let test = place.path().join("library");
    fs::copy(std::env::current_exe().unwrap(), &test).unwrap();
    let name = "what_the_machine_lacks_is_said_and_fails_only_where_it_is_required";
    let run = |required: &str| {
        let mut command = Command::new(&test);
        command.args(["--exact", name, "--nocapture"]).current_dir(place.path());
        command.envs([(INNER, "1"), ("CRASHTEST_REQUIRE", required)]);
        command.env("CRASHTEST_RESULTS", place.path().join("results"));
        if nix::unistd::geteuid().is_root() {
            // Disks need root.
            command.uid(65534).gid(65534);
        }
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (passed, said) = run("");
    assert!(passed && said.contains("skipped: not run: poweroff-disk: "), "{said}");
    let (passed, said) = run("ext4");
    assert!(!passed && said.contains("the check was not made: not run: poweroff-disk: "), "{said}");
}
