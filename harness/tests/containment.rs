//! Programs that do to the machine what a program under test should not be able to do: nothing outside the trial
//! directory is changed, nothing is left behind, and each run ends in time with a verdict or a plain error.
//!
//! Everything is tried with a sandbox and without one.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{compiled, crashtest, has, left_behind};
use nix::unistd::geteuid;

/// What crashtest has to keep programs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Walls {
    /// Namespaces.
    Sandbox,
    /// The tracer alone.
    Guard,
}

/// What may come of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comes {
    /// It is sound as far as the scenario sees.
    Pass,
    /// It is stopped at the file `victim`, or another one of the machine's; in a sandbox it passes.
    Stopped,
    /// A verdict or a plain error, which depend on what the machine grants.
    Any,
}

use Comes::{Any, Pass, Stopped};

/// The subcommands of `targets/c/hostile.c`.
const SUBJECTS: [(&str, Comes); 58] = [
    ("nothing", Pass),
    ("fork-bomb", Any),
    ("daemon", Any),
    ("daemon-outside", Any),
    ("remove-files", Any),
    ("remove-directory", Any),
    ("link-out", Any),
    ("state-is-link-out", Any),
    ("directory-link-out", Any),
    ("link-to-kmsg", Any),
    ("link-loop", Pass),
    ("device", Any),
    ("fifo", Any),
    ("socket", Pass),
    ("names", Any),
    ("many-files", Any),
    ("deep", Any),
    ("modes", Any),
    ("own-directory-closed", Any),
    ("immutable", Any),
    ("ptrace-parent", Any),
    ("stop-parent", Any),
    ("kill-parent", Any),
    ("kill-group", Any),
    ("kill-everybody", Any),
    ("stop-self", Any),
    ("own-filter", Any),
    ("own-user", Any),
    ("foreign-call", Any),
    ("closed-descriptors", Any),
    ("mount", Any),
    ("unshare", Any),
    ("chroot", Any),
    ("shared-memory", Any),
    ("ignore-signals", Any),
    ("spin", Any),
    ("flood", Pass),
    ("segfault", Any),
    ("main-thread-ends", Any),
    ("write-outside", Stopped),
    ("append-outside", Stopped),
    ("create-outside", Stopped),
    ("truncate-outside", Stopped),
    ("rename-outside", Stopped),
    ("take-outside", Stopped),
    ("hard-link", Any),
    ("unlink-outside", Stopped),
    ("mkdir-outside", Stopped),
    ("rmdir-outside", Stopped),
    ("symlink-outside", Stopped),
    ("chmod-outside", Stopped),
    ("utime-outside", Stopped),
    ("xattr-outside", Stopped),
    ("bind-outside", Stopped),
    ("map-outside", Stopped),
    ("by-directory", Stopped),
    ("by-link", Stopped),
    ("by-dots", Stopped),
];
/// Those that need the sandbox to be harmless, or whose path the guard does not see.
const SANDBOX_ONLY: [(&str, Comes); 3] =
    [("by-proc", Any), ("by-shell", Any), ("tune-machine", Any)];

/// A directory that stands for the machine, and all that can be said of what is in it.
struct Machine {
    place: tempfile::TempDir,
    before: BTreeMap<PathBuf, String>,
}

impl Machine {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        for (name, mode) in [("victim", 0o644), ("secret", 0o600), ("other", 0o755)] {
            fs::write(at(name), format!("{name} of the machine")).unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir(at("empty")).unwrap();
        symlink("victim", at("to-victim")).unwrap();
        let mut machine = Self { place, before: BTreeMap::new() };
        machine.before = machine.look();
        machine
    }

