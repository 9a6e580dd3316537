//! What a program would start with: the versions of its state as its own load prints them.
//!
//! Bytes say what was saved; the load says what the program starts with. A fallback to a copy, a journal that is rolled
//! back and a repair all change bytes and are right. So where a load is given and tells saves apart, it is asked about
//! the directory as it was after each ack of the unbroken run, and at its end. What it prints then are the
//! versions, by the number of acks, and what is left of a trial must load to one of them that is not older than the acks
//! promise; a later one may be there. Saves that were not acknowledged are versions, too, as far as they can be seen: a
//! file that is renamed to its place, or closed. And before the first ack a program makes its store: what the load prints
//! at an op boundary then is a state before the first version.

use crate::outcome::{Exit, Load, Loaded, Outcome};
use crate::template::Template;
use crate::verdict::{Violation, ViolationKind};

/// What the load printed of one version, without white space at its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Printed {
    bytes: Vec<u8>,
    /// What is the same in every run, when the bytes are not.
    template: Option<Template>,
}

impl Printed {
    /// Compares what was printed of the same version in two unbroken runs; `None` if that has nothing in common.
    #[must_use]
    pub fn of_two_runs(one: &[u8], other: &[u8]) -> Option<Self> {
        let (one, other) = (one.trim_ascii_end(), other.trim_ascii_end());
        let template = match one == other {
            true => None,
            false => Some(Template::learn(one, other)?),
        };
        Some(Self { bytes: one.to_vec(), template })
    }

    fn fits(&self, printed: &[u8]) -> bool {
        self.bytes == printed || self.template.as_ref().is_some_and(|one| one.fits(printed))
    }

    /// Whether it can be told which of the two was printed.
    #[must_use]
    pub fn differs_from(&self, other: &Self) -> bool {
        !self.fits(&other.bytes) && !other.fits(&self.bytes)
    }
}

/// The versions by a load.
#[derive(Clone, Debug, PartialEq)]
pub struct Loads {
    /// What is loaded before the first ack, and after each; none where the load fails, as before the first save.
    by_acks: Vec<Option<Printed>>,
    /// What is loaded when the program has ended.
    at_the_end: Printed,
    /// What is loaded between acks, and after how many of them.
    between: Vec<(usize, Printed)>,
}

impl Loads {
    /// Those of an unbroken run; `None` if the load can't tell them apart. `changed` says for each ack, and for the end,
    /// whether the bytes of the state are others than at the one before: then what is loaded must be another, too.
    #[must_use]
    pub fn new(
        by_acks: Vec<Option<Printed>>,
        at_the_end: Printed,
        between: Vec<(usize, Printed)>,
        changed: &[bool],
    ) -> Option<Self> {
        let all: Vec<_> = by_acks.iter().map(Option::as_ref).chain([Some(&at_the_end)]).collect();
        let apart = |pair: &[Option<&Printed>]| match (pair[0], pair[1]) {
            (Some(one), Some(other)) => one.differs_from(other),
            (None, Some(_)) => true,
            (_, None) => false,
        };
        let told = all.windows(2).zip(changed).all(|(pair, changed)| !changed || apart(pair));
        // Failures alone tell nothing: at least two versions must be printed otherwise.
        let some = all.iter().flatten().any(|one| one.differs_from(&at_the_end));
        let saves = changed.iter().filter(|changed| **changed).count();
        (told && (some || saves == 1 && !at_the_end.bytes.is_empty())).then_some(Self {
            by_acks,
            at_the_end,
            between,
        })
    }

    /// Whether the load fails where nothing was saved yet.
    #[must_use]
    pub fn fails_on_nothing(&self) -> bool {
        self.by_acks.first().is_some_and(Option::is_none)
    }

    /// How many versions there are: one for no ack, one for each ack, one for the end.
    #[must_use]
    pub fn count(&self) -> usize {
        self.by_acks.len() + 1
    }

