//! The guardian: a small process that ends protected VMs before the lease does.
//!
//! ```text
//!   godwit-node run                      godwit-node guard
//!     lease keeper ---- Extend --------->  poll: timer, pidfds, socket
//!     domain actors --- Watch, Fate ---->    |  the end of the lease
//!                                            '--> SIGKILL to every watched QEMU
//! ```
//!
//! It is a process and not a thread, because the daemon may hang, be killed or be
//! upgraded while its VMs run on, and the lease goes on as well. The daemon that
//! finds none begins one; a later daemon finds the one of its forerunner.
//!
//! # Invariants
//! * The daemon asks for more of the lease only while its guardian answers, and
//!   the guardian knows of the lease's new end before anybody relies on it.
//! * A protected QEMU is watched before its CPUs run, and one that cannot be
//!   watched is ended.
//! * What the guardian decides is [`godwit_node_logic::lease::Guardian`].

mod client;
mod clock;
mod protocol;
mod server;
#[cfg(test)]
mod tests;
mod watchdog;

use std::path::{Path, PathBuf};

pub use client::Guard;
pub use clock::{boot_now, until};
pub use server::run;
#[cfg(test)]
pub(crate) use tests::guard as serve_for_tests;

fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("guard.sock")
}

fn lock_file(run_dir: &Path) -> PathBuf {
    run_dir.join("guard.lock")
}
