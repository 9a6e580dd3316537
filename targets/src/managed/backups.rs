//! Backups: how they are called, when one is due, and which may go.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;

use chrono::{DateTime, NaiveDateTime, TimeDelta, Timelike, Utc};

/// The directory of the backups, in that of the state.
pub const BACKUPS: &str = "backups";

/// How times stand in names; they sort as text.
const TIME: &str = "%Y%m%dT%H%M%S%3fZ";

/// Why a backup was made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It was due.
    Schedule,
    /// Somebody wanted it: lower-case letters, digits and hyphens.
    Wanted(String),
}

impl Reason {
    /// What somebody calls his reason, as it can stand in a name.
    #[must_use]
    pub fn wanted(text: &str) -> Self {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let text: String = text.chars().map(plain).take(32).collect();
        Self::Wanted(if text.is_empty() { "wanted".to_owned() } else { text })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Schedule => f.write_str("schedule"),
            Self::Wanted(text) => f.write_str(text),
        }
    }
}

/// A backup, as its name says: `state-<time>-<sequence>-<reason>.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// When it was made.
    pub at: DateTime<Utc>,
    /// The sequence number of the state in it.
    pub sequence: u64,
    /// Why it was made.
    pub reason: Reason,
}

impl Backup {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        format!("state-{}-{:010}-{}.json", self.at.format(TIME), self.sequence, self.reason)
    }

    /// The backup of that name; `None` of a name that is none of a backup.
    #[must_use]
    pub fn parse(name: &OsStr) -> Option<Self> {
        let rest = name.to_str()?.strip_prefix("state-")?.strip_suffix(".json")?;
        let mut parts = rest.splitn(3, '-');
        let (at, sequence, reason) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self {
            at: NaiveDateTime::parse_from_str(at, TIME).ok()?.and_utc(),
            sequence: sequence.parse().ok()?,
            reason: match reason {
                "schedule" => Reason::Schedule,
                other => Reason::Wanted(other.to_owned()),
            },
        })
    }

    /// Of all names in a directory those of backups, the newest first: by sequence, then by time, for a
    /// clock may jump back.
    #[must_use]
    pub fn all<'a>(names: impl IntoIterator<Item = &'a OsStr>) -> Vec<Self> {
        let mut all: Vec<Self> = names.into_iter().filter_map(Self::parse).collect();
        all.sort_by_key(|backup| std::cmp::Reverse((backup.sequence, backup.at)));
        all
    }
}

/// When backups are made, and how long they are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How far scheduled ones are apart.
    pub every: TimeDelta,
    /// How many of the newest are kept.
    pub count: usize,
    /// For how many hours the last of each is kept.
    pub hours: i64,
    /// For how many days the last of each is kept.
    pub days: i64,
    /// How old one may become.
    pub age: TimeDelta,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            every: TimeDelta::minutes(5),
            count: 10,
            hours: 24,
            days: 30,
            age: TimeDelta::days(30),
        }
    }
}

impl Policy {
    /// Whether a scheduled backup is due. One that seems to be made in the future says that the clock
    /// has jumped back, and puts nothing off.
    #[must_use]
    pub fn is_due(&self, last: Option<DateTime<Utc>>, now: DateTime<Utc>) -> bool {
        last.is_none_or(|last| now < last || now - last >= self.every)
    }

    /// Which of these backups, the newest first, may go. `good` is the newest that was found whole: it
    /// never goes, nor does a newer one.
    #[must_use]
    pub fn expendable<'a>(
        &self,
        all: &'a [Backup],
        good: &Backup,
        now: DateTime<Utc>,
    ) -> Vec<&'a Backup> {
        let (mut hours, mut days) = (BTreeSet::new(), BTreeSet::new());
        let safe = all.iter().position(|backup| backup == good);
        let expendable = all.iter().enumerate().filter(|(n, backup)| {
            let age = now - backup.at;
            // The last of an hour is the first that is met.
            let hour = (backup.at.date_naive(), backup.at.hour());
            let of_hour = age <= TimeDelta::hours(self.hours) && hours.insert(hour);
            let of_day = age <= TimeDelta::days(self.days) && days.insert(backup.at.date_naive());
            let kept = age <= self.age && (*n < self.count || of_hour || of_day);
            !kept && safe.is_some_and(|safe| *n > safe)
        });
        expendable.map(|(_, backup)| backup).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::days(20_000) + TimeDelta::minutes(minutes)
    }

    fn every_five_minutes(count: i64) -> Vec<Backup> {
        let backup = |n: i64| Backup {
            at: at(5 * n),
            sequence: n.cast_unsigned(),
            reason: Reason::Schedule,
        };
        (0..count).rev().map(backup).collect()
    }

    #[test]
    fn a_name_says_what_it_is() {
        let backup = Backup { at: at(7), sequence: 42, reason: Reason::wanted("Before Upgrade!") };
        assert_eq!(backup.name(), "state-20241004T000700000Z-0000000042-before-upgrade-.json");
        assert_eq!(Backup::parse(backup.name().as_ref()), Some(backup));
        assert_eq!(Backup::parse("state.json".as_ref()), None);
        assert_eq!(Backup::parse(".state.json.0123".as_ref()), None);
    }

    #[test]
    fn one_is_due_after_five_minutes_and_when_the_clock_has_jumped_back() {
        let policy = Policy::default();
        assert!(policy.is_due(None, at(0)));
        assert!(!policy.is_due(Some(at(0)), at(4)));
        assert!(policy.is_due(Some(at(0)), at(5)));
        assert!(policy.is_due(Some(at(600)), at(0)));
    }

    #[test]
    fn ten_are_kept_and_one_of_each_hour_and_day() {
        let all = every_five_minutes(12 * 24 * 3);
        let (policy, now) = (Policy::default(), all[0].at);
        let gone = policy.expendable(&all, &all[0], now);
        let kept: Vec<_> = all.iter().filter(|backup| !gone.contains(backup)).collect();
        // The newest ten, the last of each of the 24 hours before, and of each of two days before.
        assert_eq!(kept.len(), 10 + 24 + 2 - 1 + 1 - 1, "{kept:?}");
        assert_eq!(policy.expendable(&all[..10], &all[0], now), Vec::<&Backup>::new());
    }

    #[test]
    fn what_is_older_than_thirty_days_goes_but_never_the_newest_that_is_good() {
        let all = every_five_minutes(5);
        let (policy, now) = (Policy::default(), at(0) + TimeDelta::days(90));
        assert_eq!(policy.expendable(&all, &all[0], now).len(), 4);
        // The newer ones are damaged: what they hold is not known to be of no worth.
        assert_eq!(policy.expendable(&all, &all[3], now), [&all[4]]);
    }
}
