//! Runs in parts, put together: the same as one run; what does not belong together is refused.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{crashtest, has, in_path, python, repository, run_in, targets};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A run by itself, and the same in so many parts: what each prints.
fn whole_and_merged(arguments: &[&str], shards: u32) -> (String, String) {
    let results = tempfile::tempdir().unwrap();
    let parts = results.path().join("parts");
    let single = run_in(results.path(), &[&["run", "--quiet"], arguments].concat());
    for index in 1..=shards {
        part(&parts, arguments, &format!("{index}/{shards}"));
    }
    let merged = run_in(results.path(), &["merge", "parts"]);
    assert_eq!(single.status.code(), merged.status.code(), "{}", text(&merged.stderr));
    (text(&single.stdout), text(&merged.stdout))
}

fn part(root: &Path, arguments: &[&str], shard: &str) {
    fs::create_dir_all(root).unwrap();
    let output = run_in(root, &[&["run", "--quiet", "--shard", shard], arguments].concat());
    assert!(output.status.code().is_some_and(|code| code <= 1), "{}", text(&output.stderr));
}

#[test]
fn parts_of_every_kind_of_run_are_the_run_byte_for_byte() {
    let runs: [&[&str]; 6] = [
        &["--trials", "301", "--strategy", "all"],
        &["--exhaustive", "--strategy", "unsafe,atomic"],
        &["--scenario", "errno", "--strategy", "unsafe,atomic,fsync-retry"],
        &["--scenario", "errno", "--strategy", "atomic", "--depth", "2"],
        &["--scenario", "poweroff", "--strategy", "unsafe,replace,atomic"],
        &["--scenario", "concurrent", "--strategy", "atomic,managed"],
    ];
    for run in runs {
        let (whole, merged) = whole_and_merged(&[&["--seed", "1"], run].concat(), 3);
        assert!(whole.contains('│'), "{whole}");
        assert_eq!(whole, merged, "{run:?}");
    }
}

#[test]
fn parts_of_a_programs_sweep_are_the_sweep() {
    let (true, Some(python)) = (common::can_follow(), python()) else { return };
    let program = targets("python/fsync_retry.py");
    let run = ["--seed", "1", "--scenario", "errno", "--ack", "^saved", "--env", "VERSIONS=2"];
    let run = [&run[..], &["--", &python, &program]].concat();
    let (whole, merged) = whole_and_merged(&run, 2);
    assert!(whole.contains("lost ack"), "{whole}");
    assert_eq!(whole, merged);
}

#[test]
fn what_was_found_in_a_part_is_replayed_from_the_whole() {
    let results = tempfile::tempdir().unwrap();
    let parts = results.path().join("parts");
    for shard in ["1/2", "2/2"] {
        part(&parts, &["--seed", "3", "--trials", "60", "--strategy", "unsafe"], shard);
    }
    let merged = run_in(results.path(), &["merge", "parts", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&merged.stdout).unwrap();
    assert_eq!(report["merged"], 2);
    let id = report["subjects"][0]["kept"][0]["id"].as_str().unwrap();
    let replayed = run_in(results.path(), &["replay", id]);
    assert!(replayed.status.success(), "{}", text(&replayed.stderr));
}

/// Three parts of a small run in a directory.
fn three(results: &Path) -> Vec<PathBuf> {
    let parts = results.join("parts");
    for shard in ["1/3", "2/3", "3/3"] {
        part(&parts, &["--seed", "1", "--trials", "30"], shard);
    }
    crashtest::results::runs(&parts)
}

/// What the command objects to when these are merged.
fn refused(results: &Path, runs: &[&Path]) -> String {
    let runs: Vec<_> = runs.iter().map(|run| run.to_str().unwrap()).collect();
    let output = run_in(results, &[&["merge"], &runs[..]].concat());
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stdout));
    text(&output.stderr)
}

#[test]
fn a_missing_part_is_named_and_what_there_is_can_be_had() {
    let results = tempfile::tempdir().unwrap();
    let parts = three(results.path());
    let why = refused(results.path(), &[&parts[0], &parts[2]]);
    assert!(why.contains("of 3 shards 1 is missing: 2"), "{why}");
    let two = [parts[0].to_str().unwrap(), parts[2].to_str().unwrap()];
    let partial = run_in(results.path(), &["merge", "--partial", two[0], two[1]]);
    assert_eq!(partial.status.code(), Some(130), "{}", text(&partial.stderr));
    assert!(text(&partial.stdout).contains("run the missing shards"), "{}", text(&partial.stdout));
}

