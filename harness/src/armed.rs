//! When a fault strikes: a pure function of the calls seen so far.

use crate::errno::{self, Errno, Keep, Shown, Way};
use crate::fault::{DiskFull, Failing, Fault, Injection, Point, Repeat, Second, Strike, Struck};
use crate::op::{ByteOffset, Call, Family};

/// A fault waiting for its call. Calls that it does not follow need not be shown to it.
#[derive(Clone, Debug)]
pub struct Armed {
    arms: Arms,
    met: Met,
}

/// What the parts of a fault have met.
#[derive(Clone, Debug, Default)]
struct Met {
    first: Option<Struck>,
    second: Option<Struck>,
}

#[derive(Clone, Debug)]
enum Arms {
    /// Nothing of it is for a call.
    Idle,
    Strike(Strike, Then, Progress),
    Failing(Box<Failing>, Progress),
    Full(Option<u32>, Progress),
}

/// How far a fault of several calls has come.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// Calls that could have been the first to fail.
    seen: u32,
    /// Whether the first has failed.
    failed: bool,
    /// Calls since.
    since: u32,
    /// Whether the second part has struck.
    second: bool,
    /// Whether a write after a short one has met a full disk.
    full: bool,
}

/// What happens after a call that was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The subject is killed.
    Kill,
    /// The call returns the shortened count and the subject goes on.
    GoOn,
}

/// What is to be done with a call that is about to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Pass,
    /// Kill now; the call is not made.
    KillBefore,
    /// Let this many bytes of it through.
    Cut {
        /// How many; fewer than the call asks for.
        keep: usize,
        /// What then.
        then: Then,
    },
    /// Let it be made whole, then kill.
    KillAfter,
    /// Have it return this error without being made.
    Fail(Errno),
    /// Let it be made, and have it return this error.
    FailAfter(Errno),
}

/// Which calls an armed fault must see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Follows {
    /// All of them.
    All,
    /// None.
    Nothing,
    /// One kind.
    Call(Call),
    /// One family.
    Family(Family),
}

impl Armed {
    /// Arms `fault`.
    #[must_use]
    pub fn new(fault: &Fault) -> Self {
        let progress = Progress::default();
        let arms = match fault {
            Fault::Kill(strike) => Arms::Strike(strike.clone(), Then::Kill, progress),
            Fault::ShortWrite(strike) => Arms::Strike(strike.clone(), Then::GoOn, progress),
            Fault::KillAfter { .. }
            | Fault::PowerLoss(_)
            | Fault::PowerCut(_)
            | Fault::AtRest(_)
            | Fault::Concurrent(_)
            | Fault::Parted(_) => Arms::Idle,
            Fault::Errno(failing) => Arms::Failing(Box::new(failing.clone()), progress),
            Fault::DiskFull(DiskFull { kill_before, .. }) => Arms::Full(*kill_before, progress),
        };
        Self { arms, met: Met::default() }
    }

    /// Which calls it must see.
    #[must_use]
    pub fn follows(&self) -> Follows {
        match &self.arms {
            Arms::Strike(strike, ..) => Follows::Call(strike.call),
            Arms::Failing(failing, _) if failing.second.is_none() => {
                Follows::Family(failing.family)
            }
            Arms::Idle | Arms::Failing(..) | Arms::Full(..) => Follows::All,
        }
    }

    /// Whether all of it has struck.
    #[must_use]
    pub fn has_struck(&self) -> bool {
        match &self.arms {
            Arms::Idle => false,
            Arms::Strike(_, _, progress) => progress.failed,
            Arms::Failing(failing, progress) => {
                progress.failed && (failing.second.is_none() || progress.second)
            }
            Arms::Full(kill, progress) => progress.failed && (kill.is_none() || progress.second),
        }
    }

