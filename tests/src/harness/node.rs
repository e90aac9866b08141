//! One node of a cluster: its folders, its configuration, its relays.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use godwit_shared::model::{NodeId, VmId};
use tokio::process::Command;

use super::process::Daemon;
use super::{ClusterOptions, Emulator, Endpoints, Seat, programs};
use crate::relay::Relay;

/// vCPUs that every node offers.
const VCPUS: u32 = 256;

/// A node.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: NodeId,
    /// Its daemon.
    pub daemon: Daemon,
    /// Its state folder.
    pub state: PathBuf,
    /// Its run folder: sockets.
    pub run: PathBuf,
    /// Between its peers and it.
    pub relay: Option<Relay>,
    /// Between it and the coordinator.
    pub uplink: Option<Relay>,
    seat: Option<Seat>,
    /// Its own folder of disk images, and where it is to see it.
    mount: Option<(PathBuf, PathBuf)>,
}

impl Node {
    /// Joins the cluster; the daemon is not started.
    pub(super) async fn join(
        root: &Path,
        index: usize,
        token: &str,
        coordinator: &str,
        options: &ClusterOptions,
    ) -> Result<Self> {
        let number = index + 1;
        let name: NodeId = format!("node-{number}").parse()?;
        let seed = u64::try_from(number)?;
        let mut node = Self {
            name,
            daemon: Daemon::new("", PathBuf::new(), Vec::new(), root),
            state: root.join(format!("n{number}")),
            run: root.join(format!("r{number}")),
            relay: options.relayed.then(|| Relay::start(seed)).transpose()?,
            uplink: options.relayed.then(|| Relay::start(!seed)).transpose()?,
            seat: options.seats.get(index).cloned(),
            mount: options
                .own_disks
                .then(|| (root.join(format!("d{number}")), root.join("disks"))),
        };
        if let Some((own, common)) = &node.mount {
            std::fs::create_dir_all(own)?;
            std::fs::create_dir_all(common)?;
        }
        if let Some(uplink) = &node.uplink {
            uplink.aim(coordinator.parse()?);
        }
        node.run_join(token).await?;
        let config = root.join(format!("n{number}.toml"));
        std::fs::write(&config, toml::to_string(&node.config(index, options)?)?)?;
        let (program, mut args) = node.program()?;
        let run = ["run", "--config", &config.display().to_string()];
        args.extend(run.map(str::to_owned));
        node.daemon = Daemon::new(node.name.as_str(), program, args, root);
        node.daemon
            .env
            .push(("GODWIT_LOG".to_owned(), options.log.clone()));
        Ok(node)
    }

    /// The daemon's program and its first arguments, wherever it is to run.
    fn program(&self) -> Result<(PathBuf, Vec<String>)> {
        let node = programs::find("godwit-node")?;
        if let Some((own, common)) = &self.mount {
            // Each step replaces itself by the next, under the same process id.
            let mount = "mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"";
            let words = [
                "--mount",
                "--propagation",
                "private",
                "--",
                "sh",
                "-c",
                mount,
                "sh",
            ];
            let paths = [own, common, &node].map(|path| path.display().to_string());
            let args = words.map(str::to_owned).into_iter().chain(paths);
            return Ok(("unshare".into(), args.collect()));
        }
        let Some(netns) = self.seat.as_ref().and_then(|seat| seat.netns.as_ref()) else {
            return Ok((node, Vec::new()));
        };
        // It replaces itself by the program, under the same process id.
        let enter = format!("--net={}", netns.display());
        Ok(("nsenter".into(), vec![enter, node.display().to_string()]))
    }

    /// Where others reach it, when that is not where it listens.
    fn reached(&self) -> Option<String> {
        let relay = self.relay.as_ref().map(|relay| relay.address().to_string());
        relay.or_else(|| Some(self.seat.as_ref()?.address.to_string()))
    }

