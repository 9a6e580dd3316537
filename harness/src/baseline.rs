//! The unbroken run of a program: twice, in two directories, to learn what is the same.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::armed::Follows;
use crate::error::{Error, Result};
use crate::fault::FaultKind;
use crate::history::{History, Order, Repeats};
use crate::inject::checks::{Acked, Checks, Said, Shell};
use crate::inject::command::no_sites;
use crate::inject::output::AckCounter;
use crate::inject::recorder::{Hesitates, Recorder};
use crate::inject::runner::{self, Bound, GRACE, Plain, Runner};
use crate::inject::tracer::{How, Ran, Unfollowed};
use crate::lab::Lab;
use crate::loads_learned::{self, Whose};
use crate::locate::locate;
use crate::model::{Files, Node, NotModelled};
use crate::op::Trace;
use crate::os::process::Ended;
use crate::os::signals;
use crate::outcome::{Content, Survivor};
use crate::outside_files;
use crate::plan::{Planner, Sites};
use crate::state_files::{KnownNames, StateFiles};
use crate::state_found::{choose_state, listed};
use crate::store::{self, OwnLoad};
use crate::subject::{BeforeFirstSave, Command, Kind, Learned, Prepared};
use crate::undistinguished;

/// A trial may take this much longer than the unbroken run, and then some.
const TRIAL_FACTOR: u32 = 10;
const TRIAL_AT_LEAST: Duration = Duration::from_secs(10);

/// What one unbroken run did.
pub struct Unbroken {
    /// What it did.
    pub trace: Trace,
    /// Of one that does not end by itself: what it did until some acks later, and how many acks make
    /// a run.
    longer: Option<(Trace, u64)>,
    /// The files before it.
    pub before: Files,
    /// What it left.
    pub after: Survivor,
    unfollowed: BTreeSet<Unfollowed>,
    /// How many threads changed files.
    writers: usize,
    duration: Duration,
    /// It did not end by itself, and was ended after its acks.
    pub serves: bool,
    stragglers: usize,
}

impl Unbroken {
    fn acks_in_all(&self) -> u64 {
        let trace = self.longer.as_ref().map_or(&self.trace, |(longer, _)| longer);
        trace.acks.len() as u64
    }
}

