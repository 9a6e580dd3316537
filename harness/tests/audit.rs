//! The audit: its status, its places in the source, what it recommends, and how it reads.

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;

use common::{node, python, run_in, targets};
use serde_json::Value;

/// A few trials in each scenario: enough for each kind of finding.
const FEW: [&str; 5] = ["audit", "-q", "--trials=80", "--seed=7", "--jobs=2"];

/// What most of the findings come from.
const SOME: &str = "--scenario=sigkill,errno,poweroff,concurrent";

/// Audits; the status, the document as data and as text.
fn audit(options: &[&str], subject: &[&str]) -> (Option<i32>, Value, String) {
    let directory = tempfile::tempdir().unwrap();
    let files = ["--json-output", "audit.json", "--output", "audit.md"];
    let output = run_in(directory.path(), &[&FEW[..], &files, options, subject].concat());
    let read = |name: &str| fs::read_to_string(directory.path().join(name));
    let json = read("audit.json").unwrap_or_else(|error| panic!("{error}: {}", text(&output)));
    let markdown = read("audit.md").unwrap();
    assert_eq!(markdown.as_bytes(), output.stdout, "what is printed is what is written");
    (output.status.code(), serde_json::from_str(&json).unwrap(), markdown)
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn area<'a>(audit: &'a Value, name: &str) -> &'a Value {
    let mut areas = audit["areas"].as_array().unwrap().iter();
    areas.find(|area| area["name"] == name).expect("the area is there")
}

/// The recommendation with this beginning.
fn advice<'a>(audit: &'a Value, beginning: &str) -> Option<&'a Value> {
    let mut all = audit["recommendations"].as_array().unwrap().iter();
    all.find(|one| one["what"].as_str().is_some_and(|what| what.starts_with(beginning)))
}

#[test]
fn the_in_place_python_saver_fails_with_its_line_and_the_remedy() {
    let Some(python) = python() else { return };
    if !common::can_follow() {
        return;
    }
    let file = targets("python/in_place.py");
    let (status, audit, markdown) = audit(&[SOME], &["--", &python, &file]);
    assert_eq!(status, Some(1));
    assert_eq!((&audit["status"], &audit["risk"]), (&"fail".into(), &"critical".into()));
    assert_eq!(audit["language"], "python");
    let source = fs::read_to_string(&file).unwrap();
    let line = |text: &str| source.lines().position(|line| line.contains(text)).unwrap() + 1;
    let (open, dump) = (line("with open"), line("json.dump("));
    let killed = &area(&audit, "Atomic write")["findings"][0];
    assert_eq!(killed["outcome"], "failed", "{killed:#}");
    let place = &killed["example"]["place"];
    assert_eq!((&place["file"], &place["function"]), (&file.clone().into(), &"save".into()));
    assert!([open, dump].map(|n| n as u64).contains(&place["line"].as_u64().unwrap()), "{place}");
    let save = advice(&audit, "Save into a new file").expect("the save is to be mended");
    assert_eq!(save["priority"], "critical");
    assert!(save["code"]["text"].as_str().unwrap().contains("os.fsync(file.fileno())"));
    assert!(save["places"].as_array().unwrap().iter().any(|place| place["line"] == dump as u64));
    for words in [
        "# How `in_place.py` saves its state: FAIL",
        "**Risk level: critical**",
        &format!("{file}:{open} in save"),
        "```python\nimport os\n\ndef replace(path, data):",
        "crashtest replay ",
        "| The process is killed while it saves",
        "in-place overwrite: write a temporary file, fsync it, rename it over the state",
    ] {
        let found = markdown.to_lowercase().contains(&words.to_lowercase());
        assert!(found, "{words} is not in\n{markdown}");
    }
}

#[test]
fn the_durable_python_saver_passes() {
    let Some(python) = python() else { return };
    if !common::can_follow() {
        return;
    }
    let file = targets("python/durable.py");
    let load = format!("{python} {file} load");
    // What a load makes of each survivor of a loss of power takes minutes.
    let more = ["--scenario=sigkill,errno,concurrent,corrupt,deleted,restore", "--recover", &load];
    let more = [&more[..], &["--restore", "cp {backup} state.json"]].concat();
    let (status, audit, markdown) = audit(&more, &["--", &python, &file]);
    assert_eq!((status, &audit["status"]), (Some(0), &"pass".into()), "{markdown}");
    assert_eq!(audit["risk"], Value::Null);
    for name in ["Atomic write", "Locking", "Load validation", "Backups", "Recovery"] {
        assert_eq!(area(&audit, name)["outcome"], "passed", "{name}: {markdown}");
    }
    assert!(markdown.contains("every promise held") || markdown.contains("Every promise held"));
}

