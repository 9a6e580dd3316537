//! Text of others in the page: it says what it says, and can be neither markup nor anything else than itself.

use std::fmt::Write;

use crate::report::harmless::is_harmless;

/// How many bytes of a name or a sentence are in the page.
const TEXT_MAX: usize = 2000;

/// A text in which whatever can't be seen is written as an escape: control characters, and those that turn the
/// direction of the words around them. What was no UTF-8 is the replacement character by now, and is told too.
#[must_use]
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in cut(text).chars() {
        match letter {
            '\n' | '\t' => shown.push(letter),
            // What was no UTF-8 is nothing to see, either.
            _ if letter == char::REPLACEMENT_CHARACTER || !is_harmless(letter) => {
                // Writing to a string can't fail.
                let _ = write!(shown, "{}", letter.escape_unicode());
            }
            _ => shown.push(letter),
        }
    }
    if cut(text).len() < text.len() {
        shown.push('…');
    }
    shown
}

/// The same as HTML, in an element or in an attribute with quotation marks.
#[must_use]
pub fn html(text: &str) -> String {
    markup(&visible(text))
}

fn markup(text: &str) -> String {
    let mut html = String::with_capacity(text.len() + text.len() / 8);
    for letter in text.chars() {
        match letter {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            _ => html.push(letter),
        }
    }
    html
}

/// A text that is no longer than a page can show.
fn cut(text: &str) -> &str {
    let end = (0..=TEXT_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// A number as people write it.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// So many of something.
#[must_use]
pub fn plural(number: usize, one: &str, many: &str) -> String {
    format!("{} {}", count(number as u64), if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_turns_words_around_is_told() {
        assert_eq!(visible("a\u{202e}b\u{1b}[0m\u{fffd}"), "a\\u{202e}b\\u{1b}[0m\\u{fffd}");
        assert_eq!(visible("Größe\n語"), "Größe\n語");
    }

    #[test]
    fn text_is_no_markup() {
        assert_eq!(html("<a b='\"'>&"), "&lt;a b=&#39;&quot;&#39;&gt;&amp;");
    }

    #[test]
    fn a_long_text_ends_with_a_sign() {
        assert!(visible(&"é".repeat(2000)).ends_with("é…"));
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([count(0), count(999), count(1_234_567)], ["0", "999", "1,234,567"]);
    }
}
