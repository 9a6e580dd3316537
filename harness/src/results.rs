//! What a run leaves: `plan.json`, `outcomes.jsonl`, `report.json` and the evidence of violations.
//!
//! Whole files are written by the strategy that the tables call durable: temp file, fsync, rename,
//! fsync of the directory. The outcomes are an append-only log; a last line that was cut is
//! dropped when the run goes on.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::disk::plan::Cutting;
use crate::error::{Context, Error, Result};
use crate::fault::FaultKind;
use crate::fault::Injection;
use crate::outcome::{Content, Exit, Outcome, Step};
use crate::plan::{Granularity, Seed, Sites};
use crate::power::explain::Explanation;
use crate::poweroff::Power;
use crate::record::Record;
use crate::scenario::Scenario;
use crate::subject::Subject;
use crate::sweep::Reach;
use crate::trial::Trial;
use crate::verdict::{Promise, Violation};

/// The version of all JSON that is kept.
pub const SCHEMA: u32 = 2;
/// Where runs are kept unless the user says otherwise.
pub const DEFAULT_ROOT: &str = "results/runs";
const PLAN: &str = "plan.json";
const OUTCOMES: &str = "outcomes.jsonl";
const REPORT: &str = "report.json";
const VIOLATIONS: &str = "violations";
const VIOLATION: &str = "violation.json";
const SURVIVOR: &str = "survivor";
const WHOLE: &str = "directory";

/// Everything that determines a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The version of crashtest.
    pub crashtest: String,
    /// The command line.
    pub command_line: Vec<String>,
    /// The kernel, as `uname` has it.
    pub kernel: String,
    /// The seed.
    pub seed: Seed,
    /// How many trials of each subject; none for a whole sweep.
    pub trials: Option<u64>,
    /// How far a sweep goes.
    pub reach: Reach,
    /// What a loss of power is derived for.
    #[serde(default)]
    pub power: Power,
    /// What a power cut below real file systems looks at.
    #[serde(default)]
    pub disk: Cutting,
    /// How many derived states are confirmed, if all are derived.
    #[serde(default)]
    pub exhaustive: Option<u64>,
    /// The kind of fault.
    pub fault: FaultKind,
    /// Where faults may strike.
    pub granularity: Granularity,
    /// The scenario.
    pub scenario: Scenario,
    /// The promises that are judged.
    pub promises: BTreeSet<Promise>,
    /// The subjects.
    pub subjects: Vec<PlannedSubject>,
}

/// One subject of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedSubject {
    /// Its name in tables.
    pub name: String,
    /// What it is.
    pub subject: Subject,
    /// Where faults can strike.
    pub sites: Sites,
}

/// A violation that is kept, and all that is needed to replay it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The trial's id.
    pub id: String,
    /// The trial.
    pub trial: Trial,
    /// The subject.
    pub subject: Subject,
    /// On what small disk it was, if it was on one.
    pub reach: Reach,
    /// The promises that were judged.
    pub promises: BTreeSet<Promise>,
    /// What the fault met.
    pub injection: Injection,
    /// How many acks the world saw.
    pub acks: u64,
    /// What was broken.
    pub violations: Vec<Violation>,
    /// How the subject ended.
    pub exit: Exit,
    /// What it did from the strike on.
    pub steps: Vec<Step>,
    /// What the subject called, as a hash, if what is left follows from that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls: Option<u64>,
    /// What drew what was drawn.
    #[serde(default)]
    pub seed: u64,
    /// Why it broke, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explanation>,
}

/// The directory of one run.
#[derive(Clone, Debug)]
pub struct RunDirectory {
    path: PathBuf,
}

