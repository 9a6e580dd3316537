//! Loss of power, as a user derives it: which strategies and programs lose what, on which file
//! system, and why.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{compiled, python, report, run_in};
use serde_json::Value;

/// All profiles, and those of them that wait for the data before a rename.
const PROFILES: [&str; 7] =
    ["posix", "ext4", "ext4-dioread_lock", "ext4-writeback", "xfs", "btrfs", "btrfs-flushoncommit"];
const WAITING: [&str; 2] = ["ext4-dioread_lock", "btrfs-flushoncommit"];

/// What is broken on each profile.
fn broken(row: &Value) -> BTreeMap<String, Vec<String>> {
    let cells = row["cells"].as_array().unwrap();
    let cell = |cell: &Value| {
        let broken = cell["tally"]["broken"].as_object().unwrap();
        (cell["profile"].as_str().unwrap().to_owned(), broken.keys().cloned().collect())
    };
    cells.iter().map(cell).collect()
}

fn breaks(row: &Value, promise: &str) -> Vec<String> {
    let broken = broken(row).into_iter();
    let names = broken.filter(|(_, broken)| broken.iter().any(|name| name == promise));
    let names: Vec<String> = names.map(|(profile, _)| profile).collect();
    // In the order of the table.
    PROFILES.iter().filter(|p| names.iter().any(|n| n == *p)).map(|p| (*p).to_owned()).collect()
}

fn finding<'a>(row: &'a Value, profile: &str, kind: &str) -> &'a Value {
    let cells = row["cells"].as_array().unwrap();
    let cell = cells.iter().find(|cell| cell["profile"] == profile).unwrap();
    let findings = cell["findings"].as_array().unwrap();
    let has = |finding: &&Value| finding["kinds"].as_object().unwrap().contains_key(kind);
    findings.iter().find(has).unwrap_or_else(|| panic!("no {kind} on {profile}: {row:#}"))
}

fn words(finding: &Value) -> &str {
    finding["explanation"]["words"].as_str().unwrap()
}

/// All states are counted along the run, and what is explained is broken where its example is.
fn every_state_has_its_place(row: &Value) {
    let (mut states, mut struck) = (0, 0);
    for column in row["heat"]["columns"].as_array().unwrap() {
        struck += column["passed"].as_u64().unwrap() + common::sum(&column["broken"]);
    }
    for cell in row["cells"].as_array().unwrap() {
        states += cell["states"].as_u64().unwrap();
        let passed = common::sum(&cell["spread"]["passed"]);
        assert_eq!(Some(passed), cell["tally"]["passed"].as_u64(), "{cell:#}");
        assert_eq!(Some(common::placed(cell)), cell["states"].as_u64(), "{cell:#}");
        for finding in cell["findings"].as_array().unwrap() {
            let of_kind = &cell["spread"]["broken"][finding["kind"].as_str().unwrap()];
            let after_ops = finding["explanation"]["after_ops"].to_string();
            assert!(of_kind.get(&after_ops).is_some(), "{after_ops}: {of_kind} {finding:#}");
        }
    }
    assert_eq!(struck, states, "the strip: {row:#}");
}

#[test]
fn every_strategy_breaks_what_it_must_on_every_profile_and_nothing_else() {
    let results = tempfile::tempdir().unwrap();
    let (status, report) = report(results.path(), &["--scenario", "poweroff", "--strategy", "all"]);
    assert_eq!(status, 0, "{report:#}");
    for row in report["subjects"].as_array().unwrap() {
        every_state_has_its_place(row);
    }
    let row = |name: &str| {
        let rows = report["subjects"].as_array().unwrap();
        rows.iter().find(|row| row["name"] == name).unwrap()
    };
    let all_but = |without: &[&str]| -> Vec<String> {
        PROFILES.iter().filter(|p| !without.contains(p)).map(|p| (*p).to_owned()).collect()
    };
    assert_eq!(breaks(row("unsafe"), "atomic"), PROFILES);
    for name in ["replace", "mkstemp"] {
        assert_eq!(breaks(row(name), "atomic"), all_but(&WAITING), "{name}");
        // Empty where the size follows the data, NUL bytes where it does not.
        for profile in ["xfs", "btrfs"] {
            finding(row(name), profile, "empty");
        }
        finding(row(name), "ext4", "zeroed");
        for kind in ["empty", "zeroed", "torn", "alien"] {
            finding(row(name), "posix", kind);
        }
    }
    assert_eq!(breaks(row("atomic"), "atomic"), [""; 0]);
    assert_eq!(breaks(row("atomic"), "durable"), PROFILES);
    for name in ["durable", "swallow-errors", "fsync-retry", "fsync-afresh", "log", "managed"] {
        assert!(broken(row(name)).values().all(Vec::is_empty), "{name}");
    }
    for cell in row("durable")["cells"].as_array().unwrap() {
        assert_eq!(cell["exhaustive"], true, "{cell:#}");
        assert!(cell["states"].as_u64() > Some(1), "{cell:#}");
    }
}

