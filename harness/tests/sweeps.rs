//! The sweeps of failing calls and of full disks, as a user makes them.

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::{compiled, node, python, report, run_in, table, targets};
use crashtest::file_system::FileSystem;

fn rows(report: &serde_json::Value) -> &Vec<serde_json::Value> {
    report["subjects"].as_array().unwrap()
}

fn broken(row: &serde_json::Value) -> Vec<&str> {
    row["tally"]["broken"].as_object().unwrap().keys().map(String::as_str).collect()
}

/// Runs a sweep of all strategies; all must do what the scenario expects, and each sweep must end
/// by itself.
#[track_caller]
fn sweep_all(options: &[&str]) -> serde_json::Value {
    let results = tempfile::tempdir().unwrap();
    let all = ["--strategy", "all", "--seed", "1"];
    let (status, report) = report(results.path(), &[&all, options].concat());
    assert_eq!(status, 0, "{options:?}: {report:#}");
    for row in rows(&report) {
        assert_eq!(row["sweep"]["open_lanes"], 0, "{row:#}");
        assert!(row["tally"]["struck"].as_u64() > Some(0), "{row:#}");
    }
    report
}

/// The strategies that break nothing in a sweep, and those that break something.
fn told_apart<'a>(report: &'a serde_json::Value) -> (Vec<&'a str>, Vec<&'a str>) {
    let (good, bad): (Vec<_>, Vec<_>) = rows(report).iter().partition(|row| broken(row).is_empty());
    let names = |rows: Vec<&'a serde_json::Value>| -> Vec<&'a str> {
        rows.into_iter().filter_map(|row| row["name"].as_str()).collect()
    };
    (names(good), names(bad))
}

#[test]
fn failing_calls_tell_every_bad_twin_from_its_good_twin() {
    let report = sweep_all(&["--scenario", "errno"]);
    let (good, bad) = told_apart(&report);
    let logs = ["log", "log-no-checksum", "managed"];
    let replaced = ["atomic", "replace", "mkstemp", "durable", "backup", "fsync-afresh"];
    assert_eq!(good, [&replaced[..], &logs].concat());
    assert_eq!(
        bad,
        [
            "unsafe",
            "ack-early",
            "unlink-first",
            "truncate-late",
            "partial-ok",
            "swallow-errors",
            "leaky",
            "backup-first",
            "fsync-retry",
            "log-ack-early"
        ]
    );
    // Each call that failed is counted.
    let unsafe_row = &rows(&report)[0];
    let met = unsafe_row["tally"]["met"].as_object().unwrap();
    let count: u64 = met.values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(Some(count), unsafe_row["tally"]["struck"].as_u64());
    assert!(met.contains_key("write ENOSPC") && met.contains_key("close EIO"), "{met:?}");
}

#[test]
fn two_failures_in_one_run_do_no_harm_to_the_good() {
    let report = sweep_all(&["--scenario", "errno", "--depth", "2"]);
    let (good, _) = told_apart(&report);
    let logs = ["log", "log-no-checksum", "managed"];
    let replaced = ["atomic", "replace", "durable", "backup", "fsync-afresh"];
    assert_eq!(good, [&replaced[..], &logs].concat());
    // The temp file of a random name stays when its unlink fails, too.
    let mkstemp = rows(&report).iter().find(|row| row["name"] == "mkstemp").unwrap();
    assert_eq!(broken(mkstemp), ["tidy"]);
}

#[test]
fn a_full_tmpfs_tells_the_bad_from_the_good_without_root() {
    if !common::can_fill(FileSystem::Tmpfs) {
        return;
    }
    let report = sweep_all(&["--scenario", "enospc"]);
    assert_eq!(report["file_system"], "tmpfs");
    let (_, bad) = told_apart(&report);
    assert_eq!(
        bad,
        ["unsafe", "truncate-late", "partial-ok", "swallow-errors", "leaky", "backup-first"]
    );
    for (name, promise) in [("partial-ok", "honest"), ("swallow-errors", "honest")] {
        let row = rows(&report).iter().find(|row| row["name"] == name).unwrap();
        assert!(broken(row).contains(&promise), "{row:#}");
    }
    sweep_all(&["--scenario", "enospc", "--then", "kill"]);
}