/// Runs a program unbroken and learns from it.
pub fn learn(
    name: &str,
    command: &Command,
    lab: &Lab,
    fault: FaultKind,
    planner: impl Fn(Sites) -> Planner,
) -> Result<Prepared> {
    check_options(command)?;
    let mut notes = Vec::new();
    let mut command = command.clone();
    let mut rooms = [Runner::new(&command, &lab.room(0)?)?, Runner::new(&command, &lab.room(1)?)?];
    let before_first_save = try_before(&command, &mut rooms[0])?;
    let first = match outside_files::first_run(name, &mut command, &mut rooms, &mut notes) {
        // Run once more to see where in its source it makes that call.
        Err(error) if rooms[0].trespass.is_some() => {
            return Err(locate(&command, lab).err().unwrap_or(error));
        }
        first => first?,
    };
    command.inside = outside_files::names_inside(&first);
    let command = &command;
    let state = choose_state(name, command, &first, &mut notes)?;
    if command.check.is_some() {
        rooms[1].output.keep_acks();
    }
    let second = unbroken(name, command, &mut rooms[1], Hesitates::Nobody)?;
    let acked = rooms[1].output.kept_acks().to_vec();
    // Of two runs that were ended, as many acks are looked at as both gave.
    let acks = first.acks_in_all().min(second.acks_in_all());
    check_acks(name, command, acks)?;
    let history = match (history(&first, &state, acks), history(&second, &state, acks)) {
        (Ok(mut one), Ok(again)) => {
            one.confirm(&again);
            if first.writers.max(second.writers) > 1 {
                one.order = Order::Open;
                try_other_orders(name, command, &mut rooms[1], &state, &mut one)?;
            }
            one
        }
        (Err(why), _) | (_, Err(why)) if fault == FaultKind::KillAfter => {
            notes.push(format!("its calls do not explain what it leaves ({why})"));
            ends(&first, &state)
        }
        (Err(why), _) | (_, Err(why)) => return Err(unexplained(name, &first, &why)),
    };
    let (mut history, mut own_load) = (history, None);
    // In these it is another state that is loaded, or more than the unbroken run saves.
    if !matches!(fault, FaultKind::AtRest | FaultKind::Concurrent | FaultKind::Parted) {
        let runs = [&first, &second];
        learn_loads(command, &mut rooms[1], runs, &mut history, &mut notes)?;
        if command.recover.is_none() {
            own_load =
                learn_store(command, &mut rooms[1], runs, (&state, &mut history), &mut notes)?;
        }
    }
    let tied = command.check.is_some() || history.loads.is_some();
    if let Some([one, other]) = history.untied().filter(|_| !tied) {
        let (one, other) = (one.display(), other.display());
        notes.push(format!(
            "{one} and {other} change in one acknowledged save, and each is judged by itself: that one is new and \
             the other old is found by --check CMD, or by --load CMD"
        ));
    }
    let apart = undistinguished::acks(&history, &second.trace);
    notes.extend(undistinguished::note(&apart, &history));
    history.undistinguished = apart.into_keys().collect();
    note_repeats(&history, &first, &second, &mut notes);
    if fault.is_told() && history.said.is_empty() && second.trace.acks.len() > 1 {
        notes.push(
            "its acks do not say which save they are of: if it skips one that failed, the next ack is \
             taken for the one before; let it print a number"
                .to_owned(),
        );
    }
    note_unfollowed(&second, &mut notes);
    let mut learned = Learned {
        command: command.clone(),
        timeout: (second.duration * TRIAL_FACTOR + TRIAL_AT_LEAST).min(command.limits.timeout()),
        known: known(&first.after, &second.after),
        state,
        serves: second.serves,
        outside: rooms[1].outside.clone(),
        before_first_save,
        own_load,
        acked,
    };
    try_own_commands(name, &learned, &mut rooms[1])?;
    // It has been run twice there now, as after each trial.
    learned.known.extend(&rooms[1].survivor(&learned.state)?.others);
    let duration =
        if second.serves { second.duration } else { plain_duration(name, &mut rooms[1])? };
    if second.trace.ops.is_empty() && fault != FaultKind::KillAfter {
        return Err(no_sites(name));
    }
    let kind = (Kind::Command(Box::new(learned)), history);
    let done = (second.before, second.trace);
    let prepared = Prepared::new(name, kind, done, duration, planner);
    if !prepared.planner.has_places() {
        return Err(Error::baseline(format!(
            "`{name}` makes no call at which this fault can strike"
        )));
    }
    Ok(Prepared { twin: Some(first.trace), notes, ..prepared })
}

/// What promises nothing can't be broken: a regular expression that matches no line would let every lost save
/// pass.
fn check_acks(name: &str, command: &Command, acks: u64) -> Result<()> {
    match &command.ack {
        Some(regex) if acks == 0 => Err(Error::baseline(format!(
            "the unbroken run of `{name}` printed no line that `--ack {regex}` matches"
        ))
        .help(
            "see what it prints when it has saved, on stdout and unbuffered (`flush=True`, `python3 -u`); \
             without --ack only its end with status 0 promises anything",
        )),
        _ => Ok(()),
    }
}

/// Finds what is wrong with the options before anything is run.
fn check_options(command: &Command) -> Result<()> {
    StateFiles::given(&command.state)?;
    command.ack.as_deref().map(runner::ack_pattern).transpose()?;
    Checks::new(command, Path::new("/"), None)?;
    if let Some(init) = &command.init
        && !init.is_dir()
    {
        return Err(Error::usage(format!("--init {} is not a directory", init.display())));
    }
    Ok(())
}

