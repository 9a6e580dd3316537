//! A call that is made to fail fails: the program is told the error that the trial names, of that
//! call and of no other, and the call was made or was not as the table says.

mod common;

use std::fs;

use common::compiled;
use crashtest::agenda::{Agenda, Front};
use crashtest::errno::Way;
use crashtest::fault::{Failing, Fault, FaultKind, Injection, Repeat, Struck};
use crashtest::inject::{self, Injector};
use crashtest::lab::Lab;
use crashtest::op::Family;
use crashtest::outcome::{Outcome, Step};
use crashtest::plan::Planner;
use crashtest::prepare;
use crashtest::record::Record;
use crashtest::subject::{Command, Prepared, Subject};
use crashtest::sweep::{Depth, Reach, Sweep};
use crashtest::verdict::{Verdict, Why};

fn prepared(subject: &Subject, lab: &Lab, depth: Depth) -> Prepared {
    let reach = Reach { depth, ..Reach::default() };
    let planner = |sites| Planner::sweeping(FaultKind::Errno, &sites, &reach);
    prepare::prepare("subject", subject, lab, FaultKind::Errno, planner).unwrap()
}

/// Does a whole sweep and shows each trial that was struck; says how many were.
fn sweep(
    sweep: &Sweep,
    injector: &mut dyn Injector,
    mut each: impl FnMut(&mut dyn Injector, &Fault, &Outcome),
) -> u64 {
    let mut agenda =
        Agenda::Swept(vec![Front::new(0, sweep.clone(), None, crashtest::shard::Shard::default())]);
    let mut struck = 0;
    while let Some(range) = agenda.next(1) {
        for n in range.numbers() {
            let fault = sweep.fault(crashtest::sweep::Number::from_kept(n)).unwrap();
            let outcome = injector.inject(std::slice::from_ref(&fault)).unwrap().remove(0);
            let verdict = match outcome.injection.struck() {
                true => Verdict::Pass,
                false => Verdict::Inconclusive(Why::NotReached),
            };
            agenda.heard(&Record::new(n, 0, &outcome, &verdict));
            if outcome.injection.struck() {
                struck += 1;
                each(injector, &fault, &outcome);
            }
        }
    }
    assert_eq!(agenda.open_lanes(0), 0);
    struck
}

fn native(source: &str) -> Option<Subject> {
    let program = compiled(source)?;
    let command = Command { argv: vec![program], ..Command::default() };
    Some(Subject::Command(Box::new(command)))
}

/// The calls among the steps: what, its result, whether the trial made it fail.
fn calls(steps: &[Step]) -> Vec<(&str, Option<i64>, bool)> {
    let called = steps.iter().filter_map(|step| match step {
        Step::Called { what, result, injected } => Some((what.as_str(), *result, *injected)),
        Step::Said(_) | Step::More(_) => None,
    });
    called.collect()
}

/// What the program says that it was told: call and error, or call and count.
fn told(steps: &[Step]) -> Vec<String> {
    let said = steps.iter().filter_map(|step| match step {
        Step::Said(line) => line.strip_prefix("told ").map(str::to_owned),
        Step::Called { .. } | Step::More(_) => None,
    });
    said.collect()
}

fn every_failure_reaches_the_program() {
    let (true, Some(subject)) = (common::can_follow(), native("odd/told.c")) else { return };
    let lab = Lab::new(None).unwrap();
    let prepared = prepared(&subject, &lab, Depth::One);
    let Planner::Swept(lanes) = &prepared.planner else { panic!() };
    let mut injector = inject::for_subject(&prepared, &lab.room(0).unwrap(), None).unwrap();
    let mut families = std::collections::BTreeSet::new();
    let struck = sweep(lanes, injector.as_mut(), |injector, fault, outcome| {
        let Fault::Errno(failing) = fault else { panic!() };
        families.insert(failing.family);
        let Injection::At(Struck::Failed { call, result, .. }) = &outcome.injection else {
            panic!("{fault}: {:?}", outcome.injection)
        };
        assert_eq!(call.family(), failing.family, "{fault}");
        let steps = injector.explain(fault).unwrap();
        let first = calls(&steps)[0];
        assert!(first.2, "{fault}: {steps:?}");
        assert_eq!(first.1, Some(*result), "{fault}: {steps:?}");
        // The state itself is written by the last calls, which say nothing.
        let of_state = first.0.contains("state");
        let count = told(&steps).len();
        match (&failing.way, failing.repeat) {
            _ if of_state => assert_eq!(count, 0, "{fault}: {steps:?}"),
            (Way::Short(_) | Way::ShortThenFull, Repeat::Once) => {
                assert!(told(&steps)[0].ends_with(&format!("short {result}")), "{fault}");
            }
            (Way::NotMade(errno) | Way::Made(errno), Repeat::Once) => {
                let said = &told(&steps)[0];
                assert!(said.ends_with(&format!(" {}", errno.number())), "{fault}: {said}");
            }
            (_, Repeat::Sticky) => assert!(count > 0, "{fault}: {steps:?}"),
        }
    });
    // open, fallocate, write, truncate, sync_file_range, fsync, fdatasync, syncfs, close, link,
    // symlink, rename, unlink, mkdir, rmdir.
    assert_eq!(families.len(), 15, "{families:?}");
    // Of each lane as many as there are such calls: 2 opens in 10 lanes, and so on.
    let known: u32 = (0..lanes.lanes()).map(|lane| lanes.known(lane)).sum();
    assert_eq!(struck, u64::from(known));
}

