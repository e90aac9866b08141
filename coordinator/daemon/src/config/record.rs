//! `[record]`: where what the cluster does is written down.

use std::path::PathBuf;

use godwit_shared::model::Problem;
use serde::Deserialize;

use super::invalid;
use crate::record::RecordSettings;

const FILE_MIB: u64 = 64;
const KEEP: usize = 8;

/// The table as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRecord {
    dir: Option<PathBuf>,
    file_mib: Option<u64>,
    keep: Option<usize>,
}

impl RawRecord {
    pub(super) fn check(self, found: &mut Vec<Problem>) -> Option<RecordSettings> {
        let file_mib = self.file_mib.unwrap_or(FILE_MIB);
        if !(1..=65_536).contains(&file_mib) {
            let remedy = "give 1 to 65536";
            found.push(invalid("record.file_mib", file_mib, remedy));
        }
        let keep = self.keep.unwrap_or(KEEP);
        if keep == 0 {
            let remedy = "give at least 1, or leave `record.dir` out";
            found.push(invalid("record.keep", keep, remedy));
        }
        let dir = self.dir?;
        if !dir.is_absolute() {
            let remedy = "give the whole path of a directory";
            found.push(invalid("record.dir", dir.display(), remedy));
        }
        Some(RecordSettings {
            dir,
            file_bytes: file_mib.saturating_mul(1 << 20),
            keep,
        })
    }
}
