//! What a process has used, by proc(5).

use std::time::Duration;

use anyhow::{Context as _, Result};

/// Resident memory in MiB: now, and the most that it ever was.
pub(crate) fn resident(pid: u32) -> Result<(f64, f64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mib = |key: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kib = line
            .and_then(|text| text.trim().strip_suffix("kB"))
            .and_then(|text| text.trim().parse::<f64>().ok());
        Ok(kib.with_context(|| key.to_owned())? / 1024.0)
    };
    Ok((mib("VmRSS:")?, mib("VmHWM:")?))
}

/// CPU time used so far: that of the program and of the kernel for it.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the name in parentheses; `utime` is the 14th.
    let (_, fields) = stat.rsplit_once(')').context("a name")?;
    let mut ticks = fields.split_whitespace().skip(11);
    let mut next = || -> Result<u64> { Ok(ticks.next().context("a field")?.parse()?) };
    let all = next()? + next()?;
    Ok(Duration::from_secs_f64(
        all as f64 / rustix::param::clock_ticks_per_second() as f64,
    ))
}
