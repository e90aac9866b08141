//! Taints as text: `key`, `key=value`, either with `:effect` behind it.
//!
//! The same form stands in a node's settings and on the command line. Without
//! an effect a taint keeps VMs away (`no_schedule`).

use std::str::FromStr;

use super::placement::{Taint, TaintEffect};
use crate::model::label::{MAX_LABEL_VALUE, label_key, label_value};

/// A text that is not a taint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaintError {
    /// Its key is missing or has other characters.
    #[error("a taint's key is 1 to 128 letters, digits, `-`, `_`, `.` and `/`")]
    Key,
    /// Its value is too long or not printable.
    #[error("a taint's value is at most {MAX_LABEL_VALUE} printable bytes without `:`")]
    Value,
    /// There is no such effect.
    #[error("a taint's effect is `no_schedule` or `prefer_no_schedule`")]
    Effect,
}

impl FromStr for Taint {
    type Err = TaintError;

    fn from_str(text: &str) -> Result<Self, TaintError> {
        let (mark, effect) = text.split_once(':').unwrap_or((text, "no_schedule"));
        let (key, value) = match mark.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (mark, None),
        };
        let taint = Self {
            key: key.to_owned(),
            value: value.map(str::to_owned),
            effect: effect.parse()?,
        };
        taint.check().map(|()| taint)
    }
}

impl Taint {
    /// Whether key and value can be a taint's.
    pub fn check(&self) -> Result<(), TaintError> {
        if !label_key(&self.key) {
            return Err(TaintError::Key);
        }
        // Behind a `:` comes the effect.
        let wrong = |value: &String| !label_value(value) || value.contains(':');
        match &self.value {
            Some(value) if wrong(value) => Err(TaintError::Value),
            _ => Ok(()),
        }
    }

    /// The taint with its effect: what [`FromStr`] reads.
    pub fn text(&self) -> String {
        format!("{self}:{}", self.effect)
    }
}

impl FromStr for TaintEffect {
    type Err = TaintError;

    fn from_str(text: &str) -> Result<Self, TaintError> {
        match text {
            "no_schedule" => Ok(Self::NoSchedule),
            "prefer_no_schedule" => Ok(Self::PreferNoSchedule),
            _ => Err(TaintError::Effect),
        }
    }
}

impl std::fmt::Display for TaintEffect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::NoSchedule => "no_schedule",
            Self::PreferNoSchedule => "prefer_no_schedule",
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_taint_is_read_and_told_in_one_form() {
        for (text, told) in [
            ("gpu", "gpu:no_schedule"),
            ("gpu=a100", "gpu=a100:no_schedule"),
            ("a.org/x=:prefer_no_schedule", "a.org/x=:prefer_no_schedule"),
        ] {
            let taint: Taint = text.parse().unwrap();
            assert_eq!(taint.text(), told);
            assert_eq!(told.parse(), Ok(taint));
        }
    }

    #[test]
    fn what_is_no_taint_is_refused() {
        for (text, error) in [
            ("", TaintError::Key),
            ("=v", TaintError::Key),
            ("a b=v", TaintError::Key),
            ("a=\n", TaintError::Value),
            ("a:NoSchedule", TaintError::Effect),
            ("a=b:c:d", TaintError::Effect),
        ] {
            assert_eq!(text.parse::<Taint>(), Err(error), "{text:?}");
        }
    }
}
