//! Settings for placement: how much is offered, which VMs are kept away, and
//! what the node reaches.

use std::path::{Path, PathBuf};

use godwit_shared::model::Problem;
use godwit_shared::model::capacity::{Overcommit, StorageFacts};
use godwit_shared::model::label::token;
use godwit_shared::model::spec::Taint;
use serde::Deserialize;

use super::invalid;

/// vCPUs for 100 cores, where the settings say nothing.
const DEFAULT_CPU_PERCENT: u32 = 400;
const MAX_CPU_PERCENT: u32 = 10_000;
const MAX_MEMORY_PERCENT: u32 = 1_000;
const MAX_ENTRIES: usize = 64;

/// Settings for placement, checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PlacementConfig {
    /// How much of the host is offered.
    pub overcommit: Overcommit,
    /// Marks that keep VMs away.
    pub taints: Vec<Taint>,
    /// Storage that the node reaches; none means all.
    pub storage: Option<Vec<StorageFacts>>,
    /// Networks that the node reaches; none means those that are found.
    pub networks: Option<Vec<String>>,
    /// Folders of images that the node holds.
    pub images: Vec<PathBuf>,
}

/// As they are written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawOvercommit {
    cpu_percent: Option<u32>,
    memory_percent: Option<u32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStorage {
    path: String,
    #[serde(default)]
    shared: bool,
}

/// What of the file is about placement.
pub(super) struct Raw {
    pub(super) overcommit: RawOvercommit,
    pub(super) taints: Vec<String>,
    pub(super) storage: Option<Vec<RawStorage>>,
    pub(super) networks: Option<Vec<String>>,
    pub(super) images: Vec<PathBuf>,
}

pub(super) fn check(raw: Raw, found: &mut Vec<Problem>) -> PlacementConfig {
    PlacementConfig {
        overcommit: overcommit(&raw.overcommit, found),
        taints: taints(&raw.taints, found),
        storage: raw.storage.map(|list| storage(list, found)),
        networks: raw.networks.map(|list| networks(list, found)),
        images: images(raw.images, found),
    }
}

fn overcommit(raw: &RawOvercommit, found: &mut Vec<Problem>) -> Overcommit {
    let mut percent = |field: &str, given: Option<u32>, default: u32, most: u32| {
        let value = given.unwrap_or(default);
        if value == 0 || value > most {
            let remedy = format!("give 1 to {most}; 100 offers what the host has");
            found.push(invalid(&format!("overcommit.{field}"), value, remedy));
        }
        value
    };
    Overcommit {
        cpu_percent: percent(
            "cpu_percent",
            raw.cpu_percent,
            DEFAULT_CPU_PERCENT,
            MAX_CPU_PERCENT,
        ),
        memory_percent: percent(
            "memory_percent",
            raw.memory_percent,
            Overcommit::default().memory_percent,
            MAX_MEMORY_PERCENT,
        ),
    }
}

fn few(field: &str, count: usize, found: &mut Vec<Problem>) {
    if count > MAX_ENTRIES {
        let remedy = format!("give at most {MAX_ENTRIES}");
        found.push(invalid(field, count, remedy));
    }
}

fn taints(texts: &[String], found: &mut Vec<Problem>) -> Vec<Taint> {
    few("taints", texts.len(), found);
    let mut taints: Vec<Taint> = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match text.parse() {
            Ok(taint) if !taints.contains(&taint) => taints.push(taint),
            Ok(_) => {}
            Err(error) => {
                let remedy = format!("write KEY=VALUE:EFFECT, such as \"gpu=a100\": {error}");
                found.push(invalid(&format!("taints[{index}]"), text, remedy));
            }
        }
    }
    taints
}

fn storage(list: Vec<RawStorage>, found: &mut Vec<Problem>) -> Vec<StorageFacts> {
    few("storage", list.len(), found);
    for (index, storage) in list.iter().enumerate() {
        if !Path::new(&storage.path).is_absolute() {
            let remedy = "give the absolute path of a folder";
            found.push(invalid(
                &format!("storage[{index}].path"),
                &storage.path,
                remedy,
            ));
        }
    }
    list.into_iter()
        .map(|RawStorage { path, shared }| StorageFacts { path, shared })
        .collect()
}

fn networks(list: Vec<String>, found: &mut Vec<Problem>) -> Vec<String> {
    few("networks", list.len(), found);
    for (index, name) in list.iter().enumerate() {
        if !token(name, 63) {
            let remedy = "a network's name is 1 to 63 letters, digits, `-`, `_` and `.`";
            found.push(invalid(&format!("networks[{index}]"), name, remedy));
        }
    }
    list
}

fn images(list: Vec<PathBuf>, found: &mut Vec<Problem>) -> Vec<PathBuf> {
    few("images", list.len(), found);
    for (index, path) in list.iter().enumerate() {
        if !path.is_absolute() {
            let remedy = "give the absolute path of a folder";
            found.push(invalid(&format!("images[{index}]"), path.display(), remedy));
        }
    }
    list
}
