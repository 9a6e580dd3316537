//! How long state files are in the versions of a run, where every run has the same lengths: what is much shorter was cut,
//! whatever bytes it holds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::history::States;
use crate::plan::PAGE_BYTES;

/// How many bytes more or fewer the numbers in a small file may take from run to run.
const DIGITS: usize = 32;
/// How many lengths are compared at most, all versions of all files together.
const LENGTHS_MAX: usize = 1_000_000;

/// From the shortest to the longest that each file is in any version, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lengths(BTreeMap<PathBuf, (usize, usize)>);

impl Lengths {
    /// Those of the files that have the same lengths in both runs, version by version.
    #[must_use]
    pub fn common(one: &[States], other: &[States]) -> Self {
        let (one, other) = (by_file(one), by_file(other));
        let same = one.into_iter().filter(|(path, lengths)| other.get(path) == Some(lengths));
        let ends = same.filter_map(|(path, lengths)| {
            let ends = (*lengths.iter().min()?, *lengths.iter().max()?);
            Some((path.clone(), ends))
        });
        Self(ends.collect())
    }

    /// Whether a file of so many bytes is so much shorter than any version that it was cut: numbers in a state take
    /// more or fewer digits from run to run, but an eighth of all bytes does not come and go with them, nor just what
    /// is missing to the end of a page. Once something has failed, only where all versions have the same length.
    #[must_use]
    pub fn is_cut_short(&self, file: &Path, length: usize, may_differ: bool) -> bool {
        let ends = self.0.get(file).filter(|(least, most)| !may_differ || least == most);
        let pages = (length as u64).is_multiple_of(PAGE_BYTES);
        let spare = |least: usize| if pages { DIGITS } else { DIGITS.max(least / 8) };
        ends.is_some_and(|(least, _)| length + spare(*least) < *least)
    }
}

/// The lengths of each file, version by version.
fn by_file(versions: &[States]) -> BTreeMap<&PathBuf, Vec<usize>> {
    let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
    if versions.iter().map(States::len).sum::<usize>() > LENGTHS_MAX {
        return all;
    }
    for (path, reference) in versions.iter().flatten() {
        all.entry(path).or_default().push(reference.bytes.len());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::History;

    #[test]
    fn a_file_is_cut_short_where_it_lacks_more_than_digits_of_what_every_run_has() {
        let file = Path::new("s");
        let of = |lengths: [usize; 2], byte: u8| {
            History::of_versions(file, lengths.map(|length| vec![byte; length]).to_vec())
        };
        let confirmed = |one: [usize; 2], other: [usize; 2]| {
            let mut history = of(one, 1);
            history.confirm(&of(other, 2));
            history
        };
        let same = confirmed([9000, 9000], [9000, 9000]);
        assert!(
            same.lengths.is_cut_short(file, 8192, false)
                && same.lengths.is_cut_short(file, 7000, true)
        );
        assert!(
            !same.lengths.is_cut_short(file, 8900, false)
                && !same.lengths.is_cut_short(file, 9000, false)
        );
        let grows = confirmed([8000, 9000], [8000, 9000]);
        assert!(
            grows.lengths.is_cut_short(file, 6000, false)
                && !grows.lengths.is_cut_short(file, 6000, true)
        );
        assert!(!grows.lengths.is_cut_short(file, 8500, false));
        assert!(!confirmed([9000, 9000], [9000, 9001]).lengths.is_cut_short(file, 10, false));
    }
}
