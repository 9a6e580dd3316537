//! The words of the document: for scenarios and for promises.

use crate::verdict::Promise;

/// A scenario in the words of a document.
pub struct Told {
    /// What happens in the world.
    pub story: &'static str,
    /// The beginning of a sentence about it.
    pub when: &'static str,
    /// What is counted in it.
    pub unit: &'static str,
}

/// The words for a scenario.
#[must_use]
pub fn told(scenario: &str) -> Told {
    let (story, when, unit) = match scenario {
        "sigkill" => (
            "The process is killed while it saves: a deploy, the OOM killer, kill -9",
            "When it was killed while it saved",
            "trials",
        ),
        "shortwrite" => (
            "A write is interrupted and takes only a part",
            "When a write took only a part of its bytes",
            "trials",
        ),
        "enospc" => ("The disk is full", "On a full disk", "trials"),
        "errno" => (
            "A call fails: an I/O error, a quota, too many open files",
            "When a storage call failed",
            "trials",
        ),
        "poweroff" => (
            "The power goes, on file systems as they promise",
            "After a loss of power, by the profiles of seven file systems",
            "crash states",
        ),
        "poweroff-disk" => (
            "The power goes, on the kernel's own ext4, XFS and btrfs",
            "After a power cut on a real file system",
            "disk images",
        ),
        "corrupt" => (
            "The saved state is damaged: a bad disk, an editor, a half copied file",
            "When the saved state was damaged",
            "loads",
        ),
        "deleted" => ("The state file is deleted", "When the state file was deleted", "loads"),
        "restore" => (
            "The state is restored from a copy, as documented",
            "When the state was restored from a copy",
            "restores",
        ),
        "concurrent" => (
            "A second process starts: a timer, or somebody by hand",
            "When a second process saved",
            "meetings",
        ),
        "disconnect" => (
            "The broker goes away, or the bot does, in the middle of an order",
            "When the bot and its broker parted",
            "moments",
        ),
        "stale" => (
            "A position is settled while the bot is down",
            "When a position was settled while the bot was down",
            "moments",
        ),
        _ => ("Something else happens", "In that scenario", "trials"),
    };
    Told { story, when, unit }
}

/// What a broken promise means.
#[must_use]
pub fn broken(promise: Promise) -> &'static str {
    match promise {
        Promise::Atomic => "the state was damaged",
        Promise::Durable => "a save that had been acknowledged was lost",
        Promise::Sound => "damage was loaded as if it were a state",
        Promise::Consistent => "the books did not agree with the broker",
        Promise::Checked => "the check of what was left failed",
        Promise::Recoverable => "the program could not load what was left, or not save again",
        Promise::Honest => "a save that had failed was reported as done",
        Promise::Tidy => "temporary files stayed behind for ever",
    }
}

/// What a kept promise means.
#[must_use]
pub fn held(promise: Promise) -> &'static str {
    match promise {
        Promise::Atomic => "the state was one whole version",
        Promise::Durable => "no acknowledged save was lost",
        Promise::Sound => "no damage was loaded as if it were a state",
        Promise::Consistent => "the books agreed with the broker",
        Promise::Checked => "the check of what was left held",
        Promise::Recoverable => "the program could load what was left, and save again",
        Promise::Honest => "no failed save was reported as done",
        Promise::Tidy => "no temporary file stayed behind for ever",
    }
}
