//! What a program is written in, by its command line and the files that it names.

use std::fmt;
use std::path::{Path, PathBuf};

use object::{Object, ObjectSection};
use serde::{Deserialize, Serialize};

/// A language in which there are examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// Python.
    Python,
    /// JavaScript, in Node.js.
    JavaScript,
    /// Rust.
    Rust,
    /// Go.
    Go,
    /// C, or what compiles like it.
    C,
    /// Shell.
    Shell,
}

/// Programs that start another.
const WRAPPERS: [&str; 8] =
    ["env", "nice", "nohup", "setsid", "stdbuf", "sudo", "timeout", "xvfb-run"];

impl Language {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Python, Self::JavaScript, Self::Rust, Self::Go, Self::C, Self::Shell];

    /// The word that begins a block of code in Markdown.
    #[must_use]
    pub fn fence(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::JavaScript => "javascript",
            Self::Rust => "rust",
            Self::Go => "go",
            Self::C => "c",
            Self::Shell => "sh",
        }
    }

    /// The language of the program that a command line starts, if it can be told.
    #[must_use]
    pub fn of(argv: &[String]) -> Option<Self> {
        let (wrapper, rest) = argv.split_first()?;
        let name = Path::new(wrapper).file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| WRAPPERS.contains(&name)) {
            // Its own options, variables and numbers are nothing of the kind.
            let command =
                rest.iter().position(|word| found(word).is_some_and(|path| path.is_file()))?;
            return Self::of(&rest[command..]);
        }
        Self::of_word(wrapper).or_else(|| rest.iter().find_map(|word| Self::of_script(word)))
    }

    /// By the name of a program or script, or by what is in it.
    fn of_word(word: &str) -> Option<Self> {
        Self::of_script(word).or_else(|| Self::of_file(&found(word)?))
    }

    fn of_script(word: &str) -> Option<Self> {
        let name = Path::new(word).file_name()?.to_str()?;
        let known = |names: &[&str]| {
            // `python3.11` is a Python.
            names.contains(&name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.'))
        };
        let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
        if known(&["python", "pypy"]) || ends(&[".py"]) {
            return Some(Self::Python);
        }
        if known(&["node", "nodejs"]) || ends(&[".js", ".mjs", ".cjs"]) {
            return Some(Self::JavaScript);
        }
        if known(&["sh", "bash", "dash", "zsh", "ksh"]) || ends(&[".sh"]) {
            return Some(Self::Shell);
        }
        None
    }

    /// By the first line of a script, or by what a compiler has left.
    fn of_file(path: &Path) -> Option<Self> {
        let bytes = std::fs::read(path).ok()?;
        if let Some(line) = bytes.strip_prefix(b"#!") {
            let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let line = String::from_utf8_lossy(line).into_owned();
            return line.split_whitespace().find_map(|word| match Path::new(word).file_name() {
                Some(name) if name == "env" => None,
                _ => Self::of_word(word),
            });
        }
        if ["/usr/bin/", "/bin/"].iter().any(|place| path.starts_with(place)) {
            // An interpreter or a tool: not what is tested.
            return None;
        }
        let file = object::File::parse(&*bytes).ok()?;
        if file.section_by_name(".go.buildinfo").is_some() {
            return Some(Self::Go);
        }
        let comment = file.section_by_name(".comment").and_then(|section| section.data().ok());
        let is_rust = comment.is_some_and(|text| String::from_utf8_lossy(text).contains("rustc"));
        Some(if is_rust { Self::Rust } else { Self::C })
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Python => "Python",
            Self::JavaScript => "JavaScript",
            Self::Rust => "Rust",
            Self::Go => "Go",
            Self::C => "C",
            Self::Shell => "shell",
        })
    }
}

/// A program as the shell finds it.
fn found(word: &str) -> Option<PathBuf> {
    if word.contains('/') {
        return Some(word.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(word)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Option<Language> {
        Language::of(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn an_interpreter_a_script_and_a_compiled_program_are_told_apart() {
        assert_eq!(of(&["/usr/bin/python3.11", "bot"]), Some(Language::Python));
        assert_eq!(of(&["node", "bot.mjs"]), Some(Language::JavaScript));
        assert_eq!(of(&["sh", "-c", "true"]), Some(Language::Shell));
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("bot");
        std::fs::write(&script, "#!/usr/bin/env python3\n").unwrap();
        assert_eq!(of(&[&script.display().to_string()]), Some(Language::Python));
        let this = std::env::current_exe().unwrap();
        assert_eq!(of(&[&this.display().to_string()]), Some(Language::Rust));
        assert_eq!(of(&["/no/such/program"]), None);
        assert_eq!(of(&["env", "A=1", "python3", "bot"]), Some(Language::Python));
        assert_eq!(of(&["timeout", "20", "node", "bot"]), Some(Language::JavaScript));
        assert_eq!(of(&["/usr/bin/perl", "bot.pl"]), None);
    }
}
