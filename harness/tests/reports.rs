//! Reports in all their forms, and compared: what a person, a CI job and a night see.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{crashtest, has, in_path, repository, run_in};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs in a directory, and returns the status with what was printed.
fn run(place: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = run_in(place, arguments);
    (output.status.code(), format!("{}{}", text(&output.stdout), text(&output.stderr)))
}

fn read(place: &Path, name: &str) -> String {
    fs::read_to_string(place.join(name)).unwrap()
}

/// A scenario that expects of `replace` what it does not do: that it survives a loss of power.
fn wrong_scenario(place: &Path) -> String {
    let path = place.join("wrong.toml");
    let text = "name = \"wrong\"\nabout = \"the power goes\"\nfault = \"power-loss\"\n\
                strategies = [\"replace\"]\npromises = [\"atomic\", \"durable\"]\n\
                [expect.replace]\nkeeps = [\"atomic\"]\n";
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn a_run_is_shown_again_as_it_was() {
    let place = tempfile::tempdir().unwrap();
    let first = run_in(place.path(), &["run", "--quiet", "--seed", "1", "--trials", "100"]);
    let name = run(place.path(), &["list", "runs"]).1;
    let name = name.trim().trim_start_matches("run").trim();
    let again = run_in(place.path(), &["report", name]);
    assert_eq!(text(&first.stdout), text(&again.stdout));
    assert_eq!(first.status.code(), again.status.code());
}

#[test]
fn what_is_not_as_expected_is_named_with_its_remedy_in_every_form() {
    let place = tempfile::tempdir().unwrap();
    let scenario = wrong_scenario(place.path());
    let summary = place.path().join("summary.md");
    let output = crashtest()
        .args([
            "run",
            "--quiet",
            "--seed",
            "1",
            "--scenario",
            &scenario,
            "--strategy",
            "replace,durable",
        ])
        .args(["--github", "--junit", "junit.xml", "--html", "report.html"])
        .env("CRASHTEST_RESULTS", place.path().join("runs"))
        .env("GITHUB_STEP_SUMMARY", &summary)
        .current_dir(place.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    let annotation =
        said.lines().find(|line| line.starts_with("::error title=crashtest wrong::")).unwrap();
    assert!(annotation.contains("replace breaks atomic in "), "{annotation}");
    assert!(annotation.contains("missing fsync of the file"), "{annotation}");
    assert!(annotation.contains(" replay "), "{annotation}");
    let junit = read(place.path(), "junit.xml");
    assert!(junit.contains("tests=\"2\" skipped=\"0\" failures=\"1\" errors=\"0\""), "{junit}");
    assert!(junit.contains("remedy: missing fsync of the file"), "{junit}");
    let summary = fs::read_to_string(&summary).unwrap();
    assert!(summary.contains("# crashtest: 1 result is not as expected"), "{summary}");
    assert!(summary.contains("Remedy: missing fsync of the file"), "{summary}");
    assert!(read(place.path(), "report.html").contains("replace breaks atomic"));
    assert!(said.contains("next: replace breaks atomic: "), "{said}");
}

#[test]
fn the_same_run_is_no_worse_and_another_seed_is_none_either() {
    let place = tempfile::tempdir().unwrap();
    let json = |seed: &str, name: &str| {
        let strategies = "unsafe,atomic,ack-early,truncate-late";
        let arguments =
            ["run", "--json", "--seed", seed, "--trials", "400", "--strategy", strategies];
        fs::write(place.path().join(name), run_in(place.path(), &arguments).stdout).unwrap();
    };
    for seed in 1..=6 {
        json(&seed.to_string(), &format!("{seed}.json"));
    }
    for seed in 1..=6 {
        let (status, said) = run(place.path(), &["compare", "1.json", &format!("{seed}.json")]);
        assert_eq!(status, Some(0), "seed {seed}: {said}");
    }
}

/// A report in which a strategy broke a promise in so many more trials.
fn worsened(report: &str, strategy: &str, promise: &str, more: u64) -> String {
    let mut report: serde_json::Value = serde_json::from_str(report).unwrap();
    let rows = report["subjects"].as_array_mut().unwrap();
    let row = rows.iter_mut().find(|row| row["name"] == strategy).unwrap();
    let broken = row["tally"]["broken"][promise].as_u64().unwrap_or(0);
    row["tally"]["broken"][promise] = (broken + more).into();
    report.to_string()
}

#[test]
fn what_got_worse_is_told_from_chance() {
    let place = tempfile::tempdir().unwrap();
    let arguments =
        ["run", "--json", "--seed", "1", "--trials", "400", "--strategy", "atomic,ack-early"];
    let report = text(&run_in(place.path(), &arguments).stdout);
    fs::write(place.path().join("before.json"), &report).unwrap();
    let after = |strategy: &str, promise: &str, more: u64| {
        fs::write(place.path().join("after.json"), worsened(&report, strategy, promise, more))
            .unwrap();
        run(place.path(), &["compare", "before.json", "after.json"])
    };
    let (status, said) = after("atomic", "atomic", 1);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("NEWLY BROKEN: atomic in sigkill: atomic broken in 1 of 400"), "{said}");
    let (status, said) = after("ack-early", "durable", 5);
    assert_eq!(status, Some(0), "{said}");
    let (status, said) = after("ack-early", "durable", 60);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("WORSE: ack-early in sigkill: durable broken in "), "{said}");
}

