//! Subjects that once fooled the oracle, or that it once accused for nothing.

mod common;

use common::{python, report, violations};
use crashtest::file_system::FileSystem;

/// Helpers that every subject begins with.
const HELPERS: &str = "\
import json, os, random, time
def wr(name, data):
    f = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(f, data); os.close(f)
def ack(i):
    os.write(1, b'saved %d\\n' % i)
def body(i):
    return json.dumps({'v': i, 'd': chr(97 + i % 26) * 500}).encode()
";

/// Runs a Python subject at op boundaries and bytes; returns status and row.
fn run(options: &[&str], script: &str) -> Option<(i32, serde_json::Value)> {
    let python = python()?;
    if !common::can_follow() {
        return None;
    }
    let results = tempfile::tempdir().unwrap();
    let script = format!("{HELPERS}{script}");
    let fixed = ["--trials", "120", "--seed", "1", "--ack", "^saved"];
    let (status, report) =
        report(results.path(), &[&fixed, options, &["--", &python, "-c", &script]].concat());
    Some((status, report["subjects"][0].clone()))
}

#[track_caller]
fn assert_bad(kind: &str, options: &[&str], script: &str) {
    let Some((status, row)) = run(options, script) else { return };
    assert_eq!(status, 1, "{row:#}");
    assert!(violations(&row, kind) > 0, "no {kind}: {row:#}");
}

#[track_caller]
fn assert_good(options: &[&str], script: &str) {
    let Some((status, row)) = run(options, script) else { return };
    assert_eq!(status, 0, "{row:#}");
    assert_eq!(row["tally"]["violated"], serde_json::json!({}), "{row:#}");
    assert!(row["tally"]["passed"].as_u64() > Some(0), "{row:#}");
}

#[test]
fn a_state_that_is_removed_before_it_is_replaced_is_missing() {
    assert_bad(
        "missing",
        &["--state", "state"],
        "for i in range(6):\n    if i: os.unlink('state')\n    wr('t', b'{\"n\": %d}' % i)\n    os.rename('t', 'state'); ack(i)\n",
    );
}

#[test]
fn a_missing_state_is_seen_without_acks_too() {
    let Some(python) = python() else { return };
    let results = tempfile::tempdir().unwrap();
    let script = format!(
        "{HELPERS}for i in range(6):\n    wr('t', body(i))\n    if i: os.unlink('state')\n    os.rename('t', 'state')\n"
    );
    let arguments = ["--trials", "120", "--granularity", "op", "--", &python, "-c", &script];
    let (status, report) = report(results.path(), &arguments);
    assert_eq!(status, 1);
    assert!(violations(&report["subjects"][0], "missing") > 0);
}

#[test]
fn an_ack_before_the_save_is_a_lost_ack() {
    let script = "for i in range(6):\n    ack(i); wr('t', body(i)); os.rename('t', 'state')\n";
    assert_bad("lost-ack", &[], script);
}

#[test]
fn two_random_states_in_one_file_are_told_from_one() {
    let script = "for i in range(5):\n    n = random.randrange(10**7, 10**8)\n    data = json.dumps({'xs': [n] * 200}).encode()\n    f = os.open('state', os.O_RDWR | os.O_CREAT, 0o644); os.write(f, data); os.close(f); ack(i)\n";
    assert_bad("alien", &[], script);
}

#[test]
fn names_that_are_no_text_do_not_stop_the_run() {
    assert_bad("torn", &[], "for i in range(3):\n    wr(b'st\\xff\\xfe', body(i)); ack(i)\n");
}

#[test]
fn a_state_below_a_renamed_directory_is_followed() {
    let script = "os.mkdir('d.new'); wr('d.new/state', body(0)); os.rename('d.new', 'd'); ack(0)\nfor i in range(1, 5):\n    wr('t', body(i)); os.rename('t', 'd/state'); ack(i)\n";
    assert_good(&["--state", "d/state"], script);
}

