//! Reports of 1,000,000 trials, and of 100 shards put together: how long, how much memory, how large.
//!
//! The trials are not run: their records are written as a run of a strategy with a large state would leave
//! them, so that there are about as many places as trials. The page is then used in Chromium, if the packages
//! of `tests/browser` are installed.
//!
//!     cargo bench --bench reports

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crashtest::merge;
use crashtest::planned::Plan;
use crashtest::record::{Brief, Record};
use crashtest::results::RunDirectory;
use crashtest::shard::Shard;
use crashtest::verdict::ViolationKind;

const TRIALS: u64 = 1_000_000;
const SHARDS: u32 = 100;
const STATE_BYTES: &str = "8388608";

fn main() {
    let place = tempfile::tempdir().expect("a directory");
    let seed = first(place.path());
    let whole = write(place.path(), &seed, Shard::default());
    let page = place.path().join("report.html");
    let whole_path = whole.display().to_string();
    let html = page.display().to_string();
    let (seconds, mib) = measured(place.path(), &["report", &whole_path, "--html", &html]);
    let megabytes = fs::metadata(&page).expect("a page").len() as f64 / 1e6;
    println!("report of {TRIALS} trials: {seconds:.2} s, {mib} MiB, page {megabytes:.2} MB");
    let shards = place.path().join("shards");
    for index in 0..SHARDS {
        write(&shards, &seed, Shard::new(index, SHARDS).expect("a shard"));
    }
    let (merged, merge_mib) = measured(place.path(), &["merge", &shards.display().to_string()]);
    println!(
        "merge of {SHARDS} shards of {} trials: {merged:.2} s, {merge_mib} MiB",
        TRIALS / u64::from(SHARDS)
    );
    assert!(seconds <= 3.0 && mib <= 200 && megabytes <= 5.0 && merged <= 3.0);
    let browser = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
    if browser.join("node_modules").is_dir() {
        let status = Command::new("node").arg(browser.join("report.mjs")).arg(&page).status();
        assert!(status.expect("node runs").success(), "the page is not right");
    } else {
        println!("the page was not looked at: run npm ci in tests/browser");
    }
}

/// A run of two trials, from which the plan of a longer one is made.
fn first(place: &Path) -> Plan {
    let results = place.join("first");
    let run = [
        "run",
        "--quiet",
        "--seed",
        "1",
        "--trials",
        "2",
        "--strategy",
        "unsafe",
        "--state-bytes",
        STATE_BYTES,
    ];
    measured(&results, &run);
    let run = crashtest::results::runs(&results).pop().expect("a run");
    let mut plan = RunDirectory::open(&run, ".").and_then(|run| run.read_plan()).expect("a plan");
    plan.asked.trials = Some(TRIALS);
    plan.subjects[0].trials = Some(TRIALS);
    plan.id = plan.name();
    plan
}

/// Writes a part of the run as if it had been done.
fn write(root: &Path, plan: &Plan, shard: Shard) -> PathBuf {
    let plan = Plan { shard, ..plan.clone() };
    let planner = plan.planner(0).expect("places are drawn");
    let run = RunDirectory::create(root, "sigkill", shard).expect("a directory");
    run.write_plan(&plan).expect("the plan is kept");
    let mut log = run.append_all_outcomes().expect("a log");
    for n in (0..TRIALS).filter(|n| shard.owns(*n)) {
        let fault = planner.fault(n).expect("a place");
        let verdict = match n % 7 {
            0..3 => Brief::Pass,
            3 => Brief::Violated(vec![ViolationKind::Empty]),
            _ => Brief::Violated(vec![ViolationKind::Torn, ViolationKind::RecoveryFailed]),
        };
        let record = Record {
            n,
            subject: 0,
            at: fault.place(),
            struck: true,
            met: None,
            nature: fault.nature(),
            acks: 0,
            verdict,
            leftovers: false,
            evidence: None,
        };
        serde_json::to_writer(&mut log, &record).expect("a line");
        log.write_all(b"\n").expect("a line");
    }
    log.flush().expect("the log is kept");
    let mut report =
        merge::read(RunDirectory::open(run.path(), ".").expect("a run")).expect("a report");
    report.complete = true;
    run.write_report(&report).expect("the report is kept");
    run.path().to_owned()
}

/// Runs the command; how many seconds it took, and how many MiB at most.
fn measured(results: &Path, arguments: &[&str]) -> (f64, u64) {
    let started = Instant::now();
    let before = peak();
    let output = Command::new(env!("CARGO_BIN_EXE_crashtest"))
        .args(arguments)
        .env("CRASHTEST_RESULTS", results)
        .output()
        .expect("the command starts");
    let status = output.status.code().unwrap_or(-1);
    assert!(status <= 1, "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    (started.elapsed().as_secs_f64(), peak().max(before) >> 10)
}

/// The most memory that a child has had, in KiB.
fn peak() -> u64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN);
    usage.map_or(0, |usage| u64::try_from(usage.max_rss()).unwrap_or(0))
}