#[test]
fn a_full_disk_image_tells_the_bad_from_the_good() {
    for kind in [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs] {
        if !common::can_fill(kind) {
            continue;
        }
        let report = sweep_all(&["--scenario", "enospc", "--fs", kind.name()]);
        assert_eq!(report["file_system"], kind.name());
        let (good, bad) = told_apart(&report);
        assert!(bad.contains(&"unsafe") && bad.contains(&"swallow-errors"), "{kind}: {bad:?}");
        for name in ["atomic", "replace", "mkstemp", "durable", "backup", "fsync-afresh", "managed"]
        {
            assert!(good.contains(&name), "{kind}: {name} is not among {good:?}");
        }
        if kind == FileSystem::Ext4 {
            let wanted = [
                "unsafe",
                "truncate-late",
                "partial-ok",
                "swallow-errors",
                "leaky",
                "backup-first",
            ];
            assert_eq!(bad, wanted);
            sweep_all(&["--scenario", "enospc", "--fs", kind.name(), "--then", "kill"]);
        }
    }
}

/// What a program breaks in a sweep.
fn program_breaks(scenario: &str, program: &[&str], again: Again) -> Vec<String> {
    let results = tempfile::tempdir().unwrap();
    let recover: &[&str] = match again {
        Again::Yes => &["--recover", "true"],
        Again::No => &[],
    };
    // Two saves show what four would.
    let options = [
        "--scenario",
        scenario,
        "--ack",
        "^saved",
        "--env",
        "VERSIONS=2",
        "--keep-env",
        "VERSIONS",
    ];
    let (_, report) = report(results.path(), &[&options, recover, &["--"], program].concat());
    let row = &rows(&report)[0];
    assert_eq!(row["sweep"]["open_lanes"], 0, "{row:#}");
    let unsaid = row["tally"]["inconclusive"].as_object().unwrap();
    let other = unsaid.keys().find(|why| *why != "not-reached");
    assert!(other.is_none(), "{program:?}: {row:#}");
    broken(row).iter().map(|promise| (*promise).to_owned()).collect()
}

#[test]
fn a_quota_tells_the_bad_from_the_good() {
    if !common::can_fill(FileSystem::Btrfs) {
        return;
    }
    let report = sweep_all(&["--scenario", "enospc", "--fs", "btrfs", "--axis", "quota"]);
    let (good, bad) = told_apart(&report);
    for name in ["atomic", "replace", "mkstemp", "durable", "backup", "fsync-afresh", "managed"] {
        assert!(good.contains(&name), "{name} is not among {good:?}");
    }
    assert!(bad.contains(&"swallow-errors") && bad.contains(&"leaky"), "{bad:?}");
    let met = rows(&report)[1]["tally"]["met"].as_object().unwrap();
    assert!(met.keys().all(|what| what.ends_with("EDQUOT")), "{met:?}");
}

/// Whether a program is run again after each trial, which shows what it leaves for ever.
#[derive(Clone, Copy)]
enum Again {
    Yes,
    No,
}

/// Runs a program through both sweeps.
#[track_caller]
fn check(program: &[&str], again: Again, errno: &[&str], enospc: &[&str]) {
    assert_eq!(program_breaks("errno", program, again), errno, "errno: {program:?}");
    if common::can_fill(FileSystem::Tmpfs) {
        assert_eq!(program_breaks("enospc", program, again), enospc, "enospc: {program:?}");
    }
}

