//! The verdict by a load against a slow reference: 1,000 random programs whose state is a small key-value store in two
//! files, with a journal. In half of them one barrier is missing.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::reference::{Reference, State};
use crashtest::fault::{Fault, Injection, PowerLoss, Struck};
use crashtest::history::History;
use crashtest::loads::{Loads, Printed};
use crashtest::model::{Files, Node};
use crashtest::op::{ByteOffset, Call, Effect, Op, Trace};
use crashtest::oracle;
use crashtest::outcome::{Content, Exit, Load, Outcome, Recovery};
use crashtest::power::derive::{Budget, derive_all};
use crashtest::power::lower::lower;
use crashtest::power::profile::{EMBEDDED, Profile};
use crashtest::power::{Lowered, Time};
use crashtest::verdict::{Promise, Verdict};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const PROGRAMS: u64 = 1000;
const FILES: [&str; 3] = ["a", "b", "journal"];

/// A program that saves twice at most: what it changes goes to the journal first, then to its place.
struct Program {
    trace: Trace,
    /// What is loaded before, and after each save.
    values: Vec<String>,
}

impl Program {
    fn random(seed: u64) -> (Files, Self) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut files = Files::default();
        for file in ["a", "b"] {
            files.insert(file.into(), Node::File(b"0000".to_vec()));
        }
        let saves = random.random_range(1..=2);
        let mut store = BTreeMap::from([("a", "0000".to_owned()), ("b", "0000".to_owned())]);
        let (mut ops, mut acks) = (Vec::new(), Vec::new());
        let mut values = vec![shown(&store)];
        for save in 1..=saves {
            let keys: &[&str] = [&["a"][..], &["b"], &["a", "b"]][random.random_range(0..3)];
            for key in keys {
                store.insert(key, save.to_string().repeat(4));
            }
            let record: String =
                keys.iter().map(|key| format!("{key}{}", store[key])).chain([";".into()]).collect();
            ops.extend(written("journal", true, &record));
            ops.push((Call::Fsync, Effect::Sync { path: "".into() }));
            for key in keys {
                ops.extend(written(key, false, &store[key]));
            }
            ops.push((Call::Unlink, Effect::Unlink { path: "journal".into() }));
            ops.push((Call::Fsync, Effect::Sync { path: "".into() }));
            values.push(shown(&store));
            acks.push(ops.len());
        }
        if random.random_bool(0.5) {
            let syncs = ops.iter().enumerate().filter(|(_, (call, _))| *call == Call::Fsync);
            let syncs: Vec<usize> = syncs.map(|(index, _)| index).collect();
            let gone = syncs[random.random_range(0..syncs.len())];
            ops.remove(gone);
            acks.iter_mut().filter(|ops| **ops > gone).for_each(|ops| *ops -= 1);
        }
        let result = |effect: &Effect| match effect {
            Effect::Write { data, .. } => data.len() as i64,
            _ => 0,
        };
        let ops = ops.into_iter().map(|(call, effect)| {
            let result = result(&effect);
            Op::new(call, 1, effect, result)
        });
        (files, Self { trace: Trace { ops: ops.collect(), acks, ..Trace::default() }, values })
    }
}

/// A file that is written and synced.
fn written(path: &str, create: bool, text: &str) -> [(Call, Effect); 3] {
    let (path, data) = (PathBuf::from(path), text.as_bytes().to_vec());
    [
        (Call::Open, Effect::Open { path: path.clone(), create, truncate: create }),
        (Call::Write, Effect::Write { path: path.clone(), offset: ByteOffset(0), data }),
        (Call::Fsync, Effect::Sync { path }),
    ]
}

fn shown(store: &BTreeMap<&str, String>) -> String {
    format!("a={} b={}", store["a"], store["b"])
}

/// The program's load: the values in their places, and over them those of a whole journal.
fn load(state: &State) -> Option<String> {
    let text = |file: &str| {
        String::from_utf8(state.get(Path::new(file)).cloned().unwrap_or_default()).ok()
    };
    let mut store = BTreeMap::new();
    for key in ["a", "b"] {
        store.insert(key, text(key)?);
    }
    let journal = text("journal").unwrap_or_default();
    if let Some(record) = journal.strip_suffix(';') {
        for pair in record.as_bytes().chunks(5) {
            let (key, value) = std::str::from_utf8(pair).ok()?.split_at_checked(1)?;
            store.insert(if key == "a" { "a" } else { "b" }, value.to_owned());
        }
    }
    let whole = |value: &String| value.len() == 4 && value.bytes().all(|b| b.is_ascii_digit());
    store.values().all(whole).then(|| shown(&store))
}

