//! Damage at rest, and all scenarios in one table.

mod common;

use common::{report, run_in};
use serde_json::Value;

fn cell<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["subjects"].as_array().unwrap().iter().find(|row| row["name"] == name).unwrap()
}

fn broken(row: &Value) -> Vec<&str> {
    row["tally"]["broken"].as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn of_every_cut_and_flip_of_each_strategy_the_managed_one_takes_none_and_comes_back() {
    let results = tempfile::tempdir().unwrap();
    for scenario in ["corrupt", "deleted", "restore"] {
        let of =
            ["--scenario", scenario, "--strategy", "all", "--seed", "1", "--state-bytes", "1024"];
        let (status, report) = report(results.path(), &of);
        assert_eq!(status, 0, "{scenario}");
        let managed = cell(&report, "managed");
        assert_eq!(broken(managed), Vec::<&str>::new());
        assert_eq!(managed["whole"], true);
        if scenario == "corrupt" {
            // Of an envelope around 928 bytes, each bit and each cut.
            assert!(managed["tally"]["passed"].as_u64().unwrap() > 9 * 928, "{managed:#}");
            assert_eq!(broken(cell(&report, "unsafe")), ["recoverable", "sound"]);
            // Its load takes the old backup for what is whole JSON, and the old state before the backup.
            assert_eq!(broken(cell(&report, "backup")), ["durable", "recoverable", "sound"]);
        }
    }
}

#[test]
fn what_was_found_is_replayed() {
    let results = tempfile::tempdir().unwrap();
    let of =
        ["--scenario", "corrupt", "--strategy", "backup", "--seed", "1", "--state-bytes", "1024"];
    let (_, report) = report(results.path(), &of);
    let kept = cell(&report, "backup")["kept"].as_array().unwrap().clone();
    assert!(kept.len() >= 4);
    for line in kept {
        let copy = tempfile::tempdir().unwrap();
        let to = copy.path().join("copy");
        let replay = ["replay", line["id"].as_str().unwrap(), "--keep", to.to_str().unwrap()];
        let output = run_in(results.path(), &replay);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("the same verdict and the same bytes"), "{text}");
        assert!(std::fs::symlink_metadata(to.join("state.json.bak")).is_ok());
    }
}

/// The options for a program of `targets/python` whose state is loaded by a line of Python.
fn of_program<'a>(python: &'a str, recover: &'a str, script: &'a str) -> Vec<&'a str> {
    let about = ["--scenario", "corrupt", "--seed", "1", "--trials", "96", "--ack", "^saved"];
    [&about[..], &["--recover", recover, "--", python, script]].concat()
}

#[test]
fn a_program_that_prints_what_it_loads_is_compared_with_what_it_saved() {
    let Some(python) = common::python() else { return };
    if !common::can_follow() {
        return;
    }
    let results = tempfile::tempdir().unwrap();
    let script = |name: &str| format!("{}/../targets/python/{name}", env!("CARGO_MANIFEST_DIR"));
    // A sound save, and a load that believes everything: every state is one to it.
    let loads =
        format!("{python} -c 'import json; print(json.dumps(json.load(open(\"state.json\"))))'");
    let bot = script("fsync_rename.py");
    let (status, trusting) = report(results.path(), &of_program(&python, &loads, &bot));
    assert_eq!((status, broken(&trusting["subjects"][0])), (1, vec!["recoverable", "sound"]));
    // One that is silent about what it loads can't be convicted of having taken damage.
    let silent = format!("{python} -c 'import json; json.load(open(\"state.json\"))'");
    let (_, silent) = report(results.path(), &of_program(&python, &silent, &bot));
    assert_eq!(broken(&silent["subjects"][0]), ["recoverable"]);
    let (managed, bot) = (script("managed.py"), script("managed_bot.py"));
    let loads = format!("{python} {managed} load .");
    let (status, managed) = report(results.path(), &of_program(&python, &loads, &bot));
    assert_eq!((status, broken(&managed["subjects"][0])), (0, vec![]), "{managed:#}");
    // A restore that its documentation does not know is undone by the next start.
    let restore = |how: &str| {
        let about =
            ["--scenario", "restore", "--ack", "^saved", "--recover", &loads, "--restore", how];
        let (_, report) = report(results.path(), &[&about[..], &["--", &python, &bot]].concat());
        let row = &report["subjects"][0];
        (row["tally"]["passed"].as_u64().unwrap(), row["tally"]["broken"].clone())
    };
    let script = script("managed.py");
    let documented = restore(&format!("{python} {script} restore . $(basename {{backup}})"));
    assert_eq!(documented, (3, serde_json::json!({})));
    assert_eq!(restore("cp {backup} state.json").0, 1);
    // All that was asked for, but for the files that root can read.
    let tally = &managed["subjects"][0]["tally"];
    assert!((86..=96).contains(&tally["passed"].as_u64().unwrap()), "{tally:#}");
}

