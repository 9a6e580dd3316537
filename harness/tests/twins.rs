//! Each bad subject is told from its good twin, in every language.

mod common;

use common::{compiled, node, python, report, targets, violations};
use crashtest::file_system::FileSystem;

const TRIALS: &str = "160";

/// As many trials as it takes to meet every boundary; sweeps end by themselves.
fn trials(scenario: &str) -> &'static [&'static str] {
    match scenario {
        "sigkill" | "shortwrite" => &["--trials", "400"],
        _ => &[],
    }
}

/// The scenarios that this machine can do.
fn scenarios() -> Vec<&'static str> {
    let mut all = vec!["sigkill", "shortwrite", "errno"];
    all.extend(common::can_fill(FileSystem::Tmpfs).then_some("enospc"));
    all
}

#[test]
fn every_bad_built_in_is_caught_as_its_scenario_expects_and_every_good_one_by_none() {
    let results = tempfile::tempdir().unwrap();
    let mut failed = std::collections::BTreeMap::<String, u64>::new();
    for scenario in scenarios() {
        let arguments = ["--scenario", scenario, "--strategy", "all", "--seed", "1"];
        let (status, report) = report(results.path(), &[&arguments, trials(scenario)].concat());
        assert_eq!(status, 0, "{scenario}: {report:#}");
        for row in report["subjects"].as_array().unwrap() {
            let name = row["name"].as_str().unwrap().to_owned();
            let broken = row["tally"]["broken"].as_object().unwrap().len() as u64;
            *failed.entry(name).or_default() += broken;
        }
    }
    let bad: Vec<_> =
        failed.iter().filter(|(_, n)| **n > 0).map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        bad,
        [
            "ack-early",
            "backup-first",
            "fsync-retry",
            "leaky",
            "log-ack-early",
            "partial-ok",
            "swallow-errors",
            "truncate-late",
            "unlink-first",
            "unsafe"
        ]
    );
}

/// Runs a subject and says how many violations there were, and of what.
fn failures(program: &[&str]) -> (i32, serde_json::Value) {
    let results = tempfile::tempdir().unwrap();
    let options =
        ["--seed", "1", "--trials", TRIALS, "--ack", "^saved", "--env", "VERSIONS=2", "--"];
    let (status, report) = report(results.path(), &[&options[..], program].concat());
    let row = report["subjects"][0].clone();
    assert_eq!(row["tally"]["inconclusive"], serde_json::json!({}), "{row:#}");
    (status, row)
}

fn assert_good(program: &[&str]) {
    let (status, row) = failures(program);
    assert_eq!((status, &row["tally"]["violated"]), (0, &serde_json::json!({})), "{program:?}");
}

fn assert_bad(program: &[&str]) {
    let (status, row) = failures(program);
    assert_eq!(status, 1, "{program:?}");
    assert!(violations(&row, "torn") > 30, "{row:#}");
    assert!(violations(&row, "empty") > 0, "{row:#}");
    // Linux itself leaves an empty file between the truncation and the first write.
    assert!(row["tally"]["violated"]["empty"]["natural"].as_u64() > Some(0), "{row:#}");
}

#[test]
fn python_subjects_are_told_apart() {
    let (true, Some(python)) = (common::can_follow(), python()) else { return };
    assert_bad(&[&python, &targets("python/in_place.py")]);
    for good in ["fsync_rename", "replace_with_backups", "mkstemp_replace"] {
        assert_good(&[&python, &targets(&format!("python/{good}.py"))]);
    }
}

#[test]
fn node_subjects_are_told_apart() {
    let (true, Some(node)) = (common::can_follow(), node()) else { return };
    assert_bad(&[&node, &targets("node/write_file_sync.js")]);
    assert_good(&[&node, &targets("node/write_rename.js")]);
}

#[test]
fn c_subjects_are_told_apart() {
    if !common::can_follow() {
        return;
    }
    let programs = (compiled("stdio_in_place.c"), compiled("stdio_rename.c"));
    let (Some(bad), Some(good)) = programs else { return };
    assert_bad(&[&bad]);
    assert_good(&[&good]);
}

#[test]
fn shell_subjects_are_told_apart() {
    if !common::can_follow() {
        return;
    }
    assert_bad(&["/bin/sh", &targets("shell/redirect.sh")]);
    assert_good(&["/bin/sh", &targets("shell/redirect_mv.sh")]);
}
