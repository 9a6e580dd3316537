//! Reads what a program has left: its state files, and the names of all others. No link in it leads out.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::outcome::{Content, Survivor};
use crate::state_files::StateFiles;
use crate::tree::{Directory, Kind};

/// Collects what lies below `root`; `below` is put before the paths.
pub fn collect(
    root: &Path,
    below: &Path,
    state: &StateFiles,
    limit: u64,
    survivor: &mut Survivor,
) -> io::Result<()> {
    let (mut count, mut left) = (0, limit);
    Directory::open(root)?.each(&mut |directory, path, name, kind| {
        count += 1;
        if count > ENTRIES_MAX {
            let what = format!("it holds more than {ENTRIES_MAX} files");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let path = below.join(path);
        if kind == Kind::Directory {
            if let StateFiles::Found(files) = state
                && files.contains(&path)
            {
                survivor.files.insert(path, Content::Other("a directory".to_owned()));
            }
        } else if state.contains(&path) {
            let content = match kind {
                Kind::Link => linked(root, directory, name, left),
                _ => Some(content(directory, name, left)),
            };
            if let Some(Content::Bytes(bytes)) = &content {
                left -= bytes.len() as u64;
            }
            survivor.files.extend(content.map(|content| (path, content)));
        } else {
            survivor.others.push(path);
        }
        Ok(())
    })
}

/// How many names a program may leave.
const ENTRIES_MAX: usize = 200_000;

/// What a symbolic link in the tree leads to, as the program's own load would find it; `None` when it leads
/// nowhere. What lies outside the tree is not looked at.
fn linked(root: &Path, directory: &Directory, name: &OsStr, limit: u64) -> Option<Content> {
    let target = directory.link(name).unwrap_or_default();
    let here = directory.path().ok()?;
    let found = match fs::canonicalize(here.join(&target)) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(Content::Other(format!("not readable: {error}"))),
    };
    let inside = fs::canonicalize(root).is_ok_and(|root| found.starts_with(root));
    let (true, Some(parent), Some(name)) = (inside, found.parent(), found.file_name()) else {
        let what = format!("a link to {}, outside the trial directory", target.display());
        return Some(Content::Other(what));
    };
    Some(match Directory::open(parent) {
        Ok(parent) => content(&parent, name, limit),
        Err(error) => Content::Other(format!("not readable: {error}")),
    })
}

/// What a name holds that is no symbolic link.
fn content(directory: &Directory, name: &OsStr, limit: u64) -> Content {
    let other = |what: &str| Content::Other(what.to_owned());
    match directory.kind(name) {
        Ok(Kind::File) => {}
        Ok(Kind::Directory) => return other("a directory"),
        Ok(Kind::Link | Kind::Other { .. }) => return other("no regular file"),
        Err(error) => return Content::Other(format!("not readable: {error}")),
    }
    let read = directory.read(name).and_then(|mut file| {
        let length = file.metadata()?.len();
        if length > limit {
            return Ok(Err(length));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Ok(bytes))
    });
    match read {
        Ok(Ok(bytes)) => Content::Bytes(bytes),
        Ok(Err(length)) => Content::Other(format!("{length} bytes long, more than is read")),
        Err(error) => Content::Other(format!("not readable: {error}")),
    }
}

/// Whether a name in an upper layer says that there is no such file.
pub fn is_whiteout(upper: &Path, path: &Path) -> bool {
    let path = upper.join(path.strip_prefix("/").unwrap_or(path));
    fs::symlink_metadata(path)
        .is_ok_and(|found| found.file_type().is_char_device() && found.rdev() == 0)
}
