//! Annotations of GitHub Actions: lines on stdout that it shows beside a run.

use super::judged::{Judged, wrong};
use crate::all::All;

/// How many GitHub shows of one step.
pub const ANNOTATIONS_MAX: usize = 10;

/// A line for each row that did not go as expected, at most [`ANNOTATIONS_MAX`]; the last then says how many
/// there are besides.
#[must_use]
pub fn annotations(all: &All) -> Vec<String> {
    let mut lines = Vec::new();
    for (report, _, judged) in wrong(all) {
        let title = format!("crashtest {}", report.scenario);
        match judged {
            Judged::AsExpected => {}
            Judged::Unclear(why) => lines.push(line("warning", &title, why)),
            Judged::Unexpected(differences) => {
                for one in differences {
                    let remedy = one.why.map_or(String::new(), |(_, remedy)| format!("\n{remedy}"));
                    let replay = one.replay.map_or(String::new(), |replay| format!("\n{replay}"));
                    lines.push(line("error", &title, &format!("{}{remedy}{replay}", one.what)));
                }
            }
        }
    }
    if lines.len() > ANNOTATIONS_MAX {
        let more = lines.len() - (ANNOTATIONS_MAX - 1);
        lines.truncate(ANNOTATIONS_MAX - 1);
        lines.push(line("error", "crashtest", &format!("{more} more are in the summary")));
    }
    lines
}

/// A workflow command. Names and survivors may hold anything, and must not be commands of their own.
fn line(level: &str, title: &str, message: &str) -> String {
    let data = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
    format!("::{level} title={}::{}", property(title), data(message))
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn nothing_in_a_message_ends_its_line() {
        let text = line("error", "a,b: c", "100 %\n::set-output name=x::y\r");
        assert_eq!(text, "::error title=a%2Cb%3A c::100 %25%0A::set-output name=x::y%0D");
        assert_eq!(text.lines().count(), 1);
    }
}
