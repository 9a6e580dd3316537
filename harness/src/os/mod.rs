//! The edge to the kernel: the only place with `unsafe`.

pub mod arch;
pub mod attributes;
pub mod enclosure;
pub mod ipc;
pub mod memory;
pub mod mount;
pub mod network;
pub mod process;
pub mod ptrace;
pub mod quota;
pub mod sandbox;
pub mod seccomp;
pub mod shared;
pub mod signals;
pub mod spawn;