#[test]
fn python_programs_are_told_apart() {
    let (true, Some(python)) = (common::can_follow(), python()) else { return };
    let silent = ["durable", "honest"];
    let cases: [(&str, &[&str], &[&str]); 9] = [
        ("in_place", &["atomic"], &["atomic"]),
        ("fsync_rename", &[], &[]),
        ("mkstemp_replace", &[], &[]),
        ("replace_with_backups", &[], &[]),
        ("fsync_afresh", &[], &[]),
        ("swallow_errors", &silent, &silent),
        ("leaky", &["tidy"], &["tidy"]),
        ("backup_first", &["atomic"], &["atomic"]),
        ("fsync_retry", &silent, &[]),
    ];
    // Their twins are told apart as strategies.
    let seldom = ["mkstemp_replace", "replace_with_backups", "fsync_afresh", "backup_first"];
    for (name, errno, enospc) in cases {
        if seldom.contains(&name) && !common::usually(false, true) {
            continue;
        }
        let again = match name {
            "leaky" | "mkstemp_replace" | "replace_with_backups" => Again::Yes,
            _ => Again::No,
        };
        check(&[&python, &targets(&format!("python/{name}.py"))], again, errno, enospc);
    }
}

#[test]
fn node_programs_are_told_apart() {
    if !common::can_follow() {
        return;
    }
    let Some(node) = node() else { return };
    let in_place = [&node, &*targets("node/write_file_sync.js")];
    let renamed = [&node, &*targets("node/write_rename.js")];
    check(&renamed, Again::No, &[], &[]);
    // Node needs long to start.
    if common::usually(false, true) {
        check(&in_place, Again::No, &["atomic"], &["atomic"]);
    } else {
        assert_eq!(program_breaks("errno", &in_place, Again::No), ["atomic"]);
    }
}

#[test]
fn c_and_shell_programs_are_told_apart() {
    if !common::can_follow() {
        return;
    }
    if let (Some(bad), Some(good)) = (compiled("stdio_in_place.c"), compiled("stdio_rename.c")) {
        check(&[&bad], Again::Yes, &["atomic"], &["atomic"]);
        check(&[&good], Again::Yes, &[], &[]);
    }
    check(&["/bin/sh", &targets("shell/redirect_mv.sh")], Again::Yes, &[], &[]);
    check(&["/bin/sh", &targets("shell/redirect.sh")], Again::Yes, &["atomic"], &["atomic"]);
}

#[test]
fn the_same_sweep_gives_the_same_table_with_any_number_of_workers() {
    let results = tempfile::tempdir().unwrap();
    for scenario in ["errno", "enospc"] {
        if scenario == "enospc" && !common::can_fill(FileSystem::Tmpfs) {
            continue;
        }
        let strategies = common::usually("unsafe,atomic,partial-ok,fsync-retry,leaky,log", "all");
        let run = |jobs: &str| {
            let options = ["--scenario", scenario, "--strategy", strategies, "--jobs", jobs];
            table(&report(results.path(), &options).1)
        };
        let tables = ["1", "2", "3"].map(run);
        // How far the ends of the rows are overshot is the same, too.
        assert!(tables[0] == tables[1] && tables[1] == tables[2], "{scenario}");
    }
}

#[test]
fn a_sweep_that_was_interrupted_goes_on_and_ends_with_the_table_of_an_unbroken_one() {
    let strategies = common::usually("unsafe,atomic,fsync-retry,log", "all");
    common::interrupt_and_go_on(&["--scenario", "errno", "--depth", "2", "--strategy", strategies]);
}

fn replays(results: &Path, options: &[&str]) {
    let (_, report) = report(results, options);
    let lines = rows(&report).iter().flat_map(|row| row["kept"].as_array().unwrap().iter().take(3));
    for line in lines {
        let id = line["id"].as_str().unwrap();
        let keep = results.join(id);
        let output = run_in(results, &["replay", id, "--keep", &keep.display().to_string()]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("the same verdict and the same bytes"), "{text}");
        // It says which call failed, and how the program ended.
        assert!(text.contains("did:     ") && text.contains("ended with status"), "{text}");
    }
}

