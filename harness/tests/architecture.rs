//! Keeps ARCHITECTURE.md and the style true.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use common::repository;

/// Files over this many lines no longer fit in the head.
const LINES_MAX: usize = 600;

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

fn all_sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    sources(&repository().join("harness/src"), &mut found);
    found
}

#[test]
fn every_source_file_is_on_the_map_and_everything_on_the_map_exists() {
    let map = fs::read_to_string(repository().join("ARCHITECTURE.md")).unwrap();
    let named: BTreeSet<&str> =
        map.split('`').skip(1).step_by(2).filter(|word| word.ends_with(".rs")).collect();
    let root = repository().join("harness/src");
    let there: BTreeSet<String> = all_sources()
        .iter()
        .map(|path| path.strip_prefix(&root).unwrap().display().to_string())
        .collect();
    for file in &there {
        assert!(named.contains(file.as_str()), "ARCHITECTURE.md does not name {file}");
    }
    for file in named {
        let exists = there.contains(file) || repository().join(file).is_file();
        assert!(exists, "ARCHITECTURE.md names {file}, which does not exist");
    }
}

#[test]
fn unsafe_blocks_lie_below_os_only_and_files_stay_small() {
    for path in all_sources() {
        let text = fs::read_to_string(&path).unwrap();
        let below_os = path.components().any(|component| component.as_os_str() == "os");
        let blocks = ["unsafe {", "unsafe fn", "unsafe impl"];
        let found = blocks.iter().any(|block| text.contains(block));
        assert!(below_os || !found, "{} has unsafe code", path.display());
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines", path.display());
        assert!(text.starts_with("//!"), "{} does not say what it is for", path.display());
    }
}

#[test]
fn the_readme_names_every_option_of_the_table_and_no_other() {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let help = |command: &str| {
        let output = common::crashtest().args([command, "--help"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let help = help("run") + &help("audit");
    let options = readme.split(|c: char| !(c.is_ascii_lowercase() || c == '-'));
    let others = ["--release", "--path", "--workspace", "--seccomp-bpf", "--data", "--bench"];
    for option in options.filter(|word| word.len() > 3 && word.starts_with("--")) {
        assert!(help.contains(option) || others.contains(&option), "there is no {option}");
    }
}
