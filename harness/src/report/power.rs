//! What the crash states of a recording have shown: a row per subject, a column per profile.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::heat;
use super::layout::{Grid, Screen};
use super::table::{called, place};
use super::{Report, Row};
use crate::power::explain::Explanation;
use crate::power::spread::Spread;
use crate::scenario::{Expectation, Surprise};
use crate::tally::Tally;
use crate::verdict::{Promise, ViolationKind};

/// What was found of one subject on one profile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Cell {
    /// The profile.
    pub profile: String,
    /// How many crash states were looked at.
    pub states: u64,
    /// How many distinct survivors they leave.
    pub distinct: usize,
    /// To how many of them a load or a check was asked, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown: Option<usize>,
    /// Whether these are all crash states that there are.
    pub exhaustive: bool,
    /// What the model does not know, if that made all of it worthless.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_measured: Option<String>,
    /// The verdicts, counted by crash state.
    pub tally: Tally,
    /// Where along the run these states come.
    #[serde(default, skip_serializing_if = "Spread::is_empty")]
    pub spread: Spread,
    /// Why promises break, each cause once.
    pub findings: Vec<Finding>,
    /// What was expected.
    pub expectation: Expectation,
    /// How a real disk was looked at, if one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<OnDisk>,
}

/// How the images of a real disk were looked at, and what the model says of that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OnDisk {
    /// How many recordings were made.
    pub recordings: u64,
    /// How many acks were given, if the subject was not followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acks: Option<u64>,
    /// Whether write-back was brought about at some op boundaries only.
    pub boundaries_sampled: bool,
    /// Whether some recordings had more moments between two writes than images that were looked at.
    pub prefixes_sampled: bool,
    /// The profile with which survivors were compared, if there is one.
    pub profile: Option<String>,
    /// Whether that one has too many crash states, or knows too little, to compare all recordings with it.
    pub not_compared: bool,
    /// How many different survivors it allows.
    pub allowed: usize,
    /// How many of these were never seen.
    pub not_seen: usize,
    /// Survivors that it does not allow, in words, and how many there are.
    pub outside: Troubles,
    /// Images that could not be mounted.
    pub refused: Troubles,
    /// Images with which something took too long.
    pub stuck: Troubles,
    /// Images at which the tool of the file system complains.
    pub harmed: Troubles,
}

/// Something that went wrong with images.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Troubles {
    /// With how many.
    pub count: u64,
    /// What it was with the first.
    pub first: Option<String>,
}

impl Troubles {
    /// Adds one.
    pub fn add(&mut self, what: String) {
        self.count += 1;
        self.first.get_or_insert(what);
    }

    /// Adds what went wrong elsewhere.
    pub fn merge(&mut self, other: Self) {
        self.count += other.count;
        self.first = self.first.take().or(other.first);
    }
}

/// A cause, and its first example.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Finding {
    /// What broke.
    pub kind: ViolationKind,
    /// What breaks for the same cause, by crash states.
    pub kinds: BTreeMap<ViolationKind, u64>,
    /// The damage, in words.
    pub detail: String,
    /// How many crash states have this cause.
    pub states: u64,
    /// How many distinct survivors these leave.
    pub survivors: usize,
    /// Why, and what would have helped.
    pub explanation: Explanation,
    /// With which the example is replayed.
    pub id: String,
}

/// How many causes of one subject are printed.
const PRINTED_MAX: usize = 6;

/// Renders it for people.
pub fn render(report: &Report, screen: Screen, text: &mut String) {
    // Writing to a string can't fail.
    *text += &grid(report).render(screen.width);
    for row in &report.subjects {
        for note in &row.notes {
            let _ = writeln!(text, "note: {}: {note}", row.name);
        }
        for cell in &row.cells {
            if let Some(shown) = cell.shown.filter(|shown| *shown < cell.distinct) {
                let _ = writeln!(
                    text,
                    "note: {} on {}: load and checks were asked about {shown} of {} distinct survivors; \
                     --asked-max N asks about more",
                    row.name, cell.profile, cell.distinct
                );
            }
            if let Some(disk) = &cell.disk {
                on_disk(&row.name, cell, disk, text);
            }
            if let Some(why) = &cell.not_measured {
                let _ = writeln!(
                    text,
                    "not measured: {} on {}: the model does not know {why}",
                    row.name, cell.profile
                );
            }
        }
    }
    *text += &heat::of_rows(report, screen);
    for row in &report.subjects {
        causes(report, row, text);
    }
}

/// What a real disk has shown besides.
fn on_disk(name: &str, cell: &Cell, disk: &OnDisk, text: &mut String) {
    let fs = &cell.profile;
    if let Some(acks) = disk.acks {
        let _ = writeln!(
            text,
            "disk: {name} on {fs}: {} images of random moments of {} recordings, in which {acks} acks were \
             given",
            cell.states, disk.recordings
        );
    } else {
        compared(name, cell, disk, text);
    }
    troubles(name, cell, disk, text);
}

/// What was seen, and what the model allows.
fn compared(name: &str, cell: &Cell, disk: &OnDisk, text: &mut String) {
    let fs = &cell.profile;
    let _ = write!(
        text,
        "disk: {name} on {fs}: {} images of {} recordings{}{} leave {} different survivors",
        cell.states,
        disk.recordings,
        if disk.boundaries_sampled { " (at some op boundaries only)" } else { "" },
        if disk.prefixes_sampled { " (between some writes only)" } else { "" },
        cell.distinct
    );
    let _ = match &disk.profile {
        Some(profile) if disk.not_seen > 0 => writeln!(
            text,
            "; {} of the {} that the profile {profile} has are allowed, not seen",
            disk.not_seen, disk.allowed
        ),
        Some(profile) => writeln!(text, "; the profile {profile} has {}", disk.allowed),
        None if disk.not_compared => {
            writeln!(text, "; they have too many crash states to be compared with the profile")
        }
        None => writeln!(text, "; there is no profile to compare them with"),
    };
}

