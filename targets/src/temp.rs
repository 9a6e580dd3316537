//! What the strategies write through: temp files beside the state, and open files as writers.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rand::TryRng;
use rand::rngs::SysRng;

use crate::storage::{FileId, Open, Storage};

/// What the random temp names begin with.
pub(crate) const TEMP_PREFIX: &str = ".state.json.";

/// A file beside the target, to be renamed over it.
pub(crate) struct Temp {
    pub(crate) path: PathBuf,
    pub(crate) how: Open,
}

impl Temp {
    /// The same name every time: what a crash left is overwritten by the next save.
    pub(crate) fn fixed(target: &Path) -> Self {
        let mut path = target.as_os_str().to_owned();
        path.push(".tmp");
        Self { path: path.into(), how: Open::Truncate }
    }

    /// A new name every time: two savers never share one.
    ///
    /// Drawn from the kernel: a generator in the process would draw the same names again in a
    /// forked child.
    pub(crate) fn random(directory: &Path) -> io::Result<Self> {
        let number = SysRng.try_next_u64().map_err(io::Error::other)?;
        Ok(Self { path: directory.join(format!("{TEMP_PREFIX}{number:016x}")), how: Open::New })
    }
}

/// An open file as a writer.
pub(crate) struct Handle<'a> {
    pub(crate) disk: &'a mut dyn Storage,
    pub(crate) file: FileId,
}

impl Write for Handle<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.disk.write(self.file, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
