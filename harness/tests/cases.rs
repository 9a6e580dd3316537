//! Small programs whose verdict was once wrong, each with the right one.

mod common;

use common::{can_follow, python, report, targets, violations};
use serde_json::Value;

/// Runs a case in an empty directory; returns the exit status and the row of the report.
fn case(options: &[&str], program: &str, arguments: &[&str]) -> Option<(i32, Value)> {
    if !can_follow() {
        return None;
    }
    let (python, program) = (python()?, targets(&format!("python/cases/{program}.py")));
    let results = tempfile::tempdir().unwrap();
    let all = [&["--seed", "1"], options, &["--", &python, &program], arguments].concat();
    let (status, report) = report(results.path(), &all);
    Some((status, report["subjects"][0].clone()))
}

fn failed(tally: &Value) -> u64 {
    let kinds = tally["violated"].as_object().unwrap().values();
    kinds.map(|count| count["natural"].as_u64().unwrap() + count["forced"].as_u64().unwrap()).sum()
}

fn cell<'a>(row: &'a Value, profile: &str) -> &'a Value {
    let cells = row["cells"].as_array().unwrap();
    cells.iter().find(|cell| cell["profile"] == profile).unwrap()
}

#[test]
fn many_files_are_found_however_many_there_are() {
    let check = "[ ! -e f4 ] || [ -e f3 ]";
    for count in ["6", "12"] {
        let options = ["--scenario", "poweroff", "--profile", "posix", "--promise", "checked"];
        let options = [&options[..], &["--states-max", "4000", "--check", check]].concat();
        let Some((status, row)) = case(&options, "many_files", &[count]) else { return };
        let cell = cell(&row, "posix");
        assert!(failed(&cell["tally"]) > 0 && status == 1, "{count}: {cell:#}");
        // States of every op are in the sample.
        let places = cell["spread"]["passed"].as_object().unwrap().len();
        assert!(places > 20, "{count}: {places}");
    }
}

#[test]
fn a_directory_that_is_never_synced_is_found_beside_any_number_of_files() {
    for count in common::usually(&["20"][..], &["16", "20"]) {
        let options = ["--scenario", "poweroff", "--profile", "posix", "--ack", "^SAVED"];
        let Some((status, row)) = case(&options, "many_d2", &["{dir}", *count]) else { return };
        let cell = cell(&row, "posix");
        assert!(common::sum(&cell["tally"]["violated"]["lost-ack"]) > 15, "{count}: {cell:#}");
        assert_eq!(status, 1);
    }
}

#[test]
fn what_was_not_asked_about_is_no_pass() {
    let options = ["--scenario", "poweroff", "--profile", "ext4", "--state", "s?"];
    let options = [&options[..], &["--promise", "checked", "--ack", "^saved"]].concat();
    let check = ["--check", "[ ! -e s3 ] || [ -e s4 ]", "--asked-max", "300"];
    let broken = [&options[..], &check].concat();
    for megabytes in common::usually(&["0"][..], &["0", "8"]) {
        let Some((_, row)) = case(&broken, "beside_a_big_file", &[*megabytes]) else { return };
        assert!(failed(&cell(&row, "ext4")["tally"]) > 0, "{row:#}");
    }
    let few = [&options[..], &["--asked-max", "5", "--check", "true"]].concat();
    let Some((status, row)) = case(&few, "beside_a_big_file", &["0"]) else { return };
    let cell = cell(&row, "ext4");
    assert_eq!((status, failed(&cell["tally"])), (4, 0), "{cell:#}");
    assert!(cell["tally"]["inconclusive"]["not-asked"].as_u64() > Some(0), "{cell:#}");
    assert_eq!(cell["exhaustive"], false);
}

#[test]
fn bytes_of_each_run_alone_are_judged_by_the_check() {
    let options = ["--trials", "100", "--promise", "checked", "--check", "true"];
    let Some((status, row)) = case(&options, "rnd", &["{dir}"]) else { return };
    assert_eq!((status, row["tally"]["passed"].as_u64()), (0, Some(100)), "{row:#}");
    let options = ["--trials", "100", "--ack", "^SAVED", "--check", "true"];
    let (status, row) = case(&options, "text_time", &["{dir}"]).unwrap();
    assert_eq!((status, row["tally"]["passed"].as_u64()), (0, Some(100)), "{row:#}");
}

