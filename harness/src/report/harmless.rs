//! Names and messages as they are shown: whatever a program has called its files, it says nothing to a terminal,
//! begins no line of its own in a log that a CI service reads for commands, and turns no words around.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Context, Result};

/// The same with all control characters in its texts written as escapes.
pub fn harmless<T: Serialize + DeserializeOwned>(what: &T) -> Result<T> {
    let mut value = serde_json::to_value(what).context("look through a report")?;
    walk(&mut value);
    serde_json::from_value(value).context("look through a report")
}

fn walk(value: &mut Value) {
    match value {
        Value::String(text) if !text.chars().all(is_harmless) => *text = escaped(text),
        Value::Array(all) => all.iter_mut().for_each(walk),
        Value::Object(all) => {
            let names: Vec<_> =
                all.keys().filter(|name| !name.chars().all(is_harmless)).cloned().collect();
            for name in names {
                let value = all.remove(&name).unwrap_or_default();
                all.insert(escaped(&name), value);
            }
            all.values_mut().for_each(walk);
        }
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A text with its control characters written as escapes: `\n`, `\u{1b}`.
#[must_use]
pub fn escaped(text: &str) -> String {
    let one = |c: char| if is_harmless(c) { c.to_string() } else { c.escape_default().to_string() };
    text.chars().map(one).collect()
}

/// Whether a character shows as itself, wherever it stands: it is in none of the categories Cc and Cf of Unicode,
/// some of which turn the direction of the words around them, and ends no line.
#[must_use]
pub fn is_harmless(c: char) -> bool {
    let format = matches!(c,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    !c.is_control() && !format
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn names_begin_no_line_and_turn_no_words_around() {
        let names =
            BTreeMap::from([("a\n::error::x".to_owned(), vec!["\u{1b}[2J\u{202e}b".to_owned()])]);
        let shown = harmless(&names).unwrap();
        let (name, values) = shown.first_key_value().unwrap();
        assert_eq!((name.as_str(), values[0].as_str()), ("a\\n::error::x", "\\u{1b}[2J\\u{202e}b"));
    }

    #[test]
    fn other_texts_stay_as_they_are() {
        let text = "é — 状態 \u{1f512} {dir}\\".to_owned();
        assert_eq!(harmless(&text).unwrap(), text);
    }
}