    /// Which version a load has printed, the newest if several are alike.
    #[must_use]
    pub fn version(&self, printed: &[u8]) -> Loaded {
        let printed = printed.trim_ascii_end();
        if self.at_the_end.fits(printed) {
            return Loaded::Version(self.by_acks.len());
        }
        let fits = |one: &Option<Printed>| one.as_ref().is_some_and(|one| one.fits(printed));
        let acked = self.by_acks.iter().rposition(fits);
        let between = self.between.iter().filter(|(_, one)| one.fits(printed));
        match acked.max(between.map(|(acks, _)| *acks).max()) {
            Some(version) => Loaded::Version(version),
            None => Loaded::NoVersion(shortened(printed)),
        }
    }

    /// The version that is owed; `None` if more was promised than the unbroken run did.
    fn owed(&self, outcome: &Outcome, promised: u64) -> Option<usize> {
        match outcome.exit {
            Exit::Status(0) => Some(self.by_acks.len()),
            _ => usize::try_from(promised).ok().filter(|acks| *acks < self.by_acks.len()),
        }
    }

    /// What is broken by what was loaded, when so many acks count as given; `None` if that can't be told. Where
    /// `nothing_yet` was saved, the load may fail.
    #[must_use]
    pub fn judge(
        &self,
        outcome: &Outcome,
        promised: u64,
        nothing_yet: bool,
    ) -> Option<Vec<Violation>> {
        let owed = self.owed(outcome, promised)?;
        let recovery = &outcome.recovery;
        let promise = match (outcome.exit, promised) {
            (Exit::Status(0), _) => "exit status 0 promises all that was saved".to_owned(),
            (_, 0) => "it was saved before".to_owned(),
            (_, 1) => "1 ack was given".to_owned(),
            (_, acks) => format!("{acks} acks were given"),
        };
        let told = outcome.fault.is_told() && outcome.injection.struck();
        let all = outcome.exit == Exit::Status(0) || promised + 1 >= self.by_acks.len() as u64;
        let broken = |kind, what: &str, lost: bool| {
            let detail = format!("{what}, but {promise}");
            // A loss is silent; of damage it is said that all is saved.
            let silent =
                told && (kind == ViolationKind::LostAck || all) && outcome.says_so_afterwards();
            let lost = lost && kind != ViolationKind::LostAck;
            let more = [(lost, ViolationKind::LostAck), (silent, ViolationKind::SilentFailure)];
            let more = more.into_iter().filter(|(so, _)| *so).map(|(_, kind)| kind);
            let kinds = std::iter::once(kind).chain(more);
            kinds.map(|kind| Violation { kind, detail: detail.clone() }).collect()
        };
        match (&recovery.load, &recovery.loaded) {
            // Before the first save, where the load rightly fails.
            (Load::NotTried, _) if owed == 0 => Some(Vec::new()),
            (Load::NotTried, _) if outcome.exit == Exit::Status(0) => {
                Some(broken(ViolationKind::LostAck, "nothing is there to be loaded", true))
            }
            (Load::NotTried, _) => None,
            (Load::Failed(_), _) if owed == 0 && nothing_yet => Some(Vec::new()),
            // Nothing is loaded, so that no version is, either.
            (Load::Failed(why), _) => {
                Some(broken(ViolationKind::Alien, &format!("the load fails ({why})"), owed > 0))
            }
            (Load::Hung, _) => {
                Some(broken(ViolationKind::Alien, "the load does not end", owed > 0))
            }
            (_, Loaded::Version(version)) if *version >= owed => Some(Vec::new()),
            (_, Loaded::Version(version)) => {
                let what = format!("the load takes the state of ack {version}");
                Some(broken(ViolationKind::LostAck, &what, true))
            }
            (_, Loaded::NoVersion(printed)) => {
                let what = format!("the load prints what was never saved: {printed}");
                Some(broken(ViolationKind::Alien, &what, false))
            }
            (_, Loaded::Unknown) => None,
        }
    }
}

/// How many bytes of what a load has printed are told.
const TOLD_BYTES: usize = 60;

/// The beginning of what was printed, on one line.
fn shortened(printed: &[u8]) -> String {
    let start = String::from_utf8_lossy(&printed[..printed.len().min(TOLD_BYTES)]).into_owned();
    let more = if printed.len() > TOLD_BYTES { " ..." } else { "" };
    match printed.is_empty() {
        true => "nothing".to_owned(),
        false => format!("{:?}{more}", start.replace('\n', " ")),
    }
}
