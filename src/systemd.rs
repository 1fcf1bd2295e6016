//! Notifications to systemd (`Type=notify`): one datagram for each state, sent to the socket that
//! `NOTIFY_SOCKET` names. Without this variable nothing is sent.
//!
//! A failure is logged and otherwise ignored, so that the service keeps running. If systemd does not
//! receive `READY=1`, it stops the service after `TimeoutStartSec`.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Reports that the service has started: the port answers.
pub fn ready() {
    notify("READY=1");
}

/// Reports that the service is shutting down.
pub fn stopping() {
    notify("STOPPING=1");
}

fn notify(state: &str) {
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET")
        && let Err(error) = send(&socket, state)
    {
        tracing::warn!(
            "cannot send {state} to systemd at {}: {error}",
            socket.display()
        );
    }
}

/// Sends one datagram. `@name` is a socket in the abstract namespace, anything else a path.
fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    sender.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(receiver: &UnixDatagram) -> String {
        let mut buffer = [0; 64];
        let length = receiver.recv(&mut buffer).expect("a datagram");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn a_state_is_sent_to_a_path_and_to_an_abstract_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let receiver = UnixDatagram::bind(&path).expect("a socket");
        send(path.as_os_str(), "READY=1").expect("sent");
        assert_eq!(receive(&receiver), "READY=1");

        let name = format!("tallyline-notify-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("an address");
        let receiver = UnixDatagram::bind_addr(&address).expect("a socket");
        send(OsStr::new(&format!("@{name}")), "STOPPING=1").expect("sent");
        assert_eq!(receive(&receiver), "STOPPING=1");
    }

    #[test]
    fn sending_to_a_missing_socket_is_an_error() {
        assert!(send(OsStr::new("/nowhere/at/all"), "READY=1").is_err());
    }
}
