//! What is around the results in the page: its title, the verdict, the table, the filters; and the data of its script.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde::Serialize;

use super::points::Map;
use super::text::{html, plural};
use super::{Expected, Page, Part, RowShown};

/// How many names a heading has.
const NAMED_MAX: usize = 3;

/// The page with the names under which its parts are found.
pub(super) struct Frame<'a> {
    /// Each part, and what it is called here.
    parts: Vec<(&'a Part, String)>,
    /// The anchors of its rows, by part.
    anchors: Vec<Vec<String>>,
}

/// What the script knows of a row.
#[derive(Serialize)]
pub(super) struct RowData<'a> {
    id: &'a str,
    name: &'a str,
    scenario: &'a str,
    expected: Expected,
    kinds: &'a [String],
    map: Option<&'a Map>,
}

impl<'a> Frame<'a> {
    pub fn new(page: &'a Page) -> Self {
        let mut many: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for part in &page.scenarios {
            many.entry(&part.name).or_default().0 += 1;
        }
        let mut title = |part: &Part| match many.get_mut(part.name.as_str()) {
            Some((count, number)) if *count > 1 => {
                *number += 1;
                format!("{} ({number})", part.name)
            }
            _ => part.name.clone(),
        };
        let parts: Vec<_> = page.scenarios.iter().map(|part| (part, title(part))).collect();
        let mut taken = BTreeSet::new();
        let mut of = |part: &Part, title: &str| {
            part.rows
                .iter()
                .map(|row| anchor(&format!("{title}/{}", row.name), &mut taken))
                .collect()
        };
        let anchors = parts.iter().map(|(part, title)| of(part, title)).collect();
        Self { parts, anchors }
    }

    /// The data of the script.
    pub fn data(&self) -> Vec<RowData<'_>> {
        let rows = self.rows().map(|(_, title, row, id)| RowData {
            id,
            name: &row.name,
            scenario: title,
            expected: row.expected,
            kinds: &row.kinds,
            map: row.map.as_ref(),
        });
        rows.collect()
    }

    /// All that the template has places for.
    pub fn parts(&self) -> Vec<(&'static str, String)> {
        vec![
            ("TITLE", html(&self.title())),
            ("VERDICT", self.verdict()),
            ("MADE", self.made()),
            ("TABLE", self.table()),
            ("SCENARIOS", self.scenarios()),
            ("OUTCOMES", self.outcomes()),
            ("RESULTS", self.results()),
        ]
    }

    fn rows(&self) -> impl Iterator<Item = (&'a Part, &str, &'a RowShown, &str)> {
        self.parts.iter().zip(&self.anchors).flat_map(|((part, title), anchors)| {
            let rows = part.rows.iter().zip(anchors);
            rows.map(|(row, id)| (*part, title.as_str(), row, id.as_str()))
        })
    }

    fn title(&self) -> String {
        let scenarios: Vec<_> = self.parts.iter().map(|(_, title)| title.as_str()).collect();
        let mut names: Vec<&str> = Vec::new();
        for (_, _, row, _) in self.rows() {
            if !names.contains(&row.name.as_str()) {
                names.push(&row.name);
            }
        }
        match names.is_empty() {
            true => format!("crashtest: {}", some(&scenarios)),
            false => format!("crashtest: {} of {}", some(&scenarios), some(&names)),
        }
    }

    fn verdict(&self) -> String {
        let count =
            |expected| self.rows().filter(|(_, _, row, _)| row.expected == expected).count();
        let (no, unclear) = (count(Expected::No), count(Expected::Unclear));
        let is_to_break = self.rows().any(|(_, _, row, _)| row.is_to_break);
        let mut said = Vec::new();
        if no > 0 {
            let words = plural(no, "result is", "results are");
            said.push(format!("<strong class=\"no\">{words} not as expected</strong>"));
        }
        if unclear > 0 {
            let words = plural(unclear, "result is", "results are");
            said.push(format!("<strong class=\"unclear\">{words} unclear</strong>"));
        }
        if said.is_empty() {
            let bad = if is_to_break { " (bad strategies are meant to break)" } else { "" };
            said.push(format!("<strong class=\"yes\">Everything is as expected</strong>{bad}"));
        }
        let mut text = format!("<p>{}</p>", said.join(", "));
        for (part, title) in &self.parts {
            if let Some(todo) = &part.todo {
                let _ = write!(text, "<p class=\"unclear\">{}: {}</p>", html(title), coded(todo));
            }
        }
        text
    }

    /// The command, if all parts were made with the same; else each says its own.
    fn made(&self) -> String {
        match self.command() {
            Some(command) => made(command),
            None => String::new(),
        }
    }

    fn command(&self) -> Option<&str> {
        let mut commands = self.parts.iter().filter(|(part, _)| part.skipped.is_none());
        let first = commands.next().map(|(part, _)| part.command.as_str())?;
        commands.all(|(part, _)| part.command == first).then_some(first)
    }

    fn table(&self) -> String {
        let mut text = "<thead><tr><th scope=\"col\">strategy</th>".to_owned();
        for (_, title) in &self.parts {
            let _ = write!(text, "<th scope=\"col\">{}</th>", html(title));
        }
        text += "</tr></thead><tbody>";
        let mut seen = BTreeSet::new();
        for (_, _, row, _) in self.rows() {
            if !seen.insert(&row.name) {
                continue;
            }
            let _ = write!(text, "<tr><th scope=\"row\"><bdi>{}</bdi></th>", html(&row.name));
            for ((part, _), anchors) in self.parts.iter().zip(&self.anchors) {
                let mut rows = part.rows.iter().zip(anchors);
                text += &match rows.find(|(one, _)| one.name == row.name) {
                    Some((row, id)) => cell(row, id),
                    None if part.skipped.is_some() => "<td>skipped</td>".to_owned(),
                    None => "<td>–</td>".to_owned(),
                };
            }
            text += "</tr>";
        }
        text + "</tbody>"
    }

    fn scenarios(&self) -> String {
        let option = |(_, title): &(&Part, String)| {
            let title = html(title);
            format!("<option value=\"{title}\">{title}</option>")
        };
        self.parts.iter().map(option).collect()
    }

    fn outcomes(&self) -> String {
        let kinds: BTreeSet<_> = self.rows().flat_map(|(_, _, row, _)| &row.kinds).collect();
        let control = |kind: &String| {
            format!(
                "<label><input type=\"checkbox\" value=\"{kind}\" checked autocomplete=\"off\"> {kind}</label>"
            )
        };
        kinds.into_iter().map(control).collect()
    }

    fn results(&self) -> String {
        let mut text = String::new();
        let same = self.command().is_some();
        let mut all = self.rows().enumerate().peekable();
        for (part, title) in &self.parts {
            let shown = html(title);
            let _ = write!(text, "<section aria-label=\"{shown}\"><h2>{shown}</h2>");
            match &part.skipped {
                Some(why) => {
                    let _ = write!(text, "<p class=\"unclear\">Skipped: {}</p>", html(why));
                }
                None => {
                    let about = format!("{}; kept in {}", part.about, part.directory);
                    let _ = write!(text, "<p class=\"quiet\">{}</p>", html(&about));
                    text += &if same { String::new() } else { made(&part.command) };
                }
            }
            while let Some((n, (_, title, row, id))) =
                all.next_if(|(_, (of, ..))| std::ptr::eq(*of, *part))
            {
                article(n, title, row, id, &mut text);
            }
            text += "</section>\n";
        }
        text
    }
}

