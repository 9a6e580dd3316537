//! The enumeration of crash states against a slow and obvious reference: every subset of the
//! micro-ops of 1,000 random programs, by the three rules that `power` begins with.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::reference::{Reference, State};
use crashtest::history::History;
use crashtest::model::{Files, Node};
use crashtest::op::{ByteOffset, Call, Effect, Op, Trace};
use crashtest::outcome::{Content as Bytes, Survivor};
use crashtest::power::Lowered;
use crashtest::power::derive::{Budget, Distinct, derive};
use crashtest::power::lower::lower;
use crashtest::power::profile::{EMBEDDED, Profile};
use crashtest::power::walk::{Complete, Go, Seen, Walk};
use nix::time::{ClockId, clock_gettime};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const PROGRAMS: u64 = 1000;
/// A small program that makes sense to a kernel.
struct Program {
    random: ChaCha8Rng,
    files: Files,
    ops: Vec<Op>,
}

const FILES: [&str; 3] = ["s", "t", "d/u"];

impl Program {
    fn random(seed: u64) -> (Files, Trace) {
        let mut before = Files::default();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        before.insert("d".into(), Node::Directory);
        if random.random_bool(0.7) {
            let length = random.random_range(0..1200);
            before.insert("s".into(), Node::File(vec![b'a'; length]));
        }
        let mut program = Self { random, files: before.clone(), ops: Vec::new() };
        for _ in 0..program.random.random_range(2..9) {
            program.op();
        }
        (before, Trace { ops: program.ops, ..Trace::default() })
    }

    fn any(&mut self) -> PathBuf {
        FILES[self.random.random_range(0..FILES.len())].into()
    }

    fn length(&self, path: &Path) -> Option<u64> {
        self.files.bytes(path).map(|bytes| bytes.len() as u64)
    }

    fn op(&mut self) {
        let path = self.any();
        let length = self.length(&path);
        let there = length.is_some();
        let (call, effect) = match self.random.random_range(0..14) {
            0 | 1 => {
                let truncate = self.random.random_bool(0.6);
                (Call::Open, Effect::Open { path, create: true, truncate })
            }
            2..=5 if there => {
                let offset = match self.random.random_range(0..3) {
                    0 => 0,
                    1 => length.unwrap_or(0),
                    _ => self.random.random_range(0..1100),
                };
                let fill = b'A' + (self.ops.len() as u8 % 26);
                let data = vec![fill; self.random.random_range(1..1100)];
                (Call::Write, Effect::Write { path, offset: ByteOffset(offset), data })
            }
            6 if there => {
                let length = ByteOffset(self.random.random_range(0..1500));
                (Call::Truncate, Effect::Truncate { path, length })
            }
            7 if there => (Call::Close, Effect::Close { path }),
            8 if there => {
                let to = self.any();
                (Call::Rename, Effect::Rename { from: path, to, exchange: false })
            }
            9 if there => (Call::Unlink, Effect::Unlink { path }),
            10 if there => {
                let call = [Call::Fsync, Call::Fdatasync][self.random.random_range(0..2)];
                (call, Effect::Sync { path })
            }
            11 => (
                Call::Fsync,
                Effect::Sync { path: ["", "d"][self.random.random_range(0..2)].into() },
            ),
            12 if there && !FILES.iter().all(|file| self.files.get(Path::new(file)).is_some()) => {
                let free = FILES.iter().find(|file| self.files.get(Path::new(file)).is_none());
                (Call::Link, Effect::Link { from: path, to: free.unwrap().into() })
            }
            13 if self.random.random_bool(0.2) => (Call::Sync, Effect::Sync { path: "".into() }),
            _ => return,
        };
        let flags = match (call, self.random.random_range(0..8)) {
            (Call::Write, 0) => libc::O_DSYNC,
            (Call::Write, 1) => libc::O_SYNC,
            _ => 0,
        };
        let op = Op { flags, ..Op::new(call, 1, effect, 1) };
        if self.files.apply(&op).is_ok() {
            self.ops.push(op);
        }
    }
}

