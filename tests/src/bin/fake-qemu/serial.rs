//! The guest's end of a character device. A console (it has a log) says one
//! line and echoes what it hears; anything else hears and says nothing.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::thread;

use crate::arguments::Chardev;
use crate::qmp::STACK;

/// Listens on a thread of its own; one connection at a time, as QEMU does.
pub(crate) fn serve(chardev: &Chardev) -> Result<(), String> {
    let Chardev::Path { path, log, .. } = chardev else {
        return Err("a device of the guest needs a socket's path".to_owned());
    };
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).map_err(|e| format!("{path}: {e}"))?;
    let log = log.as_ref().map(|log| open_log(log)).transpose()?;
    thread::Builder::new()
        .stack_size(STACK)
        .spawn(move || echo(&listener, log.as_ref()))
        .map_err(|e| e.to_string())?;
    Ok(())
}

fn open_log(path: &str) -> Result<File, String> {
    let mut log = File::options()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|e| format!("{path}: {e}"))?;
    log.write_all(b"guest simulated\n")
        .map_err(|e| format!("{path}: {e}"))?;
    Ok(log)
}

fn echo(listener: &UnixListener, mut log: Option<&File>) {
    while let Ok((mut socket, _)) = listener.accept() {
        let mut buffer = [0; 512];
        while let Ok(length @ 1..) = socket.read(&mut buffer) {
            let Some(log) = &mut log else { continue };
            let _ = log.write_all(&buffer[..length]);
            if socket.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
    }
}