/// The versions as the product learns them: what the load prints after each ack of the unbroken run.
fn learned(files: &Files, trace: &Trace) -> Option<Loads> {
    let paths = FILES.map(PathBuf::from);
    let printed = |files: &Files| {
        let bytes = |path: &PathBuf| Some((path.clone(), files.bytes(path)?.to_vec()));
        let text = load(&paths.iter().filter_map(bytes).collect())?;
        Printed::of_two_runs(text.as_bytes(), text.as_bytes())
    };
    let mut files = files.clone();
    let (mut by_acks, mut between) = (vec![printed(&files)], Vec::new());
    for (done, op) in trace.ops.iter().enumerate() {
        files.apply(op).ok()?;
        match trace.acks.contains(&(done + 1)) {
            true => by_acks.push(printed(&files)),
            // Durable in the journal, and not yet acknowledged.
            false => between.extend(printed(&files).map(|one| (by_acks.len() - 1, one))),
        }
    }
    let at_the_end = printed(&files)?;
    Loads::new(by_acks, at_the_end, between, &[])
}

/// What the product says of a state when so many acks had been given.
fn judged(history: &History, state: &State, acks: usize) -> bool {
    let fault =
        Fault::PowerLoss(PowerLoss { profile: "ext4".to_owned(), state: Default::default() });
    let mut outcome =
        Outcome::new(fault, Injection::At(Struck::Power { ops: usize::MAX }), Exit::Killed);
    outcome.acks = acks as u64;
    outcome.survivor.files =
        state.iter().map(|(path, bytes)| (path.clone(), Content::Bytes(bytes.clone()))).collect();
    outcome.recovery = match load(state) {
        Some(text) => {
            let loads = history.loads.as_ref().unwrap();
            let loaded = loads.version(text.as_bytes());
            Recovery { load: Load::Loaded, loaded, ..Recovery::default() }
        }
        None => Recovery { load: Load::Failed("torn".to_owned()), ..Recovery::default() },
    };
    let promises = BTreeSet::from([Promise::Atomic, Promise::Durable]);
    match oracle::judge(&outcome, history, &promises) {
        Verdict::Violated(_) => true,
        Verdict::Pass => false,
        Verdict::Inconclusive(why) => panic!("{why:?}"),
    }
}

/// What is broken by what the program means: it starts with an acknowledged save, or a later one.
fn is_broken(values: &[String], state: &State, acks: usize) -> bool {
    load(state).is_none_or(|text| !values[acks..].contains(&text))
}

/// The states that the reference finds broken, and after how many acks.
fn expected(lowered: &Lowered, paths: &[PathBuf], program: &Program) -> Option<BTreeSet<State>> {
    let mut broken = BTreeSet::new();
    Reference::new(lowered).each(paths, &mut |moment: Time, state| {
        if is_broken(&program.values, &state, lowered.acks_at(moment)) {
            broken.insert(state);
        }
    })?;
    Some(broken)
}

#[test]
fn the_verdict_by_a_load_is_that_of_a_slow_reference() {
    let paths = FILES.map(PathBuf::from);
    let (mut seed, mut compared, mut found_broken) = (0, BTreeMap::new(), [0, 0]);
    while compared.values().min().is_none_or(|least| *least < PROGRAMS) {
        let (before, program) = Program::random(seed);
        let trace = Arc::new(program.trace.clone());
        let mut history = History::learn(&trace, &before, &|_: &Path| true).unwrap();
        let loads = learned(&before, &trace).expect("the load tells saves apart");
        history.loads = Some(Arc::new(loads));
        for (name, _) in EMBEDDED {
            let lowered = lower(&trace, &before, &Profile::find(name).unwrap().flags).unwrap();
            let Some(expected) = expected(&lowered, &paths, &program) else { continue };
            let budget = Budget { states_max: 1_000_000, seed: 1, judged: paths.len() };
            let derived = derive_all(&lowered, &paths, &history, budget, &|| false).unwrap();
            let mut found = BTreeSet::new();
            for owing in derived.survivors.iter().flat_map(|distinct| &distinct.owing) {
                let files = owing.first.survivor(&lowered, &paths).files;
                let bytes = |(path, content)| match content {
                    Content::Bytes(bytes) => Some((path, bytes)),
                    Content::Other(_) => None,
                };
                let state: State = files.into_iter().filter_map(bytes).collect();
                if judged(&history, &state, owing.acks) {
                    found.insert(state);
                }
            }
            assert_eq!(found, expected, "{name}, seed {seed}: {:#?}", program.trace);
            found_broken[usize::from(!expected.is_empty())] += 1;
            *compared.entry(name).or_insert(0) += 1;
        }
        seed += 1;
        assert!(seed < 4 * PROGRAMS, "too few programs are small enough: {compared:?}");
    }
    // The test says something only if both happen.
    assert!(found_broken.iter().all(|count| *count > 500), "{found_broken:?}");
}
