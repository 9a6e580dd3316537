//! Errors that people read: what was tried, on what, what the system said, and what to do.

use std::fmt;

use crate::exit_status::ExitStatus;

/// What went wrong, as it is shown to the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The status with which the command ends because of it.
    pub status: ExitStatus,
    /// The operation, the object and the cause, in lower case.
    pub message: String,
    /// What the user can do, if anything.
    pub help: Option<String>,
}

/// The result of everything that can fail in front of the user.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn new(status: ExitStatus, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), help: None }
    }

    /// The command line, a scenario or a check file is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ExitStatus::Usage, message)
    }

    /// The unbroken run of the subject failed, so nothing can be said about a broken one.
    pub fn baseline(message: impl Into<String>) -> Self {
        Self::new(ExitStatus::BaselineFailed, message)
    }

    /// This machine lacks what was asked for.
    pub fn lacking(message: impl Into<String>) -> Self {
        Self::new(ExitStatus::MachineLacks, message)
    }

    /// The harness itself failed.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ExitStatus::Internal, message)
    }

    /// Ctrl-C came before the trials began.
    #[must_use]
    pub fn interrupted() -> Self {
        Self::new(ExitStatus::Interrupted, "interrupted in the unbroken run")
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(help) = &self.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Names the operation and the object of a failed system call.
pub trait Context<T> {
    /// Turns the cause into an internal error "cannot `what`: cause".
    fn context(self, what: impl fmt::Display) -> Result<T>;
    /// As `context`, when it takes work to say what.
    fn with_context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|cause| Error::internal(format!("cannot {what}: {cause}")))
    }

    fn with_context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|cause| Error::internal(format!("cannot {}: {cause}", what())))
    }
}