#[test]
fn every_state_of_a_program_with_bytes_of_its_own_in_each_run_is_judged() {
    let options = ["--exhaustive", "--ack", "^SAVED"];
    let Some((_, row)) = case(&options, "rnd_inplace", &["{dir}"]) else { return };
    assert!(violations(&row, "empty") > 0, "{row:#}");
    let options = ["--exhaustive", "--recover", "true", "--promise", "recoverable"];
    let (status, row) = case(&options, "mapped_lock", &["{dir}"]).unwrap();
    assert_eq!((status, failed(&row["tally"])), (0, 0), "{row:#}");
}

#[test]
fn a_file_that_is_made_empty_before_anything_was_saved_is_no_version() {
    for program in ["touch_first", "no_touch"] {
        for some in [
            &["--trials", "60"][..],
            &["--scenario", "errno", "--trials", "80"],
            &["--scenario", "poweroff"],
        ] {
            let options = [some, &["--ack", "^saved"]].concat();
            let Some((_, row)) = case(&options, program, &[]) else { return };
            assert_eq!(failed(&row["tally"]), 0, "{program} {some:?}: {row:#}");
        }
    }
}

#[test]
fn what_a_file_holds_makes_no_difference_to_an_empty_one() {
    let empty = |program| {
        let options = ["--scenario", "poweroff", "--profile", "xfs", "--ack", "^SAVED"];
        case(&options, program, &["{dir}"]).map(|(_, row)| violations(cell(&row, "xfs"), "empty"))
    };
    let Some(binary) = empty("det_inplace") else { return };
    assert_eq!((Some(binary), binary), (empty("det_json"), 16));
}

#[test]
fn a_rename_between_two_names_of_one_file_does_nothing() {
    let options = ["--state", "state.*", "--trials", "50", "--ack", "^saved"];
    let Some((_, row)) = case(&options, "two_names", &[]) else { return };
    assert_eq!(row["tally"]["struck"].as_u64(), Some(50), "{row:#}");
}

#[test]
fn a_write_that_says_itself_that_it_appends_goes_to_the_end() {
    let Some(program) = common::compiled("odd/append_flag.c").filter(|_| can_follow()) else {
        return;
    };
    let results = tempfile::tempdir().unwrap();
    let options = ["--seed", "1", "--trials", "50", "--ack", "^saved", "--", &program];
    let (_, report) = report(results.path(), &options);
    assert_eq!(report["subjects"][0]["tally"]["struck"].as_u64(), Some(50), "{report:#}");
}

/// A load that prints what a program of `cases` would start with.
fn load_of(program: &str) -> Option<String> {
    let program = targets(&format!("python/cases/{program}.py"));
    Some(format!("{} {program} load", python()?))
}

/// A load that prints the rows of a table.
fn rows_of(database: &str, query: &str) -> Option<String> {
    let script = format!(
        "import sqlite3; print(sqlite3.connect('{database}').execute('{query}').fetchall())"
    );
    Some(format!("{} -c \"{script}\"", python()?))
}

#[test]
fn a_fallback_to_a_copy_is_right_if_that_is_new_enough() {
    let Some(load) = load_of("fallback") else { return };
    for (scenario, some) in [("sigkill", ["--trials", "60"]), ("poweroff", ["--profile", "ext4"])] {
        let promises = ["--promise", "atomic,durable,recoverable", "--ack", "^saved"];
        let options = ["--scenario", scenario, "--load", &load];
        let options = [&options[..], &promises, &some].concat();
        let Some((status, row)) = case(&options, "fallback", &[]) else { return };
        assert_eq!(status, 0, "{scenario}: {row:#}");
        assert!(row["notes"].to_string().contains("judged by what --load prints"), "{row:#}");
    }
    // Without the load it is judged by the state file, which is away for a moment.
    let options = ["--trials", "60", "--ack", "^saved", "--promise", "durable"];
    assert_eq!(case(&options, "fallback", &[]).unwrap().0, 1);
}

#[test]
fn a_database_is_judged_by_its_rows() {
    let Some(load) = rows_of("a.db", "select i from t") else { return };
    let options = ["--scenario", "poweroff", "--profile", "ext4,posix", "--ack", "^saved"];
    let promises = ["--promise", "durable", "--load", &load, "--asked-max", "200"];
    let options = [&options[..], &promises].concat();
    // Nothing is synced between a commit and its ack.
    let Some((status, row)) = case(&options, "sqlite_wal_normal", &[]) else { return };
    assert_eq!(status, 1, "{row:#}");
    for profile in ["ext4", "posix"] {
        assert!(violations(cell(&row, profile), "lost-ack") > 0, "{row:#}");
    }
}

