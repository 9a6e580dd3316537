//! The edge to the kernel: the only place with `unsafe`.

pub mod process;
pub mod signals;
