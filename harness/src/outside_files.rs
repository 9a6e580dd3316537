//! Whether a program changes files outside its trial directory, and what lies there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::baseline::{Unbroken, unbroken};
use crate::error::{Error, Result};
use crate::inject::recorder::Hesitates;
use crate::inject::runner::Runner;
use crate::op::{Op, Trace};
use crate::os::enclosure;
use crate::state_found::listed;
use crate::subject::Command;

/// The baseline run that shows whether the program changes files outside its trial directory; from then on
/// all runs are followed there too, if it does.
pub fn first_run(
    name: &str,
    command: &mut Command,
    rooms: &mut [Runner; 2],
    notes: &mut Vec<String>,
) -> Result<Unbroken> {
    let [runner, other] = rooms;
    let contained = runner.sandbox().is_some();
    if command.sandbox && !contained {
        return Err(no_sandbox());
    }
    runner.scope.everywhere = contained;
    let first = unbroken(name, command, runner, Hesitates::Nobody)?;
    let outside: BTreeSet<&Path> =
        first.trace.ops.iter().filter(|op| op.changes()).flat_map(Op::paths).collect();
    let outside: Vec<&Path> = outside.into_iter().filter(|path| path.is_absolute()).collect();
    let anywhere = first.trace.ops.iter().flat_map(Op::paths).any(Path::is_absolute);
    command.sandbox |= !outside.is_empty();
    for runner in [&mut *runner, other] {
        runner.scope.everywhere = command.sandbox;
    }
    if !outside.is_empty() {
        let all = outside.iter().map(|path| path.display().to_string());
        let written = command.allow_write.is_empty();
        notes.push(format!(
            "it changes files outside its trial directory: {}; {}",
            listed(all),
            match written {
                true =>
                    "crashtest redirects these changes, and the files themselves stay as they are",
                false => "crashtest redirects these changes, but for what --allow-write names",
            }
        ));
    }
    match anywhere && !command.sandbox {
        // It has opened files elsewhere and changed none: its ops are counted without these.
        true => unbroken(name, command, runner, Hesitates::Nobody),
        false => Ok(first),
    }
}

fn no_sandbox() -> Error {
    let why = enclosure::refused().unwrap_or_default();
    Error::lacking(format!("there is no sandbox: {why}"))
        .help("unprivileged user namespaces and overlays are needed; `crashtest doctor` shows what is missing")
}

/// The names that a run had in the trial directory.
pub fn names_inside(run: &Unbroken) -> BTreeSet<PathBuf> {
    let paths = run.trace.ops.iter().flat_map(Op::paths).map(Path::to_owned);
    let left = run.after.files.keys().chain(&run.after.others).cloned();
    let before = run.before.paths().map(Path::to_owned);
    paths.chain(left).chain(before).filter(|path| path.is_relative()).collect()
}

/// What the files outside the trial directory that a run has touched hold on this machine.
pub fn files(trace: &Trace, command: &Command) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut outside = BTreeMap::new();
    for op in &trace.ops {
        for path in op.paths().filter(|path| path.is_absolute()) {
            let small = std::fs::metadata(path)
                .is_ok_and(|found| found.is_file() && found.len() <= command.limits.data_bytes);
            if small && let Ok(bytes) = std::fs::read(path) {
                outside.insert(path.to_owned(), bytes);
            }
        }
    }
    outside
}