fn article(n: usize, title: &str, row: &RowShown, id: &str, text: &mut String) {
    let ((class, words), id) = (row.expected.shown(), html(id));
    let _ = write!(
        text,
        "<article id=\"{id}\" aria-labelledby=\"{id}-title\" data-row=\"{n}\" tabindex=\"-1\">\
         <h3 id=\"{id}-title\"><bdi>{}</bdi> in {}: <span class=\"{class}\">{words}</span></h3>\n{}</article>\n",
        html(&row.name),
        html(title),
        row.article
    );
}

fn cell(row: &RowShown, id: &str) -> String {
    let (class, words) = row.expected.shown();
    format!(
        "<td><a href=\"#{}\">{}</a><div>{}</div><div class=\"{class}\">{words}</div></td>",
        encoded(id),
        row.rate,
        row.broken.join(", ")
    )
}

fn made(command: &str) -> String {
    format!(
        "<p class=\"quiet\">Made by crashtest {}: <code>{}</code></p>",
        env!("CARGO_PKG_VERSION"),
        html(command)
    )
}

/// A sentence in which commands are between backticks.
fn coded(sentence: &str) -> String {
    let part = |(n, part): (usize, &str)| match n % 2 {
        0 => html(part),
        _ => format!("<code>{}</code>", html(part)),
    };
    sentence.split('`').enumerate().map(part).collect()
}

/// A few names.
fn some(names: &[&str]) -> String {
    let (first, more) = (names.iter().take(NAMED_MAX), names.len().saturating_sub(NAMED_MAX));
    let first = first.copied().collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{first} and {more} more") } else { first }
}

/// A name by which a row can be linked to: one that no other has, without blanks.
fn anchor(name: &str, taken: &mut BTreeSet<String>) -> String {
    let name: String =
        name.chars().take(200).map(|c| if c.is_whitespace() { '-' } else { c }).collect();
    let mut anchor = name.clone();
    let mut number = 1;
    while !taken.insert(anchor.clone()) {
        number += 1;
        anchor = format!("{name}~{number}");
    }
    anchor
}

/// As the part of an address that comes last.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                encoded.push(char::from(byte));
            }
            byte => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_has_an_address_of_its_own() {
        let mut taken = BTreeSet::new();
        let mut of = |name| anchor(name, &mut taken);
        assert_eq!([of("a b/c"), of("a-b/c"), of("d")], ["a-b/c", "a-b/c~2", "d"]);
        assert_eq!(encoded("a (2)/ü"), "a%20%282%29/%C3%BC");
    }

    #[test]
    fn commands_in_a_sentence_are_set_apart() {
        assert_eq!(coded("go on with `a <b>`"), "go on with <code>a &lt;b&gt;</code>");
    }
}
