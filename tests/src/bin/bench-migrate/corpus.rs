//! Pages as real guests have them: this machine's own programs and texts.
//!
//! The guest gets them as a file in a second archive behind its initrd
//! (initramfs buffer format, Documentation/driver-api/early-userspace in Linux).

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// How large the corpus is. Its pages are repeated in memory, farther apart than
/// any compressor of streams looks back.
pub(crate) const BYTES: usize = 64 << 20;
/// Most that one file contributes, so that it is made of many.
const MOST_OF_A_FILE: usize = 1 << 20;
/// Files that are too small for a page or two say little.
const LEAST: u64 = 8 << 10;

/// Puts the corpus behind an initrd; the guest finds it as `/corpus`.
pub(crate) fn append_to(initrd: &Path, into: &Path) -> Result<()> {
    let corpus = gather()?;
    let mut file = File::create(into)?;
    let begin = std::fs::read(initrd)?;
    file.write_all(&begin)?;
    file.write_all(&vec![0; begin.len().next_multiple_of(4) - begin.len()])?;
    file.write_all(&archive("corpus", &corpus))?;
    Ok(())
}

/// Half programs, half texts.
fn gather() -> Result<Vec<u8>> {
    let mut corpus = Vec::with_capacity(BYTES);
    take(
        &["/usr/bin", "/usr/sbin", "/usr/lib"],
        is_program,
        BYTES / 2,
        &mut corpus,
    );
    take(
        &["/usr/share", "/usr/include", "/etc"],
        is_text,
        BYTES,
        &mut corpus,
    );
    // Whichever there is more of.
    take(
        &["/usr", "/opt"],
        |bytes| is_program(bytes) || is_text(bytes),
        BYTES,
        &mut corpus,
    );
    if corpus.len() < BYTES {
        bail!(
            "this machine has only {} MiB of programs and texts under /usr, not {}",
            corpus.len() >> 20,
            BYTES >> 20
        );
    }
    Ok(corpus)
}

fn take(roots: &[&str], wanted: fn(&[u8]) -> bool, until: usize, corpus: &mut Vec<u8>) {
    for root in roots {
        let mut folders = vec![PathBuf::from(root)];
        while let Some(folder) = folders.pop() {
            for path in sorted(&folder) {
                if corpus.len() >= until {
                    return;
                }
                match std::fs::symlink_metadata(&path) {
                    Ok(about) if about.is_dir() => folders.push(path),
                    Ok(about) if about.is_file() && about.len() >= LEAST => {
                        add(&path, wanted, until, corpus);
                    }
                    _ => {}
                }
            }
        }
    }
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    paths
}

fn add(path: &Path, wanted: fn(&[u8]) -> bool, until: usize, corpus: &mut Vec<u8>) {
    let mut bytes = Vec::new();
    let most = MOST_OF_A_FILE.min(until - corpus.len()) as u64;
    let read = File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes));
    if read.is_err() || !wanted(&bytes) {
        return;
    }
    // A file begins on a page, as in a page cache.
    let whole = if corpus.len() + bytes.len() == until {
        bytes.len()
    } else {
        bytes.len() & !4095
    };
    corpus.extend_from_slice(&bytes[..whole]);
}

fn is_program(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

fn is_text(bytes: &[u8]) -> bool {
    let begin = &bytes[..bytes.len().min(4096)];
    !begin.is_empty()
        && begin
            .iter()
            .all(|byte| *byte >= b' ' || byte.is_ascii_whitespace())
}

/// A cpio archive in the "newc" format with one file (cpio(5)).
fn archive(name: &str, contents: &[u8]) -> Vec<u8> {
    let mut archive = Vec::with_capacity(contents.len() + 512);
    entry(&mut archive, name, 0o100_644, contents);
    entry(&mut archive, "TRAILER!!!", 0, &[]);
    archive
}

fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, contents: &[u8]) {
    let size = u32::try_from(contents.len()).unwrap_or(0);
    let name_size = u32::try_from(name.len() + 1).unwrap_or(0);
    let inode = 1;
    let links = 1;
    let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(contents);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_cpio_writes() {
        let bytes = archive("corpus", b"abcde");
        assert!(bytes.starts_with(b"070701000000010000"));
        // Header of 110 bytes, the name with its zero, padded to four.
        assert_eq!(&bytes[110..117], b"corpus\0");
        assert_eq!(&bytes[120..125], b"abcde");
        assert_eq!(&bytes[128..134], b"070701");
        assert!(bytes.ends_with(b"TRAILER!!!\0\0\0\0"));
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn programs_and_texts_are_told_from_the_rest() {
        assert!(is_program(b"\x7fELF\x02"));
        assert!(is_text(b"Hello\n\tworld \xc3\xa9"));
        assert!(!is_text(b"PK\x03\x04"));
        assert!(!is_text(b""));
    }
}
