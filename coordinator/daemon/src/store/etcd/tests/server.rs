//! A real etcd of one member, for a test: TLS with client certificates, in a
//! folder of its own, killed when it is dropped.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// A running etcd.
pub struct Etcd {
    pub dir: tempfile::TempDir,
    pub endpoint: String,
    ports: (u16, u16),
    child: Option<Child>,
}

impl Etcd {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        certificates(dir.path());
        let ports = (free_port(), free_port());
        let mut etcd = Self {
            endpoint: format!("https://127.0.0.1:{}", ports.0),
            dir,
            ports,
            child: None,
        };
        etcd.restart();
        etcd
    }

    /// A file of its folder: `ca.pem`, `client.pem`, `client-key.pem`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts it, on what it had.
    pub fn restart(&mut self) {
        self.kill();
        let peer = format!("http://127.0.0.1:{}", self.ports.1);
        let log = std::fs::File::create(self.file("etcd.log")).unwrap();
        let child = Command::new(program())
            .args(["--name", "test", "--data-dir"])
            .arg(self.file("data"))
            .args(["--listen-client-urls", &self.endpoint])
            .args(["--advertise-client-urls", &self.endpoint])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("test={peer}")])
            .args(["--client-cert-auth", "--trusted-ca-file"])
            .arg(self.file("ca.pem"))
            .arg("--cert-file")
            .arg(self.file("server.pem"))
            .arg("--key-file")
            .arg(self.file("server-key.pem"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        self.listens();
    }

    /// Waits until it takes connections.
    fn listens(&mut self) {
        let until = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", self.ports.0)).is_err() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            let log = || std::fs::read_to_string(self.dir.path().join("etcd.log"));
            assert!(ended.is_none() && Instant::now() < until, "{:?}", log());
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// It stands still, its connections with it.
    pub fn freeze(&mut self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// It goes on.
    pub fn thaw(&mut self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let child = self.child.as_ref().unwrap();
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What `scripts/etcd` has unpacked, or the installed one.
fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("GODWIT_ETCD") {
        return path.into();
    }
    let places = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let unpacked = places.map(|dir| dir.join(".cache/etcd/usr/bin/etcd"));
    let installed = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&installed).map(|dir| dir.join("etcd"));
    unpacked
        .chain(installed)
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("there is no etcd; run scripts/etcd, which fetches it"))
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn certificates(dir: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = ca.self_signed(&key).unwrap();
    std::fs::write(dir.join("ca.pem"), certificate.pem()).unwrap();
    let issuer = Issuer::new(ca, key);
    for (name, usages) in [
        ("server", vec![ServerAuth, ClientAuth]),
        ("client", vec![ClientAuth]),
    ] {
        let key = KeyPair::generate().unwrap();
        let mut leaf = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        leaf.extended_key_usages = usages;
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        std::fs::write(dir.join(format!("{name}.pem")), leaf.pem()).unwrap();
        std::fs::write(dir.join(format!("{name}-key.pem")), key.serialize_pem()).unwrap();
    }
}
