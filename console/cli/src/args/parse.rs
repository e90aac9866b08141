//! Single arguments: from text to checked types.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use godwit_shared::model::{
    BytesPerSec, DiskCopy, Millis, Postcopy, Problem, TimeoutAction, VmId, VmName, codes,
};
use serde_json::{Map, Value, json};

/// `--postcopy`.
pub(crate) fn postcopy() -> impl TypedValueParser<Value = Postcopy> {
    PossibleValuesParser::new(["never", "fallback", "always"]).map(|word| match word.as_str() {
        "fallback" => Postcopy::Fallback,
        "always" => Postcopy::Always,
        _ => Postcopy::Never,
    })
}

/// `--disks`.
pub(crate) fn disk_copy() -> impl TypedValueParser<Value = DiskCopy> {
    PossibleValuesParser::new(["full", "top", "synchronous"]).map(|word| match word.as_str() {
        "top" => DiskCopy::Top,
        "synchronous" => DiskCopy::Synchronous,
        _ => DiskCopy::Full,
    })
}

/// As [`bandwidth`], and 0 for no limit.
pub(crate) fn bandwidth_or_none(text: &str) -> Result<BytesPerSec, String> {
    if text == "0" {
        return Ok(BytesPerSec::ZERO);
    }
    bandwidth(text)
}

/// `--timeout-action`.
pub(crate) fn timeout_action() -> impl TypedValueParser<Value = TimeoutAction> {
    let words = ["cancel", "suspend", "postcopy", "force"];
    PossibleValuesParser::new(words).map(|word| match word.as_str() {
        "suspend" => TimeoutAction::Suspend,
        "postcopy" => TimeoutAction::Postcopy,
        "force" => TimeoutAction::Force,
        _ => TimeoutAction::Cancel,
    })
}

/// A VM by its name or its id. Both are safe in a URL's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VmRef(String);

impl VmRef {
    /// As it was given.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VmRef {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        if let Ok(id) = text.parse::<VmId>() {
            return Ok(Self(id.to_string()));
        }
        let name: VmName = text.parse()?;
        Ok(Self(name.into()))
    }
}

impl fmt::Display for VmRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// `k=v`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label {
    /// The label's name.
    pub(crate) key: String,
    /// Its value.
    pub(crate) value: String,
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self {
                key: key.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err("a label is given as KEY=VALUE".to_owned()),
        }
    }
}

/// One condition of `--selector`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LabelSelector {
    /// The label has this value.
    Is(String, String),
    /// The label is absent or has another value.
    IsNot(String, String),
    /// The label is there.
    Present(String),
}

impl LabelSelector {
    /// Whether these labels meet the condition.
    pub(crate) fn admits(&self, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::Is(key, value) => labels.get(key) == Some(value),
            Self::IsNot(key, value) => labels.get(key) != Some(value),
            Self::Present(key) => labels.contains_key(key),
        }
    }
}

impl FromStr for LabelSelector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let selector = if let Some((key, value)) = text.split_once("!=") {
            let (key, value) = pair(key, value);
            Self::IsNot(key, value)
        } else if let Some((key, value)) = text.split_once('=') {
            let (key, value) = pair(key, value.strip_prefix('=').unwrap_or(value));
            Self::Is(key, value)
        } else {
            Self::Present(text.to_owned())
        };
        match &selector {
            Self::Is(key, _) | Self::IsNot(key, _) | Self::Present(key) if key.is_empty() => {
                Err("a selector is KEY=VALUE, KEY!=VALUE or KEY".to_owned())
            }
            _ => Ok(selector),
        }
    }
}

/// `PATH[,option]...` as a disk of a spec. Values are left to the spec's check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskFlag(pub(crate) Value);

impl FromStr for DiskFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let mut disk = Map::new();
        disk.insert("path".to_owned(), json!(parts.next().unwrap_or_default()));
        for part in parts {
            match part.split_once('=') {
                Some((key @ ("format" | "interface"), value)) => {
                    disk.insert(key.to_owned(), json!(value));
                }
                None if part == "shared" => drop(disk.insert(part.to_owned(), json!(true))),
                None if part == "read-only" => {
                    drop(disk.insert("read_only".to_owned(), json!(true)));
                }
                _ => {
                    return Err(format!(
                        "`{part}` is not one of format=, interface=, read-only, shared"
                    ));
                }
            }
        }
        Ok(Self(disk.into()))
    }
}

/// `NETWORK[,option]...` as a network card of a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NicFlag(pub(crate) Value);

