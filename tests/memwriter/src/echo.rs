//! Sends every datagram back to where it came from (RFC 862): how somebody
//! outside sees that the guest runs.

use std::net::{Ipv4Addr, UdpSocket};

use crate::console;

/// More than anybody asks with.
const LARGEST: usize = 2048;

/// Answers for ever; says on the console when it cannot begin.
pub(crate) fn serve(port: u16) {
    let socket = match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Ok(socket) => socket,
        Err(error) => return console::line(&format!("memwriter: echo: {error}")),
    };
    let mut buffer = [0; LARGEST];
    loop {
        // What cannot be received or sent is asked for again, or not.
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}