    /// Mode, owner, time, and bytes of everything.
    fn look(&self) -> BTreeMap<PathBuf, String> {
        let mut all = BTreeMap::new();
        let own = [
            "/proc/sys/kernel/core_pattern",
            "/proc/sys/kernel/domainname",
            "/sys/kernel/mm/ksm/run",
            "/sys/fs/cgroup/hostile",
            "/sys/fs/cgroup/unified/hostile",
            "/dev/hostile",
            "/dev/hostile-device",
            "/mnt",
        ];
        for path in own.iter().map(PathBuf::from) {
            let text = fs::read_to_string(&path).unwrap_or_default();
            all.insert(path.clone(), format!("{} {text}", path.exists()));
        }
        for entry in fs::read_dir(self.place.path()).unwrap().flatten() {
            let found = fs::symlink_metadata(entry.path()).unwrap();
            let bytes = match found.file_type().is_symlink() {
                true => fs::read_link(entry.path()).unwrap().into_os_string().into_encoded_bytes(),
                false => fs::read(entry.path()).unwrap_or_default(),
            };
            let about = format!(
                "{:o} {}:{} {}.{} {} {:?}",
                found.mode(),
                found.uid(),
                found.gid(),
                found.mtime(),
                found.mtime_nsec(),
                found.nlink(),
                String::from_utf8_lossy(&bytes)
            );
            all.insert(entry.path(), about);
        }
        all
    }

    /// What is another now.
    fn changes(&self) -> Vec<String> {
        let now = self.look();
        let paths = self.before.keys().chain(now.keys());
        let mut changes: Vec<String> = paths
            .filter(|path| self.before.get(*path) != now.get(*path))
            .map(|path| {
                format!("{}: {:?}, was {:?}", path.display(), now.get(path), self.before.get(path))
            })
            .collect();
        changes.dedup();
        changes
    }
}

/// How long a run may take, whatever the subject does: its time limit a few times, and then some.
const LIMIT: Duration = Duration::from_secs(60);

fn run(words: &[&str], machine: &Machine, walls: Walls, place: &Path, mark: &str) -> Output {
    let mut command = crashtest();
    command
        .args(["run", "--seed", "1", "--trials", "4", "--quiet", "--timeout", "2"])
        .args(["--max-processes", "40", "--dir"])
        .arg(place)
        .args(words)
        .env("CRASHTEST_RESULTS", place.join("results"))
        .env("OUT", machine.place.path())
        .env("MARK", mark)
        .current_dir(machine.place.path())
        .stdin(Stdio::null());
    if walls == Walls::Guard {
        command.env("CRASHTEST_NAMESPACES", "off");
    }
    command.output().unwrap()
}

