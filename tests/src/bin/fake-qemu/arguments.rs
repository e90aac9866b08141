//! QEMU's arguments, as far as they matter here.

use std::collections::BTreeMap;

/// What was asked for.
#[derive(Debug, Default)]
pub(crate) struct Arguments {
    /// The guest's name.
    pub(crate) guest: String,
    /// Whether a migration is awaited.
    pub(crate) incoming: bool,
    /// Character devices in their order.
    pub(crate) chardevs: Vec<Chardev>,
    monitor: Option<String>,
}

/// Where a character device's bytes go.
#[derive(Debug)]
pub(crate) enum Chardev {
    /// Standard input and output.
    Stdio { id: String },
    /// A socket that was inherited.
    Fd { id: String, fd: u32 },
    /// A unix socket to listen on.
    Path {
        id: String,
        path: String,
        log: Option<String>,
    },
}

impl Chardev {
    fn id(&self) -> &str {
        match self {
            Self::Stdio { id } | Self::Fd { id, .. } | Self::Path { id, .. } => id,
        }
    }

    /// The path of its socket.
    pub(crate) fn path(&self) -> Option<&str> {
        match self {
            Self::Path { path, .. } => Some(path),
            _ => None,
        }
    }
}

impl Arguments {
    /// Reads them. Unknown options are skipped, with their value.
    pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut found = Self::default();
        let mut args = args.peekable();
        while let Some(option) = args.next() {
            let has_value = args.peek().is_some_and(|next| !next.starts_with('-'));
            let value = if has_value { args.next() } else { None };
            let value = value.unwrap_or_default();
            match option.trim_start_matches('-') {
                "name" => found.name(&value),
                "incoming" => found.incoming = true,
                "chardev" => {
                    let chardev = chardev(&value)?;
                    found.chardevs.push(chardev);
                }
                // A second one outlives a daemon, and is of no use here.
                "mon" if found.monitor.is_none() => {
                    found.monitor = pairs(&value).remove("chardev");
                }
                "qmp" => found.qmp(&value)?,
                "version" => return Err("this is a simulation of version 10.0.2".to_owned()),
                _ => {}
            }
        }
        Ok(found)
    }

    /// The character device of the QMP monitor.
    pub(crate) fn monitor(&self) -> Option<&Chardev> {
        self.chardevs.iter().find(|device| self.is_monitor(device))
    }

    /// Whether it is that device.
    pub(crate) fn is_monitor(&self, device: &Chardev) -> bool {
        self.monitor.as_deref() == Some(device.id())
    }

    fn name(&mut self, value: &str) {
        let mut pairs = pairs(value);
        let plain = pairs.remove("").unwrap_or_default();
        self.guest = pairs.remove("guest").unwrap_or(plain);
    }

    /// `-qmp stdio` and `-qmp unix:PATH,server=on` are short for a chardev and a mon.
    fn qmp(&mut self, value: &str) -> Result<(), String> {
        let id = "compat_monitor0".to_owned();
        self.monitor = Some(id.clone());
        let device = if value == "stdio" {
            Chardev::Stdio { id }
        } else if let Some(rest) = value.strip_prefix("unix:") {
            let path = pairs(rest).remove("").unwrap_or_default();
            Chardev::Path {
                id,
                path,
                log: None,
            }
        } else {
            return Err(format!("-qmp {value}: not known here"));
        };
        self.chardevs.push(device);
        Ok(())
    }
}

fn chardev(value: &str) -> Result<Chardev, String> {
    let mut pairs = pairs(value);
    let id = pairs.remove("id").unwrap_or_default();
    if pairs.get("").is_some_and(|kind| kind == "stdio") {
        return Ok(Chardev::Stdio { id });
    }
    if let Some(fd) = pairs.remove("fd") {
        let fd = fd.parse().map_err(|e| format!("fd={fd}: {e}"))?;
        return Ok(Chardev::Fd { id, fd });
    }
    let path = pairs.remove("path");
    let path = path.ok_or_else(|| format!("-chardev {value}: no path"))?;
    let log = pairs.remove("logfile");
    Ok(Chardev::Path { id, path, log })
}

/// `a=b,c,,d=e`: keys and values, `,,` being a comma; the one without a key is
/// under the empty key.
fn pairs(value: &str) -> BTreeMap<String, String> {
    let protected = value.replace(",,", "\0");
    let parts = protected.split(',').map(|part| part.replace('\0', ","));
    let mut found = BTreeMap::new();
    for part in parts {
        let (key, value) = part
            .split_once('=')
            .map_or((String::new(), part.clone()), |(key, value)| {
                (key.to_owned(), value.to_owned())
            });
        found.entry(key).or_insert(value);
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(line: &str) -> Arguments {
        Arguments::parse(line.split(' ').map(str::to_owned)).unwrap()
    }

    #[test]
    fn a_daemons_arguments_are_read() {
        let arguments = parse(
            "-name guest=web-1,debug-threads=on -S -no-shutdown -incoming defer \
             -chardev socket,id=qmp,fd=0,server=on,wait=off -mon chardev=qmp,mode=control \
             -chardev socket,id=serial0,path=/r/a,,b/serial.sock,server=on,logfile=/s/serial.log \
             -chardev socket,id=rescue,fd=3 -mon chardev=rescue,mode=control",
        );
        assert_eq!(arguments.guest, "web-1");
        assert!(arguments.incoming);
        assert!(matches!(
            arguments.monitor(),
            Some(Chardev::Fd { fd: 0, .. })
        ));
        assert_eq!(arguments.chardevs[1].path(), Some("/r/a,b/serial.sock"));
    }

    #[test]
    fn a_probes_arguments_are_read() {
        for line in [
            "-machine none -S -nodefaults -qmp stdio",
            "-machine none -qmp unix:/x/q.sock,server=on,wait=off",
            "-chardev stdio,id=m -mon chardev=m,mode=control",
        ] {
            assert!(parse(line).monitor().is_some(), "{line}");
        }
    }
}