#[test]
fn a_load_that_rolls_a_journal_forward_resets_nothing() {
    let Some(load) = rows_of("state.db", "select * from kv") else { return };
    let few = ["--profile", "ext4", "--asked-max", "150"];
    for (scenario, some) in [("sigkill", &["--trials", "40"][..]), ("poweroff", &few)] {
        let options = ["--scenario", scenario, "--ack", "^SAVED", "--load", &load];
        let options = [&options[..], some].concat();
        let Some((_, row)) = case(&options, "sq_wal", &["{dir}"]) else { return };
        assert_eq!(failed(&row["tally"]), 0, "{scenario}: {row:#}");
        assert!(row["tally"]["passed"].as_u64() > Some(30), "{scenario}: {row:#}");
    }
}

#[test]
fn of_a_load_that_prints_nothing_only_the_status_counts() {
    let options = ["--trials", "40", "--load", "true", "--promise", "recoverable"];
    let Some((status, row)) = case(&options, "no_touch", &[]) else { return };
    assert_eq!(status, 0, "{row:#}");
    assert!(row["notes"].to_string().contains("only its status counts"), "{row:#}");
}

#[test]
fn acks_reach_the_check_of_a_loss_of_power() {
    let Some(python) = python() else { return };
    let init = common::with_table(&python);
    let init = init.path().display().to_string();
    // The last commit can be rolled back: the deletion of its journal is not synced.
    let script = "import sqlite3\nd = sqlite3.connect('db')\nd.execute('pragma synchronous=full')\n\
         for n in range(3):\n    d.execute('insert into t values (?)', (n,)); d.commit(); print('saved', n, flush=True)\n";
    let check = format!(
        "{python} -c \"import os, sqlite3; d = sqlite3.connect('db'); \
         acked = open(os.environ['CRASHTEST_ACKED']).read().split('\\n')[:-1]; \
         assert len(acked) == int(os.environ['CRASHTEST_ACKS']); \
         assert d.execute('select count(*) from t').fetchone()[0] >= len(acked)\""
    );
    for (scenario, some) in [("sigkill", ["--trials", "40"]), ("poweroff", ["--asked-max", "200"])]
    {
        let results = tempfile::tempdir().unwrap();
        let options = ["--seed", "1", "--scenario", scenario, "--init", &init, "--ack", "^saved"];
        let promise = ["--promise", "checked", "--check", &check];
        let all = [&options[..], &promise, &some, &["--", &python, "-c", script]].concat();
        let (status, report) = report(results.path(), &all);
        let row = &report["subjects"][0];
        let lost = scenario == "poweroff";
        assert_eq!(status, i32::from(lost), "{scenario}: {row:#}");
        assert_eq!(violations(row, "check-failed") > 0, lost, "{scenario}: {row:#}");
    }
}

#[test]
fn a_load_that_hides_damage_is_not_believed() {
    let Some(python) = python() else { return };
    // It says only that there is a state: its bytes are judged.
    let load = format!("{python} -m json.tool state.json >/dev/null && echo ok");
    let options = ["--trials", "60", "--ack", "^SAVED", "--load", &load, "--promise", "atomic"];
    let Some((status, row)) = case(&options, "det_json", &["{dir}"]) else { return };
    assert_eq!(status, 1, "{row:#}");
    // Without acks nothing but the end is promised; a state that can't be loaded is broken all the same.
    let load = format!("{python} -m json.tool state.json");
    let options = ["--trials", "60", "--load", &load, "--promise", "atomic,recoverable"];
    let (status, row) = case(&options, "det_json", &["{dir}"]).unwrap();
    assert_eq!(status, 1, "{row:#}");
    assert!(violations(&row, "alien") > 0, "{row:#}");
}

#[test]
fn what_a_failed_fsync_left_in_memory_is_lost_whatever_is_loaded() {
    let Some(python) = python() else { return };
    let program = targets("python/fsync_retry.py");
    let load = format!("{python} -c \"print(open('state.json').read())\"");
    let results = tempfile::tempdir().unwrap();
    let options = ["--seed", "1", "--scenario", "errno", "--ack", "^saved", "--env", "VERSIONS=2"];
    let all = [&options[..], &["--load", &load, "--", &python, &program]].concat();
    if can_follow() {
        let (_, report) = report(results.path(), &all);
        assert!(violations(&report["subjects"][0], "lost-ack") > 0, "{report:#}");
    }
}