#[test]
fn a_replay_shows_the_same_and_says_what_the_program_did() {
    let results = tempfile::tempdir().unwrap();
    let strategies = common::usually("unsafe,partial-ok,swallow-errors,leaky,fsync-retry", "all");
    replays(results.path(), &["--scenario", "errno", "--strategy", strategies]);
    if common::can_fill(FileSystem::Tmpfs) {
        replays(results.path(), &["--scenario", "enospc", "--strategy", strategies]);
    }
    if let (true, Some(python)) = (common::can_follow(), python()) {
        for name in ["swallow_errors", "fsync_retry", "in_place"] {
            let script = targets(&format!("python/{name}.py"));
            let few = ["--env", "VERSIONS=2", "--keep-env", "VERSIONS"];
            let options = [&["--scenario", "errno"], &few[..], &["--", &python, &script]].concat();
            replays(results.path(), &options);
        }
    }
}

#[test]
fn a_replayed_fsync_retry_reads_as_it_happened() {
    let results = tempfile::tempdir().unwrap();
    let options = ["--scenario", "errno", "--strategy", "fsync-retry"];
    let (_, report) = report(results.path(), &options);
    let id = rows(&report)[0]["kept"][0]["id"].as_str().unwrap().to_owned();
    let output = run_in(results.path(), &["replay", &id]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let place = lines.iter().position(|line| line.starts_with("did:")).unwrap();
    assert!(lines[place].contains("fsync(.state.json.") && lines[place].ends_with("(injected)"));
    assert!(lines[place + 1].contains("fsync(.state.json.") && lines[place + 1].ends_with("= 0"));
    assert!(text.contains("marks its pages clean, and nothing has written them again"), "{text}");
    let kept = text.lines().find_map(|line| line.strip_prefix("kept in: ")).unwrap();
    fs::remove_dir_all(kept).unwrap();
}

#[test]
fn a_sweep_that_is_cut_short_says_so() {
    let results = tempfile::tempdir().unwrap();
    let options = ["run", "--scenario", "errno", "--strategy", "unsafe", "--trials", "40"];
    let output = run_in(results.path(), &options);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("cut short, "), "{text}");
    assert!(text.contains("40 trials"), "{text}");
}

#[test]
fn a_server_goes_on_after_a_failure_and_is_judged() {
    let (true, Some(python)) = (common::can_follow(), python()) else { return };
    let results = tempfile::tempdir().unwrap();
    let script = "
import json, os, time
version = 0
while True:
    version += 1
    try:
        with open('state.json.tmp', 'w') as file:
            json.dump({'version': version}, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename('state.json.tmp', 'state.json')
        print('saved', version, flush=True)
    except OSError:
        time.sleep(0.001)
";
    let options = ["--scenario", "errno", "--trials", "60", "--ack", "^saved", "--acks", "3", "--"];
    let (status, report) =
        report(results.path(), &[&options[..], &[&python, "-c", script]].concat());
    assert_eq!(status, 0, "{report:#}");
    let tally = &rows(&report)[0]["tally"];
    assert!(tally["struck"].as_u64() > Some(30) && tally["inconclusive"]["timed-out"].is_null());
}

#[test]
fn kills_in_mid_sweep_leave_no_mount_no_loop_device_and_no_process() {
    let mut runs: Vec<Vec<&str>> = Vec::new();
    if common::can_fill(FileSystem::Tmpfs) {
        runs.push(vec!["run", "--scenario", "enospc", "--then", "kill", "--strategy", "all"]);
    }
    for kind in ["ext4", "xfs", "btrfs"] {
        let known = FileSystem::ALL.into_iter().find(|known| known.name() == kind).unwrap();
        if common::can_fill(known) {
            runs.push(vec![
                "run",
                "--scenario",
                "enospc",
                "--fs",
                kind,
                "--then",
                "kill",
                "--strategy",
                "all",
            ]);
        }
    }
    for round in (0..50).step_by(common::usually(3, 1)) {
        let Some(run) = runs.get(round % runs.len().max(1)) else { return };
        common::kill_and_look(
            run,
            Duration::from_millis(20 + 8 * round as u64),
            common::Victims::Coordinator,
        );
    }
}

fn refused(options: &[&str]) -> (i32, String) {
    let results = tempfile::tempdir().unwrap();
    let output = run_in(results.path(), &[&["run", "--scenario", "enospc"], options].concat());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), text)
}