#[test]
fn each_finding_is_backed_by_what_can_be_replayed() {
    let Some(python) = python() else { return };
    if !common::can_follow() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = targets("python/fsync_rename.py");
    let options = [SOME, "--json", "--", &python, &file];
    let output = run_in(directory.path(), &[&FEW[..], &options].concat());
    let audit: Value = serde_json::from_slice(&output.stdout).unwrap();
    // Its directory is never synced, and two of it at once share a temporary file.
    assert_eq!(audit["status"], "fail", "{audit:#}");
    let findings = audit["areas"].as_array().unwrap().iter();
    let findings = findings.flat_map(|area| area["findings"].as_array().unwrap());
    let mut replayed = 0;
    for finding in findings.filter(|finding| !finding["example"].is_null()) {
        let command = finding["example"]["replay"].as_str().unwrap();
        let words: Vec<_> = command.split_whitespace().skip(1).collect();
        let output = run_in(directory.path(), &words);
        assert_eq!(output.status.code(), Some(0), "{command}: {}", text(&output));
        replayed += 1;
    }
    assert!(replayed >= 1, "{audit:#}");
    let durability = &area(&audit, "Durability")["findings"];
    let lost = durability.as_array().unwrap().iter().find(|one| one["outcome"] == "warned");
    let lost = lost.expect("an acknowledged save is lost");
    assert_eq!(lost["example"]["place"]["function"], "save", "{lost:#}");
    assert!(lost["remedies"].to_string().contains("fsync of the directory"), "{lost:#}");
}

#[test]
fn a_node_and_a_native_program_get_examples_of_their_own() {
    if !common::can_follow() {
        return;
    }
    if let Some(node) = node() {
        let (_, audit, markdown) =
            audit(&["--scenario=sigkill"], &["--", &node, &targets("node/write_file_sync.js")]);
        assert_eq!((&audit["language"], &audit["status"]), (&"javascript".into(), &"fail".into()));
        assert!(
            markdown.contains("const path = require('path')\n\n// Puts bytes in the place"),
            "{markdown}"
        );
        assert!(markdown.contains("write_file_sync.js:"), "{markdown}");
    }
    if let Some(program) = common::compiled_with("stdio_in_place.c", &["-g", "-O1"]) {
        let (_, audit, markdown) = audit(&["--scenario=sigkill"], &["--", &program]);
        assert_eq!(audit["language"], "c");
        assert!(markdown.contains("stdio_in_place.c:"), "{markdown}");
        assert!(markdown.contains("#include <unistd.h>\n\nstatic int write_all"), "{markdown}");
    }
    let (_, audit, markdown) =
        audit(&["--scenario=sigkill"], &["--", "/bin/sh", &targets("shell/redirect.sh")]);
    assert_eq!(audit["language"], "shell");
    assert!(markdown.contains("lines of its source that save are not known"), "{markdown}");
}

#[test]
fn strategies_are_audited_too() {
    let (status, audit, _) =
        audit(&["--scenario=sigkill,corrupt,disconnect"], &["--strategy=unsafe"]);
    assert_eq!((status, &audit["risk"]), (Some(1), &"critical".into()));
    assert!(advice(&audit, "Write each order down").is_some(), "{audit:#}");
    assert_eq!(audit["scenarios"].as_array().unwrap().len(), 3);
    let after = audit["scenarios"].as_array().unwrap().iter().map(|one| &one["after"]["of"]);
    assert!(after.into_iter().all(|rate| rate["passed"] == rate["judged"]), "{audit:#}");
    let (status, audit, _) =
        self::audit(&["--scenario=sigkill,corrupt", "--images-max=9"], &["--strategy=managed"]);
    assert_eq!((status, &audit["status"]), (Some(0), &"pass".into()));
}

#[test]
fn what_could_not_be_judged_is_no_pass_and_nothing_breaks_the_document() {
    let Some(python) = python() else { return };
    if !common::can_follow() {
        return;
    }
    // Other bytes in each run, in place: nothing can be compared.
    let script = "import os, base64\n\
        # `one` <b>two</b>\n\
        open('s|t', 'w').close()\n\
        for n in range(4): os.pwrite(os.open('s|t', os.O_WRONLY), base64.b64encode(os.urandom(2000 + 4 * os.urandom(1)[0])), 0)\n";
    let (status, audit, markdown) = audit(&["--scenario=sigkill"], &["--", &python, "-c", script]);
    assert_eq!((status, &audit["status"]), (Some(0), &"warn".into()), "{markdown}");
    assert!(markdown.contains("say nothing (not comparable)"), "{markdown}");
    assert!(!markdown.lines().any(|line| line.starts_with("# `one`")), "{markdown}");
}

#[test]
fn hints_come_from_the_source_and_are_no_findings() {
    let source = targets("python");
    let output = run_in(Path::new("/"), &["audit", "--source", &source]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0));
    assert!(text.contains("in_place.py:10`: The file is emptied"), "{text}");
    assert!(!text.contains("durable.py"), "{text}");
    assert!(text.contains("Nothing was run"), "{text}");
}

#[test]
fn what_can_not_be_audited_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |arguments: &[&str], status: i32, words: &str| {
        let output = run_in(directory.path(), arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", text(&output));
        assert!(text(&output).contains(words), "{arguments:?}: {}", text(&output));
    };
    refused(&["audit"], 2, "give a program after --, or --strategy NAME, or --source DIR");
    refused(&["audit", "--source", "nowhere"], 2, "there is no such file");
    refused(&["audit", "--strategy", "unsave"], 2, "unsafe");
    refused(&["audit", "--scenario", "sigkil", "--strategy", "unsafe"], 2, "sigkill");
    refused(&["audit", "--scenario", "sigkill", "--", "false"], 3, "failed with status 1");
    let unwritable = [&FEW[..], &["--scenario=sigkill", "-o", "no/audit.md", "--strategy=managed"]];
    refused(&unwritable.concat(), 2, "cannot write no/audit.md");
}
