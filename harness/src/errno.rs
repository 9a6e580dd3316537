//! The errors that a storage call can return, as rows of a table: which call, which error, and
//! whether the call was made all the same.
//!
//! Only what the manual pages of the calls list, or what a file system in `fs/` of the kernel
//! returns: a program must not be accused of not handling what can't happen.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::op::{Call, Family};

/// An error of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Errno {
    /// Input/output error.
    Eio,
    /// No space left on device.
    Enospc,
    /// Disk quota exceeded.
    Edquot,
    /// Interrupted system call.
    Eintr,
    /// Resource temporarily unavailable.
    Eagain,
    /// Read-only file system.
    Erofs,
    /// Too many open files.
    Emfile,
    /// Operation not supported.
    Eopnotsupp,
}

impl Errno {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Eio,
        Self::Enospc,
        Self::Edquot,
        Self::Eintr,
        Self::Eagain,
        Self::Erofs,
        Self::Emfile,
        Self::Eopnotsupp,
    ];

    /// The number in `errno.h`.
    #[must_use]
    pub fn number(self) -> i32 {
        match self {
            Self::Eio => libc::EIO,
            Self::Enospc => libc::ENOSPC,
            Self::Edquot => libc::EDQUOT,
            Self::Eintr => libc::EINTR,
            Self::Eagain => libc::EAGAIN,
            Self::Erofs => libc::EROFS,
            Self::Emfile => libc::EMFILE,
            Self::Eopnotsupp => libc::EOPNOTSUPP,
        }
    }

    /// The name in `errno.h`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Eio => "EIO",
            Self::Enospc => "ENOSPC",
            Self::Edquot => "EDQUOT",
            Self::Eintr => "EINTR",
            Self::Eagain => "EAGAIN",
            Self::Erofs => "EROFS",
            Self::Emfile => "EMFILE",
            Self::Eopnotsupp => "EOPNOTSUPP",
        }
    }

    /// Whether it can last. A call that is interrupted for ever, or that never becomes ready, is no
    /// failing disk: whoever retries it would do so for ever, and rightly.
    #[must_use]
    pub fn lasts(self) -> bool {
        !matches!(self, Self::Eintr | Self::Eagain)
    }
}

/// The name of an error number, or the number.
#[must_use]
pub fn name_of(number: i64) -> String {
    let known = Errno::ALL.into_iter().find(|errno| i64::from(errno.number()) == number);
    match (known, i32::try_from(number)) {
        (Some(errno), _) => errno.name().to_owned(),
        (None, Ok(number)) => format!("{:?}", nix::errno::Errno::from_raw(number)),
        (None, Err(_)) => number.to_string(),
    }
}

/// Whether an error says that there is no space.
#[must_use]
pub fn says_full(number: i64) -> bool {
    number == i64::from(libc::ENOSPC) || number == i64::from(libc::EDQUOT)
}

/// In what way a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// It returns this error and is not made. After an fsync that was not made the data is not on
    /// disk, and will not be: Linux has marked its pages clean.
    NotMade(Errno),
    /// It is made, and returns this error.
    Made(Errno),
    /// It is a write and takes some of its bytes only.
    Short(Keep),
    /// It is a write and takes half of its bytes, which is all the space that there was: the next write returns
    /// `ENOSPC`, and if that stays so, each after it.
    ShortThenFull,
}

/// How much a short write takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// One byte.
    One,
    /// Half of them.
    Half,
    /// All but one.
    AllButOne,
}

impl Keep {
    /// How many of `length` bytes, of which there are at least 2.
    #[must_use]
    pub fn of(self, length: usize) -> usize {
        match self {
            Self::One => 1,
            Self::Half => length / 2,
            Self::AllButOne => length.saturating_sub(1),
        }
    }
}

impl Way {
    /// Whether it can go on and on.
    #[must_use]
    pub fn lasts(self) -> bool {
        match self {
            Self::NotMade(errno) | Self::Made(errno) => errno.lasts(),
            // A byte at a time, a save of a megabyte would take a million calls.
            Self::Short(keep) => keep == Keep::Half,
            Self::ShortThenFull => true,
        }
    }

    /// The error, if it is one.
    #[must_use]
    pub fn errno(self) -> Option<Errno> {
        match self {
            Self::NotMade(errno) | Self::Made(errno) => Some(errno),
            Self::Short(_) | Self::ShortThenFull => None,
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMade(errno) => f.write_str(errno.name()),
            Self::Made(errno) => write!(f, "{} (done all the same)", errno.name()),
            Self::Short(Keep::One) => f.write_str("a short write of 1 byte"),
            Self::Short(Keep::Half) => f.write_str("a short write of half its bytes"),
            Self::Short(Keep::AllButOne) => f.write_str("a short write of all but 1 byte"),
            Self::ShortThenFull => f.write_str("a short write of half its bytes, then ENOSPC"),
        }
    }
}