#[test]
fn sizes_and_options_that_make_no_sense_are_refused_with_what_to_do() {
    for (options, status, words) in [
        (vec!["--fs-size", "3x"], 2, "is no size"),
        (vec!["--axis", "quota"], 2, "tmpfs does not run out of"),
        (vec!["--depth", "2"], 2, "--depth has no meaning in the scenario `enospc`"),
        (vec!["--fs-size", "5000"], 2, "give at least --fs-size"),
    ] {
        if words.contains("at least") && !common::can_fill(FileSystem::Tmpfs) {
            continue;
        }
        let found = refused(&options);
        assert_eq!(found.0, status, "{options:?}: {}", found.1);
        assert!(found.1.contains(words) && found.1.contains("help:"), "{}", found.1);
    }
    if common::can_fill(FileSystem::Tmpfs) {
        let found = refused(&["--fs-size", "1000001", "--strategy", "atomic"]);
        assert_eq!(found.0, 0, "{}", found.1);
        assert!(found.1.contains("1000001 bytes are rounded up to 245 blocks"), "{}", found.1);
    }
    if common::can_fill(FileSystem::Ext4) {
        let found = refused(&["--fs", "ext4", "--fs-size", "100K"]);
        assert_eq!(found.0, 2, "{}", found.1);
        assert!(found.1.contains("mkfs.ext4 can't make a file system of 102400 bytes"));
        assert!(found.1.contains("--fs-size"));
    }
}

/// Runs the command with less than it needs: `before` is done as root in mounts of its own.
fn deprived(before: &str, options: &str) -> (i32, String) {
    let results = tempfile::tempdir().unwrap();
    let command = env!("CARGO_BIN_EXE_crashtest");
    let script = format!("{before} {command} run -q --scenario enospc {options}");
    let output = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .env("CRASHTEST_RESULTS", results.path())
        .output()
        .unwrap();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn what_the_machine_lacks_is_named_with_its_remedy() {
    if !nix::unistd::geteuid().is_root() || !common::can_fill(FileSystem::Ext4) {
        return;
    }
    let ext4 = "--fs ext4 --strategy atomic";
    let found = deprived("mount -t tmpfs none /usr/sbin && exec", ext4);
    assert_eq!(found.0, 5, "{}", found.1);
    assert!(found.1.contains("no mkfs.ext4") && found.1.contains("install the package e2fsprogs"));
    let found = deprived("mount --bind /dev/null /dev/loop-control && exec", ext4);
    assert_eq!(found.0, 5, "{}", found.1);
    assert!(found.1.contains("cannot get a loop device") && found.1.contains("--fs tmpfs"));
    // Root without the right to mount, as in many a container: user namespaces do for tmpfs.
    let weak = "exec setpriv --bounding-set=-sys_admin";
    let found = deprived(weak, "--strategy atomic");
    assert_eq!(found.0, 0, "{}", found.1);
    let found = deprived(weak, ext4);
    assert_eq!(found.0, 5, "{}", found.1);
    assert!(found.1.contains("cannot mount ext4") && found.1.contains("help:"), "{}", found.1);
    // Neither the right to mount nor user namespaces: an inner user namespace that allows none.
    let none = "exec unshare --user --map-root-user sh -c 'echo 0 > \
                /proc/sys/user/max_mnt_namespaces; exec \"$@\"' sh";
    let found = deprived(none, "--strategy atomic");
    assert_eq!(found.0, 5, "{}", found.1);
    assert!(found.1.contains("cannot have mounts of its own"), "{}", found.1);
    assert!(found.1.contains("crashtest doctor"), "{}", found.1);
}
