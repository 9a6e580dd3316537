//! How wide a table may be, and what stands in its place where it would not fit.

use std::fmt::Write;
use std::io::IsTerminal;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width};

/// What text is printed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Screen {
    /// How many columns it has, if it is a terminal.
    pub width: Option<u16>,
    /// Whether it shows colours, and they are wanted.
    pub colour: bool,
}

/// How wide a terminal is of which nothing is known.
const USUAL_WIDTH: u16 = 80;
/// What is narrower is no terminal that anybody reads on.
const LEAST_WIDTH: u16 = 20;

impl Screen {
    /// Stdout: its width is the terminal's own, or `COLUMNS`; `NO_COLOR` and `TERM=dumb` want no colours.
    #[must_use]
    pub fn of_stdout() -> Self {
        let stdout = std::io::stdout();
        if !stdout.is_terminal() {
            return Self::default();
        }
        let said = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        let own = || terminal_size::terminal_size_of(&stdout).map(|(width, _)| width.0);
        let width = said.or_else(own).filter(|width| *width > 0).unwrap_or(USUAL_WIDTH);
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|no| !no.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self { width: Some(width.max(LEAST_WIDTH)), colour: !unwanted && !dumb }
    }
}

/// A table of so many columns; its cells may have several lines.
#[derive(Clone, Debug, Default)]
pub struct Grid {
    /// The titles of the columns.
    pub header: Vec<String>,
    /// The rows, as long as the header.
    pub rows: Vec<Vec<String>>,
    /// The columns of numbers, which stand at the right.
    pub numbers: std::ops::Range<usize>,
}

/// Between two columns, and around them: `│ a ┆ b │`.
const BESIDE: usize = 3;

impl Grid {
    /// As a table; none if words would have to be broken to fit it in.
    #[must_use]
    pub fn table(&self, width: Option<u16>) -> Option<String> {
        let columns = |measure: fn(&str) -> usize| -> Vec<usize> {
            let cells = |n: usize| self.rows.iter().filter_map(move |row| row.get(n));
            let longest =
                |n: usize| cells(n).chain([&self.header[n]]).map(|cell| measure(cell)).max();
            (0..self.header.len()).map(|n| longest(n).unwrap_or(0)).collect()
        };
        let all =
            |columns: &[usize]| columns.iter().map(|column| column + BESIDE).sum::<usize>() + 1;
        let (natural, least) = (columns(longest_line), columns(longest_word));
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_header(&self.header).add_rows(&self.rows);
        for n in self.numbers.clone() {
            if let Some(column) = table.column_mut(n) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let width = match width {
            Some(width) if all(&natural) > usize::from(width) => width,
            _ => return Some(format!("{table}\n")),
        };
        if all(&least) > usize::from(width) {
            return None;
        }
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        for (n, word) in least.into_iter().enumerate() {
            let padded = u16::try_from(word + BESIDE - 1).unwrap_or(u16::MAX);
            if let Some(column) = table.column_mut(n) {
                column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(padded)));
            }
        }
        Some(format!("{table}\n"))
    }

    /// As a table, or else with the cells of a row below each other.
    #[must_use]
    pub fn render(&self, width: Option<u16>) -> String {
        self.table(width).unwrap_or_else(|| self.cards())
    }

    /// The rows with their cells below each other.
    fn cards(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let mut cells = self.header.iter().zip(row);
            if let Some((_, name)) = cells.next() {
                let _ = writeln!(text, "{}", name.replace('\n', ", "));
            }
            for (title, cell) in cells {
                let _ = writeln!(text, "  {title}: {}", cell.replace('\n', ", "));
            }
        }
        text
    }
}

fn longest_line(text: &str) -> usize {
    text.lines().map(|line| line.chars().count()).max().unwrap_or(0)
}

fn longest_word(text: &str) -> usize {
    text.split_whitespace().map(|word| word.chars().count()).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> Grid {
        let words = |words: [&str; 3]| words.map(str::to_owned).to_vec();
        let rows = vec![
            words(["unsafe", "33.4 %", "torn 1000, empty 333"]),
            words(["atomic", "100.0 %", "none"]),
        ];
        Grid { header: words(["strategy", "pass rate", "failures"]), rows, numbers: 1..2 }
    }

    fn widest(text: &str) -> usize {
        longest_line(text)
    }

    #[test]
    fn a_table_is_as_wide_as_the_screen_and_breaks_no_word() {
        assert_eq!(widest(&grid().table(None).unwrap()), widest(&grid().table(Some(200)).unwrap()));
        for width in 20..60 {
            let Some(table) = grid().table(Some(width)) else { continue };
            assert!(widest(&table) <= usize::from(width), "{width}\n{table}");
            for word in ["strategy", "failures", "unsafe", "33.4", "1000,"] {
                assert!(table.contains(word), "{width}\n{table}");
            }
        }
    }

    #[test]
    fn where_it_does_not_fit_the_cells_are_below_each_other() {
        let text = grid().render(Some(20));
        assert!(text.starts_with("unsafe\n  pass rate: 33.4 %\n  failures: torn"), "{text}");
        assert!(grid().render(Some(45)).contains('│'));
    }
}
