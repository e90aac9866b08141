//! The command line.

use anyhow::{Context as _, Result, bail};

pub(crate) const HELP: &str = "\
Measures a coordinator with many nodes: simulated ones, with real sessions.

Usage: bench-scale [--json] [--nodes N] [--vms N] [--watchers N] [--rest SECONDS]
                   [--events N] [--restarts N]

  --json           one JSON object on standard output
  --nodes N        simulated nodes [default: 2000]
  --vms N          VMs, created through the API [default: 50000]
  --watchers N     that follow the events [default: 100]
  --rest SECONDS   how long the CPU time at rest is counted [default: 30]
  --events N       whose way to the watchers is timed [default: 1000]
  --restarts N     of which the slowest is told [default: 3]
";

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) json: bool,
    pub(crate) nodes: usize,
    pub(crate) vms: usize,
    pub(crate) watchers: usize,
    pub(crate) rest: u32,
    pub(crate) events: usize,
    pub(crate) restarts: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            json: false,
            nodes: 2_000,
            vms: 50_000,
            watchers: 100,
            rest: 30,
            events: 1_000,
            restarts: 3,
        }
    }
}

impl Options {
    /// `None` when help was asked for.
    pub(crate) fn read(mut args: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let mut options = Self::default();
        while let Some(arg) = args.next() {
            let mut number = || -> Result<usize> {
                let text = args
                    .next()
                    .with_context(|| format!("{arg} takes a number"))?;
                let number: usize = text.parse().with_context(|| format!("{arg} {text}"))?;
                if number == 0 {
                    bail!("{arg} takes at least 1");
                }
                Ok(number)
            };
            match arg.as_str() {
                "--json" => options.json = true,
                "--nodes" => options.nodes = number()?,
                "--vms" => options.vms = number()?,
                "--watchers" => options.watchers = number()?,
                "--rest" => options.rest = u32::try_from(number()?)?,
                "--events" => options.events = number()?,
                "--restarts" => options.restarts = number()?,
                "-h" | "--help" => return Ok(None),
                other => bail!("`{other}` is not known; see --help"),
            }
        }
        if options.events > options.vms {
            bail!("each event needs a VM of its own: --events is at most --vms");
        }
        Ok(Some(options))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(line: &str) -> Result<Option<Options>> {
        Options::read(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn numbers_are_taken_and_nonsense_is_refused() {
        let some = read("--json --nodes 5 --vms 2000").unwrap().unwrap();
        assert_eq!((some.json, some.nodes, some.vms), (true, 5, 2000));
        assert_eq!(read("--help").unwrap(), None);
        for wrong in ["--nodes", "--nodes 0", "--nodes x", "--vms 10", "more"] {
            read(wrong).unwrap_err();
        }
    }
}
