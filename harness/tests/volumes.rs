//! A small disk has as much space as is said: not a block more, not a block less, again and again.

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crashtest::file_system::{Axis, FileSystem};
use crashtest::lab::Lab;
use crashtest::sweep::Reach;
use crashtest::volume::{BLOCK_BYTES, Volume};

/// How many blocks can be written to a new file.
fn writable(path: &Path) -> u64 {
    let Ok(mut file) = File::create(path) else { return 0 };
    let block = [7; BLOCK_BYTES as usize];
    let mut blocks = 0;
    while file.write(&block).is_ok_and(|count| count == block.len()) && file.sync_data().is_ok() {
        blocks += 1;
    }
    blocks
}

/// How many files can be made.
fn creatable(directory: &Path) -> u64 {
    (0..).take_while(|n| File::create(directory.join(format!("f{n}"))).is_ok()).count() as u64
}

fn disk(kind: FileSystem, axis: Axis) -> (Lab, std::path::PathBuf, Volume) {
    let lab = Lab::new(None).unwrap();
    let room = lab.room(0).unwrap();
    let reach = Reach { axes: vec![axis], ..Reach::on(kind) };
    let volume = Volume::make(&room, &reach).unwrap();
    let directory = room.join("dir");
    fs::create_dir(&directory).unwrap();
    (lab, directory, volume)
}

fn empty(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
}

/// Fills a disk in many ways and sees how much of it can be written.
fn space(kind: FileSystem) {
    let (_lab, directory, volume) = disk(kind, Axis::Space);
    for free in [0, 1, 2, 7, 100, 3, 0, 1, 250] {
        volume.fill(Axis::Space, free).unwrap();
        let blocks = writable(&directory.join("file"));
        match kind {
            FileSystem::Tmpfs => assert_eq!(blocks, free),
            // ext4 may need a block for the tree of a file's extents.
            FileSystem::Ext4 => assert!((free.saturating_sub(1)..=free).contains(&blocks)),
            // XFS keeps some for itself, and may not even make the file.
            FileSystem::Xfs => assert!(blocks <= free + 1, "{blocks} of {free}"),
            // btrfs keeps the bytes of small files elsewhere.
            FileSystem::Btrfs => assert!(blocks <= free + 2, "{blocks} of {free}"),
        }
        if free == 250 {
            assert!(blocks > 150, "{blocks} of {free}");
        }
        volume.release().unwrap();
        empty(&directory);
        fs::write(directory.join("file"), vec![7; 1 << 20]).unwrap();
        empty(&directory);
    }
}

/// What a quota allows, and no more, though the disk has room.
fn quota() {
    let (_lab, directory, volume) = disk(FileSystem::Btrfs, Axis::Quota);
    for free in [0, 4, 100, 1, 200] {
        volume.fill(Axis::Quota, free).unwrap();
        let file = directory.join("file");
        let blocks = writable(&file);
        // Of what is left, the names and the places of the blocks take some, too.
        assert!(blocks <= free && blocks + 100 >= free, "{blocks} of {free}");
        let refused = File::options().append(true).create(true).open(&file);
        let refused = refused.and_then(|mut file| {
            (0..200).try_for_each(|_| file.write_all(&[7; BLOCK_BYTES as usize]))
        });
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(nix::libc::EDQUOT));
        volume.release().unwrap();
        empty(&directory);
        fs::write(directory.join("file"), vec![7; 1 << 20]).unwrap();
        empty(&directory);
    }
}

fn inodes(kind: FileSystem) {
    let (_lab, directory, volume) = disk(kind, Axis::Inodes);
    for free in [0, 1, 5, 20, 2, 0, 9] {
        volume.fill(Axis::Inodes, free).unwrap();
        assert_eq!(creatable(&directory), free);
        volume.release().unwrap();
        empty(&directory);
        assert!(File::create(directory.join("file")).is_ok());
        empty(&directory);
    }
}

/// Nothing is mounted for others, and a subject that is too large is refused.
fn is_private() {
    let (_lab, directory, volume) = disk(FileSystem::Tmpfs, Axis::Space);
    let mine = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let theirs = fs::read_to_string(format!("/proc/{}/mountinfo", nix::unistd::getppid())).unwrap();
    let place = directory.parent().unwrap().display().to_string();
    assert!(mine.contains(&place) && !theirs.contains(&place));
    let error = volume.hold("bot", 1 << 30).unwrap_err();
    assert!(error.message.contains("`bot` writes 1073741824 bytes"), "{error}");
    assert!(error.help.unwrap().contains("--fs-size"));
}

/// Each case runs in a process of its own, which gets mounts of its own.
fn main() {
    let cases: [(&str, FileSystem, fn()); 8] = [
        ("space_of_a_tmpfs", FileSystem::Tmpfs, || space(FileSystem::Tmpfs)),
        ("inodes_of_a_tmpfs", FileSystem::Tmpfs, || inodes(FileSystem::Tmpfs)),
        ("a_disk_is_private", FileSystem::Tmpfs, is_private),
        ("space_of_ext4", FileSystem::Ext4, || space(FileSystem::Ext4)),
        ("inodes_of_ext4", FileSystem::Ext4, || inodes(FileSystem::Ext4)),
        ("space_of_xfs", FileSystem::Xfs, || space(FileSystem::Xfs)),
        ("space_of_btrfs", FileSystem::Btrfs, || space(FileSystem::Btrfs)),
        ("quota_of_btrfs", FileSystem::Btrfs, quota),
    ];
    let possible: Vec<_> =
        FileSystem::ALL.into_iter().filter(|kind| common::can_fill(*kind)).collect();
    let cases = cases.into_iter().filter(|(_, kind, _)| possible.contains(kind));
    common::run_apart(&cases.map(|(name, _, case)| (name, case)).collect::<Vec<_>>());
}
