//! A cluster of real daemons in a private folder.
//!
//! Nothing of it is shared with another cluster: state, run folders and ports
//! are its own, so tests may run side by side. Daemons take whatever port is
//! free at their first start and keep it over restarts, as a configured daemon
//! does. When the cluster is dropped, also by a panic, its daemons are killed
//! and then every QEMU that has the folder in its arguments; what is left after
//! that fails the test.

pub mod node;
pub mod process;
pub mod programs;
pub mod sweep;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use godwit_shared::api::{AdminCredential, NodeHealth};
use godwit_shared::model::{MiB, NodeId, VmId};
use rustix::process::Signal;
use serde::Deserialize;
use tempfile::TempDir;

use crate::api::Api;
use crate::events::EventLog;
use crate::points::Points;
use crate::wait;
use node::Node;
use process::Daemon;

/// Most that a node may take to be seen up by the coordinator.
const UP: Duration = Duration::from_secs(20);

/// Which QEMU the nodes run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Emulator {
    /// The host's.
    #[default]
    Real,
    /// `godwit-fake-qemu`: speaks QMP, runs nothing.
    Fake,
}

/// What a cluster shall be like.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// How many nodes: `node-1`, `node-2` and so on.
    pub nodes: usize,
    /// What they run.
    pub emulator: Emulator,
    /// Put a relay in front of every node, and one between it and the coordinator.
    pub relayed: bool,
    /// How many of the nodes, from `node-1` on, run the older QEMU of
    /// `scripts/old-qemu`.
    pub old: usize,
    /// Programs that the nodes run as QEMU, `node-1` first, instead of those.
    pub qemus: Vec<PathBuf>,
    /// Memory that the nodes offer, `node-1` first; the host decides for the rest.
    pub memory: Vec<MiB>,
    /// Settings of the nodes beside those of the harness, as TOML, `node-1` first.
    pub node_settings: Vec<String>,
    /// Where the nodes are, `node-1` first; the rest are on the loopback.
    pub seats: Vec<Seat>,
    /// Where the coordinator listens for nodes; port 0 takes a free one.
    pub coordinator: SocketAddr,
    /// Every node has a folder of its own at [`Cluster::disks`]. Needs root.
    pub own_disks: bool,
    /// Settings of the coordinator beside its flags, as TOML.
    pub settings: String,
    /// What the daemons log.
    pub log: String,
}

/// A node's place in a network that the caller has made.
#[derive(Debug, Clone)]
pub struct Seat {
    /// The network namespace that it runs in; none is the caller's own.
    pub netns: Option<PathBuf>,
    /// Where it listens and is reached, with its port.
    pub address: SocketAddr,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            nodes: 2,
            emulator: Emulator::Real,
            relayed: false,
            old: 0,
            qemus: Vec::new(),
            memory: Vec::new(),
            node_settings: Vec::new(),
            seats: Vec::new(),
            own_disks: false,
            coordinator: (Ipv4Addr::LOCALHOST, 0).into(),
            settings: String::new(),
            log: std::env::var("GODWIT_TEST_LOG")
                .unwrap_or_else(|_| "debug,quinn=info,rustls=info,actix_server=info".to_owned()),
        }
    }
}

impl ClusterOptions {
    /// So many nodes.
    pub fn nodes(nodes: usize) -> Self {
        Self {
            nodes,
            ..Self::default()
        }
    }

    /// With relays.
    #[must_use]
    pub fn relayed(self) -> Self {
        Self {
            relayed: true,
            ..self
        }
    }

    /// With the simulated emulator.
    #[must_use]
    pub fn fake(self) -> Self {
        Self {
            emulator: Emulator::Fake,
            ..self
        }
    }

    /// Every node has a folder of its own at [`Cluster::disks`].
    #[must_use]
    pub fn own_disks(self) -> Self {
        Self {
            own_disks: true,
            ..self
        }
    }

    /// The first of the nodes run an older QEMU.
    #[must_use]
    pub fn old(self, old: usize) -> Self {
        Self { old, ..self }
    }

    /// The nodes offer this much memory, `node-1` first.
    #[must_use]
    pub fn memory(self, memory: &[MiB]) -> Self {
        Self {
            memory: memory.to_vec(),
            ..self
        }
    }
}

/// A daemon's `endpoints.json`.
#[derive(Debug, Deserialize)]
pub(crate) struct Endpoints {
    pub(crate) api: Option<String>,
    pub(crate) cluster: String,
}

