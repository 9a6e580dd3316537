//! One recording of a subject on a disk, and what its images are worth.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use crate::agenda::Range;
use crate::cut::Cut;
use crate::difference;
use crate::disk::device::{Disk, Mounted, Unmounted, unexpected};
use crate::disk::images::{Image, Images, images};
use crate::disk::log::{DiskLog, SECTOR_BYTES, Tick};
use crate::disk::moments::moments;
use crate::disk::plan::{Mode, WriteBack};
use crate::disk::protocol::{Answer, Command};
use crate::disk::scribe::Scribe;
use crate::error::{Error, Result};
use crate::fault::{Fault, Injection, PowerCut, Struck};
use crate::file_system::FileSystem;
use crate::history::History;
use crate::inject::resident::{self, Observed, Observer, Resident, Sight};
use crate::oracle;
use crate::os::signals;
use crate::outcome::{Content, Exit, Outcome, Survivor};
use crate::pool::Work;
use crate::power::Lowered;
use crate::power::derive::{Budget, Derived, derive_all};
use crate::power::explain::Explanation;
use crate::power::fingerprint::Fingerprint;
use crate::power::lower::lower;
use crate::power::profile::Profile;
use crate::power::remedy::Remedy;
use crate::power::walk::Seen;
use crate::recorded::{self, Recording};
use crate::report::power::Finding;
use crate::results::RunDirectory;
use crate::run::Request;
use crate::subject::{Kind, Prepared};
use crate::verdict::{Verdict, Violation, ViolationKind, Why};

/// How many crash states of a recording the model is asked for.
const MODEL_STATES_MAX: u64 = 20_000;

/// One recording to be made.
#[derive(Clone, Copy, Debug)]
pub struct Unit {
    /// Its number in the plan, from which follows what is drawn of it, whoever does it and when.
    pub piece: u64,
    /// Of which subject.
    pub subject: usize,
    /// On which file system.
    pub fs: FileSystem,
    /// The number of the image of an empty one.
    pub start: u32,
    /// How write-back is brought about.
    pub write_back: WriteBack,
    /// How many images are looked at.
    pub images_max: usize,
}

/// Makes recordings and looks at their images, on a disk of its own.
pub struct Cutter<'a> {
    request: &'a Request,
    prepared: &'a [Prepared],
    units: &'a [Unit],
    /// Where violations are kept, if they are.
    directory: Option<&'a RunDirectory>,
    /// On which it records.
    disk: Disk,
    /// On which it looks at what is left.
    view: Disk,
    fs: Option<FileSystem>,
    current: Option<(usize, Box<dyn Resident + 'a>)>,
}

/// A recording that was made.
pub struct Made<'a> {
    number: u32,
    /// What the disk saw.
    pub log: DiskLog,
    /// What the subject did.
    pub recorded: Recording<'a>,
    begun: Vec<Tick>,
    acked: Vec<Tick>,
    brought: Option<Tick>,
}

impl Made<'_> {
    /// How many ops had been begun before a moment.
    fn ops(&self, until: Tick) -> usize {
        self.begun.partition_point(|begun| *begun < until).min(self.recorded.trace.ops.len())
    }

    fn acks(&self, until: Tick) -> usize {
        self.acked.partition_point(|acked| *acked < until)
    }
}

/// What a disk carries out whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whole {
    /// The blocks of the profile.
    Blocks,
    /// Sectors: a write can be torn.
    Sectors,
}

/// What the model says a file system may leave.
struct Model {
    profile: &'static str,
    lowered: Lowered,
    derived: Derived,
    places: HashMap<Vec<Seen>, usize>,
}

impl<'a> Cutter<'a> {
    /// One that uses these disks, and keeps violations in `directory`, if that is given.
    pub fn new(
        request: &'a Request,
        prepared: &'a [Prepared],
        units: &'a [Unit],
        directory: Option<&'a RunDirectory>,
        (disk, view): (Disk, Disk),
    ) -> Self {
        Self { request, prepared, units, directory, disk, view, fs: None, current: None }
    }