#[test]
fn a_cause_is_told_in_words_with_its_remedy_and_can_be_replayed() {
    let results = tempfile::tempdir().unwrap();
    let strategies = "unsafe,replace,atomic,ack-early,unlink-first";
    let (_, report) = report(results.path(), &["--scenario", "poweroff", "--strategy", strategies]);
    let rows = report["subjects"].as_array().unwrap();
    let expected = [
        (0, "ext4", "zeroed", "state.json is written in place", "replace-by-rename"),
        (
            1,
            "ext4",
            "zeroed",
            "the rename of state.json.tmp over state.json (op 3) is durable, the 4000 bytes written \
             at op 1 are not: nothing calls fsync on that file before op 3",
            "sync-file",
        ),
        (
            2,
            "xfs",
            "lost-ack",
            "ack 1 is given, and the rename of state.json.tmp over state.json (op 4) is not durable: \
             nothing calls fsync on its directory after it",
            "sync-directory",
        ),
        (3, "btrfs", "lost-ack", "ack 1 is given before the rename of", "ack-later"),
        (4, "posix", "missing", "the removal of state.json (op 4) is durable", "keep-old-name"),
    ];
    for (row, profile, kind, says, remedy) in expected {
        let finding = finding(&rows[row], profile, kind);
        assert!(words(finding).starts_with(says), "{}", words(finding));
        assert_eq!(finding["explanation"]["remedy"], remedy, "{finding:#}");
        let id = finding["id"].as_str().unwrap();
        let output = run_in(results.path(), &["replay", id, "--json"]);
        let replayed: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(replayed["again"], true, "{replayed:#}");
        assert_eq!(output.status.code(), Some(0));
        fs::remove_dir_all(replayed["directory"].as_str().unwrap()).unwrap();
    }
}

#[test]
fn a_first_save_is_another_case_than_a_replacement() {
    let results = tempfile::tempdir().unwrap();
    let strategies = ["--strategy", "replace,durable,log"];
    let options = [&["--scenario", "poweroff", "--first-save"][..], &strategies].concat();
    let (status, report) = report(results.path(), &options);
    assert_eq!(status, 0, "{report:#}");
    let rows = report["subjects"].as_array().unwrap();
    // Without an old file, ext4 does not even begin to write the new one's data.
    assert!(breaks(&rows[0], "atomic").contains(&"ext4-dioread_lock".to_owned()));
    finding(&rows[0], "ext4", "empty");
    assert!(broken(&rows[1]).values().all(Vec::is_empty), "{:#}", rows[1]);
    assert!(broken(&rows[2]).values().all(Vec::is_empty), "{:#}", rows[2]);
}

/// A directory with a state to begin with.
fn with_state(name: &str, bytes: &[u8]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(name), bytes).unwrap();
    directory
}

fn program(results: &Path, options: &[&str], argv: &[&str]) -> (i32, Value) {
    report(results, &[&["--scenario", "poweroff"], options, &["--"], argv].concat())
}