fn of_survivor(survivor: &Survivor) -> State {
    let bytes = |(path, content): (&PathBuf, &Bytes)| match content {
        Bytes::Bytes(bytes) => Some((path.clone(), bytes.clone())),
        Bytes::Other(_) => None,
    };
    survivor.files.iter().filter_map(bytes).collect()
}

/// What the walk finds: the bytes, and for each fingerprint, that it stands for one state only.
fn enumerated(lowered: &Lowered, paths: &[PathBuf]) -> BTreeSet<State> {
    let mut known: std::collections::HashMap<Vec<Seen>, State> = std::collections::HashMap::new();
    let complete = Walk::new(lowered, paths).all(&mut |found| {
        let state = of_survivor(&found.recipe.state().survivor(lowered, paths));
        let before = known.insert(found.files.to_vec(), state.clone());
        assert!(before.is_none_or(|before| before == state), "a fingerprint of two states");
        Go::On
    });
    assert_eq!(complete, Complete::Yes);
    let states: BTreeSet<State> = known.values().cloned().collect();
    assert_eq!(states.len(), known.len(), "two fingerprints of one state");
    states
}

/// What a sample of so many states finds.
fn drawn(lowered: &Lowered, paths: &[PathBuf], states: usize, seed: u64) -> BTreeSet<State> {
    let (mut drawn, mut shown) = (BTreeSet::new(), 0);
    Walk::new(lowered, paths).sampled(states, seed, &mut |found| {
        shown += 1;
        drawn.insert(of_survivor(&found.recipe.state().survivor(lowered, paths)));
        Go::On
    });
    assert!((1..=states).contains(&shown), "{shown} states instead of {states}");
    drawn
}

/// A state as runs of equal bytes.
fn runs(state: &State) -> String {
    let file = |(path, bytes): (&PathBuf, &Vec<u8>)| {
        let runs = bytes.chunk_by(|a, b| a == b).map(|run| format!("{:x}*{}", run[0], run.len()));
        format!("{}: {}", path.display(), runs.collect::<Vec<_>>().join(" "))
    };
    state.iter().map(file).collect::<Vec<_>>().join("; ")
}

fn shown(op: &Op) -> String {
    match &op.effect {
        Effect::Write { path, offset, data } => {
            format!(
                "write {} {} {:x}*{} {:o}",
                path.display(),
                offset.0,
                data[0],
                data.len(),
                op.flags
            )
        }
        other => format!("{} {other:?}", op.call.name()),
    }
}

#[test]
fn the_states_of_random_programs_are_those_of_every_subset() {
    let paths: Vec<PathBuf> = FILES.iter().map(PathBuf::from).collect();
    let (mut compared, mut most, mut seed) = (BTreeMap::new(), 0, 0);
    while compared.values().min().is_none_or(|least| *least < PROGRAMS) {
        let (before, trace) = Program::random(seed);
        let trace = Arc::new(trace);
        for (name, _) in EMBEDDED {
            let profile = Profile::find(name).unwrap();
            let lowered = lower(&trace, &before, &profile.flags).unwrap();
            let Some(expected) = Reference::new(&lowered).states(&paths) else { continue };
            let found = enumerated(&lowered, &paths);
            let missing: Vec<_> = expected.difference(&found).collect();
            let extra: Vec<_> = found.difference(&expected).collect();
            assert!(
                missing.is_empty() && extra.is_empty(),
                "{name}, seed {seed}: {} missing, {} too many\n{}\n{}\n{}",
                missing.len(),
                extra.len(),
                trace.ops.iter().map(shown).collect::<Vec<_>>().join("\n"),
                missing.first().map_or("none".to_owned(), |state| runs(state)),
                extra.first().map_or("none".to_owned(), |state| runs(state))
            );
            for states in [200, 1 + seed as usize % 40] {
                let drawn = drawn(&lowered, &paths, states, seed);
                let illegal: Vec<_> = drawn.difference(&expected).map(runs).collect();
                assert!(illegal.is_empty(), "{name}, seed {seed}: drawn were {illegal:?}");
            }
            most = most.max(found.len());
            *compared.entry(name).or_insert(0) += 1;
        }
        seed += 1;
        assert!(seed < 20 * PROGRAMS, "too few programs are small enough: {compared:?}");
    }
    // The test says something only if there was a choice.
    assert!(most > 50, "{most}");
}

