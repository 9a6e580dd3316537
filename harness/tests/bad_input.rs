//! Subjects that misbehave: each has a plain error or an honest note.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{compiled, python, report, run_in};

/// Runs a shell script as the subject and returns status, stdout and stderr.
fn run_script(options: &[&str], script: &str) -> (i32, String, String) {
    let results = tempfile::tempdir().unwrap();
    let all =
        [&["run", "--trials", "20", "--seed", "1"], options, &["--", "/bin/sh", "-c", script]];
    run(results.path(), &all.concat())
}

fn run(results: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = run_in(results, arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[track_caller]
fn assert_refused(found: &(i32, String, String), status: i32, words: &[&str]) {
    assert_eq!(found.0, status, "{}", found.2);
    for word in words {
        assert!(found.2.contains(word), "`{word}` is not in: {}", found.2);
    }
}

#[test]
fn a_command_that_does_not_exist() {
    let results = tempfile::tempdir().unwrap();
    let found = run(results.path(), &["run", "--", "no-such-program-anywhere"]);
    assert_refused(&found, 3, &["no-such-program-anywhere", "not in PATH", "help:"]);
    let found = run(results.path(), &["run", "--", "./nothing"]);
    assert_refused(&found, 3, &["cannot execute ./nothing: No such file"]);
}

#[test]
fn a_command_that_is_not_executable() {
    let results = tempfile::tempdir().unwrap();
    let path = results.path().join("script.py");
    fs::write(&path, "print(1)").unwrap();
    let found = run(results.path(), &["run", "--", "./script.py"]);
    assert_refused(&found, 3, &["it is not executable", "chmod +x ./script.py"]);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let found = run(results.path(), &["run", "--", "./script.py"]);
    assert_refused(&found, 3, &["Exec format error", "#!/bin/sh"]);
}

#[test]
fn a_command_that_fails_says_why() {
    let found = run_script(&[], "echo oh no >&2; echo 1 > state; exit 7");
    assert_refused(&found, 3, &["failed with status 7", "it says: oh no"]);
}

#[test]
fn a_command_that_never_ends() {
    let started = Instant::now();
    let found = run_script(&["--timeout", "1"], "echo 1 > state; while :; do sleep 1; done");
    assert_refused(&found, 3, &["did not end within 1 s", "--timeout", "--acks"]);
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_command_that_saves_nothing() {
    assert_refused(&run_script(&[], "echo hello"), 3, &["changes no file", "does it save"]);
    let found = run_script(&["--state", "*.json"], "echo 1 > state.txt");
    assert_refused(&found, 3, &["no file that matches --state *.json", "it leaves state.txt"]);
}

#[test]
fn a_command_that_floods_stdout_is_drained_and_its_acks_are_seen() {
    let script = "i=0; while [ $i -lt 3 ]; do echo [$i] > s; echo saved; \
                  head -c 3000000 /dev/zero; echo; i=$((i+1)); done; head -c 3000000 /dev/zero >&2";
    let (status, out, err) = run_script(&["--ack", "^saved"], script);
    assert_eq!(status, 1, "{err}");
    assert!(out.contains("empty"), "{out}");
}

#[test]
fn a_command_that_forks_without_end() {
    let started = Instant::now();
    let found = run_script(&[], "f() { f & f & }; echo 1 > state; f; wait");
    assert_refused(&found, 3, &["started more than 256 processes", "--max-processes"]);
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn daemons_are_killed_and_noted() {
    let name = format!("86{}", std::process::id());
    let script = format!("setsid sleep {name} & echo [1] > state.json; mv state.json s.json");
    let (_, out, err) = run_script(&[], &script);
    assert!(out.contains("left running and were killed"), "{out}{err}");
    let processes = std::process::Command::new("ps").args(["-eo", "args"]).output().unwrap();
    let processes = String::from_utf8_lossy(&processes.stdout).into_owned();
    assert!(!processes.contains(&format!("sleep {name}")), "{processes}");
}

#[test]
fn a_command_that_deletes_its_own_directory() {
    let found = run_script(&[], "echo 1 > state; rm -r \"$CRASHTEST_DIR\"");
    assert_refused(&found, 3, &["changes no file"]);
}

#[test]
fn a_command_that_closes_its_directory() {
    let (status, out, err) = run_script(&["--granularity", "op"], "echo [1] > s.json; chmod 000 .");
    assert_eq!(status, 1, "{out}{err}");
    let (status, out, err) =
        run_script(&["--granularity", "op"], "echo [1] > t; mv t s.json; chmod 000 s.json .");
    assert_eq!(status, 0, "{out}{err}");
}

#[test]
fn a_command_that_writes_a_gibibyte() {
    let found = run_script(&["--timeout", "60"], "head -c 1073741824 /dev/zero > state");
    assert_refused(&found, 3, &["writes more than 256 MiB", "--max-data"]);
    let found = run_script(&[], "truncate -s 1G state");
    assert_refused(&found, 3, &["state", "1073741824 bytes", "--max-data"]);
}

#[test]
fn io_uring_is_refused_to_the_program_and_noted() {
    let Some(program) = compiled("odd/io_uring.c") else { return };
    let results = tempfile::tempdir().unwrap();
    let (_, report) = report(results.path(), &["--trials", "20", "--", &program]);
    let row = &report["subjects"][0];
    assert!(row["notes"].to_string().contains("ENOSYS"), "{row:#}");
    assert!(row["tally"]["violated"]["torn"].is_object(), "{row:#}");
}

#[test]
fn a_shared_mapping_is_named_and_never_passed_over() {
    let Some(program) = compiled("odd/mapped.c") else { return };
    let results = tempfile::tempdir().unwrap();
    // It makes its file longer and fills it later: what is stored is seen between the calls.
    let (status, report) = report(results.path(), &["--trials", "40", "--", &program]);
    let row = &report["subjects"][0];
    assert_eq!(status, 1, "{row:#}");
    assert!(row["notes"].to_string().contains("state.json is mapped shared"), "{row:#}");
    assert!(row["tally"]["violated"]["zeroed"].is_object(), "{row:#}");
    let (_, report) =
        common::report(results.path(), &["--timing", "--trials", "40", "--", &program]);
    let row = &report["subjects"][0];
    assert!(row["notes"].to_string().contains("state.json is mapped shared"), "{row:#}");
    assert!(row["tally"]["inconclusive"]["not-reached"].as_u64() < Some(40), "{row:#}");
}

#[test]
fn code_of_another_kind_is_refused() {
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    let Some(program) = compiled("odd/int80.c") else { return };
    let emulated = std::process::Command::new(&program)
        .current_dir(tempfile::tempdir().unwrap().path())
        .status()
        .unwrap()
        .success();
    if !common::has("ia32", emulated) {
        return;
    }
    let results = tempfile::tempdir().unwrap();
    let found = run(results.path(), &["run", "--", &program]);
    assert_refused(&found, 3, &["32-bit code", "--timing"]);
}

#[test]
fn wrong_options_are_refused_before_anything_is_run() {
    let results = tempfile::tempdir().unwrap();
    let with = |options: &[&str]| {
        let all = [&["run"], options, &["--", "/bin/sh", "-c", "echo [1] > s"]].concat();
        run(results.path(), &all)
    };
    assert_refused(&with(&["--ack", "("]), 2, &["--ack (", "not a regular expression"]);
    assert_refused(&with(&["--invariant", "state.a >"]), 2, &["not a CEL expression"]);
    assert_refused(&with(&["--schema", "/nowhere"]), 2, &["cannot use the schema"]);
    assert_refused(&with(&["--state", "["]), 2, &["is not a glob"]);
    assert_refused(&with(&["--env", "x"]), 2, &["NAME=VALUE"]);
    assert_refused(&with(&["--init", "/nowhere"]), 2, &["not a directory"]);
    assert_refused(&with(&["--scenario", "sigkil"]), 2, &["did you mean `sigkill`?"]);
    assert_refused(&with(&["--trials", "0"]), 2, &["--trials 1 or more"]);
    assert_refused(&with(&["--jobs", "0"]), 2, &["--jobs 1 or more"]);
    let found = run(results.path(), &["run", "--strategy", "atomci"]);
    assert_refused(&found, 2, &["did you mean `atomic`?"]);
    let found = run(results.path(), &["replay", "0123"]);
    assert_refused(&found, 2, &["no violation `0123` is kept"]);
    let found = run(results.path(), &["run", "--resume", "nothing"]);
    assert_refused(&found, 2, &["there is no run `nothing`"]);
}

#[test]
fn a_state_that_differs_in_every_run_gives_no_false_alarm() {
    let Some(python) = python() else { return };
    let results = tempfile::tempdir().unwrap();
    let script = "import json, os, random, time\n\
        for n in range(3):\n\
        \x20   state = {'n': n, 'at': time.time(), 'pid': os.getpid(), 'id': str(random.random())}\n\
        \x20   open('t', 'w').write(json.dumps(state))\n\
        \x20   os.replace('t', 's.json')\n\
        \x20   print('saved', flush=True)\n";
    let arguments = ["--trials", "60", "--ack", "^saved", "--", &python, "-c", script];
    let (status, report) = report(results.path(), &arguments);
    let row = &report["subjects"][0];
    assert_eq!(status, 0, "{row:#}");
    assert!(row["notes"].to_string().contains("compared by type"), "{row:#}");
    assert_eq!(row["tally"]["passed"], 60, "{row:#}");
}

#[test]
fn a_state_of_another_shape_in_every_run_is_inconclusive_and_not_passed() {
    let Some(python) = python() else { return };
    let results = tempfile::tempdir().unwrap();
    let script = "import os, random\n\
        open('t', 'w').write(str(random.random()) * random.randrange(10, 100))\n\
        os.replace('t', 's.txt')\n";
    let arguments = ["--trials", "30", "--", &python, "-c", script];
    let (_, report) = report(results.path(), &arguments);
    let row = &report["subjects"][0];
    assert!(row["notes"].to_string().contains("for a check (--check)"), "{row:#}");
    assert!(row["tally"]["inconclusive"]["not-comparable"].as_u64() > Some(0), "{row:#}");
}