impl FromStr for NicFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let mut nic = Map::new();
        nic.insert(
            "network".to_owned(),
            json!(parts.next().unwrap_or_default()),
        );
        for part in parts {
            match part.split_once('=') {
                Some((key @ ("model" | "mac"), value)) => {
                    nic.insert(key.to_owned(), json!(value));
                }
                _ => return Err(format!("`{part}` is not one of model=, mac=")),
            }
        }
        Ok(Self(nic.into()))
    }
}

/// Digits (with a fraction where `fraction`), then a unit.
fn number_and_unit(text: &str) -> Option<(f64, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number = number.parse::<f64>().ok()?;
    (number.is_finite() && number < 1e15).then_some((number, unit.trim()))
}

/// `90s`, `5m`, `500ms`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let seconds = number_and_unit(text).and_then(|(number, unit)| {
        let factor = match unit {
            "" | "s" => 1.0,
            "ms" => 0.001,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        Duration::try_from_secs_f64(number * factor).ok()
    });
    seconds.ok_or_else(|| "give a time such as 500ms, 90s, 5m, 2h or 1d".to_owned())
}

/// `300` or `300ms` or `1.5s`; a bare number is milliseconds.
pub(crate) fn millis(text: &str) -> Result<Millis, String> {
    if let Ok(bare) = text.parse::<u64>() {
        return Ok(Millis(bare));
    }
    duration(text).map(Millis::from)
}

/// `100MiB/s`, `1Gbit/s`, `200M`. A bare number could be anything and is refused.
pub(crate) fn bandwidth(text: &str) -> Result<BytesPerSec, String> {
    const KIB: f64 = 1024.0;
    let rate = number_and_unit(text).and_then(|(number, unit)| {
        let factor = match unit.strip_suffix("/s").unwrap_or(unit) {
            "B" => 1.0,
            "K" | "KiB" => KIB,
            "M" | "MiB" => KIB * KIB,
            "G" | "GiB" => KIB * KIB * KIB,
            "kB" => 1e3,
            "MB" => 1e6,
            "GB" => 1e9,
            "kbit" | "Kbit" => 1e3 / 8.0,
            "Mbit" => 1e6 / 8.0,
            "Gbit" => 1e9 / 8.0,
            _ => return None,
        };
        let rate = (number * factor).round();
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 1 and 2^63, checked here"
        )]
        (1.0..9e18)
            .contains(&rate)
            .then_some(BytesPerSec(rate as u64))
    });
    rate.ok_or_else(|| {
        format!(
            "give a rate above 0 with its unit, such as 100MiB/s or 1Gbit/s ({})",
            codes::SIZE_INVALID
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_and_rates_are_read_with_their_units() {
        assert_eq!(duration("90").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("1.5m").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(millis("300").unwrap(), Millis(300));
        assert_eq!(millis("1.5s").unwrap(), Millis(1500));
        assert_eq!(bandwidth("1Gbit/s").unwrap(), BytesPerSec(125_000_000));
        assert_eq!(bandwidth("2MiB/s").unwrap(), BytesPerSec(2 << 20));
        for bad in [
            "",
            "x",
            "-1s",
            "1y",
            ".",
            "1e999s",
            "9999999999999999999999d",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        for bad in ["", "100", "0M", "-1M", "1X", "nanM"] {
            assert!(bandwidth(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn selectors_admit_what_they_say() {
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        for (text, admits) in [
            ("app=web", true),
            ("app==web", true),
            ("app=db", false),
            ("app!=db", true),
            ("tier!=x", true),
            ("app", true),
            ("tier", false),
        ] {
            let selector: LabelSelector = text.parse().unwrap();
            assert_eq!(selector.admits(&labels), admits, "{text}");
        }
        assert!("=x".parse::<LabelSelector>().is_err());
    }

    #[test]
    fn a_vm_is_named_or_numbered() {
        assert_eq!("web-1".parse::<VmRef>().unwrap().as_str(), "web-1");
        assert!("../nodes".parse::<VmRef>().is_err());
        assert!("A".parse::<VmRef>().is_err());
        let id = "0197A6F4-0000-7000-8000-000000000001";
        assert_eq!(id.parse::<VmRef>().unwrap().as_str(), id.to_lowercase());
    }

    #[test]
    fn disks_and_cards_become_parts_of_a_spec() {
        let disk: DiskFlag = "/a.raw,format=raw,shared,read-only".parse().unwrap();
        assert_eq!(
            disk.0,
            json!({"path": "/a.raw", "format": "raw", "shared": true, "read_only": true})
        );
        assert!("/a,fromat=raw".parse::<DiskFlag>().is_err());
        let nic: NicFlag = "user,model=e1000e".parse().unwrap();
        assert_eq!(nic.0, json!({"network": "user", "model": "e1000e"}));
        assert!("user,vlan=3".parse::<NicFlag>().is_err());
    }
}
