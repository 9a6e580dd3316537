//! System V IPC that no other process sees, so that what a killed program has left of it goes away.

use std::io;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

/// Gives this process, and those that it will fork, empty System V IPC of their own.
pub fn renew() -> io::Result<()> {
    Ok(unshare(CloneFlags::CLONE_NEWIPC)?)
}

// linux/shm.h, linux/sem.h, linux/msg.h
const SHM_INFO: libc::c_int = 14;
const SEM_INFO: libc::c_int = 19;
const MSG_INFO: libc::c_int = 12;

/// The largest of the structures that these calls fill has 14 words.
type Info = [libc::c_int; 64];

/// Whether there is a shared memory segment, a semaphore or a message queue.
pub fn is_used() -> io::Result<bool> {
    // `shm_info.used_ids`, `seminfo.semusz` and `msginfo.msgpool` count them.
    let (mut shm, mut sem, mut msg): (Info, Info, Info) = ([0; 64], [0; 64], [0; 64]);
    // SAFETY: the kernel writes one `struct shm_info`, which is smaller than `shm`.
    Errno::result(unsafe { libc::shmctl(0, SHM_INFO, shm.as_mut_ptr().cast()) })?;
    // SAFETY: the kernel writes one `struct seminfo`, which is smaller than `sem`.
    Errno::result(unsafe { libc::semctl(0, 0, SEM_INFO, sem.as_mut_ptr()) })?;
    // SAFETY: the kernel writes one `struct msginfo`, which is smaller than `msg`.
    Errno::result(unsafe { libc::msgctl(0, MSG_INFO, msg.as_mut_ptr().cast()) })?;
    Ok(shm[0] != 0 || sem[7] != 0 || msg[0] != 0)
}