#[test]
fn six_saves_in_c_get_the_right_answer_on_every_profile() {
    if !common::can_follow() {
        return;
    }
    let Some(saves) = compiled("six_saves.c") else { return };
    let memo = "a".repeat(8192 - 23);
    let begin =
        with_state("state.json", format!("{{\"version\":0,\"memo\":\"{memo}\"}}").as_bytes());
    let (begin, all) = (begin.path().to_str().unwrap(), PROFILES.map(str::to_owned));
    let waiting: Vec<String> =
        all.iter().filter(|p| !WAITING.contains(&p.as_str())).cloned().collect();
    // Where each is not atomic, and where it is not durable.
    let truth: [(&str, &[String], &[String]); 6] = [
        ("1", &all, &all),
        ("2", &all, &[]),
        ("3", &all, &all),
        ("4", &waiting, &all),
        ("5", &[], &all),
        ("6", &[], &[]),
    ];
    for (way, not_atomic, not_durable) in truth {
        let results = tempfile::tempdir().unwrap();
        let options = ["--ack", "saved", "--init", begin, "--states-max", "20000"];
        let (_, report) = program(results.path(), &options, &[&saves, way]);
        let row = &report["subjects"][0];
        assert_eq!(breaks(row, "atomic"), not_atomic, "way {way}");
        assert_eq!(breaks(row, "durable"), not_durable, "way {way}");
    }
}

#[test]
fn what_is_stored_through_a_mapping_is_seen_and_must_be_synced() {
    if !common::can_follow() {
        return;
    }
    let Some(mapped) = compiled("mapped_log.c") else { return };
    let begin = with_state("state.map", &[b'.'; 8 * 4096]);
    let begin = begin.path().to_str().unwrap();
    for (how, sound) in [("sync", true), ("no-sync", false)] {
        let results = tempfile::tempdir().unwrap();
        // A page is a block there; on posix it can be torn.
        let options = ["--ack", "saved", "--init", begin, "--profile", "ext4,xfs,btrfs"];
        let (status, report) = program(results.path(), &options, &[&mapped, how]);
        assert_eq!(status, i32::from(!sound), "{how}: {report:#}");
    }
}

/// Helpers of the Python subjects below: `put` writes a file, `sync` syncs a file or directory.
const PYTHON: &str = "\
import os, sys
def put(path, data, sync=True, flags=os.O_TRUNC):
    f = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644)
    os.write(f, data)
    if sync: os.fsync(f)
    os.close(f)
def sync(path):
    d = os.open(path, os.O_RDONLY); os.fsync(d); os.close(d)
def ack(n): print('saved', n, flush=True)
def body(n): return b'%04d' % n * 1500
";

/// The profiles on which a Python program breaks anything.
fn python_breaks(script: &str) -> Option<Vec<String>> {
    let (python, true) = (python()?, common::can_follow()) else { return None };
    let begin = with_state("state", &[b'0'; 6000]);
    let results = tempfile::tempdir().unwrap();
    let begin = begin.path().to_str().unwrap();
    let options =
        ["--ack", "saved", "--init", begin, "--state", "**/state", "--states-max", "5000"];
    let script = format!("{PYTHON}{script}");
    let (_, report) = program(results.path(), &options, &[&python, "-c", &script]);
    let row = &report["subjects"][0];
    assert!(row["cells"].as_array().is_some_and(|cells| cells.len() == 7), "{report:#}");
    let mut all = breaks(row, "atomic");
    all.extend(breaks(row, "durable"));
    Some(PROFILES.iter().filter(|p| all.iter().any(|n| n == *p)).map(|p| (*p).to_owned()).collect())
}

#[track_caller]
fn assert_breaks(expected: &[&str], script: &str) {
    if let Some(broken) = python_breaks(script) {
        assert_eq!(broken, expected, "{script}");
    }
}

