//! A look at Python sources for the patterns that lose a state. What is found is a hint and no finding:
//! nothing is run.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tree_sitter::{Node, Parser, Tree};

use crate::error::{Error, Result};

/// A place to look at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Hint {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// What it looks like.
    pub pattern: Pattern,
}

/// What loses a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// `open(path, "w")` with a dump into it, and no rename.
    InPlace,
    /// A rename in a function that calls no fsync.
    RenameWithoutSync,
    /// A temporary file that is not in the directory of what it replaces.
    TempElsewhere,
    /// A load that nothing catches.
    UncheckedLoad,
    /// A load whose errors are thrown away.
    SilencedLoad,
}

impl Pattern {
    /// It in words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::InPlace => {
                "the file is emptied and then written: a kill, a full disk or a loss of power in between \
                 leaves half of it; write a new file and rename it"
            }
            Self::RenameWithoutSync => {
                "a rename, and no fsync in the function: after a loss of power the file can be empty; call \
                 os.fsync on the new file first"
            }
            Self::TempElsewhere => {
                "the temporary file may be on another file system, so that it is copied and not renamed: give \
                 dir= the directory of the state"
            }
            Self::UncheckedLoad => {
                "a state that can't be read ends the program here: catch it, say so, and take a copy"
            }
            Self::SilencedLoad => {
                "whatever goes wrong in the load is thrown away: a damaged state becomes a new one, and nobody \
                 is told"
            }
        }
    }
}

/// How many files are looked at, and how large one may be in bytes.
const FILES_MAX: usize = 10_000;
const BYTES_MAX: u64 = 4 << 20;

/// Looks at all Python sources below a directory, or at one file.
pub fn look(path: &Path) -> Result<Vec<Hint>> {
    if !path.exists() {
        return Err(Error::usage(format!(
            "--source {}: there is no such file or directory",
            path.display()
        )));
    }
    let mut files = Vec::new();
    match path.is_dir() {
        // A link to a directory is one, if it is named.
        true => entries(path, &mut files),
        false => files.push(path.to_owned()),
    }
    files.sort();
    let mut parser = Parser::new();
    parser
        .set_language(&tree_sitter_python::LANGUAGE.into())
        .map_err(|why| Error::internal(format!("the grammar of Python: {why}")))?;
    let mut hints = BTreeSet::new();
    for file in files {
        let Ok(text) = std::fs::read(&file) else { continue };
        let Some(tree) = parser.parse(&text, None) else { continue };
        for (line, pattern) in patterns(&tree, &text) {
            hints.insert(Hint { file: file.clone(), line, pattern });
        }
    }
    Ok(hints.into_iter().collect())
}

/// The Python files below a directory, without what was fetched for them.
fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    let Ok(found) = std::fs::symlink_metadata(path) else { return };
    if found.is_dir() {
        return entries(path, files);
    }
    let is_small = |found: std::fs::Metadata| found.is_file() && found.len() <= BYTES_MAX;
    if path.extension().is_some_and(|end| end == "py") && path.metadata().is_ok_and(is_small) {
        files.push(path.to_owned());
    }
}

fn entries(directory: &Path, files: &mut Vec<PathBuf>) {
    let fetched = |name: &str| {
        name.starts_with('.')
            || matches!(name, "site-packages" | "dist-packages" | "node_modules" | "__pycache__")
    };
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if !fetched(&entry.file_name().to_string_lossy()) && files.len() < FILES_MAX {
            collect(&entry.path(), files);
        }
    }
}

/// A call in a source.
struct Called<'t> {
    node: Node<'t>,
    /// `json.dump`, `open`.
    name: &'t str,
    arguments: Vec<Node<'t>>,
}

/// What there is to look at in a source: line and pattern.
fn patterns(tree: &Tree, text: &[u8]) -> Vec<(usize, Pattern)> {
    let mut found = Vec::new();
    for scope in scopes(tree.root_node()) {
        let calls = calls(scope, text);
        let named = |names: &[&str]| {
            let is = |call: &&Called<'_>| names.iter().any(|name| is_named(call.name, name));
            calls.iter().filter(is).collect::<Vec<_>>()
        };
        let renames = named(&["os.rename", "os.replace", "shutil.move", ".rename", ".replace"]);
        let renames: Vec<_> = renames.into_iter().filter(|call| moves_file(call)).collect();
        // By itself or by a function that is called so.
        let syncs = calls.iter().any(|call| syncs(call.name));
        let dumps = named(&["dump", ".dump", ".safe_dump", ".write", ".writelines", "print"]);
        if renames.is_empty() {
            let opened = calls.iter().filter(|call| truncates(call, text));
            let whole = named(&[".write_text", ".write_bytes"]);
            let opened = opened.filter(|_| !dumps.is_empty());
            found.extend(opened.chain(whole).map(|call| (line(call.node), Pattern::InPlace)));
        } else {
            // What only moves files that others have written is no save.
            let made = named(&["NamedTemporaryFile", "mkstemp"]);
            let writes = !made.is_empty() || calls.iter().any(|call| opens_to_write(call, text));
            if writes && !syncs {
                found.extend(
                    renames.iter().map(|call| (line(call.node), Pattern::RenameWithoutSync)),
                );
            }
            let made = named(&["NamedTemporaryFile", "mkstemp", "TemporaryDirectory", "mkdtemp"]);
            let elsewhere = made.into_iter().filter(|call| !has_keyword(call, "dir", text));
            found.extend(elsewhere.map(|call| (line(call.node), Pattern::TempElsewhere)));
        }
        for load in
            named(&["json.load", "json.loads", "pickle.load", "yaml.safe_load", "yaml.load"])
        {
            match guard(load.node, text) {
                Guard::None if reads_file(&calls, text) => {
                    found.push((line(load.node), Pattern::UncheckedLoad));
                }
                Guard::Silent => found.push((line(load.node), Pattern::SilencedLoad)),
                Guard::None | Guard::Handled => {}
            }
        }
    }
    found
}

