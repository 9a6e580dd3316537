//! Two processes that save at once.

mod common;

use common::{report, run_in};
use serde_json::Value;

fn broken(row: &Value) -> Vec<&str> {
    row["tally"]["broken"].as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn only_the_managed_state_lets_nobody_else_in_and_its_lock_dies_with_its_process() {
    let results = tempfile::tempdir().unwrap();
    let of = ["--scenario", "concurrent", "--strategy", "all", "--seed", "1"];
    let (status, all) = report(results.path(), &of);
    assert_eq!(status, 0);
    for row in all["subjects"].as_array().unwrap() {
        let durable = broken(row).contains(&"durable");
        assert_eq!(durable, row["name"] != "managed", "{row:#}");
    }
    let unsafe_row = &all["subjects"][0];
    let id = unsafe_row["kept"][0]["id"].as_str().unwrap();
    let output = run_in(results.path(), &["replay", id]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("the same verdict and the same bytes"), "{text}");
}

/// What the programs here do when they have their lock.
const SAVES: &str = r#"
n = json.load(open("s"))["n"] if os.path.exists("s") else 0
for i in range(2):
    n += 1
    with open("s.tmp", "w") as t:
        json.dump({"n": n}, t); t.flush(); os.fsync(t.fileno())
    os.rename("s.tmp", "s")
    print("saved", n, flush=True)
"#;

/// What breaks of a program that takes a lock in this way.
fn breaks(lock: &str, unlock: &str) -> Option<Vec<String>> {
    let python = common::python()?;
    if !common::can_follow() {
        return None;
    }
    let results = tempfile::tempdir().unwrap();
    let program = format!("import fcntl, json, os, sys\n{lock}{SAVES}{unlock}");
    let loads =
        format!("{python} -c 'import os, json; os.path.exists(\"s\") and json.load(open(\"s\"))'");
    let about =
        ["--scenario", "concurrent", "--ack", "^saved", "--state", "s", "--recover", &loads];
    let run = [&about[..], &["--trials", "24", "--", &python, "-c", &program]].concat();
    let (_, report) = report(results.path(), &run);
    let row = &report["subjects"][0];
    assert!(row["tally"]["passed"].as_u64().unwrap() > 0, "{row:#}");
    Some(broken(row).into_iter().map(str::to_owned).collect())
}

#[test]
fn a_lock_that_the_kernel_takes_back_is_none_to_the_next() {
    let flock = "f = open('lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)\n";
    let Some(broken) = breaks(flock, "") else { return };
    assert_eq!(broken, Vec::<String>::new());
}

#[test]
fn a_lock_file_that_its_killed_owner_leaves_behind_is_found() {
    let excl = "os.close(os.open('lock', os.O_CREAT | os.O_EXCL))\n";
    let Some(broken) = breaks(excl, "os.unlink('lock')\n") else { return };
    assert_eq!(broken, ["recoverable"]);
}

#[test]
fn a_lock_file_with_the_number_of_the_dead_is_found_when_that_has_gone_to_somebody_else() {
    let pid = r#"
while True:
    try:
        fd = os.open("lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(fd, b"%d\n" % os.getpid()); os.close(fd)
        break
    except FileExistsError:
        try:
            os.kill(int(open("lock").read()), 0)
        except (ValueError, ProcessLookupError):
            os.unlink("lock"); continue
        sys.exit("locked")
"#;
    let Some(broken) = breaks(pid, "os.unlink('lock')\n") else { return };
    assert_eq!(broken, ["recoverable"]);
}

#[test]
fn a_state_that_one_takes_away_while_another_saves_is_missed() {
    if !common::can_follow() {
        return;
    }
    // Each cleans up at its start, what the other is about to rename among it.
    let save =
        "rm -f ./*.tmp; for n in 1 2; do echo \"{\\\"n\\\":$n}\" > s.tmp; rm s; mv s.tmp s; done";
    let (results, begin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(begin.path().join("s"), "{\"n\":0}\n").unwrap();
    let init = begin.path().to_str().unwrap();
    let about = ["--scenario", "concurrent", "--init", init, "--state", "s", "--"];
    let (status, report) = report(results.path(), &[&about[..], &["sh", "-c", save]].concat());
    let row = &report["subjects"][0];
    assert!(status == 1 && row["tally"]["violated"]["missing"].is_object(), "{row:#}");
}

#[test]
fn a_shared_temp_name_is_found() {
    // No lock at all: the second writes into the temp file that the first gives its name.
    let Some(python) = common::python() else { return };
    if !common::can_follow() {
        return;
    }
    let results = tempfile::tempdir().unwrap();
    let script = format!("{}/../targets/python/in_place.py", env!("CARGO_MANIFEST_DIR"));
    let about = ["--scenario", "concurrent", "--ack", "^saved", "--", &python, &script];
    let (status, report) = report(results.path(), &about);
    assert_eq!((status, broken(&report["subjects"][0])), (1, vec!["atomic"]));
}