#[test]
fn savers_that_swap_symbolic_links_or_exchange_names_pass() {
    assert_good(
        &[],
        "for i in range(5):\n    wr('data.%d' % i, body(i)); os.symlink('data.%d' % i, 'l')\n    os.rename('l', 'state'); ack(i)\n",
    );
    assert_good(
        &[],
        "import ctypes\nwr('t', body(0)); os.rename('t', 'state'); ack(0)\nfor i in range(1, 5):\n    wr('t', body(i))\n    ctypes.CDLL(None).renameat2(-100, b't', -100, b'state', 2); ack(i)\n",
    );
}

#[test]
fn a_sound_save_in_one_write_or_in_many_is_not_missing_before_its_first() {
    // Write number 9 belongs to the first save in one run, and to the last in another.
    let script = "for i in range(3):\n    step = random.choice([60, 3000]); data = body(i)\n    f = os.open('t', os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)\n    for at in range(0, len(data), step): os.write(f, data[at:at + step])\n    os.fsync(f); os.close(f); os.rename('t', 'state'); ack(i)\n";
    assert_good(&["--state", "state"], script);
    assert_good(&["--state", "state", "--granularity", "op"], script);
}

#[test]
fn threads_that_save_in_any_order_are_not_accused() {
    let script = "import threading\nlock = threading.Lock(); count = [0]\ndef work(k):\n    for i in range(5):\n        with lock:\n            count[0] += 1\n            wr('t', json.dumps({'n': count[0], 'k': k, 'd': 'x' * 300}).encode()); os.rename('t', 'state'); ack(count[0])\n        time.sleep(0.0005)\nthreads = [threading.Thread(target=work, args=(k,)) for k in range(3)]\n[t.start() for t in threads]; [t.join() for t in threads]\n";
    assert_good(&["--state", "state"], script);
}

#[test]
fn a_process_that_escapes_tracing_does_not_outlive_the_run() {
    let Some(python) = python() else { return };
    if !common::can_follow() {
        return;
    }
    let results = tempfile::tempdir().unwrap();
    // CLONE_UNTRACED | SIGCHLD
    let script = "import ctypes, os, time\n\
        nr = 56 if os.uname().machine == 'x86_64' else 220\n\
        open('t', 'w').write('[1]'); os.replace('t', 's.json')\n\
        if ctypes.CDLL(None).syscall(nr, 0x00800000 | 17, 0, 0, 0, 0) == 0:\n\
        \x20   time.sleep(300)\n";
    let started = std::time::Instant::now();
    let arguments = ["--trials", "10", "--timeout", "5", "--", &python, "-c", script];
    let output = common::run_in(results.path(), &[&["run", "--json"], &arguments[..]].concat());
    assert!(started.elapsed() < std::time::Duration::from_secs(60));
    assert!(output.status.code().is_some());
}

#[test]
fn a_sound_program_finishes_a_vectored_write_that_was_cut_short() {
    let script = "def whole(f, parts):\n    while parts:\n        n = os.writev(f, parts)\n        while parts and n >= len(parts[0]):\n            n -= len(parts[0]); parts = parts[1:]\n        if parts: parts = [parts[0][n:]] + parts[1:]\nfor i in range(3):\n    f = os.open('t', os.O_WRONLY | os.O_CREAT | os.O_TRUNC); whole(f, [body(i)[:200], body(i)[200:]]); os.close(f)\n    os.rename('t', 'state'); ack(i)\n";
    assert_good(&["--scenario", "shortwrite"], script);
}

/// Sweeps a Python subject, and says what it breaks.
fn sweep(scenario: &str, options: &[&str], script: &str) -> Option<(i32, serde_json::Value)> {
    let python = python()?;
    if !common::can_follow() || (scenario == "enospc" && !common::can_fill(FileSystem::Tmpfs)) {
        return None;
    }
    let results = tempfile::tempdir().unwrap();
    let script = format!("{HELPERS}{script}");
    let fixed = ["--scenario", scenario, "--ack", "^saved"];
    let (status, report) =
        report(results.path(), &[&fixed, options, &["--", &python, "-c", &script]].concat());
    Some((status, report["subjects"][0].clone()))
}

