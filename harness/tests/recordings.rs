//! Recordings, and what is derived of a kill from one.

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;

use common::{compiled, node, python, report, run_in, targets};
use serde_json::Value;

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Records a subject in Python, and returns the file.
fn recorded(directory: &Path) -> Option<(String, String)> {
    let (python, true) = (python()?, common::can_follow()) else { return None };
    let file = directory.join("r.jsonl").display().to_string();
    let subject = targets("python/fsync_rename.py");
    let output =
        run_in(directory, &["record", "-o", &file, "--ack", "saved", "--", &python, &subject]);
    assert!(output.status.success(), "{}", text(&output));
    Some((file, text(&output)))
}

#[test]
fn a_recording_shows_what_was_called_what_syncs_it_and_the_acks() {
    let directory = tempfile::tempdir().unwrap();
    let Some((file, shown)) = recorded(directory.path()) else { return };
    let lines: Vec<&str> = shown.lines().collect();
    let has =
        |parts: &[&str]| lines.iter().any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(has(&["open", "state.json.tmp (create, truncate)"]), "{shown}");
    assert!(has(&["write", "bytes at 0", "synced by op"]), "{shown}");
    assert!(has(&["rename", "state.json.tmp -> state.json", "never synced"]), "{shown}");
    assert!(has(&["exit status 0"]), "{shown}");
    let again = run_in(directory.path(), &["timeline", &file]);
    assert!(shown.starts_with(&text(&again)), "{}", text(&again));
}

#[test]
fn a_recording_gives_the_table_that_the_program_gives() {
    let directory = tempfile::tempdir().unwrap();
    let Some((file, _)) = recorded(directory.path()) else { return };
    let (python, subject) = (python().unwrap(), targets("python/fsync_rename.py"));
    let options = ["--scenario", "poweroff", "--promise", "atomic,durable", "--seed", "1"];
    let program = [&options[..], &["--ack", "saved", "--", &python, &subject]].concat();
    let (_, real) = report(directory.path(), &program);
    let options = ["--scenario", "poweroff", "--seed", "1", "--recording", &file];
    let (_, read) = report(directory.path(), &options);
    let cells = |report: &Value| -> Vec<(String, u64, Value)> {
        let cells = report["subjects"][0]["cells"].as_array().unwrap();
        let cell = |cell: &Value| {
            let profile = cell["profile"].as_str().unwrap().to_owned();
            (profile, cell["states"].as_u64().unwrap(), cell["tally"].clone())
        };
        cells.iter().map(cell).collect()
    };
    assert_eq!(cells(&real), cells(&read));
    let options = ["--scenario", "sigkill", "--exhaustive", "--recording", &file];
    let (status, report) = report(directory.path(), &options);
    assert_eq!(status, 0, "{report:#}");
    assert_eq!(report["subjects"][0]["derived"]["confirmed"], 0);
}

#[test]
fn a_recording_that_is_no_whole_one_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let Some((file, _)) = recorded(directory.path()) else { return };
    let whole = fs::read_to_string(&file).unwrap();
    let cut = &whole[..whole.len() / 2];
    let edited = whole.replacen("\"thread\":0", "\"thread\":1", 1);
    let other = whole.replacen("\"version\":1", "\"version\":9", 1);
    let cases = [
        (cut, "cut short"),
        (&edited, "edited"),
        (&other, "has version 9"),
        ("{}\n", "not a recording"),
        ("", "empty"),
    ];
    for (content, says) in cases {
        let broken = directory.path().join("broken.jsonl");
        fs::write(&broken, content).unwrap();
        let broken = broken.display().to_string();
        for command in
            [&["timeline", &broken][..], &["run", "--scenario", "poweroff", "--recording", &broken]]
        {
            let output = run_in(directory.path(), command);
            assert_eq!(output.status.code(), Some(2), "{says}: {}", text(&output));
            assert!(text(&output).contains(says), "{says}: {}", text(&output));
        }
    }
}

#[test]
fn a_profile_that_contradicts_itself_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let sound =
        fs::read_to_string(common::repository().join("scenarios/profiles/xfs.toml")).unwrap();
    let mine = directory.path().join("mine.toml");
    let run = |text: &str| {
        fs::write(&mine, text).unwrap();
        let profile = mine.display().to_string();
        run_in(
            directory.path(),
            &[
                "run",
                "--scenario",
                "poweroff",
                "--strategy",
                "durable",
                "--profile",
                &profile,
                "-q",
            ],
        )
    };
    assert_eq!(run(&sound).status.code(), Some(0), "{}", text(&run(&sound)));
    let output = run(&sound.replace("\"in-order\"", "\"any-order\""));
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("needs names that are kept in order"), "{}", text(&output));
    let output = run_in(directory.path(), &["run", "--scenario", "poweroff", "--profile", "ext5"]);
    assert!(text(&output).contains("there is no profile `ext5`"), "{}", text(&output));
}