#[test]
fn a_part_that_is_there_twice_or_of_another_plan_is_refused() {
    let results = tempfile::tempdir().unwrap();
    let parts = three(results.path());
    let why = refused(results.path(), &[&parts[0], &parts[1], &parts[2], &parts[1]]);
    assert!(why.contains("shard 2/3 is there twice"), "{why}");
    let other = results.path().join("other");
    part(&other, &["--seed", "2", "--trials", "30"], "2/3");
    let foreign = crashtest::results::runs(&other);
    let why = refused(results.path(), &[&parts[0], &foreign[0], &parts[2]]);
    assert!(why.contains("are not of one run: seed 1 and 2"), "{why}");
}

#[test]
fn a_part_that_was_cut_short_edited_or_is_of_another_version_is_refused() {
    let results = tempfile::tempdir().unwrap();
    let parts = three(results.path());
    let all: Vec<&Path> = parts.iter().map(PathBuf::as_path).collect();
    let log = parts[1].join("outcomes.jsonl");
    let whole = fs::read(&log).unwrap();
    fs::write(&log, &whole[..whole.len() - 40]).unwrap();
    assert!(refused(results.path(), &all).contains("are not as they were written"));
    let edited = text(&whole).replace("\"pass\"", "\"Pass\"");
    fs::write(&log, edited).unwrap();
    assert!(refused(results.path(), &all).contains("are not as they were written"));
    fs::write(&log, whole).unwrap();
    let plan = parts[1].join("plan.json");
    let said = fs::read_to_string(&plan).unwrap();
    fs::write(&plan, said.replace("\"trials\": 30", "\"trials\": 31")).unwrap();
    assert!(refused(results.path(), &all).contains("is not as it was written"));
    fs::write(&plan, said.replacen("\"schema\": 4", "\"schema\": 2", 1)).unwrap();
    assert!(refused(results.path(), &all).contains("schema version 2"));
    fs::write(&plan, said).unwrap();
    assert_eq!(run_in(results.path(), &["merge", "parts"]).status.code(), Some(0));
}

#[test]
fn a_part_that_was_interrupted_goes_on_by_the_same_command() {
    let results = tempfile::tempdir().unwrap();
    let parts = three(results.path());
    let before = fs::read(parts[0].join("outcomes.jsonl")).unwrap();
    // As a machine that lost its power leaves it: no report, and half a line.
    fs::remove_file(parts[0].join("report.json")).unwrap();
    fs::write(parts[0].join("outcomes.jsonl"), &before[..before.len() / 2]).unwrap();
    part(&results.path().join("parts"), &["--seed", "1", "--trials", "30"], "1/3");
    assert_eq!(crashtest::results::runs(&results.path().join("parts")).len(), 3);
    assert_eq!(run_in(results.path(), &["merge", "parts"]).status.code(), Some(0));
}

