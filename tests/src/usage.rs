//! What processes use: CPU time and memory, from /proc (proc(5)).

use std::time::Duration;

use anyhow::{Context, Result};

/// CPU time of a process, user and system, and of its children that have ended
/// and were waited for.
///
/// # Errors
/// When /proc does not tell.
pub fn cpu(pid: u32) -> Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    ticks_of(&text, 11, 4)
        .map(time)
        .with_context(|| format!("CPU time of process {pid}"))
}

/// CPU time of the whole machine, by whatever used it, a hypervisor that took it
/// away included.
///
/// # Errors
/// When /proc does not tell.
pub fn machine() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/stat")?;
    busy_ticks(&text)
        .map(time)
        .context("CPU time of the machine")
}

/// user, nice, system, irq, softirq and steal of the first line; idle and iowait,
/// the fourth and fifth, left out.
fn busy_ticks(stat: &str) -> Option<u64> {
    let fields = stat.lines().next()?.split_whitespace().skip(1);
    let numbers: Vec<u64> = fields.map_while(|text| text.parse().ok()).collect();
    Some(numbers.get(..3)?.iter().sum::<u64>() + numbers.get(5..8)?.iter().sum::<u64>())
}

/// CPU time of the children of this process that have ended and were waited for.
///
/// # Errors
/// When /proc does not tell.
pub fn reaped() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    ticks_of(&text, 13, 2)
        .map(time)
        .context("CPU time of children")
}

fn time(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

/// utime, stime, cutime and cstime are fields 14 to 17, so 11 to 14 after the
/// name (field 2), which may contain anything and ends with the last parenthesis.
fn ticks_of(stat: &str, first: usize, count: usize) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields = rest.split_whitespace().skip(first).take(count);
    let numbers: Vec<u64> = fields.map_while(|text| text.parse().ok()).collect();
    (numbers.len() == count).then(|| numbers.iter().sum())
}

/// Resident memory, in MiB: now, and the most since [`forget_peak`].
#[derive(Debug, Clone, Copy)]
pub struct Resident {
    /// Now.
    pub now: f64,
    /// The most.
    pub peak: f64,
}

/// `VmRSS` and `VmHWM`.
///
/// # Errors
/// When /proc does not tell.
pub fn resident(pid: u32) -> Result<Resident> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mib = |key: &str| {
        let text = status.lines().find_map(|line| line.strip_prefix(key))?;
        let kib: f64 = text.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib / 1024.0)
    };
    Ok(Resident {
        now: mib("VmRSS:").context("VmRSS")?,
        peak: mib("VmHWM:").context("VmHWM")?,
    })
}

/// Sets the peak back to what is resident now.
///
/// # Errors
/// When the kernel refuses.
pub fn forget_peak(pid: u32) -> Result<()> {
    Ok(std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_times_of_a_process_are_added() {
        let stat = "12 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 100 20 3 4 20 0 1 0 55";
        assert_eq!(ticks_of(stat, 11, 4), Some(127));
        assert_eq!(ticks_of(stat, 13, 2), Some(7));
        assert_eq!(ticks_of("12 (x) S 1", 11, 4), None);
    }

    #[test]
    fn a_machine_is_busy_when_it_neither_idles_nor_waits() {
        let stat = "cpu  1 2 4 1000 2000 8 16 32 64 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(busy_ticks(stat), Some(63));
        assert_eq!(busy_ticks("cpu 1 2"), None);
    }
}
