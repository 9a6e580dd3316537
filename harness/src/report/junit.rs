//! JUnit XML, as CI systems read it: a suite per scenario, a case per strategy.

use std::time::Duration;

use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};

use super::judged::{Judged, short};
use super::{Report, Row};
use crate::all::{All, One};
use crate::error::{Context, Result};

/// Renders it.
pub fn render(all: &All) -> Result<String> {
    let mut document = quick_junit::Report::new("crashtest");
    for (name, one) in &all.scenarios {
        let mut suite = TestSuite::new(name.as_str());
        match one {
            One::Skipped(why) => {
                let mut status = TestCaseStatus::skipped();
                status.set_message(why.as_str());
                let mut case = TestCase::new("(all)", status);
                case.set_classname(format!("crashtest.{name}"));
                suite.add_test_case(case);
            }
            One::Ran(report) => {
                suite.set_time(Duration::from_millis(report.elapsed_ms));
                suite.add_property(("seed", report.seed.0.to_string().as_str()));
                suite.add_property(("kernel", report.kernel.as_str()));
                suite.add_property(("file_system", report.file_system.as_str()));
                for row in &report.subjects {
                    suite.add_test_case(case(report, row));
                }
            }
        }
        document.add_test_suite(suite);
    }
    document.to_string().context("write JUnit XML")
}

fn case(report: &Report, row: &Row) -> TestCase {
    let status = match Judged::of(report, row) {
        Judged::AsExpected => TestCaseStatus::success(),
        Judged::Unclear(why) => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
            status.set_type("unclear").set_message(why);
            status
        }
        Judged::Unexpected(differences) => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            let what: Vec<_> = differences.iter().map(|one| one.what.as_str()).collect();
            let mut words = String::new();
            for one in &differences {
                words += &format!("{}\n", one.what);
                if let Some((why, remedy)) = &one.why {
                    words += &format!("why: {why}\nremedy: {remedy}\n");
                }
                if let Some(replay) = &one.replay {
                    words += &format!("replay: {replay}\n");
                }
            }
            status.set_type("unexpected").set_message(what.join("; ")).set_description(words);
            status
        }
    };
    let mut case = TestCase::new(row.name.as_str(), status);
    case.set_classname(format!("crashtest.{}", report.scenario));
    case.set_system_out(short(row));
    case
}
