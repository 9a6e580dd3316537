//! Subjects whose trials are a list: what there is to strike follows from the unbroken run.

use std::path::{Path, PathBuf};

use crate::confirm::Listed;
use crate::error::{Context, Error, Result};
use crate::exhaustive::{self, Exhausted};
use crate::fault::Fault;
use crate::inject::{self, outside};
use crate::lab::{self, Lab};
use crate::meeting;
use crate::model::NotModelled;
use crate::op::Trace;
use crate::parting;
use crate::plan::{Planner, Seed};
use crate::power::survivor::Node;
use crate::prepare;
use crate::run::Request;
use crate::steps;
use crate::subject::{About, Kind, Prepared};

/// Lets the subject's trials be all harms that are asked for, or as many as there shall be.
pub fn harm(request: &Request, stream: usize, one: &mut Prepared) -> Result<()> {
    let most = usize::try_from(request.asked.trials.unwrap_or(HARMS_MAX)).unwrap_or(usize::MAX);
    let seed = Seed(request.asked.seed.0 ^ stream as u64);
    let rest = prepare::rest(one)?;
    let is_link = |path: &&PathBuf| matches!(rest.directory.get(*path), Some(Node::Symlink(_)));
    if let Some(link) = rest.files.iter().find(is_link) {
        let what =
            format!("{} is a symbolic link: there is nothing in it to damage", link.display());
        return Err(Error::usage(what).help("name the file that it leads to: --state"));
    }
    let (faults, whole) = rest.harms(&request.asked.scenario.harms, seed, most);
    (one.about, one.planner) = (About::Rest(rest), Planner::Listed(Listed::of(faults, whole)));
    Ok(())
}

/// Lets the bot of the subject and its broker part at each moment.
pub fn part(request: &Request, lab: &Lab, one: &mut Prepared) -> Result<()> {
    let moves_on = request.asked.scenario.ledger_moves_on;
    let all = match &one.kind {
        Kind::BuiltIn(subject) => {
            let directory = lab.path().join("outside");
            let unbroken = outside::unbroken(subject.strategy, &directory);
            lab::remove_tree(&directory).context("remove the directory of the unbroken life")?;
            let (calls, requests) = unbroken?;
            parting::all(calls, requests, moves_on)
        }
        Kind::Bot(bot) => {
            let calls = u32::try_from(one.sites.sites.len()).unwrap_or(u32::MAX);
            parting::all_of_program(calls, bot.requests, moves_on)
        }
        _ => return Err(Error::internal("no bot is known")),
    };
    let (chosen, whole) = spread(&all, request.asked.trials);
    let faults = chosen.into_iter().map(Fault::Parted).collect();
    (one.about, one.planner) = (About::Outside, Planner::Listed(Listed::of(faults, whole)));
    Ok(())
}

/// Lets the subject meet another process before each of its ops, with two switches, and in drawn turns with more; or
/// as often as there shall be trials.
pub fn meet(request: &Request, lab: &Lab, stream: usize, one: &mut Prepared) -> Result<()> {
    let all = meeting::all(one.trace.ops.len());
    let (mut chosen, _) = spread(&all, request.asked.trials);
    let seed = Seed(request.asked.seed.0 ^ stream as u64);
    let most = request.asked.trials.unwrap_or(all.len() as u64 + DRAWN_MEETINGS);
    let drawn = usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(chosen.len());
    chosen.extend(meeting::drawn(one.trace.ops.len(), seed, drawn));
    if let Kind::Command(learned) = &one.kind {
        if learned.command.recover.is_none() {
            let what = "whether it can go on after that is not judged: --load CMD says how it loads its state";
            one.notes.push(what.to_owned());
        }
        let saves_the_same = inject::meeting::second_saves_the_same(learned, one, &lab.room(0)?)?;
        if saves_the_same == Some(true) {
            let what = "both processes save the same bytes, so that a mixture of the two can't be seen: let the \
                        program save something else where CRASHTEST_PROCESS is 2, or where an argument is that \
                        ({process} stands for it)";
            one.notes.push(what.to_owned());
        }
    }
    let faults = chosen.into_iter().map(Fault::Concurrent).collect();
    (one.about, one.planner) = (About::Meeting, Planner::Listed(Listed::of(faults, false)));
    Ok(())
}