    async fn run_join(&self, token: &str) -> Result<()> {
        let (program, args) = self.program()?;
        let mut join = Command::new(program);
        join.args(args).arg("join").arg(token);
        join.arg("--state-dir").arg(&self.state);
        join.args(["--name", self.name.as_str()]);
        if let Some(address) = self.reached() {
            join.args(["--address", &address]);
        }
        let output = join.kill_on_drop(true).output().await?;
        if !output.status.success() {
            bail!(
                "{} did not join: {}",
                self.name,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    fn config(&self, index: usize, options: &ClusterOptions) -> Result<toml::Table> {
        let mut config = toml::Table::new();
        config.insert("name".into(), self.name.as_str().into());
        config.insert("state_dir".into(), self.state.display().to_string().into());
        config.insert("run_dir".into(), self.run.display().to_string().into());
        // On all addresses where there are several: the coordinator may be
        // behind another one than the peers.
        let listen = self.seat.as_ref().map_or_else(
            || "127.0.0.1:0".to_owned(),
            |seat| format!("0.0.0.0:{}", seat.address.port()),
        );
        config.insert("listen".into(), listen.into());
        if let Some(address) = self.reached() {
            config.insert("address".into(), address.into());
        }
        if let Some(uplink) = &self.uplink {
            let through = vec![uplink.address().to_string()];
            config.insert("coordinator".into(), through.into());
        }
        // Guests here are small and mostly idle: memory is what bounds them.
        let mut capacity = toml::Table::new();
        capacity.insert("vcpus".into(), VCPUS.into());
        if let Some(memory) = options.memory.get(index) {
            capacity.insert("memory".into(), i64::try_from(memory.0)?.into());
        }
        config.insert("capacity".into(), capacity.into());
        if let Some(emulator) = emulator(index, options)? {
            let mut emulators = toml::Table::new();
            emulators.insert("x86_64".into(), emulator.display().to_string().into());
            config.insert("emulators".into(), emulators.into());
        }
        if let Some(settings) = options.node_settings.get(index) {
            config.extend(toml::from_str::<toml::Table>(settings)?);
        }
        Ok(config)
    }

    /// Starts the daemon and leads the relay to it.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub async fn start(&mut self) -> Result<()> {
        self.daemon.start().await?;
        let bound = Endpoints::read(&self.state)?.cluster;
        let bound: SocketAddr = bound.parse().context("the node's endpoint")?;
        if let Some(relay) = &self.relay {
            relay.aim(bound);
        }
        // Peers know this address now: keep it over restarts.
        if self.seat.is_none() && !self.daemon.args.iter().any(|arg| arg == "--listen") {
            self.daemon.args.push("--listen".to_owned());
            self.daemon.args.push(bound.to_string());
        }
        Ok(())
    }

    /// Its own folder of disk images.
    ///
    /// # Errors
    /// When the cluster's nodes have none.
    pub fn disks(&self) -> Result<&Path> {
        let mount = self.mount.as_ref();
        let (own, _) = mount.context("the nodes share their disks")?;
        Ok(own)
    }

    /// `kill -9` of the daemon.
    pub fn kill(&mut self) {
        self.daemon.kill();
    }

    /// Kills the daemon, if it runs, and starts it again.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        self.start().await
    }

    /// A VM's folder on the node.
    pub fn domain_dir(&self, vm: VmId) -> PathBuf {
        self.state.join("domains").join(vm.to_string())
    }

    /// Where QEMU writes what the guest says on its serial console.
    pub fn serial_log(&self, vm: VmId) -> PathBuf {
        self.domain_dir(vm).join("serial.log")
    }

    /// Cuts the node off from its peers and, when asked, from the coordinator.
    ///
    /// # Errors
    /// When the cluster has no relays.
    pub fn cut(&self, uplink: bool) -> Result<()> {
        let relay = self.relay.as_ref();
        relay.context("a cut needs a relayed cluster")?.cut();
        if let (true, Some(relay)) = (uplink, &self.uplink) {
            relay.cut();
        }
        Ok(())
    }

    /// Ends every fault of its links.
    pub fn restore(&self) {
        for relay in [&self.relay, &self.uplink].into_iter().flatten() {
            relay.restore();
        }
    }
}

/// Another QEMU than the host's.
fn emulator(index: usize, options: &ClusterOptions) -> Result<Option<PathBuf>> {
    if options.emulator == Emulator::Fake {
        return programs::find("godwit-fake-qemu").map(Some);
    }
    if index < options.old {
        return programs::old_qemu().map(Some);
    }
    Ok(options.qemus.get(index).cloned())
}
