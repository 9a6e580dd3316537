//! Runs that are broken off at random moments, in every scenario, as root and as an ordinary user: nothing is left
//! behind, and what goes on afterwards comes to the same table as a run that was left alone.
//!
//! `cargo test` tries a few; `CRASHTEST_ITERATIONS=1000 cargo test -p crashtest --release --test campaign` is the
//! campaign. Its seed is `CRASHTEST_CAMPAIGN_SEED`, 1 if that is not set.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{crashtest, has, left_behind, targets};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, geteuid};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

/// What is broken off: options, and whether only root can run it.
const RUNS: [(&[&str], bool); 13] = [
    (&["--scenario", "sigkill", "--trials", "3000", "--strategy", "unsafe,atomic"], false),
    (&["--scenario", "sigkill", "--exhaustive", "--strategy", "unsafe,durable"], false),
    (&["--scenario", "sigkill", "--timing", "--trials", "300", "--strategy", "atomic"], false),
    (&["--scenario", "errno", "--strategy", "unsafe,durable"], false),
    (&["--scenario", "shortwrite", "--strategy", "atomic"], false),
    (&["--scenario", "enospc", "--strategy", "atomic"], false),
    (&["--scenario", "poweroff", "--strategy", "unsafe,atomic,durable"], false),
    (&["--scenario", "corrupt", "--strategy", "managed", "--trials", "3000"], false),
    (&["--scenario", "concurrent", "--strategy", "atomic"], false),
    (&["--scenario", "disconnect", "--strategy", "atomic"], false),
    (&["--scenario", "sigkill", "--trials", "150", "PROGRAM"], false),
    (&["--scenario", "errno", "PROGRAM"], false),
    (&["--scenario", "poweroff-disk", "--fs", "ext4", "--strategy", "atomic"], true),
];

/// How a run is broken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    /// A signal to the command.
    Command(Signal),
    /// SIGKILL to one of its processes, whichever.
    Any,
    /// A signal to its process group, as a terminal sends it.
    Group(Signal),
}

const BLOWS: [Blow; 7] = [
    Blow::Command(Signal::SIGKILL),
    Blow::Command(Signal::SIGTERM),
    Blow::Command(Signal::SIGINT),
    Blow::Command(Signal::SIGHUP),
    Blow::Any,
    Blow::Group(Signal::SIGKILL),
    Blow::Group(Signal::SIGINT),
];

struct Campaign {
    seed: u64,
    /// The program that is tried, and may be read by everybody.
    program: String,
    /// The tables of runs that were left alone.
    whole: Mutex<BTreeMap<String, Value>>,
}

/// One iteration, fully determined but for the moment.
#[derive(Clone, Debug)]
struct Case {
    options: Vec<String>,
    blow: Blow,
    after: Duration,
    as_root: bool,
    namespaces: bool,
}

/// Whom ordinary runs belong to.
const NOBODY: u32 = 65534;

