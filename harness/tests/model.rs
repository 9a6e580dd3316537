//! The model against the kernel: random programs save on real file systems, and whatever is left when the
//! power goes must be among what the profile allows. `CRASHTEST_PROGRAMS=300` tries as many.

mod common;

use std::fmt::Write;

use common::{can_cut, report};
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What they begin with: files are opened when they are used first.
const HEAD: &str = "import os\n\
    fds = {}\n\
    def f(name):\n    \
    if name not in fds: fds[name] = os.open(name, os.O_RDWR | os.O_CREAT, 0o644)\n    \
    return fds[name]\n";

/// A program of a few calls on two files.
fn program(random: &mut impl Rng) -> String {
    let mut text = HEAD.to_owned();
    for n in 0..random.random_range(3..9) {
        let name = ["state", "t"].choose(random).unwrap();
        let line = match random.random_range(0..12) {
            0..=5 => {
                let end = format!("os.fstat(f('{name}')).st_size");
                let some = random.random_range(0..9000).to_string();
                let offset = ["0", "0", &end, &some].choose(random).unwrap().to_string();
                let lengths = [random.random_range(1..300), random.random_range(1..9000), 4096];
                let length = lengths.choose(random).unwrap();
                format!("os.pwrite(f('{name}'), bytes([{}]) * {length}, {offset})", 65 + n)
            }
            6 | 7 => format!("os.ftruncate(f('{name}'), {})", random.random_range(0..9000)),
            8 => format!("os.fsync(f('{name}'))"),
            9 => format!("os.fdatasync(f('{name}'))"),
            10 => "f('t'); os.rename('t', 'state'); fds['state'] = fds.pop('t')".to_owned(),
            _ => "d = os.open('.', os.O_RDONLY); os.fsync(d); os.close(d)".to_owned(),
        };
        writeln!(text, "{line}").unwrap();
    }
    text + "f('state')\nprint('saved', flush=True)\nos._exit(0)\n"
}

#[test]
fn what_random_programs_leave_on_a_real_disk_is_allowed_by_its_profile() {
    let Some(python) = common::python() else { return };
    let kinds = ["ext4", "xfs", "btrfs"].into_iter().filter(|kind| can_cut(kind));
    let kinds = kinds.collect::<Vec<_>>().join(",");
    if kinds.is_empty() || !common::can_follow() {
        return;
    }
    let count = std::env::var("CRASHTEST_PROGRAMS").map_or(Ok(5), |count| count.parse::<u64>());
    let (mut compared, mut outside) = (0, Vec::new());
    for seed in 0..count.unwrap() {
        let script = program(&mut ChaCha8Rng::seed_from_u64(seed));
        let results = tempfile::tempdir().unwrap();
        let options = ["--scenario", "poweroff-disk", "--fs", &kinds, "--images-max", "200"];
        let about = ["--seed", "1", "--ack", "saved", "--promise", "atomic"];
        let state = ["--state", "state", "--state", "t", "--", &python, "-c", &script];
        let (_, report) = report(results.path(), &[&options[..], &about, &state].concat());
        for cell in report["subjects"][0]["cells"].as_array().unwrap() {
            let (disk, fs) = (&cell["disk"], &cell["profile"]);
            if disk["outside"]["count"] != 0 {
                outside.push(format!("program {seed} on {fs}: {disk:#}\n{script}"));
            }
            compared += u64::from(disk["profile"].is_string());
        }
    }
    assert!(outside.is_empty(), "{} are outside:\n{}", outside.len(), outside.join("\n"));
    // Some have too many crash states, but not all.
    assert!(compared > 0, "nothing was compared");
}