    fn turn_to(&mut self, subject: usize) -> Result<&mut Box<dyn Resident + 'a>> {
        if self.current.as_ref().is_none_or(|(current, _)| *current != subject) {
            let resident = resident::of_subject(&self.prepared[subject], self.disk.place())?;
            self.current = Some((subject, resident));
        }
        let nobody = || Error::internal("no subject is being tried");
        self.current.as_mut().map(|(_, resident)| resident).ok_or_else(nobody)
    }

    fn slow(&self, unit: &Unit) -> bool {
        unit.write_back.mode == Mode::Slow || self.request.asked.disk.slow_writes
    }

    /// Runs the subject on a fresh disk.
    pub fn record(&mut self, unit: &Unit) -> Result<Made<'a>> {
        if self.fs.replace(unit.fs) != Some(unit.fs) {
            // It has another size.
            self.disk.detach();
            self.view.detach();
        }
        self.disk.load(unit.start)?;
        let hold = match self.slow(unit) {
            true => Some(self.disk.layout(unit.fs)?),
            false => None,
        };
        if let Mounted::No(why) =
            self.disk.mount(unit.fs, &self.request.asked.disk.mount_options)?
        {
            return Err(cannot_mount(unit.fs, &self.request.asked.disk.mount_options, &why));
        }
        self.turn_to(unit.subject)?.move_in()?;
        let place = self.disk.place().to_owned();
        let (client, slot) = (self.disk.client(), self.disk.slot());
        let mut scribe = Scribe::new((client, slot), (unit.fs, &place), unit.write_back)?;
        scribe.sync()?;
        client.tell(&Command::Record(slot, hold))?;
        let Some((_, resident)) = &mut self.current else {
            return Err(Error::internal("no subject is being tried"));
        };
        let observed = resident.run(&mut scribe)?;
        if observed.ended {
            scribe.acked()?;
        }
        scribe.between(observed.trace.ops.len())?;
        // In the end it is written back anyway.
        scribe.sync()?;
        let answer = client.ask(&Command::Stop(slot))?;
        let (begun, acked) = (std::mem::take(&mut scribe.begun), std::mem::take(&mut scribe.acked));
        let brought = scribe.brought;
        drop(scribe);
        self.disk.unmount()?;
        let Answer::Log(number, log) = answer else { return Err(unexpected(&answer)) };
        let recorded = self.recorded(unit, observed)?;
        Ok(Made { number, log, recorded, begun, acked, brought })
    }

    fn recorded(&self, unit: &Unit, observed: Observed) -> Result<Recording<'a>> {
        let prepared = &self.prepared[unit.subject];
        let Observed { mut trace, ended } = observed;
        let history = match &prepared.kind {
            Kind::Command(learned) => recorded::learn(&mut trace, prepared, &learned.state, ended)?,
            Kind::BuiltIn(_) | Kind::Recorded(_) | Kind::Live(_) | Kind::Bot(_) => {
                prepared.history.clone()
            }
        };
        Ok(Recording::of(prepared, history, trace, ended))
    }

    /// What the model allows if what a disk carries out whole is a block, or a sector only.
    fn model(&self, unit: &Unit, recorded: &Recording<'_>, whole: Whole) -> Result<Option<Model>> {
        if self.is_live(unit) {
            return Ok(None);
        }
        let Some(profile) = self.request.asked.disk.profile(unit.fs) else { return Ok(None) };
        let mut flags = Profile::find(profile)?.flags;
        if whole == Whole::Sectors {
            flags.block_bytes = u32::try_from(SECTOR_BYTES).unwrap_or(flags.block_bytes);
        }
        let Ok(lowered) = lower(&recorded.trace, &recorded.prepared.before, &flags) else {
            return Ok(None);
        };
        let budget = Budget {
            states_max: MODEL_STATES_MAX,
            seed: self.request.asked.seed.0,
            judged: recorded.judged,
        };
        let (paths, history) = (recorded.state(), &recorded.history);
        // A sample would say nothing of what it has left out.
        let derived = derive_all(&lowered, paths, history, budget, &signals::interrupted);
        let Some(derived) = derived else { return Ok(None) };
        let places = derived.survivors.iter().enumerate();
        let places = places.map(|(place, distinct)| (distinct.files.clone(), place)).collect();
        Ok(Some(Model { profile, lowered, derived, places }))
    }

    fn unit(&mut self, n: u64, unit: &Unit) -> Result<Cut> {
        let made = self.record(unit)?;
        let model = self.model(unit, &made.recorded, Whole::Blocks)?;
        let torn = self.model(unit, &made.recorded, Whole::Sectors)?;
        let chosen = self.images(unit, &made);
        let acks = made.acked.len() as u64;
        let mut cut = Cut { n, acks, prefixes: chosen.prefixes, ..Cut::default() };
        cut.allowed = model.as_ref().map(|model| {
            model.derived.survivors.iter().map(|d| class(d.version, &d.files)).collect()
        });
        let mut chosen = chosen.images;
        // What is alike comes together: less changes on the disk from one to the next.
        chosen.sort_by_key(|image| image.certain);
        for image in chosen {
            if signals::orphaned() {
                return Err(Error::internal("the coordinator has ended"));
            }
            let model = if image.torn.is_some() { &torn } else { &model };
            self.image(unit, &made, model.as_ref(), image, &mut cut)?;
        }
        self.disk.client().tell(&Command::ForgetRecording(made.number))?;
        Ok(cut)
    }

    fn is_live(&self, unit: &Unit) -> bool {
        matches!(self.prepared[unit.subject].kind, Kind::Live(_))
    }

    /// Which images of a recording are looked at.
    fn images(&self, unit: &Unit, made: &Made<'_>) -> Images {
        let (most, seed) = (unit.images_max, self.request.asked.seed.0 ^ unit.piece);
        match self.is_live(unit) {
            true => Images { images: moments(&made.log, most, seed), prefixes: false },
            false => images(&made.log, most, seed, made.brought),
        }
    }

    /// Looks at one image.
    fn image(
        &mut self,
        unit: &Unit,
        made: &Made<'_>,
        model: Option<&Model>,
        image: Image,
        cut: &mut Cut,
    ) -> Result<()> {
        cut.images += 1;
        let outcome = match self.look(unit, made, image.clone(), cut)? {
            Some(outcome) => outcome,
            None => {
                *cut.tally.inconclusive.entry(Why::NotMounted).or_default() += 1;
                return Ok(());
            }
        };
        let seen = seen(&outcome.survivor, &made.recorded);
        let found = model.and_then(|model| Some((model, *model.places.get(&seen)?)));
        let version = found.and_then(|(model, place)| model.derived.survivors[place].version);
        let class = class(version, &seen);
        cut.seen.insert(class);
        if let (Some(model), None) = (model, found) {
            let survivor = shown(&outcome.survivor);
            cut.outside.add(format!(
                "{survivor}, which {} does not allow: {}",
                model.profile, outcome.fault
            ));
        }
        let outcome = Outcome {
            survivor: made.recorded.prepared.settled(outcome.survivor.clone()),
            ..outcome
        };
        let at = ops(&outcome).unwrap_or(usize::try_from(outcome.acks).unwrap_or(usize::MAX));
        match oracle::judge(&outcome, &made.recorded.history, &self.request.asked.promises) {
            Verdict::Pass => cut.enter(&[], at),
            Verdict::Inconclusive(why) => *cut.tally.inconclusive.entry(why).or_default() += 1,
            Verdict::Violated(violations) => {
                let kinds: Vec<_> = violations.iter().map(|violation| violation.kind).collect();
                cut.enter(&kinds, at);
                let explanation = explain(made, found, &outcome, violations[0].kind);
                let fresh = self.found(unit, &outcome, violations, explanation, (class, cut))?;
                if let (Some(id), Some(directory), true) =
                    (fresh, self.directory, self.request.place.keep)
                {
                    directory.keep_whole(&id, |to| {
                        self.turn_to(unit.subject)?.keep_in(to.to_owned());
                        self.look(unit, made, image, &mut Cut::default()).map(drop)
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Mounts an image and looks at it; `None` if it can't be mounted.
    pub fn look(
        &mut self,
        unit: &Unit,
        made: &Made<'_>,
        image: Image,
        cut: &mut Cut,
    ) -> Result<Option<Outcome>> {
        let (until, options) = (image.until, self.request.asked.disk.mount_options.clone());
        self.view.show(made.number, image.clone())?;
        if let Mounted::No(why) = self.view.mount(unit.fs, &options)? {
            match self.view.works()? {
                true => cut.refused.add(why),
                false => cut.stuck.add("the mount took too long".to_owned()),
            }
            return Ok(None);
        }
        let (acks, trace) = (made.acks(until), &made.recorded.trace);
        let all = made.recorded.ended() && acks == trace.acks.len();
        let told = (acks - usize::from(all)) as u64;
        let sight = self.turn_to(unit.subject)?.look(told);
        if self.view.unmount()? == Unmounted::StaysInUse {
            cut.stuck.add("it stayed in use and could not be unmounted".to_owned());
        } else if !self.view.works()? {
            cut.stuck.add("looking at it took too long".to_owned());
            return Ok(None);
        } else if self.request.asked.disk.fsck
            && let Some(complaint) = self.view.fsck(unit.fs)?
        {
            cut.harmed.add(complaint);
        }
        let (survivor, checks, recovery) = match sight? {
            Sight::Seen(survivor, checks, recovery) => (survivor, checks, recovery),
            Sight::Unreadable(why) => {
                cut.refused.add(format!("mounted, and then it can't be read: {why}"));
                return Ok(None);
            }
        };
        let ops = (!self.is_live(unit)).then(|| made.ops(until));
        let fault = Fault::PowerCut(PowerCut {
            fs: unit.fs,
            mount_options: options,
            fs_bytes: self.request.asked.disk.fs_bytes,
            write_back: unit.write_back,
            slow_writes: self.request.asked.disk.slow_writes,
            ops,
            image,
        });
        Ok(Some(Outcome {
            acks: told,
            said: trace.said[..acks.min(trace.said.len())].to_vec(),
            survivor,
            checks,
            recovery,
            ..Outcome::new(
                fault,
                Injection::At(ops.map_or(Struck::Unseen, |ops| Struck::Power { ops })),
                if all { Exit::Status(0) } else { Exit::Killed },
            )
        }))
    }

    /// Counts what breaks promises; if it is the first of its cause, keeps it and returns its id.
    fn found(
        &self,
        unit: &Unit,
        outcome: &Outcome,
        violations: Vec<Violation>,
        explanation: Explanation,
        (class, cut): (u64, &mut Cut),
    ) -> Result<Option<String>> {
        let known = cut.findings.iter_mut().find(|f| f.0.explanation.cause == explanation.cause);
        let mut fresh = None;
        let (finding, classes) = match known {
            Some(known) => known,
            None => {
                let mut kept = self.request.kept(unit.subject, outcome, &violations);
                kept.explanation = Some(explanation.clone());
                let history = &self.prepared[unit.subject].history;
                kept.differences = difference::of(history, outcome.acks, &outcome.survivor);
                if let Some(directory) = self.directory {
                    directory.keep(&kept, outcome)?;
                }
                let (kind, detail) = (violations[0].kind, violations[0].detail.clone());
                fresh = Some(kept.id.clone());
                let (kinds, id) = (BTreeMap::new(), kept.id);
                let finding =
                    Finding { kind, kinds, detail, states: 0, survivors: 0, explanation, id };
                cut.findings.push((finding, BTreeSet::new()));
                cut.findings.last_mut().ok_or_else(|| Error::internal("a finding is gone"))?
            }
        };
        classes.insert(class);
        (finding.states, finding.survivors) = (finding.states + 1, classes.len());
        for violation in &violations {
            *finding.kinds.entry(violation.kind).or_default() += 1;
        }
        Ok(fresh)
    }
}

/// An image of an earlier run, found again.
pub struct Again {
    /// The facts.
    pub outcome: Outcome,
    /// The versions of the recording.
    pub history: History,
}

/// How like what was found before something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Likeness {
    /// It does not break that promise.
    None,
    /// It breaks it in the same way.
    Kind,
    /// It has the same bytes too.
    Same,
}

impl<'a> Cutter<'a> {
    /// Records once more, and looks for what is most like an earlier finding: first in the same image, then
    /// in all others, then in the other recordings, for no file system writes the same twice. What is there
    /// is kept in `directory`.
    pub fn again(
        &mut self,
        cut: &PowerCut,
        likeness: &dyn Fn(&Outcome, &History) -> Likeness,
        directory: &Path,
    ) -> Result<Again> {
        let mut best: Option<(Likeness, Unit, Made<'a>, Image, Outcome)> = None;
        for (n, unit) in self.units.iter().enumerate() {
            let made = self.record(unit)?;
            let same = Some(cut.image.clone()).filter(|image| n == 0 && image.fits(&made.log));
            let others = self.images(unit, &made).images;
            let mut here: Option<(Likeness, Image, Outcome)> = None;
            for image in same.into_iter().chain(others) {
                let Some(outcome) = self.look(unit, &made, image.clone(), &mut Cut::default())?
                else {
                    continue;
                };
                let survivor = made.recorded.prepared.settled(outcome.survivor.clone());
                let outcome = Outcome { survivor, ..outcome };
                let like = likeness(&outcome, &made.recorded.history);
                if here.as_ref().is_none_or(|(best, ..)| *best < like) {
                    here = Some((like, image, outcome));
                }
                if like == Likeness::Same {
                    break;
                }
            }
            let Some((like, image, outcome)) = here else { continue };
            if best.as_ref().is_none_or(|(best, ..)| *best < like) {
                best = Some((like, *unit, made, image, outcome));
            }
            if like > Likeness::None {
                break;
            }
        }
        let Some((_, unit, made, image, outcome)) = best else {
            return Err(Error::usage("no image of this recording can be mounted"));
        };
        self.turn_to(unit.subject)?.keep_in(directory.to_owned());
        self.look(&unit, &made, image, &mut Cut::default())?;
        Ok(Again { outcome, history: made.recorded.history })
    }
}

impl Work for Cutter<'_> {
    type Answer = Cut;

    fn trials(&mut self, range: Range) -> Result<Vec<Cut>> {
        let unit = usize::try_from(range.start).ok().and_then(|n| self.units.get(n).copied());
        let Some(unit) = unit else { return Err(Error::internal("there is no such recording")) };
        Ok(vec![self.unit(range.start, &unit)?])
    }
}

/// After how many ops the power went, if they are known.
fn ops(outcome: &Outcome) -> Option<usize> {
    match outcome.injection {
        Injection::At(Struck::Power { ops }) => Some(ops),
        _ => None,
    }
}

/// Why an image breaks a promise: as the model has it, if it knows the survivor.
fn explain(
    made: &Made<'_>,
    found: Option<(&Model, usize)>,
    outcome: &Outcome,
    kind: ViolationKind,
) -> Explanation {
    let acks = match (ops(outcome), outcome.acks) {
        (Some(_), _) => String::new(),
        (None, 0) => ", no ack was given".to_owned(),
        (None, 1) => ", 1 ack was given".to_owned(),
        (None, acks) => format!(", {acks} acks were given"),
    };
    let on_disk = format!("on the disk: {}{acks}", outcome.fault);
    let Some((model, place)) = found else {
        let cause = format!("{} {kind:?}", kind.promise().name());
        let (lost, durable, remedy) = (Vec::new(), None, Remedy::Unknown);
        let after_ops = ops(outcome).unwrap_or(0);
        return Explanation { after_ops, lost, durable, words: on_disk, remedy, cause };
    };
    let owing = &model.derived.survivors[place].owing;
    let owed = oracle::owed(outcome, &made.recorded.history);
    // Of those that leave this, one of which as much is owed.
    let best = owing.iter().filter(|owing| owing.owed >= owed).min_by_key(|owing| owing.owed);
    let Some(owing) = best.or(owing.last()) else {
        return explain(made, None, outcome, kind);
    };
    let state = owing.first.at(owing.moment(&model.lowered));
    let derived = made.recorded.outcome(&model.lowered, model.profile, state, owing.acks);
    let mut explanation = made.recorded.explain(&model.lowered, &derived, kind);
    explanation.words = format!("{} ({on_disk})", explanation.words);
    explanation
}

/// What the state files are, as the model sees them.
fn seen(survivor: &Survivor, recorded: &Recording<'_>) -> Vec<Seen> {
    let of = |path| match survivor.files.get(path) {
        None => Seen::Missing,
        Some(Content::Bytes(bytes)) => Seen::File(bytes.len() as u64, Fingerprint::of(0, bytes)),
        Some(Content::Other(_)) => Seen::NoFile,
    };
    recorded.state().iter().map(of).collect()
}

/// What stands for a survivor in all recordings: its version, or a hash.
fn class(version: Option<usize>, seen: &[Seen]) -> u64 {
    match version {
        Some(version) => version as u64,
        None => {
            let mut hasher = DefaultHasher::new();
            seen.hash(&mut hasher);
            hasher.finish() | 1 << 63
        }
    }
}

/// The state files in short.
fn shown(survivor: &Survivor) -> String {
    let file = |(path, content): (&std::path::PathBuf, &Content)| match content {
        Content::Bytes(bytes) => {
            let zeros = bytes.iter().filter(|byte| **byte == 0).count();
            format!("{} of {} bytes, {zeros} of them NUL", path.display(), bytes.len())
        }
        Content::Other(what) => format!("{}, {what}", path.display()),
    };
    match survivor.files.is_empty() {
        true => "no state file".to_owned(),
        false => survivor.files.iter().map(file).collect::<Vec<_>>().join(", "),
    }
}

fn cannot_mount(fs: FileSystem, options: &str, why: &str) -> Error {
    let what = format!("cannot mount an empty {fs}: {why}");
    match options {
        "" => Error::lacking(what)
            .help("does this kernel have it? `crashtest doctor` tells; --fs names others"),
        _ => Error::usage(what).help(format!("does {fs} know --mount-opts {options}?")),
    }
}