impl RunDirectory {
    /// Makes a directory below `root`, named by the time and the scenario.
    pub fn create(root: &Path, scenario: &str) -> Result<Self> {
        let unwritable = |error: io::Error| {
            Error::lacking(format!("cannot keep results in {}: {error}", root.display()))
                .help("name a writable directory with --results, or set CRASHTEST_RESULTS")
        };
        fs::create_dir_all(root).map_err(unwritable)?;
        // Workers have other working directories.
        let root = &fs::canonicalize(root).map_err(unwritable)?;
        let now = chrono::Utc::now().format("%Y%m%dT%H%M%SZ");
        for attempt in 0..1000 {
            let suffix = if attempt == 0 { String::new() } else { format!("-{attempt}") };
            let path = root.join(format!("{now}-{scenario}{suffix}"));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(unwritable(error)),
            }
        }
        Err(Error::internal(format!("{} is full of runs of this second", root.display())))
    }

    /// Opens the directory of an earlier run: `name` below `root`, or a path.
    pub fn open(root: &Path, name: &str) -> Result<Self> {
        let candidates = [root.join(name), PathBuf::from(name)];
        match candidates.into_iter().find(|path| path.join(PLAN).is_file()) {
            Some(path) => Ok(Self {
                path: fs::canonicalize(&path).context(format_args!("find {}", path.display()))?,
            }),
            None => Err(Error::usage(format!("there is no run `{name}` in {}", root.display()))
                .help("`crashtest list runs` names those that are kept")),
        }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the plan.
    pub fn write_plan(&self, plan: &Plan) -> Result<()> {
        write_json(&self.path.join(PLAN), plan)
    }

    /// Reads the plan.
    pub fn read_plan(&self) -> Result<Plan> {
        read_json(&self.path.join(PLAN))
    }

    /// Keeps the report.
    pub fn write_report(&self, report: &impl Serialize) -> Result<()> {
        write_json(&self.path.join(REPORT), report)
    }

    /// Opens the outcomes for appending.
    pub fn append_outcomes(&self) -> Result<File> {
        let path = self.path.join(OUTCOMES);
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .context(format_args!("open {}", path.display()))?;
        // Two that go on with the same run would write into each other's lines.
        file.try_lock().map_err(|error| {
            Error::usage(format!("cannot lock {}: {error}", path.display()))
                .help("is this run still going on?")
        })?;
        Ok(file)
    }

    /// Reads the outcomes of an interrupted run and drops a last line that was cut.
    pub fn read_outcomes(&self, mut each: impl FnMut(Record)) -> Result<()> {
        let path = self.path.join(OUTCOMES);
        let file = match File::options().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).context(format_args!("open {}", path.display())),
        };
        let mut lines = BufReader::new(&file);
        let (mut line, mut number, mut whole) = (Vec::new(), 0_u64, 0_u64);
        loop {
            line.clear();
            let count = lines
                .read_until(b'\n', &mut line)
                .context(format_args!("read {}", path.display()))?;
            if line.last() != Some(&b'\n') {
                // The run was killed while it wrote this line, or this is the end.
                return file.set_len(whole).context(format_args!("shorten {}", path.display()));
            }
            number += 1;
            whole += count as u64;
            let record = serde_json::from_slice(&line).map_err(|error| {
                Error::usage(format!("{}:{number}: not an outcome: {error}", path.display()))
                    .help("the file was changed by hand; start the run anew")
            })?;
            each(record);
        }
    }

    /// Where the whole directory of a kept violation is kept, if it is.
    #[must_use]
    pub fn whole_directory(&self, id: &str) -> PathBuf {
        self.path.join(VIOLATIONS).join(id).join(WHOLE)
    }

    /// Keeps a violation and what survived.
    pub fn keep(&self, kept: &Kept, outcome: &Outcome) -> Result<()> {
        let directory = self.path.join(VIOLATIONS).join(&kept.id);
        let survivor = directory.join(SURVIVOR);
        fs::create_dir_all(&survivor).context(format_args!("make {}", survivor.display()))?;
        for (file, content) in &outcome.survivor.files {
            let Content::Bytes(bytes) = content else { continue };
            // Absolute paths, of a sandboxed subject, are kept below the directory too.
            let path = survivor.join(file.strip_prefix("/").unwrap_or(file));
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).context(format_args!("make {}", parent.display()))?;
            }
            fs::write(&path, bytes).context(format_args!("write {}", path.display()))?;
        }
        write_json(&directory.join(VIOLATION), kept)
    }
}

