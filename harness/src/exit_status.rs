//! With which status the command ends, and what each one says.

/// The exit status of `crashtest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// Every expectation held.
    AsExpected = 0,
    /// A violation that was not expected, or an expected one that vanished.
    Unexpected = 1,
    /// The command line or a file that it names is wrong.
    Usage = 2,
    /// The subject failed in its unbroken run.
    BaselineFailed = 3,
    /// No fault struck, so nothing was tested.
    NothingStruck = 4,
    /// This machine lacks what was asked for.
    MachineLacks = 5,
    /// The harness itself failed.
    Internal = 70,
    /// Stopped by Ctrl-C (128 + SIGINT); the table so far was printed.
    Interrupted = 130,
}

impl ExitStatus {
    /// The status with this code, with which another process of crashtest has ended.
    #[must_use]
    pub fn of_code(code: i32) -> Self {
        [
            Self::AsExpected,
            Self::Unexpected,
            Self::Usage,
            Self::BaselineFailed,
            Self::NothingStruck,
            Self::MachineLacks,
            Self::Interrupted,
        ]
        .into_iter()
        .find(|status| *status as i32 == code)
        .unwrap_or(Self::Internal)
    }
}

impl From<ExitStatus> for std::process::ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status as u8)
    }
}
