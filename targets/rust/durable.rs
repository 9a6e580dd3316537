//! Sound: a lock, a new file with a checksum, fsync, rename, fsync of the directory, a second copy.
//! Compiled by rustc alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

// --- lock
/// Holds the lock of a state for as long as the file that it returns is open.
fn lock(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().append(true).create(true).open(with(path, ".lock"))?;
    file.try_lock().map_err(|why| io::Error::other(format!("another process? {why}")))?;
    Ok(file)
}
// --- end

fn with(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

// --- replace: use std::fs::{self, File}; | use std::io::{self, Write}; | use std::path::Path;
/// Puts bytes in the place of a file, so that it is the old or the new one, and on disk.
fn replace(path: &Path, data: &[u8]) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    // What a process of this number has left there is overwritten.
    let temp = directory.join(format!(".state-{}.tmp", std::process::id()));
    let written = File::create(&temp).and_then(|mut file| {
        file.write_all(data)?;
        file.sync_all()?;
        fs::rename(&temp, path)
    });
    if let Err(error) = written {
        let _ = fs::remove_file(&temp);
        return Err(error);
    }
    File::open(directory)?.sync_all()
}
// --- end

// --- save
/// Saves twice, so that one copy can be damaged; it is saved when this returns.
fn save(path: &Path, sequence: u64, json: &str) -> io::Result<()> {
    let rest = format!("\"sequence\": {sequence}, \"state\": {json}}}\n");
    let data = format!("{{\"crc32\": \"{:08x}\", {rest}", crc32(rest.as_bytes()));
    replace(path, data.as_bytes())?;
    replace(&with(path, ".copy"), data.as_bytes())
}

/// The CRC-32 of zlib; the crate `crc32fast` has a faster one.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1))
        })
    })
}
// --- end

// --- load
/// The number and the state in a file, if all of it is there.
fn whole(path: &Path) -> Option<(u64, String)> {
    let text = fs::read_to_string(path).ok()?;
    let (sum, rest) = text.strip_prefix("{\"crc32\": \"")?.split_once("\", ")?;
    if sum != format!("{:08x}", crc32(rest.as_bytes())) {
        return None;
    }
    let (sequence, state) = rest.strip_prefix("\"sequence\": ")?.split_once(", \"state\": ")?;
    Some((sequence.parse().ok()?, state.strip_suffix("}\n")?.to_owned()))
}

/// The newest state that is whole; fails if there is none, though there was one. What is damaged is kept
/// aside.
fn load(path: &Path, default: &str) -> io::Result<String> {
    let copy = with(path, ".copy");
    let (mine, other) = (whole(path), whole(&copy));
    let newest = mine.iter().chain(&other).max_by_key(|(sequence, _)| *sequence);
    let exists = |path: &Path| fs::symlink_metadata(path).is_ok();
    let Some((sequence, state)) = newest else {
        if exists(path) || exists(&copy) {
            return Err(io::Error::other(format!("{} and its copy are damaged", path.display())));
        }
        eprintln!("there is no state: beginning anew");
        return Ok(default.to_owned());
    };
    if mine.as_ref().is_none_or(|(mine, _)| mine < sequence) {
        eprintln!("{} is damaged or old: taking its copy", path.display());
        if exists(path) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            fs::rename(path, with(path, &format!(".damaged-{}", now.as_nanos())))?;
        }
    }
    Ok(state.clone())
}
// --- end

fn sample(version: u64) -> String {
    let position = |n: u64| format!("{{\"symbol\": \"SYM{n:04}\", \"quantity\": {}}}", n + version);
    // Every other version is shorter, so that an overwrite without truncation shows.
    let positions: Vec<_> = (0..300 - 20 * (version % 2)).map(position).collect();
    format!("{{\"version\": {version}, \"positions\": [{}]}}", positions.join(", "))
}

fn main() -> io::Result<()> {
    let path = Path::new("state.json");
    let _held = lock(path)?;
    for entry in fs::read_dir(".")? {
        let name = entry?.file_name();
        // A process was killed in the middle of a save.
        if name.to_string_lossy().starts_with(".state-") {
            fs::remove_file(name)?;
        }
    }
    let state = load(path, "null")?;
    if std::env::args().nth(1).as_deref() == Some("load") {
        println!("{state}");
        return Ok(());
    }
    for version in 1..=4 {
        save(path, version, &sample(version))?;
        println!("saved {version}");
    }
    Ok(())
}