#[test]
fn what_is_not_judged_any_more_is_worse() {
    let place = tempfile::tempdir().unwrap();
    let with = |strategies: &str, name: &str| {
        let arguments =
            ["run", "--json", "--seed", "1", "--trials", "50", "--strategy", strategies];
        fs::write(place.path().join(name), run_in(place.path(), &arguments).stdout).unwrap();
    };
    with("atomic,durable", "before.json");
    with("atomic", "after.json");
    let (status, said) = run(place.path(), &["compare", "before.json", "after.json"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("NOT JUDGED ANY MORE: durable in sigkill"), "{said}");
}

#[test]
fn a_baseline_allows_what_was_known_and_nothing_more() {
    let place = tempfile::tempdir().unwrap();
    let scenario = wrong_scenario(place.path());
    let common = ["--seed", "1", "--scenario", &scenario, "--strategy", "replace"];
    let first = run_in(place.path(), &[&["run", "--json"], &common[..]].concat());
    assert_eq!(first.status.code(), Some(1));
    fs::write(place.path().join("known.json"), first.stdout).unwrap();
    let again = [&["run", "--quiet", "--baseline", "known.json"], &common[..]].concat();
    let (status, said) = run(place.path(), &again);
    assert_eq!(status, Some(0), "{said}");
    let known = read(place.path(), "known.json");
    let better = known.replace("\"atomic\": ", "\"tidy\": ");
    assert_ne!(known, better);
    fs::write(place.path().join("known.json"), better).unwrap();
    let (status, said) = run(place.path(), &again);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("NEWLY BROKEN: replace in wrong on "), "{said}");
}

#[test]
fn a_mended_program_is_no_worse_where_states_are_enumerated() {
    let place = tempfile::tempdir().unwrap();
    let states = |strategy: &str, name: &str| {
        let arguments =
            ["run", "--json", "--seed", "1", "--scenario", "poweroff", "--strategy", strategy];
        let report = text(&run_in(place.path(), &arguments).stdout);
        let named = format!("\"name\": \"{strategy}\"");
        fs::write(place.path().join(name), report.replace(&named, "\"name\": \"saver\"")).unwrap();
    };
    states("replace", "before.json");
    states("atomic", "after.json");
    let (status, said) = run(place.path(), &["compare", "before.json", "after.json"]);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("mended: saver in poweroff on ext4: atomic broken in 0 of "), "{said}");
    let (status, said) = run(place.path(), &["compare", "after.json", "before.json"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("NEWLY BROKEN: saver in poweroff on ext4: atomic broken"), "{said}");
}