/// Several threads save: two runs may have agreed by luck. Runs in which half of the threads
/// start late show whether the order is the program's own.
fn try_other_orders(
    name: &str,
    command: &Command,
    runner: &mut Runner,
    state: &StateFiles,
    history: &mut History,
) -> Result<()> {
    for remainder in [0, 1] {
        if history.repeats == Repeats::No {
            return Ok(());
        }
        let run = unbroken(name, command, runner, Hesitates::Half(remainder))?;
        let acks = history.owed.len().saturating_sub(1) as u64;
        match self::history(&run, state, acks) {
            Ok(other) => history.confirm(&other),
            Err(_) => history.repeats = Repeats::No,
        }
    }
    Ok(())
}

/// Runs a program once without a fault.
pub fn unbroken(
    name: &str,
    command: &Command,
    runner: &mut Runner,
    hesitates: Hesitates,
) -> Result<Unbroken> {
    runner.reset()?;
    let scope = runner.scope.clone();
    let mut before = initial(&runner.survivor(&everything()?)?, &scope.root);
    let pattern = command.ack.as_deref().map(runner::ack_pattern).transpose()?;
    let limits = command.limits;
    let counter = AckCounter::new(pattern);
    let mut recorder =
        Recorder::new(&scope, counter, limits.acks, limits.data_bytes).hesitating(hesitates);
    let bound = Bound { timeout: limits.timeout(), grace: GRACE };
    let started = Instant::now();
    let ran = runner.traced(&mut recorder, Follows::All, bound)?;
    if signals::interrupted() {
        return Err(Error::interrupted());
    }
    recorder.stores();
    let words = runner.output.last_words();
    let serves = recorder.had_enough_acks() && ran.how == How::Enough;
    sound(name, command, &ran, &recorder, serves, &words)?;
    let duration = if serves { recorder.last_op_at() - started } else { started.elapsed() };
    // Waiting for what the program left behind is no part of its run.
    let waited = if ran.stragglers > 0 { GRACE } else { Duration::ZERO };
    runner.outside = outside_files::files(&recorder.trace, command);
    for (path, bytes) in &runner.outside {
        before.insert(path.clone(), Node::File(bytes.clone()));
    }
    let after = runner.survivor(&everything()?)?;
    let acks = recorder.acks_of_a_run();
    let (trace, longer) = match serves {
        true => (recorder.trace.up_to_ack(acks), Some((recorder.trace, acks))),
        false => (recorder.trace, None),
    };
    Ok(Unbroken {
        trace,
        longer,
        before,
        after,
        unfollowed: recorder.unfollowed,
        writers: recorder.threads.len(),
        duration: duration.saturating_sub(waited),
        serves,
        stragglers: ran.stragglers,
    })
}

/// The names that unbroken runs leave.
fn known(first: &Survivor, second: &Survivor) -> KnownNames {
    let mut known = KnownNames::default();
    for run in [first, second] {
        known.extend(&run.others);
        known.extend(run.files.keys());
    }
    known
}

/// How long the program runs when nobody follows it.
fn plain_duration(name: &str, runner: &mut Runner) -> Result<Duration> {
    runner.reset()?;
    let started = Instant::now();
    match runner.plain(None, runner.limits().timeout())? {
        Plain::Ended(Ended::Status(0)) => Ok(started.elapsed()),
        Plain::Ended(ended) => Err(Error::baseline(format!(
            "`{name}` ended well when it was followed, and with {ended:?} when not: {}",
            runner.output.last_words()
        ))),
        Plain::TimedOut | Plain::Killed => {
            Err(Error::baseline(format!("`{name}` ends when it is followed, and else it does not")))
        }
    }
}

