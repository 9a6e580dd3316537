//! The points of a map: where trials struck, and what came of them. Packed, a million of them are a few hundred KiB
//! to a few MiB.

use std::collections::BTreeMap;
use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::DeflateEncoder;
use serde::Serialize;

use crate::error::{Context, Result};
use crate::exhaustive::Stretch;
use crate::fault::{Place, Point};
use crate::op::OpIndex;
use crate::plan::Sites;
use crate::record::{Brief, Record};
use crate::report::place::{Axis, Line};
use crate::report::power::Cell;

/// How many ops are named along a map.
const OPS_MAX: usize = 20_000;

/// What came of the trials of one subject, for its map.
pub struct Points<'a> {
    pub(super) line: Line<'a>,
    pub(super) outcomes: Vec<String>,
    /// Each place and outcome, by what the place is counted in.
    all: BTreeMap<Axis, Vec<Dot>>,
    /// Where the trials were whose violations are kept.
    kept: BTreeMap<String, (Axis, u64)>,
    /// Whether these are derived states, and not trials.
    pub(super) derived: bool,
}

/// A part of a map, in which places are counted in one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Section {
    what: &'static str,
    unit: &'static str,
    begin: u64,
    end: u64,
}

/// A place, an outcome, and for how many trials or states it stands.
type Dot = (u64, u8, u32);

/// A map as the page's script has it.
#[derive(Debug, Serialize)]
pub(super) struct Map {
    sections: Vec<Section>,
    end: u64,
    /// For each op the place of its call and of its path in their lists, where it begins, and its length.
    ops: Vec<(usize, usize, u64, u64)>,
    /// How many ops there are in all.
    ops_count: usize,
    calls: Vec<&'static str>,
    paths: Vec<String>,
    outcomes: Vec<String>,
    counts: Vec<u64>,
    count: usize,
    bytes: String,
}

impl<'a> Points<'a> {
    /// None yet, of a subject with these sites.
    #[must_use]
    pub fn new(sites: &'a Sites) -> Self {
        Self {
            line: Line::new(sites),
            outcomes: vec!["passed".to_owned()],
            all: BTreeMap::new(),
            kept: BTreeMap::new(),
            derived: false,
        }
    }

    /// Adds derived states. Trials are then only these once more, and not added.
    #[must_use]
    pub fn with_derived(mut self, stretches: &[Stretch]) -> Self {
        for stretch in stretches {
            let code = self.code(stretch.broken.map_or("passed", |kind| kind.name()));
            for place in stretch.places() {
                let (axis, at) = self.line.at(&place, 0);
                self.all.entry(axis).or_default().push((at, code, 1));
            }
        }
        self.derived = !stretches.is_empty();
        self
    }

    /// Adds one. What did not strike has no place.
    pub fn add(&mut self, record: &Record) {
        let name = match &record.verdict {
            Brief::Pass => "passed",
            Brief::Violated(kinds) => kinds.first().map_or("passed", |kind| kind.name()),
            Brief::Inconclusive(_) if !record.struck => return,
            Brief::Inconclusive(why) => why.name(),
        };
        let (axis, at) = self.line.at(&record.at, record.n);
        if let Some(id) = &record.evidence {
            self.kept.insert(id.clone(), (axis, at));
        }
        if !self.derived {
            let code = self.code(name);
            self.all.entry(axis).or_default().push((at, code, 1));
        }
    }

    /// Adds crash states, where the power goes in them.
    #[must_use]
    pub(super) fn with_cells(mut self, cells: &[Cell]) -> Self {
        if !cells.is_empty() {
            self.line = self.line.even();
        }
        for cell in cells {
            for (broken, at, states) in cell.spread.all() {
                let code = self.code(broken.map_or("passed", |kind| kind.name()));
                let (axis, at) = match cell.is_by_ops() {
                    true => self.line.at(&Place::Op(OpIndex(at), Point::Before), 0),
                    false => (Axis::Acks, at as u64),
                };
                let dots = self.all.entry(axis).or_default();
                dots.push((at, code, u32::try_from(states).unwrap_or(u32::MAX)));
            }
        }
        self
    }

    fn code(&mut self, name: &str) -> u8 {
        let code = self.outcomes.iter().position(|known| known == name).unwrap_or_else(|| {
            self.outcomes.push(name.to_owned());
            self.outcomes.len() - 1
        });
        u8::try_from(code).unwrap_or(u8::MAX)
    }

