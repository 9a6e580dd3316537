//! Subjects that once fooled the oracle, or that it once accused for nothing.

mod common;

use common::{python, report, violations};

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