/// Whether the run is one to compare with.
fn sound(
    name: &str,
    command: &Command,
    ran: &Ran,
    recorder: &Recorder<'_>,
    serves: bool,
    words: &str,
) -> Result<()> {
    let limits = command.limits;
    let failed = |what: String| {
        let said = if words.is_empty() { String::new() } else { format!("; it says: {words}") };
        Err(Error::baseline(format!("the unbroken run of `{name}` {what}{said}")))
    };
    if recorder.overflowed() {
        let mib = limits.data_bytes >> 20;
        return Err(Error::baseline(format!("`{name}` writes more than {mib} MiB in one run"))
            .help("make it save less, or allow more with --max-data MIB"));
    }
    match ran.how {
        How::Ended(Ended::Status(0)) => Ok(()),
        How::Enough if serves => Ok(()),
        How::Ended(Ended::Status(status)) => failed(format!("failed with status {status}")),
        How::Ended(Ended::Signal(signal)) => failed(format!("died of signal {signal}")),
        How::TimedOut => {
            let seconds = limits.timeout_ms / 1000;
            let error = Error::baseline(format!("`{name}` did not end within {seconds} s"));
            Err(error.help(
                "allow more with --timeout SECONDS; of a program that serves for ever, tell with \
                 --ack REGEX when it has saved, and with --acks N how many acks make a run",
            ))
        }
        How::TooMany => Err(Error::baseline(format!(
            "`{name}` started more than {} processes",
            limits.processes
        ))
        .help("allow more with --max-processes N")),
        How::Struck | How::Enough => failed("was stopped by the harness".to_owned()),
    }
}

/// Everything in the directory counts as state until the state is known.
fn everything() -> Result<StateFiles> {
    StateFiles::given(&["**".to_owned()])
}

fn initial(survivor: &Survivor, root: &Path) -> Files {
    let mut files = Files::default();
    for (path, content) in &survivor.files {
        if let Ok(target) = std::fs::read_link(root.join(path)) {
            files.insert(path.clone(), Node::Symlink(target));
        } else if let Content::Bytes(bytes) = content {
            files.insert(path.clone(), Node::File(bytes.clone()));
        }
    }
    files
}

/// Learns the versions, and makes sure that the trace explains what is really there; if it does
/// not, says why.
fn history(run: &Unbroken, state: &StateFiles, acks: u64) -> std::result::Result<History, String> {
    if run.unfollowed.contains(&Unfollowed::ForeignCode) {
        return Err("it runs 32-bit code, which can't be followed".to_owned());
    }
    let is_state = |path: &Path| state.contains(path);
    let trace = match &run.longer {
        Some((longer, _)) => &longer.up_to_ack(acks),
        None => &run.trace,
    };
    let mut history =
        History::learn(trace, &run.before, &is_state).map_err(|NotModelled(why)| why)?;
    history.run_acks = run.longer.as_ref().map(|(_, acks)| *acks);
    if run.serves {
        // It was ended in the middle of something: what is there now is of no version.
        return Ok(history);
    }
    let last = history.versions.last().cloned().unwrap_or_default();
    for (path, content) in run.after.files.iter().filter(|(path, _)| state.contains(path)) {
        let explained = match content {
            Content::Bytes(bytes) => {
                last.get(path).is_some_and(|reference| reference.bytes == *bytes)
            }
            Content::Other(_) => false,
        };
        if !explained {
            return Err(format!("{} holds other bytes", path.display()));
        }
    }
    match last.keys().find(|path| !run.after.files.contains_key(*path)) {
        Some(path) => Err(format!("{} is not there", path.display())),
        None => Ok(history),
    }
}

