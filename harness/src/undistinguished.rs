//! Acks that the judged files do not tell apart: they are the same after one as after the ack before, and other files
//! are not. What a promise is worth that such an ack gives can't be seen by the bytes that are judged.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::history::History;
use crate::op::{Effect, Op, Trace};
use crate::state_files::says_companion;

/// For each number of acks after which this is so, the other files that had changed since the one before.
#[must_use]
pub fn acks(history: &History, trace: &Trace) -> BTreeMap<u64, BTreeSet<PathBuf>> {
    let state = history.files();
    // What is text or JSON holds the state itself, and may be saved twice as it is.
    let opaque = |path: &&PathBuf| {
        let last = history.versions.last().and_then(|version| version.get(*path));
        last.is_some_and(|reference| std::str::from_utf8(&reference.bytes).is_err())
    };
    if !state.iter().any(opaque) || history.loads.is_some() {
        return BTreeMap::new();
    }
    let version = |acks: usize| history.versions.get(*history.owed.get(acks)?);
    let same = |acks: &usize| version(*acks).is_some() && version(*acks) == version(acks - 1);
    let changed = |acks: usize| {
        let from = acks.checked_sub(2).map_or(Some(&0), |before| trace.acks.get(before));
        let (from, to) = (*from?, *trace.acks.get(acks - 1)?);
        let others = trace.ops.get(from..to)?.iter().filter_map(written);
        let others = others.filter(|path| !state.contains(path) && !says_companion(path));
        Some(others.cloned().collect::<BTreeSet<_>>())
    };
    (1..history.owed.len())
        .filter(same)
        .filter_map(|acks| Some((acks as u64, changed(acks)?)))
        .filter(|(_, others)| !others.is_empty())
        .collect()
}

/// The file that an op has put bytes into.
fn written(op: &Op) -> Option<&PathBuf> {
    match &op.effect {
        Effect::Write { .. } if op.succeeded() && op.written() > 0 => Some(op.effect.path()),
        _ => None,
    }
}

/// What is said of them.
#[must_use]
pub fn note(acks: &BTreeMap<u64, BTreeSet<PathBuf>>, history: &History) -> Option<String> {
    let others: BTreeSet<&PathBuf> = acks.values().flatten().collect();
    let (other, state) = (others.first()?, history.files());
    Some(format!(
        "not judged: whether what {} of its acks promise is durable: {} is the same after each as before it, and {} is \
         not; --load CMD says how the program loads both",
        acks.len(),
        state.first()?.display(),
        other.display()
    ))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::op::{ByteOffset, Call};

    fn write(path: &str) -> Op {
        let data = b"x".to_vec();
        let effect = Effect::Write { path: path.into(), offset: ByteOffset(0), data };
        Op::new(Call::Write, 1, effect, 1)
    }

    #[test]
    fn an_ack_is_told_by_what_changes_in_the_judged_files() {
        let file = Path::new("a.db");
        let versions =
            |bytes: [&[u8]; 3]| History::of_versions(file, bytes.map(<[u8]>::to_vec).to_vec());
        let trace = |other: &str| Trace {
            ops: vec![write("a.db"), write(other)],
            acks: vec![1, 2],
            ..Trace::default()
        };
        let found =
            |history: &History, other| acks(history, &trace(other)).into_keys().collect::<Vec<_>>();
        let none: Vec<u64> = Vec::new();
        let same = versions([b"\xff0", b"\xff1", b"\xff1"]);
        assert_eq!(found(&same, "a.db-wal"), vec![2]);
        assert_eq!(found(&same, "run.log"), none);
        // Nothing has changed at all.
        assert_eq!(found(&same, "a.db"), none);
        assert_eq!(found(&versions([b"\xff0", b"\xff1", b"\xff2"]), "a.db-wal"), none);
        assert_eq!(found(&versions([b"0", b"1", b"1"]), "b.txt"), none);
        assert!(note(&acks(&same, &trace("a.db-wal")), &same).unwrap().contains("a.db-wal"));
        assert_eq!(note(&BTreeMap::new(), &same), None);
    }
}
