//! What the tests share: the command, the subjects, and what this machine must have.
#![allow(dead_code, reason = "not every test file uses all of it")]

pub mod reference;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crashtest::os::process::{self, Ended};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The built command.
pub fn crashtest() -> Command {
    Command::new(env!("CARGO_BIN_EXE_crashtest"))
}

/// The repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace")
}

/// A directory of the subjects.
pub fn targets(path: &str) -> String {
    repository().join("targets").join(path).display().to_string()
}

/// Runs the command with its results in `results`.
pub fn run_in(results: &Path, arguments: &[&str]) -> Output {
    crashtest()
        .args(arguments)
        .env("CRASHTEST_RESULTS", results)
        .current_dir(results)
        .output()
        .expect("the command starts")
}

/// Runs `crashtest run --json` and reads the report.
pub fn report(results: &Path, arguments: &[&str]) -> (i32, serde_json::Value) {
    let all = [&["run", "--json"], arguments].concat();
    let output = run_in(results, &all);
    let status = output.status.code().unwrap_or(-1);
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("no report ({error}): {}", String::from_utf8_lossy(&output.stderr))
    });
    (status, report)
}

/// The number of violations of a kind, natural and forced together.
pub fn violations(row: &serde_json::Value, kind: &str) -> u64 {
    let count = &row["tally"]["violated"][kind];
    count["natural"].as_u64().unwrap_or(0) + count["forced"].as_u64().unwrap_or(0)
}

/// Whether this machine has something; if not, the test says so and is skipped, or fails if
/// `CRASHTEST_REQUIRE` names it.
pub fn has(what: &str, there: bool) -> bool {
    if there {
        return true;
    }
    let required = std::env::var("CRASHTEST_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|name| name.trim() == what),
        "{what} is required by CRASHTEST_REQUIRE and is not there"
    );
    eprintln!("skipped: this machine has no {what}");
    false
}

/// How much of something is tried: some of it every day, all of it where `CRASHTEST_THOROUGH` is set.
pub fn usually<T>(some: T, all: T) -> T {
    if std::env::var_os("CRASHTEST_THOROUGH").is_some() { all } else { some }
}

/// A program of this machine.
pub fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Shims of version managers need a home, which a trial does not have.
    std::iter::once(PathBuf::from("/usr/bin"))
        .chain(std::env::split_paths(&path))
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

/// Python, if it is there.
pub fn python() -> Option<String> {
    let found = in_path("python3");
    has("python3", found.is_some()).then(|| found.unwrap_or_default().display().to_string())
}

/// Node, if it is there.
pub fn node() -> Option<String> {
    let found = in_path("node");
    has("node", found.is_some()).then(|| found.unwrap_or_default().display().to_string())
}

/// Compiles a C subject, if there is a compiler; returns the program, which lies in the target
/// directory, where nothing is left behind on the machine.
pub fn compiled(source: &str) -> Option<String> {
    compiled_with(source, &["-O2"])
}

/// The same with options of the compiler.
pub fn compiled_with(source: &str, options: &[&str]) -> Option<String> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let compiler = in_path("cc");
    if !has("cc", compiler.is_some()) {
        return None;
    }
    let name = source.replace('/', "-").replace(".c", &options.concat());
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // Other tests may compile or run the same program now: it is put in its place whole.
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let new = program.with_extension(format!("{}-{count}", std::process::id()));
    let status = Command::new(compiler.unwrap_or_default())
        .args(options)
        .args(["-Wall", "-Werror", "-pthread", "-o"])
        .arg(&new)
        .arg(targets(&format!("c/{source}")))
        .status()
        .expect("the compiler starts");
    assert!(status.success(), "{source} does not compile");
    std::fs::rename(&new, &program).expect("the program can be put in its place");
    Some(program.display().to_string())
}

/// Whether programs can be followed here.
pub fn can_follow() -> bool {
    doctor_says("ptrace and seccomp", "ptrace")
}

/// Whether there are sandboxes here.
pub fn can_sandbox() -> bool {
    doctor_says("user namespaces and overlayfs", "sandbox")
}

/// Whether small disks of this kind can be made here.
pub fn can_fill(kind: crashtest::file_system::FileSystem) -> bool {
    doctor_says(&format!("small {kind}"), kind.name())
}

/// Whether the power of disks with this file system can be cut here.
pub fn can_cut(kind: &str) -> bool {
    doctor_says(&format!("recorded {kind}"), kind)
}