#[test]
fn an_ack_before_its_save_is_found_by_a_load_too() {
    let Some(python) = python() else { return };
    let load = format!("{python} -c \"print(open('state.json').read())\"");
    let options = ["--trials", "60", "--ack", "^saved", "--load", &load, "--promise", "durable"];
    let Some((status, row)) = case(&options, "ack_before_save", &[]) else { return };
    assert_eq!(status, 1, "{row:#}");
}

#[test]
fn two_processes_that_share_a_temp_file_mix_their_states() {
    for (program, trials) in [("fixed_temp1", "60"), ("fixed_temp", "300")] {
        let options = ["--scenario", "concurrent", "--trials", trials, "--ack", "^saved"];
        let Some((status, row)) = case(&options, program, &[]) else { return };
        assert!(status == 1 && failed(&row["tally"]) > 0, "{program}: {row:#}");
        let notes = row["notes"].to_string();
        // The second one says who has saved, and so do two of its processes.
        assert_eq!(notes.contains("save the same bytes"), program == "fixed_temp", "{notes}");
    }
}

#[test]
fn a_lock_with_the_number_of_a_process_is_found_the_same_each_time() {
    let Some(load) = load_of("pid_lock") else { return };
    let options = ["--scenario", "concurrent", "--trials", "90", "--load", &load];
    let options = [&options[..], &["--ack", "^saved"]].concat();
    let Some((_, first)) = case(&options, "pid_lock", &["pid"]) else { return };
    assert!(violations(&first, "cannot-save-again") > 0, "{first:#}");
    let (_, again) = case(&options, "pid_lock", &["pid"]).unwrap();
    assert_eq!(first["tally"], again["tally"]);
}

#[test]
fn a_short_write_before_a_full_disk_is_tried() {
    let options = ["--scenario", "errno", "--ack", "^SAVED"];
    let Some((status, row)) = case(&options, "short_then_full", &["{dir}"]) else { return };
    assert!(status == 1 && violations(&row, "torn") > 0, "{row:#}");
}

#[test]
fn what_was_acked_before_a_call_failed_is_no_silent_failure() {
    for (program, kinds) in [
        ("dirsync_before", &[][..]),
        ("dirsync_none", &[]),
        ("other_name", &[]),
        ("other_name_sqlite", &[]),
        ("swallowed_write", &["durable", "honest", "atomic"]),
    ] {
        let init = tempfile::tempdir().unwrap();
        if program == "other_name" {
            std::fs::write(init.path().join("state.json"), "{\"n\": 0}").unwrap();
        }
        let options = ["--scenario", "errno", "--promise", "durable,honest,atomic"];
        let begins = ["--ack", "^saved", "--init", init.path().to_str().unwrap()];
        let state: &[&str] =
            if program.starts_with("other") { &["--state", "state.json"] } else { &[] };
        let options = [&options[..], &begins, state].concat();
        let Some((_, row)) = case(&options, program, &[]) else { return };
        let broken = row["tally"]["broken"].as_object().unwrap();
        let all = kinds.iter().all(|kind| broken.contains_key(*kind));
        assert!(all && broken.len() == kinds.len(), "{program}: {row:#}");
    }
}

#[test]
fn what_another_takes_of_a_full_disk_is_missing_to_a_small_state_that_is_emptied_first() {
    let init = tempfile::tempdir().unwrap();
    let state = format!("{{\"n\": 9, \"pad\": \"{}\"}}", "x".repeat(100));
    std::fs::write(init.path().join("s.json"), state).unwrap();
    let begins = ["--init", init.path().to_str().unwrap(), "--ack", "^saved"];
    let options = [&["--scenario", "enospc"][..], &begins].concat();
    let Some((status, row)) = case(&options, "in_place_small", &[]) else { return };
    assert!(status == 1 && violations(&row, "empty") > 0, "{row:#}");
}

#[test]
fn a_file_that_is_cut_short_is_told_by_its_length() {
    let options = ["--scenario", "enospc", "--ack", "^SAVED"];
    let Some((status, row)) = case(&options, "rnd_inplace", &["{dir}"]) else { return };
    assert!(status == 1 && violations(&row, "torn") > 1, "{row:#}");
    let unjudged = row["tally"]["inconclusive"]["not-comparable"].as_u64();
    assert_eq!(unjudged.unwrap_or(0), 0, "{row:#}");
}

