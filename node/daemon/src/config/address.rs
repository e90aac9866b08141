//! `host:port`, checked but not resolved.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use godwit_shared::model::{Problem, codes};

/// A host name or IP address with a port; resolved anew at every use.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// A DNS name, or an IP address without brackets.
    host: String,
    port: u16,
}

impl HostPort {
    /// Reads `name:7440`, `192.0.2.1:7440` or `[2001:db8::1]:7440`. `field` is
    /// named in the problem.
    pub fn check(field: &str, text: &str) -> Result<Self, Problem> {
        Self::read(text).ok_or_else(|| {
            Problem::new(
                codes::CONFIG_INVALID,
                format!("`{field}` cannot be `{text}`"),
            )
            .field(field)
            .value(text)
            .remedy(
                "give host:port, such as control.example.org:7440, 192.0.2.1:7440 or [2001:db8::1]:7440",
            )
        })
    }

    /// The address of a socket.
    pub fn of(address: SocketAddr) -> Self {
        Self {
            host: address.ip().to_string(),
            port: address.port(),
        }
    }

    /// A host that the system itself has named.
    pub fn of_host(host: impl Into<String>, port: u16) -> Self {
        let host = host.into();
        Self { host, port }
    }

    /// The host, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    fn read(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port| *port != 0)?;
        let host = match host.strip_prefix('[') {
            Some(rest) => {
                let inner = rest.strip_suffix(']')?;
                inner.parse::<Ipv6Addr>().ok()?;
                inner
            }
            None => Some(host).filter(|host| is_name(host))?,
        };
        Some(Self {
            host: host.to_owned(),
            port,
        })
    }
}

/// A DNS name or an IPv4 address, by its characters.
fn is_name(host: &str) -> bool {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    (1..=253).contains(&host.len()) && host.bytes().all(fine) && !host.starts_with(['-', '.'])
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.parse::<IpAddr>() {
            Ok(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            _ => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_read_is_written() {
        for text in [
            "a:1",
            "control.example.org:7440",
            "192.0.2.1:65535",
            "[2001:db8::1]:7440",
        ] {
            assert_eq!(HostPort::check("x", text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "a",
            "a:",
            ":1",
            "a:0",
            "a:65536",
            "::1:7440",
            "[::1:7440",
            "[a]:1",
            "a b:1",
            "-a:1",
            "a/b:1",
            "[]:1",
            "a:1:",
        ] {
            let problem = HostPort::check("address", text).unwrap_err();
            assert_eq!(problem.code, codes::CONFIG_INVALID, "{text:?}");
            assert_eq!(problem.value.as_deref(), Some(text));
            assert!(problem.remedy.is_some());
        }
    }
}
