//! What one run has shown, and medians of several.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use godwit_tests::bench::median;
use serde_json::{Value, json};

/// One run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// From the wish to the guest running at the other end: with the start of the
    /// QEMU that receives, and for Godwit with all of its control plane.
    pub(crate) total: Duration,
    /// Of it, QEMU's own migration.
    pub(crate) transfer: Duration,
    /// From the guest's stop to its running on.
    pub(crate) blackout: Duration,
    /// CPU time of every process that had a part in it.
    pub(crate) cpu: Duration,
    /// Bytes of the guest's memory that QEMU sent.
    pub(crate) memory: u64,
    /// Bytes on the link.
    pub(crate) wire: u64,
    /// CPU time that something else took meanwhile: what disturbed the run.
    pub(crate) other: Duration,
    /// Most memory that a daemon had, above what it has when idle, in MiB.
    pub(crate) daemon: f64,
}

impl Sample {
    pub(crate) fn cpu_per_gib(&self) -> f64 {
        self.cpu.as_secs_f64() / (self.memory as f64 / GIB)
    }

    /// Which share of a link's bits was in use while memory was sent.
    pub(crate) fn share(&self, bits_per_second: f64) -> f64 {
        self.wire as f64 * 8.0 / (bits_per_second * self.transfer.as_secs_f64())
    }
}

const GIB: f64 = 1_073_741_824.0;

/// Time since the epoch, comparable to the time of QEMU's events.
pub(crate) fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// The runs of one side.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(pub(crate) Vec<Sample>);

impl Samples {
    pub(crate) fn median(&self, number: impl Fn(&Sample) -> f64) -> f64 {
        median(self.0.iter().map(number).collect())
    }

    pub(crate) fn total(&self) -> f64 {
        self.median(|sample| sample.total.as_secs_f64())
    }

    pub(crate) fn transfer(&self) -> f64 {
        self.median(|sample| sample.transfer.as_secs_f64())
    }

    pub(crate) fn blackout_ms(&self) -> f64 {
        self.median(|sample| sample.blackout.as_secs_f64() * 1000.0)
    }

    pub(crate) fn cpu_per_gib(&self) -> f64 {
        self.median(Sample::cpu_per_gib)
    }

    pub(crate) fn daemon(&self) -> f64 {
        self.median(|sample| sample.daemon)
    }

    /// Medians, and the times of every run.
    pub(crate) fn to_json(&self) -> Value {
        let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
        let totals = self
            .0
            .iter()
            .map(|sample| round(sample.total.as_secs_f64()));
        json!({
            "total_s": round(self.total()),
            "transfer_s": round(self.transfer()),
            "blackout_ms": round(self.blackout_ms()),
            "cpu_s_per_gib": round(self.cpu_per_gib()),
            "memory_mib": round(self.median(|sample| mib(sample.memory))),
            "wire_mib": round(self.median(|sample| mib(sample.wire))),
            "other_cpu_s": round(self.median(|sample| sample.other.as_secs_f64())),
            "daemon_memory_above_idle_mib": round(self.daemon()),
            "totals_s": totals.collect::<Vec<_>>(),
        })
    }
}

/// To a thousandth.
pub(crate) fn round(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp, reason = "exact in binary")]
    use super::*;

    #[test]
    fn shares_and_costs_have_their_units() {
        let sample = Sample {
            total: Duration::from_secs(9),
            transfer: Duration::from_secs(8),
            blackout: Duration::ZERO,
            cpu: Duration::from_secs(4),
            memory: 2 << 30,
            wire: 1_000_000_000,
            other: Duration::ZERO,
            daemon: 0.0,
        };
        assert_eq!(sample.cpu_per_gib(), 2.0);
        assert_eq!(sample.share(1e9), 1.0);
    }
}
