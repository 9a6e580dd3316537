//! The environment variables that a program is given, whose values may be secrets: they are written into
//! results only if the user asks for that.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

/// Variables by name. As JSON, one whose value is not kept has the value `null`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `None` where the value was not kept.
    variables: BTreeMap<String, Option<String>>,
    /// Those whose values are written into results.
    kept: BTreeSet<String>,
}

impl Environment {
    /// Reads pairs such as `NAME=VALUE`; the values of `kept` are written into results.
    pub fn parse(pairs: &[String], kept: &[String]) -> Result<Self> {
        let mut variables = BTreeMap::new();
        for pair in pairs {
            let Some((name, value)) = pair.split_once('=').filter(|(name, _)| !name.is_empty())
            else {
                return Err(Error::usage(format!("`--env {pair}` is not NAME=VALUE")));
            };
            variables.insert(name.to_owned(), Some(value.to_owned()));
        }
        if let Some(name) = kept.iter().find(|name| !variables.contains_key(*name)) {
            return Err(Error::usage(format!("--keep-env {name} names no variable of --env")));
        }
        Ok(Self { variables, kept: kept.iter().cloned().collect() })
    }

    /// Sets a variable.
    pub fn insert(&mut self, name: &str, value: String) {
        self.variables.insert(name.to_owned(), Some(value));
    }

    /// The value of a variable, if it is known.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name)?.as_deref()
    }

    /// The variables whose values are known.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables.iter().filter_map(|(name, value)| Some((&**name, value.as_deref()?)))
    }

    /// Takes the values that were not kept from `given`, or else from what `inherited` says; what neither has
    /// is asked for.
    pub fn supply(
        &mut self,
        given: &Self,
        inherited: impl Fn(&str) -> Option<String>,
    ) -> Result<()> {
        for (name, value) in &mut self.variables {
            let known = given.get(name).map(str::to_owned);
            *value = known.or(value.take()).or_else(|| inherited(name));
            if value.is_none() {
                return Err(Error::usage(format!("the value of {name} was not kept"))
                    .help(format!("give it again: --env {name}=VALUE")));
            }
        }
        match given.variables.keys().find(|name| !self.variables.contains_key(*name)) {
            Some(name) => Err(Error::usage(format!("`--env {name}` was not given to that run"))),
            None => Ok(()),
        }
    }
}

impl Serialize for Environment {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let shown = |(name, value): (&String, &Option<String>)| {
            (name.clone(), value.clone().filter(|_| self.kept.contains(name)))
        };
        serializer.collect_map(self.variables.iter().map(shown))
    }
}

impl<'de> Deserialize<'de> for Environment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let variables = BTreeMap::<String, Option<String>>::deserialize(deserializer)?;
        let known =
            |(name, value): (&String, &Option<String>)| value.is_some().then(|| name.clone());
        let kept = variables.iter().filter_map(known).collect();
        Ok(Self { variables, kept })
    }
}

/// What stands in a command line for a value that is not written down.
const WITHHELD: &str = "...";

/// A command line without the values of `--env`, but for those of `kept`.
#[must_use]
pub fn without_values(words: impl IntoIterator<Item = String>, kept: &[String]) -> Vec<String> {
    let mut shown: Vec<String> = Vec::new();
    let mut own = true;
    for word in words {
        let is_pair = own && shown.last().is_some_and(|last| last == "--env");
        own &= word != "--";
        let (option, pair) = match word.strip_prefix("--env=") {
            Some(pair) if own => ("--env=", Some(pair)),
            _ => ("", is_pair.then_some(&*word)),
        };
        let withheld = pair.and_then(|pair| pair.split_once('=')).and_then(|(name, _)| {
            let kept = kept.iter().any(|one| one == name);
            (!kept).then(|| format!("{option}{name}={WITHHELD}"))
        });
        shown.push(withheld.unwrap_or(word));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_value_is_written_only_if_that_was_asked_for() {
        let made = Environment::parse(&words("TOKEN=hunter2 MODE=fast"), &words("MODE")).unwrap();
        let json = serde_json::to_string(&made).unwrap();
        assert_eq!(json, r#"{"MODE":"fast","TOKEN":null}"#);
        let mut read: Environment = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), json);
        let none = Environment::default();
        let error = read.clone().supply(&none, |_| None).unwrap_err();
        assert!(error.help.unwrap().contains("--env TOKEN=VALUE"));
        read.supply(&Environment::parse(&words("TOKEN=x"), &[]).unwrap(), |_| None).unwrap();
        assert_eq!((read.get("TOKEN"), read.get("MODE")), (Some("x"), Some("fast")));
        let other = Environment::parse(&words("OTHER=x"), &[]).unwrap();
        assert!(read.supply(&other, |_| None).is_err());
    }

    #[test]
    fn a_command_line_shows_names_and_no_values() {
        let line = words("crashtest run --env A=1 --env=B=2 --env C=3 -- x --env A=1");
        let shown = without_values(line, &words("C")).join(" ");
        assert_eq!(shown, "crashtest run --env A=... --env=B=... --env C=3 -- x --env A=1");
    }
}