/// Asks the load, if there is one, what it makes of what was saved.
fn learn_loads(
    command: &Command,
    runner: &mut Runner,
    runs: [&Unbroken; 2],
    history: &mut History,
    notes: &mut Vec<String>,
) -> Result<()> {
    let Some(text) = &command.recover else { return Ok(()) };
    if runs.iter().any(|run| run.longer.is_some()) {
        notes.push("it does not end by itself: of --load only the status counts".to_owned());
        return Ok(());
    }
    if !runner.outside.is_empty() {
        notes.push("its state lies outside too: of --load only the status counts".to_owned());
        return Ok(());
    }
    let runs = runs.map(|run| (&run.before, &run.trace));
    match loads_learned::learn(
        (text, Whose::Users, command),
        runner,
        (runs, history),
        command.limits.timeout(),
    )? {
        Ok(loads) => {
            notes.push(format!("judged by what --load prints: {} versions", loads.count()));
            history.loads = Some(Arc::new(loads));
        }
        Err(why) => notes.push(format!("--load: {why}")),
    }
    Ok(())
}

/// Learns the versions of a store that is known by what it holds, as a load prints them; the load, if one does.
fn learn_store(
    command: &Command,
    runner: &mut Runner,
    runs: [&Unbroken; 2],
    (state, history): (&StateFiles, &mut History),
    notes: &mut Vec<String>,
) -> Result<Option<String>> {
    let left = runs[1].after.files.iter().filter(|(path, _)| state.contains(path));
    let left = left.map(|(path, content)| (path.clone(), content.clone())).collect();
    let databases = store::databases(&left);
    if databases.is_empty() || runs.iter().any(|run| run.longer.is_some()) {
        return Ok(None);
    }
    let names = listed(databases.iter().map(|path| path.display().to_string()));
    let followed = runs.map(|run| (&run.before, &run.trace));
    let mut why = "neither sqlite3 nor python3 is in PATH";
    for OwnLoad { needs, text } in store::loads(&databases) {
        if !runner::is_in_path(needs) {
            continue;
        }
        let (asked, timeout) = ((followed, &*history), command.limits.timeout());
        match loads_learned::learn((&text, Whose::Stores, command), runner, asked, timeout)? {
            Ok(loads) => {
                let versions = loads.count();
                notes.push(format!(
                    "judged by the rows of {names}, as {needs} prints them: {versions} versions"
                ));
                history.loads = Some(Arc::new(loads));
                return Ok(Some(text));
            }
            Err(reason) => why = reason,
        }
    }
    notes.push(format!(
        "{names}: a SQLite database, judged by its bytes ({why}); --load CMD says what is in it"
    ));
    Ok(None)
}

/// All that is known of a run that can't be followed: how it began and how it ended. There may be
/// versions between, so that only certain damage is seen.
fn ends(run: &Unbroken, state: &StateFiles) -> History {
    let before = run
        .before
        .paths()
        .filter(|path| state.contains(path))
        .filter_map(|path| Some((path.to_owned(), run.before.bytes(path)?.to_vec())));
    let after = run.after.files.iter().filter_map(|(path, content)| match content {
        Content::Bytes(bytes) if state.contains(path) => Some((path.clone(), bytes.clone())),
        Content::Bytes(_) | Content::Other(_) => None,
    });
    History::of_ends(before.collect(), after.collect())
}

fn unexplained(name: &str, run: &Unbroken, why: &str) -> Error {
    let mapped = run.trace.ops.iter().any(|op| op.call == crate::op::Call::MapShared);
    let error =
        Error::baseline(format!("the calls of `{name}` do not explain what it leaves: {why}"));
    error.help(if mapped {
        "it writes its state through a shared mapping, which can't be cut; --timing kills it \
         without following it, and --check says what is sound"
    } else {
        "--timing kills it without following it, and --check says what is sound"
    })
}

