//! Runs as a user makes them: the same seed, an interruption, a replay, a kill of the harness.

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::{python, report, run_in, table, targets};

#[test]
fn the_newcomers_command_finds_unsafe_out_and_passes_atomic() {
    let results = tempfile::tempdir().unwrap();
    let output = run_in(results.path(), &["run", "--scenario", "sigkill", "--seed", "1"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    let row =
        |name: &str| text.lines().find(|line| line.starts_with(&format!("│ {name} "))).unwrap();
    assert!(row("atomic").contains("100.0 %"), "{text}");
    assert!(row("unsafe").contains("torn") && row("unsafe").contains("empty"), "{text}");
    assert!(text.contains("crashtest replay "), "{text}");
    assert!(text.contains("seed 1"), "{text}");
}

#[test]
fn the_same_seed_gives_the_same_table_with_any_number_of_workers() {
    let results = tempfile::tempdir().unwrap();
    let trials = common::usually("200", "600");
    let with = |jobs: &str| {
        let arguments = ["--seed", "1", "--trials", trials, "--strategy", "all", "--jobs", jobs];
        table(&report(results.path(), &arguments).1)
    };
    let one = with("1");
    assert_eq!(one, with("2"));
    assert_eq!(one, with("3"));
}

#[test]
fn another_seed_strikes_elsewhere() {
    let results = tempfile::tempdir().unwrap();
    let kept = |seed: &str| {
        let (_, report) = report(results.path(), &["--seed", seed, "--trials", "50"]);
        report["subjects"][0]["kept"].clone()
    };
    assert_ne!(kept("1"), kept("2"));
}

#[test]
fn a_replay_shows_the_same_bytes_ten_times_out_of_ten() {
    let results = tempfile::tempdir().unwrap();
    let mut programs = vec![vec!["--strategy".to_owned(), "unsafe,truncate-late".to_owned()]];
    if let (true, Some(python)) = (common::can_follow(), python()) {
        programs.push(
            ["--ack", "^saved", "--", &python, &targets("python/in_place.py")]
                .map(str::to_owned)
                .into(),
        );
    }
    for program in programs {
        let program: Vec<_> = program.iter().map(String::as_str).collect();
        let (_, report) =
            report(results.path(), &[&["--trials", "60", "--seed", "4"], &program[..]].concat());
        let rows = report["subjects"].as_array().unwrap();
        let kept = rows.iter().flat_map(|row| row["kept"].as_array().unwrap().iter().take(2));
        for line in kept {
            replay_ten_times(results.path(), line["id"].as_str().unwrap());
        }
    }
}

fn replay_ten_times(results: &Path, id: &str) {
    for n in 0..10 {
        let keep = results.join(format!("kept-{id}-{n}"));
        let output = run_in(results, &["replay", id, "--keep", &keep.display().to_string()]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("the same verdict and the same bytes"), "{text}");
        let found = fs::read(keep.join("state.json")).unwrap();
        let before = fs::read(survivor(results, id)).unwrap();
        assert_eq!(found, before, "{id}");
    }
}

fn survivor(results: &Path, id: &str) -> std::path::PathBuf {
    fs::read_dir(results)
        .unwrap()
        .map(|run| run.unwrap().path().join("violations").join(id).join("survivor/state.json"))
        .find(|path| path.is_file())
        .unwrap()
}

#[test]
fn a_run_that_was_interrupted_goes_on_and_ends_with_the_table_of_an_unbroken_one() {
    common::interrupt_and_go_on(&["--seed", "5", "--trials", "12000"]);
}

#[test]
fn a_kill_of_crashtest_leaves_no_process_no_mount_and_no_directory() {
    let mut programs: Vec<Vec<&str>> = vec![vec!["--strategy", "all"]];
    let script =
        "setsid sleep 8642 & i=0; while [ $i -lt 50 ]; do echo [$i] > s.json; i=$((i+1)); done";
    let shell = ["--", "/bin/sh", "-c", script];
    if common::can_follow() {
        programs.push(shell.to_vec());
        programs.push([&["--timing"], &shell[..]].concat());
    }
    if common::can_sandbox() {
        programs.push([&["--sandbox"], &shell[..]].concat());
    }
    for program in &programs {
        for round in 0..4 {
            let options = [&["run", "--trials", "100000"], &program[..]].concat();
            common::kill_and_look(
                &options,
                Duration::from_millis(150 + 400 * round),
                common::Victims::Coordinator,
            );
        }
    }
}

#[test]
fn the_directory_of_a_violation_is_kept_whole_when_asked_for() {
    let results = tempfile::tempdir().unwrap();
    let arguments = ["--strategy", "unlink-first", "--trials", "60", "--seed", "1", "--keep"];
    let (_, report) = report(results.path(), &arguments);
    let kept = report["subjects"][0]["kept"].as_array().unwrap();
    assert!(!kept.is_empty());
    for line in kept {
        let run = fs::read_dir(results.path()).unwrap().next().unwrap().unwrap().path();
        let directory = run.join("violations").join(line["id"].as_str().unwrap()).join("directory");
        assert!(directory.join("state.json.tmp").is_file(), "{}", directory.display());
    }
}

#[test]
fn timing_kills_without_following_and_what_ended_first_does_not_count() {
    let results = tempfile::tempdir().unwrap();
    let script = "i=0; while [ $i -lt 200 ]; do echo [$i] > s.json; i=$((i+1)); done";
    let arguments = ["--timing", "--trials", "100", "--seed", "1", "--", "/bin/sh", "-c", script];
    let (_, report) = report(results.path(), &arguments);
    let tally = &report["subjects"][0]["tally"];
    assert!(tally["violated"]["empty"]["natural"].as_u64() > Some(0), "{tally:#}");
    assert_eq!(tally["violated"]["empty"]["forced"], 0);
    let (_, report) = self::report(
        results.path(),
        &["--timing", "--trials", "200", "--strategy", "unsafe,atomic"],
    );
    assert_eq!(report["subjects"][1]["tally"]["violated"], serde_json::json!({}));
}

#[test]
fn the_users_own_checks_are_heard() {
    let Some(python) = python() else { return };
    let results = tempfile::tempdir().unwrap();
    let save = "import json, os\n\
        for n in range(1, 4):\n\
        \x20   for name, value in (('a.json', n), ('b.json', -n)):\n\
        \x20       json.dump({'value': value}, open('t', 'w')); os.replace('t', name)\n\
        \x20   print('saved', flush=True)\n";
    let schema = results.path().join("schema.json");
    fs::write(&schema, r#"{"properties": {"value": {"maximum": 1}}}"#).unwrap();
    let check = "python3 -c 'import json; a = json.load(open(\"a.json\"))[\"value\"]; \
                 b = json.load(open(\"b.json\"))[\"value\"]; assert a == -b, \"torn apart\"'";
    let check = check.replace("python3", &python);
    let run = |options: &[&str]| {
        let all =
            [&["--trials", "60", "--granularity", "op"], options, &["--", &python, "-c", save]];
        report(results.path(), &all.concat())
    };
    // Each file is whole at each moment, but the two do not belong together.
    let (status, report) = run(&["--check", &check]);
    assert_eq!(status, 1);
    let violated = &report["subjects"][0]["tally"]["violated"];
    assert!(violated["check-failed"]["natural"].as_u64() > Some(0), "{violated:#}");
    let (status, report) = run(&["--invariant", "state.value < 100"]);
    assert_eq!(status, 0, "{report:#}");
    let output =
        run_in(results.path(), &["run", "--schema", "schema.json", "--", &python, "-c", save]);
    assert_eq!(output.status.code(), Some(3), "the schema does not hold in the unbroken run");
}

#[test]
fn a_recovery_that_fails_hangs_or_cannot_save_again_is_found() {
    let results = tempfile::tempdir().unwrap();
    // A lock file that a kill leaves behind blocks every later save.
    let script = "set -C; : > lock || exit 9; echo [1] > t; mv t s.json; rm lock";
    let run = |recover: &str| {
        let arguments = [
            "--trials",
            "40",
            "--granularity",
            "op",
            "--recover",
            recover,
            "--",
            "/bin/sh",
            "-c",
            script,
        ];
        let (status, report) = report(results.path(), &arguments);
        (status, report["subjects"][0]["tally"]["violated"].clone())
    };
    let (status, violated) = run("true");
    assert_eq!(status, 1);
    assert!(violated["cannot-save-again"]["natural"].as_u64() > Some(0), "{violated:#}");
    let (status, violated) = run("test ! -e lock");
    assert_eq!(status, 1);
    assert!(violated["recovery-failed"]["natural"].as_u64() > Some(0), "{violated:#}");
    let (status, violated) = run("rm -f lock");
    assert_eq!((status, violated), (0, serde_json::json!({})));
}

#[test]
fn fixed_paths_are_redirected_by_the_sandbox() {
    if !common::can_sandbox() {
        return;
    }
    let (results, fixed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let state = fixed.path().join("state.json");
    fs::write(&state, "[0]").unwrap();
    let script = format!("for n in 1 2 3; do echo [$n] > {}; done", state.display());
    let (status, report) =
        report(results.path(), &["--sandbox", "--trials", "60", "--", "/bin/sh", "-c", &script]);
    let row = &report["subjects"][0];
    assert_eq!(status, 1, "{row:#}");
    assert!(row["notes"].to_string().contains(&state.display().to_string()), "{row:#}");
    assert_eq!(fs::read_to_string(&state).unwrap(), "[0]", "the real file was changed");
}

#[test]
fn a_server_is_run_until_it_has_given_its_acks() {
    let Some(python) = python() else { return };
    let results = tempfile::tempdir().unwrap();
    let script = "import json, os, time\n\
        n = 0\n\
        while True:\n\
        \x20   n += 1\n\
        \x20   json.dump({'n': n}, open('t', 'w')); os.replace('t', 's.json')\n\
        \x20   print('saved', n, flush=True); time.sleep(0.002)\n";
    let arguments =
        ["--ack", "^saved", "--acks", "5", "--trials", "40", "--", &python, "-c", script];
    let (status, report) = report(results.path(), &arguments);
    let row = &report["subjects"][0];
    assert_eq!(status, 0, "{row:#}");
    assert!(row["notes"].to_string().contains("after 5 acks"), "{row:#}");
    assert_eq!(row["tally"]["passed"], 40, "{row:#}");
}