impl Endpoints {
    pub(crate) fn read(state: &Path) -> Result<Self> {
        let path = state.join("endpoints.json");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(serde_json::from_str(&text)?)
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    /// The coordinator's daemon.
    pub coordinator: Daemon,
    /// The nodes, `node-1` first.
    pub nodes: Vec<Node>,
    /// A client with the operator's credential.
    pub api: Api,
    /// Every event since the cluster began.
    pub events: EventLog,
    /// Where its nodes can be made to wait.
    pub points: Points,
    options: ClusterOptions,
    root: TempDir,
}

impl Cluster {
    /// Starts a coordinator and its nodes, and waits until all are up.
    ///
    /// # Errors
    /// When a program is not built, or a daemon does not start.
    pub async fn start(options: ClusterOptions) -> Result<Self> {
        let root = tempfile::Builder::new()
            .prefix("gw-")
            .rand_bytes(4)
            .tempdir()?;
        let coordinator = start_coordinator(root.path(), &options).await?;
        let api = Api::new(&credential(root.path())?)?;
        let events = EventLog::start(api.clone());
        let mut cluster = Self {
            coordinator,
            nodes: Vec::new(),
            api,
            events,
            points: Points::new(root.path().join("points"))?,
            options,
            root,
        };
        for _ in 0..cluster.options.nodes {
            let added = cluster.add_node().await;
            added.with_context(|| cluster.logs())?;
        }
        Ok(cluster)
    }

    /// Joins one more node, starts it and waits until it is up. Returns its index.
    ///
    /// # Errors
    /// When it does not join, start, or come up.
    pub async fn add_node(&mut self) -> Result<usize> {
        let index = self.nodes.len();
        let token = self.api.token().await?;
        let coordinator = Endpoints::read(&self.coordinator_dir())?.cluster;
        let mut node =
            Node::join(self.root.path(), index, &token, &coordinator, &self.options).await?;
        node.daemon.env.push(self.points.variable());
        self.nodes.push(node);
        self.nodes[index].start().await?;
        self.wait_health(index, NodeHealth::Up).await?;
        Ok(index)
    }

    /// Waits until the coordinator says so of a node.
    ///
    /// # Errors
    /// When it does not.
    pub async fn wait_health(&self, index: usize, health: NodeHealth) -> Result<()> {
        let name = &self.nodes[index].name;
        wait::until(&format!("{name} {}", health.as_str()), UP, || async {
            let view = self.api.node(name).await?;
            Ok((view.health == health).then_some(()))
        })
        .await
    }

    /// The name of a node by its index.
    pub fn name(&self, index: usize) -> NodeId {
        self.nodes[index].name.clone()
    }

    /// The index of a node by its name.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn index(&self, name: &NodeId) -> Result<usize> {
        let index = self.nodes.iter().position(|node| &node.name == name);
        index.with_context(|| format!("no node {name}"))
    }

    /// Where VMs look for their disks: with [`ClusterOptions::own_disks`] another
    /// folder on every node ([`Node::disks`]).
    pub fn disks(&self) -> PathBuf {
        self.root().join("disks")
    }

    /// The private folder.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The coordinator's state folder.
    pub fn coordinator_dir(&self) -> PathBuf {
        self.root.path().join("c")
    }