    /// Whether some of it has struck.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.met.first.is_some()
    }

    /// How many of its parts have struck.
    #[must_use]
    pub fn parts_struck(&self) -> u32 {
        u32::from(self.met.first.is_some()) + u32::from(self.met.second.is_some())
    }

    /// What was met, all in all.
    #[must_use]
    pub fn injection(&self) -> Injection {
        match (&self.met.first, &self.met.second) {
            _ if !self.has_struck() => Injection::NotReached,
            (Some(first), None) => Injection::At(first.clone()),
            (Some(first), Some(second)) => Injection::Both(first.clone(), second.clone()),
            (None, _) => Injection::NotReached,
        }
    }

    /// Decides on the next call, which is about the file `path`.
    pub fn decide(&mut self, shown: &Shown, path: impl FnOnce() -> String) -> Action {
        let whole = self.has_struck();
        let action = self.action(shown);
        if action != Action::Pass && !whole {
            let struck = self.struck(action, shown.call, path());
            match (&self.met.first, self.has_struck()) {
                (None, _) => self.met.first = Some(struck),
                (Some(_), true) => self.met.second = Some(struck),
                (Some(_), false) => {}
            }
        }
        action
    }

    fn struck(&self, action: Action, call: Call, path: String) -> Struck {
        let at = |point, path| Struck::Call { call, path, point };
        match action {
            Action::Pass | Action::KillAfter => at(Point::After, path),
            Action::KillBefore => at(Point::Before, path),
            Action::Cut { keep, .. } if matches!(self.arms, Arms::Failing(..)) => {
                Struck::Failed { call, path, result: i64::try_from(keep).unwrap_or(i64::MAX) }
            }
            Action::Cut { keep, .. } => at(Point::Inside(ByteOffset(keep as u64)), path),
            Action::Fail(errno) | Action::FailAfter(errno) => {
                Struck::Failed { call, path, result: -i64::from(errno.number()) }
            }
        }
    }

    fn action(&mut self, shown: &Shown) -> Action {
        match &mut self.arms {
            Arms::Idle => Action::Pass,
            Arms::Strike(strike, then, progress) => {
                let action = strike_at(strike, *then, &mut progress.seen, shown);
                progress.failed |= action != Action::Pass;
                action
            }
            Arms::Failing(failing, progress) => fail(failing, progress, shown),
            Arms::Full(kill, progress) => {
                if !progress.failed {
                    return Action::Pass;
                }
                let here = *kill == Some(progress.since);
                progress.since += 1;
                progress.second |= here;
                if here { Action::KillBefore } else { Action::Pass }
            }
        }
    }

    /// Hears what a call returned, of all that are followed.
    pub fn returned(&mut self, shown: &Shown, result: i64, path: impl FnOnce() -> String) {
        // The kernel may have taken fewer bytes than it was let.
        if let Some(Struck::Call { point: Point::Inside(byte), .. }) = &mut self.met.first
            && let Ok(count) = u64::try_from(result)
        {
            *byte = ByteOffset(count.min(byte.0));
        }
        let Arms::Full(_, progress) = &mut self.arms else { return };
        if errno::says_full(-result) || fell_short(shown, result) {
            progress.failed = true;
            let call = shown.call;
            self.met.first.get_or_insert_with(|| Struck::Failed { call, path: path(), result });
        }
    }
}

/// Whether a write has put fewer bytes into its file than it was to. A copy between files that
/// falls short has only come to the end of its source.
#[must_use]
pub fn fell_short(shown: &Shown, result: i64) -> bool {
    shown.call.is_write() && usize::try_from(result).is_ok_and(|count| count < shown.length)
}

fn strike_at(strike: &Strike, then: Then, seen: &mut u32, shown: &Shown) -> Action {
    if shown.call != strike.call {
        return Action::Pass;
    }
    *seen += 1;
    if *seen != strike.nth {
        return Action::Pass;
    }
    match strike.point {
        Point::Before => Action::KillBefore,
        Point::After => Action::KillAfter,
        Point::Inside(byte) => {
            let keep = usize::try_from(byte.0).unwrap_or(usize::MAX);
            match then {
                then if keep < shown.length => Action::Cut { keep, then },
                // The call is shorter than the one that was recorded: there is no inside here.
                Then::Kill => Action::KillAfter,
                Then::GoOn => Action::Pass,
            }
        }
    }
}