#[test]
fn sound_saves_of_every_kind_pass() {
    let sound = [
        "put('t', body(1)); os.rename('t', 'state'); sync('.'); ack(1)\n",
        "f = os.open('.', os.O_TMPFILE | os.O_WRONLY, 0o644); os.write(f, body(1)); os.fsync(f)\n\
         os.link('/proc/self/fd/%d' % f, 't', src_dir_fd=f); os.rename('t', 'state'); sync('.'); ack(1)\n",
        "f = os.open('t', os.O_WRONLY | os.O_CREAT | os.O_DSYNC, 0o644); os.write(f, body(1)); os.close(f)\n\
         os.rename('t', 'state'); sync('.'); ack(1)\n",
        "put('t', body(1), sync=False); f = os.open('t', os.O_RDONLY); os.fdatasync(f); os.rename('t', 'state')\n\
         os.sync(); ack(1)\n",
        "os.mkdir('d'); put('d/t', body(1)); os.rename('d/t', 'd/state'); sync('d'); sync('.'); ack(1)\n",
        "os.link('state', 'old'); put('t', body(1)); os.rename('t', 'state'); sync('.'); ack(1)\n",
        "for n in range(1, 4):\n    put('t%d' % n, body(n)); os.rename('t%d' % n, 'state'); sync('.'); ack(n)\n",
    ];
    for script in sound {
        assert_breaks(&[], script);
    }
}

#[test]
fn unsound_saves_are_caught_where_they_break() {
    let (all, posix): (&[&str], &[&str]) = (&PROFILES, &["posix"]);
    let unsound: [(&[&str], &str); 8] = [
        (all, "put('t', body(1)); os.rename('t', 'state'); ack(1)\n"),
        // The new file is written on after it has got its name.
        (
            all,
            "f = open('t', 'wb'); f.write(body(1)[:100]); os.fsync(f.fileno()); os.rename('t', 'state')\n\
               f.write(body(1)[100:]); f.flush(); os.fsync(f.fileno()); f.close(); sync('.'); ack(1)\n",
        ),
        (all, "os.unlink('state'); put('state', body(1)); sync('.'); ack(1)\n"),
        (all, "put('state', body(1)); ack(1)\n"),
        // A directory's own name is in its parent.
        (
            posix,
            "os.mkdir('d'); put('d/t', body(1)); os.rename('d/t', 'd/state'); sync('d'); ack(1)\n",
        ),
        // The directory that gets the name must be synced, not the one that loses it.
        (
            posix,
            "os.mkdir('t'); sync('.'); put('t/n', body(1)); os.rename('t/n', 'state'); sync('t'); ack(1)\n",
        ),
        (posix, "put('t', body(1)); os.rename('t', 'state'); sync('state'); ack(1)\n"),
        (all, "put('t', body(1)); os.rename('t', 'state'); ack(1); sync('.')\n"),
    ];
    for (expected, script) in unsound {
        assert_breaks(expected, script);
    }
}

#[test]
fn a_database_is_told_by_its_own_check_and_only_its_unsafe_setting_fails() {
    let Some(python) = python() else { return };
    if !common::can_follow() {
        return;
    }
    let (begin, check) = (common::with_table(&python), common::check_rows(&python));
    for (setting, sound) in [("off", false), ("full", true)] {
        let results = tempfile::tempdir().unwrap();
        let script = common::add_rows(setting);
        let options =
            ["--init", begin.path().to_str().unwrap(), "--state", "db", "--check", &check];
        let options = [&options[..], &["--promise", "checked", "--profile", "ext4"]].concat();
        let options = [&options[..], &["--states-max", "150"]].concat();
        let (status, report) = program(results.path(), &options, &[&python, "-c", &script]);
        assert_eq!(status, i32::from(!sound), "{setting}: {report:#}");
    }
}

#[test]
fn a_second_loss_of_power_finds_a_recovery_that_writes_in_place() {
    let Some(python) = python() else { return };
    if !common::can_follow() {
        return;
    }
    let save = format!("{PYTHON}put('t', body(1)); os.rename('t', 'state'); sync('.'); ack(1)\n");
    let begin = with_state("state", &[b'0'; 6000]);
    let begin = begin.path().to_str().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let recovers = [
        ("good", "put('n', body(7)); os.rename('n', 'state'); sync('.')\n", true),
        ("bad", "put('state', body(7))\n", false),
    ];
    for (name, recover, sound) in recovers {
        let file = directory.path().join(format!("{name}.py"));
        fs::write(&file, format!("{PYTHON}{recover}")).unwrap();
        let recover = format!("{python} {}", file.display());
        let results = tempfile::tempdir().unwrap();
        let options = ["--ack", "saved", "--init", begin, "--state", "state", "--depth", "2"];
        let options = [&options[..], &["--profile", "ext4", "--recover", &recover]].concat();
        let (status, report) = program(results.path(), &options, &[&python, "-c", &save]);
        assert_eq!(status, i32::from(!sound), "{name}: {report:#}");
        if !sound {
            let text = report.to_string();
            assert!(text.contains("after a second loss of power"), "{report:#}");
        }
    }
}