    /// Kills the coordinator and starts it again on the same ports.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub async fn restart_coordinator(&mut self) -> Result<()> {
        self.coordinator.restart().await?;
        // A relay whose far end was gone is closed until it is led there again.
        let coordinator = Endpoints::read(&self.coordinator_dir())?.cluster.parse()?;
        for uplink in self.nodes.iter().filter_map(|node| node.uplink.as_ref()) {
            uplink.aim(coordinator);
        }
        Ok(())
    }

    /// Runs the command line with the operator's credential.
    ///
    /// # Errors
    /// When the program is not built.
    pub async fn godwit(&self, args: &[&str]) -> Result<Output> {
        self.godwit_typed(args, "").await
    }

    /// [`Cluster::godwit`] with something on its standard input.
    ///
    /// # Errors
    /// When the program is not built.
    pub async fn godwit_typed(&self, args: &[&str], input: &str) -> Result<Output> {
        use tokio::io::AsyncWriteExt as _;
        let mut child = tokio::process::Command::new(programs::find("godwit")?)
            .args(args)
            .env("GODWIT_CREDENTIAL", self.credential_path())
            .env("NO_COLOR", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // It may end without having read.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output());
        output
            .await
            .with_context(|| format!("godwit {args:?} did not end"))?
            .map_err(Into::into)
    }

    /// The operator's credential file.
    pub fn credential_path(&self) -> PathBuf {
        self.coordinator_dir().join("admin.toml")
    }

    /// QEMUs of the cluster that belong to this VM, wherever.
    pub fn qemus_of(&self, vm: VmId) -> Vec<sweep::Marked> {
        let id = vm.to_string();
        let mut found = sweep::qemus(self.root());
        found.retain(|process| process.mentions(&id));
        found
    }

    /// Checks that the VM has one QEMU, on that node, and none elsewhere.
    ///
    /// # Errors
    /// With the processes that there are.
    pub fn runs_once_on(&self, vm: VmId, index: usize) -> Result<u32> {
        let found = self.qemus_of(vm);
        let run = format!("{}/", self.nodes[index].run.display());
        match found.as_slice() {
            [only] if only.mentions(&run) => Ok(only.pid),
            _ => bail!("vm {vm} has not one QEMU on node-{}: {found:#?}", index + 1),
        }
    }

    /// Sends a signal to a QEMU of the cluster.
    ///
    /// # Errors
    /// When the process is not one of its.
    pub fn signal_qemu(&self, pid: u32, signal: Signal) -> Result<()> {
        if sweep::kill(self.root(), pid, signal) {
            Ok(())
        } else {
            bail!("process {pid} is no QEMU of this cluster")
        }
    }

    /// Waits until nothing of the VM is left on a node: no process, no socket,
    /// no file.
    ///
    /// # Errors
    /// With what is still there.
    pub async fn nothing_left(&self, vm: VmId, index: usize, limit: Duration) -> Result<()> {
        let what = format!("the end of {vm} on node-{}", index + 1);
        wait::until(&what, limit, || async {
            let left = self.remains(vm, index);
            if left.is_empty() {
                return Ok(Some(()));
            }
            bail!("still there: {left:#?}")
        })
        .await
    }

    /// What a node still has of a VM, and of migrations in general.
    pub fn remains(&self, vm: VmId, index: usize) -> Vec<String> {
        let node = &self.nodes[index];
        let id = vm.to_string();
        let run = format!("{}/", node.run.display());
        let processes = self.qemus_of(vm).into_iter();
        let processes = processes
            .filter(|process| process.mentions(&run))
            .map(|process| format!("process {}", process.pid));
        let of_vm = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            path.to_string_lossy().contains(&id) || name.starts_with("mig-")
        };
        let domains = node.state.join("domains");
        let files = [&node.run, &domains]
            .into_iter()
            .flat_map(|dir| sweep::files(dir))
            .filter(of_vm)
            .map(|path| path.display().to_string());
        processes.chain(files).collect()
    }

    /// Stops every daemon with `SIGTERM`.
    ///
    /// # Errors
    /// When one does not end cleanly.
    pub async fn terminate(&mut self) -> Result<()> {
        let nodes = self.nodes.iter_mut().map(|node| &mut node.daemon);
        for daemon in nodes.chain([&mut self.coordinator]) {
            if daemon.is_running() {
                let status = daemon.terminate().await?;
                if !status.success() {
                    bail!("{} ended with {status} after SIGTERM", daemon.name);
                }
            }
        }
        Ok(())
    }

    /// The events so far and the end of every daemon's log.
    pub fn logs(&self) -> String {
        let nodes = self.nodes.iter().map(|node| &node.daemon);
        let logs = [&self.coordinator].into_iter().chain(nodes);
        let logs = logs.map(|daemon| {
            let (name, tail) = (&daemon.name, daemon.log_tail());
            format!("--- the end of {name}'s log:\n{tail}")
        });
        let logs: Vec<String> = logs.collect();
        format!("events:\n{}\n{}", self.events.dump(), logs.join("\n"))
    }

    #[expect(clippy::print_stderr, reason = "the output of a failed test")]
    fn show_logs(&self) {
        eprintln!("{}", self.logs());
    }

    /// Keeps the private folder of a failed test when `GODWIT_TEST_KEEP` is set.
    #[expect(clippy::print_stderr, reason = "the output of a failed test")]
    fn keep(&mut self) {
        if std::env::var_os("GODWIT_TEST_KEEP").is_some() {
            self.root.disable_cleanup(true);
            eprintln!("kept: {}", self.root.path().display());
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            self.show_logs();
            self.keep();
        }
        self.coordinator.kill();
        for node in &mut self.nodes {
            node.daemon.kill();
        }
        let left = sweep::end_all(self.root.path());
        assert!(
            left.is_empty() || failed,
            "these could not be ended: {left:#?}"
        );
    }
}

fn credential(root: &Path) -> Result<AdminCredential> {
    let text = std::fs::read_to_string(root.join("c/admin.toml"))?;
    Ok(toml::from_str(&text)?)
}

async fn start_coordinator(root: &Path, options: &ClusterOptions) -> Result<Daemon> {
    let state = root.join("c");
    let config = root.join("c.toml");
    std::fs::write(&config, &options.settings)?;
    let args = |api: &str, cluster: &str| -> Vec<String> {
        let config = config.display().to_string();
        let state = state.display().to_string();
        let flags = [
            "run",
            "--config",
            &config,
            "--state-dir",
            &state,
            "--listen",
            cluster,
            "--api",
            api,
        ];
        flags.map(str::to_owned).to_vec()
    };
    let program = programs::find("godwit-coordinator")?;
    let (api, cluster) = ("127.0.0.1:0", options.coordinator.to_string());
    let mut daemon = Daemon::new("coordinator", program, args(api, &cluster), root);
    daemon
        .env
        .push(("GODWIT_LOG".to_owned(), options.log.clone()));
    daemon.start().await?;
    let bound = Endpoints::read(&state)?;
    let api = bound.api.unwrap_or_default();
    daemon.args = args(api.trim_start_matches("https://"), &bound.cluster);
    Ok(daemon)
}