/// What is known of a call that is about to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its kind.
    pub call: Call,
    /// How many bytes it is to move; 0 when it moves none.
    pub length: usize,
    /// Whether it opens a file that it may have to make.
    pub creates: bool,
    /// Whether it is not to wait (`O_NONBLOCK`, `RWF_NOWAIT`).
    pub nonblocking: bool,
    /// Whether it is about one file; `sync` is not, and it can't fail.
    pub one_file: bool,
}

impl Shown {
    /// A call of which nothing else matters.
    #[must_use]
    pub fn plain(call: Call, length: usize) -> Self {
        Self { call, length, creates: true, nonblocking: false, one_file: true }
    }
}

/// Whether `call` can fail in this way.
#[must_use]
pub fn can(shown: &Shown, way: Way) -> bool {
    if !shown.one_file || !ways(shown.call.family()).contains(&way) {
        return false;
    }
    match way {
        // How much a copy between files moves depends on its source: it may fall short by itself.
        Way::Short(_) | Way::ShortThenFull => shown.length > 1 && shown.call.is_write(),
        Way::NotMade(Errno::Eagain) => shown.nonblocking,
        // A file that is there takes no space to open.
        Way::NotMade(Errno::Enospc | Errno::Edquot) if shown.call == Call::Open => shown.creates,
        Way::NotMade(_) | Way::Made(_) => true,
    }
}

/// The ways in which calls of a family can fail, the plainest first.
#[must_use]
pub fn ways(family: Family) -> &'static [Way] {
    use Errno::{Eagain, Edquot, Eintr, Eio, Emfile, Enospc, Eopnotsupp, Erofs};
    use Way::{Made, NotMade, Short, ShortThenFull};
    match family {
        Family::Open => {
            &[NotMade(Emfile), NotMade(Enospc), NotMade(Edquot), NotMade(Erofs), NotMade(Eio)]
        }
        Family::Write => &[
            NotMade(Eio),
            NotMade(Enospc),
            NotMade(Edquot),
            NotMade(Eintr),
            NotMade(Eagain),
            Short(Keep::One),
            Short(Keep::Half),
            Short(Keep::AllButOne),
            ShortThenFull,
        ],
        Family::Fsync | Family::Fdatasync | Family::Sync => &[
            NotMade(Eio),
            NotMade(Enospc),
            NotMade(Edquot),
            Made(Eio),
            Made(Enospc),
            // Interrupted while it waited: nothing was marked clean.
            Made(Eintr),
        ],
        Family::SyncFileRange | Family::Msync => &[NotMade(Eio)],
        Family::Truncate => &[NotMade(Eio), NotMade(Enospc), NotMade(Erofs), NotMade(Eintr)],
        Family::Fallocate => {
            &[NotMade(Enospc), NotMade(Edquot), NotMade(Eio), NotMade(Eopnotsupp), NotMade(Eintr)]
        }
        Family::Rename | Family::Link | Family::Symlink | Family::Mkdir => {
            &[NotMade(Eio), NotMade(Enospc), NotMade(Edquot), NotMade(Erofs)]
        }
        Family::Unlink | Family::Rmdir => &[NotMade(Eio), NotMade(Erofs)],
        // Linux lets go of the descriptor whatever close returns (close(2), NOTES): a close that
        // fails and was not made does not exist.
        Family::Close => &[Made(Eio), Made(Enospc), Made(Edquot), Made(Eintr)],
        Family::Clone => &[NotMade(Eopnotsupp), NotMade(Enospc), NotMade(Eio)],
        // That a mapping can't be made is no matter of the disk.
        Family::Map => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_there_takes_no_space_to_open() {
        let mut shown = Shown::plain(Call::Open, 0);
        shown.creates = false;
        assert!(!can(&shown, Way::NotMade(Errno::Enospc)));
        assert!(can(&shown, Way::NotMade(Errno::Emfile)));
    }

    #[test]
    fn only_what_must_not_wait_can_be_told_to_come_again() {
        let mut shown = Shown::plain(Call::Write, 9);
        assert!(!can(&shown, Way::NotMade(Errno::Eagain)));
        shown.nonblocking = true;
        assert!(can(&shown, Way::NotMade(Errno::Eagain)));
    }

    #[test]
    fn a_write_of_one_byte_is_never_short() {
        assert!(!can(&Shown::plain(Call::Pwritev, 1), Way::Short(Keep::One)));
        assert!(can(&Shown::plain(Call::Pwritev, 2), Way::Short(Keep::AllButOne)));
    }

    #[test]
    fn numbers_have_names() {
        assert_eq!(name_of(i64::from(libc::ENOSPC)), "ENOSPC");
        assert_eq!(name_of(i64::from(libc::ENOENT)), "ENOENT");
    }
}
