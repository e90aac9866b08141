//! QEMU as a process and as a QMP session.
//!
//! * [`process`]: start it so that it outlives the daemon, find it again, see
//!   its end, kill it; always by pidfd, so that a process id that was given to
//!   somebody else is never taken for it.
//! * [`session`]: the QMP session: commands with deadlines, events in order,
//!   floods bounded.
//! * [`rescue`]: a second session that outlives the daemon.
//! * [`probe`]: what the installed QEMUs can do.

pub mod probe;
pub mod process;
pub mod rescue;
pub mod session;
#[cfg(test)]
mod tests;
