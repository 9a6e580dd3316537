//! Power cuts below real file systems: what must break breaks, what is sound holds, the model allows all
//! that is seen, and nothing stays behind.

mod common;

use std::fs;
use std::time::Duration;

use common::{Victims, can_cut, report, run_in};
use serde_json::Value;

const KINDS: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// The file systems that this machine can cut the power of.
fn kinds() -> Vec<&'static str> {
    KINDS.into_iter().filter(|kind| can_cut(kind)).collect()
}

/// Runs the scenario; returns the status and the cells, by subject and file system.
fn cut(options: &[&str]) -> (i32, Value) {
    let results = tempfile::tempdir().unwrap();
    let all = [&["--scenario", "poweroff-disk", "--seed", "1"], options].concat();
    report(results.path(), &all)
}

fn cells(report: &Value) -> Vec<(String, &Value)> {
    let mut cells = Vec::new();
    for row in report["subjects"].as_array().unwrap() {
        for cell in row["cells"].as_array().unwrap() {
            let name = row["name"].as_str().unwrap();
            cells.push((format!("{name} on {}", cell["profile"].as_str().unwrap()), cell));
        }
    }
    cells
}

fn of<'a>(cells: &'a [(String, &'a Value)], name: &str) -> &'a Value {
    let found = cells.iter().find(|(known, _)| known == name);
    found.unwrap_or_else(|| panic!("no {name}")).1
}

fn breaks(cell: &Value, kind: &str) -> bool {
    common::violations(cell, kind) > 0
}

#[test]
fn every_strategy_breaks_what_it_must_and_the_model_allows_all_that_is_seen() {
    let kinds = kinds();
    if kinds.is_empty() {
        return;
    }
    let some = "unsafe,replace,mkstemp,atomic,durable,backup,fsync-retry,swallow-errors,log";
    let (strategies, images) = common::usually((some, 60), ("all", 100));
    let most = images.to_string();
    let all = ["--strategy", strategies, "--fs", &kinds.join(","), "--images-max", &most];
    let (status, report) = cut(&all);
    assert_eq!(status, 0, "{report:#}");
    let cells = cells(&report);
    for (name, cell) in &cells {
        let unclear = common::sum(&cell["tally"]["inconclusive"]);
        // A save that syncs twice holds before, between and after.
        let held = cell["spread"]["passed"].as_object().unwrap();
        assert!(!name.starts_with("durable") || held.len() > 2, "{name}: {held:?}");
        assert_eq!(
            Some(common::placed(cell) + unclear),
            cell["states"].as_u64(),
            "{name}: {cell:#}"
        );
        let disk = &cell["disk"];
        assert!(cell["states"].as_u64().unwrap() > images * 4 / 5, "{name}: {cell:#}");
        assert_eq!(disk["outside"]["count"], 0, "{name}: {disk:#}");
        assert_eq!(disk["stuck"]["count"], 0, "{name}: {disk:#}");
        assert!(disk["profile"].is_string(), "{name} was not compared");
    }
    for kind in &kinds {
        for name in ["atomic", "durable", "backup", "fsync-retry", "swallow-errors"] {
            let cell = of(&cells, &format!("{name} on {kind}"));
            for broken in ["empty", "torn", "zeroed", "missing", "mixed", "alien"] {
                assert!(!breaks(cell, broken), "{name} on {kind} is {broken}: {cell:#}");
            }
        }
        let durable = of(&cells, &format!("durable on {kind}"));
        assert!(!breaks(durable, "lost-ack"));
        let in_place = of(&cells, &format!("unsafe on {kind}"));
        assert!(breaks(in_place, "empty") || breaks(in_place, "torn"), "{in_place:#}");
        // What the rename is given before the data comes is another thing on each.
        let empty = if *kind == "ext4" { "zeroed" } else { "empty" };
        for name in ["replace", "mkstemp"] {
            let cell = of(&cells, &format!("{name} on {kind}"));
            assert!(breaks(cell, empty), "{name} on {kind}: {cell:#}");
        }
    }
}

#[test]
fn ext4_that_waits_for_data_leaves_no_nul_bytes_and_the_profile_knows_it() {
    if !can_cut("ext4") {
        return;
    }
    let options = ["--fs", "ext4", "--mount-opts", "dioread_lock", "--strategy", "replace,atomic"];
    let (status, report) = cut(&options);
    assert_eq!(status, 0, "{report:#}");
    for (name, cell) in cells(&report) {
        assert!(!breaks(cell, "zeroed") && !breaks(cell, "empty"), "{name}: {cell:#}");
        assert_eq!(cell["disk"]["profile"], "ext4-dioread_lock");
        assert_eq!(cell["disk"]["outside"]["count"], 0, "{name}: {cell:#}");
    }
}

#[test]
fn without_write_back_the_page_cache_hides_what_is_torn() {
    if !can_cut("ext4") {
        return;
    }
    // This is what a plain recording shows, and why it is not the default.
    let plain = ["--fs", "ext4", "--strategy", "unsafe", "--write-back", "never"];
    let (_, report) = cut(&plain);
    let hidden = &report["subjects"][0]["cells"][0];
    let (_, report) = cut(&["--fs", "ext4", "--strategy", "unsafe", "--write-back", "sync"]);
    let shown = &report["subjects"][0]["cells"][0];
    assert!(!breaks(hidden, "empty") && breaks(shown, "empty"), "{hidden:#} {shown:#}");
}

#[test]
fn a_finding_is_replayed_on_a_disk() {
    let Some(kind) = kinds().first().copied() else { return };
    let results = tempfile::tempdir().unwrap();
    let run = ["run", "--json", "--scenario", "poweroff-disk", "--seed", "1", "--fs", kind];
    let run = [&run[..], &["--strategy", "unsafe", "--images-max", "200"]].concat();
    let report: Value = serde_json::from_slice(&run_in(results.path(), &run).stdout).unwrap();
    let findings = report["subjects"][0]["cells"][0]["findings"].as_array().unwrap().clone();
    assert!(!findings.is_empty());
    let again = |id: &str| {
        let kept = tempfile::tempdir().unwrap();
        let to = kept.path().join("copy");
        let output = run_in(results.path(), &["replay", id, "--keep", to.to_str().unwrap()]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert!(text.contains("the same verdict and the same bytes"), "{text}");
        assert!(to.join("state.json").is_file(), "{text}");
    };
    for finding in &findings {
        again(finding["id"].as_str().unwrap());
    }
    // What a machine under load has shown once by itself is found where it can be brought about.
    let empty = findings.iter().find(|finding| finding["kinds"]["empty"] != Value::Null).unwrap();
    let run = fs::read_dir(results.path()).unwrap().next().unwrap().unwrap();
    let id = empty["id"].as_str().unwrap();
    let file = run.path().join("violations").join(id).join("violation.json");
    let mut kept: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    kept["trial"]["fault"]["write_back"] = serde_json::json!({ "mode": "never" });
    fs::write(&file, kept.to_string()).unwrap();
    again(id);
}

#[test]
fn a_database_is_caught_without_syncs_and_passes_with_them() {
    let Some(python) = common::python() else { return };
    if !can_cut("ext4") || !common::can_follow() {
        return;
    }
    let (begin, check) = (common::with_table(&python), common::check_rows(&python));
    let many: u64 = common::usually(200, 1000);
    for (setting, images, sound) in [("off", 100, false), ("full", many, true)] {
        let images = &images.to_string();
        let script = common::add_rows(setting);
        let options = ["--fs", "ext4", "--images-max", images, "--state", "db", "--check", &check];
        let options = [&options[..], &["--init", begin.path().to_str().unwrap()]].concat();
        let program = ["--promise", "checked", "--", &python, "-c", &script];
        let (status, report) = cut(&[&options[..], &program].concat());
        assert_eq!(status, i32::from(!sound), "{setting}: {report:#}");
        let cell = &report["subjects"][0]["cells"][0];
        assert!(!sound || cell["states"].as_u64().unwrap() >= many, "{cell:#}");
        assert_eq!(cell["disk"]["outside"]["count"], 0, "{cell:#}");
    }
}

#[test]
fn two_file_systems_of_a_kind_are_looked_at_at_once_and_their_tools_find_them_whole() {
    for kind in kinds() {
        let options = ["--fs", kind, "--strategy", "durable", "--images-max", "60", "--jobs", "2"];
        let (status, report) = cut(&[&options[..], &["--fsck"]].concat());
        assert_eq!(status, 0, "{report:#}");
        let disk = &report["subjects"][0]["cells"][0]["disk"];
        assert_eq!(disk["harmed"]["count"], 0, "{disk:#}");
    }
}

fn refused(options: &[&str]) -> (i32, String) {
    let results = tempfile::tempdir().unwrap();
    let run = [&["run", "--scenario", "poweroff-disk", "--strategy", "atomic"], options].concat();
    let output = run_in(results.path(), &run);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), text)
}

#[test]
fn what_makes_no_sense_or_is_not_there_is_said_with_what_to_do() {
    for (options, status, words) in [
        (vec!["--fs", "tmpfs"], 2, "a tmpfs has no disk"),
        (vec!["--images-max", "0"], 2, "no images were asked for"),
        (vec!["--axis", "space"], 2, "--axis has no meaning"),
        (vec!["--profile", "ext4"], 2, "--profile has no meaning"),
        (vec!["--depth", "2"], 2, "--depth has no meaning"),
    ] {
        let found = refused(&options);
        assert_eq!(found.0, status, "{options:?}: {}", found.1);
        assert!(found.1.contains(words) && found.1.contains("help:"), "{}", found.1);
    }
    if can_cut("ext4") {
        let found = refused(&["--fs", "ext4", "--fs-size", "100K"]);
        assert_eq!(found.0, 2, "{}", found.1);
        assert!(found.1.contains("mkfs.ext4 can't make"), "{}", found.1);
        let found = refused(&["--fs", "ext4", "--mount-opts", "nonsense"]);
        assert_eq!(found.0, 2, "{}", found.1);
        assert!(found.1.contains("--mount-opts nonsense"), "{}", found.1);
    }
}

/// Runs the command with less than it needs: `before` is done as root in mounts of its own.
fn deprived(before: &str) -> (i32, String) {
    let results = tempfile::tempdir().unwrap();
    fs::set_permissions(results.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .unwrap();
    let command = env!("CARGO_BIN_EXE_crashtest");
    let options = "--fs ext4 --strategy atomic --images-max 20";
    let script = format!("{before} {command} run -q --scenario poweroff-disk {options}");
    let output = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .env("CRASHTEST_RESULTS", results.path())
        .current_dir("/")
        .output()
        .unwrap();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn what_the_machine_lacks_is_named_with_its_remedy() {
    if !can_cut("ext4") {
        return;
    }
    for (before, words) in [
        ("mount --bind /dev/null /dev/fuse && exec", "cannot serve disks by FUSE"),
        ("mount --bind /dev/null /dev/loop-control && exec", "cannot get a loop device"),
        ("mount -t tmpfs none /usr/sbin && exec", "no mkfs.ext4"),
        ("exec setpriv --bounding-set=-sys_admin", "cannot"),
        ("exec setpriv --reuid 65534 --regid 65534 --clear-groups", "only root"),
    ] {
        let found = deprived(before);
        assert_eq!(found.0, 5, "{before}: {}", found.1);
        assert!(found.1.contains(words) && found.1.contains("help:"), "{before}: {}", found.1);
    }
}

#[test]
fn kills_leave_no_mount_no_loop_device_and_no_process() {
    let kinds = kinds();
    for round in (0..50).step_by(common::usually(7, 1)) {
        let Some(kind) = kinds.get(round % kinds.len().max(1)) else { return };
        let run = ["run", "--scenario", "poweroff-disk", "--strategy", "all", "--fs", kind];
        let victims = if round % 5 == 4 { Victims::AllButJanitor } else { Victims::Coordinator };
        common::kill_and_look(&run, Duration::from_millis(20 + 12 * round as u64), victims);
    }
    // Whoever syncs everything waits for whatever hangs.
    let synced = std::process::Command::new("timeout").args(["20", "sync"]).status();
    assert!(synced.unwrap().success(), "a file system was left that can't be written");
}

#[test]
fn a_subject_that_fills_the_disk_is_no_error_of_the_harness() {
    let Some(python) = common::python() else { return };
    if !can_cut("ext4") || !common::can_follow() {
        return;
    }
    let script = "import os\n\
        open('state', 'w').write('{}'); print('saved', flush=True)\n\
        try:\n    open('big', 'wb').write(bytes(40 << 20))\n\
        except OSError:\n    os._exit(0)\n";
    let options = ["--fs", "ext4", "--fs-size", "24M", "--images-max", "20", "--state", "state"];
    let options = [&options[..], &["--write-back", "never", "--promise", "atomic"]].concat();
    let (status, report) = cut(&[&options[..], &["--", &python, "-c", script]].concat());
    // The state is written in place, and that is all that is wrong.
    assert!(matches!(status, 0 | 1), "{status}: {report:#}");
    assert_eq!(report["subjects"][0]["cells"][0]["disk"]["refused"]["count"], 0, "{report:#}");
}

/// Somebody else has a file open on an image when it is to be unmounted.
#[test]
fn a_disk_that_stays_in_use_is_left_behind_and_told() {
    let Some(python) = common::python() else { return };
    if !can_cut("ext4") || !common::can_follow() {
        return;
    }
    let (results, meeting) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [pid, held] = ["pid", "held"].map(|name| meeting.path().join(name));
    let check = format!(
        "case $PWD in */disk/dir) test -e {held} || {{ echo $$ > {pid}; \
         while ! test -e {held}; do sleep 0.01; done; }};; esac",
        held = held.display(),
        pid = pid.display()
    );
    let script = "import os\nf = open('state', 'w'); f.write('x' * 5000); f.flush(); os.fsync(f)\n";
    let options = ["--fs", "ext4", "--images-max", "6", "--write-back", "never", "--jobs", "1"];
    let options =
        [&["--json", "--scenario", "poweroff-disk", "--check", &check], &options[..]].concat();
    let all = [&["run"], &options[..], &["--", &python, "-c", script]].concat();
    let run = std::thread::scope(|scope| {
        // The process that asks is to be found by its number.
        let mut command = common::crashtest();
        command.args(&all).env("CRASHTEST_RESULTS", results.path());
        command.env("CRASHTEST_NAMESPACES", "off").current_dir(results.path());
        let run = scope.spawn(move || command.output().unwrap());
        let started = std::time::Instant::now();
        let asking = loop {
            let text = fs::read_to_string(&pid).unwrap_or_default();
            if text.ends_with('\n') {
                break text.trim().to_owned();
            }
            assert!(started.elapsed() < Duration::from_secs(30), "no image was looked at");
            std::thread::sleep(Duration::from_millis(5));
        };
        let _open = fs::File::open(format!("/proc/{asking}/cwd")).unwrap();
        fs::write(&held, "").unwrap();
        run.join().unwrap()
    });
    let report: Value = serde_json::from_slice(&run.stdout).unwrap();
    let cell = &report["subjects"][0]["cells"][0];
    assert_eq!(cell["disk"]["stuck"]["count"], 1, "{cell:#}");
    let first = cell["disk"]["stuck"]["first"].as_str().unwrap();
    assert!(first.contains("stayed in use"), "{first}");
    assert!(cell["states"].as_u64().unwrap() > 2, "{cell:#}");
}
