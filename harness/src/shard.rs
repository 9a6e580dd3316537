//! Parts of a run, for many machines: which trials are whose.
//!
//! Nobody hands out work: each part takes every nth trial by its number, which follows from the plan alone.
//! So parts are even, do not overlap, and together are the run that one machine would make.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// One of so many parts of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(try_from = "Written")]
pub struct Shard {
    /// Which one, from 0.
    index: u32,
    /// Of how many.
    of: u32,
}

/// A part as it is written down, which may have been edited.
#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Written {
    /// Which one, from 0.
    index: u32,
    /// Of how many.
    of: u32,
}

impl TryFrom<Written> for Shard {
    type Error = String;

    fn try_from(Written { index, of }: Written) -> std::result::Result<Self, String> {
        Self::new(index, of).ok_or_else(|| format!("there is no shard {index} of {of}"))
    }
}

/// The most parts of a run.
pub const SHARDS_MAX: u32 = 100_000;

impl Default for Shard {
    fn default() -> Self {
        Self { index: 0, of: 1 }
    }
}

impl Shard {
    /// The part at `index`, from 0, of so many; none if there is no such part.
    #[must_use]
    pub fn new(index: u32, of: u32) -> Option<Self> {
        (index < of && of <= SHARDS_MAX).then_some(Self { index, of })
    }

    /// Of how many parts this is one.
    #[must_use]
    pub fn of(self) -> u32 {
        self.of
    }

    /// Its place among them, from 0.
    #[must_use]
    pub fn index(self) -> u32 {
        self.index
    }

    /// Whether it is all there is.
    #[must_use]
    pub fn is_whole(self) -> bool {
        self.of == 1
    }

    /// The first number from `from` on that is this part's.
    #[must_use]
    pub fn next_from(self, from: u64) -> u64 {
        let (index, of) = (u64::from(self.index), u64::from(self.of));
        from + (index + of - from % of) % of
    }

    /// Whether a number is this part's.
    #[must_use]
    pub fn owns(self, n: u64) -> bool {
        n % u64::from(self.of) == u64::from(self.index)
    }
}

/// As people count: the first of three is 1/3.
impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index + 1, self.of)
    }
}

impl FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::usage(format!("`{text}` is no shard"))
                .help("write I/N, such as 1/16 for the first of sixteen; they are counted from 1")
        };
        let (index, of) = text.split_once('/').ok_or_else(wrong)?;
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| wrong());
        let (index, of) = (number(index)?, number(of)?);
        index.checked_sub(1).and_then(|index| Self::new(index, of)).ok_or_else(wrong)
    }
}

/// Where a part is named, and which one it is.
pub type Named = (String, Shard);

/// Says of how many parts this is one, where a scheduler does not.
const SHARDS: &str = "CRASHTEST_SHARDS";

/// What the environment says, if it says that this is a part of a run. `get` reads a variable of it.
///
/// `CRASHTEST_SHARD` has `I/N`. `TEST_SHARD_INDEX` and `TEST_TOTAL_SHARDS` are Bazel's, the others those
/// of a job array of Slurm and of an indexed job of Kubernetes, of which the latter does not tell how many
/// there are: `CRASHTEST_SHARDS` does. That also tells one task of an array, which runs again by itself, of
/// how many it was: its number is then counted from 0.
pub fn from_environment(get: impl Fn(&str) -> Option<String>) -> Result<Option<Named>> {
    if let Some(text) = get("CRASHTEST_SHARD") {
        return Ok(Some(("CRASHTEST_SHARD".to_owned(), text.parse()?)));
    }
    let schedulers = [
        ("TEST_SHARD_INDEX", None, "TEST_TOTAL_SHARDS"),
        ("SLURM_ARRAY_TASK_ID", Some("SLURM_ARRAY_TASK_MIN"), "SLURM_ARRAY_TASK_COUNT"),
        ("JOB_COMPLETION_INDEX", None, SHARDS),
    ];
    for (index_name, first_name, count_name) in schedulers {
        let Some(index) = get(index_name) else { continue };
        let wrong = |what: String| {
            Error::usage(what).help(format!(
                "{index_name} says that this is one of several jobs: give --shard I/N, or --shard 1/1 for a \
                 run of its own"
            ))
        };
        let number = |name: &str, text: &str| {
            let wrong = |_| wrong(format!("{name} is `{text}`, which is no number"));
            text.trim().parse::<u32>().map_err(wrong)
        };
        let said = get(SHARDS).map(|count| (SHARDS, count));
        let (count_name, count) = said
            .or_else(|| Some((count_name, get(count_name)?)))
            .ok_or_else(|| wrong(format!("{count_name} is not set")))?;
        let (index, count) = (number(index_name, &index)?, number(count_name, &count)?);
        let of_array = |name: &str, otherwise| match get(name) {
            Some(text) if first_name.is_some() && count_name != SHARDS => number(name, &text),
            _ => Ok(otherwise),
        };
        let first = of_array(first_name.unwrap_or_default(), 0)?;
        let step = of_array("SLURM_ARRAY_TASK_STEP", 1)?.max(1);
        if count == 1 && first > 0 {
            return Err(wrong(format!("{index_name} is {index} in an array of one task")).help(
                "if this task was one of several, set CRASHTEST_SHARDS to how many; else give --shard 1/1",
            ));
        }
        let shard = index.checked_sub(first).and_then(|past| Shard::new(past / step, count));
        let what = format!("{index_name} is {index}, but there are {count} shards by {count_name}");
        return Ok(Some((index_name.to_owned(), shard.ok_or_else(|| wrong(what))?)));
    }
    Ok(None)
}