fn note_repeats(history: &History, first: &Unbroken, second: &Unbroken, notes: &mut Vec<String>) {
    match history.repeats {
        Repeats::Exactly => {}
        Repeats::InShape => notes.push(
            "some values of the state differ from run to run; they are compared by type".to_owned(),
        ),
        Repeats::No => notes.push(
            "the state differs from run to run: of its bytes only damage that needs no comparison is \
             seen, and the rest is for a check (--check)"
                .to_owned(),
        ),
    }
    if history.repeats == Repeats::InShape && history.order == Order::Open {
        notes.push(
            "several threads or processes save, and values differ from run to run: an older or a \
             mixed state is inconclusive"
                .to_owned(),
        );
    }
    let calls = |run: &Unbroken| run.trace.ops.iter().map(|op| op.call).collect::<Vec<_>>();
    let (one, two) = (calls(first), calls(second));
    if one != two {
        let n = one.iter().zip(&two).take_while(|(a, b)| a == b).count();
        notes.push(format!(
            "the calls differ from run to run, from op {n} on; ops are struck by count"
        ));
    }
}

fn note_unfollowed(run: &Unbroken, notes: &mut Vec<String>) {
    if run.unfollowed.contains(&Unfollowed::IoUring) {
        notes.push("it asked for io_uring and was told that there is none (ENOSYS)".to_owned());
    }
    let mapped: BTreeSet<_> = run
        .trace
        .ops
        .iter()
        .filter(|op| op.call == crate::op::Call::MapShared)
        .map(|op| op.effect.path().display().to_string())
        .collect();
    for path in mapped {
        notes.push(format!("{path} is mapped shared: its changes are seen at op boundaries only"));
    }
    if run.stragglers > 0 {
        let count = run.stragglers;
        notes.push(format!("{count} processes or threads were left running and were killed"));
    }
    if run.serves {
        let acks = run.trace.acks.len();
        notes.push(format!("it does not end by itself: a run ends after {acks} acks"));
    }
}

/// Finds which of the user's commands succeed where there is no state yet.
fn try_before(command: &Command, runner: &mut Runner) -> Result<BeforeFirstSave> {
    runner.reset()?;
    let timeout = command.limits.timeout();
    let root = runner.scope.root.clone();
    let mut holds = |text: &Option<String>| -> Result<bool> {
        let Some(text) = text else { return Ok(false) };
        let said = Shell::new(text, command, &root, runner.sandbox())?.run(timeout)?;
        runner.reset()?;
        Ok(said == Said::Yes)
    };
    Ok(BeforeFirstSave { check: holds(&command.check)?, recover: holds(&command.recover)? })
}

/// The user's own checks must hold for what the unbroken run left, or they say nothing later.
fn try_own_commands(name: &str, learned: &Learned, runner: &mut Runner) -> Result<()> {
    let (command, root) = (&learned.command, runner.scope.root.clone());
    let checks = Checks::new(command, &root, runner.sandbox())?;
    let survivor = runner.survivor(&learned.state)?;
    let wrong = |what: String| {
        Err(Error::baseline(format!("after the unbroken run of `{name}`, {what}"))
            .help("it must hold for a sound state, or it says nothing about a broken one"))
    };
    if let Some(complaint) = checks.look(&survivor).into_iter().find_map(|check| check.complaint) {
        return wrong(complaint);
    }
    let timeout = command.limits.timeout();
    let acked = Acked::new(&root);
    acked.write(&learned.acked)?;
    let check =
        checks.command().map(|check| check.run_after(&acked, learned.acked.len() as u64, timeout));
    match check.transpose()? {
        None | Some(Said::Yes) => {}
        Some(Said::No(why)) => return wrong(format!("--check fails: {why}")),
        Some(Said::Hung) => return wrong("--check does not end".to_owned()),
    }
    let Some(text) = &command.recover else { return Ok(()) };
    match Shell::new(text, command, &root, runner.sandbox())?.run(timeout)? {
        Said::Yes => {}
        Said::No(why) => return wrong(format!("--load fails: {why}")),
        Said::Hung => return wrong("--load does not end".to_owned()),
    }
    match runner.plain(None, learned.timeout)? {
        Plain::Ended(Ended::Status(0)) => Ok(()),
        _ if learned.serves => Ok(()),
        other => wrong(format!(
            "the program run again fails ({other:?}): {}",
            runner.output.last_words()
        )),
    }
}