/// Each function, and the module; what is nested in a scope belongs to the inner one.
fn scopes(root: Node<'_>) -> Vec<Node<'_>> {
    let mut scopes = vec![root];
    each(root, &mut |node| {
        if node.kind() == "function_definition" {
            scopes.push(node);
        }
        true
    });
    scopes
}

/// Visits all nodes below one; where it says false, what is below is left out. A source may be nested
/// deeper than a stack is.
fn each<'t>(node: Node<'t>, visit: &mut dyn FnMut(Node<'t>) -> bool) {
    let below = |node: Node<'t>| {
        let mut cursor = node.walk();
        let mut children: Vec<_> = node.children(&mut cursor).collect();
        children.reverse();
        children
    };
    let mut open = below(node);
    while let Some(node) = open.pop() {
        if visit(node) {
            open.extend(below(node));
        }
    }
}

fn calls<'t>(scope: Node<'t>, text: &'t [u8]) -> Vec<Called<'t>> {
    let mut calls = Vec::new();
    each(scope, &mut |node| {
        if node.kind() == "call"
            && let (Some(function), Some(arguments)) =
                (node.child_by_field_name("function"), node.child_by_field_name("arguments"))
        {
            let mut cursor = arguments.walk();
            let arguments = arguments.named_children(&mut cursor).collect();
            calls.push(Called { node, name: words(function, text), arguments });
        }
        node.kind() != "function_definition"
    });
    calls
}

fn words<'t>(node: Node<'_>, text: &'t [u8]) -> &'t str {
    node.utf8_text(text).unwrap_or_default()
}

fn line(node: Node<'_>) -> usize {
    node.start_position().row + 1
}

/// `name` as it stands, after a module, or, if it begins with a dot, as a method of anything.
fn is_named(called: &str, name: &str) -> bool {
    match name.strip_prefix('.') {
        Some(_) => called.ends_with(name),
        None => called == name || called.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')),
    }
}

/// Whether a function is called so that it may sync a file: `os.fsync`, `sync_directory`, not
/// `asyncio.run`.
fn syncs(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    last.split('_').any(|word| matches!(word, "sync" | "fsync" | "fdatasync" | "datasync"))
}

/// Whether a `replace` is one of a file, and not of a part of a text, which has two arguments.
fn moves_file(call: &Called<'_>) -> bool {
    let of_module = call.name.starts_with("os.") || call.name.starts_with("shutil.");
    of_module || matches!(&call.arguments[..], [one] if one.kind() != "keyword_argument")
}

/// Whether a call empties the file that it opens.
fn truncates(call: &Called<'_>, text: &[u8]) -> bool {
    mode(call, text).is_some_and(|mode| mode.starts_with('w'))
}

/// Whether a call opens a file to write in it.
fn opens_to_write(call: &Called<'_>, text: &[u8]) -> bool {
    let writes = mode(call, text).is_some_and(|mode| mode.contains(['w', 'x', 'a', '+']));
    writes || call.name.ends_with(".write_text") || call.name.ends_with(".write_bytes")
}

/// How a call opens a file, if it does and says how.
fn mode<'t>(call: &Called<'_>, text: &'t [u8]) -> Option<&'t str> {
    let opens = call.name == "open" || call.name.ends_with(".open");
    let value = |node: &Node<'_>| {
        let value = match node.kind() {
            "keyword_argument" => node
                .child_by_field_name("name")
                .filter(|name| words(*name, text) == "mode")
                .and_then(|_| node.child_by_field_name("value"))?,
            _ => *node,
        };
        let mode = words(value, text).trim_matches(['"', '\'']);
        let is_mode =
            !mode.is_empty() && mode.len() <= 3 && mode.chars().all(|c| "rwxabt+".contains(c));
        (value.kind() == "string" && is_mode).then_some(mode)
    };
    call.arguments.iter().filter(|_| opens).find_map(value)
}