fn doctor_says(finding: &str, name: &str) -> bool {
    let output = crashtest().arg("doctor").output().expect("the command starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    has(name, text.contains(&format!("ok       {finding}")))
}

/// What two runs of the same trials have in common.
pub fn table(report: &serde_json::Value) -> serde_json::Value {
    let rows = report["subjects"].as_array().unwrap();
    let row = |row: &serde_json::Value| {
        serde_json::json!([row["name"], row["tally"], row["interval"], row["expectation"]])
    };
    rows.iter().map(row).collect()
}

/// Starts the command with its results in `results`.
fn start(results: &Path, arguments: &[&str]) -> Child {
    crashtest()
        .args(arguments)
        .env("CRASHTEST_RESULTS", results)
        .current_dir(results)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The id of a child.
fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

/// Waits until the run has kept some outcomes.
fn wait_for_outcomes(results: &Path) -> String {
    let started = Instant::now();
    loop {
        for run in fs::read_dir(results).unwrap().flatten() {
            let length =
                fs::metadata(run.path().join("outcomes.jsonl")).map_or(0, |found| found.len());
            if length > 0 {
                return run.file_name().to_string_lossy().into_owned();
            }
        }
        assert!(started.elapsed() < Duration::from_secs(30), "nothing was kept");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The processes with a mark in their environment or arguments, but for this one.
pub fn marked(mark: &str) -> Vec<Pid> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<i32>() else { continue };
        let read = |name: &str| fs::read(process.path().join(name)).unwrap_or_default();
        let known = [read("environ"), read("cmdline")].concat();
        let is_marked = known.windows(mark.len()).any(|bytes| bytes == mark.as_bytes());
        if is_marked && u32::try_from(pid) != Ok(std::process::id()) {
            found.push(Pid::from_raw(pid));
        }
    }
    found
}

/// Everything of a run that could be left behind: processes with its directory in their
/// environment or arguments, trial directories, mounts, loop devices.
pub fn left_behind(mark: &str, place: &Path) -> Vec<String> {
    let mut left: Vec<String> =
        marked(mark).into_iter().map(|process| format!("process {process}")).collect();
    let entries = fs::read_dir(place).unwrap().flatten();
    left.extend(entries.map(|entry| entry.path().display().to_string()));
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let place = place.display().to_string();
    // A disk that is served by FUSE is shown by its name, with its path in it.
    let served = place.replace('/', "!");
    for device in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let file = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        if file.contains(&place) || file.contains(&served) {
            left.push(format!("{} over {file}", device.file_name().to_string_lossy()));
        }
    }
    left.extend(mounts.lines().filter(|line| line.contains(&place)).map(str::to_owned));
    left
}

/// Who is killed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Victims {
    /// The command.
    Coordinator,
    /// All of its processes at once, but for the one that only removes what is left of its directories.
    AllButJanitor,
}

/// Starts a run, kills it with SIGKILL after a while, and waits until nothing of it is left.
pub fn kill_and_look(options: &[&str], after: Duration, victims: Victims) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let results = tempfile::tempdir().unwrap();
    let place = tempfile::tempdir_in("/dev/shm").unwrap();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mark = format!("crashtest-mark-{}-{count}-", std::process::id());
    let (run, rest) = options.split_first().unwrap();
    let mut child = crashtest()
        .arg(run)
        .args(["--dir", &place.path().display().to_string()])
        .args(rest)
        .env("CRASHTEST_RESULTS", results.path())
        .env("MARK", &mark)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(after);
    if victims == Victims::AllButJanitor {
        for process in marked(&mark) {
            let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
            if name.trim() != "ct-janitor" {
                // It may have ended since.
                let _ = kill(process, Signal::SIGKILL);
            }
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let started = Instant::now();
    loop {
        let left = left_behind(&mark, place.path());
        if left.is_empty() {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{options:?}: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs each case in a process of its own and ends with status 1 if one failed: an injector waits for
/// all children of its process and makes its room the working directory, and a small disk has mounts
/// of its own.
pub fn run_apart(cases: &[(&str, fn())]) -> ! {
    let mut failed = 0;
    for (name, case) in cases {
        let child = process::fork_child(|| {
            case();
            0
        });
        let passed = process::wait_for(child.unwrap()).unwrap() == Ended::Status(0);
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    println!("{} passed, {failed} failed", cases.len() - failed);
    std::process::exit(i32::from(failed > 0));
}

/// Runs the command and ends it by a signal as soon as some outcomes are kept; then goes on with it,
/// and compares with a run that was left alone.
pub fn interrupt_and_go_on(options: &[&str]) {
    let (whole, halves) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let all = [&["run", "--json"], options].concat();
    let (_, unbroken) = report(whole.path(), options);
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let results = halves.path().join(signal.as_str());
        fs::create_dir(&results).unwrap();
        let child = start(&results, &all);
        let run = wait_for_outcomes(&results);
        kill(pid(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        if signal == Signal::SIGINT {
            assert_eq!(output.status.code(), Some(130));
            let partial: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(partial["complete"], false);
        }
        let (status, resumed) = report(&results, &["--resume", &run]);
        assert_eq!(status, 0, "{resumed:#}");
        let now = |report: &serde_json::Value| report["trials_now"].as_u64();
        assert!(now(&resumed) < now(&unbroken), "it began anew");
        assert_eq!(table(&resumed), table(&unbroken), "{signal}");
    }
}

/// A directory in which `script`, in Python, has made a database.
pub fn with_database(python: &str, script: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let made = Command::new(python).args(["-c", script]).current_dir(directory.path()).status();
    assert!(made.unwrap().success());
    directory
}

/// A directory with an SQLite database `db` and an empty table in it.
pub fn with_table(python: &str) -> tempfile::TempDir {
    with_database(
        python,
        "import sqlite3; d = sqlite3.connect('db'); d.execute('create table t (x)'); d.commit()",
    )
}

/// Adds 40 rows twice to that table.
pub fn add_rows(synchronous: &str) -> String {
    format!(
        "import sqlite3; d = sqlite3.connect('db'); d.execute('pragma synchronous={synchronous}')\n\
         for n in range(2):\n    d.executemany('insert into t values (?)', [('x' * 90,)] * 40); d.commit()\n"
    )
}

/// Whether that table is whole.
pub fn check_rows(python: &str) -> String {
    format!(
        "{python} -c \"import sqlite3; d = sqlite3.connect('db'); \
         assert d.execute('pragma integrity_check').fetchone()[0] == 'ok'; \
         assert d.execute('select count(*) from t').fetchone()[0] in (0, 40, 80)\""
    )
}

/// The numbers of an object together.
pub fn sum(counts: &serde_json::Value) -> u64 {
    counts.as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum()
}

/// How many crash states of a cell have a place along the run.
pub fn placed(cell: &serde_json::Value) -> u64 {
    let broken = cell["spread"]["broken"].as_object().unwrap().values();
    broken.chain([&cell["spread"]["passed"]]).map(sum).sum()
}