/// Saves of a few bytes by a temp file and a rename, synced or not, each with its ack.
fn saves(count: usize, sync: Option<Call>) -> (Files, Trace) {
    let mut before = Files::default();
    before.insert("s".into(), Node::File(b"0".to_vec()));
    let mut trace = Trace::default();
    for n in 0..count {
        let mut add = |call, effect| trace.ops.push(Op::new(call, 1, effect, 1));
        let path = || PathBuf::from("t");
        add(Call::Open, Effect::Open { path: path(), create: true, truncate: true });
        let data = format!("{n:09}").into_bytes();
        add(Call::Write, Effect::Write { path: path(), offset: ByteOffset(0), data });
        if let Some(call) = sync {
            add(call, Effect::Sync { path: path() });
        }
        add(Call::Close, Effect::Close { path: path() });
        add(Call::Rename, Effect::Rename { from: path(), to: "s".into(), exchange: false });
        trace.acks.push(trace.ops.len());
    }
    (before, trace)
}

/// How long this thread has computed: the machine may be busy with other tests.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

#[test]
fn a_hundred_thousand_ops_stay_within_their_budget_and_take_seconds() {
    for sync in [Some(Call::Fsync), Some(Call::Sync), None] {
        let (before, trace) = saves(20_000, sync);
        let is_state = |path: &Path| path == Path::new("s");
        let history = History::learn(&trace, &before, &is_state).unwrap();
        let trace = Arc::new(trace);
        for name in ["posix", "ext4", "btrfs"] {
            let before_it = cpu_time();
            let lowered = lower(&trace, &before, &Profile::find(name).unwrap().flags).unwrap();
            let budget = Budget { states_max: 20_000, seed: 1, judged: 1 };
            let derived = derive(&lowered, &["s".into()], &history, budget, &|| false);
            assert!(derived.states > 1000, "{name}: {}", derived.states);
            assert!(derived.states <= 20_000 || derived.exhaustive, "{name}: {}", derived.states);
            // Quadratic steps would take minutes.
            let took = cpu_time() - before_it;
            assert!(took.as_secs() < 30, "{name}, {sync:?}: {took:?}");
        }
    }
}

#[test]
fn a_sample_of_a_long_recording_reaches_its_end() {
    // No directory is ever synced: what was acknowledged last can always be lost.
    let (before, trace) = saves(4_000, Some(Call::Fsync));
    let is_state = |path: &Path| path == Path::new("s");
    let history = History::learn(&trace, &before, &is_state).unwrap();
    let (trace, last) = (Arc::new(trace), history.last());
    for name in ["posix", "ext4", "btrfs"] {
        let lowered = lower(&trace, &before, &Profile::find(name).unwrap().flags).unwrap();
        let budget = Budget { states_max: 4_000, seed: 1, judged: 1 };
        let derived = derive(&lowered, &["s".into()], &history, budget, &|| false);
        assert!(!derived.exhaustive && derived.states <= 4_000, "{name}: {}", derived.states);
        let lost = |distinct: &Distinct| {
            let owed = distinct.owing.iter().any(|owing| owing.owed == last);
            owed && distinct.version.is_some_and(|version| version < last)
        };
        assert!(derived.survivors.iter().any(lost), "{name}");
    }
}