fn has_keyword(call: &Called<'_>, keyword: &str, text: &[u8]) -> bool {
    call.arguments.iter().any(|node| {
        let name = node.child_by_field_name("name");
        node.kind() == "keyword_argument" && name.is_some_and(|name| words(name, text) == keyword)
    })
}

/// Whether a scope reads a file at all: a text from elsewhere is no state.
fn reads_file(calls: &[Called<'_>], text: &[u8]) -> bool {
    let reads = |call: &Called<'_>| {
        let opens = call.name == "open" || call.name.ends_with(".open");
        (opens && !truncates(call, text))
            || call.name.ends_with(".read_text")
            || call.name.ends_with(".read_bytes")
    };
    calls.iter().any(reads)
}

/// What catches the errors of a statement.
enum Guard {
    None,
    Handled,
    /// Everything is caught, and nothing is done.
    Silent,
}

fn guard(node: Node<'_>, text: &[u8]) -> Guard {
    let mut inner = node;
    while let Some(outer) = inner.parent() {
        if outer.kind() == "function_definition" {
            break;
        }
        let in_body = outer.child_by_field_name("body") == Some(inner);
        if outer.kind() == "try_statement" && in_body {
            let mut cursor = outer.walk();
            let mut clauses =
                outer.children(&mut cursor).filter(|child| child.kind() == "except_clause");
            return if clauses.any(|clause| is_silent(clause, text)) {
                Guard::Silent
            } else {
                Guard::Handled
            };
        }
        inner = outer;
    }
    Guard::None
}

/// Whether a clause tells nobody: it raises nothing, calls nothing and gives no None. That there is no
/// file yet is no error.
fn is_silent(clause: Node<'_>, text: &[u8]) -> bool {
    let head = words(clause, text).split(':').next().unwrap_or_default();
    let mut cursor = clause.walk();
    let body = clause.children(&mut cursor).find(|child| child.kind() == "block");
    let Some(body) = body.filter(|_| !head.trim_end().ends_with("FileNotFoundError")) else {
        return false;
    };
    let mut tells = false;
    each(body, &mut |node| {
        tells |= matches!(node.kind(), "raise_statement" | "call");
        tells |= node.kind() == "return_statement" && words(node, text) == "return None";
        !tells
    });
    !tells
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(usize, Pattern)> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bot.py");
        std::fs::write(&file, text).unwrap();
        look(directory.path()).unwrap().into_iter().map(|hint| (hint.line, hint.pattern)).collect()
    }

    #[test]
    fn each_pattern_is_found_where_it_is() {
        let text = "import json, os, tempfile\n\
            def save(state):\n\
            \x20   with open('s.json', 'w') as f:\n\
            \x20       json.dump(state, f)\n\
            def swap(state):\n\
            \x20   fd, temp = tempfile.mkstemp()\n\
            \x20   os.write(fd, state)\n\
            \x20   os.replace(temp, 's.json')\n\
            def load():\n\
            \x20   with open('s.json') as f:\n\
            \x20       return json.load(f)\n\
            def silent():\n\
            \x20   try:\n\
            \x20       return json.load(open('s.json'))\n\
            \x20   except Exception:\n\
            \x20       return {}\n";
        let expected = [
            (3, Pattern::InPlace),
            (6, Pattern::TempElsewhere),
            (8, Pattern::RenameWithoutSync),
            (11, Pattern::UncheckedLoad),
            (14, Pattern::SilencedLoad),
        ];
        assert_eq!(found(text), expected);
    }

    #[test]
    fn what_is_sound_or_no_file_is_left_alone() {
        let text = "import json, os\n\
            def save(path, state):\n\
            \x20   temp = path + '.tmp'\n\
            \x20   with open(temp, 'w') as f:\n\
            \x20       f.write(json.dumps(state).replace('a', 'b'))\n\
            \x20       os.fsync(f.fileno())\n\
            \x20   os.replace(temp, path)\n\
            def load(path):\n\
            \x20   try:\n\
            \x20       return json.loads(open(path).read())\n\
            \x20   except ValueError as error:\n\
            \x20       raise SystemExit(error)\n\
            def parse(message): return json.loads(message)\n\
            # open('x', 'w').write('no code')\n";
        assert_eq!(found(text), []);
    }

    #[test]
    fn a_source_that_is_nested_deeper_than_a_stack_is_read() {
        let deep = format!("x = {}1{}\n", "(".repeat(50_000), ")".repeat(50_000));
        let long = format!("y = 1{}\n", " + 1".repeat(100_000));
        assert_eq!(found(&(deep + &long)), []);
    }

    #[test]
    fn a_source_with_errors_is_read_as_far_as_it_goes() {
        let text = "def save(s):\n    open('s', 'w').write(s)\n\ndef broken(:\n  \0\n";
        assert!(found(text).contains(&(2, Pattern::InPlace)));
    }
}
