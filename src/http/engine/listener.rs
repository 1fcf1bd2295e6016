//! The listening socket and the options every accepted connection inherits from it (Linux).
//!
//! Defect 3: the library sets no timeouts and hands out no sockets to set them on. What is set on
//! the listener before `listen` is copied to each accepted connection by the kernel; a test below
//! holds it to that, option by option.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Connections the kernel keeps for us while nobody accepts.
const BACKLOG: i32 = 4096;
/// What the kernel keeps of a connection until it is read. A client that pipelines without end and
/// reads nothing is ended after some hundred requests, but the library still reads what the kernel
/// has of it, into a queue without a bound: by default, that may be 100,000 requests a connection.
const RECEIVED_BYTES_MAX: usize = 128 << 10;

/// Binds and listens.
pub(super) fn bind(addr: SocketAddr, limits: &super::Limits) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the last run's connections to be forgotten by the kernel.
    socket.set_reuse_address(true)?;
    set_options(&SockRef::from(&socket), limits)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Sets what accepted connections inherit; also for a listener bound by somebody else.
pub(super) fn set_options(socket: &SockRef<'_>, limits: &super::Limits) -> io::Result<()> {
    // Without it replies over 1 KiB stall for 44 ms behind the client's delayed ack.
    socket.set_tcp_nodelay(true)?;
    socket.set_recv_buffer_size(RECEIVED_BYTES_MAX)?;
    // A client whose machine is gone is noticed while we wait for it (keepalive) ...
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    // ... and while it owes us acks or window.
    socket.set_tcp_user_timeout(Some(Duration::from_secs(30)))?;
    // Ends idle connections and stalled heads and bodies. It ends the library's accept loop as
    // well when nobody connects for so long; the usher's visits see to it that somebody does.
    socket.set_read_timeout(Some(limits.idle_time))?;
    // Bounds how long a client that never reads can hold a thread that writes to it.
    socket.set_write_timeout(Some(limits.write_time))
}

/// Where we reach ourselves: the listener's address, or loopback where it listens on all.
pub(super) fn own_address(local: SocketAddr) -> SocketAddr {
    let ip = match local.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, local.port())
}

/// Raises the limit of open descriptors to the most the system allows: each connection costs two.
/// Returns the limit that holds now, `None` for no limit.
pub(super) fn raise_descriptor_limit() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return current;
    }
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open descriptors");
            current
        }
    }
}

/// How many descriptors may still be opened; `None` where that is not known or has no bound.
pub(super) fn descriptors_left() -> Option<u64> {
    use rustix::process::{Resource, getrlimit};
    let limit = getrlimit(Resource::Nofile).current?;
    match std::fs::read_dir("/proc/self/fd") {
        Ok(open) => Some(limit.saturating_sub(open.count() as u64)),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => {
            Some(0)
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn accepted_connections_inherit_every_option() {
        let limits = super::super::Limits {
            idle_time: Duration::from_secs(17),
            write_time: Duration::from_secs(7),
            ..super::super::Limits::default()
        };
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)), &limits).expect("bound");
        let addr = listener.local_addr().expect("an address");
        let _client = TcpStream::connect(addr).expect("connected");
        let (accepted, _) = listener.accept().expect("accepted");
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().expect("nodelay"));
        // The kernel doubles it, for what it needs itself.
        let buffer = socket.recv_buffer_size().expect("a buffer");
        assert_eq!(buffer, 2 * RECEIVED_BYTES_MAX);
        assert!(socket.keepalive().expect("keepalive"));
        assert_eq!(
            socket.tcp_user_timeout().expect("user timeout"),
            Some(Duration::from_secs(30))
        );
        assert_eq!(
            socket.read_timeout().expect("read timeout"),
            Some(limits.idle_time)
        );
        assert_eq!(
            socket.write_timeout().expect("write timeout"),
            Some(limits.write_time)
        );
    }

    #[test]
    fn we_reach_ourselves_where_we_listen_on_all() {
        let own = |text: &str| own_address(text.parse().expect("an address")).to_string();
        assert_eq!(own("0.0.0.0:80"), "127.0.0.1:80");
        assert_eq!(own("[::]:80"), "[::1]:80");
        assert_eq!(own("10.1.2.3:80"), "10.1.2.3:80");
    }

    #[test]
    fn the_descriptor_limit_is_raised_to_the_hard_one() {
        let limit = raise_descriptor_limit();
        let now = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        assert_eq!((now.current, limit), (now.maximum, now.maximum));
    }
}