impl Campaign {
    fn case(&self, number: u64) -> Case {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed << 32 | number);
        let root = geteuid().is_root();
        let as_root = root && random.random_range(0..2) == 0;
        let able: Vec<_> = RUNS.iter().filter(|(_, for_root)| as_root || !for_root).collect();
        let (options, _) = able[random.random_range(0..able.len())];
        let mut words: Vec<String> = Vec::new();
        for word in *options {
            match *word {
                "PROGRAM" => words.extend(["--ack", "^saved", "--"].map(str::to_owned)),
                word => words.push(word.to_owned()),
            }
        }
        if options.contains(&"PROGRAM") {
            words.push(self.program.clone());
        }
        // Most are broken off early, where processes are just being started.
        let micros = match random.random_range(0..3) {
            0 => random.random_range(0..40_000),
            1 => random.random_range(0..300_000),
            _ => random.random_range(0..1_500_000),
        };
        Case {
            options: words,
            blow: BLOWS[random.random_range(0..BLOWS.len())],
            after: Duration::from_micros(micros),
            as_root,
            namespaces: random.random_range(0..4) > 0,
        }
    }

    fn start(&self, case: &Case, words: &[String], place: &Path, mark: &str) -> Child {
        let mut command = crashtest();
        command
            .arg("run")
            .args(["--json", "--dir"])
            .arg(place.join("trials"))
            .args(words)
            .env("CRASHTEST_RESULTS", place.join("results"))
            .env("MARK", mark)
            .env("HOME", place)
            .current_dir(place)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        if !case.namespaces {
            command.env("CRASHTEST_NAMESPACES", "off");
        }
        if geteuid().is_root() && !case.as_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.spawn().expect("the command starts")
    }

    /// The table of the same run, left alone.
    fn whole(&self, case: &Case) -> Value {
        // Root may read what an ordinary user may not.
        let key = format!("{:?} {}", case.options, case.as_root);
        if let Some(known) = self.whole.lock().unwrap().get(&key) {
            return known.clone();
        }
        let place = Place::new(case);
        let words = [&["--seed".to_owned(), "7".to_owned()][..], &case.options].concat();
        let child = self.start(case, &words, place.directory.path(), "crashtest-whole");
        let output = child.wait_with_output().unwrap();
        let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("{case:?}: {error}: {}", String::from_utf8_lossy(&output.stderr))
        });
        let table = table(&report);
        self.whole.lock().unwrap().insert(key, table.clone());
        table
    }

    /// Breaks a run off; returns what is wrong, if anything is.
    fn one(&self, number: u64) -> Result<(), String> {
        let case = self.case(number);
        let place = Place::new(&case);
        let path = place.directory.path();
        let mark = format!("crashtest-campaign-{}-{number}-", std::process::id());
        let words = [&["--seed".to_owned(), "7".to_owned()][..], &case.options].concat();
        let child = self.start(&case, &words, path, &mark);
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        std::thread::sleep(case.after);
        match case.blow {
            // It may have ended since.
            Blow::Command(signal) => {
                let _ = kill(pid, signal);
            }
            Blow::Group(signal) => {
                let _ = killpg(pid, signal);
            }
            Blow::Any => {
                let all = common::marked(&mark);
                let mut random = ChaCha8Rng::seed_from_u64(number);
                if !all.is_empty() {
                    let _ = kill(all[random.next_u32() as usize % all.len()], Signal::SIGKILL);
                }
            }
        }
        let struck = Instant::now();
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let trouble = |what: String| Err(format!("{what}: {case:?}: {:?} {said}", output.status));
        if struck.elapsed() > Duration::from_secs(30) {
            return trouble(format!("it took {:?} to end", struck.elapsed()));
        }
        if said.contains("panicked") || said.contains("crashtest itself failed") {
            return trouble("it failed itself".to_owned());
        }
        if let Some(left) = stays(path, &mark) {
            return trouble(format!("{left:?} are left"));
        }
        self.go_on(&case, path, &mark)
    }

    /// What was kept can be read, and going on with it comes to the same table.
    fn go_on(&self, case: &Case, path: &Path, mark: &str) -> Result<(), String> {
        let runs = fs::read_dir(path.join("results")).into_iter().flatten().flatten();
        let names: Vec<_> = runs
            .filter(|run| run.path().join("plan.json").is_file())
            .map(|run| run.file_name())
            .collect();
        let Some(name) = names.first() else { return Ok(()) };
        let name = name.to_string_lossy().into_owned();
        let child = self.start(case, &["--resume".to_owned(), name.clone()], path, mark);
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        let report: Value = serde_json::from_slice(&output.stdout).map_err(|error| {
            format!("--resume: {error}: {case:?}: {}", String::from_utf8_lossy(&output.stderr))
        })?;
        if let Some(left) = stays(path, mark) {
            return Err(format!("after --resume {left:?} are left: {case:?}"));
        }
        let temporary = walk(&path.join("results")).into_iter().find(|file| file.ends_with(".tmp"));
        if let Some(file) = temporary {
            return Err(format!("{file} is left in the results: {case:?}"));
        }
        // A kill after a random time, and a real disk, are never quite the same again.
        let repeats =
            !case.options.iter().any(|word| word == "--timing" || word == "poweroff-disk");
        // Where the blow fell on the program itself, one trial says that it died of something else.
        let subjects = report["subjects"].as_array().into_iter().flatten();
        let astray = |row: &Value| row["tally"]["inconclusive"]["died-otherwise"].as_u64();
        let astray: u64 = subjects.filter_map(astray).sum();
        let on_program = case.blow == Blow::Any && astray == 1;
        if repeats && !on_program && table(&report) != self.whole(case) {
            return Err(format!("the table is another: {case:?}: {report:#}"));
        }
        Ok(())
    }
}

