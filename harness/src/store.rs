//! Stores whose bytes say little: what a file is, and how its contents are printed without the program's help.
//!
//! The bytes of a database differ where its rows do not (a checkpoint moves them from one file to another) and are
//! the same where its rows differ (they lie in a log beside it). So it is judged by what a load prints.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::inject::checks::quoted;
use crate::outcome::Content;

/// How a SQLite database begins (<https://www.sqlite.org/fileformat.html>, section 1.3).
const SQLITE: &[u8] = b"SQLite format 3\0";
/// What SQLite keeps beside a database, by the ends of the names.
const SQLITE_COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Prints all rows as JSON, so that values which differ from run to run can be told. The first argument is a database.
const PYTHON: &str = "import json, sqlite3, sys
c = sqlite3.connect(sys.argv[1])
names = [n for n, in c.execute('select name from sqlite_master where type = \"table\" order by name')]
rows = {n: list(c.execute('select * from \"%s\"' % n.replace('\"', '\"\"'))) for n in names}
print(json.dumps({'check': list(c.execute('pragma integrity_check')), 'rows': rows}, default=bytes.hex))";

/// A way to load a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnLoad {
    /// The program that it needs.
    pub needs: &'static str,
    /// The shell command, run in the trial directory.
    pub text: String,
}

/// The SQLite databases that are the state, if nothing else is: what a run has left of it, by path.
#[must_use]
pub fn databases(state: &BTreeMap<PathBuf, Content>) -> Vec<&Path> {
    let is_database = |path: &Path| matches!(state.get(path), Some(Content::Bytes(bytes)) if bytes.starts_with(SQLITE));
    let is_companion = |path: &Path| {
        let name = path.to_string_lossy();
        let base = SQLITE_COMPANIONS.iter().find_map(|end| name.strip_suffix(end));
        base.is_some_and(|base| is_database(Path::new(base)))
    };
    let own = |path: &&PathBuf| path.is_relative() && (is_database(path) || is_companion(path));
    if !state.keys().all(|path| own(&path)) {
        return Vec::new();
    }
    state.keys().map(PathBuf::as_path).filter(|path| is_database(path)).collect()
}

/// The ways to print what is in these databases, the fastest first.
#[must_use]
pub fn loads(databases: &[&Path]) -> [OwnLoad; 2] {
    let each = |print: &dyn Fn(&str) -> String| {
        // A name that begins with a hyphen is no option.
        let names = databases.iter().map(|path| quoted(&format!("./{}", path.display())));
        names.map(|name| print(&name)).collect::<Vec<_>>().join(" && ")
    };
    let dump = each(&|name| format!("sqlite3 -bail {name} 'pragma integrity_check' .dump"));
    let json = each(&|name| format!("python3 -c {} {name}", quoted(PYTHON)));
    [OwnLoad { needs: "sqlite3", text: dump }, OwnLoad { needs: "python3", text: json }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(files: &[(&str, &[u8])]) -> BTreeMap<PathBuf, Content> {
        let file =
            |(path, bytes): &(&str, &[u8])| (PathBuf::from(path), Content::Bytes(bytes.to_vec()));
        files.iter().map(file).collect()
    }

    #[test]
    fn a_database_is_known_by_its_first_bytes_and_not_by_its_name() {
        let database = b"SQLite format 3\0\x10\0".as_slice();
        let found = |files: &[(&str, &[u8])]| {
            let state = state(files);
            databases(&state).into_iter().map(Path::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(found(&[("a.json", database)]), [Path::new("a.json")]);
        assert_eq!(found(&[("a", database), ("a-wal", b"7")]), [Path::new("a")]);
        assert_eq!(found(&[("a", database), ("b", database)]).len(), 2);
        // What else there is must be judged too.
        assert_eq!(found(&[("a", database), ("b-wal", b"7")]).len(), 0);
        assert_eq!(found(&[("a", database), ("s.json", b"{}")]).len(), 0);
        assert_eq!(found(&[("a.db", b"SQLite format 4\0")]).len(), 0);
        assert_eq!(found(&[("/outside/a.db", database)]).len(), 0);
        assert_eq!(found(&[]).len(), 0);
    }

    #[test]
    fn a_name_is_one_word_of_the_load() {
        let [dump, _] = loads(&[Path::new("a b.db"), Path::new("-c")]);
        assert!(dump.text.contains("'./a b.db'") && dump.text.contains("./-c"), "{}", dump.text);
        assert!(dump.text.contains(" && "), "{}", dump.text);
    }
}
