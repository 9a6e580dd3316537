//! Where in its source a program makes its calls.

mod common;

use std::fs;
use std::path::Path;

use common::{node, python, targets};
use crashtest::environment::Environment;
use crashtest::lab::Lab;
use crashtest::locate::{Located, locate};
use crashtest::op::{Call, Op};
use crashtest::subject::Command;

fn look(argv: &[&str], sandbox: bool) -> Located {
    let argv = argv.iter().map(|word| (*word).to_owned()).collect();
    let command = Command { argv, sandbox, ..Command::default() };
    locate(&command, &Lab::new(None).unwrap()).unwrap()
}

/// The number of the first line of a file that has this text.
fn line(file: &str, text: &str) -> u32 {
    let source = fs::read_to_string(file).unwrap();
    let place = source.lines().position(|line| line.contains(text)).expect("the line is there");
    u32::try_from(place).unwrap() + 1
}

#[track_caller]
fn assert_at(located: &Located, call: Call, file: &str, text: &str, function: &str) {
    let made = located.trace.ops.iter().position(|op| op.call == call && op.succeeded());
    let made = made.unwrap_or_else(|| panic!("no {call:?} in {:#?}", located.trace.ops));
    let Some(frame) = located.of(made) else { panic!("no place of {call:?}: {located:#?}") };
    let found = (frame.file.as_path(), frame.line, frame.function.as_str());
    assert_eq!(found, (Path::new(file), Some(line(file, text)), function), "{call:?}");
}

#[test]
fn a_python_program_is_where_it_opens_writes_and_renames() {
    let Some(python) = python() else { return };
    if !common::can_follow() {
        return;
    }
    let (sound, unsound) = (targets("python/fsync_rename.py"), targets("python/in_place.py"));
    for sandbox in [false, true] {
        if sandbox && !common::can_sandbox() {
            continue;
        }
        let located = look(&[&python, &sound], sandbox);
        let is_state =
            |op: &&Op| op.effect.path().as_os_str().as_encoded_bytes().starts_with(b"state.json");
        assert_eq!(located.trace.ops.iter().find(is_state).map(|op| op.call), Some(Call::Open));
        assert_at(&located, Call::Fsync, &sound, "os.fsync", "save");
        assert_at(&located, Call::Rename, &sound, "os.rename", "save");
    }
    let located = look(&[&python, &unsound], false);
    assert_at(&located, Call::Open, &unsound, "with open", "save");
    assert_at(&located, Call::Write, &unsound, "json.dump(", "save");
}

#[test]
fn threads_and_what_the_machine_runs_at_the_start_are_told_apart() {
    let Some(python) = python() else { return };
    if !common::can_follow() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (own, file) = (directory.path().join("own"), directory.path().join("two.py"));
    fs::create_dir(&own).unwrap();
    // One that was there before is still run.
    fs::write(own.join("sitecustomize.py"), "import builtins\nbuiltins.STARTED = 'yes'\n").unwrap();
    let text = "import os, threading\n\
        def one(): os.mkdir(STARTED)\n\
        def two(): os.symlink('a', 'b')\n\
        for save in (one, two):\n\
        \x20   thread = threading.Thread(target=save)\n\
        \x20   thread.start()\n\
        \x20   thread.join()\n\
        os.rmdir('yes')\n";
    fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    let pair = format!("PYTHONPATH={}", own.display());
    let environment = Environment::parse(&[pair], &[]).unwrap();
    let command =
        Command { argv: vec![python, file.clone()], env: environment, ..Command::default() };
    let located = locate(&command, &Lab::new(None).unwrap()).unwrap();
    assert_at(&located, Call::Mkdir, &file, "os.mkdir", "one");
    assert_at(&located, Call::Symlink, &file, "os.symlink", "two");
    assert_at(&located, Call::Rmdir, &file, "os.rmdir", "<module>");
}

