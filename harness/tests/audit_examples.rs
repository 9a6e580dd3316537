//! The examples that an audit shows are sound themselves, in every language: by each scenario that can
//! hurt them.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{in_path, node, python, report, targets};

/// Compiles an example beside others of this run.
fn built(compiler: &Path, arguments: &[&str], name: &str, directory: &Path) -> String {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let new = program.with_extension(std::process::id().to_string());
    let mut command = Command::new(compiler);
    command.args(arguments).arg("-o").arg(&new).current_dir(directory);
    let done = command.output().expect("the compiler starts");
    assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
    std::fs::rename(&new, &program).expect("the program can be put in its place");
    program.display().to_string()
}

/// Go, where the distribution puts it.
fn go() -> Option<PathBuf> {
    let found = in_path("go").or_else(|| {
        let versions = std::fs::read_dir("/usr/lib").ok()?.flatten();
        let mut found = versions.map(|entry| entry.path().join("bin/go"));
        found.find(|path| path.to_string_lossy().contains("/go-") && path.is_file())
    });
    found.filter(|_| common::has("go", true)).or_else(|| {
        common::has("go", false);
        None
    })
}

/// Puts an example through the scenarios; every promise must hold, and much must have been tried.
#[track_caller]
fn assert_sound(argv: &[&str]) {
    let load = argv.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>().join(" ") + " load";
    let options = ["--recover", &load, "--restore", "cp {backup} state.json", "--"];
    // So many runs are enough for each op and each kind of damage.
    let scenarios = [
        ("sigkill", common::usually("12", "40")),
        ("errno", common::usually("24", "200")),
        ("enospc", common::usually("8", "40")),
        ("concurrent", common::usually("10", "40")),
        ("corrupt", common::usually("16", "100")),
        ("deleted", "10"),
        ("restore", "10"),
        ("poweroff", ""),
    ];
    for (scenario, trials) in scenarios {
        let results = tempfile::tempdir().unwrap();
        let mut all = vec!["--scenario", scenario];
        match trials {
            // What a load makes of each survivor is seen in the other scenarios.
            "" => all.push("--"),
            trials => all.extend([&["--trials", trials][..], &options].concat()),
        }
        all.extend(argv);
        let (status, report) = report(results.path(), &all);
        assert_eq!(status, 0, "{argv:?}: {scenario}: {report:#}");
        let row = &report["subjects"][0];
        assert!(row["tally"]["passed"].as_u64() > Some(0), "{argv:?}: {scenario}: {row:#}");
        assert!(row["tally"]["broken"].as_object().is_some_and(|broken| broken.is_empty()));
    }
}

#[test]
fn the_python_example_is_sound() {
    let Some(python) = python() else { return };
    if common::can_follow() {
        assert_sound(&[&python, &targets("python/durable.py")]);
    }
}

#[test]
fn the_javascript_example_is_sound() {
    let Some(node) = node() else { return };
    if common::can_follow() {
        assert_sound(&[&node, &targets("node/durable.js")]);
    }
}

#[test]
fn the_shell_example_is_sound() {
    if common::can_follow() && common::has("flock", in_path("flock").is_some()) {
        assert_sound(&["/bin/sh", &targets("shell/durable.sh")]);
    }
}

#[test]
fn the_c_example_is_sound() {
    let options = ["-O2", "-Wextra"];
    let Some(program) = common::compiled_with("durable.c", &options) else { return };
    if common::can_follow() {
        assert_sound(&[&program]);
    }
}

#[test]
fn the_rust_example_is_sound() {
    let compiler = in_path("rustc");
    if common::has("rustc", compiler.is_some()) && common::can_follow() {
        let arguments = ["--edition", "2024", "-O", "durable.rs"];
        let directory = targets("rust");
        let compiler = compiler.unwrap_or_default();
        assert_sound(&[&built(&compiler, &arguments, "durable-rust", Path::new(&directory))]);
    }
}

#[test]
fn the_go_example_is_sound() {
    let Some(go) = go() else { return };
    if common::can_follow() {
        let directory = targets("go");
        assert_sound(&[&built(
            &go,
            &["build", "-buildvcs=false"],
            "durable-go",
            Path::new(&directory),
        )]);
    }
}