#[track_caller]
fn assert_sound(scenario: &str, options: &[&str], script: &str) {
    let Some((status, row)) = sweep(scenario, options, script) else { return };
    assert_eq!(row["tally"]["broken"], serde_json::json!({}), "{row:#}");
    assert_eq!(status, 0, "{row:#}");
    assert!(row["tally"]["passed"].as_u64() > Some(0), "{row:#}");
}

#[track_caller]
fn assert_breaks(scenario: &str, promise: &str, options: &[&str], script: &str) {
    let Some((status, row)) = sweep(scenario, options, script) else { return };
    assert!(row["tally"]["broken"][promise].as_u64() > Some(0), "{promise}: {row:#}");
    assert_eq!(status, 1, "{row:#}");
}

#[test]
fn a_state_of_old_and_new_bytes_is_no_new_state_though_it_is_json() {
    let script = "\
for n in range(1, 4):
    a, b = b'{\"a\": %d,' % (1111 * n), b' \"b\": %d}\\n' % (1111 * n)
    f = os.open('s.json', os.O_WRONLY | os.O_CREAT, 0o644)
    if os.pwrite(f, a, 0) < len(a): sys.exit(1)
    try: os.pwrite(f, b, len(a))
    except OSError: pass
    os.close(f); ack(n)
";
    assert_breaks("errno", "atomic", &[], &format!("import sys\n{script}"));
}

#[test]
fn a_rotated_state_that_stays_away_is_missing() {
    let script = "\
for n in range(1, 4):
    wr('t', body(n))
    if n > 1: os.rename('s.json', 's.json.1')
    os.rename('t', 's.json'); ack(n)
";
    let Some((_, row)) = sweep("errno", &[], script) else { return };
    assert!(violations(&row, "missing") > 0, "{row:#}");
    // A kill between the two renames leaves none either.
    assert_bad("missing", &[], script);
}

#[test]
fn acks_that_wait_in_a_buffer_promise_their_own_save() {
    let script = "\
import sys
for n in range(1, 4):
    try:
        wr('t', body(n)); os.rename('t', 's.json')
    except OSError: sys.exit(1)
    print('saved')
";
    // A write that falls short is this subject's own fault.
    let Some((_, row)) = sweep("errno", &["--promise", "durable"], script) else { return };
    assert_eq!(row["tally"]["broken"], serde_json::json!({}), "{row:#}");
}

