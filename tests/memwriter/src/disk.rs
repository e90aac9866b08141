//! Writes stamped blocks to every virtio disk, and checks each before it is
//! written anew: a disk that moves along is right when every block reads as it
//! was written last, whichever host it is on.
//!
//! The page cache is kept out (`O_DIRECT`), because what it holds moves with the
//! guest's memory and would hide what the disk has lost.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::console;

const BLOCK: usize = 4096;
const BLOCKS: u32 = 256;
/// From one block to the next: each is in a cluster of its own.
const STRIDE: u64 = 64 << 10;
const PAUSE: Duration = Duration::from_millis(4);
/// Of Linux on `x86_64`.
const O_DIRECT: i32 = 0o40_000;

#[repr(C, align(4096))]
struct Block([u8; BLOCK]);

impl Block {
    /// What a block holds after it was written in that cycle.
    fn stamped(number: u32, cycle: u32) -> Self {
        let mut block = Self([0; BLOCK]);
        for (place, word) in (0_u32..).zip(block.0.chunks_exact_mut(4)) {
            let value = cycle.wrapping_mul(0x9e37_79b9) ^ number.wrapping_shl(16) ^ place;
            word.copy_from_slice(&value.to_le_bytes());
        }
        block
    }
}

/// Works on every virtio disk until the machine ends.
pub(crate) fn run_all() {
    for letter in 'a'..='z' {
        let name = format!("vd{letter}");
        if Path::new("/dev").join(&name).exists() {
            thread::spawn(move || {
                if let Err(error) = run(&name) {
                    console::line(&format!("BADDISK {name}: {error}"));
                }
            });
        }
    }
}

fn run(name: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).custom_flags(O_DIRECT);
    let disk = options.open(Path::new("/dev").join(name))?;
    for cycle in 1_u32.. {
        let mut bad = 0;
        for number in 0..BLOCKS {
            // In the first cycle it holds what an earlier life of the guest left.
            if cycle > 1 && !holds(&disk, number, cycle - 1)? {
                bad += 1;
                let expected = cycle - 1;
                console::line(&format!(
                    "BADBLOCK {name} block={number} expected={expected}"
                ));
            }
            disk.write_all_at(&Block::stamped(number, cycle).0, place(number))?;
            thread::park_timeout(PAUSE);
        }
        console::line(&format!("disk {name} cycle={cycle} bad={bad}"));
    }
    Ok(())
}

fn place(number: u32) -> u64 {
    u64::from(number) * STRIDE
}

fn holds(disk: &File, number: u32, cycle: u32) -> io::Result<bool> {
    let mut block = Block([0; BLOCK]);
    disk.read_exact_at(&mut block.0, place(number))?;
    Ok(block.0 == Block::stamped(number, cycle).0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_and_every_cycle_differs() {
        let first = Block::stamped(3, 7).0;
        assert!(first != Block::stamped(3, 8).0);
        assert!(first != Block::stamped(4, 7).0);
        assert!(first == Block::stamped(3, 7).0);
    }
}
