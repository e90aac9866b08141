//! The file of `godwit cluster backup`: what it is, of which cluster, whether it is whole.
//!
//! ```text
//! godwit-backup 1 sha256 HEX      of everything behind this line
//! {"cluster":"godwit", ...}       [`BackupHeader`], one line of JSON
//! ...                             the records: JSON lines, packed with zstd
//! ```
//!
//! So common tools say what it is and check it: `head -n 2 FILE`, `tail -n +2
//! FILE | sha256sum`, `tail -n +3 FILE | zstd -dc`. The checksum finds damage,
//! not forgery: a backup is kept where only its owner can write.
//!
//! The records are the coordinator's matter; the command line only looks
//! whether the file is whole.

use serde::{Deserialize, Serialize};

use crate::digest::{hex, sha256};
use crate::model::{Problem, UnixMillis, codes};

/// The layout of the file.
pub const FORMAT: u32 = 1;
const MAGIC: &str = "godwit-backup";
/// A first line is shorter than this, so more is not searched.
const FIRST_LINE: usize = 128;

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupHeader {
    /// The cluster's name.
    pub cluster: String,
    /// The CA's SHA-256 fingerprint, in hexadecimal: which cluster it really is.
    pub ca_fingerprint: String,
    /// The version of the coordinator that made it.
    pub software: String,
    /// When it was made.
    pub taken: UnixMillis,
    /// The store's last commit before that.
    pub revision: u64,
    /// How many records there are.
    pub records: u64,
    /// Nodes among them.
    pub nodes: u64,
    /// VMs among them.
    pub vms: u64,
}

/// A file of a header and packed records.
///
/// # Errors
/// Never in practice: a header is always JSON.
pub fn seal(header: &BackupHeader, records: &[u8]) -> Result<Vec<u8>, Problem> {
    let mut rest = serde_json::to_vec(header).map_err(Problem::internal)?;
    rest.push(b'\n');
    rest.extend_from_slice(records);
    let mut file = format!("{MAGIC} {FORMAT} sha256 {}\n", hex_sha256(&rest)).into_bytes();
    file.append(&mut rest);
    Ok(file)
}

/// The header and the packed records of a file, if it is whole.
///
/// # Errors
/// A [`Problem`] with code `backup_invalid` that says whether it is none, of a
/// later format, or damaged.
pub fn open(file: &[u8]) -> Result<(BackupHeader, &[u8]), Problem> {
    let (first, rest) = line(file, FIRST_LINE).ok_or_else(none)?;
    let words: Vec<&str> = std::str::from_utf8(first)
        .map_err(|_| none())?
        .split(' ')
        .collect();
    let [MAGIC, format, "sha256", sum] = words[..] else {
        return Err(none());
    };
    if format != FORMAT.to_string() {
        return Err(refused(format!(
            "the backup has format {format}; this release reads {FORMAT}"
        ))
        .remedy("use the release that made it, or a newer one"));
    }
    if hex_sha256(rest) != sum {
        return Err(damaged("its checksum does not match"));
    }
    let (header, records) = line(rest, rest.len()).ok_or_else(|| damaged("it has no header"))?;
    let header = serde_json::from_slice(header)
        .map_err(|error| damaged(&format!("its header cannot be read: {error}")))?;
    Ok((header, records))
}

/// What is wrong inside of a backup.
pub fn damaged(why: &str) -> Problem {
    refused(format!("the backup is damaged: {why}"))
        .remedy("use another copy of it, or an older backup")
}

fn none() -> Problem {
    refused("this is no backup of a cluster".to_owned())
        .remedy("name a file that `godwit cluster backup` has written")
}

fn refused(message: String) -> Problem {
    Problem::new(codes::BACKUP_INVALID, message)
}

/// What comes before the first newline, and what behind it.
fn line(bytes: &[u8], longest: usize) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().take(longest).position(|byte| *byte == b'\n')?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

fn hex_sha256(bytes: &[u8]) -> String {
    hex(&sha256(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn header() -> BackupHeader {
        BackupHeader {
            cluster: "godwit".into(),
            ca_fingerprint: "ab".repeat(32),
            software: "0.1.0".into(),
            taken: UnixMillis(1),
            revision: 7,
            records: 2,
            nodes: 1,
            vms: 1,
        }
    }

    #[test]
    fn what_was_sealed_is_opened() {
        let file = seal(&header(), b"records\nand more").unwrap();
        assert!(file.starts_with(b"godwit-backup 1 sha256 "));
        let (found, records) = open(&file).unwrap();
        assert_eq!((found, records), (header(), &b"records\nand more"[..]));
    }

    #[test]
    fn every_flipped_bit_and_every_missing_end_is_found() {
        let file = seal(&header(), b"records").unwrap();
        for at in 0..file.len() {
            let mut other = file.clone();
            other[at] ^= 1 << (at % 8);
            assert_eq!(
                open(&other).unwrap_err().code,
                codes::BACKUP_INVALID,
                "{at}"
            );
            assert_eq!(open(&file[..at]).unwrap_err().code, codes::BACKUP_INVALID);
        }
    }

    #[test]
    fn a_later_format_and_another_file_are_told_apart() {
        let later = open(b"godwit-backup 2 sha256 00\n{}\n").unwrap_err();
        assert!(later.message.contains("format 2"), "{later}");
        let other = open(b"#!/bin/sh\necho").unwrap_err();
        assert!(other.message.contains("no backup"), "{other}");
    }
}