#[test]
fn a_write_that_was_taken_back_after_a_failed_fsync_is_as_on_disk() {
    let script = "\
import sys
for n in range(1, 4):
    f = os.open('s.log', os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    size = os.fstat(f).st_size
    line = b'record %d\\n' % n
    try:
        if os.write(f, line) < len(line): raise OSError()
        os.fsync(f)
        os.close(f)
    except OSError:
        os.truncate('s.log', size); sys.exit(1)
    ack(n)
";
    assert_sound("errno", &["--promise", "atomic,durable,honest"], script);
}

#[test]
fn an_append_whose_fsync_failed_leaves_the_old_records_on_disk() {
    let script = "\
import sys
wr('s.log', b'record 0\\n'); f = os.open('s.log', os.O_RDONLY); os.fsync(f); os.close(f); ack(0)
for n in range(1, 4):
    f = os.open('s.log', os.O_WRONLY | os.O_APPEND)
    os.write(f, b'record %d\\n' % n)
    os.fsync(f); os.close(f); ack(n)
";
    let Some((_, row)) = sweep("errno", &[], script) else { return };
    assert_eq!(violations(&row, "unsynced"), 0, "{row:#}");
}

#[test]
fn a_directory_whose_names_have_not_changed_loses_none() {
    let script = "\
d = os.open('.', os.O_RDONLY)
try: os.fsync(d)
except OSError: pass
for n in range(1, 4):
    f = os.open('s.json', os.O_WRONLY)
    if os.pwrite(f, b'{\"n\": %d}' % n, 0) < 8: raise SystemExit(1)
    os.fsync(f); os.close(f); ack(n)
";
    let Some(_) = python() else { return };
    let init = tempfile::tempdir().unwrap();
    std::fs::write(init.path().join("s.json"), "{\"n\": 0}").unwrap();
    let init = init.path().display().to_string();
    assert_sound("errno", &["--init", &init, "--promise", "atomic,durable,honest"], script);
}

#[test]
fn what_a_copy_between_files_asks_for_is_not_what_it_writes() {
    // `cat` asks copy_file_range for 2^63 bytes; sendfile here for 8 MiB.
    let script = "\
def save(n):
    data = body(n)
    f = os.open('source', os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    if os.write(f, data) < len(data): raise SystemExit(1)
    os.close(f)
    s, f = os.open('source', os.O_RDONLY), os.open('t', os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    if os.sendfile(f, s, 0, 1 << 23) < len(data): raise SystemExit(1)
    try: os.fsync(f)
    except OSError:
        if os.pwrite(f, data, 0) < len(data): raise SystemExit(1)
        os.fsync(f)
    os.close(f); os.close(s); os.rename('t', 's.json')
for n in range(1, 4):
    save(n); ack(n)
";
    assert_sound("errno", &["--state", "s.json"], script);
    let results = tempfile::tempdir().unwrap();
    let copy = "i=0; while [ $i -lt 900 ]; do echo \"line $i\"; i=$((i+1)); done > big
                cat big > s.json.tmp && mv s.json.tmp s.json && echo saved";
    let options =
        ["--scenario", "errno", "--ack", "^saved", "--trials", "150", "--state", "s.json"];
    let (_, report) =
        report(results.path(), &[&options[..], &["--", "/bin/sh", "-c", copy]].concat());
    assert!(report["subjects"][0]["tally"]["struck"].as_u64() > Some(20), "{report:#}");
}

#[test]
fn a_program_that_looks_for_space_first_and_lies_is_caught() {
    let script = "\
for n in range(1, 4):
    s = os.statvfs('.')
    if s.f_bavail * s.f_frsize > 20000:
        wr('t', body(n)); os.rename('t', 's.json')
    ack(n)
";
    assert_breaks("enospc", "honest", &["--axis", "space"], script);
    // One that gives up in silence has done nothing wrong where there is no space, and does wrong
    // where there is a little.
    let script = "\
import sys
if os.statvfs('.').f_bavail < 1: sys.exit(0)
for n in range(1, 4):
    open('s.txt', 'w').write(chr(97 + n) * 6000 * n); ack(n)
";
    assert_breaks("enospc", "atomic", &["--axis", "space"], script);
}

#[test]
fn a_program_that_needs_more_than_there_is_is_an_error_and_not_a_pass() {
    let Some(python) = python() else { return };
    if !common::can_follow() || !common::can_fill(FileSystem::Tmpfs) {
        return;
    }
    let results = tempfile::tempdir().unwrap();
    let script = "import os, sys\ns = os.statvfs('.')\n\
                  if s.f_blocks * s.f_frsize == 64 << 20: sys.exit(3)\n\
                  open('t', 'w').write('[1]'); os.rename('t', 's.json')\n";
    let output = common::run_in(
        results.path(),
        &["run", "--scenario", "enospc", "--", &python, "-c", script],
    );
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("with all of them free") && text.contains("--fs-size"), "{text}");
}

#[test]
fn the_same_place_of_two_programs_has_two_ids_and_replays_from_anywhere() {
    let results = tempfile::tempdir().unwrap();
    let mut ids = Vec::new();
    for saves in ["1", "2"] {
        let options = [
            "run",
            "--json",
            "--strategy",
            "unsafe",
            "--trials",
            "20",
            "--seed",
            "1",
            "--saves",
            saves,
        ];
        // A relative place, as the usual one is.
        let options = [&options[..], &["--results", "here"]].concat();
        let output = common::run_in(results.path(), &options);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        ids.push(report["subjects"][0]["kept"][0]["id"].as_str().unwrap().to_owned());
    }
    assert_ne!(ids[0], ids[1]);
    for id in ids {
        let keep = results.path().join(&id).display().to_string();
        let options = ["replay", &id, "--results", "here", "--keep", &keep];
        let output = common::run_in(results.path(), &options);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("the same verdict and the same bytes"), "{text}");
    }
}
