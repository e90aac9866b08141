//! Writes stamped blocks to every virtio disk, and checks each before it is
//! written anew: a disk that moves along is right when every block reads as it
//! was written last, whichever host it is on. One that cannot be written is read
//! over and over: it has to hold what it held at first.
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
const BLOCKS: u64 = 256;
/// From one block to the next: each is in a cluster of its own.
const STRIDE: u64 = 64 << 10;
/// A cycle takes this long at least, so that its line is not most of the output.
const CYCLE: Duration = Duration::from_secs(1);
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
    let told = |what: &str| std::fs::read_to_string(format!("/sys/block/{name}/{what}"));
    let sectors = told("size")?.trim().parse().unwrap_or_default();
    let blocks = blocks(sectors);
    if told("ro")?.trim() == "1" {
        return read_on(name, blocks);
    }
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).custom_flags(O_DIRECT);
    let disk = options.open(Path::new("/dev").join(name))?;
    for cycle in 1_u32.. {
        let mut bad = 0;
        for number in 0..blocks {
            // In the first cycle it holds what an earlier life of the guest left.
            if cycle > 1 && !holds(&disk, number, cycle - 1)? {
                bad += 1;
                let expected = cycle - 1;
                console::line(&format!(
                    "BADBLOCK {name} block={number} expected={expected}"
                ));
            }
            disk.write_all_at(&Block::stamped(number, cycle).0, place(number))?;
            thread::park_timeout(CYCLE / blocks);
        }
        console::line(&format!("disk {name} cycle={cycle} bad={bad}"));
    }
    Ok(())
}

fn read_on(name: &str, blocks: u32) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let disk = options.read(true).custom_flags(O_DIRECT);
    let disk = disk.open(Path::new("/dev").join(name))?;
    let mut first = Vec::new();
    for cycle in 1_u32.. {
        let mut bad = 0;
        for number in 0..blocks {
            let mut block = Block([0; BLOCK]);
            disk.read_exact_at(&mut block.0, place(number))?;
            let sum = sum(&block);
            match first.get(usize::try_from(number).unwrap_or_default()) {
                None => first.push(sum),
                Some(known) if *known == sum => {}
                Some(_) => {
                    bad += 1;
                    console::line(&format!("BADBLOCK {name} block={number} expected=1"));
                }
            }
            thread::park_timeout(CYCLE / blocks);
        }
        console::line(&format!("disk {name} cycle={cycle} bad={bad}"));
    }
    Ok(())
}

/// How many there are on a disk of so many sectors of 512 bytes: what is in its
/// second half is never written.
fn blocks(sectors: u64) -> u32 {
    let half = sectors / 2 * 512 / STRIDE;
    u32::try_from(half.clamp(1, BLOCKS)).unwrap_or(1)
}

/// FNV-1a (<http://www.isthe.com/chongo/tech/comp/fnv/>).
fn sum(block: &Block) -> u64 {
    let fold = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    block.0.iter().fold(0xcbf2_9ce4_8422_2325, fold)
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

    #[test]
    fn a_small_disk_has_fewer_blocks() {
        assert_eq!(blocks(128 << 11), 256);
        assert_eq!(blocks(8 << 11), 64);
        assert_eq!(blocks(0), 1);
    }

    #[test]
    fn a_block_that_changed_has_another_sum() {
        let mut block = Block::stamped(3, 7);
        let before = sum(&block);
        assert_eq!(before, sum(&Block::stamped(3, 7)));
        block.0[17] ^= 1;
        assert_ne!(before, sum(&block));
    }
}
