//! A recording for people: what was called, in its order, what makes it durable, and the acks.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use crate::errno;
use crate::op::{Call, Effect, Op};
use crate::power::{Lowered, NEVER, StepChange, Time};
use crate::recording::Recording;

/// Renders it; `lowered` says what makes an op durable, on the profile that promises least.
#[must_use]
pub fn render(recording: &Recording, lowered: Option<&Lowered>) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = writeln!(text, "  op  thread  call             what");
    let (trace, mut acks) = (&recording.trace, 0);
    let coverage = lowered.map(coverage).unwrap_or_default();
    for n in 0..=trace.ops.len() {
        while trace.acks.get(acks).is_some_and(|after| *after <= n) {
            acks += 1;
            let _ = writeln!(text, "              ack {acks}");
        }
        let Some(op) = trace.ops.get(n) else { break };
        let covered = synced(coverage.get(&n));
        let what = format!("{}{}", what(op), result(op));
        let line = format!("{n:4}  {:6}  {:15}  {what:44}  {covered}", op.thread, op.call.name());
        let _ = writeln!(text, "{}", line.trim_end());
    }
    if recording.ended {
        let _ = writeln!(text, "              exit status 0");
    }
    text
}

fn what(op: &Op) -> String {
    let name = |path: &Path| match path.as_os_str().is_empty() {
        true => "the directory".to_owned(),
        false => path.display().to_string(),
    };
    match &op.effect {
        Effect::Open { path, .. } => format!("{}{}", name(path), flags(op.flags)),
        Effect::Write { path, offset, data } => {
            format!("{}: {} bytes at {}", name(path), data.len(), offset.0)
        }
        Effect::Truncate { path, length } => format!("{} to {} bytes", name(path), length.0),
        Effect::Fallocate { path, mode, offset, length } => {
            format!("{}: mode {mode:#x}, {} bytes at {}", name(path), length.0, offset.0)
        }
        Effect::Sync { .. } if op.call == Call::Sync => "everything".to_owned(),
        Effect::Rename { from, to, exchange: true } => format!("{} <-> {}", name(from), name(to)),
        Effect::Rename { from, to, .. } | Effect::Link { from, to } => {
            format!("{} -> {}", name(from), name(to))
        }
        Effect::Symlink { target, path } => format!("{} -> {}", name(path), target.display()),
        other => name(other.path()),
    }
}

/// The flags of an open that matter.
fn flags(flags: i32) -> String {
    let names = [
        (libc::O_CREAT, "create"),
        (libc::O_EXCL, "exclusive"),
        (libc::O_TRUNC, "truncate"),
        (libc::O_APPEND, "append"),
        (libc::O_DIRECT, "direct"),
        (libc::O_TMPFILE, "nameless"),
    ];
    let has = |flag: i32| flags & flag == flag;
    let mut all: Vec<&str> =
        names.into_iter().filter(|(flag, _)| has(*flag)).map(|(_, name)| name).collect();
    if has(libc::O_SYNC) {
        all.push("sync");
    } else if has(libc::O_DSYNC) {
        all.push("data sync");
    }
    if all.is_empty() { String::new() } else { format!(" ({})", all.join(", ")) }
}

fn result(op: &Op) -> String {
    match (op.result, &op.effect) {
        (failed, _) if failed < 0 => format!(" = {}", errno::name_of(-failed)),
        _ => String::new(),
    }
}

/// Which op makes all of each op durable.
fn coverage(lowered: &Lowered) -> BTreeMap<usize, Time> {
    let steps = lowered.steps.iter().filter(|step| !matches!(step.change, StepChange::Closed));
    let steps = steps.map(|step| (step.time, step.forced));
    let changes = lowered.inodes.iter().flat_map(|inode| &inode.changes);
    let changes = changes.map(|change| (change.time, change.forced));
    let mut covered = BTreeMap::new();
    for (time, forced) in steps.chain(changes) {
        let latest = covered.entry(time.op()).or_insert(forced);
        *latest = forced.max(*latest);
    }
    covered
}

fn synced(by: Option<&Time>) -> String {
    match by {
        None => String::new(),
        Some(&NEVER) => "never synced".to_owned(),
        Some(by) => format!("synced by op {}", by.op()),
    }
}