#[test]
fn a_program_that_writes_too_much_is_told_so() {
    let Some(python) = python() else { return };
    if !common::can_follow() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let script = "f = open('s', 'wb')\nfor n in range(10000): f.write(b'x' * (1 << 20))\n";
    let output =
        run_in(directory.path(), &["record", "--max-data", "8", "--", &python, "-c", script]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output).contains("writes more than 8 MiB"), "{}", text(&output));
}

/// Derives all states of a program; all that are really made must leave what was derived.
fn derive(options: &[&str], argv: &[&str]) -> (i32, Value) {
    let results = tempfile::tempdir().unwrap();
    report(results.path(), &[&["--exhaustive"], options, &["--"], argv].concat())
}

/// How many derived states of each foreign subject are really made.
fn confirmed() -> String {
    std::env::var("CRASHTEST_CONFIRM").unwrap_or("60".to_owned())
}

#[track_caller]
fn assert_derived(options: &[&str], argv: &[&str]) -> Value {
    let confirm = confirmed();
    let (_, report) = derive(&[&["--confirm", &confirm], options].concat(), argv);
    let row = &report["subjects"][0];
    let derived = &row["derived"];
    assert!(derived["states"].as_u64() > Some(100), "{argv:?}: {report:#}");
    assert_eq!(derived["confirmed"].as_u64(), confirm.parse().ok(), "{argv:?}: {row:#}");
    row.clone()
}

#[test]
fn derived_states_of_foreign_subjects_are_what_real_kills_leave() {
    if !common::can_follow() {
        return;
    }
    if let Some(python) = python() {
        for name in ["in_place", "fsync_rename", "replace_with_backups", "mkstemp_replace"] {
            let row = assert_derived(&[], &[&python, &targets(&format!("python/{name}.py"))]);
            let bad = row["tally"]["broken"].as_object().unwrap().contains_key("atomic");
            assert_eq!(bad, name == "in_place", "{name}");
        }
    }
    if let Some(node) = node() {
        assert_derived(&[], &[&node, &targets("node/write_file_sync.js")]);
        assert_derived(&[], &[&node, &targets("node/write_rename.js")]);
    }
    for source in ["stdio_in_place.c", "stdio_rename.c"] {
        if let Some(program) = compiled(source) {
            assert_derived(&[], &[&program]);
        }
    }
    assert_derived(&[], &["/bin/sh", &targets("shell/redirect.sh")]);
    assert_derived(&[], &["/bin/sh", &targets("shell/redirect_mv.sh")]);
}

#[test]
fn every_byte_of_every_strategy_is_judged_and_what_is_made_is_what_was_derived() {
    let results = tempfile::tempdir().unwrap();
    let (status, report) = report(results.path(), &["--exhaustive", "--strategy", "all"]);
    assert_eq!(status, 0, "{report:#}");
    for row in report["subjects"].as_array().unwrap() {
        assert!(row["derived"]["states"].as_u64() > Some(4000), "{row:#}");
        assert!(row["derived"]["confirmed"].as_u64() > Some(20), "{row:#}");
    }
}

/// Derives the states of a Python program that does not repeat; it must really be killed.
fn assert_really_killed(script: &str, argument: &Path, note: &str) {
    let Some(python) = python() else { return };
    if !common::can_follow() {
        return;
    }
    let place = argument.parent().unwrap().display().to_string();
    let argument = argument.display().to_string();
    let options = ["--confirm", "5", "--allow-write", &place];
    let (_, report) = derive(&options, &[&python, "-c", script, &argument]);
    let row = &report["subjects"][0];
    assert!(row["derived"].is_null(), "{row:#}");
    assert!(row["tally"]["passed"].as_u64() > Some(20), "{row:#}");
    assert!(row["notes"].to_string().contains(note), "{row:#}");
}

#[test]
fn a_program_that_does_other_things_each_time_is_really_killed() {
    let outside = tempfile::tempdir().unwrap();
    let script = "import os, sys, json\n\
        open(sys.argv[1], 'a').write('x')\n\
        for n in range(1 + os.path.getsize(sys.argv[1]) % 3):\n\
        \x20   open('t', 'w').write(json.dumps({'n': n})); os.replace('t', 's.json')\n";
    let note = "its recording does not repeat, from op";
    assert_really_killed(script, &outside.path().join("count"), note);
}

#[test]
fn a_program_whose_two_recordings_are_the_same_by_luck_is_really_killed() {
    let outside = tempfile::tempdir().unwrap();
    let script = "import os, sys, json\n\
        open(sys.argv[1], 'a').write('x')\n\
        runs = os.path.getsize(sys.argv[1])\n\
        for n in range(9 if runs < 4 else 1 + runs % 5):\n\
        \x20   open('t', 'w').write(json.dumps({'n': n})); os.replace('t', 's.json')\n";
    assert_really_killed(script, &outside.path().join("count"), "though the first two did");
}