/// How many meetings with more than two switches are drawn besides all of those with two.
const DRAWN_MEETINGS: u64 = 100;

/// As many as there shall be, spread evenly, and whether these are all.
fn spread<T: Clone>(all: &[T], most: Option<u64>) -> (Vec<T>, bool) {
    let most = most.map_or(all.len(), |n| usize::try_from(n).unwrap_or(usize::MAX));
    let count = most.min(all.len());
    ((0..count).map(|n| all[n * all.len() / count].clone()).collect(), most >= all.len())
}

/// How many harms of a built-in strategy there may be before a sample must do: all of a state of 4 KiB.
const HARMS_MAX: u64 = 80_000;

/// How many more recordings show whether a subject does the same in every run. They come in pairs.
const DOUBTS: usize = 5;

/// The first subject of a run that does other things from one recording to the next, if there is one.
pub fn unrepeated(request: &Request, lab: &Lab) -> Result<Option<String>> {
    for (name, subject) in &request.subjects {
        let mut first: Option<Prepared> = None;
        for _ in 0..DOUBTS {
            let planner = |sites| {
                Planner::new(
                    request.asked.seed,
                    0,
                    request.asked.fault,
                    request.asked.granularity,
                    sites,
                )
            };
            let one = prepare::prepare(name, subject, lab, request.asked.fault, planner)?;
            let first = first.get_or_insert(one.clone());
            let files = first.history.files();
            let is_state = |path: &Path| files.contains(&path.to_path_buf());
            let differs = |other: &Trace| {
                exhaustive::first_difference(&first.trace, other, &is_state).is_some()
            };
            if differs(&one.trace) || one.twin.as_ref().is_some_and(differs) {
                return Ok(Some(name.clone()));
            }
        }
    }
    Ok(None)
}

/// Derives every state that a kill can leave, and makes the subject's trials those that confirm some
/// of them. A subject that does not do the same in every run is really killed instead.
pub fn exhaust(
    request: &Request,
    lab: &Lab,
    one: &mut Prepared,
    confirm: u64,
) -> Result<Option<Exhausted>> {
    let twin = match (&one.kind, one.twin.take()) {
        (Kind::BuiltIn(subject), _) => prepare::record_again(subject, lab)?,
        (Kind::Recorded(_) | Kind::Live(_) | Kind::Bot(_), _) => one.trace.clone(),
        (Kind::Command(_), Some(twin)) => twin,
        (Kind::Command(_), None) => return Err(Error::internal("there is no second recording")),
    };
    if one.history.loads.is_some() {
        let what =
            "it is judged by what it loads, which only a real kill shows: nothing is derived";
        one.notes.push(what.to_owned());
        return Ok(None);
    }
    let files = one.history.files();
    let is_state = |path: &Path| files.contains(&path.to_path_buf());
    if let Some(n) = exhaustive::first_difference(&one.trace, &twin, &is_state) {
        let what = one.trace.ops.get(n).or(twin.ops.get(n));
        let what = what.map_or("its acks".to_owned(), |op| steps::call(op.call, &op.effect, 0));
        one.notes.push(format!(
            "its recording does not repeat, from op {n} on ({what}): nothing is derived, it is really \
             killed instead"
        ));
        return Ok(None);
    }
    let unknown = |why: NotModelled| Error::baseline(format!("the model does not know {}", why.0));
    let settled = |survivor| one.settled(survivor);
    let (trace, before, promises) = (&one.trace, &one.before, &request.asked.promises);
    let exhausted =
        exhaustive::exhaust(trace, before, &one.history, promises, &settled).map_err(unknown)?;
    let count = usize::try_from(confirm).unwrap_or(usize::MAX);
    let listed = match one.kind {
        Kind::Recorded(_) => Listed::default(),
        _ => Listed::choose(one, &twin, &exhausted, count, request.asked.seed).map_err(unknown)?,
    };
    one.planner = Planner::Listed(listed);
    Ok(Some(exhausted))
}