#[test]
fn two_files_of_one_save_are_told_of_where_nothing_ties_them() {
    let told = |more: &[&str]| {
        let options = [&["--trials", "40", "--ack", "^saved"], more].concat();
        let (_, row) = case(&options, "pair", &[])?;
        Some((
            row["notes"].to_string().contains("cert.pem and key.pem change"),
            failed(&row["tally"]),
        ))
    };
    let Some(alone) = told(&[]) else { return };
    assert_eq!(alone, (true, 0));
    let (noted, broken) = told(&["--check", "cmp cert.pem key.pem"]).unwrap();
    assert!(!noted && broken > 0, "{broken}");
}

#[test]
fn a_database_is_judged_by_its_rows_with_no_option() {
    for commits in ["1", "2", "3", "6"] {
        let options = ["--scenario", "poweroff", "--profile", "ext4", "--ack", "^saved"];
        let options = [&options[..], &["--promise", "durable", "--states-max", "300"]].concat();
        let Some((status, row)) = case(&options, "sqlite_wal_normal", &[commits]) else { return };
        let notes = row["notes"].to_string();
        assert!(notes.contains("judged by the rows of a.db"), "{commits}: {notes}");
        let cell = cell(&row, "ext4");
        assert!(status == 1 && violations(cell, "lost-ack") > 0, "{commits}: {cell:#}");
    }
}

/// The causes of what a loss of power breaks, in words, and what would have helped.
fn causes(options: &[&str], program: &str, arguments: &[&str]) -> Option<Vec<(String, String)>> {
    let options = [&["--scenario", "poweroff"], options].concat();
    let (_, row) = case(&options, program, arguments)?;
    let cells = row["cells"].as_array().unwrap().iter();
    let findings = cells.flat_map(|cell| cell["findings"].as_array().unwrap());
    let text =
        |finding: &Value, name: &str| finding["explanation"][name].as_str().unwrap().to_owned();
    Some(findings.map(|finding| (text(finding, "words"), text(finding, "remedy"))).collect())
}

#[test]
fn the_cause_is_what_repairs_the_state() {
    let acked = ["--promise", "durable", "--ack", "^saved"];
    for (program, remedy, words) in [
        ("log_kept_open", "sync-directory", "the making of orders.log (op 0) is not durable"),
        ("rename_enoent", "sync-directory", "the rename of s.json.tmp over s.json (op "),
        ("backup_first", "sync-directory", "the rename of s.json.tmp over s.json (op "),
        ("fallback", "keep-old-name", "takes that state away before the new one is there"),
        ("ack_before_save", "ack-later", ", with which its save begins"),
    ] {
        let Some(causes) = causes(&acked, program, &[]) else { return };
        let right = |(said, helps): &(String, String)| said.contains(words) && helps == remedy;
        assert!(!causes.is_empty() && causes.iter().all(right), "{program}: {causes:#?}");
    }
    let options = [&acked[..], &["--profile", "posix"]].concat();
    let causes = causes(&options, "new_directories", &[]).unwrap();
    let parents =
        ["nothing calls fsync on its directory data after it", "its directory data/buffer"];
    assert!(causes.iter().all(|(_, helps)| helps == "sync-directory"), "{causes:#?}");
    assert!(parents.iter().any(|parent| causes.iter().any(|(said, _)| said.contains(parent))));
}

#[test]
fn no_advice_tells_a_program_to_do_what_it_does() {
    let options = ["--promise", "atomic", "--profile", "ext4", "--ack", "^saved"];
    let Some(causes) = causes(&options, "prealloc", &[]) else { return };
    assert!(
        !causes.is_empty() && causes.iter().all(|(_, helps)| helps == "sync-file"),
        "{causes:#?}"
    );
    let init = tempfile::tempdir().unwrap();
    std::fs::write(init.path().join("state.json"), "{\"n\": 1, \"pad\": \"x\"}").unwrap();
    let options = ["--init", init.path().to_str().unwrap(), "--ack", "^SAVED"];
    let causes = self::causes(&options, "grow", &["{dir}"]).unwrap();
    let right = |(_, helps): &(String, String)| helps == "replace-by-rename";
    assert!(!causes.is_empty() && causes.iter().all(right), "{causes:#?}");
}

#[test]
fn a_checkpoint_that_fails_loses_nothing_that_the_log_has() {
    let options = ["--scenario", "errno", "--ack", "^saved", "--promise", "durable,honest,atomic"];
    let Some((status, row)) = case(&options, "sqlite_wal_full", &[]) else { return };
    assert_eq!((status, failed(&row["tally"])), (0, 0), "{row:#}");
}
