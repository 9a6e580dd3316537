//! The survivor is exactly the bytes that the cut implies: computed from the trace of the unbroken
//! run by the model of the page cache, and compared with real kills.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{compiled, node, python, targets};
use crashtest::fault::FaultKind;
use crashtest::fault::{Fault, Injection, Point, Strike};
use crashtest::inject;
use crashtest::lab::Lab;
use crashtest::model::{Files, Node};
use crashtest::op::Trace;
use crashtest::plan::{Granularity, Planner, Seed};
use crashtest::prepare;
use crashtest::subject::{Command, Subject};

const OFFSETS: u64 = 100;

/// What the model says is left when the run of `trace` is struck.
fn implied(before: &Files, trace: &Trace, strike: &Strike) -> Files {
    let mut files = before.clone();
    for (index, op) in trace.ops.iter().enumerate() {
        let cut = match strike.point {
            Point::After if index == strike.op.0 => None,
            Point::Inside(byte) if index == strike.op.0 => Some(usize::try_from(byte.0).unwrap()),
            _ if index == strike.op.0 => return files,
            _ => None,
        };
        match cut {
            Some(keep) => files.apply_cut(op, keep).unwrap(),
            None => files.apply(op).unwrap(),
        }
        if index == strike.op.0 {
            return files;
        }
    }
    files
}

/// All regular files below a directory, with their bytes. A random temp name is made a fixed one.
fn files_in(directory: &Path, below: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(directory.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files_in(directory, &path, files);
        } else if kind.is_file() {
            files.insert(plain_name(&path), plain_bytes(&path, fs::read(entry.path()).unwrap()));
        }
    }
}

fn plain_name(path: &Path) -> String {
    let name = path.file_name().unwrap().to_string_lossy();
    match name.starts_with(".state") {
        true => path.with_file_name(".state.RANDOM").display().to_string(),
        false => path.display().to_string(),
    }
}

/// The same without the number of the process, which the lock has.
fn plain_bytes(path: &Path, mut bytes: Vec<u8>) -> Vec<u8> {
    if path == Path::new("state.lock") {
        bytes.retain(|byte| !byte.is_ascii_digit());
    }
    bytes
}

fn check(subject: &Subject) {
    let lab = Lab::new(None).unwrap();
    let planner = |sites| Planner::new(Seed(3), 0, FaultKind::Kill, Granularity::Byte, sites);
    let prepared = prepare::prepare("subject", subject, &lab, FaultKind::Kill, planner).unwrap();
    let mut injector = inject::for_subject(&prepared, &lab.room(0).unwrap(), None).unwrap();
    for n in 0..OFFSETS {
        let fault = prepared.planner.fault(n).unwrap();
        let left = lab.path().join("left");
        injector.keep_in(left.clone());
        let outcome = injector.inject(std::slice::from_ref(&fault)).unwrap().remove(0);
        let Fault::Kill(strike) = fault else { panic!("a kill was planned") };
        assert!(matches!(outcome.injection, Injection::At(_)), "{strike}: {outcome:?}");
        let mut survivor = BTreeMap::new();
        files_in(&left, Path::new(""), &mut survivor);
        let implied = implied(&prepared.before, &prepared.trace, &strike);
        let implied: BTreeMap<_, _> = implied
            .paths()
            .filter_map(|path| match implied.get(path)? {
                Node::File(bytes) => Some((plain_name(path), plain_bytes(path, bytes.clone()))),
                Node::Symlink(_) | Node::Directory => None,
            })
            .collect();
        let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&survivor), names(&implied), "{strike}");
        assert!(survivor == implied, "other bytes: {strike}");
        fs::remove_dir_all(left).unwrap();
    }
}

fn check_command(argv: &[&str]) {
    let argv = argv.iter().map(|argument| (*argument).to_owned()).collect();
    let command = Command { argv, ..Command::default() };
    check(&Subject::Command(Box::new(command)));
}

/// Each case runs in a process of its own: an injector waits for all children of its process, and
/// makes its room the working directory.
fn main() {
    let cases: [(&str, fn()); 5] = [
        ("of_every_built_in_strategy", of_every_built_in_strategy),
        ("of_the_python_subjects", of_the_python_subjects),
        ("of_the_node_subjects", of_the_node_subjects),
        ("of_the_c_subjects", of_the_c_subjects),
        ("of_the_shell_subjects", of_the_shell_subjects),
    ];
    common::run_apart(&cases);
}

fn of_every_built_in_strategy() {
    for strategy in crashtest_targets::Strategy::ALL {
        for state_bytes in [1024, 20_000] {
            check(&Subject::built_in(strategy.name(), 2, state_bytes, 0));
        }
    }
}

fn of_the_python_subjects() {
    let (true, Some(python)) = (common::can_follow(), python()) else { return };
    for name in ["in_place", "fsync_rename", "replace_with_backups", "mkstemp_replace"] {
        check_command(&[&python, &targets(&format!("python/{name}.py"))]);
    }
}

fn of_the_node_subjects() {
    let (true, Some(node)) = (common::can_follow(), node()) else { return };
    check_command(&[&node, &targets("node/write_file_sync.js")]);
    check_command(&[&node, &targets("node/write_rename.js")]);
}

fn of_the_c_subjects() {
    if !common::can_follow() {
        return;
    }
    for source in ["stdio_in_place.c", "stdio_rename.c", "every_call.c"] {
        let Some(program) = compiled(source) else { return };
        check_command(&[&program]);
    }
}

fn of_the_shell_subjects() {
    if !common::can_follow() {
        return;
    }
    check_command(&["/bin/sh", &targets("shell/redirect.sh")]);
    check_command(&["/bin/sh", &targets("shell/redirect_mv.sh")]);
}
