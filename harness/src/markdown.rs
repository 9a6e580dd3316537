//! Text that is put into Markdown, so that nothing in it means anything.

use std::fmt::Display;

/// What a program has said or is called, in one line, and nothing in it means anything.
#[must_use]
pub fn plain(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let special = |c: char| matches!(c, '<' | '>' | '*' | '`' | '|' | '\\' | '[' | ']' | '~' | '&');
    let is_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let mut plain = String::new();
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        // Inside of a word a line below means nothing, and names are full of them.
        let inside = is_word(plain.chars().next_back()) && is_word(chars.peek().copied());
        if special(c) || (c == '_' && !inside) {
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

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn names_are_no_images_no_links_and_no_emphasis() {
        assert_eq!(
            plain("![x](https:e.example) __b__ ~~s~~"),
            "!\\[x\\](https:e.example) \\_\\_b\\_\\_ \\~\\~s\\~\\~"
        );
        assert_eq!(plain("&lt;b&gt; <b>"), "\\&lt;b\\&gt; \\<b\\>");
        assert_eq!(plain("in_place.py:10"), "in_place.py:10");
    }
}
