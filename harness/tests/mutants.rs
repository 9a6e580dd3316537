//! Files that crashtest reads, changed at random: none of them makes it panic, fail itself, hang, take all memory,
//! or write to a file outside.
//!
//! `cargo test` tries each kind of file for a second; `CRASHTEST_MUTATE_SECONDS=600 cargo test -p crashtest
//! --test mutants` does so for ten minutes each (not with `--release`, where a sum that overflows is no panic). The
//! seed is `CRASHTEST_MUTATE_SEED`, 1 if that is not set; `CRASHTEST_MUTATE_KINDS=plan,report` tries these kinds only.

mod common;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use common::{crashtest, repository, run_in};
use crashtest::planned::Plan;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use xxhash_rust::xxh3::Xxh3;

/// What is put in place of numbers and words.
const NUMBERS: [&str; 12] = [
    "0",
    "1",
    "-1",
    "255",
    "4096",
    "65536",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "1e308",
    "0.5",
];
const WORDS: [&str; 12] = [
    "",
    "..",
    "../../../../../../../../canary",
    "/",
    "/dev/zero",
    "a/../../canary",
    "state.json",
    "\\u0000",
    "ext4",
    "null",
    "kill",
    "\\u001b[31m",
];

/// Changes a text at some places.
fn mutated(text: &[u8], random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = text.to_vec();
    for _ in 0..random.random_range(1..4) {
        if bytes.is_empty() {
            break;
        }
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..8) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes.truncate(at),
            2 => drop(bytes.drain(at..(at + random.random_range(1..40)).min(bytes.len()))),
            3 => {
                let end = (at + random.random_range(1..200)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            4 => swap_lines(&mut bytes, random),
            5 | 6 => replace(&mut bytes, at, u8::is_ascii_digit, &NUMBERS, random),
            _ => replace(&mut bytes, at, is_word, &WORDS, random),
        }
    }
    bytes
}

fn is_word(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-/".contains(byte)
}

/// Puts something else in place of the next run of such bytes.
fn replace(
    bytes: &mut Vec<u8>,
    at: usize,
    is: impl Fn(&u8) -> bool,
    others: &[&str],
    random: &mut ChaCha8Rng,
) {
    let Some(start) = bytes[at..].iter().position(&is).map(|n| at + n) else { return };
    let end = bytes[start..].iter().position(|byte| !is(byte)).map_or(bytes.len(), |n| start + n);
    let other = others[random.random_range(0..others.len())].bytes();
    bytes.splice(start..end, other);
}

fn swap_lines(bytes: &mut Vec<u8>, random: &mut ChaCha8Rng) {
    let mut lines: Vec<Vec<u8>> =
        bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let (one, other) = (random.random_range(0..lines.len()), random.random_range(0..lines.len()));
    lines.swap(one, other);
    *bytes = lines.concat();
}

/// Makes the last line of a recording fit the others again.
fn resealed_recording(bytes: &[u8]) -> Vec<u8> {
    let mut lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    lines.pop();
    let mut check = Xxh3::new();
    lines.iter().for_each(|line| check.update(line));
    let end =
        format!("{{\"end\":{{\"lines\":{},\"hash\":\"{:016x}\"}}}}\n", lines.len(), check.digest());
    [lines.concat(), end.into_bytes()].concat()
}

/// Makes a plan that was changed one that seems to be as it was written, if it still is a plan. A run that goes on
/// with it has no more trials than it had.
fn resealed_plan(bytes: &[u8]) -> Vec<u8> {
    let Ok(mut plan) = serde_json::from_slice::<Plan>(bytes) else { return bytes.to_vec() };
    let fewer = |trials: &mut Option<u64>| *trials = trials.map(|n| n.min(TRIALS));
    fewer(&mut plan.asked.trials);
    plan.subjects.iter_mut().for_each(|subject| fewer(&mut subject.trials));
    plan.id = plan.name();
    plan.seal = plan.sealed();
    serde_json::to_vec(&plan).unwrap()
}

/// One kind of file, and the commands that read it.
struct Kind<'a> {
    name: &'a str,
    /// The file that is changed.
    file: PathBuf,
    /// What makes it whole again.
    seal: fn(&[u8]) -> Vec<u8>,
    /// The run that the file is of, if a command changes it; it is put back for each command.
    run: Option<&'a Path>,
    commands: Vec<Vec<String>>,
}

/// How many trials the runs have.
const TRIALS: u64 = 20;

