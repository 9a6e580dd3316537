//! Programs that serve until the power goes, as they are: databases and servers of other people, whose
//! unsafe settings must be caught, and whose safe ones must pass.

mod common;

use common::{can_cut, has, in_path, python, report, run_in, targets};
use serde_json::Value;

/// A program, and what is expected of it.
struct Case<'a> {
    options: &'a [&'a str],
    check: String,
    argv: Vec<String>,
    sound: bool,
}

/// How much is looked at: some images of ext4, or as many as `CRASHTEST_IMAGES` says of all that are there.
fn reach() -> [String; 4] {
    let (images, fs) = match std::env::var("CRASHTEST_IMAGES") {
        Ok(images) => {
            let kinds = ["ext4", "xfs", "btrfs"].into_iter().filter(|kind| can_cut(kind));
            (images, kinds.collect::<Vec<_>>().join(","))
        }
        Err(_) => ("30".to_owned(), "ext4".to_owned()),
    };
    ["--images-max".to_owned(), images, "--fs".to_owned(), fs]
}

/// What comes before the options and the program.
fn base(check: &str) -> [&str; 8] {
    ["--scenario", "poweroff-disk", "--during", "0.4", "--seed", "1", "--check", check]
}

/// Cuts its power; returns the exit status, and what there is on each file system.
fn cut(options: &[&str], check: &str, argv: &[String]) -> (i32, Value) {
    let results = tempfile::tempdir().unwrap();
    let reach = reach();
    let reach: Vec<&str> = reach.iter().map(String::as_str).collect();
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    report(results.path(), &[&base(check), &reach[..], options, &["--"], &argv].concat())
}

