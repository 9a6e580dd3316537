//! Text that is put into Markdown, so that nothing in it means anything.

use std::fmt::Display;

/// What a program has said or is called, in one line, and nothing in it means anything.
#[must_use]
pub fn plain(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let special = |c: char| matches!(c, '<' | '>' | '*' | '`' | '|' | '\\');
    let mut plain = String::new();
    for c in line.chars() {
        if special(c) {
            plain.push('\\');
        }
        plain.push(c);
    }
    plain
}

/// As code, in one line.
#[must_use]
pub fn code(what: &impl Display) -> String {
    let text = what.to_string().replace(['\n', '\r'], " ");
    // More marks than stand together in it.
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let marks = "`".repeat(longest + 1);
    match longest {
        0 => format!("{marks}{text}{marks}"),
        _ => format!("{marks} {text} {marks}"),
    }
}

/// Inside of a table.
#[must_use]
pub fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
