//! Which words of a command name a file of the user: the program, and the script that an interpreter is
//! given. All other words are the user's and stay as they are.

use std::ops::Range;
use std::path::Path;

/// An interpreter, and how it is told of a script.
struct Interpreter {
    /// Its names, without a version behind them.
    names: &'static [&'static str],
    /// Options that have a value in the next word.
    with_value: &'static [&'static str],
    /// Options after which no script comes, since the program text or a module does.
    instead: &'static [&'static str],
    /// Options whose value is the script.
    script: &'static [&'static str],
    /// Words before the script that are no options.
    before: &'static [&'static str],
}

const PLAIN: Interpreter =
    Interpreter { names: &[], with_value: &[], instead: &[], script: &[], before: &[] };

const INTERPRETERS: [Interpreter; 11] = [
    Interpreter {
        names: &["python", "pypy"],
        with_value: &["-X", "-W", "--check-hash-based-pycs"],
        instead: &["-c", "-m"],
        ..PLAIN
    },
    Interpreter {
        names: &["node", "nodejs", "tsx", "ts-node"],
        with_value: &["-r", "--require", "--import", "--loader", "--experimental-loader", "-C"],
        instead: &["-e", "--eval", "-p", "--print", "--test"],
        ..PLAIN
    },
    Interpreter { names: &["deno", "bun"], before: &["run"], instead: &["eval", "-e"], ..PLAIN },
    Interpreter {
        names: &["sh", "bash", "dash", "zsh", "ksh", "busybox"],
        with_value: &["-o", "+o", "-O", "--rcfile", "--init-file"],
        instead: &["-c", "-s"],
        before: &["sh", "ash"],
        ..PLAIN
    },
    Interpreter { names: &["perl"], instead: &["-e", "-E"], ..PLAIN },
    Interpreter {
        names: &["ruby", "jruby"],
        with_value: &["-I", "-r", "-C"],
        instead: &["-e"],
        ..PLAIN
    },
    Interpreter {
        names: &["php"],
        with_value: &["-d", "-c"],
        instead: &["-r"],
        script: &["-f"],
        ..PLAIN
    },
    Interpreter {
        names: &["lua", "luajit", "tclsh", "guile", "Rscript", "escript", "elixir"],
        with_value: &["-l"],
        instead: &["-e"],
        ..PLAIN
    },
    Interpreter {
        names: &["java"],
        with_value: &["-cp", "-classpath", "--class-path", "-p", "--module-path"],
        instead: &["-m", "--module"],
        script: &["-jar"],
        ..PLAIN
    },
    Interpreter {
        names: &["awk", "gawk", "mawk"],
        with_value: &["-F", "-v"],
        script: &["-f"],
        ..PLAIN
    },
    Interpreter { names: &["jq"], script: &["-f", "--from-file"], ..PLAIN },
];

/// These take a script by an option only: their first plain word is program text.
const BY_OPTION_ONLY: [&str; 5] = ["awk", "gawk", "mawk", "jq", "java"];

/// Programs that start another one, and how many words of their own come first.
const STARTERS: [(&str, usize); 7] = [
    ("env", 0),
    ("exec", 0),
    ("nohup", 0),
    ("setsid", 0),
    ("stdbuf", 0),
    ("nice", 0),
    ("timeout", 1),
];

/// Which word is the script of an interpreter, if the command is one with a script.
#[must_use]
pub fn script(words: &[&str]) -> Option<usize> {
    let first = program(words)?;
    let interpreter = interpreter(words[first])?;
    let mut at = first + 1;
    while let Some(word) = words.get(at) {
        if interpreter.script.contains(word) {
            return (at + 1 < words.len()).then_some(at + 1);
        }
        if interpreter.instead.contains(word) {
            return None;
        }
        if *word == "--" {
            at += 1;
            break;
        }
        if interpreter.with_value.contains(word) {
            at += 2;
        } else if (word.starts_with('-') && word.len() > 1) || interpreter.before.contains(word) {
            // Single letters may stand together, such as in `sh -ec`.
            let joined = word.strip_prefix('-').filter(|rest| !rest.starts_with('-'));
            let last = joined.and_then(|rest| rest.chars().last()).map(|c| format!("-{c}"));
            if last.is_some_and(|last| interpreter.instead.contains(&&*last)) {
                return None;
            }
            at += 1;
        } else {
            break;
        }
    }
    let by_option = BY_OPTION_ONLY.iter().any(|name| interpreter.names.contains(name));
    (at < words.len() && !by_option).then_some(at)
}