/// What went wrong with images.
fn troubles(name: &str, cell: &Cell, disk: &OnDisk, text: &mut String) {
    let fs = &cell.profile;
    let troubles = [
        (&disk.outside, "MODEL WRONG", "survivors are not those of the profile"),
        (&disk.refused, "warning", "images could not be mounted or read"),
        (&disk.stuck, "warning", "images took too long"),
        (&disk.harmed, "warning", "images were not whole after they had been mounted"),
    ];
    for (trouble, word, what) in troubles {
        if let Some(first) = &trouble.first {
            let _ = writeln!(
                text,
                "{word}: {name} on {fs}: {} {what}; the first: {first}",
                trouble.count
            );
        }
    }
}

fn grid(report: &Report) -> Grid {
    let first = report.subjects.first();
    let profiles = first.into_iter().flat_map(|row| &row.cells).map(|cell| cell.profile.clone());
    let header =
        std::iter::once("strategy".to_owned()).chain(profiles).chain(["expected".to_owned()]);
    let row = |row: &Row| {
        let cells = row.cells.iter().map(cell_text);
        std::iter::once(row.name.clone()).chain(cells).chain([expected(report, row)]).collect()
    };
    let rows = report.subjects.iter().map(row).collect();
    Grid { header: header.collect(), rows, numbers: 0..0 }
}

/// Violations over states, what broke, and whether these are all states.
fn cell_text(cell: &Cell) -> String {
    if cell.not_measured.is_some() {
        return "not measured".to_owned();
    }
    let unclear: u64 = cell.tally.inconclusive.values().sum();
    let mut text = format!("{} of {}", cell.tally.failed(), cell.states.saturating_sub(unclear));
    if unclear > 0 {
        let _ = write!(text, "\n{unclear} not judged");
    }
    for kind in cell.tally.violated.keys() {
        let _ = write!(text, "\n{}", kind.name());
    }
    text += match (cell.exhaustive, &cell.disk) {
        (true, _) => "\nexhaustive",
        (false, None) => "\nsampled",
        // Of a real disk the images that are looked at are always some.
        (false, Some(_)) => "",
    };
    text
}

fn expected(report: &Report, row: &Row) -> String {
    let surprises: Vec<_> = row
        .cells
        .iter()
        .flat_map(|cell| {
            let found = cell.surprises(&report.promises);
            found.into_iter().map(|surprise| match surprise {
                Surprise::Broken(promise) => {
                    format!("NO: {} broken on {}", promise.name(), cell.profile)
                }
                Surprise::Vanished(promise) => {
                    format!("NO: {} held on {}", promise.name(), cell.profile)
                }
            })
        })
        .collect();
    if row.cells.iter().any(|cell| cell.not_measured.is_some()) {
        return "NOT MEASURED".to_owned();
    }
    if surprises.is_empty() && (row.is_unclear() || row.has_gaps()) {
        return "UNCLEAR: not all\nwas asked about".to_owned();
    }
    if surprises.is_empty() { "yes".to_owned() } else { surprises.join("\n") }
}

impl Cell {
    /// Whether its crash states come after so many ops, and not after so many acks.
    #[must_use]
    pub fn is_by_ops(&self) -> bool {
        self.disk.as_ref().is_none_or(|disk| disk.acks.is_none())
    }

    /// Where this differs from what was expected.
    #[must_use]
    pub fn surprises(&self, promises: &std::collections::BTreeSet<Promise>) -> Vec<Surprise> {
        if self.not_measured.is_some() {
            return Vec::new();
        }
        self.expectation.surprises(&self.tally, promises)
    }
}

/// Why a subject breaks its promises: each cause once, with the profiles on which it does.
fn causes(report: &Report, row: &Row, text: &mut String) {
    let mut folded: BTreeMap<(Promise, &str), Vec<(&Cell, &Finding)>> = BTreeMap::new();
    for cell in &row.cells {
        for finding in &cell.findings {
            let key = (finding.kind.promise(), finding.explanation.cause.as_str());
            folded.entry(key).or_default().push((cell, finding));
        }
    }
    let mut folded: Vec<_> = folded.into_values().collect();
    folded.sort_by_key(|found| std::cmp::Reverse(found.len()));
    for found in folded.iter().take(PRINTED_MAX) {
        let Some((_, first)) = found.first() else { continue };
        let profiles: Vec<_> = found.iter().map(|(cell, _)| cell.profile.as_str()).collect();
        let mut kinds: BTreeMap<ViolationKind, u64> = BTreeMap::new();
        for (kind, states) in found.iter().flat_map(|(_, finding)| &finding.kinds) {
            *kinds.entry(*kind).or_default() += states;
        }
        let kinds: Vec<_> =
            kinds.iter().map(|(kind, states)| format!("{} {states}", kind.name())).collect();
        let all = if profiles.len() == row.cells.len() { "all" } else { &profiles.join(", ") };
        let _ = writeln!(text, "{}: {} states on {all}", row.name, kinds.join(", "));
        let _ = writeln!(text, "  first:  {}", first.detail);
        let _ = writeln!(text, "  why:    {}", first.explanation.words);
        let _ = writeln!(text, "  remedy: {}", first.explanation.remedy.words());
        let _ = writeln!(text, "  replay: {} replay {}{}", called(report), first.id, place(report));
    }
    if let Some(more) = folded.len().checked_sub(PRINTED_MAX).filter(|more| *more > 0) {
        let _ = writeln!(text, "{}: {more} more causes are in report.json", row.name);
    }
}
