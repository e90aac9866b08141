//! Fault points: places between two steps of a migration at which a test can
//! make a daemon wait, to kill it there, freeze it, or cut its paths.
//!
//! Compiled only with the feature `fault-points` (which the package of the tests
//! asks for) in a build with debug assertions; otherwise a point is nothing. A
//! test names a folder in `GODWIT_FAULT_POINTS`, and arms a point by making a
//! fifo of its name there. The first daemon that comes to the point takes the
//! fifo (it becomes `NAME.reached`) and waits until somebody has opened it for
//! writing and closed it again. Only that step of that migration waits.

/// Every point of a migration, in the order in which they are come to.
pub const POINTS: [&str; 16] = [
    "target.before_start",
    "target.before_send_prepared",
    "source.before_migrate",
    "source.in_precopy",
    "source.before_continue",
    "target.before_send_loaded",
    "source.before_grant_journal",
    "source.after_grant_journal",
    "target.before_grant_journal",
    "target.after_grant_journal",
    "target.after_cont",
    "target.before_send_activated",
    "source.before_retire",
    "source.after_retire",
    // When it is called off.
    "target.before_discard",
    "source.before_stay",
];

/// Those that only a migration comes to which copies disks, in the same order.
pub const DISK_POINTS: [&str; 12] = [
    "target.before_export",
    "target.after_export",
    "source.before_mirror",
    "source.in_mirror",
    "source.mirrors_ready",
    "source.before_finish_mirrors",
    "source.before_let_go",
    "target.before_end_exports",
    "target.after_end_exports",
    "source.before_remove_images",
    // When it is called off.
    "source.before_abort_mirrors",
    "target.before_remove_images",
];

/// Waits here when a test has armed the point.
#[cfg(all(feature = "fault-points", debug_assertions))]
pub(crate) async fn reach(point: &str) {
    let Some(dir) = std::env::var_os("GODWIT_FAULT_POINTS") else {
        return;
    };
    let dir = std::path::PathBuf::from(dir);
    let reached = dir.join(format!("{point}.reached"));
    if std::fs::rename(dir.join(point), &reached).is_ok() {
        tracing::warn!(point, "waits at a fault point");
        // Opening a fifo to read takes until there is a writer, and reading it
        // until there is none.
        let _ = tokio::task::spawn_blocking(|| std::fs::read(reached)).await;
        tracing::warn!(point, "goes on from a fault point");
    }
}

/// Nothing.
#[cfg(not(all(feature = "fault-points", debug_assertions)))]
#[expect(clippy::unused_async, reason = "the other build waits")]
pub(crate) async fn reach(_: &str) {}
