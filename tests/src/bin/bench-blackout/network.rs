//! Two bridges, one for each guest, and the taps that their QEMUs plug into.
//!
//! The guest keeps its address over a move, and whoever asks it notices nothing
//! but the silence. A bridge learns nothing and sends everything to both taps:
//! how long a network takes to learn where a guest is now (QEMU tells it, some
//! times in the first second) is another question than how long it stands still.

use std::fs::Permissions;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use godwit_tests::guest::ECHO;
use godwit_tests::netns::{self, ip};

/// A bridge with a tap at each end of a move.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bridge {
    name: &'static str,
    number: u8,
    pub(crate) taps: [&'static str; 2],
}

/// Where the guest that Godwit moves is.
pub(crate) const MANAGED: Bridge = Bridge {
    name: "managed",
    number: 1,
    taps: ["managed1", "managed2"],
};
/// Where the other one is.
pub(crate) const BARE: Bridge = Bridge {
    name: "bare",
    number: 2,
    taps: ["bare1", "bare2"],
};

impl Bridge {
    /// Its guest's address.
    pub(crate) const fn guest(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 215, self.number, 2)
    }

    /// Where its guest is asked.
    pub(crate) const fn echo(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.guest(), ECHO)
    }

    fn make(&self) -> Result<()> {
        let Self { name, number, taps } = self;
        ip(&format!("link add {name} type bridge"))?;
        ip(&format!("addr add 10.215.{number}.1/24 dev {name}"))?;
        ip(&format!("link set {name} up"))?;
        for tap in taps {
            ip(&format!("tuntap add {tap} mode tap"))?;
            ip(&format!("link set {tap} master {name} up"))?;
            ip(&format!(
                "link set {tap} type bridge_slave learning off flood on"
            ))?;
            // What has piled up for a guest that stands still would keep it from
            // answering when it runs again.
            ip(&format!("link set {tap} txqueuelen 1"))?;
        }
        Ok(())
    }
}

/// Leaves the host's network, before this thread has started anything, for one
/// of its own with both bridges. It is gone when this program is.
pub(crate) fn build() -> Result<()> {
    netns::leave()?;
    MANAGED.make()?;
    BARE.make()
}

/// Writes the QEMU of a node into `dir`: the host's, with a tap where it has a
/// user-mode network (a spec cannot ask for that yet), and with a second QMP
/// session that it opens to the socket `watch`.
pub(crate) fn emulator(dir: &Path, tap: &str, watch: &Path) -> Result<PathBuf> {
    let watch = watch.display();
    let script = format!(
        "#!/bin/sh\n\
         for word; do\n\
           shift\n\
           if [ \"$word\" = user,id=net0 ]; then\n\
             word=tap,id=net0,ifname={tap},script=no,downscript=no\n\
             watch='-chardev socket,id=watch,path={watch} -mon chardev=watch,mode=control'\n\
           fi\n\
           set -- \"$@\" \"$word\"\n\
         done\n\
         exec qemu-system-x86_64 \"$@\" $watch\n"
    );
    let path = dir.join(format!("qemu-{tap}"));
    std::fs::write(&path, script)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    Ok(path)
}
