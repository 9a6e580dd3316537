//! A program and its broker part: any program, any protocol over TCP.

mod common;

use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use common::{crashtest, python, report, run_in, targets, violations};
use serde_json::Value;

/// The options for a bot among `targets/python/orders`, and its command line.
fn life(scenario: &str, bot: &str) -> Option<Vec<String>> {
    let python = python()?;
    let command = |file: &str, rest: &str| {
        format!("{python} {} {rest}", targets(&format!("python/orders/{file}.py")))
    };
    let words = |text: &[&str]| text.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut all = words(&["--scenario", scenario, "--broker"]);
    all.extend([command("broker", "{port}"), "--check".to_owned(), command("check", "{broker}")]);
    all.extend(["--settle".to_owned(), command("client", "{broker} /settle now"), "--".to_owned()]);
    all.extend([
        python.clone(),
        targets(&format!("python/orders/{bot}.py")),
        "{broker}".to_owned(),
    ]);
    Some(all)
}

fn words(all: &[String]) -> Vec<&str> {
    all.iter().map(String::as_str).collect()
}

fn part(scenario: &str, bot: &str) -> Option<(i32, Value)> {
    let all = life(scenario, bot)?;
    let results = tempfile::tempdir().unwrap();
    common::can_follow().then(|| report(results.path(), &words(&all)))
}

#[test]
fn a_bot_that_writes_down_first_and_asks_at_the_start_agrees_in_the_end() {
    for scenario in ["disconnect", "stale"] {
        let Some((status, report)) = part(scenario, "sound") else { return };
        let row = &report["subjects"][0];
        assert_eq!(status, 0, "{scenario}: {row:#}");
        // Its storage calls, and three times its requests.
        assert!(row["tally"]["passed"].as_u64() > Some(30), "{scenario}: {row:#}");
        assert_eq!(row["whole"], true);
    }
}

#[test]
fn a_bot_that_sends_and_then_writes_down_is_found_out_and_replayed() {
    let Some(all) = life("disconnect", "unsound") else { return };
    if !common::can_follow() {
        return;
    }
    let results = tempfile::tempdir().unwrap();
    let (status, report) = report(results.path(), &words(&all));
    assert_eq!(status, 1);
    let row = &report["subjects"][0];
    assert!(violations(row, "diverged") > 5, "{row:#}");
    let kept = row["kept"].as_array().unwrap();
    let id = kept[0]["id"].as_str().unwrap();
    let replayed = run_in(results.path(), &["replay", id]);
    assert_eq!(replayed.status.code(), Some(0), "{}", text(&replayed));
    let Some((status, report)) = part("stale", "unsound") else { return };
    assert_eq!(status, 1);
    assert!(violations(&report["subjects"][0], "diverged") > 5, "{report:#}");
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_is_not_known_or_does_not_work_is_said() {
    let Some(all) = life("disconnect", "sound") else { return };
    if !common::can_follow() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let run = |all: &[&str]| run_in(directory.path(), &[&["run"], all].concat());
    let refused = |all: &[&str], status: i32, part: &str| {
        let output = run(all);
        assert_eq!(output.status.code(), Some(status), "{}", text(&output));
        assert!(text(&output).contains(part), "{}", text(&output));
    };
    let all = words(&all);
    let program = all.iter().position(|word| *word == "--").unwrap();
    let with = |broker: &'static str, check: &'static str, program: &[&'static str]| {
        let options = ["--scenario", "disconnect", "--broker", broker, "--check", check, "--"];
        [&options[..], program].concat()
    };
    refused(
        &[&["--scenario", "stale", "--broker=b", "--check=c", "--"], &all[program + 1..]].concat(),
        2,
        "--settle CMD",
    );
    refused(&["--scenario", "disconnect", "--check", "true", "--", "true"], 2, "--broker CMD");
    refused(&with("echo no such ledger; exit 3", "true", &["true"]), 3, "no such ledger");
    // It serves, and is asked nothing.
    let serves = "exec python3 -m http.server --bind 127.0.0.1 {port}";
    refused(&with(serves, "true", &["true"]), 3, "asks its broker nothing");
    let asks = [
        "python3",
        "-c",
        "import os, urllib.request as u; u.urlopen('http://' + os.environ['CRASHTEST_BROKER']); open('s', 'w')",
    ];
    refused(&with(serves, "echo they differ >&2; false", &asks), 3, "they differ");
}

/// How many brokers of these tests run.
fn brokers() -> usize {
    let broker = targets("python/orders/broker.py");
    let runs = |entry: &std::fs::DirEntry| {
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).contains(&broker)
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter(runs).count()
}

#[test]
fn a_kill_of_crashtest_leaves_no_broker() {
    let Some(all) = life("disconnect", "sound") else { return };
    if !common::can_follow() {
        return;
    }
    let results = tempfile::tempdir().unwrap();
    for after in [300, 900] {
        let mut command = crashtest();
        command.args(["run", "-q"]).args(&all).env("CRASHTEST_RESULTS", results.path());
        let mut child = command.current_dir(Path::new("/")).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(after));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let started = Instant::now();
    // Other tests have brokers of their own, which come and go.
    while brokers() > 0 && started.elapsed() < Duration::from_secs(240) {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(brokers(), 0);
}