    /// Where a kept violation is on the map, with so many acks before it.
    pub(super) fn x(&self, id: &str, place: &Place, acks: u64) -> Option<u64> {
        let (axis, at) = match (self.kept.get(id), place) {
            (Some(known), _) => *known,
            (None, Place::Moment) if self.all.contains_key(&Axis::Acks) => (Axis::Acks, acks),
            (None, _) => self.line.at(place, 0),
        };
        let mut begin = 0;
        for section in self.all.keys() {
            if *section == axis {
                return Some(begin + at);
            }
            begin += self.length(*section);
        }
        None
    }

    fn length(&self, axis: Axis) -> u64 {
        let last = self.all.get(&axis).and_then(|all| all.iter().map(|dot| dot.0).max());
        let last = last.unwrap_or(0);
        match axis {
            Axis::Run => last.max(self.line.begins().1) + 1,
            Axis::Free(_) | Axis::State | Axis::Acks | Axis::Moments => last + 1,
        }
    }

    fn sections(&self) -> Vec<Section> {
        let mut begin = 0;
        let section = |axis: &Axis| {
            let end = begin + self.length(*axis);
            let (what, unit) = match axis {
                Axis::Run => ("run", ""),
                Axis::Free(free) => ("free", free.unit()),
                Axis::State => ("state", "bytes"),
                Axis::Acks => ("acks", ""),
                Axis::Moments => ("moments", ""),
            };
            let section = Section { what, unit, begin, end };
            begin = end;
            section
        };
        self.all.keys().map(section).collect()
    }

    /// How many have each outcome, in the order of the lanes.
    pub(super) fn counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.outcomes.len()];
        for (_, code, trials) in self.all.values().flatten() {
            if let Some(count) = counts.get_mut(usize::from(*code)) {
                *count += u64::from(*trials);
            }
        }
        counts
    }

    /// The map, if there is anything on it.
    pub(super) fn map(&mut self) -> Result<Option<Map>> {
        if self.all.is_empty() {
            return Ok(None);
        }
        let (counts, sections) = (self.counts(), self.sections());
        let (count, bytes) = self.pack(&sections)?;
        // Where no place is an op, none is named.
        let (ops_count, (ops, calls, paths)) = match self.all.contains_key(&Axis::Run) {
            true => (self.line.sites().sites.len(), ops(&self.line)),
            false => Default::default(),
        };
        Ok(Some(Map {
            end: sections.last().map_or(1, |section| section.end),
            sections,
            ops,
            ops_count,
            calls,
            paths,
            outcomes: self.outcomes.clone(),
            counts,
            count,
            bytes,
        }))
    }

    /// In order of their places: how far each is from the one before, its outcome, and for how many trials it
    /// stands; numbers in groups of seven bits, the lowest first.
    fn pack(&mut self, sections: &[Section]) -> Result<(usize, String)> {
        let mut packer = DeflateEncoder::new(Vec::new(), Compression::default());
        let (mut count, mut last, mut plain) = (0, 0, Vec::with_capacity(1 << 16));
        for (all, section) in self.all.values_mut().zip(sections) {
            all.sort_unstable();
            for same in all.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
                let (at, code) = (section.begin + same[0].0, same[0].1);
                number(at - last, &mut plain);
                plain.push(code);
                number(same.iter().map(|dot| u64::from(dot.2)).sum(), &mut plain);
                (count, last) = (count + 1, at);
                if plain.len() > (1 << 16) - 32 {
                    packer.write_all(&plain).context("pack points")?;
                    plain.clear();
                }
            }
        }
        packer.write_all(&plain).context("pack points")?;
        Ok((count, STANDARD.encode(packer.finish().context("pack points")?)))
    }
}