#[test]
fn a_node_program_is_where_it_calls_fs() {
    let Some(node) = node() else { return };
    if !common::can_follow() {
        return;
    }
    let file = targets("node/write_rename.js");
    let located = look(&[&node, &file], false);
    assert_at(&located, Call::Write, &file, "writeFile(", "save");
    assert_at(&located, Call::Rename, &file, "rename(", "save");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("later.mjs").display().to_string();
    let text = "import { open, rename } from 'fs/promises';\n\
        async function save() {\n\
        \x20 const file = await open('t', 'w');\n\
        \x20 await file.writeFile('{}');\n\
        \x20 await file.sync();\n\
        \x20 await file.close();\n\
        \x20 await rename('t', 's');\n\
        }\n\
        await save();\n";
    fs::write(&file, text).unwrap();
    let located = look(&[&node, &file], false);
    assert_at(&located, Call::Write, &file, "file.writeFile", "save");
    assert_at(&located, Call::Fsync, &file, "file.sync", "save");
    assert_at(&located, Call::Rename, &file, "rename(", "save");
}

#[test]
fn a_native_program_is_where_its_debug_information_says_or_in_which_function() {
    if !common::can_follow() {
        return;
    }
    let source = targets("c/stdio_in_place.c");
    let Some(program) = common::compiled_with("stdio_in_place.c", &["-g", "-O1"]) else { return };
    let located = look(&[&program], false);
    assert_at(&located, Call::Open, &source, "fopen(", "save");
    assert_at(&located, Call::Close, &source, "fclose(", "save");
    let Some(program) = common::compiled_with("stdio_rename.c", &["-O0"]) else { return };
    let located = look(&[&program], false);
    let frame = located.of(0).expect("a function");
    let expected = (Path::new(&program), None, "save");
    assert_eq!((frame.file.as_path(), frame.line, frame.function.as_str()), expected);
}

#[test]
fn a_rust_program_is_where_it_is_whatever_its_linker_has_put_into_one_page() {
    let Some(compiler) = common::in_path("rustc") else { return };
    if !common::can_follow() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let source = targets("rust/durable.rs");
    for options in [&["-g"][..], &["-g", "-O"]] {
        let program = directory.path().join(format!("durable{}", options.len()));
        let mut command = std::process::Command::new(&compiler);
        command.args(["--edition", "2024"]).args(options).arg("-o").arg(&program).arg(&source);
        assert!(command.status().unwrap().success());
        let located = look(&[&program.display().to_string()], false);
        let rename = located.trace.ops.iter().position(|op| op.call == Call::Rename).unwrap();
        let frame = located.of(rename).expect("a place");
        assert_eq!(
            (frame.file.as_path(), frame.line),
            (Path::new(&source), Some(line(&source, "fs::rename(&temp, path)")))
        );
    }
}

#[test]
fn a_line_that_is_not_known_any_more_is_not_told() {
    let Some(python) = python() else { return };
    if !common::can_follow() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("own.py").display().to_string();
    let text = "import os, sys\n\
        def probe(): return probe()\n\
        def save(): os.mkdir('a')\n\
        def quiet(): sys.settrace(None)\n\
        try: probe()\n\
        except RecursionError: pass\n\
        save()\n\
        quiet()\n\
        os.rmdir('a')\n\
        sys.settrace(lambda *_: None)\n\
        os.symlink('a', 'b')\n";
    fs::write(&file, text).unwrap();
    let located = look(&[&python, &file], false);
    assert_at(&located, Call::Mkdir, &file, "os.mkdir", "save");
    assert_at(&located, Call::Rmdir, &file, "os.rmdir", "<module>");
    let symlink = located.trace.ops.iter().position(|op| op.call == Call::Symlink).unwrap();
    assert_eq!(located.of(symlink), None);
}

#[test]
fn of_an_interpreter_that_does_not_tell_nothing_is_said() {
    if !common::can_follow() {
        return;
    }
    let located = look(&["/bin/sh", &targets("shell/redirect.sh")], false);
    assert!(!located.trace.ops.is_empty());
    assert!(
        located.unknown.is_some_and(|why| why.contains("nobody tells")),
        "{:?}",
        located.stacks
    );
    let Some(python) = python() else { return };
    let located = look(&[&python, "-I", "-c", "open('s', 'w').write('{}')"], false);
    assert!(located.unknown.is_some(), "{:?}", located.stacks);
}