fn tried(name: &str, comes: Comes, walls: Walls, hostile: &str) {
    let (machine, place) = (Machine::new(), tempfile::tempdir_in("/dev/shm").unwrap());
    fs::create_dir(place.path().join("results")).unwrap();
    let mark = format!("crashtest-hostile-{}-{name}-{walls:?}-", std::process::id());
    let started = Instant::now();
    let words = ["--ack", "^saved", "--", hostile, name];
    let output = run(&words, &machine, walls, place.path(), &mark);
    let took = started.elapsed();
    let said = format!(
        "{name} in {walls:?}, {took:?}: {:?}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!said.contains("panicked") && !said.contains("crashtest itself failed"), "{said}");
    assert!(took < LIMIT, "{said}");
    // 70 is an error of the harness itself.
    assert!(matches!(output.status.code(), Some(0 | 1 | 3 | 4 | 5)), "{said}");
    assert_eq!(machine.changes(), Vec::<String>::new(), "{said}");
    fs::remove_dir_all(place.path().join("results")).unwrap();
    let looked = Instant::now();
    loop {
        let left = left_behind(&mark, place.path());
        if left.is_empty() {
            break;
        }
        assert!(looked.elapsed() < Duration::from_secs(10), "{left:?} are left: {said}");
        std::thread::sleep(Duration::from_millis(20));
    }
    match (comes, walls) {
        (Pass, _) => assert_eq!(output.status.code(), Some(0), "{said}"),
        (Stopped, Walls::Guard) => {
            assert_eq!(output.status.code(), Some(3), "{said}");
            assert!(said.contains("was stopped before it changed"), "{said}");
            assert!(said.contains(&machine.place.path().display().to_string()), "{said}");
        }
        (Stopped, Walls::Sandbox) => {
            assert!(matches!(output.status.code(), Some(0 | 1)), "{said}");
        }
        (Any, _) => {}
    }
}

/// Tries all subjects of a kind, two at a time.
fn all(subjects: &[(&str, Comes)], walls: Walls) {
    let Some(hostile) = compiled("hostile.c") else { return };
    if !common::can_follow() || (walls == Walls::Sandbox && !common::can_sandbox()) {
        return;
    }
    let next = std::sync::Mutex::new(subjects.iter());
    std::thread::scope(|scope| {
        let tries = || {
            loop {
                let subject = next.lock().unwrap().next();
                let Some((name, comes)) = subject else { return };
                tried(name, *comes, walls, &hostile);
            }
        };
        let both = [scope.spawn(tries), scope.spawn(tries)];
        for one in both {
            one.join().expect("a subject did harm");
        }
    });
}

#[test]
fn in_a_sandbox_no_program_harms_the_machine() {
    all(&SUBJECTS, Walls::Sandbox);
}

#[test]
fn in_a_sandbox_root_has_no_power_over_the_machine() {
    all(&SANDBOX_ONLY, Walls::Sandbox);
}

#[test]
fn without_a_sandbox_each_program_is_stopped_before_it_does_harm() {
    // These would do harm as root, or to the processes of the user who runs the tests.
    let harmful = ["kill-everybody", "unshare", "own-user", "device"];
    let safe: Vec<_> = SUBJECTS.into_iter().filter(|(name, _)| !harmful.contains(name)).collect();
    all(&safe, Walls::Guard);
}

fn case(name: &str) -> Option<String> {
    // The small inputs lie beside the repository where there are any; these are the same.
    let path = common::targets(&format!("python/trust/{name}"));
    has("trust", Path::new(&path).is_file()).then_some(path)
}

/// Runs the command in a directory of the user's.
fn in_directory(directory: &Path, words: &[&str], variables: &[(&str, &str)]) -> (i32, String) {
    let results = tempfile::tempdir().unwrap();
    let output = crashtest()
        .args(words)
        .envs(variables.iter().copied())
        .env("CRASHTEST_RESULTS", results.path())
        .current_dir(directory)
        .output()
        .unwrap();
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn an_argument_that_names_a_file_of_the_user_is_passed_as_it_is_and_the_file_stays() {
    let (Some(python), Some(saver)) = (common::python(), case("save_argument.py")) else { return };
    for variables in [&[][..], &[("CRASHTEST_NAMESPACES", "off")]] {
        let directory = tempfile::tempdir().unwrap();
        let settings = directory.path().join("settings.lua");
        fs::write(&settings, "return {precious=true}").unwrap();
        fs::set_permissions(&settings, fs::Permissions::from_mode(0o755)).unwrap();
        let words = ["run", "--trials", "30", "--seed", "1", "--", &python, &saver, "settings.lua"];
        let (status, text) = in_directory(directory.path(), &words, variables);
        assert_eq!(fs::read_to_string(&settings).unwrap(), "return {precious=true}");
        assert_eq!(status, 1, "{text}");
        assert!(text.contains("state found: settings.lua"), "{text}");
    }
}

#[test]
fn a_check_reads_what_is_left_and_not_the_file_of_the_user_of_the_same_name() {
    let (Some(python), Some(saver), Some(verify)) =
        (common::python(), case("in_place.py"), case("verify.py"))
    else {
        return;
    };
    for mode in [0o644, 0o755] {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state.json");
        fs::write(&state, "{}").unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(mode)).unwrap();
        fs::copy(&verify, directory.path().join("verify.py")).unwrap();
        let check = format!("{python} verify.py state.json");
        let words = ["run", "--seed", "1", "--trials", "60", "--state", "state.json", "--promise"];
        let words = [&words[..], &["checked", "--check", &check, "--", &python, &saver]].concat();
        let (status, text) = in_directory(directory.path(), &words, &[]);
        assert_eq!(status, 1, "{mode:o}: {text}");
        assert!(text.contains("check failed"), "{mode:o}: {text}");
    }
}

#[test]
fn a_script_that_the_program_itself_makes_is_never_taken_from_the_user() {
    let Some(python) = common::python() else { return };
    let directory = tempfile::tempdir().unwrap();
    // The user's own is sound; that of the trial is damaged by a kill.
    fs::write(directory.path().join("state.sh"), "exit 0\n").unwrap();
    let program = "for n in range(3):\n    f = open('state.sh', 'w'); f.write('exit 1\\n'); f.flush()\n    \
                   f.seek(0); f.write('exit 0\\n'); f.close(); print('saved', n, flush=True)\n";
    let words = ["run", "--seed", "1", "--trials", "60", "--promise", "checked"];
    let words = [&words[..], &["--check", "sh state.sh", "--", &python, "-c", program]].concat();
    let (status, text) = in_directory(directory.path(), &words, &[]);
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("check failed"), "{text}");
}

