//! What a run leaves: `plan.json`, `outcomes.jsonl`, `report.json` and the evidence of violations.
//!
//! Whole files are written by the strategy that the tables call durable: temp file, fsync, rename,
//! fsync of the directory. The outcomes are an append-only log; a last line that was cut is
//! dropped when the run goes on.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::assemble::{Found, Unit};
use crate::error::{Context, Error, Result};
use crate::lab;
use crate::planned::Plan;
use crate::record::Record;
use crate::report::Report;
use crate::shard::Shard;
use crate::tree;

mod kept;

use self::kept::VIOLATIONS;
pub use self::kept::{Kept, find_kept, is_id, kept};

/// The version of all JSON that is kept.
pub const SCHEMA: u32 = 4;
/// Where runs are kept unless the user says otherwise.
pub const DEFAULT_ROOT: &str = "results/runs";
const PLAN: &str = "plan.json";
const OUTCOMES: &str = "outcomes.jsonl";
const UNITS: &str = "units.jsonl";
const REPORT: &str = "report.json";

/// The directory of one run.
#[derive(Clone, Debug)]
pub struct RunDirectory {
    path: PathBuf,
}

impl RunDirectory {
    /// Makes a directory below `root`, named by the time and the scenario, and by the part of the run if it is
    /// not all of it.
    pub fn create(root: &Path, scenario: &str, shard: Shard) -> Result<Self> {
        let unwritable = |error: io::Error| {
            Error::usage(format!("cannot keep results in {}: {error}", root.display()))
                .help("name a writable directory with --results, or set CRASHTEST_RESULTS")
        };
        fs::create_dir_all(root).map_err(unwritable)?;
        // Workers have other working directories.
        let root = &fs::canonicalize(root).map_err(unwritable)?;
        let now = chrono::Utc::now().format("%Y%m%dT%H%M%SZ");
        for attempt in 0..1000 {
            let suffix = if attempt == 0 { String::new() } else { format!("-{attempt}") };
            let part = match shard.is_whole() {
                true => String::new(),
                false => format!("-{}-of-{}", shard.index() + 1, shard.of()),
            };
            let path = root.join(format!("{now}-{scenario}{part}{suffix}"));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(unwritable(error)),
            }
        }
        Err(Error::internal(format!("{} is full of runs of this second", root.display())))
    }

    /// The directory of the same part of the same run, if there is one that has not come to its end.
    pub fn begun(root: &Path, plan: &Plan) -> Result<Option<Self>> {
        for path in runs(root).into_iter().rev() {
            let path = fs::canonicalize(&path).context(format_args!("find {}", path.display()))?;
            let begun = Self { path };
            // What can't be read is no part of this run.
            let same =
                begun.read_plan().is_ok_and(|p| (p.id, p.shard) == (plan.id.clone(), plan.shard));
            if same && !begun.read_report().is_ok_and(|report| report.complete) {
                return Ok(Some(begun));
            }
        }
        Ok(None)
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

    /// Where the outcomes are kept.
    #[must_use]
    pub fn outcomes(&self) -> PathBuf {
        self.path.join(OUTCOMES)
    }

    /// Keeps the plan.
    pub fn write_plan(&self, plan: &Plan) -> Result<()> {
        let seal = plan.sealed();
        write_json(&self.path.join(PLAN), &Plan { seal, ..plan.clone() })
    }

    /// Reads the plan; one that was edited is refused.
    pub fn read_plan(&self) -> Result<Plan> {
        let path = self.path.join(PLAN);
        let plan: Plan = read_json(&path)?;
        let possible = plan.subjects.iter().all(|subject| subject.sites.are_possible());
        if !possible || plan.id != plan.name() || plan.seal != plan.sealed() {
            return Err(Error::usage(format!("{} is not as it was written", path.display()))
                .help("it was edited; run the scenario again"));
        }
        Ok(plan)
    }

    /// Lets a run that has said something go on: what came of its trials must be as it was written, and what it
    /// said does not hold any more.
    pub fn go_on(&self) -> Result<()> {
        self.tidy();
        if !self.has_report() {
            return Ok(());
        }
        if self.read_report()?.checksum != self.checksum()? {
            let what =
                format!("the outcomes in {} are not as they were written", self.path.display());
            return Err(
                Error::usage(what).help("they were cut short or edited; start the run anew")
            );
        }
        let path = self.path.join(REPORT);
        fs::remove_file(&path).context(format_args!("remove {}", path.display()))
    }

    /// Removes files and directories that a killed run was about to make.
    pub fn tidy(&self) {
        let entries = |place: &Path| fs::read_dir(place).into_iter().flatten().flatten();
        let violations = self.path.join(VIOLATIONS);
        let kept = entries(&violations).map(|entry| entry.path());
        for place in kept.chain([self.path.clone(), violations.clone()]) {
            for entry in entries(&place) {
                if entry.file_name().to_string_lossy().ends_with(&format!(".{TEMPORARY}")) {
                    // What can't be removed does no harm.
                    let _ = lab::remove_tree(&entry.path());
                }
            }
        }
    }

    /// Keeps the report.
    pub fn write_report(&self, report: &Report) -> Result<()> {
        write_json(&self.path.join(REPORT), report)
    }

    /// Whether it came to an end, and said what it found.
    #[must_use]
    pub fn has_report(&self) -> bool {
        self.path.join(REPORT).is_file()
    }

    /// Reads the report.
    pub fn read_report(&self) -> Result<Report> {
        read_json(&self.path.join(REPORT))
    }

    /// A hash of all that came of trials and pieces (XXH3, 128 bits), in hexadecimal.
    pub fn checksum(&self) -> Result<String> {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for name in [OUTCOMES, UNITS] {
            let path = self.path.join(name);
            let mut file = match tree::open_named(&path) {
                Ok(file) => BufReader::with_capacity(1 << 18, file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).context(format_args!("read {}", path.display())),
            };
            io::copy(&mut file, &mut hash).context(format_args!("read {}", path.display()))?;
        }
        Ok(format!("{:032x}", hash.digest128()))
    }

    /// Opens the outcomes for appending.
    pub fn append_outcomes(&self) -> Result<File> {
        self.append(OUTCOMES)
    }

    /// The same, for many at once.
    pub fn append_all_outcomes(&self) -> Result<BufWriter<File>> {
        Ok(BufWriter::with_capacity(1 << 18, self.append_outcomes()?))
    }

    /// Opens the pieces of a run by crash states for appending.
    pub fn append_units(&self) -> Result<BufWriter<File>> {
        Ok(BufWriter::new(self.append(UNITS)?))
    }

    fn append(&self, name: &str) -> Result<File> {
        let path = self.path.join(name);
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

    /// Reads the outcomes, each with its line; a last line that was cut is left out.
    pub fn read_outcomes(&self, each: impl FnMut(Record, &[u8]) -> Result<()>) -> Result<()> {
        self.read_lines(OUTCOMES, each).map(|_| ())
    }

    /// Reads the outcomes of a run that goes on, and drops a last line that was cut.
    pub fn recall_outcomes(&self, mut each: impl FnMut(Record) -> Result<()>) -> Result<()> {
        let whole = self.read_lines(OUTCOMES, |record, _| each(record))?;
        self.shorten(OUTCOMES, whole)
    }

    /// Reads the pieces of a run by crash states, each with its line; a last line that was cut is left out.
    pub fn read_unit_lines(&self, each: impl FnMut(Unit, &[u8]) -> Result<()>) -> Result<()> {
        self.read_lines(UNITS, each).map(|_| ())
    }

    /// Reads those of a run that goes on, by their number, and drops a last line that was cut; what is not of
    /// this part of the run is refused.
    pub fn recall_units(&self, shard: Shard) -> Result<BTreeMap<u64, Found>> {
        let mut found = BTreeMap::new();
        let whole = self.read_lines(UNITS, |unit: Unit, _| {
            let n = unit.unit;
            match shard.owns(n) && found.insert(n, unit.found).is_none() {
                true => Ok(()),
                false => Err(mixed(n)),
            }
        })?;
        self.shorten(UNITS, whole)?;
        Ok(found)
    }

    fn shorten(&self, name: &str, whole: u64) -> Result<()> {
        let path = self.path.join(name);
        match File::options().write(true).open(&path) {
            Ok(file) => file.set_len(whole).context(format_args!("shorten {}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).context(format_args!("open {}", path.display())),
        }
    }

    /// Reads a log; returns how many of its bytes are whole lines.
    fn read_lines<T: DeserializeOwned>(
        &self,
        name: &str,
        mut each: impl FnMut(T, &[u8]) -> Result<()>,
    ) -> Result<u64> {
        let path = self.path.join(name);
        let file = match tree::open_named(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => {
                return Err(Error::usage(format!("cannot read {}: {error}", path.display())));
            }
        };
        let mut lines = BufReader::with_capacity(1 << 18, &file);
        let (mut line, mut number, mut whole) = (Vec::new(), 0_u64, 0_u64);
        loop {
            line.clear();
            let count = (&mut lines)
                .take(LINE_BYTES_MAX)
                .read_until(b'\n', &mut line)
                .context(format_args!("read {}", path.display()))?;
            if count as u64 == LINE_BYTES_MAX {
                return Err(Error::usage(format!(
                    "{}:{}: a line is too long",
                    path.display(),
                    number + 1
                ))
                .help("the file was changed by hand; start the run again"));
            }
            if line.last() != Some(&b'\n') {
                // The run was killed while it wrote this line, or this is the end.
                return Ok(whole);
            }
            number += 1;
            whole += count as u64;
            let one = serde_json::from_slice(&line).map_err(|error| {
                Error::usage(format!("{}:{number}: not an outcome: {error}", path.display()))
                    .help("the file was changed by hand; start the run anew")
            })?;
            each(one, &line)?;
        }
    }
}

/// A trial or a piece that is not of the part of the run that it is kept in, or is there twice.
#[must_use]
pub fn mixed(n: u64) -> Error {
    Error::usage(format!("outcome {n} is not of this plan, or is there twice"))
        .help("the results were changed by hand, or mixed; start the run anew")
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
        // Two workers may find the same violation.
        let temporary = path.with_extension(format!("json.{}.{TEMPORARY}", std::process::id()));
        let _ = fs::remove_file(&temporary);
        let mut file = io::BufWriter::new(File::create_new(&temporary)?);
        serde_json::to_writer_pretty(&mut file, value)?;
        file.write_all(b"\n")?;
        file.into_inner()?.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    };
    save().map_err(|error| unkept(path, &error))
}

/// How the name of a file or directory ends until all of it is there; what a killed run leaves is removed when it goes on.
const TEMPORARY: &str = "tmp";

/// The error of results that can't be kept.
pub fn unkept(path: &Path, error: &io::Error) -> Error {
    let run = path.ancestors().find(|path| path.join(PLAN).is_file());
    let name = run.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let cannot = Error::lacking(format!("cannot write {}: {error}", path.display()));
    match name {
        Some(name) => cannot.help(format!(
            "make space there; then `crashtest run --resume {name}` goes on with it"
        )),
        None => cannot.help("make space there, or keep results elsewhere with --results DIR"),
    }
}

/// The longest file with one JSON value that is read.
const JSON_BYTES_MAX: u64 = 1 << 30;
/// The longest line of a log that is read.
const LINE_BYTES_MAX: u64 = 256 << 20;

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = tree::read_named(path, JSON_BYTES_MAX)
        .map_err(|error| Error::usage(format!("cannot read {}: {error}", path.display())))?;
    let found = serde_json::from_slice::<Schema>(&bytes).map(|version| version.schema);
    match (serde_json::from_slice(&bytes), found) {
        (Ok(value), Ok(SCHEMA)) => Ok(value),
        (_, Ok(other)) if other != SCHEMA => {
            Err(Error::usage(format!("{} has schema version {other}", path.display()))
                .help(format!("this crashtest reads version {SCHEMA}; run the scenario again")))
        }
        (Err(error), _) | (_, Err(error)) => {
            Err(Error::usage(format!("{} is damaged: {error}", path.display()))
                .help("it was cut short or edited; run the scenario again"))
        }
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
        let run = RunDirectory::create(root.path(), "x", Shard::default()).unwrap();
        let mut log = run.append_outcomes().unwrap();
        for n in 0..3 {
            serde_json::to_writer(&log, &record(n)).unwrap();
            log.write_all(b"\n").unwrap();
        }
        log.write_all(b"{\"n\":3,\"subj").unwrap();
        drop(log);
        let mut seen = Vec::new();
        let mut see = |record: Record| {
            seen.push(record.n);
            Ok(())
        };
        run.recall_outcomes(&mut see).unwrap();
        run.append_outcomes().unwrap().write_all(b"").unwrap();
        let mut again = Vec::new();
        run.recall_outcomes(|record| {
            again.push(record.n);
            Ok(())
        })
        .unwrap();
        assert_eq!((seen, again), (vec![0, 1, 2], vec![0, 1, 2]));
    }

    #[test]
    fn an_edited_log_is_refused_with_its_line() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDirectory::create(root.path(), "x", Shard::default()).unwrap();
        run.append_outcomes().unwrap().write_all(b"{}\n").unwrap();
        let error = run.recall_outcomes(|_| Ok(())).unwrap_err();
        assert!(error.message.contains("outcomes.jsonl:1: not an outcome"), "{error}");
    }

    #[test]
    fn two_runs_of_one_second_have_two_directories() {
        let root = tempfile::tempdir().unwrap();
        let one = RunDirectory::create(root.path(), "x", Shard::default()).unwrap();
        let two = RunDirectory::create(root.path(), "x", Shard::default()).unwrap();
        assert_ne!(one.path(), two.path());
    }
}
