//! Where a domain keeps its files.

use std::path::PathBuf;

use godwit_node_logic::qemu::Sockets;
use godwit_shared::model::{Problem, VmId, codes};

use crate::host::{NodePaths, make_dir};
use crate::qemu::process::check_socket_path;

/// The files of one domain.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Record and logs.
    pub(super) state: PathBuf,
    /// Sockets; gone when QEMU is.
    pub(super) run: PathBuf,
}

impl Place {
    pub(super) fn new(paths: &NodePaths, vm: VmId) -> Self {
        let name = vm.to_string();
        Self {
            state: paths.domains().join(&name),
            run: paths.run_dir.join(&name),
        }
    }

    pub(super) fn qmp(&self) -> PathBuf {
        self.run.join("qmp.sock")
    }

    pub(super) fn serial(&self) -> PathBuf {
        self.run.join("serial.sock")
    }

    pub(super) fn agent(&self) -> PathBuf {
        self.run.join("agent.sock")
    }

    pub(super) fn serial_log(&self) -> PathBuf {
        self.state.join("serial.log")
    }

    pub(super) fn qemu_log(&self) -> PathBuf {
        self.state.join("qemu.log")
    }

    /// The paths as QEMU's arguments need them.
    pub(super) fn sockets(&self) -> Result<Sockets, Problem> {
        check_socket_path(&self.serial())?;
        Ok(Sockets {
            serial: text(self.serial())?,
            serial_log: text(self.serial_log())?,
            agent: text(self.agent())?,
        })
    }

    /// Makes the directory of the record.
    pub(super) fn make_state(&self) -> Result<(), Problem> {
        make_dir(&self.state)
    }

    /// Makes the directory of the sockets.
    pub(super) fn make_run(&self) -> Result<(), Problem> {
        make_dir(&self.run)
    }

    /// Removes the sockets: three small files.
    pub(super) fn remove_run(&self) {
        remove(&self.run);
    }

    /// Removes everything. Blocks as long as the logs are large.
    pub(super) fn remove_all(&self) {
        remove(&self.run);
        remove(&self.state);
    }
}

fn remove(dir: &PathBuf) {
    if let Err(error) = std::fs::remove_dir_all(dir)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), %error, "a domain's files cannot be removed");
    }
}

fn text(path: PathBuf) -> Result<String, Problem> {
    path.into_os_string().into_string().map_err(|path| {
        Problem::new(
            codes::HOST_IO,
            format!("the path `{}` is not UTF-8", path.display()),
        )
        .remedy("give the daemon directories with plain names")
    })
}
