//! What the HTML report shows, gathered from the directories of its runs.

use std::path::Path;

use crate::all::{All, One};
use crate::error::Result;
use crate::report::Report;
use crate::report::html::{self, Page, Part, Points};
use crate::results::{self, RunDirectory};

/// The page of all scenarios.
pub fn gather(all: &All) -> Result<Page> {
    let parts = all.scenarios.iter().map(|(name, one)| match one {
        One::Skipped(why) => Ok(html::skipped(name, why)),
        One::Ran(report) => part(report),
    });
    Ok(Page { scenarios: parts.collect::<Result<_>>()? })
}

fn part(report: &Report) -> Result<Part> {
    let directory = RunDirectory::open(Path::new("."), &report.directory)?;
    let plan = directory.read_plan()?;
    let subjects = plan.subjects.iter();
    let mut points: Vec<_> =
        subjects.map(|one| Points::new(&one.sites).with_derived(&one.stretches)).collect();
    directory.read_outcomes(|record, _| {
        if let Some(points) = points.get_mut(record.subject) {
            points.add(&record);
        }
        Ok(())
    })?;
    html::part(report, points, &results::kept(directory.path()))
}