#[test]
fn a_state_outside_of_the_trial_directory_is_redirected_and_judged_or_refused() {
    let (Some(python), Some(saver)) = (common::python(), case("outside.py")) else { return };
    if !common::can_sandbox() {
        return;
    }
    let (directory, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let state = outside.path().join("state.json");
    fs::write(&state, "precious").unwrap();
    let state_text = state.display().to_string();
    let words = ["check", "--scenario", "sigkill", "--ack", "^saved", "--", &python, &saver];
    let (status, text) = in_directory(directory.path(), &words, &[("STATE", &state_text)]);
    assert_eq!((status, fs::read_to_string(&state).unwrap()), (1, "precious".to_owned()), "{text}");
    assert!(text.lines().next().unwrap_or_default().contains(&state_text), "{text}");
    assert!(text.contains("torn") || text.contains("cut short"), "{text}");

    let off = [("STATE", &*state_text), ("CRASHTEST_NAMESPACES", "off")];
    let (status, text) = in_directory(directory.path(), &words, &off);
    assert_eq!((status, fs::read_to_string(&state).unwrap()), (3, "precious".to_owned()), "{text}");
    for part in [&*state_text, "openat", "outside.py:4", "--allow-write"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_named_place_is_let_through() {
    let (Some(python), Some(saver)) = (common::python(), case("outside.py")) else { return };
    for namespaces in ["on", "off"] {
        let (directory, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let state = outside.path().join("state.json").display().to_string();
        let glob = format!("{}*", outside.path().display());
        let words = ["run", "--trials", "5", "--allow-write", &glob, "--", &python, &saver];
        let variables = [("STATE", &*state), ("CRASHTEST_NAMESPACES", namespaces)];
        let (_, text) = in_directory(directory.path(), &words, &variables);
        assert!(Path::new(&state).is_file(), "{namespaces}: {text}");
    }
}

#[test]
fn another_user_runs_the_program_if_root_says_so() {
    let nobody = nix::unistd::User::from_name("nobody").ok().flatten();
    if !has("root", geteuid().is_root()) || !has("nobody", nobody.is_some()) {
        return;
    }
    for namespaces in ["on", "off"] {
        let directory = tempfile::tempdir().unwrap();
        let program =
            "test \"$(id -un)\" = nobody && echo 1 >s.tmp && mv s.tmp s && rm -f s && echo 2 >s";
        let words =
            ["run", "--trials", "5", "--user", "nobody", "--check", "test $(id -un) = nobody"];
        let words =
            [&words[..], &["--promise", "checked", "--", "/bin/sh", "-c", program]].concat();
        let variables = [("CRASHTEST_NAMESPACES", namespaces)];
        let (status, text) = in_directory(directory.path(), &words, &variables);
        assert_eq!(status, 0, "{namespaces}: {text}");
    }
    let (status, text) =
        in_directory(Path::new("/"), &["run", "--user", "no-such-user", "--", "/bin/true"], &[]);
    assert_eq!(status, 2, "{text}");
}

#[test]
fn a_reader_that_goes_away_and_a_full_disk_are_plain_errors() {
    let Some(hostile) = compiled("hostile.c") else { return };
    let results = tempfile::tempdir().unwrap();
    let shell = |text: &str| {
        Command::new("/bin/bash")
            .args(["-c", text])
            .env("CRASHTEST", env!("CARGO_BIN_EXE_crashtest"))
            .env("HOSTILE", &hostile)
            .env("CRASHTEST_RESULTS", results.path())
            .current_dir(results.path())
            .output()
            .unwrap()
    };
    let run = "\"$CRASHTEST\" run";
    let gone = shell(&format!(
        "{run} --trials 5 -- \"$HOSTILE\" nothing 2>&1 | head -c 1; exit ${{PIPESTATUS[0]}}"
    ));
    // 141 is how a shell shows SIGPIPE; a run that was faster than its reader ends well.
    assert!(matches!(gone.status.code(), Some(0 | 141)), "{gone:?}");
    let full = shell(&format!("{run} --trials 5 -- \"$HOSTILE\" nothing >/dev/full"));
    assert_eq!(full.status.code(), Some(5), "{full:?}");
    assert!(String::from_utf8_lossy(&full.stderr).contains("cannot write to stdout"), "{full:?}");
    let full = shell(&format!("{run} --trials 5 -- \"$HOSTILE\" nothing 2>/dev/full"));
    assert_eq!(full.status.code(), Some(5), "{full:?}");
    if has("root", geteuid().is_root()) {
        let small = "mkdir small && mount -t tmpfs -o size=64k none small && head -c 40000 /dev/zero >small/taken";
        let text = format!(
            "unshare -m sh -c '{small} && {run} --results small --trials 3000 -- \"$HOSTILE\" nothing'"
        );
        let full = shell(&text);
        let said = String::from_utf8_lossy(&full.stderr).into_owned();
        assert_eq!(full.status.code(), Some(5), "{said}");
        assert!(said.contains("small") && said.contains("--resume"), "{said}");
    }
}

#[test]
fn a_value_of_the_environment_is_in_no_file_of_the_results() {
    let Some(hostile) = compiled("hostile.c") else { return };
    let (directory, results) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let words = ["run", "--trials", "20", "--seed", "1", "--env", "TOKEN=hunter2"];
    // It saves into the open state file, so that violations are kept.
    let program =
        "test -n \"$TOKEN\" && echo 12345 >s && echo saved && echo 123456 >s && echo saved";
    let words = [&words[..], &["--html", "page.html", "--", "/bin/sh", "-c", program]].concat();
    let run = |words: &[&str]| {
        let mut command = crashtest();
        command.args(words).env("CRASHTEST_RESULTS", results.path()).current_dir(directory.path());
        let output = command.output().unwrap();
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
    };
    let (status, text) = run(&words);
    assert_eq!(status, 1, "{hostile} {text}");
    let found = Command::new("grep")
        .args(["-r", "-l", "hunter2"])
        .args([results.path(), directory.path()])
        .output()
        .unwrap();
    assert!(found.stdout.is_empty(), "{}", String::from_utf8_lossy(&found.stdout));
    let (_, violations) = run(&["list", "violations"]);
    let id = violations.split_whitespace().next().unwrap().to_owned();
    let (status, text) = run(&["replay", &id]);
    assert_eq!(status, 2, "{text}");
    assert!(text.contains("--env TOKEN=VALUE"), "{text}");
    let (status, text) = run(&["replay", &id, "--env", "TOKEN=hunter2"]);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("runs: /bin/sh -c "), "{text}");
}