/// A close that fails has closed; an fsync may or may not have been made; all others were not.
fn a_call_was_made_or_not_as_the_table_says() {
    let (true, Some(subject)) = (common::can_follow(), native("odd/told.c")) else { return };
    let lab = Lab::new(None).unwrap();
    let prepared = prepared(&subject, &lab, Depth::One);
    let mut injector = inject::for_subject(&prepared, &lab.room(0).unwrap(), None).unwrap();
    let left = lab.path().join("left");
    let mut fail = |family: Family, nth: u32| {
        let way = *crashtest::errno::ways(family).first().unwrap();
        let (repeat, second) = (Repeat::Once, None);
        let fault = Fault::Errno(Failing { family, nth, way, repeat, second });
        injector.keep_in(left.clone());
        let outcome = injector.inject(&[fault]).unwrap().remove(0);
        assert!(outcome.injection.struck());
    };
    fail(Family::Mkdir, 1);
    assert!(!left.join("d").exists());
    fs::remove_dir_all(&left).unwrap();
    fail(Family::Rename, 1);
    assert!(left.join("d/b").exists() && !left.join("d/e").exists());
    fs::remove_dir_all(&left).unwrap();
    fail(Family::Unlink, 2);
    assert!(left.join("d/a").exists());
    fs::remove_dir_all(&left).unwrap();
    fail(Family::Truncate, 1);
    assert_eq!(fs::metadata(left.join("d/e")).unwrap().len(), 200);
    fs::remove_dir_all(&left).unwrap();
    // Only a close that has closed lets the program open so many files again.
    fail(Family::Close, 1);
    assert_eq!(fs::read(left.join("state")).unwrap(), b"done");
}

/// The second failure strikes after the first, at each call that follows, and at no other.
fn the_second_failure_strikes_in_what_follows_the_first() {
    let (true, Some(subject)) = (common::can_follow(), native("stdio_rename.c")) else { return };
    let lab = Lab::new(None).unwrap();
    let prepared = prepared(&subject, &lab, Depth::Two);
    let Planner::Swept(lanes) = &prepared.planner else { panic!() };
    let mut injector = inject::for_subject(&prepared, &lab.room(0).unwrap(), None).unwrap();
    let mut pairs = 0;
    sweep(lanes, injector.as_mut(), |injector, fault, outcome| {
        let Fault::Errno(Failing { second: Some(second), .. }) = fault else { return };
        pairs += 1;
        assert!(matches!(outcome.injection, Injection::Both(..)), "{fault}: {outcome:?}");
        if pairs % 17 == 0 {
            let steps = injector.explain(fault).unwrap();
            let injected: Vec<usize> = calls(&steps)
                .iter()
                .enumerate()
                .filter_map(|(n, (_, _, injected))| injected.then_some(n))
                .collect();
            assert_eq!(injected, [0, second.nth_after as usize], "{fault}: {steps:?}");
        }
    });
    assert!(pairs > 100, "{pairs}");
}

fn built_ins_are_told_the_same() {
    let lab = Lab::new(None).unwrap();
    let strategy = "durable".to_owned();
    let subject = Subject::built_in(&strategy, 2, 4096, 0);
    let prepared = prepared(&subject, &lab, Depth::Two);
    let Planner::Swept(lanes) = &prepared.planner else { panic!() };
    let mut injector = inject::for_subject(&prepared, &lab.room(0).unwrap(), None).unwrap();
    let struck = sweep(lanes, injector.as_mut(), |_, fault, outcome| {
        let injected = calls(&outcome.steps).iter().filter(|(_, _, injected)| *injected).count();
        let Fault::Errno(failing) = fault else { panic!() };
        match (failing.repeat, failing.second) {
            // A strategy goes on after a short write, and then the disk is full.
            (Repeat::Once, None) => {
                let failures = if failing.way == Way::ShortThenFull { 2 } else { 1 };
                assert_eq!(injected, failures, "{fault}: {:?}", outcome.steps);
            }
            (Repeat::Once, Some(_)) => assert_eq!(injected, 2, "{fault}: {:?}", outcome.steps),
            (Repeat::Sticky, _) => assert!(injected >= 1, "{fault}"),
        }
    });
    assert!(struck > 200, "{struck}");
}

/// Each case runs in a process of its own: an injector waits for all children of its process.
fn main() {
    let cases: [(&str, fn()); 4] = [
        ("every_failure_reaches_the_program", every_failure_reaches_the_program),
        ("a_call_was_made_or_not_as_the_table_says", a_call_was_made_or_not_as_the_table_says),
        (
            "the_second_failure_strikes_in_what_follows_the_first",
            the_second_failure_strikes_in_what_follows_the_first,
        ),
        ("built_ins_are_told_the_same", built_ins_are_told_the_same),
    ];
    common::run_apart(&cases);
}