fn number(mut value: u64, out: &mut Vec<u8>) {
    while value >= 128 {
        out.push((value & 127) as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The ops of a run, and the calls and paths in them, each once.
#[expect(clippy::type_complexity, reason = "three lists that belong together")]
fn ops(line: &Line<'_>) -> (Vec<(usize, usize, u64, u64)>, Vec<&'static str>, Vec<String>) {
    let (mut calls, mut paths) = (Vec::new(), BTreeMap::new());
    let (begins, _) = line.begins();
    let sites = line.sites().sites.iter().zip(begins).take(OPS_MAX);
    let ops = sites.enumerate().map(|(op, (site, begin))| {
        let name = site.call.name();
        let call = calls.iter().position(|known| *known == name).unwrap_or_else(|| {
            calls.push(name);
            calls.len() - 1
        });
        let count = paths.len();
        let path = *paths.entry(super::text::visible(&site.path)).or_insert(count);
        (call, path, *begin, line.length(op))
    });
    let ops = ops.collect();
    let mut paths: Vec<_> = paths.into_iter().map(|(path, n)| (n, path)).collect();
    paths.sort_unstable();
    (ops, calls, paths.into_iter().map(|(_, path)| path).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Nature;
    use crate::file_system;
    use crate::report::power::OnDisk;
    use crate::tally::Tally;
    use crate::verdict::ViolationKind;

    #[test]
    fn numbers_are_packed_in_groups_of_seven_bits() {
        let mut out = Vec::new();
        number(300, &mut out);
        number(0, &mut out);
        assert_eq!(out, [0xac, 0x02, 0]);
    }

    fn record(at: Place, n: u64, evidence: Option<&str>) -> Record {
        Record {
            n,
            subject: 0,
            at,
            struck: true,
            met: None,
            nature: Nature::Natural,
            acks: 0,
            verdict: Brief::Violated(vec![ViolationKind::Torn]),
            leftovers: false,
            evidence: evidence.map(str::to_owned),
        }
    }

    #[test]
    fn what_is_counted_otherwise_has_a_part_of_the_map_of_its_own() {
        let sites = Sites { sites: Vec::new(), duration_us: 0 };
        let mut points = Points::new(&sites);
        let free = |axis, free| Place::Free(axis, free, None);
        points.add(&record(free(file_system::Axis::Space, 9), 0, None));
        points.add(&record(free(file_system::Axis::Inodes, 2), 1, None));
        let sections = points.sections();
        let parts: Vec<_> = sections.iter().map(|s| (s.unit, s.begin, s.end)).collect();
        assert_eq!(parts, [("blocks", 0, 10), ("inodes", 10, 13)]);
        assert_eq!(points.x("none", &free(file_system::Axis::Inodes, 2), 0), Some(12));
    }

    #[test]
    fn crash_states_are_counted_at_their_ops_or_at_their_acks() {
        let sites = Sites::of_lengths(&[0, 4000, 0]);
        let cell = |disk| -> Cell {
            serde_json::from_value(serde_json::json!({
                "profile": "ext4", "states": 9, "distinct": 2, "exhaustive": true, "findings": [],
                "tally": Tally::default(), "expectation": { "breaks": [], "keeps": [] }, "disk": disk,
                "spread": { "passed": { "3": 5 }, "broken": { "torn": { "0": 1, "3": 3 } } },
            }))
            .unwrap()
        };
        let mut followed = Points::new(&sites).with_cells(&[cell(None)]);
        assert_eq!(followed.counts(), [5, 4]);
        let all: Vec<_> = followed.all[&Axis::Run].iter().map(|dot| (dot.0, dot.2)).collect();
        // Each op has a place before it and one after it, whatever it writes; the end of the run is after the last.
        assert_eq!(all, [(6, 5), (0, 1), (6, 3)]);
        assert_eq!(followed.x("none", &Place::Op(OpIndex(1), Point::Before), 0), Some(2));
        assert_eq!(followed.map().unwrap().unwrap().sections[0].what, "run");
        let served = OnDisk { acks: Some(7), ..OnDisk::default() };
        let served = Points::new(&sites).with_cells(&[cell(Some(served))]);
        let sections = served.sections();
        assert_eq!((sections[0].what, sections[0].end), ("acks", 4));
        assert_eq!(served.x("none", &Place::Moment, 2), Some(2));
    }

    #[test]
    fn a_kept_violation_lies_where_its_trial_was() {
        let sites = Sites { sites: Vec::new(), duration_us: 0 };
        let mut points = Points::new(&sites);
        points.add(&record(Place::Moment, 5, None));
        points.add(&record(Place::Moment, 7, Some("abc")));
        assert_eq!(points.x("abc", &Place::Moment, 0), Some(7));
    }
}