/// What a run is told besides.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// Whether its seed is given.
    pub seed: bool,
    /// Whether it is a sweep that ends after so many trials.
    pub cut_short: bool,
    /// Whether it strikes after a random time.
    pub timed: bool,
}

/// Refuses what can't be done in parts.
pub fn check((name, shard): &Named, told: Told) -> Result<Shard> {
    if !shard.is_whole() && !told.seed {
        return Err(Error::usage(format!("this is shard {shard} by {name}, and no seed is given"))
            .help(
                "all shards of a run need the same: give --seed N; --shard 1/1 is a run of its own",
            ));
    }
    if !shard.is_whole() && told.cut_short {
        return Err(Error::usage("a sweep that is cut short can't be shared out")
            .help("leave out --trials: the shards of a sweep share all that there is"));
    }
    if !shard.is_whole() && told.timed {
        return Err(Error::usage("--timing can't be shared out")
            .help("how long a run takes is another on each machine: run each with --shard 1/1"));
    }
    Ok(*shard)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(variables: &[(&str, &str)]) -> Result<Option<String>> {
        let get = |name: &str| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        };
        Ok(from_environment(get)?.map(|(_, shard)| shard.to_string()))
    }

    #[test]
    fn every_number_has_one_owner_and_parts_are_even() {
        for of in [1, 2, 3, 16] {
            let shards: Vec<_> = (0..of).filter_map(|index| Shard::new(index, of)).collect();
            assert_eq!(shards.len(), of as usize);
            for n in 0..100 {
                assert_eq!(shards.iter().filter(|shard| shard.owns(n)).count(), 1);
            }
            for shard in shards {
                let owned = (0..1000).filter(|n| shard.owns(*n)).count();
                assert!(owned.abs_diff(1000 / of as usize) <= 1);
                let next = |from| (from..).find(|n| shard.owns(*n)).unwrap();
                assert!((0..50).all(|from| shard.next_from(from) == next(from)));
            }
        }
    }

    #[test]
    fn a_shard_is_written_as_people_count() {
        assert_eq!("1/16".parse::<Shard>().unwrap(), Shard { index: 0, of: 16 });
        assert_eq!("16/16".parse::<Shard>().unwrap().to_string(), "16/16");
        for wrong in ["", "0/3", "4/3", "1", "1/0", "-1/3", "a/b", "1/2/3", "1/4000000000"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn schedulers_tell_which_part_this_is() {
        assert_eq!(told(&[]).unwrap(), None);
        let bazel = [("TEST_SHARD_INDEX", "2"), ("TEST_TOTAL_SHARDS", "5")];
        assert_eq!(told(&bazel).unwrap().as_deref(), Some("3/5"));
        let slurm = [
            ("SLURM_ARRAY_TASK_ID", "10"),
            ("SLURM_ARRAY_TASK_COUNT", "4"),
            ("SLURM_ARRAY_TASK_MIN", "1"),
            ("SLURM_ARRAY_TASK_STEP", "3"),
        ];
        assert_eq!(told(&slurm).unwrap().as_deref(), Some("4/4"));
        let from_0 = [("SLURM_ARRAY_TASK_ID", "0"), ("SLURM_ARRAY_TASK_COUNT", "4")];
        assert_eq!(told(&from_0).unwrap().as_deref(), Some("1/4"));
        let kubernetes = [("JOB_COMPLETION_INDEX", "3"), ("CRASHTEST_SHARDS", "4")];
        assert_eq!(told(&kubernetes).unwrap().as_deref(), Some("4/4"));
        let all: Vec<_> = [("CRASHTEST_SHARD", "7/8")].into_iter().chain(bazel).collect();
        assert_eq!(told(&all).unwrap().as_deref(), Some("7/8"));
    }

    #[test]
    fn a_task_that_runs_again_by_itself_is_no_run_of_its_own() {
        let alone = [
            ("SLURM_ARRAY_TASK_ID", "3"),
            ("SLURM_ARRAY_TASK_COUNT", "1"),
            ("SLURM_ARRAY_TASK_MIN", "3"),
        ];
        let why = told(&alone).unwrap_err();
        assert!(why.to_string().contains("set CRASHTEST_SHARDS"), "{why}");
        let of: Vec<_> = alone.into_iter().chain([("CRASHTEST_SHARDS", "16")]).collect();
        assert_eq!(told(&of).unwrap().as_deref(), Some("4/16"));
    }

    #[test]
    fn a_part_that_was_edited_is_none() {
        assert!(serde_json::from_str::<Shard>(r#"{"index": 0, "of": 0}"#).is_err());
        assert!(serde_json::from_str::<Shard>(r#"{"index": 2, "of": 2}"#).is_err());
        assert!(serde_json::from_str::<Shard>(r#"{"index": 1, "of": 2}"#).is_ok());
    }

    #[test]
    fn what_makes_no_shard_is_an_error_and_not_a_whole_run() {
        let why = |variables: &[(&str, &str)]| told(variables).unwrap_err().to_string();
        assert!(why(&[("JOB_COMPLETION_INDEX", "3")]).contains("CRASHTEST_SHARDS is not set"));
        let past = [("TEST_SHARD_INDEX", "5"), ("TEST_TOTAL_SHARDS", "5")];
        assert!(why(&past).contains("--shard 1/1"));
        let word = [("SLURM_ARRAY_TASK_ID", "x"), ("SLURM_ARRAY_TASK_COUNT", "4")];
        assert!(why(&word).contains("no number"));
    }
}