#[test]
fn schedulers_name_the_part_and_a_seed_must_be_given() {
    let results = tempfile::tempdir().unwrap();
    let mut command = crashtest();
    command.args(["run", "--trials", "20"]).env("CRASHTEST_RESULTS", results.path());
    command.envs([("TEST_SHARD_INDEX", "1"), ("TEST_TOTAL_SHARDS", "4")]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let why = text(&output.stderr);
    assert!(why.contains("this is shard 2/4 by TEST_SHARD_INDEX, and no seed is given"), "{why}");
    let output = command.args(["--seed", "1"]).output().unwrap();
    assert!(text(&output.stdout).contains("shard 2/4 of the run"), "{}", text(&output.stdout));
}

/// A cluster of one machine, that is ended with everything in it.
struct Cluster {
    script: PathBuf,
    directory: tempfile::TempDir,
}

impl Cluster {
    fn start() -> Option<Self> {
        let there = ["sbatch", "slurmctld", "slurmd", "munged"];
        let sbin = ["/usr/sbin", "/usr/bin"];
        let find = |name: &&str| sbin.iter().any(|place| Path::new(place).join(name).is_file());
        let root = nix::unistd::geteuid().is_root();
        if !has("slurm", root && there.iter().all(find) && in_path("bash").is_some()) {
            return None;
        }
        let script = repository().join("harness/tests/slurm/cluster.sh");
        let directory = tempfile::Builder::new().prefix("slurm").tempdir_in("/tmp").unwrap();
        let cluster = Self { script, directory };
        let up = cluster.call("up");
        assert!(up, "the cluster does not start");
        Some(cluster)
    }

    fn call(&self, what: &str) -> bool {
        let lab = self.directory.path().join("lab");
        let log = fs::File::create(self.directory.path().join(format!("{what}.log"))).unwrap();
        let mut command = Command::new("bash");
        command.arg(&self.script).arg(what).arg(lab).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log).status().unwrap().success()
    }

    fn ask(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program)
            .args(arguments)
            .env("SLURM_CONF", self.directory.path().join("lab/etc/slurm.conf"))
            .env("CRASHTEST", env!("CARGO_BIN_EXE_crashtest"))
            .env("CRASHTEST_RESULTS", self.directory.path().join("parts"))
            .current_dir(self.directory.path())
            .output()
            .unwrap();
        text(&output.stdout)
    }

    /// Waits until something holds.
    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(120);
        while !holds() {
            assert!(
                Instant::now() < end,
                "waited in vain: {what}: {}",
                self.ask("squeue", &["-r"])
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        assert!(self.call("down") || std::thread::panicking(), "the cluster does not end");
    }
}

#[test]
fn by_slurm_sixteen_parts_one_of_them_killed_and_requeued_are_the_run_byte_for_byte() {
    let Some(cluster) = Cluster::start() else { return };
    let run = ["--seed", "1", "--trials", "24000", "--strategy", "unsafe,atomic"];
    let script = repository().join("ci/slurm.sh").display().to_string();
    let submit = [&["--parsable", "--output=%a.log", &script, "--jobs", "1"], &run[..]].concat();
    let id = cluster.ask("sbatch", &submit).trim().to_owned();
    let parts = cluster.directory.path().join("parts");
    // One that has done some of its trials, and has some to do.
    let victim = || {
        let of = |run: &PathBuf| {
            let name = run.file_name()?.to_string_lossy().into_owned();
            let part = name.split("-sigkill-").nth(1)?.split("-of-").next()?.parse::<u32>().ok()?;
            let lines = fs::metadata(run.join("outcomes.jsonl")).ok()?.len();
            (lines > 0 && !run.join("report.json").is_file()).then_some((part, run.clone()))
        };
        crashtest::results::runs(&parts).iter().find_map(of)
    };
    cluster.until("a part is under way", || victim().is_some());
    let (part, directory) = victim().unwrap();
    let task = format!("{id}_{}", part - 1);
    cluster.ask("scontrol", &["requeue", &task]);
    let state = || cluster.ask("scontrol", &["-o", "show", "job", &task]);
    cluster.until("it is killed", || !state().contains("JobState=RUNNING"));
    assert!(!directory.join("report.json").is_file(), "it had ended before it was killed");
    let done = fs::read_to_string(directory.join("outcomes.jsonl")).unwrap().lines().count();
    cluster.until("it waits", || state().contains("JobState=PENDING"));
    cluster.ask("scontrol", &["update", &format!("JobId={task}"), "StartTime=now+2"]);
    cluster.until("all have ended", || cluster.ask("squeue", &["-h", "-j", &id]).trim().is_empty());
    assert!(state().contains("Restarts=1"), "{}", state());
    assert_eq!(crashtest::results::runs(&parts).len(), 16);
    let now = fs::read_to_string(directory.join("outcomes.jsonl")).unwrap().lines().count();
    assert!(done > 0 && done < now && now == 3000, "{done} and then {now}");

    let results = tempfile::tempdir().unwrap();
    let single = run_in(results.path(), &[&["run", "--quiet"], &run[..]].concat());
    let merged = run_in(results.path(), &["merge", parts.to_str().unwrap()]);
    assert_eq!(merged.status.code(), Some(0), "{}", text(&merged.stderr));
    assert_eq!(text(&single.stdout), text(&merged.stdout));
}