/// Files of a run, as they were.
struct Copy<'a> {
    run: &'a Path,
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl<'a> Copy<'a> {
    fn of(run: &'a Path) -> Self {
        let entries = fs::read_dir(run).unwrap().flatten().map(|entry| entry.path());
        let files = entries.filter(|path| path.is_file());
        Self { run, files: files.map(|path| (path.clone(), fs::read(&path).unwrap())).collect() }
    }

    fn put_back(&self) {
        for entry in fs::read_dir(self.run).unwrap().flatten().map(|entry| entry.path()) {
            if entry.is_file() {
                fs::remove_file(entry).unwrap();
            }
        }
        self.files.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    }
}

fn as_it_is(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

const LIMIT: Duration = Duration::from_secs(60);
const MEMORY_BYTES: u64 = 4 << 30;

fn run(place: &Path, arguments: &[String]) -> (Output, Duration) {
    let started = Instant::now();
    let mut command = crashtest();
    command
        .args(arguments)
        .env("CRASHTEST_RESULTS", place.join("runs"))
        // What a replay keeps.
        .env("TMPDIR", place)
        .current_dir(place)
        .stdin(Stdio::null());
    // SAFETY: setrlimit is a system call, and allowed between fork and exec.
    unsafe {
        command.pre_exec(|| {
            use nix::sys::resource::{Resource, setrlimit};
            setrlimit(Resource::RLIMIT_AS, MEMORY_BYTES, MEMORY_BYTES)?;
            setrlimit(Resource::RLIMIT_CPU, 50, 50)?;
            Ok(())
        });
    }
    (command.output().unwrap(), started.elapsed())
}

fn mutate(kind: &Kind<'_>, place: &Path, canary: &Path) {
    let number = |name: &str, usual: u64| {
        std::env::var(name).ok().map_or(usual, |text| text.parse().expect("a number"))
    };
    let seconds = number("CRASHTEST_MUTATE_SECONDS", 1);
    let mut random = ChaCha8Rng::seed_from_u64(number("CRASHTEST_MUTATE_SEED", 1));
    let whole = fs::read(&kind.file).unwrap();
    let copy = kind.run.map(Copy::of);
    let (started, mut tried) = (Instant::now(), 0_u64);
    while started.elapsed() < Duration::from_secs(seconds) || tried < 5 {
        let changed = (kind.seal)(&mutated(&whole, &mut random));
        for command in &kind.commands {
            if let Some(copy) = &copy {
                copy.put_back();
                // The report of a run that has come to an end says what its other files must hold.
                if command.iter().any(|word| word == "--resume") {
                    fs::remove_file(copy.run.join("report.json")).unwrap();
                }
            }
            fs::write(&kind.file, &changed).unwrap();
            let (output, took) = run(place, command);
            tried += 1;
            let said = String::from_utf8_lossy(&output.stderr);
            let case = || {
                let kept = std::env::temp_dir().join(format!("crashtest-mutant-{}", kind.name));
                fs::write(&kept, &changed).unwrap();
                format!(
                    "{} {command:?}, see {}: {:?}: {said}",
                    kind.name,
                    kept.display(),
                    output.status
                )
            };
            assert!(matches!(output.status.code(), Some(0..=5)), "{}", case());
            assert!(!said.contains("panicked") && !said.contains("itself failed"), "{}", case());
            assert!(took < LIMIT, "{took:?}: {}", case());
            assert_eq!(fs::read_to_string(canary).unwrap(), "alive", "{}", case());
        }
    }
    copy.iter().for_each(Copy::put_back);
    fs::write(&kind.file, &whole).unwrap();
    println!("{}: {tried} commands", kind.name);
}

#[test]
fn no_file_that_was_changed_makes_crashtest_fail_or_do_harm() {
    if !common::can_follow() {
        return;
    }
    let outer = tempfile::tempdir().unwrap();
    let (place, canary) = (outer.path().join("place"), outer.path().join("canary"));
    fs::create_dir(&place).unwrap();
    fs::write(&canary, "alive").unwrap();
    let at = |name: &str| place.join(name);
    fs::copy(repository().join("scenarios/sigkill.toml"), at("scenario.toml")).unwrap();
    fs::copy(repository().join("scenarios/profiles/ext4.toml"), at("profile.toml")).unwrap();
    fs::write(at("schema.json"), r#"{"type": "object", "required": ["n"], "properties": {"n": {"type": "integer", "minimum": 0}}}"#)
        .unwrap();
    let saver = "echo '{\"n\":1}' >s.tmp && mv s.tmp s.json && echo saved";
    let record =
        ["record", "-q", "-o", "recording.jsonl", "--ack", "^saved", "--", "/bin/sh", "-c", saver];
    assert!(run_in(&place, &record).status.success());
    // Runs with violations, to be read, gone on with, merged and replayed.
    let results = at("runs");
    fs::create_dir(&results).unwrap();
    let make = |options: &str| {
        let before: Vec<_> =
            fs::read_dir(&results).unwrap().flatten().map(|one| one.path()).collect();
        run(&place, &words(options));
        let all = fs::read_dir(&results).unwrap().flatten().map(|one| one.path());
        all.into_iter().find(|path| !before.contains(path)).unwrap()
    };
    let drawn = make(&format!("run -q --seed 1 --trials {TRIALS} --strategy unsafe"));
    let derived = make("run -q --seed 1 --scenario poweroff --strategy unsafe --profile ext4");
    let part = make("run -q --seed 1 --trials 20 --strategy unsafe --shard 1/2");
    make("run -q --seed 1 --trials 20 --strategy unsafe --shard 2/2");
    let name = |run: &Path| run.file_name().unwrap().to_string_lossy().into_owned();
    let violations = fs::read_dir(drawn.join("violations")).unwrap().flatten();
    let violation = violations.map(|one| one.path()).next().unwrap();
    let other = fs::read_dir(&results).unwrap().flatten().map(|one| name(&one.path()));
    let parts: Vec<_> = other.filter(|run| run.contains("-of-2")).collect();
    let merge = format!(
        "merge --partial --results merged {}",
        parts.iter().map(|part| format!("runs/{part}")).collect::<Vec<_>>().join(" ")
    );
    let kinds = [
        Kind {
            name: "scenario",
            file: at("scenario.toml"),
            seal: as_it_is,
            run: None,
            commands: vec![words(
                "run -q --scenario ./scenario.toml --trials 2 --results scratch --strategy atomic",
            )],
        },
        Kind {
            name: "profile",
            file: at("profile.toml"),
            seal: as_it_is,
            run: None,
            commands: vec![words(
                "run -q --scenario poweroff --profile ./profile.toml --states-max 500 --results scratch --strategy atomic",
            )],
        },
        Kind {
            name: "schema",
            file: at("schema.json"),
            seal: as_it_is,
            run: None,
            commands: vec![
                [
                    words("run -q --trials 2 --schema ./schema.json --results scratch --"),
                    vec!["/bin/sh".to_owned(), "-c".to_owned(), saver.to_owned()],
                ]
                .concat(),
            ],
        },
        Kind {
            name: "recording",
            file: at("recording.jsonl"),
            seal: resealed_recording,
            run: None,
            commands: vec![
                words("timeline recording.jsonl"),
                words(
                    "run -q --scenario poweroff --recording recording.jsonl --states-max 500 --results scratch",
                ),
                words("run -q --exhaustive --recording recording.jsonl --results scratch"),
            ],
        },
        Kind {
            name: "plan",
            file: drawn.join("plan.json"),
            seal: resealed_plan,
            run: Some(&drawn),
            commands: vec![
                words(&format!("report {}", name(&drawn))),
                words(&format!("run -q --resume {}", name(&drawn))),
            ],
        },
        Kind {
            name: "outcomes",
            file: drawn.join("outcomes.jsonl"),
            seal: as_it_is,
            run: Some(&drawn),
            commands: vec![
                words(&format!("report {} --html page.html", name(&drawn))),
                words(&format!("run -q --resume {}", name(&drawn))),
            ],
        },
        Kind {
            name: "report",
            file: drawn.join("report.json"),
            seal: as_it_is,
            run: None,
            commands: vec![
                words(&format!("report {}", name(&drawn))),
                words(&format!("compare runs/{}/report.json {}", name(&drawn), name(&derived))),
            ],
        },
        Kind {
            name: "units",
            file: derived.join("units.jsonl"),
            seal: as_it_is,
            run: Some(&derived),
            commands: vec![
                words(&format!("report {} --junit junit.xml", name(&derived))),
                words(&format!("run -q --resume {}", name(&derived))),
            ],
        },
        Kind {
            name: "part",
            file: part.join("outcomes.jsonl"),
            seal: as_it_is,
            run: None,
            commands: vec![words(&merge)],
        },
        Kind {
            name: "violation",
            file: violation.join("violation.json"),
            seal: as_it_is,
            run: None,
            commands: vec![
                words(&format!("replay {}", name(&violation))),
                words("list violations"),
            ],
        },
    ];
    let only = std::env::var("CRASHTEST_MUTATE_KINDS").ok();
    let asked = |kind: &&Kind<'_>| {
        only.as_ref().is_none_or(|only| only.split(',').any(|name| name == kind.name))
    };
    for kind in kinds.iter().filter(asked) {
        mutate(kind, &place, &canary);
    }
}