#[test]
fn what_is_no_report_is_refused_before_anything_runs() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("old.json"), "{\"schema\": 1}").unwrap();
    fs::write(place.path().join("cut.json"), "{\"schema\": 4, \"sub").unwrap();
    let unknown = "{\"schema\": 4, \"subjects\": [{\"expectation\": {\"keeps\": [\"atomci\"]}}]}";
    fs::write(place.path().join("unknown.json"), unknown).unwrap();
    for (name, why) in [
        ("old.json", "schema version 1"),
        ("cut.json", "is no report of this crashtest"),
        ("unknown.json", "is no report of this crashtest"),
        ("nothing.json", "there is no report `nothing.json`"),
    ] {
        let (status, said) = run(place.path(), &["run", "--baseline", name, "--trials", "9"]);
        assert_eq!(status, Some(2), "{said}");
        assert!(said.contains(why), "{said}");
    }
    assert_eq!(crashtest::results::runs(place.path()).len(), 0);
}

#[test]
fn an_edited_run_is_not_shown() {
    let place = tempfile::tempdir().unwrap();
    run_in(place.path(), &["run", "--seed", "1", "--trials", "40"]);
    let runs = crashtest::results::runs(place.path());
    let path = runs[0].join("report.json");
    let said = fs::read_to_string(&path).unwrap();
    fs::write(&path, said.replacen("\"passed\": ", "\"passed\": 1", 1)).unwrap();
    let (status, why) = run(place.path(), &["report", runs[0].to_str().unwrap()]);
    assert_eq!(status, Some(2));
    assert!(why.contains("does not say what its outcomes do"), "{why}");
}

