//! The `godwit` program against a scripted coordinator: what it prints, where,
//! and how it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod answers;
mod coordinator;
mod process;
mod pty;

mod backup;
mod console;
mod endings;
mod listings;
mod reaching;
mod streams;
mod waiting;
