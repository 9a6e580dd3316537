//! What the tests share: the command, the subjects, and what this machine must have.
#![allow(dead_code, reason = "not every test file uses all of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

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

fn in_path(name: &str) -> Option<PathBuf> {
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
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let compiler = in_path("cc");
    if !has("cc", compiler.is_some()) {
        return None;
    }
    let name = source.replace('/', "-");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name.trim_end_matches(".c"));
    // Other tests may compile or run the same program now: it is put in its place whole.
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let new = program.with_extension(format!("{}-{count}", std::process::id()));
    let status = Command::new(compiler.unwrap_or_default())
        .args(["-O2", "-Wall", "-Werror", "-pthread", "-o"])
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

fn doctor_says(finding: &str, name: &str) -> bool {
    let output = crashtest().arg("doctor").output().expect("the command starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    has(name, text.contains(&format!("ok       {finding}")))
}