#[test]
fn a_load_that_says_nothing_of_what_it_took_is_no_pass() {
    if !common::can_follow() {
        return;
    }
    let results = tempfile::tempdir().unwrap();
    let save = "echo '{\"n\":1}' > t; sync t; mv t s; echo saved";
    let about = ["--scenario", "deleted", "--ack", "saved", "--state", "s", "--recover", "true"];
    let (status, report) =
        report(results.path(), &[&about[..], &["--", "sh", "-c", save]].concat());
    let tally = &report["subjects"][0]["tally"];
    assert!(status == 4 && tally["passed"] == 0, "{tally:#}");
    // Its check sees what is there, also where there was nothing before the first save.
    let check = ["--check", "test -s s", "--", "sh", "-c", save];
    let (status, report) = self::report(results.path(), &[&about[..], &check].concat());
    assert_eq!((status, broken(&report["subjects"][0])), (1, vec!["checked"]));
}

#[test]
fn a_load_that_begins_anew_or_hangs_is_found() {
    if !common::can_follow() {
        return;
    }
    let results = tempfile::tempdir().unwrap();
    let save = "echo '{\"n\":1}' > t; sync t; mv t s; echo saved";
    for (load, kind) in [
        ("grep -q '\"n\":1}' s || : > s", "reset"),
        ("grep -q '\"n\":1}' s || sleep 60", "recovery-hung"),
    ] {
        let about = ["--scenario", "corrupt", "--trials", "12", "--timeout", "1", "--ack", "saved"];
        let of =
            [&about[..], &["--state", "s", "--recover", load, "--", "sh", "-c", save]].concat();
        let (status, report) = report(results.path(), &of);
        let violated = &report["subjects"][0]["tally"]["violated"];
        assert!(status == 1 && violated[kind].is_object(), "{load}: {violated:#}");
    }
}

#[test]
fn what_can_not_be_judged_is_refused() {
    let results = tempfile::tempdir().unwrap();
    let says = |arguments: &[&str], words: &str| {
        let output = run_in(results.path(), &[&["run"], arguments].concat());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(words), "{text}");
    };
    says(&["--scenario", "corrupt", "--", "true"], "--load CMD");
    says(&["--scenario", "stale", "--", "true"], "--broker CMD");
    says(&["--scenario", "restore", "--recover", "true", "--", "true"], "--restore");
    says(&["--scenario", "corrupt", "--depth", "2"], "--depth has no meaning");
    let sound = ["--promise", "sound", "--recover", "true", "--", "true"];
    says(&sound, "the scenario corrupt or deleted");
    let atomic = ["--promise", "atomic", "--recover", "true", "--", "true"];
    says(&[&["--scenario", "deleted"], &atomic[..]].concat(), "while the program saves");
    says(&["--scenario", "al"], "did you mean `all`?");
}

#[test]
fn all_scenarios_come_in_one_table() {
    let results = tempfile::tempdir().unwrap();
    let of = ["run", "--scenario", "all", "--strategy", "unsafe,managed", "--seed", "1"];
    let few = ["--trials", "200", "--state-bytes", "2048", "--images-max", "60"];
    let output = run_in(results.path(), &[&of[..], &few, &["--json"]].concat());
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let scenarios = all["scenarios"].as_array().unwrap();
    assert_eq!(scenarios.len(), 12);
    for scenario in scenarios {
        let (name, one) = (&scenario[0], &scenario[1]);
        match one.get("skipped") {
            Some(why) => assert!(why.as_str().unwrap().contains("root"), "{name}: {why}"),
            None => {
                let managed = cell(&one["ran"], "managed");
                assert_eq!(broken(managed), Vec::<&str>::new(), "{name}");
            }
        }
    }
    let of = ["run", "--scenario", "all", "--images-max", "20", "--trials", "60"];
    let output = run_in(results.path(), &[&of[..], &["--", "sh", "-c", "echo 1 > s"]].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("skipped: corrupt: what a program makes of a damaged state is not known: say with --load CMD"), "{text}");
    assert!(text.contains("unexpected: sh breaks atomic in "), "{text}");
}