/// Finds a kept violation by its id, or by the beginning of it; and the directory of what
/// survived.
pub fn find_kept(root: &Path, id: &str) -> Result<(Kept, PathBuf)> {
    // Whoever reads the survivor may work in another directory by then.
    let root = &fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    let mut found: Vec<PathBuf> = Vec::new();
    for run in runs(root) {
        for entry in fs::read_dir(run.join(VIOLATIONS)).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with(id) && entry.path().join(VIOLATION).is_file() {
                found.push(entry.path());
            }
        }
    }
    let names: BTreeSet<_> = found.iter().filter_map(|path| path.file_name()).collect();
    match (names.len(), found.pop()) {
        (1, Some(newest)) => Ok((read_json(&newest.join(VIOLATION))?, newest.join(SURVIVOR))),
        (0, _) | (_, None) => {
            Err(Error::usage(format!("no violation `{id}` is kept in {}", root.display()))
                .help("the table of a run prints the ids; --results names another place"))
        }
        (several, _) => {
            Err(Error::usage(format!("`{id}` is the beginning of {several} ids; give more of it")))
        }
    }
}

/// The violations that a run kept, those that can be read.
#[must_use]
pub fn kept(run: &Path) -> Vec<Kept> {
    let entries = fs::read_dir(run.join(VIOLATIONS)).into_iter().flatten().flatten();
    entries.filter_map(|entry| read_json(&entry.path().join(VIOLATION)).ok()).collect()
}

/// The directories of all kept runs, the oldest first.
#[must_use]
pub fn runs(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let mut runs: Vec<_> =
        entries.map(|entry| entry.path()).filter(|path| path.join(PLAN).is_file()).collect();
    runs.sort();
    runs
}

/// Replaces a file durably.
fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let save = || -> io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("."));
        let mut temp = tempfile::NamedTempFile::new_in(directory)?;
        serde_json::to_writer_pretty(io::BufWriter::new(&mut temp), value)?;
        temp.write_all(b"\n")?;
        temp.as_file().sync_all()?;
        temp.persist(path)?;
        File::open(directory)?.sync_all()
    };
    save().context(format_args!("write {}", path.display()))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).context(format_args!("read {}", path.display()))?;
    let found = serde_json::from_slice::<Schema>(&bytes).map(|version| version.schema);
    match (serde_json::from_slice(&bytes), found) {
        (Ok(value), Ok(SCHEMA)) => Ok(value),
        (_, Ok(other)) if other != SCHEMA => {
            Err(Error::usage(format!("{} has schema version {other}", path.display()))
                .help(format!("this crashtest reads version {SCHEMA}; run the scenario again")))
        }
        (Err(error), _) => Err(Error::usage(format!("{} is damaged: {error}", path.display()))),
        (_, Err(error)) => Err(Error::usage(format!("{} is damaged: {error}", path.display()))),
        (Ok(_), Ok(_)) => Err(Error::internal("a schema version was read in two ways")),
    }
}

#[derive(Deserialize)]
struct Schema {
    schema: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Nature;
    use crate::record::Brief;

    fn record(n: u64) -> Record {
        Record {
            n,
            subject: 0,
            at: crate::fault::Place::Moment,
            struck: true,
            met: None,
            nature: Nature::Natural,
            acks: 0,
            verdict: Brief::Pass,
            leftovers: false,
            evidence: None,
        }
    }

    #[test]
    fn a_cut_last_line_is_dropped_and_the_log_goes_on_after_it() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDirectory::create(root.path(), "x").unwrap();
        let mut log = run.append_outcomes().unwrap();
        for n in 0..3 {
            serde_json::to_writer(&log, &record(n)).unwrap();
            log.write_all(b"\n").unwrap();
        }
        log.write_all(b"{\"n\":3,\"subj").unwrap();
        drop(log);
        let mut seen = Vec::new();
        run.read_outcomes(|record| seen.push(record.n)).unwrap();
        run.append_outcomes().unwrap().write_all(b"").unwrap();
        let mut again = Vec::new();
        run.read_outcomes(|record| again.push(record.n)).unwrap();
        assert_eq!((seen, again), (vec![0, 1, 2], vec![0, 1, 2]));
    }

    #[test]
    fn an_edited_log_is_refused_with_its_line() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDirectory::create(root.path(), "x").unwrap();
        run.append_outcomes().unwrap().write_all(b"{}\n").unwrap();
        let error = run.read_outcomes(|_| {}).unwrap_err();
        assert!(error.message.contains("outcomes.jsonl:1: not an outcome"), "{error}");
    }

    #[test]
    fn two_runs_of_one_second_have_two_directories() {
        let root = tempfile::tempdir().unwrap();
        let one = RunDirectory::create(root.path(), "x").unwrap();
        let two = RunDirectory::create(root.path(), "x").unwrap();
        assert_ne!(one.path(), two.path());
    }
}
