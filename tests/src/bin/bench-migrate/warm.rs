//! Memory that the hypervisor backs before a run begins.

use std::process::Command;

use anyhow::{Result, ensure};
use godwit_shared::model::MiB;

/// The argument with which this program touches memory and ends.
pub(crate) const TOUCH: &str = "--touch-mib";

/// Has the hypervisor back as much memory as a run will take, and frees it: the
/// first touch of memory that was long unused costs seconds per GiB on such
/// machines and would hide everything else. In huge pages, because QEMU asks
/// for those, and a process of its own, because that is how the C library is
/// told to (glibc's manual, "Memory Allocation Tunables").
pub(crate) fn warm_memory(size: MiB) -> Result<()> {
    let warmed = Command::new(std::env::current_exe()?)
        .args([TOUCH, &size.0.to_string()])
        .env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
        .status()?;
    ensure!(warmed.success(), "memory could not be touched: {warmed}");
    Ok(())
}

/// What that process does.
pub(crate) fn touch(mib: usize) {
    let mut memory = vec![0_u8; mib << 20];
    for page in memory.chunks_mut(4096) {
        page[0] = 1;
    }
    std::hint::black_box(&memory);
}