fn fail(failing: &Failing, progress: &mut Progress, shown: &Shown) -> Action {
    let can = shown.call.family() == failing.family && errno::can(shown, failing.way);
    if progress.failed {
        if let Some(way) = failing.second.and_then(|second| second_way(second, shown)) {
            progress.since += 1;
            if failing.second.is_some_and(|second| second.nth_after == progress.since) {
                progress.second = true;
                return action(way, shown);
            }
        }
        let sticky = failing.repeat == Repeat::Sticky;
        if failing.way == Way::ShortThenFull {
            let full = shown.call.family() == failing.family
                && errno::can(shown, Way::NotMade(Errno::Enospc))
                && (sticky || !progress.full);
            progress.full |= full;
            return if full { Action::Fail(Errno::Enospc) } else { Action::Pass };
        }
        return if can && sticky { action(failing.way, shown) } else { Action::Pass };
    }
    progress.seen += u32::from(can);
    if !can || progress.seen != failing.nth {
        return Action::Pass;
    }
    progress.failed = true;
    action(failing.way, shown)
}

/// How a call fails as the second; `None` if it can't fail.
fn second_way(second: Second, shown: &Shown) -> Option<Way> {
    let family = errno::ways(shown.call.family());
    let wanted = [Way::NotMade(second.errno), Way::Made(second.errno)];
    let usual = [Way::NotMade(Errno::Eio), Way::Made(Errno::Eio)];
    let possible = |way: &Way| family.contains(way) && errno::can(shown, *way);
    wanted.into_iter().chain(usual).find(possible)
}