/// The word that names the program, after what only starts it.
fn program(words: &[&str]) -> Option<usize> {
    let mut at = 0;
    while let Some((_, own)) = STARTERS.iter().find(|(name, _)| Some(name) == words.get(at)) {
        at += 1;
        let is_own = |word: &&&str| word.starts_with('-') || word.contains('=');
        while words.get(at).filter(is_own).is_some() {
            at += 1;
        }
        at += own;
    }
    (at < words.len()).then_some(at)
}

fn interpreter(word: &str) -> Option<&'static Interpreter> {
    let name = Path::new(word).file_name()?.to_str()?;
    let plain = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    INTERPRETERS.iter().find(|one| one.names.contains(&plain) || one.names.contains(&name))
}

/// The words of a shell command that may name a file of the user, as ranges of bytes: the program and the
/// script of its first simple command. None of a command that begins with anything but plain words.
#[must_use]
pub fn files_in_shell(text: &str) -> Vec<Range<usize>> {
    let plain = |c: char| c.is_alphanumeric() || "_./+-=@%,:".contains(c);
    let mut words: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let blank = rest.len() - rest.trim_start_matches([' ', '\t']).len();
        let word = &rest[blank..];
        let length = word.find([' ', '\t']).unwrap_or(word.len());
        if length == 0 || !word[..length].chars().all(plain) {
            break;
        }
        words.push(at + blank..at + blank + length);
        at += blank + length;
    }
    let texts: Vec<&str> = words.iter().map(|word| &text[word.clone()]).collect();
    let mut files: Vec<usize> = program(&texts).into_iter().chain(script(&texts)).collect();
    files.dedup();
    files.into_iter().map(|n| words[n].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_of_an_interpreter_is_found_and_nothing_else_is() {
        let cases = [
            ("python3 bot.py settings.lua", Some("bot.py")),
            ("python3 -u -X dev bot.py x.py", Some("bot.py")),
            ("python3.11 -m bot x.py", None),
            ("python3 -c pass x.py", None),
            ("/usr/bin/python3 bot.py", Some("bot.py")),
            ("sh -e save.sh a", Some("save.sh")),
            ("sh -c x.sh", None),
            ("bash -ec x.sh", None),
            ("node --require hook.js bot.js", Some("bot.js")),
            ("java -Xmx1g -jar bot.jar", Some("bot.jar")),
            ("java Bot", None),
            ("awk x y", None),
            ("awk -f prog.awk y", Some("prog.awk")),
            ("env A=1 python3 bot.py", Some("bot.py")),
            ("timeout 5 python3 bot.py", Some("bot.py")),
            ("./bot state.sh", None),
            ("cat state.py", None),
            ("lua settings.lua", Some("settings.lua")),
            ("python3", None),
        ];
        for (text, script) in cases {
            let words: Vec<&str> = text.split(' ').collect();
            assert_eq!(super::script(&words).map(|n| words[n]), script, "{text}");
        }
    }

    #[test]
    fn in_a_shell_command_only_the_program_and_its_script_may_name_files() {
        let cases: [(&str, &[&str]); 6] = [
            ("python3 verify.py state.json", &["python3", "verify.py"]),
            ("./verify state.json", &["./verify"]),
            ("  sh a.sh && sh b.sh", &["sh", "a.sh"]),
            ("[ -e a.py ] || sh b.sh", &[]),
            ("'my prog' x", &[]),
            ("cat $X", &["cat"]),
        ];
        for (text, files) in cases {
            let found: Vec<&str> =
                files_in_shell(text).into_iter().map(|range| &text[range]).collect();
            assert_eq!(found, files, "{text}");
        }
    }
}