fn judge(cases: &[Case<'_>]) {
    for Case { options, check, argv, sound } in cases {
        let (status, report) = cut(options, check, argv);
        assert_eq!(status, i32::from(!sound), "{argv:?} {options:?}: {report:#}");
        for cell in report["subjects"][0]["cells"].as_array().unwrap() {
            assert!(cell["disk"]["acks"].as_u64().unwrap() > 5, "{cell:#}");
            assert!(cell["states"].as_u64().unwrap() > 20, "{cell:#}");
            let unclear = common::sum(&cell["tally"]["inconclusive"]);
            assert_eq!(cell["states"].as_u64(), Some(common::placed(cell) + unclear), "{cell:#}");
            assert_eq!(cell["disk"]["stuck"]["count"], 0, "{cell:#}");
            // A torn superblock of btrfs can't be mounted.
            let refused = cell["disk"]["refused"]["count"].as_u64().unwrap();
            assert!(refused * 5 < cell["states"].as_u64().unwrap(), "{cell:#}");
        }
    }
}

/// Where an empty database was made: one that the power left half-made is refused by LMDB and by redb, and
/// that is true of them and not what is asked here.
fn begun(make: &[&str]) -> tempfile::TempDir {
    let begin = tempfile::tempdir().unwrap();
    let made =
        std::process::Command::new(make[0]).args(&make[1..]).current_dir(begin.path()).status();
    assert!(made.unwrap().success());
    begin
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// Judges SQLite: its journal, how it syncs, what is checked, and whether that holds.
fn judge_sqlite(cases: &[(&str, &str, &str, bool)]) {
    let Some(python) = python() else { return };
    if !can_cut("ext4") {
        return;
    }
    let script = targets("servers/sqlite.py");
    let case = |(mode, synchronous, check, sound): &(&str, &str, &str, bool)| Case {
        options: &["--write-back", "never,slow"],
        check: format!("{python} {script} {check}"),
        argv: words(&format!("{python} {script} write {mode} {synchronous}")),
        sound: *sound,
    };
    judge(&cases.iter().map(case).collect::<Vec<_>>());
}

#[test]
fn sqlite_loses_what_its_settings_say_and_nothing_else_with_a_journal() {
    judge_sqlite(&[
        ("delete", "off", "whole", false),
        // A journal that comes back, since nobody synced that it is gone, takes a commit back.
        ("delete", "full", "whole", true),
        ("delete", "full", "acked", false),
        ("delete", "extra", "acked", true),
        ("delete", "normal", "whole", true),
    ]);
}

#[test]
fn sqlite_loses_what_its_settings_say_and_nothing_else_with_a_log() {
    judge_sqlite(&[
        ("wal", "off", "acked", false),
        ("wal", "normal", "whole", true),
        ("wal", "normal", "acked", false),
        ("wal", "full", "acked", true),
    ]);
}

#[test]
fn lmdb_through_a_shared_map_is_caught_without_syncs_alone() {
    let Some(python) = python() else { return };
    let there = std::process::Command::new(&python).args(["-c", "import lmdb"]).output();
    if !has("lmdb", there.unwrap().status.success()) || !can_cut("ext4") {
        return;
    }
    let script = targets("servers/lmdb_rows.py");
    let begin = begun(&[&python, &script, "make"]);
    let begin = begin.path().display().to_string();
    let both = ["--write-back", "never,commit,slow", "--init", &begin];
    let case = |sync: &str, sound| Case {
        options: &both,
        check: format!("{python} {script} acked"),
        argv: words(&format!("{python} {script} write {sync}")),
        sound,
    };
    judge(&[case("nosync", false), case("sync", true)]);
}

#[test]
fn redis_keeps_what_it_answered_if_it_syncs_always_and_its_log_is_repaired() {
    let there = in_path("redis-server").is_some();
    let Some(python) = python() else { return };
    if !has("redis", there) || !can_cut("ext4") {
        return;
    }
    let script = targets("servers/redis.py");
    let client = format!("exec {python} {script} push");
    let options = ["--client", &client, "--write-back", "never,commit,slow"];
    let server = targets("servers/redis.sh");
    let case = |how: &str, sound| Case {
        options: &options,
        check: format!("{python} {script} acked"),
        argv: words(&format!("{server} {how}")),
        sound,
    };
    judge(&[case("repair --appendfsync no", false), case("repair --appendfsync always", true)]);
}

#[test]
fn redb_keeps_what_it_committed_unless_it_was_told_not_to() {
    let program = std::env::current_exe().unwrap();
    let program = program.parent().unwrap().parent().unwrap().join("examples/redb_rows");
    // `cargo test` builds it, and `cargo test --test servers` does not.
    if !has("redb_rows", program.exists()) || !can_cut("ext4") {
        return;
    }
    let check = format!("{} acked", program.display());
    let write = format!("{} write", program.display());
    let argv = words(&format!("{write} immediate"));
    let begin = begun(&[&program.display().to_string(), "make"]);
    let options = ["--write-back", "never,slow", "--init", &begin.path().display().to_string()];
    judge(&[Case { options: &options, check: check.clone(), argv, sound: true }]);
    // What it is told not to keep is lost even if the power stays: that is no case for a power cut.
    let results = tempfile::tempdir().unwrap();
    let program = ["--", &program.display().to_string(), "write", "none"];
    let output = run_in(results.path(), &[&["run"], &base(&check)[..], &program].concat());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("though the power never went") && text.contains("help:"), "{text}");
}

/// What a program that can't be tried is told.
#[test]
fn what_does_not_serve_is_named_with_what_to_do() {
    let Some(python) = python() else { return };
    let results = tempfile::tempdir().unwrap();
    let tried = |options: &[&str], script: &str| {
        let base = ["run", "--scenario", "poweroff-disk", "--fs", "ext4", "--timeout", "1"];
        let all = [&base, options, &["--", &python, "-c", script]].concat();
        let output = run_in(results.path(), &all);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let serves = "import time\nwhile True:\n    print('done', flush=True)\n    time.sleep(.1)\n";
    let during = ["--during", "1", "--check", "true"];
    let asks = [&during[..], &["--client", "sleep 5"]].concat();
    let odd = [&during[..], &["--client", "exit 7"]].concat();
    let mut cases = vec![
        (&["--during", "1"][..], serves, 2, "give --check CMD"),
        (&["--during", "0", "--check", "true"], serves, 2, "give --during 0.1 to"),
        (
            &["--during", "1", "--check", "true", "--state", "x"],
            serves,
            2,
            "--state has no meaning",
        ),
    ];
    if can_cut("ext4") {
        cases.extend([
            (&during[..], "import time; time.sleep(9)", 3, "no ack in 1 s"),
            (&during, "import sys; sys.exit('oh no')", 3, "Status(1): oh no"),
            (&asks, serves, 3, "the client gave no ack"),
            (&asks, "pass", 3, "should go on until it is ended"),
            (&odd, serves, 3, "the client ended with Status(7)"),
            (&["--during", "1", "--check", "exit 9"], serves, 3, "exit status 9"),
        ]);
    }
    for (options, script, status, words) in cases {
        let found = tried(options, script);
        assert_eq!(found.0, Some(status), "{options:?}: {}", found.1);
        assert!(found.1.contains(words) && found.1.contains("help:"), "{options:?}: {}", found.1);
    }
}

#[test]
fn servers_at_the_same_port_do_not_meet_and_a_finding_is_found_again() {
    let Some(python) = python() else { return };
    if !can_cut("ext4") {
        return;
    }
    // It never syncs, and its port is the same on all workers.
    let server = "import os, socket, time\n\
        s = socket.create_server(('127.0.0.1', 7777))\n\
        f = open('log', 'a')\n\
        while True:\n    c, _ = s.accept(); d = c.recv(99)\n    \
        if d == b'?': c.sendall(str(sum(1 for _ in open('log'))).encode())\n    \
        else: f.write('x\\n'); f.flush(); c.sendall(b'done')\n    c.close()\n";
    let ask = "import socket, os, sys, time\n\
        def ask(what):\n    \
        while True:\n        \
        try: s = socket.create_connection(('127.0.0.1', 7777)); s.sendall(what); return s.recv(99)\n        \
        except OSError: time.sleep(.005)\n";
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let server = write("server.py", server.to_owned());
    let client = write("client.py", format!("{ask}while True: print(ask(b'+'), flush=True)\n"));
    let check = "assert int(ask(b'?')) >= int(os.environ['CRASHTEST_ACKS'])\n\
        lines = open(os.environ['CRASHTEST_ACKED']).read().splitlines()\n\
        assert len(lines) == int(os.environ['CRASHTEST_ACKS']) and set(lines) <= {\"b'done'\"}\n";
    let check = write("check.py", format!("{ask}{check}"));
    let check = format!("{python} {check}");
    let client = format!("exec {python} {client}");
    let options = ["--client", &client, "--fs", "ext4", "--images-max", "30", "--jobs", "2"];
    let program = ["--", &python, &server];
    let results = tempfile::tempdir().unwrap();
    let (status, report) =
        report(results.path(), &[&base(&check), &options[..], &program].concat());
    assert_eq!(status, 1, "{report:#}");
    let finding = &report["subjects"][0]["cells"][0]["findings"][0];
    let output = run_in(results.path(), &["replay", finding["id"].as_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("the same kind of violation"), "{text}");
    assert!(!text.contains("version"), "{text}");
}
