//! "Did you mean": the nearest of the words that would have been right.

/// A help line for a misspelt `word`.
#[must_use]
pub fn among<'a>(word: &str, right: impl IntoIterator<Item = &'a str>) -> String {
    let right: Vec<&str> = right.into_iter().collect();
    let near = right
        .iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match near {
        Some((likeness, candidate)) if likeness > 0.75 => format!("did you mean `{candidate}`?"),
        _ => format!("it is one of {}", right.join(", ")),
    }
}

/// A help line from an error such as "unknown field `a`, expected one of `b`, `c`".
#[must_use]
pub fn from_message(message: &str) -> Option<String> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let word = quoted.next()?;
    message.contains("unknown").then(|| among(word, quoted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_suggested_and_else_all_are_listed() {
        assert_eq!(among("trails", ["trials", "seed"]), "did you mean `trials`?");
        assert_eq!(among("zzz", ["trials", "seed"]), "it is one of trials, seed");
        let message = "unknown field `trails`, expected one of `name`, `trials`";
        assert_eq!(from_message(message).unwrap(), "did you mean `trials`?");
        assert_eq!(from_message("invalid type: string"), None);
    }
}