fn action(way: Way, shown: &Shown) -> Action {
    match way {
        Way::NotMade(errno) => Action::Fail(errno),
        Way::Made(errno) => Action::FailAfter(errno),
        Way::Short(keep) => Action::Cut { keep: keep.of(shown.length), then: Then::GoOn },
        Way::ShortThenFull => action(Way::Short(Keep::Half), shown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Nature;
    use crate::file_system::{Axis, FileSystem};
    use crate::op::OpIndex;

    fn armed(nth: u32, point: Point) -> Armed {
        let (op, call, nature) = (OpIndex(0), Call::Write, Nature::Natural);
        Armed::new(&Fault::Kill(Strike { op, call, nth, point, nature }))
    }

    fn failing(nth: u32, way: Way, repeat: Repeat, second: Option<Second>) -> Armed {
        Armed::new(&Fault::Errno(Failing { family: Family::Write, nth, way, repeat, second }))
    }

    fn decide(armed: &mut Armed, call: Call, length: usize) -> Action {
        armed.decide(&Shown::plain(call, length), String::new)
    }

    #[test]
    fn it_strikes_at_the_nth_call_of_its_kind_and_never_again() {
        let mut armed = armed(2, Point::Before);
        assert_eq!(decide(&mut armed, Call::Open, 0), Action::Pass);
        assert_eq!(decide(&mut armed, Call::Write, 9), Action::Pass);
        assert_eq!(decide(&mut armed, Call::Rename, 0), Action::Pass);
        assert_eq!(decide(&mut armed, Call::Write, 9), Action::KillBefore);
        assert_eq!(decide(&mut armed, Call::Write, 9), Action::Pass);
    }

    #[test]
    fn a_cut_past_the_end_of_a_shorter_write_is_a_kill_after_it() {
        let cut = Point::Inside(ByteOffset(5));
        let kill = Action::Cut { keep: 5, then: Then::Kill };
        assert_eq!(decide(&mut armed(1, cut), Call::Write, 6), kill);
        assert_eq!(decide(&mut armed(1, cut), Call::Write, 5), Action::KillAfter);
    }

    #[test]
    fn a_failure_counts_over_its_family_and_only_calls_that_can_fail_so() {
        let mut armed = failing(2, Way::Short(Keep::Half), Repeat::Once, None);
        assert_eq!(decide(&mut armed, Call::Write, 10), Action::Pass);
        assert_eq!(decide(&mut armed, Call::Write, 1), Action::Pass);
        let half = Action::Cut { keep: 4, then: Then::GoOn };
        assert_eq!(decide(&mut armed, Call::Pwrite, 8), half);
        assert_eq!(decide(&mut armed, Call::Write, 8), Action::Pass);
        assert!(armed.has_struck());
    }

    #[test]
    fn a_sticky_failure_stays() {
        let eio = Way::NotMade(Errno::Eio);
        let mut armed = failing(1, eio, Repeat::Sticky, None);
        assert_eq!(decide(&mut armed, Call::Write, 10), Action::Fail(Errno::Eio));
        assert_eq!(decide(&mut armed, Call::Open, 0), Action::Pass);
        assert_eq!(decide(&mut armed, Call::Writev, 10), Action::Fail(Errno::Eio));
    }

    #[test]
    fn after_a_short_write_the_disk_is_full_once_or_from_then_on() {
        for repeat in [Repeat::Once, Repeat::Sticky] {
            let mut armed = failing(1, Way::ShortThenFull, repeat, None);
            let half = Action::Cut { keep: 5, then: Then::GoOn };
            assert_eq!(decide(&mut armed, Call::Write, 10), half);
            assert_eq!(decide(&mut armed, Call::Fsync, 0), Action::Pass);
            // One byte, too, finds no space.
            assert_eq!(decide(&mut armed, Call::Write, 1), Action::Fail(Errno::Enospc));
            let again = decide(&mut armed, Call::Pwrite, 5);
            let stays = repeat == Repeat::Sticky;
            assert_eq!(again == Action::Fail(Errno::Enospc), stays);
            assert_eq!(again == Action::Pass, !stays);
        }
    }

    #[test]
    fn a_second_failure_is_counted_from_the_first() {
        let second = Some(Second { nth_after: 2, errno: Errno::Enospc });
        let mut armed = failing(1, Way::NotMade(Errno::Enospc), Repeat::Once, second);
        assert_eq!(decide(&mut armed, Call::Close, 0), Action::Pass);
        assert_eq!(decide(&mut armed, Call::Write, 10), Action::Fail(Errno::Enospc));
        assert_eq!(decide(&mut armed, Call::Close, 0), Action::Pass);
        assert!(!armed.has_struck());
        // An unlink takes no space; it fails with what it can fail with.
        assert_eq!(decide(&mut armed, Call::Unlink, 0), Action::Fail(Errno::Eio));
        assert!(armed.has_struck());
    }

    #[test]
    fn on_a_full_disk_the_kill_is_counted_from_the_first_call_that_failed() {
        let full =
            DiskFull { fs: FileSystem::Tmpfs, axis: Axis::Space, free: 0, kill_before: Some(1) };
        let mut armed = Armed::new(&Fault::DiskFull(full));
        let write = Shown::plain(Call::Write, 10);
        assert_eq!(armed.decide(&write, String::new), Action::Pass);
        armed.returned(&write, 4, String::new);
        assert_eq!(armed.decide(&write, String::new), Action::Pass);
        armed.returned(&write, -i64::from(libc::ENOSPC), String::new);
        assert_eq!(armed.decide(&write, String::new), Action::KillBefore);
        assert!(matches!(armed.injection(), Injection::Both(Struck::Failed { result: 4, .. }, _)));
    }

    #[test]
    fn what_repeats_is_no_second_part() {
        let mut armed = failing(1, Way::NotMade(Errno::Eio), Repeat::Sticky, None);
        for _ in 0..3 {
            decide(&mut armed, Call::Write, 10);
        }
        assert!(matches!(armed.injection(), Injection::At(Struck::Failed { .. })));
    }
}
