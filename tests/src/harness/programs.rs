//! Where the programs under test are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The path of a program of this workspace, beside the running test.
///
/// Cargo builds only the package that is tested, so the daemons have to be
/// built before: `scripts/test` does.
///
/// # Errors
/// When it is not there; the error says how to build it.
pub fn find(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe().context("the test's own path")?;
    let folders = here.ancestors().skip(1).take(2);
    for folder in folders {
        let candidate = folder.join(name);
        if candidate.is_file() {
            return Ok(candidate);
        }
    }
    let profile = if here.ancestors().any(|dir| dir.ends_with("release")) {
        " --release"
    } else {
        ""
    };
    bail!(
        "{name} is not beside {}; build it: cargo build{profile} --workspace --bins",
        here.display()
    )
}

/// The older QEMU that `scripts/old-qemu` has unpacked.
///
/// # Errors
/// When it has not.
pub fn old_qemu() -> Result<PathBuf> {
    let path = std::env::var_os("GODWIT_OLD_QEMU").map_or_else(
        || {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
            root.join(".cache/qemu-7.2/usr/bin/qemu-system-x86_64")
        },
        PathBuf::from,
    );
    path.canonicalize()
        .context("the older QEMU is not there; run scripts/old-qemu")
}