#[test]
fn a_budget_holds_and_is_told() {
    let results = tempfile::tempdir().unwrap();
    let options = ["--scenario", "poweroff", "--strategy", "unsafe", "--profile", "posix"];
    let options = [&options[..], &["--state-bytes", "100000", "--states-max", "3000"]].concat();
    let (status, report) = report(results.path(), &options);
    assert_eq!(status, 0, "{report:#}");
    let cell = &report["subjects"][0]["cells"][0];
    assert_eq!(cell["exhaustive"], false);
    assert!((100..=3000).contains(&cell["states"].as_u64().unwrap()), "{cell:#}");
}

/// What is broken anywhere when a sound save is looked at with these options.
fn sound_save_broken_by(options: &[&str]) -> Option<Vec<String>> {
    let (python, true) = (python()?, common::can_follow()) else { return None };
    let begin = with_state("state", &[b'0'; 6000]);
    let begin = begin.path().to_str().unwrap();
    let save =
        "for n in (1, 2):\n    put('t', body(n)); os.rename('t', 'state'); sync('.'); ack(n)\n";
    let script = format!("{PYTHON}{save}");
    let results = tempfile::tempdir().unwrap();
    let base = ["--ack", "saved", "--init", begin, "--state", "state", "--profile", "ext4,btrfs"];
    let (_, report) =
        program(results.path(), &[&base[..], options].concat(), &[&python, "-c", &script]);
    let row = &report["subjects"][0];
    Some(broken(row).into_values().flatten().collect())
}

#[test]
fn a_check_that_objects_to_a_whole_state_loses_no_ack_and_sees_temporary_files() {
    let Some(broken) = sound_save_broken_by(&["--check", "! grep -q 0001 state"]) else { return };
    assert_eq!(broken, ["checked", "checked"]);
    let broken = sound_save_broken_by(&["--check", "test ! -e t"]).unwrap();
    assert_eq!(broken, ["checked", "checked"]);
    assert_eq!(sound_save_broken_by(&["--check", "test -s state"]).unwrap(), [""; 0]);
}

#[test]
fn a_recovery_that_throws_the_state_away_is_a_reset() {
    let Some(broken) = sound_save_broken_by(&["--recover", "rm -f state"]) else { return };
    assert_eq!(broken, ["recoverable", "recoverable"]);
    assert_eq!(sound_save_broken_by(&["--recover", "test -s state"]).unwrap(), [""; 0]);
}

#[test]
fn a_profile_of_ones_own_has_a_column_of_its_own() {
    let results = tempfile::tempdir().unwrap();
    let ext4 =
        fs::read_to_string(common::repository().join("scenarios/profiles/ext4.toml")).unwrap();
    let mine = ext4.replacen("name = \"ext4\"", "name = \"slow-disk\"", 1);
    assert_ne!(mine, ext4);
    fs::write(results.path().join("mine.toml"), mine).unwrap();
    for (order, wanted) in [
        ("ext4,./mine.toml,xfs", ["ext4", "slow-disk", "xfs"]),
        ("./mine.toml,xfs,ext4", ["slow-disk", "xfs", "ext4"]),
    ] {
        let arguments =
            ["--scenario", "poweroff", "--strategy", "replace", "--seed", "1", "--profile", order];
        let (_, report) = common::report(results.path(), &arguments);
        let cells = report["subjects"][0]["cells"].as_array().unwrap();
        let names: Vec<_> = cells.iter().map(|cell| cell["profile"].as_str().unwrap()).collect();
        assert_eq!(names, wanted);
    }
}