/// What stays behind, even after a while: a janitor may be at work.
fn stays(path: &Path, mark: &str) -> Option<Vec<String>> {
    let started = Instant::now();
    loop {
        let left = left_behind(mark, &path.join("trials"));
        if left.is_empty() {
            return None;
        }
        if started.elapsed() > Duration::from_secs(30) {
            return Some(left);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A directory for one iteration, which belongs to who runs it.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new(case: &Case) -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        for name in ["trials", "results"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        if geteuid().is_root() && !case.as_root {
            for path in [
                directory.path().to_owned(),
                directory.path().join("trials"),
                directory.path().join("results"),
            ] {
                std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        Self { directory }
    }
}

fn walk(directory: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.path().is_dir() {
            true => all.extend(walk(&entry.path())),
            false => all.push(entry.path().display().to_string()),
        }
    }
    all
}

/// What two runs of the same trials have in common.
fn table(report: &Value) -> Value {
    let rows = report["subjects"].as_array().into_iter().flatten();
    let cells = |row: &Value| {
        let cells = row["cells"].as_array().into_iter().flatten();
        cells.map(|cell| serde_json::json!([cell["profile"], cell["tally"]])).collect::<Value>()
    };
    rows.map(|row| serde_json::json!([row["name"], row["tally"], cells(row)])).collect()
}

/// A program that saves soundly, where everybody can run it.
fn program(place: &Path) -> Option<String> {
    let compiler = common::in_path("cc")?;
    let program = place.join("saver");
    let status = Command::new(compiler)
        .args(["-O2", "-pthread", "-o"])
        .arg(&program)
        .arg(targets("c/hostile.c"))
        .status()
        .ok()?;
    status.success().then(|| format!("{}", program.display()))
}

#[test]
fn a_run_that_is_broken_off_leaves_nothing_and_goes_on_as_if_it_had_not_been() {
    use std::os::unix::fs::PermissionsExt;
    if !common::can_follow() {
        return;
    }
    let tools = tempfile::tempdir().unwrap();
    fs::set_permissions(tools.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = program(tools.path());
    if !has("cc", program.is_some()) {
        return;
    }
    let number = |name: &str, usual: u64| {
        std::env::var(name).ok().map_or(usual, |text| text.parse().expect("a number"))
    };
    let iterations = number("CRASHTEST_ITERATIONS", common::usually(12, 60));
    let seed = number("CRASHTEST_CAMPAIGN_SEED", 1);
    let campaign = Campaign { seed, program: program.unwrap_or_default(), whole: Mutex::default() };
    let (next, troubles) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= iterations {
                        return;
                    }
                    if let Err(trouble) = campaign.one(number) {
                        println!("iteration {number}: {trouble}");
                        troubles.lock().unwrap().push(trouble);
                    }
                }
            });
        }
    });
    let troubles = troubles.into_inner().unwrap();
    println!("{iterations} iterations with seed {seed}, {} troubles", troubles.len());
    assert!(troubles.is_empty(), "{} of {iterations}: {}", troubles.len(), troubles.join("\n"));
}
