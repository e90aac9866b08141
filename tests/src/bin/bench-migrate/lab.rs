//! Two network namespaces and the link between them.
//!
//! One namespace is the benchmark's own, left behind for the host's at its
//! start; the other has no process of its own and is held by a descriptor. So
//! both are gone, with links and queues, the moment the benchmark is, however it
//! ends. Two pairs of veth lead across: `mig0` carries what is measured, `ctl0`
//! the nodes' talk with their coordinator.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};

/// The measured link's ends: this namespace's, then the other's.
pub(crate) const LINK: [&str; 2] = ["mig0", "mig1"];
/// Their addresses.
pub(crate) const ADDRESSES: [IpAddr; 2] = [address(0, 1), address(0, 2)];
/// The coordinator's, on the other link.
pub(crate) const COORDINATOR: IpAddr = address(1, 1);

/// Which end of the link: 0 is this namespace.
pub(crate) type End = usize;

const fn address(link: u8, end: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 77, link, end))
}

/// The two namespaces.
#[derive(Debug)]
pub(crate) struct Lab {
    other: File,
}

impl Lab {
    /// Makes the other namespace and the links.
    pub(crate) fn build() -> Result<Self> {
        let made = std::thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        });
        let Ok(other) = made.join() else {
            bail!("the second network namespace could not be made");
        };
        let lab = Self { other: other? };
        let pairs = [(LINK[0], LINK[1], 0), ("ctl0", "ctl1", 1)];
        for (here, there, number) in pairs {
            let netns = lab.netns().display().to_string();
            run(lab
                .at(0, "ip")
                .args(["link", "add", here])
                .args(["type", "veth", "peer", "name", there, "netns", &netns]))?;
            for (end, link, host) in [(0, here, 1), (1, there, 2)] {
                let address = format!("10.77.{number}.{host}/24");
                run(lab
                    .at(end, "ip")
                    .args(["address", "add", &address, "dev", link]))?;
                run(lab.at(end, "ip").args(["link", "set", link, "up"]))?;
            }
        }
        for end in [0, 1] {
            run(lab.at(end, "ip").args(["link", "set", "lo", "up"]))?;
        }
        Ok(lab)
    }

    /// A path of the other namespace, good for as long as this process lives.
    pub(crate) fn netns(&self) -> PathBuf {
        let (pid, fd) = (std::process::id(), self.other.as_raw_fd());
        PathBuf::from(format!("/proc/{pid}/fd/{fd}"))
    }

    /// A command at one end of the link.
    pub(crate) fn at(&self, end: End, program: &str) -> Command {
        if end == 0 {
            return Command::new(program);
        }
        // It replaces itself by the program, under the same process id.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns().display()));
        command.arg(program);
        command
    }

    /// Sets how large a packet the link takes.
    pub(crate) fn set_mtu(&self, mtu: u16) -> Result<()> {
        for (end, link) in LINK.iter().enumerate() {
            run(self
                .at(end, "ip")
                .args(["link", "set", link, "mtu", &mtu.to_string()]))?;
        }
        Ok(())
    }

    /// Limits the link, each way, to a rate as `tc` writes it.
    pub(crate) fn set_rate(&self, rate: Option<&str>) -> Result<()> {
        for (end, link) in LINK.iter().enumerate() {
            // There may be none.
            let _ = self
                .at(end, "tc")
                .args(["qdisc", "del", "dev", link, "root"])
                .output();
            if let Some(rate) = rate {
                let queue = ["rate", rate, "burst", "256kb", "latency", "10ms"];
                run(self
                    .at(end, "tc")
                    .args(["qdisc", "add", "dev", link, "root", "tbf"])
                    .args(queue))?;
            }
        }
        Ok(())
    }

    /// Bytes that have gone over the link so far, both ways, packet headers
    /// included. Where the link has a rate its queue counts every packet; where
    /// it has none, a batch that segmentation offload keeps whole counts its
    /// headers once.
    pub(crate) fn wire_bytes(&self) -> Result<u64> {
        let mut sum = 0;
        for (end, link) in LINK.iter().enumerate() {
            let shown = run(self
                .at(end, "tc")
                .args(["-s", "qdisc", "show", "dev", link]))?;
            sum += match queue_bytes(&shown) {
                Some(bytes) => bytes,
                None => {
                    let shown = run(self.at(end, "cat").arg("/proc/net/dev"))?;
                    interface_bytes(&shown, link).context("the link's counters")?
                }
            };
        }
        Ok(sum)
    }
}

/// `Sent N bytes` of a tbf queue (tc-tbf(8)).
fn queue_bytes(shown: &str) -> Option<u64> {
    let (_, rest) = shown.split_once("qdisc tbf")?;
    let (_, rest) = rest.split_once("Sent ")?;
    rest.split(' ').next()?.parse().ok()
}

/// The bytes sent, the ninth number of a line of /proc/net/dev.
fn interface_bytes(shown: &str, link: &str) -> Option<u64> {
    let row = shown
        .lines()
        .find(|line| line.trim_start().starts_with(link))?;
    let (_, numbers) = row.split_once(':')?;
    numbers.split_whitespace().nth(8)?.parse().ok()
}

/// Runs a short command; its output.
fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("{}", command.get_program().display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}", said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_as_tc_and_the_kernel_write_them() {
        let tbf = "qdisc tbf 8001: root refcnt 9 rate 1Gbit burst 256Kb lat 10ms \n \
                   Sent 123456 bytes 12 pkt (dropped 0, overlimits 0 requeues 0) \n";
        assert_eq!(queue_bytes(tbf), Some(123_456));
        assert_eq!(
            queue_bytes("qdisc noqueue 0: root refcnt 2 \n Sent 0 bytes"),
            None
        );
        let dev = "Inter-|   Receive\n face |bytes\n  mig0: 1 2 3 4 5 6 7 8 900 10 0 0 0 0 0 0\n";
        assert_eq!(interface_bytes(dev, "mig0"), Some(900));
        assert_eq!(interface_bytes(dev, "mig1"), None);
    }
}