/// A bot that saves three times, durably; `FSYNC` stands where one is dropped below.
const BOT: &str = r#"
import os
for n in range(3):
    with open("state.json.tmp", "w") as file:
        file.write('{"n": %d, "pad": "%s"}' % (n, "x" * 9000))
        file.flush()
        os.fsync(file.fileno())  # FSYNC
    os.rename("state.json.tmp", "state.json")
    directory = os.open(".", os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    print("saved", n, flush=True)
"#;

#[test]
fn a_night_is_red_when_an_fsync_is_dropped_and_green_with_it_by_the_same_seed() {
    let bash = in_path("bash");
    let (true, Some(python), true) = (common::can_follow(), common::python(), bash.is_some())
    else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    let night = |bot: &str, baseline: &str, more: &[&str]| {
        fs::write(place.path().join("bot.py"), bot).unwrap();
        let output = Command::new("bash")
            .arg(repository().join("ci/nightly"))
            .args(["--scenario", "poweroff", "--quiet", "--ack", "^saved"])
            .args(more)
            .args(["--", &python, "bot.py"])
            .envs([
                ("CRASHTEST", env!("CARGO_BIN_EXE_crashtest")),
                ("SEED", "7"),
                ("BASELINE", baseline),
            ])
            .current_dir(place.path())
            .output()
            .unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let dropped = BOT.lines().filter(|line| !line.contains("FSYNC")).collect::<Vec<_>>().join("\n");
    let (status, report, why) = night(BOT, "", &["--json"]);
    assert_eq!(status, Some(0), "{why}");
    fs::write(place.path().join("good.json"), report).unwrap();
    for baseline in ["", "good.json"] {
        let (status, said, _) = night(&dropped, baseline, &[]);
        assert_eq!(status, Some(1), "{said}");
        assert!(
            said.contains("missing fsync of the file: call fsync on it before the rename"),
            "{said}"
        );
        assert!(said.contains("bot.py") && said.contains("replay "), "{said}");
        let (status, said, _) = night(BOT, baseline, &[]);
        assert_eq!(status, Some(0), "{said}");
    }
    assert!(read(place.path(), "nightly/junit.xml").contains("bot.py"));
    assert!(read(place.path(), "nightly/report.html").contains("bot.py"));
}

#[test]
fn runs_that_are_not_all_there_and_twins_are_not_compared() {
    let place = tempfile::tempdir().unwrap();
    let make = |arguments: &[&str], name: &str| {
        let all =
            [&["run", "--json", "--quiet", "--seed", "1", "--trials", "30"], arguments].concat();
        fs::write(place.path().join(name), run_in(place.path(), &all).stdout).unwrap();
    };
    make(&["--strategy", "unsafe"], "whole.json");
    make(&["--strategy", "unsafe", "--shard", "1/2"], "part.json");
    let refused = |before: &str, after: &str, why: &str| {
        let (status, said) = run(place.path(), &["compare", before, after]);
        assert_eq!(status, Some(2), "{said}");
        assert!(said.contains(why), "{said}");
    };
    refused(
        "whole.json",
        "part.json",
        "part.json can't be compared: sigkill is shard 1/2 of a run",
    );
    refused("part.json", "whole.json", "part.json can't be compared");
    let cut = read(place.path(), "whole.json").replace("\"complete\": true", "\"complete\": false");
    fs::write(place.path().join("cut.json"), cut).unwrap();
    refused("whole.json", "cut.json", "cut.json can't be compared: sigkill is not complete");
    let one: serde_json::Value = serde_json::from_str(&read(place.path(), "whole.json")).unwrap();
    let twice =
        serde_json::json!({"scenarios": [["sigkill", {"ran": one}], ["sigkill", {"ran": one}]]});
    fs::write(place.path().join("twice.json"), twice.to_string()).unwrap();
    refused("whole.json", "twice.json", "unsafe is there twice in sigkill");
    let old = twice.to_string().replace("\"schema\":4", "\"schema\":99");
    fs::write(place.path().join("old.json"), old).unwrap();
    refused("whole.json", "old.json", "schema version 99");
}

#[test]
fn json_stands_alone_and_annotations_beside_it() {
    let place = tempfile::tempdir().unwrap();
    let scenario = wrong_scenario(place.path());
    let common = ["run", "--quiet", "--seed", "1", "--scenario", &scenario, "--json", "--github"];
    let output = run_in(place.path(), &common);
    assert_eq!(output.status.code(), Some(1));
    assert!(serde_json::from_slice::<serde_json::Value>(&output.stdout).is_ok());
    assert!(text(&output.stderr).contains("::error title="), "{}", text(&output.stderr));
}

#[test]
fn a_run_that_was_edited_does_not_go_on() {
    let place = tempfile::tempdir().unwrap();
    run_in(place.path(), &["run", "--seed", "1", "--trials", "60", "--strategy", "unsafe"]);
    let directory = crashtest::results::runs(place.path()).pop().unwrap();
    let log = directory.join("outcomes.jsonl");
    let (before, plan) = (fs::read_to_string(&log).unwrap(), directory.join("plan.json"));
    fs::write(&log, before.replacen("{\"violated\"", "{\"violated\" ", 1)).unwrap();
    let resume = ["run", "--quiet", "--resume", directory.to_str().unwrap()];
    let (status, said) = run(place.path(), &resume);
    assert!(status == Some(2) && said.contains("are not as they were written"), "{said}");
    fs::write(&log, before).unwrap();
    let said = fs::read_to_string(&plan).unwrap();
    fs::write(
        &plan,
        said.replacen("\"notes\"", "\"whole\": true, \"notes\"", 1).replacen(
            "\"kernel\": \"",
            "\"kernel\": \"x",
            1,
        ),
    )
    .unwrap();
    let (status, said) = run(place.path(), &["report", directory.to_str().unwrap()]);
    assert!(status == Some(2) && said.contains("plan.json is not as it was written"), "{said}");
}

#[test]
fn names_of_files_are_no_commands_to_a_terminal_or_a_service() {
    let (true, Some(python)) = (common::can_follow(), common::python()) else { return };
    let place = tempfile::tempdir().unwrap();
    let name = r"a\n::error title=x::pwn\n\x1b[2J\u202e.json";
    let bot = format!("for n in range(2):\n    open('{name}', 'w').write(str(n) * 9000)\n");
    fs::write(place.path().join("evil.py"), bot).unwrap();
    for scenario in ["sigkill", "poweroff"] {
        let arguments = [
            "run",
            "--quiet",
            "--seed",
            "1",
            "--scenario",
            scenario,
            "--github",
            "--",
            &python,
            "evil.py",
        ];
        let (status, said) = run(place.path(), &arguments);
        assert_eq!(status, Some(1), "{said}");
        assert!(!said.contains(['\u{1b}', '\u{202e}']), "{said}");
        assert!(
            !said.lines().any(|line| line.trim_start().starts_with("::error title=x")),
            "{said}"
        );
        assert!(said.contains(r"a\n::error"), "{said}");
    }
}

/// A saver whose file name and contents would be a script, or no text at all, or turn the words around them, if
/// anything were to take them for it.
const HOSTILE: &str = r#"
import os
name = b"<img src=x onerror=alert(1)>\xff\xe2\x80\xaenosj.json"
for n in range(3):
    with open(name, "wb") as file:
        file.write(b"</script><script>alert(%d)</script>\xff\x00" % n * 300)
"#;

#[test]
fn a_browser_uses_all_of_the_page_and_nothing_in_it_runs() {
    let browser = repository().join("harness/tests/browser");
    let there = browser.join("node_modules").is_dir() && Path::new("/usr/bin/chromium").is_file();
    let (true, Some(node)) = (has("browser", there && in_path("node").is_some()), in_path("node"))
    else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    let see = |page: &Path| {
        let seen = Command::new(&node)
            .arg(browser.join("report.mjs"))
            .arg(page)
            .env("FILTER_MS_MAX", "2000")
            .output()
            .unwrap();
        assert!(seen.status.success(), "{}", text(&seen.stderr));
    };
    let look = |arguments: &[&str]| {
        let output = run_in(
            place.path(),
            &[&["run", "--quiet", "--seed", "1", "--html", "report.html"], arguments].concat(),
        );
        assert!(output.status.code().is_some_and(|code| code <= 1), "{}", text(&output.stderr));
        see(&place.path().join("report.html"));
    };
    look(&["--trials", "200", "--strategy", "unsafe,atomic,truncate-late"]);
    look(&["--scenario", "poweroff", "--strategy", "unsafe,replace,durable"]);
    if common::usually(false, true) {
        look(&["--scenario", "enospc", "--strategy", "unsafe,atomic"]);
        look(&["--scenario", "concurrent"]);
        look(&["--exhaustive", "--strategy", "unsafe,atomic"]);
    }
    if let (true, Some(python)) = (common::can_follow(), common::python()) {
        fs::write(place.path().join("hostile.py"), HOSTILE).unwrap();
        look(&["--trials", "30", "--", &python, "hostile.py"]);
        assert!(read(place.path(), "report.html").contains("\\u{202e}nosj.json"));
    }
    // Two runs of one scenario.
    let first = ["run", "--quiet", "--seed", "2", "--trials", "40", "--strategy", "unsafe"];
    run_in(place.path(), &first);
    run_in(place.path(), &[&first[..3], &["3"], &first[4..]].concat());
    let runs = crashtest::results::runs(place.path());
    let both: Vec<_> = runs.iter().rev().take(2).filter_map(|run| run.to_str()).collect();
    run_in(place.path(), &[&["report"], &both[..], &["--html", "report.html"]].concat());
    see(&place.path().join("report.html"));
}

#[test]
fn the_map_of_an_exhaustive_run_has_all_states() {
    let place = tempfile::tempdir().unwrap();
    let strategy = ["--strategy", "unsafe", "--html", "report.html", "--json"];
    let output = run_in(
        place.path(),
        &[&["run", "--quiet", "--seed", "1", "--exhaustive"], &strategy[..]].concat(),
    );
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let row = &report["subjects"][0];
    let columns = row["heat"]["columns"].as_array().unwrap();
    let of = |column: &serde_json::Value| {
        let broken = column["broken"].as_object().unwrap().values();
        column["passed"].as_u64().unwrap() + broken.map(|n| n.as_u64().unwrap()).sum::<u64>()
    };
    let counted: u64 = columns.iter().map(of).sum();
    assert_eq!(Some(counted), row["derived"]["states"].as_u64());
    let page = read(place.path(), "report.html");
    assert!(page.contains("The map shows all derived states"), "{page}");
    let passed = row["tally"]["passed"].as_u64().unwrap();
    assert!(page.contains(&format!("On the map: passed {passed}, ")), "{passed}: {page}");
}

#[test]
fn the_page_says_what_is_unclear_and_how_an_interrupted_run_goes_on() {
    let place = tempfile::tempdir().unwrap();
    run_in(
        place.path(),
        &["run", "--quiet", "--seed", "1", "--trials", "40", "--strategy", "atomic"],
    );
    let run = crashtest::results::runs(place.path()).pop().unwrap();
    // As a run that was killed leaves it.
    fs::remove_file(run.join("report.json")).unwrap();
    let outcomes = fs::read_to_string(run.join("outcomes.jsonl")).unwrap();
    let first: String = outcomes.lines().take(9).map(|line| format!("{line}\n")).collect();
    fs::write(run.join("outcomes.jsonl"), first).unwrap();
    run_in(place.path(), &["report", run.to_str().unwrap(), "--html", "report.html"]);
    let page = read(place.path(), "report.html");
    assert!(page.contains(">1 result is unclear<"), "{page}");
    assert!(!page.contains("not as expected</strong>"), "{page}");
    assert!(page.contains(" run --resume "), "{page}");
}

/// What a kept schema objects to in a document.
fn objections(schema: &str, document: &serde_json::Value) -> Vec<String> {
    let path = repository().join(format!("harness/schemas/{schema}.schema.json"));
    let schema = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    validator.iter_errors(document).map(|error| error.to_string()).collect()
}

#[test]
fn what_is_written_is_what_the_schemas_say() {
    let place = tempfile::tempdir().unwrap();
    let runs: [&[&str]; 5] = [
        &["--trials", "60", "--strategy", "all"],
        &["--scenario", "errno", "--strategy", "unsafe,atomic,fsync-retry"],
        &["--scenario", "poweroff", "--strategy", "unsafe,replace"],
        &["--scenario", "corrupt", "--trials", "100"],
        &["--scenario", "concurrent"],
    ];
    for run in runs {
        let report =
            run_in(place.path(), &[&["run", "--json", "--seed", "1"], run].concat()).stdout;
        let report = serde_json::from_slice(&report).unwrap();
        assert_eq!(objections("report", &report), Vec::<String>::new(), "{run:?}");
        let all = serde_json::json!({ "scenarios": [["one", { "ran": report }], ["two", { "skipped": "why" }]] });
        assert_eq!(objections("all", &all), Vec::<String>::new(), "{run:?}");
        let mut damaged = report.clone();
        damaged["subjects"][0]["tally"]["passed"] = "many".into();
        assert_ne!(objections("report", &damaged), Vec::<String>::new());
    }
    let runs = crashtest::results::runs(place.path());
    for run in &runs {
        for line in
            fs::read_to_string(run.join("outcomes.jsonl")).unwrap_or_default().lines().take(500)
        {
            let record = serde_json::from_str(line).unwrap();
            assert_eq!(objections("outcome", &record), Vec::<String>::new(), "{line}");
        }
    }
    let (first, last) = (runs[0].to_str().unwrap(), runs[0].to_str().unwrap());
    let comparison = run_in(place.path(), &["compare", "--json", first, last]).stdout;
    let comparison = serde_json::from_slice(&comparison).unwrap();
    assert_eq!(objections("comparison", &comparison), Vec::<String>::new());
}
