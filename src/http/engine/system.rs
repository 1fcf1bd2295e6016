//! Calls that differ between operating systems: socket options and the descriptor limit.
//!
//! Written for Linux. Elsewhere a client that vanishes without a FIN is detected by keep-alive
//! probes and the engine's deadlines only, because `TCP_USER_TIMEOUT` does not exist there, and
//! accepted sockets may not inherit `TCP_NODELAY` and keep-alive from the listener.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Connections that the kernel queues while none is accepted.
const BACKLOG: i32 = 4096;
/// Descriptors kept for everything but connections: the journal's files, the database with its
/// readers, the listener, the poll.
const DESCRIPTORS_RESERVED: u64 = 48;

/// Returns a listening socket with all options set.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    // Without this, a restart fails while connections of the last run are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    set_options(&SockRef::from(&socket))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Sets the options that accepted connections inherit.
fn set_options(listener: &SockRef<'_>) -> io::Result<()> {
    // Without this, the second part of a reply waits for the client's delayed acknowledgement.
    listener.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    listener.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    listener.set_tcp_user_timeout(Some(Duration::from_secs(30)))?;
    Ok(())
}

/// Raises the descriptor limit to its maximum; returns how many of them connections may use.
pub(super) fn descriptors_for_connections() -> usize {
    let limit = raise_descriptor_limit().unwrap_or(u64::MAX);
    let available = limit.saturating_sub(DESCRIPTORS_RESERVED).max(limit / 8);
    usize::try_from(available).unwrap_or(usize::MAX)
}

/// The limit in force afterwards; `None` for no limit.
fn raise_descriptor_limit() -> Option<u64> {
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

/// Whether accepting failed because the process or the system has no free descriptor or memory.
pub(super) fn is_exhausted(error: &io::Error) -> bool {
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    let code = error.raw_os_error();
    exhausted.iter().any(|one| code == Some(one.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn accepted_connections_inherit_every_option() {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).expect("bound");
        let addr = listener.local_addr().expect("an address");
        let _client = TcpStream::connect(addr).expect("connected");
        let (accepted, _) = listener.accept().expect("accepted");
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().expect("nodelay"));
        assert!(socket.keepalive().expect("keepalive"));
        assert_eq!(
            socket.tcp_user_timeout().expect("user timeout"),
            Some(Duration::from_secs(30))
        );
    }

    #[test]
    fn the_descriptor_limit_is_raised_and_some_descriptors_are_reserved() {
        let connections = descriptors_for_connections();
        let now = getrlimit(Resource::Nofile);
        assert_eq!(now.current, now.maximum);
        if let Some(limit) = now.current {
            let reserved = limit - connections as u64;
            assert_eq!(reserved, DESCRIPTORS_RESERVED.min(limit - limit / 8));
        }
    }

    #[test]
    fn only_a_lack_of_descriptors_or_memory_is_exhaustion() {
        let error = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        assert!(is_exhausted(&error(Errno::MFILE)));
        assert!(is_exhausted(&error(Errno::NFILE)));
        assert!(!is_exhausted(&error(Errno::CONNABORTED)));
        assert!(!is_exhausted(&io::ErrorKind::WouldBlock.into()));
    }
}
